/* machine/acpi/tables.h - the ACPI tables as one image to be placed in guest memory.
 * Pure function of the configuration; no state.  Spec: ACPI 6.4 "ACPI Software Programming Model",
 * PCI Firmware 3.2 (MCFG), IA-PC HPET 1.0a. */
#pragma once

#include "base/types.h"

struct error;

struct acpi_config {
	unsigned nr_cpus;
	bool com[4];
	bool ps2;
	bool no_timers;                  /* neither HPET nor RTC */
	uint64_t pci64_base, pci64_size; /* the window above RAM, size 0 = none */
};

/* Fill buf, which will be at guest-physical `gpa` (64-byte aligned); the RSDP comes first.
 * Returns bytes used, or -ENOSPC with a sentence. */
int acpi_build(uint8_t *buf, size_t cap, uint32_t gpa, const struct acpi_config *cfg,
	       struct error *err);
