/* block/vdi/create.c - making VDI images, and giving them another parent. */
#include "block/vdi/vdi.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct blk_option vdi_options[] = {
	{"static", "on|off", "off", "all blocks have their place from the beginning"},
	{"preallocation", "off|metadata", "off", "metadata: the same as static=on"},
	{NULL},
};

struct vdi_plan {
	uint64_t size, blocks, data;
	bool is_static;
};

static int plan(struct vdi_plan *p, uint64_t size, const struct blk_kv *opt, unsigned n,
		struct error *err)
{
	const char *pre = blk_kv_get(opt, n, "preallocation");
	int r = blk_kv_bool(opt, n, "static", false, &p->is_static, err);

	if (r < 0)
		return r;
	if (pre && strcmp(pre, "off") && strcmp(pre, "metadata"))
		return err_set(err, EINVAL, "preallocation=%s: a VDI image takes off or metadata",
			       pre);
	p->is_static |= pre && !strcmp(pre, "metadata");
	if (size > VDI_MAX_BLOCKS * VDI_BLOCK_SIZE)
		return err_set(
			err, EFBIG, "a VDI image holds at most %llu TiB",
			(unsigned long long)(VDI_MAX_BLOCKS * VDI_BLOCK_SIZE / (1024 * GiB)));
	p->size = ALIGN_UP(size, 512);
	p->blocks = ALIGN_UP(p->size, VDI_BLOCK_SIZE) / VDI_BLOCK_SIZE;
	/* VirtualBox puts data on a boundary of 1 MiB, which is good for the file system too. */
	p->data = ALIGN_UP(VDI_HEADER + p->blocks * 4, VDI_BLOCK_SIZE);
	return 0;
}

static int fill_header(uint8_t *h, const struct vdi_plan *p)
{
	static const char text[] = "<<< Trivisor virtual disk image >>>\n";

	memcpy(h, text, sizeof(text) - 1);
	le32_store(h + VDI_SIGNATURE, VDI_MAGIC);
	le32_store(h + VDI_VERSION, VDI_1_1);
	le32_store(h + VDI_HEADER_SIZE, 0x190);
	le32_store(h + VDI_TYPE, p->is_static ? VDI_STATIC : VDI_DYNAMIC);
	le32_store(h + VDI_MAP, VDI_HEADER);
	le32_store(h + VDI_DATA, (uint32_t)p->data);
	le32_store(h + VDI_SECTOR, 512);
	le64_store(h + VDI_SIZE, p->size);
	le32_store(h + VDI_BLOCK, (uint32_t)VDI_BLOCK_SIZE);
	le32_store(h + VDI_BLOCKS, (uint32_t)p->blocks);
	le32_store(h + VDI_ALLOCATED, p->is_static ? (uint32_t)p->blocks : 0);
	if (id_random(h + VDI_ID) < 0 || id_random(h + VDI_CHANGE_ID) < 0)
		return -EIO;
	return 0;
}

/* Who it stands on, and which state of that one. */
static int name_parent(uint8_t *h, const struct blk *parent)
{
	const struct vdi *v = parent->priv;

	le32_store(h + VDI_TYPE, VDI_DIFFERENCING);
	memcpy(h + VDI_PARENT_ID, v->header + VDI_ID, ID_LEN);
	memcpy(h + VDI_PARENT_CHANGE_ID, v->header + VDI_CHANGE_ID, ID_LEN);
	return 0;
}

static int add_parent(const struct blk_create *c, uint8_t *h, const struct vdi_plan *p,
		      struct error *err)
{
	struct blk *parent = NULL;
	int r;

	if (p->is_static)
		return err_set(err, EINVAL, "a static VDI image cannot stand on another one");
	r = parent_open_new(c, "vdi", &parent, err);
	if (r < 0)
		return r;
	if (blk_size(parent) > p->size)
		r = err_set(err, EINVAL, "'%s' is larger than the new image", c->backing);
	else
		r = name_parent(h, parent);
	blk_close(parent);
	return r;
}

static int write_map(struct blk *file, const struct vdi_plan *p)
{
	uint64_t len = p->data - VDI_HEADER, step = 256 * KiB;
	uint8_t *buf = malloc(step);
	int r = buf ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < len && !r; at += step) {
		for (uint64_t i = 0; buf && i < step / 4; i++) {
			uint64_t block = at / 4 + i;
			bool there = p->is_static && block < p->blocks;

			le32_store(buf + 4 * i, there ? (uint32_t)block : VDI_NONE);
		}
		r = blk_write(file, buf, MIN(step, len - at), VDI_HEADER + at);
	}
	free(buf);
	if (!r && p->is_static)
		r = blk_resize(file, p->data + p->blocks * VDI_BLOCK_SIZE);
	return r;
}

int vdi_create(const struct blk_create *c, struct error *err)
{
	uint8_t header[VDI_HEADER] = {0};
	struct blk *file = NULL;
	struct vdi_plan p;
	int r;

	r = plan(&p, c->size, c->opt, c->nr_opts, err);
	if (!r && fill_header(header, &p) < 0)
		r = err_set(err, EIO, "'%s': there are no random numbers", c->path);
	if (!r && c->backing)
		r = add_parent(c, header, &p, err);
	if (!r)
		r = blk_create_file(c, c->path, &file, err);
	if (r < 0)
		return r;
	r = write_map(file, &p);
	if (!r)
		r = blk_write(file, header, VDI_HEADER, 0);
	blk_close(file);
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", c->path) : 0;
}

int vdi_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err)
{
	struct vdi_plan p;
	int r = plan(&p, m->size, opt, n, err);

	if (r < 0)
		return r;
	m->fully_allocated = p.data + p.blocks * VDI_BLOCK_SIZE;
	m->required = p.is_static ? m->fully_allocated
				  : p.data + MIN(ALIGN_UP(m->data, VDI_BLOCK_SIZE),
						 p.blocks * VDI_BLOCK_SIZE);
	return 0;
}

int vdi_change_backing(struct blk *b, const char *backing, const char *format, struct error *err)
{
	struct vdi *v = b->priv;
	struct blk *parent = NULL;
	uint8_t old[VDI_HEADER];
	int r = 0;

	if (v->type == VDI_STATIC)
		return err_set(err, EINVAL, "'%s' is static: it cannot stand on another image",
			       blk_path(b));
	if (backing && (!format || strcmp(format, "vdi")))
		return err_set(err, EINVAL, "a VDI image can only stand on another one");
	if (backing)
		r = blk_ref_open(b, backing, "vdi", BLK_READONLY | BLK_NO_BACKING, &parent, err);
	if (r < 0)
		return r;
	memcpy(old, v->header, sizeof(old));
	memset(v->header + VDI_PARENT_ID, 0, 2 * ID_LEN);
	le32_store(v->header + VDI_TYPE, VDI_DYNAMIC);
	if (parent)
		name_parent(v->header, parent);
	blk_close(parent);
	r = grid_commit(&v->grid);
	if (!r)
		r = vdi_write_header(v);
	if (!r)
		r = blk_flush(v->grid.file);
	if (r < 0) {
		memcpy(v->header, old, sizeof(old));
		return err_errno(err, -r, "cannot write '%s'", blk_path(b));
	}
	v->type = vdi_field(v, VDI_TYPE);
	v->grid.layered = vdi_is_child(v);
	return 0;
}
