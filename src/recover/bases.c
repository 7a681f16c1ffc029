/* recover/bases.c - which volumes are on the sources, and where.
 *
 * Two witnesses.  LVM headers name the volume and the extent.  And each lock header says where in
 * its volume it lies: position minus that is the same for all of one extent (its base), so headers
 * that are gone are not missed.  The data of an extent begin LVM_DATA behind the start of its
 * device, so a base also tells which part of the volume the extent is:
 *
 *	source  |start ... start + LVM_DATA| data ...
 *	volume                              |lo ...          base = start + LVM_DATA - lo
 *
 * and lo counts in physical extents of 256 MiB. */
#include "recover/internal.h"

#include "block/blk.h"
#include "vmfs/ondisk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- candidates ---- */

static struct candidate *candidate_new(struct rec *r)
{
	struct candidate *grown;

	if (r->nr_cand >= REC_MAX_VOLUMES)
		return NULL;
	grown = realloc(r->cand, (r->nr_cand + 1) * sizeof(*grown));
	if (!grown)
		return NULL;
	r->cand = grown;
	memset(&grown[r->nr_cand], 0, sizeof(*grown));
	return &grown[r->nr_cand++];
}

static struct candidate *candidate_of(struct rec *r, const struct vmfs_lvm_header *h)
{
	struct candidate *c;

	for (unsigned i = 0; i < r->nr_cand; i++)
		if (r->cand[i].has_lv && !memcmp(&r->cand[i].lv, &h->volume, sizeof(h->volume)))
			return &r->cand[i];
	c = candidate_new(r);
	if (!c)
		return NULL;
	c->lv = h->volume;
	c->has_lv = true;
	c->pub.uuid = h->volume;
	c->pub.size = h->volume_size;
	c->pub.nr_missing = MIN(h->nr_devices, (uint32_t)VMFS_MAX_DEVICES);
	memcpy(c->label, h->label, sizeof(h->label));
	return c;
}

static struct part *part_at(struct candidate *c, unsigned source, int64_t base)
{
	for (unsigned i = 0; i < c->nr_parts; i++)
		if (c->part[i].source == source && c->part[i].base == base)
			return &c->part[i];
	return NULL;
}

/* Up to where the device goes that begins at start. */
static uint64_t device_end(struct rec *r, unsigned source, uint64_t start)
{
	struct vmfs_place place[VMFS_MAX_DEVICES];
	struct blk *b = r->source[source].blk;
	int n = vmfs_places(b, place, ARRAY_SIZE(place));

	for (int i = 0; i < n; i++)
		if (place[i].start == start && range_inside(start, place[i].len, blk_size(b)))
			return start + place[i].len;
	return blk_size(b);
}

static void part_from_header(struct rec *r, unsigned source, const struct vmfs_place *place,
			     const struct vmfs_lvm_header *h)
{
	struct candidate *c = candidate_of(r, h);
	struct part p = {.source = source, .place = place->start};
	uint64_t end = place->start + place->len;

	if (!c || c->nr_parts == VMFS_MAX_DEVICES || h->first_pe > (1u << 24) ||
	    end <= place->start + h->data_offset)
		return;
	p.lo = h->first_pe * LVM_PE_SIZE;
	p.hi = p.lo + (end - place->start - h->data_offset);
	p.base = (int64_t)(place->start + h->data_offset) - (int64_t)p.lo;
	if (part_at(c, source, p.base))
		return;
	c->part[c->nr_parts++] = p;
	if (c->pub.nr_missing)
		c->pub.nr_missing--;
	c->pub.nr_extents = c->nr_parts;
}

int bases_by_headers(struct rec *r, struct error *err)
{
	struct vmfs_place place[VMFS_MAX_DEVICES];
	struct vmfs_lvm_header h;

	r->nr_cand = 0;
	for (unsigned i = 0; i < r->nr_sources; i++) {
		int n = vmfs_places(r->source[i].blk, place, ARRAY_SIZE(place));

		for (int k = 0; k < n; k++)
			if (vmfs_lvm_read(r->source[i].blk, &place[k], &h, NULL) == 0)
				part_from_header(r, i, &place[k], &h);
	}
	return 0;
}

/* Headers that lie where no partition table says that a device begins. */
static void headers_by_hits(struct rec *r)
{
	struct vmfs_lvm_header h;

	for (size_t i = 0; i < r->hits.n; i++) {
		const struct hit *hit = &r->hits.v[i];
		struct vmfs_place place;

		if (hit->kind != HIT_LVM || hit->pos < LVM_HEADER)
			continue;
		place.start = hit->pos - LVM_HEADER;
		place.len = device_end(r, hit->source, place.start) - place.start;
		if (vmfs_lvm_read(r->source[hit->source].blk, &place, &h, NULL) == 0)
			part_from_header(r, hit->source, &place, &h);
	}
}

