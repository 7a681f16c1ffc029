/* block/vhd/create.c - making VHDs. */
#include "block/vhd/vhd.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const struct blk_option vhd_options[] = {
	{"subformat", "dynamic|fixed", "dynamic", "whether it has its space from the beginning"},
	{"force_size", "on|off", "on",
	 "exactly the size asked for; off: rounded up to a geometry, for Virtual PC"},
	{NULL},
};

struct vhd_plan {
	uint64_t size, entries, table, names, data;
	bool is_fixed, exact;
};

/* The next size that a geometry can say. */
static uint64_t round_to_geometry(uint64_t size)
{
	uint8_t footer[FOOTER_LEN] = {0};

	for (uint64_t s = size; s <= 512 * VHD_MAX_CHS; s += 512) {
		vhd_set_geometry(footer, s);
		if (vhd_geometry_size(footer) >= size)
			return vhd_geometry_size(footer);
	}
	return size;
}

static int plan(struct vhd_plan *p, uint64_t size, const struct blk_kv *opt, unsigned n,
		struct error *err)
{
	const char *sub = blk_kv_get(opt, n, "subformat");
	int r = blk_kv_bool(opt, n, "force_size", true, &p->exact, err);

	if (r < 0)
		return r;
	if (sub && strcmp(sub, "dynamic") && strcmp(sub, "fixed"))
		return err_set(err, EINVAL, "subformat=%s: a VHD is dynamic or fixed", sub);
	p->is_fixed = sub && !strcmp(sub, "fixed");
	size = ALIGN_UP(size, 512);
	p->size = p->exact ? size : round_to_geometry(size);
	if (p->size > VHD_MAX_SIZE)
		return err_set(err, EFBIG, "a VHD holds at most 2040 GiB; VHDX holds more");
	p->entries = (p->size + VHD_BLOCK_SIZE - 1) / VHD_BLOCK_SIZE;
	p->table = FOOTER_LEN + HEADER_LEN;
	p->names = ALIGN_UP(p->table + p->entries * 4, 512);
	p->data = p->names;
	return 0;
}

static int fill_footer(uint8_t *f, const struct vhd_plan *p, uint32_t type)
{
	memcpy(f, "conectix", 8);
	be32_store(f + FOOTER_FEATURES, 2); /* a bit that is always set */
	be32_store(f + FOOTER_VERSION, VHD_1_0);
	be64_store(f + FOOTER_DATA, type == VHD_FIXED ? UINT64_MAX : FOOTER_LEN);
	be32_store(f + FOOTER_TIME, (uint32_t)(time(NULL) - 946684800));
	/* Readers decide by this which of the two sizes counts: footer.c. */
	memcpy(f + FOOTER_CREATOR, p->exact ? "win " : "hv  ", 4);
	be32_store(f + FOOTER_CREATOR_VERSION, 0x000a0000);
	memcpy(f + FOOTER_CREATOR_OS, "Wi2k", 4);
	be64_store(f + FOOTER_FIRST_SIZE, p->size);
	be64_store(f + FOOTER_SIZE, p->size);
	vhd_set_geometry(f, p->size);
	be32_store(f + FOOTER_TYPE, type);
	if (id_random(f + FOOTER_ID) < 0)
		return -EIO;
	vhd_seal(f, FOOTER_LEN, FOOTER_CHECKSUM);
	return 0;
}

static void fill_header(uint8_t *h, const struct vhd_plan *p)
{
	memcpy(h, "cxsparse", 8);
	be64_store(h + HEADER_NEXT, UINT64_MAX);
	be64_store(h + HEADER_TABLE, p->table);
	be32_store(h + HEADER_VERSION, VHD_1_0);
	be32_store(h + HEADER_ENTRIES, (uint32_t)p->entries);
	be32_store(h + HEADER_BLOCK, (uint32_t)VHD_BLOCK_SIZE);
}

