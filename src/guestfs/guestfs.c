/* guestfs/guestfs.c - see guestfs.h. */
#include "guestfs/internal.h"

#include "base/bytes.h"
#include "base/error.h"
#include "block/blk.h"
#include "export/partition.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINKS = 16, LABEL_MAX = 64 };

struct part {
	const struct guestfs_reader *reader;
	void *fs;
	char name[40], label[LABEL_MAX + 1];
};

struct guestfs {
	struct blk *b;
	unsigned nr;
	struct guestfs_part part[PARTITIONS_MAX + 1];
	struct part own[PARTITIONS_MAX + 1];
};

/* --- what is there -----------------------------------------------------------------------------
 */

/* What can be told, but not read: by its first bytes (the formats' own documents). */
static const struct {
	uint32_t off;
	const char *magic;
	uint8_t len;
	const char *content;
} signatures[] = {
	{0, "LUKS\xba\xbe", 6, "luks"},
	{512, "LABELONE", 8, "lvm2"},
	{65536 + 64, "_BHRfS_M", 8, "btrfs"},
	{4086, "SWAPSPACE2", 10, "swap"},
	{3, "-FVE-FS-", 8, "bitlocker"},
	{0, "XFSB", 4, "xfs"},
	{0, "ReFS", 4, "refs"},
	{1080, "\x53\xef", 2, "ext"},
};

static const char *by_signature(struct blk *b, uint64_t start, uint64_t len)
{
	char found[16];

	for (size_t i = 0; i < ARRAY_SIZE(signatures); i++) {
		if (signatures[i].off + sizeof(found) > len ||
		    blk_read(b, found, signatures[i].len, start + signatures[i].off) < 0)
			continue;
		if (!memcmp(found, signatures[i].magic, signatures[i].len))
			return signatures[i].content;
	}
	return NULL;
}

/* Where a kind of file system keeps its label, as bytes of ASCII or UTF-8. */
static void read_label(struct blk *b, const struct guestfs_part *p, char label[LABEL_MAX + 1])
{
	static const struct {
		const char *content;
		uint32_t off;
		uint8_t len;
	} places[] = {
		{"ext2", 1144, 16}, {"ext3", 1144, 16}, {"ext4", 1144, 16}, {"xfs", 108, 12},
		{"fat12", 43, 11},  {"fat16", 43, 11},  {"fat32", 71, 11},
	};
	size_t n = 0;

	for (size_t i = 0; p->content && i < ARRAY_SIZE(places); i++)
		if (!strcmp(p->content, places[i].content) &&
		    blk_read(b, label, places[i].len, p->start + places[i].off) == 0)
			n = places[i].len;
	while (n && (label[n - 1] == ' ' || label[n - 1] == 0))
		n--;
	label[n] = 0;
	for (size_t i = 0; i < n; i++)
		if ((uint8_t)label[i] < 0x20 || (uint8_t)label[i] >= 0x7f)
			label[i] = '?';
}

static void look(struct guestfs *g, unsigned i)
{
	static const struct guestfs_reader *const readers[] = {&guestfs_tsk, &guestfs_xfs};
	struct guestfs_part *p = &g->part[i];
	struct part *own = &g->own[i];

	for (size_t k = 0; k < ARRAY_SIZE(readers) && !own->reader; k++)
		if (readers[k]->open(&own->fs, g->b, p->start, p->len, &p->content) == 0)
			own->reader = readers[k];
	p->readable = own->reader != NULL;
	if (!own->reader)
		p->content = by_signature(g->b, p->start, p->len);
	read_label(g->b, p, own->label);
	p->label = own->label;
	p->name = own->name;
}

int guestfs_open(struct guestfs **out, struct blk *b, struct error *err)
{
	struct guestfs *g = calloc(1, sizeof(*g));
	struct partition *list = calloc(PARTITIONS_MAX, sizeof(*list));
	int n = g && list ? partitions_read(b, list) : -ENOMEM;

	*out = NULL;
	if (n < 0) {
		free(g);
		free(list);
		return err_errno(err, -n, "cannot read the partition table");
	}
	g->b = b;
	for (int i = 0; i < n; i++) {
		struct guestfs_part *p = &g->part[g->nr];

		*p = (struct guestfs_part){.start = list[i].start,
					   .len = list[i].len,
					   .number = list[i].number,
					   .mbr_type = list[i].mbr_type};
		snprintf(g->own[g->nr].name, sizeof(g->own[g->nr].name), "%s", list[i].name);
		look(g, g->nr++);
	}
	if (n == 0) {
		g->part[0] = (struct guestfs_part){.len = blk_size(b)};
		look(g, g->nr++);
	}
	free(list);
	*out = g;
	return 0;
}

void guestfs_close(struct guestfs *g)
{
	for (unsigned i = 0; g && i < g->nr; i++)
		if (g->own[i].reader)
			g->own[i].reader->close(g->own[i].fs);
	free(g);
}

