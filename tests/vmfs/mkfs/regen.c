/* A volume that ESXi made, parsed to the writer's own state, written again and compared.
 *
 * What no reader checks (locks, heartbeats, bitmaps, counters, affinities) is checked so: every
 * byte of the volume outside file content and journals must come out as ESXi wrote it.  The few
 * bytes nobody knows the meaning of are listed in UNKNOWN. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, SECTOR = 512 };

struct regen {
	struct mkfs *m;
	int fd;
	uint64_t size;
	struct skip {
		uint64_t vol, len;
	} * skip;
	uint64_t skips, cap, last;
};

static void real_dev(const struct regen *g, uint64_t off, void *buf, uint64_t len)
{
	ssize_t n = pread(g->fd, buf, len, (off_t)off);

	if (n < 0)
		mkfs_die("cannot read the volume: %s", strerror(errno));
	memset((char *)buf + n, 0, len - (uint64_t)n);
}

static void real(const struct regen *g, uint64_t vol, void *buf, uint64_t len)
{
	real_dev(g, LVM_DATA + vol, buf, len);
}

static void skip_add(struct regen *g, uint64_t vol, uint64_t len)
{
	if (g->skips == g->cap) {
		g->cap = g->cap * 2 + 64;
		g->skip = xgrow(g->skip, g->cap, g->skips, sizeof(*g->skip));
	}
	g->skip[g->skips++] = (struct skip){vol, len};
}

static void parse_lvm(struct regen *g)
{
	struct mkfs *m = g->m;
	struct extent *e = &m->ext[0];
	uint8_t h[2 * 4096], *v;

	real_dev(g, LVM_BASE, h, sizeof(h));
	m->version = (int)get32(h, LVM_OFF_MAJOR);
	m->six = m->version == 6;
	m->mdalign = m->six ? get32(h, LVM_OFF_MDALIGN) : 512;
	if (get32(h, LVM_OFF_MAGIC) != (uint32_t)LVM_MAGIC || m->mdalign > 4096)
		mkfs_die("this is not a bare VMFS volume");
	v = h + (m->six ? m->mdalign : SECTOR);
	m->extents = 1;
	e->path = xdup("memory");
	e->fd = memfd_create("regenerated", MFD_CLOEXEC);
	e->part_size = get64(h, LVM_OFF_TOTAL);
	e->len = m->volume = get64(v, LV_SIZE);
	memcpy(e->uuid, h + LVM_OFF_UUID, 16);
	e->target = h[LVM_OFF_SCSI + LVM_SCSI_ID + 7] - '0'; /* vmhba0:N:0 */
	memcpy(m->lv_uuid, v + LV_UUID, 16);
	m->stamp[0] = get64(h, LVM_OFF_INIT);
	m->stamp[1] = get64(h, LVM_OFF_MTIME);
	m->stamp[2] = get64(v, LV_CTIME);
	m->stamp[3] = get64(v, LV_MTIME);
	m->f.local = get32(h, LVM_OFF_FLAGS) & LVM_FLAG_LOCAL;
	if (e->fd < 0 || ftruncate(e->fd, (off_t)g->size))
		mkfs_die("no memory file: %s", strerror(errno));
}

static void parse_super(struct regen *g)
{
	struct mkfs *m = g->m;
	uint8_t s[SB_SIZE];

	real(g, SB_BASE, s, sizeof(s));
	memcpy(m->fs_uuid, s + SB_OFF_UUID, 16);
	memcpy(m->host_uuid, s + SB_OFF_HOST, 16);
	m->label = xalloc(129);
	memcpy(m->label, s + SB_OFF_LABEL, 128);
	m->f.dense = get32(s, SB_OFF_CONFIG) & SB_CONFIG_DENSE;
	m->f.block = m->block = get64(s, SB_OFF_BLOCK);
	m->sub = get32(s, SB_OFF_SUBBLOCK);
	m->ctime = get32(s, SB_OFF_CTIME);
	m->fdc_base = m->six ? 7 * MIB : m->block * ((m->block + 4 * MIB - 1) / m->block);
}

