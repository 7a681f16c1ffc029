/* engine/soft/xlat_flow.c - how translated code enters a block, leaves it, and calls out.
 *
 *              from elsewhere                    from the same page
 *                    |
 *     guarded:  is the page mapped here? --no--> refuse
 *     mem:      anything to attend to?   --yes-> refuse      <- backwards, flags in FL_MEM
 *               load flags, if wanted
 *     plain:    the block                                    <- forwards, flags as flags_in says
 *     checked:  save flags, then as mem  (flags_in = FL_HOST)<- backwards
 *
 * A way out to a known address is a jump to a stub that returns to the run loop; linking lets the
 * jump, or the end of the stub if flags must be saved first, lead to the next block.  Ways to
 * addresses known at run time ask the jump table. */
#include "engine/soft/xlat_int.h"

static const struct xthunks *thunks(const struct xgen *g)
{
	return &g->x->thunks[g->narrow];
}

/* --- entries -----------------------------------------------------------------------------------
 */

static void check_events(struct xgen *g)
{
	const struct xmem ev = XMEM_CPU(g, events), mask = XMEM_CPU(g, xl_events);

	x_load32(g, T0, &ev);
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0x85}, T0, &mask, 0); /* test */
	g->xb->exit[2].stub = x_jcc(g, CC_NZ);
}

static uint32_t check_page(struct xgen *g, const struct xpage *page)
{
	size_t slot = (page->lin >> PAGE_SHIFT) % TLB_ENTRIES;
	const struct xmem m = {.base = H_NONE,
			       .index = H_NONE,
			       .gs = true,
			       .disp = (int32_t)(offsetof(struct tlb, exid) + slot * 4)};

	x_cmp_mem_imm32(g, &m, (int32_t)page->id, false);
	return x_jcc(g, CC_NZ);
}

/* Accesses of one instruction that go through the software TLB. */
static unsigned operands_of(const struct xgen *g, unsigned i)
{
	unsigned memory = !!(g->b->insns[i].flags & INSN_MEM);

	switch ((enum insn_xlat)g->info[i].kind) {
	case XLAT_COPY:
	case XLAT_VEC:
	case XLAT_JMPIND:
		return memory;
	case XLAT_PUSH:
	case XLAT_POP:
	case XLAT_LEAVE:
	case XLAT_CALL:
	case XLAT_CALLIND:
	case XLAT_RET:
		return 1 + memory;
	default:
		return 0;
	}
}

static void count(struct xgen *g, const struct xmem *counter, unsigned n)
{
	x_load(g, T0, counter);
	x_lea(g, T0, &(struct xmem){.base = T0, .index = H_NONE, .disp = (int32_t)n});
	x_store(g, counter, T0);
}

static void count_block(struct xgen *g)
{
	const struct xmem insns = XMEM_CPU(g, stats.insns);
	const struct xmem operands = XMEM_CPU(g, stats.operands);
	unsigned n = 0;

	for (unsigned i = 0; i < g->nr; i++)
		n += operands_of(g, i);
	count(g, &insns, g->nr);
	count(g, &operands, n);
}

void xlat_entries(struct xgen *g)
{
	struct xblock *xb = g->xb;

	xb->exit[2].entry = true;
	xb->guarded = x_offset(g);
	xb->exit[2].tail = check_page(g, xb->page);
	if (xb->page2)
		xb->exit[2].jump = check_page(g, xb->page2);
	xb->mem = x_offset(g);
	check_events(g);
	g->flags = FL_MEM;
	if (xb->flags_in == FL_HOST)
		xlat_flags_restore(g);
	xb->plain = x_offset(g);
	xb->checked = xb->mem; /* the stub may know better */
	if (g->x->cfg.count)
		count_block(g);
	g->flags = xb->flags_in ? xb->flags_in : FL_HOST;
}

/* --- exits -------------------------------------------------------------------------------------
 */

static void way_out(struct xgen *g, struct xexit *e, uint64_t target, unsigned cc)
{
	e->target = target;
	e->flags = g->flags;
	e->back = target < g->next_rip;
	if (cc == EXIT_CALL) {
		x_call_to(g, 0);
		e->jump = x_offset(g) - 4;
		return;
	}
	e->jump = cc == EXIT_JMP ? x_jmp(g) : x_jcc(g, cc);
}

void xlat_exit_jump(struct xgen *g, unsigned n, uint64_t target, unsigned cc)
{
	way_out(g, &g->xb->exit[n], target, cc);
}

static void leave_with(struct xgen *g, const struct xexit *e)
{
	const struct xmem m = {.base = H_RIP, .index = H_NONE, .abs = e};

	x_lea(g, T0, &m);
	x_jmp_to(g, thunks(g)->leave);
}

static void exit_stub(struct xgen *g, struct xexit *e)
{
	if (!e->jump)
		return;
	e->stub = x_offset(g);
	x_patch(g->x, e->jump, e->stub);
	g->flags = e->flags;
	if (!(e->flags & FL_MEM))
		xlat_flags_save(g);
	e->tail = x_offset(g);
	leave_with(g, e);
}

