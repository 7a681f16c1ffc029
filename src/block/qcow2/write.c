/* block/qcow2/write.c - writing, zeroing, discarding.
 *
 * A write into clusters that are ours alone goes straight to the file.  Any other first gets a
 * place (under the lock), then the data goes there together with what must be kept of the old
 * (without it), then the entries are set (under the lock again).  Meanwhile the guest range is
 * listed as in flight, and other writes to it wait. */
#include "block/iov.h"
#include "block/qcow2/qcow2.h"

#include <assert.h>
#include <stdlib.h>

enum { IN_PLACE_IOVS = 64, CRYPT_BYTES = 1 << 20 };

struct q_inflight {
	uint64_t lo, hi; /* guest */
	struct q_inflight *next;
};

static bool flies(const struct qcow2 *q, uint64_t lo, uint64_t hi)
{
	for (const struct q_inflight *f = q->inflight; f; f = f->next)
		if (lo < f->hi && f->lo < hi)
			return true;
	return false;
}

static void wait_for(struct qcow2 *q, uint64_t guest, uint64_t len)
{
	uint64_t lo = ALIGN_DOWN(guest, q->cluster), hi = ALIGN_UP(guest + len, q->cluster);

	while (flies(q, lo, hi))
		pthread_cond_wait(&q->wake, &q->lock);
}

static void take_off(struct qcow2 *q, struct q_inflight *f)
{
	f->next = q->inflight;
	q->inflight = f;
}

static void land(struct qcow2 *q, struct q_inflight *f)
{
	struct q_inflight **p = &q->inflight;

	while (*p != f)
		p = &(*p)->next;
	*p = f->next;
	pthread_cond_broadcast(&q->wake);
}

/* ---- a write that changes entries ---- */

struct plan {
	uint64_t guest, end; /* what the caller writes of these clusters */
	uint64_t first;      /* guest offset of the first cluster */
	uint64_t clusters;
	uint64_t from, to; /* guest: all that is written, old data around the new included */
	uint64_t host;     /* of first */
	bool keep;         /* the clusters have their place already */
	struct q_inflight flight;
};

static bool sub_is_data(const struct qcow2 *q, struct q_entry e, uint64_t guest)
{
	return q_entry_kind(q, e, (unsigned)((guest & (q->cluster - 1)) / q->sub)) == Q_NORMAL;
}

static bool has_data(const struct qcow2 *q, struct q_entry e)
{
	for (unsigned i = 0; i < q->subs; i++) {
		enum q_kind kind = q_entry_kind(q, e, i);

		if (kind == Q_NORMAL || kind == Q_PACKED)
			return true;
	}
	return false;
}

static bool keeps_place(const struct qcow2 *q, struct q_entry e)
{
	return q_entry_has_host(q, e) && (e.desc & Q_COPIED);
}

/* Where copying of old data begins (or, mirrored, ends) around the guest's bytes. */
static uint64_t copy_from(const struct qcow2 *q, const struct plan *p, struct q_entry e)
{
	uint64_t unit = q->h.crypt ? Q_SECTOR : 1;

	if (!p->keep && has_data(q, e))
		return ALIGN_DOWN(p->guest, q->cluster);
	if (p->keep && sub_is_data(q, e, p->guest))
		return ALIGN_DOWN(p->guest, unit);
	return ALIGN_DOWN(p->guest, q->sub);
}

static uint64_t copy_to(const struct qcow2 *q, const struct plan *p, struct q_entry e)
{
	uint64_t unit = q->h.crypt ? Q_SECTOR : 1;

	if (!p->keep && has_data(q, e))
		return ALIGN_UP(p->end, q->cluster);
	if (p->keep && sub_is_data(q, e, p->end - 1))
		return ALIGN_UP(p->end, unit);
	return ALIGN_UP(p->end, q->sub);
}

/* How many clusters from p->first on can be given a new place in one go. */
static int plan_count(struct qcow2 *q, struct plan *p, struct q_place at, uint64_t most)
{
	uint64_t guest = p->first;
	int r = 0;

	for (p->clusters = 0; p->clusters < most && at.left; p->clusters++) {
		struct q_entry e = q_entry_get(q, &at);

		r = q_entry_check(q, guest, e);
		if (r < 0 || keeps_place(q, e))
			break;
		at.at += q->l2_entry;
		at.left--;
		guest += q->cluster;
	}
	return p->clusters ? 0 : r;
}

