/* control/server.c - the sockets: who listens, who is connected, what waits to be sent.
 *
 * A client that does not read is not read from either; events pile up for it to a limit, and then
 * it is cut off.  Nothing here waits but the last farewell, and that for a tenth of a second. */
#include "base/clock.h"
#include "base/error.h"
#include "base/evloop.h"
#include "base/log.h"
#include "control/core.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	CLIENTS_MAX = 16,
	QUEUE_MAX = 1 << 20,  /* unread output that costs a client its connection */
	QUEUE_FULL = 1 << 16, /* unread output at which we stop reading from it */
	FAREWELL_NS = 100 * 1000 * 1000,
};

static struct log_component log_control = LOG_COMPONENT("control");

struct control_client {
	struct control_server *server;
	struct control_client *next;
	struct ev_fd watch;
	int fd;
	bool dead; /* to be freed */
	bool busy; /* in its own callback, which will free it if need be */
	char *out;
	size_t out_len, out_cap;
	struct control_session session;
};

struct control_server {
	struct control_core core;
	struct evloop *loop;
	int fd;
	struct ev_fd watch;
	char *path;
	dev_t dev; /* of the socket we made, so that we remove no other */
	ino_t ino;
	struct control_client *clients;
	unsigned nr_clients;
};

/* ---- one client ---- */

static void client_free(struct control_client *c)
{
	struct control_client **p = &c->server->clients;

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	c->server->nr_clients--;
	control_session_fini(&c->session);
	ev_fd_del(&c->watch);
	close(c->fd);
	free(c->out);
	free(c);
}

static void client_flush(struct control_client *c)
{
	size_t sent = 0;

	while (sent < c->out_len && !c->dead) {
		ssize_t n =
			send(c->fd, c->out + sent, c->out_len - sent, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0)
			sent += (size_t)n;
		else if (n < 0 && errno == EAGAIN)
			break;
		else if (!(n < 0 && errno == EINTR))
			c->dead = true;
	}
	c->out_len -= sent;
	memmove(c->out, c->out + sent, c->out_len);
}

/* What the loop should watch for now. */
static void client_update(struct control_client *c)
{
	unsigned events = 0;

	if (c->out_len)
		events |= EV_WRITE;
	if (c->out_len < QUEUE_FULL && control_session_room(&c->session))
		events |= EV_READ;
	/* Silenced while it waits for an answer: a hang-up is seen when that is sent. */
	ev_fd_mod(&c->watch, events);
}

static void client_send(void *opaque, const char *text, size_t len)
{
	struct control_client *c = opaque;

	if (c->dead)
		return;
	if (c->out_len + len > QUEUE_MAX) {
		log_warn(&log_control, "a client of '%s' does not read: cut off", c->server->path);
		c->dead = true;
		return;
	}
	if (c->out_len + len > c->out_cap) {
		size_t cap = MAX(2 * c->out_cap, c->out_len + len);
		char *out = realloc(c->out, cap);

		if (!out) {
			c->dead = true;
			return;
		}
		c->out = out;
		c->out_cap = cap;
	}
	memcpy(c->out + c->out_len, text, len);
	c->out_len += len;
}

static void client_read(struct control_client *c)
{
	size_t room = control_session_room(&c->session);
	char buf[4096];
	ssize_t n;

	if (!room)
		return;
	n = recv(c->fd, buf, MIN(room, sizeof(buf)), MSG_DONTWAIT);
	if (n > 0)
		control_session_input(&c->session, buf, (size_t)n);
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		c->dead = true;
}

/* After anything that may have changed it: send, and bury it if it is dead. */
static void client_settle(struct control_client *c)
{
	client_flush(c);
	if (c->session.broken && !c->out_len)
		c->dead = true;
	if (c->busy)
		return;
	if (c->dead)
		client_free(c);
	else
		client_update(c);
}

static void client_ready(void *opaque, unsigned events)
{
	struct control_client *c = opaque;

	c->busy = true;
	if (events & EV_READ)
		client_read(c);
	else if (events & EV_HANGUP)
		c->dead = true;
	c->busy = false;
	client_settle(c);
}

static void settle_all(struct control_server *s)
{
	struct control_client *next;

	for (struct control_client *c = s->clients; c; c = next) {
		next = c->next;
		client_settle(c);
	}
}

/* ---- coming ---- */

