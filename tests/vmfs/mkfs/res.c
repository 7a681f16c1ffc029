/* Resource files: .fdc .fbb .pbc .sbc .pb2 .jbc, what they give out and their cluster headers. */
#include "internal.h"

struct geometry {
	const char *name;
	uint32_t fd, lock_type, rpc, cpg, rsize;
};

// clang-format off
static const struct geometry GEOMETRY3[RES_COUNT] = {
	[RES_FDC] = {".fdc.sf", 0x800004, LK_FDC, 32, 32, 2048},
	[RES_FBB] = {".fbb.sf", 0x400004, LK_FB, 200, 32, 0},
	[RES_PBC] = {".pbc.sf", 0xC00004, LK_PB, 16, 32, 4096},
	[RES_SBC] = {".sbc.sf", 0x1000004, LK_SB, 16, 32, 65536},
};
static const struct geometry GEOMETRY5[RES_COUNT] = {
	[RES_FDC] = {".fdc.sf", 0x800004, LK_FDC, 32, 64, 2048},
	[RES_FBB] = {".fbb.sf", 0x400004, LK_FB, 200, 64, 0},
	[RES_PBC] = {".pbc.sf", 0xC00004, LK_PB, 16, 64, 4096},
	[RES_SBC] = {".sbc.sf", 0x1000004, LK_SB, 32, 64, 8192},
	[RES_PB2] = {".pb2.sf", 0x1800004, LK_PB2, 16, 64, 4096},
};
static const struct geometry GEOMETRY6[RES_COUNT] = {
	[RES_FDC] = {".fdc.sf", 0x800004, LK_FDC, 256, 8, 8192},
	[RES_FBB] = {".fbb.sf", 0x400004, LK_FB, 512, 8, 0},
	[RES_PBC] = {".pbc.sf", 0xC00004, LK_PB, 0, 8, 65536},
	[RES_SBC] = {".sbc.sf", 0x1000004, LK_SB, 256, 8, 65536},
	[RES_PB2] = {".pb2.sf", 0x1800004, LK_PB2, 32, 8, 65536},
	[RES_JBC] = {".jbc.sf", 0x2000004, LK_JB, 8, 4, 2 * 1024 * 1024},
};
// clang-format on
enum { LFB_RPC = 16, LFB_CPG = 8, LFB_HDR = 0x2000, LFB_CGSIZE = 0x110000 };

void res_init(struct mkfs *m)
{
	const struct geometry *g = m->six ? GEOMETRY6 : m->version == 5 ? GEOMETRY5 : GEOMETRY3;

	for (int k = 0; k < RES_COUNT; k++) {
		struct res *r = &m->res[k];

		*r = (struct res){.name = g[k].name,
				  .fd = g[k].fd,
				  .lock_type = g[k].lock_type,
				  .rpc = g[k].rpc,
				  .cpg = g[k].cpg,
				  .rsize = g[k].rsize,
				  .hdr = m->six ? 0x2000 : 1024};
		if (k == RES_SBC && m->version == 5 && !m->f.dense)
			r->rpc = 16;
		r->cgsize = (uint64_t)r->cpg * (r->hdr + (uint64_t)r->rpc * r->rsize);
	}
	m->lfb_note.token = 1;
	if (m->six) {
		m->res[RES_FBB].rpc = (uint32_t)(512 * MIB / m->block);
		m->lfbs = (m->volume / m->block + m->res[RES_FBB].rpc - 1) / m->res[RES_FBB].rpc;
		m->lfb = xalloc(m->lfbs);
		if (m->volume % (512 * MIB)) /* half of one is none */
			m->lfb[m->lfbs - 1] = LFB_CHILD;
	}
}

uint64_t res_clusters(const struct res *r)
{
	return r->rpc ? (r->num + r->rpc - 1) / r->rpc : 0;
}

