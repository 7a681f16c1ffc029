/* cpu_case.h - one hostile guest on engine_soft: what fuzz_cpu and random_code have in common.
 *
 * A case is a string of bytes: a header that chooses mode, ring, control bits and registers,
 * patches to the tables the CPU uses (descriptors, gates, page tables, TSS), and code.  All RAM is
 * laid out afresh, the vCPU runs until it shuts down or is kicked a few times, and afterwards the
 * engine must be as sound as before: case_check.  What is missing from a short case reads as zero.
 *
 * Linear addresses: every canonical one is mapped to begin with.  The first 2 MiB are themselves by
 * 4 KiB pages, all else repeats them by large pages.  RAM has holes, and devices there answer. */
#pragma once

#include "base/error.h"
#include "engine/cpu_model.h"
#include "engine/engine.h"
#include "engine/soft/tlb.h"
#include "engine/x86_defs.h"
#include "mem/mem.h"
#include "soft_options.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum case_mode {
	CASE_REAL,
	CASE_PROT16,
	CASE_PROT32,
	CASE_PAGED32,
	CASE_PAE,
	CASE_V86,
	CASE_COMPAT16,
	CASE_COMPAT32,
	CASE_LONG,
	CASE_LONG5,
	CASE_ANY_STATE, /* whatever x86_state the bytes spell */
	CASE_NR_MODES
};

static const char *const case_mode_names[CASE_NR_MODES] = {"real", "prot16", "prot32",   "paged32",
							   "pae",  "v86",    "compat16", "compat32",
							   "long", "long5",  "any-state"};

/* Where things are. */
enum {
	CASE_PDPTES = 0x800, /* PAE: four */
	CASE_PML5 = 0x1000,
	CASE_PML4 = 0x2000,
	CASE_PDPT = 0x3000,
	CASE_PD = 0x4000,
	CASE_PT = 0x5000,
	CASE_PD32 = 0x6000,
	CASE_PT32 = 0x7000,
	CASE_GDT = 0x8000,
	CASE_LDT = 0x8800,
	CASE_IDT = 0x9000,
	CASE_TSS = 0xa000, /* with an I/O bitmap */
	CASE_TSS2 = 0xc000,
	CASE_CODE = 0x10000,
	CASE_CODE_SIZE = 0x4000,
	CASE_DATA = 0x20000,
	CASE_STACK = 0x30000,
	CASE_LOW_RAM = 0x40000,
	CASE_HIGH_RAM = 0x100000,
	CASE_HIGH_SIZE = 0x20000,
	CASE_TABLES_END = 0xe000,
};

/* GDT indices; ring n of a kind is at + n. */
enum { SEL_CODE32 = 1, SEL_DATA32 = 5, SEL_CODE16 = 9, SEL_DATA16 = 13, SEL_CODE64 = 17 };
enum { SEL_TSS = 22, SEL_TSS2 = 24, SEL_LDT = 26, SEL_TASK_GATE = 28, SEL_CALL_GATE = 30 };

enum { CASE_CPUS = 2, CASE_KICKS = 4, CASE_WAKES = 16, CASE_SLICE_NS = 200 * 1000 };

struct case_input {
	const uint8_t *data;
	size_t len;
};

struct case_machine {
	struct engine_cpu *cpu;
	uint64_t answer; /* what devices say next */
	int vector;
};

/* A VM that is used again and again. */
struct case_vm {
	struct mem *mem;
	struct cpu_model model;
	struct engine_vm *vm;
	struct engine_cpu *cpu[CASE_CPUS];
	struct case_machine machine[CASE_CPUS];
	unsigned runs;
	_Alignas(64) struct x86_state state[CASE_CPUS];
};

/* --- the bytes of a case ------------------------------------------------------------------------
 */

static inline uint8_t take8(struct case_input *in)
{
	if (!in->len)
		return 0;
	in->len--;
	return *in->data++;
}

static inline uint64_t take(struct case_input *in, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)take8(in) << 8 * i;
	return v;
}

/* --- the machine around it ----------------------------------------------------------------------
 */

static inline uint64_t case_answer(struct case_machine *m)
{
	m->answer = m->answer * 6364136223846793005ull + 1442695040888963407ull;
	return m->answer >> 16;
}

