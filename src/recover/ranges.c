/* recover/ranges.c - a node's bytes: where each lies, and how sure that is.
 *
 * The reader says where a range is.  Its mark is EXACT unless something speaks against it, in this
 * order: nobody knows where it is (UNKNOWN); its extent is missing or the device could not read it
 * (UNREADABLE); the blocks of a deleted file are a live one's now, or marked as used again, or were
 * discarded (OVERWRITTEN); it was concluded (INFERRED). */
#include "recover/internal.h"

#include "base/bytes.h"
#include "block/format.h"
#include "block/iov.h"
#include "vmfs/ondisk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- sources ---- */

int rec_read_source(struct rec *r, unsigned source, void *buf, size_t len, uint64_t pos)
{
	struct blk *b = r->source[source].blk;

	if (!range_inside(pos, len, blk_size(b)))
		return -EIO;
	return blk_read(b, buf, len, pos) < 0 ? -EIO : 0;
}

static int source_of(const struct rec *r, unsigned dev)
{
	const struct vmfs_plan *p = vmfs_plan(r->v);

	for (unsigned i = 0; dev < p->nr_devs && i < r->nr_sources; i++)
		if (p->dev[dev] == r->source[i].blk)
			return (int)i;
	return -1;
}

/* ---- marks ---- */

static void mark(struct rec_range *x, enum rec_trust trust, const char *why)
{
	x->trust = trust;
	x->why = why;
}

static bool cut(struct rec_range *x, uint64_t len)
{
	x->len = MIN(x->len, len);
	return x->len;
}

/* Is its first byte unreadable?  Shortens to what shares the answer, as far as that is known. */
static bool unreadable(struct rec *r, struct rec_range *x)
{
	uint64_t end;
	bool bad;

	bad = spans_at(&r->bad[x->source], x->source_off, &end);
	if (end != UINT64_MAX)
		(void)cut(x, end - x->source_off);
	if (bad || !r->cfg.unreadable)
		return bad;
	if (!r->cfg.unreadable(r->cfg.opaque, (unsigned)x->source, x->source_off, x->len))
		return false;
	/* Somewhere in it: halve until it is known where. */
	while (x->len > 512) {
		uint64_t half = ALIGN_UP(x->len / 2, 512);

		if (half >= x->len)
			break;
		x->len = half;
		if (!r->cfg.unreadable(r->cfg.opaque, (unsigned)x->source, x->source_off, half))
			return false;
	}
	return true;
}

/* Did the storage throw it away?  Only asked of what is deleted. */
static bool discarded(struct rec *r, struct rec_range *x)
{
	struct blk *b = r->source[x->source].blk;
	uint64_t len = x->len, end;
	enum blk_extent what;

	if (blk_extent(b, x->source_off, &len, &what) < 0)
		return false;
	if (len)
		(void)cut(x, len);
	if (what != BLK_EXT_DATA)
		return true;
	if (!spans_at(&r->zero[x->source], x->source_off, &end)) {
		if (end != UINT64_MAX)
			(void)cut(x, end - x->source_off);
		return false;
	}
	(void)cut(x, end - x->source_off);
	return true;
}

static int block_used(struct rec *r, uint64_t vol)
{
	const struct vmfs_geometry *g = &vmfs_plan(r->v)->geo;
	struct vmfs_addr a = {.type = VMFS_ADDR_FB, .cluster = vol / g->file_block_size};

	return vmfs_addr_used(r->v, &a);
}

/* A sub-block that the descriptor itself names. */
static int sub_block_used(struct rec *r, const struct vmfs_inode *in, uint64_t off)
{
	uint64_t i = off >> in->block_shift;
	struct vmfs_addr a;

	if (in->zla != FS_ZLA_SB || i >= in->nr_addr ||
	    vmfs_addr_parse(&vmfs_plan(r->v)->geo, in->address[i], &a) < 0)
		return 0;
	return vmfs_addr_used(r->v, &a);
}

