/* PIT, port 61h, RTC, HPET and PM timer, as a guest drives them.  Time is the test's. */
#include "board.h"

static const uint64_t MS = 1000000;

/* A pin of the I/O APIC delivered to CPU 0. */
static void listen(struct board *b, unsigned pin, uint8_t vector)
{
	apic_enable(b, 0);
	ioapic_route(b, pin, vector, 0);
}

/* How many interrupts come in `ns`, looked at every `step_ns`. */
static unsigned count_interrupts(struct board *b, uint64_t ns, uint64_t step_ns)
{
	unsigned n = 0;

	for (uint64_t t = 0; t < ns; t += step_ns) {
		board_advance(b, step_ns);
		while (b->intr[0]) {
			CHECK(ack(b, 0) > 0);
			apic_eoi(b, 0);
			n++;
		}
	}
	return n;
}

/* ---- PIT ---- */

static void pit_program(struct board *b, unsigned channel, unsigned mode, uint16_t count)
{
	outb(b, 0x43, channel << 6 | 3 << 4 | mode << 1);
	outb(b, 0x40 + channel, count);
	outb(b, 0x40 + channel, count >> 8);
}

static uint16_t pit_count(struct board *b, unsigned channel)
{
	uint8_t low;

	outb(b, 0x43, channel << 6);
	low = inb(b, 0x40 + channel);
	return low | inb(b, 0x40 + channel) << 8;
}

TEST(pit_mode_2_ticks_at_its_rate)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, GSI_PIT, 0x40);
	pit_program(&b, 0, 2, 1193); /* about 1 kHz */
	CHECK_EQ(1000, count_interrupts(&b, 1000 * MS, MS / 4));
	board_stop(&b);
}

TEST(pit_mode_3_ticks_at_the_same_rate)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, GSI_PIT, 0x40);
	pit_program(&b, 0, 3, 11932); /* 100 Hz */
	CHECK_EQ(100, count_interrupts(&b, 1001 * MS, MS));
	board_stop(&b);
}

TEST(pit_ticks_nobody_took_merge)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, GSI_PIT, 0x40);
	pit_program(&b, 0, 2, 1193);
	CHECK_EQ(1, count_interrupts(&b, 100 * MS, 100 * MS));
	board_stop(&b);
}

TEST(pit_mode_0_interrupts_once_at_zero)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, GSI_PIT, 0x40);
	pit_program(&b, 0, 0, 11932);
	board_advance(&b, 10 * MS - 1000);
	CHECK(!b.intr[0]);
	CHECK_EQ(1, count_interrupts(&b, 200 * MS, MS));
	board_stop(&b);
}

TEST(pit_mode_4_interrupts_once_a_tick_later)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, GSI_PIT, 0x40);
	pit_program(&b, 0, 4, 11932);
	CHECK_EQ(1, count_interrupts(&b, 200 * MS, MS));
	board_stop(&b);
}

TEST(pit_interrupts_the_8259_pair_too)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	pic_start(&b, 1);
	pit_program(&b, 0, 2, 1193);
	board_advance(&b, MS);
	CHECK_EQ(0x20, ack(&b, 0));
	outb(&b, 0x20, 0x20);
	CHECK(!b.intr[0]);
	board_advance(&b, MS);
	CHECK_EQ(0x20, ack(&b, 0));
	board_stop(&b);
}

TEST(pit_counts_down_and_wraps)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	pit_program(&b, 0, 2, 10000);
	/* 1 ms is 1193.182 ticks. */
	board_advance(&b, MS);
	CHECK_EQ(10000 - 1193, pit_count(&b, 0));
	board_advance(&b, 9 * MS);
	CHECK_EQ(10000 - 1931, pit_count(&b, 0));
	board_stop(&b);
}

TEST(pit_count_of_zero_means_65536)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	pit_program(&b, 0, 2, 0);
	CHECK_EQ(0, pit_count(&b, 0));
	board_advance(&b, MS);
	CHECK_EQ(65536 - 1193, pit_count(&b, 0));
	board_stop(&b);
}

