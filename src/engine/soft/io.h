/* engine/soft/io.h - port accesses of exec functions, with the checks that come before them. */
#pragma once

#include "engine/soft/cpu.h"

/* #GP(0) unless CPL, IOPL and the TSS allow [port, port+size). */
void io_check(struct cpu *cpu, uint16_t port, unsigned size);
/* The access itself, by the machine. */
uint32_t io_read(struct cpu *cpu, uint16_t port, unsigned size);
void io_write(struct cpu *cpu, uint16_t port, unsigned size, uint32_t v);
