/* A tap interface in a network namespace of the test's own; skipped where that is not permitted.
 *
 * The host's end of the wire is a packet socket on the interface: what it gets is what the card
 * sent, and what it sends the card receives. */
#include "net/tap.h"

#include "base/error.h"
#include "net/net.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { TYPE = 0x88b5, LEN = 200 }; /* an EtherType for experiments: no host stack answers */

static struct {
	pthread_mutex_t lock;
	unsigned got, refused;
	bool full;
	uint8_t last[NET_MAX_FRAME];
	size_t last_len;
} nic = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool receive(void *opaque, const void *frame, size_t len)
{
	const uint8_t *p = frame;
	bool mine = len > 14 && p[12] == TYPE >> 8 && p[13] == (TYPE & 0xff), taken = true;

	pthread_mutex_lock(&nic.lock);
	if (mine && nic.full) {
		nic.refused++;
		taken = false;
	} else if (mine) { /* the host says things of its own, such as IPv6's */
		memcpy(nic.last, frame, len);
		nic.last_len = len;
		nic.got++;
	}
	pthread_mutex_unlock(&nic.lock);
	return taken;
}

static unsigned count(const unsigned *what)
{
	unsigned n;

	pthread_mutex_lock(&nic.lock);
	n = *what;
	pthread_mutex_unlock(&nic.lock);
	return n;
}

static bool wait_count(const unsigned *what, unsigned n)
{
	for (int i = 0; i < 20000 && count(what) < n; i++)
		usleep(1000);
	return count(what) >= n;
}

static void set_full(bool full)
{
	pthread_mutex_lock(&nic.lock);
	nic.full = full;
	pthread_mutex_unlock(&nic.lock);
}

static void enter_namespace(void)
{
	int fd;

	if (unshare(CLONE_NEWNET) < 0)
		SKIP("a network namespace is not permitted here");
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		SKIP("/dev/net/tun is not there or not permitted");
	close(fd);
}

/* A new interface, up, and a packet socket on it. */
static int make(struct net **net, int *index)
{
	struct ifreq req = {.ifr_name = "tap0"};
	struct sockaddr_ll a = {.sll_family = AF_PACKET, .sll_protocol = htons(TYPE)};
	int fd, s = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(TYPE));

	CHECK(s >= 0);
	CHECK_EQ(0, tap_open(&fd, "", false, NULL));
	CHECK_EQ(0, ioctl(s, SIOCGIFFLAGS, &req));
	req.ifr_flags |= IFF_UP;
	CHECK_EQ(0, ioctl(s, SIOCSIFFLAGS, &req));
	*index = a.sll_ifindex = (int)if_nametoindex("tap0");
	CHECK_EQ(0, bind(s, (struct sockaddr *)&a, sizeof(a)));
	CHECK_EQ(0, net_tap_create(net, fd, NULL));
	return s;
}

static void fill(uint8_t *frame, uint8_t mark)
{
	memset(frame, mark, LEN);
	memset(frame, 0xff, 6);
	memset(frame + 6, 2, 6);
	frame[12] = TYPE >> 8;
	frame[13] = TYPE & 0xff;
}

static void host_sends(int s, uint8_t mark)
{
	uint8_t frame[LEN];

	fill(frame, mark);
	CHECK_EQ(LEN, send(s, frame, LEN, 0));
}

TEST(frames_go_both_ways)
{
	uint8_t frame[LEN], got[2048];
	struct pollfd p = {.events = POLLIN};
	struct net *net;
	int index;

	enter_namespace();
	p.fd = make(&net, &index);
	net->receive = receive;
	host_sends(p.fd, 1);
	usleep(20000);
	CHECK_EQ(0, count(&nic.got)); /* the card has not said that it is there */

	net_rx_ready(net);
	CHECK(wait_count(&nic.got, 1)); /* it waited in the interface */
	CHECK_EQ(LEN, nic.last_len);
	CHECK_EQ(1, nic.last[LEN - 1]);
	host_sends(p.fd, 2);
	CHECK(wait_count(&nic.got, 2));

	fill(frame, 3);
	net_send(net, frame, LEN);
	CHECK_EQ(1, poll(&p, 1, 20000));
	CHECK_EQ(LEN, recv(p.fd, got, sizeof(got), 0));
	CHECK(!memcmp(frame, got, LEN));
	net_send(net, frame, 5); /* no frame at all: dropped */

	net_detach(net);
	net_destroy(net);
	close(p.fd);
}

TEST(a_refused_frame_comes_again)
{
	struct net *net;
	int s, index;

	enter_namespace();
	s = make(&net, &index);
	net->receive = receive;
	set_full(true);
	net_rx_ready(net);
	host_sends(s, 1);
	host_sends(s, 2);
	CHECK(wait_count(&nic.refused, 1));
	CHECK_EQ(0, count(&nic.got));
	set_full(false);
	net_rx_ready(net);
	CHECK(wait_count(&nic.got, 2));
	CHECK_EQ(2, nic.last[LEN - 1]);

	net_detach(net); /* nobody is called any more, and another card may come */
	host_sends(s, 3);
	usleep(20000);
	CHECK_EQ(2, count(&nic.got));
	net->receive = receive;
	net_rx_ready(net);
	CHECK(wait_count(&nic.got, 3));
	net_destroy(net);
	close(s);
}

TEST(an_interface_that_is_down_drops_frames_until_it_is_up)
{
	struct ifreq req = {.ifr_name = "tap0"};
	struct net *net;
	uint8_t frame[LEN];
	int s, index, error;
	socklen_t len = sizeof(error);

	enter_namespace();
	s = make(&net, &index);
	net->receive = receive;
	net_rx_ready(net);
	CHECK_EQ(0, ioctl(s, SIOCGIFFLAGS, &req));
	req.ifr_flags &= ~IFF_UP;
	CHECK_EQ(0, ioctl(s, SIOCSIFFLAGS, &req));
	fill(frame, 1);
	net_send(net, frame, LEN); /* down: dropped */
	req.ifr_flags |= IFF_UP;
	CHECK_EQ(0, ioctl(s, SIOCSIFFLAGS, &req));
	CHECK_EQ(0, getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &len)); /* forget ENETDOWN */
	host_sends(s, 4);
	CHECK(wait_count(&nic.got, 1));
	net_destroy(net);
	close(s);
}

static void check_error(const char *name, int expected, const char *word)
{
	struct error err = {""};
	int fd;

	CHECK_EQ(-expected, tap_open(&fd, name, false, &err));
	printf("# %s\n", err.msg);
	CHECK(strstr(err.msg, word));
}

TEST(what_is_wrong_is_said)
{
	int fd, other;

	enter_namespace();
	check_error("nope", ENODEV, "ip tuntap add");
	check_error("tap%d", EINVAL, "not the name");
	check_error("a-name-that-is-too-long", EINVAL, "not the name");
	check_error("lo", EINVAL, "not a tap");
	CHECK_EQ(0, tap_open(&fd, "", false, NULL));
	check_error("tap0", EBUSY, "in use");
	CHECK_EQ(0, tap_open(&other, "", true, NULL));
	close(fd);
	close(other);
}
