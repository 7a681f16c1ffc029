/* devices/vfio/vfio_pci.h - a PCI device of the host in the guest's hands.
 *
 * The guest gets a configuration space of ours that looks like the device's: BARs are placed by the
 * guest without the device's knowledge, MSI and MSI-X go through our tables, everything else of it
 * passes through where it lies.  BAR accesses go to the device; DMA goes to guest memory, all of
 * which is mapped (and locked) for it.
 *
 * When the host wants the device back, or it breaks down, it leaves the guest's bus at once, as a
 * card that is pulled out.
 *
 * Created and destroyed by the VM's thread; interrupts are served on the loop's. */
#pragma once

#include "base/types.h"
#include "devices/vfio/backend.h"

struct error;
struct evloop;
struct mem;
struct pci_host;
struct vfio_pci;

struct vfio_pci_config {
	const char *name; /* borrowed */
	struct pci_host *host;
	int slot_fn; /* PCI_DEVFN or PCI_ANY_SLOT */
	struct mem *mem;
	struct evloop *loop;
	struct vfio_backend *backend; /* taken, also on failure */
};

int vfio_pci_create(struct vfio_pci **out, const struct vfio_pci_config *cfg, struct error *err);
void vfio_pci_destroy(struct vfio_pci *d); /* the loop has ended, or it is its thread */
/* Pull it out of the guest; destroy is still needed.  The loop's thread. */
void vfio_pci_unplug(struct vfio_pci *d);
bool vfio_pci_present(const struct vfio_pci *d);
