/* engine/soft/xlat_thunk.c - the few pieces of hand-made code between C and translated code.
 *
 *   enter       C calls it with the address to go to: saves C's registers, loads the guest's
 *   leave_to    T0 = address: likewise, to go on there
 *   leave_found the same with XLAT_FOUND: lockstep's only entry of the jump table
 *   leave       T0 = struct xexit *: stores the guest's registers, returns it to enter's caller
 *   interp      called with T0 = struct xsite *: stores the guest's registers, has the instruction
 *               interpreted, loads them again and returns; or leaves, if C says so
 *   interp_end  jumped to likewise; goes on wherever that leads, with an empty stack of calls, or
 *               leaves
 *
 * There is one set for 64-bit code, and one for 32-bit code, of which R8..R15 are not the guest's.
 *
 * C unwinds through interp by a long jump when the instruction faults: everything the guest owns is
 * in struct cpu then. */
#include "engine/soft/xlat_int.h"

static void gpr_move(struct xgen *g, bool store)
{
	for (unsigned n = 0; n < (g->narrow ? 8 : X86_NR_GPR); n++) {
		const struct xmem m = XMEM_CPU(g, gpr[n]);

		if (host_reg(n) == H_NONE)
			continue;
		if (store)
			x_store(g, &m, (unsigned)host_reg(n));
		else
			x_load(g, (unsigned)host_reg(n), &m);
	}
}

static void op_rr(struct xgen *g, uint8_t code, unsigned reg, unsigned rm)
{
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = code}, reg, rm);
}

/* cc, in RFLAGS positions, to xl_flags and the host's flags; then the registers. */
static void load_guest(struct xgen *g)
{
	const struct xmem cc = XMEM_CPU(g, cc), fl = XMEM_CPU(g, xl_flags);

	x_load32(g, H_RAX, &cc);
	op_rr(g, 0x89, H_RAX, H_RCX);
	x_shift(g, 5, H_RCX, 11, false);
	x_alu_imm(g, X_AND, H_RCX, 1, false);
	x_op_reg(g, &(struct xop){.map = MAP_0F, .opcode = 0xb6}, H_RAX, H_RAX); /* movzx eax, al */
	x_shift(g, 4, H_RAX, 8, false);
	op_rr(g, 0x09, H_RCX, H_RAX);
	x_store32(g, &fl, H_RAX);
	x8(g, 0x04); /* add al, 0x7f */
	x8(g, 0x7f);
	x8(g, 0x9e); /* sahf */
	gpr_move(g, false);
}

/* The reverse, with the flags in xl_flags. */
static void store_guest(struct xgen *g)
{
	const struct xmem cc = XMEM_CPU(g, cc), fl = XMEM_CPU(g, xl_flags);

	gpr_move(g, true);
	x_load32(g, H_RAX, &fl);
	x_op_reg(g, &(struct xop){.map = MAP_0F, .opcode = 0xb6}, H_RCX, 4); /* movzx ecx, ah */
	x_alu_imm(g, X_AND, H_RAX, 1, false);
	x_shift(g, 4, H_RAX, 11, false);
	op_rr(g, 0x09, H_RCX, H_RAX);
	x_store(g, &cc, H_RAX);
}

enum { STACK_ROOM = 64 * KiB }; /* for frames of calls: 4096 deep */

static const uint8_t saved[] = {H_RBX, H_RBP, H_R12, T0, T1, H_GUEST_RSP};

static void push_reg(struct xgen *g, unsigned reg, uint8_t code)
{
	if (reg >= 8)
		x8(g, 0x41);
	x8(g, (uint8_t)(code | (reg & 7)));
}

/* A frame for a return to address 0: xlat_flow.c.  RAX is free. */
static void stack_bottom(struct xgen *g, const struct xthunks *t)
{
	const struct xmem code = {.base = H_RIP, .index = H_NONE, .abs = x_rx(g->x, t->leave_to)};

	x8(g, 0x6a); /* push 0 */
	x8(g, 0);
	x_lea(g, H_RAX, &code);
	push_reg(g, H_RAX, 0x50);
}

