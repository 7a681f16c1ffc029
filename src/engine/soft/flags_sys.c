/* engine/soft/flags_sys.c - PUSHF, POPF, CLI and STI, with IOPL, VME and PVI. */
#include "engine/soft/flags_sys.h"

#include "engine/soft/access.h"
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/seg.h"

uint64_t flags_vif_image(const struct cpu *cpu)
{
	uint64_t f = cpu_rflags(cpu) & ~(RFLAGS_IF | RFLAGS_RF);

	return f | RFLAGS_IOPL | (f & RFLAGS_VIF ? RFLAGS_IF : 0);
}

void flags_check_vif(struct cpu *cpu, uint64_t image)
{
	if ((image & RFLAGS_TF) || ((image & RFLAGS_IF) && (cpu->rflags & RFLAGS_VIP)))
		fault_gp(cpu, 0);
}

void flags_write_vif(struct cpu *cpu, uint64_t image)
{
	uint64_t vif = image & RFLAGS_IF ? RFLAGS_VIF : 0;

	flags_write(cpu, (image & ~RFLAGS_VIF) | vif, flags_user_mask(2) | RFLAGS_VIF);
}

/* Virtual-8086 mode below IOPL 3 allows PUSHF and POPF of 16 bits with VME, and no others. */
static bool vme_flags(struct cpu *cpu, const struct insn *in)
{
	if (!cpu->v86 || cpu_iopl(cpu) == 3)
		return false;
	if (!(cpu->cr4 & CR4_VME) || in->opsize != 2)
		fault_gp(cpu, 0);
	return true;
}

void exec_pushf(struct cpu *cpu, const struct insn *in)
{
	uint64_t v = vme_flags(cpu, in) ? flags_vif_image(cpu)
					: cpu_rflags(cpu) & ~(RFLAGS_VM | RFLAGS_RF);
	uint64_t sp = cpu->gpr[X86_RSP] - in->opsize;
	gva_t lin = stack_linear(cpu, sp, in->opsize, true);

	if (in->opsize == 8)
		st64(cpu, lin, v);
	else if (in->opsize == 4)
		st32(cpu, lin, v);
	else
		st16(cpu, lin, v);
	stack_set_sp(cpu, sp);
}

/* RF is cleared by every POPF; the run loop has done that before the instruction. */
static uint64_t popf_mask(const struct cpu *cpu, unsigned bytes)
{
	uint64_t mask = flags_user_mask(bytes);

	if (cpu->real || cpu->cpl == 0)
		mask |= RFLAGS_IOPL;
	if (cpu->real || cpu->cpl <= cpu_iopl(cpu))
		mask |= RFLAGS_IF;
	return mask;
}

void exec_popf(struct cpu *cpu, const struct insn *in)
{
	bool vme = vme_flags(cpu, in);
	uint64_t sp = cpu->gpr[X86_RSP];
	gva_t lin = stack_linear(cpu, sp, in->opsize, false);
	uint64_t old = cpu->rflags, v;

	v = in->opsize == 8 ? ld64(cpu, lin) : in->opsize == 4 ? ld32(cpu, lin) : ld16(cpu, lin);
	if (vme)
		flags_check_vif(cpu, v);
	stack_set_sp(cpu, sp + in->opsize);
	if (vme)
		flags_write_vif(cpu, v);
	else
		flags_write(cpu, v, popf_mask(cpu, in->opsize));
	if ((old ^ cpu->rflags) & RFLAGS_AC)
		cpu_mode_update(cpu);
}

/* Which flag do CLI and STI mean here?  IF, VIF, or none: #GP(0). */
static uint64_t interrupt_flag(struct cpu *cpu)
{
	if (cpu->real || cpu_iopl(cpu) >= cpu->cpl)
		return RFLAGS_IF;
	if (cpu->cpl == 3 && (cpu->cr4 & (cpu->v86 ? CR4_VME : CR4_PVI)))
		return RFLAGS_VIF;
	fault_gp(cpu, 0);
}

void exec_cli(struct cpu *cpu, const struct insn *in)
{
	cpu->rflags &= ~interrupt_flag(cpu);
}

/* Interrupts stay blocked for one more instruction, but only if they were blocked before. */
void exec_sti(struct cpu *cpu, const struct insn *in)
{
	uint64_t flag = interrupt_flag(cpu);

	if (flag == RFLAGS_VIF && (cpu->rflags & RFLAGS_VIP))
		fault_gp(cpu, 0);
	if (flag == RFLAGS_IF && !(cpu->rflags & RFLAGS_IF))
		cpu->int_shadow = CPU_SHADOW_STI;
	cpu->rflags |= flag;
}
