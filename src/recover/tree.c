/* recover/tree.c - from a volume to nodes.
 *
 * First the walk from the root by names.  Then the descriptors that no directory named, where they
 * are known: put where their parent is (VMFS6), or where an entry found on the disk says (VMFS5),
 * with the name that entry has; else below /lost+found, those that are free below /deleted, where
 * the directories they were in stand again.  A descriptor gets one place, so there are no loops. */
#include "recover/internal.h"

#include "vmfs/ondisk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- nodes ---- */

static uint32_t hash64(uint64_t x)
{
	x *= 0x9e3779b97f4a7c15ull;
	return (uint32_t)(x >> 32);
}

static bool rehash(struct tree *t)
{
	uint32_t nr = MAX(64u, t->nr_buckets * 2), *by_id = calloc(nr, sizeof(*by_id));
	uint32_t *by_fd = calloc(nr, sizeof(*by_fd));

	if (!by_id || !by_fd) {
		free(by_id);
		free(by_fd);
		return false;
	}
	for (uint32_t i = 1; i < t->n; i++) {
		uint32_t at = hash64(t->v[i].id) & (nr - 1);

		while (by_id[at])
			at = (at + 1) & (nr - 1);
		by_id[at] = i;
	}
	for (uint32_t i = 0; i < t->nr_fd_buckets; i++) {
		uint32_t node = t->by_fd[i], at;

		if (!node)
			continue;
		for (at = hash64(t->v[node].fd) & (nr - 1); by_fd[at];)
			at = (at + 1) & (nr - 1);
		by_fd[at] = node;
	}
	free(t->by_id);
	free(t->by_fd);
	t->by_id = by_id;
	t->by_fd = by_fd;
	t->nr_buckets = t->nr_fd_buckets = nr;
	return true;
}

uint32_t node_by_id(const struct rec *r, uint64_t id)
{
	const struct tree *t = &r->tree;
	uint32_t at;

	if (!t->nr_buckets || !id)
		return 0;
	for (at = hash64(id) & (t->nr_buckets - 1); t->by_id[at];
	     at = (at + 1) & (t->nr_buckets - 1))
		if (t->v[t->by_id[at]].id == id)
			return t->by_id[at];
	return 0;
}

uint32_t node_by_fd(const struct rec *r, uint32_t fd)
{
	const struct tree *t = &r->tree;
	uint32_t at;

	if (!t->nr_fd_buckets)
		return 0;
	for (at = hash64(fd) & (t->nr_fd_buckets - 1); t->by_fd[at];
	     at = (at + 1) & (t->nr_fd_buckets - 1))
		if (t->v[t->by_fd[at]].fd == fd)
			return t->by_fd[at];
	return 0;
}

void node_index_fd(struct rec *r, uint32_t node)
{
	struct tree *t = &r->tree;
	uint32_t at = hash64(t->v[node].fd) & (t->nr_fd_buckets - 1);

	while (t->by_fd[at])
		at = (at + 1) & (t->nr_fd_buckets - 1);
	t->by_fd[at] = node;
}

uint32_t tree_node(struct rec *r, uint64_t id)
{
	struct tree *t = &r->tree;
	struct node *grown;
	uint32_t at;

	if (t->n >= REC_MAX_NODES || (2 * t->n >= t->nr_buckets && !rehash(t)))
		return 0;
	if (t->n >= t->cap) {
		uint32_t cap = MAX(64u, t->cap + t->cap / 2);

		grown = realloc(t->v, cap * sizeof(*grown));
		if (!grown)
			return 0;
		t->v = grown;
		t->cap = cap;
	}
	if (!t->n)
		t->v[t->n++] = (struct node){.name = ""};
	while (node_by_id(r, id)) /* by damage only */
		id += BIT(48);
	t->v[t->n] = (struct node){.id = id, .name = ""};
	for (at = hash64(id) & (t->nr_buckets - 1); t->by_id[at];)
		at = (at + 1) & (t->nr_buckets - 1);
	t->by_id[at] = t->n;
	return t->n++;
}

void node_attach(struct rec *r, uint32_t child, uint32_t parent)
{
	struct node *v = r->tree.v;

	v[child].parent = parent;
	v[child].next = v[parent].first;
	v[parent].first = child;
}

