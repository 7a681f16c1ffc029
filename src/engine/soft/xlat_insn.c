/* engine/soft/xlat_insn.c - templates of integer instructions that stay in line. */
#include "engine/soft/xlat_int.h"

/* --- which registers an instruction names --------------------------------------------------------
 */

struct regs {
	int reg, rm, vv;   /* guest registers by number; -1: the instruction has no such operand */
	bool rm_is_reg;    /* rm is ModRM's */
	bool high;         /* one of them is AH, CH, DH or BH */
	uint8_t access[3]; /* OP_READ | OP_WRITE of reg, rm, vv */
	uint8_t mem;       /* of the memory operand */
};

static void regs_note(struct regs *r, int *slot, uint16_t off, uint8_t *access, uint8_t a)
{
	*slot = off / 8;
	*access |= a;
	r->high |= off & 1;
}

static void regs_of(const struct insn *in, const struct insn_row *row, struct regs *r)
{
	*r = (struct regs){.reg = -1, .rm = -1, .vv = -1};
	for (unsigned i = 0; i < row->nr_ops; i++) {
		const struct insn_op *op = &row->op[i];

		if (op->kind == OP_GPR_REG || op->kind == OP_GPR_OPC) {
			regs_note(r, &r->reg, in->reg, &r->access[0], op->access);
		} else if (op->kind == OP_MOFFS ||
			   (op->kind == OP_GPR_RM && in->flags & INSN_MEM)) {
			r->mem |= op->access;
		} else if (op->kind == OP_GPR_RM) {
			regs_note(r, &r->rm, in->rm, &r->access[1], op->access);
			r->rm_is_reg = true;
		} else if (op->kind == OP_GPR_VVVV) {
			regs_note(r, &r->vv, in->vvvv, &r->access[2], op->access);
		}
	}
}

static bool in_memory(int n)
{
	return n >= 0 && host_reg((unsigned)n) == H_NONE;
}

/* Guest registers that need scratch, each once. */
static unsigned nr_scratch(const struct regs *r)
{
	unsigned n = in_memory(r->reg);

	n += in_memory(r->rm) && r->rm != r->reg;
	n += in_memory(r->vv) && r->vv != r->reg && r->vv != r->rm;
	return n;
}

static bool high_ok(const struct insn *in, const struct regs *r)
{
	if (!r->high)
		return true;
	/* No REX can be had beside AH. */
	return !(in->flags & INSN_MEM) && r->reg < 8 && r->rm < 8 &&
	       !(r->reg == X86_RSP && in->reg % 8 == 0) && !(r->rm == X86_RSP && in->rm % 8 == 0);
}

static unsigned mem_size(const struct insn *in)
{
	return xlat_is_moffs(in) ? in->opsize : in->msize;
}

bool xlat_copy_ok(struct xgen *g, const struct insn *in, const struct insn_row *row)
{
	bool mem = in->flags & INSN_MEM;
	struct regs r;

	if (mem && (!xlat_mem_ok(g, in) || row->attrs & ROW_BITSTRING))
		return false;
	regs_of(in, row, &r);
	return high_ok(in, &r) && nr_scratch(&r) <= (mem ? 1u : 2u) && (!mem || mem_size(in));
}

/* --- registers in memory ------------------------------------------------------------------------
 */

struct scratch {
	int guest[2]; /* what T0 and T1 stand for; -1: nothing */
	bool write[2];
};

static int scratch_host(const struct scratch *s, int n)
{
	if (n < 0)
		return 0;
	if (!in_memory(n))
		return host_reg((unsigned)n);
	return s->guest[0] == n ? T0 : T1;
}

static void scratch_take(struct xgen *g, struct scratch *s, int n, bool write)
{
	unsigned i;

	if (!in_memory(n))
		return;
	i = s->guest[0] == n || s->guest[0] < 0 ? 0 : 1;
	if (s->guest[i] != n) {
		const struct xmem m = XMEM_CPU(g, gpr[n]);

		s->guest[i] = n;
		x_load(g, i ? T1 : T0, &m);
	}
	s->write[i] |= write;
}

static void scratch_store(struct xgen *g, const struct scratch *s)
{
	for (unsigned i = 0; i < 2; i++)
		if (s->write[i]) {
			const struct xmem m = XMEM_CPU(g, gpr[s->guest[i]]);

			x_store(g, &m, i ? T1 : T0);
		}
}

