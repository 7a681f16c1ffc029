/* engine/kvm/kvm.h - the kvm engine's own structures, for the files of engine/kvm/ only.
 *
 *   kvm.c    the engine's table, probing the host        run.c    the run loop and its exits
 *   vm.c     a VM: options, memory slots                 cpu.c    a vCPU: creation, kicks, signals
 *   cpuid.c  what the guest sees of the model            msr.c    which MSRs, filters, MSR exits
 *   state.c  x86_state in and out    xsave.c  x87/SSE/AVX part of it
 *   irq.c    messages, routes, event descriptors         chips.c  chip registers in and out
 *   tsc.c    time-stamp counter, kvm-clock               dirty.c  dirty log and dirty ring
 *   debug.c  breakpoints and single steps for a debugger
 *
 * Threads as engine.h says.  A vCPU's ioctls block while another thread is inside KVM_RUN on it, so
 * what any thread may ask of a vCPU is left in atomics and the vCPU is fetched out (cpu.c).
 * Spec: Linux Documentation/virt/kvm/api.rst. */
#pragma once

#include "engine/engine.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

struct cpu_model;
struct error;
struct mem;

enum { KVM_MAX_SLOTS = 16, KVM_MAX_IRQFDS = 256, KVM_NR_PINS = 24, KVM_NR_PIC_INPUTS = 16 };

struct kvm_slot {
	gpa_t gpa;
	uint64_t size;
	uint8_t *hva;
	uint64_t *pending; /* while tracking: pages the kernel reported and nobody has fetched */
};

/* A row of the kernel's routing table beyond the chips' own. */
struct kvm_irqfd_slot {
	bool used, msi;
	int fd, resample_fd;
	uint64_t addr;
	uint32_t data, gsi;
};

struct kvm_pin {
	bool on;
	uint64_t addr;
	uint32_t data;
};

struct engine_vm {
	int fd;
	unsigned run_size; /* of the mapping of struct kvm_run */
	struct mem *mem;
	const struct cpu_model *model;
	unsigned nr_cpus;
	struct engine_cpu **cpus; /* [nr_cpus]; entries appear as CPUs are created */
	enum engine_chips chips;
	uint32_t pv_features; /* of leaf 40000001h that the kernel serves */

	struct kvm_slot slots[KVM_MAX_SLOTS];
	unsigned nr_slots;

	uint32_t ring_bytes;        /* 0: dirty log */
	pthread_mutex_t dirty_lock; /* guards slots[].pending and every CPU's ring_next */
	atomic_bool tracking;

	uint64_t tsc_khz;  /* the guest's */
	uint64_t host_khz; /* while tsc_scaled */
	bool tsc_scaled;
	/* tsc.c.  Setting is one thread at a time. */
	uint64_t tsc_offset; /* of the CPU set last */
	uint64_t tsc_move;   /* what CPU 0's was last moved by */
	unsigned tsc_round;  /* how often it was */
	bool tsc_offset_known;

	pthread_mutex_t irq_lock; /* guards pins and irqfds, and the kernel's table made of them */
	struct kvm_pin pins[KVM_NR_PINS];
	struct kvm_irqfd_slot irqfds[KVM_MAX_IRQFDS];

	uint64_t msr_mask; /* rows of msr.c's table that this kernel has, bit n = row n */
	bool has_x2apic_api;
	struct kvm_coalesced_mmio_ring *coalesced; /* page in CPU 0's mapping, NULL: none */
	pthread_mutex_t coalesced_lock;            /* one vCPU at a time empties it */
};

struct engine_cpu {
	struct engine_vm *vm;
	unsigned index;
	int fd;
	struct kvm_run *run;
	const struct engine_cpu_ops *ops;
	void *opaque;

	/* From any thread: see cpu.c. */
	_Atomic int tid; /* of the thread inside engine_cpu_run, 0 when none */
	atomic_bool kicked, intr;
	_Atomic unsigned nmis; /* 0..2 not yet given to the kernel */
	_Atomic uint64_t tsc_offset;

	uint64_t tsc_given; /* in the state that was taken last */
	unsigned tsc_round; /* engine_vm.tsc_round this CPU went along with */

	/* The vCPU thread's own. */
	pthread_t thread;
	bool thread_ready;      /* the kick signal is unblocked in .thread */
	bool completing;        /* the last exit wants KVM_RUN to finish the instruction */
	bool halted, wait_sipi; /* ENGINE_CHIPS_NONE: the kernel does not know */
	struct engine_debug debug;
	bool debug_on;

	struct kvm_dirty_gfn *ring;
	uint32_t ring_next;

	_Atomic uint64_t exits_mmio, exits_pio, interrupts, exceptions;
};

static inline bool kvm_has_lapic(const struct engine_vm *vm)
{
	return vm->chips != ENGINE_CHIPS_NONE;
}

/* kvm.c */
int kvm_open(struct error *err); /* a descriptor of /dev/kvm, or -errno with the reason */
int kvm_cap(int fd, unsigned cap);
int kvm_ioctl(int fd, unsigned long req, void *arg); /* again after EINTR; -errno */

/* vm.c */
int kvm_vm_create(struct engine_vm **out, const struct engine_vm_config *cfg, struct error *err);
void kvm_vm_destroy(struct engine_vm *vm);
int kvm_slot_set(struct engine_vm *vm, unsigned n, bool log_dirty);

