/* engine/soft/int_alu.c - ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT, XADD CMPXCHG XCHG.
 *
 * Each operation is written once per operand size as a function on values and, where LOCK is
 * allowed, as one locked host instruction on memory; the forms (EG, GE, EI, AI; _r _m _l) are made
 * of them by macros.  Naming: insn.tbl. */
#include "engine/soft/int.h"

/* --- two operands ------------------------------------------------------------------------------
 */

/* carry_in: what brings the guest's CF to the host, or nothing. */
#define ALU_VALUE(name, bits, carry_in)                                                            \
	static inline uint##bits##_t name##_##bits(struct cpu *cpu, uint##bits##_t a,              \
						   uint##bits##_t b)                               \
	{                                                                                          \
		uint32_t f;                                                                        \
                                                                                                   \
		asm(carry_in #name SFX_##bits " %[b], %[a]" ASM_FLAGS_OUT                          \
		    : [a] "+r"(a), "=&a"(f)                                                        \
		    : [b] "r"(b), [cc] "r"((uint32_t)cpu->cc)                                      \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		return a;                                                                          \
	}

#define ALU_LOCK(name, bits, carry_in)                                                             \
	static inline void name##_lock_##bits(struct cpu *cpu, void *p, uint##bits##_t b)          \
	{                                                                                          \
		uint32_t f;                                                                        \
                                                                                                   \
		asm volatile(carry_in "lock " #name SFX_##bits " %[b], %[m]" ASM_FLAGS_OUT         \
			     : [m] "+m"(*(mem##bits##_t *)p), "=&a"(f)                             \
			     : [b] "r"(b), [cc] "r"((uint32_t)cpu->cc)                             \
			     : "cc", "memory");                                                    \
		cpu->cc = flags_pack(f);                                                           \
	}

/* The forms whose destination is E, with second operand b. */
#define ALU_DEST_E(name, form, bits, b)                                                            \
	void exec_##name##_##form##_##bits##_r(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		reg_set_##bits(cpu, in->rm, name##_##bits(cpu, REG(rm, bits), b));                 \
	}                                                                                          \
	void exec_##name##_##form##_##bits##_m(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, false);         \
		*(mem##bits##_t *)r.p = name##_##bits(cpu, *(mem##bits##_t *)r.p, b);              \
		rmw_end(cpu, &r);                                                                  \
	}                                                                                          \
	void exec_##name##_##form##_##bits##_l(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, true);          \
		name##_lock_##bits(cpu, r.p, b);                                                   \
		rmw_end(cpu, &r);                                                                  \
	}

#define ALU_FORMS(name, bits)                                                                      \
	ALU_DEST_E(name, EG, bits, REG(reg, bits))                                                 \
	ALU_DEST_E(name, EI, bits, (uint##bits##_t)in->imm)                                        \
	void exec_##name##_GE_##bits##_r(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, name##_##bits(cpu, REG(reg, bits), REG(rm, bits)));   \
	}                                                                                          \
	void exec_##name##_GE_##bits##_m(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		uint##bits##_t b = LOAD_RM(bits);                                                  \
                                                                                                   \
		reg_set_##bits(cpu, in->reg, name##_##bits(cpu, REG(reg, bits), b));               \
	}                                                                                          \
	void exec_##name##_AI_##bits(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		const uint16_t rax = CPU_GPR_OFF(X86_RAX);                                         \
                                                                                                   \
		reg_set_##bits(cpu, rax,                                                           \
			       name##_##bits(cpu, CPU_REG(cpu, rax, uint##bits##_t),               \
					     (uint##bits##_t)in->imm));                            \
	}

#define ALU_SIZE(name, bits, carry_in)                                                             \
	ALU_VALUE(name, bits, carry_in)                                                            \
	ALU_LOCK(name, bits, carry_in)                                                             \
	ALU_FORMS(name, bits)

#define ALU(name, carry_in)                                                                        \
	ALU_SIZE(name, 8, carry_in)                                                                \
	ALU_SIZE(name, 16, carry_in)                                                               \
	ALU_SIZE(name, 32, carry_in)                                                               \
	ALU_SIZE(name, 64, carry_in)

#define CARRY_IN "btl $0, %[cc]\n\t"

ALU(add, "")
ALU(or, "")
ALU(adc, CARRY_IN)
ALU(sbb, CARRY_IN)
ALU(and, "")
ALU(sub, "")
ALU(xor, "")

/* --- CMP and TEST: flags only ------------------------------------------------------------------
 */

#define COMPARE_SIZE(name, bits)                                                                   \
	static inline void name##_##bits(struct cpu *cpu, uint##bits##_t a, uint##bits##_t b)      \
	{                                                                                          \
		uint32_t f;                                                                        \
                                                                                                   \
		asm(#name SFX_##bits " %[b], %[a]" ASM_FLAGS_OUT                                   \
		    : "=&a"(f)                                                                     \
		    : [a] "r"(a), [b] "r"(b)                                                       \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
	}                                                                                          \
	void exec_##name##_EG_##bits##_r(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		name##_##bits(cpu, REG(rm, bits), REG(reg, bits));                                 \
	}                                                                                          \
	void exec_##name##_EG_##bits##_m(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		name##_##bits(cpu, LOAD_RM(bits), REG(reg, bits));                                 \
	}                                                                                          \
	void exec_##name##_EI_##bits##_r(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		name##_##bits(cpu, REG(rm, bits), (uint##bits##_t)in->imm);                        \
	}                                                                                          \
	void exec_##name##_EI_##bits##_m(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		name##_##bits(cpu, LOAD_RM(bits), (uint##bits##_t)in->imm);                        \
	}                                                                                          \
	void exec_##name##_AI_##bits(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		name##_##bits(cpu, (uint##bits##_t)cpu->gpr[X86_RAX], (uint##bits##_t)in->imm);    \
	}

