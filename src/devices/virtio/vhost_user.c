/* vhost-user: the back end is a process at the other end of a Unix socket.
 *
 * A message is a header (request, flags, size of the payload), the payload in the host's byte order
 * and perhaps descriptors.  We ask, it answers; nothing comes unasked, as we offer no channel for
 * its own requests.  With REPLY_ACK each request is answered, so an error is seen where it happens.
 *
 * Once an answer is wrong or missing nothing is believed any more: the caller hangs up. */
#include "devices/virtio/vhost.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/error.h"
#include "mem/mem.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

// clang-format off
enum {
	GET_FEATURES = 1,    SET_FEATURES = 2,    SET_OWNER = 3,      SET_MEM_TABLE = 5,
	SET_VRING_NUM = 8,   SET_VRING_ADDR = 9,  SET_VRING_BASE = 10, GET_VRING_BASE = 11,
	SET_VRING_KICK = 12, SET_VRING_CALL = 13, GET_PROTOCOL_FEATURES = 15,
	SET_PROTOCOL_FEATURES = 16, GET_QUEUE_NUM = 17, SET_VRING_ENABLE = 18, GET_CONFIG = 24,

	FLAG_VERSION = 1, FLAG_VERSION_MASK = 3, FLAG_REPLY = 4, FLAG_NEED_REPLY = 8,

	F_PROTOCOL_FEATURES = 30, /* a feature bit that no driver sees */
	PROTO_MQ = 0, PROTO_REPLY_ACK = 3, PROTO_CONFIG = 9,

	HEADER_SIZE = 12, CONFIG_HEADER = 12, CONFIG_MAX = 256, MAX_REGIONS = 8,
	PAYLOAD_MAX = CONFIG_HEADER + CONFIG_MAX,
};
// clang-format on

struct vhost_user {
	struct vhost_backend be;
	int fd;
	unsigned timeout_ms;
	bool has_protocol;
	uint64_t protocol;
	struct sockaddr_un addr;
};

struct message {
	uint32_t request;
	uint32_t len; /* of the payload */
	uint8_t payload[PAYLOAD_MAX];
	int fd[MAX_REGIONS];
	unsigned nr_fds;
};

static struct vhost_user *user_of(struct vhost_backend *b)
{
	return container_of(b, struct vhost_user, be);
}

/* ---- bytes, by a deadline ---- */

static int wait_for(const struct vhost_user *u, short events, uint64_t until_ns)
{
	struct pollfd p = {.fd = u->fd, .events = events};
	uint64_t now = clock_mono_ns();
	int r;

	if (now >= until_ns)
		return -ETIMEDOUT;
	r = poll(&p, 1, (int)((until_ns - now) / 1000000 + 1));
	return r < 0 && errno != EINTR ? -errno : 0;
}

static bool again(void)
{
	return errno == EAGAIN || errno == EINTR;
}

