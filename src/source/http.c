/* source/http.c - a file on a web server as a disk (HTTP range requests, RFC 9110 section 14): also
 * the files of a datastore that an ESXi host still shows (https://HOST/folder/...).
 *
 * Small reads go through a cache of chunks, large ones straight to the caller's memory.  The server
 * has to support ranges; of one that does not only small files are taken, whole.  A file that
 * changes while it is read is noticed by its validator (RFC 9110 section 8.8) and fails the read;
 * a connection that drops is made anew a few times, and goes on where it was. */
#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/format.h"
#include "source/folder.h"
#include "source/http_client.h"
#include "source/source.h"
#include "source/spool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	MAX_CONNS = 4,
	CHUNK = 256 * KiB,
	NR_CHUNKS = 32,
	MAX_REQUEST = 8 * MiB,
	SMALL = 16 * MiB, /* taken whole from a server that does not send parts */
};

static struct log_component log_http = LOG_COMPONENT("http");

struct http_chunk {
	uint64_t index, used; /* used: when, by the disk's clock */
	uint8_t *data;        /* NULL: empty */
};

struct http_disk {
	struct http_site site;
	char validator[HTTP_VALIDATOR];
	uint64_t size;

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t freed;
	CURL *idle[MAX_CONNS];
	unsigned nr_idle;
	struct http_chunk chunk[NR_CHUNKS];
	uint64_t clock;
};

/* --- reading ------------------------------------------------------------------------------------
 */

static CURL *take(struct http_disk *d)
{
	CURL *c;

	pthread_mutex_lock(&d->lock);
	while (!d->nr_idle)
		pthread_cond_wait(&d->freed, &d->lock);
	c = d->idle[--d->nr_idle];
	pthread_mutex_unlock(&d->lock);
	return c;
}

static void give(struct http_disk *d, CURL *c)
{
	pthread_mutex_lock(&d->lock);
	d->idle[d->nr_idle++] = c;
	pthread_cond_signal(&d->freed);
	pthread_mutex_unlock(&d->lock);
}

/* An answer that is no part of the file: for a reader the file is gone, not its medium. */
static int no_part(struct http_disk *d, int status, const struct http_reply *reply, size_t len,
		   struct error *err)
{
	if (status != 206 && status != 200) {
		int r = http_status_error(&d->site, d->site.url, status, err);

		return r == -EIO ? -ENOTCONN : r;
	}
	if (status == 206 && reply->has_total && reply->total != d->size)
		return err_set(err, ESTALE, "'%s' has changed its size on the server", d->site.url);
	return err_set(err, EPROTO, "'%s': status %d, %zu of %zu bytes", d->site.url, status,
		       reply->len, len);
}

static int fetch(struct http_disk *d, uint8_t *to, size_t len, uint64_t off)
{
	struct http_reply reply = {.to = to, .cap = len};
	struct error err = {""};
	CURL *c = take(d);
	int r = http_get(&d->site, c, d->site.url, off, len, d->validator, &reply, &err);

	give(d, c);
	if (r == 206 && reply.len == len && !reply.overrun &&
	    !(reply.has_total && reply.total != d->size))
		return 0;
	if (r >= 0)
		r = no_part(d, r, &reply, len, &err);
	log_error(&log_http, "%s", err.msg);
	return r;
}

/* The place for chunk `index`: with its data, or the one used longest ago. */
static struct http_chunk *chunk_place(struct http_disk *d, uint64_t index)
{
	struct http_chunk *oldest = &d->chunk[0];

	for (unsigned i = 0; i < NR_CHUNKS; i++) {
		if (d->chunk[i].data && d->chunk[i].index == index)
			return &d->chunk[i];
		if (d->chunk[i].used < oldest->used)
			oldest = &d->chunk[i];
	}
	return oldest;
}

static bool chunk_copy(struct http_disk *d, uint64_t index, uint8_t *to, size_t at, size_t len)
{
	struct http_chunk *ch;
	bool found;

	pthread_mutex_lock(&d->lock);
	ch = chunk_place(d, index);
	found = ch->data && ch->index == index;
	if (found) {
		memcpy(to, ch->data + at, len);
		ch->used = ++d->clock;
	}
	pthread_mutex_unlock(&d->lock);
	return found;
}

static void chunk_store(struct http_disk *d, uint64_t index, uint8_t *data)
{
	struct http_chunk *ch;

	pthread_mutex_lock(&d->lock);
	ch = chunk_place(d, index);
	free(ch->data);
	*ch = (struct http_chunk){index, ++d->clock, data};
	pthread_mutex_unlock(&d->lock);
}

/* Inside one chunk. */
static int read_cached(struct http_disk *d, uint8_t *to, size_t len, uint64_t off)
{
	uint64_t index = off / CHUNK, start = index * CHUNK;
	uint8_t *data;
	int r;

	if (chunk_copy(d, index, to, off - start, len))
		return 0;
	data = malloc(CHUNK);
	if (!data)
		return -ENOMEM;
	r = fetch(d, data, MIN(CHUNK, d->size - start), start);
	if (r < 0) {
		free(data);
		/* Only some of it may be what the server cannot read. */
		return r == -EIO ? fetch(d, to, len, off) : r;
	}
	memcpy(to, data + (off - start), len);
	chunk_store(d, index, data);
	return 0;
}

