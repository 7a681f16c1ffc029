/* guestfs/xfs.c - XFS, by libfsxfs on top of libbfio. */
#include "guestfs/internal.h"

#include "block/blk.h"

#include <errno.h>
#include <inttypes.h>
#include <libbfio.h>
#include <libfsxfs.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct xfs {
	struct blk *b;
	uint64_t start, len, at;
	bool is_open;
	libbfio_handle_t *io;
	libfsxfs_volume_t *volume;
};

/* --- its bytes ---------------------------------------------------------------------------------
 */

static struct xfs *xfs_of(intptr_t *io)
{
	return (struct xfs *)io;
}

static int io_free(intptr_t **io, libbfio_error_t **error)
{
	*io = NULL;
	return 1;
}

static int io_clone(intptr_t **to, intptr_t *from, libbfio_error_t **error)
{
	return -1;
}

static int io_open(intptr_t *io, int flags, libbfio_error_t **error)
{
	xfs_of(io)->is_open = true;
	return 1;
}

static int io_close(intptr_t *io, libbfio_error_t **error)
{
	xfs_of(io)->is_open = false;
	return 0;
}

static ssize_t io_read(intptr_t *io, uint8_t *buf, size_t len, libbfio_error_t **error)
{
	struct xfs *x = xfs_of(io);

	if (x->at >= x->len)
		return 0;
	len = (size_t)MIN((uint64_t)len, x->len - x->at);
	if (blk_read(x->b, buf, len, x->start + x->at) < 0)
		return -1;
	x->at += len;
	return (ssize_t)len;
}

static ssize_t io_write(intptr_t *io, const uint8_t *buf, size_t len, libbfio_error_t **error)
{
	return -1;
}

static off64_t io_seek(intptr_t *io, off64_t off, int whence, libbfio_error_t **error)
{
	struct xfs *x = xfs_of(io);
	off64_t base = whence == SEEK_CUR   ? (off64_t)x->at
		       : whence == SEEK_END ? (off64_t)x->len
					    : 0;
	off64_t to;

	if (__builtin_add_overflow(base, off, &to) || to < 0)
		return -1;
	x->at = (uint64_t)to;
	return to;
}

static int io_exists(intptr_t *io, libbfio_error_t **error)
{
	return 1;
}

static int io_is_open(intptr_t *io, libbfio_error_t **error)
{
	return xfs_of(io)->is_open;
}

static int io_size(intptr_t *io, size64_t *size, libbfio_error_t **error)
{
	*size = xfs_of(io)->len;
	return 1;
}

/* --- opening -----------------------------------------------------------------------------------
 */

static void close_fs(void *fs)
{
	struct xfs *x = fs;

	if (x->volume) {
		libfsxfs_volume_close(x->volume, NULL);
		libfsxfs_volume_free(&x->volume, NULL);
	}
	if (x->io)
		libbfio_handle_free(&x->io, NULL);
	free(x);
}

static bool start_volume(struct xfs *x)
{
	return libbfio_handle_initialize(&x->io, (intptr_t *)x, io_free, io_clone, io_open,
					 io_close, io_read, io_write, io_seek, io_exists,
					 io_is_open, io_size, 0, NULL) == 1 &&
	       libfsxfs_volume_initialize(&x->volume, NULL) == 1 &&
	       libfsxfs_volume_open_file_io_handle(x->volume, x->io, LIBFSXFS_OPEN_READ, NULL) == 1;
}

static int open_fs(void **fs, struct blk *b, uint64_t start, uint64_t len, const char **content)
{
	char magic[4];
	struct xfs *x;

	if (len < 4096 || len > INT64_MAX || blk_read(b, magic, sizeof(magic), start) < 0 ||
	    memcmp(magic, "XFSB", sizeof(magic)))
		return -EINVAL;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	x->b = b;
	x->start = start;
	x->len = len;
	if (!start_volume(x)) {
		close_fs(x);
		return -EINVAL;
	}
	*content = "xfs";
	*fs = x;
	return 0;
}

