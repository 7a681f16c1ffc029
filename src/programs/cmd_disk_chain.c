/* cmd_disk_chain.c - hv disk commit and rebase: images over images. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"
#include "disk/chain.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char commit_help[] =
	"Usage: hv disk commit -f FORMAT [-b BASE] [-d] [-p] FILE\n\n"
	"Writes what an image holds into its backing file, or into BASE further down its chain,\n"
	"which then holds what FILE showed.  FILE is emptied afterwards.\n\n"
	"  -f FORMAT           the image's format; needed\n"
	"  -b BASE             the file of the chain that takes everything above it; without it\n"
	"                      the first below FILE\n"
	"  -d                  leave FILE as it is (it is no longer of use over a changed base)\n"
	"  -p                  show progress\n" DISK_COMMON_HELP;

static const char rebase_help[] =
	"Usage: hv disk rebase -f FORMAT [-u] [-p] -b BACKING [-F FORMAT] FILE\n\n"
	"Puts an image over another backing file.  What the two show differently is copied into "
	"the\n"
	"image first, so that it still shows what it did.  -b '' puts it over nothing.\n\n"
	"  -f FORMAT           the image's format; needed\n"
	"  -b BACKING          the new backing file, as it is to stand in the image\n"
	"  -F FORMAT           its format\n"
	"  -u                  unsafe: only write the name; for a backing file that was moved\n"
	"  -p                  show progress\n" DISK_COMMON_HELP;

/* --- commit -------------------------------------------------------------------------------------
 */

/* The files from FILE down to the base, each with its format. */
struct chain {
	char *path[DISK_CHAIN_MAX], *format[DISK_CHAIN_MAX];
	unsigned n;
};

static void chain_free(struct chain *ch)
{
	for (unsigned i = 0; i < ch->n; i++) {
		free(ch->path[i]);
		free(ch->format[i]);
	}
}

static bool same_file(const char *a, const char *b)
{
	struct stat sa, sb;

	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
	       sa.st_ino == sb.st_ino;
}

/* Looks at the chain once; it is closed again, because its layers are then opened one by one. */
static int chain_read(const struct disk_cli *cli, struct chain *ch, const char *file,
		      const char *format, const char *base, struct error *err)
{
	struct blk *top = NULL;
	bool found = false;
	int r = disk_open(cli, &top, file, format, BLK_READONLY, NULL, err);

	if (r < 0)
		return r;
	for (struct blk *b = top; b && ch->n < DISK_CHAIN_MAX && !found; b = blk_backing(b)) {
		ch->path[ch->n] = strdup(blk_path(b));
		ch->format[ch->n] = strdup(blk_info(b)->format);
		if (ch->n++ > 0)
			found = !base || same_file(base, blk_path(b));
	}
	blk_close(top);
	if (found)
		return 0;
	if (ch->n < 2)
		return err_set(err, EINVAL, "'%s' has no backing file", file);
	return err_set(err, EINVAL, "'%s' is not in the chain of '%s'", base, file);
}

static int open_layer(const struct disk_cli *cli, const struct chain *ch, unsigned i, bool write,
		      struct blk **out, struct error *err)
{
	unsigned flags = i + 1 < ch->n ? BLK_NO_BACKING : 0;

	return disk_open(cli, out, ch->path[i], ch->format[i], flags | (write ? 0 : BLK_READONLY),
			 NULL, err);
}

static int empty(struct blk *b, struct error *err)
{
	int r = blk_make_empty(b, err);

	if (r == -ENOTSUP) /* then it goes on holding the same as its backing file */
		return 0;
	return r == 0 ? blk_flush(b) : r;
}

/* The first layer fits the base as it is now.  The base is closed: what it is called by may change
 * when it is. */
static int fit(const struct chain *ch, struct blk *top, struct error *err)
{
	char base[PATH_MAX];

	if (!blk_ties_backing(top))
		return 0;
	if (!realpath(ch->path[1], base))
		return err_errno(err, errno, "'%s'", ch->path[1]);
	return blk_change_backing(top, base, ch->format[1], err);
}

static int commit(const struct disk_cli *cli, const struct chain *ch, bool keep,
		  const struct disk_job *job, struct error *err)
{
	struct blk *layer[DISK_CHAIN_MAX] = {NULL}, *base = NULL;
	unsigned n = ch->n - 1;
	int r = open_layer(cli, ch, n, true, &base, err);

	for (unsigned i = 0; i < n && r == 0; i++)
		r = open_layer(cli, ch, i, i == 0 && !keep, &layer[i], err);
	if (r == 0)
		r = disk_commit(layer, n, base, job, err);
	/* The layers between would show it through as before; only the first is emptied. */
	if (r == 0 && !keep)
		r = empty(layer[0], err);
	blk_close(base);
	if (r == 0 && !keep)
		r = fit(ch, layer[0], err);
	for (unsigned i = 0; i < n; i++)
		blk_close(layer[i]);
	return r;
}

