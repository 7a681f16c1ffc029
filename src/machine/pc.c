/* machine/pc.c - the board: parts, wires, and what a firmware would have done.
 *
 *   devices ──irq_line──> gsi ──> 8259 pair ──LINT0──┐
 *      │                   └────> I/O APIC ──MSI──> LAPICs ──intr──> vCPU
 *      └──────────msi_sink──────────────────MSI──────┘
 *
 * Lock order: device -> gsi -> 8259 or I/O APIC -> LAPIC -> clock -> event loop. */
#include "machine/pc.h"

#include "base/error.h"
#include "bus/bus.h"
#include "machine/acpi/pm.h"
#include "machine/acpi/tables.h"
#include "machine/bios_area.h"
#include "machine/fw_cfg.h"
#include "machine/irqchip/apic_bus.h"
#include "machine/irqchip/gsi.h"
#include "machine/irqchip/ioapic.h"
#include "machine/irqchip/pic.h"
#include "machine/irqchip/remote.h"
#include "machine/memmap.h"
#include "machine/pv/kvm_pv.h"
#include "machine/smbios.h"
#include "machine/timer/hpet.h"
#include "machine/timer/pit.h"
#include "machine/timer/rtc.h"
#include "machine/timer/vclock.h"
#include "mem/mem.h"
#include "state/state.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* ---- from the LAPICs to the VM ---- */

static void pc_intr(void *opaque, unsigned cpu, bool level)
{
	struct machine *m = opaque;

	m->cfg.ops->intr(m->cfg.opaque, cpu, level);
}

static void pc_nmi(void *opaque, unsigned cpu)
{
	struct machine *m = opaque;

	m->cfg.ops->nmi(m->cfg.opaque, cpu);
}

static void pc_init(void *opaque, unsigned cpu)
{
	struct machine *m = opaque;

	m->cfg.ops->init(m->cfg.opaque, cpu);
}

static void pc_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
	struct machine *m = opaque;

	m->cfg.ops->sipi(m->cfg.opaque, cpu, vector);
}

static void pc_send(void *opaque, unsigned from, const struct apic_msg *msg, enum apic_shorthand to)
{
	struct machine *m = opaque;

	apic_bus_send(m->apics, from, msg, to);
}

static void pc_eoi(void *opaque, uint8_t vector)
{
	struct machine *m = opaque;

	ioapic_eoi(m->ioapic, vector);
}

static int pc_pic_ack(void *opaque)
{
	struct machine *m = opaque;

	return pic_ack(m->pic);
}

static uint64_t pc_tsc(void *opaque, unsigned cpu)
{
	struct machine *m = opaque;

	return m->cfg.ops->cpu_tsc(m->cfg.opaque, cpu);
}

static uint64_t pc_tsc_to_ns(void *opaque, unsigned cpu, uint64_t tsc)
{
	struct machine *m = opaque;

	return m->cfg.ops->cpu_tsc_to_ns(m->cfg.opaque, cpu, tsc);
}

static void pc_wake(void *opaque, unsigned cpu)
{
	struct machine *m = opaque;

	m->cfg.ops->wake(m->cfg.opaque, cpu);
}

static const struct lapic_ops pc_lapic_ops = {
	.intr = pc_intr,
	.nmi = pc_nmi,
	.init = pc_init,
	.sipi = pc_sipi,
	.send = pc_send,
	.eoi = pc_eoi,
	.pic_ack = pc_pic_ack,
	.tsc_to_mono_ns = pc_tsc_to_ns,
};

/* ---- wires of the board itself ---- */

static void pc_msi(void *opaque, uint64_t addr, uint32_t data)
{
	struct machine *m = opaque;

	if (remote_lapics(m))
		remote_msi(m, addr, data);
	else
		apic_bus_msi(m->apics, addr, data);
}

