/* machine/irqchip/remote.c - see remote.h. */
#include "machine/irqchip/remote.h"

#include "base/error.h"
#include "bus/bus.h"
#include "machine/irqchip/apic_bus.h"
#include "machine/irqchip/gsi.h"
#include "machine/irqchip/ioapic.h"
#include "machine/irqchip/lapic.h"
#include "machine/irqchip/pic.h"
#include "machine/memmap.h"
#include "machine/pv/kvm_pv.h"
#include "machine/timer/vclock.h"

#include <stdio.h>

enum { MSR_WALL_CLOCK = 0x4b564d00, MSR_SYSTEM_TIME = 0x4b564d01 };
enum { REG_TIMER_INIT = 0x38, REG_TIMER_CURRENT = 0x39, REG_TIMER_DIVIDE = 0x3E };

/* ---- on the way to the engine ---- */

void remote_msi(struct machine *m, uint64_t addr, uint32_t data)
{
	m->engine->irq->msi_send(m->evm, addr, data);
}

static void remote_pin_changed(void *opaque, unsigned pin, bool level, uint64_t addr, uint32_t data)
{
	struct machine *m = opaque;

	m->engine->irq->pin_route(m->evm, pin, level, addr, data);
}

static void remote_pic_input(void *opaque, unsigned irq, bool level)
{
	struct machine *m = opaque;

	m->engine->irq->gsi_set(m->evm, ENGINE_GSI_PIC + irq, level);
}

static void remote_pin(void *opaque, unsigned pin, bool level)
{
	struct machine *m = opaque;

	m->engine->irq->gsi_set(m->evm, pin, level);
}

/* ---- doorbells ---- */

static struct engine_doorbell remote_bell(const struct io_doorbell *d, bool pio, uint64_t addr)
{
	return (struct engine_doorbell){.addr = addr, .size = d->size, .pio = pio};
}

static bool remote_bell_add(void *opaque, const struct io_doorbell *d, bool pio, uint64_t addr)
{
	struct machine *m = opaque;
	struct engine_doorbell bell = remote_bell(d, pio, addr);

	return m->engine->doorbell_add(m->evm, &bell, d->fd) == 0;
}

static void remote_bell_del(void *opaque, const struct io_doorbell *d, bool pio, uint64_t addr)
{
	struct machine *m = opaque;
	struct engine_doorbell bell = remote_bell(d, pio, addr);

	m->engine->doorbell_del(m->evm, &bell, d->fd);
}

static const struct bus_doorbells remote_bells = {remote_bell_add, remote_bell_del};

static bool remote_has_clock(const struct machine *m)
{
	return m->engine && m->engine->pv_clock_set;
}

void remote_connect(struct machine *m, const struct engine *e, struct engine_vm *evm)
{
	bus_set_doorbells(m->bus, NULL, NULL);
	m->engine = e;
	m->evm = evm;
	m->chips = e && e->irq ? e->irq->chips(evm) : ENGINE_CHIPS_NONE;
	gsi_set_remote(m->gsi, NULL, NULL, NULL);
	ioapic_set_watch(m->ioapic, NULL, NULL);
	for (unsigned i = 0; i < m->cfg.nr_cpus; i++)
		lapic_set_remote(m->cpu[i].lapic, remote_lapics(m));
	if (m->chips == ENGINE_CHIPS_LAPIC)
		ioapic_set_watch(m->ioapic, remote_pin_changed, m);
	if (m->chips == ENGINE_CHIPS_ALL)
		gsi_set_remote(m->gsi, remote_pic_input, remote_pin, m);
	kvm_pv_set_remote(m->pv, remote_has_clock(m));
	if (e && e->doorbell_add)
		bus_set_doorbells(m->bus, &remote_bells, m);
}

static struct engine_cpu *remote_cpu(const struct machine *m, unsigned cpu)
{
	return m->cfg.ops->engine_cpu(m->cfg.opaque, cpu);
}

/* ---- local APICs ---- */

static void remote_copy_timer(struct engine_lapic *to, const struct engine_lapic *from)
{
	to->reg[REG_TIMER_INIT] = from->reg[REG_TIMER_INIT];
	to->reg[REG_TIMER_CURRENT] = from->reg[REG_TIMER_CURRENT];
	to->reg[REG_TIMER_DIVIDE] = from->reg[REG_TIMER_DIVIDE];
	to->tsc_deadline = from->tsc_deadline;
}

static void remote_stop_timer(struct engine_lapic *l)
{
	l->reg[REG_TIMER_INIT] = l->reg[REG_TIMER_CURRENT] = 0;
	l->tsc_deadline = 0;
}

/* While the clock stands the engine's timer is stopped and ours tells where it stood. */
static void remote_pull_lapic(struct machine *m, unsigned cpu)
{
	struct lapic *l = m->cpu[cpu].lapic;
	struct engine_lapic e, mine;

	if (m->engine->irq->lapic_get(remote_cpu(m, cpu), &e) < 0)
		return; /* our copy stays: the last state that was had */
	if (m->remote_paused) {
		lapic_export(l, &mine);
		remote_copy_timer(&e, &mine);
	}
	lapic_import(l, &e, cpu == 0 && m->chips == ENGINE_CHIPS_LAPIC && pic_output(m->pic));
}

static int remote_push_lapic(struct machine *m, unsigned cpu, struct error *err)
{
	struct engine_lapic e;

	lapic_export(m->cpu[cpu].lapic, &e);
	if (m->remote_paused)
		remote_stop_timer(&e);
	return m->engine->irq->lapic_set(remote_cpu(m, cpu), &e, err);
}

