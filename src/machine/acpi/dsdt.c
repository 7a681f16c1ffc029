/* machine/acpi/dsdt.c - the body of the DSDT.
 *
 *  \_S5            soft-off
 *  \_PIC           the system says whether it uses the I/O APIC
 *  \_SB.Cxxx       processors
 *  \_SB.BRD        addresses that belong to the board
 *  \_SB.HPET
 *  \_SB.PCI0       the root complex: windows, interrupt routing, _OSC
 *          .ISA    RTC, keyboard, COM ports */
#include "machine/acpi/dsdt.h"

#include "bus/pci.h"
#include "machine/acpi/pm.h"
#include "machine/memmap.h"
#include "machine/timer/hpet.h"

#include <stdio.h>

static void dsdt_sleep(struct aml *a)
{
	aml_mark p;

	aml_name(a, "\\_S5");
	p = aml_package(a, 4);
	aml_int(a, ACPI_SLP_TYP_S5); /* PM1a */
	aml_int(a, ACPI_SLP_TYP_S5); /* PM1b, of which there is none */
	aml_int(a, 0);
	aml_int(a, 0);
	aml_end(a, p);
}

static void dsdt_pic(struct aml *a)
{
	aml_mark m;

	aml_name_int(a, "\\PICF", 0);
	m = aml_method(a, "\\_PIC", 1, false);
	aml_byte(a, AML_STORE);
	aml_byte(a, AML_ARG0);
	aml_name_string(a, "PICF");
	aml_end(a, m);
}

static void dsdt_cpus(struct aml *a, unsigned nr_cpus)
{
	for (unsigned i = 0; i < nr_cpus; i++) {
		char name[8];
		aml_mark d;

		snprintf(name, sizeof(name), "C%03X", i & 0xFFF);
		d = aml_device(a, name);
		aml_name_string_value(a, "_HID", "ACPI0007");
		aml_name_int(a, "_UID", i);
		aml_end(a, d);
	}
}

/* Linux uses the ECAM of MCFG only when some device here claims it. */
static void dsdt_board(struct aml *a)
{
	aml_mark d = aml_device(a, "BRD");
	struct aml_resources r;

	aml_name_eisa_id(a, "_HID", "PNP0C02");
	aml_name_int(a, "_UID", 0);
	r = aml_resources(a, "_CRS");
	aml_res_memory32(a, MEMMAP_ECAM, MEMMAP_ECAM_SIZE, true);
	aml_res_memory32(a, MEMMAP_LAPIC, MEMMAP_LAPIC_SIZE, true);
	aml_res_io(a, PORT_SYSTEM_B, 1);
	aml_res_io(a, PORT_ELCR, 2);
	aml_res_io(a, PORT_PM, PORT_PM_SIZE);
	aml_resources_end(a, r);
	aml_end(a, d);
}

static void dsdt_hpet(struct aml *a)
{
	aml_mark d = aml_device(a, "HPET");
	struct aml_resources r;

	aml_name_eisa_id(a, "_HID", "PNP0103");
	aml_name_int(a, "_UID", 0);
	r = aml_resources(a, "_CRS");
	aml_res_memory32(a, MEMMAP_HPET, MEMMAP_HPET_SIZE, false);
	aml_resources_end(a, r);
	aml_end(a, d);
}

/* ---- PCI ---- */

static void dsdt_pci_windows(struct aml *a, const struct acpi_config *cfg)
{
	struct aml_resources r = aml_resources(a, "_CRS");

	aml_res_bus_window(a, 0, MEMMAP_ECAM_SIZE / MiB - 1);
	aml_res_io(a, PORT_PCI_ADDRESS, 8);
	aml_res_io_window(a, 0, PORT_PCI_ADDRESS - 1);
	aml_res_io_window(a, PORT_PCI_ADDRESS + 8, 0xFFFF);
	aml_res_memory32_window(a, MEMMAP_VGA, MEMMAP_VGA_END - MEMMAP_VGA);
	aml_res_memory32_window(a, MEMMAP_PCI32, MEMMAP_PCI32_END - MEMMAP_PCI32);
	aml_res_memory64_window(a, cfg->pci64_base, cfg->pci64_size);
	aml_resources_end(a, r);
}

