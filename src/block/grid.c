/* block/grid.c - see grid.h: reading and writing. */
#include "block/grid_internal.h"

#include "base/bytes.h"
#include "base/error.h"
#include "block/iov.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { GRID_IOVS = 64, RUN_BLOCKS = 65536, ALLOC_MAX = 64 * MiB, ZERO_LEN = 64 * KiB };

static const uint8_t zeroes[ZERO_LEN];

/* Blocks whose data are being written for the first time: not in the table yet.  Others who want to
 * write to them wait. */
struct grid_busy {
	uint64_t first, nr;
	struct grid_busy *next;
};

void grid_init(struct grid *g)
{
	pthread_rwlockattr_t attr;

	tables_init(&g->tables, g->file);
	pthread_mutex_init(&g->lock, NULL);
	pthread_mutex_init(&g->commit, NULL);
	pthread_mutex_init(&g->growth, NULL);
	pthread_mutex_init(&g->merge, NULL);
	pthread_cond_init(&g->not_busy, NULL);
	/* A commit that gives space back must not wait for ever behind readers. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&g->io, &attr);
	pthread_rwlockattr_destroy(&attr);
}

int grid_fini(struct grid *g)
{
	int r = g->started ? grid_commit(g) : 0;

	while (g->freed) /* the commit failed */
		grid_drop_freed(g);
	tables_fini(&g->tables);
	free(g->space.used);
	pthread_mutex_destroy(&g->lock);
	pthread_mutex_destroy(&g->commit);
	pthread_mutex_destroy(&g->growth);
	pthread_mutex_destroy(&g->merge);
	pthread_cond_destroy(&g->not_busy);
	pthread_rwlock_destroy(&g->io);
	return r;
}

int grid_start(struct grid *g)
{
	bool crowded;
	int r = 0;

	if (!g->started) {
		pthread_mutex_lock(&g->growth);
		if (!g->started && g->ops->first_write)
			r = g->ops->first_write(g);
		g->started = !r;
		pthread_mutex_unlock(&g->growth);
		return r;
	}
	pthread_mutex_lock(&g->lock);
	crowded = tables_crowded(&g->tables);
	pthread_mutex_unlock(&g->lock);
	return crowded ? grid_commit(g) : 0;
}

/* ---- runs ---- */

/* Bytes from an offset on that share one answer. */
struct run {
	enum grid_state state; /* never PART when found with split */
	uint64_t host, len;
};

static bool goes_on(const struct grid *g, const struct run *run, uint64_t have,
		    const struct grid_entry *e)
{
	if (e->state != run->state || e->state == GRID_PART)
		return false;
	return e->state != GRID_DATA || e->host == run->host + have;
}

/* With the lock.  split: the sectors of a PART block are told apart. */
static int find_run(struct grid *g, uint64_t off, uint64_t max, bool split, struct run *run)
{
	uint64_t block = off / g->block_size;
	uint32_t in = (uint32_t)(off % g->block_size);
	struct grid_entry e;
	int r = g->ops->get(g, block, &e);

	if (r < 0)
		return r;
	*run = (struct run){e.state, e.host + in, MIN(max, g->block_size - in)};
	if (e.state == GRID_PART && split) {
		uint32_t len = (uint32_t)run->len;
		bool here = false;

		r = g->ops->part_get(g, block, in, &len, &here);
		if (r < 0)
			return r;
		run->len = MIN(run->len, len);
		run->state = here ? GRID_DATA : GRID_NONE;
		return 0;
	}
	for (unsigned i = 0; run->len < max && i < RUN_BLOCKS; i++) {
		r = g->ops->get(g, ++block, &e);
		if (r < 0 || !goes_on(g, run, run->len, &e))
			return 0; /* what is wrong there is for the next one */
		run->len += MIN(max - run->len, g->block_size);
	}
	return 0;
}

/* ---- data in the file ---- */

static int file_write(struct grid *g, struct iov_walk *walk, uint64_t len, uint64_t at)
{
	struct iovec part[GRID_IOVS];
	int r = 0;

	while (len && !r) {
		uint64_t step = len;
		unsigned n = iov_peek(walk, part, GRID_IOVS, &step);

		r = blk_writev(g->file, part, n, at);
		iov_advance(walk, step);
		at += step;
		len -= step;
	}
	return r;
}

