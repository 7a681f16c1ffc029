/* devices/virtio/rng.h - virtio entropy device fed by getrandom(2).
 *
 * One queue.  At most 4 KiB are filled for one buffer (the used length says how many), so a guest
 * cannot make the host produce gigabytes in one request.  Spec: virtio 1.2 5.4. */
#pragma once

#include "devices/virtio/transport_pci.h"

struct virtio_rng;

struct virtio_rng_config {
	const char *name; /* borrowed */
	struct pci_host *host;
	int slot_fn;
	bool transitional;
	struct mem *mem;
};

int virtio_rng_create(struct virtio_rng **out, const struct virtio_rng_config *cfg,
		      struct error *err);
void virtio_rng_destroy(struct virtio_rng *r);
void virtio_rng_state(struct state *s, void *virtio_rng);
struct virtio_dev *virtio_rng_dev(struct virtio_rng *d); /* to pause it */
