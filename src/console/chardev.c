/* console/chardev.c - see chardev.h.
 *
 * Bytes out: chr_write, on any thread, appends to a ring and posts one drain to the loop; the drain
 * writes what is there in one go, so a guest that prints byte by byte costs a system call per
 * burst. When the host takes no more, the loop waits for the descriptor to become writable.
 *
 * Bytes in: the loop reads into a small ring and hands the device as much as it can take.  A
 * terminal is read even while the device takes nothing, because Ctrl-A x must work when the guest
 * hangs; other inputs are left unread until there is room.
 *
 * Regular files and /dev/null cannot be polled (epoll_ctl(2), EPERM): they never block, and are
 * read and written at once. */
#include "console/chardev.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "console/impl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OUT_SIZE = 65536, IN_SIZE = 4096, CLOSE_DRAIN_MS = 500, SHARED_CHUNK = 256 };

static struct log_component log_chr = LOG_COMPONENT("console");

static void (*quit_fn)(void *opaque);
static void *quit_opaque;

void chr_set_quit(void (*quit)(void *opaque), void *opaque)
{
	quit_opaque = opaque;
	quit_fn = quit;
}

/* ---- rings ---- */

static size_t ring_put(struct chr_ring *r, const uint8_t *p, size_t len)
{
	len = MIN(len, r->size - r->used);
	for (size_t i = 0; i < len; i++)
		r->bytes[(r->start + r->used + i) % r->size] = p[i];
	r->used += len;
	return len;
}

/* The bytes at the front that lie in one piece. */
static size_t ring_front(const struct chr_ring *r, const uint8_t **p)
{
	*p = r->bytes + r->start;
	return MIN(r->used, r->size - r->start);
}

static void ring_drop(struct chr_ring *r, size_t len)
{
	r->start = (r->start + len) % r->size;
	r->used -= len;
}

/* Put all of it, at the expense of the oldest. */
static void ring_put_latest(struct chr_ring *r, const uint8_t *p, size_t len)
{
	if (len > r->size) {
		p += len - r->size;
		len = r->size;
	}
	if (len > r->size - r->used)
		ring_drop(r, len - (r->size - r->used));
	ring_put(r, p, len);
}

/* ---- output ---- */