static void parse_heartbeats(struct regen *g)
{
	struct mkfs *m = g->m;
	uint64_t size = m->six ? m->mdalign : 512;
	uint8_t h[512];

	for (uint32_t i = 0; i < (m->six ? 1024 : 2048); i++) {
		real(g, HB_BASE + i * size, h, sizeof(h));
		if (!get64(h, HB_OFF_GEN))
			continue;
		m->f.live = get32(h, HB_OFF_MAGIC) == (uint32_t)HB_LIVE;
		m->hb_slot = i;
		m->hb_past = get64(h, HB_OFF_GEN);
		m->hb_uptime = get64(h, HB_OFF_UPTIME);
		if (!m->six)
			m->journal = get64(h, HB_OFF_JVOL) / m->block;
	}
}

static void parse_note(const uint8_t *lock, struct note *n)
{
	n->hb = get64(lock, LK_HB);
	n->hb_gen = get64(lock, LK_HBGEN);
	n->token = get64(lock, LK_TOKEN);
	n->mtime = get64(lock, LK_MTIME);
}

/* Descriptors of the first cluster: system files and what the samples have besides. */
static uint64_t fd_vol(const struct mkfs *m, uint32_t fd)
{
	const struct res *r = &m->res[RES_FDC];

	return m->fdc_base + RF_GROUP_OFFSET + (uint64_t)r->cpg * r->hdr +
	       addr_fd_index(m, fd) * node_fd_size(m);
}

static uint64_t array_at(const struct mkfs *m, const uint8_t *raw, uint64_t i)
{
	return m->six ? get64(raw, FD6_ARRAY + 8 * i) : get32(raw, FD5_DATA + 4 * i);
}

static uint64_t sfb(const struct mkfs *m, uint64_t addr)
{
	return m->six ? (addr >> 15 & 0x7FFFFFFF) * 512 + (addr >> 51) : addr >> 6;
}

/* The blocks of a resource file; those of .sbc.sf of VMFS6 stand in a pointer block. */
static void parse_blocks(struct regen *g, struct res *r)
{
	struct mkfs *m = g->m;
	uint8_t raw[FD6_SIZE], *meta = raw + (m->six ? FD6_META : FD5_META);
	uint64_t n;

	real(g, fd_vol(m, r->fd), raw, node_fd_size(m));
	n = get64(meta, FD_BLOCKS);
	if (get32(meta, FD_ZLA) == ZLA_PB2) {
		uint8_t *pb = xalloc(64 * KIB);

		r->pb[r->pbs++] = array_at(m, raw, 0);
		real(g, addr_vol(m, r->pb[0]), pb, 64 * KIB);
		for (uint64_t i = 0; i < n; i++)
			res_file_block(m, r, sfb(m, get64(pb, 8 * i)));
		free(pb);
		return;
	}
	for (uint64_t i = 0; i < n; i++)
		res_file_block(m, r, sfb(m, array_at(m, raw, i)));
}

static void parse_cluster(struct regen *g, enum res_kind k, uint64_t c)
{
	struct mkfs *m = g->m;
	struct res *r = &m->res[k];
	uint64_t aff = r->rpc == 256 ? CM6_AFF_256 : CM6_AFF_32;
	unsigned int bits = m->six && k == RES_FBB ? 2 : 1;
	uint8_t h[2 * 4096], *b = h + (m->six ? 4096 : 512);
	const uint8_t *map = b + (m->six ? CM6_BITMAP : CM5_BITMAP);

	real(g, res_header_vol(m, r, c), h, r->hdr);
	parse_note(h, &r->note[c]);
	r->note[c].txn = get32(b, m->six ? CM6_TXN : CM5_TXN);
	r->note[c].time = get32(b, CM6_TIME);
	r->note[c].txn2 = get32(b, CM6_TXN2);
	for (uint64_t i = 0; i < r->rpc && c * r->rpc + i < r->num; i++) {
		r->used[c * r->rpc + i] = !(map[i * bits / 8] >> i * bits % 8 & 1);
		if (m->six && (r->rpc == 256 || r->rpc == 32))
			r->owner[c * r->rpc + i] = get32(b, aff + 4 * i);
	}
}

