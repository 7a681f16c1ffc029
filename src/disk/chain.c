/* disk/chain.c - see chain.h. */
#include "disk/chain.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { STEP = 2 * MiB, GRAIN = 64 * KiB };

struct walk {
	struct disk_team team; /* for progress and cancelling */
	uint8_t *buf, *other;
	struct error *err;
};

static int walk_begin(struct walk *w, const struct disk_job *job, uint64_t total, struct error *err)
{
	w->err = err;
	w->buf = malloc(STEP);
	w->other = malloc(STEP);
	if (!w->buf || !w->other) {
		free(w->buf);
		free(w->other);
		return err_errno(err, ENOMEM, "disk chain");
	}
	disk_team_init(&w->team, job, total);
	return 0;
}

static int walk_end(struct walk *w, int r)
{
	disk_team_fini(&w->team);
	free(w->buf);
	free(w->other);
	return r;
}

static int step_done(struct walk *w, uint64_t len)
{
	disk_team_advance(&w->team, len);
	return disk_team_stopped(&w->team) ? err_set(w->err, ECANCELED, "cancelled") : 0;
}

static int failed(struct walk *w, int r, const char *what, const struct blk *b)
{
	return err_errno(w->err, -r, "cannot %s '%s'", what, blk_path(b));
}

/* Nobody in this layer holds it: a lower one is asked. */
static bool is_absent(const struct blk_map *m)
{
	return m->what == BLK_EXT_HOLE && !m->host;
}

/* --- commit -------------------------------------------------------------------------------------
 */

/* Which layer answers at off, and how far that holds; NULL: none of them. */
static int find_layer(struct walk *w, struct blk *const *layer, unsigned n, uint64_t off,
		      struct blk **found, struct blk_map *m)
{
	uint64_t len = m->len;

	*found = NULL;
	for (unsigned i = 0; i < n; i++) {
		uint64_t size = blk_size(layer[i]);
		int r;

		*m = (struct blk_map){.len = len};
		if (off >= size) { /* behind the end of a lower layer: zeroes */
			m->what = BLK_EXT_ZERO;
			*found = layer[0];
			return 0;
		}
		m->len = MIN(len, size - off);
		r = blk_map(layer[i], off, m);
		if (r < 0)
			return failed(w, r, "read the map of", layer[i]);
		if (!is_absent(m)) {
			*found = layer[i];
			return 0;
		}
		len = m->len;
	}
	return 0;
}

static int commit_data(struct walk *w, struct blk *from, struct blk *base, uint64_t off,
		       uint64_t len)
{
	int r = 0;

	for (uint64_t step; len && !r; off += step, len -= step) {
		step = MIN(len, STEP);
		r = blk_read(from, w->buf, step, off);
		if (r < 0)
			return failed(w, r, "read", from);
		r = blk_write(base, w->buf, step, off);
		if (r < 0)
			return failed(w, r, "write", base);
		r = step_done(w, step);
	}
	return r;
}

static int commit_zeroes(struct walk *w, struct blk *base, uint64_t off, uint64_t len)
{
	int r = blk_write_zeroes(base, off, len, true);

	return r < 0 ? failed(w, r, "write", base) : step_done(w, len);
}

static int commit_all(struct walk *w, struct blk *const *layer, unsigned n, struct blk *base,
		      uint64_t size)
{
	struct blk *from;
	int r = 0;

	for (uint64_t off = 0; off < size && !r;) {
		struct blk_map m = {.len = size - off};

		r = find_layer(w, layer, n, off, &from, &m);
		if (r < 0)
			break;
		if (!from)
			r = step_done(w, m.len);
		else if (m.what == BLK_EXT_DATA)
			r = commit_data(w, from, base, off, m.len);
		else
			r = commit_zeroes(w, base, off, m.len);
		off += m.len;
	}
	return r;
}

static int fit_base(struct blk *base, uint64_t size, struct error *err)
{
	int r = blk_size(base) < size ? blk_resize(base, size) : 0;

	return r < 0 ? err_errno(
			       err, -r,
			       "'%s' is smaller than what is to be committed to it and cannot grow",
			       blk_path(base))
		     : 0;
}

int disk_commit(struct blk *const *layer, unsigned n, struct blk *base, const struct disk_job *job,
		struct error *err)
{
	uint64_t size = blk_size(layer[0]);
	struct walk w;
	int r = fit_base(base, size, err);

	if (r == 0)
		r = walk_begin(&w, job, size, err);
	if (r < 0)
		return r;
	r = commit_all(&w, layer, n, base, size);
	if (r == 0) {
		r = blk_flush(base);
		if (r < 0)
			r = failed(&w, r, "flush", base);
	}
	return walk_end(&w, r);
}

/* --- rebase -------------------------------------------------------------------------------------
 */

/* Behind the end, and without a disk, zeroes. */
static int read_or_zero(struct walk *w, struct blk *b, uint8_t *buf, uint64_t len, uint64_t off)
{
	uint64_t size = b ? blk_size(b) : 0;
	uint64_t have = off < size ? MIN(len, size - off) : 0;
	int r = have ? blk_read(b, buf, have, off) : 0;

	memset(buf + have, 0, len - have);
	return r < 0 ? failed(w, r, "read", b) : 0;
}

/* Keep in `top` what would read otherwise over the new backing file. */
static int keep_differences(struct walk *w, struct blk *top, struct blk *below, uint64_t off,
			    uint64_t len)
{
	int r = read_or_zero(w, blk_backing(top), w->buf, len, off);

	if (r == 0)
		r = read_or_zero(w, below, w->other, len, off);
	for (uint64_t at = 0, step; at < len && r == 0; at += step) {
		step = MIN(len - at, GRAIN - (off + at) % GRAIN);
		if (!memcmp(w->buf + at, w->other + at, step))
			continue;
		r = blk_write(top, w->buf + at, step, off + at);
		if (r < 0)
			r = failed(w, r, "write", top);
	}
	return r;
}

static int rebase_all(struct walk *w, struct blk *top, struct blk *below)
{
	uint64_t size = blk_size(top);
	int r = 0;

	for (uint64_t off = 0; off < size && !r;) {
		struct blk_map m = {.len = MIN(size - off, STEP)};

		r = blk_map(top, off, &m);
		if (r < 0)
			return failed(w, r, "read the map of", top);
		if (m.depth > 0 || is_absent(&m))
			r = keep_differences(w, top, below, off, m.len);
		off += m.len;
		if (r == 0)
			r = step_done(w, m.len);
	}
	return r;
}

int disk_rebase(struct blk *top, struct blk *below, const struct disk_job *job, struct error *err)
{
	struct walk w;
	int r = walk_begin(&w, job, blk_size(top), err);

	if (r < 0)
		return r;
	r = rebase_all(&w, top, below);
	if (r == 0) {
		r = blk_flush(top);
		if (r < 0)
			r = failed(&w, r, "flush", top);
	}
	return walk_end(&w, r);
}
