/* cmd_disk_amend.c - hv disk amend: change options of an image that exists. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"

#include <string.h>

static const char help[] =
	"Usage: hv disk amend -f FORMAT -o KEY=VALUE[,...] FILE\n\n"
	"Changes what an image was created with, as far as its format can.\n\n"
	"  -f FORMAT           the image's format; needed\n"
	"  -o KEY=VALUE,...    as for create; -o help lists them\n" DISK_COMMON_HELP;

int disk_main_amend(int argc, char **argv)
{
	static const struct option options[] = {DISK_COMMON_OPTIONS, {NULL}};
	struct disk_kv kv = {.n = 0};
	const char *format = NULL;
	bool list = false;
	struct disk_cli cli;
	struct error err = {""};
	struct blk *b = NULL;
	int c, r;

	disk_cli_init(&cli, "amend");
	while ((c = getopt_long(argc, argv, "f:o:p" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			format = optarg;
		else if (c == 'o' && !strcmp(optarg, "help"))
			list = true;
		else if (c == 'o' && disk_parse_kv(&cli, &kv, optarg) < 0)
			return cli.failed;
	}
	if (!format)
		return disk_usage(&cli, "-f FORMAT must say what the image is");
	if (list)
		return disk_print_options(format) < 0
			       ? disk_usage(&cli, "format '%s' has no options", format)
			       : HV_EXIT_OK;
	if (argc - optind != 1 || !kv.n)
		return disk_usage(&cli, "-o KEY=VALUE and one image are needed");
	r = disk_open(&cli, &b, argv[optind], format, 0, NULL, &err);
	if (r == 0)
		r = blk_amend(b, kv.kv, kv.n, &err);
	blk_close(b);
	return r < 0 ? disk_fail(&cli, &err) : disk_done(&cli, argv[optind], "Image amended.");
}
