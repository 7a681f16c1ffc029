#include "zydis_compare.h"

#include "engine/cpu_model.h"
#include "engine/soft/cpu.h"
#include "engine/soft/insn_rows.h"

#include <Zydis/Zydis.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct zydis_pair {
	ZydisDecoder decoder;
	struct cpu_model model;
	enum insn_mode mode;
	bool amd;
};

/* --- differences on purpose --------------------------------------------------------------------
 */

struct zydis_reason {
	int what;
	const char *why;
};

// clang-format off
/* Extensions that Zydis decodes and no CPU model of ours offers. */
static const struct zydis_reason not_offered[] = {
	{ZYDIS_ISA_EXT_AMD3DNOW, "withdrawn by AMD"},
	{ZYDIS_ISA_EXT_AMD_INVLPGB, "not offered"},
	{ZYDIS_ISA_EXT_AMX_BF16, "not offered"},
	{ZYDIS_ISA_EXT_AMX_INT8, "not offered"},
	{ZYDIS_ISA_EXT_AMX_TILE, "not offered"},
	{ZYDIS_ISA_EXT_CET, "not offered"},
	{ZYDIS_ISA_EXT_ENQCMD, "not offered"},
	{ZYDIS_ISA_EXT_FMA4, "withdrawn by AMD"},
	{ZYDIS_ISA_EXT_HRESET, "not offered"},
	{ZYDIS_ISA_EXT_KEYLOCKER, "not offered"},
	{ZYDIS_ISA_EXT_KEYLOCKER_WIDE, "not offered"},
	{ZYDIS_ISA_EXT_KNC, "Xeon Phi"},
	{ZYDIS_ISA_EXT_KNCE, "Xeon Phi"},
	{ZYDIS_ISA_EXT_KNCV, "Xeon Phi"},
	{ZYDIS_ISA_EXT_MCOMMIT, "not offered"},
	{ZYDIS_ISA_EXT_MOVDIR, "not offered"},
	{ZYDIS_ISA_EXT_PADLOCK, "VIA"},
	{ZYDIS_ISA_EXT_PCONFIG, "not offered"},
	{ZYDIS_ISA_EXT_PT, "not offered"},
	{ZYDIS_ISA_EXT_RTM, "not offered"},
	{ZYDIS_ISA_EXT_SGX, "not offered"},
	{ZYDIS_ISA_EXT_SGX_ENCLV, "not offered"},
	{ZYDIS_ISA_EXT_SNP, "not offered"},
	{ZYDIS_ISA_EXT_TBM, "withdrawn by AMD"},
	{ZYDIS_ISA_EXT_TDX, "not offered"},
	{ZYDIS_ISA_EXT_TSX_LDTRK, "not offered"},
	{ZYDIS_ISA_EXT_UINTR, "not offered"},
	{ZYDIS_ISA_EXT_VMFUNC, "no virtualisation is offered"},
	{ZYDIS_ISA_EXT_WAITPKG, "not offered"},
	{ZYDIS_ISA_EXT_XOP, "withdrawn by AMD"},
};

/* Sets of AVX-512 instructions likewise. */
static const struct zydis_reason sets_not_offered[] = {
	{ZYDIS_ISA_SET_AVX512ER_512, "Xeon Phi"},
	{ZYDIS_ISA_SET_AVX512ER_SCALAR, "Xeon Phi"},
	{ZYDIS_ISA_SET_AVX512PF_512, "Xeon Phi"},
	{ZYDIS_ISA_SET_AVX512_4FMAPS_512, "Xeon Phi"},
	{ZYDIS_ISA_SET_AVX512_4FMAPS_SCALAR, "Xeon Phi"},
	{ZYDIS_ISA_SET_AVX512_4VNNIW_512, "Xeon Phi"},
};

/* Single instructions that Zydis decodes and we do not. */
static const struct zydis_reason not_decoded[] = {
	{ZYDIS_MNEMONIC_NOP, "0F 0D with registers is #UD on AMD"},
	{ZYDIS_MNEMONIC_CLZERO, "F2 and F3 make it #UD (seen on Zen 5)"},
	{ZYDIS_MNEMONIC_RDPRU, "likewise"},
	{ZYDIS_MNEMONIC_VPINSRD, "VEX.W = 1 is #UD outside 64-bit mode (SDM 2B; seen on Zen 5)"},
	{ZYDIS_MNEMONIC_VPEXTRD, "likewise"},
};

