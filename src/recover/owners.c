/* recover/owners.c - which blocks live files own.
 *
 * Asked of the blocks of deleted files: what a live file has now is not theirs any more; and of
 * live ones: a block that two of them claim is not sure.  Whole file blocks are bits in two maps
 * (one owner, many owners), sub-blocks a sorted set.  Built once, when first needed. */
#include "recover/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCKS = 1 << 28 }; /* 256 TiB of blocks of a MiB: 32 MiB a map */

struct owners {
	uint64_t block; /* bytes */
	uint64_t nr;
	uint8_t *one, *many, *system;
	struct spans small; /* volume offsets */
};

static bool bit_get(const uint8_t *map, uint64_t i)
{
	return map[i / 8] >> (i % 8) & 1;
}

static void bit_set(uint8_t *map, uint64_t i)
{
	map[i / 8] |= (uint8_t)(1u << (i % 8));
}

void owners_fini(struct rec *r)
{
	struct owners *o = r->owners;

	r->owners = NULL;
	r->owners_ready = false;
	if (!o)
		return;
	free(o->one);
	free(o->many);
	free(o->system);
	spans_fini(&o->small);
	free(o);
}

static void own_blocks(struct owners *o, uint64_t vol, uint64_t len)
{
	for (uint64_t i = vol / o->block; i <= (vol + len - 1) / o->block && i < o->nr; i++) {
		if (bit_get(o->one, i))
			bit_set(o->many, i);
		bit_set(o->one, i);
	}
}

/* pb: as vmfs_range has it; whole: the address stands for a whole file block. */
static void own(struct owners *o, uint64_t vol, uint64_t len, bool whole)
{
	if (!len || vol > INT64_MAX || len > INT64_MAX)
		return;
	if (whole)
		own_blocks(o, vol, len);
	else
		(void)spans_add(&o->small, vol, vol + len);
}

enum { OWN_MAX_RANGES = 1 << 20 };

/* A last block belongs to its file whole, also where the file is shorter. */
static void own_file(struct rec *r, struct owners *o, const struct vmfs_inode *in)
{
	bool whole = (1ull << in->block_shift) >= o->block;
	struct vmfs_range x;

	if (in->resident || in->type == VMFS_RDM)
		return;
	for (uint64_t off = 0, i = 0; off < in->length && i < OWN_MAX_RANGES; off += x.len, i++) {
		if (vmfs_file_range(r->v, in, off, &x) < 0 || !x.len)
			return;
		if (x.kind == VMFS_RANGE_DATA || x.kind == VMFS_RANGE_ZERO)
			own(o, x.vol, x.len, whole);
	}
}

/* The resource files hold the small blocks of others: they own their file blocks as a whole only.
 */
static void own_system(struct rec *r, struct owners *o, const struct vmfs_inode *in)
{
	struct vmfs_range x;

	if (in->resident || (1ull << in->block_shift) < o->block)
		return;
	for (uint64_t off = 0, i = 0; off < in->length && i < OWN_MAX_RANGES; off += x.len, i++) {
		if (vmfs_file_range(r->v, in, off, &x) < 0 || !x.len)
			return;
		if (x.kind != VMFS_RANGE_DATA)
			continue;
		for (uint64_t b = x.vol / o->block; b <= (x.vol + x.len - 1) / o->block; b++)
			if (b < o->nr)
				bit_set(o->system, b);
	}
}

static bool counts(const struct node *n)
{
	return !n->synthetic && !n->unreachable && (n->state == REC_LIVE || n->state == REC_ORPHAN);
}

int owners_build(struct rec *r, struct error *err)
{
	const struct vmfs_geometry *g;
	struct vmfs_inode in;
	struct owners *o;
	uint64_t size = 0;

	if (r->owners_ready || !r->v)
		return 0;
	r->owners_ready = true;
	g = &vmfs_plan(r->v)->geo;
	o = calloc(1, sizeof(*o));
	if (!o)
		return err_errno(err, ENOMEM, "block owners");
	for (unsigned i = 0; i < vmfs_plan(r->v)->nr_runs; i++)
		size = MAX(size, vmfs_plan(r->v)->run[i].vol + vmfs_plan(r->v)->run[i].len);
	o->block = g->file_block_size;
	o->nr = MIN(size / o->block + 1, (uint64_t)MAX_BLOCKS);
	o->one = calloc(1, o->nr / 8 + 1);
	o->many = calloc(1, o->nr / 8 + 1);
	o->system = calloc(1, o->nr / 8 + 1);
	r->owners = o;
	if (!o->one || !o->many || !o->system) {
		owners_fini(r);
		r->owners_ready = true;
		return err_errno(err, ENOMEM, "block owners");
	}
	for (uint32_t i = 1; i < r->tree.n; i++) {
		if (!counts(&r->tree.v[i]) || vmfs_inode_read(r->v, r->tree.v[i].fd, &in, NULL) < 0)
			continue;
		if (r->tree.v[i].system)
			own_system(r, o, &in);
		else
			own_file(r, o, &in);
	}
	spans_settle(&o->small);
	return 0;
}

bool owners_system(struct rec *r, uint64_t vol)
{
	struct owners *o;

	if (owners_build(r, NULL) < 0 || !r->owners)
		return false;
	o = r->owners;
	return vol / o->block < o->nr && bit_get(o->system, vol / o->block);
}

enum owner owners_at(struct rec *r, uint64_t vol, uint64_t *len)
{
	struct owners *o;
	uint64_t i, end;
	bool one, many, small;

	if (owners_build(r, NULL) < 0 || !r->owners)
		return OWNER_NONE;
	o = r->owners;
	i = vol / o->block;
	if (i >= o->nr)
		return OWNER_NONE;
	small = spans_at(&o->small, vol, &end);
	if (end != UINT64_MAX)
		*len = MIN(*len, end - vol);
	one = bit_get(o->one, i);
	many = bit_get(o->many, i);
	for (end = i + 1; end * o->block < vol + *len && end < o->nr; end++)
		if (bit_get(o->one, end) != one || bit_get(o->many, end) != many)
			break;
	*len = MIN(*len, end * o->block - vol);
	return many ? OWNER_MANY : one || small ? OWNER_ONE : OWNER_NONE;
}
