/* block/vhd/resize.c - VHDs of another size, and with another parent.
 *
 * Every step leaves an image: a longer table is good for the old size, too; a header elsewhere is
 * only used when a footer points to it; the two footers may differ for a moment, and each is true.
 */
#include "block/vhd/vhd.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void set_size(struct vhd *v, uint64_t size)
{
	be64_store(v->footer + FOOTER_SIZE, size);
	vhd_set_geometry(v->footer, size);
	if (v->use_geometry && vhd_geometry_size(v->footer) != size)
		memcpy(v->footer + FOOTER_CREATOR, "win ", 4); /* no geometry says it */
	v->use_geometry = vhd_uses_geometry(v->footer);
	vhd_seal(v->footer, FOOTER_LEN, FOOTER_CHECKSUM);
}

/* ---- fixed ---- */

static int move_fixed_footer(struct vhd *v, uint64_t at)
{
	static const uint8_t nothing[FOOTER_LEN];
	struct blk *file = v->grid.file;
	uint64_t old = v->footer_at;
	int r = blk_write(file, v->footer, FOOTER_LEN, at);

	if (!r)
		r = blk_flush(file);
	if (!r && old < at) /* it becomes a sector of the disk */
		r = blk_write(file, nothing, FOOTER_LEN, old);
	if (!r && old < at)
		r = blk_flush(file);
	if (!r && old > at)
		r = blk_resize(file, at + FOOTER_LEN);
	if (!r)
		v->footer_at = at;
	return r;
}

static int resize_fixed(struct vhd *v, uint64_t size)
{
	int r = 0;

	if (size > v->footer_at)
		r = move_fixed_footer(v, size);
	if (r < 0)
		return r;
	set_size(v, size);
	r = blk_write(v->grid.file, v->footer, FOOTER_LEN, v->footer_at);
	if (!r)
		r = blk_flush(v->grid.file);
	if (!r && size < v->footer_at)
		r = move_fixed_footer(v, size);
	return r;
}

/* ---- dynamic ---- */

static int write_header(struct vhd *v)
{
	uint64_t at = be64_load(v->footer + FOOTER_DATA);
	int r = blk_flush(v->grid.file);

	vhd_seal(v->header, HEADER_LEN, HEADER_CHECKSUM);
	/* What changes lies in its first sector, which is written whole or not at all. */
	if (!r)
		r = blk_write(v->grid.file, v->header, 512, at);
	return r < 0 ? r : blk_flush(v->grid.file);
}

/* A table of `entries`: the old ones, then none. */
static int copy_table(struct vhd *v, uint64_t to, uint64_t entries)
{
	uint64_t len = ALIGN_UP(entries * 4, 512), old = v->nr_entries * 4;
	uint8_t buf[TABLES_PAGE];
	int r = 0;

	for (uint64_t at = 0; at < len && !r; at += sizeof(buf)) {
		memset(buf, 0xff, sizeof(buf));
		if (at < old)
			r = blk_read(v->grid.file, buf, MIN(sizeof(buf), old - at), v->table + at);
		if (!r)
			r = blk_write(v->grid.file, buf, MIN(sizeof(buf), len - at), to + at);
	}
	return r;
}

static int take(struct vhd *v, uint64_t bytes, uint64_t *at)
{
	struct grid *g = &v->grid;
	uint64_t nr = (bytes + g->unit - 1) / g->unit;
	bool fresh;
	int r;

	pthread_mutex_lock(&g->lock);
	r = grid_take(g, nr, at, &fresh);
	pthread_mutex_unlock(&g->lock);
	return r < 0 ? r : g->ops->reserve(g, *at + nr * g->unit);
}

/* The longer table takes the place of the first blocks, which move to the end: so the blocks stay
 * together, with nothing between them that cannot move. */
static int lengthen_table(struct vhd *v, uint64_t entries)
{
	struct grid *g = &v->grid;
	uint64_t at = g->base, units = (entries * 4 + g->unit - 1) / g->unit;
	int r = grid_clear_front(g, units);

	if (!r)
		r = g->ops->reserve(g, at + units * g->unit);
	if (!r)
		r = copy_table(v, at, entries);
	if (r < 0)
		return r;
	be64_store(v->header + HEADER_TABLE, at);
	be32_store(v->header + HEADER_ENTRIES, (uint32_t)entries);
	r = write_header(v);
	if (r < 0)
		return r;
	v->table = at;
	v->nr_entries = entries;
	tables_fini(&g->tables);
	tables_init(&g->tables, g->file);
	g->base += units * g->unit;
	g->space.counted = false;
	return 0;
}

static int zero_tail(struct vhd *v, uint64_t size)
{
	struct grid *g = &v->grid;
	uint64_t in = size % g->block_size, end = MIN(blk_size(g->b), size + g->block_size - in);

	return in && size < end ? grid_write_zeroes(g, size, end - size, true) : 0;
}

static int shrink_dynamic(struct vhd *v, uint64_t size)
{
	struct grid *g = &v->grid;
	uint64_t from = ALIGN_UP(size, g->block_size);
	int r = zero_tail(v, size);

	if (!r && from < blk_size(g->b))
		r = grid_write_zeroes(g, from, blk_size(g->b) - from, true);
	return r < 0 ? r : grid_commit(g);
}

