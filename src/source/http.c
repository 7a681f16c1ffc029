/* source/http.c - a file on a web server as a disk (HTTP range requests, RFC 9110 section 14; the
 * library is libcurl).
 *
 * Small reads go through a cache of chunks, large ones straight to the caller's memory.  The server
 * has to support ranges.  A file that changes while it is read is noticed by its validator (RFC
 * 9110 section 8.8) and fails the read; a connection that drops is made anew a few times. */
#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/format.h"
#include "source/source.h"

#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum {
	MAX_CONNS = 4,
	CHUNK = 256 * KiB,
	NR_CHUNKS = 32,
	MAX_REQUEST = 8 * MiB,
	ATTEMPTS = 5,
	CONNECT_S = 30,
	STALL_S = 30,
	MAX_REDIRECTS = 8,
};

static struct log_component log_http = LOG_COMPONENT("http");

struct http_chunk {
	uint64_t index, used; /* used: when, by the disk's clock */
	uint8_t *data;        /* NULL: empty */
};

struct http_disk {
	char *url;
	char validator[256]; /* strong ETag or Last-Modified, or "" */
	uint64_t size;

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t freed;
	CURL *idle[MAX_CONNS];
	unsigned nr_idle;
	struct http_chunk chunk[NR_CHUNKS];
	uint64_t clock;
};

/* --- one request --------------------------------------------------------------------------------
 */

/* What a reply is collected into. */
struct reply {
	uint8_t *to;
	size_t cap, len;
	bool overrun;
	char validator[256], ranges[32];
	uint64_t total; /* of Content-Range */
	bool has_total;
};

static size_t on_data(char *data, size_t size, size_t n, void *opaque)
{
	struct reply *r = opaque;

	if (n > r->cap - r->len) {
		r->overrun = true;
		return 0; /* ends the transfer */
	}
	memcpy(r->to + r->len, data, n);
	r->len += n;
	return n;
}

static bool header_is(const char *line, size_t n, const char *name, char *value, size_t cap)
{
	size_t k = strlen(name), len;

	if (n <= k || strncasecmp(line, name, k) || line[k] != ':')
		return false;
	for (line += k + 1, n -= k + 1; n && (*line == ' ' || *line == '\t'); line++, n--)
		;
	for (len = n; len && strchr("\r\n \t", line[len - 1]); len--)
		;
	len = MIN(len, cap - 1);
	memcpy(value, line, len);
	value[len] = 0;
	return true;
}

static size_t on_header(char *line, size_t size, size_t n, void *opaque)
{
	struct reply *r = opaque;
	char value[256], *slash;

	if (n > 5 && !strncmp(line, "HTTP/", 5)) { /* of a redirect, or the next one */
		r->validator[0] = r->ranges[0] = 0;
		r->has_total = false;
	} else if (header_is(line, n, "ETag", value, sizeof(value))) {
		if (strncmp(value, "W/", 2))
			snprintf(r->validator, sizeof(r->validator), "%s", value);
	} else if (header_is(line, n, "Last-Modified", value, sizeof(value))) {
		if (!r->validator[0])
			snprintf(r->validator, sizeof(r->validator), "%s", value);
	} else if (header_is(line, n, "Content-Range", value, sizeof(value))) {
		slash = strchr(value, '/');
		r->has_total = slash && sscanf(slash + 1, "%" SCNu64, &r->total) == 1;
	}
	return n;
}

static void set_common(CURL *c, const char *url, struct reply *reply)
{
	curl_easy_setopt(c, CURLOPT_URL, url);
	curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
	/* What begins encrypted stays so. */
	curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR,
			 strncasecmp(url, "https:", 6) ? "http,https" : "https");
	curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
	curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)MAX_REDIRECTS);
	curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
	curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
	curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)STALL_S);
	curl_easy_setopt(c, CURLOPT_USERAGENT, "trivisor");
	curl_easy_setopt(c, CURLOPT_NETRC, (long)CURL_NETRC_OPTIONAL);
	curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
	curl_easy_setopt(c, CURLOPT_WRITEDATA, reply);
	curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(c, CURLOPT_HEADERDATA, reply);
}

static void pause_before(unsigned attempt)
{
	const struct timespec t = {.tv_nsec = (100 << attempt) * 1000000l % 1000000000l,
				   .tv_sec = (100 << attempt) / 1000};

	nanosleep(&t, NULL);
}

