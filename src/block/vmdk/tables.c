/* block/vmdk/tables.c - grain tables: a bounded cache, and how changes reach the file.
 *
 * A table is read when it is first needed and thrown out when there are too many; one that differs
 * from the file stays.  Changes are written back by vmdk_tables_flush, in an order that leaves a
 * good image wherever it is cut short:
 *
 *   1. tables that no directory leads to yet; then flush, with which all data is durable too
 *   2. the other tables and the directories, the redundant copies first; then flush
 *
 * So no entry that reaches the file leads to data which did not.  What a cut leaves behind is
 * unused space, and perhaps copies of tables that differ: the unclean-shutdown mark, set in 1 and
 * removed when the disk is closed, says that this may be so.
 *
 * Readers hold map_lock only to look at a table in memory. */
#include "block/vmdk/vmdk.h"

#include "base/bytes.h"
#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_SLOTS = 16, SLOTS_STEP = 64 };

static struct log_component log_vmdk = LOG_COMPONENT("vmdk");

uint64_t vmdk_grain_len(const struct vmdk_extent *e, uint64_t g)
{
	return MIN(e->grain, e->capacity - g * e->grain);
}

/* ---- entries ---- */

static void decode_place(const struct vmdk_extent *e, uint64_t off, uint64_t g, struct vmdk_run *r)
{
	uint64_t need = e->kind == KIND_STREAM ? 12 : vmdk_grain_len(e, g);

	r->off = off;
	r->state = e->kind == KIND_STREAM ? GRAIN_PACKED : GRAIN_DATA;
	if (off < SECTOR || !range_inside(off, need, atomic_load(&e->file_end)))
		r->state = GRAIN_BAD;
}

/* VDF "Grain Table"; a 1 means zeroes in version 2. */
static void decode32(const struct vmdk_extent *e, uint32_t v, uint64_t g, struct vmdk_run *r)
{
	if (v == 0)
		r->state = GRAIN_NONE;
	else if (v == 1 && e->zero_grains)
		r->state = GRAIN_ZERO;
	else
		decode_place(e, (uint64_t)v * SECTOR, g, r);
}

/* Top four bits: 0 nothing, 1 unmapped by the guest, 2 zeroes, 3 data.  The number of a grain has
 * its low 12 bits in bits 48..59 and the others from bit 0 up. */
static void decode_se(const struct vmdk_extent *e, uint64_t v, uint64_t g, struct vmdk_run *r)
{
	uint64_t number = (v >> 48 & 0xfff) | (v & 0xffffffffffff) << 12;

	if (v == 0)
		r->state = GRAIN_NONE;
	else if (v >> 60 == 1 || v >> 60 == 2)
		r->state = GRAIN_ZERO;
	else if (v >> 60 == 3 && number < BIT(62) / e->grain)
		decode_place(e, e->grains_off + number * e->grain, g, r);
	else
		r->state = GRAIN_BAD;
}

void vmdk_decode(const struct vmdk_extent *e, const uint8_t *raw, uint64_t g, struct vmdk_run *r)
{
	uint32_t k = (uint32_t)(g % e->nr_gtes);

	r->off = r->room = 0;
	if (e->gte_size == 8)
		decode_se(e, le64_load(raw + k * 8ull), g, r);
	else
		decode32(e, le32_load(raw + k * 4ull), g, r);
}

void vmdk_encode(const struct vmdk_extent *e, uint8_t *raw, uint32_t k, enum vmdk_state state,
		 uint64_t off)
{
	if (e->gte_size == 8) {
		uint64_t number = (off - e->grains_off) / e->grain;
		uint64_t v = state == GRAIN_NONE ? 0
			     : state == GRAIN_ZERO
				     ? 2ull << 60
				     : 3ull << 60 | (number & 0xfff) << 48 | number >> 12;

		le64_store(raw + k * 8ull, v);
		return;
	}
	le32_store(raw + k * 4ull, state == GRAIN_NONE   ? 0
				   : state == GRAIN_ZERO ? 1
							 : (uint32_t)(off / SECTOR));
}

static enum vmdk_state state_of(const struct vmdk_extent *e, const uint8_t *raw, uint64_t g)
{
	struct vmdk_run r;

