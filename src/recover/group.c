/* recover/group.c - what files are, and which make a virtual machine.
 *
 * A VM is a VMX and the disks it names; or, where the VMX is lost, the disks of one directory.  A
 * name in a VMX or a descriptor is looked for beside it, below /deleted where the directory stands
 * again, and by its path; when names are lost, by content: the extent of a flat disk is as long as
 * its descriptor says.  What is missing is put together: a VMX from what descriptors tell, a
 * descriptor from its extent. */
#include "recover/internal.h"
#include "recover/text.h"

#include "block/blk.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* A file whose name is lost, by its length. */
struct nameless {
	uint64_t length;
	uint32_t node;
};

struct vms {
	struct rec_vm *v;
	size_t n, cap;
	struct nameless *nameless;
	size_t nr_nameless;
};

void group_fini(struct rec *r)
{
	if (r->vms) {
		free(r->vms->v);
		free(r->vms->nameless);
	}
	free(r->vms);
	r->vms = NULL;
}

/* ---- what a file is ---- */

static bool ends(const char *name, const char *end)
{
	size_t n = strlen(name), e = strlen(end);

	return n >= e && !strcasecmp(name + n - e, end);
}

static const char *kind_by_name(const char *name)
{
	static const struct {
		const char *end, *what;
	} kinds[] = {
		{".vmx", "vmx"},           {".vmtx", "vmx"},       {".nvram", "nvram"},
		{".log", "log"},           {".vmsd", "snapshots"}, {".vmxf", "team"},
		{".vswp", "swap"},         {".vmss", "suspended"}, {".vmsn", "snapshot-state"},
		{"-flat.vmdk", "flat"},    {"-rdm.vmdk", "rdm"},   {"-rdmp.vmdk", "rdm"},
		{"-ctk.vmdk", "tracking"}, {".iso", "iso"},        {".ovf", "ovf"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (ends(name, kinds[i].end))
			return kinds[i].what;
	return NULL;
}

/* The first bytes of what has no telling name, or one that tells too little. */
static const char *kind_by_content(struct rec *r, uint32_t node)
{
	const struct node *n = &r->tree.v[node];
	uint8_t head[4096];
	size_t len = (size_t)MIN(n->length, sizeof(head));
	unsigned kind;

	if (!len || node_read(r, node, head, len, 0) < 0)
		return NULL;
	kind = detect_file(head, len);
	if (kind)
		return hit_name(kind);
	if (len >= 512 && le16_load(head + 510) == 0xaa55 && n->length >= MiB)
		return "flat";
	return ends(n->name, ".vmdk") && n->length > 64 * KiB ? "flat" : NULL;
}

void node_look(struct rec *r, uint32_t node)
{
	struct node *n = &r->tree.v[node];

	if (n->looked || n->is_dir || n->system || n->type != VMFS_FILE)
		return;
	n->looked = true;
	if (n->what)
		return;
	n->what = n->name_made ? NULL : kind_by_name(n->name);
	if (!n->what && !n->unreachable &&
	    (n->name_made || ends(n->name, ".vmdk") || n->state == REC_CARVED)) {
		const char *what = kind_by_content(r, node);

		r->tree.v[node].what = what;
	}
}

static bool is_kind(struct rec *r, uint32_t node, const char *what)
{
	node_look(r, node);
	return r->tree.v[node].what && !strcmp(r->tree.v[node].what, what);
}

static bool is_sparse_extent(struct rec *r, uint32_t node)
{
	return is_kind(r, node, "vmfs-sparse") || is_kind(r, node, "se-sparse");
}

char *node_text(struct rec *r, uint32_t node, size_t *len)
{
	const struct node *n = &r->tree.v[node];
	char *s;

	if (n->is_dir || !n->length || n->length > REC_TEXT_MAX)
		return NULL;
	*len = (size_t)n->length;
	s = malloc(*len + 1);
	if (!s || node_read(r, node, s, *len, 0) < 0) {
		free(s);
		return NULL;
	}
	s[*len] = 0;
	*len = strlen(s);
	return s;
}

/* ---- finding files that texts name ---- */

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/'), *back = strrchr(path, '\\');
	const char *last = slash > back ? slash : back;

	return last ? last + 1 : path;
}

/* The directory that stands for dir on the other side: live or below /deleted. */
static uint32_t other_side(struct rec *r, uint32_t dir)
{
	uint64_t id = r->tree.v[dir].id;

	if (id > ID_MIRROR(0) && id < ID_SLOT)
		return node_by_id(r, id - ID_MIRROR(0));
	return node_by_id(r, ID_MIRROR(id));
}

static uint32_t walk_path(struct rec *r, uint32_t at, const char *path)
{
	char name[256];

	while (at && *path) {
		size_t n = strcspn(path, "/");

		if (n >= sizeof(name))
			return 0;
		memcpy(name, path, n);
		name[n] = 0;
		path += n + strspn(path + n, "/");
		if (n)
			at = node_child(r, at, name);
	}
	return at;
}

/* "/vmfs/volumes/VOLUME/dir/file" from the root; else beside dir. */
uint32_t group_resolve(struct rec *r, uint32_t dir, const char *name)
{
	static const char volumes[] = "/vmfs/volumes/";
	const char *base = base_name(name), *rest;
	uint32_t found = 0, other;

	if (!strncmp(name, volumes, sizeof(volumes) - 1)) {
		rest = strchr(name + sizeof(volumes) - 1, '/');
		if (rest)
			found = walk_path(r, REC_ROOT, rest);
		if (rest && !found && r->tree.deleted)
			found = walk_path(r, r->tree.deleted, rest);
	} else if (base != name && name[0] != '/') {
		found = walk_path(r, dir, name);
	}
	if (!found)
		found = node_child(r, dir, base);
	if (!found && (other = other_side(r, dir)))
		found = node_child(r, other, base);
	return found && !r->tree.v[found].is_dir ? found : 0;
}

static bool is_extent_like(struct rec *r, uint32_t node)
{
	const struct node *n = &r->tree.v[node];

	return n->type == VMFS_FILE && !n->is_dir && !n->system && !n->made && !n->unreachable &&
	       n->length >= MiB;
}

static int nameless_order(const void *a, const void *b)
{
	const struct nameless *x = a, *y = b;

	if (x->length != y->length)
		return x->length < y->length ? -1 : 1;
	return x->node < y->node ? -1 : x->node > y->node;
}

static bool gather_nameless(struct rec *r)
{
	struct vms *all = r->vms;

	all->nameless = malloc(MAX(r->tree.n, 1u) * sizeof(*all->nameless));
	for (uint32_t i = 1; all->nameless && i < r->tree.n; i++)
		if (r->tree.v[i].name_made && r->tree.v[i].parent && is_extent_like(r, i))
			all->nameless[all->nr_nameless++] =
				(struct nameless){r->tree.v[i].length, i};
	if (all->nameless)
		qsort(all->nameless, all->nr_nameless, sizeof(*all->nameless), nameless_order);
	return all->nameless;
}

/* The file without its name that is exactly so long: in dir, else anywhere, if it is the only one.
 */
static uint32_t by_length(struct rec *r, uint32_t dir, uint64_t length)
{
	const struct nameless *v = r->vms ? r->vms->nameless : NULL;
	uint32_t beside = 0, anywhere = 0;
	size_t lo = 0, hi = v ? r->vms->nr_nameless : 0, nr_beside = 0, nr = 0;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (v[mid].length < length)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; v && lo < r->vms->nr_nameless && v[lo].length == length && nr < 64; lo++, nr++) {
		anywhere = v[lo].node;
		if (r->tree.v[anywhere].parent != dir)
			continue;
		beside = anywhere;
		nr_beside++;
	}
	if (nr_beside)
		return nr_beside == 1 ? beside : 0;
	return nr == 1 ? anywhere : 0;
}

