/* cmd_disk_snapshot.c - hv disk snapshot: the snapshots inside an image. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char help[] =
	"Usage: hv disk snapshot [-f FORMAT] [-l | -c NAME | -a NAME | -d NAME] FILE\n\n"
	"Lists, makes, goes back to, and deletes the snapshots an image holds.\n\n"
	"  -l                  list them (this is what happens without a letter)\n"
	"  -c NAME             create one of what the disk holds now\n"
	"  -a NAME             apply: the disk becomes what it was then; later changes are lost\n"
	"  -d NAME             delete one; NAME may also be its ID\n"
	"  -f FORMAT           the image's format (qcow2)\n" DISK_COMMON_HELP;

static void print_one(const struct blk_snapshot *s)
{
	time_t t = (time_t)s->date_s;
	char when[32] = "", size[32];
	struct tm tm;

	if (localtime_r(&t, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
	printf("%-9s %-20s %9s %19s %02llu:%02llu:%02llu.%03llu\n", s->id, s->name,
	       size_text(s->vm_state_size, size, sizeof(size)), when,
	       (unsigned long long)(s->vm_clock_ns / 3600000000000),
	       (unsigned long long)(s->vm_clock_ns / 60000000000 % 60),
	       (unsigned long long)(s->vm_clock_ns / 1000000000 % 60),
	       (unsigned long long)(s->vm_clock_ns / 1000000 % 1000));
}

static void print_json(const struct blk_snapshot *list, unsigned n)
{
	struct json j = {.f = stdout};

	json_begin(&j, NULL, true);
	for (unsigned i = 0; i < n; i++) {
		json_begin(&j, NULL, false);
		json_text(&j, "id", list[i].id);
		json_text(&j, "name", list[i].name);
		json_number(&j, "vm-state-size", list[i].vm_state_size);
		json_number(&j, "date-sec", list[i].date_s);
		json_number(&j, "date-nsec", list[i].date_ns);
		json_number(&j, "vm-clock-nsec", list[i].vm_clock_ns);
		json_number(&j, "disk-size", list[i].disk_size);
		json_end(&j);
	}
	json_end(&j);
}

static int list(const struct disk_cli *cli, struct blk *b, struct error *err)
{
	struct blk_snapshot *all = NULL;
	unsigned n = 0;
	int r = blk_snapshot_list(b, &all, &n, err);

	if (r < 0)
		return r;
	if (cli->json) {
		print_json(all, n);
	} else if (n) {
		printf("Snapshot list:\n%-9s %-20s %9s %19s %12s\n", "ID", "TAG", "VM SIZE", "DATE",
		       "VM CLOCK");
		for (unsigned i = 0; i < n; i++)
			print_one(&all[i]);
	}
	free(all);
	return 0;
}

static int change(struct blk *b, int what, const char *name, struct error *err)
{
	switch (what) {
	case 'c':
		return blk_snapshot_create(b, name, err);
	case 'a':
		return blk_snapshot_apply(b, name, err);
	default:
		return blk_snapshot_delete(b, name, err);
	}
}

int disk_main_snapshot(int argc, char **argv)
{
	static const struct option options[] = {DISK_COMMON_OPTIONS, {NULL}};
	const char *format = "qcow2", *name = NULL;
	struct disk_cli cli;
	struct error err = {""};
	struct blk *b = NULL;
	int c, r, what = 0;

	disk_cli_init(&cli, "snapshot");
	while ((c = getopt_long(argc, argv, "f:lc:a:d:" DISK_COMMON_LETTERS, options, NULL)) !=
	       -1) {
		if (c == 'h')
			return fputs(help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			format = optarg;
		if (!strchr("lcad", c))
			continue;
		if (what)
			return disk_usage(&cli, "only one of -l, -c, -a, -d at a time");
		what = c;
		name = optarg;
	}
	if (argc - optind != 1)
		return disk_usage(&cli, "one image is needed");
	if (!what)
		what = 'l';
	r = disk_open(&cli, &b, argv[optind], format, what == 'l' ? BLK_READONLY : 0, NULL, &err);
	if (r == 0)
		r = what == 'l' ? list(&cli, b, &err) : change(b, what, name, &err);
	blk_close(b);
	if (r < 0)
		return disk_fail(&cli, &err);
	if (cli.json && what != 'l')
		return disk_done(&cli, argv[optind], "Snapshots changed.");
	return HV_EXIT_OK;
}