TEST(a_latched_count_waits_to_be_read)
{
	struct board b;
	uint8_t low;

	board_start(&b, 1, 16 * MiB);
	pit_program(&b, 0, 2, 10000);
	board_advance(&b, MS);
	outb(&b, 0x43, 0);
	board_advance(&b, MS);
	outb(&b, 0x43, 0); /* a second latch is ignored */
	low = inb(&b, 0x40);
	CHECK_EQ(10000 - 1193, low | inb(&b, 0x40) << 8);
	CHECK_EQ(10000 - 2386, pit_count(&b, 0));
	board_stop(&b);
}

TEST(read_back_shows_mode_and_output)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	pit_program(&b, 0, 0, 1193);
	outb(&b, 0x43, 0xE2); /* status of channel 0 */
	CHECK_EQ(0x30, inb(&b, 0x40));
	board_advance(&b, 2 * MS);
	outb(&b, 0x43, 0xE2);
	CHECK_EQ(0xB0, inb(&b, 0x40)); /* OUT is high */
	board_stop(&b);
}

TEST(a_new_count_in_mode_2_waits_for_the_end_of_the_period)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, GSI_PIT, 0x40);
	pit_program(&b, 0, 2, 11932); /* 10 ms */
	board_advance(&b, 5 * MS);
	outb(&b, 0x40, 1193 & 0xFF); /* then 1 ms */
	outb(&b, 0x40, 1193 >> 8);
	CHECK_EQ(0, count_interrupts(&b, 4 * MS, MS));
	CHECK_EQ(11, count_interrupts(&b, 11 * MS + MS / 2, MS / 4));
	board_stop(&b);
}

TEST(bcd_counts_in_decimal)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	outb(&b, 0x43, 3 << 4 | 2 << 1 | 1);
	outb(&b, 0x40, 0x00);
	outb(&b, 0x40, 0x20); /* 2000 */
	board_advance(&b, MS);
	CHECK_EQ(0x0807, pit_count(&b, 0));
	board_stop(&b);
}

TEST(an_absurd_rate_costs_no_more_than_a_bearable_one)
{
	struct board b;
	unsigned n;

	board_start(&b, 1, 16 * MiB);
	listen(&b, GSI_PIT, 0x40);
	pit_program(&b, 0, 2, 2);
	n = count_interrupts(&b, 10 * MS, 1000);
	CHECK(n > 100 && n <= 10 * MS / VTIMER_MIN_PERIOD_NS);
	board_stop(&b);
}

/* How Linux and others measure the TSC when they must. */
TEST(channel_2_is_gated_and_read_through_port_61)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	outb(&b, 0x61, 0);
	pit_program(&b, 2, 0, 11932);
	board_advance(&b, 50 * MS);
	CHECK_EQ(0, inb(&b, 0x61) & 0x20); /* the gate is closed */
	outb(&b, 0x61, 1);
	board_advance(&b, 10 * MS - 1000);
	CHECK_EQ(0, inb(&b, 0x61) & 0x20);
	board_advance(&b, 2000);
	CHECK_EQ(0x20, inb(&b, 0x61) & 0x20);
	board_stop(&b);
}

TEST(closing_the_gate_holds_the_count)
{
	struct board b;
	uint16_t held;

	board_start(&b, 1, 16 * MiB);
	outb(&b, 0x61, 1);
	pit_program(&b, 2, 0, 10000);
	board_advance(&b, MS);
	outb(&b, 0x61, 0);
	held = pit_count(&b, 2);
	CHECK_EQ(10000 - 1193, held);
	board_advance(&b, 5 * MS);
	CHECK_EQ(held, pit_count(&b, 2));
	outb(&b, 0x61, 1);
	board_advance(&b, MS);
	CHECK_EQ(10000 - 2386, pit_count(&b, 2));
	board_stop(&b);
}

TEST(a_rising_gate_triggers_the_one_shot)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	pit_program(&b, 2, 1, 1193);
	CHECK_EQ(0x20, inb(&b, 0x61) & 0x20);
	outb(&b, 0x61, 1);
	CHECK_EQ(0, inb(&b, 0x61) & 0x20);
	board_advance(&b, 2 * MS);
	CHECK_EQ(0x20, inb(&b, 0x61) & 0x20);
	outb(&b, 0x61, 0);
	outb(&b, 0x61, 1);
	CHECK_EQ(0, inb(&b, 0x61) & 0x20);
	board_stop(&b);
}

