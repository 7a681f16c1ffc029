/* block/vmdk/check.c - is every table and grain where it should be, once, and is nothing else in
 * the file?
 *
 * What is in use is marked in a bitmap with a bit for each sector, for up to WINDOW sectors of the
 * file at a time (32 MiB of bits); a longer file takes several rounds.
 *
 * Copies of tables that differ are an error, except in an image that was not closed cleanly: there
 * it is what a cut may leave behind, as is unused space, and both copies are good.
 *
 * Mended are: copies that differ, entries that lead out of the file (reads of them fail; afterwards
 * they show nothing), unused space (grains from the end move there), the mark of an unclean end.
 * Grains that overlap are not: which of the two owners is right nobody can know. */
#include "block/vmdk/vmdk.h"

#include "base/bytes.h"
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW       (1ull << 28) /* sectors */
#define MOST_SECTORS (1ull << 37) /* 64 TiB, what VMware makes at most */

enum { SAY_MAX = 200 };

struct checking {
	struct vmdk *v;
	struct vmdk_extent *e;
	struct blk_check *c;
	unsigned said;
	uint64_t *bits, first, end; /* sectors [first, end) of the file */
	uint64_t used;              /* sectors, in all rounds */
	bool rewrite;               /* some table has to be written again */
};

static void PRINTF_LIKE(2, 3) say(struct checking *k, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	if (!k->c->say || k->said > SAY_MAX)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (k->said++ == SAY_MAX)
		snprintf(text, sizeof(text), "and more");
	k->c->say(k->c->opaque, text);
}

/* ---- the bitmap ---- */

/* Marks the part of [off, off + len) that lies in the window; true when some of it was marked. */
static bool mark(struct checking *k, uint64_t off, uint64_t len)
{
	uint64_t s = MAX(off / SECTOR, k->first);
	uint64_t end = MIN((off + len + SECTOR - 1) / SECTOR, k->end);
	bool twice = false;

	for (; s < end; s++) {
		uint64_t i = s - k->first, bit = 1ull << (i & 63);

		twice |= k->bits[i / 64] & bit;
		k->used += !(k->bits[i / 64] & bit);
		k->bits[i / 64] |= bit;
	}
	return twice;
}

static bool is_used(const struct checking *k, uint64_t off, uint64_t len)
{
	for (uint64_t s = off / SECTOR; s < (off + len) / SECTOR; s++)
		if (k->bits[(s - k->first) / 64] >> ((s - k->first) & 63) & 1)
			return true;
	return false;
}

static bool starts_in_window(const struct checking *k, uint64_t off)
{
	return off / SECTOR >= k->first && off / SECTOR < k->end;
}

/* ---- tables ---- */

static void check_copies(struct checking *k, uint32_t i, uint64_t off, uint64_t copy)
{
	struct vmdk_extent *e = k->e;
	uint8_t *a = malloc(e->gt_bytes), *b = malloc(e->gt_bytes);
	uint64_t *count = e->unclean ? &k->c->leaks : &k->c->corruptions;
	uint64_t *fixed = e->unclean ? &k->c->leaks_fixed : &k->c->corruptions_fixed;
	bool same;

	same = a && b && !blk_read(e->file, a, e->gt_bytes, off) &&
	       !blk_read(e->file, b, e->gt_bytes, copy) && !memcmp(a, b, e->gt_bytes);
	free(a);
	free(b);
	if (same)
		return;
	say(k, "%s: the two copies of grain table %u differ", e->name, i);
	if (k->c->fix & (e->unclean ? BLK_FIX_LEAKS : BLK_FIX_ERRORS) && !vmdk_rewrite(e, i)) {
		k->rewrite = true;
		++*fixed;
	} else {
		++*count;
	}
}

static bool place_is_good(const struct vmdk_extent *e, uint64_t off)
{
	return off >= SECTOR && range_inside(off, e->gt_bytes, blk_size(e->file));
}

