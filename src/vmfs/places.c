/* vmfs/places.c - where on a disk an extent may be: the partitions of its tables (UEFI 2.8 5.3, the
 * primary and the backup one; MBR with extended partitions), and the disk as a whole.
 *
 * The entries of both GPTs count, with no heed to their checksums: a place is only a place to look
 * at, and the LVM header there decides the order. */
#include "vmfs/internal.h"

#include <stdlib.h>

enum {
	MAX_FOUND = 256,
	GPT_MAX_ENTRIES = 128,
	GPT_ENTRY_LBA = 72,
	GPT_NR_ENTRIES = 80,
	GPT_ENTRY_SIZE = 84,
	GPT_E_FIRST = 32,
	GPT_E_LAST = 40,
	MBR_TABLE = 446,
	MBR_VMFS = 0xfb,
	MBR_MAX_LOGICAL = 64,
};

/* As on the disk: the first three fields are little-endian. */
static const uint8_t gpt_vmfs[16] = {0x2a, 0xe0, 0x31, 0xaa, 0x0f, 0x40, 0xdb, 0x11,
				     0x95, 0x90, 0x00, 0x0c, 0x29, 0x11, 0xd1, 0xb8};
static const uint8_t gpt_vmfs_as_text[16] = {0xaa, 0x31, 0xe0, 0x2a, 0x40, 0x0f, 0x11, 0xdb,
					     0x95, 0x90, 0x00, 0x0c, 0x29, 0x11, 0xd1, 0xb8};
/* 4eb2ea39-7855-4790-a79e-fae495e21f8d: VMFS-L, the system's data since ESXi 7 */
static const uint8_t gpt_vmfsl[16] = {0x39, 0xea, 0xb2, 0x4e, 0x55, 0x78, 0x90, 0x47,
				      0xa7, 0x9e, 0xfa, 0xe4, 0x95, 0xe2, 0x1f, 0x8d};

struct found {
	struct blk *b;
	uint64_t size;
	unsigned nr;
	struct candidate {
		struct vmfs_place place;
		bool type_fits, has_header;
	} list[MAX_FOUND];
};

static bool header_at(struct blk *b, uint64_t start)
{
	uint8_t magic[4];

	if (!range_inside(start + LVM_HEADER, sizeof(magic), blk_size(b)))
		return false;
	return blk_read(b, magic, sizeof(magic), start + LVM_HEADER) == 0 &&
	       le32_load(magic) == LVM_MAGIC;
}

static void add(struct found *f, uint64_t start, uint64_t len, bool partition, bool type_fits)
{
	struct candidate *c = &f->list[f->nr];

	if (f->nr == MAX_FOUND || !len || start >= f->size)
		return;
	for (unsigned i = 0; i < f->nr; i++)
		if (f->list[i].place.start == start && f->list[i].place.partition == partition)
			return;
	c->place = (struct vmfs_place){start, MIN(len, f->size - start), partition};
	c->type_fits = type_fits;
	c->has_header = header_at(f->b, start);
	f->nr += type_fits || c->has_header;
}

/* --- GPT ---------------------------------------------------------------------------------------
 */

static void gpt_entry(struct found *f, const uint8_t *e, uint32_t sector)
{
	uint64_t first = le64_load(e + GPT_E_FIRST), last = le64_load(e + GPT_E_LAST);
	bool fits = !memcmp(e, gpt_vmfs, 16) || !memcmp(e, gpt_vmfs_as_text, 16) ||
		    !memcmp(e, gpt_vmfsl, 16);

	if (first && last >= first && last < INT64_MAX / sector)
		add(f, first * sector, (last - first + 1) * sector, true, fits);
}

