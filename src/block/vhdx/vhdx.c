/* block/vhdx/vhdx.c - Hyper-V's disk images: fixed, dynamic, differencing (.avhdx).
 *
 * docs/formats/vhdx.md draws the layout.  Blocks of 1 to 256 MiB are found through the block
 * allocation table (grid.h), whose entries also say "zeroes" and, in a differencing disk, "partly
 * here": then bits in a sector bitmap say which sectors.  All changes of tables go through the log
 * (log.c). */
#include "block/vhdx/vhdx.h"

#include "base/error.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Blocks that are moved when an image is closed. */
enum { VHDX_TIDY = 8 };

static struct log_component log_vhdx = LOG_COMPONENT("vhdx");

static int vhdx_probe(const uint8_t *head, size_t len)
{
	return len >= 8 && !memcmp(head, "vhdxfile", 8) ? 100 : 0;
}

/* ---- the table ---- */

static int bat_entry(struct vhdx *v, uint64_t i, struct tables_page **page, uint8_t **entry)
{
	uint64_t at = ALIGN_DOWN(i * 8, TABLES_PAGE);
	int r = tables_get(&v->grid.tables, v->bat.off + at, TABLES_PAGE, false, page);

	if (!r)
		*entry = (*page)->data + i * 8 % TABLES_PAGE;
	return r;
}

/* 2.5: a sector bitmap entry stands behind those of each chunk. */
static uint64_t payload_index(const struct vhdx *v, uint64_t block)
{
	return block + block / v->chunk_ratio;
}

static uint64_t bitmap_index(const struct vhdx *v, uint64_t block)
{
	return (block / v->chunk_ratio + 1) * (v->chunk_ratio + 1) - 1;
}

static enum grid_state state_of(unsigned bits)
{
	switch (bits) {
	case BAT_NOT_PRESENT:
		return GRID_NONE;
	case BAT_PRESENT:
		return GRID_DATA;
	case BAT_PARTIAL:
		return GRID_PART;
	default:
		return GRID_ZERO;
	}
}

/* Of the last block the part that is on the disk is enough. */
static bool may_be_block(const struct grid *g, uint64_t block, uint64_t host)
{
	const struct vhdx *v = g->priv;
	uint64_t rest = blk_size(g->b) - MIN(block * g->block_size, blk_size(g->b));

	return host >= MiB && range_inside(host, MIN(rest, g->block_size), blk_size(v->file));
}

static int vhdx_get(struct grid *g, uint64_t block, struct grid_entry *e)
{
	struct vhdx *v = g->priv;
	struct tables_page *page;
	uint64_t value;
	uint8_t *entry = NULL;
	int r = bat_entry(v, payload_index(v, block), &page, &entry);

	if (r < 0)
		return r;
	value = le64_load(entry);
	*e = (struct grid_entry){state_of(value & BAT_STATE), 0};
	if ((value & BAT_STATE) == 4 || (e->state == GRID_PART && !g->parts))
		return -EIO;
	if (e->state != GRID_DATA && e->state != GRID_PART)
		return 0;
	e->host = ALIGN_DOWN(value, MiB);
	return may_be_block(g, block, e->host) ? 0 : -EIO;
}

static int vhdx_set(struct grid *g, uint64_t block, const struct grid_entry *e)
{
	static const uint64_t bits[] = {
		[GRID_NONE] = BAT_NOT_PRESENT,
		[GRID_ZERO] = BAT_ZERO,
		[GRID_DATA] = BAT_PRESENT,
		[GRID_PART] = BAT_PARTIAL,
	};
	struct vhdx *v = g->priv;
	bool there = e->state == GRID_DATA || e->state == GRID_PART;
	struct tables_page *page;
	uint8_t *entry = NULL;
	int r = bat_entry(v, payload_index(v, block), &page, &entry);

	if (r < 0)
		return r;
	le64_store(entry, (there ? e->host : 0) | bits[e->state]);
	tables_change(&g->tables, page);
	return 0;
}

/* ---- sector bitmaps ---- */

