/* block/format.h - what an image format, or a layer on top of one, provides.
 *
 * Only blk.c and image.c call these, after they checked: [off, off+len) is inside the disk, len >
 * 0, the iov adds up to len, len <= .max_io when that is set, and nothing writes to a read-only
 * disk. A driver relies on that and checks only what it reads from the image, which is hostile.
 * Calls on one disk never overlap unless .parallel is set.  A driver uses no call of blk.h on
 * itself, but in open() and resize().
 *
 * A format (.on_file) finds its bytes in b->file, opened before its open() and closed after its
 * close(): it reads and writes them with the calls of blk.h and never sees a descriptor, so the
 * same driver works on a file, over a network, inside an archive and under a fault injector.  Other
 * files its image names it opens with blk_ref_open, never by itself.  When it has a backing file
 * it puts it in b->backing, which is closed for it. */
#pragma once

#include "block/blk.h"
#include "block/image.h"

#include <pthread.h>

struct blk_pool;
struct blk_format;
struct blk_refs; /* refs.c: where named files may lie */

struct blk {
	const struct blk_format *fmt;
	void *priv;           /* the driver's */
	struct blk_info info; /* open() sets size, block_size, cluster, can_discard, can_zero */
	unsigned flags;       /* BLK_* as opened */
	struct blk *file;     /* .on_file: the bytes it lives in */
	struct blk *backing;  /* the driver's open() may set it by blk_ref_open */
	/* As the image has them, also with BLK_NO_BACKING; malloc'd by the driver, freed for it. */
	char *backing_name, *backing_format;
	char *path;
	struct blk_refs *refs;
	unsigned depth; /* 0: opened by a user; else how many images led here */
	/* Only during open(): how the user wants it (never NULL), which image named this one. */
	const struct blk_open_opts *opts;
	struct blk *opener;
	int fd;            /* for raw: a file that is open already, or -1; taken */
	uint64_t dev, ino; /* of the file, to see cycles; 0 when it is none of this host */
	struct blk_pool *pool;
	/* Held around each driver call: shared where calls may overlap, alone where not and by what
	 * changes the whole image (snapshots, the backing file).  Guards `backing`. */
	pthread_rwlock_t use;
	bool shared_use; /* calls overlap, and there is something to guard against */
};

struct blk_format {
	const char *name; /* as typed by users: "qcow2" */
	const char *help; /* one line for lists */
	bool parallel;    /* calls may overlap */
	bool on_file;     /* lives in b->file */
	bool packs_in_order;
	bool ties_parent; /* an image knows which content of its parent it fits: when that changes,
			   * and the image with it, change_backing says so */
	uint64_t max_io;  /* bytes in one read or write; 0 = any */

	/* How sure are you, from the first bytes of the file?  0 = not ours .. 100 = certain. */
	int (*probe)(const uint8_t *head, size_t len);
	/* For signatures at the end: the last `len` (at most 512) bytes.  Optional. */
	int (*probe_tail)(const uint8_t *tail, size_t len);
	int (*open)(struct blk *b, const char *path, struct error *err);
	void (*close)(struct blk *b);
	int (*readv)(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		     uint64_t off);

	/* From here optional.  NULL: */
	int (*writev)(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off); /* the disk is read-only */
	/* Must flush b->file where it matters.  NULL: b->file is flushed, nothing else is cached.
	 */
	int (*flush)(struct blk *b);
	int (*discard)(struct blk *b, uint64_t off, uint64_t len); /* ignored */
	/* -EOPNOTSUPP, at any time, means the same as NULL: zeroes are written. */
	int (*write_zeroes)(struct blk *b, uint64_t off, uint64_t len, bool may_unmap);
	/* One of the two; map with m->len, what, compressed, and depth, host, host_off of this
	 * layer (a run of another layer: blk_backing_map).  None: data. */
	int (*extent)(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what);
	int (*map)(struct blk *b, uint64_t off, struct blk_map *m);
	/* not supported; calls blk_set_size on success */
	int (*resize)(struct blk *b, uint64_t size);

	/* image.h.  NULL: -ENOTSUP. */
	const struct blk_option *create_options; /* ends with key NULL */
	int (*create)(const struct blk_create *c, struct error *err);
	void (*details)(struct blk *b, struct blk_sink *s);
	int (*check)(struct blk *b, struct blk_check *c, struct error *err);
	int (*amend)(struct blk *b, const struct blk_kv *opt, unsigned n, struct error *err);
	int (*measure)(const struct blk_kv *opt, unsigned n, struct blk_measure *m,
		       struct error *err);
	int (*change_backing)(struct blk *b, const char *backing, const char *format,
			      struct error *err);
	int (*make_empty)(struct blk *b, struct error *err);
	size_t (*pack_bound)(const struct blk *b); /* 0: this image takes none; NULL: a cluster */
	int (*pack)(struct blk *b, const void *data, size_t len, void *out, size_t cap,
		    size_t *out_len);
	int (*write_packed)(struct blk *b, const void *packed, size_t packed_len, size_t len,
			    uint64_t off);
	const struct blk_snapshot_ops *snapshots;
	const struct blk_bitmap_ops *bitmaps;
};

