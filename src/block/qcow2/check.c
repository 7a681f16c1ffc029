/* block/qcow2/check.c - does the image hold together, and can it be mended?
 *
 * Counts every reference there is in the file and compares that with the refcounts.  A count that
 * is too high is a leak: space nobody uses.  One that is too low is a corruption: a later write may
 * take a cluster that is in use.  Mending first drops entries that point nowhere, then corrects the
 * counts; when the refcount structure itself is broken a new one is built behind everything else.
 *
 * The tables come from the file as they are: nothing here trusts an offset before range_ok(). */
#include "block/qcow2/qcow2.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct check {
	struct qcow2 *q;
	struct blk_check *c; /* NULL: silent */
	unsigned fix;
	uint32_t *refs; /* by cluster of the file */
	uint64_t nr;
	uint64_t file_len;
	uint8_t *walked;    /* bit per cluster: an L2 table of the L1 table being walked */
	uint8_t *table;     /* one L2 table */
	bool active;        /* the L1 table being walked is the active one */
	bool broken;        /* the refcount structure cannot be used as it is */
	bool table_counted; /* the refcount table is in refs */
	bool bad_snapshots;
	uint64_t next_host; /* for counting fragments */
	uint64_t corruptions, leaks;
	uint64_t allocated, fragmented, compressed;
};

static void PRINTF_LIKE(2, 3) say(const struct check *k, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	if (!k->c || !k->c->say)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	k->c->say(k->c->opaque, text);
}

#define corruption(k, ...)                                                                         \
	do {                                                                                       \
		(k)->corruptions++;                                                                \
		say(k, __VA_ARGS__);                                                               \
	} while (0)

/* ---- counting references ---- */

/* A file may end inside its last cluster. */
static bool range_ok(const struct check *k, uint64_t host, uint64_t len)
{
	return range_inside(host, len, k->nr << k->q->h.cluster_bits);
}

static uint32_t refer(struct check *k, uint64_t host, uint64_t len)
{
	uint64_t first = host >> k->q->h.cluster_bits;
	uint64_t last = (host + MAX(len, 1) - 1) >> k->q->h.cluster_bits;
	uint32_t before = 0;

	for (uint64_t i = first; i <= last; i++) {
		before = MAX(before, k->refs[i]);
		if (k->refs[i] < UINT32_MAX)
			k->refs[i]++;
	}
	return before;
}

/* Something of which there is one: false when it cannot be looked at. */
static bool refer_once(struct check *k, uint64_t host, uint64_t len, const char *what)
{
	if (!len)
		return false;
	if ((host & (k->q->cluster - 1)) || !range_ok(k, host, len)) {
		corruption(k, "ERROR: %s at %#" PRIx64 " is not inside the file", what, host);
		return false;
	}
	if (refer(k, host, len)) {
		corruption(k, "ERROR: %s at %#" PRIx64 " lies over something else", what, host);
		return false;
	}
	return true;
}

/* ---- entries ---- */

static int write_entry(struct check *k, uint64_t table, uint64_t at, struct q_entry e)
{
	struct qcow2 *q = k->q;
	struct q_place p = {.at = (uint32_t)(at & (q->l2.slice - 1))};
	int r;

	pthread_mutex_lock(&q->lock);
	r = q_cache_get(&q->l2, table + ALIGN_DOWN(at, q->l2.slice), &p.slice);
	if (!r)
		q_entry_set(q, &p, e);
	pthread_mutex_unlock(&q->lock);
	return r;
}

/* What it pointed at cannot be found; version 3 can say so without showing the backing file. */
static int drop_entry(struct check *k, uint64_t table, uint64_t at)
{
	struct q_entry e = {0};

	if (!(k->fix & BLK_FIX_ERRORS))
		return 0;
	if (k->q->ext_l2)
		e.bits = (uint64_t)UINT32_MAX << Q_SUBCLUSTERS;
	else if (k->q->h.version >= 3)
		e.desc = Q_ZERO;
	return write_entry(k, table, at, e);
}

static void count_fragment(struct check *k, uint64_t host)
{
	if (!k->active)
		return;
	k->allocated++;
	if (k->next_host && host != k->next_host)
		k->fragmented++;
	k->next_host = host + k->q->cluster;
}

