/* source/spool.c - see spool.h. */
#include "source/spool.h"

#include "base/error.h"
#include "base/tmpfile.h"
#include "block/format.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SPOOL_CHUNK = 64 * KiB }; /* the least run of zeroes that becomes a hole */

struct spool {
	int fd;
	uint64_t size;
	size_t fill; /* of chunk */
	uint8_t chunk[SPOOL_CHUNK];
};

int spool_create(struct spool **out, struct error *err)
{
	struct spool *s = calloc(1, sizeof(*s));

	if (!s)
		return err_errno(err, ENOMEM, "temporary file");
	s->fd = tmpfile_open(err);
	if (s->fd < 0) {
		int r = s->fd;

		free(s);
		return r;
	}
	*out = s;
	return 0;
}

static bool all_zero(const uint8_t *p, size_t len)
{
	return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

/* What is not written is a hole of the file. */
static int flush_chunk(struct spool *s, struct error *err)
{
	size_t done = 0;

	while (!all_zero(s->chunk, s->fill) && done < s->fill) {
		ssize_t n = pwrite(s->fd, s->chunk + done, s->fill - done, (off_t)(s->size + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return err_errno(err, n ? errno : ENOSPC,
					 "cannot write a temporary file (TMPDIR names the place)");
		done += (size_t)n;
	}
	s->size += s->fill;
	s->fill = 0;
	return 0;
}

int spool_append(struct spool *s, const void *data, size_t len, struct error *err)
{
	const uint8_t *from = data;
	int r = 0;

	while (len && !r) {
		size_t step = MIN(len, SPOOL_CHUNK - s->fill);

		memcpy(s->chunk + s->fill, from, step);
		s->fill += step;
		from += step;
		len -= step;
		if (s->fill == SPOOL_CHUNK)
			r = flush_chunk(s, err);
	}
	return r;
}

/* --- the disk ----------------------------------------------------------------------------------
 */

static int spool_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		       uint64_t off)
{
	const struct spool *s = b->priv;

	for (unsigned i = 0; i < n; i++) {
		size_t done = 0;

		while (done < iov[i].iov_len) {
			ssize_t got = pread(s->fd, (char *)iov[i].iov_base + done,
					    iov[i].iov_len - done, (off_t)(off + done));

			if (got < 0 && errno == EINTR)
				continue;
			if (got <= 0)
				return got ? -errno : -EIO;
			done += (size_t)got;
		}
		off += done;
	}
	return 0;
}

static int spool_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	const struct spool *s = b->priv;
	off_t data = lseek(s->fd, (off_t)off, SEEK_DATA), hole;

	*what = BLK_EXT_DATA;
	if (data < 0)
		*what = errno == ENXIO ? BLK_EXT_ZERO : BLK_EXT_DATA;
	else if ((uint64_t)data > off) {
		*what = BLK_EXT_ZERO;
		*len = MIN(*len, (uint64_t)data - off);
	} else if ((hole = lseek(s->fd, (off_t)off, SEEK_HOLE)) > data) {
		*len = MIN(*len, (uint64_t)(hole - data));
	}
	return 0;
}

static void spool_close(struct blk *b)
{
	spool_destroy(b->priv);
}

static const struct blk_format spool_format = {
	.name = "spool",
	.parallel = true,
	.readv = spool_readv,
	.extent = spool_extent,
	.close = spool_close,
};

int spool_finish(struct spool *s, unsigned flags, struct blk **out, struct error *err)
{
	struct blk_info info = {.block_size = 512};
	int r = flush_chunk(s, err);

	if (r == 0 && ftruncate(s->fd, (off_t)s->size) < 0)
		r = err_errno(err, errno, "temporary file");
	info.size = s->size;
	if (r == 0)
		r = blk_wrap(out, &spool_format, s, &info, flags, err);
	if (r < 0)
		spool_destroy(s);
	return r;
}

void spool_destroy(struct spool *s)
{
	if (!s)
		return;
	close(s->fd);
	free(s);
}
