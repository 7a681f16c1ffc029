/* block/vhdx/create.c - making VHDX images. */
#include "block/vhdx/vhdx.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct blk_option vhdx_options[] = {
	{"subformat", "dynamic|fixed", "dynamic", "whether it has its space from the beginning"},
	{"block_size", "SIZE", "8M to 64M, by the size", "unit of allocation, 1M to 256M"},
	{"block_state_zero", "on|off", "on", "new blocks are said to be zeroes, not absent"},
	{"log_size", "SIZE", "1M", "of the log, whole MiB"},
	{"logical_sector_size", "512|4096", "512", "of the disk as a guest sees it"},
	{NULL},
};

enum { META_LEN = MiB, ITEMS_AT = META_TABLE_LEN, LOCATOR_AT = META_TABLE_LEN + 4096 };

struct vhdx_plan {
	struct vhdx v; /* log, bat, meta, flags, sector, chunk_ratio; grid.block_size, nr_blocks */
	uint64_t size, data, block, log;
	bool is_fixed, zero;
};

/* As large as keeps the table small. */
static uint64_t usual_block(uint64_t size)
{
	if (size > 32 * 1024 * GiB)
		return 64 * MiB;
	if (size > 100 * GiB)
		return 32 * MiB;
	return size > GiB ? 16 * MiB : 8 * MiB;
}

static int take_options(struct vhdx_plan *p, uint64_t size, const struct blk_kv *opt, unsigned n,
			struct error *err)
{
	const char *sub = blk_kv_get(opt, n, "subformat");
	uint64_t sector = 512;
	int r;

	r = blk_kv_size(opt, n, "block_size", usual_block(size), &p->block, err);
	if (!r)
		r = blk_kv_size(opt, n, "log_size", MiB, &p->log, err);
	if (!r)
		r = blk_kv_size(opt, n, "logical_sector_size", 512, &sector, err);
	if (!r)
		r = blk_kv_bool(opt, n, "block_state_zero", true, &p->zero, err);
	if (r < 0)
		return r;
	if (!p->block)
		p->block = usual_block(size);
	if (sub && strcmp(sub, "dynamic") && strcmp(sub, "fixed"))
		return err_set(err, EINVAL, "subformat=%s: a VHDX is dynamic or fixed", sub);
	p->is_fixed = sub && !strcmp(sub, "fixed");
	if (p->block < MiB || p->block > 256 * MiB || p->block & (p->block - 1))
		return err_set(err, EINVAL, "block_size: a power of two from 1M to 256M");
	if (!p->log || p->log % MiB || p->log > VHDX_MAX_LOG)
		return err_set(err, EINVAL, "log_size: whole MiB, 1M to 256M");
	if (sector != 512 && sector != 4096)
		return err_set(err, EINVAL, "logical_sector_size: 512 or 4096");
	p->v.sector = (uint32_t)sector;
	return 0;
}

static int plan(struct vhdx_plan *p, uint64_t size, bool has_parent, const struct blk_kv *opt,
		unsigned n, struct error *err)
{
	int r = take_options(p, size, opt, n, err);
	uint64_t entries;

	if (r < 0)
		return r;
	if (size > VHDX_MAX_SIZE)
		return err_set(err, EFBIG, "a VHDX holds at most 64 TiB");
	if (has_parent && p->is_fixed)
		return err_set(err, EINVAL, "a fixed VHDX cannot stand on another image");
	p->size = ALIGN_UP(size, p->v.sector);
	p->v.flags =
		(p->is_fixed ? PARAM_LEAVE_ALLOCATED : 0) | (has_parent ? PARAM_HAS_PARENT : 0);
	p->v.grid.block_size = (uint32_t)p->block;
	p->v.grid.nr_blocks = (p->size + p->block - 1) / p->block;
	p->v.chunk_ratio = (1ull << 23) * p->v.sector / p->block;
	entries = vhdx_bat_entries(p->v.grid.nr_blocks, p->v.chunk_ratio, has_parent);
	p->v.log = (struct vhdx_region){MiB, (uint32_t)p->log};
	p->v.meta = (struct vhdx_region){MiB + p->log, META_LEN};
	p->v.bat = (struct vhdx_region){p->v.meta.off + META_LEN,
					(uint32_t)ALIGN_UP(MAX(entries * 8, 1ull), MiB)};
	p->data = p->v.bat.off + p->v.bat.len;
	return 0;
}

