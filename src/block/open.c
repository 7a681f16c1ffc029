/* block/open.c - from a name and a format to a disk: sources, probing, the file below a format. */
#include "block/internal.h"

#include "base/error.h"
#include "base/log.h"
#include "block/pool.h"
#include "block/source.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROBE_HEAD = 4096, PROBE_TAIL = 512 };

static struct log_component log_blk = LOG_COMPONENT("block");

/* ---- formats ---- */

const struct blk_format *blk_format_find(const char *name)
{
	for (unsigned i = 0; blk_formats[i]; i++)
		if (!strcmp(blk_formats[i]->name, name))
			return blk_formats[i];
	return NULL;
}

const struct blk_format *blk_format_need(const char *name, struct error *err)
{
	const struct blk_format *fmt = blk_format_find(name);

	if (!fmt)
		err_set(err, EINVAL, "disk format '%s' is not known", name);
	return fmt;
}

struct sample {
	uint8_t head[PROBE_HEAD], tail[PROBE_TAIL];
	size_t head_len, tail_len;
};

static int sample_read(struct sample *s, struct blk *file, struct error *err)
{
	uint64_t size = blk_size(file);
	int r;

	s->head_len = MIN(size, sizeof(s->head));
	s->tail_len = MIN(size, sizeof(s->tail));
	r = blk_read(file, s->head, s->head_len, 0);
	if (!r)
		r = blk_read(file, s->tail, s->tail_len, size - s->tail_len);
	return r < 0 ? err_errno(err, -r, "cannot read '%s'", file->path) : 0;
}

static const struct blk_format *sample_format(const struct sample *s)
{
	const struct blk_format *best = NULL;
	int best_score = 0;

	for (unsigned i = 0; blk_formats[i]; i++) {
		const struct blk_format *f = blk_formats[i];
		int score = f->probe ? f->probe(s->head, s->head_len) : 0;

		if (f->probe_tail)
			score = MAX(score, f->probe_tail(s->tail, s->tail_len));
		if (score > best_score) {
			best_score = score;
			best = f;
		}
	}
	return best;
}

static int probe_file(struct blk *file, const struct blk_format **out, struct error *err)
{
	struct sample *s = calloc(1, sizeof(*s));
	int r = s ? sample_read(s, file, err) : err_errno(err, ENOMEM, "'%s'", file->path);

	*out = r < 0 ? NULL : sample_format(s);
	free(s);
	if (r < 0)
		return r;
	return *out ? 0
		    : err_set(err, EINVAL, "'%s': the disk format is not recognised", file->path);
}

/* ---- one disk ---- */

/* Who wants the image alone is not kept out for ever by a guest's steady reads. */
static void use_init(struct blk *b)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&b->use, &attr);
	pthread_rwlockattr_destroy(&attr);
}

static int blk_alloc(struct blk **out, const struct blk_format *fmt, unsigned flags,
		     struct error *err)
{
	struct blk *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return err_errno(err, ENOMEM, "disk");
	b->fmt = fmt;
	b->flags = flags;
	b->fd = -1;
	b->info.format = fmt->name;
	b->info.block_size = 512;
	use_init(b);
	if (!(flags & BLK_NO_POOL)) {
		r = blk_pool_create(&b->pool, blk_run_request, err);
		if (r < 0) {
			pthread_rwlock_destroy(&b->use);
			free(b);
			return r;
		}
	}
	*out = b;
	return 0;
}

static void blk_free(struct blk *b)
{
	blk_pool_destroy(b->pool);
	pthread_rwlock_destroy(&b->use);
	blk_close(b->backing);
	blk_close(b->file);
	blk_refs_put(b->refs);
	if (b->fd >= 0)
		close(b->fd);
	free(b->backing_name);
	free(b->backing_format);
	free(b->path);
	free(b);
}

static void settle_info(struct blk *b)
{
	if (!b->fmt->writev)
		b->flags |= BLK_READONLY;
	b->info.readonly = b->flags & BLK_READONLY;
	b->shared_use = b->fmt->parallel && (b->backing || b->fmt->change_backing ||
					     b->fmt->snapshots || b->fmt->bitmaps);
	assert(b->info.size <= INT64_MAX); /* offsets fit an off_t; drivers see to it */
}

int blk_wrap(struct blk **out, const struct blk_format *fmt, void *priv,
	     const struct blk_info *info, unsigned flags, struct error *err)
{
	struct blk *b = NULL;
	int r;

	r = blk_alloc(&b, fmt, flags, err);
	if (r < 0)
		return r;
	b->priv = priv;
	b->info = *info;
	b->info.format = fmt->name;
	settle_info(b);
	*out = b;
	return 0;
}

