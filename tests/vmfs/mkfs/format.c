/* An empty file system: superblock, heartbeats, system files, root, journal. */
#include "internal.h"

enum { UPGRADED_PB2 = 20, UPGRADED_SDD = 21 };                 /* their descriptors */
enum { FS_TIME = 0x61137dd5, HB_SLOT5 = 984, HB_SLOT6 = 120 }; /* as measured */

static uint32_t hb_size(const struct mkfs *m)
{
	return m->six ? (uint32_t)m->mdalign : 512;
}

static uint32_t hb_count(const struct mkfs *m)
{
	return m->six ? 1024 : 2048;
}

static uint8_t fs_minor(const struct mkfs *m)
{
	return m->six ? 0x52 : m->version == 5 ? 0x51 : 0x2E;
}

static uint32_t fs_major(const struct mkfs *m)
{
	return m->six ? 24 : m->version == 5 ? 14 : 4;
}

static void super_put6(const struct mkfs *m, uint8_t *s)
{
	put16(s, SB_OFF_UNMAP_PRIO, 1);
	put32(s, SB_OFF_PHYS, 512);
	put32(s, SB_OFF_MDALIGN, (uint32_t)m->mdalign);
	put16(s, SB_OFF_SFBLFB, 9);
	put16(s, SB_OFF_PTRSHIFT, 16);
	put16(s, SB_OFF_SFBBITS, 44);
	put32(s, SB_OFF_TBZ, MIB);
	put32(s, SB_OFF_JBLOCK, 2 * MIB);
	put32(s, SB_OFF_LEASE, 16000);
	put32(s, SB_OFF_RECLAIM, 4000);
}

static void super_put(const struct mkfs *m, uint8_t *s)
{
	const struct res *pb2 = &m->res[RES_PB2];

	put32(s, SB_OFF_MAGIC, m->f.local ? SB_MAGIC_LOCAL : SB_MAGIC);
	put32(s, SB_OFF_MAJOR, fs_major(m));
	s[SB_OFF_MINOR] = fs_minor(m);
	memcpy(s + SB_OFF_UUID, m->fs_uuid, 16);
	put32(s, SB_OFF_CONFIG, SB_CONFIG_BASE | (m->f.dense ? SB_CONFIG_DENSE : 0));
	memcpy(s + SB_OFF_LABEL, m->label, strlen(m->label));
	put32(s, SB_OFF_SECTOR, 512);
	put64(s, SB_OFF_BLOCK, m->block);
	put32(s, SB_OFF_CTIME, m->ctime);
	put32(s, SB_OFF_SNAP, 1);
	memcpy(s + SB_OFF_LVUUID, m->lv_uuid, 16);
	put32(s, SB_OFF_LVSNAP, 1);
	put32(s, SB_OFF_FDC_OFF, RF_GROUP_OFFSET);
	put32(s, SB_OFF_FDC_CPG, m->res[RES_FDC].cpg);
	put32(s, SB_OFF_SUBBLOCK, (uint32_t)m->sub);
	put32(s, SB_OFF_TXN, m->six ? 64 : 8);
	memcpy(s + SB_OFF_HOST, m->host_uuid, 16);
	put64(s, SB_OFF_GEN, 1);
	if (m->version >= 5) {
		put64(s, SB_OFF_PB2_VOL, res_vol(m, RES_FDC, addr_fd_index(m, pb2->fd)));
		put32(s, SB_OFF_PB2_FD, pb2->fd);
		put64(s, SB_OFF_SDD_VOL, node_fd_vol(m, m->sdd));
		put32(s, SB_OFF_SDD_FD, m->sdd->fd);
	}
	if (m->six)
		super_put6(m, s);
}

void super_write(struct mkfs *m)
{
	uint64_t size = m->six ? m->mdalign : SB_SIZE;
	uint8_t *s = xalloc(size);

	super_put(m, s);
	dev_write(m, SB_BASE, s, size);
	free(s);
}

/* M: a host that left leaves its generation, clock, versions and address in the slot. */
static void hb_past(const struct mkfs *m, uint8_t *h)
{
	static const char ip[] = "10.199.5.140";

	put64(h, HB_OFF_GEN, m->hb_past ? m->hb_past : m->hb_gen);
	put64(h, HB_OFF_UPTIME, m->hb_uptime);
	put32(h, HB_OFF_MAJOR, fs_major(m));
	h[HB_OFF_MINOR] = fs_minor(m);
	h[HB_OFF_IMPL] = 3;
	memcpy(h + HB_OFF_IP, ip, sizeof(ip));
}

