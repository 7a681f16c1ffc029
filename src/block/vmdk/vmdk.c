/* block/vmdk/vmdk.c - VMware's disks: which files a disk is made of, and the format's table of
 * functions.  vmdk.h tells what is in the other files; docs/formats/vmdk.md draws the layouts. */
#include "block/vmdk/vmdk.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { CHANGE_TRACKING = 0xf61972a2u }; /* a -ctk.vmdk's first bytes, a2 72 19 f6 */

static struct log_component log_vmdk = LOG_COMPONENT("vmdk");

const char *vmdk_base_name(const char *path)
{
	const char *slash = strrchr(path, '/'), *back = strrchr(path, '\\');
	const char *last = slash > back ? slash : back;

	return last ? last + 1 : path;
}

/* The kind of a file by its first bytes; false: none of ours. */
static bool sparse_kind(const uint8_t *head, size_t len, enum vmdk_kind *kind)
{
	if (len >= 4 && !memcmp(head, "KDMV", 4))
		*kind = KIND_HOSTED;
	else if (len >= 4 && !memcmp(head, "COWD", 4))
		*kind = KIND_COWD;
	else if (len >= 8 && le64_load(head) == 0xcafebabe)
		*kind = KIND_SESPARSE;
	else
		return false;
	return true;
}

static int vmdk_probe(const uint8_t *head, size_t len)
{
	enum vmdk_kind kind;

	return sparse_kind(head, len, &kind) ? 100 : vmdk_desc_probe(head, len);
}

/* ESXi keeps track of changes in a file of its own, for backups of what changed.  Changes that it
 * does not hear of would be missing there without a word. */
static int refuse_untracked(struct vmdk *v, struct error *err)
{
	char path[16];

	if (v->b->flags & BLK_READONLY ||
	    !vmdk_desc_value(&v->desc, "changeTrackPath", path, sizeof(path)))
		return 0;
	return err_set(
		err, EROFS,
		"'%s' has its changes tracked by ESXi, which writes of ours would escape; open "
		"it read-only, or take the changeTrackPath line out of its descriptor",
		v->b->path);
}

/* ---- extents in files of their own ---- */

/* The file of an earlier extent, when both name the same: it can be locked only once. */
static struct vmdk_extent *same_file(struct vmdk *v, const struct vmdk_extent *e)
{
	for (struct vmdk_extent *o = v->ext; o < e; o++)
		if (o->file && o->name && e->name && !strcmp(o->name, e->name) &&
		    o->writable == e->writable)
			return o;
	return NULL;
}

/* Names can be paths of the machine the disk was made on: then the file beside us counts. */
static int open_extent_file(struct vmdk *v, struct vmdk_extent *e, struct error *err)
{
	unsigned flags = e->writable ? 0 : BLK_READONLY;
	struct vmdk_extent *o = same_file(v, e);
	const char *base = vmdk_base_name(e->name);
	int r;

	if (o && vmdk_is_sparse(e))
		return err_set(err, EINVAL, "'%s': two extents are in one sparse file, '%s'",
			       v->b->path, e->name);
	if (o) {
		e->file = o->file;
		return 0;
	}
	r = blk_ref_open(v->b, e->name, NULL, flags, &e->file, err);
	if ((r == -EACCES || r == -ENOENT) && base != e->name && *base &&
	    blk_ref_open(v->b, base, NULL, flags, &e->file, NULL) == 0)
		r = 0;
	e->own_file = !r;
	return r;
}

static int open_flat(struct vmdk *v, struct vmdk_extent *e, bool rdm, struct error *err)
{
	uint64_t have = blk_size(e->file), need = e->flat_off + e->len;

	if (have >= need)
		return 0;
	if (rdm)
		return err_set(err, ENOTSUP,
			       "'%s' is a raw device mapping: its data are on a LUN, and '%s' only "
			       "points there; copy the LUN and open that as raw",
			       v->b->path, e->name);
	if (v->b->flags & BLK_RECOVER) {
		log_warn(&log_vmdk, "%s: %llu of %llu bytes are there", e->name,
			 (unsigned long long)have, (unsigned long long)need);
		return 0;
	}
	return err_set(err, EINVAL,
		       "'%s' has %llu bytes where the descriptor wants %llu: it was cut off",
		       e->name, (unsigned long long)have, (unsigned long long)need);
}

static int open_sparse(struct vmdk *v, struct vmdk_extent *e, struct error *err)
{
	int r = vmdk_sparse_open(v, e, err);

	if (r < 0)
		return r;
	if (e->len <= e->capacity)
		return 0;
	return err_set(err, EINVAL, "'%s' holds %llu sectors where the descriptor wants %llu",
		       e->name, (unsigned long long)(e->capacity / SECTOR),
		       (unsigned long long)(e->len / SECTOR));
}