static int read_span(struct http_disk *d, uint8_t *to, size_t len, uint64_t off)
{
	int r = 0;

	while (len && !r) {
		size_t step = MIN(len, CHUNK - off % CHUNK);

		if (len >= CHUNK) {
			step = MIN(len, MAX_REQUEST);
			r = fetch(d, to, step, off);
		} else {
			r = read_cached(d, to, step, off);
		}
		to += step;
		off += step;
		len -= step;
	}
	return r;
}

static int http_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	int r = 0;

	for (unsigned i = 0; i < n && !r; off += iov[i++].iov_len)
		r = read_span(b->priv, iov[i].iov_base, iov[i].iov_len, off);
	return r;
}

/* --- opening ------------------------------------------------------------------------------------
 */

static void http_free(struct http_disk *d)
{
	for (unsigned i = 0; i < d->nr_idle; i++)
		curl_easy_cleanup(d->idle[i]);
	for (unsigned i = 0; i < NR_CHUNKS; i++)
		free(d->chunk[i].data);
	http_site_fini(&d->site);
	pthread_cond_destroy(&d->freed);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

static void http_close(struct blk *b)
{
	http_free(b->priv);
}

static const struct blk_format http_format = {
	.name = "http",
	.parallel = true,
	.close = http_close,
	.readv = http_readv,
};

/* Ask for the first byte: the answer tells the size, and whether there are ranges at all: *whole.
 */
static int look(struct http_disk *d, bool *whole, struct error *err)
{
	uint8_t byte;
	struct http_reply reply = {.to = &byte, .cap = 1};
	const char *url = d->site.url;
	int status = http_get(&d->site, d->idle[0], url, 0, 1, NULL, &reply, err);

	*whole = false;
	if (status < 0)
		return status;
	if (status == 200 && source_is_folder_url(url) && !strncmp(reply.type, "text/html", 9))
		return err_set(err, EISDIR,
			       "'%s' is a folder; 'hv recover ls' shows which files are in it",
			       url);
	*whole = status == 200;
	if (*whole)
		return 0;
	if (status != 206)
		return http_status_error(&d->site, url, status, err);
	if (!reply.has_total || reply.total > INT64_MAX)
		return err_set(err, EPROTO, "'%s': the server does not say how large it is", url);
	d->size = reply.total;
	memcpy(d->validator, reply.validator, sizeof(d->validator));
	return 0;
}

static int download(struct http_disk *d, struct spool *s, struct error *err)
{
	struct http_reply reply = {.spool = s, .cap = SMALL};
	const char *url = d->site.url;
	int status = http_get(&d->site, d->idle[0], url, 0, 0, NULL, &reply, err);

	if (status < 0)
		return status;
	if (status != 200)
		return http_status_error(&d->site, url, status, err);
	if (reply.overrun)
		return err_set(err, ENOTSUP,
			       "'%s': the server does not send parts of files, and this one has "
			       "more than %d MiB; download it first",
			       url, (int)(SMALL / MiB));
	return reply.len ? 0 : err_set(err, EINVAL, "'%s' is empty", url);
}

static int take_whole(struct http_disk *d, unsigned flags, struct blk **file, struct error *err)
{
	struct spool *s;
	int r = spool_create(&s, err);

	if (r < 0)
		return r;
	r = download(d, s, err);
	if (r < 0) {
		spool_destroy(s);
		return r;
	}
	return spool_finish(s, flags, file, err);
}

static int http_start(struct http_disk *d, const char *url, const struct blk_remote_opts *remote,
		      struct error *err)
{
	int r = http_site_init(&d->site, url, remote, err);

	while (r == 0 && d->nr_idle < MAX_CONNS) {
		CURL *c = http_handle_new(&d->site);

		if (!c)
			return err_errno(err, ENOMEM, "'%s'", url);
		d->idle[d->nr_idle++] = c;
	}
	return r;
}

static int http_open(struct blk **file, const char *name, unsigned flags,
		     const struct blk_open_opts *opts, struct error *err)
{
	struct http_disk *d = calloc(1, sizeof(*d));
	struct blk_info info = {.block_size = 512};
	bool whole = false;
	int r;

	if (!d)
		return err_errno(err, ENOMEM, "'%s'", name);
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->freed, NULL);
	r = http_start(d, name, opts ? opts->remote : NULL, err);
	if (r == 0)
		r = look(d, &whole, err);
	info.size = d->size;
	if (r == 0 && whole)
		r = take_whole(d, flags, file, err);
	else if (r == 0)
		r = blk_wrap(file, &http_format, d, &info, flags, err);
	if (r < 0 || whole)
		http_free(d);
	return r;
}

const struct blk_source source_http = {
	.scheme = "http", .help = "http://HOST/PATH: a file on a web server", .open = http_open};
const struct blk_source source_https = {
	.scheme = "https",
	.help = "https://[USER@]HOST/PATH: the same over TLS; also an ESXi host's /folder/...",
	.open = http_open};
