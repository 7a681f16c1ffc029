/* kvm_guest.h - a small guest on the kvm engine: memory, page tables, IDT, and a machine that notes
 * what is asked of it.
 *
 *   0x2000 PML4, PDPT, two PDs: RAM and MMIO, one to one    0x6000 IDT (long mode)    0x7000 GDT
 *   0x10000 code    0x11000 handlers, 32 bytes each    0x80000 stack
 *
 * A guest ends by OUT to KG_EXIT, which kicks its CPU.  A handler writes its vector to KG_VECTOR
 * and returns.  Tests skip where there is no /dev/kvm or an option is not offered. */
#pragma once

#include "base/error.h"
#include "engine/cpu_model.h"
#include "engine/engine.h"
#include "engine/x86_defs.h"
#include "mem/mem.h"
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

enum {
	KG_PML4 = 0x2000,
	KG_IDT = 0x6000,
	KG_GDT = 0x7000,
	KG_CODE = 0x10000,
	KG_HANDLERS = 0x11000,
	KG_STACK = 0x80000,
	KG_RAM = 0x400000,
	KG_EXIT = 0xf4,
	KG_VECTOR = 0x80,
	KG_MAX_CPUS = 2,
	KG_LOG = 256,
};

#define KG_MMIO 0xc0000000ull

struct kg_access {
	bool write, pio;
	uint64_t addr, value;
	unsigned size;
};

struct kg;
struct kg_cpu {
	struct kg *g;
	unsigned index;
	struct kg_access log[KG_LOG];
	unsigned nr_log;
	unsigned nr_vectors; /* handlers run */
	uint8_t vectors[64];
	_Atomic int intr_vector; /* what intr_ack gives; -1: nothing */
	uint8_t cr8;
	uint8_t eoi_vector;
	unsigned nr_eois;
	uint64_t msr_value;
	uint32_t msr_index;
	bool msr_known;
	uint32_t pio_next; /* what reads of ports give, counting up */
};

struct kg {
	struct mem *mem;
	struct cpu_model model;
	const struct engine *e;
	struct engine_vm *vm;
	struct engine_cpu *cpu[KG_MAX_CPUS];
	struct kg_cpu machine[KG_MAX_CPUS];
	unsigned nr_cpus;
	struct x86_state state;
	struct engine_exit_info info;
};

/* --- the machine -------------------------------------------------------------------------------
 */

static inline void kg_note(struct kg_cpu *m, bool write, bool pio, uint64_t addr, uint64_t value,
			   unsigned size)
{
	if (m->nr_log < KG_LOG)
		m->log[m->nr_log++] = (struct kg_access){write, pio, addr, value, size};
}

static inline uint64_t kg_mmio_read(void *opaque, gpa_t gpa, unsigned size)
{
	uint64_t v = (0x8877665544332211ull + gpa) & (size == 8 ? ~0ull : BIT(size * 8) - 1);

	kg_note(opaque, false, false, gpa, v, size);
	return v;
}

static inline void kg_mmio_write(void *opaque, gpa_t gpa, uint64_t value, unsigned size)
{
	kg_note(opaque, true, false, gpa, value, size);
}

static inline uint32_t kg_pio_read(void *opaque, uint16_t port, unsigned size)
{
	struct kg_cpu *m = opaque;
	uint32_t v = m->pio_next++ & (uint32_t)(size == 4 ? ~0u : (1u << size * 8) - 1);

	kg_note(m, false, true, port, v, size);
	return v;
}

static inline void kg_pio_write(void *opaque, uint16_t port, uint32_t value, unsigned size)
{
	struct kg_cpu *m = opaque;

	if (port == KG_VECTOR) {
		if (m->nr_vectors < sizeof(m->vectors))
			m->vectors[m->nr_vectors] = (uint8_t)value;
		m->nr_vectors++;
		return;
	}
	kg_note(m, true, true, port, value, size);
	if (port == KG_EXIT)
		m->g->e->cpu_kick(m->g->cpu[m->index]);
}

static inline bool kg_msr_read(void *opaque, uint32_t index, uint64_t *value)
{
	struct kg_cpu *m = opaque;

	m->msr_index = index;
	*value = m->msr_value;
	return m->msr_known;
}

static inline bool kg_msr_write(void *opaque, uint32_t index, uint64_t value)
{
	struct kg_cpu *m = opaque;

	m->msr_index = index;
	m->msr_value = value;
	return m->msr_known;
}

static inline int kg_intr_ack(void *opaque)
{
	struct kg_cpu *m = opaque;
	int v = atomic_exchange(&m->intr_vector, -1);

	m->g->e->cpu_intr(m->g->cpu[m->index], false);
	return v;
}