static void pc_pic_output(void *opaque, unsigned n, bool level)
{
	struct machine *m = opaque;

	if (m->chips == ENGINE_CHIPS_LAPIC) /* past the engine's LAPIC of CPU 0 */
		m->cfg.ops->intr(m->cfg.opaque, 0, level);
	else if (m->chips == ENGINE_CHIPS_NONE)
		apic_bus_lint(m->apics, 0, level);
}

/* IRQ 0 and 8 while the HPET has not taken them. */
static void pc_pit_irq(void *opaque, unsigned n, bool level)
{
	struct machine *m = opaque;

	irq_set(&m->pit_irq, level && !atomic_load(&m->hpet_legacy));
}

static void pc_rtc_irq(void *opaque, unsigned n, bool level)
{
	struct machine *m = opaque;

	irq_set(&m->rtc_irq, level && !atomic_load(&m->hpet_legacy));
}

static void pc_hpet_legacy(void *opaque, bool on)
{
	struct machine *m = opaque;

	atomic_store(&m->hpet_legacy, on);
	if (on) {
		irq_set(&m->pit_irq, false);
		irq_set(&m->rtc_irq, false);
	}
}

static void pc_power_off(void *opaque)
{
	struct machine *m = opaque;

	m->cfg.ops->power_off(m->cfg.opaque);
}

static void pc_reset_request(void *opaque)
{
	struct machine *m = opaque;

	m->cfg.ops->reset(m->cfg.opaque);
}

/* ---- memory ---- */

/* The VGA window is no RAM, and what would lie above 2 GiB continues at 4 GiB. */
static int pc_add_ram(struct machine *m, struct error *err)
{
	struct mem *mem = m->cfg.mem;
	int r;

	r = mem_add_ram(mem, 0, MEMMAP_VGA, err);
	if (r == 0)
		r = mem_add_ram(mem, MEMMAP_VGA_END, m->below_4g - MEMMAP_VGA_END, err);
	if (r == 0 && m->above_4g)
		r = mem_add_ram(mem, MEMMAP_HIGH_RAM, m->above_4g, err);
	return r;
}

/* The 64-bit window: from the first 32 GiB boundary above RAM, as much as the CPU can address, but
 * not the last quarter, which other things on real machines use. */
static struct pci_window pc_place_pci64(const struct machine *m)
{
	uint64_t base = ALIGN_UP(MEMMAP_HIGH_RAM + m->above_4g, 32 * GiB);
	uint64_t end = BIT(MIN(MAX(m->cfg.phys_bits, 36u), 46u)) / 4 * 3;

	if (base >= end)
		return (struct pci_window){0};
	return (struct pci_window){.base = base, .size = MIN(end - base, 512 * GiB)};
}

/* ---- building ---- */

static int pc_create_irqchips(struct machine *m, struct error *err)
{
	struct irq_line pic_output = {.set = pc_pic_output, .opaque = m};
	int r;

	r = apic_bus_create(&m->apics, m->cfg.nr_cpus, m->clock, m->cfg.mem, &pc_lapic_ops, m, err);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < m->cfg.nr_cpus; i++) {
		m->cpu[i] = (struct machine_cpu){m, i, apic_bus_lapic(m->apics, i)};
		lapic_set_phys_bits(m->cpu[i].lapic, m->cfg.phys_bits);
	}
	r = pic_create(&m->pic, m->bus, pic_output, err);
	if (r == 0)
		r = ioapic_create(&m->ioapic, m->bus, machine_msi(m), err);
	if (r == 0)
		r = gsi_create(&m->gsi, m->pic, m->ioapic, err);
	return r;
}

