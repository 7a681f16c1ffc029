/* engine/soft/syscall.c - SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS.
 *
 * AMD and Intel differ: SYSCALL outside 64-bit mode and SYSENTER in long mode exist on one of them
 * only, SYSRET to a non-canonical RCX faults in ring 0 on Intel and in ring 3 on AMD, and AMD's
 * SYSRET leaves the hidden part of SS alone.  The CPU model's vendor decides.
 *
 * SDM 2 SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS; AMD APM 3, the same names. */
#include "engine/soft/debug.h"
#include "engine/soft/flags_sys.h"
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/seg.h"

/* A flat segment that no descriptor was read for.  Field by field: a structure built elsewhere and
 * copied would stall on its own stores, on the hottest path between user and kernel. */
static void set_flat(struct cpu *cpu, unsigned seg, uint16_t sel, unsigned cpl, uint32_t attr)
{
	struct cpu_seg *s = &cpu->seg[seg];

	s->selector = (sel & ~3u) | cpl;
	s->base = 0;
	s->limit = 0xffffffff;
	s->attr = attr | X86_SEG_G | X86_SEG_P | cpl << 5 | X86_SEG_S | SEG_TYPE_RW |
		  SEG_TYPE_ACCESSED;
	s->flat = seg == X86_CS ? SEG_FLAT_READ : SEG_FLAT_READ | SEG_FLAT_WRITE;
}

static void set_code(struct cpu *cpu, uint16_t sel, unsigned cpl, uint32_t size_bit)
{
	set_flat(cpu, X86_CS, sel, cpl, SEG_TYPE_CODE | size_bit);
	cpu->cpl = cpl;
}

static void set_stack(struct cpu *cpu, uint16_t sel, unsigned cpl)
{
	set_flat(cpu, X86_SS, sel, cpl, X86_SEG_DB);
}

/* --- SYSCALL and SYSRET ------------------------------------------------------------------------
 */

static void check_enabled(struct cpu *cpu)
{
	if (!(cpu->efer & EFER_SCE))
		fault_ud(cpu);
	if (cpu_like_intel(cpu) && cpu->mode != INSN_MODE_64)
		fault_ud(cpu);
}

static void syscall_long(struct cpu *cpu)
{
	uint64_t flags = cpu_rflags(cpu);

	cpu->gpr[X86_RCX] = cpu->rip;
	cpu->gpr[11] = flags & ~RFLAGS_RF;
	cpu->rip = cpu->mode == INSN_MODE_64 ? cpu->lstar : cpu->cstar;
	cpu_set_rflags(cpu, flags & ~(cpu->sfmask | RFLAGS_RF));
	set_code(cpu, cpu->star >> 32, 0, X86_SEG_L);
}

/* AMD only. */
static void syscall_legacy(struct cpu *cpu)
{
	cpu->gpr[X86_RCX] = (uint32_t)cpu->rip;
	cpu->rip = (uint32_t)cpu->star;
	cpu->rflags &= ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
	set_code(cpu, cpu->star >> 32, 0, X86_SEG_DB);
}

/* A single-step trap follows SYSCALL only when TF survived the mask: kernels mask TF because they
 * could not take a #DB while still on the user's stack. */
void exec_syscall(struct cpu *cpu, const struct insn *in)
{
	check_enabled(cpu);
	if (cpu->long_mode)
		syscall_long(cpu);
	else
		syscall_legacy(cpu);
	set_stack(cpu, (uint16_t)(cpu->star >> 32) + 8, 0);
	cpu->dbg_no_step = !(cpu->rflags & RFLAGS_TF);
	cpu_mode_update(cpu);
}

/* AMD: selector and privilege change, base, limit and type do not. */
static void sysret_stack(struct cpu *cpu, uint16_t sel)
{
	struct cpu_seg *ss = &cpu->seg[X86_SS];

	if (cpu_like_intel(cpu)) {
		set_stack(cpu, sel, 3);
		return;
	}
	ss->selector = sel | 3;
	ss->attr |= 3u << 5;
}

