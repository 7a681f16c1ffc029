/* bus/irq.h - how an interrupt leaves a device.
 *
 * A device is handed an irq_line or an msi_sink when it is built and knows nothing of what is
 * behind it: our I/O APIC, a kernel's, or a unit test.  Callable from any thread, with the device's
 * own lock held; a sink never calls back into the device. */
#pragma once

#include "base/types.h"

struct irq_line {
	void (*set)(void *opaque, unsigned n, bool level);
	void *opaque;
	unsigned n;
};

static inline void irq_set(const struct irq_line *l, bool level)
{
	if (l->set)
		l->set(l->opaque, l->n, level);
}

struct msi_sink {
	void (*send)(void *opaque, uint64_t addr, uint32_t data);
	void *opaque;
};

static inline void msi_send(const struct msi_sink *s, uint64_t addr, uint32_t data)
{
	if (s->send)
		s->send(s->opaque, addr, data);
}
