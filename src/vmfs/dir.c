/* vmfs/dir.c - directories: flat records (VMFS3, 5), and blocks of entries (VMFS6).
 *
 * VMFS6's hash table is not needed to list one.  The alloc map only says which blocks were never
 * written, and so may hold what another file left there; where a map is not readable, every block
 * with an entry block's header counts.  What is not readable is counted in *bad and passed over. */
#include "vmfs/internal.h"

#include <stdlib.h>

enum { CHUNK = 64 * KiB, FLAT_CHUNK = CHUNK / FS_D5_SIZE * FS_D5_SIZE, MAX_GROUPS = 1 << 16 };

struct listing {
	struct vmfs *v;
	const struct vmfs_inode *dir;
	bool deleted;
	int (*entry)(void *opaque, const struct vmfs_dirent *e);
	void *opaque;
	uint64_t bad;
	uint8_t buf[CHUNK];
};

/* --- entries -----------------------------------------------------------------------------------
 */

/* A name that a path can hold. */
static bool name_ok(const char *name, size_t len)
{
	return len && len <= VMFS_NAME_MAX && !memchr(name, '/', len);
}

static bool parse_entry(struct vmfs_dirent *e, uint32_t type, const uint8_t *fields,
			const uint8_t *name, size_t room)
{
	size_t len = strnlen((const char *)name, room);

	*e = (struct vmfs_dirent){
		.type = type,
		.addr = le32_load(fields + FS_D5_ADDR),
		.generation = le32_load(fields + FS_D5_GENERATION),
	};
	if (type < VMFS_DIR || type > VMFS_RDM || (e->addr & 0x3f) != VMFS_ADDR_FD ||
	    !name_ok((const char *)name, len))
		return false;
	memcpy(e->name, name, len);
	return true;
}

static bool parse_5(struct vmfs_dirent *e, const uint8_t *d)
{
	return parse_entry(e, le32_load(d + FS_D5_TYPE), d, d + FS_D5_NAME, FS_NAME_5);
}

static bool parse_6(struct vmfs_dirent *e, const uint8_t *d)
{
	return parse_entry(e, le32_load(d + FS_D6_TYPE), d, d + FS_D6_NAME, FS_NAME_6);
}

/* --- VMFS3, VMFS5 ------------------------------------------------------------------------------
 */

/* A record whose address is 0 is free; one behind the end is what a shortened directory had. */
static int flat_entry(struct listing *l, const uint8_t *d, bool behind)
{
	uint32_t addr = le32_load(d + FS_D5_ADDR);
	struct vmfs_dirent e;

	if (!addr && !l->deleted)
		return 0;
	if (!parse_5(&e, d)) {
		l->bad += addr && !behind;
		return 0;
	}
	e.free = behind;
	return l->entry(l->opaque, &e);
}

/* An entry whose address was zeroed still has its name. */
static int flat_zeroed(struct listing *l, const uint8_t *d)
{
	uint8_t copy[FS_D5_SIZE];
	struct vmfs_dirent e;

	memcpy(copy, d, sizeof(copy));
	le32_store(copy + FS_D5_ADDR, VMFS_ADDR_FD);
	if (!parse_5(&e, copy))
		return 0;
	e.addr = 0;
	e.free = true;
	return l->entry(l->opaque, &e);
}

static int flat_records(struct listing *l, size_t len, bool behind)
{
	int r = 0;

	for (size_t i = 0; i + FS_D5_SIZE <= len && !r; i += FS_D5_SIZE) {
		if (l->deleted && !le32_load(l->buf + i + FS_D5_ADDR))
			r = flat_zeroed(l, l->buf + i);
		else
			r = flat_entry(l, l->buf + i, behind);
	}
	return r;
}

/* How far a hole goes on from off; 0: there is none. */
static uint64_t hole_at(struct vmfs *v, const struct vmfs_inode *in, uint64_t off)
{
	struct vmfs_range r;

	if (vmfs_file_range(v, in, off, &r) < 0 || r.kind != VMFS_RANGE_HOLE)
		return 0;
	return r.len;
}

static int flat_part(struct listing *l, const struct vmfs_inode *in, uint64_t from, uint64_t to,
		     bool behind)
{
	int r = 0;

	for (uint64_t off = from, hole; off < to && !r; off += FLAT_CHUNK) {
		size_t len = (size_t)MIN(to - off, (uint64_t)FLAT_CHUNK);

		hole = hole_at(l->v, in, off);
		if (hole > FLAT_CHUNK) {
			off += (hole - FLAT_CHUNK) / FLAT_CHUNK * FLAT_CHUNK;
			continue;
		}
		if (vmfs_file_read(l->v, in, l->buf, len, off) < 0)
			l->bad += behind ? 0 : len / FS_D5_SIZE;
		else
			r = flat_records(l, len, behind);
	}
	return r;
}

