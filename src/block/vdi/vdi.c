/* block/vdi/vdi.c - VirtualBox's disk images, version 1.1: dynamic, static and differencing.
 *
 * All fields little-endian.  docs/formats/vdi.md draws the layout.  Blocks of 1 MiB are found
 * through one table of 32-bit numbers ("block map"), see grid.h.  An image that stands on another
 * one knows it by identifier, not by name: its file is looked for.
 *
 * The header is one sector and so is written whole or not at all.  Its count of blocks is where
 * VirtualBox and QEMU put the next one, so it is never less than what the table uses. */
#include "block/vdi/vdi.h"

#include "base/error.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Blocks that are moved when an image is closed, so that none are left unused in the middle. */
enum { VDI_TIDY = 64 };

static struct log_component log_vdi = LOG_COMPONENT("vdi");

static int vdi_probe(const uint8_t *head, size_t len)
{
	return len >= VDI_HEADER && le32_load(head + VDI_SIGNATURE) == VDI_MAGIC ? 100 : 0;
}

/* ---- the block map ---- */

static int map_entry(struct grid *g, uint64_t block, struct tables_page **page, uint8_t **entry)
{
	const struct vdi *v = g->priv;
	uint64_t at = ALIGN_DOWN(block * 4, TABLES_PAGE);
	uint32_t len = (uint32_t)MIN(g->nr_blocks * 4 - at, (uint64_t)TABLES_PAGE);
	int r = tables_get(&g->tables, v->map + at, len, false, page);

	if (!r)
		*entry = (*page)->data + block * 4 % TABLES_PAGE;
	return r;
}

static int vdi_get(struct grid *g, uint64_t block, struct grid_entry *e)
{
	struct tables_page *page;
	uint8_t *entry = NULL;
	uint32_t value;
	int r = map_entry(g, block, &page, &entry);

	if (r < 0)
		return r;
	value = le32_load(entry);
	if (value == VDI_NONE || value == VDI_ZERO) {
		*e = (struct grid_entry){value == VDI_NONE ? GRID_NONE : GRID_ZERO, 0};
		return 0;
	}
	*e = (struct grid_entry){GRID_DATA, g->base + value * g->unit + g->prefix};
	return value < g->nr_blocks ? 0 : -EIO;
}

static int vdi_set(struct grid *g, uint64_t block, const struct grid_entry *e)
{
	struct tables_page *page;
	uint8_t *entry = NULL;
	int r = map_entry(g, block, &page, &entry);

	if (r < 0)
		return r;
	if (e->state == GRID_DATA)
		le32_store(entry, (uint32_t)((e->host - g->prefix - g->base) / g->unit));
	else
		le32_store(entry, e->state == GRID_NONE ? VDI_NONE : VDI_ZERO);
	tables_change(&g->tables, page);
	return 0;
}

/* ---- the header ---- */

int vdi_write_header(struct vdi *v)
{
	return blk_write(v->grid.file, v->header, VDI_HEADER, 0);
}

/* Who stands on this image as it was must see that it is another one now. */
static int vdi_first_write(struct grid *g)
{
	struct vdi *v = g->priv;
	int r = id_random(v->header + VDI_CHANGE_ID);

	return r < 0 ? r : vdi_write_header(v);
}

static int vdi_before_commit(struct grid *g)
{
	struct vdi *v = g->priv;
	uint64_t end;

	pthread_mutex_lock(&g->lock);
	end = g->space.counted ? g->space.end : 0;
	pthread_mutex_unlock(&g->lock);
	if (end <= vdi_field(v, VDI_ALLOCATED))
		return 0;
	le32_store(v->header + VDI_ALLOCATED, (uint32_t)end);
	return vdi_write_header(v);
}

static const struct grid_ops vdi_grid = {
	.get = vdi_get,
	.set = vdi_set,
	.first_write = vdi_first_write,
	.before_commit = vdi_before_commit,
};

/* ---- opening ---- */

