/* KVM's paravirtual interface, as Linux uses it. */
#include "base/bytes.h"
#include "board.h"

enum { MSR_WALL_CLOCK = 0x4b564d00, MSR_SYSTEM_TIME = 0x4b564d01, MSR_PV_EOI = 0x4b564d04 };
enum { CLOCK_GPA = 0x200000, WALL_GPA = 0x201000, EOI_GPA = 0x202000 };
enum { ENOSYS_KVM = 1000 };

static void cpuid(struct board *b, unsigned cpu, uint32_t leaf, uint32_t sub, uint32_t regs[4])
{
	machine_cpu_ops.cpuid(machine_cpu(b->machine, cpu), leaf, sub, regs);
}

TEST(the_signature_and_the_frequencies_are_there)
{
	struct board b;
	uint32_t r[4] = {0};

	board_start(&b, 1, 16 * MiB);
	cpuid(&b, 0, 0x40000000, 0, r);
	CHECK_EQ(0x40000010, r[0]);
	CHECK(!memcmp(&r[1], "KVMKVMKVM\0\0\0", 12));
	cpuid(&b, 0, 0x40000001, 0, r);
	CHECK_EQ(1 << 0 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 11 | 1 << 15 | 1 << 24, r[0]);
	cpuid(&b, 0, 0x40000010, 0, r);
	CHECK_EQ(3000000, r[0]);
	CHECK_EQ(1000000, r[1]);
	cpuid(&b, 0, 0x40000002, 0, r);
	CHECK_EQ(0, r[0]);
	board_stop(&b);
}

/* ---- clock ---- */

struct clock_page {
	uint32_t version;
	uint64_t tsc, system_time;
	uint32_t mul;
	int8_t shift;
	uint8_t flags;
};

static struct clock_page read_clock(struct board *b, gpa_t gpa)
{
	uint8_t p[32];

	CHECK_EQ(0, mem_read(b->mem, gpa, p, sizeof(p)));
	return (struct clock_page){
		.version = le32_load(p),
		.tsc = le64_load(p + 8),
		.system_time = le64_load(p + 16),
		.mul = le32_load(p + 24),
		.shift = (int8_t)p[28],
		.flags = p[29],
	};
}

/* The guest's own arithmetic. */
static uint64_t clock_at(const struct clock_page *c, uint64_t tsc)
{
	uint64_t delta = tsc - c->tsc;

	delta = c->shift < 0 ? delta >> -c->shift : delta << c->shift;
	return c->system_time + (uint64_t)((unsigned __int128)delta * c->mul >> 32);
}

TEST(system_time_follows_from_the_tsc)
{
	struct board b;
	struct clock_page c;

	board_start(&b, 1, 16 * MiB);
	board_advance(&b, 12345678);
	CHECK(wrmsr(&b, 0, MSR_SYSTEM_TIME, CLOCK_GPA | 1));
	c = read_clock(&b, CLOCK_GPA);
	CHECK(c.version && c.version % 2 == 0);
	CHECK_EQ(1, c.flags & 1);
	CHECK_EQ(12345678, clock_at(&c, board_tsc(&b, 0)));
	/* An hour on, within 2 us: a 32-bit factor is good for 10^-9. */
	board_advance(&b, 3600ull * 1000000000);
	CHECK(llabs((int64_t)(clock_at(&c, board_tsc(&b, 0)) - 3600012345678ull)) < 2000);
	board_stop(&b);
}

TEST(cpus_with_equal_tscs_get_the_same_numbers)
{
	struct board b;
	struct clock_page c0, c1;

	board_start(&b, 2, 16 * MiB);
	board_advance(&b, 1000);
	CHECK(wrmsr(&b, 0, MSR_SYSTEM_TIME, CLOCK_GPA | 1));
	board_advance(&b, 777777);
	CHECK(wrmsr(&b, 1, MSR_SYSTEM_TIME, (CLOCK_GPA + 64) | 1));
	c0 = read_clock(&b, CLOCK_GPA);
	c1 = read_clock(&b, CLOCK_GPA + 64);
	CHECK_EQ(c0.tsc, c1.tsc);
	CHECK_EQ(c0.system_time, c1.system_time);
	CHECK_EQ(1, c1.flags & 1);
	board_stop(&b);
}

