/* block/qcow2/cache.c - pieces of L2 tables and refcount blocks in memory.
 *
 * A slice is 4 KiB (or a cluster, when that is less) rather than a table, so that a scattered
 * change of a disk with large clusters writes 4 KiB and not 2 MiB.  A slice that was changed stays
 * until commit.c wrote it: only there the order of writes is known.  Dirty slices may push the
 * cache over its bound for the length of one request; q_commit_if_full brings it back. */
#include "block/qcow2/qcow2.h"

#include <stdlib.h>

static struct q_slice **bucket(const struct q_cache *c, uint64_t host)
{
	uint64_t h = host / c->slice * 0x9e3779b97f4a7c15ull;

	return &c->hash[h >> (64 - c->hash_bits)];
}

int q_cache_init(struct q_cache *c, struct blk *file, uint32_t slice, uint64_t max_bytes)
{
	c->file = file;
	c->slice = slice;
	c->max = (unsigned)(max_bytes / slice);
	c->hash_bits = 6;
	while ((1u << c->hash_bits) < c->max)
		c->hash_bits++;
	c->hash = calloc((size_t)1 << c->hash_bits, sizeof(*c->hash));
	return c->hash ? 0 : -ENOMEM;
}

/* --- in order of use ---------------------------------------------------------------------------
 */

static void unlink_used(struct q_cache *c, struct q_slice *s)
{
	*(s->newer ? &s->newer->older : &c->newest) = s->older;
	*(s->older ? &s->older->newer : &c->oldest) = s->newer;
}

static void link_newest(struct q_cache *c, struct q_slice *s)
{
	s->newer = NULL;
	s->older = c->newest;
	*(c->newest ? &c->newest->newer : &c->oldest) = s;
	c->newest = s;
}

static struct q_slice *find(const struct q_cache *c, uint64_t host)
{
	struct q_slice *s = *bucket(c, host);

	while (s && s->host != host)
		s = s->hash_next;
	return s;
}

static void unlink_hash(struct q_cache *c, struct q_slice *s)
{
	struct q_slice **p = bucket(c, s->host);

	while (*p != s)
		p = &(*p)->hash_next;
	*p = s->hash_next;
}

static void link_hash(struct q_cache *c, struct q_slice *s)
{
	struct q_slice **p = bucket(c, s->host);

	s->hash_next = *p;
	*p = s;
}

static void drop(struct q_cache *c, struct q_slice *s)
{
	c->nr_dirty -= s->dirty;
	c->nr--;
	unlink_used(c, s);
	unlink_hash(c, s);
	free(s->bytes);
	free(s);
}

/* --- getting one -------------------------------------------------------------------------------
 */

/* The dirty ones gather at the old end, so the search is cut short: better too many slices than a
 * long walk under the lock. */
enum { EVICT_LOOKS = 64 };

static void make_room(struct q_cache *c)
{
	struct q_slice *s = c->oldest;

	for (unsigned looks = 0; c->nr >= c->max && s && looks < EVICT_LOOKS; looks++) {
		struct q_slice *next = s->newer;

		if (!s->dirty && !s->writing)
			drop(c, s);
		s = next;
	}
}

static int load(struct q_cache *c, uint64_t host, struct q_slice **out)
{
	struct q_slice *s;
	int r;

	make_room(c);
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->host = host;
	s->bytes = malloc(c->slice);
	r = s->bytes ? q_file_read(c->file, s->bytes, c->slice, host) : -ENOMEM;
	if (r < 0) {
		free(s->bytes);
		free(s);
		return r;
	}
	link_hash(c, s);
	link_newest(c, s);
	c->nr++;
	*out = s;
	return 0;
}

int q_cache_get(struct q_cache *c, uint64_t host, struct q_slice **out)
{
	struct q_slice *s = find(c, host);

	if (!s)
		return load(c, host, out);
	if (s != c->newest) {
		unlink_used(c, s);
		link_newest(c, s);
	}
	*out = s;
	return 0;
}

void q_cache_dirty(struct q_cache *c, struct q_slice *s)
{
	c->nr_dirty += !s->dirty;
	s->dirty = true;
}

void q_cache_forget(struct q_cache *c, uint64_t host, uint64_t len)
{
	for (uint64_t at = host; at < host + len; at += c->slice) {
		struct q_slice *s = find(c, at);

		if (s && !s->writing)
			drop(c, s);
	}
}

bool q_cache_holds(struct q_cache *c, uint64_t host, uint64_t len)
{
	uint64_t end = host + len;

	if (len / c->slice > c->nr) { /* fewer slices than places: look at them instead */
		for (struct q_slice *s = c->newest; s; s = s->older)
			if (s->host < end && s->host + c->slice > host)
				return true;
		return false;
	}
	for (uint64_t at = ALIGN_DOWN(host, c->slice); at < end; at += c->slice)
		if (find(c, at))
			return true;
	return false;
}

void q_cache_drop(struct q_cache *c)
{
	while (c->oldest)
		drop(c, c->oldest);
}

void q_cache_fini(struct q_cache *c)
{
	if (c->hash)
		q_cache_drop(c);
	free(c->hash);
	c->hash = NULL;
}

/* --- writing back ------------------------------------------------------------------------------
 */

static int by_host(const void *a, const void *b)
{
	const struct q_slice *const *x = a, *const *y = b;

	return (*x)->host < (*y)->host ? -1 : (*x)->host > (*y)->host;
}

int q_cache_copy_dirty(struct q_cache *c, struct q_copies *copies)
{
	unsigned n = 0;

	*copies = (struct q_copies){0};
	if (!c->nr_dirty)
		return 0;
	copies->slices = calloc(c->nr_dirty, sizeof(*copies->slices));
	copies->bytes = malloc((size_t)c->nr_dirty * c->slice);
	if (!copies->slices || !copies->bytes) {
		free(copies->slices);
		free(copies->bytes);
		*copies = (struct q_copies){0};
		return -ENOMEM;
	}
	for (struct q_slice *s = c->newest; s; s = s->older)
		if (s->dirty)
			copies->slices[n++] = s;
	qsort(copies->slices, n, sizeof(*copies->slices), by_host);
	for (unsigned i = 0; i < n; i++) {
		struct q_slice *s = copies->slices[i];

		memcpy(copies->bytes + (size_t)i * c->slice, s->bytes, c->slice);
		s->dirty = false;
		s->writing++;
	}
	c->nr_dirty = 0;
	copies->nr = n;
	return 0;
}

/* Neighbours in the file go out in one write. */
int q_copies_write(const struct q_cache *c, const struct q_copies *copies)
{
	for (unsigned i = 0, n; i < copies->nr; i += n) {
		uint64_t host = copies->slices[i]->host;
		int r;

		for (n = 1; i + n < copies->nr; n++)
			if (copies->slices[i + n]->host != host + (uint64_t)n * c->slice)
				break;
		r = blk_write(c->file, copies->bytes + (size_t)i * c->slice, (size_t)n * c->slice,
			      host);
		if (r < 0)
			return r;
	}
	return 0;
}

void q_copies_done(struct q_cache *c, struct q_copies *copies, bool ok)
{
	for (unsigned i = 0; i < copies->nr; i++) {
		copies->slices[i]->writing--;
		if (!ok)
			q_cache_dirty(c, copies->slices[i]);
	}
	free(copies->slices);
	free(copies->bytes);
	*copies = (struct q_copies){0};
}