	vmdk_decode(e, raw, g, &r);
	return r.state;
}

/* ---- the cache ---- */

int vmdk_tables_init(struct vmdk_extent *e)
{
	pthread_rwlock_init(&e->map_lock, NULL);
	pthread_mutex_init(&e->alloc_lock, NULL);
	pthread_mutex_init(&e->flush_lock, NULL);
	pthread_mutex_init(&e->cache_lock, NULL);
	pthread_cond_init(&e->alloc_cond, NULL);
	e->max_slots = (unsigned)MAX(VMDK_CACHE_BYTES / e->gt_bytes, (uint64_t)MIN_SLOTS);
	e->gt = calloc(e->nr_gd + 1ull, sizeof(struct vmdk_gt *));
	return e->gt ? 0 : -ENOMEM;
}

void vmdk_tables_fini(struct vmdk_extent *e)
{
	for (unsigned i = 0; i < e->nr_slots; i++)
		free(e->slot[i]);
	free(e->slot);
	free(e->gt);
	free(e->gd);
	free(e->rgd);
	pthread_rwlock_destroy(&e->map_lock);
	pthread_mutex_destroy(&e->alloc_lock);
	pthread_mutex_destroy(&e->flush_lock);
	pthread_mutex_destroy(&e->cache_lock);
	pthread_cond_destroy(&e->alloc_cond);
}

uint64_t vmdk_table_offset(const struct vmdk_extent *e, uint32_t index, bool copy)
{
	uint32_t at = copy ? (e->rgd ? e->rgd[index] : 0) : e->gd[index];

	if (!at)
		return 0;
	if (e->kind == KIND_SESPARSE)
		return e->tables_off + (at - 1) * e->gt_bytes;
	return (uint64_t)at * SECTOR;
}

static bool table_inside(const struct vmdk_extent *e, uint64_t off)
{
	return off >= SECTOR && range_inside(off, e->gt_bytes, atomic_load(&e->file_end));
}

/* An entry that leads out of the file: the table is not to be trusted when there is a copy. */
static bool table_is_sound(const struct vmdk_extent *e, uint32_t index, const uint8_t *raw)
{
	uint64_t g = (uint64_t)index * e->nr_gtes, nr = (e->capacity + e->grain - 1) / e->grain;

	for (uint64_t end = MIN(g + e->nr_gtes, nr); g < end; g++)
		if (state_of(e, raw, g) == GRAIN_BAD)
			return false;
	return true;
}

static int read_table(struct vmdk_extent *e, uint32_t index, uint64_t off, uint64_t copy,
		      uint8_t *raw)
{
	int r = table_inside(e, off) ? blk_read(e->file, raw, e->gt_bytes, off) : -EIO;

	if (!r && (!table_inside(e, copy) || table_is_sound(e, index, raw)))
		return 0;
	if (!table_inside(e, copy))
		goto out;
	if (blk_read(e->file, raw, e->gt_bytes, copy) == 0 && table_is_sound(e, index, raw)) {
		log_guest(&log_vmdk, "%s: grain table %u is damaged, its copy is used", e->name,
			  index);
		return 0;
	}
	r = table_inside(e, off) ? blk_read(e->file, raw, e->gt_bytes, off) : -EIO;
out:
	if (r < 0)
		log_guest(&log_vmdk, "%s: grain table %u cannot be read", e->name, index);
	return r;
}

/* A slot for one more table: a new one, or that of a table which is neither changed nor used of
 * late.  Under the write lock. */
static struct vmdk_gt **free_slot(struct vmdk_extent *e)
{
	for (unsigned i = 0; e->nr_slots >= e->max_slots && i < 2 * e->nr_slots; i++) {
		struct vmdk_gt **s = &e->slot[e->hand++ % e->nr_slots];

		if ((*s)->dirty || (*s)->busy || atomic_exchange(&(*s)->used, false))
			continue;
		e->gt[(*s)->index] = NULL;
		e->evictions++;
		free(*s);
		return s;
	}
	if (e->nr_slots == e->cap_slots) {
		struct vmdk_gt **more =
			realloc(e->slot, (e->cap_slots + SLOTS_STEP) * sizeof(struct vmdk_gt *));

		if (!more)
			return NULL;
		e->slot = more;
		e->cap_slots += SLOTS_STEP;
	}
	return &e->slot[e->nr_slots++];
}