static int pc_create_hpet(struct machine *m, struct error *err)
{
	struct hpet_config cfg = {
		.bus = m->bus,
		.clock = m->clock,
		.legacy_mode = pc_hpet_legacy,
		.legacy_opaque = m,
		.msi = machine_msi(m),
	};

	cfg.legacy[0] = gsi_source_isa(m->gsi, IRQ_PIT);
	cfg.legacy[1] = gsi_source_isa(m->gsi, IRQ_RTC);
	cfg.gsi[GSI_PIT] = gsi_source(m->gsi, GSI_NONE, GSI_PIT);
	cfg.gsi[IRQ_RTC] = gsi_source(m->gsi, GSI_NONE, IRQ_RTC);
	for (unsigned n = GSI_PCI_FIRST; n < NR_GSIS; n++)
		cfg.gsi[n] = gsi_source(m->gsi, GSI_NONE, n);
	return hpet_create(&m->hpet, &cfg, err);
}

static int pc_create_timers(struct machine *m, struct error *err)
{
	struct irq_line pit = {.set = pc_pit_irq, .opaque = m};
	struct irq_line rtc = {.set = pc_rtc_irq, .opaque = m};
	struct rtc_memory memory = {.below_4g = m->below_4g, .above_4g = m->above_4g};
	int r;

	m->pit_irq = gsi_source_isa(m->gsi, IRQ_PIT);
	m->rtc_irq = gsi_source_isa(m->gsi, IRQ_RTC);
	r = pit_create(&m->pit, m->bus, m->clock, pit, err);
	if (r == 0)
		r = rtc_create(&m->rtc, m->bus, m->clock, rtc, memory, err);
	if (r == 0)
		r = pc_create_hpet(m, err);
	return r;
}

static int pc_create_pci(struct machine *m, struct error *err)
{
	struct pci_host_config cfg = {
		.bus = m->bus,
		.msi = machine_msi(m),
		.ecam_gpa = MEMMAP_ECAM,
		.ecam_buses = MEMMAP_ECAM_SIZE / MiB,
		.reset = pc_reset_request,
		.reset_opaque = m,
	};

	for (unsigned n = 0; n < NR_PCI_GSIS; n++)
		cfg.pirq[n] = gsi_source(m->gsi, GSI_NONE, GSI_PCI_FIRST + n);
	for (unsigned n = 3; n < NR_ISA_IRQS; n++)
		cfg.isa[n] = gsi_source(m->gsi, n, GSI_NONE);
	return pci_host_create(&m->pci, &cfg, err);
}

static int pc_create_acpi(struct machine *m, struct error *err)
{
	struct acpi_pm_config pm = {
		.bus = m->bus,
		.clock = m->clock,
		.sci = gsi_source_isa(m->gsi, IRQ_SCI),
		.power_off = pc_power_off,
		.opaque = m,
	};

	return acpi_pm_create(&m->pm, &pm, err);
}

static int pc_create_pv(struct machine *m, struct error *err)
{
	struct kvm_pv_config cfg = {
		.nr_cpus = m->cfg.nr_cpus,
		.mem = m->cfg.mem,
		.clock = m->clock,
		.apics = m->apics,
		.realtime = m->cfg.realtime,
		.cpu_tsc = pc_tsc,
		.cpu_tsc_to_mono_ns = pc_tsc_to_ns,
		.wake = m->cfg.ops->wake ? pc_wake : NULL,
		.opaque = m,
	};
	int r = kvm_pv_create(&m->pv, &cfg, err);

	if (r == 0)
		kvm_pv_set_tsc_khz(m->pv, m->cfg.tsc_khz);
	return r;
}

static int pc_create_fw_cfg(struct machine *m, struct error *err)
{
	const struct machine_config *c = &m->cfg;
	int r = fw_cfg_create(&m->fw_cfg, m->bus, c->mem, err);

	if (r == 0)
		r = fw_cfg_add(m->fw_cfg, FW_CFG_UUID, c->uuid, sizeof(c->uuid), err);
	if (r == 0)
		r = fw_cfg_add_u64(m->fw_cfg, FW_CFG_RAM_SIZE, c->memory, err);
	if (r == 0)
		r = fw_cfg_add_u16(m->fw_cfg, FW_CFG_NO_GRAPHIC, 1, err);
	if (r == 0)
		r = fw_cfg_add_u16(m->fw_cfg, FW_CFG_NR_CPUS, c->nr_cpus, err);
	if (r == 0)
		r = fw_cfg_add_u16(m->fw_cfg, FW_CFG_MAX_CPUS, c->nr_cpus, err);
	return r;
}

