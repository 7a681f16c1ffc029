/* block/vmdk/stream.c - stream-optimised extents: packed grains one behind the other, each behind a
 * marker that says which it is, and the tables in a tail (VDF "Stream-Optimized Compressed Sparse
 * Extents").
 *
 *   marker:  u64 first sector or size, u32 bytes that follow; 0: u32 type of marker
 *   type:    0 end of stream, 1 grain table, 2 grain directory, 3 footer; "size" sectors follow
 *
 * Written bytes are never changed.  New grains go behind all others, and a flush puts a new tail
 * behind them: tables, directory, flush, footer, flush.  A grain that was written twice and tails
 * that were not the last stay as unused space.  When the last tail is cut off, the markers tell
 * what the tables told: a later marker of the same grain counts. */
#include "block/vmdk/vmdk.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"

#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>

enum { MARKER_LEN = 12, MARKER_EOS = 0, MARKER_GT, MARKER_GD, MARKER_FOOTER };
/* The least level whose output is not larger than zlib's at its default, 6 (docs/performance.md).
 */
enum { PACK_LEVEL = 5, ZLIB_OVERHEAD = 6, STORED_MAX = 65535, STORED_HEAD = 5 };
enum { ZERO_SECTORS_MAX = 128, TAIL_TABLES = 64, UNPACKED_MAX = 64 };

static struct log_component log_vmdk = LOG_COMPONENT("vmdk");

bool vmdk_is_stream(const struct blk *b)
{
	const struct vmdk *v = vmdk_of(b);

	return v->nr_ext == 1 && v->ext[0].kind == KIND_STREAM;
}

/* ---- one (de)compressor for each thread ---- */

static pthread_key_t inflater_key, deflater_key;
static pthread_once_t keys_once = PTHREAD_ONCE_INIT;

static void free_inflater(void *d)
{
	libdeflate_free_decompressor(d);
}

static void free_deflater(void *c)
{
	libdeflate_free_compressor(c);
}

static void make_keys(void)
{
	pthread_key_create(&inflater_key, free_inflater);
	pthread_key_create(&deflater_key, free_deflater);
}

static struct libdeflate_decompressor *inflater(void)
{
	struct libdeflate_decompressor *d;

	pthread_once(&keys_once, make_keys);
	d = pthread_getspecific(inflater_key);
	if (!d) {
		d = libdeflate_alloc_decompressor();
		pthread_setspecific(inflater_key, d);
	}
	return d;
}

static struct libdeflate_compressor *deflater(void)
{
	struct libdeflate_compressor *c;

	pthread_once(&keys_once, make_keys);
	c = pthread_getspecific(deflater_key);
	if (!c) {
		c = libdeflate_alloc_compressor(PACK_LEVEL);
		pthread_setspecific(deflater_key, c);
	}
	return c;
}

/* ---- reading ---- */

/* The most bytes a packed grain may take: deflate adds five for 64 KiB; others are less good. */
static uint64_t packed_max(const struct vmdk_extent *e)
{
	return e->grain + e->grain / 8 + KiB;
}

/* RFC 1950 2.2: a zlib header.  A few writers left it out. */
static bool has_zlib_header(const uint8_t *p, size_t len)
{
	return len >= 2 && (p[0] & 0xf) == 8 && (p[0] << 8 | p[1]) % 31 == 0;
}

static int inflate_grain(const struct vmdk_extent *e, const uint8_t *packed, size_t len,
			 uint8_t *buf)
{
	struct libdeflate_decompressor *d = inflater();
	enum libdeflate_result r;
	size_t got = 0;

	if (!d)
		return -ENOMEM;
	if (has_zlib_header(packed, len))
		r = libdeflate_zlib_decompress(d, packed, len, buf, e->grain, &got);
	else
		r = libdeflate_deflate_decompress(d, packed, len, buf, e->grain, &got);
	if (r != LIBDEFLATE_SUCCESS)
		return -EIO;
	memset(buf + got, 0, e->grain - got);
	return 0;
}