TEST(a_cpu_with_another_tsc_gets_its_own_and_no_stable_flag)
{
	struct board b;
	struct clock_page c1;

	board_start(&b, 2, 16 * MiB);
	b.tsc_offset[1] = 5000000000;
	CHECK(wrmsr(&b, 0, MSR_SYSTEM_TIME, CLOCK_GPA | 1));
	board_advance(&b, 777777);
	CHECK(wrmsr(&b, 1, MSR_SYSTEM_TIME, (CLOCK_GPA + 64) | 1));
	c1 = read_clock(&b, CLOCK_GPA + 64);
	CHECK_EQ(0, c1.flags & 1);
	CHECK_EQ(777777, clock_at(&c1, board_tsc(&b, 1)));
	board_stop(&b);
}

TEST(setting_the_tsc_does_not_change_the_time)
{
	struct board b;
	struct clock_page c0, c1;

	board_start(&b, 2, 16 * MiB);
	CHECK(wrmsr(&b, 0, MSR_SYSTEM_TIME, CLOCK_GPA | 1));
	CHECK(wrmsr(&b, 1, MSR_SYSTEM_TIME, (CLOCK_GPA + 64) | 1));
	board_advance(&b, 1000000);
	b.tsc_offset[0] = -1000000;
	machine_cpu_ops.tsc_written(machine_cpu(b.machine, 0));
	board_advance(&b, 1000000);
	c0 = read_clock(&b, CLOCK_GPA);
	c1 = read_clock(&b, CLOCK_GPA + 64);
	CHECK(llabs((int64_t)clock_at(&c0, board_tsc(&b, 0)) - 2000000) < 2);
	CHECK(llabs((int64_t)clock_at(&c1, board_tsc(&b, 1)) - 2000000) < 2);
	CHECK_EQ(0, c1.flags & 1); /* the two can no longer be compared */
	b.tsc_offset[1] = b.tsc_offset[0];
	machine_cpu_ops.tsc_written(machine_cpu(b.machine, 1));
	c1 = read_clock(&b, CLOCK_GPA + 64);
	CHECK_EQ(1, c1.flags & 1);
	CHECK(llabs((int64_t)clock_at(&c1, board_tsc(&b, 1)) - 2000000) < 2);
	board_stop(&b);
}

TEST(wall_clock_is_the_time_of_day_at_system_time_zero)
{
	struct board b;
	uint8_t p[12];

	board_start(&b, 1, 16 * MiB);
	vclock_set_real_ns(b.clock, 1700000000ull * 1000000000);
	board_advance(&b, 2500000000ull);
	CHECK(wrmsr(&b, 0, MSR_WALL_CLOCK, WALL_GPA));
	CHECK_EQ(0, mem_read(b.mem, WALL_GPA, p, sizeof(p)));
	CHECK_EQ(2, le32_load(p));
	CHECK_EQ(1700000000, le32_load(p + 4));
	CHECK_EQ(0, le32_load(p + 8));
	board_stop(&b);
}

TEST(a_pause_does_not_show_but_is_flagged)
{
	struct board b;
	struct clock_page c;

	board_start(&b, 1, 16 * MiB);
	CHECK(wrmsr(&b, 0, MSR_SYSTEM_TIME, CLOCK_GPA | 1));
	board_advance(&b, 1000000);
	machine_pause(b.machine);
	board_advance(&b, 5000000);
	machine_resume(b.machine);
	c = read_clock(&b, CLOCK_GPA);
	CHECK_EQ(1000000, clock_at(&c, board_tsc(&b, 0)));
	CHECK_EQ(2, c.flags & 2);
	board_stop(&b);
}

TEST(a_clock_outside_ram_harms_nobody)
{
	struct board b;
	uint64_t v;

	board_start(&b, 1, 16 * MiB);
	CHECK(wrmsr(&b, 0, MSR_SYSTEM_TIME, 0xFFFFFFFFFFFFFFFD));
	CHECK(wrmsr(&b, 0, MSR_WALL_CLOCK, 0xFFFFFFFFFFFFFFFF));
	CHECK(wrmsr(&b, 0, MSR_SYSTEM_TIME, (16 * MiB - 4) | 1));
	CHECK(rdmsr(&b, 0, MSR_SYSTEM_TIME, &v));
	CHECK_EQ((16 * MiB - 4) | 1, v);
	CHECK(!wrmsr(&b, 0, 0x4b564d03, 1)); /* steal time is not offered */
	CHECK(!rdmsr(&b, 0, 0x1234, &v));
	board_stop(&b);
}