/* One write that does not block: how many, -EAGAIN, or an error for good. */
static ssize_t write_some(const struct chardev *c, const uint8_t *p, size_t len)
{
	ssize_t n;

	if (c->blocking == CHR_SHARED) {
		struct pollfd ready = {.fd = c->out_fd, .events = POLLOUT};

		if (poll(&ready, 1, 0) <= 0)
			return -EAGAIN;
		/* Ready means room for a little; how much, nobody says. */
		len = MIN(len, (size_t)SHARED_CHUNK);
	}
	do
		n = write(c->out_fd, p, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* Lock held.  False: the rest has to wait. */
static bool drain_locked(struct chardev *c)
{
	const uint8_t *p;
	size_t len;
	ssize_t n;

	while (c->out.used && c->out_fd >= 0) {
		len = ring_front(&c->out, &p);
		n = write_some(c, p, len);
		if (n == -EAGAIN)
			return false;
		if (n < 0) {
			/* The reader has gone or the disk is full.  The guest must not stop for
			 * that: what cannot be written is dropped. */
			if (n != -EPIPE)
				log_guest(&log_chr, "output lost: %s", strerror((int)-n));
			n = (ssize_t)len;
		}
		ring_drop(&c->out, (size_t)n);
	}
	return true;
}

static void tell_writable(struct chardev *c)
{
	struct chr_handlers h;
	bool tell;

	pthread_mutex_lock(&c->lock);
	h = c->handlers;
	tell = c->device_waits && (c->keep_latest || c->out.used < c->out.size);
	if (tell)
		c->device_waits = false;
	pthread_mutex_unlock(&c->lock);
	if (tell && h.writable)
		h.writable(h.opaque);
}

static void drain_out(void *opaque)
{
	struct chardev *c = opaque;
	bool all;

	pthread_mutex_lock(&c->lock);
	c->drain_posted = false;
	all = drain_locked(c);
	if (c->out_pollable)
		ev_fd_mod(&c->out_watch, all ? 0 : EV_WRITE);
	pthread_mutex_unlock(&c->lock);
	tell_writable(c);
}

static void out_ready(void *opaque, unsigned events)
{
	drain_out(opaque);
}

/* Lock held. */
static void post_drain(struct chardev *c)
{
	if (c->drain_posted || c->out_fd < 0)
		return;
	c->drain_posted = true;
	evloop_post(c->loop, drain_out, c);
}

size_t chr_write(struct chardev *c, const uint8_t *buf, size_t len)
{
	if (c->discard)
		return len;
	pthread_mutex_lock(&c->lock);
	if (c->keep_latest) {
		ring_put_latest(&c->out, buf, len);
	} else {
		size_t taken = ring_put(&c->out, buf, len);

		c->device_waits |= taken < len;
		len = taken;
	}
	post_drain(c);
	pthread_mutex_unlock(&c->lock);
	return len;
}

void chr_keep_latest(struct chardev *c, bool on)
{
	pthread_mutex_lock(&c->lock);
	c->keep_latest = on;
	post_drain(c);
	pthread_mutex_unlock(&c->lock);
	tell_writable(c);
}

/* ---- input ---- */

static void deliver(struct chardev *c)
{
	struct chr_handlers h;
	const uint8_t *p;
	size_t n;

	pthread_mutex_lock(&c->lock);
	h = c->handlers;
	pthread_mutex_unlock(&c->lock);
	while (h.receive && c->in.used) {
		n = ring_front(&c->in, &p);
		n = MIN(n, h.can_receive(h.opaque));
		if (!n)
			break;
		h.receive(h.opaque, p, n);
		ring_drop(&c->in, n);
	}
}

static void take_key(struct chardev *c, uint8_t key)
{
	switch (terminal_key(&c->keys, &key)) {
	case TERMINAL_PASS:
		ring_put(&c->in, &key, 1); /* full: the guest sleeps, keys are lost */
		break;
	case TERMINAL_QUIT:
		if (quit_fn)
			quit_fn(quit_opaque);
		break;
	case TERMINAL_HELP:
		chr_write(c, (const uint8_t *)terminal_help, strlen(terminal_help));
		break;
	case TERMINAL_NOTHING:
		break;
	}
}

static void input_ended(struct chardev *c)
{
	if (c->kind->input_ended)
		c->kind->input_ended(c);
	else
		chr_drop_in(c);
}

/* Read once, as far as there is room.  False: nothing more for now. */
static bool read_once(struct chardev *c)
{
	uint8_t buf[IN_SIZE];
	size_t room = c->is_tty ? sizeof(buf) : c->in.size - c->in.used;
	ssize_t n;

	if (c->in_fd < 0 || !room)
		return false;
	n = read(c->in_fd, buf, room);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) { /* the end; or an error, after which nothing comes either */
		input_ended(c);
		return false;
	}
	if (!c->is_tty)
		ring_put(&c->in, buf, (size_t)n);
	else
		for (ssize_t i = 0; i < n; i++)
			take_key(c, buf[i]);
	return true;
}

static void watch_input(struct chardev *c)
{
	if (c->in_pollable)
		ev_fd_mod(&c->in_watch, c->is_tty || c->in.used < c->in.size ? EV_READ : 0);
}

static void in_ready(void *opaque, unsigned events)
{
	struct chardev *c = opaque;

	deliver(c);
	read_once(c);
	deliver(c);
	watch_input(c);
}

/* The device has room again, or has just come. */
static void continue_input(void *opaque)
{
	struct chardev *c = opaque;

	pthread_mutex_lock(&c->lock);
	c->input_posted = false;
	pthread_mutex_unlock(&c->lock);
	deliver(c);
	/* A file never becomes "readable": go on while the device takes what comes. */
	if (c->in_fd >= 0 && !c->in_pollable && !c->in.used && read_once(c)) {
		deliver(c);
		if (!c->in.used)
			chr_accept_input(c);
	}
	watch_input(c);
}

void chr_accept_input(struct chardev *c)
{
	bool post;

	pthread_mutex_lock(&c->lock);
	post = !c->input_posted;
	c->input_posted = true;
	pthread_mutex_unlock(&c->lock);
	if (post)
		evloop_post(c->loop, continue_input, c);
}

void chr_set_handlers(struct chardev *c, const struct chr_handlers *h)
{
	pthread_mutex_lock(&c->lock);
	c->handlers = h ? *h : (struct chr_handlers){0};
	pthread_mutex_unlock(&c->lock);
	if (h)
		chr_accept_input(c);
	else
		evloop_sync(c->loop); /* the old ones are not running any more */
}

/* ---- descriptors ---- */

static int watch(struct chardev *c, struct ev_fd *e, int fd, unsigned events,
		 void (*ready)(void *, unsigned), bool *pollable, struct error *err)
{
	int r = ev_fd_add(c->loop, e, fd, events, ready, c);

	*pollable = r == 0;
	if (r < 0 && r != -EPERM)
		return err_errno(err, -r, "cannot watch the console");
	return 0;
}

int chr_set_in(struct chardev *c, int fd, bool own, struct error *err)
{
	c->in_fd = fd;
	c->own_in = own;
	if (watch(c, &c->in_watch, fd, EV_READ, in_ready, &c->in_pollable, err) == 0)
		return 0;
	chr_drop_in(c);
	return -EIO;
}

void chr_drop_in(struct chardev *c)
{
	if (c->in_pollable)
		ev_fd_del(&c->in_watch);
	c->in_pollable = false;
	if (c->own_in && c->in_fd >= 0)
		close(c->in_fd);
	c->in_fd = -1;
}

int chr_set_out(struct chardev *c, int fd, bool own, enum chr_blocking blocking, struct error *err)
{
	int r;

	pthread_mutex_lock(&c->lock);
	c->out_fd = fd;
	c->own_out = own;
	c->blocking = blocking;
	/* Asking for nothing would not tell whether epoll takes it; the first drain pauses it. */
	r = watch(c, &c->out_watch, fd, EV_WRITE, out_ready, &c->out_pollable, err);
	pthread_mutex_unlock(&c->lock);
	if (r < 0)
		chr_drop_out(c);
	return r;
}

void chr_drop_out(struct chardev *c)
{
	pthread_mutex_lock(&c->lock);
	if (c->out_pollable)
		ev_fd_del(&c->out_watch);
	c->out_pollable = false;
	if (c->own_out && c->out_fd >= 0)
		close(c->out_fd);
	c->out_fd = -1;
	pthread_mutex_unlock(&c->lock);
}

/* ---- the simple kinds ---- */

static int file_open(struct chardev *c, const char *path, struct error *err)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);

	if (fd < 0)
		return err_errno(err, errno, "cannot open '%s'", path);
	signal(SIGPIPE, SIG_IGN); /* it may be a FIFO, and its reader may go */
	return chr_set_out(c, fd, true, CHR_NONBLOCK, err);
}