static int check_packed(struct check *k, uint64_t table, uint64_t at, struct q_entry e)
{
	uint64_t host;
	uint32_t len;

	q_packed_place(k->q->h.cluster_bits, e.desc, &host, &len);
	if (k->q->has_data_file || !range_ok(k, host, len)) {
		corruption(k, "ERROR: compressed data at %#" PRIx64 " is not inside the file",
			   host);
		return drop_entry(k, table, at);
	}
	refer(k, host, len);
	if (k->active) {
		k->allocated++;
		k->compressed++;
		k->fragmented++;
	}
	return 0;
}

static int check_subclusters(struct check *k, uint64_t table, uint64_t at, struct q_entry e)
{
	uint32_t data = (uint32_t)e.bits, zero = (uint32_t)(e.bits >> Q_SUBCLUSTERS);
	bool host = q_entry_has_host(k->q, e);

	if (!(data & zero) && (!data || host))
		return 0;
	corruption(k, "ERROR: table %#" PRIx64 ": subclusters that contradict each other", table);
	if (!(k->fix & BLK_FIX_ERRORS))
		return 0;
	e.bits = (uint64_t)zero << Q_SUBCLUSTERS | (host ? data & ~zero : 0);
	return write_entry(k, table, at, e);
}

static int check_entry(struct check *k, uint64_t table, uint64_t at, struct q_entry e)
{
	struct qcow2 *q = k->q;
	uint64_t host = e.desc & Q_OFFSET_MASK;

	if (e.desc & Q_COMPRESSED)
		return check_packed(k, table, at, e);
	if (!q_entry_has_host(q, e))
		return q->ext_l2 ? check_subclusters(k, table, at, e) : 0;
	if ((host & (q->cluster - 1)) || (!q->has_data_file && !range_ok(k, host, q->cluster))) {
		corruption(k, "ERROR: data at %#" PRIx64 " is not a cluster of the file", host);
		return drop_entry(k, table, at);
	}
	count_fragment(k, host);
	if (!q->has_data_file)
		refer(k, host, q->cluster);
	return q->ext_l2 ? check_subclusters(k, table, at, e) : 0;
}

static int check_table(struct check *k, uint64_t table)
{
	struct qcow2 *q = k->q;
	int r = q_file_read(q->file, k->table, q->cluster, table);

	for (uint64_t at = 0; at < q->cluster && !r; at += q->l2_entry) {
		struct q_entry e = {.desc = be64_load(k->table + at)};

		if (q->ext_l2)
			e.bits = be64_load(k->table + at + 8);
		if (e.desc || e.bits)
			r = check_entry(k, table, at, e);
	}
	return r;
}

/* ---- L1 tables ---- */

static bool walk_once(struct check *k, uint64_t table)
{
	uint64_t i = table >> k->q->h.cluster_bits;
	bool first = !(k->walked[i / 8] >> (i % 8) & 1);

	k->walked[i / 8] |= (uint8_t)(1u << (i % 8));
	return first;
}

/* *bad: the entry is of no use. */
static int check_l1_entry(struct check *k, uint64_t entry, bool *bad)
{
	uint64_t table = entry & Q_OFFSET_MASK;

	*bad = false;
	if (!table)
		return 0;
	if ((table & (k->q->cluster - 1)) || !range_ok(k, table, k->q->cluster)) {
		corruption(k, "ERROR: L2 table at %#" PRIx64 " is not a cluster of the file",
			   table);
		*bad = true;
		return 0;
	}
	refer(k, table, k->q->cluster);
	if (!walk_once(k, table)) {
		corruption(k, "ERROR: L2 table at %#" PRIx64 " is used twice", table);
		*bad = true;
		return 0;
	}
	return check_table(k, table);
}

static int check_l1(struct check *k, struct q_table *l1)
{
	bool any = false;
	int r = 0;

	memset(k->walked, 0, k->nr / 8 + 1);
	k->next_host = 0;
	for (uint32_t i = 0; i < l1->nr && !r; i++) {
		bool bad;

		r = check_l1_entry(k, l1->v[i], &bad);
		if (!bad || !(k->fix & BLK_FIX_ERRORS))
			continue;
		l1->v[i] = 0;
		any = true;
	}
	return r < 0 || !any ? r : q_table_write(k->q->file, l1->host, l1->nr, l1->v);
}

static int check_snapshot(struct check *k, const struct q_snapshot *s)
{
	struct q_table l1 = {.host = s->l1_host, .nr = s->l1_nr};
	int r;

	if (!s->l1_nr)
		return 0;
	if (!refer_once(k, s->l1_host, 8ull * s->l1_nr, "the L1 table of a snapshot"))
		return 0;
	r = q_table_read(k->q->file, l1.host, l1.nr, &l1.v);
	if (r < 0)
		return r;
	r = check_l1(k, &l1);
	free(l1.v);
	return r;
}

