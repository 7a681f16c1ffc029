/* A disk with sectors that cannot be read, and what is known and kept about it across crashes. */
#define TEST_TIMEOUT_S 240
#include "test.h"

#include "base/error.h"
#include "block/filter_rescue.h"
#include "block/format.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

enum { SECTOR = 512, DISK = 4 * MiB + 3 * SECTOR };

/* --- the disk below -----------------------------------------------------------------------------
 */

struct bad_place {
	uint64_t off, len;
	int error;
	unsigned times; /* so many reads fail; 0: all */
};

static struct {
	struct bad_place bad[8];
	unsigned nr_bad, reads;
	uint64_t bytes;
	uint8_t twist; /* changes every byte: another disk of the same size */
	unsigned nap_us;
} hw;

static uint8_t byte_at(uint64_t off)
{
	/* Some of it zeroes, in pieces that become holes. */
	return off / (128 * KiB) % 3 == 2 ? 0 : (uint8_t)(off * 31 + (off >> 9) * 7 + 1) ^ hw.twist;
}

static int hw_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	hw.reads++;
	hw.bytes += len;
	if (hw.nap_us)
		usleep(hw.nap_us);
	for (unsigned i = 0; i < hw.nr_bad; i++) {
		struct bad_place *p = &hw.bad[i];

		if (off >= p->off + p->len || p->off >= off + len)
			continue;
		if (p->times && --p->times == 0) /* it was the last */
			p->len = 0;
		return -p->error;
	}
	for (unsigned i = 0; i < n; i++)
		for (size_t k = 0; k < iov[i].iov_len; k++)
			((uint8_t *)iov[i].iov_base)[k] = byte_at(off++);
	return 0;
}

static void hw_close(struct blk *b)
{
}

static const struct blk_format hw_format = {.name = "hw", .readv = hw_readv, .close = hw_close};

static struct blk *new_hw(void)
{
	const struct blk_info info = {.size = DISK, .block_size = SECTOR};
	struct blk *b;

	CHECK_EQ(0, blk_wrap(&b, &hw_format, NULL, &info, BLK_FILE | BLK_READONLY | BLK_NO_POOL,
			     NULL));
	return b;
}

static void hw_bad(uint64_t off, uint64_t len, int error, unsigned times)
{
	hw.bad[hw.nr_bad++] = (struct bad_place){off, len, error, times};
}

/* --- helpers ------------------------------------------------------------------------------------
 */

/* In memory where that is possible: flushing a busy medium takes seconds. */
static char dir[] = "/dev/shm/hv-rescue-XXXXXX", map_path[64], cache_path[64];
static uint8_t buf[DISK];
static pid_t owner;

static void remove_dir(void)
{
	char line[64];

	if (getpid() != owner)
		return;
	snprintf(line, sizeof(line), "rm -rf %s", dir);
	if (system(line))
		perror("rm");
}

static void paths(void)
{
	if (!mkdtemp(dir)) {
		strcpy(dir, "/tmp/hv-rescue-XXXXXX");
		CHECK(mkdtemp(dir));
	}
	owner = getpid();
	atexit(remove_dir);
	snprintf(map_path, sizeof(map_path), "%s/map", dir);
	snprintf(cache_path, sizeof(cache_path), "%s/cache", dir);
}

static struct blk_rescue_opts kept(void)
{
	if (!map_path[0])
		paths();
	return (struct blk_rescue_opts){.map_path = map_path, .cache_path = cache_path};
}

static struct blk *open_rescue(const struct blk_rescue_opts *o)
{
	struct error err = {""};
	struct blk *b = NULL;
	int r = blk_rescue(&b, new_hw(), o, BLK_NO_POOL, &err);

	if (r < 0)
		printf("# %s\n", err.msg);
	CHECK_EQ(0, r);
	return b;
}

