/* block/chunks.c - see chunks.h. */
#include "block/chunks.h"

#include "block/iov.h"

#include <bzlib.h>
#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>

int chunks_add(struct chunks *c, struct chunk chunk)
{
	struct chunk *more;

	if (chunk.kind >= CHUNK_ZLIB &&
	    (chunk.len > CHUNK_LEN_MAX || chunk.host_len > CHUNK_LEN_MAX))
		return -EFBIG;
	if (c->n == c->cap) {
		if (c->n >= CHUNKS_MAX)
			return -EFBIG;
		c->cap = c->cap ? 2 * c->cap : 64;
		more = realloc(c->chunk, c->cap * sizeof(*more));
		if (!more)
			return -ENOMEM;
		c->chunk = more;
	}
	c->chunk[c->n++] = chunk;
	return 0;
}

static int by_place(const void *a, const void *b)
{
	const struct chunk *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

int chunks_ready(struct chunks *c)
{
	c->unpacked = UINT64_MAX;
	if (c->n)
		qsort(c->chunk, c->n, sizeof(*c->chunk), by_place);
	for (uint64_t i = 1; i < c->n; i++)
		if (c->chunk[i - 1].len > c->chunk[i].off - c->chunk[i - 1].off)
			return -EINVAL;
	return 0;
}

void chunks_free(struct chunks *c)
{
	free(c->chunk);
	free(c->buf);
	*c = (struct chunks){0};
}

/* The chunk that holds off, or the one that comes next; c->n: none. */
static uint64_t find(const struct chunks *c, uint64_t off)
{
	uint64_t low = 0, high = c->n;

	while (low < high) {
		uint64_t mid = low + (high - low) / 2;

		if (c->chunk[mid].off + c->chunk[mid].len <= off)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* ---- unpacking ---- */

/* Exactly as long as it is said to be: neither less nor more. */
static int inflate_chunk(const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
	struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
	int r;

	if (!d)
		return -ENOMEM;
	r = libdeflate_zlib_decompress(d, in, in_len, out, out_len, NULL);
	libdeflate_free_decompressor(d);
	return r == LIBDEFLATE_SUCCESS ? 0 : -EIO;
}

static int bunzip_chunk(uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
	unsigned len = (unsigned)out_len;
	int r = BZ2_bzBuffToBuffDecompress((char *)out, &len, (char *)in, (unsigned)in_len, 0, 0);

	return r == BZ_OK && len == out_len ? 0 : -EIO;
}

static int unpack(struct chunks *c, struct blk *file, uint64_t i)
{
	const struct chunk *k = &c->chunk[i];
	uint8_t *packed;
	int r;

	if (c->unpacked == i)
		return 0;
	free(c->buf);
	c->unpacked = UINT64_MAX;
	c->buf = malloc(k->len);
	packed = malloc(k->host_len ? k->host_len : 1);
	r = c->buf && packed ? blk_read(file, packed, k->host_len, k->host) : -ENOMEM;
	if (!r && k->kind == CHUNK_ZLIB)
		r = inflate_chunk(packed, k->host_len, c->buf, k->len);
	else if (!r)
		r = bunzip_chunk(packed, k->host_len, c->buf, k->len);
	free(packed);
	if (!r)
		c->unpacked = i;
	return r == -EINVAL ? -EIO : r;
}

/* ---- reading ---- */

static void copy_out(struct iov_walk *walk, const uint8_t *from, uint64_t len)
{
	struct iovec part[16];

	while (len) {
		uint64_t step = len;
		unsigned n = iov_peek(walk, part, ARRAY_SIZE(part), &step);

		for (unsigned i = 0; i < n; from += part[i++].iov_len)
			memcpy(part[i].iov_base, from, part[i].iov_len);
		iov_advance(walk, step);
		len -= step;
	}
}

static int read_raw(struct blk *file, struct iov_walk *walk, uint64_t len, uint64_t at)
{
	struct iovec part[16];
	int r = 0;

	while (len && !r) {
		uint64_t step = len;
		unsigned n = iov_peek(walk, part, ARRAY_SIZE(part), &step);

		r = blk_readv(file, part, n, at);
		iov_advance(walk, step);
		at += step;
		len -= step;
	}
	return r == -EINVAL ? -EIO : r;
}

static int read_some(struct chunks *c, struct blk *file, struct iov_walk *walk, uint64_t *len,
		     uint64_t off)
{
	uint64_t i = find(c, off), in;
	const struct chunk *k = &c->chunk[i];
	int r;

	if (i == c->n || k->off > off) {
		*len = i == c->n ? *len : MIN(*len, k->off - off);
		iov_zero(walk, *len);
		return 0;
	}
	in = off - k->off;
	*len = MIN(*len, k->len - in);
	if (k->kind == CHUNK_ZERO) {
		iov_zero(walk, *len);
		return 0;
	}
	if (k->kind == CHUNK_RAW)
		return read_raw(file, walk, *len, k->host + in);
	r = unpack(c, file, i);
	if (!r)
		copy_out(walk, c->buf + in, *len);
	return r;
}

int chunks_readv(struct chunks *c, struct blk *file, const struct iovec *iov, unsigned n,
		 uint64_t len, uint64_t off)
{
	struct iov_walk walk = {iov, n, 0};
	int r = 0;

	while (len && !r) {
		uint64_t step = len;

		r = read_some(c, file, &walk, &step, off);
		off += step;
		len -= step;
	}
	return r;
}

void chunks_map(const struct chunks *c, struct blk *file, uint64_t off, struct blk_map *m)
{
	uint64_t i = find(c, off);
	const struct chunk *k = &c->chunk[i];

	if (i == c->n || k->off > off) {
		m->len = i == c->n ? m->len : MIN(m->len, k->off - off);
		m->what = BLK_EXT_ZERO;
		return;
	}
	m->len = MIN(m->len, k->len - (off - k->off));
	m->what = k->kind == CHUNK_ZERO ? BLK_EXT_ZERO : BLK_EXT_DATA;
	m->compressed = k->kind >= CHUNK_ZLIB;
	if (k->kind == CHUNK_RAW) {
		m->host = file;
		m->host_off = k->host + (off - k->off);
	}
}
