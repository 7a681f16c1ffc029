/* cmd_disk_resize.c - hv disk resize. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: hv disk resize -f FORMAT [--shrink] FILE [+|-]SIZE\n\n"
	"Makes the disk in an image larger or smaller, to SIZE or by SIZE (10G, +512M, -1T).\n"
	"What is added reads as zeroes.  The file systems in it stay as they are: grow them\n"
	"afterwards, shrink them before.\n\n"
	"  -f FORMAT           the image's format; needed\n"
	"  --shrink            allow to cut off the end of the disk, with what it "
	"holds\n" DISK_COMMON_HELP;

int disk_parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "bkmgtpe";
	char *end;
	double v;
	const char *u;

	if (!strchr("0123456789.", *text))
		return -EINVAL;
	v = strtod(text, &end);
	u = *end ? strchr(units, *end | 0x20) : units;
	if (end == text || !u || (*end && end[1]) || !(v >= 0))
		return -EINVAL;
	v = ldexp(v, 10 * (int)(u - units));
	if (v >= 0x1p63)
		return -ERANGE;
	*bytes = (uint64_t)v;
	return 0;
}

int disk_done(const struct disk_cli *cli, const char *image, const char *text)
{
	struct json j = {.f = stdout};

	if (cli->json) {
		json_begin(&j, NULL, false);
		json_text(&j, "command", cli->command);
		json_text(&j, "image", image);
		json_text(&j, "result", text);
		json_end(&j);
	} else if (!cli->quiet) {
		puts(text);
	}
	return HV_EXIT_OK;
}

/* What "+1G" comes to. */
static int new_size(const struct disk_cli *cli, const char *text, uint64_t old, uint64_t *size)
{
	char sign = *text == '+' || *text == '-' ? *text : 0;
	uint64_t by;

	if (disk_parse_size(text + (sign != 0), &by) < 0)
		return disk_usage(cli, "'%s' is not a size (10G, +512M, -1T)", text), -EINVAL;
	if (sign == '-' && by >= old)
		return disk_usage(cli, "nothing would be left"), -EINVAL;
	if (sign == '+' && by > INT64_MAX - old)
		return disk_usage(cli, "'%s' is too large", text), -EINVAL;
	*size = sign == '+' ? old + by : sign == '-' ? old - by : by;
	*size = ALIGN_UP(*size, 512);
	if (!*size)
		return disk_usage(cli, "a disk cannot be empty"), -EINVAL;
	return 0;
}

static int resize(const struct disk_cli *cli, struct blk *b, const char *text, bool shrink,
		  struct error *err)
{
	uint64_t size, old = blk_size(b);
	int r = new_size(cli, text, old, &size);

	if (r < 0)
		return 1;
	if (size < old && !shrink)
		return err_set(err, EINVAL,
			       "'%s' has %llu bytes: --shrink allows to cut off its end, with what "
			       "it holds",
			       blk_path(b), (unsigned long long)old);
	r = blk_resize(b, size);
	if (r == 0)
		r = blk_flush(b);
	if (r == -ENOTSUP)
		return err_set(err, ENOTSUP, "'%s': format %s cannot be resized; convert it",
			       blk_path(b), blk_info(b)->format);
	return r < 0 ? err_errno(err, -r, "cannot resize '%s'", blk_path(b)) : 0;
}

int disk_main_resize(int argc, char **argv)
{
	enum { OPT_SHRINK = DISK_OPT_OWN, OPT_PREALLOCATION };
	static const struct option options[] = {
		DISK_COMMON_OPTIONS,
		{"shrink", no_argument, NULL, OPT_SHRINK},
		{NULL},
	};
	const char *format = NULL;
	struct disk_cli cli;
	struct error err = {""};
	struct blk *b = NULL;
	bool shrink = false;
	int c, r;

	disk_cli_init(&cli, "resize");
	/* "-1G" is a size, not an option: POSIX order, and sizes come last. */
	while ((c = getopt_long(argc, argv, "+f:" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			format = optarg;
		else if (c == OPT_SHRINK)
			shrink = true;
	}
	if (argc - optind != 2)
		return disk_usage(&cli, "one image and its new size are needed");
	r = disk_open(&cli, &b, argv[optind], format, 0, NULL, &err);
	if (r == 0)
		r = resize(&cli, b, argv[optind + 1], shrink, &err);
	blk_close(b);
	if (r > 0)
		return cli.failed;
	return r < 0 ? disk_fail(&cli, &err)
		     : disk_done(&cli, argv[optind], "The image has its new size.");
}
