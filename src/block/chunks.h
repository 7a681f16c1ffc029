/* block/chunks.h - disks kept as compressed pieces, to be read only: DMG and cloop.
 *
 * The driver lists the chunks; reading unpacks a chunk and keeps the last one.  One thread at a
 * time.  Memory: the list (at most CHUNKS_MAX of 40 bytes) and two buffers of CHUNK_LEN_MAX. */
#pragma once

#include "block/format.h"

enum chunk_kind { CHUNK_ZERO, CHUNK_RAW, CHUNK_ZLIB, CHUNK_BZIP2 };

enum { CHUNKS_MAX = 4 << 20, CHUNK_LEN_MAX = 64 << 20 };

struct chunk {
	uint64_t off, len; /* on the disk */
	uint64_t host, host_len;
	enum chunk_kind kind;
};

struct chunks {
	struct chunk *chunk; /* ascending; between them are zeroes */
	uint64_t n, cap;
	uint64_t unpacked; /* the one in buf, or ~0 */
	uint8_t *buf;
};

int chunks_add(struct chunks *c, struct chunk chunk); /* -EFBIG: too many or too large */
/* All there: sorts; -EINVAL when some overlap. */
int chunks_ready(struct chunks *c);
void chunks_free(struct chunks *c);
int chunks_readv(struct chunks *c, struct blk *file, const struct iovec *iov, unsigned n,
		 uint64_t len, uint64_t off);
void chunks_map(const struct chunks *c, struct blk *file, uint64_t off, struct blk_map *m);
