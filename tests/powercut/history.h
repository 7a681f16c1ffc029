/* history.h - what each sector of a disk may read as after a power cut.
 *
 * Times are positions in the log of changes to the image's file.  A sector has a list of versions,
 * each with when the guest began to write it and when that was done.  After a cut, the last version
 * that a completed flush covers may be there, or any later one; nothing older.  One thread. */
#pragma once

#include "base/types.h"

enum { SECTOR = 512 };

struct version {
	uint64_t id; /* fills the sector; 0: zeroes */
	unsigned begun, done;
	bool weak; /* a discard: what was there may come back */
};

struct sector_history {
	struct version *v;
	unsigned n, cap;
};

struct history {
	struct sector_history *sector;
	uint64_t nr_sectors, cap;
	struct flush {
		unsigned begun, done;
	} * flush;
	unsigned nr_flushes, flush_cap;
};

void history_init(struct history *h, uint64_t nr_sectors);
void history_free(struct history *h);
void history_grow(struct history *h, uint64_t nr_sectors); /* new ones are zeroes from the start */
void history_write(struct history *h, uint64_t sector, struct version v);
void history_flush(struct history *h, unsigned begun, unsigned done);
uint64_t history_now(const struct history *h, uint64_t sector); /* the newest version's id */
/* May the sector read as id, after a cut at `cut`? */
bool history_allows(const struct history *h, uint64_t sector, unsigned cut, uint64_t id);
