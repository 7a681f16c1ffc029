/* disk/cursor.h - walks a disk by its map and hands it out in pieces: data to read, runs that read
 * as zeroes and need no reading.
 *
 * Not locked: whoever shares one serialises disk_cursor_next().  Pieces come in ascending order
 * without gaps. */
#pragma once

#include "block/blk.h"

enum disk_piece_kind {
	DISK_DATA,
	DISK_ZERO,
	DISK_BELOW, /* only with top_only: the backing file has it */
};

struct disk_piece {
	uint64_t off, len;
	enum disk_piece_kind kind;
	struct blk *host; /* the file that holds the whole piece in one run, or NULL */
	uint64_t host_off;
};

struct disk_cursor {
	/* set by the owner */
	struct blk *blk;
	uint64_t off, end; /* end <= size */
	uint64_t chunk;    /* data pieces end at its multiples */
	uint64_t round;    /* data pieces are widened to its multiples; divides chunk */
	bool everything;   /* all is data */
	bool top_only;     /* see DISK_BELOW */
	/* the run at off, as blk_map told it */
	uint64_t run_end;
	enum disk_piece_kind kind;
	struct blk *host;
	uint64_t host_off;
};

/* 1: *p is the next piece, 0: the end, or -errno from the map. */
int disk_cursor_next(struct disk_cursor *c, struct disk_piece *p);

/* The bytes of data of a whole disk, as a cursor like this one would give them. */
int disk_cursor_count(const struct disk_cursor *like, uint64_t *data);
