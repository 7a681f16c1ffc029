/* block/qcow2/refcount.c - how often each cluster of the file is used, and who gets the free ones
 * ("Host cluster management").
 *
 * In memory a count never runs ahead of the disk in the dangerous direction: it goes up before a
 * reference exists and comes down only after commit.c made sure that no reference is left in the
 * file.  So blocks may be written at any moment, and a power cut leaves at worst a leak. */
#include "block/qcow2/qcow2.h"

#include <assert.h>
#include <stdlib.h>

/* ---- counts in a block ---- */

uint64_t q_count_load(unsigned order, const uint8_t *block, uint64_t index)
{
	switch (order) {
	case 3:
		return block[index];
	case 4:
		return be16_load(block + 2 * index);
	case 5:
		return be32_load(block + 4 * index);
	case 6:
		return be64_load(block + 8 * index);
	}
	/* Bit 0 of a byte belongs to the first of its counts. */
	return block[(index << order) / 8] >> ((index << order) % 8) & ((1u << (1u << order)) - 1);
}

void q_count_store(unsigned order, uint8_t *block, uint64_t index, uint64_t value)
{
	unsigned shift = (index << order) % 8;
	uint8_t mask;

	switch (order) {
	case 3:
		block[index] = (uint8_t)value;
		return;
	case 4:
		be16_store(block + 2 * index, (uint16_t)value);
		return;
	case 5:
		be32_store(block + 4 * index, (uint32_t)value);
		return;
	case 6:
		be64_store(block + 8 * index, value);
		return;
	}
	mask = (uint8_t)(((1u << (1u << order)) - 1) << shift);
	block += (index << order) / 8;
	*block = (uint8_t)((*block & ~mask) | (value << shift));
}

/* ---- blocks ---- */

static uint64_t slice_counts(const struct qcow2 *q)
{
	return ((uint64_t)q->rb.slice * 8) >> q->h.refcount_order;
}

/* *s = NULL: there is no block, all its counts are 0. */
static int count_slice(struct qcow2 *q, uint64_t cluster, struct q_slice **s)
{
	uint64_t idx = cluster / q->rb_entries, in = cluster % q->rb_entries;
	uint64_t host = idx < q->rt.nr ? q->rt.v[idx] : 0;

	*s = NULL;
	if (!host)
		return 0;
	if (host & (q->cluster - 1))
		return q_corrupt(q, true, "refcount block %llu is not at a cluster",
				 (unsigned long long)idx);
	return q_cache_get(&q->rb, host + in / slice_counts(q) * q->rb.slice, s);
}

int q_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *value)
{
	struct q_slice *s;
	int r = count_slice(q, cluster, &s);

	*value = 0;
	if (r < 0 || !s)
		return r;
	*value = q_count_load(q->h.refcount_order, s->bytes,
			      cluster % q->rb_entries % slice_counts(q));
	return 0;
}

static int count_set(struct qcow2 *q, uint64_t cluster, uint64_t value)
{
	struct q_slice *s;
	int r = count_slice(q, cluster, &s);

	if (r < 0)
		return r;
	assert(s); /* the caller saw to the block */
	q_count_store(q->h.refcount_order, s->bytes, cluster % q->rb_entries % slice_counts(q),
		      value);
	q_cache_dirty(&q->rb, s);
	return 0;
}

static void table_touch(struct q_table *t, uint32_t i)
{
	if (t->dirty_lo >= t->dirty_hi) {
		t->dirty_lo = i;
		t->dirty_hi = i + 1;
	}
	t->dirty_lo = MIN(t->dirty_lo, i);
	t->dirty_hi = MAX(t->dirty_hi, i + 1);
}

/* A block for counts that are all 0 so far.  It is in the file before the table names it: commit.c
 * flushes between the two. */
