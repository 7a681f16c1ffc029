/* export/tree.c - see tree.h.  libfuse's low-level interface, whose node numbers are ours. */
#include "export/tree.h"

#include "base/error.h"
#include "block/blk.h"
#include "export/place.h"

#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(FUSE_ROOT_ID == 1, "the root's number");

struct tree_mount {
	struct fuse_session *session;
	const struct tree_ops *ops;
	void *opaque;
};

enum { KEPT_S = 60 }; /* how long the kernel may believe an answer: nothing ever changes */

static void to_stat(const struct tree_node *n, struct stat *st)
{
	*st = (struct stat){
		.st_ino = n->id,
		.st_mode = n->mode,
		.st_nlink = S_ISDIR(n->mode) ? 2 : 1,
		.st_uid = getuid(),
		.st_gid = getgid(),
		.st_size = (off_t)n->size,
		.st_blocks = (blkcnt_t)(n->stored / 512 + (n->stored % 512 != 0)),
		.st_blksize = (blksize_t)(128 * KiB),
	};
	st->st_mtim.tv_sec = st->st_ctim.tv_sec = st->st_atim.tv_sec = n->mtime;
}

static struct tree_mount *mount_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct tree_mount *m = mount_of(req);
	struct fuse_entry_param e = {.attr_timeout = KEPT_S, .entry_timeout = KEPT_S};
	struct tree_node n;
	int r = m->ops->child(m->opaque, parent, name, &n);

	if (r < 0) {
		fuse_reply_err(req, -r);
		return;
	}
	e.ino = n.id;
	to_stat(&n, &e.attr);
	fuse_reply_entry(req, &e);
}

static void on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct tree_mount *m = mount_of(req);
	struct tree_node n;
	struct stat st;
	int r = m->ops->node(m->opaque, ino, &n);

	if (r < 0) {
		fuse_reply_err(req, -r);
		return;
	}
	to_stat(&n, &st);
	fuse_reply_attr(req, &st, KEPT_S);
}

static void on_readlink(fuse_req_t req, fuse_ino_t ino)
{
	struct tree_mount *m = mount_of(req);
	char text[PATH_MAX];
	int r = m->ops->link(m->opaque, ino, text, sizeof(text));

	if (r < 0)
		fuse_reply_err(req, -r);
	else
		fuse_reply_readlink(req, text);
}

/* --- directories: listed once when opened ------------------------------------------------------
 */

struct listing {
	fuse_req_t req;
	char *buf;
	size_t len, cap;
};

static int add_entry(void *opaque, const char *name, const struct tree_node *n)
{
	struct listing *l = opaque;
	size_t need = fuse_add_direntry(l->req, NULL, 0, name, NULL, 0);
	struct stat st;

	if (l->len + need > l->cap) {
		size_t cap = MAX(2 * l->cap, l->len + need + 4096);
		char *more = realloc(l->buf, cap);

		if (!more)
			return -ENOMEM;
		l->buf = more;
		l->cap = cap;
	}
	to_stat(n, &st);
	/* The kernel goes on behind an entry by its offset. */
	fuse_add_direntry(l->req, l->buf + l->len, need, name, &st, (off_t)(l->len + need));
	l->len += need;
	return 0;
}

static void on_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct tree_mount *m = mount_of(req);
	struct listing *l = calloc(1, sizeof(*l));
	struct tree_node self = {.id = ino, .mode = S_IFDIR};
	int r = l ? 0 : -ENOMEM;

	if (r == 0) {
		l->req = req;
		r = add_entry(l, ".", &self);
	}
	if (r == 0)
		r = add_entry(l, "..", &self);
	if (r == 0)
		r = m->ops->list(m->opaque, ino, add_entry, l);
	if (r < 0) {
		if (l)
			free(l->buf);
		free(l);
		fuse_reply_err(req, -r);
		return;
	}
	fi->fh = (uintptr_t)l;
	fuse_reply_open(req, fi);
}

static void on_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		       struct fuse_file_info *fi)
{
	const struct listing *l = (const struct listing *)(uintptr_t)fi->fh;

	if (off < 0 || (size_t)off >= l->len)
		fuse_reply_buf(req, NULL, 0);
	else
		fuse_reply_buf(req, l->buf + off, MIN(size, l->len - (size_t)off));
}

static void on_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct listing *l = (struct listing *)(uintptr_t)fi->fh;

	free(l->buf);
	free(l);
	fuse_reply_err(req, 0);
}

/* --- files -------------------------------------------------------------------------------------
 */

