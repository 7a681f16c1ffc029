/* vmfs/check_dirs.c - the tree of directories: entries against descriptors, and the inner structure
 * of VMFS6 directories: alloc maps, blocks of entries, the hash table. */
#include "vmfs/check.h"

#include <stdlib.h>

enum { MAX_GROUPS = 1 << 16 };

struct tree {
	struct check *c;
	uint32_t *todo; /* directories that are to be walked */
	size_t nr, cap;
	const struct vmfs_inode *dir;
	struct vmfs_inode child;
	uint64_t entries;
	bool no_memory;
	uint8_t *table; /* VMFS6: the header and hash table of the directory, or NULL */
};

static bool fd_index(const struct check *c, uint32_t addr, uint64_t *i)
{
	enum vmfs_resource_kind kind;
	struct vmfs_addr a;

	return !vmfs_addr_parse(&c->v->plan.geo, addr, &a) && a.type == VMFS_ADDR_FD &&
	       check_index(c, &a, &kind, i);
}

/* Each directory once, so that loops end. */
static void push(struct tree *t, uint32_t addr)
{
	uint32_t *more;
	uint64_t i;

	if (!fd_index(t->c, addr, &i) || bit_get(t->c->walked, i))
		return;
	bit_set(t->c->walked, i);
	if (t->nr == t->cap) {
		more = realloc(t->todo, (2 * t->cap + 64) * sizeof(*more));
		if (!more) {
			t->no_memory = true;
			return;
		}
		t->todo = more;
		t->cap = 2 * t->cap + 64;
	}
	t->todo[t->nr++] = addr;
}

/* --- the hash table ----------------------------------------------------------------------------
 */

static uint32_t slot_of(uint64_t self, uint32_t md)
{
	uint64_t block = (self - FS_DH_SIZE) / md,
		 slot = ((self - FS_DH_SIZE) % md - FS_DB_DATA) / FS_D6_SIZE;

	return (uint32_t)(FS_SLOT_DIRENT | block << 2 | slot << 24);
}

/* Is the entry in the chain of groups that begins at `at`? */
static bool in_group(struct tree *t, uint32_t at, uint32_t wanted)
{
	uint32_t md = t->c->v->plan.geo.md_align;
	uint8_t g[FS_LG_SIZE];

	for (unsigned i = 0; i < MAX_GROUPS && (at & 3) == FS_SLOT_LINK; i++) {
		uint64_t off = FS_DH_SIZE + (uint64_t)(at >> 2 & 0x3fffff) * md + FS_DB_DATA +
			       (uint64_t)(at >> 24) * FS_LG_SIZE;

		if (vmfs_file_read(t->c->v, t->dir, g, sizeof(g), off) != sizeof(g))
			return false;
		for (unsigned k = 0; k < FS_LG_NR; k++)
			if (le32_load(g + FS_LG_LINKS + k * FS_LG_LINK_SIZE) == wanted)
				return true;
		at = le32_load(g + FS_LG_NEXT);
	}
	return false;
}

static void check_slot(struct tree *t, const char *name, uint32_t wanted)
{
	unsigned i = dir_hash_slot(name, t->dir->addr == VMFS_FD_ROOT);
	uint32_t at = le32_load(t->table + FS_DH_HASH + 4ull * i);

	if (at == wanted || in_group(t, at, wanted))
		return;
	check_tell(t->c, VMFS_DAMAGE, "hash",
		   "the hash table of directory %#x does not lead to '%s': ESXi would not find it",
		   t->dir->addr, name);
}

/* --- blocks ------------------------------------------------------------------------------------
 */

