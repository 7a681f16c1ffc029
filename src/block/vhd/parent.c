/* block/vhd/parent.c - the parent of a differencing VHD: by the names in its locators, else by its
 * identifier among the files beside it.  It is refused when the identifier is another one: reading
 * on would show sectors of a foreign disk.
 *
 * Names were written on Windows: "C:\dir\base.vhd" absolute (code W2ku), ".\base.vhd" relative
 * (W2ru), both UTF-16LE. */
#include "block/vhd/vhd.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_LEN = 3 * LOCATOR_MAX / 2 + 1, CODE_W2KU = 0x57326b75, CODE_W2RU = 0x57327275 };

bool vhd_locator(const struct vhd *v, unsigned i, uint32_t *code, uint64_t *off, uint32_t *len)
{
	const uint8_t *l = v->header + HEADER_LOCATORS + i * LOCATOR_LEN;

	*code = be32_load(l + LOCATOR_CODE);
	*len = be32_load(l + LOCATOR_LENGTH);
	*off = be64_load(l + LOCATOR_OFFSET);
	return *code && *len && *len <= LOCATOR_MAX &&
	       range_inside(*off, *len, blk_size(v->grid.file));
}

void vhd_parent_name(const struct vhd *v, char *out, size_t cap)
{
	utf16_to_utf8(v->header + HEADER_PARENT_NAME, 512, false, out, cap);
}

/* ---- opening ---- */

struct attempt {
	struct blk *b;
	const struct vhd *v;
	char *found;   /* of the search */
	bool stranger; /* a file of that name is another disk */
	struct error last;
	bool failed; /* the right file, but it does not open: *last* says why */
};

static bool is_parent(const struct attempt *a, const struct blk *parent)
{
	const struct vhd *p = parent->priv;

	return !memcmp(p->footer + FOOTER_ID, a->v->header + HEADER_PARENT_ID, ID_LEN);
}

static bool try_name(struct attempt *a, const char *name)
{
	struct blk *parent = NULL;
	int r;

	r = blk_ref_open(a->b, name, "vpc", BLK_READONLY, &parent, &a->last);
	if (r < 0) {
		a->failed |= r != -ENOENT && r != -EACCES;
		return false;
	}
	if (!is_parent(a, parent)) {
		a->stranger = true;
		blk_close(parent);
		return false;
	}
	a->b->backing = parent;
	return true;
}

static void to_slashes(char *name)
{
	for (; *name; name++)
		if (*name == '\\')
			*name = '/';
}

/* A name from another machine: as it is, and its last part beside the image. */
static bool try_foreign(struct attempt *a, char *name)
{
	const char *rest = name, *last;

	to_slashes(name);
	if (rest[0] && rest[1] == ':')
		rest += 2;
	last = strrchr(rest, '/');
	if (rest[0] && try_name(a, rest))
		return true;
	return last && last[1] && try_name(a, last + 1);
}

static bool try_locator(struct attempt *a, unsigned i, uint32_t wanted)
{
	char *name = malloc(NAME_MAX_LEN);
	uint8_t *raw = malloc(LOCATOR_MAX);
	uint32_t code, len;
	uint64_t off;
	bool good = false;

	if (name && raw && vhd_locator(a->v, i, &code, &off, &len) && code == wanted &&
	    blk_read(a->b->file, raw, len, off) == 0) {
		utf16_to_utf8(raw, len, true, name, NAME_MAX_LEN);
		good = try_foreign(a, name);
	}
	free(name);
	free(raw);
	return good;
}

static bool try_locators(struct attempt *a)
{
	for (unsigned i = 0; i < LOCATORS; i++)
		if (try_locator(a, i, CODE_W2RU))
			return true;
	for (unsigned i = 0; i < LOCATORS; i++)
		if (try_locator(a, i, CODE_W2KU))
			return true;
	return false;
}

static bool has_parents_id(void *opaque, const char *path)
{
	struct attempt *a = opaque;
	uint8_t footer[FOOTER_LEN];
	struct error ignored;
	struct blk *f = NULL;
	bool good;

	good = blk_ref_open(a->b, path, NULL, BLK_READONLY, &f, &ignored) == 0 &&
	       blk_size(f) >= FOOTER_LEN &&
	       blk_read(f, footer, FOOTER_LEN, blk_size(f) - FOOTER_LEN) == 0 &&
	       vhd_footer_good(footer) &&
	       !memcmp(footer + FOOTER_ID, a->v->header + HEADER_PARENT_ID, ID_LEN);
	blk_close(f);
	if (good)
		a->found = strdup(path);
	return a->found;
}