static void judge_deleted(struct rec *r, const struct node *n, const struct vmfs_inode *in,
			  uint64_t vol, struct rec_range *x)
{
	uint64_t len = x->len, end, block = 1ull << in->block_shift;
	enum owner o = owners_at(r, vol, &len);
	bool whole_block = block >= vmfs_plan(r->v)->geo.file_block_size;

	(void)cut(x, len);
	if (o != OWNER_NONE) {
		mark(x, REC_OVERWRITTEN, "a live file has these blocks now");
		return;
	}
	if (n->lost_to) {
		bool lost = spans_at(n->lost_to, x->off, &end);

		if (end != UINT64_MAX)
			(void)cut(x, end - x->off);
		if (lost) {
			mark(x, REC_OVERWRITTEN, "a file deleted later had these blocks");
			return;
		}
	}
	if (whole_block) {
		uint64_t bs = vmfs_plan(r->v)->geo.file_block_size;

		(void)cut(x, bs - vol % bs);
		if (block_used(r, vol) == 1 || owners_system(r, vol)) {
			mark(x, REC_OVERWRITTEN, "these blocks are in use again");
			return;
		}
	}
	if (!whole_block) {
		(void)cut(x, block - (x->off & (block - 1)));
		if (sub_block_used(r, in, x->off) == 1) {
			mark(x, REC_OVERWRITTEN, "this sub-block is in use again");
			return;
		}
	}
	if (discarded(r, x))
		mark(x, REC_OVERWRITTEN, "reads as zeroes: discarded by the storage");
}

/* An address that was damaged leads to a block on its own, so the first of a run is asked. */
static void judge_live(struct rec *r, const struct vmfs_inode *in, uint64_t vol,
		       struct rec_range *x)
{
	uint64_t bs = vmfs_plan(r->v)->geo.file_block_size, len = x->len;
	enum owner o = owners_at(r, vol, &len);

	(void)cut(x, len);
	if (1ull << in->block_shift >= bs && owners_system(r, vol)) {
		(void)cut(x, bs - vol % bs);
		mark(x, REC_OVERWRITTEN, "these blocks are the file system's own");
	} else if (o == OWNER_MANY) {
		mark(x, REC_INFERRED, "two files claim these blocks");
	} else if (1ull << in->block_shift >= bs && block_used(r, vol) == 0) {
		(void)cut(x, bs - vol % bs);
		mark(x, REC_INFERRED, "its block is marked free");
	}
}

/* ---- ranges ---- */

static void carved_range(struct rec *r, const struct node *n, uint64_t off, struct rec_range *x)
{
	uint64_t len, vol;

	*x = (struct rec_range){.off = off,
				.len = n->length - off,
				.trust = REC_INFERRED,
				.kind = VMFS_RANGE_DATA,
				.source = (int)n->carved->source,
				.source_off = n->carved->pos + off,
				.why = "found by its content; taken to lie in one piece"};
	if (off >= n->carved->len) {
		x->source = -1;
		mark(x, REC_UNREADABLE, "beyond the end of the device");
		return;
	}
	(void)cut(x, n->carved->len - off);
	len = x->len;
	vol = carve_volume_offset(r, n->carved->source, x->source_off, &len);
	if (vol != UINT64_MAX) {
		enum owner o;

		(void)cut(x, len);
		o = owners_at(r, vol, &len);
		(void)cut(x, len);
		if (o != OWNER_NONE) {
			mark(x, REC_OVERWRITTEN, "a live file has these blocks now");
			return;
		}
	}
	if (unreadable(r, x))
		mark(x, REC_UNREADABLE, "the device cannot read it");
}

static bool on_missing_extent(struct rec *r, const struct vmfs_range *v)
{
	return v->why && strstr(v->why, "extent");
}

/* A range of which the reader knows no place. */
static void placeless(struct rec *r, const struct node *n, const struct vmfs_inode *in,
		      const struct vmfs_range *v, struct rec_range *x)
{
	if (v->kind == VMFS_RANGE_LOST && on_missing_extent(r, v))
		mark(x, REC_UNREADABLE, v->why);
	else if (v->kind == VMFS_RANGE_LOST)
		mark(x, REC_UNKNOWN, v->why ? v->why : "where it lies cannot be told");
	else if (n->state == REC_DELETED && n->grade > 2 && v->kind == VMFS_RANGE_HOLE)
		mark(x, REC_UNKNOWN, "its block addresses were wiped");
	else if (n->inode && v->kind == VMFS_RANGE_HOLE && !v->pb)
		mark(x, REC_UNKNOWN, "its pointer block was not found");
	else if (n->inode && v->kind != VMFS_RANGE_RESIDENT)
		mark(x, REC_INFERRED, "by a pointer block that was nobody's");
	else if (v->kind == VMFS_RANGE_ZERO && !in->nr_tbz)
		mark(x, REC_INFERRED, "its address says to be zeroed, its descriptor counts none");
}

