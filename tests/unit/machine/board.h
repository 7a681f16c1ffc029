/* board.h - a whole board under test, driven as a guest's CPUs would: through machine_cpu_ops.
 *
 * Time moves only by board_advance(); the TSC of every CPU runs at 3 GHz with an offset of its own.
 * What the board asks of the VM is written down in struct board. */
#pragma once

#include "base/error.h"
#include "bus/bus.h"
#include "machine/machine.h"
#include "machine/memmap.h"
#include "machine/timer/vclock.h"
#include "mem/mem.h"
#include "test.h"

enum { BOARD_MAX_CPUS = 20, TSC_PER_NS = 3 };

struct board {
	struct machine *machine;
	struct mem *mem;
	struct vclock *clock;
	bool intr[BOARD_MAX_CPUS];
	unsigned nmis[BOARD_MAX_CPUS], inits[BOARD_MAX_CPUS], sipis[BOARD_MAX_CPUS];
	uint8_t sipi_vector;
	unsigned power_offs, resets;
	uint64_t mono_ns;
	uint64_t tsc_offset[BOARD_MAX_CPUS];
};

static inline void board_intr(void *opaque, unsigned cpu, bool level)
{
	struct board *b = opaque;

	b->intr[cpu] = level;
}

static inline void board_nmi(void *opaque, unsigned cpu)
{
	struct board *b = opaque;

	b->nmis[cpu]++;
}

static inline void board_init(void *opaque, unsigned cpu)
{
	struct board *b = opaque;

	b->inits[cpu]++;
}

static inline void board_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
	struct board *b = opaque;

	b->sipis[cpu]++;
	b->sipi_vector = vector;
}

static inline void board_power_off(void *opaque)
{
	struct board *b = opaque;

	b->power_offs++;
}

static inline void board_reset(void *opaque)
{
	struct board *b = opaque;

	b->resets++;
}

static inline uint64_t board_tsc(void *opaque, unsigned cpu)
{
	struct board *b = opaque;

	return b->mono_ns * TSC_PER_NS + b->tsc_offset[cpu];
}

static inline uint64_t board_tsc_to_ns(void *opaque, unsigned cpu, uint64_t tsc)
{
	struct board *b = opaque;

	return (tsc - b->tsc_offset[cpu] + TSC_PER_NS - 1) / TSC_PER_NS;
}

static const struct machine_ops board_ops = {
	.intr = board_intr,
	.nmi = board_nmi,
	.init = board_init,
	.sipi = board_sipi,
	.power_off = board_power_off,
	.reset = board_reset,
	.cpu_tsc = board_tsc,
	.cpu_tsc_to_ns = board_tsc_to_ns,
};

static inline void board_start(struct board *b, unsigned nr_cpus, uint64_t memory)
{
	struct machine_config cfg = {
		.nr_cpus = nr_cpus,
		.memory = memory,
		.ops = &board_ops,
		.opaque = b,
		.tsc_khz = TSC_PER_NS * 1000000,
		.phys_bits = 40,
	};
	static const struct machine_legacy legacy = {.com = {true, true, true, true}, .ps2 = true};
	struct error err = {""};

	memset(b, 0, sizeof(*b));
	CHECK_EQ(0, mem_create(&b->mem, &err));
	cfg.mem = b->mem;
	if (machine_create(&b->machine, &cfg, &err) < 0) {
		printf("# %s\n", err.msg);
		CHECK(b->machine);
	}
	CHECK_EQ(0, machine_finish(b->machine, &legacy, &err));
	b->clock = machine_clock(b->machine);
}

static inline void board_stop(struct board *b)
{
	machine_destroy(b->machine);
	mem_destroy(b->mem);
}

static inline void board_advance(struct board *b, uint64_t ns)
{
	b->mono_ns += ns;
	vclock_advance(b->clock, ns);
}

/* ---- what guest code does ---- */

static inline uint64_t mmio_read(struct board *b, unsigned cpu, gpa_t gpa, unsigned size)
{
	return machine_cpu_ops.mmio_read(machine_cpu(b->machine, cpu), gpa, size);
}

static inline void mmio_write(struct board *b, unsigned cpu, gpa_t gpa, uint64_t v, unsigned size)
{
	machine_cpu_ops.mmio_write(machine_cpu(b->machine, cpu), gpa, v, size);
}

static inline uint32_t in(struct board *b, uint16_t port, unsigned size)
{
	return machine_cpu_ops.pio_read(machine_cpu(b->machine, 0), port, size);
}

static inline uint8_t inb(struct board *b, uint16_t port)
{
	return in(b, port, 1);
}

static inline void out(struct board *b, uint16_t port, uint32_t v, unsigned size)
{
	machine_cpu_ops.pio_write(machine_cpu(b->machine, 0), port, v, size);
}