/* Where both decode, but not to the same thing. */
static const struct zydis_reason decoded_otherwise[] = {
	{ZYDIS_MNEMONIC_PAUSE, "with REX.B it is XCHG R8,rAX (seen on Zen 5)"},
	{ZYDIS_MNEMONIC_LEA, "Zydis drops the segment override"},
	{ZYDIS_MNEMONIC_CLFLUSH, "a cache line to Zydis, one byte to us: what is checked"},
	{ZYDIS_MNEMONIC_CLFLUSHOPT, "likewise"},
	{ZYDIS_MNEMONIC_CLWB, "likewise"},
	{ZYDIS_MNEMONIC_PREFETCH, "names of the reserved prefetches"},
	{ZYDIS_MNEMONIC_PREFETCHWT1, "likewise"},
	{ZYDIS_MNEMONIC_VMRUN, "implicit rAX is not an operand of ours"},
	{ZYDIS_MNEMONIC_VMLOAD, "likewise"},
	{ZYDIS_MNEMONIC_VMSAVE, "likewise"},
	{ZYDIS_MNEMONIC_INVLPGA, "likewise"},
	{ZYDIS_MNEMONIC_SKINIT, "likewise"},
	{ZYDIS_MNEMONIC_CLZERO, "likewise"},
	{ZYDIS_MNEMONIC_LSL, "the source is 16 bits, whatever its register is called"},
	{ZYDIS_MNEMONIC_MOVMSKPS, "the upper half is zero with and without REX.W"},
	{ZYDIS_MNEMONIC_MOVMSKPD, "likewise"},
	{ZYDIS_MNEMONIC_NOP, "what 0F 1A and 0F 1B have as operands without MPX"},
};

/* Instructions that we decode and Zydis does not. */
static const struct { uint8_t map, opcode; bool vector; const char *why; } not_in_zydis[] = {
	{MAP_0F38, 0xb4, true, "AVX-IFMA is younger than Zydis 4.0"},
	{MAP_0F38, 0xb5, true, "likewise"},
	{MAP_0F, 0x2a, true, "VCVTSI2SD: EVEX.b without W is accepted by CPUs (seen on Zen 5)"},
	{MAP_0F, 0x7b, true, "likewise"},
	{MAP_EVEX5, 0x2a, true, "FP16 and GPR: EVEX.W is ignored outside 64-bit mode (SDM 2)"},
	{MAP_EVEX5, 0x2c, true, "likewise"},
	{MAP_EVEX5, 0x2d, true, "likewise"},
	{MAP_EVEX5, 0x78, true, "likewise"},
	{MAP_EVEX5, 0x79, true, "likewise"},
	{MAP_EVEX5, 0x7b, true, "likewise"},
};

/* Names that differ only in taste. */
static const struct { const char *ours, *zydis; } names[] = {
	{"cmovae", "cmovnb"}, {"cmova", "cmovnbe"}, {"cmovge", "cmovnl"}, {"cmovg", "cmovnle"},
	{"jae", "jnb"}, {"ja", "jnbe"}, {"jge", "jnl"}, {"jg", "jnle"},
	{"setae", "setnb"}, {"seta", "setnbe"}, {"setge", "setnl"}, {"setg", "setnle"},
	{"loopnz", "loopne"}, {"loopz", "loope"},
	{"callf", "call"}, {"jmpf", "jmp"}, {"retf", "ret"},
	{"feni", "feni8087_nop"}, {"fdisi", "fdisi8087_nop"}, {"fsetpm", "fsetpm287_nop"},
	{"endbr32", "nop"}, {"endbr64", "nop"}, /* with CET off */
	{"wbnoinvd", "wbinvd"},
};
// clang-format on

static const char *reason_for(const struct zydis_reason *r, size_t n, int what)
{
	for (size_t i = 0; i < n; i++)
		if (r[i].what == what)
			return r[i].why;
	return NULL;
}

