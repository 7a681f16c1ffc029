/* block/internal.h - what the parts of the waist (blk.c, open.c, refs.c, image.c) share.
 *
 * Not for formats, which have format.h, nor for callers.  Errors as in blk.h. */
#pragma once

#include "block/format.h"

/* --- open.c ---------------------------------------------------------------------------------- */

struct blk_where {
	const char *path;
	int fd;                       /* open already (taken, also on failure), or -1 */
	struct blk *opener;           /* the image that names it, or NULL */
	const struct blk_refs *share; /* the opener's rules */
};

int blk_open_at(struct blk **out, const struct blk_where *where, const char *format, unsigned flags,
		const struct blk_open_opts *opts, struct error *err);
/* As blk_open_on, for an image named by another. */
int blk_open_on_at(struct blk **out, struct blk *file, const struct blk_where *where,
		   const char *format, unsigned flags, const struct blk_open_opts *opts,
		   struct error *err);
const struct blk_format *blk_format_find(const char *name);
const struct blk_format *blk_format_need(const char *name, struct error *err);

/* --- refs.c ---------------------------------------------------------------------------------- */

struct blk_refs *blk_refs_new(const struct blk_open_opts *opts);
struct blk_refs *blk_refs_get(struct blk_refs *refs);
void blk_refs_put(struct blk_refs *refs);

/* --- lock.c ---------------------------------------------------------------------------------- */

/* -EBUSY: somebody else writes it, or (when not readonly) uses it; another error: cannot tell. */
int blk_lock_fd(int fd, bool readonly);

/* --- raw.c, raw_create.c --------------------------------------------------------------------- */

/* Make and lock a file of this host, empty; a device is taken as it is.  *made: it was not there
 * before. */
int blk_raw_create_fd(const char *path, bool overwrite, int *fd, bool *made, struct error *err);
/* As blk_copy_range, checked. */
int blk_raw_copy(struct blk *from, uint64_t from_off, struct blk *to, uint64_t to_off, uint64_t len,
		 bool share);
extern const struct blk_option blk_raw_create_options[];
int blk_raw_create(const struct blk_create *c, struct error *err);
int blk_raw_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err);

/* --- blk.c ----------------------------------------------------------------------------------- */

int blk_run_request(struct blk_req *r);
