/* disk/convert.h - copy the content of one disk into another, on all cores.
 *
 * The map of the source comes first: what it does not hold is never read.  Threads take pieces of
 * data, look for zeroes, compress when asked, and write each at its place, in any order unless the
 * format of the target needs one.  Memory: a few MiB per thread.
 *
 * The target is as large as the source, or larger.  Nothing else uses either meanwhile.  Returns 0
 * or a negative errno with the sentence in *err; -ECANCELED after a cancel. */
#pragma once

#include "block/blk.h"
#include "disk/team.h"

struct disk_manifest;

struct disk_convert {
	struct disk_job job;
	uint64_t src_off, len, dst_off; /* len 0: all from src_off on */
	bool compress;
	/* Runs of zeroes this long are not written as data (qemu-img -S); 0: everything is, and
	 * the target gets all its space. */
	uint64_t sparse;
	bool target_is_zero; /* what is not written reads as zeroes; else it is looked at */
	bool top_only;   /* leave to the target's backing file what the source leaves to its own */
	bool copy_range; /* let the kernel copy, without looking for zeroes (qemu-img -C) */
	/* Keep a journal here, and go on from where it ends when it is of this job, which `key`
	 * describes in one line.  Not for targets written in order.  NULL: none. */
	const char *journal, *key;
	struct disk_manifest *manifest; /* gets the hashes of what was read; NULL: none */
	uint64_t skipped;               /* out: bytes an earlier run had done */
};

int disk_convert(struct blk *src, struct blk *dst, struct disk_convert *c, struct error *err);