static int add_block(struct qcow2 *q, uint64_t idx, uint64_t cluster)
{
	uint64_t host = cluster << q->h.cluster_bits;
	int r;

	if (q_overlaps_metadata(q, host, q->cluster))
		return q_corrupt(q, true, "the refcounts call a cluster of metadata free");
	r = q_file_zero(q->file, host, q->cluster);
	if (r < 0)
		return r;
	q_cache_forget(&q->rb, host, q->cluster);
	q_cache_forget(&q->l2, host, q->cluster);
	q->rt.v[idx] = host;
	table_touch(&q->rt, (uint32_t)idx);
	return 0;
}

/* ---- the end of the file, where long things go ---- */

static int last_in_block(struct qcow2 *q, uint64_t idx, uint64_t *cluster)
{
	for (uint64_t n = q->rb_entries; n; n--) {
		uint64_t value;
		int r = q_refcount_get(q, idx * q->rb_entries + n - 1, &value);

		if (r < 0)
			return r;
		if (value) {
			*cluster = idx * q->rb_entries + n;
			return 1;
		}
	}
	return 0;
}

uint64_t q_tail(struct qcow2 *q, int *r)
{
	uint64_t cluster = 0;

	*r = 0;
	for (uint64_t idx = q->rt.nr; idx && !*r; idx--)
		if (q->rt.v[idx - 1])
			*r = last_in_block(q, idx - 1, &cluster);
	if (*r > 0)
		*r = 0;
	return cluster;
}

static uint64_t missing_blocks(const struct qcow2 *q, uint64_t cluster, uint64_t nr)
{
	uint64_t n = 0;

	for (uint64_t idx = cluster / q->rb_entries; idx <= (cluster + nr - 1) / q->rb_entries;
	     idx++)
		n += idx >= q->rt.nr || !q->rt.v[idx];
	return n;
}

/* How many clusters from `tail` on hold `nr` and the blocks that count them all. */
static uint64_t with_blocks(const struct qcow2 *q, uint64_t tail, uint64_t nr)
{
	uint64_t total = nr, need;

	while ((need = nr + missing_blocks(q, tail, total)) != total)
		total = need;
	return total;
}

/* Take [tail, tail+total), which the table reaches: blocks first, what was asked for behind. */
static int take_tail(struct qcow2 *q, uint64_t tail, uint64_t total)
{
	uint64_t at = tail;
	int r = 0;

	for (uint64_t idx = tail / q->rb_entries; idx <= (tail + total - 1) / q->rb_entries && !r;
	     idx++)
		if (!q->rt.v[idx])
			r = add_block(q, idx, at++);
	for (uint64_t i = 0; i < total && !r; i++)
		r = count_set(q, tail + i, 1);
	return r;
}

int q_blocks_write(struct qcow2 *q)
{
	struct q_copies copies;
	int r = q_cache_copy_dirty(&q->rb, &copies);

	if (r < 0)
		return r;
	r = q_copies_write(&q->rb, &copies);
	q_copies_done(&q->rb, &copies, !r);
	return r;
}

static int table_enlarge(struct qcow2 *q, uint64_t nr)
{
	uint64_t *v;

	if (nr * 8 > MAX(Q_REFTABLE_MAX, q->cluster))
		return -EFBIG;
	v = realloc(q->rt.v, nr * 8);
	if (!v)
		return -ENOMEM;
	memset(v + q->rt.nr, 0, (nr - q->rt.nr) * 8);
	q->rt.v = v;
	q->rt.nr = (uint32_t)nr;
	return 0;
}

static int table_switch(struct qcow2 *q, uint64_t host, uint64_t clusters)
{
	uint64_t old_host = q->rt.host,
		 old_len = (uint64_t)q->h.reftable_clusters << q->h.cluster_bits;
	int r = q_blocks_write(q);

	if (!r)
		r = q_table_write(q->file, host, q->rt.nr, q->rt.v);
	if (!r)
		r = blk_flush(q->file);
	if (r < 0)
		return r;
	q->rt.host = q->h.reftable_host = host;
	q->h.reftable_clusters = (uint32_t)clusters;
	q->rt.dirty_lo = q->rt.dirty_hi = 0;
	r = q_header_update(q);
	return r < 0 ? r : q_free(q, old_host, old_len, false);
}