/* The rest of the last block, where entries stay that were the last ones once. */
static int flat_behind(struct listing *l)
{
	struct vmfs_inode *in = malloc(sizeof(*in));
	uint64_t from = l->dir->length / FS_D5_SIZE * FS_D5_SIZE, block;
	int r;

	if (!in)
		return -ENOMEM;
	*in = *l->dir;
	block = BIT(in->block_shift);
	if (in->resident)
		block = FS_FD_SMALL_5;
	in->length = MIN(ALIGN_UP(MAX(in->length, 1ull), block), (uint64_t)VMFS_MAX_DIR);
	r = flat_part(l, in, from, in->length, true);
	free(in);
	return r;
}

static int flat_each(struct listing *l)
{
	uint64_t len = MIN(l->dir->length, (uint64_t)VMFS_MAX_DIR);
	int r = flat_part(l, l->dir, 0, len, false);

	l->bad += l->dir->length > len;
	if (!r && l->deleted && l->dir->length <= len)
		r = flat_behind(l);
	return r;
}

/* --- VMFS6 -------------------------------------------------------------------------------------
 */

static uint32_t md(const struct listing *l)
{
	return l->v->plan.geo.md_align;
}

/* What the alloc maps say of block b: the nibble, or FS_MAP_TYPE when they cannot be asked. */
struct maps {
	uint32_t block[FS_DIR_MAX_MAPS];
	uint32_t nr;
	uint32_t held; /* which one is in bytes; nr: none */
	bool held_ok;
	uint8_t bytes[4096];
};
enum { MAP_UNKNOWN = -1 };

static void maps_init(struct maps *m, const uint8_t *header)
{
	m->nr = MIN(le32_load(header + FS_DH_MAPS), (uint32_t)FS_DIR_MAX_MAPS);
	for (uint32_t i = 0; i < m->nr; i++)
		m->block[i] = le32_load(header + FS_DH_MAP_BLOCKS + 4ull * i);
	m->held = m->nr;
}

static void maps_load(struct listing *l, struct maps *m, uint32_t which)
{
	uint64_t off = FS_DH_SIZE + (uint64_t)m->block[which] * md(l);

	m->held = which;
	m->held_ok = vmfs_file_read(l->v, l->dir, m->bytes, md(l), off) == (int64_t)md(l) &&
		     le16_load(m->bytes + FS_DB_TYPE) == FS_DIR_MAP;
}

static int maps_get(struct listing *l, struct maps *m, uint64_t block)
{
	uint64_t per = 2ull * (md(l) - FS_DB_DATA), which = block / per, i = block % per;

	if (which >= m->nr)
		return MAP_UNKNOWN;
	if (m->held != which)
		maps_load(l, m, (uint32_t)which);
	if (!m->held_ok)
		return MAP_UNKNOWN;
	return m->bytes[FS_DB_DATA + i / 2] >> (i % 2 ? 0 : 4) & 0xf;
}

static bool plausible_block(const uint8_t *b, uint32_t size)
{
	uint16_t slots = le16_load(b + FS_DB_SLOTS);

	return le16_load(b + FS_DB_TYPE) == FS_DIR_DIRENTS && slots &&
	       slots <= (size - FS_DB_DATA) / FS_D6_SIZE;
}

static int block_entries(struct listing *l, const uint8_t *b, uint64_t off)
{
	unsigned slots = le16_load(b + FS_DB_SLOTS);
	int r = 0;

	for (unsigned i = 0; i < slots && !r; i++) {
		const uint8_t *d = b + FS_DB_DATA + (size_t)i * FS_D6_SIZE;
		bool is_free = b[FS_DB_BITMAP + i / 8] >> i % 8 & 1;
		struct vmfs_dirent e;

		if (is_free && !l->deleted)
			continue;
		if (!parse_6(&e, d) || le64_load(d + FS_D6_SELF) != off + (uint64_t)(d - b)) {
			l->bad += !is_free;
			continue;
		}
		e.free = is_free;
		r = l->entry(l->opaque, &e);
	}
	return r;
}

