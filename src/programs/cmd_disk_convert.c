/* cmd_disk_convert.c - hv disk convert: copy images into a new one, or an existing one. */
#include "programs/disk_cli.h"
#include "programs/hv.h"

#include "base/clock.h"
#include "disk/convert.h"
#include "disk/journal.h"
#include "disk/manifest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_SOURCES = 64, SPARSE_PRESET = 4096 };

static void print_help(void)
{
	printf("Usage: hv disk convert [-f FORMAT] [-O FORMAT] [-o KEY=VALUE,...] [OPTION]...\n"
	       "                       SOURCE... TARGET\n\n"
	       "Copies an image, of any format and with all it stands on, into a new one.  "
	       "Several\n"
	       "sources are put one behind the other.\n\n"
	       "  -f FORMAT           the sources' format; without it the content tells\n"
	       "  -O FORMAT           the target's (raw)\n"
	       "  -o KEY=VALUE,...    options of the target's format; '-o help' lists them\n"
	       "  -c                  compress\n"
	       "  -B FILE -F FORMAT   the target gets this backing file; only what the source's\n"
	       "                      top layer holds is copied\n"
	       "  -l SNAPSHOT         copy this internal snapshot of the source\n"
	       "  -n                  the target exists and is written over\n"
	       "  --target-is-zero    it reads as zeroes (it is looked at otherwise)\n"
	       "  -S SIZE             runs of zeroes this long take no space (4k); 0: all does\n"
	       "  -m N                threads (one per core)\n"
	       "  -r RATE             at most so many bytes a second\n"
	       "  -C                  let the kernel copy, without looking for zeroes\n"
	       "  -t CACHE            unsafe (nothing is flushed; the way it is without -t), or\n"
	       "                      writeback, none, ...: flushed to the device at the end\n"
	       "  --resume            keep a journal beside the target, and go on where it ends\n"
	       "  --manifest FILE     write the hashes of the content to FILE\n"
	       "  -p                  show progress, rate and time left\n" DISK_COMMON_HELP
	       "\nExit status: 0, or 1 when it failed; then a target that was made is gone.\n");
}

struct convert_cli {
	struct disk_cli cli;
	const char *format, *out_format, *snapshot, *backing, *backing_format, *manifest;
	bool compress, no_create, resume, help_options;
	bool flush;
	struct disk_kv kv;
	struct disk_convert o;
	struct disk_progress progress;
	char secret[1024];

	struct blk *src[MAX_SOURCES], *dst;
	unsigned nr_src;
	const char *target;
	struct blk_made *made;
	char *journal, *key;
	struct disk_manifest *hashes;
	uint64_t size;
	bool going_on; /* the target of an earlier run is there */
};

/* ---- sources ---- */

static int open_sources(struct convert_cli *c, char **path, unsigned n, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++) {
		r = disk_open(&c->cli, &c->src[i], path[i], c->format, BLK_READONLY, c->snapshot,
			      err);
		if (!r) {
			c->nr_src++;
			c->size += blk_size(c->src[i]);
		}
	}
	if (!r && c->size > INT64_MAX)
		r = err_set(err, EFBIG, "a disk cannot be that large");
	return r;
}

/* ---- the journal ---- */

/* What makes it the same work: the sources as they are, and how the target is made. */
static int make_key(struct convert_cli *c, struct error *err)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);
	struct stat st;

	if (!f)
		return err_errno(err, ENOMEM, "journal");
	for (unsigned i = 0; i < c->nr_src; i++) {
		memset(&st, 0, sizeof(st));
		if (stat(blk_path(c->src[i]), &st) < 0)
			st.st_ino = 0;
		fprintf(f, "%s %llu %llu.%llu.%09llu ", blk_path(c->src[i]),
			(unsigned long long)blk_size(c->src[i]), (unsigned long long)st.st_ino,
			(unsigned long long)st.st_mtim.tv_sec,
			(unsigned long long)st.st_mtim.tv_nsec);
	}
	fprintf(f, "-> %s %s", c->target, c->out_format);
	for (unsigned i = 0; i < c->kv.n; i++)
		fprintf(f, " %s=%s", c->kv.kv[i].key, c->kv.kv[i].value);
	fprintf(f, " S%llu c%d B%s", (unsigned long long)c->o.sparse, c->compress,
		c->backing ? c->backing : "");
	if (fclose(f))
		return err_errno(err, ENOMEM, "journal");
	for (char *p = text; *p; p++)
		if (*p == '\n')
			*p = ' ';
	c->key = text;
	return 0;
}

