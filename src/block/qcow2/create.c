/* block/qcow2/create.c - making images, and foretelling how large they get. */
#include "block/qcow2/qcow2.h"

#include <stdlib.h>

// clang-format off
const struct blk_option q_create_options[] = {
	{"compat", "0.10|1.1", "1.1", "version 2 or 3 of the format (also: v2, v3)"},
	{"cluster_size", "SIZE", "64k", "unit of allocation, 512 to 2M"},
	{"refcount_bits", "1|2|4|8|16|32|64", "16", "width of a reference count"},
	{"lazy_refcounts", "on|off", "off", "count late, and again after a crash"},
	{"extended_l2", "on|off", "off", "32 subclusters in each cluster"},
	{"compression_type", "zlib|zstd", "zlib", "of compressed clusters"},
	{"preallocation", "off|metadata|falloc|full", "off", "what has its place from the beginning"},
	{"data_file", "FILE", NULL, "keep the data in this file beside the image"},
	{"data_file_raw", "on|off", "off", "and keep it readable as a raw image"},
	{"encryption", "on|off", "off", "the same as encrypt.format=aes (cannot be made any more)"},
	{"encrypt.format", "luks", NULL, "encrypt, with a passphrase"},
	{"encrypt.key-secret", "ID", NULL, "accepted; the passphrase is given beside the options"},
	{"encrypt.cipher-alg", "aes-128|aes-192|aes-256", "aes-256", NULL},
	{"encrypt.cipher-mode", "xts|cbc", "xts", NULL},
	{"encrypt.ivgen-alg", "plain|plain64|essiv", "plain64", NULL},
	{"encrypt.ivgen-hash-alg", "sha256|...", NULL, "for essiv"},
	{"encrypt.hash-alg", "sha1|sha256|sha384|sha512", "sha256", NULL},
	{"encrypt.iter-time", "MS", "2000", "time that trying one passphrase shall take"},
	{NULL},
};
// clang-format on

enum prealloc { PRE_OFF, PRE_METADATA, PRE_FALLOC, PRE_FULL };

struct plan {
	struct q_header h; /* borrows its strings */
	enum prealloc pre;
	bool luks;
	struct q_luks_params luks_params;
	uint8_t *crypt_header;
	uint32_t cluster;
	uint64_t l1_clusters, rt_clusters, blocks, crypt_clusters, total;
};

/* ---- options ---- */

static int choose(const struct blk_kv *kv, unsigned n, const char *key, const char *const *names,
		  unsigned preset, unsigned *which, struct error *err)
{
	const char *value = blk_kv_get(kv, n, key);

	*which = preset;
	for (unsigned i = 0; value && names[i]; i++)
		if (!strcmp(value, names[i])) {
			*which = i;
			return 0;
		}
	return value ? err_set(err, EINVAL, "%s=%s is not known", key, value) : 0;
}

static int plan_version(struct plan *p, const struct blk_kv *kv, unsigned n, struct error *err)
{
	static const char *const compat[] = {"0.10", "v2", "1.1", "v3", NULL};
	unsigned which;
	int r = choose(kv, n, "compat", compat, 2, &which, err);

	p->h.version = which < 2 ? 2 : 3;
	p->h.header_len = which < 2 ? Q_HEADER_V2 : Q_HEADER_OURS;
	return r;
}

static int plan_cluster(struct plan *p, const struct blk_kv *kv, unsigned n, struct error *err)
{
	uint64_t size, bits;
	int r = blk_kv_size(kv, n, "cluster_size", 65536, &size, err);

	if (!r)
		r = blk_kv_number(kv, n, "refcount_bits", 16, &bits, err);
	if (r < 0)
		return r;
	if (size < 512 || size > 2 * MiB || (size & (size - 1)))
		return err_set(err, EINVAL, "cluster_size must be a power of two from 512 to 2M");
	if (!bits || bits > 64 || (bits & (bits - 1)))
		return err_set(err, EINVAL, "refcount_bits must be a power of two from 1 to 64");
	if (bits != 16 && p->h.version < 3)
		return err_set(err, EINVAL, "refcount_bits other than 16 needs compat=1.1");
	p->cluster = (uint32_t)size;
	p->h.cluster_bits = (uint32_t)__builtin_ctzll(size);
	p->h.refcount_order = (uint32_t)__builtin_ctzll(bits);
	return 0;
}

