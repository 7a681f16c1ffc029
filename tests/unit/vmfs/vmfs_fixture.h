/* vmfs_fixture.h - what the tests of VMFS volumes share: a directory of their own, devices, SHA-256
 * of a file's bytes, and the real volumes where they are there. */
#pragma once

#include "base/bytes.h"
#include "base/error.h"
#include "block/blk.h"
#include "vmfs/vmfs.h"

#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdarg.h>

enum { VF_DEVICES = 8, VF_CHUNK = 1 << 20 };

static char vf_dir[] = "test-vmfs-XXXXXX";
static pid_t vf_owner;
static struct error vf_err;
static struct blk *vf_dev[VF_DEVICES];
static unsigned vf_devs;

static void vf_cleanup(void)
{
	char cmd[64];

	if (vf_owner != getpid())
		return;
	snprintf(cmd, sizeof(cmd), "rm -rf %s", vf_dir);
	if (system(cmd))
		printf("# %s stays\n", vf_dir);
}

/* dir/name; the last eight stay valid. */
static inline const char *vf_path(const char *name)
{
	static char buf[8][256];
	static unsigned turn;
	char *to = buf[turn++ % 8];

	if (!vf_owner) {
		CHECK(mkdtemp(vf_dir));
		vf_owner = getpid();
		atexit(vf_cleanup);
	}
	snprintf(to, sizeof(buf[0]), "%s/%s", vf_dir, name);
	return to;
}

static inline struct blk *vf_device(const char *path)
{
	struct blk *b = NULL;

	if (blk_open(&b, path, "raw", BLK_READONLY | BLK_NO_LOCK | BLK_NO_POOL, &vf_err) < 0) {
		printf("# %s\n", vf_err.msg);
		CHECK(!"the device opens");
	}
	CHECK(vf_devs < VF_DEVICES);
	vf_dev[vf_devs++] = b;
	return b;
}

static inline struct vmfs *vf_open(unsigned flags)
{
	struct vmfs *v = NULL;

	if (vmfs_open(&v, vf_dev, vf_devs, NULL, flags, &vf_err) < 0) {
		printf("# %s\n", vf_err.msg);
		CHECK(!"the volume opens");
	}
	return v;
}

static inline void vf_close(struct vmfs *v)
{
	vmfs_close(v);
	while (vf_devs)
		blk_close(vf_dev[--vf_devs]);
}

static inline struct vmfs_inode *vf_inode(struct vmfs *v, const char *path)
{
	struct vmfs_inode *in = malloc(sizeof(*in));

	CHECK(in);
	if (vmfs_lookup(v, path, in, &vf_err) < 0) {
		printf("# %s\n", vf_err.msg);
		CHECK(!"the file is there");
	}
	return in;
}

static inline void vf_hex(const uint8_t *raw, unsigned len, char *text)
{
	for (unsigned i = 0; i < len; i++)
		snprintf(text + 2ull * i, 3, "%02x", raw[i]);
}

/* Of [off, off + len) of a file, as a disk of the block layer and by vmfs_file_read: both the same.
 */
static inline void vf_sha256(struct vmfs *v, const struct vmfs_inode *in, uint64_t off,
			     uint64_t len, char text[65])
{
	uint8_t *a = malloc(VF_CHUNK), *b = malloc(VF_CHUNK), sum[32];
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	struct blk *disk = NULL;
	uint64_t n;

	CHECK(a && b && md && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1);
	CHECK_EQ(0, vmfs_file_blk(&disk, v, in, "file", &vf_err));
	CHECK_EQ(in->length, blk_size(disk));
	for (uint64_t at = 0; at < len; at += n) {
		n = MIN(len - at, (uint64_t)VF_CHUNK);
		CHECK_EQ(0, blk_read(disk, a, n, off + at));
		CHECK_EQ(n, (uint64_t)vmfs_file_read(v, in, b, n, off + at));
		CHECK(!memcmp(a, b, n));
		EVP_DigestUpdate(md, a, n);
	}
	EVP_DigestFinal_ex(md, sum, NULL);
	EVP_MD_CTX_free(md);
	vf_hex(sum, sizeof(sum), text);
	blk_close(disk);
	free(a);
	free(b);
}

/* --- the doctor's words ------------------------------------------------------------------------
 */

struct vf_findings {
	unsigned nr[VMFS_DAMAGE + 1];
	char what[64][32];
	unsigned nr_what;
};

static void vf_finding(void *opaque, enum vmfs_severity severity, const char *what,
		       const char *sentence)
{
	struct vf_findings *f = opaque;

	f->nr[severity]++;
	if (severity != VMFS_INFO)
		printf("# %s: %s\n", what, sentence);
	if (f->nr_what < 64)
		snprintf(f->what[f->nr_what++], sizeof(f->what[0]), "%s", what);
}

static inline struct vf_findings vf_check(struct vmfs *v)
{
	struct vf_findings f = {0};

	CHECK_EQ(0, vmfs_check(v, vf_finding, &f, NULL, &vf_err));
	return f;
}

static inline unsigned vf_found(const struct vf_findings *f, const char *what)
{
	unsigned n = 0;

	for (unsigned i = 0; i < f->nr_what; i++)
		n += !strcmp(f->what[i], what);
	return n;
}

/* --- the real volumes --------------------------------------------------------------------------
 */

/* Unpacked once for all tests of a program: for a constructor, before the tests are children of it.
 * $TRIVISOR_SAMPLES names the folder of image formats' samples or the one around it. */
static inline void vf_unpack(const char *name)
{
	static const char *const at[] = {"", "/vmfs", "/../vmfs"};
	const char *root = getenv("TRIVISOR_SAMPLES");
	char from[512], cmd[1200];

	for (unsigned i = 0; root && i < ARRAY_SIZE(at); i++) {
		snprintf(from, sizeof(from), "%s%s/%s.gz", root, at[i], name);
		if (access(from, R_OK))
			continue;
		snprintf(cmd, sizeof(cmd), "gzip -dc '%s' | cp --sparse=always /dev/stdin '%s'",
			 from, vf_path(name));
		if (system(cmd))
			printf("# cannot unpack %s\n", from);
		return;
	}
}

/* A copy of a test's own; skips where there is none. */
static inline const char *vf_sample(const char *name)
{
	char cmd[600], copy[64];
	const char *to;

	if (!vf_owner || access(vf_path(name), R_OK))
		SKIP("TRIVISOR_SAMPLES does not lead to the real volumes");
	snprintf(copy, sizeof(copy), "%s.%d", name, (int)getpid());
	to = vf_path(copy);
	snprintf(cmd, sizeof(cmd), "cp --sparse=always '%s' '%s'", vf_path(name), to);
	CHECK_EQ(0, system(cmd));
	return to;
}
