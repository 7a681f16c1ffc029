/* disk/merge.h - take a layer out of a chain while the disk on top of it is in use.
 *
 * What the layer holds goes into the image below it, the image above gets that one as its backing
 * file, and the layer's file is of no use any more (it is not deleted).  Guests go on reading and
 * writing meanwhile, except for two short moments.  A cut at any moment leaves a chain that reads
 * the same.  Whoever else has an image standing on the one below will see it change: branches must
 * not be merged into.
 *
 * Any thread that is not one of the disk's own; one merge of a chain at a time. */
#pragma once

#include "block/blk.h"
#include "disk/team.h"

/* depth: of the layer, from 1 (the first backing file of top) to the last but one.  opts: how top
 * was opened, or NULL.  0 or a negative errno with the sentence in *err. */
int disk_merge(struct blk *top, unsigned depth, const struct blk_open_opts *opts,
	       const struct disk_job *job, struct error *err);
