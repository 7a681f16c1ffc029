/* block/qcow2/header.c - the first cluster: reading it with all its limits, writing it ("Header",
 * "Header extensions").
 *
 * Everything that changes while an image is in use lies in the first 512 bytes, which a disk writes
 * whole or not at all: the fixed fields, then the extensions that point at things. */
#include "block/qcow2/qcow2.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- reading ---- */

struct head {
	const char *path;
	struct q_header *h;
	uint8_t *bytes; /* the first cluster */
	uint32_t cluster;
	char features[64][47]; /* names of incompatible features, as the image gives them */
};

static int bad(const struct head *in, struct error *err, const char *what)
{
	return err_set(err, EINVAL, "'%s': %s: not a usable qcow2 image", in->path, what);
}

static void read_fixed(struct q_header *h, const uint8_t *p)
{
	h->version = be32_load(p + 4);
	h->cluster_bits = be32_load(p + 20);
	h->size = be64_load(p + 24);
	h->crypt = be32_load(p + 32);
	h->l1_nr = be32_load(p + 36);
	h->l1_host = be64_load(p + 40);
	h->reftable_host = be64_load(p + 48);
	h->reftable_clusters = be32_load(p + 56);
	h->nr_snapshots = be32_load(p + 60);
	h->snap_host = be64_load(p + 64);
	h->refcount_order = 4;
	h->header_len = Q_HEADER_V2;
}

static int read_v3(const struct head *in, struct error *err)
{
	struct q_header *h = in->h;
	const uint8_t *p = in->bytes;

	h->incompat = be64_load(p + 72);
	h->compat = be64_load(p + 80);
	h->autoclear = be64_load(p + 88);
	h->refcount_order = be32_load(p + 96);
	h->header_len = be32_load(p + 100);
	if (h->header_len < Q_HEADER_V3 || h->header_len > in->cluster)
		return bad(in, err, "the header's length is outside its cluster");
	if (h->header_len > Q_HEADER_V3)
		h->compression = p[104];
	if (h->refcount_order > 6)
		return bad(in, err, "reference counts wider than 64 bits");
	if (h->header_len > Q_HEADER_OURS) {
		h->rest_len = h->header_len - Q_HEADER_OURS;
		h->rest = malloc(h->rest_len);
		if (!h->rest)
			return err_errno(err, ENOMEM, "'%s'", in->path);
		memcpy(h->rest, p + Q_HEADER_OURS, h->rest_len);
	}
	return 0;
}

static char *copy_text(const uint8_t *p, size_t len)
{
	char *s = malloc(len + 1);

	if (s) {
		memcpy(s, p, len);
		s[len] = 0;
	}
	return s;
}

static void read_features(struct head *in, const uint8_t *p, uint32_t len)
{
	for (; len >= 48; p += 48, len -= 48)
		if (p[0] == 0 && p[1] < 64) {
			memcpy(in->features[p[1]], p + 2, 46);
			for (char *c = in->features[p[1]]; *c; c++)
				if (*c < ' ' || *c > '~')
					*c = '?'; /* it goes to somebody's terminal */
		}
}

static int keep_unknown(struct q_header *h, uint32_t type, const uint8_t *p, uint32_t len)
{
	struct q_unknown_ext *x = calloc(1, sizeof(*x)), **tail = &h->unknown;

	if (!x)
		return -ENOMEM;
	x->type = type;
	x->len = len;
	x->data = malloc(len + 1);
	if (!x->data) {
		free(x);
		return -ENOMEM;
	}
	memcpy(x->data, p, len);
	while (*tail)
		tail = &(*tail)->next;
	*tail = x;
	return 0;
}

static int read_text_ext(char **field, const uint8_t *p, uint32_t len, uint32_t max)
{
	if (len > max)
		return -EINVAL;
	free(*field);
	*field = copy_text(p, len);
	return *field ? 0 : -ENOMEM;
}

