/* vmfs/address.c - block addresses: what the bits mean, and where that is.
 *
 * 32 bits (VMFS3 and 5; descriptors' addresses on VMFS6 too), from the low end:
 *
 *   file block   type 3 | - | COW | TBZ | block 26
 *   sub-block    type 3 | resource bits 4, 5 (dense) | COW | cluster 22 | resource bits 0..3
 *   pointer      type 3 | - - | COW | cluster 22 | resource 4
 *   descriptor   type 3 | - - - | cluster 16 | resource 10
 *   journal      type 3 | cluster 13 | ... | resource 6
 *
 * 64 bits (VMFS6):
 *
 *   small block  type 3 | - - | COW | - | TBZ 8 | cluster 31 | ... | resource 13 from bit 51
 *   large block  type 3 | - - | COW | - | TBZ 8 | block 31
 *   others       type 3 | - - | COW | cluster 36 | ... | resource 8 from bit 56
 */
#include "vmfs/internal.h"

static uint64_t bits(uint64_t raw, unsigned from, unsigned nr)
{
	return raw >> from & (BIT(nr) - 1);
}

static int parse_fd(uint64_t raw, struct vmfs_addr *a)
{
	a->cluster = bits(raw, 6, 16);
	a->resource = (uint32_t)bits(raw, 22, 10);
	return bits(raw, 3, 3) || raw >> 32 ? -EUCLEAN : 0;
}

static int parse_32(const struct vmfs_geometry *g, uint64_t raw, struct vmfs_addr *a)
{
	if (raw >> 32)
		return -EUCLEAN;
	switch (a->type) {
	case VMFS_ADDR_FB:
		a->cow = bits(raw, 4, 1);
		a->tbz = bits(raw, 5, 1);
		a->cluster = bits(raw, 6, 26);
		return 0;
	case VMFS_ADDR_SB:
		a->cow = bits(raw, 5, 1);
		a->cluster = bits(raw, 6, 22);
		a->resource = (uint32_t)bits(raw, 28, 4);
		if (g->dense)
			a->resource |= (uint32_t)bits(raw, 3, 2) << 4;
		return 0;
	case VMFS_ADDR_PB:
	case VMFS_ADDR_PB2:
		a->cow = bits(raw, 5, 1);
		a->cluster = bits(raw, 6, 22);
		a->resource = (uint32_t)bits(raw, 28, 4);
		return 0;
	case VMFS_ADDR_FD:
		return parse_fd(raw, a);
	case VMFS_ADDR_JB:
		a->cluster = bits(raw, 3, 13);
		a->resource = (uint32_t)bits(raw, 26, 6);
		return 0;
	default:
		return -EUCLEAN;
	}
}

/* Small file blocks in a cluster: those of a large one, of 512 MiB. */
static uint64_t sfb_per_cluster(const struct vmfs_geometry *g)
{
	return MIN(8192ull, 512 * MiB / g->file_block_size);
}

static int parse_64(const struct vmfs_geometry *g, uint64_t raw, struct vmfs_addr *a)
{
	a->cow = bits(raw, 5, 1);
	switch (a->type) {
	case VMFS_ADDR_FB:
		a->tbz = bits(raw, 7, 8);
		if (bits(raw, 51, 13) >= sfb_per_cluster(g))
			return -EUCLEAN;
		a->cluster = bits(raw, 15, 31) * sfb_per_cluster(g) + bits(raw, 51, 13);
		return 0;
	case VMFS_ADDR_LFB:
		a->tbz = bits(raw, 7, 8);
		a->cluster = bits(raw, 15, 31);
		return 0;
	case VMFS_ADDR_SB:
	case VMFS_ADDR_PB:
	case VMFS_ADDR_PB2:
		a->cluster = bits(raw, 6, 36);
		a->resource = (uint32_t)bits(raw, 56, 8);
		return 0;
	case VMFS_ADDR_FD:
		a->cow = false;
		return parse_fd(raw, a);
	case VMFS_ADDR_JB:
		a->cow = false;
		a->cluster = bits(raw, 3, 13);
		a->resource = (uint32_t)bits(raw, 26, 6);
		return 0;
	default:
		return -EUCLEAN;
	}
}

int vmfs_addr_parse(const struct vmfs_geometry *g, uint64_t raw, struct vmfs_addr *a)
{
	static const enum vmfs_addr_type types[8] = {
		VMFS_ADDR_NONE, VMFS_ADDR_FB,  VMFS_ADDR_SB, VMFS_ADDR_PB,
		VMFS_ADDR_FD,   VMFS_ADDR_PB2, VMFS_ADDR_JB, VMFS_ADDR_LFB,
	};

	*a = (struct vmfs_addr){.type = types[raw & 7]};
	if (a->type == VMFS_ADDR_NONE)
		return raw ? -EUCLEAN : 0;
	return g->version == 6 ? parse_64(g, raw, a) : parse_32(g, raw, a);
}

/* --- where -------------------------------------------------------------------------------------
 */

static int locate_block(struct vmfs *v, uint64_t block, unsigned shift, uint64_t *vol,
			uint64_t *len)
{
	uint64_t size = v->plan.geo.size;

	if (block >= (uint64_t)INT64_MAX >> shift)
		return -ERANGE;
	*vol = block << shift;
	*len = BIT(shift);
	if (size && *vol >= size)
		return -ERANGE;
	return 0;
}

static int resource_kind(enum vmfs_addr_type type)
{
	static const int kind[] = {
		[VMFS_ADDR_SB] = VMFS_RES_SBC, [VMFS_ADDR_PB] = VMFS_RES_PBC,
		[VMFS_ADDR_FD] = VMFS_RES_FDC, [VMFS_ADDR_PB2] = VMFS_RES_PB2,
		[VMFS_ADDR_JB] = VMFS_RES_JBC,
	};

	return kind[type];
}

int addr_locate(struct vmfs *v, const struct vmfs_addr *a, unsigned busy, uint64_t *vol,
		uint64_t *len)
{
	const struct vmfs_geometry *g = &v->plan.geo;
	unsigned shift = log2_of(g->file_block_size);

	switch (a->type) {
	case VMFS_ADDR_NONE:
		return -ERANGE;
	case VMFS_ADDR_FB:
		return locate_block(v, a->cluster, shift, vol, len);
	case VMFS_ADDR_LFB:
		return locate_block(v, a->cluster, shift + g->lfb_shift, vol, len);
	default:
		return resource_locate(v, (enum vmfs_resource_kind)resource_kind(a->type),
				       a->cluster, a->resource, busy, vol, len);
	}
}

int vmfs_addr_locate(struct vmfs *v, const struct vmfs_addr *a, uint64_t *vol, uint64_t *len)
{
	return addr_locate(v, a, 0, vol, len);
}

int vmfs_addr_used(struct vmfs *v, const struct vmfs_addr *a)
{
	const struct vmfs_resource *res = v->plan.geo.res;
	enum vmfs_resource_kind kind;

	if (a->type == VMFS_ADDR_NONE)
		return -ERANGE;
	if (a->type != VMFS_ADDR_FB && a->type != VMFS_ADDR_LFB)
		return resource_used(v, (enum vmfs_resource_kind)resource_kind(a->type), a->cluster,
				     a->resource);
	kind = a->type == VMFS_ADDR_FB && v->plan.geo.version == 6 ? VMFS_RES_SFB : VMFS_RES_FBB;
	if (!res[kind].per_cluster)
		return -ERANGE;
	return resource_used(v, kind, a->cluster / res[kind].per_cluster,
			     (uint32_t)(a->cluster % res[kind].per_cluster));
}