static bool try_search(struct attempt *a)
{
	struct error ignored;
	bool good = blk_ref_search(a->b, has_parents_id, a, &ignored) == 0 && try_name(a, a->found);

	free(a->found);
	return good;
}

static int refuse_parent(const struct attempt *a, const char *name, struct error *err)
{
	char id[ID_TEXT];

	id_text(a->v->header + HEADER_PARENT_ID, false, id);
	if (a->failed && err) {
		*err = a->last;
		return err_wrap(err, -EINVAL, "'%s': its parent", blk_path(a->b));
	}
	if (a->stranger)
		return err_set(err, ESTALE,
			       "'%s': a file '%s' is there, but it is another disk than its parent "
			       "{%s}",
			       blk_path(a->b), name, id);
	return err_set(err, ENOENT,
		       "'%s': its parent '%s' {%s} is not beside it: allow where it is with "
		       "--allow-ref DIR",
		       blk_path(a->b), name, id);
}

int vhd_open_parent(struct blk *b, const struct vhd *v, struct error *err)
{
	struct attempt a = {.b = b, .v = v};
	char shown[1024], *name = malloc(NAME_MAX_LEN);

	if (!name)
		return err_errno(err, ENOMEM, "'%s'", blk_path(b));
	vhd_parent_name(v, shown, sizeof(shown));
	strcpy(name, shown);
	if (!try_locators(&a) && !try_foreign(&a, name))
		try_search(&a);
	free(name);
	if (!b->backing)
		return refuse_parent(&a, shown, err);
	if (blk_size(b->backing) > b->info.size)
		return err_set(err, EINVAL, "'%s': its parent '%s' is larger than it is",
			       blk_path(b), blk_path(b->backing));
	return 0;
}

/* ---- naming ---- */

/* With backslashes where Windows is to understand it. */
static int put_locator(uint8_t *l, uint32_t code, uint8_t *room, uint64_t at, const char *name)
{
	size_t len = utf8_to_utf16(name, true, room, LOCATOR_MAX);

	if (!len)
		return -ENAMETOOLONG;
	for (size_t i = 0; i < len && code == CODE_W2RU; i += 2)
		if (room[i] == '/' && !room[i + 1])
			room[i] = '\\';
	be32_store(l + LOCATOR_CODE, code);
	be32_store(l + LOCATOR_SPACE, LOCATOR_MAX); /* bytes, as Windows writes it */
	be32_store(l + LOCATOR_LENGTH, (uint32_t)len);
	be32_store(l + LOCATOR_LENGTH + 4, 0);
	be64_store(l + LOCATOR_OFFSET, at);
	return 0;
}

int vhd_name_parent(uint8_t *header, uint8_t *room, uint64_t at, const struct blk *parent,
		    const char *absolute, const char *relative, struct error *err)
{
	const struct vhd *p = parent->priv;
	const char *slash = strrchr(absolute, '/'), *name = slash ? slash + 1 : absolute;
	uint8_t *l = header + HEADER_LOCATORS;

	memset(l, 0, LOCATORS * LOCATOR_LEN);
	memset(room, 0, VHD_NAMES_LEN);
	memset(header + HEADER_PARENT_NAME, 0, 512);
	memcpy(header + HEADER_PARENT_ID, p->footer + FOOTER_ID, ID_LEN);
	memcpy(header + HEADER_PARENT_TIME, p->footer + FOOTER_TIME, 4);
	if (!utf8_to_utf16(name, false, header + HEADER_PARENT_NAME, 510) ||
	    put_locator(l, CODE_W2RU, room, at, relative) < 0 ||
	    put_locator(l + LOCATOR_LEN, CODE_W2KU, room + LOCATOR_MAX, at + LOCATOR_MAX,
			absolute) < 0)
		return err_set(err, ENAMETOOLONG, "'%s': too long a name for a VHD", absolute);
	return 0;
}
