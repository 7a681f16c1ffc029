/* block/grid_space.c - which units of the file are in use, and making the tables durable. */
#include "block/grid_internal.h"

#include "base/bytes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct grid_freed {
	uint64_t first, nr; /* units */
	struct grid_freed *next;
};

/* ---- bits ---- */

static bool is_used(const struct grid_space *s, uint64_t i)
{
	return i < s->cap && s->used[i / 8] >> (i % 8) & 1;
}

static int need_units(struct grid_space *s, uint64_t nr)
{
	uint64_t cap;
	uint8_t *used;

	if (nr <= s->cap)
		return 0;
	if (nr > GRID_MAX_UNITS)
		return -EFBIG;
	cap = ALIGN_UP(MAX(nr, MIN(2 * s->cap, GRID_MAX_UNITS)), 4096);
	used = realloc(s->used, cap / 8);
	if (!used)
		return -ENOMEM;
	memset(used + s->cap / 8, 0, (cap - s->cap) / 8);
	s->used = used;
	s->cap = cap;
	return 0;
}

static void use_units(struct grid_space *s, uint64_t first, uint64_t nr)
{
	for (uint64_t i = first; i < first + nr; i++)
		s->used[i / 8] |= (uint8_t)(1 << i % 8);
}

static void free_units(struct grid_space *s, uint64_t first, uint64_t nr)
{
	for (uint64_t i = first; i < first + nr; i++)
		s->used[i / 8] &= (uint8_t) ~(1 << i % 8);
	s->nr_free += nr;
	for (; s->end && !is_used(s, s->end - 1); s->end--)
		s->nr_free--;
	s->hint = MIN(s->hint, first);
	s->no_run = UINT64_MAX;
}

int grid_mark(struct grid *g, uint64_t off, uint64_t len)
{
	struct grid_space *s = &g->space;
	uint64_t first, end;
	int r;

	if (!len || off + len <= g->base)
		return 0;
	first = off < g->base ? 0 : (off - g->base) / g->unit;
	end = (off + len - g->base + g->unit - 1) / g->unit;
	r = need_units(s, end);
	if (r < 0)
		return r;
	use_units(s, first, end - first);
	s->end = MAX(s->end, end);
	return 0;
}

/* ---- counting ---- */

/* Two blocks in one place: a write to one would change the other. */
static bool is_taken(const struct grid *g, uint64_t at)
{
	if (at < g->base || (at - g->base) % g->unit)
		return false; /* not on the grid: its units may be shared by neighbours */
	for (uint64_t i = 0; i < g->units_per_block; i++)
		if (is_used(&g->space, (at - g->base) / g->unit + i))
			return true;
	return false;
}

static int count_block(struct grid *g, uint64_t block)
{
	struct grid_entry e;
	int r = g->ops->get(g, block, &e);

	if (r < 0 || (e.state != GRID_DATA && e.state != GRID_PART))
		return r;
	if (is_taken(g, e.host - g->prefix))
		return -EIO;
	return grid_mark(g, e.host - g->prefix, g->unit * g->units_per_block);
}

int grid_count(struct grid *g)
{
	struct grid_space *s = &g->space;
	uint64_t size = blk_size(g->file), nr_used = 0;
	int r = 0;

	if (s->counted)
		return 0;
	if (s->used)
		memset(s->used, 0, s->cap / 8);
	s->end = 0;
	for (uint64_t i = 0; i < g->nr_blocks && !r; i++)
		r = count_block(g, i);
	if (!r && g->ops->mark_others)
		r = g->ops->mark_others(g);
	if (r < 0)
		return r;
	for (uint64_t i = 0; i < s->cap / 8; i++)
		nr_used += (uint64_t)__builtin_popcount(s->used[i]);
	s->nr_free = s->end - nr_used;
	s->hint = 0;
	s->no_run = UINT64_MAX;
	s->virgin = size <= g->base ? 0 : (size - g->base + g->unit - 1) / g->unit;
	s->virgin = MAX(s->virgin, s->end);
	s->counted = true;
	return 0;
}

/* ---- taking and giving back ---- */

static bool find_free(struct grid_space *s, uint64_t nr, uint64_t *first)
{
	uint64_t run = 0;

	if (s->nr_free < nr || nr >= s->no_run)
		return false;
	for (uint64_t i = s->hint; i < s->end; i++) {
		if (i % 8 == 0 && s->used[i / 8] == 0xff) {
			run = 0;
			i += 7;
			continue;
		}
		run = is_used(s, i) ? 0 : run + 1;
		if (run == nr) {
			*first = i + 1 - nr;
			s->hint = nr == 1 ? i + 1 : s->hint;
			return true;
		}
	}
	s->no_run = nr; /* all before the hint is in use */
	return false;
}

