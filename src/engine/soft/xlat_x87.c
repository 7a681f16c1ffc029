/* engine/soft/xlat_x87.c - what x87 instructions in translated code need beyond being copied.
 *
 * The instruction runs on the guest's own x87 state, so its result, its exceptions and when they
 * are raised (at the next waiting instruction, as SIGFPE: xlat_signal.c) are the hardware's.  Only
 * the pointers of the last instruction and operand are kept by hand, in cpu->x87.  The operand's is
 * stored by each instruction that has one; the instruction's own only by the last of those that run
 * together.  Whatever leaves the code between them goes through xlat_interp_one, and that knows
 * which instruction came last: xlat_x87_settle.
 *
 * Processors that update pointers only with an unmasked exception (vec_x87_probe_host) would need
 * to be asked after each instruction; there they stay with the interpreter. */
#include "engine/soft/xlat_int.h"

#include "engine/soft/vec_int.h"

/* Does it set the pointers? */
static bool notes(const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	return row->cls == CLASS_X87 && row->special == SPECIAL_NONE;
}

bool xlat_x87_ok(const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	return (row->special == SPECIAL_NONE || row->special == SPECIAL_CONTROL) &&
	       (!notes(in) || vec_x87_ptr_always());
}

/* After it, before anything leaves the block by a way of its own, comes another one that notes. */
static bool another_follows(const struct xgen *g)
{
	for (unsigned i = g->index + 1; i < g->nr && g->info[i].kind < XLAT_JCC; i++)
		if (g->info[i].kind == XLAT_VEC && notes(&g->b->insns[i]))
			return true;
	return false;
}

static void store_imm(struct xgen *g, const struct xmem *m, uint64_t v)
{
	if (v == (uint64_t)(int32_t)v) {
		x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0xc7, .w = true}, 0, m, 4);
		x32(g, (uint32_t)v);
	} else {
		x_mov_imm(g, T0, v);
		x_store(g, m, T0);
	}
}

static void store_imm16(struct xgen *g, const struct xmem *m, uint16_t v)
{
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0xc7, .p66 = true}, 0, m, 2);
	x16(g, v);
}

static void copy_selector(struct xgen *g, const struct xmem *to, unsigned seg)
{
	const struct xmem from = XMEM_CPU(g, seg[seg].selector);

	if (!vec_x87_has_selectors())
		return;
	x_op_mem(g, &(struct xop){.map = MAP_0F, .opcode = 0xb7}, T0, &from, 0); /* movzx */
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0x89, .p66 = true}, T0, to, 0);
}

static uint16_t fop(const struct insn *in)
{
	return (uint16_t)((in->opcode & 7) << 8 | in->modrm);
}

void xlat_x87_note(struct xgen *g, const struct insn *in)
{
	const struct xmem ip = XMEM_CPU(g, x87.ip), op = XMEM_CPU(g, x87.op);
	const struct xmem dp = XMEM_CPU(g, x87.dp), cs = XMEM_CPU(g, x87.cs);
	const struct xmem ds = XMEM_CPU(g, x87.ds);

	if (!notes(in))
		return;
	if (in->flags & INSN_MEM) {
		xlat_ea(g, in, T0, false);
		x_store(g, &dp, T0);
		copy_selector(g, &ds, in->seg);
	}
	if (another_follows(g))
		return;
	store_imm(g, &ip, g->next_rip - in->len);
	store_imm16(g, &op, fop(in));
	copy_selector(g, &cs, X86_CS);
}

void xlat_x87_settle(struct cpu *cpu, const struct xblock *xb, unsigned index)
{
	while (index--) {
		const struct insn *in = &xb->b->insns[index];

		if (xb->site[index]
			    .interp) /* it did that, and may have set pointers itself since */
			return;
		if (!notes(in))
			continue;
		cpu->x87.ip = xb->lin + xb->site[index].next - in->len;
		cpu->x87.op = fop(in);
		cpu->x87.cs = vec_x87_has_selectors() ? cpu->seg[X86_CS].selector : 0;
		return;
	}
}
