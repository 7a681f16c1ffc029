/* machine/irqchip/pic.h - the 8259A pair of a PC, with ELCR.
 *
 * pic_set from any thread with a device's lock held; ports and pic_ack by vCPUs.  One lock for both
 * chips; the output goes to `out` (LINT0) with it held.
 * Spec: 8259A datasheet; ELCR: ICH9 datasheet "Edge/Level Control". */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct bus;
struct error;
struct pic;
struct state;

int pic_create(struct pic **out, struct bus *bus, struct irq_line output, struct error *err);
void pic_destroy(struct pic *p);
void pic_reset(struct pic *p); /* input levels stay: they belong to the devices */
void pic_state(struct state *s, struct pic *p);

/* The level at LINT0 now.  And the registers as an engine that has the chips keeps them; levels of
 * the inputs are the devices' and stay. */
struct engine_pic; /* e: two of them */
bool pic_output(struct pic *p);
void pic_export(struct pic *p, struct engine_pic *e);
void pic_import(struct pic *p, const struct engine_pic *e);

void pic_set(struct pic *p, unsigned irq, bool level); /* 0..15; 2 is the cascade and ignored */
int pic_ack(struct pic *p); /* the two INTA cycles: a vector, perhaps a spurious one */

/* As a firmware leaves it: initialised, every input masked, PCI's inputs level-triggered. */
void pic_firmware(struct pic *p, uint16_t level_irqs);
