/* block/filter_rescue.h - a disk that cannot be read everywhere, or not twice: unreadable sectors
 * read as zeroes and are remembered, what was read is kept, and both outlive the process.
 *
 * The filter takes the disk below, which belongs to it from then on, also on failure, and is
 * read-only always.  Offsets and lengths are bytes.  Any thread.  Errors are negative errno.
 *
 * A failed read is done again in halves, down to the sector; what still fails is filled with zeroes
 * and marked in the map.  Only errors of the medium count (EIO, ENODATA, EILSEQ, EREMOTEIO): a
 * lost connection or a device that went away (ENOTCONN, ETIMEDOUT, ENXIO, ENOMEM, ...) is the
 * reader's error, and marks nothing.
 *
 * With a cache, what was read goes to a local file, sparse and as large as the disk, and is never
 * read from below again.  The map says '+' for nothing that was not on the medium of the cache
 * before: after a crash some of it is fetched again, but no byte is wrong.  Map and cache are those
 * of `ddrescue DISK CACHE MAP`, in both directions. */
#pragma once

#include "block/blk.h"
#include "block/rescue_map.h"

struct blk_rescue_opts {
	/* NULL: findings live as long as the disk.  Loaded when it is there, saved every few
	 * seconds that something changed, and by blk_rescue_save and blk_close. */
	const char *map_path;
	const char *cache_path; /* NULL: none.  Needs map_path. */
	/* The disk below is the image a ddrescue made, map_path its map: what is not '+' there is
	 * unreadable and is not read.  Nothing is written.  No cache_path. */
	bool below_is_copy;
	const char *source; /* what the map is of, kept in it and compared; NULL: not said */
	unsigned retries;   /* how often a sector that failed is read again at once */
	/* Read again what the map calls bad.  What it calls not trimmed or not scraped, after an
	 * earlier give_up say, is always looked at again, once. */
	bool retry_bad;
	/* After so many bad sectors in a row the rest of the request is zeroes too and marked '/',
	 * for blk_rescue_fetch to look at later.  0: every sector is tried. */
	unsigned give_up;
	uint32_t sector; /* 0: that of the disk below */
	/* With a cache: reads from below are made of whole pieces of so many bytes (a power of
	 * two), which saves round trips.  0: 256 KiB; without a cache none. */
	uint32_t piece;
};

/* opts may be NULL: bad sectors as zeroes, nothing kept. */
int blk_rescue(struct blk **out, struct blk *below, const struct blk_rescue_opts *opts,
	       unsigned flags, struct error *err);

/* These take a disk blk_rescue made. */

/* Shortens *len to the run that shares one answer: is [off, off+*len) known as unreadable?  What
 * nobody has read yet is not. */
bool blk_rescue_is_bad(struct blk *b, uint64_t off, uint64_t *len);
/* Any of it? */
bool blk_rescue_has_bad(struct blk *b, uint64_t off, uint64_t len);
/* Is it here: in the cache, or (without one) read before without an error? */
bool blk_rescue_is_kept(struct blk *b, uint64_t off, uint64_t *len);

struct blk_rescue_counts {
	uint64_t finished, bad, skipped, non_tried; /* bytes; skipped: '*' and '/' */
	uint64_t read_below;                        /* bytes read from below since the opening */
};
void blk_rescue_counts(struct blk *b, struct blk_rescue_counts *counts);

/* Reads what of [off, off+len) is not finished, so that it is in the cache: first what nobody
 * tried, then what was given up, sector by sector where needed, then with retry_bad what is bad.
 * progress (may be NULL) is called with the bytes done in this way and ends the work by returning
 * false
 * (-EINTR).  Bad sectors are no error. */
int blk_rescue_fetch(struct blk *b, uint64_t off, uint64_t len, bool retry_bad,
		     bool (*progress)(void *opaque, uint64_t done), void *opaque,
		     struct error *err);
/* Cache, then map, to the medium. */
int blk_rescue_save(struct blk *b, struct error *err);