/* A block that the map calls one of entries and that is none counts as bad. */
static int one_block(struct listing *l, struct maps *m, const uint8_t *b, uint64_t off)
{
	int said = maps_get(l, m, (off - FS_DH_SIZE) / md(l));

	if (said != MAP_UNKNOWN && said & FS_MAP_NEVER)
		return 0;
	if (plausible_block(b, md(l)))
		return block_entries(l, b, off);
	l->bad += said != MAP_UNKNOWN && (said & FS_MAP_TYPE) == FS_DIR_DIRENTS;
	return 0;
}

static int blocks_each(struct listing *l, struct maps *m)
{
	uint64_t end = MIN(l->dir->length, (uint64_t)VMFS_MAX_DIR);
	int r = 0;

	for (uint64_t off = FS_DH_SIZE; off + md(l) <= end && !r; off += CHUNK) {
		size_t len = (size_t)MIN(end - off, (uint64_t)CHUNK);
		uint64_t hole = hole_at(l->v, l->dir, off);

		if (hole > CHUNK) {
			off += (hole - CHUNK) / CHUNK * CHUNK;
			continue;
		}
		if (vmfs_file_read(l->v, l->dir, l->buf, len, off) == (int64_t)len) {
			for (size_t i = 0; i + md(l) <= len && !r; i += md(l))
				r = one_block(l, m, l->buf + i, off + i);
			continue;
		}
		for (size_t i = 0; i + md(l) <= len && !r; i += md(l)) {
			if (vmfs_file_read(l->v, l->dir, l->buf, md(l), off + i) < 0)
				l->bad++;
			else
				r = one_block(l, m, l->buf, off + i);
		}
	}
	return r;
}

/* "." and ".." stand in the header; where that is gone the descriptor knows both. */
static int dots(struct listing *l, bool header_ok, const uint8_t *header)
{
	struct vmfs_dirent self = {.type = VMFS_DIR, .addr = l->dir->addr, .name = "."};
	struct vmfs_dirent up = {.type = VMFS_DIR, .addr = l->dir->parent, .name = ".."};
	struct vmfs_dirent e;
	int r;

	self.generation = l->dir->generation;
	if (header_ok && parse_6(&e, header + FS_DH_SELF) && !strcmp(e.name, "."))
		self = e;
	if (header_ok && parse_6(&e, header + FS_DH_PARENT) && !strcmp(e.name, ".."))
		up = e;
	r = l->entry(l->opaque, &self);
	if (!r && up.addr)
		r = l->entry(l->opaque, &up);
	return r;
}

static int hashed_each(struct listing *l)
{
	struct maps *m = calloc(1, sizeof(*m));
	uint32_t version;
	bool ok;
	int r;

	if (!m)
		return -ENOMEM;
	ok = vmfs_file_read(l->v, l->dir, l->buf, FS_DH_HASH, 0) == FS_DH_HASH;
	version = le32_load(l->buf + FS_DH_VERSION);
	ok = ok && (version == FS_DIR_VERSION || version == FS_DIR_VERSION_DEBUG);
	if (ok)
		maps_init(m, l->buf);
	l->bad += !ok;
	r = dots(l, ok, l->buf);
	if (!r)
		r = blocks_each(l, m);
	l->bad += l->dir->length > VMFS_MAX_DIR;
	free(m);
	return r;
}

int vmfs_dir_each(struct vmfs *v, const struct vmfs_inode *dir, bool deleted,
		  int (*entry)(void *opaque, const struct vmfs_dirent *e), void *opaque,
		  uint64_t *bad, struct error *err)
{
	struct listing *l;
	int r;

	if (!dir->is_dir)
		return err_set(err, ENOTDIR, "the descriptor %#x is not one of a directory",
			       dir->addr);
	l = malloc(sizeof(*l));
	if (!l)
		return err_set(err, ENOMEM, "out of memory for a directory");
	l->v = v;
	l->dir = dir;
	l->deleted = deleted;
	l->entry = entry;
	l->opaque = opaque;
	l->bad = 0;
	r = v->plan.geo.version == 6 ? hashed_each(l) : flat_each(l);
	if (bad)
		*bad = l->bad;
	free(l);
	return r;
}

/* --- paths -------------------------------------------------------------------------------------
 */

struct wanted {
	const char *name;
	size_t len;
	struct vmfs_dirent found;
};

static int is_wanted(void *opaque, const struct vmfs_dirent *e)
{
	struct wanted *w = opaque;

	if (strlen(e->name) != w->len || memcmp(e->name, w->name, w->len))
		return 0;
	w->found = *e;
	return 1;
}