static uint64_t file_length(const struct mkfs *m, const struct res *r)
{
	uint64_t clusters = res_clusters(r), in, len;
	uint64_t group = clusters ? (clusters - 1) / r->cpg : 0;

	if (m->six && r == &m->res[RES_FBB]) {
		group = (m->lfbs - 1) / (LFB_RPC * LFB_CPG);
		in = m->lfbs - group * LFB_RPC * LFB_CPG;
		return RF_GROUP_OFFSET + group * LFB_CGSIZE + LFB_CPG * LFB_HDR + in * LFB_HDR;
	}
	if (!clusters)
		return RF_GROUP_OFFSET;
	in = r->num - group * r->cpg * r->rpc;
	len = RF_GROUP_OFFSET + group * r->cgsize + (uint64_t)r->cpg * r->hdr + in * r->rsize;
	if (!m->six && r == &m->res[RES_FDC]) /* M */
		len = (len + m->block - 1) / m->block * m->block;
	return len;
}

void res_file_block(struct mkfs *m, struct res *r, uint64_t block)
{
	if (r->blocks == r->blocks_cap) {
		r->blocks_cap = r->blocks_cap * 2 + 16;
		r->block = xgrow(r->block, r->blocks_cap, r->blocks, sizeof(*r->block));
	}
	r->block[r->blocks++] = block;
}

/* Make it hold num resources: more file, more clusters. */
void res_extend(struct mkfs *m, struct res *r, uint64_t num)
{
	uint64_t clusters = r->rpc ? (num + r->rpc - 1) / r->rpc : 0;

	if (num > r->cap) {
		uint64_t cap = num * 2;

		r->used = xgrow(r->used, cap, r->cap, 1);
		r->owner = xgrow(r->owner, cap, r->cap, sizeof(*r->owner));
		r->cap = cap;
	}
	if (clusters > r->notes) {
		r->note = xgrow(r->note, clusters * 2, r->notes, sizeof(*r->note));
		for (uint64_t c = r->notes; c < clusters * 2; c++)
			r->note[c].token = 1;
		r->notes = clusters * 2;
	}
	r->free += num - r->num;
	r->num = num;
	r->length = file_length(m, r);
}

/* The file's blocks follow its length. */
static void res_back(struct mkfs *m, struct res *r)
{
	while (r->blocks * m->block < r->length)
		res_file_block(m, r, fb_take(m, r->fd));
}

/* M: taking a lock and giving it back each count its token up. */
void note_change(struct mkfs *m, struct note *n)
{
	n->hb = HB_BASE + m->hb_slot * (m->six ? m->mdalign : 512ull);
	n->hb_gen = m->hb_gen;
	n->token += 2;
	n->txn++;
	n->time = m->time;
	n->mtime = ++m->seq;
}

void res_touch(struct mkfs *m, struct res *r, uint64_t i)
{
	note_change(m, &r->note[i / r->rpc]);
}

static void mark(struct mkfs *m, struct res *r, uint64_t i, uint32_t owner)
{
	r->used[i] = 1;
	r->owner[i] = owner;
	r->free--;
	res_touch(m, r, i);
}

static uint64_t first_free(const struct res *r, uint64_t from)
{
	const uint8_t *at = from < r->num ? memchr(r->used + from, 0, r->num - from) : NULL;

	return at ? (uint64_t)(at - r->used) : r->num;
}

uint64_t res_take(struct mkfs *m, enum res_kind k, uint32_t owner)
{
	struct res *r = &m->res[k];
	uint64_t i = first_free(r, m->reuse ? 0 : r->next);

	if (i == r->num) {
		if (k == RES_FDC && r->num / r->rpc >= 65536)
			mkfs_die("no file descriptor is left");
		res_extend(m, r, r->num + r->rpc);
	}
	res_back(m, r);
	mark(m, r, i, owner);
	if (!m->reuse)
		r->next = i + 1;
	return i;
}

void res_free(struct mkfs *m, enum res_kind k, uint64_t i)
{
	struct res *r = &m->res[k];

	if (!r->used[i])
		mkfs_die("%s: %llu is freed twice", r->name, (unsigned long long)i);
	r->used[i] = 0;
	r->owner[i] = 0;
	r->free++;
	res_touch(m, r, i);
}