static int read_ext(struct head *in, uint32_t type, const uint8_t *p, uint32_t len)
{
	struct q_header *h = in->h;

	switch (type) {
	case (uint32_t)Q_EXT_BACKING_FORMAT:
		return read_text_ext(&h->backing_format, p, len, Q_BACKING_FORMAT_MAX);
	case Q_EXT_DATA_FILE:
		return read_text_ext(&h->data_file, p, len, Q_BACKING_NAME_MAX);
	case Q_EXT_FEATURES:
		read_features(in, p, len);
		return 0;
	case Q_EXT_BITMAPS:
		if (len != 24)
			return -EINVAL;
		h->nr_bitmaps = be32_load(p);
		h->bitmap_dir_len = be64_load(p + 8);
		h->bitmap_dir_host = be64_load(p + 16);
		return 0;
	case Q_EXT_CRYPT:
		if (len != 16)
			return -EINVAL;
		h->crypt_host = be64_load(p);
		h->crypt_len = be64_load(p + 8);
		return 0;
	}
	return keep_unknown(h, type, p, len);
}

static int read_exts(struct head *in, uint64_t backing, struct error *err)
{
	uint64_t at = in->h->header_len, end = backing ? backing : in->cluster;

	while (at + 8 <= end) {
		uint32_t type = be32_load(in->bytes + at), len = be32_load(in->bytes + at + 4);
		int r;

		if (type == Q_EXT_END)
			return 0;
		if (len > end - at - 8)
			return bad(in, err, "a header extension is longer than its cluster");
		r = read_ext(in, type, in->bytes + at + 8, len);
		if (r == -EINVAL)
			return bad(in, err, "a header extension has the wrong length");
		if (r < 0)
			return err_errno(err, -r, "'%s'", in->path);
		at += 8 + ALIGN_UP(len, 8);
	}
	return 0;
}

static int read_backing(struct head *in, uint64_t at, uint32_t len, struct error *err)
{
	if (!at)
		return 0;
	if (len > Q_BACKING_NAME_MAX || !range_inside(at, len, in->cluster))
		return bad(in, err, "the backing file's name is outside the header's cluster");
	in->h->backing = copy_text(in->bytes + at, len);
	return in->h->backing ? 0 : err_errno(err, ENOMEM, "'%s'", in->path);
}

/* ---- limits ---- */

static int check_features(const struct head *in, struct error *err)
{
	const struct q_header *h = in->h;
	uint64_t unknown = h->incompat & ~Q_INCOMPAT_KNOWN;
	unsigned bit;

	if (unknown) {
		bit = (unsigned)__builtin_ctzll(unknown);
		return err_set(err, ENOTSUP,
			       "'%s' uses the incompatible qcow2 feature '%s' (bit %u), which is "
			       "not supported",
			       in->path, in->features[bit][0] ? in->features[bit] : "unnamed", bit);
	}
	if (h->compression > Q_ZSTD)
		return err_set(err, ENOTSUP, "'%s': compression type %u is not supported", in->path,
			       h->compression);
	if (!(h->incompat & Q_INCOMPAT_COMPRESSION) != (h->compression == Q_ZLIB))
		return bad(in, err, "compression type and feature bit disagree");
	if ((h->incompat & Q_INCOMPAT_EXTL2) && h->cluster_bits < 14)
		return bad(in, err, "extended L2 entries with clusters below 16 KiB");
	if (h->crypt > Q_CRYPT_LUKS)
		return err_set(err, ENOTSUP, "'%s': encryption method %u is not supported",
			       in->path, h->crypt);
	if ((h->autoclear & Q_AUTO_RAW_DATA) && !(h->incompat & Q_INCOMPAT_DATA_FILE))
		return bad(in, err, "a raw data file without a data file");
	if ((h->autoclear & Q_AUTO_RAW_DATA) && h->backing)
		return bad(in, err, "a raw data file with a backing file");
	return 0;
}

static bool table_ok(const struct head *in, uint64_t host, uint64_t bytes)
{
	return !(host & (in->cluster - 1)) && range_inside(host, bytes, INT64_MAX);
}

