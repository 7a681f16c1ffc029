/* block/qcow2/snapshot.c - internal snapshots ("Snapshots").
 *
 * A snapshot is an L1 table of its own over shared L2 tables and clusters; each of those is counted
 * once per L1 table that reaches it.  Everything here runs with io held exclusively, and between
 * any two of its steps the file is flushed, so that a cut leaves either the old or the new state:
 *
 *   create   clear bit 63 of the active entries - count everything once more, write the copy of L1
 * - write a new snapshot table - point the header at it apply    count the snapshot's tree once
 * more, write its L1 as the new active one - point the header at it - count the old tree down
 *   delete   write a table without it - point the header at it - count its tree down - set bit 63
 *            where one user is left
 *
 * A clear bit 63 costs a needless copy at most; a set one with two users would destroy a snapshot.
 */
#include "block/qcow2/qcow2.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { SNAP_FIXED = 40, SNAP_EXTRA = 16 };

/* ---- the table ---- */

static void snapshot_fini(struct q_snapshot *s)
{
	free(s->id);
	free(s->name);
	free(s->extra);
	*s = (struct q_snapshot){0};
}

void q_snapshots_fini(struct qcow2 *q)
{
	for (uint32_t i = 0; i < q->nr_snaps; i++)
		snapshot_fini(&q->snaps[i]);
	free(q->snaps);
	q->snaps = NULL;
	q->nr_snaps = 0;
}

static void parse_fixed(struct q_snapshot *s, const uint8_t *p)
{
	s->l1_host = be64_load(p);
	s->l1_nr = be32_load(p + 8);
	s->id_len = be16_load(p + 12);
	s->name_len = be16_load(p + 14);
	s->date_s = be32_load(p + 16);
	s->date_ns = be32_load(p + 20);
	s->vm_clock_ns = be64_load(p + 24);
	s->vm_state_size = be32_load(p + 32);
	s->extra_len = be32_load(p + 36);
}

static int parse_rest(struct qcow2 *q, struct q_snapshot *s, const uint8_t *p)
{
	if (s->extra_len >= 8)
		s->vm_state_size = be64_load(p);
	s->disk_size = s->extra_len >= SNAP_EXTRA ? be64_load(p + 8) : q->h.size;
	s->extra = malloc(s->extra_len + 1);
	s->id = malloc(s->id_len + 1u);
	s->name = malloc(s->name_len + 1u);
	if (!s->extra || !s->id || !s->name)
		return -ENOMEM;
	memcpy(s->extra, p, s->extra_len);
	memcpy(s->id, p + s->extra_len, s->id_len);
	memcpy(s->name, p + s->extra_len + s->id_len, s->name_len);
	s->id[s->id_len] = s->name[s->name_len] = 0;
	return 0;
}

/* *at moves behind the entry.  -EINVAL: it is nonsense. */
static int read_entry(struct qcow2 *q, struct q_snapshot *s, uint64_t *at)
{
	uint8_t fixed[SNAP_FIXED], *rest;
	uint64_t len;
	int r = q_file_read(q->file, fixed, SNAP_FIXED, *at);

	if (r < 0)
		return r;
	parse_fixed(s, fixed);
	if (s->extra_len > Q_SNAP_EXTRA_MAX || (uint64_t)s->l1_nr * 8 > Q_L1_MAX ||
	    (s->l1_host & (q->cluster - 1)) || s->l1_host > INT64_MAX - Q_L1_MAX)
		return -EINVAL;
	len = (uint64_t)s->extra_len + s->id_len + s->name_len;
	rest = malloc(len + 1);
	if (!rest)
		return -ENOMEM;
	r = q_file_read(q->file, rest, len, *at + SNAP_FIXED);
	if (!r)
		r = parse_rest(q, s, rest);
	free(rest);
	*at = ALIGN_UP(*at + SNAP_FIXED + len, 8);
	return r;
}

