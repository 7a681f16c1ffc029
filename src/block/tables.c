/* block/tables.c - see tables.h. */
#include "block/tables.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { WRITE_IOVS = 64 };

void tables_init(struct tables *t, struct blk *file)
{
	*t = (struct tables){.file = file};
}

void tables_fini(struct tables *t)
{
	for (struct tables_page *p = t->newest, *next; p; p = next) {
		next = p->older;
		free(p);
	}
	*t = (struct tables){0};
}

/* ---- keeping ---- */

static struct tables_page **bucket_of(struct tables *t, uint64_t off)
{
	return &t->bucket[(off >> 9) * 0x9e3779b97f4a7c15ull >> 53];
}

static void list_remove(struct tables *t, struct tables_page *p)
{
	*(p->newer ? &p->newer->older : &t->newest) = p->older;
	*(p->older ? &p->older->newer : &t->oldest) = p->newer;
}

static void list_add(struct tables *t, struct tables_page *p)
{
	p->newer = NULL;
	p->older = t->newest;
	*(t->newest ? &t->newest->newer : &t->oldest) = p;
	t->newest = p;
}

static void page_drop(struct tables *t, struct tables_page *p)
{
	struct tables_page **at = bucket_of(t, p->off);

	while (*at != p)
		at = &(*at)->same;
	*at = p->same;
	list_remove(t, p);
	t->nr--;
	free(p);
}

/* The one used longest ago that is the same in the file; all of them may be needed. */
static void make_room(struct tables *t)
{
	struct tables_page *p = t->oldest;

	if (t->nr < TABLES_MAX_PAGES)
		return;
	while (p && (p->dirty || p->writing))
		p = p->newer;
	if (p)
		page_drop(t, p);
}

static struct tables_page *page_find(struct tables *t, uint64_t off)
{
	struct tables_page *p = *bucket_of(t, off);

	while (p && p->off != off)
		p = p->same;
	if (p && p != t->newest) {
		list_remove(t, p);
		list_add(t, p);
	}
	return p;
}

static int page_load(struct tables *t, uint64_t off, uint32_t len, bool fresh,
		     struct tables_page **out)
{
	struct tables_page *p, **bucket;
	int r;

	make_room(t);
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	r = fresh ? 0 : blk_read(t->file, p->data, len, off);
	if (r < 0) {
		free(p);
		return r == -EINVAL ? -EIO : r; /* behind the end of the file */
	}
	p->off = off;
	p->len = len;
	bucket = bucket_of(t, off);
	p->same = *bucket;
	*bucket = p;
	list_add(t, p);
	t->nr++;
	*out = p;
	return 0;
}

int tables_get(struct tables *t, uint64_t off, uint32_t len, bool fresh, struct tables_page **out)
{
	struct tables_page *p = page_find(t, off);

	if (!p)
		return page_load(t, off, len, fresh, out);
	if (p->len != len) /* two tables of a damaged image in one place */
		return -EIO;
	if (fresh)
		memset(p->data, 0, sizeof(p->data));
	*out = p;
	return 0;
}

void tables_change(struct tables *t, struct tables_page *p)
{
	t->nr_dirty += !p->dirty;
	p->dirty = true;
}

bool tables_crowded(const struct tables *t)
{
	return t->nr_dirty >= TABLES_MAX_PAGES / 2;
}

/* ---- writing ---- */

static int by_offset(const void *a, const void *b)
{
	const struct tables_copy *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

int tables_take(struct tables *t, struct tables_batch *batch)
{
	struct tables_copy *c;

	*batch = (struct tables_batch){0};
	if (!t->nr_dirty)
		return 0;
	batch->copy = calloc(t->nr_dirty, sizeof(*batch->copy));
	if (!batch->copy)
		return -ENOMEM;
	for (struct tables_page *p = t->newest; p; p = p->older) {
		if (!p->dirty)
			continue;
		c = &batch->copy[batch->n++];
		c->page = p;
		c->off = p->off;
		c->len = p->len;
		memcpy(c->data, p->data, p->len);
		p->dirty = false;
		p->writing++;
	}
	t->nr_dirty = 0;
	qsort(batch->copy, batch->n, sizeof(*batch->copy), by_offset);
	return 0;
}

int tables_write(struct tables *t, const struct tables_batch *batch)
{
	struct iovec iov[WRITE_IOVS];
	unsigned i = 0;
	int r = 0;

	while (i < batch->n && !r) {
		uint64_t off = batch->copy[i].off, end = off;
		unsigned n = 0;

		for (; i < batch->n && n < WRITE_IOVS && batch->copy[i].off == end; i++, n++) {
			iov[n] = (struct iovec){batch->copy[i].data, batch->copy[i].len};
			end += batch->copy[i].len;
		}
		r = blk_writev(t->file, iov, n, off);
	}
	return r;
}

void tables_done(struct tables *t, struct tables_batch *batch, bool written)
{
	for (unsigned i = 0; i < batch->n; i++) {
		struct tables_page *p = batch->copy[i].page;

		p->writing--;
		if (!written)
			tables_change(t, p);
	}
	free(batch->copy);
	*batch = (struct tables_batch){0};
}
