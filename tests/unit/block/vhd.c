/* Unit tests of src/block/vhd. */
#include "image_fixture.h"

#include "base/bytes.h"

#define SIZE (12 * MiB + 512)

static uint8_t model[SIZE + 40 * MiB];

TEST(random_operations_match_a_model)
{
	fx_create("d", "vpc", SIZE, NULL, NULL);
	fx_storm("d", "vpc", model, SIZE, 300);
	fx_is_clean("d", "vpc");
}

TEST(a_fixed_disk_is_its_bytes_and_a_footer)
{
	fx_create("d", "vpc", SIZE, FX_OPTS({"subformat", "fixed"}), NULL);
	fx_storm("d", "vpc", model, SIZE, 100);
	fx_is_clean("d", "vpc");
	CHECK_EQ(SIZE + 512, fx_file_size("d"));
}

TEST(threads_that_share_blocks_do_not_lose_bytes)
{
	fx_create("d", "vpc", SIZE, NULL, NULL);
	fx_crowd("d", "vpc", model, 12 * MiB);
	fx_is_clean("d", "vpc");
}

TEST(qemu_img_reads_what_we_write)
{
	NEED("qemu-img");
	fx_create("d", "vpc", SIZE, NULL, NULL);
	fx_storm("d", "vpc", model, SIZE, 90);
	fx_qemu_reads("d", "vpc", model, SIZE);
	fx_create("f", "vpc", SIZE, FX_OPTS({"subformat", "fixed"}), NULL);
	memset(model, 0, SIZE);
	fx_storm("f", "vpc", model, SIZE, 50);
	fx_qemu_reads("f", "vpc", model, SIZE);
}

TEST(we_read_and_go_on_with_what_qemu_img_writes)
{
	NEED("qemu-img");
	for (unsigned i = 0; i < SIZE; i++)
		model[i] = i / MiB % 3 ? 0 : (uint8_t)(i * 7 >> 3);
	fx_qemu_writes("d", "vpc", "-o force_size", model, SIZE);
	fx_storm("d", "vpc", model, SIZE, 100);
	fx_is_clean("d", "vpc");
	fx_qemu_writes("f", "vpc", "-o force_size,subformat=fixed", model, SIZE);
	fx_storm("f", "vpc", model, SIZE, 50);
}

/* vhdiinfo says what it found in the table and the headers. */
TEST(libvhdi_takes_our_images)
{
	NEED("vhdiinfo");
	fx_create("base.vhd", "vpc", SIZE, NULL, NULL);
	fx_storm("base.vhd", "vpc", model, SIZE, 60);
	fx_create("child.vhd", "vpc", 0, NULL, "base.vhd");
	CHECK_EQ(0, fx_run("vhdiinfo %s", fx_path("base.vhd")));
	CHECK_EQ(0, fx_run("vhdiinfo %s | grep -i 'type.*differential'", fx_path("child.vhd")));
	CHECK_EQ(0, fx_run("vhdiinfo %s | grep 'base.vhd'", fx_path("child.vhd")));
}

TEST(sizes_follow_the_geometry_for_virtual_pc_only)
{
	struct blk *b;

	fx_create("d", "vpc", 10 * MiB, NULL, NULL);
	b = fx_open("d", "vpc", BLK_READONLY);
	CHECK_EQ(10 * MiB, blk_info(b)->size);
	blk_close(b);
	/* 10 MiB: 301 cylinders of 4 heads and 17 sectors are less, 302 more. */
	fx_create("d", "vpc", 10 * MiB, FX_OPTS({"force_size", "off"}), NULL);
	b = fx_open("d", "vpc", BLK_READONLY);
	CHECK_EQ(302ull * 4 * 17 * 512, blk_info(b)->size);
	blk_close(b);
	CHECK(fx_try_create("d", "vpc", 2041 * GiB, NULL, NULL) < 0);
	CHECK(strstr(fx_err.msg, "2040 GiB"));
}

/* ---- chains ---- */

TEST(a_chain_of_differencing_disks)
{
	static const char *const name[] = {"a", "b", "c", "d"};

	fx_create("a", "vpc", SIZE, NULL, NULL);
	fx_storm("a", "vpc", model, SIZE, 100);
	for (unsigned i = 1; i < ARRAY_SIZE(name); i++) {
		fx_create(name[i], "vpc", 0, NULL, name[i - 1]);
		fx_storm(name[i], "vpc", model, SIZE, 90);
		fx_is_clean(name[i], "vpc");
	}
}

