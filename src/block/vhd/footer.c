/* block/vhd/footer.c - the footer at the end, its copy at the beginning, and the dynamic header. */
#include "block/vhd/vhd.h"

#include "base/error.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static struct log_component log_vhd = LOG_COMPONENT("vhd");

/* ---- checksums ---- */

/* "Checksum": one's complement of the sum of all bytes without the field itself. */
uint32_t vhd_checksum(const uint8_t *p, size_t len, unsigned field)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += i >= field && i < field + 4 ? 0 : p[i];
	return ~sum;
}

void vhd_seal(uint8_t *p, size_t len, unsigned field)
{
	be32_store(p + field, vhd_checksum(p, len, field));
}

bool vhd_footer_good(const uint8_t *f)
{
	return !memcmp(f, "conectix", 8) &&
	       be32_load(f + FOOTER_CHECKSUM) == vhd_checksum(f, FOOTER_LEN, FOOTER_CHECKSUM);
}

/* ---- geometry ---- */

uint64_t vhd_geometry_size(const uint8_t *f)
{
	return 512ull * be16_load(f + FOOTER_CYLINDERS) * f[FOOTER_HEADS] * f[FOOTER_TRACK];
}

/* Appendix "CHS Calculation". */
void vhd_set_geometry(uint8_t *f, uint64_t size)
{
	uint64_t sectors = MIN(size / 512, VHD_MAX_CHS), tracks;
	unsigned per_track, heads;

	if (sectors >= 65535ull * 16 * 63) {
		per_track = 255;
		heads = 16;
	} else {
		per_track = 17;
		heads = MAX((unsigned)((sectors / 17 + 1023) / 1024), 4u);
		if (sectors / 17 >= heads * 1024ull || heads > 16) {
			per_track = 31;
			heads = 16;
		}
		if (per_track == 31 && sectors / 31 >= 16 * 1024)
			per_track = 63;
	}
	tracks = sectors / per_track;
	be16_store(f + FOOTER_CYLINDERS, (uint16_t)(tracks / heads));
	f[FOOTER_HEADS] = (uint8_t)heads;
	f[FOOTER_TRACK] = (uint8_t)per_track;
}

/* Virtual PC sees as much as the geometry says; Hyper-V and those after it what the size field
 * says.  Who made the image tells which was meant; the largest geometry there is says nothing. */
bool vhd_uses_geometry(const uint8_t *f)
{
	static const char by_size[][5] = {"win ", "qem2", "d2v ", "tap\0", "CTXS"};

	if (vhd_geometry_size(f) == 512 * VHD_MAX_CHS)
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(by_size); i++)
		if (!memcmp(f + FOOTER_CREATOR, by_size[i], 4))
			return false;
	return true;
}

/* ---- loading ---- */

static int refuse(struct blk *b, struct error *err, const char *what, uint64_t value)
{
	return err_set(err, EINVAL, "'%s': %s %" PRIu64 ", which no VHD has: it is damaged",
		       blk_path(b), what, value);
}

/* 0, or with BLK_RECOVER a warning and 0. */
static int bad_checksum(struct blk *b, const char *what, const uint8_t *p, size_t len,
			unsigned field, struct error *err)
{
	uint32_t stored = be32_load(p + field), computed = vhd_checksum(p, len, field);

	if (stored == computed)
		return 0;
	if (!(b->flags & BLK_RECOVER))
		return err_set(err, EINVAL,
			       "'%s': the checksum of its %s is wrong (%#x, should be %#x): "
			       "damaged; opening it for recovery may still read it",
			       blk_path(b), what, stored, computed);
	log_warn(&log_vhd, "%s: the checksum of its %s is wrong (%#x, should be %#x)", blk_path(b),
		 what, stored, computed);
	b->flags |= BLK_READONLY;
	b->info.corrupt = true;
	return 0;
}

/* The end is where the footer belongs; the copy at the beginning, which a fixed disk has not, is
 * for when something happened to it. */
static int choose_footer(struct blk *b, struct vhd *v, const uint8_t *head, const uint8_t *tail,
			 struct error *err)
{
	bool has_copy = !memcmp(head, "conectix", 8);
	const uint8_t *from = tail;

	v->end_bad = !vhd_footer_good(tail);
	v->copy_bad = !vhd_footer_good(head);
	if (v->end_bad && (!v->copy_bad || (has_copy && memcmp(tail, "conectix", 8))))
		from = head;
	memcpy(v->footer, from, FOOTER_LEN);
	if (memcmp(from, "conectix", 8))
		return err_set(err, EINVAL, "'%s' is not a VHD: no footer at its end", blk_path(b));
	return bad_checksum(b, "footer", from, FOOTER_LEN, FOOTER_CHECKSUM, err);
}