uint32_t group_extent(struct rec *r, uint32_t descriptor, const struct desc_extent *x)
{
	uint32_t dir = r->tree.v[descriptor].parent;
	uint32_t node = x->name[0] ? group_resolve(r, dir, x->name) : 0;

	if (!node && x->sectors && x->sectors < BIT(53))
		node = by_length(r, dir, x->sectors * 512);
	return node == descriptor ? 0 : node;
}

/* ---- names by content ---- */

static void rename_node(struct rec *r, uint32_t node, const char *name, const char *end)
{
	char clean[200];
	size_t n = 0;

	if (!node || !r->tree.v[node].name_made || !name[0])
		return;
	for (; name[n] && n < sizeof(clean) - 1; n++)
		clean[n] = name[n] == '/' || (unsigned char)name[n] < 0x20 ? '_' : name[n];
	clean[n] = 0;
	name = arena_printf(&r->arena, "%s%s", clean, end);
	if (name)
		r->tree.v[node].name = name;
}

static void name_descriptor(struct rec *r, uint32_t node)
{
	struct desc d;
	size_t len, base;
	char *text = node_text(r, node, &len);
	uint32_t extent;
	char stem[200];

	if (!text)
		return;
	desc_read(&d, text);
	free(text);
	if (!d.nr_ext || !d.ext[0].name[0])
		return;
	extent = group_extent(r, node, &d.ext[0]);
	snprintf(stem, sizeof(stem), "%s", base_name(d.ext[0].name));
	rename_node(r, extent, stem, "");
	base = strlen(stem) - (ends(stem, ".vmdk") ? 5 : 0);
	stem[base] = 0;
	if (ends(stem, "-flat"))
		stem[base - 5] = 0;
	else if (ends(stem, "-delta"))
		stem[base - 6] = 0;
	rename_node(r, node, stem, ".vmdk");
}

