/* fake_vhost.h - a vhost-user back end for tests, on a thread: it serves a disk in memory, and can
 * be told to misbehave at a request of the protocol. */
#pragma once

#include "base/bytes.h"
#include "test.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { FAKE_SECTORS = 128, FAKE_QUEUES = 4, FAKE_REGIONS = 8, FAKE_LAST_REQUEST = 25 };

enum fault {
	FAULT_NONE,
	FAULT_CLOSE,   /* hangs up instead of answering */
	FAULT_MUTE,    /* takes the request and says nothing */
	FAULT_REFUSE,  /* acknowledges with an error */
	FAULT_REQUEST, /* answers another request */
	FAULT_VERSION, /* of the protocol */
	FAULT_LONG,    /* an answer that says it is 4 GiB */
	FAULT_SHORT,   /* ends in the middle of its answer */
	FAULT_VALUE,   /* a well-formed answer that makes no sense */
};

struct fake_ring {
	uint32_t size;
	uint16_t last;
	uint64_t desc, used, avail;
	int kick, call;
	bool enabled;
};

struct fake_vhost {
	char dir[32], path[64];
	int listen_fd, stop_fd[2];
	pthread_t thread;
	uint64_t features, protocol;
	uint64_t capacity;
	unsigned num_queues;
	uint8_t disk[FAKE_SECTORS * 512];
	_Atomic int fault_request, fault; /* one of enum fault */
	_Atomic unsigned count[FAKE_LAST_REQUEST + 1], connections;
	_Atomic uint64_t got_features;
	_Atomic unsigned got_base[FAKE_QUEUES];

	/* The thread's. */
	int conn;
	struct {
		uint64_t gpa, size, user, offset;
		uint8_t *map;
	} region[FAKE_REGIONS];
	unsigned nr_regions;
	struct fake_ring ring[FAKE_QUEUES];
	uint64_t agreed;
};

static inline uint8_t *fake_at(struct fake_vhost *f, uint64_t addr, uint64_t len, bool user)
{
	for (unsigned i = 0; i < f->nr_regions; i++) {
		uint64_t at = addr - (user ? f->region[i].user : f->region[i].gpa);

		if (range_inside(at, len, f->region[i].size))
			return f->region[i].map + f->region[i].offset + at;
	}
	return NULL;
}

/* Header, one data segment at most, status: what the tests send. */
static inline uint32_t fake_disk_request(struct fake_vhost *f, const uint8_t *table, uint16_t head)
{
	uint8_t *seg[3] = {0};
	uint32_t len[3] = {0}, written = 1;
	unsigned n = 0;
	uint64_t at;

	for (uint16_t i = head; n < 3;) {
		const uint8_t *d = table + 16 * i;

		len[n] = le32_load(d + 8);
		seg[n] = fake_at(f, le64_load(d), len[n], false);
		n++;
		if (!(le16_load(d + 12) & 1))
			break;
		i = le16_load(d + 14);
	}
	at = le64_load(seg[0] + 8) * 512;
	*seg[n - 1] = 0;
	if (n == 3 && !range_inside(at, len[1], sizeof(f->disk))) {
		*seg[2] = 1;
	} else if (n == 3 && le32_load(seg[0]) == 0) {
		memcpy(seg[1], f->disk + at, len[1]);
		written += len[1];
	} else if (n == 3) {
		memcpy(f->disk + at, seg[1], len[1]);
	}
	return written;
}

static inline void fake_serve_ring(struct fake_vhost *f, struct fake_ring *r)
{
	uint8_t *desc = fake_at(f, r->desc, 16ull * r->size, true);
	uint8_t *avail = fake_at(f, r->avail, 6 + 2ull * r->size, true);
	uint8_t *used = fake_at(f, r->used, 6 + 8ull * r->size, true);
	uint64_t count;
	ssize_t n = read(r->kick, &count, sizeof(count));

	while (n > 0 && r->enabled &&
	       r->last != __atomic_load_n((uint16_t *)(void *)(avail + 2), __ATOMIC_ACQUIRE)) {
		uint16_t head = le16_load(avail + 4 + 2 * (r->last % r->size));
		uint8_t *entry = used + 4 + 8 * (r->last % r->size);

		le32_store(entry, head);
		le32_store(entry + 4, fake_disk_request(f, desc, head));
		r->last++;
		__atomic_store_n((uint16_t *)(void *)(used + 2), r->last, __ATOMIC_RELEASE);
		count = 1;
		n = write(r->call, &count, sizeof(count));
	}
}

