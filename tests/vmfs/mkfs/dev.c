/* The volume's files: partition tables, LVM headers, and volume offsets to places in files. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECTOR = 512, PART_START = 0x100000, GPT_ENTRIES = 128, GPT_ENTRY = 128 };

static void put_at(const struct extent *e, uint64_t off, const void *buf, uint64_t len)
{
	while (len) {
		ssize_t n = pwrite(e->fd, buf, len, (off_t)(e->part_off + off));

		if (n <= 0)
			mkfs_die("%s: cannot write: %s", e->path, strerror(n ? errno : ENOSPC));
		buf = (const char *)buf + n;
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
}

const struct extent *dev_at(const struct mkfs *m, uint64_t vol, uint64_t *left)
{
	for (unsigned int i = 0; i < m->extents; i++) {
		const struct extent *e = &m->ext[i];

		if (vol >= e->vol_off && vol - e->vol_off < e->len) {
			*left = e->len - (vol - e->vol_off);
			return e;
		}
	}
	mkfs_die("volume offset %#llx is beyond the volume", (unsigned long long)vol);
}

void dev_write(struct mkfs *m, uint64_t vol, const void *buf, uint64_t len)
{
	while (len) {
		uint64_t n;
		const struct extent *e = dev_at(m, vol, &n);

		if (n > len)
			n = len;
		put_at(e, LVM_DATA + vol - e->vol_off, buf, n);
		buf = (const char *)buf + n;
		vol += n;
		len -= n;
	}
}

void dev_read(struct mkfs *m, uint64_t vol, void *buf, uint64_t len)
{
	while (len) {
		uint64_t n;
		const struct extent *e = dev_at(m, vol, &n);
		ssize_t got;

		if (n > len)
			n = len;
		got = pread(e->fd, buf, n, (off_t)(e->part_off + LVM_DATA + vol - e->vol_off));
		if (got <= 0)
			mkfs_die("%s: cannot read back: %s", e->path, strerror(got ? errno : EIO));
		buf = (char *)buf + got;
		vol += (uint64_t)got;
		len -= (uint64_t)got;
	}
}

/* Zeros, as unmapped storage gives them. */
void dev_punch(struct mkfs *m, uint64_t vol, uint64_t len)
{
	while (len) {
		uint64_t n;
		const struct extent *e = dev_at(m, vol, &n);

		if (n > len)
			n = len;
		if (fallocate(e->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)(e->part_off + LVM_DATA + vol - e->vol_off), (off_t)n))
			mkfs_die("%s: cannot punch a hole: %s", e->path, strerror(errno));
		vol += n;
		len -= n;
	}
}

