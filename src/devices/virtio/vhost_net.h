/* devices/virtio/vhost_net.h - a virtio network card that a vhost back end serves: a vhost-user
 * process, or the host's kernel on a tap.
 *
 * One receive and one transmit queue.  The offloads that the back end has are the guest's to take.
 * Created and destroyed by the VM's thread.  See vhost.h.  Spec: virtio 1.2 5.1. */
#pragma once

#include "devices/virtio/transport_pci.h"

struct evloop;
struct vhost_backend;
struct vhost_net;

struct vhost_net_config {
	const char *name; /* borrowed */
	struct pci_host *host;
	int slot_fn;
	bool transitional;
	struct mem *mem;
	struct evloop *loop;
	uint8_t mac[6];
	struct vhost_backend *backend; /* taken, also on failure */
};

int vhost_net_create(struct vhost_net **out, const struct vhost_net_config *cfg, struct error *err);
void vhost_net_destroy(struct vhost_net *n);
void vhost_net_state(struct state *s, void *vhost_net);
struct virtio_dev *vhost_net_dev(struct vhost_net *n);
bool vhost_net_is_whole(struct vhost_net *n); /* else its state is lost: do not save */
