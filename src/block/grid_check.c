/* block/grid_check.c - looking over the entries of a grid: what points out of the file, what two
 * blocks share, what nobody uses. */
#include "block/grid_internal.h"

#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Blocks in the file that are looked at for overlaps: 1 GiB of memory. */
enum { CHECK_MAX = 1 << 26 };

struct placed {
	uint64_t at;
	uint64_t block;
};

struct checking {
	struct grid *g;
	struct blk_check *c;
	uint64_t end; /* of the space in the file */
	struct placed *list;
	uint64_t nr, cap;
	uint64_t expected; /* where the next block would be if nothing were out of order */
};

void grid_say(struct blk_check *c, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	if (!c->say)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	c->say(c->opaque, text);
}

/* What the entry said is lost anyway. */
static int drop_entry(struct checking *k, uint64_t block)
{
	const struct grid_entry none = {GRID_NONE, 0};
	int r;

	if (!(k->c->fix & BLK_FIX_ERRORS)) {
		k->c->corruptions++;
		return 0;
	}
	r = k->g->ops->set(k->g, block, &none);
	if (!r)
		k->c->corruptions_fixed++;
	return r;
}

static int remember(struct checking *k, uint64_t at, uint64_t block)
{
	struct placed *more;

	if (k->nr == CHECK_MAX)
		return -EFBIG;
	if (k->nr == k->cap) {
		k->cap = k->cap ? 2 * k->cap : 1024;
		more = realloc(k->list, k->cap * sizeof(*more));
		if (!more)
			return -ENOMEM;
		k->list = more;
	}
	k->list[k->nr++] = (struct placed){at, block};
	return 0;
}

static int check_entry(struct checking *k, uint64_t block)
{
	struct grid *g = k->g;
	struct grid_entry e = {0};
	uint64_t stride = g->unit * g->units_per_block, at;
	int r = g->ops->get(g, block, &e);

	if (r < 0 && r != -EIO)
		return r;
	if (r < 0) {
		grid_say(k->c, "block %" PRIu64 ": the table's entry cannot be", block);
		return drop_entry(k, block);
	}
	if (e.state != GRID_DATA && e.state != GRID_PART)
		return 0;
	at = e.host - g->prefix;
	if (at >= k->end || (!g->short_file && stride > k->end - at)) {
		grid_say(k->c,
			 "block %" PRIu64 " is said to be at %" PRIu64
			 ", behind the end of the file",
			 block, at);
		return drop_entry(k, block);
	}
	k->c->allocated_clusters++;
	k->c->fragmented_clusters += k->expected && at != k->expected;
	k->expected = at + stride;
	k->c->image_end = MAX(k->c->image_end, at + stride);
	return remember(k, at, block);
}

static int by_place(const void *a, const void *b)
{
	const struct placed *x = a, *y = b;

	if (x->at != y->at)
		return x->at < y->at ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

static uint64_t units_before(const struct grid *g, uint64_t end)
{
	return end <= g->base ? 0 : (end - g->base + g->unit - 1) / g->unit;
}

/* Each of two blocks in one place gets what is there. */
static int give_own_place(struct checking *k, const struct placed *p)
{
	struct grid *g = k->g;
	uint64_t at = g->base + units_before(g, k->end) * g->unit;
	uint64_t stride = g->unit * g->units_per_block;
	struct grid_entry e;
	int r;

	r = g->ops->get(g, p->block, &e);
	if (!r)
		r = grid_copy(g, p->at, at, stride);
	e.host = at + g->prefix;
	if (!r)
		r = g->ops->set(g, p->block, &e);
	k->end = at + stride;
	k->c->image_end = MAX(k->c->image_end, k->end);
	return r;
}

static int check_overlaps(struct checking *k)
{
	uint64_t stride = k->g->unit * k->g->units_per_block;
	const struct placed *last = NULL;
	int r = 0;

	if (k->nr)
		qsort(k->list, k->nr, sizeof(*k->list), by_place);
	for (uint64_t i = 0; i < k->nr && !r; i++) {
		const struct placed *p = &k->list[i];

		if (!last || p->at - last->at >= stride) {
			last = p;
			continue;
		}
		grid_say(k->c, "blocks %" PRIu64 " and %" PRIu64 " share a place in the file",
			 last->block, p->block);
		if (k->c->fix & BLK_FIX_ERRORS) {
			r = give_own_place(k, p);
			k->c->corruptions_fixed += !r;
		} else {
			k->c->corruptions++;
		}
	}
	return r;
}

static int check_leaks(struct checking *k)
{
	struct grid *g = k->g;
	uint64_t have = k->end <= g->base ? 0 : (k->end - g->base) / g->unit, used;
	int r;

	g->space.counted = false;
	r = grid_count(g);
	if (r < 0)
		return r;
	used = g->space.end - g->space.nr_free;
	if (have > used)
		grid_say(k->c, "%" PRIu64 " bytes of the file are not in use",
			 (have - used) * g->unit);
	k->c->leaks += have > used ? have - used : 0;
	k->c->image_end = MAX(k->c->image_end, grid_end(g));
	return 0;
}

static int check_all(struct checking *k)
{
	struct grid *g = k->g;
	uint64_t leaks;
	int r = 0;

	for (uint64_t i = 0; i < g->nr_blocks && !r; i++)
		r = check_entry(k, i);
	if (!r)
		r = check_overlaps(k);
	if (r < 0 || k->c->corruptions) /* what is leaked is not known then */
		return r;
	r = check_leaks(k);
	leaks = k->c->leaks;
	if (r < 0 || !leaks || !(k->c->fix & BLK_FIX_LEAKS))
		return r;
	pthread_mutex_unlock(&g->lock);
	r = grid_compact(g, UINT64_MAX);
	pthread_mutex_lock(&g->lock);
	if (r < 0)
		return r;
	k->c->leaks = g->space.nr_free;
	k->c->leaks_fixed += leaks - MIN(leaks, k->c->leaks);
	k->c->image_end = grid_end(g);
	return 0;
}

int grid_check(struct grid *g, uint64_t end, struct blk_check *c, struct error *err)
{
	struct checking k = {.g = g, .c = c, .end = end};
	int r = c->fix ? grid_start(g) : 0;

	c->total_clusters = g->nr_blocks;
	c->image_end = g->base;
	pthread_mutex_lock(&g->lock);
	if (!r)
		r = check_all(&k);
	pthread_mutex_unlock(&g->lock);
	free(k.list);
	if (!r && c->fix)
		r = grid_commit(g);
	if (r == -EFBIG)
		return err_set(err, EFBIG, "more than %d blocks: too many to check", CHECK_MAX);
	return r < 0 ? err_errno(err, -r, "the image cannot be checked") : 0;
}
