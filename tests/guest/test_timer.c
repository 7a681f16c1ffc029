/* test_timer.c - PIT, PM timer, HPET, RTC and local APIC timer go at the rate they should.
 *
 * All are compared with the TSC, whose own rate is taken from the PM timer.  The host may stop us
 * for milliseconds at any point, so a pair of readings is taken again when it took long, and bounds
 * are wide: what is tested is that nobody is off by a factor, stands still or goes backwards.
 * ACPI "Power Management Timer"; IA-PC HPET specification; MC146818; 8254 data sheet. */
#include "apic.h"

#define PM_HZ  3579545u
#define RTC_HZ 32768u

/* A counter's value and the TSC at nearly the same time. */
struct reading {
	u64 tsc, value;
};

static struct reading read_pair(u64 (*read)(void))
{
	struct reading best = {0, 0};
	u64 least = -1ull;

	for (unsigned i = 0; i < 10; i++) {
		u64 before = rdtsc(), value = read(), spent = rdtsc() - before;

		if (spent < least) {
			least = spent;
			best = (struct reading){before + spent / 2, value};
		}
	}
	return best;
}

/* Counts per second over about ms milliseconds; wrap is the counter's period, 0 for 2^64. */
static u64 tsc_hz;

static u64 measure(u64 (*read)(void), u64 wrap, u64 ms)
{
	struct reading a = read_pair(read), b;
	u64 diff;

	wait_ms(ms);
	b = read_pair(read);
	diff = wrap ? (b.value - a.value) & (wrap - 1) : b.value - a.value;
	return diff * (tsc_hz / 1000) / ((b.tsc - a.tsc) / 1000);
}

static void check_rate(const char *name, u64 want, u64 got)
{
	CHECK_ROW(guest_name("%s: %lu Hz, expected about %lu", name, got, want), true,
		  got > want - want / 5 && got < want + want / 5);
}

/* --- ACPI PM timer -------------------------------------------------------------------------------
 */
static u16 pm_port(void)
{
	const u8 *fadt = acpi_find("FACP");

	return fadt ? *(const u32 *)(fadt + 76) : 0;
}

static u64 read_pm(void)
{
	return inl(pm_port()) & 0xffffff;
}

TEST(the_pm_timer_counts_and_gives_the_tsc_rate)
{
	struct reading a, b;

	if (!CHECK(pm_port() != 0))
		return;
	a = read_pair(read_pm);
	wait_ms(100);
	b = read_pair(read_pm);
	tsc_hz = (b.tsc - a.tsc) * PM_HZ / ((b.value - a.value) & 0xffffff);
	guest_printf("# TSC at %lu Hz\n", tsc_hz);
	CHECK(tsc_hz > 200000000 && tsc_hz < 10000000000);
}

TEST(the_pm_timer_never_goes_back)
{
	u64 last = read_pm();

	for (unsigned i = 0; i < 2000; i++) {
		u64 now = read_pm();

		/* 2^23 counts are 2.3 s */
		if (!CHECK(((now - last) & 0xffffff) < 0x800000))
			break;
		last = now;
	}
}

/* --- TSC and CPUID -------------------------------------------------------------------------------
 */
TEST(cpuid_tells_the_tsc_rate_where_it_tells_one)
{
	u32 r[4];

	cpuid(0, 0, r);
	if (r[EAX] < 0x15) {
		guest_skip("no leaf 0x15");
		return;
	}
	cpuid(0x15, 0, r);
	if (!r[EAX] || !r[EBX] || !r[ECX]) {
		guest_skip("leaf 0x15 is empty");
		return;
	}
	check_rate("TSC by CPUID", tsc_hz, (u64)r[ECX] * r[EBX] / r[EAX]);
}

TEST(the_paravirtual_leaf_tells_the_tsc_rate)
{
	u32 r[4];

	cpuid(0x40000000, 0, r);
	if (r[EBX] != 0x4b4d564b || r[EAX] < 0x40000010) { /* "KVMK" */
		guest_skip("no timing leaf");
		return;
	}
	cpuid(0x40000010, 0, r);
	check_rate("TSC by the timing leaf", tsc_hz, r[EAX] * 1000ull);
}

TEST(the_tsc_agrees_between_cpus)
{
	static volatile u64 there;
	void sample(void *p);

	for (unsigned cpu = 1; cpu < smp_count(); cpu++) {
		u64 before = rdtsc(), after;

		if (!CHECK(smp_run(cpu, sample, (void *)&there)))
			return;
		smp_wait(cpu);
		after = rdtsc();
		CHECK_ROW(guest_name("CPU %u", cpu), true, there >= before && there <= after);
	}
}

