/* cmd_disk_compare.c - hv disk compare: two images, or an image and a manifest. */
#include "programs/disk_cli.h"
#include "programs/hv.h"

#include "disk/compare.h"
#include "disk/cursor.h"
#include "disk/manifest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SAME = 0, DIFFERENT = 1, FAILED = 2 };

static void print_help(void)
{
	printf("Usage: hv disk compare [-f FORMAT] [-F FORMAT] [OPTION]... FILE1 FILE2\n"
	       "       hv disk compare [-f FORMAT] --manifest FILE [OPTION]... FILE1\n\n"
	       "Tells whether two images hold the same, whatever their formats.  Where one is\n"
	       "shorter its rest is taken as zeroes.\n\n"
	       "  -f FORMAT           FILE1's format; without it the content tells\n"
	       "  -F FORMAT           FILE2's\n"
	       "  -s                  strict: sizes and allocation must be the same too\n"
	       "  -c, --count         go on behind the first difference and count\n"
	       "  --manifest FILE     compare with the hashes that convert --manifest wrote\n"
	       "  -m N                threads (one per core)\n"
	       "  -p                  show progress\n" DISK_COMMON_HELP
	       "\nExit status: 0 the same, 1 different, 2 or more: the comparison failed.\n");
}

struct compare_cli {
	struct disk_cli cli;
	const char *format[2], *manifest;
	struct disk_compare o;
	struct disk_progress progress;
};

static void print_json(const struct compare_cli *c)
{
	struct json j = {.f = stdout};

	json_begin(&j, NULL, false);
	json_flag(&j, "same", c->o.same);
	json_flag(&j, "size-differs", c->o.size_differs);
	if (!c->o.same && c->o.first != UINT64_MAX)
		json_number(&j, "first", c->o.first);
	if (c->o.count_all)
		json_number(&j, "different-bytes", c->o.nr_different);
	json_end(&j);
}

static void print_text(const struct compare_cli *c)
{
	const struct disk_compare *o = &c->o;

	if (o->size_differs && !o->strict)
		printf("Warning: Image size mismatch!\n");
	if (o->same)
		printf("Images are identical.\n");
	else if (o->first == UINT64_MAX)
		printf("Strict mode: Image size mismatch!\n");
	else if (o->map_differs)
		printf("Strict mode: Offset %llu allocation mismatch!\n",
		       (unsigned long long)o->first);
	else
		printf("Content mismatch at offset %llu!\n", (unsigned long long)o->first);
	if (o->count_all && !o->same)
		printf("%llu bytes differ.\n", (unsigned long long)o->nr_different);
}

static int report(struct compare_cli *c)
{
	if (c->o.strict && c->o.size_differs) {
		c->o.same = false;
		c->o.first = UINT64_MAX;
	}
	if (c->cli.json)
		print_json(c);
	else if (!c->cli.quiet)
		print_text(c);
	return c->o.same ? SAME : DIFFERENT;
}

static int compare(struct compare_cli *c, char **path)
{
	struct blk *b[2] = {NULL};
	struct error err = {""};
	int r = 0;

	for (int i = 0; i < 2 && !r; i++)
		r = disk_open(&c->cli, &b[i], path[i], c->format[i], BLK_READONLY, NULL, &err);
	if (!r) {
		disk_job_init(&c->cli, &c->o.job, &c->progress);
		r = disk_compare(b[0], b[1], &c->o, &err);
		disk_progress_end(&c->progress);
	}
	for (int i = 0; i < 2; i++)
		blk_close(b[i]);
	return r < 0 ? disk_fail(&c->cli, &err) : report(c);
}

/* ---- with a manifest ---- */

static int hash_data(struct blk *b, struct disk_manifest *m, struct error *err)
{
	struct disk_cursor cursor = {.blk = b,
				     .end = blk_size(b),
				     .chunk = DISK_MANIFEST_BLOCK,
				     .round = DISK_MANIFEST_BLOCK};
	uint8_t *buf = malloc(DISK_MANIFEST_BLOCK);
	struct disk_piece p;
	int r = buf ? 0 : -ENOMEM;

	while (!r && (r = disk_cursor_next(&cursor, &p)) > 0) {
		r = 0;
		if (p.kind != DISK_DATA)
			continue;
		r = blk_read(b, buf, p.len, p.off);
		if (!r)
			r = disk_manifest_add(m, p.off, buf, p.len);
	}
	free(buf);
	return r < 0 ? err_errno(err, -r, "cannot read '%s'", blk_path(b)) : 0;
}

static int compare_manifest(struct compare_cli *c, const char *path)
{
	struct disk_manifest *want = NULL, *have = NULL;
	struct error err = {""};
	struct blk *b = NULL;
	int r;

	r = disk_manifest_load(&want, c->manifest, &err);
	if (!r)
		r = disk_open(&c->cli, &b, path, c->format[0], BLK_READONLY, NULL, &err);
	if (!r)
		r = disk_manifest_create(&have, blk_size(b), &err);
	if (!r)
		r = hash_data(b, have, &err);
	if (!r) {
		c->o.first = disk_manifest_compare(want, have);
		c->o.same = c->o.first == UINT64_MAX;
		c->o.size_differs = disk_manifest_size(want) != blk_size(b);
	}
	blk_close(b);
	disk_manifest_destroy(want);
	disk_manifest_destroy(have);
	return r < 0 ? disk_fail(&c->cli, &err) : report(c);
}

enum { OPT_MANIFEST = DISK_OPT_OWN };

static const struct option long_options[] = {DISK_COMMON_OPTIONS,
					     {"count", no_argument, NULL, 'c'},
					     {"manifest", required_argument, NULL, OPT_MANIFEST},
					     {0}};

static int parse(struct compare_cli *c, int opt)
{
	switch (opt) {
	case 'f':
	case 'F':
		c->format[opt == 'F'] = optarg;
		break;
	case 's':
		c->o.strict = true;
		break;
	case 'c':
		c->o.count_all = true;
		break;
	case 'p':
		c->cli.progress = true;
		break;
	case 'm':
		return disk_parse_threads(&c->cli, optarg, &c->o.job);
	case OPT_MANIFEST:
		c->manifest = optarg;
		break;
	}
	return 0;
}

int disk_main_compare(int argc, char **argv)
{
	struct compare_cli c = {0};
	int opt;

	disk_cli_init(&c.cli, "compare");
	c.cli.failed = FAILED;
	while ((opt = getopt_long(argc, argv, DISK_COMMON_LETTERS "f:F:T:spcm:", long_options,
				  NULL)) != -1) {
		if (opt == 'h') {
			print_help();
			return HV_EXIT_OK;
		}
		if (disk_cli_option(&c.cli, opt) < 0)
			return c.cli.failed;
		if (parse(&c, opt) < 0)
			return c.cli.failed;
	}
	if (argc - optind != (c.manifest ? 1 : 2))
		return disk_usage(&c.cli, c.manifest ? "name one image" : "name two images");
	return c.manifest ? compare_manifest(&c, argv[optind]) : compare(&c, argv + optind);
}
