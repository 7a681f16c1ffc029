/* block/qcow2/details.c - what an image tells of itself, with the words qemu-img uses. */
#include "block/qcow2/qcow2.h"

static void names(const struct qcow2 *q, struct blk_sink *s)
{
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
	s->number(s, "refcount-bits", 1u << q->h.refcount_order);
	if (q->h.version >= 3) {
		s->text(s, "compression-type", q->h.compression == Q_ZSTD ? "zstd" : "zlib");
		s->flag(s, "lazy-refcounts", q->h.compat & Q_COMPAT_LAZY);
		s->flag(s, "extended-l2", q->ext_l2);
		s->flag(s, "corrupt", q->h.incompat & Q_INCOMPAT_CORRUPT);
	}
	names(q, s);
	if (q->h.crypt)
		q_crypt_details(q, s);
	q_bitmaps_details(q, s);
	pthread_rwlock_unlock(&q->io);
}