static void name_vmx(struct rec *r, uint32_t node)
{
	char name[128], *text;
	uint32_t dir = r->tree.v[node].parent;
	size_t len;

	text = node_text(r, node, &len);
	if (text && vmx_value(text, "displayName", name, sizeof(name))) {
		rename_node(r, node, name, ".vmx");
		if (dir > REC_ROOT && !r->tree.v[dir].synthetic)
			rename_node(r, dir, name, "");
	}
	free(text);
}

/* A directory whose name is lost is called as the VM in it. */
static void name_dir(struct rec *r, uint32_t dir)
{
	for (uint32_t i = r->tree.v[dir].first; i; i = r->tree.v[i].next) {
		const char *name = r->tree.v[i].name, *dot = strrchr(name, '.');
		char stem[200];

		if (r->tree.v[i].name_made || !dot || !ends(name, ".vmx"))
			continue;
		snprintf(stem, sizeof(stem), "%.*s", (int)MIN(dot - name, 120), name);
		rename_node(r, dir, stem, "");
		return;
	}
}

static void name_lost(struct rec *r)
{
	for (uint32_t i = 1; i < r->tree.n; i++) {
		if (!r->tree.v[i].name_made || !r->tree.v[i].parent)
			continue;
		if (r->tree.v[i].is_dir)
			name_dir(r, i);
		else if (is_kind(r, i, "vmx"))
			name_vmx(r, i);
	}
	for (uint32_t i = 1; i < r->tree.n; i++)
		if (!r->tree.v[i].is_dir && r->tree.v[i].parent &&
		    (r->tree.v[i].name_made || ends(r->tree.v[i].name, ".vmdk")) &&
		    is_kind(r, i, "vmdk-descriptor"))
			name_descriptor(r, i);
}

/* ---- texts of ours ---- */

static uint32_t make_text(struct rec *r, uint32_t of, unsigned which, uint32_t dir,
			  const char *name, const char *end, struct text *t, const char *what,
			  const char *note)
{
	uint64_t id = ID_MADE | (r->tree.v[of].id % BIT(40) * 2 + which);
	uint32_t node = t->s ? tree_node(r, id) : 0;
	struct node *n;

	if (!node)
		return 0;
	n = &r->tree.v[node];
	n->made = arena_text(&r->arena, t->s, t->len);
	n->name = arena_printf(&r->arena, "%s%s", name, end);
	if (!n->made || !n->name) {
		n->name = "";
		n->made = "";
		return 0;
	}
	n->length = t->len;
	n->type = VMFS_FILE;
	n->mode = 0100600;
	n->mtime = r->tree.v[of].mtime;
	n->state = REC_MADE;
	n->name_made = n->looked = true;
	n->what = what;
	n->note = note;
	node_attach(r, node, dir);
	return node;
}