void node_detach(struct rec *r, uint32_t child)
{
	struct node *v = r->tree.v;
	uint32_t *link = &v[v[child].parent].first;

	while (*link && *link != child)
		link = &v[*link].next;
	if (*link)
		*link = v[child].next;
	v[child].parent = v[child].next = 0;
}

uint32_t node_child(const struct rec *r, uint32_t dir, const char *name)
{
	for (uint32_t i = r->tree.v[dir].first; i; i = r->tree.v[i].next)
		if (!strcmp(r->tree.v[i].name, name))
			return i;
	return 0;
}

bool tree_below(const struct rec *r, uint32_t node, uint32_t dir)
{
	for (unsigned i = 0; node && i < REC_MAX_DEPTH + 2; i++) {
		if (node == dir)
			return true;
		node = r->tree.v[node].parent;
	}
	return node != 0;
}

int tree_path(const struct rec *r, uint32_t node, char *buf, size_t cap)
{
	uint32_t up[REC_MAX_DEPTH + 2];
	unsigned n = 0;
	size_t len = 0;

	for (; node > REC_ROOT && n < ARRAY_SIZE(up); node = r->tree.v[node].parent)
		up[n++] = node;
	if (!n && cap > 1)
		return (int)strlen(strcpy(buf, "/"));
	while (n--) {
		int w = snprintf(buf + len, cap - len, "/%s", r->tree.v[up[n]].name);

		if (w < 0 || (size_t)w >= cap - len)
			return -ERANGE;
		len += (size_t)w;
	}
	return 0;
}

void tree_fini(struct tree *t)
{
	for (uint32_t i = 1; i < t->n; i++)
		if (t->v[i].lost_to) {
			spans_fini(t->v[i].lost_to);
			free(t->v[i].lost_to);
		}
	free(t->v);
	free(t->by_id);
	free(t->by_fd);
	*t = (struct tree){0};
}

void node_from_inode(struct node *n, const struct vmfs_inode *in)
{
	n->fd = in->addr;
	n->gen = in->generation;
	n->type = (uint8_t)in->type;
	n->is_dir = in->is_dir;
	n->system = in->type == VMFS_SYSTEM;
	n->length = in->length;
	n->mtime = in->mtime;
	n->mode = in->mode;
	n->uid = in->uid;
	n->gid = in->gid;
}

/* ---- directories of ours ---- */

static uint32_t make_dir(struct rec *r, uint64_t id, const char *name, uint32_t parent,
			 enum rec_state state)
{
	uint32_t node = tree_node(r, id);
	struct node *n;

	if (!node)
		return 0;
	n = &r->tree.v[node];
	n->name = name;
	n->type = VMFS_DIR;
	n->is_dir = n->synthetic = true;
	n->mode = S_IFDIR | 0755;
	n->state = (uint8_t)state;
	node_attach(r, node, parent);
	return node;
}

uint32_t tree_top(struct rec *r, uint64_t id)
{
	struct tree *t = &r->tree;
	uint32_t *top = id == ID_LOST ? &t->lost : id == ID_DELETED ? &t->deleted : &t->carved;
	const char *name = id == ID_LOST ? "lost+found" : id == ID_DELETED ? "deleted" : "carved";
	enum rec_state state = id == ID_LOST      ? REC_ORPHAN
			       : id == ID_DELETED ? REC_DELETED
						  : REC_CARVED;

	if (*top)
		return *top;
	/* A volume may have a directory of that name: ours gets another. */
	if (node_child(r, REC_ROOT, name))
		name = arena_printf(&r->arena, "%s~", name);
	*top = name ? make_dir(r, id, name, REC_ROOT, state) : 0;
	return *top;
}

uint32_t tree_mirror(struct rec *r, uint32_t live)
{
	uint32_t up[REC_MAX_DEPTH + 2], at = tree_top(r, ID_DELETED);
	unsigned n = 0;

	for (; live > REC_ROOT && n < ARRAY_SIZE(up); live = r->tree.v[live].parent)
		up[n++] = live;
	while (n-- && at) {
		uint64_t id = ID_MIRROR(r->tree.v[up[n]].id);
		uint32_t have = node_by_id(r, id);

		at = have ? have : make_dir(r, id, r->tree.v[up[n]].name, at, REC_DELETED);
	}
	return at;
}

/* ---- the walk ---- */

struct entry_list {
	struct vmfs_dirent *v;
	size_t n, cap;
};

