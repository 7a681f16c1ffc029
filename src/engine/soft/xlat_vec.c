/* engine/soft/xlat_vec.c - vector instructions in translated code.
 *
 * Vector, mask and MMX registers are the guest's own while cpu->vec_live; the first vector
 * instruction of a block asks that, and nothing that comes back into the block changes it.
 * General registers and the memory operand are renamed as in xlat_insn.c.  Whether the instruction
 * may run at all (CR0.TS and so on) is part of the translation's key.  Masked accesses need no
 * care: where the whole operand is mapped none of its elements faults. */
#include "engine/soft/xlat_int.h"

#include "engine/soft/vec_int.h"

struct operands {
	int reg, rm; /* guest general registers; -1: vector registers or none */
	uint8_t reg_access, rm_access;
	unsigned imm; /* bytes */
};

static void operands_of(const struct insn *in, struct operands *o)
{
	const struct insn_row *row = &insn_rows[in->id];

	*o = (struct operands){.reg = -1, .rm = -1};
	for (unsigned i = 0; i < row->nr_ops; i++) {
		const struct insn_op *op = &row->op[i];

		if (op->kind == OP_GPR_REG) {
			o->reg = in->reg / 8;
			o->reg_access = op->access;
		} else if (op->kind == OP_GPR_RM && !(in->flags & INSN_MEM)) {
			o->rm = in->rm / 8;
			o->rm_access = op->access;
		} else if (op->kind == OP_IMM || op->kind == OP_IMM2 || op->kind == OP_VEC_IS4) {
			o->imm++;
		}
	}
}

static bool is_vzero(const struct insn *in)
{
	return in->id == INSN_vzeroupper || in->id == INSN_vzeroall;
}

static bool is_x87(const struct insn *in)
{
	return insn_rows[in->id].cls == CLASS_X87 || insn_rows[in->id].cls == CLASS_FWAIT;
}

static bool unusual(const struct insn *in, const struct insn_row *row)
{
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_VSIB || row->op[i].kind == OP_GPR_VVVV ||
		    row->op[i].kind == OP_GPR_FIXED)
			return true;
	if (in->flags & INSN_MEM && in->msize == 0)
		return true;
	if (is_x87(in))
		return !xlat_x87_ok(in);
	return row->special != SPECIAL_NONE && !is_vzero(in) && in->id != INSN_emms;
}

bool xlat_vec_ok(struct xgen *g, const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];
	struct vec_attr a;
	struct operands o;

	if (unusual(in, row) || (in->flags & INSN_MEM && !xlat_mem_ok(g, in)))
		return false;
	vec_attr_of(&a, g->cpu, in);
	operands_of(in, &o);
	return !g->cpu->vec->deny[a.cls] && !(a.use & VEC_PACKED) &&
	       !(o.reg >= 0 && o.rm >= 0 && host_reg((unsigned)o.reg) == H_NONE &&
		 host_reg((unsigned)o.rm) == H_NONE);
}

static void check_live(struct xgen *g)
{
	const struct xmem live = XMEM_CPU(g, vec_live);

	if (g->vec_checked)
		return;
	g->vec_checked = true;
	xlat_flags_clobber(g);
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0x80}, X_CMP, &live, 1);
	x8(g, 0);
	xlat_slow(g, x_jcc(g, CC_Z), true);
}

/* --- encoding ------------------------------------------------------------------------------------
 */

struct encoded {
	unsigned reg, rm; /* numbers with all their bits */
	const struct xmem *m;
};

static uint8_t bit(unsigned v, unsigned n)
{
	return v >> n & 1;
}

static unsigned b_of(const struct encoded *e)
{
	return e->m ? (unsigned)(e->m->base < 0 ? 0 : e->m->base) : e->rm;
}

static unsigned x_of(const struct encoded *e)
{
	return e->m && e->m->index >= 0 ? (unsigned)e->m->index : 0;
}

static void put_legacy(struct xgen *g, const struct insn *in, const struct encoded *e)
{
	const struct xop o = {.map = in->map,
			      .opcode = in->opcode,
			      .prefix = in->prefix,
			      .w = in->flags & INSN_REXW && !is_x87(in)};

	if (in->id == INSN_emms || in->id == INSN_fwait) {
		x_op_plain(g, &o);
		return;
	}
	if (e->m) {
		x_op_mem(g, &o, e->reg & 15, e->m, g->imm);
		return;
	}
	x_op_reg(g, &o, e->reg & 15, e->rm & 15);
}

/* What the guest wrote there: W vvvv L pp. */
static const uint8_t *vex_bytes(const struct insn *in)
{
	unsigned i = 0;

	while (in->bytes[i] != 0xc4 && in->bytes[i] != 0xc5 && in->bytes[i] != 0x62)
		i++;
	return in->bytes + i;
}

