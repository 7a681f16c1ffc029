/* block/image.c - see image.h: finds the format's function, checks what any format wants checked.
 */
#include "block/image.h"

#include "base/error.h"
#include "block/internal.h"
#include "block/source.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool blk_format_at(unsigned i, struct blk_format_info *info)
{
	const struct blk_format *f = blk_formats[i];

	if (!f)
		return false;
	*info = (struct blk_format_info){
		.name = f->name,
		.help = f->help ? f->help : "",
		.can_write = f->writev,
		.can_create = f->create,
		.can_pack = f->pack && f->write_packed,
		.can_check = f->check,
		.can_resize = f->resize,
		.can_backing = f->change_backing,
		.has_snapshots = f->snapshots,
		.has_bitmaps = f->bitmaps,
	};
	return true;
}

/* ---- making one ---- */

/* The files made so far: all go when the last one cannot be made. */
struct blk_made {
	char **path;
	unsigned nr;
};

void blk_made_end(struct blk_made *made, bool keep)
{
	if (!made)
		return;
	for (unsigned i = 0; i < made->nr; i++) {
		if (!keep)
			unlink(made->path[i]);
		free(made->path[i]);
	}
	free(made->path);
	free(made);
}

static int made_add(struct blk_made *made, const char *path)
{
	char **more = realloc(made->path, (made->nr + 1) * sizeof(*more));

	if (!more)
		return -ENOMEM;
	made->path = more;
	more[made->nr] = strdup(path);
	return more[made->nr++] ? 0 : -ENOMEM;
}

int blk_create_file(const struct blk_create *c, const char *path, struct blk **file,
		    struct error *err)
{
	struct blk_where where = {.path = path, .fd = -1};
	bool made = false;
	int r;

	r = blk_raw_create_fd(path, c->overwrite, &where.fd, &made, err);
	if (r < 0)
		return r;
	if (made && made_add(c->made, path) < 0) {
		close(where.fd);
		unlink(path);
		return err_errno(err, ENOMEM, "'%s'", path);
	}
	return blk_open_at(file, &where, "raw", BLK_FILE | BLK_NO_POOL, NULL, err);
}

const struct blk_option *blk_create_options(const char *format)
{
	const struct blk_format *f = blk_format_find(format);

	return f && f->create ? f->create_options : NULL;
}

static int check_options(const struct blk_format *f, const struct blk_kv *kv, unsigned n,
			 struct error *err)
{
	for (unsigned i = 0; i < n; i++) {
		const struct blk_option *o = f->create_options;

		while (o && o->key && strcmp(o->key, kv[i].key))
			o++;
		if (!o || !o->key)
			return err_set(err, EINVAL,
				       "format %s has no option '%s' ('-o help' lists them)",
				       f->name, kv[i].key);
	}
	return 0;
}

/* A relative name of a backing file starts at the new image's directory. */
static char *backing_path(const struct blk_create *c)
{
	const char *slash = strrchr(c->path, '/');
	char *path = NULL;

	if (c->backing[0] == '/' || !slash)
		return strdup(c->backing);
	if (asprintf(&path, "%.*s%s", (int)(slash - c->path + 1), c->path, c->backing) < 0)
		return NULL;
	return path;
}

/* The user names this one, not an image: it may lie anywhere. */
int blk_create_look(struct blk_create *c, struct error *err)
{
	char *path;
	struct blk *b = NULL;
	int r;

	if (!c->backing_format)
		return err_set(err, EINVAL, "the format of the backing file must be given (-F)");
	path = backing_path(c);

	if (!path)
		return err_errno(err, ENOMEM, "'%s'", c->backing);
	r = blk_open_with(&b, path, c->backing_format, BLK_READONLY | BLK_NO_POOL, c->open, err);
	if (!r)
		c->size = blk_size(b);
	blk_close(b);
	free(path);
	return r < 0 ? err_wrap(err, r, "backing file") : 0;
}

static int prepare_create(const struct blk_format *f, struct blk_create *c, struct error *err)
{
	const struct blk_source *source;
	int r;

	if (!f->create)
		return err_set(err, ENOTSUP, "images of format %s cannot be made", f->name);
	r = blk_source_find(c->path, &source, &c->path, err);
	if (!r && source)
		r = err_set(err, EINVAL, "'%s': only files and devices can be made", c->path);
	if (!r)
		r = check_options(f, c->opt, c->nr_opts, err);
	if (!r && c->backing && !c->backing_format)
		r = err_set(err, EINVAL, "the format of the backing file must be given (-F)");
	if (!r && c->size_from_backing)
		r = blk_create_look(c, err);
	if (!r && c->size > INT64_MAX)
		r = err_set(err, EFBIG, "a disk cannot be that large");
	return r;
}

int blk_create_keep(const char *format, const struct blk_create *c, struct blk_made **made,
		    struct error *err)
{
	const struct blk_format *f = blk_format_need(format, err);
	struct blk_create own = *c;
	int r;

	*made = NULL;
	if (!f)
		return -EINVAL;
	own.made = calloc(1, sizeof(*own.made));
	if (!own.made)
		return err_errno(err, ENOMEM, "'%s'", c->path);
	r = prepare_create(f, &own, err);
	if (!r)
		r = f->create(&own, err);
	if (r < 0)
		blk_made_end(own.made, false);
	else
		*made = own.made;
	return r;
}