/* Where the sector bitmap of a block's chunk is; 0: nowhere yet. */
static int bitmap_place(struct vhdx *v, uint64_t block, uint64_t *at)
{
	struct tables_page *page;
	uint64_t value;
	uint8_t *entry = NULL;
	int r = bat_entry(v, bitmap_index(v, block), &page, &entry);

	*at = 0;
	if (r < 0)
		return r;
	value = le64_load(entry);
	if ((value & BAT_STATE) == BAT_NOT_PRESENT)
		return 0;
	*at = ALIGN_DOWN(value, MiB);
	if ((value & BAT_STATE) != BAT_PRESENT || *at < MiB ||
	    !range_inside(*at, MiB, blk_size(v->file)))
		return -EIO;
	return 0;
}

static int new_bitmap(struct vhdx *v, uint64_t block, uint64_t *at)
{
	struct tables_page *page;
	uint8_t *entry = NULL;
	bool fresh;
	int r = grid_take(&v->grid, 1, at, &fresh);

	if (!r)
		r = blk_write_zeroes(v->file, *at, MiB, true);
	if (!r)
		r = bat_entry(v, bitmap_index(v, block), &page, &entry);
	if (r < 0)
		return r;
	le64_store(entry, *at | BAT_PRESENT);
	tables_change(&v->grid.tables, page);
	return 0;
}

int vhdx_drop_bitmap(struct vhdx *v, uint64_t block)
{
	struct tables_page *page;
	uint8_t *entry = NULL;
	uint64_t at;
	int r = bitmap_place(v, block, &at);

	if (!r && at)
		r = bat_entry(v, bitmap_index(v, block), &page, &entry);
	if (r < 0 || !at)
		return r;
	le64_store(entry, BAT_NOT_PRESENT);
	tables_change(&v->grid.tables, page);
	return grid_free_later(&v->grid, at, 1);
}

/* The byte with the bit of a sector of a block, in the bitmap at `at`.  The least significant bit
 * is the first sector. */
static int bitmap_byte(struct vhdx *v, uint64_t at, uint64_t block, uint32_t sector,
		       struct tables_page **page, uint8_t **byte)
{
	uint64_t bit = block % v->chunk_ratio * (v->grid.block_size / v->sector) + sector;
	uint64_t start = ALIGN_DOWN(bit / 8, TABLES_PAGE);
	int r = tables_get(&v->grid.tables, at + start, TABLES_PAGE, false, page);

	if (!r)
		*byte = (*page)->data + (bit / 8 - start);
	return r;
}

static int vhdx_part_get(struct grid *g, uint64_t block, uint32_t in, uint32_t *len, bool *here)
{
	struct vhdx *v = g->priv;
	uint32_t first = in / v->sector, s;
	uint32_t end = (uint32_t)((in + (uint64_t)*len + v->sector - 1) / v->sector);
	struct tables_page *page;
	uint8_t *byte = NULL;
	uint64_t at;
	int r = bitmap_place(v, block, &at);

	if (!r && !at)
		r = -EIO; /* 2.5.1.1: a partial block has a bitmap */
	for (s = first; s < end && !r; s++) {
		r = bitmap_byte(v, at, block, s, &page, &byte);
		if (r < 0)
			return r;
		if (s == first)
			*here = *byte >> s % 8 & 1;
		if ((*byte >> s % 8 & 1) != *here)
			break;
		if (s % 8 == 0 && s + 8 <= end && *byte == (*here ? 0xff : 0))
			s += 7;
	}
	*len = (uint32_t)MIN(*len, (uint64_t)s * v->sector - in);
	return r;
}

static int vhdx_part_set(struct grid *g, uint64_t block, uint32_t in, uint32_t len, bool here)
{
	struct vhdx *v = g->priv;
	uint32_t end = (uint32_t)((in + (uint64_t)len) / v->sector);
	struct tables_page *page;
	uint8_t *byte = NULL, bit;
	uint64_t at;
	int r = bitmap_place(v, block, &at);

	if (!r && !at)
		r = new_bitmap(v, block, &at);
	for (uint32_t s = in / v->sector; s < end && !r; s++) {
		r = bitmap_byte(v, at, block, s, &page, &byte);
		if (r < 0)
			return r;
		bit = (uint8_t)(1 << s % 8);
		if (!(*byte & bit) == here)
			tables_change(&g->tables, page);
		*byte = here ? *byte | bit : *byte & (uint8_t)~bit;
	}
	return r;
}

