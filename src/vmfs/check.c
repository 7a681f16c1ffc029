/* vmfs/check.c - a volume examined: what contradicts itself, never changed.
 *
 * In this order: heartbeats and journals, the headers and bitmaps of all clusters, every descriptor
 * and every address it leads to, the tree of directories; then the bitmaps are compared with what
 * is used, and the link counts with the entries.  Memory: two bits for each block of the volume and
 * four bytes for each descriptor. */
#include "vmfs/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_BITS BIT(33)

const char *const check_kind_name[VMFS_NR_RES] = {
	[VMFS_RES_FBB] = "large file block", [VMFS_RES_SFB] = "file block",
	[VMFS_RES_FDC] = "descriptor",       [VMFS_RES_PBC] = "pointer block",
	[VMFS_RES_SBC] = "sub-block",        [VMFS_RES_PB2] = "pointer block (.pb2)",
	[VMFS_RES_JBC] = "journal block",
};

static const char *kind_name(const struct check *c, enum vmfs_resource_kind kind)
{
	if (kind == VMFS_RES_FBB && c->v->plan.geo.version != 6)
		kind = VMFS_RES_SFB;
	return check_kind_name[kind];
}

/* --- telling -----------------------------------------------------------------------------------
 */

/* The first ones of a kind are told, the rest counted. */
static bool is_told(struct check *c, enum vmfs_severity severity, const char *what)
{
	unsigned i;

	for (i = 0; i < c->nr_told; i++)
		if (!strcmp(c->told[i].what, what) && c->told[i].severity == severity)
			break;
	if (i == CHECK_MAX_CODES)
		return false;
	if (i == c->nr_told) {
		c->told[i].what = what;
		c->told[i].severity = severity;
		c->told[i].nr = 0;
		c->nr_told++;
	}
	return c->told[i].nr++ < CHECK_SAMPLES;
}

void check_tell(struct check *c, enum vmfs_severity severity, const char *what, const char *fmt,
		...)
{
	char line[512];
	va_list ap;

	if (!is_told(c, severity, what))
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	for (char *p = line; *p; p++) /* names are the volume's */
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	c->finding(c->opaque, severity, what, line);
}

static void tell_rest(struct check *c)
{
	char line[128];

	for (unsigned i = 0; i < c->nr_told; i++) {
		if (c->told[i].nr <= CHECK_SAMPLES)
			continue;
		snprintf(line, sizeof(line), "%llu more of this kind (%s)",
			 (unsigned long long)(c->told[i].nr - CHECK_SAMPLES), c->told[i].what);
		c->finding(c->opaque, c->told[i].severity, c->told[i].what, line);
	}
}

bool check_stopped(struct check *c)
{
	return c->stop && c->stop(c->opaque);
}

/* --- numbers of resources ----------------------------------------------------------------------
 */

static int addr_kind(const struct check *c, enum vmfs_addr_type type)
{
	switch (type) {
	case VMFS_ADDR_FB:
		return c->v->plan.geo.version == 6 ? VMFS_RES_SFB : VMFS_RES_FBB;
	case VMFS_ADDR_LFB:
		return VMFS_RES_FBB;
	case VMFS_ADDR_SB:
		return VMFS_RES_SBC;
	case VMFS_ADDR_PB:
		return VMFS_RES_PBC;
	case VMFS_ADDR_PB2:
		return VMFS_RES_PB2;
	case VMFS_ADDR_FD:
		return VMFS_RES_FDC;
	case VMFS_ADDR_JB:
		return VMFS_RES_JBC;
	default:
		return -1;
	}
}

bool check_index(const struct check *c, const struct vmfs_addr *a, enum vmfs_resource_kind *kind,
		 uint64_t *index)
{
	const struct vmfs_resource *res;
	int k = addr_kind(c, a->type);

	if (k < 0)
		return false;
	*kind = (enum vmfs_resource_kind)k;
	res = &c->v->plan.geo.res[k];
	*index = a->cluster;
	if (a->type != VMFS_ADDR_FB && a->type != VMFS_ADDR_LFB) {
		if (a->resource >= res->per_cluster || a->cluster > BIT(40))
			return false;
		*index = a->cluster * res->per_cluster + a->resource;
	}
	return *index < c->use[k].nr;
}

uint32_t check_fd_addr(const struct check *c, uint64_t i)
{
	uint32_t per = c->v->plan.geo.res[VMFS_RES_FDC].per_cluster;

	return (uint32_t)(i / per << 6 | i % per << 22 | VMFS_ADDR_FD);
}

/* No more than there can be, whatever a header says. */
static uint64_t count_resources(const struct check *c, enum vmfs_resource_kind kind)
{
	const struct vmfs_geometry *g = &c->v->plan.geo;
	const struct vmfs_resource *r = &g->res[kind];
	const struct vmfs_inode *in = c->v->sys[kind];
	uint64_t nr = r->nr_resources, unit = r->size;

	if (!r->per_cluster || !in)
		return 0;
	if (kind == VMFS_RES_FBB)
		unit = g->version == 6 ? g->file_block_size << g->lfb_shift : g->file_block_size;
	else if (kind == VMFS_RES_SFB)
		unit = g->file_block_size;
	if (kind == VMFS_RES_FBB || kind == VMFS_RES_SFB)
		nr = MIN(nr, volume_end(&c->v->plan) / unit + 1);
	else
		nr = MIN(nr, in->length / MAX(unit, 1ull) + 1);
	if (kind == VMFS_RES_FDC) /* as many as their addresses can name */
		nr = MIN(nr, (uint64_t)r->per_cluster << 16);
	return MIN(MIN(nr, MAX_BITS), (uint64_t)CHECK_MAX_CLUSTERS * r->per_cluster);
}

