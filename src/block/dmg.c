/* block/dmg.c - Apple disk images: read only.
 *
 * The last sector ("koly", big-endian) says where a property list is; that one holds, in base64, a
 * table ("mish") for each partition, of chunks that are zeroes, raw, zlib or bzip2.  Chunks of
 * Apple's other packers (ADC, LZFSE, LZMA) are refused when the image is opened. */
#include "base/bytes.h"
#include "base/error.h"
#include "block/chunks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
	KOLY_LEN = 512,
	KOLY_DATA = 0x18,
	KOLY_XML = 0xd8,
	KOLY_XML_LEN = 0xe0,
	KOLY_SECTORS = 0x1ec,
	XML_MAX = 16 << 20,

	MISH_FIRST = 8,
	MISH_DATA = 24,
	MISH_COUNT = 200,
	MISH_CHUNKS = 204,
	MISH_CHUNK = 40,
};

static int dmg_probe_tail(const uint8_t *tail, size_t len)
{
	return len == KOLY_LEN && !memcmp(tail, "koly", 4) && be32_load(tail + 8) == KOLY_LEN ? 90
											      : 0;
}

static int damaged(struct blk *b, struct error *err, const char *what)
{
	return err_set(err, EINVAL, "'%s': %s: the DMG image is damaged", blk_path(b), what);
}

/* ---- base64 ---- */