static bool zydis_lacks(const struct insn *in)
{
	bool vector = in->flags & (INSN_VEX | INSN_EVEX);

	for (size_t i = 0; i < ARRAY_SIZE(not_in_zydis); i++)
		if (not_in_zydis[i].map == in->map && not_in_zydis[i].opcode == in->opcode &&
		    not_in_zydis[i].vector == vector)
			return true;
	return false;
}

/* --- both operands in one form -----------------------------------------------------------------
 */

enum norm_kind { NORM_NONE, NORM_REG, NORM_MEM, NORM_IMM, NORM_FAR };

struct norm {
	enum norm_kind kind;
	int cls, num; /* ZydisRegisterClass and number */
	unsigned size;
	int seg, base, index; /* ZydisRegister */
	unsigned scale;
	int64_t value; /* immediate or displacement */
};

static ZydisRegister gpr(unsigned bytes, unsigned n)
{
	static const ZydisRegisterClass classes[9] = {
		[1] = ZYDIS_REGCLASS_GPR8,
		[2] = ZYDIS_REGCLASS_GPR16,
		[4] = ZYDIS_REGCLASS_GPR32,
		[8] = ZYDIS_REGCLASS_GPR64,
	};

	return ZydisRegisterEncode(classes[bytes], (ZyanU8)n);
}

static void set_reg(struct norm *n, ZydisRegister reg)
{
	n->kind = NORM_REG;
	n->cls = ZydisRegisterGetClass(reg);
	n->num = ZydisRegisterGetId(reg);
}

/* Zydis numbers byte registers AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8B.. */
static ZydisRegister gpr8_at(uint16_t off, bool rex)
{
	unsigned n = off / 8;

	if (off % 8)
		return ZYDIS_REGISTER_AH + (off - 1) / 8;
	if (n < 4)
		return ZYDIS_REGISTER_AL + n;
	if (n < 8)
		return rex ? ZYDIS_REGISTER_SPL + n - 4 : ZYDIS_REGISTER_NONE;
	return ZYDIS_REGISTER_R8B + n - 8;
}

static void set_gpr(struct norm *n, const struct insn *in, uint16_t off, unsigned bytes)
{
	if (bytes == 1)
		set_reg(n, gpr8_at(off, in->flags & INSN_REX));
	else
		set_reg(n, gpr(bytes, off / 8));
}

static void set_vec(struct norm *n, unsigned num, unsigned bytes)
{
	ZydisRegisterClass cls = bytes <= 16   ? ZYDIS_REGCLASS_XMM
				 : bytes == 32 ? ZYDIS_REGCLASS_YMM
					       : ZYDIS_REGCLASS_ZMM;

	set_reg(n, ZydisRegisterEncode(cls, (ZyanU8)num));
}

static void set_class(struct norm *n, ZydisRegisterClass cls, unsigned num)
{
	set_reg(n, ZydisRegisterEncode(cls, (ZyanU8)num));
}

static int address_register(const struct insn *in, uint16_t off)
{
	if (off == CPU_OFF(zero))
		return ZYDIS_REGISTER_NONE;
	if (off == CPU_OFF(rip))
		return in->adsize == 8 ? ZYDIS_REGISTER_RIP : ZYDIS_REGISTER_EIP;
	return gpr(in->adsize, off / 8);
}

static int segment_register(unsigned seg)
{
	return ZYDIS_REGISTER_ES + (int)seg;
}

/* A vector index is as long as the data has elements for it, or Zydis' idea of that. */
static int vsib_register(const struct insn *in, const struct insn_op *op)
{
	struct norm n = {0};

	set_vec(&n, in->vrm, MAX(insn_size_bytes(in, op->size), 16));
	return ZydisRegisterEncode(n.cls, in->vrm);
}

static void set_memory(struct norm *n, const struct insn *in, const struct insn_op *op)
{
	n->kind = NORM_MEM;
	n->seg = segment_register(in->seg);
	n->base = address_register(in, in->base);
	n->index = op->kind == OP_VSIB ? vsib_register(in, op) : address_register(in, in->index);
	n->scale = n->index ? 1u << in->scale : 0;
	n->value = in->disp;
	n->size = op->msize ? in->msize : 0;
}

