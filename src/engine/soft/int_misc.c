/* engine/soft/int_misc.c - flag bits, decimal arithmetic, BOUND, random numbers, cache hints,
 * fences, NOP, PAUSE and UD. */
#include "engine/soft/int.h"
#include "engine/soft/seg.h"
#include "engine/soft/vec.h"

#include <sched.h>
#include <sys/random.h>

/* --- flag bits ---------------------------------------------------------------------------------
 */

void exec_clc(struct cpu *cpu, const struct insn *in)
{
	cpu->cc &= ~RFLAGS_CF;
}

void exec_stc(struct cpu *cpu, const struct insn *in)
{
	cpu->cc |= RFLAGS_CF;
}

void exec_cmc(struct cpu *cpu, const struct insn *in)
{
	cpu->cc ^= RFLAGS_CF;
}

void exec_cld(struct cpu *cpu, const struct insn *in)
{
	cpu->rflags &= ~RFLAGS_DF;
}

void exec_std(struct cpu *cpu, const struct insn *in)
{
	cpu->rflags |= RFLAGS_DF;
}

#define AH_FLAGS (RFLAGS_SF | RFLAGS_ZF | RFLAGS_AF | RFLAGS_PF | RFLAGS_CF)

void exec_lahf(struct cpu *cpu, const struct insn *in)
{
	uint8_t ah = (uint8_t)((cpu->cc & AH_FLAGS) | RFLAGS_FIXED);

	reg_set_8(cpu, CPU_GPR_OFF(X86_RAX) + 1, ah);
}

void exec_sahf(struct cpu *cpu, const struct insn *in)
{
	uint8_t ah = (uint8_t)(cpu->gpr[X86_RAX] >> 8);

	cpu->cc = (cpu->cc & ~AH_FLAGS) | (ah & AH_FLAGS);
}

/* --- decimal arithmetic (SDM 2A "DAA", "AAA" ...) ------------------------------------------------
 * Not available to 64-bit host code, so written out.  Flags left undefined are those of the
 * addition or subtraction behind it, as on AMD's processors: of AX for AAA and AAS, of AL for the
 * others. */

static void set_al(struct cpu *cpu, uint8_t v)
{
	reg_set_8(cpu, CPU_GPR_OFF(X86_RAX), v);
}

#define FLAGS_OF_ADD(bits)                                                                         \
	static uint64_t flags_of_add_##bits(uint##bits##_t a, uint##bits##_t b)                    \
	{                                                                                          \
		uint32_t f;                                                                        \
                                                                                                   \
		asm("add" SFX_##bits " %" RN_##bits "[b], %" RN_##bits "[a]" ASM_FLAGS_OUT         \
		    : "=&a"(f), [a] "+r"(a)                                                        \
		    : [b] "r"(b)                                                                   \
		    : "cc");                                                                       \
		return flags_pack(f);                                                              \
	}

FLAGS_OF_ADD(8)
FLAGS_OF_ADD(16)

static uint64_t szp_of(uint8_t v)
{
	return flags_of_add_8(v, 0) & (RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF);
}

/* OF of a +/- something = r. */
static uint64_t overflow_of(int sign, unsigned a, unsigned r, unsigned top)
{
	unsigned other = sign > 0 ? r - a : a - r;

	return (sign > 0 ? ~(a ^ other) : a ^ other) & (a ^ r) & top ? RFLAGS_OF : 0;
}

static void decimal_adjust(struct cpu *cpu, int sign)
{
	uint8_t al = (uint8_t)cpu->gpr[X86_RAX], v = al;
	bool cf = cpu->cc & RFLAGS_CF, af = (al & 15) > 9 || (cpu->cc & RFLAGS_AF);
	bool high = al > 0x99 || cf;

	if (af) {
		/* DAS keeps a borrow out of this step (SDM: CF = old CF or borrow). */
		cf = sign < 0 && (cf || al < 6);
		v = (uint8_t)(v + sign * 6);
	} else {
		cf = false;
	}
	if (high) {
		v = (uint8_t)(v + sign * 0x60);
		cf = true;
	}
	set_al(cpu, v);
	cpu->cc = szp_of(v) | (cf ? RFLAGS_CF : 0) | (af ? RFLAGS_AF : 0);
	cpu->cc |= overflow_of(sign, al, v, 0x80);
}

void exec_daa(struct cpu *cpu, const struct insn *in)
{
	decimal_adjust(cpu, 1);
}

void exec_das(struct cpu *cpu, const struct insn *in)
{
	decimal_adjust(cpu, -1);
}

static void ascii_adjust(struct cpu *cpu, int sign)
{
	uint16_t old = (uint16_t)cpu->gpr[X86_RAX], ax = old;
	bool adjust = (ax & 15) > 9 || (cpu->cc & RFLAGS_AF);

	if (adjust)
		ax = (uint16_t)(ax + sign * 0x106);
	cpu->cc = flags_of_add_16(ax, 0) & ~(RFLAGS_CF | RFLAGS_AF);
	cpu->cc |= overflow_of(sign, old, ax, 0x8000);
	cpu->cc |= adjust ? RFLAGS_CF | RFLAGS_AF : 0;
	reg_set_16(cpu, CPU_GPR_OFF(X86_RAX), ax & 0xff0f);
}

void exec_aaa(struct cpu *cpu, const struct insn *in)
{
	ascii_adjust(cpu, 1);
}