static int check_tables(const struct head *in, struct error *err)
{
	const struct q_header *h = in->h;
	unsigned l2_bits = h->cluster_bits - (h->incompat & Q_INCOMPAT_EXTL2 ? 4 : 3);
	unsigned shift = l2_bits + h->cluster_bits;
	uint64_t need = (h->size >> shift) + ((h->size & ((1ull << shift) - 1)) != 0);

	if (h->size > INT64_MAX)
		return bad(in, err, "the disk is larger than 2^63 bytes");
	if ((uint64_t)h->l1_nr * 8 > Q_L1_MAX)
		return bad(in, err, "the L1 table is larger than 32 MiB");
	if (need > h->l1_nr)
		return bad(in, err, "the L1 table is too small for the disk");
	if (h->l1_nr && (!h->l1_host || !table_ok(in, h->l1_host, (uint64_t)h->l1_nr * 8)))
		return bad(in, err, "the L1 table is not at a cluster");
	if ((uint64_t)h->reftable_clusters << h->cluster_bits > MAX(Q_REFTABLE_MAX, in->cluster))
		return bad(in, err, "the refcount table is larger than 8 MiB");
	if (!table_ok(in, h->reftable_host, (uint64_t)h->reftable_clusters << h->cluster_bits))
		return bad(in, err, "the refcount table is not at a cluster");
	if (h->nr_snapshots > Q_SNAPSHOTS_MAX)
		return bad(in, err, "more than 65536 snapshots");
	if (h->nr_snapshots && !table_ok(in, h->snap_host, Q_SNAPTABLE_MAX))
		return bad(in, err, "the snapshot table is not at a cluster");
	return 0;
}

static int check_exts(const struct head *in, struct error *err)
{
	const struct q_header *h = in->h;

	if (h->nr_bitmaps > Q_BITMAPS_MAX)
		return bad(in, err, "more than 65535 dirty bitmaps");
	if (h->bitmap_dir_len > Q_BITMAP_DIR_MAX)
		return bad(in, err, "the bitmap directory is larger than 64 MiB");
	if (!table_ok(in, h->bitmap_dir_host, h->bitmap_dir_len))
		return bad(in, err, "the bitmap directory is not at a cluster");
	if (h->crypt_len > Q_CRYPT_HEADER_MAX || !table_ok(in, h->crypt_host, h->crypt_len))
		return bad(in, err, "the encryption header is not at a cluster, or over 16 MiB");
	if (h->crypt == Q_CRYPT_LUKS && !h->crypt_len)
		return bad(in, err, "encrypted without an encryption header");
	return 0;
}

/* ---- putting it together ---- */

static int parse(struct head *in, struct error *err)
{
	uint64_t backing = be64_load(in->bytes + 8);
	int r;

	if (backing > in->cluster)
		return bad(in, err, "the backing file's name is outside the header's cluster");
	r = in->h->version >= 3 ? read_v3(in, err) : 0;
	if (!r)
		r = read_backing(in, backing, be32_load(in->bytes + 16), err);
	if (!r)
		r = read_exts(in, backing, err);
	if (!r)
		r = check_features(in, err);
	if (!r)
		r = check_tables(in, err);
	return r ? r : check_exts(in, err);
}

static int read_cluster(struct head *in, struct blk *file, struct error *err)
{
	uint8_t first[Q_HEADER_V3];
	int r = q_file_read(file, first, sizeof(first), 0);

	if (r < 0)
		return err_errno(err, -r, "cannot read '%s'", in->path);
	if (be32_load(first) != Q_MAGIC)
		return err_set(err, EINVAL, "'%s' is not a qcow2 image", in->path);
	read_fixed(in->h, first);
	if (in->h->version != 2 && in->h->version != 3)
		return err_set(err, ENOTSUP,
			       "'%s' is qcow2 version %u; versions 2 and 3 are supported", in->path,
			       in->h->version);
	if (in->h->cluster_bits < Q_MIN_CLUSTER_BITS || in->h->cluster_bits > Q_MAX_CLUSTER_BITS)
		return err_set(err, EINVAL,
			       "'%s': clusters of 2^%u bytes; 2^9 to 2^21 are supported", in->path,
			       in->h->cluster_bits);
	in->cluster = 1u << in->h->cluster_bits;
	in->bytes = malloc(in->cluster);
	r = in->bytes ? q_file_read(file, in->bytes, in->cluster, 0) : -ENOMEM;
	return r < 0 ? err_errno(err, -r, "cannot read '%s'", in->path) : 0;
}

