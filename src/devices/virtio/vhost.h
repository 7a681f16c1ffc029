/* devices/virtio/vhost.h - a virtio device whose rings somebody else serves.
 *
 * The front end is a virtio device like any other to the guest.  Its back end, another process
 * (vhost-user) or the host's kernel (vhost-net), is given guest memory, the addresses of the rings
 * and two eventfds per ring: "kick", which the guest's notification becomes, and "call", which
 * becomes the queue's interrupt.
 *
 * A ring is started by the device's worker at the first notification that finds it able to run, so
 * a driver that starts, a VM that goes on and one that was loaded are one case.  A pause and a
 * reset stop all rings; where the back end stood is then in vq.last_avail and vq.used as with any
 * other device, so states are the same and can be saved.
 *
 * A back end writes to guest memory behind everybody's back: an engine that keeps decoded code of
 * guest pages (soft) must not be given such a device, and mem_dirty_fetch does not see its writes.
 *
 * A back end is as hostile as a guest: what it says is bounded and checked, and it has timeout_ms
 * to answer.  When it breaks the protocol or goes away the device stops with DEVICE_NEEDS_RESET and
 * one line in the log.  After the driver's reset a new connection is tried; without one the front
 * end's .dead serves the queues.
 *
 * Made and destroyed by the VM's thread.  .v.lock guards what is not constant, and is held around
 * all calls of the back end but open and close.
 * Spec: virtio 1.2; the vhost-user protocol. */
#pragma once

#include "base/evloop.h"
#include "devices/virtio/virtio.h"

struct vhost;
struct vhost_backend;

enum { VHOST_TIMEOUT_MS = 5000 };

struct vhost_ring {
	unsigned index;
	uint16_t size, base; /* base: the next entry of the driver's ring to take */
	uint8_t *desc, *driver, *device;
	int kick_fd, call_fd;
};

/* Errors are -errno with a sentence; but for reconnect, any means that the back end is lost. */
struct vhost_backend_ops {
	/* What the driver negotiated, then all RAM: before the first ring starts. */
	int (*set_features)(struct vhost_backend *b, uint64_t features, struct error *err);
	int (*set_mem)(struct vhost_backend *b, struct mem *mem, struct error *err);
	int (*ring_start)(struct vhost_backend *b, const struct vhost_ring *r, struct error *err);
	/* *base: the entry it would have taken next.  Nothing is written to the ring afterwards. */
	int (*ring_stop)(struct vhost_backend *b, unsigned index, uint16_t *base,
			 struct error *err);
	int (*get_config)(struct vhost_backend *b, void *buf, unsigned len, struct error *err);
	/* Optional: connect again; .features and .hangup_fd are new. */
	int (*reconnect)(struct vhost_backend *b, struct error *err);
	void (*hang_up)(struct vhost_backend *b); /* it is lost: let it know */
	void (*close)(struct vhost_backend *b);
};

struct vhost_backend {
	const struct vhost_backend_ops *ops;
	uint64_t features; /* virtio's */
	unsigned max_queues;
	int hangup_fd; /* hangs up when the back end goes away; -1: it cannot */
};

/* A back end that listens on a Unix socket.  path is copied. */
int vhost_user_open(struct vhost_backend **out, const char *path, unsigned timeout_ms,
		    struct error *err);

/* The host kernel's vhost-net on a tap.  tap_fd (net/tap.h) is taken, also on failure; it was
 * opened with virtio headers. */
int vhost_kernel_open(struct vhost_backend **out, int tap_fd, struct error *err);
bool vhost_kernel_there(void); /* and may be opened */

/* What a kind of device adds. */
struct vhost_front {
	/* Serve a queue of a device that has no back end.  May be NULL: the device stops. */
	void (*dead)(struct vhost *h, unsigned queue);
	/* All buffers that are offered are completed soon: wait for them before stopping. */
	bool finishes;
};

struct vhost_line {
	struct vhost *h;
	unsigned index;
	struct ev_fd watch;
	struct vhost_ring ring; /* as started */
	bool started;
};

struct vhost {
	struct virtio_dev v;
	const struct vhost_front *front;
	struct vhost_backend *be;
	struct evloop *loop;
	unsigned nr_queues;
	uint64_t shared; /* features that the back end has and we pass on */
	int kick[VIRTIO_MAX_QUEUES];
	struct ev_fd hangup;
	bool agreed; /* the back end has this driver's features and our memory */
	bool lost, retry;
	uint8_t *config; /* what the device's configuration was made of: the same after a reconnect
			  */
	unsigned config_len;
	struct vhost_line line[VIRTIO_MAX_QUEUES];
};

/* be is taken, also on failure.  vc.features are those of the kind of device: what is offered is
 * what both have.  vc.nr_queues is cut to what the back end has.  The transport is the caller's. */
int vhost_init(struct vhost *h, struct virtio_config *vc, const struct vhost_front *front,
	       struct vhost_backend *be, struct evloop *loop, struct error *err);
void vhost_fini(struct vhost *h); /* after virtio_stop, which the transport's fini is */

/* The bytes of the back end's configuration space that the device uses; once, before vhost_init. */
int vhost_read_config(struct vhost_backend *be, void *buf, unsigned len, struct error *err);

/* False: the state is lost with its back end, so it cannot be saved.  Takes the lock. */
bool vhost_is_whole(struct vhost *h);