/* --- the copy ------------------------------------------------------------------------------------
 */

static unsigned imm_bytes(const struct insn *in, const struct insn_row *row)
{
	for (unsigned i = 0; i < row->nr_ops; i++) {
		if (row->op[i].kind != OP_IMM)
			continue;
		if (row->op[i].size == SIZE_Z)
			return MIN(in->opsize, 4u);
		return row->op[i].size == SIZE_V ? in->opsize : row->op[i].size;
	}
	return 0;
}

static bool has_modrm(const struct insn_row *row)
{
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_GPR_RM || row->op[i].kind == OP_GPR_REG)
			return true;
	return false;
}

/* The immediate is the instruction's last bytes. */
static void put_imm(struct xgen *g, const struct insn *in, unsigned n)
{
	for (unsigned i = in->len - n; i < in->len; i++)
		x8(g, in->bytes[i]);
}

static void put_vex(struct xgen *g, const struct insn *in, unsigned reg, unsigned vv, unsigned rm,
		    const struct xmem *m)
{
	static const uint8_t pp[4] = {0, 0x66, 0xf3, 0xf2};
	unsigned base = m ? (unsigned)(m->base < 0 ? 0 : m->base) : rm;
	unsigned index = m && m->index >= 0 ? (unsigned)m->index : 0, p = 0;

	while (pp[p] != in->prefix)
		p++;
	x8(g, 0xc4);
	x8(g, (uint8_t)((~reg >> 3 & 1) << 7 | (~index >> 3 & 1) << 6 | (~base >> 3 & 1) << 5 |
			in->map));
	x8(g, (uint8_t)((in->flags & INSN_REXW && !g->narrow ? 0x80 : 0) | (~vv & 15) << 3 | p));
	x8(g, in->opcode);
}