static int plan_place(struct qcow2 *q, struct plan *p, struct q_place at, uint64_t len)
{
	uint64_t most = q_clusters(q, (p->guest - p->first) + len);
	int r;

	if (q->h.crypt)
		most = MIN(most, MAX(1, CRYPT_BYTES / q->cluster));
	r = plan_count(q, p, at, most);
	if (r < 0)
		return r;
	if (!q->has_data_file)
		return q_alloc(q, &p->clusters, &p->host);
	p->host = p->first; /* "Bit 2: External data file": always there */
	return 0;
}

static int plan_write(struct qcow2 *q, uint64_t guest, uint64_t len, struct plan *p)
{
	struct q_entry first;
	struct q_place at;
	int r;

	*p = (struct plan){.guest = guest, .first = ALIGN_DOWN(guest, q->cluster), .clusters = 1};
	r = q_l2_find(q, guest, true, &at);
	if (r < 0)
		return r;
	first = q_entry_get(q, &at);
	r = q_entry_check(q, p->first, first);
	if (r < 0)
		return r;
	p->keep = keeps_place(q, first);
	p->host = first.desc & Q_OFFSET_MASK;
	if (!p->keep)
		r = plan_place(q, p, at, len);
	if (r < 0)
		return r;
	p->end = MIN(guest + len, p->first + p->clusters * q->cluster);
	p->from = copy_from(q, p, first);
	at.at += (uint32_t)(p->clusters - 1) * q->l2_entry;
	p->to = copy_to(q, p, q_entry_get(q, &at));
	p->flight = (struct q_inflight){p->first, p->first + p->clusters * q->cluster, NULL};
	take_off(q, &p->flight);
	return 0;
}

static uint64_t sub_mask(const struct qcow2 *q, const struct plan *p, uint64_t cluster)
{
	uint64_t lo = MAX(p->from, cluster) - cluster;
	uint64_t hi = MIN(p->to, cluster + q->cluster) - cluster;
	uint64_t a = lo / q->sub, b = ALIGN_UP(hi, q->sub) / q->sub;

	return ((1ull << b) - 1) & ~((1ull << a) - 1);
}

static struct q_entry linked_entry(const struct qcow2 *q, const struct plan *p, struct q_entry old,
				   uint64_t cluster)
{
	struct q_entry e = {.desc = (p->host + (cluster - p->first)) | Q_COPIED};
	uint64_t mask;

	if (!q->ext_l2)
		return e;
	mask = sub_mask(q, p, cluster);
	e.bits = old.desc & Q_COMPRESSED ? 0 : old.bits;
	e.bits = (e.bits & ~(mask | mask << Q_SUBCLUSTERS)) | mask;
	return e;
}

static int link_clusters(struct qcow2 *q, struct plan *p)
{
	int r = 0;

	for (uint64_t i = 0; i < p->clusters && !r; i++) {
		uint64_t cluster = p->first + i * q->cluster;
		struct q_entry old, new;
		struct q_place at;

		r = q_l2_find(q, cluster, true, &at);
		if (r < 0)
			return r;
		old = q_entry_get(q, &at);
		new = linked_entry(q, p, old, cluster);
		if (old.desc == new.desc && old.bits == new.bits)
			continue;
		q_entry_set(q, &at, new);
		if (!p->keep)
			r = q_entry_free(q, old, false);
	}
	return r;
}

/* ---- the data of such a write ---- */

/* The guest's bytes between what is kept before and behind. */
static int assemble(struct qcow2 *q, const struct plan *p, struct iov_walk *walk, unsigned max,
		    struct iovec *out, uint8_t *edges, unsigned *n)
{
	size_t head = p->guest - p->from, tail = p->to - p->end;
	uint64_t mid = p->end - p->guest;
	int r = 0;

	*n = 0;
	if (head) {
		out[(*n)++] = (struct iovec){edges, head};
		r = q_read_at(q, out, 1, head, p->from);
	}
	*n += iov_peek(walk, out + *n, max - 2, &mid);
	assert(mid == p->end - p->guest);
	if (tail && !r) {
		out[(*n)++] = (struct iovec){edges + head, tail};
		r = q_read_at(q, &out[*n - 1], 1, tail, p->end);
	}
	return r;
}

