/* machine/irqchip/gsi.h - the wires between devices and the interrupt chips.
 *
 * Each device gets a source of its own; sources that share a wire are ORed, so that two COM ports
 * on IRQ 4 do not lower each other's request.  An ISA source pulls an 8259 input and an I/O APIC
 * pin, a PCI line one of the two.
 * Sources are made while the board is built.  Setting one: any thread, device locks held.  The one
 * lock is held while the chips are told, which keeps their order that of the devices. */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct error;
struct gsi;
struct ioapic;
struct pic;
struct state;

enum { GSI_NONE = -1 };

int gsi_create(struct gsi **out, struct pic *pic, struct ioapic *ioapic, struct error *err);
void gsi_destroy(struct gsi *g);

/* pic_irq 0..15 and pin 0..23, or GSI_NONE. */
struct irq_line gsi_source(struct gsi *g, int pic_irq, int pin);
struct irq_line gsi_source_isa(struct gsi *g, unsigned irq); /* both, IRQ 0 on pin 2 */

void gsi_state(struct state *s, struct gsi *g);

/* Wires that end in an engine's chips and not in ours; before any vCPU runs.  And which of them are
 * high: bit n = pin n of the I/O APIC. */
void gsi_set_remote(struct gsi *g, void (*pic)(void *opaque, unsigned irq, bool level),
		    void (*pin)(void *opaque, unsigned pin, bool level), void *opaque);
uint32_t gsi_pin_levels(struct gsi *g);
