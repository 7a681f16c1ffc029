/* block/raw.c - the disk is the file, byte for byte: regular files, sparse or not, block devices.
 *
 * A regular file whose size is not a whole number of sectors gets a last sector padded with zeroes:
 * reads see them; the first write to that sector makes them real.
 *
 * With BLK_FILE it is the file of a format instead: bytes, not sectors, and writes may extend it.
 */
#include "base/error.h"
#include "base/log.h"
#include "block/internal.h"
#include "block/iov.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RAW_IOVS = 128, SECTOR = 512, LONG_WRITE = 256 * 1024 };

static struct log_component log_raw = LOG_COMPONENT("raw");

struct raw {
	int fd;
	bool is_device;
	/* Held around long writes to a file.  File systems let one writer in at a time, and those
	 * who wait spin as long as that one runs: time that the other threads' reading should have.
	 */
	pthread_mutex_t long_write;
	/* The run that was found last, in a file that nobody writes while we have it: to look for
	 * the end of a run takes some file systems a walk through all of it. */
	bool keeps_run;
	pthread_mutex_t run_lock; /* guards run */
	struct {
		uint64_t start, end;
		enum blk_extent what;
	} run;
	/* What the file system turned out not to support; only ever go to true. */
	_Atomic bool no_punch, no_zero_range;
};

static int raw_probe(const uint8_t *head, size_t len)
{
	return 1; /* anything can be a raw disk */
}

static int refuse_open(const char *path, int e, bool ro, struct error *err)
{
	if (!ro && e == EBUSY)
		return err_set(err, EBUSY, "'%s' is in use by this host (mounted?)", path);
	if (!ro && (e == EACCES || e == EROFS || e == EPERM))
		return err_errno(err, e, "cannot open '%s' for writing (readonly=on may do)", path);
	return err_errno(err, e, "cannot open '%s'", path);
}

static int raw_open_fd(const char *path, unsigned flags, int *fd, struct error *err)
{
	/* O_NONBLOCK: a FIFO given by mistake must not hang us; it means nothing to disks. */
	int mode = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	bool ro = flags & BLK_READONLY;
	struct stat st;

	/* O_EXCL on a device: fail when it is mounted or otherwise in use by the kernel. */
	if (!ro && !(flags & BLK_NO_LOCK) && !stat(path, &st) && S_ISBLK(st.st_mode))
		mode |= O_EXCL;
	*fd = open(path, mode | (ro ? O_RDONLY : O_RDWR));
	return *fd < 0 ? refuse_open(path, errno, ro, err) : 0;
}

static int raw_lock(int fd, const char *path, bool ro, struct error *err)
{
	int r = blk_lock_fd(fd, ro);

	if (r == -EBUSY)
		return err_set(err, EBUSY,
			       ro ? "'%s' is being written by another process"
				  : "'%s' is in use by another process",
			       path);
	if (r < 0)
		log_warn(&log_raw, "%s: cannot be locked (%s): see that nobody else uses it", path,
			 strerror(-r));
	return 0;
}

static int raw_size(struct blk *b, const char *path, int fd, const struct stat *st,
		    struct error *err)
{
	uint64_t bytes;
	int sector;

