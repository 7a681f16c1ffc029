/* engine/soft/debug.h - DR0-DR3 breakpoints, DR6 and DR7, and how others ask about them cheaply.
 *
 * What the run loop, access.c, io.c and system.c have to do:
 *
 *   system.c   After MOV to DR0-3 or DR7, and after MOV to CR4 when DE changed: debug_update().
 *              Before any MOV to or from DR: debug_check_gd().
 *   soft.c     After loading a whole state: debug_update().
 *   mmu.c      No rd or wr tag may exist for a page for which debug_page_armed() is true, so that
 *              every access to it goes the slow way.  debug_update() purges the old tags itself.
 *   access.c   On the slow way, when cpu->dbg_data != 0 and after the access is known not to
 *              fault: debug_note_data().
 *   io.c       When cpu->dbg_io != 0: debug_note_io().
 *   string.c   An iteration that leaves cpu->dbg_pending != 0 ends (the trap comes between
 *              iterations, with RF=1 in the pushed image when more iterations follow).
 *   run.c      While debug_careful() holds, executes one instruction at a time:
 *                - before it, with RFLAGS.RF = 0 and cpu->dbg_exec != 0: debug_check_insn();
 *                - cpu->dbg_no_step = false, and remember whether TF was set;
 *                - execute;
 *                - RF is cleared unless the instruction was IRET (or switched tasks): those two
 *                  set RF on purpose, and debug_careful() is then true for the next one;
 *                - bits = cpu->dbg_pending | (TF was set && !cpu->dbg_no_step ? DR6_BS : 0).
 *                  If bits != 0 and the instruction did not just load SS by MOV or POP:
 *                  dbg_pending = 0, debug_set_dr6(bits), deliver vector 1 as a trap (rip stays
 *                  at the next instruction).  After MOV SS/POP SS the data breakpoints stay
 *                  pending over one more instruction and BS is dropped (SDM 3A "Masking
 *                  Exceptions and Interrupts When Switching Stacks").
 *              Outside careful mode dbg_pending can still become set (data breakpoints, the T bit
 *              of a task switch): the block is stopped then.
 *
 * Instruction breakpoints are part of mode_key: mode.c ors in debug_mode_key(), so that blocks
 * decoded without any armed are not entered while one is.
 *
 * SDM 3B "Debug Registers", AMD APM 2 "Software-Debug Resources". */
#pragma once

#include "engine/soft/cpu.h"

#define DR6_B(n)     BIT(n)
#define DR6_BMASK    0xfull
#define DR6_BD       BIT(13)
#define DR6_BS       BIT(14)
#define DR6_BT       BIT(15)
#define DR6_FIXED    0xffff0ff0ull /* bits that read as one */
#define DR6_WRITABLE 0xe00full
#define DR7_WRITABLE 0xffff23ffull

#define DR7_ENABLED(dr7, n) (((dr7) >> (2 * (n))) & 3)
#define DR7_RW(dr7, n)      (((dr7) >> (16 + 4 * (n))) & 3)
#define DR7_LEN(dr7, n)     (((dr7) >> (18 + 4 * (n))) & 3)
#define DR7_LOCAL           0x155ull /* L0-L3 and LE */
#define DR7_GD              BIT(13)
#define DR7_FIXED           BIT(10)

#define DEBUG_MODE_KEY BIT(31) /* in cpu->mode_key */

void debug_update(struct cpu *cpu);
bool debug_page_armed_slow(const struct cpu *cpu, gva_t lin);
void debug_note_data(struct cpu *cpu, gva_t lin, unsigned size, bool write);
void debug_note_io(struct cpu *cpu, uint16_t port, unsigned size);
void debug_check_insn(struct cpu *cpu); /* faults with #DB when a breakpoint is at CS:RIP */
void debug_check_gd(struct cpu *cpu);   /* faults with #DB when DR7.GD is set */
void debug_set_dr6(struct cpu *cpu, uint64_t bits);

static inline uint32_t debug_mode_key(const struct cpu *cpu)
{
	return cpu->dbg_exec ? DEBUG_MODE_KEY : 0;
}

static inline bool debug_page_armed(const struct cpu *cpu, gva_t lin)
{
	return unlikely(cpu->dbg_data) && debug_page_armed_slow(cpu, lin);
}

/* Something about every single instruction has to be looked at. */
static inline bool debug_careful(const struct cpu *cpu)
{
	return (cpu->rflags & (RFLAGS_TF | RFLAGS_RF)) || cpu->dbg_exec || cpu->dbg_pending;
}
