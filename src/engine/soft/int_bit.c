/* engine/soft/int_bit.c - BT and friends, bit scans, BMI1, BMI2, ADX, CRC32, MOVBE, BSWAP. */
#include "engine/soft/int.h"

/* --- BT BTS BTR BTC ----------------------------------------------------------------------------
 */

#define BIT_VALUE(name, bits)                                                                      \
	static inline uint##bits##_t name##_##bits(struct cpu *cpu, uint##bits##_t a,              \
						   uint##bits##_t n)                               \
	{                                                                                          \
		uint32_t f = flags_unpack(cpu->cc);                                                \
                                                                                                   \
		asm(ASM_FLAGS_IN #name SFX_##bits " %[n], %[a]" ASM_FLAGS_OUT                      \
		    : [a] "+r"(a), "+a"(f)                                                         \
		    : [n] "r"(n)                                                                   \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		return a;                                                                          \
	}

/* n is below bits: the memory form stays within the operand. */
#define BIT_LOCK(name, bits)                                                                       \
	static inline void name##_lock_##bits(struct cpu *cpu, void *p, uint##bits##_t n)          \
	{                                                                                          \
		uint32_t f = flags_unpack(cpu->cc);                                                \
                                                                                                   \
		asm volatile(ASM_FLAGS_IN "lock " #name SFX_##bits " %[n], %[m]" ASM_FLAGS_OUT     \
			     : [m] "+m"(*(mem##bits##_t *)p), "+a"(f)                              \
			     : [n] "r"(n)                                                          \
			     : "cc", "memory");                                                    \
		cpu->cc = flags_pack(f);                                                           \
	}

/* With a register as bit offset, the operand is the word of the bit string that holds the bit:
 * SDM 1 "Bit Strings".  The offset is signed. */
#define BIT_STRING_LINEAR(bits)                                                                    \
	static gva_t bit_linear_##bits(struct cpu *cpu, const struct insn *in, bool write)         \
	{                                                                                          \
		int64_t word = (int##bits##_t)REG(reg, bits) / bits -                              \
			       ((int##bits##_t)REG(reg, bits) % bits < 0);                         \
		uint64_t ea = insn_ea(cpu, in) + (uint64_t)word * (bits / 8);                      \
                                                                                                   \
		return linear_at(cpu, in->seg, ea & mask_of(in->adsize), bits / 8, write);         \
	}

BIT_STRING_LINEAR(16)
BIT_STRING_LINEAR(32)
BIT_STRING_LINEAR(64)

#define BIT_MODIFY(name, form, bits, lin, n)                                                       \
	void exec_##name##_##form##_##bits##_m(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		mem##bits##_t *p;                                                                  \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, lin, bits / 8, false);                                          \
		p = r.p;                                                                           \
		*p = name##_##bits(cpu, *p, (uint##bits##_t)(n) % bits);                           \
		rmw_end(cpu, &r);                                                                  \
	}                                                                                          \
	void exec_##name##_##form##_##bits##_l(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		struct rmw r;                                                                      \
                                                                                                   \
		rmw_begin(cpu, &r, lin, bits / 8, true);                                           \
		name##_lock_##bits(cpu, r.p, (uint##bits##_t)(n) % bits);                          \
		rmw_end(cpu, &r);                                                                  \
	}

#define BIT_MODIFY_SIZE(name, bits)                                                                \
	BIT_VALUE(name, bits)                                                                      \
	BIT_LOCK(name, bits)                                                                       \
	void exec_##name##_EG_##bits##_r(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		reg_set_##bits(cpu, in->rm, name##_##bits(cpu, REG(rm, bits), REG(reg, bits)));    \
	}                                                                                          \
	void exec_##name##_EI_##bits##_r(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		reg_set_##bits(cpu, in->rm,                                                        \
			       name##_##bits(cpu, REG(rm, bits), (uint##bits##_t)in->imm));        \
	}                                                                                          \
	BIT_MODIFY(name, EG, bits, bit_linear_##bits(cpu, in, true), REG(reg, bits))               \
	BIT_MODIFY(name, EI, bits, insn_linear(cpu, in, bits / 8, true), in->imm)

#define BIT_MODIFY_OP(name)                                                                        \
	BIT_MODIFY_SIZE(name, 16)                                                                  \
	BIT_MODIFY_SIZE(name, 32)                                                                  \
	BIT_MODIFY_SIZE(name, 64)

BIT_MODIFY_OP(bts)
BIT_MODIFY_OP(btr)
BIT_MODIFY_OP(btc)

#define BIT_TEST_SIZE(bits)                                                                        \
	BIT_VALUE(bt, bits)                                                                        \
	void exec_bt_EG_##bits##_r(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		bt_##bits(cpu, REG(rm, bits), REG(reg, bits));                                     \
	}                                                                                          \
	void exec_bt_EI_##bits##_r(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		bt_##bits(cpu, REG(rm, bits), (uint##bits##_t)in->imm);                            \
	}                                                                                          \
	void exec_bt_EG_##bits##_m(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		uint##bits##_t a = ld##bits(cpu, bit_linear_##bits(cpu, in, false));               \
                                                                                                   \
		bt_##bits(cpu, a, REG(reg, bits));                                                 \
	}                                                                                          \
	void exec_bt_EI_##bits##_m(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		bt_##bits(cpu, LOAD_RM(bits), (uint##bits##_t)in->imm);                            \
	}