TEST(the_refresh_bit_toggles_every_15_us)
{
	struct board b;
	uint8_t was;

	board_start(&b, 1, 16 * MiB);
	was = inb(&b, 0x61) & 0x10;
	board_advance(&b, 15085);
	CHECK(was != (inb(&b, 0x61) & 0x10));
	board_advance(&b, 15085);
	CHECK_EQ(was, inb(&b, 0x61) & 0x10);
	board_stop(&b);
}

/* ---- RTC ---- */

static uint8_t rtc_get(struct board *b, uint8_t index)
{
	outb(b, 0x70, index);
	return inb(b, 0x71);
}

static void rtc_put(struct board *b, uint8_t index, uint8_t v)
{
	outb(b, 0x70, index);
	outb(b, 0x71, v);
}

/* 2024-02-29 23:59:58 UTC, a Thursday */
#define LEAP_EVE 1709251198ull

static void start_at(struct board *b, uint64_t seconds)
{
	board_start(b, 1, 64 * MiB);
	vclock_set_real_ns(b->clock, seconds * 1000 * MS);
	outb(b, 0x70, 0x0C); /* flags of the jump from 1970 */
	inb(b, 0x71);
}

TEST(rtc_shows_the_hosts_time_in_utc_and_bcd)
{
	struct board b;

	start_at(&b, LEAP_EVE);
	CHECK_EQ(0x58, rtc_get(&b, 0));
	CHECK_EQ(0x59, rtc_get(&b, 2));
	CHECK_EQ(0x23, rtc_get(&b, 4));
	CHECK_EQ(0x05, rtc_get(&b, 6)); /* Sunday is 1 */
	CHECK_EQ(0x29, rtc_get(&b, 7));
	CHECK_EQ(0x02, rtc_get(&b, 8));
	CHECK_EQ(0x24, rtc_get(&b, 9));
	CHECK_EQ(0x20, rtc_get(&b, 0x32));
	board_advance(&b, 2000 * MS);
	CHECK_EQ(0x00, rtc_get(&b, 0));
	CHECK_EQ(0x01, rtc_get(&b, 7));
	CHECK_EQ(0x03, rtc_get(&b, 8));
	board_stop(&b);
}

TEST(rtc_in_binary_and_12_hours)
{
	struct board b;

	start_at(&b, LEAP_EVE);
	rtc_put(&b, 0x0B, 0x04);
	CHECK_EQ(58, rtc_get(&b, 0));
	CHECK_EQ(0x80 | 11, rtc_get(&b, 4)); /* 11 pm */
	rtc_put(&b, 0x0B, 0x00);
	CHECK_EQ(0x91, rtc_get(&b, 4));
	board_advance(&b, 2000 * MS);
	CHECK_EQ(0x12, rtc_get(&b, 4)); /* midnight is 12 am */
	board_stop(&b);
}

TEST(rtc_time_can_be_set_and_goes_on_from_there)
{
	struct board b;

	start_at(&b, LEAP_EVE);
	rtc_put(&b, 0x0B, 0x82);
	rtc_put(&b, 0, 0x59);
	rtc_put(&b, 2, 0x59);
	rtc_put(&b, 4, 0x23);
	rtc_put(&b, 7, 0x31);
	rtc_put(&b, 8, 0x12);
	rtc_put(&b, 9, 0x99);
	rtc_put(&b, 0x32, 0x19);
	board_advance(&b, 5000 * MS);
	CHECK_EQ(0x59, rtc_get(&b, 0)); /* stopped while being set */
	rtc_put(&b, 0x0B, 0x02);
	board_advance(&b, 1000 * MS);
	CHECK_EQ(0x00, rtc_get(&b, 0));
	CHECK_EQ(0x01, rtc_get(&b, 7));
	CHECK_EQ(0x01, rtc_get(&b, 8));
	CHECK_EQ(0x00, rtc_get(&b, 9));
	CHECK_EQ(0x20, rtc_get(&b, 0x32));
	board_stop(&b);
}

