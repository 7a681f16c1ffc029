/* source/nbd.c - a network block device as a disk (NBD protocol; the library is libnbd).
 *
 * Names are URIs as the NBD project defines them: nbd://HOST[:PORT]/EXPORT,
 * nbd+unix:///EXPORT?socket=PATH, and nbds for TLS.  A libnbd handle does one request at a time;
 * where the server says that several connections see the same disk there are a few. */
#include "base/error.h"
#include "block/format.h"
#include "source/source.h"

#include <errno.h>
#include <libnbd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CONNS = 4, MAX_REQUEST = 32 * MiB };

struct nbd_disk {
	struct nbd_handle *conn[MAX_CONNS];
	unsigned nr_conns;
	bool has_map;

	pthread_mutex_t lock; /* guards idle and nr_idle */
	pthread_cond_t freed;
	struct nbd_handle *idle[MAX_CONNS];
	unsigned nr_idle;
};

static int nbd_error(void)
{
	int e = nbd_get_errno();

	return e ? -e : -EIO;
}

static struct nbd_handle *take(struct nbd_disk *d)
{
	struct nbd_handle *h;

	pthread_mutex_lock(&d->lock);
	while (!d->nr_idle)
		pthread_cond_wait(&d->freed, &d->lock);
	h = d->idle[--d->nr_idle];
	pthread_mutex_unlock(&d->lock);
	return h;
}

static void give(struct nbd_disk *d, struct nbd_handle *h)
{
	pthread_mutex_lock(&d->lock);
	d->idle[d->nr_idle++] = h;
	pthread_cond_signal(&d->freed);
	pthread_mutex_unlock(&d->lock);
}

static int nbd_disk_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			  uint64_t off)
{
	struct nbd_handle *h = take(b->priv);
	int r = 0;

	for (unsigned i = 0; i < n && !r; off += iov[i++].iov_len)
		if (iov[i].iov_len && nbd_pread(h, iov[i].iov_base, iov[i].iov_len, off, 0) < 0)
			r = nbd_error();
	give(b->priv, h);
	return r;
}

static int nbd_disk_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			   uint64_t off)
{
	struct nbd_handle *h = take(b->priv);
	int r = 0;

	for (unsigned i = 0; i < n && !r; off += iov[i++].iov_len)
		if (iov[i].iov_len && nbd_pwrite(h, iov[i].iov_base, iov[i].iov_len, off, 0) < 0)
			r = nbd_error();
	give(b->priv, h);
	return r;
}

static int nbd_disk_flush(struct blk *b)
{
	struct nbd_handle *h = take(b->priv);
	int r = nbd_can_flush(h) == 1 && nbd_flush(h, 0) < 0 ? nbd_error() : 0;

	give(b->priv, h);
	return r;
}

static int nbd_disk_discard(struct blk *b, uint64_t off, uint64_t len)
{
	struct nbd_handle *h = take(b->priv);
	int r = 0;

	for (uint64_t step; len && !r; off += step, len -= step) {
		step = MIN(len, MAX_REQUEST);
		if (nbd_can_trim(h) == 1 && nbd_trim(h, step, off, 0) < 0)
			r = nbd_error();
	}
	give(b->priv, h);
	return r;
}

static int nbd_disk_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct nbd_handle *h = take(b->priv);
	int r = nbd_can_zero(h) == 1 ? 0 : -EOPNOTSUPP;

	for (uint64_t step; len && !r; off += step, len -= step) {
		step = MIN(len, MAX_REQUEST);
		if (nbd_zero(h, step, off, may_unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) < 0)
			r = nbd_error();
	}
	give(b->priv, h);
	return r;
}

struct first_extent {
	uint64_t len;
	uint32_t flags;
	bool seen;
};

static int on_extents(void *opaque, const char *context, uint64_t off, uint32_t *entries, size_t n,
		      int *error)
{
	struct first_extent *e = opaque;

	if (!strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) && n >= 2 && entries[0] && !e->seen) {
		e->len = entries[0];
		e->flags = entries[1];
		e->seen = true;
	}
	return 0;
}

static int nbd_disk_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	struct nbd_disk *d = b->priv;
	struct first_extent e = {0};
	nbd_extent_callback cb = {.callback = on_extents, .user_data = &e};
	uint64_t ask = MIN(*len, 1 * GiB);
	struct nbd_handle *h;

	*what = BLK_EXT_DATA;
	if (!d->has_map)
		return 0;
	h = take(d);
	if (nbd_block_status(h, ask, off, cb, LIBNBD_CMD_FLAG_REQ_ONE) < 0)
		e.seen = false; /* data, which is always true */
	give(d, h);
	if (!e.seen)
		return 0;
	*len = MIN(*len, e.len);
	if (e.flags & LIBNBD_STATE_ZERO)
		*what = e.flags & LIBNBD_STATE_HOLE ? BLK_EXT_HOLE : BLK_EXT_ZERO;
	return 0;
}