/* One entry of the directories. */
static void check_table(struct checking *k, uint32_t i)
{
	struct vmdk_extent *e = k->e;
	uint64_t off = vmdk_table_offset(e, i, false), copy = vmdk_table_offset(e, i, true);
	uint64_t head = e->kind == KIND_STREAM && off > e->overhead ? SECTOR : 0; /* its marker */

	if (starts_in_window(k, off ? off : copy) && (off || copy)) {
		bool good = place_is_good(e, off), copy_good = !e->rgd || place_is_good(e, copy);

		if (!good || !copy_good) {
			say(k, "%s: entry %u of the %sgrain directory leads out of the file",
			    e->name, i, good ? "redundant " : "");
			k->c->corruptions++;
		} else if (e->rgd && copy != off) {
			check_copies(k, i, off, copy);
		}
	}
	if (place_is_good(e, off) && mark(k, off - head, e->gt_bytes + head)) {
		say(k, "%s: grain table %u lies on something else", e->name, i);
		k->c->corruptions++;
	}
	if (e->rgd && copy != off && place_is_good(e, copy) && mark(k, copy, e->gt_bytes)) {
		say(k, "%s: the copy of grain table %u lies on something else", e->name, i);
		k->c->corruptions++;
	}
}

/* ---- grains ---- */

static void bad_entry(struct checking *k, uint64_t g, const char *what)
{
	say(k, "%s: grain %llu %s", k->e->name, (unsigned long long)g, what);
	if (k->c->fix & BLK_FIX_ERRORS && !vmdk_enter(k->e, g, 1, GRAIN_NONE, 0, GRAIN_BAD)) {
		k->rewrite = true;
		k->c->corruptions_fixed++;
	} else {
		k->c->corruptions++;
	}
}

static void check_packed(struct checking *k, uint64_t g, uint64_t off)
{
	uint64_t is = 0, len = 0;

	if (vmdk_stream_marker(k->e, off, &is, &len) < 0 || is != g) {
		if (starts_in_window(k, off))
			bad_entry(k, g, "has no marker of its own");
		return;
	}
	if (mark(k, off, len) && starts_in_window(k, off)) {
		say(k, "%s: grain %llu overlaps another", k->e->name, (unsigned long long)g);
		k->c->corruptions++;
	}
	k->c->compressed_clusters += starts_in_window(k, off);
	k->c->allocated_clusters += starts_in_window(k, off);
}

/* Grains side by side in the file.  Fragmented: what follows on the disk does not in the file. */
static void check_data(struct checking *k, uint64_t g, const struct vmdk_run *run)
{
	uint64_t off = run->off, left = run->count;

	k->c->fragmented_clusters += starts_in_window(k, off);
	for (; left; left--, g++, off += k->e->grain) {
		uint64_t len = vmdk_grain_len(k->e, g);
		bool here = starts_in_window(k, off);

		k->c->allocated_clusters += here;
		bool twice = mark(k, off, len);

		mark(k, off, k->e->grain); /* the disk's last one: its rest is nobody else's */
		if (!twice)
			continue;
		say(k, "%s: grain %llu overlaps something else", k->e->name, (unsigned long long)g);
		k->c->corruptions++;
	}
}

static int check_grains(struct checking *k)
{
	struct vmdk_extent *e = k->e;
	uint64_t nr = (e->capacity + e->grain - 1) / e->grain, off;
	struct vmdk_run run;

	for (uint64_t g = 0; g < nr; g += run.count) {
		uint64_t max = MIN(nr - g, e->nr_gtes - g % e->nr_gtes);
		int r = vmdk_lookup(e, g, max, &run);

		if (r == -EIO) { /* its directory entry was told of already */
			run.count = max;
			continue;
		}
		if (r < 0)
			return r;
		if (run.state == GRAIN_PACKED)
			run.count = 1;
		off = run.off;
		if (run.state == GRAIN_BAD && !k->first)
			bad_entry(k, g, "lies outside of the file");
		else if (run.state == GRAIN_PACKED)
			check_packed(k, g, off);
		else if (run.state == GRAIN_DATA)
			check_data(k, g, &run);
		if (vmdk_tables_full(e) && (r = vmdk_tables_flush(e)) < 0)
			return r;
	}
	return 0;
}

/* ---- what is in use besides ---- */

static uint64_t directory_bytes(const struct vmdk_extent *e)
{
	return ALIGN_UP((uint64_t)e->nr_gd * e->gte_size, SECTOR);
}

static void mark_fixed(struct checking *k)
{
	struct vmdk_extent *e = k->e;

	mark(k, 0, SECTOR);
	if (e->kind == KIND_COWD)
		mark(k, 0, 4 * SECTOR);
	if (e->kind == KIND_SESPARSE) { /* tables have a region of their own, in front */
		mark(k, 0, e->grains_off);
		return;
	}
	mark(k, e->desc_off, e->desc_room);
	mark(k, e->gd_off, directory_bytes(e));
	if (e->rgd)
		mark(k, e->rgd_off, directory_bytes(e));
	if (e->kind == KIND_STREAM && !e->header_has_gd) {
		mark(k, e->gd_off - SECTOR, SECTOR);
		mark(k, ALIGN_DOWN(blk_size(e->file), SECTOR) - 3 * SECTOR, 3 * SECTOR);
	}
}

