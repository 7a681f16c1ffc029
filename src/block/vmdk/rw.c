/* block/vmdk/rw.c - reading and writing: the extents of a disk, and the grains of a sparse one.
 *
 * A grain never moves once it has a place, so data are read and overwritten without a lock.  A
 * thread that gives grains a place claims them first; others that want to write there wait.  The
 * grain's data, filled up from the parent, are written before its entry is made, and the entry
 * reaches the file only after the data are durable (tables.c).
 *
 * Zeroes over grains that have a place go there as holes of the file: the space is given back to
 * the host and the grain stays where it is. */
#include "block/vmdk/vmdk.h"

#include "base/bytes.h"
#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PART_IOVS = 64, ZERO_LEN = 65536 };

static struct log_component log_vmdk = LOG_COMPONENT("vmdk");

static const uint8_t zeroes[ZERO_LEN];

struct vmdk_extent *vmdk_extent_at(struct vmdk *v, uint64_t off)
{
	unsigned lo = 0, hi = v->nr_ext;

	while (hi - lo > 1) {
		unsigned mid = lo + (hi - lo) / 2;

		if (v->ext[mid].start <= off)
			lo = mid;
		else
			hi = mid;
	}
	return &v->ext[lo];
}

static uint64_t grains_of(const struct vmdk_extent *e, uint64_t off, uint64_t len)
{
	return (off % e->grain + len - 1) / e->grain + 1;
}

/* The bytes from off on that lie in a run of grains. */
static uint64_t bytes_of(const struct vmdk_extent *e, const struct vmdk_run *run, uint64_t off,
			 uint64_t len)
{
	return MIN(len, run->count * e->grain - off % e->grain);
}

static int bad_grain(const struct vmdk_extent *e, uint64_t off)
{
	log_guest(&log_vmdk, "%s: the grain of byte %llu lies outside of the file", e->name,
		  (unsigned long long)off);
	return -EIO;
}

/* ---- reading ---- */

/* n bytes of the walk, from the file at off. */
static int read_file(struct blk *file, struct iov_walk *walk, uint64_t n, uint64_t off)
{
	struct iovec part[PART_IOVS];
	int r = 0;

	while (n && !r) {
		uint64_t step = n;
		unsigned nr = iov_peek(walk, part, PART_IOVS, &step);

		r = blk_readv(file, part, nr, off);
		iov_advance(walk, step);
		off += step;
		n -= step;
	}
	return r;
}

static int read_backing(struct blk *b, struct iov_walk *walk, uint64_t n, uint64_t off)
{
	struct iovec part[PART_IOVS];
	int r = 0;

	if (!b->backing) {
		iov_zero(walk, n);
		return 0;
	}
	while (n && !r) {
		uint64_t step = n;
		unsigned nr = iov_peek(walk, part, PART_IOVS, &step);

		r = blk_backing_readv(b, part, nr, step, off);
		iov_advance(walk, step);
		off += step;
		n -= step;
	}
	return r;
}

static int read_run(struct vmdk *v, struct vmdk_extent *e, const struct vmdk_run *run,
		    struct iov_walk *walk, uint64_t *n, uint64_t off)
{
	uint64_t in = off % e->grain;

	switch (run->state) {
	case GRAIN_NONE:
		return read_backing(v->b, walk, *n, e->start + off);
	case GRAIN_ZERO:
		iov_zero(walk, *n);
		return 0;
	case GRAIN_DATA:
		return read_file(e->file, walk, *n, run->off + in);
	case GRAIN_PACKED:
		*n = MIN(*n, e->grain - in);
		return vmdk_stream_read_part(e, off / e->grain, run, walk, in, *n);
	default:
		return bad_grain(e, off);
	}
}

static int read_sparse(struct vmdk *v, struct vmdk_extent *e, struct iov_walk *walk, uint64_t len,
		       uint64_t off)
{
	struct vmdk_run run;
	uint64_t n;
	int r = 0;

	for (; len && !r; len -= n, off += n) {
		r = vmdk_lookup(e, off / e->grain, grains_of(e, off, len), &run);
		if (r < 0)
			return r;
		n = bytes_of(e, &run, off, len);
		r = read_run(v, e, &run, walk, &n, off);
	}
	return r;
}

