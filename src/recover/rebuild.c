/* recover/rebuild.c - a plan for the reader: from the volume's headers, or from what was found.
 *
 * Everything a header says can be told from the metadata that remain: the version from the shape of
 * the descriptors, the size of blocks from what descriptors of system files say of theirs, where
 * the first descriptor is from any of the first cluster, and where all others are from their own
 * lock headers.  The layout of the resource files is left to the reader, which takes their headers
 * or what is usual. */
#include "recover/internal.h"

#include "base/bytes.h"
#include "block/blk.h"
#include "vmfs/ondisk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void set_pub(struct candidate *c, const struct vmfs_geometry *g)
{
	if (g->label[0])
		memcpy(c->label, g->label, sizeof(c->label));
	c->pub.uuid = g->uuid;
	c->pub.version = g->version;
	c->pub.size = MAX(c->pub.size, g->size);
}

/* ---- by headers ---- */

int rebuild_open(struct rec *r, struct candidate *c, struct error *err)
{
	struct blk *dev[VMFS_MAX_DEVICES];
	unsigned flags = VMFS_ALLOW_MISSING | (r->cfg.other_snapshot ? VMFS_OTHER_SNAPSHOT : 0);
	const struct vmfs_plan *p;
	int e;

	for (unsigned i = 0; i < r->nr_sources; i++)
		dev[i] = r->source[i].blk;
	e = vmfs_open(&r->v, dev, r->nr_sources, c->has_lv ? &c->lv : NULL, flags, err);
	if (e < 0)
		return e;
	r->by_headers = true;
	p = vmfs_plan(r->v);
	set_pub(c, &p->geo);
	if (p->notes && p->notes[0])
		rec_note(r, "%s", p->notes);
	return 0;
}

/* ---- geometry ---- */

/* The part of a candidate that a lock header belongs to, or NULL. */
static const struct part *part_of(const struct candidate *c, const struct hit *h)
{
	for (unsigned i = 0; i < c->nr_parts; i++)
		if (c->part[i].source == h->source &&
		    (int64_t)h->pos - c->part[i].base == (int64_t)h->self)
			return &c->part[i];
	return NULL;
}

static bool is_our_fd(const struct candidate *c, const struct hit *h)
{
	bool v6 = h->aux & FD_V6;

	if (h->kind != HIT_FD || !(h->aux & FD_FILLED) || (c->v6_only && !v6) || (c->v5_only && v6))
		return false;
	return part_of(c, h);
}

/* What the descriptors tell together. */
struct evidence {
	uint64_t nr_5, nr_6;
	uint64_t first_vol; /* of descriptor 0, as most say */
	uint64_t first_votes;
	bool has_pb2, has_new_zla, has_dense, has_system;
	uint64_t file_block, sub_block, any_block;
};

static void vote_first(struct evidence *ev, uint64_t vol)
{
	if (vol == ev->first_vol) {
		ev->first_votes++;
	} else if (!ev->first_votes) {
		ev->first_vol = vol;
		ev->first_votes = 1;
	} else {
		ev->first_votes--;
	}
}

static bool is_block_size(uint64_t size)
{
	return size >= 512 && size <= 64 * MiB && !(size & (size - 1));
}

static void hear_fd(struct evidence *ev, const uint8_t *fd, uint32_t md, const struct hit *h)
{
	const uint8_t *m = fd + md;
	uint32_t zla = le32_load(m + FS_FD_ZLA), type = h->aux & FD_TYPE;
	uint64_t block = le64_load(m + FS_FD_BLOCK_SIZE);

	ev->has_new_zla |= zla >= FS_ZLA_DOUBLE;
	ev->has_system |= type == VMFS_SYSTEM;
	if (h->id == FS_FD_PB2 && type == VMFS_SYSTEM)
		ev->has_pb2 = true;
	if (!is_block_size(block))
		return;
	if (type == VMFS_SYSTEM && block >= 64 * KiB)
		ev->file_block = block;
	else if (zla == FS_ZLA_SB)
		ev->sub_block = block;
	else if (zla == FS_ZLA_FB || zla == FS_ZLA_PB)
		ev->any_block = MAX(ev->any_block, block);
	if (md == FS_SECTOR && zla == FS_ZLA_SB)
		ev->has_dense |= le32_load(fd + 1024) & 0x18;
}

