/* Unit tests of src/net/nat.c: a guest small enough to fit in this file talks through the NAT to
 * real sockets on this host's loopback.
 *
 * The guest knows ARP, a DHCP request, UDP and just enough TCP for a link that loses nothing: no
 * retransmission, no options, the window it is offered. */
#include "net/net.h"

#include "base/bytes.h"
#include "base/error.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <time.h>

static struct net *net;
static struct error err;

/* ---- frames from the NAT, as a queue ---- */

enum { QUEUE = 4096 };
static struct {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct {
		uint8_t bytes[NET_MAX_FRAME];
		size_t len;
	} slot[QUEUE];
	unsigned head, tail, room;
} rx = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .room = QUEUE};

static unsigned refused;

static bool receive(void *opaque, const void *frame, size_t len)
{
	bool ok;

	pthread_mutex_lock(&rx.lock);
	ok = rx.head - rx.tail < rx.room;
	if (ok) {
		CHECK(len <= NET_MAX_FRAME);
		memcpy(rx.slot[rx.head % QUEUE].bytes, frame, len);
		rx.slot[rx.head++ % QUEUE].len = len;
		pthread_cond_signal(&rx.more);
	} else {
		refused++;
	}
	pthread_mutex_unlock(&rx.lock);
	return ok;
}

static unsigned frames_queued(void)
{
	unsigned n;

	pthread_mutex_lock(&rx.lock);
	n = rx.head - rx.tail;
	pthread_mutex_unlock(&rx.lock);
	return n;
}

/* The next frame, or 0 after two seconds of nothing. */
static size_t next_frame(uint8_t *buf)
{
	struct timespec end;
	size_t len = 0;
	bool was_full;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 2;
	pthread_mutex_lock(&rx.lock);
	while (rx.head == rx.tail && !pthread_cond_timedwait(&rx.more, &rx.lock, &end))
		;
	was_full = rx.head - rx.tail >= rx.room;
	if (rx.head != rx.tail) {
		len = rx.slot[rx.tail % QUEUE].len;
		memcpy(buf, rx.slot[rx.tail++ % QUEUE].bytes, len);
	}
	pthread_mutex_unlock(&rx.lock);
	if (was_full)
		net_rx_ready(net);
	return len;
}

/* ---- the guest's side of Ethernet, ARP, IP ---- */