static int read_extent(struct vmdk *v, struct vmdk_extent *e, struct iov_walk *walk, uint64_t len,
		       uint64_t off)
{
	if (e->kind == KIND_ZERO) {
		iov_zero(walk, len);
		return 0;
	}
	if (e->access == ACCESS_NOACCESS)
		return -EACCES;
	if (e->kind == KIND_FLAT)
		return read_file(e->file, walk, len, e->flat_off + off);
	return read_sparse(v, e, walk, len, off);
}

int vmdk_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	struct vmdk *v = vmdk_of(b);
	struct iov_walk walk = {iov, n, 0};
	uint64_t step;
	int r = 0;

	for (; len && !r; len -= step, off += step) {
		struct vmdk_extent *e = vmdk_extent_at(v, off);

		step = MIN(len, e->start + e->len - off);
		r = read_extent(v, e, &walk, step, off - e->start);
	}
	return r;
}

/* ---- giving grains a place ---- */

static bool is_claimed(const struct vmdk_extent *e, uint64_t first, uint64_t end)
{
	for (const struct vmdk_claim *c = e->claims; c; c = c->next)
		if (c->first < end && first < c->end)
			return true;
	return false;
}

void vmdk_claim(struct vmdk_extent *e, struct vmdk_claim *claim)
{
	pthread_mutex_lock(&e->alloc_lock);
	while (is_claimed(e, claim->first, claim->end))
		pthread_cond_wait(&e->alloc_cond, &e->alloc_lock);
	claim->next = e->claims;
	e->claims = claim;
	pthread_mutex_unlock(&e->alloc_lock);
}

static void unclaim_locked(struct vmdk_extent *e, struct vmdk_claim *claim)
{
	for (struct vmdk_claim **c = &e->claims; *c; c = &(*c)->next)
		if (*c == claim) {
			*c = claim->next;
			break;
		}
	pthread_cond_broadcast(&e->alloc_cond);
}

void vmdk_unclaim(struct vmdk_extent *e, struct vmdk_claim *claim)
{
	pthread_mutex_lock(&e->alloc_lock);
	unclaim_locked(e, claim);
	pthread_mutex_unlock(&e->alloc_lock);
}

/* The grains have their place, or did not get it: then the space is free again. */
static void end_claim(struct vmdk_extent *e, struct vmdk_claim *claim, uint64_t place, bool failed)
{
	pthread_mutex_lock(&e->alloc_lock);
	if (failed && e->next_free == place + (claim->end - claim->first) * e->grain)
		e->next_free = place;
	unclaim_locked(e, claim);
	pthread_mutex_unlock(&e->alloc_lock);
}

/* Claim grains from `off` on, as many as share a state and a table, up to len bytes.  *len is 0
 * when another thread gave the first one its place meanwhile. */
static int claim_grains(struct vmdk_extent *e, uint64_t off, uint64_t *len,
			struct vmdk_claim *claim, struct vmdk_run *run, uint64_t *place)
{
	uint64_t g = off / e->grain, max = grains_of(e, off, *len);
	int r;

	max = MIN(max, e->nr_gtes - g % e->nr_gtes);
	pthread_mutex_lock(&e->alloc_lock);
	while (is_claimed(e, g, g + max))
		pthread_cond_wait(&e->alloc_cond, &e->alloc_lock);
	r = vmdk_lookup(e, g, max, run);
	if (!r && (run->state == GRAIN_DATA || run->state == GRAIN_BAD)) {
		*len = 0;
	} else if (!r) {
		*len = bytes_of(e, run, off, *len);
		run->count = grains_of(e, off, *len);
		r = vmdk_alloc(e, run->count * e->grain, true, place);
	}
	if (!r && *len) {
		*claim = (struct vmdk_claim){g, g + run->count, e->claims};
		e->claims = claim;
	}
	pthread_mutex_unlock(&e->alloc_lock);
	return r;
}