/* ---- parts ---- */

static int write_heads(struct blk *file, const struct vhdx_plan *p)
{
	uint8_t *h = calloc(1, HEAD_LEN);
	int r = h ? 0 : -ENOMEM;

	if (r < 0)
		return r;
	memcpy(h, "head", 4);
	if (id_random(h + HEAD_FILE_WRITE) < 0 || id_random(h + HEAD_DATA_WRITE) < 0)
		r = -EIO;
	le16_store(h + HEAD_VERSION, 1);
	le32_store(h + HEAD_LOG_LENGTH, p->v.log.len);
	le64_store(h + HEAD_LOG_OFFSET, p->v.log.off);
	for (unsigned i = 0; i < 2 && !r; i++) {
		le64_store(h + HEAD_SEQUENCE, i + 1);
		vhdx_seal(h, HEAD_LEN);
		r = blk_write(file, h, HEAD_LEN, i ? VHDX_HEADER_2 : VHDX_HEADER_1);
	}
	free(h);
	return r;
}

static int write_regions(struct blk *file, const struct vhdx_plan *p)
{
	uint8_t *t = malloc(VHDX_REGION_LEN);
	int r = t ? 0 : -ENOMEM;

	if (t)
		vhdx_fill_regions(t, &p->v);
	if (!r)
		r = blk_write(file, t, VHDX_REGION_LEN, VHDX_REGIONS_1);
	if (!r)
		r = blk_write(file, t, VHDX_REGION_LEN, VHDX_REGIONS_2);
	free(t);
	return r;
}

static void add_item(uint8_t *t, const uint8_t *id, uint32_t at, uint32_t len, uint32_t flags)
{
	unsigned n = le16_load(t + META_COUNT);
	uint8_t *e = t + META_ENTRIES + n * META_ENTRY;

	memcpy(e, id, ID_LEN);
	le32_store(e + META_OFFSET, at);
	le32_store(e + META_LENGTH, len);
	le32_store(e + META_FLAGS, flags | META_IS_REQUIRED);
	le16_store(t + META_COUNT, (uint16_t)(n + 1));
}

static int write_metadata(struct blk *file, const struct vhdx_plan *p, const uint8_t *locator,
			  uint32_t locator_len)
{
	uint8_t *t = calloc(1, LOCATOR_AT), *item = t + ITEMS_AT;
	int r = t ? 0 : -ENOMEM;

	if (r < 0)
		return r;
	memcpy(t, "metadata", 8);
	add_item(t, vhdx_item_params, ITEMS_AT, 8, 0);
	add_item(t, vhdx_item_size, ITEMS_AT + 8, 8, META_IS_DISK);
	add_item(t, vhdx_item_disk_id, ITEMS_AT + 16, 16, META_IS_DISK);
	add_item(t, vhdx_item_sector, ITEMS_AT + 32, 4, META_IS_DISK);
	add_item(t, vhdx_item_physical, ITEMS_AT + 36, 4, META_IS_DISK);
	if (locator)
		add_item(t, vhdx_item_locator, LOCATOR_AT, locator_len, 0);
	le32_store(item, (uint32_t)p->block);
	le32_store(item + 4, p->v.flags);
	le64_store(item + 8, p->size);
	if (id_random(item + 16) < 0)
		r = -EIO;
	le32_store(item + 32, p->v.sector);
	le32_store(item + 36, 4096);
	if (!r)
		r = blk_write(file, t, LOCATOR_AT, p->v.meta.off);
	if (!r && locator)
		r = blk_write(file, locator, locator_len, p->v.meta.off + LOCATOR_AT);
	free(t);
	return r;
}

static int write_entry(struct blk *file, const struct vhdx_plan *p, uint8_t *page, uint64_t first)
{
	uint64_t ratio = p->v.chunk_ratio;
	bool any = false;

	memset(page, 0, TABLES_PAGE);
	for (uint64_t i = first; i < first + TABLES_PAGE / 8; i++) {
		uint64_t block = i - i / (ratio + 1);

		if (i % (ratio + 1) == ratio || block >= p->v.grid.nr_blocks)
			continue;
		any = true;
		le64_store(page + (i - first) * 8,
			   p->is_fixed ? (p->data + block * p->block) | BAT_PRESENT : BAT_ZERO);
	}
	return any ? blk_write(file, page, TABLES_PAGE, p->v.bat.off + first * 8) : 0;
}

