/* disk/zero.h - is it all zeroes?  Pure, any thread. */
#pragma once

#include "base/types.h"

#include <string.h>

/* Looks at 64 bytes at a time, so that data ends the search at once; compilers make vectors of
 * it. */
static inline bool disk_is_zero(const void *buf, size_t len)
{
	const uint8_t *p = buf;
	uint64_t w[8], sum = 0;
	uint8_t rest = 0;

	for (; len >= sizeof(w); p += sizeof(w), len -= sizeof(w)) {
		memcpy(w, p, sizeof(w));
		sum = w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7];
		if (sum)
			return false;
	}
	while (len--)
		rest |= *p++;
	return !rest;
}