static int pc_build(struct machine *m, struct error *err)
{
	int r;

	r = vclock_create(&m->clock, m->cfg.loop, err);
	if (r == 0)
		r = pc_add_ram(m, err);
	if (r == 0)
		r = bus_create(&m->bus, err);
	if (r == 0)
		r = pc_create_irqchips(m, err);
	if (r == 0 && !m->cfg.micro)
		r = pc_create_timers(m, err);
	if (r == 0)
		r = pc_create_pci(m, err);
	if (r == 0)
		r = pc_create_acpi(m, err);
	if (r == 0)
		r = pc_create_pv(m, err);
	if (r == 0 && !m->cfg.micro)
		r = pc_create_fw_cfg(m, err);
	return r;
}

int machine_create(struct machine **out, const struct machine_config *cfg, struct error *err)
{
	struct machine *m;
	int r;

	if (cfg->nr_cpus < 1 || cfg->nr_cpus > MACHINE_MAX_CPUS)
		return err_set(err, EINVAL, "%u CPUs: this board takes 1 to %u", cfg->nr_cpus,
			       MACHINE_MAX_CPUS);
	if (cfg->memory < 2 * MiB || cfg->memory % MiB)
		return err_set(err, EINVAL, "memory must be whole MiB, and at least 2");
	m = calloc(1, sizeof(*m) + cfg->nr_cpus * sizeof(m->cpu[0]));
	if (!m)
		return err_set(err, ENOMEM, "no memory for the board");
	m->cfg = *cfg;
	m->below_4g = MIN(cfg->memory, MEMMAP_LOW_RAM_MAX);
	m->above_4g = cfg->memory - m->below_4g;
	m->pci64 = pc_place_pci64(m);
	r = pc_build(m, err);
	if (r < 0) {
		machine_destroy(m);
		return r;
	}
	*out = m;
	return 0;
}

void machine_destroy(struct machine *m)
{
	if (!m)
		return;
	if (m->clock)
		vclock_pause(m->clock);
	fw_cfg_destroy(m->fw_cfg);
	kvm_pv_destroy(m->pv);
	acpi_pm_destroy(m->pm);
	pci_host_destroy(m->pci);
	hpet_destroy(m->hpet);
	rtc_destroy(m->rtc);
	pit_destroy(m->pit);
	gsi_destroy(m->gsi);
	ioapic_destroy(m->ioapic);
	pic_destroy(m->pic);
	apic_bus_destroy(m->apics);
	if (m->bus)
		bus_destroy(m->bus);
	vclock_destroy(m->clock);
	free(m);
}

/* ---- accessors ---- */

struct bus *machine_bus(struct machine *m)
{
	return m->bus;
}

struct pci_host *machine_pci(struct machine *m)
{
	return m->pci;
}

struct vclock *machine_clock(struct machine *m)
{
	return m->clock;
}

struct irq_line machine_isa_irq(struct machine *m, unsigned n)
{
	return gsi_source_isa(m->gsi, n);
}

struct irq_line machine_gsi(struct machine *m, unsigned n)
{
	return gsi_source(m->gsi, GSI_NONE, n);
}

struct fw_cfg *machine_fw_cfg(struct machine *m)
{
	return m->fw_cfg;
}

struct msi_sink machine_msi(struct machine *m)
{
	return (struct msi_sink){.send = pc_msi, .opaque = m};
}