static int refuse(struct blk *b, struct error *err, const char *what, uint64_t value)
{
	return err_set(err, EINVAL, "'%s': %s %" PRIu64 ", which no VDI image has: it is damaged",
		       blk_path(b), what, value);
}

static int check_kind(struct blk *b, const struct vdi *v, struct error *err)
{
	uint32_t version = vdi_field(v, VDI_VERSION);

	if (vdi_field(v, VDI_SIGNATURE) != VDI_MAGIC)
		return err_set(err, EINVAL, "'%s' is not a VDI image", blk_path(b));
	if (version >> 16 != VDI_1_1 >> 16)
		return err_set(err, ENOTSUP, "'%s': VDI version %u.%u; only 1.x can be read",
			       blk_path(b), version >> 16, version & 0xffff);
	if (v->type < VDI_DYNAMIC || v->type > VDI_DIFFERENCING)
		return refuse(b, err, "type", v->type);
	if (vdi_field(v, VDI_SECTOR) != 512)
		return refuse(b, err, "a sector size of", vdi_field(v, VDI_SECTOR));
	if (vdi_field(v, VDI_BLOCK) != VDI_BLOCK_SIZE)
		return err_set(err, ENOTSUP, "'%s': blocks of %u bytes; only 1 MiB is known",
			       blk_path(b), vdi_field(v, VDI_BLOCK));
	return 0;
}

static int check_layout(struct blk *b, const struct vdi *v, struct error *err)
{
	uint64_t map = vdi_field(v, VDI_MAP), data = vdi_field(v, VDI_DATA),
		 blocks = vdi_field(v, VDI_BLOCKS);
	uint64_t size = le64_load(v->header + VDI_SIZE);

	if (blocks > VDI_MAX_BLOCKS)
		return refuse(b, err, "a number of blocks of", blocks);
	if (size > blocks * VDI_BLOCK_SIZE)
		return refuse(b, err, "more bytes than its blocks hold:", size);
	if (map % 512 || map < VDI_HEADER)
		return refuse(b, err, "a block map at", map);
	if (data % 512 || data < map + blocks * 4)
		return refuse(b, err, "data at", data);
	if (vdi_field(v, VDI_EXTRA) % 512 || vdi_field(v, VDI_EXTRA) > VDI_MAX_EXTRA)
		return refuse(b, err, "extra bytes per block:", vdi_field(v, VDI_EXTRA));
	if (map + blocks * 4 > blk_size(b->file))
		return err_set(err, EINVAL, "'%s' ends before its block map does: it is damaged",
			       blk_path(b));
	return 0;
}

static void fill_in(struct blk *b, struct vdi *v)
{
	struct grid *g = &v->grid;
	uint32_t extra = vdi_field(v, VDI_EXTRA);

	g->nr_blocks = vdi_field(v, VDI_BLOCKS);
	g->base = vdi_field(v, VDI_DATA);
	g->unit = VDI_BLOCK_SIZE + extra;
	g->prefix = extra;
	g->max_units = g->nr_blocks;
	g->layered = vdi_is_child(v);
	v->map = vdi_field(v, VDI_MAP);
	b->info.size = ALIGN_UP(le64_load(v->header + VDI_SIZE), 512);
}

static int load_header(struct blk *b, struct vdi *v, struct error *err)
{
	int r = blk_read(b->file, v->header, VDI_HEADER, 0);

	if (r == -EINVAL)
		return err_set(err, EINVAL, "'%s' is too short for a VDI image", blk_path(b));
	if (r < 0)
		return err_errno(err, -r, "cannot read '%s'", blk_path(b));
	v->type = vdi_field(v, VDI_TYPE);
	r = check_kind(b, v, err);
	return r < 0 ? r : check_layout(b, v, err);
}

/* ---- the parent ---- */

struct parent_search {
	struct blk *b;
	const struct vdi *v;
	char *path;
	bool changed; /* there is one, but it was written to since */
};