/* With the 8259 pair the PIRQs arrive where firmware has routed them: see pci_assign_resources. */
static unsigned dsdt_pirq_to_isa(unsigned pirq)
{
	return pirq & 2 ? 11 : 10;
}

/* One routing table: { slot, pin, 0, interrupt } for each pin of each slot. */
static void dsdt_prt_table(struct aml *a, const char *name, bool apic)
{
	aml_mark table, entry;

	aml_name(a, name);
	table = aml_package(a, 32 * 4);
	for (unsigned i = 0; i < 32 * 4; i++) {
		unsigned slot = i / 4, pin = i % 4, pirq = pci_pirq_of(slot, pin + 1);

		entry = aml_package(a, 4);
		aml_int(a, slot << 16 | 0xFFFF);
		aml_int(a, pin);
		aml_int(a, 0);
		aml_int(a, apic ? GSI_PCI_FIRST + pirq : dsdt_pirq_to_isa(pirq));
		aml_end(a, entry);
	}
	aml_end(a, table);
}

static void dsdt_prt(struct aml *a)
{
	aml_mark m, i;

	dsdt_prt_table(a, "PRTP", false);
	dsdt_prt_table(a, "PRTA", true);
	m = aml_method(a, "_PRT", 0, false);
	i = aml_if(a);
	aml_name_string(a, "PICF");
	aml_byte(a, AML_RETURN);
	aml_name_string(a, "PRTA");
	aml_end(a, i);
	aml_byte(a, AML_RETURN);
	aml_name_string(a, "PRTP");
	aml_end(a, m);
}

enum { OSC_BAD_UUID = 4, OSC_BAD_REVISION = 8, OSC_MASKED = 16 };
enum { OSC_PCIE_CAPABILITY = 16 }; /* the one control we hand over; no AER, PME or hot-plug */

/* CDWn |= bits */
static void dsdt_or_into(struct aml *a, const char *name, unsigned bits)
{
	aml_byte(a, AML_OR);
	aml_name_string(a, name);
	aml_int(a, bits);
	aml_name_string(a, name);
}

static void dsdt_osc_grant(struct aml *a)
{
	aml_mark i;

	aml_create_dword_field(a, 3, 8, "CDW3");
	aml_byte(a, AML_AND);
	aml_name_string(a, "CDW3");
	aml_int(a, OSC_PCIE_CAPABILITY);
	aml_byte(a, AML_LOCAL0);

	i = aml_if(a); /* Arg1 != 1 */
	aml_byte(a, AML_LNOT);
	aml_byte(a, AML_LEQUAL);
	aml_byte(a, AML_ARG0 + 1);
	aml_int(a, 1);
	dsdt_or_into(a, "CDW1", OSC_BAD_REVISION);
	aml_end(a, i);

	i = aml_if(a); /* CDW3 != Local0 */
	aml_byte(a, AML_LNOT);
	aml_byte(a, AML_LEQUAL);
	aml_name_string(a, "CDW3");
	aml_byte(a, AML_LOCAL0);
	dsdt_or_into(a, "CDW1", OSC_MASKED);
	aml_end(a, i);

	aml_byte(a, AML_STORE);
	aml_byte(a, AML_LOCAL0);
	aml_name_string(a, "CDW3");
}

