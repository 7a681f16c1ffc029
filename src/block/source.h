/* block/source.h - where the bytes of an image come from: files, devices, and names with a scheme.
 *
 * open.c asks blk_source_find with the name a user gave (never with one an image gave).  A source
 * makes a disk that behaves as BLK_FILE asks: the exact size, no format.  Returns 0 or a negative
 * errno with the sentence in *err. */
#pragma once

#include "block/blk.h"

struct blk_source {
	const char *scheme; /* "nbd": takes "nbd:..." */
	const char *help;   /* "nbd://HOST[:PORT]/[EXPORT]: a network block device" */
	bool writes;
	int (*open)(struct blk **file, const char *name, unsigned flags,
		    const struct blk_open_opts *opts, struct error *err);
};

/* The sources there are, ends with NULL.  None until a program that links some says so, before it
 * opens anything; the list is borrowed for ever. */
void blk_sources_register(const struct blk_source *const *list);
const struct blk_source *const *blk_sources(void);

/* The source for a name; NULL: a file.  *path is what to open then ("file:a:b" is "a:b").  A name
 * with a scheme nobody takes is refused. */
int blk_source_find(const char *name, const struct blk_source **source, const char **path,
		    struct error *err);
