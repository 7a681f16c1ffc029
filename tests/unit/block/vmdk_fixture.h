/* vmdk_fixture.h - what the tests of VMDK share: a directory of their own, disks made and opened
 * in it, random operations beside a shadow copy.  One test at a time. */
#pragma once

#include "base/error.h"
#include "block/blk.h"
#include "block/image.h"
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>

static char dir[64];

static inline void remove_dir(void)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char path[512];

	while (d && (e = readdir(d))) {
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		unlink(path);
	}
	if (d)
		closedir(d);
	rmdir(dir);
}

/* Paths in the directory of this test; good for eight calls. */
static inline const char *at(const char *name)
{
	static char path[8][256];
	static unsigned next;

	if (!dir[0]) {
		snprintf(dir, sizeof(dir), "test-vmdk-XXXXXX");
		CHECK(mkdtemp(dir));
		atexit(remove_dir);
	}
	next = (next + 1) % 8;
	snprintf(path[next], sizeof(path[next]), "%s/%s", dir, name);
	return path[next];
}

static inline int try_create(const char *name, const char *subformat, uint64_t size,
			     const char *backing, struct error *err)
{
	struct blk_kv opt = {"subformat", subformat};
	struct blk_create c = {.path = at(name),
			       .size = size,
			       .opt = &opt,
			       .nr_opts = subformat ? 1 : 0,
			       .backing = backing,
			       .backing_format = backing ? "vmdk" : NULL,
			       .size_from_backing = backing && !size};

	return blk_create("vmdk", &c, err);
}

static inline void create(const char *name, const char *subformat, uint64_t size,
			  const char *backing)
{
	struct error err = {""};

	if (try_create(name, subformat, size, backing, &err) < 0) {
		printf("# create %s: %s\n", name, err.msg);
		CHECK(!"the disk can be made");
	}
}

static inline struct blk *open_disk(const char *name, unsigned flags)
{
	struct error err = {""};
	struct blk *b;

	if (blk_open(&b, at(name), "vmdk", flags | BLK_NO_POOL, &err) == 0)
		return b;
	printf("# open %s: %s\n", name, err.msg);
	CHECK(!"the disk opens");
	return NULL;
}

/* Opening must fail, with a sentence that has these words. */
static inline void open_refused(const char *name, unsigned flags, const char *words)
{
	struct error err = {""};
	struct blk *b;

	CHECK(blk_open(&b, at(name), "vmdk", flags | BLK_NO_POOL, &err) < 0);
	if (!strstr(err.msg, words))
		printf("# it says: %s\n", err.msg);
	CHECK(strstr(err.msg, words));
}

static inline void say_finding(void *opaque, const char *text)
{
	printf("# check: %s\n", text);
}

static inline struct blk_check check_disk(const char *name, unsigned fix)
{
	struct blk *b = open_disk(name, BLK_CHECKING | (fix ? 0 : BLK_READONLY));
	struct blk_check c = {.fix = fix, .say = say_finding};
	struct error err = {""};
	int r = blk_check(b, &c, &err);

	if (r < 0)
		printf("# check: %s\n", err.msg);
	CHECK_EQ(0, r);
	blk_close(b);
	return c;
}

static inline void check_clean(const char *name)
{
	struct blk_check c = check_disk(name, 0);

	CHECK_EQ(0, c.corruptions);
	CHECK_EQ(0, c.leaks);
}

/* --- bytes of files ---------------------------------------------------------------------------
 */

static inline void poke(const char *name, uint64_t off, const void *bytes, size_t len)
{
	int fd = open(at(name), O_RDWR);

	CHECK(fd >= 0);
	CHECK_EQ(len, pwrite(fd, bytes, len, (off_t)off));
	close(fd);
}

static inline void peek(const char *name, uint64_t off, void *bytes, size_t len)
{
	int fd = open(at(name), O_RDONLY);

	CHECK(fd >= 0);
	CHECK_EQ(len, pread(fd, bytes, len, (off_t)off));
	close(fd);
}

static inline uint64_t size_of(const char *name)
{
	struct stat st;

	CHECK_EQ(0, stat(at(name), &st));
	return (uint64_t)st.st_size;
}

static inline void write_text_file(const char *name, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
static inline void write_text_file(const char *name, const char *fmt, ...)
{
	FILE *f = fopen(at(name), "w");
	va_list ap;

	CHECK(f);
	va_start(ap, fmt);
	vfprintf(f, fmt, ap);
	va_end(ap);
	fclose(f);
}

/* --- random operations ------------------------------------------------------------------------
 */

static uint64_t rng = 88172645463325252ull;

static inline uint64_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

/* Half random, half of it words: some grains pack well, some not at all. */
static inline void fill(uint8_t *p, size_t len)
{
	bool random = rnd() & 1;

	for (size_t i = 0; i < len; i++)
		p[i] = random ? (uint8_t)rnd() : (uint8_t) "trivisor grain "[(i + rng) % 15];
}

struct shadow {
	uint8_t *data, *buf;
	uint64_t size;
};

static inline void shadow_init(struct shadow *s, uint64_t size)
{
	*s = (struct shadow){calloc(1, size), malloc(size), size};
	CHECK(s->data && s->buf);
}

static inline void shadow_free(struct shadow *s)
{
	free(s->data);
	free(s->buf);
}

static inline void same_content(struct blk *b, struct shadow *s)
{
	CHECK_EQ(s->size, blk_info(b)->size);
	memset(s->buf, 0x5a, s->size);
	CHECK_EQ(0, blk_read(b, s->buf, s->size, 0));
	for (uint64_t i = 0; i < s->size; i++)
		if (s->data[i] != s->buf[i]) {
			printf("# byte %#" PRIx64 " differs\n", i);
			CHECK(!"the content is right");
		}
}

static inline void random_write(struct blk *b, struct shadow *s, uint64_t off, uint64_t len)
{
	uint64_t half = len / 3;
	struct iovec iov[2] = {{s->data + off, half}, {s->data + off + half, len - half}};

	fill(s->data + off, len);
	CHECK_EQ(0, blk_writev(b, iov, 2, off));
}

static inline void random_zero(struct blk *b, struct shadow *s, uint64_t off, uint64_t len)
{
	memset(s->data + off, 0, len);
	CHECK_EQ(0, blk_write_zeroes(b, off, len, rnd() & 1));
}

/* What a discard leaves is up to the format. */
static inline void random_discard(struct blk *b, struct shadow *s, uint64_t off, uint64_t len)
{
	CHECK_EQ(0, blk_discard(b, off, len));
	CHECK_EQ(0, blk_read(b, s->data + off, len, off));
}

static inline void random_read(struct blk *b, struct shadow *s, uint64_t off, uint64_t len)
{
	CHECK_EQ(0, blk_read(b, s->buf, len, off));
	CHECK_EQ(0, memcmp(s->buf, s->data + off, len));
}

static inline void random_ops(struct blk *b, struct shadow *s, unsigned n)
{
	while (n--) {
		uint64_t off = rnd() % s->size, len;

		len = 1 + rnd() % (rnd() % 4 ? 20000 : 300000);
		if (rnd() & 1)
			off &= ~511ull;
		len = MIN(len, s->size - off);
		switch (rnd() % 16 ? rnd() % 8 : 8) {
		case 0:
			random_zero(b, s, off, len);
			break;
		case 1:
			random_discard(b, s, off, len);
			break;
		case 2 ... 3:
			random_read(b, s, off, len);
			break;
		case 8:
			CHECK_EQ(0, blk_flush(b));
			break;
		default:
			random_write(b, s, off, len);
		}
	}
}
