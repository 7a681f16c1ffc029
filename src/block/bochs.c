/* block/bochs.c - Bochs' growing disks ("Redolog", "Growing"): read only.
 *
 * Little-endian: a header, a catalog of 32-bit numbers, one for each extent, then the extents: a
 * bitmap of their sectors, and the sectors.  A sector whose bit is clear was never written. */
#include "base/bytes.h"
#include "base/error.h"
#include "block/grid.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
	BOCHS_VERSION = 0x40,
	BOCHS_HEADER = 0x44,
	BOCHS_CATALOG = 0x48,
	BOCHS_BITMAP = 0x4c,
	BOCHS_EXTENT = 0x50,
	BOCHS_SIZE_V1 = 0x54,
	BOCHS_SIZE_V2 = 0x58,
	BOCHS_LEN = 0x60,
};

#define BOCHS_V1          0x00010000u
#define BOCHS_V2          0x00020000u
#define BOCHS_MAX_CATALOG 0x100000u /* entries */
#define BOCHS_MAX_EXTENT  0x800000u

struct bochs {
	struct grid grid;
	uint64_t catalog, data, stride;
	uint32_t nr_catalog;
};

static int bochs_probe(const uint8_t *head, size_t len)
{
	return len >= BOCHS_LEN && !memcmp(head, "Bochs Virtual HD Image", 23) &&
			       !memcmp(head + 0x20, "Redolog", 8) &&
			       !memcmp(head + 0x30, "Growing", 8)
		       ? 100
		       : 0;
}

static int bochs_get(struct grid *g, uint64_t block, struct grid_entry *e)
{
	const struct bochs *v = g->priv;
	uint64_t at = ALIGN_DOWN(block * 4, TABLES_PAGE);
	uint32_t len = (uint32_t)MIN(v->nr_catalog * 4ull - at, (uint64_t)TABLES_PAGE), value;
	struct tables_page *page;
	int r = tables_get(&g->tables, v->catalog + at, len, false, &page);

	if (r < 0)
		return r;
	value = le32_load(page->data + block * 4 % TABLES_PAGE);
	*e = (struct grid_entry){GRID_NONE, 0};
	if (value == UINT32_MAX)
		return 0;
	*e = (struct grid_entry){GRID_PART, v->data + value * v->stride + g->prefix};
	return range_inside(e->host - g->prefix, g->prefix, blk_size(g->file)) ? 0 : -EIO;
}

static int bochs_part_get(struct grid *g, uint64_t block, uint32_t in, uint32_t *len, bool *here)
{
	uint32_t first = in / 512, end = (uint32_t)((in + (uint64_t)*len + 511) / 512), s;
	struct grid_entry e;
	int r = bochs_get(g, block, &e);

	for (s = first; s < end && !r; s++) {
		uint32_t start = (uint32_t)ALIGN_DOWN(s / 8, 512);
		struct tables_page *page;
		bool bit;

		r = tables_get(&g->tables, e.host - g->prefix + start, 512, false, &page);
		if (r < 0)
			return r;
		bit = page->data[s / 8 - start] >> s % 8 & 1;
		if (s == first)
			*here = bit;
		if (bit != *here)
			break;
	}
	*len = (uint32_t)MIN(*len, s * 512ull - in);
	return r;
}

static const struct grid_ops bochs_grid = {.get = bochs_get, .part_get = bochs_part_get};

static int damaged(struct blk *b, struct error *err, const char *what, uint64_t value)
{
	return err_set(err, EINVAL, "'%s': %s %" PRIu64 ": the Bochs image is damaged", blk_path(b),
		       what, value);
}

static int load(struct blk *b, struct bochs *v, struct error *err)
{
	struct grid *g = &v->grid;
	uint8_t h[BOCHS_LEN];
	uint32_t version, bitmap, extent;

	if (blk_read(b->file, h, sizeof(h), 0) < 0 || !bochs_probe(h, sizeof(h)))
		return err_set(err, EINVAL, "'%s' is not a growing disk of Bochs", blk_path(b));
	version = le32_load(h + BOCHS_VERSION);
	if (version != BOCHS_V1 && version != BOCHS_V2)
		return damaged(b, err, "version", version);
	extent = le32_load(h + BOCHS_EXTENT);
	bitmap = le32_load(h + BOCHS_BITMAP);
	v->nr_catalog = le32_load(h + BOCHS_CATALOG);
	v->catalog = le32_load(h + BOCHS_HEADER);
	b->info.size = ALIGN_DOWN(
		le64_load(h + (version == BOCHS_V1 ? BOCHS_SIZE_V1 : BOCHS_SIZE_V2)), 512);
	if (extent < 512 || extent % 512 || extent > BOCHS_MAX_EXTENT)
		return damaged(b, err, "extents of bytes:", extent);
	if (bitmap < (extent / 512 + 7) / 8 || bitmap > MiB)
		return damaged(b, err, "a bitmap of bytes:", bitmap);
	if (v->nr_catalog > BOCHS_MAX_CATALOG ||
	    !range_inside(v->catalog, v->nr_catalog * 4ull, blk_size(b->file)))
		return damaged(b, err, "a catalog of entries:", v->nr_catalog);
	if (b->info.size > (uint64_t)v->nr_catalog * extent)
		return damaged(b, err, "more bytes than its extents hold:", b->info.size);
	g->block_size = extent;
	g->nr_blocks = (b->info.size + extent - 1) / extent;
	g->prefix = (uint32_t)ALIGN_UP(bitmap, 512);
	v->stride = (uint64_t)g->prefix + extent;
	v->data = v->catalog + v->nr_catalog * 4ull;
	b->info.cluster = extent;
	return 0;
}

static int bochs_open(struct blk *b, const char *path, struct error *err)
{
	struct bochs *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_errno(err, ENOMEM, "'%s'", path);
	v->grid = (struct grid){.b = b,
				.file = b->file,
				.ops = &bochs_grid,
				.priv = v,
				.sector = 512,
				.short_file = true};
	r = load(b, v, err);
	if (r < 0) {
		free(v);
		return r;
	}
	grid_init(&v->grid);
	b->priv = v;
	return 0;
}

static void bochs_close(struct blk *b)
{
	struct bochs *v = b->priv;

	grid_fini(&v->grid);
	free(v);
}

static int bochs_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		       uint64_t off)
{
	return grid_readv(&((struct bochs *)b->priv)->grid, iov, n, len, off);
}

static int bochs_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	return grid_map(&((struct bochs *)b->priv)->grid, off, m);
}

const struct blk_format blk_bochs = {
	.name = "bochs",
	.help = "growing disk of Bochs (read only)",
	.parallel = true,
	.on_file = true,
	.probe = bochs_probe,
	.open = bochs_open,
	.close = bochs_close,
	.readv = bochs_readv,
	.map = bochs_map,
};
