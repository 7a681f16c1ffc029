/* block/vhdx/parent.c - the parent of a differencing VHDX: by the names in its parent locator
 * (2.6.2.6), else by its identifier among the files beside it.
 *
 * The identifier is the parent's "data write" one: a parent that was written to since is another
 * disk, and is refused. */
#include "block/vhdx/vhdx.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// clang-format off
const uint8_t vhdx_locator_type[ID_LEN] = { /* B04AEFB7-D19E-4A81-B789-25B8E9445913 */
	0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13};
// clang-format on

enum {
	LOC_COUNT = 18,
	LOC_ENTRIES = 20,
	LOC_ENTRY = 12,
	LOC_KEY_OFFSET = 0,
	LOC_VALUE_OFFSET = 4,
	LOC_KEY_LENGTH = 8,
	LOC_VALUE_LENGTH = 10,
	VALUE_MAX = 4096,
};

/* ---- reading ---- */

struct locator {
	uint8_t *data;
	uint32_t len;
};

static int locator_load(struct vhdx *v, struct locator *l)
{
	l->len = v->locator_len;
	l->data = NULL;
	if (!v->locator_at || l->len < LOC_ENTRIES || l->len > LOCATOR_MAX)
		return -EINVAL;
	l->data = malloc(l->len);
	if (!l->data)
		return -ENOMEM;
	return blk_read(v->file, l->data, l->len, v->locator_at);
}

/* The value of a key as UTF-8, with slashes; false: there is none. */
static bool locator_get(const struct locator *l, const char *key, char *out)
{
	unsigned n = le16_load(l->data + LOC_COUNT);

	for (unsigned i = 0; i < n; i++) {
		const uint8_t *e = l->data + LOC_ENTRIES + i * LOC_ENTRY;
		uint32_t key_at, value_at;
		unsigned key_len, value_len;
		char name[64];

		if (LOC_ENTRIES + (i + 1) * LOC_ENTRY > l->len)
			return false;
		key_at = le32_load(e + LOC_KEY_OFFSET);
		value_at = le32_load(e + LOC_VALUE_OFFSET);
		key_len = le16_load(e + LOC_KEY_LENGTH);
		value_len = le16_load(e + LOC_VALUE_LENGTH);
		if (!range_inside(key_at, key_len, l->len) ||
		    !range_inside(value_at, value_len, l->len))
			continue;
		utf16_to_utf8(l->data + key_at, key_len, true, name, sizeof(name));
		if (strcmp(name, key))
			continue;
		utf16_to_utf8(l->data + value_at, value_len, true, out, VALUE_MAX);
		return true;
	}
	return false;
}

/* "{b04aefb7-d19e-4a81-b789-25b8e9445913}" */
static bool parse_id(const char *text, uint8_t id[ID_LEN])
{
	static const uint8_t order[ID_LEN] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
	unsigned n = 0;

	for (text += *text == '{'; *text && *text != '}' && n < ID_LEN; text++) {
		unsigned byte;

		if (*text == '-')
			continue;
		if (sscanf(text, "%2x", &byte) != 1)
			return false;
		id[order[n++]] = (uint8_t)byte;
		text++;
		if (!*text)
			return false;
	}
	return n == ID_LEN;
}

/* ---- opening ---- */

struct attempt {
	struct blk *b;
	struct vhdx *v;
	uint8_t id[2][ID_LEN]; /* of the parent; the second while two are being merged */
	unsigned nr_ids;
	char *found;
	bool stranger, failed;
	struct error last;
};

static bool is_parent(const struct attempt *a, const uint8_t *head)
{
	for (unsigned i = 0; i < a->nr_ids; i++)
		if (!memcmp(head + HEAD_DATA_WRITE, a->id[i], ID_LEN))
			return true;
	return false;
}

static bool try_name(struct attempt *a, const char *name)
{
	struct blk *parent = NULL;
	int r = blk_ref_open(a->b, name, "vhdx", BLK_READONLY, &parent, &a->last);

	if (r < 0) {
		a->failed |= r != -ENOENT && r != -EACCES;
		return false;
	}
	if (!is_parent(a, ((const struct vhdx *)parent->priv)->head)) {
		a->stranger = true;
		blk_close(parent);
		return false;
	}
	a->b->backing = parent;
	return true;
}

/* A name from another machine: as it is, and its last part beside the image. */
static bool try_foreign(struct attempt *a, char *name)
{
	const char *rest = name, *last;

	for (char *c = name; *c; c++)
		if (*c == '\\')
			*c = '/';
	if (rest[0] && rest[1] == ':')
		rest += 2;
	last = strrchr(rest, '/');
	if (rest[0] && try_name(a, rest))
		return true;
	return last && last[1] && try_name(a, last + 1);
}

static bool has_parents_id(void *opaque, const char *path)
{
	struct attempt *a = opaque;
	uint8_t *head = malloc(HEAD_LEN);
	struct error ignored;
	struct blk *f = NULL;
	unsigned place;
	bool bad;

	if (head && blk_ref_open(a->b, path, NULL, BLK_READONLY, &f, &ignored) == 0 &&
	    vhdx_read_head(f, head, &place, &bad) == 0 && is_parent(a, head))
		a->found = strdup(path);
	blk_close(f);
	free(head);
	return a->found;
}

static bool try_search(struct attempt *a)
{
	struct error ignored;
	bool good = blk_ref_search(a->b, has_parents_id, a, &ignored) == 0 && try_name(a, a->found);

	free(a->found);
	return good;
}

