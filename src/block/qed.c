/* block/qed.c - QEMU Enhanced Disks: read only, with their backing files.
 *
 * "QED Image File Format" (QEMU, docs/interop/qed_spec.txt).  Little-endian: a header, and two
 * levels of tables of 64-bit offsets; 0 is the backing file's, 1 is zeroes. */
#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/grid.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
	QED_CLUSTER = 4,
	QED_TABLE = 8, /* clusters of a table */
	QED_FEATURES = 16,
	QED_L1 = 40,
	QED_SIZE = 48,
	QED_NAME_AT = 56,
	QED_NAME_LEN = 60,
	QED_LEN = 64,
	QED_NAME_MAX = 1023,
};

enum { QED_HAS_BACKING = 1, QED_NEEDS_CHECK = 2, QED_BACKING_RAW = 4, QED_KNOWN = 7 };

static struct log_component log_qed = LOG_COMPONENT("qed");

struct qed {
	struct grid grid;
	uint64_t l1, nr_entries; /* entries of one table */
	uint64_t features;
};

static int qed_probe(const uint8_t *head, size_t len)
{
	return len >= QED_LEN && !memcmp(head, "QED", 4) ? 100 : 0;
}

static int table_entry(struct grid *g, uint64_t table, uint64_t i, uint64_t *value)
{
	uint64_t at = ALIGN_DOWN(i * 8, TABLES_PAGE);
	struct tables_page *page;
	int r;

	if (table % g->block_size || !range_inside(table, at + TABLES_PAGE, blk_size(g->file)))
		return -EIO;
	r = tables_get(&g->tables, table + at, TABLES_PAGE, false, &page);
	if (!r)
		*value = le64_load(page->data + i * 8 % TABLES_PAGE);
	return r;
}

static int qed_get(struct grid *g, uint64_t block, struct grid_entry *e)
{
	const struct qed *v = g->priv;
	uint64_t l2 = 0, value = 0;
	int r = table_entry(g, v->l1, block / v->nr_entries, &l2);

	if (!r && l2)
		r = table_entry(g, l2, block % v->nr_entries, &value);
	if (r < 0)
		return r;
	*e = (struct grid_entry){!value       ? GRID_NONE
				 : value == 1 ? GRID_ZERO
					      : GRID_DATA,
				 value > 1 ? value : 0};
	return value <= 1 || (value % g->block_size == 0 && value < blk_size(g->file)) ? 0 : -EIO;
}

static const struct grid_ops qed_grid = {.get = qed_get};

static int damaged(struct blk *b, struct error *err, const char *what, uint64_t value)
{
	return err_set(err, EINVAL, "'%s': %s %" PRIu64 ": the QED image is damaged", blk_path(b),
		       what, value);
}

static int open_backing(struct blk *b, const struct qed *v, const uint8_t *h, struct error *err)
{
	uint32_t at = le32_load(h + QED_NAME_AT), len = le32_load(h + QED_NAME_LEN);
	char name[QED_NAME_MAX + 1] = "";

	if (!(v->features & QED_HAS_BACKING) || b->flags & BLK_NO_BACKING)
		return 0;
	if (!len || len > QED_NAME_MAX || at < QED_LEN || blk_read(b->file, name, len, at) < 0)
		return damaged(b, err, "a backing file's name of length", len);
	return blk_ref_open(b, name, v->features & QED_BACKING_RAW ? "raw" : "auto", BLK_READONLY,
			    &b->backing, err);
}

static int load(struct blk *b, struct qed *v, struct error *err)
{
	uint32_t cluster, table;
	uint8_t h[QED_LEN];
	uint64_t size;

	if (blk_read(b->file, h, sizeof(h), 0) < 0 || !qed_probe(h, sizeof(h)))
		return err_set(err, EINVAL, "'%s' is not a QED image", blk_path(b));
	cluster = le32_load(h + QED_CLUSTER);
	table = le32_load(h + QED_TABLE);
	size = le64_load(h + QED_SIZE);
	v->features = le64_load(h + QED_FEATURES);
	v->l1 = le64_load(h + QED_L1);
	if (v->features & ~(uint64_t)QED_KNOWN)
		return err_set(err, ENOTSUP,
			       "'%s' needs features of QED that are not known (%#" PRIx64 ")",
			       blk_path(b), v->features & ~(uint64_t)QED_KNOWN);
	if (cluster < 4096 || cluster > 64 * MiB || cluster & (cluster - 1))
		return damaged(b, err, "clusters of bytes:", cluster);
	if (!table || table > 16 || table & (table - 1))
		return damaged(b, err, "tables of clusters:", table);
	v->nr_entries = (uint64_t)table * cluster / 8;
	if (size % 512 || size > INT64_MAX || size / cluster / v->nr_entries >= v->nr_entries)
		return damaged(b, err, "a size of", size);
	if (v->features & QED_NEEDS_CHECK) {
		log_warn(&log_qed, "%s: was not closed properly", blk_path(b));
		b->info.dirty = true;
	}
	v->grid.block_size = cluster;
	v->grid.nr_blocks = (size + cluster - 1) / cluster;
	v->grid.layered = v->features & QED_HAS_BACKING;
	b->info.size = size;
	b->info.cluster = cluster;
	return open_backing(b, v, h, err);
}

static int qed_open(struct blk *b, const char *path, struct error *err)
{
	struct qed *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_errno(err, ENOMEM, "'%s'", path);
	v->grid = (struct grid){
		.b = b, .file = b->file, .ops = &qed_grid, .priv = v, .short_file = true};
	r = load(b, v, err);
	if (r < 0) {
		free(v);
		return r;
	}
	grid_init(&v->grid);
	b->priv = v;
	return 0;
}

static void qed_close(struct blk *b)
{
	struct qed *v = b->priv;

	grid_fini(&v->grid);
	free(v);
}

static int qed_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	return grid_readv(&((struct qed *)b->priv)->grid, iov, n, len, off);
}

static int qed_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	return grid_map(&((struct qed *)b->priv)->grid, off, m);
}

const struct blk_format blk_qed = {
	.name = "qed",
	.help = "QEMU enhanced disk (read only)",
	.parallel = true,
	.on_file = true,
	.probe = qed_probe,
	.open = qed_open,
	.close = qed_close,
	.readv = qed_readv,
	.map = qed_map,
};
