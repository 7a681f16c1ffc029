/* block/vhdx/header.c - the two headers and the two region tables.
 *
 * A header is changed by writing the other one with a greater number; whichever of the two is whole
 * and later is the header. */
#include "block/vhdx/vhdx.h"

#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// clang-format off
const uint8_t vhdx_bat_region[ID_LEN] = { /* 2DC27766-F623-4200-9D64-115E9BFD4A08 */
	0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08};
const uint8_t vhdx_meta_region[ID_LEN] = { /* 8B7CA206-4790-4B9A-B8FE-575F050F886E */
	0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e};
// clang-format on

/* ---- checksums ---- */

static uint32_t crc_table[256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void make_crc_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (unsigned k = 0; k < 8; k++)
			c = c >> 1 ^ (c & 1 ? 0x82f63b78 : 0); /* Castagnoli */
		crc_table[i] = c;
	}
}

uint32_t vhdx_crc(const void *data, size_t len)
{
	const uint8_t *p = data;
	uint32_t c = ~0u;

	pthread_once(&crc_once, make_crc_table);
	while (len--)
		c = crc_table[(c ^ *p++) & 0xff] ^ c >> 8;
	return ~c;
}

void vhdx_seal(uint8_t *p, size_t len)
{
	le32_store(p + HEAD_CHECKSUM, 0);
	le32_store(p + HEAD_CHECKSUM, vhdx_crc(p, len));
}

bool vhdx_sealed(const uint8_t *p, size_t len, const char *signature)
{
	static const uint8_t none[4];
	uint32_t stored = le32_load(p + HEAD_CHECKSUM), c = ~0u;

	if (memcmp(p, signature, 4))
		return false;
	pthread_once(&crc_once, make_crc_table);
	for (size_t i = 0; i < len; i++) {
		uint8_t byte = i >= 4 && i < 8 ? none[i - 4] : p[i];

		c = crc_table[(c ^ byte) & 0xff] ^ c >> 8;
	}
	return stored == ~c;
}

/* ---- headers ---- */

static bool load_one_head(struct blk *file, uint64_t at, uint8_t *head)
{
	return blk_read(file, head, HEAD_LEN, at) == 0 && vhdx_sealed(head, HEAD_LEN, "head") &&
	       le16_load(head + HEAD_VERSION) == 1;
}

int vhdx_read_head(struct blk *file, uint8_t *head, unsigned *place, bool *other_bad)
{
	uint8_t *second = malloc(HEAD_LEN);
	bool one, two;

	if (!second)
		return -ENOMEM;
	one = load_one_head(file, VHDX_HEADER_1, head);
	two = load_one_head(file, VHDX_HEADER_2, second);
	*other_bad = !one || !two;
	*place = two &&
		 (!one || le64_load(second + HEAD_SEQUENCE) > le64_load(head + HEAD_SEQUENCE));
	if (*place)
		memcpy(head, second, HEAD_LEN);
	free(second);
	return one || two ? 0 : -EINVAL;
}

static int check_log_place(struct blk *b, struct vhdx *v, struct error *err)
{
	v->log.off = le64_load(v->head + HEAD_LOG_OFFSET);
	v->log.len = le32_load(v->head + HEAD_LOG_LENGTH);
	if (le16_load(v->head + HEAD_LOG_VERSION) != 0)
		return err_set(err, ENOTSUP, "'%s': log version %u is not known", blk_path(b),
			       le16_load(v->head + HEAD_LOG_VERSION));
	if (v->log.off % MiB || v->log.len % MiB || v->log.off < MiB || !v->log.len ||
	    !range_inside(v->log.off, v->log.len, blk_size(b->file)))
		return err_set(err, EINVAL,
			       "'%s': its log is said to be at %" PRIu64
			       ", %u bytes, where it cannot be: damaged",
			       blk_path(b), v->log.off, v->log.len);
	if (v->log.len > VHDX_MAX_LOG)
		return err_set(err, EINVAL, "'%s': a log of %u bytes; at most 256 MiB are read",
			       blk_path(b), v->log.len);
	return 0;
}

int vhdx_load_head(struct blk *b, struct vhdx *v, struct error *err)
{
	uint8_t id[8];
	int r = blk_read(b->file, id, sizeof(id), 0);

	if (r < 0 || memcmp(id, "vhdxfile", 8))
		return err_set(err, EINVAL, "'%s' is not a VHDX image", blk_path(b));
	r = vhdx_read_head(b->file, v->head, &v->head_place, &v->other_head_bad);
	if (r == -EINVAL)
		return err_set(err, EINVAL,
			       "'%s': neither of its headers has a good checksum: damaged",
			       blk_path(b));
	if (r < 0)
		return err_errno(err, -r, "cannot read '%s'", blk_path(b));
	return check_log_place(b, v, err);
}

int vhdx_write_head(struct vhdx *v)
{
	unsigned place = !v->head_place;
	int r;

	le64_store(v->head + HEAD_SEQUENCE, le64_load(v->head + HEAD_SEQUENCE) + 1);
	vhdx_seal(v->head, HEAD_LEN);
	r = blk_write(v->file, v->head, HEAD_LEN, place ? VHDX_HEADER_2 : VHDX_HEADER_1);
	if (!r)
		r = blk_flush(v->file);
	if (!r)
		v->head_place = place;
	return r;
}