static void emit_enter(struct xgen *g, const struct xthunks *t)
{
	const struct xmem sp = XMEM_CPU(g, xl_host_rsp), limit = XMEM_CPU(g, xl_rsp_limit);

	for (unsigned i = 0; i < sizeof(saved); i++)
		push_reg(g, saved[i], 0x50);
	stack_bottom(g, t);
	x_store(g, &sp, H_RSP);
	x_lea(g, T0, &(struct xmem){.base = H_RSP, .index = H_NONE, .disp = -STACK_ROOM});
	x_store(g, &limit, T0);
	x_mov(g, T1, H_RDI);
	load_guest(g);
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0xff}, 4, T1); /* jmp t1 */
}

static void emit_return(struct xgen *g)
{
	const struct xmem sp = XMEM_CPU(g, xl_host_rsp);

	x_load(g, H_RSP, &sp);
	x_lea(g, H_RSP, &(struct xmem){.base = H_RSP, .index = H_NONE, .disp = 16});
	for (unsigned i = sizeof(saved); i--;)
		push_reg(g, saved[i], 0x58);
	x8(g, 0xc3);
}

static void emit_leave(struct xgen *g)
{
	store_guest(g);
	x_mov(g, H_RAX, T0);
	emit_return(g);
}

/* Go on at T0 by way of the run loop. */
static void emit_leave_to(struct xgen *g)
{
	const struct xmem rip = XMEM_CPU(g, rip);

	x_store(g, &rip, T0);
	op_rr(g, 0x31, T0, T0);
	emit_leave(g);
}

/* Reached through the jump table, whose only entry is xlat.expected. */
static void emit_leave_found(struct xgen *g)
{
	x_mov_imm(g, T0, XLAT_FOUND);
	emit_leave(g);
}

/* rax = function(cpu, T0).  RBX: the stack pointer, which C wants aligned. */
static void call_interp(struct xgen *g, uintptr_t function)
{
	const struct xmem cpu = {.base = H_RIP, .index = H_NONE, .abs = g->cpu};

	store_guest(g);
	x_lea(g, H_RDI, &cpu);
	x_mov(g, H_RSI, T0);
	x_mov(g, H_RBX, H_RSP);
	x_alu_imm(g, X_AND, H_RSP, -16, true);
	x_mov_imm(g, H_RAX, function);
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0xff}, 2, H_RAX);
	x_mov(g, H_RSP, H_RBX);
}

static void emit_interp(struct xgen *g)
{
	uint32_t stop;

	call_interp(g, (uintptr_t)xlat_interp_one);
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x85, .w = true}, H_RAX, H_RAX);
	stop = x_jcc(g, CC_NZ);
	load_guest(g);
	x8(g, 0xc3);
	x_patch(g->x, stop, x_offset(g));
	op_rr(g, 0x31, H_RAX, H_RAX);
	emit_return(g);
}

static void emit_interp_end(struct xgen *g)
{
	const struct xmem sp = XMEM_CPU(g, xl_host_rsp);
	uint32_t stop;

	call_interp(g, (uintptr_t)xlat_interp_last);
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x85, .w = true}, H_RAX, H_RAX);
	stop = x_jcc(g, CC_Z);
	x_load(g, H_RSP, &sp);
	x_mov(g, T1, H_RAX);
	load_guest(g);
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0xff}, 4, T1); /* jmp t1 */
	x_patch(g->x, stop, x_offset(g));
	emit_return(g);
}

static void emit_all(struct xgen *g, struct xthunks *t)
{
	struct xlat *x = g->x;

	t->leave_to = x_offset(g);
	emit_leave_to(g);
	t->enter = (struct xexit * (*)(const void *))(uintptr_t)x_rx(x, x_offset(g));
	emit_enter(g, t);
	t->leave_found = x_offset(g);
	emit_leave_found(g);
	t->leave = x_offset(g);
	emit_leave(g);
	t->interp = x_offset(g);
	emit_interp(g);
	t->interp_end = x_offset(g);
	emit_interp_end(g);
}

void xlat_thunks(struct xlat *x)
{
	struct xgen *g = x->gen;

	g->x = x;
	g->cpu = x->cpu;
	g->p = x->rw;
	g->narrow = false;
	emit_all(g, &x->thunks[0]);
	g->narrow = true;
	emit_all(g, &x->thunks[1]);
}
