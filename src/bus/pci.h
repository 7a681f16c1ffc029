/* bus/pci.h - a PCI Express root complex with one bus, and what a device on it needs.
 *
 * Writing a device, the whole of it:
 *
 *	struct foo { struct pci_dev pci; ... };
 *
 *	pci_dev_init(&foo->pci, "foo", &(struct pci_id){.vendor = ..., .class_code = 0x020000},
 *	             &foo_pci_ops);
 *	pci_dev_add_bar(&foo->pci, 0, PCI_BAR_MEM64, 16 * KiB, &foo_bar_ops, foo);
 *	pci_dev_add_msix(&foo->pci, 3, 1, 0, 0x800);        (vectors, BAR, table and PBA offsets)
 *	pci_dev_add_pcie(&foo->pci);
 *	r = pci_dev_attach(&foo->pci, host, PCI_ANY_SLOT, err);
 *	...
 *	pci_msix_notify(&foo->pci, 2);  or  pci_intx_set(&foo->pci, level);
 *	...
 *	pci_dev_detach(&foo->pci);      no callback runs after it returned
 *	pci_dev_fini(&foo->pci);
 *
 * BAR callbacks get offsets inside the BAR, however the guest moved it; MSI-X table and PBA
 * accesses never reach them.  Configuration space is handled here; a device that keeps registers of
 * its own there marks them writable (pci_dev_add_cap's mask or pci_cfg_set_writable) and looks at
 * them in its config_written callback.
 *
 * Threads and locks, outer to inner:
 *	host cfg lock   configuration space and where BARs are mapped; held in config_* callbacks
 *	device's own    the device author's
 *	dev irq lock    INTx level, MSI and MSI-X state
 *	host pirq lock  how many devices pull each PIRQ
 * So pci_intx_set and pci_*_notify may be called from any thread with the device's own lock held,
 * and BAR callbacks must not call a function that is marked "cfg lock".
 *
 * Errors: functions that can fail return -errno with a sentence.  Misuse by a device author is an
 * assert.  Whatever a guest writes has a defined, harmless effect.
 *
 * Spec: PCI Local Bus 3.0, PCI Express Base 4.0 chapter 7, Intel ICH9 datasheet (PIRQ routing). */
#pragma once

#include "base/types.h"
#include "bus/bus.h"
#include "bus/irq.h"
#include "bus/pci_regs.h"

#include <pthread.h>

struct pci_dev;
struct pci_host;
struct state;

enum { PCI_NR_PIRQ = 8, PCI_NR_BARS = 6, PCI_NR_DEVFN = 256, PCI_ANY_SLOT = -1 };

#define PCI_DEVFN(slot, fn) (((slot) << 3) | (fn))

/* ---- the host ---- */

struct pci_host_config {
	struct bus *bus;
	struct irq_line pirq[PCI_NR_PIRQ]; /* PIRQ A..H; on q35 GSI 16..23 */
	/* Optional (.set NULL): the 8259 inputs that the ISA bridge's PIRQ route registers choose
	 * among.  pci_assign_resources routes PIRQs to 10 and 11; those must be level triggered
	 * (the machine's ELCR). */
	struct irq_line isa[16];
	struct msi_sink msi;
	gpa_t ecam_gpa;      /* 64 MiB aligned; 0 = no ECAM */
	unsigned ecam_buses; /* 64, 128 or 256: the window is 1 MiB each */
	/* Port CF9, the reset control register, lies inside CF8..CFB and so is answered here. */
	void (*reset)(void *opaque);
	void *reset_opaque;
};

/* Also makes the host bridge 00:00.0 and the ISA bridge 00:1f.0. */
int pci_host_create(struct pci_host **out, const struct pci_host_config *cfg, struct error *err);
void pci_host_destroy(struct pci_host *h); /* devices have been detached */

/* As the bus reset signal: every device's registers return to their defaults, BARs unmapped. */
void pci_host_reset(struct pci_host *h);
void pci_host_state(struct state *s, void *host); /* CF8 and the two bridges */

/* What a firmware does: give every BAR an address, the interrupt line registers a number, and turn
 * decoding on.  64-bit BARs up to 64 MiB go below 4 GiB while there is room, so that 32-bit guests
 * reach them.  A window of size 0 is not used.  -ENOSPC when something does not fit. */
struct pci_window {
	uint64_t base, size;
};
int pci_assign_resources(struct pci_host *h, struct pci_window mmio32, struct pci_window mmio64,
			 struct pci_window io, struct error *err);

/* Which PIRQ (0 = A) pin 1..4 of a slot on bus 0 pulls: for ACPI's _PRT. */
unsigned pci_pirq_of(unsigned slot, unsigned pin);

/* ---- a device ---- */

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