static inline uint64_t case_mmio_read(void *opaque, gpa_t gpa, unsigned size)
{
	assert(size == 1 || size == 2 || size == 4 || size == 8);
	assert(gpa >= CASE_LOW_RAM && gpa - CASE_HIGH_RAM >= CASE_HIGH_SIZE);
	return case_answer(opaque);
}

static inline void case_mmio_write(void *opaque, gpa_t gpa, uint64_t v, unsigned size)
{
	struct case_machine *m = opaque;

	assert(size == 1 || size == 2 || size == 4 || size == 8);
	assert(gpa >= CASE_LOW_RAM && gpa - CASE_HIGH_RAM >= CASE_HIGH_SIZE);
	m->answer ^= v;
}

static inline uint32_t case_pio_read(void *opaque, uint16_t port, unsigned size)
{
	assert(size == 1 || size == 2 || size == 4);
	return (uint32_t)case_answer(opaque);
}

static inline void case_pio_write(void *opaque, uint16_t port, uint32_t v, unsigned size)
{
	struct case_machine *m = opaque;

	assert(size == 1 || size == 2 || size == 4);
	m->answer ^= v;
	if (port & 1) { /* an interrupt controller of sorts */
		m->vector = (uint8_t)v;
		engine_soft.cpu_intr(m->cpu, true);
	}
}

static inline bool case_msr_read(void *opaque, uint32_t index, uint64_t *v)
{
	*v = case_answer(opaque);
	return index & 1;
}

static inline bool case_msr_write(void *opaque, uint32_t index, uint64_t v)
{
	return index & 1;
}

static inline int case_intr_ack(void *opaque)
{
	struct case_machine *m = opaque;

	engine_soft.cpu_intr(m->cpu, false);
	return m->vector;
}

static inline uint8_t case_cr8_read(void *opaque)
{
	return case_answer(opaque) & 15;
}

static inline void case_cr8_write(void *opaque, uint8_t v)
{
	assert(v < 16);
}

static inline bool case_hypercall(void *opaque, struct engine_cpu *cpu, uint64_t *gpr)
{
	gpr[X86_RAX] = case_answer(opaque);
	return gpr[X86_RAX] & 1;
}

static inline void case_cpuid(void *opaque, uint32_t leaf, uint32_t sub, uint32_t regs[4])
{
}

static const struct engine_cpu_ops case_ops = {
	.mmio_read = case_mmio_read,
	.mmio_write = case_mmio_write,
	.pio_read = case_pio_read,
	.pio_write = case_pio_write,
	.msr_read = case_msr_read,
	.msr_write = case_msr_write,
	.intr_ack = case_intr_ack,
	.cr8_read = case_cr8_read,
	.cr8_write = case_cr8_write,
	.hypercall = case_hypercall,
	.cpuid = case_cpuid,
};

static inline void case_die(const char *what, const struct error *err)
{
	fprintf(stderr, "%s: %s\n", what, err->msg);
	abort();
}

static inline void case_vm_create(struct case_vm *v, unsigned nr_cpus, const char *vendor)
{
	struct error err = {""};
	struct engine_vm_config cfg = {
		.nr_cpus = nr_cpus, .model = &v->model, .options = soft_options()};

	memset(v, 0, sizeof(*v));
	if (mem_create(&v->mem, &err) || mem_add_ram(v->mem, 0, CASE_LOW_RAM, &err) ||
	    mem_add_ram(v->mem, CASE_HIGH_RAM, CASE_HIGH_SIZE, &err) ||
	    cpu_model_resolve(&v->model, "max", &err))
		case_die("guest", &err);
	strcpy(v->model.vendor, vendor);
	cfg.mem = v->mem;
	if (engine_soft.vm_create(&v->vm, &cfg, &err))
		case_die("engine", &err);
	for (unsigned i = 0; i < nr_cpus; i++) {
		if (engine_soft.cpu_create(&v->cpu[i], v->vm, i, &case_ops, &v->machine[i], &err))
			case_die("vCPU", &err);
		v->machine[i].cpu = v->cpu[i];
	}
}