TEST(threads_share_the_blocks_of_a_differencing_disk)
{
	fx_create("a", "vpc", SIZE, NULL, NULL);
	fx_storm("a", "vpc", model, SIZE, 30);
	fx_create("b", "vpc", 0, NULL, "a");
	fx_crowd("b", "vpc", model, 12 * MiB);
	fx_is_clean("b", "vpc");
}

TEST(parents_are_found_by_relative_name_or_identifier)
{
	struct blk *b;

	CHECK_EQ(0, mkdir(fx_path("sub"), 0700));
	fx_create("sub/base", "vpc", SIZE, NULL, NULL);
	fx_create("child", "vpc", 0, NULL, "sub/base");
	b = fx_open("child", "vpc", BLK_READONLY);
	CHECK(strstr(blk_path(blk_backing(b)), "sub/base"));
	blk_close(b);
	CHECK_EQ(0, rename(fx_path("sub/base"), fx_path("renamed")));
	b = fx_open("child", "vpc", BLK_READONLY);
	CHECK(strstr(blk_path(blk_backing(b)), "renamed"));
	blk_close(b);
}

TEST(a_missing_or_foreign_parent_is_refused)
{
	struct blk *b;

	fx_create("base", "vpc", SIZE, NULL, NULL);
	fx_create("child", "vpc", 0, NULL, "base");
	fx_create("base", "vpc", SIZE, NULL, NULL);
	fx_refused("child", "vpc", BLK_READONLY, "another disk than its parent");
	unlink(fx_path("base"));
	fx_refused("child", "vpc", BLK_READONLY, "'base'");
	fx_refused("child", "vpc", BLK_READONLY, "--allow-ref");
	b = fx_open("child", "vpc", BLK_READONLY | BLK_NO_BACKING);
	blk_close(b);
}

TEST(another_parent_can_be_named)
{
	struct blk *b;
	char got[4];

	fx_create("one", "vpc", SIZE, NULL, NULL);
	fx_create("two", "vpc", SIZE, NULL, NULL);
	b = fx_open("two", "vpc", 0);
	CHECK_EQ(0, blk_write(b, "two", 4, 0));
	blk_close(b);
	fx_create("child", "vpc", 0, NULL, "one");
	b = fx_open("child", "vpc", 0);
	CHECK_EQ(0, blk_write(b, "own", 4, 4096));
	CHECK_EQ(0, blk_change_backing(b, "two", "vpc", &fx_err));
	blk_close(b);
	unlink(fx_path("one"));
	b = fx_open("child", "vpc", 0);
	CHECK_EQ(0, blk_read(b, got, 4, 0));
	CHECK_STR("two", got);
	CHECK_EQ(0, blk_read(b, got, 4, 4096));
	CHECK_STR("own", got);
	CHECK_EQ(0, blk_write(b, "new", 4, 8 * MiB));
	blk_close(b);
	CHECK_EQ(0, fx_check("child", "vpc", BLK_FIX_LEAKS).corruptions);
	fx_is_clean("child", "vpc");
}

/* ---- sizes ---- */

static void resize_through(const uint64_t *sizes, unsigned n, const struct blk_kv *opt)
{
	uint64_t size = SIZE;
	struct blk *b;

	fx_create("d", "vpc", SIZE, opt, NULL);
	fx_storm("d", "vpc", model, SIZE, 60);
	for (unsigned i = 0; i < n; i++) {
		b = fx_open("d", "vpc", 0);
		CHECK_EQ(0, blk_resize(b, sizes[i]));
		if (sizes[i] < size)
			memset(model + sizes[i], 0, size - sizes[i]);
		size = sizes[i];
		fx_same(b, model, size);
		blk_close(b);
		fx_storm("d", "vpc", model, size, 40);
		fx_check("d", "vpc", BLK_FIX_LEAKS);
		fx_is_clean("d", "vpc");
	}
}

