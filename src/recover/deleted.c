/* recover/deleted.c - descriptors that no directory leads to.
 *
 * Those in use are orphans: they go where their parent is, if that can be told.  Those that are
 * free are deleted files, and their directories stand again below /deleted.  A name comes from an
 * entry with the descriptor's address and generation, wherever it was found; system files have
 * theirs by address. */
#include "recover/internal.h"

#include "vmfs/ondisk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- all descriptors ---- */

static bool is_blank(const struct vmfs_inode *in)
{
	for (unsigned i = 0; i < in->nr_addr; i++)
		if (in->address[i])
			return false;
	return true;
}

static unsigned grade_of(const struct vmfs_inode *in)
{
	if (!in->length || in->resident || in->type == VMFS_RDM || !in->nr_blocks)
		return 1;
	return is_blank(in) ? 3 : 1; /* 2: when its blocks are found */
}

/* Free, and with nothing left of a file: as good as never used. */
static bool is_worthless(const struct vmfs_inode *in)
{
	return in->free_bit && !in->length && !in->links && !in->mtime;
}

static void add_descriptor(struct rec *r, uint32_t addr)
{
	struct vmfs_inode in;
	struct node *n;
	uint32_t node;

	if (node_by_fd(r, addr) || vmfs_inode_read(r->v, addr, &in, NULL) < 0 || is_worthless(&in))
		return;
	node = tree_node(r, ID_FD(addr));
	if (!node)
		return;
	n = &r->tree.v[node];
	node_from_inode(n, &in);
	n->state = in.free_bit ? REC_DELETED : REC_ORPHAN;
	n->grade = in.free_bit ? (uint8_t)grade_of(&in) : 0;
	node_index_fd(r, node);
}

static uint32_t fd_address(uint32_t cluster, uint32_t resource)
{
	return 4 | cluster << 6 | resource << 22;
}

/* False: this cluster is beyond the end of the descriptors. */
static bool look_cluster(struct rec *r, uint32_t cluster, uint32_t per_cluster)
{
	struct vmfs_addr a;
	uint64_t vol, len;
	int e;

	if (vmfs_addr_parse(&vmfs_plan(r->v)->geo, fd_address(cluster, 0), &a) < 0)
		return false;
	e = vmfs_addr_locate(r->v, &a, &vol, &len);
	if (e < 0 && cluster)
		return false;
	for (uint32_t i = 0; i < per_cluster && i < 1024; i++)
		add_descriptor(r, fd_address(cluster, i));
	return true;
}

/* No more things of a size than there are bytes for, whatever a header says. */
uint64_t volume_room(struct rec *r, uint64_t size)
{
	const struct vmfs_plan *p = vmfs_plan(r->v);
	uint64_t sum = 0;

	for (unsigned i = 0; i < p->nr_runs; i++)
		sum += p->run[i].len;
	return sum / MAX(size, 1ull) + 1;
}

static int by_vol(const void *a, const void *b)
{
	const struct vmfs_fd_place *x = a, *y = b;

	return x->vol < y->vol ? -1 : x->vol > y->vol;
}

/* Those whose places are known, in the order they lie: their addresses jump about. */
static void look_known(struct rec *r)
{
	const struct vmfs_plan *p = vmfs_plan(r->v);
	struct vmfs_fd_place *list = malloc(MAX(p->nr_fds, (size_t)1) * sizeof(*list));

	if (!list)
		return;
	if (p->nr_fds)
		memcpy(list, p->fd, p->nr_fds * sizeof(*list));
	qsort(list, p->nr_fds, sizeof(*list), by_vol);
	for (size_t i = 0; i < p->nr_fds; i++) {
		add_descriptor(r, list[i].addr);
		if (i % 1024 == 0)
			rec_tell(r, REC_PHASE_TREE, i, p->nr_fds);
		if (i % 1024 == 0 && rec_stopped(r))
			break;
	}
	free(list);
}

