/* engine/soft/exc.c - delivery of exceptions and interrupts: IVT, IDT, TSS stacks.
 *
 * Nothing of the CPU changes before the last check; then everything changes at once (far.h).  A
 * fault on the way unwinds like any other, and the run loop composes it with the event that was
 * being delivered (#DF, shutdown).  The only effect a failed delivery leaves is CR2, which a page
 * fault loads before anything else.
 *
 * SDM 3A "Interrupt and Exception Handling", SDM 2 INT; AMD APM 2 "Exceptions and Interrupts". */
#include "engine/soft/access.h"
#include "engine/soft/debug.h"
#include "engine/soft/far.h"
#include "engine/soft/tlb.h"
#include "engine/soft/vec.h"

struct event {
	uint8_t vector;
	bool soft; /* INT n, INT3, INTO: gate DPL counts, EXT is 0 */
	bool has_error;
	uint32_t error;
	uint32_t ext;   /* EXT bit of faults met on the way */
	uint64_t flags; /* RFLAGS to push */
};

struct gate {
	uint16_t sel;
	uint64_t off;
	uint8_t type, dpl, ist;
	bool present;
};

/* --- raising -----------------------------------------------------------------------------------
 */

static _Noreturn void raise(struct cpu *cpu, struct cpu_fault_info f)
{
	cpu->fault = f;
	cpu_unwind(cpu, UNWIND_FAULT);
}

_Noreturn void cpu_fault(struct cpu *cpu, uint8_t vector, uint32_t error)
{
	raise(cpu, (struct cpu_fault_info){.vector = vector, .has_error = true, .error = error});
}

_Noreturn void cpu_fault_plain(struct cpu *cpu, uint8_t vector)
{
	raise(cpu, (struct cpu_fault_info){.vector = vector});
}

_Noreturn void cpu_page_fault(struct cpu *cpu, gva_t lin, uint32_t error)
{
	raise(cpu, (struct cpu_fault_info){
			   .vector = X86_EXC_PF, .has_error = true, .error = error, .cr2 = lin});
}

/* --- stacks ------------------------------------------------------------------------------------
 */

void stack_current(const struct cpu *cpu, struct far_stack *st, unsigned slot, uint32_t ext)
{
	st->ss = cpu->seg[X86_SS];
	st->sp = cpu->gpr[X86_RSP];
	st->mask = cpu->sp_mask;
	st->wide = cpu->mode == INSN_MODE_64;
	st->cpl = cpu->cpl;
	st->slot = slot;
	st->err = ext;
}

void stack_from_desc(struct cpu *cpu, struct far_stack *st, const struct desc *ss, uint64_t sp,
		     unsigned cpl)
{
	seg_from_desc(cpu, &st->ss, ss->sel, ss);
	st->sp = sp;
	st->mask = desc_is_big(ss) ? 0xffffffff : 0xffff;
	st->wide = false;
	st->cpl = cpl;
}

static gva_t stack_address(struct cpu *cpu, const struct far_stack *st, uint64_t sp, unsigned size)
{
	uint64_t off = sp & st->mask;

	if (st->wide) {
		if (!cpu_canonical(cpu, off, size))
			cpu_fault(cpu, X86_EXC_SS, st->err);
		return off;
	}
	if ((st->ss.attr & X86_SEG_UNUSABLE) || !seg_limit_allows(&st->ss, off, size))
		cpu_fault(cpu, X86_EXC_SS, st->err);
	return (uint32_t)(st->ss.base + off);
}

void stack_check(struct cpu *cpu, const struct far_stack *st, unsigned slots)
{
	unsigned bytes = slots * st->slot;

	if ((st->sp & st->mask) >= bytes) {
		stack_address(cpu, st, st->sp - bytes, bytes);
		return;
	}
	for (unsigned i = 1; i <= slots; i++) /* wraps around */
		stack_address(cpu, st, st->sp - i * st->slot, st->slot);
}

static bool misaligned(const struct cpu *cpu, unsigned cpl, gva_t lin, unsigned size)
{
	return cpl == 3 && (cpu->cr0 & CR0_AM) && (cpu->rflags & RFLAGS_AC) && (lin & (size - 1));
}