/* The start of the area for data: what lies before it unused is padding. */
static uint64_t data_start(const struct vmdk_extent *e)
{
	uint64_t end = blk_size(e->file);

	return e->overhead > end ? end : ALIGN_UP(MAX(e->overhead, (uint64_t)SECTOR), SECTOR);
}

/* Unused sectors of the window, in the area for data. */
static uint64_t count_unused(const struct checking *k)
{
	uint64_t s = MAX(data_start(k->e) / SECTOR, k->first), n = 0;

	for (; s < k->end; s++) {
		uint64_t i = s - k->first;

		if (!(i & 63) && s + 64 <= k->end && k->bits[i / 64] == UINT64_MAX)
			s += 63;
		else
			n += !(k->bits[i / 64] >> (i & 63) & 1);
	}
	return n;
}

/* ---- giving unused space back ---- */

/* Move a grain into unused space.  Its entry changes only after the copy is durable. */
static int move_grain(struct vmdk_extent *e, uint64_t g, uint64_t from, uint64_t to)
{
	uint64_t len = vmdk_grain_len(e, g);
	uint8_t *buf = calloc(1, e->grain);
	int r = buf ? blk_read(e->file, buf, len, from) : -ENOMEM;

	if (!r)
		r = blk_write(e->file, buf, e->grain, to);
	free(buf);
	return r ? r : vmdk_enter(e, g, 1, GRAIN_DATA, to, GRAIN_BAD);
}

/* The next unused place for a grain at or behind *at, below end. */
static bool find_place(const struct checking *k, uint64_t *at, uint64_t end)
{
	uint64_t step = k->e->align ? k->e->grain : SECTOR;

	if (k->e->align)
		*at = ALIGN_UP(*at, step);
	for (; *at + k->e->grain <= end; *at += step)
		if (!is_used(k, *at, k->e->grain))
			return true;
	return false;
}

/* Grains that lie behind `limit` move to unused places below it.  Only in an image without errors,
 * whose file fits one window. */
static int fill_gaps(struct checking *k, uint64_t limit)
{
	struct vmdk_extent *e = k->e;
	uint64_t nr = (e->capacity + e->grain - 1) / e->grain, at = data_start(e);
	struct vmdk_run run;
	int r = 0;

	for (uint64_t g = 0; g < nr && !r; g++) {
		r = vmdk_lookup(e, g, nr - g, &run);
		if (r < 0)
			return r;
		if (run.state != GRAIN_DATA) {
			g += run.count - 1;
			continue;
		}
		if (run.off + e->grain <= limit)
			continue;
		if (!find_place(k, &at, limit))
			return 0;
		r = move_grain(e, g, run.off, at);
		at += e->grain;
		if (!r && vmdk_tables_full(e))
			r = vmdk_tables_flush(e);
	}
	return r;
}

static int drop_unused(struct checking *k, uint64_t leaks)
{
	struct vmdk_extent *e = k->e;
	uint64_t size = blk_size(e->file), end;
	int r = 0;

	if (!k->c->corruptions && !k->first && leaks * e->grain < size)
		r = fill_gaps(k, ALIGN_UP(size - leaks * e->grain, SECTOR));
	if (!r)
		r = vmdk_tables_flush(e);
	if (!r)
		r = vmdk_used_end(e, &end);
	if (r < 0 || end >= size)
		return r;
	end = ALIGN_UP(end, SECTOR);
	pthread_mutex_lock(&e->alloc_lock);
	e->next_free = end;
	pthread_mutex_unlock(&e->alloc_lock);
	r = end < size ? blk_resize(e->file, end) : 0;
	return r ? r : blk_flush(e->file);
}

/* Stream-optimised images are only ever appended to: what a rewritten grain leaves behind is how
 * they work, no leak. */
static int settle_leaks(struct checking *k, uint64_t unused)
{
	struct vmdk_extent *e = k->e;
	uint64_t leaks = (unused * SECTOR + e->grain - 1) / e->grain, before = blk_size(e->file);
	uint64_t back;
	int r;

	if (!leaks)
		return 0;
	say(k, "%s: %llu bytes of the file are not used%s", e->name,
	    (unsigned long long)unused * SECTOR,
	    e->kind == KIND_STREAM ? " (a new copy of it has none)" : "");
	if (e->kind == KIND_STREAM)
		return 0;
	if (!(k->c->fix & BLK_FIX_LEAKS)) {
		k->c->leaks += leaks;
		return 0;
	}
	r = drop_unused(k, leaks);
	back = (before - blk_size(e->file) + e->grain - 1) / e->grain;
	k->c->leaks_fixed += MIN(back, leaks);
	k->c->leaks += leaks - MIN(back, leaks);
	return r;
}