static void parse_resources(struct regen *g)
{
	/* .pb2.sf first: it maps .sbc.sf */
	static const uint8_t order[] = {RES_FDC, RES_PB2, RES_FBB, RES_PBC, RES_SBC, RES_JBC};
	struct mkfs *m = g->m;
	uint8_t h[4096];

	for (unsigned int i = 0; i < sizeof(order); i++) {
		struct res *r = &m->res[order[i]];

		if (!r->name)
			continue;
		parse_blocks(g, r);
		real(g, res_file_vol(m, r, m->six && order[i] == RES_FBB ? RF_CHILD_OFFSET : 0), h,
		     512);
		res_extend(m, r, get32(h, RF_NUM) | (uint64_t)get32(h, RF_NUMHI) << 32);
		for (uint64_t c = 0; c < res_clusters(r); c++)
			parse_cluster(g, (enum res_kind)order[i], c);
	}
}

static void parse_lfb(struct regen *g)
{
	struct mkfs *m = g->m;
	const struct res *r = &m->res[RES_FBB];
	uint8_t h[2 * 4096];

	real(g, res_file_vol(m, r, RF_GROUP_OFFSET), h, sizeof(h));
	parse_note(h, &m->lfb_note);
	for (uint64_t i = 0; i < m->lfbs; i++) {
		uint32_t v = get32(h, 4096 + CM6_BITMAP + i * 3 / 8) >> i * 3 % 8 & 7;

		m->lfb[i] = v == LFB_TO_CHILD ? LFB_CHILD : v ? LFB_FREE : LFB_FILE;
	}
}

static void parse_node(struct regen *g, struct node *n)
{
	struct mkfs *m = g->m;
	uint8_t raw[FD6_SIZE], *b = raw + (m->six ? FD6_META : FD5_META);

	real(g, fd_vol(m, n->fd), raw, node_fd_size(m));
	parse_note(raw, &n->lock);
	n->gen = get32(b, FD_GEN);
	n->links = get32(b, FD_LINKS);
	n->length = get64(b, FD_LENGTH);
	n->block = get64(b, FD_BLOCKSIZE);
	n->nblocks = get64(b, FD_BLOCKS);
	n->time = get32(b, FD_MTIME);
	n->ctime = get32(b, FD_CTIME);
	n->atime = get32(b, FD_ATIME);
	n->affinity = get32(b, FD_AFFINITY);
	n->flags = get32(b, FD_FLAGS);
	n->mode = get32(b, FD_MODE);
	n->zla = get32(b, FD_ZLA);
	n->tbz_shift = get32(b, FD_TBZSHIFT);
	n->last_sfb = m->six ? get32(b, FD_LASTSFB) : 0;
	n->shift = b[FD_SHIFT];
	if (n->zla == ZLA_RESIDENT) {
		n->resident = xalloc(FD6_RESIDENT);
		memcpy(n->resident, raw + (m->six ? FD6_DATA : FD5_DATA),
		       m->six ? FD6_RESIDENT : FD5_RESIDENT);
		return;
	}
	for (uint64_t i = 0; i < (m->six ? FD6_ADDRS : FD5_ADDRS); i++) {
		uint64_t a = array_at(m, raw, i);

		if (a)
			node_map(n, i, node_addrs(n)[i] = a);
	}
}

static void own(struct mkfs *m, const struct node *n)
{
	for (uint64_t i = 0; i < n->maps; i++)
		if ((n->map[i].addr & 7) == ADDR_FB)
			m->res[RES_FBB].owner[sfb(m, n->map[i].addr)] = n->fd;
}

static void parse_dir(struct regen *g, struct node *d);