/* ---- end of interrupt ---- */

static uint8_t eoi_byte(struct board *b)
{
	uint8_t v;

	CHECK_EQ(0, mem_read(b->mem, EOI_GPA, &v, 1));
	return v;
}

/* The guest's EOI: clear the bit; only when it was clear already write the APIC. */
static bool guest_eoi(struct board *b)
{
	uint8_t v = eoi_byte(b);

	if (v & 1) {
		v &= ~1;
		CHECK_EQ(0, mem_write(b->mem, EOI_GPA, &v, 1));
		return true;
	}
	apic_eoi(b, 0);
	return false;
}

static void start_with_pv_eoi(struct board *b)
{
	board_start(b, 2, 16 * MiB);
	apic_enable(b, 0);
	apic_enable(b, 1);
	CHECK(!wrmsr(b, 0, MSR_PV_EOI, EOI_GPA | 3));
	CHECK(wrmsr(b, 0, MSR_PV_EOI, EOI_GPA | 1));
}

static void send_from_1(struct board *b, uint8_t vector)
{
	apic_write(b, 1, APIC_ICR_HIGH, 0);
	apic_write(b, 1, APIC_ICR, vector);
}

TEST(a_lone_interrupt_is_ended_through_memory)
{
	struct board b;

	start_with_pv_eoi(&b);
	send_from_1(&b, 0x50);
	CHECK_EQ(0x50, ack(&b, 0));
	CHECK_EQ(1, eoi_byte(&b));
	CHECK(guest_eoi(&b));
	CHECK_EQ(0, apic_read(&b, 0, APIC_ISR + 0x20));
	CHECK_EQ(0, apic_read(&b, 0, APIC_PPR));
	board_stop(&b);
}

TEST(after_an_eoi_through_memory_the_next_of_its_class_is_taken)
{
	struct board b;

	start_with_pv_eoi(&b);
	send_from_1(&b, 0x50);
	CHECK_EQ(0x50, ack(&b, 0));
	CHECK(guest_eoi(&b));
	send_from_1(&b, 0x51);
	CHECK(b.intr[0]);
	CHECK_EQ(0x51, ack(&b, 0));
	board_stop(&b);
}

TEST(an_interrupt_that_comes_inside_the_handler_waits_for_a_real_eoi)
{
	struct board b;

	start_with_pv_eoi(&b);
	send_from_1(&b, 0x50);
	CHECK_EQ(0x50, ack(&b, 0));
	send_from_1(&b, 0x51);
	/* Announced, as the EOI may have been done; it was not, so the offer is taken back. */
	CHECK(b.intr[0]);
	CHECK_EQ(-1, ack(&b, 0));
	CHECK(!b.intr[0]);
	CHECK_EQ(0, eoi_byte(&b));
	CHECK(!guest_eoi(&b));
	CHECK_EQ(0x51, ack(&b, 0));
	board_stop(&b);
}

TEST(a_nested_interrupt_is_ended_before_the_outer_one)
{
	struct board b;

	start_with_pv_eoi(&b);
	send_from_1(&b, 0x50);
	CHECK_EQ(0x50, ack(&b, 0));
	send_from_1(&b, 0x60);
	CHECK_EQ(0x60, ack(&b, 0));
	CHECK(guest_eoi(&b));  /* 0x60 */
	CHECK(!guest_eoi(&b)); /* 0x50: its offer was taken back */
	CHECK_EQ(0, apic_read(&b, 0, APIC_ISR + 0x20));
	CHECK_EQ(0, apic_read(&b, 0, APIC_ISR + 0x30));
	board_stop(&b);
}

TEST(level_interrupts_and_crowds_get_real_eois)
{
	struct board b;

	start_with_pv_eoi(&b);
	ioapic_route(&b, IRQ_SCI, 1 << 15 | 0x39, 0);
	out(&b, PORT_PM + 2, 1 << 8, 2);
	machine_power_button(b.machine);
	CHECK_EQ(0x39, ack(&b, 0));
	CHECK_EQ(0, eoi_byte(&b)); /* the I/O APIC must hear of it */
	out(&b, PORT_PM, 1 << 8, 2);
	apic_eoi(&b, 0);
	send_from_1(&b, 0x50);
	send_from_1(&b, 0x51);
	CHECK_EQ(0x51, ack(&b, 0));
	CHECK_EQ(0, eoi_byte(&b)); /* 0x50 waits for it */
	board_stop(&b);
}

