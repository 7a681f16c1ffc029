/* fake_engine_ops.h - the smallest machine an engine can run on, and a long-mode guest to run.
 *
 * struct fake_machine remembers what the guest did to ports and MMIO, answers reads with what a
 * test put there, and hands out one interrupt vector at a time.
 *
 * struct soft_guest is a VM of engine_soft over 8 MiB of RAM with paging on, ring 0, flat segments;
 * linear = physical.  The first 2 MiB are mapped by 4 KiB pages, so that a test can take single
 * pages away.  Exceptions leave engine_cpu_run (intercepted) unless a test lets them through.
 *
 *	struct soft_guest *g = soft_guest_create(1);
 *	static const uint8_t code[] = {0x48, 0xff, 0xc0, 0xf4};	// inc rax; hlt
 *	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
 *	CHECK_EQ(1, soft_guest_state(g)->gpr[X86_RAX]); */
#pragma once

#include "base/error.h"
#include "engine/cpu_model.h"
#include "engine/engine.h"
#include "engine/x86_defs.h"
#include "mem/mem.h"
#include "soft_options.h"
#include "test.h"

#include <pthread.h>

/* --- the machine -------------------------------------------------------------------------------
 */

enum { FAKE_LOG = 64 };

struct fake_access {
	uint64_t addr, value;
	uint8_t size;
	bool write;
};

struct fake_machine {
	struct fake_access pio[FAKE_LOG], mmio[FAKE_LOG];
	unsigned nr_pio, nr_mmio;
	uint64_t read_value; /* what port and MMIO reads return */
	uint8_t rom[256];    /* bytes of MMIO at rom_at, when rom_at is not 0 */
	gpa_t rom_at;
	int vector; /* pending interrupt, -1: none */
	unsigned nr_acks;
	struct engine_cpu *cpu;
	void (*on_pio_write)(struct fake_machine *m, uint16_t port, uint32_t value);
	void *test;
};

static inline void fake_note(struct fake_access *log, unsigned *n, struct fake_access a)
{
	if (*n < FAKE_LOG)
		log[*n] = a;
	++*n;
}

static inline uint64_t fake_mmio_read(void *opaque, gpa_t gpa, unsigned size)
{
	struct fake_machine *m = opaque;
	uint64_t v = 0;

	if (m->rom_at && gpa - m->rom_at < sizeof(m->rom) - 8) {
		memcpy(&v, m->rom + (gpa - m->rom_at), size);
		return v;
	}
	fake_note(m->mmio, &m->nr_mmio, (struct fake_access){gpa, m->read_value, size, false});
	return m->read_value;
}

static inline void fake_mmio_write(void *opaque, gpa_t gpa, uint64_t v, unsigned size)
{
	struct fake_machine *m = opaque;

	fake_note(m->mmio, &m->nr_mmio, (struct fake_access){gpa, v, size, true});
}

static inline uint32_t fake_pio_read(void *opaque, uint16_t port, unsigned size)
{
	struct fake_machine *m = opaque;

	fake_note(m->pio, &m->nr_pio, (struct fake_access){port, m->read_value, size, false});
	return (uint32_t)m->read_value;
}

static inline void fake_pio_write(void *opaque, uint16_t port, uint32_t v, unsigned size)
{
	struct fake_machine *m = opaque;

	fake_note(m->pio, &m->nr_pio, (struct fake_access){port, v, size, true});
	if (m->on_pio_write)
		m->on_pio_write(m, port, v);
}

static inline bool fake_msr_read(void *opaque, uint32_t index, uint64_t *v)
{
	return false;
}

static inline bool fake_msr_write(void *opaque, uint32_t index, uint64_t v)
{
	return false;
}

static inline int fake_intr_ack(void *opaque)
{
	struct fake_machine *m = opaque;
	int v = m->vector;

	m->vector = -1;
	m->nr_acks++;
	engine_soft.cpu_intr(m->cpu, false);
	return v;
}

static inline void fake_interrupt(struct fake_machine *m, uint8_t vector)
{
	m->vector = vector;
	engine_soft.cpu_intr(m->cpu, true);
}

static inline uint8_t fake_cr8_read(void *opaque)
{
	return 0;
}

