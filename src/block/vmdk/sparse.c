/* block/vmdk/sparse.c - opening sparse extents: headers and grain directories of the hosted kind
 * (KDMV, also stream-optimised), COWD and seSparse.
 *
 * Everything read here is hostile: each field is checked against the limits in vmdk.h and against
 * the file's size before anything is allocated or read by it. */
#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/vmdk/vmdk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Hosted header (VDF "Hosted Sparse Extents"), little-endian, packed. */
enum {
	H_MAGIC = 0x00,
	H_VERSION = 0x04,
	H_FLAGS = 0x08,
	H_CAPACITY = 0x0c, /* u64 sectors, as all to H_OVERHEAD but H_NR_GTES */
	H_GRAIN = 0x14,
	H_DESC_OFF = 0x1c,
	H_DESC_SIZE = 0x24,
	H_NR_GTES = 0x2c, /* u32 */
	H_RGD = 0x30,
	H_GD = 0x38,
	H_OVERHEAD = 0x40,
	H_UNCLEAN = 0x48, /* u8 */
	H_NEWLINES = 0x49,
	H_COMPRESSION = 0x4d, /* u16 */
};

enum {
	FLAG_NEWLINES = 1 << 0,
	FLAG_RGD = 1 << 1,
	FLAG_ZERO_GRAINS = 1 << 2,
	FLAG_COMPRESSED = 1 << 16,
	FLAG_MARKERS = 1 << 17,
};

enum { HOSTED_GTES_MAX = 512, COWD_GTES = 4096, COWD_HEADER = 2048, COWD_UNCLEAN = 1648 };
enum { SE_GRAIN_SECTORS = 8, SE_GT_SECTORS = 64, FOOTER_SEARCH = 128 };

#define GD_AT_END   VMDK_GD_AT_END
#define SE_MAGIC    0x00000000cafebabeull
#define SE_VERSION  0x0000000200000001ull
#define SE_VOLATILE 0x00000000cafecafeull

static const char newlines[4] = {'\n', ' ', '\r', '\n'};

static struct log_component log_vmdk = LOG_COMPONENT("vmdk");

bool vmdk_is_sparse(const struct vmdk_extent *e)
{
	return e->kind != KIND_FLAT && e->kind != KIND_ZERO;
}

uint32_t vmdk_nr_tables(uint64_t capacity, uint64_t grain, uint32_t nr_gtes)
{
	uint64_t per = grain * nr_gtes, n = capacity / per + (capacity % per != 0);

	return n > VMDK_GD_MAX ? 0 : (uint32_t)n;
}

static uint64_t file_size(const struct vmdk_extent *e)
{
	return blk_size(e->file);
}

/* ---- the grain directories ---- */

static bool read_se_entry(uint64_t v, uint32_t *out)
{
	*out = v ? (uint32_t)v + 1 : 0;
	return !v || (v >> 32 == 0x10000000 && (uint32_t)v != UINT32_MAX);
}

/* Numbers of tables must lie in their region; sectors are checked when a table is read, because a
 * copy may stand in for it. */
static int convert_directory(const struct vmdk_extent *e, const uint8_t *raw, uint32_t *gd,
			     struct error *err)
{
	for (uint32_t i = 0; i < e->nr_gd; i++) {
		if (e->kind != KIND_SESPARSE)
			gd[i] = le32_load(raw + i * 4ull);
		else if (!read_se_entry(le64_load(raw + i * 8ull), &gd[i]) ||
			 gd[i] * e->gt_bytes > e->tables_len)
			return err_set(err, EINVAL, "'%s': entry %u of the grain directory is bad",
				       e->name, i);
	}
	return 0;
}

static int read_directory(const struct vmdk_extent *e, uint64_t off, uint32_t **out,
			  struct error *err)
{
	uint64_t len = (uint64_t)e->nr_gd * e->gte_size;
	uint8_t *raw;
	uint32_t *gd;
	int r;