/* What a grain holds beside the bytes that are being written. */
static int fill(struct vmdk *v, struct vmdk_extent *e, enum vmdk_state state, uint8_t *buf,
		uint64_t len, uint64_t off)
{
	uint64_t mine = off < e->capacity ? MIN(len, e->capacity - off) : 0;
	struct iovec iov = {buf, mine};

	memset(buf, 0, len);
	if (state != GRAIN_NONE || !mine || !v->b->backing)
		return 0;
	return blk_backing_readv(v->b, &iov, 1, mine, e->start + off);
}

/* Whole grains at their new place: head from below, the new bytes, tail from below. */
static int write_grains(struct vmdk *v, struct vmdk_extent *e, const struct vmdk_run *run,
			const struct iov_walk *walk, uint64_t len, uint64_t off, uint64_t place)
{
	uint64_t head = off % e->grain, tail = run->count * e->grain - head - len, body = len;
	struct iovec iov[PART_IOVS + 2];
	unsigned nr = 0;
	uint8_t *buf = NULL;
	int r = 0;

	if (head + tail) {
		buf = malloc(head + tail);
		r = buf ? fill(v, e, run->state, buf, head, off - head) : -ENOMEM;
		if (!r)
			r = fill(v, e, run->state, buf + head, tail, off + len);
	}
	if (head)
		iov[nr++] = (struct iovec){buf, head};
	nr += iov_peek(walk, iov + nr, PART_IOVS, &body);
	if (tail)
		iov[nr++] = (struct iovec){buf + head, tail};
	if (!r)
		r = blk_writev(e->file, iov, nr, place);
	free(buf);
	return r;
}

/* Write to grains that have no place yet; *len says how many bytes were written. */
static int write_new(struct vmdk *v, struct vmdk_extent *e, const struct iov_walk *walk,
		     uint64_t *len, uint64_t off)
{
	struct iovec part[PART_IOVS];
	struct vmdk_claim claim;
	struct vmdk_run run;
	uint64_t place = 0;
	int r;

	iov_peek(walk, part, PART_IOVS, len); /* as much as one scatter list of ours takes */
	r = claim_grains(e, off, len, &claim, &run, &place);
	if (r < 0 || !*len)
		return r;
	r = write_grains(v, e, &run, walk, *len, off, place);
	if (!r)
		r = vmdk_enter(e, claim.first, run.count, GRAIN_DATA, place, GRAIN_BAD);
	end_claim(e, &claim, place, r < 0);
	if (!r && vmdk_tables_full(e))
		r = vmdk_tables_flush(e);
	return r;
}

/* ---- writing ---- */

static int write_file(struct blk *file, const struct iov_walk *walk, uint64_t *n, uint64_t off)
{
	struct iovec part[PART_IOVS];
	unsigned nr = iov_peek(walk, part, PART_IOVS, n);

	return blk_writev(file, part, nr, off);
}

static int write_sparse(struct vmdk *v, struct vmdk_extent *e, struct iov_walk *walk, uint64_t len,
			uint64_t off)
{
	struct vmdk_run run;
	uint64_t n;
	int r = 0;

	if (e->kind == KIND_STREAM)
		return vmdk_stream_write(v, e, walk, len, off);
	for (; len && !r; len -= n, off += n) {
		r = vmdk_lookup(e, off / e->grain, grains_of(e, off, len), &run);
		if (r < 0)
			return r;
		n = bytes_of(e, &run, off, len);
		if (run.state == GRAIN_DATA)
			r = write_file(e->file, walk, &n, run.off + off % e->grain);
		else if (run.state == GRAIN_BAD)
			return bad_grain(e, off);
		else
			r = write_new(v, e, walk, &n, off);
		iov_advance(walk, n);
	}
	return r;
}