static void check_block_entries(struct tree *t, const uint8_t *b, uint64_t off)
{
	uint32_t md = t->c->v->plan.geo.md_align;
	unsigned slots = le16_load(b + FS_DB_SLOTS), nr_free = 0;

	if (!slots || slots > (md - FS_DB_DATA) / FS_D6_SIZE) {
		check_tell(t->c, VMFS_DAMAGE, "dir-block",
			   "the block of entries at %llu of directory %#x has %u slots",
			   (unsigned long long)off, t->dir->addr, slots);
		return;
	}
	for (unsigned i = 0; i < slots; i++) {
		const uint8_t *d = b + FS_DB_DATA + (size_t)i * FS_D6_SIZE;
		char name[FS_NAME_6 + 1] = "";

		if (b[FS_DB_BITMAP + i / 8] >> i % 8 & 1) {
			nr_free++;
			continue;
		}
		memcpy(name, d + FS_D6_NAME, FS_NAME_6);
		if (le64_load(d + FS_D6_SELF) == off + (uint64_t)(d - b) && t->table)
			check_slot(t, name, slot_of(off + (uint64_t)(d - b), md));
	}
	if (nr_free != le16_load(b + FS_DB_FREE))
		check_tell(t->c, VMFS_WARNING, "dir-count",
			   "the block at %llu of directory %#x counts %u free slots; its bitmap %u",
			   (unsigned long long)off, t->dir->addr, le16_load(b + FS_DB_FREE),
			   nr_free);
}

static void check_block(struct tree *t, const uint8_t *b, uint64_t off, unsigned said)
{
	unsigned type = le16_load(b + FS_DB_TYPE);

	if (said & FS_MAP_NEVER)
		return;
	if (type != (said & FS_MAP_TYPE)) {
		check_tell(t->c, VMFS_DAMAGE, "alloc-map",
			   "the block at %llu of directory %#x is of kind %u; the map says %u",
			   (unsigned long long)off, t->dir->addr, type, said & FS_MAP_TYPE);
		return;
	}
	if (type == FS_DIR_DIRENTS)
		check_block_entries(t, b, off);
}

/* The blocks that map number m speaks of. */
static int check_map(struct tree *t, unsigned m, uint8_t *map, uint8_t *b)
{
	uint32_t md = t->c->v->plan.geo.md_align, per = 2 * (md - FS_DB_DATA);
	uint32_t at = le32_load(t->table + FS_DH_MAP_BLOCKS + 4ull * m);

	if (vmfs_file_read(t->c->v, t->dir, map, md, FS_DH_SIZE + (uint64_t)at * md) != md ||
	    le16_load(map + FS_DB_TYPE) != FS_DIR_MAP) {
		check_tell(t->c, VMFS_DAMAGE, "alloc-map",
			   "alloc map %u of directory %#x is not readable", m, t->dir->addr);
		return 0;
	}
	for (uint32_t i = 0; i < per; i++) {
		uint64_t off = FS_DH_SIZE + ((uint64_t)m * per + i) * md;

		if (off + md > t->dir->length)
			break;
		if (i % 256 == 0 && check_stopped(t->c))
			return -ECANCELED;
		if (vmfs_file_read(t->c->v, t->dir, b, md, off) == md)
			check_block(t, b, off, map[FS_DB_DATA + i / 2] >> (i % 2 ? 0 : 4) & 0xf);
	}
	return 0;
}

/* VMFS6: what a listing does not look at. */
static int check_structure(struct tree *t)
{
	uint32_t md = t->c->v->plan.geo.md_align, version, maps;
	uint8_t *map = malloc(2ull * md);
	int r = 0;

	t->table = malloc(FS_DH_SIZE);
	if (!map || !t->table) {
		free(map);
		return -ENOMEM;
	}
	r = vmfs_file_read(t->c->v, t->dir, t->table, FS_DH_SIZE, 0) == FS_DH_SIZE ? 0 : -EIO;
	version = le32_load(t->table + FS_DH_VERSION);
	if (r < 0 || (version != FS_DIR_VERSION && version != FS_DIR_VERSION_DEBUG)) {
		check_tell(t->c, VMFS_DAMAGE, "dir-header",
			   "the header of directory %#x is not readable", t->dir->addr);
		free(map);
		return 0;
	}
	maps = MIN(le32_load(t->table + FS_DH_MAPS), (uint32_t)FS_DIR_MAX_MAPS);
	for (unsigned m = 0; m < maps && !r; m++)
		r = check_map(t, m, map, map + md);
	if (le32_load(t->table + FS_DH_ENTRIES) != t->entries)
		check_tell(t->c, VMFS_WARNING, "dir-count",
			   "directory %#x says that it has %u entries; it has %llu", t->dir->addr,
			   le32_load(t->table + FS_DH_ENTRIES), (unsigned long long)t->entries);
	free(map);
	return r;
}

