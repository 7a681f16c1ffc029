/* recover_folder.c - `hv recover ls` and `tree` of a datastore browser's folder: what an ESXi host
 * or a vCenter still shows of itself (https://HOST/folder/...).
 *
 * This process fetches the pages.  Another one, locked in, parses them and sends back what they
 * say, which is believed as little as the pages: sizes are bounded, addresses stay on the same
 * host. */
#include "programs/hv.h"
#include "programs/recover_cli.h"

#include "jail/jail.h"
#include "source/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_DEPTH = 16, MAX_ENTRIES = 65536, MAX_ALL = 500000, MAX_NAME = 255, MAX_URL = 4096 };

/* What goes over the pipe: this, then (for each entry) a row and its two texts. */
struct answer {
	int result;
	char words[sizeof(((struct error *)NULL)->msg)];
	uint64_t nr, left_out;
};

struct row {
	uint64_t size;
	int64_t mtime_s;
	uint32_t name_len, url_len;
	bool is_folder, has_size;
};

/* --- in the locked process ---------------------------------------------------------------------
 */

static void send_row(FILE *f, const struct source_entry *e)
{
	const struct row row = {.size = e->size,
				.mtime_s = e->mtime_s,
				.name_len = (uint32_t)strlen(e->name),
				.url_len = (uint32_t)strlen(e->url),
				.is_folder = e->is_folder,
				.has_size = e->has_size};

	fwrite(&row, sizeof(row), 1, f);
	fwrite(e->name, row.name_len, 1, f);
	fwrite(e->url, row.url_len, 1, f);
}

static void parse_locked(int fd, const char *url, const char *html, size_t len)
{
	struct source_listing l = {0};
	struct answer a = {0};
	struct error err = {""};
	FILE *f = fdopen(fd, "w");

	if (!f)
		_exit(1);
	a.result = jail_enter(&(struct jail){0}, &err);
	if (a.result == 0)
		a.result = source_folder_parse(html, len, url, &l, &err);
	memcpy(a.words, err.msg, sizeof(a.words));
	a.nr = l.nr;
	a.left_out = l.left_out;
	fwrite(&a, sizeof(a), 1, f);
	for (size_t i = 0; i < l.nr; i++)
		send_row(f, &l.entry[i]);
	_exit(fclose(f) != 0);
}

/* --- outside -----------------------------------------------------------------------------------
 */

static char *take_text(FILE *f, uint32_t len, uint32_t most)
{
	char *text = len && len <= most ? malloc(len + 1u) : NULL;

	if (!text || fread(text, len, 1, f) != 1 || memchr(text, 0, len)) {
		free(text);
		return NULL;
	}
	text[len] = 0;
	return text;
}

/* "https://root@esx:443", up to the path. */
static size_t origin_len(const char *url)
{
	const char *host = strstr(url, "://");

	return host ? (size_t)(host + 3 - url) + strcspn(host + 3, "/?#") : 0;
}

static bool take_row(FILE *f, const char *from, struct source_entry *e)
{
	struct row row;

	if (fread(&row, sizeof(row), 1, f) != 1)
		return false;
	*e = (struct source_entry){.is_folder = row.is_folder,
				   .has_size = row.has_size,
				   .size = row.size,
				   .mtime_s = row.mtime_s};
	e->name = take_text(f, row.name_len, MAX_NAME);
	e->url = e->name ? take_text(f, row.url_len, MAX_URL) : NULL;
	if (e->url && !strchr(e->name, '/') && origin_len(e->url) == origin_len(from) &&
	    !strncasecmp(e->url, from, origin_len(from)))
		return true;
	free(e->name);
	free(e->url);
	return false;
}

static int take_answer(FILE *f, const char *url, struct source_listing *l, struct error *err)
{
	struct answer a;

	*l = (struct source_listing){0};
	if (fread(&a, sizeof(a), 1, f) != 1 || a.nr > MAX_ENTRIES)
		return err_set(err, EIO, "'%s': the process that reads the page died", url);
	a.words[sizeof(a.words) - 1] = 0;
	if (a.result < 0)
		return err_set(err, EINVAL, "%s", a.words);
	l->entry = calloc(a.nr + 1, sizeof(*l->entry));
	if (!l->entry)
		return err_errno(err, ENOMEM, "'%s'", url);
	l->left_out = a.left_out;
	for (; l->nr < a.nr; l->nr++)
		if (!take_row(f, url, &l->entry[l->nr]))
			return err_set(err, EIO, "'%s': the page makes no sense", url);
	return 0;
}

static int parse_elsewhere(const char *url, const char *html, size_t len, struct source_listing *l,
			   struct error *err)
{
	int fd[2], r;
	pid_t pid;
	FILE *f;

	if (pipe2(fd, O_CLOEXEC) < 0)
		return err_errno(err, errno, "'%s'", url);
	fflush(NULL);
	pid = fork();
	if (pid == 0)
		parse_locked(fd[1], url, html, len);
	close(fd[1]);
	f = pid < 0 ? NULL : fdopen(fd[0], "r");
	r = f ? take_answer(f, url, l, err) : err_errno(err, errno, "'%s'", url);
	if (f)
		fclose(f);
	else
		close(fd[0]);
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return r;
}