static int check_footer(struct blk *b, struct vhd *v, struct error *err)
{
	const uint8_t *f = v->footer;
	uint64_t size = be64_load(f + FOOTER_SIZE);

	v->type = be32_load(f + FOOTER_TYPE);
	if (be32_load(f + FOOTER_VERSION) >> 16 != VHD_1_0 >> 16)
		return refuse(b, err, "version", be32_load(f + FOOTER_VERSION) >> 16);
	if (v->type < VHD_FIXED || v->type > VHD_DIFFERENCING)
		return refuse(b, err, "disk type", v->type);
	v->use_geometry = vhd_uses_geometry(f);
	if (v->use_geometry)
		size = vhd_geometry_size(f);
	size = ALIGN_DOWN(size, 512);
	if (size > VHD_MAX_SIZE)
		return refuse(b, err, "a size above 2040 GiB:", size);
	if (v->type == VHD_FIXED && size > blk_size(b->file) - FOOTER_LEN)
		return err_set(err, EINVAL, "'%s' is shorter than its disk: it is damaged",
			       blk_path(b));
	b->info.size = size;
	return 0;
}

int vhd_load_footer(struct blk *b, struct vhd *v, struct error *err)
{
	uint64_t size = blk_size(b->file);
	uint8_t head[FOOTER_LEN], tail[FOOTER_LEN];
	int r;

	if (size < FOOTER_LEN)
		return err_set(err, EINVAL, "'%s' is too short for a VHD", blk_path(b));
	r = blk_read(b->file, head, FOOTER_LEN, 0);
	if (!r)
		r = blk_read(b->file, tail, FOOTER_LEN, size - FOOTER_LEN);
	if (r < 0)
		return err_errno(err, -r, "cannot read '%s'", blk_path(b));
	r = choose_footer(b, v, head, tail, err);
	if (r < 0)
		return r;
	v->footer_at = v->end_bad || (size % 512 && be32_load(v->footer + FOOTER_TYPE) != VHD_FIXED)
			       ? ALIGN_UP(size, 512)
			       : size - FOOTER_LEN;
	v->copy_bad |= memcmp(head, v->footer, FOOTER_LEN);
	return check_footer(b, v, err);
}

static int check_header(struct blk *b, const struct vhd *v, struct error *err)
{
	const uint8_t *h = v->header;
	uint64_t table = be64_load(h + HEADER_TABLE), entries = be32_load(h + HEADER_ENTRIES);
	uint64_t block = be32_load(h + HEADER_BLOCK), file = blk_size(b->file);

	if (be32_load(h + HEADER_VERSION) >> 16 != VHD_1_0 >> 16)
		return refuse(b, err, "header version", be32_load(h + HEADER_VERSION) >> 16);
	if (block < 512 || block & (block - 1))
		return refuse(b, err, "a block size of", block);
	if (entries > VHD_MAX_ENTRIES)
		return refuse(b, err, "a number of table entries of", entries);
	if (entries * block < b->info.size)
		return refuse(b, err, "fewer blocks than the disk needs:", entries);
	if (table % 512 || !range_inside(table, entries * 4, file))
		return refuse(b, err, "a table outside the file, at", table);
	return 0;
}

int vhd_load_header(struct blk *b, struct vhd *v, struct error *err)
{
	uint64_t at = be64_load(v->footer + FOOTER_DATA);
	int r;

	if (at % 512 || !range_inside(at, HEADER_LEN, blk_size(b->file)))
		return refuse(b, err, "a header outside the file, at", at);
	r = blk_read(b->file, v->header, HEADER_LEN, at);
	if (r < 0)
		return err_errno(err, -r, "cannot read '%s'", blk_path(b));
	if (memcmp(v->header, "cxsparse", 8))
		return err_set(err, EINVAL, "'%s' has no dynamic header: it is damaged",
			       blk_path(b));
	r = bad_checksum(b, "dynamic header", v->header, HEADER_LEN, HEADER_CHECKSUM, err);
	return r < 0 ? r : check_header(b, v, err);
}

int vhd_write_footers(struct vhd *v)
{
	struct blk *file = v->grid.file;
	int r = blk_flush(file);

	vhd_seal(v->footer, FOOTER_LEN, FOOTER_CHECKSUM);
	if (!r)
		r = blk_write(file, v->footer, FOOTER_LEN, 0);
	if (!r)
		r = blk_flush(file);
	if (!r)
		r = blk_write(file, v->footer, FOOTER_LEN, v->footer_at);
	return r < 0 ? r : blk_flush(file);
}
