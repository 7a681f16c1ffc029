/* cmd_recover_cp.c - hv recover cp: files, directories and disks out of a datastore. */
#include "programs/hv.h"
#include "programs/recover_cli.h"

#include "block/image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPT_STRICT = RECOVER_OPT_OWN, OPT_RESUME, OPT_OVERWRITE, OPT_MANIFEST, OPT_RAW };

static struct {
	bool recursive, strict, raw;
	FILE *manifest; /* of files; that of a disk is written outside */
	bool into;      /* the target is a directory that is there */
} opt;

static const struct option options[] = {
	{"recursive", no_argument, NULL, 'r'},
	{"strict", no_argument, NULL, OPT_STRICT},
	{"resume", no_argument, NULL, OPT_RESUME},
	{"overwrite", no_argument, NULL, OPT_OVERWRITE},
	{"manifest", required_argument, NULL, OPT_MANIFEST},
	{"as-file", no_argument, NULL, OPT_RAW},
	{0},
};

static int take_option(struct recover *rc, int c)
{
	struct recover_target *t = &rc->target;

	switch (c) {
	case 'r':
		opt.recursive = true;
		return 1;
	case 'O':
		t->format = optarg;
		return 1;
	case 'o':
		t->options = optarg;
		return 1;
	case OPT_STRICT:
		opt.strict = true;
		return 1;
	case OPT_RESUME:
		t->resume = true;
		return 1;
	case OPT_OVERWRITE:
		t->overwrite = true;
		return 1;
	case OPT_MANIFEST:
		t->manifest = optarg;
		return 1;
	case OPT_RAW:
		opt.raw = true;
		return 1;
	default:
		return 0;
	}
}

/* --- before ------------------------------------------------------------------------------------
 */

/* The format a target's name stands for: only when a disk is copied to another kind of file. */
static const char *format_by_name(const char *target, const char *from)
{
	static const struct {
		const char *suffix, *format;
	} known[] = {{".qcow2", "qcow2"}, {".raw", "raw"}, {".img", "raw"},  {".vdi", "vdi"},
		     {".vhdx", "vhdx"},   {".vhd", "vpc"}, {".vmdk", "vmdk"}};
	const char *dot = strrchr(target, '.'), *from_dot = strrchr(from, '.');

	if (!dot || !from_dot || strcasecmp(from_dot, ".vmdk") || !strcasecmp(dot, from_dot))
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!strcasecmp(dot, known[i].suffix))
			return known[i].format;
	return NULL;
}

static bool can_create(const char *format)
{
	struct blk_format_info f;

	for (unsigned i = 0; blk_format_at(i, &f); i++)
		if (!strcmp(f.name, format))
			return f.can_create;
	return false;
}

static int open_manifest(struct recover *rc)
{
	opt.manifest = fopen(rc->target.manifest, rc->target.resume ? "ae" : "we");
	if (opt.manifest)
		return 0;
	fprintf(stderr, "hv recover cp: cannot write '%s': %s\n", rc->target.manifest,
		strerror(errno));
	return HV_EXIT_FAILED;
}

static int before(struct recover *rc)
{
	struct recover_target *t = &rc->target;
	struct stat st;

	t->path = rc->extra[0];
	opt.into = stat(t->path, &st) == 0 && S_ISDIR(st.st_mode);
	if (!t->format && !opt.into && !opt.raw && !opt.recursive)
		t->format = format_by_name(t->path, rc->path);
	if (t->format && (opt.recursive || opt.into))
		return recover_usage(rc, "-O is for one disk: name the image file to make");
	if (t->format && !can_create(t->format))
		return recover_usage(rc, "images of format '%s' cannot be made (hv disk formats)",
				     t->format);
	if (t->options && !t->format)
		return recover_usage(rc, "-o goes with -O FORMAT");
	return t->manifest && !t->format ? open_manifest(rc) : 0;
}

/* --- one file ----------------------------------------------------------------------------------
 */

enum { PIECE = MiB, SAFE_STEP = 64 * MiB };
#define LONGEST (64ull << 40) /* VMFS allows 62 TiB */

struct copying {
	struct recover *rc;
	struct blk *b;
	int fd;
	EVP_MD_CTX *md;
	char *buf;
};

static bool all_zero(const char *p, size_t n)
{
	return n == 0 || (p[0] == 0 && !memcmp(p, p + 1, n - 1));
}

/* The pieces a resumed copy has on the medium for certain; they are read for their hash only. */
static uint64_t already_there(const struct copying *c, uint64_t size)
{
	struct stat st;
	uint64_t whole;

	if (!c->rc->target.resume || fstat(c->fd, &st) < 0)
		return 0;
	whole = (uint64_t)st.st_size / SAFE_STEP;
	return MIN(whole ? (whole - 1) * SAFE_STEP : 0, size);
}

