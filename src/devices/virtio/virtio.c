/* The virtio device life cycle and its worker thread. */
#include "devices/virtio/virtio.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "state/state.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct log_component log_virtio = LOG_COMPONENT("virtio");

/* ---- the worker ---- */

#define BELL_KICK BIT(32)

static void ring(struct virtio_dev *v)
{
	uint64_t n = BELL_KICK;
	ssize_t r = write(v->bell, &n, sizeof(n));

	assert(r == sizeof(n)); /* it counts to 2^32 before it would block */
}

/* Sleeps until a queue was kicked; 0 = time to end.  A doorbell is all queues'. */
static uint32_t worker_wait(struct virtio_dev *v)
{
	uint32_t all = ~0u >> (32 - v->cfg.nr_queues), kicked = 0;
	uint64_t rings = 0;
	bool stop = false;

	while (!kicked && !stop) {
		ssize_t r = read(v->bell, &rings, sizeof(rings));

		assert(r == sizeof(rings) || errno == EINTR);
		pthread_mutex_lock(&v->work_lock);
		kicked = (uint32_t)rings ? all : v->kicked;
		v->kicked = 0;
		stop = v->stop;
		pthread_mutex_unlock(&v->work_lock);
	}
	return stop ? 0 : kicked;
}

static void *worker_main(void *opaque)
{
	struct virtio_dev *v = opaque;
	uint32_t kicked;

	while ((kicked = worker_wait(v))) {
		for (; kicked; kicked &= kicked - 1) {
			unsigned n = __builtin_ctz(kicked);

			pthread_mutex_lock(&v->lock);
			virtio_begin(v, &v->vq[n]);
			if (virtio_running(v, n))
				v->ops->queue_run(v, n);
			pthread_mutex_unlock(&v->lock);
		}
		if (v->ops->idle)
			v->ops->idle(v);
	}
	return NULL;
}

void virtio_kick(struct virtio_dev *v, unsigned queue)
{
	if (queue >= v->cfg.nr_queues)
		return;
	pthread_mutex_lock(&v->work_lock);
	if (!v->kicked)
		ring(v);
	v->kicked |= 1u << queue;
	pthread_mutex_unlock(&v->work_lock);
}

static void kick_all(struct virtio_dev *v)
{
	for (unsigned i = 0; i < v->cfg.nr_queues; i++)
		virtio_kick(v, i);
}

/* Signals are for the threads that expect them. */
static int worker_start(struct virtio_dev *v)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 512 * KiB);
	r = pthread_create(&v->worker, &attr, worker_main, v);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	v->worker_started = r == 0;
	return -r;
}

/* ---- life ---- */

int virtio_init(struct virtio_dev *v, const struct virtio_config *cfg, const struct virtio_ops *ops,
		struct error *err)
{
	int r = 0;

	assert(cfg->nr_queues && cfg->nr_queues <= VIRTIO_MAX_QUEUES);
	*v = (struct virtio_dev){.cfg = *cfg, .ops = ops};
	v->offered = cfg->features | BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_EVENT_IDX) |
		     BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_ANY_LAYOUT);
	pthread_mutex_init(&v->lock, NULL);
	pthread_mutex_init(&v->work_lock, NULL);
	v->bell = eventfd(0, EFD_CLOEXEC);
	if (v->bell < 0)
		r = -errno;
	pthread_cond_init(&v->released, NULL);
	for (unsigned i = 0; i < cfg->nr_queues && r == 0; i++)
		r = vq_init(&v->vq[i], cfg->mem, i, cfg->queue_size);
	if (r == 0)
		r = worker_start(v);
	if (r < 0) {
		virtio_fini(v);
		return err_errno(err, -r, "%s: cannot start", cfg->name);
	}
	return 0;
}

void virtio_stop(struct virtio_dev *v)
{
	pthread_mutex_lock(&v->work_lock);
	v->stop = true;
	ring(v);
	pthread_mutex_unlock(&v->work_lock);
	if (v->worker_started)
		pthread_join(v->worker, NULL);
	v->worker_started = false;

	pthread_mutex_lock(&v->lock);
	virtio_reset(v);
	pthread_mutex_unlock(&v->lock);
}