static inline void case_vm_destroy(struct case_vm *v)
{
	for (unsigned i = 0; i < CASE_CPUS; i++)
		if (v->cpu[i])
			engine_soft.cpu_destroy(v->cpu[i]);
	engine_soft.vm_destroy(v->vm);
	mem_destroy(v->mem);
}

/* --- tables -------------------------------------------------------------------------------------
 */

static inline void case_put(uint8_t *image, unsigned at, unsigned bytes, uint64_t v)
{
	memcpy(image + at, &v, bytes);
}

static inline uint64_t case_desc(uint32_t attr, uint32_t base, uint32_t limit)
{
	return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 |
	       (uint64_t)(attr & 0xff) << 40 | (uint64_t)(limit >> 16 & 15) << 48 |
	       (uint64_t)(attr >> 12 & 15) << 52 | (uint64_t)(base >> 24) << 56;
}

static inline uint64_t case_gate(uint8_t attr, uint16_t sel, uint32_t off, unsigned ist)
{
	return (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)ist << 32 | (uint64_t)attr << 40 |
	       (uint64_t)(off >> 16) << 48;
}

static inline bool case_is_long(unsigned mode)
{
	return mode >= CASE_COMPAT16 && mode <= CASE_LONG5;
}

static inline void case_page_tables(uint8_t *image)
{
	const uint64_t rights = PTE_P | PTE_W | PTE_U;

	for (unsigned i = 0; i < 512; i++) {
		case_put(image, CASE_PML5 + i * 8, 8, CASE_PML4 | rights);
		case_put(image, CASE_PML4 + i * 8, 8, CASE_PDPT | rights);
		case_put(image, CASE_PDPT + i * 8, 8, CASE_PD | rights);
		case_put(image, CASE_PD + i * 8, 8, i ? rights | PTE_PS : CASE_PT | rights);
		case_put(image, CASE_PT + i * 8, 8, (uint64_t)i << 12 | rights);
	}
	for (unsigned i = 0; i < 4; i++)
		case_put(image, CASE_PDPTES + i * 8, 8, CASE_PD | PTE_P);
	for (unsigned i = 0; i < 1024; i++) {
		case_put(image, CASE_PD32 + i * 4, 4, i ? rights | PTE_PS : CASE_PT32 | rights);
		case_put(image, CASE_PT32 + i * 4, 4, (uint64_t)i << 12 | rights);
	}
}

static inline void case_gdt(uint8_t *image, bool lng)
{
	enum { CODE = 0x9b, DATA = 0x93, DB = 1 << 14, L = 1 << 13, G = 1 << 15 };

	for (unsigned dpl = 0; dpl < 4; dpl++) {
		uint32_t ring = dpl << 5;

		case_put(image, CASE_GDT + (SEL_CODE32 + dpl) * 8, 8,
			 case_desc(CODE | DB | G | ring, 0, 0xfffff));
		case_put(image, CASE_GDT + (SEL_DATA32 + dpl) * 8, 8,
			 case_desc(DATA | DB | G | ring, 0, 0xfffff));
		case_put(image, CASE_GDT + (SEL_CODE16 + dpl) * 8, 8,
			 case_desc(CODE | ring, CASE_CODE, 0xffff));
		case_put(image, CASE_GDT + (SEL_DATA16 + dpl) * 8, 8,
			 case_desc(DATA | ring, CASE_DATA, 0xffff));
		case_put(image, CASE_GDT + (SEL_CODE64 + dpl) * 8, 8,
			 case_desc(CODE | L | G | ring, 0, 0xfffff));
	}
	case_put(image, CASE_GDT + SEL_TSS * 8, 8, case_desc(0x8b, CASE_TSS, 0x1fff));
	case_put(image, CASE_GDT + SEL_TSS2 * 8, 8, case_desc(0xe9, CASE_TSS2, 0x1fff));
	case_put(image, CASE_GDT + SEL_LDT * 8, 8, case_desc(0xe2, CASE_LDT, 0x7ff));
	case_put(image, CASE_GDT + SEL_TASK_GATE * 8, 8, case_gate(0xe5, SEL_TSS2 * 8, 0, 0));
	case_put(image, CASE_GDT + SEL_CALL_GATE * 8, 8,
		 case_gate(0xec, (lng ? SEL_CODE64 : SEL_CODE32) * 8, CASE_CODE + 0x800, 2));
	memcpy(image + CASE_LDT, image + CASE_GDT, 0x800);
}