static int resize_dynamic(struct vhd *v, uint64_t size)
{
	struct grid *g = &v->grid;
	uint64_t blocks = (size + g->block_size - 1) / g->block_size;
	int r = grid_start(g);

	if (!r)
		r = grid_commit(g);
	if (!r && size < blk_size(g->b))
		r = shrink_dynamic(v, size);
	if (!r && blocks > v->nr_entries)
		r = blocks > VHD_MAX_ENTRIES ? -EFBIG : lengthen_table(v, blocks);
	if (r < 0)
		return r;
	set_size(v, size);
	r = vhd_write_footers(v);
	if (r < 0)
		return r;
	g->nr_blocks = blocks;
	/* So that closing finds the end. */
	pthread_mutex_lock(&g->lock);
	r = grid_count(g);
	pthread_mutex_unlock(&g->lock);
	return r;
}

int vhd_resize(struct blk *b, uint64_t size)
{
	struct vhd *v = b->priv;
	uint8_t old[FOOTER_LEN];
	int r;

	if (size % 512)
		return -EINVAL;
	if (size > VHD_MAX_SIZE)
		return -EFBIG;
	if (v->type == VHD_DIFFERENCING && size < blk_size(b))
		return -ENOTSUP; /* what is cut off would come back from the parent */
	memcpy(old, v->footer, sizeof(old));
	r = v->type == VHD_FIXED ? resize_fixed(v, size) : resize_dynamic(v, size);
	if (r < 0)
		memcpy(v->footer, old, sizeof(old));
	else
		blk_set_size(b, size);
	return r;
}

/* ---- another parent ---- */

/* A new header with its names, at the end of the file; then the footers point to it. */
static int place_header(struct vhd *v, const uint8_t *header, const uint8_t *names, uint64_t at)
{
	int r = blk_write(v->grid.file, header, HEADER_LEN, at);

	if (!r)
		r = blk_write(v->grid.file, names, VHD_NAMES_LEN, at + HEADER_LEN);
	if (r < 0)
		return r;
	be64_store(v->footer + FOOTER_DATA, at);
	return vhd_write_footers(v);
}

static int change_to(struct vhd *v, struct blk *parent, const char *relative, struct error *err)
{
	uint8_t header[HEADER_LEN], old[FOOTER_LEN], *names = calloc(1, VHD_NAMES_LEN);
	char *absolute = parent ? realpath(blk_path(parent), NULL) : NULL;
	uint64_t at = 0;
	int r = names ? 0 : -ENOMEM;

	memcpy(header, v->header, sizeof(header));
	memcpy(old, v->footer, sizeof(old));
	memset(header + HEADER_PARENT_ID, 0, HEADER_LEN - HEADER_PARENT_ID);
	if (!r)
		r = take(v, HEADER_LEN + VHD_NAMES_LEN, &at);
	if (r < 0)
		err_errno(err, -r, "'%s'", blk_path(v->grid.b));
	if (!r)
		r = vhd_name_parent(header, names, at + HEADER_LEN, parent,
				    absolute ? absolute : blk_path(parent), relative, err);
	vhd_seal(header, HEADER_LEN, HEADER_CHECKSUM);
	if (!r) {
		r = place_header(v, header, names, at);
		if (r < 0)
			err_errno(err, -r, "cannot write '%s'", blk_path(v->grid.b));
	}
	memcpy(r < 0 ? v->footer : v->header, r < 0 ? old : header,
	       r < 0 ? FOOTER_LEN : HEADER_LEN);
	free(names);
	free(absolute);
	return r;
}

int vhd_change_backing(struct blk *b, const char *backing, const char *format, struct error *err)
{
	struct vhd *v = b->priv;
	struct blk *parent = NULL;
	int r;

	if (v->type != VHD_DIFFERENCING || !backing)
		return err_set(err, ENOTSUP,
			       "'%s': a VHD has a parent or none from the beginning: convert it",
			       blk_path(b));
	if (!format || strcmp(format, "vpc"))
		return err_set(err, EINVAL, "a VHD can only stand on another one");
	r = blk_ref_open(b, backing, "vpc", BLK_READONLY | BLK_NO_BACKING, &parent, err);
	if (r < 0)
		return r;
	r = grid_start(&v->grid);
	if (!r)
		r = grid_commit(&v->grid);
	if (r < 0)
		err_errno(err, -r, "cannot write '%s'", blk_path(b));
	else
		r = change_to(v, parent, backing, err);
	blk_close(parent);
	return r;
}

int vhd_make_empty(struct blk *b, struct error *err)
{
	struct vhd *v = b->priv;
	struct grid *g = &v->grid;
	int r;

	if (v->type == VHD_FIXED)
		return err_set(err, EINVAL, "'%s' is fixed: its space stays", blk_path(b));
	r = grid_empty(g);
	return r < 0 ? err_errno(err, -r, "cannot empty '%s'", blk_path(b)) : 0;
}