/* ---- regions ---- */

static int check_region(struct blk *b, uint64_t size, const struct vhdx_region *r, const char *name,
			struct error *err)
{
	if (r->len && r->off % MiB == 0 && r->len % MiB == 0 && r->off >= MiB &&
	    range_inside(r->off, r->len, size))
		return 0;
	return err_set(err, EINVAL,
		       "'%s': its %s is said to be at %" PRIu64 ", %u bytes, where it cannot be: "
		       "damaged",
		       blk_path(b), name, r->off, r->len);
}

static int take_region(struct blk *b, struct vhdx *v, const uint8_t *e, struct error *err)
{
	struct vhdx_region r = {le64_load(e + REGION_OFFSET), le32_load(e + REGION_LENGTH)}, *to;
	char id[ID_TEXT];

	if (!memcmp(e, vhdx_bat_region, ID_LEN)) {
		to = &v->bat;
	} else if (!memcmp(e, vhdx_meta_region, ID_LEN)) {
		to = &v->meta;
	} else if (le32_load(e + REGION_REQUIRED) & 1) {
		id_text(e, true, id);
		return err_set(err, ENOTSUP, "'%s' needs the region {%s}, which is not known",
			       blk_path(b), id);
	} else {
		return 0;
	}
	if (to->len)
		return err_set(err, EINVAL, "'%s': a region is there twice: damaged", blk_path(b));
	*to = r;
	return check_region(b, blk_size(v->file), to, to == &v->bat ? "block table" : "metadata",
			    err);
}

static bool overlap(const struct vhdx_region *a, const struct vhdx_region *b)
{
	return a->off < b->off + b->len && b->off < a->off + a->len;
}

static int parse_regions(struct blk *b, struct vhdx *v, const uint8_t *t, struct error *err)
{
	uint32_t n = le32_load(t + REGIONS_COUNT);
	int r = 0;

	if (n > REGIONS_MAX)
		return err_set(err, EINVAL, "'%s': %u regions; at most %d can be", blk_path(b), n,
			       REGIONS_MAX);
	for (uint32_t i = 0; i < n && !r; i++)
		r = take_region(b, v, t + REGIONS_ENTRIES + i * REGION_ENTRY, err);
	if (r < 0)
		return r;
	if (!v->bat.len || !v->meta.len)
		return err_set(err, EINVAL, "'%s': it has no %s: damaged", blk_path(b),
			       v->bat.len ? "metadata" : "block table");
	if (overlap(&v->bat, &v->meta) || overlap(&v->bat, &v->log) || overlap(&v->meta, &v->log))
		return err_set(err, EINVAL, "'%s': its regions overlap: damaged", blk_path(b));
	return 0;
}

int vhdx_load_regions(struct blk *b, struct vhdx *v, struct error *err)
{
	uint8_t *t = malloc(2 * VHDX_REGION_LEN), *second = t + VHDX_REGION_LEN;
	bool one, two;
	int r;

	if (!t)
		return err_errno(err, ENOMEM, "'%s'", blk_path(b));
	one = blk_read(v->file, t, VHDX_REGION_LEN, VHDX_REGIONS_1) == 0 &&
	      vhdx_sealed(t, VHDX_REGION_LEN, "regi");
	two = blk_read(v->file, second, VHDX_REGION_LEN, VHDX_REGIONS_2) == 0 &&
	      vhdx_sealed(second, VHDX_REGION_LEN, "regi");
	v->regions_differ = !one || !two || memcmp(t, second, VHDX_REGION_LEN);
	if (one || two)
		r = parse_regions(b, v, one ? t : second, err);
	else
		r = err_set(err, EINVAL,
			    "'%s': neither of its region tables has a good checksum: damaged",
			    blk_path(b));
	free(t);
	return r;
}

static void put_region(uint8_t *e, const uint8_t *id, const struct vhdx_region *r)
{
	memcpy(e, id, ID_LEN);
	le64_store(e + REGION_OFFSET, r->off);
	le32_store(e + REGION_LENGTH, r->len);
	le32_store(e + REGION_REQUIRED, 1);
}

void vhdx_fill_regions(uint8_t *t, const struct vhdx *v)
{
	memset(t, 0, VHDX_REGION_LEN);
	memcpy(t, "regi", 4);
	le32_store(t + REGIONS_COUNT, 2);
	put_region(t + REGIONS_ENTRIES, vhdx_bat_region, &v->bat);
	put_region(t + REGIONS_ENTRIES + REGION_ENTRY, vhdx_meta_region, &v->meta);
	vhdx_seal(t, VHDX_REGION_LEN);
}

/* One after the other: each is whole while the other is written. */
int vhdx_write_regions(struct vhdx *v)
{
	uint8_t *t = malloc(VHDX_REGION_LEN);
	int r = t ? blk_flush(v->file) : -ENOMEM;

	if (t)
		vhdx_fill_regions(t, v);
	if (!r)
		r = blk_write(v->file, t, VHDX_REGION_LEN, VHDX_REGIONS_1);
	if (!r)
		r = blk_flush(v->file);
	if (!r)
		r = blk_write(v->file, t, VHDX_REGION_LEN, VHDX_REGIONS_2);
	if (!r)
		r = blk_flush(v->file);
	v->regions_differ &= r < 0;
	free(t);
	return r;
}
