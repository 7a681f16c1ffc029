/* block/blk.c - see blk.h: the one place that checks. */
#include "block/blk.h"

#include "base/bytes.h"
#include "block/internal.h"
#include "block/iov.h"
#include "block/pool.h"

#include <assert.h>
#include <errno.h>

enum { SPLIT_IOVS = 64, ZERO_LEN = 65536, ZERO_IOVS = 16 };

static const uint8_t zeroes[ZERO_LEN];

uint64_t blk_size(const struct blk *b)
{
	return __atomic_load_n(&b->info.size, __ATOMIC_ACQUIRE);
}

void blk_set_size(struct blk *b, uint64_t size)
{
	assert(size <= INT64_MAX);
	__atomic_store_n(&b->info.size, size, __ATOMIC_RELEASE);
}

/* ---- calls ---- */

static void enter(struct blk *b)
{
	if (!b->fmt->parallel)
		pthread_rwlock_wrlock(&b->use);
	else if (b->shared_use)
		pthread_rwlock_rdlock(&b->use);
}

/* Also asserts what every driver promises: 0 or a negative errno. */
static int leave(struct blk *b, int r)
{
	if (!b->fmt->parallel || b->shared_use)
		pthread_rwlock_unlock(&b->use);
	assert(r <= 0);
	return r;
}

struct blk *blk_swap_backing(struct blk *b, struct blk *backing)
{
	struct blk *old;

	assert(b->shared_use || !b->fmt->parallel);
	pthread_rwlock_wrlock(&b->use);
	old = b->backing;
	b->backing = backing;
	pthread_rwlock_unlock(&b->use);
	return old;
}

static int check(const struct blk *b, uint64_t off, uint64_t len, bool write)
{
	bool may_grow = write && (b->flags & BLK_FILE);

	if (!range_inside(off, len, may_grow ? INT64_MAX : blk_size(b)))
		return -EINVAL;
	return write && b->info.readonly ? -EROFS : 0;
}

static int one_rw(struct blk *b, bool write, const struct iovec *iov, unsigned n, uint64_t len,
		  uint64_t off)
{
	int r;

	enter(b);
	if (write)
		r = b->fmt->writev(b, iov, n, len, off);
	else
		r = b->fmt->readv(b, iov, n, len, off);
	return leave(b, r);
}

static int rw(struct blk *b, bool write, const struct iovec *iov, unsigned n, uint64_t off)
{
	uint64_t left = iov_total(iov, n), len;
	struct iov_walk walk = {iov, n, 0};
	struct iovec part[SPLIT_IOVS];
	int r;

	r = check(b, off, left, write);
	if (r < 0 || !left)
		return r;
	if (!b->fmt->max_io || left <= b->fmt->max_io)
		return one_rw(b, write, iov, n, left, off);
	for (; left && !r; left -= len, off += len) {
		len = MIN(left, b->fmt->max_io);
		n = iov_peek(&walk, part, SPLIT_IOVS, &len);
		r = one_rw(b, write, part, n, len, off);
		iov_advance(&walk, len);
	}
	return r;
}

int blk_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t off)
{
	return rw(b, false, iov, n, off);
}

int blk_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t off)
{
	return rw(b, true, iov, n, off);
}

int blk_read(struct blk *b, void *buf, size_t len, uint64_t off)
{
	return rw(b, false, &(struct iovec){buf, len}, 1, off);
}

int blk_write(struct blk *b, const void *buf, size_t len, uint64_t off)
{
	return rw(b, true, &(struct iovec){(void *)(uintptr_t)buf, len}, 1, off);
}

int blk_flush(struct blk *b)
{
	if (b->info.readonly || (b->flags & BLK_NO_FLUSH))
		return 0;
	if (!b->fmt->flush)
		return b->file ? blk_flush(b->file) : 0;
	enter(b);
	return leave(b, b->fmt->flush(b));
}

int blk_discard(struct blk *b, uint64_t off, uint64_t len)
{
	int r = check(b, off, len, true);

	if (r < 0 || !len || !b->fmt->discard)
		return r;
	enter(b);
	return leave(b, b->fmt->discard(b, off, len));
}

static int write_zero_bytes(struct blk *b, uint64_t off, uint64_t len)
{
	struct iovec iov[ZERO_IOVS];
	int r = 0;

	while (len && !r) {
		uint64_t step = 0;
		unsigned n;

		for (n = 0; n < ZERO_IOVS && step < len; n++) {
			iov[n].iov_base = (void *)(uintptr_t)zeroes;
			iov[n].iov_len = MIN(len - step, sizeof(zeroes));
			step += iov[n].iov_len;
		}
		r = rw(b, true, iov, n, off);
		off += step;
		len -= step;
	}
	return r;
}

int blk_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	int r = check(b, off, len, true);

	if (r < 0 || !len)
		return r;
	if (b->fmt->write_zeroes) {
		enter(b);
		r = leave(b, b->fmt->write_zeroes(b, off, len, may_unmap));
		if (r != -EOPNOTSUPP)
			return r;
	}
	return write_zero_bytes(b, off, len);
}