static int plan_features(struct plan *p, const struct blk_kv *kv, unsigned n, struct error *err)
{
	static const char *const types[] = {"zlib", "zstd", NULL};
	bool lazy, ext;
	unsigned type;
	int r = blk_kv_bool(kv, n, "lazy_refcounts", false, &lazy, err);

	if (!r)
		r = blk_kv_bool(kv, n, "extended_l2", false, &ext, err);
	if (!r)
		r = choose(kv, n, "compression_type", types, Q_ZLIB, &type, err);
	if (r < 0)
		return r;
	if (p->h.version < 3 && (lazy || ext || type))
		return err_set(err, EINVAL, "lazy_refcounts, extended_l2 and zstd need compat=1.1");
	if (ext && p->cluster < 16 * KiB)
		return err_set(err, EINVAL, "extended_l2 needs a cluster_size of 16k or more");
	p->h.compat |= lazy ? Q_COMPAT_LAZY : 0;
	p->h.incompat |= ext ? Q_INCOMPAT_EXTL2 : 0;
	p->h.incompat |= type == Q_ZSTD ? Q_INCOMPAT_COMPRESSION : 0;
	p->h.compression = (uint8_t)type;
	return 0;
}

static int plan_data_file(struct plan *p, const struct blk_kv *kv, unsigned n, struct error *err)
{
	const char *name = blk_kv_get(kv, n, "data_file");
	bool raw;
	int r = blk_kv_bool(kv, n, "data_file_raw", false, &raw, err);

	if (r < 0)
		return r;
	if (raw && !name)
		return err_set(err, EINVAL, "data_file_raw needs data_file");
	if (!name)
		return 0;
	if (p->h.version < 3)
		return err_set(err, EINVAL, "data_file needs compat=1.1");
	if (!*name || strlen(name) > Q_BACKING_NAME_MAX)
		return err_set(err, EINVAL, "data_file: a name has 1 to %u bytes",
			       Q_BACKING_NAME_MAX);
	p->h.data_file = (char *)(uintptr_t)name;
	p->h.incompat |= Q_INCOMPAT_DATA_FILE;
	p->h.autoclear |= raw ? Q_AUTO_RAW_DATA : 0;
	return 0;
}

static int plan_crypt(struct plan *p, const struct blk_kv *kv, unsigned n, struct error *err)
{
	const char *format = blk_kv_get(kv, n, "encrypt.format");
	bool legacy;
	int r = blk_kv_bool(kv, n, "encryption", false, &legacy, err);

	if (r < 0)
		return r;
	if (legacy || (format && !strcmp(format, "aes")))
		return err_set(err, ENOTSUP,
			       "the old AES encryption is unsafe and no longer made: use "
			       "encrypt.format=luks");
	if (format && strcmp(format, "luks"))
		return err_set(err, EINVAL, "encrypt.format=%s is not known (luks is)", format);
	if (!format)
		return 0;
	if (p->h.version < 3)
		return err_set(err, EINVAL, "encrypt.format=luks needs compat=1.1");
	p->luks = true;
	p->h.crypt = Q_CRYPT_LUKS;
	p->luks_params = (struct q_luks_params){
		.cipher_alg = blk_kv_get(kv, n, "encrypt.cipher-alg"),
		.cipher_mode = blk_kv_get(kv, n, "encrypt.cipher-mode"),
		.ivgen_alg = blk_kv_get(kv, n, "encrypt.ivgen-alg"),
		.ivgen_hash = blk_kv_get(kv, n, "encrypt.ivgen-hash-alg"),
		.hash = blk_kv_get(kv, n, "encrypt.hash-alg"),
	};
	return blk_kv_number(kv, n, "encrypt.iter-time", 2000, &p->luks_params.iter_time_ms, err);
}

static int plan_size(struct plan *p, uint64_t size, struct error *err)
{
	unsigned shift = 2 * p->h.cluster_bits - (p->h.incompat & Q_INCOMPAT_EXTL2 ? 4 : 3);
	uint64_t nr;

	if (size > INT64_MAX - 511)
		return err_set(err, EFBIG, "a disk ends before 2^63 bytes");
	p->h.size = ALIGN_UP(size, Q_SECTOR);
	nr = (p->h.size >> shift) + ((p->h.size & ((1ull << shift) - 1)) != 0);
	if (nr * 8 > Q_L1_MAX)
		return err_set(
			err, EFBIG,
			"the disk is too large for clusters of %u bytes (try cluster_size=2M)",
			p->cluster);
	p->h.l1_nr = (uint32_t)nr;
	/* A table without entries has a place, too: readers expect one. */
	p->l1_clusters = MAX(1, (nr * 8 + p->cluster - 1) / p->cluster);
	return 0;
}