/* A table that reaches `cluster` and half as far again, at the end of everything.  Rare: this holds
 * the lock across its two flushes. */
static int table_grow(struct qcow2 *q, uint64_t cluster)
{
	uint64_t per_cluster = q->cluster / 8, most, nr, tail, clusters, total;
	int r;

	tail = q_tail(q, &r);
	if (r < 0)
		return r;
	most = MAX(Q_REFTABLE_MAX / 8, per_cluster);
	nr = MAX(cluster, tail) / q->rb_entries + 1;
	do { /* what the table itself takes may need entries of its own */
		if (nr >= most)
			return -EFBIG;
		nr = MIN(ALIGN_UP(nr + nr / 2 + 1, per_cluster), most);
		clusters = nr / per_cluster;
		total = with_blocks(q, tail, clusters);
	} while ((tail + total) / q->rb_entries >= nr);
	r = table_enlarge(q, nr);
	if (!r)
		r = take_tail(q, tail, total);
	return r < 0 ? r
		     : table_switch(q, (tail + total - clusters) << q->h.cluster_bits, clusters);
}

/* See to it that `cluster` can be counted.  The new block takes the first cluster that it counts:
 * that one is free, as there was no block to say otherwise. */
static int need_block(struct qcow2 *q, uint64_t cluster)
{
	uint64_t idx = cluster / q->rb_entries;
	int r;

	if (idx >= q->rt.nr) {
		r = table_grow(q, cluster);
		if (r < 0)
			return r;
	}
	if (q->rt.v[idx])
		return 0;
	if (!idx)
		return q_corrupt(q, true, "there is no first refcount block");
	r = add_block(q, idx, idx * q->rb_entries);
	return r < 0 ? r : count_set(q, idx * q->rb_entries, 1);
}

/* ---- counting ---- */

static void now_free(struct qcow2 *q, uint64_t cluster)
{
	uint64_t host = cluster << q->h.cluster_bits;

	q->free_hint = MIN(q->free_hint, cluster);
	if (q->packed_host >> q->h.cluster_bits == cluster)
		q->packed_host = 0;
	q_cache_forget(&q->l2, host, q->cluster);
	q_cache_forget(&q->rb, host, q->cluster);
}

int q_refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value)
{
	if (!value)
		now_free(q, cluster);
	return count_set(q, cluster, value);
}

/* What is counted here has a user already: q_alloc counts first ones. */
static int count_add(struct qcow2 *q, uint64_t cluster, int delta)
{
	uint64_t value;
	int r = q_refcount_get(q, cluster, &value);

	if (r < 0)
		return r;
	if (!value)
		return q_corrupt(q, true, "cluster %llu is used but counted as free",
				 (unsigned long long)cluster);
	if (delta > 0 && value >= q->refcount_max)
		return -EMLINK;
	return q_refcount_set(q, cluster, value + (uint64_t)(int64_t)delta);
}

int q_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t nr, int delta)
{
	int r = q_mark_dirty(q);

	for (uint64_t i = 0; i < nr && !r; i++)
		r = count_add(q, cluster + i, delta);
	return r;
}

/* ---- allocation ---- */

static int next_free(struct qcow2 *q, uint64_t *cluster)
{
	uint64_t per_slice = slice_counts(q);

	for (;;) {
		uint64_t i = *cluster % q->rb_entries % per_slice;
		struct q_slice *s;
		int r = count_slice(q, *cluster, &s);

		if (r < 0 || !s)
			return r;
		for (; i < per_slice; i++, ++*cluster)
			if (!q_count_load(q->h.refcount_order, s->bytes, i))
				return 0;
	}
}

static int free_run(struct qcow2 *q, uint64_t cluster, uint64_t *nr)
{
	uint64_t n, value = 0;
	int r = 0;

	for (n = 0; n < *nr && !r; n++) {
		if (n && (cluster + n) % q->rb_entries == 0)
			break; /* the next block may not exist yet */
		r = q_refcount_get(q, cluster + n, &value);
		if (value)
			break;
	}
	*nr = n;
	return r;
}