/* ---- votes ---- */

struct vote {
	int64_t base;
	uint64_t self, pos;
	uint32_t source;
};

static bool votes(const struct hit *h, struct vote *v)
{
	uint64_t self = h->self;

	if (h->kind == HIT_SUPER)
		self = FS_SUPERBLOCK;
	else if (!(h->kind >= HIT_FD && h->kind <= HIT_LFB) && h->kind != HIT_HEARTBEAT)
		return false;
	*v = (struct vote){
		.base = (int64_t)(h->pos - self), .self = self, .pos = h->pos, .source = h->source};
	return true;
}

static int vote_order(const void *a, const void *b)
{
	const struct vote *x = a, *y = b;

	if (x->source != y->source)
		return x->source < y->source ? -1 : 1;
	if (x->base != y->base)
		return x->base < y->base ? -1 : 1;
	return x->self < y->self ? -1 : x->self > y->self;
}

static int part_order(const void *a, const void *b)
{
	const struct part *x = a, *y = b;

	if (x->votes != y->votes)
		return x->votes > y->votes ? -1 : 1;
	return x->base < y->base ? -1 : x->base > y->base;
}

/* Runs of votes for one base become parts, those with most votes first. */
static unsigned count_votes(struct vote *v, size_t n, struct part *part)
{
	unsigned nr = 0;

	qsort(v, n, sizeof(*v), vote_order);
	for (size_t i = 0, k; i < n; i = k) {
		struct part p = {.source = v[i].source, .base = v[i].base, .self_lo = v[i].self};

		for (k = i; k < n && v[k].source == v[i].source && v[k].base == v[i].base; k++)
			p.self_hi = v[k].self;
		p.votes = k - i;
		if (p.votes < 2)
			continue;
		if (nr == REC_MAX_BASES)
			qsort(part, nr--, sizeof(*part), part_order);
		part[nr++] = p;
	}
	qsort(part, nr, sizeof(*part), part_order);
	return nr;
}

/* Where the device of a base begins, and which part of the volume it holds. */
static void part_settle(struct rec *r, struct part *p)
{
	struct vmfs_place place[VMFS_MAX_DEVICES];
	int n = vmfs_places(r->source[p->source].blk, place, ARRAY_SIZE(place));
	uint64_t end;

	p->place = p->base >= LVM_DATA ? (uint64_t)p->base - LVM_DATA : 0;
	p->lo = 0;
	for (int i = 0; i < n; i++) {
		int64_t lo = (int64_t)(place[i].start + LVM_DATA) - p->base;

		if (lo >= 0 && lo % (int64_t)LVM_PE_SIZE == 0) {
			p->place = place[i].start;
			p->lo = (uint64_t)lo;
			break;
		}
	}
	end = device_end(r, p->source, p->place);
	p->hi = (uint64_t)((int64_t)end - p->base);
	if ((int64_t)p->hi < (int64_t)p->lo)
		p->hi = p->lo;
}

static bool overlaps(const struct candidate *c, const struct part *p)
{
	for (unsigned i = 0; i < c->nr_parts; i++)
		if (c->part[i].lo <= p->self_hi && p->self_lo < c->part[i].hi)
			return true;
	return false;
}

/* The volume that has a gap where this part lies. */
static struct candidate *with_room(struct rec *r, const struct part *p)
{
	for (unsigned i = 0; i < r->nr_cand; i++) {
		struct candidate *c = &r->cand[i];
		bool same_source = false;

		for (unsigned k = 0; k < c->nr_parts; k++)
			same_source |= c->part[k].source == p->source;
		if (!same_source && c->nr_parts < VMFS_MAX_DEVICES && !overlaps(c, p) &&
		    (!c->has_lv || c->pub.nr_missing))
			return c;
	}
	return NULL;
}

/* Inside the bytes of a volume that has many more votes: copies in a journal, an older volume, or
 * one inside a disk of a virtual machine. */
static bool is_inside(struct rec *r, const struct part *p)
{
	for (unsigned i = 0; i < r->nr_cand; i++)
		for (unsigned k = 0; k < r->cand[i].nr_parts; k++) {
			const struct part *o = &r->cand[i].part[k];
			int64_t at = (int64_t)p->self_lo + p->base;

			if (o->source == p->source && at >= (int64_t)o->lo + o->base &&
			    at < (int64_t)o->hi + o->base)
				return true;
		}
	return false;
}

