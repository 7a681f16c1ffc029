/* vmfs/geometry.c - how a volume is laid out: what the superblock and the headers of the resource
 * files say, checked, and what is usual where they say nothing. */
#include "vmfs/internal.h"

enum { MAX_RESOURCES = 65536, USUAL_MD_ALIGN = 4096 };

const char *const resource_file_name[VMFS_NR_RES] = {
	".fbb.sf", ".fbb.sf", ".fdc.sf", ".pbc.sf", ".sbc.sf", ".pb2.sf", ".jbc.sf",
};
const uint32_t resource_file_fd[VMFS_NR_RES] = {
	FS_FD_FBB, FS_FD_FBB, FS_FD_FDC, FS_FD_PBC, FS_FD_SBC, FS_FD_PB2, FS_FD_JBC,
};

/* --- the superblock ----------------------------------------------------------------------------
 */

/* The value when it is a power of two in the range, else the preset, and a note. */
static uint64_t sane(struct vmfs_plan *notes, const char *what, uint64_t value, uint64_t lo,
		     uint64_t hi, uint64_t preset)
{
	if (is_pow2(value) && value >= lo && value <= hi)
		return value;
	plan_note(notes, "the superblock's %s is %llu, which cannot be: %llu is taken", what,
		  (unsigned long long)value, (unsigned long long)preset);
	return preset;
}

static unsigned version_of(uint32_t major)
{
	if (major >= FS_MAJOR_VMFS6)
		return 6;
	return major >= FS_MAJOR_VMFS5 ? 5 : 3;
}

static uint32_t usual_sub_block(unsigned version)
{
	return version == 5 ? 8192 : 65536;
}

static void parse_vmfs6(struct vmfs_geometry *g, const uint8_t *sb, struct vmfs_plan *notes)
{
	unsigned shift = le16_load(sb + FS_S_PTR_SHIFT), lfb = le16_load(sb + FS_S_LFB_SHIFT);

	/* Descriptors of other sizes have been seen nowhere. */
	g->md_align = (uint32_t)sane(notes, "metadata alignment", le32_load(sb + FS_S_MD_ALIGN),
				     USUAL_MD_ALIGN, USUAL_MD_ALIGN, USUAL_MD_ALIGN);
	g->ptr_per_block = shift >= 12 && shift <= 20 ? 1u << (shift - 3) : 8192;
	g->lfb_shift = lfb && lfb <= 20 ? lfb : 9;
	g->fd_size = 2 * g->md_align;
}

/* Where descriptor 0 of cluster 0 is: behind the heartbeats, the header of .fdc.sf and the headers
 * of its first group. */
static uint64_t first_descriptor(const struct vmfs_geometry *g, uint32_t group_offset,
				 uint32_t per_group)
{
	uint64_t bs = g->file_block_size, base;
	uint64_t header = g->version == 6 ? 2ull * g->md_align : 2 * FS_SECTOR;

	if (g->version == 6)
		base = (((uint64_t)g->md_align << 10) + 0x3FFFFF) & ~0xFFFFFull;
	else
		base = bs * ((bs + 0x3FFFFF) / bs);
	return base + group_offset + per_group * header;
}

static void parse_fdc_place(struct vmfs_geometry *g, const uint8_t *sb, struct vmfs_plan *notes)
{
	uint32_t off = le32_load(sb + FS_S_FDC_GROUP_OFFSET),
		 per_group = le32_load(sb + FS_S_FDC_PER_GROUP);
	struct vmfs_resource usual;

	resource_default(g, VMFS_RES_FDC, &usual);
	if (!per_group || per_group > 1024) {
		plan_note(notes, "the superblock's clusters per group are %u: %u are taken",
			  per_group, usual.per_group);
		per_group = usual.per_group;
	}
	if (off < FS_SECTOR || off > 16 * MiB) {
		plan_note(notes, "the superblock's place of the first group is %u: %llu is taken",
			  off, (unsigned long long)usual.group_offset);
		off = (uint32_t)usual.group_offset;
	}
	g->fdc_base = first_descriptor(g, off, per_group);
}

