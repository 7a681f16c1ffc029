/* block/raw_over.c - a raw disk on bytes that are no file of this host: an NBD export, a download,
 * the inside of an archive.
 *
 * As raw.c: a last sector that is not whole reads as if filled up with zeroes. */
#include "block/format.h"
#include "block/iov.h"

#include "base/error.h"

#include <errno.h>

enum { SECTOR = 512, SPLIT_IOVS = 64 };

static int over_open(struct blk *b, const char *path, struct error *err)
{
	const struct blk_info *below = blk_info(b->file);

	b->info = *below;
	b->info.format = "raw";
	b->info.size = ALIGN_UP(below->size, SECTOR);
	return 0;
}

static void over_close(struct blk *b)
{
}

/* The part of [off, off+len) that the file holds. */
static uint64_t held(struct blk *b, uint64_t off, uint64_t len)
{
	uint64_t size = blk_size(b->file);

	return off < size ? MIN(len, size - off) : 0;
}

static int over_rw(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off,
		   bool write)
{
	struct iov_walk walk = {iov, n, 0};
	struct iovec part[SPLIT_IOVS];
	uint64_t left = held(b, off, len);
	int r = 0;

	len -= left;
	while (left && !r) {
		uint64_t step = left;
		unsigned nr = iov_peek(&walk, part, SPLIT_IOVS, &step);

		r = write ? blk_writev(b->file, part, nr, off) : blk_readv(b->file, part, nr, off);
		iov_advance(&walk, step);
		off += step;
		left -= step;
	}
	if (!write)
		iov_zero(&walk, len);
	else if (len && !r)
		r = -ENOSPC; /* the padding has no place */
	return r;
}

static int over_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	return over_rw(b, iov, n, len, off, false);
}

static int over_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		       uint64_t off)
{
	return over_rw(b, iov, n, len, off, true);
}

static int over_discard(struct blk *b, uint64_t off, uint64_t len)
{
	return blk_discard(b->file, off, held(b, off, len));
}

static int over_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	return blk_write_zeroes(b->file, off, held(b, off, len), may_unmap);
}

static int over_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	uint64_t have = held(b, off, m->len);

	if (!have) {
		m->what = BLK_EXT_ZERO;
		return 0;
	}
	m->len = have;
	return blk_map(b->file, off, m);
}

const struct blk_format blk_raw_over = {
	.name = "raw",
	.help = "the bytes of the disk, nothing else",
	.parallel = true,
	.on_file = true,
	.open = over_open,
	.close = over_close,
	.readv = over_readv,
	.writev = over_writev,
	.discard = over_discard,
	.write_zeroes = over_write_zeroes,
	.map = over_map,
};