void virtio_fini(struct virtio_dev *v)
{
	for (unsigned i = 0; i < v->cfg.nr_queues; i++)
		vq_fini(&v->vq[i]);
	pthread_cond_destroy(&v->released);
	if (v->bell >= 0)
		close(v->bell);
	pthread_mutex_destroy(&v->work_lock);
	pthread_mutex_destroy(&v->lock);
}

static void wait_released(struct virtio_dev *v)
{
	while (v->held)
		pthread_cond_wait(&v->released, &v->lock);
}

void virtio_hold(struct virtio_dev *v)
{
	v->held++;
}

void virtio_release(struct virtio_dev *v)
{
	assert(v->held);
	if (--v->held == 0)
		pthread_cond_broadcast(&v->released);
}

/* The generations go up first, so that whatever still completes is dropped; then we wait, so that
 * when the driver sees the reset done (2.4.2) nobody writes to its memory any more. */
void virtio_reset(struct virtio_dev *v)
{
	if (v->resetting)
		return;
	v->resetting = true;
	for (unsigned i = 0; i < v->cfg.nr_queues; i++)
		vq_reset(&v->vq[i]);
	wait_released(v);
	v->status = 0;
	v->features = 0;
	if (v->ops->reset)
		v->ops->reset(v);
	v->resetting = false;
}

/* 3.1.1: a driver that never says FEATURES_OK is a legacy one, and those may use queues before
 * DRIVER_OK (3.1.2). */
bool virtio_running(const struct virtio_dev *v, unsigned queue)
{
	bool legacy = !virtio_has(v, VIRTIO_F_VERSION_1) && (v->status & VIRTIO_STATUS_DRIVER);

	return !v->resetting && !v->paused && !(v->status & VIRTIO_STATUS_NEEDS_RESET) &&
	       v->vq[queue].ready && (legacy || (v->status & VIRTIO_STATUS_DRIVER_OK));
}

void virtio_pause(struct virtio_dev *v)
{
	pthread_mutex_lock(&v->lock);
	v->paused = true;
	wait_released(v);
	if (v->ops->pause)
		v->ops->pause(v);
	pthread_mutex_unlock(&v->lock);
}

void virtio_resume(struct virtio_dev *v)
{
	pthread_mutex_lock(&v->lock);
	v->paused = false;
	pthread_mutex_unlock(&v->lock);
	kick_all(v); /* notifications of meanwhile, and from before a state was saved */
}

bool virtio_has(const struct virtio_dev *v, unsigned feature)
{
	return v->features & BIT(feature);
}

void virtio_set_features(struct virtio_dev *v, uint64_t features)
{
	if (v->resetting || (v->status & VIRTIO_STATUS_FEATURES_OK))
		return;
	v->features = features;
	for (unsigned i = 0; i < v->cfg.nr_queues; i++) {
		v->vq[i].event_idx = virtio_has(v, VIRTIO_F_EVENT_IDX);
		v->vq[i].indirect = virtio_has(v, VIRTIO_F_INDIRECT_DESC);
	}
}

static bool features_ok(const struct virtio_dev *v)
{
	return !(v->features & ~v->offered) && virtio_has(v, VIRTIO_F_VERSION_1);
}

void virtio_set_status(struct virtio_dev *v, uint8_t status)
{
	uint8_t rising = status & ~v->status;

	if (v->resetting)
		return;
	if (status == 0)
		return virtio_reset(v);
	if ((rising & VIRTIO_STATUS_FEATURES_OK) && !features_ok(v))
		status &= ~VIRTIO_STATUS_FEATURES_OK; /* 2.2: how a device says no */
	v->status = (v->status & VIRTIO_STATUS_NEEDS_RESET) | (status & ~VIRTIO_STATUS_NEEDS_RESET);
	if (!(rising & VIRTIO_STATUS_DRIVER_OK))
		return;
	if (v->ops->driver_ok)
		v->ops->driver_ok(v);
	kick_all(v);
}

