/* devices/virtio/vhost_blk.h - a virtio disk that a vhost-user back end serves.
 *
 * Its size, limits and features are what the back end says they are when it is created.  Without a
 * back end (it went away, and none was there after the guest's reset) requests are I/O errors.
 * Created and destroyed by the VM's thread.  See vhost.h.  Spec: virtio 1.2 5.2. */
#pragma once

#include "devices/virtio/transport_pci.h"

struct evloop;
struct vhost_backend;
struct vhost_blk;

struct vhost_blk_config {
	const char *name; /* borrowed */
	struct pci_host *host;
	int slot_fn;
	bool transitional;
	struct mem *mem;
	struct evloop *loop;
	unsigned max_queues;           /* as many as there are virtual CPUs is best */
	struct vhost_backend *backend; /* taken, also on failure */
};

int vhost_blk_create(struct vhost_blk **out, const struct vhost_blk_config *cfg, struct error *err);
void vhost_blk_destroy(struct vhost_blk *b);
void vhost_blk_state(struct state *s, void *vhost_blk);
struct virtio_dev *vhost_blk_dev(struct vhost_blk *b);
uint64_t vhost_blk_size(const struct vhost_blk *b); /* bytes */
bool vhost_blk_is_whole(struct vhost_blk *b);       /* else its state is lost: do not save */
