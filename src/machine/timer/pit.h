/* machine/timer/pit.h - the 8254 interval timer, and port 61h, which gates its channel 2.
 *
 * Channel 0 drives `irq`; channel 2's output is read at port 61h (no sound is made).
 * Ports are accessed by vCPUs, the tick comes on the event loop's thread; one lock, held while the
 * line is set.  Spec: 8254 datasheet; port 61h: ICH9 datasheet "NMI Status and Control". */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct bus;
struct error;
struct pit;
struct state;
struct vclock;

#define PIT_HZ 1193182u

int pit_create(struct pit **out, struct bus *bus, struct vclock *clock, struct irq_line irq,
	       struct error *err);
void pit_destroy(struct pit *p);
void pit_reset(struct pit *p);
void pit_state(struct state *s, struct pit *p);