/* The marker and what follows it, into a buffer of MARKER_LEN + packed_max bytes.  Returns the
 * number of packed bytes. */
static int64_t read_packed(struct vmdk_extent *e, uint64_t off, uint64_t guess, uint8_t *buf)
{
	uint64_t end = blk_size(e->file), max = MARKER_LEN + packed_max(e), len, have;
	int r;

	if (off >= end)
		return -EIO;
	have = MIN(MIN(guess ? guess : max, max), end - off);
	have = MAX(have, MIN((uint64_t)SECTOR, end - off));
	r = blk_read(e->file, buf, have, off);
	if (r < 0)
		return r;
	len = have < MARKER_LEN ? 0 : le32_load(buf + 8);
	if (!len || len > max - MARKER_LEN || !range_inside(off, MARKER_LEN + len, end))
		return -EIO;
	if (MARKER_LEN + len > have)
		r = blk_read(e->file, buf + have, MARKER_LEN + len - have, off + have);
	return r < 0 ? r : (int64_t)len;
}

int vmdk_stream_marker(struct vmdk_extent *e, uint64_t off, uint64_t *g, uint64_t *bytes)
{
	uint64_t end = blk_size(e->file), lba, len;
	uint8_t m[MARKER_LEN];
	int r = range_inside(off, MARKER_LEN, end) ? blk_read(e->file, m, MARKER_LEN, off) : -EIO;

	if (r < 0)
		return r;
	lba = le64_load(m);
	len = le32_load(m + 8);
	if (!len || len > packed_max(e) || !range_inside(off, MARKER_LEN + len, end) ||
	    lba % (e->grain / SECTOR))
		return -EIO;
	*g = lba / (e->grain / SECTOR);
	*bytes = ALIGN_UP(MARKER_LEN + len, SECTOR);
	return 0;
}

int vmdk_stream_read(struct vmdk_extent *e, uint64_t g, const struct vmdk_run *run, uint8_t *buf)
{
	uint8_t *packed = malloc(MARKER_LEN + packed_max(e));
	int64_t len;
	int r;

	if (!packed)
		return -ENOMEM;
	len = read_packed(e, run->off, run->room, packed);
	r = len < 0 ? (int)len : inflate_grain(e, packed + MARKER_LEN, (size_t)len, buf);
	free(packed);
	if (r == -EIO)
		log_guest(&log_vmdk, "%s: the packed grain of byte %llu is damaged", e->name,
			  (unsigned long long)(g * e->grain));
	return r;
}

/* Copy to (or from) the next n bytes of a scatter list. */
static void walk_copy(struct iov_walk *walk, uint8_t *data, uint64_t n, bool to_list)
{
	struct iovec part;

	while (n) {
		uint64_t step = n;

		if (!iov_peek(walk, &part, 1, &step))
			return;
		if (to_list)
			memcpy(part.iov_base, data, step);
		else
			memcpy(data, part.iov_base, step);
		iov_advance(walk, step);
		data += step;
		n -= step;
	}
}

static bool read_cached(struct vmdk_extent *e, uint64_t off, struct iov_walk *walk, uint64_t skip,
			uint64_t len)
{
	bool hit = false;

	pthread_mutex_lock(&e->cache_lock);
	for (unsigned i = 0; i < e->nr_unpacked && !hit; i++) {
		struct vmdk_unpacked *u = &e->unpacked[i];

		if (!u->data || u->off != off)
			continue;
		u->used = ++e->unpacked_clock;
		walk_copy(walk, u->data + skip, len, true);
		hit = true;
	}
	pthread_mutex_unlock(&e->cache_lock);
	return hit;
}