	if (!range_inside(off, len, file_size(e)))
		return err_set(err, EINVAL,
			       "'%s': the grain directory (%llu bytes at %llu) lies outside of the "
			       "file",
			       e->name, (unsigned long long)len, (unsigned long long)off);
	raw = malloc(len + 1);
	gd = calloc(e->nr_gd + 1ull, sizeof(*gd));
	r = raw && gd ? blk_read(e->file, raw, len, off) : -ENOMEM;
	if (r < 0)
		err_errno(err, -r, "'%s': the grain directory cannot be read", e->name);
	else
		r = convert_directory(e, raw, gd, err);
	free(raw);
	if (r < 0)
		free(gd);
	else
		*out = gd;
	return r;
}

/* Without the first directory the second does alone. */
static int read_directories(struct vmdk_extent *e, struct error *err)
{
	int r = read_directory(e, e->gd_off, &e->gd, err);

	if (e->rgd_off && read_directory(e, e->rgd_off, &e->rgd, NULL) < 0) {
		log_warn(&log_vmdk, "%s: the redundant grain directory cannot be read", e->name);
		e->rgd_off = 0;
	}
	if (r < 0 && e->rgd) {
		log_warn(&log_vmdk, "%s: the grain directory cannot be read; its copy is used",
			 e->name);
		e->gd = e->rgd;
		e->gd_off = e->rgd_off;
		e->rgd = NULL;
		e->rgd_off = 0;
		r = 0;
	}
	return r;
}

/* ---- hosted ---- */

static int check_grains(const struct vmdk_extent *e, uint64_t sectors, uint64_t capacity,
			struct error *err)
{
	if (!sectors || sectors & (sectors - 1) || sectors > VMDK_GRAIN_MAX / SECTOR)
		return err_set(
			err, EINVAL,
			"'%s': a grain of %llu sectors; it must be a power of two up to %llu",
			e->name, (unsigned long long)sectors,
			(unsigned long long)(VMDK_GRAIN_MAX / SECTOR));
	if (capacity > VMDK_SECTORS_MAX)
		return err_set(err, EFBIG,
			       "'%s': a disk of %llu sectors is too large (at most %llu)", e->name,
			       (unsigned long long)capacity, (unsigned long long)VMDK_SECTORS_MAX);
	return 0;
}

static int set_size(struct vmdk_extent *e, uint64_t sectors, uint64_t grain, uint32_t nr_gtes,
		    uint32_t gte_size, struct error *err)
{
	e->capacity = sectors * SECTOR;
	e->grain = grain * SECTOR;
	e->nr_gtes = nr_gtes;
	e->gte_size = gte_size;
	e->gt_bytes = ALIGN_UP((uint64_t)nr_gtes * gte_size, SECTOR);
	e->nr_gd = vmdk_nr_tables(e->capacity, e->grain, nr_gtes);
	if (!e->nr_gd && e->capacity)
		return err_set(err, EFBIG,
			       "'%s': the grain directory of a disk with %llu sectors would have "
			       "more than %u entries",
			       e->name, (unsigned long long)sectors, VMDK_GD_MAX);
	return 0;
}

static int hosted_flags(struct vmdk_extent *e, const uint8_t *h, bool recover, struct error *err)
{
	uint16_t method = le16_load(h + H_COMPRESSION);

	e->zero_grains = e->flags & FLAG_ZERO_GRAINS;
	e->unclean = h[H_UNCLEAN];
	if (!recover && e->flags & FLAG_NEWLINES &&
	    memcmp(h + H_NEWLINES, newlines, sizeof(newlines)) != 0)
		return err_set(err, EINVAL,
			       "'%s' was transferred as text, which destroys it (its line-end "
			       "check does not match); copy it again in binary mode",
			       e->name);
	if (!(e->flags & FLAG_COMPRESSED))
		return 0;
	if (method != 1 || !(e->flags & FLAG_MARKERS))
		return err_set(err, ENOTSUP, "'%s': compression method %u%s is not known", e->name,
			       method, e->flags & FLAG_MARKERS ? "" : " without markers");
	if (e->grain > VMDK_PACKED_GRAIN_MAX)
		return err_set(err, EFBIG, "'%s': compressed grains of %llu bytes are too large",
			       e->name, (unsigned long long)e->grain);
	e->kind = KIND_STREAM;
	return 0;
}