static int check_snapshots(struct check *k)
{
	struct qcow2 *q = k->q;
	int r = 0;

	if (q->snaps_damaged) {
		corruption(k, "ERROR: the snapshot table makes no sense from entry %u on",
			   q->nr_snaps + 1);
		k->bad_snapshots = true;
	}
	if (q->snap_len)
		refer_once(k, q->h.snap_host, q->snap_len, "the snapshot table");
	k->active = false;
	for (uint32_t i = 0; i < q->nr_snaps && !r; i++)
		r = check_snapshot(k, &q->snaps[i]);
	return r;
}

/* ---- the rest of what is in the file ---- */

static bool use_bitmap(void *opaque, uint64_t host, uint64_t len)
{
	return refer_once(opaque, host, len, "a part of a dirty bitmap");
}

static bool refer_block(struct check *k, uint64_t host)
{
	bool inside = !(host & (k->q->cluster - 1)) && range_ok(k, host, k->q->cluster);
	bool ok = refer_once(k, host, k->q->cluster, "a refcount block");

	if (inside && !ok) /* the other user stays, this one goes */
		k->refs[host >> k->q->h.cluster_bits]--;
	return ok;
}

static void check_blocks(struct check *k)
{
	struct qcow2 *q = k->q;
	uint64_t len = (uint64_t)q->h.reftable_clusters << q->h.cluster_bits;

	k->table_counted = refer_once(k, q->rt.host, len, "the refcount table");
	if (!k->table_counted) {
		k->broken = true;
		memset(q->rt.v, 0, 8ull * q->rt.nr);
		if (!len)
			corruption(k, "ERROR: there is no refcount table");
		return;
	}
	for (uint32_t i = 0; i < q->rt.nr; i++)
		if (q->rt.v[i] && !refer_block(k, q->rt.v[i])) {
			k->broken = true;
			q->rt.v[i] = 0;
		}
}

/* What else lies in a refcount block would be taken for counts, and written over by mending. */
static void see_shared_blocks(struct check *k)
{
	struct qcow2 *q = k->q;
	uint64_t end = q->rt.host + ((uint64_t)q->h.reftable_clusters << q->h.cluster_bits);

	for (uint32_t i = 0; i < q->rt.nr; i++)
		if (q->rt.v[i] && k->refs[q->rt.v[i] >> q->h.cluster_bits] != 1) {
			corruption(k, "ERROR: refcount block %u lies over something else", i);
			k->broken = true;
		}
	for (uint64_t at = q->rt.host; k->table_counted && at < end; at += q->cluster)
		if (k->refs[at >> q->h.cluster_bits] != 1) {
			corruption(k, "ERROR: the refcount table lies over something else");
			k->broken = true;
		}
}

static int count_everything(struct check *k)
{
	struct qcow2 *q = k->q;
	int r = 0;

	refer(k, 0, q->cluster);
	if (q->h.crypt_len)
		refer_once(k, q->h.crypt_host, q->h.crypt_len, "the encryption header");
	check_blocks(k);
	k->active = true;
	if (!q->l1.nr && q->l1.host && range_ok(k, q->l1.host, 1))
		refer(k, q->l1.host, 1); /* an empty table keeps its place */
	if (q->l1.nr && refer_once(k, q->l1.host, 8ull * q->l1.nr, "the L1 table"))
		r = check_l1(k, &q->l1);
	if (!r)
		r = check_snapshots(k);
	if (q->bitmaps_damaged)
		corruption(k, "ERROR: the directory of dirty bitmaps makes no sense");
	return r < 0 ? r : q_bitmaps_visit(q, use_bitmap, k);
}

/* ---- comparing with the refcounts ---- */

static bool may_set(const struct check *k, uint64_t have, uint64_t want)
{
	return k->fix & (have > want ? BLK_FIX_LEAKS | BLK_FIX_ERRORS : BLK_FIX_ERRORS);
}

static int set_count(struct check *k, uint64_t cluster, uint64_t want)
{
	struct qcow2 *q = k->q;
	uint64_t idx = cluster / q->rb_entries;

	if (want > q->refcount_max || idx >= q->rt.nr || !q->rt.v[idx]) {
		k->broken = true; /* no block to put it in */
		return 0;
	}
	return q_refcount_set(q, cluster, want);
}

