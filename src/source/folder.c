/* source/folder.c - see folder.h: a page is a table with a row for each file: a link, a date, a
 * size.  (A datacenter's shows its datastores, with other columns.)
 *
 * libxml2's parser only tells of tags and text as they come; it builds nothing and is stopped at a
 * depth no such page has.  It compares each attribute of a tag with all before, so it gets no page
 * with tags that have very many. */
#include "source/folder.h"

#include "base/error.h"
#include "source/http_client.h"

#include <ctype.h>
#include <errno.h>
#include <libxml/HTMLparser.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum {
	MAX_PAGE = 8 * MiB,
	MAX_ENTRIES = 65536,
	MAX_DEPTH = 32,
	MAX_TAG = 8 * KiB,
	MAX_MARKS = 64, /* blanks, quotes and = in a tag */
	MAX_NAME = 255,
	MAX_URL = 4096,
	MAX_TEXT = 512,
	COLUMNS = 3,
	FEED = 4096, /* how often the parser's depth is looked at */
};

struct row {
	char href[MAX_URL], text[COLUMNS][MAX_TEXT];
	size_t href_len, text_len[COLUMNS];
	int column; /* -1: before the first */
	bool in_link, too_long;
};

struct page {
	CURLU *base;
	struct source_listing *out;
	size_t cap;
	struct row row;
	bool in_row, stop, no_memory;
	unsigned depth;
};

/* --- one row ------------------------------------------------------------------------------------
 */

static bool good_name(const char *name)
{
	size_t n = strlen(name);

	if (!n || n > MAX_NAME || !strcmp(name, ".") || !strcmp(name, "..") ||
	    !xmlCheckUTF8((const xmlChar *)name))
		return false;
	for (const char *p = name; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f || *p == '/')
			return false;
	return true;
}

static char *part(CURLU *u, CURLUPart what)
{
	char *text = NULL;

	unsigned flags = what == CURLUPART_PORT ? CURLU_DEFAULT_PORT : 0;

	return curl_url_get(u, what, &text, flags) == CURLUE_OK ? text : NULL;
}

static bool same(CURLU *a, CURLU *b, CURLUPart what)
{
	char *x = part(a, what), *y = part(b, what);
	bool equal = x && y && !strcasecmp(x, y);

	curl_free(x);
	curl_free(y);
	return equal;
}

/* The link, as a whole, when it stays below /folder of the same host. */
static CURLU *resolve(const struct page *p, const char *href)
{
	CURLU *u = curl_url_dup(p->base);
	char *path = NULL;
	bool good;

	if (!u)
		return NULL;
	good = curl_url_set(u, CURLUPART_URL, href, 0) == CURLUE_OK &&
	       same(u, p->base, CURLUPART_SCHEME) && same(u, p->base, CURLUPART_HOST) &&
	       same(u, p->base, CURLUPART_PORT);
	if (good)
		path = part(u, CURLUPART_PATH);
	good = path && !strncmp(path, "/folder", 7) && (path[7] == '/' || !path[7]);
	curl_free(path);
	if (good) {
		char *user = part(p->base, CURLUPART_USER);

		curl_url_set(u, CURLUPART_USER, user, 0);
		curl_free(user);
		curl_url_set(u, CURLUPART_PASSWORD, NULL, 0);
		curl_url_set(u, CURLUPART_FRAGMENT, NULL, 0);
		return u;
	}
	curl_url_cleanup(u);
	return NULL;
}

/* Percent-decoded, malloc'd; NULL when it holds a zero byte. */
static char *decoded(const char *text, size_t len)
{
	int n = 0;
	char *plain = len <= MAX_URL ? curl_easy_unescape(NULL, text, (int)len, &n) : NULL, *copy;

	if (!plain || memchr(plain, 0, (size_t)n)) {
		curl_free(plain);
		return NULL;
	}
	copy = strdup(plain);
	curl_free(plain);
	return copy;
}

static char *query_value(const char *query, const char *key)
{
	size_t n = strlen(key);

	for (const char *p = query; p && *p; p = strchr(p, '&') ? strchr(p, '&') + 1 : NULL)
		if (!strncmp(p, key, n) && p[n] == '=')
			return decoded(p + n + 1, strcspn(p + n + 1, "&"));
	return NULL;
}

