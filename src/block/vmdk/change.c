/* block/vmdk/change.c - changes to a disk as a whole: its content identifier, descriptor, size and
 * parent. */
#include "base/bytes.h"
#include "base/error.h"
#include "block/vmdk/vmdk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- the descriptor in the file ---- */

/* Write what differs, in whole sectors: mostly one, which a disk writes whole or not at all. */
static int write_changed(struct vmdk *v, const uint8_t *old, const uint8_t *new, uint64_t len)
{
	uint64_t first = 0, end = len;

	while (first < end && old[first] == new[first])
		first++;
	if (first == end)
		return 0;
	while (old[end - 1] == new[end - 1])
		end--;
	first = ALIGN_DOWN(first, SECTOR);
	end = MIN(ALIGN_UP(end, SECTOR), len);
	return blk_write(v->desc_file, new + first, end - first, v->desc_off + first);
}

static int store_embedded(struct vmdk *v, uint64_t len)
{
	uint8_t *old = malloc(v->desc_room), *new = calloc(1, v->desc_room);
	int r = -ENOMEM;

	if (old && new) {
		memcpy(new, v->desc.text, len);
		r = blk_read(v->desc_file, old, v->desc_room, v->desc_off);
		if (!r)
			r = write_changed(v, old, new, v->desc_room);
	}
	free(old);
	free(new);
	return r;
}

static int store_text(struct vmdk *v, uint64_t len)
{
	int r = blk_write(v->desc_file, v->desc.text, len, 0);

	if (!r && blk_size(v->desc_file) > len)
		r = blk_resize(v->desc_file, len);
	return r;
}

int vmdk_desc_store(struct vmdk *v, struct error *err)
{
	uint64_t len = strlen(v->desc.text);
	int r;

	if (!v->desc_file)
		return err_set(err, EROFS, "'%s': its descriptor cannot be written", v->b->path);
	if (v->desc_room && len >= v->desc_room)
		return err_set(err, ENOSPC, "'%s': its descriptor is full", v->b->path);
	r = v->desc_room ? store_embedded(v, len) : store_text(v, len);
	return r < 0 ? err_errno(err, -r, "'%s': its descriptor cannot be written", v->b->path) : 0;
}

/* longContentID ends with the CID. */
static int new_long_id(struct vmdk *v, uint32_t cid)
{
	char old[64], id[40];

	if (!vmdk_desc_value(&v->desc, "ddb.longContentID", old, sizeof(old)))
		return 0;
	snprintf(id, sizeof(id), "%08x%08x%08x%08x", vmdk_random_cid(), vmdk_random_cid(),
		 vmdk_random_cid(), cid);
	return vmdk_desc_set(&v->desc, "ddb.longContentID", id, true, NULL);
}

static int new_cid(struct vmdk *v)
{
	uint32_t cid = vmdk_random_cid();
	char text[16];
	int r;

	snprintf(text, sizeof(text), "%08x", cid);
	r = vmdk_desc_set(&v->desc, "CID", text, false, "version");
	if (!r)
		r = new_long_id(v, cid);
	if (!r)
		r = vmdk_desc_store(v, NULL);
	if (!r)
		v->desc.cid = cid;
	return r;
}

/* Whoever stands on this disk's content as it was sees by the CID that it is another one: once for
 * each time it is opened and written (VDF "The Header"). */
int vmdk_touch(struct vmdk *v)
{
	int r = 0;

	if (atomic_load_explicit(&v->touched, memory_order_acquire) || !v->desc.text)
		return 0;
	pthread_mutex_lock(&v->desc_lock);
	if (!atomic_load(&v->touched)) {
		r = new_cid(v);
		if (!r)
			atomic_store(&v->touched, true);
	}
	pthread_mutex_unlock(&v->desc_lock);
	return r;
}

/* ---- size ---- */

static int set_geometry(struct vmdk *v, uint64_t size)
{
	char adapter[32] = "ide", text[24];
	struct vmdk_geometry g;

	vmdk_desc_value(&v->desc, "ddb.adapterType", adapter, sizeof(adapter));
	if (!vmdk_desc_value(&v->desc, "ddb.geometry.cylinders", text, sizeof(text)))
		return 0;
	g = vmdk_geometry(size, adapter);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)g.cylinders);
	return vmdk_desc_set(&v->desc, "ddb.geometry.cylinders", text, true, NULL);
}