static int take(struct qcow2 *q, uint64_t cluster, uint64_t nr, uint64_t *host)
{
	int r = 0;

	*host = cluster << q->h.cluster_bits;
	if (cluster + nr > Q_HOST_MAX >> q->h.cluster_bits)
		return -EFBIG;
	if (!cluster || q_overlaps_metadata(q, *host, nr << q->h.cluster_bits))
		return q_corrupt(q, true, "the refcounts call a cluster of metadata free");
	for (uint64_t i = 0; i < nr && !r; i++)
		r = count_set(q, cluster + i, 1);
	return r;
}

int q_alloc(struct qcow2 *q, uint64_t *nr, uint64_t *host)
{
	uint64_t cluster = q->free_hint, want = *nr, seen;
	int r = q_mark_dirty(q);

	do {
		if (!r)
			r = next_free(q, &cluster);
		seen = cluster;
		if (!r)
			r = need_block(q, cluster);
		if (!r)
			r = next_free(q, &cluster); /* the block may have taken it */
	} while (!r && cluster != seen);
	*nr = want;
	if (!r)
		r = free_run(q, cluster, nr);
	if (!r)
		r = take(q, cluster, *nr, host);
	if (!r)
		q->free_hint = cluster + *nr;
	return r;
}

int q_alloc_all(struct qcow2 *q, uint64_t nr, uint64_t *host)
{
	uint64_t tail, total, got = 1;
	int r;

	if (nr <= 1)
		return q_alloc(q, &got, host);
	r = q_mark_dirty(q);
	if (r < 0)
		return r;
	for (;;) {
		tail = q_tail(q, &r);
		if (r < 0)
			return r;
		total = with_blocks(q, tail, nr);
		if ((tail + total - 1) / q->rb_entries < q->rt.nr)
			break;
		r = table_grow(q, tail + total);
		if (r < 0)
			return r;
	}
	*host = (tail + total - nr) << q->h.cluster_bits;
	if (tail + total > Q_HOST_MAX >> q->h.cluster_bits)
		return -EFBIG;
	if (q_overlaps_metadata(q, *host, nr << q->h.cluster_bits))
		return q_corrupt(q, true, "the refcounts call a cluster of metadata free");
	return take_tail(q, tail, total);
}

/* Compressed clusters lie one behind the other at any byte; a cluster that holds parts of several
 * is counted once for each. */
int q_alloc_packed(struct qcow2 *q, size_t len, uint64_t *host)
{
	uint64_t left = -q->packed_host & (q->cluster - 1), nr = 1, next, shared = 0;
	int r;

	if (left)
		r = q_refcount_get(q, q->packed_host >> q->h.cluster_bits, &shared);
	else
		r = 0;
	if (r < 0)
		return r;
	if (left && shared < q->refcount_max && len <= left) {
		*host = q->packed_host;
		q->packed_host = len == left ? 0 : *host + len;
		return q_refcount_add(q, *host >> q->h.cluster_bits, 1, 1);
	}
	r = q_alloc(q, &nr, &next);
	if (r < 0)
		return r;
	*host = next;
	if (left && shared < q->refcount_max && next == q->packed_host + left) {
		*host = q->packed_host;
		r = q_refcount_add(q, *host >> q->h.cluster_bits, 1, 1);
	}
	q->packed_host = (*host + len) & (q->cluster - 1) ? *host + len : 0;
	return r;
}

/* ---- giving back ---- */

int q_ranges_add(struct q_ranges *r, uint64_t cluster, uint64_t nr)
{
	struct q_range *last = r->nr ? &r->v[r->nr - 1] : NULL;

	if (last && last->cluster + last->nr == cluster) {
		last->nr += nr;
		return 0;
	}
	if (r->nr == r->cap) {
		size_t cap = r->cap ? 2 * r->cap : 16;
		struct q_range *v = realloc(r->v, cap * sizeof(*v));

		if (!v)
			return -ENOMEM;
		r->v = v;
		r->cap = cap;
	}
	r->v[r->nr++] = (struct q_range){cluster, nr};
	return 0;
}