static void hb_live(const struct mkfs *m, uint8_t *h)
{
	put32(h, HB_OFF_MAGIC, (uint32_t)HB_LIVE);
	memcpy(h + HB_OFF_HOST, m->host_uuid, 16);
	if (m->six) {
		put32(h, HB_OFF_JADDR, ADDR_JB);
		put64(h, HB_OFF_JVOL, res_vol(m, RES_JBC, 0));
	} else {
		put32(h, HB_OFF_JADDR, (uint32_t)addr_fb(m, m->journal));
		put64(h, HB_OFF_JVOL, m->journal * m->block);
	}
}

void heartbeats_write(struct mkfs *m)
{
	uint32_t size = hb_size(m), n = hb_count(m);
	uint8_t *all = xalloc((uint64_t)size * n);

	for (uint32_t i = 0; i < n; i++) {
		put32(all, (uint64_t)i * size + HB_OFF_MAGIC, (uint32_t)HB_FREE);
		put64(all, (uint64_t)i * size + HB_OFF_SELF, HB_BASE + (uint64_t)i * size);
	}
	hb_past(m, all + (uint64_t)m->hb_slot * size);
	if (m->f.live)
		hb_live(m, all + (uint64_t)m->hb_slot * size);
	dev_write(m, HB_BASE, all, (uint64_t)size * n);
	free(all);
}

/* VMFS6: every journal block opens with its head; its 4 KiB slots say that they are empty. */
static void journal6_write(struct mkfs *m)
{
	uint8_t *b = xalloc(m->mdalign);
	uint64_t head = res_vol(m, RES_JBC, 0), slots = 2 * MIB / m->mdalign;

	for (uint64_t i = 0; i < m->res[RES_JBC].num; i++) {
		memset(b, 0, m->mdalign);
		put32(b, 0, JB6_TXN);
		put16(b, 4, 0xFFFF);
		for (uint64_t s = 2; s < slots; s++)
			dev_write(m,
				  res_file_vol(m, &m->res[RES_JBC],
					       head - res_vol(m, RES_JBC, 0) + 0x18000 +
						       i * 2 * MIB + s * m->mdalign),
				  b, m->mdalign);
		memset(b, 0, m->mdalign);
		put32(b, 0, JB6_HEAD);
		put32(b, 4, 0x10000);
		put32(b, 0x20, JB6_HEAD2);
		put64(b, 0x204, res_vol(m, RES_JBC, i));
		dev_write(m, res_vol(m, RES_JBC, i), b, m->mdalign);
	}
	free(b);
}

void journal_write(struct mkfs *m)
{
	if (m->six)
		journal6_write(m);
}

static struct node *sys_node(struct mkfs *m, const char *name, uint32_t fd)
{
	struct node *n = node_new(m, m->root, name, TYPE_SYS);

	n->fd = fd;
	n->mode = 0400;
	n->block = m->block;
	n->shift = n->tbz_shift = (unsigned int)__builtin_ctzll(m->block);
	n->zla = ZLA_FB;
	n->gen = 1;
	n->sys = true;
	m->res[RES_FDC].used[addr_fd_index(m, fd)] = 1;
	m->res[RES_FDC].free--;
	node_link(m, n);
	return n;
}

static void give_blocks(struct mkfs *m, struct node *n, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		node_map(n, i, addr_fb(m, fb_take(m, n->fd)));
	n->length = count * m->block;
}

static void root_make(struct mkfs *m)
{
	struct node *n = node_new(m, NULL, "", TYPE_DIR);

	m->root = n;
	n->parent = n;
	n->links = 2; /* "." and ".." */
	n->fd = addr_fd(m, 0);
	n->gen = 1;
	n->mode = 01755;
	n->zla = ZLA_FB;
	n->block = m->block;
	n->shift = n->tbz_shift = (unsigned int)__builtin_ctzll(m->block);
	m->res[RES_FDC].used[0] = 1;
	m->res[RES_FDC].free--;
	give_blocks(m, n, 1);
}

static void res_start(struct mkfs *m, enum res_kind k, uint64_t num)
{
	struct res *r = &m->res[k];

	res_extend(m, r, num);
	while (r->blocks * m->block < r->length)
		res_file_block(m, r, fb_take(m, r->fd));
}

