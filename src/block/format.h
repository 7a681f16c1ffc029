/* block/format.h - what an image format, or a layer on top of one, provides.
 *
 * Only blk.c calls these, after blk.c checked: [off, off+len) is inside the disk, len > 0, the iov
 * adds up to len, len <= .max_io when that is set, and nothing writes to a read-only disk.  A
 * driver relies on that and checks only what it reads from the image, which is hostile.  Calls on
 * one disk never overlap unless .parallel is set.
 *
 * A driver that stands on other disks (a qcow2 on its file, an overlay on its base) opens them in
 * open() with blk_open(..., BLK_NO_POOL | flags) and keeps them in its priv. */
#pragma once

#include "block/blk.h"

#include <pthread.h>

struct blk_pool;
struct blk_format;

struct blk {
	const struct blk_format *fmt;
	void *priv;           /* the driver's */
	struct blk_info info; /* open() sets size, block_size, can_discard, can_zero */
	unsigned flags;       /* BLK_* as opened */
	struct blk_pool *pool;
	pthread_mutex_t serial; /* held around each driver call unless fmt->parallel */
};

struct blk_format {
	const char *name; /* as typed by users: "qcow2" */
	bool parallel;    /* calls may overlap */
	uint64_t max_io;  /* bytes in one read or write; 0 = any */

	/* How sure are you, from the first bytes of the file?  0 = not ours .. 100 = certain. */
	int (*probe)(const uint8_t *head, size_t len);
	int (*open)(struct blk *b, const char *path, struct error *err);
	void (*close)(struct blk *b);
	int (*readv)(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		     uint64_t off);

	/* From here optional.  NULL: */
	int (*writev)(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off);                               /* the disk is read-only */
	int (*flush)(struct blk *b);                               /* nothing is cached */
	int (*discard)(struct blk *b, uint64_t off, uint64_t len); /* ignored */
	/* -EOPNOTSUPP, at any time, means the same as NULL: zeroes are written. */
	int (*write_zeroes)(struct blk *b, uint64_t off, uint64_t len, bool may_unmap);
	int (*extent)(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what); /* data */
	int (*resize)(struct blk *b, uint64_t size); /* not supported; sets info.size on success */
};

/* Put a disk over a driver whose priv exists already: layers, tests.  The driver's open is not
 * called; its close is, by blk_close, on success only.  info is copied. */
int blk_wrap(struct blk **out, const struct blk_format *fmt, void *priv,
	     const struct blk_info *info, unsigned flags, struct error *err);

extern const struct blk_format blk_raw;

extern const struct blk_format *const blk_formats[]; /* ends with NULL; raw last */