void machine_set_tsc_khz(struct machine *m, uint64_t khz)
{
	m->cfg.tsc_khz = khz;
	kvm_pv_set_tsc_khz(m->pv, khz);
}

void machine_connect(struct machine *m, const struct engine *e, struct engine_vm *evm)
{
	remote_connect(m, e, evm);
}

int machine_start_chips(struct machine *m, struct error *err)
{
	return remote_push(m, err);
}

/* ---- what a firmware would do ---- */

/* BARs and interrupt routes; the 8259 pair masked, so that a system that uses the I/O APIC only
 * need not know it. */
static int pc_firmware(struct machine *m, struct error *err)
{
	struct pci_window mmio32 = {MEMMAP_PCI32, MEMMAP_PCI32_END - MEMMAP_PCI32};
	struct pci_window io = {0xC000, 0x4000};

	pic_firmware(m->pic, BIT(IRQ_SCI) | BIT(10) | BIT(11));
	return pci_assign_resources(m->pci, mmio32, m->pci64, io, err);
}

int machine_finish(struct machine *m, const struct machine_legacy *legacy, struct error *err)
{
	m->legacy = *legacy;
	return pc_firmware(m, err);
}

static int pc_write_acpi(struct machine *m, uint8_t *buf, struct error *err)
{
	struct acpi_config cfg = {
		.nr_cpus = m->cfg.nr_cpus,
		.ps2 = m->legacy.ps2,
		.no_timers = m->cfg.micro,
		.pci64_base = m->pci64.base,
		.pci64_size = m->pci64.size,
	};

	for (unsigned i = 0; i < 4; i++)
		cfg.com[i] = m->legacy.com[i];
	return acpi_build(buf, MEMMAP_SMBIOS - MEMMAP_TABLES, MEMMAP_TABLES, &cfg, err);
}

static int pc_write_smbios(struct machine *m, uint8_t *buf, struct error *err)
{
	struct smbios_config cfg = {
		.nr_cpus = m->cfg.nr_cpus,
		.below_4g = m->below_4g,
		.above_4g = m->above_4g,
		.version = "1",
	};

	for (unsigned i = 0; i < sizeof(cfg.uuid); i++)
		cfg.uuid[i] = m->cfg.uuid[i];
	return smbios_build(buf, MEMMAP_TABLES_END - MEMMAP_SMBIOS, MEMMAP_SMBIOS, &cfg, err);
}

static void pc_write_bios_area(struct machine *m)
{
	static const uint16_t ports[4] = {PORT_COM1, PORT_COM2, PORT_COM3, PORT_COM4};
	struct bios_area_config cfg = {.ps2 = m->legacy.ps2};

	for (unsigned i = 0; i < ARRAY_SIZE(ports); i++)
		cfg.com[i] = m->legacy.com[i] ? ports[i] : 0;
	bios_area_write(m->cfg.mem, &cfg);
}

/* Of the tables' 128 KiB only what is used is written: guest memory that nobody touched costs the
 * host nothing. */
static int pc_write_tables(struct machine *m, struct error *err)
{
	uint64_t size = MEMMAP_TABLES_END - MEMMAP_TABLES;
	uint8_t *buf = calloc(1, size);
	int r;

	if (!buf)
		return err_set(err, ENOMEM, "no memory for the ACPI tables");
	r = pc_write_acpi(m, buf, err);
	if (r >= 0 && m->cfg.micro)
		size = r;
	else if (r >= 0)
		r = pc_write_smbios(m, buf + (MEMMAP_SMBIOS - MEMMAP_TABLES), err);
	if (r >= 0) {
		r = mem_write(m->cfg.mem, MEMMAP_TABLES, buf, size);
		assert(r == 0); /* pc_add_ram put RAM there */
		if (!m->cfg.micro)
			pc_write_bios_area(m);
	}
	free(buf);
	return r;
}

