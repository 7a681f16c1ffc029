/* source/http_client.h - requests to one web server, for http.c and folder.c (the library is
 * libcurl).
 *
 * A site holds what all requests to it share: who we are, whom we trust, its session.  Requests
 * may come from several threads, each with a handle of its own.  Servers are hostile: what a reply
 * may hold is bounded by who asks.  Errors are negative errno with a sentence; ENOTCONN and
 * ETIMEDOUT: the server could not be reached, EIO: it answers but cannot read the file there. */
#pragma once

#include "block/blk.h"

#include <curl/curl.h>
#include <pthread.h>

struct spool;

struct http_site {
	char *url; /* as given, without the user */
	char *user, *password;
	char *pin, *ca_file; /* pin: as libcurl has it */
	bool secure, may_log_in;
	unsigned timeout_s, attempts;
	CURLSH *share;                  /* the session's cookies */
	pthread_mutex_t cookies, login; /* login: one at a time */
};

int http_site_init(struct http_site *s, const char *url, const struct blk_remote_opts *remote,
		   struct error *err);
void http_site_fini(struct http_site *s);
CURL *http_handle_new(struct http_site *s); /* NULL: no memory; curl_easy_cleanup */

enum { HTTP_VALIDATOR = 256 };

/* What a reply is collected into, and what it said. */
struct http_reply {
	uint8_t *to;
	size_t cap, len;
	struct spool *spool; /* instead of `to`; cap bounds it too */
	bool overrun;
	int failed;                     /* of the spool */
	char validator[HTTP_VALIDATOR]; /* strong ETag or Last-Modified, or "" */
	char type[64];                  /* Content-Type */
	uint64_t total, start;          /* of Content-Range */
	bool has_total, basic;          /* basic: the server offers Basic authentication */
	CURL *curl;
};

/* [off, off+len) of a file, or with len 0 all of it, at most reply->cap bytes.  Goes on after
 * drop-outs where they were.  expect (NULL: anything) is the validator that all answers must have.
 * The HTTP status, when it is not one of a server in trouble; or -errno. */
int http_get(struct http_site *s, CURL *c, const char *url, uint64_t off, size_t len,
	     const char *expect, struct http_reply *reply, struct error *err);
/* A sentence for a status that is no success: -ENOENT, -EACCES, -EIO ... */
int http_status_error(const struct http_site *s, const char *url, int status, struct error *err);

/* --- http_trust.c: passwords, pins, sessions ----------------------------------------------------
 */

int http_read_password(const char *path, char **password, struct error *err);
/* "sha256//BASE64", or SHA-256 in hex with or without colons -> the former, malloc'd. */
int http_parse_pin(const char *text, char **pin, struct error *err);
/* The pin of the key the server shows now, for a person to compare; false: cannot tell. */
bool http_shown_pin(const struct http_site *s, char *pin, size_t cap);
/* A session as ESXi and vCenter have it: the Login of their SOAP interface, and a cookie. */
int http_log_in(struct http_site *s, CURL *c, struct error *err);