static int collect(void *opaque, const struct vmfs_dirent *e)
{
	struct entry_list *l = opaque;

	if (l->n >= REC_MAX_NODES || !array_room(&l->v, l->n, &l->cap, sizeof(*l->v)))
		return -ENOMEM;
	l->v[l->n++] = *e;
	return 0;
}

static void remember_slot(struct rec *r, uint32_t dir, const struct vmfs_dirent *e)
{
	struct found_name f = {.fd = e->addr,
			       .gen = e->generation,
			       .dir = r->tree.v[dir].fd,
			       .type = (uint8_t)e->type,
			       .free = e->free,
			       .rank = 2,
			       .name = e->name};

	(void)names_add(r, &f);
}

/* A name whose descriptor is gone or belongs to another file by now. */
static void add_unreadable(struct rec *r, uint32_t dir, const struct vmfs_dirent *e,
			   const char *note)
{
	uint32_t node = tree_node(r, ID_SLOT + ID_FD(e->addr));
	struct node *n;

	if (!node)
		return;
	n = &r->tree.v[node];
	n->name = arena_text(&r->arena, e->name, strlen(e->name));
	if (!n->name)
		n->name = "";
	n->type = (uint8_t)e->type;
	n->is_dir = e->type == VMFS_DIR;
	n->system = e->type == VMFS_SYSTEM;
	n->fd = e->addr;
	n->gen = e->generation;
	n->unreachable = true;
	n->state = REC_LIVE;
	n->note = note;
	node_attach(r, node, dir);
}

static void add_child(struct rec *r, uint32_t dir, const struct vmfs_dirent *e)
{
	struct vmfs_inode in;
	struct error err;
	uint32_t node;

	if (node_by_fd(r, e->addr)) {
		r->trouble++;
		rec_note(r, "'%s' is another name of a file that has one: left out", e->name);
		return;
	}
	if (vmfs_inode_read(r->v, e->addr, &in, &err) < 0) {
		r->trouble++;
		remember_slot(r, dir, e);
		add_unreadable(r, dir, e, "its descriptor is lost");
		return;
	}
	if (in.generation != e->generation) {
		r->trouble++;
		remember_slot(r, dir, e);
		rec_note(r, "'%s' names a descriptor that is another file's by now", e->name);
		return;
	}
	node = tree_node(r, ID_FD(e->addr));
	if (!node)
		return;
	node_from_inode(&r->tree.v[node], &in);
	r->tree.v[node].name = arena_text(&r->arena, e->name, strlen(e->name));
	if (!r->tree.v[node].name)
		r->tree.v[node].name = "";
	r->tree.v[node].state = REC_LIVE;
	node_attach(r, node, dir);
	node_index_fd(r, node);
}