int q_header_read(struct blk *file, const char *path, struct q_header *h, struct error *err)
{
	struct head in = {.path = path, .h = h};
	int r;

	*h = (struct q_header){0};
	r = read_cluster(&in, file, err);
	if (!r)
		r = parse(&in, err);
	free(in.bytes);
	if (r < 0)
		q_header_fini(h);
	return r;
}

void q_header_fini(struct q_header *h)
{
	while (h->unknown) {
		struct q_unknown_ext *next = h->unknown->next;

		free(h->unknown->data);
		free(h->unknown);
		h->unknown = next;
	}
	free(h->rest);
	free(h->backing);
	free(h->backing_format);
	free(h->data_file);
	*h = (struct q_header){0};
}

/* ---- writing ---- */

// clang-format off
static const struct {
	uint8_t kind, bit;
	const char *name;
} feature_names[] = {
	{0, 0, "dirty bit"},
	{0, 1, "corrupt bit"},
	{0, 2, "external data file"},
	{0, 3, "compression type"},
	{0, 4, "extended L2 entries"},
	{1, 0, "lazy refcounts"},
	{2, 0, "bitmaps"},
	{2, 1, "raw external data"},
};
// clang-format on

struct out {
	uint8_t *bytes;
	uint32_t at, cap;
	bool full;
};

static void put_ext(struct out *o, uint32_t type, const void *data, uint32_t len)
{
	if (o->full || o->cap - o->at < 8 + ALIGN_UP(len, 8)) {
		o->full = true;
		return;
	}
	be32_store(o->bytes + o->at, type);
	be32_store(o->bytes + o->at + 4, len);
	if (len)
		memcpy(o->bytes + o->at + 8, data, len);
	o->at += 8 + (uint32_t)ALIGN_UP(len, 8);
}

static void put_features(struct out *o)
{
	uint8_t table[ARRAY_SIZE(feature_names) * 48] = {0};

	for (unsigned i = 0; i < ARRAY_SIZE(feature_names); i++) {
		table[48 * i] = feature_names[i].kind;
		table[48 * i + 1] = feature_names[i].bit;
		memcpy(table + 48 * i + 2, feature_names[i].name, strlen(feature_names[i].name));
	}
	put_ext(o, Q_EXT_FEATURES, table, sizeof(table));
}

static void put_fixed(const struct q_header *h, uint8_t *p)
{
	be32_store(p, Q_MAGIC);
	be32_store(p + 4, h->version);
	be32_store(p + 20, h->cluster_bits);
	be64_store(p + 24, h->size);
	be32_store(p + 32, h->crypt);
	be32_store(p + 36, h->l1_nr);
	be64_store(p + 40, h->l1_host);
	be64_store(p + 48, h->reftable_host);
	be32_store(p + 56, h->reftable_clusters);
	be32_store(p + 60, h->nr_snapshots);
	be64_store(p + 64, h->snap_host);
	if (h->version < 3)
		return;
	be64_store(p + 72, h->incompat);
	be64_store(p + 80, h->compat);
	be64_store(p + 88, h->autoclear);
	be32_store(p + 96, h->refcount_order);
	be32_store(p + 100, h->header_len);
	if (h->header_len > Q_HEADER_V3)
		p[104] = h->compression;
	if (h->rest_len)
		memcpy(p + Q_HEADER_OURS, h->rest, h->rest_len);
}

static void put_pointers(struct out *o, const struct q_header *h)
{
	uint8_t p[24] = {0};

	if (h->nr_bitmaps) {
		be32_store(p, h->nr_bitmaps);
		be64_store(p + 8, h->bitmap_dir_len);
		be64_store(p + 16, h->bitmap_dir_host);
		put_ext(o, Q_EXT_BITMAPS, p, 24);
	}
	if (h->crypt == Q_CRYPT_LUKS) {
		be64_store(p, h->crypt_host);
		be64_store(p + 8, h->crypt_len);
		put_ext(o, Q_EXT_CRYPT, p, 16);
	}
}

