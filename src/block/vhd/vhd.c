/* block/vhd/vhd.c - Virtual PC's and Hyper-V's older disk images: fixed, dynamic, differencing.
 *
 * docs/formats/vhd.md draws the layout.  A fixed disk is its bytes and a footer.  The others are
 * blocks found through a table (grid.h), each behind a bitmap of its sectors; in a differencing
 * disk a clear bit means that the sector is the parent's.
 *
 * The footer must be the last sector of the file at any moment.  So the file is made longer in
 * steps: the footer is written at the new end and made durable, and only then what it stood on is
 * used.  Closing puts it right behind the last block. */
#include "block/vhd/vhd.h"

#include "base/error.h"
#include "base/log.h"
#include "block/iov.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How far ahead of need the footer is put, and how much closing tidies. */
#define VHD_AHEAD (256 * MiB)
enum { VHD_TIDY = 32 };

static struct log_component log_vhd = LOG_COMPONENT("vhd");

static int vhd_probe(const uint8_t *head, size_t len)
{
	return len >= FOOTER_LEN && !memcmp(head, "conectix", 8) ? 100 : 0;
}

static int vhd_probe_tail(const uint8_t *tail, size_t len)
{
	return len == FOOTER_LEN && vhd_footer_good(tail) ? 90 : 0;
}

/* ---- the table ---- */

static int table_entry(struct grid *g, uint64_t block, struct tables_page **page, uint8_t **entry)
{
	const struct vhd *v = g->priv;
	uint64_t at = ALIGN_DOWN(block * 4, TABLES_PAGE);
	uint32_t len = (uint32_t)MIN(v->nr_entries * 4 - at, (uint64_t)TABLES_PAGE);
	int r = tables_get(&g->tables, v->table + at, len, false, page);

	if (!r)
		*entry = (*page)->data + block * 4 % TABLES_PAGE;
	return r;
}