/* Each vector leads into the code, so that a fault is not the end. */
static inline void case_idt(uint8_t *image, unsigned mode)
{
	bool lng = case_is_long(mode);

	for (unsigned v = 0; v < 256; v++) {
		uint32_t off = CASE_CODE + v * 61 % CASE_CODE_SIZE;
		uint16_t sel = (lng ? SEL_CODE64 : SEL_CODE32) * 8;

		if (mode == CASE_PROT16) {
			off -= CASE_CODE;
			sel = SEL_CODE16 * 8;
		}
		if (lng) {
			case_put(image, CASE_IDT + v * 16, 8, case_gate(0xee, sel, off, v & 7));
			case_put(image, CASE_IDT + v * 16 + 8, 8, 0);
		} else {
			case_put(image, CASE_IDT + v * 8, 8,
				 v % 32 == 31 ? case_gate(0xe5, SEL_TSS2 * 8, 0, 0)
					      : case_gate(0xee, sel, off, 0));
		}
	}
	if (mode != CASE_REAL)
		return;
	for (unsigned v = 0; v < 256; v++)
		case_put(image, v * 4, 4, (CASE_CODE >> 4) << 16 | v * 61 % CASE_CODE_SIZE);
}

static inline void case_tss(uint8_t *image, unsigned tss, bool lng)
{
	const unsigned stack = CASE_STACK + 0x1000;

	for (unsigned n = 0; n < 3; n++) {
		if (lng) {
			case_put(image, tss + 4 + n * 8, 8, stack + n * 0x1000);
			continue;
		}
		case_put(image, tss + 4 + n * 8, 4, stack + n * 0x1000);
		case_put(image, tss + 8 + n * 8, 2, (SEL_DATA32 + n) * 8 | n);
	}
	for (unsigned n = 1; lng && n < 8; n++)
		case_put(image, tss + 28 + n * 8, 8, stack + 0x4000 + n * 0x800);
	if (!lng) { /* what a task switch loads */
		case_put(image, tss + 0x1c, 4, CASE_PD32);
		case_put(image, tss + 0x20, 4, CASE_CODE + 0x400);
		case_put(image, tss + 0x24, 4, 2);
		case_put(image, tss + 0x38, 4, stack + 0x3000);
		for (unsigned i = 0; i < 6; i++)
			case_put(image, tss + 0x48 + i * 4, 2,
				 (i == 1 ? SEL_CODE32 : SEL_DATA32) * 8);
	}
	case_put(image, tss + 102, 2, 0x68);
}

/* --- registers ----------------------------------------------------------------------------------
 */

/* An address or a number that something may come of. */
static inline uint64_t case_value(struct case_input *in)
{
	static const uint64_t pool[] = {
		0,
		CASE_DATA,
		CASE_CODE,
		CASE_STACK,
		CASE_DATA + 0xfff,
		CASE_LOW_RAM - 8,
		CASE_HIGH_RAM + CASE_HIGH_SIZE - 16,
		CASE_GDT,
		CASE_IDT,
		CASE_PT,
		CASE_TSS,
		0x80000,
		0xffffffff,
		0xfffffff8,
		0x7ffffffffff8,
		0xffff800000000000,
		0xfffffffffffffff0,
		0x8000000000000000,
		~0ull,
		64,
	};
	uint8_t kind = take8(in);

	if (kind >= 0xf8)
		return take(in, 8);
	return pool[kind % ARRAY_SIZE(pool)] + (uint64_t)(int64_t)(int8_t)take8(in);
}

static inline struct x86_segment case_segment(uint16_t sel, uint32_t attr, uint64_t base,
					      uint32_t limit)
{
	return (struct x86_segment){base, limit, attr, sel};
}