static int prepare_journal(struct convert_cli *c, struct error *err)
{
	uint64_t done;
	int r;

	if (!c->resume)
		return 0;
	if (c->nr_src > 1 || c->manifest)
		return err_set(err, EINVAL, "--resume: not with several sources or a manifest");
	r = make_key(c, err);
	if (!r && asprintf(&c->journal, "%s.hv-convert", c->target) < 0)
		r = err_errno(err, ENOMEM, "journal");
	if (r < 0)
		return r;
	c->o.journal = c->journal;
	c->o.key = c->key;
	c->going_on = disk_journal_load(c->journal, c->key, &done) && !access(c->target, F_OK);
	if (!c->going_on)
		disk_journal_remove(c->journal);
	return 0;
}

/* ---- the target ---- */

static int create_target(struct convert_cli *c, struct error *err)
{
	struct blk_create make = {
		.path = c->target,
		.size = c->size,
		.backing = c->backing,
		.backing_format = c->backing_format,
		.opt = c->kv.kv,
		.nr_opts = c->kv.n,
		.overwrite = true,
		.open = &c->cli.open,
	};
	int n;

	if (c->cli.secret_file) {
		n = disk_read_secret(&c->cli, c->secret, sizeof(c->secret));
		if (n < 0)
			return err_errno(err, -n, "cannot read '%s'", c->cli.secret_file);
		make.secret = c->secret;
		make.secret_len = (size_t)n;
	}
	return blk_create_keep(c->out_format, &make, &c->made, err);
}

static int open_target(struct convert_cli *c, struct error *err)
{
	bool flush = c->flush || c->resume;
	int r = 0;

	if (!c->no_create && !c->going_on)
		r = create_target(c, err);
	if (!r)
		r = disk_open(&c->cli, &c->dst, c->target, c->out_format, flush ? 0 : BLK_NO_FLUSH,
			      NULL, err);
	if (r < 0)
		return r;
	c->o.compress = c->compress || blk_packs_in_order(c->dst);
	if (c->resume && c->o.compress && blk_packs_in_order(c->dst))
		return err_set(err, EINVAL, "--resume: not for images that are written in order");
	return 0;
}

/* ---- the work ---- */

static int copy(struct convert_cli *c, struct error *err)
{
	uint64_t at = 0;
	int r = 0;

	if (c->manifest)
		r = disk_manifest_create(&c->hashes, c->size, err);
	c->o.manifest = c->hashes;
	for (unsigned i = 0; i < c->nr_src && !r; i++) {
		struct disk_convert o = c->o;

		o.dst_off = at;
		r = disk_convert(c->src[i], c->dst, &o, err);
		at += blk_size(c->src[i]);
	}
	disk_progress_end(&c->progress);
	if (!r && c->flush)
		r = blk_flush(c->dst) < 0 ? err_set(err, EIO, "cannot flush '%s'", c->target) : 0;
	if (!r && c->hashes)
		r = disk_manifest_save(c->hashes, c->manifest, err);
	return r;
}

static void report(const struct convert_cli *c)
{
	struct json j = {.f = stdout};

	if (!c->cli.json)
		return;
	json_begin(&j, NULL, false);
	json_text(&j, "target", c->target);
	json_text(&j, "format", c->out_format);
	json_number(&j, "virtual-size", c->size);
	json_number(&j, "actual-size", disk_file_usage(c->target));
	json_real(&j, "seconds", (double)(clock_mono_ns() - c->progress.start_ns) / 1e9);
	json_end(&j);
}

static int close_all(struct convert_cli *c, int r)
{
	bool keep = !r || c->resume; /* half a target is of use with its journal only */

	for (unsigned i = 0; i < c->nr_src; i++)
		blk_close(c->src[i]);
	blk_close(c->dst);
	blk_made_end(c->made, keep);
	disk_manifest_destroy(c->hashes);
	free(c->journal);
	free(c->key);
	return r;
}

static int run(struct convert_cli *c, char **path, unsigned n)
{
	struct error err = {""};
	int r;

	c->target = path[n - 1];
	disk_job_init(&c->cli, &c->o.job, &c->progress);
	r = open_sources(c, path, n - 1, &err);
	if (!r && n > 2 && c->compress)
		r = err_set(&err, EINVAL, "-c: only a single source is compressed");
	if (!r)
		r = prepare_journal(c, &err);
	if (!r)
		r = open_target(c, &err);
	if (!r)
		r = copy(c, &err);
	if (close_all(c, r) < 0)
		return disk_fail(&c->cli, &err);
	report(c);
	return HV_EXIT_OK;
}

/* ---- options ---- */

enum { OPT_TARGET_IS_ZERO = DISK_OPT_OWN, OPT_RESUME, OPT_MANIFEST };

