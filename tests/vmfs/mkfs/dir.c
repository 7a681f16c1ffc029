/* What stands in directories: arrays of records before VMFS6, hash tables and blocks on it. */
#include "internal.h"

/* The directory's bytes go to its blocks; sub-blocks or file blocks are added as it grows. */
static void dir_store(struct mkfs *m, struct node *d, const uint8_t *buf, uint64_t len)
{
	uint64_t max = m->six ? FD6_ADDRS : FD5_ADDRS;

	if (d->zla == ZLA_SB && len > max * m->sub) {
		for (uint64_t i = 0; i < d->maps; i++)
			addr_free(m, d->map[i].addr);
		d->maps = 0;
		memset(node_addrs(d), 0, FD6_ADDRS * sizeof(*d->addr));
		d->zla = ZLA_FB;
		d->block = m->block;
		d->shift = (unsigned int)__builtin_ctzll(m->block);
	}
	d->length = len;
	node_put(m, d, 0, buf, len);
	if (len > max * d->block) {
		d->pbs = 0;
		node_seal(m, d, MKFS_SINGLE, false);
	} else {
		node_seal(m, d, MKFS_DIRECT, false);
	}
}

static void record5(uint8_t *at, const char *name, uint32_t fd, uint32_t gen, uint32_t type)
{
	put32(at, DE5_TYPE, type);
	put32(at, DE5_FD, fd);
	put32(at, DE5_GEN, gen);
	memcpy(at + DE5_NAME, name, strnlen(name, DE5_NAME_SIZE));
}

static void dir_write5(struct mkfs *m, struct node *d)
{
	uint64_t len = (d->slots + 2) * DE5_SIZE;
	uint8_t *buf = xalloc(len);

	record5(buf, ".", d->fd, d->gen, d == m->sdd ? TYPE_SYS : TYPE_DIR); /* M */
	record5(buf + DE5_SIZE, "..", d->parent->fd, d->parent->gen, TYPE_DIR);
	for (uint64_t i = 0; i < d->slots; i++) {
		const struct slot *s = &d->slot[i];

		record5(buf + (i + 2) * DE5_SIZE, s->name, s->free ? 0 : s->fd, s->gen, s->type);
	}
	dir_store(m, d, buf, len);
	free(buf);
}

/* A VMFS6 directory while it is laid out. */
struct dir6 {
	uint8_t *buf;
	uint64_t blocks, cap; /* 4 KiB blocks after the header */
	uint8_t *kind;        /* per block: DB_* | MAP_FREE */
	uint64_t link_block, dirent_block;
	bool root;
};

static uint8_t *block_at(struct dir6 *d, uint64_t b)
{
	return d->buf + DIR6_HEADER + b * DIR6_BLOCK;
}

static uint64_t block_add(struct dir6 *d, uint16_t kind, uint16_t slots)
{
	uint64_t b = d->blocks++;
	uint8_t *at;

	if (b % MAP_PER_BLOCK == 0 && kind != DB_MAP) {
		d->blocks--;
		block_add(d, DB_MAP, 0);
		b = d->blocks++;
	}
	if (d->blocks + 1 > d->cap) {
		uint64_t old = d->cap;

		d->cap = old * 2 + 16;
		d->buf = xgrow(d->buf, DIR6_HEADER + d->cap * DIR6_BLOCK,
			       old ? DIR6_HEADER + old * DIR6_BLOCK : 0, 1);
		d->kind = xgrow(d->kind, d->cap, old, 1);
	}
	d->kind[b] = (uint8_t)kind;
	at = block_at(d, b);
	put16(at, DB_VERSION, kind == DB_MAP ? 0 : 1);
	put16(at, DB_TYPE, kind);
	put16(at, DB_SLOTS, slots);
	put16(at, DB_FREE, slots);
	for (unsigned int i = 0; i < slots; i++)
		at[DB_BITMAP + i / 8] |= (uint8_t)(1 << i % 8);
	return b;
}

static uint32_t location(uint32_t kind, uint64_t block, uint32_t slot)
{
	return kind | (uint32_t)block << 2 | slot << 24;
}

static void slot_use(uint8_t *block, uint32_t slot)
{
	uint16_t n;

	memcpy(&n, block + DB_FREE, 2);
	put16(block, DB_FREE, (uint16_t)(n - 1));
	block[DB_BITMAP + slot / 8] &= (uint8_t) ~(1 << slot % 8);
}

static uint32_t link_group_new(struct dir6 *d, uint32_t index)
{
	uint16_t left = 0;
	uint32_t slot;
	uint8_t *block, *g;

	if (d->link_block)
		memcpy(&left, block_at(d, d->link_block) + DB_FREE, 2);
	if (!left)
		d->link_block = block_add(d, DB_LINK, DB_LINK_SLOTS);
	block = block_at(d, d->link_block);
	memcpy(&left, block + DB_FREE, 2);
	slot = DB_LINK_SLOTS - left;
	slot_use(block, slot);
	g = block + DB_HEADER + slot * LG_SIZE;
	put16(g, LG_INDEX, (uint16_t)index);
	g[LG_TOTAL] = g[LG_FREE] = LG_MAX;
	return location(DB_LINK, d->link_block, slot);
}

static uint8_t *link_group(struct dir6 *d, uint32_t where)
{
	return block_at(d, where >> 2 & 0x3FFFFF) + DB_HEADER + (where >> 24) * LG_SIZE;
}

