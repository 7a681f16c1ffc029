/* engine/soft/cpu.h - one guest CPU inside the soft engine.
 *
 * Only files of engine/soft include this.  Everything here belongs to the vCPU's own thread except
 * the fields said to be atomic.
 *
 * The rules that exec functions keep (int.c, string.c, system.c, vec*.c ...):
 *   - While exec runs, cpu->rip is the address of the NEXT instruction and cpu->in the current one;
 *     the current one's address is cpu->rip - in->len (insn_start_rip).
 *   - A fault (cpu_fault and friends) does not return: it unwinds to the run loop by a long jump
 *     and the instruction restarts.  So nothing the guest can see changes before the last point
 *     that can fault: check and read everything, then write.
 *   - Memory goes through access.h only.
 *   - No libc and no floating point between guest instructions: guest x87/SSE/AVX state may be
 *     live in the host's registers (vec.h).  Call vec_release() before leaving the engine's code.
 *     The folder is compiled with -mgeneral-regs-only. */
#pragma once

#include "base/types.h"
#include "engine/cpu_model.h"
#include "engine/engine.h"
#include "engine/soft/insn.h"
#include "engine/x86_defs.h"
#include "engine/x86_state.h"
#include "mem/mem.h"

#include <stdatomic.h>
#include <time.h>

/* --- software TLB ------------------------------------------------------------------------------
 * One struct tlb per (access class x address-space slot).  An entry matches when
 *     tag == (linear + size - 1) & PAGE_MASK      at index (linear >> 12) % TLB_ENTRIES
 * (so an access that leaves its page misses) and then hva = linear + addend.
 * The tag of an invalid entry is TLB_INVALID, never a page address.
 * wr has no entry for: MMIO, pages whose code_lines != 0, clean PTEs (D=0), and, while dirty
 * tracking is on, pages not yet marked dirty.  rd and wr never map MMIO. */
#define TLB_ENTRIES 4096u
#define TLB_INVALID (~0ull)

struct tlb_entry {
	uint64_t tag;
	uint64_t addend;
};

struct tlb {
	struct tlb_entry rd[TLB_ENTRIES], wr[TLB_ENTRIES], ex[TLB_ENTRIES];
	/* Beside each ex entry: the translator's number of the page of code it maps, or 0. */
	uint32_t exid[TLB_ENTRIES];
};

/* Who is asking: user (CPL 3); supervisor with SMAP in force (CPL<3, CR4.SMAP=1, AC=0 or an
 * implicit access); supervisor without. */
enum tlb_class { TLB_USER, TLB_SUPER_SMAP, TLB_SUPER, TLB_NR_CLASSES };
#define TLB_SLOTS 8u /* address spaces kept by PCID/CR3 at once */

/* --- events a vCPU looks at between blocks (cpu->events, atomic) -------------------------------
 */
enum {
	CPU_EV_KICK = 1 << 0, /* leave engine_cpu_run */
	CPU_EV_INTR = 1 << 1, /* INTR line is high */
	CPU_EV_NMI = 1 << 2,
	CPU_EV_PURGE = 1 << 3,  /* drop write entries of pages that became code pages */
	CPU_EV_STEP = 1 << 4,   /* one instruction at a time: engine_debug.single_step */
	CPU_EV_INJECT = 1 << 5, /* cpu->inject holds an event to deliver first */
	CPU_EV_NMI2 = 1 << 6,   /* one more NMI came before the first was taken: run.c */
	CPU_EV_CODE = 1 << 7,   /* others have written code: xlat_check_pages */
};

/* cpu->int_shadow, as x86_state.int_shadow.  STI (when IF was 0) and loads of SS set it; such rows
 * are INSN_END, and the run loop runs the next instruction alone. */
enum { CPU_SHADOW_STI = 1, CPU_SHADOW_SS = 2 };

/* Why the run loop was left by cpu_unwind(). */
enum cpu_unwind {
	UNWIND_FAULT = 1, /* cpu->fault is filled: deliver it */
	UNWIND_EXIT,  /* cpu->exit is filled: return from engine_cpu_run, rip is already right */
	UNWIND_AGAIN, /* state changed under the block: look up rip and go on */
};

