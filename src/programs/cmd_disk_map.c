/* cmd_disk_map.c - hv disk map: which parts are data, and where they lie. */
#include "programs/disk_cli.h"
#include "programs/hv.h"

#include <errno.h>
#include <string.h>

static void print_help(void)
{
	printf("Usage: hv disk map [-f FORMAT] [OPTION]... FILE\n\n"
	       "Lists the data of an image and of those below it: where in the disk, how much,\n"
	       "where in which file.  JSON also tells what reads as zeroes (depth 0 is this "
	       "image,\n"
	       "1 the one below, ...).\n\n"
	       "  -f FORMAT           the format; without it the content tells\n"
	       "  --start-offset N    begin here\n"
	       "  --max-length N      this far\n"
	       "  --output HOW        human or json\n" DISK_COMMON_HELP);
}

/* Runs that differ in nothing and lie side by side are one line. */
struct run {
	uint64_t off;
	struct blk_map m;
};

static bool joins(const struct run *a, const struct run *b)
{
	return a->m.what == b->m.what && a->m.depth == b->m.depth && a->m.host == b->m.host &&
	       a->m.compressed == b->m.compressed &&
	       (!a->m.host || a->m.host_off + a->m.len == b->m.host_off);
}

static void print_text(const struct run *r)
{
	if (r->m.what != BLK_EXT_DATA)
		return;
	printf("%#-16llx%#-16llx", (unsigned long long)r->off, (unsigned long long)r->m.len);
	if (r->m.host)
		printf("%#-16llx%s\n", (unsigned long long)r->m.host_off, blk_path(r->m.host));
	else
		printf("%-16s-\n", r->m.compressed ? "compressed" : "-");
}

static void print_json(const struct run *r, bool first)
{
	bool data = r->m.what == BLK_EXT_DATA;
	bool present = data || r->m.what == BLK_EXT_ZERO || r->m.host;

	printf("%s{ \"start\": %llu, \"length\": %llu, \"depth\": %u, \"present\": %s, "
	       "\"zero\": %s, \"data\": %s",
	       first ? "[" : ",\n", (unsigned long long)r->off, (unsigned long long)r->m.len,
	       r->m.depth, present ? "true" : "false", data ? "false" : "true",
	       data ? "true" : "false");
	if (r->m.compressed)
		printf(", \"compressed\": true");
	if (r->m.host)
		printf(", \"offset\": %llu", (unsigned long long)r->m.host_off);
	putchar('}');
}

static int map(const struct disk_cli *cli, struct blk *b, uint64_t off, uint64_t end,
	       struct error *err)
{
	struct run last = {0}, now;
	bool first = true;
	int r = 0;

	if (!cli->json)
		printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
	for (; off < end && !r; off += now.m.len) {
		now = (struct run){.off = off, .m.len = end - off};
		r = blk_map(b, off, &now.m);
		if (r < 0)
			return err_errno(err, -r, "cannot map '%s' at byte %llu", blk_path(b),
					 (unsigned long long)off);
		if (last.m.len && joins(&last, &now)) {
			last.m.len += now.m.len;
			continue;
		}
		if (last.m.len && cli->json) {
			print_json(&last, first);
			first = false;
		} else if (last.m.len) {
			print_text(&last);
		}
		last = now;
	}
	if (last.m.len && cli->json)
		print_json(&last, first);
	else if (last.m.len)
		print_text(&last);
	if (cli->json)
		puts(last.m.len ? "]" : "[]");
	return 0;
}

enum { OPT_START = DISK_OPT_OWN, OPT_MAX };

static const struct option long_options[] = {DISK_COMMON_OPTIONS,
					     {"format", required_argument, NULL, 'f'},
					     {"start-offset", required_argument, NULL, OPT_START},
					     {"max-length", required_argument, NULL, OPT_MAX},
					     {"backing-chain", no_argument, NULL, 0},
					     {0}};

int disk_main_map(int argc, char **argv)
{
	uint64_t start = 0, max = UINT64_MAX;
	struct error err = {""};
	struct disk_cli cli;
	const char *format = NULL;
	struct blk *b = NULL;
	int c, r;

	disk_cli_init(&cli, "map");
	while ((c = getopt_long(argc, argv, DISK_COMMON_LETTERS "f:s:l:", long_options, NULL)) !=
	       -1) {
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'h') {
			print_help();
			return HV_EXIT_OK;
		}
		if (c == 'f')
			format = optarg;
		if ((c == OPT_START || c == 's') && blk_parse_size(optarg, &start) < 0)
			return disk_usage(&cli, "--start-offset: '%s' is not a size", optarg);
		if ((c == OPT_MAX || c == 'l') && blk_parse_size(optarg, &max) < 0)
			return disk_usage(&cli, "--max-length: '%s' is not a size", optarg);
	}
	if (argc - optind != 1)
		return disk_usage(&cli, "name one image");
	r = disk_open(&cli, &b, argv[optind], format, BLK_READONLY, NULL, &err);
	if (!r && start > blk_size(b))
		r = err_set(&err, EINVAL, "'%s' has only %llu bytes", argv[optind],
			    (unsigned long long)blk_size(b));
	if (!r)
		r = map(&cli, b, start, start + MIN(max, blk_size(b) - start), &err);
	blk_close(b);
	return r < 0 ? disk_fail(&cli, &err) : HV_EXIT_OK;
}