/* Sectors of the disk that an extent holds, and what it is called in a descriptor; 0: none. */
static uint64_t extent_sectors(struct rec *r, uint32_t node, const char **type,
			       const char **create_type)
{
	uint8_t head[512];

	*type = "VMFS";
	*create_type = "vmfs";
	if (is_kind(r, node, "flat"))
		return r->tree.v[node].length / 512;
	if (r->tree.v[node].length < sizeof(head) || node_read(r, node, head, sizeof(head), 0) < 0)
		return 0;
	if (is_kind(r, node, "vmfs-sparse")) {
		*type = "VMFSSPARSE";
		*create_type = "vmfsSparse";
		return le32_load(head + 12);
	}
	*type = "SESPARSE";
	*create_type = "seSparse";
	return le64_load(head + 16);
}

static uint32_t make_descriptor(struct rec *r, uint32_t extent)
{
	const char *name = r->tree.v[extent].name, *type, *create_type;
	uint64_t sectors = extent_sectors(r, extent, &type, &create_type);
	struct text t = {0};
	char stem[200];
	uint32_t node;
	size_t n;

	snprintf(stem, sizeof(stem), "%.190s", name);
	n = strlen(stem) - (ends(stem, ".vmdk") ? 5 : 0);
	stem[n] = 0;
	if (ends(stem, "-flat"))
		stem[n - 5] = 0;
	else if (ends(stem, "-delta"))
		stem[n - 6] = 0;
	if (!sectors || sectors >= BIT(53))
		return 0;
	(void)text_add(&t,
		       "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\n"
		       "parentCID=ffffffff\ncreateType=\"%s\"\n\n# Extent description\n"
		       "RW %llu %s \"%s\"\n\n# The Disk Data Base\n#DDB\n\n",
		       create_type, (unsigned long long)sectors, type, name);
	(void)text_add(&t,
		       "ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"%llu\"\n"
		       "ddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\n"
		       "ddb.virtualHWVersion = \"8\"\n",
		       (unsigned long long)MIN(sectors / (255 * 63), 65535ull));
	node = make_text(r, extent, 0, r->tree.v[extent].parent, stem, ".vmdk", &t,
			 "vmdk-descriptor", "put together from its extent: the descriptor is lost");
	text_fini(&t);
	return node;
}

/* ---- VMs ---- */

static enum rec_state weaker(enum rec_state a, enum rec_state b)
{
	return MAX(a, b);
}

static void add_disk(struct rec *r, struct rec_vm *vm, uint32_t descriptor, const char *slot)
{
	struct desc d = {0};
	uint32_t extent = 0;
	size_t len;
	char *text;

	if (vm->nr_disks == REC_VM_DISKS)
		return;
	for (unsigned i = 0; descriptor && i < vm->nr_disks; i++)
		if (vm->disk[i].descriptor == r->tree.v[descriptor].id)
			return;
	text = is_kind(r, descriptor, "vmdk-descriptor") ? node_text(r, descriptor, &len) : NULL;
	if (text) {
		desc_read(&d, text);
		extent = d.nr_ext ? group_extent(r, descriptor, &d.ext[0]) : 0;
	} else {
		extent = descriptor; /* a disk of its own */
	}
	free(text);
	vm->disk[vm->nr_disks].descriptor = r->tree.v[descriptor].id;
	vm->disk[vm->nr_disks].extent = extent ? r->tree.v[extent].id : 0;
	vm->disk[vm->nr_disks].size = d.nr_ext ? d.sectors * 512 : r->tree.v[extent].length;
	vm->disk[vm->nr_disks].slot = arena_text(&r->arena, slot, strlen(slot));
	vm->nr_disks++;
	vm->state = weaker(vm->state, r->tree.v[descriptor].state);
	if (extent)
		vm->state = weaker(vm->state, r->tree.v[extent].state);
	else
		vm->note = "the data of a disk are lost";
}

static struct rec_vm *new_vm(struct rec *r, uint32_t dir, const char *name)
{
	struct vms *all = r->vms;
	struct rec_vm *vm;

	if (all->n > REC_MAX_NODES || !array_room(&all->v, all->n, &all->cap, sizeof(*all->v)))
		return NULL;
	vm = &all->v[all->n++];
	*vm = (struct rec_vm){.name = arena_text(&r->arena, name, strlen(name)),
			      .dir = dir > REC_ROOT ? r->tree.v[dir].id : REC_ROOT};
	if (!vm->name)
		vm->name = "";
	return vm;
}

