/* toy_format.h - the smallest image format that has everything: for tests of the waist and of the
 * work on images.  Defines blk_formats[] itself, so that these tests know "toy" and "raw" alone.
 *
 * Sector 0: "TOYDISK" NUL, size u64, backing name[128], backing format[16]; from 1024 on a byte per
 * cluster (0 absent, 1 data, 2 zero, 3 packed); cluster i lies at 16 KiB + i * 4 KiB.  "Packed" is
 * a cluster of one repeated byte, stored as that byte. */
#pragma once

#include "block/format.h"

#include "base/bytes.h"
#include "base/error.h"
#include "block/iov.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { TOY_CLUSTER = 4096, TOY_DATA = 16384, TOY_MAX = 8192, TOY_STATES = 1024 };
enum { TOY_ABSENT, TOY_PLAIN, TOY_ZERO, TOY_PACKED };

struct toy {
	uint8_t head[TOY_STATES];
	uint8_t state[TOY_MAX];
};

static int toy_probe(const uint8_t *head, size_t len)
{
	return len >= 8 && !memcmp(head, "TOYDISK", 8) ? 100 : 0;
}

static int toy_open_backing(struct blk *b, const struct toy *t, struct error *err)
{
	const char *name = (const char *)t->head + 16, *format = (const char *)t->head + 144;

	if (!name[0] || (b->flags & BLK_NO_BACKING))
		return 0;
	return blk_ref_open(b, name, format[0] ? format : "auto", BLK_READONLY, &b->backing, err);
}

static int toy_open(struct blk *b, const char *path, struct error *err)
{
	struct toy *t = calloc(1, sizeof(*t));
	int r = blk_size(b->file) < TOY_STATES + TOY_MAX
			? err_set(err, EINVAL, "'%s' is too short", path)
			: blk_read(b->file, t, sizeof(*t), 0);

	if (!r && !toy_probe(t->head, 8))
		r = err_set(err, EINVAL, "'%s' is no toy", path);
	if (!r)
		r = toy_open_backing(b, t, err);
	if (r < 0) {
		free(t);
		return r;
	}
	b->priv = t;
	b->info.size = le64_load(t->head + 8);
	b->info.cluster = TOY_CLUSTER;
	return 0;
}

static void toy_close(struct blk *b)
{
	struct toy *t = b->priv;

	if (!b->info.readonly)
		blk_write(b->file, t, sizeof(*t), 0);
	free(t);
}

static int toy_read_one(struct blk *b, uint64_t i, void *buf, size_t len, uint64_t skip)
{
	struct toy *t = b->priv;
	uint8_t byte = 0;
	int r = 0;

	switch (t->state[i]) {
	case TOY_PLAIN:
		return blk_read(b->file, buf, len, TOY_DATA + i * TOY_CLUSTER + skip);
	case TOY_PACKED:
		r = blk_read(b->file, &byte, 1, TOY_DATA + i * TOY_CLUSTER);
		break;
	case TOY_ABSENT:
		return blk_backing_readv(b, &(struct iovec){buf, len}, 1, len,
					 i * TOY_CLUSTER + skip);
	}
	memset(buf, byte, len);
	return r;
}

static int toy_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	int r = 0;

	for (unsigned v = 0; v < n; v++) {
		for (size_t done = 0, step; done < iov[v].iov_len && !r; done += step) {
			uint64_t skip = off % TOY_CLUSTER;

			step = MIN(iov[v].iov_len - done, TOY_CLUSTER - skip);
			r = toy_read_one(b, off / TOY_CLUSTER, (char *)iov[v].iov_base + done, step,
					 skip);
			off += step;
		}
	}
	return r;
}