TEST(resizing_keeps_the_content_and_adds_zeroes)
{
	static const uint64_t sizes[] = {SIZE + 20 * MiB, 5 * MiB + 512, 9 * MiB, SIZE + 33 * MiB};

	resize_through(sizes, ARRAY_SIZE(sizes), NULL);
	memset(model, 0, sizeof(model));
	resize_through(sizes, ARRAY_SIZE(sizes), FX_OPTS({"subformat", "fixed"}));
}

TEST(two_tebibytes)
{
	uint64_t size = 2040 * GiB;
	struct blk *b;
	char got[4];

	fx_create("d", "vpc", size, NULL, NULL);
	b = fx_open("d", "vpc", 0);
	CHECK_EQ(0, blk_write(b, "last", 4, size - 4));
	CHECK_EQ(0, blk_write(b, "mid", 4, size / 2));
	blk_close(b);
	b = fx_open("d", "vpc", BLK_READONLY);
	CHECK_EQ(0, blk_read(b, got, 4, size - 4));
	CHECK_EQ(0, memcmp(got, "last", 4));
	blk_close(b);
	CHECK(fx_file_size("d") < 16 * MiB);
	fx_is_clean("d", "vpc");
}

/* ---- damage ---- */

static void write_something(void)
{
	struct blk *b;

	fx_create("d", "vpc", SIZE, NULL, NULL);
	b = fx_open("d", "vpc", 0);
	CHECK_EQ(0, blk_write(b, "text", 4, 7 * MiB));
	blk_close(b);
}

static void read_something(unsigned flags)
{
	struct blk *b = fx_open("d", "vpc", flags);
	char got[4];

	CHECK_EQ(0, blk_read(b, got, 4, 7 * MiB));
	CHECK_EQ(0, memcmp(got, "text", 4));
	blk_close(b);
}

TEST(one_good_footer_is_enough_and_mends_the_other)
{
	static const uint8_t junk[512] = {1};

	write_something();
	fx_patch("d", fx_file_size("d") - 512, junk, 512);
	read_something(BLK_READONLY);
	CHECK_EQ(1, fx_check("d", "vpc", 0).leaks);
	CHECK_EQ(1, fx_check("d", "vpc", BLK_FIX_LEAKS).leaks_fixed);
	fx_is_clean("d", "vpc");
	fx_patch("d", 0, junk, 512);
	read_something(BLK_READONLY);
	CHECK_EQ(1, fx_check("d", "vpc", 0).leaks);
	CHECK_EQ(1, fx_check("d", "vpc", BLK_FIX_LEAKS).leaks_fixed);
	fx_is_clean("d", "vpc");
	read_something(0);
}

TEST(a_wrong_checksum_is_refused_but_can_be_recovered)
{
	struct blk *b;

	write_something();
	fx_patch("d", 0x20, "x", 1);
	fx_patch("d", fx_file_size("d") - 512 + 0x20, "x", 1);
	fx_refused("d", "vpc", BLK_READONLY, "the checksum of its footer is wrong");
	read_something(BLK_READONLY | BLK_RECOVER);
	b = fx_open("d", "vpc", BLK_RECOVER);
	CHECK_EQ(-EROFS, blk_write(b, "x", 1, 0));
	blk_close(b);
}

/* Change a field of the footers or of the header, with a good checksum. */
static void patch_sealed(uint64_t at, unsigned len, unsigned checksum, unsigned field,
			 const char *bytes, unsigned n)
{
	uint8_t buf[1024];
	uint32_t sum = 0;
	int fd = open(fx_path("d"), O_RDWR);

	CHECK_EQ(len, pread(fd, buf, len, (off_t)at));
	memcpy(buf + field, bytes, n);
	for (unsigned i = 0; i < len; i++)
		sum += i >= checksum && i < checksum + 4 ? 0 : buf[i];
	be32_store(buf + checksum, ~sum);
	CHECK_EQ(len, pwrite(fd, buf, len, (off_t)at));
	close(fd);
}

static void refuse_footer(unsigned field, const char *bytes, unsigned n, const char *words)
{
	fx_create("d", "vpc", SIZE, NULL, NULL);
	patch_sealed(0, 512, 0x40, field, bytes, n);
	patch_sealed(fx_file_size("d") - 512, 512, 0x40, field, bytes, n);
	fx_refused("d", "vpc", BLK_READONLY, words);
}

