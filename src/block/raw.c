/* block/raw.c - the disk is the file, byte for byte: regular files, sparse or not, block devices.
 *
 * A regular file whose size is not a whole number of sectors gets a last sector padded with zeroes:
 * reads see them; the first write to that sector makes them real. */
#include "base/error.h"
#include "base/log.h"
#include "block/format.h"
#include "block/iov.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RAW_IOVS = 128, SECTOR = 512 };

static struct log_component log_raw = LOG_COMPONENT("raw");

struct raw {
	int fd;
	bool is_device;
	/* What the file system turned out not to support; only ever go to true. */
	_Atomic bool no_punch, no_zero_range;
};

static int raw_probe(const uint8_t *head, size_t len)
{
	return 1; /* anything can be a raw disk */
}

static int raw_open_fd(const char *path, unsigned flags, int *fd, struct stat *st,
		       struct error *err)
{
	/* O_NONBLOCK: a FIFO given by mistake must not hang us; it means nothing to disks. */
	int mode = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	bool ro = flags & BLK_READONLY;

	/* O_EXCL on a device: fail when it is mounted or otherwise in use by the kernel. */
	if (!ro && !(flags & BLK_NO_LOCK) && !stat(path, st) && S_ISBLK(st->st_mode))
		mode |= O_EXCL;
	*fd = open(path, mode | (ro ? O_RDONLY : O_RDWR));
	if (*fd < 0 && errno == EBUSY)
		return err_set(err, EBUSY, "'%s' is in use by this host (mounted?)", path);
	if (*fd < 0 && !ro && (errno == EACCES || errno == EROFS || errno == EPERM))
		return err_errno(err, errno, "cannot open '%s' for writing (readonly=on may do)",
				 path);
	if (*fd < 0)
		return err_errno(err, errno, "cannot open '%s'", path);
	if (fstat(*fd, st) < 0) {
		int e = errno;

		close(*fd);
		return err_errno(err, e, "cannot open '%s'", path);
	}
	return 0;
}

/* One writer, or any number of readers.  The lock belongs to the open file, not to the process
 * (fcntl(2) "Open file description locks"), and goes away with it. */
static int raw_lock(int fd, const char *path, bool ro, struct error *err)
{
	struct flock fl = {.l_type = ro ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
	int r;

	r = fcntl(fd, F_OFD_SETLK, &fl);
	if (r < 0 && errno != EAGAIN && errno != EACCES) /* no such locks on this file system */
		r = flock(fd, (ro ? LOCK_SH : LOCK_EX) | LOCK_NB);
	if (!r)
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return err_set(err, EBUSY,
			       ro ? "'%s' is being written by another process"
				  : "'%s' is in use by another process",
			       path);
	log_warn(&log_raw, "%s: cannot be locked (%s): see that nobody else uses it", path,
		 strerror(errno));
	return 0;
}

static int raw_size(struct blk *b, const char *path, int fd, const struct stat *st,
		    struct error *err)
{
	uint64_t bytes;
	int sector;

	if (S_ISREG(st->st_mode)) {
		b->info.size = ALIGN_UP(st->st_size, SECTOR);
		if (b->info.size != (uint64_t)st->st_size)
			log_warn(&log_raw,
				 "%s: %llu bytes are not whole sectors of %d; the last one reads "
				 "as if filled up with zeroes",
				 path, (unsigned long long)st->st_size, SECTOR);
		return 0;
	}
	if (!S_ISBLK(st->st_mode))
		return err_set(err, EINVAL, "'%s' is neither a regular file nor a block device",
			       path);
	if (ioctl(fd, BLKGETSIZE64, &bytes) < 0 || ioctl(fd, BLKSSZGET, &sector) < 0)
		return err_errno(err, errno, "'%s': cannot ask the device for its size", path);
	b->info.size = bytes;
	b->info.block_size = sector == 4096 ? 4096 : SECTOR;
	return 0;
}

static int raw_open(struct blk *b, const char *path, struct error *err)
{
	struct raw *raw;
	struct stat st;
	int fd, r;

	r = raw_open_fd(path, b->flags, &fd, &st, err);
	if (r < 0)
		return r;
	r = raw_size(b, path, fd, &st, err);
	if (!r && !(b->flags & BLK_NO_LOCK))
		r = raw_lock(fd, path, b->flags & BLK_READONLY, err);
	if (r < 0)
		goto close_fd;
	raw = calloc(1, sizeof(*raw));
	if (!raw) {
		r = err_errno(err, ENOMEM, "'%s'", path);
		goto close_fd;
	}
	raw->fd = fd;
	raw->is_device = S_ISBLK(st.st_mode);
	b->priv = raw;
	b->info.can_discard = b->info.can_zero = !(b->flags & BLK_READONLY);
	return 0;

close_fd:
	close(fd);
	return r;
}

static void raw_close(struct blk *b)
{
	struct raw *raw = b->priv;

	close(raw->fd);
	free(raw);
}

static int raw_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	const struct raw *raw = b->priv;
	struct iov_walk walk = {iov, n, 0};
	struct iovec part[RAW_IOVS];

	while (len) {
		uint64_t step = MIN(len, (uint64_t)INT_MAX & PAGE_MASK);
		unsigned nr = iov_peek(&walk, part, RAW_IOVS, &step);
		ssize_t got = preadv(raw->fd, part, (int)nr, (off_t)off);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (!got) { /* the padding behind the end of the file */
			iov_zero(&walk, len);
			return 0;
		}
		iov_advance(&walk, (uint64_t)got);
		off += (uint64_t)got;
		len -= (uint64_t)got;
	}
	return 0;
}

