/* devices/vfio/backend.h - what a passed-through device needs of whoever holds the real one.
 *
 * kernel.c implements it on Linux's VFIO; tests have a device that exists in memory only.  Offsets
 * and lengths are bytes; 0 or -errno.  region_* and irq_* may be called from any thread, the rest
 * by the thread that builds the VM. */
#pragma once

#include "base/types.h"

struct error;

enum { VFIO_NR_BARS = 6, VFIO_CONFIG = 7 }; /* regions, as <linux/vfio.h> numbers them */
enum vfio_irq { VFIO_IRQ_INTX, VFIO_IRQ_MSI, VFIO_IRQ_MSIX, VFIO_IRQ_ERR, VFIO_IRQ_REQ };

struct vfio_region {
	uint64_t size; /* 0: there is none */
	bool readable, writable;
};

struct vfio_backend {
	const struct vfio_backend_ops *ops;
};

struct vfio_backend_ops {
	int (*region)(struct vfio_backend *v, unsigned index, struct vfio_region *r);
	int (*region_read)(struct vfio_backend *v, unsigned index, uint64_t off, void *buf,
			   unsigned len);
	int (*region_write)(struct vfio_backend *v, unsigned index, uint64_t off, const void *buf,
			    unsigned len);
	int (*irq_count)(struct vfio_backend *v, enum vfio_irq kind); /* 0: there is none */
	/* fds[0..n) are signalled from now on; n = 0 switches the kind off. */
	int (*irq_set)(struct vfio_backend *v, enum vfio_irq kind, const int *fds, unsigned n);
	int (*irq_unmask)(struct vfio_backend *v, enum vfio_irq kind); /* INTx masks itself */
	int (*reset)(struct vfio_backend *v);                          /* -ENOTSUP: cannot */
	/* Let the device reach [hva, hva+size) at gpa by DMA. */
	int (*dma_map)(struct vfio_backend *v, gpa_t gpa, void *hva, uint64_t size,
		       struct error *err);
	void (*close)(struct vfio_backend *v); /* DMA ends, interrupts end */
};

/* A device of this host: "0000:65:00.0".  Refused with what to do about it when its group is not
 * whole (IOMMU groups are passed through as one), not bound to vfio-pci, or not ours to open. */
int vfio_kernel_open(struct vfio_backend **out, const char *address, struct error *err);

/* What vfio_kernel_open checks first, on a tree that looks like /sys: the group's number. */
int vfio_group_check(const char *sysfs, const char *address, unsigned *group, struct error *err);
