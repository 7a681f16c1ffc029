/* disk/compare.h - do two disks hold the same bytes?
 *
 * Maps first: what reads as zeroes in both, and what both take from the same place of the same
 * file, is not read.  Returns 0 also when they differ; errors as error.h. */
#pragma once

#include "block/blk.h"
#include "disk/team.h"

struct disk_compare {
	struct disk_job job;
	bool count_all; /* go on behind the first difference and count */
	bool strict;    /* allocation must be the same too */
	/* out */
	bool same;
	uint64_t first;        /* offset of the first difference */
	bool size_differs;     /* the longer one's rest is compared with zeroes */
	bool map_differs;      /* strict: at .first */
	uint64_t nr_different; /* bytes; count_all only */
};

int disk_compare(struct blk *a, struct blk *b, struct disk_compare *c, struct error *err);
