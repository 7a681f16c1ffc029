/* disk/chain.h - moving data up and down a chain of images: commit and rebase.
 *
 * A cut at any moment leaves images whose content, read through the chain, is what it was: data is
 * on disk at its new place before anything at the old one goes.  Nothing else uses the images
 * meanwhile.  Returns 0 or a negative errno with the sentence in *err; -ECANCELED after a cancel.
 */
#pragma once

#include "block/blk.h"
#include "disk/team.h"

enum { DISK_CHAIN_MAX = 256 };

/* Write what the layers hold into `base`, so that it reads as the topmost one did.  layer[0] is the
 * topmost, each opened by itself (BLK_NO_BACKING); base is writable, and grows when it is shorter.
 * The layers are not changed. */
int disk_commit(struct blk *const *layer, unsigned n, struct blk *base, const struct disk_job *job,
		struct error *err);

/* Give `top` (writable, opened with its chain) what it needs to read the same over `below` (NULL:
 * over nothing) as over its present backing file.  The name of the backing file is then the
 * caller's to change. */
int disk_rebase(struct blk *top, struct blk *below, const struct disk_job *job, struct error *err);
