/* engine/soft/far.c - far JMP, CALL and RET, call gates, IRET, INT n and relatives.
 *
 * Each transfer first gathers a struct landing (where to go and at which privilege) with all its
 * checks, then reserves stack, then commits: far.h.  The order of checks is that of the operation
 * sections of SDM 2 CALL, JMP, RET and IRET; see also AMD APM 2 "Control-Transfer Privilege
 * Checks" and "Call Gates". */
#include "engine/soft/far.h"

#include "engine/soft/access.h"
#include "engine/soft/flags_sys.h"
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/vec.h"

/* Where a transfer goes once all checks have passed. */
struct landing {
	struct cpu_seg cs;
	uint64_t rip;
	uint8_t cpl;
};

static uint64_t cut(uint64_t v, unsigned opsize)
{
	return opsize == 2 ? (uint16_t)v : opsize == 4 ? (uint32_t)v : v;
}

static void land(struct cpu *cpu, const struct landing *l)
{
	seg_set_cs(cpu, &l->cs, l->cpl);
	cpu->rip = l->rip;
}

/* Code segments may not ask for 64-bit and 32-bit operation at once. */
static void check_long_bits(struct cpu *cpu, const struct desc *d)
{
	if (cpu->long_mode && desc_is_long(d) && desc_is_big(d))
		fault_gp(cpu, SEL_ERR(d->sel));
}

static void check_present(struct cpu *cpu, const struct desc *d)
{
	if (!desc_present(d))
		cpu_fault(cpu, X86_EXC_NP, SEL_ERR(d->sel));
}

static void landing_fill(struct cpu *cpu, struct landing *l, const struct desc *d, uint64_t rip,
			 unsigned cpl)
{
	seg_from_desc(cpu, &l->cs, (d->sel & ~3u) | cpl, d);
	l->rip = rip;
	l->cpl = cpl;
}

/* Push the return address in slots of st and go. */
static void call_landing(struct cpu *cpu, const struct landing *l, struct far_stack *st,
			 struct desc *cs)
{
	uint16_t old_cs = cpu->seg[X86_CS].selector;
	uint64_t old_rip = cpu->rip;

	if (cpu_model_is_amd(cpu->vm->model)) { /* its processors push before they look at RIP */
		stack_reserve(cpu, st, 2);
		far_check_rip(cpu, &l->cs, l->rip, 0);
	} else {
		stack_check(cpu, st, 2);
		far_check_rip(cpu, &l->cs, l->rip, 0);
		stack_reserve(cpu, st, 2);
	}
	if (cs)
		desc_set_accessed(cpu, cs);
	land(cpu, l);
	cpu_mode_update(cpu);
	stack_put(cpu, st, old_cs);
	stack_put(cpu, st, old_rip);
	stack_commit(cpu, st);
}

static void jump_landing(struct cpu *cpu, const struct landing *l, struct desc *cs)
{
	far_check_rip(cpu, &l->cs, l->rip, 0);
	if (cs)
		desc_set_accessed(cpu, cs);
	land(cpu, l);
	cpu_mode_update(cpu);
}

/* --- real and virtual-8086 mode ----------------------------------------------------------------
 */

static void landing_real(struct cpu *cpu, struct landing *l, uint16_t sel, uint64_t rip)
{
	l->cs = cpu->seg[X86_CS];
	if (cpu->v86)
		seg_make_v86(&l->cs, sel);
	else
		seg_make_real(cpu, &l->cs, sel);
	l->rip = rip;
	l->cpl = cpu->cpl;
}

static void transfer_real(struct cpu *cpu, unsigned opsize, uint16_t sel, uint64_t rip, bool call)
{
	struct far_stack st;
	struct landing l;

	landing_real(cpu, &l, sel, rip);
	if (!call) {
		jump_landing(cpu, &l, NULL);
		return;
	}
	stack_current(cpu, &st, opsize, 0);
	call_landing(cpu, &l, &st, NULL);
}

/* --- direct transfers to a code segment --------------------------------------------------------
 */