static int put(struct copying *c, size_t n, uint64_t off)
{
	if (all_zero(c->buf, n))
		return 0; /* stays a hole */
	for (size_t done = 0; done < n;) {
		ssize_t w = pwrite(c->fd, c->buf + done, n - done, (off_t)(off + done));

		if (w < 0)
			return -errno;
		done += (size_t)w;
	}
	return 0;
}

/* The file is as long as what is on the medium: that is what `already_there` goes by. */
static int settle(const struct copying *c, uint64_t off)
{
	if (fdatasync(c->fd) < 0 || ftruncate(c->fd, (off_t)off) < 0)
		return -errno;
	return 0;
}

/* Bytes from off on that are zeroes and need not be read: all that is said of a wrong length. */
static uint64_t zeroes_at(const struct copying *c, uint64_t off, uint64_t size)
{
	enum blk_extent what = BLK_EXT_DATA;
	uint64_t len = size - off;

	if (c->md || blk_extent(c->b, off, &len, &what) < 0 || what == BLK_EXT_DATA)
		return 0;
	return len;
}

static int copy_bytes(struct copying *c, const char *name, struct error *err)
{
	uint64_t size = blk_size(c->b), there = already_there(c, size), skip;
	int r = there == 0 && ftruncate(c->fd, 0) < 0 ? -errno : 0;

	if (size > LONGEST)
		return err_set(err, EFBIG,
			       "'%s' cannot be %" PRIu64 " bytes long: its length is wrong", name,
			       size);
	for (uint64_t off = 0; off < size && r == 0;) {
		size_t n = (size_t)MIN(PIECE - off % PIECE, size - off);

		skip = zeroes_at(c, off, size);
		if (skip > n) {
			off += skip;
			continue;
		}
		if (off >= there || c->md) {
			r = blk_read(c->b, c->buf, n, off);
			if (r < 0)
				return err_errno(err, -r, "cannot read '%s' at byte %" PRIu64, name,
						 off);
		}
		if (c->md && EVP_DigestUpdate(c->md, c->buf, n) != 1)
			r = -EIO;
		if (r == 0 && off >= there)
			r = put(c, n, off);
		off += n;
		if (r == 0 && off % SAFE_STEP == 0 && off > there && c->rc->target.resume)
			r = settle(c, off);
	}
	if (r == 0 && ftruncate(c->fd, (off_t)size) < 0)
		r = -errno;
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", name) : 0;
}

static void note_hash(struct copying *c, const char *name)
{
	uint8_t sum[EVP_MAX_MD_SIZE];
	unsigned n = 0;

	if (!c->md || EVP_DigestFinal_ex(c->md, sum, &n) != 1)
		return;
	for (unsigned i = 0; i < n; i++)
		fprintf(opt.manifest, "%02x", sum[i]);
	fprintf(opt.manifest, "  %s\n", name);
	fflush(opt.manifest);
}

static int copy_file(struct recover *rc, const struct rec_entry *e, const char *to,
		     struct error *err)
{
	struct copying c = {.rc = rc, .fd = -1};
	int r = recover_make_file(rc, to, e->length, e->mtime, &c.fd, err);

	if (r < 0 || c.fd < 0) /* or it is there already */
		return r;
	c.buf = malloc(PIECE);
	if (opt.manifest) {
		c.md = EVP_MD_CTX_new();
		if (!c.md || EVP_DigestInit_ex(c.md, EVP_sha256(), NULL) != 1)
			r = err_set(err, ENOMEM, "no SHA-256");
	}
	if (r == 0 && !c.buf)
		r = err_errno(err, ENOMEM, "cp");
	if (r == 0)
		r = rec_blk(rc->rec, e->id, opt.strict ? REC_BLK_STRICT : 0, &c.b, err);
	if (r == 0)
		r = copy_bytes(&c, *to ? to : rc->target.path, err);
	if (r == 0)
		r = recover_file_done(rc, to, e->mtime, err);
	if (r == 0)
		note_hash(&c, *to ? to : rc->target.path);
	EVP_MD_CTX_free(c.md);
	blk_close(c.b);
	close(c.fd);
	free(c.buf);
	return r;
}

/* --- many files --------------------------------------------------------------------------------
 */

struct walk {
	struct recover *rc;
	char to[RECOVER_PATH_MAX];
	uint64_t files, failed, doubtful;
	unsigned depth;
	struct error *err;
};

static int copy_entry(struct walk *w, const struct rec_entry *e, const char *as);

static int copy_child(void *opaque, const struct rec_entry *e)
{
	struct rec_entry copy = *e;

	return copy.system ? 0 : copy_entry(opaque, &copy, copy.name);
}

static void complain(struct walk *w, const struct error *err)
{
	w->failed++;
	(void)recover_fail(w->rc, err);
}

static int copy_link(struct walk *w, const struct rec_entry *e, struct error *err)
{
	char target[RECOVER_PATH_MAX];
	int r = rec_readlink(w->rc->rec, e->id, target, sizeof(target));

	return r < 0 ? err_errno(err, -r, "cannot read the link '%s'", e->name)
		     : recover_make_link(w->rc, w->to, target, err);
}