/* ---- where data are ---- */

static int call_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	int r = 0;

	enter(b);
	if (b->fmt->map)
		r = b->fmt->map(b, off, m);
	else if (b->fmt->extent)
		r = b->fmt->extent(b, off, &m->len, &m->what);
	return leave(b, r);
}

int blk_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	uint64_t asked = m->len;
	int r = check(b, off, m->len, false);

	*m = (struct blk_map){.len = asked, .what = BLK_EXT_DATA};
	if (r < 0 || !asked)
		return r;
	r = call_map(b, off, m);
	assert(r < 0 || (m->len > 0 && m->len <= asked));
	return r;
}

bool blk_same_file(const struct blk *a, const struct blk *b)
{
	return a == b || (a->ino && a->ino == b->ino && a->dev == b->dev);
}

int blk_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	struct blk_map m = {.len = *len};
	int r = blk_map(b, off, &m);

	*len = m.len;
	*what = m.what;
	return r;
}

int blk_backing_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	uint64_t size = b->backing ? blk_size(b->backing) : 0;
	uint64_t have = off < size ? MIN(len, size - off) : 0;
	struct iov_walk walk = {iov, n, 0};
	struct iovec part[SPLIT_IOVS];
	int r = 0;

	if (have == len)
		return blk_readv(b->backing, iov, n, off);
	for (len -= have; have && !r;) {
		uint64_t step = have;

		n = iov_peek(&walk, part, SPLIT_IOVS, &step);
		r = blk_readv(b->backing, part, n, off);
		iov_advance(&walk, step);
		off += step;
		have -= step;
	}
	iov_zero(&walk, len);
	return r;
}

int blk_backing_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	uint64_t size = b->backing ? blk_size(b->backing) : 0;
	int r;

	if (off >= size) {
		*m = (struct blk_map){.len = m->len, .what = BLK_EXT_HOLE, .depth = !!b->backing};
		return 0;
	}
	m->len = MIN(m->len, size - off);
	r = blk_map(b->backing, off, m);
	m->depth++;
	return r;
}

int blk_resize(struct blk *b, uint64_t size)
{
	int r;

	if (b->info.readonly)
		return -EROFS;
	if (!b->fmt->resize)
		return -ENOTSUP;
	if (size > INT64_MAX)
		return -EFBIG;
	/* Nothing else is in flight; drivers may use calls of blk.h on themselves here. */
	r = b->fmt->resize(b, size);
	assert(r <= 0);
	return r;
}

int blk_copy_range(struct blk *from, uint64_t from_off, struct blk *to, uint64_t to_off,
		   uint64_t len, bool share)
{
	int r = check(from, from_off, len, false);

	if (!r)
		r = check(to, to_off, len, true);
	if (r < 0 || !len)
		return r;
	return blk_raw_copy(from, from_off, to, to_off, len, share);
}

/* ---- compressed clusters ---- */

size_t blk_pack_bound(const struct blk *b)
{
	return b->fmt->pack_bound ? b->fmt->pack_bound(b) : b->info.cluster;
}

bool blk_can_pack(const struct blk *b)
{
	return b->fmt->pack && b->fmt->write_packed && !b->info.readonly && blk_pack_bound(b);
}

bool blk_packs_in_order(const struct blk *b)
{
	return b->fmt->packs_in_order && blk_can_pack(b);
}

int blk_pack(struct blk *b, const void *data, size_t len, void *out, size_t cap, size_t *out_len)
{
	int r;

	if (!blk_can_pack(b))
		return -ENOTSUP;
	r = b->fmt->pack(b, data, len, out, cap, out_len);
	assert(r < 0 || *out_len <= cap);
	return r;
}

int blk_write_packed(struct blk *b, const void *packed, size_t packed_len, size_t len, uint64_t off)
{
	int r = check(b, off, len, true);

	if (r < 0)
		return r;
	if (!blk_can_pack(b))
		return -ENOTSUP;
	enter(b);
	return leave(b, b->fmt->write_packed(b, packed, packed_len, len, off));
}

/* ---- asynchronous ---- */

int blk_run_request(struct blk_req *r)
{
	switch (r->op) {
	case BLK_OP_READ:
		return blk_readv(r->blk, r->iov, r->nr_iov, r->off);
	case BLK_OP_WRITE:
		return blk_writev(r->blk, r->iov, r->nr_iov, r->off);
	case BLK_OP_FLUSH:
		return blk_flush(r->blk);
	case BLK_OP_DISCARD:
		return blk_discard(r->blk, r->off, r->len);
	case BLK_OP_ZERO:
		return blk_write_zeroes(r->blk, r->off, r->len, r->may_unmap);
	}
	return -EINVAL;
}

void blk_submit(struct blk *b, struct blk_req *r)
{
	assert(b->pool);
	r->blk = b;
	blk_pool_submit(b->pool, r);
}

void blk_drain(struct blk *b)
{
	assert(b->pool);
	blk_pool_drain(b->pool);
}