static inline uint8_t kg_cr8_read(void *opaque)
{
	return ((struct kg_cpu *)opaque)->cr8;
}

static inline void kg_cr8_write(void *opaque, uint8_t value)
{
	((struct kg_cpu *)opaque)->cr8 = value;
}

static inline void kg_eoi(void *opaque, uint8_t vector)
{
	struct kg_cpu *m = opaque;

	m->eoi_vector = vector;
	m->nr_eois++;
}

static const struct engine_cpu_ops kg_ops = {
	.mmio_read = kg_mmio_read,
	.mmio_write = kg_mmio_write,
	.pio_read = kg_pio_read,
	.pio_write = kg_pio_write,
	.msr_read = kg_msr_read,
	.msr_write = kg_msr_write,
	.intr_ack = kg_intr_ack,
	.cr8_read = kg_cr8_read,
	.cr8_write = kg_cr8_write,
	.eoi = kg_eoi,
};

/* --- memory ------------------------------------------------------------------------------------
 */

static inline void kg_put(struct kg *g, gpa_t gpa, const void *p, size_t len)
{
	CHECK_EQ(0, mem_write(g->mem, gpa, p, len));
}

static inline void kg_put64(struct kg *g, gpa_t gpa, uint64_t v)
{
	kg_put(g, gpa, &v, sizeof(v));
}

static inline uint64_t kg_get64(struct kg *g, gpa_t gpa)
{
	uint64_t v;

	CHECK_EQ(0, mem_read(g->mem, gpa, &v, sizeof(v)));
	return v;
}

static inline void kg_page_tables(struct kg *g)
{
	enum { PD = KG_PML4 + 0x2000 };
	const uint64_t flags = PTE_P | PTE_W | PTE_U;

	kg_put64(g, KG_PML4, (KG_PML4 + 0x1000) | flags);
	kg_put64(g, KG_PML4 + 0x1000, PD | flags);
	kg_put64(g, KG_PML4 + 0x1000 + 3 * 8, (PD + 0x1000) | flags);
	for (uint64_t i = 0; i < 512; i++) {
		kg_put64(g, PD + i * 8, i << 21 | flags | PTE_PS);
		kg_put64(g, PD + 0x1000 + i * 8, (KG_MMIO + (i << 21)) | flags | PTE_PS);
	}
}

static inline void kg_gdt(struct kg *g)
{
	kg_put64(g, KG_GDT + 0x08, 0x00af9b000000ffff); /* code, 64-bit */
	kg_put64(g, KG_GDT + 0x10, 0x00cf93000000ffff); /* data */
}

/* Vector n: push the accumulator, OUT of n, EOI when there is a local APIC to tell, return. */
static inline void kg_handler(struct kg *g, unsigned n, bool eoi)
{
	uint8_t code[] = {
		0x50,                              /* push rax */
		0xb0, (uint8_t)n, 0xe6, KG_VECTOR, /* mov al, n; out KG_VECTOR, al */
		0x31, 0xc0,                        /* xor eax, eax */
		0xa3, 0xb0,       0x00, 0xe0,      0xfe, 0, 0, 0, 0, /* mov [0xfee000b0], eax */
		0x58, 0x48,       0xcf,                              /* pop rax; iretq */
	};
	const uint64_t at = KG_HANDLERS + n * 32u;
	/* Interrupt gate, present, selector 8 (SDM 3A "64-Bit Mode IDT"). */
	uint64_t gate[2] = {
		(at & 0xffff) | 8ull << 16 | 0x8e00ull << 32 | (at >> 16 & 0xffff) << 48, 0};

	if (!eoi)
		memset(code + 7, 0x90, 9);
	kg_put(g, at, code, sizeof(code));
	kg_put(g, KG_IDT + n * 16, gate, sizeof(gate));
}

/* --- states ------------------------------------------------------------------------------------
 */

enum {
	KG_ATTR_CODE64 = X86_SEG_P | X86_SEG_S | 0xb | X86_SEG_L | X86_SEG_G,
	KG_ATTR_CODE32 = X86_SEG_P | X86_SEG_S | 0xb | X86_SEG_DB | X86_SEG_G,
	KG_ATTR_DATA = X86_SEG_P | X86_SEG_S | 0x3 | X86_SEG_DB | X86_SEG_G,
};

static inline void kg_flat(struct x86_state *s, uint32_t code_attr)
{
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = (struct x86_segment){
			.limit = 0xffffffff, .attr = KG_ATTR_DATA, .selector = 0x10};
	s->seg[X86_CS].attr = code_attr;
	s->seg[X86_CS].selector = 8;
	s->gdtr = (struct x86_table){.base = KG_GDT, .limit = 0x17};
	s->rip = KG_CODE;
	s->gpr[X86_RSP] = KG_STACK;
	s->rflags = RFLAGS_FIXED;
}