/* System files in the order in which ESXi gives them blocks (measured). */
static void system_files(struct mkfs *m)
{
	uint64_t vh = m->fdc_base / m->block;
	struct node *n;

	res_extend(m, &m->res[RES_FBB], m->volume / m->block);
	for (uint64_t i = 0; i < vh; i++)
		fb_reserve(m, i, 0x1400004);
	res_start(m, RES_FDC, m->six ? 256 : 64);
	root_make(m);
	for (int k = RES_FBB; k <= RES_SBC; k++)
		res_start(m, (enum res_kind)k, k == RES_FBB ? m->res[k].num : m->res[k].rpc);
	sys_node(m, ".fbb.sf", 0x400004);
	sys_node(m, ".fdc.sf", 0x800004);
	sys_node(m, ".pbc.sf", 0xC00004);
	sys_node(m, ".sbc.sf", 0x1000004);
	n = sys_node(m, ".vh.sf", 0x1400004);
	for (uint64_t i = 0; i < vh; i++)
		node_map(n, i, addr_fb(m, i));
	n->length = vh * m->block;
	if (m->version >= 5) {
		res_start(m, RES_PB2, m->res[RES_PB2].rpc);
		sys_node(m, ".pb2.sf", m->res[RES_PB2].fd);
		m->sdd = sys_node(m, ".sdd.sf",
				  m->f.upgraded ? addr_fd(m, UPGRADED_SDD) : 0x1C00004);
		m->sdd->mode = 040700;
		m->sdd->links = 2;
		m->root->links++;
		give_blocks(m, m->sdd, 1);
	}
	if (m->six) {
		res_start(m, RES_JBC, 8);
		sys_node(m, ".jbc.sf", 0x2000004);
		if (m->f.live)
			res_take(m, RES_JBC, 0);
	} else {
		m->journal = fb_take(m, 0xFFFFFFFF); /* nobody's */
		if (!m->f.live)                      /* a host that leaves gives it back */
			res_free(m, RES_FBB, m->journal);
	}
	m->res[RES_FDC].next = m->six ? 9 : m->version == 5 && !m->f.upgraded ? 8 : 6;
	m->gen = 0;
}

static void check_format(const struct mkfs_format *f)
{
	uint64_t mib = f->block / MIB;

	if (f->version != 3 && f->version != 5 && f->version != 6)
		mkfs_die("version %d: it is 3, 5 or 6", f->version);
	if (f->block % MIB || (mib != 1 && mib != 2 && mib != 4 && mib != 8))
		mkfs_die("a file block has 1, 2, 4 or 8 MiB");
	if (f->version == 6 && mib != 1)
		mkfs_die("VMFS6 has file blocks of 1 MiB only");
	if (f->upgraded && f->version != 5)
		mkfs_die("only VMFS5 is upgraded");
	if (f->label && strlen(f->label) > 127)
		mkfs_die("a label has at most 127 bytes");
}

struct mkfs *mkfs_create(const struct mkfs_format *f)
{
	struct mkfs *m = xalloc(sizeof(*m));

	m->f = *f;
	if (!m->f.block)
		m->f.block = MIB;
	check_format(&m->f);
	m->version = f->version;
	m->six = f->version == 6;
	if (f->upgraded)
		m->f.dense = false;
	if (m->version != 5)
		m->f.dense = m->six && f->dense;
	m->label = xdup(f->label ? f->label : "test");
	m->block = m->f.block;
	m->sub = m->version == 5 ? 8 * KIB : 64 * KIB;
	m->mdalign = m->six ? 4096 : 512;
	m->fdc_base = m->six ? 7 * MIB : m->block * ((m->block + 4 * MIB - 1) / m->block);
	m->time = m->ctime = FS_TIME;
	m->hb_slot = m->six ? HB_SLOT6 : HB_SLOT5;
	m->hb_gen = 9;
	m->hb_uptime = 522912049;
	for (unsigned int i = 0; i < 4; i++)
		m->stamp[i] = FS_TIME * 1000000ull + i;
	m->seq = 0x200;
	make_uuid(m->lv_uuid, f->seed * 64 + 1, FS_TIME);
	make_uuid(m->fs_uuid, f->seed * 64 + 2, FS_TIME);
	make_uuid(m->host_uuid, f->seed * 64 + 3, FS_TIME - 123);
	dev_open(m);
	res_init(m);
	if (f->upgraded)
		m->res[RES_PB2].fd = addr_fd(m, UPGRADED_PB2);
	system_files(m);
	journal_write(m);
	return m;
}

struct mkfs *mkfs_format_over(struct mkfs *old, const struct mkfs_format *f)
{
	struct mkfs_format again = *f;
	struct mkfs *m;

	mkfs_flush(old);
	again.keep = true;
	m = mkfs_create(&again);
	m->older = old;
	return m;
}