static inline void fake_reply(struct fake_vhost *f, uint32_t request, const void *p, uint32_t len)
{
	uint32_t head[3] = {request, 5, len};
	uint8_t raw[512];
	int fault = f->fault_request == (int)request ? f->fault : FAULT_NONE;
	size_t total = sizeof(head) + len;

	if (fault == FAULT_MUTE)
		return;
	head[0] += fault == FAULT_REQUEST;
	head[1] = fault == FAULT_VERSION ? 6 : head[1];
	head[2] = fault == FAULT_LONG ? UINT32_MAX : head[2];
	memcpy(raw, head, sizeof(head));
	memcpy(raw + sizeof(head), p, len);
	if (fault == FAULT_VALUE)
		memset(raw + sizeof(head), 0xff, len);
	if (fault == FAULT_SHORT)
		total -= 3;
	if (send(f->conn, raw, total, MSG_NOSIGNAL) < 0 || fault == FAULT_SHORT)
		shutdown(f->conn, SHUT_RDWR);
}

static inline void fake_unmap(struct fake_vhost *f)
{
	for (unsigned i = 0; i < f->nr_regions; i++)
		munmap(f->region[i].map, f->region[i].size + f->region[i].offset);
	f->nr_regions = 0;
}

static inline void fake_set_mem(struct fake_vhost *f, const uint8_t *p, const int *fds)
{
	fake_unmap(f);
	f->nr_regions = MIN(le32_load(p), FAKE_REGIONS);
	for (unsigned i = 0; i < f->nr_regions; i++) {
		const uint8_t *r = p + 8 + 32 * i;

		f->region[i].gpa = le64_load(r);
		f->region[i].size = le64_load(r + 8);
		f->region[i].user = le64_load(r + 16);
		f->region[i].offset = le64_load(r + 24);
		f->region[i].map = mmap(NULL, f->region[i].size + f->region[i].offset,
					PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
		CHECK(f->region[i].map != MAP_FAILED);
		close(fds[i]);
	}
}

static inline void fake_close_ring(struct fake_ring *r)
{
	if (r->kick >= 0)
		close(r->kick);
	if (r->call >= 0)
		close(r->call);
	*r = (struct fake_ring){.kick = -1, .call = -1};
}

static inline void fake_get_config(struct fake_vhost *f, const uint8_t *p, uint32_t len)
{
	uint8_t reply[512] = {0};

	memcpy(reply, p, 12);
	le64_store(reply + 12, f->capacity);
	le32_store(reply + 12 + 20, 512);
	le16_store(reply + 12 + 34, f->num_queues);
	fake_reply(f, 24, reply, len);
}

/* True: has been answered. */
static inline bool fake_get(struct fake_vhost *f, uint32_t request, const uint8_t *p, uint32_t len)
{
	uint64_t queues = f->num_queues;
	uint32_t state[2] = {le32_load(p) % FAKE_QUEUES, 0};

	switch (request) {
	case 1:
		fake_reply(f, request, &f->features, 8);
		return true;
	case 15:
		fake_reply(f, request, &f->protocol, 8);
		return true;
	case 17:
		fake_reply(f, request, &queues, 8);
		return true;
	case 24:
		fake_get_config(f, p, len);
		return true;
	case 11:
		state[1] = f->ring[state[0]].last;
		fake_close_ring(&f->ring[state[0]]);
		fake_reply(f, request, state, 8);
		return true;
	}
	return false;
}

static inline void fake_set(struct fake_vhost *f, uint32_t request, const uint8_t *p,
			    const int *fds)
{
	struct fake_ring *r = &f->ring[le32_load(p) % FAKE_QUEUES];

	switch (request) {
	case 2:
		f->got_features = le64_load(p);
		break;
	case 5:
		fake_set_mem(f, p, fds);
		break;
	case 8:
		r->size = le32_load(p + 4);
		break;
	case 9:
		r->desc = le64_load(p + 8);
		r->used = le64_load(p + 16);
		r->avail = le64_load(p + 24);
		break;
	case 10:
		r->last = le32_load(p + 4);
		f->got_base[le32_load(p) % FAKE_QUEUES] = le32_load(p + 4);
		break;
	case 12:
		r->kick = fds[0];
		break;
	case 13:
		r->call = fds[0];
		break;
	case 16:
		f->agreed = le64_load(p);
		break;
	case 18:
		r->enabled = le32_load(p + 4);
		break;
	}
}

static inline ssize_t fake_receive(int fd, void *buf, size_t len, int *fds)
{
	union {
		char raw[CMSG_SPACE(FAKE_REGIONS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {buf, len};
	struct msghdr h = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control.raw,
			   .msg_controllen = sizeof(control.raw)};
	ssize_t n = recvmsg(fd, &h, MSG_WAITALL);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&h) : NULL;

	if (c && c->cmsg_type == SCM_RIGHTS)
		memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	return n;
}

/* One message; false: the connection has ended. */
static inline bool fake_message(struct fake_vhost *f)
{
	int fds[FAKE_REGIONS] = {-1, -1, -1, -1, -1, -1, -1, -1};
	uint8_t p[512] = {0};
	uint32_t head[3];
	uint64_t ack = 0;
	bool faulty;

	if (fake_receive(f->conn, head, sizeof(head), fds) != sizeof(head) || head[2] > sizeof(p) ||
	    (head[2] && recv(f->conn, p, head[2], MSG_WAITALL) != (ssize_t)head[2]))
		return false;
	atomic_fetch_add(&f->count[MIN(head[0], (uint32_t)FAKE_LAST_REQUEST)], 1);
	faulty = f->fault_request == (int)head[0];
	if (faulty && f->fault == FAULT_CLOSE)
		return false;
	if (fake_get(f, head[0], p, head[2]))
		return true;
	fake_set(f, head[0], p, fds);
	ack = faulty && f->fault == FAULT_REFUSE;
	if (head[1] & 8)
		fake_reply(f, head[0], &ack, 8);
	return true;
}

static inline void fake_connection(struct fake_vhost *f)
{
	struct pollfd p[2 + FAKE_QUEUES] = {{f->stop_fd[0], POLLIN, 0}, {f->conn, POLLIN, 0}};
	bool open = true;

	for (unsigned i = 0; i < FAKE_QUEUES; i++)
		f->ring[i] = (struct fake_ring){.kick = -1, .call = -1};
	while (open) {
		for (unsigned i = 0; i < FAKE_QUEUES; i++)
			p[2 + i] = (struct pollfd){f->ring[i].kick, POLLIN, 0};
		poll(p, ARRAY_SIZE(p), -1);
		for (unsigned i = 0; i < FAKE_QUEUES; i++)
			if (p[2 + i].revents & POLLIN)
				fake_serve_ring(f, &f->ring[i]);
		open = !p[0].revents && (!p[1].revents || fake_message(f));
	}
	close(f->conn);
	for (unsigned i = 0; i < FAKE_QUEUES; i++)
		fake_close_ring(&f->ring[i]);
	fake_unmap(f);
}

static inline void *fake_main(void *arg)
{
	struct fake_vhost *f = arg;
	struct pollfd p[2] = {{f->stop_fd[0], POLLIN, 0}, {f->listen_fd, POLLIN, 0}};

	for (;;) {
		poll(p, 2, -1);
		if (p[0].revents)
			return NULL;
		f->conn = accept(f->listen_fd, NULL, NULL);
		atomic_fetch_add(&f->connections, 1);
		fake_connection(f);
	}
}

/* Fill in what shall differ, then start it. */
static inline void fake_init(struct fake_vhost *f)
{
	memset(f, 0, sizeof(*f));
	f->features = BIT(32) | BIT(30) | BIT(28) | BIT(9) | BIT(6) | BIT(12);
	f->protocol = BIT(0) | BIT(3) | BIT(9) | BIT(12);
	f->capacity = FAKE_SECTORS;
	f->num_queues = 2;
	strcpy(f->dir, "/tmp/vhost-test-XXXXXX");
	CHECK(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/s", f->dir);
}

static inline void fake_start(struct fake_vhost *f)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	strcpy(a.sun_path, f->path);
	f->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK_EQ(0, bind(f->listen_fd, (struct sockaddr *)&a, sizeof(a)));
	CHECK_EQ(0, listen(f->listen_fd, 4));
	CHECK_EQ(0, pipe(f->stop_fd));
	CHECK_EQ(0, pthread_create(&f->thread, NULL, fake_main, f));
}

/* As when the process is killed. */
static inline void fake_stop(struct fake_vhost *f)
{
	CHECK_EQ(1, write(f->stop_fd[1], "", 1));
	pthread_join(f->thread, NULL);
	close(f->stop_fd[0]);
	close(f->stop_fd[1]);
	close(f->listen_fd);
	unlink(f->path);
}

static inline void fake_fini(struct fake_vhost *f)
{
	rmdir(f->dir);
}
