/* image_fixture.h - what the tests of image formats share: a directory of their own, images in it,
 * random operations against a copy in memory, and the word of other programs (qemu-img), which are
 * asked where they are installed. */
#pragma once

#include "block/blk.h"
#include "block/image.h"

#include "base/error.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>

static char fx_dir[] = "test-image-XXXXXX";
static char fx_path_buf[8][256];
static struct error fx_err;

static void fx_cleanup(void)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", fx_dir);
	if (system(cmd))
		printf("# %s stays\n", fx_dir);
}

/* dir/name; the last eight stay valid. */
static inline const char *fx_path(const char *name)
{
	static unsigned turn;
	static bool made;
	char *buf = fx_path_buf[turn++ % 8];

	if (!made) {
		made = true;
		CHECK(mkdtemp(fx_dir));
		atexit(fx_cleanup);
	}
	snprintf(buf, sizeof(fx_path_buf[0]), "%s/%s", fx_dir, name);
	return buf;
}

/* 0, or what the shell says.  Its output goes away. */
static inline int fx_run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static inline int fx_run(const char *fmt, ...)
{
	char cmd[2048];
	va_list ap;
	int n, status;

	va_start(ap, fmt);
	n = vsnprintf(cmd, sizeof(cmd) - 20, fmt, ap);
	va_end(ap);
	CHECK(n < (int)sizeof(cmd) - 20);
	strcat(cmd, " >/dev/null 2>&1");
	fflush(stdout);
	status = system(cmd);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static inline bool fx_have(const char *program)
{
	return fx_run("command -v %s", program) == 0;
}

#define NEED(program)                                                                              \
	do {                                                                                       \
		if (!fx_have(program))                                                             \
			SKIP(program " is not installed");                                         \
	} while (0)

/* A sample file, unpacked into the directory; skips without the samples. */
static inline const char *fx_sample(const char *folder_and_name)
{
	const char *root = getenv("TRIVISOR_SAMPLES"), *slash = strrchr(folder_and_name, '/');
	const char *to;

	if (!root)
		SKIP("TRIVISOR_SAMPLES does not name the folder of sample images");
	to = fx_path(slash + 1);
	if (fx_run("test -e %s/%s.bz2", root, folder_and_name) == 0) {
		NEED("bzip2");
		CHECK_EQ(0, system((snprintf(fx_path_buf[7], sizeof(fx_path_buf[7]),
					     "bzip2 -dc %s/%s.bz2 > %s", root, folder_and_name, to),
				    fx_path_buf[7])));
	} else if (fx_run("cp %s/%s %s && chmod u+w %s", root, folder_and_name, to, to)) {
		SKIP("the sample is not there");
	}
	return to;
}

/* ---- images ---- */

#define FX_OPTS(...) ((const struct blk_kv[]){__VA_ARGS__, {NULL, NULL}})

static inline int fx_try_create(const char *name, const char *format, uint64_t size,
				const struct blk_kv *opt, const char *backing)
{
	struct blk_create c = {.path = fx_path(name), .size = size, .opt = opt};

	while (opt && opt[c.nr_opts].key)
		c.nr_opts++;
	c.backing = backing;
	c.backing_format = backing ? format : NULL;
	c.size_from_backing = backing && !size;
	c.overwrite = true;
	fx_err.msg[0] = 0;
	return blk_create(format, &c, &fx_err);
}

static inline void fx_create(const char *name, const char *format, uint64_t size,
			     const struct blk_kv *opt, const char *backing)
{
	if (fx_try_create(name, format, size, opt, backing) < 0) {
		printf("# %s\n", fx_err.msg);
		CHECK(!"the image is made");
	}
}

static inline int fx_try_open(struct blk **b, const char *name, const char *format, unsigned flags)
{
	fx_err.msg[0] = 0;
	return blk_open(b, fx_path(name), format, flags | BLK_NO_POOL, &fx_err);
}

static inline struct blk *fx_open(const char *name, const char *format, unsigned flags)
{
	struct blk *b = NULL;

	if (fx_try_open(&b, name, format, flags) < 0) {
		printf("# %s\n", fx_err.msg);
		CHECK(!"the image opens");
	}
	return b;
}

/* It is refused, and the sentence has these words. */
static inline void fx_refused(const char *name, const char *format, unsigned flags,
			      const char *words)
{
	struct blk *b = NULL;

	CHECK(fx_try_open(&b, name, format, flags) < 0);
	if (!strstr(fx_err.msg, words))
		printf("# want '%s' in: %s\n", words, fx_err.msg);
	CHECK(strstr(fx_err.msg, words));
}

static inline void fx_patch(const char *name, uint64_t off, const void *data, size_t len)
{
	int fd = open(fx_path(name), O_RDWR);

	CHECK(fd >= 0);
	CHECK_EQ(len, pwrite(fd, data, len, (off_t)off));
	close(fd);
}

static inline uint64_t fx_file_size(const char *name)
{
	struct stat st;

	CHECK_EQ(0, stat(fx_path(name), &st));
	return (uint64_t)st.st_size;
}

static inline void fx_say(void *opaque, const char *text)
{
	printf("# check: %s\n", text);
}

static inline struct blk_check fx_check(const char *name, const char *format, unsigned fix)
{
	struct blk_check c = {.fix = fix, .say = fx_say};
	struct blk *b = fx_open(name, format, BLK_CHECKING | (fix ? 0 : BLK_READONLY));

	if (blk_check(b, &c, &fx_err) < 0) {
		printf("# %s\n", fx_err.msg);
		CHECK(!"the check runs");
	}
	blk_close(b);
	return c;
}

static inline void fx_is_clean(const char *name, const char *format)
{
	struct blk_check c = fx_check(name, format, 0);

	CHECK_EQ(0, c.corruptions);
	CHECK_EQ(0, c.leaks);
}

/* ---- content ---- */

static uint64_t fx_rng = 0x9e3779b97f4a7c15;

static inline uint64_t fx_rnd(uint64_t below)
{
	fx_rng ^= fx_rng << 13;
	fx_rng ^= fx_rng >> 7;
	fx_rng ^= fx_rng << 17;
	return (fx_rng >> 11) % below;
}

static inline void fx_same(struct blk *b, const uint8_t *model, uint64_t size)
{
	static uint8_t buf[1 << 20];

	for (uint64_t off = 0; off < size; off += sizeof(buf)) {
		uint64_t n = MIN(sizeof(buf), size - off);

		CHECK_EQ(0, blk_read(b, buf, n, off));
		for (uint64_t i = 0; memcmp(buf, model + off, n) && i < n; i++)
			CHECK_EQ(off << 8 | model[off + i], off << 8 | buf[i]);
	}
}

/* The map says of each byte what reading it says. */
static inline void fx_map_is_true(struct blk *b, const uint8_t *model, uint64_t size)
{
	static const uint8_t zero[65536];
	static uint8_t buf[65536];
	struct blk_map m;

	for (uint64_t off = 0; off < size; off += m.len) {
		m = (struct blk_map){.len = MIN(size - off, sizeof(buf))};
		CHECK_EQ(0, blk_map(b, off, &m));
		CHECK(m.len > 0);
		if (m.what != BLK_EXT_DATA) {
			CHECK_EQ(0, memcmp(model + off, zero, m.len));
		} else if (m.host) {
			CHECK_EQ(0, blk_read(m.host, buf, m.len, m.host_off));
			CHECK_EQ(0, memcmp(model + off, buf, m.len));
		}
	}
}

static inline void fx_pick(uint64_t size, uint64_t max, uint64_t align, uint64_t *off,
			   uint64_t *len)
{
	*off = fx_rnd(size / align) * align;
	*len = (1 + fx_rnd(max / align)) * align;
	*len = MIN(*len, size - *off);
}

/* One random operation on the image and on the model.  Discarded bytes are looked at afterwards:
 * they are the old ones or zeroes. */
static inline void fx_one_op(struct blk *b, uint8_t *model, uint64_t size)
{
	static uint8_t buf[4 << 20];
	uint64_t off, len, align = fx_rnd(3) ? 512 : 1;
	unsigned op = (unsigned)fx_rnd(16);

	fx_pick(size, fx_rnd(8) ? 70000 : sizeof(buf), align, &off, &len);
	if (op < 9) {
		for (uint64_t i = 0; i < len; i++)
			model[off + i] = (uint8_t)(fx_rng >> (i % 7)) ^ (uint8_t)(i >> 9);
		CHECK_EQ(0, blk_write(b, model + off, len, off));
	} else if (op < 11) {
		memset(model + off, 0, len);
		CHECK_EQ(0, blk_write_zeroes(b, off, len, op & 1));
	} else if (op < 13) {
		CHECK_EQ(0, blk_discard(b, off, len));
		CHECK_EQ(0, blk_read(b, buf, len, off));
		for (uint64_t i = 0; i < len; i++)
			CHECK(buf[i] == model[off + i] || !buf[i]);
		memcpy(model + off, buf, len);
	} else if (op < 14) {
		CHECK_EQ(0, blk_flush(b));
	} else {
		CHECK_EQ(0, blk_read(b, buf, len, off));
		CHECK_EQ(0, memcmp(buf, model + off, len));
	}
}

/* Random operations, with the image opened anew in between; it is the model and clean at the end.
 */
static inline void fx_storm(const char *name, const char *format, uint8_t *model, uint64_t size,
			    unsigned ops)
{
	struct blk *b = fx_open(name, format, 0);

	CHECK_EQ(size, blk_info(b)->size);
	for (unsigned i = 0; i < ops; i++) {
		fx_one_op(b, model, size);
		if (i % 97 == 96) {
			blk_close(b);
			b = fx_open(name, format, 0);
		}
	}
	fx_same(b, model, size);
	fx_map_is_true(b, model, size);
	blk_close(b);
	b = fx_open(name, format, BLK_READONLY);
	fx_same(b, model, size);
	blk_close(b);
}

/* ---- the word of qemu-img ---- */

static inline void fx_qemu_reads(const char *name, const char *format, const uint8_t *model,
				 uint64_t size)
{
	struct blk *raw;

	CHECK_EQ(0, fx_run("qemu-img convert -f %s -O raw %s %s", format, fx_path(name),
			   fx_path("qemu.raw")));
	CHECK_EQ(size, fx_file_size("qemu.raw"));
	raw = fx_open("qemu.raw", "raw", BLK_READONLY);
	fx_same(raw, model, size);
	blk_close(raw);
}

/* qemu-img makes an image of the model. */
static inline void fx_qemu_writes(const char *name, const char *format, const char *opts,
				  const uint8_t *model, uint64_t size)
{
	int fd = open(fx_path("model.raw"), O_CREAT | O_RDWR | O_TRUNC, 0600);

	CHECK(fd >= 0);
	CHECK_EQ(size, write(fd, model, size));
	close(fd);
	CHECK_EQ(0, fx_run("qemu-img convert -f raw -O %s %s %s %s", format, opts,
			   fx_path("model.raw"), fx_path(name)));
}

/* ---- threads ---- */

#include <pthread.h>

enum { FX_THREADS = 4 };

struct fx_worker {
	struct blk *b;
	uint8_t *model;
	uint64_t size;
	unsigned nr;
	int failed;
};

/* Each writes every fourth 4 KiB, so that blocks are shared and bytes are not. */
static inline void *fx_work(void *arg)
{
	struct fx_worker *w = arg;
	unsigned seed = w->nr + 1;

	for (unsigned i = 0; i < 400 && !w->failed; i++) {
		uint64_t n = w->size / 4096 / FX_THREADS, off;

		seed = seed * 1103515245 + 12345;
		off = ((seed >> 8) % n * FX_THREADS + w->nr) * 4096;
		memset(w->model + off, (int)(seed >> 16) | 1, 4096);
		w->failed |= blk_write(w->b, w->model + off, 4096, off) < 0;
		if (i % 100 == 99)
			w->failed |= blk_flush(w->b) < 0;
	}
	return NULL;
}

static inline void fx_crowd(const char *name, const char *format, uint8_t *model, uint64_t size)
{
	struct blk *b = fx_open(name, format, 0);
	struct fx_worker w[FX_THREADS];
	pthread_t t[FX_THREADS];

	for (unsigned i = 0; i < FX_THREADS; i++) {
		w[i] = (struct fx_worker){b, model, size, i, 0};
		CHECK_EQ(0, pthread_create(&t[i], NULL, fx_work, &w[i]));
	}
	for (unsigned i = 0; i < FX_THREADS; i++) {
		pthread_join(t[i], NULL);
		CHECK(!w[i].failed);
	}
	fx_same(b, model, size);
	blk_close(b);
	b = fx_open(name, format, BLK_READONLY);
	fx_same(b, model, size);
	blk_close(b);
}
