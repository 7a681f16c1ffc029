/* soft_fixture.h - one soft-engine CPU over real guest RAM, without a run loop.
 *
 * For tests of segments, events and far transfers: sets up a mode with flat tables, lets a test
 * write descriptors, gates and stacks, calls one exec function or event and says what came of it.
 *
 *	struct fixture *f = fixture_create(FIX_PROT32);
 *	fixture_gdt(f, FIX_FREE, ATTR_DATA | ATTR_DPL(3), 0, 0xfffff);
 *	CHECK_EQ(FAULT(X86_EXC_GP, 0xa0), fixture_load_seg(f, X86_SS, SEL(FIX_FREE, 3)));
 *
 * No paging: linear addresses are physical ones, unless a test makes page tables. */
#pragma once

#include "base/error.h"
#include "engine/soft/access.h"
#include "engine/soft/block.h"
#include "engine/soft/cpu.h"
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/seg.h"
#include "engine/soft/vec.h"
#include "test.h"

#include <stdlib.h>
#include <string.h>

enum fix_mode { FIX_REAL, FIX_PROT16, FIX_PROT32, FIX_LONG64, FIX_COMPAT32 };

/* Where things are. */
enum {
	FIX_GDT = 0x1000,
	FIX_LDT = 0x2000,
	FIX_IDT = 0x3000,
	FIX_TSS = 0x4000,
	FIX_TSS2 = 0x5000,
	FIX_CODE = 0x6000,
	FIX_STACK = 0x9000,       /* top of the current stack */
	FIX_STACK_INNER = 0xb000, /* top of the ring 0 stack in the TSS; ring 1 and 2 above */
	FIX_STACK_USER = 0xf000,
	FIX_RAM = 0x200000,
	FIX_TABLE_LIMIT = 0xfff,
};

/* Well-known selectors (indices in the GDT). */
enum {
	FIX_CS0 = 1,
	FIX_DS0,
	FIX_CS3,
	FIX_DS3,
	FIX_CS64_0,
	FIX_CS64_3,
	FIX_TSS_IDX = 8,  /* 8, 9 */
	FIX_LDT_IDX = 10, /* 10, 11 */
	FIX_CS1 = 12,
	FIX_DS1,
	FIX_CS2,
	FIX_DS2,
	FIX_FREE = 20,
};
#define SEL(index, rpl)     ((uint16_t)((index) << 3 | (rpl)))
#define LDT_SEL(index, rpl) ((uint16_t)((index) << 3 | SEL_TI | (rpl)))

/* Attributes, as in struct x86_segment. */
#define ATTR_CODE   (X86_SEG_P | X86_SEG_S | SEG_TYPE_CODE | SEG_TYPE_RW)
#define ATTR_DATA   (X86_SEG_P | X86_SEG_S | SEG_TYPE_RW)
#define ATTR_SYS(t) (X86_SEG_P | (t))
#define ATTR_DPL(n) ((uint32_t)(n) << 5)
#define ATTR_32     (X86_SEG_DB | X86_SEG_G)
#define ATTR_64     (X86_SEG_L | X86_SEG_G)
#define CONFORMING  SEG_TYPE_EXPAND

/* What happened: 0 = nothing, else vector and error code. */
#define FAULT(vector, error) (0x1000000u | (uint32_t)(vector) << 16 | (uint32_t)(error))
#define FAULT_PLAIN(vector)  (0x2000000u | (uint32_t)(vector) << 16)

struct fixture {
	struct cpu *cpu;
	struct soft_vm vm;
	struct cpu_model model;
	struct engine_cpu_ops ops;
	struct insn in;
};

static uint8_t *fix_ram(struct fixture *f, gpa_t gpa)
{
	return vm_hva(&f->vm, gpa);
}

static uint64_t fix_get(struct fixture *f, gpa_t gpa, unsigned size)
{
	uint64_t v = 0;

	memcpy(&v, fix_ram(f, gpa), size);
	return v;
}

static void fix_put(struct fixture *f, gpa_t gpa, unsigned size, uint64_t v)
{
	memcpy(fix_ram(f, gpa), &v, size);
}

/* --- descriptors -------------------------------------------------------------------------------
 */