TEST(uip_announces_the_change_of_second)
{
	struct board b;

	start_at(&b, LEAP_EVE);
	CHECK_EQ(0x26, rtc_get(&b, 0x0A));
	board_advance(&b, 1000 * MS - 200000);
	CHECK_EQ(0xA6, rtc_get(&b, 0x0A));
	board_advance(&b, 200000);
	CHECK_EQ(0x26, rtc_get(&b, 0x0A));
	board_stop(&b);
}

TEST(alarm_comes_at_its_time)
{
	struct board b;

	start_at(&b, LEAP_EVE);
	listen(&b, IRQ_RTC, 0x48);
	rtc_put(&b, 1, 0x05);
	rtc_put(&b, 3, 0x00);
	rtc_put(&b, 5, 0x00);
	rtc_put(&b, 0x0B, 0x22);
	board_advance(&b, 6999 * (uint64_t)MS);
	CHECK(!b.intr[0]);
	board_advance(&b, MS);
	CHECK_EQ(0x48, ack(&b, 0));
	CHECK_EQ(0xF0, rtc_get(&b, 0x0C)); /* IRQ, periodic, alarm, update */
	CHECK_EQ(0x00, rtc_get(&b, 0x0C)); /* reading cleared them */
	board_stop(&b);
}

TEST(alarm_with_wildcards_repeats_every_minute)
{
	struct board b;

	start_at(&b, LEAP_EVE);
	listen(&b, IRQ_RTC, 0x48);
	rtc_put(&b, 1, 0x30);
	rtc_put(&b, 3, 0xFF);
	rtc_put(&b, 5, 0xC0);
	rtc_put(&b, 0x0B, 0x22);
	board_advance(&b, 32000 * (uint64_t)MS);
	CHECK_EQ(0x48, ack(&b, 0));
	apic_eoi(&b, 0);
	rtc_get(&b, 0x0C);
	board_advance(&b, 59999 * (uint64_t)MS);
	CHECK(!b.intr[0]);
	board_advance(&b, MS);
	CHECK(b.intr[0]);
	board_stop(&b);
}

TEST(an_impossible_alarm_never_comes)
{
	struct board b;

	start_at(&b, LEAP_EVE);
	listen(&b, IRQ_RTC, 0x48);
	rtc_put(&b, 1, 0x75);
	rtc_put(&b, 3, 0xFF);
	rtc_put(&b, 5, 0xFF);
	rtc_put(&b, 0x0B, 0x22);
	board_advance(&b, 3 * 86400000ull * MS);
	CHECK(!b.intr[0]);
	CHECK_EQ(0x10, rtc_get(&b, 0x0C) & 0x30);
	board_stop(&b);
}

TEST(periodic_interrupt_runs_at_its_rate_when_register_c_is_read)
{
	struct board b;
	unsigned n = 0;

	start_at(&b, LEAP_EVE);
	listen(&b, IRQ_RTC, 0x48);
	rtc_put(&b, 0x0A, 0x26); /* 1024 Hz */
	rtc_put(&b, 0x0B, 0x42);
	for (unsigned i = 0; i < 10000; i++) {
		board_advance(&b, MS / 10);
		if (!b.intr[0])
			continue;
		CHECK_EQ(0x48, ack(&b, 0));
		CHECK_EQ(0xC0, rtc_get(&b, 0x0C) & 0xC0);
		apic_eoi(&b, 0);
		n++;
	}
	CHECK_EQ(1024, n);
	/* Unread, the line stays high and nothing more comes. */
	board_advance(&b, 100 * MS);
	CHECK_EQ(0x48, ack(&b, 0));
	apic_eoi(&b, 0);
	board_advance(&b, 100 * MS);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(cmos_says_how_much_memory_there_is)
{
	struct board b;

	board_start(&b, 1, 3 * GiB);
	CHECK_EQ(640, rtc_get(&b, 0x15) | rtc_get(&b, 0x16) << 8);
	CHECK_EQ(0xFFFF, rtc_get(&b, 0x17) | rtc_get(&b, 0x18) << 8);
	CHECK_EQ((2048 - 16) * 16, rtc_get(&b, 0x34) | rtc_get(&b, 0x35) << 8);
	CHECK_EQ(1024 * 16, rtc_get(&b, 0x5B) | rtc_get(&b, 0x5C) << 8 | rtc_get(&b, 0x5D) << 16);
	CHECK_EQ(0x80, rtc_get(&b, 0x0D));
	rtc_put(&b, 0x0F, 0x0A);           /* shutdown status is plain memory */
	CHECK_EQ(0x0A, rtc_get(&b, 0x8F)); /* bit 7 only masks NMI */
	board_stop(&b);
}

/* ---- HPET ---- */

enum { T0 = 0x100, T1 = 0x120, T2 = 0x140, CONFIG = 0, COMPARATOR = 8, FSB = 0x10 };

static uint64_t hpet_get(struct board *b, unsigned reg)
{
	return mmio_read(b, 0, MEMMAP_HPET + reg, 8);
}

static void hpet_put(struct board *b, unsigned reg, uint64_t v)
{
	mmio_write(b, 0, MEMMAP_HPET + reg, v, 8);
}

TEST(hpet_counts_at_100_mhz_when_enabled)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(10000000, hpet_get(&b, 0) >> 32);
	board_advance(&b, 1000);
	CHECK_EQ(0, hpet_get(&b, 0xF0));
	hpet_put(&b, 0x10, 1);
	board_advance(&b, 1000);
	CHECK_EQ(100, hpet_get(&b, 0xF0));
	hpet_put(&b, 0x10, 0);
	board_advance(&b, 1000);
	hpet_put(&b, 0x10, 1);
	board_advance(&b, 10);
	CHECK_EQ(101, hpet_get(&b, 0xF0));
	board_stop(&b);
}