static void set_string(struct norm *n, const struct insn *in, const struct insn_op *op)
{
	bool src = op->kind == OP_STR_SRC;

	n->kind = NORM_MEM;
	n->seg = segment_register(src ? in->seg : X86_ES);
	n->base = gpr(in->adsize, src ? X86_RSI : X86_RDI);
	n->size = insn_size_bytes(in, op->size);
}

static void set_rm(struct norm *n, const struct insn *in, const struct insn_op *op)
{
	unsigned bytes = insn_size_bytes(in, op->size);

	if (in->flags & INSN_MEM)
		set_memory(n, in, op);
	else if (op->kind == OP_GPR_RM)
		set_gpr(n, in, in->rm, bytes);
	else if (op->kind == OP_VEC_RM)
		set_vec(n, in->vrm, bytes);
	else if (op->kind == OP_MMX_RM)
		set_class(n, ZYDIS_REGCLASS_MMX, in->vrm & 7);
	else
		set_class(n, ZYDIS_REGCLASS_MASK, in->vrm & 7);
}

static int64_t sign_extend(uint64_t v, unsigned bytes)
{
	return bytes >= 8 ? (int64_t)v : (int64_t)(v << (64 - bytes * 8)) >> (64 - bytes * 8);
}

static void set_imm(struct norm *n, uint64_t v)
{
	n->kind = NORM_IMM;
	n->value = (int64_t)v;
}

static void norm_ours(struct norm *n, const struct insn *in, const struct insn_op *op)
{
	unsigned bytes = insn_size_bytes(in, op->size);

	memset(n, 0, sizeof(*n));
	switch ((enum insn_op_kind)op->kind) {
	case OP_GPR_REG:
	case OP_GPR_OPC:
		set_gpr(n, in, in->reg, bytes);
		break;
	case OP_GPR_VVVV:
		set_gpr(n, in, in->vvvv, bytes);
		break;
	case OP_GPR_FIXED:
		set_gpr(n, in, CPU_GPR_OFF(op->fixed), bytes);
		break;
	case OP_GPR_RM:
	case OP_VEC_RM:
	case OP_MMX_RM:
	case OP_K_RM:
		set_rm(n, in, op);
		break;
	case OP_VSIB:
		set_memory(n, in, op);
		break;
	case OP_SEG:
		set_reg(n, segment_register(in->vreg));
		break;
	case OP_SEG_REG:
		set_reg(n, segment_register(in->vreg & 7));
		break;
	case OP_CR:
		set_class(n, ZYDIS_REGCLASS_CONTROL, in->vreg);
		break;
	case OP_DR:
		set_class(n, ZYDIS_REGCLASS_DEBUG, in->vreg);
		break;
	case OP_MOFFS:
		n->kind = NORM_MEM;
		n->seg = segment_register(in->seg);
		n->value = sign_extend(in->imm, in->adsize);
		n->size = bytes;
		break;
	case OP_STR_SRC:
	case OP_STR_DST:
		set_string(n, in, op);
		break;
	case OP_IMM:
	case OP_REL:
		set_imm(n, in->imm);
		break;
	case OP_IMM2:
		set_imm(n, in->imm2);
		break;
	case OP_ONE:
		set_imm(n, 1);
		break;
	case OP_FAR:
		n->kind = NORM_FAR;
		n->value = (int64_t)in->imm;
		n->num = in->sel;
		break;
	case OP_ST0:
		set_reg(n, ZYDIS_REGISTER_ST0);
		break;
	case OP_STI:
		set_reg(n, ZYDIS_REGISTER_ST0 + (in->modrm & 7));
		break;
	case OP_MMX_REG:
		set_class(n, ZYDIS_REGCLASS_MMX, in->vreg & 7);
		break;
	case OP_VEC_REG:
		set_vec(n, in->vreg, bytes);
		break;
	case OP_VEC_VVVV:
		set_vec(n, in->vv, bytes);
		break;
	case OP_VEC_IS4:
		set_vec(n, in->imm >> 4 & 15, bytes);
		break;
	case OP_XMM0:
		set_reg(n, ZYDIS_REGISTER_XMM0);
		break;
	case OP_K_REG:
		set_class(n, ZYDIS_REGCLASS_MASK, in->vreg);
		break;
	case OP_K_VVVV:
		set_class(n, ZYDIS_REGCLASS_MASK, in->vv);
		break;
	case OP_NONE:
		break;
	}
}