static int plan_options(struct plan *p, uint64_t size, const struct blk_kv *kv, unsigned n,
			struct error *err)
{
	static const char *const pre[] = {"off", "metadata", "falloc", "full", NULL};
	unsigned which;
	int r = plan_version(p, kv, n, err);

	if (!r)
		r = plan_cluster(p, kv, n, err);
	if (!r)
		r = plan_features(p, kv, n, err);
	if (!r)
		r = plan_data_file(p, kv, n, err);
	if (!r)
		r = plan_crypt(p, kv, n, err);
	if (!r)
		r = choose(kv, n, "preallocation", pre, PRE_OFF, &which, err);
	if (!r) {
		p->pre = which;
		r = plan_size(p, size, err);
	}
	/* A raw data file shows its size at once. */
	if (!r && (p->h.autoclear & Q_AUTO_RAW_DATA) && p->pre == PRE_OFF)
		p->pre = PRE_METADATA;
	return r;
}

/* ---- layout: header, refcount table, blocks, L1 table, encryption header ---- */

static uint64_t ceil_div(uint64_t a, uint64_t b)
{
	return a / b + (a % b != 0);
}

static void plan_layout(struct plan *p, uint64_t crypt_len)
{
	uint64_t per_block = ((uint64_t)p->cluster * 8) >> p->h.refcount_order, before;

	p->crypt_clusters = ceil_div(crypt_len, p->cluster);
	p->rt_clusters = p->blocks = 1;
	do {
		before = p->rt_clusters + p->blocks;
		p->total = 1 + p->rt_clusters + p->blocks + p->l1_clusters + p->crypt_clusters;
		p->blocks = ceil_div(p->total, per_block);
		p->rt_clusters = ceil_div(p->blocks * 8, p->cluster);
	} while (p->rt_clusters + p->blocks != before);
	p->h.reftable_host = p->cluster;
	p->h.reftable_clusters = (uint32_t)p->rt_clusters;
	p->h.l1_host = (1 + p->rt_clusters + p->blocks) * p->cluster;
	p->h.crypt_host = crypt_len ? p->h.l1_host + p->l1_clusters * p->cluster : 0;
	p->h.crypt_len = crypt_len;
}

static int write_tables(const struct plan *p, struct blk *file)
{
	uint64_t len = p->blocks * p->cluster;
	uint64_t *table = calloc(p->rt_clusters, p->cluster);
	uint8_t *blocks = calloc(p->blocks, p->cluster);
	int r = table && blocks ? 0 : -ENOMEM;

	for (uint64_t i = 0; !r && i < p->blocks; i++)
		table[i] = (1 + p->rt_clusters + i) * p->cluster;
	for (uint64_t i = 0; !r && i < p->total; i++)
		q_count_store(p->h.refcount_order, blocks, i, 1);
	if (!r)
		r = q_table_write(file, p->h.reftable_host,
				  (uint32_t)(p->rt_clusters * p->cluster / 8), table);
	if (!r)
		r = blk_write(file, blocks, len, (1 + p->rt_clusters) * p->cluster);
	if (!r)
		r = blk_resize(file, p->total * p->cluster);
	if (!r && p->h.crypt_len)
		r = blk_write(file, p->crypt_header, p->h.crypt_len, p->h.crypt_host);
	free(table);
	free(blocks);
	return r;
}

/* The header comes last: before it there is no image. */
static int write_image(const struct plan *p, const struct blk_create *c, struct error *err)
{
	struct blk *file = NULL;
	int r = blk_create_file(c, c->path, &file, err);

	if (r < 0)
		return r;
	r = write_tables(p, file);
	if (!r)
		r = blk_flush(file);
	if (r < 0)
		err_errno(err, -r, "cannot write '%s'", c->path);
	else
		r = q_header_write(file, &p->h, err);
	blk_close(file);
	return r;
}

/* ---- the data file ---- */

