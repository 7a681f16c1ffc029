/* engine/soft/disasm.c - a decoded instruction as text, Intel syntax.
 *
 * Everything comes from the row and the decoded fields.  No libc: a trace may print while guest
 * vector state is live in the host's registers. */
#include "engine/soft/cpu.h"
#include "engine/soft/insn_rows.h"

struct text {
	char *buf;
	size_t len, at; /* at may run past len: the result is cut */
};

static void put_char(struct text *t, char c)
{
	if (t->at + 1 < t->len)
		t->buf[t->at] = c;
	t->at++;
}

static void put(struct text *t, const char *s)
{
	while (*s)
		put_char(t, *s++);
}

static void put_dec(struct text *t, unsigned n)
{
	if (n >= 10)
		put_dec(t, n / 10);
	put_char(t, (char)('0' + n % 10));
}

static void put_hex(struct text *t, uint64_t v)
{
	int shift = 60;

	put(t, "0x");
	while (shift && !(v >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put_char(t, "0123456789abcdef"[v >> shift & 15]);
}

static void put_signed_hex(struct text *t, int64_t v, bool plus)
{
	if (v < 0)
		put_char(t, '-');
	else if (plus)
		put_char(t, '+');
	put_hex(t, v < 0 ? -(uint64_t)v : (uint64_t)v);
}

/* --- names -------------------------------------------------------------------------------------
 */

static unsigned name_length(const char *s)
{
	unsigned n = 0;

	while (s[n] && s[n] != '/')
		n++;
	return n;
}

static unsigned name_alternatives(const char *s)
{
	unsigned n = 1;

	for (; *s; s++)
		n += *s == '/';
	return n;
}

unsigned insn_name(const struct insn *in, const char **name)
{
	const struct insn_row *row = &insn_rows[in->id];
	unsigned size = row->attrs & ROW_NAMEA ? in->adsize : in->opsize;
	unsigned nr = name_alternatives(row->name), skip = 0;

	if (nr == 3)
		skip = size == 8 ? 2 : size == 4;
	else if (nr == 2)
		skip = size == 8;
	*name = row->name;
	for (; skip; skip--)
		*name += name_length(*name) + 1;
	return name_length(*name);
}

static const char *const legacy_names[8] = {"ax", "cx", "dx", "bx", "sp", "bp", "si", "di"};
static const char *const seg_names[8] = {"es", "cs", "ss", "ds", "fs", "gs", "seg6", "seg7"};

static void put_new_gpr(struct text *t, unsigned n, unsigned bytes)
{
	put_char(t, 'r');
	put_dec(t, n);
	if (bytes < 8)
		put_char(t, bytes == 4 ? 'd' : bytes == 2 ? 'w' : 'b');
}

static void put_gpr(struct text *t, unsigned n, unsigned bytes)
{
	static const char byte_names[8][4] = {"al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"};

	if (n >= 8) {
		put_new_gpr(t, n, bytes);
	} else if (bytes == 1) {
		put(t, byte_names[n]);
	} else {
		if (bytes > 2)
			put_char(t, bytes == 8 ? 'r' : 'e');
		put(t, legacy_names[n]);
	}
}

static void put_gpr_at(struct text *t, uint16_t off, unsigned bytes)
{
	if (off % 8) {
		put_char(t, "acdb"[off / 8]);
		put_char(t, 'h');
	} else {
		put_gpr(t, off / 8, bytes);
	}
}

static void put_numbered(struct text *t, const char *prefix, unsigned n)
{
	put(t, prefix);
	put_dec(t, n);
}

static void put_vec(struct text *t, unsigned n, unsigned bytes)
{
	put_numbered(t, bytes <= 16 ? "xmm" : bytes == 32 ? "ymm" : "zmm", n);
}

/* --- memory ------------------------------------------------------------------------------------
 */

static const char *size_name(unsigned bytes)
{
	switch (bytes) {
	case 1:
		return "byte ptr ";
	case 2:
		return "word ptr ";
	case 4:
		return "dword ptr ";
	case 6:
		return "fword ptr ";
	case 8:
		return "qword ptr ";
	case 10:
		return "tbyte ptr ";
	case 16:
		return "xmmword ptr ";
	case 32:
		return "ymmword ptr ";
	case 64:
		return "zmmword ptr ";
	default:
		return "";
	}
}

static unsigned default_segment(const struct insn *in)
{
	bool stack = in->base == CPU_GPR_OFF(X86_RSP) || in->base == CPU_GPR_OFF(X86_RBP);

	return stack ? X86_SS : X86_DS;
}

static void put_segment(struct text *t, const struct insn *in)
{
	if (in->seg == default_segment(in))
		return;
	put(t, seg_names[in->seg]);
	put_char(t, ':');
}

static void put_base(struct text *t, const struct insn *in)
{
	if (in->base == CPU_OFF(rip))
		put(t, in->adsize == 8 ? "rip" : "eip");
	else
		put_gpr(t, in->base / 8, in->adsize);
}

static void put_index(struct text *t, const struct insn *in, const struct insn_op *op)
{
	if (op->kind == OP_VSIB)
		put_vec(t, in->vrm, insn_size_bytes(in, op->size));
	else
		put_gpr(t, in->index / 8, in->adsize);
	if (in->scale) {
		put_char(t, '*');
		put_dec(t, 1u << in->scale);
	}
}

static uint64_t address_mask(const struct insn *in)
{
	return in->adsize == 8 ? ~0ull : in->adsize == 4 ? 0xffffffffu : 0xffffu;
}

static void put_memory(struct text *t, const struct insn *in, const struct insn_op *op)
{
	bool base = in->base != CPU_OFF(zero);
	bool index = in->index != CPU_OFF(zero) || op->kind == OP_VSIB;

	put(t, op->msize ? size_name(in->msize) : "");
	put_segment(t, in);
	put_char(t, '[');
	if (base)
		put_base(t, in);
	if (base && index)
		put_char(t, '+');
	if (index)
		put_index(t, in, op);
	if (!base && !index)
		put_hex(t, (uint64_t)(int64_t)in->disp & address_mask(in));
	else if (in->disp)
		put_signed_hex(t, in->disp, true);
	put_char(t, ']');
	if (in->flags & INSN_EVEX_B && op->kind == OP_VEC_RM && in->msize)
		put_numbered(t, "{1to", insn_size_bytes(in, op->msize) / in->msize),
			put_char(t, '}');
}

static void put_string_operand(struct text *t, const struct insn *in, const struct insn_op *op)
{
	bool src = op->kind == OP_STR_SRC;

	put(t, size_name(insn_size_bytes(in, op->msize)));
	if (!src)
		put(t, "es:");
	else
		put_segment(t, in);
	put_char(t, '[');
	put_gpr(t, src ? X86_RSI : X86_RDI, in->adsize);
	put_char(t, ']');
}

static void put_moffs(struct text *t, const struct insn *in, const struct insn_op *op)
{
	put(t, size_name(insn_size_bytes(in, op->msize)));
	put_segment(t, in);
	put_char(t, '[');
	put_hex(t, in->imm);
	put_char(t, ']');
}

/* --- operands ----------------------------------------------------------------------------------
 */

static void put_rm(struct text *t, const struct insn *in, const struct insn_op *op)
{
	unsigned bytes = insn_size_bytes(in, op->size);

	if (in->flags & INSN_MEM)
		put_memory(t, in, op);
	else if (op->kind == OP_GPR_RM)
		put_gpr_at(t, in->rm, bytes);
	else if (op->kind == OP_VEC_RM)
		put_vec(t, in->vrm, bytes);
	else if (op->kind == OP_MMX_RM)
		put_numbered(t, "mm", in->vrm & 7);
	else
		put_numbered(t, "k", in->vrm & 7);
}

static uint64_t cut(uint64_t v, unsigned bytes)
{
	return bytes >= 8 ? v : v & (BIT(bytes * 8) - 1);
}

static void put_target(struct text *t, const struct insn *in, uint64_t rip)
{
	put_hex(t, cut(rip + in->len + in->imm, in->opsize));
}

static void put_far(struct text *t, const struct insn *in)
{
	put_hex(t, in->sel);
	put_char(t, ':');
	put_hex(t, in->imm);
}

static void put_operand(struct text *t, const struct insn *in, const struct insn_op *op,
			uint64_t rip)
{
	unsigned bytes = insn_size_bytes(in, op->size);

	switch ((enum insn_op_kind)op->kind) {
	case OP_GPR_REG:
	case OP_GPR_OPC:
		put_gpr_at(t, in->reg, bytes);
		break;
	case OP_GPR_VVVV:
		put_gpr_at(t, in->vvvv, bytes);
		break;
	case OP_GPR_FIXED:
		put_gpr(t, op->fixed, bytes);
		break;
	case OP_GPR_RM:
	case OP_MMX_RM:
	case OP_VEC_RM:
	case OP_K_RM:
		put_rm(t, in, op);
		break;
	case OP_VSIB:
		put_memory(t, in, op);
		break;
	case OP_SEG:
	case OP_SEG_REG:
		put(t, seg_names[in->vreg & 7]);
		break;
	case OP_CR:
		put_numbered(t, "cr", in->vreg);
		break;
	case OP_DR:
		put_numbered(t, "dr", in->vreg);
		break;
	case OP_MOFFS:
		put_moffs(t, in, op);
		break;
	case OP_STR_SRC:
	case OP_STR_DST:
		put_string_operand(t, in, op);
		break;
	case OP_IMM:
		put_hex(t, cut(in->imm, op->size == 1 ? MAX(in->opsize, 1) : bytes));
		break;
	case OP_IMM2:
		put_hex(t, in->imm2);
		break;
	case OP_ONE:
		put_char(t, '1');
		break;
	case OP_REL:
		put_target(t, in, rip);
		break;
	case OP_FAR:
		put_far(t, in);
		break;
	case OP_ST0:
		put(t, "st0");
		break;
	case OP_STI:
		put_numbered(t, "st", in->modrm & 7);
		break;
	case OP_MMX_REG:
		put_numbered(t, "mm", in->vreg & 7);
		break;
	case OP_VEC_REG:
		put_vec(t, in->vreg, bytes);
		break;
	case OP_VEC_VVVV:
		put_vec(t, in->vv, bytes);
		break;
	case OP_VEC_IS4:
		put_vec(t, in->imm >> 4 & 15, bytes);
		break;
	case OP_XMM0:
		put(t, "xmm0");
		break;
	case OP_K_REG:
		put_numbered(t, "k", in->vreg);
		break;
	case OP_K_VVVV:
		put_numbered(t, "k", in->vv);
		break;
	case OP_NONE:
		break;
	}
}

static void put_opmask(struct text *t, const struct insn *in)
{
	if (in->k)
		put_numbered(t, "{k", in->k), put_char(t, '}');
	if (in->flags & INSN_EVEX_Z)
		put(t, "{z}");
}

static void put_rounding(struct text *t, const struct insn *in, const struct insn_row *row)
{
	static const char *const modes[4] = {"{rn-sae}", "{rd-sae}", "{ru-sae}", "{rz-sae}"};

	if (!(in->flags & INSN_EVEX_B) || in->flags & INSN_MEM)
		return;
	put(t, ", ");
	put(t, row->attrs & ROW_ER ? modes[in->rc & 3] : "{sae}");
}

/* --- whole instruction -------------------------------------------------------------------------
 */

static bool is_string(const struct insn_row *row)
{
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_STR_SRC || row->op[i].kind == OP_STR_DST)
			return true;
	return false;
}

static void put_prefixes(struct text *t, const struct insn *in, const struct insn_row *row)
{
	bool compares = row->fl_write & RFLAGS_ZF;

	if (in->flags & INSN_LOCK)
		put(t, "lock ");
	if (!is_string(row))
		return;
	if (in->flags & INSN_REP)
		put(t, compares ? "repe " : "rep ");
	else if (in->flags & INSN_REPNE)
		put(t, compares ? "repne " : "rep ");
}

static void put_name(struct text *t, const struct insn *in)
{
	const char *name;

	for (unsigned n = insn_name(in, &name); n; n--)
		put_char(t, *name++);
}

int insn_print(const struct insn *in, uint64_t rip, char *buf, size_t len)
{
	const struct insn_row *row = &insn_rows[in->id];
	struct text t = {buf, len, 0};

	put_prefixes(&t, in, row);
	put_name(&t, in);
	for (unsigned i = 0; i < row->nr_ops; i++) {
		put(&t, i ? ", " : " ");
		put_operand(&t, in, &row->op[i], rip);
		if (i == 0)
			put_opmask(&t, in);
	}
	put_rounding(&t, in, row);
	if (in->flags & INSN_MEM && in->base == CPU_OFF(rip)) {
		put(&t, " # ");
		put_hex(&t, (rip + in->len + (uint64_t)(int64_t)in->disp) & address_mask(in));
	}
	if (len)
		buf[MIN(t.at, len - 1)] = '\0';
	return (int)t.at;
}