static int file_read(struct grid *g, struct iov_walk *walk, uint64_t len, uint64_t at)
{
	uint64_t size = blk_size(g->file), have = at < size ? MIN(len, size - at) : 0;
	struct iovec part[GRID_IOVS];
	int r = 0;

	if (have < len && !g->short_file)
		return -EIO;
	for (len -= have; have && !r;) {
		uint64_t step = have;
		unsigned n = iov_peek(walk, part, GRID_IOVS, &step);

		r = blk_readv(g->file, part, n, at);
		iov_advance(walk, step);
		at += step;
		have -= step;
	}
	iov_zero(walk, len);
	return r;
}

static int backing_read(struct grid *g, struct iov_walk *walk, uint64_t len, uint64_t off)
{
	struct iovec part[GRID_IOVS];
	int r = 0;

	while (len && !r) {
		uint64_t step = len;
		unsigned n = iov_peek(walk, part, GRID_IOVS, &step);

		r = blk_backing_readv(g->b, part, n, step, off);
		iov_advance(walk, step);
		off += step;
		len -= step;
	}
	return r;
}

/* ---- reading ---- */

static int read_run(struct grid *g, struct iov_walk *walk, uint64_t off, const struct run *run)
{
	if (run->state == GRID_DATA)
		return file_read(g, walk, run->len, run->host);
	if (run->state == GRID_NONE && g->b->backing)
		return backing_read(g, walk, run->len, off);
	iov_zero(walk, run->len);
	return 0;
}

int grid_readv(struct grid *g, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	struct iov_walk walk = {iov, n, 0};
	struct run run;
	int r = 0;

	while (len && !r) {
		pthread_rwlock_rdlock(&g->io);
		pthread_mutex_lock(&g->lock);
		r = find_run(g, off, len, true, &run);
		pthread_mutex_unlock(&g->lock);
		if (!r)
			r = read_run(g, &walk, off, &run);
		pthread_rwlock_unlock(&g->io);
		off += run.len;
		len -= run.len;
	}
	return r;
}

/* Holes of the file below read as zeroes: nobody need read them. */
static void look_for_holes(struct grid *g, struct blk_map *m)
{
	struct blk_map below = {.len = m->len};
	uint64_t size = blk_size(g->file);

	if (m->host_off >= size)
		return;
	below.len = MIN(below.len, size - m->host_off);
	if (blk_map(g->file, m->host_off, &below) < 0)
		return;
	m->len = below.len;
	if (below.what != BLK_EXT_DATA)
		m->what = BLK_EXT_ZERO;
}

int grid_map(struct grid *g, uint64_t off, struct blk_map *m)
{
	struct run run;
	int r;

	pthread_rwlock_rdlock(&g->io);
	pthread_mutex_lock(&g->lock);
	r = find_run(g, off, m->len, true, &run);
	pthread_mutex_unlock(&g->lock);
	if (!r && run.state == GRID_NONE) {
		m->len = run.len;
		r = blk_backing_map(g->b, off, m);
	} else if (!r) {
		*m = (struct blk_map){.len = run.len, .what = BLK_EXT_ZERO};
		if (run.state == GRID_DATA) {
			m->what = BLK_EXT_DATA;
			m->host = g->file;
			m->host_off = run.host;
			look_for_holes(g, m);
		}
	}
	pthread_rwlock_unlock(&g->io);
	return r;
}

/* ---- new blocks ---- */

/* A write into blocks that are not here: units were taken for them. */
struct fresh_write {
	uint64_t block, nr; /* blocks */
	uint64_t at;        /* of the first unit */
	bool fresh;         /* it reads as zeroes already */
	enum grid_state was, becomes;
	uint64_t off, len; /* of the write, inside the blocks */
};

static bool is_busy(const struct grid *g, uint64_t block)
{
	for (const struct grid_busy *b = g->busy; b; b = b->next)
		if (block >= b->first && block - b->first < b->nr)
			return true;
	return false;
}

static void wait_not_busy(struct grid *g, uint64_t block)
{
	while (is_busy(g, block))
		pthread_cond_wait(&g->not_busy, &g->lock);
}

static void leave_busy(struct grid *g, struct grid_busy *me)
{
	struct grid_busy **at = &g->busy;

	while (*at != me)
		at = &(*at)->next;
	*at = me->next;
	pthread_cond_broadcast(&g->not_busy);
}

/* What the backing file has at [off, off+len) of the disk goes to `at`. */
static int copy_up(struct grid *g, uint64_t off, uint64_t len, uint64_t at)
{
	size_t step = MIN(len, 256 * KiB);
	uint8_t *buf = len ? malloc(step) : NULL;
	int r = buf || !len ? 0 : -ENOMEM;

	while (len && !r) {
		size_t n = MIN(len, step);
		struct iovec iov = {buf, n};

		r = blk_backing_readv(g->b, &iov, 1, n, off);
		if (!r)
			r = blk_write(g->file, buf, n, at);
		off += n;
		at += n;
		len -= n;
	}
	free(buf);
	return r;
}

