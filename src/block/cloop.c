/* block/cloop.c - compressed loop images, version 2 (KNOPPIX): read only.
 *
 * 128 bytes of shell script, then big-endian: block size u32, number of blocks u32, the place of
 * each block in the file u64 and the end of the last one; each block is a zlib stream. */
#include "base/bytes.h"
#include "base/error.h"
#include "block/chunks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { CLOOP_HEADER = 128, CLOOP_TABLE = 136 };

static const char magic[] = "#!/bin/sh\n#V2.0 Format\n";

static int cloop_probe(const uint8_t *head, size_t len)
{
	return len >= CLOOP_TABLE && !memcmp(head, magic, sizeof(magic) - 1) ? 100 : 0;
}

static int damaged(struct blk *b, struct error *err, const char *what)
{
	return err_set(err, EINVAL, "'%s': %s: the cloop image is damaged", blk_path(b), what);
}

static int add_blocks(struct blk *b, struct chunks *c, uint32_t block, uint32_t n,
		      const uint8_t *table, struct error *err)
{
	int r = 0;

	for (uint32_t i = 0; i < n && !r; i++) {
		uint64_t at = be64_load(table + 8ull * i), end = be64_load(table + 8ull * i + 8);

		if (at > end || end > blk_size(b->file))
			return damaged(b, err, "a block lies outside the file");
		r = chunks_add(
			c, (struct chunk){(uint64_t)i * block, block, at, end - at, CHUNK_ZLIB});
		if (r < 0)
			return damaged(b, err, "a block is larger than 64 MiB");
	}
	return chunks_ready(c);
}

static int load(struct blk *b, struct chunks *c, struct error *err)
{
	uint8_t h[CLOOP_TABLE], *table;
	uint32_t block, n;
	int r;

	if (blk_read(b->file, h, sizeof(h), 0) < 0 || !cloop_probe(h, sizeof(h)))
		return err_set(err, EINVAL, "'%s' is not a cloop image of version 2", blk_path(b));
	block = be32_load(h + CLOOP_HEADER);
	n = be32_load(h + CLOOP_HEADER + 4);
	if (!block || block % 512 || block > CHUNK_LEN_MAX)
		return damaged(b, err, "its block size must be whole sectors, at most 64 MiB");
	if (n > CHUNKS_MAX)
		return damaged(b, err, "it has more than 4194304 blocks");
	if (!range_inside(CLOOP_TABLE, (n + 1ull) * 8, blk_size(b->file)))
		return damaged(b, err, "it ends before its table does");
	table = malloc((n + 1ull) * 8);
	r = table ? blk_read(b->file, table, (n + 1ull) * 8, CLOOP_TABLE) : -ENOMEM;
	if (r < 0)
		r = err_errno(err, -r, "cannot read '%s'", blk_path(b));
	else
		r = add_blocks(b, c, block, n, table, err);
	free(table);
	b->info.size = (uint64_t)n * block;
	b->info.cluster = block;
	return r;
}

static int cloop_open(struct blk *b, const char *path, struct error *err)
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

static void cloop_close(struct blk *b)
{
	chunks_free(b->priv);
	free(b->priv);
}

static int cloop_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		       uint64_t off)
{
	return chunks_readv(b->priv, b->file, iov, n, len, off);
}

static int cloop_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	chunks_map(b->priv, b->file, off, m);
	return 0;
}

const struct blk_format blk_cloop = {
	.name = "cloop",
	.help = "compressed loop image, version 2 (read only)",
	.on_file = true,
	.probe = cloop_probe,
	.open = cloop_open,
	.close = cloop_close,
	.readv = cloop_readv,
	.map = cloop_map,
};