static void put_modrm(struct xgen *g, const struct encoded *e)
{
	if (e->m)
		x_modrm_mem(g, e->reg & 7, e->m, g->imm);
	else
		x8(g, (uint8_t)(0xc0 | (e->reg & 7) << 3 | (e->rm & 7)));
}

/* 32-bit code ignores the bit of vvvv that would name more registers, and W for general ones. */
static uint8_t short_payload(const struct xgen *g, const struct insn *in, uint8_t p)
{
	struct vec_attr a;

	if (!g->narrow)
		return p;
	vec_attr_of(&a, g->cpu, in);
	return (uint8_t)((p | 0x40) & (a.use & VEC_W_SIZE ? 0x7f : 0xff));
}

static void put_vex(struct xgen *g, const struct insn *in, const struct encoded *e)
{
	const uint8_t *v = vex_bytes(in);

	x8(g, 0xc4);
	x8(g, (uint8_t)(!bit(e->reg, 3) << 7 | !bit(x_of(e), 3) << 6 | !bit(b_of(e), 3) << 5 |
			in->map));
	x8(g, short_payload(g, in, v[0] == 0xc5 ? v[1] & 0x7f : v[2]));
	x8(g, in->opcode);
	if (!is_vzero(in))
		put_modrm(g, e);
}

static void put_evex(struct xgen *g, const struct insn *in, const struct encoded *e)
{
	const uint8_t *v = vex_bytes(in);
	unsigned x = e->m ? bit(x_of(e), 3) : bit(e->rm, 4);

	x8(g, 0x62);
	x8(g, (uint8_t)(!bit(e->reg, 3) << 7 | !x << 6 | !bit(b_of(e), 3) << 5 |
			!bit(e->reg, 4) << 4 | (v[1] & 15)));
	x8(g, short_payload(g, in, v[2]));
	x8(g, v[3] | (g->narrow ? 8 : 0));
	x8(g, in->opcode);
	put_modrm(g, e);
}

static void put_insn(struct xgen *g, const struct insn *in, struct encoded *e)
{
	struct xmem plain = {.base = T1, .index = H_NONE};

	/* In EVEX encodings a byte of displacement counts in units of the operand. */
	if (in->flags & INSN_EVEX && e->m && e->m->disp) {
		x_lea(g, T1, e->m);
		e->m = &plain;
	}
	if (in->flags & INSN_EVEX)
		put_evex(g, in, e);
	else if (in->flags & INSN_VEX)
		put_vex(g, in, e);
	else
		put_legacy(g, in, e);
	/* The decoder has cut register numbers in an immediate to what the mode has. */
	if (g->imm)
		x8(g, (uint8_t)in->imm);
	for (unsigned i = in->len - g->imm + 1; i < in->len; i++)
		x8(g, in->bytes[i]);
}

/* --- the template --------------------------------------------------------------------------------
 */

/* The host register for guest general register n; T0 or T1 when that lives in memory. */
static unsigned gpr_take(struct xgen *g, int n, unsigned scratch)
{
	struct xmem m;

	if (host_reg((unsigned)n) != H_NONE)
		return (unsigned)host_reg((unsigned)n);
	m = XMEM_CPU(g, gpr[n]);
	x_load(g, scratch, &m);
	return scratch;
}

static void gpr_store(struct xgen *g, int n, uint8_t access, unsigned from)
{
	struct xmem m;

	if (n < 0 || !(access & OP_WRITE) || host_reg((unsigned)n) != H_NONE)
		return;
	m = XMEM_CPU(g, gpr[n]);
	x_store(g, &m, from);
}

void xlat_vec(struct xgen *g, const struct insn *in)
{
	struct encoded e = {.reg = in->vreg, .rm = in->vrm};
	struct vec_attr a;
	struct operands o;
	struct xmem m;

	vec_attr_of(&a, g->cpu, in);
	operands_of(in, &o);
	check_live(g);
	if (in->flags & INSN_MEM) {
		xlat_mem(g, in, a.size, a.mem == VEC_MEM_STORE, true, &m);
		e.m = &m;
	}
	xlat_flags_before(g);
	if (o.reg >= 0)
		e.reg = gpr_take(g, o.reg, T0);
	if (o.rm >= 0)
		e.rm = gpr_take(g, o.rm, T0);
	g->imm = o.imm;
	xlat_note_site(g);
	put_insn(g, in, &e);
	gpr_store(g, o.reg, o.reg_access, T0);
	gpr_store(g, o.rm, o.rm_access, T0);
	xlat_x87_note(g, in);
	xlat_flags_after(g);
}
