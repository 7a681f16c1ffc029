/* engine/soft/debug.c - see debug.h. */
#include "engine/soft/debug.h"

enum { DR_NR = 4 };
enum { DR_RW_EXEC, DR_RW_WRITE, DR_RW_IO, DR_RW_DATA };

/* LEN 00 01 10 11 */
static unsigned dr_len(const struct cpu *cpu, unsigned n)
{
	static const uint8_t len[] = {1, 2, 8, 4};

	return len[DR7_LEN(cpu->dr7, n)];
}

/* The address's low bits inside LEN are ignored. */
static bool dr_overlaps(const struct cpu *cpu, unsigned n, uint64_t addr, unsigned size)
{
	uint64_t len = dr_len(cpu, n), start = cpu->dr[n] & ~(len - 1);

	return addr - start < len || start - addr < size;
}

/* CR4.DE gives RW=10b its meaning; without it the combination is undefined, and here matches
 * nothing. */
void debug_update(struct cpu *cpu)
{
	uint8_t old_exec = cpu->dbg_exec, old_data = cpu->dbg_data;

	cpu->dbg_exec = cpu->dbg_data = cpu->dbg_io = 0;
	for (unsigned n = 0; n < DR_NR; n++) {
		unsigned rw = DR7_RW(cpu->dr7, n);

		if (!DR7_ENABLED(cpu->dr7, n))
			continue;
		if (rw == DR_RW_EXEC)
			cpu->dbg_exec |= 1u << n;
		else if (rw != DR_RW_IO)
			cpu->dbg_data |= 1u << n;
		else if (cpu->cr4 & CR4_DE)
			cpu->dbg_io |= 1u << n;
	}
	if (old_data || cpu->dbg_data)
		tlb_flush_all(cpu);
	if (old_exec != cpu->dbg_exec)
		cpu_mode_update(cpu);
}

bool debug_page_armed_slow(const struct cpu *cpu, gva_t lin)
{
	for (unsigned n = 0; n < DR_NR; n++)
		if ((cpu->dbg_data >> n & 1) &&
		    dr_overlaps(cpu, n, lin & PAGE_MASK, (unsigned)PAGE_SIZE))
			return true;
	return false;
}

/* An enabled breakpoint that matches raises the exception; DR6 then also shows those that match
 * without being enabled (SDM 3B "Debug Status Register (DR6)"). */
static uint32_t matches(const struct cpu *cpu, uint8_t armed, uint64_t addr, unsigned size,
			unsigned rw_allowed)
{
	uint32_t hit = 0;

	for (unsigned n = 0; n < DR_NR; n++)
		if ((rw_allowed >> DR7_RW(cpu->dr7, n) & 1) && dr_overlaps(cpu, n, addr, size))
			hit |= 1u << n;
	return hit & armed ? hit : 0;
}

/* The trap comes right after this instruction. */
static void pend(struct cpu *cpu, uint32_t hit)
{
	if (!hit)
		return;
	cpu->dbg_pending |= hit;
	cpu_stop_block(cpu);
}

void debug_note_data(struct cpu *cpu, gva_t lin, unsigned size, bool write)
{
	unsigned rw = 1u << DR_RW_DATA | (write ? 1u << DR_RW_WRITE : 0);

	pend(cpu, matches(cpu, cpu->dbg_data, lin, size, rw));
}

void debug_note_io(struct cpu *cpu, uint16_t port, unsigned size)
{
	pend(cpu, matches(cpu, cpu->dbg_io, port, size, 1u << DR_RW_IO));
}

/* Instruction breakpoints compare the first byte's linear address with one byte. */
void debug_check_insn(struct cpu *cpu)
{
	gva_t lin =
		cpu->mode == INSN_MODE_64 ? cpu->rip : (uint32_t)(cpu->seg[X86_CS].base + cpu->rip);
	uint32_t hit = matches(cpu, cpu->dbg_exec, lin, 1, 1u << DR_RW_EXEC);

	if (!hit)
		return;
	debug_set_dr6(cpu, hit);
	cpu_fault_plain(cpu, X86_EXC_DB);
}

/* GD is cleared on delivery (exc.c), so that the handler can reach the registers.  This is a fault
 * like most others and pushes RF=1; instruction breakpoints and traps push RF as it is. */
void debug_check_gd(struct cpu *cpu)
{
	if (!(cpu->dr7 & DR7_GD))
		return;
	debug_set_dr6(cpu, DR6_BD);
	cpu->rflags |= RFLAGS_RF;
	cpu_fault_plain(cpu, X86_EXC_DB);
}

/* B0-B3 tell about this exception; the other bits stay until software clears them. */
void debug_set_dr6(struct cpu *cpu, uint64_t bits)
{
	cpu->dr6 = (cpu->dr6 & ~DR6_BMASK) | bits | DR6_FIXED;
}
