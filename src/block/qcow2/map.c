/* block/qcow2/map.c - from a guest offset to a place in the file and back to entries ("Cluster
 * mapping", "Extended L2 Entries").  All of it under the lock. */
#include "block/qcow2/qcow2.h"

#include <stdlib.h>

/* ---- tables ---- */

static void l1_set(struct qcow2 *q, uint32_t i, uint64_t entry)
{
	struct q_table *t = &q->l1;
	bool clean = t->dirty_lo >= t->dirty_hi;

	t->v[i] = entry;
	t->dirty_lo = clean ? i : MIN(t->dirty_lo, i);
	t->dirty_hi = clean ? i + 1 : MAX(t->dirty_hi, i + 1);
}

/* The bytes of a table as they are in memory; host 0: a new, empty one. */
static int table_bytes(struct qcow2 *q, uint64_t host, uint8_t *bytes)
{
	memset(bytes, 0, q->cluster);
	for (uint32_t at = 0; host && at < q->cluster; at += q->l2.slice) {
		struct q_slice *s;
		int r = q_cache_get(&q->l2, host + at, &s);

		if (r < 0)
			return r;
		memcpy(bytes + at, s->bytes, q->l2.slice);
	}
	return 0;
}

/* A table of our own for L1 entry i, with the contents of the one at `old`.  It is whole in the
 * file before the L1 entry is: nothing needs to be undone after a cut. */
static int new_table(struct qcow2 *q, uint32_t i, uint64_t old)
{
	uint8_t *bytes = malloc(q->cluster);
	uint64_t host, nr = 1;
	int r;

	if (!bytes)
		return -ENOMEM;
	r = table_bytes(q, old, bytes);
	if (!r)
		r = q_alloc(q, &nr, &host);
	if (r < 0)
		goto free_bytes;
	r = blk_write(q->file, bytes, q->cluster, host);
	if (r < 0) {
		q_free(q, host, q->cluster, false);
		goto free_bytes;
	}
	q_cache_forget(&q->l2, host, q->cluster);
	l1_set(q, i, host | Q_COPIED);
	if (old)
		r = q_free(q, old, q->cluster, false);
free_bytes:
	free(bytes);
	return r;
}

int q_l2_find(struct qcow2 *q, uint64_t guest, bool make, struct q_place *p)
{
	uint64_t i = guest >> (q->l2_bits + q->h.cluster_bits), host, at;
	int r;

	*p = (struct q_place){0};
	if (i >= q->l1.nr)
		return -EINVAL;
	host = q->l1.v[i] & Q_OFFSET_MASK;
	if (host & (q->cluster - 1))
		return q_corrupt(q, true, "L1 entry %llu is not at a cluster",
				 (unsigned long long)i);
	if (make && !(host && (q->l1.v[i] & Q_COPIED))) {
		r = new_table(q, (uint32_t)i, host);
		if (r < 0)
			return r;
		host = q->l1.v[i] & Q_OFFSET_MASK;
	}
	if (!host)
		return 0;
	at = (guest >> q->h.cluster_bits & ((1ull << q->l2_bits) - 1)) * q->l2_entry;
	r = q_cache_get(&q->l2, host + ALIGN_DOWN(at, q->l2.slice), &p->slice);
	p->at = (uint32_t)(at & (q->l2.slice - 1));
	p->left = (q->l2.slice - p->at) / q->l2_entry;
	return r;
}

/* ---- entries ---- */

struct q_entry q_entry_get(const struct qcow2 *q, const struct q_place *p)
{
	const uint8_t *at = p->slice->bytes + p->at;

	return (struct q_entry){be64_load(at), q->ext_l2 ? be64_load(at + 8) : 0};
}

void q_entry_set(struct qcow2 *q, const struct q_place *p, struct q_entry e)
{
	uint8_t *at = p->slice->bytes + p->at;

	be64_store(at, e.desc);
	if (q->ext_l2)
		be64_store(at + 8, e.bits);
	q_cache_dirty(&q->l2, p->slice);
}

bool q_entry_has_host(const struct qcow2 *q, struct q_entry e)
{
	if (e.desc & Q_COMPRESSED)
		return false;
	return (e.desc & Q_OFFSET_MASK) || (q->has_data_file && (e.desc & Q_COPIED));
}

enum q_kind q_entry_kind(const struct qcow2 *q, struct q_entry e, unsigned sub)
{
	bool host = q_entry_has_host(q, e);

	if (e.desc & Q_COMPRESSED)
		return Q_PACKED;
	if (!q->ext_l2) {
		if (q->h.version >= 3 && (e.desc & Q_ZERO))
			return host ? Q_ZERO_AT : Q_ZERO_PLAIN;
		return host ? Q_NORMAL : Q_UNALLOC;
	}
	if (e.bits >> (sub + Q_SUBCLUSTERS) & 1)
		return host ? Q_ZERO_AT : Q_ZERO_PLAIN;
	if (e.bits >> sub & 1)
		return Q_NORMAL;
	return host ? Q_UNALLOC_AT : Q_UNALLOC;
}

