/* engine/soft/flags_sys.h - who may change which bit of RFLAGS.
 *
 * For flags_sys.c, far.c and syscall.c.  None of these faults except flags_check_vif.
 * SDM 2 POPF and IRET, SDM 3B "Virtual-8086 Mode Extensions". */
#pragma once

#include "engine/soft/cpu.h"

#define FLAGS_ALL                                                                                  \
	(RFLAGS_ARITH | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT | RFLAGS_RF |  \
	 RFLAGS_VM | RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID)

/* Bits any program may change with an image of that many bytes. */
static inline uint64_t flags_user_mask(unsigned bytes)
{
	uint64_t mask = RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT;

	return bytes == 2 ? mask : mask | RFLAGS_AC | RFLAGS_ID;
}

/* Take the bits of mask from v.  The caller runs cpu_mode_update when VM or AC may change. */
static inline void flags_write(struct cpu *cpu, uint64_t v, uint64_t mask)
{
	cpu_set_rflags(cpu, (cpu_rflags(cpu) & ~mask) | (v & mask));
}

/* Virtual-8086 mode with VME and IOPL < 3: a 16-bit image whose IF is VIF and whose IOPL reads 3.
 */
uint64_t flags_vif_image(const struct cpu *cpu);
void flags_check_vif(struct cpu *cpu, uint64_t image); /* #GP(0): TF, or IF while VIP is set */
void flags_write_vif(struct cpu *cpu, uint64_t image);