static bool try_all(struct attempt *a, const struct locator *l, char *value)
{
	static const char *const keys[] = {"relative_path", "absolute_win32_path", "volume_path"};

	for (unsigned i = 0; i < ARRAY_SIZE(keys); i++)
		if (locator_get(l, keys[i], value) && try_foreign(a, value))
			return true;
	return try_search(a);
}

static void take_ids(struct attempt *a, const struct locator *l, char *value)
{
	static const char *const keys[] = {"parent_linkage", "parent_linkage2"};

	for (unsigned i = 0; i < ARRAY_SIZE(keys); i++)
		if (locator_get(l, keys[i], value) && parse_id(value, a->id[a->nr_ids]) &&
		    !id_is_zero(a->id[a->nr_ids]))
			a->nr_ids++;
}

static int refuse_parent(struct attempt *a, struct error *err)
{
	const char *path = blk_path(a->b);
	char name[1024], id[ID_TEXT];

	vhdx_parent_name(a->v, name, sizeof(name));
	id_text(a->id[0], true, id);
	if (a->failed && err) {
		*err = a->last;
		return err_wrap(err, -EINVAL, "'%s': its parent", path);
	}
	if (a->stranger)
		return err_set(err, ESTALE,
			       "'%s': its parent '%s' is another disk than when this one was made "
			       "(not {%s}): it was changed after it",
			       path, name, id);
	return err_set(err, ENOENT,
		       "'%s': its parent '%s' {%s} is not beside it: allow where it is with "
		       "--allow-ref DIR",
		       path, name, id);
}

static int open_by(struct attempt *a, const struct locator *l, struct error *err)
{
	char *value = malloc(VALUE_MAX);
	int r = 0;

	if (!value)
		return err_errno(err, ENOMEM, "'%s'", blk_path(a->b));
	if (memcmp(l->data, vhdx_locator_type, ID_LEN)) {
		r = err_set(err, ENOTSUP, "'%s': its parent is named in a way that is not known",
			    blk_path(a->b));
	} else {
		take_ids(a, l, value);
		if (!a->nr_ids)
			r = err_set(err, EINVAL, "'%s' does not say which its parent is: damaged",
				    blk_path(a->b));
		else if (!try_all(a, l, value))
			r = refuse_parent(a, err);
	}
	free(value);
	return r;
}

int vhdx_open_parent(struct blk *b, struct vhdx *v, struct error *err)
{
	struct attempt a = {.b = b, .v = v};
	struct locator l;
	int r = locator_load(v, &l);

	if (r < 0)
		r = err_set(err, EINVAL, "'%s': its parent locator is damaged", blk_path(b));
	else
		r = open_by(&a, &l, err);
	free(l.data);
	if (!r && blk_size(b->backing) > b->info.size)
		r = err_set(err, EINVAL, "'%s': its parent '%s' is larger than it is", blk_path(b),
			    blk_path(b->backing));
	return r;
}

void vhdx_parent_name(struct vhdx *v, char *out, size_t cap)
{
	char *value = malloc(VALUE_MAX);
	struct locator l;

	out[0] = 0;
	if (locator_load(v, &l) == 0 && value &&
	    (locator_get(&l, "absolute_win32_path", value) ||
	     locator_get(&l, "relative_path", value)))
		snprintf(out, cap, "%s", value);
	free(value);
	free(l.data);
}

/* ---- naming ---- */

struct building {
	uint8_t *out;
	size_t cap, at;
	unsigned n;
};

static bool add(struct building *k, const char *key, const char *value)
{
	uint8_t *e = k->out + LOC_ENTRIES + k->n * LOC_ENTRY;
	size_t key_len = utf8_to_utf16(key, true, k->out + k->at, k->cap - k->at), value_len;

	value_len = utf8_to_utf16(value, true, k->out + k->at + key_len, k->cap - k->at - key_len);
	if (!key_len || !value_len || value_len > UINT16_MAX)
		return false;
	le32_store(e + LOC_KEY_OFFSET, (uint32_t)k->at);
	le32_store(e + LOC_VALUE_OFFSET, (uint32_t)(k->at + key_len));
	le16_store(e + LOC_KEY_LENGTH, (uint16_t)key_len);
	le16_store(e + LOC_VALUE_LENGTH, (uint16_t)value_len);
	k->at += key_len + value_len;
	k->n++;
	return true;
}

int vhdx_make_locator(uint8_t *out, size_t cap, const struct blk *parent, const char *absolute,
		      const char *relative)
{
	struct building k = {out, cap, LOC_ENTRIES + 3 * LOC_ENTRY, 0};
	const struct vhdx *p = parent->priv;
	char id[ID_TEXT], linkage[ID_TEXT + 2];
	char *windows = strdup(relative);
	bool good;

	for (char *c = windows; c && *c; c++)
		if (*c == '/')
			*c = '\\';
	memcpy(out, vhdx_locator_type, ID_LEN);
	id_text(p->head + HEAD_DATA_WRITE, true, id);
	snprintf(linkage, sizeof(linkage), "{%s}", id);
	good = windows && add(&k, "parent_linkage", linkage) && add(&k, "relative_path", windows) &&
	       add(&k, "absolute_win32_path", absolute);
	free(windows);
	le16_store(out + LOC_COUNT, (uint16_t)k.n);
	return good ? (int)k.at : -ENAMETOOLONG;
}