/* Code and data of a ring in a mode. */
static inline void case_segments(struct x86_state *s, unsigned mode, unsigned ring)
{
	bool bits16 = mode == CASE_PROT16 || mode == CASE_COMPAT16;
	bool bits64 = mode == CASE_LONG || mode == CASE_LONG5;
	unsigned code = bits64 ? SEL_CODE64 : bits16 ? SEL_CODE16 : SEL_CODE32;
	unsigned data = bits16 ? SEL_DATA16 : SEL_DATA32;
	uint32_t size = bits16 ? 0 : X86_SEG_G | X86_SEG_DB, limit = bits16 ? 0xffff : ~0u;
	uint32_t attr = ring << 5;

	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = case_segment((uint16_t)((data + ring) * 8 | ring), 0x93 | attr | size,
					 bits16 ? CASE_DATA : 0, limit);
	s->seg[X86_CS] = case_segment((uint16_t)((code + ring) * 8 | ring),
				      0x9b | attr | (bits64 ? X86_SEG_G | X86_SEG_L : size),
				      bits16 ? CASE_CODE : 0, limit);
	s->rip = bits16 ? 0 : CASE_CODE;
}

static inline void case_real_segments(struct x86_state *s, bool v86)
{
	uint32_t attr = v86 ? 0xf3 : 0x93;

	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = case_segment(CASE_DATA >> 4, attr, CASE_DATA, 0xffff);
	s->seg[X86_CS] = case_segment(CASE_CODE >> 4, attr, CASE_CODE, 0xffff);
	s->rip = 0;
}

static inline void case_mode_state(struct x86_state *s, unsigned mode, unsigned ring)
{
	static const uint32_t cr3[CASE_NR_MODES] = {
		[CASE_PAGED32] = CASE_PD32,  [CASE_PAE] = CASE_PDPTES,    [CASE_V86] = CASE_PD32,
		[CASE_COMPAT16] = CASE_PML4, [CASE_COMPAT32] = CASE_PML4, [CASE_LONG] = CASE_PML4,
		[CASE_LONG5] = CASE_PML5,
	};
	bool lng = case_is_long(mode);

	case_segments(s, mode, ring);
	if (mode == CASE_REAL || mode == CASE_V86)
		case_real_segments(s, mode == CASE_V86);
	s->cr0 = CR0_ET | CR0_NE | (mode == CASE_REAL ? 0 : CR0_PE) | (cr3[mode] ? CR0_PG : 0);
	s->cr3 = cr3[mode];
	s->cr4 = CR4_PSE | CR4_OSFXSR | CR4_OSXSAVE | CR4_OSXMMEXCPT | CR4_PGE;
	s->cr4 |= lng || mode == CASE_PAE ? CR4_PAE : 0;
	s->cr4 |= mode == CASE_LONG5 ? CR4_LA57 : 0;
	s->efer = lng ? EFER_LME | EFER_LMA : 0;
	s->rflags = RFLAGS_FIXED | (mode == CASE_V86 ? RFLAGS_VM : 0);
	s->gdtr = (struct x86_table){CASE_GDT, 0x7ff};
	s->idtr = mode == CASE_REAL ? (struct x86_table){0, 0x3ff}
				    : (struct x86_table){CASE_IDT, 0xfff};
	s->tr = case_segment(SEL_TSS * 8, 0x8b, CASE_TSS, 0x1fff);
	s->ldtr = case_segment(SEL_LDT * 8, 0x82, CASE_LDT, 0x7ff);
}

/* Bits that leave the mode what it is. */
static inline void case_flip_bits(struct case_vm *v, struct x86_state *s, struct case_input *in)
{
	const uint64_t cr0 = CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_CD | CR0_NW;
	const uint64_t cr4 = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PGE | CR4_PCE | CR4_OSFXSR |
			     CR4_OSXMMEXCPT | CR4_UMIP | CR4_FSGSBASE | CR4_OSXSAVE | CR4_SMEP |
			     CR4_SMAP | CR4_PKE;
	const uint64_t flags = RFLAGS_ARITH | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT |
			       RFLAGS_RF | RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID;
	uint8_t which = take8(in);

	s->cr0 ^= which & 1 ? take(in, 4) & cr0 : CR0_WP;
	s->cr4 ^= which & 2 ? take(in, 4) & cr4 : 0;
	s->efer ^= which & 4 ? take(in, 2) & (EFER_SCE | EFER_NXE | EFER_FFXSR) : EFER_SCE;
	s->rflags ^= which & 8 ? take(in, 4) & flags : 0;
	s->rflags |= which & 0x10 ? RFLAGS_TF : 0;
	s->xcr0 = which & 0x20 ? XCR0_X87 | XCR0_SSE : v->model.xcr0_supported;
	s->cr4 |= s->efer & EFER_LMA && which & 0x40 ? CR4_PCIDE : 0;
	if (which & 0x80) {
		for (unsigned i = 0; i < 4; i++)
			s->dr[i] = case_value(in);
		s->dr7 = take(in, 4) & 0xffff03ff;
	}
}