static int refused(const struct blk_rescue_opts *o, const char *word)
{
	struct error err = {""};
	struct blk *b;
	int r = blk_rescue(&b, new_hw(), o, BLK_NO_POOL, &err);

	CHECK(r < 0);
	CHECK(strstr(err.msg, word));
	return r;
}

static bool is_hw(const uint8_t *p, uint64_t off, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != byte_at(off + i))
			return false;
	return true;
}

static bool is_zero(const uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i])
			return false;
	return true;
}

static void put_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	CHECK(f);
	fputs(text, f);
	CHECK_EQ(0, fclose(f));
}

/* --- the power goes off --------------------------------------------------------------------------
 * These stand for the C library's: what fdatasync was called for is on the medium, and a map that
 * takes its name may claim no more than that. */

static uint8_t *medium;
static unsigned maps_checked, claims_checked;

int fdatasync(int fd)
{
	struct stat st;

	if (medium && fstat(fd, &st) == 0 && st.st_size == DISK)
		CHECK_EQ(DISK, pread(fd, medium, DISK, 0));
	return fsync(fd);
}

int rename(const char *from, const char *to)
{
	struct rescue_map *m;

	if (medium) {
		CHECK_EQ(0, rescue_map_load(&m, from, DISK, NULL, NULL));
		for (uint64_t off = 0, run; off < DISK; off += run) {
			run = DISK - off;
			if (rescue_map_get(m, off, &run) != RESCUE_FINISHED)
				continue;
			claims_checked++;
			CHECK(is_hw(medium + off, off, run));
		}
		rescue_map_free(m);
		maps_checked++;
	}
	return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

/* --- the map ------------------------------------------------------------------------------------
 */

TEST(a_map_agrees_with_a_plain_array_through_random_changes)
{
	enum { SIZE = 300 };
	static const char statuses[] = "?*/-+";
	char model[SIZE];
	struct rescue_map *m, *again;
	unsigned seed = 1, runs = 1;
	char *text;
	size_t len;

	CHECK_EQ(0, rescue_map_new(&m, SIZE, NULL));
	memset(model, '?', SIZE);
	for (unsigned i = 0; i < 4000; i++) {
		unsigned off = (unsigned)rand_r(&seed) % SIZE,
			 n = (unsigned)rand_r(&seed) % (SIZE - off + 1);
		char s = statuses[(unsigned)rand_r(&seed) % 5];

		CHECK_EQ(0, rescue_map_set(m, off, n, (enum rescue_status)s));
		memset(model + off, s, n);
		runs = 1;
		for (unsigned k = 1; k < SIZE; k++)
			runs += model[k] != model[k - 1];
		CHECK_EQ(runs, rescue_map_runs(m));
		for (uint64_t at = 0, run; at < SIZE; at += run) {
			run = SIZE - at;
			s = (char)rescue_map_get(m, at, &run);
			for (uint64_t k = at; k < at + run; k++)
				CHECK_EQ(s, model[k]);
		}
	}
	CHECK_EQ(0, rescue_map_print(m, "a disk\n", &text, &len));
	CHECK_EQ(0, rescue_map_parse(&again, text, len, SIZE, "a disk\n", "m", NULL));
	CHECK_EQ(runs, rescue_map_runs(again));
	for (const char *s = statuses; *s; s++)
		CHECK_EQ(rescue_map_count(m, (enum rescue_status) * s),
			 rescue_map_count(again, (enum rescue_status) * s));
	free(text);
	rescue_map_free(m);
	rescue_map_free(again);
}

static int parse(const char *text, uint64_t size, struct rescue_map **m)
{
	struct error err = {""};
	int r = rescue_map_parse(m, text, strlen(text), size, "disk", "m", &err);

	CHECK(r == 0 || err.msg[0]);
	return r;
}

TEST(a_map_of_ddrescue_is_understood)
{
	struct rescue_map *m;
	uint64_t len = 1 << 30;

	CHECK_EQ(0, parse("# Mapfile. Created by GNU ddrescue version 1.27\n"
			  "# Command line: ddrescue -d /dev/sdb a m\n"
			  "# current_pos  current_status  current_pass\n"
			  "0x00010000     *               1\n"
			  "#      pos        size  status\n"
			  "0x00000000  0x00010000  +\n"
			  "0x00010000  0x00000200  -  # a comment\n"
			  "66048\t0x0000FE00 *\n"
			  "0x00020000  0x00010000  /\r\n",
			  0x40000, &m));
	CHECK_EQ(0x10000, rescue_map_count(m, RESCUE_FINISHED));
	CHECK_EQ(0x200, rescue_map_count(m, RESCUE_BAD));
	CHECK_EQ(0xfe00, rescue_map_count(m, RESCUE_NON_TRIMMED));
	CHECK_EQ(0x10000, rescue_map_count(m, RESCUE_NON_SCRAPED));
	CHECK_EQ(RESCUE_NON_TRIED, rescue_map_get(m, 0x30000, &len));
	CHECK_EQ(0x10000, len);
	rescue_map_free(m);
	/* The old form of the status line; a disk smaller than the map. */
	CHECK_EQ(0, parse("0x0 +\n0x0 0x1000 +", 0x800, &m));
	CHECK_EQ(0x800, rescue_map_count(m, RESCUE_FINISHED));
	rescue_map_free(m);
}

TEST(a_damaged_map_is_refused_with_a_sentence)
{
	static const char *const bad[] = {
		"",
		"# nothing\n",
		"0x0 + 1 2\n",
		"hello\n",
		"0x0 + 1\n0x0 0x200\n",
		"0x0 + 1\n0x0 0x200 x\n",
		"0x0 + 1\n0x0 0x200 ++\n",
		"0x0 + 1\n-1 0x200 +\n",
		"0x0 + 1\n0x0 0 +\n",
		"0x0 + 1\n0x0 0x200 +\n0x400 0x200 +\n",
		"0x0 + 1\n0x0 0x200 +\n0x100 0x200 +\n",
		"0x0 + 1\n0xffffffffffffffff 0x200 +\n",
		"0x0 + 1\n0x200 0xffffffffffffff00 +\n",
		"0x0 + 1\n0x0 99999999999999999999999 +\n",
		"# Source: another disk\n0x0 + 1\n0x0 0x200 +\n",
	};
	char longer[400];
	struct rescue_map *m;

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		CHECK_EQ(-EINVAL, parse(bad[i], 4096, &m));
	memset(longer, ' ', sizeof(longer));
	longer[399] = 0;
	longer[398] = '1';
	CHECK_EQ(-EINVAL, parse(longer, 4096, &m));
}

/* --- unreadable sectors --------------------------------------------------------------------------
 */

TEST(a_bad_sector_reads_as_zeroes_and_all_around_it_as_it_is)
{
	struct blk *b = open_rescue(NULL);
	uint64_t at = 1 * MiB + 5 * SECTOR, len = DISK;
	struct blk_rescue_counts n;

	hw_bad(at + 7, 1, EIO, 0); /* one byte spoils its sector */
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	CHECK(is_hw(buf, 0, at));
	CHECK(is_zero(buf + at, SECTOR));
	CHECK(is_hw(buf + at + SECTOR, at + SECTOR, DISK - at - SECTOR));
	CHECK(!blk_rescue_is_bad(b, 0, &len));
	CHECK_EQ(at, len);
	len = DISK;
	CHECK(blk_rescue_is_bad(b, at, &len));
	CHECK_EQ(SECTOR, len);
	CHECK(blk_rescue_has_bad(b, 0, DISK));
	CHECK(!blk_rescue_has_bad(b, at + SECTOR, DISK));
	CHECK(!blk_rescue_has_bad(b, 0, at));
	blk_rescue_counts(b, &n);
	CHECK_EQ(SECTOR, n.bad);
	CHECK_EQ(DISK - SECTOR, n.finished);
	CHECK(blk_info(b)->readonly);
	blk_close(b);
}

TEST(a_bad_sector_is_not_read_twice_not_even_by_the_next_process)
{
	struct blk_rescue_opts o = kept();
	struct blk *b;
	unsigned reads;

	o.cache_path = NULL;
	hw_bad(3 * SECTOR, SECTOR, ENODATA, 0);
	b = open_rescue(&o);
	CHECK_EQ(0, blk_read(b, buf, 8 * SECTOR, 0));
	reads = hw.reads;
	CHECK_EQ(0, blk_read(b, buf, SECTOR, 3 * SECTOR));
	CHECK_EQ(reads, hw.reads);
	blk_close(b);
	b = open_rescue(&o);
	CHECK_EQ(0, blk_read(b, buf, SECTOR, 3 * SECTOR));
	CHECK_EQ(reads, hw.reads);
	CHECK(is_zero(buf, SECTOR));
	blk_close(b);
	hw.nr_bad = 0; /* it cooled down */
	o.retry_bad = true;
	b = open_rescue(&o);
	CHECK_EQ(0, blk_read(b, buf, SECTOR, 3 * SECTOR));
	CHECK(is_hw(buf, 3 * SECTOR, SECTOR));
	CHECK(!blk_rescue_has_bad(b, 0, DISK));
	blk_close(b);
}

TEST(a_sector_that_can_be_read_the_fourth_time_is_with_three_retries)
{
	struct blk_rescue_opts o = {.retries = 2};
	struct blk *b = open_rescue(&o);

	/* Alone: the first time, as a sector; then the retries. */
	hw_bad(SECTOR, SECTOR, EIO, 4);
	CHECK_EQ(0, blk_read(b, buf, SECTOR, SECTOR));
	CHECK(is_zero(buf, SECTOR));
	CHECK_EQ(3, hw.reads);
	blk_close(b);
	o.retries = 3;
	hw.nr_bad = hw.reads = 0;
	b = open_rescue(&o);
	hw_bad(SECTOR, SECTOR, EIO, 3);
	CHECK_EQ(0, blk_read(b, buf, SECTOR, SECTOR));
	CHECK(is_hw(buf, SECTOR, SECTOR));
	CHECK_EQ(4, hw.reads);
	CHECK(!blk_rescue_has_bad(b, 0, DISK));
	blk_close(b);
}

TEST(a_lost_connection_is_an_error_and_marks_nothing)
{
	static const int errors[] = {ENOTCONN, ETIMEDOUT, ENXIO, ENOMEM, ESTALE};
	struct blk *b = open_rescue(NULL);
	struct blk_rescue_counts n;

	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		hw.nr_bad = 0;
		hw_bad(64 * KiB, SECTOR, errors[i], 0);
		CHECK_EQ(-errors[i], blk_read(b, buf, 128 * KiB, 0));
	}
	blk_rescue_counts(b, &n);
	CHECK_EQ(0, n.bad + n.skipped);
	hw.nr_bad = 0;
	CHECK_EQ(0, blk_read(b, buf, 128 * KiB, 0));
	CHECK(is_hw(buf, 0, 128 * KiB));
	blk_close(b);
}

