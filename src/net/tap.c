/* net/tap.c - see tap.h.
 *
 *   NIC, any thread:  net_send --> write(tap), which never waits
 *   tap's thread:     read(tap) --> NIC's receive; a frame it has no room for is kept until
 * rx_ready and the rest waits in the interface's own queue */
#include "net/tap.h"

#include "base/error.h"
#include "base/log.h"
#include "net/net.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

static struct log_component log_tap = LOG_COMPONENT("tap");

enum { READ_MAX = 65536, BURST = 64 };

struct tap {
	struct net net;
	int fd, wake_fd;
	pthread_t thread;

	/* The thread's alone. */
	uint8_t frame[READ_MAX];
	size_t kept; /* bytes of `frame` that the NIC has refused; 0: none */
	bool started;

	pthread_mutex_t lock; /* guards all below */
	bool stop, nic_started, rx_ready, detach;
	pthread_cond_t detached;
};

static struct tap *tap_of(struct net *net)
{
	return container_of(net, struct tap, net);
}

/* ---- the NIC's side ---- */

static void wake(struct tap *t)
{
	uint64_t one = 1;
	ssize_t r = write(t->wake_fd, &one, sizeof(one));

	assert(r == sizeof(one) || errno == EAGAIN); /* full means: awake already */
}

static void note_started(struct tap *t, bool rx_ready)
{
	bool tell;

	pthread_mutex_lock(&t->lock);
	tell = !t->nic_started || (rx_ready && !t->rx_ready);
	t->nic_started = true;
	t->rx_ready |= rx_ready;
	pthread_mutex_unlock(&t->lock);
	if (tell)
		wake(t);
}

/* An interface that is down or full drops it, as a wire would. */
static void tap_send(struct net *net, const void *frame, size_t len)
{
	struct tap *t = tap_of(net);

	if (len < NET_MIN_FRAME || len > NET_MAX_FRAME)
		return;
	note_started(t, false);
	if (write(t->fd, frame, len) < 0)
		log_debug(&log_tap, "frame dropped: %s", strerror(errno));
}

static void tap_rx_ready(struct net *net)
{
	note_started(tap_of(net), true);
}

static void tap_detach(struct net *net)
{
	struct tap *t = tap_of(net);

	pthread_mutex_lock(&t->lock);
	t->detach = true;
	wake(t);
	while (t->detach)
		pthread_cond_wait(&t->detached, &t->lock);
	net->receive = NULL;
	pthread_mutex_unlock(&t->lock);
}

/* ---- the thread ---- */

/* False: time to stop.  *room: the NIC has some again. */
static bool take_orders(struct tap *t, bool *room)
{
	uint64_t count;
	bool stop;

	if (read(t->wake_fd, &count, sizeof(count)) < 0)
		assert(errno == EAGAIN || errno == EINTR);
	pthread_mutex_lock(&t->lock);
	if (t->detach) {
		t->detach = t->nic_started = t->rx_ready = false;
		t->kept = 0;
		pthread_cond_broadcast(&t->detached);
	}
	*room = t->rx_ready;
	t->rx_ready = false;
	t->started = t->nic_started && t->net.receive;
	stop = t->stop;
	pthread_mutex_unlock(&t->lock);
	return !stop;
}

static void deliver(struct tap *t)
{
	if (t->net.receive(t->net.opaque, t->frame, t->kept))
		t->kept = 0;
}

/* -errno: nothing more can be read, ever. */
static int read_frames(struct tap *t)
{
	for (unsigned i = 0; i < BURST && t->kept == 0; i++) {
		ssize_t n = read(t->fd, t->frame, sizeof(t->frame));

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		if (n < NET_MIN_FRAME || n > NET_MAX_FRAME)
			continue; /* an MTU above 1500 is the host's mistake */
		t->kept = (size_t)n;
		deliver(t);
	}
	return 0;
}