static void look_everywhere(struct rec *r)
{
	const struct vmfs_plan *p = vmfs_plan(r->v);
	uint32_t per_cluster = p->geo.res[VMFS_RES_FDC].per_cluster;
	uint64_t most = volume_room(r, p->geo.fd_size) / MAX(per_cluster, 1u) + 2;
	unsigned misses = 0;

	look_known(r);
	for (uint32_t c = 0; c < 65536 && c < most && misses < 2; c++) {
		misses = look_cluster(r, c, per_cluster) ? 0 : misses + 1;
		if (c % 16 == 0)
			rec_tell(r, REC_PHASE_TREE, r->tree.n, r->tree.n);
		if (rec_stopped(r))
			return;
	}
}

/* ---- names ---- */

static const char *system_name(uint32_t fd, unsigned version)
{
	static const struct {
		uint32_t fd;
		unsigned since;
		const char *name;
	} names[] = {
		{FS_FD_FBB, 3, ".fbb.sf"}, {FS_FD_FDC, 3, ".fdc.sf"}, {FS_FD_PBC, 3, ".pbc.sf"},
		{FS_FD_SBC, 3, ".sbc.sf"}, {FS_FD_VH, 3, ".vh.sf"},   {FS_FD_PB2, 5, ".pb2.sf"},
		{FS_FD_SDD, 5, ".sdd.sf"}, {FS_FD_JBC, 6, ".jbc.sf"}, {FS_FD_UNMAP, 6, ".unmap.sf"},
		{FS_FD_DFD, 6, ".dfd.sf"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].fd == fd && version >= names[i].since)
			return names[i].name;
	return NULL;
}

static const char *made_name(struct rec *r, const struct node *n)
{
	const char *kind = n->is_dir                 ? "dir"
			   : n->type == VMFS_SYMLINK ? "link"
			   : n->type == VMFS_RDM     ? "rdm"
						     : "file";
	char *s = arena_printf(&r->arena, "%s-%08x", kind, n->fd);

	return s ? s : "";
}

/* A deleted entry of VMFS5 has lost the address; its generation tells, when no other has it. */
static const struct found_name *by_generation(struct rec *r, const struct node *n)
{
	const struct found_name *f = n->gen ? names_find(&r->names, 0, n->gen) : NULL;
	const struct found_name *end = r->names.v + r->names.n;

	if (!f || f->type != n->type)
		return NULL;
	for (const struct found_name *o = f + 1; o < end && !o->fd && o->gen == f->gen; o++)
		if (o->dir && f->dir && (strcmp(o->name, f->name) != 0 || o->dir != f->dir))
			return NULL;
	return f;
}

static const struct found_name *give_name(struct rec *r, struct node *n)
{
	const struct found_name *f = names_find(&r->names, n->fd, n->gen);
	const char *system =
		n->type == VMFS_SYSTEM ? system_name(n->fd, vmfs_plan(r->v)->geo.version) : NULL;

	if (!f && n->state == REC_DELETED)
		f = by_generation(r, n);
	n->name = system ? system : f ? f->name : made_name(r, n);
	n->name_made = !system && !f;
	return f;
}

/* ---- places ---- */

static int remember_name(void *opaque, const struct vmfs_dirent *e)
{
	void **arg = opaque;
	struct found_name f = {.fd = e->addr,
			       .gen = e->generation,
			       .dir = *(const uint32_t *)arg[1],
			       .type = (uint8_t)e->type,
			       .free = e->free,
			       .rank = 2,
			       .name = e->name};

	if (strcmp(e->name, ".") != 0 && strcmp(e->name, "..") != 0)
		(void)names_add(arg[0], &f);
	return 0;
}