static int list(const struct recover *rc, const char *url, struct source_listing *l,
		struct error *err)
{
	char *html;
	size_t len;
	int r = source_folder_fetch(url, &rc->opt.open, &html, &len, err);

	if (r < 0)
		return r;
	r = parse_elsewhere(url, html, len, l, err);
	free(html);
	if (r < 0)
		source_listing_fini(l);
	else if (l->left_out)
		recover_say(rc, "'%s': %zu lines of the page are left out: they name no file", url,
			    l->left_out);
	return r;
}

/* --- showing it --------------------------------------------------------------------------------
 */

struct show {
	struct recover *rc;
	struct json json;
	char prefix[MAX_DEPTH * 8 + 1];
	uint64_t files, dirs, bytes, seen;
	bool names, tree;
};

static const char *time_text(const struct source_entry *e, char *buf, size_t cap)
{
	return recover_time_text(e->mtime_s > 0 ? (uint32_t)MIN(e->mtime_s, UINT32_MAX) : 0, buf,
				 cap);
}

static void show_json(struct show *s, const struct source_entry *e)
{
	char safe[1024];

	json_begin(&s->json, NULL, false);
	json_text(&s->json, "name", recover_safe_text(e->name, safe, sizeof(safe)));
	json_text(&s->json, "type", e->is_folder ? "directory" : "file");
	if (e->has_size)
		json_number(&s->json, "length", e->size);
	if (e->mtime_s >= 0)
		json_number(&s->json, "mtime", (uint64_t)e->mtime_s);
	json_text(&s->json, "url", e->url);
	json_end(&s->json);
}

static void show_text(struct show *s, const struct source_entry *e, bool last)
{
	char name[1024], size[32], when[32];

	recover_safe_text(e->name, name, sizeof(name));
	if (e->has_size)
		size_text(e->size, size, sizeof(size));
	else
		strcpy(size, "-");
	if (s->tree)
		printf("%s%s %s%s%s%s\n", s->prefix, last ? "└──" : "├──", name,
		       e->is_folder ? "/" : "", e->has_size ? "  " : "", e->has_size ? size : "");
	else if (s->names)
		printf("%s%s\n", name, e->is_folder ? "/" : "");
	else
		printf("%9s  %16s  %s%s\n", size, time_text(e, when, sizeof(when)), name,
		       e->is_folder ? "/" : "");
}

static int show_folder(struct show *s, const char *url, unsigned depth, struct error *err);

static int show_below(struct show *s, const struct source_entry *e, bool last, unsigned depth,
		      struct error *err)
{
	size_t used = strlen(s->prefix);
	int r;

	if (!s->tree || !e->is_folder || depth + 1 >= MAX_DEPTH)
		return 0;
	snprintf(s->prefix + used, sizeof(s->prefix) - used, "%s", last ? "    " : "│   ");
	r = show_folder(s, e->url, depth + 1, err);
	s->prefix[used] = 0;
	return r;
}

static int show_folder(struct show *s, const char *url, unsigned depth, struct error *err)
{
	struct source_listing l;
	int r = list(s->rc, url, &l, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < l.nr && r == 0; i++) {
		const struct source_entry *e = &l.entry[i];
		bool last = i + 1 == l.nr;

		s->dirs += e->is_folder;
		s->files += !e->is_folder;
		s->bytes += e->size;
		if (++s->seen > MAX_ALL)
			r = err_set(err, E2BIG, "'%s' has more than %d files", url, MAX_ALL);
		else if (s->rc->opt.json)
			show_json(s, e);
		else
			show_text(s, e, last);
		if (r == 0)
			r = show_below(s, e, last, depth, err);
	}
	source_listing_fini(&l);
	return r;
}

int recover_folder_show(struct recover *rc, bool tree, bool names)
{
	struct show s = {.rc = rc, .json = {.f = stdout}, .tree = tree, .names = names};
	bool text = !rc->opt.json;
	struct error err = {0};
	char size[32];
	int r;

	rc->done = true;
	if (!text)
		json_begin(&s.json, NULL, true);
	else if (!tree && !names)
		printf("%9s  %-16s  %s\n", "SIZE", "CHANGED", "NAME");
	r = show_folder(&s, rc->name[0], 0, &err);
	if (!text)
		json_end(&s.json);
	else if (tree && r == 0)
		printf("\n%" PRIu64 " directories, %" PRIu64 " files, %s\n", s.dirs, s.files,
		       size_text(s.bytes, size, sizeof(size)));
	return r < 0 ? recover_fail(rc, &err) : HV_EXIT_OK;
}

bool recover_is_folder(const struct recover *rc)
{
	return rc->nr_sources == 1 && !rc->path && source_is_folder_url(rc->name[0]);
}