/* A record of a directory: its slot, and the descriptor behind it. */
static void parse_entry(struct regen *g, struct node *d, const uint8_t *at, bool six)
{
	struct mkfs *m = g->m;
	char name[129] = {0};
	struct node *n;

	memcpy(name, at + (six ? DE6_NAME : DE5_NAME), 127);
	n = node_new(m, d, name, get32(at, 0));
	n->fd = get32(at, 4);
	n->sys = n->type == TYPE_SYS;
	parse_node(g, n);
	own(m, n);
	if (n->fd == 0x1C00004)
		m->sdd = n;
	node_link(m, n);
	if (n->type == TYPE_DIR || n == m->sdd)
		parse_dir(g, n);
	for (uint64_t i = 0; !n->sys && n->type != TYPE_DIR && i < n->maps; i++)
		skip_add(g, addr_vol(m, n->map[i].addr), addr_size(m, n->map[i].addr));
}

static void parse_dir(struct regen *g, struct node *d)
{
	struct mkfs *m = g->m;
	uint8_t *buf = xalloc(d->length + d->block);
	struct note lock = d->lock;
	uint32_t links = d->links;

	for (uint64_t i = 0; i * d->block < d->length; i++)
		real(g, addr_vol(m, node_at(d, i)), buf + i * d->block, d->block);
	if (!m->six)
		for (uint64_t i = 2; i < d->length / DE5_SIZE; i++)
			parse_entry(g, d, buf + i * DE5_SIZE, false);
	for (uint64_t i = 0; m->six && i < DB_DIRENT_SLOTS && d != m->sdd; i++) {
		const uint8_t *b = buf + DIR6_HEADER + DIR6_BLOCK;

		if (!(b[DB_BITMAP + i / 8] >> i % 8 & 1))
			parse_entry(g, d, b + DB_HEADER + i * DE6_SIZE, true);
	}
	d->lock = lock;
	d->links = links;
	free(buf);
}

static void parse_tree(struct regen *g)
{
	struct mkfs *m = g->m;
	struct node *n = node_new(m, NULL, "", TYPE_DIR);

	m->root = n;
	n->parent = n;
	n->fd = addr_fd(m, 0);
	parse_node(g, n);
	own(m, n);
	parse_dir(g, n);
	for (int k = 0; k < RES_COUNT; k++)
		for (uint64_t i = 0; i < m->res[k].blocks; i++)
			m->res[RES_FBB].owner[m->res[k].block[i]] = m->res[k].fd;
}

/* Journals are of another kind; nobody knows their records. */
static void skip_journals(struct regen *g)
{
	struct mkfs *m = g->m;
	const struct res *r = &m->res[RES_JBC];

	if (!m->six) {
		skip_add(g, m->journal * m->block, m->block);
		return;
	}
	for (uint64_t i = 0; i < r->num; i++) {
		uint64_t c = i / r->rpc;
		uint64_t off = RF_GROUP_OFFSET + c / r->cpg * r->cgsize +
			       (uint64_t)r->cpg * r->hdr +
			       (i - c / r->cpg * r->cpg * r->rpc) * r->rsize;

		for (uint64_t at = 0; at < r->rsize; at += 0x8000)
			skip_add(g, res_file_vol(m, r, off + at), 0x8000);
	}
}

/* Bytes whose meaning is not known, each seen once. */
static void skip_unknown(struct regen *g)
{
	struct mkfs *m = g->m;
	uint64_t sbc = fd_vol(m, 0x1000004);

	if (!m->six)
		return;
	skip_add(g, sbc + FD6_META + 0x7C, 8); /* .sbc.sf after it grew */
	skip_add(g, sbc + FD6_DATA, 4);
	skip_add(g, res_header_vol(m, &m->res[RES_FBB], 1) + 0x198, 0x38); /* a lock's past */
	skip_add(g, res_header_vol(m, &m->res[RES_PB2], 0) + 0x198, 0x38);
}

static bool in_skip(const struct regen *g, uint64_t i, uint64_t vol)
{
	return i < g->skips && vol >= g->skip[i].vol && vol - g->skip[i].vol < g->skip[i].len;
}

