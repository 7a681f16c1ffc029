/* engine/soft/vec_row.c - from a row of insn.tbl to what the executor and the thunk builder do.
 *
 * Called once per decoded instruction. */
#include "engine/soft/insn_rows.h"
#include "engine/soft/vec_int.h"

static enum vec_class class_of(enum insn_class c)
{
	switch (c) {
	case CLASS_X87:
		return VEC_X87;
	case CLASS_MMX:
		return VEC_MMX;
	case CLASS_AVX:
		return VEC_AVX;
	case CLASS_AVX512:
	case CLASS_K:
		return VEC_AVX512;
	case CLASS_FWAIT:
		return VEC_FWAIT;
	default:
		return VEC_SSE;
	}
}

static bool is_rm(uint8_t kind)
{
	return kind == OP_GPR_RM || kind == OP_MMX_RM || kind == OP_VEC_RM || kind == OP_K_RM;
}

/* A general register, or memory that could be one: not rows that take memory only. */
static bool w_is_size(const struct insn *in, const struct insn_op *op)
{
	if (op->kind == OP_GPR_REG || (op->kind == OP_GPR_RM && !(in->flags & INSN_MEM)))
		return true;
	if (op->kind != OP_GPR_RM)
		return false;
	return op->msize == SIZE_Y ||
	       (in->map == MAP_0F && (in->opcode == 0x6e || in->opcode == 0x7e)) || /* VMOVD */
	       (in->map == MAP_0F3A && (in->opcode == 0x16 || in->opcode == 0x22)); /* VPEXTRD */
}

static void take_operand(struct vec_attr *a, const struct insn *in, const struct insn_op *op)
{
	if (op->kind == OP_GPR_REG)
		a->use |= VEC_USE_REG;
	if (op->kind == OP_GPR_RM)
		a->use |= VEC_USE_RM;
	if (op->kind == OP_GPR_REG || op->kind == OP_GPR_RM)
		a->use |= op->access & OP_WRITE ? VEC_WRITES : 0;
	if (w_is_size(in, op))
		a->use |= VEC_W_SIZE;
	if (op->kind == OP_MMX_REG || (op->kind == OP_MMX_RM && !(in->flags & INSN_MEM)))
		a->use |= VEC_WAITS;
	if (is_rm(op->kind) && in->flags & INSN_MEM)
		a->mem = op->access & OP_WRITE ? VEC_MEM_STORE : VEC_MEM_LOAD;
}

/* AMD APM 4 "Data Alignment": misaligned SSE mode covers operands of arithmetic instructions, not
 * the moves whose name says aligned. */
static bool is_aligned_move(const struct insn *in)
{
	if (in->map == MAP_0F38)
		return in->opcode == 0x2a; /* MOVNTDQA */
	return in->map == MAP_0F &&
	       (in->opcode == 0x28 || in->opcode == 0x29 || in->opcode == 0x2b ||
		in->opcode == 0x6f || in->opcode == 0x7f || in->opcode == 0xe7);
}

static uint16_t implicit_use(const struct insn *in, const struct insn_row *row)
{
	uint16_t use = 0;

	if (row->attrs & ROW_FLAGS_WRITE)
		use |= VEC_FLAGS_OUT;
	if (row->fl_read)
		use |= VEC_FLAGS_IN;
	if (in->map == MAP_0F3A && in->opcode >= 0x60 && in->opcode <= 0x63)
		use |= VEC_USE_CMPSTR | VEC_W_SIZE; /* of the lengths in EAX and EDX */
	if (row->cls == CLASS_X87 && row->attrs & ROW_GPR_WRITE)
		use |= VEC_USE_AX;
	if (row->cls == CLASS_X87 && row->special == SPECIAL_NONE)
		use |= VEC_X87_PTR;
	if (row->cls == CLASS_X87 || row->cls == CLASS_MMX || row->cls == CLASS_FWAIT)
		use |= VEC_WAITS;
	return use;
}

static bool is_broadcast(const struct insn *in)
{
	return in->map == MAP_0F38 &&
	       ((in->opcode >= 0x18 && in->opcode <= 0x1b) ||
		(in->opcode >= 0x58 && in->opcode <= 0x5b) || (in->opcode & 0xfe) == 0x78);
}

/* Bytes of the memory operand before broadcast. */
static unsigned full_size(const struct insn *in, const struct insn_row *row)
{
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (is_rm(row->op[i].kind))
			return insn_size_bytes(in, row->op[i].msize);
	return in->msize;
}

/* How memory elements and mask bits go together. */
static void masked_operand(struct vec_attr *a, const struct insn *in, const struct insn_row *row)
{
	unsigned n;

	a->use |= VEC_MASKED;
	if (row->attrs & ROW_SCALAR) {
		a->elem = a->size;
		a->bits = 1;
	} else if (is_broadcast(in)) {
		a->elem = row->elem;
		a->bits = in->vlen / row->elem;
	} else if (in->flags & INSN_EVEX_B) {
		a->elem = a->size;
		a->bits = (uint8_t)(full_size(in, row) / a->size);
	} else {
		n = row->attrs & ROW_BCAST ? a->size / row->elem : in->vlen / row->elem;
		a->elem = (uint8_t)(a->size / n);
		a->bits = (uint8_t)n;
	}
}

static void take_mask(struct vec_attr *a, const struct insn *in, const struct insn_row *row)
{
	if (row->special == SPECIAL_MASKMOV) {
		a->use |= VEC_MASKED;
		a->elem = row->elem;
		a->bits = a->size / row->elem;
	} else if (row->attrs & ROW_MASK && in->k && row->elem) {
		if (row->attrs & ROW_FAULTS_WHOLE && a->mem == VEC_MEM_LOAD)
			return;
		masked_operand(a, in, row);
		if (row->attrs & ROW_FAULTS_WHOLE)
			a->use |= VEC_FAULTS_WHOLE;
		else
			a->ac = a->elem;
		if (row->special == SPECIAL_COMPRESS || row->special == SPECIAL_EXPAND)
			a->use |= VEC_PACKED;
	}
}

/* What #AC asks for (SDM 3A "Alignment Check Exception"; vectors of any length: 16 bytes,
 * but elements for themselves where a mask chooses them, see take_mask). */
static uint8_t ac_alignment(const struct insn_row *row, unsigned size)
{
	if (row->special == SPECIAL_MASKMOV)
		return 1;
	return size == 10 ? 8 : size & (size - 1) ? 1 : (uint8_t)MIN(size, 16);
}

void vec_attr_of(struct vec_attr *a, const struct cpu *cpu, const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	*a = (struct vec_attr){.cls = class_of(row->cls), .mem = VEC_MEM_NONE};
	a->size = in->flags & INSN_MEM ? in->msize : 0;
	a->align = row->attrs & ROW_ALIGN ? a->size : 0;
	a->ac = ac_alignment(row, a->size);
	a->use = implicit_use(in, row);
	for (unsigned i = 0; i < row->nr_ops; i++)
		take_operand(a, in, &row->op[i]);
	/* FNSTCW and FNSTSW do not wait. */
	if (row->special == SPECIAL_CONTROL && a->mem == VEC_MEM_STORE)
		a->use &= ~VEC_WAITS;
	if (a->align && !is_aligned_move(in) && !(in->flags & (INSN_VEX | INSN_EVEX)))
		a->use |= VEC_ALIGN_MM;
	if (a->mem != VEC_MEM_NONE && a->size)
		take_mask(a, in, row);
}