/* limit: the 20-bit field. */
static inline uint64_t fix_desc(uint32_t attr, uint32_t base, uint32_t limit)
{
	return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 |
	       (uint64_t)(attr & 0xff) << 40 | (uint64_t)(limit >> 16 & 15) << 48 |
	       (uint64_t)(attr >> 12 & 15) << 52 | (uint64_t)(base >> 24) << 56;
}

static inline uint64_t fix_gate(uint32_t attr, uint16_t sel, uint64_t off, unsigned low_bits)
{
	return (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)low_bits << 32 |
	       (uint64_t)(attr & 0xff) << 40 | (off >> 16 & 0xffff) << 48;
}

static inline void fixture_gdt(struct fixture *f, unsigned i, uint32_t attr, uint32_t base,
			       uint32_t limit)
{
	fix_put(f, FIX_GDT + i * 8, 8, fix_desc(attr, base, limit));
}

static inline void fixture_ldt(struct fixture *f, unsigned i, uint32_t attr, uint32_t base,
			       uint32_t limit)
{
	fix_put(f, FIX_LDT + i * 8, 8, fix_desc(attr, base, limit));
}

/* A gate in the GDT; params: parameter count of a call gate. */
static inline void fixture_gdt_gate(struct fixture *f, unsigned i, uint32_t attr, uint16_t sel,
				    uint64_t off, unsigned params)
{
	fix_put(f, FIX_GDT + i * 8, 8, fix_gate(attr, sel, off, params));
	if (f->cpu->long_mode)
		fix_put(f, FIX_GDT + i * 8 + 8, 8, off >> 32);
}

static inline void fixture_idt(struct fixture *f, unsigned vector, uint32_t attr, uint16_t sel,
			       uint64_t off, unsigned ist)
{
	unsigned size = f->cpu->long_mode ? 16 : 8;

	fix_put(f, FIX_IDT + vector * size, 8, fix_gate(attr, sel, off, ist));
	if (f->cpu->long_mode)
		fix_put(f, FIX_IDT + vector * size + 8, 8, off >> 32);
}

/* --- the CPU -----------------------------------------------------------------------------------
 */

static inline void fix_load(struct fixture *f, unsigned seg, uint16_t sel)
{
	struct desc d;

	if (!desc_fetch(f->cpu, sel, &d))
		abort();
	seg_from_desc(f->cpu, &f->cpu->seg[seg], sel, &d);
}

/* Put the CPU on ring cpl with that ring's flat code and data. */
static inline void fixture_ring(struct fixture *f, unsigned cpl)
{
	static const uint8_t cs[] = {FIX_CS0, FIX_CS1, FIX_CS2, FIX_CS3};
	static const uint8_t ds[] = {FIX_DS0, FIX_DS1, FIX_DS2, FIX_DS3};
	bool wide = f->cpu->long_mode && (f->cpu->seg[X86_CS].attr & X86_SEG_L);

	fix_load(f, X86_CS, SEL(wide ? (cpl ? FIX_CS64_3 : FIX_CS64_0) : cs[cpl], cpl));
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		if (i != X86_CS)
			fix_load(f, i, SEL(ds[cpl], cpl));
	f->cpu->cpl = cpl;
	cpu_mode_update(f->cpu);
}

static inline void fix_tables(struct fixture *f, uint32_t size_bits)
{
	for (unsigned cpl = 0; cpl < 4; cpl++) {
		static const uint8_t cs[] = {FIX_CS0, FIX_CS1, FIX_CS2, FIX_CS3};
		static const uint8_t ds[] = {FIX_DS0, FIX_DS1, FIX_DS2, FIX_DS3};
		uint32_t limit = size_bits & X86_SEG_G ? 0xfffff : 0xffff;

		fixture_gdt(f, cs[cpl], ATTR_CODE | ATTR_DPL(cpl) | size_bits, 0, limit);
		fixture_gdt(f, ds[cpl], ATTR_DATA | ATTR_DPL(cpl) | size_bits, 0, limit);
	}
	fixture_gdt(f, FIX_CS64_0, ATTR_CODE | ATTR_64, 0, 0xfffff);
	fixture_gdt(f, FIX_CS64_3, ATTR_CODE | ATTR_64 | ATTR_DPL(3), 0, 0xfffff);
	fixture_gdt(f, FIX_TSS_IDX, ATTR_SYS(DESC_TSS_BUSY), FIX_TSS, 0xff);
	fixture_gdt(f, FIX_LDT_IDX, ATTR_SYS(DESC_LDT), FIX_LDT, FIX_TABLE_LIMIT);
}

