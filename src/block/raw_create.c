/* block/raw_create.c - making files: raw disks, and the empty file under any format. */
#include "block/internal.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

const struct blk_option blk_raw_create_options[] = {
	{"preallocation", "off|falloc|full", "off", "give the file its space now"},
	{"nocow", "on|off", "off", "no copy-on-write by the file system (btrfs)"},
	{NULL},
};

static int open_new(const char *path, bool overwrite, bool *made)
{
	int mode = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	int fd = open(path, mode | O_CREAT | O_EXCL, 0644);

	*made = fd >= 0;
	if (fd < 0 && errno == EEXIST && overwrite)
		fd = open(path, mode);
	return fd;
}

/* Nothing is truncated before the lock says that nobody uses it. */
static int lock_and_empty(int fd, const char *path, struct error *err)
{
	struct stat st;

	if (blk_lock_fd(fd, false) == -EBUSY)
		return err_set(err, EBUSY, "'%s' is in use by another process", path);
	if (fstat(fd, &st) < 0)
		return err_errno(err, errno, "cannot create '%s'", path);
	if (S_ISBLK(st.st_mode))
		return 0;
	if (!S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "'%s' is neither a regular file nor a block device",
			       path);
	return ftruncate(fd, 0) < 0 ? err_errno(err, errno, "cannot create '%s'", path) : 0;
}

int blk_raw_create_fd(const char *path, bool overwrite, int *fd, bool *made, struct error *err)
{
	int r;

	*fd = open_new(path, overwrite, made);
	if (*fd < 0 && errno == EEXIST)
		return err_set(err, EEXIST, "'%s' exists already", path);
	if (*fd < 0)
		return err_errno(err, errno, "cannot create '%s'", path);
	r = lock_and_empty(*fd, path, err);
	if (r < 0) {
		close(*fd);
		if (*made)
			unlink(path);
	}
	return r;
}

/* Must happen while the file is empty; elsewhere than on btrfs it means nothing. */
static void set_nocow(int fd)
{
	int attr;

	if (ioctl(fd, FS_IOC_GETFLAGS, &attr) == 0) {
		attr |= FS_NOCOW_FL;
		(void)ioctl(fd, FS_IOC_SETFLAGS, &attr);
	}
}

static int write_all_zeroes(struct blk *file, uint64_t size)
{
	static const uint8_t zeroes[64 * KiB];
	int r = 0;

	for (uint64_t off = 0; off < size && !r; off += sizeof(zeroes))
		r = blk_write(file, zeroes, MIN(sizeof(zeroes), size - off), off);
	return r;
}

static int give_space(struct blk *file, const struct blk_create *c, struct error *err)
{
	const char *how = blk_kv_get(c->opt, c->nr_opts, "preallocation");
	int r = blk_resize(file, c->size);

	if (r == -ENOTSUP && blk_size(file) >= c->size)
		return 0; /* a device that is large enough */
	if (r == -ENOTSUP)
		return err_set(err, ENOSPC, "'%s' has only %llu bytes", c->path,
			       (unsigned long long)blk_size(file));
	if (r < 0)
		return err_errno(err, -r, "cannot make '%s' %llu bytes long", c->path,
				 (unsigned long long)c->size);
	if (!how || !strcmp(how, "off"))
		return 0;
	if (strcmp(how, "falloc") && strcmp(how, "full"))
		return err_set(err, EINVAL, "preallocation=%s: use off, falloc or full", how);
	if (!strcmp(how, "full"))
		r = write_all_zeroes(file, c->size);
	else if (c->size)
		r = -posix_fallocate(blk_raw_fd(file), 0, (off_t)c->size);
	return r < 0 ? err_errno(err, -r, "cannot give '%s' its space", c->path) : 0;
}

int blk_raw_create(const struct blk_create *c, struct error *err)
{
	struct blk *file = NULL;
	bool nocow;
	int r;

	if (c->backing)
		return err_set(err, EINVAL, "a raw disk cannot have a backing file");
	r = blk_kv_bool(c->opt, c->nr_opts, "nocow", false, &nocow, err);
	if (!r)
		r = blk_create_file(c, c->path, &file, err);
	if (r < 0)
		return r;
	if (nocow)
		set_nocow(blk_raw_fd(file));
	r = give_space(file, c, err);
	blk_close(file);
	return r;
}

int blk_raw_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err)
{
	m->required = m->fully_allocated = m->size;
	return 0;
}
