/* fuzz_image.h - what the targets of image formats share: a sparse file in memory, made from the
 * input, and a life for the image in it: looked at, checked, written to, mended.
 *
 * Input: a byte of flags, the file's length in sectors of 512 bytes (u32), then pieces of it:
 * offset in units of 512 bytes (u32), length (u16), bytes.  Little-endian.  fuzz_seeds.py packs
 * files so. */
#pragma once

#include "base/bytes.h"
#include "base/error.h"
#include "block/format.h"

#include <errno.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FUZZ_PAGE = 65536, FUZZ_PAGES = 1024, FUZZ_IO = 65536 };
enum { FUZZ_SEAL = 1, FUZZ_WRITE = 2, FUZZ_RECOVER = 4 };

static uint8_t *fuzz_page[FUZZ_PAGES];

static inline void fuzz_bytes(uint64_t off, void *buf, size_t len, bool write)
{
	uint8_t *p = buf;

	for (size_t i = 0, n; i < len; i += n) {
		uint64_t at = off + i;
		uint8_t **page = &fuzz_page[at / FUZZ_PAGE];

		n = MIN(len - i, FUZZ_PAGE - at % FUZZ_PAGE);
		if (write && !*page)
			*page = calloc(1, FUZZ_PAGE);
		if (write)
			memcpy(*page + at % FUZZ_PAGE, p + i, n);
		else if (*page)
			memcpy(p + i, *page + at % FUZZ_PAGE, n);
		else
			memset(p + i, 0, n);
	}
}

static inline int fuzz_rw(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			  uint64_t off, bool write)
{
	if (!range_inside(off, len, (uint64_t)FUZZ_PAGE * FUZZ_PAGES)) {
		if (write)
			return -ENOSPC;
		for (unsigned i = 0; i < n; i++)
			memset(iov[i].iov_base, 0, iov[i].iov_len);
		return 0;
	}
	for (unsigned i = 0; i < n; off += iov[i++].iov_len)
		fuzz_bytes(off, iov[i].iov_base, iov[i].iov_len, write);
	if (write && off > blk_size(b))
		blk_set_size(b, off);
	return 0;
}

static inline int fuzz_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			     uint64_t off)
{
	return fuzz_rw(b, iov, n, len, off, false);
}

static inline int fuzz_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			      uint64_t off)
{
	return fuzz_rw(b, iov, n, len, off, true);
}

static inline int fuzz_zero(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	static uint8_t zero[FUZZ_PAGE];
	int r = 0;

	if (!range_inside(off, len, (uint64_t)FUZZ_PAGE * FUZZ_PAGES))
		return -ENOSPC;
	for (uint64_t i = 0; i < len && !r; i += sizeof(zero))
		if (fuzz_page[(off + i) / FUZZ_PAGE] ||
		    fuzz_page[MIN((off + i) / FUZZ_PAGE + 1, FUZZ_PAGES - 1)])
			fuzz_bytes(off + i, zero, MIN(sizeof(zero), len - i), true);
	if (off + len > blk_size(b))
		blk_set_size(b, off + len);
	return r;
}

static inline int fuzz_resize(struct blk *b, uint64_t size)
{
	if (size > (uint64_t)FUZZ_PAGE * FUZZ_PAGES)
		return -ENOSPC;
	blk_set_size(b, size);
	return 0;
}

static inline void fuzz_close(struct blk *b)
{
}

static const struct blk_format fuzz_file = {
	.name = "fuzz",
	.readv = fuzz_readv,
	.writev = fuzz_writev,
	.write_zeroes = fuzz_zero,
	.resize = fuzz_resize,
	.close = fuzz_close,
};

/* Opens the image, or says why not. */
static inline struct blk *fuzz_open(const char *format, uint64_t *size, unsigned flags)
{
	struct blk_info info = {.size = *size, .block_size = 512};
	struct error err = {""};
	struct blk *file, *b = NULL;

	if (blk_wrap(&file, &fuzz_file, size, &info,
		     BLK_FILE | BLK_NO_POOL | (flags & BLK_READONLY), NULL) < 0)
		abort();
	if (blk_open_on(&b, file, "/nowhere/at/all", format, flags | BLK_NO_POOL, NULL, &err) == 0)
		return b;
	if (!err.msg[0])
		abort();
	return NULL;
}

