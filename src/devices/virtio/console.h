/* devices/virtio/console.h - virtio console with one port, on a chardev.
 *
 * create sets the chardev's handlers and does not take it; destroy unsets them, then the caller may
 * close the chardev.  Destroy on the chardev's event loop, or with that stopped.
 * Spec: virtio 1.2 5.3. */
#pragma once

#include "devices/virtio/transport_pci.h"

struct chardev;
struct virtio_console;

struct virtio_console_config {
	const char *name; /* borrowed */
	struct pci_host *host;
	int slot_fn;
	bool transitional;
	struct mem *mem;
	struct chardev *chr;
};

int virtio_console_create(struct virtio_console **out, const struct virtio_console_config *cfg,
			  struct error *err);
void virtio_console_destroy(struct virtio_console *c);
void virtio_console_state(struct state *s, void *virtio_console);
struct virtio_dev *virtio_console_dev(struct virtio_console *d); /* to pause it */