TEST(a_dead_area_is_given_up_and_looked_at_later)
{
	struct blk_rescue_opts o = {.give_up = 8};
	struct blk *b = open_rescue(&o);
	struct blk_rescue_counts n;
	uint64_t len = DISK;

	hw_bad(256 * KiB, 512 * KiB, EIO, 0);
	CHECK_EQ(0, blk_read(b, buf, 1 * MiB, 0));
	blk_rescue_counts(b, &n);
	CHECK_EQ(8 * SECTOR, n.bad);
	CHECK(n.skipped >= 512 * KiB - 8 * SECTOR);
	CHECK(hw.reads < 64);
	CHECK(blk_rescue_is_bad(b, 256 * KiB, &len));
	CHECK_EQ(n.bad + n.skipped, len);
	CHECK_EQ(0, blk_rescue_fetch(b, 0, 1 * MiB, false, NULL, NULL, NULL));
	blk_rescue_counts(b, &n);
	CHECK_EQ(512 * KiB, n.bad);
	CHECK_EQ(0, n.skipped);
	CHECK_EQ(512 * KiB, n.finished);
	hw.nr_bad = 0;
	CHECK_EQ(0, blk_rescue_fetch(b, 0, 1 * MiB, true, NULL, NULL, NULL));
	blk_rescue_counts(b, &n);
	CHECK_EQ(1 * MiB, n.finished);
	blk_close(b);
}

