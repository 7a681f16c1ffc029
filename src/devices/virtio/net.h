/* devices/virtio/net.h - virtio network card on a host-side peer.
 *
 * One receive and one transmit queue; MAC, STATUS, MRG_RXBUF.  No offloads: frames carry their own
 * checksums.  Transmission runs on the device's worker; frames from the peer arrive by
 * net->receive on the peer's thread and are refused (net_rx_ready follows) while the guest has no
 * buffers.
 *
 * create sets net->receive and does not take net; destroy detaches from it, then the caller may
 * destroy the peer.  Spec: virtio 1.2 5.1. */
#pragma once

#include "devices/virtio/transport_pci.h"

struct net;
struct virtio_net;

struct virtio_net_config {
	const char *name; /* borrowed */
	struct pci_host *host;
	int slot_fn;
	bool transitional;
	struct mem *mem;
	struct net *net;
	uint8_t mac[6];
};

int virtio_net_create(struct virtio_net **out, const struct virtio_net_config *cfg,
		      struct error *err);
void virtio_net_destroy(struct virtio_net *n);
void virtio_net_state(struct state *s, void *virtio_net);
struct virtio_dev *virtio_net_dev(struct virtio_net *d); /* to pause it */
/* Pull or plug the cable.  Any thread. */
void virtio_net_set_link(struct virtio_net *n, bool up);
