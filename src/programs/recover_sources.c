/* recover_sources.c - the disks `hv recover` reads: see recover_cli.h.
 *
 * A file or device whose bytes are the disk is opened by the worker itself.  Whatever takes more is
 * held by a process of its own and read over a socket pair (jail/proxy.h): remote disks, because
 * the worker reaches no network; disks with a map, because the worker writes no file; images of a
 * format, because their bytes are as hostile as a datastore's, and that process is locked in
 * before it looks at them. */
#include "programs/recover_cli.h"

#include "block/filter_rescue.h"
#include "block/source.h"
#include "jail/jail.h"
#include "jail/proxy.h"
#include "programs/hv.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct held {
	pid_t pid; /* of the process that holds it; 0: the worker does */
	int fd;    /* to it */
	const char *format;
	bool remote;
} held[VMFS_MAX_DEVICES];

enum { OPEN_FLAGS = BLK_READONLY | BLK_NO_LOCK | BLK_NO_POOL };

/* --- in the process that holds a disk ----------------------------------------------------------
 */

/* The directory of the file, and what --allow-ref allows. */
static int lock_in(const struct recover *rc, const char *name, struct error *err)
{
	const char *dirs[32];
	unsigned n = 0;
	char *real = realpath(name, NULL), *slash = real ? strrchr(real, '/') : NULL;
	int r;

	if (!real)
		return err_errno(err, errno, "cannot open '%s'", name);
	slash[slash == real] = 0;
	dirs[n++] = real;
	for (unsigned i = 0; i < rc->opt.open.nr_allow_ref && n < ARRAY_SIZE(dirs); i++)
		dirs[n++] = rc->opt.open.allow_ref[i];
	r = jail_enter(&(struct jail){.readable = dirs, .nr_readable = n}, err);
	free(real);
	return r;
}

static int add_rescue(const struct recover *rc, unsigned i, struct blk **b, struct error *err)
{
	struct blk_rescue_opts o = {.retries = rc->opt.retries};
	char map[PATH_MAX], data[PATH_MAX + 8];
	struct blk *below = *b;
	struct stat st;

	if (rc->opt.map) {
		if (i)
			snprintf(map, sizeof(map), "%s.%u", rc->opt.map, i + 1);
		else
			snprintf(map, sizeof(map), "%s", rc->opt.map);
		o.map_path = map;
		o.source = rc->name[i];
		/* A file with a map that is there already is what ddrescue made. */
		o.below_is_copy = !held[i].remote && stat(rc->name[i], &st) == 0 &&
				  S_ISREG(st.st_mode) && access(map, F_OK) == 0;
		if (o.below_is_copy)
			o.source = NULL;
		if (held[i].remote) {
			snprintf(data, sizeof(data), "%s.data", map);
			o.cache_path = data;
		}
	}
	*b = NULL;
	return blk_rescue(b, below, &o, BLK_READONLY | BLK_NO_POOL | BLK_FILE, err);
}

static bool rescue_is_bad(void *opaque, uint64_t off, uint64_t len)
{
	return blk_rescue_has_bad(opaque, off, len);
}

static void hold(const struct recover *rc, unsigned i, int fd)
{
	const char *name = rc->name[i];
	struct error err = {0};
	struct blk *b = NULL;
	bool image = strcmp(held[i].format, "raw") != 0;
	int r = 0;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	if (image && !held[i].remote)
		r = lock_in(rc, name, &err);
	if (r == 0)
		r = blk_open_with(&b, name, held[i].format,
				  OPEN_FLAGS | (image ? BLK_RECOVER : BLK_FILE), &rc->opt.open,
				  &err);
	if (r == 0 && !image)
		r = add_rescue(rc, i, &b, &err);
	if (r < 0) {
		proxy_refuse(fd, r, err.msg);
		_exit(1);
	}
	r = proxy_serve(fd, b, image ? NULL : rescue_is_bad, b);
	blk_close(b); /* saves the map */
	_exit(r < 0);
}

/* --- outside -----------------------------------------------------------------------------------
 */

/* What a source is: held[i].format and .remote. */
static int look(struct recover *rc, unsigned i, struct error *err)
{
	const struct blk_source *source;
	const char *path, *format = rc->opt.format;
	struct stat st;
	int r = blk_source_find(rc->name[i], &source, &path, err);

	if (r < 0)
		return r;
	held[i].remote = source != NULL;
	if (!source && stat(path, &st) < 0)
		return err_errno(err, errno, "cannot open '%s'", path);
	if (!source && S_ISDIR(st.st_mode))
		return err_set(err, EISDIR,
			       "'%s' is a directory: a source is a disk or an image of one", path);
	if (!source && !format && S_ISREG(st.st_mode)) {
		r = blk_probe(path, &format, err);
		if (r < 0)
			return r;
		if (strcmp(format, "raw"))
			recover_say(rc, "reading '%s' as %s (-f raw: as it is)", path, format);
	}
	held[i].format = format ? format : "raw";
	if (rc->opt.map && strcmp(held[i].format, "raw"))
		return err_set(
			err, EINVAL,
			"'%s' is a %s image: --map is for devices, raw files and remote disks",
			rc->name[i], held[i].format);
	return 0;
}

