/* engine/soft/xlat_string.c - templates: MOVS STOS LODS SCAS CMPS, and REP MOVS and REP STOS.
 *
 * Upwards (DF = 0), flat, with addresses of the usual size.  A repeated one runs as the host's REP
 * on host addresses, when all it has left is in one page of the source and one of the destination
 * and both hit the TLB; RSI and RDI hold host addresses meanwhile, which nobody sees, as nothing
 * faults. What is longer, or runs downwards, string.c does, page by page.  Interrupts wait for one
 * page at most.
 *
 *     test DF ; jnz slow              lookup of [rdi ..]; jne slow
 *     test rcx, rcx ; jz done         mov  [kept], t1
 *     cmp  rcx, page ; ja slow        lookup of [rsi ..]; jne slow
 *                                     add  rsi, t1 ; mov t0, [kept] ; add rdi, t0
 *     done:                           rep movs
 *                                     sub  rsi, t1 ; sub rdi, t0
 */
#include "engine/soft/xlat_int.h"

enum { CC_A = 7 };

static bool is(const struct insn *in, uint8_t kind)
{
	const struct insn_row *row = &insn_rows[in->id];

	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == kind)
			return true;
	return false;
}

static bool has_source(const struct insn *in)
{
	return is(in, OP_STR_SRC);
}

static bool has_dest(const struct insn *in)
{
	return is(in, OP_STR_DST);
}

static bool writes_memory(const struct insn *in)
{
	return insn_rows[in->id].op[0].kind == OP_STR_DST &&
	       insn_rows[in->id].op[0].access & OP_WRITE;
}

static bool repeated(const struct insn *in)
{
	return in->flags & (INSN_REP | INSN_REPNE);
}

bool xlat_string_ok(const struct xgen *g, const struct insn *in)
{
	return in->adsize == xgen_word(g) && !xlat_has_segbase(g, in) &&
	       !(g->narrow && in->seg == X86_CS) && (!repeated(in) || writes_memory(in));
}

/* --- parts -------------------------------------------------------------------------------------
 */

static unsigned shift_of(const struct insn *in)
{
	return (unsigned)__builtin_ctz(in->opsize);
}

static void check_direction(struct xgen *g)
{
	struct xmem df = XMEM_CPU(g, rflags);

	df.abs = (const uint8_t *)df.abs + 1;
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0xf6}, 0, &df, 1); /* test */
	x8(g, RFLAGS_DF >> 8);
	xlat_slow(g, x_jcc(g, CC_NZ), true);
}

/* T1 = addend of what reg points to: one element, or RCX of them. */
static void look_up(struct xgen *g, const struct insn *in, unsigned reg, bool write)
{
	struct xmem last = {.base = (int8_t)reg, .index = H_NONE, .disp = in->opsize - 1};

	if (repeated(in)) {
		last.index = H_RCX;
		last.scale = (uint8_t)shift_of(in);
		last.disp = -1;
	}
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x89}, reg, T1); /* mov t1d, reg */
	x_lea_word(g, T0, &last);
	xlat_slow(g, xlat_tlb_lookup(g, write), true);
}

/* Both operands: T1 = addend of the source, xl_kept = that of the destination. */
static void look_up_both(struct xgen *g, const struct insn *in)
{
	const struct xmem kept = XMEM_CPU(g, xl_kept);

	look_up(g, in, H_RDI, writes_memory(in));
	x_store(g, &kept, T1);
	look_up(g, in, H_RSI, false);
}

/* Of a register in 32-bit code nobody knows the upper half. */
static void widen(struct xgen *g, unsigned reg)
{
	if (g->narrow)
		x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x89}, reg, reg);
}

static struct xmem at(unsigned reg)
{
	return (struct xmem){.base = (int8_t)reg, .index = T1};
}

static void sized(struct xgen *g, const struct insn *in, uint8_t code, unsigned reg,
		  const struct xmem *m)
{
	const struct xop o = {.map = MAP_1,
			      .opcode = (uint8_t)(code | (in->opsize > 1)),
			      .p66 = in->opsize == 2,
			      .w = in->opsize == 8};

	x_op_mem(g, &o, reg, m, 0);
}

