/* guestfs/guestfs.h - the partitions and file systems on a guest's disk, read-only.
 *
 * For looking (`hv recover preview`) and for finding a kernel (`hv recover boot`); ext2 to ext4,
 * FAT, exFAT, NTFS, HFS+, ISO 9660 and UFS by The Sleuth Kit, XFS by libfsxfs.  Those parse what a
 * guest wrote: call this only in a process that has locked itself in (jail/).
 *
 * Offsets and sizes are bytes.  Strings handed out belong to the disk or live during the callback.
 * Errors: 0 or -errno, with the sentence in *err.  One thread at a time. */
#pragma once

#include "base/types.h"

struct blk;
struct error;
struct guestfs;

struct guestfs_part {
	uint64_t start, len;
	unsigned number;     /* as Linux counts; 0: the whole disk, without partitions */
	uint8_t mbr_type;    /* 0: GPT, or no table */
	const char *name;    /* GPT's, or "" */
	const char *content; /* "ext4", "ntfs", "xfs", "lvm2", "swap", "luks", ...; or NULL */
	const char *label;   /* of the file system, or "" */
	bool readable;       /* guestfs_list works on it */
};

struct guestfs_file {
	const char *name;
	bool is_dir, is_link;
	uint64_t size;
	int64_t mtime;
};

/* b is borrowed. */
int guestfs_open(struct guestfs **out, struct blk *b, struct error *err);
void guestfs_close(struct guestfs *g); /* NULL is fine */
unsigned guestfs_parts(struct guestfs *g, const struct guestfs_part **list);

/* The directory `path` of part i, until file() returns non-zero, which is returned; "." and ".."
 * are left out. */
int guestfs_list(struct guestfs *g, unsigned i, const char *path,
		 int (*file)(void *opaque, const struct guestfs_file *f), void *opaque,
		 struct error *err);
/* Symlinks are followed, inside the file system. */
int guestfs_stat(struct guestfs *g, unsigned i, const char *path, struct guestfs_file *f,
		 struct error *err);
/* malloc'd content, with a NUL behind it; files larger than max are -EFBIG. */
int guestfs_read(struct guestfs *g, unsigned i, const char *path, size_t max, char **data,
		 size_t *len, struct error *err);
