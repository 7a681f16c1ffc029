/* engine/soft/run.h - the loop that runs one vCPU.  Called by soft.c on the vCPU's own thread. */
#pragma once

#include "engine/soft/cpu.h"

/* Until something asks to leave.  cpu->exit_info is filled for DEBUG and ERROR. */
enum engine_exit run_cpu(struct cpu *cpu);
