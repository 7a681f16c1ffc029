/* engine/soft/xlat_emit.c - bytes of host instructions.  SDM 2A "Instruction Format". */
#include "engine/soft/xlat_int.h"

void x16(struct xgen *g, uint16_t v)
{
	x8(g, (uint8_t)v);
	x8(g, (uint8_t)(v >> 8));
}

void x32(struct xgen *g, uint32_t v)
{
	x16(g, (uint16_t)v);
	x16(g, (uint16_t)(v >> 16));
}

void x64(struct xgen *g, uint64_t v)
{
	x32(g, (uint32_t)v);
	x32(g, (uint32_t)(v >> 32));
}

uint32_t x_offset(const struct xgen *g)
{
	return (uint32_t)(g->p - g->x->rw);
}

const void *x_rx(const struct xlat *x, uint32_t offset)
{
	return x->rx + offset;
}

/* --- operands ----------------------------------------------------------------------------------
 */

static void rip_relative(struct xgen *g, const void *target, unsigned imm)
{
	const uint8_t *next = g->x->rx + x_offset(g) + 4 + imm;

	x32(g, (uint32_t)((intptr_t)target - (intptr_t)next));
}

static void sib_mem(struct xgen *g, unsigned reg, const struct xmem *m)
{
	unsigned index = m->index == H_NONE ? 4 : (unsigned)m->index & 7;
	bool no_base = m->base == H_NONE;
	unsigned base = no_base ? 5 : (unsigned)m->base & 7;
	/* Base 5 with mod 0 means no base. */
	unsigned mod = no_base ? 0 : !m->disp && base != 5 ? 0 : m->disp == (int8_t)m->disp ? 1 : 2;

	x8(g, (uint8_t)(mod << 6 | (reg & 7) << 3 | 4));
	x8(g, (uint8_t)(m->scale << 6 | index << 3 | base));
	if (mod == 1)
		x8(g, (uint8_t)m->disp);
	else if (mod == 2 || no_base)
		x32(g, (uint32_t)m->disp);
}

void x_modrm_mem(struct xgen *g, unsigned reg, const struct xmem *m, unsigned imm)
{
	unsigned base, mod;

	if (m->base == H_RIP) {
		x8(g, (uint8_t)((reg & 7) << 3 | 5));
		rip_relative(g, m->abs, imm);
		return;
	}
	base = (unsigned)m->base & 7;
	if (m->index != H_NONE || m->base == H_NONE || base == 4) {
		sib_mem(g, reg, m);
		return;
	}
	mod = !m->disp && base != 5 ? 0 : m->disp == (int8_t)m->disp ? 1 : 2;
	x8(g, (uint8_t)(mod << 6 | (reg & 7) << 3 | base));
	if (mod == 1)
		x8(g, (uint8_t)m->disp);
	else if (mod == 2)
		x32(g, (uint32_t)m->disp);
}

/* --- one instruction ---------------------------------------------------------------------------
 */

static void prefixes(struct xgen *g, const struct xop *o)
{
	if (o->lock)
		x8(g, 0xf0);
	if (o->p66 || o->prefix == 0x66)
		x8(g, 0x66);
	if (o->prefix == 0xf2 || o->prefix == 0xf3)
		x8(g, o->prefix);
}

static void opcode(struct xgen *g, const struct xop *o, uint8_t rex)
{
	if (rex || o->rex)
		x8(g, 0x40 | rex);
	if (o->map != MAP_1)
		x8(g, 0x0f);
	if (o->map == MAP_0F38)
		x8(g, 0x38);
	if (o->map == MAP_0F3A)
		x8(g, 0x3a);
	x8(g, o->opcode);
}

static uint8_t rex_bits(bool w, unsigned reg, unsigned index, unsigned base)
{
	return (uint8_t)(w << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (base >> 3 & 1));
}

void x_op_plain(struct xgen *g, const struct xop *o)
{
	prefixes(g, o);
	opcode(g, o, rex_bits(o->w, 0, 0, 0));
}

void x_op_reg(struct xgen *g, const struct xop *o, unsigned reg, unsigned rm)
{
	prefixes(g, o);
	opcode(g, o, rex_bits(o->w, reg, 0, rm));
	x8(g, (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

void x_op_mem(struct xgen *g, const struct xop *o, unsigned reg, const struct xmem *m, unsigned imm)
{
	unsigned base = m->base < 0 ? 0 : (unsigned)m->base;
	unsigned index = m->index < 0 ? 0 : (unsigned)m->index;

	if (m->gs)
		x8(g, 0x65);
	prefixes(g, o);
	opcode(g, o, rex_bits(o->w, reg, index, base));
	x_modrm_mem(g, reg, m, imm);
}

static void op1_mem(struct xgen *g, uint8_t code, bool w, unsigned reg, const struct xmem *m)
{
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = code, .w = w}, reg, m, 0);
}

void x_mov(struct xgen *g, unsigned to, unsigned from)
{
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x89, .w = true}, from, to);
}

