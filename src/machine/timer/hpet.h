/* machine/timer/hpet.h - the high precision event timer: a 64-bit counter and three comparators.
 *
 * Registers are accessed by vCPUs, comparators fire on the event loop's thread; one lock, held
 * while lines are set.  Spec: IA-PC HPET 1.0a. */
#pragma once

#include "base/types.h"
#include "bus/irq.h"
#include "machine/memmap.h"

struct bus;
struct error;
struct hpet;
struct state;
struct vclock;

#define HPET_HZ        100000000u
#define HPET_PERIOD_FS 10000000u
#define HPET_ID        0x8086A201u /* vendor, legacy capable, 64 bit, 3 timers, revision 1 */

struct hpet_config {
	struct bus *bus;
	struct vclock *clock;
	struct irq_line gsi[NR_GSIS]; /* .set NULL where no timer can go */
	struct irq_line legacy[2];    /* IRQ 0 and IRQ 8 in legacy replacement mode */
	/* Legacy replacement turned on or off: PIT and RTC let go of, or regain, their IRQs. */
	void (*legacy_mode)(void *opaque, bool on);
	void *legacy_opaque;
	struct msi_sink msi;
};

int hpet_create(struct hpet **out, const struct hpet_config *cfg, struct error *err);
void hpet_destroy(struct hpet *h);
void hpet_reset(struct hpet *h);
void hpet_state(struct state *s, struct hpet *h);