static int insert_table(struct vmdk_extent *e, struct vmdk_gt *t)
{
	struct vmdk_gt **s = free_slot(e);

	if (!s)
		return -ENOMEM;
	*s = t;
	e->gt[t->index] = t;
	return 0;
}

static struct vmdk_gt *new_table(struct vmdk_extent *e, uint32_t index)
{
	struct vmdk_gt *t = calloc(1, sizeof(*t) + e->gt_bytes);

	if (t)
		t->index = index;
	return t;
}

/* Bring a table into memory.  A table could have been brought in, changed, written and thrown out
 * while we read: then what we read is old, and is read again. */
static int load_table(struct vmdk_extent *e, uint32_t index)
{
	struct vmdk_gt *t = new_table(e, index);
	uint64_t seen, off, copy;
	int r;

	if (!t)
		return -ENOMEM;
	do {
		pthread_rwlock_rdlock(&e->map_lock);
		seen = e->evictions;
		off = vmdk_table_offset(e, index, false);
		copy = vmdk_table_offset(e, index, true);
		pthread_rwlock_unlock(&e->map_lock);
		r = read_table(e, index, off, copy, t->raw);
		if (r < 0)
			break;
		pthread_rwlock_wrlock(&e->map_lock);
		if (e->gt[index]) {
			pthread_rwlock_unlock(&e->map_lock);
			free(t);
			return 0;
		}
		if (e->evictions == seen) {
			r = insert_table(e, t);
			pthread_rwlock_unlock(&e->map_lock);
			break;
		}
		pthread_rwlock_unlock(&e->map_lock);
	} while (true);
	if (r < 0)
		free(t);
	return r;
}

static bool has_table(const struct vmdk_extent *e, uint32_t index)
{
	return e->gt[index] || e->gd[index] || (e->rgd && e->rgd[index]);
}

static bool joins(const struct vmdk_extent *e, const struct vmdk_run *first,
		  const struct vmdk_run *next)
{
	if (first->state != next->state || first->state == GRAIN_BAD)
		return false;
	return first->state != GRAIN_DATA || next->off == first->off + first->count * e->grain;
}

/* Grains without a table, from g on. */
static void run_of_nothing(const struct vmdk_extent *e, uint64_t g, uint64_t max,
			   struct vmdk_run *r)
{
	*r = (struct vmdk_run){.state = GRAIN_NONE};
	while (r->count < max && !has_table(e, (uint32_t)((g + r->count) / e->nr_gtes)))
		r->count += e->nr_gtes - (g + r->count) % e->nr_gtes;
	r->count = MIN(r->count, max);
}

/* Where the next packed grain starts: a hint for how much to read. */
static uint64_t packed_room(const struct vmdk_extent *e, const uint8_t *raw, uint64_t g,
			    uint64_t off)
{
	uint64_t end = (g / e->nr_gtes + 1) * e->nr_gtes;
	uint64_t nr = (e->capacity + e->grain - 1) / e->grain;
	struct vmdk_run r;

	for (g++; g < MIN(end, nr); g++) {
		vmdk_decode(e, raw, g, &r);
		if (r.state == GRAIN_PACKED)
			return r.off > off ? r.off - off : 0;
	}
	return 0;
}

static void run_in_table(const struct vmdk_extent *e, struct vmdk_gt *t, uint64_t g, uint64_t max,
			 struct vmdk_run *r)
{
	uint64_t end = MIN(g + max, ((uint64_t)t->index + 1) * e->nr_gtes);
	struct vmdk_run next;

	atomic_store_explicit(&t->used, true, memory_order_relaxed);
	vmdk_decode(e, t->raw, g, r);
	r->count = 1;
	if (r->state == GRAIN_PACKED)
		r->room = packed_room(e, t->raw, g, r->off);
	for (uint64_t i = g + 1; i < end; i++, r->count++) {
		vmdk_decode(e, t->raw, i, &next);
		if (!joins(e, r, &next))
			break;
	}
}

