/* block/qcow2/resize.c - another size, another backing file, another version; starting anew. */
#include "block/qcow2/qcow2.h"

#include <stdlib.h>

/* ---- size ---- */

static int write_zero_bytes(struct qcow2 *q, uint64_t from, uint64_t to)
{
	static const uint8_t zeroes[65536];
	int r = 0;

	while (from < to && !r) {
		struct iovec iov = {(void *)(uintptr_t)zeroes, MIN(to - from, sizeof(zeroes))};

		r = q_write_at(q, &iov, 1, iov.iov_len, from);
		from += iov.iov_len;
	}
	return r;
}

/* Where the disk grows it reads as zeroes, also where a longer backing file would show. */
static int hide_backing(struct qcow2 *q, uint64_t from, uint64_t to)
{
	struct blk *b = q->b;
	uint64_t end = b->backing ? MIN(to, blk_size(b->backing)) : 0, at;
	int r;

	if (from >= end)
		return 0;
	at = q->h.version < 3 ? end : MIN(ALIGN_UP(from, q->cluster), end);
	r = write_zero_bytes(q, from, at);
	if (r < 0 || at >= end)
		return r;
	return q_drop_at(q, at, ALIGN_UP(end, q->cluster) - at, Q_DROP_ZERO);
}

static int set_size(struct qcow2 *q, uint64_t size)
{
	uint64_t was = q->h.size;
	int r = q_settle(q);

	if (r < 0)
		return r;
	q->h.size = size;
	r = q_header_update(q);
	if (r < 0)
		q->h.size = was;
	else
		blk_set_size(q->b, size);
	return r;
}

/* What lies behind the end of the disk, from before it shrank or as VM state, must not show. */
static int forget_behind(struct qcow2 *q, uint64_t size)
{
	uint64_t from = ALIGN_UP(size, q->cluster), end = q->l1.nr * q_l2_span(q);
	struct q_run run;
	int r = 0;

	if (from < end)
		r = q_drop_at(q, from, end - from, Q_DROP_HOLE);
	if (r < 0 || from == size)
		return r;
	pthread_mutex_lock(&q->lock);
	r = q_map(q, size, from - size, &run);
	pthread_mutex_unlock(&q->lock);
	if (r < 0 ||
	    ((run.kind == Q_UNALLOC || run.kind == Q_ZERO_PLAIN) && run.len == from - size))
		return r;
	return write_zero_bytes(q, size, from);
}

static int grow(struct qcow2 *q, uint64_t size)
{
	uint64_t was = q->h.size, span = q_l2_span(q);
	uint64_t nr = size / span + (size % span != 0);
	int r = forget_behind(q, was);

	if (nr > Q_L1_MAX / 8)
		return -EFBIG;
	if (!r && nr > q->l1.nr)
		r = q_grow_l1(q, (uint32_t)nr, was);
	if (!r)
		r = hide_backing(q, was, size);
	return r < 0 ? r : set_size(q, size);
}

static int shrink(struct qcow2 *q, uint64_t size)
{
	uint64_t was = q->h.size, from = ALIGN_UP(size, q->cluster);
	int r = set_size(q, size); /* first: what goes must not show half gone */

	if (!r && from < was)
		r = q_drop_at(q, from, ALIGN_UP(was, q->cluster) - from, Q_DROP_HOLE);
	return r < 0 ? r : q_settle(q);
}

/* Entries of old do not tell the size of their disk: it was that of the image until now. */
static int know_snapshot_sizes(struct qcow2 *q)
{
	for (uint32_t i = 0; i < q->nr_snaps; i++)
		if (q->snaps[i].extra_len < 16)
			return q_snapshots_write(q);
	return 0;
}

static int resize_locked(struct qcow2 *q, uint64_t size)
{
	int r;

	if (size == q->h.size)
		return 0;
	if (size % Q_SECTOR)
		return -EINVAL;
	r = know_snapshot_sizes(q);
	if (!r)
		r = q_bitmaps_resize(q, size);
	if (!r && q->raw_data)
		r = blk_resize(q->data, size);
	if (r < 0)
		return r;
	return size > q->h.size ? grow(q, size) : shrink(q, size);
}

int q_resize(struct blk *b, uint64_t size)
{
	struct qcow2 *q = q_of(b);
	int r;

	pthread_rwlock_wrlock(&q->io);
	r = q->corrupt ? -EIO : resize_locked(q, size);
	pthread_rwlock_unlock(&q->io);
	return r;
}

/* ---- the backing file's name ---- */