/* Takes data. */
static void put_cached(struct vmdk_extent *e, uint64_t off, uint8_t *data)
{
	struct vmdk_unpacked *oldest = NULL;

	pthread_mutex_lock(&e->cache_lock);
	if (!e->unpacked) {
		uint64_t n = MIN(VMDK_UNPACKED_CACHE / e->grain, (uint64_t)UNPACKED_MAX);

		e->unpacked = calloc(MAX(n, 1ull), sizeof(*e->unpacked));
		e->nr_unpacked = e->unpacked ? (unsigned)MAX(n, 1ull) : 0;
	}
	for (unsigned i = 0; i < e->nr_unpacked; i++)
		if (!oldest || e->unpacked[i].used < oldest->used)
			oldest = &e->unpacked[i];
	if (oldest) {
		uint8_t *old = oldest->data;

		*oldest = (struct vmdk_unpacked){off, ++e->unpacked_clock, data};
		data = old;
	}
	pthread_mutex_unlock(&e->cache_lock);
	free(data);
}

/* Whole grains go straight to the reader's memory, parts of one by way of the cache. */
int vmdk_stream_read_part(struct vmdk_extent *e, uint64_t g, const struct vmdk_run *run,
			  struct iov_walk *walk, uint64_t skip, uint64_t len)
{
	struct iovec one;
	uint64_t n = len;
	uint8_t *buf;
	int r;

	if (len == e->grain && iov_peek(walk, &one, 1, &n) && n == len) {
		r = vmdk_stream_read(e, g, run, one.iov_base);
		iov_advance(walk, len);
		return r;
	}
	if (read_cached(e, run->off, walk, skip, len))
		return 0;
	buf = malloc(e->grain);
	if (!buf)
		return -ENOMEM;
	r = vmdk_stream_read(e, g, run, buf);
	if (r < 0) {
		free(buf);
		return r;
	}
	walk_copy(walk, buf + skip, len, true);
	put_cached(e, run->off, buf);
	return 0;
}

/* ---- packing ---- */

/* Are all values about as frequent?  The sum of squares is near len for random bytes; a tenth of a
 * bit less entropy makes it many times that. */
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

/* Do eight bytes come more than once?  Looked at is one place in eight, chosen by what is there, so
 * that copies at any distance meet. */
static bool has_repeats(const uint8_t *p, size_t len)
{
	uint16_t seen[4096] = {0};
	unsigned repeats = 0;

	for (size_t i = 0; i + 8 <= len; i++) {
		uint64_t h = le64_load(p + i) * 0x9e3779b97f4a7c15ull;
		uint16_t tag = (uint16_t)(h >> 29 | 1);

		if (h >> 61)
			continue;
		repeats += seen[h >> 45 & 4095] == tag;
		seen[h >> 45 & 4095] = tag;
	}
	return repeats >= 8;
}

/* Bytes that nothing makes smaller need not be tried. */
static bool looks_random(const uint8_t *p, size_t len)
{
	return len >= 16 * KiB && is_even(p, 4 * KiB) && is_even(p, len) && !has_repeats(p, len);
}

/* RFC 1951 3.2.4: blocks that are not compressed, in a zlib stream. */
static size_t pack_stored(const uint8_t *data, size_t len, uint8_t *out)
{
	uint8_t *p = out;
	uint32_t sum = libdeflate_adler32(1, data, len);

	*p++ = 0x78;
	*p++ = 0x01;
	while (len) {
		uint16_t n = (uint16_t)MIN(len, (size_t)STORED_MAX);

		*p++ = n == len;
		le16_store(p, n);
		le16_store(p + 2, (uint16_t)~n);
		memcpy(p + 4, data, n);
		p += 4 + n;
		data += n;
		len -= n;
	}
	be32_store(p, sum);
	return (size_t)(p + 4 - out);
}

static size_t stored_size(size_t len)
{
	return len + (len + STORED_MAX - 1) / STORED_MAX * STORED_HEAD + ZLIB_OVERHEAD;
}

/* A whole grain.  Always possible: what does not get smaller is stored. */
static int pack_grain(const uint8_t *data, size_t len, uint8_t *out, size_t cap, size_t *out_len)
{
	struct libdeflate_compressor *c = deflater();
	bool random = looks_random(data, len);

	if (!c)
		return -ENOMEM;
	*out_len = random ? 0
			  : libdeflate_zlib_compress(c, data, len, out, MIN(cap, stored_size(len)));
	if (*out_len)
		return 0;
	if (cap < stored_size(len))
		return -E2BIG;
	*out_len = pack_stored(data, len, out);
	return 0;
}