/* Fault unless ring `cpl`, which need not be the current one, could write there. */
static void probe_write_as(struct cpu *cpu, unsigned cpl, gva_t lin, unsigned size)
{
	struct mmu_access a = {
		.lin = lin,
		.write = true,
		.user = cpl == 3,
		.smap = cpl != 3 && (cpu->cr4 & CR4_SMAP) && !(cpu->rflags & RFLAGS_AC),
	};
	enum tlb_class cls = a.user ? TLB_USER : a.smap ? TLB_SUPER_SMAP : TLB_SUPER;
	struct tlb *t = &cpu->mmu->tlbs[cpu->mmu->cur * TLB_NR_CLASSES + cls];

	if (misaligned(cpu, cpl, lin, size))
		cpu_fault(cpu, X86_EXC_AC, 0);
	if (tlb_hit(tlb_slot(t->wr, lin), lin, size))
		return;
	mmu_translate(cpu, &a);
	a.lin = (lin + size - 1) & PAGE_MASK;
	if ((a.lin ^ lin) & PAGE_MASK)
		mmu_translate(cpu, &a);
}

/* In the order of the pushes, so that CR2 names the first one that fails; one walk per page.  On
 * AMD's processors a limit too shows only when the push gets there. */
void stack_reserve(struct cpu *cpu, const struct far_stack *st, unsigned slots)
{
	gva_t last = 1; /* no page begins here */

	if (!cpu_model_is_amd(cpu->vm->model))
		stack_check(cpu, st, slots);
	for (unsigned i = 1; i <= slots; i++) {
		gva_t lin = stack_address(cpu, st, st->sp - i * st->slot, st->slot);

		if ((lin & PAGE_MASK) != last || (lin & (st->slot - 1u)))
			probe_write_as(cpu, st->cpl, lin, st->slot);
		last = lin & PAGE_MASK;
	}
}

void stack_put(struct cpu *cpu, struct far_stack *st, uint64_t v)
{
	gva_t lin;

	st->sp = (st->sp & ~st->mask) | ((st->sp - st->slot) & st->mask);
	lin = stack_address(cpu, st, st->sp, st->slot);
	if (st->slot == 8)
		st64(cpu, lin, v);
	else if (st->slot == 4)
		st32(cpu, lin, v);
	else
		st16(cpu, lin, v);
}

void stack_commit(struct cpu *cpu, const struct far_stack *st)
{
	cpu->gpr[X86_RSP] = st->wide || st->mask == 0xffff ? st->sp : (uint32_t)st->sp;
}

uint64_t stack_peek(struct cpu *cpu, const struct far_stack *st, unsigned n, unsigned skip)
{
	gva_t lin = stack_address(cpu, st, st->sp + n * st->slot + skip, st->slot);

	return st->slot == 8 ? ld64(cpu, lin) : st->slot == 4 ? ld32(cpu, lin) : ld16(cpu, lin);
}

/* --- the task state segment as a source of stacks ----------------------------------------------
 */

static void tss_need(struct cpu *cpu, unsigned last, uint32_t ext)
{
	if (last > cpu->tr.limit)
		cpu_fault(cpu, X86_EXC_TS, SEL_ERR(cpu->tr.selector) | ext);
}

uint64_t far_tss_rsp(struct cpu *cpu, unsigned off, uint32_t ext)
{
	uint64_t rsp;

	tss_need(cpu, off + 7, ext);
	rsp = sys_ld64(cpu, cpu->tr.base + off);
	if (!cpu_canonical(cpu, rsp, 1))
		cpu_fault(cpu, X86_EXC_SS, ext);
	return rsp;
}

/* The null SS that long mode loads on entry to an inner ring. */
static void long_inner_stack(struct cpu *cpu, struct far_stack *st, uint64_t rsp, unsigned cpl,
			     uint32_t ext)
{
	seg_make_null(&st->ss, cpl);
	st->sp = rsp;
	st->mask = ~0ull;
	st->wide = true;
	st->cpl = cpl;
	st->slot = 8;
	st->err = ext;
}