struct cpu_fault_info {
	uint8_t vector;
	bool has_error;
	uint32_t error;
	uint64_t cr2; /* #PF */
};

enum { CPU_IDLE = 0xff };

/* An event that another engine (or a saved state) had accepted but not delivered. */
struct cpu_inject {
	uint8_t type, vector; /* enum x86_event_type */
	bool has_error;
	uint32_t error;
};

/* Segment register: the state plus what makes checks quick. */
struct cpu_seg {
	uint64_t base;
	uint32_t limit, attr;
	uint16_t selector;
	uint8_t flat; /* SEG_FLAT_*: all offsets of 32 bits are fine for that access */
};
enum { SEG_FLAT_READ = 1, SEG_FLAT_WRITE = 2 };

enum paging { PAGING_NONE, PAGING_2LEVEL, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL };

/* Where the last x87 instruction and its memory operand were.  The host's own pointers name code
 * of ours, so the guest's are kept here (SDM 1 "x87 FPU Instruction and Data Pointers"): vec_x87.c
 */
struct x87_ptr {
	uint64_t ip, dp; /* offsets in their segments */
	uint16_t cs, ds, op;
};

struct block;
struct xlat;
struct xlat_jump;
struct mmu;
struct soft_vm;
struct vec_state;

/* What the engine's own code is about, where RIP and cpu->in do not tell: sample.h. */
enum cpu_doing { CPU_DOING_REST, CPU_DOING_SLOW, CPU_DOING_TRANSLATION, CPU_DOING_DEVICE };

/* Pages whose code others have written since this vCPU last looked; any thread.  Too many: all. */
enum { CODE_NEWS = 120 };
struct code_news {
	_Atomic bool lock; /* guards the rest */
	bool all;
	unsigned nr;
	struct mem_page *page[CODE_NEWS];
};

struct cpu {
	/* Reached by 16-bit offsets from struct insn: keep at the start. */
	uint64_t gpr[X86_NR_GPR];
	uint64_t rip;     /* of the next instruction while exec runs */
	uint64_t zero;    /* always 0 */
	uint64_t scratch; /* a base for addresses that no register holds: POP [RSP+n] */
	struct cpu_seg seg[X86_NR_SEG];

	/* Arithmetic flags (CF PF AF ZF SF OF) live in cc, in RFLAGS positions, other bits of cc
	 * are garbage; all other flags live in rflags, whose arithmetic bits are garbage.  Use
	 * cpu_rflags() and cpu_set_rflags(). */
	uint64_t cc, rflags;

	const struct insn *in; /* current instruction; NULL between instructions */
	/* The block being run ends here.  Set to NULL (cpu_stop_block) to end it after the current
	 * instruction: code was written, or something the block relies on changed. */
	const struct insn *run_end;
	const struct insn *run_first; /* first of those being run; for counting */
	struct tlb *tlb;              /* data accesses of the current CPL, AC and CR3 */
	struct tlb *tlb_sys;          /* implicit supervisor accesses (descriptor tables, TSS) */
	struct tlb *tlb_super;        /* supervisor accesses that SMAP does not look at */

	uint8_t cpl;
	uint8_t mode;      /* enum insn_mode: how CS:RIP decodes */
	bool long_mode;    /* EFER.LMA */
	bool real;         /* CR0.PE = 0 */
	bool v86;          /* EFLAGS.VM */
	uint64_t sp_mask;  /* which bits of RSP a push changes: 2^16-1, 2^32-1, ~0 */
	uint64_t ip_mask;  /* likewise for RIP */
	uint32_t mode_key; /* everything about the mode that decoded blocks depend on */

	_Atomic uint32_t events;
	uint8_t int_shadow; /* X86 shadow bits covering the next instruction */
	bool nmi_masked;
	bool halted, wait_sipi;