void blk_close(struct blk *b)
{
	int r;

	if (!b)
		return;
	if (b->pool)
		blk_drain(b);
	r = b->info.readonly ? 0 : blk_flush(b);
	if (r < 0)
		log_error(&log_blk, "%s: the last flush failed: %s", b->path ? b->path : "disk",
			  strerror(-r));
	b->fmt->close(b);
	blk_free(b);
}

const struct blk_info *blk_info(const struct blk *b)
{
	return &b->info;
}

const char *blk_path(const struct blk *b)
{
	return b->path ? b->path : "";
}

struct blk *blk_backing(const struct blk *b)
{
	return b->backing;
}

const char *blk_backing_name(const struct blk *b, const char **format)
{
	*format = b->backing_format;
	return b->backing_name;
}

/* ---- opening ---- */

/* What an opening has gathered so far. */
struct opening {
	const struct blk_where *where;
	const struct blk_open_opts *opts;
	const struct blk_source *source; /* NULL: a file of this host */
	const char *path;
	unsigned flags;
	const struct blk_format *fmt;
	struct blk *file;
};

static const struct blk_open_opts no_opts;

static bool is_auto(const char *format)
{
	return !format || !strcmp(format, "auto");
}

static int blk_start(struct blk **out, const struct opening *o, const struct blk_format *fmt,
		     unsigned flags, struct error *err)
{
	struct blk *b = NULL;
	int r = blk_alloc(&b, fmt, flags, err);

	if (r < 0)
		return r;
	b->opts = o->opts;
	b->opener = o->where->opener;
	b->depth = b->opener ? b->opener->depth + 1 : 0;
	b->path = strdup(o->path);
	b->refs = b->opener && b->opener->refs ? blk_refs_get(b->opener->refs)
					       : blk_refs_new(o->opts);
	if (!b->path || !b->refs) {
		blk_free(b);
		return err_errno(err, ENOMEM, "'%s'", o->path);
	}
	*out = b;
	return 0;
}

static int blk_finish(struct blk *b, struct error *err)
{
	int r;

	if (b->file) {
		b->dev = b->file->dev;
		b->ino = b->file->ino;
	}
	r = b->fmt->open(b, b->path, err);
	b->opts = NULL;
	b->opener = NULL;
	if (!r)
		settle_info(b);
	return r;
}

static int open_raw_file(struct blk **out, const struct opening *o, int fd, unsigned flags,
			 struct error *err)
{
	struct blk *b = NULL;
	int r = blk_start(&b, o, &blk_raw, flags, err);

	if (r < 0) {
		if (fd >= 0)
			close(fd);
		return r;
	}
	b->fd = fd;
	r = blk_finish(b, err);
	if (r < 0)
		blk_free(b);
	else
		*out = b;
	return r;
}

/* The bytes below the format. */
static int open_bytes(struct opening *o, int fd, struct error *err)
{
	unsigned flags =
		(o->flags & (BLK_READONLY | BLK_NO_LOCK | BLK_NO_FLUSH)) | BLK_NO_POOL | BLK_FILE;

	if (o->source)
		return o->source->open(&o->file, o->path, flags, o->opts, err);
	return open_raw_file(&o->file, o, fd, flags, err);
}

/* Guessing is for looking only: a guest that can write to a raw disk could write a header there and
 * have it taken for another format, one that names files of the host, at the next start. */
static int guess_format(struct opening *o, struct error *err)
{
	int r;

	r = probe_file(o->file, &o->fmt, err);
	if (!r && o->where->opener && o->fmt == &blk_raw)
		r = err_set(err, EINVAL, "'%s': the disk format is not recognised", o->path);
	return r;
}

static int check_format(const struct opening *o, struct error *err)
{
	if (!o->fmt->writev && !(o->flags & BLK_READONLY))
		return err_set(err, EROFS, "'%s': format %s can only be read", o->path,
			       o->fmt->name);
	if (o->opts->snapshot && !o->fmt->snapshots)
		return err_set(err, ENOTSUP, "'%s': format %s has no internal snapshots", o->path,
			       o->fmt->name);
	return 0;
}

/* Raw is the file itself, or a thin layer over a source. */
static int open_raw(struct blk **out, struct opening *o, int fd, struct error *err)
{
	struct blk *b = NULL;
	int r;

	if (!o->source) {
		blk_close(o->file);
		o->file = NULL;
		return open_raw_file(out, o, fd, o->flags, err);
	}
	if (o->flags & BLK_FILE) {
		*out = o->file;
		o->file = NULL;
		return 0;
	}
	r = blk_start(&b, o, &blk_raw_over, o->flags, err);
	if (r < 0)
		return r;
	b->file = o->file;
	o->file = NULL;
	r = blk_finish(b, err);
	if (r < 0)
		blk_free(b);
	else
		*out = b;
	return r;
}