/* cpu.c */
int kvm_cpu_create(struct engine_cpu **out, struct engine_vm *vm, unsigned index,
		   const struct engine_cpu_ops *ops, void *opaque, struct error *err);
void kvm_cpu_destroy(struct engine_cpu *cpu);
void kvm_cpu_kick(struct engine_cpu *cpu);
void kvm_cpu_intr(struct engine_cpu *cpu, bool level);
void kvm_cpu_nmi(struct engine_cpu *cpu);
void kvm_cpu_stats(struct engine_cpu *cpu, struct engine_stats *st);
void kvm_kick_init(void);                   /* once per process */
void kvm_cpu_enter(struct engine_cpu *cpu); /* this thread runs it now */
void kvm_cpu_leave(struct engine_cpu *cpu);

/* run.c */
enum engine_exit kvm_cpu_run(struct engine_cpu *cpu, struct engine_exit_info *info);
void kvm_drain_coalesced(struct engine_cpu *cpu);
int kvm_coalesce_add(struct engine_vm *vm, uint64_t addr, uint32_t size, bool pio);
void kvm_coalesce_del(struct engine_vm *vm, uint64_t addr, uint32_t size, bool pio);

/* cpuid.c */
int kvm_cpu_lacks(const struct cpu_model *m, uint64_t *lacks, struct error *err);
int kvm_check_model(const struct cpu_model *m, struct error *err);
int kvm_set_cpuid(struct engine_cpu *cpu, struct error *err);
int kvm_host_pv_features(uint32_t *features, struct error *err);

/* msr.c */
int kvm_msr_vm_init(struct engine_vm *vm, struct error *err); /* before CPUs: exits and filter */
void kvm_msr_cpu_init(struct engine_cpu *cpu);                /* which rows exist, once */
int kvm_msrs_get(struct engine_cpu *cpu, struct x86_state *s);
int kvm_msrs_set(struct engine_cpu *cpu, const struct x86_state *s, struct error *err);
int kvm_msr_get(struct engine_cpu *cpu, uint32_t index, uint64_t *value);
int kvm_msr_set(struct engine_cpu *cpu, uint32_t index, uint64_t value);
void kvm_exit_rdmsr(struct engine_cpu *cpu);
void kvm_exit_wrmsr(struct engine_cpu *cpu);

/* state.c, xsave.c */
void kvm_cpu_get(struct engine_cpu *cpu, struct x86_state *s);
int kvm_cpu_set(struct engine_cpu *cpu, const struct x86_state *s, struct error *err);
int kvm_xsave_get(struct engine_cpu *cpu, struct x86_state *s);
int kvm_xsave_set(struct engine_cpu *cpu, const struct x86_state *s);

/* tsc.c */
uint64_t kvm_host_tsc(void);
void kvm_tsc_refresh(struct engine_cpu *cpu); /* outside KVM_RUN */
int kvm_tsc_set(struct engine_cpu *cpu, uint64_t tsc);
bool kvm_tsc_write(struct engine_cpu *cpu, uint32_t index, uint64_t value); /* by the guest */
uint64_t kvm_cpu_tsc(struct engine_cpu *cpu);
uint64_t kvm_tsc_khz(struct engine_vm *vm);
uint64_t kvm_cpu_tsc_to_ns(struct engine_cpu *cpu, uint64_t tsc);
int kvm_tsc_khz_set(struct engine_vm *vm, uint64_t khz, struct error *err);
int kvm_tsc_khz_apply(struct engine_cpu *cpu); /* to a CPU made later */
int kvm_pv_clock_get(struct engine_vm *vm, uint64_t *ns);
int kvm_pv_clock_set(struct engine_vm *vm, uint64_t ns);

/* irq.c, chips.c */
int kvm_irq_vm_init(struct engine_vm *vm, struct error *err);
int kvm_doorbell_add(struct engine_vm *vm, const struct engine_doorbell *d, int fd);
void kvm_doorbell_del(struct engine_vm *vm, const struct engine_doorbell *d, int fd);
int kvm_lapic_get(struct engine_cpu *cpu, struct engine_lapic *l);
int kvm_lapic_set(struct engine_cpu *cpu, const struct engine_lapic *l, struct error *err);
int kvm_ioapic_get(struct engine_vm *vm, struct engine_ioapic *io);
int kvm_ioapic_set(struct engine_vm *vm, const struct engine_ioapic *io);
int kvm_pic_get(struct engine_vm *vm, struct engine_pic pic[2]);
int kvm_pic_set(struct engine_vm *vm, const struct engine_pic pic[2]);
extern const struct engine_irq kvm_irq;

/* dirty.c */
int kvm_dirty_vm_init(struct engine_vm *vm, struct error *err); /* before CPUs */
int kvm_dirty_cpu_init(struct engine_cpu *cpu, struct error *err);
int kvm_dirty_start(struct engine_vm *vm, struct error *err);
int kvm_dirty_fetch(struct engine_vm *vm, gpa_t gpa, uint64_t size, uint64_t *bitmap,
		    struct error *err);
void kvm_dirty_stop(struct engine_vm *vm);
void kvm_dirty_collect(struct engine_vm *vm); /* the rings into the slots' bitmaps */

/* debug.c */
void kvm_cpu_debug(struct engine_cpu *cpu, const struct engine_debug *d);
bool kvm_exit_debug(struct engine_cpu *cpu, struct engine_exit_info *info);