static uint64_t sectors_at(const uint8_t *h, unsigned field)
{
	uint64_t n = le64_load(h + field);

	return n > VMDK_SECTORS_MAX ? GD_AT_END : n * SECTOR;
}

static int hosted_fields(struct vmdk_extent *e, const uint8_t *h, bool recover, struct error *err)
{
	uint64_t capacity = le64_load(h + H_CAPACITY), grain = le64_load(h + H_GRAIN);
	uint32_t nr_gtes = le32_load(h + H_NR_GTES);
	int r;

	e->version = le32_load(h + H_VERSION);
	e->flags = le32_load(h + H_FLAGS);
	if (e->version < 1 || e->version > 3)
		return err_set(err, ENOTSUP, "'%s': VMDK version %u; this build reads 1 to 3",
			       e->name, e->version);
	r = check_grains(e, grain, capacity, err);
	if (!r && (!nr_gtes || nr_gtes > HOSTED_GTES_MAX))
		r = err_set(err, EINVAL, "'%s': %u entries in a grain table; it must be 1 to %u",
			    e->name, nr_gtes, HOSTED_GTES_MAX);
	if (!r)
		r = set_size(e, capacity, grain, nr_gtes, 4, err);
	if (!r)
		r = hosted_flags(e, h, recover, err);
	e->gd_off = sectors_at(h, H_GD);
	e->rgd_off = e->flags & FLAG_RGD ? sectors_at(h, H_RGD) : 0;
	e->overhead = sectors_at(h, H_OVERHEAD);
	return r;
}

static int hosted_descriptor(struct vmdk_extent *e, const uint8_t *h, struct error *err)
{
	uint64_t off = le64_load(h + H_DESC_OFF), len = le64_load(h + H_DESC_SIZE);

	if (!off || !len)
		return 0;
	if (len > VMDK_DESC_MAX / SECTOR)
		return err_set(err, EFBIG, "'%s': a descriptor of %llu sectors is too large",
			       e->name, (unsigned long long)len);
	if (off > VMDK_SECTORS_MAX || !range_inside(off * SECTOR, len * SECTOR, file_size(e)))
		return err_set(err, EINVAL, "'%s': the descriptor lies outside of the file",
			       e->name);
	e->desc_off = off * SECTOR;
	e->desc_room = len * SECTOR;
	return 0;
}

/* The footer is the sector before the last (VDF "Stream-Optimized Compressed Sparse Extents"), but
 * some programs fill the file up behind it. */
static bool find_footer(struct vmdk_extent *e, uint8_t footer[SECTOR])
{
	uint64_t end = ALIGN_DOWN(file_size(e), SECTOR) / SECTOR;

	for (uint64_t n = 2; n < FOOTER_SEARCH && n < end; n++) {
		if (blk_read(e->file, footer, SECTOR, (end - n) * SECTOR) < 0)
			return false;
		if (!memcmp(footer, "KDMV", 4) && le64_load(footer + H_GD) != GD_AT_END &&
		    le64_load(footer + H_GD))
			return true;
	}
	return false;
}