static int write_table(struct blk *file, const struct vhdx_plan *p)
{
	uint8_t *page = malloc(TABLES_PAGE);
	bool says = p->is_fixed || (p->zero && !(p->v.flags & PARAM_HAS_PARENT));
	int r = page ? 0 : -ENOMEM;

	for (uint64_t i = 0; says && i * 8 < p->v.bat.len && !r; i += TABLES_PAGE / 8)
		r = write_entry(file, p, page, i);
	free(page);
	if (!r) /* all there is has its place in the file */
		r = blk_resize(file, p->data + (p->is_fixed ? p->v.grid.nr_blocks * p->block : 0));
	return r;
}

static int make_locator(const struct blk_create *c, const struct vhdx_plan *p, uint8_t *room,
			uint32_t *len, struct error *err)
{
	char *parent_path = parent_real_path(c), *own = realpath(c->path, NULL), *relative = NULL;
	struct blk *parent = NULL;
	int r = parent_open_new(c, "vhdx", &parent, err), n;

	if (!r && parent_path && own)
		relative = parent_relative(own, parent_path);
	if (!r && !relative)
		r = err_errno(err, ENOMEM, "'%s'", c->backing);
	if (!r && blk_size(parent) > p->size)
		r = err_set(err, EINVAL, "'%s' is larger than the new image", c->backing);
	if (!r && parent->info.block_size != p->v.sector)
		r = err_set(err, EINVAL, "'%s' has other sectors than the new image (%u bytes)",
			    c->backing, parent->info.block_size);
	if (!r) {
		n = vhdx_make_locator(room, LOCATOR_MAX, parent, parent_path, relative);
		r = n < 0 ? err_set(err, ENAMETOOLONG, "'%s': too long a name", c->backing) : 0;
		*len = (uint32_t)MAX(n, 0);
	}
	blk_close(parent);
	free(parent_path);
	free(own);
	free(relative);
	return r;
}

static int write_all(const struct blk_create *c, struct blk *file, const struct vhdx_plan *p,
		     const uint8_t *locator, uint32_t locator_len, struct error *err)
{
	uint8_t id[16] = "vhdxfile";
	int r;

	utf8_to_utf16("hv", true, id + 8, 8);
	r = blk_write(file, id, sizeof(id), 0);
	if (!r)
		r = write_heads(file, p);
	if (!r)
		r = write_regions(file, p);
	if (!r)
		r = write_metadata(file, p, locator, locator_len);
	if (!r)
		r = write_table(file, p);
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", c->path) : 0;
}

int vhdx_create(const struct blk_create *c, struct error *err)
{
	struct vhdx_plan *p = calloc(1, sizeof(*p));
	uint8_t *locator = c->backing ? calloc(1, LOCATOR_MAX) : NULL;
	struct blk *file = NULL;
	uint32_t len = 0;
	int r = p && (locator || !c->backing) ? 0 : err_errno(err, ENOMEM, "'%s'", c->path);

	if (!r)
		r = plan(p, c->size, c->backing, c->opt, c->nr_opts, err);
	if (!r)
		r = blk_create_file(c, c->path, &file, err);
	if (!r && c->backing)
		r = make_locator(c, p, locator, &len, err);
	if (!r)
		r = write_all(c, file, p, locator, len, err);
	blk_close(file);
	free(locator);
	free(p);
	return r;
}

int vhdx_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err)
{
	struct vhdx_plan *p = calloc(1, sizeof(*p));
	int r = p ? plan(p, m->size, false, opt, n, err) : err_errno(err, ENOMEM, "measure");

	if (!r) {
		m->fully_allocated = p->data + p->v.grid.nr_blocks * p->block;
		m->required = p->is_fixed ? m->fully_allocated
					  : p->data + MIN(ALIGN_UP(m->data, p->block),
							  p->v.grid.nr_blocks * p->block);
	}
	free(p);
	return r;
}