void fb_reserve(struct mkfs *m, uint64_t block, uint32_t owner)
{
	struct res *r = &m->res[RES_FBB];

	if (m->six)
		m->lfb[block / r->rpc] = LFB_CHILD;
	mark(m, r, block, owner);
	r->next = block + 1;
}

/* A file block; on VMFS6 a large one that nobody uses is handed to the small ones first. */
static uint64_t fb_search(struct mkfs *m, uint64_t from)
{
	struct res *r = &m->res[RES_FBB];
	uint64_t i = from;

	while ((i = first_free(r, i)) < r->num) {
		if (!m->six || m->lfb[i / r->rpc] != LFB_FILE)
			return i;
		i = (i / r->rpc + 1) * r->rpc;
	}
	return r->num;
}

uint64_t fb_take(struct mkfs *m, uint32_t owner)
{
	struct res *r = &m->res[RES_FBB];
	uint64_t next = r->next, i = fb_search(m, m->reuse ? 0 : next);

	if (i == r->num)
		i = fb_search(m, 0);
	if (i == r->num)
		mkfs_die("the volume is full (%llu blocks)", (unsigned long long)r->num);
	fb_reserve(m, i, owner);
	r->next = m->reuse ? next : i + 1 + (m->scatter ? 1 : 0);
	return i;
}

/* Large ones from the end, so that the two kinds do not get into each other's way. */
uint64_t lfb_take(struct mkfs *m)
{
	for (uint64_t i = m->lfbs; i-- > 0;) {
		if (m->lfb[i] == LFB_FREE) {
			m->lfb[i] = LFB_FILE;
			return i;
		}
	}
	mkfs_die("no large file block is left: the volume needs 512 MiB more for each");
}

uint64_t res_file_vol(const struct mkfs *m, const struct res *r, uint64_t off)
{
	if (off / m->block >= r->blocks)
		mkfs_die("%s: offset %#llx is beyond it", r->name, (unsigned long long)off);
	return r->block[off / m->block] * m->block + off % m->block;
}

uint64_t res_vol(const struct mkfs *m, enum res_kind k, uint64_t i)
{
	const struct res *r = &m->res[k];
	uint64_t c = i / r->rpc, in = c % r->cpg * r->rpc + i % r->rpc;

	return res_file_vol(m, r,
			    RF_GROUP_OFFSET + c / r->cpg * r->cgsize + (uint64_t)r->cpg * r->hdr +
				    in * r->rsize);
}

/* Small file blocks are described inside the "resources" of the large ones. */
uint64_t res_header_vol(const struct mkfs *m, const struct res *r, uint64_t c)
{
	uint64_t off = c / r->cpg * r->cgsize + c % r->cpg * r->hdr;

	if (m->six && r == &m->res[RES_FBB])
		off = c / (LFB_RPC * LFB_CPG) * LFB_CGSIZE + LFB_CPG * LFB_HDR +
		      c % (LFB_RPC * LFB_CPG) * LFB_HDR;
	return res_file_vol(m, r, RF_GROUP_OFFSET + off);
}

void lock_put(struct mkfs *m, uint8_t *h, uint32_t type, uint64_t vol, const struct note *n)
{
	put32(h, LK_TYPE, type);
	put64(h, LK_SELF, vol);
	put64(h, LK_HB, n->hb);
	put64(h, LK_HBGEN, n->hb_gen);
	put64(h, LK_TOKEN, n->token);
	put64(h, LK_MTIME, n->mtime ? n->mtime : ++m->seq);
}

static uint64_t cluster_total(const struct res *r, uint64_t c)
{
	uint64_t left = r->num - c * r->rpc;

	return left < r->rpc ? left : r->rpc;
}

static uint64_t cluster_free(const struct res *r, uint64_t c)
{
	uint64_t n = 0, total = cluster_total(r, c);

	for (uint64_t i = 0; i < total; i++)
		n += !r->used[c * r->rpc + i];
	return n;
}