static int copy_dir(struct walk *w, const struct rec_entry *e, struct error *err)
{
	int r = recover_make_dir(w->rc, w->to, err);

	if (r < 0 || w->depth >= 64)
		return r;
	w->depth++;
	r = rec_children(w->rc->rec, e->id, copy_child, w, err);
	w->depth--;
	return r;
}

/* What cannot be copied is told; the others are. */
static int copy_entry(struct walk *w, const struct rec_entry *e, const char *as)
{
	size_t used = strlen(w->to);
	struct error err = {0};
	int r;

	if (snprintf(w->to + used, sizeof(w->to) - used, "%s%s", used && *as ? "/" : "", as) >=
	    (int)(sizeof(w->to) - used)) {
		w->to[used] = 0;
		complain(w, &(struct error){.msg = "a path is too long"});
		return 0;
	}
	if (e->is_dir)
		r = copy_dir(w, e, &err);
	else if (e->type == VMFS_SYMLINK)
		r = copy_link(w, e, &err);
	else
		r = copy_file(w->rc, e, w->to, &err);
	if (r < 0)
		complain(w, &err);
	w->files += !e->is_dir && r >= 0;
	if (r >= 0 && !e->is_dir && e->worst > REC_INFERRED) {
		char trust[160], safe[RECOVER_PATH_MAX];

		w->doubtful++;
		recover_say(w->rc, "%s: not all of it is sure: %s",
			    recover_safe_text(*w->to ? w->to : e->name, safe, sizeof(safe)),
			    recover_trust_text(e, trust, sizeof(trust)));
	}
	w->to[used] = 0;
	return 0;
}

/* --- disks -------------------------------------------------------------------------------------
 */

static int copy_disk(struct recover *rc, const struct rec_entry *e, struct error *err)
{
	char key[RECOVER_PATH_MAX + 64];
	struct blk *b = NULL;
	int r = rec_open_disk(rc->rec, e->id, opt.strict ? REC_BLK_STRICT : 0, &b, err);

	if (r < 0)
		return r;
	snprintf(key, sizeof(key), "recover %s #%" PRIu64 " %" PRIu64 " %s", rc->source[0].identity,
		 e->id, blk_size(b), rc->target.format);
	for (char *p = key; *p; p++) /* one line */
		if (*p == '\n' || *p == '\r')
			*p = ' ';
	r = recover_copy_disk(rc, "", b, key, err);
	blk_close(b);
	return r;
}

static int work(struct recover *rc)
{
	struct error err = {0};
	struct walk w = {.rc = rc, .err = &err};
	struct rec_entry e;
	char trust[160];
	int r = recover_find(rc, &e, &err);

	if (r == 0 && e.is_dir && !opt.recursive)
		r = err_set(&err, EISDIR, "'%s' is a directory: -r copies it", rc->path);
	if (r == 0 && rc->target.format) {
		r = copy_disk(rc, &e, &err);
		if (r == 0 && e.worst > REC_INFERRED)
			recover_say(rc, "not all of it is sure: %s",
				    recover_trust_text(&e, trust, sizeof(trust)));
		w.doubtful = e.worst > REC_INFERRED;
	} else if (r == 0) {
		copy_entry(&w, &e, opt.into && e.id != REC_ROOT ? e.name : "");
	}
	if (r < 0)
		return recover_fail(rc, &err);
	if (opt.manifest && fclose(opt.manifest) != 0)
		return recover_fail(rc, &(struct error){.msg = "cannot write the manifest"});
	return w.failed ? HV_EXIT_FAILED : w.doubtful ? RECOVER_EXIT_DOUBT : HV_EXIT_OK;
}

const struct recover_command recover_cp = {
	.name = "cp",
	.summary = "copy files, directories or disks out",
	.usage = "[-r] [-O FORMAT] SOURCE...:/PATH TARGET",
	.help = "Copies a file, with -r a directory with all below it, to TARGET.  A VMDK whose "
		"target has the\n"
		"name of another format (disk.qcow2), or with -O, is converted while it is read: "
		"its\n"
		"extents and the parents of snapshots are found in the datastore.  What cannot be "
		"read\n"
		"is zeroes; that is told, and the exit status is 4 then.\n\n"
		"  -r, --recursive     directories too\n"
		"  -O FORMAT           make an image of this format (hv disk formats)\n"
		"  -o KEY=VALUE,...    options of that format\n"
		"  --as-file           the bytes of the file as they are, whatever TARGET is "
		"called\n"
		"  --strict            a byte that is not exact or inferred is an error\n"
		"  --resume            go on with an interrupted copy; what is complete is not "
		"copied again\n"
		"  --overwrite         replace files that are there\n"
		"  --manifest FILE     write the SHA-256 of what was copied: a line per file as "
		"sha256sum -c\n"
		"                      takes it; of a disk, per 4 MiB\n",
	.letters = "rO:o:",
	.options = options,
	.takes_path = true,
	.needs_path = true,
	.extra_args = 1,
	.option = take_option,
	.before = before,
	.work = work,
};