TEST(what_ddrescue_copied_is_read_and_the_rest_of_the_copy_is_not)
{
	struct blk_rescue_opts o = kept();
	struct blk *b;
	uint64_t len;
	enum blk_extent what;

	o.cache_path = NULL;
	o.below_is_copy = true;
	CHECK_EQ(-ENOENT, refused(&o, "cannot read the map"));
	put_file(map_path, "0x0 + 1\n0x0 0x1000 +\n0x1000 0x200 -\n0x1200 0x1000 *\n"
			   "0x2200 0x10000 +\n");
	b = open_rescue(&o);
	CHECK_EQ(0, blk_read(b, buf, 0x20000, 0));
	CHECK(is_hw(buf, 0, 0x1000));
	CHECK(is_zero(buf + 0x1000, 0x1200));
	CHECK(is_hw(buf + 0x2200, 0x2200, 0x10000));
	CHECK(is_zero(buf + 0x12200, 0x20000 - 0x12200)); /* not tried: not in the copy */
	CHECK_EQ(0x11000, hw.bytes);
	len = DISK;
	CHECK(blk_rescue_is_bad(b, 0x1000, &len));
	CHECK_EQ(0x1200, len);
	len = DISK - 0x1000;
	CHECK_EQ(0, blk_extent(b, 0x1000, &len, &what));
	CHECK_EQ(BLK_EXT_ZERO, what);
	blk_close(b);
}

