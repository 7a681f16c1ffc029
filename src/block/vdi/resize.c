/* block/vdi/resize.c - a VDI image of another size.
 *
 * The header says where the map is, so a longer map that does not fit before the data is written
 * elsewhere first, and then one sector - the header - makes the change.  The place is that of the
 * first blocks: they move to the end, and the data begin behind them from then on, so that all
 * numbers in the new map are less by as many. */
#include "block/vdi/vdi.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Entries [from, to) of the file's map, without the tables: they do not know them yet. */
static int write_entries(struct vdi *v, uint64_t map, uint64_t from, uint64_t to, uint32_t value)
{
	uint8_t buf[TABLES_PAGE];
	int r = 0;

	for (unsigned i = 0; i < sizeof(buf); i += 4)
		le32_store(buf + i, value);
	for (uint64_t i = from; i < to && !r; i += sizeof(buf) / 4)
		r = blk_write(v->grid.file, buf, MIN(sizeof(buf), (to - i) * 4), map + i * 4);
	return r;
}

static int commit_header(struct vdi *v, const uint8_t *old)
{
	int r = blk_flush(v->grid.file);

	if (!r)
		r = vdi_write_header(v);
	if (!r)
		r = blk_flush(v->grid.file);
	if (r < 0)
		memcpy(v->header, old, VDI_HEADER);
	return r;
}

/* The tables are read anew with the next use. */
static void reload(struct vdi *v)
{
	struct grid *g = &v->grid;

	tables_fini(&g->tables);
	tables_init(&g->tables, g->file);
	g->nr_blocks = vdi_field(v, VDI_BLOCKS);
	g->max_units = g->nr_blocks;
	g->base = vdi_field(v, VDI_DATA);
	v->map = vdi_field(v, VDI_MAP);
	g->space.counted = false;
}

/* The map for `blocks` blocks, with numbers less by `units`, at the old beginning of the data. */
static int copy_map(struct vdi *v, uint64_t blocks, uint64_t units)
{
	struct grid *g = &v->grid;
	uint8_t buf[TABLES_PAGE];
	int r = 0;

	for (uint64_t i = 0; i < g->nr_blocks && !r; i += sizeof(buf) / 4) {
		uint64_t n = MIN(sizeof(buf) / 4, g->nr_blocks - i);

		r = blk_read(g->file, buf, n * 4, v->map + i * 4);
		for (uint64_t k = 0; k < n; k++) {
			uint32_t value = le32_load(buf + 4 * k);

			if (value != VDI_NONE && value != VDI_ZERO)
				le32_store(buf + 4 * k, value - (uint32_t)units);
		}
		if (!r)
			r = blk_write(g->file, buf, n * 4, g->base + i * 4);
	}
	return r < 0 ? r : write_entries(v, g->base, g->nr_blocks, blocks, VDI_NONE);
}

static int grow_with_new_map(struct vdi *v, uint64_t blocks)
{
	struct grid *g = &v->grid;
	uint64_t units = (blocks * 4 + g->unit - 1) / g->unit;
	int r;

	if (g->base + units * g->unit > UINT32_MAX)
		return -EFBIG; /* offsets of the header are 32 bits */
	g->max_units = 0;
	r = grid_clear_front(g, units);
	if (!r)
		r = copy_map(v, blocks, units);
	if (r < 0)
		return r;
	le32_store(v->header + VDI_MAP, (uint32_t)g->base);
	le32_store(v->header + VDI_DATA, (uint32_t)(g->base + units * g->unit));
	le32_store(v->header + VDI_ALLOCATED, (uint32_t)(g->space.end - units));
	return 0;
}

static int grow(struct vdi *v, uint64_t size, uint64_t blocks)
{
	uint8_t old[VDI_HEADER];
	int r = 0;

	memcpy(old, v->header, sizeof(old));
	if (v->map + blocks * 4 <= v->grid.base)
		r = write_entries(v, v->map, v->grid.nr_blocks, blocks, VDI_NONE);
	else
		r = grow_with_new_map(v, blocks);
	if (r < 0) {
		v->grid.max_units = v->grid.nr_blocks;
		return r;
	}
	le32_store(v->header + VDI_BLOCKS, (uint32_t)blocks);
	le64_store(v->header + VDI_SIZE, size);
	return commit_header(v, old);
}

