/* block/qcow2/qcow2.c - opening and closing qcow2 images, and the driver's table.
 *
 * docs/formats/qcow2.md describes the layout, the limits and the order of writes. */
#include "block/qcow2/qcow2.h"

#include "base/log.h"

#include <stdlib.h>

static struct log_component log_qcow2 = LOG_COMPONENT("qcow2");

static int q_probe(const uint8_t *head, size_t len)
{
	return len >= 8 && be32_load(head) == Q_MAGIC && be32_load(head + 4) >= 2 ? 100 : 0;
}

/* ---- opening ---- */

static void set_geometry(struct qcow2 *q)
{
	const struct q_header *h = &q->h;

	q->ext_l2 = h->incompat & Q_INCOMPAT_EXTL2;
	q->has_data_file = h->incompat & Q_INCOMPAT_DATA_FILE;
	q->raw_data = h->autoclear & Q_AUTO_RAW_DATA;
	q->cluster = 1u << h->cluster_bits;
	q->subs = q->ext_l2 ? Q_SUBCLUSTERS : 1;
	q->sub = q->cluster / q->subs;
	q->l2_entry = q->ext_l2 ? 16 : 8;
	q->l2_bits = h->cluster_bits - (q->ext_l2 ? 4 : 3);
	q->rb_entries = ((uint64_t)q->cluster * 8) >> h->refcount_order;
	q->refcount_max =
		h->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << h->refcount_order)) - 1;
}

static int refuse_writing(const struct qcow2 *q, struct error *err)
{
	const char *path = q->b->path;

	if (q->readonly || (q->b->flags & BLK_CHECKING))
		return 0;
	if (q->h.incompat & Q_INCOMPAT_CORRUPT)
		return err_set(err, EROFS,
			       "'%s' is marked corrupt: it can be read (readonly=on) or repaired "
			       "(hv disk check -r all)",
			       path);
	if (!q->h.reftable_clusters)
		return err_set(err, EINVAL, "'%s' has no refcount table: try hv disk check -r all",
			       path);
	if (q->h.crypt == Q_CRYPT_AES)
		return err_set(
			err, EROFS,
			"'%s': the old AES encryption is unsafe and can only be read; convert "
			"the image",
			path);
	return 0;
}

static int load_tables(struct qcow2 *q, struct error *err)
{
	uint32_t slice = MIN(q->cluster, (uint32_t)Q_SLICE_MAX);
	int r;

	q->l1.host = q->h.l1_host;
	q->l1.nr = q->h.l1_nr;
	/* Behind its end the file reads as zeroes: a disk with nothing on it. */
	if (!range_inside(q->l1.host, q->l1.nr * 8ull, blk_size(q->file)))
		return err_set(err, EINVAL,
			       "'%s': the file ends before its L1 table: it was cut off",
			       q->b->path);
	r = q_table_read(q->file, q->l1.host, q->l1.nr, &q->l1.v);
	if (!r) {
		q->rt.host = q->h.reftable_host;
		q->rt.nr = q->h.reftable_clusters * (q->cluster / 8);
		r = q_table_read(q->file, q->rt.host, q->rt.nr, &q->rt.v);
	}
	if (!r)
		r = q_cache_init(&q->l2, q->file, slice, Q_CACHE_MAX);
	if (!r)
		r = q_cache_init(&q->rb, q->file, slice, Q_RB_CACHE_MAX);
	if (r < 0)
		return err_errno(err, -r, "cannot read the tables of '%s'", q->b->path);
	for (uint32_t i = 0; i < q->rt.nr; i++)
		q->rt.v[i] &= ~511ull;
	return 0;
}

static int open_backing(struct qcow2 *q, struct error *err)
{
	struct blk *b = q->b;
	const char *format = q->h.backing_format;

	if (!q->h.backing || !*q->h.backing)
		return 0;
	b->backing_name = strdup(q->h.backing);
	b->backing_format = format ? strdup(format) : NULL;
	if (!b->backing_name || (format && !b->backing_format))
		return err_errno(err, ENOMEM, "'%s'", b->path);
	if (b->flags & (BLK_NO_BACKING | BLK_CHECKING))
		return 0;
	return blk_ref_open(b, q->h.backing, format ? format : "auto", BLK_READONLY | BLK_NO_POOL,
			    &b->backing, err);
}

static int open_data(struct qcow2 *q, struct error *err)
{
	unsigned flags = BLK_NO_POOL | (q->readonly ? BLK_READONLY : 0);

	q->data = q->file;
	if (!q->has_data_file || (q->b->flags & BLK_CHECKING))
		return 0;
	if (!q->h.data_file)
		return err_set(err, EINVAL,
			       "'%s' keeps its data in another file but does not name it",
			       q->b->path);
	q->data = NULL;
	return blk_ref_open(q->b, q->h.data_file, NULL, flags, &q->data, err);
}

static void tell_info(struct qcow2 *q)
{
	struct blk_info *info = &q->b->info;

	info->size = q->h.size;
	info->cluster = q->cluster;
	info->can_discard = info->can_zero = !q->readonly;
	info->encrypted = q->h.crypt != Q_CRYPT_NONE;
	info->dirty = q->h.incompat & Q_INCOMPAT_DIRTY;
	info->corrupt = q->h.incompat & Q_INCOMPAT_CORRUPT;
}