static void tell_count(struct check *k, uint64_t cluster, uint64_t have, uint64_t want)
{
	/* After a crash with lazy refcounts low counts are what the dirty bit announces. */
	bool lag = k->q->h.incompat & Q_INCOMPAT_DIRTY;

	if (have > want || lag) {
		k->leaks++;
		say(k, "%s cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
		    have > want ? "Leaked" : "Uncounted", cluster, have, want);
	} else {
		corruption(k, "ERROR cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
			   cluster, have, want);
	}
}

static int compare_count(struct check *k, uint64_t cluster)
{
	struct qcow2 *q = k->q;
	uint64_t have = 0, want = cluster < k->nr ? k->refs[cluster] : 0;
	int r;

	pthread_mutex_lock(&q->lock);
	r = q_refcount_get(q, cluster, &have);
	if (!r && have != want) {
		tell_count(k, cluster, have, want);
		if (may_set(k, have, want))
			r = set_count(k, cluster, want);
	}
	pthread_mutex_unlock(&q->lock);
	return r;
}

static int compare_counts(struct check *k)
{
	struct qcow2 *q = k->q;
	int r = 0;

	for (uint64_t i = 0; i < k->nr && !r; i++)
		r = compare_count(k, i);
	/* What blocks count behind the end of the file. */
	for (uint32_t idx = 0; idx < q->rt.nr && !r; idx++) {
		uint64_t first = idx * q->rb_entries;

		if (!q->rt.v[idx])
			continue;
		for (uint64_t i = MAX(first, k->nr); i < first + q->rb_entries && !r; i++)
			r = compare_count(k, i);
	}
	return r < 0 || !k->fix ? r : q_settle(q);
}

/* ---- bit 63 ---- */

static void tell_copied(struct check *k, const char *what, uint64_t host, bool set)
{
	if (set) {
		corruption(k, "ERROR: %s at %#" PRIx64 " counts as its only user's and is not",
			   what, host);
		return;
	}
	k->leaks++;
	say(k, "%s at %#" PRIx64 " would be copied without need", what, host);
}

static int compare_copied(struct check *k, const char *what, uint64_t entry)
{
	uint64_t host = entry & Q_OFFSET_MASK, refs = 0;
	int r = 0;

	if ((host & (k->q->cluster - 1)) || !range_ok(k, host, k->q->cluster))
		return 0; /* told already */
	pthread_mutex_lock(&k->q->lock);
	if (k->q->h.incompat & Q_INCOMPAT_DIRTY) /* the counts lag */
		refs = k->refs[host >> k->q->h.cluster_bits];
	else
		r = q_refcount_get(k->q, host >> k->q->h.cluster_bits, &refs);
	pthread_mutex_unlock(&k->q->lock);
	if (!r && (refs == 1) != !!(entry & Q_COPIED))
		tell_copied(k, what, host, entry & Q_COPIED);
	return r;
}

static int compare_copied_table(struct check *k, uint64_t table)
{
	struct qcow2 *q = k->q;
	int r = q_file_read(q->file, k->table, q->cluster, table);

	for (uint64_t at = 0; at < q->cluster && !r; at += q->l2_entry) {
		struct q_entry e = {.desc = be64_load(k->table + at)};

		if (!q->has_data_file && q_entry_has_host(q, e))
			r = compare_copied(k, "data", e.desc);
	}
	return r;
}

static int compare_all_copied(struct check *k)
{
	struct qcow2 *q = k->q;
	int r = 0;

	memset(k->walked, 0, k->nr / 8 + 1);
	for (uint32_t i = 0; i < q->l1.nr && !r; i++) {
		uint64_t table = q->l1.v[i] & Q_OFFSET_MASK;

		if (!table || (table & (q->cluster - 1)) || !range_ok(k, table, q->cluster) ||
		    !walk_once(k, table))
			continue;
		r = compare_copied(k, "L2 table", q->l1.v[i]);
		if (!r)
			r = compare_copied_table(k, table);
	}
	return r;
}

/* ---- a new refcount structure ---- */

