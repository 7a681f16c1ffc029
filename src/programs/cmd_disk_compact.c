/* cmd_disk_compact.c - hv disk compact: give back the space of clusters that hold only zeroes. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"
#include "disk/zero.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: hv disk compact -f FORMAT [-p] FILE\n\n"
	"Looks for parts of an image that are stored and hold only zeroes, and gives their space\n"
	"back.  What the disk shows does not change.  (To rewrite an image from end to end, "
	"convert\n"
	"it.)  In the guest, `fstrim` or a fill with zeroes first makes more of it.\n\n"
	"  -f FORMAT           the image's format; needed\n"
	"  -p                  show progress\n" DISK_COMMON_HELP;

enum { LEAST_UNIT = 64 * KiB, MOST_UNIT = 2 * MiB };

struct compact {
	struct blk *b;
	struct disk_team team; /* for progress and cancelling */
	uint8_t *buf;
	uint64_t unit, freed;
	struct error *err;
};

static int failed(const struct compact *k, int r, const char *what)
{
	return err_errno(k->err, -r, "cannot %s '%s'", what, blk_path(k->b));
}

static int compact_unit(struct compact *k, uint64_t off, uint64_t len)
{
	int r = blk_read(k->b, k->buf, len, off);

	if (r < 0)
		return failed(k, r, "read");
	if (!disk_is_zero(k->buf, len))
		return 0;
	r = blk_write_zeroes(k->b, off, len, true);
	if (r < 0)
		return failed(k, r, "write");
	k->freed += len;
	return 0;
}

/* Data of the image itself; what its backing file holds is not ours to free. */
static int compact_run(struct compact *k, uint64_t off, const struct blk_map *m)
{
	uint64_t end = off + m->len;
	int r = 0;

	if (m->what != BLK_EXT_DATA || m->depth)
		return 0;
	for (off = ALIGN_UP(off, k->unit); off < end && r == 0; off += k->unit) {
		uint64_t len = MIN(k->unit, blk_size(k->b) - off);

		if (off + len <= end)
			r = compact_unit(k, off, len);
	}
	return r;
}

static int compact_all(struct compact *k)
{
	uint64_t size = blk_size(k->b);
	int r = 0;

	for (uint64_t off = 0; off < size && r == 0;) {
		struct blk_map m = {.len = MIN(size - off, 64 * MiB)};

		r = blk_map(k->b, off, &m);
		if (r < 0)
			return failed(k, r, "read the map of");
		r = compact_run(k, off, &m);
		off += m.len;
		disk_team_advance(&k->team, m.len);
		if (r == 0 && disk_team_stopped(&k->team))
			r = err_set(k->err, ECANCELED, "cancelled");
	}
	if (r == 0) {
		r = blk_flush(k->b);
		if (r < 0)
			failed(k, r, "flush");
	}
	return r;
}

static int compact(struct blk *b, const struct disk_job *job, uint64_t *freed, struct error *err)
{
	struct compact k = {.b = b, .err = err, .unit = LEAST_UNIT};
	int r;

	while (k.unit < blk_info(b)->cluster && k.unit < MOST_UNIT)
		k.unit *= 2;
	k.buf = malloc(k.unit);
	if (!k.buf)
		return err_errno(err, ENOMEM, "compact");
	disk_team_init(&k.team, job, blk_size(b));
	r = compact_all(&k);
	disk_team_fini(&k.team);
	free(k.buf);
	*freed = k.freed;
	return r;
}

static int report(const struct disk_cli *cli, const char *path, uint64_t before, uint64_t freed)
{
	struct json j = {.f = stdout};
	uint64_t after = disk_file_usage(path);
	char a[32], b[32], c[32];

	if (cli->json) {
		json_begin(&j, NULL, false);
		json_text(&j, "command", "compact");
		json_text(&j, "image", path);
		json_number(&j, "zeroes-freed", freed);
		json_number(&j, "space-before", before);
		json_number(&j, "space-after", after);
		json_end(&j);
	} else if (!cli->quiet) {
		printf("%s of zeroes freed; the image takes %s, before %s\n",
		       size_text(freed, a, sizeof(a)), size_text(after, b, sizeof(b)),
		       size_text(before, c, sizeof(c)));
	}
	return HV_EXIT_OK;
}

int disk_main_compact(int argc, char **argv)
{
	static const struct option options[] = {DISK_COMMON_OPTIONS, {NULL}};
	uint64_t before, freed = 0;
	const char *format = NULL;
	struct disk_progress progress;
	struct disk_job job = {0};
	struct error err = {""};
	struct blk *b = NULL;
	struct disk_cli cli;
	int c, r;

	disk_cli_init(&cli, "compact");
	while ((c = getopt_long(argc, argv, "f:p" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			format = optarg;
		else if (c == 'p')
			cli.progress = true;
	}
	if (argc - optind != 1)
		return disk_usage(&cli, "one image is needed");
	disk_job_init(&cli, &job, &progress);
	before = disk_file_usage(argv[optind]);
	r = disk_open(&cli, &b, argv[optind], format, 0, NULL, &err);
	if (r == 0)
		r = compact(b, &job, &freed, &err);
	disk_progress_end(&progress);
	blk_close(b);
	return r < 0 ? disk_fail(&cli, &err) : report(&cli, argv[optind], before, freed);
}
