/* engine/soft/int_shift.c - ROL ROR RCL RCR SHL SHR SAR, SHLD SHRD, and MUL IMUL DIV IDIV.
 *
 * The guest's flags are loaded before the host instruction runs: a count of 0 keeps them, rotates
 * keep most, and what is undefined becomes what the host makes of it. */
#include "engine/soft/int.h"

/* --- shifts and rotates ------------------------------------------------------------------------
 */

#define SHIFT_VALUE(name, bits)                                                                    \
	static inline uint##bits##_t name##_##bits(struct cpu *cpu, uint##bits##_t a,              \
						   uint8_t count)                                  \
	{                                                                                          \
		uint32_t f = flags_unpack(cpu->cc);                                                \
                                                                                                   \
		asm(ASM_FLAGS_IN #name SFX_##bits " %%cl, %[a]" ASM_FLAGS_OUT                      \
		    : [a] "+r"(a), "+a"(f)                                                         \
		    : "c"(count)                                                                   \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		return a;                                                                          \
	}

#define SHIFT_FORM(name, form, bits, count)                                                        \
	void exec_##name##_##form##_##bits##_r(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		reg_set_##bits(cpu, in->rm, name##_##bits(cpu, REG(rm, bits), count));             \
	}                                                                                          \
	void exec_##name##_##form##_##bits##_m(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, false);         \
		*(mem##bits##_t *)r.p = name##_##bits(cpu, *(mem##bits##_t *)r.p, count);          \
		rmw_end(cpu, &r);                                                                  \
	}

#define SHIFT_SIZE(name, bits)                                                                     \
	SHIFT_VALUE(name, bits)                                                                    \
	SHIFT_FORM(name, E1, bits, 1)                                                              \
	SHIFT_FORM(name, EI, bits, (uint8_t)in->imm)                                               \
	SHIFT_FORM(name, ECL, bits, (uint8_t)cpu->gpr[X86_RCX])

#define SHIFT(name)                                                                                \
	SHIFT_SIZE(name, 8)                                                                        \
	SHIFT_SIZE(name, 16)                                                                       \
	SHIFT_SIZE(name, 32)                                                                       \
	SHIFT_SIZE(name, 64)

SHIFT(rol)
SHIFT(ror)
SHIFT(rcl)
SHIFT(rcr)
SHIFT(shl)
SHIFT(shr)
SHIFT(sar)

/* --- double shifts -----------------------------------------------------------------------------
 */

#define SHIFT2_VALUE(name, bits)                                                                   \
	static inline uint##bits##_t name##_##bits(struct cpu *cpu, uint##bits##_t a,              \
						   uint##bits##_t b, uint8_t count)                \
	{                                                                                          \
		uint32_t f = flags_unpack(cpu->cc);                                                \
                                                                                                   \
		asm(ASM_FLAGS_IN #name SFX_##bits " %%cl, %[b], %[a]" ASM_FLAGS_OUT                \
		    : [a] "+r"(a), "+a"(f)                                                         \
		    : [b] "r"(b), "c"(count)                                                       \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		return a;                                                                          \
	}

#define SHIFT2_FORM(name, form, bits, count)                                                       \
	void exec_##name##_##form##_##bits##_r(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		reg_set_##bits(cpu, in->rm,                                                        \
			       name##_##bits(cpu, REG(rm, bits), REG(reg, bits), count));          \
	}                                                                                          \
	void exec_##name##_##form##_##bits##_m(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		mem##bits##_t *p;                                                                  \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, insn_linear(cpu, in, bits / 8, true), bits / 8, false);         \
		p = r.p;                                                                           \
		*p = name##_##bits(cpu, *p, REG(reg, bits), count);                                \
		rmw_end(cpu, &r);                                                                  \
	}

#define SHIFT2_SIZE(name, bits)                                                                    \
	SHIFT2_VALUE(name, bits)                                                                   \
	SHIFT2_FORM(name, EGI, bits, (uint8_t)in->imm)                                             \
	SHIFT2_FORM(name, EGCL, bits, (uint8_t)cpu->gpr[X86_RCX])

#define SHIFT2(name)                                                                               \
	SHIFT2_SIZE(name, 16)                                                                      \
	SHIFT2_SIZE(name, 32)                                                                      \
	SHIFT2_SIZE(name, 64)

SHIFT2(shld)
SHIFT2(shrd)

/* --- multiply and divide into rDX:rAX ----------------------------------------------------------
 * On whole registers: the host leaves or clears the upper parts as it should. */