/* 0: this disk takes no packed grains. */
size_t vmdk_pack_bound(const struct blk *b)
{
	return vmdk_is_stream(b) ? stored_size(vmdk_of(b)->ext[0].grain) : 0;
}

int vmdk_pack(struct blk *b, const void *data, size_t len, void *out, size_t cap, size_t *out_len)
{
	uint64_t grain = vmdk_of(b)->ext[0].grain;
	uint8_t *whole;
	int r;

	if (!vmdk_is_stream(b))
		return -E2BIG;
	if (len >= grain)
		return len > grain ? -EINVAL : pack_grain(data, len, out, cap, out_len);
	whole = calloc(1, grain); /* the disk's last grain: readers expect whole ones */
	if (!whole)
		return -ENOMEM;
	memcpy(whole, data, len);
	r = pack_grain(whole, grain, out, cap, out_len);
	free(whole);
	return r;
}

/* ---- writing ---- */

/* What lies behind the place for new grains, an empty tail or what a crash left, must be gone
 * before they are written over it: its footer would lead into them. */
static int cut_stale_end(struct vmdk_extent *e)
{
	int r = 0;

	if (!atomic_load_explicit(&e->stale_end, memory_order_acquire))
		return 0;
	pthread_mutex_lock(&e->alloc_lock);
	if (atomic_load(&e->stale_end)) {
		r = blk_resize(e->file, e->next_free);
		if (!r)
			r = blk_flush(e->file);
		if (!r)
			atomic_store(&e->stale_end, false);
	}
	pthread_mutex_unlock(&e->alloc_lock);
	return r;
}

static int append_grain(struct vmdk_extent *e, uint64_t g, const void *packed, size_t len)
{
	static const uint8_t zeroes[SECTOR];
	uint64_t whole = ALIGN_UP(MARKER_LEN + len, SECTOR), off;
	uint8_t marker[MARKER_LEN];
	struct iovec iov[3] = {
		{marker, MARKER_LEN},
		{(void *)(uintptr_t)packed, len},
		{(void *)(uintptr_t)zeroes, whole - MARKER_LEN - len},
	};
	int r;

	le64_store(marker, g * e->grain / SECTOR);
	le32_store(marker + 8, (uint32_t)len);
	r = cut_stale_end(e);
	if (!r)
		r = vmdk_alloc(e, whole, false, &off);
	if (!r)
		r = blk_writev(e->file, iov, 3, off);
	if (!r)
		r = vmdk_enter(e, g, 1, GRAIN_PACKED, off, GRAIN_BAD);
	return r;
}

int vmdk_write_packed(struct blk *b, const void *packed, size_t packed_len, size_t len,
		      uint64_t off)
{
	struct vmdk *v = vmdk_of(b);
	struct vmdk_extent *e = &v->ext[0];
	int r;

	if (!vmdk_is_stream(b))
		return -ENOTSUP;
	if (off % e->grain || !packed_len || packed_len > packed_max(e))
		return -EINVAL;
	r = vmdk_touch(v);
	return r ? r : append_grain(e, off / e->grain, packed, packed_len);
}