static void data_range(struct rec *r, const struct node *n, const struct vmfs_inode *in,
		       const struct vmfs_range *v, struct rec_range *x)
{
	x->source = source_of(r, v->dev);
	x->source_off = v->dev_off;
	if (x->source < 0) {
		mark(x, REC_UNREADABLE, "its extent is not there");
		return;
	}
	if (n->state == REC_DELETED)
		judge_deleted(r, n, in, v->vol, x);
	else if (!n->system)
		judge_live(r, in, v->vol, x);
	if (x->trust == REC_OVERWRITTEN)
		return;
	if (unreadable(r, x))
		mark(x, REC_UNREADABLE, "the device cannot read it");
	else if (n->inode && x->trust == REC_EXACT)
		mark(x, REC_INFERRED, "by a pointer block that was nobody's");
	else if (r->lost_files && x->trust == REC_EXACT && (in->zla == FS_ZLA_SB || v->pb))
		mark(x, REC_INFERRED, "its resource file is lost: by the headers of its clusters");
}

int node_range(struct rec *r, uint32_t node, const struct vmfs_inode *in, uint64_t off,
	       struct rec_range *x)
{
	const struct node *n = &r->tree.v[node];
	struct vmfs_range v;
	int e;

	if (off >= n->length)
		return -ERANGE;
	*x = (struct rec_range){.off = off, .len = n->length - off, .source = -1};
	if (n->made) {
		x->kind = VMFS_RANGE_RESIDENT;
		mark(x, REC_INFERRED, "put together by recovery");
		return 0;
	}
	if (n->carved) {
		carved_range(r, n, off, x);
		return 0;
	}
	if (n->unreachable || !in) {
		x->kind = VMFS_RANGE_LOST;
		mark(x, REC_UNKNOWN, "its descriptor is lost");
		return 0;
	}
	e = vmfs_file_range(r->v, in, off, &v);
	if (e < 0)
		return e;
	x->len = MIN(x->len, v.len);
	x->kind = v.kind;
	if (v.kind == VMFS_RANGE_DATA)
		data_range(r, n, in, &v, x);
	else
		placeless(r, n, in, &v, x);
	return 0;
}

/* ---- bytes ---- */

int node_inode(struct rec *r, uint32_t node, struct vmfs_inode *in, struct error *err)
{
	const struct node *n = &r->tree.v[node];

	if (n->made || n->carved || n->synthetic || n->unreachable)
		return -ENOENT;
	if (n->inode) {
		*in = *n->inode;
		return 0;
	}
	if (!r->v)
		return err_set(err, ENOENT, "there is no volume");
	return vmfs_inode_read(r->v, n->fd, in, err);
}

/* What lies in a range; what cannot be read is zeroes and -EIO. */
static int read_range(struct rec *r, const struct node *n, const struct vmfs_inode *in,
		      const struct rec_range *x, uint8_t *buf, size_t len, uint64_t off)
{
	if (n->made) {
		memcpy(buf, n->made + off, len);
		return 0;
	}
	if (x->source >= 0 && x->trust != REC_UNREADABLE) {
		uint64_t pos = x->source_off + (off - x->off);

		if (rec_read_source(r, (unsigned)x->source, buf, len, pos) == 0)
			return 0;
		memset(buf, 0, len);
		return -EIO;
	}
	if (x->kind == VMFS_RANGE_RESIDENT && in && range_inside(off, len, sizeof(in->data)))
		memcpy(buf, in->data + off, len);
	else
		memset(buf, 0, len);
	return x->trust == REC_UNREADABLE ? -EIO : 0;
}

static bool is_sure(const struct rec_range *x)
{
	return x->trust == REC_EXACT || x->trust == REC_INFERRED;
}

