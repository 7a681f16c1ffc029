/* vmfs/file.c - the bytes of files: from an offset, through up to two levels of pointer blocks, to
 * an address, and to where that is.
 *
 *   bn = off >> block_shift, N addresses in a pointer block
 *   direct: address[bn]   single: address[bn / N][bn % N]   double: address[bn / N^2][..][..]
 *
 * The depth is the descriptor's word, so there are no cycles.  A large file block stands in all
 * the 512 places of the small ones it covers: where in it is the offset modulo its size. */
#include "vmfs/internal.h"

enum {
	SMALL_READ = 4096,   /* of a directory: through the cache */
	BATCH = 64,          /* addresses fetched together */
	MAX_STEPS = 1 << 16, /* addresses looked at for one range */
};

static const char lost_descriptor[] = "the file is longer than its addresses reach";
static const char lost_unknown[] = "its kind of addressing is not known";
static const char lost_address[] = "the address is none";
static const char lost_kind[] = "the address is of a kind that has no place there";
static const char lost_pb_address[] = "the address of the pointer block is none";
static const char lost_pb[] = "the pointer block is not readable";
static const char lost_beyond[] = "the address is beyond the end";
static const char lost_extent[] = "on an extent, or a part of one, that is not there";
static const char lost_resource[] = "its resource file is not readable";
static const char lost_short[] = "the sub-block is shorter than the block";
static const char lost_resident[] = "longer than what a descriptor holds";
static const char lost_rdm[] = "a raw device mapping: the bytes are on another device";

int file_levels(const struct vmfs_inode *in)
{
	switch (in->zla) {
	case FS_ZLA_FB:
	case FS_ZLA_SB:
		return 0;
	case FS_ZLA_PB:
	case FS_ZLA_PB2:
		return 1;
	case FS_ZLA_DOUBLE:
		return 2;
	default:
		return -1;
	}
}

/* --- pointer blocks ----------------------------------------------------------------------------
 */

/* Addresses of a file in order of its blocks, fetched by the batch. */
struct cursor {
	struct vmfs *v;
	const struct vmfs_inode *in;
	unsigned busy;
	unsigned per_block_shift; /* log2 of N */
	uint64_t first, nr;       /* the blocks below are of [first, first + nr) */
	bool same;                /* one answer for all: raw[0] or why */
	const char *why;
	uint64_t pb; /* volume offset of the pointer block they came from */
	uint64_t raw[BATCH];
};

static int pb_locate(struct cursor *c, uint64_t raw, uint64_t *vol, const char **why)
{
	const struct vmfs_geometry *g = &c->v->plan.geo;
	uint64_t need = (uint64_t)g->ptr_per_block * (g->version == 6 ? 8 : 4), len;
	struct vmfs_addr a;
	int r;

	*why = lost_pb_address;
	if (vmfs_addr_parse(g, raw, &a) < 0)
		return -EUCLEAN;
	if (a.type != VMFS_ADDR_PB && a.type != VMFS_ADDR_PB2 &&
	    (g->version != 6 || (a.type != VMFS_ADDR_SB && a.type != VMFS_ADDR_FB)))
		return -EUCLEAN;
	r = addr_locate(c->v, &a, c->busy, vol, &len);
	if (!r && len < need)
		r = -EUCLEAN;
	if (r == -ENOENT || r == -ENODATA)
		*why = lost_resource;
	return r;
}

static int pb_words(struct cursor *c, uint64_t vol, uint64_t index, unsigned nr, uint64_t *out)
{
	unsigned size = c->v->plan.geo.version == 6 ? 8 : 4;
	uint8_t buf[BATCH * 8];
	int r = volume_read(c->v, buf, (size_t)nr * size, vol + index * size);

	for (unsigned i = 0; i < nr && !r; i++)
		out[i] = size == 8 ? le64_load(buf + 8ull * i) : le32_load(buf + 4ull * i);
	return r;
}

/* All blocks under one address of a level have one answer: a hole, or lost. */
static void all_below(struct cursor *c, uint64_t bn, unsigned shift, const char *why)
{
	c->first = bn >> shift << shift;
	c->nr = BIT(shift);
	c->same = true;
	c->raw[0] = 0;
	c->why = why;
}

