/* block/filter_verify.c - two disks side by side; b->file is the one that answers. */
#include "block/filter.h"
#include "block/filter_common.h"
#include "block/iov.h"

#include "base/error.h"
#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { VERIFY_MAX = 1 * MiB };

static struct log_component log_verify = LOG_COMPONENT("verify");

static bool same_bytes(const struct iovec *iov, unsigned n, const uint8_t *other, uint64_t *at)
{
	*at = 0;
	for (unsigned i = 0; i < n; i++) {
		const uint8_t *mine = iov[i].iov_base;

		for (size_t k = 0; k < iov[i].iov_len; k++, ++*at)
			if (mine[k] != other[*at])
				return false;
	}
	return true;
}

static int verify_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			uint64_t off)
{
	uint8_t *other = malloc(len);
	uint64_t at;
	int r = other ? blk_readv(b->file, iov, n, off) : -ENOMEM;

	if (r == 0)
		r = blk_read(b->priv, other, len, off);
	if (r == 0 && !same_bytes(iov, n, other, &at)) {
		log_error(&log_verify, "%s and %s differ at byte %llu", blk_path(b->file),
			  blk_path(b->priv), (unsigned long long)(off + at));
		r = -EIO;
	}
	free(other);
	return r;
}

static int both(int first, int second)
{
	return first < 0 ? first : second;
}

static int verify_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			 uint64_t off)
{
	return both(blk_writev(b->file, iov, n, off), blk_writev(b->priv, iov, n, off));
}

static int verify_flush(struct blk *b)
{
	return both(blk_flush(b->file), blk_flush(b->priv));
}

static int verify_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	return both(blk_write_zeroes(b->file, off, len, may_unmap),
		    blk_write_zeroes(b->priv, off, len, may_unmap));
}

static void verify_close(struct blk *b)
{
	blk_close(b->priv);
}

/* Calls do not overlap: a write that has reached one disk and not the other would look like a
 * difference.  No discard: what it leaves may differ between the two. */
static const struct blk_format verify_format = {
	.name = "verify",
	.max_io = VERIFY_MAX,
	.close = verify_close,
	.readv = verify_readv,
	.writev = verify_writev,
	.flush = verify_flush,
	.write_zeroes = verify_write_zeroes,
	.map = filter_map,
};

int blk_verify(struct blk **out, struct blk *below, struct blk *twin, unsigned flags,
	       struct error *err)
{
	int r;

	if (blk_size(below) != blk_size(twin)) {
		r = err_set(err, EINVAL, "'%s' and '%s' differ in size", blk_path(below),
			    blk_path(twin));
		blk_close(below);
	} else {
		if (blk_info(twin)->readonly)
			flags |= BLK_READONLY;
		r = filter_wrap(out, below, &verify_format, twin, flags, err);
	}
	if (r < 0)
		blk_close(twin);
	return r;
}