/* What an image may ask of who writes to it, before the first write. */
static int begin_writing(struct qcow2 *q, struct error *err)
{
	int r = 0;

	if (q->readonly || (q->b->flags & BLK_CHECKING))
		return 0;
	if (q->h.incompat & Q_INCOMPAT_DIRTY) {
		log_info(&log_qcow2, "%s was not closed: its refcounts are built anew", q->b->path);
		r = q_rebuild_refcounts(q, err);
		q->b->info.dirty = r < 0;
	}
	if (!r && (q->h.autoclear & ~Q_AUTO_KNOWN)) {
		q->h.autoclear &= Q_AUTO_KNOWN; /* "Bit mask of auto-clear features" */
		r = q_header_update(q);
		if (r < 0)
			err_errno(err, -r, "cannot write '%s'", q->b->path);
	}
	return r;
}

static int open_parts(struct qcow2 *q, struct error *err)
{
	const struct blk_open_opts *opts = q->b->opts;
	int r = load_tables(q, err);

	if (!r)
		r = q_snapshots_read(q, err);
	if (!r)
		r = open_data(q, err);
	if (!r)
		r = open_backing(q, err);
	if (!r && q->h.crypt && !(q->b->flags & BLK_CHECKING))
		r = q_crypt_open(q, err);
	if (!r)
		r = begin_writing(q, err);
	if (!r)
		r = q_bitmaps_open(q, err);
	if (!r && opts && opts->snapshot)
		r = q_snapshot_show(q, opts->snapshot, err);
	return r;
}

static void q_destroy(struct qcow2 *q)
{
	q_bitmaps_fini(q);
	q_crypt_fini(q);
	q_snapshots_fini(q);
	q_codecs_fini(&q->codecs);
	if (q->data != q->file)
		blk_close(q->data);
	q_cache_fini(&q->l2);
	q_cache_fini(&q->rb);
	free(q->l1.v);
	free(q->rt.v);
	free(q->freed.v);
	free(q->waiting.v);
	free(q->ripening.v);
	q_header_fini(&q->h);
	pthread_cond_destroy(&q->wake);
	pthread_mutex_destroy(&q->lock);
	pthread_mutex_destroy(&q->commit);
	pthread_mutex_destroy(&q->bitmap_lock);
	pthread_rwlock_destroy(&q->io);
	free(q);
}

static struct qcow2 *q_new(struct blk *b)
{
	struct qcow2 *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->b = b;
	q->file = q->data = b->file;
	q->readonly = b->flags & BLK_READONLY;
	pthread_rwlock_init(&q->io, NULL);
	pthread_mutex_init(&q->lock, NULL);
	pthread_mutex_init(&q->commit, NULL);
	pthread_mutex_init(&q->bitmap_lock, NULL);
	pthread_cond_init(&q->wake, NULL);
	q_codecs_init(&q->codecs);
	b->priv = q;
	return q;
}

static int q_open(struct blk *b, const char *path, struct error *err)
{
	struct qcow2 *q;
	int r;

	if ((b->flags & BLK_RECOVER) || (b->opts && b->opts->snapshot))
		b->flags |= BLK_READONLY;
	q = q_new(b);
	if (!q)
		return err_errno(err, ENOMEM, "'%s'", path);
	r = q_header_read(q->file, b->path, &q->h, err);
	if (!r) {
		set_geometry(q);
		tell_info(q);
		r = refuse_writing(q, err);
	}
	if (!r)
		r = open_parts(q, err);
	if (r < 0)
		q_destroy(q);
	return r;
}

static void q_close(struct blk *b)
{
	struct qcow2 *q = q_of(b);
	int r = 0;

	if (!q->readonly && !q->corrupt) {
		r = q_bitmaps_store(q);
		if (!r)
			r = q_settle(q);
		if (!r)
			r = q_mark_clean(q);
	}
	if (r < 0)
		log_error(&log_qcow2,
			  "%s: cannot be closed cleanly: %s (hv disk check may tell more)", b->path,
			  strerror(-r));
	q_destroy(q);
}

const struct blk_format blk_qcow2 = {
	.name = "qcow2",
	.help = "QEMU's image format: sparse, compressed, encrypted, backing files, snapshots",
	.parallel = true,
	.on_file = true,
	.max_io = Q_IO_MAX,
	.probe = q_probe,
	.open = q_open,
	.close = q_close,
	.readv = q_readv,
	.writev = q_writev,
	.flush = q_flush,
	.discard = q_discard,
	.write_zeroes = q_write_zeroes,
	.map = q_blk_map,
	.resize = q_resize,
	.create_options = q_create_options,
	.create = q_create,
	.details = q_details,
	.check = q_check,
	.amend = q_amend,
	.measure = q_measure,
	.change_backing = q_change_backing,
	.make_empty = q_make_empty,
	.pack_bound = q_pack_bound,
	.pack = q_pack,
	.write_packed = q_write_packed,
	.snapshots = &q_snapshot_ops,
	.bitmaps = &q_bitmap_ops,
};
