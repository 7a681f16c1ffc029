/* machine/irqchip/ioapic.h - the I/O APIC: 24 pins, each with an entry that says which CPU.
 *
 * ioapic_set from any thread with a device's lock held; the register page by vCPUs.  One lock;
 * messages leave with it held, towards the LAPICs.
 * Spec: 82093AA datasheet, with the EOI register of version 20h (ICH9 "APIC EOI register"). */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct bus;
struct error;
struct ioapic;
struct state;

int ioapic_create(struct ioapic **out, struct bus *bus, struct msi_sink msi, struct error *err);
void ioapic_destroy(struct ioapic *io);
void ioapic_reset(struct ioapic *io); /* pin levels stay: they belong to the devices */
void ioapic_state(struct state *s, struct ioapic *io);

void ioapic_set(struct ioapic *io, unsigned pin, bool level);
void ioapic_eoi(struct ioapic *io, uint8_t vector); /* broadcast by a LAPIC */

/* For an engine with local APICs of its own: what pin n sends, each time its entry changes and once
 * for all pins when set.  Called with the chip's lock held.  level: the EOI wants to be known. */
void ioapic_set_watch(struct ioapic *io,
		      void (*changed)(void *opaque, unsigned pin, bool level, uint64_t addr,
				      uint32_t data),
		      void *opaque);

/* The registers as an engine that has the chip keeps them; `levels` of the pins are the wires'. */
struct engine_ioapic;
void ioapic_export(struct ioapic *io, struct engine_ioapic *e);
void ioapic_import(struct ioapic *io, const struct engine_ioapic *e, uint32_t levels);
