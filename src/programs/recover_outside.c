/* recover_outside.c - the files `hv recover` makes: the worker asks, the process outside makes
 * them.
 *
 * The worker reads hostile bytes and may be fooled, so what it asks for is checked like a
 * stranger's word: names go below what the user named, through no link, over nothing that is there
 * unless the user said so. */
#include "programs/recover_cli.h"

#include "block/image.h"
#include "disk/convert.h"
#include "disk/manifest.h"
#include "jail/proxy.h"
#include "programs/hv.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum ask_op { ASK_DIR = 1, ASK_LINK, ASK_FILE, ASK_DONE, ASK_DISK, ASK_READY };

struct ask {
	uint32_t op, mtime;
	uint64_t size;
	char path[RECOVER_PATH_MAX];
	char text[RECOVER_PATH_MAX]; /* LINK: target; DISK: one line that names the work; READY */
};

struct answer {
	int32_t result;
	char words[512];
};

#define PARTIAL ".partial"

/* --- the worker's end --------------------------------------------------------------------------
 */

static int receive(struct recover *rc, struct answer *a, int *fd)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {a, sizeof(*a)};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	ssize_t n;

	do
		n = recvmsg(rc->ctl, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof(*a))
		return -EIO;
	*fd = -1;
	if (CMSG_FIRSTHDR(&m) && CMSG_FIRSTHDR(&m)->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(*fd));
	return 0;
}

static int ask(struct recover *rc, enum ask_op op, const char *path, const char *text,
	       uint64_t size, uint32_t mtime, int *fd, struct error *err)
{
	struct ask *q = calloc(1, sizeof(*q));
	struct answer a = {0};
	int unused, r = q ? 0 : -ENOMEM;

	if (r == 0 && (strlen(path) >= sizeof(q->path) || strlen(text) >= sizeof(q->text)))
		r = -ENAMETOOLONG;
	if (r == 0) {
		q->op = op;
		q->size = size;
		q->mtime = mtime;
		strcpy(q->path, path);
		strcpy(q->text, text);
		if (send(rc->ctl, q, sizeof(*q), MSG_NOSIGNAL) != (ssize_t)sizeof(*q))
			r = -EIO;
	}
	free(q);
	if (r == 0)
		r = receive(rc, &a, fd ? fd : &unused);
	if (r < 0)
		return err_errno(err, -r, "cannot write '%s'", path);
	a.words[sizeof(a.words) - 1] = 0;
	return a.result < 0 ? err_set(err, -a.result, "%s", a.words) : a.result;
}

int recover_make_dir(struct recover *rc, const char *path, struct error *err)
{
	return ask(rc, ASK_DIR, path, "", 0, 0, NULL, err);
}

int recover_make_link(struct recover *rc, const char *path, const char *target, struct error *err)
{
	return ask(rc, ASK_LINK, path, target, 0, 0, NULL, err);
}

int recover_make_file(struct recover *rc, const char *path, uint64_t size, uint32_t mtime, int *fd,
		      struct error *err)
{
	int r = ask(rc, ASK_FILE, path, "", size, mtime, fd, err);

	return r < 0 ? r : 0;
}

int recover_file_done(struct recover *rc, const char *path, uint32_t mtime, struct error *err)
{
	return ask(rc, ASK_DONE, path, "", 0, mtime, NULL, err);
}

int recover_tell_ready(struct recover *rc, const char *text, struct error *err)
{
	return ask(rc, ASK_READY, "", text, 0, 0, NULL, err);
}

struct server {
	int fd;
	struct blk *b;
};

static void *serve_disk(void *opaque)
{
	struct server *s = opaque;

	(void)proxy_serve(s->fd, s->b, NULL, NULL);
	return NULL;
}

int recover_copy_disk(struct recover *rc, const char *path, struct blk *b, const char *key,
		      struct error *err)
{
	struct server s = {rc->disk, b};
	pthread_t thread;
	int r = pthread_create(&thread, NULL, serve_disk, &s);

	if (r)
		return err_errno(err, r, "cannot copy the disk");
	r = ask(rc, ASK_DISK, path, key, blk_size(b), 0, NULL, err);
	shutdown(rc->disk, SHUT_RDWR);
	pthread_join(thread, NULL);
	return r;
}

/* --- the end outside: names --------------------------------------------------------------------
 */

/* The directory a name lies in, opened without following links; *last is the name in it.  An empty
 * path is the target itself. */