/* AMD's processors push the return address in the mode they go to. */
static void stack_of_target(const struct cpu *cpu, struct far_stack *st, const struct desc *cs)
{
	if (!cpu->long_mode || !cpu_model_is_amd(cpu->vm->model))
		return;
	st->wide = desc_is_long(cs);
	st->mask = st->wide ? ~0ull : st->ss.attr & X86_SEG_DB ? 0xffffffff : 0xffff;
}

static void transfer_direct(struct cpu *cpu, unsigned opsize, struct desc *d, uint64_t rip,
			    bool call)
{
	bool allowed = desc_is_conforming(d)
			       ? desc_dpl(d) <= cpu->cpl
			       : desc_dpl(d) == cpu->cpl && SEL_RPL(d->sel) <= cpu->cpl;
	struct far_stack st;
	struct landing l;

	if (!allowed)
		fault_gp(cpu, SEL_ERR(d->sel));
	check_long_bits(cpu, d);
	check_present(cpu, d);
	landing_fill(cpu, &l, d, rip, cpu->cpl);
	if (!call) {
		jump_landing(cpu, &l, d);
		return;
	}
	stack_current(cpu, &st, opsize, 0);
	stack_of_target(cpu, &st, d);
	call_landing(cpu, &l, &st, d);
}

/* --- call gates --------------------------------------------------------------------------------
 */

enum { GATE_MAX_PARAMS = 31 };

static unsigned gate_slot(const struct cpu *cpu, const struct desc *gate)
{
	return cpu->long_mode ? 8 : desc_type(gate) == DESC_CALL ? 4 : 2;
}

static uint64_t gate_offset(const struct desc *gate)
{
	uint64_t low = gate->raw & 0xffff;

	return desc_type(gate) == DESC_CALL16
		       ? low
		       : low | (gate->raw >> 32 & 0xffff0000) | gate->raw_hi << 32;
}

static void gate_check(struct cpu *cpu, struct desc *gate)
{
	uint32_t err = SEL_ERR(gate->sel);

	if (desc_dpl(gate) < cpu->cpl || SEL_RPL(gate->sel) > desc_dpl(gate))
		fault_gp(cpu, err);
	if (cpu->long_mode && !desc_fetch_high(cpu, gate))
		fault_gp(cpu, err);
	check_present(cpu, gate);
}

static void gate_fetch_code(struct cpu *cpu, const struct desc *gate, struct desc *d, bool call)
{
	uint16_t sel = gate->raw >> 16;

	if (SEL_NULL(sel))
		fault_gp(cpu, 0);
	if (!desc_fetch(cpu, sel, d) || !desc_is_code(d) || desc_dpl(d) > cpu->cpl)
		fault_gp(cpu, SEL_ERR(sel));
	if (!call && !desc_is_conforming(d) &&
	    desc_dpl(d) != cpu->cpl) /* JMP never changes rings */
		fault_gp(cpu, SEL_ERR(sel));
	if (cpu->long_mode && (!desc_is_long(d) || desc_is_big(d)))
		fault_gp(cpu, SEL_ERR(sel));
	check_present(cpu, d);
}

/* The parameters as the new stack wants them pushed: the oldest first. */
static void read_params(struct cpu *cpu, unsigned slot, unsigned n, uint32_t *params)
{
	struct far_stack old;

	stack_current(cpu, &old, slot, 0);
	for (unsigned i = 0; i < n; i++)
		params[i] = stack_peek(cpu, &old, n - 1 - i, 0);
}

