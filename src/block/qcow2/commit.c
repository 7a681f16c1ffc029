/* block/qcow2/commit.c - what reaches the disk, and in which order.
 *
 * Between two flushes a disk may do writes in any order or not at all.  So a write-back goes:
 *
 *      guest data, copies of old data, new tables      (written by requests as they come)
 *   1  refcount blocks
 *      -- flush --
 *   2  refcount table, when it names new blocks
 *      -- flush --
 *   3  L2 slices, L1 entries
 *      -- flush --
 *   4  references that 3 took away are counted down and their clusters given out again
 *
 * A cut anywhere leaves every reference in the file pointing at data that is there and counted;
 * what is counted but not referenced is a leak.  No request waits for this except a flush, and one
 * that finds the caches full of changes. */
#include "block/qcow2/qcow2.h"

#include <stdlib.h>

enum { FREED_MAX = 4096 };

/* A dirty piece of an L1 or refcount table, taken along. */
struct piece {
	struct q_table t; /* t.v: a copy, whole */
	bool any;
};

struct batch {
	struct q_copies l2, rb;
	struct piece l1, rt;
	struct q_ranges freed;
};

static int piece_take(struct piece *p, struct q_table *t)
{
	uint32_t lo = t->dirty_lo & ~63u, hi = MIN((t->dirty_hi + 63) & ~63u, t->nr);

	*p = (struct piece){0};
	if (t->dirty_lo >= t->dirty_hi)
		return 0;
	p->t = *t;
	p->t.host += 8ull * lo;
	p->t.nr = hi - lo;
	p->t.v = malloc(8ull * p->t.nr);
	if (!p->t.v)
		return -ENOMEM;
	memcpy(p->t.v, t->v + lo, 8ull * p->t.nr);
	p->any = true;
	t->dirty_lo = t->dirty_hi = 0;
	return 0;
}

static void piece_done(struct piece *p, struct q_table *t, bool ok)
{
	if (p->any && !ok) {
		bool clean = t->dirty_lo >= t->dirty_hi;

		t->dirty_lo = clean ? p->t.dirty_lo : MIN(t->dirty_lo, p->t.dirty_lo);
		t->dirty_hi = clean ? p->t.dirty_hi : MAX(t->dirty_hi, p->t.dirty_hi);
	}
	free(p->t.v);
}

static void batch_done(struct qcow2 *q, struct batch *b, bool ok)
{
	q_copies_done(&q->l2, &b->l2, ok);
	q_copies_done(&q->rb, &b->rb, ok);
	piece_done(&b->l1, &q->l1, ok);
	piece_done(&b->rt, &q->rt, ok);
	if (ok) {
		q_release(q, &b->freed);
		return;
	}
	for (size_t i = 0; i < b->freed.nr; i++)
		q_ranges_add(&q->freed, b->freed.v[i].cluster, b->freed.v[i].nr);
	free(b->freed.v);
}

/* With lazy refcounts the header says that counts lag, so they need not be written each time. */
static bool counts_may_lag(const struct qcow2 *q)
{
	return q->dirty_marked && q->rb.nr_dirty < q->rb.max / 2;
}

static int batch_take(struct qcow2 *q, struct batch *b, bool all)
{
	int r;

	*b = (struct batch){.freed = q->freed};
	q->freed = (struct q_ranges){0};
	r = q_cache_copy_dirty(&q->l2, &b->l2);
	if (!r && (all || !counts_may_lag(q)))
		r = q_cache_copy_dirty(&q->rb, &b->rb);
	if (!r)
		r = piece_take(&b->l1, &q->l1);
	if (!r)
		r = piece_take(&b->rt, &q->rt);
	if (r < 0)
		batch_done(q, b, false);
	return r;
}

static int flush_files(struct qcow2 *q)
{
	int r = blk_flush(q->file);

	if (!r && q->has_data_file)
		r = blk_flush(q->data);
	if (r < 0)
		q->unsafe = true; /* what the host lost then, a second flush does not bring back */
	return r;
}

static int piece_write(struct qcow2 *q, const struct piece *p)
{
	return p->any ? q_table_write(q->file, p->t.host, p->t.nr, p->t.v) : 0;
}

static int batch_write(struct qcow2 *q, const struct batch *b)
{
	int r = q_copies_write(&q->rb, &b->rb);

	if (!r)
		r = flush_files(q);
	if (!r && b->rt.any) {
		r = piece_write(q, &b->rt);
		if (!r)
			r = flush_files(q);
	}
	if (r < 0 || (!b->l2.nr && !b->l1.any))
		return r;
	r = q_copies_write(&q->l2, &b->l2);
	if (!r)
		r = piece_write(q, &b->l1);
	return r < 0 ? r : flush_files(q);
}

int q_commit(struct qcow2 *q, bool all)
{
	struct batch b;
	int r;

	if (q->readonly)
		return 0;
	pthread_mutex_lock(&q->commit);
	pthread_mutex_lock(&q->lock);
	r = q->corrupt || q->unsafe ? -EIO : batch_take(q, &b, all);
	if (r < 0)
		goto unlock;
	pthread_mutex_unlock(&q->lock);
	r = batch_write(q, &b);
	pthread_mutex_lock(&q->lock);
	batch_done(q, &b, !r);
unlock:
	pthread_mutex_unlock(&q->lock);
	pthread_mutex_unlock(&q->commit);
	return r;
}

int q_commit_if_full(struct qcow2 *q)
{
	bool full;

	pthread_mutex_lock(&q->lock);
	full = q->l2.nr_dirty > q->l2.max / 2 || q->rb.nr_dirty > q->rb.max / 2 ||
	       q->freed.nr > FREED_MAX;
	pthread_mutex_unlock(&q->lock);
	return full ? q_commit(q, false) : 0;
}

static bool pending(struct qcow2 *q)
{
	bool yes;

	pthread_mutex_lock(&q->lock);
	yes = q->l2.nr_dirty || q->rb.nr_dirty || q->freed.nr || q->waiting.nr || q->ripening.nr ||
	      q->l1.dirty_lo < q->l1.dirty_hi || q->rt.dirty_lo < q->rt.dirty_hi;
	pthread_mutex_unlock(&q->lock);
	return yes;
}

int q_settle(struct qcow2 *q)
{
	int r;

	do /* counting down what was freed makes blocks dirty again */
		r = q_commit(q, true);
	while (!r && pending(q));
	return r;
}

/* ---- lazy refcounts: the dirty bit ---- */

int q_mark_dirty(struct qcow2 *q)
{
	int r;

	if (q->dirty_marked || q->h.version < 3 || !(q->h.compat & Q_COMPAT_LAZY))
		return 0;
	q->h.incompat |= Q_INCOMPAT_DIRTY;
	r = q_header_update(q);
	q->dirty_marked = !r;
	return r;
}

int q_mark_clean(struct qcow2 *q)
{
	int r;

	if (!q->dirty_marked)
		return 0;
	r = q_settle(q);
	if (r < 0)
		return r;
	q->h.incompat &= ~Q_INCOMPAT_DIRTY;
	r = q_header_update(q);
	q->dirty_marked = r < 0;
	return r;
}