void sample(void *p)
{
	*(volatile u64 *)p = rdtsc();
}

/* --- HPET --------------------------------------------------------------------------------------
 */
static u64 hpet;

static u64 hpet_read(u32 offset)
{
	return *(volatile u64 *)(hpet + offset);
}

static void hpet_write(u32 offset, u64 v)
{
	*(volatile u64 *)(hpet + offset) = v;
}

static u64 read_hpet(void)
{
	return hpet_read(0xf0);
}

static bool find_hpet(void)
{
	const u8 *t = acpi_find("HPET");

	if (!t) {
		guest_skip("no HPET");
		return false;
	}
	hpet = *(const u64 *)(t + 44);
	return true;
}

static u64 hpet_hz(void)
{
	return 1000000000000000ull / (hpet_read(0) >> 32);
}

enum { HPET_CONFIG = 0x10, HPET_STATUS = 0x20, HPET_T0 = 0x100, HPET_T0_COMPARE = 0x108 };
enum { T_LEVEL = 2, T_ENABLE = 4, T_PERIODIC = 8, T_CAN_PERIODIC = 16, T_SET = 64 };

TEST(the_hpet_counts_at_its_own_rate)
{
	u64 stopped;

	if (!find_hpet())
		return;
	CHECK((hpet_read(0) & 0xff) != 0);             /* revision */
	CHECK((u32)(hpet_read(0) >> 32) <= 100000000); /* at most 100 ns */
	CHECK((hpet_read(0) >> 8 & 31) >= 2);          /* three timers at least */
	hpet_write(HPET_CONFIG, 0);
	stopped = read_hpet();
	wait_ms(2);
	CHECK_EQ(stopped, read_hpet());
	hpet_write(0xf0, 0); /* may be set while it stands */
	CHECK_EQ(0, read_hpet());
	hpet_write(HPET_CONFIG, 1);
	check_rate("HPET", hpet_hz(), measure(read_hpet, 1ull << 32, 50));
}

static volatile unsigned ticks;

static void on_tick(struct trap_frame *f)
{
	ticks++;
	apic_eoi();
}

/* The I/O APIC input of a timer: any that it can reach. */
static int hpet_pin(unsigned timer)
{
	u32 can = hpet_read(HPET_T0 + 0x20 * timer) >> 32;

	for (int pin = 23; pin >= 3; pin--)
		if (can >> pin & 1)
			return pin;
	return -1;
}

/* While the counter stands: on a busy host it could be past the comparator before that is written,
 * and would meet it only a turn of 32 bits later. */
static void hpet_arm(int pin, u64 flags, u64 in_ms)
{
	hpet_write(HPET_CONFIG, 0);
	hpet_write(HPET_T0, (u64)pin << 9 | flags | T_ENABLE);
	hpet_write(HPET_T0_COMPARE, read_hpet() + hpet_hz() / 1000 * in_ms);
	hpet_write(HPET_CONFIG, 1);
}

TEST(an_hpet_comparator_interrupts_once)
{
	int pin;

	if (!find_hpet() || !CHECK((pin = hpet_pin(0)) >= 0))
		return;
	apic_on();
	trap_set_handler(0xc0, on_tick);
	ticks = 0;
	ioapic_route(pin, 0, 0xc0);
	hpet_arm(pin, 0, 5);
	asm volatile("sti");
	CHECK(WAIT_FOR(ticks));
	wait_ms(10);
	asm volatile("cli");
	CHECK_EQ(1, ticks);
	hpet_write(HPET_T0, 0);
	ioapic_route(pin, 0, LVT_MASKED);
}

TEST(an_hpet_timer_can_be_periodic)
{
	int pin;

	if (!find_hpet() || !CHECK((pin = hpet_pin(0)) >= 0))
		return;
	if (!(hpet_read(HPET_T0) & T_CAN_PERIODIC)) {
		guest_skip("timer 0 is not periodic");
		return;
	}
	ticks = 0;
	hpet_write(HPET_CONFIG, 0);
	hpet_write(0xf0, 0);
	ioapic_route(pin, 0, 0xc0);
	hpet_write(HPET_T0, (u64)pin << 9 | T_ENABLE | T_PERIODIC | T_SET);
	hpet_write(HPET_T0_COMPARE, hpet_hz() / 200); /* first at 5 ms */
	hpet_write(HPET_T0_COMPARE, hpet_hz() / 200); /* then each 5 ms */
	hpet_write(HPET_CONFIG, 1);
	asm volatile("sti");
	CHECK(WAIT_FOR(ticks >= 8));
	asm volatile("cli");
	CHECK(read_hpet() >= hpet_hz() / 200 * 8);
	hpet_write(HPET_T0, 0);
	ioapic_route(pin, 0, LVT_MASKED);
}

