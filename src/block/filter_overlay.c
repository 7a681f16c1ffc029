/* block/filter_overlay.c - a disk that may be written and never changes what is below.
 *
 * Written granules lie in a temporary file at their own offset; a bitmap says which.  A write that
 * covers part of a granule brings the rest up from below first. */
#include "block/filter.h"
#include "block/filter_common.h"
#include "block/iov.h"

#include "base/error.h"
#include "base/tmpfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

enum { GRANULE = 64 * KiB, OVERLAY_IOVS = 64 };

struct overlay {
	int fd;
	uint64_t *present; /* a bit per granule */
	uint8_t granule[GRANULE];
};

static bool is_present(const struct overlay *o, uint64_t granule)
{
	return o->present[granule / 64] >> granule % 64 & 1;
}

static int file_rw(int fd, void *buf, size_t len, uint64_t off, bool write)
{
	while (len) {
		ssize_t n =
			write ? pwrite(fd, buf, len, (off_t)off) : pread(fd, buf, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n && write)
			return -ENOSPC;
		if (!n) { /* behind the last granule's end */
			__builtin_memset(buf, 0, len);
			return 0;
		}
		buf = (char *)buf + n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/* How much of [off, off+len) is on the same side as its first byte. */
static uint64_t run_length(const struct overlay *o, uint64_t off, uint64_t len)
{
	uint64_t end = ALIGN_DOWN(off, GRANULE) + GRANULE;
	bool here = is_present(o, off / GRANULE);

	while (end < off + len && is_present(o, end / GRANULE) == here)
		end += GRANULE;
	return MIN(len, end - off);
}

static int overlay_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			 uint64_t off)
{
	const struct overlay *o = b->priv;
	struct iov_walk walk = {iov, n, 0};
	struct iovec part[OVERLAY_IOVS];
	int r = 0;

	while (len && !r) {
		uint64_t step = run_length(o, off, len);
		bool here = is_present(o, off / GRANULE);
		unsigned nr = iov_peek(&walk, part, OVERLAY_IOVS, &step);
		uint64_t at = off;

		if (!here)
			r = blk_readv(b->file, part, nr, off);
		for (unsigned i = 0; here && i < nr && !r; at += part[i++].iov_len)
			r = file_rw(o->fd, part[i].iov_base, part[i].iov_len, at, false);
		iov_advance(&walk, step);
		off += step;
		len -= step;
	}
	return r;
}

/* The granule as it is now, whole, to the temporary file. */
static int bring_up(struct blk *b, uint64_t granule)
{
	struct overlay *o = b->priv;
	uint64_t off = granule * GRANULE;
	size_t len = MIN(GRANULE, b->info.size - off);
	int r = blk_read(b->file, o->granule, len, off);

	return r < 0 ? r : file_rw(o->fd, o->granule, len, off, true);
}

static int prepare(struct blk *b, uint64_t off, uint64_t len)
{
	struct overlay *o = b->priv;
	uint64_t end = MIN(ALIGN_UP(off + len, GRANULE), b->info.size);
	int r = 0;

	for (uint64_t g = off / GRANULE; g * GRANULE < end && !r; g++) {
		uint64_t last = MIN((g + 1) * GRANULE, b->info.size);

		if (!is_present(o, g) && (g * GRANULE < off || last > off + len))
			r = bring_up(b, g);
	}
	return r;
}

static void mark_present(struct overlay *o, uint64_t off, uint64_t len)
{
	for (uint64_t g = off / GRANULE; g * GRANULE < off + len; g++)
		o->present[g / 64] |= 1ull << g % 64;
}

static int overlay_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			  uint64_t off)
{
	struct overlay *o = b->priv;
	uint64_t at = off;
	int r = prepare(b, off, len);

	for (unsigned i = 0; i < n && !r; at += iov[i++].iov_len)
		r = file_rw(o->fd, iov[i].iov_base, iov[i].iov_len, at, true);
	if (r == 0)
		mark_present(o, off, len);
	return r;
}

/* A hole of the temporary file reads as zeroes. */
static int overlay_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct overlay *o = b->priv;
	int r = prepare(b, off, len);

	if (r < 0)
		return r;
	if (fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) <
	    0)
		return errno == ENOSYS ? -EOPNOTSUPP : -errno;
	mark_present(o, off, len);
	return 0;
}

static int overlay_flush(struct blk *b)
{
	return 0; /* nothing of it outlives us */
}

static int overlay_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	const struct overlay *o = b->priv;

	m->len = run_length(o, off, m->len);
	m->what = BLK_EXT_DATA;
	return is_present(o, off / GRANULE) ? 0 : blk_map(b->file, off, m);
}

static void overlay_free(struct overlay *o)
{
	if (o->fd >= 0)
		close(o->fd);
	free(o->present);
	free(o);
}

static void overlay_close(struct blk *b)
{
	overlay_free(b->priv);
}

static const struct blk_format overlay_format = {
	.name = "overlay",
	.close = overlay_close,
	.readv = overlay_readv,
	.writev = overlay_writev,
	.write_zeroes = overlay_write_zeroes,
	.flush = overlay_flush,
	.map = overlay_map,
};

int blk_overlay(struct blk **out, struct blk *below, unsigned flags, struct error *err)
{
	uint64_t granules = blk_size(below) / GRANULE + 1;
	struct overlay *o = calloc(1, sizeof(*o));
	struct blk_info info = *blk_info(below);
	int r = -ENOMEM;

	info.size = blk_size(below);
	info.can_discard = info.can_zero = true; /* as most disks that can be written */
	if (o) {
		o->present = calloc(granules / 64 + 1, sizeof(*o->present));
		o->fd = o->present ? tmpfile_open(err) : -ENOMEM;
		r = o->fd < 0 ? o->fd : 0;
	}
	if (r == -ENOMEM)
		err_errno(err, ENOMEM, "overlay");
	if (r == 0)
		r = blk_wrap(out, &overlay_format, o, &info, flags & ~(unsigned)BLK_READONLY, err);
	if (r == 0) {
		(*out)->file = below;
		return 0;
	}
	if (o)
		overlay_free(o);
	blk_close(below);
	return r;
}
