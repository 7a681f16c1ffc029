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
