/* machine/acpi/dsdt.h - the body of the DSDT: what cannot be found by probing.
 * Pure function; spec: ACPI 6.4, PCI Firmware 3.2 (_OSC). */
#pragma once

#include "machine/acpi/aml.h"
#include "machine/acpi/tables.h"

void dsdt_write(struct aml *a, const struct acpi_config *cfg);