int geometry_parse(struct vmfs_geometry *g, const uint8_t *sb, struct vmfs_plan *notes)
{
	uint32_t magic = le32_load(sb + FS_S_MAGIC);

	if (magic != FS_MAGIC && magic != FS_MAGIC_LITE)
		return -EINVAL;
	*g = (struct vmfs_geometry){
		.version = version_of(le32_load(sb + FS_S_MAJOR)),
		.lite = magic == FS_MAGIC_LITE,
		.dense = le32_load(sb + FS_S_CONFIG) & FS_CONFIG_DENSE,
		.md_align = FS_SECTOR,
		.ptr_per_block = 1024,
		.fd_size = FS_FD_SIZE_5,
	};
	memcpy(g->uuid.b, sb + FS_S_UUID, sizeof(g->uuid.b));
	memcpy(g->label, sb + FS_S_LABEL, VMFS_LABEL_MAX);
	g->file_block_size = sane(notes, "file block size", le64_load(sb + FS_S_FILE_BLOCK),
				  64 * KiB, 64 * MiB, MiB);
	g->sub_block_size = (uint32_t)sane(notes, "sub-block size", le32_load(sb + FS_S_SUB_BLOCK),
					   512, g->file_block_size, usual_sub_block(g->version));
	if (g->version == 6)
		parse_vmfs6(g, sb, notes);
	parse_fdc_place(g, sb, notes);
	return 0;
}

/* --- resource files ----------------------------------------------------------------------------
 */

static uint32_t cluster_header(const struct vmfs_geometry *g)
{
	return 2 * g->md_align;
}

int resource_parse(const struct vmfs_geometry *g, const uint8_t *h, bool child,
		   struct vmfs_resource *r)
{
	*r = (struct vmfs_resource){
		.per_cluster = le32_load(h + FS_R_PER_CLUSTER),
		.per_group = le32_load(h + FS_R_PER_GROUP),
		.header_size = cluster_header(g),
		.size = le32_load(h + FS_R_SIZE),
		.group_offset = le32_load(h + FS_R_GROUP_OFFSET),
		.group_size = le32_load(h + FS_R_GROUP_SIZE),
		.nr_resources = le32_load(h + FS_R_RESOURCES_LO) |
				(uint64_t)le32_load(h + FS_R_RESOURCES_HI) << 32,
		.nr_groups = le32_load(h + FS_R_GROUPS),
		.bits = 1,
	};
	/* An empty .pbc.sf of VMFS6, whose pointer blocks are elsewhere. */
	if (!r->per_cluster && !r->nr_resources && g->version == 6 &&
	    le32_load(h + FS_R_SIGNATURE) == FS_RFMD)
		return 0;
	if (!r->per_cluster || r->per_cluster > MAX_RESOURCES || !r->per_group ||
	    r->per_group > MAX_RESOURCES || !r->group_size || r->nr_resources > BIT(48))
		return -EUCLEAN;
	if (g->version < 6)
		return 0;
	if (le32_load(h + FS_R_SIGNATURE) != FS_RFMD ||
	    child != !!(le32_load(h + FS_R_FLAGS) & FS_R_IS_CHILD))
		return -EUCLEAN;
	r->bits = le32_load(h + FS_R_BITS);
	if (!r->bits || r->bits > 8)
		r->bits = 1;
	return 0;
}