/* Level-triggered: as long as the status bit is set the line is, and each EOI brings the next. */
static volatile u64 remote_irr;
static int level_pin;

static void on_level(struct trap_frame *f)
{
	remote_irr = ioapic_read(0x10 + 2 * level_pin) & 1 << 14;
	if (++ticks == 3) {
		hpet_write(HPET_T0, 0);
		hpet_write(HPET_STATUS, 1);
	}
	apic_eoi();
}

TEST(a_level_triggered_interrupt_repeats_until_its_cause_is_gone)
{
	if (!find_hpet() || !CHECK((level_pin = hpet_pin(0)) >= 0))
		return;
	trap_set_handler(0xc1, on_level);
	ticks = 0;
	remote_irr = 0;
	ioapic_route(level_pin, 0, 1 << 15 | 0xc1);
	hpet_arm(level_pin, T_LEVEL, 3);
	asm volatile("sti");
	CHECK(WAIT_FOR(ticks >= 3));
	wait_ms(10);
	asm volatile("cli");
	CHECK_EQ(3, ticks);
	CHECK_EQ(1 << 14, remote_irr);
	CHECK_EQ(0, ioapic_read(0x10 + 2 * level_pin) & 1 << 14);
	CHECK_EQ(0, hpet_read(HPET_STATUS) & 1);
	ioapic_route(level_pin, 0, LVT_MASKED);
}

/* --- PIT ---------------------------------------------------------------------------------------
 */
static u64 read_pit(void)
{
	u16 v;

	outb(0x43, 0x00); /* latch channel 0 */
	v = inb(0x40);
	return 0x10000 - (v | inb(0x40) << 8);
}

TEST(the_pit_counts_at_its_rate)
{
	pit_start(2, 0); /* 65536 counts are 55 ms */
	check_rate("PIT", PIT_HZ, measure(read_pit, 0x10000, 10));
}

TEST(the_pit_reads_back_its_mode_and_count)
{
	u8 status;

	outb(0x43, 0x34);
	outb(0x40, 0x34);
	outb(0x40, 0x12);
	outb(0x43, 0xc2); /* read back: count and status of channel 0 */
	status = inb(0x40);
	CHECK_EQ(0x34, status & 0x3f);
	CHECK((inb(0x40) | inb(0x40) << 8) <= 0x1234);
	outb(0x43, 0xe2); /* status only */
	CHECK_EQ(0x34, inb(0x40) & 0x3f);
}

/* Channel 2 by its gate, as calibration loops use it. */
TEST(pit_channel_2_ends_its_count)
{
	u64 t0, spent;
	bool ended;

	outb(0x61, (inb(0x61) & ~2) | 1);
	outb(0x43, 0xb0); /* mode 0 */
	outb(0x42, 59659 & 0xff);
	t0 = rdtsc();
	outb(0x42, 59659 >> 8); /* 50 ms */
	ended = inb(0x61) & 0x20;
	CHECK(!ended || (rdtsc() - t0) / (tsc_hz / 1000) > 40);
	CHECK(WAIT_FOR(inb(0x61) & 0x20));
	spent = (rdtsc() - t0) / (tsc_hz / 1000000);
	CHECK_ROW(guest_name("%lu us", spent), true, spent > 40000);
	outb(0x61, inb(0x61) & ~3);
}

TEST(pit_channel_2_stands_while_its_gate_is_low)
{
	u16 a, b;

	outb(0x61, inb(0x61) & ~3);
	outb(0x43, 0xb0);
	outb(0x42, 0xff);
	outb(0x42, 0xff);
	outb(0x43, 0x80);
	a = inb(0x42);
	a |= inb(0x42) << 8;
	wait_ms(2);
	outb(0x43, 0x80);
	b = inb(0x42);
	b |= inb(0x42) << 8;
	CHECK_EQ(a, b);
}

/* --- RTC ---------------------------------------------------------------------------------------
 */
static u8 cmos(u8 index)
{
	outb(0x70, index);
	return inb(0x71);
}

static void cmos_write(u8 index, u8 v)
{
	outb(0x70, index);
	outb(0x71, v);
}

static bool is_bcd(u8 v, u8 least, u8 most)
{
	u8 n = (v >> 4) * 10 + (v & 15);

	return (v & 15) < 10 && n >= least && n <= most;
}