int vmdk_lookup(struct vmdk_extent *e, uint64_t g, uint64_t max, struct vmdk_run *r)
{
	uint32_t index = (uint32_t)(g / e->nr_gtes);
	bool found;
	int ret;

	for (;;) {
		pthread_rwlock_rdlock(&e->map_lock);
		found = true;
		if (e->gt[index])
			run_in_table(e, e->gt[index], g, max, r);
		else if (!has_table(e, index))
			run_of_nothing(e, g, max, r);
		else
			found = false;
		pthread_rwlock_unlock(&e->map_lock);
		if (found)
			return 0;
		ret = load_table(e, index);
		if (ret < 0)
			return ret;
	}
}

/* ---- giving out space ---- */

static uint64_t file_limit(const struct vmdk_extent *e)
{
	return e->gte_size == 8 ? (uint64_t)INT64_MAX : (uint64_t)UINT32_MAX * SECTOR;
}

int vmdk_alloc(struct vmdk_extent *e, uint64_t bytes, bool locked, uint64_t *off)
{
	int r = -ENOSPC;

	if (!locked)
		pthread_mutex_lock(&e->alloc_lock);
	if (e->align && bytes >= e->grain)
		e->next_free = ALIGN_UP(e->next_free, e->grain);
	if (range_inside(e->next_free, bytes, file_limit(e))) {
		*off = e->next_free;
		e->next_free += ALIGN_UP(bytes, SECTOR);
		if (e->next_free > atomic_load(&e->file_end))
			atomic_store(&e->file_end, e->next_free);
		r = 0;
	}
	if (!locked)
		pthread_mutex_unlock(&e->alloc_lock);
	if (r < 0)
		log_guest(&log_vmdk, "%s: a sparse extent cannot grow over 2 TiB", e->name);
	return r;
}

/* seSparse: tables have a region of their own; the number after the highest in use. */
static int alloc_se_table(struct vmdk_extent *e, uint32_t *number)
{
	uint32_t max = 0;

	for (uint32_t i = 0; i < e->nr_gd; i++)
		max = MAX(max, e->gd[i]);
	if ((max + 1ull) * e->gt_bytes > e->tables_len)
		return -ENOSPC;
	*number = max + 1;
	return 0;
}

static int place_table(struct vmdk_extent *e, uint32_t *at, uint32_t *copy)
{
	uint64_t bytes = e->gt_bytes * (e->rgd ? 2 : 1), off;
	int r;

	*copy = 0;
	if (e->kind == KIND_SESPARSE)
		return alloc_se_table(e, at);
	if (e->kind == KIND_STREAM) { /* gets its place with the tail */
		*at = 0;
		return 0;
	}
	r = vmdk_alloc(e, bytes, false, &off);
	if (r < 0)
		return r;
	*at = (uint32_t)(off / SECTOR);
	if (e->rgd)
		*copy = (uint32_t)((off + e->gt_bytes) / SECTOR);
	return 0;
}

/* An empty table for a part of the disk that had none. */
static int add_table(struct vmdk_extent *e, uint32_t index)
{
	struct vmdk_gt *t = new_table(e, index);
	uint32_t at = 0, copy = 0;
	int r = -ENOMEM;

	if (!t)
		return r;
	pthread_mutex_lock(&e->flush_lock); /* one at a time, and not while they are written */
	r = has_table(e, index) ? 0 : place_table(e, &at, &copy);
	pthread_rwlock_wrlock(&e->map_lock);
	if (!r && !has_table(e, index)) {
		r = insert_table(e, t);
		if (!r) {
			t->dirty = t->fresh = true;
			e->nr_dirty++;
			e->gd[index] = at;
			if (e->rgd)
				e->rgd[index] = copy;
			e->gd_dirty_lo = MIN(e->gd_dirty_lo, index);
			e->gd_dirty_end = MAX(e->gd_dirty_end, index + 1);
			t = NULL;
		}
	}
	pthread_rwlock_unlock(&e->map_lock);
	pthread_mutex_unlock(&e->flush_lock);
	free(t);
	return r;
}