enum { HEAR_MAX = 4096 };

static void gather_evidence(struct rec *r, const struct candidate *c, struct evidence *ev)
{
	uint8_t fd[2 * 4096];
	unsigned heard = 0;

	for (size_t i = 0; i < r->hits.n; i++) {
		const struct hit *h = &r->hits.v[i];
		bool v6 = h->aux & FD_V6;
		uint32_t size = v6 ? sizeof(fd) : FS_FD_SIZE_5;

		if (!is_our_fd(c, h))
			continue;
		ev->nr_5 += !v6;
		ev->nr_6 += v6;
		if (((h->id >> 6) & 0xffff) == 0)
			vote_first(ev, h->self - (uint64_t)(h->id >> 22) * size);
		if (heard++ < HEAR_MAX && !rec_read_source(r, h->source, fd, size, h->pos))
			hear_fd(ev, fd, v6 ? 4096 : FS_SECTOR, h);
	}
}

static unsigned version_of(const struct evidence *ev)
{
	if (ev->nr_6 > ev->nr_5)
		return 6;
	if (ev->has_pb2 || ev->has_new_zla || !ev->has_system)
		return 5;
	return 3;
}

static void usual_geometry(struct vmfs_geometry *g, unsigned version, uint64_t file_block)
{
	*g = (struct vmfs_geometry){.version = version, .file_block_size = file_block};
	g->md_align = version == 6 ? 4096 : FS_SECTOR;
	g->fd_size = version == 6 ? 2 * g->md_align : FS_FD_SIZE_5;
	g->ptr_per_block = version == 6 ? 8192 : 1024;
	g->sub_block_size = version == 5 ? 8192 : 65536;
	g->dense = version >= 5;
	while (version == 6 && (file_block << g->lfb_shift) < 512 * MiB)
		g->lfb_shift++;
}

/* As the formula has it when nothing of the first cluster is left. */
static uint64_t usual_first(const struct vmfs_geometry *g)
{
	uint64_t bs = g->file_block_size;

	if (g->version == 6)
		return 7 * MiB + 64 * KiB + 8 * 2 * 4096;
	return bs * ((bs + 0x3FFFFF) / bs) + 64 * KiB + (g->version == 5 ? 64 : 32) * 1024;
}

static void infer_geometry(struct rec *r, const struct candidate *c, struct vmfs_geometry *g)
{
	struct evidence ev = {0};
	uint64_t block;

	gather_evidence(r, c, &ev);
	block = ev.file_block ? ev.file_block : ev.any_block >= MiB ? ev.any_block : MiB;
	usual_geometry(g, version_of(&ev), block);
	if (ev.sub_block && ev.sub_block < block)
		g->sub_block_size = (uint32_t)ev.sub_block;
	if (g->version < 6 && ev.sub_block > 8192)
		g->dense = ev.has_dense;
	g->fdc_base = ev.first_votes ? ev.first_vol : usual_first(g);
}

/* ---- the superblock, where only the LVM is gone ---- */

static bool pow2_in(uint64_t x, uint64_t lo, uint64_t hi)
{
	return x >= lo && x <= hi && !(x & (x - 1));
}

