/* guestfs/internal.h - what a reader of a kind of file system provides to guestfs.c. */
#pragma once

#include "guestfs/guestfs.h"

struct guestfs_reader {
	/* -EINVAL: not of this kind.  *content: its name, static. */
	int (*open)(void **fs, struct blk *b, uint64_t start, uint64_t len, const char **content);
	void (*close)(void *fs);
	int (*list)(void *fs, const char *path,
		    int (*file)(void *opaque, const struct guestfs_file *f), void *opaque);
	/* Of the last part of path no link is followed; is_link tells. */
	int (*stat)(void *fs, const char *path, struct guestfs_file *f);
	int (*read)(void *fs, const char *path, char *buf, size_t len); /* from 0 on; exactly len */
	int (*link)(void *fs, const char *path, char *buf, size_t cap); /* its target, with NUL */
};

extern const struct guestfs_reader guestfs_tsk, guestfs_xfs;
