/* block/parallels.c - Parallels' expanding disks (.hdd), versions 1 and 2: read only.
 *
 * Little-endian: a header of 64 bytes, then a table of 32-bit numbers, one for each cluster: 0 for
 * none, else where it is, in sectors (version 1, "WithoutFreeSpace") or clusters (version 2,
 * "WithouFreSpacExt"). */
#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/grid.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
	PLS_VERSION = 16,
	PLS_TRACKS = 28, /* sectors of a cluster */
	PLS_ENTRIES = 32,
	PLS_SECTORS = 36,
	PLS_INUSE = 44,
	PLS_DATA = 48,
	PLS_LEN = 64,
};

#define PLS_IN_USE      0x746f6e59u
#define PLS_MAX_ENTRIES (INT32_MAX / 4)
#define PLS_MAX_TRACKS  (INT32_MAX / 513)

static struct log_component log_pls = LOG_COMPONENT("parallels");

struct parallels {
	struct grid grid;
	uint32_t nr_entries;
	uint64_t unit; /* of the numbers in the table */
};

static bool is_v2(const uint8_t *head)
{
	return !memcmp(head, "WithouFreSpacExt", 16);
}

static int parallels_probe(const uint8_t *head, size_t len)
{
	if (len < PLS_LEN || (memcmp(head, "WithoutFreeSpace", 16) && !is_v2(head)))
		return 0;
	return le32_load(head + PLS_VERSION) == 2 ? 100 : 0;
}

static int parallels_get(struct grid *g, uint64_t block, struct grid_entry *e)
{
	const struct parallels *v = g->priv;
	uint64_t at = ALIGN_DOWN(block * 4, TABLES_PAGE);
	uint32_t len = (uint32_t)MIN(v->nr_entries * 4ull - at, (uint64_t)TABLES_PAGE), value;
	struct tables_page *page;
	int r = tables_get(&g->tables, PLS_LEN + at, len, false, &page);

	if (r < 0)
		return r;
	value = le32_load(page->data + block * 4 % TABLES_PAGE);
	*e = (struct grid_entry){value ? GRID_DATA : GRID_NONE, value * v->unit};
	/* The last one may end early. */
	return !value || e->host < blk_size(g->file) ? 0 : -EIO;
}

static const struct grid_ops parallels_grid = {.get = parallels_get};

static int damaged(struct blk *b, struct error *err, const char *what, uint64_t value)
{
	return err_set(err, EINVAL, "'%s': %s %" PRIu64 ": the Parallels image is damaged",
		       blk_path(b), what, value);
}

static int load(struct blk *b, struct parallels *v, struct error *err)
{
	struct grid *g = &v->grid;
	uint8_t h[PLS_LEN];
	uint32_t tracks;
	uint64_t sectors;

	if (blk_read(b->file, h, sizeof(h), 0) < 0 || !parallels_probe(h, sizeof(h)))
		return err_set(err, EINVAL, "'%s' is not an expanding disk of Parallels",
			       blk_path(b));
	tracks = le32_load(h + PLS_TRACKS);
	v->nr_entries = le32_load(h + PLS_ENTRIES);
	/* Version 1 has 32 bits for the size, and anything behind them. */
	sectors = is_v2(h) ? le64_load(h + PLS_SECTORS) : le32_load(h + PLS_SECTORS);
	if (!tracks || tracks > PLS_MAX_TRACKS)
		return damaged(b, err, "clusters of sectors:", tracks);
	if (v->nr_entries > PLS_MAX_ENTRIES ||
	    !range_inside(PLS_LEN, v->nr_entries * 4ull, blk_size(b->file)))
		return damaged(b, err, "a table of entries:", v->nr_entries);
	if (sectors > (uint64_t)v->nr_entries * tracks || sectors > INT64_MAX / 1024)
		return damaged(b, err, "more sectors than its table holds:", sectors);
	if (le32_load(h + PLS_INUSE) == PLS_IN_USE) {
		log_warn(&log_pls, "%s: was not closed properly", blk_path(b));
		b->info.dirty = true;
	}
	v->unit = is_v2(h) ? tracks * 512ull : 512;
	b->info.size = sectors * 512;
	b->info.cluster = tracks * 512;
	g->block_size = tracks * 512;
	g->nr_blocks = (sectors + tracks - 1) / tracks;
	return 0;
}

static int parallels_open(struct blk *b, const char *path, struct error *err)
{
	struct parallels *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_errno(err, ENOMEM, "'%s'", path);
	v->grid = (struct grid){
		.b = b, .file = b->file, .ops = &parallels_grid, .priv = v, .short_file = true};
	r = load(b, v, err);
	if (r < 0) {
		free(v);
		return r;
	}
	grid_init(&v->grid);
	b->priv = v;
	return 0;
}

static void parallels_close(struct blk *b)
{
	struct parallels *v = b->priv;

	grid_fini(&v->grid);
	free(v);
}

static int parallels_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			   uint64_t off)
{
	return grid_readv(&((struct parallels *)b->priv)->grid, iov, n, len, off);
}

static int parallels_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	return grid_map(&((struct parallels *)b->priv)->grid, off, m);
}

const struct blk_format blk_parallels = {
	.name = "parallels",
	.help = "expanding disk of Parallels (read only)",
	.parallel = true,
	.on_file = true,
	.probe = parallels_probe,
	.open = parallels_open,
	.close = parallels_close,
	.readv = parallels_readv,
	.map = parallels_map,
};
