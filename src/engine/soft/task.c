/* engine/soft/task.c - hardware task switching, 16- and 32-bit TSSs.
 *
 * A switch has a point of no return.  Before it everything is checked that the old task answers
 * for: the new TSS's limit, and that both TSSs and both descriptors can be reached.  After it the
 * new task's registers are loaded, and whatever is wrong with its selectors is a fault of the new
 * task, at its CS:EIP (SDM 3A "Task Switching", table "Exception Conditions Checked During a Task
 * Switch"; AMD APM 2 "Hardware Task-Management Exceptions"). */
#include "engine/soft/access.h"
#include "engine/soft/debug.h"
#include "engine/soft/far.h"
#include "engine/soft/flags_sys.h"
#include "engine/soft/vec.h"

/* Where things are in a TSS of either width. */
struct tss_layout {
	uint8_t width;          /* of IP, flags and general registers */
	uint8_t size;           /* the least a TSS must have */
	uint8_t cr3;            /* 0: none */
	uint8_t ip, flags, gpr; /* gpr: AX, the other seven follow */
	uint8_t seg;            /* ES CS SS DS [FS GS], one `width` apart */
	uint8_t nr_seg, ldt;
	uint8_t trap; /* 0: none */
};

static const struct tss_layout tss16 = {
	.width = 2,
	.size = 44,
	.ip = 14,
	.flags = 16,
	.gpr = 18,
	.seg = 34,
	.nr_seg = 4,
	.ldt = 42,
};
static const struct tss_layout tss32 = {
	.width = 4,
	.size = 104,
	.cr3 = 28,
	.ip = 32,
	.flags = 36,
	.gpr = 40,
	.seg = 72,
	.nr_seg = 6,
	.ldt = 96,
	.trap = 100,
};

/* What the incoming task brings. */
struct task_image {
	const struct tss_layout *layout;
	uint64_t cr3, ip, flags, gpr[8];
	uint16_t seg[X86_NR_SEG], ldt;
	bool trap;
};

static const struct tss_layout *layout_of(unsigned type)
{
	return type & 8 ? &tss32 : &tss16;
}

static gva_t tss_at(const struct cpu *cpu, uint64_t base, unsigned off)
{
	return sys_linear(cpu, base, off);
}

static uint32_t tss_read(struct cpu *cpu, uint64_t base, unsigned off, unsigned width)
{
	gva_t lin = tss_at(cpu, base, off);

	return width == 4 ? sys_ld32(cpu, lin) : sys_ld16(cpu, lin);
}

static void tss_write(struct cpu *cpu, uint64_t base, unsigned off, unsigned width, uint32_t v)
{
	gva_t lin = tss_at(cpu, base, off);

	if (width == 4)
		sys_st32(cpu, lin, v);
	else
		sys_st16(cpu, lin, v);
}

/* --- before the point of no return -------------------------------------------------------------
 */

static _Noreturn void fault_ts(struct cpu *cpu, uint16_t sel, uint32_t ext)
{
	cpu_fault(cpu, X86_EXC_TS, SEL_ERR(sel) | ext);
}

void task_fetch_tss(struct cpu *cpu, uint16_t sel, uint32_t ext, struct desc *d)
{
	uint32_t err = SEL_ERR(sel) | ext;

	if ((sel & SEL_TI) || !desc_fetch(cpu, sel, d) || desc_is_segment(d) ||
	    (desc_type(d) != DESC_TSS && desc_type(d) != DESC_TSS16))
		fault_gp(cpu, err);
	if (!desc_present(d))
		cpu_fault(cpu, X86_EXC_NP, err);
}

/* The upper halves of the 32-bit registers are undefined after a switch to a 16-bit task; ones is
 * what a 386 left there. */
static void image_read(struct cpu *cpu, const struct desc *d, struct task_image *t)
{
	const struct tss_layout *l = layout_of(desc_type(d));
	uint64_t base = desc_base(d);

	*t = (struct task_image){.layout = l};
	t->cr3 = l->cr3 ? tss_read(cpu, base, l->cr3, 4) : 0;
	t->ip = tss_read(cpu, base, l->ip, l->width);
	t->flags = tss_read(cpu, base, l->flags, l->width);
	for (unsigned i = 0; i < 8; i++)
		t->gpr[i] = tss_read(cpu, base, l->gpr + i * l->width, l->width) |
			    (l->width == 2 ? 0xffff0000 : 0);
	for (unsigned i = 0; i < l->nr_seg; i++)
		t->seg[i] = tss_read(cpu, base, l->seg + i * l->width, 2);
	t->ldt = tss_read(cpu, base, l->ldt, 2);
	t->trap = l->trap && (tss_read(cpu, base, l->trap, 2) & 1);
}

