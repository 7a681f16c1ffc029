/* block/refs.c - the files that images name.
 *
 * An image is not to be trusted: a guest or a stranger wrote it, and a name in it would be opened
 * with our rights.  So a name is followed only when the file lies beside the image (in its
 * directory or below) or under a directory the user allowed; symbolic links are not followed on the
 * way, and only regular files are opened.  docs/formats/references.md tells it to users. */
#include "block/internal.h"

#include "base/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_DEPTH = 256, MAX_SEARCHED = 65536 };

struct blk_refs {
	_Atomic unsigned users;
	unsigned nr;
	char *dir[]; /* allowed, real paths; "/" first and alone when all is */
};

/* ---- the rules ---- */

struct blk_refs *blk_refs_new(const struct blk_open_opts *opts)
{
	struct blk_refs *refs;

	refs = calloc(1, sizeof(*refs) + opts->nr_allow_ref * sizeof(refs->dir[0]));
	if (!refs)
		return NULL;
	refs->users = 1;
	for (unsigned i = 0; i < opts->nr_allow_ref; i++) {
		refs->dir[refs->nr] = realpath(opts->allow_ref[i], NULL);
		if (refs->dir[refs->nr]) /* one that is not there allows nothing */
			refs->nr++;
	}
	return refs;
}

struct blk_refs *blk_refs_get(struct blk_refs *refs)
{
	refs->users++;
	return refs;
}

void blk_refs_put(struct blk_refs *refs)
{
	if (!refs || --refs->users)
		return;
	for (unsigned i = 0; i < refs->nr; i++)
		free(refs->dir[i]);
	free(refs);
}

/* ---- paths ---- */

/* The real path of the directory a file is in; malloc'd. */
static char *dir_of(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *dir, *real;

	if (!slash)
		return realpath(".", NULL);
	dir = strndup(path, slash == path ? 1 : (size_t)(slash - path));
	real = dir ? realpath(dir, NULL) : NULL;
	free(dir);
	return real;
}

/* Take out "//", "." and ".." of an absolute path, in place. */
static void squeeze(char *path)
{
	char *out = path, *in = path;

	while (*in) {
		size_t n;

		in += strspn(in, "/");
		n = strcspn(in, "/");
		if (n == 2 && !memcmp(in, "..", 2)) {
			while (out > path && *--out != '/')
				;
		} else if (n && !(n == 1 && *in == '.')) {
			*out++ = '/';
			memmove(out, in, n);
			out += n;
		}
		in += n;
	}
	if (out == path)
		*out++ = '/';
	*out = 0;
}

static char *absolute(const char *dir, const char *name)
{
	char *path = NULL;

	if (asprintf(&path, "%s/%s", name[0] == '/' ? "" : dir, name) < 0)
		return NULL;
	squeeze(path);
	return path;
}

/* The rest of path behind dir, or NULL when it is not below it. */
static const char *below(const char *dir, const char *path)
{
	size_t n = strlen(dir);

	if (n == 1) /* "/" */
		return path[1] ? path + 1 : NULL;
	return !strncmp(path, dir, n) && path[n] == '/' && path[n + 1] ? path + n + 1 : NULL;
}

/* ---- opening ---- */

/* For kernels before 5.6: component by component, no link on the way. */
static int walk_beneath(int dirfd, const char *rest, int mode)
{
	int fd = dup(dirfd), next;
	char name[256];

	while (fd >= 0) {
		size_t n = strcspn(rest, "/");

		if (n >= sizeof(name)) {
			close(fd);
			errno = ENAMETOOLONG;
			return -1;
		}
		memcpy(name, rest, n);
		name[n] = 0;
		rest += n + strspn(rest + n, "/");
		next = openat(fd, name,
			      O_NOFOLLOW | O_CLOEXEC | (*rest ? O_PATH | O_DIRECTORY : mode));
		close(fd);
		if (!*rest)
			return next;
		fd = next;
	}
	return -1;
}

static int open_beneath(const char *dir, const char *rest, int mode)
{
	struct open_how how = {
		.flags = (uint64_t)mode,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	int dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC), fd, e;

	if (dirfd < 0)
		return -1;
	fd = (int)syscall(SYS_openat2, dirfd, rest, &how, sizeof(how));
	if (fd < 0 && errno == ENOSYS)
		fd = walk_beneath(dirfd, rest, mode);
	e = errno;
	close(dirfd);
	errno = e;
	return fd;
}

static int open_allowed(struct blk *b, const char *dir, const char *path, int mode, bool *allowed)
{
	const char *rest = below(dir, path);

	*allowed = rest;
	if (rest)
		return open_beneath(dir, rest, mode);
	for (unsigned i = 0; b->refs && i < b->refs->nr; i++) {
		rest = below(b->refs->dir[i], path);
		*allowed = rest;
		if (rest && !strcmp(b->refs->dir[i], "/")) /* everything: links too */
			return open(path, mode);
		if (rest)
			return open_beneath(b->refs->dir[i], rest, mode);
	}
	return -1;
}