void virtio_needs_reset(struct virtio_dev *v, const char *why)
{
	if (v->status & VIRTIO_STATUS_NEEDS_RESET)
		return;
	log_guest(&log_virtio, "%s: stopped until the driver resets it: %s", v->cfg.name, why);
	v->status |= VIRTIO_STATUS_NEEDS_RESET;
	if (v->status & VIRTIO_STATUS_DRIVER_OK)
		virtio_config_changed(v);
}

/* ---- queues, for devices ---- */

static void vq_failed(struct virtio_dev *v, const struct vq *q)
{
	virtio_needs_reset(v, q->error ? q->error : "bad virtqueue");
}

/* A round is bounded so that a driver that feeds a queue without end cannot keep the lock. */
void virtio_begin(struct virtio_dev *v, struct vq *q)
{
	v->budget = 2u * q->size;
}

bool virtio_pop(struct virtio_dev *v, struct vq *q, struct vq_chain *c)
{
	int r;

	if (!virtio_running(v, q->index))
		return false;
	if (v->budget == 0) { /* let the lock go, then come back */
		virtio_kick(v, q->index);
		return false;
	}
	v->budget--;
	r = vq_pop(q, c);
	if (r < 0)
		vq_failed(v, q);
	return r > 0;
}

void virtio_publish(struct virtio_dev *v, struct vq *q)
{
	bool interrupt;

	if (vq_publish(q, &interrupt) < 0)
		vq_failed(v, q);
	else if (interrupt && v->transport.queue_interrupt)
		v->transport.queue_interrupt(v->transport.opaque, q->index);
}

void virtio_push(struct virtio_dev *v, struct vq *q, const struct vq_chain *c, uint32_t written)
{
	if (!vq_is_current(q, c) || (v->status & VIRTIO_STATUS_NEEDS_RESET))
		return;
	if (vq_put(q, c, written) < 0)
		vq_failed(v, q);
	else
		virtio_publish(v, q);
}

bool virtio_more(struct virtio_dev *v, struct vq *q)
{
	int r;

	if (!virtio_running(v, q->index) || v->budget == 0)
		return false;
	r = vq_rearm(q);
	if (r < 0)
		vq_failed(v, q);
	return r > 0;
}

/* ---- configuration ---- */

void virtio_config_changed(struct virtio_dev *v)
{
	v->config_gen++;
	if (v->transport.config_interrupt)
		v->transport.config_interrupt(v->transport.opaque);
}

void virtio_config_read(struct virtio_dev *v, unsigned off, void *buf, unsigned len)
{
	memset(buf, 0, len);
	if (off < v->cfg.config_len)
		memcpy(buf, (const uint8_t *)v->cfg.config + off,
		       MIN(len, v->cfg.config_len - off));
}

void virtio_config_write(struct virtio_dev *v, unsigned off, const void *buf, unsigned len)
{
	if (v->ops->config_write && range_inside(off, len, v->cfg.config_len))
		v->ops->config_write(v, off, buf, len);
}

/* ---- state ---- */

static void load_finish(struct state *s, struct virtio_dev *v)
{
	uint64_t features = v->features;
	bool ok = !(features & ~v->offered);

	state_check(s, ok, "virtio features this build does not offer");
	for (unsigned i = 0; i < v->cfg.nr_queues; i++) {
		v->vq[i].event_idx = virtio_has(v, VIRTIO_F_EVENT_IDX);
		v->vq[i].indirect = virtio_has(v, VIRTIO_F_INDIRECT_DESC);
	}
	kick_all(v); /* a notification may have been under way when the state was taken */
}

void virtio_state(struct state *s, struct virtio_dev *v)
{
	pthread_mutex_lock(&v->lock);
	wait_released(v);
	state_enter(s, "virtio", 1);
	state_u64(s, "features", &v->features);
	state_u8(s, "status", &v->status);
	state_u8(s, "config_gen", &v->config_gen);
	for (unsigned i = 0; i < v->cfg.nr_queues; i++)
		vq_state(s, &v->vq[i]);
	if (state_loading(s))
		load_finish(s, v);
	state_leave(s);
	pthread_mutex_unlock(&v->lock);
}