static void norm_zydis(struct norm *n, const ZydisDecodedOperand *op)
{
	memset(n, 0, sizeof(*n));
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		set_reg(n, op->reg.value);
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		n->kind = NORM_MEM;
		n->seg = op->mem.segment;
		n->base = op->mem.base;
		n->index = op->mem.index;
		n->scale = op->mem.scale;
		n->value = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
		n->size = op->mem.type == ZYDIS_MEMOP_TYPE_MEM ? op->size / 8u : 0;
		break;
	case ZYDIS_OPERAND_TYPE_POINTER:
		n->kind = NORM_FAR;
		n->value = op->ptr.offset;
		n->num = op->ptr.segment;
		break;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		set_imm(n, op->imm.value.u);
		break;
	default:
		break;
	}
}

/* --- Zydis 4.0's own mistakes
 * --------------------------------------------------------------------- Checked on a Zen 5. */

/* With 67h and REX.B, a SIB that has no base is given R13D and loses its displacement. */
static bool zydis_mistakes_base(const struct insn *in, const struct norm *theirs)
{
	return in->adsize == 4 && in->base == CPU_OFF(zero) && theirs->base == ZYDIS_REGISTER_R13D;
}

/* Far pointers in memory have 32-bit offsets at most, and 66h works on indirect near branches, on
 * AMD; Zydis knows AMD's rules for direct branches only. */
static bool zydis_knows_intel_only(const struct zydis_pair *p, const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	if (!p->amd)
		return false;
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].msize == SIZE_FAR)
			return in->flags & INSN_REXW;
	return in->map == MAP_1 && in->opcode == 0xff && in->opsize == 2;
}

/* --- comparing ---------------------------------------------------------------------------------
 */

static bool same_memory(const struct norm *a, const struct norm *b, const struct insn *in)
{
	/* What Zydis calls 0 bytes or we call special has no size to compare. */
	bool size = !a->size || !b->size || a->size == b->size;

	if (zydis_mistakes_base(in, b))
		return true;
	return size && a->seg == b->seg && a->base == b->base && a->index == b->index &&
	       a->scale == b->scale &&
	       sign_extend((uint64_t)a->value, in->adsize) ==
		       sign_extend((uint64_t)b->value, in->adsize);
}

static bool same_operand(const struct norm *a, const struct norm *b, const struct insn *in,
			 const ZydisDecodedOperand *zop)
{
	if (a->kind != b->kind)
		return false;
	switch (a->kind) {
	case NORM_REG:
		return a->cls == b->cls && a->num == b->num;
	case NORM_MEM:
		return same_memory(a, b, in);
	case NORM_IMM:
		return sign_extend((uint64_t)a->value, zop->size / 8u) ==
		       sign_extend((uint64_t)b->value, zop->size / 8u);
	case NORM_FAR:
		return a->value == b->value && a->num == b->num;
	default:
		return true;
	}
}

static bool is_name_of(const char *list, size_t len, const char *zydis)
{
	char ours[32];

	snprintf(ours, sizeof(ours), "%.*s", (int)len, list);
	if (!strcmp(ours, zydis))
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].ours && !strcmp(names[i].ours, ours) && !strcmp(names[i].zydis, zydis))
			return true;
	return false;
}

static const char *norm_text(const struct norm *n)
{
	static char text[4][96];
	static unsigned turn;
	char *t = text[turn++ % 4];

	snprintf(t, sizeof(text[0]), "{kind %d class %d num %d size %u %s:%s+%s*%u %#llx}", n->kind,
		 n->cls, n->num, n->size, ZydisRegisterGetString(n->seg),
		 ZydisRegisterGetString(n->base), ZydisRegisterGetString(n->index), n->scale,
		 (unsigned long long)n->value);
	return t;
}