static inline void fake_cr8_write(void *opaque, uint8_t v)
{
}

static inline bool fake_hypercall(void *opaque, struct engine_cpu *cpu, uint64_t *gpr)
{
	return false;
}

static inline void fake_cpuid(void *opaque, uint32_t leaf, uint32_t sub, uint32_t regs[4])
{
}

static const struct engine_cpu_ops fake_engine_ops = {
	.mmio_read = fake_mmio_read,
	.mmio_write = fake_mmio_write,
	.pio_read = fake_pio_read,
	.pio_write = fake_pio_write,
	.msr_read = fake_msr_read,
	.msr_write = fake_msr_write,
	.intr_ack = fake_intr_ack,
	.cr8_read = fake_cr8_read,
	.cr8_write = fake_cr8_write,
	.hypercall = fake_hypercall,
	.cpuid = fake_cpuid,
};

/* --- the guest ---------------------------------------------------------------------------------
 */

enum { SOFT_GUEST_MAX_CPUS = 2 };

/* Where things are in guest memory. */
enum {
	SG_PML4 = 0x1000,
	SG_PDPT = 0x2000,
	SG_PD = 0x3000,
	SG_PT = 0x4000,
	SG_GDT = 0x5000,
	SG_IDT = 0x6000,
	SG_TSS = 0x7000,
	SG_CODE = 0x10000,
	SG_DATA = 0x20000,
	SG_STACK = 0x30000, /* top */
	SG_HANDLERS = 0x40000,
	SG_RAM = 8 * 1024 * 1024,
	SG_MMIO = 16 * 1024 * 1024, /* mapped, not RAM */
	SG_CS = 0x08,
	SG_DS = 0x10,
	SG_CS3 = 0x18 | 3,
	SG_DS3 = 0x20 | 3,
	SG_TR = 0x28,
};

#define SG_PTE (PTE_P | PTE_W | PTE_U | PTE_A | PTE_D)

struct soft_guest {
	struct mem *mem;
	struct cpu_model model;
	struct engine_vm *vm;
	unsigned nr_cpus;
	struct engine_cpu *cpu[SOFT_GUEST_MAX_CPUS];
	struct fake_machine machine[SOFT_GUEST_MAX_CPUS];
	struct engine_exit_info info;
	_Alignas(64) struct x86_state state;
};

static inline void sg_put(struct soft_guest *g, gpa_t gpa, const void *p, uint64_t len)
{
	CHECK_EQ(0, mem_write(g->mem, gpa, p, len));
}

static inline void sg_put64(struct soft_guest *g, gpa_t gpa, uint64_t v)
{
	sg_put(g, gpa, &v, sizeof(v));
}

static inline uint64_t sg_get64(struct soft_guest *g, gpa_t gpa)
{
	uint64_t v = 0;

	CHECK_EQ(0, mem_read(g->mem, gpa, &v, sizeof(v)));
	return v;
}

/* The page-table entry of a linear address below 2 MiB.  The TLB is not told. */
static inline void sg_map(struct soft_guest *g, uint64_t lin, uint64_t pte)
{
	sg_put64(g, SG_PT + (lin >> PAGE_SHIFT) * 8, pte);
}

static inline void sg_page_tables(struct soft_guest *g)
{
	sg_put64(g, SG_PML4, SG_PDPT | SG_PTE);
	sg_put64(g, SG_PDPT, SG_PD | SG_PTE);
	sg_put64(g, SG_PD, SG_PT | SG_PTE);
	for (uint64_t i = 1; i < 16; i++)
		sg_put64(g, SG_PD + i * 8, i << 21 | SG_PTE | PTE_PS);
	for (uint64_t i = 0; i < 512; i++)
		sg_map(g, i << PAGE_SHIFT, i << PAGE_SHIFT | SG_PTE);
}

/* A 64-bit interrupt gate. */
static inline void sg_gate(struct soft_guest *g, unsigned vector, uint64_t handler)
{
	sg_put64(g, SG_IDT + vector * 16,
		 (handler & 0xffff) | SG_CS << 16 | 0xeeull << 40 | (handler >> 16 & 0xffff) << 48);
	sg_put64(g, SG_IDT + vector * 16 + 8, handler >> 32);
}

