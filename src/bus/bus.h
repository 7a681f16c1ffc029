/* bus/bus.h - who answers at a port or an MMIO address.
 *
 * The machine owns one bus.  Devices add regions; PCI BARs come and go while the guest runs.
 * bus_pio_* and bus_mmio_* are called by vCPU threads; lookups share a read lock that is dropped
 * before the device's callback runs, so one device never holds up another.  A region may be removed
 * while a callback runs: bus_remove returns after callbacks into that region have ended, unless
 * it is called from inside one.  So whoever removes a region from another place must not hold a
 * lock that the region's callbacks take.
 *
 * An access that nobody answers reads all ones and its write is dropped, as on a PC.
 * Accesses wider than a device's .max_size, or crossing its end, are split by the bus, lowest
 * address first.  An access need not be aligned: a device that cares looks at off. */
#pragma once

#include "base/types.h"

struct error;
struct bus;

/* A write of `size` bytes (0: any) at off is a signal, whatever its value. */
struct io_doorbell {
	uint64_t off;
	unsigned size;
	int fd; /* an eventfd */
};

struct io_ops {
	/* off is relative to the region, size 1, 2, 4 or 8; value in the low bytes.  Either may be
	 * NULL: reads all ones, drops writes. */
	uint64_t (*read)(void *opaque, uint64_t off, unsigned size);
	void (*write)(void *opaque, uint64_t off, uint64_t value, unsigned size);
	unsigned max_size; /* 0 = 4 for ports, 8 for MMIO */

	/* Optional: writes that only say "look here".  Who can (bus_set_doorbells) writes to the
	 * descriptor instead, and .write is not called; elsewhere it is.  Asked when the region
	 * appears: fills at most max, returns how many.  The descriptors outlive the region. */
	unsigned (*doorbells)(void *opaque, struct io_doorbell *out, unsigned max);
};

struct io_region; /* opaque handle */

int bus_create(struct bus **out, struct error *err);
void bus_destroy(struct bus *b);

/* name is borrowed and must outlive the region; overlapping an existing region is -EEXIST. */
int bus_add_pio(struct bus *b, uint16_t port, uint32_t count, const struct io_ops *ops,
		void *opaque, const char *name, struct io_region **out, struct error *err);
int bus_add_mmio(struct bus *b, gpa_t gpa, uint64_t size, const struct io_ops *ops, void *opaque,
		 const char *name, struct io_region **out, struct error *err);
void bus_remove(struct bus *b, struct io_region *r);

/* Somebody who sees guest writes before the bus does, an engine: add says whether it takes the
 * doorbell.  Present regions are offered at once; NULL takes all back.  Before vCPUs run or after;
 * add and del are called from any thread, one at a time. */
struct bus_doorbells {
	bool (*add)(void *opaque, const struct io_doorbell *d, bool pio, uint64_t addr);
	void (*del)(void *opaque, const struct io_doorbell *d, bool pio, uint64_t addr);
};
void bus_set_doorbells(struct bus *b, const struct bus_doorbells *ops, void *opaque);

uint32_t bus_pio_read(struct bus *b, uint16_t port, unsigned size);
void bus_pio_write(struct bus *b, uint16_t port, uint32_t value, unsigned size);
uint64_t bus_mmio_read(struct bus *b, gpa_t gpa, unsigned size);
void bus_mmio_write(struct bus *b, gpa_t gpa, uint64_t value, unsigned size);
