/* Unit tests of src/block/raw.c. */
#include "block/blk.h"

#include "base/error.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

static char dir[] = "test-raw-XXXXXX";
static char path[64];

static void cleanup(void)
{
	unlink(path);
	rmdir(dir);
}

/* A fresh file of `size` bytes, sparse, in a directory of its own. */
static void new_file(off_t size)
{
	int fd;

	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/disk", dir);
	atexit(cleanup);
	fd = open(path, O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0);
	CHECK_EQ(0, ftruncate(fd, size));
	close(fd);
}

static struct blk *open_raw(unsigned flags)
{
	struct blk *b;
	struct error err = {""};

	if (blk_open(&b, path, "raw", flags, &err) < 0)
		printf("# %s\n", err.msg);
	else
		return b;
	CHECK(!"the disk opens");
	return NULL;
}

TEST(what_is_written_is_read_back)
{
	struct blk *b;
	char got[6];

	new_file(1 * MiB);
	b = open_raw(0);
	CHECK_EQ(MiB, blk_info(b)->size);
	CHECK_EQ(512, blk_info(b)->block_size);
	CHECK_EQ(0, blk_write(b, "hello", 6, MiB - 6));
	CHECK_EQ(0, blk_read(b, got, 6, MiB - 6));
	CHECK_STR("hello", got);
	CHECK_EQ(0, blk_flush(b));
	blk_close(b);
}

TEST(a_partial_last_sector_reads_zero_padded)
{
	struct blk *b;
	uint8_t buf[512];
	struct stat st;

	new_file(0);
	CHECK_EQ(0, truncate(path, 512 + 3));
	b = open_raw(0);
	CHECK_EQ(1024, blk_info(b)->size);
	memset(buf, 0xee, sizeof(buf));
	CHECK_EQ(0, blk_read(b, buf, 512, 512));
	CHECK_EQ(0, buf[0]);
	CHECK_EQ(0, buf[511]);
	CHECK_EQ(0, blk_write_zeroes(b, 512, 512, true));
	memset(buf, 0x11, sizeof(buf));
	CHECK_EQ(0, blk_write(b, buf, 512, 512));
	CHECK_EQ(0, stat(path, &st));
	CHECK_EQ(1024, st.st_size);
	blk_close(b);
}

/* The flags of this process's open descriptor of `path`. */
static int open_flags_of(const char *name)
{
	struct stat want, have;

	CHECK_EQ(0, stat(name, &want));
	for (int fd = 3; fd < 64; fd++)
		if (!fstat(fd, &have) && have.st_ino == want.st_ino && have.st_dev == want.st_dev)
			return fcntl(fd, F_GETFL);
	return -1;
}

TEST(read_only_means_the_descriptor_too)
{
	struct blk *b;

	new_file(4096);
	b = open_raw(BLK_READONLY);
	CHECK_EQ(O_RDONLY, open_flags_of(path) & O_ACCMODE);
	CHECK_EQ(-EROFS, blk_write(b, "x", 1, 0));
	CHECK(blk_info(b)->readonly);
	CHECK(!blk_info(b)->can_discard);
	blk_close(b);
}

TEST(two_writers_are_refused)
{
	struct blk *b, *c;
	struct error err;

	new_file(4096);
	b = open_raw(0);
	CHECK_EQ(-EBUSY, blk_open(&c, path, "raw", 0, &err));
	CHECK(strstr(err.msg, "is in use by another process"));
	CHECK_EQ(-EBUSY, blk_open(&c, path, "raw", BLK_READONLY, &err));
	CHECK(strstr(err.msg, "is being written"));
	c = open_raw(BLK_NO_LOCK | BLK_READONLY);
	blk_close(c);
	blk_close(b);
	blk_close(open_raw(0)); /* free again */
}

TEST(readers_share)
{
	struct blk *b, *c, *d;

	new_file(4096);
	b = open_raw(BLK_READONLY);
	c = open_raw(BLK_READONLY);
	CHECK_EQ(-EBUSY, blk_open(&d, path, "raw", 0, NULL));
	blk_close(b);
	blk_close(c);
}

TEST(guessing_is_for_reading_only)
{
	struct blk *b;
	struct error err;

	new_file(4096);
	CHECK_EQ(-EINVAL, blk_open(&b, path, NULL, 0, &err));
	CHECK(strstr(err.msg, "format=FORMAT"));
	CHECK_EQ(-EINVAL, blk_open(&b, path, "auto", 0, &err));
	CHECK_EQ(0, blk_open(&b, path, "auto", BLK_READONLY, &err));
	CHECK_STR("raw", blk_info(b)->format);
	blk_close(b);
}

TEST(what_cannot_be_a_disk_is_refused_with_words)
{
	struct error err;
	struct blk *b;

	new_file(0);
	CHECK_EQ(-ENOENT, blk_open(&b, "no/such", "raw", 0, &err));
	CHECK_STR("cannot open 'no/such': No such file or directory", err.msg);
	CHECK_EQ(-EINVAL, blk_open(&b, path, "qcow9", 0, &err));
	CHECK_STR("disk format 'qcow9' is not known", err.msg);
	CHECK_EQ(-EINVAL, blk_open(&b, dir, "raw", BLK_READONLY, &err));
	CHECK(strstr(err.msg, "neither a regular file nor a block device"));
	unlink(path);
	CHECK_EQ(0, mkfifo(path, 0600));
	CHECK_EQ(-EINVAL, blk_open(&b, path, "raw", BLK_READONLY, &err)); /* and did not hang */
}

