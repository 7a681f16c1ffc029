/* recover/detect.c - which bytes look like something we know.
 *
 * Every sector is asked one question: do its first four bytes begin anything?  A table of 256 bits
 * by the first byte answers most of them, a switch the rest.  What has its mark elsewhere in a
 * block of 4 KiB is looked for only where such blocks begin.  The detectors behind check enough
 * that random bytes do not pass; none reads behind d->len. */
#include "base/bytes.h"
#include "recover/internal.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { SECTOR = 512, BLOCK4K = 4096 };

enum {
	LOCK_MAGIC = 0x10c00000,
	LVM_MAGIC = 0xc001d00du,
	SUPER_MAGIC = 0x2fabf15e,
	SUPER_LITE = 0x2fabf15f,
	HEARTBEAT_USED = 0xabcdef02u,
	DIR6_MAGIC = 0x00f50001,
	DIRENT6_MAGIC = 0x00010001, /* version 1, type 1 */
	FDMD = 0x66646d64,
	RFMD = 0x72666d64,
	RCMD = 0x72636d64,
	DIRENT5_SIZE = 140,
	DIRENT6_SLOTS = 14,
};

static const char *const kind_names[HIT_NR] = {
	[HIT_FD] = "fd",
	[HIT_FBB] = "file-block-cluster",
	[HIT_SBC] = "sub-block-cluster",
	[HIT_PBC] = "pointer-block-cluster",
	[HIT_FDC] = "fd-cluster",
	[HIT_PB2] = "pb2-cluster",
	[HIT_JBC] = "journal-cluster",
	[HIT_LFB] = "large-block-cluster",
	[HIT_FD_META] = "fd-without-lock",
	[HIT_LVM] = "lvm",
	[HIT_SUPER] = "superblock",
	[HIT_HEARTBEAT] = "heartbeat",
	[HIT_RFMD] = "resource-file",
	[HIT_DIR6] = "directory",
	[HIT_DIRENT6] = "directory-block",
	[HIT_DIR5] = "directory",
	[HIT_DESCRIPTOR] = "vmdk-descriptor",
	[HIT_VMX] = "vmx",
	[HIT_OVF] = "ovf",
	[HIT_SPARSE] = "sparse",
	[HIT_COWD] = "vmfs-sparse",
	[HIT_SESPARSE] = "se-sparse",
	[HIT_NVRAM] = "nvram",
	[HIT_LOG] = "log",
	[HIT_IMAGE] = "image",
	[HIT_DISK] = "disk",
};

const char *hit_name(unsigned kind)
{
	return kind < HIT_NR ? kind_names[kind] : NULL;
}

bool all_zero(const void *p, size_t len)
{
	const uint8_t *b = p;

	if (!len || b[0])
		return !len;
	return !memcmp(b, b + 1, len - 1);
}

static void add_hit(struct detect *d, size_t at, struct hit h)
{
	struct hits *out = d->out;

	if (out->n >= REC_MAX_HITS || !array_room(&out->v, out->n, &out->cap, sizeof(*out->v)))
		return;
	h.pos = d->pos + at;
	h.source = (uint16_t)d->source;
	out->v[out->n++] = h;
}

/* The bytes at `at` on, if there are `need` of them. */
static const uint8_t *bytes_at(const struct detect *d, size_t at, size_t need)
{
	return range_inside(at, need, d->len) ? d->buf + at : NULL;
}

static bool is_fd_addr(uint32_t a)
{
	return (a & 0x3f) == 4;
}

/* ---- metadata ---- */

/* A descriptor's meta block; fields as in VMFS5 and 6. */
static bool meta_block(const uint8_t *m, struct hit *h)
{
	uint32_t type = le32_load(m + 0x0c);

	if (!is_fd_addr(le32_load(m)) || type < 1 || type > 6)
		return false;
	h->id = le32_load(m);
	h->gen = le32_load(m + 4);
	h->aux |= type | FD_FILLED;
	return true;
}

static bool any_address(const uint8_t *p, size_t len)
{
	return p && !all_zero(p, len);
}

static void find_fd(struct detect *d, size_t at, struct hit *h)
{
	const uint8_t *m6 = bytes_at(d, at + BLOCK4K, BLOCK4K),
		      *m5 = bytes_at(d, at + SECTOR, 3 * SECTOR);

	if (m6 && le32_load(m6 + 0x64) == FDMD && meta_block(m6, h)) {
		h->aux |= FD_V6;
		if (any_address(m6 + BLOCK4K - 2560, 2560))
			h->aux |= FD_ADDR;
	} else if (m5 && meta_block(m5, h)) {
		if (any_address(m5 + SECTOR, 2 * SECTOR))
			h->aux |= FD_ADDR;
	}
}

static void find_cluster(struct detect *d, size_t at, struct hit *h)
{
	const uint8_t *m6 = bytes_at(d, at + BLOCK4K, SECTOR),
		      *m5 = bytes_at(d, at + SECTOR, SECTOR);

	if (m6 && le32_load(m6 + 0x10) == RCMD) {
		h->id = (uint32_t)le64_load(m6 + 0x18);
		h->gen = le16_load(m6 + 0x20);
		h->aux = FD_V6;
	} else if (m5) {
		h->id = le32_load(m5);
		h->gen = le32_load(m5 + 4);
	}
}