/* Descriptors travel with the first byte. */
static ssize_t send_some(const struct vhost_user *u, struct iovec *iov, const struct message *m,
			 bool first)
{
	union {
		char raw[CMSG_SPACE(sizeof(m->fd))];
		struct cmsghdr align;
	} control = {.raw = {0}};
	struct msghdr h = {.msg_iov = iov, .msg_iovlen = 1};
	size_t len = m->nr_fds * sizeof(int);

	if (first && m->nr_fds) {
		h.msg_control = control.raw;
		h.msg_controllen = CMSG_SPACE(len);
		*CMSG_FIRSTHDR(&h) = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
						      .cmsg_type = SCM_RIGHTS,
						      .cmsg_len = CMSG_LEN(len)};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&h)), m->fd, len);
	}
	return sendmsg(u->fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int send_message(const struct vhost_user *u, const struct message *m, uint32_t flags,
			uint64_t until_ns)
{
	uint8_t raw[HEADER_SIZE + PAYLOAD_MAX];
	size_t len = HEADER_SIZE + m->len, done = 0;
	uint32_t head[3] = {m->request, FLAG_VERSION | flags, m->len};
	int r = 0;

	memcpy(raw, head, HEADER_SIZE);
	memcpy(raw + HEADER_SIZE, m->payload, m->len);
	while (done < len && r == 0) {
		struct iovec iov = {raw + done, len - done};
		ssize_t n = send_some(u, &iov, m, done == 0);

		if (n >= 0)
			done += (size_t)n;
		else
			r = again() ? wait_for(u, POLLOUT, until_ns) : -errno;
	}
	return r;
}

/* Descriptors that come along are never taken: the kernel drops them, as we give no room. */
static int receive(const struct vhost_user *u, void *buf, size_t len, uint64_t until_ns)
{
	size_t done = 0;
	int r = 0;

	while (done < len && r == 0) {
		ssize_t n = recv(u->fd, (uint8_t *)buf + done, len - done, MSG_DONTWAIT);

		if (n > 0)
			done += (size_t)n;
		else if (n == 0)
			r = -ECONNRESET;
		else
			r = again() ? wait_for(u, POLLIN, until_ns) : -errno;
	}
	return r;
}

/* ---- requests ---- */

static int failed(int r, uint32_t request, struct error *err)
{
	if (r == -ETIMEDOUT)
		return err_set(err, ETIMEDOUT, "it does not answer (request %u)", request);
	if (r == -ECONNRESET || r == -EPIPE)
		return err_set(err, ECONNRESET, "it has closed the connection (request %u)",
			       request);
	return err_errno(err, -r, "request %u", request);
}

/* Exactly `len` bytes in answer to `request`. */
static int receive_reply(const struct vhost_user *u, uint32_t request, void *buf, uint32_t len,
			 uint64_t until_ns, struct error *err)
{
	uint32_t head[3];
	int r = receive(u, head, sizeof(head), until_ns);

	if (r < 0)
		return failed(r, request, err);
	if (head[0] != request || (head[1] & FLAG_VERSION_MASK) != FLAG_VERSION ||
	    !(head[1] & FLAG_REPLY) || head[2] != len)
		return err_set(err, EPROTO,
			       "it breaks the vhost-user protocol: request %u was answered with "
			       "%u, flags %#x, %u bytes",
			       request, head[0], head[1], head[2]);
	r = receive(u, buf, len, until_ns);
	return r < 0 ? failed(r, request, err) : 0;
}

/* reply NULL: the request has none but an acknowledgement, where that was agreed. */
static int ask(const struct vhost_user *u, const struct message *m, void *reply, uint32_t len,
	       struct error *err)
{
	uint64_t until = clock_mono_ns() + u->timeout_ms * 1000000ull, ack = 0;
	bool acked = !reply && (u->protocol & BIT(PROTO_REPLY_ACK));
	int r = send_message(u, m, acked ? FLAG_NEED_REPLY : 0, until);

	if (r < 0)
		return failed(r, m->request, err);
	if (reply)
		return receive_reply(u, m->request, reply, len, until, err);
	if (!acked)
		return 0;
	r = receive_reply(u, m->request, &ack, sizeof(ack), until, err);
	if (r == 0 && ack)
		r = err_set(err, EIO, "it refuses request %u", m->request);
	return r;
}

static int set_u64(const struct vhost_user *u, uint32_t request, uint64_t v, struct error *err)
{
	struct message m = {.request = request, .len = sizeof(v)};

	memcpy(m.payload, &v, sizeof(v));
	return ask(u, &m, NULL, 0, err);
}

static int get_u64(const struct vhost_user *u, uint32_t request, uint64_t *v, struct error *err)
{
	struct message m = {.request = request};

	return ask(u, &m, v, sizeof(*v), err);
}

static struct message ring_message(uint32_t request, uint32_t index, uint32_t num)
{
	struct message m = {.request = request, .len = 8};
	uint32_t state[2] = {index, num};

	memcpy(m.payload, state, sizeof(state));
	return m;
}

static int set_ring(const struct vhost_user *u, uint32_t request, uint32_t index, uint32_t num,
		    struct error *err)
{
	struct message m = ring_message(request, index, num);

	return ask(u, &m, NULL, 0, err);
}

static int set_ring_fd(const struct vhost_user *u, uint32_t request, uint32_t index, int fd,
		       struct error *err)
{
	struct message m = {.request = request, .len = 8, .fd = {fd}, .nr_fds = 1};
	uint64_t v = index;

	memcpy(m.payload, &v, sizeof(v));
	return ask(u, &m, NULL, 0, err);
}

/* Rings and memory are named by our own addresses, which the memory table translates. */
static int set_ring_addr(const struct vhost_user *u, const struct vhost_ring *r, struct error *err)
{
	struct message m = {.request = SET_VRING_ADDR, .len = 40};
	uint32_t head[2] = {r->index, 0};
	uint64_t addr[4] = {(uintptr_t)r->desc, (uintptr_t)r->device, (uintptr_t)r->driver, 0};

	memcpy(m.payload, head, sizeof(head));
	memcpy(m.payload + sizeof(head), addr, sizeof(addr));
	return ask(u, &m, NULL, 0, err);
}

/* ---- what a back end can do ---- */

static int user_set_features(struct vhost_backend *b, uint64_t features, struct error *err)
{
	struct vhost_user *u = user_of(b);

	return set_u64(u, SET_FEATURES, features | (u->has_protocol ? BIT(F_PROTOCOL_FEATURES) : 0),
		       err);
}

static int user_set_mem(struct vhost_backend *b, struct mem *mem, struct error *err)
{
	struct message m = {.request = SET_MEM_TABLE};
	const struct mem_range *range;
	unsigned n = mem_ram_ranges(mem, &range);
	uint32_t head[2] = {n, 0};

	if (n > MAX_REGIONS)
		return err_set(err, E2BIG, "guest memory is in more than %d pieces", MAX_REGIONS);
	memcpy(m.payload, head, sizeof(head));
	m.len = sizeof(head);
	for (unsigned i = 0; i < n; i++) {
		uint64_t region[4] = {range[i].gpa, range[i].size, (uintptr_t)range[i].hva,
				      mem_fd_offset(mem, &range[i])};

		memcpy(m.payload + m.len, region, sizeof(region));
		m.len += sizeof(region);
		m.fd[m.nr_fds++] = mem_fd(mem);
	}
	return ask(user_of(b), &m, NULL, 0, err);
}

/* Where protocol features were agreed a ring starts disabled; a kick that overtakes the request to
 * enable it might be lost, so we wait for an answer to something. */
static int user_ring_start(struct vhost_backend *b, const struct vhost_ring *ring,
			   struct error *err)
{
	struct vhost_user *u = user_of(b);
	uint64_t ignored;
	int r = set_ring(u, SET_VRING_NUM, ring->index, ring->size, err);

	if (r == 0)
		r = set_ring(u, SET_VRING_BASE, ring->index, ring->base, err);
	if (r == 0)
		r = set_ring_addr(u, ring, err);
	if (r == 0)
		r = set_ring_fd(u, SET_VRING_CALL, ring->index, ring->call_fd, err);
	if (r == 0)
		r = set_ring_fd(u, SET_VRING_KICK, ring->index, ring->kick_fd, err);
	if (r == 0 && u->has_protocol)
		r = set_ring(u, SET_VRING_ENABLE, ring->index, 1, err);
	if (r == 0 && !(u->protocol & BIT(PROTO_REPLY_ACK)))
		r = get_u64(u, GET_FEATURES, &ignored, err);
	return r;
}

static int user_ring_stop(struct vhost_backend *b, unsigned index, uint16_t *base,
			  struct error *err)
{
	struct message m = ring_message(GET_VRING_BASE, index, 0);
	uint32_t state[2];
	int r = ask(user_of(b), &m, state, sizeof(state), err);

	if (r < 0)
		return r;
	if (state[0] != index || state[1] > UINT16_MAX)
		return err_set(err, EPROTO, "it gives ring %u, entry %u for where ring %u stands",
			       state[0], state[1], index);
	*base = (uint16_t)state[1];
	return 0;
}

static int user_get_config(struct vhost_backend *b, void *buf, unsigned len, struct error *err)
{
	struct vhost_user *u = user_of(b);
	uint32_t head[3] = {0, len, 0};
	struct message m = {.request = GET_CONFIG, .len = CONFIG_HEADER + len};
	uint8_t reply[PAYLOAD_MAX];
	int r;

	if (!(u->protocol & BIT(PROTO_CONFIG)) || len > CONFIG_MAX)
		return err_set(err, ENOTSUP, "it has no configuration space (CONFIG)");
	memcpy(m.payload, head, sizeof(head));
	r = ask(u, &m, reply, m.len, err);
	if (r < 0)
		return r;
	if (memcmp(reply, head, 8)) /* offset and size; flags are the asker's */
		return err_set(err, EPROTO, "it answers GET_CONFIG with other bytes than asked");
	memcpy(buf, reply + CONFIG_HEADER, len);
	return 0;
}

/* ---- connecting ---- */

static int agree_protocol(struct vhost_user *u, struct error *err)
{
	uint64_t theirs = 0, queues = 0;
	int r = get_u64(u, GET_PROTOCOL_FEATURES, &theirs, err);

	if (r < 0)
		return r;
	theirs &= BIT(PROTO_MQ) | BIT(PROTO_REPLY_ACK) | BIT(PROTO_CONFIG);
	r = set_u64(u, SET_PROTOCOL_FEATURES, theirs, err);
	u->protocol = theirs;
	if (r < 0 || !(theirs & BIT(PROTO_MQ)))
		return r;
	r = get_u64(u, GET_QUEUE_NUM, &queues, err);
	if (r == 0 && queues == 0)
		r = err_set(err, EPROTO, "it has no queues");
	u->be.max_queues = (unsigned)MIN(queues, (uint64_t)VIRTIO_MAX_QUEUES);
	return r;
}

/* Without MQ a back end has the queues its kind of device has at least: at most a pair. */
static int greet(struct vhost_user *u, struct error *err)
{
	struct message owner = {.request = SET_OWNER};
	uint64_t features = 0;
	int r;

	u->protocol = 0;
	u->has_protocol = false;
	u->be.max_queues = 2;
	r = ask(u, &owner, NULL, 0, err);
	if (r == 0)
		r = get_u64(u, GET_FEATURES, &features, err);
	if (r < 0)
		return r;
	if (!(features & BIT(VIRTIO_F_VERSION_1)))
		return err_set(err, ENOTSUP, "it knows only the legacy virtio interface");
	u->be.features = features & ~BIT(F_PROTOCOL_FEATURES);
	u->has_protocol = features & BIT(F_PROTOCOL_FEATURES);
	return u->has_protocol ? agree_protocol(u, err) : 0;
}

/* Not blocking: a back end that lets its backlog fill up must not stop the caller. */
static int dial(struct vhost_user *u, struct error *err)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r;

	if (fd < 0)
		return err_errno(err, errno, "cannot make a socket");
	if (connect(fd, (const struct sockaddr *)&u->addr, sizeof(u->addr)) < 0) {
		r = errno == ENOENT || errno == ECONNREFUSED
			    ? err_errno(err, errno, "no back end listens there; start it first")
			    : err_errno(err, errno, "cannot connect");
		close(fd);
		return r;
	}
	u->fd = u->be.hangup_fd = fd;
	return 0;
}