enum { INSIDE_MIN_VOTES = 12 };

static void place_part(struct rec *r, struct part *p)
{
	struct candidate *c;
	struct part *known;

	for (unsigned i = 0; i < r->nr_cand; i++) {
		known = part_at(&r->cand[i], p->source, p->base);
		if (known) {
			known->votes += p->votes;
			known->self_lo = p->self_lo;
			known->self_hi = p->self_hi;
			r->cand[i].pub.votes += p->votes;
			return;
		}
	}
	part_settle(r, p);
	c = NULL;
	if (is_inside(r, p)) {
		if (p->votes < INSIDE_MIN_VOTES)
			return;
	} else {
		c = with_room(r, p);
	}
	if (!c)
		c = candidate_new(r);
	if (!c)
		return;
	if (c->nr_parts && c->pub.nr_missing)
		c->pub.nr_missing--;
	c->part[c->nr_parts++] = *p;
	c->pub.nr_extents = c->nr_parts;
	c->pub.votes += p->votes;
}

/* A later part begins where it says; the one before ends there. */
static void cut_overlaps(struct candidate *c)
{
	for (unsigned i = 0; i < c->nr_parts; i++) {
		struct part *p = &c->part[i];

		for (unsigned k = 0; k < c->nr_parts; k++)
			if (c->part[k].lo > p->lo)
				p->hi = MIN(p->hi, c->part[k].lo);
		c->pub.size = MAX(c->pub.size, p->hi);
	}
}

/* ---- which volume first ---- */

static bool in_candidate(const struct candidate *c, const struct hit *h)
{
	for (unsigned i = 0; i < c->nr_parts; i++)
		if (c->part[i].source == h->source &&
		    (int64_t)h->pos - c->part[i].base == (int64_t)h->self)
			return true;
	return false;
}

/* Both formats in one place: a newer volume over an older one, which becomes a volume of its own.
 * The newer format is the one with the superblock, or, without one, the one of which the root is.
 */
static void split_formats(struct rec *r, unsigned index)
{
	struct candidate *c = &r->cand[index], *old;
	uint64_t nr[2] = {0};

	for (size_t i = 0; i < r->hits.n; i++) {
		const struct hit *h = &r->hits.v[i];

		if (h->kind == HIT_FD && h->aux & FD_FILLED && in_candidate(c, h))
			nr[!!(h->aux & FD_V6)]++;
	}
	if (nr[0] < 4 || nr[1] < 4)
		return;
	old = candidate_new(r);
	if (!old)
		return;
	c = &r->cand[index];
	*old = *c;
	c->v6_only = nr[1] >= nr[0];
	c->v5_only = !c->v6_only;
	old->v6_only = !c->v6_only;
	old->v5_only = !c->v5_only;
	old->has_lv = false;
	old->label[0] = 0;
	old->pub.older = true;
	old->pub.votes = MIN(nr[0], nr[1]);
}

static int candidate_order(const void *a, const void *b)
{
	const struct candidate *x = a, *y = b;

	if (x->pub.older != y->pub.older)
		return x->pub.older ? 1 : -1;
	if (x->has_lv != y->has_lv)
		return x->has_lv ? -1 : 1;
	return x->pub.votes > y->pub.votes ? -1 : x->pub.votes < y->pub.votes;
}

int bases_by_votes(struct rec *r, struct error *err)
{
	struct vote *v = malloc(MAX(r->hits.n, (size_t)1) * sizeof(*v));
	struct part *part = calloc(REC_MAX_BASES + 1, sizeof(*part));
	unsigned nr = 0, nr_first;
	size_t n = 0;

	if (!v || !part) {
		free(v);
		free(part);
		return err_errno(err, ENOMEM, "volumes");
	}
	headers_by_hits(r);
	for (size_t i = 0; i < r->hits.n; i++)
		n += votes(&r->hits.v[i], &v[n]);
	nr = count_votes(v, n, part);
	for (unsigned i = 0; i < nr; i++)
		place_part(r, &part[i]);
	nr_first = r->nr_cand;
	for (unsigned i = 0; i < nr_first; i++) {
		cut_overlaps(&r->cand[i]);
		split_formats(r, i);
	}
	if (r->nr_cand)
		qsort(r->cand, r->nr_cand, sizeof(*r->cand), candidate_order);
	free(v);
	free(part);
	return 0;
}