/* The part of new blocks that is not written to. */
static int fill(struct grid *g, const struct fresh_write *w, uint64_t off, uint64_t len,
		uint64_t at)
{
	if (!len)
		return 0;
	if (w->was == GRID_NONE && g->b->backing)
		return copy_up(g, off, len, at);
	return w->fresh ? 0 : blk_write_zeroes(g->file, at, len, true);
}

/* The other end of the sectors that a write touches in part. */
static int merge_sectors(struct grid *g, uint64_t off, uint64_t len, uint64_t at)
{
	uint64_t head = off % g->sector, end = off + len;
	uint64_t tail = ALIGN_UP(end, g->sector) - end;
	int r = copy_up(g, off - head, head, at - head);

	return r < 0 ? r : copy_up(g, end, tail, at + len);
}

static int write_around(struct grid *g, const struct fresh_write *w)
{
	uint64_t start = w->block * g->block_size, end = start + w->nr * g->block_size;
	uint64_t host = w->at + g->prefix, behind = w->off + w->len;
	int r;

	if (w->becomes == GRID_PART)
		return merge_sectors(g, w->off, w->len, host + (w->off - start));
	r = fill(g, w, start, w->off - start, host);
	return r < 0 ? r : fill(g, w, behind, end - behind, host + (behind - start));
}

static int reserve(struct grid *g, uint64_t end)
{
	int r;

	if (!g->ops->reserve)
		return 0;
	pthread_mutex_lock(&g->growth);
	r = g->ops->reserve(g, end);
	pthread_mutex_unlock(&g->growth);
	return r;
}

static int write_fresh(struct grid *g, const struct fresh_write *w, struct iov_walk *walk)
{
	uint64_t end = w->at + w->nr * g->units_per_block * g->unit;
	uint64_t host = w->at + g->prefix;
	int r = reserve(g, end);

	if (!r && g->ops->prepare)
		r = g->ops->prepare(g, host, w->nr, w->becomes == GRID_PART);
	if (!r)
		r = write_around(g, w);
	if (!r)
		r = file_write(g, walk, w->len, host + (w->off - w->block * g->block_size));
	if (!r && blk_size(g->file) < end) /* whole blocks, for readers that insist */
		r = blk_write(g->file, zeroes, 1, end - 1);
	return r;
}

/* Which sectors of a new PART block are here. */
static int enter_sectors(struct grid *g, const struct fresh_write *w)
{
	uint32_t in = (uint32_t)(w->off % g->block_size),
		 from = (uint32_t)ALIGN_DOWN(in, g->sector);
	uint32_t len = (uint32_t)(ALIGN_UP(in + w->len, g->sector) - from);
	int r = g->ops->part_set(g, w->block, 0, g->block_size, false);

	return r < 0 ? r : g->ops->part_set(g, w->block, from, len, true);
}

/* With the lock; how many blocks were entered. */
static uint64_t enter(struct grid *g, const struct fresh_write *w, int *result)
{
	const struct grid_entry none = {w->was, 0};
	uint64_t stride = g->unit * g->units_per_block, i;

	for (i = 0; i < w->nr; i++) {
		struct grid_entry e = {w->becomes, w->at + i * stride + g->prefix};
		int r = g->ops->set(g, w->block + i, &e);

		if (!r && e.state == GRID_PART)
			r = enter_sectors(g, w);
		if (r < 0) {
			(void)g->ops->set(g, w->block + i, &none);
			*result = r;
			return i;
		}
	}
	return i;
}

/* How much of a write into absent blocks is done in one go. */
static int plan(struct grid *g, struct fresh_write *w)
{
	uint32_t bs = g->block_size, in = (uint32_t)(w->off % bs);
	int r;

	w->block = w->off / bs;
	w->becomes = GRID_DATA;
	w->len = MIN(w->len, MAX(ALLOC_MAX, bs) - in);
	if (w->was == GRID_NONE && g->parts && (in || w->len < bs || g->always_parts))
		w->becomes = GRID_PART;
	else if (w->was == GRID_NONE && g->parts)
		w->len -= w->len % bs;
	if (w->becomes == GRID_PART || g->prefix)
		w->len = MIN(w->len, bs - in);
	w->nr = (in + w->len + bs - 1) / bs;
	r = grid_take(g, w->nr * g->units_per_block, &w->at, &w->fresh);
	if (r == -ENOSPC && w->nr > 1) { /* perhaps in pieces */
		w->nr = 1;
		w->len = bs - in;
		r = grid_take(g, g->units_per_block, &w->at, &w->fresh);
	}
	return r == -ENOSPC && g->nr_leaving ? -EAGAIN : r;
}