int blk_create(const char *format, const struct blk_create *c, struct error *err)
{
	struct blk_made *made;
	int r = blk_create_keep(format, c, &made, err);

	blk_made_end(made, true);
	return r;
}

/* ---- telling, checking, changing ---- */

static int lacks(const struct blk *b, const char *what, struct error *err)
{
	return err_set(err, ENOTSUP, "'%s': format %s %s", blk_path(b), b->fmt->name, what);
}

static int refuse_readonly(const struct blk *b, struct error *err)
{
	return err_set(err, EROFS, "'%s' is open for reading only", blk_path(b));
}

void blk_details(struct blk *b, struct blk_sink *s)
{
	if (b->fmt->details)
		b->fmt->details(b, s);
}

int blk_check(struct blk *b, struct blk_check *c, struct error *err)
{
	c->corruptions = c->leaks = c->corruptions_fixed = c->leaks_fixed = 0;
	c->total_clusters = c->allocated_clusters = 0;
	c->fragmented_clusters = c->compressed_clusters = c->image_end = 0;
	if (!b->fmt->check)
		return lacks(b, "has nothing to check", err);
	if (c->fix && b->info.readonly)
		return refuse_readonly(b, err);
	return b->fmt->check(b, c, err);
}

/* Each of these is one function of the driver, with the image to itself, or "not supported". */
#define DISPATCH(ops, op, words, writes, ...)                                                      \
	do {                                                                                       \
		int r_;                                                                            \
                                                                                                   \
		if (!(ops) || !(ops)->op)                                                          \
			return lacks(b, words, err);                                               \
		if ((writes) && b->info.readonly)                                                  \
			return refuse_readonly(b, err);                                            \
		pthread_rwlock_wrlock(&b->use);                                                    \
		r_ = (ops)->op(b, __VA_ARGS__);                                                    \
		pthread_rwlock_unlock(&b->use);                                                    \
		return r_;                                                                         \
	} while (0)

int blk_change_backing(struct blk *b, const char *backing, const char *format, struct error *err)
{
	DISPATCH(b->fmt, change_backing, "has no backing files", true, backing, format, err);
}

bool blk_ties_backing(const struct blk *b)
{
	return b->fmt->ties_parent;
}

int blk_make_empty(struct blk *b, struct error *err)
{
	DISPATCH(b->fmt, make_empty, "cannot be emptied", true, err);
}

int blk_amend(struct blk *b, const struct blk_kv *opt, unsigned n, struct error *err)
{
	DISPATCH(b->fmt, amend, "has no options that can be changed", true, opt, n, err);
}

int blk_snapshot_list(struct blk *b, struct blk_snapshot **list, unsigned *n, struct error *err)
{
	DISPATCH(b->fmt->snapshots, list, "has no internal snapshots", false, list, n, err);
}

int blk_snapshot_create(struct blk *b, const char *name, struct error *err)
{
	DISPATCH(b->fmt->snapshots, create, "has no internal snapshots", true, name, err);
}

int blk_snapshot_apply(struct blk *b, const char *id_or_name, struct error *err)
{
	DISPATCH(b->fmt->snapshots, apply, "has no internal snapshots", true, id_or_name, err);
}

int blk_snapshot_delete(struct blk *b, const char *id_or_name, struct error *err)
{
	DISPATCH(b->fmt->snapshots, del, "has no internal snapshots", true, id_or_name, err);
}

int blk_bitmap_list(struct blk *b, struct blk_bitmap **list, unsigned *n, struct error *err)
{
	DISPATCH(b->fmt->bitmaps, list, "has no bitmaps", false, list, n, err);
}

int blk_bitmap_add(struct blk *b, const char *name, uint64_t granularity, struct error *err)
{
	DISPATCH(b->fmt->bitmaps, add, "has no bitmaps", true, name, granularity, err);
}

int blk_bitmap_remove(struct blk *b, const char *name, struct error *err)
{
	DISPATCH(b->fmt->bitmaps, remove, "has no bitmaps", true, name, err);
}

int blk_bitmap_clear(struct blk *b, const char *name, struct error *err)
{
	DISPATCH(b->fmt->bitmaps, clear, "has no bitmaps", true, name, err);
}

int blk_bitmap_record(struct blk *b, const char *name, bool on, struct error *err)
{
	DISPATCH(b->fmt->bitmaps, record, "has no bitmaps", true, name, on, err);
}

int blk_bitmap_merge(struct blk *b, const char *into, const char *from, struct error *err)
{
	DISPATCH(b->fmt->bitmaps, merge, "has no bitmaps", true, into, from, err);
}

int blk_bitmap_query(struct blk *b, const char *name, uint64_t off, uint64_t *len, bool *dirty,
		     struct error *err)
{
	DISPATCH(b->fmt->bitmaps, query, "has no bitmaps", false, name, off, len, dirty, err);
}

int blk_measure(const char *format, const struct blk_kv *opt, unsigned n, struct blk_measure *m,
		struct error *err)
{
	const struct blk_format *f = blk_format_need(format, err);
	int r;

	if (!f)
		return -EINVAL;
	if (!f->measure)
		return err_set(err, ENOTSUP, "the size of a %s image cannot be told beforehand",
			       f->name);
	r = check_options(f, opt, n, err);
	return r < 0 ? r : f->measure(opt, n, m, err);
}