static void advance(struct xgen *g, const struct insn *in, unsigned reg)
{
	x_lea_word(g, reg,
		   &(struct xmem){.base = (int8_t)reg, .index = H_NONE, .disp = in->opsize});
}

static void add_reg(struct xgen *g, uint8_t code, unsigned to, unsigned from)
{
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = code, .w = true}, from, to);
}

enum { ADD = 0x01, SUB = 0x29, STORE = 0x88, LOAD = 0x8a, COMPARE = 0x3a };

/* --- one element ---------------------------------------------------------------------------------
 */

/* From memory to memory, or compared there. */
static void both(struct xgen *g, const struct insn *in)
{
	const struct xmem from = at(H_RSI), to = at(H_RDI), kept = XMEM_CPU(g, xl_kept);

	look_up_both(g, in);
	widen(g, H_RSI);
	widen(g, H_RDI);
	xlat_flags_before(g);
	xlat_note_site(g);
	sized(g, in, LOAD, T0, &from);
	x_load(g, T1, &kept);
	sized(g, in, writes_memory(in) ? STORE : COMPARE, T0, &to);
	advance(g, in, H_RSI);
	advance(g, in, H_RDI);
}

/* Between memory and the accumulator. */
static void one(struct xgen *g, const struct insn *in)
{
	unsigned reg = has_source(in) ? H_RSI : H_RDI;
	uint8_t code = has_source(in) ? LOAD : writes_memory(in) ? STORE : COMPARE;
	const struct xmem m = at(reg);

	look_up(g, in, reg, writes_memory(in));
	widen(g, reg);
	xlat_flags_before(g);
	xlat_note_site(g);
	sized(g, in, code, H_RAX, &m);
	advance(g, in, reg);
}

/* --- repeated ------------------------------------------------------------------------------------
 */

static void host_rep(struct xgen *g, const struct insn *in)
{
	xlat_note_site(g);
	if (in->opsize == 2)
		x8(g, 0x66);
	x8(g, 0xf3);
	if (in->opsize == 8)
		x8(g, 0x48);
	x8(g, in->opcode);
}

static void rep_stos(struct xgen *g, const struct insn *in)
{
	look_up(g, in, H_RDI, true);
	widen(g, H_RDI);
	widen(g, H_RCX);
	add_reg(g, ADD, H_RDI, T1);
	host_rep(g, in);
	add_reg(g, SUB, H_RDI, T1);
}

static void rep_movs(struct xgen *g, const struct insn *in)
{
	const struct xmem kept = XMEM_CPU(g, xl_kept);

	look_up_both(g, in);
	x_load(g, T0, &kept);
	widen(g, H_RSI);
	widen(g, H_RDI);
	widen(g, H_RCX);
	add_reg(g, ADD, H_RSI, T1);
	add_reg(g, ADD, H_RDI, T0);
	host_rep(g, in);
	add_reg(g, SUB, H_RSI, T1);
	add_reg(g, SUB, H_RDI, T0);
}

static void rep(struct xgen *g, const struct insn *in)
{
	uint32_t none;

	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x85, .w = !g->narrow}, H_RCX, H_RCX);
	none = x_jcc(g, CC_Z);
	x_alu_imm(g, X_CMP, H_RCX, (int32_t)(PAGE_SIZE >> shift_of(in)), !g->narrow);
	xlat_slow(g, x_jcc(g, CC_A), true);
	if (has_source(in))
		rep_movs(g, in);
	else
		rep_stos(g, in);
	x_patch(g->x, none, x_offset(g));
}

void xlat_string(struct xgen *g, const struct insn *in)
{
	xlat_flags_clobber(g);
	check_direction(g);
	if (repeated(in))
		rep(g, in);
	else if (has_source(in) && has_dest(in))
		both(g, in);
	else
		one(g, in);
	xlat_flags_after(g);
}
