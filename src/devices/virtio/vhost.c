/* The front end that all vhost devices share: see vhost.h. */
#include "devices/virtio/vhost.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "mem/mem.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct log_component log_vhost = LOG_COMPONENT("vhost");

#define FINISH_NS (2 * 1000 * 1000 * 1000ull)

#define RING_FEATURES                                                                              \
	(BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_EVENT_IDX) | BIT(VIRTIO_F_INDIRECT_DESC) |         \
	 BIT(VIRTIO_F_ANY_LAYOUT))

static struct vhost *vhost_of(struct virtio_dev *v)
{
	return container_of(v, struct vhost, v);
}

/* ---- losing the back end: lock held ---- */

static void lose(struct vhost *h, const char *why)
{
	char line[600];

	if (h->lost)
		return;
	h->lost = true;
	h->retry = false;
	for (unsigned i = 0; i < h->nr_queues; i++)
		h->line[i].started = false;
	if (h->be->hangup_fd >= 0)
		ev_fd_del(&h->hangup);
	h->be->ops->hang_up(h->be);
	snprintf(line, sizeof(line), "its back end is lost: %s", why);
	virtio_needs_reset(&h->v, line);
}

static bool has_hung_up(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLRDHUP};

	return poll(&p, 1, 0) > 0;
}

static void hung_up(void *opaque, unsigned events)
{
	struct vhost *h = opaque;

	if (!(events & EV_HANGUP))
		return;
	pthread_mutex_lock(&h->v.lock);
	/* This may be late, and the connection a new one: so look at that. */
	if (!h->lost && has_hung_up(h->be->hangup_fd))
		lose(h, "it has closed the connection");
	pthread_mutex_unlock(&h->v.lock);
}

static int watch_hangup(struct vhost *h)
{
	if (h->be->hangup_fd < 0)
		return 0;
	return ev_fd_add(h->loop, &h->hangup, h->be->hangup_fd, EV_HANGUP, hung_up, h);
}

/* ---- calls: the loop's thread ---- */

static void called(void *opaque, unsigned events)
{
	struct vhost_line *l = opaque;
	struct virtio_dev *v = &l->h->v;
	uint64_t count;

	if (read(l->ring.call_fd, &count, sizeof(count)) < 0)
		return;
	pthread_mutex_lock(&v->lock);
	if (l->started && v->transport.queue_interrupt)
		v->transport.queue_interrupt(v->transport.opaque, l->index);
	pthread_mutex_unlock(&v->lock);
}

static void kick(struct vhost *h, unsigned queue)
{
	uint64_t one = 1;

	/* Full (EAGAIN) means that the back end has been told more often than it can count. */
	if (write(h->kick[queue], &one, sizeof(one)) < 0)
		assert(errno == EAGAIN || errno == EINTR);
}

/* ---- rings: lock held ---- */

static uint8_t *ring_part(struct vhost *h, gpa_t gpa, uint64_t len, unsigned align)
{
	uint8_t *hva;

	if (gpa % align || mem_borrow(h->v.cfg.mem, gpa, len, &hva) < len)
		return NULL;
	return hva;
}

/* virtio 1.2 2.7: sizes and alignment of the three parts, the event fields included. */
static bool ring_place(struct vhost *h, const struct vq *q, struct vhost_ring *r)
{
	r->index = q->index;
	r->size = q->size;
	r->base = q->last_avail;
	r->kick_fd = h->kick[q->index];
	r->desc = ring_part(h, q->desc, 16ull * q->size, 16);
	r->driver = ring_part(h, q->driver, 6 + 2ull * q->size, 2);
	r->device = ring_part(h, q->device, 6 + 8ull * q->size, 4);
	return r->desc && r->driver && r->device;
}

static int agree(struct vhost *h, struct error *err)
{
	int r;

	if (h->agreed)
		return 0;
	r = h->be->ops->set_features(h->be, h->v.features & h->shared, err);
	if (r == 0)
		r = h->be->ops->set_mem(h->be, h->v.cfg.mem, err);
	h->agreed = r == 0;
	return r;
}