int q_free(struct qcow2 *q, uint64_t host, uint64_t len, bool punch)
{
	uint64_t first = host >> q->h.cluster_bits;

	if (!len)
		return 0;
	q->freed.punch |= punch;
	return q_ranges_add(&q->freed, first, ((host + len - 1) >> q->h.cluster_bits) - first + 1);
}

static void ranges_move(struct q_ranges *to, struct q_ranges *from)
{
	to->punch |= from->punch;
	for (size_t i = 0; i < from->nr; i++) /* out of memory: a leak that a check finds */
		q_ranges_add(to, from->v[i].cluster, from->v[i].nr);
	free(from->v);
	*from = (struct q_ranges){0};
}

/* The last reference is gone and nobody can make a new one: the space may go back. */
static void punch(struct qcow2 *q, const struct q_ranges *r)
{
	struct q_ranges last = {0};

	for (size_t i = 0; i < r->nr; i++)
		for (uint64_t c = r->v[i].cluster; c < r->v[i].cluster + r->v[i].nr; c++) {
			uint64_t value;

			if (!q_refcount_get(q, c, &value) && value == 1)
				q_ranges_add(&last, c, 1);
		}
	pthread_mutex_unlock(&q->lock);
	for (size_t i = 0; i < last.nr; i++) {
		uint64_t host = last.v[i].cluster << q->h.cluster_bits;
		uint64_t len = last.v[i].nr << q->h.cluster_bits, end = blk_size(q->file);

		if (host < end)
			blk_discard(q->file, host, MIN(len, end - host));
	}
	free(last.v);
	pthread_mutex_lock(&q->lock);
}

static void ripe(struct qcow2 *q)
{
	struct q_ranges r = q->ripening;

	q->ripening = (struct q_ranges){0};
	if (r.punch)
		punch(q, &r);
	for (size_t i = 0; i < r.nr; i++)
		q_refcount_add(q, r.v[i].cluster, r.v[i].nr, -1);
	free(r.v);
}

/* Whenever the last request of the older epoch is gone. */
static void ripen(struct qcow2 *q)
{
	while (!q->users[!q->epoch] && (q->ripening.nr || q->waiting.nr)) {
		if (q->ripening.nr)
			ripe(q);
		if (q->ripening.nr || !q->waiting.nr || q->users[!q->epoch])
			continue;
		ranges_move(&q->ripening, &q->waiting);
		q->epoch = !q->epoch;
	}
}

void q_release(struct qcow2 *q, struct q_ranges *r)
{
	ranges_move(&q->waiting, r);
	ripen(q);
}

unsigned q_enter(struct qcow2 *q)
{
	unsigned epoch;

	pthread_mutex_lock(&q->lock);
	epoch = q->epoch;
	q->users[epoch]++;
	pthread_mutex_unlock(&q->lock);
	return epoch;
}

void q_leave(struct qcow2 *q, unsigned epoch)
{
	pthread_mutex_lock(&q->lock);
	q->users[epoch]--;
	ripen(q);
	pthread_mutex_unlock(&q->lock);
}

/* ---- what must never be written over ---- */

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a_len && b_len && a < b + b_len && b < a + a_len;
}

bool q_overlaps_metadata(struct qcow2 *q, uint64_t host, uint64_t len)
{
	return overlap(host, len, 0, q->cluster) ||
	       overlap(host, len, q->l1.host, 8ull * q->l1.nr) ||
	       overlap(host, len, q->rt.host,
		       (uint64_t)q->h.reftable_clusters << q->h.cluster_bits) ||
	       overlap(host, len, q->h.snap_host, q->snap_len) ||
	       overlap(host, len, q->h.bitmap_dir_host, q->h.bitmap_dir_len) ||
	       overlap(host, len, q->h.crypt_host, q->h.crypt_len) ||
	       q_cache_holds(&q->l2, host, len) || q_cache_holds(&q->rb, host, len);
}