/* Down from the address `raw`, which covers 2^shift blocks, to the words of its pointer block. */
static void fetch_pb(struct cursor *c, uint64_t bn, uint64_t raw, unsigned shift, unsigned want)
{
	uint64_t per = BIT(c->per_block_shift), index, vol = 0;
	const char *why;

	if (!raw || pb_locate(c, raw, &vol, &why) < 0) {
		all_below(c, bn, shift, raw ? why : NULL);
		c->pb = 0;
		return;
	}
	c->pb = vol;
	shift -= c->per_block_shift;
	index = bn >> shift & (per - 1);
	if (shift) {
		if (pb_words(c, vol, index, 1, &raw) < 0)
			all_below(c, bn, shift, lost_pb);
		else
			fetch_pb(c, bn, raw, shift, want);
		return;
	}
	want = (unsigned)MIN(want, per - index);
	if (pb_words(c, vol, index, want, c->raw) < 0) {
		/* One bad sector is not the whole block. */
		want = 1;
		c->raw[0] = 0;
		if (pb_words(c, vol, index, 1, c->raw) < 0)
			c->why = lost_pb;
	}
	c->first = bn;
	c->nr = want;
}

static void fetch_direct(struct cursor *c, uint64_t bn, unsigned want)
{
	c->pb = 0;
	c->first = bn;
	c->nr = MIN(want, c->in->nr_addr - bn);
	memcpy(c->raw, c->in->address + bn, c->nr * sizeof(c->raw[0]));
}

/* The rest of the file has no addresses. */
static void fetch_none(struct cursor *c, uint64_t bn, const char *why)
{
	c->pb = 0;
	c->first = bn;
	c->nr = UINT64_MAX - bn;
	c->same = true;
	c->why = why;
}

/* The address of block bn: in *raw, 0 a hole, or *why is set. How many blocks share the answer. */
static uint64_t cursor_get(struct cursor *c, uint64_t bn, unsigned want, uint64_t *raw)
{
	int levels = file_levels(c->in);
	unsigned shift;

	if (bn < c->first || bn - c->first >= c->nr) {
		c->same = false;
		c->why = NULL;
		shift = levels > 0 ? (unsigned)levels * c->per_block_shift : 0;
		if (levels < 0)
			fetch_none(c, bn, lost_unknown);
		else if (bn >> shift >= c->in->nr_addr)
			fetch_none(c, bn, lost_descriptor);
		else if (levels == 0)
			fetch_direct(c, bn, MIN(want, (unsigned)BATCH));
		else
			fetch_pb(c, bn, c->in->address[bn >> shift], shift,
				 MIN(want, (unsigned)BATCH));
	}
	*raw = c->same ? 0 : c->raw[bn - c->first];
	return c->same ? c->first + c->nr - bn : 1;
}

/* --- ranges ------------------------------------------------------------------------------------
 */

static void set_lost(struct vmfs_range *r, const char *why)
{
	r->kind = VMFS_RANGE_LOST;
	r->why = why;
}

static const char *why_of(int error)
{
	switch (error) {
	case -ERANGE:
		return lost_beyond;
	case -ENODATA:
		return lost_extent;
	case -ENOENT:
		return lost_resource;
	default:
		return lost_address;
	}
}

/* r->len bytes from r->off on are in the block at raw, or fewer. */
static void resolve(struct cursor *c, uint64_t raw, struct vmfs_range *r)
{
	uint64_t block = BIT(c->in->block_shift), len = 0, in_block, vol = 0;
	struct vmfs_addr a;
	int err = vmfs_addr_parse(&c->v->plan.geo, raw, &a);

	if (err < 0 ||
	    (a.type != VMFS_ADDR_FB && a.type != VMFS_ADDR_SB && a.type != VMFS_ADDR_LFB)) {
		set_lost(r, err < 0 ? lost_address : lost_kind);
		return;
	}
	err = addr_locate(c->v, &a, c->busy, &vol, &len);
	if (err < 0) {
		set_lost(r, why_of(err));
		return;
	}
	in_block = r->off & (MAX(block, is_pow2(len) ? len : 1) - 1);
	if (in_block >= len) {
		set_lost(r, lost_short);
		return;
	}
	r->len = MIN(r->len, len - in_block);
	r->cow = a.cow;
	r->vol = vol + in_block;
	r->kind = a.tbz ? VMFS_RANGE_ZERO : VMFS_RANGE_DATA;
	if (r->kind == VMFS_RANGE_DATA) {
		err = vmfs_locate(c->v, r->vol, &r->len, &r->dev, &r->dev_off);
		if (err < 0)
			set_lost(r, why_of(err));
	}
}