static int describe_size(struct vmdk *v, uint64_t size)
{
	unsigned last = v->nr_ext - 1;
	uint64_t len = size - v->ext[last].start;
	int r;

	pthread_mutex_lock(&v->desc_lock);
	r = vmdk_desc_set_sectors(&v->desc, last, len / SECTOR);
	if (!r)
		r = set_geometry(v, size);
	if (!r)
		r = vmdk_desc_store(v, NULL);
	pthread_mutex_unlock(&v->desc_lock);
	return r;
}

/* The file grows before the descriptor says so, and shrinks after. */
static int resize_flat(struct vmdk *v, struct vmdk_extent *e, uint64_t size)
{
	uint64_t end = e->flat_off + size - e->start;
	bool grows = size > v->b->info.size;
	int r;

	if (blk_size(e->file) != e->flat_off + e->len)
		return -ENOTSUP; /* something else lies behind it */
	if (vmdk_desc_is(&v->desc, "twoGbMaxExtentFlat") && size > 2 * GiB)
		return -ENOTSUP;
	if (!grows) {
		r = describe_size(v, size);
		return r ? r : blk_resize(e->file, end);
	}
	r = blk_resize(e->file, end);
	return r ? r : describe_size(v, size);
}

struct new_gd {
	uint32_t nr;
	uint32_t *gd, *rgd;
	struct vmdk_gt **gt;
	uint64_t off, copy_off;
};

static uint64_t gd_len(uint32_t nr)
{
	return ALIGN_UP(nr * 4ull, SECTOR);
}

static int write_gd(struct vmdk_extent *e, const uint32_t *gd, uint32_t nr, uint64_t off)
{
	uint8_t *raw = calloc(1, gd_len(nr));
	int r = -ENOMEM;

	if (raw) {
		for (uint32_t i = 0; i < nr; i++)
			le32_store(raw + i * 4ull, gd[i]);
		r = blk_write(e->file, raw, gd_len(nr), off);
	}
	free(raw);
	return r;
}

static void free_gd(struct new_gd *n)
{
	free(n->gd);
	free(n->rgd);
	free(n->gt);
}

/* Longer directories, at the end of the file: the old ones stay good until the header names these.
 */
static int make_gd(struct vmdk_extent *e, struct new_gd *n)
{
	int r;

	n->gd = calloc(n->nr + 1ull, sizeof(*n->gd));
	n->gt = calloc(n->nr + 1ull, sizeof(*n->gt));
	if (e->rgd)
		n->rgd = calloc(n->nr + 1ull, sizeof(*n->rgd));
	if (!n->gd || !n->gt || (e->rgd && !n->rgd))
		return -ENOMEM;
	memcpy(n->gd, e->gd, e->nr_gd * sizeof(*n->gd));
	memcpy(n->gt, e->gt, e->nr_gd * sizeof(*n->gt));
	if (e->rgd)
		memcpy(n->rgd, e->rgd, e->nr_gd * sizeof(*n->rgd));
	r = vmdk_alloc(e, gd_len(n->nr), false, &n->off);
	if (!r)
		r = write_gd(e, n->gd, n->nr, n->off);
	if (!r && e->rgd)
		r = vmdk_alloc(e, gd_len(n->nr), false, &n->copy_off);
	if (!r && e->rgd)
		r = write_gd(e, n->rgd, n->nr, n->copy_off);
	return r ? r : blk_flush(e->file);
}

static void use_gd(struct vmdk_extent *e, struct new_gd *n)
{
	struct new_gd old = {.gd = e->gd, .rgd = e->rgd, .gt = e->gt};

	e->gd = n->gd;
	e->gt = n->gt;
	e->rgd = n->rgd;
	e->nr_gd = n->nr;
	e->gd_off = n->off;
	e->rgd_off = n->copy_off;
	*n = old;
}

/* One sector: from here on the disk is larger. */
static int write_size(struct vmdk_extent *e, uint64_t capacity)
{
	uint64_t old = e->capacity;
	bool unclean = e->unclean;
	uint8_t h[SECTOR];
	int r;

	e->capacity = capacity;
	e->unclean = unclean || e->marked_unclean;
	vmdk_hosted_header(e, true, e->gd_off / SECTOR, h);
	e->unclean = unclean;
	r = blk_write(e->file, h, SECTOR, 0);
	if (!r)
		r = blk_flush(e->file);
	if (r < 0)
		e->capacity = old;
	return r;
}