static void start(struct vhost *h, struct vhost_line *l)
{
	struct error err = {""};

	if (!ring_place(h, &h->v.vq[l->index], &l->ring))
		return virtio_needs_reset(&h->v, "a virtqueue is not in RAM, or not aligned");
	l->started = true; /* it may call at once */
	if (agree(h, &err) < 0 || h->be->ops->ring_start(h->be, &l->ring, &err) < 0)
		lose(h, err.msg);
}

/* The ring's two indices as they stand in guest memory; racing with whoever writes them. */
static uint16_t index_at(const uint8_t *part)
{
	return le16toh(
		__atomic_load_n((const uint16_t *)(const void *)(part + 2), __ATOMIC_ACQUIRE));
}

/* Not every back end waits for what it has begun when it is told to stop, so we do before; with a
 * limit, as a driver that stands may have written anything there. */
static void wait_finished(struct vhost *h, const struct vhost_line *l)
{
	uint64_t until = clock_mono_ns() + FINISH_NS;

	while (index_at(l->ring.device) != index_at(l->ring.driver) && clock_mono_ns() < until)
		usleep(200);
}

/* What it called last may not have been read from the eventfd yet; one interrupt too many is
 * allowed (virtio 1.2 2.7.7.1). */
static void stop(struct vhost *h, struct vhost_line *l, struct vq *q)
{
	struct error err = {""};
	uint16_t base;

	if (!l->started)
		return;
	if (h->front->finishes)
		wait_finished(h, l);
	if (h->be->ops->ring_stop(h->be, l->index, &base, &err) < 0)
		return lose(h, err.msg);
	l->started = false;
	if (!q->ready)
		return; /* a reset: the queue starts anew */
	q->last_avail = base;
	q->used = q->used_shown = index_at(l->ring.device);
	if (h->front->finishes && q->used != q->last_avail)
		log_warn(&log_vhost, "%s: stopped with %u requests under way", h->v.cfg.name,
			 (uint16_t)(q->last_avail - q->used));
	if (h->v.transport.queue_interrupt)
		h->v.transport.queue_interrupt(h->v.transport.opaque, l->index);
}

static void stop_all(struct vhost *h)
{
	for (unsigned i = 0; i < h->nr_queues; i++)
		stop(h, &h->line[i], &h->v.vq[i]);
}

/* ---- a new connection: worker, lock held ---- */

/* The guest has seen the features and the configuration of the old one. */
static int check_same(struct vhost *h, struct error *err)
{
	uint8_t now[256];
	int r;

	if (h->shared & ~h->be->features)
		return err_set(err, EPROTO, "it has lost features that the guest has seen");
	if (h->nr_queues > h->be->max_queues)
		return err_set(err, EPROTO, "it has fewer queues than the guest has seen");
	if (!h->config_len)
		return 0;
	r = h->be->ops->get_config(h->be, now, h->config_len, err);
	if (r == 0 && memcmp(now, h->config, h->config_len))
		r = err_set(err, EPROTO, "its configuration is another than the guest has seen");
	return r;
}

static bool reconnect(struct vhost *h)
{
	struct error err = {""};
	int r;

	h->retry = false;
	if (!h->be->ops->reconnect)
		return false;
	r = h->be->ops->reconnect(h->be, &err);
	if (r == 0)
		r = check_same(h, &err);
	if (r == 0) {
		r = watch_hangup(h);
		if (r < 0)
			err_errno(&err, -r, "cannot watch it");
	}
	if (r < 0) {
		h->be->ops->hang_up(h->be);
		log_warn(&log_vhost, "%s: has no back end: %s", h->v.cfg.name, err.msg);
		return false;
	}
	log_info(&log_vhost, "%s: connected to its back end again", h->v.cfg.name);
	h->lost = h->agreed = false;
	return true;
}

/* ---- virtio's calls ---- */