static void nbd_disk_free(struct nbd_disk *d)
{
	for (unsigned i = 0; i < d->nr_conns; i++) {
		nbd_shutdown(d->conn[i], 0);
		nbd_close(d->conn[i]);
	}
	pthread_cond_destroy(&d->freed);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

static void nbd_disk_close(struct blk *b)
{
	nbd_disk_free(b->priv);
}

#define NBD_COMMON                                                                                 \
	.name = "nbd", .parallel = true, .max_io = MAX_REQUEST, .close = nbd_disk_close,           \
	.readv = nbd_disk_readv, .extent = nbd_disk_extent

static const struct blk_format nbd_disk_readonly = {NBD_COMMON};
static const struct blk_format nbd_disk_writable = {
	NBD_COMMON,
	.writev = nbd_disk_writev,
	.flush = nbd_disk_flush,
	.discard = nbd_disk_discard,
	.write_zeroes = nbd_disk_write_zeroes,
};

static int connect_one(struct nbd_disk *d, const char *uri, struct error *err)
{
	struct nbd_handle *h = nbd_create();

	if (!h)
		return err_set(err, ENOMEM, "%s", nbd_get_error());
	if (nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
	    nbd_connect_uri(h, uri) < 0) {
		int r = nbd_error();

		err_set(err, -r, "cannot use '%s': %s", uri, nbd_get_error());
		nbd_close(h);
		return r;
	}
	d->conn[d->nr_conns++] = h;
	d->idle[d->nr_idle++] = h;
	return 0;
}

static int connect_all(struct nbd_disk *d, const char *uri, struct error *err)
{
	int r = connect_one(d, uri, err);

	if (r < 0)
		return r;
	d->has_map = nbd_can_meta_context(d->conn[0], LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
	while (d->nr_conns < MAX_CONNS && nbd_can_multi_conn(d->conn[0]) == 1)
		if (connect_one(d, uri, NULL) < 0)
			break; /* fewer do as well */
	return 0;
}

static int disk_info(const struct nbd_disk *d, const char *uri, unsigned flags,
		     struct blk_info *info, struct error *err)
{
	int64_t size = nbd_get_size(d->conn[0]);

	if (size < 0)
		return err_set(err, EIO, "'%s': %s", uri, nbd_get_error());
	if (!(flags & BLK_READONLY) && nbd_is_read_only(d->conn[0]) != 0)
		return err_set(err, EROFS, "'%s' can only be read: its server says so", uri);
	*info = (struct blk_info){.size = (uint64_t)size,
				  .block_size = 512,
				  .can_discard = nbd_can_trim(d->conn[0]) == 1,
				  .can_zero = nbd_can_zero(d->conn[0]) == 1};
	return 0;
}

static int nbd_open(struct blk **file, const char *name, unsigned flags,
		    const struct blk_open_opts *opts, struct error *err)
{
	const struct blk_format *fmt =
		flags & BLK_READONLY ? &nbd_disk_readonly : &nbd_disk_writable;
	struct nbd_disk *d = calloc(1, sizeof(*d));
	struct blk_info info;
	int r;

	if (!d)
		return err_errno(err, ENOMEM, "'%s'", name);
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->freed, NULL);
	r = connect_all(d, name, err);
	if (r == 0)
		r = disk_info(d, name, flags, &info, err);
	if (r == 0)
		r = blk_wrap(file, fmt, d, &info, flags, err);
	if (r < 0)
		nbd_disk_free(d);
	return r;
}

#define NBD_SOURCE(id, name, text)                                                                 \
	const struct blk_source id = {                                                             \
		.scheme = name, .help = text, .writes = true, .open = nbd_open}

NBD_SOURCE(source_nbd, "nbd", "nbd://HOST[:PORT]/[EXPORT]: a network block device");
NBD_SOURCE(source_nbds, "nbds", "nbds://HOST[:PORT]/[EXPORT]: the same over TLS");
NBD_SOURCE(source_nbd_unix, "nbd+unix", "nbd+unix:///[EXPORT]?socket=PATH: the same, on this host");
NBD_SOURCE(source_nbds_unix, "nbds+unix",
	   "nbds+unix:///[EXPORT]?socket=PATH: the same over TLS, on this host");
