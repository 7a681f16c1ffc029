/* net/nat.c - user-mode NAT: the only file that knows libslirp.
 *
 * libslirp is not thread-safe, so one thread owns it and runs its poll loop:
 *
 *   NIC, any thread:  net_send --> tx buffer --eventfd--> NAT thread: slirp_input
 *   NAT thread:       slirp's send_packet --> NIC's receive, or the backlog when it has no room
 *
 * The tx buffer is two buffers: senders fill one while the thread works off the other, so a lock is
 * held for a memcpy only and one wake-up serves many frames.  A full buffer drops, like a wire; TCP
 * cannot get there, as its windows are smaller.  What the NIC refuses waits in the backlog, bounded
 * likewise, until rx_ready. */
#include "net/net.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { BUFFER_MAX = 4 << 20 };

static struct log_component log_nat = LOG_COMPONENT("nat");

#define NAT_NETWORK 0x0a000200u /* 10.0.2.0/24 */
#define NAT_MASK    0xffffff00u
#define NAT_HOST    0x0a000202u
#define NAT_DNS     0x0a000203u
#define NAT_GUEST   0x0a00020fu

/* Frames, one after the other, each behind its length. */
struct frames {
	uint8_t *bytes;
	size_t len, cap;
	size_t taken; /* the first so many are done with */
};

struct nat {
	struct net net;
	Slirp *slirp;
	int wake_fd;
	pthread_t thread;

	/* The NAT thread's alone. */
	struct frames work, backlog;
	struct pollfd *fds;
	unsigned nr_fds, cap_fds;
	bool started; /* the NIC has filled in net.receive */

	pthread_mutex_t lock; /* guards all below */
	struct frames tx;
	bool stop, nic_started, rx_ready, detach;
	pthread_cond_t detached;
};

/* ---- frames ---- */

static bool frames_empty(const struct frames *f)
{
	return f->taken == f->len;
}

static bool frames_reserve(struct frames *f, size_t more)
{
	size_t cap = MAX(f->cap, 65536u);
	uint8_t *p;

	if (f->len + more > BUFFER_MAX)
		return false;
	while (cap < f->len + more)
		cap *= 2;
	if (cap == f->cap)
		return true;
	p = realloc(f->bytes, cap);
	if (!p)
		return false;
	f->bytes = p;
	f->cap = cap;
	return true;
}

/* False: dropped. */
static bool frames_put(struct frames *f, const void *frame, size_t len)
{
	uint16_t head = (uint16_t)len;

	if (frames_empty(f))
		f->len = f->taken = 0;
	if (!frames_reserve(f, sizeof(head) + len))
		return false;
	memcpy(f->bytes + f->len, &head, sizeof(head));
	memcpy(f->bytes + f->len + sizeof(head), frame, len);
	f->len += sizeof(head) + len;
	return true;
}

static const uint8_t *frames_first(const struct frames *f, size_t *len)
{
	uint16_t head;

	memcpy(&head, f->bytes + f->taken, sizeof(head));
	*len = head;
	return f->bytes + f->taken + sizeof(head);
}

static void frames_drop_first(struct frames *f)
{
	size_t len;

	frames_first(f, &len);
	f->taken += sizeof(uint16_t) + len;
}

/* ---- the NIC's side ---- */

static void wake(struct nat *n)
{
	uint64_t one = 1;
	ssize_t r = write(n->wake_fd, &one, sizeof(one));

	assert(r == sizeof(one) || errno == EAGAIN); /* full means: awake already */
}

static void nat_send(struct net *net, const void *frame, size_t len)
{
	struct nat *n = container_of(net, struct nat, net);
	bool first;

	if (len < NET_MIN_FRAME || len > NET_MAX_FRAME)
		return;
	pthread_mutex_lock(&n->lock);
	first = frames_empty(&n->tx);
	n->nic_started = true;
	frames_put(&n->tx, frame, len);
	pthread_mutex_unlock(&n->lock);
	if (first)
		wake(n);
}