/* The last part of the path; of /folder itself the datastore's name, or the datacenter's. */
static char *entry_name(CURLU *u, bool *is_folder)
{
	char *path = part(u, CURLUPART_PATH), *query = part(u, CURLUPART_QUERY), *name = NULL;
	size_t n = path ? strlen(path) : 0, start;

	*is_folder = n && path[n - 1] == '/';
	while (n && path[n - 1] == '/')
		n--;
	for (start = n; start && path[start - 1] != '/'; start--)
		;
	if (n == strlen("/folder")) {
		*is_folder = true;
		name = query_value(query, "dsName");
		name = name ? name : query_value(query, "dcPath");
	} else if (n) {
		name = decoded(path + start, n - start);
	}
	curl_free(path);
	curl_free(query);
	return name;
}

/* "28-Nov-2012 19:35" */
static int64_t parse_date(const char *text)
{
	static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	struct tm t = {0};
	char month[4];
	const char *at;

	if (sscanf(text, " %2d-%3s-%4d %2d:%2d", &t.tm_mday, month, &t.tm_year, &t.tm_hour,
		   &t.tm_min) != 5)
		return -1;
	at = strlen(month) == 3 ? strstr(months, month) : NULL;
	if (!at || (at - months) % 3 || t.tm_mday < 1 || t.tm_mday > 31 || t.tm_year < 1970 ||
	    t.tm_hour < 0 || t.tm_hour > 23 || t.tm_min < 0 || t.tm_min > 59)
		return -1;
	t.tm_mon = (int)(at - months) / 3;
	t.tm_year -= 1900;
	return timegm(&t);
}

static bool parse_size(const char *text, uint64_t *size)
{
	char *end;

	text += strspn(text, " \t\r\n");
	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	*size = strtoull(text, &end, 10);
	return !errno && !end[strspn(end, " \t\r\n")] && *size <= INT64_MAX;
}

static bool add(struct page *p, const struct source_entry *e)
{
	struct source_entry *all;

	if (p->out->nr == p->cap) {
		p->cap = p->cap ? p->cap * 2 : 64;
		all = realloc(p->out->entry, p->cap * sizeof(*all));
		if (!all) {
			p->no_memory = true;
			return false;
		}
		p->out->entry = all;
	}
	p->out->entry[p->out->nr++] = *e;
	return true;
}

/* The page's own folder and those above it are on each page too. */
static bool leads_up(const struct page *p, CURLU *u)
{
	char *here = part(p->base, CURLUPART_PATH), *there = part(u, CURLUPART_PATH);
	size_t n = there ? strlen(there) : 0;
	bool up;

	while (n && there[n - 1] == '/')
		n--;
	up = here && n && !strncmp(here, there, n) && (here[n] == '/' || !here[n]) &&
	     strlen(here) > strlen("/folder/");
	curl_free(here);
	curl_free(there);
	return up || !strncasecmp(p->row.text[0], "Parent Directory", 16);
}

static bool make_entry(const struct page *p, CURLU *u, struct source_entry *e)
{
	const struct row *row = &p->row;
	char *url;

	*e = (struct source_entry){.mtime_s = parse_date(row->text[1])};
	e->name = entry_name(u, &e->is_folder);
	if (e->name && row->text_len[0] && row->text[0][row->text_len[0] - 1] == '/')
		e->is_folder = true;
	e->has_size = !e->is_folder && parse_size(row->text[2], &e->size);
	url = part(u, CURLUPART_URL);
	e->url = url && strlen(url) < MAX_URL ? strdup(url) : NULL;
	curl_free(url);
	if (e->name && e->url && good_name(e->name))
		return true;
	free(e->name);
	free(e->url);
	return false;
}

static void end_row(struct page *p)
{
	struct row *row = &p->row;
	struct source_entry e;
	bool good = false;
	CURLU *u;

	p->in_row = false;
	if (!row->href_len)
		return; /* a heading */
	u = row->too_long ? NULL : resolve(p, row->href);
	if (u && leads_up(p, u)) {
		curl_url_cleanup(u);
		return;
	}
	if (u && p->out->nr < MAX_ENTRIES && make_entry(p, u, &e)) {
		good = add(p, &e);
		if (!good) {
			free(e.name);
			free(e.url);
		}
	}
	p->out->left_out += !good;
	curl_url_cleanup(u);
}

/* --- tags and text ------------------------------------------------------------------------------
 */

static void begin_row(struct page *p)
{
	if (p->in_row)
		end_row(p);
	p->in_row = true;
	p->row.href_len = 0;
	p->row.column = -1;
	p->row.in_link = p->row.too_long = false;
	for (unsigned i = 0; i < COLUMNS; i++) {
		p->row.text_len[i] = 0;
		p->row.text[i][0] = 0;
	}
}