static int open_parent(const struct recover *rc, char *path, const char **last)
{
	int dir, next;
	char *slash;

	if (!*path) {
		const char *end = strrchr(rc->target.path, '/');
		char *parent = end ? strndup(rc->target.path, (size_t)(end - rc->target.path) + 1)
				   : strdup(".");

		dir = parent ? open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
		free(parent);
		*last = end ? end + 1 : rc->target.path;
		return dir < 0 ? -errno : dir;
	}
	dir = open(rc->target.path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	for (; (slash = strchr(path, '/')); path = slash + 1) {
		*slash = 0;
		if (!*path || !strcmp(path, ".") || !strcmp(path, "..")) {
			close(dir);
			return -EINVAL;
		}
		next = openat(dir, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		close(dir);
		if (next < 0)
			return -errno;
		dir = next;
	}
	*last = path;
	if (!*path || !strcmp(path, ".") || !strcmp(path, "..")) {
		close(dir);
		return -EINVAL;
	}
	return dir;
}

static int do_dir(int dir, const char *name)
{
	struct stat st;

	if (mkdirat(dir, name, 0777) == 0)
		return 0;
	if (errno == EEXIST && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    S_ISDIR(st.st_mode))
		return 0;
	return -errno;
}

static int do_link(const struct recover *rc, int dir, const char *name, const char *target)
{
	if (rc->target.overwrite || rc->target.resume)
		(void)unlinkat(dir, name, 0);
	return symlinkat(target, dir, name) < 0 ? -errno : 0;
}

/* 1: it is there already, whole. */
static int do_file(const struct recover *rc, int dir, const char *name, uint64_t size, int *fd)
{
	char partial[NAME_MAX + 1];
	struct stat st;
	bool there = fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0;

	if (snprintf(partial, sizeof(partial), "%s" PARTIAL, name) >= (int)sizeof(partial))
		return -ENAMETOOLONG;
	if (there && rc->target.resume && S_ISREG(st.st_mode) && (uint64_t)st.st_size == size)
		return 1;
	if (there && !rc->target.overwrite)
		return -EEXIST;
	if (!rc->target.resume)
		(void)unlinkat(dir, partial, 0);
	*fd = openat(dir, partial, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
	return *fd < 0 ? -errno : 0;
}

static int do_done(const struct recover *rc, int dir, const char *name, uint32_t mtime)
{
	const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = mtime}};
	char partial[NAME_MAX + 1];

	if (snprintf(partial, sizeof(partial), "%s" PARTIAL, name) >= (int)sizeof(partial))
		return -ENAMETOOLONG;
	if (mtime)
		(void)utimensat(dir, partial, times, AT_SYMLINK_NOFOLLOW);
	/* Nothing has come between: names are made by one worker. */
	return renameat(dir, partial, dir, name) < 0 ? -errno : 0;
}

/* --- the end outside: disks --------------------------------------------------------------------
 */

static _Atomic bool cancelled;

static void on_cancel(int sig)
{
	cancelled = true;
}

static void draw_copy(void *opaque, uint64_t done, uint64_t total)
{
	const struct recover *rc = opaque;

	if (rc->opt.progress || (rc->on_terminal && !rc->opt.quiet && !rc->opt.no_progress))
		fprintf(stderr, "\rcopying: %5.1f %%\033[K",
			total ? 100.0 * (double)done / (double)total : 100.0);
}

/* "key=value,key=value" into kv; the format's table checks them. */
static unsigned split_options(char *text, struct blk_kv *kv, unsigned max)
{
	unsigned n = 0;

	for (char *p = text ? strtok(text, ",") : NULL; p && n < max; p = strtok(NULL, ",")) {
		char *eq = strchr(p, '=');

		if (eq)
			*eq = 0;
		kv[n++] = (struct blk_kv){p, eq ? eq + 1 : "on"};
	}
	return n;
}

static int make_image(const struct recover *rc, const char *path, uint64_t size,
		      struct blk_made **made, struct error *err)
{
	struct blk_kv kv[32];
	struct blk_create c = {
		.path = path,
		.size = ALIGN_UP(size, 512),
		.opt = kv,
		.nr_opts = split_options(rc->target.options, kv, ARRAY_SIZE(kv)),
		.overwrite = rc->target.overwrite,
	};

	if (!c.overwrite && access(path, F_OK) == 0)
		return err_set(err, EEXIST, "'%s' is there already (--overwrite replaces it)",
			       path);
	return blk_create_keep(rc->target.format, &c, made, err);
}

struct disk_copy {
	struct blk *src, *dst;
	struct blk_made *made;
	struct disk_manifest *hashes;
	char *journal;
};

static int open_copy(struct recover *rc, const struct ask *q, struct disk_copy *c,
		     struct disk_convert *o, struct error *err)
{
	const char *path = rc->target.path;
	int r = proxy_open(&c->src, rc->disk, rc->name[0], err);

	rc->disk = -1;
	if (r < 0)
		return r;
	if (rc->target.resume) {
		if (asprintf(&c->journal, "%s.journal", path) < 0)
			return err_errno(err, ENOMEM, "'%s'", path);
		o->journal = c->journal;
		o->key = q->text;
	}
	if (!c->journal || access(c->journal, F_OK) < 0 || access(path, F_OK) < 0)
		r = make_image(rc, path, q->size, &c->made, err);
	if (r == 0)
		r = blk_open(&c->dst, path, rc->target.format, BLK_NO_POOL, err);
	if (r == 0 && rc->target.manifest)
		r = disk_manifest_create(&c->hashes, blk_size(c->src), err);
	if (r < 0)
		return r;
	o->manifest = c->hashes;
	o->compress = blk_packs_in_order(c->dst);
	if (o->compress && c->journal)
		return err_set(err, EINVAL, "--resume: not for images that are written in order");
	return 0;
}

static int copy_disk(struct recover *rc, const struct ask *q, struct error *err)
{
	struct disk_convert o = {
		.job = {.cancel = &cancelled, .progress = draw_copy, .opaque = rc},
		.sparse = 4096,
	};
	struct disk_copy c = {0};
	int r = open_copy(rc, q, &c, &o, err);

	if (r == 0)
		r = disk_convert(c.src, c.dst, &o, err);
	if (r == 0 && blk_flush(c.dst) < 0)
		r = err_set(err, EIO, "cannot flush '%s'", rc->target.path);
	if (r == 0 && c.hashes)
		r = disk_manifest_save(c.hashes, rc->target.manifest, err);
	if (rc->on_terminal && !rc->opt.quiet)
		fputs("\r\033[K", stderr);
	blk_close(c.src);
	blk_close(c.dst);
	blk_made_end(c.made, r == 0 || rc->target.resume);
	disk_manifest_destroy(c.hashes);
	free(c.journal);
	return r;
}

/* --- the end outside: answering ----------------------------------------------------------------
 */

static int do_name(struct recover *rc, struct ask *q, int *fd, struct error *err)
{
	const char *name = NULL, *shown = *q->path ? q->path : rc->target.path;
	char whole[RECOVER_PATH_MAX];
	int dir, r;

	snprintf(whole, sizeof(whole), "%s", shown);
	dir = rc->target.path ? open_parent(rc, q->path, &name) : -EPERM;
	r = dir < 0 ? dir : 0;
	if (r == 0)
		switch (q->op) {
		case ASK_DIR:
			r = do_dir(dir, name);
			break;
		case ASK_LINK:
			r = do_link(rc, dir, name, q->text);
			break;
		case ASK_FILE:
			r = do_file(rc, dir, name, q->size, fd);
			break;
		case ASK_DONE:
			r = do_done(rc, dir, name, q->mtime);
			break;
		default:
			r = -EINVAL;
		}
	if (dir >= 0)
		close(dir);
	if (r == -EEXIST)
		return err_set(err, EEXIST,
			       "'%s' is there already (--overwrite replaces it, --resume goes on)",
			       whole);
	return r < 0 ? err_errno(err, -r, "cannot write '%s'", whole) : r;
}

static void answer(struct recover *rc, const struct answer *a, int fd)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)a, sizeof(*a)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		m.msg_control = &control;
		m.msg_controllen = sizeof(control.space);
		control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)),
						.cmsg_level = SOL_SOCKET,
						.cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	}
	(void)sendmsg(rc->ctl, &m, MSG_NOSIGNAL);
	if (fd >= 0)
		close(fd);
}

