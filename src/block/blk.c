/* block/blk.c - see blk.h: the one place that checks. */
#include "block/blk.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/format.h"
#include "block/iov.h"
#include "block/pool.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROBE_LEN = 4096, SPLIT_IOVS = 64, ZERO_LEN = 65536, ZERO_IOVS = 16 };

static struct log_component log_blk = LOG_COMPONENT("block");

static const uint8_t zeroes[ZERO_LEN];

/* ---- opening ---- */

static const struct blk_format *format_by_name(const char *name)
{
	for (unsigned i = 0; blk_formats[i]; i++)
		if (!strcmp(blk_formats[i]->name, name))
			return blk_formats[i];
	return NULL;
}

static const struct blk_format *format_by_probe(const uint8_t *head, size_t len)
{
	const struct blk_format *best = NULL;
	int best_score = 0;

	for (unsigned i = 0; blk_formats[i]; i++) {
		int score = blk_formats[i]->probe(head, len);

		if (score > best_score) {
			best_score = score;
			best = blk_formats[i];
		}
	}
	return best;
}

static int read_head(const char *path, uint8_t *head, size_t *len, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	ssize_t n;
	int e;

	if (fd < 0)
		return err_errno(err, errno, "cannot open '%s'", path);
	n = pread(fd, head, *len, 0);
	e = errno;
	close(fd);
	if (n < 0)
		return err_errno(err, e, "cannot read '%s'", path);
	*len = (size_t)n;
	return 0;
}

/* Guessing is for looking only: a guest that can write to a raw disk could write a header there and
 * have it taken for another format, one that names files of the host, at the next start. */
static int choose_format(const char *path, const char *format, unsigned flags,
			 const struct blk_format **out, struct error *err)
{
	uint8_t head[PROBE_LEN];
	size_t len = sizeof(head);
	int r;

	if (format && strcmp(format, "auto")) {
		*out = format_by_name(format);
		if (!*out)
			return err_set(err, EINVAL, "disk format '%s' is not known", format);
		return 0;
	}
	if (!(flags & BLK_READONLY))
		return err_set(err, EINVAL,
			       "'%s': the format of a writable disk must be given (format=raw)",
			       path);
	r = read_head(path, head, &len, err);
	if (r < 0)
		return r;
	*out = format_by_probe(head, len);
	if (!*out)
		return err_set(err, EINVAL, "'%s': the disk format is not recognised", path);
	return 0;
}

static int run_request(struct blk_req *r);

static int blk_alloc(struct blk **out, const struct blk_format *fmt, unsigned flags,
		     struct error *err)
{
	struct blk *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return err_errno(err, ENOMEM, "disk");
	b->fmt = fmt;
	b->flags = flags;
	b->info.format = fmt->name;
	b->info.block_size = 512;
	pthread_mutex_init(&b->serial, NULL);
	if (!(flags & BLK_NO_POOL)) {
		r = blk_pool_create(&b->pool, run_request, err);
		if (r < 0) {
			free(b);
			return r;
		}
	}
	*out = b;
	return 0;
}

static void blk_free(struct blk *b)
{
	blk_pool_destroy(b->pool);
	pthread_mutex_destroy(&b->serial);
	free(b);
}

static void settle_info(struct blk *b)
{
	if (!b->fmt->writev)
		b->flags |= BLK_READONLY;
	b->info.readonly = b->flags & BLK_READONLY;
	assert(b->info.size <= INT64_MAX); /* offsets fit an off_t; drivers see to it */
}

int blk_open(struct blk **out, const char *path, const char *format, unsigned flags,
	     struct error *err)
{
	const struct blk_format *fmt = NULL;
	struct blk *b = NULL;
	int r;

	r = choose_format(path, format, flags, &fmt, err);
	if (r < 0)
		return r;
	if (!fmt->writev && !(flags & BLK_READONLY))
		return err_set(err, EROFS, "'%s': format %s can only be read", path, fmt->name);
	r = blk_alloc(&b, fmt, flags, err);
	if (r < 0)
		return r;
	r = fmt->open(b, path, err);
	if (r < 0) {
		blk_free(b);
		return r;
	}
	settle_info(b);
	*out = b;
	return 0;
}

int blk_wrap(struct blk **out, const struct blk_format *fmt, void *priv,
	     const struct blk_info *info, unsigned flags, struct error *err)
{
	struct blk *b = NULL;
	int r;

	r = blk_alloc(&b, fmt, flags, err);
	if (r < 0)
		return r;
	b->priv = priv;
	b->info = *info;
	b->info.format = fmt->name;
	settle_info(b);
	*out = b;
	return 0;
}

void blk_close(struct blk *b)
{
	int r;

	if (!b)
		return;
	if (b->pool)
		blk_drain(b);
	r = b->info.readonly ? 0 : blk_flush(b);
	if (r < 0)
		log_error(&log_blk, "the last flush of a disk failed: %s", strerror(-r));
	b->fmt->close(b);
	blk_free(b);
}

const struct blk_info *blk_info(const struct blk *b)
{
	return &b->info;
}

/* ---- calls ---- */

static void enter(struct blk *b)
{
	if (!b->fmt->parallel)
		pthread_mutex_lock(&b->serial);
}

/* Also asserts what every driver promises: 0 or a negative errno. */
static int leave(struct blk *b, int r)
{
	if (!b->fmt->parallel)
		pthread_mutex_unlock(&b->serial);
	assert(r <= 0);
	return r;
}

static int check(const struct blk *b, uint64_t off, uint64_t len, bool write)
{
	if (!range_inside(off, len, b->info.size))
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
	if (!b->fmt->flush || b->info.readonly)
		return 0;
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

int blk_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	uint64_t asked = *len;
	int r = check(b, off, *len, false);

	if (r < 0)
		return r;
	*what = BLK_EXT_DATA;
	if (!asked || !b->fmt->extent)
		return 0;
	enter(b);
	r = leave(b, b->fmt->extent(b, off, len, what));
	assert(r < 0 || (*len > 0 && *len <= asked));
	return r;
}

int blk_resize(struct blk *b, uint64_t size)
{
	if (b->info.readonly)
		return -EROFS;
	if (!b->fmt->resize)
		return -ENOTSUP;
	if (size > INT64_MAX)
		return -EFBIG;
	enter(b);
	return leave(b, b->fmt->resize(b, size));
}

/* ---- asynchronous ---- */

static int run_request(struct blk_req *r)
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
