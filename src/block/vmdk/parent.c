/* block/vmdk/parent.c - the disk a delta stands on, and the descriptor of a bare extent.
 *
 * A snapshot's descriptor names its parent (parentFileNameHint) and says which content it knows
 * (parentCID).  A hint is often a path of the machine the snapshot was made on: then the file of
 * that name beside us is tried, and then any descriptor there with that CID.  A parent with another
 * CID was changed after the snapshot was taken, and the two together are no disk: refused. */
#include "base/error.h"
#include "base/log.h"
#include "block/vmdk/vmdk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static struct log_component log_vmdk = LOG_COMPONENT("vmdk");

/* ---- looking into a directory ---- */

struct search {
	struct vmdk *v;
	bool (*match)(struct search *s, const struct vmdk_desc *d);
	char *path; /* the one that matches */
};

/* The descriptor in a file, be it text or inside a sparse extent. */
static bool peek_descriptor(struct vmdk *v, const char *path, struct vmdk_desc *d)
{
	static const uint64_t places[] = {0, SECTOR}; /* where every program puts it */
	struct blk *file = NULL;
	char *text = NULL;
	bool found = false;

	if (blk_ref_open(v->b, path, NULL, BLK_READONLY | BLK_NO_LOCK, &file, NULL) < 0)
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(places) && !found; i++) {
		uint64_t size = blk_size(file), len;

		if (size <= places[i])
			break;
		len = MIN(size - places[i], 64 * KiB);
		text = malloc(len);
		found = text && !blk_read(file, text, len, places[i]) &&
			vmdk_desc_probe((uint8_t *)text, len) &&
			!vmdk_desc_parse(d, text, len, path, NULL);
		free(text);
	}
	blk_close(file);
	return found;
}

static bool try_file(void *opaque, const char *path)
{
	struct search *s = opaque;
	size_t len = strlen(path);
	struct vmdk_desc d;
	bool match;

	if (len < 5 || strcasecmp(path + len - 5, ".vmdk") != 0 || !peek_descriptor(s->v, path, &d))
		return false;
	match = s->match(s, &d);
	vmdk_desc_fini(&d);
	if (match)
		s->path = strdup(path);
	return s->path;
}

/* ---- the parent ---- */

static bool is_parent(struct search *s, const struct vmdk_desc *d)
{
	return d->cid == s->v->desc.parent_cid;
}

static int open_named(struct vmdk *v, const char *name, struct error *err)
{
	struct blk *b = v->b;

	/* A parent is never written through its child; an image that is being checked needs it to
	 * be there, not to be clean. */
	return blk_ref_open(b, name, "vmdk", BLK_READONLY | (b->flags & BLK_CHECKING), &b->backing,
			    err);
}

static bool may_be_elsewhere(int r)
{
	return r == -ENOENT || r == -EACCES || r == -ENOTDIR;
}

static int find_parent(struct vmdk *v, struct error *err)
{
	const char *hint = v->desc.parent_hint, *base = hint ? vmdk_base_name(hint) : NULL;
	struct search s = {.v = v, .match = is_parent};
	struct error first = {""};
	int r = -ENOENT;

	if (hint)
		r = open_named(v, hint, &first);
	if (may_be_elsewhere(r) && hint && base != hint && *base)
		r = open_named(v, base, NULL);
	if (!r || (hint && !may_be_elsewhere(r))) {
		if (r < 0)
			err_set(err, -r, "%s", first.msg);
		return r;
	}
	if (blk_ref_search(v->b, try_file, &s, NULL) == 0 && s.path) {
		log_warn(&log_vmdk, "%s: its parent is '%s', by its CID", v->b->path, s.path);
		r = open_named(v, s.path, err);
		free(s.path);
		return r;
	}
	if (!hint)
		return err_set(err, ENOENT,
			       "'%s' stands on a disk with CID %08x, which is not beside it, nor "
			       "under --allow-ref DIR",
			       v->b->path, v->desc.parent_cid);
	return err_set(err, -r, "%s", first.msg);
}

static int check_cid(struct vmdk *v, struct error *err)
{
	const struct vmdk *parent = vmdk_of(v->b->backing);

	if (!parent->desc.text || parent->desc.cid == v->desc.parent_cid)
		return 0;
	if (v->b->flags & (BLK_RECOVER | BLK_CHECKING)) {
		log_warn(&log_vmdk, "%s: its parent '%s' was changed since", v->b->path,
			 blk_path(v->b->backing));
		return 0;
	}
	return err_set(
		err, EINVAL,
		"'%s' was made on '%s' with CID %08x, which has %08x now: it was changed "
		"since, and both together are no disk any more (to save what can be, open it "
		"for recovery)",
		v->b->path, blk_path(v->b->backing), v->desc.parent_cid, parent->desc.cid);
}

int vmdk_open_parent(struct vmdk *v, struct error *err)
{
	int r;

	if (!v->desc.text || v->desc.parent_cid == CID_NONE)
		return 0;
	if (v->desc.parent_hint) {
		v->b->backing_name = strdup(v->desc.parent_hint);
		v->b->backing_format = strdup("vmdk");
		if (!v->b->backing_name || !v->b->backing_format)
			return err_errno(err, ENOMEM, "'%s'", v->b->path);
	}
	if (v->b->flags & BLK_NO_BACKING)
		return 0;
	r = find_parent(v, err);
	return r < 0 ? r : check_cid(v, err);
}

/* ---- the descriptor of a bare extent ---- */

static bool names_us(struct search *s, const struct vmdk_desc *d)
{
	const char *mine = vmdk_base_name(s->v->b->path);

	return d->nr_ext == 1 && d->ext[0].name && !strcmp(vmdk_base_name(d->ext[0].name), mine);
}

/* A delta alone shows only what was written since the snapshot, and its file does not say so: the
 * descriptor that names it does.  One that nobody names may be a base disk, as some programs make
 * them. */
int vmdk_find_descriptor(struct vmdk *v, struct error *err)
{
	struct search s = {.v = v, .match = names_us};
	struct vmdk_desc d;

	if (blk_ref_search(v->b, try_file, &s, NULL) == 0 && s.path &&
	    peek_descriptor(v, s.path, &d)) {
		log_info(&log_vmdk, "%s: described by '%s'", v->b->path, s.path);
		v->desc = d;
		free(s.path);
		return 0;
	}
	free(s.path);
	if (v->ext[0].kind == KIND_HOSTED || v->ext[0].kind == KIND_STREAM)
		log_warn(&log_vmdk, "%s: one piece of a disk, opened alone", v->b->path);
	else
		log_warn(&log_vmdk,
			 "%s: no descriptor beside it says whether it stands on another disk; what "
			 "it does not hold reads as zeroes",
			 v->b->path);
	return 0;
}