/* bits wide fields, low bit first; the lowest bit says free. */
static void bitmap_put(const struct res *r, uint64_t c, unsigned int bits, uint8_t *map)
{
	uint64_t total = cluster_total(r, c);

	for (uint64_t i = 0; i < total; i++)
		if (!r->used[c * r->rpc + i])
			map[i * bits / 8] |= (uint8_t)(1 << i * bits % 8);
}

static uint32_t next_free(const struct res *r, uint64_t c)
{
	uint64_t total = cluster_total(r, c);
	const uint8_t *at = memchr(r->used + c * r->rpc, 0, total);

	return at ? (uint32_t)(at - (r->used + c * r->rpc)) : 0;
}

static void meta5(const struct res *r, uint64_t c, uint8_t *b)
{
	put32(b, CM5_NUM, (uint32_t)c);
	put32(b, CM5_TOTAL, (uint32_t)cluster_total(r, c));
	put32(b, CM5_FREE, (uint32_t)cluster_free(r, c));
	put32(b, CM5_NEXT, next_free(r, c));
	bitmap_put(r, c, 1, b + CM5_BITMAP);
	if (r->lock_type == LK_FDC)
		put32(b, CM5_TXN, r->note[c].txn);
}

static void swap32(uint32_t *a, uint32_t *b)
{
	uint32_t t = *a;

	*a = *b;
	*b = t;
}

/* Which descriptor has how many blocks of the cluster; the first pair is for the free ones. */
static void sfb_affinity(const struct res *r, uint64_t c, uint8_t *b)
{
	uint32_t fd[CM6_AFF_SFB_MAX] = {0}, count[CM6_AFF_SFB_MAX] = {0}, n = 1, j = 0;
	uint64_t total = cluster_total(r, c);

	for (uint64_t i = 0; i < total; i++) {
		uint32_t who = r->owner[c * r->rpc + i];

		if (j >= n || fd[j] != who)
			for (j = 0; j < n && fd[j] != who; j++)
				;
		if (j == CM6_AFF_SFB_MAX)
			continue; /* the table is full: what ESXi does then is not known */
		if (j == n)
			fd[n++] = who;
		count[j]++;
	}
	for (j = 2; j < n; j++) /* M: by descriptor */
		for (uint32_t k = j; k > 1 && fd[k - 1] > fd[k]; k--) {
			swap32(&fd[k - 1], &fd[k]);
			swap32(&count[k - 1], &count[k]);
		}
	for (j = 0; j < n; j++) {
		put32(b, CM6_AFF_SFB + 8ull * j, fd[j]);
		put32(b, CM6_AFF_SFB + 8ull * j + 4, count[j]);
	}
	put16(b, CM6_AFFINITIES, (uint16_t)n);
	put16(b, CM6_SLOTS, 0x100);
}

static void meta6_head(struct mkfs *m, uint8_t *b, uint64_t c, uint64_t total, uint64_t nfree)
{
	put32(b, CM6_SIG, CM6_SIGNATURE);
	put64(b, CM6_NUM, c);
	put16(b, CM6_TOTAL, (uint16_t)total);
	put16(b, CM6_FREE, (uint16_t)nfree);
	put32(b, CM6_ONE, 1);
}

static void meta6(struct mkfs *m, const struct res *r, uint64_t c, uint8_t *b)
{
	bool sfb = r == &m->res[RES_FBB];
	uint64_t aff = r->rpc == 256 ? CM6_AFF_256 : r->rpc == 32 ? CM6_AFF_32 : 0;

	meta6_head(m, b, c, cluster_total(r, c), cluster_free(r, c));
	if (r->note[c].txn) {
		put32(b, CM6_TXN, r->note[c].txn);
		memcpy(b + CM6_MAC, m->host_uuid + 10, 6);
		put32(b, CM6_TIME, r->note[c].time);
		put32(b, CM6_TXN2, r->note[c].txn2);
	}
	put32(b, CM6_NEXT, next_free(r, c));
	bitmap_put(r, c, sfb ? 2 : 1, b + CM6_BITMAP);
	if (sfb)
		sfb_affinity(r, c, b);
	for (uint64_t i = 0; aff && i < cluster_total(r, c); i++)
		put32(b, aff + 4 * i, r->owner[c * r->rpc + i]);
}