struct pci_id {
	uint16_t vendor, device, subsys_vendor, subsys;
	uint32_t class_code; /* 24 bits: class, subclass, programming interface */
	uint8_t revision;
	uint8_t intx_pin; /* 1..4 = INTA..INTD, 0 = none */
};

struct pci_dev_ops { /* all optional; the config ones run with the host's cfg lock held */
	void (*config_read)(struct pci_dev *d, unsigned off, unsigned len); /* refresh d->cfg */
	void (*config_written)(struct pci_dev *d, unsigned off, unsigned len);
	void (*reset)(struct pci_dev *d); /* bus reset; d->cfg has already been reset */
};

struct pci_bar {
	struct pci_dev *dev;
	enum pci_bar_kind kind;
	uint64_t size;
	const struct io_ops *ops; /* NULL: holds only the MSI-X table */
	void *opaque;
	struct io_ops bus_ops; /* what the bus is given */
	/* Guarded by the host's cfg lock. */
	struct io_region *region; /* NULL: not mapped */
	uint64_t mapped_at;
	bool refused; /* said once that this address was taken */
};

struct pci_msix {
	unsigned nr, bar, cap;
	uint32_t table_off, pba_off;
	uint8_t *table;    /* nr entries of 16 bytes */
	uint64_t *pending; /* bit per vector */
};

struct pci_dev { /* embedded; treat as private apart from cfg inside config_* callbacks */
	const char *name;
	const struct pci_dev_ops *ops;
	struct pci_host *host;
	unsigned devfn;
	struct pci_bar bar[PCI_NR_BARS];
	unsigned cap_end, cap_last;

	/* Written with the cfg lock and irq_lock held, read with either. */
	uint8_t cfg[PCI_CFG_SIZE];
	uint8_t wmask[PCI_CFG_SIZE]; /* constant once attached */
	uint8_t w1c[PCI_CFG_SIZE];   /* constant once attached */

	/* Guards intx_*, the MSI pending register and msix.table, .pending. */
	pthread_mutex_t irq_lock;
	bool intx_level;  /* what the device wants */
	bool intx_driven; /* what its PIRQ has been told */
	unsigned msi_cap; /* offset, 0 = none */
	struct pci_msix msix;
};

void pci_dev_init(struct pci_dev *d, const char *name, const struct pci_id *id,
		  const struct pci_dev_ops *ops);
void pci_dev_fini(struct pci_dev *d);

/* Before attach.  size is a power of two; a MEM64 BAR also takes n + 1. */
void pci_dev_add_bar(struct pci_dev *d, unsigned n, enum pci_bar_kind kind, uint64_t size,
		     const struct io_ops *ops, void *opaque);
/* A capability of len bytes in all; body and wmask are len - 2 bytes that follow id and next
 * pointer (wmask NULL: read-only).  Returns its offset in configuration space. */
unsigned pci_dev_add_cap(struct pci_dev *d, uint8_t id, const void *body, const void *wmask,
			 size_t len);
void pci_dev_add_pm(struct pci_dev *d);
void pci_dev_add_pcie(struct pci_dev *d); /* root complex integrated endpoint */
void pci_dev_add_msi(struct pci_dev *d, unsigned nr_vectors);
int pci_dev_add_msix(struct pci_dev *d, unsigned nr_vectors, unsigned bar, uint32_t table_off,
		     uint32_t pba_off);
void pci_cfg_set_writable(struct pci_dev *d, unsigned off, unsigned len, uint32_t mask);

/* slot_fn: PCI_DEVFN(slot, function) or PCI_ANY_SLOT.  cfg lock. */
int pci_dev_attach(struct pci_dev *d, struct pci_host *h, int slot_fn, struct error *err);
void pci_dev_detach(struct pci_dev *d); /* fine when not attached.  cfg lock. */

/* Part of the device's own state function.  cfg lock. */
void pci_dev_state(struct state *s, struct pci_dev *d);

/* As the guest sees it; len 1, 2 or 4, inside the 4 KiB.  cfg lock. */
uint32_t pci_cfg_read(struct pci_dev *d, unsigned off, unsigned len);
void pci_cfg_write(struct pci_dev *d, unsigned off, uint32_t value, unsigned len);

/* ---- interrupts: any thread ---- */

/* The level of the INTx pin; kept from the wire while MSI or MSI-X is enabled. */
void pci_intx_set(struct pci_dev *d, bool level);
bool pci_msi_enabled(struct pci_dev *d);
bool pci_msix_enabled(struct pci_dev *d);
/* Send a message, or set its pending bit while masked.  With MSI / MSI-X disabled: raise INTx,
 * which the device lowers by pci_intx_set(d, false).  A vector out of range is dropped. */
void pci_msi_notify(struct pci_dev *d, unsigned vector);
void pci_msix_notify(struct pci_dev *d, unsigned vector);