static void enter_locked(struct vmdk_extent *e, struct vmdk_gt *t, uint64_t g, uint64_t n,
			 enum vmdk_state state, uint64_t off, enum vmdk_state only_if)
{
	for (; n; n--, g++, off += e->grain) {
		if (only_if != GRAIN_BAD && state_of(e, t->raw, g) != only_if)
			continue;
		vmdk_encode(e, t->raw, (uint32_t)(g % e->nr_gtes), state, off);
	}
	if (!t->dirty)
		e->nr_dirty++;
	t->dirty = true;
	e->tail_missing = true;
}

int vmdk_enter(struct vmdk_extent *e, uint64_t g, uint64_t n, enum vmdk_state state, uint64_t off,
	       enum vmdk_state only_if)
{
	uint32_t index = (uint32_t)(g / e->nr_gtes);
	bool there, done;
	int r;

	assert(g % e->nr_gtes + n <= e->nr_gtes);
	for (;;) {
		pthread_rwlock_wrlock(&e->map_lock);
		there = has_table(e, index);
		done = e->gt[index];
		if (done)
			enter_locked(e, e->gt[index], g, n, state, off, only_if);
		pthread_rwlock_unlock(&e->map_lock);
		if (done)
			return 0;
		r = there ? load_table(e, index) : add_table(e, index);
		if (r < 0)
			return r;
	}
}

/* Have a table written again, both copies of it. */
int vmdk_rewrite(struct vmdk_extent *e, uint32_t index)
{
	uint64_t g = (uint64_t)index * e->nr_gtes;

	return vmdk_enter(e, g, 1, GRAIN_NONE, 0, GRAIN_NONE); /* changes nothing but marks it */
}

bool vmdk_tables_full(struct vmdk_extent *e)
{
	bool full;

	pthread_rwlock_rdlock(&e->map_lock);
	full = e->kind != KIND_STREAM && e->nr_dirty > e->max_slots / 2;
	pthread_rwlock_unlock(&e->map_lock);
	return full;
}

/* ---- writing back ---- */

static void gd_bytes(const struct vmdk_extent *e, const uint32_t *gd, uint32_t first, uint32_t nr,
		     uint8_t *out)
{
	for (uint32_t i = 0; i < nr && first + i < e->nr_gd; i++) {
		if (e->kind != KIND_SESPARSE)
			le32_store(out + i * 4ull, gd[first + i]);
		else if (gd[first + i])
			le64_store(out + i * 8ull, 0x1000000000000000ull | (gd[first + i] - 1));
	}
}

static int take_directory(struct vmdk_extent *e, struct vmdk_writeback *w)
{
	uint32_t per = SECTOR / e->gte_size, first, nr;

	w->lo = e->gd_dirty_lo;
	w->end = e->gd_dirty_end;
	if (w->lo >= w->end)
		return 0;
	first = w->lo / per * per;
	nr = (uint32_t)(ALIGN_UP(w->end, per) - first);
	w->gd_at = (uint64_t)first * e->gte_size;
	w->gd_len = (size_t)nr * e->gte_size;
	w->gd = calloc(1, w->gd_len);
	if (w->gd && e->rgd)
		w->rgd = calloc(1, w->gd_len);
	if (!w->gd || (e->rgd && !w->rgd))
		return -ENOMEM;
	gd_bytes(e, e->gd, first, nr, w->gd);
	if (e->rgd)
		gd_bytes(e, e->rgd, first, nr, w->rgd);
	e->gd_dirty_lo = UINT32_MAX;
	e->gd_dirty_end = 0;
	return 0;
}

static int take_table(struct vmdk_extent *e, struct vmdk_writeback *w, struct vmdk_gt *t)
{
	struct vmdk_copy *c = &w->table[w->nr];

	c->raw = malloc(e->gt_bytes);
	if (!c->raw)
		return -ENOMEM;
	memcpy(c->raw, t->raw, e->gt_bytes);
	c->t = t;
	c->fresh = t->fresh;
	c->off = vmdk_table_offset(e, t->index, false);
	c->copy_off = vmdk_table_offset(e, t->index, true);
	t->dirty = false;
	t->busy = true;
	e->nr_dirty--;
	w->nr++;
	return 0;
}