static void put_exts(struct out *o, const struct q_header *h, bool features)
{
	put_pointers(o, h);
	if (h->data_file)
		put_ext(o, Q_EXT_DATA_FILE, h->data_file, (uint32_t)strlen(h->data_file));
	if (h->backing_format)
		put_ext(o, (uint32_t)Q_EXT_BACKING_FORMAT, h->backing_format,
			(uint32_t)strlen(h->backing_format));
	for (const struct q_unknown_ext *x = h->unknown; x; x = x->next)
		put_ext(o, x->type, x->data, x->len);
	if (h->version >= 3 && features)
		put_features(o);
	put_ext(o, Q_EXT_END, NULL, 0);
}

static bool compose(const struct q_header *h, uint8_t *bytes, uint32_t cluster, bool features)
{
	struct out o = {bytes, h->version >= 3 ? h->header_len : Q_HEADER_V2, cluster, false};

	memset(bytes, 0, cluster);
	put_fixed(h, bytes);
	put_exts(&o, h, features);
	if (h->backing && !o.full) {
		uint32_t len = (uint32_t)strlen(h->backing);

		if (len > o.cap - o.at)
			return false;
		be64_store(bytes + 8, o.at);
		be32_store(bytes + 16, len);
		memcpy(bytes + o.at, h->backing, len);
	}
	return !o.full;
}

static int write_changes(struct blk *file, const uint8_t *old, const uint8_t *new, uint32_t len)
{
	for (uint32_t at = 0; at < len; at += Q_SECTOR) {
		int r;

		if (!memcmp(old + at, new + at, Q_SECTOR))
			continue;
		r = blk_write(file, new + at, Q_SECTOR, at);
		if (r < 0)
			return r;
	}
	return 0;
}

int q_header_write(struct blk *file, const struct q_header *h, struct error *err)
{
	uint32_t cluster = 1u << h->cluster_bits;
	uint8_t *new = malloc(2 * (size_t)cluster), *old = new + cluster;
	int r;

	if (!new)
		return err_errno(err, ENOMEM, "header");
	if (!compose(h, new, cluster, true) && !compose(h, new, cluster, false)) {
		free(new);
		return err_set(err, ENOSPC,
			       "the names in the header do not fit into a cluster of %u bytes",
			       cluster);
	}
	r = q_file_read(file, old, cluster, 0);
	if (!r)
		r = write_changes(file, old, new, cluster);
	free(new);
	return r < 0 ? err_errno(err, -r, "cannot write the header") : 0;
}

int q_header_update(struct qcow2 *q)
{
	int r = q_header_write(q->file, &q->h, NULL);

	return r < 0 ? r : blk_flush(q->file);
}

/* ---- tables of 64-bit entries ---- */

int q_table_read(struct blk *file, uint64_t host, uint32_t nr, uint64_t **out)
{
	uint64_t *v = malloc((size_t)nr * 8 + 8);
	int r;

	if (!v)
		return -ENOMEM;
	r = q_file_read(file, v, (size_t)nr * 8, host);
	if (r < 0) {
		free(v);
		return r;
	}
	for (uint32_t i = 0; i < nr; i++)
		v[i] = be64_load(&v[i]);
	*out = v;
	return 0;
}

int q_table_write(struct blk *file, uint64_t host, uint32_t nr, const uint64_t *v)
{
	uint8_t *bytes = malloc((size_t)nr * 8 + 8);
	int r;

	if (!bytes)
		return -ENOMEM;
	for (uint32_t i = 0; i < nr; i++)
		be64_store(bytes + 8 * (size_t)i, v[i]);
	r = nr ? blk_write(file, bytes, (size_t)nr * 8, host) : 0;
	free(bytes);
	return r;
}

/* Whole sectors, so that no disk has to read one before. */
int q_table_write_dirty(struct blk *file, const struct q_table *t)
{
	uint32_t lo = t->dirty_lo & ~63u, hi = MIN((t->dirty_hi + 63) & ~63u, t->nr);

	if (t->dirty_lo >= t->dirty_hi)
		return 0;
	return q_table_write(file, t->host + 8ull * lo, hi - lo, t->v + lo);
}