static void copy_vex(struct xgen *g, const struct insn *in, const struct insn_row *row,
		     const struct regs *r, const struct scratch *s, const struct xmem *m)
{
	bool has_reg = r->reg >= 0;
	unsigned reg = has_reg ? (unsigned)scratch_host(s, r->reg) : in->modrm >> 3 & 7;
	unsigned rm = (unsigned)scratch_host(s, r->rm);

	put_vex(g, in, has_reg ? reg : 0, (unsigned)scratch_host(s, r->vv), rm, m);
	if (m)
		x_modrm_mem(g, reg, m, imm_bytes(in, row));
	else
		x8(g, (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

/* With one vCPU nobody else does read-modify-write on guest memory, and one host instruction is
 * atomic for its own thread without LOCK.  What is left is LOCK as a fence between this vCPU and
 * device threads: idioms that change nothing, or the stack.  docs/engine.md "LOCK". */
static bool needs_lock(const struct xgen *g, const struct insn *in)
{
	bool changes_nothing = in->map == MAP_1 && (in->opcode & 0xfc) == 0x80 && !in->imm;
	bool xchg = in->map == MAP_1 && (in->opcode & 0xfe) == 0x86;

	return g->cpu->vm->nr_cpus > 1 || xchg || changes_nothing ||
	       in->base == CPU_GPR_OFF(X86_RSP);
}

static void legacy_op(const struct xgen *g, const struct insn *in, struct xop *o)
{
	*o = (struct xop){.map = in->map,
			  .opcode = in->opcode,
			  .prefix = in->prefix,
			  .p66 = in->opsize == 2,
			  .lock = in->flags & INSN_LOCK && needs_lock(g, in),
			  .w = in->flags & INSN_REXW,
			  .rex = in->flags & INSN_REX};
}

/* Byte registers in the encoding: AH is number 4 there. */
static unsigned encoded(const struct scratch *s, int n, uint16_t off)
{
	return off & 1 ? (unsigned)n + 4 : (unsigned)scratch_host(s, n);
}

static void copy_opcode_reg(struct xgen *g, const struct insn *in, struct xop *o, unsigned reg)
{
	uint8_t rex = (uint8_t)(o->w << 3 | reg >> 3);

	if (o->p66)
		x8(g, 0x66);
	if (rex || o->rex)
		x8(g, 0x40 | rex);
	if (o->map == MAP_0F)
		x8(g, 0x0f);
	x8(g, (uint8_t)((in->opcode & 0xf8) | (reg & 7)));
}

static void copy_plain(struct xgen *g, const struct insn *in, const struct xop *o)
{
	if (o->p66)
		x8(g, 0x66);
	if (o->w)
		x8(g, 0x48);
	if (o->map == MAP_0F)
		x8(g, 0x0f);
	x8(g, in->opcode);
}

/* Encodings that do not exist in the host's mode have others. */
static bool copy_short(struct xgen *g, const struct insn *in, struct xop *o, unsigned reg,
		       const struct xmem *m)
{
	if (o->map != MAP_1)
		return false;
	if (xlat_is_moffs(in)) {
		o->opcode = (uint8_t)(0x88 | (~in->opcode & 2) | (in->opcode & 1));
		x_op_mem(g, o, H_RAX, m, 0);
		return true;
	}
	if (g->narrow && (in->opcode & 0xf0) == 0x40) { /* INC, DEC */
		o->opcode = 0xff;
		x_op_reg(g, o, in->opcode >> 3 & 1, reg);
		return true;
	}
	if (in->opcode == 0x82)
		o->opcode = 0x80;
	return false;
}

static void copy_legacy(struct xgen *g, const struct insn *in, const struct insn_row *row,
			const struct regs *r, const struct scratch *s, const struct xmem *m)
{
	struct xop o;
	unsigned reg = r->reg >= 0 ? encoded(s, r->reg, in->reg) : in->modrm >> 3 & 7;

	legacy_op(g, in, &o);
	if (copy_short(g, in, &o, reg, m))
		return;
	if (!has_modrm(row) && r->reg >= 0) {
		copy_opcode_reg(g, in, &o, reg);
	} else if (!has_modrm(row) && in->modrm >= 0xc0) { /* fences */
		x_op_reg(g, &o, in->modrm >> 3 & 7, in->modrm & 7);
	} else if (!has_modrm(row)) {
		copy_plain(g, in, &o);
	} else if (m) {
		x_op_mem(g, &o, reg, m, imm_bytes(in, row));
	} else {
		x_op_reg(g, &o, reg, encoded(s, r->rm, in->rm));
	}
}

void xlat_copy(struct xgen *g, const struct insn *in, const struct insn_row *row)
{
	bool mem = in->flags & INSN_MEM;
	struct scratch s = {.guest = {-1, -1}};
	struct regs r;
	struct xmem m;

	regs_of(in, row, &r);
	if (mem)
		xlat_mem(g, in, mem_size(in), r.mem & OP_WRITE, true, &m);
	xlat_flags_before(g);
	scratch_take(g, &s, r.reg, r.access[0] & OP_WRITE);
	scratch_take(g, &s, r.rm, r.access[1] & OP_WRITE);
	scratch_take(g, &s, r.vv, r.access[2] & OP_WRITE);
	xlat_note_site(g);
	if (in->flags & INSN_VEX)
		copy_vex(g, in, row, &r, &s, mem ? &m : NULL);
	else
		copy_legacy(g, in, row, &r, &s, mem ? &m : NULL);
	put_imm(g, in, imm_bytes(in, row));
	scratch_store(g, &s);
	xlat_flags_after(g);
}

/* --- moves and the stack -------------------------------------------------------------------------
 */

static void store_guest(struct xgen *g, unsigned n, unsigned from)
{
	const struct xmem m = XMEM_CPU(g, gpr[n]);

	if (host_reg(n) == H_NONE)
		x_store(g, &m, from);
	else if ((unsigned)host_reg(n) != from)
		x_mov(g, (unsigned)host_reg(n), from);
}

static void lea(struct xgen *g, const struct insn *in)
{
	unsigned n = in->reg / 8, to = host_reg(n) == H_NONE ? T0 : (unsigned)host_reg(n);

	xlat_ea(g, in, to, in->opsize == 4);
	store_guest(g, n, to);
}

static void move_sp(struct xgen *g, int32_t by)
{
	x_lea_word(g, H_GUEST_RSP,
		   &(struct xmem){.base = H_GUEST_RSP, .index = H_NONE, .disp = by});
}

/* PUSH of memory: both operands are looked up, and nothing is done before. */
static void push_mem(struct xgen *g, const struct insn *in)
{
	const struct xmem kept = XMEM_CPU(g, xl_kept);
	unsigned word = xgen_word(g);
	struct xmem m;

	xlat_mem(g, in, word, false, true, &m);
	x_load_word(g, T0, &m);
	x_store(g, &kept, T0);
	xlat_mem_at(g, H_GUEST_RSP, -(int32_t)word, word, true, true, &m);
	x_load(g, T0, &kept);
	x_store_word(g, &m, T0);
	move_sp(g, -(int32_t)word);
}

static void push(struct xgen *g, const struct insn *in, const struct insn_row *row)
{
	struct xmem m;
	unsigned n = (row->op[0].kind == OP_GPR_RM ? in->rm : in->reg) / 8, word = xgen_word(g);

	if (in->flags & INSN_MEM) {
		push_mem(g, in);
		return;
	}

	xlat_mem_at(g, H_GUEST_RSP, -(int32_t)word, word, true, true, &m);
	if (row->op[0].kind == OP_IMM) {
		x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0xc7, .w = !g->narrow}, 0, &m, 4);
		x32(g, (uint32_t)in->imm);
	} else if (host_reg(n) != H_NONE) {
		x_store_word(g, &m, (unsigned)host_reg(n));
	} else {
		const struct xmem from = XMEM_CPU(g, gpr[n]);

		x_load(g, T0, &from);
		x_store(g, &m, T0);
	}
	move_sp(g, -(int32_t)word);
}

static void pop(struct xgen *g, const struct insn *in)
{
	unsigned n = in->reg / 8, to = host_reg(n) == H_NONE ? T0 : (unsigned)host_reg(n);
	struct xmem m;

	xlat_mem_at(g, H_GUEST_RSP, 0, xgen_word(g), false, true, &m);
	x_load_word(g, to, &m);
	if (n != X86_RSP)
		move_sp(g, (int32_t)xgen_word(g));
	store_guest(g, n, to);
}

static void leave(struct xgen *g)
{
	struct xmem m;
	int32_t word = (int32_t)xgen_word(g);

	xlat_mem_at(g, H_RBP, 0, (unsigned)word, false, true, &m);
	x_load_word(g, T0, &m);
	x_lea_word(g, H_GUEST_RSP, &(struct xmem){.base = H_RBP, .index = H_NONE, .disp = word});
	x_mov(g, H_RBP, T0);
}

/* --- choosing ------------------------------------------------------------------------------------
 */

static bool kind_ok(struct xgen *g, const struct insn *in, const struct insn_row *row)
{
	switch ((enum insn_xlat)row->xlat) {
	case XLAT_COPY:
		return xlat_copy_ok(g, in, row);
	case XLAT_VEC:
		return xlat_vec_ok(g, in);
	case XLAT_LEA:
		return (g->narrow ? in->adsize == 4 : in->flags & INSN_FLAT) && in->opsize >= 4;
	case XLAT_NOP:
		return true;
	case XLAT_STRING:
		return xlat_string_ok(g, in);
	case XLAT_SYS:
		return xlat_sys_ok(g, in);
	case XLAT_PUSH:
		return in->opsize == xgen_word(g) &&
		       (!(in->flags & INSN_MEM) || xlat_mem_ok(g, in));
	case XLAT_POP:
	case XLAT_LEAVE:
		return in->opsize == xgen_word(g);
	case XLAT_INTERP:
		return false;
	default:
		return xlat_flow_ok(g, in, row->xlat);
	}
}

uint8_t xlat_insn_kind(struct xgen *g, const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	return kind_ok(g, in, row) ? row->xlat : XLAT_INTERP;
}

void xlat_insn(struct xgen *g, const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];
	uint8_t kind = g->info[g->index].kind;

	switch ((enum insn_xlat)kind) {
	case XLAT_COPY:
		xlat_copy(g, in, row);
		break;
	case XLAT_VEC:
		xlat_vec(g, in);
		break;
	case XLAT_LEA:
		lea(g, in);
		break;
	case XLAT_NOP:
		break;
	case XLAT_PUSH:
		push(g, in, row);
		break;
	case XLAT_POP:
		pop(g, in);
		break;
	case XLAT_LEAVE:
		leave(g);
		break;
	case XLAT_STRING:
		xlat_string(g, in);
		break;
	case XLAT_SYS:
		xlat_sys(g, in);
		break;
	case XLAT_INTERP:
		xlat_call_interp(g, in->flags & INSN_END);
		break;
	default:
		xlat_flow(g, in, kind);
	}
}
