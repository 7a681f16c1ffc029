/* base/bytes.h - little- and big-endian loads and stores at any alignment, and checked sums.
 * Pure functions, any thread. */
#pragma once

#include "base/types.h"

#include <endian.h>
#include <string.h>

#define BYTES_ACCESSORS(bits)                                                                      \
	static inline uint##bits##_t le##bits##_load(const void *p)                                \
	{                                                                                          \
		uint##bits##_t v;                                                                  \
		memcpy(&v, p, sizeof(v));                                                          \
		return le##bits##toh(v);                                                           \
	}                                                                                          \
	static inline void le##bits##_store(void *p, uint##bits##_t v)                             \
	{                                                                                          \
		v = htole##bits(v);                                                                \
		memcpy(p, &v, sizeof(v));                                                          \
	}                                                                                          \
	static inline uint##bits##_t be##bits##_load(const void *p)                                \
	{                                                                                          \
		uint##bits##_t v;                                                                  \
		memcpy(&v, p, sizeof(v));                                                          \
		return be##bits##toh(v);                                                           \
	}                                                                                          \
	static inline void be##bits##_store(void *p, uint##bits##_t v)                             \
	{                                                                                          \
		v = htobe##bits(v);                                                                \
		memcpy(p, &v, sizeof(v));                                                          \
	}

BYTES_ACCESSORS(16)
BYTES_ACCESSORS(32)
BYTES_ACCESSORS(64)

/* True when [off, off+len) lies inside [0, size); never overflows. */
static inline bool range_inside(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}
