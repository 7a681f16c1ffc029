/* recover/names.c - directory entries found anywhere on the sources, by the descriptor they name.
 *
 * An entry tells name, descriptor and generation; where its directory is gone, so much is known
 * still.  VMFS6 descriptors know their parent; on VMFS5 a directory's first two records, "." and
 * "..", say which one it is and where it belongs. */
#include "recover/internal.h"

#include "base/bytes.h"
#include "block/blk.h"
#include "vmfs/ondisk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	MAX_NAMES = 2 << 20,
	DIR5_READ = 1 << 20, /* a directory found by its start is read so far */
	DIR5_STEP = 8192,
	DIRENT5 = 140,
	DIRENT6 = 0x120,
	DIRENT6_SLOTS = 14,
};

void names_fini(struct names *n)
{
	free(n->v);
	free(n->link);
	*n = (struct names){0};
}

bool names_add(struct rec *r, const struct found_name *f)
{
	struct names *n = &r->names;

	if (n->n >= MAX_NAMES || !array_room(&n->v, n->n, &n->cap, sizeof(*n->v)))
		return false;
	n->v[n->n] = *f;
	n->v[n->n].name = arena_text(&r->arena, f->name, strlen(f->name));
	if (!n->v[n->n].name)
		return false;
	n->n++;
	return true;
}

static void add_link(struct names *n, uint32_t fd, uint32_t parent)
{
	if (n->nr_links < MAX_NAMES &&
	    array_room(&n->link, n->nr_links, &n->cap_links, sizeof(*n->link)))
		n->link[n->nr_links++] = (struct dir_link){fd, parent};
}

static int name_order(const void *a, const void *b)
{
	const struct found_name *x = a, *y = b;

	if (x->fd != y->fd)
		return x->fd < y->fd ? -1 : 1;
	if (x->gen != y->gen)
		return x->gen > y->gen ? -1 : 1;
	if (x->free != y->free)
		return x->free ? 1 : -1;
	if (x->rank != y->rank)
		return x->rank > y->rank ? -1 : 1;
	return strcmp(x->name, y->name);
}

static int link_order(const void *a, const void *b)
{
	const struct dir_link *x = a, *y = b;

	if (x->fd != y->fd)
		return x->fd < y->fd ? -1 : 1;
	return x->parent < y->parent ? -1 : x->parent > y->parent;
}

void names_settle(struct names *n)
{
	if (n->n)
		qsort(n->v, n->n, sizeof(*n->v), name_order);
	if (n->nr_links)
		qsort(n->link, n->nr_links, sizeof(*n->link), link_order);
}

const struct found_name *names_find(const struct names *n, uint32_t fd, uint32_t gen)
{
	size_t lo = 0, hi = n->n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (n->v[mid].fd < fd)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < n->n && n->v[lo].fd == fd; lo++)
		if (!gen || n->v[lo].gen == gen)
			return &n->v[lo];
	return NULL;
}

uint32_t names_parent(const struct names *n, uint32_t fd)
{
	size_t lo = 0, hi = n->nr_links;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (n->link[mid].fd < fd)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < n->nr_links && n->link[lo].fd == fd ? n->link[lo].parent : 0;
}

/* ---- reading them ---- */

/* A record: type, address, generation, name; false: it cannot be one. */
static bool parse_entry(const uint8_t *e, size_t name_off, size_t name_max, struct found_name *f,
			char *name)
{
	uint32_t type = le32_load(e);
	size_t n = strnlen((const char *)e + name_off, name_max);

	f->fd = le32_load(e + 4);
	f->gen = le32_load(e + 8);
	f->type = (uint8_t)type;
	f->free |= !f->fd; /* a deleted entry of VMFS5: name and generation remain */
	if (type < VMFS_DIR || type > VMFS_RDM || (f->fd && (f->fd & 0x3f) != 4) || !n ||
	    n == name_max)
		return false;
	for (size_t i = 0; i < n; i++)
		if (e[name_off + i] < 0x20 || e[name_off + i] == '/' || e[name_off + i] == 0x7f)
			return false;
	memcpy(name, e + name_off, n);
	name[n] = 0;
	f->name = name;
	return true;
}

static bool is_dot(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

static void gather_dir5(struct rec *r, const struct hit *h, uint8_t *buf)
{
	uint64_t size = blk_size(r->source[h->source].blk);
	size_t len = (size_t)MIN((uint64_t)DIR5_READ, size - h->pos), at = 2 * DIRENT5;
	char name[VMFS_NAME_MAX + 2];

	add_link(&r->names, h->id, (uint32_t)h->self);
	for (size_t have = 0; at + DIRENT5 <= len; at += DIRENT5) {
		struct found_name f = {.dir = h->id, .rank = 1};

		if (at + DIRENT5 > have) { /* as far as it goes on */
			size_t more = MIN(len - have, (size_t)DIR5_STEP);

			if (rec_read_source(r, h->source, buf + have, more, h->pos + have) < 0)
				return;
			have += more;
		}

		if (!parse_entry(buf + at, 12, 128, &f, name))
			break;
		if (is_dot(name)) /* the next directory */
			break;
		(void)names_add(r, &f);
	}
}

static void gather_dirent6(struct rec *r, const struct hit *h, uint8_t *buf)
{
	char name[257];

	if (rec_read_source(r, h->source, buf, 4096, h->pos) < 0)
		return;
	for (unsigned i = 0; i < DIRENT6_SLOTS; i++) {
		struct found_name f = {.free = buf[8 + i / 8] >> (i % 8) & 1, .rank = 1};

		if (parse_entry(buf + 64 + i * DIRENT6, 0x18, 256, &f, name) && !is_dot(name))
			(void)names_add(r, &f);
	}
}

int names_gather(struct rec *r)
{
	uint8_t *buf = malloc(DIR5_READ);

	if (!buf)
		return -ENOMEM;
	for (size_t i = 0; i < r->hits.n; i++) {
		const struct hit *h = &r->hits.v[i];

		if (h->kind == HIT_DIR5)
			gather_dir5(r, h, buf);
		else if (h->kind == HIT_DIRENT6)
			gather_dirent6(r, h, buf);
		else if (h->kind == HIT_DIR6)
			add_link(&r->names, h->id, (uint32_t)h->self);
	}
	free(buf);
	names_settle(&r->names);
	return 0;
}