/* What the superblock says goes before what was concluded, when it is of the same version. */
static bool take_superblock(struct vmfs_geometry *g, const uint8_t *sb)
{
	uint32_t major = le32_load(sb + FS_S_MAJOR);
	unsigned version = major >= FS_MAJOR_VMFS6 ? 6 : major >= FS_MAJOR_VMFS5 ? 5 : 3;
	uint64_t file_block = le64_load(sb + FS_S_FILE_BLOCK);
	uint32_t sub = le32_load(sb + FS_S_SUB_BLOCK);

	if ((version == 6) != (g->version == 6) || !pow2_in(file_block, 64 * KiB, 64 * MiB))
		return false;
	if (version != g->version || file_block != g->file_block_size) {
		uint64_t first = g->fdc_base;

		usual_geometry(g, version, file_block);
		g->fdc_base = first;
	}
	g->lite = le32_load(sb + FS_S_MAGIC) == FS_MAGIC_LITE;
	g->dense = le32_load(sb + FS_S_CONFIG) & FS_CONFIG_DENSE;
	if (pow2_in(sub, 512, file_block))
		g->sub_block_size = sub;
	memcpy(g->uuid.b, sb + FS_S_UUID, sizeof(g->uuid.b));
	memcpy(g->label, sb + FS_S_LABEL, VMFS_LABEL_MAX);
	return true;
}

static bool use_superblock(struct rec *r, const struct candidate *c, struct vmfs_geometry *g)
{
	uint8_t sb[FS_S_SIZE];

	for (size_t i = 0; i < r->hits.n; i++) {
		struct hit h = r->hits.v[i];

		h.self = FS_SUPERBLOCK;
		if (h.kind == HIT_SUPER && part_of(c, &h) &&
		    !rec_read_source(r, h.source, sb, sizeof(sb), h.pos) && take_superblock(g, sb))
			return true;
	}
	return false;
}

/* ---- where the descriptors are ---- */

static int place_order(const void *a, const void *b)
{
	const struct vmfs_fd_place *x = a, *y = b;

	if (x->addr != y->addr)
		return x->addr < y->addr ? -1 : 1;
	return x->vol < y->vol ? -1 : x->vol > y->vol;
}

static uint64_t token_at(struct rec *r, const struct candidate *c, uint64_t vol)
{
	uint8_t lock[64];

	for (unsigned i = 0; i < c->nr_parts; i++) {
		const struct part *p = &c->part[i];

		if (vol >= p->lo && vol < p->hi &&
		    !rec_read_source(r, p->source, lock, sizeof(lock),
				     (uint64_t)((int64_t)vol + p->base)))
			return le64_load(lock + FS_L_TOKEN);
	}
	return 0;
}

/* Of two descriptors with one address: the one in its place, else the one written later. */
static bool is_better(struct rec *r, const struct candidate *c, const struct vmfs_geometry *g,
		      const struct vmfs_fd_place *a, const struct vmfs_fd_place *b)
{
	uint64_t should = g->fdc_base + (uint64_t)(a->addr >> 22) * g->fd_size;

	if (((a->addr >> 6) & 0xffff) == 0 && (a->vol == should) != (b->vol == should))
		return a->vol == should;
	return token_at(r, c, a->vol) >= token_at(r, c, b->vol);
}

static int gather_fds(struct rec *r, const struct candidate *c, struct vmfs_plan *p)
{
	size_t cap = 0, n = 0;

	for (size_t i = 0; i < r->hits.n; i++) {
		const struct hit *h = &r->hits.v[i];

		if (!is_our_fd(c, h) || (h->aux & FD_V6 ? 6 : 5) != (p->geo.version == 6 ? 6 : 5))
			continue;
		if (!array_room(&p->fd, p->nr_fds, &cap, sizeof(*p->fd)))
			return -ENOMEM;
		p->fd[p->nr_fds++] = (struct vmfs_fd_place){.addr = h->id, .vol = h->self};
	}
	if (p->nr_fds)
		qsort(p->fd, p->nr_fds, sizeof(*p->fd), place_order);
	for (size_t i = 0; i < p->nr_fds; i++) {
		if (!n || p->fd[n - 1].addr != p->fd[i].addr)
			p->fd[n++] = p->fd[i];
		else if (is_better(r, c, &p->geo, &p->fd[i], &p->fd[n - 1]))
			p->fd[n - 1] = p->fd[i];
	}
	p->nr_fds = n;
	return 0;
}

