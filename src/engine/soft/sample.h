/* engine/soft/sample.h - where a vCPU's time goes, by looking at it once in a millisecond of its
 * own CPU time (engine_stats.samples).
 *
 * For engine_vm_config.sample.  The look is a signal on the vCPU's thread, whose handler sees by
 * RIP whether translated code runs and by cpu->doing and cpu->in what else does; so nothing is paid
 * between two looks.  A host that grants no timer means no samples, not an error. */
#pragma once

#include "engine/soft/cpu.h"

/* The thread that runs the CPU, before it does. */
void sample_attach(struct cpu *cpu);
/* Any thread, when the CPU will run no more. */
void sample_detach(struct cpu *cpu);