static int write_encrypted(struct qcow2 *q, const struct iovec *iov, unsigned n, uint64_t len,
			   uint64_t guest, uint64_t host)
{
	uint8_t *buf = malloc(len);
	uint64_t at = 0;
	int r;

	if (!buf)
		return -ENOMEM;
	for (; n && at < len; iov++, n--) {
		size_t step = MIN(iov->iov_len, len - at);

		memcpy(buf + at, iov->iov_base, step);
		at += step;
	}
	r = q_encrypt(q, buf, len, guest, host);
	if (!r)
		r = blk_write(q->data, buf, len, host);
	free(buf);
	return r;
}

static int write_plan(struct qcow2 *q, const struct plan *p, struct iov_walk *walk)
{
	uint64_t host = p->host + (p->from - p->first), len = p->to - p->from;
	size_t edges = (p->guest - p->from) + (p->to - p->end);
	unsigned max = walk->n + 3, n;
	struct iovec *iov = calloc(max, sizeof(*iov));
	uint8_t *buf = malloc(edges + 1);
	int r = iov && buf ? assemble(q, p, walk, max, iov, buf, &n) : -ENOMEM;

	if (!r && q->h.crypt)
		r = write_encrypted(q, iov, n, len, p->from, host);
	else if (!r)
		r = blk_writev(q->data, iov, n, host);
	free(iov);
	free(buf);
	return r;
}

/* Lock held, and released while the data is written. */
static int write_allocating(struct qcow2 *q, struct iov_walk *walk, uint64_t guest, uint64_t *len)
{
	struct plan p;
	int r = plan_write(q, guest, *len, &p);

	if (r < 0)
		return r;
	*len = p.end - p.guest;
	pthread_mutex_unlock(&q->lock);
	r = write_plan(q, &p, walk);
	pthread_mutex_lock(&q->lock);
	if (!r)
		r = link_clusters(q, &p);
	else if (!p.keep && !q->has_data_file)
		q_free(q, p.host, p.clusters * q->cluster, false);
	land(q, &p.flight);
	return r;
}

/* ---- any write ---- */

static bool goes_in_place(const struct qcow2 *q, uint64_t guest, const struct q_run *run)
{
	if (run->kind != Q_NORMAL || !run->copied)
		return false;
	return !q->h.crypt || !((guest | run->len) & (Q_SECTOR - 1));
}

static int write_in_place(struct qcow2 *q, struct iov_walk *walk, uint64_t guest, uint64_t host,
			  uint64_t *len)
{
	struct iovec part[IN_PLACE_IOVS];
	unsigned n = iov_peek(walk, part, IN_PLACE_IOVS, len);

	return blk_writev(q->data, part, n, host);
}

static int encrypt_in_place(struct qcow2 *q, const struct iov_walk *walk, uint64_t guest,
			    uint64_t host, uint64_t *len)
{
	struct iovec *iov = calloc(walk->n + 1, sizeof(*iov));
	unsigned n;
	int r;

	if (!iov)
		return -ENOMEM;
	*len = MIN(*len, CRYPT_BYTES);
	n = iov_peek(walk, iov, walk->n, len);
	r = write_encrypted(q, iov, n, *len, guest, host);
	free(iov);
	return r;
}

static int write_some(struct qcow2 *q, struct iov_walk *walk, uint64_t guest, uint64_t *len)
{
	struct q_run run;
	int r;

	pthread_mutex_lock(&q->lock);
	wait_for(q, guest, *len);
	r = q->corrupt ? -EIO : q_map(q, guest, *len, &run);
	if (!r && goes_in_place(q, guest, &run)) {
		if (!q->has_data_file && q_overlaps_metadata(q, run.host, run.len))
			r = q_corrupt(q, true, "the data of %#llx lies in metadata",
				      (unsigned long long)guest);
		pthread_mutex_unlock(&q->lock);
		*len = run.len;
		if (r < 0)
			return r;
		return q->h.crypt ? encrypt_in_place(q, walk, guest, run.host, len)
				  : write_in_place(q, walk, guest, run.host, len);
	}
	if (!r)
		r = write_allocating(q, walk, guest, len);
	pthread_mutex_unlock(&q->lock);
	return r;
}

int q_write_at(struct qcow2 *q, const struct iovec *iov, unsigned n, uint64_t len, uint64_t guest)
{
	struct iov_walk walk = {iov, n, 0};
	int r = 0;

	while (len && !r) {
		uint64_t step = len;

		r = write_some(q, &walk, guest, &step);
		iov_advance(&walk, step);
		guest += step;
		len -= step;
	}
	return r;
}