static void refuse(int fd)
{
	static const char full[] = "{\"error\": {\"class\": \"GenericError\", \"desc\": "
				   "\"too many clients\"}}\n";

	if (send(fd, full, sizeof(full) - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		log_debug(&log_control, "a client too many has gone");
	close(fd);
}

static void client_comes(void *opaque, unsigned events)
{
	struct control_server *s = opaque;
	int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct control_client *c;

	if (fd < 0)
		return; /* it changed its mind */
	c = s->nr_clients < CLIENTS_MAX ? calloc(1, sizeof(*c)) : NULL;
	if (!c || ev_fd_add(s->loop, &c->watch, fd, EV_READ, client_ready, c) < 0) {
		free(c);
		refuse(fd);
		return;
	}
	c->server = s;
	c->fd = fd;
	c->next = s->clients;
	s->clients = c;
	s->nr_clients++;
	control_session_init(&c->session, &s->core, client_send, c);
	client_settle(c);
}

/* ---- the socket ---- */

/* Left behind by a process that died: nobody answers there. */
static bool is_stale(const struct sockaddr_un *addr)
{
	struct stat st;
	bool refused;
	int fd;

	if (lstat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return false;
	refused = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
		  errno == ECONNREFUSED;
	close(fd);
	return refused;
}

static int bind_at(int fd, const struct sockaddr_un *addr, struct error *err)
{
	const struct sockaddr *sa = (const struct sockaddr *)addr;
	int r;

	/* Before the bind, so that it never exists with wider permissions. */
	if (fchmod(fd, 0600) < 0)
		return err_errno(err, errno, "cannot make a control socket");
	r = bind(fd, sa, sizeof(*addr));
	if (r < 0 && errno == EADDRINUSE && is_stale(addr) && !unlink(addr->sun_path))
		r = bind(fd, sa, sizeof(*addr));
	if (r < 0 && errno == EADDRINUSE)
		return err_set(err, EADDRINUSE,
			       "control socket '%s' is in use, or another kind of file",
			       addr->sun_path);
	if (r < 0 || listen(fd, 8) < 0)
		return err_errno(err, errno, "cannot listen on '%s'", addr->sun_path);
	return 0;
}

static int open_socket(struct control_server *s, const char *path, struct error *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct stat st;
	int r;

	if (!*path || strlen(path) >= sizeof(addr.sun_path))
		return err_set(err, ENAMETOOLONG,
			       "control socket '%s': a path of 1 to %zu characters is possible",
			       path, sizeof(addr.sun_path) - 1);
	memcpy(addr.sun_path, path, strlen(path));
	s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		return err_errno(err, errno, "cannot make a control socket");
	r = bind_at(s->fd, &addr, err);
	if (r < 0)
		return r;
	s->path = strdup(path); /* without it, it is merely not removed */
	if (lstat(path, &st) == 0) {
		s->dev = st.st_dev;
		s->ino = st.st_ino;
	}
	r = ev_fd_add(s->loop, &s->watch, s->fd, EV_READ, client_comes, s);
	return r < 0 ? err_errno(err, -r, "cannot watch '%s'", path) : 0;
}

static void close_socket(struct control_server *s)
{
	struct stat st;

	if (s->watch.loop)
		ev_fd_del(&s->watch);
	if (s->fd >= 0)
		close(s->fd);
	if (s->path && lstat(s->path, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino)
		unlink(s->path);
	free(s->path);
}

int control_server_create(struct control_server **out, const char *path, struct evloop *loop,
			  const struct control_vm *vm, void *opaque, struct error *err)
{
	struct control_server *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return err_errno(err, ENOMEM, "control socket");
	s->core.vm = *vm;
	s->core.opaque = opaque;
	s->loop = loop;
	s->fd = -1;
	r = open_socket(s, path, err);
	if (r < 0) {
		close_socket(s);
		free(s);
		return r;
	}
	*out = s;
	return 0;
}

/* ---- events and the end ---- */

void control_server_tell(struct control_server *s, const struct control_event *ev)
{
	control_core_tell(&s->core, ev);
	settle_all(s);
}

static void say_farewell(struct control_client *c, uint64_t until)
{
	struct pollfd p = {.fd = c->fd, .events = POLLOUT};
	uint64_t now;

	client_flush(c);
	while (c->out_len && !c->dead && (now = clock_mono_ns()) < until &&
	       poll(&p, 1, (int)((until - now) / 1000000) + 1) > 0)
		client_flush(c);
}

void control_server_destroy(struct control_server *s)
{
	uint64_t until = clock_mono_ns() + FAREWELL_NS;

	if (!s)
		return;
	while (s->clients) {
		say_farewell(s->clients, until);
		client_free(s->clients);
	}
	if (s->core.saving)
		control_call_finish(s->core.saving, NULL, "the VM has ended");
	close_socket(s);
	free(s);
}
