/* block/iov.h - walking through a scatter list piece by piece.  Pure functions, any thread. */
#pragma once

#include "base/types.h"

#include <sys/uio.h>

struct iov_walk {
	const struct iovec *iov;
	unsigned n;
	size_t skip; /* bytes of iov[0] already done */
};

static inline uint64_t iov_total(const struct iovec *iov, unsigned n)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

static inline void iov_advance(struct iov_walk *w, uint64_t bytes)
{
	while (w->n && bytes >= w->iov->iov_len - w->skip) {
		bytes -= w->iov->iov_len - w->skip;
		w->iov++;
		w->n--;
		w->skip = 0;
	}
	w->skip += bytes;
}

/* Lay out the next `bytes` in out[max]; returns how many entries, *bytes how much they hold. */
static inline unsigned iov_peek(const struct iov_walk *w, struct iovec *out, unsigned max,
				uint64_t *bytes)
{
	uint64_t want = *bytes;
	unsigned nr = 0;
	size_t skip = w->skip;

	*bytes = 0;
	for (unsigned i = 0; i < w->n && nr < max && *bytes < want; i++, skip = 0) {
		size_t len = MIN(w->iov[i].iov_len - skip, want - *bytes);

		if (!len)
			continue;
		out[nr].iov_base = (char *)w->iov[i].iov_base + skip;
		out[nr++].iov_len = len;
		*bytes += len;
	}
	return nr;
}

static inline void iov_zero(struct iov_walk *w, uint64_t bytes)
{
	while (bytes && w->n) {
		size_t len = MIN(w->iov->iov_len - w->skip, bytes);

		__builtin_memset((char *)w->iov->iov_base + w->skip, 0, len);
		bytes -= len;
		iov_advance(w, len);
	}
}
