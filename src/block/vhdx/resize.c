/* block/vhdx/resize.c - a VHDX of another size.
 *
 * The size is one item of the metadata and changes through the log.  Entries of the table behind
 * the disk's end mean nothing, so the table may be ready for the new size before, and what is cut
 * off may stay in it as zeroes after.  A table that is too short is written anew elsewhere; then
 * the region tables are changed, one after the other, while both tables say the same. */
#include "block/vhdx/vhdx.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int set_size(struct vhdx *v, uint64_t size)
{
	struct grid *g = &v->grid;
	uint64_t at = ALIGN_DOWN(v->size_at, TABLES_PAGE);
	struct tables_page *page;
	int r;

	if (v->size_at - at > TABLES_PAGE - 8)
		return -ENOTSUP; /* across two pages; nobody puts it there */
	pthread_mutex_lock(&g->lock);
	r = tables_get(&g->tables, at, TABLES_PAGE, false, &page);
	if (!r) {
		le64_store(page->data + (v->size_at - at), size);
		tables_change(&g->tables, page);
	}
	pthread_mutex_unlock(&g->lock);
	return r < 0 ? r : grid_commit(g);
}

static int copy_table(struct vhdx *v, uint64_t to, uint64_t len)
{
	uint8_t *buf = malloc(TABLES_PAGE);
	int r = buf ? blk_write_zeroes(v->file, to, len, true) : -ENOMEM;

	for (uint64_t i = 0; i < v->bat.len && !r; i += TABLES_PAGE) {
		r = blk_read(v->file, buf, TABLES_PAGE, v->bat.off + i);
		if (!r)
			r = blk_write(v->file, buf, TABLES_PAGE, to + i);
	}
	free(buf);
	return r;
}

static int move_table(struct vhdx *v, uint64_t entries)
{
	struct grid *g = &v->grid;
	struct vhdx_region old = v->bat, now = {0, (uint32_t)ALIGN_UP(entries * 8, MiB)};
	bool fresh;
	int r;

	pthread_mutex_lock(&g->lock);
	r = grid_take(g, now.len / MiB, &now.off, &fresh);
	pthread_mutex_unlock(&g->lock);
	if (!r)
		r = copy_table(v, now.off, now.len);
	if (!r) /* what the log still says is about the old one: it must not be done again */
		r = blk_flush(v->file);
	if (!r)
		r = vhdx_log_start(v);
	if (r < 0)
		return r;
	v->bat = now;
	r = vhdx_write_regions(v);
	if (r < 0) {
		v->bat = old;
		return r;
	}
	tables_fini(&g->tables);
	tables_init(&g->tables, g->file);
	g->space.counted = false;
	return 0;
}

/* Entries that a larger disk would show again must not be those of another one. */
static int clear_new(struct vhdx *v, uint64_t from, uint64_t to)
{
	const struct grid_entry none = {v->grid.layered ? GRID_NONE : GRID_ZERO, 0};
	int r = 0;

	for (uint64_t i = from; i < to && !r; i++) {
		r = v->grid.ops->set(&v->grid, i, &none);
		if (!r && tables_crowded(&v->grid.tables))
			r = grid_commit(&v->grid);
	}
	return r;
}

/* Fixed: the new blocks have their places at once. */
static int give_places(struct vhdx *v, uint64_t from, uint64_t to)
{
	struct grid *g = &v->grid;
	int r = 0;

	for (uint64_t i = from; i < to && !r; i++) {
		struct grid_entry e = {GRID_DATA, 0};
		bool fresh;

		r = grid_take(g, g->units_per_block, &e.host, &fresh);
		if (!r)
			r = blk_write_zeroes(v->file, e.host, g->block_size, true);
		if (!r)
			r = g->ops->set(g, i, &e);
		if (!r && tables_crowded(&g->tables))
			r = grid_commit(g);
	}
	return r;
}

static int grow(struct vhdx *v, uint64_t blocks)
{
	struct grid *g = &v->grid;
	uint64_t entries = vhdx_bat_entries(blocks, v->chunk_ratio, g->layered);
	uint64_t before = g->nr_blocks;
	int r = 0;

	if (entries * 8 > v->bat.len)
		r = move_table(v, entries);
	if (!r)
		r = g->keep ? give_places(v, before, blocks) : clear_new(v, before, blocks);
	return r < 0 ? r : grid_commit(g);
}

static int shrink(struct vhdx *v, uint64_t size, uint64_t blocks)
{
	struct grid *g = &v->grid;
	uint64_t end = MIN(blocks * g->block_size, blk_size(g->b));
	bool keep = g->keep;
	int r = size < end ? grid_write_zeroes(g, size, end - size, true) : 0;

	g->keep = false;
	if (!r && end < blk_size(g->b))
		r = grid_write_zeroes(g, end, blk_size(g->b) - end, true);
	g->keep = keep;
	return r < 0 ? r : grid_commit(g);
}

int vhdx_resize(struct blk *b, uint64_t size)
{
	struct vhdx *v = b->priv;
	struct grid *g = &v->grid;
	uint64_t blocks = (size + g->block_size - 1) / g->block_size;
	int r;

	if (size % v->sector)
		return -EINVAL;
	if (size > VHDX_MAX_SIZE)
		return -EFBIG;
	r = grid_start(g);
	if (!r)
		r = grid_commit(g);
	if (!r && size < blk_size(b))
		r = shrink(v, size, blocks);
	else if (!r && blocks > g->nr_blocks)
		r = grow(v, blocks);
	if (!r)
		r = set_size(v, size);
	if (r < 0)
		return r;
	g->nr_blocks = blocks;
	blk_set_size(b, size);
	return 0;
}