/* --- the tree ----------------------------------------------------------------------------------
 */

static void check_child(struct tree *t, const struct vmfs_dirent *e)
{
	const struct vmfs_inode *in = &t->child;
	bool dots = !strcmp(e->name, ".") || !strcmp(e->name, "..");

	if (in->generation != e->generation)
		check_tell(t->c, VMFS_DAMAGE, "generation",
			   "'%s' in directory %#x is a left-over: descriptor %#x was given to "
			   "something else",
			   e->name, t->dir->addr, e->addr);
	else if (in->type != e->type && !(in->type == VMFS_SYSTEM && in->is_dir && dots))
		check_tell(t->c, VMFS_WARNING, "entry-type",
			   "'%s' in directory %#x is of type %d; its descriptor says %d", e->name,
			   t->dir->addr, e->type, in->type);
	if (!dots && in->parent && in->parent != t->dir->addr && in->links <= 1 && !in->is_dir)
		check_tell(t->c, VMFS_WARNING, "parent",
			   "'%s' is in directory %#x; its descriptor says %#x", e->name,
			   t->dir->addr, in->parent);
	if (in->is_dir)
		push(t, e->addr);
}

static int each_entry(void *opaque, const struct vmfs_dirent *e)
{
	struct tree *t = opaque;
	uint64_t i;

	t->entries++;
	if (check_stopped(t->c))
		return -ECANCELED;
	if (!fd_index(t->c, e->addr, &i)) {
		if (t->c->use[VMFS_RES_FDC].nr)
			check_tell(t->c, VMFS_DAMAGE, "entry",
				   "'%s' in directory %#x names %#x, which is no descriptor",
				   e->name, t->dir->addr, e->addr);
		return 0;
	}
	t->c->links[i] += t->c->links[i] < UINT32_MAX;
	if (vmfs_inode_read(t->c->v, e->addr, &t->child, NULL) < 0)
		check_tell(t->c, VMFS_DAMAGE, "entry",
			   "'%s' in directory %#x: its descriptor %#x is not readable", e->name,
			   t->dir->addr, e->addr);
	else
		check_child(t, e);
	return 0;
}

static int walk(struct tree *t, uint32_t addr)
{
	struct vmfs_inode *in = malloc(sizeof(*in));
	uint64_t bad = 0;
	int r;

	if (!in)
		return -ENOMEM;
	t->dir = in;
	t->entries = 0;
	r = vmfs_inode_read(t->c->v, addr, in, NULL);
	if (r < 0 || !in->is_dir) {
		free(in);
		return 0; /* told where its name was found */
	}
	r = vmfs_dir_each(t->c->v, in, false, each_entry, t, &bad, NULL);
	if (bad)
		check_tell(t->c, VMFS_DAMAGE, "dir-entries",
			   "%llu entries of directory %#x are not readable",
			   (unsigned long long)bad, addr);
	if (!r && t->c->v->plan.geo.version == 6)
		r = check_structure(t);
	free(t->table);
	t->table = NULL;
	free(in);
	return r;
}

int check_directories(struct check *c)
{
	struct tree *t = calloc(1, sizeof(*t));
	struct error err;
	int r = t ? 0 : -ENOMEM;

	if (!t)
		return r;
	t->c = c;
	if (vmfs_inode_read(c->v, VMFS_FD_ROOT, &t->child, &err) < 0)
		check_tell(c, VMFS_DAMAGE, "root", "the root directory is lost: %s", err.msg);
	push(t, VMFS_FD_ROOT);
	while (t->nr && !r && !t->no_memory)
		r = walk(t, t->todo[--t->nr]);
	if (t->no_memory)
		r = -ENOMEM;
	free(t->todo);
	free(t);
	return r;
}