static bool overlaps(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

/* In the file, and not on top of what leads to it. */
static bool may_be_block(const struct grid *g, uint64_t at)
{
	const struct vhd *v = g->priv;

	return range_inside(at, g->unit, blk_size(g->file)) && at >= FOOTER_LEN &&
	       !overlaps(at, g->unit, v->table, v->nr_entries * 4) &&
	       !overlaps(at, g->unit, be64_load(v->footer + FOOTER_DATA), HEADER_LEN);
}

static int vhd_get(struct grid *g, uint64_t block, struct grid_entry *e)
{
	struct tables_page *page;
	uint8_t *entry = NULL;
	uint64_t at;
	int r = table_entry(g, block, &page, &entry);

	if (r < 0)
		return r;
	*e = (struct grid_entry){GRID_NONE, 0};
	if (be32_load(entry) == VHD_NONE)
		return 0;
	at = 512ull * be32_load(entry);
	e->state = g->always_parts ? GRID_PART : GRID_DATA;
	e->host = at + g->prefix;
	return may_be_block(g, at) ? 0 : -EIO;
}

static int vhd_set(struct grid *g, uint64_t block, const struct grid_entry *e)
{
	struct tables_page *page;
	uint8_t *entry = NULL;
	int r = table_entry(g, block, &page, &entry);

	if (r < 0)
		return r;
	be32_store(entry,
		   e->state == GRID_NONE ? VHD_NONE : (uint32_t)((e->host - g->prefix) / 512));
	tables_change(&g->tables, page);
	return 0;
}

/* ---- sector bitmaps ---- */

/* The byte of the bitmap for a sector of a block whose data are at `host`. */
static int bitmap_byte(struct grid *g, uint64_t host, uint32_t sector, struct tables_page **page,
		       uint8_t **byte)
{
	uint32_t at = sector / 8, start = (uint32_t)ALIGN_DOWN(at, TABLES_PAGE);
	uint32_t len = MIN(g->prefix - start, (uint32_t)TABLES_PAGE);
	int r = tables_get(&g->tables, host - g->prefix + start, len, false, page);

	if (!r)
		*byte = (*page)->data + (at - start);
	return r;
}

/* The most significant bit is the first sector. */
static bool sector_bit(uint8_t byte, uint32_t sector)
{
	return byte >> (7 - sector % 8) & 1;
}

static int vhd_part_get(struct grid *g, uint64_t block, uint32_t in, uint32_t *len, bool *here)
{
	uint32_t first = in / 512, end = (uint32_t)((in + (uint64_t)*len + 511) / 512), s;
	struct tables_page *page;
	struct grid_entry e;
	uint8_t *byte = NULL;
	int r = vhd_get(g, block, &e);

	for (s = first; s < end && !r; s++) {
		r = bitmap_byte(g, e.host, s, &page, &byte);
		if (r < 0)
			return r;
		if (s == first)
			*here = sector_bit(*byte, s);
		if (sector_bit(*byte, s) != *here)
			break;
		if (s % 8 == 0 && s + 8 <= end && *byte == (*here ? 0xff : 0))
			s += 7;
	}
	*len = (uint32_t)MIN(*len, s * 512ull - in);
	return r;
}

static int vhd_part_set(struct grid *g, uint64_t block, uint32_t in, uint32_t len, bool here)
{
	struct tables_page *page;
	struct grid_entry e;
	uint8_t *byte = NULL, bit;
	int r = vhd_get(g, block, &e);

	for (uint32_t s = in / 512; s < (in + (uint64_t)len) / 512 && !r; s++) {
		r = bitmap_byte(g, e.host, s, &page, &byte);
		if (r < 0)
			return r;
		bit = (uint8_t)(0x80 >> s % 8);
		if (!(*byte & bit) == here)
			tables_change(&g->tables, page);
		*byte = here ? *byte | bit : *byte & (uint8_t)~bit;
	}
	return r;
}

/* What another writer left there must not be taken for the bitmap.  In a dynamic disk all sectors
 * of a block are here. */
static int vhd_prepare(struct grid *g, uint64_t host, uint64_t nr_blocks, bool part)
{
	uint8_t map[512];
	int r = 0;

	memset(map, part ? 0 : 0xff, sizeof(map));
	for (uint32_t at = 0; at < g->prefix && !r; at += sizeof(map))
		r = blk_write(g->file, map, sizeof(map), host - g->prefix + at);
	return r;
}

/* ---- the end of the file ---- */

static int put_footer(struct vhd *v, uint64_t at)
{
	static const uint8_t nothing[FOOTER_LEN];
	uint64_t old = v->footer_at;
	bool was_there = !v->end_bad;
	int r = blk_write(v->grid.file, v->footer, FOOTER_LEN, at);

	if (!r)
		r = blk_flush(v->grid.file);
	if (r < 0)
		return r;
	v->footer_at = at;
	v->end_bad = false;
	return was_there && old < at ? blk_write(v->grid.file, nothing, FOOTER_LEN, old) : 0;
}

static int vhd_reserve(struct grid *g, uint64_t end)
{
	struct vhd *v = g->priv;
	uint64_t most = g->base + (g->nr_blocks + 1) * g->unit;

	if (end <= v->footer_at)
		return 0;
	if (put_footer(v, MAX(end, MIN(most, end + VHD_AHEAD))) == 0)
		return 0;
	return put_footer(v, end); /* a file system that has no room for holes */
}

/* ---- space ---- */

static int mark_parent_names(struct grid *g)
{
	const struct vhd *v = g->priv;
	uint32_t code, len;
	uint64_t off;
	int r = 0;

	for (unsigned i = 0; i < LOCATORS && !r; i++)
		if (v->type == VHD_DIFFERENCING && vhd_locator(v, i, &code, &off, &len))
			r = grid_mark(g, off, len);
	return r;
}

static int vhd_mark_others(struct grid *g)
{
	const struct vhd *v = g->priv;
	int r = grid_mark(g, v->table, v->nr_entries * 4);

	if (!r)
		r = grid_mark(g, be64_load(v->footer + FOOTER_DATA), HEADER_LEN);
	return r < 0 ? r : mark_parent_names(g);
}

/* Behind all that leads to the blocks. */
static uint64_t end_of_tables(const struct vhd *v)
{
	uint64_t end = MAX(be64_load(v->footer + FOOTER_DATA) + HEADER_LEN,
			   v->table + v->nr_entries * 4),
		 off;
	uint32_t code, len;

	for (unsigned i = 0; i < LOCATORS; i++)
		if (v->type == VHD_DIFFERENCING && vhd_locator(v, i, &code, &off, &len))
			end = MAX(end, off + len);
	return ALIGN_UP(end, 512);
}

/* Where the blocks begin is not written anywhere: at the first one. */
static int find_base(struct grid *g)
{
	uint64_t first = UINT64_MAX;
	int r = 0;

	for (uint64_t i = 0; i < g->nr_blocks && !r; i++) {
		struct grid_entry e;

		r = vhd_get(g, i, &e);
		if (!r && e.state != GRID_NONE)
			first = MIN(first, e.host - g->prefix);
	}
	g->base = first != UINT64_MAX ? first : end_of_tables(g->priv);
	return r == -EIO ? 0 : r; /* for those that count */
}

static int vhd_first_write(struct grid *g)
{
	struct vhd *v = g->priv;
	int r;

	pthread_mutex_lock(&g->lock);
	r = find_base(g);
	pthread_mutex_unlock(&g->lock);
	if (!r && v->copy_bad)
		r = blk_write(g->file, v->footer, FOOTER_LEN, 0);
	if (!r && v->copy_bad)
		r = blk_flush(g->file);
	v->copy_bad &= r < 0;
	if (!r && v->end_bad)
		r = put_footer(v, v->footer_at);
	return r;
}

static const struct grid_ops vhd_grid = {
	.get = vhd_get,
	.set = vhd_set,
	.first_write = vhd_first_write,
	.reserve = vhd_reserve,
	.prepare = vhd_prepare,
	.mark_others = vhd_mark_others,
	.part_get = vhd_part_get,
	.part_set = vhd_part_set,
};

/* ---- opening and closing ---- */

static void fill_in(struct vhd *v)
{
	struct grid *g = &v->grid;

	g->block_size = be32_load(v->header + HEADER_BLOCK);
	g->nr_blocks = (g->b->info.size + g->block_size - 1) / g->block_size;
	g->prefix = (uint32_t)ALIGN_UP((g->block_size / 512 + 7) / 8, 512);
	g->unit = (uint64_t)g->block_size + g->prefix;
	g->layered = g->parts = g->always_parts = v->type == VHD_DIFFERENCING;
	v->table = be64_load(v->header + HEADER_TABLE);
	v->nr_entries = be32_load(v->header + HEADER_ENTRIES);
}

static int load(struct blk *b, struct vhd *v, struct error *err)
{
	int r = vhd_load_footer(b, v, err);

	if (r < 0 || v->type == VHD_FIXED)
		return r;
	r = vhd_load_header(b, v, err);
	if (r < 0)
		return r;
	fill_in(v);
	if (v->type == VHD_DIFFERENCING && !(b->flags & BLK_NO_BACKING))
		r = vhd_open_parent(b, v, err);
	return r;
}

static int vhd_open(struct blk *b, const char *path, struct error *err)
{
	struct vhd *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_errno(err, ENOMEM, "'%s'", path);
	v->grid = (struct grid){.b = b,
				.file = b->file,
				.ops = &vhd_grid,
				.priv = v,
				.units_per_block = 1,
				.sector = 512};
	r = load(b, v, err);
	if (r < 0) {
		free(v);
		return r;
	}
	if (v->type == VHD_FIXED) {
		b->info.can_discard = b->info.can_zero = true;
	} else {
		grid_init(&v->grid);
		b->info.cluster = v->grid.block_size;
		b->info.can_discard = b->info.can_zero = v->type == VHD_DYNAMIC;
	}
	b->priv = v;
	return 0;
}

int vhd_trim(struct vhd *v)
{
	struct grid *g = &v->grid;
	uint64_t end = grid_end(g);
	int r;

	if (!g->space.counted || end >= v->footer_at)
		return 0;
	r = blk_write(g->file, v->footer, FOOTER_LEN, end);
	if (!r)
		r = blk_flush(g->file);
	if (r < 0)
		return r;
	v->footer_at = end;
	return blk_resize(g->file, end + FOOTER_LEN);
}

static int settle(struct vhd *v)
{
	int r = grid_commit(&v->grid);

	if (!r && v->grid.gave_up)
		r = grid_compact(&v->grid, VHD_TIDY);
	return r < 0 ? r : vhd_trim(v);
}

static void vhd_close(struct blk *b)
{
	struct vhd *v = b->priv;
	int r = v->grid.started ? settle(v) : 0;

	if (r < 0)
		log_error(&log_vhd, "%s: what was written last may be lost: %s", blk_path(b),
			  strerror(-r));
	if (v->type != VHD_FIXED)
		grid_fini(&v->grid);
	free(v);
}

/* ---- the waist's calls ---- */

static bool is_fixed(struct blk *b)
{
	return ((struct vhd *)b->priv)->type == VHD_FIXED;
}

static struct grid *grid_of(struct blk *b)
{
	return &((struct vhd *)b->priv)->grid;
}

static int vhd_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	return is_fixed(b) ? blk_readv(b->file, iov, n, off)
			   : grid_readv(grid_of(b), iov, n, len, off);
}