static int write_table(struct blk *file, const struct vhd_plan *p)
{
	uint8_t none[TABLES_PAGE];
	uint64_t len = ALIGN_UP(p->entries * 4, 512);
	int r = 0;

	memset(none, 0xff, sizeof(none));
	for (uint64_t at = 0; at < len && !r; at += sizeof(none))
		r = blk_write(file, none, MIN(sizeof(none), len - at), p->table + at);
	return r;
}

static int name_parent(const struct blk_create *c, struct vhd_plan *p, uint8_t *header,
		       uint8_t *names, struct error *err)
{
	char *parent_path = parent_real_path(c), *own = realpath(c->path, NULL), *relative = NULL;
	struct blk *parent = NULL;
	int r = parent_open_new(c, "vpc", &parent, err);

	if (!r && parent_path && own)
		relative = parent_relative(own, parent_path);
	if (!r && !relative)
		r = err_errno(err, ENOMEM, "'%s'", c->backing);
	if (!r && blk_size(parent) > p->size)
		r = err_set(err, EINVAL, "'%s' is larger than the new image", c->backing);
	if (!r)
		r = vhd_name_parent(header, names, p->names, parent, parent_path, relative, err);
	blk_close(parent);
	free(parent_path);
	free(own);
	free(relative);
	return r;
}

static int write_dynamic(const struct blk_create *c, struct blk *file, struct vhd_plan *p,
			 struct error *err)
{
	uint8_t header[HEADER_LEN] = {0}, footer[FOOTER_LEN] = {0};
	uint8_t *names = c->backing ? malloc(VHD_NAMES_LEN) : NULL;
	int r = c->backing && !names ? err_errno(err, ENOMEM, "'%s'", c->path) : 0;

	fill_header(header, p);
	if (!r && c->backing) {
		p->data += VHD_NAMES_LEN;
		r = name_parent(c, p, header, names, err);
	}
	if (r < 0) {
		free(names);
		return r;
	}
	vhd_seal(header, HEADER_LEN, HEADER_CHECKSUM);
	r = fill_footer(footer, p, c->backing ? VHD_DIFFERENCING : VHD_DYNAMIC);
	if (!r)
		r = blk_write(file, header, HEADER_LEN, FOOTER_LEN);
	if (!r)
		r = write_table(file, p);
	if (!r && c->backing)
		r = blk_write(file, names, VHD_NAMES_LEN, p->names);
	if (!r)
		r = blk_write(file, footer, FOOTER_LEN, 0);
	if (!r)
		r = blk_write(file, footer, FOOTER_LEN, p->data);
	free(names);
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", c->path) : 0;
}

static int write_fixed(const struct blk_create *c, struct blk *file, const struct vhd_plan *p,
		       struct error *err)
{
	uint8_t footer[FOOTER_LEN] = {0};
	int r;

	if (c->backing)
		return err_set(err, EINVAL, "a fixed VHD cannot stand on another image");
	r = fill_footer(footer, p, VHD_FIXED);
	if (!r)
		r = blk_write(file, footer, FOOTER_LEN, p->size);
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", c->path) : 0;
}

int vhd_create(const struct blk_create *c, struct error *err)
{
	struct blk *file = NULL;
	struct vhd_plan p;
	int r = plan(&p, c->size, c->opt, c->nr_opts, err);

	if (!r)
		r = blk_create_file(c, c->path, &file, err);
	if (r < 0)
		return r;
	r = p.is_fixed ? write_fixed(c, file, &p, err) : write_dynamic(c, file, &p, err);
	blk_close(file);
	return r;
}

int vhd_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err)
{
	struct vhd_plan p;
	int r = plan(&p, m->size, opt, n, err);

	if (r < 0)
		return r;
	m->fully_allocated = p.is_fixed ? p.size + FOOTER_LEN
					: p.data + p.entries * (VHD_BLOCK_SIZE + 512) + FOOTER_LEN;
	m->required = p.is_fixed ? m->fully_allocated
				 : p.data + FOOTER_LEN +
					   MIN((m->data + VHD_BLOCK_SIZE - 1) / VHD_BLOCK_SIZE,
					       p.entries) *
						   (VHD_BLOCK_SIZE + 512);
	return 0;
}
