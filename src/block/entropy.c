/* block/entropy.c - see entropy.h. */
#include "block/entropy.h"

#include "base/bytes.h"

enum { SHORT = 16 * 1024, SLOTS = 4096, REPEATS = 8 };

/* All byte values about as often?  For random bytes the sum is near len; a tenth of a bit less
 * entropy makes it many times that. */
static bool is_even(const uint8_t *p, size_t len)
{
	uint32_t count[256] = {0};
	int64_t mean = (int64_t)(len / 256);
	uint64_t spread = 0;

	for (size_t i = 0; i < len; i++)
		count[p[i]]++;
	for (unsigned i = 0; i < 256; i++)
		spread += (uint64_t)((count[i] - mean) * (count[i] - mean));
	return spread <= 2 * len;
}

/* No eight bytes come twice, at the places looked at?  Those are chosen by content, so that copies
 * at any distance meet. */
static bool repeats_nothing(const uint8_t *p, size_t len)
{
	uint16_t seen[SLOTS] = {0};
	unsigned repeats = 0;

	for (size_t i = 0; i + 8 <= len; i++) {
		uint64_t h = le64_load(p + i) * 0x9e3779b97f4a7c15ull;
		uint16_t tag = (uint16_t)(h >> 29 | 1);

		if (h >> 61) /* one place in eight */
			continue;
		repeats += seen[h >> 45 & (SLOTS - 1)] == tag;
		seen[h >> 45 & (SLOTS - 1)] = tag;
	}
	return repeats < REPEATS;
}

bool blk_looks_random(const void *data, size_t len)
{
	return len >= SHORT && is_even(data, len) && repeats_nothing(data, len);
}
