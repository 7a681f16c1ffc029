/* block/filter_dirty.c - a bit for each part of the disk that has been written.
 *
 * A write is marked twice, before and after: what is taken in between has the old bytes or a mix,
 * so it must come again. */
#include "block/filter.h"
#include "block/filter_common.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>

struct dirty {
	uint64_t granularity, nr_bits;
	pthread_mutex_t lock; /* guards all below */
	uint64_t *bits, nr_set;
};

static bool is_set(const struct dirty *d, uint64_t bit)
{
	return d->bits[bit / 64] >> bit % 64 & 1;
}

static void set_bit(struct dirty *d, uint64_t bit, bool on)
{
	if (is_set(d, bit) == on)
		return;
	d->bits[bit / 64] ^= 1ull << bit % 64;
	d->nr_set += on ? 1 : (uint64_t)-1;
}

void blk_dirty_mark(struct blk *b, uint64_t off, uint64_t len)
{
	struct dirty *d = b->priv;

	pthread_mutex_lock(&d->lock);
	for (uint64_t i = off / d->granularity; len && i <= (off + len - 1) / d->granularity; i++)
		set_bit(d, i, true);
	pthread_mutex_unlock(&d->lock);
}

static uint64_t find_set(const struct dirty *d, uint64_t bit)
{
	while (bit < d->nr_bits && !is_set(d, bit))
		bit = d->bits[bit / 64] >> bit % 64 ? bit + 1 : ALIGN_DOWN(bit, 64) + 64;
	return MIN(bit, d->nr_bits);
}

bool blk_dirty_take(struct blk *b, uint64_t *off, uint64_t max, uint64_t *len)
{
	struct dirty *d = b->priv;
	uint64_t first, end;

	pthread_mutex_lock(&d->lock);
	first = end = find_set(d, *off / d->granularity);
	while (end < d->nr_bits && is_set(d, end) && (end - first) * d->granularity < max)
		set_bit(d, end++, false);
	pthread_mutex_unlock(&d->lock);
	if (end == first)
		return false;
	*off = first * d->granularity;
	*len = MIN((end - first) * d->granularity, b->info.size - *off);
	return true;
}

uint64_t blk_dirty_bytes(struct blk *b)
{
	struct dirty *d = b->priv;
	uint64_t bytes;

	pthread_mutex_lock(&d->lock);
	bytes = d->nr_set * d->granularity;
	pthread_mutex_unlock(&d->lock);
	return MIN(bytes, b->info.size);
}

static int dirty_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			uint64_t off)
{
	int r;

	blk_dirty_mark(b, off, len);
	r = blk_writev(b->file, iov, n, off);
	blk_dirty_mark(b, off, len);
	return r;
}

static int dirty_discard(struct blk *b, uint64_t off, uint64_t len)
{
	int r;

	blk_dirty_mark(b, off, len);
	r = blk_discard(b->file, off, len);
	blk_dirty_mark(b, off, len);
	return r;
}

static int dirty_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	int r;

	blk_dirty_mark(b, off, len);
	r = blk_write_zeroes(b->file, off, len, may_unmap);
	blk_dirty_mark(b, off, len);
	return r;
}

static void dirty_free(struct dirty *d)
{
	pthread_mutex_destroy(&d->lock);
	free(d->bits);
	free(d);
}

static void dirty_close(struct blk *b)
{
	dirty_free(b->priv);
}

static const struct blk_format dirty_format = {
	.name = "dirty",
	.parallel = true,
	.close = dirty_close,
	.readv = filter_readv,
	.writev = dirty_writev,
	.flush = filter_flush,
	.discard = dirty_discard,
	.write_zeroes = dirty_write_zeroes,
	.map = filter_map,
};

int blk_track_dirty(struct blk **out, struct blk *below, uint32_t granularity, unsigned flags,
		    struct error *err)
{
	struct dirty *d = calloc(1, sizeof(*d));
	int r;

	if (d) {
		d->granularity = granularity;
		d->nr_bits = (blk_size(below) + granularity - 1) / granularity;
		d->bits = calloc(d->nr_bits / 64 + 1, sizeof(*d->bits));
	}
	if (!d || !d->bits) {
		free(d);
		blk_close(below);
		return err_errno(err, ENOMEM, "dirty bitmap");
	}
	pthread_mutex_init(&d->lock, NULL);
	r = filter_wrap(out, below, &dirty_format, d, flags, err);
	if (r < 0)
		dirty_free(d);
	return r;
}