/* Static: the new blocks have their places at once. */
static int give_places(struct vdi *v, uint64_t from)
{
	struct grid *g = &v->grid;
	int r = 0;

	for (uint64_t i = from; i < g->nr_blocks && !r; i++) {
		struct grid_entry e = {GRID_DATA, 0};
		bool fresh;

		r = grid_take(g, 1, &e.host, &fresh);
		e.host += g->prefix;
		if (!r)
			r = g->ops->set(g, i, &e);
		if (!r && tables_crowded(&g->tables))
			r = grid_commit(g);
	}
	if (!r)
		r = blk_write_zeroes(g->file, blk_size(g->file),
				     MAX(grid_end(g), blk_size(g->file)) - blk_size(g->file), true);
	return r < 0 ? r : grid_commit(g);
}

/* What is behind the new end of the last block that stays must read as zeroes should it ever be
 * shown again. */
static int clear_tail(struct vdi *v, uint64_t size)
{
	struct grid *g = &v->grid;
	uint64_t block = size / g->block_size, in = size % g->block_size;
	struct grid_entry e;
	int r;

	if (!in)
		return 0;
	r = g->ops->get(g, block, &e);
	if (r < 0 || e.state != GRID_DATA)
		return r;
	return blk_write_zeroes(g->file, e.host + in, g->block_size - in, true);
}

static int shrink(struct vdi *v, uint64_t size, uint64_t blocks)
{
	struct grid *g = &v->grid;
	uint8_t old[VDI_HEADER];
	int r = 0;

	g->keep = false;
	if (size < blk_size(g->b) && blocks < g->nr_blocks)
		r = grid_discard(g, blocks * g->block_size,
				 blk_size(g->b) - blocks * g->block_size);
	if (!r)
		r = grid_commit(g);
	if (!r) /* numbers in the map are less than the number of blocks */
		r = grid_compact(g, UINT64_MAX);
	if (!r)
		r = clear_tail(v, size);
	if (r < 0)
		return r;
	memcpy(old, v->header, sizeof(old));
	le32_store(v->header + VDI_ALLOCATED, (uint32_t)g->space.end);
	le32_store(v->header + VDI_BLOCKS, (uint32_t)blocks);
	le64_store(v->header + VDI_SIZE, size);
	return commit_header(v, old);
}

int vdi_resize(struct blk *b, uint64_t size)
{
	struct vdi *v = b->priv;
	uint64_t blocks = ALIGN_UP(size, VDI_BLOCK_SIZE) / VDI_BLOCK_SIZE;
	uint64_t before = v->grid.nr_blocks;
	int r;

	if (size % 512)
		return -EINVAL;
	if (blocks > VDI_MAX_BLOCKS)
		return -EFBIG;
	r = grid_start(&v->grid);
	if (!r)
		r = grid_commit(&v->grid);
	if (!r && blocks == before && size < blk_size(b))
		r = clear_tail(v, size);
	if (!r)
		r = blocks >= before ? grow(v, size, blocks) : shrink(v, size, blocks);
	reload(v);
	if (!r)
		blk_set_size(b, size);
	if (!r && v->type == VDI_STATIC && blocks > before)
		r = give_places(v, before);
	v->grid.keep = v->type == VDI_STATIC;
	return r;
}

int vdi_make_empty(struct blk *b, struct error *err)
{
	struct vdi *v = b->priv;
	int r;

	if (v->type == VDI_STATIC)
		return err_set(err, EINVAL, "'%s' is static: its blocks stay", blk_path(b));
	r = grid_empty(&v->grid);
	return r < 0 ? err_errno(err, -r, "cannot empty '%s'", blk_path(b)) : 0;
}
