/* devices/debug/testdev.h - a device whose only use is to test CPUs and interrupt chips with.
 *
 *   E0h..E3h      four bytes that read back as written, in one access of up to 4 bytes
 *   E4h..E7h      a page's address: a host may unmap and map it again; nothing to do here
 *   E8h..EBh      the same four bytes, one byte at a time
 *   2000h..2017h  interrupt line n (global system interrupt n): not 0 raises it, 0 lowers it
 *   FF00_0000     64 KiB of device memory
 *
 * Accesses from any vCPU.  Spec followed: the "pc-testdev" convention of public CPU test suites. */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct bus;
struct error;
struct state;
struct testdev;

enum { TESTDEV_NR_LINES = 24 };

struct testdev_config {
	struct bus *bus;
	struct irq_line line[TESTDEV_NR_LINES];
};

int testdev_create(struct testdev **out, const struct testdev_config *cfg, struct error *err);
void testdev_destroy(struct testdev *t);
void testdev_reset(struct testdev *t);
void testdev_state(struct state *s, struct testdev *t);