static int stream_directories(struct vmdk_extent *e, bool recover, struct error *err)
{
	struct vmdk_extent saved;
	uint8_t footer[SECTOR];
	bool at_end = e->gd_off == GD_AT_END || !e->gd_off;
	int r;

	e->header_has_gd = !at_end;
	saved = *e;
	if (!at_end || find_footer(e, footer)) {
		r = at_end ? hosted_fields(e, footer, recover, err) : 0;
		if (!r && e->kind != KIND_STREAM)
			r = -EINVAL;
		if (!r)
			r = read_directories(e, NULL);
		if (!r)
			return 0;
		*e = saved;
	}
	e->gd_off = e->rgd_off = 0;
	e->gd = calloc(e->nr_gd + 1ull, sizeof(*e->gd));
	if (!e->gd)
		return err_errno(err, ENOMEM, "'%s'", e->name);
	e->rebuilt = true;
	return 0;
}

static int open_hosted(struct vmdk *v, struct vmdk_extent *e, struct error *err)
{
	bool recover = v->b->flags & BLK_RECOVER;
	uint8_t h[SECTOR];
	int r;

	if (file_size(e) < SECTOR || blk_read(e->file, h, SECTOR, 0) < 0)
		return err_set(err, EINVAL, "'%s' is too short for a VMDK header", e->name);
	if (memcmp(h, "KDMV", 4) != 0)
		return err_set(err, EINVAL, "'%s' is no hosted sparse extent (no KDMV)", e->name);
	r = hosted_fields(e, h, recover, err);
	if (!r)
		r = hosted_descriptor(e, h, err);
	if (r < 0)
		return r;
	e->align = e->grain <= 64 * KiB && e->overhead != GD_AT_END && e->kind == KIND_HOSTED &&
		   e->overhead % e->grain == 0;
	if (e->kind == KIND_STREAM)
		return stream_directories(e, recover, err);
	return read_directories(e, err);
}

void vmdk_hosted_header(const struct vmdk_extent *e, bool redundant, uint64_t gd_sector,
			uint8_t h[SECTOR])
{
	memset(h, 0, SECTOR);
	memcpy(h, "KDMV", 4);
	le32_store(h + H_VERSION, e->version);
	le32_store(h + H_FLAGS, redundant ? e->flags : e->flags & ~(uint32_t)FLAG_RGD);
	le64_store(h + H_CAPACITY, e->capacity / SECTOR);
	le64_store(h + H_GRAIN, e->grain / SECTOR);
	le64_store(h + H_DESC_OFF, e->desc_off / SECTOR);
	le64_store(h + H_DESC_SIZE, e->desc_room / SECTOR);
	le32_store(h + H_NR_GTES, e->nr_gtes);
	le64_store(h + H_RGD, redundant ? e->rgd_off / SECTOR : 0);
	le64_store(h + H_GD, gd_sector);
	le64_store(h + H_OVERHEAD, e->overhead / SECTOR);
	h[H_UNCLEAN] = e->unclean;
	memcpy(h + H_NEWLINES, newlines, sizeof(newlines));
	le16_store(h + H_COMPRESSION, e->flags & FLAG_COMPRESSED ? 1 : 0);
}

int vmdk_mark_clean(struct vmdk_extent *e, bool clean)
{
	uint8_t mark[4] = {!clean};
	bool hosted = e->kind == KIND_HOSTED;
	int r = 0;

	if ((!hosted && e->kind != KIND_COWD) || e->marked_unclean == !clean)
		return 0;
	if (!clean || !e->unclean) /* what was wrong before is for blk_check to settle */
		r = blk_write(e->file, mark, hosted ? 1 : 4, hosted ? H_UNCLEAN : COWD_UNCLEAN);
	if (!r)
		e->marked_unclean = !clean;
	return r;
}

/* ---- COWD ---- */