/* ---- space ---- */

static int mark_bitmaps(struct grid *g)
{
	struct vhdx *v = g->priv;
	int r = 0;

	for (uint64_t i = 0; g->layered && i < g->nr_blocks && !r; i += v->chunk_ratio) {
		uint64_t at;

		r = bitmap_place(v, i, &at);
		if (!r && at)
			r = grid_mark(g, at, MiB);
	}
	return r;
}

static int vhdx_mark_others(struct grid *g)
{
	const struct vhdx *v = g->priv;
	int r = grid_mark(g, 0, MiB);

	if (!r)
		r = grid_mark(g, v->log.off, v->log.len);
	if (!r)
		r = grid_mark(g, v->bat.off, v->bat.len);
	if (!r)
		r = grid_mark(g, v->meta.off, v->meta.len);
	return r < 0 ? r : mark_bitmaps(g);
}

/* 2.2.2.1: the identifiers change before anything else does. */
static int vhdx_first_write(struct grid *g)
{
	struct vhdx *v = g->priv;

	if (id_random(v->head + HEAD_FILE_WRITE) < 0 || id_random(v->head + HEAD_DATA_WRITE) < 0)
		return -EIO;
	return vhdx_log_start(v);
}

static const struct grid_ops vhdx_grid = {
	.get = vhdx_get,
	.set = vhdx_set,
	.first_write = vhdx_first_write,
	.mark_others = vhdx_mark_others,
	.part_get = vhdx_part_get,
	.part_set = vhdx_part_set,
	.commit = vhdx_log_commit,
};

/* ---- opening and closing ---- */

static int load(struct blk *b, struct vhdx *v, struct error *err)
{
	int r = vhdx_load_head(b, v, err);

	if (!r)
		r = vhdx_replay(b, v, err);
	if (!r)
		r = vhdx_load_regions(b, v, err);
	if (!r)
		r = vhdx_load_metadata(b, v, err);
	v->grid.file = v->file;
	if (!r && v->grid.layered && !(b->flags & BLK_NO_BACKING))
		r = vhdx_open_parent(b, v, err);
	if (r < 0 && v->file)
		vhdx_replay_end(b, v);
	return r;
}

static int vhdx_open(struct blk *b, const char *path, struct error *err)
{
	struct vhdx *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_errno(err, ENOMEM, "'%s'", path);
	v->grid =
		(struct grid){.b = b, .ops = &vhdx_grid, .priv = v, .unit = MiB, .has_zero = true};
	v->physical_sector = 512;
	r = load(b, v, err);
	if (r < 0) {
		free(v);
		return r;
	}
	grid_init(&v->grid);
	b->priv = v;
	b->info.can_discard = b->info.can_zero = true;
	b->info.dirty = v->was_dirty && b->flags & BLK_READONLY;
	return 0;
}

static int trim(struct vhdx *v)
{
	struct grid *g = &v->grid;

	if (!g->space.counted || blk_size(v->file) <= grid_end(g))
		return 0;
	return blk_resize(v->file, grid_end(g));
}

static int settle(struct vhdx *v)
{
	int r = grid_commit(&v->grid);

	if (!r && v->grid.gave_up)
		r = grid_compact(&v->grid, VHDX_TIDY);
	if (!r) /* before the trimming: what the log says lies in the file */
		r = vhdx_log_end(v);
	return r < 0 ? r : trim(v);
}

static void vhdx_close(struct blk *b)
{
	struct vhdx *v = b->priv;
	int r = v->grid.started ? settle(v) : 0;

	if (r < 0)
		log_error(&log_vhdx, "%s: what was written last may be lost: %s", blk_path(b),
			  strerror(-r));
	v->grid.started = false;
	grid_fini(&v->grid);
	vhdx_replay_end(b, v);
	free(v);
}

/* ---- the waist's calls ---- */

static struct grid *grid_of(struct blk *b)
{
	return &((struct vhdx *)b->priv)->grid;
}

static int vhdx_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	return grid_readv(grid_of(b), iov, n, len, off);
}

static int vhdx_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		       uint64_t off)
{
	return grid_writev(grid_of(b), iov, n, len, off);
}

