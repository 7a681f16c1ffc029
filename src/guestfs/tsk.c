/* guestfs/tsk.c - file systems The Sleuth Kit reads. */
#include "guestfs/internal.h"

#include "block/blk.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tsk/libtsk.h>

struct tsk {
	TSK_IMG_INFO img; /* first: what TSK hands back to the callbacks */
	struct blk *b;
	uint64_t start, len;
	TSK_IMG_INFO *opened;
	TSK_FS_INFO *fs;
};

static ssize_t on_read(TSK_IMG_INFO *img, TSK_OFF_T off, char *buf, size_t len)
{
	struct tsk *t = container_of(img, struct tsk, img);

	if (off < 0 || (uint64_t)off >= t->len)
		return -1;
	len = (size_t)MIN((uint64_t)len, t->len - (uint64_t)off);
	return blk_read(t->b, buf, len, t->start + (uint64_t)off) < 0 ? -1 : (ssize_t)len;
}

static void on_close(TSK_IMG_INFO *img)
{
}

static void on_stat(TSK_IMG_INFO *img, FILE *f)
{
}

static const char *content_of(TSK_FS_TYPE_ENUM type)
{
	switch (type) {
	case TSK_FS_TYPE_EXT2:
		return "ext2";
	case TSK_FS_TYPE_EXT3:
		return "ext3";
	case TSK_FS_TYPE_EXT4:
		return "ext4";
	case TSK_FS_TYPE_FAT12:
		return "fat12";
	case TSK_FS_TYPE_FAT16:
		return "fat16";
	case TSK_FS_TYPE_FAT32:
		return "fat32";
	case TSK_FS_TYPE_EXFAT:
		return "exfat";
	case TSK_FS_TYPE_NTFS:
		return "ntfs";
	case TSK_FS_TYPE_HFS:
		return "hfs+";
	case TSK_FS_TYPE_ISO9660:
		return "iso9660";
	default:
		return TSK_FS_TYPE_ISFFS(type) ? "ufs" : NULL;
	}
}

static void close_fs(void *fs)
{
	struct tsk *t = fs;

	if (t->fs)
		tsk_fs_close(t->fs);
	if (t->opened)
		tsk_img_close(t->opened);
	free(t);
}

static int open_fs(void **fs, struct blk *b, uint64_t start, uint64_t len, const char **content)
{
	struct tsk *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->b = b;
	t->start = start;
	t->len = len;
	if (len <= INT64_MAX)
		t->opened =
			tsk_img_open_external(t, (TSK_OFF_T)len, 512, on_read, on_close, on_stat);
	if (t->opened)
		t->fs = tsk_fs_open_img(t->opened, 0, TSK_FS_TYPE_DETECT);
	*content = t->fs ? content_of(t->fs->ftype) : NULL;
	if (!*content) {
		close_fs(t);
		return -EINVAL;
	}
	*fs = t;
	return 0;
}

/* --- files -------------------------------------------------------------------------------------
 */

static bool describe(const TSK_FS_FILE *file, struct guestfs_file *f)
{
	const TSK_FS_META *m = file->meta;

	if (!m)
		return false;
	f->is_dir = m->type == TSK_FS_META_TYPE_DIR;
	f->is_link = m->type == TSK_FS_META_TYPE_LNK;
	f->size = m->size < 0 ? 0 : (uint64_t)m->size;
	f->mtime = (int64_t)m->mtime;
	return true;
}

static int list_dir(void *fs, const char *path,
		    int (*file)(void *opaque, const struct guestfs_file *f), void *opaque)
{
	struct tsk *t = fs;
	TSK_FS_DIR *dir = tsk_fs_dir_open(t->fs, path);
	int r = 0;

	if (!dir)
		return -ENOENT;
	for (size_t i = 0; i < tsk_fs_dir_getsize(dir) && r == 0; i++) {
		TSK_FS_FILE *e = (TSK_FS_FILE *)(uintptr_t)tsk_fs_dir_get(dir, i);
		struct guestfs_file f = {0};

		if (e && e->name && (e->name->flags & TSK_FS_NAME_FLAG_ALLOC) && e->name->name &&
		    strcmp(e->name->name, ".") && strcmp(e->name->name, "..") && describe(e, &f)) {
			f.name = e->name->name;
			r = file(opaque, &f);
		}
		tsk_fs_file_close(e);
	}
	tsk_fs_dir_close(dir);
	return r;
}

static int stat_file(void *fs, const char *path, struct guestfs_file *f)
{
	struct tsk *t = fs;
	TSK_FS_FILE *file = tsk_fs_file_open(t->fs, NULL, path);
	bool ok;

	if (!file)
		return -ENOENT;
	*f = (struct guestfs_file){.name = ""};
	ok = describe(file, f);
	tsk_fs_file_close(file);
	return ok ? 0 : -EIO;
}

static int read_file(void *fs, const char *path, char *buf, size_t len)
{
	struct tsk *t = fs;
	TSK_FS_FILE *file = tsk_fs_file_open(t->fs, NULL, path);
	size_t done = 0;

	if (!file)
		return -ENOENT;
	while (done < len) {
		ssize_t n = tsk_fs_file_read(file, (TSK_OFF_T)done, buf + done, len - done,
					     TSK_FS_FILE_READ_FLAG_NONE);

		if (n <= 0)
			break;
		done += (size_t)n;
	}
	tsk_fs_file_close(file);
	return done == len ? 0 : -EIO;
}

static int read_link(void *fs, const char *path, char *buf, size_t cap)
{
	struct tsk *t = fs;
	TSK_FS_FILE *file = tsk_fs_file_open(t->fs, NULL, path);
	int r = -EINVAL;

	if (file && file->meta && file->meta->link && strlen(file->meta->link) < cap) {
		strcpy(buf, file->meta->link);
		r = 0;
	}
	tsk_fs_file_close(file);
	return r;
}

const struct guestfs_reader guestfs_tsk = {
	.open = open_fs,
	.close = close_fs,
	.list = list_dir,
	.stat = stat_file,
	.read = read_file,
	.link = read_link,
};