void far_tss_stack(struct cpu *cpu, struct far_stack *st, struct desc *ss, unsigned cpl,
		   uint32_t ext)
{
	uint64_t sp;
	uint16_t sel;
	gva_t lin;

	if (cpu->long_mode) {
		long_inner_stack(cpu, st, far_tss_rsp(cpu, 4 + cpl * 8, ext), cpl, ext);
		return;
	}
	if (X86_SEG_TYPE(cpu->tr.attr) & 8) {
		tss_need(cpu, 4 + cpl * 8 + 5, ext);
		lin = sys_linear(cpu, cpu->tr.base, 4 + cpl * 8);
		sp = sys_ld32(cpu, lin);
		sel = sys_ld16(cpu, sys_linear(cpu, lin, 4));
	} else {
		tss_need(cpu, 2 + cpl * 4 + 3, ext);
		lin = sys_linear(cpu, cpu->tr.base, 2 + cpl * 4);
		sp = sys_ld16(cpu, lin);
		sel = sys_ld16(cpu, sys_linear(cpu, lin, 2));
	}
	seg_check_stack(cpu, sel, cpl, X86_EXC_TS, ext, ss);
	stack_from_desc(cpu, st, ss, sp, cpl);
	st->err = SEL_ERR(sel) | ext;
}

void far_check_rip(struct cpu *cpu, const struct cpu_seg *cs, uint64_t rip, uint32_t ext)
{
	bool ok = cpu->long_mode && (cs->attr & X86_SEG_L) ? cpu_canonical(cpu, rip, 1)
							   : rip <= cs->limit;

	if (!ok)
		fault_gp(cpu, ext);
}

/* --- real mode ---------------------------------------------------------------------------------
 */

static void deliver_real(struct cpu *cpu, const struct event *ev)
{
	unsigned entry = ev->vector * 4u;
	struct cpu_seg cs = cpu->seg[X86_CS];
	struct far_stack st;
	uint32_t target;

	if (entry + 3 > cpu->idtr.limit)
		fault_gp(cpu, entry * 2 + 2 + ev->ext);
	target = sys_ld32(cpu, sys_linear(cpu, cpu->idtr.base, entry));
	stack_current(cpu, &st, 2, ev->ext);
	stack_reserve(cpu, &st, 3);
	far_check_rip(cpu, &cs, target & 0xffff, ev->ext);

	stack_put(cpu, &st, ev->flags);
	stack_put(cpu, &st, cs.selector);
	stack_put(cpu, &st, cpu->rip);
	stack_commit(cpu, &st);
	seg_make_real(cpu, &cs, target >> 16);
	seg_set_cs(cpu, &cs, 0);
	cpu->rip = target & 0xffff;
	cpu->rflags &= ~(RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF);
	cpu_mode_update(cpu);
}

/* --- protected and long mode -------------------------------------------------------------------
 */

static uint32_t idt_err(const struct event *ev)
{
	return ev->vector * 8u + 2 + ev->ext;
}

static bool gate_type_ok(const struct cpu *cpu, unsigned type)
{
	if (cpu->long_mode)
		return type == DESC_INT || type == DESC_TRAP;
	return type == DESC_TASK_GATE || type == DESC_INT16 || type == DESC_TRAP16 ||
	       type == DESC_INT || type == DESC_TRAP;
}

static void gate_fetch(struct cpu *cpu, const struct event *ev, struct gate *g)
{
	unsigned size = cpu->long_mode ? 16 : 8;
	unsigned entry = ev->vector * size;
	uint64_t raw, hi = 0;
	gva_t lin;

	if (entry + size - 1 > cpu->idtr.limit)
		fault_gp(cpu, idt_err(ev));
	lin = sys_linear(cpu, cpu->idtr.base, entry);
	raw = sys_ld64(cpu, lin);
	if (cpu->long_mode)
		hi = sys_ld64(cpu, lin + 8);
	g->sel = raw >> 16;
	g->off = (raw & 0xffff) | (raw >> 32 & 0xffff0000) | hi << 32;
	g->type = raw >> 40 & 31; /* with S, which must be 0 */
	g->dpl = raw >> 45 & 3;
	g->ist = cpu->long_mode ? raw >> 32 & 7 : 0;
	g->present = raw >> 47 & 1;
	if (g->type == DESC_INT16 || g->type == DESC_TRAP16)
		g->off &= 0xffff;
}

static void gate_check(struct cpu *cpu, const struct event *ev, const struct gate *g)
{
	if (!gate_type_ok(cpu, g->type))
		fault_gp(cpu, idt_err(ev));
	if (ev->soft && g->dpl < cpu->cpl)
		fault_gp(cpu, idt_err(ev));
	if (!g->present)
		cpu_fault(cpu, X86_EXC_NP, idt_err(ev));
}

