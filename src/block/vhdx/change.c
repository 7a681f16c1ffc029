/* block/vhdx/change.c - a differencing VHDX over another parent, and one that is emptied.
 *
 * The new locator goes to a free place of the metadata region and is made durable; then the item's
 * entry in the metadata table is changed through the log.  A cut finds the old one or the new. */
#include "block/vhdx/vhdx.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Places that are tried for the locator. */
enum { PLACE_STEP = 4096 };

/* ---- the metadata table ---- */

static bool is_free(const uint8_t *t, uint64_t at, uint32_t len)
{
	for (unsigned i = 0; i < le16_load(t + META_COUNT); i++) {
		const uint8_t *e = t + META_ENTRIES + i * META_ENTRY;
		uint64_t off = le32_load(e + META_OFFSET);

		if (at < off + le32_load(e + META_LENGTH) && off < at + len)
			return false;
	}
	return true;
}

static int find_place(const struct vhdx *v, const uint8_t *t, uint32_t len, uint64_t *at)
{
	for (*at = META_TABLE_LEN; *at + len <= v->meta.len; *at += PLACE_STEP)
		if (is_free(t, *at, len))
			return 0;
	return -ENOSPC;
}

static int find_entry(const uint8_t *t)
{
	for (unsigned i = 0; i < le16_load(t + META_COUNT); i++) {
		const uint8_t *e = t + META_ENTRIES + i * META_ENTRY;

		if (!memcmp(e, vhdx_item_locator, ID_LEN) &&
		    !(le32_load(e + META_FLAGS) & META_IS_USER))
			return (int)i;
	}
	return -EINVAL;
}

/* An entry never lies across two pages: 32 bytes each, from 32 on. */
static int point_entry(struct vhdx *v, unsigned i, uint32_t at, uint32_t len)
{
	struct grid *g = &v->grid;
	uint32_t off = META_ENTRIES + i * META_ENTRY, in = off % TABLES_PAGE;
	struct tables_page *page;
	int r;

	pthread_mutex_lock(&g->lock);
	r = tables_get(&g->tables, v->meta.off + off - in, TABLES_PAGE, false, &page);
	if (!r) {
		le32_store(page->data + in + META_OFFSET, at);
		le32_store(page->data + in + META_LENGTH, len);
		tables_change(&g->tables, page);
	}
	pthread_mutex_unlock(&g->lock);
	return r < 0 ? r : grid_commit(g);
}

static int store_locator(struct vhdx *v, const uint8_t *locator, uint32_t len)
{
	uint8_t *t = malloc(META_TABLE_LEN);
	uint64_t at = 0;
	int r = t ? blk_read(v->file, t, META_TABLE_LEN, v->meta.off) : -ENOMEM, i = 0;

	if (!r) {
		i = find_entry(t);
		r = i < 0 ? i : find_place(v, t, len, &at);
	}
	free(t);
	if (!r)
		r = blk_write(v->file, locator, len, v->meta.off + at);
	if (!r)
		r = blk_flush(v->file);
	if (!r)
		r = point_entry(v, (unsigned)i, (uint32_t)at, len);
	if (r < 0)
		return r;
	v->locator_at = v->meta.off + at;
	v->locator_len = len;
	return 0;
}

/* ---- another parent ---- */

static int check_parent(const struct vhdx *v, const struct blk *parent, struct error *err)
{
	struct blk *b = v->grid.b;

	if (blk_size(parent) > blk_size(b))
		return err_set(err, EINVAL, "'%s' is larger than '%s'", blk_path(parent),
			       blk_path(b));
	if (blk_info(parent)->block_size != v->sector)
		return err_set(err, EINVAL, "'%s' has other sectors than '%s'", blk_path(parent),
			       blk_path(b));
	return 0;
}

static int change_to(struct vhdx *v, const struct blk *parent, struct error *err)
{
	char *absolute = realpath(blk_path(parent), NULL),
	     *own = realpath(blk_path(v->grid.b), NULL);
	char *relative = absolute && own ? parent_relative(own, absolute) : NULL;
	uint8_t *locator = calloc(1, LOCATOR_MAX);
	int len = relative && locator ? 0 : -ENOMEM, r;

	if (!len)
		len = vhdx_make_locator(locator, LOCATOR_MAX, parent, absolute, relative);
	r = len < 0 ? len : store_locator(v, locator, (uint32_t)len);
	free(absolute);
	free(own);
	free(relative);
	free(locator);
	return r < 0 ? err_errno(err, -r, "the parent of '%s' cannot be changed",
				 blk_path(v->grid.b))
		     : 0;
}

int vhdx_change_backing(struct blk *b, const char *backing, const char *format, struct error *err)
{
	struct vhdx *v = b->priv;
	struct blk *parent = NULL;
	int r;

	if (!v->grid.layered || !backing)
		return err_set(err, ENOTSUP,
			       "'%s': a VHDX has a parent or none from the beginning: convert it",
			       blk_path(b));
	if (!format || strcmp(format, "vhdx"))
		return err_set(err, EINVAL, "a VHDX can only stand on another one");
	r = blk_ref_open(b, backing, "vhdx", BLK_READONLY | BLK_NO_BACKING, &parent, err);
	if (r < 0)
		return r;
	r = check_parent(v, parent, err);
	if (!r) {
		r = grid_start(&v->grid);
		if (!r)
			r = grid_commit(&v->grid);
		if (r < 0)
			err_errno(err, -r, "cannot write '%s'", blk_path(b));
	}
	if (!r)
		r = change_to(v, parent, err);
	blk_close(parent);
	return r;
}

/* ---- emptying ---- */

/* No block is here, so no bits say which of their sectors are. */
static int drop_bitmaps(struct vhdx *v)
{
	struct grid *g = &v->grid;
	int r = 0;

	pthread_mutex_lock(&g->lock);
	for (uint64_t i = 0; g->layered && i < g->nr_blocks && !r; i += v->chunk_ratio)
		r = vhdx_drop_bitmap(v, i);
	pthread_mutex_unlock(&g->lock);
	if (!r)
		r = grid_commit(g);
	if (r < 0)
		return r;
	/* What they said must not be found again where another one will be. */
	tables_fini(&g->tables);
	tables_init(&g->tables, g->file);
	return 0;
}

int vhdx_make_empty(struct blk *b, struct error *err)
{
	struct vhdx *v = b->priv;
	int r;

	if (v->grid.keep)
		return err_set(err, EINVAL, "'%s' is fixed: its space stays", blk_path(b));
	r = grid_empty(&v->grid);
	if (!r)
		r = drop_bitmaps(v);
	return r < 0 ? err_errno(err, -r, "cannot empty '%s'", blk_path(b)) : 0;
}
