/* disk/merge.c - see merge.h.
 *
 *   above -> layer -> below -> ...
 *
 * 1. Another, writable opening of `below` goes under `layer`, so that who reads through the chain
 *    sees what we write there in order.
 * 2. The layer's data are written into it, and flushed.
 * 3. The name in the header of `above` becomes that of `below`, and is flushed.
 * 4. In this process too `above` gets `below`, read-only again, and what it had is closed. */
#include "disk/merge.h"

#include "base/error.h"
#include "block/image.h"
#include "disk/chain.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct merge {
	struct blk *above, *layer, *below; /* of the running chain */
	bool above_is_top;
	const struct blk_open_opts *opts;
	const struct disk_job *job;
	struct error *err;
};

static int find(struct merge *m, struct blk *top, unsigned depth)
{
	m->above_is_top = depth == 1;
	m->above = depth ? top : NULL;
	while (m->above && --depth)
		m->above = blk_backing(m->above);
	m->layer = m->above ? blk_backing(m->above) : NULL;
	m->below = m->layer ? blk_backing(m->layer) : NULL;
	return m->below
		       ? 0
		       : err_set(m->err, EINVAL, "'%s' has no such layer with another one below it",
				 blk_path(top));
}

static int open_again(const struct merge *m, const struct blk *b, unsigned flags, struct blk **out)
{
	return blk_open_with(out, blk_path(b), blk_info(b)->format, flags | BLK_NO_POOL, m->opts,
			     m->err);
}

static int pour(const struct merge *m, struct blk *into)
{
	struct blk *alone;
	int r = open_again(m, m->layer, BLK_READONLY | BLK_NO_BACKING | BLK_NO_LOCK, &alone);

	if (r < 0)
		return r;
	r = disk_commit(&alone, 1, into, m->job, m->err);
	blk_close(alone);
	return r;
}

/* A name that means the same from another directory. */
static int name_below(const struct merge *m, char *name, size_t cap)
{
	char path[PATH_MAX];
	const char *format, *old = blk_backing_name(m->layer, &format);
	const char *a = strrchr(blk_path(m->above), '/'), *l = strrchr(blk_path(m->layer), '/');
	size_t na = a ? (size_t)(a - blk_path(m->above)) : 0;
	size_t nl = l ? (size_t)(l - blk_path(m->layer)) : 0;

	if (old && na == nl && !strncmp(blk_path(m->above), blk_path(m->layer), na)) {
		snprintf(name, cap, "%s", old);
		return 0;
	}
	if (!realpath(blk_path(m->below), path))
		return err_errno(m->err, errno, "'%s'", blk_path(m->below));
	snprintf(name, cap, "%s", path);
	return 0;
}

static int rename_in(const struct merge *m, struct blk *above, const char *name)
{
	int r = blk_change_backing(above, name, blk_info(m->below)->format, m->err);

	if (r == 0) {
		r = blk_flush(above);
		if (r < 0)
			err_errno(m->err, -r, "cannot write '%s'", blk_path(above));
	}
	return r;
}

static int rename_backing(const struct merge *m)
{
	char name[PATH_MAX];
	struct blk *above;
	int r = name_below(m, name, sizeof(name));

	if (r < 0 || m->above_is_top)
		return r < 0 ? r : rename_in(m, m->above, name);
	r = open_again(m, m->above, BLK_NO_BACKING | BLK_NO_LOCK, &above);
	if (r < 0)
		return r;
	r = rename_in(m, above, name);
	blk_close(above);
	return r;
}

/* The chain as it will be found from now on. */
static int reconnect(const struct merge *m)
{
	struct blk *below;
	int r = open_again(m, m->below, BLK_READONLY, &below);

	if (r == 0)
		blk_close(blk_swap_backing(m->above, below));
	return r;
}

int disk_merge(struct blk *top, unsigned depth, const struct blk_open_opts *opts,
	       const struct disk_job *job, struct error *err)
{
	struct merge m = {.opts = opts, .job = job, .err = err};
	struct blk *writable = NULL, *old;
	int r = find(&m, top, depth);

	if (r == 0)
		r = open_again(&m, m.below, BLK_NO_LOCK, &writable);
	if (r < 0)
		return r;
	/* The old opening stays until the end: it holds the lock, and m.below's name. */
	old = blk_swap_backing(m.layer, writable);
	r = pour(&m, writable);
	if (r == 0)
		r = rename_backing(&m);
	if (r == 0)
		r = reconnect(&m);
	/* After a failure the layer stays, over the writable opening: what was poured shows there
	 * in order. */
	blk_close(old);
	return r;
}
