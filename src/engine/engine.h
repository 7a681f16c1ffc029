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
	 * excepted, hypervisor leaves).  regs: eax ebx ecx edx.  An engine may ask for all leaves
	 * once, in cpu_create, and again when something in them has changed. */
	void (*cpuid)(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t regs[4]);

	/* With local APICs in the engine: the guest ended a level-triggered interrupt.  May be NULL
	 * where the engine keeps none. */
	void (*eoi)(void *opaque, uint8_t vector);
};

enum engine_caps {
	ENGINE_CAP_IRQCHIP = 1 << 0,  /* can keep interrupt chips itself: struct engine_irq */
	ENGINE_CAP_PV_CLOCK = 1 << 1, /* serves the kvm-clock MSRs itself: engine.pv_clock_* */
	ENGINE_CAP_HW = 1 << 2,       /* uses hardware virtualization */
	ENGINE_CAP_TSC_SCALING = 1
				 << 3, /* the guest's TSC can run at another rate than the host's */
	ENGINE_CAP_NESTED = 1 << 4,    /* can offer the guest virtualization of its own */
};

struct engine_vm_config {
	struct mem *mem; /* borrowed; its RAM map is complete */
	unsigned nr_cpus;
	const struct cpu_model *model; /* borrowed; engine/cpu_model.h */
	const char *options; /* what followed the comma in --engine soft,tier=interp; or "" */
	bool sample;         /* see where the time goes: engine_stats.samples */
};

struct engine_debug {
	uint32_t intercept; /* bit n: exception n leaves run with EXIT_DEBUG instead of delivery */
	bool single_step;   /* leave after each instruction, vector 1 */
};

/* What a CPU's thread does with its CPU time. */
enum engine_time {
	ENGINE_TIME_TRANSLATED,  /* translated code */
	ENGINE_TIME_SLOW,        /* one instruction for translated code: slow paths, no template */
	ENGINE_TIME_INTERPRETED, /* instructions in the interpreter */
	ENGINE_TIME_TRANSLATION, /* decoding, translating */
	ENGINE_TIME_DEVICE,      /* devices, called by the CPU */
	ENGINE_TIME_REST,        /* looking up, interrupts and exceptions, being woken */
	ENGINE_TIMES,
};

enum { ENGINE_SAMPLES_PER_S = 1000 }; /* of CPU time */

struct engine_stats {
	uint64_t insns; /* guest instructions retired */
	uint64_t blocks_decoded;
	uint64_t tlb_fills;
	uint64_t smc_hits; /* decoded blocks dropped because their bytes were written */
	uint64_t exits_mmio, exits_pio;
	uint64_t interrupts, exceptions;
	/* A translator's: blocks made into host code, dropped because their bytes changed, jumps
	 * from block to block made direct, times all were given up for room, single instructions
	 * left to the interpreter, times translated code was entered. */
	uint64_t blocks_translated, xblocks_dropped, links, evictions, interp_calls, entries;
	uint64_t
		slow_paths; /* of interp_calls: those with a template, whose quick way did not do */
	uint64_t operands;  /* memory operands met in translated code, where insns are counted */
	uint64_t samples[ENGINE_TIMES];
	bool counted;      /* insns are all, and operands */
	uint64_t compared; /* lockstep: instructions that came out the same both ways */
};

/* --- interrupt chips inside an engine -----------------------------------------------------------
 *
 * An engine may keep the local APICs, or all chips, where an interrupt needs no way through this
 * process.  The machine then routes to these functions and keeps its own chips as a copy: it fills
 * that from the engine before saving and hands it back after loading, so a saved state does not
 * depend on who kept them. */
enum engine_chips {
	ENGINE_CHIPS_NONE,  /* all are the machine's, which drives the CPUs' INTR lines */
	ENGINE_CHIPS_LAPIC, /* the engine has local APICs; CPU 0's INTR line is the 8259 pair's */
	ENGINE_CHIPS_ALL,   /* and the I/O APIC and the 8259 pair */
};

/* A local APIC in the layout of its register page: reg[n] is the register at offset n << 4, in
 * x2APIC mode too (there ID is 32 bits wide and ICR's upper half is in reg[0x31]). */
struct engine_lapic {
	uint64_t base;         /* IA32_APIC_BASE */
	uint64_t tsc_deadline; /* IA32_TSC_DEADLINE; 0: not armed */
	uint64_t pv_eoi;       /* MSR_KVM_PV_EOI_EN */
	uint32_t reg[64];
};

struct engine_ioapic {
	uint32_t select, id;
	uint32_t level; /* bit n: pin n is high */
	uint64_t rte[24];
};

/* One 8259A; ICW and OCW state by its datasheet's names. */
struct engine_pic {
	uint8_t irr, imr, isr;
	uint8_t last_irr; /* levels of the inputs */
	uint8_t priority; /* the input with the lowest priority, plus 1, modulo 8 */
	uint8_t icw2;     /* vector base */
	uint8_t init_state, icw4_needed;
	bool read_isr, poll, special_mask, auto_eoi, rotate_aeoi, special_nested;
	uint8_t elcr;
};

enum { ENGINE_GSI_PIC = 24 };

/* What an event descriptor stands for: a message, or a wire of the chips. */
struct engine_irq_source {
	bool msi;
	uint64_t addr;
	uint32_t data;
	unsigned gsi;    /* when not msi; ENGINE_CHIPS_ALL only */
	int resample_fd; /* gsi, level-triggered: written when the guest has ended it; or -1 */
};