static void find_lock(struct detect *d, size_t at, uint32_t word)
{
	const uint8_t *p = d->buf + at;
	struct hit h = {.kind = (uint16_t)(HIT_FD + (word - LOCK_MAGIC - 1)),
			.self = le64_load(p + 4)};

	if (h.self % SECTOR || h.self > BIT(56))
		return;
	if (h.kind == HIT_FD)
		find_fd(d, at, &h);
	else
		find_cluster(d, at, &h);
	add_hit(d, at, h);
}

static void find_simple(struct detect *d, size_t at, unsigned kind, uint64_t self)
{
	add_hit(d, at, (struct hit){.kind = (uint16_t)kind, .self = self});
}

static void find_heartbeat(struct detect *d, size_t at)
{
	const uint8_t *p = d->buf + at;

	if (le64_load(p + 4) % SECTOR == 0 && le64_load(p + 4) < 64 * MiB)
		find_simple(d, at, HIT_HEARTBEAT, le64_load(p + 4));
}

/* ---- directories ---- */

static bool good_name(const uint8_t *p, size_t cap)
{
	size_t n = strnlen((const char *)p, cap);

	if (!n || n == cap)
		return false;
	for (size_t i = 0; i < n; i++)
		if (p[i] < 0x20 || p[i] == '/' || p[i] == 0x7f)
			return false;
	return true;
}

/* "." and "..", the first records of every directory of VMFS3 and 5. */
static void find_dir5(struct detect *d, size_t at)
{
	const uint8_t *p = bytes_at(d, at, 2 * DIRENT5_SIZE), *up;

	if (!p || !is_fd_addr(le32_load(p + 4)) || p[12] != '.' || p[13])
		return;
	up = p + DIRENT5_SIZE;
	if (!is_fd_addr(le32_load(up + 4)) || memcmp(up + 12, "..", 3) != 0)
		return;
	add_hit(d, at,
		(struct hit){.kind = HIT_DIR5,
			     .id = le32_load(p + 4),
			     .gen = le32_load(p + 8),
			     .self = le32_load(up + 4)});
}

static void find_dir6(struct detect *d, size_t at)
{
	const uint8_t *p = bytes_at(d, at, 0x5f8);

	if (p && is_fd_addr(le32_load(p + 0x3b8 + 4)))
		add_hit(d, at,
			(struct hit){.kind = HIT_DIR6,
				     .id = le32_load(p + 0x3b8 + 4),
				     .gen = le32_load(p + 0x3b8 + 8),
				     .self = le32_load(p + 0x4d8 + 4)});
}

static void find_dirent6(struct detect *d, size_t at)
{
	const uint8_t *p = bytes_at(d, at, BLOCK4K);

	if (!p || le16_load(p + 4) != DIRENT6_SLOTS || le16_load(p + 6) > DIRENT6_SLOTS)
		return;
	for (unsigned i = 0; i < DIRENT6_SLOTS; i++) {
		const uint8_t *e = p + 64 + i * 0x120;

		if (is_fd_addr(le32_load(e + 4)) && good_name(e + 0x18, 256)) {
			find_simple(d, at, HIT_DIRENT6, le64_load(e + 0x10));
			return;
		}
	}
}

/* ---- files ---- */

static bool is_text(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((p[i] < 0x20 && p[i] != '\n' && p[i] != '\r' && p[i] != '\t') || p[i] == 0x7f)
			return false;
	return n;
}

static bool holds(const uint8_t *p, size_t len, const char *word)
{
	return memmem(p, len, word, strlen(word));
}

/* Settings: name = "value", with what every VMX has somewhere. */
static bool is_vmx(const uint8_t *p, size_t len)
{
	size_t first = MIN(len, (size_t)64), n = strnlen((const char *)p, len);

	if (!is_text(p, MIN(first, n)) || n < 32 || !holds(p, n, " = \""))
		return false;
	return holds(p, n, "virtualHW.version") || holds(p, n, "config.version");
}

static bool is_log(const uint8_t *p, size_t len)
{
	return len >= 128 && isdigit(p[2]) && p[4] == '-' && p[7] == '-' && p[10] == 'T' &&
	       (holds(p, 128, "vmx|") || holds(p, 128, " vmx "));
}

static bool is_sparse(const uint8_t *p, size_t len)
{
	uint64_t grain;

	if (len < SECTOR)
		return false;
	grain = le64_load(p + 20);
	return le32_load(p + 4) - 1 < 3 && grain >= 8 && !(grain & (grain - 1)) &&
	       grain < (1 << 21) && le64_load(p + 12) < BIT(53);
}

static bool is_cowd(const uint8_t *p, size_t len)
{
	return len >= 32 && le32_load(p + 4) == 1 && le32_load(p + 12) && le32_load(p + 16) &&
	       le32_load(p + 16) < (1 << 20);
}

static bool is_sesparse(const uint8_t *p, size_t len)
{
	return len >= 32 && !le32_load(p + 4) && le64_load(p + 8) == 0x200000001ull;
}