	uint64_t cr0, cr2, cr3, cr4, efer, xcr0;
	uint64_t dr[4], dr6, dr7;
	struct cpu_seg ldtr, tr;
	struct x86_table gdtr, idtr;
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, tsc_aux, misc_enable, spec_ctrl, xss;
	uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_var[16];
	uint64_t tsc_offset, tsc_adjust; /* guest TSC = host TSC + tsc_offset */
	uint32_t pkru;

	struct vec_state *vec; /* x87/SSE/AVX state: vec.h */
	bool vec_live;         /* guest state is in the host's registers */
	struct x87_ptr x87;

	/* Translator: xlat_int.h */
	struct xlat *xlat;
	uint32_t xl_flags;  /* guest flags as LAHF and SETO AL leave them in EAX */
	uint32_t xl_events; /* events that end translated code */
	struct code_news news;
	uint64_t xl_host_rsp, xl_rsp_limit, xl_target, xl_kept;
	struct tlb *xl_gs; /* what the host's GS base is */
	uint64_t xl_sti;   /* RIP in the shadow of an STI, perhaps; or 0: xlat_sys.c */
	unsigned xl_left;  /* instructions of the block that were counted and have not run */
	struct xlat_jump *xl_jump;

	/* MMU: mmu.c */
	struct mmu *mmu;
	uint64_t pdpte[4];           /* PAE paging: loaded with CR3 */
	uint64_t canon_half;         /* 2^47, or 2^56 with CR4.LA57: cpu_canonical() */
	uint8_t paging;              /* enum paging */
	struct cpu_fault_info fault; /* the fault being unwound */
	enum engine_exit exit;       /* for UNWIND_EXIT */
	struct engine_exit_info exit_info;
	void *unwind_buf[5];      /* __builtin_setjmp of the run loop */
	uint8_t unwind_why;       /* enum cpu_unwind */
	uint8_t delivering;       /* vector of the exception in exc_deliver, else CPU_IDLE */
	struct cpu_inject inject; /* valid while CPU_EV_INJECT */

	struct soft_vm *vm;
	unsigned index;
	const struct engine_cpu_ops *ops;
	void *opaque;
	struct engine_debug debug;
	struct engine_stats stats;
	uint8_t doing; /* enum cpu_doing */
	bool has_sampler;
	timer_t sampler;

	/* Debug registers, condensed: debug.h */
	uint8_t dbg_exec, dbg_data, dbg_io; /* bit n: DRn is armed for fetches, data, ports */
	uint32_t dbg_pending;               /* DR6 bits of the #DB trap due after this insn */
	bool dbg_no_step;                   /* this insn delivered an event: TF does not trap it */

	unsigned pauses; /* PAUSE instructions met: exec_pause */

	/* Block cache: block.c */
	struct block_cache *blocks;
	_Atomic bool running;       /* inside engine_cpu_run: others must wait for purge_ack */
	_Atomic uint64_t purge_ack; /* vm->purge_seq this CPU has acted upon */
};

struct soft_vm {
	bool sample; /* engine_vm_config.sample */
	struct mem *mem;
	const struct cpu_model *model;
	struct mem_range ram[4]; /* copy of mem's map */
	unsigned nr_ram;
	unsigned nr_cpus;
	struct cpu **cpus; /* [nr_cpus]; entries appear as CPUs are created */
	uint64_t tsc_khz;
	uint64_t tsc_offset; /* of the CPU set last: soft.c */
	bool tsc_offset_known;
	_Atomic uint64_t purge_seq; /* goes up after each page that became a code page */
	_Atomic uint64_t write_seq; /* purge_seq at which all entries for writing must go */
	_Atomic bool purge_lock;    /* guards purge_seq against the first code line of a page */
	_Atomic bool split_lock;    /* locked operations that cannot be one host operation */
};

/* --- registers by offset -----------------------------------------------------------------------
 */
#define CPU_OFF(field)        ((uint16_t)offsetof(struct cpu, field))
#define CPU_GPR_OFF(n)        ((uint16_t)((n)*8))
#define CPU_REG(cpu, off, ty) (*(ty *)((char *)(cpu) + (off)))

