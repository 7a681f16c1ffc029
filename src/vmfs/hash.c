/* vmfs/hash.c - the hash of names in VMFS6 directories: Bob Jenkins's lookup8 (public domain, in
 * the form for arrays of 64-bit words) over 256 bytes, with 42 to begin with.
 *
 * The bytes are the name, its NUL, zeroes up to a multiple of 8, and from there up to byte 127 one
 * constant over and over; the rest are zeroes. */
#include "vmfs/internal.h"

#define GOLDEN 0x9e3779b97f4a7c13ull
#define FILLER 0x739A75C28E61B017ull
enum { KEY = 256, WORDS = KEY / 8, FILL_END = 127, SEED = 42 };

static void mix(uint64_t *a, uint64_t *b, uint64_t *c)
{
	static const uint8_t shift[4][3] = {{43, 9, 8}, {38, 23, 5}, {35, 49, 11}, {12, 18, 22}};

	for (unsigned i = 0; i < 4; i++) {
		*a = (*a - *b - *c) ^ (*c >> shift[i][0]);
		*b = (*b - *c - *a) ^ (*a << shift[i][1]);
		*c = (*c - *a - *b) ^ (*b >> shift[i][2]);
	}
}

static void make_key(uint64_t word[WORDS], const char *name)
{
	size_t len = strnlen(name, VMFS_NAME_MAX);
	uint8_t key[KEY] = {0};

	memcpy(key, name, len);
	for (size_t i = ALIGN_UP(len + 1, 8); i < FILL_END; i += 8)
		le64_store(key + i, FILLER);
	for (unsigned i = 0; i < WORDS; i++)
		word[i] = le64_load(key + 8ull * i);
}

uint64_t dir_hash(const char *name)
{
	uint64_t a = SEED, b = SEED, c = GOLDEN, word[WORDS];
	unsigned i;

	make_key(word, name);
	for (i = 0; i + 3 <= WORDS; i += 3) {
		a += word[i];
		b += word[i + 1];
		c += word[i + 2];
		mix(&a, &b, &c);
	}
	c += WORDS;
	b += word[i + 1];
	a += word[i];
	mix(&a, &b, &c);
	return c;
}

/* The system files have their own slots at the end of the root's table. */
static const char *const reserved[] = {
	".fbb.sf", ".fdc.sf", ".pbc.sf", ".sbc.sf",   ".vh.sf",
	".pb2.sf", ".sdd.sf", ".jbc.sf", ".unmap.sf", ".dfd.sf",
};
enum { FIRST_RESERVED = 0x3e66 };

unsigned dir_hash_slot(const char *name, bool root)
{
	for (unsigned i = 0; root && i < ARRAY_SIZE(reserved); i++)
		if (!strcmp(name, reserved[i]))
			return FIRST_RESERVED + i;
	return (unsigned)(dir_hash(name) % (root ? FS_DIR_ROOT_SLOTS : FS_DIR_SLOTS));
}