int q_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	struct qcow2 *q = q_of(b);
	unsigned epoch;
	int r;

	pthread_rwlock_rdlock(&q->io);
	r = q_bitmaps_note(q, off, len);
	if (!r) {
		epoch = q_enter(q);
		r = q_write_at(q, iov, n, len, off);
		q_leave(q, epoch);
	}
	if (!r)
		r = q_commit_if_full(q);
	pthread_rwlock_unlock(&q->io);
	return r;
}

int q_flush(struct blk *b)
{
	struct qcow2 *q = q_of(b);
	int r;

	pthread_rwlock_rdlock(&q->io);
	r = q_commit(q, false);
	pthread_rwlock_unlock(&q->io);
	return r;
}

/* ---- zeroes and holes ---- */

static struct q_entry whole_entry(const struct qcow2 *q, struct q_entry old, enum q_drop how)
{
	bool keep = how == Q_DROP_ZERO_KEEP && keeps_place(q, old);
	struct q_entry e = {0};

	if (q->has_data_file && how != Q_DROP_HOLE) /* its place costs nothing */
		keep = keeps_place(q, old);
	if (keep)
		e.desc = (old.desc & Q_OFFSET_MASK) | Q_COPIED;
	if (how == Q_DROP_HOLE)
		return e;
	if (q->ext_l2)
		e.bits = (uint64_t)UINT32_MAX << Q_SUBCLUSTERS;
	else
		e.desc |= Q_ZERO;
	return e;
}

static int drop_entry(struct qcow2 *q, struct q_place *at, uint64_t lo, uint64_t hi,
		      enum q_drop how)
{
	struct q_entry old = q_entry_get(q, at), new;
	uint64_t mask = ((1ull << hi / q->sub) - 1) & ~((1ull << lo / q->sub) - 1);
	int r = q_entry_check(q, 0, q->has_data_file ? (struct q_entry){0} : old);

	if (r < 0)
		return r;
	if (hi - lo == q->cluster) {
		new = whole_entry(q, old, how);
	} else {
		if (old.desc & Q_COMPRESSED)
			return -EOPNOTSUPP;
		new = old;
		new.bits = (old.bits & ~mask) | mask << Q_SUBCLUSTERS;
	}
	if (new.desc == old.desc &&new.bits == old.bits)
		return 0;
	q_entry_set(q, at, new);
	return q_entry_has_host(q, new) ? 0 : q_entry_free(q, old, true);
}

/* Entries of one slice, all of them or as many as [guest, guest+*len) has. */
static int drop_slice(struct qcow2 *q, uint64_t guest, uint64_t *len, enum q_drop how)
{
	uint64_t cluster = ALIGN_DOWN(guest, q->cluster), end = guest + *len;
	struct q_place at;
	struct q_run run;
	int r;

	r = q_map(q, guest, *len, &run);
	if (r < 0)
		return r;
	if (run.kind == Q_UNALLOC && run.len >= q->cluster &&
	    (how == Q_DROP_HOLE || !q->b->backing)) {
		*len = ALIGN_DOWN(run.len, q->cluster); /* no table is needed for that */
		return 0;
	}
	r = q_l2_find(q, guest, true, &at);
	for (; !r && at.left && cluster < end; cluster += q->cluster) {
		uint64_t lo = MAX(guest, cluster) - cluster;

		r = drop_entry(q, &at, lo, MIN(end - cluster, q->cluster), how);
		at.at += q->l2_entry;
		at.left--;
	}
	*len = MIN(cluster, end) - guest;
	return r;
}

int q_drop_at(struct qcow2 *q, uint64_t guest, uint64_t len, enum q_drop how)
{
	int r = 0;

	while (len && !r) {
		uint64_t slice = (uint64_t)q->l2.slice / q->l2_entry * q->cluster;
		uint64_t step = MIN(len, slice - (guest & (slice - 1)));

		pthread_mutex_lock(&q->lock);
		wait_for(q, guest, step);
		step = len; /* holes are skipped whole; else it comes back as one slice */
		r = q->corrupt ? -EIO : drop_slice(q, guest, &step, how);
		pthread_mutex_unlock(&q->lock);
		if (!r)
			r = q_commit_if_full(q);
		guest += step;
		len -= step;
	}
	return r;
}