static bool is_disk(const uint8_t *p, size_t len)
{
	bool any = false;

	if (len < 2 * SECTOR || le16_load(p + 510) != 0xaa55)
		return false;
	if (!memcmp(p + SECTOR, "EFI PART", 8))
		return true;
	for (unsigned i = 0; i < 4; i++) {
		const uint8_t *e = p + 446 + i * 16;

		if (e[0] & 0x7f)
			return false;
		if (!e[4])
			continue;
		if (!le32_load(e + 8) || !le32_load(e + 12))
			return false;
		any = true;
	}
	return any;
}

static bool starts(const uint8_t *p, size_t len, const char *word)
{
	return len >= strlen(word) && !memcmp(p, word, strlen(word));
}

unsigned detect_file(const uint8_t *p, size_t len)
{
	if (len < 16)
		return HIT_NONE;
	if (starts(p, len, "# Disk DescriptorFile"))
		return HIT_DESCRIPTOR;
	if (starts(p, len, "KDMV"))
		return is_sparse(p, len) ? HIT_SPARSE : HIT_NONE;
	if (starts(p, len, "COWD"))
		return is_cowd(p, len) ? HIT_COWD : HIT_NONE;
	if (le32_load(p) == 0xcafebabeu)
		return is_sesparse(p, len) ? HIT_SESPARSE : HIT_NONE;
	if (starts(p, len, "MRVN"))
		return HIT_NVRAM;
	if (starts(p, len, "vhdxfile") || starts(p, len, "conectix") || starts(p, len, "QFI\xfb"))
		return HIT_IMAGE;
	if (starts(p, len, "<?xml"))
		return holds(p, len, "<Envelope") || holds(p, len, "ovf:") ? HIT_OVF : HIT_NONE;
	if (starts(p, len, "20"))
		return is_log(p, len) ? HIT_LOG : HIT_NONE;
	if (p[0] == '.' || p[0] == '#' || islower(p[0]))
		return is_vmx(p, len) ? HIT_VMX : HIT_NONE;
	return HIT_NONE;
}

/* ---- the loop ---- */

/* The first bytes (lowest of a word) of all that look_sector knows. */
// clang-format off
static const uint8_t first_byte[256] = {
	[0x01 ... 0x08] = 1, /* lock headers, directories, heartbeats, "." */
	[0x0d] = 1, [0x5e] = 1, [0x5f] = 1, [0xbe] = 1, /* LVM, superblocks, seSparse */
	['K'] = 1, ['C'] = 1, ['M'] = 1, ['Q'] = 1, ['<'] = 1, ['2'] = 1, ['.'] = 1, ['#'] = 1,
	['a' ... 'z'] = 1,
};
// clang-format on

static void look_file(struct detect *d, size_t at)
{
	unsigned kind = detect_file(d->buf + at, MIN(d->len - at, (size_t)BLOCK4K));

	if (kind)
		find_simple(d, at, kind, 0);
}

static void look_sector(struct detect *d, size_t at, uint32_t word)
{
	if (word - LOCK_MAGIC - 1 < 8) {
		find_lock(d, at, word);
		return;
	}
	switch (word) {
	case LVM_MAGIC:
		find_simple(d, at, HIT_LVM, 0);
		break;
	case SUPER_MAGIC:
	case SUPER_LITE:
		find_simple(d, at, HIT_SUPER, 0);
		break;
	case HEARTBEAT_USED:
		find_heartbeat(d, at);
		break;
	case DIR6_MAGIC:
		find_dir6(d, at);
		break;
	case DIRENT6_MAGIC:
		find_dirent6(d, at);
		break;
	case VMFS_DIR:
		find_dir5(d, at);
		break;
	default:
		look_file(d, at);
	}
}

/* Marks that are not at the start of a block. */
static void look_block(struct detect *d, size_t at)
{
	const uint8_t *p = d->buf + at;
	struct hit h = {.kind = HIT_FD_META, .aux = FD_V6};

	if (le32_load(p + 0x64) == FDMD && (at < BLOCK4K || le32_load(p - BLOCK4K) != 0x10c00001) &&
	    meta_block(p, &h)) {
		if (any_address(p + BLOCK4K - 2560, 2560))
			h.aux |= FD_ADDR;
		add_hit(d, at, h);
	}
	if (le32_load(p + 0x20) == RFMD)
		add_hit(d, at, (struct hit){.kind = HIT_RFMD, .id = le32_load(p + 0x0c)});
	if (le16_load(p + 510) == 0xaa55 && is_disk(p, BLOCK4K))
		find_simple(d, at, HIT_DISK, 0);
}

void detect_run(struct detect *d)
{
	size_t look = MIN(d->look, d->len) & ~(size_t)(SECTOR - 1);

	for (size_t at = 0; at < look; at += SECTOR) {
		const uint8_t *p = d->buf + at;

		if (unlikely(first_byte[p[0]]))
			look_sector(d, at, le32_load(p));
		if ((d->pos + at) % BLOCK4K == d->phase && d->len - at >= BLOCK4K)
			look_block(d, at);
	}
}