static void nat_rx_ready(struct net *net)
{
	struct nat *n = container_of(net, struct nat, net);
	bool first;

	pthread_mutex_lock(&n->lock);
	first = !n->rx_ready;
	n->nic_started = n->rx_ready = true;
	pthread_mutex_unlock(&n->lock);
	if (first)
		wake(n);
}

static void nat_detach(struct net *net)
{
	struct nat *n = container_of(net, struct nat, net);

	pthread_mutex_lock(&n->lock);
	n->detach = true;
	wake(n);
	while (n->detach)
		pthread_cond_wait(&n->detached, &n->lock);
	net->receive = NULL;
	pthread_mutex_unlock(&n->lock);
}

/* ---- libslirp's callbacks, on the NAT thread ---- */

static void deliver_backlog(struct nat *n)
{
	const uint8_t *frame;
	size_t len;

	while (n->started && !frames_empty(&n->backlog)) {
		frame = frames_first(&n->backlog, &len);
		if (!n->net.receive(n->net.opaque, frame, len))
			break;
		frames_drop_first(&n->backlog);
	}
}

static ssize_t slirp_send_packet(const void *frame, size_t len, void *opaque)
{
	struct nat *n = opaque;

	if (len > NET_MAX_FRAME)
		return -1;
	/* Before the NIC is there, a forwarded connection may try already: TCP will again. */
	if (!n->started)
		return (ssize_t)len;
	if (!frames_empty(&n->backlog) || !n->net.receive(n->net.opaque, frame, len))
		frames_put(&n->backlog, frame, len);
	return (ssize_t)len;
}

static void slirp_guest_error(const char *msg, void *opaque)
{
	log_guest(&log_nat, "%s", msg);
}

static int64_t slirp_clock(void *opaque)
{
	return (int64_t)clock_mono_ns();
}

/* Timers serve IPv6 router advertisements only, and IPv6 is off. */
static void *slirp_timer_new(SlirpTimerCb cb, void *cb_opaque, void *opaque)
{
	abort();
}

static void slirp_timer_free(void *timer, void *opaque)
{
	abort();
}

static void slirp_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
	abort();
}

/* All descriptors are collected anew before each poll. */
static void slirp_poll_fd(int fd, void *opaque)
{
}

/* It asks to be polled again; we are about to. */
static void slirp_notify(void *opaque)
{
}

static const SlirpCb slirp_callbacks = {
	.send_packet = slirp_send_packet,
	.guest_error = slirp_guest_error,
	.clock_get_ns = slirp_clock,
	.timer_new = slirp_timer_new,
	.timer_free = slirp_timer_free,
	.timer_mod = slirp_timer_mod,
	.register_poll_fd = slirp_poll_fd,
	.unregister_poll_fd = slirp_poll_fd,
	.notify = slirp_notify,
};

/* ---- the NAT thread ---- */

static const struct {
	int slirp;
	short poll;
} poll_bits[] = {
	{SLIRP_POLL_IN, POLLIN},   {SLIRP_POLL_OUT, POLLOUT}, {SLIRP_POLL_PRI, POLLPRI},
	{SLIRP_POLL_ERR, POLLERR}, {SLIRP_POLL_HUP, POLLHUP},
};

static int add_poll(int fd, int events, void *opaque)
{
	struct nat *n = opaque;
	short bits = 0;

	if (n->nr_fds == n->cap_fds) {
		unsigned cap = MAX(32u, 2 * n->cap_fds);
		struct pollfd *p = realloc(n->fds, cap * sizeof(*p));

		if (!p)
			return -1;
		n->fds = p;
		n->cap_fds = cap;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(poll_bits); i++)
		if (events & poll_bits[i].slirp)
			bits |= poll_bits[i].poll;
	n->fds[n->nr_fds] = (struct pollfd){.fd = fd, .events = bits};
	return (int)n->nr_fds++;
}