/* strict: a range that is not sure is an error; else zeroes where nothing can be read. */
static int read_node(struct rec *r, uint32_t node, const struct vmfs_inode *in, uint8_t *buf,
		     size_t len, uint64_t off, bool strict)
{
	const struct node *n = &r->tree.v[node];
	struct rec_range x;

	while (len) {
		size_t step;
		int e = node_range(r, node, in, off, &x);

		if (e < 0)
			return e;
		if (strict && !is_sure(&x))
			return -EIO;
		step = (size_t)MIN((uint64_t)len, x.off + x.len - off);
		if (read_range(r, n, in, &x, buf, step, off) < 0 && strict)
			return -EIO;
		buf += step;
		off += step;
		len -= step;
	}
	return 0;
}

int node_read(struct rec *r, uint32_t node, void *buf, size_t len, uint64_t off)
{
	struct vmfs_inode in;
	bool has = node_inode(r, node, &in, NULL) == 0;

	return read_node(r, node, has ? &in : NULL, buf, len, off, false);
}

/* ---- measuring ---- */

enum { MEASURE_MAX_RANGES = 1 << 20 };

void node_measure(struct rec *r, uint32_t node)
{
	struct node *n = &r->tree.v[node];
	struct measure *m = n->measure;
	struct vmfs_inode in;
	struct rec_range x;
	bool has;

	if (m)
		return;
	m = arena_alloc(&r->arena, sizeof(*m));
	if (!m)
		return;
	n->measure = m;
	if (n->synthetic)
		return;
	has = node_inode(r, node, &in, NULL) == 0;
	for (uint64_t off = 0, i = 0; off < n->length; off += x.len, i++) {
		if (i == MEASURE_MAX_RANGES || node_range(r, node, has ? &in : NULL, off, &x) < 0) {
			m->bytes[REC_UNKNOWN] += n->length - off;
			break;
		}
		m->bytes[x.trust] += x.len;
		if (x.kind == VMFS_RANGE_DATA || x.kind == VMFS_RANGE_RESIDENT)
			m->stored += x.len;
	}
}

/* ---- as a disk ---- */

struct file {
	struct rec *r;
	uint32_t node;
	bool strict, has_inode;
	struct vmfs_inode in;
};

static int file_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	struct file *f = b->priv;

	for (unsigned i = 0; i < n; i++) {
		int e = read_node(f->r, f->node, f->has_inode ? &f->in : NULL, iov[i].iov_base,
				  iov[i].iov_len, off, f->strict);

		if (e < 0)
			return e;
		off += iov[i].iov_len;
	}
	return 0;
}

static int file_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	struct file *f = b->priv;
	struct rec_range x;
	int e = node_range(f->r, f->node, f->has_inode ? &f->in : NULL, off, &x);

	if (e < 0)
		return e;
	m->len = MIN(m->len, x.off + x.len - off);
	m->what = BLK_EXT_DATA;
	if (f->strict && !is_sure(&x))
		return 0; /* reading it tells */
	if (x.kind == VMFS_RANGE_HOLE || x.kind == VMFS_RANGE_LOST)
		m->what = BLK_EXT_HOLE;
	else if (x.kind == VMFS_RANGE_ZERO)
		m->what = BLK_EXT_ZERO;
	return 0;
}

static void file_close(struct blk *b)
{
	free(b->priv);
}

static const struct blk_format file_format = {
	.name = "recovered",
	.parallel = true,
	.readv = file_readv,
	.map = file_map,
	.close = file_close,
};

int node_blk(struct rec *r, uint32_t node, unsigned flags, struct blk **out, struct error *err)
{
	const struct node *n = &r->tree.v[node];
	struct blk_info info = {.size = n->length, .block_size = 512};
	struct file *f;
	char path[4096];
	int e;

	if (n->length > INT64_MAX)
		return err_set(err, EFBIG, "'%s': a length of %llu bytes cannot be", n->name,
			       (unsigned long long)n->length);
	f = calloc(1, sizeof(*f));
	if (!f)
		return err_errno(err, ENOMEM, "'%s'", n->name);
	f->r = r;
	f->node = node;
	f->strict = flags & REC_BLK_STRICT;
	f->has_inode = node_inode(r, node, &f->in, NULL) == 0;
	(void)owners_build(r, NULL); /* before threads ask */
	e = blk_wrap(out, &file_format, f, &info, BLK_READONLY | BLK_FILE | BLK_NO_POOL, err);
	if (e < 0) {
		free(f);
		return e;
	}
	if (tree_path(r, node, path, sizeof(path)) >= 0)
		(*out)->path = strdup(path);
	return 0;
}
