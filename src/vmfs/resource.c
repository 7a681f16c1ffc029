/* vmfs/resource.c - the resource files: where a descriptor, a sub-block, a pointer block is, and
 * whether its bit says it is in use.
 *
 * They are files themselves.  Their descriptors are in cluster 0 of .fdc.sf, which is found without
 * it (the bootstrap formula), and their own blocks may need another of them (VMFS6: .sbc.sf needs
 * .pb2.sf).  What is not readable is left out; only what needs it is lost. */
#include "vmfs/internal.h"

#include <stdlib.h>

/* --- descriptors -------------------------------------------------------------------------------
 */

static const struct vmfs_fd_place *find_place(const struct vmfs_plan *p, uint32_t addr)
{
	size_t lo = 0, hi = p->nr_fds;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (p->fd[mid].addr < addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < p->nr_fds && p->fd[lo].addr == addr ? &p->fd[lo] : NULL;
}

int fd_locate(struct vmfs *v, uint32_t addr, uint64_t *vol)
{
	const struct vmfs_geometry *g = &v->plan.geo;
	const struct vmfs_resource *r = &g->res[VMFS_RES_FDC];
	const struct vmfs_fd_place *known = find_place(&v->plan, addr);
	uint64_t len;
	struct vmfs_addr a;

	for (unsigned i = 0; i < v->nr_extra && !known; i++)
		if (v->extra[i].addr == addr)
			known = &v->extra[i];
	if (known) {
		*vol = known->vol;
		return 0;
	}
	if (vmfs_addr_parse(g, addr, &a) < 0 || a.type != VMFS_ADDR_FD)
		return -EUCLEAN;
	if (r->per_cluster && a.resource >= r->per_cluster)
		return -ERANGE;
	if (a.cluster == 0) {
		*vol = g->fdc_base + (uint64_t)a.resource * g->fd_size;
		return 0;
	}
	return addr_locate(v, &a, 0, vol, &len);
}

/* --- opening -----------------------------------------------------------------------------------
 */

static int read_header(struct vmfs *v, enum vmfs_resource_kind kind, uint64_t at)
{
	struct vmfs_resource *r = &v->plan.geo.res[kind];
	uint8_t h[FS_R_HEADER_SIZE];
	int err;

	if (r->per_cluster)
		return 0; /* the plan knows it */
	err = resource_read(v, kind, h, sizeof(h), at);
	if (!err)
		err = resource_parse(&v->plan.geo, h, kind == VMFS_RES_SFB, r);
	if (err < 0) {
		resource_default(&v->plan.geo, kind, r);
		plan_note(&v->plan, "the header of %s is not readable: the usual layout is taken",
			  resource_file_name[kind]);
	}
	return 0;
}

static uint64_t child_place(struct vmfs *v)
{
	uint8_t h[FS_R_HEADER_SIZE];
	uint32_t at;

	if (resource_read(v, VMFS_RES_FBB, h, sizeof(h), 0) < 0)
		return FS_R_CHILD_DEFAULT;
	at = le32_load(h + FS_R_CHILD);
	return at >= FS_R_HEADER_SIZE && at < MiB ? at : FS_R_CHILD_DEFAULT;
}

static int open_file(struct vmfs *v, enum vmfs_resource_kind kind)
{
	struct vmfs_inode *in = malloc(sizeof(*in));
	struct error err;
	uint32_t addr;
	uint8_t probe;
	int r;

	if (!in)
		return -ENOMEM;
	addr = kind == VMFS_RES_PB2 && v->pb2_fd ? v->pb2_fd : resource_file_fd[kind];
	r = vmfs_inode_read(v, addr, in, &err);
	if (!r && (in->type != VMFS_SYSTEM || in->is_dir))
		r = -EUCLEAN;
	v->sys[kind] = r < 0 ? NULL : in;
	/* One whose own blocks need a file that is not open yet has another try. */
	if (!r)
		r = resource_read(v, kind, &probe, 1, 0);
	if (r < 0) {
		v->sys[kind] = NULL;
		free(in);
	}
	return r;
}

static bool is_there(const struct vmfs_geometry *g, enum vmfs_resource_kind kind)
{
	if (kind == VMFS_RES_SFB || kind == VMFS_RES_JBC)
		return g->version == 6;
	return kind != VMFS_RES_PB2 || g->version >= 5;
}

static int open_one(struct vmfs *v, enum vmfs_resource_kind kind, bool last_try)
{
	int r;

	if (v->sys[kind] || !is_there(&v->plan.geo, kind))
		return 0;
	r = open_file(v, kind);
	if (r == -ENOMEM)
		return r;
	if (!r)
		return read_header(v, kind, kind == VMFS_RES_SFB ? child_place(v) : 0);
	if (last_try) {
		if (!v->plan.geo.res[kind].per_cluster)
			resource_default(&v->plan.geo, kind, &v->plan.geo.res[kind]);
		if (kind != VMFS_RES_SFB)
			plan_note(&v->plan, "%s is not readable", resource_file_name[kind]);
	}
	return 0;
}

int resource_open_all(struct vmfs *v)
{
	static const enum vmfs_resource_kind order[] = {
		VMFS_RES_PB2, VMFS_RES_PBC, VMFS_RES_FDC, VMFS_RES_SBC,
		VMFS_RES_FBB, VMFS_RES_SFB, VMFS_RES_JBC,
	};
	int r = 0;

	for (unsigned i = 0; i < 2 * ARRAY_SIZE(order) && !r; i++)
		r = open_one(v, order[i % ARRAY_SIZE(order)], i >= ARRAY_SIZE(order));
	return r;
}

/* --- where resources are -----------------------------------------------------------------------
 */

/* Of a file whose descriptor is lost, as the plan knows it. */
static int piece_to_volume(const struct vmfs_plan *p, enum vmfs_resource_kind kind, uint64_t off,
			   uint64_t *vol, uint64_t *len)
{
	unsigned lo = 0, hi = p->nr_pieces[kind];
	const struct vmfs_piece *x = p->piece[kind];

	while (lo < hi) { /* the first that ends behind off */
		unsigned mid = lo + (hi - lo) / 2;

		if (x[mid].off + x[mid].len <= off)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == p->nr_pieces[kind] || x[lo].off > off)
		return lo ? -ERANGE : -ENOENT;
	*vol = x[lo].vol + (off - x[lo].off);
	*len = MIN(*len, x[lo].len - (off - x[lo].off));
	return 0;
}

/* A piece of a resource file that is on a device: *len shortened to it. */
static int file_to_volume(struct vmfs *v, enum vmfs_resource_kind kind, uint64_t off, unsigned busy,
			  uint64_t *vol, uint64_t *len)
{
	const struct vmfs_inode *in = v->sys[kind];
	struct vmfs_range range;
	int r;

	if (!in)
		return piece_to_volume(&v->plan, kind, off, vol, len);
	if (busy & BIT(kind))
		return -EUCLEAN; /* it needs itself */
	if (off >= in->length)
		return -ERANGE;
	r = file_range(v, in, off, *len, busy | (unsigned)BIT(kind), &range);
	if (r < 0)
		return r;
	if (range.kind != VMFS_RANGE_DATA && range.kind != VMFS_RANGE_RESIDENT)
		return range.kind == VMFS_RANGE_LOST ? -ENODATA : -ERANGE;
	*vol = range.vol;
	*len = range.len;
	return 0;
}

int resource_locate(struct vmfs *v, enum vmfs_resource_kind kind, uint64_t cluster,
		    uint32_t resource, unsigned busy, uint64_t *vol, uint64_t *len)
{
	const struct vmfs_resource *res = &v->plan.geo.res[kind];
	uint64_t off;
	int r = resource_offset(res, cluster, resource, &off);

	if (r < 0)
		return r;
	*len = res->size;
	return file_to_volume(v, kind, off, busy, vol, len);
}

int resource_read(struct vmfs *v, enum vmfs_resource_kind kind, void *buf, size_t len, uint64_t off)
{
	uint8_t *to = buf;
	uint64_t vol, step;
	int r = 0;

	for (; len && !r; len -= step, to += step, off += step) {
		step = len;
		r = file_to_volume(v, kind, off, 0, &vol, &step);
		if (!r)
			r = volume_read(v, to, step, vol);
	}
	return r;
}

/* --- bitmaps -----------------------------------------------------------------------------------
 */

static bool bits_used(const struct vmfs_resource *r, enum vmfs_resource_kind kind, unsigned bits)
{
	if (kind == VMFS_RES_FBB && r->bits == FS_LFB_BITS)
		return bits == 0 || bits == FS_LFB_SPLIT;
	return bits == 0;
}

int resource_used(struct vmfs *v, enum vmfs_resource_kind kind, uint64_t cluster, uint32_t resource)
{
	const struct vmfs_geometry *g = &v->plan.geo;
	const struct vmfs_resource *res = &g->res[kind];
	uint64_t off, bit = (uint64_t)resource * res->bits;
	uint32_t map = g->version == 6 ? FS_C6_BITMAP : FS_C5_BITMAP;
	uint8_t b[2] = {0};
	int r = resource_header(g, kind, cluster, &off);

	if (r < 0)
		return r;
	if (resource >= res->per_cluster || map + bit / 8 + 2 > g->md_align)
		return -ERANGE;
	r = resource_read(v, kind, b, sizeof(b), off + res->header_size / 2 + map + bit / 8);
	if (r < 0)
		return r;
	return bits_used(res, kind, (le16_load(b) >> bit % 8) & ((1u << res->bits) - 1));
}