/* ---- resource files without their descriptors ---- */

/* Of a group: headers of its clusters, then their resources, in one piece. */
struct group {
	uint32_t per_group, size; /* size: of a resource */
	uint64_t len;
};

static bool group_of(const struct vmfs_geometry *g, enum vmfs_resource_kind kind, uint32_t per,
		     struct group *x)
{
	uint32_t ptr = g->version == 6 ? 65536 : 4096;

	x->per_group = g->version == 6 ? 8 : g->version == 5 ? 64 : 32;
	switch (kind) {
	case VMFS_RES_SBC:
		x->size = g->sub_block_size;
		break;
	case VMFS_RES_PBC:
	case VMFS_RES_PB2:
		x->size = ptr;
		break;
	case VMFS_RES_FDC:
		x->size = g->fd_size;
		break;
	default:
		x->size = g->version == 6 ? 2 * g->md_align : 0;
	}
	x->len = (uint64_t)x->per_group * (2 * g->md_align + (uint64_t)per * x->size);
	return per && per <= 1024;
}

static int piece_order(const void *a, const void *b)
{
	const struct vmfs_piece *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

static void settle_pieces(struct vmfs_plan *p, enum vmfs_resource_kind kind)
{
	struct vmfs_piece *v = p->piece[kind];
	unsigned n = 0;

	if (!v)
		return;
	qsort(v, p->nr_pieces[kind], sizeof(*v), piece_order);
	for (unsigned i = 0; i < p->nr_pieces[kind]; i++)
		if (!n || v[i].off >= v[n - 1].off + v[n - 1].len)
			v[n++] = v[i];
	p->nr_pieces[kind] = n;
}

/* By the headers of clusters: each knows its number, and so where its group begins. */
static int gather_pieces(struct rec *r, const struct candidate *c, struct vmfs_plan *p,
			 enum vmfs_resource_kind kind, unsigned hit_kind)
{
	uint32_t header = 2 * p->geo.md_align;
	struct group x;
	size_t cap = 0;

	for (size_t i = 0; i < r->hits.n; i++) {
		const struct hit *h = &r->hits.v[i];
		uint64_t group, back;
		struct vmfs_piece *last;
		unsigned n = p->nr_pieces[kind];

		if (h->kind != hit_kind || !part_of(c, h) || !group_of(&p->geo, kind, h->gen, &x) ||
		    !(h->aux & FD_V6) != (p->geo.version != 6))
			continue;
		group = h->id / x.per_group;
		back = (uint64_t)(h->id % x.per_group) * header;
		last = n ? &p->piece[kind][n - 1] : NULL;
		if (back > h->self || (last && last->off == 0x10000 + group * x.len))
			continue;
		if (!array_room(&p->piece[kind], n, &cap, sizeof(*last)))
			return -ENOMEM;
		p->piece[kind][p->nr_pieces[kind]++] = (struct vmfs_piece){
			.off = 0x10000 + group * x.len, .len = x.len, .vol = h->self - back};
	}
	settle_pieces(p, kind);
	return 0;
}

static int gather_all_pieces(struct rec *r, const struct candidate *c, struct vmfs_plan *p)
{
	bool six = p->geo.version == 6;
	int e = gather_pieces(r, c, p, VMFS_RES_FBB, six ? HIT_LFB : HIT_FBB);

	if (!e && six)
		e = gather_pieces(r, c, p, VMFS_RES_SFB, HIT_LFB);
	if (!e)
		e = gather_pieces(r, c, p, VMFS_RES_FDC, HIT_FDC);
	if (!e)
		e = gather_pieces(r, c, p, VMFS_RES_SBC, HIT_SBC);
	if (!e)
		e = gather_pieces(r, c, p, VMFS_RES_PBC, HIT_PBC);
	return e ? e : gather_pieces(r, c, p, VMFS_RES_PB2, HIT_PB2);
}

/* ---- the plan ---- */

static int run_order(const void *a, const void *b)
{
	const struct vmfs_run *x = a, *y = b;

	return x->vol < y->vol ? -1 : x->vol > y->vol;
}

static int make_runs(const struct candidate *c, struct vmfs_plan *p)
{
	p->run = calloc(MAX(c->nr_parts, 1u), sizeof(*p->run));
	if (!p->run)
		return -ENOMEM;
	for (unsigned i = 0; i < c->nr_parts; i++) {
		const struct part *part = &c->part[i];

		if (part->hi > part->lo)
			p->run[p->nr_runs++] = (struct vmfs_run){
				.vol = part->lo,
				.len = part->hi - part->lo,
				.dev = part->source,
				.dev_off = (uint64_t)((int64_t)part->lo + part->base)};
	}
	if (p->nr_runs)
		qsort(p->run, p->nr_runs, sizeof(*p->run), run_order);
	return 0;
}

/* The runs of the volume's own tables, where vmfs_open could read them. */
static int take_plan(struct rec *r, struct vmfs_plan *p)
{
	const struct vmfs_plan *own = vmfs_plan(r->v);

	p->geo = own->geo;
	memset(p->geo.res, 0, sizeof(p->geo.res));
	memcpy(p->dev, own->dev, sizeof(p->dev));
	p->nr_devs = own->nr_devs;
	p->run = malloc(MAX(own->nr_runs, 1u) * sizeof(*p->run));
	if (!p->run)
		return -ENOMEM;
	if (own->nr_runs)
		memcpy(p->run, own->run, own->nr_runs * sizeof(*p->run));
	p->nr_runs = own->nr_runs;
	return 0;
}

static int own_plan(struct rec *r, struct candidate *c, struct vmfs_plan *p)
{
	for (unsigned i = 0; i < r->nr_sources; i++)
		p->dev[i] = r->source[i].blk;
	p->nr_devs = r->nr_sources;
	infer_geometry(r, c, &p->geo);
	if (!use_superblock(r, c, &p->geo))
		rec_note(r,
			 "the superblock is lost: version %u, blocks of %llu bytes, as the "
			 "descriptors tell",
			 p->geo.version, (unsigned long long)p->geo.file_block_size);
	if (c->label[0] && !p->geo.label[0])
		memcpy(p->geo.label, c->label, sizeof(c->label));
	p->geo.size = c->pub.size;
	return make_runs(c, p);
}

/* Is a resource file where its descriptor says? */
static bool is_lost(struct rec *r, uint32_t fd)
{
	struct vmfs_inode in;
	struct vmfs_range x;

	if (vmfs_inode_read(r->v, fd, &in, NULL) < 0)
		return true;
	return in.length && (vmfs_file_range(r->v, &in, 0, &x) < 0 || x.kind != VMFS_RANGE_DATA);
}

static void find_lost(struct rec *r)
{
	unsigned version = vmfs_plan(r->v)->geo.version;

	r->lost_files = is_lost(r, FS_FD_SBC) || (version < 6 && is_lost(r, FS_FD_PBC)) ||
			(version >= 5 && is_lost(r, FS_FD_PB2));
}

int rebuild_assemble(struct rec *r, struct candidate *c, struct error *err)
{
	struct vmfs_plan plan = {0};
	int e;

	e = r->v ? take_plan(r, &plan) : own_plan(r, c, &plan);
	if (!e)
		e = gather_fds(r, c, &plan);
	if (!e)
		e = gather_all_pieces(r, c, &plan);
	if (e < 0) {
		vmfs_plan_free(&plan);
		return err_errno(err, -e, "a plan of the volume");
	}
	set_pub(c, &plan.geo);
	vmfs_close(r->v);
	r->v = NULL;
	r->by_headers = false;
	e = vmfs_assemble(&r->v, &plan, err);
	if (e < 0)
		return e;
	if (vmfs_plan(r->v)->notes)
		rec_note(r, "%s", vmfs_plan(r->v)->notes);
	find_lost(r);
	return 0;
}
