/* export/mount.c - see mount.h. */
#include "export/mount.h"

#include "base/error.h"
#include "block/blk.h"
#include "export/partition.h"
#include "export/place.h"

#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct file {
	char name[16];
	uint64_t start, len;
};

static struct {
	struct blk *blk;
	bool writable;
	struct file file[PARTITIONS_MAX + 1];
	unsigned nr_files;
	struct timespec when;
} shown;

static const struct file *find(const char *path)
{
	for (unsigned i = 0; *path == '/' && i < shown.nr_files; i++)
		if (!strcmp(path + 1, shown.file[i].name))
			return &shown.file[i];
	return NULL;
}

static int on_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	const struct file *f = find(path);

	memset(st, 0, sizeof(*st));
	st->st_uid = getuid();
	st->st_gid = getgid();
	st->st_atim = st->st_mtim = st->st_ctim = shown.when;
	if (f) {
		st->st_mode = S_IFREG | (shown.writable ? 0600 : 0400);
		st->st_nlink = 1;
		st->st_size = (off_t)f->len;
		st->st_blocks = (blkcnt_t)(f->len / 512);
		st->st_blksize = 64 * KiB;
		return 0;
	}
	if (strcmp(path, "/"))
		return -ENOENT;
	st->st_mode = S_IFDIR | 0500;
	st->st_nlink = 2;
	return 0;
}

static int on_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t off,
		      struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
	fill(buf, ".", NULL, 0, 0);
	fill(buf, "..", NULL, 0, 0);
	for (unsigned i = 0; i < shown.nr_files; i++)
		fill(buf, shown.file[i].name, NULL, 0, 0);
	return 0;
}

static int on_open(const char *path, struct fuse_file_info *fi)
{
	if (!find(path))
		return -ENOENT;
	return (fi->flags & O_ACCMODE) != O_RDONLY && !shown.writable ? -EROFS : 0;
}

/* How much of a request lies inside the file. */
static size_t inside(const struct file *f, off_t off, size_t len)
{
	if (off < 0 || (uint64_t)off >= f->len)
		return 0;
	return (size_t)MIN(len, f->len - (uint64_t)off);
}

static int on_read(const char *path, char *buf, size_t len, off_t off, struct fuse_file_info *fi)
{
	const struct file *f = find(path);
	size_t n = inside(f, off, len);
	int r = n ? blk_read(shown.blk, buf, n, f->start + (uint64_t)off) : 0;

	return r < 0 ? r : (int)n;
}

static int on_write(const char *path, const char *buf, size_t len, off_t off,
		    struct fuse_file_info *fi)
{
	const struct file *f = find(path);
	size_t n = inside(f, off, len);
	int r;

	if (!n)
		return -ENOSPC;
	r = blk_write(shown.blk, buf, n, f->start + (uint64_t)off);
	return r < 0 ? r : (int)n;
}

static int on_fsync(const char *path, int datasync, struct fuse_file_info *fi)
{
	return shown.writable ? blk_flush(shown.blk) : 0;
}

/* `cp` and the like truncate what they open; only to what it is. */
static int on_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
	const struct file *f = find(path);

	return f && (uint64_t)size == f->len ? 0 : -EPERM;
}

static off_t on_lseek(const char *path, off_t off, int whence, struct fuse_file_info *fi)
{
	const struct file *f = find(path);
	uint64_t at = (uint64_t)off, len;
	enum blk_extent what;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return -EINVAL;
	if (off < 0 || at >= f->len)
		return -ENXIO;
	for (; at < f->len; at += len) {
		int r;

		len = f->len - at;
		r = blk_extent(shown.blk, f->start + at, &len, &what);
		if (r < 0)
			return r;
		if ((what == BLK_EXT_DATA) == (whence == SEEK_DATA))
			return (off_t)at;
	}
	return whence == SEEK_HOLE ? (off_t)f->len : -ENXIO;
}

static const struct fuse_operations operations = {
	.getattr = on_getattr,
	.readdir = on_readdir,
	.open = on_open,
	.read = on_read,
	.write = on_write,
	.fsync = on_fsync,
	.truncate = on_truncate,
	.lseek = on_lseek,
};

static void add_file(const char *name, uint64_t start, uint64_t len)
{
	struct file *f = &shown.file[shown.nr_files++];

	snprintf(f->name, sizeof(f->name), "%s", name);
	f->start = start;
	f->len = len;
}

static int list_files(struct error *err)
{
	struct partition *list = calloc(PARTITIONS_MAX, sizeof(*list));
	char name[16];
	int n;

	if (!list)
		return err_errno(err, ENOMEM, "mount");
	n = partitions_read(shown.blk, list);
	add_file("disk", 0, blk_size(shown.blk));
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "p%u", list[i].number);
		add_file(name, list[i].start, list[i].len);
	}
	free(list);
	return n < 0 ? err_errno(err, -n, "cannot read the partition table") : 0;
}

static int add_options(struct fuse_args *args, const struct mount_config *cfg)
{
	char text[600];

	snprintf(text, sizeof(text), "-osubtype=hv,fsname=%s,default_permissions%s%s", cfg->name,
		 cfg->writable ? "" : ",ro", cfg->allow_other ? ",allow_other" : "");
	for (char *c = strstr(text, "fsname=") + 7; *c && c < text + 500; c++)
		if (*c == ',' && strncmp(c, ",default_permissions", 20))
			*c = '_'; /* options are told apart by commas */
		else if (*c == ',')
			break;
	return fuse_opt_add_arg(args, "hv") || fuse_opt_add_arg(args, text);
}

static int serve(struct fuse *fuse, const struct mount_config *cfg, struct error *err)
{
	struct fuse_session *session = fuse_get_session(fuse);
	struct fuse_loop_config loop = {.clone_fd = 0, .max_idle_threads = 4};
	char dir[PATH_MAX]; /* for unmounting, which happens somewhere else */
	int r;

	if (!realpath(cfg->dir, dir))
		return err_errno(err, errno, "cannot mount on '%s'", cfg->dir);
	if (fuse_mount(fuse, dir) != 0)
		return err_set(err, EIO,
			       "cannot mount on '%s' (is it an empty directory of yours, "
			       "and is there /dev/fuse?)",
			       cfg->dir);
	if (cfg->mounted)
		cfg->mounted(cfg);
	r = fuse_daemonize(cfg->foreground);
	if (r == 0 && fuse_set_signal_handlers(session) == 0) {
		r = fuse_loop_mt(fuse, &loop);
		fuse_remove_signal_handlers(session);
	}
	fuse_unmount(fuse);
	return r < 0 ? err_set(err, EIO, "the file system at '%s' ended with an error", cfg->dir)
		     : 0;
}

int mount_serve(const struct mount_config *cfg, struct error *err)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct fuse *fuse = NULL;
	int r;

	shown.blk = cfg->blk;
	shown.writable = cfg->writable;
	clock_gettime(CLOCK_REALTIME, &shown.when);
	r = mount_place_check(cfg->dir, "hv disk serve", err);
	if (r == 0)
		r = list_files(err);
	if (r < 0)
		return r;
	if (add_options(&args, cfg) == 0)
		fuse = fuse_new(&args, &operations, sizeof(operations), NULL);
	fuse_opt_free_args(&args);
	if (!fuse)
		return err_set(err, ENOMEM, "cannot start a FUSE file system");
	r = serve(fuse, cfg, err);
	fuse_destroy(fuse);
	return r;
}
