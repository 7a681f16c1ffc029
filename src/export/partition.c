/* export/partition.c - see partition.h. */
#include "export/partition.h"

#include "base/bytes.h"
#include "block/blk.h"

#include <stdlib.h>
#include <string.h>

enum {
	SECTOR = 512,
	MBR_ENTRIES = 446,
	MBR_ENTRY_SIZE = 16,
	GPT_ENTRY_SIZE = 128, /* larger ones begin the same way */
	GPT_ENTRY_SIZE_MAX = 4096,
	MBR_PROTECTIVE = 0xee,
};

struct found {
	struct blk *b;
	struct partition *list;
	unsigned n;
	uint64_t sector; /* bytes */
};

static void add(struct found *f, struct partition p)
{
	uint64_t size = blk_size(f->b);

	if (p.len && f->n < PARTITIONS_MAX && p.start < size && p.len <= size - p.start)
		f->list[f->n++] = p;
}

/* --- GPT ----------------------------------------------------------------------------------------
 */

static void gpt_name(char *out, const uint8_t *utf16)
{
	for (unsigned i = 0; i < 36; i++) {
		uint16_t c = le16_load(utf16 + 2 * i);

		out[i] = (char)(c < 0x80 && (!c || c >= 0x20) ? c : '?');
		if (!c)
			return;
	}
}

static int gpt_entry(struct found *f, uint64_t at, unsigned number)
{
	static const uint8_t unused[16];
	uint8_t e[GPT_ENTRY_SIZE];
	struct partition p = {.number = number};
	uint64_t first, last;
	int r;

	if (at > blk_size(f->b) || blk_size(f->b) - at < sizeof(e))
		return 0;
	r = blk_read(f->b, e, sizeof(e), at);
	if (r < 0 || !memcmp(e, unused, 16))
		return r;
	first = le64_load(e + 32);
	last = le64_load(e + 40);
	if (last < first || last >= INT64_MAX / f->sector)
		return 0;
	p.start = first * f->sector;
	p.len = (last - first + 1) * f->sector;
	gpt_name(p.name, e + 56);
	add(f, p);
	return 0;
}

/* False: there is none. */
static bool gpt_read(struct found *f, int *r)
{
	uint8_t head[SECTOR];
	uint64_t table;
	uint32_t n, size;

	if (blk_size(f->b) < 2 * f->sector)
		return false;
	*r = blk_read(f->b, head, sizeof(head), f->sector);
	if (*r < 0 || memcmp(head, "EFI PART", 8))
		return false;
	table = le64_load(head + 72);
	n = le32_load(head + 80);
	size = le32_load(head + 84);
	if (size < GPT_ENTRY_SIZE || size > GPT_ENTRY_SIZE_MAX || table >= INT64_MAX / f->sector)
		return false;
	for (unsigned i = 0; i < MIN(n, PARTITIONS_MAX) && *r == 0; i++)
		*r = gpt_entry(f, table * f->sector + (uint64_t)i * size, i + 1);
	return true;
}

/* --- MBR ----------------------------------------------------------------------------------------
 */

static bool is_extended(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

static int mbr_sector(struct found *f, uint64_t at, uint8_t *sector, bool *valid)
{
	int r = 0;

	*valid = false;
	if (at > blk_size(f->b) || blk_size(f->b) - at < SECTOR)
		return 0;
	r = blk_read(f->b, sector, SECTOR, at);
	*valid = r == 0 && sector[510] == 0x55 && sector[511] == 0xaa;
	return r;
}

static struct partition mbr_partition(const uint8_t *e, uint64_t base, unsigned number,
				      uint64_t sector)
{
	return (struct partition){.number = number,
				  .start = base + le32_load(e + 8) * sector,
				  .len = le32_load(e + 12) * sector,
				  .mbr_type = e[4]};
}

/* The links of the chain are relative to its first one, the partition to its own link. */
static int mbr_chain(struct found *f, uint64_t first)
{
	uint8_t s[SECTOR];
	uint64_t at = first;
	bool valid;
	int r = 0;

	for (unsigned n = 5; n < PARTITIONS_MAX && r == 0; n++) {
		const uint8_t *e = s + MBR_ENTRIES;

		r = mbr_sector(f, at, s, &valid);
		if (!valid)
			break;
		if (e[4])
			add(f, mbr_partition(e, at, n, f->sector));
		e += MBR_ENTRY_SIZE;
		if (!is_extended(e[4]))
			break;
		at = first + le32_load(e + 8) * f->sector;
	}
	return r;
}

static int mbr_read(struct found *f)
{
	uint8_t s[SECTOR];
	bool valid;
	int r = mbr_sector(f, 0, s, &valid);

	for (unsigned i = 0; i < 4 && valid && r == 0; i++) {
		const uint8_t *e = s + MBR_ENTRIES + i * MBR_ENTRY_SIZE;

		if (is_extended(e[4]))
			r = mbr_chain(f, le32_load(e + 8) * f->sector);
		else if (e[4] && e[4] != MBR_PROTECTIVE)
			add(f, mbr_partition(e, 0, i + 1, f->sector));
	}
	return r;
}

int partitions_read(struct blk *b, struct partition list[PARTITIONS_MAX])
{
	struct found f = {.b = b, .list = list, .sector = blk_info(b)->block_size};
	int r = 0;

	if (!gpt_read(&f, &r) && r == 0)
		r = mbr_read(&f);
	return r < 0 ? r : (int)f.n;
}