void exec_aas(struct cpu *cpu, const struct insn *in)
{
	ascii_adjust(cpu, -1);
}

void exec_aam(struct cpu *cpu, const struct insn *in)
{
	uint8_t al = (uint8_t)cpu->gpr[X86_RAX], base = (uint8_t)in->imm;

	if (!base)
		cpu_fault_plain(cpu, X86_EXC_DE);
	reg_set_16(cpu, CPU_GPR_OFF(X86_RAX), (uint16_t)(al / base << 8 | al % base));
	cpu->cc = szp_of(al % base);
}

void exec_aad(struct cpu *cpu, const struct insn *in)
{
	uint16_t ax = (uint16_t)cpu->gpr[X86_RAX];
	uint8_t tens = (uint8_t)((ax >> 8) * (uint8_t)in->imm);

	reg_set_16(cpu, CPU_GPR_OFF(X86_RAX), (uint8_t)(ax + tens));
	cpu->cc = flags_of_add_8((uint8_t)ax, tens);
}

void exec_salc(struct cpu *cpu, const struct insn *in)
{
	set_al(cpu, cpu->cc & RFLAGS_CF ? 0xff : 0);
}

/* --- BOUND -------------------------------------------------------------------------------------
 */

#define BOUND(bits)                                                                                \
	void exec_bound_GM_##bits(struct cpu *cpu, const struct insn *in)                          \
	{                                                                                          \
		gva_t lin = insn_linear(cpu, in, 2 * bits / 8, false);                             \
		int##bits##_t index = (int##bits##_t)REG(reg, bits);                               \
		int##bits##_t lower = (int##bits##_t)ld##bits(cpu, lin);                           \
		int##bits##_t upper = (int##bits##_t)ld##bits(cpu, lin + bits / 8);                \
                                                                                                   \
		if (index < lower || index > upper)                                                \
			cpu_fault_plain(cpu, X86_EXC_BR);                                          \
	}

BOUND(16)
BOUND(32)

/* --- random numbers ----------------------------------------------------------------------------
 * From the host kernel: no worse than the host's RDRAND, and there on every host. */

static void random_to_reg(struct cpu *cpu, const struct insn *in)
{
	uint64_t v = 0;
	bool ok;

	vec_release(cpu);
	ok = getrandom(&v, sizeof(v), GRND_NONBLOCK) == (ssize_t)sizeof(v);
	reg_set_sized(cpu, in->rm, in->opsize, ok ? v : 0);
	cpu->cc = ok ? RFLAGS_CF : 0;
}

#define RANDOM(bits)                                                                               \
	void exec_rdrand_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		random_to_reg(cpu, in);                                                            \
	}                                                                                          \
	void exec_rdseed_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		random_to_reg(cpu, in);                                                            \
	}

RANDOM(16)
RANDOM(32)
RANDOM(64)

/* --- caches and order --------------------------------------------------------------------------
 * Guest RAM is coherent: flushing means only the access check of a byte load. */

/* Execute-only segments are allowed too (SDM 2A "CLFLUSH"). */
static void flush_line(struct cpu *cpu, const struct insn *in)
{
	const struct cpu_seg *s = &cpu->seg[in->seg];
	bool execute_only = cpu->mode != INSN_MODE_64 && (s->attr & 0x1a) == 0x18;
	uint64_t ea = insn_ea(cpu, in);
	gva_t lin = execute_only && seg_limit_allows(s, ea, 1) ? (uint32_t)(s->base + ea)
							       : insn_linear(cpu, in, 1, false);

	probe_read(cpu, lin, 1);
}

void exec_clflush(struct cpu *cpu, const struct insn *in)
{
	flush_line(cpu, in);
}

void exec_clflushopt(struct cpu *cpu, const struct insn *in)
{
	flush_line(cpu, in);
}

void exec_clwb(struct cpu *cpu, const struct insn *in)
{
	flush_line(cpu, in);
}

/* AMD APM 3 "CLZERO": the 64-byte line that rAX points into. */
/* The line is where the linear address says; it must be all in the segment (seen on Zen 5). */
void exec_clzero(struct cpu *cpu, const struct insn *in)
{
	uint64_t off = cpu->gpr[X86_RAX] & mask_of(in->adsize);
	gva_t lin = linear_at(cpu, in->seg, off, 1, true) & ~63ull;

	if (cpu->mode != INSN_MODE_64)
		seg_linear(cpu, in->seg, (uint32_t)(lin - cpu->seg[in->seg].base), 64, true);
	probe_write(cpu, lin, 64);
	for (unsigned i = 0; i < 64; i += 8)
		st64(cpu, lin + i, 0);
}

void exec_lfence(struct cpu *cpu, const struct insn *in)
{
	asm volatile("lfence" : : : "memory");
}

void exec_mfence(struct cpu *cpu, const struct insn *in)
{
	asm volatile("mfence" : : : "memory");
}

void exec_sfence(struct cpu *cpu, const struct insn *in)
{
	asm volatile("sfence" : : : "memory");
}

void exec_nop(struct cpu *cpu, const struct insn *in)
{
}

/* A guest that spins may wait for a vCPU that the host is not running: give way now and then. */
void exec_pause(struct cpu *cpu, const struct insn *in)
{
	if (cpu->vm->nr_cpus > 1 && ++cpu->pauses % 64 == 0)
		sched_yield();
	else
		__builtin_ia32_pause();
}

void exec_ud(struct cpu *cpu, const struct insn *in)
{
	fault_ud(cpu);
}