static int digit(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* In place; what is no digit is skipped. */
static size_t decode(uint8_t *text, size_t len)
{
	uint32_t bits = 0;
	unsigned have = 0;
	size_t out = 0;

	for (size_t i = 0; i < len; i++) {
		int d = digit((char)text[i]);

		if (d < 0)
			continue;
		bits = bits << 6 | (uint32_t)d;
		have += 6;
		if (have >= 8) {
			have -= 8;
			text[out++] = (uint8_t)(bits >> have);
		}
	}
	return out;
}

/* ---- tables ---- */

static int take_kind(struct blk *b, uint32_t type, enum chunk_kind *kind, struct error *err)
{
	switch (type) {
	case 0:
	case 2:
		*kind = CHUNK_ZERO;
		return 0;
	case 1:
		*kind = CHUNK_RAW;
		return 0;
	case 0x80000005:
		*kind = CHUNK_ZLIB;
		return 0;
	case 0x80000006:
		*kind = CHUNK_BZIP2;
		return 0;
	}
	return err_set(err, ENOTSUP,
		       "'%s' is packed with %s, which cannot be read: convert it to zlib (UDZO) "
		       "where it was made",
		       blk_path(b),
		       type == 0x80000004   ? "ADC (UDCO)"
		       : type == 0x80000007 ? "LZFSE (ULFO)"
		       : type == 0x80000008 ? "LZMA (ULMO)"
					    : "something unknown");
}

static int take_chunk(struct blk *b, struct chunks *c, const uint8_t *mish, const uint8_t *e,
		      uint64_t base, struct error *err)
{
	uint64_t sector = be64_load(e + 8), count = be64_load(e + 16), size = b->info.size / 512;
	struct chunk k = {.host_len = be64_load(e + 32)};
	int r = take_kind(b, be32_load(e), &k.kind, err);

	if (r < 0 || !count)
		return r;
	if (sector > size || be64_load(mish + MISH_FIRST) > size - sector ||
	    !range_inside(sector + be64_load(mish + MISH_FIRST), count, size))
		return damaged(b, err, "a chunk lies outside the disk");
	k.off = (sector + be64_load(mish + MISH_FIRST)) * 512;
	k.len = count * 512;
	if (__builtin_add_overflow(base, be64_load(e + 24), &k.host))
		return damaged(b, err, "a chunk lies outside the file");
	if (k.kind == CHUNK_RAW && k.host_len < k.len)
		return damaged(b, err, "a chunk is too short");
	if (k.kind != CHUNK_ZERO && !range_inside(k.host, k.host_len, blk_size(b->file)))
		return damaged(b, err, "a chunk lies outside the file");
	r = chunks_add(c, k);
	return r == -EFBIG ? damaged(b, err, "a chunk is larger than 64 MiB") : r;
}

static int take_table(struct blk *b, struct chunks *c, const uint8_t *mish, size_t len,
		      uint64_t data, struct error *err)
{
	uint64_t base;
	int r = 0;

	if (len < MISH_CHUNKS || memcmp(mish, "mish", 4) ||
	    be32_load(mish + MISH_COUNT) > (len - MISH_CHUNKS) / MISH_CHUNK)
		return damaged(b, err, "a table of chunks is cut off");
	if (__builtin_add_overflow(data, be64_load(mish + MISH_DATA), &base))
		return damaged(b, err, "a table points outside the file");
	for (uint32_t i = 0; i < be32_load(mish + MISH_COUNT) && !r; i++) {
		const uint8_t *e = mish + MISH_CHUNKS + (size_t)i * MISH_CHUNK;

		if (be32_load(e) == 0xffffffff)
			break;
		if (be32_load(e) != 0x7ffffffe) /* a comment */
			r = take_chunk(b, c, mish, e, base, err);
	}
	return r;
}

/* All <data> of the array named "blkx".  No more of XML is understood than that. */
static int take_xml(struct blk *b, struct chunks *c, char *xml, uint64_t data, struct error *err)
{
	char *at = strstr(xml, "<key>blkx</key>"), *end, *next, *stop;
	int r = at ? 0 : damaged(b, err, "there is no list of chunks");

	if (r < 0)
		return r;
	end = strstr(at, "</array>");
	end = end ? end : at + strlen(at);
	while (!r && (next = strstr(at, "<data>")) && next < end) {
		stop = strstr(next, "</data>");
		if (!stop)
			return damaged(b, err, "the list of chunks is cut off");
		next += strlen("<data>");
		r = take_table(b, c, (uint8_t *)next,
			       decode((uint8_t *)next, (size_t)(stop - next)), data, err);
		at = stop;
	}
	return r;
}

static int load(struct blk *b, struct chunks *c, struct error *err)
{
	uint64_t size = blk_size(b->file), at, len;
	uint8_t koly[KOLY_LEN];
	char *xml;
	int r;

	if (size < KOLY_LEN || blk_read(b->file, koly, KOLY_LEN, size - KOLY_LEN) < 0 ||
	    !dmg_probe_tail(koly, KOLY_LEN))
		return err_set(err, EINVAL, "'%s' is not a DMG image", blk_path(b));
	at = be64_load(koly + KOLY_XML);
	len = be64_load(koly + KOLY_XML_LEN);
	if (!len)
		return err_set(err, ENOTSUP,
			       "'%s': its list of chunks is in a resource fork, not a "
			       "property list: too old a DMG",
			       blk_path(b));
	if (len > XML_MAX || !range_inside(at, len, size))
		return damaged(b, err, "its property list lies outside the file");
	if (be64_load(koly + KOLY_SECTORS) > INT64_MAX / 1024)
		return damaged(b, err, "its size cannot be");
	b->info.size = be64_load(koly + KOLY_SECTORS) * 512;
	xml = calloc(1, len + 1);
	r = xml ? blk_read(b->file, xml, len, at) : -ENOMEM;
	if (r < 0)
		r = err_errno(err, -r, "cannot read '%s'", blk_path(b));
	else
		r = take_xml(b, c, xml, be64_load(koly + KOLY_DATA), err);
	free(xml);
	if (!r && chunks_ready(c) < 0)
		r = damaged(b, err, "its chunks overlap");
	return r;
}

static int dmg_open(struct blk *b, const char *path, struct error *err)
{
	struct chunks *c = calloc(1, sizeof(*c));
	int r = c ? load(b, c, err) : err_errno(err, ENOMEM, "'%s'", path);

	if (r < 0 && c)
		chunks_free(c);
	if (r < 0)
		free(c);
	else
		b->priv = c;
	return r;
}

static void dmg_close(struct blk *b)
{
	chunks_free(b->priv);
	free(b->priv);
}

static int dmg_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	return chunks_readv(b->priv, b->file, iov, n, len, off);
}

static int dmg_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	chunks_map(b->priv, b->file, off, m);
	return 0;
}

const struct blk_format blk_dmg = {
	.name = "dmg",
	.help = "Apple disk image: UDRO, UDZO, UDBZ (read only)",
	.on_file = true,
	.probe_tail = dmg_probe_tail,
	.open = dmg_open,
	.close = dmg_close,
	.readv = dmg_readv,
	.map = dmg_map,
};
