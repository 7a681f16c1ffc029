/* devices/virtio/virtio.h - what every virtio device is, whatever bus carries it.
 *
 * Writing a device: embed struct virtio_dev, fill in struct virtio_ops, call virtio_init.  The
 * driver's notifications arrive at .queue_run on the device's own worker thread, never on a vCPU's.
 * .queue_run takes chains with virtio_pop, completes them with virtio_push and goes round while
 * virtio_more says so:
 *
 *	do {
 *		while (virtio_pop(v, q, &c))
 *			virtio_push(v, q, &c, foo_serve(v, q, &c));
 *	} while (virtio_more(v, q));
 *
 * v->lock guards everything in here, the queues and (by convention) the device's own fields.  All
 * ops run with it held; they may drop it around a slow call, after which a chain popped before may
 * be stale: virtio_push then drops it silently.  Between virtio_hold and virtio_release a reset, a
 * stop and a snapshot wait: so chains popped but not completed while the lock is dropped, and guest
 * memory lent to somebody else, are counted by one hold each.
 *
 * A guest that breaks the rules gets DEVICE_NEEDS_RESET (virtio 1.2 2.1.2) and silence until it
 * resets.  Spec: virtio 1.2 chapters 2 and 3. */
#pragma once

#include "base/types.h"
#include "devices/virtio/queue.h"

#include <pthread.h>

struct error;
struct mem;
struct virtio_dev;

// clang-format off
enum { /* device status, 2.1 */
	VIRTIO_STATUS_ACKNOWLEDGE = 1,  VIRTIO_STATUS_DRIVER      = 2,
	VIRTIO_STATUS_DRIVER_OK   = 4,  VIRTIO_STATUS_FEATURES_OK = 8,
	VIRTIO_STATUS_NEEDS_RESET = 64, VIRTIO_STATUS_FAILED      = 128,
};
enum { /* feature bit numbers, chapter 6 */
	VIRTIO_F_ANY_LAYOUT = 27, VIRTIO_F_INDIRECT_DESC = 28, VIRTIO_F_EVENT_IDX = 29,
	VIRTIO_F_VERSION_1  = 32,
};
enum { VIRTIO_ID_NET = 1, VIRTIO_ID_BLOCK = 2, VIRTIO_ID_CONSOLE = 3, VIRTIO_ID_RNG = 4 };
// clang-format on

enum { VIRTIO_MAX_QUEUES = 32 };

struct virtio_ops {
	void (*queue_run)(struct virtio_dev *v, unsigned queue);
	/* The rest is optional. */
	void (*config_write)(struct virtio_dev *v, unsigned off, const void *buf, unsigned len);
	void (*driver_ok)(struct virtio_dev *v);
	void (*reset)(struct virtio_dev *v); /* nothing is held; queues have been reset */
	void (*idle)(struct virtio_dev *v);  /* on the worker, lock dropped, after each round */
	void (*pause)(struct virtio_dev *v); /* nothing is held, and no queue runs from here on */
};

struct virtio_transport {
	/* Called with v->lock held. */
	void (*queue_interrupt)(void *opaque, unsigned queue);
	void (*config_interrupt)(void *opaque);
	void *opaque;
};

struct virtio_config {
	const char *name; /* borrowed */
	unsigned id;      /* VIRTIO_ID_* */
	struct mem *mem;
	uint64_t features; /* of this kind of device; ring features are added */
	unsigned nr_queues;
	uint16_t queue_size;
	void *config; /* device-specific configuration as the driver reads it; borrowed */
	unsigned config_len;
	/* An eventfd per queue, for who takes the queues' doorbells: somebody else serves them.
	 * NULL: the device's worker does. */
	const int *queue_bells;
};

struct virtio_dev {
	struct virtio_config cfg;
	const struct virtio_ops *ops;
	struct virtio_transport transport;

	/* Guards all below up to the worker's part, and what the embedding device says. */
	pthread_mutex_t lock;
	uint64_t offered, features;
	uint8_t status, config_gen;
	bool resetting;  /* a reset waits for I/O; everything else is ignored meanwhile */
	bool paused;     /* the VM stands: the queues are left alone */
	unsigned budget; /* chains this round may still take */
	unsigned held;   /* see virtio_hold */
	pthread_cond_t released;
	struct vq vq[VIRTIO_MAX_QUEUES];

	pthread_mutex_t work_lock; /* guards kicked and stop */
	uint32_t kicked;           /* bit per queue */
	/* What the worker sleeps on.  Its upper half counts wake-ups by virtio_kick, its lower half
	 * those by an engine that took the queues' doorbells, which do not say whose they are. */
	int bell;
	bool stop;
	pthread_t worker;
	bool worker_started;
};

int virtio_init(struct virtio_dev *v, const struct virtio_config *cfg, const struct virtio_ops *ops,
		struct error *err);
void virtio_stop(struct virtio_dev *v); /* the worker has ended, no guest memory is borrowed */
void virtio_fini(struct virtio_dev *v); /* after virtio_stop */
void virtio_state(struct state *s, struct virtio_dev *v); /* takes the lock */
/* While paused guest memory is not touched: when virtio_pause returns, all I/O under way has been
 * completed, and what the driver offers waits for virtio_resume.  Any thread but the worker. */
void virtio_pause(struct virtio_dev *v);
void virtio_resume(struct virtio_dev *v);

/* ---- for devices: lock held ---- */
bool virtio_has(const struct virtio_dev *v, unsigned feature);
bool virtio_running(const struct virtio_dev *v, unsigned queue);
void virtio_begin(struct virtio_dev *v, struct vq *q); /* a round outside .queue_run */
bool virtio_pop(struct virtio_dev *v, struct vq *q, struct vq_chain *c);
void virtio_push(struct virtio_dev *v, struct vq *q, const struct vq_chain *c, uint32_t written);
bool virtio_more(struct virtio_dev *v, struct vq *q);
void virtio_publish(struct virtio_dev *v, struct vq *q); /* after several vq_put */
void virtio_hold(struct virtio_dev *v);
void virtio_release(struct virtio_dev *v);
void virtio_needs_reset(struct virtio_dev *v, const char *why);
void virtio_config_changed(struct virtio_dev *v);

/* ---- for transports ---- */
void virtio_kick(struct virtio_dev *v, unsigned queue); /* any thread, lock or not */
/* lock held: */
void virtio_reset(struct virtio_dev *v);
void virtio_set_status(struct virtio_dev *v, uint8_t status);
void virtio_set_features(struct virtio_dev *v, uint64_t features);
void virtio_config_read(struct virtio_dev *v, unsigned off, void *buf, unsigned len);
void virtio_config_write(struct virtio_dev *v, unsigned off, const void *buf, unsigned len);