int q_entry_check(struct qcow2 *q, uint64_t guest, struct q_entry e)
{
	uint64_t host = e.desc & Q_OFFSET_MASK;
	unsigned long long at = guest;

	if (e.desc & Q_COMPRESSED) {
		if (q->has_data_file)
			return q_corrupt(q, true, "compressed data at %#llx beside a data file",
					 at);
		return 0;
	}
	if (host & (q->cluster - 1))
		return q_corrupt(q, true, "the data of %#llx is not at a cluster", at);
	if (q->has_data_file && q_entry_has_host(q, e) && host != ALIGN_DOWN(guest, q->cluster))
		return q_corrupt(q, true, "the data of %#llx is elsewhere in the data file", at);
	if (q->ext_l2 && (e.bits & e.bits >> Q_SUBCLUSTERS & UINT32_MAX))
		return q_corrupt(q, true, "a subcluster of %#llx is both data and zeroes", at);
	if (q->ext_l2 && (uint32_t)e.bits && !q_entry_has_host(q, e))
		return q_corrupt(q, true, "subclusters of %#llx have no place", at);
	return 0;
}

/* "Compressed Clusters Descriptor" */
void q_packed_place(unsigned cluster_bits, uint64_t desc, uint64_t *host, uint32_t *len)
{
	unsigned x = 62 - (cluster_bits - 8);
	uint64_t sectors = (desc >> x & ((1ull << (cluster_bits - 8)) - 1)) + 1;

	*host = desc & ((1ull << x) - 1);
	*len = (uint32_t)(sectors * Q_SECTOR - (*host & (Q_SECTOR - 1)));
}

uint64_t q_packed_desc(const struct qcow2 *q, uint64_t host, size_t len)
{
	unsigned x = 62 - (q->h.cluster_bits - 8);

	return Q_COMPRESSED | ((host + len - 1) / Q_SECTOR - host / Q_SECTOR) << x | host;
}

int q_entry_free(struct qcow2 *q, struct q_entry e, bool punch)
{
	uint64_t host;
	uint32_t len;

	if (e.desc & Q_COMPRESSED) {
		q_packed_place(q->h.cluster_bits, e.desc, &host, &len);
		return q_free(q, host, len, punch);
	}
	if (q->has_data_file || !q_entry_has_host(q, e))
		return 0;
	return q_free(q, e.desc & Q_OFFSET_MASK, q->cluster, punch);
}

/* ---- runs ---- */

static bool has_place(enum q_kind kind)
{
	return kind == Q_UNALLOC_AT || kind == Q_ZERO_AT || kind == Q_NORMAL;
}

static void map_no_table(const struct qcow2 *q, uint64_t guest, uint64_t len, struct q_run *run)
{
	uint64_t span = q_l2_span(q), i = guest / span, end = guest + len;
	uint64_t to = (i + 1) * span;

	while (to < end && ++i < q->l1.nr && !(q->l1.v[i] & Q_OFFSET_MASK))
		to += span;
	*run = (struct q_run){.kind = Q_UNALLOC, .len = MIN(to, end) - guest};
}

/* How far the subclusters from `sub` on go on as `run` began; false: to the end of this entry. */
static bool run_ends(const struct qcow2 *q, struct q_entry e, unsigned *sub, struct q_run *run)
{
	uint64_t host = e.desc & Q_OFFSET_MASK;

	for (; *sub < q->subs; ++*sub) {
		enum q_kind kind = q_entry_kind(q, e, *sub);

		if (kind != run->kind)
			return true;
		if (has_place(kind) && (run->copied != !!(e.desc & Q_COPIED) ||
					run->host + run->len != host + (uint64_t)*sub * q->sub))
			return true;
		run->len += q->sub;
	}
	return false;
}

static void run_begin(const struct qcow2 *q, struct q_entry e, unsigned sub, struct q_run *run)
{
	run->kind = q_entry_kind(q, e, sub);
	run->copied = e.desc & Q_COPIED;
	if (has_place(run->kind))
		run->host = (e.desc & Q_OFFSET_MASK) + (uint64_t)sub * q->sub;
}

static void map_packed(const struct qcow2 *q, struct q_entry e, uint64_t guest, uint64_t len,
		       struct q_run *run)
{
	*run = (struct q_run){.kind = Q_PACKED};
	q_packed_place(q->h.cluster_bits, e.desc, &run->host, &run->packed_len);
	run->len = MIN(len, q->cluster - (guest & (q->cluster - 1)));
}

int q_map(struct qcow2 *q, uint64_t guest, uint64_t len, struct q_run *run)
{
	unsigned sub = (unsigned)((guest & (q->cluster - 1)) / q->sub);
	uint64_t cluster = ALIGN_DOWN(guest, q->cluster), skip = guest & (q->sub - 1);
	struct q_place p;
	struct q_entry e;
	int r = q_l2_find(q, guest, false, &p);

	if (r < 0)
		return r;
	*run = (struct q_run){0};
	if (!p.slice) {
		map_no_table(q, guest, len, run);
		return 0;
	}
	for (; p.left && run->len < len + skip; p.left--, p.at += q->l2_entry, sub = 0) {
		e = q_entry_get(q, &p);
		r = q_entry_check(q, cluster, e);
		if (r < 0)
			return run->len ? 0 : r;
		if (!run->len && (e.desc & Q_COMPRESSED)) {
			map_packed(q, e, guest, len, run);
			return 0;
		}
		if (!run->len)
			run_begin(q, e, sub, run);
		if (run_ends(q, e, &sub, run))
			break;
		cluster += q->cluster;
	}
	run->len = MIN(run->len - skip, len);
	run->host += skip;
	return 0;
}