static enum vmdk_kind kind_of_type(enum vmdk_type type)
{
	switch (type) {
	case TYPE_SPARSE:
		return KIND_HOSTED;
	case TYPE_COWD:
		return KIND_COWD;
	case TYPE_SESPARSE:
		return KIND_SESPARSE;
	case TYPE_ZERO:
		return KIND_ZERO;
	default:
		return KIND_FLAT;
	}
}

static int open_described(struct vmdk *v, unsigned i, struct error *err)
{
	const struct vmdk_desc_extent *x = &v->desc.ext[i];
	struct vmdk_extent *e = &v->ext[i];
	int r;

	e->kind = kind_of_type(x->type);
	e->access = x->access;
	e->len = x->sectors * SECTOR;
	e->flat_off = x->offset * SECTOR;
	if (e->kind == KIND_ZERO || e->access == ACCESS_NOACCESS) {
		e->kind = e->kind == KIND_ZERO ? KIND_ZERO : KIND_FLAT;
		return 0; /* there is no file, or none that may be looked at */
	}
	e->writable = e->access == ACCESS_RW && !(v->b->flags & BLK_READONLY);
	e->name = strdup(x->name);
	if (!e->name)
		return err_errno(err, ENOMEM, "'%s'", v->b->path);
	r = open_extent_file(v, e, err);
	if (r < 0)
		return r;
	return e->kind == KIND_FLAT ? open_flat(v, e, x->type == TYPE_RDM, err)
				    : open_sparse(v, e, err);
}

/* ---- the descriptor ---- */

static int read_descriptor(struct vmdk *v, struct blk *file, uint64_t off, uint64_t len,
			   struct error *err)
{
	char *text = malloc(len + 1);
	int r;

	if (!text)
		return err_errno(err, ENOMEM, "'%s'", v->b->path);
	r = blk_read(file, text, len, off);
	if (r < 0)
		err_errno(err, -r, "'%s': its descriptor cannot be read", v->b->path);
	else
		r = vmdk_desc_parse(&v->desc, text, len, v->b->path, err);
	free(text);
	return r;
}

/* Without an extent line there is no disk; with none that may be written, no writable one. */
static int check_described(struct vmdk *v, struct error *err)
{
	bool any_rw = false;

	if (!v->desc.nr_ext)
		return err_set(err, EINVAL, "'%s': the descriptor names no extents", v->b->path);
	if (refuse_untracked(v, err) < 0)
		return -EROFS;
	for (unsigned i = 0; i < v->desc.nr_ext; i++)
		any_rw |= v->desc.ext[i].access == ACCESS_RW;
	if (!any_rw && !(v->b->flags & BLK_READONLY))
		return err_set(err, EROFS,
			       "'%s' says that none of its extents may be written; open it "
			       "read-only",
			       v->b->path);
	return 0;
}

static int alloc_extents(struct vmdk *v, unsigned n, struct error *err)
{
	v->ext = calloc(n, sizeof(*v->ext));
	if (!v->ext)
		return err_errno(err, ENOMEM, "'%s'", v->b->path);
	v->nr_ext = n;
	return 0;
}

static int open_text(struct vmdk *v, struct error *err)
{
	struct blk *b = v->b;
	int r;

	if (blk_size(b->file) > VMDK_DESC_MAX)
		return err_set(err, EFBIG,
			       "'%s' is no sparse extent, and too large for a descriptor (%llu "
			       "bytes; at most %llu)",
			       b->path, (unsigned long long)blk_size(b->file), VMDK_DESC_MAX);
	r = read_descriptor(v, b->file, 0, blk_size(b->file), err);
	v->desc_file = b->file;
	if (!r)
		r = check_described(v, err);
	if (!r)
		r = alloc_extents(v, v->desc.nr_ext, err);
	for (unsigned i = 0; i < v->nr_ext && !r; i++)
		r = open_described(v, i, err);
	return r;
}

/* A sparse file with its descriptor inside. */
static int use_embedded(struct vmdk *v, struct vmdk_extent *e, struct error *err)
{
	int r = read_descriptor(v, v->b->file, e->desc_off, e->desc_room, err);

	if (r < 0 && v->b->flags & BLK_RECOVER) {
		log_warn(&log_vmdk, "%s: its descriptor is damaged and left out", v->b->path);
		return 0;
	}
	if (r < 0)
		return r;
	if (v->desc.nr_ext != 1 || v->desc.ext[0].type != TYPE_SPARSE)
		return err_set(err, EINVAL,
			       "'%s': the descriptor inside names %u extents; it must be one, this "
			       "file",
			       v->b->path, v->desc.nr_ext);
	v->desc_file = v->b->file;
	v->desc_off = e->desc_off;
	v->desc_room = e->desc_room;
	return refuse_untracked(v, err);
}