/* The handler's code segment; returns the CPL it runs at. */
static unsigned gate_fetch_cs(struct cpu *cpu, const struct event *ev, const struct gate *g,
			      struct desc *cs)
{
	uint32_t err = SEL_ERR(g->sel) | ev->ext;
	unsigned cpl;

	if (SEL_NULL(g->sel))
		fault_gp(cpu, ev->ext);
	if (!desc_fetch(cpu, g->sel, cs) || !desc_is_code(cs) || desc_dpl(cs) > cpu->cpl)
		fault_gp(cpu, err);
	if (cpu->long_mode && (!desc_is_long(cs) || desc_is_big(cs)))
		fault_gp(cpu, err);
	if (!desc_present(cs))
		cpu_fault(cpu, X86_EXC_NP, err);
	cpl = desc_is_conforming(cs) ? cpu->cpl : desc_dpl(cs);
	if (cpu->v86 && cpl != 0) /* virtual-8086 mode is left for ring 0 only */
		fault_gp(cpu, err);
	return cpl;
}

/* Which stack the frame goes to.  True when SS changes. */
static bool gate_stack(struct cpu *cpu, const struct event *ev, const struct gate *g, unsigned cpl,
		       struct far_stack *st, struct desc *ss)
{
	bool inner = cpl != cpu->cpl;

	if (g->ist)
		long_inner_stack(cpu, st, far_tss_rsp(cpu, 28 + g->ist * 8, ev->ext), cpl, ev->ext);
	else if (inner)
		far_tss_stack(cpu, st, ss, cpl, ev->ext);
	else
		stack_current(cpu, st, 0, ev->ext);
	if (cpu->long_mode) {
		st->wide = true;
		st->mask = ~0ull;
		st->sp &= ~15ull;
	}
	st->slot = cpu->long_mode ? 8 : g->type & 8 ? 4 : 2;
	return inner;
}

struct frame {
	unsigned n;
	uint64_t v[10];
};

static void frame_add(struct frame *f, uint64_t v)
{
	f->v[f->n++] = v;
}

static void frame_build(const struct cpu *cpu, const struct event *ev, bool inner, struct frame *f)
{
	f->n = 0;
	if (cpu->v86) {
		frame_add(f, cpu->seg[X86_GS].selector);
		frame_add(f, cpu->seg[X86_FS].selector);
		frame_add(f, cpu->seg[X86_DS].selector);
		frame_add(f, cpu->seg[X86_ES].selector);
	}
	if (inner || cpu->long_mode) {
		frame_add(f, cpu->seg[X86_SS].selector);
		frame_add(f, cpu->gpr[X86_RSP]);
	}
	frame_add(f, ev->flags);
	frame_add(f, cpu->seg[X86_CS].selector);
	frame_add(f, cpu->rip);
	if (ev->has_error)
		frame_add(f, ev->error);
}

static void drop_v86_segments(struct cpu *cpu)
{
	static const uint8_t regs[] = {X86_ES, X86_DS, X86_FS, X86_GS};

	for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
		seg_make_null(&cpu->seg[regs[i]], 0);
}

static void deliver_gate(struct cpu *cpu, const struct event *ev, const struct gate *g)
{
	struct desc cs_desc, ss_desc = {0};
	struct far_stack st;
	struct frame f;
	struct cpu_seg cs;
	bool inner, was_v86 = cpu->v86;
	unsigned cpl;

	cpl = gate_fetch_cs(cpu, ev, g, &cs_desc);
	inner = gate_stack(cpu, ev, g, cpl, &st, &ss_desc);
	frame_build(cpu, ev, inner, &f);
	stack_check(cpu, &st, f.n);
	seg_from_desc(cpu, &cs, (g->sel & ~3u) | cpl, &cs_desc);
	far_check_rip(cpu, &cs, g->off, ev->ext);
	stack_reserve(cpu, &st, f.n);
	desc_set_accessed(cpu, &cs_desc);
	if (ss_desc.raw)
		desc_set_accessed(cpu, &ss_desc);

	if (was_v86)
		drop_v86_segments(cpu);
	cpu->rflags &= ~(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM);
	if (g->type == DESC_INT || g->type == DESC_INT16)
		cpu->rflags &= ~RFLAGS_IF;
	seg_set_cs(cpu, &cs, cpl);
	if (inner)
		cpu->seg[X86_SS] = st.ss;
	cpu->rip = g->off;
	cpu_mode_update(cpu);
	if (was_v86)
		vec_update(cpu);
	for (unsigned i = 0; i < f.n; i++)
		stack_put(cpu, &st, f.v[i]);
	stack_commit(cpu, &st);
}