int q_snapshots_read(struct qcow2 *q, struct error *err)
{
	bool lenient = q->b->flags & (BLK_CHECKING | BLK_RECOVER);
	uint64_t at = q->h.snap_host, end;
	int r = 0;

	if (!q->h.nr_snapshots)
		return 0;
	end = MIN(at + Q_SNAPTABLE_MAX, blk_size(q->file));
	q->snaps = calloc(q->h.nr_snapshots, sizeof(*q->snaps));
	if (!q->snaps)
		return err_errno(err, ENOMEM, "'%s'", q->b->path);
	for (uint32_t i = 0; i < q->h.nr_snapshots && !r; i++) {
		q->nr_snaps = i + 1;
		r = at < end ? read_entry(q, &q->snaps[i], &at) : -EINVAL;
		if (!r && at - q->h.snap_host > Q_SNAPTABLE_MAX)
			r = -EINVAL;
	}
	q->snap_len = at - q->h.snap_host;
	if (!r)
		return 0;
	if (lenient && r == -EINVAL) { /* the check will tell */
		snapshot_fini(&q->snaps[--q->nr_snaps]);
		q->snaps_damaged = true;
		return 0;
	}
	return r == -EINVAL
		       ? err_set(err, EINVAL,
				 "'%s': entry %u of the snapshot table is damaged (try hv disk "
				 "check -r all)",
				 q->b->path, q->nr_snaps)
		       : err_errno(err, -r, "cannot read the snapshots of '%s'", q->b->path);
}

static uint64_t entry_len(const struct q_snapshot *s)
{
	return ALIGN_UP(
		SNAP_FIXED + MAX(s->extra_len, (uint32_t)SNAP_EXTRA) + s->id_len + s->name_len, 8);
}

static void put_entry(const struct q_snapshot *s, uint8_t *p)
{
	uint32_t extra = MAX(s->extra_len, (uint32_t)SNAP_EXTRA);

	be64_store(p, s->l1_host);
	be32_store(p + 8, s->l1_nr);
	be16_store(p + 12, s->id_len);
	be16_store(p + 14, s->name_len);
	be32_store(p + 16, s->date_s);
	be32_store(p + 20, s->date_ns);
	be64_store(p + 24, s->vm_clock_ns);
	be32_store(p + 32, (uint32_t)MIN(s->vm_state_size, UINT32_MAX));
	be32_store(p + 36, extra);
	if (s->extra_len)
		memcpy(p + SNAP_FIXED, s->extra, s->extra_len);
	be64_store(p + SNAP_FIXED, s->vm_state_size);
	be64_store(p + SNAP_FIXED + 8, s->disk_size);
	memcpy(p + SNAP_FIXED + extra, s->id, s->id_len);
	memcpy(p + SNAP_FIXED + extra + s->id_len, s->name, s->name_len);
}

/* A new table beside the old one, then the header, then the old one goes. */
int q_snapshots_write(struct qcow2 *q)
{
	uint64_t old_host = q->h.snap_host, old_len = q->snap_len, len = 0, host = 0;
	uint8_t *bytes, *p;
	int r = 0;

	for (uint32_t i = 0; i < q->nr_snaps; i++)
		len += entry_len(&q->snaps[i]);
	if (len > Q_SNAPTABLE_MAX)
		return -EFBIG;
	p = bytes = calloc(1, len + 1);
	if (!bytes)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->nr_snaps; p += entry_len(&q->snaps[i++]))
		put_entry(&q->snaps[i], p);
	pthread_mutex_lock(&q->lock);
	if (len)
		r = q_alloc_all(q, q_clusters(q, len), &host);
	pthread_mutex_unlock(&q->lock);
	if (!r && len)
		r = blk_write(q->file, bytes, len, host);
	free(bytes);
	if (!r)
		r = q_settle(q);
	if (r < 0)
		return r;
	q->h.snap_host = host;
	q->h.nr_snapshots = q->nr_snaps;
	q->snap_len = len;
	r = q_header_update(q);
	pthread_mutex_lock(&q->lock);
	if (!r && old_len && old_host)
		r = q_free(q, old_host, old_len, true);
	pthread_mutex_unlock(&q->lock);
	return r;
}

int q_snapshot_find(const struct qcow2 *q, const char *id_or_name)
{
	for (uint32_t i = 0; i < q->nr_snaps; i++)
		if (!strcmp(q->snaps[i].id, id_or_name))
			return (int)i;
	for (uint32_t i = 0; i < q->nr_snaps; i++)
		if (!strcmp(q->snaps[i].name, id_or_name))
			return (int)i;
	return -ENOENT;
}

/* ---- counting a tree ---- */

struct count {
	uint64_t left; /* references to go; for taking back what was done of a failed run */
	uint64_t done;
	int delta;
};

static int count_ref(struct qcow2 *q, struct count *c, uint64_t host, uint64_t len)
{
	uint64_t first = host >> q->h.cluster_bits;
	uint64_t last = (host + len - 1) >> q->h.cluster_bits;
	int r = 0;

	for (uint64_t at = first; at <= last && c->left && !r; at++) {
		if (c->delta > 0)
			r = q_refcount_add(q, at, 1, c->delta);
		else
			r = q_free(q, at << q->h.cluster_bits, q->cluster, true);
		c->done += !r;
		c->left--;
	}
	return r;
}

