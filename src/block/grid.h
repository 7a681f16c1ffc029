/* block/grid.h - a disk cut into equal blocks, each found through one entry of a table: what VDI,
 * VHD, VHDX and Parallels have in common.
 *
 * The driver tells how an entry is stored (struct grid_ops); reading, writing, allocating,
 * discarding, mapping, flushing, checking and compacting are here, once.
 *
 *  - Data move outside the lock; only looking up and changing entries is under it.
 *  - A write that needs new blocks takes them in one piece, writes the data, and only then sets the
 *    entries, in memory.  A flush first makes the data durable, then writes the tables.  Whatever
 *    was not flushed is as if never written; space taken for it is found again at the next start,
 *    because what is in use is counted from the tables.
 *  - A block given up is used again only when the table without it is durable and nobody who looked
 *    it up before is still at work.
 *
 * Memory: the pages of tables.h, and a bit per unit of the file (GRID_MAX_UNITS: 128 MiB) for
 * images written to.  Offsets are bytes.  Any thread. */
#pragma once

#include "block/format.h"
#include "block/tables.h"

struct grid;

#define GRID_MAX_UNITS (1ull << 30)

enum grid_state {
	GRID_NONE, /* not in this image: the backing file's, or zeroes */
	GRID_ZERO, /* zeroes, whatever the backing file holds */
	GRID_DATA,
	GRID_PART, /* here, but some sectors are the backing file's */
};

struct grid_entry {
	enum grid_state state;
	uint64_t host; /* DATA, PART: where the data are in the file */
};

struct grid_ops {
	/* With the lock.  -EIO: the entry is not one that can be; *e then is as far as it goes, for
	 * messages. */
	int (*get)(struct grid *g, uint64_t block, struct grid_entry *e);
	int (*set)(struct grid *g, uint64_t block, const struct grid_entry *e);

	/* From here optional. */
	int (*first_write)(struct grid *g); /* before anything is changed; once */
	/* Before file space up to `end` is written for the first time; one at a time, no lock. */
	int (*reserve)(struct grid *g, uint64_t end);
	/* What stands before the data of a new block, no lock. */
	int (*prepare)(struct grid *g, uint64_t host, uint64_t nr_blocks, bool part);
	/* Marks (grid_mark) what else is in use behind .base; with the lock. */
	int (*mark_others)(struct grid *g);
	/* Of a PART block, with the lock: is the sector at `in` here, for how many bytes alike; and
	 * set or clear. */
	int (*part_get)(struct grid *g, uint64_t block, uint32_t in, uint32_t *len, bool *here);
	int (*part_set)(struct grid *g, uint64_t block, uint32_t in, uint32_t len, bool here);
	/* Before the data flush of a commit that changes tables; no lock, one at a time. */
	int (*before_commit)(struct grid *g);
	/* Instead of writing the pages in place: data are durable; when it returns so are these. */
	int (*commit)(struct grid *g, const struct tables_batch *batch);
};

struct grid_space {
	uint8_t *used; /* bit per unit */
	uint64_t cap, end,
		nr_free;       /* units: allocated bits; behind the last used; free before it */
	uint64_t hint, virgin; /* where to look; from here on nothing was ever written */
	uint64_t no_run;       /* there is no free run of that many, for sure */
	bool counted;          /* all of it is known */
};

struct grid_busy; /* blocks that are being allocated or given up */
struct grid_freed;

struct grid {
	/* Set by the driver before grid_init. */
	struct blk *b, *file;
	const struct grid_ops *ops;
	void *priv;
	uint64_t nr_blocks;
	uint32_t block_size;
	uint32_t sector; /* of PART */
	uint64_t base;   /* where unit 0 is in the file */
	uint64_t unit;   /* bytes; a block takes units_per_block of them */
	uint32_t prefix; /* of a block's units before its data */
	uint32_t units_per_block;
	uint64_t max_units; /* the format cannot name more; 0: any */
	bool layered;       /* GRID_NONE means a parent's data, even when that is not open */
	bool has_zero;      /* there is an entry for zeroes */
	bool parts;         /* layered: new blocks are PART */
	bool always_parts;  /* also when all of it is written */
	bool keep;          /* blocks are never given up: it has its space from the beginning */
	bool short_file;    /* what lies behind the end of the file reads as zeroes */

	struct tables tables;
	/* lock: tables, space, busy, freed, started and the driver's own.  Never held during data
	 * I/O. */
	pthread_mutex_t lock;
	pthread_cond_t not_busy;
	pthread_rwlock_t io;    /* read: between looking an entry up and the end of its I/O */
	pthread_mutex_t commit; /* one commit at a time */
	pthread_mutex_t growth; /* one .reserve at a time */
	pthread_mutex_t merge;  /* sectors that are read, changed and written */
	struct grid_space space;
	struct grid_busy *busy;
	struct grid_freed *freed; /* not in the tables in memory any more */
	_Atomic bool started;     /* first_write has happened */
	bool gave_up;             /* units were freed */
	uint64_t nr_leaving;      /* units that will be free when a commit is done */
};

void grid_init(struct grid *g);
/* Writable: commits; not the trimming.  Then frees. */
int grid_fini(struct grid *g);

/* As in struct blk_format. */
int grid_readv(struct grid *g, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off);
int grid_writev(struct grid *g, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off);
int grid_flush(struct grid *g);
int grid_discard(struct grid *g, uint64_t off, uint64_t len);
int grid_write_zeroes(struct grid *g, uint64_t off, uint64_t len, bool may_unmap);
int grid_map(struct grid *g, uint64_t off, struct blk_map *m);

int grid_commit(struct grid *g); /* grid_flush, whoever asks */
/* Before changing anything in another way than through the calls above. */
int grid_start(struct grid *g);

/* --- space, with the lock --- */

/* Know what is in use (reads all tables, once).  -EIO with an entry that cannot be. */
int grid_count(struct grid *g);
/* [off, off+len) of the file is in use. */
int grid_mark(struct grid *g, uint64_t off, uint64_t len);
/* nr units in one piece; *at is the place in the file.  *fresh: it reads as zeroes already. */
int grid_take(struct grid *g, uint64_t nr, uint64_t *at, bool *fresh);
/* Give units back once the tables as they are now are durable.  grid_count came before the change.
 */
int grid_free_later(struct grid *g, uint64_t at, uint64_t nr);
uint64_t grid_end(const struct grid *g); /* in the file, behind the last unit in use */

/* --- for tools; nothing else in flight --- */

/* Move blocks from the end of the file into free places before, at most max_moves.  Commits.  What
 * is behind grid_end() then may be cut off. */
int grid_compact(struct grid *g, uint64_t max_moves);
/* Move what lies in the first units to the end.  Commits.  The driver then puts something else
 * there, and has the space counted anew. */
int grid_clear_front(struct grid *g, uint64_t units);
int grid_empty(struct grid *g); /* every block GRID_NONE; commits */
/* Count and mend entries; space counts up to `end` in the file.  With BLK_FIX_LEAKS it compacts,
 * and the caller cuts off. */
int grid_check(struct grid *g, uint64_t end, struct blk_check *c, struct error *err);
void grid_say(struct blk_check *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
