/* Unit tests of the waist, src/block/blk.c and pool.c, over a driver that lives in memory. */
#include "block/blk.h"

#include "base/error.h"
#include "block/format.h"
#include "block/iov.h"
#include "test.h"

#include <errno.h>
#include <pthread.h>

enum { DISK = 8192 };

struct ram_disk {
	uint8_t bytes[DISK];
	_Atomic unsigned calls, longest, flushes, closed;
	_Atomic int inside, most_inside;
	int fail_at_call; /* counted from 1; 0 = never */
	unsigned nap_us;
};

static struct ram_disk disk;

static int ram_rw(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off,
		  bool write)
{
	struct ram_disk *d = b->priv;
	int now = ++d->inside;

	if (now > d->most_inside)
		d->most_inside = now;
	if (d->nap_us)
		usleep(d->nap_us);
	CHECK_EQ(len, iov_total(iov, n));
	CHECK(off + len <= DISK);
	for (unsigned i = 0; i < n; off += iov[i++].iov_len) {
		if (write)
			memcpy(d->bytes + off, iov[i].iov_base, iov[i].iov_len);
		else
			memcpy(iov[i].iov_base, d->bytes + off, iov[i].iov_len);
	}
	if (len > d->longest)
		d->longest = (unsigned)len;
	d->inside--;
	return (int)++d->calls == d->fail_at_call ? -EIO : 0;
}

static int ram_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	return ram_rw(b, iov, n, len, off, false);
}

static int ram_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	return ram_rw(b, iov, n, len, off, true);
}

static int ram_flush(struct blk *b)
{
	((struct ram_disk *)b->priv)->flushes++;
	return 0;
}

static void ram_close(struct blk *b)
{
	((struct ram_disk *)b->priv)->closed++;
}

static const struct blk_format ram_format = {
	.name = "ram",
	.max_io = 1000,
	.readv = ram_readv,
	.writev = ram_writev,
	.flush = ram_flush,
	.close = ram_close,
};
static const struct blk_format rom_format = {.name = "rom", .readv = ram_readv, .close = ram_close};

static struct blk *open_ram(const struct blk_format *fmt, unsigned flags)
{
	struct blk_info info = {.size = DISK, .block_size = 512};
	struct blk *b;

	CHECK_EQ(0, blk_wrap(&b, fmt, &disk, &info, flags, NULL));
	return b;
}

TEST(requests_outside_the_disk_never_reach_the_driver)
{
	struct blk *b = open_ram(&ram_format, BLK_NO_POOL);
	uint64_t len = 2;
	enum blk_extent what;
	char c[2];

	CHECK_EQ(-EINVAL, blk_read(b, c, 2, DISK - 1));
	CHECK_EQ(-EINVAL, blk_write(b, c, 1, UINT64_MAX));
	CHECK_EQ(-EINVAL, blk_discard(b, 1, UINT64_MAX));
	CHECK_EQ(-EINVAL, blk_write_zeroes(b, DISK, 1, false));
	CHECK_EQ(-EINVAL, blk_extent(b, DISK - 1, &len, &what));
	CHECK_EQ(0, blk_read(b, c, 0, DISK));
	CHECK_EQ(0, disk.calls);
	blk_close(b);
}

TEST(long_requests_are_split_and_come_out_whole)
{
	struct blk *b = open_ram(&ram_format, BLK_NO_POOL);
	static uint8_t in[5000], out[5000];
	struct iovec iov[4] = {{out, 700}, {out + 700, 0}, {out + 700, 1300}, {out + 2000, 3000}};

	for (unsigned i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 7);
	CHECK_EQ(0, blk_write(b, in, sizeof(in), 11));
	CHECK_EQ(5, disk.calls);
	CHECK_EQ(1000, disk.longest);
	CHECK_EQ(0, blk_readv(b, iov, 4, 11));
	CHECK_EQ(0, memcmp(in, out, sizeof(in)));
	blk_close(b);
}

TEST(an_error_in_the_middle_stops_the_request)
{
	struct blk *b = open_ram(&ram_format, BLK_NO_POOL);
	static uint8_t buf[5000];

	disk.fail_at_call = 2;
	CHECK_EQ(-EIO, blk_write(b, buf, sizeof(buf), 0));
	CHECK_EQ(2, disk.calls);
	blk_close(b);
}

TEST(what_a_driver_lacks_is_made_up_for)
{
	struct blk *b = open_ram(&ram_format, BLK_NO_POOL);
	uint64_t len = 4000;
	enum blk_extent what;

	memset(disk.bytes, 0xff, DISK);
	CHECK_EQ(0, blk_discard(b, 0, DISK));
	CHECK_EQ(0xff, disk.bytes[0]);
	CHECK_EQ(0, blk_write_zeroes(b, 1, DISK - 2, true));
	CHECK_EQ(0xff, disk.bytes[0]);
	CHECK_EQ(0, disk.bytes[1]);
	CHECK_EQ(0, disk.bytes[DISK - 2]);
	CHECK_EQ(0xff, disk.bytes[DISK - 1]);
	CHECK_EQ(0, blk_extent(b, 0, &len, &what));
	CHECK_EQ(BLK_EXT_DATA, what);
	CHECK_EQ(4000, len);
	CHECK_EQ(-ENOTSUP, blk_resize(b, 1));
	blk_close(b);
}