static void deliver_task(struct cpu *cpu, const struct event *ev, const struct gate *g)
{
	struct task_event te = {.has_error = ev->has_error, .error = ev->error, .ext = ev->ext};
	struct desc tss;

	/* The image that goes into the old TSS has RF as a frame would. */
	task_fetch_tss(cpu, g->sel, ev->ext, &tss);
	cpu->rflags = (cpu->rflags & ~RFLAGS_RF) | (ev->flags & RFLAGS_RF);
	task_switch(cpu, &tss, TASK_EVENT, &te);
}

static void deliver(struct cpu *cpu, const struct event *ev)
{
	struct gate g;

	if (cpu->real) {
		deliver_real(cpu, ev);
	} else {
		gate_fetch(cpu, ev, &g);
		gate_check(cpu, ev, &g);
		if (g.type == DESC_TASK_GATE)
			deliver_task(cpu, ev, &g);
		else
			deliver_gate(cpu, ev, &g);
	}
	cpu->halted = false;
	cpu->int_shadow = 0;
	cpu->dbg_no_step = true;
}

/* --- the events --------------------------------------------------------------------------------
 */

/* SDM 3B "Instruction-Breakpoint Exception Condition": fault-class exceptions push RF=1, except
 * debug exceptions; #DF and #MC are aborts, #BP and #OF traps. */
static bool pushes_rf(unsigned vector)
{
	const uint32_t others = 1u << X86_EXC_DB | 1u << X86_EXC_NMI | 1u << X86_EXC_BP |
				1u << X86_EXC_OF | 1u << X86_EXC_DF | 1u << X86_EXC_MC;

	return vector < 32 && !(others >> vector & 1);
}

void exc_deliver(struct cpu *cpu, const struct cpu_fault_info *f)
{
	struct event ev = {
		.vector = f->vector,
		.has_error = f->has_error,
		.error = f->error,
		.ext = 1,
		.flags = cpu_rflags(cpu),
	};

	if (pushes_rf(f->vector))
		ev.flags |= RFLAGS_RF;
	if (f->vector == X86_EXC_PF)
		cpu->cr2 = f->cr2;
	cpu->dbg_pending = 0; /* of an instruction that did not complete and will meet them again */
	deliver(cpu, &ev);
	if (f->vector == X86_EXC_DB)
		cpu->dr7 &= ~DR7_GD;
}

void exc_interrupt(struct cpu *cpu, uint8_t vector)
{
	struct event ev = {.vector = vector, .ext = 1, .flags = cpu_rflags(cpu)};

	deliver(cpu, &ev);
}

/* NMIs are blocked from the moment one is accepted, even if its delivery then faults. */
void exc_nmi(struct cpu *cpu)
{
	cpu->nmi_masked = true;
	exc_interrupt(cpu, X86_EXC_NMI);
}

void cpu_nmi_unmask(struct cpu *cpu)
{
	cpu->nmi_masked = false;
	if (unlikely(atomic_load(&cpu->events) & CPU_EV_NMI2)) {
		atomic_fetch_or(&cpu->events, CPU_EV_NMI);
		atomic_fetch_and(&cpu->events, ~(uint32_t)CPU_EV_NMI2);
	}
}

/* INT1 counts as an event from outside: no DPL check, EXT set (SDM 2 INT). */
void exc_soft_int(struct cpu *cpu, uint8_t vector, bool int1)
{
	struct event ev = {
		.vector = vector,
		.soft = !int1,
		.ext = int1,
		.flags = cpu_rflags(cpu) & ~RFLAGS_RF,
	};

	/* What a load of SS held back is reported by INT1's own exception. */
	if (int1 && cpu->dbg_pending) {
		debug_set_dr6(cpu, cpu->dbg_pending);
		cpu->dbg_pending = 0;
	}
	deliver(cpu, &ev);
	if (int1)
		cpu->dr7 &= ~DR7_GD;
}