static void link_add(struct dir6 *d, uint32_t group, uint32_t where, uint16_t hash)
{
	uint8_t *g = link_group(d, group);
	uint32_t next;

	while (!g[LG_FREE]) {
		next = get32(g, LG_NEXT);
		if (!next) {
			uint16_t index;

			memcpy(&index, g + LG_INDEX, 2);
			next = link_group_new(d, index);
			put32(link_group(d, group), LG_NEXT, next); /* the buffer may have moved */
		}
		group = next;
		g = link_group(d, group);
	}
	put32(g, LG_LINKS + LG_LINK_SIZE * (uint64_t)g[LG_NEXTFREE], where);
	put16(g, LG_LINKS + LG_LINK_SIZE * (uint64_t)g[LG_NEXTFREE] + 4, hash);
	g[LG_NEXTFREE]++;
	g[LG_FREE]--;
}

static uint64_t hash_of(const struct dir6 *d, const char *name, uint32_t *index)
{
	static const char *const sys[] = {".fbb.sf", ".fdc.sf", ".pbc.sf", ".sbc.sf",   ".vh.sf",
					  ".pb2.sf", ".sdd.sf", ".jbc.sf", ".unmap.sf", ".dfd.sf"};
	uint64_t h = mkfs_name_hash(name);

	*index = (uint32_t)(h % (d->root ? DIR6_ROOT_HASHES : DIR6_HASHES));
	for (unsigned int i = 0; d->root && i < sizeof(sys) / sizeof(sys[0]); i++)
		if (!strcmp(name, sys[i])) {
			*index = 0x3E66 + i;
			return 0; /* M: the entry has no hash */
		}
	return h;
}

static void hash_enter(struct dir6 *d, uint32_t index, uint32_t where, uint64_t h)
{
	uint64_t at = DIR6_HASH + 4ull * index;
	uint32_t old = get32(d->buf, at);

	if (!old) {
		put32(d->buf, at, where);
		return;
	}
	if ((old & 3) == DB_DIRENT) {
		uint32_t group = link_group_new(d, index);
		const uint8_t *e =
			block_at(d, old >> 2 & 0x3FFFFF) + DB_HEADER + (old >> 24) * DE6_SIZE;

		link_add(d, group, old, (uint16_t)(get32(e, DE6_HASH) >> 16));
		put32(d->buf, at, group);
		old = group;
	}
	link_add(d, old, where, (uint16_t)(h >> 16));
}

static void entry6(uint8_t *at, uint64_t self, const struct slot *s, uint32_t hash)
{
	put32(at, DE6_TYPE, s->type);
	put32(at, DE6_FD, s->fd);
	put32(at, DE6_GEN, s->gen);
	put32(at, DE6_HASH, hash);
	put64(at, DE6_SELF, self);
	memcpy(at + DE6_NAME, s->name, strlen(s->name));
}

static void dirent_add(struct dir6 *d, uint64_t i, const struct slot *s)
{
	uint32_t slot = (uint32_t)(i % DB_DIRENT_SLOTS), index;
	uint64_t at, h = hash_of(d, s->name, &index);
	uint8_t *block;

	if (!slot)
		d->dirent_block = block_add(d, DB_DIRENT, DB_DIRENT_SLOTS);
	block = block_at(d, d->dirent_block);
	at = DIR6_HEADER + d->dirent_block * DIR6_BLOCK + DB_HEADER + slot * DE6_SIZE;
	if (s->name[0])
		entry6(d->buf + at, at, s, (uint32_t)h);
	if (s->free)
		return;
	slot_use(block, slot);
	hash_enter(d, index, location(DB_DIRENT, d->dirent_block, slot), h);
}

/* Four bits per block, high nibble first. */
static void map_fill(struct dir6 *d)
{
	uint64_t maps = 0;

	for (uint64_t b = 0; b < d->blocks; b += MAP_PER_BLOCK) {
		uint8_t *at = block_at(d, b) + DB_HEADER;

		memset(at, MAP_UNWRITTEN << 4 | MAP_UNWRITTEN, DIR6_BLOCK - DB_HEADER);
		for (uint64_t i = 0; i < MAP_PER_BLOCK && b + i < d->blocks; i++) {
			uint16_t left;
			uint8_t v = d->kind[b + i];

			memcpy(&left, block_at(d, b + i) + DB_FREE, 2);
			v |= left ? MAP_FREE : 0;
			at[i / 2] = i % 2 ? (uint8_t)((at[i / 2] & 0xF0) | v)
					  : (uint8_t)((at[i / 2] & 0x0F) | v << 4);
		}
		put32(d->buf, DIR6_MAP + 4 * maps++, (uint32_t)b);
	}
	put32(d->buf, DIR6_MAPS, (uint32_t)maps);
}

static void dir_write6(struct mkfs *m, struct node *n)
{
	struct dir6 d = {.root = n == m->root};
	struct slot self = {(char *)".", n->fd, n->gen, n == m->sdd ? TYPE_SYS : TYPE_DIR, false};
	struct slot up = {(char *)"..", n->parent->fd, n->parent->gen, TYPE_DIR, false};
	uint32_t entries = 2;

	block_add(&d, DB_MAP, 0);
	for (uint64_t i = 0; i < n->slots; i++) {
		dirent_add(&d, i, &n->slot[i]);
		entries += !n->slot[i].free;
	}
	put32(d.buf, 0, DIR6_VERSION);
	put32(d.buf, DIR6_ENTRIES, entries);
	put32(d.buf, DIR6_ALLOCATED, entries);
	entry6(d.buf + DIR6_SELF, DIR6_SELF, &self, 0);
	entry6(d.buf + DIR6_PARENT, DIR6_PARENT, &up, 0);
	map_fill(&d);
	dir_store(m, n, d.buf, DIR6_HEADER + d.blocks * DIR6_BLOCK);
	free(d.buf);
	free(d.kind);
}

void dir_write(struct mkfs *m, struct node *d)
{
	if (m->six)
		dir_write6(m, d);
	else
		dir_write5(m, d);
}