static void gate_call_inner(struct cpu *cpu, const struct desc *gate, struct desc *cs,
			    const struct landing *l)
{
	unsigned nr_params = cpu->long_mode ? 0 : gate->raw >> 32 & GATE_MAX_PARAMS;
	uint64_t old_ss = cpu->seg[X86_SS].selector, old_sp = cpu->gpr[X86_RSP];
	uint64_t old_cs = cpu->seg[X86_CS].selector, old_rip = cpu->rip;
	uint32_t params[GATE_MAX_PARAMS];
	struct desc ss = {0};
	struct far_stack st;

	far_tss_stack(cpu, &st, &ss, l->cpl, 0);
	st.slot = gate_slot(cpu, gate);
	stack_check(cpu, &st, nr_params + 4);
	far_check_rip(cpu, &l->cs, l->rip, 0);
	read_params(cpu, st.slot, nr_params, params);
	stack_reserve(cpu, &st, nr_params + 4);
	desc_set_accessed(cpu, cs);
	if (!cpu->long_mode)
		desc_set_accessed(cpu, &ss);

	land(cpu, l);
	cpu->seg[X86_SS] = st.ss;
	cpu_mode_update(cpu);
	stack_put(cpu, &st, old_ss);
	stack_put(cpu, &st, old_sp);
	for (unsigned i = 0; i < nr_params; i++)
		stack_put(cpu, &st, params[i]);
	stack_put(cpu, &st, old_cs);
	stack_put(cpu, &st, old_rip);
	stack_commit(cpu, &st);
}

static void gate_call_same(struct cpu *cpu, const struct desc *gate, struct desc *cs,
			   const struct landing *l)
{
	struct far_stack st;

	stack_current(cpu, &st, gate_slot(cpu, gate), 0);
	if (cpu->long_mode) { /* the callee is 64-bit code and its stack has no segment */
		st.wide = true;
		st.mask = ~0ull;
	}
	call_landing(cpu, l, &st, cs);
}

static void transfer_gate(struct cpu *cpu, struct desc *gate, bool call)
{
	struct landing l;
	struct desc cs = {0};
	unsigned cpl;

	gate_check(cpu, gate);
	gate_fetch_code(cpu, gate, &cs, call);
	cpl = desc_is_conforming(&cs) ? cpu->cpl : desc_dpl(&cs);
	landing_fill(cpu, &l, &cs, gate_offset(gate), cpl);
	if (!call)
		jump_landing(cpu, &l, &cs);
	else if (cpl < cpu->cpl)
		gate_call_inner(cpu, gate, &cs, &l);
	else
		gate_call_same(cpu, gate, &cs, &l);
}

/* --- task gates and TSSs -----------------------------------------------------------------------
 */

static void check_task_privilege(struct cpu *cpu, const struct desc *d)
{
	if (desc_dpl(d) < cpu->cpl || desc_dpl(d) < SEL_RPL(d->sel))
		fault_gp(cpu, SEL_ERR(d->sel));
}

static void transfer_task(struct cpu *cpu, struct desc *d, bool call)
{
	enum task_reason why = call ? TASK_CALL : TASK_JMP;
	struct desc tss;

	check_task_privilege(cpu, d);
	check_present(cpu, d);
	if (desc_type(d) == DESC_TASK_GATE) {
		task_fetch_tss(cpu, d->raw >> 16, 0, &tss);
		d = &tss;
	}
	task_switch(cpu, d, why, NULL);
}

/* --- JMP and CALL ------------------------------------------------------------------------------
 */

static void transfer_system(struct cpu *cpu, struct desc *d, bool call)
{
	switch (desc_type(d)) {
	case DESC_CALL:
		transfer_gate(cpu, d, call);
		return;
	case DESC_CALL16:
		if (cpu->long_mode)
			break;
		transfer_gate(cpu, d, call);
		return;
	case DESC_TSS16:
	case DESC_TSS:
	case DESC_TASK_GATE:
		if (cpu->long_mode)
			break;
		transfer_task(cpu, d, call);
		return;
	default:
		break;
	}
	fault_gp(cpu, SEL_ERR(d->sel));
}

static void transfer(struct cpu *cpu, unsigned opsize, uint16_t sel, uint64_t rip, bool call)
{
	struct desc d;

	rip = cut(rip, opsize);
	if (!cpu_protected(cpu)) {
		transfer_real(cpu, opsize, sel, rip, call);
		return;
	}
	if (SEL_NULL(sel))
		fault_gp(cpu, 0);
	if (!desc_fetch(cpu, sel, &d))
		fault_gp(cpu, SEL_ERR(sel));
	if (desc_is_code(&d))
		transfer_direct(cpu, opsize, &d, rip, call);
	else if (!desc_is_segment(&d))
		transfer_system(cpu, &d, call);
	else
		fault_gp(cpu, SEL_ERR(sel));
}

