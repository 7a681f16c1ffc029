/* fuzz_qcow2.c - a qcow2 file of any kind: it opens or is refused with words, and whatever is then
 * asked of it - reading, writing, snapshots, bitmaps, another size, a repair - nothing of ours
 * breaks.  The file is in memory and may grow to 4 MiB.  After a repair that says all is mended,
 * a second look finds nothing. */
#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/format.h"
#include "block/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FILE_MAX = 4 << 20, STEPS = 24, LEN_MAX = 70000 };

static uint8_t bytes[FILE_MAX];
static uint64_t bytes_used; /* the rest is zeroes */
static uint8_t buf[LEN_MAX];

/* --- the file ----------------------------------------------------------------------------------
 */

static int ram_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	for (unsigned i = 0; i < n; off += iov[i++].iov_len)
		memcpy(iov[i].iov_base, bytes + off, iov[i].iov_len);
	return 0;
}

static int ram_extend(struct blk *b, uint64_t end)
{
	if (end > FILE_MAX)
		return -ENOSPC;
	bytes_used = MAX(bytes_used, end);
	if (end > blk_size(b))
		blk_set_size(b, end);
	return 0;
}

static int ram_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	if (len > FILE_MAX || off > FILE_MAX || ram_extend(b, off + len) < 0)
		return -ENOSPC;
	for (unsigned i = 0; i < n; off += iov[i++].iov_len)
		memcpy(bytes + off, iov[i].iov_base, iov[i].iov_len);
	return 0;
}

static int ram_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	memset(bytes + off, 0, len);
	return 0;
}

static int ram_resize(struct blk *b, uint64_t size)
{
	if (size < blk_size(b))
		memset(bytes + size, 0, blk_size(b) - size);
	if (size > FILE_MAX)
		return -ENOSPC;
	bytes_used = MAX(bytes_used, size);
	blk_set_size(b, size);
	return 0;
}

static void ram_close(struct blk *b)
{
}

static const struct blk_format ram = {
	.name = "ram",
	.readv = ram_readv,
	.writev = ram_writev,
	.write_zeroes = ram_write_zeroes,
	.resize = ram_resize,
	.close = ram_close,
};

static void load(const uint8_t *data, size_t size)
{
	memset(bytes, 0, bytes_used);
	memcpy(bytes, data, size);
	bytes_used = size;
}

static struct blk *open_image(size_t size, unsigned flags)
{
	struct blk_info info = {.size = size, .block_size = 512};
	struct blk *file, *b = NULL;
	struct error err = {{0}};

	if (blk_wrap(&file, &ram, NULL, &info, (flags & BLK_READONLY) | BLK_FILE | BLK_NO_POOL,
		     &err) < 0)
		abort();
	if (!blk_open_on(&b, file, "x", "qcow2", flags | BLK_NO_POOL, NULL, &err))
		return b;
	if (!err.msg[0])
		abort(); /* a refusal has words */
	return NULL;
}

/* --- what is asked of it ------------------------------------------------------------------------
 */

static void look_around(struct blk *b)
{
	uint64_t size = blk_size(b), off = 0;

	for (int i = 0; i < STEPS && off < size; i++) {
		struct blk_map m = {.len = size - off};

		if (blk_map(b, off, &m) < 0)
			m.len = 1;
		blk_read(b, buf, MIN(m.len, sizeof(buf)), off);
		off += m.len;
	}
	if (size)
		blk_read(b, buf, 1, size - 1);
}

static void change(struct blk *b, const uint8_t *data, size_t size)
{
	for (unsigned i = 0; i < 8 && size >= 8; i++) {
		uint64_t disk = blk_size(b), off, len;

		if (!disk)
			return;
		off = le64_load(data + (i * 97) % (size - 7)) % MIN(disk, 4 * MiB);
		len = MIN(1 + data[(i * 31) % size] * 113ull, disk - off);
		if (i % 3 == 0)
			blk_write_zeroes(b, off, len, i & 1);
		else if (i % 3 == 1)
			blk_discard(b, off, len);
		blk_write(b, buf, len, off);
		if (i == 3)
			blk_flush(b);
	}
}

static void snapshots_and_bitmaps(struct blk *b)
{
	struct blk_snapshot *snaps = NULL;
	struct blk_bitmap *maps = NULL;
	struct error err;
	unsigned n = 0;

	if (!blk_snapshot_list(b, &snaps, &n, &err) && n) {
		blk_snapshot_apply(b, snaps[0].id, &err);
		blk_snapshot_delete(b, snaps[n - 1].id, &err);
	}
	free(snaps);
	blk_snapshot_create(b, "fuzz", &err);
	n = 0;
	if (!blk_bitmap_list(b, &maps, &n, &err) && n) {
		blk_bitmap_clear(b, maps[0].name, &err);
		blk_bitmap_remove(b, maps[n - 1].name, &err);
	}
	free(maps);
	blk_bitmap_add(b, "fuzz", 65536, &err);
}

static void use(const uint8_t *data, size_t size)
{
	struct blk *b = open_image(size, 0);

	if (!b)
		return;
	look_around(b);
	change(b, data, size);
	snapshots_and_bitmaps(b);
	change(b, data, size);
	blk_resize(b, MIN(blk_size(b), 8 * MiB) / 1024 * 512 + 512 * data[size / 2]);
	look_around(b);
	blk_close(b);
}

static void tell(void *opaque, const char *text)
{
	fprintf(stderr, "after the repair: %s\n", text);
}

static void mend(size_t size)
{
	struct blk_check c = {.fix = BLK_FIX_ERRORS | BLK_FIX_LEAKS}, again = {.say = tell};
	struct blk *b = open_image(size, BLK_CHECKING);
	struct error err;
	int r;

	if (!b)
		return;
	r = blk_check(b, &c, &err);
	size = bytes_used;
	blk_close(b);
	if (r < 0 || c.corruptions || c.leaks)
		return;
	b = open_image(size, BLK_READONLY | BLK_CHECKING);
	if (!b)
		return;
	if (!blk_check(b, &again, &err) && again.corruptions)
		abort();
	blk_close(b);
}

static void look(size_t size, unsigned flags)
{
	struct blk_check c = {0};
	struct error err;
	struct blk *b = open_image(size, BLK_READONLY | flags);

	if (!b)
		return;
	look_around(b);
	if (flags & BLK_CHECKING)
		blk_check(b, &c, &err);
	blk_close(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	log_configure("error", NULL);
	if (size < 8 || size > FILE_MAX)
		return 0;
	load(data, size);
	look(size, BLK_RECOVER);
	look(size, BLK_CHECKING);
	use(data, size);
	load(data, size);
	mend(size);
	return 0;
}