static int grow_sparse(struct vmdk *v, struct vmdk_extent *e, uint64_t len)
{
	struct new_gd n = {.nr = vmdk_nr_tables(len, e->grain, e->nr_gtes)};
	int r;

	if (!n.nr)
		return -EFBIG;
	r = vmdk_tables_flush(e);
	if (!r && n.nr > e->nr_gd) {
		r = make_gd(e, &n);
		if (!r)
			use_gd(e, &n);
		free_gd(&n);
	}
	return r ? r : write_size(e, len);
}

/* New bytes are zeroes: not what an old last grain holds behind the end, nor what a larger parent
 * shows there. */
static int clear_new(struct vmdk *v, uint64_t from, uint64_t to)
{
	const struct vmdk_extent *e = &v->ext[v->nr_ext - 1];
	uint64_t end = e->start + ALIGN_UP(from - e->start, e->grain);

	if (v->b->backing && blk_size(v->b->backing) > end)
		end = blk_size(v->b->backing);
	end = MIN(end, to);
	return end > from ? blk_write_zeroes(v->b, from, end - from, true) : 0;
}

static int resize_sparse(struct vmdk *v, struct vmdk_extent *e, uint64_t size)
{
	uint64_t old = v->b->info.size;
	int r;

	if (size < old || !v->desc_room)
		return -ENOTSUP;
	r = grow_sparse(v, e, size - e->start);
	if (!r)
		r = describe_size(v, size);
	if (r < 0)
		return r;
	e->len = e->capacity;
	blk_set_size(v->b, size);
	return clear_new(v, old, size);
}

int vmdk_resize(struct blk *b, uint64_t size)
{
	struct vmdk *v = vmdk_of(b);
	struct vmdk_extent *e = &v->ext[v->nr_ext - 1];
	int r = -ENOTSUP;

	if (!size || size % SECTOR)
		return -EINVAL;
	if (size / SECTOR > VMDK_SECTORS_MAX)
		return -EFBIG;
	if (size == b->info.size)
		return 0;
	if (!v->desc_file || v->nr_ext != 1 || !e->writable)
		return -ENOTSUP; /* the pieces of a split disk have a size that is theirs */
	if (e->kind == KIND_FLAT)
		r = resize_flat(v, e, size);
	else if (e->kind == KIND_HOSTED)
		r = resize_sparse(v, e, size);
	if (r < 0)
		return r;
	e->len = size - e->start;
	blk_set_size(b, size);
	return 0;
}

/* ---- the parent ---- */

static int parent_cid_of(struct blk *b, const char *name, uint32_t *cid, struct error *err)
{
	struct blk *parent = NULL;
	int r = blk_ref_open(b, name, "vmdk", BLK_READONLY | BLK_NO_BACKING | BLK_NO_LOCK, &parent,
			     err);

	if (r < 0)
		return r;
	*cid = vmdk_of(parent)->desc.text ? vmdk_of(parent)->desc.cid : 0;
	blk_close(parent);
	return 0;
}

static bool has_flat(const struct vmdk *v)
{
	for (unsigned i = 0; i < v->nr_ext; i++)
		if (!vmdk_is_sparse(&v->ext[i]))
			return true;
	return false;
}

static int store_parent_cid(struct vmdk *v, uint32_t cid, struct error *err)
{
	char text[16];
	int r;

	snprintf(text, sizeof(text), "%08x", cid);
	r = vmdk_desc_set(&v->desc, "parentCID", text, false, "CID");
	if (r < 0)
		return err_errno(err, -r, "'%s'", v->b->path);
	r = vmdk_desc_store(v, err);
	if (!r)
		v->desc.parent_cid = cid;
	return r;
}

/* A layer that holds nothing fits its parent as that is now, whatever was written there meanwhile:
 * after a commit, this layer's own data. */
static int follow_parent(struct vmdk *v, struct error *err)
{
	const char *hint = v->desc.parent_hint;
	uint32_t cid;
	int r;

	if (!hint || v->desc.parent_cid == CID_NONE)
		return 0;
	if (parent_cid_of(v->b, hint, &cid, NULL) < 0 &&
	    parent_cid_of(v->b, vmdk_base_name(hint), &cid, NULL) < 0)
		return 0; /* opening this one will say that it is not there */
	if (cid == v->desc.parent_cid)
		return 0;
	pthread_mutex_lock(&v->desc_lock);
	r = store_parent_cid(v, cid, err);
	pthread_mutex_unlock(&v->desc_lock);
	return r;
}