/* With REX.W AMD's processors read 32 bits of offset only.  Nothing can want that, but there are
 * programs that expect Intel's 64 of every CPU. */
static void transfer_memory(struct cpu *cpu, const struct insn *in, bool call)
{
	unsigned size = in->opsize;
	gva_t lin = insn_linear(cpu, in, size + 2, false);
	uint64_t rip = size == 2 ? ld16(cpu, lin) : size == 4 ? ld32(cpu, lin) : ld64(cpu, lin);

	transfer(cpu, size, ld16(cpu, sys_linear(cpu, lin, size)), rip, call);
}

void exec_jmp_far_A(struct cpu *cpu, const struct insn *in)
{
	transfer(cpu, in->opsize, in->sel, in->imm, false);
}

void exec_call_far_A(struct cpu *cpu, const struct insn *in)
{
	transfer(cpu, in->opsize, in->sel, in->imm, true);
}

void exec_jmp_far_M(struct cpu *cpu, const struct insn *in)
{
	transfer_memory(cpu, in, false);
}

void exec_call_far_M(struct cpu *cpu, const struct insn *in)
{
	transfer_memory(cpu, in, true);
}

/* --- RETF --------------------------------------------------------------------------------------
 */

/* The code segment a RETF or IRET goes back to; its RPL becomes the CPL. */
static void return_fetch_cs(struct cpu *cpu, uint16_t sel, struct desc *d)
{
	unsigned rpl = SEL_RPL(sel);

	if (SEL_NULL(sel))
		fault_gp(cpu, 0);
	if (!desc_fetch(cpu, sel, d) || !desc_is_code(d) || rpl < cpu->cpl)
		fault_gp(cpu, SEL_ERR(sel));
	if (desc_is_conforming(d) ? desc_dpl(d) > rpl : desc_dpl(d) != rpl)
		fault_gp(cpu, SEL_ERR(sel));
	check_long_bits(cpu, d);
	check_present(cpu, d);
}

/* The stack segment it goes back to.  Null is right only for 64-bit code inside the kernel. */
static void return_fetch_ss(struct cpu *cpu, uint16_t sel, const struct desc *cs,
			    struct cpu_seg *out, struct desc *d)
{
	unsigned cpl = SEL_RPL(cs->sel);

	if (SEL_NULL(sel) && cpu->long_mode && desc_is_long(cs) && cpl != 3 &&
	    SEL_RPL(sel) == cpl) {
		seg_make_null(out, sel);
		d->raw = 0;
		return;
	}
	seg_check_stack(cpu, sel, cpl, X86_EXC_GP, 0, d);
	seg_from_desc(cpu, out, sel, d);
}

/* Where a return goes when it also takes a stack from the frame. */
struct return_stack {
	struct cpu_seg ss;
	struct desc desc;
	uint64_t sp;
};

static void return_set_accessed(struct cpu *cpu, struct desc *cs, struct return_stack *rs)
{
	desc_set_accessed(cpu, cs);
	if (rs && rs->desc.raw)
		desc_set_accessed(cpu, &rs->desc);
}

/* AMD's processors read SS and SP of the frame before they check its CS. */
static void return_peek_stack(struct cpu *cpu, const struct far_stack *st, unsigned slot,
			      unsigned release)
{
	if (!cpu_model_is_amd(cpu->vm->model))
		return;
	stack_peek(cpu, st, slot + 1, release);
	stack_peek(cpu, st, slot, release);
}

static void ret_real(struct cpu *cpu, const struct far_stack *st, unsigned release)
{
	struct landing l;

	landing_real(cpu, &l, stack_peek(cpu, st, 1, 0), stack_peek(cpu, st, 0, 0));
	far_check_rip(cpu, &l.cs, l.rip, 0);
	land(cpu, &l);
	stack_set_sp(cpu, st->sp + 2 * st->slot + release);
	cpu_mode_update(cpu);
}