/* --- the cache ----------------------------------------------------------------------------------
 */

TEST(what_is_in_the_cache_is_not_read_again)
{
	struct blk_rescue_opts o = kept();
	struct blk *b = open_rescue(&o);
	uint64_t len = DISK;
	uint64_t bytes;
	struct stat st;

	CHECK_EQ(0, blk_read(b, buf, 100, 1 * MiB + 77));
	CHECK(is_hw(buf, 1 * MiB + 77, 100));
	CHECK_EQ(256 * KiB, hw.bytes); /* a whole piece */
	CHECK(blk_rescue_is_kept(b, 1 * MiB, &len));
	CHECK_EQ(256 * KiB, len);
	CHECK_EQ(0, blk_read(b, buf, 256 * KiB, 1 * MiB));
	CHECK(is_hw(buf, 1 * MiB, 256 * KiB));
	CHECK_EQ(256 * KiB, hw.bytes);
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	CHECK(is_hw(buf, 0, DISK));
	CHECK_EQ(DISK, hw.bytes);
	blk_close(b);
	bytes = hw.bytes;
	hw_bad(0, DISK, ENOTCONN, 0); /* the source is gone for good */
	b = open_rescue(&o);
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	CHECK(is_hw(buf, 0, DISK));
	CHECK_EQ(bytes, hw.bytes);
	blk_close(b);
	CHECK_EQ(0, stat(cache_path, &st));
	CHECK_EQ(DISK, st.st_size);
	CHECK(st.st_blocks * 512 < DISK); /* zeroes are holes */
}