int grid_take(struct grid *g, uint64_t nr, uint64_t *at, bool *fresh)
{
	struct grid_space *s = &g->space;
	uint64_t first;
	int r = grid_count(g);

	if (r < 0)
		return r;
	*fresh = false;
	if (find_free(s, nr, &first)) {
		s->nr_free -= nr;
	} else {
		first = s->end;
		if (g->max_units && first + nr > g->max_units)
			return -ENOSPC;
		r = need_units(s, first + nr);
		if (r < 0)
			return r;
		*fresh = first >= s->virgin;
		s->end = first + nr;
		s->virgin = MAX(s->virgin, s->end);
	}
	use_units(s, first, nr);
	*at = g->base + first * g->unit;
	return 0;
}

static uint64_t unit_of(const struct grid *g, uint64_t at)
{
	return at < g->base ? 0 : (at - g->base) / g->unit;
}

void grid_untake(struct grid *g, uint64_t at, uint64_t nr)
{
	free_units(&g->space, unit_of(g, at), nr);
}

int grid_free_later(struct grid *g, uint64_t at, uint64_t nr)
{
	struct grid_freed *f;

	if (at < g->base || (at - g->base) % g->unit)
		return 0; /* off the grid: lost until the image is rewritten */
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->first = unit_of(g, at);
	f->nr = nr;
	f->next = g->freed;
	g->freed = f;
	g->gave_up = true;
	g->nr_leaving += nr;
	return 0;
}

void grid_drop_freed(struct grid *g)
{
	struct grid_freed *f = g->freed;

	g->freed = f->next;
	free(f);
}

uint64_t grid_end(const struct grid *g)
{
	return g->base + g->space.end * g->unit;
}

/* ---- committing ---- */

/* What is free now goes back to the file system; nobody can read or write there any more. */
static void release(struct grid *g, struct grid_freed *f)
{
	struct grid_freed *next;

	pthread_rwlock_wrlock(&g->io);
	pthread_rwlock_unlock(&g->io);
	for (; f; f = next) {
		uint64_t off = g->base + f->first * g->unit, size = blk_size(g->file);

		next = f->next;
		if (off < size)
			(void)blk_discard(g->file, off, MIN(f->nr * g->unit, size - off));
		pthread_mutex_lock(&g->lock);
		g->nr_leaving -= f->nr;
		if (g->space.counted)
			free_units(&g->space, f->first, f->nr);
		pthread_mutex_unlock(&g->lock);
		free(f);
	}
}

static void put_back(struct grid *g, struct grid_freed *f)
{
	while (f) {
		struct grid_freed *next = f->next;

		f->next = g->freed;
		g->freed = f;
		f = next;
	}
}

static int write_batch(struct grid *g, const struct tables_batch *batch)
{
	int r = 0;

	if (batch->n && g->ops->before_commit)
		r = g->ops->before_commit(g);
	if (!r)
		r = blk_flush(g->file);
	if (r < 0 || !batch->n)
		return r;
	if (g->ops->commit)
		return g->ops->commit(g, batch);
	r = tables_write(&g->tables, batch);
	return r < 0 ? r : blk_flush(g->file);
}

int grid_commit(struct grid *g)
{
	struct tables_batch batch;
	struct grid_freed *freed = NULL;
	int r;

	pthread_mutex_lock(&g->commit);
	pthread_mutex_lock(&g->lock);
	r = tables_take(&g->tables, &batch);
	if (!r) {
		freed = g->freed;
		g->freed = NULL;
	}
	pthread_mutex_unlock(&g->lock);
	if (!r)
		r = write_batch(g, &batch);
	pthread_mutex_lock(&g->lock);
	tables_done(&g->tables, &batch, !r);
	if (r < 0)
		put_back(g, freed);
	pthread_mutex_unlock(&g->lock);
	if (!r && freed)
		release(g, freed);
	pthread_mutex_unlock(&g->commit);
	return r;
}

int grid_flush(struct grid *g)
{
	return grid_commit(g);
}

/* ---- compacting ---- */

struct placed {
	uint64_t at, block;
};

static int from_the_end(const void *a, const void *b)
{
	const struct placed *x = a, *y = b;

	return x->at > y->at ? -1 : x->at < y->at;
}

/* All blocks on the grid, the last in the file first. */
static int list_blocks(struct grid *g, struct placed **out, uint64_t *nr)
{
	uint64_t cap = 0;
	struct placed *list = NULL;

	*nr = 0;
	for (uint64_t i = 0; i < g->nr_blocks; i++) {
		struct grid_entry e;

		if (g->ops->get(g, i, &e) < 0 || (e.state != GRID_DATA && e.state != GRID_PART) ||
		    e.host - g->prefix < g->base || (e.host - g->prefix - g->base) % g->unit)
			continue;
		if (*nr == cap) {
			struct placed *more;

			cap = cap ? 2 * cap : 1024;
			more = realloc(list, cap * sizeof(*list));
			if (!more) {
				free(list);
				return -ENOMEM;
			}
			list = more;
		}
		list[(*nr)++] = (struct placed){e.host - g->prefix, i};
	}
	if (*nr)
		qsort(list, *nr, sizeof(*list), from_the_end);
	*out = list;
	return 0;
}