static void ret_protected(struct cpu *cpu, const struct far_stack *st, unsigned release)
{
	struct return_stack rs;
	struct landing l;
	struct desc cs;
	unsigned cpl;
	uint16_t sel;
	uint64_t rip;
	bool outer;

	if (cpu_model_is_amd(cpu->vm->model)) /* a page fault is that of CS, if both have one */
		stack_peek(cpu, st, 1, 0);
	rip = stack_peek(cpu, st, 0, 0);
	sel = stack_peek(cpu, st, 1, 0);
	cpl = SEL_RPL(sel);
	outer = cpl > cpu->cpl;

	if (cpl != cpu->cpl)
		return_peek_stack(cpu, st, 2, release);
	return_fetch_cs(cpu, sel, &cs);
	if (outer) {
		rs.sp = stack_peek(cpu, st, 2, release);
		return_fetch_ss(cpu, stack_peek(cpu, st, 3, release), &cs, &rs.ss, &rs.desc);
	}
	landing_fill(cpu, &l, &cs, rip, cpl);
	far_check_rip(cpu, &l.cs, rip, 0);
	return_set_accessed(cpu, &cs, outer ? &rs : NULL);

	land(cpu, &l);
	if (!outer)
		stack_set_sp(cpu, st->sp + 2 * st->slot + release); /* in the old stack size */
	else
		cpu->seg[X86_SS] = rs.ss;
	cpu_mode_update(cpu);
	if (outer) {
		stack_set_sp(cpu, rs.sp + release);
		seg_drop_inner(cpu);
	}
}

static void ret_far(struct cpu *cpu, const struct insn *in, unsigned release)
{
	struct far_stack st;

	stack_current(cpu, &st, in->opsize, 0);
	if (cpu_protected(cpu))
		ret_protected(cpu, &st, release);
	else
		ret_real(cpu, &st, release);
}

void exec_ret_far(struct cpu *cpu, const struct insn *in)
{
	ret_far(cpu, in, 0);
}

void exec_ret_far_I(struct cpu *cpu, const struct insn *in)
{
	ret_far(cpu, in, (uint16_t)in->imm);
}

/* --- IRET --------------------------------------------------------------------------------------
 */

/* The flags of the frame.  They say what else is in it, but faults come in the order of the pops:
 * IP, CS, flags; on AMD's processors the other way round. */
static uint64_t iret_flags(struct cpu *cpu, const struct far_stack *st)
{
	uint64_t flags;

	if (!cpu_model_is_amd(cpu->vm->model)) {
		stack_peek(cpu, st, 0, 0);
		stack_peek(cpu, st, 1, 0);
		return stack_peek(cpu, st, 2, 0);
	}
	flags = stack_peek(cpu, st, 2, 0);
	stack_peek(cpu, st, 1, 0);
	stack_peek(cpu, st, 0, 0);
	return flags;
}

/* Real mode, and virtual-8086 mode at IOPL 3 (where IOPL itself stays). */
static void iret_real(struct cpu *cpu, const struct far_stack *st)
{
	uint64_t flags = iret_flags(cpu, st);
	uint64_t mask = flags_user_mask(st->slot) | RFLAGS_IF | (st->slot == 2 ? 0 : RFLAGS_RF);
	struct landing l;

	landing_real(cpu, &l, stack_peek(cpu, st, 1, 0), stack_peek(cpu, st, 0, 0));
	far_check_rip(cpu, &l.cs, l.rip, 0);
	if (!cpu->v86)
		mask |= RFLAGS_IOPL;
	land(cpu, &l);
	stack_set_sp(cpu, st->sp + 3 * st->slot);
	flags_write(cpu, flags, mask);
	cpu_mode_update(cpu);
}

/* IOPL < 3 with CR4.VME: the virtual interrupt flag stands in for IF (SDM 3B "Virtual-8086 Mode
 * Extensions"). */
static void iret_vme(struct cpu *cpu, const struct far_stack *st)
{
	uint64_t flags = iret_flags(cpu, st);
	struct landing l;

	landing_real(cpu, &l, stack_peek(cpu, st, 1, 0), stack_peek(cpu, st, 0, 0));
	far_check_rip(cpu, &l.cs, l.rip, 0);
	flags_check_vif(cpu, flags);
	land(cpu, &l);
	stack_set_sp(cpu, st->sp + 3 * st->slot);
	flags_write_vif(cpu, flags);
	cpu_mode_update(cpu);
}