TEST(a_format_that_cannot_write_is_read_only)
{
	struct blk *b = open_ram(&rom_format, BLK_NO_POOL);
	char c = 1;

	CHECK(blk_info(b)->readonly);
	CHECK_EQ(-EROFS, blk_write(b, &c, 1, 0));
	CHECK_EQ(-EROFS, blk_discard(b, 0, 1));
	CHECK_EQ(-EROFS, blk_write_zeroes(b, 0, 1, true));
	CHECK_EQ(-EROFS, blk_resize(b, 512));
	CHECK_EQ(0, blk_flush(b));
	CHECK_STR("rom", blk_info(b)->format);
	blk_close(b);
}

TEST(closing_flushes)
{
	blk_close(open_ram(&ram_format, 0));
	CHECK_EQ(1, disk.flushes);
	CHECK_EQ(1, disk.closed);
	blk_close(NULL);
}

/* ---- asynchronous ---- */

static _Atomic int done_count, error_count;

static void count_done(struct blk_req *r, int result)
{
	done_count++;
	error_count += result < 0;
}

static struct blk_req reqs[64];
static uint8_t bufs[64][64];
static struct iovec iovs[64];

static void submit_all(struct blk *b, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		memset(bufs[i], (int)i + 1, 64);
		iovs[i] = (struct iovec){bufs[i], 64};
		reqs[i] = (struct blk_req){.op = BLK_OP_WRITE,
					   .iov = &iovs[i],
					   .nr_iov = 1,
					   .off = 64 * i,
					   .done = count_done};
		blk_submit(b, &reqs[i]);
	}
}

TEST(a_drain_waits_for_everything_before_it)
{
	struct blk *b = open_ram(&ram_format, 0);

	disk.nap_us = 200;
	submit_all(b, 64);
	blk_drain(b);
	CHECK_EQ(64, done_count);
	CHECK_EQ(0, error_count);
	for (unsigned i = 0; i < 64; i++)
		CHECK_EQ(i + 1, disk.bytes[64 * i]);
	CHECK_EQ(1, disk.most_inside); /* it did not say it is parallel */
	blk_drain(b);
	blk_close(b);
}

TEST(a_parallel_driver_is_called_in_parallel)
{
	struct blk_format parallel = ram_format;
	struct blk *b;

	parallel.parallel = true;
	disk.nap_us = 5000;
	b = open_ram(&parallel, 0);
	submit_all(b, 16);
	blk_drain(b);
	CHECK(disk.most_inside > 1);
	blk_close(b);
}

TEST(closing_waits_for_requests)
{
	struct blk *b = open_ram(&ram_format, 0);

	disk.nap_us = 500;
	submit_all(b, 20);
	blk_close(b);
	CHECK_EQ(20, done_count);
}

TEST(an_error_reaches_the_request)
{
	struct blk *b = open_ram(&ram_format, 0);

	disk.fail_at_call = 3;
	submit_all(b, 5);
	blk_drain(b);
	CHECK_EQ(5, done_count);
	CHECK_EQ(1, error_count);
	blk_close(b);
}

/* A request whose completion submits it again, until told not to. */
static _Atomic bool stop_resubmitting;

static void resubmit(struct blk_req *r, int result)
{
	done_count++;
	if (!stop_resubmitting)
		blk_submit(r->blk, r);
}

TEST(a_drain_is_not_held_up_by_later_requests)
{
	struct blk *b = open_ram(&ram_format, 0);
	struct blk_req r = {.op = BLK_OP_FLUSH, .done = resubmit};

	disk.nap_us = 100;
	blk_submit(b, &r);
	submit_all(b, 8);
	blk_drain(b);
	CHECK(done_count >= 9);
	blk_drain(b);
	stop_resubmitting = true;
	blk_drain(b);
	blk_close(b);
}

static void *drain_thread(void *arg)
{
	blk_drain(arg);
	return NULL;
}

TEST(two_drains_at_once_both_end)
{
	struct blk *b = open_ram(&ram_format, 0);
	pthread_t t;

	disk.nap_us = 500;
	submit_all(b, 10);
	pthread_create(&t, NULL, drain_thread, b);
	submit_all(b, 0);
	blk_drain(b);
	CHECK_EQ(10, done_count);
	pthread_join(t, NULL);
	blk_close(b);
}

TEST(every_operation_can_be_submitted)
{
	struct blk *b = open_ram(&ram_format, 0);
	struct iovec iov = {bufs[0], 64};
	struct blk_req ops[] = {
		{.op = BLK_OP_READ, .iov = &iov, .nr_iov = 1, .done = count_done},
		{.op = BLK_OP_FLUSH, .done = count_done},
		{.op = BLK_OP_DISCARD, .off = 0, .len = 512, .done = count_done},
		{.op = BLK_OP_ZERO, .off = 512, .len = 512, .done = count_done},
	};

	memset(disk.bytes, 5, DISK);
	for (unsigned i = 0; i < ARRAY_SIZE(ops); i++)
		blk_submit(b, &ops[i]);
	blk_drain(b);
	CHECK_EQ(4, done_count);
	CHECK_EQ(0, error_count);
	CHECK_EQ(5, bufs[0][0]);
	CHECK_EQ(0, disk.bytes[512]);
	CHECK_EQ(1, disk.flushes);
	blk_close(b);
}