static bool try_parent(void *opaque, const char *path)
{
	struct parent_search *s = opaque;
	uint8_t head[VDI_HEADER];
	struct error ignored;
	struct blk *f = NULL;
	int r;

	r = blk_ref_open(s->b, path, NULL, BLK_READONLY, &f, &ignored);
	if (!r)
		r = blk_read(f, head, sizeof(head), 0);
	blk_close(f);
	if (r < 0 || !vdi_probe(head, sizeof(head)) ||
	    memcmp(head + VDI_ID, s->v->header + VDI_PARENT_ID, ID_LEN))
		return false;
	if (!id_is_zero(s->v->header + VDI_PARENT_CHANGE_ID) &&
	    memcmp(head + VDI_CHANGE_ID, s->v->header + VDI_PARENT_CHANGE_ID, ID_LEN)) {
		s->changed = true;
		return false;
	}
	s->path = strdup(path);
	return s->path;
}

static int find_parent(struct parent_search *s, struct error *err)
{
	char id[ID_TEXT];
	int r;

	id_text(s->v->header + VDI_PARENT_ID, true, id);
	r = blk_ref_search(s->b, try_parent, s, err);
	if (r < 0 && s->changed)
		return err_set(err, ESTALE,
			       "'%s': its parent {%s} was changed after it, so the two do not fit "
			       "together any more",
			       blk_path(s->b), id);
	if (r < 0)
		return err_set(err, ENOENT,
			       "'%s': its parent {%s} is not in its directory: allow another one "
			       "with --allow-ref DIR",
			       blk_path(s->b), id);
	return 0;
}

static int open_parent(struct blk *b, const struct vdi *v, struct error *err)
{
	struct parent_search s = {.b = b, .v = v};
	int r;

	if (!vdi_is_child(v) && v->type == VDI_DIFFERENCING && !(b->flags & BLK_NO_BACKING))
		return err_set(err, EINVAL, "'%s' is differencing but names no parent: damaged",
			       blk_path(b));
	if (!vdi_is_child(v) || b->flags & BLK_NO_BACKING)
		return 0;
	r = find_parent(&s, err);
	if (!r)
		r = blk_ref_open(b, s.path, "vdi", BLK_READONLY, &b->backing, err);
	if (!r && blk_size(b->backing) > b->info.size)
		r = err_set(err, EINVAL, "'%s': its parent '%s' is larger than it is", blk_path(b),
			    s.path);
	free(s.path);
	return r;
}

static int vdi_open(struct blk *b, const char *path, struct error *err)
{
	struct vdi *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_errno(err, ENOMEM, "'%s'", path);
	v->grid = (struct grid){.b = b,
				.file = b->file,
				.ops = &vdi_grid,
				.priv = v,
				.block_size = VDI_BLOCK_SIZE,
				.units_per_block = 1,
				.sector = 512,
				.has_zero = true,
				.short_file = true};
	r = load_header(b, v, err);
	if (!r) {
		fill_in(b, v);
		v->grid.keep = v->type == VDI_STATIC;
		r = open_parent(b, v, err);
	}
	if (r < 0) {
		free(v);
		return r;
	}
	grid_init(&v->grid);
	b->priv = v;
	b->info.cluster = VDI_BLOCK_SIZE;
	b->info.can_discard = b->info.can_zero = true;
	return 0;
}

/* ---- closing ---- */

/* The end of the file and the count of blocks as they are now. */
static int trim(struct vdi *v)
{
	struct grid *g = &v->grid;
	int r = 0;

	if (!g->space.counted)
		return 0;
	if (vdi_field(v, VDI_ALLOCATED) != g->space.end) {
		le32_store(v->header + VDI_ALLOCATED, (uint32_t)g->space.end);
		r = vdi_write_header(v);
	}
	if (!r && blk_size(g->file) > grid_end(g))
		r = blk_resize(g->file, grid_end(g));
	return r;
}

static int settle(struct vdi *v)
{
	int r = grid_commit(&v->grid);

	if (!r && v->grid.gave_up)
		r = grid_compact(&v->grid, VDI_TIDY);
	return r < 0 ? r : trim(v);
}