static void user_hang_up(struct vhost_backend *b)
{
	struct vhost_user *u = user_of(b);

	if (u->fd >= 0)
		close(u->fd);
	u->fd = u->be.hangup_fd = -1;
}

static int user_reconnect(struct vhost_backend *b, struct error *err)
{
	struct vhost_user *u = user_of(b);
	int r;

	user_hang_up(b);
	r = dial(u, err);
	if (r == 0)
		r = greet(u, err);
	return r < 0 ? err_wrap(err, r, "vhost-user socket '%s'", u->addr.sun_path) : 0;
}

static void user_close(struct vhost_backend *b)
{
	user_hang_up(b);
	free(user_of(b));
}

static const struct vhost_backend_ops user_ops = {
	.set_features = user_set_features,
	.set_mem = user_set_mem,
	.ring_start = user_ring_start,
	.ring_stop = user_ring_stop,
	.get_config = user_get_config,
	.reconnect = user_reconnect,
	.hang_up = user_hang_up,
	.close = user_close,
};

int vhost_user_open(struct vhost_backend **out, const char *path, unsigned timeout_ms,
		    struct error *err)
{
	struct vhost_user *u = calloc(1, sizeof(*u));
	int r;

	if (!u)
		return err_errno(err, ENOMEM, "vhost-user");
	u->be = (struct vhost_backend){.ops = &user_ops, .hangup_fd = -1};
	u->fd = -1;
	u->timeout_ms = timeout_ms;
	u->addr.sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(u->addr.sun_path)) {
		r = err_set(err, ENAMETOOLONG, "vhost-user socket '%s': its path is too long",
			    path);
		goto fail;
	}
	strcpy(u->addr.sun_path, path);
	r = user_reconnect(&u->be, err);
	if (r < 0)
		goto fail;
	*out = &u->be;
	return 0;

fail:
	user_close(&u->be);
	return r;
}