static int write_flat(struct vmdk_extent *e, struct iov_walk *walk, uint64_t len, uint64_t off)
{
	uint64_t n;
	int r = 0;

	for (; len && !r; len -= n, off += n) {
		n = len;
		r = write_file(e->file, walk, &n, e->flat_off + off);
		iov_advance(walk, n);
	}
	return r;
}

static int write_extent(struct vmdk *v, struct vmdk_extent *e, struct iov_walk *walk, uint64_t len,
			uint64_t off)
{
	if (!e->writable)
		return -EROFS;
	if (e->kind == KIND_FLAT)
		return write_flat(e, walk, len, off);
	return write_sparse(v, e, walk, len, off);
}

int vmdk_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	struct vmdk *v = vmdk_of(b);
	struct iov_walk walk = {iov, n, 0};
	uint64_t step;
	int r = vmdk_touch(v);

	for (; len && !r; len -= step, off += step) {
		struct vmdk_extent *e = vmdk_extent_at(v, off);

		step = MIN(len, e->start + e->len - off);
		r = write_extent(v, e, &walk, step, off - e->start);
	}
	return r;
}

/* ---- zeroes ---- */

static int write_zero_bytes(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t len)
{
	int r = 0;

	while (len && !r) {
		uint64_t n = MIN(len, sizeof(zeroes));
		struct iovec iov = {(void *)(uintptr_t)zeroes, n};
		struct iov_walk walk = {&iov, 1, 0};

		r = write_sparse(v, e, &walk, n, off);
		off += n;
		len -= n;
	}
	return r;
}

/* Grains that show the parent: whole ones get the entry for zeroes, parts of one are written. */
static int zero_over_parent(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t *len)
{
	uint64_t g = off / e->grain, in = off % e->grain, n;
	int r;

	if (!e->zero_grains)
		return -EOPNOTSUPP;
	if (in || *len < vmdk_grain_len(e, g)) {
		*len = MIN(*len, e->grain - in);
		return write_zero_bytes(v, e, off, *len);
	}
	n = MIN(*len / e->grain, e->nr_gtes - g % e->nr_gtes);
	n = MAX(n, 1ull); /* the last, short one of the disk */
	*len = MIN(*len, n * e->grain);
	r = vmdk_enter(e, g, n, GRAIN_ZERO, 0, GRAIN_NONE);
	if (!r && vmdk_tables_full(e))
		r = vmdk_tables_flush(e);
	return r;
}

static int zero_run(struct vmdk *v, struct vmdk_extent *e, const struct vmdk_run *run, uint64_t off,
		    uint64_t *len, bool may_unmap)
{
	switch (run->state) {
	case GRAIN_ZERO:
		return 0;
	case GRAIN_NONE:
		return v->b->backing ? zero_over_parent(v, e, off, len) : 0;
	case GRAIN_DATA:
		return blk_write_zeroes(e->file, run->off + off % e->grain, *len, may_unmap);
	case GRAIN_PACKED:
		return -EOPNOTSUPP;
	default:
		return bad_grain(e, off);
	}
}

static int zero_extent(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t len,
		       bool may_unmap)
{
	struct vmdk_run run;
	uint64_t n;
	int r = 0;

	if (!e->writable)
		return -EROFS;
	if (e->kind == KIND_FLAT)
		return blk_write_zeroes(e->file, e->flat_off + off, len, may_unmap);
	for (; len && !r; len -= n, off += n) {
		r = vmdk_lookup(e, off / e->grain, grains_of(e, off, len), &run);
		if (r < 0)
			return r;
		n = bytes_of(e, &run, off, len);
		r = zero_run(v, e, &run, off, &n, may_unmap);
	}
	return r;
}

int vmdk_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct vmdk *v = vmdk_of(b);
	uint64_t step;
	int r = vmdk_touch(v);

	for (; len && !r; len -= step, off += step) {
		struct vmdk_extent *e = vmdk_extent_at(v, off);

		step = MIN(len, e->start + e->len - off);
		r = zero_extent(v, e, off - e->start, step, may_unmap);
	}
	return r;
}