/* Operands that the other side writes down too: not the hidden ones, not the opmask. */
static unsigned visible_operands(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops,
				 const ZydisDecodedOperand *out[10])
{
	unsigned n = 0;

	for (unsigned i = 0; i < zi->operand_count_visible && n < 10; i++)
		if (ops[i].encoding != ZYDIS_OPERAND_ENCODING_MASK)
			out[n++] = &ops[i];
	return n;
}

/* Zydis hides the operands of string instructions and of some x87 and SSE ones; these are among the
 * hidden ones in any order. */
static bool find_operand(const struct norm *ours, const struct insn *in,
			 const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops)
{
	for (unsigned i = 0; i < zi->operand_count; i++) {
		struct norm theirs;

		norm_zydis(&theirs, &ops[i]);
		if (same_operand(ours, &theirs, in, &ops[i]))
			return true;
	}
	return false;
}

static const char *compare_operands(const struct insn *in, const ZydisDecodedInstruction *zi,
				    const ZydisDecodedOperand *ops)
{
	static char why[256];
	const struct insn_row *row = &insn_rows[in->id];
	const ZydisDecodedOperand *zops[10];
	unsigned nr = visible_operands(zi, ops, zops);

	if (nr > row->nr_ops) {
		snprintf(why, sizeof(why), "operands: ours %u, Zydis %u", row->nr_ops, nr);
		return why;
	}
	for (unsigned i = 0; i < row->nr_ops; i++) {
		struct norm a, b = {0};

		norm_ours(&a, in, &row->op[i]);
		if (nr < row->nr_ops && find_operand(&a, in, zi, ops))
			continue;
		if (nr == row->nr_ops)
			norm_zydis(&b, zops[i]);
		if (nr == row->nr_ops && same_operand(&a, &b, in, zops[i]))
			continue;
		snprintf(why, sizeof(why), "operand %u: ours %s, Zydis %s", i, norm_text(&a),
			 norm_text(&b));
		return why;
	}
	return NULL;
}

static const char *compare_avx(const struct insn *in, const ZydisDecodedInstruction *zi)
{
	if (!(in->flags & INSN_EVEX))
		return NULL;
	if (in->k != zi->raw.evex.aaa)
		return "opmask";
	if (!(in->flags & INSN_EVEX_Z) != !zi->raw.evex.z)
		return "zeroing";
	return NULL;
}

static const char *compare_valid(const struct insn *in, const ZydisDecodedInstruction *zi,
				 const ZydisDecodedOperand *ops)
{
	static char why[128];
	const char *name, *zname = ZydisMnemonicGetString(zi->mnemonic);
	unsigned name_len = insn_name(in, &name);

	if (in->len != zi->length) {
		snprintf(why, sizeof(why), "length: ours %u, Zydis %u", in->len, zi->length);
		return why;
	}
	if (!is_name_of(name, name_len, zname)) {
		snprintf(why, sizeof(why), "name: ours %.*s, Zydis %s", (int)name_len, name, zname);
		return why;
	}
	if (zi->address_width != in->adsize * 8)
		return "address size";
	if (compare_avx(in, zi))
		return compare_avx(in, zi);
	return compare_operands(in, zi, ops);
}

static enum zydis_verdict only_zydis(const ZydisDecodedInstruction *zi)
{
	if (reason_for(not_offered, ARRAY_SIZE(not_offered), zi->meta.isa_ext) ||
	    reason_for(sets_not_offered, ARRAY_SIZE(sets_not_offered), zi->meta.isa_set) ||
	    reason_for(not_decoded, ARRAY_SIZE(not_decoded), zi->mnemonic))
		return ZYDIS_KNOWN;
	return ZYDIS_DIFFERENT;
}