static int count_entry(struct qcow2 *q, struct count *c, struct q_entry e)
{
	uint64_t host;
	uint32_t len;

	if (e.desc & Q_COMPRESSED) {
		q_packed_place(q->h.cluster_bits, e.desc, &host, &len);
		return count_ref(q, c, host, len);
	}
	if (!q_entry_has_host(q, e))
		return 0;
	return count_ref(q, c, e.desc & Q_OFFSET_MASK, q->cluster);
}

/* Slices of a table that need not be the active one. */
static int each_slice(struct qcow2 *q, uint64_t table,
		      int (*fn)(struct qcow2 *q, struct q_place *at, void *opaque), void *opaque)
{
	int r = 0;

	for (uint32_t at = 0; at < q->cluster && !r; at += q->l2.slice) {
		struct q_place p = {.left = q->l2.slice / q->l2_entry};

		r = q_cache_get(&q->l2, table + at, &p.slice);
		if (!r)
			r = fn(q, &p, opaque);
	}
	return r;
}

static int count_slice(struct qcow2 *q, struct q_place *at, void *opaque)
{
	struct count *c = opaque;
	int r = 0;

	for (; at->left && !r; at->left--, at->at += q->l2_entry)
		r = count_entry(q, c, q_entry_get(q, at));
	return r;
}

static int count_table(struct qcow2 *q, uint64_t entry, struct count *c)
{
	uint64_t table = entry & Q_OFFSET_MASK;
	int r;

	if (!table || !c->left)
		return 0;
	if (table & (q->cluster - 1))
		return q_corrupt(q, true, "an L1 entry is not at a cluster");
	r = each_slice(q, table, count_slice, c);
	return r < 0 ? r : count_ref(q, c, table, q->cluster);
}

static int count_tree(struct qcow2 *q, const uint64_t *l1, uint32_t nr, struct count *c)
{
	int r = 0;

	for (uint32_t i = 0; i < nr && !r; i++) {
		pthread_mutex_lock(&q->lock);
		r = count_table(q, l1[i], c);
		pthread_mutex_unlock(&q->lock);
		if (!r)
			r = q_commit_if_full(q);
	}
	return r;
}

int q_tree_refs(struct qcow2 *q, const uint64_t *l1, uint32_t nr, int delta)
{
	struct count c = {.left = UINT64_MAX, .delta = delta}, undo;
	int r = count_tree(q, l1, nr, &c);

	if (r < 0 && delta > 0) {
		undo = (struct count){.left = c.done, .delta = -delta};
		if (count_tree(q, l1, nr, &undo) < 0)
			q_corrupt(q, false, "some clusters stay counted too often: a leak");
	}
	return r;
}

/* ---- bit 63 ---- */

static int copied_wanted(struct qcow2 *q, uint64_t host, bool clear, bool *set)
{
	uint64_t refs;
	int r;

	*set = false;
	if (clear)
		return 0;
	r = q_refcount_get(q, host >> q->h.cluster_bits, &refs);
	*set = refs == 1;
	return r;
}

static int copied_slice(struct qcow2 *q, struct q_place *at, void *opaque)
{
	const bool *clear = opaque;
	int r = 0;

	for (; at->left && !r; at->left--, at->at += q->l2_entry) {
		struct q_entry e = q_entry_get(q, at), was = e;
		bool set;

		if (q->has_data_file || !q_entry_has_host(q, e))
			continue;
		r = copied_wanted(q, e.desc & Q_OFFSET_MASK, *clear, &set);
		e.desc = (e.desc & ~Q_COPIED) | (set ? Q_COPIED : 0);
		if (!r && e.desc != was.desc)
			q_entry_set(q, at, e);
	}
	return r;
}

static int copied_table(struct qcow2 *q, struct q_table *l1, uint32_t i, bool clear)
{
	uint64_t table = l1->v[i] & Q_OFFSET_MASK;
	bool set = false;
	int r;

	if (!table)
		return 0;
	if (table & (q->cluster - 1))
		return q_corrupt(q, true, "an L1 entry is not at a cluster");
	r = each_slice(q, table, copied_slice, &clear);
	if (!r)
		r = copied_wanted(q, table, clear, &set);
	if (r < 0 || !(l1->v[i] & Q_COPIED) == !set)
		return r;
	l1->v[i] ^= Q_COPIED;
	if (l1->dirty_lo >= l1->dirty_hi) {
		l1->dirty_lo = i;
		l1->dirty_hi = i;
	}
	l1->dirty_lo = MIN(l1->dirty_lo, i);
	l1->dirty_hi = MAX(l1->dirty_hi, i + 1);
	return 0;
}