BIT_TEST_SIZE(16)
BIT_TEST_SIZE(32)
BIT_TEST_SIZE(64)

/* --- one source, one destination ---------------------------------------------------------------
 * The destination is given to the host as a whole: BSF and BSR of 0 leave it alone. */

#define SCAN_SIZE(name, bits)                                                                      \
	static inline void name##_##bits(struct cpu *cpu, uint16_t dst, uint##bits##_t b)          \
	{                                                                                          \
		uint64_t a = CPU_REG(cpu, dst, uint64_t);                                          \
		uint32_t f = flags_unpack(cpu->cc);                                                \
                                                                                                   \
		asm(ASM_FLAGS_IN #name SFX_##bits " %[b], %" RN_##bits "[a]" ASM_FLAGS_OUT         \
		    : [a] "+r"(a), "+a"(f)                                                         \
		    : [b] "r"(b)                                                                   \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		CPU_REG(cpu, dst, uint64_t) = a;                                                   \
	}                                                                                          \
	void exec_##name##_GE_##bits##_r(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		name##_##bits(cpu, in->reg, REG(rm, bits));                                        \
	}                                                                                          \
	void exec_##name##_GE_##bits##_m(struct cpu *cpu, const struct insn *in)                   \
	{                                                                                          \
		name##_##bits(cpu, in->reg, LOAD_RM(bits));                                        \
	}

#define SCAN(name)                                                                                 \
	SCAN_SIZE(name, 16)                                                                        \
	SCAN_SIZE(name, 32)                                                                        \
	SCAN_SIZE(name, 64)

SCAN(bsf)
SCAN(bsr)
SCAN(tzcnt)
SCAN(lzcnt)
SCAN(popcnt)
SCAN_SIZE(adcx, 32)
SCAN_SIZE(adcx, 64)
SCAN_SIZE(adox, 32)
SCAN_SIZE(adox, 64)

/* Source size in the name; the destination is 32 bits, zero-extended, for all but 64. */
#define CRC32(bits, dest)                                                                          \
	static inline void crc32_##bits(struct cpu *cpu, uint16_t dst, uint##bits##_t b)           \
	{                                                                                          \
		uint##dest##_t a = CPU_REG(cpu, dst, uint##dest##_t);                              \
                                                                                                   \
		asm("crc32" SFX_##bits " %[b], %[a]" : [a] "+r"(a) : [b] "r"(b));                  \
		reg_set_##dest(cpu, dst, a);                                                       \
	}                                                                                          \
	void exec_crc32_GE_##bits##_r(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		crc32_##bits(cpu, in->reg, REG(rm, bits));                                         \
	}                                                                                          \
	void exec_crc32_GE_##bits##_m(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		crc32_##bits(cpu, in->reg, LOAD_RM(bits));                                         \
	}

CRC32(8, 32)
CRC32(16, 32)
CRC32(32, 32)
CRC32(64, 64)

/* --- byte order --------------------------------------------------------------------------------
 */

/* Undefined for 16 bits; the host decides. */
void exec_bswap_16(struct cpu *cpu, const struct insn *in)
{
	uint64_t a = CPU_REG(cpu, in->reg, uint64_t);

	asm(".byte 0x66\n\tbswapl %%eax" : "+a"(a));
	CPU_REG(cpu, in->reg, uint16_t) = (uint16_t)a;
}

void exec_bswap_32(struct cpu *cpu, const struct insn *in)
{
	reg_set_32(cpu, in->reg, __builtin_bswap32(REG(reg, 32)));
}

void exec_bswap_64(struct cpu *cpu, const struct insn *in)
{
	reg_set_64(cpu, in->reg, __builtin_bswap64(REG(reg, 64)));
}

