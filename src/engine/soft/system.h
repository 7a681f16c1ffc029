/* engine/soft/system.h - rules about control registers and MSRs that loading a state needs too.
 *
 * For system.c, msr.c and soft.c.  vCPU thread, or any while the CPU is known not to run. */
#pragma once

#include "engine/soft/cpu.h"

uint64_t cpu_cr4_allowed(const struct cpu_model *m);  /* bits CR4 can have */
uint64_t cpu_efer_allowed(const struct cpu_model *m); /* bits EFER can have; LMA included */

/* One CPUID answer with everybody's corrections; regs: eax ebx ecx edx.  Calls the machine. */
void cpu_cpuid(struct cpu *cpu, uint32_t leaf, uint32_t sub, uint32_t regs[4]);

/* RDMSR and WRMSR after the privilege check.  False: #GP. */
bool msr_read(struct cpu *cpu, uint32_t index, uint64_t *v);
bool msr_write(struct cpu *cpu, uint32_t index, uint64_t v);