/* Ring n's stack in the TSS: FIX_STACK_INNER + n * 0x1000. */
static inline void fix_tss(struct fixture *f)
{
	static const uint8_t ds[] = {FIX_DS0, FIX_DS1, FIX_DS2};

	for (unsigned n = 0; n < 3; n++) {
		gpa_t sp = FIX_STACK_INNER + n * 0x1000;

		if (f->cpu->long_mode) {
			fix_put(f, FIX_TSS + 4 + n * 8, 8, sp);
			continue;
		}
		fix_put(f, FIX_TSS + 4 + n * 8, 4, sp);
		fix_put(f, FIX_TSS + 8 + n * 8, 4, SEL(ds[n], n));
	}
}

static inline void fix_mode(struct fixture *f, enum fix_mode mode)
{
	struct cpu *cpu = f->cpu;
	bool lng = mode == FIX_LONG64 || mode == FIX_COMPAT32;

	cpu->cr0 = mode == FIX_REAL ? 0 : CR0_PE;
	cpu->efer = lng ? EFER_LMA | EFER_LME | EFER_SCE : EFER_SCE;
	cpu->gdtr = (struct x86_table){FIX_GDT, FIX_TABLE_LIMIT};
	cpu->idtr = (struct x86_table){mode == FIX_REAL ? 0 : FIX_IDT,
				       mode == FIX_REAL ? 0x3ff : FIX_TABLE_LIMIT};
	cpu->seg[X86_CS].attr = lng && mode == FIX_LONG64 ? X86_SEG_L : 0;
	cpu->rflags = RFLAGS_FIXED;
	cpu->mode_key = ~0u;
	cpu->dr6 = 0xffff0ff0;
	cpu->dr7 = 0x400;
	cpu_mode_update(cpu);
	if (mode == FIX_REAL) {
		for (unsigned i = 0; i < X86_NR_SEG; i++)
			cpu->seg[i] = (struct cpu_seg){.limit = 0xffff,
						       .attr = ATTR_DATA | SEG_TYPE_ACCESSED};
	} else {
		struct desc d;

		fix_tables(f, mode == FIX_PROT16 ? 0 : ATTR_32);
		fix_tss(f);
		desc_fetch(cpu, SEL(FIX_TSS_IDX, 0), &d);
		seg_from_desc(cpu, &cpu->tr, SEL(FIX_TSS_IDX, 0), &d);
		desc_fetch(cpu, SEL(FIX_LDT_IDX, 0), &d);
		seg_from_desc(cpu, &cpu->ldtr, SEL(FIX_LDT_IDX, 0), &d);
		fixture_ring(f, 0);
	}
	cpu_mode_update(cpu);
	cpu->gpr[X86_RSP] = FIX_STACK;
	cpu->rip = FIX_CODE;
}

/* There is one fixture at a time: the next one replaces it, exit ends it. */
static struct fixture *fix_live;

static inline void fix_destroy(void)
{
	struct fixture *f = fix_live;

	if (!f)
		return;
	fix_live = NULL;
	vec_destroy(f->cpu);
	block_cache_destroy(f->cpu);
	mmu_destroy(f->cpu);
	mem_destroy(f->vm.mem);
	free(f->cpu);
	free(f);
}