static void iret_v86(struct cpu *cpu, const struct far_stack *st)
{
	if (cpu_iopl(cpu) == 3)
		iret_real(cpu, st);
	else if ((cpu->cr4 & CR4_VME) && st->slot == 2)
		iret_vme(cpu, st);
	else
		fault_gp(cpu, 0);
}

/* From ring 0 to a virtual-8086 task: nine doublewords. */
static void iret_to_v86(struct cpu *cpu, const struct far_stack *st)
{
	static const uint8_t regs[] = {X86_SS, X86_ES, X86_DS, X86_FS, X86_GS};
	uint16_t sel[ARRAY_SIZE(regs)];
	uint64_t flags = stack_peek(cpu, st, 2, 0), sp = stack_peek(cpu, st, 3, 0);
	struct landing l = {.rip = stack_peek(cpu, st, 0, 0), .cpl = 3};

	seg_make_v86(&l.cs, stack_peek(cpu, st, 1, 0));
	for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
		sel[i] = stack_peek(cpu, st, 4 + i, 0);
	if (l.rip > l.cs.limit)
		fault_gp(cpu, 0);

	land(cpu, &l);
	for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
		seg_make_v86(&cpu->seg[regs[i]], sel[i]);
	flags_write(cpu, flags, FLAGS_ALL);
	cpu->gpr[X86_RSP] = (uint32_t)sp;
	cpu_mode_update(cpu);
	vec_update(cpu);
}

/* SDM 2 IRET: what the image may change depends on the CPL that executes IRET. */
static uint64_t iret_mask(const struct cpu *cpu, unsigned slot)
{
	uint64_t mask = flags_user_mask(slot);

	if (cpu->cpl <= cpu_iopl(cpu))
		mask |= RFLAGS_IF;
	if (cpu->cpl == 0)
		mask |= RFLAGS_IOPL;
	if (slot > 2)
		mask |= RFLAGS_RF;
	if (slot > 2 && cpu->cpl == 0)
		mask |= RFLAGS_VIF | RFLAGS_VIP;
	return mask;
}

static void iret_protected(struct cpu *cpu, const struct far_stack *st, uint64_t flags)
{
	uint64_t rip = stack_peek(cpu, st, 0, 0);
	uint16_t sel = stack_peek(cpu, st, 1, 0);
	uint64_t mask = iret_mask(cpu, st->slot);
	unsigned cpl = SEL_RPL(sel);
	bool outer = cpl > cpu->cpl;
	bool takes_stack = outer || cpu->mode == INSN_MODE_64;
	struct return_stack rs;
	struct landing l;
	struct desc cs;

	if (takes_stack || cpl != cpu->cpl)
		return_peek_stack(cpu, st, 3, 0);
	return_fetch_cs(cpu, sel, &cs);
	landing_fill(cpu, &l, &cs, rip, cpl);
	if (cpu_model_is_amd(cpu->vm->model)) /* its processors check RIP before SS */
		far_check_rip(cpu, &l.cs, rip, 0);
	if (takes_stack) {
		rs.sp = stack_peek(cpu, st, 3, 0);
		return_fetch_ss(cpu, stack_peek(cpu, st, 4, 0), &cs, &rs.ss, &rs.desc);
	}
	far_check_rip(cpu, &l.cs, rip, 0);
	return_set_accessed(cpu, &cs, takes_stack ? &rs : NULL);

	land(cpu, &l);
	if (takes_stack)
		cpu->seg[X86_SS] = rs.ss;
	else
		stack_set_sp(cpu, st->sp + 3 * st->slot);
	flags_write(cpu, flags, mask);
	cpu_mode_update(cpu);
	if (takes_stack)
		stack_set_sp(cpu, rs.sp);
	if (outer)
		seg_drop_inner(cpu);
}