static int refuse_name(const struct blk *b, const char *name, bool allowed, int e,
		       struct error *err)
{
	if (!allowed)
		return err_set(err, EACCES,
			       "'%s' names '%s', which is not beside it: allow that with "
			       "--allow-ref DIR",
			       b->path, name);
	if (e == ELOOP || e == EXDEV)
		return err_set(err, EACCES,
			       "'%s' names '%s', which is reached through a symbolic link: not "
			       "followed",
			       b->path, name);
	return err_errno(err, e, "'%s' names '%s', which cannot be opened", b->path, name);
}

/* Regular files only; a file that led here would be read for ever. */
static int check_file(const struct blk *b, const char *name, int fd, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return err_errno(err, errno, "'%s'", name);
	if (!S_ISREG(st.st_mode))
		return err_set(err, EACCES, "'%s' names '%s', which is not a regular file", b->path,
			       name);
	for (const struct blk *up = b; up; up = up->opener)
		if (up->ino == st.st_ino && up->dev == st.st_dev)
			return err_set(err, ELOOP,
				       "'%s' names '%s': the chain leads back to itself", b->path,
				       name);
	return 0;
}

static bool has_scheme(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789+.-");

	return n && name[n] == ':' && (name[n + 1] == '/' || name[n + 1] == '{');
}

static int ref_fd(struct blk *b, const char *name, bool ro, char **path, int *fd, struct error *err)
{
	int mode = O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (ro ? O_RDONLY : O_RDWR);
	/* What is not a file of this host lies beside nothing. */
	char *dir = b->ino ? dir_of(b->path) : strdup("/proc/self/none");
	bool allowed = false;
	int r = 0;

	*path = dir ? absolute(dir, name) : NULL;
	if (!*path)
		r = err_errno(err, errno, "the directory of '%s'", b->path);
	if (!r) {
		*fd = open_allowed(b, dir, *path, mode, &allowed);
		if (*fd < 0)
			r = refuse_name(b, name, allowed, errno, err);
	}
	if (!r) {
		r = check_file(b, name, *fd, err);
		if (r < 0)
			close(*fd);
	}
	free(dir);
	return r;
}

/* Files that somebody else knows: the same rules for depth and cycles, by path. */
static int open_given(struct blk *b, const char *name, const char *format, unsigned flags,
		      const struct blk_open_opts *opts, struct blk **out, struct error *err)
{
	struct blk_where where = {.fd = -1, .opener = b};
	struct blk *file = NULL;
	int r = opts->ref(opts->ref_opaque, b->path, name, &file, err);

	for (const struct blk *up = b; up && !r; up = up->opener)
		if (up->path && !strcmp(up->path, blk_path(file))) {
			blk_close(file);
			r = err_set(err, ELOOP, "'%s' names '%s': the chain leads back to itself",
				    b->path, name);
		}
	if (r < 0)
		return r;
	if (!format) {
		*out = file;
		return 0;
	}
	where.path = blk_path(file);
	return blk_open_on_at(out, file, &where, format, flags, opts, err);
}

int blk_ref_open(struct blk *b, const char *name, const char *format, unsigned flags,
		 struct blk **out, struct error *err)
{
	struct blk_open_opts opts = b->opts ? *b->opts : (struct blk_open_opts){0};
	struct blk_where where = {.fd = -1, .opener = b};
	char *path = NULL;
	int r;

	if (!name[0] || has_scheme(name))
		return err_set(err, EACCES, "'%s' names '%s', which is not a file", b->path, name);
	if (b->depth >= MAX_DEPTH)
		return err_set(err, ELOOP, "'%s': more than %d images in a chain", b->path,
			       MAX_DEPTH);
	flags |= BLK_NO_POOL | (b->flags & (BLK_NO_LOCK | BLK_NO_FLUSH | BLK_RECOVER));
	if (opts.ref) {
		opts.snapshot = NULL;
		return open_given(b, name, format, flags, &opts, out, err);
	}
	r = ref_fd(b, name, flags & BLK_READONLY, &path, &where.fd, err);
	if (!r) {
		opts.snapshot = NULL;
		where.path = path;
		r = blk_open_at(out, &where, format ? format : "raw",
				format ? flags : flags | BLK_FILE, &opts, err);
	}
	free(path);
	return r;
}

/* ---- searching ---- */

static bool search_dir(const char *dir, bool (*try)(void *opaque, const char *path), void *opaque)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	bool found = false;

	for (unsigned i = 0; d && !found && i < MAX_SEARCHED && (e = readdir(d)); i++) {
		struct stat st;
		char *path = NULL;

		if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
		    !S_ISREG(st.st_mode) || asprintf(&path, "%s/%s", dir, e->d_name) < 0)
			continue;
		found = try(opaque, path);
		free(path);
	}
	if (d)
		closedir(d);
	return found;
}

int blk_ref_search(struct blk *b, bool (*try)(void *opaque, const char *path), void *opaque,
		   struct error *err)
{
	char *dir = b->ino ? dir_of(b->path) : NULL;
	bool found;

	found = dir && search_dir(dir, try, opaque);
	free(dir);
	for (unsigned i = 0; !found && b->refs && i < b->refs->nr; i++)
		found = search_dir(b->refs->dir[i], try, opaque);
	return found ? 0
		     : err_set(err, ENOENT,
			       "'%s': what it stands on is not beside it, nor under --allow-ref "
			       "DIR",
			       b->path);
}