static int null_open(struct chardev *c, const char *arg, struct error *err)
{
	c->discard = true;
	return 0;
}

static const struct chr_kind chr_file = {.name = "file", .has_arg = true, .open = file_open};
static const struct chr_kind chr_null = {.name = "null", .open = null_open};

static const struct chr_kind *const kinds[] = {&chr_stdio, &chr_stdout, &chr_file, &chr_unix,
					       &chr_null};

/* ---- open and close ---- */

static const struct chr_kind *find_kind(const char *spec, const char **arg)
{
	size_t len = strcspn(spec, "=");

	*arg = spec[len] ? spec + len + 1 : NULL;
	for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++)
		if (strlen(kinds[i]->name) == len && !memcmp(kinds[i]->name, spec, len) &&
		    kinds[i]->has_arg == (*arg && **arg))
			return kinds[i];
	return NULL;
}

static struct chardev *chr_alloc(struct evloop *loop)
{
	struct chardev *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	*c = (struct chardev){.loop = loop, .in_fd = -1, .out_fd = -1, .listen_fd = -1};
	c->out = (struct chr_ring){.bytes = malloc(OUT_SIZE), .size = OUT_SIZE};
	c->in = (struct chr_ring){.bytes = malloc(IN_SIZE), .size = IN_SIZE};
	pthread_mutex_init(&c->lock, NULL);
	if (c->out.bytes && c->in.bytes)
		return c;
	free(c->out.bytes);
	free(c->in.bytes);
	free(c);
	return NULL;
}

int chr_open(struct chardev **out, const char *spec, struct evloop *loop, struct error *err)
{
	const struct chr_kind *kind;
	struct chardev *c;
	const char *arg;
	int r;

	kind = find_kind(spec, &arg);
	if (!kind)
		return err_set(err, EINVAL,
			       "console '%s' is none of stdio, stdout, file=PATH, unix=PATH, null",
			       spec);
	c = chr_alloc(loop);
	if (!c)
		return err_errno(err, ENOMEM, "console");
	c->kind = kind;
	r = kind->open(c, arg, err);
	if (r < 0) {
		chr_close(c);
		return r;
	}
	*out = c;
	return 0;
}

/* Give a slow reader a moment for the last words, not for ever. */
static void drain_before_close(struct chardev *c)
{
	uint64_t end_ns = clock_mono_ns() + CLOSE_DRAIN_MS * 1000000ull, now;

	pthread_mutex_lock(&c->lock);
	while (!drain_locked(c) && (now = clock_mono_ns()) < end_ns) {
		struct pollfd p = {.fd = c->out_fd, .events = POLLOUT};

		poll(&p, 1, (int)((end_ns - now) / 1000000) + 1);
	}
	pthread_mutex_unlock(&c->lock);
}

void chr_close(struct chardev *c)
{
	if (!c)
		return;
	chr_drop_in(c);
	if (c->kind->close)
		c->kind->close(c);
	evloop_unpost(c->loop, drain_out, c);
	evloop_unpost(c->loop, continue_input, c);
	drain_before_close(c);
	chr_drop_out(c);
	pthread_mutex_destroy(&c->lock);
	free(c->out.bytes);
	free(c->in.bytes);
	free(c);
}