/* The part of the outgoing TSS that is written, from IP to the last selector. */
static void probe_old(struct cpu *cpu, uint32_t ext)
{
	const struct tss_layout *l = layout_of(X86_SEG_TYPE(cpu->tr.attr));
	unsigned end = l->seg + l->nr_seg * l->width;

	if (cpu->tr.limit < end - 1)
		fault_ts(cpu, cpu->tr.selector, ext);
	sys_probe(cpu, tss_at(cpu, cpu->tr.base, l->ip), end - l->ip, true);
}

static bool nests(enum task_reason why)
{
	return why == TASK_CALL || why == TASK_EVENT;
}

/* --- the switch --------------------------------------------------------------------------------
 */

static void save_old(struct cpu *cpu, enum task_reason why)
{
	const struct tss_layout *l = layout_of(X86_SEG_TYPE(cpu->tr.attr));
	uint64_t base = cpu->tr.base, flags = cpu_rflags(cpu);

	if (why == TASK_IRET)
		flags &= ~RFLAGS_NT;
	tss_write(cpu, base, l->ip, l->width, (uint32_t)cpu->rip);
	tss_write(cpu, base, l->flags, l->width, (uint32_t)flags);
	for (unsigned i = 0; i < 8; i++)
		tss_write(cpu, base, l->gpr + i * l->width, l->width, (uint32_t)cpu->gpr[i]);
	for (unsigned i = 0; i < l->nr_seg; i++)
		tss_write(cpu, base, l->seg + i * l->width, 2, cpu->seg[i].selector);
}

/* Selectors without descriptors: what the new task has until they are loaded one by one. */
static void load_registers(struct cpu *cpu, const struct task_image *t, bool nested)
{
	for (unsigned i = 0; i < 8; i++)
		cpu->gpr[i] = t->gpr[i];
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		seg_make_null(&cpu->seg[i], t->seg[i]);
	seg_make_null(&cpu->ldtr, t->ldt);
	cpu->rip = t->ip;
	cpu_set_rflags(cpu, (t->flags & FLAGS_ALL) | (nested ? RFLAGS_NT : 0));
	cpu->cpl = cpu->rflags & RFLAGS_VM ? 3 : SEL_RPL(t->seg[X86_CS]);
	cpu->cr0 |= CR0_TS;
	cpu->dr7 &= ~DR7_LOCAL;
}

static void load_ldt(struct cpu *cpu, uint16_t sel, uint32_t ext)
{
	struct desc d;

	if (SEL_NULL(sel))
		return;
	if ((sel & SEL_TI) || !desc_fetch(cpu, sel, &d) || desc_is_segment(&d) ||
	    desc_type(&d) != DESC_LDT || !desc_present(&d))
		fault_ts(cpu, sel, ext);
	seg_from_desc(cpu, &cpu->ldtr, sel, &d);
}

static void load_cs(struct cpu *cpu, uint16_t sel, uint32_t ext)
{
	struct desc d;

	if (SEL_NULL(sel) || !desc_fetch(cpu, sel, &d) || !desc_is_code(&d))
		fault_ts(cpu, sel, ext);
	if (desc_is_conforming(&d) ? desc_dpl(&d) > SEL_RPL(sel) : desc_dpl(&d) != SEL_RPL(sel))
		fault_ts(cpu, sel, ext);
	if (!desc_present(&d))
		cpu_fault(cpu, X86_EXC_NP, SEL_ERR(sel) | ext);
	desc_set_accessed(cpu, &d);
	seg_from_desc(cpu, &cpu->seg[X86_CS], sel, &d);
}

static void load_ss(struct cpu *cpu, uint16_t sel, uint32_t ext)
{
	struct desc d;

	seg_check_stack(cpu, sel, cpu->cpl, X86_EXC_TS, ext, &d);
	desc_set_accessed(cpu, &d);
	seg_from_desc(cpu, &cpu->seg[X86_SS], sel, &d);
}

