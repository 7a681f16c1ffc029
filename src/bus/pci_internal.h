/* bus/pci_internal.h - what pci.c, pci_msi.c and pci_host.c share.  Nobody else includes it. */
#pragma once

#include "bus/pci.h"

struct pci_host {
	struct pci_host_config cfg;
	struct io_region *cf8_region, *cfc_region, *ecam_region;

	/* Guards dev[], every device's configuration space and BAR mapping, cf8 and cf9. */
	pthread_mutex_t cfg_lock;
	struct pci_dev *dev[PCI_NR_DEVFN];
	uint32_t cf8;
	uint8_t cf9;
	struct pci_dev host_bridge, isa_bridge;

	/* Guards the next three.  A leaf. */
	pthread_mutex_t pirq_lock;
	unsigned pirq_users[PCI_NR_PIRQ];
	uint8_t pirq_route[PCI_NR_PIRQ]; /* ISA bridge 60..63, 68..6b */
	uint16_t isa_driven;             /* bit n: ISA line n is up because of us */
};

/* Map and unmap BARs until the bus shows what the configuration spaces say.  cfg_lock held. */
void pci_host_remap(struct pci_host *h);
void pci_bar_unmap(struct pci_host *h, struct pci_bar *b);
void pci_dev_reset(struct pci_dev *d); /* cfg_lock held */

/* cfg_lock held. */
uint32_t pci_cfg_read_locked(struct pci_dev *d, unsigned off, unsigned len);
void pci_cfg_write_locked(struct pci_dev *d, unsigned off, uint32_t value, unsigned len);

/* irq_lock held: drive INTx and pending messages as the registers now say. */
void pci_irq_update(struct pci_dev *d);
void pci_msi_reset(struct pci_dev *d); /* irq_lock held */

bool pci_msix_claims(const struct pci_dev *d, unsigned bar, uint64_t off);
uint64_t pci_msix_read(struct pci_dev *d, uint64_t off, unsigned size);
void pci_msix_write(struct pci_dev *d, uint64_t off, uint64_t value, unsigned size);
void pci_msix_state(struct state *s, struct pci_dev *d);

/* One device more or less pulls this PIRQ. */
void pci_pirq_change(struct pci_host *h, unsigned pirq, bool level);