struct blk_snapshot_ops {
	int (*list)(struct blk *b, struct blk_snapshot **list, unsigned *n, struct error *err);
	int (*create)(struct blk *b, const char *name, struct error *err);
	int (*apply)(struct blk *b, const char *id_or_name, struct error *err);
	int (*del)(struct blk *b, const char *id_or_name, struct error *err);
};

struct blk_bitmap_ops {
	int (*list)(struct blk *b, struct blk_bitmap **list, unsigned *n, struct error *err);
	int (*add)(struct blk *b, const char *name, uint64_t granularity, struct error *err);
	int (*remove)(struct blk *b, const char *name, struct error *err);
	int (*clear)(struct blk *b, const char *name, struct error *err);
	int (*record)(struct blk *b, const char *name, bool on, struct error *err);
	int (*merge)(struct blk *b, const char *into, const char *from, struct error *err);
	int (*query)(struct blk *b, const char *name, uint64_t off, uint64_t *len, bool *dirty,
		     struct error *err);
};

/* --- for drivers ------------------------------------------------------------------------------
 */

/* Open a file that the image `b` names, by the rules for such names (docs/formats/references.md):
 * relative names start at the image's directory, the file must lie there, below, or under an
 * allowed directory, links do not lead out; no schemes, no probing of raw.  format NULL: the bytes
 * of a file (BLK_FILE).  "auto": probed, never raw.  Depth is bounded and cycles are refused. */
int blk_ref_open(struct blk *b, const char *name, const char *format, unsigned flags,
		 struct blk **out, struct error *err);
/* The directories blk_ref_open would search for a bare file name, for formats that know their
 * parent by an identifier: calls try() on each regular file of the image's directory and the
 * allowed ones (not below) until it returns true; -ENOENT when it never does.  path is absolute and
 * is what blk_ref_open takes. */
int blk_ref_search(struct blk *b, bool (*try)(void *opaque, const char *path), void *opaque,
		   struct error *err);

/* The new virtual size; for a driver that resizes, or a file that grows. */
void blk_set_size(struct blk *b, uint64_t size);
/* The passphrase of an encrypted image, during open(): its length, or -EACCES with a sentence. */
int blk_secret(struct blk *b, char *buf, size_t cap, struct error *err);

/* Read from b->backing; behind its end, or without one, zeroes. */
int blk_backing_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off);
/* What b->backing (or nobody) holds of [off, off+m->len); depth is counted from b. */
int blk_backing_map(struct blk *b, uint64_t off, struct blk_map *m);

/* Create the file of a new image (fails when it exists, unless c->overwrite) and open it with
 * BLK_FILE; blk_create removes it when create() fails. */
int blk_create_file(const struct blk_create *c, const char *path, struct blk **file,
		    struct error *err);
const char *blk_kv_get(const struct blk_kv *kv, unsigned n, const char *key); /* or NULL */
/* Values as users write them: "64k", "2M", "on"; the sentence names the key. */
int blk_kv_size(const struct blk_kv *kv, unsigned n, const char *key, uint64_t preset,
		uint64_t *value, struct error *err);
int blk_kv_bool(const struct blk_kv *kv, unsigned n, const char *key, bool preset, bool *value,
		struct error *err);

int blk_kv_number(const struct blk_kv *kv, unsigned n, const char *key, uint64_t preset,
		  uint64_t *value, struct error *err);

/* Put a disk over a driver whose priv exists already: layers, tests.  The driver's open is not
 * called; its close is, by blk_close, on success only.  info is copied. */
int blk_wrap(struct blk **out, const struct blk_format *fmt, void *priv,
	     const struct blk_info *info, unsigned flags, struct error *err);

extern const struct blk_format blk_qcow2;
extern const struct blk_format blk_vdi;
extern const struct blk_format blk_vhd;
extern const struct blk_format blk_vhdx;
extern const struct blk_format blk_qed, blk_parallels, blk_dmg, blk_cloop, blk_bochs;
extern const struct blk_format blk_raw;
extern const struct blk_format blk_vmdk;
extern const struct blk_format blk_raw_over; /* raw on a file that is not one of this host */

/* raw.c: the descriptor of a file of this host, or -1. */
int blk_raw_fd(const struct blk *b);

extern const struct blk_format *const blk_formats[]; /* ends with NULL; raw last */
