/* block/image.h - what people do to disk images beyond reading and writing them.
 *
 * For tools (`hv disk`, import, snapshots); a device needs blk.h alone.  Snapshots, bitmaps and the
 * backing file may be changed while other threads read and write: they wait.  For everything else
 * nothing else uses the image meanwhile.  Returns 0 or a negative errno
 * with the sentence in *err; -ENOTSUP when the format has no such thing. */
#pragma once

#include "block/blk.h"

/* --- making one -------------------------------------------------------------------------------
 */

struct blk_kv {
	const char *key, *value;
};

/* An option of a format: for checking, for help (`-o help`), for the manual. */
struct blk_option {
	const char *key;    /* as qemu-img names it */
	const char *value;  /* what it takes: "SIZE", "on|off", "zlib|zstd" */
	const char *preset; /* without it; NULL: nothing */
	const char *help;
};

struct blk_create {
	const char *path;
	uint64_t size; /* may be 0 with a backing file: that one's */
	bool size_from_backing;
	const char *backing, *backing_format; /* as they are to stand in the image; or NULL */
	const struct blk_kv *opt;
	unsigned nr_opts;
	bool overwrite;     /* else an existing file is an error */
	const char *secret; /* passphrase of an encrypted image, or NULL */
	size_t secret_len;
	const struct blk_open_opts *open; /* for looking at the backing file */
	struct blk_made *made;            /* image.c's: what to remove on failure */
};

/* Checks the options against the format's table first.  Nothing is left behind on failure. */
int blk_create(const char *format, const struct blk_create *c, struct error *err);
/* The same, and what to take back when what comes next fails: blk_made_end(made, false) removes the
 * files that were not there before; made is NULL after a failure. */
int blk_create_keep(const char *format, const struct blk_create *c, struct blk_made **made,
		    struct error *err);
void blk_made_end(struct blk_made *made, bool keep); /* NULL is fine */
/* Sets c->size from the backing file, which a user names: it may lie anywhere. */
int blk_create_look(struct blk_create *c, struct error *err);
const struct blk_option *blk_create_options(const char *format); /* ends with key NULL; or NULL */

/* What there is to choose from, in order: i = 0, 1, ... until it returns false. */
struct blk_format_info {
	const char *name, *help;
	bool can_write, can_create, can_pack, can_check, can_resize, can_backing, has_snapshots,
		has_bitmaps;
};
bool blk_format_at(unsigned i, struct blk_format_info *info);

/* Sizes as people write them: "512", "64k", "1.5G", "2T"; powers of 1024.  0 or -EINVAL. */
int blk_parse_size(const char *text, uint64_t *bytes);

/* --- telling about it -------------------------------------------------------------------------
 */

/* Takes what an image tells of itself, as a tree; one call per fact, in order. */
struct blk_sink {
	void (*text)(struct blk_sink *s, const char *key, const char *value);
	void (*number)(struct blk_sink *s, const char *key, uint64_t value);
	void (*flag)(struct blk_sink *s, const char *key, bool value);
	void (*begin)(struct blk_sink *s, const char *key, bool list); /* key NULL inside a list */
	void (*end)(struct blk_sink *s);
};
void blk_details(struct blk *b, struct blk_sink *s);

/* --- checking ---------------------------------------------------------------------------------
 */

enum { BLK_FIX_LEAKS = 1, BLK_FIX_ERRORS = 2 };

struct blk_check {
	unsigned fix; /* in: BLK_FIX_* */
	/* In: told each finding, one line without newline; may be NULL. */
	void (*say)(void *opaque, const char *text);
	void *opaque;

	uint64_t corruptions, leaks;             /* found and still there */
	uint64_t corruptions_fixed, leaks_fixed; /* found and mended */
	uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
	uint64_t image_end; /* first byte behind everything in use */
};
/* b was opened with BLK_CHECKING.  0 also when things are wrong: the counts tell. */
int blk_check(struct blk *b, struct blk_check *c, struct error *err);

/* --- snapshots inside an image ----------------------------------------------------------------
 */

struct blk_snapshot {
	char id[32], name[256];
	uint64_t vm_state_size;
	uint64_t date_s; /* since 1970 */
	uint32_t date_ns;
	uint64_t vm_clock_ns;
	uint64_t disk_size;
};
int blk_snapshot_list(struct blk *b, struct blk_snapshot **list, unsigned *n, struct error *err);
int blk_snapshot_create(struct blk *b, const char *name, struct error *err);
int blk_snapshot_apply(struct blk *b, const char *id_or_name, struct error *err);
int blk_snapshot_delete(struct blk *b, const char *id_or_name, struct error *err);

/* --- dirty bitmaps inside an image ------------------------------------------------------------
 */

struct blk_bitmap {
	char name[1024];
	uint64_t granularity, dirty_bytes;
	bool recording, in_use;
};
int blk_bitmap_list(struct blk *b, struct blk_bitmap **list, unsigned *n, struct error *err);
int blk_bitmap_add(struct blk *b, const char *name, uint64_t granularity, struct error *err);
int blk_bitmap_remove(struct blk *b, const char *name, struct error *err);
int blk_bitmap_clear(struct blk *b, const char *name, struct error *err);
int blk_bitmap_record(struct blk *b, const char *name, bool on, struct error *err);
int blk_bitmap_merge(struct blk *b, const char *into, const char *from, struct error *err);
/* *dirty: whether [off, off+*len) is; shortens *len to the run that shares the answer. */
int blk_bitmap_query(struct blk *b, const char *name, uint64_t off, uint64_t *len, bool *dirty,
		     struct error *err);

/* --- chains -----------------------------------------------------------------------------------
 */

/* Name another backing file (NULL: none) in the image, without looking at either's content. */
int blk_change_backing(struct blk *b, const char *backing, const char *format, struct error *err);
/* Does an image of this format stop fitting its backing file when that is written to?  After both
 * were changed to go together, blk_change_backing makes them fit again. */
bool blk_ties_backing(const struct blk *b);
/* Put another disk under b, which has one, and hand back the old one.  Both must read the same
 * wherever b shows them.  b may be in use; the caller closes what comes back. */
struct blk *blk_swap_backing(struct blk *b, struct blk *backing);
/* Forget all data of this layer: afterwards everything comes from the backing file. */
int blk_make_empty(struct blk *b, struct error *err);
/* Change options of an existing image (qemu-img amend). */
int blk_amend(struct blk *b, const struct blk_kv *opt, unsigned n, struct error *err);
/* The bytes an image of this format would need: for all its space, and for the data there is. */
struct blk_measure {
	uint64_t size, data; /* in: virtual size, bytes that are not zero, in whole clusters */
	uint64_t required, fully_allocated;
};
int blk_measure(const char *format, const struct blk_kv *opt, unsigned n, struct blk_measure *m,
		struct error *err);
