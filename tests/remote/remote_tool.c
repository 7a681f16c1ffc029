/* remote_tool.c - what has no command of its own, for the tests of remote sources.
 *
 *   remote-tool list URL [OPTION]...            the entries of a datastore browser's folder
 *   remote-tool fetch URL MAP CACHE [OPTION]... a disk into a cache, with a map
 *   remote-tool parse FILE URL                  a page from a file
 *
 * OPTION: password-file=FILE cacert=FILE pin=KEY attempts=N */
#include "base/error.h"
#include "block/filter_rescue.h"
#include "source/folder.h"
#include "source/source.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct blk_remote_opts remote;
static const struct blk_open_opts opts = {.remote = &remote};

static int fail(const struct error *err)
{
	fprintf(stderr, "%s\n", err->msg);
	return 1;
}

static void take_options(char **arg)
{
	for (; *arg; arg++) {
		char *value = strchr(*arg, '=');

		if (!value)
			continue;
		*value++ = 0;
		if (!strcmp(*arg, "password-file"))
			remote.password_file = value;
		else if (!strcmp(*arg, "cacert"))
			remote.ca_file = value;
		else if (!strcmp(*arg, "pin"))
			remote.pin = value;
		else if (!strcmp(*arg, "attempts"))
			remote.attempts = (unsigned)atoi(value);
	}
}

static int print(struct source_listing *l)
{
	for (size_t i = 0; i < l->nr; i++) {
		const struct source_entry *e = &l->entry[i];

		printf("%s\t%s\t%" PRId64 "\t%" PRId64 "\t%s\n", e->is_folder ? "folder" : "file",
		       e->name, e->has_size ? (int64_t)e->size : -1, e->mtime_s, e->url);
	}
	printf("left out\t%zu\n", l->left_out);
	source_listing_fini(l);
	return 0;
}

static int list(const char *url)
{
	struct source_listing l;
	struct error err = {""};

	return source_folder_list(url, &opts, &l, &err) < 0 ? fail(&err) : print(&l);
}

static int parse(const char *path, const char *url)
{
	struct source_listing l;
	struct error err = {""};
	char *text = malloc(16 * MiB);
	FILE *f = fopen(path, "r");
	size_t n = f && text ? fread(text, 1, 16 * MiB, f) : 0;
	int r = source_folder_parse(text, n, url, &l, &err);

	if (f)
		fclose(f);
	free(text);
	return r < 0 ? fail(&err) : print(&l);
}

static bool say_progress(void *opaque, uint64_t done)
{
	printf("at %" PRIu64 "\n", done);
	fflush(stdout);
	return true;
}

static int fetch(const char *url, const char *map, const char *cache)
{
	const struct blk_rescue_opts o = {.map_path = map, .cache_path = cache, .source = url};
	struct blk_rescue_counts n;
	struct error err = {""};
	struct blk *b;
	int r = blk_open_with(&b, url, "raw", BLK_FILE | BLK_READONLY | BLK_NO_POOL, &opts, &err);

	if (r == 0)
		r = blk_rescue(&b, b, &o, BLK_NO_POOL, &err);
	if (r < 0)
		return fail(&err);
	r = blk_rescue_fetch(b, 0, blk_size(b), false, say_progress, NULL, &err);
	blk_rescue_counts(b, &n);
	printf("finished %" PRIu64 " bad %" PRIu64 " read %" PRIu64 "\n", n.finished, n.bad,
	       n.read_below);
	blk_close(b);
	return r < 0 ? fail(&err) : 0;
}

int main(int argc, char **argv)
{
	source_register();
	if (argc > 2)
		take_options(argv + 3);
	if (argc > 2 && !strcmp(argv[1], "list"))
		return list(argv[2]);
	if (argc > 3 && !strcmp(argv[1], "parse"))
		return parse(argv[2], argv[3]);
	if (argc > 4 && !strcmp(argv[1], "fetch"))
		return fetch(argv[2], argv[3], argv[4]);
	fprintf(stderr, "remote-tool list|fetch|parse\n");
	return 2;
}