/* NMIs are possible again even when IRET faults (SDM 3A "Handling Multiple NMIs"). */
void exec_iret(struct cpu *cpu, const struct insn *in)
{
	struct far_stack st;
	uint64_t flags;

	cpu_nmi_unmask(cpu);
	stack_current(cpu, &st, in->opsize, 0);
	if (cpu->real) {
		iret_real(cpu, &st);
		return;
	}
	if (cpu->v86) {
		iret_v86(cpu, &st);
		return;
	}
	if (cpu->rflags & RFLAGS_NT) {
		if (cpu->long_mode)
			fault_gp(cpu, 0);
		task_return(cpu);
		return;
	}
	flags = iret_flags(cpu, &st);
	if (st.slot == 4 && (flags & RFLAGS_VM) && cpu->cpl == 0 && !cpu->long_mode)
		iret_to_v86(cpu, &st);
	else
		iret_protected(cpu, &st, flags);
}

/* --- INT n, INT3, INTO, INT1 -------------------------------------------------------------------
 */

enum { TSS_IOMAP = 102, TSS_REDIRECTION_BYTES = 32 };

/* Bit of the interrupt redirection bitmap, the 32 bytes below the I/O map (SDM 3B "Interrupt and
 * Exception Handling" of virtual-8086 mode): set = the protected-mode way. */
static bool vme_redirection_bit(struct cpu *cpu, unsigned vector)
{
	uint32_t off;

	if (cpu->tr.limit < TSS_IOMAP + 1)
		fault_gp(cpu, 0);
	off = sys_ld16(cpu, sys_linear(cpu, cpu->tr.base, TSS_IOMAP));
	off = off - TSS_REDIRECTION_BYTES + vector / 8;
	if (off > cpu->tr.limit)
		fault_gp(cpu, 0);
	return sys_ld8(cpu, sys_linear(cpu, cpu->tr.base, off)) >> (vector % 8) & 1;
}

/* Let the 8086 program's own handler, at linear 0, have it: as in real mode, but with VIF for IF
 * when IOPL < 3 (methods 5 and 6). */
static void vme_interrupt(struct cpu *cpu, unsigned vector)
{
	uint64_t image = cpu_rflags(cpu) & ~RFLAGS_RF;
	uint64_t clear = RFLAGS_IF;
	struct far_stack st;
	struct landing l;
	uint32_t target;

	if (cpu_iopl(cpu) < 3) {
		image = flags_vif_image(cpu);
		clear = RFLAGS_VIF;
	}
	target = sys_ld32(cpu, vector * 4);
	landing_real(cpu, &l, target >> 16, target & 0xffff);
	stack_current(cpu, &st, 2, 0);
	stack_reserve(cpu, &st, 3);
	stack_put(cpu, &st, image);
	stack_put(cpu, &st, cpu->seg[X86_CS].selector);
	stack_put(cpu, &st, cpu->rip);
	stack_commit(cpu, &st);
	land(cpu, &l);
	cpu->rflags &= ~(clear | RFLAGS_TF | RFLAGS_RF);
	cpu->dbg_no_step = true;
	cpu_mode_update(cpu);
}

void exec_int_I(struct cpu *cpu, const struct insn *in)
{
	uint8_t vector = in->imm;

	if (cpu->v86) {
		if ((cpu->cr4 & CR4_VME) && !vme_redirection_bit(cpu, vector)) {
			vme_interrupt(cpu, vector);
			return;
		}
		if (cpu_iopl(cpu) < 3)
			fault_gp(cpu, 0);
	}
	exc_soft_int(cpu, vector, false);
}

void exec_int3(struct cpu *cpu, const struct insn *in)
{
	if (unlikely(cpu->debug.intercept & BIT(X86_EXC_BP)))
		cpu_fault_plain(cpu, X86_EXC_BP); /* a debugger's breakpoint: RIP stays at it */
	exc_soft_int(cpu, X86_EXC_BP, false);
}

void exec_into(struct cpu *cpu, const struct insn *in)
{
	if (cpu->cc & RFLAGS_OF)
		exc_soft_int(cpu, X86_EXC_OF, false);
}

void exec_int1(struct cpu *cpu, const struct insn *in)
{
	exc_soft_int(cpu, X86_EXC_DB, true);
}