static void vdi_close(struct blk *b)
{
	struct vdi *v = b->priv;
	int r = v->grid.started ? settle(v) : 0;

	if (r < 0)
		log_error(&log_vdi, "%s: what was written last may be lost: %s", blk_path(b),
			  strerror(-r));
	grid_fini(&v->grid);
	free(v);
}

/* ---- the waist's calls ---- */

static struct grid *grid_of(struct blk *b)
{
	return &((struct vdi *)b->priv)->grid;
}

static int vdi_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	return grid_readv(grid_of(b), iov, n, len, off);
}

static int vdi_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	return grid_writev(grid_of(b), iov, n, len, off);
}

static int vdi_flush(struct blk *b)
{
	return grid_flush(grid_of(b));
}

static int vdi_discard(struct blk *b, uint64_t off, uint64_t len)
{
	return grid_discard(grid_of(b), off, len);
}

static int vdi_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	return grid_write_zeroes(grid_of(b), off, len, may_unmap);
}

static int vdi_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	return grid_map(grid_of(b), off, m);
}

static void vdi_details(struct blk *b, struct blk_sink *s)
{
	static const char *const types[] = {"", "dynamic", "static", "undo", "differencing"};
	const struct vdi *v = b->priv;
	char id[ID_TEXT];

	s->text(s, "type", types[v->type]);
	s->number(s, "blocks", v->grid.nr_blocks);
	s->number(s, "blocks-allocated", vdi_field(v, VDI_ALLOCATED));
	id_text(v->header + VDI_ID, true, id);
	s->text(s, "uuid", id);
	id_text(v->header + VDI_CHANGE_ID, true, id);
	s->text(s, "modification-uuid", id);
	if (!vdi_is_child(v))
		return;
	id_text(v->header + VDI_PARENT_ID, true, id);
	s->text(s, "parent-uuid", id);
}

/* ---- checking ---- */

static int check_count(struct vdi *v, struct blk_check *c)
{
	uint64_t end = v->grid.space.end;

	if (!v->grid.space.counted || vdi_field(v, VDI_ALLOCATED) == end)
		return 0;
	grid_say(c, "the header counts %u blocks; the map reaches to %" PRIu64,
		 vdi_field(v, VDI_ALLOCATED), end);
	if (!c->fix) {
		*(vdi_field(v, VDI_ALLOCATED) < end ? &c->corruptions : &c->leaks) += 1;
		return 0;
	}
	c->leaks_fixed++;
	le32_store(v->header + VDI_ALLOCATED, (uint32_t)end);
	return vdi_write_header(v);
}

static int vdi_check(struct blk *b, struct blk_check *c, struct error *err)
{
	struct vdi *v = b->priv;
	int r = grid_check(&v->grid, blk_size(b->file), c, err);

	if (!r && check_count(v, c) < 0)
		r = err_set(err, EIO, "'%s': the header cannot be written", blk_path(b));
	if (!r && c->fix & BLK_FIX_LEAKS && trim(v) < 0)
		r = err_set(err, EIO, "'%s' cannot be shortened", blk_path(b));
	return r;
}

const struct blk_format blk_vdi = {
	.name = "vdi",
	.help = "VirtualBox disk image",
	.parallel = true,
	.on_file = true,
	.ties_parent = true,
	.probe = vdi_probe,
	.open = vdi_open,
	.close = vdi_close,
	.readv = vdi_readv,
	.writev = vdi_writev,
	.flush = vdi_flush,
	.discard = vdi_discard,
	.write_zeroes = vdi_write_zeroes,
	.map = vdi_map,
	.resize = vdi_resize,
	.create_options = vdi_options,
	.create = vdi_create,
	.details = vdi_details,
	.check = vdi_check,
	.measure = vdi_measure,
	.change_backing = vdi_change_backing,
	.make_empty = vdi_make_empty,
};