#define MOVBE(bits)                                                                                \
	void exec_movbe_GM_##bits(struct cpu *cpu, const struct insn *in)                          \
	{                                                                                          \
		reg_set_##bits(cpu, in->reg, __builtin_bswap##bits(LOAD_RM(bits)));                \
	}                                                                                          \
	void exec_movbe_MG_##bits(struct cpu *cpu, const struct insn *in)                          \
	{                                                                                          \
		STORE_RM(bits, __builtin_bswap##bits(REG(reg, bits)));                             \
	}

MOVBE(16)
MOVBE(32)
MOVBE(64)

/* --- BMI1 and BMI2 -----------------------------------------------------------------------------
 */

/* dst = name(sources...), flags as the host's; the operands order is the assembler's. */
#define BMI_VALUE2(name, bits)                                                                     \
	static inline uint##bits##_t name##_##bits(struct cpu *cpu, uint##bits##_t b)              \
	{                                                                                          \
		uint32_t f = flags_unpack(cpu->cc);                                                \
		uint##bits##_t a;                                                                  \
                                                                                                   \
		asm(ASM_FLAGS_IN #name SFX_##bits " %[b], %[a]" ASM_FLAGS_OUT                      \
		    : [a] "=&r"(a), "+a"(f)                                                        \
		    : [b] "r"(b)                                                                   \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		return a;                                                                          \
	}

#define BMI_VALUE3(name, bits)                                                                     \
	static inline uint##bits##_t name##_##bits(struct cpu *cpu, uint##bits##_t s1,             \
						   uint##bits##_t s2)                              \
	{                                                                                          \
		uint32_t f = flags_unpack(cpu->cc);                                                \
		uint##bits##_t a;                                                                  \
                                                                                                   \
		asm(ASM_FLAGS_IN #name SFX_##bits " %[s2], %[s1], %[a]" ASM_FLAGS_OUT              \
		    : [a] "=&r"(a), "+a"(f)                                                        \
		    : [s1] "r"(s1), [s2] "r"(s2)                                                   \
		    : "cc");                                                                       \
		cpu->cc = flags_pack(f);                                                           \
		return a;                                                                          \
	}

/* expr computes the destination from e, the E operand. */
#define BMI_FORMS(name, form, bits, dst, expr)                                                     \
	void exec_##name##_##form##_##bits##_r(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		uint##bits##_t e = REG(rm, bits);                                                  \
                                                                                                   \
		need_vex(cpu);                                                                     \
		reg_set_##bits(cpu, in->dst, expr);                                                \
	}                                                                                          \
	void exec_##name##_##form##_##bits##_m(struct cpu *cpu, const struct insn *in)             \
	{                                                                                          \
		uint##bits##_t e;                                                                  \
                                                                                                   \
		need_vex(cpu);                                                                     \
		e = LOAD_RM(bits);                                                                 \
		reg_set_##bits(cpu, in->dst, expr);                                                \
	}

/* MULX: high half to G, low half to B; G wins when both are the same register. */
#define MULX(bits, wide)                                                                           \
	static inline void mulx_##bits(struct cpu *cpu, const struct insn *in, uint##bits##_t e)   \
	{                                                                                          \
		wide product = (wide)e * (uint##bits##_t)cpu->gpr[X86_RDX];                        \
                                                                                                   \
		reg_set_##bits(cpu, in->vvvv, (uint##bits##_t)product);                            \
		reg_set_##bits(cpu, in->reg, (uint##bits##_t)(product >> bits));                   \
	}                                                                                          \
	void exec_mulx_GBE_##bits##_r(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		need_vex(cpu);                                                                     \
		mulx_##bits(cpu, in, REG(rm, bits));                                               \
	}                                                                                          \
	void exec_mulx_GBE_##bits##_m(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		need_vex(cpu);                                                                     \
		mulx_##bits(cpu, in, LOAD_RM(bits));                                               \
	}

#define COUNT(bits) (REG(vvvv, bits) % bits)
#define BMI_SIZE(bits)                                                                             \
	BMI_VALUE2(blsr, bits)                                                                     \
	BMI_VALUE2(blsmsk, bits)                                                                   \
	BMI_VALUE2(blsi, bits)                                                                     \
	BMI_VALUE3(andn, bits)                                                                     \
	BMI_VALUE3(bextr, bits)                                                                    \
	BMI_VALUE3(bzhi, bits)                                                                     \
	BMI_VALUE3(pdep, bits)                                                                     \
	BMI_VALUE3(pext, bits)                                                                     \
	BMI_FORMS(blsr, BE, bits, vvvv, blsr_##bits(cpu, e))                                       \
	BMI_FORMS(blsmsk, BE, bits, vvvv, blsmsk_##bits(cpu, e))                                   \
	BMI_FORMS(blsi, BE, bits, vvvv, blsi_##bits(cpu, e))                                       \
	BMI_FORMS(andn, GBE, bits, reg, andn_##bits(cpu, REG(vvvv, bits), e))                      \
	BMI_FORMS(bextr, GEB, bits, reg, bextr_##bits(cpu, e, REG(vvvv, bits)))                    \
	BMI_FORMS(bzhi, GEB, bits, reg, bzhi_##bits(cpu, e, REG(vvvv, bits)))                      \
	BMI_FORMS(pdep, GBE, bits, reg, pdep_##bits(cpu, REG(vvvv, bits), e))                      \
	BMI_FORMS(pext, GBE, bits, reg, pext_##bits(cpu, REG(vvvv, bits), e))                      \
	BMI_FORMS(shlx, GEB, bits, reg, e << COUNT(bits))                                          \
	BMI_FORMS(shrx, GEB, bits, reg, e >> COUNT(bits))                                          \
	BMI_FORMS(sarx, GEB, bits, reg, (uint##bits##_t)((int##bits##_t)e >> COUNT(bits)))         \
	BMI_FORMS(rorx, GEI, bits, reg, e >> (in->imm % bits) | e << (-in->imm % bits))

BMI_SIZE(32)
BMI_SIZE(64)
MULX(32, uint64_t)
MULX(64, unsigned __int128)
