/* engine/soft/mode.c - what CR0, CR4, EFER, RFLAGS and CS together mean for running code.
 *
 * SDM 3A "Modes of Operation" and "Paging Modes". */
#include "engine/soft/cpu.h"
#include "engine/soft/debug.h"
#include "engine/soft/seg.h"

/* mode_key, beside DEBUG_MODE_KEY: everything that changes what segment bits mean is in it too. */
enum { KEY_REAL = 1 << 2, KEY_V86 = 1 << 3, KEY_LONG = 1 << 4, KEY_SP16 = 1 << 5 };

static uint8_t paging_mode(const struct cpu *cpu)
{
	if (!(cpu->cr0 & CR0_PG))
		return PAGING_NONE;
	if (!(cpu->cr4 & CR4_PAE))
		return PAGING_2LEVEL;
	if (!cpu->long_mode)
		return PAGING_PAE;
	return cpu->cr4 & CR4_LA57 ? PAGING_5LEVEL : PAGING_4LEVEL;
}

static uint8_t code_mode(const struct cpu *cpu)
{
	uint32_t attr = cpu->seg[X86_CS].attr;

	if (cpu->long_mode && attr & X86_SEG_L)
		return INSN_MODE_64;
	return attr & X86_SEG_DB ? INSN_MODE_32 : INSN_MODE_16;
}

static uint64_t stack_mask(const struct cpu *cpu)
{
	if (cpu->mode == INSN_MODE_64)
		return ~0ull;
	return cpu->seg[X86_SS].attr & X86_SEG_DB ? 0xffffffff : 0xffff;
}

static uint32_t mode_key(const struct cpu *cpu)
{
	return cpu->mode | (cpu->real ? KEY_REAL : 0) | (cpu->v86 ? KEY_V86 : 0) |
	       (cpu->long_mode ? KEY_LONG : 0) | (cpu->sp_mask == 0xffff ? KEY_SP16 : 0) |
	       debug_mode_key(cpu);
}

void cpu_mode_update(struct cpu *cpu)
{
	uint32_t key = cpu->mode_key;

	cpu->long_mode = cpu->efer & EFER_LMA;
	cpu->real = !(cpu->cr0 & CR0_PE);
	cpu->v86 = !cpu->real && !cpu->long_mode && cpu->rflags & RFLAGS_VM;
	if (cpu->real)
		cpu->cpl = 0;
	else if (cpu->v86)
		cpu->cpl = 3;
	cpu->paging = paging_mode(cpu);
	cpu->canon_half = cpu->cr4 & CR4_LA57 ? BIT(56) : BIT(47);
	cpu->mode = code_mode(cpu);
	cpu->sp_mask = stack_mask(cpu);
	cpu->ip_mask = cpu->mode == INSN_MODE_64 ? ~0ull : 0xffffffff;
	tlb_pick(cpu);
	cpu->mode_key = mode_key(cpu);
	if (cpu->mode_key != key)
		seg_update_flat_all(cpu);
}