static int toy_write_one(struct blk *b, uint64_t i, const void *buf, size_t len, uint64_t skip)
{
	struct toy *t = b->priv;
	uint8_t all[TOY_CLUSTER];
	uint64_t have = MIN(TOY_CLUSTER, b->info.size - i * TOY_CLUSTER);
	int r;

	memset(all, 0, sizeof(all));
	r = toy_read_one(b, i, all, have, 0);
	memcpy(all + skip, buf, len);
	if (!r)
		r = blk_write(b->file, all, sizeof(all), TOY_DATA + i * TOY_CLUSTER);
	if (!r)
		t->state[i] = TOY_PLAIN;
	return r;
}

static int toy_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	int r = 0;

	for (unsigned v = 0; v < n; v++) {
		for (size_t done = 0, step; done < iov[v].iov_len && !r; done += step) {
			uint64_t skip = off % TOY_CLUSTER;

			step = MIN(iov[v].iov_len - done, TOY_CLUSTER - skip);
			r = toy_write_one(b, off / TOY_CLUSTER, (char *)iov[v].iov_base + done,
					  step, skip);
			off += step;
		}
	}
	return r;
}

static int toy_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct toy *t = b->priv;

	if (off % TOY_CLUSTER || (len % TOY_CLUSTER && off + len != b->info.size))
		return -EOPNOTSUPP;
	for (uint64_t i = off / TOY_CLUSTER; i * TOY_CLUSTER < off + len; i++)
		t->state[i] = TOY_ZERO;
	return 0;
}

static int toy_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	struct toy *t = b->priv;
	uint64_t i = off / TOY_CLUSTER;

	m->len = MIN(m->len, TOY_CLUSTER - off % TOY_CLUSTER);
	switch (t->state[i]) {
	case TOY_ABSENT:
		return blk_backing_map(b, off, m);
	case TOY_ZERO:
		m->what = BLK_EXT_ZERO;
		return 0;
	case TOY_PACKED:
		m->compressed = true;
		return 0;
	}
	m->host = b->file;
	m->host_off = TOY_DATA + off;
	return 0;
}

static int toy_pack(struct blk *b, const void *data, size_t len, void *out, size_t cap,
		    size_t *out_len)
{
	const uint8_t *p = data;

	for (size_t i = 1; i < len; i++)
		if (p[i] != p[0])
			return -E2BIG;
	*(uint8_t *)out = p[0];
	*out_len = 1;
	return 0;
}

static int toy_write_packed(struct blk *b, const void *packed, size_t packed_len, size_t len,
			    uint64_t off)
{
	struct toy *t = b->priv;

	t->state[off / TOY_CLUSTER] = TOY_PACKED;
	return blk_write(b->file, packed, packed_len, TOY_DATA + off);
}

static int toy_create(const struct blk_create *c, struct error *err)
{
	struct toy t = {.head = "TOYDISK"};
	struct blk *file = NULL;
	bool fail;
	int r = blk_kv_bool(c->opt, c->nr_opts, "fail", false, &fail, err);

	if (!r && c->size > TOY_MAX * TOY_CLUSTER)
		r = err_set(err, EFBIG, "toys are small");
	if (!r)
		r = blk_create_file(c, c->path, &file, err);
	if (r < 0)
		return r;
	le64_store(t.head + 8, c->size);
	if (c->backing) {
		strncpy((char *)t.head + 16, c->backing, 127);
		strncpy((char *)t.head + 144, c->backing_format, 15);
	}
	r = blk_write(file, &t, sizeof(t), 0);
	if (!r && fail)
		r = err_set(err, EIO, "asked to fail");
	blk_close(file);
	return r;
}

static const struct blk_option toy_options[] = {
	{"fail", "on|off", "off", "fail when all is written"},
	{NULL},
};

static const struct blk_format toy_format = {
	.name = "toy",
	.on_file = true,
	.probe = toy_probe,
	.open = toy_open,
	.close = toy_close,
	.readv = toy_readv,
	.writev = toy_writev,
	.write_zeroes = toy_write_zeroes,
	.map = toy_map,
	.pack = toy_pack,
	.write_packed = toy_write_packed,
	.create_options = toy_options,
	.create = toy_create,
};

const struct blk_format *const blk_formats[] = {&toy_format, &blk_raw, NULL};
