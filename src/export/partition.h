/* export/partition.h - the partitions of a disk: GPT (UEFI 2.10 section 5.3) and MBR with its chain
 * of extended partitions.
 *
 * The tables are the guest's and may say anything: what reaches outside the disk is left out.
 * One thread; reads the disk, changes nothing. */
#pragma once

#include "base/types.h"

struct blk;

enum { PARTITIONS_MAX = 128 };

struct partition {
	unsigned number;     /* as Linux counts: 1 to 4 primary, 5.. logical; GPT: the entry */
	uint64_t start, len; /* bytes */
	uint8_t mbr_type;    /* 0: GPT */
	char name[37];       /* GPT, what is ASCII of it */
};

/* How many there are; 0 also without any table, -errno when the disk cannot be read. */
int partitions_read(struct blk *b, struct partition list[PARTITIONS_MAX]);
