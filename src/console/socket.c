/* console/socket.c - a listening unix socket as a chardev, one client at a time.
 *
 * While nobody is connected the latest output is kept, so a client that comes sees the end of what
 * it missed.  A second client waits in the socket's queue until the first has gone. */
#include "base/error.h"
#include "console/impl.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static void client_comes(void *opaque, unsigned events)
{
	struct chardev *c = opaque;
	int fd, out;

	fd = accept4(c->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return; /* it changed its mind */
	/* The loop watches a descriptor for one purpose: another one for output. */
	out = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (out < 0) {
		close(fd);
		return;
	}
	if (chr_set_in(c, fd, true, NULL) < 0) {
		close(out);
		return;
	}
	if (chr_set_out(c, out, true, CHR_NONBLOCK, NULL) < 0) {
		chr_drop_in(c);
		return;
	}
	ev_fd_mod(&c->listen_watch, 0);
	chr_keep_latest(c, false);
	chr_accept_input(c);
}

static void client_gone(struct chardev *c)
{
	chr_drop_in(c);
	chr_drop_out(c);
	chr_keep_latest(c, true);
	ev_fd_mod(&c->listen_watch, EV_READ);
}

/* Left behind by a process that died: nobody answers there. */
static bool is_stale(const struct sockaddr_un *addr)
{
	struct stat st;
	bool refused;
	int fd;

	if (lstat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	refused = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
		  errno == ECONNREFUSED;
	close(fd);
	return refused;
}

static int bind_and_listen(int fd, const struct sockaddr_un *addr)
{
	const struct sockaddr *sa = (const struct sockaddr *)addr;
	int r;

	/* Before the bind, so that it never exists with wider permissions. */
	if (fchmod(fd, 0600) < 0)
		return -errno;
	r = bind(fd, sa, sizeof(*addr));
	if (r < 0 && errno == EADDRINUSE && is_stale(addr) && !unlink(addr->sun_path))
		r = bind(fd, sa, sizeof(*addr));
	if (r < 0)
		return -errno;
	return listen(fd, 4) < 0 ? -errno : 0;
}

static int unix_open(struct chardev *c, const char *path, struct error *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd, r;

	if (strlen(path) >= sizeof(addr.sun_path))
		return err_set(err, ENAMETOOLONG, "socket path '%s' is longer than %zu characters",
			       path, sizeof(addr.sun_path) - 1);
	strcpy(addr.sun_path, path);
	signal(SIGPIPE, SIG_IGN); /* a client that goes is not our end */
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_errno(err, errno, "cannot make a unix socket");
	r = bind_and_listen(fd, &addr);
	if (r < 0) {
		close(fd);
		return err_errno(err, -r, "cannot listen on '%s'", path);
	}
	c->listen_fd = fd;
	c->socket_path = strdup(path); /* without it, it is merely not removed */
	c->keep_latest = true;
	r = ev_fd_add(c->loop, &c->listen_watch, fd, EV_READ, client_comes, c);
	return r < 0 ? err_errno(err, -r, "cannot watch '%s'", path) : 0;
}

static void unix_close(struct chardev *c)
{
	if (c->listen_fd < 0)
		return;
	ev_fd_del(&c->listen_watch);
	close(c->listen_fd);
	if (c->socket_path)
		unlink(c->socket_path);
	free(c->socket_path);
}

const struct chr_kind chr_unix = {.name = "unix",
				  .has_arg = true,
				  .open = unix_open,
				  .input_ended = client_gone,
				  .close = unix_close};