#define GUEST_IP 0x0a00020fu
#define HOST_IP  0x0a000202u

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};
static uint8_t host_mac[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

static uint32_t sum16(uint32_t sum, const uint8_t *p, size_t len)
{
	for (; len > 1; p += 2, len -= 2)
		sum += be16_load(p);
	return len ? sum + (uint32_t)(p[0] << 8) : sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void ethernet(uint8_t *f, uint16_t type)
{
	memcpy(f, host_mac, 6);
	memcpy(f + 6, guest_mac, 6);
	be16_store(f + 12, type);
}

/* Fill in Ethernet and IP for a payload of len bytes that stands at f + 34; send. */
static void send_ip(uint8_t *f, uint8_t proto, uint32_t src, uint32_t dst, size_t len)
{
	uint8_t *ip = f + 14;

	ethernet(f, 0x0800);
	memset(ip, 0, 20);
	ip[0] = 0x45;
	be16_store(ip + 2, (uint16_t)(20 + len));
	ip[8] = 64;
	ip[9] = proto;
	be32_store(ip + 12, src);
	be32_store(ip + 16, dst);
	be16_store(ip + 10, fold(sum16(0, ip, 20)));
	net_send(net, f, 34 + len);
}

static void send_udp(uint32_t src, uint32_t dst, uint16_t sport, uint16_t dport, const void *data,
		     size_t len)
{
	uint8_t f[NET_MAX_FRAME], *udp = f + 34;

	be16_store(udp, sport);
	be16_store(udp + 2, dport);
	be16_store(udp + 4, (uint16_t)(8 + len));
	be16_store(udp + 6, 0); /* none: allowed in IPv4 */
	memcpy(udp + 8, data, len);
	send_ip(f, 17, src, dst, 8 + len);
}

/* The NAT asks who we are before it sends anything to us. */
static void answer_arp(const uint8_t *ask)
{
	uint8_t f[42];

	memcpy(host_mac, ask + 22, 6);
	if (be16_load(ask + 20) != 1 || be32_load(ask + 38) != GUEST_IP)
		return;
	ethernet(f, 0x0806);
	memcpy(f + 14, "\0\1\10\0\6\4\0\2", 8);
	memcpy(f + 22, guest_mac, 6);
	be32_store(f + 28, GUEST_IP);
	memcpy(f + 32, ask + 22, 10);
	net_send(net, f, sizeof(f));
}

/* The next IP packet of this protocol; everything else is dealt with on the way. */
static size_t next_ip(uint8_t proto, uint8_t *f)
{
	size_t len;

	while ((len = next_frame(f))) {
		if (be16_load(f + 12) == 0x0806)
			answer_arp(f);
		else if (be16_load(f + 12) == 0x0800 && f[23] == proto)
			return len;
	}
	return 0;
}

/* Ask for the host's hardware address. */
static void ask_arp(void)
{
	uint8_t f[42];

	ethernet(f, 0x0806);
	memset(f, 0xff, 6);
	memcpy(f + 14, "\0\1\10\0\6\4\0\1", 8);
	memcpy(f + 22, guest_mac, 6);
	be32_store(f + 28, GUEST_IP);
	memset(f + 32, 0, 6);
	be32_store(f + 38, HOST_IP);
	net_send(net, f, sizeof(f));
}

static void say_hello(void)
{
	uint8_t f[NET_MAX_FRAME];

	ask_arp();
	CHECK(next_frame(f));
	answer_arp(f);
}

/* ---- the guest's TCP ---- */

struct tcp {
	uint16_t sport, dport;
	uint32_t snd, una, window, rcv; /* next to send, oldest unacknowledged, its offer, ours */
	bool fin;                       /* the other side has ended */
	uint64_t received, sum;
};

enum { FIN = 1, SYN = 2, PSH = 8, ACK = 16 };

static void tcp_send(struct tcp *t, uint8_t flags, const uint8_t *data, size_t len)
{
	uint8_t f[NET_MAX_FRAME], *h = f + 34;
	uint8_t pseudo[12];

	memset(h, 0, 20);
	be16_store(h, t->sport);
	be16_store(h + 2, t->dport);
	be32_store(h + 4, t->snd);
	be32_store(h + 8, flags & ACK ? t->rcv : 0);
	h[12] = 5 << 4;
	h[13] = flags;
	be16_store(h + 14, 65535);
	if (len)
		memcpy(h + 20, data, len);
	be32_store(pseudo, GUEST_IP);
	be32_store(pseudo + 4, HOST_IP);
	be16_store(pseudo + 8, 6);
	be16_store(pseudo + 10, (uint16_t)(20 + len));
	be16_store(h + 16, fold(sum16(sum16(0, pseudo, 12), h, 20 + len)));
	send_ip(f, 6, GUEST_IP, HOST_IP, 20 + len);
	t->snd += (uint32_t)len + !!(flags & (SYN | FIN));
}

/* Take one segment; true when it brought data or an end that wants an acknowledgement. */
static bool tcp_take(struct tcp *t, const uint8_t *f)
{
	const uint8_t *h = f + 34, *data = h + (h[12] >> 4) * 4u;
	size_t len = be16_load(f + 16) - 20u - (size_t)(data - h);

	if (be16_load(h + 2) != t->sport)
		return false;
	CHECK_EQ(0, h[13] & 4); /* no reset */
	t->una = be32_load(h + 8);
	t->window = be16_load(h + 14);
	if (h[13] & SYN) {
		t->rcv = be32_load(h + 4) + 1;
		return false;
	}
	if (be32_load(h + 4) != t->rcv || (!len && !(h[13] & FIN)))
		return len > 0;
	for (size_t i = 0; i < len; i++)
		t->sum = t->sum * 31 + data[i];
	t->received += len;
	t->rcv += (uint32_t)len;
	if (h[13] & FIN) {
		t->rcv++;
		t->fin = true;
	}
	return true;
}

static void tcp_connect(struct tcp *t, uint16_t dport)
{
	uint8_t f[NET_MAX_FRAME];

	*t = (struct tcp){.sport = 40000, .dport = dport, .snd = 1000};
	tcp_send(t, SYN, NULL, 0);
	while (!t->rcv) {
		CHECK(next_ip(6, f));
		tcp_take(t, f);
	}
	tcp_send(t, ACK, NULL, 0);
}

/* Read to the other side's end.  Acknowledges every second segment, as hosts do. */
static void tcp_read_all(struct tcp *t)
{
	uint8_t f[NET_MAX_FRAME];
	unsigned owed = 0;

	while (!t->fin) {
		CHECK(next_ip(6, f));
		owed += tcp_take(t, f);
		if (owed && (owed > 1 || t->fin || !frames_queued())) {
			tcp_send(t, ACK, NULL, 0);
			owed = 0;
		}
	}
}

/* Send `total` made-up bytes within the offered window, then end. */
static uint64_t tcp_write_all(struct tcp *t, uint64_t total)
{
	uint8_t f[NET_MAX_FRAME], data[1460];
	uint64_t sum = 0, sent = 0;

	while (sent < total) {
		size_t len = MIN(sizeof(data), total - sent);

		while (t->snd - t->una + len > t->window) {
			CHECK(next_ip(6, f));
			tcp_take(t, f);
		}
		for (size_t i = 0; i < len; i++)
			sum = sum * 31 + (data[i] = (uint8_t)((sent + i) * 7 >> 3));
		tcp_send(t, ACK | PSH, data, len);
		sent += len;
	}
	while (t->una != t->snd) {
		CHECK(next_ip(6, f));
		tcp_take(t, f);
	}
	tcp_send(t, FIN | ACK, NULL, 0);
	return sum;
}

/* ---- the host's side: a server thread on a loopback port ---- */

static struct {
	int fd;
	uint16_t port;
	uint64_t to_send, sum, received;
	pthread_t thread;
} server;

static void bind_loopback(int type)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);

	server.fd = socket(AF_INET, type, 0);
	CHECK_EQ(0, bind(server.fd, (struct sockaddr *)&a, sizeof(a)));
	CHECK_EQ(0, getsockname(server.fd, (struct sockaddr *)&a, &len));
	server.port = ntohs(a.sin_port);
	if (type == SOCK_STREAM)
		CHECK_EQ(0, listen(server.fd, 1));
}

