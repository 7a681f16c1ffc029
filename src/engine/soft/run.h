/* engine/soft/run.h - the loop that runs one vCPU.  Called by soft.c on the vCPU's own thread. */
#pragma once

#include "engine/soft/cpu.h"
#include "engine/soft/debug.h"

/* Until something asks to leave.  cpu->exit_info is filled for DEBUG and ERROR. */
enum engine_exit run_cpu(struct cpu *cpu);

/* Is there anything to do before the next instruction but to run it? */
static inline bool run_wants_attention(const struct cpu *cpu)
{
	uint32_t ev = atomic_load_explicit(&cpu->events, memory_order_relaxed);

	if (!(cpu->rflags & RFLAGS_IF))
		ev &= ~(uint32_t)CPU_EV_INTR;
	return ev || cpu->int_shadow || cpu->halted || debug_careful(cpu);
}