static void load_data(struct cpu *cpu, unsigned seg, uint16_t sel, uint32_t ext)
{
	unsigned need = MAX(cpu->cpl, SEL_RPL(sel));
	struct desc d;

	if (SEL_NULL(sel))
		return;
	if (!desc_fetch(cpu, sel, &d) || !desc_is_segment(&d))
		fault_ts(cpu, sel, ext);
	if (desc_is_code(&d) && !(desc_type(&d) & SEG_TYPE_RW))
		fault_ts(cpu, sel, ext);
	if (!(desc_is_code(&d) && desc_is_conforming(&d)) && desc_dpl(&d) < need)
		fault_ts(cpu, sel, ext);
	if (!desc_present(&d))
		cpu_fault(cpu, X86_EXC_NP, SEL_ERR(sel) | ext);
	desc_set_accessed(cpu, &d);
	seg_from_desc(cpu, &cpu->seg[seg], sel, &d);
}

static void load_segments(struct cpu *cpu, const struct task_image *t, uint32_t ext)
{
	static const uint8_t data[] = {X86_ES, X86_DS, X86_FS, X86_GS};

	load_ldt(cpu, t->ldt, ext);
	if (cpu->v86) {
		for (unsigned i = 0; i < X86_NR_SEG; i++)
			seg_make_v86(&cpu->seg[i], t->seg[i]);
		cpu_mode_update(cpu);
		return;
	}
	load_cs(cpu, t->seg[X86_CS], ext);
	load_ss(cpu, t->seg[X86_SS], ext);
	cpu_mode_update(cpu);
	for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
		load_data(cpu, data[i], t->seg[data[i]], ext);
}

static void push_error(struct cpu *cpu, const struct task_image *t, const struct task_event *ev)
{
	struct far_stack st;

	stack_current(cpu, &st, t->layout->width, ev->ext);
	stack_reserve(cpu, &st, 1);
	stack_put(cpu, &st, ev->error);
	stack_commit(cpu, &st);
}

/* The new task from its image.  Everything here happens in the new task's name. */
static void enter(struct cpu *cpu, const struct task_image *t, enum task_reason why,
		  const struct task_event *ev)
{
	uint32_t ext = ev ? ev->ext : 0;

	cpu->in = NULL; /* faults restart at the new EIP, not at the old task's instruction */
	load_registers(cpu, t, nests(why));
	cpu_mode_update(cpu);
	vec_update(cpu); /* CR0.TS, RFLAGS.VM */
	debug_update(cpu);
	if (t->layout->cr3 && (cpu->cr0 & CR0_PG))
		cpu_write_cr3(cpu, t->cr3);
	load_segments(cpu, t, ext);
	if (ev && ev->has_error)
		push_error(cpu, t, ev);
	far_check_rip(cpu, &cpu->seg[X86_CS], t->ip, ext);
	if (t->trap)
		cpu->dbg_pending |= DR6_BT;
}

void task_switch(struct cpu *cpu, struct desc *d, enum task_reason why, const struct task_event *ev)
{
	const struct tss_layout *l = layout_of(desc_type(d));
	uint32_t ext = ev ? ev->ext : 0;
	uint16_t old_sel = cpu->tr.selector;
	struct task_image t;
	struct desc old;

	if (desc_limit(d) < l->size - 1u)
		fault_ts(cpu, d->sel, ext);
	image_read(cpu, d, &t);
	probe_old(cpu, ext);
	if (!desc_fetch(cpu, old_sel, &old))
		fault_ts(cpu, old_sel, ext);
	sys_probe(cpu, old.lin, 8, true);
	sys_probe(cpu, d->lin, 8, true);
	if (nests(why))
		sys_probe(cpu, desc_base(d), 2, true);

	if (!nests(why))
		desc_clear_type_bits(cpu, &old, DESC_BUSY_BIT);
	save_old(cpu, why);
	if (nests(why))
		tss_write(cpu, desc_base(d), 0, 2, old_sel);
	if (why != TASK_IRET)
		desc_set_type_bits(cpu, d, DESC_BUSY_BIT);
	seg_from_desc(cpu, &cpu->tr, d->sel, d);
	enter(cpu, &t, why, ev);
}

void task_return(struct cpu *cpu)
{
	uint16_t sel = tss_read(cpu, cpu->tr.base, 0, 2);
	struct desc d;

	if ((sel & SEL_TI) || !desc_fetch(cpu, sel, &d) || desc_is_segment(&d) ||
	    (desc_type(&d) != DESC_TSS_BUSY && desc_type(&d) != DESC_TSS16_BUSY))
		fault_ts(cpu, sel, 0);
	if (!desc_present(&d))
		cpu_fault(cpu, X86_EXC_NP, SEL_ERR(sel));
	task_switch(cpu, &d, TASK_IRET, NULL);
}
