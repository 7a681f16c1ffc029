/* machine/pc.h - the board's parts, for the files of machine/ only; see machine.h. */
#pragma once

#include "bus/pci.h"
#include "machine/machine.h"

#include <stdatomic.h>

struct acpi_pm;
struct apic_bus;
struct bus;
struct fw_cfg;
struct gsi;
struct hpet;
struct ioapic;
struct kvm_pv;
struct lapic;
struct pic;
struct pit;
struct rtc;
struct vclock;

/* What an engine gets as opaque: one vCPU as the board sees it. */
struct machine_cpu {
	struct machine *machine;
	unsigned index;
	struct lapic *lapic;
};

struct machine {
	struct machine_config cfg;
	struct machine_legacy legacy;
	uint64_t below_4g, above_4g; /* bytes of address space with RAM from 0 and from 4 GiB */
	struct pci_window pci64;

	struct vclock *clock;
	struct bus *bus;
	struct apic_bus *apics;
	struct ioapic *ioapic;
	struct pic *pic;
	struct gsi *gsi;
	struct pci_host *pci;
	struct pit *pit;
	struct rtc *rtc;
	struct hpet *hpet;
	struct acpi_pm *pm;
	struct kvm_pv *pv;
	struct fw_cfg *fw_cfg;

	/* What the engine keeps of the interrupt chips: irqchip/remote.h.  NULL until
	 * machine_connect. */
	const struct engine *engine;
	struct engine_vm *evm;
	enum engine_chips chips;
	bool remote_paused;

	/* IRQ 0 and 8 belong to PIT and RTC, or to the HPET while hpet_legacy. */
	struct irq_line pit_irq, rtc_irq;
	atomic_bool hpet_legacy;

	struct machine_cpu cpu[];
};

/* cpuid.c: what of CPUID belongs to the board. */
void machine_cpuid(struct machine_cpu *c, uint32_t leaf, uint32_t subleaf, uint32_t regs[4]);