static int make_room(struct check *c)
{
	bool ok = true;

	for (unsigned k = 0; k < VMFS_NR_RES; k++) {
		struct use *u = &c->use[k];

		u->nr = count_resources(c, k);
		if (!u->nr)
			continue;
		u->allocated = calloc(u->nr / 64 + 1, 8);
		u->used = calloc(u->nr / 64 + 1, 8);
		u->unknown = calloc(u->nr / c->v->plan.geo.res[k].per_cluster / 64 + 1, 8);
		ok &= u->allocated && u->used && u->unknown;
	}
	c->links = calloc(c->use[VMFS_RES_FDC].nr + 1, sizeof(*c->links));
	c->walked = calloc(c->use[VMFS_RES_FDC].nr / 64 + 1, 8);
	return ok && c->links && c->walked ? 0 : -ENOMEM;
}

static void free_room(struct check *c)
{
	for (unsigned k = 0; k < VMFS_NR_RES; k++) {
		free(c->use[k].allocated);
		free(c->use[k].used);
		free(c->use[k].unknown);
	}
	free(c->links);
	free(c->walked);
}

/* --- comparing ---------------------------------------------------------------------------------
 */

static void tell_difference(struct check *c, enum vmfs_resource_kind kind, uint64_t i)
{
	const char *name = kind_name(c, kind);

	if (bit_get(c->use[kind].used, i))
		check_tell(c, VMFS_DAMAGE, "bitmap-free",
			   "%s %llu is in use, but its bitmap calls it free", name,
			   (unsigned long long)i);
	else
		check_tell(c, VMFS_WARNING, "bitmap-leak",
			   "%s %llu is used by nothing, but its bitmap calls it used", name,
			   (unsigned long long)i);
}

/* Journal blocks are the hosts' own, descriptors are compared with the tree. */
static int compare_bitmaps(struct check *c)
{
	for (unsigned k = 0; k < VMFS_NR_RES; k++) {
		struct use *u = &c->use[k];
		uint32_t per = c->v->plan.geo.res[k].per_cluster;

		if (k == VMFS_RES_JBC || k == VMFS_RES_FDC)
			continue;
		for (uint64_t w = 0; w * 64 < u->nr; w++) {
			uint64_t differ = u->allocated[w] ^ u->used[w];

			for (; differ; differ &= differ - 1) {
				uint64_t i = w * 64 + (uint64_t)__builtin_ctzll(differ);

				if (i < u->nr && !bit_get(u->unknown, i / per))
					tell_difference(c, k, i);
			}
			if (w % 65536 == 0 && check_stopped(c))
				return -ECANCELED;
		}
	}
	return 0;
}

/* Entries that name a descriptor, against what it says itself and what its bitmap says. */
static int compare_links(struct check *c)
{
	struct use *u = &c->use[VMFS_RES_FDC];
	struct vmfs_inode *in = malloc(sizeof(*in));
	int r = in ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < u->nr && !r; i++) {
		uint32_t addr = check_fd_addr(c, i);

		if (check_stopped(c))
			r = -ECANCELED;
		if (r || (!bit_get(u->allocated, i) && !c->links[i]))
			continue;
		if (!bit_get(u->used, i)) /* not readable: told already */
			continue;
		if (!bit_get(u->allocated, i))
			check_tell(c, VMFS_DAMAGE, "bitmap-free",
				   "descriptor %#x has a name, but its bitmap calls it free", addr);
		if (!c->links[i]) {
			check_tell(c, VMFS_WARNING, "orphan",
				   "descriptor %#x is in use, but no directory names it", addr);
			continue;
		}
		if (vmfs_inode_read(c->v, addr, in, NULL) == 0 && in->links != c->links[i])
			check_tell(c, VMFS_WARNING, "links",
				   "descriptor %#x counts %u links; %u entries name it", addr,
				   in->links, c->links[i]);
	}
	free(in);
	return r;
}

/* What opening it had to say. */
static void tell_notes(struct check *c)
{
	const char *p = c->v->plan.notes;
	size_t len;

	for (; p && *p; p += len + (p[len] == '\n')) {
		len = strcspn(p, "\n");
		check_tell(c, VMFS_DAMAGE, "header", "%.*s", (int)len, p);
	}
}

int vmfs_check(struct vmfs *v,
	       void (*finding)(void *opaque, enum vmfs_severity severity, const char *what,
			       const char *sentence),
	       void *opaque, bool (*stop)(void *opaque), struct error *err)
{
	static int (*const part[])(struct check * c) = {
		make_room,         check_heartbeats, check_clusters, check_files,
		check_directories, compare_bitmaps,  compare_links,
	};
	struct check *c = calloc(1, sizeof(*c));
	int r = 0;

	if (!c)
		return err_set(err, ENOMEM, "out of memory for checking");
	c->v = v;
	c->finding = finding;
	c->opaque = opaque;
	c->stop = stop;
	tell_notes(c);
	for (unsigned i = 0; i < ARRAY_SIZE(part) && !r; i++)
		r = part[i](c);
	tell_rest(c);
	free_room(c);
	free(c);
	if (r == -ECANCELED)
		return err_set(err, ECANCELED, "checking was stopped");
	return r < 0 ? err_errno(err, -r, "checking ended early") : 0;
}