static inline uint64_t fuzz_spot(const struct blk *b, unsigned i, uint64_t *len)
{
	static const uint64_t odd[] = {0, 1, 511, 4095, 65536, 1 << 20, (1 << 20) - 300, 1 << 22};
	uint64_t size = blk_size(b),
		 off = i & 1 ? odd[i / 2 % 8] : size - MIN(size, odd[i / 2 % 8]);

	off = MIN(off, size);
	*len = MIN(size - off, (uint64_t)(i % 3 ? 5000 : FUZZ_IO));
	return off;
}

static inline void fuzz_look(struct blk *b)
{
	static uint8_t buf[FUZZ_IO];
	uint64_t len, at = 0;

	for (unsigned i = 0; i < 12; i++) {
		uint64_t off = fuzz_spot(b, i, &len);

		(void)blk_read(b, buf, len, off);
	}
	for (unsigned i = 0; i < 64 && at < blk_size(b); i++) {
		struct blk_map m = {.len = blk_size(b) - at};

		if (blk_map(b, at, &m) < 0 || !m.len)
			break;
		at += m.len;
	}
}

static inline void fuzz_change(struct blk *b)
{
	static uint8_t buf[FUZZ_IO] = {1, 2, 3};
	uint64_t len;

	for (unsigned i = 0; i < 10; i++) {
		uint64_t off = fuzz_spot(b, i, &len);

		(void)blk_write(b, buf, len, off);
		off = fuzz_spot(b, i + 3, &len);
		(void)(i % 2 ? blk_discard(b, off, len) : blk_write_zeroes(b, off, len, i % 4));
		if (i == 4)
			(void)blk_flush(b);
	}
	if (blk_size(b) < GiB)
		(void)blk_resize(b, blk_size(b) + 3 * MiB);
	(void)blk_flush(b);
}

static inline void fuzz_check(struct blk *b, unsigned fix)
{
	struct blk_check c = {.fix = fix};
	struct error err = {""};

	if (b->fmt->check && blk_check(b, &c, &err) < 0 && !err.msg[0])
		abort();
}

static inline uint64_t fuzz_unpack(const uint8_t *data, size_t size)
{
	uint64_t len = le32_load(data + 1) * 512ull;

	for (size_t i = 5; i + 6 <= size;) {
		uint64_t off = le32_load(data + i) * 512ull % ((uint64_t)FUZZ_PAGE * FUZZ_PAGES);
		size_t n = MIN((size_t)le16_load(data + i + 4), size - i - 6);

		n = MIN(n, (uint64_t)FUZZ_PAGE * FUZZ_PAGES - off);
		fuzz_bytes(off, (void *)(uintptr_t)(data + i + 6), n, true);
		i += 6 + n;
	}
	return MIN(len, (uint64_t)FUZZ_PAGE * FUZZ_PAGES);
}

/* seal puts good checksums where the format has some, or is NULL. */
static inline int fuzz_image(const char *format, const uint8_t *data, size_t size,
			     void (*seal)(uint64_t len))
{
	unsigned flags = size ? data[0] : 0;
	struct blk *b = NULL;
	uint64_t len;

	if (size < 5)
		return 0;
	len = fuzz_unpack(data, size);
	if (seal && flags & FUZZ_SEAL)
		seal(len);
	for (unsigned alone = 0; alone < 2; alone++) {
		b = fuzz_open(format, &len,
			      BLK_READONLY | (alone ? BLK_NO_BACKING | BLK_CHECKING : 0) |
				      (flags & FUZZ_RECOVER ? BLK_RECOVER : 0));
		if (b) {
			fuzz_look(b);
			fuzz_check(b, 0);
		}
		blk_close(b);
	}
	if (flags & FUZZ_WRITE && (b = fuzz_open(format, &len, BLK_NO_BACKING | BLK_CHECKING))) {
		fuzz_change(b);
		fuzz_check(b, flags & FUZZ_SEAL ? BLK_FIX_ERRORS | BLK_FIX_LEAKS : 0);
		blk_close(b);
	}
	for (unsigned i = 0; i < FUZZ_PAGES; i++) {
		free(fuzz_page[i]);
		fuzz_page[i] = NULL;
	}
	return 0;
}
