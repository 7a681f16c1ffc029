/* source/http_client.c - see http_client.h: one request and what can become of it (RFC 9110). */
#include "source/http_client.h"

#include "base/error.h"
#include "source/spool.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum { ATTEMPTS = 5, CONNECT_S = 30, STALL_S = 30, MAX_REDIRECTS = 8 };

/* --- what comes back ----------------------------------------------------------------------------
 */

static long status_of(CURL *c)
{
	long status = 0;

	curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
	return status;
}

/* The words of an error page are nobody's data. */
static size_t on_data(char *data, size_t size, size_t n, void *opaque)
{
	struct http_reply *r = opaque;
	long status = status_of(r->curl);

	if (status != 200 && status != 206)
		return n;
	if (n > r->cap - r->len) {
		r->overrun = true;
		return 0; /* ends the transfer */
	}
	if (r->spool) {
		r->failed = spool_append(r->spool, data, n, NULL);
		if (r->failed < 0)
			return 0;
	} else {
		memcpy(r->to + r->len, data, n);
	}
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

static void take_validator(struct http_reply *r, const char *value)
{
	snprintf(r->validator, sizeof(r->validator), "%s", value);
}

static size_t on_header(char *line, size_t size, size_t n, void *opaque)
{
	struct http_reply *r = opaque;
	char value[HTTP_VALIDATOR];

	if (n > 5 && !strncmp(line, "HTTP/", 5)) { /* of a redirect, or the next one */
		r->validator[0] = r->type[0] = 0;
		r->has_total = r->basic = false;
	} else if (header_is(line, n, "ETag", value, sizeof(value))) {
		if (strncmp(value, "W/", 2))
			take_validator(r, value);
	} else if (header_is(line, n, "Last-Modified", value, sizeof(value))) {
		if (!r->validator[0])
			take_validator(r, value);
	} else if (header_is(line, n, "Content-Type", value, sizeof(value))) {
		snprintf(r->type, sizeof(r->type), "%.60s", value);
	} else if (header_is(line, n, "WWW-Authenticate", value, sizeof(value))) {
		r->basic |= !strncasecmp(value, "Basic", 5);
	} else if (header_is(line, n, "Content-Range", value, sizeof(value))) {
		r->has_total =
			sscanf(value, "bytes %" SCNu64 "-%*u/%" SCNu64, &r->start, &r->total) == 2;
	}
	return n;
}

/* --- a handle -----------------------------------------------------------------------------------
 */

static void set_trust(CURL *c, const struct http_site *s)
{
	if (s->ca_file)
		curl_easy_setopt(c, CURLOPT_CAINFO, s->ca_file);
	if (!s->pin)
		return;
	/* The key itself is what is trusted: ESXi's certificates are signed by nobody and name
	 * other hosts.  With an authority given both must hold. */
	curl_easy_setopt(c, CURLOPT_PINNEDPUBLICKEY, s->pin);
	if (!s->ca_file) {
		curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 0L);
		curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 0L);
	}
}

CURL *http_handle_new(struct http_site *s)
{
	CURL *c = curl_easy_init();

	if (!c)
		return NULL;
	curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
	/* What begins encrypted stays so. */
	curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, s->secure ? "https" : "http,https");
	curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
	curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)MAX_REDIRECTS);
	curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)MIN(s->timeout_s, CONNECT_S));
	curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
	curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)s->timeout_s);
	curl_easy_setopt(c, CURLOPT_USERAGENT, "trivisor");
	curl_easy_setopt(c, CURLOPT_NETRC, (long)CURL_NETRC_OPTIONAL);
	curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
	curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(c, CURLOPT_COOKIEFILE, ""); /* none, but cookies are kept */
	curl_easy_setopt(c, CURLOPT_SHARE, s->share);
	curl_easy_setopt(c, CURLOPT_HTTPAUTH, (long)CURLAUTH_BASIC);
	if (s->user)
		curl_easy_setopt(c, CURLOPT_USERNAME, s->user);
	if (s->password)
		curl_easy_setopt(c, CURLOPT_PASSWORD, s->password);
	set_trust(c, s);
	return c;
}

/* --- one request --------------------------------------------------------------------------------
 */

static void pause_before(unsigned attempt)
{
	unsigned ms = 100u << MIN(attempt, 6u);
	const struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};

	nanosleep(&t, NULL);
}

static bool in_trouble(long status)
{
	return status == 408 || status == 429 || status >= 500;
}

