/* filters.c - overlay, throttle, dirty tracking, faults, verify. */
#include "base/clock.h"
#include "base/error.h"
#include "block/filter.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>

enum { DISK = 1 * MiB, BUF = 64 * KiB };

static uint8_t buf[BUF], back[BUF];

/* A raw disk of its own on a file that has no name any more. */
static struct blk *new_disk(unsigned flags)
{
	char path[] = "/tmp/filters.XXXXXX";
	struct error err;
	struct blk *b;
	int fd = mkstemp(path);

	CHECK(fd >= 0);
	CHECK_EQ(0, ftruncate(fd, DISK));
	for (unsigned i = 0; i < DISK; i += BUF) {
		memset(buf, 0x10 + i / BUF, BUF);
		CHECK_EQ(BUF, pwrite(fd, buf, BUF, i));
	}
	close(fd);
	CHECK_EQ(0, blk_open(&b, path, "raw", flags | BLK_NO_POOL, &err));
	unlink(path);
	return b;
}

static bool reads_as(struct blk *b, uint64_t off, size_t len, uint8_t value)
{
	CHECK_EQ(0, blk_read(b, back, len, off));
	for (size_t i = 0; i < len; i++)
		if (back[i] != value)
			return false;
	return true;
}

static void write_value(struct blk *b, uint64_t off, size_t len, uint8_t value)
{
	memset(buf, value, len);
	CHECK_EQ(0, blk_write(b, buf, len, off));
}

TEST(an_overlay_keeps_writes_from_a_read_only_disk)
{
	struct blk *below = new_disk(BLK_READONLY), *b;

	CHECK_EQ(0, blk_overlay(&b, below, BLK_NO_POOL, NULL));
	CHECK(!blk_info(b)->readonly);
	write_value(b, 100 * KiB, 512, 0xaa);
	write_value(b, 3 * 64 * KiB - 512, 1024, 0xbb); /* over the edge of two granules */
	CHECK_EQ(0, blk_write_zeroes(b, DISK - 512, 512, true));
	CHECK(reads_as(b, 100 * KiB, 512, 0xaa));
	CHECK(reads_as(b, 100 * KiB - 512, 512, 0x11));
	CHECK(reads_as(b, 100 * KiB + 512, 512, 0x11));
	CHECK(reads_as(b, 3 * 64 * KiB - 512, 1024, 0xbb));
	CHECK(reads_as(b, 3 * 64 * KiB + 512, 512, 0x13));
	CHECK(reads_as(b, DISK - 512, 512, 0));
	CHECK(reads_as(b, DISK - 1024, 512, 0x1f));
	CHECK(reads_as(below, 100 * KiB, 512, 0x11));
	CHECK(reads_as(below, DISK - 512, 512, 0x1f));
	blk_close(b);
}

TEST(zeroes_in_an_overlay_hide_what_is_below_and_what_was_written)
{
	struct blk *below = new_disk(BLK_READONLY), *b;

	CHECK_EQ(0, blk_overlay(&b, below, BLK_NO_POOL, NULL));
	CHECK(blk_info(b)->can_zero);
	write_value(b, 100 * KiB, 4096, 0xaa);
	CHECK_EQ(0, blk_write_zeroes(b, 60 * KiB, 150 * KiB, true)); /* whole granules and parts */
	CHECK(reads_as(b, 60 * KiB - 512, 512, 0x10));
	CHECK(reads_as(b, 60 * KiB, 64 * KiB, 0));
	CHECK(reads_as(b, 124 * KiB, 64 * KiB, 0));
	CHECK(reads_as(b, 188 * KiB, 22 * KiB, 0));
	CHECK(reads_as(b, 210 * KiB, 512, 0x13));
	write_value(b, 128 * KiB, 512, 0xcc);
	CHECK(reads_as(b, 128 * KiB, 512, 0xcc));
	CHECK(reads_as(b, 128 * KiB + 512, 512, 0));
	CHECK(reads_as(below, 128 * KiB, 64 * KiB, 0x12));
	blk_close(b);
}

TEST(an_overlay_reads_across_what_is_written_and_what_is_not)
{
	struct blk *b;

	CHECK_EQ(0, blk_overlay(&b, new_disk(0), BLK_NO_POOL, NULL));
	write_value(b, 64 * KiB, 64 * KiB, 0xcc);
	CHECK_EQ(0, blk_read(b, back, BUF, 64 * KiB - 4096));
	CHECK_EQ(0x10, back[4095]);
	CHECK_EQ(0xcc, back[4096]);
	CHECK_EQ(0, blk_read(b, back, BUF, 128 * KiB - 4096));
	CHECK_EQ(0xcc, back[4095]);
	CHECK_EQ(0x12, back[4096]);
	blk_close(b);
}

