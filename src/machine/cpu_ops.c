/* machine/cpu_ops.c - what an engine asks of the board, on the vCPU's own thread. */
#include "bus/bus.h"
#include "machine/irqchip/ioapic.h"
#include "machine/irqchip/lapic.h"
#include "machine/irqchip/pic.h"
#include "machine/irqchip/remote.h"
#include "machine/memmap.h"
#include "machine/pc.h"
#include "machine/pv/kvm_pv.h"

/* Each CPU sees its own LAPIC at the same address, before any device. */
static bool cpu_hits_lapic(const struct machine_cpu *c, gpa_t gpa)
{
	return (gpa & PAGE_MASK) == lapic_mmio_base(c->lapic) && !remote_lapics(c->machine);
}

static uint64_t cpu_mmio_read(void *opaque, gpa_t gpa, unsigned size)
{
	struct machine_cpu *c = opaque;

	if (cpu_hits_lapic(c, gpa))
		return lapic_mmio_read(c->lapic, gpa & ~PAGE_MASK, size);
	return bus_mmio_read(c->machine->bus, gpa, size);
}

static void cpu_mmio_write(void *opaque, gpa_t gpa, uint64_t value, unsigned size)
{
	struct machine_cpu *c = opaque;

	if (cpu_hits_lapic(c, gpa))
		lapic_mmio_write(c->lapic, gpa & ~PAGE_MASK, value, size);
	else
		bus_mmio_write(c->machine->bus, gpa, value, size);
}

static uint32_t cpu_pio_read(void *opaque, uint16_t port, unsigned size)
{
	struct machine_cpu *c = opaque;

	return bus_pio_read(c->machine->bus, port, size);
}

static void cpu_pio_write(void *opaque, uint16_t port, uint32_t value, unsigned size)
{
	struct machine_cpu *c = opaque;

	bus_pio_write(c->machine->bus, port, value, size);
}

static bool cpu_msr_read(void *opaque, uint32_t index, uint64_t *value)
{
	struct machine_cpu *c = opaque;

	if (lapic_has_msr(index))
		return !remote_lapics(c->machine) && lapic_msr_read(c->lapic, index, value);
	return kvm_pv_msr_read(c->machine->pv, c->index, index, value);
}

static bool cpu_msr_write(void *opaque, uint32_t index, uint64_t value)
{
	struct machine_cpu *c = opaque;

	if (lapic_has_msr(index))
		return !remote_lapics(c->machine) && lapic_msr_write(c->lapic, index, value);
	return kvm_pv_msr_write(c->machine->pv, c->index, index, value);
}

static int cpu_intr_ack(void *opaque)
{
	struct machine_cpu *c = opaque;

	return remote_lapics(c->machine) ? pic_ack(c->machine->pic) : lapic_ack(c->lapic);
}

static void cpu_tsc_written(void *opaque)
{
	struct machine_cpu *c = opaque;

	if (!remote_lapics(c->machine))
		lapic_tsc_written(c->lapic);
	kvm_pv_tsc_written(c->machine->pv, c->index);
}

static uint8_t cpu_cr8_read(void *opaque)
{
	struct machine_cpu *c = opaque;

	return lapic_cr8_read(c->lapic);
}

static void cpu_cr8_write(void *opaque, uint8_t value)
{
	struct machine_cpu *c = opaque;

	lapic_cr8_write(c->lapic, value);
}

static bool cpu_hypercall(void *opaque, struct engine_cpu *cpu, uint64_t gpr[X86_NR_GPR])
{
	struct machine_cpu *c = opaque;

	kvm_pv_hypercall(c->machine->pv, c->index, gpr);
	return true;
}

static void cpu_cpuid(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	machine_cpuid(opaque, leaf, subleaf, regs);
}

static void cpu_eoi(void *opaque, uint8_t vector)
{
	struct machine_cpu *c = opaque;

	ioapic_eoi(c->machine->ioapic, vector);
}

const struct engine_cpu_ops machine_cpu_ops = {
	.mmio_read = cpu_mmio_read,
	.mmio_write = cpu_mmio_write,
	.pio_read = cpu_pio_read,
	.pio_write = cpu_pio_write,
	.msr_read = cpu_msr_read,
	.msr_write = cpu_msr_write,
	.intr_ack = cpu_intr_ack,
	.tsc_written = cpu_tsc_written,
	.cr8_read = cpu_cr8_read,
	.cr8_write = cpu_cr8_write,
	.hypercall = cpu_hypercall,
	.cpuid = cpu_cpuid,
	.eoi = cpu_eoi,
};

void *machine_cpu(struct machine *m, unsigned cpu)
{
	return &m->cpu[cpu];
}
