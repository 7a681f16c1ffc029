/* cmd_disk_measure.c - hv disk measure: how large would the file be? */
#include "programs/disk_cli.h"
#include "programs/hv.h"

#include "disk/cursor.h"

#include <errno.h>
#include <string.h>

static void print_help(void)
{
	printf("Usage: hv disk measure [-O FORMAT] [-o KEY=VALUE,...] --size SIZE\n"
	       "       hv disk measure [-O FORMAT] [-o KEY=VALUE,...] [-f FORMAT] FILE\n\n"
	       "Tells how many bytes an image would take: for the data there are, and when all of\n"
	       "it is written.\n\n"
	       "  -O FORMAT           the format of the image to make (raw)\n"
	       "  -o KEY=VALUE,...    its options\n"
	       "  --size SIZE         an empty disk of this size\n"
	       "  -f FORMAT           FILE's format; without it the content tells\n"
	       "  -l SNAPSHOT         FILE's internal snapshot\n"
	       "  --output HOW        human or json\n" DISK_COMMON_HELP);
}

struct measure {
	struct disk_cli cli;
	const char *format, *out_format, *snapshot, *size;
	struct disk_kv kv;
	struct blk_measure m;
};

static int measure_image(struct measure *o, const char *path, struct error *err)
{
	uint64_t cluster = 64 * KiB;
	struct disk_cursor c;
	struct blk *b = NULL;
	int r = disk_open(&o->cli, &b, path, o->format, BLK_READONLY, o->snapshot, err);

	for (unsigned i = 0; i < o->kv.n; i++)
		if (!strcmp(o->kv.kv[i].key, "cluster_size"))
			r = r ? r : blk_parse_size(o->kv.kv[i].value, &cluster);
	if (!r && (!cluster || (cluster & (cluster - 1))))
		r = err_set(err, EINVAL, "cluster_size is not a power of two");
	if (!r) {
		c = (struct disk_cursor){
			.blk = b, .end = blk_size(b), .chunk = MAX(cluster, MiB), .round = cluster};
		o->m.size = blk_size(b);
		r = disk_cursor_count(&c, &o->m.data);
		if (r < 0)
			err_errno(err, -r, "cannot map '%s'", path);
	}
	blk_close(b);
	return r;
}

static void print(const struct measure *o)
{
	struct json j = {.f = stdout};

	if (!o->cli.json) {
		printf("required size: %llu\nfully allocated size: %llu\n",
		       (unsigned long long)o->m.required, (unsigned long long)o->m.fully_allocated);
		return;
	}
	json_begin(&j, NULL, false);
	json_number(&j, "required", o->m.required);
	json_number(&j, "fully-allocated", o->m.fully_allocated);
	json_end(&j);
}

static int run(struct measure *o, const char *path)
{
	struct error err = {""};
	const char *size = disk_take_kv(&o->kv, "size");
	int r = 0;

	size = o->size ? o->size : size;
	if (!size == !path)
		return disk_usage(&o->cli, "name an image, or a --size");
	if (size && blk_parse_size(size, &o->m.size) < 0)
		return disk_usage(&o->cli, "--size: '%s' is not a size", size);
	if (path)
		r = measure_image(o, path, &err);
	if (!r)
		r = blk_measure(o->out_format, o->kv.kv, o->kv.n, &o->m, &err);
	if (r < 0)
		return disk_fail(&o->cli, &err);
	print(o);
	return HV_EXIT_OK;
}

static const struct option long_options[] = {
	DISK_COMMON_OPTIONS, {"size", required_argument, NULL, DISK_OPT_OWN}, {0}};

int disk_main_measure(int argc, char **argv)
{
	struct measure o = {.out_format = "raw"};
	int c;

	disk_cli_init(&o.cli, "measure");
	while ((c = getopt_long(argc, argv, DISK_COMMON_LETTERS "f:O:o:l:s:", long_options,
				NULL)) != -1) {
		if (c == 'h') {
			print_help();
			return HV_EXIT_OK;
		}
		if (disk_cli_option(&o.cli, c) < 0)
			return o.cli.failed;
		if (c == 'f')
			o.format = optarg;
		else if (c == 'O')
			o.out_format = optarg;
		else if (c == 'l')
			o.snapshot = disk_snapshot_name(optarg);
		else if (c == DISK_OPT_OWN || c == 's')
			o.size = optarg;
		else if (c == 'o' && disk_parse_kv(&o.cli, &o.kv, optarg) < 0)
			return o.cli.failed;
	}
	if (argc - optind > 1)
		return disk_usage(&o.cli, "name one image");
	return run(&o, optind < argc ? argv[optind] : NULL);
}