/* The end of the disk counts as the end of its last cluster. */
static uint64_t end_down(const struct qcow2 *q, uint64_t end, uint64_t unit)
{
	return end == q->b->info.size ? ALIGN_UP(end, unit) : ALIGN_DOWN(end, unit);
}

static int discard_locked(struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t from = ALIGN_UP(off, q->cluster), end = end_down(q, off + len, q->cluster);
	int r;

	if (from >= end || (q->h.version < 3 && q->b->backing))
		return 0; /* a hint; old images cannot hide what is below */
	if (q->has_data_file) {
		r = blk_write_zeroes(q->data, from,
				     MIN(end, blk_size(q->data)) - MIN(from, blk_size(q->data)),
				     true);
		if (r < 0 || q->raw_data)
			return r;
	}
	return q_drop_at(q, from, end - from, q->b->backing ? Q_DROP_ZERO : Q_DROP_HOLE);
}

int q_discard(struct blk *b, uint64_t off, uint64_t len)
{
	struct qcow2 *q = q_of(b);
	unsigned epoch;
	int r;

	pthread_rwlock_rdlock(&q->io);
	r = q_bitmaps_note(q, off, len);
	epoch = q_enter(q);
	if (!r)
		r = discard_locked(q, off, len);
	q_leave(q, epoch);
	pthread_rwlock_unlock(&q->io);
	return r;
}

static int write_zero_bytes(struct qcow2 *q, uint64_t guest, uint64_t len)
{
	static const uint8_t zeroes[65536];
	int r = 0;

	while (len && !r) {
		uint64_t step = MIN(len, sizeof(zeroes));
		struct iovec iov = {(void *)(uintptr_t)zeroes, step};

		r = q_write_at(q, &iov, 1, step, guest);
		guest += step;
		len -= step;
	}
	return r;
}

/* Part of a unit: nothing to do when it reads as zeroes already. */
static int zero_part(struct qcow2 *q, uint64_t guest, uint64_t len)
{
	struct q_run run;
	int r = 0;

	for (; len && !r; guest += run.len, len -= run.len) {
		pthread_mutex_lock(&q->lock);
		wait_for(q, guest, len);
		r = q_map(q, guest, len, &run);
		pthread_mutex_unlock(&q->lock);
		if (r < 0)
			return r;
		if (run.kind == Q_ZERO_PLAIN || run.kind == Q_ZERO_AT)
			continue;
		if ((run.kind == Q_UNALLOC || run.kind == Q_UNALLOC_AT) && !q->b->backing)
			continue;
		r = write_zero_bytes(q, guest, run.len);
	}
	return r;
}

static int zero_raw(struct qcow2 *q, uint64_t off, uint64_t len, bool may_unmap)
{
	uint64_t size = blk_size(q->data);

	if (off >= size)
		return 0;
	return blk_write_zeroes(q->data, off, MIN(len, size - off), may_unmap);
}

static int zero_locked(struct qcow2 *q, uint64_t off, uint64_t len, bool may_unmap)
{
	uint64_t from = MIN(ALIGN_UP(off, q->sub), off + len);
	uint64_t end = MAX(from, end_down(q, off + len, q->sub));
	enum q_drop how = may_unmap ? Q_DROP_ZERO : Q_DROP_ZERO_KEEP;
	int r;

	if (q->raw_data)
		return zero_raw(q, off, len, may_unmap);
	if (q->h.version < 3 && q->b->backing)
		return -EOPNOTSUPP;
	if (q->h.version < 3)
		how = Q_DROP_HOLE;
	r = zero_part(q, off, from - off);
	if (!r && from < end)
		r = q_drop_at(q, from, end - from, how);
	if (r == -EOPNOTSUPP)
		return r;
	if (!r && end < off + len)
		r = zero_part(q, end, off + len - end);
	return r;
}

int q_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct qcow2 *q = q_of(b);
	unsigned epoch;
	int r;

	pthread_rwlock_rdlock(&q->io);
	r = q_bitmaps_note(q, off, len);
	epoch = q_enter(q);
	if (!r)
		r = zero_locked(q, off, len, may_unmap);
	q_leave(q, epoch);
	if (!r)
		r = q_commit_if_full(q);
	pthread_rwlock_unlock(&q->io);
	return r;
}