static int raw_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	const struct raw *raw = b->priv;
	struct iov_walk walk = {iov, n, 0};
	struct iovec part[RAW_IOVS];

	while (len) {
		uint64_t step = MIN(len, (uint64_t)INT_MAX & PAGE_MASK);
		unsigned nr = iov_peek(&walk, part, RAW_IOVS, &step);
		ssize_t put = pwritev(raw->fd, part, (int)nr, (off_t)off);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put ? -errno : -EIO;
		iov_advance(&walk, (uint64_t)put);
		off += (uint64_t)put;
		len -= (uint64_t)put;
	}
	return 0;
}

static int raw_flush(struct blk *b)
{
	const struct raw *raw = b->priv;

	return fdatasync(raw->fd) < 0 ? -errno : 0;
}

static bool is_unsupported(int e)
{
	return e == EOPNOTSUPP || e == ENOSYS || e == ENODEV;
}

static int raw_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
	int r;

	do
		r = fallocate(fd, mode, (off_t)off, (off_t)len);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

static int raw_punch(struct raw *raw, uint64_t off, uint64_t len)
{
	int r;

	if (raw->no_punch)
		return -EOPNOTSUPP;
	r = raw_fallocate(raw->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
	if (r < 0 && is_unsupported(-r)) {
		raw->no_punch = true;
		return -EOPNOTSUPP;
	}
	return r;
}

static int raw_discard(struct blk *b, uint64_t off, uint64_t len)
{
	uint64_t start = ALIGN_UP(off, b->info.block_size);
	uint64_t end = ALIGN_DOWN(off + len, b->info.block_size);
	int r = start < end ? raw_punch(b->priv, start, end - start) : 0;

	return r == -EOPNOTSUPP ? 0 : r; /* a hint */
}

static int raw_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct raw *raw = b->priv;
	int r;

	if (raw->is_device && (off | len) % b->info.block_size)
		return -EOPNOTSUPP;
	if (may_unmap) { /* behind the end of the file it is zeroes without our help */
		r = raw_punch(raw, off, len);
		if (r != -EOPNOTSUPP)
			return r;
	}
	if (raw->no_zero_range)
		return -EOPNOTSUPP;
	r = raw_fallocate(raw->fd, FALLOC_FL_ZERO_RANGE, off, len);
	if (r < 0 && is_unsupported(-r)) {
		raw->no_zero_range = true;
		return -EOPNOTSUPP;
	}
	return r;
}

static int raw_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	const struct raw *raw = b->priv;
	off_t data, hole;

	data = lseek(raw->fd, (off_t)off, SEEK_DATA);
	if (data < 0 && errno != ENXIO) { /* cannot tell: data, which is always true */
		*what = BLK_EXT_DATA;
		return 0;
	}
	if (data < 0 || (uint64_t)data > off) {
		*what = BLK_EXT_HOLE;
		if (data >= 0)
			*len = MIN(*len, (uint64_t)data - off);
		return 0;
	}
	*what = BLK_EXT_DATA;
	hole = lseek(raw->fd, (off_t)off, SEEK_HOLE);
	if (hole > data)
		*len = MIN(*len, (uint64_t)(hole - data));
	return 0;
}

static int raw_resize(struct blk *b, uint64_t size)
{
	const struct raw *raw = b->priv;

	if (raw->is_device)
		return -ENOTSUP;
	if (size % SECTOR)
		return -EINVAL;
	if (ftruncate(raw->fd, (off_t)size) < 0)
		return -errno;
	b->info.size = size;
	return 0;
}

const struct blk_format blk_raw = {
	.name = "raw",
	.parallel = true,
	.probe = raw_probe,
	.open = raw_open,
	.close = raw_close,
	.readv = raw_readv,
	.writev = raw_writev,
	.flush = raw_flush,
	.discard = raw_discard,
	.write_zeroes = raw_write_zeroes,
	.extent = raw_extent,
	.resize = raw_resize,
};
