/* recover_fixture.h - what the tests of recovery share: volumes made by the test writer, damage,
 * and a recovery of them whose files are compared with what was written. */
#pragma once

#include "base/bytes.h"
#include "base/error.h"
#include "block/blk.h"
#include "block/filter.h"
#include "recover/recover.h"

#include "mkfs.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

enum { RF_SOURCES = 4 };

static char rf_dir[] = "test-recover-XXXXXX";
static pid_t rf_owner;
static struct error rf_err;
static struct rec *rf_rec;
static struct rec_source rf_source[RF_SOURCES];
static unsigned rf_sources;

static void rf_cleanup(void)
{
	char cmd[64];

	if (rf_owner != getpid())
		return;
	snprintf(cmd, sizeof(cmd), "rm -rf %s", rf_dir);
	if (system(cmd))
		printf("# %s stays\n", rf_dir);
}

/* dir/name; the last eight stay valid. */
static inline const char *rf_path(const char *name)
{
	static char buf[8][256];
	static unsigned turn;
	char *to = buf[turn++ % 8];

	if (!rf_owner) {
		CHECK(mkdtemp(rf_dir));
		rf_owner = getpid();
		atexit(rf_cleanup);
	}
	snprintf(to, sizeof(buf[0]), "%s/%s", rf_dir, name);
	return to;
}

/* A script of the test writer; @ stands for the directory. */
static inline void rf_make(const char *script)
{
	size_t n = strlen(script), at = 0;
	char *text = malloc(n * 32 + 1);

	CHECK(text);
	(void)rf_path("");
	for (size_t i = 0; i < n; i++) {
		if (script[i] == '@')
			at += (size_t)sprintf(text + at, "%s/", rf_dir);
		else
			text[at++] = script[i];
	}
	text[at] = 0;
	mkfs_script(text, NULL);
	free(text);
}

static inline void rf_zero(const char *name, uint64_t off, uint64_t len)
{
	static const uint8_t zero[65536];
	int fd = open(rf_path(name), O_WRONLY);

	CHECK(fd >= 0);
	for (uint64_t n; len; off += n, len -= n) {
		n = MIN(len, sizeof(zero));
		CHECK_EQ((ssize_t)n, pwrite(fd, zero, n, (off_t)off));
	}
	close(fd);
}

static inline void rf_add_blk(struct blk *b, const char *name)
{
	CHECK(rf_sources < RF_SOURCES);
	rf_source[rf_sources++] = (struct rec_source){.blk = b, .name = name, .identity = name};
}

static inline struct blk *rf_blk(const char *name)
{
	struct blk *b = NULL;

	if (blk_open(&b, rf_path(name), "raw", BLK_READONLY | BLK_NO_LOCK | BLK_NO_POOL | BLK_FILE,
		     &rf_err) < 0) {
		printf("# %s\n", rf_err.msg);
		CHECK(!"the source opens");
	}
	return b;
}

static inline void rf_source_add(const char *name)
{
	rf_add_blk(rf_blk(name), name);
}

static inline int rf_open(const char *findings, bool read_only)
{
	struct rec_config cfg = {.source = rf_source,
				 .nr_sources = rf_sources,
				 .findings = findings,
				 .read_only = read_only};

	return rec_open(&rf_rec, &cfg, &rf_err);
}

static inline int rf_scan(enum rec_depth depth, bool deepen, unsigned volume)
{
	struct rec_scan s = {.depth = depth, .deepen = deepen, .volume = volume, .threads = 2};
	int r = rec_scan(rf_rec, &s, &rf_err);

	if (r < 0)
		printf("# %s\n", rf_err.msg);
	return r;
}

static inline void rf_recover(const char *name, enum rec_depth depth)
{
	if (name)
		rf_source_add(name);
	CHECK_EQ(0, rf_open(NULL, false));
	CHECK_EQ(0, rf_scan(depth, true, 0));
}

static inline void rf_close(void)
{
	rec_close(rf_rec);
	rf_rec = NULL;
	while (rf_sources)
		blk_close(rf_source[--rf_sources].blk);
}

static inline struct rec_entry rf_entry(const char *path)
{
	struct rec_entry e = {0};

	if (rec_lookup(rf_rec, path, &e, &rf_err) < 0) {
		printf("# %s\n", rf_err.msg);
		CHECK(!"the entry is there");
	}
	return e;
}

static inline bool rf_there(const char *path)
{
	struct rec_entry e;

	return rec_lookup(rf_rec, path, &e, NULL) == 0;
}

static inline void rf_read(const char *path, void *buf, size_t len, uint64_t off)
{
	struct rec_entry e = rf_entry(path);
	struct blk *b = NULL;

	CHECK_EQ(0, rec_blk(rf_rec, e.id, 0, &b, &rf_err));
	CHECK_EQ(e.length, blk_size(b));
	CHECK_EQ(0, blk_read(b, buf, len, off));
	blk_close(b);
}

static inline void rf_check_text(const char *path, const char *text)
{
	struct rec_entry e = rf_entry(path);
	char buf[4096] = "";

	CHECK_EQ(strlen(text), e.length);
	rf_read(path, buf, e.length, 0);
	CHECK(!strcmp(text, buf));
}

/* Do [off, off + len) hold the pattern? */
static inline bool rf_is_pattern(const char *path, uint64_t seed, uint64_t off, uint64_t len)
{
	uint8_t *a = malloc(len), *b = malloc(len);
	bool same;

	CHECK(a && b);
	rf_read(path, a, len, off);
	mkfs_pattern(seed, off, b, len);
	same = !memcmp(a, b, len);
	free(a);
	free(b);
	return same;
}

static inline void rf_check_pattern(const char *path, uint64_t seed, uint64_t len)
{
	CHECK_EQ(len, rf_entry(path).length);
	for (uint64_t off = 0, n; off < len; off += n) {
		n = MIN(len - off, (uint64_t)MiB);
		CHECK(rf_is_pattern(path, seed, off, n));
	}
}

/* --- the real volumes --------------------------------------------------------------------------
 */

/* Unpacks one, once for all tests of the program; false: it is not there.  $TRIVISOR_SAMPLES names
 * the folder of image formats' samples or the one around it. */
static inline bool rf_unpack(const char *name)
{
	static const char *const at[] = {"", "/vmfs", "/../vmfs"};
	const char *root = getenv("TRIVISOR_SAMPLES");
	char from[512], cmd[1200];

	for (unsigned i = 0; root && i < ARRAY_SIZE(at); i++) {
		snprintf(from, sizeof(from), "%s%s/%s.gz", root, at[i], name);
		if (access(from, R_OK))
			continue;
		snprintf(cmd, sizeof(cmd),
			 "gzip -dc '%s' | cp --sparse=always /dev/stdin '%s.whole'", from,
			 rf_path(name));
		return system(cmd) == 0;
	}
	return false;
}

/* A fresh copy for this test; skips where there is none. */
static inline void rf_sample(const char *name)
{
	char cmd[1200], whole[300];

	snprintf(whole, sizeof(whole), "%s/%s.whole", rf_dir, name);
	if (!rf_owner || access(whole, R_OK))
		SKIP("TRIVISOR_SAMPLES does not lead to the real volumes");
	snprintf(cmd, sizeof(cmd), "cp --sparse=always '%s' '%s'", whole, rf_path(name));
	CHECK_EQ(0, system(cmd));
}
