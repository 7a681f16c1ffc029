/* machine/bios_area.h - what a PC's firmware leaves behind where every PC has it.
 *
 * The board has no BIOS, yet systems look at its places: the data area at 0x400 says how much low
 * memory there is (Xen) and where the serial ports are (DOS, GNU Mach); start-up code in real mode
 * calls its services; a jump to FFFF:0000 restarts the machine.  So there is a data area, every
 * interrupt vector leads to a handler that answers "not supported", and the reset entry resets.
 *
 * Called before vCPUs run.  Spec: IBM PC/AT Technical Reference, "BIOS data area". */
#pragma once

#include "base/types.h"

struct mem;

struct bios_area_config {
	uint16_t com[4]; /* ports; 0 = none */
	bool ps2;
};

/* RAM must be there, also below 1 MiB. */
void bios_area_write(struct mem *mem, const struct bios_area_config *cfg);
