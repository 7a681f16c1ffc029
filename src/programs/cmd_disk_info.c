/* cmd_disk_info.c - hv disk info: what an image is, and what it tells of itself. */
#include "programs/disk_cli.h"
#include "programs/hv.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static void print_help(void)
{
	printf("Usage: hv disk info [-f FORMAT] [--backing-chain] [OPTION]... FILE\n\n"
	       "Tells what an image is.  Files it names are looked at only with "
	       "--backing-chain.\n\n"
	       "  -f FORMAT           the format; without it the content tells\n"
	       "  --backing-chain     also the images below, down to the last\n"
	       "  --output HOW        human or json\n" DISK_COMMON_HELP);
}

/* ---- what a format tells, as text and as JSON ---- */

struct tree {
	struct blk_sink sink;
	struct json *json; /* NULL: text */
	unsigned depth, index[16];
	bool any;
};

static void head_once(struct tree *t)
{
	if (!t->any && !t->json)
		printf("Format specific information:\n");
	t->any = true;
}

static const char *respell(const char *key, char from, char to, char *buf, size_t cap)
{
	size_t n = 0;

	for (; key[n] && n + 1 < cap; n++)
		buf[n] = key[n] == from ? to : key[n];
	buf[n] = 0;
	return buf;
}

static const char *json_key(const char *key, char *buf, size_t cap)
{
	return key ? respell(key, ' ', '-', buf, cap) : NULL;
}

/* "    key:" with a space or a new line behind. */
static void text_key(struct tree *t, const char *key)
{
	char buf[64];

	head_once(t);
	printf("%*s", (int)(4 * (t->depth + 1)), "");
	if (key)
		printf("%s:", respell(key, '-', ' ', buf, sizeof(buf)));
	else
		printf("[%u]:", t->index[t->depth]++);
}

static void tree_text(struct blk_sink *s, const char *key, const char *value)
{
	struct tree *t = container_of(s, struct tree, sink);
	char buf[64];

	if (t->json) {
		json_text(t->json, json_key(key, buf, sizeof(buf)), value);
		return;
	}
	text_key(t, key);
	printf(" %s\n", value);
}

static void tree_number(struct blk_sink *s, const char *key, uint64_t value)
{
	struct tree *t = container_of(s, struct tree, sink);
	char buf[64];

	if (t->json) {
		json_number(t->json, json_key(key, buf, sizeof(buf)), value);
		return;
	}
	text_key(t, key);
	printf(" %llu\n", (unsigned long long)value);
}

static void tree_flag(struct blk_sink *s, const char *key, bool value)
{
	struct tree *t = container_of(s, struct tree, sink);
	char buf[64];

	if (t->json) {
		json_flag(t->json, json_key(key, buf, sizeof(buf)), value);
		return;
	}
	text_key(t, key);
	printf(" %s\n", value ? "true" : "false");
}

static void tree_begin(struct blk_sink *s, const char *key, bool list)
{
	struct tree *t = container_of(s, struct tree, sink);
	char buf[64];

	if (t->json) {
		json_begin(t->json, json_key(key, buf, sizeof(buf)), list);
		return;
	}
	text_key(t, key);
	putchar('\n');
	if (t->depth + 1 < ARRAY_SIZE(t->index))
		t->index[++t->depth] = 0;
}

static void tree_end(struct blk_sink *s)
{
	struct tree *t = container_of(s, struct tree, sink);

	if (t->json)
		json_end(t->json);
	else if (t->depth)
		t->depth--;
}

static void print_details(struct blk *b, struct json *j)
{
	struct tree t = {.sink = {tree_text, tree_number, tree_flag, tree_begin, tree_end},
			 .json = j};

	if (j) {
		json_begin(j, "format-specific", false);
		json_text(j, "type", blk_info(b)->format);
		json_begin(j, "data", false);
	}
	blk_details(b, &t.sink);
	if (j) {
		json_end(j);
		json_end(j);
	}
}

/* ---- snapshots ---- */

static void text_snapshot(const struct blk_snapshot *s)
{
	char size[32], date[32] = "";
	time_t t = (time_t)s->date_s;
	uint64_t sec = s->vm_clock_ns / 1000000000;
	struct tm tm;

	if (localtime_r(&t, &tm))
		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	printf("%-9s %-17s %7s %19s %02u:%02u:%02u.%03u\n", s->id, s->name,
	       size_text(s->vm_state_size, size, sizeof(size)), date, (unsigned)(sec / 3600),
	       (unsigned)(sec / 60 % 60), (unsigned)(sec % 60),
	       (unsigned)(s->vm_clock_ns / 1000000 % 1000));
}