#define WIDE_VALUE(name, bits)                                                                     \
	static inline void name##_##bits(struct cpu *cpu, uint##bits##_t b)                        \
	{                                                                                          \
		uint64_t a = cpu->gpr[X86_RAX], d = cpu->gpr[X86_RDX];                             \
		uint32_t f = flags_unpack(cpu->cc);                                                \
                                                                                                   \
		asm(ASM_FLAGS_IN "movq %[a], %%rax\n\t" #name SFX_##bits                           \
		    " %[b]\n\t"                                                                    \
		    "movq %%rax, %[a]" ASM_FLAGS_OUT                                               \
		    : [a] "+&r"(a), "+a"(f), "+&d"(d)                                              \
		    : [b] "r"(b)                                                                   \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		cpu->gpr[X86_RAX] = a;                                                             \
		cpu->gpr[X86_RDX] = d;                                                             \
	}

/* check(cpu, b) raises #DE where the host's instruction would trap. */
#define WIDE_FORMS(name, bits, check)                                                              \
	void exec_##name##_E_##bits##_r(struct cpu *cpu, const struct insn *in)                    \
	{                                                                                          \
		uint##bits##_t b = REG(rm, bits);                                                  \
                                                                                                   \
		check(cpu, b);                                                                     \
		name##_##bits(cpu, b);                                                             \
	}                                                                                          \
	void exec_##name##_E_##bits##_m(struct cpu *cpu, const struct insn *in)                    \
	{                                                                                          \
		uint##bits##_t b = LOAD_RM(bits);                                                  \
                                                                                                   \
		check(cpu, b);                                                                     \
		name##_##bits(cpu, b);                                                             \
	}

/* Upper and lower half of the dividend. */
#define DIVIDEND_8(hi, lo)                                                                         \
	uint8_t hi = (uint8_t)(cpu->gpr[X86_RAX] >> 8), lo = (uint8_t)cpu->gpr[X86_RAX]
#define DIVIDEND_16(hi, lo)                                                                        \
	uint16_t hi = (uint16_t)cpu->gpr[X86_RDX], lo = (uint16_t)cpu->gpr[X86_RAX]
#define DIVIDEND_32(hi, lo)                                                                        \
	uint32_t hi = (uint32_t)cpu->gpr[X86_RDX], lo = (uint32_t)cpu->gpr[X86_RAX]
#define DIVIDEND_64(hi, lo) uint64_t hi = cpu->gpr[X86_RDX], lo = cpu->gpr[X86_RAX]

/* The quotient fits iff the upper half is below the divisor. */
static inline bool div_fits(uint64_t hi, uint64_t b)
{
	return hi < b;
}

/* Signed: divide the magnitudes.  The quotient may reach 2^(bits-1) when it is negative, one less
 * when it is not. */
static bool idiv_fits(int64_t hi, uint64_t lo, int64_t b, unsigned bits)
{
	unsigned __int128 n = (unsigned __int128)(__int128)hi << bits | lo;
	uint64_t d = b < 0 ? -(uint64_t)b : (uint64_t)b;
	uint64_t limit = 1ull << (bits - 1);
	unsigned __int128 product;

	if (!d)
		return false;
	if (hi < 0)
		n = -n;
	/* n / d <= max  iff  n < (max + 1) * d: no 128-bit division needed. */
	product = (unsigned __int128)d * limit;
	if ((hi < 0) != (b < 0))
		product += d;
	return n < product;
}

#define DIV_CHECKS(bits)                                                                           \
	static inline void div_check_##bits(struct cpu *cpu, uint##bits##_t b)                     \
	{                                                                                          \
		DIVIDEND_##bits(hi, lo);                                                           \
                                                                                                   \
		(void)lo;                                                                          \
		if (unlikely(!div_fits(hi, b)))                                                    \
			cpu_fault_plain(cpu, X86_EXC_DE);                                          \
	}                                                                                          \
	static inline void idiv_check_##bits(struct cpu *cpu, uint##bits##_t b)                    \
	{                                                                                          \
		DIVIDEND_##bits(hi, lo);                                                           \
                                                                                                   \
		if (unlikely(!idiv_fits((int##bits##_t)hi, lo, (int##bits##_t)b, bits)))           \
			cpu_fault_plain(cpu, X86_EXC_DE);                                          \
	}

#define NO_CHECK(cpu, b) (void)0

#define WIDE_SIZE(bits)                                                                            \
	DIV_CHECKS(bits)                                                                           \
	WIDE_VALUE(mul, bits)                                                                      \
	WIDE_VALUE(imul, bits)                                                                     \
	WIDE_VALUE(div, bits)                                                                      \
	WIDE_VALUE(idiv, bits)                                                                     \
	WIDE_FORMS(mul, bits, NO_CHECK)                                                            \
	WIDE_FORMS(imul, bits, NO_CHECK)                                                           \
	WIDE_FORMS(div, bits, div_check_##bits)                                                    \
	WIDE_FORMS(idiv, bits, idiv_check_##bits)

WIDE_SIZE(8)
WIDE_SIZE(16)
WIDE_SIZE(32)
WIDE_SIZE(64)

/* --- IMUL into one register --------------------------------------------------------------------
 */

#define IMUL_SIZE(bits)                                                                            \
	static inline uint##bits##_t imul2_##bits(struct cpu *cpu, uint##bits##_t a,               \
						  uint##bits##_t b)                                \
	{                                                                                          \
		uint32_t f = flags_unpack(cpu->cc);                                                \
                                                                                                   \
		asm(ASM_FLAGS_IN "imul" SFX_##bits " %[b], %[a]" ASM_FLAGS_OUT                     \
		    : [a] "+r"(a), "+a"(f)                                                         \
		    : [b] "r"(b)                                                                   \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		return a;                                                                          \
	}                                                                                          \
	void exec_imul_GE_##bits##_r(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, imul2_##bits(cpu, REG(reg, bits), REG(rm, bits)));    \
	}                                                                                          \
	void exec_imul_GE_##bits##_m(struct cpu *cpu, const struct insn *in)                       \
	{                                                                                          \
		uint##bits##_t b = LOAD_RM(bits);                                                  \
                                                                                                   \
		reg_set_##bits(cpu, in->reg, imul2_##bits(cpu, REG(reg, bits), b));                \
	}                                                                                          \
	void exec_imul_GEI_##bits##_r(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg,                                                       \
			       imul2_##bits(cpu, REG(rm, bits), (uint##bits##_t)in->imm));         \
	}                                                                                          \
	void exec_imul_GEI_##bits##_m(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		uint##bits##_t a = LOAD_RM(bits);                                                  \
                                                                                                   \
		reg_set_##bits(cpu, in->reg, imul2_##bits(cpu, a, (uint##bits##_t)in->imm));       \
	}

IMUL_SIZE(16)
IMUL_SIZE(32)
IMUL_SIZE(64)
