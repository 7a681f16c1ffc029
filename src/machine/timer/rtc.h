/* machine/timer/rtc.h - the MC146818 clock and its CMOS memory (ports 70h, 71h).
 *
 * Runs on the host's time of day in UTC; a guest that sets it moves an offset.  IRQ 8 is high until
 * register C is read.  Ports are accessed by vCPUs, events come on the event loop's thread; one
 * lock, held while the line is set.  Spec: MC146818A datasheet; CMOS layout: IBM PC/AT. */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct bus;
struct error;
struct rtc;
struct state;
struct vclock;

/* For the memory size bytes that firmware leaves in CMOS. */
struct rtc_memory {
	uint64_t below_4g, above_4g; /* bytes of RAM from 0 up, and from 4 GiB up */
};

int rtc_create(struct rtc **out, struct bus *bus, struct vclock *clock, struct irq_line irq,
	       struct rtc_memory memory, struct error *err);
void rtc_destroy(struct rtc *r);
void rtc_reset(struct rtc *r); /* the clock and CMOS run on a battery: interrupts are disabled */
void rtc_state(struct state *s, struct rtc *r);