static void entry_stub(struct xgen *g)
{
	struct xblock *xb = g->xb;
	uint32_t here = x_offset(g);

	x_patch(g->x, xb->exit[2].stub, here);
	x_patch(g->x, xb->exit[2].tail, here);
	if (xb->page2)
		x_patch(g->x, xb->exit[2].jump, here);
	xb->exit[2].target = xb->lin;
	leave_with(g, &xb->exit[2]);
	if (xb->flags_in == FL_HOST) {
		xb->checked = x_offset(g);
		xlat_flags_save(g);
		x_jmp_to(g, xb->mem);
	}
}

static void site_in(struct xgen *g, unsigned index)
{
	const struct xmem m = {.base = H_RIP, .index = H_NONE, .abs = &g->xb->site[index]};

	x_lea(g, T0, &m);
}

static void slow_stub(struct xgen *g, const struct xslow *s)
{
	x_patch(g->x, s->from, x_offset(g));
	site_in(g, s->index);
	if (!s->back) {
		x_jmp_to(g, thunks(g)->interp_end);
		return;
	}
	x_call_to(g, thunks(g)->interp);
	x_jmp_to(g, s->back);
}

void xlat_cold(struct xgen *g)
{
	g->xb->cold = x_offset(g);
	xlat_group_cold(g);
	for (unsigned i = 0; i < g->nr_slow; i++)
		slow_stub(g, &g->slow[i]);
	exit_stub(g, &g->xb->exit[0]);
	exit_stub(g, &g->xb->exit[1]);
	for (unsigned i = 0; i < g->xb->nr_mid; i++)
		exit_stub(g, &g->xb->mid[i]);
	entry_stub(g);
	g->xb->cold_end = x_offset(g);
}

/* --- the interpreter ---------------------------------------------------------------------------
 */

void xlat_call_interp(struct xgen *g, bool last)
{
	xlat_flags_clobber(g);
	g->xb->site[g->index].interp = true;
	site_in(g, g->index);
	if (last) {
		x_jmp_to(g, thunks(g)->interp_end);
		g->ended = true;
		return;
	}
	x_call_to(g, thunks(g)->interp);
	g->flags = FL_HOST | FL_MEM;
}

/* --- addresses known at run time ---------------------------------------------------------------
 */

/* T0 = target.  T1 = its entry of the jump table; not there: the interpreter does it. */
static void find_target(struct xgen *g)
{
	const struct xmem table = XMEM_CPU(g, xl_jump);
	const struct xmem lin = {.base = T1, .index = H_NONE};

	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x89}, T0, T1);
	x_shift(g, 5, T1, 6, false);
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x31}, T0, T1);
	x_alu_imm(g, X_AND, T1, XLAT_JUMP_ENTRIES - 1, false);
	x_shift(g, 4, T1, 4, false);
	x_add_mem(g, T1, &table);
	x_cmp_mem(g, T0, &lin);
	xlat_slow(g, x_jcc(g, CC_NZ), false);
}

static const struct xmem found_code = {
	.base = T1, .index = H_NONE, .disp = offsetof(struct xlat_jump, code)};

/* T0 = what the register or memory operand holds. */
static void load_target(struct xgen *g, const struct insn *in)
{
	struct xmem m;

	if (in->flags & INSN_MEM) {
		xlat_mem(g, in, xgen_word(g), false, false, &m);
		x_load_word(g, T0, &m);
		return;
	}
	xlat_flags_clobber(g);
	if (host_reg(in->rm / 8) != H_NONE) {
		x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x89, .w = !g->narrow},
			 (unsigned)host_reg(in->rm / 8), T0);
	} else {
		m = XMEM_CPU(g, gpr[in->rm / 8]);
		x_load(g, T0, &m);
	}
}

static void jmp_ind(struct xgen *g, const struct insn *in)
{
	load_target(g, in);
	find_target(g);
	x_jmp_mem(g, &found_code);
}

/* --- calls and returns -------------------------------------------------------------------------
 *
 * A call also calls on the host's stack, above the address the guest is expected to return to:
 *
 *     push <guest return address>           RET:  cmp  t0, [rsp + 8] ; jne other
 *     call <callee>                               ret
 *     lea  rsp, [rsp + 8]                   other: mov rsp, <base>, then the jump table
 *     jmp  <block after the call>
 *
 * so that the host's return predictor predicts the guest's returns.  Whatever goes through the run
 * loop leaves an empty stack: code that is dropped, or mapped elsewhere, is not returned to.  At
 * the bottom lies a frame for address 0, whose landing asks the run loop.  The depth is limited;
 * the frames are forgotten when it is reached. */

static void stack_reset(struct xgen *g)
{
	const struct xmem base = XMEM_CPU(g, xl_host_rsp);

	x_load(g, H_RSP, &base);
}

static void move_guest_sp(struct xgen *g, int32_t by)
{
	x_lea_word(g, H_GUEST_RSP,
		   &(struct xmem){.base = H_GUEST_RSP, .index = H_NONE, .disp = by});
}