TEST(extents_follow_the_holes)
{
	struct blk *b;
	static uint8_t buf[65536];
	enum blk_extent what;
	uint64_t len = 1 * MiB;

	new_file(1 * MiB);
	b = open_raw(0);
	memset(buf, 1, sizeof(buf));
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 512 * KiB));
	CHECK_EQ(0, blk_extent(b, 0, &len, &what));
	if (what == BLK_EXT_DATA)
		SKIP("this file system keeps no holes");
	CHECK_EQ(BLK_EXT_HOLE, what);
	CHECK_EQ(512 * KiB, len);
	len = MiB - 512 * KiB;
	CHECK_EQ(0, blk_extent(b, 512 * KiB, &len, &what));
	CHECK_EQ(BLK_EXT_DATA, what);
	CHECK_EQ(64 * KiB, len);
	len = 1000;
	CHECK_EQ(0, blk_extent(b, 700 * KiB, &len, &what));
	CHECK_EQ(BLK_EXT_HOLE, what);
	CHECK_EQ(1000, len);
	blk_close(b);
}

static uint64_t allocated(void)
{
	struct stat st;

	CHECK_EQ(0, stat(path, &st));
	return (uint64_t)st.st_blocks * 512;
}

TEST(discard_gives_space_back)
{
	struct blk *b;
	static uint8_t buf[256 * 1024];
	uint64_t before;

	new_file(1 * MiB);
	b = open_raw(0);
	memset(buf, 1, sizeof(buf));
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 0));
	CHECK_EQ(0, blk_flush(b));
	before = allocated();
	CHECK_EQ(0, blk_discard(b, 100, 128 * KiB));
	CHECK_EQ(0, blk_read(b, buf, 4096, 0));
	CHECK_EQ(1, buf[100]); /* rounded inwards to whole sectors */
	if (allocated() >= before)
		SKIP("this file system cannot punch holes");
	CHECK_EQ(0, buf[512]);
	blk_close(b);
}

TEST(zeroes_are_zeroes_however_they_are_made)
{
	struct blk *b;
	static uint8_t buf[64 * 1024];

	new_file(1 * MiB);
	b = open_raw(0);
	for (int may_unmap = 0; may_unmap < 2; may_unmap++) {
		memset(buf, 0xaa, sizeof(buf));
		CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 4096));
		CHECK_EQ(0, blk_write_zeroes(b, 4097, 5000, may_unmap));
		CHECK_EQ(0, blk_read(b, buf, 8192, 4096));
		CHECK_EQ(0xaa, buf[0]);
		CHECK_EQ(0, buf[1]);
		CHECK_EQ(0, buf[5000]);
		CHECK_EQ(0xaa, buf[5001]);
	}
	blk_close(b);
}

TEST(resizing_moves_the_end)
{
	struct blk *b;
	char c;

	new_file(4096);
	b = open_raw(0);
	CHECK_EQ(-EINVAL, blk_read(b, &c, 1, 4096));
	CHECK_EQ(0, blk_resize(b, 8192));
	CHECK_EQ(0, blk_read(b, &c, 1, 8191));
	CHECK_EQ(0, c);
	CHECK_EQ(-EINVAL, blk_resize(b, 100));
	blk_close(b);
}

TEST(random_writes_match_a_model)
{
	static uint8_t model[128 * 1024], buf[128 * 1024];
	struct blk *b;
	unsigned seed = 7;

	new_file(sizeof(model));
	b = open_raw(0);
	for (int i = 0; i < 2000; i++) {
		uint64_t off, len;

		seed = seed * 1103515245 + 12345;
		off = (seed >> 8) % sizeof(model);
		seed = seed * 1103515245 + 12345;
		len = (seed >> 8) % MIN(sizeof(model) - off, 9000ull) + 1;
		len = MIN(len, sizeof(model) - off);
		if (i % 3 == 0) {
			memset(model + off, 0, len);
			CHECK_EQ(0, blk_write_zeroes(b, off, len, i % 2));
		} else {
			struct iovec iov[2] = {{model + off, len / 2},
					       {model + off + len / 2, len - len / 2}};

			memset(model + off, (int)seed & 0xff, len);
			CHECK_EQ(0, blk_writev(b, iov, 2, off));
		}
	}
	CHECK_EQ(0, blk_read(b, buf, sizeof(buf), 0));
	CHECK_EQ(0, memcmp(model, buf, sizeof(buf)));
	blk_close(b);
}

TEST(very_long_scatter_lists_work)
{
	static struct iovec iov[3000];
	static uint8_t out[3000], in[3000];
	struct blk *b;

	new_file(4096);
	b = open_raw(0);
	for (unsigned i = 0; i < 3000; i++) {
		out[i] = (uint8_t)(i * 13);
		iov[i] = (struct iovec){&out[i], 1};
	}
	CHECK_EQ(0, blk_writev(b, iov, 3000, 5));
	CHECK_EQ(0, blk_read(b, in, 3000, 5));
	CHECK_EQ(0, memcmp(in, out, 3000));
	blk_close(b);
}