static inline struct fixture *fixture_create(enum fix_mode mode)
{
	struct fixture *f = calloc(1, sizeof(*f));
	const struct mem_range *r;
	struct error err = {0};

	if (fix_live)
		fix_destroy();
	else
		atexit(fix_destroy);
	fix_live = f;
	f->cpu = aligned_alloc(64, ALIGN_UP(sizeof(*f->cpu), 64));
	memset(f->cpu, 0, sizeof(*f->cpu));
	if (cpu_model_resolve(&f->model, "max", &err))
		abort();
	strcpy(f->model.vendor, "AuthenticAMD");
	if (mem_create(&f->vm.mem, &err) || mem_add_ram(f->vm.mem, 0, FIX_RAM, &err))
		abort();
	f->vm.nr_ram = mem_ram_ranges(f->vm.mem, &r);
	f->vm.ram[0] = r[0];
	f->vm.model = &f->model;
	f->vm.nr_cpus = 1;
	f->vm.cpus = &f->cpu;
	f->cpu->vm = &f->vm;
	f->cpu->ops = &f->ops;
	f->cpu->delivering = CPU_IDLE;
	if (mmu_create(f->cpu, &err) || block_cache_create(f->cpu, &err) ||
	    vec_create(f->cpu, &err))
		abort();
	fix_mode(f, mode);
	return f;
}

/* --- doing one thing ---------------------------------------------------------------------------
 */

typedef void fixture_action(struct fixture *f, const void *arg);

static __attribute__((noinline)) bool fix_guarded(struct fixture *f, fixture_action *fn,
						  const void *arg)
{
	if (__builtin_setjmp(f->cpu->unwind_buf))
		return false;
	fn(f, arg);
	return true;
}

/* Run fn; the fault it ended with, or 0. */
static inline uint32_t fixture_try(struct fixture *f, fixture_action *fn, const void *arg)
{
	const struct cpu_fault_info *i = &f->cpu->fault;

	if (fix_guarded(f, fn, arg))
		return 0;
	return i->has_error ? FAULT(i->vector, i->error) : FAULT_PLAIN(i->vector);
}

static void fix_do_exec(struct fixture *f, const void *arg)
{
	(void)arg;
	f->in.exec(f->cpu, &f->in);
}

/* Execute f->in with that handler as an instruction of 2 bytes at rip.  After a fault rip is that
 * of the instruction again. */
static inline uint32_t fixture_exec(struct fixture *f, insn_exec *exec)
{
	uint32_t r;

	f->in.exec = exec;
	f->in.len = 2;
	f->cpu->in = &f->in;
	f->cpu->rip += 2;
	r = fixture_try(f, fix_do_exec, NULL);
	if (r)
		f->cpu->rip = insn_start_rip(f->cpu);
	f->cpu->in = NULL;
	return r;
}

static void fix_do_load_seg(struct fixture *f, const void *arg)
{
	const uint16_t *a = arg;

	seg_load(f->cpu, a[0], a[1]);
}

static inline uint32_t fixture_load_seg(struct fixture *f, unsigned seg, uint16_t sel)
{
	const uint16_t a[] = {(uint16_t)seg, sel};

	return fixture_try(f, fix_do_load_seg, a);
}

static void fix_do_exception(struct fixture *f, const void *arg)
{
	exc_deliver(f->cpu, arg);
}

static inline uint32_t fixture_exception(struct fixture *f, const struct cpu_fault_info *i)
{
	return fixture_try(f, fix_do_exception, i);
}

static void fix_do_interrupt(struct fixture *f, const void *arg)
{
	exc_interrupt(f->cpu, *(const uint8_t *)arg);
}

static inline uint32_t fixture_interrupt(struct fixture *f, uint8_t vector)
{
	return fixture_try(f, fix_do_interrupt, &vector);
}

/* Far JMP or CALL to an immediate pointer. */
static inline uint32_t fixture_far(struct fixture *f, insn_exec *exec, uint16_t sel, uint64_t off,
				   unsigned opsize)
{
	f->in = (struct insn){.sel = sel, .imm = off, .opsize = (uint8_t)opsize};
	return fixture_exec(f, exec);
}

/* An instruction that has only an operand size. */
static inline uint32_t fixture_plain(struct fixture *f, insn_exec *exec, unsigned opsize)
{
	f->in = (struct insn){.opsize = (uint8_t)opsize};
	return fixture_exec(f, exec);
}

/* A table row failed: say which before the check that stops the test. */
#define CHECK_ROW(row, want, got)                                                                  \
	do {                                                                                       \
		uint32_t row_want_ = (want), row_got_ = (got);                                     \
		if (row_want_ != row_got_)                                                         \
			printf("# in row '%s'\n", row);                                            \
		CHECK_EQ(row_want_, row_got_);                                                     \
	} while (0)