static void take_link(struct row *row, const xmlChar **attrs)
{
	for (; attrs && attrs[0]; attrs += 2) {
		size_t n = attrs[1] ? strlen((const char *)attrs[1]) : 0;

		if (strcasecmp((const char *)attrs[0], "href") || row->href_len || !n)
			continue;
		row->too_long |= n >= MAX_URL;
		row->href_len = MIN(n, (size_t)MAX_URL - 1);
		memcpy(row->href, attrs[1], row->href_len);
		row->href[row->href_len] = 0;
	}
}

static void on_start(void *opaque, const xmlChar *name, const xmlChar **attrs)
{
	struct page *p = opaque;

	if (++p->depth > MAX_DEPTH)
		p->stop = true;
	if (p->stop)
		return;
	if (!strcasecmp((const char *)name, "tr"))
		begin_row(p);
	else if (p->in_row && !strcasecmp((const char *)name, "td"))
		p->row.column++;
	else if (p->in_row && p->row.column == 0 && !strcasecmp((const char *)name, "a"))
		take_link(&p->row, attrs);
}

static void on_end(void *opaque, const xmlChar *name)
{
	struct page *p = opaque;

	p->depth -= p->depth > 0;
	if (!p->stop && p->in_row && !strcasecmp((const char *)name, "tr"))
		end_row(p);
}

static void on_text(void *opaque, const xmlChar *text, int len)
{
	struct page *p = opaque;
	struct row *row = &p->row;
	size_t *have, n = (size_t)MAX(len, 0);

	if (p->stop || !p->in_row || row->column < 0 || row->column >= COLUMNS)
		return;
	have = &row->text_len[row->column];
	n = MIN(n, MAX_TEXT - 1 - *have); /* a name's text may be cut: the link is the name */
	memcpy(row->text[row->column] + *have, text, n);
	*have += n;
	row->text[row->column][*have] = 0;
}

/* One tag, from behind its '<' on: its length, or 0 when it is none that such a page has.  Stricter
 * than any parser, so that none can see a tag go on where this sees it end: quotes only around
 * values, no '<' or '>' in it. */
static size_t tag_length(const char *from, size_t len)
{
	bool comment = len >= 3 && !memcmp(from, "!--", 3), value = false;
	unsigned marks = 0;
	char quote = 0;

	for (size_t i = 0; i < MIN(len, (size_t)MAX_TAG); i++) {
		char c = from[i];

		if (c == '<')
			return 0;
		if (c == '>' && !quote)
			return i + 1;
		if (comment || *from == '!')
			continue;
		if (c == '>' || marks > MAX_MARKS)
			return 0;
		if (quote) {
			quote = c == quote ? 0 : quote;
			continue;
		}
		if (c == '"' || c == '\'') {
			if (!value)
				return 0;
			quote = c;
		}
		marks += c == '=' || c == '"' || c == '\'' || isspace((unsigned char)c);
		value = c == '=' || (value && isspace((unsigned char)c));
	}
	return 0;
}

static bool check_tags(const char *html, size_t len)
{
	for (size_t at = 0, n; at < len; at += n) {
		const char *open = memchr(html + at, '<', len - at);

		if (!open)
			break;
		at = (size_t)(open - html) + 1;
		n = tag_length(html + at, len - at);
		if (!n)
			return false;
	}
	return !len || !memchr(html, 0, len);
}

static void say_nothing(void *opaque, const char *format, ...)
{
}

static int feed(struct page *p, const char *html, size_t len)
{
	htmlSAXHandler sax = {.startElement = on_start,
			      .endElement = on_end,
			      .characters = on_text,
			      .ignorableWhitespace = on_text};
	htmlParserCtxtPtr ctxt =
		htmlCreatePushParserCtxt(&sax, p, NULL, 0, NULL, XML_CHAR_ENCODING_UTF8);

	if (!ctxt)
		return -ENOMEM;
	htmlCtxtUseOptions(ctxt, HTML_PARSE_NONET | HTML_PARSE_NOERROR | HTML_PARSE_NOWARNING |
					 HTML_PARSE_NOIMPLIED | HTML_PARSE_IGNORE_ENC);
	for (size_t at = 0; at < len && !p->stop && !p->no_memory; at += FEED)
		htmlParseChunk(ctxt, html + at, (int)MIN(len - at, (size_t)FEED), 0);
	if (!p->stop && !p->no_memory)
		htmlParseChunk(ctxt, NULL, 0, 1);
	if (p->in_row && !p->stop)
		end_row(p);
	htmlFreeParserCtxt(ctxt);
	return p->no_memory ? -ENOMEM : p->stop ? -ELOOP : 0;
}

/* Links have their special characters percent-encoded; what else is not UTF-8 is nobody's name, and
 * the parser has its troubles with it. */
