/* Deleting in three grades, and the copies of descriptors that real volumes have lying about. */
#include "internal.h"

static void remember(struct mkfs *m, struct node *n)
{
	if (m->deletes == m->deletes_cap) {
		m->deletes_cap = m->deletes_cap * 2 + 16;
		m->deleted = xgrow(m->deleted, m->deletes_cap, m->deletes, sizeof(struct node *));
	}
	m->deleted[m->deletes++] = n;
}

static void zero(struct mkfs *m, uint64_t vol, uint64_t len)
{
	uint8_t *buf = xalloc(len);

	dev_write(m, vol, buf, len);
	free(buf);
}

/* The storage takes whole file blocks back; sub-blocks are too small for it. */
static void give_back(struct mkfs *m, const struct node *n, const struct mkfs_delete *how)
{
	for (uint64_t i = 0; i < n->maps; i++) {
		uint64_t addr = n->map[i].addr;

		if (i && addr == n->map[i - 1].addr)
			continue; /* a large block stands 512 times */
		addr_free(m, addr);
		if (how->unmap && ((addr & 7) == ADDR_FB || (addr & 7) == ADDR_LFB))
			dev_punch(m, addr_vol(m, addr), addr_size(m, addr));
	}
	for (uint32_t i = 0; i < n->pbs; i++) {
		addr_free(m, n->pb[i]);
		if (how->grade == 3)
			zero(m, addr_vol(m, n->pb[i]), addr_size(m, n->pb[i]));
	}
}

static void wipe_fd(struct mkfs *m, struct node *n, int grade)
{
	uint64_t size = node_fd_size(m);
	uint8_t fd[FD6_SIZE];

	note_change(m, &n->lock);
	node_image_fd(m, n, fd);
	if (grade == 2 && n->zla != ZLA_RESIDENT && n->type != TYPE_RDM)
		memset(fd + (m->six ? FD6_ARRAY : FD5_DATA), 0,
		       m->six ? 8 * FD6_ADDRS : 4 * FD5_ADDRS);
	if (grade == 3)
		memset(fd, 0, size);
	dev_write(m, node_fd_vol(m, n), fd, size);
}

static void slot_clear(struct slot *s, bool wipe)
{
	s->free = true;
	if (!wipe)
		return;
	s->name[0] = 0;
	s->fd = s->gen = s->type = 0;
}

void dir_remove(struct mkfs *m, struct node *n, enum mkfs_dirent how, int grade)
{
	struct node *d = n->parent;
	uint64_t i = 0;

	while (i < d->slots && (d->slot[i].free || d->slot[i].fd != n->fd))
		i++;
	if (i == d->slots)
		mkfs_die("%s: it is not in its directory", n->name);
	if (how == MKFS_DIRENT_DEFAULT)
		how = grade == 3 ? MKFS_DIRENT_ZERO : MKFS_DIRENT_ADDRESS;
	slot_clear(&d->slot[i], how == MKFS_DIRENT_ZERO);
	if (how == MKFS_DIRENT_COMPACT) {
		free(d->slot[i].name);
		d->slot[i] = d->slot[--d->slots];
	}
	note_change(m, &d->lock);
	if (n->type == TYPE_DIR)
		d->links--;
}

static void delete_node(struct mkfs *m, struct node *n, const struct mkfs_delete *how)
{
	for (uint64_t i = n->children; i-- > 0;)
		if (!n->child[i]->deleted)
			delete_node(m, n->child[i], how);
	if (n->type == TYPE_DIR)
		dir_write(m, n);
	dir_remove(m, n, how->dirent, how->grade);
	give_back(m, n, how);
	wipe_fd(m, n, how->grade);
	res_free(m, RES_FDC, addr_fd_index(m, n->fd));
	n->deleted = true;
	n->grade = how->grade;
	n->unmapped = how->unmap;
	remember(m, n);
}

void mkfs_delete(struct mkfs *m, const char *path, const struct mkfs_delete *how)
{
	struct node *n = node_find(m, path);

	if (how->grade < 1 || how->grade > 3)
		mkfs_die("delete %s: the grade is 1, 2 or 3", path);
	if (n == m->root || n->sys)
		mkfs_die("delete %s: system files stay", path);
	delete_node(m, n, how);
}

void mkfs_stale(struct mkfs *m, const char *path)
{
	struct node *n = node_find(m, path);
	uint64_t vol = fb_take(m, 0xFFFFFFFF) * m->block, length = n->length, token = n->lock.token;
	uint8_t fd[FD6_SIZE];

	n->length /= 2;
	n->lock.token = 0;
	node_image_fd(m, n, fd);
	n->length = length;
	n->lock.token = token;
	dev_write(m, vol, fd, node_fd_size(m));
	res_free(m, RES_FBB, vol / m->block);
}

/* M: a record is a header and a redo image; lock and the rest of a descriptor are two records, and
 * nothing is aligned. */
static void journal5(struct mkfs *m, struct node *n, const uint8_t *fd)
{
	uint64_t part[2][2] = {{0, FD5_META}, {FD5_META, FD5_SIZE - FD5_META}};

	for (int i = 0; i < 2; i++) {
		uint64_t at = m->journal * m->block + 0x1B0 + m->journal_used;
		uint8_t h[JR5_HEADER] = {0};

		put32(h, JR5_ONE, 1);
		put64(h, JR5_TARGET, node_fd_vol(m, n) + part[i][0]);
		put64(h, JR5_LENGTH, part[i][1]);
		dev_write(m, at, h, sizeof(h));
		dev_write(m, at + sizeof(h), fd + part[i][0], part[i][1]);
		m->journal_used += sizeof(h) + part[i][1];
	}
}

/* The records of VMFS6 are not known; the copy lies behind a slot's head, aligned. */
static void journal6(struct mkfs *m, const uint8_t *fd)
{
	uint64_t at = res_vol(m, RES_JBC, 1) + 0x3000 + m->journal_used;

	dev_write(m, at, fd, FD6_SIZE);
	m->journal_used += FD6_SIZE + 0x1000;
}

void mkfs_journal(struct mkfs *m, const char *path)
{
	struct node *n = node_find(m, path);
	uint8_t fd[FD6_SIZE];

	if (m->journal_used > m->block - 0x8000)
		mkfs_die("journal %s: it is full", path);
	if (!m->six && !m->f.live && m->res[RES_FBB].used[m->journal])
		mkfs_die("journal %s: a file has taken its block", path);
	if (n->type == TYPE_DIR)
		dir_write(m, n);
	n->lock.token--;
	node_image_fd(m, n, fd);
	n->lock.token++;
	if (m->six)
		journal6(m, fd);
	else
		journal5(m, n, fd);
}