static int open_bare(struct vmdk *v, enum vmdk_kind kind, struct error *err)
{
	struct vmdk_extent *e;
	int r = alloc_extents(v, 1, err);

	if (r < 0)
		return r;
	e = &v->ext[0];
	e->kind = kind;
	e->file = v->b->file;
	e->writable = !(v->b->flags & BLK_READONLY);
	e->name = strdup(v->b->path);
	r = e->name ? vmdk_sparse_open(v, e, err) : err_errno(err, ENOMEM, "'%s'", v->b->path);
	if (r < 0)
		return r;
	e->len = e->capacity;
	if (e->desc_room)
		return use_embedded(v, e, err);
	if (e->writable)
		return err_set(err, EROFS,
			       "'%s' is one extent of a disk: open the disk's descriptor (a small "
			       ".vmdk beside it) to write to it",
			       v->b->path);
	return vmdk_find_descriptor(v, err);
}

static int refuse_content(struct vmdk *v, struct error *err)
{
	const char *path = v->b->path, *flat = strstr(vmdk_base_name(path), "-flat.vmdk");
	uint8_t head[4];

	if (v->b->file && blk_read(v->b->file, head, sizeof(head), 0) == 0 &&
	    le32_load(head) == CHANGE_TRACKING)
		return err_set(
			err, EINVAL,
			"'%s' says which parts of a disk were changed and holds no data: open "
			"the disk's own .vmdk",
			path);
	if (flat)
		return err_set(err, EINVAL,
			       "'%s' holds the bytes of a disk alone: open its descriptor, "
			       "'%.*s.vmdk', or this one as raw",
			       path, (int)(flat - path), path);
	return err_set(err, EINVAL,
		       "'%s' is no VMDK image: neither a descriptor nor a sparse extent", path);
}

/* ---- the disk ---- */

static int place_extents(struct vmdk *v, struct error *err)
{
	uint64_t size = 0, grain = 0;

	for (unsigned i = 0; i < v->nr_ext; i++) {
		struct vmdk_extent *e = &v->ext[i];

		e->start = size;
		size += e->len;
		if (vmdk_is_sparse(e)) {
			grain = MAX(grain, e->grain);
			v->b->info.dirty |= e->unclean || e->rebuilt;
		}
	}
	if (size > VMDK_SECTORS_MAX * SECTOR)
		return err_set(err, EFBIG, "'%s': a disk of %llu bytes is too large", v->b->path,
			       (unsigned long long)size);
	v->b->info.size = size;
	v->b->info.cluster = (uint32_t)grain;
	v->b->info.can_discard = v->b->info.can_zero = !(v->b->flags & BLK_READONLY);
	return 0;
}

static int open_disk(struct vmdk *v, struct error *err)
{
	uint8_t head[KiB] = {0};
	size_t len = (size_t)MIN(sizeof(head), blk_size(v->b->file));
	enum vmdk_kind kind;
	int r = blk_read(v->b->file, head, len, 0);

	if (r < 0)
		return err_errno(err, -r, "'%s' cannot be read", v->b->path);
	if (sparse_kind(head, len, &kind))
		r = open_bare(v, kind, err);
	else if (vmdk_desc_probe(head, len))
		r = open_text(v, err);
	else
		return refuse_content(v, err);
	if (!r)
		r = place_extents(v, err);
	if (!r)
		r = vmdk_open_parent(v, err);
	return r;
}

static void free_disk(struct vmdk *v)
{
	for (unsigned i = 0; i < v->nr_ext; i++) {
		struct vmdk_extent *e = &v->ext[i];

		if (vmdk_is_sparse(e))
			vmdk_sparse_close(e);
	}
	for (unsigned i = 0; i < v->nr_ext; i++) {
		if (v->ext[i].own_file)
			blk_close(v->ext[i].file);
		free(v->ext[i].name);
	}
	free(v->ext);
	vmdk_desc_fini(&v->desc);
	pthread_mutex_destroy(&v->desc_lock);
	free(v);
}

static int vmdk_open(struct blk *b, const char *path, struct error *err)
{
	struct vmdk *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_errno(err, ENOMEM, "'%s'", path);
	v->b = b;
	b->priv = v;
	pthread_mutex_init(&v->desc_lock, NULL);
	r = open_disk(v, err);
	if (r < 0) {
		free_disk(v);
		b->priv = NULL;
	}
	return r;
}