/* A guest write that is a signal and nothing else.  Its value is lost unless it must match. */
struct engine_doorbell {
	uint64_t addr; /* gpa, or port */
	unsigned size; /* 1, 2, 4, 8; 0: any (MMIO only) */
	bool pio, match;
	uint64_t value; /* with match: other values are not this doorbell's */
};

/* Any thread unless said otherwise; 0 or -errno. */
struct engine_irq {
	enum engine_chips (*chips)(struct engine_vm *vm);

	int (*msi_send)(struct engine_vm *vm, uint64_t addr, uint32_t data);
	/* CHIPS_LAPIC: what pin n of the machine's I/O APIC sends as its entry stands, so that the
	 * end of such a level-triggered interrupt comes to ops->eoi.  on = false: nothing. */
	int (*pin_route)(struct engine_vm *vm, unsigned pin, bool on, uint64_t addr, uint32_t data);
	/* CHIPS_ALL: gsi 0..23 is a pin of the I/O APIC, ENGINE_GSI_PIC + n input n of the 8259s.
	 */
	int (*gsi_set)(struct engine_vm *vm, unsigned gsi, bool level);

	/* All vCPUs outside run. */
	int (*lapic_get)(struct engine_cpu *cpu, struct engine_lapic *l);
	int (*lapic_set)(struct engine_cpu *cpu, const struct engine_lapic *l, struct error *err);
	int (*ioapic_get)(struct engine_vm *vm, struct engine_ioapic *io);
	int (*ioapic_set)(struct engine_vm *vm, const struct engine_ioapic *io);
	int (*pic_get)(struct engine_vm *vm, struct engine_pic pic[2]);
	int (*pic_set)(struct engine_vm *vm, const struct engine_pic pic[2]);

	/* Writing 1 to fd interrupts the guest.  *handle names it afterwards; route changes the
	 * message.  The descriptors stay the caller's and open until del. */
	int (*irqfd_add)(struct engine_vm *vm, int fd, const struct engine_irq_source *src,
			 unsigned *handle, struct error *err);
	int (*irqfd_route)(struct engine_vm *vm, unsigned handle, uint64_t addr, uint32_t data);
	void (*irqfd_del)(struct engine_vm *vm, unsigned handle);
};

/* One per engine; a const array of these in programs/ is the list. */
struct engine {
	const char *name; /* "soft", "kvm": as typed by users */
	/* 0 when it works here; -errno with the reason ("no /dev/kvm") otherwise. */
	int (*probe)(struct error *err);
	unsigned (*caps)(void); /* enum engine_caps of this host */

	/* The features of m that this engine cannot give a guest here: `lacks` is as long as
	 * m->features, all zero when there are none.  Before vm_create, which refuses a model that
	 * lacks any.  NULL: gives every model that cpu_model_resolve makes. */
	int (*cpu_lacks)(const struct cpu_model *m, uint64_t *lacks, struct error *err);

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
	/* The rate a resumed guest knows its TSC by; before any of the VM's CPUs runs.  -ENOTSUP
	 * when the host can only give its own and that is more than 250 ppm off. */
	int (*tsc_khz_set)(struct engine_vm *vm, uint64_t khz, struct error *err);

	/* Dirty-page tracking for snapshots and migration: pages written by a vCPU or through mem/.
	 * fetch: bit n of bitmap = page n of [gpa, gpa+size) was written since start or the last
	 * fetch; bits beyond the last page are 0.  When it returns, the bytes of those writes are
	 * in memory and any later write will be in the next fetch.  gpa and size are page-aligned
	 * and inside one RAM range.  One caller at a time, not a vCPU's thread; vCPUs may run. */
	int (*dirty_start)(struct engine_vm *vm, struct error *err);
	int (*dirty_fetch)(struct engine_vm *vm, gpa_t gpa, uint64_t size, uint64_t *bitmap,
			   struct error *err);
	void (*dirty_stop)(struct engine_vm *vm);

	/* With ENGINE_CAP_PV_CLOCK, else NULL: kvm-clock of the VM in nanoseconds; setting tells
	 * the guest that it has been paused.  And MSRs that x86_state does not carry.  All vCPUs
	 * outside run. */
	int (*pv_clock_get)(struct engine_vm *vm, uint64_t *ns);
	int (*pv_clock_set)(struct engine_vm *vm, uint64_t ns);
	int (*msr_get)(struct engine_cpu *cpu, uint32_t index, uint64_t *value);
	int (*msr_set)(struct engine_cpu *cpu, uint32_t index, uint64_t value);

	/* May be NULL: a guest's write to d signals fd and does not leave the engine. */
	int (*doorbell_add)(struct engine_vm *vm, const struct engine_doorbell *d, int fd);
	void (*doorbell_del)(struct engine_vm *vm, const struct engine_doorbell *d, int fd);
	/* May be NULL: guest writes in this range may come late, but before anything else
	 * that leaves the engine; for framebuffers and the like. */
	int (*coalesce_add)(struct engine_vm *vm, uint64_t addr, uint32_t size, bool pio);
	void (*coalesce_del)(struct engine_vm *vm, uint64_t addr, uint32_t size, bool pio);

	const struct engine_irq *irq; /* NULL: keeps no interrupt chips */
};

extern const struct engine engine_soft;
extern const struct engine engine_kvm;
