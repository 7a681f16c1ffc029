/* disk/manifest.c - see manifest.h. */
#include "disk/manifest.h"

#include "base/error.h"
#include "disk/zero.h"

#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHA256_LEN = 32, HEX_LEN = 64 };

struct block_hash {
	uint64_t off;
	uint8_t sha[SHA256_LEN];
};

struct disk_manifest {
	uint64_t size;
	pthread_mutex_t lock; /* guards block, nr, cap while blocks are added */
	struct block_hash *block;
	size_t nr, cap;
};

int disk_manifest_create(struct disk_manifest **out, uint64_t size, struct error *err)
{
	struct disk_manifest *m = calloc(1, sizeof(*m));

	if (!m)
		return err_errno(err, ENOMEM, "manifest");
	m->size = size;
	pthread_mutex_init(&m->lock, NULL);
	*out = m;
	return 0;
}

void disk_manifest_destroy(struct disk_manifest *m)
{
	if (!m)
		return;
	pthread_mutex_destroy(&m->lock);
	free(m->block);
	free(m);
}

uint64_t disk_manifest_size(const struct disk_manifest *m)
{
	return m->size;
}

static int append(struct disk_manifest *m, const struct block_hash *h)
{
	struct block_hash *more;

	if (m->nr == m->cap) {
		size_t cap = m->cap ? 2 * m->cap : 64;

		more = realloc(m->block, cap * sizeof(*more));
		if (!more)
			return -ENOMEM;
		m->block = more;
		m->cap = cap;
	}
	m->block[m->nr++] = *h;
	return 0;
}

static int sha256(const void *data, size_t len, uint8_t *sha)
{
	return EVP_Digest(data, len, sha, NULL, EVP_sha256(), NULL) == 1 ? 0 : -EIO;
}

int disk_manifest_add(struct disk_manifest *m, uint64_t off, const void *data, size_t len)
{
	const char *p = data;
	int r = 0;

	while (len && !r) {
		size_t step = MIN(len, DISK_MANIFEST_BLOCK);
		struct block_hash h = {.off = off};

		if (!disk_is_zero(p, step)) {
			r = sha256(p, step, h.sha);
			pthread_mutex_lock(&m->lock);
			if (!r)
				r = append(m, &h);
			pthread_mutex_unlock(&m->lock);
		}
		p += step;
		off += step;
		len -= step;
	}
	return r;
}

static int by_offset(const void *a, const void *b)
{
	const struct block_hash *x = a, *y = b;

	return (x->off > y->off) - (x->off < y->off);
}

static void sort(struct disk_manifest *m)
{
	if (m->nr)
		qsort(m->block, m->nr, sizeof(m->block[0]), by_offset);
}

static void to_hex(const uint8_t *sha, char *hex)
{
	for (unsigned i = 0; i < SHA256_LEN; i++)
		snprintf(hex + 2 * i, 3, "%02x", sha[i]);
}

/* A line goes to the file and into the hash of the whole. */
static void put_line(FILE *f, EVP_MD_CTX *all, const char *line)
{
	fputs(line, f);
	EVP_DigestUpdate(all, line, strlen(line));
}

static int write_lines(struct disk_manifest *m, FILE *f, EVP_MD_CTX *all)
{
	char line[128], hex[HEX_LEN + 1];
	uint8_t sha[SHA256_LEN];

	snprintf(line, sizeof(line), "trivisor-manifest 1\nsize %llu\nblock %llu\n",
		 (unsigned long long)m->size, (unsigned long long)DISK_MANIFEST_BLOCK);
	put_line(f, all, line);
	for (size_t i = 0; i < m->nr; i++) {
		to_hex(m->block[i].sha, hex);
		snprintf(line, sizeof(line), "%llu %s\n", (unsigned long long)m->block[i].off, hex);
		put_line(f, all, line);
	}
	if (EVP_DigestFinal_ex(all, sha, NULL) != 1)
		return -EIO;
	to_hex(sha, hex);
	fprintf(f, "content %s\n", hex);
	return fflush(f) ? -errno : 0;
}

int disk_manifest_save(struct disk_manifest *m, const char *path, struct error *err)
{
	EVP_MD_CTX *all = EVP_MD_CTX_new();
	FILE *f = NULL;
	int r = -ENOMEM;

	sort(m);
	if (all && EVP_DigestInit_ex(all, EVP_sha256(), NULL) == 1) {
		f = fopen(path, "we");
		r = f ? write_lines(m, f, all) : -errno;
		if (f && fclose(f) && !r)
			r = -errno;
	}
	EVP_MD_CTX_free(all);
	return r < 0 ? err_errno(err, -r, "cannot write the manifest '%s'", path) : 0;
}

static int from_hex(const char *hex, uint8_t *sha)
{
	for (unsigned i = 0; i < SHA256_LEN; i++)
		if (sscanf(hex + 2 * i, "%2hhx", &sha[i]) != 1)
			return -EINVAL;
	return 0;
}

/* One line "OFFSET SHA256"; they ascend. */
static int read_block(struct disk_manifest *m, const char *line)
{
	struct block_hash h;
	unsigned long long off;
	char hex[HEX_LEN + 1];

	if (sscanf(line, "%llu %64[0-9a-f]", &off, hex) != 2 || strlen(hex) != HEX_LEN ||
	    from_hex(hex, h.sha) < 0)
		return -EINVAL;
	h.off = off;
	if (off % DISK_MANIFEST_BLOCK || off >= m->size ||
	    (m->nr && off <= m->block[m->nr - 1].off))
		return -EINVAL;
	return append(m, &h);
}

static int read_lines(struct disk_manifest *m, FILE *f)
{
	unsigned long long size, block;
	char line[160];
	int r = 0;

	if (fscanf(f, "trivisor-manifest 1\nsize %llu\nblock %llu\n", &size, &block) != 2 ||
	    block != DISK_MANIFEST_BLOCK)
		return -EINVAL;
	m->size = size;
	while (!r && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, "content ", 8))
			return 0;
		r = read_block(m, line);
	}
	return r < 0 ? r : -EINVAL; /* it was cut off */
}

int disk_manifest_load(struct disk_manifest **out, const char *path, struct error *err)
{
	struct disk_manifest *m = NULL;
	FILE *f = fopen(path, "re");
	int r;

	if (!f)
		return err_errno(err, errno, "cannot open '%s'", path);
	r = disk_manifest_create(&m, 0, err);
	if (!r) {
		r = read_lines(m, f);
		if (r < 0)
			err_set(err, -r, "'%s' is not a manifest, or not all of one", path);
	}
	fclose(f);
	if (r < 0)
		disk_manifest_destroy(m);
	else
		*out = m;
	return r;
}

uint64_t disk_manifest_compare(struct disk_manifest *a, struct disk_manifest *b)
{
	size_t n = MIN(a->nr, b->nr), i;

	sort(a);
	sort(b);
	for (i = 0; i < n; i++) {
		if (a->block[i].off != b->block[i].off)
			return MIN(a->block[i].off, b->block[i].off);
		if (memcmp(a->block[i].sha, b->block[i].sha, SHA256_LEN))
			return a->block[i].off;
	}
	if (a->nr == b->nr)
		return UINT64_MAX;
	return a->nr > n ? a->block[n].off : b->block[n].off;
}