static void serve_one(struct recover *rc, struct ask *q)
{
	struct error err = {0};
	struct answer a = {0};
	int fd = -1;

	q->path[sizeof(q->path) - 1] = 0;
	q->text[sizeof(q->text) - 1] = 0;
	if (q->op == ASK_DISK && rc->target.path && rc->target.format && rc->disk >= 0)
		a.result = copy_disk(rc, q, &err);
	else if (q->op == ASK_READY && rc->cmd->on_ready)
		rc->cmd->on_ready(rc, q->text);
	else if (q->op == ASK_DISK)
		a.result = err_set(&err, EPERM, "no image was asked for");
	else
		a.result = do_name(rc, q, &fd, &err);
	snprintf(a.words, sizeof(a.words), "%s", err.msg);
	answer(rc, &a, fd);
}

void recover_outside_serve(struct recover *rc)
{
	const struct sigaction cancel = {.sa_handler = on_cancel};
	struct ask *q = malloc(sizeof(*q));
	ssize_t n;

	if (rc->target.format)
		sigaction(SIGINT, &cancel, NULL);
	while (q) {
		n = recv(rc->ctl, q, sizeof(*q), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n != (ssize_t)sizeof(*q))
			break;
		serve_one(rc, q);
		if (q->op == ASK_READY)
			break;
	}
	free(q);
}