static char *beside(const char *path, const char *name)
{
	const char *slash = strrchr(path, '/');
	size_t dir = slash && name[0] != '/' ? (size_t)(slash - path) + 1 : 0;
	char *s = malloc(dir + strlen(name) + 1);

	if (s) {
		memcpy(s, path, dir);
		strcpy(s + dir, name);
	}
	return s;
}

static int make_data_file(const struct plan *p, const struct blk_create *c, struct error *err)
{
	char *path = beside(c->path, p->h.data_file);
	struct blk *file = NULL;
	int r;

	if (!path)
		return err_errno(err, ENOMEM, "'%s'", p->h.data_file);
	r = blk_create_file(c, path, &file, err);
	if (!r && (p->h.autoclear & Q_AUTO_RAW_DATA)) {
		r = blk_resize(file, p->h.size);
		if (r < 0)
			err_errno(err, -r, "cannot make '%s' large enough", path);
	}
	blk_close(file);
	free(path);
	return r;
}

/* ---- preallocation ---- */

/* Give every cluster of [from, to) its place.  What an encrypted image has there would read as
 * noise: those keep the mark of zeroes. */
static int place_all(struct qcow2 *q, uint64_t from, uint64_t to, uint64_t *end)
{
	int r = 0;

	for (uint64_t guest = ALIGN_DOWN(from, q->cluster); guest < to && !r;) {
		uint64_t nr = q_clusters(q, to - guest), host = guest;
		struct q_place at;

		pthread_mutex_lock(&q->lock);
		r = q_l2_find(q, guest, true, &at);
		nr = MIN(nr, at.left);
		if (!r && q_entry_get(q, &at).desc)
			nr = 0; /* has one */
		else if (!r && !q->has_data_file)
			r = q_alloc(q, &nr, &host);
		if (!r)
			r = q_l2_find(q, guest, true, &at);
		for (uint64_t i = 0; i < nr && !r; i++, at.at += q->l2_entry) {
			struct q_entry e = {.desc = (host + i * q->cluster) | Q_COPIED};

			if (q->h.crypt && !q->ext_l2)
				e.desc |= Q_ZERO;
			if (q->ext_l2)
				e.bits = q->h.crypt ? (uint64_t)UINT32_MAX << 32 : UINT32_MAX;
			q_entry_set(q, &at, e);
		}
		*end = MAX(*end, host + nr * q->cluster);
		pthread_mutex_unlock(&q->lock);
		guest += MAX(nr, 1) * q->cluster;
		if (!r)
			r = q_commit_if_full(q);
	}
	return r;
}

static int fill_file(struct blk *file, uint64_t from, uint64_t to)
{
	static const uint8_t zeroes[65536];
	int r = 0;

	for (uint64_t at = from; at < to && !r; at += sizeof(zeroes))
		r = blk_write(file, zeroes, MIN(to - at, sizeof(zeroes)), at);
	return r;
}

static int preallocate(struct qcow2 *q, enum prealloc pre)
{
	uint64_t before = blk_size(q->data), end = before;
	int r = place_all(q, 0, q->h.size, &end);

	if (r < 0)
		return r;
	if (q->raw_data)
		end = q->h.size;
	/* Metadata may lie between: only what was behind the end is sure to be zeroes. */
	r = end > blk_size(q->data) ? blk_resize(q->data, end) : 0;
	if (r < 0 || pre == PRE_METADATA)
		return r;
	if (pre == PRE_FALLOC && q->has_data_file)
		return blk_write_zeroes(q->data, before, end - before, false);
	for (uint64_t guest = 0; guest < q->h.size && !r;) {
		struct q_run run;

		pthread_mutex_lock(&q->lock);
		r = q_map(q, guest, q->h.size - guest, &run);
		pthread_mutex_unlock(&q->lock);
		if (!r)
			r = pre == PRE_FULL ? fill_file(q->data, run.host, run.host + run.len)
					    : blk_write_zeroes(q->data, run.host,
							       MIN(run.len, end - run.host), false);
		guest += run.len;
	}
	return r;
}