	if (S_ISREG(st->st_mode)) {
		bytes = (uint64_t)st->st_size;
		b->info.size = b->flags & BLK_FILE ? bytes : ALIGN_UP(bytes, SECTOR);
		if (b->info.size != bytes)
			log_warn(&log_raw,
				 "%s: %llu bytes are not whole sectors of %d; the last one reads "
				 "as if filled up with zeroes",
				 path, (unsigned long long)bytes, SECTOR);
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

static int raw_take(struct blk *b, int fd, const char *path, struct error *err)
{
	struct raw *raw;
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return err_errno(err, errno, "cannot open '%s'", path);
	r = raw_size(b, path, fd, &st, err);
	if (!r && !(b->flags & BLK_NO_LOCK))
		r = raw_lock(fd, path, b->flags & BLK_READONLY, err);
	if (r < 0)
		return r;
	raw = calloc(1, sizeof(*raw));
	if (!raw)
		return err_errno(err, ENOMEM, "'%s'", path);
	raw->fd = fd;
	raw->is_device = S_ISBLK(st.st_mode);
	pthread_mutex_init(&raw->long_write, NULL);
	pthread_mutex_init(&raw->run_lock, NULL);
	raw->keeps_run = (b->flags & BLK_READONLY) && !(b->flags & BLK_NO_LOCK);
	b->priv = raw;
	b->dev = st.st_dev;
	b->ino = st.st_ino;
	b->info.can_discard = b->info.can_zero = !(b->flags & BLK_READONLY);
	return 0;
}

static int raw_open(struct blk *b, const char *path, struct error *err)
{
	int fd = b->fd, r = 0;

	b->fd = -1;
	if (fd < 0)
		r = raw_open_fd(path, b->flags, &fd, err);
	if (r < 0)
		return r;
	r = raw_take(b, fd, path, err);
	if (r < 0)
		close(fd);
	return r;
}

int blk_raw_fd(const struct blk *b)
{
	return b->fmt == &blk_raw ? ((const struct raw *)b->priv)->fd : -1;
}

static void raw_close(struct blk *b)
{
	struct raw *raw = b->priv;

	pthread_mutex_destroy(&raw->long_write);
	pthread_mutex_destroy(&raw->run_lock);
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

/* A file has got longer, perhaps by several writers at once: the size is what the longest made. */
static void grow_to(struct blk *b, uint64_t end)
{
	uint64_t size = blk_size(b);

	while (size < end && !__atomic_compare_exchange_n(&b->info.size, &size, end, false,
							  __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		;
}

static int write_all(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
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
		if (b->flags & BLK_FILE)
			grow_to(b, off);
	}
	return 0;
}

static int raw_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		      uint64_t off)
{
	struct raw *raw = b->priv;
	int r;

	if (raw->is_device || len < LONG_WRITE)
		return write_all(b, iov, n, len, off);
	pthread_mutex_lock(&raw->long_write);
	r = write_all(b, iov, n, len, off);
	pthread_mutex_unlock(&raw->long_write);
	return r;
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

/* Zeroes behind the end of a file: its last byte makes all of them.  Not ftruncate, which could
 * take away what another thread has just put behind. */
static int extend_to(struct blk *b, uint64_t end)
{
	if (!(b->flags & BLK_FILE) || end <= blk_size(b))
		return 0;
	return raw_writev(b, &(struct iovec){(char[1]){0}, 1}, 1, 1, end - 1);
}

static int raw_zero_range(struct raw *raw, uint64_t off, uint64_t len)
{
	int r;

	if (raw->no_zero_range)
		return -EOPNOTSUPP;
	r = raw_fallocate(raw->fd, FALLOC_FL_ZERO_RANGE, off, len);
	if (r < 0 && is_unsupported(-r)) {
		raw->no_zero_range = true;
		return -EOPNOTSUPP;
	}
	return r;
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
			return r < 0 ? r : extend_to(b, off + len);
	}
	r = raw_zero_range(raw, off, len);
	if (!r && (b->flags & BLK_FILE))
		grow_to(b, off + len);
	return r;
}

/* The run at off: *end is where it ends, at the latest at the end of the disk. */
static enum blk_extent seek_run(const struct raw *raw, uint64_t off, uint64_t size, uint64_t *end)
{
	off_t data = lseek(raw->fd, (off_t)off, SEEK_DATA), hole;

	*end = size;
	if (data < 0 && errno != ENXIO) /* cannot tell: data, which is always true */
		return BLK_EXT_DATA;
	if (data < 0 || (uint64_t)data > off) {
		if (data >= 0)
			*end = (uint64_t)data;
		return BLK_EXT_HOLE;
	}
	hole = lseek(raw->fd, (off_t)off, SEEK_HOLE);
	if (hole > data)
		*end = (uint64_t)hole;
	return BLK_EXT_DATA;
}

static int raw_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	struct raw *raw = b->priv;
	uint64_t end;

	m->host = b;
	m->host_off = off;
	if (!raw->keeps_run) {
		m->what = seek_run(raw, off, blk_size(b), &end);
		m->len = MIN(m->len, end - off);
		return 0;
	}
	pthread_mutex_lock(&raw->run_lock);
	if (off < raw->run.start || off >= raw->run.end) {
		raw->run.what = seek_run(raw, off, blk_size(b), &raw->run.end);
		raw->run.start = off;
	}
	m->what = raw->run.what;
	m->len = MIN(m->len, raw->run.end - off);
	pthread_mutex_unlock(&raw->run_lock);
	return 0;
}

static int raw_resize(struct blk *b, uint64_t size)
{
	const struct raw *raw = b->priv;

	if (raw->is_device)
		return size == blk_size(b) ? 0 : -ENOTSUP;
	if (size % SECTOR && !(b->flags & BLK_FILE))
		return -EINVAL;
	if (ftruncate(raw->fd, (off_t)size) < 0)
		return -errno;
	blk_set_size(b, size);
	return 0;
}

static int copy_error(int e)
{
	return is_unsupported(e) || e == EXDEV || e == EINVAL || e == EPERM ? -ENOTSUP : -e;
}

static int raw_share(int in_fd, uint64_t in, struct blk *to, uint64_t out, uint64_t len)
{
	struct file_clone_range range = {
		.src_fd = in_fd, .src_offset = in, .src_length = len, .dest_offset = out};

	if (ioctl(blk_raw_fd(to), FICLONERANGE, &range) < 0)
		return errno == ENOTTY ? -ENOTSUP : copy_error(errno);
	if (to->flags & BLK_FILE)
		grow_to(to, out + len);
	return 0;
}

int blk_raw_copy(struct blk *from, uint64_t from_off, struct blk *to, uint64_t to_off, uint64_t len,
		 bool share)
{
	off_t in = (off_t)from_off, out = (off_t)to_off;
	int in_fd = blk_raw_fd(from), out_fd = blk_raw_fd(to);

	if (in_fd < 0 || out_fd < 0)
		return -ENOTSUP;
	if (share)
		return raw_share(in_fd, from_off, to, to_off, len);
	while (len) {
		ssize_t n = copy_file_range(in_fd, &in, out_fd, &out, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) /* 0: the end of the file, in the padding of its last sector */
			return n ? copy_error(errno) : -ENOTSUP;
		len -= (uint64_t)n;
		if (to->flags & BLK_FILE)
			grow_to(to, (uint64_t)out);
	}
	return 0;
}

const struct blk_format blk_raw = {
	.name = "raw",
	.help = "the bytes of the disk, nothing else",
	.parallel = true,
	.probe = raw_probe,
	.open = raw_open,
	.close = raw_close,
	.readv = raw_readv,
	.writev = raw_writev,
	.flush = raw_flush,
	.discard = raw_discard,
	.write_zeroes = raw_write_zeroes,
	.map = raw_map,
	.resize = raw_resize,
	.create_options = blk_raw_create_options,
	.create = blk_raw_create,
	.measure = blk_raw_measure,
};
