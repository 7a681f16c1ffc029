/* cmd_disk_dd.c - hv disk dd: copy a part of one image into a new one. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"
#include "disk/convert.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: hv disk dd [-f FORMAT] [-O FORMAT] [bs=SIZE] [count=N] [skip=N] if=FILE of=FILE\n\n"
	"Copies a part of a disk into a new image.\n\n"
	"  if=FILE             the image to read\n"
	"  of=FILE             the image to make\n"
	"  bs=SIZE             size of a block (512)\n"
	"  count=N             copy only N blocks\n"
	"  skip=N              leave out the first N blocks\n"
	"  -f FORMAT           the source's format\n"
	"  -O FORMAT           the new image's format (raw)\n" DISK_COMMON_HELP;

struct dd {
	const char *in, *out;
	uint64_t bs, count, skip;
	bool has_count;
};

static bool take(const char *arg, const char *key, const char **value)
{
	size_t n = strlen(key);

	if (strncmp(arg, key, n))
		return false;
	*value = arg + n;
	return true;
}

static int parse_operand(const struct disk_cli *cli, struct dd *d, const char *arg)
{
	const char *value;

	if (take(arg, "if=", &d->in) || take(arg, "of=", &d->out))
		return 0;
	if (take(arg, "bs=", &value) && disk_parse_size(value, &d->bs) == 0 && d->bs)
		return 0;
	if (take(arg, "skip=", &value) && disk_parse_size(value, &d->skip) == 0)
		return 0;
	if (take(arg, "count=", &value) && disk_parse_size(value, &d->count) == 0) {
		d->has_count = true;
		return 0;
	}
	disk_usage(cli, "'%s' is not understood", arg);
	return -EINVAL;
}

/* Which bytes: blocks that the disk has. */
static int find_range(const struct dd *d, uint64_t size, uint64_t *off, uint64_t *len,
		      struct error *err)
{
	*off = d->skip > size / d->bs ? size : d->skip * d->bs;
	*len = size - *off;
	if (d->has_count && d->count <= *len / d->bs)
		*len = d->count * d->bs;
	if (!*len)
		return err_set(err, EINVAL, "'%s' has nothing there: it holds %llu bytes", d->in,
			       (unsigned long long)size);
	return 0;
}

static int copy(const struct disk_cli *cli, const struct dd *d, struct blk *src,
		const char *out_format, const struct disk_job *job, struct error *err)
{
	struct disk_convert conv = {.job = *job, .sparse = 4096, .target_is_zero = true};
	struct blk_create create = {.path = d->out, .overwrite = true};
	struct blk *dst = NULL;
	int r = find_range(d, blk_size(src), &conv.src_off, &conv.len, err);

	create.size = ALIGN_UP(conv.len, 512);
	if (r == 0)
		r = blk_create(out_format, &create, err);
	if (r == 0)
		r = disk_open(cli, &dst, d->out, out_format, 0, NULL, err);
	if (r == 0)
		r = disk_convert(src, dst, &conv, err);
	if (r == 0) {
		r = blk_flush(dst);
		if (r < 0)
			err_errno(err, -r, "cannot write '%s'", d->out);
	}
	blk_close(dst);
	return r;
}

int disk_main_dd(int argc, char **argv)
{
	static const struct option options[] = {DISK_COMMON_OPTIONS, {NULL}};
	const char *format = NULL, *out_format = "raw";
	struct dd d = {.bs = 512};
	struct disk_progress progress;
	struct disk_job job = {0};
	struct error err = {""};
	struct blk *src = NULL;
	struct disk_cli cli;
	int c, r;

	disk_cli_init(&cli, "dd");
	while ((c = getopt_long(argc, argv, "f:O:" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			format = optarg;
		else if (c == 'O')
			out_format = optarg;
	}
	for (int i = optind; i < argc; i++)
		if (parse_operand(&cli, &d, argv[i]) < 0)
			return cli.failed;
	if (!d.in || !d.out)
		return disk_usage(&cli, "if=FILE and of=FILE are needed");
	disk_job_init(&cli, &job, &progress);
	r = disk_open(&cli, &src, d.in, format, BLK_READONLY, NULL, &err);
	if (r == 0)
		r = copy(&cli, &d, src, out_format, &job, &err);
	disk_progress_end(&progress);
	blk_close(src);
	return r < 0 ? disk_fail(&cli, &err) : disk_done(&cli, d.out, "Copied.");
}