/* Which nodes a VM has already; a bit each. */
struct taken {
	uint8_t *bits;
};

static void take(struct taken *t, uint32_t node)
{
	t->bits[node / 8] |= (uint8_t)(1u << node % 8);
}

static bool is_taken(const struct taken *t, uint32_t node)
{
	return t->bits[node / 8] >> node % 8 & 1;
}

/* A descriptor, all it stands on, and their extents. */
static void take_chain(struct rec *r, struct taken *t, uint32_t descriptor)
{
	for (unsigned depth = 0; descriptor && depth < 64 && !is_taken(t, descriptor); depth++) {
		struct desc d;
		size_t len;
		char *text;

		take(t, descriptor);
		text = is_kind(r, descriptor, "vmdk-descriptor") ? node_text(r, descriptor, &len)
								 : NULL;
		if (!text)
			return;
		desc_read(&d, text);
		free(text);
		for (unsigned i = 0; i < d.nr_ext && i < DESC_EXTENTS; i++) {
			uint32_t x = group_extent(r, descriptor, &d.ext[i]);

			if (x)
				take(t, x);
		}
		descriptor =
			d.parent[0] ? group_resolve(r, r->tree.v[descriptor].parent, d.parent) : 0;
	}
}

struct disks_of {
	struct rec *r;
	struct rec_vm *vm;
	struct taken *taken;
	uint32_t dir;
	bool missing;
};

static void vmx_disk(void *opaque, const char *slot, const char *file)
{
	struct disks_of *x = opaque;
	uint32_t node = group_resolve(x->r, x->dir, file);

	if (!node) { /* its descriptor may be lost, and its extent not */
		char flat[256];
		size_t n = strlen(file);

		if (n > 5 && n < 240) {
			snprintf(flat, sizeof(flat), "%.*s-flat.vmdk", (int)n - 5, file);
			node = group_resolve(x->r, x->dir, flat);
			node = node ? make_descriptor(x->r, node) : 0;
		}
	}
	if (!node) {
		x->missing = true;
		return;
	}
	add_disk(x->r, x->vm, node, slot);
	take_chain(x->r, x->taken, node);
}

static void vm_of_vmx(struct rec *r, struct taken *t, uint32_t node)
{
	char name[128], stem[128], *text;
	uint32_t dir = r->tree.v[node].parent;
	struct disks_of x = {.r = r, .taken = t, .dir = dir};
	size_t len;

	text = node_text(r, node, &len);
	snprintf(stem, sizeof(stem), "%.100s", r->tree.v[node].name);
	if (ends(stem, ".vmx"))
		stem[strlen(stem) - 4] = 0;
	if (!text || !vmx_value(text, "displayName", name, sizeof(name)) || !name[0])
		snprintf(name, sizeof(name), "%s", stem);
	x.vm = new_vm(r, dir, name);
	if (x.vm) {
		x.vm->vmx = r->tree.v[node].id;
		x.vm->state = r->tree.v[node].state;
		if (!text)
			x.vm->note = "its VMX cannot be read";
		else
			vmx_disks(text, vmx_disk, &x);
		if (x.missing)
			x.vm->note = "a disk that its VMX names was not found";
	}
	free(text);
}

/* ---- disks that no VMX names ---- */