static int open_format(struct blk **out, struct opening *o, int fd, struct error *err)
{
	struct blk *b = NULL;
	int r = check_format(o, err);

	if (!r && o->fmt == &blk_raw)
		return open_raw(out, o, fd, err);
	if (fd >= 0) /* refused, and raw */
		close(fd);
	if (!r)
		r = blk_start(&b, o, o->fmt, o->flags, err);
	if (r < 0)
		return r;
	b->file = o->file;
	o->file = NULL;
	r = blk_finish(b, err);
	if (r < 0)
		blk_free(b);
	else
		*out = b;
	return r;
}

static int open_named(struct blk **out, struct opening *o, const char *format, struct error *err)
{
	bool guess = is_auto(format);
	int fd = o->where->fd, r = 0;

	if (!guess) {
		o->fmt = blk_format_need(format, err);
		r = o->fmt ? 0 : -EINVAL;
	} else if (!(o->flags & BLK_READONLY)) {
		r = err_set(err, EINVAL,
			    "'%s': the format of a writable disk must be given (-f FORMAT; hv run: "
			    "format=FORMAT)",
			    o->path);
	}
	if (!r && o->fmt == &blk_raw && !o->source)
		return open_format(out, o, fd, err);
	if (!r) {
		r = open_bytes(o, fd, err);
		fd = -1;
	}
	if (!r && guess)
		r = guess_format(o, err);
	if (!r)
		return open_format(out, o, -1, err);
	if (fd >= 0)
		close(fd);
	return r;
}

int blk_open_at(struct blk **out, const struct blk_where *where, const char *format, unsigned flags,
		const struct blk_open_opts *opts, struct error *err)
{
	struct opening o = {.where = where, .opts = opts ? opts : &no_opts, .flags = flags};
	int r = 0;

	o.path = where->path;
	if (where->fd < 0)
		r = blk_source_find(where->path, &o.source, &o.path, err);
	if (!r)
		r = open_named(out, &o, format, err);
	else if (where->fd >= 0)
		close(where->fd);
	blk_close(o.file);
	return r;
}

int blk_open_on_at(struct blk **out, struct blk *file, const struct blk_where *where,
		   const char *format, unsigned flags, const struct blk_open_opts *opts,
		   struct error *err)
{
	struct opening o = {.where = where,
			    .opts = opts ? opts : &no_opts,
			    .path = where->path,
			    .flags = flags,
			    .fmt = blk_format_need(format, err),
			    .file = file};
	int r = -EINVAL;

	if (o.fmt == &blk_raw)
		o.fmt = &blk_raw_over;
	if (o.fmt)
		r = open_format(out, &o, -1, err);
	blk_close(o.file);
	return r;
}

int blk_open_on(struct blk **out, struct blk *file, const char *path, const char *format,
		unsigned flags, const struct blk_open_opts *opts, struct error *err)
{
	struct blk_where where = {.path = path, .fd = -1};

	return blk_open_on_at(out, file, &where, format, flags, opts, err);
}

int blk_open_with(struct blk **out, const char *path, const char *format, unsigned flags,
		  const struct blk_open_opts *opts, struct error *err)
{
	struct blk_where where = {.path = path, .fd = -1};

	return blk_open_at(out, &where, format, flags, opts, err);
}

int blk_open(struct blk **out, const char *path, const char *format, unsigned flags,
	     struct error *err)
{
	return blk_open_with(out, path, format, flags, NULL, err);
}

int blk_probe(const char *path, const char **format, struct error *err)
{
	const struct blk_format *fmt = NULL;
	struct blk *file = NULL;
	int r;

	r = blk_open(&file, path, "raw", BLK_FILE | BLK_READONLY | BLK_NO_LOCK | BLK_NO_POOL, err);
	if (r < 0)
		return r;
	r = probe_file(file, &fmt, err);
	if (!r)
		*format = fmt->name;
	blk_close(file);
	return r;
}

int blk_secret(struct blk *b, char *buf, size_t cap, struct error *err)
{
	int r;

	if (!b->opts || !b->opts->secret)
		return err_set(err, EACCES,
			       "'%s' is encrypted: give its passphrase (--secret FILE)", b->path);
	r = b->opts->secret(b->opts->opaque, b->path, buf, cap);
	return r < 0 ? err_errno(err, -r, "'%s': no passphrase", b->path) : r;
}