static void *serve_one(void *arg)
{
	static uint8_t buf[65536];
	int fd = accept(server.fd, NULL, NULL);
	ssize_t n;

	for (uint64_t sent = 0; sent < server.to_send; sent += (uint64_t)n) {
		for (size_t i = 0; i < sizeof(buf); i++)
			buf[i] = (uint8_t)((sent + i) * 13 >> 2);
		n = write(fd, buf, MIN(sizeof(buf), server.to_send - sent));
		CHECK(n > 0);
		for (ssize_t i = 0; i < n; i++)
			server.sum = server.sum * 31 + buf[i];
	}
	shutdown(fd, SHUT_WR);
	while (!server.to_send && (n = read(fd, buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < n; i++)
			server.sum = server.sum * 31 + buf[i];
		server.received += (uint64_t)n;
	}
	close(fd);
	return NULL;
}

static void start_server(uint64_t to_send)
{
	server.to_send = to_send;
	bind_loopback(SOCK_STREAM);
	CHECK_EQ(0, pthread_create(&server.thread, NULL, serve_one, NULL));
}

static void plug_in(const char *options)
{
	if (net_user_create(&net, options, NULL, &err) < 0) {
		printf("# %s\n", err.msg);
		CHECK(!"the network starts");
	}
	net->receive = receive;
}

/* ---- the tests ---- */

TEST(nonsense_options_are_refused_with_words)
{
	static const char *const bad[] = {
		"forward=tcp:22",
		"forward=tcp::22",
		"forward=tcp:0:22",
		"forward=tcp:22:",
		"forward=tcp:22:65536",
		"forward=sctp:22:22",
		"forward=tcp:22:22x",
		"forward=tcp:localhost:22:22",
		"forward=tcp:1.2.3:22:22",
		"forward=tcp:-1:22",
		"forward=",
		"forward=tcp",
		"forward=tcp:127.0.0.1:1:2:3",
		"forwards=tcp:2222:22",
		"x,forward=tcp:2222:22",
		"forward=tcp:2222:22,",
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		if (net_user_create(&net, bad[i], NULL, &err) != -EINVAL)
			printf("# accepted or failed otherwise: %s\n", bad[i]);
		CHECK_EQ(-EINVAL, net_user_create(&net, bad[i], NULL, &err));
	}
	CHECK_EQ(-EINVAL, net_user_create(&net, "forward=tcp:22", NULL, &err));
	CHECK(strstr(err.msg, "'tcp:22' is not tcp:HOSTPORT:GUESTPORT"));
	CHECK_EQ(-EINVAL, net_user_create(&net, "tap=x", NULL, &err));
	CHECK_STR("network option 'tap=x' is not known; there is forward=...", err.msg);
}

TEST(a_taken_port_is_named)
{
	char options[64];

	bind_loopback(SOCK_STREAM);
	snprintf(options, sizeof(options), "forward=tcp:%u:22", server.port);
	CHECK_EQ(-EADDRINUSE, net_user_create(&net, options, NULL, &err));
	CHECK(strstr(err.msg, "cannot listen on the host: Address already in use"));
}

TEST(it_starts_and_stops_without_traffic)
{
	plug_in("");
	net_destroy(net);
	plug_in("");
	net_rx_ready(net);
	net_destroy(net);
	net_destroy(NULL);
}

TEST(odd_frames_are_dropped)
{
	static uint8_t junk[4000];

	plug_in("");
	net_send(net, junk, 0);
	net_send(net, junk, 13);
	net_send(net, junk, sizeof(junk));
	for (unsigned i = 0; i < 2000; i++) {
		for (unsigned k = 0; k < 60; k++)
			junk[k] = (uint8_t)(junk[k] * 5 + i + k);
		be16_store(junk + 12, i & 1 ? 0x0800 : 0x0806);
		net_send(net, junk, 14 + i % 1400);
	}
	say_hello(); /* still alive */
	net_destroy(net);
}

TEST(dhcp_gives_the_guest_its_address)
{
	uint8_t d[300] = {1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef}, f[NET_MAX_FRAME];

	plug_in("");
	memcpy(d + 28, guest_mac, 6);
	memcpy(d + 236, "\x63\x82\x53\x63\x35\x01\x01\xff", 8); /* DISCOVER */
	send_udp(0, 0xffffffff, 68, 67, d, sizeof(d));
	CHECK(next_ip(17, f));
	CHECK_EQ(0xdeadbeef, be32_load(f + 42 + 4));
	CHECK_EQ(GUEST_IP, be32_load(f + 42 + 16));
	net_destroy(net);
}

TEST(a_download_from_the_hosts_loopback_arrives_whole)
{
	struct tcp t;

	start_server(8 * MiB);
	plug_in("");
	say_hello();
	tcp_connect(&t, server.port);
	tcp_read_all(&t);
	pthread_join(server.thread, NULL);
	CHECK_EQ(8 * MiB, t.received);
	CHECK_EQ(server.sum, t.sum);
	net_destroy(net);
}

TEST(an_upload_to_the_hosts_loopback_arrives_whole)
{
	struct tcp t;
	uint64_t sum;

	start_server(0);
	plug_in("");
	say_hello();
	tcp_connect(&t, server.port);
	sum = tcp_write_all(&t, 8 * MiB);
	pthread_join(server.thread, NULL);
	CHECK_EQ(8 * MiB, server.received);
	CHECK_EQ(sum, server.sum);
	net_destroy(net);
}

TEST(a_card_with_little_room_loses_nothing)
{
	struct tcp t;

	rx.room = 3;
	start_server(1 * MiB);
	plug_in("");
	say_hello();
	tcp_connect(&t, server.port);
	tcp_read_all(&t);
	pthread_join(server.thread, NULL);
	CHECK_EQ(1 * MiB, t.received);
	CHECK_EQ(server.sum, t.sum);
	CHECK(refused > 0);
	net_destroy(net);
}

TEST(a_forwarded_port_reaches_the_guest)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct tcp t = {.sport = 22, .snd = 5000};
	uint8_t f[NET_MAX_FRAME];
	char options[64], got[6] = "";
	int fd;

	bind_loopback(SOCK_STREAM); /* a port that is free */
	close(server.fd);
	snprintf(options, sizeof(options), "forward=tcp:%u:22", server.port);
	plug_in(options);
	say_hello();
	fd = socket(AF_INET, SOCK_STREAM, 0);
	a.sin_port = htons(server.port);
	CHECK_EQ(0, connect(fd, (struct sockaddr *)&a, sizeof(a)));
	CHECK(next_ip(6, f));
	CHECK_EQ(SYN, f[47] & SYN);
	CHECK_EQ(22, be16_load(f + 36));
	t.dport = be16_load(f + 34);
	tcp_take(&t, f);
	tcp_send(&t, SYN | ACK, NULL, 0);
	tcp_send(&t, ACK | PSH, (const uint8_t *)"hello", 5);
	CHECK_EQ(5, recv(fd, got, 5, MSG_WAITALL));
	CHECK_STR("hello", got);
	close(fd);
	net_destroy(net);
}