static void gpt_table(struct found *f, uint64_t at, uint32_t sector)
{
	uint32_t nr, size;
	uint64_t lba;
	uint8_t h[512], e[128];

	if (!range_inside(at, sizeof(h), f->size) || blk_read(f->b, h, sizeof(h), at) < 0 ||
	    memcmp(h, "EFI PART", 8))
		return;
	lba = le64_load(h + GPT_ENTRY_LBA);
	nr = MIN(le32_load(h + GPT_NR_ENTRIES), (uint32_t)GPT_MAX_ENTRIES);
	size = le32_load(h + GPT_ENTRY_SIZE);
	if (size < sizeof(e) || size > 4096 || lba > f->size / sector)
		return;
	for (uint32_t i = 0; i < nr; i++) {
		uint64_t off = lba * sector + (uint64_t)i * size;

		if (!range_inside(off, sizeof(e), f->size))
			break;
		if (blk_read(f->b, e, sizeof(e), off) == 0)
			gpt_entry(f, e, sector);
	}
}

static void find_gpt(struct found *f)
{
	for (uint32_t sector = 512; sector <= 4096; sector *= 8) {
		if (f->size < 4ull * sector)
			break;
		gpt_table(f, sector, sector);
		gpt_table(f, ALIGN_DOWN(f->size, sector) - sector, sector);
	}
}

/* --- MBR ---------------------------------------------------------------------------------------
 */

static bool is_extended(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

static bool read_mbr(struct found *f, uint64_t sector, uint8_t *mbr)
{
	return range_inside(sector * 512, 512, f->size) &&
	       blk_read(f->b, mbr, 512, sector * 512) == 0 && le16_load(mbr + 510) == 0xaa55;
}

static void mbr_entry(struct found *f, const uint8_t *e, uint64_t base)
{
	if (e[4] && e[4] != 0xee && !is_extended(e[4]))
		add(f, (base + le32_load(e + 8)) * 512, le32_load(e + 12) * 512ull, true,
		    e[4] == MBR_VMFS);
}

static void find_logical(struct found *f, uint32_t extended)
{
	uint64_t at = extended;
	uint8_t mbr[512];

	for (unsigned i = 0; i < MBR_MAX_LOGICAL && read_mbr(f, at, mbr); i++) {
		const uint8_t *e = mbr + MBR_TABLE;

		mbr_entry(f, e, at);
		if (!is_extended(e[16 + 4]) || !le32_load(e + 16 + 8))
			return;
		at = extended + (uint64_t)le32_load(e + 16 + 8);
	}
}

static void find_mbr(struct found *f)
{
	uint8_t mbr[512];

	if (!read_mbr(f, 0, mbr))
		return;
	for (unsigned i = 0; i < 4; i++) {
		const uint8_t *e = mbr + MBR_TABLE + 16u * i;

		mbr_entry(f, e, 0);
		if (is_extended(e[4]))
			find_logical(f, le32_load(e + 8));
	}
}

/* -------------------------------------------------------------------------------------------- */

/* What has a header first, then what has the type, then the disk. */
static int by_promise(const void *a, const void *b)
{
	const struct candidate *x = a, *y = b;

	if (x->has_header != y->has_header)
		return x->has_header ? -1 : 1;
	if (x->place.partition != y->place.partition)
		return x->place.partition ? -1 : 1;
	if (x->type_fits != y->type_fits)
		return x->type_fits ? -1 : 1;
	return x->place.start < y->place.start ? -1 : x->place.start > y->place.start;
}

int vmfs_places(struct blk *b, struct vmfs_place *list, unsigned max)
{
	struct found *f = malloc(sizeof(*f));
	unsigned n;

	if (!f)
		return -ENOMEM;
	f->b = b;
	f->size = blk_size(b);
	f->nr = 0;
	find_gpt(f);
	find_mbr(f);
	if (f->nr == MAX_FOUND)
		f->nr--;
	add(f, 0, f->size, false, true);
	qsort(f->list, f->nr, sizeof(f->list[0]), by_promise);
	n = MIN(f->nr, max);
	for (unsigned i = 0; i < n; i++)
		list[i] = f->list[i].place;
	free(f);
	return (int)n;
}
