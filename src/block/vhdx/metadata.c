/* block/vhdx/metadata.c - the items that say what kind of disk it is. */
#include "block/vhdx/vhdx.h"

#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

// clang-format off
const uint8_t vhdx_item_params[ID_LEN] = { /* CAA16737-FA36-4D43-B3B6-33F0AA44E76B */
	0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b};
const uint8_t vhdx_item_size[ID_LEN] = { /* 2FA54224-CD1B-4876-B211-5DBED83BF4B8 */
	0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8};
const uint8_t vhdx_item_disk_id[ID_LEN] = { /* BECA12AB-B2E6-4523-93EF-C309E000C746 */
	0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46};
const uint8_t vhdx_item_sector[ID_LEN] = { /* 8141BF1D-A96F-4709-BA47-F233A8FAAB5F */
	0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f};
const uint8_t vhdx_item_physical[ID_LEN] = { /* CDA348C7-445D-4471-9CC9-E9885251C556 */
	0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56};
const uint8_t vhdx_item_locator[ID_LEN] = { /* A8D35F2D-B30B-454D-ABF7-D3D84834AB0C */
	0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c};
// clang-format on

struct items {
	struct blk *b;
	struct vhdx *v;
	bool params, size, sector;
	uint32_t block_size;
	uint64_t disk_size;
};

static int load(struct items *k, const uint8_t *e, void *to, uint32_t len, struct error *err)
{
	if (le32_load(e + META_LENGTH) != len)
		return err_set(err, EINVAL, "'%s': a metadata item has %u bytes, not %u: damaged",
			       blk_path(k->b), le32_load(e + META_LENGTH), len);
	if (blk_read(k->v->file, to, len, k->v->meta.off + le32_load(e + META_OFFSET)) < 0)
		return err_set(err, EIO, "'%s': its metadata cannot be read", blk_path(k->b));
	return 0;
}

static int take_params(struct items *k, const uint8_t *e, struct error *err)
{
	uint8_t p[8];
	int r = load(k, e, p, sizeof(p), err);

	if (r < 0)
		return r;
	k->block_size = le32_load(p);
	k->v->flags = le32_load(p + 4);
	k->params = true;
	return 0;
}

static int take_size(struct items *k, const uint8_t *e, struct error *err)
{
	uint8_t p[8];
	int r = load(k, e, p, sizeof(p), err);

	if (r < 0)
		return r;
	k->disk_size = le64_load(p);
	k->v->size_at = k->v->meta.off + le32_load(e + META_OFFSET);
	k->size = true;
	return 0;
}

static int take_sector(struct items *k, const uint8_t *e, uint32_t *to, struct error *err)
{
	uint8_t p[4];
	int r = load(k, e, p, sizeof(p), err);

	if (r < 0)
		return r;
	*to = le32_load(p);
	k->sector |= to == &k->v->sector;
	if (*to != 512 && *to != 4096)
		return err_set(err, EINVAL, "'%s': sectors of %u bytes; only 512 and 4096 can be",
			       blk_path(k->b), *to);
	return 0;
}

static int take_item(struct items *k, const uint8_t *e, struct error *err)
{
	uint32_t off = le32_load(e + META_OFFSET), len = le32_load(e + META_LENGTH);
	struct vhdx *v = k->v;
	char id[ID_TEXT];

	if (len && (off < META_TABLE_LEN || !range_inside(off, len, v->meta.len)))
		return err_set(err, EINVAL,
			       "'%s': a metadata item lies outside its region: damaged",
			       blk_path(k->b));
	if (le32_load(e + META_FLAGS) & META_IS_USER)
		return 0;
	if (!memcmp(e, vhdx_item_params, ID_LEN))
		return take_params(k, e, err);
	if (!memcmp(e, vhdx_item_size, ID_LEN))
		return take_size(k, e, err);
	if (!memcmp(e, vhdx_item_sector, ID_LEN))
		return take_sector(k, e, &v->sector, err);
	if (!memcmp(e, vhdx_item_physical, ID_LEN))
		return take_sector(k, e, &v->physical_sector, err);
	if (!memcmp(e, vhdx_item_disk_id, ID_LEN))
		return load(k, e, v->disk_id, ID_LEN, err);
	if (!memcmp(e, vhdx_item_locator, ID_LEN)) {
		v->locator_at = v->meta.off + off;
		v->locator_len = len;
		return 0;
	}
	if (!(le32_load(e + META_FLAGS) & META_IS_REQUIRED))
		return 0;
	id_text(e, true, id);
	return err_set(err, ENOTSUP, "'%s' needs the metadata item {%s}, which is not known",
		       blk_path(k->b), id);
}