static int parse(struct page *p, const char *html, size_t len)
{
	xmlGenericErrorFunc was = xmlGenericError; /* this thread's */
	void *was_context = xmlGenericErrorContext;
	char *text = len ? strndup(html, len) : strdup("");
	int r;

	if (!text)
		return -ENOMEM;
	if (!xmlCheckUTF8((const xmlChar *)text))
		for (char *c = text; *c; c++)
			*c = (unsigned char)*c < 0x80 ? *c : '?';
	xmlSetGenericErrorFunc(NULL, say_nothing);
	r = feed(p, text, len);
	xmlSetGenericErrorFunc(was_context, was);
	free(text);
	return r;
}

int source_folder_parse(const char *html, size_t len, const char *url, struct source_listing *out,
			struct error *err)
{
	struct page *p = calloc(1, sizeof(*p));
	int r;

	*out = (struct source_listing){0};
	if (!p)
		return err_errno(err, ENOMEM, "'%s'", url);
	p->out = out;
	p->base = curl_url();
	r = p->base ? 0 : -ENOMEM;
	if (!r && curl_url_set(p->base, CURLUPART_URL, url, 0) != CURLUE_OK)
		r = err_set(err, EINVAL, "'%s' is not of the form https://HOST/folder/...", url);
	else if (!r && len > MAX_PAGE)
		r = err_set(err, EFBIG, "'%s': the server's list is larger than %d MiB", url,
			    (int)(MAX_PAGE / MiB));
	if (!r) {
		r = check_tags(html, len) ? parse(p, html, len) : -ELOOP;
		if (r == -ELOOP)
			err_set(err, EINVAL, "'%s' is not the list of a datastore browser", url);
	}
	if (r == -ENOMEM)
		err_errno(err, ENOMEM, "'%s'", url);
	if (r < 0)
		source_listing_fini(out);
	curl_url_cleanup(p->base);
	free(p);
	return r == -ELOOP ? -EINVAL : r;
}

void source_listing_fini(struct source_listing *l)
{
	for (size_t i = 0; i < l->nr; i++) {
		free(l->entry[i].name);
		free(l->entry[i].url);
	}
	free(l->entry);
	*l = (struct source_listing){0};
}

/* --- fetching it --------------------------------------------------------------------------------
 */

bool source_is_folder_url(const char *url)
{
	const char *host, *path, *end;

	if (!strncasecmp(url, "https://", 8))
		host = url + 8;
	else if (!strncasecmp(url, "http://", 7))
		host = url + 7;
	else
		return false;
	path = strchr(host, '/');
	if (!path || strncmp(path, "/folder", 7))
		return false;
	end = path + strcspn(path, "?#");
	return end == path + 7 || end[-1] == '/';
}

static int get_page(struct http_site *site, const char *url, uint8_t *buf, size_t *len,
		    struct error *err)
{
	struct http_reply reply = {.to = buf, .cap = MAX_PAGE};
	CURL *c = http_handle_new(site);
	int status;

	if (!c)
		return err_errno(err, ENOMEM, "'%s'", url);
	status = http_get(site, c, url, 0, 0, NULL, &reply, err);
	curl_easy_cleanup(c);
	*len = reply.len;
	if (status < 0)
		return status;
	if (status != 200)
		return http_status_error(site, url, status, err);
	if (strncasecmp(reply.type, "text/html", 9))
		return err_set(err, ENOTDIR, "'%s' is not the list of a datastore browser", url);
	if (reply.overrun)
		return err_set(err, EFBIG, "'%s': the server's list is larger than %d MiB", url,
			       (int)(MAX_PAGE / MiB));
	return 0;
}

int source_folder_fetch(const char *url, const struct blk_open_opts *opts, char **html, size_t *len,
			struct error *err)
{
	struct http_site site;
	uint8_t *buf;
	int r = http_site_init(&site, url, opts ? opts->remote : NULL, err);

	if (r < 0)
		return r;
	buf = malloc(MAX_PAGE);
	r = buf ? get_page(&site, site.url, buf, len, err) : err_errno(err, ENOMEM, "'%s'", url);
	http_site_fini(&site);
	if (r < 0)
		free(buf);
	else
		*html = (char *)buf;
	return r;
}

int source_folder_list(const char *url, const struct blk_open_opts *opts,
		       struct source_listing *out, struct error *err)
{
	char *html;
	size_t len;
	int r;

	*out = (struct source_listing){0};
	r = source_folder_fetch(url, opts, &html, &len, err);
	if (r < 0)
		return r;
	r = source_folder_parse(html, len, url, out, err);
	free(html);
	return r;
}