static inline void outb(struct board *b, uint16_t port, uint8_t v)
{
	out(b, port, v, 1);
}

/* These two return false where the guest would get #GP. */
static inline bool rdmsr(struct board *b, unsigned cpu, uint32_t index, uint64_t *v)
{
	return machine_cpu_ops.msr_read(machine_cpu(b->machine, cpu), index, v);
}

static inline bool wrmsr(struct board *b, unsigned cpu, uint32_t index, uint64_t v)
{
	return machine_cpu_ops.msr_write(machine_cpu(b->machine, cpu), index, v);
}

static inline int ack(struct board *b, unsigned cpu)
{
	return machine_cpu_ops.intr_ack(machine_cpu(b->machine, cpu));
}

/* ---- local APIC ---- */

// clang-format off
enum {
	APIC_ID = 0x20, APIC_VERSION = 0x30, APIC_TPR = 0x80, APIC_PPR = 0xA0, APIC_EOI = 0xB0,
	APIC_LDR = 0xD0, APIC_DFR = 0xE0, APIC_SVR = 0xF0, APIC_ISR = 0x100, APIC_TMR = 0x180,
	APIC_IRR = 0x200, APIC_ESR = 0x280, APIC_ICR = 0x300, APIC_ICR_HIGH = 0x310,
	APIC_LVT_TIMER = 0x320, APIC_LVT_LINT0 = 0x350, APIC_LVT_LINT1 = 0x360,
	APIC_LVT_ERROR = 0x370, APIC_TIMER_INIT = 0x380, APIC_TIMER_CURRENT = 0x390,
	APIC_TIMER_DIVIDE = 0x3E0,
};
enum { MSR_APIC_BASE = 0x1B, MSR_TSC_DEADLINE = 0x6E0, MSR_X2APIC = 0x800 };
enum { BASE_BSP = 1 << 8, BASE_X2APIC = 1 << 10, BASE_ENABLE = 1 << 11 };
// clang-format on

static inline uint32_t apic_read(struct board *b, unsigned cpu, unsigned reg)
{
	return mmio_read(b, cpu, MEMMAP_LAPIC + reg, 4);
}

static inline void apic_write(struct board *b, unsigned cpu, unsigned reg, uint32_t v)
{
	mmio_write(b, cpu, MEMMAP_LAPIC + reg, v, 4);
}

static inline void apic_enable(struct board *b, unsigned cpu)
{
	apic_write(b, cpu, APIC_SVR, 0x1FF);
}

static inline void apic_eoi(struct board *b, unsigned cpu)
{
	apic_write(b, cpu, APIC_EOI, 0);
}

/* Request a fixed interrupt at one's own CPU. */
static inline void apic_self(struct board *b, unsigned cpu, uint8_t vector)
{
	apic_write(b, cpu, APIC_ICR, 1 << 18 | vector);
}

/* xAPIC, then x2APIC mode, as a system goes through them. */
static inline void apic_enter_x2apic(struct board *b, unsigned cpu)
{
	uint64_t base;

	CHECK(rdmsr(b, cpu, MSR_APIC_BASE, &base));
	CHECK(wrmsr(b, cpu, MSR_APIC_BASE, base | BASE_X2APIC));
	CHECK(wrmsr(b, cpu, MSR_X2APIC + 0xF, 0x1FF));
}

/* ---- I/O APIC and 8259 pair ---- */

static inline void ioapic_write(struct board *b, uint8_t index, uint32_t v)
{
	mmio_write(b, 0, MEMMAP_IOAPIC, index, 4);
	mmio_write(b, 0, MEMMAP_IOAPIC + 0x10, v, 4);
}

static inline uint32_t ioapic_read(struct board *b, uint8_t index)
{
	mmio_write(b, 0, MEMMAP_IOAPIC, index, 4);
	return mmio_read(b, 0, MEMMAP_IOAPIC + 0x10, 4);
}

static inline void ioapic_route(struct board *b, unsigned pin, uint32_t low, uint8_t dest)
{
	ioapic_write(b, 0x10 + pin * 2 + 1, (uint32_t)dest << 24);
	ioapic_write(b, 0x10 + pin * 2, low);
}

/* What every PC operating system of the 8259 days did: vectors 0x20..0x2F, all unmasked. */
static inline void pic_start(struct board *b, uint8_t icw4)
{
	outb(b, 0x20, 0x11);
	outb(b, 0x21, 0x20);
	outb(b, 0x21, 0x04);
	outb(b, 0x21, icw4);
	outb(b, 0xA0, 0x11);
	outb(b, 0xA1, 0x28);
	outb(b, 0xA1, 0x02);
	outb(b, 0xA1, icw4);
	outb(b, 0x21, 0x00);
	outb(b, 0xA1, 0x00);
}