static int copied_all(struct qcow2 *q, struct q_table *l1, bool clear)
{
	int r = 0;

	for (uint32_t i = 0; i < l1->nr && !r; i++) {
		pthread_mutex_lock(&q->lock);
		r = copied_table(q, l1, i, clear);
		pthread_mutex_unlock(&q->lock);
		if (!r)
			r = q_commit_if_full(q);
	}
	return r < 0 ? r : q_settle(q);
}

int q_copied_rebuild(struct qcow2 *q)
{
	return copied_all(q, &q->l1, false);
}

/* ---- L1 tables ---- */

static int write_l1(struct qcow2 *q, const uint64_t *v, uint32_t nr, uint64_t *host)
{
	int r;

	pthread_mutex_lock(&q->lock);
	r = q_alloc_all(q, MAX(1, q_clusters(q, 8ull * nr)), host);
	pthread_mutex_unlock(&q->lock);
	return r < 0 ? r : q_table_write(q->file, *host, nr, v);
}

static int free_l1(struct qcow2 *q, uint64_t host, uint32_t nr)
{
	int r;

	pthread_mutex_lock(&q->lock);
	r = host ? q_free(q, host, MAX(8ull * nr, 1), true) : 0;
	pthread_mutex_unlock(&q->lock);
	return r;
}

/* Point the header at another active table.  The old one is still counted. */
static int switch_l1(struct qcow2 *q, uint64_t *v, uint32_t nr, uint64_t host, uint64_t size)
{
	int r = q_settle(q);

	if (r < 0)
		return r;
	q->h.l1_host = host;
	q->h.l1_nr = nr;
	q->h.size = size;
	r = q_header_update(q);
	if (r < 0) {
		q->h.l1_host = q->l1.host;
		q->h.l1_nr = q->l1.nr;
		q->h.size = blk_size(q->b);
		return r;
	}
	q->l1 = (struct q_table){.v = v, .host = host, .nr = nr};
	blk_set_size(q->b, size);
	return 0;
}

int q_grow_l1(struct qcow2 *q, uint32_t nr, uint64_t size)
{
	struct q_table old = q->l1;
	uint64_t *v, host;
	int r;

	if (8ull * nr > Q_L1_MAX)
		return -EFBIG;
	v = calloc(nr, 8);
	if (!v)
		return -ENOMEM;
	r = q_settle(q);
	memcpy(v, old.v, 8ull * old.nr);
	if (!r)
		r = write_l1(q, v, nr, &host);
	if (!r)
		r = switch_l1(q, v, nr, host, size);
	if (r < 0) {
		free(v);
		return r;
	}
	free(old.v);
	r = free_l1(q, old.host, old.nr);
	return r < 0 ? r : q_settle(q);
}

static uint32_t l1_for(const struct qcow2 *q, uint64_t size)
{
	return (uint32_t)(size / q_l2_span(q) + (size % q_l2_span(q) != 0));
}

/* ---- the operations ---- */

static int refuse(const struct qcow2 *q, struct error *err)
{
	if (q->readonly)
		return err_set(err, EROFS, "'%s' is open for reading only", q->b->path);
	if (q->has_data_file)
		return err_set(err, ENOTSUP,
			       "'%s' keeps its data in another file, which rules out snapshots",
			       q->b->path);
	return q->corrupt ? err_set(err, EIO, "'%s' is corrupt", q->b->path) : 0;
}

static int say(const struct qcow2 *q, int r, const char *what, struct error *err)
{
	if (r == -EMLINK)
		return err_set(err, EMLINK,
			       "'%s' cannot count that many users of a cluster (refcount_bits=%u)",
			       q->b->path, 1u << q->h.refcount_order);
	return r < 0 ? err_errno(err, -r, "'%s': cannot %s the snapshot", q->b->path, what) : 0;
}