/* ---- all together ---- */

static int check_window(struct checking *k)
{
	int r;

	memset(k->bits, 0, (k->end - k->first + 63) / 64 * 8);
	mark_fixed(k);
	for (uint32_t i = 0; i < k->e->nr_gd; i++)
		if (k->e->kind != KIND_SESPARSE)
			check_table(k, i);
	r = check_grains(k);
	return r;
}

static void check_description(struct checking *k, unsigned i)
{
	const struct vmdk_desc *d = &k->v->desc;

	if (d->text && k->v->desc_room && d->ext[i].sectors != k->e->capacity / SECTOR) {
		say(k, "%s: the descriptor says %llu sectors, the header %llu", k->e->name,
		    (unsigned long long)d->ext[i].sectors,
		    (unsigned long long)k->e->capacity / SECTOR);
		if (k->c->fix & BLK_FIX_LEAKS && k->v->desc_file &&
		    !vmdk_desc_set_sectors(&k->v->desc, i, k->e->capacity / SECTOR) &&
		    !vmdk_desc_store(k->v, NULL))
			k->c->leaks_fixed++;
		else
			k->c->leaks++; /* the header counts: nothing is lost */
	}
}

static int settle_mark(struct checking *k)
{
	struct vmdk_extent *e = k->e;
	int r;

	if (!e->unclean || !k->c->fix || k->c->corruptions || k->c->leaks ||
	    e->kind == KIND_STREAM || e->kind == KIND_SESPARSE)
		return 0;
	e->unclean = false;
	e->marked_unclean = true;
	r = vmdk_mark_clean(e, true);
	return r ? r : blk_flush(e->file);
}

/* A file of holes can be said to be of any length.  What lies behind all that a disk of this
 * capacity could need is not looked through. */
static uint64_t sectors_to_check(const struct vmdk_extent *e)
{
	uint64_t most = 2 * MIN(e->capacity / SECTOR, MOST_SECTORS) + WINDOW;

	return MIN(blk_size(e->file) / SECTOR, most);
}

static int check_extent(struct checking *k, unsigned i)
{
	struct vmdk_extent *e = k->e;
	uint64_t sectors = sectors_to_check(e);
	uint64_t unused = blk_size(e->file) / SECTOR - sectors;
	int r = 0;

	k->bits = calloc(MIN(sectors, WINDOW) / 64 + 1, 8);
	if (!k->bits)
		return -ENOMEM;
	for (k->first = 0; k->first < sectors && !r; k->first += WINDOW) {
		k->end = MIN(k->first + WINDOW, sectors);
		r = check_window(k);
		unused += count_unused(k);
	}
	k->first = sectors > WINDOW ? WINDOW : 0;
	k->c->total_clusters += (e->capacity + e->grain - 1) / e->grain;
	k->c->image_end = MAX(k->c->image_end, blk_size(e->file));
	check_description(k, i);
	if (!r && k->rewrite)
		r = vmdk_tables_flush(e);
	if (!r)
		r = settle_leaks(k, unused);
	if (!r)
		r = settle_mark(k);
	free(k->bits);
	return r;
}

int vmdk_check(struct blk *b, struct blk_check *c, struct error *err)
{
	struct vmdk *v = vmdk_of(b);
	bool any = false;
	int r = 0;

	for (unsigned i = 0; i < v->nr_ext && !r; i++) {
		struct checking k = {.v = v, .e = &v->ext[i], .c = c};

		if (!vmdk_is_sparse(k.e))
			continue;
		any = true;
		if (k.e->rebuilt) {
			say(&k, "%s: the end with the grain directory is missing", k.e->name);
			if (k.e->writable && c->fix) {
				r = vmdk_tables_flush(k.e);
				c->leaks_fixed += !r;
				k.e->rebuilt = r < 0;
			} else {
				c->leaks++;
				continue;
			}
		}
		if (!r)
			r = check_extent(&k, i);
	}
	if (r < 0)
		return err_errno(err, -r, "'%s' cannot be checked", b->path);
	return any ? 0 : err_set(err, ENOTSUP, "'%s': flat extents have nothing to check", b->path);
}