static uint32_t crc32(const void *buf, uint64_t len)
{
	const uint8_t *p = buf;
	uint32_t crc = ~0u;

	while (len--) {
		crc ^= *p++;
		for (int i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
	}
	return ~crc;
}

static void mbr_write(const struct extent *e, uint8_t type)
{
	uint8_t s[SECTOR] = {0}, *p = s + 446;
	uint64_t start = type == 0xEE ? 1 : e->part_off / SECTOR, len = e->part_size / SECTOR;

	if (type == 0xEE)
		len = e->part_off / SECTOR + len + 33 - 1;
	p[4] = type;
	put32(p, 8, (uint32_t)start);
	put32(p, 12, (uint32_t)(len > UINT32_MAX ? UINT32_MAX : len));
	put16(s, 510, 0xAA55);
	if (pwrite(e->fd, s, SECTOR, 0) != SECTOR)
		mkfs_die("%s: cannot write the MBR", e->path);
}

static void gpt_header(const struct extent *e, const uint8_t *entries, bool backup)
{
	uint64_t first = e->part_off / SECTOR, last = first + e->part_size / SECTOR - 1;
	uint64_t end = last + 33, mine = backup ? end : 1;
	uint64_t table = backup ? last + 1 : 2, bytes = GPT_ENTRIES * GPT_ENTRY;
	uint8_t h[SECTOR] = {0};

	memcpy(h, "EFI PART", 8);
	put32(h, 8, 0x10000);
	put32(h, 12, 92);
	put64(h, 24, mine);
	put64(h, 32, backup ? 1 : end);
	put64(h, 40, 34);
	put64(h, 48, last);
	memcpy(h + 56, e->uuid, 16);
	put64(h, 72, table);
	put32(h, 80, GPT_ENTRIES);
	put32(h, 84, GPT_ENTRY);
	put32(h, 88, crc32(entries, bytes));
	put32(h, 16, crc32(h, 92));
	if (pwrite(e->fd, h, SECTOR, (off_t)(mine * SECTOR)) != SECTOR ||
	    pwrite(e->fd, entries, bytes, (off_t)(table * SECTOR)) != (ssize_t)bytes)
		mkfs_die("%s: cannot write the GPT", e->path);
}

static void gpt_write(const struct extent *e)
{
	/* aa31e02a-400f-11db-9590-000c2911d1b8, as GPT stores it */
	static const uint8_t type[16] = {0x2a, 0xe0, 0x31, 0xaa, 0x0f, 0x40, 0xdb, 0x11,
					 0x95, 0x90, 0x00, 0x0c, 0x29, 0x11, 0xd1, 0xb8};
	uint8_t *entries = xalloc(GPT_ENTRIES * GPT_ENTRY);
	uint64_t first = e->part_off / SECTOR;

	mbr_write(e, 0xEE);
	memcpy(entries, type, 16);
	memcpy(entries + 16, e->uuid, 16);
	entries[16] ^= 1; /* the partition is not the disk */
	put64(entries, 32, first);
	put64(entries, 40, first + e->part_size / SECTOR - 1);
	gpt_header(e, entries, false);
	gpt_header(e, entries, true);
	free(entries);
}

static void extent_open(struct mkfs *m, unsigned int i, uint64_t vol_off)
{
	struct extent *e = &m->ext[i];
	const struct mkfs_format *f = &m->f;
	uint64_t whole;

	e->path = xdup(f->file[i]);
	e->vol_off = vol_off;
	e->target = i;
	e->len = (f->size[i] + LVM_PE_SIZE - 1) / LVM_PE_SIZE * LVM_PE_SIZE;
	if (!e->len)
		mkfs_die("%s: an extent has at least 256 MiB", e->path);
	e->part_off = f->disk == MKFS_BARE ? 0 : PART_START;
	e->part_size = LVM_DATA + e->len + MIB;
	whole = e->part_off + e->part_size + (f->disk == MKFS_BARE ? 0 : MIB);
	if (f->disk == MKFS_GPT)
		whole = e->part_off + e->part_size + 33 * SECTOR;
	make_uuid(e->uuid, f->seed * 64 + 8 + i, m->time);
	e->fd = open(e->path, O_RDWR | O_CREAT | O_CLOEXEC | (f->keep ? 0 : O_TRUNC), 0644);
	if (e->fd < 0 || ftruncate(e->fd, (off_t)whole))
		mkfs_die("%s: %s", e->path, strerror(errno));
	if (f->disk == MKFS_GPT)
		gpt_write(e);
	else if (f->disk == MKFS_MBR)
		mbr_write(e, 0xFB);
}

void dev_open(struct mkfs *m)
{
	m->extents = m->f.extents;
	if (!m->extents || m->extents > MKFS_EXTENTS_MAX)
		mkfs_die("a volume has 1 to %d files", MKFS_EXTENTS_MAX);
	for (unsigned int i = 0; i < m->extents; i++) {
		extent_open(m, i, m->volume);
		m->volume += m->ext[i].len;
	}
}

void dev_close(struct mkfs *m)
{
	for (unsigned int i = 0; i < m->extents; i++) {
		if (close(m->ext[i].fd))
			mkfs_die("%s: %s", m->ext[i].path, strerror(errno));
		free(m->ext[i].path);
	}
}

static void lvm_header(struct mkfs *m, const struct extent *e, uint8_t *h)
{
	uint32_t pes = (uint32_t)(e->len / LVM_PE_SIZE), entries = m->six ? 1 : pes;
	char id[45];

	put32(h, LVM_OFF_MAGIC, (uint32_t)LVM_MAGIC);
	put32(h, LVM_OFF_MAJOR, (uint32_t)m->version);
	put32(h, LVM_OFF_MINOR, LVM_MINOR);
	snprintf(id, sizeof(id), "vmhba0:%u:0", e->target);
	h[LVM_OFF_SCSI + LVM_SCSI_LEN] = (uint8_t)strlen(id);
	memcpy(h + LVM_OFF_SCSI + LVM_SCSI_ID, id, strlen(id));
	put32(h, LVM_OFF_SECTOR, SECTOR);
	put64(h, LVM_OFF_TOTAL, e->part_size);
	put32(h, LVM_OFF_VOLUMES, 1);
	put32(h, LVM_OFF_PES, entries);
	put32(h, LVM_OFF_LASTPE, entries - 1);
	put64(h, LVM_OFF_GEN, 3);
	put64(h, LVM_OFF_DATA, LVM_DATA);
	memcpy(h + LVM_OFF_UUID, e->uuid, 16);
	put64(h, LVM_OFF_INIT, m->stamp[0]);
	put64(h, LVM_OFF_MTIME, m->stamp[1]);
	if (m->six) {
		put32(h, LVM_OFF_MDALIGN, (uint32_t)m->mdalign);
		put32(h, LVM_OFF_PES6, pes);
	} else {
		put32(h, LVM_OFF_PEMAPS, (entries + LVM_PES_PER_TABLE - 1) / LVM_PES_PER_TABLE);
	}
	put32(h, LVM_OFF_FLAGS, m->f.local ? LVM_FLAG_LOCAL : 0);
}

static void lvm_volume(struct mkfs *m, const struct extent *e, uint8_t *v)
{
	char name[36];

	print_uuid(name, m->lv_uuid);
	put64(v, LV_SIZE, m->volume);
	put64(v, LV_GEN, 2);
	put32(v, LV_STATE, 1);
	memcpy(v + LV_NAME, name, strlen(name));
	memcpy(v + LV_UUID, m->lv_uuid, 16);
	put32(v, LV_SNAP, 1);
	put64(v, LV_CTIME, m->stamp[2]);
	put32(v, LV_PES, (uint32_t)(e->len / LVM_PE_SIZE));
	put64(v, LV_FIRST, e->vol_off / LVM_PE_SIZE);
	put64(v, LV_LAST, (e->vol_off + e->len) / LVM_PE_SIZE - 1);
	put64(v, LV_MTIME, m->stamp[3]);
	put32(v, LV_DEVS, m->extents);
	if (m->six)
		put32(v, LV_ONE6, 1);
}

static void pe_put(uint8_t *at, uint32_t id, uint64_t poff, uint64_t loff, uint64_t len)
{
	at[PE_USED] = 1;
	put32(at, PE_ID, id);
	put64(at, PE_POFF, poff);
	put64(at, PE_LOFF, loff);
	put64(at, PE_LEN, len);
	put32(at, PE_VERSION, 1);
}

/* One entry for all of it on LVM6, one for each 256 MiB before. */
static void lvm_tables(struct mkfs *m, const struct extent *e)
{
	uint64_t bitmap = LVM_BASE + (m->six ? LVM6_BITMAP : LVM5_BITMAP);
	uint64_t bitmap_size = m->six ? LVM6_BITMAP_SIZE : LVM5_BITMAP_SIZE;
	uint64_t n = m->six ? 1 : e->len / LVM_PE_SIZE, step = m->six ? e->len : LVM_PE_SIZE;
	uint8_t *bits = xalloc(bitmap_size), *table = xalloc(LVM_PES_PER_TABLE * LVM_PE_STRIDE);

	if (n > LVM_PES_PER_TABLE)
		mkfs_die("%s: an extent has at most 2 TiB", e->path);
	for (uint64_t i = 0; i < n; i++) {
		bits[i / 8] |= (uint8_t)(1 << i % 8);
		pe_put(table + i * LVM_PE_STRIDE, (uint32_t)i, LVM_DATA + i * step,
		       e->vol_off + i * step, step);
	}
	put_at(e, bitmap, bits, bitmap_size);
	put_at(e, bitmap + bitmap_size, table, LVM_PES_PER_TABLE * LVM_PE_STRIDE);
	free(bits);
	free(table);
}

static void lvm_names(struct mkfs *m)
{
	uint64_t at = LVM_BASE + (m->six ? LVM6_BITMAP : LVM5_BITMAP) - LVM_SD_TABLE_SIZE;
	uint8_t names[LVM_SD_TABLE_SIZE] = {0};

	for (unsigned int i = 0; i < m->extents; i++)
		snprintf((char *)names + i * 256ull, 256, "mpx.vmhba0:C0:T%u:L0:1",
			 m->ext[i].target);
	put_at(&m->ext[0], at, names, sizeof(names));
}

void lvm_write(struct mkfs *m)
{
	uint64_t unit = m->six ? m->mdalign : SECTOR;

	for (unsigned int i = 0; i < m->extents; i++) {
		uint8_t *h = xalloc(2 * unit);

		lvm_header(m, &m->ext[i], h);
		lvm_volume(m, &m->ext[i], h + unit);
		put_at(&m->ext[i], LVM_BASE, h, 2 * unit);
		lvm_tables(m, &m->ext[i]);
		free(h);
	}
	lvm_names(m);
}