static int open_cowd(struct vmdk_extent *e, struct error *err)
{
	uint8_t h[COWD_HEADER];
	uint32_t nr;
	int r;

	if (file_size(e) < sizeof(h) || blk_read(e->file, h, sizeof(h), 0) < 0)
		return err_set(err, EINVAL, "'%s' is too short for a COWD header", e->name);
	if (memcmp(h, "COWD", 4) != 0)
		return err_set(err, EINVAL, "'%s' is no vmfsSparse extent (no COWD)", e->name);
	e->version = le32_load(h + 4);
	e->flags = le32_load(h + 8);
	if (e->version != 1)
		return err_set(err, ENOTSUP, "'%s': COWD version %u; this build reads 1", e->name,
			       e->version);
	r = check_grains(e, le32_load(h + 16), le32_load(h + 12), err);
	if (!r)
		r = set_size(e, le32_load(h + 12), le32_load(h + 16), COWD_GTES, 4, err);
	if (r < 0)
		return r;
	nr = le32_load(h + 24);
	if (nr < e->nr_gd)
		return err_set(err, EINVAL,
			       "'%s': a grain directory of %u entries is too short for the disk; "
			       "it needs %u",
			       e->name, nr, e->nr_gd);
	e->gd_off = (uint64_t)le32_load(h + 20) * SECTOR;
	e->overhead = e->gd_off + ALIGN_UP(nr * 4ull, SECTOR);
	e->unclean = le32_load(h + COWD_UNCLEAN);
	return read_directories(e, err);
}

/* ---- seSparse ---- */

/* Sector fields of the constant header, and which of them we need. */
enum {
	SE_CAPACITY = 0x10,
	SE_GRAIN = 0x18,
	SE_GT = 0x20,
	SE_FLAGS = 0x28,
	SE_VOLATILE_OFF = 0x50,
	SE_GD_OFF = 0x80,
	SE_GD_LEN = 0x88,
	SE_TABLES_OFF = 0x90,
	SE_TABLES_LEN = 0x98,
	SE_BITMAP_LEN = 0xa8,
	SE_BACKMAP_LEN = 0xb8,
	SE_GRAINS_OFF = 0xc0,
};

static int se_region(const struct vmdk_extent *e, const uint8_t *h, unsigned field, uint64_t *out,
		     struct error *err)
{
	uint64_t n = le64_load(h + field);

	if (n > VMDK_SECTORS_MAX)
		return err_set(err, EINVAL, "'%s': field %#x of the header is out of range",
			       e->name, field);
	*out = n * SECTOR;
	return 0;
}

static int se_check(const struct vmdk_extent *e, const uint8_t *h, struct error *err)
{
	if (le64_load(h + 8) != SE_VERSION)
		return err_set(err, ENOTSUP, "'%s': seSparse version %#llx is not known", e->name,
			       (unsigned long long)le64_load(h + 8));
	if (le64_load(h + SE_GRAIN) != SE_GRAIN_SECTORS || le64_load(h + SE_GT) != SE_GT_SECTORS)
		return err_set(
			err, ENOTSUP,
			"'%s': seSparse with grains of %llu and tables of %llu sectors; only "
			"8 and 64 are known",
			e->name, (unsigned long long)le64_load(h + SE_GRAIN),
			(unsigned long long)le64_load(h + SE_GT));
	if (le64_load(h + SE_FLAGS))
		return err_set(err, ENOTSUP, "'%s': seSparse flags %#llx are not known", e->name,
			       (unsigned long long)le64_load(h + SE_FLAGS));
	return check_grains(e, SE_GRAIN_SECTORS, le64_load(h + SE_CAPACITY), err);
}

/* ESXi keeps a journal, a map of free grains and a map back from grains to the disk, in ways that
 * are not published: we write only extents that have none of these. */
static int se_may_write(const struct vmdk_extent *e, const uint8_t *h, struct error *err)
{
	if (!le64_load(h + SE_BITMAP_LEN) && !le64_load(h + SE_BACKMAP_LEN))
		return 0;
	return err_set(err, EROFS,
		       "'%s': seSparse extents made by ESXi can only be read; open it read-only or "
		       "put an overlay on it",
		       e->name);
}

