/* truth_engine.c - the soft engine with one CPU, in user mode of a Linux-like system: see truth.h.
 */
#include "base/error.h"
#include "engine/soft/cpu.h"
#include "soft_options.h"
#include "truth.h"

#include <string.h>

struct cpu_model truth_model;
uint64_t truth_xcr0;
struct truth_component truth_comp[64];

static struct engine_vm *vm;
static struct engine_cpu *cpu;
static struct x86_state guest;

/* --- a machine of memory only -------------------------------------------------------------------
 */

static uint64_t no_mmio_read(void *o, gpa_t gpa, unsigned size)
{
	return ~0ull;
}

static void no_mmio_write(void *o, gpa_t gpa, uint64_t v, unsigned size)
{
}

static uint32_t no_pio_read(void *o, uint16_t port, unsigned size)
{
	return ~0u;
}

static void no_pio_write(void *o, uint16_t port, uint32_t v, unsigned size)
{
}

static bool no_msr_read(void *o, uint32_t index, uint64_t *v)
{
	return false;
}

static bool no_msr_write(void *o, uint32_t index, uint64_t v)
{
	return false;
}

static int no_intr(void *o)
{
	return -1;
}

static uint8_t no_cr8(void *o)
{
	return 0;
}

static void no_cr8_write(void *o, uint8_t v)
{
}

static bool no_hypercall(void *o, struct engine_cpu *c, uint64_t gpr[X86_NR_GPR])
{
	return false;
}

static void no_cpuid(void *o, uint32_t leaf, uint32_t sub, uint32_t r[4])
{
}

static const struct engine_cpu_ops no_ops = {
	.mmio_read = no_mmio_read,
	.mmio_write = no_mmio_write,
	.pio_read = no_pio_read,
	.pio_write = no_pio_write,
	.msr_read = no_msr_read,
	.msr_write = no_msr_write,
	.intr_ack = no_intr,
	.cr8_read = no_cr8,
	.cr8_write = no_cr8_write,
	.hypercall = no_hypercall,
	.cpuid = no_cpuid,
};

/* --- the CPU ------------------------------------------------------------------------------------
 */

/* PKRU is 0 on both sides, so its component stays in its initial state. */
static void read_layout(void)
{
	truth_xcr0 = native_xcr0() & truth_model.xcr0_supported & ~XCR0_PKRU;
	for (unsigned i = 2; i < 32; i++)
		if (truth_xcr0 >> i & 1)
			cpu_xsave_component(i, &truth_comp[i].off, &truth_comp[i].size);
}

static void init_state(struct x86_state *s)
{
	x86_state_reset(s);
	s->cr0 = CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE | CR0_AM;
	s->cr3 = memory_page_tables();
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_UMIP;
	if (native_fsgsbase())
		s->cr4 |= CR4_FSGSBASE;
	s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	s->xcr0 = truth_xcr0;
	s->tsc_aux = truth_seg_of(SEL_CPU)->limit; /* as Linux has it, for RDPID */
	s->dr7 = 0x400;
	s->dr6 = 0xffff0ff0;
	s->gdtr = memory_gdt();
	s->idtr = memory_idt();
	s->ldtr = (struct x86_segment){.base = memory_ldt().base,
				       .limit = memory_ldt().limit,
				       .attr = 2 | X86_SEG_P,
				       .selector = 0x50};
	s->tr.limit = 0; /* no I/O permission bitmap */
	s->mp_state = X86_MP_RUNNABLE;
}

void engine_create(void)
{
	struct engine_vm_config cfg = {
		.nr_cpus = 1, .model = &truth_model, .options = soft_options()};
	struct engine_debug debug = {.intercept = ~0u};
	struct error err;

	if (cpu_model_resolve(&truth_model, "max", &err) < 0)
		die(err.msg);
	cfg.mem = memory_create();
	if (engine_soft.vm_create(&vm, &cfg, &err) < 0 ||
	    engine_soft.cpu_create(&cpu, vm, 0, &no_ops, NULL, &err) < 0)
		die(err.msg);
	engine_soft.cpu_debug(cpu, &debug);
	read_layout();
	init_state(&guest);
}

static void set_segment(struct x86_segment *s, uint16_t selector)
{
	const struct truth_seg *t = truth_seg_of(selector);

	*s = (struct x86_segment){.selector = selector, .attr = X86_SEG_UNUSABLE};
	if (!t)
		return;
	s->base = t->base;
	s->limit = t->limit;
	s->attr = t->attr;
}

static void load(const struct program *p)
{
	struct error err;

	memcpy(guest.gpr, p->start.gpr, sizeof(guest.gpr));
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		set_segment(&guest.seg[i], p->start.sel[i]);
	guest.seg[X86_FS].base = native_fs_base();
	if (!(p->start.sel[X86_GS] & ~3))
		guest.seg[X86_GS].base = p->start.gs_base;
	guest.rip = p->start.rip;
	guest.rflags = p->start.rflags;
	guest.mp_state = X86_MP_RUNNABLE;
	guest.event_pending = guest.int_shadow = 0;
	memcpy(guest.xsave, p->start.xsave, sizeof(guest.xsave));
	if (engine_soft.cpu_set(cpu, &guest, &err) < 0)
		die(err.msg);
}

/* Setting the state has emptied the TLB.  Half of the programs find the data pages in it, which is
 * another way through the engine than filling it. */
static void warm(const struct program *p)
{
	struct cpu *c = (struct cpu *)(void *)cpu;

	if (p->start.rip & 1)
		return;
	for (unsigned page = 0; page < DATA_PAGES; page++)
		for (unsigned write = 0; write < 2; write++) {
			struct mmu_access a = {
				.lin = DATA_GVA + page * PAGE_SIZE, .write = write, .user = true};

			if (memory_can(page, write))
				mmu_translate(c, &a);
		}
}

enum engine_exit engine_run(const struct program *p, struct engine_exit_info *info,
			    struct x86_state *state)
{
	enum engine_exit exit;

	load(p);
	warm(p);
	exit = engine_soft.cpu_run(cpu, info);
	engine_soft.cpu_get(cpu, state);
	return exit;
}
