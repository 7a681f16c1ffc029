/* engine/engine.h - what an engine is: something that runs guest CPUs over guest memory.
 *
 * The seam is architectural state plus callbacks.  vm/ talks to an engine through these functions
 * only; the engine talks back through struct engine_cpu_ops.  An engine knows no device, no board.
 *
 * Threads: a VM is created and destroyed by one thread.  engine_cpu_run, _get, _set of one CPU are
 * called by that CPU's own thread (or by another while the CPU is known to be outside run).
 * engine_cpu_kick, engine_cpu_intr and engine_cpu_nmi are callable from any thread at any time. */
#pragma once

#include "base/types.h"
#include "engine/x86_state.h"

struct cpu_model;
struct engine;
struct engine_vm;
struct engine_cpu;
struct error;
struct mem;

enum engine_exit {
	ENGINE_EXIT_KICKED,   /* engine_cpu_kick() was called; nothing else happened */
	ENGINE_EXIT_HALTED,   /* HLT with nothing pending; run again after an event */
	ENGINE_EXIT_SHUTDOWN, /* triple fault; state is that of the first fault */
	ENGINE_EXIT_DEBUG,    /* see engine_debug: *info filled */
	ENGINE_EXIT_ERROR,    /* the engine cannot go on; *info has the sentence */
};

struct engine_exit_info {
	uint8_t vector; /* DEBUG: the intercepted exception; its RIP is the faulting one */
	bool has_error;
	uint32_t error_code;
	uint64_t cr2; /* for #PF: what CR2 would become */
	char message[160];
};

/* What the engine asks of the machine, on the vCPU's thread, with no engine lock held.  `opaque` is
 * what engine_cpu_create was given.  Sizes 1, 2, 4, 8. */
struct engine_cpu_ops {
	uint64_t (*mmio_read)(void *opaque, gpa_t gpa, unsigned size);
	void (*mmio_write)(void *opaque, gpa_t gpa, uint64_t value, unsigned size);
	uint32_t (*pio_read)(void *opaque, uint16_t port, unsigned size);
	void (*pio_write)(void *opaque, uint16_t port, uint32_t value, unsigned size);

	/* MSRs the engine does not keep (APIC, x2APIC, TSC deadline, paravirtual clock).
	 * false: unknown or bad value, the guest gets #GP. */
	bool (*msr_read)(void *opaque, uint32_t index, uint64_t *value);
	bool (*msr_write)(void *opaque, uint32_t index, uint64_t value);

	/* The CPU takes the interrupt engine_cpu_intr announced: its vector, -1 when it has gone.
	 */
	int (*intr_ack)(void *opaque);

	/* The guest has set this CPU's TSC: what was agreed in its terms has to be done again.  May
	 * be NULL. */
	void (*tsc_written)(void *opaque);

	/* CR8 = task priority [7:4]. */
	uint8_t (*cr8_read)(void *opaque);
	void (*cr8_write)(void *opaque, uint8_t value);

	/* VMCALL/VMMCALL at CPL 0.  false: no such interface, the guest gets #UD. */
	bool (*hypercall)(void *opaque, struct engine_cpu *cpu, uint64_t gpr[X86_NR_GPR]);

	/* Before CPUID is answered: the machine corrects what it owns (APIC id, topology, OSXSAVE
	 * excepted, hypervisor leaves).  regs: eax ebx ecx edx. */
	void (*cpuid)(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t regs[4]);
};

enum engine_caps {
	ENGINE_CAP_IRQCHIP = 1 << 0,  /* can keep LAPIC, I/O APIC, PIC and PIT itself */
	ENGINE_CAP_PV_CLOCK = 1 << 1, /* serves the kvm-clock MSRs itself */
	ENGINE_CAP_HW = 1 << 2,       /* uses hardware virtualization */
};

struct engine_vm_config {
	struct mem *mem; /* borrowed; its RAM map is complete */
	unsigned nr_cpus;
	const struct cpu_model *model; /* borrowed; engine/cpu_model.h */
	const char *options; /* what followed the comma in --engine soft,tier=interp; or "" */
};

struct engine_debug {
	uint32_t intercept; /* bit n: exception n leaves run with EXIT_DEBUG instead of delivery */
	bool single_step;   /* leave after each instruction, vector 1 */
};

struct engine_stats {
	uint64_t insns; /* guest instructions retired */
	uint64_t blocks_decoded;
	uint64_t tlb_fills;
	uint64_t smc_hits; /* decoded blocks dropped because their bytes were written */
	uint64_t exits_mmio, exits_pio;
	uint64_t interrupts, exceptions;
};

/* One per engine; a const array of these in programs/ is the list. */
struct engine {
	const char *name; /* "soft", "kvm": as typed by users */
	/* 0 when it works here; -errno with the reason ("no /dev/kvm") otherwise. */
	int (*probe)(struct error *err);
	unsigned (*caps)(void);

	int (*vm_create)(struct engine_vm **out, const struct engine_vm_config *cfg,
			 struct error *err);
	void (*vm_destroy)(struct engine_vm *vm); /* after all its CPUs */

	int (*cpu_create)(struct engine_cpu **out, struct engine_vm *vm, unsigned index,
			  const struct engine_cpu_ops *ops, void *opaque, struct error *err);
	void (*cpu_destroy)(struct engine_cpu *cpu);

	enum engine_exit (*cpu_run)(struct engine_cpu *cpu, struct engine_exit_info *info);
	void (*cpu_kick)(struct engine_cpu *cpu);
	void (*cpu_intr)(struct engine_cpu *cpu, bool level); /* INTR line; sticky until lowered */
	void (*cpu_nmi)(struct engine_cpu *cpu);

	void (*cpu_get)(struct engine_cpu *cpu, struct x86_state *s);
	int (*cpu_set)(struct engine_cpu *cpu, const struct x86_state *s, struct error *err);
	void (*cpu_debug)(struct engine_cpu *cpu, const struct engine_debug *d);
	void (*cpu_stats)(struct engine_cpu *cpu,
			  struct engine_stats *st); /* any thread, approximate */

	/* Guest TSC of this CPU now, and its rate.  For the TSC-deadline timer and kvm-clock.
	 * Any thread. */
	uint64_t (*cpu_tsc)(struct engine_cpu *cpu);
	uint64_t (*tsc_khz)(struct engine_vm *vm);
	/* Host CLOCK_MONOTONIC time at which the guest TSC of this CPU reaches `tsc`. */
	uint64_t (*cpu_tsc_to_ns)(struct engine_cpu *cpu, uint64_t tsc);
};

extern const struct engine engine_soft;
