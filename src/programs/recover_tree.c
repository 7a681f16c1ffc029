/* recover_tree.c - see recover_tree.h.
 *
 * Numbers: an entry's id is its node's.  With DISKS set: DISKS alone is ".disks", (vm + 1) << 8 a
 * VM's directory in it, and a disk + 1 in the low byte one of its disks. */
#include "programs/recover_tree.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define DISKS      (1ull << 62)
#define DISKS_NAME ".disks"

struct vm {
	char *name;
	unsigned nr_disks;
	struct {
		uint64_t entry, size;
	} disk[REC_VM_DISKS];
};

struct shown {
	struct recover *rc;
	uint64_t only;
	struct vm *vm;
	size_t nr_vms, cap;
};

_Static_assert(REC_VM_DISKS < 255, "a disk's number has eight bits");

/* --- VMs ---------------------------------------------------------------------------------------
 */

static bool name_taken(const struct shown *s, const char *name)
{
	for (size_t i = 0; i < s->nr_vms; i++)
		if (!strcmp(s->vm[i].name, name))
			return true;
	return false;
}

/* As a file name, and no other's. */
static char *name_for(const struct shown *s, const char *name)
{
	char safe[200], *out = NULL;

	recover_safe_text(*name ? name : "vm", safe, sizeof(safe));
	for (char *p = safe; *p; p++)
		if (*p == '/')
			*p = '_';
	if (!strcmp(safe, ".") || !strcmp(safe, ".."))
		safe[0] = '_';
	if (!name_taken(s, safe))
		return strdup(safe);
	return asprintf(&out, "%s.%zu", safe, s->nr_vms + 1) < 0 ? NULL : out;
}