static const struct option long_options[] = {
	DISK_COMMON_OPTIONS,
	{"target-is-zero", no_argument, NULL, OPT_TARGET_IS_ZERO},
	{"resume", no_argument, NULL, OPT_RESUME},
	{"manifest", required_argument, NULL, OPT_MANIFEST},
	{"compress", no_argument, NULL, 'c'},
	{"progress", no_argument, NULL, 'p'},
	{0}};

static int parse_cache(struct convert_cli *c, const char *name, bool target)
{
	static const char *const names[] = {"none", "writeback", "unsafe", "directsync",
					    "writethrough"};

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (!strcmp(name, names[i])) {
			if (target)
				c->flush = i != 2;
			return 0;
		}
	}
	disk_usage(&c->cli, "-%c: '%s' is no cache mode", target ? 't' : 'T', name);
	return -EINVAL;
}

static int parse_bytes(struct convert_cli *c, int opt, uint64_t *value)
{
	if (!blk_parse_size(optarg, value))
		return 0;
	disk_usage(&c->cli, "-%c: '%s' is not a size", opt, optarg);
	return -EINVAL;
}

static int parse_options(struct convert_cli *c, char *text)
{
	c->help_options |= !strcmp(text, "help");
	return c->help_options ? 0 : disk_parse_kv(&c->cli, &c->kv, text);
}

static int parse(struct convert_cli *c, int opt)
{
	switch (opt) {
	case 'f':
		c->format = optarg;
		break;
	case 'O':
		c->out_format = optarg;
		break;
	case 'o':
		return parse_options(c, optarg);
	case 'c':
		c->compress = true;
		break;
	case 'B':
		c->backing = optarg;
		break;
	case 'F':
		c->backing_format = optarg;
		break;
	case 'l':
		c->snapshot = disk_snapshot_name(optarg);
		break;
	case 'n':
		c->no_create = true;
		break;
	case 'S':
		return parse_bytes(c, opt, &c->o.sparse);
	case 'r':
		return parse_bytes(c, opt, &c->o.job.rate);
	case 'm':
		return disk_parse_threads(&c->cli, optarg, &c->o.job);
	case 'C':
		c->o.copy_range = true;
		break;
	case 'p':
		c->cli.progress = true;
		break;
	case 't':
	case 'T':
		return parse_cache(c, optarg, opt == 't');
	case OPT_TARGET_IS_ZERO:
		c->o.target_is_zero = true;
		break;
	case OPT_RESUME:
		c->resume = true;
		break;
	case OPT_MANIFEST:
		c->manifest = optarg;
		break;
	}
	return 0;
}

/* Options that are part of the image's making, not of its format. */
static int settle(struct convert_cli *c)
{
	const char *key = disk_take_kv(&c->kv, "backing_file");

	c->backing = c->backing ? c->backing : key;
	key = disk_take_kv(&c->kv, "backing_fmt");
	c->backing_format = c->backing_format ? c->backing_format : key;
	c->o.top_only = c->backing;
	if (c->o.target_is_zero && !c->no_create)
		return disk_usage(&c->cli, "--target-is-zero goes with -n");
	if (c->o.sparse && (c->o.sparse % 512 || (c->o.sparse & (c->o.sparse - 1))))
		return disk_usage(&c->cli, "-S: a power of two from 512 on, or 0");
	return 0;
}

static int convert_main(struct convert_cli *c, int argc, char **argv)
{
	int opt, r = 0;

	disk_cli_init(&c->cli, "convert");
	c->out_format = "raw";
	c->o.sparse = SPARSE_PRESET;
	while (r >= 0 &&
	       (opt = getopt_long(argc, argv, DISK_COMMON_LETTERS "f:O:o:cB:F:l:nS:r:m:CpWt:T:",
				  long_options, NULL)) != -1) {
		if (opt == 'h') {
			print_help();
			return HV_EXIT_OK;
		}
		r = disk_cli_option(&c->cli, opt);
		if (!r)
			r = parse(c, opt);
	}
	if (r < 0)
		return c->cli.failed;
	if (c->help_options)
		return disk_print_options(c->out_format) < 0
			       ? disk_usage(&c->cli, "images of format '%s' cannot be made",
					    c->out_format)
			       : HV_EXIT_OK;
	if (argc - optind < 2 || argc - optind > MAX_SOURCES)
		return disk_usage(&c->cli, "name a source and a target");
	r = settle(c);
	return r ? r : run(c, argv + optind, (unsigned)(argc - optind));
}

int disk_main_convert(int argc, char **argv)
{
	struct convert_cli *c = calloc(1, sizeof(*c));
	int r = HV_EXIT_FAILED;

	if (c)
		r = convert_main(c, argc, argv);
	free(c);
	return r;
}
