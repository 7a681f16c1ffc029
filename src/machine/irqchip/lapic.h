/* machine/irqchip/lapic.h - one CPU's local APIC, as xAPIC (MMIO) and x2APIC (MSRs).
 *
 * lapic_mmio_*, lapic_msr_*, lapic_ack and lapic_*_tpr are called on the CPU's own thread;
 * lapic_accept, lapic_matches, lapic_lint and the arbitration priority from any thread.
 *
 * Locks: each LAPIC has one.  ops->intr, nmi, init and sipi run with it held, so that two changes
 * of one CPU's lines cannot overtake each other; they must only flag and kick.  ops->send, eoi and
 * pic_ack run with no LAPIC lock held, as they lead to other chips.  Order between chips:
 * PIC, I/O APIC -> LAPIC -> clock.
 *
 * Spec: SDM 3A "Advanced Programmable Interrupt Controller (APIC)", x2APIC chapter included;
 * the paravirtual end of interrupt is described in lapic.c. */
#pragma once

#include "base/types.h"

struct error;
struct lapic;
struct mem;
struct state;
struct vclock;

/* Delivery modes as ICR[10:8], RTE[10:8], MSI data[10:8] and LVT[10:8] encode them. */
enum apic_mode {
	APIC_FIXED,
	APIC_LOWEST,
	APIC_SMI,
	APIC_RESERVED,
	APIC_NMI,
	APIC_INIT,
	APIC_SIPI,
	APIC_EXTINT,
};

/* What travels between APICs. */
struct apic_msg {
	uint32_t dest;
	bool logical;
	bool broadcast; /* dest is all ones in the width of its sender */
	bool level;     /* trigger mode; only I/O APIC and MSI messages */
	uint8_t mode;   /* enum apic_mode */
	uint8_t vector;
};

enum apic_shorthand { APIC_DEST, APIC_SELF, APIC_ALL, APIC_ALL_BUT_SELF };

struct lapic_ops {
	void (*intr)(void *opaque, unsigned cpu, bool level);
	void (*nmi)(void *opaque, unsigned cpu);
	void (*init)(void *opaque, unsigned cpu);
	void (*sipi)(void *opaque, unsigned cpu, uint8_t vector);
	void (*send)(void *opaque, unsigned from, const struct apic_msg *m, enum apic_shorthand to);
	void (*eoi)(void *opaque, uint8_t vector); /* of a level-triggered interrupt */
	int (*pic_ack)(void *opaque);              /* a vector, perhaps the spurious one */
	/* CLOCK_MONOTONIC time at which the CPU's TSC reaches tsc. */
	uint64_t (*tsc_to_mono_ns)(void *opaque, unsigned cpu, uint64_t tsc);
};

#define LAPIC_TIMER_HZ 1000000000u /* before the divider */

/* APIC id = cpu.  mem is for the paravirtual end of interrupt and may be NULL. */
int lapic_create(struct lapic **out, unsigned cpu, struct vclock *clock, struct mem *mem,
		 const struct lapic_ops *ops, void *opaque, struct error *err);
void lapic_destroy(struct lapic *l);

/* Power-on, as a firmware hands over: xAPIC mode, and on CPU 0 virtual wire mode (the 8259 pair
 * reaches the CPU through LINT0), NMI on LINT1. */
void lapic_reset(struct lapic *l);
void lapic_state(struct state *s, struct lapic *l);

/* When an engine has the local APICs, this one is a copy to save and load by: it asks nothing of
 * the CPU and its timer does not run.  export and import are the way out and in; lint0 is the level
 * the 8259 pair has on the pin.  All vCPUs outside the engine. */
struct engine_lapic;
void lapic_set_remote(struct lapic *l, bool remote);
void lapic_export(struct lapic *l, struct engine_lapic *e);
void lapic_import(struct lapic *l, const struct engine_lapic *e, bool lint0);

/* off is inside the 4 KiB page.  What is not an aligned 32-bit register has no effect. */
uint64_t lapic_mmio_read(struct lapic *l, uint64_t off, unsigned size);
void lapic_mmio_write(struct lapic *l, uint64_t off, uint64_t value, unsigned size);
/* Where the page is now; ~0 when it is not decoded (disabled, or x2APIC mode). */
gpa_t lapic_mmio_base(const struct lapic *l);

/* IA32_APIC_BASE, IA32_TSC_DEADLINE and 0x800..0x8FF; lapic_has_msr says which.  false = #GP. */
bool lapic_has_msr(uint32_t index);
bool lapic_msr_read(struct lapic *l, uint32_t index, uint64_t *value);
bool lapic_msr_write(struct lapic *l, uint32_t index, uint64_t value);
void lapic_set_phys_bits(struct lapic *l, unsigned bits); /* of IA32_APIC_BASE; 40 by default */

/* CR8: task priority bits 7:4. */
uint8_t lapic_cr8_read(struct lapic *l);
void lapic_cr8_write(struct lapic *l, uint8_t value);

int lapic_ack(struct lapic *l); /* the vector now in service, -1: nothing to take */

bool lapic_enabled(const struct lapic *l); /* IA32_APIC_BASE.EN, for CPUID */
bool lapic_x2apic(const struct lapic *l);
bool lapic_matches(struct lapic *l, const struct apic_msg *m);
/* false: the APIC is off and the message is lost. */
bool lapic_accept(struct lapic *l, const struct apic_msg *m);
/* For lowest-priority delivery: processor priority, -1 when fixed interrupts are not accepted. */
int lapic_arb_priority(struct lapic *l);
void lapic_lint(struct lapic *l, unsigned pin, bool level); /* pin 0: 8259 pair, pin 1: NMI */

/* Paravirtual end of interrupt (MSR_KVM_PV_EOI_EN): where in guest memory, 0 turns it off. */
void lapic_tsc_written(struct lapic *l); /* the guest set the TSC: a deadline is in its terms */
void lapic_pv_eoi_set(struct lapic *l, bool on, gpa_t gpa);