static inline void sg_tables(struct soft_guest *g)
{
	static const uint64_t gdt[] = {0,
				       0x00af9b000000ffff,
				       0x00cf93000000ffff,
				       0x00affb000000ffff,
				       0x00cff3000000ffff,
				       0x0000890070000067,
				       0};

	sg_put(g, SG_GDT, gdt, sizeof(gdt));
	sg_put64(g, SG_TSS + 4, SG_STACK);
}

static inline void sg_state_init(struct x86_state *s)
{
	const struct x86_segment data = {0, ~0u, 0xc093, SG_DS};

	x86_state_reset(s);
	s->gpr[X86_RDX] = 0; /* the family, after RESET */
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = data;
	s->seg[X86_CS] = (struct x86_segment){0, ~0u, 0xa09b, SG_CS};
	s->tr = (struct x86_segment){SG_TSS, 0x67, 0x8b, SG_TR};
	s->gdtr = (struct x86_table){SG_GDT, 7 * 8 - 1};
	s->idtr = (struct x86_table){SG_IDT, 0xfff};
	s->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP;
	s->cr3 = SG_PML4;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	s->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	s->rflags = RFLAGS_FIXED;
	s->rip = SG_CODE;
	s->gpr[X86_RSP] = SG_STACK;
}

static inline void sg_intercept(struct soft_guest *g, uint32_t mask)
{
	for (unsigned i = 0; i < g->nr_cpus; i++)
		engine_soft.cpu_debug(g->cpu[i], &(struct engine_debug){.intercept = mask});
}

static inline struct soft_guest *soft_guest_create(unsigned nr_cpus)
{
	struct soft_guest *g = aligned_alloc(64, ALIGN_UP(sizeof(*g), 64));
	struct error err = {""};

	memset(g, 0, sizeof(*g));
	g->nr_cpus = nr_cpus;
	CHECK_EQ(0, mem_create(&g->mem, &err));
	CHECK_EQ(0, mem_add_ram(g->mem, 0, SG_RAM, &err));
	CHECK_EQ(0, cpu_model_resolve(&g->model, "max", &err));
	CHECK_EQ(0, engine_soft.vm_create(&g->vm,
					  &(struct engine_vm_config){.mem = g->mem,
								     .nr_cpus = nr_cpus,
								     .model = &g->model,
								     .options = soft_options()},
					  &err));
	sg_page_tables(g);
	sg_tables(g);
	sg_state_init(&g->state);
	for (unsigned i = 0; i < nr_cpus; i++) {
		g->machine[i].vector = -1;
		CHECK_EQ(0, engine_soft.cpu_create(&g->cpu[i], g->vm, i, &fake_engine_ops,
						   &g->machine[i], &err));
		g->machine[i].cpu = g->cpu[i];
		g->machine[i].test = g;
		CHECK_EQ(0, engine_soft.cpu_set(g->cpu[i], &g->state, &err));
	}
	sg_intercept(g, ~0u);
	return g;
}

static inline void soft_guest_destroy(struct soft_guest *g)
{
	for (unsigned i = 0; i < g->nr_cpus; i++)
		engine_soft.cpu_destroy(g->cpu[i]);
	engine_soft.vm_destroy(g->vm);
	mem_destroy(g->mem);
	free(g);
}

/* g->state is the state of vCPU 0 to start from and, after a run, the one it ended in. */
static inline void sg_load(struct soft_guest *g)
{
	CHECK_EQ(0, engine_soft.cpu_set(g->cpu[0], &g->state, NULL));
}

static inline enum engine_exit sg_run(struct soft_guest *g)
{
	enum engine_exit why = engine_soft.cpu_run(g->cpu[0], &g->info);

	engine_soft.cpu_get(g->cpu[0], &g->state);
	return why;
}

static inline struct x86_state *soft_guest_state(struct soft_guest *g)
{
	return &g->state;
}

/* Put code at SG_CODE, run it from there with g->state. */
static inline enum engine_exit soft_guest_run_code(struct soft_guest *g, const uint8_t *code,
						   size_t len)
{
	sg_put(g, SG_CODE, code, len);
	g->state.mp_state = X86_MP_RUNNABLE;
	g->state.rip = SG_CODE;
	sg_load(g);
	return sg_run(g);
}