/* Copy what differs from the file; it may change again while we write. */
int vmdk_writeback_take(struct vmdk_extent *e, struct vmdk_writeback *w)
{
	int r = 0;

	pthread_rwlock_wrlock(&e->map_lock);
	if (e->nr_dirty) {
		w->table = calloc(e->nr_dirty, sizeof(*w->table));
		r = w->table ? 0 : -ENOMEM;
	}
	for (unsigned i = 0; i < e->nr_slots && !r; i++)
		if (e->slot[i]->dirty)
			r = take_table(e, w, e->slot[i]);
	if (!r)
		r = take_directory(e, w);
	pthread_rwlock_unlock(&e->map_lock);
	return r;
}

void vmdk_writeback_done(struct vmdk_extent *e, struct vmdk_writeback *w, int result)
{
	pthread_rwlock_wrlock(&e->map_lock);
	for (unsigned i = 0; i < w->nr; i++) {
		struct vmdk_gt *t = w->table[i].t;

		t->busy = false;
		if (!result && w->table[i].fresh)
			t->fresh = false;
		if (result && !t->dirty) {
			t->dirty = true;
			e->nr_dirty++;
		}
		free(w->table[i].raw);
	}
	if (result && w->gd) {
		e->gd_dirty_lo = MIN(e->gd_dirty_lo, w->lo);
		e->gd_dirty_end = MAX(e->gd_dirty_end, w->end);
	}
	pthread_rwlock_unlock(&e->map_lock);
	free(w->table);
	free(w->gd);
	free(w->rgd);
}

/* A directory that was damaged can name one place for both, or none for one. */
static int write_table(struct vmdk_extent *e, const struct vmdk_copy *c)
{
	int r = 0;

	if (table_inside(e, c->copy_off) && c->copy_off != c->off)
		r = blk_write(e->file, c->raw, e->gt_bytes, c->copy_off);
	if (!r && table_inside(e, c->off))
		r = blk_write(e->file, c->raw, e->gt_bytes, c->off);
	else if (!r && !table_inside(e, c->copy_off))
		r = -EIO;
	return r;
}

static int write_tables(struct vmdk_extent *e, const struct vmdk_writeback *w, bool fresh)
{
	int r = 0;

	for (unsigned i = 0; i < w->nr && !r; i++)
		if (w->table[i].fresh == fresh)
			r = write_table(e, &w->table[i]);
	return r;
}

static int write_directories(struct vmdk_extent *e, const struct vmdk_writeback *w)
{
	int r = 0;

	if (w->rgd)
		r = blk_write(e->file, w->rgd, w->gd_len, e->rgd_off + w->gd_at);
	if (!r && w->gd)
		r = blk_write(e->file, w->gd, w->gd_len, e->gd_off + w->gd_at);
	return r;
}

/* COWD keeps the next free sector in its header. */
static int write_next_free(struct vmdk_extent *e)
{
	uint8_t field[4];

	if (e->kind != KIND_COWD)
		return 0;
	pthread_mutex_lock(&e->alloc_lock);
	le32_store(field, (uint32_t)(e->next_free / SECTOR));
	pthread_mutex_unlock(&e->alloc_lock);
	return blk_write(e->file, field, sizeof(field), 28);
}

static int writeback_run(struct vmdk_extent *e, const struct vmdk_writeback *w)
{
	int r;

	if (!w->nr && !w->gd)
		return blk_flush(e->file);
	r = vmdk_mark_clean(e, false);
	if (!r)
		r = write_tables(e, w, true);
	if (!r)
		r = blk_flush(e->file);
	if (!r)
		r = write_tables(e, w, false);
	if (!r)
		r = write_directories(e, w);
	if (!r)
		r = write_next_free(e);
	return r ? r : blk_flush(e->file);
}

int vmdk_tables_flush(struct vmdk_extent *e)
{
	struct vmdk_writeback w = {0};
	int r;

	if (e->kind == KIND_STREAM)
		return vmdk_stream_flush(e);
	pthread_mutex_lock(&e->flush_lock);
	r = vmdk_writeback_take(e, &w);
	if (!r)
		r = writeback_run(e, &w);
	vmdk_writeback_done(e, &w, r);
	pthread_mutex_unlock(&e->flush_lock);
	return r;
}