static int add_vm(void *opaque, const struct rec_vm *vm)
{
	struct shown *s = opaque;
	struct vm *v;

	if (s->only && s->only != vm->id)
		return 0;
	if (s->nr_vms == s->cap) {
		size_t cap = s->cap ? 2 * s->cap : 16;
		struct vm *more = realloc(s->vm, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		s->vm = more;
		s->cap = cap;
	}
	v = &s->vm[s->nr_vms];
	*v = (struct vm){.name = name_for(s, s->only ? "vm" : vm->name)};
	if (!v->name)
		return -ENOMEM;
	for (unsigned i = 0; i < vm->nr_disks; i++) {
		if (!vm->disk[i].descriptor)
			continue;
		v->disk[v->nr_disks].entry = vm->disk[i].descriptor;
		v->disk[v->nr_disks++].size = vm->disk[i].size;
	}
	s->nr_vms++;
	return 0;
}

static const struct vm *vm_of(const struct shown *s, uint64_t id)
{
	uint64_t n = (id & ~DISKS) >> 8;

	return n >= 1 && n <= s->nr_vms ? &s->vm[n - 1] : NULL;
}

static int disk_node(const struct shown *s, uint64_t id, struct tree_node *n)
{
	const struct vm *v = vm_of(s, id);
	unsigned disk = id & 0xff;

	*n = (struct tree_node){.id = id, .mode = S_IFDIR | 0555};
	if (id == DISKS)
		return 0;
	if (!v || disk > v->nr_disks)
		return -ENOENT;
	if (disk) {
		n->mode = S_IFREG | 0444;
		n->size = n->stored = v->disk[disk - 1].size;
	}
	return 0;
}

static int disk_child(const struct shown *s, uint64_t dir, const char *name, struct tree_node *n)
{
	const struct vm *v = vm_of(s, dir);
	unsigned disk;
	char end;

	if (dir == DISKS) {
		for (size_t i = 0; i < s->nr_vms; i++)
			if (!strcmp(s->vm[i].name, name))
				return disk_node(s, DISKS | (i + 1) << 8, n);
		return -ENOENT;
	}
	if (!v || sscanf(name, "disk%u.ra%c", &disk, &end) != 2 || end != 'w' ||
	    disk >= v->nr_disks)
		return -ENOENT;
	return disk_node(s, dir | (disk + 1), n);
}

static int disk_list(const struct shown *s, uint64_t dir,
		     int (*entry)(void *arg, const char *name, const struct tree_node *n),
		     void *arg)
{
	const struct vm *v = vm_of(s, dir);
	size_t count = dir == DISKS ? s->nr_vms : v ? v->nr_disks : 0;
	struct tree_node n;
	char name[32];
	int r = 0;

	for (size_t i = 0; i < count && r == 0; i++) {
		snprintf(name, sizeof(name), "disk%zu.raw", i);
		disk_node(s, dir == DISKS ? DISKS | (i + 1) << 8 : dir | (i + 1), &n);
		r = entry(arg, dir == DISKS ? s->vm[i].name : name, &n);
	}
	return r;
}

/* --- entries -----------------------------------------------------------------------------------
 */

static void to_node(const struct rec_entry *e, struct tree_node *n)
{
	uint32_t permissions = e->mode & 0777 ? e->mode & 0777 : e->is_dir ? 0555 : 0444;

	*n = (struct tree_node){
		.id = e->id,
		.mode = permissions | (e->is_dir                 ? S_IFDIR
				       : e->type == VMFS_SYMLINK ? S_IFLNK
								 : S_IFREG),
		.size = e->type == VMFS_RDM ? 0 : e->length,
		.stored = e->stored,
		.mtime = e->mtime,
	};
}

static int on_node(void *opaque, uint64_t id, struct tree_node *n)
{
	const struct shown *s = opaque;
	struct rec_entry e;
	int r;

	if (id & DISKS)
		return disk_node(s, id, n);
	r = rec_entry(s->rc->rec, id, &e, NULL);
	if (r == 0)
		to_node(&e, n);
	return r;
}

struct wanted {
	const char *name;
	struct tree_node *n;
	bool found;
};

static int compare_child(void *opaque, const struct rec_entry *e)
{
	struct wanted *w = opaque;

	if (strcmp(e->name, w->name))
		return 0;
	to_node(e, w->n);
	w->found = true;
	return 1;
}

static int on_child(void *opaque, uint64_t dir, const char *name, struct tree_node *n)
{
	const struct shown *s = opaque;
	struct wanted w = {.name = name, .n = n};
	int r;

	if (dir & DISKS)
		return disk_child(s, dir, name, n);
	if (dir == REC_ROOT && !strcmp(name, DISKS_NAME))
		return disk_node(s, DISKS, n);
	r = rec_children(s->rc->rec, dir, compare_child, &w, NULL);
	return r < 0 ? r : w.found ? 0 : -ENOENT;
}

struct lister {
	int (*entry)(void *arg, const char *name, const struct tree_node *n);
	void *arg;
};

static int list_child(void *opaque, const struct rec_entry *e)
{
	const struct lister *l = opaque;
	struct tree_node n;

	to_node(e, &n);
	return l->entry(l->arg, e->name, &n);
}

static int on_list(void *opaque, uint64_t dir,
		   int (*entry)(void *arg, const char *name, const struct tree_node *n), void *arg)
{
	const struct shown *s = opaque;
	struct lister l = {entry, arg};
	struct tree_node n;
	int r;

	if (dir & DISKS)
		return disk_list(s, dir, entry, arg);
	r = rec_children(s->rc->rec, dir, list_child, &l, NULL);
	if (r == 0 && dir == REC_ROOT) {
		disk_node(s, DISKS, &n);
		r = entry(arg, DISKS_NAME, &n);
	}
	return r;
}

static int on_link(void *opaque, uint64_t id, char *buf, size_t cap)
{
	const struct shown *s = opaque;

	return id & DISKS ? -EINVAL : rec_readlink(s->rc->rec, id, buf, cap);
}

static int on_open(void *opaque, uint64_t id, struct blk **b)
{
	const struct shown *s = opaque;
	const struct vm *v = vm_of(s, id);
	unsigned disk = id & 0xff;

	if (!(id & DISKS))
		return rec_blk(s->rc->rec, id, 0, b, NULL);
	if (!v || !disk || disk > v->nr_disks)
		return -EISDIR;
	return rec_open_disk(s->rc->rec, v->disk[disk - 1].entry, 0, b, NULL);
}

static const struct tree_ops tree_ops = {
	.node = on_node,
	.child = on_child,
	.list = on_list,
	.link = on_link,
	.open = on_open,
};

int recover_tree_serve(struct recover *rc, struct tree_mount *m, uint64_t only)
{
	struct shown s = {.rc = rc, .only = only};
	int r = rec_vms(rc->rec, add_vm, &s, NULL);

	if (r >= 0)
		r = tree_serve(m, &tree_ops, &s);
	for (size_t i = 0; i < s.nr_vms; i++)
		free(s.vm[i].name);
	free(s.vm);
	return r;
}