static void sysret_flags(struct cpu *cpu)
{
	if (cpu->long_mode)
		flags_write(cpu, cpu->gpr[11], FLAGS_ALL & ~(RFLAGS_RF | RFLAGS_VM));
	else
		cpu->rflags |= RFLAGS_IF;
}

void exec_sysret(struct cpu *cpu, const struct insn *in)
{
	uint16_t base = cpu->star >> 48;
	uint64_t rip = cpu->gpr[X86_RCX];
	bool to64 = in->opsize == 8;

	check_enabled(cpu);
	if (!cpu_protected(cpu) || cpu->cpl)
		fault_gp(cpu, 0);
	if (to64 && cpu_like_intel(cpu) && !cpu_canonical(cpu, rip, 1))
		fault_gp(cpu, 0);
	cpu->rip = to64 ? rip : (uint32_t)rip;
	sysret_flags(cpu);
	set_code(cpu, to64 ? base + 16 : base, 3, to64 ? X86_SEG_L : X86_SEG_DB);
	sysret_stack(cpu, base + 8);
	/* TF counts at the end, unlike with POPF and IRET: the trap comes before the first
	 * instruction of the user's (why no system returns to a stepped program with SYSRET). */
	cpu->dbg_no_step = true;
	if (cpu->rflags & RFLAGS_TF)
		cpu->dbg_pending |= DR6_BS;
	cpu_mode_update(cpu);
}

/* --- SYSENTER and SYSEXIT ----------------------------------------------------------------------
 */

static void check_sysenter(struct cpu *cpu)
{
	if (!cpu_like_intel(cpu) && cpu->long_mode)
		fault_ud(cpu);
	if (cpu->real || !(cpu->sysenter_cs & 0xfffc))
		fault_gp(cpu, 0);
}

void exec_sysenter(struct cpu *cpu, const struct insn *in)
{
	bool wide = cpu->long_mode;

	check_sysenter(cpu);
	cpu->rflags &= ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
	set_code(cpu, cpu->sysenter_cs, 0, wide ? X86_SEG_L : X86_SEG_DB);
	set_stack(cpu, cpu->sysenter_cs + 8, 0);
	cpu->gpr[X86_RSP] = wide ? cpu->sysenter_esp : (uint32_t)cpu->sysenter_esp;
	cpu->rip = wide ? cpu->sysenter_eip : (uint32_t)cpu->sysenter_eip;
	cpu_mode_update(cpu);
}

void exec_sysexit(struct cpu *cpu, const struct insn *in)
{
	uint64_t rsp = cpu->gpr[X86_RCX], rip = cpu->gpr[X86_RDX];
	bool to64 = in->opsize == 8;

	if (cpu->v86 || cpu->cpl) /* first, as AMD processors do it */
		fault_gp(cpu, 0);
	check_sysenter(cpu);
	if (to64 && (!cpu_canonical(cpu, rsp, 1) || !cpu_canonical(cpu, rip, 1)))
		fault_gp(cpu, 0);
	cpu->gpr[X86_RSP] = to64 ? rsp : (uint32_t)rsp;
	cpu->rip = to64 ? rip : (uint32_t)rip;
	set_code(cpu, cpu->sysenter_cs + (to64 ? 32 : 16), 3, to64 ? X86_SEG_L : X86_SEG_DB);
	set_stack(cpu, cpu->sysenter_cs + (to64 ? 40 : 24), 3);
	cpu_mode_update(cpu);
}

/* --- SWAPGS ------------------------------------------------------------------------------------
 */

void exec_swapgs(struct cpu *cpu, const struct insn *in)
{
	uint64_t base = cpu->seg[X86_GS].base;

	if (cpu->cpl)
		fault_gp(cpu, 0);
	cpu->seg[X86_GS].base = cpu->kernel_gs_base;
	cpu->kernel_gs_base = base;
}