static int se_volatile(struct vmdk *v, struct vmdk_extent *e, struct error *err)
{
	uint8_t h[SECTOR];
	uint64_t magic;

	if (blk_read(e->file, h, SECTOR, e->volatile_off) < 0)
		return err_set(err, EINVAL, "'%s': the volatile header lies outside of the file",
			       e->name);
	magic = le64_load(h);
	if (magic != SE_VOLATILE && magic != SE_MAGIC)
		return err_set(err, EINVAL, "'%s': the volatile header is damaged", e->name);
	if (!le64_load(h + 0x18))
		return 0;
	e->unclean = true;
	if (!(v->b->flags & BLK_READONLY))
		return err_set(err, EROFS,
			       "'%s' was not closed by ESXi: its journal waits to be replayed "
			       "there; open it read-only",
			       e->name);
	log_warn(&log_vmdk,
		 "%s: was not closed by ESXi and its journal is not replayed: the newest writes "
		 "may be missing",
		 e->name);
	return 0;
}

static int se_layout(struct vmdk_extent *e, const uint8_t *h, struct error *err)
{
	uint64_t gd_len = 0;
	int r = se_region(e, h, SE_VOLATILE_OFF, &e->volatile_off, err);

	if (!r)
		r = se_region(e, h, SE_GD_OFF, &e->gd_off, err);
	if (!r)
		r = se_region(e, h, SE_GD_LEN, &gd_len, err);
	if (!r)
		r = se_region(e, h, SE_TABLES_OFF, &e->tables_off, err);
	if (!r)
		r = se_region(e, h, SE_TABLES_LEN, &e->tables_len, err);
	if (!r)
		r = se_region(e, h, SE_GRAINS_OFF, &e->grains_off, err);
	if (!r && (uint64_t)e->nr_gd * 8 > gd_len)
		r = err_set(err, EINVAL, "'%s': the grain directory is too short for the disk",
			    e->name);
	e->overhead = e->grains_off;
	return r;
}

static int open_sesparse(struct vmdk *v, struct vmdk_extent *e, struct error *err)
{
	uint8_t h[SECTOR];
	int r;

	if (file_size(e) < SECTOR || blk_read(e->file, h, SECTOR, 0) < 0)
		return err_set(err, EINVAL, "'%s' is too short for a seSparse header", e->name);
	if (le64_load(h) != SE_MAGIC)
		return err_set(err, EINVAL, "'%s' is no seSparse extent", e->name);
	r = se_check(e, h, err);
	if (!r)
		r = set_size(e, le64_load(h + SE_CAPACITY), SE_GRAIN_SECTORS,
			     SE_GT_SECTORS * SECTOR / 8, 8, err);
	if (!r)
		r = se_layout(e, h, err);
	if (!r && e->writable)
		r = se_may_write(e, h, err);
	if (!r)
		r = se_volatile(v, e, err);
	if (!r)
		r = read_directories(e, err);
	e->zero_grains = true;
	return r;
}

/* ---- all ---- */

static int open_kind(struct vmdk *v, struct vmdk_extent *e, struct error *err)
{
	switch (e->kind) {
	case KIND_HOSTED:
	case KIND_STREAM:
		return open_hosted(v, e, err);
	case KIND_COWD:
		return open_cowd(e, err);
	default:
		return open_sesparse(v, e, err);
	}
}

/* The end of what tables and directories lead to. */
int vmdk_used_end(struct vmdk_extent *e, uint64_t *end)
{
	uint64_t nr = (e->capacity + e->grain - 1) / e->grain;
	struct vmdk_run run;
	int r = 0;

	*end = MAX(e->overhead, SECTOR);
	for (uint32_t i = 0; i < e->nr_gd && e->kind != KIND_SESPARSE; i++) {
		*end = MAX(*end, vmdk_table_offset(e, i, false) + e->gt_bytes);
		*end = MAX(*end, vmdk_table_offset(e, i, true) + e->gt_bytes);
	}
	for (uint64_t g = 0; g < nr && !r; g += run.count) {
		r = vmdk_lookup(e, g, nr - g, &run);
		if (!r && run.state == GRAIN_DATA)
			*end = MAX(*end, run.off + run.count * e->grain);
	}
	return r;
}