TEST(forwards_listen_on_loopback_only)
{
	struct sockaddr_in a = {.sin_family = AF_INET};
	char options[64];
	int fd;

	bind_loopback(SOCK_STREAM);
	close(server.fd);
	snprintf(options, sizeof(options), "forward=tcp:%u:22", server.port);
	plug_in(options);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	a.sin_port = htons(server.port);
	CHECK_EQ(1, inet_pton(AF_INET, "127.0.0.2", &a.sin_addr));
	CHECK(connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0);
	net_destroy(net);
	snprintf(options, sizeof(options), "forward=tcp:127.0.0.2:%u:22", server.port);
	plug_in(options);
	CHECK_EQ(0, connect(fd, (struct sockaddr *)&a, sizeof(a)));
	net_destroy(net);
	close(fd);
}

TEST(udp_goes_there_and_back)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	uint8_t f[NET_MAX_FRAME];
	char got[8] = "";

	bind_loopback(SOCK_DGRAM);
	plug_in("");
	say_hello();
	send_udp(GUEST_IP, HOST_IP, 5555, server.port, "ping", 4);
	CHECK_EQ(4, recvfrom(server.fd, got, sizeof(got), 0, (struct sockaddr *)&from, &len));
	CHECK_STR("ping", got);
	CHECK_EQ(4, sendto(server.fd, "pong", 4, 0, (struct sockaddr *)&from, len));
	CHECK(next_ip(17, f));
	CHECK_EQ(5555, be16_load(f + 36));
	CHECK_EQ(0, memcmp(f + 42, "pong", 4));
	net_destroy(net);
}

TEST(after_detach_nothing_is_received)
{
	unsigned before;

	plug_in("");
	say_hello();
	net_detach(net);
	before = frames_queued();
	ask_arp();
	usleep(20000);
	CHECK_EQ(before, frames_queued());
	net_destroy(net);
}

TEST(another_card_may_be_plugged_in)
{
	plug_in("");
	say_hello();
	net_detach(net);
	net->receive = receive;
	say_hello();
	net_destroy(net);
}
