/* source/spool.h - bytes that can only be read from front to back, made into a disk that can be
 * read anywhere: they go to a temporary file without a name, which is gone with the disk.
 *
 * The file lies in $TMPDIR, else in /var/tmp; runs of zeroes take no space there.  One thread until
 * spool_finish. */
#pragma once

#include "base/types.h"

struct blk;
struct error;
struct spool;

int spool_create(struct spool **out, struct error *err);
int spool_append(struct spool *s, const void *data, size_t len, struct error *err);
/* The disk, read-only, of exactly the bytes appended.  Ends the spool either way. */
int spool_finish(struct spool *s, unsigned flags, struct blk **out, struct error *err);
void spool_destroy(struct spool *s); /* instead of finish; NULL is fine */