static void refuse_header(unsigned field, const char *bytes, unsigned n, const char *words)
{
	fx_create("d", "vpc", SIZE, NULL, NULL);
	patch_sealed(512, 1024, 0x24, field, bytes, n);
	fx_refused("d", "vpc", BLK_READONLY, words);
}

TEST(headers_that_cannot_be_are_refused_with_words)
{
	refuse_footer(0x0c, "\0\2", 2, "version 2");
	refuse_footer(0x10, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, "a header outside the file");
	refuse_footer(0x10, "\0\0\0\0\0\0\0\0", 8, "no dynamic header");
	refuse_footer(0x30, "\0\0\1\xff\0\0\0\0", 8, "a size above 2040 GiB");
	refuse_footer(0x3c, "\0\0\0\7", 4, "disk type 7");
	refuse_footer(0x3c, "\0\0\0\2", 4, "shorter than its disk");
	refuse_header(0x10, "\0\0\0\1\0\0\0\0", 8, "a table outside the file");
	refuse_header(0x18, "\0\7", 2, "header version 7");
	refuse_header(0x1c, "\x40\0\0\1", 4, "a number of table entries of 1073741825");
	refuse_header(0x1c, "\0\0\0\1", 4, "fewer blocks than the disk needs");
	refuse_header(0x20, "\0\0\1\0", 4, "a block size of 256");
	refuse_header(0x20, "\0\x30\0\0", 4, "a block size of 3145728");
	fx_create("d", "vpc", SIZE, NULL, NULL);
	CHECK_EQ(0, truncate(fx_path("d"), 100));
	fx_refused("d", "vpc", BLK_READONLY, "too short");
}

TEST(entries_out_of_the_file_are_errors_and_can_be_mended)
{
	struct blk *b;
	char got[4];

	write_something();
	fx_patch("d", 1536, "\0\xff\xff\xff", 4);
	CHECK_EQ(1, fx_check("d", "vpc", 0).corruptions);
	b = fx_open("d", "vpc", BLK_READONLY);
	CHECK_EQ(-EIO, blk_read(b, got, 4, 0));
	blk_close(b);
	read_something(0);
	CHECK_EQ(1, fx_check("d", "vpc", BLK_FIX_ERRORS | BLK_FIX_LEAKS).corruptions_fixed);
	fx_is_clean("d", "vpc");
	read_something(0);
}

/* ---- images of others ---- */

static uint64_t sample_size(const char *path, unsigned flags)
{
	struct blk *b = NULL;
	uint64_t size;

	if (blk_open(&b, path, "vpc", BLK_READONLY | BLK_NO_POOL | flags, &fx_err) < 0)
		printf("# %s\n", fx_err.msg);
	CHECK(b);
	size = blk_info(b)->size;
	blk_close(b);
	return size;
}

TEST(samples_open_with_their_size)
{
	CHECK_EQ(263454720, sample_size(fx_sample("qemu-iotests/d2v-zerofilled.vhd"), 0));
	CHECK_EQ(136365211648, sample_size(fx_sample("qemu-iotests/hyperv2012r2-dynamic.vhd"), 0));
	CHECK_EQ(136363130880, sample_size(fx_sample("qemu-iotests/virtualpc-dynamic.vhd"), 0));
	CHECK_EQ(4212736, sample_size(fx_sample("dfvfs/ext2.vhd"), 0));
}

TEST(samples_that_are_damaged_are_refused)
{
	struct blk *b;

	CHECK(blk_open(&b, fx_sample("qemu-iotests/afl5.img"), "vpc", BLK_READONLY, &fx_err) < 0);
	CHECK(strstr(fx_err.msg, "a header outside the file"));
	CHECK(blk_open(&b, fx_sample("dfvfs/fat-differential.vhd"), "vpc", BLK_READONLY, &fx_err) <
	      0);
	CHECK(strstr(fx_err.msg, "fat-parent.vhd"));
}

TEST(a_sample_chain_with_wrong_checksums_can_be_recovered)
{
	const char *child;
	struct blk *b;

	fx_sample("dfvfs/image.vhd");
	child = fx_sample("dfvfs/image-differential.vhd");
	CHECK(blk_open(&b, child, "vpc", BLK_READONLY, &fx_err) < 0);
	CHECK(strstr(fx_err.msg, "checksum"));
	CHECK_EQ(104448, sample_size(child, BLK_RECOVER));
}