static inline void case_registers(struct x86_state *s, struct case_input *in)
{
	for (unsigned i = 0; i < X86_NR_GPR; i++)
		s->gpr[i] = case_value(in);
	if (take8(in) & 1)
		s->gpr[X86_RSP] = s->seg[X86_SS].base ? 0x8000 : CASE_STACK + 0x800;
	if (s->efer & EFER_LMA) {
		s->seg[X86_FS].base = case_value(in);
		s->seg[X86_GS].base = case_value(in);
	}
	s->lstar = s->cstar = s->sysenter_eip = CASE_CODE + 0x200;
	s->kernel_gs_base = CASE_DATA;
	s->sysenter_cs = SEL_CODE32 * 8;
	s->sysenter_esp = CASE_STACK;
	s->star = (uint64_t)(SEL_CODE32 * 8) << 32 | (uint64_t)((SEL_CODE32 + 3) * 8 | 3) << 48;
}

/* x86_state as the bytes have it, but for the vector state and the padding of the arrays. */
static inline void case_any_state(struct x86_state *s, struct case_input *in)
{
	uint8_t *raw = (uint8_t *)s;
	unsigned patches = take8(in);

	while (patches--) {
		unsigned at = (unsigned)take(in, 2) % offsetof(struct x86_state, xsave);
		unsigned n = take8(in) % 8 + 1;

		for (unsigned i = 0; i < n && at + i < offsetof(struct x86_state, xsave); i++)
			raw[at + i] = take8(in);
	}
	s->mp_state %= 3;
	s->int_shadow %= 3;
	s->event_type %= 4;
}

static inline void case_patches(uint8_t *image, struct case_input *in)
{
	unsigned patches = take8(in) % 32;

	while (patches--) {
		unsigned at = (unsigned)take(in, 2) % (CASE_TABLES_END - 8);
		unsigned n = take8(in) % 8 + 1;

		case_put(image, at, n, take(in, n));
	}
}

/* --- a case -------------------------------------------------------------------------------------
 */

static uint8_t case_image[CASE_LOW_RAM]; /* guest memory, being laid out */

/* What vCPU n is to start with; memory is not touched.  Returns the mode its tables are for. */
static inline unsigned case_read_cpu(struct case_vm *v, unsigned n, unsigned mode,
				     struct case_input *in)
{
	struct x86_state *s = &v->state[n];
	unsigned base = mode == CASE_ANY_STATE ? take8(in) % CASE_ANY_STATE : mode;

	x86_state_reset(s);
	v->machine[n].answer = take(in, 2);
	v->machine[n].vector = 32;
	case_mode_state(s, base, take8(in) & 3);
	case_flip_bits(v, s, in);
	case_registers(s, in);
	if (mode == CASE_ANY_STATE)
		case_any_state(s, in);
	return base;
}

/* After the memory, which some registers are loaded from.  False: the engine refuses. */
static inline bool case_load_cpu(struct case_vm *v, unsigned n)
{
	struct error err = {""};

	if (!engine_soft.cpu_set(v->cpu[n], &v->state[n], &err))
		return true;
	if (!err.msg[0])
		case_die("a state was refused without a reason", &err);
	return false;
}