void x_load(struct xgen *g, unsigned to, const struct xmem *m)
{
	op1_mem(g, 0x8b, true, to, m);
}

void x_load32(struct xgen *g, unsigned to, const struct xmem *m)
{
	op1_mem(g, 0x8b, false, to, m);
}

void x_store(struct xgen *g, const struct xmem *m, unsigned from)
{
	op1_mem(g, 0x89, true, from, m);
}

void x_store32(struct xgen *g, const struct xmem *m, unsigned from)
{
	op1_mem(g, 0x89, false, from, m);
}

void x_lea(struct xgen *g, unsigned to, const struct xmem *m)
{
	op1_mem(g, 0x8d, true, to, m);
}

void x_lea32(struct xgen *g, unsigned to, const struct xmem *m)
{
	op1_mem(g, 0x8d, false, to, m);
}

void x_load_word(struct xgen *g, unsigned to, const struct xmem *m)
{
	op1_mem(g, 0x8b, !g->narrow, to, m);
}

void x_store_word(struct xgen *g, const struct xmem *m, unsigned from)
{
	op1_mem(g, 0x89, !g->narrow, from, m);
}

void x_lea_word(struct xgen *g, unsigned to, const struct xmem *m)
{
	op1_mem(g, 0x8d, !g->narrow, to, m);
}

void x_add_mem(struct xgen *g, unsigned to, const struct xmem *m)
{
	op1_mem(g, 0x03, true, to, m);
}

void x_cmp_mem(struct xgen *g, unsigned reg, const struct xmem *m)
{
	op1_mem(g, 0x3b, true, reg, m);
}

void x_cmp_mem_imm32(struct xgen *g, const struct xmem *m, int32_t imm, bool w)
{
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0x81, .w = w}, X_CMP, m, 4);
	x32(g, (uint32_t)imm);
}

void x_alu_imm(struct xgen *g, unsigned op, unsigned reg, int32_t imm, bool w)
{
	bool narrow = imm == (int8_t)imm;

	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = narrow ? 0x83 : 0x81, .w = w}, op, reg);
	if (narrow)
		x8(g, (uint8_t)imm);
	else
		x32(g, (uint32_t)imm);
}

void x_shift(struct xgen *g, unsigned digit, unsigned reg, unsigned count, bool w)
{
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0xc1, .w = w}, digit, reg);
	x8(g, (uint8_t)count);
}

static void mov_imm_opcode(struct xgen *g, unsigned to, bool w)
{
	if (w || to >= 8)
		x8(g, 0x40 | rex_bits(w, 0, 0, to));
	x8(g, 0xb8 | (to & 7));
}

void x_mov_imm(struct xgen *g, unsigned to, uint64_t imm)
{
	if (imm == (uint32_t)imm) {
		mov_imm_opcode(g, to, false);
		x32(g, (uint32_t)imm);
	} else if (imm == (uint64_t)(int32_t)imm) {
		x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0xc7, .w = true}, 0, to);
		x32(g, (uint32_t)imm);
	} else {
		mov_imm_opcode(g, to, true);
		x64(g, imm);
	}
}

/* --- jumps -------------------------------------------------------------------------------------
 */

uint32_t x_jmp(struct xgen *g)
{
	x8(g, 0xe9);
	x32(g, 0);
	return x_offset(g) - 4;
}

uint32_t x_jcc(struct xgen *g, unsigned cc)
{
	x8(g, 0x0f);
	x8(g, (uint8_t)(0x80 | cc));
	x32(g, 0);
	return x_offset(g) - 4;
}

void x_patch(struct xlat *x, uint32_t at, uint32_t to)
{
	uint8_t *p = x->rw + at;
	int32_t rel = (int32_t)(to - (at + 4));

	__builtin_memcpy(p, &rel, 4);
}

void x_jmp_to(struct xgen *g, uint32_t offset)
{
	x_patch(g->x, x_jmp(g), offset);
}

void x_call_to(struct xgen *g, uint32_t offset)
{
	x8(g, 0xe8);
	x32(g, offset - (x_offset(g) + 4));
}

void x_jmp_mem(struct xgen *g, const struct xmem *m)
{
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0xff}, 4, m, 0);
}