static bool may_pass(CURLcode code, long status)
{
	switch (code) {
	case CURLE_OK:
		return in_trouble(status);
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

/* What the key was, when it is not one we trust. */
static int untrusted(const struct http_site *s, CURLcode code, const char *words, struct error *err)
{
	char pin[80];

	if (!http_shown_pin(s, pin, sizeof(pin)))
		return err_set(err, EKEYREJECTED, "'%s': the server is not trusted: %s", s->url,
			       words);
	if (code == CURLE_SSL_PINNEDPUBKEYNOTMATCH)
		return err_set(err, EKEYREJECTED,
			       "'%s': the server's key is %s, not the one given; it is another "
			       "server, or has a new certificate",
			       s->url, pin);
	return err_set(
		err, EKEYREJECTED,
		"'%s': the server is not trusted (%s); if its key is really %s, give that as "
		"its pin, or its authority as CA file",
		s->url, words, pin);
}

static int transfer_error(const struct http_site *s, const char *url, CURLcode code,
			  const char *words, struct error *err)
{
	if (!words[0])
		words = curl_easy_strerror(code);
	switch (code) {
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_PINNEDPUBKEYNOTMATCH:
		return untrusted(s, code, words, err);
	case CURLE_OUT_OF_MEMORY:
		return err_set(err, ENOMEM, "cannot read '%s': %s", url, words);
	case CURLE_OPERATION_TIMEDOUT:
		return err_set(err, ETIMEDOUT, "cannot read '%s': %s", url, words);
	default:
		return err_set(err, ENOTCONN, "cannot read '%s': %s", url, words);
	}
}

/* Does the answer belong to what was asked, and to the file as it was? */
static int check_part(const char *url, uint64_t at, const char *expect,
		      const struct http_reply *reply, struct error *err)
{
	if (reply->has_total && reply->start != at)
		return err_set(err, EPROTO, "'%s': the server sends another part than asked for",
			       url);
	if (expect && strcmp(expect, reply->validator))
		return err_set(err, ESTALE, "'%s' has changed on the server while it was read",
			       url);
	return 0;
}

/* One answer, from where the last one ended. */
static CURLcode once(CURL *c, uint64_t off, size_t len, struct http_reply *reply, long *status)
{
	char range[48];
	CURLcode code;

	snprintf(range, sizeof(range), "%" PRIu64 "-%" PRIu64, off + reply->len, off + len - 1);
	curl_easy_setopt(c, CURLOPT_RANGE, len ? range : NULL);
	reply->overrun = false;
	code = curl_easy_perform(c);
	*status = status_of(c);
	return code;
}

static int finish(const struct http_site *s, const char *url, CURLcode code, long status,
		  size_t len, bool answered, const struct http_reply *reply, const char *words,
		  struct error *err)
{
	if (reply->failed < 0)
		return err_errno(err, -reply->failed,
				 "cannot write a temporary file (TMPDIR names the place)");
	if (reply->overrun)
		return (int)status;
	/* The server is there, begins to answer, and has not a byte of this place: it cannot read
	 * it, or cannot tell us so. */
	if (len && answered && (code == CURLE_PARTIAL_FILE || code == CURLE_RECV_ERROR))
		return err_set(err, EIO, "'%s': the server cannot read all of it", url);
	if (code != CURLE_OK)
		return transfer_error(s, url, code, words, err);
	if (in_trouble(status))
		return err_set(err, status == 500 ? EIO : ENOTCONN,
			       "'%s': the server answers with status %ld", url, status);
	return (int)status;
}

static int request(struct http_site *s, CURL *c, const char *url, uint64_t off, size_t len,
		   const char *expect, struct http_reply *reply, struct error *err)
{
	char words[CURL_ERROR_SIZE] = "";
	bool answered = false;
	CURLcode code;
	long status;
	int r = 0;

	curl_easy_setopt(c, CURLOPT_URL, url);
	curl_easy_setopt(c, CURLOPT_WRITEDATA, reply);
	curl_easy_setopt(c, CURLOPT_HEADERDATA, reply);
	curl_easy_setopt(c, CURLOPT_ERRORBUFFER, words);
	reply->curl = c;
	reply->len = 0;
	for (unsigned attempt = 0;; attempt++) {
		size_t before = reply->len;

		words[0] = 0;
		code = once(c, off, len, reply, &status);
		answered = status == 206;
		if (answered)
			r = check_part(url, off + before, expect, reply, err);
		if (r == 0 && code == CURLE_OK && answered && reply->len > before &&
		    reply->len < len)
			continue; /* servers may send less at once than was asked for */
		if (r < 0 || !may_pass(code, status) || (!len && reply->len) ||
		    (len && reply->len == len))
			break;
		if (reply->len > before)
			attempt = 0;
		if (attempt + 1 >= s->attempts)
			break;
		pause_before(attempt);
	}
	curl_easy_setopt(c, CURLOPT_ERRORBUFFER, NULL);
	return r < 0 ? r : finish(s, url, code, status, len, answered, reply, words, err);
}

int http_get(struct http_site *s, CURL *c, const char *url, uint64_t off, size_t len,
	     const char *expect, struct http_reply *reply, struct error *err)
{
	int status = request(s, c, url, off, len, expect, reply, err);

	if (status != 401 || !s->may_log_in || reply->basic)
		return status;
	status = http_log_in(s, c, err);
	return status < 0 ? status : request(s, c, url, off, len, expect, reply, err);
}

int http_status_error(const struct http_site *s, const char *url, int status, struct error *err)
{
	switch (status) {
	case 401:
		if (s->user)
			return err_set(
				err, EACCES,
				"'%s': the server does not know user '%s' with this password", url,
				s->user);
		return err_set(err, EACCES,
			       "'%s': the server wants to know who you are: https://USER@HOST/... "
			       "and a file with the password",
			       url);
	case 403:
		return err_set(err, EACCES, "'%s': the server does not let %s read it", url,
			       s->user ? s->user : "us");
	case 404:
		return err_set(err, ENOENT, "there is no '%s' (status 404)", url);
	case 416:
		return err_set(err, EINVAL, "'%s' is empty", url);
	default:
		return err_set(err, EIO, "cannot read '%s': the server answers with status %d", url,
			       status);
	}
}

/* --- the site -----------------------------------------------------------------------------------
 */

static void lock_cookies(CURL *c, curl_lock_data data, curl_lock_access how, void *opaque)
{
	struct http_site *s = opaque;

	pthread_mutex_lock(&s->cookies);
}

static void unlock_cookies(CURL *c, curl_lock_data data, void *opaque)
{
	struct http_site *s = opaque;

	pthread_mutex_unlock(&s->cookies);
}

static bool is_loopback(const char *host)
{
	return !strcmp(host, "localhost") || !strncmp(host, "127.", 4) || !strcmp(host, "[::1]");
}

static char *part(CURLU *u, CURLUPart what, unsigned flags)
{
	char *text = NULL, *copy;

	if (curl_url_get(u, what, &text, flags) != CURLUE_OK)
		return NULL;
	copy = strdup(text);
	curl_free(text);
	return copy;
}

/* The user belongs to us, not to messages; a password never stands in a name. */
static int take_url(struct http_site *s, CURLU *u, const char *url, struct error *err)
{
	char *host, *password;
	bool near;

	if (curl_url_set(u, CURLUPART_URL, url, 0) != CURLUE_OK)
		return err_set(err, EINVAL, "'%s' is not of the form https://[USER@]HOST/PATH",
			       url);
	password = part(u, CURLUPART_PASSWORD, 0);
	free(password);
	if (password)
		return err_set(err, EINVAL,
			       "no passwords in names, which others can see: put it into a file "
			       "(--password-file)");
	s->user = part(u, CURLUPART_USER, CURLU_URLDECODE);
	curl_url_set(u, CURLUPART_USER, NULL, 0);
	s->url = part(u, CURLUPART_URL, 0);
	host = part(u, CURLUPART_HOST, 0);
	near = host && is_loopback(host);
	free(host);
	if (!s->url)
		return err_errno(err, ENOMEM, "'%s'", url);
	s->secure = !strncasecmp(s->url, "https:", 6);
	s->may_log_in = s->user && (s->secure || near);
	if (s->user && !s->may_log_in)
		return err_set(err, EINVAL, "'%s': no passwords without encryption; use https://",
			       url);
	return 0;
}

static int take_options(struct http_site *s, const struct blk_remote_opts *o, struct error *err)
{
	int r = 0;

	s->timeout_s = o && o->timeout_s ? o->timeout_s : STALL_S;
	s->attempts = o && o->attempts ? o->attempts : ATTEMPTS;
	if (o && o->password_file && s->user)
		r = http_read_password(o->password_file, &s->password, err);
	if (!r && o && o->pin)
		r = http_parse_pin(o->pin, &s->pin, err);
	if (!r && o && o->ca_file) {
		s->ca_file = strdup(o->ca_file);
		r = s->ca_file ? 0 : err_errno(err, ENOMEM, "'%s'", s->url);
	}
	return r;
}

static void curl_begin(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

int http_site_init(struct http_site *s, const char *url, const struct blk_remote_opts *remote,
		   struct error *err)
{
	static pthread_once_t begun = PTHREAD_ONCE_INIT;
	CURLU *u;
	int r;

	*s = (struct http_site){0};
	pthread_once(&begun, curl_begin);
	pthread_mutex_init(&s->cookies, NULL);
	pthread_mutex_init(&s->login, NULL);
	u = curl_url();
	s->share = curl_share_init();
	r = u && s->share ? 0 : err_errno(err, ENOMEM, "'%s'", url);
	if (!r)
		r = take_url(s, u, url, err);
	if (!r)
		r = take_options(s, remote, err);
	if (s->share) {
		curl_share_setopt(s->share, CURLSHOPT_SHARE, CURL_LOCK_DATA_COOKIE);
		curl_share_setopt(s->share, CURLSHOPT_LOCKFUNC, lock_cookies);
		curl_share_setopt(s->share, CURLSHOPT_UNLOCKFUNC, unlock_cookies);
		curl_share_setopt(s->share, CURLSHOPT_USERDATA, s);
	}
	curl_url_cleanup(u);
	if (r < 0)
		http_site_fini(s);
	return r;
}

void http_site_fini(struct http_site *s)
{
	if (s->share)
		curl_share_cleanup(s->share);
	if (s->password)
		explicit_bzero(s->password, strlen(s->password));
	free(s->password);
	free(s->user);
	free(s->url);
	free(s->pin);
	free(s->ca_file);
	pthread_mutex_destroy(&s->cookies);
	pthread_mutex_destroy(&s->login);
	*s = (struct http_site){0};
}