static inline void case_load_memory(struct case_vm *v, unsigned mode, struct case_input *in)
{
	memset(case_image, 0, sizeof(case_image));
	case_page_tables(case_image);
	case_gdt(case_image, case_is_long(mode));
	case_idt(case_image, mode);
	case_tss(case_image, CASE_TSS, case_is_long(mode));
	case_tss(case_image, CASE_TSS2, case_is_long(mode));
	case_patches(case_image, in);
	for (unsigned at = 0; in->len && at < CASE_CODE_SIZE; at += (unsigned)in->len)
		memcpy(case_image + CASE_CODE + at, in->data, MIN(in->len, CASE_CODE_SIZE - at));
	if (mem_write(v->mem, 0, case_image, sizeof(case_image)))
		abort();
	if (mem_write(v->mem, CASE_HIGH_RAM, case_image + CASE_CODE, 0x10000))
		abort();
}

/* Nothing a guest did may have reached the engine's own structures. */
static inline void case_check_cpu(struct case_vm *v, unsigned n)
{
	const struct cpu *cpu = (const struct cpu *)v->cpu[n];
	struct error err = {""};

	if (cpu->index != n || cpu->ops != &case_ops || cpu->opaque != &v->machine[n] ||
	    cpu->cpl > 3 || cpu->zero || cpu->in || cpu->delivering != CPU_IDLE)
		case_die("the vCPU's own fields changed", &err);
	engine_soft.cpu_get(v->cpu[n], &v->state[n]);
	if (engine_soft.cpu_set(v->cpu[n], &v->state[n], &err))
		case_die("a state that was saved does not load", &err);
}

/* Every entry of the TLB leads into guest RAM. */
static inline void case_check_tlb(struct case_vm *v, unsigned n)
{
	const struct cpu *cpu = (const struct cpu *)v->cpu[n];
	const struct tlb_entry *e = (const struct tlb_entry *)cpu->mmu->tlbs;
	unsigned nr = (TLB_SLOTS * TLB_NR_CLASSES + 1) * NR_KINDS * TLB_ENTRIES;
	const struct mem_range *r;
	unsigned ranges = mem_ram_ranges(v->mem, &r);

	for (unsigned i = 0; i < nr; i++) {
		uint64_t hva = e[i].tag + e[i].addend;
		bool inside = e[i].tag == TLB_INVALID || !e[i].tag; /* slots never used are 0 */

		for (unsigned k = 0; k < ranges; k++)
			inside |= hva - (uintptr_t)r[k].hva < r[k].size;
		if (!inside)
			case_die("a TLB entry leads out of RAM", &(struct error){""});
	}
}

/* The next time slice ends by a kick: case_slice, see who includes this. */
static void case_slice_begin(struct case_vm *v);

/* Run vCPU n until it is done: true when it could go on. */
static inline bool case_run_cpu(struct case_vm *v, unsigned n)
{
	struct engine_exit_info info = {0};
	unsigned kicks = 0, wakes = 0;

	while (kicks < CASE_KICKS && wakes < CASE_WAKES) {
		switch (engine_soft.cpu_run(v->cpu[n], &info)) {
		case ENGINE_EXIT_KICKED:
			kicks++;
			if (n == 0 && kicks < CASE_KICKS)
				case_slice_begin(v);
			if (kicks & 1)
				engine_soft.cpu_intr(v->cpu[n], true);
			break;
		case ENGINE_EXIT_HALTED:
			wakes++;
			engine_soft.cpu_nmi(v->cpu[n]);
			v->machine[n].vector = 32 + (int)wakes;
			engine_soft.cpu_intr(v->cpu[n], true);
			break;
		case ENGINE_EXIT_SHUTDOWN:
			return false;
		case ENGINE_EXIT_ERROR:
			fprintf(stderr, "the engine gave up: %s\n", info.message);
			abort();
		case ENGINE_EXIT_DEBUG:
			fprintf(stderr, "a debug exit that nobody asked for\n");
			abort();
		}
	}
	return true;
}

/* Events that an earlier case left behind. */
static inline void case_settle(struct case_vm *v, unsigned n)
{
	struct engine_exit_info info;

	engine_soft.cpu_intr(v->cpu[n], false);
	engine_soft.cpu_kick(v->cpu[n]);
	engine_soft.cpu_run(v->cpu[n], &info);
}
