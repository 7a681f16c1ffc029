/* block/tables.h - the pages of an image's tables: read when needed, changed in memory, written
 * back together and in order.
 *
 * For drivers whose tables are small beside their data (grid.h, QED).  The owner has one lock and
 * holds it in every call that says so.  Nothing changed is written before tables_take; the order is
 * then the owner's: flush the data the entries speak of, write the batch, flush, tables_done.  So a
 * power cut finds tables that speak only of data that are there.
 *
 * Memory: TABLES_MAX_PAGES pages of 4 KiB (32 MiB), and as much again while a batch is written;
 * changed pages are never dropped, so the owner commits when tables_crowded().  Offsets are bytes
 * in the file.  Errors are negative errno. */
#pragma once

#include "block/blk.h"

enum { TABLES_PAGE = 4096, TABLES_MAX_PAGES = 8192, TABLES_BUCKETS = 2048 };

struct tables_page {
	uint64_t off;
	uint32_t len;
	bool dirty;       /* differs from the file and from what is being written */
	unsigned writing; /* batches it is part of */
	struct tables_page *same, *newer, *older;
	uint8_t data[TABLES_PAGE];
};

struct tables {
	struct blk *file;
	struct tables_page *bucket[TABLES_BUCKETS];
	struct tables_page *newest, *oldest;
	unsigned nr, nr_dirty;
};

struct tables_copy {
	struct tables_page *page;
	uint64_t off;
	uint32_t len;
	uint8_t data[TABLES_PAGE];
};

struct tables_batch {
	struct tables_copy *copy; /* ascending */
	unsigned n;
};

void tables_init(struct tables *t, struct blk *file);
void tables_fini(struct tables *t);

/* With the lock.  The page of `len` bytes (a given offset has one length) at `off`, valid until the
 * next call.  fresh: it is zeroes, whatever the file holds. */
int tables_get(struct tables *t, uint64_t off, uint32_t len, bool fresh, struct tables_page **out);
void tables_change(struct tables *t, struct tables_page *p); /* its data were changed */
bool tables_crowded(const struct tables *t);

/* With the lock: what is changed now, as copies.  batch->n may be 0. */
int tables_take(struct tables *t, struct tables_batch *batch);
/* Without the lock: to their places. */
int tables_write(struct tables *t, const struct tables_batch *batch);
/* With the lock: they are in the file (or not: then they count as changed again).  Frees. */
void tables_done(struct tables *t, struct tables_batch *batch, bool written);