/* The data file is not opened by a check, so the ordinary way in is taken when there is one. */
static int preallocate_image(const struct plan *p, const struct blk_create *c, struct error *err)
{
	struct blk_open_opts opts = {.allow_ref = (const char *const[]){"/"}, .nr_allow_ref = 1};
	unsigned flags = BLK_NO_POOL | BLK_NO_BACKING;
	struct blk *b = NULL;
	int r;

	if (p->luks && p->h.data_file)
		return err_set(err, EINVAL,
			       "preallocation of an encrypted data file is not possible");
	if (!p->h.data_file)
		flags |= BLK_CHECKING;
	r = blk_open_with(&b, c->path, "qcow2", flags, &opts, err);
	if (r < 0)
		return r;
	r = preallocate(q_of(b), p->pre);
	if (!r)
		r = blk_flush(b);
	if (r < 0)
		err_errno(err, -r, "cannot preallocate '%s'", c->path);
	blk_close(b);
	return r;
}

/* ---- all of it ---- */

static int check_names(struct plan *p, const struct blk_create *c, struct error *err)
{
	if (!c->backing)
		return 0;
	if (strlen(c->backing) > Q_BACKING_NAME_MAX)
		return err_set(err, EINVAL, "the name of a backing file has at most %u bytes",
			       Q_BACKING_NAME_MAX);
	if (c->backing_format && strlen(c->backing_format) > Q_BACKING_FORMAT_MAX)
		return err_set(err, EINVAL, "backing format '%s' is not known", c->backing_format);
	if (p->h.autoclear & Q_AUTO_RAW_DATA)
		return err_set(err, EINVAL, "data_file_raw and a backing file exclude each other");
	if (p->pre != PRE_OFF)
		return err_set(err, EINVAL, "preallocation would hide the backing file");
	p->h.backing = (char *)(uintptr_t)c->backing;
	p->h.backing_format = (char *)(uintptr_t)c->backing_format;
	return 0;
}

static int plan_luks_header(struct plan *p, const struct blk_create *c, size_t *len,
			    struct error *err)
{
	if (!p->luks)
		return 0;
	if (!c->secret)
		return err_set(err, EINVAL, "'%s': an encrypted image needs a passphrase", c->path);
	return q_luks_format(&p->luks_params, c->secret, c->secret_len, &p->crypt_header, len, err);
}

int q_create(const struct blk_create *c, struct error *err)
{
	struct plan p = {0};
	size_t crypt_len = 0;
	int r = plan_options(&p, c->size, c->opt, c->nr_opts, err);

	if (!r)
		r = check_names(&p, c, err);
	if (!r)
		r = plan_luks_header(&p, c, &crypt_len, err);
	if (r < 0)
		return r;
	plan_layout(&p, crypt_len);
	r = write_image(&p, c, err);
	if (!r && p.h.data_file)
		r = make_data_file(&p, c, err);
	if (!r && p.pre != PRE_OFF)
		r = preallocate_image(&p, c, err);
	free(p.crypt_header);
	return r;
}

/* ---- foretelling ---- */

/* Tables and blocks that count `data` clusters of guest data, themselves and the rest. */
static uint64_t bytes_for(const struct plan *p, uint64_t data)
{
	uint64_t per_block = ((uint64_t)p->cluster * 8) >> p->h.refcount_order;
	uint64_t l2_entries = p->cluster / (p->h.incompat & Q_INCOMPAT_EXTL2 ? 16 : 8);
	uint64_t fixed = 1 + p->l1_clusters + p->crypt_clusters;
	uint64_t l2 = ceil_div(ceil_div(p->h.size, p->cluster), l2_entries);
	uint64_t blocks = 1, rt = 1, before;

	do {
		before = blocks + rt;
		blocks = ceil_div(fixed + l2 + data + blocks + rt, per_block);
		rt = ceil_div(blocks * 8, p->cluster);
	} while (blocks + rt != before);
	return (fixed + l2 + data + blocks + rt) * p->cluster;
}

int q_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err)
{
	struct plan p = {0};
	uint64_t all, data;
	int r = plan_options(&p, m->size, opt, n, err);

	if (r < 0)
		return r;
	plan_layout(&p, p.luks ? Q_LUKS_HEADER_LEN : 0);
	all = ceil_div(p.h.size, p.cluster);
	data = p.pre == PRE_OFF ? MIN(ceil_div(m->data, p.cluster), all) : all;
	if (p.h.data_file)
		all = data = 0;
	m->required = bytes_for(&p, data);
	m->fully_allocated = bytes_for(&p, all);
	return 0;
}