static void dead(struct vhost *h, unsigned queue)
{
	if (h->front->dead)
		h->front->dead(h, queue);
	else
		virtio_needs_reset(&h->v, "it has no back end");
}

static void queue_run(struct virtio_dev *v, unsigned queue)
{
	struct vhost *h = vhost_of(v);
	struct vhost_line *l = &h->line[queue];

	if (h->lost && !(h->retry && reconnect(h)))
		return dead(h, queue);
	if (!l->started)
		start(h, l);
	if (l->started)
		kick(h, queue);
}

static void reset(struct virtio_dev *v)
{
	struct vhost *h = vhost_of(v);

	stop_all(h);
	v->status = 0; /* even when the back end was found missing only now */
	h->agreed = false;
	h->retry = h->lost;
}

static void pause_rings(struct virtio_dev *v)
{
	stop_all(vhost_of(v));
}

static const struct virtio_ops vhost_ops = {
	.queue_run = queue_run, .reset = reset, .pause = pause_rings};

/* ---- making one ---- */

static int open_lines(struct vhost *h)
{
	int r = 0;

	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) {
		h->kick[i] = -1;
		h->line[i] = (struct vhost_line){.h = h, .index = i, .ring.call_fd = -1};
	}
	for (unsigned i = 0; i < h->nr_queues && r == 0; i++) {
		h->kick[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		h->line[i].ring.call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (h->kick[i] < 0 || h->line[i].ring.call_fd < 0)
			r = -errno;
	}
	return r;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void close_lines(struct vhost *h)
{
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) {
		close_fd(h->kick[i]);
		close_fd(h->line[i].ring.call_fd);
	}
}

static int watch_lines(struct vhost *h)
{
	int r = 0;

	for (unsigned i = 0; i < h->nr_queues && r == 0; i++)
		r = ev_fd_add(h->loop, &h->line[i].watch, h->line[i].ring.call_fd, EV_READ, called,
			      &h->line[i]);
	return r < 0 ? r : watch_hangup(h);
}

static void unwatch(struct vhost *h)
{
	for (unsigned i = 0; i < h->nr_queues; i++)
		if (h->line[i].watch.loop)
			ev_fd_del(&h->line[i].watch);
	if (h->hangup.loop && !h->lost)
		ev_fd_del(&h->hangup);
	evloop_sync(h->loop);
}

int vhost_read_config(struct vhost_backend *be, void *buf, unsigned len, struct error *err)
{
	return be->ops->get_config(be, buf, len, err);
}

int vhost_init(struct vhost *h, struct virtio_config *vc, const struct vhost_front *front,
	       struct vhost_backend *be, struct evloop *loop, struct error *err)
{
	int r;

	h->shared = be->features & (vc->features | RING_FEATURES);
	h->front = front;
	h->be = be;
	h->loop = loop;
	h->nr_queues = vc->nr_queues = MIN(vc->nr_queues, be->max_queues);
	h->hangup = (struct ev_fd){.fd = -1};
	h->agreed = h->lost = h->retry = false;
	r = open_lines(h);
	if (r < 0) {
		err_errno(err, -r, "%s: cannot make event descriptors", vc->name);
		goto close;
	}
	vc->queue_bells = h->kick;
	r = virtio_init(&h->v, vc, &vhost_ops, err);
	if (r < 0)
		goto close;
	h->v.offered = h->shared;
	r = watch_lines(h);
	if (r == 0)
		return 0;

	err_errno(err, -r, "%s: cannot watch its event descriptors", vc->name);
	unwatch(h);
	virtio_stop(&h->v);
	virtio_fini(&h->v);
close:
	close_lines(h);
	be->ops->close(be);
	return r;
}

void vhost_fini(struct vhost *h)
{
	unwatch(h);
	virtio_fini(&h->v);
	close_lines(h);
	h->be->ops->close(h->be);
}

bool vhost_is_whole(struct vhost *h)
{
	bool whole;

	pthread_mutex_lock(&h->v.lock);
	whole = !h->lost;
	pthread_mutex_unlock(&h->v.lock);
	return whole;
}
