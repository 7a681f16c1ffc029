/* machine/acpi/pm.h - ACPI fixed hardware: PM1a event and control blocks, PM timer, GPE block 0.
 *
 * The board is always in ACPI mode (no SMI command port): SCI_EN reads 1.  Registers are accessed
 * by vCPUs, the power button comes from any thread; one lock, held while the SCI line is set and
 * not while power_off is called.  Spec: ACPI 6.4 "ACPI Hardware Specification". */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct acpi_pm;
struct bus;
struct error;
struct state;
struct vclock;

/* SLP_TYP of S5, as the DSDT's \_S5 says it. */
#define ACPI_SLP_TYP_S5 5

struct acpi_pm_config {
	struct bus *bus;
	struct vclock *clock;
	struct irq_line sci;
	void (*power_off)(void *opaque);
	void *opaque;
};

int acpi_pm_create(struct acpi_pm **out, const struct acpi_pm_config *cfg, struct error *err);
void acpi_pm_destroy(struct acpi_pm *pm);
void acpi_pm_reset(struct acpi_pm *pm);
void acpi_pm_state(struct state *s, struct acpi_pm *pm);

void acpi_pm_power_button(struct acpi_pm *pm);