static bool skipped(struct regen *g, uint64_t vol)
{
	if (in_skip(g, g->last, vol))
		return true;
	for (uint64_t i = 0; i < g->skips; i++)
		if (in_skip(g, i, vol)) {
			g->last = i;
			return true;
		}
	return false;
}

struct part {
	const char *name;
	uint64_t from, to; /* device offsets */
	uint64_t differ;
};

static void compare_sector(struct regen *g, struct part *p, uint64_t dev, const uint8_t *want,
			   const uint8_t *have)
{
	for (uint64_t i = 0; i < SECTOR; i++) {
		if (want[i] == have[i] || (dev >= LVM_DATA && skipped(g, dev + i - LVM_DATA)))
			continue;
		if (p->differ++ < 16)
			printf("# %#llx: %02x, not %02x\n", (unsigned long long)(dev + i), have[i],
			       want[i]);
	}
}

/* The next sector that one of the two has and is not a hole. */
static uint64_t next_data(const struct regen *g, uint64_t from)
{
	off_t a = lseek(g->fd, (off_t)from, SEEK_DATA);
	off_t b = lseek(g->m->ext[0].fd, (off_t)from, SEEK_DATA);
	uint64_t x = a < 0 ? g->size : (uint64_t)a, y = b < 0 ? g->size : (uint64_t)b;

	return (x < y ? x : y) / SECTOR * SECTOR;
}

static void compare(struct regen *g, struct part *p)
{
	uint8_t *want = xalloc(CHUNK), *have = xalloc(CHUNK);

	for (uint64_t at = next_data(g, p->from), n; at < p->to; at = next_data(g, at + n)) {
		n = p->to - at < CHUNK ? p->to - at : CHUNK;

		real_dev(g, at, want, n);
		if (pread(g->m->ext[0].fd, have, n, (off_t)at) != (ssize_t)n)
			mkfs_die("cannot read what was made");
		for (uint64_t i = 0; i < n; i += SECTOR)
			if (memcmp(want + i, have + i, SECTOR))
				compare_sector(g, p, at + i, want + i, have + i);
	}
	free(want);
	free(have);
}

static int report(struct regen *g)
{
	struct mkfs *m = g->m;
	uint64_t fds = LVM_DATA + m->fdc_base, end = LVM_DATA + m->volume;
	struct part part[] = {
		{"LVM header, volume record, PE tables", LVM_BASE, LVM_DATA, 0},
		{"superblock", LVM_DATA, LVM_DATA + HB_BASE, 0},
		{"heartbeats", LVM_DATA + HB_BASE, fds, 0},
		{"file descriptors and their clusters", fds, fds + MIB, 0},
		{"other resource files, directories, all else", fds + MIB, end, 0},
	};
	int bad = 0, n = sizeof(part) / sizeof(part[0]);

	for (int i = 0; i < n; i++) {
		compare(g, &part[i]);
		bad += part[i].differ != 0;
		printf("%sok %d - VMFS%d %s (%llu bytes differ)\n", part[i].differ ? "not " : "",
		       i + 1, m->version, part[i].name, (unsigned long long)part[i].differ);
	}
	printf("1..%d\n", n);
	return bad != 0;
}

int mkfs_regenerate(const char *path)
{
	struct regen g = {.m = xalloc(sizeof(*g.m)), .fd = open(path, O_RDONLY | O_CLOEXEC)};
	struct stat st;
	int status;

	if (g.fd < 0 || fstat(g.fd, &st))
		mkfs_die("%s: %s", path, strerror(errno));
	g.size = (uint64_t)st.st_size;
	parse_lvm(&g);
	parse_super(&g);
	res_init(g.m);
	parse_heartbeats(&g);
	parse_resources(&g);
	if (g.m->six)
		parse_lfb(&g);
	parse_tree(&g);
	skip_journals(&g);
	skip_unknown(&g);
	mkfs_flush(g.m);
	status = report(&g);
	free(g.skip);
	close(g.fd);
	mkfs_destroy(g.m);
	return status;
}
