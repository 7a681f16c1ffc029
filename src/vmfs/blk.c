/* vmfs/blk.c - a file as a disk of the block layer: reads go to the device the ranges name, and
 * map() says where that is, so that conversions skip holes and copy at the device's speed. */
#include "block/format.h"
#include "block/iov.h"
#include "vmfs/internal.h"

#include <stdlib.h>

enum { PART_IOVS = 64 };

struct file_disk {
	struct vmfs *v;
	struct vmfs_inode in;
};

static int copy_resident(const struct file_disk *f, struct iov_walk *walk, uint64_t off,
			 uint64_t len)
{
	struct iovec part[PART_IOVS];

	while (len) {
		uint64_t step = len;
		unsigned n = iov_peek(walk, part, PART_IOVS, &step);

		for (unsigned i = 0; i < n; off += part[i++].iov_len)
			memcpy(part[i].iov_base, f->in.data + off, part[i].iov_len);
		iov_advance(walk, step);
		len -= step;
	}
	return 0;
}

static int read_device(struct file_disk *f, struct iov_walk *walk, const struct vmfs_range *r)
{
	struct iovec part[PART_IOVS];
	uint64_t done = 0;
	int err = 0;

	while (done < r->len && !err) {
		uint64_t step = r->len - done;
		unsigned n = iov_peek(walk, part, PART_IOVS, &step);

		err = blk_readv(f->v->plan.dev[r->dev], part, n, r->dev_off + done);
		iov_advance(walk, step);
		done += step;
	}
	return err;
}

static int read_range(struct file_disk *f, struct iov_walk *walk, const struct vmfs_range *r)
{
	switch (r->kind) {
	case VMFS_RANGE_HOLE:
	case VMFS_RANGE_ZERO:
		iov_zero(walk, r->len);
		return 0;
	case VMFS_RANGE_RESIDENT:
		return copy_resident(f, walk, r->off, r->len);
	case VMFS_RANGE_DATA:
		return read_device(f, walk, r);
	default:
		return -EIO;
	}
}

static int file_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	struct file_disk *f = b->priv;
	struct iov_walk walk = {iov, n, 0};
	struct vmfs_range range;
	int r = 0;

	for (; len && !r; len -= range.len, off += range.len) {
		r = file_range(f->v, &f->in, off, len, 0, &range);
		if (r < 0)
			return r;
		r = read_range(f, &walk, &range);
	}
	return r;
}

/* The device may itself be an image: what it says of the place. */
static int map_device(struct file_disk *f, const struct vmfs_range *r, struct blk_map *m)
{
	int err;

	m->len = r->len;
	err = blk_map(f->v->plan.dev[r->dev], r->dev_off, m);
	m->depth = 0;
	return err;
}

static int file_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	struct file_disk *f = b->priv;
	struct vmfs_range range;
	int r = file_range(f->v, &f->in, off, m->len, 0, &range);

	if (r < 0)
		return r;
	if (range.kind == VMFS_RANGE_DATA)
		return map_device(f, &range, m);
	m->len = range.len;
	m->what = range.kind == VMFS_RANGE_HOLE   ? BLK_EXT_HOLE
		  : range.kind == VMFS_RANGE_ZERO ? BLK_EXT_ZERO
						  : BLK_EXT_DATA;
	return 0;
}

static void file_close(struct blk *b)
{
	free(b->priv);
}

static const struct blk_format file_format = {
	.name = "vmfs-file",
	.help = "a file of a VMFS volume",
	.parallel = true,
	.readv = file_readv,
	.map = file_map,
	.close = file_close,
};

int vmfs_file_blk(struct blk **out, struct vmfs *v, const struct vmfs_inode *in, const char *path,
		  struct error *err)
{
	struct blk_info info = {.size = in->length, .block_size = FS_SECTOR};
	struct file_disk *f;
	int r;

	if (in->length > INT64_MAX)
		return err_set(err, EFBIG, "'%s': the descriptor says %llu bytes, which cannot be",
			       path, (unsigned long long)in->length);
	f = malloc(sizeof(*f));
	if (!f)
		return err_set(err, ENOMEM, "'%s': out of memory", path);
	f->v = v;
	f->in = *in;
	r = blk_wrap(out, &file_format, f, &info, BLK_FILE | BLK_READONLY | BLK_NO_POOL, err);
	if (r < 0) {
		free(f);
		return r;
	}
	free((*out)->path);
	(*out)->path = strdup(path);
	return 0;
}