TEST(bad_sectors_and_the_cache_go_together)
{
	struct blk_rescue_opts o = kept();
	struct blk *b = open_rescue(&o);
	uint64_t last = DISK - SECTOR;

	hw_bad(300 * KiB, 3 * SECTOR, EIO, 0);
	hw_bad(last, SECTOR, EIO, 0);
	for (uint64_t off = 0, n; off < DISK; off += n) {
		n = MIN(100000, DISK - off);
		CHECK_EQ(0, blk_read(b, buf + off, n, off));
	}
	blk_close(b);
	CHECK(is_hw(buf, 0, 300 * KiB));
	CHECK(is_zero(buf + 300 * KiB, 3 * SECTOR));
	CHECK(is_hw(buf + 300 * KiB + 3 * SECTOR, 300 * KiB + 3 * SECTOR,
		    last - 300 * KiB - 3 * SECTOR));
	CHECK(is_zero(buf + last, SECTOR));
	hw.nr_bad = 0;
	b = open_rescue(&o);
	hw.bytes = 0;
	CHECK_EQ(0, blk_rescue_fetch(b, 0, DISK, true, NULL, NULL, NULL));
	CHECK_EQ(4 * SECTOR, hw.bytes);
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	CHECK(is_hw(buf, 0, DISK));
	blk_close(b);
}

static bool stop_soon(void *opaque, uint64_t done)
{
	return ++*(unsigned *)opaque < 1;
}

TEST(an_interrupted_fetch_goes_on_where_it_was)
{
	struct blk_rescue_opts o = kept();
	struct blk *b = open_rescue(&o);
	struct error err = {""};
	unsigned calls = 0;
	uint64_t first;

	CHECK_EQ(-EINTR, blk_rescue_fetch(b, 0, DISK, false, stop_soon, &calls, &err));
	CHECK(err.msg[0]);
	first = hw.bytes;
	CHECK(first && first < DISK);
	blk_close(b);
	b = open_rescue(&o);
	CHECK_EQ(0, blk_rescue_fetch(b, 0, DISK, false, NULL, NULL, &err));
	CHECK_EQ(DISK, hw.bytes);
	CHECK_EQ(-EINVAL, blk_rescue_fetch(b, 1, DISK, false, NULL, NULL, &err));
	blk_close(b);
}

TEST(a_map_claims_nothing_that_is_not_on_the_medium)
{
	struct blk_rescue_opts o = kept();
	struct blk *b;

	medium = calloc(1, DISK);
	b = open_rescue(&o);
	for (unsigned i = 0; i < 40; i++) {
		CHECK_EQ(0, blk_read(b, buf, 5000, i * 7919ull * 512 % (DISK - 5000)));
		if (i % 5 == 4)
			CHECK_EQ(0, blk_rescue_save(b, NULL));
	}
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	blk_close(b);
	CHECK(maps_checked >= 4);
	CHECK(claims_checked >= 8);
	free(medium);
	medium = NULL;
}

/* A process that fetches and saves all the time, until it is killed. */
static void fetch_for_ever(const struct blk_rescue_opts *o)
{
	struct blk *b = open_rescue(o);
	unsigned seed = (unsigned)getpid();

	hw.nap_us = 200;
	for (;;) {
		CHECK_EQ(0, blk_read(b, buf, 3000, (uint64_t)rand_r(&seed) % (DISK - 3000)));
		CHECK_EQ(0, blk_rescue_save(b, NULL));
	}
}

static void check_claims(void)
{
	struct rescue_map *m;
	int fd = open(cache_path, O_RDONLY);

	CHECK(fd >= 0);
	CHECK_EQ(0, rescue_map_load(&m, map_path, DISK, NULL, NULL));
	for (uint64_t off = 0, run; off < DISK; off += run) {
		run = DISK - off;
		if (rescue_map_get(m, off, &run) != RESCUE_FINISHED)
			continue;
		CHECK_EQ(run, pread(fd, buf, run, (off_t)off));
		CHECK(is_hw(buf, off, run));
	}
	rescue_map_free(m);
	close(fd);
}