static void cluster_write(struct mkfs *m, const struct res *r, uint64_t c, uint8_t *h)
{
	uint64_t vol = res_header_vol(m, r, c);

	memset(h, 0, r->hdr);
	lock_put(m, h, r->lock_type, vol, &r->note[c]);
	if (m->six)
		meta6(m, r, c, h + m->mdalign);
	else
		meta5(r, c, h + 512);
	dev_write(m, vol, h, r->hdr);
}

/* Three bits each: 4 = its 512 small blocks are given out one by one, 1 = free, 0 = in use. */
static void lfb_bits(const struct mkfs *m, uint64_t first, uint64_t n, uint8_t *map)
{
	static const uint8_t value[] = {[LFB_FREE] = 1, [LFB_CHILD] = LFB_TO_CHILD, [LFB_FILE] = 0};

	for (uint64_t i = 0; i < n; i++) {
		uint16_t bits = (uint16_t)(value[m->lfb[first + i]] << i * 3 % 8);

		map[i * 3 / 8] |= (uint8_t)bits;
		map[i * 3 / 8 + 1] |= (uint8_t)(bits >> 8);
	}
}

static void lfb_cluster_write(struct mkfs *m, uint64_t c)
{
	uint64_t first = c * LFB_RPC, n = m->lfbs - first < LFB_RPC ? m->lfbs - first : LFB_RPC;
	uint64_t vol =
		res_file_vol(m, &m->res[RES_FBB],
			     RF_GROUP_OFFSET + c / LFB_CPG * LFB_CGSIZE + c % LFB_CPG * LFB_HDR);
	uint8_t *h = xalloc(LFB_HDR), *b = h + m->mdalign;
	uint64_t nfree = 0, next = 0;

	for (uint64_t i = n; i-- > 0;)
		if (m->lfb[first + i] == LFB_FREE) {
			nfree++;
			next = i;
		}
	lock_put(m, h, LK_LFB, vol, &m->lfb_note);
	meta6_head(m, b, c, n, nfree);
	put16(b, CM6_SLOTS, 7);
	put32(b, CM6_NEXT, (uint32_t)next);
	lfb_bits(m, first, n, b + CM6_BITMAP);
	for (uint64_t i = 0; i < n; i++)
		put32(b, CM6_PERRES + 8 * i, 0xFF);
	dev_write(m, vol, h, LFB_HDR);
	free(h);
}

static void header_put(const struct res *r, uint8_t *h, uint64_t groups)
{
	put32(h, RF_RPC, r->rpc);
	put32(h, RF_CPG, r->cpg);
	put32(h, RF_CGOFF, RF_GROUP_OFFSET);
	put32(h, RF_RSIZE, r->rsize);
	put32(h, RF_CGSIZE, (uint32_t)r->cgsize);
	put32(h, RF_NUM, (uint32_t)r->num);
	put32(h, RF_GROUPS, (uint32_t)groups);
	put32(h, RF_NUMHI, (uint32_t)(r->num >> 32));
}

static void rfmd_put(uint8_t *h, uint32_t flags, uint16_t aff, uint16_t per, uint32_t bits)
{
	put32(h, RF_SIG, RF_SIGNATURE);
	put32(h, RF_VERSION, 1);
	put32(h, RF_FLAGS, flags);
	put16(h, RF_AFF_CLUSTER, aff);
	put16(h, RF_AFF_RES, per);
	put32(h, RF_BITS, bits);
}