/* With the lock, which it gives up in between. */
static int write_absent(struct grid *g, struct iov_walk *walk, uint64_t off, enum grid_state was,
			uint64_t *len)
{
	struct fresh_write w = {.was = was, .off = off, .len = *len};
	struct grid_busy busy;
	uint64_t entered = 0;
	int r = plan(g, &w);

	if (r < 0)
		return r;
	busy = (struct grid_busy){w.block, w.nr, g->busy};
	g->busy = &busy;
	pthread_mutex_unlock(&g->lock);
	r = write_fresh(g, &w, walk);
	pthread_mutex_lock(&g->lock);
	if (!r)
		entered = enter(g, &w, &r);
	if (entered < w.nr)
		grid_untake(g, w.at + entered * g->units_per_block * g->unit,
			    (w.nr - entered) * g->units_per_block);
	leave_busy(g, &busy);
	*len = w.len;
	return r;
}

/* ---- writing ---- */

static int part_is_here(struct grid *g, uint64_t block, uint32_t in, bool *here)
{
	uint32_t len = 1;
	int r;

	pthread_mutex_lock(&g->lock);
	r = g->ops->part_get(g, block, in, &len, here);
	pthread_mutex_unlock(&g->lock);
	return r;
}

/* The rest of the first and last sector, where they are not here yet. */
static int merge_part(struct grid *g, uint64_t off, uint64_t len, uint64_t host)
{
	uint64_t block = off / g->block_size, head = off % g->sector;
	uint64_t tail = ALIGN_UP(off + len, g->sector) - (off + len);
	uint32_t in = (uint32_t)(off % g->block_size);
	bool here;
	int r = 0;

	if (head) {
		r = part_is_here(g, block, in, &here);
		if (!r && !here)
			r = copy_up(g, off - head, head, host - head);
	}
	if (tail && !r) {
		r = part_is_here(g, block, (uint32_t)(in + len - 1), &here);
		if (!r && !here)
			r = copy_up(g, off + len, tail, host + len);
	}
	return r;
}

static int write_part(struct grid *g, struct iov_walk *walk, uint64_t off, const struct run *run)
{
	uint64_t from = ALIGN_DOWN(off, g->sector), to = ALIGN_UP(off + run->len, g->sector);
	bool whole = from == off && to == off + run->len;
	int r = 0;

	if (!whole) {
		pthread_mutex_lock(&g->merge);
		r = merge_part(g, off, run->len, run->host);
	}
	if (!r)
		r = file_write(g, walk, run->len, run->host);
	pthread_mutex_lock(&g->lock);
	if (!r)
		r = g->ops->part_set(g, off / g->block_size, (uint32_t)(from % g->block_size),
				     (uint32_t)(to - from), true);
	pthread_mutex_unlock(&g->lock);
	if (!whole)
		pthread_mutex_unlock(&g->merge);
	return r;
}

/* Absent blocks up to the first one somebody else is at work on. */
static void stop_at_busy(const struct grid *g, uint64_t off, struct run *run)
{
	uint64_t first = off / g->block_size, last = (off + run->len - 1) / g->block_size;

	for (const struct grid_busy *b = g->busy; b; b = b->next)
		if (b->first > first && b->first <= last)
			last = b->first - 1;
	run->len = MIN(run->len, (last + 1) * g->block_size - off);
}

static int write_some(struct grid *g, struct iov_walk *walk, uint64_t off, uint64_t *len)
{
	struct run run;
	int r;

	pthread_mutex_lock(&g->lock);
	wait_not_busy(g, off / g->block_size);
	r = find_run(g, off, *len, false, &run);
	if (!r && (run.state == GRID_NONE || run.state == GRID_ZERO)) {
		stop_at_busy(g, off, &run);
		r = write_absent(g, walk, off, run.state, &run.len);
		pthread_mutex_unlock(&g->lock);
		*len = run.len;
		return r;
	}
	pthread_mutex_unlock(&g->lock);
	*len = run.len;
	if (r < 0)
		return r;
	return run.state == GRID_PART ? write_part(g, walk, off, &run)
				      : file_write(g, walk, run.len, run.host);
}

int grid_writev(struct grid *g, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	struct iov_walk walk = {iov, n, 0};
	int r = 0;

	while (len && !r) {
		uint64_t step = len;

		r = grid_start(g);
		if (r < 0)
			return r;
		pthread_rwlock_rdlock(&g->io);
		r = write_some(g, &walk, off, &step);
		pthread_rwlock_unlock(&g->io);
		if (r == -EAGAIN) { /* what was given up has to be free first */
			r = grid_commit(g);
			continue;
		}
		off += step;
		len -= step;
	}
	return r;
}