/* What holds off, up to the end of its block or of what shares the answer. */
static void one_piece(struct cursor *c, uint64_t off, uint64_t max, struct vmfs_range *r)
{
	unsigned shift = c->in->block_shift;
	uint64_t want = (max >> shift) + 1, raw, nr, end;

	nr = cursor_get(c, off >> shift, (unsigned)MIN(want, (uint64_t)BATCH), &raw);
	if (__builtin_add_overflow(off >> shift, nr, &end) || end > UINT64_MAX >> shift)
		end = UINT64_MAX;
	else
		end <<= shift;
	*r = (struct vmfs_range){.off = off, .len = MIN(max, end - off), .pb = c->pb};
	if (c->why)
		set_lost(r, c->why);
	else if (!raw)
		r->kind = VMFS_RANGE_HOLE;
	else
		resolve(c, raw, r);
}

static bool goes_on(const struct vmfs_range *a, const struct vmfs_range *b)
{
	if (a->kind != b->kind || a->cow != b->cow || a->why != b->why)
		return false;
	if (a->kind == VMFS_RANGE_HOLE)
		return true;
	if (a->pb != b->pb)
		return false;
	if (a->kind == VMFS_RANGE_LOST)
		return true;
	if (a->vol + a->len != b->vol)
		return false;
	return a->kind != VMFS_RANGE_DATA ||
	       (a->dev == b->dev && a->dev_off + a->len == b->dev_off);
}

static void resident_range(struct vmfs *v, const struct vmfs_inode *in, uint64_t off, uint64_t max,
			   struct vmfs_range *r)
{
	const struct vmfs_geometry *g = &v->plan.geo;
	uint64_t room = g->version == 6 ? FS_FD_SMALL_6 : FS_FD_SMALL_5;
	uint64_t at = g->version == 6 ? g->md_align + FS_FD_META_SIZE : 2 * FS_SECTOR;

	*r = (struct vmfs_range){.off = off, .len = max, .kind = VMFS_RANGE_RESIDENT};
	if (off >= room) {
		set_lost(r, lost_resident);
		return;
	}
	r->len = MIN(max, room - off);
	r->vol = in->vol + at + off;
}

int file_range(struct vmfs *v, const struct vmfs_inode *in, uint64_t off, uint64_t max,
	       unsigned busy, struct vmfs_range *r)
{
	struct cursor c = {
		.v = v,
		.in = in,
		.busy = busy,
		.per_block_shift = log2_of(v->plan.geo.ptr_per_block),
	};
	struct vmfs_range next;

	if (off >= in->length)
		return -ERANGE;
	max = MIN(max, in->length - off);
	*r = (struct vmfs_range){.off = off, .len = max};
	if (in->resident)
		resident_range(v, in, off, max, r);
	else if (in->type == VMFS_RDM)
		set_lost(r, lost_rdm);
	else
		one_piece(&c, off, max, r);
	if (in->resident || in->type == VMFS_RDM)
		return 0;
	for (unsigned i = 0; i < MAX_STEPS && r->len < max; i++) {
		one_piece(&c, off + r->len, max - r->len, &next);
		if (!goes_on(r, &next))
			break;
		r->len += next.len;
	}
	return 0;
}

int vmfs_file_range(struct vmfs *v, const struct vmfs_inode *in, uint64_t off, struct vmfs_range *r)
{
	return file_range(v, in, off, UINT64_MAX, 0, r);
}

/* --- reading -----------------------------------------------------------------------------------
 */

static int read_range(struct vmfs *v, const struct vmfs_inode *in, const struct vmfs_range *r,
		      uint8_t *buf)
{
	switch (r->kind) {
	case VMFS_RANGE_HOLE:
	case VMFS_RANGE_ZERO:
		memset(buf, 0, r->len);
		return 0;
	case VMFS_RANGE_RESIDENT:
		memcpy(buf, in->data + r->off, r->len);
		return 0;
	case VMFS_RANGE_DATA:
		if (in->is_dir && r->len <= SMALL_READ)
			return volume_read(v, buf, r->len, r->vol);
		return blk_read(v->plan.dev[r->dev], buf, r->len, r->dev_off);
	default:
		return r->why == lost_extent ? -ENODATA : -EIO;
	}
}

int64_t vmfs_file_read(struct vmfs *v, const struct vmfs_inode *in, void *buf, size_t len,
		       uint64_t off)
{
	uint64_t total = off < in->length ? MIN((uint64_t)len, in->length - off) : 0, done = 0;
	struct vmfs_range range;
	int r = 0;

	for (; done < total && !r; done += range.len) {
		r = file_range(v, in, off + done, total - done, 0, &range);
		if (!r)
			r = read_range(v, in, &range, (uint8_t *)buf + done);
	}
	return r < 0 ? r : (int64_t)total;
}