TEST(hpet_registers_can_be_read_in_halves)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(10000000, mmio_read(&b, 0, MEMMAP_HPET + 4, 4));
	CHECK_EQ(0x8086A201, mmio_read(&b, 0, MEMMAP_HPET, 4));
	mmio_write(&b, 0, MEMMAP_HPET + 0xF4, 0x12, 4);
	CHECK_EQ(0x1200000000, hpet_get(&b, 0xF0));
	board_stop(&b);
}

TEST(hpet_one_shot_interrupts_at_its_pin)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, 20, 0x50);
	CHECK(hpet_get(&b, T2) >> (32 + 20) & 1);
	hpet_put(&b, 0x10, 1);
	hpet_put(&b, T2 + CONFIG, 20 << 9 | 1 << 2);
	hpet_put(&b, T2 + COMPARATOR, 100000); /* 1 ms */
	CHECK_EQ(1, count_interrupts(&b, 5 * MS, MS / 2));
	board_stop(&b);
}

TEST(hpet_level_interrupt_stays_until_status_is_written)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	ioapic_route(&b, 20, 1 << 15 | 0x50, 0);
	hpet_put(&b, 0x10, 1);
	hpet_put(&b, T2 + CONFIG, 20 << 9 | 1 << 2 | 1 << 1);
	hpet_put(&b, T2 + COMPARATOR, 100);
	board_advance(&b, 1000);
	CHECK_EQ(4, hpet_get(&b, 0x20));
	CHECK_EQ(0x50, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK_EQ(0x50, ack(&b, 0));
	hpet_put(&b, 0x20, 4);
	apic_eoi(&b, 0);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

/* A vCPU that its host stops between reading the counter and writing the comparator. */
TEST(hpet_comparator_written_too_late_is_due_at_once)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	hpet_put(&b, 0x10, 1);
	hpet_put(&b, T2 + CONFIG, 20 << 9 | 1 << 8 | 1 << 2 | 1 << 1);
	board_advance(&b, 10 * MS); /* to 1000000 */
	hpet_put(&b, T2 + COMPARATOR, 999000);
	board_advance(&b, 1);
	CHECK_EQ(4, hpet_get(&b, 0x20));
	hpet_put(&b, 0x20, 4);
	board_advance(&b, 1000 * MS);
	CHECK_EQ(0, hpet_get(&b, 0x20)); /* once */
	board_stop(&b);
}