static void *tap_thread(void *arg)
{
	struct tap *t = arg;
	bool broken = false;
	int r;

	do {
		bool want = t->started && !t->kept && !broken, room = false;
		struct pollfd p[2] = {{.fd = t->wake_fd, .events = POLLIN},
				      {.fd = want ? t->fd : -1, .events = POLLIN}};

		if (poll(p, 2, -1) < 0)
			continue;
		if (p[0].revents && !take_orders(t, &room))
			break;
		if (t->started && t->kept && room)
			deliver(t);
		if (!t->started || !want || !p[1].revents)
			continue;
		r = read_frames(t);
		broken = r < 0;
		if (broken)
			log_error(&log_tap, "the interface is gone: %s", strerror(-r));
	} while (true);
	return NULL;
}

/* ---- opening ---- */

static int open_error(int e, struct error *err)
{
	if (e == ENOENT || e == ENODEV)
		return err_set(err, e,
			       "this host has no /dev/net/tun: load its module (modprobe tun)");
	if (e == EACCES || e == EPERM)
		return err_set(err, e, "may not open /dev/net/tun: see its owner and mode");
	return err_errno(err, e, "/dev/net/tun");
}

static int attach_error(int e, const char *name, struct error *err)
{
	if (e == EPERM && !*name)
		return err_set(err, e,
			       "may not make a tap interface: let root make one (ip tuntap add dev "
			       "tap0 mode tap user $USER) and say tap=tap0");
	if (e == EPERM)
		return err_set(err, e,
			       "tap interface '%s' is not this user's: let root make it with ip "
			       "tuntap add dev %s mode tap user $USER",
			       name, name);
	if (e == EBUSY)
		return err_set(err, e, "tap interface '%s' is in use by another program", name);
	if (e == EINVAL)
		return err_set(err, e,
			       "'%s' is not a tap interface, or one with more than one queue",
			       name);
	return err_errno(err, e, "tap interface '%s'", name);
}

int tap_open(int *fd, const char *name, bool vnet_header, struct error *err)
{
	struct ifreq req = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	int tun, e;

	if (strlen(name) >= sizeof(req.ifr_name) || strchr(name, '%') || strchr(name, '/'))
		return err_set(err, EINVAL, "'%s' is not the name of an interface", name);
	/* With rights enough the ioctl would make one of that name: rarely what was meant. */
	if (*name && !if_nametoindex(name))
		return err_set(err, ENODEV,
			       "there is no interface '%s': make it (ip tuntap add dev %s mode tap "
			       "user $USER)",
			       name, name);
	strcpy(req.ifr_name, name);
	if (vnet_header)
		req.ifr_flags |= IFF_VNET_HDR;
	tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (tun < 0)
		return open_error(errno, err);
	if (ioctl(tun, TUNSETIFF, &req) < 0) {
		e = errno;
		close(tun);
		return attach_error(e, name, err);
	}
	if (!*name)
		log_warn(&log_tap,
			 "made interface %s: bring it up and give it an address or a "
			 "bridge",
			 req.ifr_name);
	*fd = tun;
	return 0;
}

/* ---- create and destroy ---- */

static void tap_free(struct tap *t)
{
	if (t->wake_fd >= 0)
		close(t->wake_fd);
	close(t->fd);
	pthread_cond_destroy(&t->detached);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static void tap_destroy(struct net *net)
{
	struct tap *t = tap_of(net);

	pthread_mutex_lock(&t->lock);
	t->stop = true;
	pthread_mutex_unlock(&t->lock);
	wake(t);
	pthread_join(t->thread, NULL);
	tap_free(t);
}

static const struct net_ops tap_ops = {.name = "tap",
				       .send = tap_send,
				       .rx_ready = tap_rx_ready,
				       .detach = tap_detach,
				       .destroy = tap_destroy};

/* Signals are for the threads that expect them. */
static int start_thread(struct tap *t)
{
	sigset_t all, old;
	int e;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	e = pthread_create(&t->thread, NULL, tap_thread, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -e;
}

int net_tap_create(struct net **out, int fd, struct error *err)
{
	struct tap *t = calloc(1, sizeof(*t));
	int r;

	if (!t) {
		close(fd);
		return err_errno(err, ENOMEM, "tap");
	}
	t->net.ops = &tap_ops;
	t->fd = fd;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->detached, NULL);
	t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = t->wake_fd < 0 ? -errno : start_thread(t);
	if (r < 0) {
		tap_free(t);
		return err_errno(err, -r, "tap: cannot start its thread");
	}
	*out = &t->net;
	return 0;
}