static int start(struct recover *rc, unsigned i, struct error *err)
{
	int fd[2], r = proxy_pair(fd);

	if (r < 0)
		return err_errno(err, -r, "cannot start a process for '%s'", rc->name[i]);
	held[i].pid = fork();
	if (held[i].pid < 0) {
		close(fd[0]);
		close(fd[1]);
		held[i].pid = 0;
		return err_errno(err, errno, "cannot start a process for '%s'", rc->name[i]);
	}
	if (held[i].pid == 0) {
		for (unsigned k = 0; k < i; k++)
			if (held[k].pid)
				close(held[k].fd);
		close(fd[1]);
		hold(rc, i, fd[0]);
	}
	close(fd[0]);
	held[i].fd = fd[1];
	return 0;
}

int recover_sources_start(struct recover *rc, struct error *err)
{
	for (unsigned i = 0; i < rc->nr_sources; i++) {
		int r = look(rc, i, err);

		if (r == 0 && (held[i].remote || rc->opt.map || strcmp(held[i].format, "raw")))
			r = start(rc, i, err);
		if (r < 0)
			return r;
	}
	return 0;
}

void recover_sources_leave(struct recover *rc)
{
	for (unsigned i = 0; i < rc->nr_sources; i++)
		if (held[i].pid)
			close(held[i].fd);
}

void recover_sources_wait(struct recover *rc)
{
	for (unsigned i = 0; i < rc->nr_sources; i++)
		while (held[i].pid && waitpid(held[i].pid, NULL, 0) < 0 && errno == EINTR)
			;
}

/* --- in the worker -----------------------------------------------------------------------------
 */

static int open_here(struct recover *rc, unsigned i, struct error *err)
{
	struct blk *b = NULL;
	int r = blk_open_with(&b, rc->name[i], "raw", OPEN_FLAGS | BLK_FILE, &rc->opt.open, err);

	if (r == 0)
		r = add_rescue(rc, i, &b, err);
	rc->source[i].blk = b;
	return r;
}

/* One line that tells this disk from another, and this content from an older one. */
static char *identify(const char *name, struct blk *b)
{
	char *real = realpath(name, NULL), *text = NULL;
	struct stat st;
	int n;

	if (!real || stat(real, &st) < 0)
		n = asprintf(&text, "remote:%s:%" PRIu64, name, blk_size(b));
	else if (S_ISBLK(st.st_mode))
		n = asprintf(&text, "device:%s:%" PRIu64, real, blk_size(b));
	else
		n = asprintf(&text, "file:%s:%" PRIu64 ":%lld.%09ld", real, blk_size(b),
			     (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	free(real);
	return n < 0 ? NULL : text;
}

int recover_sources_open(struct recover *rc, struct error *err)
{
	for (unsigned i = 0; i < rc->nr_sources; i++) {
		struct rec_source *s = &rc->source[i];
		int r = held[i].pid ? proxy_open(&s->blk, held[i].fd, rc->name[i], err)
				    : open_here(rc, i, err);

		if (r < 0)
			return r;
		s->name = rc->name[i];
		s->identity = identify(rc->name[i], s->blk);
		if (!s->identity)
			return err_errno(err, ENOMEM, "'%s'", rc->name[i]);
	}
	return 0;
}

void recover_sources_close(struct recover *rc)
{
	for (unsigned i = 0; i < rc->nr_sources; i++) {
		blk_close(rc->source[i].blk);
		free((char *)(uintptr_t)rc->source[i].identity);
	}
}

bool recover_unreadable(void *opaque, unsigned source, uint64_t off, uint64_t len)
{
	struct recover *rc = opaque;
	struct blk *b = rc->source[source].blk;

	return held[source].pid ? proxy_is_bad(b, off, len) : blk_rescue_has_bad(b, off, len);
}

/* --- where findings are kept -------------------------------------------------------------------
 */

/* FNV-1a: names a file, decides nothing; the findings hold the identities themselves. */
static uint64_t hash_sources(const struct recover *rc)
{
	uint64_t h = 0xcbf29ce484222325;

	for (unsigned i = 0; i < rc->nr_sources; i++)
		for (const char *p = rc->source[i].identity;; p++) {
			h = (h ^ (uint8_t)*p) * 0x100000001b3;
			if (!*p)
				break;
		}
	return h;
}

static int make_dirs(char *path)
{
	for (char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
		int r;

		*p = 0;
		r = mkdir(path, 0700);
		*p = '/';
		if (r < 0 && errno != EEXIST)
			return -errno;
	}
	return 0;
}

int recover_findings_path(struct recover *rc, char **path, struct error *err)
{
	const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
	int r;

	*path = NULL;
	if (rc->opt.no_findings)
		return 0;
	if (rc->opt.findings) {
		*path = strdup(rc->opt.findings);
		return *path ? 0 : err_errno(err, ENOMEM, "findings");
	}
	if (state && *state == '/')
		r = asprintf(path, "%s/trivisor/recover/%016" PRIx64 ".db", state,
			     hash_sources(rc));
	else if (home && *home == '/')
		r = asprintf(path, "%s/.local/state/trivisor/recover/%016" PRIx64 ".db", home,
			     hash_sources(rc));
	else
		return 0;
	if (r < 0) {
		*path = NULL;
		return err_errno(err, ENOMEM, "findings");
	}
	r = make_dirs(*path);
	if (r < 0)
		return err_errno(err, -r,
				 "cannot make the directory of '%s' (--findings names another)",
				 *path);
	return 0;
}