static int list(struct blk *b, struct blk_snapshot **out, unsigned *n, struct error *err)
{
	struct qcow2 *q = q_of(b);
	struct blk_snapshot *v;

	pthread_rwlock_rdlock(&q->io);
	v = calloc(q->nr_snaps + 1, sizeof(*v));
	*n = v ? q->nr_snaps : 0;
	for (unsigned i = 0; i < *n; i++) {
		const struct q_snapshot *s = &q->snaps[i];

		snprintf(v[i].id, sizeof(v[i].id), "%s", s->id);
		snprintf(v[i].name, sizeof(v[i].name), "%s", s->name);
		v[i].vm_state_size = s->vm_state_size;
		v[i].date_s = s->date_s;
		v[i].date_ns = s->date_ns;
		v[i].vm_clock_ns = s->vm_clock_ns;
		v[i].disk_size = s->disk_size;
	}
	pthread_rwlock_unlock(&q->io);
	*out = v;
	return v ? 0 : err_errno(err, ENOMEM, "'%s'", b->path);
}

static int new_entry(struct qcow2 *q, const char *name, struct q_snapshot *s)
{
	unsigned long next = 1;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	for (uint32_t i = 0; i < q->nr_snaps; i++) {
		unsigned long id = strtoul(q->snaps[i].id, NULL, 10);

		if (id < INT32_MAX)
			next = MAX(next, id + 1);
	}
	*s = (struct q_snapshot){.l1_nr = q->l1.nr,
				 .disk_size = q->h.size,
				 .date_s = (uint32_t)now.tv_sec,
				 .date_ns = (uint32_t)now.tv_nsec};
	s->name = strdup(name);
	if (!s->name || asprintf(&s->id, "%lu", next) < 0) {
		free(s->name);
		return -ENOMEM;
	}
	s->id_len = (uint16_t)strlen(s->id);
	s->name_len = (uint16_t)strlen(name);
	return 0;
}

