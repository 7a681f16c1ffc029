/* machine/machine.h - the board: what vm/ builds a guest on.
 *
 * Order: machine_create (adds RAM to mem, builds chips and the PCI host), attach devices through
 * the accessors, machine_finish (gives BARs addresses, writes ACPI and SMBIOS tables),
 * machine_connect, create the engine's CPUs with machine_cpu_ops and machine_cpu(m, n),
 * machine_start_chips, boot, run.
 *
 * Threads: create, finish, reset, state, pause, resume and destroy by the VM's event-loop thread
 * with all vCPUs outside the engine.  machine_cpu_ops run on vCPU threads.  The rest: any thread.
 */
#pragma once

#include "base/types.h"
#include "bus/irq.h"
#include "engine/engine.h"

struct bus;
struct error;
struct evloop;
struct fw_cfg;
struct machine;
struct mem;
struct pci_host;
struct state;
struct vclock;

/* What the board asks of the VM.  Any thread, chip locks may be held: only flag, kick and post. */
struct machine_ops {
	void (*intr)(void *opaque, unsigned cpu, bool level); /* INTR line of the CPU */
	void (*nmi)(void *opaque, unsigned cpu);
	void (*init)(void *opaque, unsigned cpu);
	void (*sipi)(void *opaque, unsigned cpu, uint8_t vector);
	void (*power_off)(void *opaque);
	void (*reset)(void *opaque);
	uint64_t (*cpu_tsc)(void *opaque, unsigned cpu);
	uint64_t (*cpu_tsc_to_ns)(void *opaque, unsigned cpu, uint64_t tsc); /* CLOCK_MONOTONIC */
	/* The engine's CPU, once there is one; for chips that the engine keeps. */
	struct engine_cpu *(*engine_cpu)(void *opaque, unsigned cpu);
	/* Optional: make the CPU leave HLT though nothing is pending.  With it guests are offered
	 * waiting spinlocks (KVM_FEATURE_PV_UNHALT). */
	void (*wake)(void *opaque, unsigned cpu);
};

#define MACHINE_MAX_CPUS 288

struct machine_config {
	unsigned nr_cpus;
	uint64_t memory; /* bytes, a multiple of 1 MiB, at least 2 MiB */
	struct mem *mem;
	struct evloop *loop; /* timers; NULL: a manual clock (machine_clock), for tests */
	const struct machine_ops *ops;
	void *opaque;
	uint64_t tsc_khz;   /* 0: given later by machine_set_tsc_khz */
	unsigned phys_bits; /* of the CPU model */

	/* Optional from here. */
	bool micro;    /* no PIT, RTC, HPET, fw_cfg, SMBIOS: for a Linux that is booted directly */
	bool realtime; /* a vCPU never waits long for a host CPU: guests may then spin */
	uint8_t uuid[16]; /* for SMBIOS, in its byte order; all zero = none */
};

int machine_create(struct machine **out, const struct machine_config *cfg, struct error *err);
void machine_destroy(struct machine *m);
void machine_set_tsc_khz(struct machine *m, uint64_t khz); /* before any vCPU runs */

/* An engine may keep interrupt chips and the paravirtual clock itself (engine.h).  connect: after
 * engine.vm_create, before the first cpu_create; and start_chips after the last, and after
 * machine_reset, to give the engine's chips their state.  connect with NULL: the engine is about
 * to go. */
void machine_connect(struct machine *m, const struct engine *e, struct engine_vm *evm);
int machine_start_chips(struct machine *m, struct error *err);

struct bus *machine_bus(struct machine *m);
struct pci_host *machine_pci(struct machine *m);
/* IRQ 0..15, on 8259 and I/O APIC.  Each call makes a new source, ORed with others on the wire. */
struct irq_line machine_isa_irq(struct machine *m, unsigned n);
struct irq_line machine_gsi(struct machine *m, unsigned n); /* I/O APIC pin 16..23 */
struct msi_sink machine_msi(struct machine *m);
struct vclock *machine_clock(struct machine *m);
struct fw_cfg *machine_fw_cfg(struct machine *m); /* to add items to, while building */

/* For the DSDT: which of these a guest will find. */
struct machine_legacy {
	bool com[4], ps2;
};

struct machine_boot_info {
	gpa_t rsdp;
	struct machine_e820 {
		gpa_t gpa;
		uint64_t size;
		uint32_t type; /* 1 RAM, 2 reserved, 3 ACPI tables, 4 ACPI NVS */
	} e820[16];
	unsigned nr_e820;
};
int machine_finish(struct machine *m, const struct machine_legacy *legacy, struct error *err);
/* (Re)writes the tables into RAM, as firmware does at power-on, and says where things are. */
int machine_boot_info(struct machine *m, struct machine_boot_info *info, struct error *err);

extern const struct engine_cpu_ops machine_cpu_ops;
void *machine_cpu(struct machine *m, unsigned cpu); /* the opaque for engine_cpu_create */

void machine_reset(struct machine *m); /* every chip and PCI device to power-on state */
void machine_power_button(struct machine *m);
void machine_nmi(struct machine *m);   /* the NMI button: LINT1 of every CPU */
void machine_pause(struct machine *m); /* the board's clock stands */
void machine_resume(struct machine *m);
/* The clock goes on from a moment of CLOCK_MONOTONIC that has been: when the CPUs' TSCs did. */
void machine_resume_at(struct machine *m, uint64_t mono_ns);
uint64_t machine_stood_ns(const struct machine *m); /* host's time since machine_pause */
void machine_state(struct state *s, void *machine);