/* The same of a periodic timer, stopped before the comparator is written, and before the period. */
TEST(hpet_periodic_started_too_late_keeps_its_period)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	hpet_put(&b, 0x10, 1);
	board_advance(&b, 10 * MS);
	hpet_put(&b, T2 + CONFIG, 20 << 9 | 1 << 8 | 1 << 6 | 1 << 3 | 1 << 2 | 1 << 1);
	hpet_put(&b, T2 + COMPARATOR, 999000);
	board_advance(&b, MS);
	CHECK_EQ(4, hpet_get(&b, 0x20));
	hpet_put(&b, T2 + COMPARATOR, 400000); /* 4 ms */
	for (unsigned i = 0; i < 5; i++) {
		board_advance(&b, 4 * MS);
		CHECK_EQ(4, hpet_get(&b, 0x20));
		hpet_put(&b, 0x20, 4);
	}
	board_stop(&b);
}

TEST(hpet_periodic_in_legacy_mode_replaces_the_pit)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, GSI_PIT, 0x40);
	pit_program(&b, 0, 2, 1193);
	hpet_put(&b, T0 + CONFIG, 1 << 6 | 1 << 3 | 1 << 2);
	hpet_put(&b, T0 + COMPARATOR, 1000000); /* 10 ms */
	hpet_put(&b, T0 + COMPARATOR, 1000000);
	hpet_put(&b, 0x10, 3);
	CHECK_EQ(10, count_interrupts(&b, 100 * MS, MS / 2));
	/* The PIT is back when legacy replacement ends. */
	hpet_put(&b, 0x10, 1);
	CHECK_EQ(100, count_interrupts(&b, 100 * MS, MS / 2));
	board_stop(&b);
}

TEST(hpet_legacy_ticks_reach_the_8259_pair)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	pic_start(&b, 1);
	hpet_put(&b, T0 + CONFIG, 1 << 6 | 1 << 3 | 1 << 2);
	hpet_put(&b, T0 + COMPARATOR, 100000);
	hpet_put(&b, 0x10, 3);
	board_advance(&b, MS);
	CHECK_EQ(0x20, ack(&b, 0));
	board_stop(&b);
}

TEST(hpet_messages_go_where_the_fsb_register_says)
{
	struct board b;

	board_start(&b, 2, 16 * MiB);
	apic_enable(&b, 1);
	hpet_put(&b, 0x10, 1);
	hpet_put(&b, T1 + FSB, 0xFEE01000ull << 32 | 0x77);
	hpet_put(&b, T1 + CONFIG, 1 << 14 | 1 << 2);
	hpet_put(&b, T1 + COMPARATOR, 100);
	board_advance(&b, 1000);
	CHECK_EQ(0x77, ack(&b, 1));
	board_stop(&b);
}

TEST(a_32_bit_comparator_matches_the_low_half)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	listen(&b, 20, 0x50);
	hpet_put(&b, 0xF0, 0xFFFFFFF0);
	hpet_put(&b, 0x10, 1);
	hpet_put(&b, T2 + CONFIG, 20 << 9 | 1 << 8 | 1 << 2);
	mmio_write(&b, 0, MEMMAP_HPET + T2 + COMPARATOR, 0x10, 4);
	board_advance(&b, 319);
	CHECK(!b.intr[0]);
	board_advance(&b, 1);
	CHECK(b.intr[0]);
	board_stop(&b);
}

/* ---- PM timer ---- */

TEST(pm_timer_counts_at_3579545_hz)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	board_advance(&b, 1000 * MS);
	CHECK_EQ(3579545, in(&b, PORT_PM + 8, 4));
	board_stop(&b);
}

TEST(pm_timer_carry_raises_the_sci_when_enabled)
{
	struct board b;
	/* 2^31 ticks are 599.93 s. */
	uint64_t carry_ns = 599931801ull * 1000;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	ioapic_route(&b, IRQ_SCI, 1 << 15 | 0x39, 0);
	out(&b, PORT_PM + 2, 1, 2);
	board_advance(&b, carry_ns - MS);
	CHECK(!b.intr[0]);
	board_advance(&b, 2 * MS);
	CHECK_EQ(0x39, ack(&b, 0));
	CHECK_EQ(1, in(&b, PORT_PM, 2));
	out(&b, PORT_PM, 1, 2);
	apic_eoi(&b, 0);
	CHECK(!b.intr[0]);
	board_stop(&b);
}
