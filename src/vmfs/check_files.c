/* vmfs/check_files.c - every descriptor, and every address it leads to.
 *
 * A pointer block is gone into once only: so the work is bounded by the volume, also where blocks
 * point at one another. */
#include "vmfs/check.h"

#include <stdlib.h>

enum { WORDS = 1024 };

struct file {
	struct check *c;
	const struct vmfs_inode *in;
	uint64_t blocks, pointer_blocks, large;
	uint64_t last_large; /* a large block stands in many places in a row */
};

static void tell_address(struct file *f, uint64_t raw)
{
	check_tell(f->c, VMFS_DAMAGE, "address",
		   "descriptor %#x has the address %#llx, which is none on this volume",
		   f->in->addr, (unsigned long long)raw);
}

/* True when the block is marked now for the first time. */
static bool mark(struct file *f, uint64_t raw, const struct vmfs_addr *a)
{
	enum vmfs_resource_kind kind = VMFS_RES_FBB;
	uint64_t index;

	if (!check_index(f->c, a, &kind, &index)) {
		if (f->c->use[kind].nr) /* else nothing can be said without its resource file */
			tell_address(f, raw);
		return false;
	}
	if (!bit_get(f->c->use[kind].used, index)) {
		bit_set(f->c->use[kind].used, index);
		return true;
	}
	if (!a->cow)
		check_tell(f->c, VMFS_DAMAGE, "double-use",
			   "%s %llu is used twice, the second time by descriptor %#x",
			   check_kind_name[kind == VMFS_RES_FBB && a->type == VMFS_ADDR_FB
						   ? VMFS_RES_SFB
						   : kind],
			   (unsigned long long)index, f->in->addr);
	return false;
}

static void data_address(struct file *f, uint64_t raw)
{
	struct vmfs_addr a;

	if (!raw)
		return;
	if (vmfs_addr_parse(&f->c->v->plan.geo, raw, &a) < 0 ||
	    (a.type != VMFS_ADDR_FB && a.type != VMFS_ADDR_SB && a.type != VMFS_ADDR_LFB)) {
		tell_address(f, raw);
		return;
	}
	if (a.type == VMFS_ADDR_LFB && f->large && f->last_large == a.cluster)
		return;
	if (a.type == VMFS_ADDR_LFB) {
		f->large++;
		f->last_large = a.cluster;
	}
	f->blocks++;
	(void)mark(f, raw, &a);
}

static int each_word(struct file *f, uint64_t vol, int levels);

static int pointer_address(struct file *f, uint64_t raw, int levels)
{
	const struct vmfs_geometry *g = &f->c->v->plan.geo;
	uint64_t vol, len;
	struct vmfs_addr a;

	if (!raw)
		return 0;
	if (vmfs_addr_parse(g, raw, &a) < 0 ||
	    (a.type != VMFS_ADDR_PB && a.type != VMFS_ADDR_PB2 &&
	     (g->version != 6 || (a.type != VMFS_ADDR_SB && a.type != VMFS_ADDR_FB)))) {
		tell_address(f, raw);
		return 0;
	}
	f->pointer_blocks++;
	if (!mark(f, raw, &a))
		return 0;
	if (vmfs_addr_locate(f->c->v, &a, &vol, &len) < 0 ||
	    len < (uint64_t)g->ptr_per_block * (g->version == 6 ? 8 : 4)) {
		check_tell(f->c, VMFS_DAMAGE, "pointer-block",
			   "the pointer block %#llx of descriptor %#x has no place",
			   (unsigned long long)raw, f->in->addr);
		return 0;
	}
	return each_word(f, vol, levels - 1);
}

static int one_address(struct file *f, uint64_t raw, int levels)
{
	if (levels > 0)
		return pointer_address(f, raw, levels);
	data_address(f, raw);
	return 0;
}

static int each_word(struct file *f, uint64_t vol, int levels)
{
	const struct vmfs_geometry *g = &f->c->v->plan.geo;
	unsigned size = g->version == 6 ? 8 : 4;
	uint8_t buf[WORDS * 4];
	unsigned per = sizeof(buf) / size;
	int r = 0;

	if (check_stopped(f->c))
		return -ECANCELED;
	for (unsigned i = 0; i < g->ptr_per_block && !r; i += per) {
		unsigned n = MIN(per, g->ptr_per_block - i);

		if (volume_read(f->c->v, buf, (size_t)n * size, vol + (uint64_t)i * size) < 0) {
			check_tell(f->c, VMFS_DAMAGE, "pointer-block",
				   "a pointer block of descriptor %#x is not readable",
				   f->in->addr);
			return 0;
		}
		for (unsigned k = 0; k < n && !r; k++)
			r = one_address(f,
					size == 8 ? le64_load(buf + 8ull * k)
						  : le32_load(buf + 4ull * k),
					levels);
	}
	return r;
}

/* --- a file ------------------------------------------------------------------------------------
 */

static uint64_t reach(const struct vmfs_geometry *g, const struct vmfs_inode *in, int levels)
{
	uint64_t n = in->nr_addr;

	if (in->resident)
		return g->version == 6 ? FS_FD_SMALL_6 : FS_FD_SMALL_5;
	for (int i = 0; i < levels; i++)
		n *= g->ptr_per_block;
	return n > UINT64_MAX >> in->block_shift ? UINT64_MAX : n << in->block_shift;
}

static int check_addresses(struct check *c, const struct vmfs_inode *in, int levels)
{
	struct file f = {.c = c, .in = in};
	int r = 0;

	for (unsigned i = 0; i < in->nr_addr && !r; i++)
		r = one_address(&f, in->address[i], levels);
	/* How large blocks count is not known. */
	if (!r && !f.large && f.blocks != in->nr_blocks)
		check_tell(c, VMFS_WARNING, "block-count",
			   "descriptor %#x says that it has %llu blocks; it has %llu", in->addr,
			   (unsigned long long)in->nr_blocks, (unsigned long long)f.blocks);
	return r;
}

static int check_file(struct check *c, const struct vmfs_inode *in)
{
	int levels = file_levels(in);

	if (in->type == VMFS_RDM)
		return 0;
	if (levels < 0 && !in->resident) {
		check_tell(c, VMFS_DAMAGE, "addressing",
			   "descriptor %#x has an unknown kind of addressing (%#x)", in->addr,
			   in->zla);
		return 0;
	}
	if (in->length > reach(&c->v->plan.geo, in, levels))
		check_tell(c, VMFS_DAMAGE, "length",
			   "descriptor %#x is %llu bytes long, more than its addresses reach",
			   in->addr, (unsigned long long)in->length);
	return in->resident ? 0 : check_addresses(c, in, levels);
}

int check_files(struct check *c)
{
	struct use *u = &c->use[VMFS_RES_FDC];
	uint32_t per = c->v->plan.geo.res[VMFS_RES_FDC].per_cluster;
	struct vmfs_inode *in = malloc(sizeof(*in));
	struct error err;
	int r = in ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < u->nr && !r; i++) {
		bool unsure = bit_get(u->unknown, i / per);

		if (check_stopped(c))
			r = -ECANCELED;
		if (r || (!bit_get(u->allocated, i) && !unsure))
			continue;
		if (vmfs_inode_read(c->v, check_fd_addr(c, i), in, &err) < 0) {
			if (!unsure)
				check_tell(c, VMFS_DAMAGE, "descriptor", "%s", err.msg);
			continue;
		}
		if (unsure) /* its bitmap is lost: it counts as what it says it is */
			bit_set(u->allocated, i);
		bit_set(u->used, i);
		r = check_file(c, in);
	}
	free(in);
	return r;
}
