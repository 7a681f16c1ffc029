/* devices/virtio/transport_pci.h - a virtio device as a PCI function.
 *
 * Modern interface in BAR 4 (with the configuration-space window for drivers without MMIO), MSI-X
 * in BAR 1; with .transitional also the legacy I/O interface in BAR 0 and the old device IDs.
 * Used by the devices' create functions only.  The virtio_dev outlives the virtio_pci.
 *
 * Spec: virtio 1.2 4.1. */
#pragma once

#include "base/types.h"
#include "bus/pci.h"
#include "devices/virtio/virtio.h"

struct virtio_pci_config {
	struct pci_host *host;
	int slot_fn; /* PCI_DEVFN(...) or PCI_ANY_SLOT */
	uint32_t class_code;
	bool transitional;
};

struct virtio_pci {
	struct pci_dev pci;
	struct virtio_dev *v;
	unsigned window_cap; /* VIRTIO_PCI_CAP_PCI_CFG */
	unsigned nr_vectors;

	/* Guarded by v->lock. */
	uint32_t device_feature_sel, driver_feature_sel;
	uint16_t queue_sel;
	uint16_t config_vector, queue_vector[VIRTIO_MAX_QUEUES];
	uint8_t isr;
};

/* Takes nothing; on success the guest may use the device at once. */
int virtio_pci_init(struct virtio_pci *p, struct virtio_dev *v, const struct virtio_pci_config *cfg,
		    struct error *err);
void virtio_pci_fini(struct virtio_pci *p); /* also stops v; virtio_fini is the caller's */
void virtio_pci_state(struct state *s, struct virtio_pci *p); /* includes virtio_state */