/* What the directories among the new nodes still say. */
static void read_new_dirs(struct rec *r, uint32_t from)
{
	struct vmfs_inode in;

	for (uint32_t i = from; i < r->tree.n; i++) {
		uint32_t fd = r->tree.v[i].fd;
		void *arg[2] = {r, &fd};

		if (r->tree.v[i].is_dir && vmfs_inode_read(r->v, fd, &in, NULL) == 0)
			(void)vmfs_dir_each(r->v, &in, true, remember_name, arg, NULL, NULL);
	}
	names_settle(&r->names);
}

static uint32_t parent_of(struct rec *r, const struct node *n, const struct found_name *f)
{
	struct vmfs_inode in;
	uint32_t fd = 0, node;

	if (vmfs_plan(r->v)->geo.version == 6 && vmfs_inode_read(r->v, n->fd, &in, NULL) == 0)
		fd = in.parent;
	if (!fd && f)
		fd = f->dir;
	if (!fd && n->is_dir)
		fd = names_parent(&r->names, n->fd);
	if (!fd && n->type == VMFS_SYSTEM)
		fd = VMFS_FD_ROOT;
	node = fd && fd != n->fd ? node_by_fd(r, fd) : 0;
	return node && r->tree.v[node].is_dir ? node : 0;
}

static void place_node(struct rec *r, uint32_t i)
{
	const struct found_name *f = give_name(r, &r->tree.v[i]);
	uint32_t parent = parent_of(r, &r->tree.v[i], f);
	bool deleted = r->tree.v[i].state == REC_DELETED;

	if (parent && tree_below(r, parent, i))
		parent = 0; /* a loop */
	if (parent && deleted && r->tree.v[parent].state != REC_DELETED)
		parent = tree_mirror(r, parent);
	if (parent && !deleted && r->tree.v[parent].state == REC_DELETED)
		parent = 0;
	if (!parent)
		parent = tree_top(r, deleted ? ID_DELETED : ID_LOST);
	if (parent && parent != i)
		node_attach(r, i, parent);
}

/* An orphan with a name of its own, in a directory that could not be read, was reached by its name
 * after all. */
static void adopt(struct rec *r, uint32_t dir)
{
	for (uint32_t i = r->tree.v[dir].first; i; i = r->tree.v[i].next) {
		struct node *n = &r->tree.v[i];
		const struct found_name *f;

		if (n->state != REC_ORPHAN || n->synthetic)
			continue;
		f = names_find(&r->names, n->fd, n->gen);
		if (n->name_made || (f && f->free && !n->system))
			continue;
		n->state = REC_LIVE;
		if (n->is_dir && !n->note)
			n->note = "found without the directory it is in";
	}
}

static void adopt_all(struct rec *r)
{
	bool more = true;

	for (unsigned pass = 0; more && pass < REC_MAX_DEPTH; pass++) {
		more = false;
		for (uint32_t i = 1; i < r->tree.n; i++) {
			struct node *n = &r->tree.v[i];

			if (!n->is_dir || n->state != REC_LIVE || !n->note || n->looked)
				continue;
			n->looked = true;
			adopt(r, i);
			more = true;
		}
	}
	for (uint32_t i = 1; i < r->tree.n; i++)
		r->tree.v[i].looked = false;
}

/* Entries of directories whose descriptor is lost, when that is found after all. */
static void drop_ghosts(struct rec *r)
{
	for (uint32_t i = 1; i < r->tree.n; i++) {
		struct node *n = &r->tree.v[i];
		uint32_t found;

		if (!n->unreachable || !n->parent)
			continue;
		found = node_by_fd(r, n->fd);
		if (found && r->tree.v[found].gen == n->gen)
			node_detach(r, i);
	}
}

int deleted_find(struct rec *r, struct error *err)
{
	uint32_t from = r->tree.n, end;

	look_everywhere(r);
	if (rec_stopped(r))
		return err_set(err, EINTR, "stopped; what was found is kept");
	read_new_dirs(r, from);
	end = r->tree.n;
	for (uint32_t i = from; i < end; i++)
		place_node(r, i);
	adopt_all(r);
	drop_ghosts(r);
	return deleted_match(r, err);
}