int grid_copy(struct grid *g, uint64_t from, uint64_t to, uint64_t len)
{
	const uint64_t step = 256 * KiB;
	uint8_t *buf = malloc(step);
	int r = buf ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < len && !r; i += step) {
		uint64_t n = MIN(step, len - i), size = blk_size(g->file);
		uint64_t have = from + i < size ? MIN(n, size - from - i) : 0;

		memset(buf + have, 0, n - have);
		if (have)
			r = blk_read(g->file, buf, have, from + i);
		if (!r)
			r = blk_write(g->file, buf, n, to + i);
	}
	free(buf);
	return r;
}

/* 1: moved; 0: there is no place before it. */
static int move_block(struct grid *g, const struct placed *p)
{
	struct grid_space *s = &g->space;
	uint64_t len = g->unit * g->units_per_block, first;
	struct grid_entry e;
	int r;

	if (!find_free(s, g->units_per_block, &first) || first >= unit_of(g, p->at))
		return 0;
	use_units(s, first, g->units_per_block);
	s->nr_free -= g->units_per_block;
	r = grid_copy(g, p->at, g->base + first * g->unit, len);
	if (!r)
		r = g->ops->get(g, p->block, &e);
	e.host = g->base + first * g->unit + g->prefix;
	if (!r)
		r = g->ops->set(g, p->block, &e);
	if (!r)
		r = grid_free_later(g, p->at, g->units_per_block);
	return r < 0 ? r : 1;
}

int grid_compact(struct grid *g, uint64_t max_moves)
{
	struct placed *list = NULL;
	uint64_t nr = 0;
	int r, moved = 1;

	pthread_mutex_lock(&g->lock);
	r = grid_count(g);
	if (!r && g->space.nr_free >= g->units_per_block)
		r = list_blocks(g, &list, &nr);
	g->space.hint = 0;
	for (uint64_t i = 0; i < nr && i < max_moves && !r && moved; i++) {
		moved = move_block(g, &list[i]);
		r = MIN(moved, 0);
	}
	pthread_mutex_unlock(&g->lock);
	free(list);
	return r < 0 ? r : grid_commit(g);
}

/* A block goes to the end of the file. */
static int move_to_end(struct grid *g, uint64_t block, struct grid_entry *e)
{
	uint64_t to = grid_end(g), len = g->unit * g->units_per_block;
	int r = g->ops->reserve ? g->ops->reserve(g, to + len) : 0;

	if (!r)
		r = grid_copy(g, e->host - g->prefix, to, len);
	if (!r)
		r = grid_mark(g, to, len);
	e->host = to + g->prefix;
	if (!r)
		r = g->ops->set(g, block, e);
	return !r && tables_crowded(&g->tables) ? grid_commit(g) : r;
}

int grid_clear_front(struct grid *g, uint64_t units)
{
	uint64_t end = g->base + units * g->unit;
	int r = grid_count(g);

	/* Whatever moves goes behind, in any case. */
	if (!r && g->space.end < units)
		r = grid_mark(g, g->base, units * g->unit);
	for (uint64_t i = 0; i < g->nr_blocks && !r; i++) {
		struct grid_entry e;

		r = g->ops->get(g, i, &e);
		if (!r && (e.state == GRID_DATA || e.state == GRID_PART) &&
		    e.host - g->prefix < end)
			r = move_to_end(g, i, &e);
	}
	return r < 0 ? r : grid_commit(g);
}

/* All entries at once would be no step that a power cut leaves whole; but each state in between is
 * an image, too: some blocks are given up, others not yet. */
int grid_empty(struct grid *g)
{
	const struct grid_entry none = {GRID_NONE, 0};
	int r = grid_start(g);

	if (!r)
		r = grid_count(g);
	for (uint64_t i = 0; i < g->nr_blocks && !r; i++) {
		struct grid_entry e;

		r = g->ops->get(g, i, &e);
		if (!r && e.state != GRID_NONE)
			r = g->ops->set(g, i, &none);
		if (!r && (e.state == GRID_DATA || e.state == GRID_PART))
			r = grid_free_later(g, e.host - g->prefix, g->units_per_block);
		if (!r && tables_crowded(&g->tables))
			r = grid_commit(g);
	}
	return r < 0 ? r : grid_commit(g);
}