/* What ESXi makes: clusters, groups and sizes. */
struct usual {
	uint32_t per_cluster, per_group, size;
};
// clang-format off
static const struct usual usual_3[VMFS_NR_RES] = {
	[VMFS_RES_FBB] = {200, 32, 0},	 [VMFS_RES_FDC] = {32, 32, 2048},
	[VMFS_RES_PBC] = {16, 32, 4096}, [VMFS_RES_SBC] = {16, 32, 65536},
};
static const struct usual usual_5[VMFS_NR_RES] = {
	[VMFS_RES_FBB] = {200, 64, 0},	 [VMFS_RES_FDC] = {32, 64, 2048},
	[VMFS_RES_PBC] = {16, 64, 4096}, [VMFS_RES_SBC] = {32, 64, 8192},
	[VMFS_RES_PB2] = {16, 64, 4096},
};
static const struct usual usual_6[VMFS_NR_RES] = {
	[VMFS_RES_FBB] = {16, 8, 8192},	  [VMFS_RES_SFB] = {512, 8, 0},
	[VMFS_RES_FDC] = {256, 8, 8192},  [VMFS_RES_PBC] = {256, 8, 65536},
	[VMFS_RES_SBC] = {256, 8, 65536}, [VMFS_RES_PB2] = {32, 8, 65536},
	[VMFS_RES_JBC] = {8, 4, 2097152},
};
// clang-format on

void resource_default(const struct vmfs_geometry *g, enum vmfs_resource_kind kind,
		      struct vmfs_resource *r)
{
	const struct usual *u = g->version == 6 ? usual_6 : g->version == 5 ? usual_5 : usual_3;

	u += kind;
	*r = (struct vmfs_resource){
		.per_cluster = u->per_cluster,
		.per_group = u->per_group,
		.header_size = cluster_header(g),
		.size = u->size,
		.group_offset = 0x10000,
		.bits = kind == VMFS_RES_SFB                      ? FS_SFB_BITS
			: kind == VMFS_RES_FBB && g->version == 6 ? FS_LFB_BITS
								  : 1,
	};
	if (kind == VMFS_RES_SBC && g->sub_block_size)
		r->size = g->sub_block_size;
	r->group_size = (uint64_t)r->per_group * r->header_size +
			(uint64_t)r->per_group * r->per_cluster * r->size;
	r->nr_resources = r->per_cluster ? RESOURCES_UNKNOWN : 0;
}

int resource_offset(const struct vmfs_resource *r, uint64_t cluster, uint32_t resource,
		    uint64_t *off)
{
	uint64_t group, in_group;

	if (!r->per_cluster || !r->per_group || !r->size || resource >= r->per_cluster ||
	    cluster >= (r->nr_resources + r->per_cluster - 1) / r->per_cluster)
		return -ERANGE;
	if (__builtin_mul_overflow(cluster / r->per_group, r->group_size, &group))
		return -ERANGE;
	in_group = (uint64_t)r->per_group * r->header_size +
		   (cluster % r->per_group * r->per_cluster + resource) * r->size;
	if (__builtin_add_overflow(group, r->group_offset + in_group, off))
		return -ERANGE;
	return 0;
}

/* The header of a cluster of small file blocks is in the place of a large block's resource. */
static int child_header(const struct vmfs_resource *parent, uint64_t cluster, uint64_t *off)
{
	uint64_t per_group = (uint64_t)parent->per_group * parent->per_cluster, group;

	if (!per_group || __builtin_mul_overflow(cluster / per_group, parent->group_size, &group))
		return -ERANGE;
	if (__builtin_add_overflow(group,
				   parent->group_offset +
					   (parent->per_group + cluster % per_group) *
						   (uint64_t)parent->header_size,
				   off))
		return -ERANGE;
	return 0;
}

int resource_header(const struct vmfs_geometry *g, enum vmfs_resource_kind kind, uint64_t cluster,
		    uint64_t *off)
{
	const struct vmfs_resource *r = &g->res[kind];
	uint64_t group;

	if (!r->per_cluster || !r->per_group ||
	    cluster >= (r->nr_resources + r->per_cluster - 1) / r->per_cluster)
		return -ERANGE;
	if (kind == VMFS_RES_SFB)
		return child_header(&g->res[VMFS_RES_FBB], cluster, off);
	if (__builtin_mul_overflow(cluster / r->per_group, r->group_size, &group) ||
	    __builtin_add_overflow(group, r->group_offset + cluster % r->per_group * r->header_size,
				   off))
		return -ERANGE;
	return 0;
}