static bool is_dot(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

/* The entries of one directory become nodes.  With an inode of a deleted one its names are only
 * remembered. */
static void read_dir(struct rec *r, uint32_t dir, const struct vmfs_inode *in, bool names_only)
{
	struct entry_list l = {0};
	struct error err = {""};
	uint64_t bad = 0;

	if (vmfs_dir_each(r->v, in, true, collect, &l, &bad, &err) < 0 && !names_only) {
		r->trouble++;
		r->tree.v[dir].note = "not all of its entries can be read";
		rec_note(r, "directory '%s': %s",
			 r->tree.v[dir].name[0] ? r->tree.v[dir].name : "/",
			 err.msg[0] ? err.msg : "its entries cannot be read");
	}
	if (!names_only && bad) {
		r->trouble += bad;
		r->tree.v[dir].note = "some of its entries cannot be read";
	}
	for (size_t i = 0; i < l.n; i++) {
		const struct vmfs_dirent *e = &l.v[i];

		if (is_dot(e->name))
			continue;
		if (e->free || names_only)
			remember_slot(r, dir, e);
		else
			add_child(r, dir, e);
	}
	free(l.v);
}

static unsigned depth_of(const struct rec *r, uint32_t node)
{
	unsigned d = 0;

	for (; node > REC_ROOT && d <= REC_MAX_DEPTH; node = r->tree.v[node].parent)
		d++;
	return d;
}

/* An empty directory has at least "." or a header: one whose first bytes are lost is no empty one.
 */
static void check_dir(struct rec *r, uint32_t dir)
{
	struct node *n = &r->tree.v[dir];

	if (!n->first && !n->note && n->length > 280 && r->v && vmfs_plan(r->v)->geo.version < 6) {
		r->trouble++;
		n->note = "its entries are lost";
	}
}

static void walk(struct rec *r, uint32_t from)
{
	/* Nodes are made in the order they are found, so the array itself is the queue. */
	for (uint32_t i = from; i < r->tree.n; i++) {
		struct vmfs_inode in;
		struct node *n = &r->tree.v[i];

		if (i % 256 == 0) {
			rec_tell(r, REC_PHASE_TREE, i, r->tree.n);
			if (rec_stopped(r))
				return;
		}
		if (!n->is_dir || n->synthetic || n->unreachable || n->state == REC_DELETED)
			continue;
		if (depth_of(r, i) >= REC_MAX_DEPTH) {
			r->trouble++;
			continue;
		}
		if (vmfs_inode_read(r->v, n->fd, &in, NULL) == 0) {
			read_dir(r, i, &in, false);
			check_dir(r, i);
		}
	}
}

static int make_root(struct rec *r, struct error *err)
{
	struct vmfs_inode in;
	uint32_t node = tree_node(r, REC_ROOT);
	struct node *n;

	if (node != REC_ROOT)
		return err_errno(err, ENOMEM, "tree");
	n = &r->tree.v[node];
	n->type = VMFS_DIR;
	n->is_dir = true;
	n->mode = S_IFDIR | 0755;
	n->synthetic = true;
	if (r->v && vmfs_inode_read(r->v, VMFS_FD_ROOT, &in, err) == 0 && in.is_dir) {
		node_from_inode(n, &in);
		n->synthetic = false;
	} else {
		r->trouble++;
		n->note = "the root's descriptor is lost";
		n->fd = VMFS_FD_ROOT;
	}
	node_index_fd(r, node);
	return 0;
}

/* ---- names twice ---- */

static int by_name(const void *a, const void *b, void *arg)
{
	const struct node *v = arg;
	const struct node *x = &v[*(const uint32_t *)a], *y = &v[*(const uint32_t *)b];
	int c = strcmp(x->name, y->name);

	if (c)
		return c;
	if (x->state != y->state)
		return x->state < y->state ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

static void untangle(struct rec *r, uint32_t first, uint32_t second)
{
	struct node *a = &r->tree.v[first], *b = &r->tree.v[second];
	const char *name;

	if (strcmp(a->name, b->name) != 0)
		return;
	name = arena_printf(&r->arena, "%s~%llx", b->name, (unsigned long long)b->id);
	if (name)
		b->name = name;
}

/* In each directory the first of a name keeps it. */
void tree_untangle_names(struct rec *r)
{
	uint32_t *child = malloc(MAX(r->tree.n, 1u) * sizeof(*child));

	for (uint32_t d = 1; child && d < r->tree.n; d++) {
		size_t n = 0;
		bool mixed = false;

		for (uint32_t i = r->tree.v[d].first; i && n < r->tree.n; i = r->tree.v[i].next) {
			child[n++] = i;
			mixed |= r->tree.v[i].state != REC_LIVE || r->tree.v[i].unreachable;
		}
		if (!mixed)
			continue;
		qsort_r(child, n, sizeof(*child), by_name, r->tree.v);
		for (size_t i = n; i-- > 1;) /* from the end: the first of a name keeps it */
			untangle(r, child[i - 1], child[i]);
	}
	free(child);
}

/* ---- all of it ---- */

int tree_build(struct rec *r, struct error *err)
{
	int e;

	owners_fini(r);
	group_fini(r);
	tree_fini(&r->tree);
	names_fini(&r->names);
	e = make_root(r, NULL);
	if (e < 0)
		return err_errno(err, -e, "the tree");
	if (r->scanned)
		e = names_gather(r);
	if (e < 0)
		return err_errno(err, -e, "names");
	if (r->v)
		walk(r, REC_ROOT);
	names_settle(&r->names);
	if (rec_stopped(r))
		return err_set(err, EINTR, "stopped; what was found is kept");
	if (r->v && r->depth > REC_AS_IS)
		e = deleted_find(r, err);
	if (!e && r->depth > REC_AS_IS)
		e = carve_find(r, err);
	if (!e)
		e = group_build(r, err);
	if (!e)
		tree_untangle_names(r);
	return e;
}
