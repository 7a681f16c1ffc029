/* fuzz_vmdk.c - a VMDK file of any kind: it opens or is refused, and whatever is then asked of it,
 * nothing of ours breaks.
 *
 * Hosted sparse and stream-optimised images hold their descriptor, so they can be written as they
 * are; for COWD and seSparse extents there is one beside them.  A bare descriptor may name what it
 * likes: nothing lies beside it. */
#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/blk.h"
#include "block/image.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { STEPS = 40, LEN_MAX = 70000 };

static char dir[] = "/tmp/fuzz-vmdk-XXXXXX";
static char image[64], descriptor[64];
static uint8_t buf[LEN_MAX];

static void clean_up(void)
{
	unlink(image);
	unlink(descriptor);
	rmdir(dir);
}

static void set_up(void)
{
	if (image[0])
		return;
	if (!mkdtemp(dir))
		abort();
	snprintf(image, sizeof(image), "%s/x.vmdk", dir);
	snprintf(descriptor, sizeof(descriptor), "%s/d.vmdk", dir);
	atexit(clean_up);
	log_configure("error", NULL);
}

static void write_file(const char *path, const void *data, size_t size)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	close(fd);
}

/* What describes a bare extent: as many sectors as its header says. */
static bool describe(const uint8_t *data, size_t size)
{
	uint64_t sectors;
	char text[256];
	const char *type;

	if (size < 512)
		return false;
	if (!memcmp(data, "COWD", 4)) {
		type = "VMFSSPARSE";
		sectors = le32_load(data + 12);
	} else if (le64_load(data) == 0xcafebabe) {
		type = "SESPARSE";
		sectors = le64_load(data + 16) & 0xffffffffffff;
	} else {
		return false;
	}
	snprintf(text, sizeof(text),
		 "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
		 "createType=\"x\"\nRW %llu %s \"x.vmdk\"\n",
		 (unsigned long long)sectors, type);
	write_file(descriptor, text, strlen(text));
	return true;
}

/* Along the map, reading what it says. */
static void look_around(struct blk *b)
{
	uint64_t size = blk_info(b)->size, off = 0;

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
	uint64_t disk = blk_info(b)->size, off, len;

	for (unsigned i = 0; i < 6 && disk && size >= 8; i++) {
		off = le64_load(data + (i * 97) % (size - 7)) % MIN(disk, 4 * MiB);
		len = 1 + data[(i * 31) % size] * 113ull;
		len = MIN(len, disk - off);
		if (i % 3 == 0)
			blk_write_zeroes(b, off, len, i & 1);
		else if (i % 3 == 1)
			blk_discard(b, off, len);
		blk_write(b, buf, MIN(len, disk - off), off);
		if (i == 3)
			blk_flush(b);
	}
}

static void open_as(const char *path, unsigned flags, const uint8_t *data, size_t size)
{
	struct blk_check c = {.fix = flags & BLK_READONLY ? 0 : BLK_FIX_ERRORS | BLK_FIX_LEAKS};
	struct error err;
	struct blk *b;

	if (blk_open(&b, path, "vmdk", flags | BLK_NO_POOL, &err) < 0) {
		if (!err.msg[0])
			abort(); /* a refusal has words */
		return;
	}
	look_around(b);
	if (!(flags & BLK_READONLY))
		change(b, data, size);
	if (flags & BLK_CHECKING)
		blk_check(b, &c, &err);
	look_around(b);
	blk_close(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *path;

	set_up();
	write_file(image, data, size);
	path = describe(data, size) ? descriptor : image;
	open_as(image, BLK_READONLY | BLK_RECOVER, data, size);
	open_as(path, BLK_READONLY | BLK_CHECKING, data, size);
	open_as(path, BLK_NO_FLUSH, data, size);
	open_as(path, BLK_CHECKING | BLK_NO_FLUSH, data, size);
	unlink(descriptor);
	return 0;
}