/* --- files -------------------------------------------------------------------------------------
 */

static int find(struct xfs *x, const char *path, libfsxfs_file_entry_t **e)
{
	int r;

	*e = NULL;
	if (!strcmp(path, "/"))
		r = libfsxfs_volume_get_root_directory(x->volume, e, NULL);
	else
		r = libfsxfs_volume_get_file_entry_by_utf8_path(x->volume, (const uint8_t *)path,
								strlen(path), e, NULL);
	return r == 1 ? 0 : r == 0 ? -ENOENT : -EIO;
}

static int describe(libfsxfs_file_entry_t *e, struct guestfs_file *f)
{
	size64_t size = 0;
	int64_t when = 0;
	uint16_t mode = 0;

	if (libfsxfs_file_entry_get_file_mode(e, &mode, NULL) != 1 ||
	    libfsxfs_file_entry_get_size(e, &size, NULL) != 1)
		return -EIO;
	(void)libfsxfs_file_entry_get_modification_time(e, &when, NULL);
	f->is_dir = S_ISDIR(mode);
	f->is_link = S_ISLNK(mode);
	f->size = size;
	f->mtime = when / 1000000000;
	return 0;
}

static int list_one(libfsxfs_file_entry_t *e,
		    int (*file)(void *opaque, const struct guestfs_file *f), void *opaque)
{
	char name[NAME_MAX + 1];
	struct guestfs_file f = {.name = name};

	if (libfsxfs_file_entry_get_utf8_name(e, (uint8_t *)name, sizeof(name), NULL) != 1 ||
	    describe(e, &f) < 0)
		return 0;
	return file(opaque, &f);
}

static int list_dir(void *fs, const char *path,
		    int (*file)(void *opaque, const struct guestfs_file *f), void *opaque)
{
	libfsxfs_file_entry_t *dir, *e = NULL;
	int n = 0, r = find(fs, path, &dir);

	if (r == 0 && libfsxfs_file_entry_get_number_of_sub_file_entries(dir, &n, NULL) != 1)
		r = -EIO;
	for (int i = 0; i < n && r == 0; i++) {
		if (libfsxfs_file_entry_get_sub_file_entry_by_index(dir, i, &e, NULL) == 1)
			r = list_one(e, file, opaque);
		if (e)
			libfsxfs_file_entry_free(&e, NULL);
	}
	if (dir)
		libfsxfs_file_entry_free(&dir, NULL);
	return r;
}

static int stat_file(void *fs, const char *path, struct guestfs_file *f)
{
	libfsxfs_file_entry_t *e;
	int r = find(fs, path, &e);

	*f = (struct guestfs_file){.name = ""};
	if (r == 0)
		r = describe(e, f);
	if (e)
		libfsxfs_file_entry_free(&e, NULL);
	return r;
}

static int read_file(void *fs, const char *path, char *buf, size_t len)
{
	libfsxfs_file_entry_t *e;
	int r = find(fs, path, &e);

	for (size_t done = 0; r == 0 && done < len;) {
		ssize_t n = libfsxfs_file_entry_read_buffer(e, buf + done,
							    MIN(len - done, (size_t)MiB), NULL);

		if (n <= 0)
			r = -EIO;
		else
			done += (size_t)n;
	}
	if (e)
		libfsxfs_file_entry_free(&e, NULL);
	return r;
}

static int read_link(void *fs, const char *path, char *buf, size_t cap)
{
	libfsxfs_file_entry_t *e;
	int r = find(fs, path, &e);

	if (r == 0 &&
	    libfsxfs_file_entry_get_utf8_symbolic_link_target(e, (uint8_t *)buf, cap, NULL) != 1)
		r = -EINVAL;
	if (e)
		libfsxfs_file_entry_free(&e, NULL);
	return r;
}

const struct guestfs_reader guestfs_xfs = {
	.open = open_fs,
	.close = close_fs,
	.list = list_dir,
	.stat = stat_file,
	.read = read_file,
	.link = read_link,
};