/* The entry that slot `at` of a hash table, or a link, points to: is it the one? */
static bool try_entry(struct vmfs *v, const struct vmfs_inode *dir, uint32_t at, struct wanted *w)
{
	uint32_t size = v->plan.geo.md_align, i = at >> 24;
	uint64_t block = FS_DH_SIZE + (uint64_t)(at >> 2 & 0x3fffff) * size;
	uint64_t off = block + FS_DB_DATA + (uint64_t)i * FS_D6_SIZE;
	uint8_t head[FS_DB_DATA], d[FS_D6_SIZE];
	struct vmfs_dirent e;

	if (i >= (size - FS_DB_DATA) / FS_D6_SIZE ||
	    vmfs_file_read(v, dir, head, sizeof(head), block) != sizeof(head) ||
	    le16_load(head + FS_DB_TYPE) != FS_DIR_DIRENTS ||
	    head[FS_DB_BITMAP + i / 8] >> i % 8 & 1)
		return false;
	if (vmfs_file_read(v, dir, d, sizeof(d), off) != sizeof(d) ||
	    le64_load(d + FS_D6_SELF) != off || !parse_6(&e, d))
		return false;
	return is_wanted(w, &e);
}

/* Names that share a slot: groups of links to their entries, one after another. */
static bool try_group(struct vmfs *v, const struct vmfs_inode *dir, uint32_t at, uint16_t hash,
		      struct wanted *w)
{
	uint8_t g[FS_LG_SIZE];

	for (unsigned i = 0; i < MAX_GROUPS && (at & 3) == FS_SLOT_LINK; i++) {
		uint64_t off = FS_DH_SIZE + (uint64_t)(at >> 2 & 0x3fffff) * v->plan.geo.md_align +
			       FS_DB_DATA + (uint64_t)(at >> 24) * FS_LG_SIZE;

		if (vmfs_file_read(v, dir, g, sizeof(g), off) != sizeof(g))
			return false;
		for (unsigned k = 0; k < FS_LG_NR; k++) {
			const uint8_t *link = g + FS_LG_LINKS + k * FS_LG_LINK_SIZE;

			if ((le32_load(link) & 3) == FS_SLOT_DIRENT &&
			    le16_load(link + 4) == hash && try_entry(v, dir, le32_load(link), w))
				return true;
		}
		at = le32_load(g + FS_LG_NEXT);
	}
	return false;
}

/* By the hash table, which may be damaged: not found means nothing. */
static bool find_hashed(struct vmfs *v, const struct vmfs_inode *dir, struct wanted *w)
{
	char name[VMFS_NAME_MAX + 1] = "";
	uint8_t slot[4];
	uint32_t at;

	if (v->plan.geo.version != 6 || w->len > VMFS_NAME_MAX)
		return false;
	memcpy(name, w->name, w->len);
	at = dir_hash_slot(name, dir->addr == VMFS_FD_ROOT);
	if (vmfs_file_read(v, dir, slot, sizeof(slot), FS_DH_HASH + 4ull * at) != sizeof(slot))
		return false;
	at = le32_load(slot);
	if ((at & 3) == FS_SLOT_DIRENT)
		return try_entry(v, dir, at, w);
	return try_group(v, dir, at, (uint16_t)(dir_hash(name) >> 16), w);
}

/* From the directory in *in to its entry of that name. */
static int descend(struct vmfs *v, const char *path, const char *name, size_t len,
		   struct vmfs_inode *in, struct error *err)
{
	struct wanted w = {.name = name, .len = len};
	uint64_t bad = 0;
	int r;

	if (!in->is_dir)
		return err_set(err, ENOTDIR, "'%s': a part of the path is no directory", path);
	r = find_hashed(v, in, &w) ? 1 : vmfs_dir_each(v, in, false, is_wanted, &w, &bad, err);
	if (r < 0)
		return err_wrap(err, r, "'%s'", path);
	if (r == 0)
		return err_set(err, ENOENT, "'%s' is not on the volume%s", path,
			       bad ? ", but its directory is damaged" : "");
	r = vmfs_inode_read(v, w.found.addr, in, err);
	return r < 0 ? err_wrap(err, r, "'%s'", path) : 0;
}

int vmfs_lookup(struct vmfs *v, const char *path, struct vmfs_inode *in, struct error *err)
{
	int r = vmfs_inode_read(v, VMFS_FD_ROOT, in, err);

	for (const char *p = path; !r && *p;) {
		size_t len = strcspn(p, "/");

		if (len && !(len == 1 && *p == '.'))
			r = descend(v, path, p, len, in, err);
		p += len;
		p += strspn(p, "/");
	}
	return r;
}