/* 2.5: all payload entries, with one for a sector bitmap after each chunk's; a disk without a
 * parent has none after the last chunk. */
uint64_t vhdx_bat_entries(uint64_t blocks, uint64_t ratio, bool has_parent)
{
	uint64_t chunks = (blocks + ratio - 1) / ratio;

	if (!blocks)
		return 0;
	return has_parent ? chunks * (ratio + 1) : blocks + (blocks - 1) / ratio;
}

static int check_items(struct items *k, struct error *err)
{
	const struct vhdx *v = k->v;
	const char *path = blk_path(k->b);
	uint32_t bs = k->block_size;

	if (!k->params || !k->size || !k->sector)
		return err_set(err, EINVAL, "'%s': metadata that every VHDX has are missing", path);
	if (bs < MiB || bs > 256 * MiB || bs & (bs - 1))
		return err_set(err, EINVAL, "'%s': blocks of %u bytes; 1 to 256 MiB can be", path,
			       bs);
	if (k->disk_size > VHDX_MAX_SIZE)
		return err_set(err, EINVAL, "'%s': a disk of %" PRIu64 " bytes; 64 TiB is the most",
			       path, k->disk_size);
	if (k->disk_size % v->sector)
		return err_set(err, EINVAL, "'%s': a disk of %" PRIu64 " bytes is no whole sectors",
			       path, k->disk_size);
	if (v->flags & PARAM_HAS_PARENT && !v->locator_at)
		return err_set(err, EINVAL, "'%s' has a parent but does not name it: damaged",
			       path);
	return 0;
}

static void fill_in(struct items *k)
{
	struct vhdx *v = k->v;
	struct grid *g = &v->grid;

	g->block_size = k->block_size;
	g->nr_blocks = (k->disk_size + k->block_size - 1) / k->block_size;
	g->units_per_block = (uint32_t)(k->block_size / MiB);
	g->sector = v->sector;
	g->layered = g->parts = v->flags & PARAM_HAS_PARENT;
	g->keep = v->flags & PARAM_LEAVE_ALLOCATED;
	v->chunk_ratio = (1ull << 23) * v->sector / k->block_size;
	k->b->info.size = k->disk_size;
	k->b->info.block_size = v->sector;
	k->b->info.cluster = k->block_size;
}

static int parse(struct items *k, const uint8_t *t, struct error *err)
{
	unsigned n = le16_load(t + META_COUNT);
	int r = 0;

	if (memcmp(t, "metadata", 8) || n > META_MAX)
		return err_set(err, EINVAL, "'%s': its metadata table is damaged", blk_path(k->b));
	for (unsigned i = 0; i < n && !r; i++)
		r = take_item(k, t + META_ENTRIES + i * META_ENTRY, err);
	if (!r)
		r = check_items(k, err);
	if (r < 0)
		return r;
	fill_in(k);
	if (vhdx_bat_entries(k->v->grid.nr_blocks, k->v->chunk_ratio, k->v->grid.layered) * 8 >
	    k->v->bat.len)
		return err_set(err, EINVAL,
			       "'%s': its block table is too short for the disk: damaged",
			       blk_path(k->b));
	return 0;
}

int vhdx_load_metadata(struct blk *b, struct vhdx *v, struct error *err)
{
	struct items k = {.b = b, .v = v};
	uint8_t *t = malloc(META_TABLE_LEN);
	int r;

	if (!t)
		return err_errno(err, ENOMEM, "'%s'", blk_path(b));
	r = blk_read(v->file, t, META_TABLE_LEN, v->meta.off);
	if (r < 0)
		r = err_errno(err, -r, "cannot read '%s'", blk_path(b));
	else
		r = parse(&k, t, err);
	free(t);
	return r;
}
