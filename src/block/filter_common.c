/* block/filter_common.c - see filter_common.h. */
#include "block/filter_common.h"

int filter_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	return blk_readv(b->file, iov, n, off);
}

int filter_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	return blk_writev(b->file, iov, n, off);
}

int filter_flush(struct blk *b)
{
	return blk_flush(b->file);
}

int filter_discard(struct blk *b, uint64_t off, uint64_t len)
{
	return blk_discard(b->file, off, len);
}

int filter_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	return blk_write_zeroes(b->file, off, len, may_unmap);
}

int filter_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	return blk_map(b->file, off, m);
}

int filter_wrap(struct blk **out, struct blk *below, const struct blk_format *fmt, void *priv,
		unsigned flags, struct error *err)
{
	struct blk_info info = *blk_info(below);
	int r;

	info.size = blk_size(below);
	if (info.readonly)
		flags |= BLK_READONLY;
	r = blk_wrap(out, fmt, priv, &info, flags, err);
	if (r < 0)
		blk_close(below);
	else
		(*out)->file = below;
	return r;
}
