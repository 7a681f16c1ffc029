/* machine/memmap.h - every guest-physical address and port of the board, in one table.
 *
 * Constants only.  Whoever needs an address takes it from here: the parts, the ACPI tables, the
 * e820 map and the tests.
 *
 *   0000_0000  RAM                       below 4 GiB: at most MEMMAP_LOW_RAM_MAX bytes
 *   0000_0400    BIOS data area, a part of that RAM, as the 1 KiB at 0009_FC00 is
 *   000A_0000    VGA window, no RAM
 *   000C_0000    RAM: option ROM space, free
 *   000E_0000    RAM: ACPI and SMBIOS tables, reserved in e820
 *   0010_0000    RAM
 *   B000_0000  PCIe configuration space (ECAM), 256 buses
 *   C000_0000  PCI memory window, 32-bit BARs
 *   FEC0_0000  I/O APIC
 *   FED0_0000  HPET
 *   FEE0_0000  local APIC, MSI
 *   1_0000_0000  the rest of RAM
 *   after RAM  PCI memory window, 64-bit BARs (computed: struct memmap_high in machine.h) */
#pragma once

#include "base/types.h"

// clang-format off
#define MEMMAP_LOW_RAM_MAX	0x80000000ull
#define MEMMAP_BDA		0x00000400ull
#define MEMMAP_EBDA		0x0009FC00ull	/* 1 KiB */
#define MEMMAP_VGA		0x000A0000ull
#define MEMMAP_VGA_END		0x000C0000ull
#define MEMMAP_TABLES		0x000E0000ull	/* RSDP is looked for from here */
#define MEMMAP_SMBIOS		0x000F0000ull	/* _SM3_ is looked for from here */
#define MEMMAP_TABLES_END	0x00100000ull
#define MEMMAP_ECAM		0xB0000000ull
#define MEMMAP_ECAM_SIZE	(256 * MiB)
#define MEMMAP_PCI32		0xC0000000ull
#define MEMMAP_PCI32_END	0xFEC00000ull
#define MEMMAP_IOAPIC		0xFEC00000ull
#define MEMMAP_IOAPIC_SIZE	0x1000ull
#define MEMMAP_HPET		0xFED00000ull
#define MEMMAP_HPET_SIZE	0x400ull
#define MEMMAP_LAPIC		0xFEE00000ull
#define MEMMAP_LAPIC_SIZE	0x1000ull
#define MEMMAP_HIGH_RAM		0x100000000ull

#define PORT_PIC0		0x0020
#define PORT_PIT		0x0040
#define PORT_PS2_DATA		0x0060
#define PORT_SYSTEM_B		0x0061
#define PORT_PS2_COMMAND	0x0064
#define PORT_RTC		0x0070
#define PORT_POST		0x0080
#define PORT_PORT92		0x0092	/* A20 and fast reset: ps2/ */
#define PORT_PIC1		0x00A0
#define PORT_COM4		0x02E8
#define PORT_COM2		0x02F8
#define PORT_COM3		0x03E8
#define PORT_COM1		0x03F8
#define PORT_ELCR		0x04D0
#define PORT_FW_CFG		0x0510
#define PORT_FW_CFG_SIZE	0x000C
#define PORT_PM			0x0600	/* ACPI fixed hardware, the next five lines are offsets */
#define PORT_PM_SIZE		0x0040
#define PM_OFF_EVT		0x00
#define PM_OFF_CNT		0x04
#define PM_OFF_TMR		0x08
#define PM_OFF_GPE0		0x20
#define PORT_PCI_ADDRESS	0x0CF8
#define PORT_RESET		0x0CF9
#define PORT_PCI_DATA		0x0CFC
// clang-format on

/* Interrupts.  GSI = I/O APIC pin.  ISA IRQ n is pin n, but IRQ 0 is pin 2. */
enum {
	IRQ_PIT = 0,
	IRQ_KEYBOARD = 1,
	IRQ_COM2 = 3, /* and COM4 */
	IRQ_COM1 = 4, /* and COM3 */
	IRQ_RTC = 8,
	IRQ_SCI = 9,
	IRQ_MOUSE = 12,
	NR_ISA_IRQS = 16,

	GSI_PIT = 2,
	GSI_PCI_FIRST = 16, /* eight lines, INTA#..INTD# of the slots swizzled over them */
	NR_PCI_GSIS = 8,
	NR_GSIS = 24,
};
