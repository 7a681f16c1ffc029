/* block/filter.h - layers that stand on one disk and look like it.
 *
 * Each takes the disk below, which belongs to the new one from then on, also on failure.  Errors
 * and threads as in blk.h. */
#pragma once

#include "block/blk.h"

/* --- overlay: writes go to a temporary file and are forgotten in the end ------------------------
 */

int blk_overlay(struct blk **out, struct blk *below, unsigned flags, struct error *err);

/* --- throttle: no more than so much a second -----------------------------------------------------
 * A request waits on its own thread; others of other disks do not notice. */

struct blk_rate {
	uint64_t per_s; /* bytes or requests; 0: no limit */
	uint64_t burst; /* may be used at once after a rest; 0: a tenth of a second's worth */
};
struct blk_limits {
	struct blk_rate bytes, bytes_read, bytes_written;
	struct blk_rate requests, reads, writes;
};
int blk_throttle(struct blk **out, struct blk *below, const struct blk_limits *limits,
		 unsigned flags, struct error *err);
void blk_throttle_set(struct blk *b, const struct blk_limits *limits); /* while it runs */

/* --- dirty: which parts have been written --------------------------------------------------------
 */

/* granularity: bytes, a power of two from 512 up. */
int blk_track_dirty(struct blk **out, struct blk *below, uint32_t granularity, unsigned flags,
		    struct error *err);
/* Take the next dirty run from *off on, at most max bytes: it counts as clean from now.  False:
 * there is none.  Ask before the run is read: what is written while it is read is dirty again. */
bool blk_dirty_take(struct blk *b, uint64_t *off, uint64_t max, uint64_t *len);
void blk_dirty_mark(struct blk *b, uint64_t off, uint64_t len);
uint64_t blk_dirty_bytes(struct blk *b);

/* --- faults: for tests, of our code and of guests ------------------------------------------------
 */

enum { BLK_FAULT_READ = 1, BLK_FAULT_WRITE = 2, BLK_FAULT_FLUSH = 4, BLK_FAULT_DISCARD = 8 };

struct blk_fault {
	unsigned ops;      /* BLK_FAULT_*: which requests count */
	uint64_t first;    /* the n-th of them is the first that is hit, from 1 */
	uint64_t count;    /* so many are; 0: all that follow */
	uint64_t off, len; /* only those that touch this range; len 0: anywhere */
	int error;         /* what they end with, an errno; 0: they only take longer */
	uint64_t delay_ns;
	/* From the first hit on nothing reaches the disk below any more: the power is off.  Reads
	 * and writes fail with EIO. */
	bool power_off;
};
int blk_inject(struct blk **out, struct blk *below, const struct blk_fault *faults, unsigned n,
	       unsigned flags, struct error *err);

/* --- verify: two disks that must be the same -----------------------------------------------------
 */

/* Writes go to both; a read that differs is an EIO and a line in the log. */
int blk_verify(struct blk **out, struct blk *below, struct blk *twin, unsigned flags,
	       struct error *err);