/* .fbb.sf of VMFS6: large blocks as parent at 0, small ones as child at 0x1000. */
static void fbb6_header(struct mkfs *m, const struct res *r, uint8_t *h)
{
	uint8_t *child = h + RF_CHILD_OFFSET;
	struct res lfb = {.rpc = LFB_RPC,
			  .cpg = LFB_CPG,
			  .rsize = LFB_HDR,
			  .cgsize = LFB_CGSIZE,
			  .num = m->lfbs};
	uint32_t converted = 0;
	uint64_t clusters = (r->num + r->rpc - 1) / r->rpc;

	for (uint64_t i = 0; i < m->lfbs; i++)
		converted += m->lfb[i] == LFB_CHILD;
	header_put(&lfb, h, (m->lfbs + LFB_RPC * LFB_CPG - 1) / (LFB_RPC * LFB_CPG));
	rfmd_put(h, 0x35, 0x348, 0x34, 3);
	put32(h, RF_CHILD, RF_CHILD_OFFSET);
	header_put(r, child, (clusters + r->cpg - 1) / r->cpg);
	rfmd_put(child, 0x2A, CM6_AFF_SFB_MAX, 1, 2);
	put32(child, RF_PARENT_RPC, LFB_RPC);
	put32(child, RF_PARENT_CPG, LFB_CPG);
	put32(child, RF_PARENT_CGSIZE, LFB_CGSIZE);
	put32(child, RF_CONVERTED, converted);
}

static void res_write(struct mkfs *m, struct res *r)
{
	uint64_t clusters = res_clusters(r), size = m->six ? 8192 : 512;
	bool fbb6 = m->six && r == &m->res[RES_FBB];
	uint8_t *h = xalloc(8192);

	if (fbb6) {
		fbb6_header(m, r, h);
	} else {
		header_put(r, h, (clusters + r->cpg - 1) / r->cpg);
		if (m->six)
			rfmd_put(h, r->lock_type == LK_JB ? 0 : 4, (uint16_t)r->rpc, 1, 1);
	}
	dev_write(m, res_file_vol(m, r, 0), h, size);
	for (uint64_t c = 0; fbb6 && c * LFB_RPC < m->lfbs; c++)
		lfb_cluster_write(m, c);
	for (uint64_t c = 0; c < clusters; c++)
		cluster_write(m, r, c, h);
	free(h);
}

/* Give the file its blocks and, where a descriptor cannot hold them, its pointer blocks. */
static void res_pointers(struct mkfs *m, struct res *r)
{
	uint64_t max = m->six ? FD6_ADDRS : FD5_ADDRS, width = m->six ? 8 : 4;
	uint64_t per = m->res[RES_PB2].rsize / width;
	uint8_t *buf;

	res_back(m, r);
	if (r->blocks <= max)
		return;
	if (m->version == 3)
		mkfs_die("%s: more than 256 blocks on VMFS3", r->name);
	buf = xalloc(m->res[RES_PB2].rsize);
	for (uint64_t p = 0; p * per < r->blocks; p++) {
		if (p == r->pbs)
			r->pb[r->pbs++] = addr_res(m, RES_PB2, res_take(m, RES_PB2, r->fd));
		memset(buf, 0, m->res[RES_PB2].rsize);
		for (uint64_t i = 0; i < per && p * per + i < r->blocks; i++) {
			uint64_t a = addr_fb(m, r->block[p * per + i]);

			memcpy(buf + i * width, &a, width);
		}
		dev_write(m, addr_vol(m, r->pb[p]), buf, m->res[RES_PB2].rsize);
	}
	free(buf);
}

void res_map_indirect(struct mkfs *m)
{
	static const uint8_t order[] = {RES_FDC, RES_SBC, RES_PBC, RES_JBC, RES_FBB, RES_PB2};

	for (unsigned int i = 0; i < sizeof(order); i++)
		if (m->res[order[i]].name)
			res_pointers(m, &m->res[order[i]]);
}

void res_flush(struct mkfs *m)
{
	for (int k = 0; k < RES_COUNT; k++)
		if (m->res[k].name)
			res_write(m, &m->res[k]);
}