static void make_vmx(struct rec *r, struct rec_vm *vm, uint32_t of, uint32_t dir)
{
	struct text t = {0};
	char adapter[32] = "lsilogic", hw[16] = "8", *text;
	size_t len;
	uint32_t node;

	text = node_text(r, of, &len);
	if (text) {
		(void)vmx_value(text, "ddb.adapterType", adapter, sizeof(adapter));
		(void)vmx_value(text, "ddb.virtualHWVersion", hw, sizeof(hw));
	}
	free(text);
	(void)text_add(&t,
		       ".encoding = \"UTF-8\"\nconfig.version = \"8\"\nvirtualHW.version = \"%s\"\n"
		       "displayName = \"%s\"\nguestOS = \"other-64\"\nmemSize = \"1024\"\n"
		       "numvcpus = \"1\"\n",
		       hw, vm->name);
	if (strcasecmp(adapter, "ide") != 0)
		(void)text_add(&t, "scsi0.present = \"TRUE\"\nscsi0.virtualDev = \"%s\"\n",
			       adapter);
	for (unsigned i = 0; i < vm->nr_disks; i++) {
		uint32_t d = node_by_id(r, vm->disk[i].descriptor);
		char slot[16];

		if (!strcasecmp(adapter, "ide"))
			snprintf(slot, sizeof(slot), "ide%u:%u", i / 2 % 2, i % 2);
		else
			snprintf(slot, sizeof(slot), "scsi0:%u", i < 7 ? i : i + 1);
		vm->disk[i].slot = arena_text(&r->arena, slot, strlen(slot));
		(void)text_add(&t, "%s.present = \"TRUE\"\n%s.fileName = \"%s\"\n", slot, slot,
			       r->tree.v[d].name);
	}
	node = make_text(r, of, 1, dir, vm->name, ".vmx", &t, "vmx",
			 "put together from the descriptors: the VMX is lost");
	text_fini(&t);
	if (node) {
		vm->vmx = r->tree.v[node].id;
		vm->state = weaker(vm->state, REC_MADE);
	}
}

/* In a directory of its own the disks are one VM's; where things only ended up, each is one. */
static void vm_of_disks(struct rec *r, struct taken *t, uint32_t dir, const uint32_t *disk,
			unsigned n)
{
	bool together = !r->tree.v[dir].synthetic ||
			(r->tree.v[dir].id >= ID_MIRROR(0) && r->tree.v[dir].id < ID_SLOT);
	struct rec_vm *vm = NULL;

	for (unsigned i = 0; i < n; i++) {
		char stem[200];
		bool first = !vm || !together;

		snprintf(stem, sizeof(stem), "%.100s", r->tree.v[disk[i]].name);
		if (ends(stem, ".vmdk"))
			stem[strlen(stem) - 5] = 0;
		if (first)
			vm = new_vm(r, dir,
				    together && dir > REC_ROOT ? r->tree.v[dir].name : stem);
		if (!vm)
			return;
		add_disk(r, vm, disk[i], "");
		take_chain(r, t, disk[i]);
		if (!together || i + 1 == n)
			make_vmx(r, vm, disk[i], dir);
	}
}

enum { LOOSE_MAX = 64 };

static bool has_vmx(struct rec *r, uint32_t dir)
{
	for (uint32_t i = r->tree.v[dir].first; i; i = r->tree.v[i].next)
		if (!r->tree.v[i].is_dir && !r->tree.v[i].system && is_kind(r, i, "vmx"))
			return true;
	return false;
}

/* Descriptors that others stand on are no disks of their own. */
static void take_parents(struct rec *r, struct taken *t, uint32_t dir)
{
	for (uint32_t i = r->tree.v[dir].first; i; i = r->tree.v[i].next) {
		struct desc d;
		size_t len;
		char *text;
		uint32_t parent;

		if (is_taken(t, i) || !is_kind(r, i, "vmdk-descriptor"))
			continue;
		text = node_text(r, i, &len);
		if (!text)
			continue;
		desc_read(&d, text);
		free(text);
		parent = d.parent[0] ? group_resolve(r, dir, d.parent) : 0;
		if (parent && parent != i)
			take_chain(r, t, parent);
	}
}

static void take_extents(struct rec *r, struct taken *t, uint32_t dir)
{
	for (uint32_t i = r->tree.v[dir].first; i; i = r->tree.v[i].next) {
		struct desc d;
		size_t len;
		char *text = is_kind(r, i, "vmdk-descriptor") ? node_text(r, i, &len) : NULL;

		if (!text)
			continue;
		desc_read(&d, text);
		free(text);
		for (unsigned k = 0; k < d.nr_ext && k < DESC_EXTENTS; k++) {
			uint32_t x = group_extent(r, i, &d.ext[k]);

			if (x)
				take(t, x);
		}
	}
}