static bool may_pass(CURLcode code, long status)
{
	switch (code) {
	case CURLE_OK:
		return status == 408 || status == 429 || status >= 500;
	case CURLE_COULDNT_CONNECT:
	case CURLE_OPERATION_TIMEDOUT:
	case CURLE_RECV_ERROR:
	case CURLE_SEND_ERROR:
	case CURLE_GOT_NOTHING:
	case CURLE_PARTIAL_FILE:
	case CURLE_HTTP2:
	case CURLE_HTTP2_STREAM:
		return true;
	default:
		return false;
	}
}

/* [off, off+len) of the file into reply->to.  The HTTP status, or -errno. */
static int get_range(CURL *c, const char *url, uint64_t off, size_t len, struct reply *reply,
		     struct error *err)
{
	char range[48], words[CURL_ERROR_SIZE] = "";
	long status = 0;
	CURLcode code;

	snprintf(range, sizeof(range), "%" PRIu64 "-%" PRIu64, off, off + len - 1);
	set_common(c, url, reply);
	curl_easy_setopt(c, CURLOPT_RANGE, range);
	curl_easy_setopt(c, CURLOPT_ERRORBUFFER, words);
	for (unsigned attempt = 0;; attempt++) {
		reply->len = 0;
		reply->overrun = false;
		status = 0;
		code = curl_easy_perform(c);
		curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
		if (attempt + 1 >= ATTEMPTS || !may_pass(code, status))
			break;
		pause_before(attempt);
	}
	curl_easy_setopt(c, CURLOPT_ERRORBUFFER, NULL);
	if (code == CURLE_OK || reply->overrun)
		return (int)status;
	return err_set(err, EIO, "cannot read '%s': %s", url,
		       words[0] ? words : curl_easy_strerror(code));
}

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

static int fetch(struct http_disk *d, uint8_t *to, size_t len, uint64_t off)
{
	struct reply reply = {.to = to, .cap = len};
	struct error err = {""};
	CURL *c = take(d);
	int status = get_range(c, d->url, off, len, &reply, &err);

	give(d, c);
	if (status < 0) {
		log_error(&log_http, "%s", err.msg);
		return status;
	}
	if (status != 206 || reply.len != len || reply.overrun ||
	    (reply.has_total && reply.total != d->size) || strcmp(reply.validator, d->validator)) {
		log_error(&log_http, "'%s': status %d, %zu of %zu bytes%s", d->url, status,
			  reply.len, len,
			  status == 206 ? "; the file has changed on the server" : "");
		return -EIO;
	}
	return 0;
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
		return r;
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
	pthread_cond_destroy(&d->freed);
	pthread_mutex_destroy(&d->lock);
	free(d->url);
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

/* Ask for the first byte: the answer tells the size, and whether there are ranges at all. */
static int look(struct http_disk *d, struct error *err)
{
	uint8_t byte;
	struct reply reply = {.to = &byte, .cap = 1};
	int status = get_range(d->idle[0], d->url, 0, 1, &reply, err);

	if (status < 0)
		return status;
	if (status == 200)
		return err_set(err, ENOTSUP,
			       "'%s': the server does not send parts of files; download it first",
			       d->url);
	if (status == 416)
		return err_set(err, EINVAL, "'%s' is empty", d->url);
	if (status != 206 || !reply.has_total || reply.total > INT64_MAX)
		return err_set(err, status == 404 ? ENOENT : EIO,
			       "cannot read '%s': the server answers with status %d", d->url,
			       status);
	d->size = reply.total;
	snprintf(d->validator, sizeof(d->validator), "%s", reply.validator);
	return 0;
}

static int http_start(struct http_disk *d, const char *url, struct error *err)
{
	d->url = strdup(url);
	if (!d->url)
		return err_errno(err, ENOMEM, "'%s'", url);
	while (d->nr_idle < MAX_CONNS) {
		CURL *c = curl_easy_init();

		if (!c)
			return err_set(err, ENOMEM, "'%s': out of memory", url);
		d->idle[d->nr_idle++] = c;
	}
	return look(d, err);
}

static void curl_begin(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

static int http_open(struct blk **file, const char *name, unsigned flags,
		     const struct blk_open_opts *opts, struct error *err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct http_disk *d = calloc(1, sizeof(*d));
	struct blk_info info = {.block_size = 512};
	int r;

	if (!d)
		return err_errno(err, ENOMEM, "'%s'", name);
	pthread_once(&once, curl_begin);
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->freed, NULL);
	r = http_start(d, name, err);
	info.size = d->size;
	if (r == 0)
		r = blk_wrap(file, &http_format, d, &info, flags, err);
	if (r < 0)
		http_free(d);
	return r;
}

const struct blk_source source_http = {
	.scheme = "http", .help = "http://HOST/PATH: a file on a web server", .open = http_open};
const struct blk_source source_https = {
	.scheme = "https", .help = "https://HOST/PATH: the same over TLS", .open = http_open};
