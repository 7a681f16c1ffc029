/* cmd_disk_bitmap.c - hv disk bitmap: the dirty bitmaps inside an image. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: hv disk bitmap [-f FORMAT] [-g SIZE] ACTION... FILE NAME\n"
	"       hv disk bitmap --list FILE\n\n"
	"Persistent bitmaps remember which parts of a disk have been written, for incremental\n"
	"backups.  Several actions are done in the order given.\n\n"
	"  --add               make bitmap NAME, recording\n"
	"  --remove            remove it\n"
	"  --clear             mark everything clean\n"
	"  --enable, --disable go on, or stop, recording\n"
	"  --merge OTHER       mark also what bitmap OTHER of the same image has marked\n"
	"  --list              list the bitmaps\n"
	"  -g SIZE             granularity of a new bitmap (64k)\n"
	"  -f FORMAT           the image's format (qcow2)\n" DISK_COMMON_HELP;

enum { MAX_ACTIONS = 16 };
enum { DO_ADD = DISK_OPT_OWN, DO_REMOVE, DO_CLEAR, DO_ENABLE, DO_DISABLE, DO_MERGE, DO_LIST };

struct action {
	int what;
	const char *other;
};

static int run_action(struct blk *b, const struct action *a, const char *name, uint64_t granularity,
		      struct error *err)
{
	switch (a->what) {
	case DO_ADD:
		return blk_bitmap_add(b, name, granularity, err);
	case DO_REMOVE:
		return blk_bitmap_remove(b, name, err);
	case DO_CLEAR:
		return blk_bitmap_clear(b, name, err);
	case DO_ENABLE:
	case DO_DISABLE:
		return blk_bitmap_record(b, name, a->what == DO_ENABLE, err);
	default:
		return blk_bitmap_merge(b, name, a->other, err);
	}
}

static int list(const struct disk_cli *cli, struct blk *b, struct error *err)
{
	struct json j = {.f = stdout};
	struct blk_bitmap *all = NULL;
	unsigned n = 0;
	int r = blk_bitmap_list(b, &all, &n, err);

	if (r < 0)
		return r;
	if (cli->json)
		json_begin(&j, NULL, true);
	for (unsigned i = 0; i < n; i++) {
		const struct blk_bitmap *m = &all[i];

		if (!cli->json) {
			printf("%s: %llu bytes dirty, granularity %llu%s%s\n", m->name,
			       (unsigned long long)m->dirty_bytes,
			       (unsigned long long)m->granularity,
			       m->recording ? ", recording" : "",
			       m->in_use ? ", in use (not to be trusted)" : "");
			continue;
		}
		json_begin(&j, NULL, false);
		json_text(&j, "name", m->name);
		json_number(&j, "granularity", m->granularity);
		json_number(&j, "dirty-bytes", m->dirty_bytes);
		json_flag(&j, "recording", m->recording);
		json_flag(&j, "in-use", m->in_use);
		json_end(&j);
	}
	if (cli->json)
		json_end(&j);
	free(all);
	return 0;
}

int disk_main_bitmap(int argc, char **argv)
{
	static const struct option options[] = {
		DISK_COMMON_OPTIONS,
		{"add", no_argument, NULL, DO_ADD},
		{"remove", no_argument, NULL, DO_REMOVE},
		{"clear", no_argument, NULL, DO_CLEAR},
		{"enable", no_argument, NULL, DO_ENABLE},
		{"disable", no_argument, NULL, DO_DISABLE},
		{"merge", required_argument, NULL, DO_MERGE},
		{"list", no_argument, NULL, DO_LIST},
		{NULL},
	};
	struct action action[MAX_ACTIONS];
	uint64_t granularity = 64 * KiB;
	const char *format = "qcow2";
	struct disk_cli cli;
	struct error err = {""};
	struct blk *b = NULL;
	bool listing = false;
	unsigned n = 0;
	int c, r;

	disk_cli_init(&cli, "bitmap");
	while ((c = getopt_long(argc, argv, "f:g:" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			format = optarg;
		else if (c == 'g' && disk_parse_size(optarg, &granularity) < 0)
			return disk_usage(&cli, "-g: '%s' is not a size", optarg);
		else if (c == DO_LIST)
			listing = true;
		else if (c >= DO_ADD && c < DO_LIST && n < MAX_ACTIONS)
			action[n++] = (struct action){c, optarg};
	}
	if (listing ? argc - optind != 1 || n : argc - optind != 2 || !n)
		return disk_usage(&cli, "an action, an image and the name of a bitmap are needed");
	r = disk_open(&cli, &b, argv[optind], format, listing ? BLK_READONLY : 0, NULL, &err);
	if (r == 0 && listing)
		r = list(&cli, b, &err);
	for (unsigned i = 0; i < n && r == 0; i++)
		r = run_action(b, &action[i], argv[optind + 1], granularity, &err);
	blk_close(b);
	if (r < 0)
		return disk_fail(&cli, &err);
	if (cli.json && !listing)
		return disk_done(&cli, argv[optind], "Bitmap changed.");
	return HV_EXIT_OK;
}