/* PCI Firmware 3.2 4.5: 33DB4D5B-1FF7-401C-9657-7441C03DD766 */
static void dsdt_osc(struct aml *a)
{
	static const uint8_t uuid[16] = {0x5B, 0x4D, 0xDB, 0x33, 0xF7, 0x1F, 0x1C, 0x40,
					 0x96, 0x57, 0x74, 0x41, 0xC0, 0x3D, 0xD7, 0x66};
	aml_mark m = aml_method(a, "_OSC", 4, true), i;

	aml_create_dword_field(a, 3, 0, "CDW1");
	i = aml_if(a);
	aml_byte(a, AML_LEQUAL);
	aml_byte(a, AML_ARG0);
	aml_buffer(a, uuid, sizeof(uuid));
	dsdt_osc_grant(a);
	aml_end(a, i);
	i = aml_else(a);
	dsdt_or_into(a, "CDW1", OSC_BAD_UUID);
	aml_end(a, i);
	aml_byte(a, AML_RETURN);
	aml_byte(a, AML_ARG0 + 3);
	aml_end(a, m);
}

/* ---- behind the ISA bridge ---- */

static void dsdt_rtc(struct aml *a)
{
	aml_mark d = aml_device(a, "RTC");
	struct aml_resources r;

	aml_name_eisa_id(a, "_HID", "PNP0B00");
	r = aml_resources(a, "_CRS");
	aml_res_io(a, PORT_RTC, 2);
	aml_res_irq(a, IRQ_RTC);
	aml_resources_end(a, r);
	aml_end(a, d);
}

static void dsdt_keyboard(struct aml *a)
{
	aml_mark d = aml_device(a, "KBD");
	struct aml_resources r;

	aml_name_eisa_id(a, "_HID", "PNP0303");
	r = aml_resources(a, "_CRS");
	aml_res_io(a, PORT_PS2_DATA, 1);
	aml_res_io(a, PORT_PS2_COMMAND, 1);
	aml_res_irq(a, IRQ_KEYBOARD);
	aml_resources_end(a, r);
	aml_end(a, d);
}

static void dsdt_com(struct aml *a, unsigned n)
{
	static const uint16_t port[4] = {PORT_COM1, PORT_COM2, PORT_COM3, PORT_COM4};
	char name[] = "COM1";
	struct aml_resources r;
	aml_mark d;

	name[3] += n;
	d = aml_device(a, name);
	aml_name_eisa_id(a, "_HID", "PNP0501");
	aml_name_int(a, "_UID", n + 1);
	r = aml_resources(a, "_CRS");
	aml_res_io(a, port[n], 8);
	aml_res_irq(a, n & 1 ? IRQ_COM2 : IRQ_COM1);
	aml_resources_end(a, r);
	aml_end(a, d);
}

static void dsdt_isa(struct aml *a, const struct acpi_config *cfg)
{
	aml_mark d = aml_device(a, "ISA");

	aml_name_int(a, "_ADR", 0x1F << 16);
	if (!cfg->no_timers)
		dsdt_rtc(a);
	if (cfg->ps2)
		dsdt_keyboard(a);
	for (unsigned n = 0; n < ARRAY_SIZE(cfg->com); n++)
		if (cfg->com[n])
			dsdt_com(a, n);
	aml_end(a, d);
}

static void dsdt_pci(struct aml *a, const struct acpi_config *cfg)
{
	aml_mark d = aml_device(a, "PCI0");

	aml_name_eisa_id(a, "_HID", "PNP0A08");
	aml_name_eisa_id(a, "_CID", "PNP0A03");
	aml_name_int(a, "_UID", 0);
	aml_name_int(a, "_SEG", 0);
	aml_name_int(a, "_BBN", 0);
	dsdt_pci_windows(a, cfg);
	dsdt_prt(a);
	dsdt_osc(a);
	dsdt_isa(a, cfg);
	aml_end(a, d);
}

void dsdt_write(struct aml *a, const struct acpi_config *cfg)
{
	aml_mark sb;

	dsdt_sleep(a);
	dsdt_pic(a);
	sb = aml_scope(a, "\\_SB");
	dsdt_cpus(a, cfg->nr_cpus);
	dsdt_board(a);
	if (!cfg->no_timers)
		dsdt_hpet(a);
	dsdt_pci(a, cfg);
	aml_end(a, sb);
}