static int vhdx_flush(struct blk *b)
{
	return grid_flush(grid_of(b));
}

static int vhdx_discard(struct blk *b, uint64_t off, uint64_t len)
{
	return grid_discard(grid_of(b), off, len);
}

static int vhdx_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	return grid_write_zeroes(grid_of(b), off, len, may_unmap);
}

static int vhdx_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	return grid_map(grid_of(b), off, m);
}

static void vhdx_details(struct blk *b, struct blk_sink *s)
{
	struct vhdx *v = b->priv;
	char text[1024];

	s->text(s, "subformat",
		v->grid.layered ? "differencing"
		: v->grid.keep  ? "fixed"
				: "dynamic");
	s->number(s, "block-size", v->grid.block_size);
	s->number(s, "logical-sector-size", v->sector);
	s->number(s, "physical-sector-size", v->physical_sector);
	s->number(s, "log-size", v->log.len);
	s->flag(s, "log-replayed", v->was_dirty);
	id_text(v->disk_id, true, text);
	s->text(s, "disk-id", text);
	id_text(v->head + HEAD_DATA_WRITE, true, text);
	s->text(s, "data-write-id", text);
	if (!v->grid.layered)
		return;
	vhdx_parent_name(v, text, sizeof(text));
	s->text(s, "parent-name", text);
}

/* ---- checking ---- */

static int check_copies(struct vhdx *v, struct blk_check *c)
{
	int r = 0;

	if (v->regions_differ) {
		grid_say(c, "the two region tables differ; one is good");
		if (c->fix) {
			r = vhdx_write_regions(v);
			c->leaks_fixed += !r;
		} else {
			c->leaks++;
		}
	}
	if (v->other_head_bad && c->fix && !r) {
		r = vhdx_write_head(v);
		if (!r)
			r = vhdx_write_head(v);
	}
	return r;
}

/* A partial block needs its bitmap. */
static int check_bitmaps(struct vhdx *v, struct blk_check *c)
{
	struct grid *g = &v->grid;
	int r = 0;

	for (uint64_t i = 0; g->layered && i < g->nr_blocks && !r; i++) {
		struct grid_entry e;
		uint64_t at;

		if (vhdx_get(g, i, &e) < 0 || e.state != GRID_PART)
			continue;
		r = bitmap_place(v, i, &at);
		if (!r && at)
			continue;
		r = r == -EIO ? 0 : r;
		grid_say(c, "block %" PRIu64 " is partial and has no sector bitmap", i);
		c->corruptions++; /* which sectors are whose nobody knows */
	}
	return r;
}

static int vhdx_check(struct blk *b, struct blk_check *c, struct error *err)
{
	struct vhdx *v = b->priv;
	struct grid *g = &v->grid;
	int r = check_copies(v, c);

	if (!r) {
		pthread_mutex_lock(&g->lock);
		r = check_bitmaps(v, c);
		pthread_mutex_unlock(&g->lock);
	}
	if (r < 0)
		return err_errno(err, -r, "'%s' cannot be checked", blk_path(b));
	r = grid_check(g, blk_size(v->file), c, err);
	if (!r && c->fix & BLK_FIX_LEAKS && !c->corruptions &&
	    (vhdx_log_end(v) < 0 || trim(v) < 0 || vhdx_log_start(v) < 0))
		r = err_set(err, EIO, "'%s' cannot be shortened", blk_path(b));
	return r;
}

const struct blk_format blk_vhdx = {
	.name = "vhdx",
	.help = "Hyper-V disk image (VHDX, AVHDX)",
	.parallel = true,
	.on_file = true,
	.ties_parent = true,
	.probe = vhdx_probe,
	.open = vhdx_open,
	.close = vhdx_close,
	.readv = vhdx_readv,
	.writev = vhdx_writev,
	.flush = vhdx_flush,
	.discard = vhdx_discard,
	.write_zeroes = vhdx_write_zeroes,
	.map = vhdx_map,
	.resize = vhdx_resize,
	.create_options = vhdx_options,
	.create = vhdx_create,
	.details = vhdx_details,
	.check = vhdx_check,
	.measure = vhdx_measure,
	.change_backing = vhdx_change_backing,
	.make_empty = vhdx_make_empty,
};
