/* machine/pv/kvm_pv.h - KVM's paravirtual interface, so that guests need not calibrate or poll.
 *
 * kvm-clock (system time and wall clock from the TSC), end of interrupt through memory, IPIs to
 * many CPUs by one hypercall.  Calls about a CPU come on that CPU's thread; kvm_pv_resumed and
 * kvm_pv_state with all vCPUs outside the engine.
 * Spec: Linux Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst. */
#pragma once

#include "base/types.h"
#include "engine/x86_state.h"

struct apic_bus;
struct error;
struct kvm_pv;
struct mem;
struct state;
struct vclock;

struct kvm_pv_config {
	unsigned nr_cpus;
	struct mem *mem;
	struct vclock *clock;
	struct apic_bus *apics;
	bool realtime; /* vCPUs are never preempted for long: a hint to the guest */
	uint64_t (*cpu_tsc)(void *opaque, unsigned cpu);
	uint64_t (*cpu_tsc_to_mono_ns)(void *opaque, unsigned cpu, uint64_t tsc);
	void (*wake)(void *opaque, unsigned cpu); /* leave HLT; NULL: not offered to the guest */
	void *opaque;
};

int kvm_pv_create(struct kvm_pv **out, const struct kvm_pv_config *cfg, struct error *err);
void kvm_pv_destroy(struct kvm_pv *pv);
void kvm_pv_set_tsc_khz(struct kvm_pv *pv, uint64_t khz);
void kvm_pv_reset(struct kvm_pv *pv);
void kvm_pv_state(struct state *s, struct kvm_pv *pv);

/* Leaves 0x40000000..0x400000FF; those not in use are all zero. */
void kvm_pv_cpuid(const struct kvm_pv *pv, uint32_t leaf, uint32_t regs[4]);

bool kvm_pv_has_msr(uint32_t index);
bool kvm_pv_msr_read(struct kvm_pv *pv, unsigned cpu, uint32_t index, uint64_t *value);
bool kvm_pv_msr_write(struct kvm_pv *pv, unsigned cpu, uint32_t index, uint64_t value);

/* The guest has set this CPU's TSC: the clock pages that depend on it are written anew. */
void kvm_pv_tsc_written(struct kvm_pv *pv, unsigned cpu);

/* Number in RAX, arguments in RBX, RCX, RDX, RSI; the result goes to RAX. */
void kvm_pv_hypercall(struct kvm_pv *pv, unsigned cpu, uint64_t gpr[X86_NR_GPR]);

/* When an engine serves the clock's MSRs, this is a copy to save and load by and writes nothing to
 * the guest.  All vCPUs outside the engine. */
struct kvm_pv_msrs {
	uint64_t wall_clock, system_time, eoi;
};
void kvm_pv_set_remote(struct kvm_pv *pv, bool remote);
void kvm_pv_export(struct kvm_pv *pv, unsigned cpu, struct kvm_pv_msrs *msrs);
void kvm_pv_import(struct kvm_pv *pv, unsigned cpu, const struct kvm_pv_msrs *msrs);

/* The clock stood still: tell the guest's watchdogs, and start system time from here. */
void kvm_pv_resumed(struct kvm_pv *pv);
