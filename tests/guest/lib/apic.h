/* apic.h - local APIC, I/O APIC, 8259 pair and PIT as tests use them: bare register access and the
 * few sequences that several images need.  64-bit guests only. */
#pragma once

#include "guest.h"

enum {
	APIC_ID = 0x20,
	APIC_VERSION = 0x30,
	APIC_TPR = 0x80,
	APIC_PPR = 0xa0,
	APIC_EOI = 0xb0,
	APIC_LDR = 0xd0,
	APIC_DFR = 0xe0,
	APIC_SVR = 0xf0,
	APIC_ISR = 0x100,
	APIC_TMR = 0x180,
	APIC_IRR = 0x200,
	APIC_ESR = 0x280,
	APIC_ICR = 0x300,
	APIC_ICR_HI = 0x310,
	APIC_LVT_TIMER = 0x320,
	APIC_LVT_LINT0 = 0x350,
	APIC_LVT_LINT1 = 0x360,
	APIC_LVT_ERROR = 0x370,
	APIC_TIMER_INITIAL = 0x380,
	APIC_TIMER_CURRENT = 0x390,
	APIC_TIMER_DIVIDE = 0x3e0,
};
enum {
	ICR_FIXED = 0,
	ICR_LOWEST = 1 << 8,
	ICR_NMI = 4 << 8,
	ICR_INIT = 5 << 8,
	ICR_SIPI = 6 << 8,
	ICR_LOGICAL = 1 << 11,
	ICR_ASSERT = 1 << 14,
	ICR_SELF = 1 << 18,
	ICR_ALL = 2 << 18,
	ICR_OTHERS = 3 << 18,
};
enum { LVT_MASKED = 1 << 16, LVT_PERIODIC = 1 << 17, LVT_DEADLINE = 2 << 17, LVT_EXTINT = 7 << 8 };
#define MSR_APIC_BASE 0x1bu
#define APIC_BASE_X2  BIT(10)
#define APIC_BASE_ON  BIT(11)

static inline volatile u32 *apic_reg(u32 offset)
{
	return (volatile u32 *)(0xfee00000ull + offset);
}

static inline u32 apic_read(u32 offset)
{
	return *apic_reg(offset);
}

static inline void apic_write(u32 offset, u32 v)
{
	*apic_reg(offset) = v;
}

/* A bit of ISR, TMR or IRR. */
static inline bool apic_bit(u32 base, u8 vector)
{
	return apic_read(base + vector / 32 * 16) >> vector % 32 & 1;
}

static inline void apic_eoi(void)
{
	apic_write(APIC_EOI, 0);
}

static inline void apic_on(void)
{
	apic_write(APIC_SVR, 0x1ff);
	apic_write(APIC_TPR, 0);
}

static inline void apic_send(u8 dest, u32 icr)
{
	apic_write(APIC_ICR_HI, (u32)dest << 24);
	apic_write(APIC_ICR, icr);
}

/* Make a vector pending here, with interrupts off. */
static inline void apic_raise(u8 vector)
{
	apic_write(APIC_ICR, ICR_SELF | vector);
	for (unsigned i = 0; i < 100000 && !apic_bit(APIC_IRR, vector); i++)
		asm volatile("pause");
}

/* Wait about that long, by the TSC, whose rate is only roughly known: 1 to 5 GHz. */
static inline void wait_ms(u64 ms)
{
	for (u64 end = rdtsc() + ms * 2000000; rdtsc() < end;)
		asm volatile("pause");
}

/* Until the condition holds, for at most some seconds; true when it held. */
#define WAIT_FOR(cond)                                                                             \
	({                                                                                         \
		u64 end_ = rdtsc() + 60000000000ull;                                               \
		while (!(cond) && rdtsc() < end_)                                                  \
			asm volatile("pause");                                                     \
		!!(cond);                                                                          \
	})

static inline u32 ioapic_read(u8 index)
{
	*(volatile u32 *)0xfec00000ull = index;
	return *(volatile u32 *)0xfec00010ull;
}

static inline void ioapic_write(u8 index, u32 v)
{
	*(volatile u32 *)0xfec00000ull = index;
	*(volatile u32 *)0xfec00010ull = v;
}

static inline void ioapic_route(u8 pin, u8 dest, u32 low)
{
	ioapic_write(0x10 + 2 * pin, LVT_MASKED);
	ioapic_write(0x11 + 2 * pin, (u32)dest << 24);
	ioapic_write(0x10 + 2 * pin, low);
}

/* Where an ISA interrupt reaches the I/O APIC: the MADT's overrides. */
static inline u8 isa_gsi(u8 irq)
{
	const u8 *madt = acpi_find("APIC");

	for (u32 off = 44; madt && off < *(const u32 *)(madt + 4); off += madt[off + 1])
		if (madt[off] == 2 && madt[off + 3] == irq)
			return madt[off + 4];
	return irq;
}

#define PIT_HZ 1193182u

/* Channel 0: mode 0 fires once, mode 2 again and again. */
static inline void pit_start(u8 mode, u16 count)
{
	outb(0x43, 0x30 | mode << 1);
	outb(0x40, count & 0xff);
	outb(0x40, count >> 8);
}

/* Mode 0 without a count: its output stays low. */
static inline void pit_stop(void)
{
	outb(0x43, 0x30);
}