static void on_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct tree_mount *m = mount_of(req);
	struct blk *b = NULL;
	int r = (fi->flags & O_ACCMODE) == O_RDONLY ? m->ops->open(m->opaque, ino, &b) : -EROFS;

	if (r < 0) {
		fuse_reply_err(req, -r);
		return;
	}
	fi->fh = (uintptr_t)b;
	fi->keep_cache = 1;
	fuse_reply_open(req, fi);
}

static void on_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	struct blk *b = (struct blk *)(uintptr_t)fi->fh;
	uint64_t end = blk_size(b);
	char *buf;
	int r;

	if (off < 0 || (uint64_t)off >= end) {
		fuse_reply_buf(req, NULL, 0);
		return;
	}
	size = (size_t)MIN((uint64_t)size, end - (uint64_t)off);
	buf = malloc(size);
	r = buf ? blk_read(b, buf, size, (uint64_t)off) : -ENOMEM;
	if (r < 0)
		fuse_reply_err(req, -r);
	else
		fuse_reply_buf(req, buf, size);
	free(buf);
}

static void on_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
		     struct fuse_file_info *fi)
{
	struct blk *b = (struct blk *)(uintptr_t)fi->fh;
	uint64_t at = (uint64_t)off, end = blk_size(b), len;
	enum blk_extent what;

	if (off < 0 || at >= end || (whence != SEEK_DATA && whence != SEEK_HOLE)) {
		fuse_reply_err(req, off < 0 || at >= end ? ENXIO : EINVAL);
		return;
	}
	for (; at < end; at += len) {
		int r;

		len = end - at;
		r = blk_extent(b, at, &len, &what);
		if (r < 0) {
			fuse_reply_err(req, -r);
			return;
		}
		if ((what == BLK_EXT_DATA) == (whence == SEEK_DATA)) {
			fuse_reply_lseek(req, (off_t)at);
			return;
		}
	}
	if (whence == SEEK_HOLE)
		fuse_reply_lseek(req, (off_t)end);
	else
		fuse_reply_err(req, ENXIO);
}

static void on_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	blk_close((struct blk *)(uintptr_t)fi->fh);
	fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops operations = {
	.lookup = on_lookup,
	.getattr = on_getattr,
	.readlink = on_readlink,
	.opendir = on_opendir,
	.readdir = on_readdir,
	.releasedir = on_releasedir,
	.open = on_open,
	.read = on_read,
	.lseek = on_lseek,
	.release = on_release,
};

/* --- the mount ---------------------------------------------------------------------------------
 */

static int add_options(struct fuse_args *args, const char *name, bool allow_other)
{
	char text[600], safe[400];
	size_t n = 0;

	for (; *name && n + 1 < sizeof(safe); name++)
		safe[n++] = *name == ',' || *name == '\\' ? '_' : *name; /* options end at commas */
	safe[n] = 0;
	snprintf(text, sizeof(text), "-osubtype=hv-recover,fsname=%s,ro,default_permissions%s",
		 safe, allow_other ? ",allow_other" : "");
	return fuse_opt_add_arg(args, "hv") || fuse_opt_add_arg(args, text) ? -ENOMEM : 0;
}

int tree_mount(struct tree_mount **out, const char *dir, const char *name, bool allow_other,
	       struct error *err)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct tree_mount *m = calloc(1, sizeof(*m));
	int r = m ? mount_place_check(dir, NULL, err) : err_errno(err, ENOMEM, "mount");

	if (r == 0 && add_options(&args, name, allow_other) < 0)
		r = err_errno(err, ENOMEM, "mount");
	if (r == 0) {
		m->session = fuse_session_new(&args, &operations, sizeof(operations), m);
		if (!m->session || fuse_session_mount(m->session, dir) != 0)
			r = err_set(err, EIO, "cannot mount on '%s'; libfuse has said why", dir);
	}
	fuse_opt_free_args(&args);
	if (r < 0 && m) {
		if (m->session)
			fuse_session_destroy(m->session);
		free(m);
		m = NULL;
	}
	*out = m;
	return r;
}

int tree_serve(struct tree_mount *m, const struct tree_ops *ops, void *opaque)
{
	int r;

	m->ops = ops;
	m->opaque = opaque;
	if (fuse_set_signal_handlers(m->session) < 0)
		return -EINVAL;
	r = fuse_session_loop(m->session);
	fuse_remove_signal_handlers(m->session);
	return r < 0 ? r : 0; /* positive: the signal that ended it */
}

void tree_unmount(struct tree_mount *m)
{
	if (!m)
		return;
	fuse_session_unmount(m->session);
	fuse_session_destroy(m->session);
	free(m);
}
