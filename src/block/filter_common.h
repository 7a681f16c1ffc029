/* block/filter_common.h - what every filter does the same way: pass it on to b->file. */
#pragma once

#include "block/format.h"

int filter_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off);
int filter_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off);
int filter_flush(struct blk *b);
int filter_discard(struct blk *b, uint64_t off, uint64_t len);
int filter_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap);
int filter_map(struct blk *b, uint64_t off, struct blk_map *m);

/* A disk over `below`, with priv; on failure closes below, not priv. */
int filter_wrap(struct blk **out, struct blk *below, const struct blk_format *fmt, void *priv,
		unsigned flags, struct error *err);