TEST(a_throttled_disk_is_not_faster_than_its_limit)
{
	const struct blk_limits limits = {.bytes_read = {.per_s = 1 * MiB, .burst = 64 * KiB}};
	uint64_t start = clock_mono_ns();
	struct blk *b;

	CHECK_EQ(0, blk_throttle(&b, new_disk(0), &limits, BLK_NO_POOL, NULL));
	for (unsigned i = 0; i < 5; i++) /* 320 KiB; the last 64 KiB are debt */
		CHECK_EQ(0, blk_read(b, back, BUF, i * BUF));
	CHECK(clock_mono_ns() - start >= 240 * 1000000ull);
	blk_close(b);
}

TEST(limits_of_one_direction_leave_the_other_alone)
{
	const struct blk_limits limits = {.reads = {.per_s = 1, .burst = 1}};
	struct blk *b;

	CHECK_EQ(0, blk_throttle(&b, new_disk(0), &limits, BLK_NO_POOL, NULL));
	alarm(20); /* a thousand writes would take a thousand seconds */
	for (unsigned i = 0; i < 1000; i++)
		write_value(b, 0, 512, 1);
	blk_close(b);
}

TEST(what_is_written_is_dirty_once)
{
	uint64_t off = 0, len;
	struct blk *b;

	CHECK_EQ(0, blk_track_dirty(&b, new_disk(0), 4096, BLK_NO_POOL, NULL));
	CHECK(!blk_dirty_take(b, &off, DISK, &len));
	write_value(b, 8192 - 512, 1024, 1);
	CHECK_EQ(0, blk_write_zeroes(b, DISK - 4096, 4096, false));
	CHECK_EQ(0, blk_discard(b, 256 * KiB, 64 * KiB));
	CHECK_EQ(2 * 4096 + 4096 + 64 * KiB, blk_dirty_bytes(b));
	CHECK(blk_dirty_take(b, &off, DISK, &len));
	CHECK_EQ(4096, off);
	CHECK_EQ(8192, len);
	off += len;
	CHECK(blk_dirty_take(b, &off, 16 * KiB, &len));
	CHECK_EQ(256 * KiB, off);
	CHECK_EQ(16 * KiB, len);
	off = DISK - 4096;
	CHECK(blk_dirty_take(b, &off, DISK, &len));
	off = 0;
	CHECK(blk_dirty_take(b, &off, DISK, &len));
	CHECK_EQ(272 * KiB, off);
	CHECK_EQ(48 * KiB, len);
	CHECK_EQ(0, blk_dirty_bytes(b));
	blk_close(b);
}

TEST(faults_hit_the_requests_they_count)
{
	const struct blk_fault faults[] = {
		{.ops = BLK_FAULT_WRITE, .first = 2, .count = 1, .error = ENOSPC},
		{.ops = BLK_FAULT_READ, .first = 1, .off = 64 * KiB, .len = 512, .error = EILSEQ},
	};
	struct blk *b;

	CHECK_EQ(0, blk_inject(&b, new_disk(0), faults, 2, BLK_NO_POOL, NULL));
	CHECK_EQ(0, blk_write(b, buf, 512, 0));
	CHECK_EQ(-ENOSPC, blk_write(b, buf, 512, 512));
	CHECK_EQ(0, blk_write(b, buf, 512, 512));
	CHECK_EQ(0, blk_read(b, back, 64 * KiB, 0));
	CHECK_EQ(-EILSEQ, blk_read(b, back, 1024, 64 * KiB - 512));
	CHECK_EQ(0, blk_read(b, back, 512, 64 * KiB + 512));
	blk_close(b);
}

TEST(after_a_power_cut_nothing_reaches_the_disk)
{
	const struct blk_fault cut = {.ops = BLK_FAULT_WRITE, .first = 3, .power_off = true};
	struct blk *below = new_disk(0), *b;

	CHECK_EQ(0, blk_inject(&b, below, &cut, 1, BLK_NO_POOL, NULL));
	write_value(b, 0, 512, 1);
	write_value(b, 512, 512, 2);
	memset(buf, 3, 512);
	CHECK_EQ(-EIO, blk_write(b, buf, 512, 1024));
	CHECK_EQ(-EIO, blk_flush(b));
	CHECK_EQ(-EIO, blk_read(b, back, 512, 0));
	CHECK(reads_as(below, 512, 512, 2));
	CHECK(reads_as(below, 1024, 512, 0x10));
	blk_close(b);
}

TEST(verify_sees_a_difference_and_writes_to_both)
{
	struct blk *one = new_disk(0), *two = new_disk(0), *b;

	CHECK_EQ(0, blk_verify(&b, one, two, BLK_NO_POOL, NULL));
	write_value(b, 4096, 512, 7);
	CHECK(reads_as(two, 4096, 512, 7));
	CHECK_EQ(0, blk_write_zeroes(b, 8192, 512, false));
	CHECK(reads_as(b, 8192, 512, 0));
	CHECK(reads_as(two, 8192, 512, 0));
	write_value(two, 12288, 512, 9);
	CHECK_EQ(-EIO, blk_read(b, back, 4096, 12288));
	CHECK_EQ(0, blk_read(b, back, 4096, 16384));
	blk_close(b);
}
