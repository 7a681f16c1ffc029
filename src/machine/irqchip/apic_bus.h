/* machine/irqchip/apic_bus.h - all local APICs of the board and the way a message finds them.
 *
 * Sends come from any thread, with a chip's or a device's own lock held.
 * Spec: SDM 3A "Interrupt Distribution Mechanisms", "Message Signalled Interrupts". */
#pragma once

#include "machine/irqchip/lapic.h"

struct apic_bus;

int apic_bus_create(struct apic_bus **out, unsigned nr_cpus, struct vclock *clock, struct mem *mem,
		    const struct lapic_ops *ops, void *opaque, struct error *err);
void apic_bus_destroy(struct apic_bus *b);
void apic_bus_reset(struct apic_bus *b);
void apic_bus_state(struct state *s, struct apic_bus *b);

struct lapic *apic_bus_lapic(struct apic_bus *b, unsigned cpu);

/* from: the sending CPU, for shorthands; any value with APIC_DEST.  true: somebody took it. */
bool apic_bus_send(struct apic_bus *b, unsigned from, const struct apic_msg *m,
		   enum apic_shorthand to);

/* A write of data to FEEx_xxxx by a device or the I/O APIC.  Address bits 11:5 extend the
 * destination to 15 bits, as KVM's interface offers it to guests with more than 255 CPUs. */
bool apic_bus_msi(struct apic_bus *b, uint64_t addr, uint32_t data);

/* The 8259 pair's output, wired to every CPU's LINT0; the NMI button, to every LINT1. */
void apic_bus_lint(struct apic_bus *b, unsigned pin, bool level);