int disk_main_commit(int argc, char **argv)
{
	static const struct option options[] = {DISK_COMMON_OPTIONS, {NULL}};
	const char *format = NULL, *base = NULL;
	struct chain ch = {.n = 0};
	struct disk_progress progress;
	struct disk_job job = {0};
	struct error err = {""};
	struct disk_cli cli;
	bool keep = false;
	int c, r;

	disk_cli_init(&cli, "commit");
	while ((c = getopt_long(argc, argv, "f:b:dp" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(commit_help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			format = optarg;
		else if (c == 'b')
			base = optarg;
		else if (c == 'd')
			keep = true;
		else if (c == 'p')
			cli.progress = true;
	}
	if (argc - optind != 1)
		return disk_usage(&cli, "one image is needed");
	if (!format)
		return disk_usage(&cli, "-f FORMAT must say what '%s' is", argv[optind]);
	disk_job_init(&cli, &job, &progress);
	r = chain_read(&cli, &ch, argv[optind], format, base, &err);
	/* With layers between that keep what they hold, emptying FILE would bring that back. */
	if (r == 0 && ch.n > 2 && !keep) {
		disk_say(&cli, "'%s' is left as it is: there are images between it and the base",
			 argv[optind]);
		keep = true;
	}
	if (r == 0)
		r = commit(&cli, &ch, keep, &job, &err);
	disk_progress_end(&progress);
	chain_free(&ch);
	return r < 0 ? disk_fail(&cli, &err) : disk_done(&cli, argv[optind], "Image committed.");
}

/* --- rebase -------------------------------------------------------------------------------------
 */

struct rebase {
	const char *file, *format, *backing, *backing_format;
	bool unsafe;
};

/* The new backing file, from where FILE lies. */
static int open_new_backing(const struct disk_cli *cli, const struct rebase *rb, struct blk **out,
			    struct error *err)
{
	const char *slash = strrchr(rb->file, '/');
	char path[4096];

	*out = NULL;
	if (!*rb->backing)
		return 0;
	snprintf(path, sizeof(path), "%.*s%s",
		 rb->backing[0] != '/' && slash ? (int)(slash - rb->file + 1) : 0, rb->file,
		 rb->backing);
	return disk_open(cli, out, path, rb->backing_format, BLK_READONLY, NULL, err);
}

static int rebase(const struct disk_cli *cli, const struct rebase *rb, const struct disk_job *job,
		  struct error *err)
{
	struct blk *top = NULL, *below = NULL;
	int r = disk_open(cli, &top, rb->file, rb->format, rb->unsafe ? BLK_NO_BACKING : 0, NULL,
			  err);

	if (r == 0 && !rb->unsafe) {
		r = open_new_backing(cli, rb, &below, err);
		if (r == 0)
			r = disk_rebase(top, below, job, err);
	}
	if (r == 0)
		r = blk_change_backing(top, *rb->backing ? rb->backing : NULL, rb->backing_format,
				       err);
	if (r == 0)
		r = blk_flush(top);
	blk_close(top);
	blk_close(below);
	return r;
}

int disk_main_rebase(int argc, char **argv)
{
	static const struct option options[] = {DISK_COMMON_OPTIONS, {NULL}};
	struct rebase rb = {NULL};
	struct disk_progress progress;
	struct disk_job job = {0};
	struct error err = {""};
	struct disk_cli cli;
	int c, r;

	disk_cli_init(&cli, "rebase");
	while ((c = getopt_long(argc, argv, "f:F:b:up" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(rebase_help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			rb.format = optarg;
		else if (c == 'F')
			rb.backing_format = optarg;
		else if (c == 'b')
			rb.backing = optarg;
		else if (c == 'u')
			rb.unsafe = true;
		else if (c == 'p')
			cli.progress = true;
	}
	if (argc - optind != 1 || !rb.backing)
		return disk_usage(&cli, "one image and -b BACKING are needed");
	rb.file = argv[optind];
	if (!rb.format)
		return disk_usage(&cli, "-f FORMAT must say what '%s' is", rb.file);
	if (*rb.backing && !rb.backing_format)
		return disk_usage(&cli, "-F FORMAT must say what '%s' is", rb.backing);
	disk_job_init(&cli, &job, &progress);
	r = rebase(&cli, &rb, &job, &err);
	disk_progress_end(&progress);
	return r < 0 ? disk_fail(&cli, &err) : disk_done(&cli, rb.file, "Image rebased.");
}