/* ---- giving up ---- */

/* With the lock: the block is zeroes from now on. */
static int give_up(struct grid *g, uint64_t block, const struct grid_entry *e)
{
	struct grid_entry none = {g->has_zero ? GRID_ZERO : GRID_NONE, 0};
	int r = grid_count(g); /* from the tables as they were, so that its units count as used */

	if (!r)
		r = g->ops->set(g, block, &none);
	if (r < 0 || (e->state != GRID_DATA && e->state != GRID_PART))
		return r;
	return grid_free_later(g, e->host - g->prefix, g->units_per_block);
}

static bool can_give_up(const struct grid *g)
{
	return !g->keep && (g->has_zero || !g->layered);
}

/* [off, off+*len) shortened to a run or one block; `whole` when it is all that the disk has of the
 * block. */
static int look(struct grid *g, uint64_t off, uint64_t *len, struct grid_entry *e, bool *whole)
{
	uint64_t block = off / g->block_size, in = off % g->block_size;
	uint64_t there = MIN(g->block_size, blk_size(g->b) - block * g->block_size);
	struct run run;
	int r = 0;

	wait_not_busy(g, block);
	r = g->ops->get(g, block, e);
	if (r < 0)
		return r;
	if (e->state == GRID_ZERO || (e->state == GRID_NONE && !g->layered)) {
		r = find_run(g, off, *len, false, &run);
		stop_at_busy(g, off, &run);
		*len = run.len;
	} else {
		*len = MIN(*len, g->block_size - in);
	}
	*whole = !in && *len >= there;
	return r;
}

static int discard_some(struct grid *g, uint64_t off, uint64_t *len)
{
	struct grid_entry e = {GRID_NONE, 0};
	bool whole = false;
	int r;

	pthread_mutex_lock(&g->lock);
	r = look(g, off, len, &e, &whole);
	if (!r && whole && can_give_up(g) && (e.state == GRID_DATA || e.state == GRID_PART))
		r = give_up(g, off / g->block_size, &e);
	pthread_mutex_unlock(&g->lock);
	if (!r && e.state == GRID_DATA && !(whole && can_give_up(g)))
		r = blk_discard(g->file, e.host + off % g->block_size, *len);
	return r;
}

static int write_zero_bytes(struct grid *g, uint64_t off, uint64_t *len)
{
	struct iovec iov = {(void *)(uintptr_t)zeroes, ZERO_LEN};
	struct iov_walk walk = {&iov, 1, 0};

	*len = MIN(*len, ZERO_LEN);
	return write_some(g, &walk, off, len);
}

static int zero_some(struct grid *g, uint64_t off, uint64_t *len, bool may_unmap)
{
	struct grid_entry e = {GRID_NONE, 0};
	bool whole = false, give, nothing;
	int r;

	pthread_mutex_lock(&g->lock);
	r = look(g, off, len, &e, &whole);
	nothing = e.state == GRID_ZERO || (e.state == GRID_NONE && !g->layered);
	give = whole && can_give_up(g) && (may_unmap || e.state == GRID_NONE);
	if (!r && !nothing && give)
		r = give_up(g, off / g->block_size, &e);
	pthread_mutex_unlock(&g->lock);
	if (r < 0 || nothing || give)
		return r;
	if (e.state == GRID_DATA)
		return blk_write_zeroes(g->file, e.host + off % g->block_size, *len, may_unmap);
	return write_zero_bytes(g, off, len);
}

int grid_discard(struct grid *g, uint64_t off, uint64_t len)
{
	int r = 0;

	while (len && !r) {
		uint64_t step = len;

		r = grid_start(g);
		if (r < 0)
			return r;
		pthread_rwlock_rdlock(&g->io);
		r = discard_some(g, off, &step);
		pthread_rwlock_unlock(&g->io);
		off += step;
		len -= step;
	}
	return r;
}

int grid_write_zeroes(struct grid *g, uint64_t off, uint64_t len, bool may_unmap)
{
	int r = 0;

	while (len && !r) {
		uint64_t step = len;

		r = grid_start(g);
		if (r < 0)
			return r;
		pthread_rwlock_rdlock(&g->io);
		r = zero_some(g, off, &step, may_unmap);
		pthread_rwlock_unlock(&g->io);
		if (r == -EAGAIN) {
			r = grid_commit(g);
			continue;
		}
		off += step;
		len -= step;
	}
	return r;
}