unsigned guestfs_parts(struct guestfs *g, const struct guestfs_part **list)
{
	*list = g->part;
	return g->nr;
}

/* --- paths -------------------------------------------------------------------------------------
 */

/* "a/../b" and the like, as text: "/" and what is left.  In place. */
static void tidy(char *path)
{
	char *out = path, *p = path;

	while (*p) {
		char *end = strchrnul(p, '/');
		size_t n = (size_t)(end - p);

		if (n == 2 && p[0] == '.' && p[1] == '.') {
			while (out > path && *--out != '/')
				;
		} else if (n && !(n == 1 && *p == '.')) {
			*out++ = '/';
			memmove(out, p, n);
			out += n;
		}
		p = *end ? end + 1 : end;
	}
	*out = 0;
}

/* One link on the way: where the path leads then.  1: there was one; 0: none. */
static int follow_one(const struct part *own, char path[PATH_MAX])
{
	char prefix[PATH_MAX], target[PATH_MAX], next[2 * PATH_MAX];
	struct guestfs_file f;

	for (char *end = strchrnul(path + 1, '/');; end = strchrnul(end + 1, '/')) {
		int r;

		snprintf(prefix, sizeof(prefix), "%.*s", (int)(end - path), path);
		r = own->reader->stat(own->fs, prefix, &f);
		if (r < 0)
			return r;
		if (f.is_link) {
			r = own->reader->link(own->fs, prefix, target, sizeof(target));
			if (r < 0)
				return r;
			if (*target != '/')
				*strrchr(prefix, '/') = 0;
			snprintf(next, sizeof(next), "%s/%s%s", *target == '/' ? "" : prefix,
				 target, end);
			if (strlen(next) >= PATH_MAX - 1)
				return -ENAMETOOLONG;
			strcpy(path, next);
			return 1;
		}
		if (!*end)
			return 0;
	}
}

/* The path without links, from the root; "" is the root. */
static int resolve(const struct part *own, const char *text, char path[PATH_MAX])
{
	if (snprintf(path, PATH_MAX, "/%s", text) >= PATH_MAX - 1)
		return -ENAMETOOLONG;
	for (unsigned i = 0; i < MAX_LINKS; i++) {
		int r;

		/* `tidy` writes ahead of what it reads by one slash at most, which is there. */
		tidy(path);
		r = *path ? follow_one(own, path) : 0;
		if (r <= 0)
			return r;
	}
	return -ELOOP;
}

static const struct part *part_of(struct guestfs *g, unsigned i, struct error *err)
{
	if (i < g->nr && g->own[i].reader)
		return &g->own[i];
	err_set(err, ENOTSUP, "there is no file system that can be read");
	return NULL;
}

int guestfs_list(struct guestfs *g, unsigned i, const char *path,
		 int (*file)(void *opaque, const struct guestfs_file *f), void *opaque,
		 struct error *err)
{
	const struct part *own = part_of(g, i, err);
	char plain[PATH_MAX];
	int r;

	if (!own)
		return -ENOTSUP;
	r = resolve(own, path, plain);
	if (r == 0)
		r = own->reader->list(own->fs, *plain ? plain : "/", file, opaque);
	return r < 0 ? err_errno(err, -r, "cannot list '%s'", path) : r;
}

int guestfs_stat(struct guestfs *g, unsigned i, const char *path, struct guestfs_file *f,
		 struct error *err)
{
	const struct part *own = part_of(g, i, err);
	char plain[PATH_MAX];
	int r;

	if (!own)
		return -ENOTSUP;
	r = resolve(own, path, plain);
	if (r == 0)
		r = own->reader->stat(own->fs, *plain ? plain : "/", f);
	return r < 0 ? err_errno(err, -r, "cannot find '%s'", path) : 0;
}

int guestfs_read(struct guestfs *g, unsigned i, const char *path, size_t max, char **data,
		 size_t *len, struct error *err)
{
	const struct part *own = part_of(g, i, err);
	struct guestfs_file f = {0};
	char plain[PATH_MAX];
	int r;

	*data = NULL;
	if (!own)
		return -ENOTSUP;
	r = resolve(own, path, plain);
	if (r == 0)
		r = *plain ? own->reader->stat(own->fs, plain, &f) : -EISDIR;
	if (r == 0 && f.is_dir)
		r = -EISDIR;
	if (r == 0 && f.size > max)
		r = -EFBIG;
	if (r == 0) {
		*data = malloc((size_t)f.size + 1);
		r = *data ? own->reader->read(own->fs, plain, *data, (size_t)f.size) : -ENOMEM;
	}
	if (r < 0) {
		free(*data);
		*data = NULL;
		return err_errno(err, -r, "cannot read '%s'", path);
	}
	(*data)[f.size] = 0;
	*len = (size_t)f.size;
	return 0;
}