TEST(a_killed_fetch_leaves_a_map_that_is_true_and_can_go_on)
{
	struct blk_rescue_opts o = kept();
	struct blk *b;

	o.piece = 4096;
	for (unsigned i = 0; i < 8; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			fetch_for_ever(&o);
			_exit(1);
		}
		usleep(3000 + i * 5000);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		if (access(map_path, F_OK) == 0 && access(cache_path, F_OK) == 0)
			check_claims();
	}
	b = open_rescue(&o);
	CHECK_EQ(0, blk_rescue_fetch(b, 0, DISK, false, NULL, NULL, NULL));
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	CHECK(is_hw(buf, 0, DISK));
	blk_close(b);
	check_claims();
}

TEST(a_cache_and_a_map_that_do_not_belong_together_are_refused)
{
	struct blk_rescue_opts o = kept(), two;
	struct blk *b, *other;
	struct error err = {""};
	struct stat st;

	o.source = "ssh://one/disk";
	put_file(cache_path, "somebody's file");
	CHECK_EQ(-EEXIST, refused(&o, "is there already"));
	CHECK_EQ(0, stat(cache_path, &st));
	CHECK_EQ(15, st.st_size);
	unlink(cache_path);
	b = open_rescue(&o);
	CHECK_EQ(0, blk_read(b, buf, 4096, 0));
	CHECK_EQ(-EBUSY, blk_rescue(&other, new_hw(), &o, BLK_NO_POOL, &err));
	blk_close(b);
	two = o;
	two.source = "ssh://two/disk";
	refused(&two, "ssh://one/disk");
	two = o;
	two.map_path = NULL;
	refused(&two, "needs a map");
	unlink(cache_path);
	refused(&o, "is not the cache");
}

TEST(a_cache_that_is_full_costs_no_data)
{
	struct blk_rescue_opts o = kept();
	const struct rlimit most = {1 * MiB, 1 * MiB}; /* nothing is written behind this */
	struct blk *b = open_rescue(&o);
	uint64_t len = DISK;

	signal(SIGXFSZ, SIG_IGN);
	CHECK_EQ(0, setrlimit(RLIMIT_FSIZE, &most));
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	CHECK(is_hw(buf, 0, DISK));
	CHECK(!blk_rescue_is_kept(b, 2 * MiB, &len));
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	CHECK(is_hw(buf, 0, DISK));
	blk_close(b);
	check_claims();
}

static bool have(const char *program)
{
	char line[128];

	snprintf(line, sizeof(line), "command -v %s >/dev/null 2>&1", program);
	return system(line) == 0;
}

TEST(ddrescue_goes_on_from_our_map_and_we_from_its)
{
	struct blk_rescue_opts o = kept();
	struct blk *b = open_rescue(&o);
	char line[400];
	int fd;

	if (!have("ddrescue") || !have("ddrescuelog"))
		SKIP("ddrescue is not installed");
	hw_bad(1 * MiB, 4 * SECTOR, EIO, 0);
	CHECK_EQ(0, blk_read(b, buf, 300 * KiB, 900 * KiB));
	blk_close(b);
	/* The disk as a file, with other bytes where the cache has them already. */
	for (uint64_t i = 0; i < DISK; i++)
		buf[i] = byte_at(i);
	memset(buf + 900 * KiB, 0xee, 100 * KiB);
	snprintf(line, sizeof(line), "%s/disk", dir);
	fd = open(line, O_WRONLY | O_CREAT, 0600);
	CHECK_EQ(DISK, write(fd, buf, DISK));
	close(fd);
	snprintf(line, sizeof(line),
		 "ddrescuelog -t %s >/dev/null && ddrescue -q -r1 %s/disk %s %s", map_path, dir,
		 cache_path, map_path);
	CHECK_EQ(0, system(line));
	snprintf(line, sizeof(line), "ddrescuelog -D %s", map_path);
	CHECK_EQ(0, system(line));
	hw.bytes = 0;
	b = open_rescue(&o);
	CHECK_EQ(0, blk_read(b, buf, DISK, 0));
	CHECK(is_hw(buf, 0, DISK));
	CHECK_EQ(0, hw.bytes);
	blk_close(b);
}