static bool copies_differ(struct vmdk_extent *e, uint32_t index, uint8_t *a, uint8_t *b)
{
	uint64_t off = vmdk_table_offset(e, index, false), copy = vmdk_table_offset(e, index, true);

	return off && copy && off != copy && blk_read(e->file, a, e->gt_bytes, off) == 0 &&
	       blk_read(e->file, b, e->gt_bytes, copy) == 0 && memcmp(a, b, e->gt_bytes) != 0;
}

/* A cut between the writes of a table and its copy: before the space that only the copy knows is
 * given out again, both must say the same. */
static int mend_copies(struct vmdk_extent *e)
{
	uint8_t *a = malloc(e->gt_bytes), *b = malloc(e->gt_bytes);
	int r = a && b ? 0 : -ENOMEM;

	for (uint32_t i = 0; e->rgd && i < e->nr_gd && !r; i++) {
		if (copies_differ(e, i, a, b))
			r = vmdk_rewrite(e, i);
		if (!r && vmdk_tables_full(e))
			r = vmdk_tables_flush(e);
	}
	free(a);
	free(b);
	return r;
}

/* A stream-optimised image without data: its tail holds nothing and is written over. */
static bool stream_is_empty(const struct vmdk_extent *e)
{
	for (uint32_t i = 0; i < e->nr_gd; i++)
		if (e->gd[i])
			return false;
	return e->overhead >= SECTOR && e->overhead <= file_size(e);
}

/* After a crash the end of the file can be space that was given out for nothing: use it again. */
static int place_next_free(struct vmdk_extent *e, struct error *err)
{
	uint64_t end;
	int r;

	e->next_free = MAX(ALIGN_UP(file_size(e), SECTOR),
			   e->kind == KIND_SESPARSE ? e->grains_off : (uint64_t)SECTOR);
	if (e->kind == KIND_STREAM && stream_is_empty(e)) {
		e->next_free = e->overhead;
		e->stale_end = e->overhead < file_size(e);
	}
	if (!e->unclean || !e->writable || e->kind == KIND_STREAM)
		return 0;
	log_warn(&log_vmdk, "%s: was not closed cleanly; a check may find unused space", e->name);
	r = mend_copies(e);
	if (!r)
		r = vmdk_used_end(e, &end);
	if (r < 0)
		return err_errno(err, -r, "'%s': its grain tables cannot be read", e->name);
	e->next_free = MIN(e->next_free, ALIGN_UP(end, SECTOR));
	return 0;
}

int vmdk_sparse_open(struct vmdk *v, struct vmdk_extent *e, struct error *err)
{
	int r;

	e->gd_dirty_lo = UINT32_MAX;
	r = open_kind(v, e, err);
	if (r < 0)
		goto free_gd;
	atomic_store(&e->file_end, file_size(e));
	r = vmdk_tables_init(e);
	if (r < 0) {
		err_errno(err, -r, "'%s'", e->name);
		goto free_gd;
	}
	r = place_next_free(e, err); /* from here on vmdk_sparse_close cleans up */
	if (!r && e->rebuilt)
		r = vmdk_stream_rebuild(e, err);
	return r;

free_gd:
	free(e->gd);
	free(e->rgd);
	e->gd = e->rgd = NULL;
	return r;
}

void vmdk_sparse_close(struct vmdk_extent *e)
{
	if (!e->gt) {
		free(e->gd);
		free(e->rgd);
		return;
	}
	for (unsigned i = 0; i < e->nr_unpacked; i++)
		free(e->unpacked[i].data);
	free(e->unpacked);
	vmdk_tables_fini(e);
}