static int get_revents(int index, void *opaque)
{
	const struct nat *n = opaque;
	int events = 0;

	if (index < 0 || (unsigned)index >= n->nr_fds)
		return 0;
	for (unsigned i = 0; i < ARRAY_SIZE(poll_bits); i++)
		if (n->fds[index].revents & poll_bits[i].poll)
			events |= poll_bits[i].slirp;
	return events;
}

/* Take over what senders left.  False: time to stop. */
static bool take_work(struct nat *n)
{
	struct frames empty = n->work;
	uint64_t count;
	bool stop;

	empty.len = empty.taken = 0;
	if (n->fds[0].revents && read(n->wake_fd, &count, sizeof(count)) < 0)
		assert(errno == EAGAIN || errno == EINTR);
	pthread_mutex_lock(&n->lock);
	n->work = n->tx;
	n->tx = empty;
	n->rx_ready = false;
	if (n->detach) {
		n->detach = n->nic_started = false;
		n->backlog.len = n->backlog.taken = 0;
		pthread_cond_broadcast(&n->detached);
	}
	n->started = n->nic_started && n->net.receive;
	stop = n->stop;
	pthread_mutex_unlock(&n->lock);
	return !stop;
}

static void *nat_thread(void *arg)
{
	struct nat *n = arg;
	const uint8_t *frame;
	size_t len;
	int r;

	do {
		uint32_t timeout_ms = UINT32_MAX;

		n->nr_fds = 0;
		add_poll(n->wake_fd, SLIRP_POLL_IN, n);
		slirp_pollfds_fill(n->slirp, &timeout_ms, add_poll, n);
		r = poll(n->fds, n->nr_fds, timeout_ms > INT32_MAX ? -1 : (int)timeout_ms);
		slirp_pollfds_poll(n->slirp, r < 0, get_revents, n);
		if (!take_work(n))
			break;
		deliver_backlog(n);
		for (; !frames_empty(&n->work); frames_drop_first(&n->work)) {
			frame = frames_first(&n->work, &len);
			slirp_input(n->slirp, frame, (int)len);
		}
	} while (true);
	return NULL;
}

/* ---- options ---- */

/* Decimal digits up to `end` that make a port. */
static int parse_port(const char *s, const char *end, uint16_t *port)
{
	unsigned v = 0;

	if (s == end)
		return -EINVAL;
	for (; s < end; s++) {
		if (*s < '0' || *s > '9')
			return -EINVAL;
		v = v * 10 + (unsigned)(*s - '0');
		if (v > 65535)
			return -EINVAL;
	}
	*port = (uint16_t)v;
	return v ? 0 : -EINVAL;
}

struct forward {
	bool udp;
	struct in_addr host;
	uint16_t host_port, guest_port;
};

/* "tcp:[ADDR:]HOSTPORT:GUESTPORT", from the back: the address is whatever stands before. */
static int parse_forward(char *s, struct forward *f)
{
	char *addr = s + 4, *host = addr, *guest = strrchr(addr, ':');

	if ((strncmp(s, "tcp:", 4) && strncmp(s, "udp:", 4)) || !guest)
		return -EINVAL;
	f->udp = s[0] == 'u';
	*guest++ = '\0';
	f->host.s_addr = htonl(INADDR_LOOPBACK);
	host = strrchr(addr, ':');
	if (host) {
		*host++ = '\0';
		if (inet_pton(AF_INET, addr, &f->host) != 1)
			return -EINVAL;
	} else {
		host = addr;
	}
	if (parse_port(host, host + strlen(host), &f->host_port) < 0)
		return -EINVAL;
	return parse_port(guest, guest + strlen(guest), &f->guest_port);
}

static int add_forward(struct nat *n, const char *text, struct error *err)
{
	struct in_addr guest = {htonl(NAT_GUEST)};
	struct forward f;
	char copy[64];

	if (strlen(text) < 5 || strlen(text) >= sizeof(copy) ||
	    parse_forward(strcpy(copy, text), &f) < 0)
		return err_set(err, EINVAL,
			       "forward '%s' is not tcp:HOSTPORT:GUESTPORT (or udp:..., or "
			       "tcp:ADDRESS:HOSTPORT:GUESTPORT), ports 1 to 65535",
			       text);
	if (slirp_add_hostfwd(n->slirp, f.udp, f.host, f.host_port, guest, f.guest_port) < 0)
		return err_errno(err, errno ? errno : EADDRINUSE,
				 "forward '%s': cannot listen on the host", text);
	return 0;
}

