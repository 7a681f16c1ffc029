/* recover/disk.c - a virtual disk of the tree, as the guest saw it.
 *
 * The format driver reads the descriptor and asks for the files it names; they are nodes here,
 * found by group.c's rules: beside the descriptor, below /deleted, by path, by length.  A parent
 * whose name is lost is known by its CID. */
#include "recover/internal.h"
#include "recover/text.h"

#include "block/blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct opener {
	struct rec *r;
	unsigned flags;
};

static uint32_t by_tree_path(struct rec *r, const char *path)
{
	struct rec_entry e;

	return rec_lookup(r, path, &e, NULL) == 0 ? node_by_id(r, e.id) : 0;
}

static bool is_descriptor(struct rec *r, uint32_t node)
{
	node_look(r, node);
	return r->tree.v[node].what && !strcmp(r->tree.v[node].what, "vmdk-descriptor");
}

static bool read_desc(struct rec *r, uint32_t node, struct desc *d)
{
	size_t len;
	char *text = is_descriptor(r, node) ? node_text(r, node, &len) : NULL;

	if (!text)
		return false;
	desc_read(d, text);
	free(text);
	return true;
}

/* The descriptor beside `child` that has the CID it stands on. */
static uint32_t by_cid(struct rec *r, uint32_t child, uint32_t cid)
{
	uint32_t dir = r->tree.v[child].parent;
	struct desc *d = malloc(sizeof(*d));
	uint32_t found = 0;

	for (uint32_t i = r->tree.v[dir].first; d && i && !found; i = r->tree.v[i].next)
		if (i != child && !r->tree.v[i].is_dir && read_desc(r, i, d) && d->cid == cid)
			found = i;
	free(d);
	return found;
}

/* What `name` is for the descriptor `from`: an extent of it, or its parent. */
static uint32_t named_node(struct rec *r, uint32_t from, const char *name)
{
	struct desc *d = malloc(sizeof(*d));
	uint32_t found = 0;

	if (!d || !read_desc(r, from, d)) {
		free(d);
		return group_resolve(r, r->tree.v[from].parent, name);
	}
	for (unsigned i = 0; i < d->nr_ext && !found; i++)
		if (!strcmp(d->ext[i].name, name))
			found = group_extent(r, from, &d->ext[i]);
	if (!found)
		found = group_resolve(r, r->tree.v[from].parent, name);
	if (!found && !strcmp(d->parent, name))
		found = by_cid(r, from, d->parent_cid);
	free(d);
	return found;
}

static int give_file(void *opaque, const char *from, const char *name, struct blk **file,
		     struct error *err)
{
	struct opener *o = opaque;
	uint32_t opener = by_tree_path(o->r, from);
	uint32_t node = opener ? named_node(o->r, opener, name) : 0;

	if (!node)
		return err_set(err, ENOENT, "'%s' names '%s', which was not found", from, name);
	return node_blk(o->r, node, o->flags, file, err);
}

static int open_as(struct rec *r, uint32_t node, const char *format, unsigned flags,
		   struct blk **out, struct error *err)
{
	struct opener o = {.r = r, .flags = flags};
	struct blk_open_opts opts = {.ref = give_file, .ref_opaque = &o};
	unsigned how = BLK_READONLY | BLK_NO_LOCK | BLK_NO_POOL;
	struct blk *file = NULL;
	char path[4096];
	int e = node_blk(r, node, flags, &file, err);

	if (e < 0)
		return e;
	if (tree_path(r, node, path, sizeof(path)) < 0)
		path[0] = 0;
	if (!(flags & REC_BLK_STRICT))
		how |= BLK_RECOVER;
	return blk_open_on(out, file, path, format, how, &opts, err);
}

/* The descriptor that names this extent: beside it, found or made. */
static uint32_t descriptor_of(struct rec *r, uint32_t extent)
{
	uint32_t dir = r->tree.v[extent].parent, found = 0;
	struct desc *d = malloc(sizeof(*d));

	for (uint32_t i = r->tree.v[dir].first; d && i && !found; i = r->tree.v[i].next) {
		if (i == extent || r->tree.v[i].is_dir || !read_desc(r, i, d))
			continue;
		for (unsigned k = 0; k < d->nr_ext && !found; k++)
			if (group_extent(r, i, &d->ext[k]) == extent)
				found = i;
	}
	free(d);
	return found;
}

int rec_open_disk(struct rec *r, uint64_t id, unsigned flags, struct blk **out, struct error *err)
{
	uint32_t node = node_by_id(r, id), descriptor;
	const char *what;

	if (!node || r->tree.v[node].is_dir)
		return err_set(err, ENOENT, "there is no disk #%llu", (unsigned long long)id);
	node_look(r, node);
	what = r->tree.v[node].what ? r->tree.v[node].what : "";
	if (!strcmp(what, "vmdk-descriptor") || !strcmp(what, "sparse"))
		return open_as(r, node, "vmdk", flags, out, err);
	descriptor = descriptor_of(r, node);
	if (descriptor)
		return open_as(r, descriptor, "vmdk", flags, out, err);
	if (!strcmp(what, "vmfs-sparse") || !strcmp(what, "se-sparse"))
		return open_as(r, node, "vmdk", flags, out, err);
	return open_as(r, node, "raw", flags, out, err);
}