/* ---- hypercalls ---- */

static int64_t vmcall(struct board *b, unsigned cpu, uint64_t nr, uint64_t rbx, uint64_t rcx,
		      uint64_t rdx, uint64_t rsi)
{
	uint64_t gpr[X86_NR_GPR] = {
		[X86_RAX] = nr, [X86_RBX] = rbx, [X86_RCX] = rcx, [X86_RDX] = rdx, [X86_RSI] = rsi};

	CHECK(machine_cpu_ops.hypercall(machine_cpu(b->machine, cpu), NULL, gpr));
	return (int64_t)gpr[X86_RAX];
}

TEST(one_hypercall_interrupts_many_cpus)
{
	struct board b;

	board_start(&b, 4, 16 * MiB);
	for (unsigned i = 0; i < 4; i++)
		apic_enable(&b, i);
	CHECK_EQ(2, vmcall(&b, 0, 10, 5, 0, 1, 0x70)); /* bits 0 and 2, from id 1 */
	CHECK(!b.intr[0] && b.intr[1] && !b.intr[2] && b.intr[3]);
	CHECK_EQ(0, vmcall(&b, 0, 10, ~0ull, ~0ull, 1000, 0x70));
	CHECK_EQ(0, vmcall(&b, 0, 10, ~0ull, ~0ull, 0xffffffff, 0x70)); /* no way round to 0 */
	board_stop(&b);
}

TEST(hypercalls_we_do_not_have_say_so)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(-ENOSYS_KVM, vmcall(&b, 0, 99, 0, 0, 0, 0));
	CHECK_EQ(-ENOSYS_KVM, vmcall(&b, 0, 5, 0, 0, 0, 0)); /* kick: this VM cannot wake */
	board_stop(&b);
}

/* ---- topology ---- */

TEST(cpuid_tells_each_cpu_its_place)
{
	struct board b;
	uint32_t r[4] = {0};

	board_start(&b, 6, 16 * MiB);
	cpuid(&b, 5, 1, 0, r);
	CHECK_EQ(5, r[1] >> 24);
	CHECK_EQ(8, r[1] >> 16 & 0xFF);
	CHECK_EQ(1, r[2] >> 31);
	CHECK_EQ(1, r[2] >> 21 & 1);
	CHECK_EQ(1, r[3] >> 9 & 1);
	cpuid(&b, 5, 0xB, 0, r);
	CHECK_EQ(0, r[0]);
	CHECK_EQ(1, r[1]);
	CHECK_EQ(1 << 8, r[2]);
	CHECK_EQ(5, r[3]);
	cpuid(&b, 5, 0xB, 1, r);
	CHECK_EQ(3, r[0]);
	CHECK_EQ(6, r[1]);
	CHECK_EQ(2 << 8 | 1, r[2]);
	cpuid(&b, 5, 0xB, 2, r);
	CHECK_EQ(0, r[1]);
	CHECK_EQ(2, r[2]);
	CHECK_EQ(5, r[3]);
	r[2] = 0;
	cpuid(&b, 5, 0x80000008, 0, r);
	CHECK_EQ(3 << 12 | 5, r[2]);
	board_stop(&b);
}

TEST(cpuid_loses_its_apic_when_the_apic_is_off)
{
	struct board b;
	uint32_t r[4] = {0};

	board_start(&b, 1, 16 * MiB);
	CHECK(wrmsr(&b, 0, MSR_APIC_BASE, MEMMAP_LAPIC));
	cpuid(&b, 0, 1, 0, r);
	CHECK_EQ(0, r[3] >> 9 & 1);
	CHECK_EQ(0, r[3] >> 28 & 1);
	board_stop(&b);
}

TEST(the_last_level_cache_is_shared_by_all)
{
	struct board b;
	uint32_t l2[4] = {2 << 5 | 3}, l3[4] = {3 << 5 | 3}, none[4] = {0};

	board_start(&b, 4, 16 * MiB);
	cpuid(&b, 0, 4, 2, l2);
	CHECK_EQ(3 << 26 | 0 << 14 | 2 << 5 | 3, l2[0]);
	cpuid(&b, 0, 4, 3, l3);
	CHECK_EQ(3 << 26 | 3 << 14 | 3 << 5 | 3, l3[0]);
	cpuid(&b, 0, 4, 4, none);
	CHECK_EQ(0, none[0]);
	board_stop(&b);
}