/* Interrupts may have come since the pause: of our copy only the timer goes back. */
static int remote_resume_lapic(struct machine *m, unsigned cpu, struct error *err)
{
	struct engine_lapic e, mine;
	int r = m->engine->irq->lapic_get(remote_cpu(m, cpu), &e);

	if (r < 0)
		return err_errno(err, -r, "local APIC of CPU %u", cpu);
	lapic_export(m->cpu[cpu].lapic, &mine);
	remote_copy_timer(&e, &mine);
	return m->engine->irq->lapic_set(remote_cpu(m, cpu), &e, err);
}

/* ---- the other chips ---- */

static void remote_pull_chips(struct machine *m)
{
	struct engine_ioapic io;
	struct engine_pic pic[2];

	if (m->engine->irq->ioapic_get(m->evm, &io) == 0)
		ioapic_import(m->ioapic, &io, gsi_pin_levels(m->gsi));
	if (m->engine->irq->pic_get(m->evm, pic) == 0)
		pic_import(m->pic, pic);
}

static int remote_push_chips(struct machine *m, struct error *err)
{
	struct engine_ioapic io;
	struct engine_pic pic[2];
	int r;

	ioapic_export(m->ioapic, &io);
	pic_export(m->pic, pic);
	r = m->engine->irq->ioapic_set(m->evm, &io);
	if (r == 0)
		r = m->engine->irq->pic_set(m->evm, pic);
	return r < 0 ? err_errno(err, -r, "the engine does not take the interrupt chips' state")
		     : 0;
}

/* ---- paravirtual clock ---- */

static void remote_pull_clock(struct machine *m)
{
	for (unsigned i = 0; i < m->cfg.nr_cpus; i++) {
		struct kvm_pv_msrs msrs;

		kvm_pv_export(m->pv, i, &msrs);
		m->engine->msr_get(remote_cpu(m, i), MSR_WALL_CLOCK, &msrs.wall_clock);
		m->engine->msr_get(remote_cpu(m, i), MSR_SYSTEM_TIME, &msrs.system_time);
		kvm_pv_import(m->pv, i, &msrs);
	}
}

/* Writing the wall clock's MSR makes the engine write the time into the guest, which at a reset may
 * be no such place any more: only the address is given, and only when there is one. */
static int remote_push_clock(struct machine *m, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < m->cfg.nr_cpus && r == 0; i++) {
		struct kvm_pv_msrs msrs;

		kvm_pv_export(m->pv, i, &msrs);
		if (msrs.wall_clock)
			r = m->engine->msr_set(remote_cpu(m, i), MSR_WALL_CLOCK, msrs.wall_clock);
		if (r == 0)
			r = m->engine->msr_set(remote_cpu(m, i), MSR_SYSTEM_TIME, msrs.system_time);
	}
	return r < 0 ? err_errno(err, -r, "the engine does not take the clock's state") : 0;
}

static void remote_sync_clock(struct machine *m)
{
	m->engine->pv_clock_set(m->evm, vclock_now_ns(m->clock));
}

/* MSR_KVM_PV_EOI_EN travels with the local APIC; the board's list of MSRs has it too. */
static void remote_pull_eoi(struct machine *m)
{
	for (unsigned i = 0; i < m->cfg.nr_cpus; i++) {
		struct engine_lapic e;
		struct kvm_pv_msrs msrs;

		kvm_pv_export(m->pv, i, &msrs);
		lapic_export(m->cpu[i].lapic, &e);
		msrs.eoi = e.pv_eoi;
		kvm_pv_import(m->pv, i, &msrs);
	}
}

/* ---- all of it ---- */

void remote_pull(struct machine *m)
{
	if (m->chips == ENGINE_CHIPS_ALL)
		remote_pull_chips(m);
	for (unsigned i = 0; remote_lapics(m) && i < m->cfg.nr_cpus; i++)
		remote_pull_lapic(m, i);
	if (remote_has_clock(m))
		remote_pull_clock(m);
	if (remote_lapics(m))
		remote_pull_eoi(m);
}

int remote_push(struct machine *m, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; remote_lapics(m) && i < m->cfg.nr_cpus && r == 0; i++)
		r = remote_push_lapic(m, i, err);
	if (r == 0 && m->chips == ENGINE_CHIPS_ALL)
		r = remote_push_chips(m, err);
	if (r == 0 && m->chips == ENGINE_CHIPS_LAPIC)
		m->cfg.ops->intr(m->cfg.opaque, 0, pic_output(m->pic));
	if (r == 0 && remote_has_clock(m))
		r = remote_push_clock(m, err);
	if (r == 0 && remote_has_clock(m))
		remote_sync_clock(m);
	return r;
}

void remote_pause(struct machine *m)
{
	struct error err = {""};

	if (!m->engine || m->remote_paused)
		return;
	remote_pull(m);
	m->remote_paused = true;
	for (unsigned i = 0; remote_lapics(m) && i < m->cfg.nr_cpus; i++)
		if (remote_push_lapic(m, i, &err) < 0)
			fprintf(stderr, "hv: pause: %s\n", err.msg);
}

void remote_resume(struct machine *m)
{
	struct error err = {""};

	if (!m->engine || !m->remote_paused)
		return;
	m->remote_paused = false;
	for (unsigned i = 0; remote_lapics(m) && i < m->cfg.nr_cpus; i++)
		if (remote_resume_lapic(m, i, &err) < 0)
			fprintf(stderr, "hv: resume: %s\n", err.msg);
	if (remote_has_clock(m))
		remote_sync_clock(m);
}