static inline uint64_t insn_start_rip(const struct cpu *cpu)
{
	return cpu->in ? (cpu->rip - cpu->in->len) & cpu->ip_mask : cpu->rip;
}

/* A GPR write of 4 bytes clears the upper half; 1 and 2 bytes leave the rest. */
static inline void reg_write32(struct cpu *cpu, uint16_t off, uint32_t v)
{
	CPU_REG(cpu, off, uint64_t) = v;
}

static inline void cpu_stop_block(struct cpu *cpu)
{
	cpu->run_end = NULL;
}

/* After an access that left the CPU: an interrupt it has brought about is taken before the next
 * instruction, as where a device answers at once. */
static inline void cpu_notice_events(struct cpu *cpu)
{
	if (atomic_load_explicit(&cpu->events, memory_order_relaxed))
		cpu_stop_block(cpu);
}

/* --- flags -------------------------------------------------------------------------------------
 */
static inline uint64_t cpu_rflags(const struct cpu *cpu)
{
	return (cpu->rflags & ~RFLAGS_ARITH) | (cpu->cc & RFLAGS_ARITH) | RFLAGS_FIXED;
}

/* Raw: no privilege rules and no mode update; see flags helpers in system.c for POPF and IRET. */
static inline void cpu_set_rflags(struct cpu *cpu, uint64_t v)
{
	cpu->cc = v;
	cpu->rflags = (v & ~RFLAGS_ARITH) | RFLAGS_FIXED;
}

/* --- leaving an instruction (exc.c, run.c) -----------------------------------------------------
 */
_Noreturn void cpu_fault(struct cpu *cpu, uint8_t vector, uint32_t error); /* with error code */
_Noreturn void cpu_fault_plain(struct cpu *cpu, uint8_t vector);           /* without */
_Noreturn void cpu_page_fault(struct cpu *cpu, gva_t lin, uint32_t error);
_Noreturn void cpu_unwind(struct cpu *cpu, enum cpu_unwind why);
/* The instruction is complete (rip = next); leave engine_cpu_run. */
_Noreturn void cpu_exit(struct cpu *cpu, enum engine_exit why);

#define fault_gp(cpu, err) cpu_fault((cpu), X86_EXC_GP, (err))
#define fault_ud(cpu)      cpu_fault_plain((cpu), X86_EXC_UD)

/* --- who provides what -------------------------------------------------------------------------
 */

/* mode.c: recompute cpl-independent derived fields (mode, sp_mask, ip_mask, mode_key, tlb, flat
 * bits) after any change to CR0, CR3, CR4, EFER, RFLAGS.VM/AC, CS, SS or CPL. */
void cpu_mode_update(struct cpu *cpu);

/* system.c: MOV to CR0, CR3 and CR4 with all their checks (#GP) and effects.  A task switch loads
 * CR3 through this too. */
void cpu_write_cr0(struct cpu *cpu, uint64_t v);
void cpu_write_cr3(struct cpu *cpu, uint64_t v);
void cpu_write_cr4(struct cpu *cpu, uint64_t v);
uint64_t cpu_read_tsc(const struct cpu *cpu); /* any thread */

/* exc.c: deliver an exception or interrupt through the IDT/IVT.  May itself fault (unwinds with a
 * contributory fault; the run loop makes double and triple faults of it). */
void exc_deliver(struct cpu *cpu, const struct cpu_fault_info *f);
void exc_interrupt(struct cpu *cpu, uint8_t vector); /* external; clears halted */
void exc_nmi(struct cpu *cpu);
void cpu_nmi_unmask(struct cpu *cpu);                          /* IRET */
void exc_soft_int(struct cpu *cpu, uint8_t vector, bool int1); /* INT n, INT3, INTO; ICEBP */

/* seg.c */
void seg_load(struct cpu *cpu, unsigned seg, uint16_t selector); /* MOV/POP/Lxx to DS ES FS GS SS */
/* Check a data access of [off, off+size) through a segment outside 64-bit mode; returns the
 * linear address.  Faults with #GP(0) or #SS(0). */