static bool is_zero(const uint8_t *p, size_t len)
{
	return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

static int read_old(struct vmdk *v, struct vmdk_extent *e, uint64_t g, uint8_t *buf)
{
	struct iovec iov = {buf, vmdk_grain_len(e, g)};
	struct vmdk_run run;
	int r = vmdk_lookup(e, g, 1, &run);

	if (r < 0)
		return r;
	if (run.state == GRAIN_PACKED)
		return vmdk_stream_read(e, g, &run, buf);
	if (run.state == GRAIN_BAD)
		return -EIO;
	if (run.state == GRAIN_NONE && v->b->backing)
		return blk_backing_readv(v->b, &iov, 1, iov.iov_len, e->start + g * e->grain);
	return 0;
}

static int store_grain(struct vmdk *v, struct vmdk_extent *e, uint64_t g, const uint8_t *buf)
{
	size_t cap = stored_size(e->grain), len;
	struct vmdk_run run;
	uint8_t *out;
	int r;

	if (!v->b->backing && is_zero(buf, e->grain)) {
		r = vmdk_lookup(e, g, 1, &run);
		if (!r && run.state != GRAIN_NONE)
			r = vmdk_enter(e, g, 1, GRAIN_NONE, 0, GRAIN_BAD);
		return r;
	}
	out = malloc(cap);
	if (!out)
		return -ENOMEM;
	r = pack_grain(buf, e->grain, out, cap, &len);
	if (!r)
		r = append_grain(e, g, out, len);
	free(out);
	return r;
}

static int write_one(struct vmdk *v, struct vmdk_extent *e, struct iov_walk *walk, uint64_t g,
		     uint64_t in, uint64_t n, uint8_t *buf)
{
	struct vmdk_claim claim = {g, g + 1, NULL};
	int r = 0;

	vmdk_claim(e, &claim);
	memset(buf, 0, e->grain);
	if (in || n < vmdk_grain_len(e, g))
		r = read_old(v, e, g, buf);
	walk_copy(walk, buf + in, n, false);
	if (!r)
		r = store_grain(v, e, g, buf);
	vmdk_unclaim(e, &claim);
	return r;
}

int vmdk_stream_write(struct vmdk *v, struct vmdk_extent *e, struct iov_walk *walk, uint64_t len,
		      uint64_t off)
{
	uint8_t *buf = malloc(e->grain);
	uint64_t n;
	int r = buf ? 0 : -ENOMEM;

	for (; len && !r; len -= n, off += n) {
		n = MIN(len, e->grain - off % e->grain);
		r = write_one(v, e, walk, off / e->grain, off % e->grain, n, buf);
	}
	free(buf);
	return r;
}

/* ---- the tail ---- */

static void put_marker(uint8_t sector[SECTOR], uint64_t sectors, uint32_t type)
{
	memset(sector, 0, SECTOR);
	le64_store(sector, sectors);
	le32_store(sector + 12, type);
}

static bool table_is_empty(const struct vmdk_extent *e, const uint8_t *raw)
{
	return is_zero(raw, e->gt_bytes);
}

/* Up to TAIL_TABLES of the tables from *i on, each behind its marker, in one write. */
static int write_some_tables(struct vmdk_extent *e, const struct vmdk_writeback *w, unsigned *i,
			     uint32_t *places, uint64_t *off)
{
	uint64_t each = SECTOR + e->gt_bytes, len = 0;
	uint8_t *buf = malloc(each * TAIL_TABLES);
	int r = buf ? 0 : -ENOMEM;

	for (; !r && *i < w->nr && len < each * TAIL_TABLES; ++*i) {
		places[*i] = 0;
		if (table_is_empty(e, w->table[*i].raw))
			continue;
		put_marker(buf + len, e->gt_bytes / SECTOR, MARKER_GT);
		memcpy(buf + len + SECTOR, w->table[*i].raw, e->gt_bytes);
		places[*i] = (uint32_t)((*off + len + SECTOR) / SECTOR);
		len += each;
	}
	if (!r && len)
		r = blk_write(e->file, buf, len, *off);
	*off += len;
	free(buf);
	return r;
}

static uint64_t gd_bytes(const struct vmdk_extent *e)
{
	return ALIGN_UP(MAX(e->nr_gd * 4ull, 1ull), SECTOR);
}

/* The directory with the tables' new places. */
static int write_directory(struct vmdk_extent *e, const struct vmdk_writeback *w,
			   const uint32_t *places, uint64_t off)
{
	uint64_t len = SECTOR + gd_bytes(e);
	uint8_t *buf = calloc(1, len);
	int r;

	if (!buf)
		return -ENOMEM;
	put_marker(buf, gd_bytes(e) / SECTOR, MARKER_GD);
	for (uint32_t i = 0; i < e->nr_gd; i++)
		le32_store(buf + SECTOR + i * 4ull, e->gd[i]);
	for (unsigned i = 0; i < w->nr; i++)
		le32_store(buf + SECTOR + w->table[i].t->index * 4ull, places[i]);
	r = blk_write(e->file, buf, len, off);
	free(buf);
	return r;
}

static int write_footer(struct vmdk_extent *e, uint64_t gd_off, uint64_t off)
{
	uint8_t buf[3 * SECTOR];

	put_marker(buf, 1, MARKER_FOOTER);
	vmdk_hosted_header(e, false, gd_off / SECTOR, buf + SECTOR);
	put_marker(buf + 2ull * SECTOR, 0, MARKER_EOS);
	return blk_write(e->file, buf, sizeof(buf), off);
}

/* Images of some programs have the directory in front and say so in the header. */
static int header_gd_at_end(struct vmdk_extent *e)
{
	uint8_t sector[SECTOR];
	int r;

	if (!e->header_has_gd)
		return 0;
	vmdk_hosted_header(e, false, VMDK_GD_AT_END, sector);
	r = blk_write(e->file, sector, SECTOR, 0);
	if (!r)
		r = blk_flush(e->file);
	if (!r)
		e->header_has_gd = false;
	return r;
}

static uint64_t tail_len(const struct vmdk_extent *e, const struct vmdk_writeback *w)
{
	uint64_t len = 4ull * SECTOR + gd_bytes(e);

	for (unsigned i = 0; i < w->nr; i++)
		if (!table_is_empty(e, w->table[i].raw))
			len += SECTOR + e->gt_bytes;
	return len;
}

static int write_tail(struct vmdk_extent *e, const struct vmdk_writeback *w, uint32_t *places,
		      uint64_t *gd_off)
{
	uint64_t len = tail_len(e, w), off = 0, end;
	unsigned i = 0;
	int r = cut_stale_end(e);

	if (!r)
		r = vmdk_alloc(e, len, false, &off);
	end = off + len;
	while (!r && i < w->nr)
		r = write_some_tables(e, w, &i, places, &off);
	*gd_off = off + SECTOR;
	if (!r)
		r = write_directory(e, w, places, off);
	if (!r)
		r = blk_flush(e->file);
	if (!r)
		r = write_footer(e, *gd_off, end - 3ull * SECTOR);
	if (!r)
		r = blk_flush(e->file);
	return r ? r : header_gd_at_end(e);
}

static void use_tail(struct vmdk_extent *e, const struct vmdk_writeback *w, const uint32_t *places,
		     uint64_t gd_off)
{
	pthread_rwlock_wrlock(&e->map_lock);
	for (unsigned i = 0; i < w->nr; i++)
		e->gd[w->table[i].t->index] = places[i];
	e->gd_off = gd_off;
	e->flags &= ~2u;
	e->rgd_off = 0;
	free(e->rgd);
	e->rgd = NULL;
	pthread_rwlock_unlock(&e->map_lock);
}

static bool take_changed(struct vmdk_extent *e)
{
	bool changed;

	pthread_rwlock_wrlock(&e->map_lock);
	changed = e->tail_missing;
	e->tail_missing = false;
	pthread_rwlock_unlock(&e->map_lock);
	return changed;
}

int vmdk_stream_flush(struct vmdk_extent *e)
{
	struct vmdk_writeback w = {0};
	uint32_t *places = NULL;
	uint64_t gd_off = 0;
	int r;

	pthread_mutex_lock(&e->flush_lock);
	if (!take_changed(e)) {
		r = blk_flush(e->file);
		pthread_mutex_unlock(&e->flush_lock);
		return r;
	}
	r = vmdk_writeback_take(e, &w);
	if (!r) {
		places = calloc(w.nr + 1ull, sizeof(*places));
		r = places ? write_tail(e, &w, places, &gd_off) : -ENOMEM;
	}
	if (!r)
		use_tail(e, &w, places, gd_off);
	vmdk_writeback_done(e, &w, r);
	if (r < 0) {
		pthread_rwlock_wrlock(&e->map_lock);
		e->tail_missing = true;
		pthread_rwlock_unlock(&e->map_lock);
	}
	pthread_mutex_unlock(&e->flush_lock);
	free(places);
	return r;
}

/* ---- without a tail ---- */

struct scan {
	uint64_t pos, good_end; /* good_end: behind the last grain or table that makes sense */
	uint64_t nr_grains, nr_bad;
	unsigned zeroes; /* sectors since the last thing that made sense */
	uint8_t *packed, *grain;
};

/* Grains whose data did not reach the disk before a crash are no news; one that was good before
 * keeps its older data. */
static int scan_grain(struct vmdk_extent *e, struct scan *s, uint64_t lba)
{
	uint64_t g = lba * SECTOR / e->grain;
	int64_t len = read_packed(e, s->pos, 0, s->packed);
	int r = 0;

	if (len < 0)
		return (int)len;
	s->pos += ALIGN_UP(MARKER_LEN + (uint64_t)len, SECTOR);
	if (inflate_grain(e, s->packed + MARKER_LEN, (size_t)len, s->grain) < 0) {
		s->nr_bad++;
		return 0;
	}
	r = vmdk_enter(e, g, 1, GRAIN_PACKED, s->pos - ALIGN_UP(MARKER_LEN + (uint64_t)len, SECTOR),
		       GRAIN_BAD);
	s->nr_grains++;
	s->good_end = s->pos;
	s->zeroes = 0;
	return r;
}

/* Tables of tails that were not the last, and zeroes: skip them.  False at the end. */
static bool scan_other(struct vmdk_extent *e, struct scan *s, const uint8_t *m)
{
	uint64_t sectors = le64_load(m);
	uint32_t type = le32_load(m + 12);

	if (type > MARKER_FOOTER || sectors > gd_bytes(e) / SECTOR + e->gt_bytes / SECTOR)
		return false;
	if (type == MARKER_EOS && ++s->zeroes > ZERO_SECTORS_MAX)
		return false;
	s->pos += SECTOR + (type == MARKER_EOS ? 0 : sectors * SECTOR);
	return true;
}

static int scan_markers(struct vmdk_extent *e, struct scan *s)
{
	uint64_t end = ALIGN_DOWN(atomic_load(&e->file_end), SECTOR), lba;
	uint8_t m[SECTOR];
	int r = 0;

	while (!r && s->pos < end) {
		r = blk_read(e->file, m, SECTOR, s->pos);
		if (r < 0)
			return r;
		if (!le32_load(m + 8)) {
			if (!scan_other(e, s, m))
				break;
			continue;
		}
		lba = le64_load(m);
		if (lba % (e->grain / SECTOR) || lba >= e->capacity / SECTOR)
			break;
		r = scan_grain(e, s, lba);
		if (r == -EIO) /* cut off in the middle */
			return 0;
	}
	return r;
}

int vmdk_stream_rebuild(struct vmdk_extent *e, struct error *err)
{
	struct scan s = {.pos = e->overhead};
	int r;

	if (s.pos < SECTOR || s.pos == VMDK_GD_AT_END || s.pos % SECTOR)
		s.pos = SECTOR + ALIGN_UP(e->desc_room, SECTOR);
	s.good_end = s.pos;
	s.packed = malloc(MARKER_LEN + packed_max(e));
	s.grain = malloc(e->grain);
	r = s.packed && s.grain ? scan_markers(e, &s) : -ENOMEM;
	free(s.packed);
	free(s.grain);
	if (r < 0)
		return err_errno(err, -r, "'%s': its grains cannot be found", e->name);
	log_warn(&log_vmdk,
		 "%s: the end with the grain directory is missing; %llu grains were found by their "
		 "markers%s",
		 e->name, (unsigned long long)s.nr_grains, s.nr_bad ? ", others are damaged" : "");
	e->tail_missing = true;
	e->next_free = s.good_end;
	e->stale_end = s.good_end < blk_size(e->file);
	return 0;
}
