/* block/qcow2/details.c - what an image tells of itself, with the words qemu-img uses. */
#include "block/qcow2/qcow2.h"

static void snapshots(const struct qcow2 *q, struct blk_sink *s)
{
	if (!q->nr_snaps)
		return;
	s->begin(s, "snapshots", true);
	for (uint32_t i = 0; i < q->nr_snaps; i++) {
		const struct q_snapshot *n = &q->snaps[i];

		s->begin(s, NULL, false);
		s->text(s, "id", n->id);
		s->text(s, "name", n->name);
		s->number(s, "vm-state-size", n->vm_state_size);
		s->number(s, "date-sec", n->date_s);
		s->number(s, "date-nsec", n->date_ns);
		s->number(s, "vm-clock-nsec", n->vm_clock_ns);
		s->number(s, "disk-size", n->disk_size);
		s->end(s);
	}
	s->end(s);
}

static void names(const struct qcow2 *q, struct blk_sink *s)
{
	if (q->h.backing)
		s->text(s, "backing-filename", q->h.backing);
	if (q->h.backing_format)
		s->text(s, "backing-filename-format", q->h.backing_format);
	if (q->h.data_file) {
		s->text(s, "data-file", q->h.data_file);
		s->flag(s, "data-file-raw", q->raw_data);
	}
}

void q_details(struct blk *b, struct blk_sink *s)
{
	struct qcow2 *q = q_of(b);

	pthread_rwlock_rdlock(&q->io);
	s->text(s, "compat", q->h.version < 3 ? "0.10" : "1.1");
	s->number(s, "cluster-size", q->cluster);
	s->number(s, "refcount-bits", 1u << q->h.refcount_order);
	if (q->h.version >= 3) {
		s->text(s, "compression-type", q->h.compression == Q_ZSTD ? "zstd" : "zlib");
		s->flag(s, "lazy-refcounts", q->h.compat & Q_COMPAT_LAZY);
		s->flag(s, "extended-l2", q->ext_l2);
		s->flag(s, "corrupt", q->h.incompat & Q_INCOMPAT_CORRUPT);
		s->flag(s, "dirty-flag", q->h.incompat & Q_INCOMPAT_DIRTY);
	}
	names(q, s);
	if (q->h.crypt)
		q_crypt_details(q, s);
	q_bitmaps_details(q, s);
	snapshots(q, s);
	pthread_rwlock_unlock(&q->io);
}
