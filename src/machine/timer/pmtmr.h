/* machine/timer/pmtmr.h - the ACPI power management timer: a free-running 32-bit counter.
 * Pure arithmetic over the board's clock; acpi/pm.c owns the register and its interrupt.
 * Spec: ACPI "Power Management Timer". */
#pragma once

#include "machine/timer/vclock.h"

#define PMTMR_HZ 3579545u

static inline uint32_t pmtmr_count(uint64_t now_ns)
{
	return (uint32_t)ns_to_ticks(now_ns, PMTMR_HZ);
}

/* When the top bit next changes, which sets TMR_STS. */
static inline uint64_t pmtmr_next_carry_ns(uint64_t now_ns)
{
	return ticks_to_ns((ns_to_ticks(now_ns, PMTMR_HZ) / BIT(31) + 1) * BIT(31), PMTMR_HZ);
}