static void look_dir(struct rec *r, struct taken *t, uint32_t dir)
{
	uint32_t loose[LOOSE_MAX], extent[LOOSE_MAX];
	unsigned n = 0, nr_extents = 0;

	take_parents(r, t, dir);
	take_extents(r, t, dir);
	for (uint32_t i = r->tree.v[dir].first; i; i = r->tree.v[i].next) {
		if (is_taken(t, i) || r->tree.v[i].is_dir || r->tree.v[i].system)
			continue;
		if (is_kind(r, i, "vmdk-descriptor") || is_kind(r, i, "sparse")) {
			if (n < LOOSE_MAX)
				loose[n++] = i;
		} else if (nr_extents < LOOSE_MAX && is_extent_like(r, i) &&
			   (is_kind(r, i, "flat") || is_sparse_extent(r, i))) {
			extent[nr_extents++] = i;
		}
	}
	for (unsigned i = 0; i < nr_extents && n < LOOSE_MAX; i++) {
		uint32_t d = make_descriptor(r, extent[i]);

		if (d)
			loose[n++] = d;
	}
	if (n && !has_vmx(r, dir))
		vm_of_disks(r, t, dir, loose, n);
}

/* Nodes that are made on the way are looked at as well, so there is room for their bits. */
static bool taken_init(struct taken *t)
{
	t->bits = calloc(1, REC_MAX_NODES / 8 + 1);
	return t->bits;
}

int group_build(struct rec *r, struct error *err)
{
	struct taken t;
	uint32_t end = r->tree.n;

	group_fini(r);
	r->vms = calloc(1, sizeof(*r->vms));
	if (!r->vms || !taken_init(&t))
		return err_errno(err, ENOMEM, "virtual machines");
	if (!gather_nameless(r)) {
		free(t.bits);
		return err_errno(err, ENOMEM, "virtual machines");
	}
	name_lost(r);
	for (uint32_t i = 1; i < end; i++)
		if (r->tree.v[i].parent && !r->tree.v[i].is_dir && !r->tree.v[i].system &&
		    r->tree.v[i].type == VMFS_FILE && is_kind(r, i, "vmx"))
			vm_of_vmx(r, &t, i);
	for (uint32_t i = 1; i < end; i++)
		if (r->tree.v[i].is_dir && r->tree.v[i].first && !r->tree.v[i].system)
			look_dir(r, &t, i);
	free(t.bits);
	return 0;
}

/* ---- for callers ---- */

static void weigh(struct rec *r, struct rec_vm *vm)
{
	struct rec_entry e;

	vm->worst = REC_EXACT;
	for (unsigned i = 0; i < vm->nr_disks; i++) {
		uint64_t part[] = {vm->disk[i].descriptor, vm->disk[i].extent};

		for (size_t k = 0; k < ARRAY_SIZE(part); k++)
			if (part[k] && rec_entry(r, part[k], &e, NULL) == 0)
				vm->worst = MAX(vm->worst, e.worst);
		if (!vm->disk[i].extent)
			vm->worst = REC_UNKNOWN;
	}
}

int rec_vms(struct rec *r, int (*vm)(void *opaque, const struct rec_vm *vm), void *opaque,
	    struct error *err)
{
	int e = 0;

	for (size_t i = 0; r->vms && i < r->vms->n && !e; i++) {
		r->vms->v[i].id = r->vms->v[i].vmx ? r->vms->v[i].vmx : r->vms->v[i].dir;
		weigh(r, &r->vms->v[i]);
		e = vm(opaque, &r->vms->v[i]);
	}
	return e;
}

struct wanted {
	const char *name;
	uint64_t node;
	struct rec_vm *vm;
	unsigned found;
};

static int is_wanted(void *opaque, const struct rec_vm *vm)
{
	struct wanted *w = opaque;

	if (w->node ? vm->vmx == w->node || (vm->dir == w->node && vm->dir != REC_ROOT)
		    : !strcmp(vm->name, w->name)) {
		/* The best of several of one name. */
		if (!w->found || vm->state < w->vm->state)
			*w->vm = *vm;
		w->found++;
	}
	return 0;
}

int rec_vm_find(struct rec *r, const char *name, struct rec_vm *vm, struct error *err)
{
	struct wanted w = {.name = name, .vm = vm};
	struct rec_entry e;

	(void)rec_vms(r, is_wanted, &w, NULL);
	if (!w.found && rec_lookup(r, name, &e, NULL) == 0) {
		w.node = e.id;
		(void)rec_vms(r, is_wanted, &w, NULL);
	}
	return w.found ? 0 : err_set(err, ENOENT, "there is no VM '%s'", name);
}