static int vhd_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	return is_fixed(b) ? blk_writev(b->file, iov, n, off)
			   : grid_writev(grid_of(b), iov, n, len, off);
}

static int vhd_flush(struct blk *b)
{
	return is_fixed(b) ? blk_flush(b->file) : grid_flush(grid_of(b));
}

static int vhd_discard(struct blk *b, uint64_t off, uint64_t len)
{
	return is_fixed(b) ? blk_discard(b->file, off, len) : grid_discard(grid_of(b), off, len);
}

static int vhd_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	return is_fixed(b) ? blk_write_zeroes(b->file, off, len, may_unmap)
			   : grid_write_zeroes(grid_of(b), off, len, may_unmap);
}

static int vhd_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	if (!is_fixed(b))
		return grid_map(grid_of(b), off, m);
	return blk_map(b->file, off, m);
}

/* ---- telling and checking ---- */

static void vhd_details(struct blk *b, struct blk_sink *s)
{
	static const char *const types[] = {"fixed", "dynamic", "differencing"};
	const struct vhd *v = b->priv;
	char text[1024];

	s->text(s, "subformat", types[v->type - VHD_FIXED]);
	snprintf(text, sizeof(text), "%.4s", (const char *)v->footer + FOOTER_CREATOR);
	s->text(s, "creator", text);
	s->text(s, "size-rule", v->use_geometry ? "geometry" : "current size");
	s->number(s, "current-size", be64_load(v->footer + FOOTER_SIZE));
	s->number(s, "geometry-size", vhd_geometry_size(v->footer));
	id_text(v->footer + FOOTER_ID, false, text);
	s->text(s, "uuid", text);
	if (v->type != VHD_DIFFERENCING)
		return;
	id_text(v->header + HEADER_PARENT_ID, false, text);
	s->text(s, "parent-uuid", text);
	vhd_parent_name(v, text, sizeof(text));
	s->text(s, "parent-name", text);
}