static int apply_options(struct nat *n, const char *options, struct error *err)
{
	char *copy = strdup(options), *rest = copy, *word;
	int r = 0;

	if (!copy)
		return err_errno(err, ENOMEM, "network options");
	while (!r && *options && (word = strsep(&rest, ","))) {
		if (!strncmp(word, "forward=", 8))
			r = add_forward(n, word + 8, err);
		else
			r = err_set(err, EINVAL,
				    "network option '%s' is not known; there is forward=...", word);
	}
	free(copy);
	return r;
}

/* ---- create and destroy ---- */

static void nat_free(struct nat *n)
{
	if (n->slirp)
		slirp_cleanup(n->slirp);
	if (n->wake_fd >= 0)
		close(n->wake_fd);
	pthread_cond_destroy(&n->detached);
	pthread_mutex_destroy(&n->lock);
	free(n->work.bytes);
	free(n->backlog.bytes);
	free(n->tx.bytes);
	free(n->fds);
	free(n);
}

static void nat_destroy(struct net *net)
{
	struct nat *n = container_of(net, struct nat, net);

	pthread_mutex_lock(&n->lock);
	n->stop = true;
	pthread_mutex_unlock(&n->lock);
	wake(n);
	pthread_join(n->thread, NULL);
	nat_free(n);
}

static const struct net_ops nat_ops = {.name = "user",
				       .send = nat_send,
				       .rx_ready = nat_rx_ready,
				       .detach = nat_detach,
				       .destroy = nat_destroy};

/* All signals are blocked: libslirp may write to a socket whose peer has gone, and SIGPIPE goes to
 * the thread that wrote. */
static int start_thread(struct nat *n)
{
	sigset_t all, old;
	int e;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	e = pthread_create(&n->thread, NULL, nat_thread, n);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -e;
}

static Slirp *new_slirp(struct nat *n)
{
	SlirpConfig cfg = {
		.version = 1,
		.in_enabled = true,
		.vnetwork.s_addr = htonl(NAT_NETWORK),
		.vnetmask.s_addr = htonl(NAT_MASK),
		.vhost.s_addr = htonl(NAT_HOST),
		.vdhcp_start.s_addr = htonl(NAT_GUEST),
		.vnameserver.s_addr = htonl(NAT_DNS),
	};

	return slirp_new(&cfg, &slirp_callbacks, n);
}

int net_user_create(struct net **out, const char *options, struct evloop *loop, struct error *err)
{
	struct nat *n = calloc(1, sizeof(*n));
	int r;

	if (!n)
		return err_errno(err, ENOMEM, "network");
	n->net.ops = &nat_ops;
	pthread_mutex_init(&n->lock, NULL);
	pthread_cond_init(&n->detached, NULL);
	n->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (n->wake_fd < 0) {
		r = err_errno(err, errno, "network");
		goto fail;
	}
	/* The first entry of the poll set, which take_work reads, is always there. */
	r = add_poll(n->wake_fd, SLIRP_POLL_IN, n) < 0 ? err_errno(err, ENOMEM, "network") : 0;
	if (r < 0)
		goto fail;
	n->slirp = new_slirp(n);
	if (!n->slirp) {
		r = err_set(err, ENOMEM, "network: libslirp does not start");
		goto fail;
	}
	r = apply_options(n, options ? options : "", err);
	if (r < 0)
		goto fail;
	r = start_thread(n);
	if (r < 0) {
		err_errno(err, -r, "network: cannot start its thread");
		goto fail;
	}
	*out = &n->net;
	return 0;

fail:
	nat_free(n);
	return r;
}
