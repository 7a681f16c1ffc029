/* File descriptors and the content behind them. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t node_fd_size(const struct mkfs *m)
{
	return m->six ? FD6_SIZE : FD5_SIZE;
}

uint64_t node_fd_vol(const struct mkfs *m, const struct node *n)
{
	return res_vol(m, RES_FDC, addr_fd_index(m, n->fd));
}

struct node *node_new(struct mkfs *m, struct node *parent, const char *name, uint32_t type)
{
	struct node *n = xalloc(sizeof(*n));

	n->parent = parent;
	n->name = xdup(name);
	n->type = type;
	n->links = 1;
	n->time = m->time++;
	n->lock.token = 1;
	return n;
}

void node_free(struct node *n)
{
	for (uint64_t i = 0; i < n->slots; i++)
		free(n->slot[i].name);
	for (unsigned int i = 0; i < n->pieces; i++) {
		free(n->piece[i].host);
		free(n->piece[i].text);
	}
	free(n->name);
	free(n->addr);
	free(n->resident);
	free(n->map);
	free(n->piece);
	free(n->pb);
	free(n->slot);
	free(n->child);
	free(n->target);
	free(n);
}

uint64_t *node_addrs(struct node *n)
{
	if (!n->addr)
		n->addr = xalloc(FD6_ADDRS * sizeof(*n->addr));
	return n->addr;
}

/* Enter it in its directory. */
void node_link(struct mkfs *m, struct node *n)
{
	struct node *d = n->parent;

	if (d->slots == d->slots_cap) {
		d->slots_cap = d->slots_cap * 2 + 16;
		d->slot = xgrow(d->slot, d->slots_cap, d->slots, sizeof(*d->slot));
	}
	if (d->children == d->children_cap) {
		d->children_cap = d->children_cap * 2 + 16;
		d->child = xgrow(d->child, d->children_cap, d->children, sizeof(struct node *));
	}
	d->slot[d->slots++] = (struct slot){xdup(n->name), n->fd, n->gen, n->type, false};
	d->child[d->children++] = n;
	if (n->type == TYPE_DIR)
		d->links++;
	note_change(m, &d->lock);
}

static struct node *child_find(const struct node *d, const char *name, uint64_t len)
{
	for (uint64_t i = d->children; i-- > 0;) {
		struct node *n = d->child[i];

		if (!n->deleted && strlen(n->name) == len && !memcmp(n->name, name, len))
			return n;
	}
	return NULL;
}

static struct node *find_below(struct mkfs *m, const char *path, uint64_t len)
{
	struct node *n = m->root;
	const char *at = path, *end = path + len;

	while (n && at < end) {
		const char *slash = memchr(at, '/', (uint64_t)(end - at));
		uint64_t part = (uint64_t)((slash ? slash : end) - at);

		if (part)
			n = child_find(n, at, part);
		at += part + 1;
	}
	return n;
}

struct node *node_find(struct mkfs *m, const char *path)
{
	struct node *n = find_below(m, path, strlen(path));

	if (!n)
		mkfs_die("%s: not found", path);
	return n;
}

struct node *node_parent(struct mkfs *m, const char *path, const char **name)
{
	const char *slash = strrchr(path, '/');
	struct node *n;

	if (!slash || !slash[1] || strlen(slash + 1) > 127)
		mkfs_die("'%s' is not /a/path with a name of at most 127 bytes", path);
	n = find_below(m, path, (uint64_t)(slash - path));
	if (!n || (n->type != TYPE_DIR && n != m->sdd))
		mkfs_die("%s: its directory does not exist", path);
	*name = slash + 1;
	return n;
}

/* A descriptor for a new object, which then can own blocks. */
static struct node *node_make(struct mkfs *m, struct node *parent, const char *name, uint32_t type)
{
	struct node *n = node_new(m, parent, name, type);

	n->fd = addr_fd(m, res_take(m, RES_FDC, parent->fd));
	n->gen = ++m->gen;
	note_change(m, &n->lock);
	return n;
}