static void ret(struct xgen *g, const struct insn *in)
{
	const struct xmem expected = {.base = H_RSP, .index = H_NONE, .disp = 8};
	unsigned word = xgen_word(g);
	int32_t drop = (int32_t)(word + (uint16_t)in->imm);
	struct xmem m;
	uint32_t other;

	xlat_mem_at(g, H_GUEST_RSP, 0, word, false, false, &m);
	x_load_word(g, T0, &m);
	x_cmp_mem(g, T0, &expected);
	other = x_jcc(g, CC_NZ);
	move_guest_sp(g, drop);
	x8(g, 0xc3);
	x_patch(g->x, other, x_offset(g));
	stack_reset(g);
	find_target(g);
	move_guest_sp(g, drop);
	x_jmp_mem(g, &found_code);
}

static void push_return(struct xgen *g, bool back)
{
	struct xmem m;
	int32_t word = (int32_t)xgen_word(g);

	xlat_mem_at(g, H_GUEST_RSP, -word, (unsigned)word, true, back, &m);
	if (g->narrow || g->next_rip == (uint64_t)(int32_t)g->next_rip) {
		x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0xc7, .w = !g->narrow}, 0, &m, 4);
		x32(g, (uint32_t)g->next_rip);
	} else {
		x_mov_imm(g, T0, g->next_rip);
		x_store(g, &m, T0);
	}
	move_guest_sp(g, -word);
}

/* T0 is free.  The frame for the return predictor; then comes the host's call. */
static void push_expected(struct xgen *g)
{
	const struct xmem limit = XMEM_CPU(g, xl_rsp_limit);
	uint32_t enough;

	x_cmp_mem(g, H_RSP, &limit);
	enough = x_jcc(g, CC_AE);
	stack_reset(g);
	x_patch(g->x, enough, x_offset(g));
	if (g->next_rip == (uint64_t)(int32_t)g->next_rip) {
		x8(g, 0x68);
		x32(g, (uint32_t)g->next_rip);
	} else {
		x_mov_imm(g, T0, g->next_rip);
		x8(g, 0x41);
		x8(g, 0x50 | (T0 & 7));
	}
}

/* Where the host's RET comes back to. */
static void landing(struct xgen *g)
{
	x_lea(g, H_RSP, &(struct xmem){.base = H_RSP, .index = H_NONE, .disp = 8});
	g->flags = FL_MEM;
	xlat_exit_jump(g, 0, g->next_rip, EXIT_JMP);
}

static uint64_t target_of(const struct xgen *g, const struct insn *in)
{
	uint64_t target = g->next_rip + in->imm;

	return g->narrow ? (uint32_t)target : target;
}

static void call(struct xgen *g, const struct insn *in)
{
	push_return(g, false);
	push_expected(g);
	xlat_exit_jump(g, 1, target_of(g, in), EXIT_CALL);
	landing(g);
}

static void call_ind(struct xgen *g, const struct insn *in)
{
	const struct xmem kept = XMEM_CPU(g, xl_target);

	load_target(g, in);
	find_target(g);
	x_load(g, T1, &found_code);
	x_store(g, &kept, T1);
	push_return(g, false);
	push_expected(g);
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0xff}, 2, &kept, 0);
	landing(g);
}

static void jcc(struct xgen *g, const struct insn *in)
{
	xlat_flags_before(g);
	if (g->index + 1 < g->nr) {
		way_out(g, &g->xb->mid[g->next_mid++], target_of(g, in), in->opcode & 15);
		g->ended = false;
		return;
	}
	xlat_exit_jump(g, 1, target_of(g, in), in->opcode & 15);
	xlat_exit_jump(g, 0, g->next_rip, EXIT_JMP);
}

/* --- choosing ----------------------------------------------------------------------------------
 */

static bool canonical48(uint64_t lin)
{
	return lin + BIT(47) < BIT(48);
}

bool xlat_flow_ok(struct xgen *g, const struct insn *in, uint8_t kind)
{
	if (in->opsize != xgen_word(g))
		return false;
	switch ((enum insn_xlat)kind) {
	case XLAT_JCC:
	case XLAT_JMP:
	case XLAT_CALL:
		return canonical48(target_of(g, in));
	case XLAT_JMPIND:
	case XLAT_CALLIND:
		return !(in->flags & INSN_MEM) || xlat_mem_ok(g, in);
	default:
		return true;
	}
}

void xlat_flow(struct xgen *g, const struct insn *in, uint8_t kind)
{
	g->ended = true;
	switch ((enum insn_xlat)kind) {
	case XLAT_JCC:
		jcc(g, in);
		break;
	case XLAT_JMP:
		xlat_exit_jump(g, 1, target_of(g, in), EXIT_JMP);
		break;
	case XLAT_JMPIND:
		jmp_ind(g, in);
		break;
	case XLAT_CALL:
		call(g, in);
		break;
	case XLAT_CALLIND:
		call_ind(g, in);
		break;
	default:
		ret(g, in);
	}
}