static int discard_extent(struct vmdk_extent *e, uint64_t off, uint64_t len)
{
	struct vmdk_run run;
	uint64_t n;
	int r = 0;

	if (!e->writable || e->kind == KIND_STREAM)
		return 0;
	if (e->kind == KIND_FLAT)
		return blk_discard(e->file, e->flat_off + off, len);
	for (; len && !r; len -= n, off += n) {
		r = vmdk_lookup(e, off / e->grain, grains_of(e, off, len), &run);
		if (r < 0)
			return r;
		n = bytes_of(e, &run, off, len);
		if (run.state == GRAIN_DATA)
			r = blk_discard(e->file, run.off + off % e->grain, n);
	}
	return r;
}

int vmdk_discard(struct blk *b, uint64_t off, uint64_t len)
{
	struct vmdk *v = vmdk_of(b);
	uint64_t step;
	int r = vmdk_touch(v);

	for (; len && !r; len -= step, off += step) {
		struct vmdk_extent *e = vmdk_extent_at(v, off);

		step = MIN(len, e->start + e->len - off);
		r = discard_extent(e, off - e->start, step);
	}
	return r;
}

/* ---- where things are ---- */

/* Bytes of the file; its holes are zeroes here, whatever lies below. */
static int map_file(struct vmdk_extent *e, uint64_t off, struct blk_map *m)
{
	enum blk_extent what = BLK_EXT_DATA;
	int r = 0;

	m->what = BLK_EXT_DATA;
	if (!e->file) /* reading it says why not */
		return 0;
	if (range_inside(off, m->len, blk_size(e->file)))
		r = blk_extent(e->file, off, &m->len, &what);
	m->what = what == BLK_EXT_HOLE ? BLK_EXT_ZERO : what;
	m->host = e->file;
	m->host_off = off;
	return r;
}

/* As vmdk_lookup, but also over the ends of tables. */
static int lookup_far(struct vmdk_extent *e, uint64_t g, uint64_t max, struct vmdk_run *run)
{
	struct vmdk_run next;
	int r = vmdk_lookup(e, g, max, run);

	while (!r && run->count < max && run->state != GRAIN_BAD) {
		r = vmdk_lookup(e, g + run->count, max - run->count, &next);
		if (r < 0)
			return 0; /* whoever reads there is told */
		if (next.state != run->state ||
		    (next.state == GRAIN_DATA && next.off != run->off + run->count * e->grain))
			break;
		run->count += next.count;
	}
	return r;
}

static int map_sparse(struct vmdk *v, struct vmdk_extent *e, uint64_t off, struct blk_map *m)
{
	struct vmdk_run run;
	int r = lookup_far(e, off / e->grain, grains_of(e, off, m->len), &run);

	if (r < 0)
		return r;
	m->len = bytes_of(e, &run, off, m->len);
	switch (run.state) {
	case GRAIN_NONE:
		return blk_backing_map(v->b, e->start + off, m);
	case GRAIN_ZERO:
		m->what = BLK_EXT_ZERO;
		return 0;
	case GRAIN_DATA:
		return map_file(e, run.off + off % e->grain, m);
	case GRAIN_PACKED:
		m->what = BLK_EXT_DATA;
		m->compressed = true;
		return 0;
	default: /* reading it will say what is wrong */
		m->what = BLK_EXT_DATA;
		return 0;
	}
}

int vmdk_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	struct vmdk *v = vmdk_of(b);
	struct vmdk_extent *e = vmdk_extent_at(v, off);

	m->len = MIN(m->len, e->start + e->len - off);
	m->compressed = false;
	m->depth = 0;
	m->host = NULL;
	m->host_off = 0;
	off -= e->start;
	if (e->kind == KIND_ZERO) {
		m->what = BLK_EXT_ZERO;
		return 0;
	}
	if (e->kind == KIND_FLAT)
		return map_file(e, e->flat_off + off, m);
	return map_sparse(v, e, off, m);
}