static inline void kg_state_long(struct x86_state *s)
{
	x86_state_reset(s);
	kg_flat(s, KG_ATTR_CODE64);
	s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	s->efer = EFER_LME | EFER_LMA;
	s->cr3 = KG_PML4;
	s->idtr = (struct x86_table){.base = KG_IDT, .limit = 0xfff};
}

static inline void kg_state_protected(struct x86_state *s)
{
	x86_state_reset(s);
	kg_flat(s, KG_ATTR_CODE32);
	s->cr0 = CR0_PE | CR0_ET | CR0_NE;
}

static inline void kg_state_real(struct x86_state *s)
{
	x86_state_reset(s);
	s->cr0 = CR0_ET;
	s->seg[X86_CS].base = KG_CODE;
	s->seg[X86_CS].selector = KG_CODE >> 4;
	s->rip = 0;
	s->gpr[X86_RSP] = 0x8000;
}

/* --- life --------------------------------------------------------------------------------------
 */

static inline void kg_need_kvm(void)
{
	struct error err = {""};

	if (engine_kvm.probe(&err) < 0)
		SKIP(err.msg);
}

/* "max" less what this engine lacks here, as a VM would have it. */
static inline void kg_model(struct kg *g)
{
	uint64_t lacks[ARRAY_SIZE(g->model.features)] = {0};
	struct error err = {""};

	CHECK_EQ(0, cpu_model_resolve(&g->model, "max", &err));
	if (g->e->cpu_lacks)
		CHECK_EQ(0, g->e->cpu_lacks(&g->model, lacks, &err));
	CHECK_EQ(0, cpu_model_fit(&g->model, "max", lacks, &err));
}

static inline struct kg *kg_create(const char *options, unsigned nr_cpus)
{
	struct kg *g = aligned_alloc(64, ALIGN_UP(sizeof(*g), 64));
	struct engine_vm_config cfg = {.nr_cpus = nr_cpus, .options = options};
	struct error err = {""};
	int r;

	kg_need_kvm();
	memset(g, 0, sizeof(*g));
	g->e = &engine_kvm;
	g->nr_cpus = nr_cpus;
	kg_model(g);
	CHECK_EQ(0, mem_create(&g->mem, &err));
	CHECK_EQ(0, mem_add_ram(g->mem, 0, KG_RAM, &err));
	kg_page_tables(g);
	kg_gdt(g);
	cfg.mem = g->mem;
	cfg.model = &g->model;
	r = g->e->vm_create(&g->vm, &cfg, &err);
	if (r == -ENOTSUP)
		SKIP(err.msg);
	CHECK_STR("", err.msg);
	for (unsigned i = 0; i < nr_cpus; i++) {
		g->machine[i].g = g;
		g->machine[i].index = i;
		g->machine[i].intr_vector = -1;
		r = g->e->cpu_create(&g->cpu[i], g->vm, i, &kg_ops, &g->machine[i], &err);
		CHECK_STR("", err.msg);
		CHECK_EQ(0, r);
	}
	kg_state_long(&g->state);
	return g;
}

static inline void kg_destroy(struct kg *g)
{
	for (unsigned i = 0; i < g->nr_cpus; i++)
		g->e->cpu_destroy(g->cpu[i]);
	g->e->vm_destroy(g->vm);
	mem_destroy(g->mem);
	free(g);
}

static inline void kg_load(struct kg *g)
{
	struct error err = {""};
	int r = g->e->cpu_set(g->cpu[0], &g->state, &err);

	CHECK_STR("", err.msg);
	CHECK_EQ(0, r);
}

static inline enum engine_exit kg_run(struct kg *g)
{
	enum engine_exit why = g->e->cpu_run(g->cpu[0], &g->info);

	if (why == ENGINE_EXIT_ERROR)
		printf("# %s\n", g->info.message);
	g->e->cpu_get(g->cpu[0], &g->state);
	return why;
}

static inline enum engine_exit kg_run_code(struct kg *g, const void *code, size_t len)
{
	kg_put(g, KG_CODE, code, len);
	kg_load(g);
	return kg_run(g);
}

/* The local APIC as an operating system has it: software-enabled. */
static inline void kg_enable_lapic(struct kg *g, unsigned cpu)
{
	struct engine_lapic l;
	struct error err = {""};

	CHECK_EQ(0, g->e->irq->lapic_get(g->cpu[cpu], &l));
	l.reg[0x0f] = 0x1ff;
	CHECK_EQ(0, g->e->irq->lapic_set(g->cpu[cpu], &l, &err));
}