/* What stands in the descriptor; the chain that is open stays as it is. */
int vmdk_change_backing(struct blk *b, const char *backing, const char *format, struct error *err)
{
	struct vmdk *v = vmdk_of(b);
	uint32_t cid = CID_NONE;
	int r = 0;

	if (!v->desc.text || has_flat(v))
		return err_set(err, ENOTSUP, "'%s': flat extents cannot stand on another disk",
			       b->path);
	if (backing && format && strcasecmp(format, "vmdk") != 0)
		return err_set(err, EINVAL, "a VMDK stands on a VMDK only, not on %s", format);
	if (backing && strpbrk(backing, "\"\r\n"))
		return err_set(err, EINVAL, "a descriptor cannot hold the name '%s'", backing);
	if (backing)
		r = parent_cid_of(b, backing, &cid, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&v->desc_lock);
	r = vmdk_desc_set(&v->desc, "parentFileNameHint", backing, true, "createType");
	if (r < 0)
		err_errno(err, -r, "'%s'", b->path);
	else
		r = store_parent_cid(v, cid, err);
	if (!r) {
		free(v->desc.parent_hint);
		v->desc.parent_hint = backing ? strdup(backing) : NULL;
	}
	pthread_mutex_unlock(&v->desc_lock);
	return r ? r : blk_flush(b->file);
}

/* ---- emptying ---- */

static int empty_extent(struct vmdk_extent *e)
{
	uint64_t nr = (e->capacity + e->grain - 1) / e->grain, end;
	struct vmdk_run run;
	int r = 0;

	for (uint64_t g = 0; g < nr && !r; g += run.count) {
		r = vmdk_lookup(e, g, MIN(nr - g, e->nr_gtes - g % e->nr_gtes), &run);
		if (!r && run.state != GRAIN_NONE)
			r = vmdk_enter(e, g, run.count, GRAIN_NONE, 0, GRAIN_BAD);
		if (!r && vmdk_tables_full(e))
			r = vmdk_tables_flush(e);
	}
	if (!r)
		r = vmdk_tables_flush(e);
	if (!r)
		r = vmdk_used_end(e, &end);
	if (r < 0 || e->kind == KIND_STREAM)
		return r;
	pthread_mutex_lock(&e->alloc_lock);
	e->next_free = MIN(e->next_free, ALIGN_UP(end, SECTOR));
	end = e->next_free;
	pthread_mutex_unlock(&e->alloc_lock);
	return blk_size(e->file) > end ? blk_resize(e->file, end) : 0;
}

int vmdk_make_empty(struct blk *b, struct error *err)
{
	struct vmdk *v = vmdk_of(b);
	int r = 0;

	if (has_flat(v))
		return err_set(err, ENOTSUP, "'%s': flat extents cannot be emptied", b->path);
	r = vmdk_touch(v);
	for (unsigned i = 0; i < v->nr_ext && !r; i++)
		r = v->ext[i].writable ? empty_extent(&v->ext[i]) : -EROFS;
	if (!r)
		r = b->fmt->flush(b);
	if (r < 0)
		return err_errno(err, -r, "'%s' cannot be emptied", b->path);
	r = follow_parent(v, err);
	return r ? r : b->fmt->flush(b);
}

/* ---- options ---- */

static const struct {
	const char *option, *key;
} amendable[] = {
	{"adapter_type", "ddb.adapterType"},
	{"hwversion", "ddb.virtualHWVersion"},
	{"toolsversion", "ddb.toolsVersion"},
};

static int amend_one(struct vmdk *v, const struct blk_kv *kv, struct error *err)
{
	if (strpbrk(kv->value, "\"\r\n"))
		return err_set(err, EINVAL, "%s cannot be '%s'", kv->key, kv->value);
	for (size_t i = 0; i < ARRAY_SIZE(amendable); i++)
		if (!strcmp(kv->key, amendable[i].option))
			return vmdk_desc_set(&v->desc, amendable[i].key, kv->value, true, NULL);
	return err_set(err, ENOTSUP, "'%s': %s of a VMDK cannot be changed afterwards", v->b->path,
		       kv->key);
}

int vmdk_amend(struct blk *b, const struct blk_kv *opt, unsigned n, struct error *err)
{
	struct vmdk *v = vmdk_of(b);
	int r = 0;

	if (!v->desc.text)
		return err_set(err, ENOTSUP, "'%s' has no descriptor", b->path);
	pthread_mutex_lock(&v->desc_lock);
	for (unsigned i = 0; i < n && !r; i++)
		r = amend_one(v, &opt[i], err);
	if (!r)
		r = vmdk_desc_store(v, err);
	pthread_mutex_unlock(&v->desc_lock);
	return r ? r : blk_flush(b->file);
}