static void json_snapshot(struct json *j, const struct blk_snapshot *s)
{
	json_begin(j, NULL, false);
	json_text(j, "id", s->id);
	json_text(j, "name", s->name);
	json_number(j, "vm-state-size", s->vm_state_size);
	json_number(j, "date-sec", s->date_s);
	json_number(j, "date-nsec", s->date_ns);
	json_number(j, "vm-clock-sec", s->vm_clock_ns / 1000000000);
	json_number(j, "vm-clock-nsec", s->vm_clock_ns % 1000000000);
	json_end(j);
}

static void print_snapshots(struct blk *b, struct json *j)
{
	struct blk_snapshot *list = NULL;
	unsigned n = 0;

	if (blk_snapshot_list(b, &list, &n, NULL) < 0 || !n)
		return;
	if (j)
		json_begin(j, "snapshots", true);
	else
		printf("Snapshot list:\n%-9s %-17s %7s %19s %12s\n", "ID", "TAG", "VM SIZE", "DATE",
		       "VM CLOCK");
	for (unsigned i = 0; i < n; i++) {
		if (j)
			json_snapshot(j, &list[i]);
		else
			text_snapshot(&list[i]);
	}
	if (j)
		json_end(j);
	free(list);
}

/* ---- one image ---- */

static void print_text(struct blk *b)
{
	const struct blk_info *info = blk_info(b);
	const char *format, *backing = blk_backing_name(b, &format);
	char size[32];

	printf("image: %s\nfile format: %s\n", blk_path(b), info->format);
	printf("virtual size: %s (%llu bytes)\n", size_text(info->size, size, sizeof(size)),
	       (unsigned long long)info->size);
	printf("disk size: %s\n", size_text(disk_file_usage(blk_path(b)), size, sizeof(size)));
	if (info->encrypted)
		printf("encrypted: yes\n");
	if (info->cluster)
		printf("cluster_size: %u\n", info->cluster);
	if (info->dirty)
		printf("cleanly shut down: no\n");
	if (backing)
		printf("backing file: %s\n", backing);
	if (format)
		printf("backing file format: %s\n", format);
	print_snapshots(b, NULL);
	print_details(b, NULL);
}

static void print_json(struct blk *b, struct json *j)
{
	const struct blk_info *info = blk_info(b);
	const char *format, *backing = blk_backing_name(b, &format);

	json_begin(j, NULL, false);
	json_text(j, "filename", blk_path(b));
	json_text(j, "format", info->format);
	json_number(j, "virtual-size", info->size);
	json_number(j, "actual-size", disk_file_usage(blk_path(b)));
	if (info->cluster)
		json_number(j, "cluster-size", info->cluster);
	if (info->encrypted)
		json_flag(j, "encrypted", true);
	json_flag(j, "dirty-flag", info->dirty);
	if (info->corrupt)
		json_flag(j, "corrupt", true);
	if (backing)
		json_text(j, "backing-filename", backing);
	if (blk_backing(b))
		json_text(j, "full-backing-filename", blk_path(blk_backing(b)));
	if (format)
		json_text(j, "backing-filename-format", format);
	print_snapshots(b, j);
	print_details(b, j);
	json_end(j);
}

static void print_chain(const struct disk_cli *cli, struct blk *top, bool chain)
{
	struct json j = {.f = stdout};

	if (cli->json && chain)
		json_begin(&j, NULL, true);
	for (struct blk *b = top; b; b = chain ? blk_backing(b) : NULL) {
		if (cli->json)
			print_json(b, &j);
		else
			print_text(b);
		if (!cli->json && chain && blk_backing(b))
			putchar('\n');
	}
	if (cli->json && chain)
		json_end(&j);
}

enum { OPT_CHAIN = DISK_OPT_OWN };

static const struct option long_options[] = {DISK_COMMON_OPTIONS,
					     {"format", required_argument, NULL, 'f'},
					     {"backing-chain", no_argument, NULL, OPT_CHAIN},
					     {0}};

int disk_main_info(int argc, char **argv)
{
	struct error err = {""};
	struct disk_cli cli;
	const char *format = NULL;
	bool chain = false;
	struct blk *b = NULL;
	int c;

	disk_cli_init(&cli, "info");
	while ((c = getopt_long(argc, argv, DISK_COMMON_LETTERS "f:", long_options, NULL)) != -1) {
		int r = disk_cli_option(&cli, c);

		if (r < 0)
			return cli.failed;
		if (c == 'h') {
			print_help();
			return HV_EXIT_OK;
		}
		if (c == 'f')
			format = optarg;
		else if (c == OPT_CHAIN)
			chain = true;
	}
	if (argc - optind != 1)
		return disk_usage(&cli, "name one image");
	if (disk_open(&cli, &b, argv[optind], format,
		      BLK_READONLY | (chain ? 0 : BLK_NO_BACKING | BLK_CHECKING), NULL, &err) < 0)
		return disk_fail(&cli, &err);
	print_chain(&cli, b, chain);
	blk_close(b);
	return HV_EXIT_OK;
}
