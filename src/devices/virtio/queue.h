/* devices/virtio/queue.h - a split virtqueue, seen from the device.
 *
 * The ring lives in guest memory and the guest may rewrite any byte of it at any time.  So each
 * descriptor is copied once and only the copy is looked at; a chain is at most size_max long; and a
 * chain taken before a reset can be recognised afterwards by its generation and is then dropped.
 *
 * Not thread-safe: the lock of the device that owns the queue guards all of it.  Whatever the guest
 * did wrong comes back as -EINVAL or -EFAULT with vq.error set; the device then asks for a reset.
 *
 * Spec: virtio 1.2 2.7 (split virtqueues). */
#pragma once

#include "base/types.h"

#include <sys/uio.h>

struct mem;
struct state;

struct vq_seg {
	gpa_t gpa;
	uint32_t len;
};

/* One request: nr_out segments the device reads, then nr_in it writes.  seg points into the queue
 * and is good until the next vq_pop. */
struct vq_chain {
	uint16_t head;
	uint32_t gen;
	unsigned nr_out, nr_in;
	uint64_t out_len, in_len; /* bytes */
	const struct vq_seg *seg;
};

struct vq {
	struct mem *mem;
	unsigned index;
	uint16_t size_max;  /* power of two; what the device offers */
	struct vq_seg *seg; /* size_max of them: the chain popped last */

	uint16_t size;
	bool ready;
	bool event_idx, indirect; /* negotiated */
	gpa_t desc, driver, device;
	uint16_t last_avail;       /* next entry of the driver's ring to take */
	uint16_t used, used_shown; /* used entries written; of those, published */
	uint32_t gen;              /* goes up with each reset */
	const char *error;         /* what the guest did wrong */
};

int vq_init(struct vq *q, struct mem *mem, unsigned index, uint16_t size_max);
void vq_fini(struct vq *q);
void vq_reset(struct vq *q);
void vq_state(struct state *s, struct vq *q);

/* The legacy layout: everything follows from one page-aligned address (virtio 1.2 2.7.2). */
void vq_set_legacy_address(struct vq *q, gpa_t gpa);

/* 1 = *c is the next chain, 0 = none waiting, or -errno. */
int vq_pop(struct vq *q, struct vq_chain *c);
/* Take back the last n pops, whose chains were not completed. */
void vq_unpop(struct vq *q, uint16_t n);
bool vq_is_current(const struct vq *q, const struct vq_chain *c);

/* Complete a chain into which `written` bytes were written.  The driver sees it at vq_publish,
 * which says in *interrupt whether the driver asked to be told. */
int vq_put(struct vq *q, const struct vq_chain *c, uint32_t written);
int vq_publish(struct vq *q, bool *interrupt);

/* Ask to be notified of the next buffer.  1 = there already is one, 0 = none, or -errno. */
int vq_rearm(struct vq *q);

/* The bytes of a chain as two flat runs, the readable and the writable one.
 * -EINVAL when [off, off+len) is not inside the run, -EFAULT when it is not RAM. */
int vq_chain_read(struct vq *q, const struct vq_chain *c, uint64_t off, void *buf, uint64_t len);
int vq_chain_write(struct vq *q, const struct vq_chain *c, uint64_t off, const void *buf,
		   uint64_t len);
/* The same range borrowed for a system call: how many of the max iovecs were filled. */
int vq_chain_borrow(struct vq *q, const struct vq_chain *c, bool writable, uint64_t off,
		    uint64_t len, struct iovec *iov, unsigned max);
/* After a system call wrote into the first len bytes of the writable run. */
void vq_chain_wrote(struct vq *q, const struct vq_chain *c, uint64_t len);