static int vmdk_flush(struct blk *b)
{
	struct vmdk *v = vmdk_of(b);
	int r = 0;

	for (unsigned i = 0; i < v->nr_ext && !r; i++) {
		struct vmdk_extent *e = &v->ext[i];

		if (!e->writable)
			continue;
		r = vmdk_is_sparse(e) ? vmdk_tables_flush(e) : blk_flush(e->file);
	}
	if (!r && atomic_load(&v->touched))
		r = blk_flush(b->file);
	return r;
}

/* blk.c has flushed, unless flushes were switched off: the tables go to the file in any case. */
static void close_extent(struct vmdk_extent *e)
{
	int r = 0;

	if (e->nr_dirty || e->tail_missing || e->gd_dirty_lo < e->gd_dirty_end)
		r = vmdk_tables_flush(e);
	if (!r && e->marked_unclean)
		r = vmdk_mark_clean(e, true);
	if (!r)
		r = blk_flush(e->file);
	if (r < 0)
		log_error(&log_vmdk, "%s: the last changes are lost: %s", e->name, strerror(-r));
}

static void vmdk_close(struct blk *b)
{
	struct vmdk *v = vmdk_of(b);

	for (unsigned i = 0; i < v->nr_ext; i++) {
		struct vmdk_extent *e = &v->ext[i];

		if (vmdk_is_sparse(e) && e->writable &&
		    (e->nr_dirty || e->tail_missing || e->marked_unclean))
			close_extent(e);
	}
	free_disk(v);
}

static void tell_extent(struct blk_sink *s, const struct vmdk_extent *e)
{
	// clang-format off
	static const char *const kinds[] = {
		[KIND_FLAT] = "FLAT",	[KIND_ZERO] = "ZERO",	  [KIND_HOSTED] = "SPARSE",
		[KIND_STREAM] = "SPARSE", [KIND_COWD] = "VMFSSPARSE", [KIND_SESPARSE] = "SESPARSE",
	};
	// clang-format on

	s->begin(s, NULL, false);
	s->text(s, "format", kinds[e->kind]);
	s->number(s, "virtual size", e->len);
	if (e->name)
		s->text(s, "filename", e->name);
	if (vmdk_is_sparse(e)) {
		s->number(s, "cluster size", e->grain);
		s->flag(s, "compressed", e->kind == KIND_STREAM);
		s->number(s, "version", e->version);
		s->flag(s, "zeroed grains", e->zero_grains);
	}
	s->end(s);
}

static void vmdk_details(struct blk *b, struct blk_sink *s)
{
	static const char *const keys[] = {
		"ddb.adapterType",   "ddb.virtualHWVersion", "ddb.toolsVersion", "ddb.uuid",
		"ddb.longContentID", "ddb.thinProvisioned",  "changeTrackPath"};
	struct vmdk *v = vmdk_of(b);
	char buf[256];

	if (v->desc.text) {
		s->text(s, "create type", v->desc.create_type);
		snprintf(buf, sizeof(buf), "%08x", v->desc.cid);
		s->text(s, "cid", buf);
		snprintf(buf, sizeof(buf), "%08x", v->desc.parent_cid);
		s->text(s, "parent cid", buf);
		for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
			if (vmdk_desc_value(&v->desc, keys[i], buf, sizeof(buf)))
				s->text(s, keys[i], buf);
	}
	s->begin(s, "extents", true);
	for (unsigned i = 0; i < v->nr_ext; i++)
		tell_extent(s, &v->ext[i]);
	s->end(s);
}

const struct blk_format blk_vmdk = {
	.name = "vmdk",
	.help = "VMware: sparse, flat, split, stream-optimised, ESXi's snapshots",
	.parallel = true,
	.on_file = true,
	.packs_in_order = true,
	.probe = vmdk_probe,
	.open = vmdk_open,
	.close = vmdk_close,
	.readv = vmdk_readv,
	.writev = vmdk_writev,
	.flush = vmdk_flush,
	.discard = vmdk_discard,
	.write_zeroes = vmdk_write_zeroes,
	.map = vmdk_map,
	.resize = vmdk_resize,
	.create_options = vmdk_create_options,
	.create = vmdk_create,
	.details = vmdk_details,
	.check = vmdk_check,
	.amend = vmdk_amend,
	.measure = vmdk_measure,
	.change_backing = vmdk_change_backing,
	.make_empty = vmdk_make_empty,
	.pack_bound = vmdk_pack_bound,
	.pack = vmdk_pack,
	.write_packed = vmdk_write_packed,
};