/* A footer that has a good twin is no loss. */
static int check_footers(struct vhd *v, struct blk_check *c)
{
	bool copy_bad = v->copy_bad && v->type != VHD_FIXED;
	unsigned bad = v->end_bad + copy_bad;
	int r = 0;

	if (v->end_bad)
		grid_say(c, "the footer at the end is damaged; its copy is good");
	if (copy_bad)
		grid_say(c, "the copy of the footer is damaged or differs; the footer is good");
	if (!bad || !(c->fix & (BLK_FIX_LEAKS | BLK_FIX_ERRORS))) {
		c->leaks += bad;
		return 0;
	}
	r = v->type == VHD_FIXED ? put_footer(v, v->footer_at) : grid_start(&v->grid);
	if (!r)
		c->leaks_fixed += bad;
	return r;
}

static int vhd_check(struct blk *b, struct blk_check *c, struct error *err)
{
	struct vhd *v = b->priv;
	struct grid *g = &v->grid;
	int r = check_footers(v, c);

	if (r < 0)
		return err_errno(err, -r, "'%s': its footers cannot be written", blk_path(b));
	c->image_end = v->footer_at + FOOTER_LEN;
	if (v->type == VHD_FIXED)
		return 0;
	pthread_mutex_lock(&g->lock);
	r = g->started ? 0 : find_base(g);
	pthread_mutex_unlock(&g->lock);
	if (r < 0)
		return err_errno(err, -r, "'%s': its table cannot be read", blk_path(b));
	r = grid_check(g, v->footer_at, c, err);
	if (!r && c->fix & BLK_FIX_LEAKS && vhd_trim(v) < 0)
		r = err_set(err, EIO, "'%s' cannot be shortened", blk_path(b));
	return r;
}

const struct blk_format blk_vhd = {
	.name = "vpc",
	.help = "Virtual PC and Hyper-V disk image (VHD)",
	.parallel = true,
	.on_file = true,
	.probe = vhd_probe,
	.probe_tail = vhd_probe_tail,
	.open = vhd_open,
	.close = vhd_close,
	.readv = vhd_readv,
	.writev = vhd_writev,
	.flush = vhd_flush,
	.discard = vhd_discard,
	.write_zeroes = vhd_write_zeroes,
	.map = vhd_map,
	.resize = vhd_resize,
	.create_options = vhd_options,
	.create = vhd_create,
	.details = vhd_details,
	.check = vhd_check,
	.measure = vhd_measure,
	.change_backing = vhd_change_backing,
	.make_empty = vhd_make_empty,
};