#define COMPARE(name)                                                                              \
	COMPARE_SIZE(name, 8)                                                                      \
	COMPARE_SIZE(name, 16)                                                                     \
	COMPARE_SIZE(name, 32)                                                                     \
	COMPARE_SIZE(name, 64)

COMPARE(cmp)
COMPARE(test)

#define CMP_GE(bits)                                                                               \
	void exec_cmp_GE_##bits##_r(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		cmp_##bits(cpu, REG(reg, bits), REG(rm, bits));                                    \
	}                                                                                          \
	void exec_cmp_GE_##bits##_m(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		cmp_##bits(cpu, REG(reg, bits), LOAD_RM(bits));                                    \
	}

CMP_GE(8)
CMP_GE(16)
CMP_GE(32)
CMP_GE(64)

/* --- one operand -------------------------------------------------------------------------------
 */

/* keep: flags the instruction leaves alone. */
#define UNARY_SIZE(name, bits, keep)                                                               \
	static inline uint##bits##_t name##_##bits(struct cpu *cpu, uint##bits##_t a)              \
	{                                                                                          \
		uint32_t f;                                                                        \
                                                                                                   \
		asm(#name SFX_##bits " %[a]" ASM_FLAGS_OUT : [a] "+r"(a), "=&a"(f) : : "cc");      \
		cpu->cc = (flags_pack(f) & ~(keep)) | (cpu->cc & (keep));                          \
		return a;                                                                          \
	}                                                                                          \
	static inline void name##_lock_##bits(struct cpu *cpu, void *p)                            \
	{                                                                                          \
		uint32_t f;                                                                        \
                                                                                                   \
		asm volatile("lock " #name SFX_##bits " %[m]" ASM_FLAGS_OUT                        \
			     : [m] "+m"(*(mem##bits##_t *)p), "=&a"(f)                             \
			     :                                                                     \
			     : "cc", "memory");                                                    \
		cpu->cc = (flags_pack(f) & ~(keep)) | (cpu->cc & (keep));                          \
	}                                                                                          \
	void exec_##name##_E_##bits##_r(struct cpu *cpu, const struct insn *in)                    \
	{                                                                                          \
		reg_set_##bits(cpu, in->rm, name##_##bits(cpu, REG(rm, bits)));                    \
	}                                                                                          \
	void exec_##name##_E_##bits##_m(struct cpu *cpu, const struct insn *in)                    \
	{                                                                                          \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, false);         \
		*(mem##bits##_t *)r.p = name##_##bits(cpu, *(mem##bits##_t *)r.p);                 \
		rmw_end(cpu, &r);                                                                  \
	}                                                                                          \
	void exec_##name##_E_##bits##_l(struct cpu *cpu, const struct insn *in)                    \
	{                                                                                          \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, true);          \
		name##_lock_##bits(cpu, r.p);                                                      \
		rmw_end(cpu, &r);                                                                  \
	}

#define UNARY(name, keep)                                                                          \
	UNARY_SIZE(name, 8, keep)                                                                  \
	UNARY_SIZE(name, 16, keep)                                                                 \
	UNARY_SIZE(name, 32, keep)                                                                 \
	UNARY_SIZE(name, 64, keep)

UNARY(inc, RFLAGS_CF)
UNARY(dec, RFLAGS_CF)
UNARY(neg, 0ull)
UNARY(not, RFLAGS_ARITH)

#define INCDEC_R(name, bits)                                                                       \
	void exec_##name##_R_##bits(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, name##_##bits(cpu, REG(reg, bits)));                  \
	}

INCDEC_R(inc, 16)
INCDEC_R(inc, 32)
INCDEC_R(dec, 16)
INCDEC_R(dec, 32)

/* --- XADD --------------------------------------------------------------------------------------
 */

#define XADD(bits)                                                                                 \
	void exec_xadd_EG_##bits##_r(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		uint##bits##_t old = REG(rm, bits), sum = add_##bits(cpu, old, REG(reg, bits));    \
                                                                                                   \
		reg_set_##bits(cpu, in->reg, old);                                                 \
		reg_set_##bits(cpu, in->rm, sum);                                                  \
	}                                                                                          \
	void exec_xadd_EG_##bits##_m(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		uint##bits##_t old;                                                                \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, false);         \
		old = *(mem##bits##_t *)r.p;                                                       \
		*(mem##bits##_t *)r.p = add_##bits(cpu, old, REG(reg, bits));                      \
		reg_set_##bits(cpu, in->reg, old);                                                 \
		rmw_end(cpu, &r);                                                                  \
	}                                                                                          \
	void exec_xadd_EG_##bits##_l(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		uint##bits##_t v;                                                                  \
		struct rmw r;                                                                      \
		uint32_t f;                                                                        \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, true);          \
		v = REG(reg, bits);                                                                \
		asm volatile("lock xadd" SFX_##bits " %[v], %[m]" ASM_FLAGS_OUT                    \
			     : [m] "+m"(*(mem##bits##_t *)r.p), [v] "+r"(v), "=&a"(f)              \
			     :                                                                     \
			     : "cc", "memory");                                                    \
		cpu->cc = flags_pack(f);                                                           \
		reg_set_##bits(cpu, in->reg, v);                                                   \
		rmw_end(cpu, &r);                                                                  \
	}

XADD(8)
XADD(16)
XADD(32)
XADD(64)

/* --- CMPXCHG -----------------------------------------------------------------------------------
 * Run on whole 64-bit containers: which upper halves a 32-bit CMPXCHG clears depends on its
 * outcome, and the host knows.  Memory must be writable even when the compare fails. */

#define CMPXCHG_MEM(bits, form, prefix, locked)                                                    \
	void exec_cmpxchg_EG_##bits##_##form(struct cpu *cpu, const struct insn *in)               \
	{                                                                                          \
		uint64_t a = cpu->gpr[X86_RAX], out;                                               \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, locked);        \
		asm volatile(prefix "cmpxchg" SFX_##bits " %" RN_##bits                            \
			     "[g], %[m]\n\t"                                                       \
			     "movq %%rax, %[out]" ASM_FLAGS_OUT                                    \
			     : [m] "+m"(*(mem##bits##_t *)r.p), [out] "=&r"(out), "+a"(a)          \
			     : [g] "r"((uint64_t)REG(reg, bits))                                   \
			     : "cc", "memory");                                                    \
		cpu->cc = flags_pack((uint32_t)a);                                                 \
		cpu->gpr[X86_RAX] = out;                                                           \
		rmw_end(cpu, &r);                                                                  \
	}

/* full: how much of the destination register the host gets to see. */
#define CMPXCHG_REG(bits, full)                                                                    \
	void exec_cmpxchg_EG_##bits##_r(struct cpu *cpu, const struct insn *in)                    \
	{                                                                                          \
		uint64_t a = cpu->gpr[X86_RAX], out;                                               \
		uint##full##_t dst = REG(rm, full);                                                \
                                                                                                   \
		asm("cmpxchg" SFX_##bits " %" RN_##bits "[g], %" RN_##bits                         \
		    "[e]\n\t"                                                                      \
		    "movq %%rax, %[out]" ASM_FLAGS_OUT                                             \
		    : [e] "+&r"(dst), [out] "=&r"(out), "+a"(a)                                    \
		    : [g] "r"((uint64_t)REG(reg, bits))                                            \
		    : "cc");                                                                       \
		cpu->cc = flags_pack((uint32_t)a);                                                 \
		cpu->gpr[X86_RAX] = out;                                                           \
		REG(rm, full) = dst; /* last: RAX itself may be the destination */                 \
	}

#define CMPXCHG(bits, full)                                                                        \
	CMPXCHG_REG(bits, full)                                                                    \
	CMPXCHG_MEM(bits, m, "", false)                                                            \
	CMPXCHG_MEM(bits, l, "lock ", true)

CMPXCHG(8, 8)
CMPXCHG(16, 64)
CMPXCHG(32, 64)
CMPXCHG(64, 64)

static void cmpxchg8b(struct cpu *cpu, const struct insn *in, bool lock)
{
	uint64_t a = cpu->gpr[X86_RAX], d = cpu->gpr[X86_RDX];
	struct rmw r;
	bool equal;

	rmw_begin(cpu, &r, insn_linear(cpu, in, 8, true), 8, lock);
	if (lock)
		asm volatile("lock cmpxchg8b %[m]"
			     : [m] "+m"(*(mem64_t *)r.p), "+a"(a), "+d"(d), "=@ccz"(equal)
			     : "b"(cpu->gpr[X86_RBX]), "c"(cpu->gpr[X86_RCX])
			     : "memory");
	else
		asm volatile("cmpxchg8b %[m]"
			     : [m] "+m"(*(mem64_t *)r.p), "+a"(a), "+d"(d), "=@ccz"(equal)
			     : "b"(cpu->gpr[X86_RBX]), "c"(cpu->gpr[X86_RCX])
			     : "memory");
	cpu->cc = (cpu->cc & ~RFLAGS_ZF) | (equal ? RFLAGS_ZF : 0);
	cpu->gpr[X86_RAX] = a;
	cpu->gpr[X86_RDX] = d;
	rmw_end(cpu, &r);
}

void exec_cmpxchg8b_m(struct cpu *cpu, const struct insn *in)
{
	cmpxchg8b(cpu, in, false);
}

void exec_cmpxchg8b_l(struct cpu *cpu, const struct insn *in)
{
	cmpxchg8b(cpu, in, true);
}

/* Always as one host operation: 16 bytes cannot be had in one piece otherwise. */
static void cmpxchg16b(struct cpu *cpu, const struct insn *in, bool lock)
{
	uint64_t a = cpu->gpr[X86_RAX], d = cpu->gpr[X86_RDX];
	gva_t lin = insn_linear(cpu, in, 16, true);
	struct rmw r;
	bool equal;

	if (lin & 15)
		fault_gp(cpu, 0);
	rmw_begin(cpu, &r, lin, 16, lock);
	asm volatile("lock cmpxchg16b %[m]"
		     : [m] "+m"(*(struct { uint64_t half[2]; } *)r.p), "+a"(a), "+d"(d),
		       "=@ccz"(equal)
		     : "b"(cpu->gpr[X86_RBX]), "c"(cpu->gpr[X86_RCX])
		     : "memory");
	cpu->cc = (cpu->cc & ~RFLAGS_ZF) | (equal ? RFLAGS_ZF : 0);
	cpu->gpr[X86_RAX] = a;
	cpu->gpr[X86_RDX] = d;
	rmw_end(cpu, &r);
}

void exec_cmpxchg16b_m(struct cpu *cpu, const struct insn *in)
{
	cmpxchg16b(cpu, in, false);
}

void exec_cmpxchg16b_l(struct cpu *cpu, const struct insn *in)
{
	cmpxchg16b(cpu, in, true);
}

/* --- XCHG: with memory always locked -----------------------------------------------------------
 */

#define XCHG(bits)                                                                                 \
	void exec_xchg_EG_##bits##_r(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		uint##bits##_t a = REG(rm, bits), b = REG(reg, bits);                              \
                                                                                                   \
		reg_set_##bits(cpu, in->rm, b);                                                    \
		reg_set_##bits(cpu, in->reg, a);                                                   \
	}                                                                                          \
	void exec_xchg_EG_##bits##_l(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		uint##bits##_t v = REG(reg, bits);                                                 \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, true);          \
		asm volatile("xchg" SFX_##bits " %[v], %[m]"                                       \
			     : [m] "+m"(*(mem##bits##_t *)r.p), [v] "+r"(v)                        \
			     :                                                                     \
			     : "memory");                                                          \
		reg_set_##bits(cpu, in->reg, v);                                                   \
		rmw_end(cpu, &r);                                                                  \
	}                                                                                          \
	void exec_xchg_EG_##bits##_m(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		exec_xchg_EG_##bits##_l(cpu, in);                                                  \
	}

XCHG(8)
XCHG(16)
XCHG(32)
XCHG(64)

#define XCHG_RA(bits)                                                                              \
	void exec_xchg_RA_##bits(struct cpu *cpu, const struct insn *in)                           \
	{                                                                                          \
		const uint16_t rax = CPU_GPR_OFF(X86_RAX);                                         \
		uint##bits##_t a = (uint##bits##_t)cpu->gpr[X86_RAX], b = REG(reg, bits);          \
                                                                                                   \
		reg_set_##bits(cpu, rax, b);                                                       \
		reg_set_##bits(cpu, in->reg, a);                                                   \
	}

XCHG_RA(16)
XCHG_RA(32)
XCHG_RA(64)