static int rebuild_write(struct check *k, uint64_t table_clusters, uint64_t blocks)
{
	struct qcow2 *q = k->q;
	uint64_t total = k->nr + table_clusters + blocks, at = 0;
	uint64_t *table = calloc(table_clusters, q->cluster);
	uint8_t *block = malloc(q->cluster);
	int r = table && block ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < blocks && !r; i++) {
		uint64_t host = (k->nr + table_clusters + i) << q->h.cluster_bits;

		memset(block, 0, q->cluster);
		for (uint64_t n = 0; n < q->rb_entries && at < total; n++, at++)
			q_count_store(q->h.refcount_order, block, n,
				      at < k->nr ? MIN(k->refs[at], q->refcount_max) : 1);
		table[i] = host;
		r = blk_write(q->file, block, q->cluster, host);
	}
	if (!r)
		r = q_table_write(q->file, k->nr << q->h.cluster_bits,
				  (uint32_t)(table_clusters * (q->cluster / 8)), table);
	free(table);
	free(block);
	return r < 0 ? r : blk_flush(q->file);
}

static int rebuild_switch(struct check *k, uint64_t table_clusters)
{
	struct qcow2 *q = k->q;
	uint64_t *v;
	int r;

	q->h.reftable_host = k->nr << q->h.cluster_bits;
	q->h.reftable_clusters = (uint32_t)table_clusters;
	r = q_header_update(q);
	if (!r)
		r = q_table_read(q->file, q->h.reftable_host,
				 (uint32_t)(table_clusters * (q->cluster / 8)), &v);
	if (r < 0)
		return r;
	pthread_mutex_lock(&q->lock);
	free(q->rt.v);
	q->rt = (struct q_table){.v = v,
				 .host = q->h.reftable_host,
				 .nr = (uint32_t)(table_clusters * (q->cluster / 8))};
	q_cache_drop(&q->rb);
	q->free_hint = 0;
	q->packed_host = 0;
	pthread_mutex_unlock(&q->lock);
	return 0;
}

/* Behind everything the file has.  The counts leave the old structure out: its clusters are free
 * afterwards. */
static int rebuild(struct check *k)
{
	struct qcow2 *q = k->q;
	uint64_t blocks = 1, table = 1, before;
	int r;

	do {
		before = blocks + table;
		blocks = (k->nr + before) / q->rb_entries + 1;
		table = (blocks * 8 + q->cluster - 1) / q->cluster;
	} while (blocks + table != before);
	if (table * q->cluster > MAX(Q_REFTABLE_MAX, q->cluster))
		return -EFBIG;
	say(k, "Building new refcounts");
	pthread_mutex_lock(&q->lock);
	q_cache_drop(&q->rb); /* half-mended counts */
	q->rt.dirty_lo = q->rt.dirty_hi = 0;
	pthread_mutex_unlock(&q->lock);
	r = rebuild_write(k, table, blocks);
	return r < 0 ? r : rebuild_switch(k, table);
}

static void forget_structure(struct check *k)
{
	struct qcow2 *q = k->q;
	uint64_t len = (uint64_t)q->h.reftable_clusters << q->h.cluster_bits;

	for (uint32_t i = 0; i < q->rt.nr; i++)
		if (q->rt.v[i] && range_ok(k, q->rt.v[i], q->cluster))
			k->refs[q->rt.v[i] >> q->h.cluster_bits]--;
	for (uint64_t at = 0; k->table_counted && at < len; at += q->cluster)
		k->refs[(q->rt.host + at) >> q->h.cluster_bits]--;
}

/* ---- a pass ---- */

static int begin(struct check *k, struct qcow2 *q)
{
	k->q = q;
	k->file_len = blk_size(q->file);
	k->nr = q_clusters(q, k->file_len) + 1;
	if (k->nr > Q_CHECK_CLUSTERS_MAX)
		return -EFBIG;
	k->refs = calloc(k->nr, sizeof(*k->refs));
	k->walked = calloc(1, k->nr / 8 + 1);
	k->table = malloc(q->cluster);
	return k->refs && k->walked && k->table ? 0 : -ENOMEM;
}

static void end(struct check *k)
{
	free(k->refs);
	free(k->walked);
	free(k->table);
}

static int mend_tables(struct check *k)
{
	int r = 0;

	if (k->fix & BLK_FIX_ERRORS)
		r = q_bitmaps_mend(k->q);
	if (r < 0 || !k->bad_snapshots || !(k->fix & BLK_FIX_ERRORS))
		return r;
	r = q_snapshots_write(k->q);
	k->q->snaps_damaged = r < 0;
	return r < 0 ? r : q_settle(k->q);
}

static int mend_copied(struct check *k)
{
	if (!k->fix)
		return 0;
	return q_copied_rebuild(k->q);
}

