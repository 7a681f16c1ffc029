/* block/filter_fault.c - see filter.h: requests that fail, take long, or lose their disk. */
#include "block/filter.h"
#include "block/filter_common.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct faults {
	unsigned n;
	struct blk_fault *fault;

	pthread_mutex_t lock; /* guards the rest */
	uint64_t *seen;       /* requests that count, for each fault */
	bool off;
};

static bool concerns(const struct blk_fault *f, unsigned op, uint64_t off, uint64_t len)
{
	if (!(f->ops & op))
		return false;
	return !f->len || op == BLK_FAULT_FLUSH || (off < f->off + f->len && f->off < off + len);
}

/* The errno the request ends with before it reaches the disk, 0 to let it pass, and how long it
 * takes. */
static int fate(struct faults *fs, unsigned op, uint64_t off, uint64_t len, uint64_t *delay_ns)
{
	int error = 0;

	*delay_ns = 0;
	pthread_mutex_lock(&fs->lock);
	for (unsigned i = 0; i < fs->n; i++) {
		const struct blk_fault *f = &fs->fault[i];
		uint64_t nr;

		if (!concerns(f, op, off, len))
			continue;
		nr = ++fs->seen[i];
		if (nr < f->first || (f->count && nr - f->first >= f->count))
			continue;
		*delay_ns += f->delay_ns;
		fs->off |= f->power_off;
		if (f->error)
			error = f->error;
	}
	if (fs->off)
		error = EIO;
	pthread_mutex_unlock(&fs->lock);
	return error;
}

static int suffer(struct blk *b, unsigned op, uint64_t off, uint64_t len)
{
	uint64_t ns;
	int error = fate(b->priv, op, off, len, &ns);
	struct timespec t = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};

	if (ns)
		nanosleep(&t, NULL);
	return -error;
}

static int fault_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		       uint64_t off)
{
	int r = suffer(b, BLK_FAULT_READ, off, len);

	return r ? r : blk_readv(b->file, iov, n, off);
}

static int fault_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			uint64_t off)
{
	int r = suffer(b, BLK_FAULT_WRITE, off, len);

	return r ? r : blk_writev(b->file, iov, n, off);
}

static int fault_flush(struct blk *b)
{
	int r = suffer(b, BLK_FAULT_FLUSH, 0, 0);

	return r ? r : blk_flush(b->file);
}

static int fault_discard(struct blk *b, uint64_t off, uint64_t len)
{
	int r = suffer(b, BLK_FAULT_DISCARD, off, len);

	return r ? r : blk_discard(b->file, off, len);
}

static int fault_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	int r = suffer(b, BLK_FAULT_WRITE, off, len);

	return r ? r : blk_write_zeroes(b->file, off, len, may_unmap);
}

static void faults_free(struct faults *fs)
{
	pthread_mutex_destroy(&fs->lock);
	free(fs->fault);
	free(fs->seen);
	free(fs);
}

static void fault_close(struct blk *b)
{
	faults_free(b->priv);
}

static const struct blk_format fault_format = {
	.name = "fault",
	.parallel = true,
	.close = fault_close,
	.readv = fault_readv,
	.writev = fault_writev,
	.flush = fault_flush,
	.discard = fault_discard,
	.write_zeroes = fault_write_zeroes,
	.map = filter_map,
};

int blk_inject(struct blk **out, struct blk *below, const struct blk_fault *faults, unsigned n,
	       unsigned flags, struct error *err)
{
	struct faults *fs = calloc(1, sizeof(*fs));
	int r;

	if (!fs) {
		blk_close(below);
		return err_errno(err, ENOMEM, "faults");
	}
	pthread_mutex_init(&fs->lock, NULL);
	fs->n = n;
	fs->fault = calloc(n + 1, sizeof(*fs->fault));
	fs->seen = calloc(n + 1, sizeof(*fs->seen));
	if (!fs->fault || !fs->seen) {
		faults_free(fs);
		blk_close(below);
		return err_errno(err, ENOMEM, "faults");
	}
	memcpy(fs->fault, faults, n * sizeof(*faults));
	r = filter_wrap(out, below, &fault_format, fs, flags, err);
	if (r < 0)
		faults_free(fs);
	return r;
}