static enum zydis_verdict compare_both(const struct zydis_pair *p, const struct insn *in,
				       bool ours_ok, bool theirs_ok,
				       const ZydisDecodedInstruction *zi,
				       const ZydisDecodedOperand *ops, const char **what)
{
	if (!ours_ok && !theirs_ok)
		return ZYDIS_BOTH_BAD;
	if (!ours_ok) {
		*what = "only Zydis decodes it";
		return only_zydis(zi);
	}
	if (!theirs_ok) {
		*what = "only we decode it";
		return zydis_lacks(in) ? ZYDIS_KNOWN : ZYDIS_DIFFERENT;
	}
	*what = compare_valid(in, zi, ops);
	if (!*what)
		return ZYDIS_SAME;
	if (zydis_knows_intel_only(p, in))
		return ZYDIS_KNOWN;
	return reason_for(decoded_otherwise, ARRAY_SIZE(decoded_otherwise), zi->mnemonic)
		       ? ZYDIS_KNOWN
		       : ZYDIS_DIFFERENT;
}

static void explain(char *why, size_t len, const struct zydis_pair *p, const uint8_t *bytes,
		    const char *what, const struct insn *in, bool ours_ok,
		    const ZydisDecodedInstruction *zi, bool theirs_ok)
{
	unsigned n = MAX(ours_ok ? in->len : 1u, theirs_ok ? zi->length : 1u);
	size_t at = 0;

	at += (size_t)snprintf(why, len, "%s %s:", p->amd ? "AMD" : "Intel",
			       p->mode == INSN_MODE_16   ? "16"
			       : p->mode == INSN_MODE_32 ? "32"
							 : "64");
	for (unsigned i = 0; i < (ours_ok || theirs_ok ? n : 15) && at < len; i++)
		at += (size_t)snprintf(why + at, len - at, " %02x", bytes[i]);
	if (at < len)
		snprintf(why + at, len - at, ": %s (ours %s, Zydis %s)", what,
			 ours_ok ? insn_rows[in->id].name : "bad",
			 theirs_ok ? ZydisMnemonicGetString(zi->mnemonic) : "bad");
}

enum zydis_verdict zydis_compare(struct zydis_pair *p, const uint8_t *bytes, size_t len, char *why,
				 size_t why_len)
{
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction zi = {0};
	struct insn in;
	const char *what = NULL;
	enum zydis_verdict v;
	bool ours_ok =
		insn_decode(&in, bytes, len, p->mode, &p->model) == INSN_OK && in.id != INSN_bad;
	bool theirs_ok =
		ZYAN_SUCCESS(ZydisDecoderDecodeFull(&p->decoder, bytes, MIN(len, 15), &zi, ops));

	v = compare_both(p, &in, ours_ok, theirs_ok, &zi, ops, &what);
	if (v == ZYDIS_DIFFERENT)
		explain(why, why_len, p, bytes, what, &in, ours_ok, &zi, theirs_ok);
	return v;
}

/* --- set-up ------------------------------------------------------------------------------------
 */

struct zydis_pair *zydis_pair_create(enum insn_mode mode, bool amd)
{
	static const ZydisMachineMode modes[] = {
		[INSN_MODE_16] = ZYDIS_MACHINE_MODE_LEGACY_16,
		[INSN_MODE_32] = ZYDIS_MACHINE_MODE_LEGACY_32,
		[INSN_MODE_64] = ZYDIS_MACHINE_MODE_LONG_64,
	};
	struct zydis_pair *p = calloc(1, sizeof(*p));

	if (!p)
		abort();
	p->mode = mode;
	p->amd = amd;
	snprintf(p->model.vendor, sizeof(p->model.vendor), amd ? "AuthenticAMD" : "GenuineIntel");
	memset(p->model.features, 0xff, sizeof(p->model.features));
	ZydisDecoderInit(&p->decoder, modes[mode],
			 mode == INSN_MODE_64   ? ZYDIS_STACK_WIDTH_64
			 : mode == INSN_MODE_32 ? ZYDIS_STACK_WIDTH_32
						: ZYDIS_STACK_WIDTH_16);
	ZydisDecoderEnableMode(&p->decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, amd);
	/* These are NOPs to us, as on CPUs without the feature. */
	ZydisDecoderEnableMode(&p->decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(&p->decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	ZydisDecoderEnableMode(&p->decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
	return p;
}

void zydis_pair_destroy(struct zydis_pair *p)
{
	free(p);
}