static int pass(struct check *k)
{
	int r = count_everything(k);

	see_shared_blocks(k);
	if (!r && !k->broken)
		r = compare_counts(k);
	if (!r && k->broken && (k->fix & BLK_FIX_ERRORS)) {
		forget_structure(k);
		r = rebuild(k);
	}
	if (!r && !k->broken)
		r = compare_all_copied(k);
	if (!r)
		r = mend_tables(k);
	return r ? r : mend_copied(k);
}

static int run(struct qcow2 *q, struct blk_check *c, unsigned fix, struct check *k)
{
	int r;

	*k = (struct check){.c = c, .fix = fix};
	r = begin(k, q);
	if (!r)
		r = pass(k);
	end(k);
	return r;
}

/* What the old refcounts lay over - the L1 table, say - was not looked into while they did: with
 * new ones it is, and is counted. */
static int run_mending(struct qcow2 *q, struct blk_check *c, unsigned fix, struct check *k)
{
	struct check second;
	int r = run(q, c, fix, k);

	if (r < 0 || !k->broken || !(fix & BLK_FIX_ERRORS))
		return r;
	r = q_settle(q);
	return r < 0 ? r : run(q, NULL, fix, &second);
}

/* ---- for others ---- */

static int clear_marks(struct qcow2 *q, bool clean)
{
	uint64_t was = q->h.incompat;

	q->h.incompat &= ~Q_INCOMPAT_DIRTY;
	if (clean)
		q->h.incompat &= ~Q_INCOMPAT_CORRUPT;
	q->b->info.dirty = false;
	q->b->info.corrupt = q->h.incompat & Q_INCOMPAT_CORRUPT;
	return was == q->h.incompat ? 0 : q_header_update(q);
}

static int mend(struct qcow2 *q, struct blk_check *c, struct check *k)
{
	struct check again;
	int r = q_settle(q);

	if (!r)
		r = run(q, NULL, 0, &again);
	if (r < 0)
		return r;
	c->corruptions_fixed = k->corruptions - MIN(again.corruptions, k->corruptions);
	c->leaks_fixed = k->leaks - MIN(again.leaks, k->leaks);
	k->corruptions = again.corruptions;
	k->leaks = again.leaks;
	return clear_marks(q, !k->corruptions);
}

static uint64_t image_end(struct qcow2 *q)
{
	uint64_t cluster;
	int r;

	pthread_mutex_lock(&q->lock);
	cluster = q_tail(q, &r);
	pthread_mutex_unlock(&q->lock);
	return cluster << q->h.cluster_bits;
}

static int check_locked(struct qcow2 *q, struct blk_check *c, struct error *err)
{
	struct check k;
	int r = q->readonly ? 0 : q_settle(q);

	if (!r)
		r = run_mending(q, c, q->readonly ? 0 : c->fix, &k);
	if (r == -EFBIG)
		return err_set(err, EFBIG, "'%s' is too large to be checked: %u clusters at most",
			       q->b->path, Q_CHECK_CLUSTERS_MAX);
	if (!r && c->fix && !q->readonly)
		r = mend(q, c, &k);
	if (r < 0)
		return err_errno(err, -r, "cannot check '%s'", q->b->path);
	c->corruptions = k.corruptions;
	c->leaks = k.leaks;
	c->total_clusters = q_clusters(q, blk_size(q->b));
	c->allocated_clusters = k.allocated;
	c->fragmented_clusters = k.fragmented;
	c->compressed_clusters = k.compressed;
	c->image_end = image_end(q);
	return 0;
}

int q_check(struct blk *b, struct blk_check *c, struct error *err)
{
	struct qcow2 *q = q_of(b);
	int r;

	if (c->fix && q->readonly)
		return err_set(err, EROFS, "'%s' is open for reading only", b->path);
	pthread_rwlock_wrlock(&q->io);
	r = check_locked(q, c, err);
	pthread_rwlock_unlock(&q->io);
	return r;
}

int q_rebuild_refcounts(struct qcow2 *q, struct error *err)
{
	struct check k;
	int r = run_mending(q, NULL, BLK_FIX_LEAKS | BLK_FIX_ERRORS, &k);

	if (!r)
		r = q_settle(q);
	if (!r)
		r = clear_marks(q, false);
	return r < 0 ? err_errno(err, -r, "'%s': its refcounts cannot be rebuilt", q->b->path) : 0;
}