/* The list with s at its end; the table on disk follows. */
static int append(struct qcow2 *q, const struct q_snapshot *s)
{
	struct q_snapshot *v = realloc(q->snaps, (q->nr_snaps + 1) * sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	q->snaps = v;
	v[q->nr_snaps++] = *s;
	r = q_snapshots_write(q);
	if (r < 0)
		q->nr_snaps--;
	return r;
}

static int create_tree(struct qcow2 *q, struct q_snapshot *s)
{
	int r = q_settle(q);

	if (!r)
		r = copied_all(q, &q->l1, true);
	if (!r)
		r = q_tree_refs(q, q->l1.v, q->l1.nr, 1);
	if (r < 0)
		return r;
	r = write_l1(q, q->l1.v, q->l1.nr, &s->l1_host);
	if (!r)
		r = q_settle(q);
	if (!r)
		r = append(q, s);
	if (r < 0)
		q_tree_refs(q, q->l1.v, q->l1.nr, -1);
	return r;
}

static int create(struct blk *b, const char *name, struct error *err)
{
	struct qcow2 *q = q_of(b);
	struct q_snapshot s;
	int r = refuse(q, err);

	if (r < 0)
		return r;
	if (!*name || strlen(name) > 255)
		return err_set(err, EINVAL, "the name of a snapshot has 1 to 255 bytes");
	pthread_rwlock_wrlock(&q->io);
	if (q->nr_snaps >= Q_SNAPSHOTS_MAX) {
		pthread_rwlock_unlock(&q->io);
		return err_set(err, EFBIG, "'%s' has %u snapshots already", b->path, q->nr_snaps);
	}
	r = new_entry(q, name, &s);
	if (!r) {
		r = create_tree(q, &s);
		if (r < 0) {
			snapshot_fini(&s);
			q_copied_rebuild(q);
		} else {
			r = q_settle(q);
		}
	}
	pthread_rwlock_unlock(&q->io);
	return say(q, r, "make", err);
}

static int snapshot_l1(struct qcow2 *q, const struct q_snapshot *s, uint32_t nr, uint64_t **v)
{
	uint64_t *all;
	int r = q_table_read(q->file, s->l1_host, s->l1_nr, v);

	if (r < 0 || nr <= s->l1_nr)
		return r;
	all = realloc(*v, 8ull * nr);
	if (!all) {
		free(*v);
		return -ENOMEM;
	}
	memset(all + s->l1_nr, 0, 8ull * (nr - s->l1_nr));
	*v = all;
	return 0;
}

static int apply_tree(struct qcow2 *q, const struct q_snapshot *s)
{
	struct q_table new = {.nr = MAX(s->l1_nr, l1_for(q, s->disk_size))}, old = q->l1;
	int r;

	if (s->disk_size > INT64_MAX || 8ull * l1_for(q, s->disk_size) > Q_L1_MAX)
		return -EFBIG;
	r = snapshot_l1(q, s, new.nr, &new.v);
	if (r < 0)
		return r;
	r = q_settle(q);
	if (!r)
		r = copied_all(q, &new, true);
	if (!r)
		r = q_tree_refs(q, new.v, new.nr, 1);
	if (r < 0)
		goto free_new;
	r = write_l1(q, new.v, new.nr, &new.host);
	if (!r)
		r = switch_l1(q, new.v, new.nr, new.host, s->disk_size);
	if (r < 0) {
		q_tree_refs(q, new.v, new.nr, -1);
		goto free_new;
	}
	r = q_tree_refs(q, old.v, old.nr, -1);
	if (!r)
		r = free_l1(q, old.host, old.nr);
	free(old.v);
	return r < 0 ? r : q_settle(q);

free_new:
	free(new.v);
	return r;
}

static int apply(struct blk *b, const char *id_or_name, struct error *err)
{
	struct qcow2 *q = q_of(b);
	int r = refuse(q, err), i;

	if (r < 0)
		return r;
	pthread_rwlock_wrlock(&q->io);
	i = q_snapshot_find(q, id_or_name);
	if (i >= 0) { /* for whoever tracks changes, all of the disk changes */
		r = q_bitmaps_resize(q, q->snaps[i].disk_size);
		if (!r)
			r = q_bitmaps_note(q, 0, q->h.size);
		if (!r)
			r = apply_tree(q, &q->snaps[i]);
	}
	pthread_rwlock_unlock(&q->io);
	if (i < 0)
		return err_set(err, ENOENT, "'%s' has no snapshot '%s'", b->path, id_or_name);
	return say(q, r, "apply", err);
}

static int delete_entry(struct qcow2 *q, uint32_t i)
{
	struct q_snapshot s = q->snaps[i];
	uint64_t *l1;
	int r = q_table_read(q->file, s.l1_host, s.l1_nr, &l1);

	if (r < 0)
		return r;
	memmove(&q->snaps[i], &q->snaps[i + 1], (q->nr_snaps - i - 1) * sizeof(s));
	q->nr_snaps--;
	r = q_snapshots_write(q);
	if (r < 0) {
		memmove(&q->snaps[i + 1], &q->snaps[i], (q->nr_snaps - i) * sizeof(s));
		q->snaps[i] = s;
		q->nr_snaps++;
		goto free_l1_copy;
	}
	r = q_tree_refs(q, l1, s.l1_nr, -1);
	if (!r)
		r = free_l1(q, s.l1_host, s.l1_nr);
	if (!r)
		r = q_settle(q);
	if (!r)
		r = q_copied_rebuild(q);
	snapshot_fini(&s);
free_l1_copy:
	free(l1);
	return r;
}

static int del(struct blk *b, const char *id_or_name, struct error *err)
{
	struct qcow2 *q = q_of(b);
	int r = refuse(q, err), i;

	if (r < 0)
		return r;
	pthread_rwlock_wrlock(&q->io);
	i = q_snapshot_find(q, id_or_name);
	if (i >= 0)
		r = delete_entry(q, (uint32_t)i);
	pthread_rwlock_unlock(&q->io);
	if (i < 0)
		return err_set(err, ENOENT, "'%s' has no snapshot '%s'", b->path, id_or_name);
	return say(q, r, "delete", err);
}

/* The disk as it was then, for reading. */
int q_snapshot_show(struct qcow2 *q, const char *id_or_name, struct error *err)
{
	int i = q_snapshot_find(q, id_or_name), r;
	const struct q_snapshot *s;
	uint64_t *v;

	if (i < 0)
		return err_set(err, ENOENT, "'%s' has no snapshot '%s'", q->b->path, id_or_name);
	s = &q->snaps[i];
	if (s->disk_size > INT64_MAX || l1_for(q, s->disk_size) > s->l1_nr)
		return err_set(err, EINVAL, "'%s': the table of snapshot '%s' is too small",
			       q->b->path, id_or_name);
	r = q_table_read(q->file, s->l1_host, s->l1_nr, &v);
	if (r < 0)
		return err_errno(err, -r, "cannot read '%s'", q->b->path);
	free(q->l1.v);
	q->l1 = (struct q_table){.v = v, .host = s->l1_host, .nr = s->l1_nr};
	q->b->info.size = s->disk_size;
	return 0;
}

const struct blk_snapshot_ops q_snapshot_ops = {
	.list = list,
	.create = create,
	.apply = apply,
	.del = del,
};