TEST(the_rtc_tells_a_date)
{
	u8 b = cmos(0x0b);

	CHECK_EQ(0x80, cmos(0x0d) & 0x80); /* power is fine */
	CHECK_EQ(0, b & 0x80);             /* it runs */
	if (b & 4) {
		guest_skip("binary mode");
		return;
	}
	CHECK(is_bcd(cmos(0), 0, 59));
	CHECK(is_bcd(cmos(2), 0, 59));
	CHECK(is_bcd(cmos(4) & 0x7f, 0, 23));
	CHECK(is_bcd(cmos(7), 1, 31));
	CHECK(is_bcd(cmos(8), 1, 12));
	CHECK(is_bcd(cmos(9), 0, 99));
}

TEST(the_rtc_periodic_flag_goes_at_its_rate)
{
	u64 t0, t1, hz;
	unsigned n = 0;

	cmos_write(0x0a, 0x26); /* 1024 Hz */
	cmos(0x0c);
	while (!(cmos(0x0c) & 0x40))
		;
	t0 = rdtsc();
	while (n < 64)
		n += cmos(0x0c) >> 6 & 1;
	t1 = rdtsc();
	hz = 64 * tsc_hz / (t1 - t0);
	/* polled: ticks may be missed, so only too fast is wrong */
	CHECK_ROW(guest_name("%lu Hz", hz), true, hz < 1024 + 1024 / 5 && hz > 2);
}

/* The longest of a few seconds: seen late, one looks short. */
TEST(the_rtc_seconds_go_on)
{
	u64 longest = 0;

	for (unsigned i = 0; i < 4 && longest <= 800; i++) {
		u8 second = cmos(0);
		u64 t0 = rdtsc(), spent;

		if (!CHECK(WAIT_FOR(cmos(0) != second)))
			return;
		spent = (rdtsc() - t0) / (tsc_hz / 1000);
		longest = spent > longest ? spent : longest;
	}
	CHECK_ROW(guest_name("%lu ms", longest), true, longest > 800);
}

TEST(the_rtc_periodic_interrupt_arrives)
{
	u8 pin = isa_gsi(8);

	apic_on();
	trap_set_handler(0xc2, on_tick);
	ticks = 0;
	ioapic_route(pin, 0, 0xc2);
	cmos_write(0x0a, 0x26);
	cmos(0x0c);
	cmos_write(0x0b, cmos(0x0b) | 0x40);
	asm volatile("sti");
	CHECK(WAIT_FOR(ticks));
	wait_ms(5);
	CHECK_EQ(1, ticks); /* the flag has to be read first */
	for (unsigned want = 2; want < 10; want++) {
		cmos(0x0c);
		CHECK(WAIT_FOR(ticks >= want));
	}
	asm volatile("cli");
	cmos_write(0x0b, cmos(0x0b) & ~0x40);
	cmos(0x0c);
	ioapic_route(pin, 0, LVT_MASKED);
}

/* --- local APIC timer ----------------------------------------------------------------------------
 */
static u64 read_apic_timer(void)
{
	return 0xffffffff - apic_read(APIC_TIMER_CURRENT);
}

TEST(the_apic_timer_is_steady)
{
	u64 a, b;

	apic_on();
	apic_write(APIC_TIMER_DIVIDE, 3); /* by 16 */
	apic_write(APIC_LVT_TIMER, LVT_MASKED);
	apic_write(APIC_TIMER_INITIAL, 0xffffffff);
	a = measure(read_apic_timer, 1ull << 32, 30);
	b = measure(read_apic_timer, 1ull << 32, 60);
	check_rate("second measurement of the APIC timer", a, b);
	apic_write(APIC_TIMER_INITIAL, 0);
}

/* --- the paravirtual clock -----------------------------------------------------------------------
 */
static volatile struct {
	u32 version, pad;
	u64 tsc, system_ns;
	u32 mul;
	int8_t shift;
	u8 flags, pad2[2];
} pvclock __attribute__((aligned(64)));

static u64 read_pvclock(void)
{
	u64 delta = rdtsc() - pvclock.tsc;

	delta = pvclock.shift < 0 ? delta >> -pvclock.shift : delta << pvclock.shift;
	return pvclock.system_ns + (u64)((unsigned __int128)delta * pvclock.mul >> 32);
}

TEST(the_paravirtual_clock_counts_nanoseconds)
{
	u32 r[4];

	cpuid(0x40000000, 0, r);
	if (r[EBX] != 0x4b4d564b) {
		guest_skip("no paravirtual clock");
		return;
	}
	cpuid(0x40000001, 0, r);
	if (!(r[EAX] & 8)) {
		guest_skip("no paravirtual clock");
		return;
	}
	wrmsr(0x4b564d01, (u64)&pvclock | 1);
	CHECK_EQ(0, pvclock.version & 1);
	CHECK(pvclock.version != 0);
	check_rate("paravirtual clock", 1000000000, measure(read_pvclock, 0, 30));
	wrmsr(0x4b564d01, 0);
}
