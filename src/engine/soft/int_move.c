/* engine/soft/int_move.c - MOV, MOVZX, MOVSX, LEA, CMOVcc, SETcc, CBW family, XLAT, MOVNTI. */
#include "engine/soft/int.h"

/* --- MOV ---------------------------------------------------------------------------------------
 */

#define MOV(bits)                                                                                  \
	void exec_mov_EG_##bits##_r(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		reg_set_##bits(cpu, in->rm, REG(reg, bits));                                       \
	}                                                                                          \
	void exec_mov_EG_##bits##_m(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		STORE_RM(bits, REG(reg, bits));                                                    \
	}                                                                                          \
	void exec_mov_GE_##bits##_r(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, REG(rm, bits));                                       \
	}                                                                                          \
	void exec_mov_GE_##bits##_m(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, LOAD_RM(bits));                                       \
	}                                                                                          \
	void exec_mov_EI_##bits##_r(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		reg_set_##bits(cpu, in->rm, (uint##bits##_t)in->imm);                              \
	}                                                                                          \
	void exec_mov_EI_##bits##_m(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		STORE_RM(bits, (uint##bits##_t)in->imm);                                           \
	}                                                                                          \
	void exec_mov_OI_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, (uint##bits##_t)in->imm);                             \
	}                                                                                          \
	void exec_mov_AO_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		gva_t lin = linear_at(cpu, in->seg, in->imm, bits / 8, false);                     \
                                                                                                   \
		reg_set_##bits(cpu, CPU_GPR_OFF(X86_RAX), ld##bits(cpu, lin));                     \
	}                                                                                          \
	void exec_mov_OA_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		gva_t lin = linear_at(cpu, in->seg, in->imm, bits / 8, true);                      \
                                                                                                   \
		st##bits(cpu, lin, (uint##bits##_t)cpu->gpr[X86_RAX]);                             \
	}

MOV(8)
MOV(16)
MOV(32)
MOV(64)

/* A store like any other: memory types and write combining are not modelled. */
void exec_movnti_32(struct cpu *cpu, const struct insn *in)
{
	STORE_RM(32, REG(reg, 32));
}

void exec_movnti_64(struct cpu *cpu, const struct insn *in)
{
	STORE_RM(64, REG(reg, 64));
}

/* --- MOVZX MOVSX MOVSXD ------------------------------------------------------------------------
 */

/* from: source bits; type: signed or unsigned of them. */
#define EXTEND(name, bits, from, type)                                                             \
	void exec_##name##_##bits##_r(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, (uint##bits##_t)(type)REG(rm, from));                 \
	}                                                                                          \
	void exec_##name##_##bits##_m(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, (uint##bits##_t)(type)LOAD_RM(from));                 \
	}

#define EXTEND_SIZES(name, from, type)                                                             \
	EXTEND(name, 16, from, type)                                                               \
	EXTEND(name, 32, from, type)                                                               \
	EXTEND(name, 64, from, type)

EXTEND_SIZES(movzx_GEb, 8, uint8_t)
EXTEND_SIZES(movzx_GEw, 16, uint16_t)
EXTEND_SIZES(movsx_GEb, 8, int8_t)
EXTEND_SIZES(movsx_GEw, 16, int16_t)
EXTEND(movsxd, 32, 32, uint32_t)
EXTEND(movsxd, 64, 32, int32_t)

/* Without REX.W a plain MOV of the operand size; but AMD's CPUs read 4 bytes of memory always. */
void exec_movsxd_16_r(struct cpu *cpu, const struct insn *in)
{
	reg_set_16(cpu, in->reg, REG(rm, 16));
}

void exec_movsxd_16_m(struct cpu *cpu, const struct insn *in)
{
	bool amd = cpu_model_is_amd(cpu->vm->model);

	reg_set_16(cpu, in->reg, amd ? (uint16_t)LOAD_RM(32) : LOAD_RM(16));
}

/* --- LEA: the address only ---------------------------------------------------------------------
 */

#define LEA(bits)                                                                                  \
	void exec_lea_##bits(struct cpu *cpu, const struct insn *in)                               \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, (uint##bits##_t)insn_ea(cpu, in));                    \
	}

LEA(16)
LEA(32)
LEA(64)

/* --- conditional moves: the source is read, and may fault, whatever the condition ---------------
 */

#define CMOV_SIZE(name, cond, bits)                                                                \
	void exec_cmovcc_##name##_##bits##_r(struct cpu *cpu, const struct insn *in)               \
	{                                                                                          \
		uint64_t cc = cpu->cc;                                                             \
                                                                                                   \
		reg_set_##bits(cpu, in->reg, (cond) ? REG(rm, bits) : REG(reg, bits));             \
	}                                                                                          \
	void exec_cmovcc_##name##_##bits##_m(struct cpu *cpu, const struct insn *in)               \
	{                                                                                          \
		uint##bits##_t v = LOAD_RM(bits);                                                  \
		uint64_t cc = cpu->cc;                                                             \
                                                                                                   \
		reg_set_##bits(cpu, in->reg, (cond) ? v : REG(reg, bits));                         \
	}

#define CMOV_SET(name, cond)                                                                       \
	CMOV_SIZE(name, cond, 16)                                                                  \
	CMOV_SIZE(name, cond, 32)                                                                  \
	CMOV_SIZE(name, cond, 64)                                                                  \
	void exec_setcc_##name##_r(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		uint64_t cc = cpu->cc;                                                             \
                                                                                                   \
		reg_set_8(cpu, in->rm, (cond) != 0);                                               \
	}                                                                                          \
	void exec_setcc_##name##_m(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		uint64_t cc = cpu->cc;                                                             \
                                                                                                   \
		STORE_RM(8, (cond) != 0);                                                          \
	}

CONDITIONS(CMOV_SET)

/* --- widening the accumulator ------------------------------------------------------------------
 */

#define WIDEN(bits, half)                                                                          \
	void exec_cbw_##bits(struct cpu *cpu, const struct insn *in)                               \
	{                                                                                          \
		reg_set_##bits(cpu, CPU_GPR_OFF(X86_RAX),                                          \
			       (uint##bits##_t)(int##half##_t)cpu->gpr[X86_RAX]);                  \
	}                                                                                          \
	void exec_cwd_##bits(struct cpu *cpu, const struct insn *in)                               \
	{                                                                                          \
		bool negative = (int##bits##_t)cpu->gpr[X86_RAX] < 0;                              \
                                                                                                   \
		reg_set_##bits(cpu, CPU_GPR_OFF(X86_RDX), negative ? (uint##bits##_t) - 1 : 0);    \
	}

WIDEN(16, 8)
WIDEN(32, 16)
WIDEN(64, 32)

void exec_xlat(struct cpu *cpu, const struct insn *in)
{
	uint64_t off = cpu->gpr[X86_RBX] + (uint8_t)cpu->gpr[X86_RAX];
	gva_t lin = linear_at(cpu, in->seg, off & mask_of(in->adsize), 1, false);

	reg_set_8(cpu, CPU_GPR_OFF(X86_RAX), ld8(cpu, lin));
}