static int set_text(char **field, const char *text)
{
	char *copy = text ? strdup(text) : NULL;

	if (text && !copy)
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

static int write_header(struct qcow2 *q, struct error *err)
{
	int r = q_header_write(q->file, &q->h, err);

	if (r < 0)
		return err_wrap(err, r, "'%s'", q->b->path);
	r = blk_flush(q->file);
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", q->b->path) : 0;
}

static int change_locked(struct qcow2 *q, const char *backing, const char *format,
			 struct error *err)
{
	char *old = q->h.backing, *old_format = q->h.backing_format;
	int r = q_settle(q);

	if (r < 0)
		return err_errno(err, -r, "cannot write '%s'", q->b->path);
	q->h.backing = q->h.backing_format = NULL;
	r = set_text(&q->h.backing, backing);
	if (!r)
		r = set_text(&q->h.backing_format, backing ? format : NULL);
	r = r < 0 ? err_errno(err, ENOMEM, "'%s'", q->b->path) : write_header(q, err);
	if (r < 0) {
		free(q->h.backing);
		free(q->h.backing_format);
		q->h.backing = old;
		q->h.backing_format = old_format;
		return r;
	}
	free(old);
	free(old_format);
	return 0;
}

int q_change_backing(struct blk *b, const char *backing, const char *format, struct error *err)
{
	struct qcow2 *q = q_of(b);
	int r;

	if (q->readonly || q->corrupt)
		return err_set(err, EROFS, "'%s' cannot be written to", b->path);
	if (backing && q->raw_data)
		return err_set(err, EINVAL,
			       "'%s' has a raw data file, which rules out a backing file", b->path);
	if (backing && strlen(backing) > Q_BACKING_NAME_MAX)
		return err_set(err, EINVAL, "the name of a backing file has at most %u bytes",
			       Q_BACKING_NAME_MAX);
	if (format && strlen(format) > Q_BACKING_FORMAT_MAX)
		return err_set(err, EINVAL, "backing format '%s' is not known", format);
	pthread_rwlock_wrlock(&q->io);
	r = change_locked(q, backing, format, err);
	pthread_rwlock_unlock(&q->io);
	return r;
}

/* ---- starting anew ---- */

int q_make_empty(struct blk *b, struct error *err)
{
	struct qcow2 *q = q_of(b);
	int r;

	if (q->readonly || q->corrupt)
		return err_set(err, EROFS, "'%s' cannot be written to", b->path);
	pthread_rwlock_wrlock(&q->io);
	r = q_drop_at(q, 0, ALIGN_UP(q->h.size, q->cluster), Q_DROP_HOLE);
	if (!r)
		r = q_settle(q);
	pthread_rwlock_unlock(&q->io);
	return r < 0 ? err_errno(err, -r, "cannot empty '%s'", b->path) : 0;
}

/* ---- amend ---- */

static int upgrade(struct qcow2 *q)
{
	q->h.version = 3;
	q->h.header_len = Q_HEADER_OURS;
	q->h.refcount_order = 4;
	/* Version 3 wants the long entries, and the sizes in them. */
	return q->nr_snaps ? q_snapshots_write(q) : q_header_update(q);
}

static int amend_compat(struct qcow2 *q, const char *value, struct error *err)
{
	bool v3 = !strcmp(value, "1.1") || !strcmp(value, "v3");
	int r;

	if (!v3 && strcmp(value, "0.10") && strcmp(value, "v2"))
		return err_set(err, EINVAL, "compat=%s is not known", value);
	if (v3 == (q->h.version == 3))
		return 0;
	if (!v3)
		return err_set(err, ENOTSUP, "'%s' cannot go back to version 2; convert it instead",
			       q->b->path);
	r = upgrade(q);
	if (r < 0) {
		q->h.version = 2;
		q->h.header_len = Q_HEADER_V2;
	}
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", q->b->path) : 0;
}

static int amend_lazy(struct qcow2 *q, bool lazy, struct error *err)
{
	int r = q_mark_clean(q);

	if (lazy && q->h.version < 3)
		return err_set(err, EINVAL, "lazy_refcounts needs compat=1.1");
	if (lazy)
		q->h.compat |= Q_COMPAT_LAZY;
	else
		q->h.compat &= ~Q_COMPAT_LAZY;
	if (!r)
		r = q_header_update(q);
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", q->b->path) : 0;
}

static int amend_one(struct qcow2 *q, const struct blk_kv *kv, struct error *err)
{
	bool lazy;
	int r;

	if (!strcmp(kv->key, "compat"))
		return amend_compat(q, kv->value, err);
	if (!strcmp(kv->key, "lazy_refcounts")) {
		r = blk_kv_bool(kv, 1, "lazy_refcounts", false, &lazy, err);
		return r < 0 ? r : amend_lazy(q, lazy, err);
	}
	return err_set(err, ENOTSUP,
		       "'%s': %s cannot be changed (compat and lazy_refcounts can); convert the "
		       "image",
		       q->b->path, kv->key);
}

int q_amend(struct blk *b, const struct blk_kv *opt, unsigned n, struct error *err)
{
	struct qcow2 *q = q_of(b);
	int r;

	if (q->readonly || q->corrupt)
		return err_set(err, EROFS, "'%s' cannot be written to", b->path);
	pthread_rwlock_wrlock(&q->io);
	r = q_settle(q);
	if (r < 0)
		err_errno(err, -r, "cannot write '%s'", b->path);
	for (unsigned i = 0; i < n && !r; i++)
		r = amend_one(q, &opt[i], err);
	pthread_rwlock_unlock(&q->io);
	return r;
}