gva_t seg_linear(struct cpu *cpu, unsigned seg, uint64_t off, unsigned size, bool write);

/* mmu.c */
int mmu_create(struct cpu *cpu, struct error *err);
void mmu_destroy(struct cpu *cpu);

struct mmu_access {
	gva_t lin;
	bool write, exec, user; /* user: CPL 3 and not an implicit supervisor access */
	bool smap;              /* SMAP applies to this supervisor access */
};
/* Walk the page tables, set A/D, fill the TLB of the class.  Returns the gpa; faults. */
gpa_t mmu_translate(struct cpu *cpu, const struct mmu_access *a);
/* As above for a debugger or test: no fault, no A/D, no TLB.  False when not mapped. */
bool mmu_probe(struct cpu *cpu, gva_t lin, gpa_t *gpa);
/* PAE paging: read the four PDPTEs at `cr3`.  False when one has a reserved bit set; then
 * cpu->pdpte is as before. */
bool mmu_load_pdptes(struct cpu *cpu, uint64_t cr3);
void tlb_flush_all(struct cpu *cpu);                      /* including global entries */
void tlb_flush_context(struct cpu *cpu, bool global_too); /* the current address space */
void tlb_flush_page(struct cpu *cpu, gva_t lin);          /* INVLPG */
void tlb_switch(struct cpu *cpu, bool keep); /* cpu->cr3 was changed; keep: bit 63 was set */
enum { INVPCID_PAGE, INVPCID_CONTEXT, INVPCID_ALL, INVPCID_ALL_NONGLOBAL };
void tlb_invpcid(struct cpu *cpu, unsigned type, uint16_t pcid, gva_t lin);
void tlb_purge_code_writes(struct cpu *cpu); /* wr entries of pages with code_lines */
void tlb_purge_page_writes(struct cpu *cpu, const uint8_t *hva); /* wr entries of one page */
void tlb_flush_writes(struct cpu *cpu); /* all wr entries (dirty tracking) */
void tlb_pick(struct cpu *cpu);         /* cpu->tlb, tlb_sys: CPL, AC, CR0.AM or CR4.SMAP changed */
void cpu_set_pkru(struct cpu *cpu, uint32_t pkru); /* WRPKRU, XRSTOR */

/* In 64-bit mode: are all bytes of [lin, lin+size) at canonical addresses?  Adding half moves the
 * upper half below the lower one, so that the canonical addresses are [0, 2 * half). */
static inline bool cpu_canonical(const struct cpu *cpu, gva_t lin, unsigned size)
{
	return lin + cpu->canon_half <= 2 * cpu->canon_half - size;
}

/* May a register that is to hold an address (a base, the target of SYSCALL) be given this one?
 * That asks how wide a linear address the processor can have, not how wide one is under the
 * current CR4.LA57 (SDM 1 "Canonical Addressing"). */
static inline bool cpu_canonical_base(const struct cpu *cpu, uint64_t base)
{
	uint64_t half = cpu_has(cpu->vm->model, CPU_FEAT_LA57) ? BIT(56) : BIT(47);

	return base + half < 2 * half;
}

static inline uint8_t *vm_hva(const struct soft_vm *vm, gpa_t gpa)
{
	for (unsigned i = 0; i < vm->nr_ram; i++)
		if (gpa - vm->ram[i].gpa < vm->ram[i].size)
			return vm->ram[i].hva + (gpa - vm->ram[i].gpa);
	return NULL;
}

/* The reverse, for an address inside RAM. */
static inline gpa_t vm_gpa(const struct soft_vm *vm, const uint8_t *hva)
{
	unsigned i = 0;

	while (i + 1 < vm->nr_ram && (uintptr_t)hva - (uintptr_t)vm->ram[i].hva >= vm->ram[i].size)
		i++;
	return vm->ram[i].gpa + ((uintptr_t)hva - (uintptr_t)vm->ram[i].hva);
}