int machine_boot_info(struct machine *m, struct machine_boot_info *info, struct error *err)
{
	enum { RAM = 1, RESERVED = 2 };
	const struct machine_e820 map[] = {
		{0, MEMMAP_EBDA, RAM},
		{MEMMAP_EBDA, MEMMAP_VGA - MEMMAP_EBDA, RESERVED},
		{MEMMAP_TABLES, MEMMAP_TABLES_END - MEMMAP_TABLES, RESERVED},
		{MEMMAP_TABLES_END, m->below_4g - MEMMAP_TABLES_END, RAM},
		{MEMMAP_ECAM, MEMMAP_ECAM_SIZE, RESERVED},
		{MEMMAP_HIGH_RAM, m->above_4g, RAM},
	};
	int r = pc_write_tables(m, err);

	if (r < 0)
		return r;
	*info = (struct machine_boot_info){.rsdp = MEMMAP_TABLES};
	for (unsigned i = 0; i < ARRAY_SIZE(map); i++)
		if (map[i].size)
			info->e820[info->nr_e820++] = map[i];
	return 0;
}

/* ---- events ---- */

/* What the micro profile leaves out. */
static void pc_reset_optional(struct machine *m)
{
	if (m->cfg.micro)
		return;
	hpet_reset(m->hpet);
	rtc_reset(m->rtc);
	pit_reset(m->pit);
	fw_cfg_reset(m->fw_cfg);
}

void machine_reset(struct machine *m)
{
	int r;

	pci_host_reset(m->pci);
	pc_reset_optional(m);
	acpi_pm_reset(m->pm);
	kvm_pv_reset(m->pv);
	ioapic_reset(m->ioapic);
	pic_reset(m->pic);
	apic_bus_reset(m->apics);
	r = pc_firmware(m, NULL);
	assert(r == 0); /* the same devices found room in machine_finish */
}

void machine_power_button(struct machine *m)
{
	acpi_pm_power_button(m->pm);
}

void machine_nmi(struct machine *m)
{
	if (remote_lapics(m)) {
		for (unsigned i = 0; i < m->cfg.nr_cpus; i++)
			m->cfg.ops->nmi(m->cfg.opaque, i);
		return;
	}
	apic_bus_lint(m->apics, 1, true);
	apic_bus_lint(m->apics, 1, false);
}

void machine_pause(struct machine *m)
{
	remote_pause(m);
	vclock_pause(m->clock);
}

uint64_t machine_stood_ns(const struct machine *m)
{
	return vclock_stood_ns(m->clock);
}

/* The clock goes. */
static void machine_go(struct machine *m)
{
	remote_resume(m);
	kvm_pv_resumed(m->pv);
}

void machine_resume(struct machine *m)
{
	vclock_resume(m->clock);
	machine_go(m);
}

void machine_resume_at(struct machine *m, uint64_t mono_ns)
{
	vclock_resume_at(m->clock, mono_ns);
	machine_go(m);
}

/* The clock first: all others keep times of it.  LAPICs before the chips that pull their pins. */
void machine_state(struct state *s, void *machine)
{
	struct machine *m = machine;
	struct error err = {""};

	if (!s->loading)
		remote_pull(m);
	state_enter(s, m->cfg.micro ? "machine-micro" : "machine", 1);
	vclock_state(s, m->clock);
	kvm_pv_state(s, m->pv);
	apic_bus_state(s, m->apics);
	ioapic_state(s, m->ioapic);
	gsi_state(s, m->gsi);
	pic_state(s, m->pic);
	if (!m->cfg.micro) {
		pit_state(s, m->pit);
		rtc_state(s, m->rtc);
		hpet_state(s, m->hpet);
	}
	acpi_pm_state(s, m->pm);
	pci_host_state(s, m->pci);
	if (!m->cfg.micro)
		fw_cfg_state(s, m->fw_cfg);
	state_leave(s);
	if (state_loading(s))
		state_check(s, remote_push(m, &err) == 0, err.msg);
}