/* Blocks of a file, in order of their number. */
static uint64_t map_search(const struct node *n, uint64_t bn)
{
	uint64_t lo = 0, hi = n->maps;

	if (hi && n->map[hi - 1].bn < bn)
		return hi;
	while (lo < hi) {
		uint64_t mid = (lo + hi) / 2;

		if (n->map[mid].bn < bn)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

uint64_t node_at(const struct node *n, uint64_t bn)
{
	uint64_t i = map_search(n, bn);

	return i < n->maps && n->map[i].bn == bn ? n->map[i].addr : 0;
}

void node_map(struct node *n, uint64_t bn, uint64_t addr)
{
	uint64_t i = map_search(n, bn);

	if (n->maps == n->maps_cap) {
		n->maps_cap = n->maps_cap ? n->maps_cap * 2 : 4;
		n->map = xgrow(n->map, n->maps_cap, n->maps, sizeof(*n->map));
	}
	memmove(&n->map[i + 1], &n->map[i], (n->maps - i) * sizeof(*n->map));
	n->map[i] = (struct map){bn, addr};
	n->maps++;
}

static uint64_t flags_of(const struct mkfs *m, const struct mkfs_piece *p)
{
	if (m->six)
		return (p->cow ? FB6_COW : 0) | (p->tbz ? 0xFFull << FB6_TBZ_SHIFT : 0);
	return (p->cow ? FB5_COW : 0) | (p->tbz ? FB5_TBZ : 0);
}

static void map_lfb(struct mkfs *m, struct node *n, uint64_t bn, uint64_t flags)
{
	uint64_t per = m->res[RES_FBB].rpc, addr = addr_lfb(lfb_take(m)) | flags;

	for (uint64_t i = 0; i < per; i++)
		node_map(n, bn / per * per + i, addr);
	n->lfbs++;
	n->tbz += flags >> FB6_TBZ_SHIFT ? (uint32_t)per : 0;
	n->cow += flags & FB6_COW ? (uint32_t)per : 0;
}

/* The block bn of a file, given if it has none yet. */
static uint64_t need_block(struct mkfs *m, struct node *n, uint64_t bn, const struct mkfs_piece *p)
{
	uint64_t addr = node_at(n, bn), flags = p ? flags_of(m, p) : 0, per = m->res[RES_FBB].rpc;

	if (addr)
		return addr;
	if (n->zla == ZLA_SB) {
		addr = addr_res(m, RES_SBC, res_take(m, RES_SBC, n->fd));
	} else if (p && p->lfb && (bn / per + 1) * per * m->block <= n->length) {
		map_lfb(m, n, bn, flags);
		return node_at(n, bn);
	} else {
		uint64_t b = fb_take(m, n->fd);

		addr = addr_fb(m, b) | flags;
		n->last_sfb = (uint32_t)(b / per);
		n->tbz += p && p->tbz;
		n->cow += p && p->cow;
	}
	node_map(n, bn, addr);
	return addr;
}

static void put_piece(struct mkfs *m, struct node *n, uint64_t off, const void *buf, uint64_t len,
		      const struct mkfs_piece *p)
{
	while (len) {
		uint64_t bn = off >> n->shift, in = off & ((1ull << n->shift) - 1);
		uint64_t part = (1ull << n->shift) - in, addr = need_block(m, n, bn, p);

		if (part > len)
			part = len;
		dev_write(m, addr_vol(m, addr) + off % addr_size(m, addr), buf, part);
		buf = (const char *)buf + part;
		off += part;
		len -= part;
	}
}

void node_put(struct mkfs *m, struct node *n, uint64_t off, const void *buf, uint64_t len)
{
	put_piece(m, n, off, buf, len, NULL);
}

/* How many bytes from off on lie together, and where: volume offset 0 for a hole. */
uint64_t node_step(const struct mkfs *m, const struct node *n, uint64_t off, uint64_t *vol)
{
	uint64_t end = n->length, size = 1ull << n->shift, addr, i;

	*vol = 0;
	if (n->zla == ZLA_RESIDENT) {
		*vol = node_fd_vol(m, n) + (m->six ? FD6_DATA : FD5_DATA) + off;
		return end - off;
	}
	i = map_search(n, off >> n->shift);
	if (i == n->maps)
		return end - off;
	if (n->map[i].bn != off >> n->shift) {
		uint64_t next = n->map[i].bn << n->shift;

		return (next < end ? next : end) - off;
	}
	addr = n->map[i].addr;
	*vol = addr_vol(m, addr) + off % addr_size(m, addr);
	size -= off % size;
	return size < end - off ? size : end - off;
}

void piece_bytes(const struct piece *p, uint64_t off, void *buf, uint64_t len)
{
	if (p->text) {
		memcpy(buf, p->text + off, len);
	} else if (p->host) {
		int fd = open(p->host, O_RDONLY | O_CLOEXEC);

		if (fd < 0 || pread(fd, buf, len, (off_t)(p->host_off + off)) != (ssize_t)len)
			mkfs_die("%s: cannot read it: %s", p->host, strerror(errno));
		close(fd);
	} else {
		mkfs_pattern(p->seed, off + p->off, buf, len);
	}
}

static bool is_zero(const uint8_t *buf, uint64_t len)
{
	return !len || (!buf[0] && !memcmp(buf, buf + 1, len - 1));
}

static void write_piece(struct mkfs *m, struct node *n, const struct piece *p,
			const struct mkfs_piece *how)
{
	uint64_t size = 1ull << n->shift;
	uint8_t *buf = xalloc(size);

	for (uint64_t at = 0, part; at < p->len; at += part) {
		part = size - (p->off + at) % size;
		if (part > p->len - at)
			part = p->len - at;
		piece_bytes(p, at, buf, part);
		if (!how->thin || !is_zero(buf, part))
			put_piece(m, n, p->off + at, buf, part, how);
	}
	free(buf);
}

static void write_resident(struct mkfs *m, struct node *n)
{
	n->resident = xalloc(FD6_RESIDENT);
	for (unsigned int i = 0; i < n->pieces; i++)
		piece_bytes(&n->piece[i], 0, n->resident + n->piece[i].off, n->piece[i].len);
}

static uint64_t resident_max(const struct mkfs *m)
{
	return m->six ? FD6_RESIDENT : m->version == 5 ? FD5_RESIDENT : 0;
}

static enum mkfs_layout choose(const struct mkfs *m, uint64_t len, enum mkfs_layout want)
{
	uint64_t addrs = m->six ? FD6_ADDRS : FD5_ADDRS, per = m->six ? 8192 : 1024;

	if (want == MKFS_AUTO) {
		if (len <= resident_max(m) && m->version > 3)
			return MKFS_RESIDENT;
		if (len <= m->sub)
			return MKFS_SUBBLOCK;
		if (len <= addrs * m->block)
			return MKFS_DIRECT;
		return len <= addrs * per * m->block ? MKFS_SINGLE : MKFS_DOUBLE;
	}
	if ((want == MKFS_RESIDENT && (m->version == 3 || len > resident_max(m))) ||
	    (want == MKFS_SUBBLOCK && len > addrs * m->sub) ||
	    (want == MKFS_DIRECT && len > addrs * m->block) ||
	    (want == MKFS_SINGLE && len > addrs * per * m->block) ||
	    (want == MKFS_DOUBLE && m->version == 3))
		mkfs_die("a file of %llu bytes cannot have this layout", (unsigned long long)len);
	return want;
}

static void set_layout(struct mkfs *m, struct node *n, enum mkfs_layout l)
{
	bool sub = l == MKFS_RESIDENT || l == MKFS_SUBBLOCK;

	n->block = sub ? m->sub : m->block;
	n->shift = (unsigned int)__builtin_ctzll(n->block);
	n->tbz_shift = 20;
	n->zla = l == MKFS_RESIDENT ? ZLA_RESIDENT : l == MKFS_SUBBLOCK ? ZLA_SB : ZLA_FB;
}

/* One pointer block: n of its addresses are those of map[i], map[i+1] ... below bn limit. */
static uint64_t pb_make(struct mkfs *m, struct node *n, bool pb2, const uint8_t *buf)
{
	enum res_kind k = pb2 ? RES_PB2 : m->six ? RES_SBC : RES_PBC;
	uint64_t addr = addr_res(m, k, res_take(m, k, n->fd));

	if (n->pbs == n->pbs_cap) {
		n->pbs_cap = n->pbs_cap * 2 + 4;
		n->pb = xgrow(n->pb, n->pbs_cap, n->pbs, sizeof(*n->pb));
	}
	n->pb[n->pbs++] = addr;
	dev_write(m, addr_vol(m, addr), buf, m->res[k].rsize);
	return addr;
}

/* Fold a sorted list of (number, address) into the list of the pointer blocks that hold it. */
static uint64_t fold(struct mkfs *m, struct node *n, const struct map *in, uint64_t count,
		     struct map *out, bool pb2)
{
	uint64_t width = m->six ? 8 : 4, per = m->six ? 8192 : 1024, made = 0;
	uint8_t *buf = xalloc(per * width);

	for (uint64_t i = 0; i < count;) {
		uint64_t group = in[i].bn / per;

		memset(buf, 0, per * width);
		for (; i < count && in[i].bn / per == group; i++)
			memcpy(buf + in[i].bn % per * width, &in[i].addr, width);
		out[made++] = (struct map){group, pb_make(m, n, pb2, buf)};
	}
	free(buf);
	return made;
}

/* The content is there: make the pointer blocks and the address array. */
void node_seal(struct mkfs *m, struct node *n, enum mkfs_layout l, bool pb2)
{
	struct map *top = xalloc((n->maps + 1) * sizeof(*top));
	uint64_t count = n->maps;

	if (count)
		memcpy(top, n->map, count * sizeof(*top));
	if (l == MKFS_SINGLE || l == MKFS_DOUBLE) {
		count = fold(m, n, top, count, top, pb2);
		n->zla = pb2 ? ZLA_PB2 : ZLA_PB;
	}
	if (l == MKFS_DOUBLE) {
		count = fold(m, n, top, count, top, pb2);
		n->zla = ZLA_DOUBLE;
	}
	for (uint64_t i = 0; i < count; i++) {
		if (top[i].bn >= (m->six ? FD6_ADDRS : FD5_ADDRS))
			mkfs_die("%s: too long for its layout", n->name);
		node_addrs(n)[top[i].bn] = top[i].addr;
	}
	n->nblocks = n->maps;
	free(top);
}

static void take_pieces(struct node *n, const struct mkfs_file *f)
{
	n->pieces = f->pieces;
	n->piece = xalloc(f->pieces * sizeof(*n->piece));
	for (unsigned int i = 0; i < f->pieces; i++) {
		const struct mkfs_piece *p = &f->piece[i];
		struct piece *o = &n->piece[i];

		*o = (struct piece){.off = p->off,
				    .len = p->len,
				    .seed = p->seed,
				    .host_off = p->host_off,
				    .tbz = p->tbz};
		if (p->host)
			o->host = xdup(p->host);
		if (p->text) {
			o->text = xalloc(p->len);
			memcpy(o->text, p->text, p->len);
		}
		if (p->off + p->len > n->length)
			n->length = p->off + p->len;
	}
	if (f->size && f->size < n->length)
		mkfs_die("%s: its pieces go beyond its size", n->name);
	if (f->size)
		n->length = f->size;
}

static void add_rdm(struct mkfs *m, struct node *n, const struct mkfs_file *f)
{
	n->resident = xalloc(FD6_RESIDENT);
	n->resident[LVM_SCSI_LEN] = (uint8_t)strnlen(f->rdm, 44);
	memcpy(n->resident + LVM_SCSI_ID, f->rdm, strnlen(f->rdm, 44));
	n->length = f->size;
	set_layout(m, n, MKFS_DIRECT);
}

static void add_content(struct mkfs *m, struct node *n, const struct mkfs_file *f)
{
	enum mkfs_layout l = choose(m, n->length, f->layout);

	set_layout(m, n, l);
	m->scatter = f->scatter;
	if (l == MKFS_RESIDENT)
		write_resident(m, n);
	else
		for (unsigned int i = 0; i < n->pieces; i++)
			write_piece(m, n, &n->piece[i], &f->piece[i]);
	m->scatter = false;
	node_seal(m, n, l, f->pb2);
}

void mkfs_add(struct mkfs *m, const char *path, const struct mkfs_file *f)
{
	const char *name;
	struct node *parent = node_parent(m, path, &name), *n;

	m->reuse = f->reuse && !f->new_fd;
	n = node_make(m, parent, name, f->rdm ? TYPE_RDM : TYPE_FILE);
	m->reuse = f->reuse;
	n->mode = f->mode ? f->mode : 0644;
	take_pieces(n, f);
	if (f->rdm)
		add_rdm(m, n, f);
	else
		add_content(m, n, f);
	m->reuse = false;
	node_link(m, n);
}

void mkfs_symlink(struct mkfs *m, const char *path, const char *target)
{
	struct mkfs_piece p = {.len = strlen(target), .text = target};
	struct mkfs_file f = {.mode = 0777, .piece = &p, .pieces = 1};
	struct node *n;

	if (m->version == 5) /* M: VMFS5 keeps the target in a sub-block */
		f.layout = MKFS_SUBBLOCK;
	mkfs_add(m, path, &f);
	n = node_find(m, path);
	n->type = TYPE_LINK;
	n->parent->slot[n->parent->slots - 1].type = TYPE_LINK;
	n->target = xdup(target);
}

void mkfs_mkdir(struct mkfs *m, const char *path)
{
	const char *name;
	struct node *parent = node_parent(m, path, &name);
	struct node *n = node_make(m, parent, name, TYPE_DIR);
	unsigned int blocks = m->six ? 2 : 1;

	n->mode = 0755;
	n->links = 2;
	set_layout(m, n, MKFS_SUBBLOCK);
	if (!m->six)
		n->tbz_shift = n->shift;
	for (unsigned int i = 0; i < blocks; i++)
		need_block(m, n, i, NULL);
	node_link(m, n);
}

void mkfs_fill(struct mkfs *m, const char *dir, const char *prefix, uint64_t count, uint64_t len)
{
	struct node *d = node_find(m, dir);

	for (uint64_t i = 0; i < count; i++) {
		struct mkfs_piece p = {.len = len, .seed = i + 1};
		struct mkfs_file f = {.piece = &p, .pieces = len ? 1 : 0};
		char name[128];
		struct node *n;

		snprintf(name, sizeof(name), "%s%llu", prefix, (unsigned long long)i);
		n = node_make(m, d, name, TYPE_FILE);
		n->mode = 0644;
		n->quiet = count >= MKFS_LISTED_MAX;
		take_pieces(n, &f);
		add_content(m, n, &f);
		node_link(m, n);
	}
}

void mkfs_collide(struct mkfs *m, const char *dir, const char *prefix, uint64_t count)
{
	struct node *d = node_find(m, dir);
	uint64_t hashes = d == m->root ? DIR6_ROOT_HASHES : DIR6_HASHES, want = 0, made = 0;

	for (uint64_t i = 0; made < count; i++) {
		char path[4096];
		struct mkfs_file f = {0};
		uint64_t h;

		snprintf(path, sizeof(path), "%s%llu", prefix, (unsigned long long)i);
		h = mkfs_name_hash(path) % hashes;
		if (!i)
			want = h;
		if (h != want)
			continue;
		snprintf(path, sizeof(path), "%s/%s%llu", dir, prefix, (unsigned long long)i);
		mkfs_add(m, path, &f);
		made++;
	}
}

static void fd_array(const struct mkfs *m, const struct node *n, uint8_t *b)
{
	if (n->resident) {
		memcpy(b + (m->six ? FD6_DATA : FD5_DATA), n->resident,
		       m->six ? FD6_RESIDENT : FD5_RESIDENT);
	} else if (m->six && n->addr) {
		memcpy(b + FD6_ARRAY, n->addr, FD6_ADDRS * sizeof(*n->addr));
	} else if (n->addr) {
		for (unsigned int i = 0; i < FD5_ADDRS; i++)
			put32(b, FD5_DATA + 4ull * i, (uint32_t)n->addr[i]);
	}
}

static void fd_meta6(const struct mkfs *m, const struct node *n, uint8_t *b)
{
	put32(b, FD_SIG, FD_SIGNATURE);
	put32(b, FD_PARENT, n->sys || n == m->root ? 0 : n->parent->fd);
	put32(b, FD_LASTSFB, n->last_sfb);
	put32(b, FD_LFBS, n->lfbs);
}

void node_image_fd(struct mkfs *m, struct node *n, uint8_t *buf)
{
	uint8_t *b = buf + (m->six ? FD6_META : FD5_META);

	memset(buf, 0, node_fd_size(m));
	lock_put(m, buf, LK_FD, node_fd_vol(m, n), &n->lock);
	put32(b, FD_ADDR, n->fd);
	put32(b, FD_GEN, n->gen);
	put32(b, FD_LINKS, n->links);
	put32(b, FD_TYPE, n->type);
	put32(b, FD_FLAGS, n->flags);
	put64(b, FD_LENGTH, n->length);
	put64(b, FD_BLOCKSIZE, n->block);
	put64(b, FD_BLOCKS, n->nblocks);
	put32(b, FD_MTIME, n->time);
	put32(b, FD_CTIME, n->ctime ? n->ctime : n->time);
	put32(b, FD_ATIME, n->atime ? n->atime : n->time);
	put32(b, FD_MODE, n->mode);
	put32(b, FD_ZLA, n->zla);
	put32(b, FD_TBZ, n->tbz);
	put32(b, FD_COW, n->cow);
	put32(b, FD_NEW, n->fresh ? n->fresh : (uint32_t)n->nblocks);
	put32(b, FD_PBS, n->pbs);
	if (m->version >= 5) {
		put32(b, FD_AFFINITY, n->affinity ? n->affinity : n->fd);
		put32(b, FD_TBZSHIFT, n->tbz_shift);
		b[FD_SHIFT] = (uint8_t)n->shift;
	}
	if (m->six)
		fd_meta6(m, n, b);
	fd_array(m, n, buf);
}

/* A system file's block list is its resource's. */
static void take_res(struct mkfs *m, struct node *n)
{
	for (int k = 0; k < RES_COUNT; k++) {
		const struct res *r = &m->res[k];

		if (!r->name || strcmp(r->name, n->name) || n->parent != m->root)
			continue;
		n->length = r->length;
		n->nblocks = r->blocks;
		n->pbs = r->pbs;
		n->zla = r->pbs ? ZLA_PB2 : ZLA_FB;
		n->flags = r->pbs ? 8 : 0; /* M */
		if (m->six && k == RES_FDC)
			n->fresh = 1; /* M */
		for (uint64_t i = 0; i < (r->pbs ? r->pbs : r->blocks); i++)
			node_addrs(n)[i] = r->pbs ? r->pb[i] : addr_fb(m, r->block[i]);
	}
}

void node_write_fd(struct mkfs *m, struct node *n)
{
	uint8_t buf[FD6_SIZE];

	if (n->sys && n != m->sdd)
		take_res(m, n);
	if (n->sys && !n->nblocks)
		node_seal(m, n, MKFS_DIRECT, false);
	node_image_fd(m, n, buf);
	dev_write(m, node_fd_vol(m, n), buf, node_fd_size(m));
}
