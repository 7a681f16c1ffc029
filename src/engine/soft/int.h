/* engine/soft/int.h - what the integer exec functions share: flags, registers, operand forms.
 *
 * Results and flags come from the host: each operation is the same host instruction, by inline
 * assembly, so that even the flags the manuals leave undefined are those of the host CPU.  Where an
 * instruction keeps some flags (shifts by 0, rotates, BT ...) the guest's flags are loaded first.
 *
 * Host flags travel in EAX: LAHF puts SF ZF AF PF CF in AH, SETO puts OF in AL.  That is several
 * times cheaper than PUSHF.  Only int_*.c and string.c include this. */
#pragma once

#include "engine/soft/access.h"
#include "engine/soft/cpu.h"
#include "engine/soft/insn_exec.gen.h"

/* To be the last of an asm block; EAX is an output. */
#define ASM_FLAGS_OUT "\n\tlahf\n\tseto %%al"
/* To be the first; EAX is flags_unpack().  0x7f + 1 overflows: OF from AL. */
#define ASM_FLAGS_IN "addb $0x7f, %%al\n\tsahf\n\t"

static inline uint64_t flags_pack(uint32_t eax)
{
	return (uint8_t)(eax >> 8) | (eax & 1u) << 11;
}

static inline uint32_t flags_unpack(uint64_t cc)
{
	return (uint32_t)(uint8_t)cc << 8 | ((uint32_t)(cc >> 11) & 1u);
}

/* Guest memory seen through a host pointer: any alignment, any type. */
typedef uint8_t mem8_t __attribute__((may_alias));
typedef uint16_t mem16_t __attribute__((may_alias, aligned(1)));
typedef uint32_t mem32_t __attribute__((may_alias, aligned(1)));
typedef uint64_t mem64_t __attribute__((may_alias, aligned(1)));

/* Assembler suffix and register-name modifier of an operand size. */
#define SFX_8  "b"
#define SFX_16 "w"
#define SFX_32 "l"
#define SFX_64 "q"
#define RN_8   "b"
#define RN_16  "w"
#define RN_32  "k"
#define RN_64  "q"

/* Operand values by field name: REG(reg, 32), REG(rm, 8). */
#define REG(field, bits) CPU_REG(cpu, in->field, uint##bits##_t)

static inline void reg_set_8(struct cpu *cpu, uint16_t off, uint8_t v)
{
	CPU_REG(cpu, off, uint8_t) = v;
}

static inline void reg_set_16(struct cpu *cpu, uint16_t off, uint16_t v)
{
	CPU_REG(cpu, off, uint16_t) = v;
}

static inline void reg_set_32(struct cpu *cpu, uint16_t off, uint32_t v)
{
	CPU_REG(cpu, off, uint64_t) = v;
}

static inline void reg_set_64(struct cpu *cpu, uint16_t off, uint64_t v)
{
	CPU_REG(cpu, off, uint64_t) = v;
}

static inline void reg_set_sized(struct cpu *cpu, uint16_t off, unsigned size, uint64_t v)
{
	switch (size) {
	case 1:
		reg_set_8(cpu, off, (uint8_t)v);
		break;
	case 2:
		reg_set_16(cpu, off, (uint16_t)v);
		break;
	case 4:
		reg_set_32(cpu, off, (uint32_t)v);
		break;
	default:
		reg_set_64(cpu, off, v);
	}
}

static inline uint64_t ld_sized(struct cpu *cpu, gva_t lin, unsigned size)
{
	return size == 1   ? ld8(cpu, lin)
	       : size == 2 ? ld16(cpu, lin)
	       : size == 4 ? ld32(cpu, lin)
			   : ld64(cpu, lin);
}

static inline void st_sized(struct cpu *cpu, gva_t lin, unsigned size, uint64_t v)
{
	if (size == 1)
		st8(cpu, lin, (uint8_t)v);
	else if (size == 2)
		st16(cpu, lin, (uint16_t)v);
	else if (size == 4)
		st32(cpu, lin, (uint32_t)v);
	else
		st64(cpu, lin, v);
}

/* Value of the memory operand, and its linear address for writing. */
#define LOAD_RM(bits)       ld##bits(cpu, insn_linear(cpu, in, (bits) / 8, false))
#define STORE_RM(bits, val) st##bits(cpu, insn_linear(cpu, in, (bits) / 8, true), (val))

/* Linear address of [seg:off, +size) for operands that are not ModRM's: strings, XLAT, moffs. */
static inline gva_t linear_at(struct cpu *cpu, unsigned seg, uint64_t off, unsigned size,
			      bool write)
{
	if (likely(cpu->mode == INSN_MODE_64))
		return seg >= X86_FS ? cpu->seg[seg].base + off : off;
	return seg_linear(cpu, seg, off, size, write);
}

static inline uint64_t mask_of(unsigned size)
{
	return size == 8 ? ~0ull : (1ull << (8 * size)) - 1;
}

/* --- stack, any size and mode ------------------------------------------------------------------
 */
static inline void push_sized(struct cpu *cpu, unsigned size, uint64_t v)
{
	uint64_t sp = cpu->gpr[X86_RSP] - size;

	st_sized(cpu, stack_linear(cpu, sp, size, true), size, v);
	stack_set_sp(cpu, sp);
}

static inline uint64_t stack_load(struct cpu *cpu, uint64_t sp, unsigned size)
{
	return ld_sized(cpu, stack_linear(cpu, sp, size, false), size);
}

/* --- conditions --------------------------------------------------------------------------------
 */
static inline bool cond_l(uint64_t cc)
{
	return (cc >> 7 ^ cc >> 11) & 1;
}

/* X(name, expression over cc) for the sixteen conditions. */
#define CONDITIONS(X)                                                                              \
	X(o, cc &RFLAGS_OF)                                                                        \
	X(no, !(cc & RFLAGS_OF))                                                                   \
	X(b, cc &RFLAGS_CF)                                                                        \
	X(ae, !(cc & RFLAGS_CF))                                                                   \
	X(z, cc &RFLAGS_ZF)                                                                        \
	X(nz, !(cc & RFLAGS_ZF))                                                                   \
	X(be, cc &(RFLAGS_CF | RFLAGS_ZF))                                                         \
	X(a, !(cc & (RFLAGS_CF | RFLAGS_ZF)))                                                      \
	X(s, cc &RFLAGS_SF)                                                                        \
	X(ns, !(cc & RFLAGS_SF))                                                                   \
	X(p, cc &RFLAGS_PF)                                                                        \
	X(np, !(cc & RFLAGS_PF))                                                                   \
	X(l, cond_l(cc))                                                                           \
	X(ge, !cond_l(cc))                                                                         \
	X(le, (cc & RFLAGS_ZF) || cond_l(cc))                                                      \
	X(g, !(cc & RFLAGS_ZF) && !cond_l(cc))

/* VEX-encoded integer instructions do not exist in real and virtual-8086 mode. */
static inline void need_vex(struct cpu *cpu)
{
	if (unlikely(cpu->real || cpu->v86))
		fault_ud(cpu);
}
