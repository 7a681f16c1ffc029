/* test_apic.c - local APIC as xAPIC and x2APIC, its timer, interprocessor interrupts; I/O APIC and
 * 8259 pair with the PIT as their source.
 *
 * SDM 3A "Advanced Programmable Interrupt Controller", AMD APM 2 "Advanced Programmable Interrupt
 * Controller"; I/O APIC: 82093AA data sheet; 8259A data sheet.  Times are only compared with wide
 * bounds: a loaded host may stop us anywhere. */
#include "apic.h"

static volatile unsigned counts[256]; /* of each vector, on this CPU */
static volatile u8 order[64];         /* in which they came */
static volatile unsigned nr_order;

static void on_vector(struct trap_frame *f)
{
	counts[f->vector]++;
	if (nr_order < ARRAY_SIZE(order))
		order[nr_order++] = f->vector;
	apic_eoi();
}

static void start(void)
{
	apic_on();
	nr_order = 0;
	for (unsigned v = 0; v < 256; v++)
		counts[v] = 0;
}

static void handle(u8 vector)
{
	trap_set_handler(vector, on_vector);
}

static void open_interrupts(void)
{
	asm volatile("sti; nop; nop; cli" : : : "memory");
}

/* --- registers ---------------------------------------------------------------------------------
 */
static const struct {
	const char *name;
	u32 offset, write, read;
} reg_rows[] = {
	{"TPR", APIC_TPR, 0xffffffff, 0xff},
	{"LDR keeps its top byte", APIC_LDR, 0x5a123456, 0x5a000000},
	{"DFR's low bits are ones", APIC_DFR, 0x00000000, 0x0fffffff},
	{"DFR flat", APIC_DFR, 0xffffffff, 0xffffffff},
	{"divider has three bits", APIC_TIMER_DIVIDE, 0xffffffff, 0xb},
	{"LVT timer", APIC_LVT_TIMER, LVT_MASKED | LVT_PERIODIC | 0x31,
	 LVT_MASKED | LVT_PERIODIC | 0x31},
	{"LVT timer's status is read-only", APIC_LVT_TIMER, LVT_MASKED | 0x1031, LVT_MASKED | 0x31},
	{"LVT LINT0", APIC_LVT_LINT0, LVT_MASKED | 0xa731, LVT_MASKED | 0xa731},
	{"LVT error has a vector and a mask", APIC_LVT_ERROR, LVT_MASKED | 0x32, LVT_MASKED | 0x32},
	{"ICR high", APIC_ICR_HI, 0xa5ffffff, 0xa5000000},
};

TEST(registers_keep_what_they_should)
{
	apic_on();
	for (unsigned i = 0; i < ARRAY_SIZE(reg_rows); i++) {
		u32 old = apic_read(reg_rows[i].offset);

		apic_write(reg_rows[i].offset, reg_rows[i].write);
		CHECK_ROW(reg_rows[i].name, reg_rows[i].read, apic_read(reg_rows[i].offset));
		apic_write(reg_rows[i].offset, old);
	}
	CHECK_EQ(true, (apic_read(APIC_VERSION) & 0xff) >= 0x10);
	CHECK_EQ(true, (apic_read(APIC_VERSION) >> 16 & 0xff) >= 3);
	CHECK_EQ(0, apic_read(APIC_TPR));
	CHECK_EQ(0, apic_read(APIC_PPR));
}

TEST(a_disabled_apic_masks_its_lvt_and_takes_no_ipis)
{
	handle(0x41);
	start();
	apic_write(APIC_LVT_TIMER, 0x41);
	apic_write(APIC_SVR, 0xff);
	CHECK_EQ(LVT_MASKED | 0x41, apic_read(APIC_LVT_TIMER));
	apic_write(APIC_LVT_TIMER, 0x41);
	CHECK_EQ(LVT_MASKED | 0x41, apic_read(APIC_LVT_TIMER));
	apic_write(APIC_ICR, ICR_SELF | 0x41);
	wait_ms(2);
	CHECK_EQ(0, apic_bit(APIC_IRR, 0x41));
	apic_on();
	CHECK_EQ(LVT_MASKED | 0x41, apic_read(APIC_LVT_TIMER)); /* stays so */
	open_interrupts();
	CHECK_EQ(0, counts[0x41]);
}

TEST(illegal_vectors_are_errors)
{
	start();
	apic_write(APIC_ESR, 0);
	apic_write(APIC_ICR, ICR_SELF | 0x05);
	wait_ms(1);
	apic_write(APIC_ESR, 0);                    /* latches */
	CHECK_EQ(0x20, apic_read(APIC_ESR) & 0x20); /* send illegal vector */
	apic_write(APIC_ESR, 0);
	CHECK_EQ(0, apic_read(APIC_ESR));
}

TEST(the_error_vector_is_raised)
{
	handle(0x42);
	start();
	apic_write(APIC_ESR, 0);
	apic_write(APIC_LVT_ERROR, 0x42);
	apic_write(APIC_ICR, ICR_SELF | 0x05);
	wait_ms(1);
	open_interrupts();
	CHECK_EQ(true, counts[0x42] >= 1);
	apic_write(APIC_LVT_ERROR, LVT_MASKED);
	apic_write(APIC_ESR, 0);
	apic_write(APIC_ESR, 0);
}

/* --- priorities --------------------------------------------------------------------------------
 */
TEST(the_highest_vector_comes_first)
{
	static const u8 sent[] = {0x51, 0x93, 0x52, 0xe0, 0x50},
			want[] = {0xe0, 0x93, 0x52, 0x51, 0x50};

	start();
	for (unsigned i = 0; i < ARRAY_SIZE(sent); i++) {
		handle(sent[i]);
		apic_raise(sent[i]);
		CHECK_EQ(1, apic_bit(APIC_IRR, sent[i]));
	}
	for (unsigned i = 0; i < ARRAY_SIZE(want); i++)
		open_interrupts();
	CHECK_EQ(ARRAY_SIZE(want), nr_order);
	for (unsigned i = 0; i < ARRAY_SIZE(want); i++)
		CHECK_EQ(want[i], order[i]);
}

static volatile u32 isr_seen, ppr_seen, irr_after;
static u8 nested_vector;

/* Lets interrupts in before its EOI: only a higher class may nest. */
static void on_nesting(struct trap_frame *f)
{
	order[nr_order++] = f->vector;
	isr_seen = apic_bit(APIC_ISR, f->vector);
	ppr_seen = apic_read(APIC_PPR);
	irr_after = apic_bit(APIC_IRR, f->vector);
	if (!counts[f->vector]++)
		apic_raise(nested_vector);
	open_interrupts();
	order[nr_order++] = f->vector;
	apic_eoi();
}

static const struct {
	const char *name;
	u8 vector, nested;
	bool nests;
} nest_rows[] = {
	{"a higher class nests", 0x61, 0x71, true},
	{"a lower class waits", 0x61, 0x51, false},
	{"the same class waits", 0x61, 0x6f, false},
};

TEST(only_a_higher_class_nests)
{
	for (unsigned i = 0; i < ARRAY_SIZE(nest_rows); i++) {
		u8 v = nest_rows[i].vector, n = nest_rows[i].nested;

		start();
		trap_set_handler(v, on_nesting);
		handle(n);
		nested_vector = n;
		apic_raise(v);
		open_interrupts();
		open_interrupts();
		CHECK_ROW(nest_rows[i].name, 3, nr_order);
		CHECK_ROW(nest_rows[i].name, v, order[0]);
		CHECK_ROW(nest_rows[i].name, nest_rows[i].nests ? n : v, order[1]);
		CHECK_ROW(nest_rows[i].name, nest_rows[i].nests ? v : n, order[2]);
		CHECK_ROW(nest_rows[i].name, 1, isr_seen);
		CHECK_ROW(nest_rows[i].name, 0, irr_after);
		CHECK_ROW(nest_rows[i].name, v & 0xf0, ppr_seen & 0xf0);
		CHECK_ROW(nest_rows[i].name, 0, apic_read(APIC_PPR));
	}
}

TEST(tpr_holds_back_its_class_and_below)
{
	handle(0x75);
	for (unsigned tpr = 0; tpr < 256; tpr += 5) {
		bool blocked = (tpr & 0xf0) >= 0x70;

		start();
		apic_write(APIC_TPR, tpr);
		CHECK_ROW(guest_name("TPR 0x%x", tpr), tpr, apic_read(APIC_PPR));
		CHECK_ROW(guest_name("TPR 0x%x", tpr), tpr >> 4, READ_CR(8));
		apic_raise(0x75);
		open_interrupts();
		CHECK_ROW(guest_name("TPR 0x%x", tpr), !blocked, counts[0x75]);
		apic_write(APIC_TPR, 0);
		open_interrupts();
		CHECK_ROW(guest_name("TPR 0x%x", tpr), 1, counts[0x75]);
	}
}

TEST(cr8_is_the_upper_half_of_tpr)
{
	for (u64 v = 0; v < 16; v++) {
		apic_write(APIC_TPR, 0xff);
		WRITE_CR(8, v);
		CHECK_EQ(v << 4, apic_read(APIC_TPR)); /* the low half is cleared */
		CHECK_EQ(v, READ_CR(8));
	}
	WRITE_CR(8, 0);
}

TEST(a_vector_can_be_pending_while_in_service)
{
	start();
	trap_set_handler(0x61, on_nesting);
	nested_vector = 0x61;
	apic_raise(0x61);
	open_interrupts(); /* the first run raises it again */
	open_interrupts();
	CHECK_EQ(2, counts[0x61]);
	CHECK_EQ(0x61616161, *(volatile u32 *)order);
	CHECK_EQ(4, nr_order); /* one after the other */
	CHECK_EQ(0, apic_bit(APIC_IRR, 0x61));
}

/* --- timer -------------------------------------------------------------------------------------
 */
static void timer_start(u32 lvt, u8 divide, u32 count)
{
	apic_write(APIC_TIMER_DIVIDE, divide);
	apic_write(APIC_LVT_TIMER, lvt);
	apic_write(APIC_TIMER_INITIAL, count);
}

static void timer_stop(void)
{
	apic_write(APIC_LVT_TIMER, LVT_MASKED);
	apic_write(APIC_TIMER_INITIAL, 0);
	open_interrupts();
}

TEST(the_one_shot_timer_fires_once)
{
	u32 first, second;

	handle(0x80);
	start();
	timer_start(0x80, 0xb, 3000000);
	first = apic_read(APIC_TIMER_CURRENT);
	CHECK(first <= 3000000);
	asm volatile("sti");
	second = apic_read(APIC_TIMER_CURRENT);
	CHECK(second <= first);
	CHECK(WAIT_FOR(counts[0x80]));
	wait_ms(20);
	asm volatile("cli");
	CHECK_EQ(1, counts[0x80]);
	CHECK_EQ(0, apic_read(APIC_TIMER_CURRENT));
	CHECK_EQ(3000000, apic_read(APIC_TIMER_INITIAL));
	timer_stop();
}

TEST(the_periodic_timer_fires_again)
{
	start();
	timer_start(LVT_PERIODIC | 0x80, 0xb, 1000000);
	asm volatile("sti");
	CHECK(WAIT_FOR(counts[0x80] >= 5));
	CHECK(apic_read(APIC_TIMER_CURRENT) <= 1000000);
	apic_write(APIC_TIMER_INITIAL, 0); /* stops it */
	wait_ms(2);
	counts[0x80] = 0;
	wait_ms(10);
	asm volatile("cli");
	CHECK_EQ(0, counts[0x80]);
	CHECK_EQ(0, apic_read(APIC_TIMER_CURRENT));
	timer_stop();
}

TEST(a_masked_timer_counts_and_stays_silent)
{
	start();
	timer_start(LVT_MASKED | 0x80, 0xb, 200000);
	CHECK(WAIT_FOR(!apic_read(APIC_TIMER_CURRENT)));
	CHECK_EQ(0, apic_bit(APIC_IRR, 0x80));
	apic_write(APIC_LVT_TIMER, 0x80); /* what was missed is not made up for */
	open_interrupts();
	CHECK_EQ(0, counts[0x80]);
	timer_stop();
}

/* The same count with another divider takes longer in proportion. */
TEST(the_divider_divides)
{
	static const struct {
		u8 code, log;
	} rows[] = {{0xb, 0}, {0x0, 1}, {0x1, 2}, {0x2, 3}, {0x3, 4}, {0x8, 5}, {0x9, 6}, {0xa, 7}};

	start();
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		u64 t0, spent, t1;

		timer_start(LVT_MASKED | 0x80, rows[i].code, 0xffffffff);
		t0 = rdtsc();
		wait_ms(20);
		spent = (u64)(0xffffffff - apic_read(APIC_TIMER_CURRENT)) << rows[i].log;
		t1 = rdtsc() - t0;
		/* bus clock per TSC clock: somewhere between 1/400 and 2 */
		CHECK_ROW(guest_name("divide by %u", 1u << rows[i].log), true,
			  spent > t1 / 400 && spent < 2 * t1);
	}
	timer_stop();
}

enum { MSR_DEADLINE = 0x6e0 };

TEST(the_tsc_deadline_timer)
{
	if (!cpu_has(1, 0, ECX, 24)) {
		guest_skip("no TSC deadline timer");
		return;
	}
	start();
	CHECK_EQ(0, rdmsr(MSR_DEADLINE));
	apic_write(APIC_LVT_TIMER, LVT_MASKED | 0x80);
	wrmsr(MSR_DEADLINE, rdtsc() + BIT(40)); /* ignored in the other modes */
	CHECK_EQ(0, rdmsr(MSR_DEADLINE));

	apic_write(APIC_LVT_TIMER, LVT_DEADLINE | 0x80);
	for (unsigned i = 0; i < 3; i++) {
		u64 deadline = rdtsc() + 5000000;

		counts[0x80] = 0;
		wrmsr(MSR_DEADLINE, deadline);
		asm volatile("sti");
		CHECK(WAIT_FOR(counts[0x80]));
		CHECK(rdtsc() >= deadline);
		CHECK_EQ(0, rdmsr(MSR_DEADLINE)); /* disarmed */
		wait_ms(2);
		asm volatile("cli");
		CHECK_EQ(1, counts[0x80]);
	}
	counts[0x80] = 0;
	wrmsr(MSR_DEADLINE, 1); /* in the past: at once */
	asm volatile("sti");
	CHECK(WAIT_FOR(counts[0x80]));
	asm volatile("cli");

	wrmsr(MSR_DEADLINE, rdtsc() + BIT(40));
	CHECK(rdmsr(MSR_DEADLINE) != 0);
	apic_write(APIC_TIMER_INITIAL, 1000); /* ignored here */
	CHECK_EQ(0, apic_read(APIC_TIMER_CURRENT));
	wrmsr(MSR_DEADLINE, 0);
	CHECK_EQ(0, rdmsr(MSR_DEADLINE));
	counts[0x80] = 0;
	asm volatile("sti");
	wait_ms(5);
	asm volatile("cli");
	CHECK_EQ(0, counts[0x80]);
	timer_stop();
}

/* Changing between deadline and the other modes disarms the timer. */
TEST(a_change_of_timer_mode_disarms)
{
	if (!cpu_has(1, 0, ECX, 24)) {
		guest_skip("no TSC deadline timer");
		return;
	}
	start();
	apic_write(APIC_LVT_TIMER, LVT_DEADLINE | 0x80);
	wrmsr(MSR_DEADLINE, rdtsc() + BIT(40));
	apic_write(APIC_LVT_TIMER, 0x80);
	apic_write(APIC_LVT_TIMER, LVT_DEADLINE | 0x80);
	CHECK_EQ(0, rdmsr(MSR_DEADLINE));
	timer_stop();
}

/* --- interprocessor interrupts -------------------------------------------------------------------
 */
enum { MAX_CPUS = 8 };
static volatile unsigned got[MAX_CPUS][256]; /* by APIC ID */
static volatile bool parked[MAX_CPUS], release;

static void on_ipi(struct trap_frame *f)
{
	got[apic_read(APIC_ID) >> 24 & 7][f->vector]++;
	if (f->vector != NMI)
		apic_eoi();
}

static void park(void *arg)
{
	u8 id = apic_read(APIC_ID) >> 24;

	apic_on();
	apic_write(APIC_DFR, 0xffffffff);
	apic_write(APIC_LDR, 1u << (24 + id));
	asm volatile("sti");
	parked[id] = true;
	while (!release)
		asm volatile("pause");
	asm volatile("cli");
	parked[id] = false;
}

static unsigned cpus;

static bool start_cpus(void)
{
	cpus = smp_count();
	release = false;
	apic_on();
	apic_write(APIC_DFR, 0xffffffff);
	apic_write(APIC_LDR, 1u << 24);
	for (unsigned i = 0; i < MAX_CPUS; i++)
		for (unsigned v = 0; v < 256; v++)
			got[i][v] = 0;
	for (unsigned i = 1; i < cpus; i++)
		if (!CHECK(smp_run(i, park, NULL)) || !CHECK(WAIT_FOR(parked[i])))
			return false;
	trap_set_handler(0xa0, on_ipi);
	trap_set_handler(NMI, on_ipi);
	return true;
}

static void stop_cpus(void)
{
	release = true;
	for (unsigned i = 1; i < cpus; i++)
		smp_wait(i);
	trap_set_handler(NMI, NULL);
}

/* All that `mask` names got one, and no one else. */
static void expect_ipi(const char *name, u8 vector, unsigned mask)
{
	asm volatile("sti");
	for (unsigned i = 0; i < cpus; i++)
		if (mask >> i & 1)
			WAIT_FOR(got[i][vector]);
	wait_ms(2);
	asm volatile("cli");
	for (unsigned i = 0; i < cpus; i++) {
		CHECK_ROW(guest_name("%s, CPU %u", name, i), mask >> i & 1, got[i][vector]);
		got[i][vector] = 0;
	}
}

static const struct {
	const char *name;
	u8 dest;
	u32 icr;
	unsigned mask;
} ipi_rows[] = {
	{"self", 0, ICR_SELF, 1},
	{"all", 0, ICR_ALL, 0xff},
	{"all others", 0, ICR_OTHERS, 0xfe},
	{"physical 0", 0, 0, 1},
	{"physical 1", 1, 0, 2},
	{"physical 3", 3, 0, 8},
	{"physical, nobody", 0x77, 0, 0},
	{"physical, everybody", 0xff, 0, 0xff},
	{"logical flat, one", 4, ICR_LOGICAL, 4},
	{"logical flat, several", 5, ICR_LOGICAL, 5},
	{"logical flat, all bits", 0xff, ICR_LOGICAL, 0xff},
	{"logical flat, none", 0, ICR_LOGICAL, 0},
	{"a shorthand makes the destination irrelevant", 0x77, ICR_SELF, 1},
};

TEST(ipis_reach_their_destinations)
{
	if (!start_cpus())
		return;
	for (unsigned i = 0; i < ARRAY_SIZE(ipi_rows); i++) {
		unsigned mask = ipi_rows[i].mask & (BIT(cpus) - 1);

		apic_send(ipi_rows[i].dest, ipi_rows[i].icr | ICR_ASSERT | 0xa0);
		expect_ipi(ipi_rows[i].name, 0xa0, mask);
		if (ipi_rows[i].icr ==
		    ICR_SELF) /* NMI with the self shorthand is not valid on Intel */
			continue;
		apic_send(ipi_rows[i].dest, ipi_rows[i].icr | ICR_ASSERT | ICR_NMI);
		expect_ipi(guest_name("NMI, %s", ipi_rows[i].name), NMI, mask);
	}
	stop_cpus();
}

static unsigned total_of(unsigned vector)
{
	unsigned total = 0;

	for (unsigned c = 0; c < cpus; c++)
		total += got[c][vector];
	return total;
}

/* Lowest priority picks exactly one of those it may. */
TEST(lowest_priority_picks_one)
{
	if (!start_cpus())
		return;
	for (unsigned i = 1; i <= 10; i++) {
		apic_send(0xff, ICR_LOGICAL | ICR_LOWEST | ICR_ASSERT | 0xa0);
		asm volatile("sti");
		/* The one picked may be a CPU that a busy host lets wait. */
		for (unsigned ms = 0; ms < 2000 && total_of(0xa0) < i; ms++)
			wait_ms(1);
		asm volatile("cli");
		CHECK_ROW(guest_name("round %u", i), i, total_of(0xa0));
	}
	for (unsigned c = 0; c < cpus; c++)
		got[c][0xa0] = 0;
	stop_cpus();
}

TEST(logical_clusters)
{
	if (!start_cpus())
		return;
	apic_write(APIC_DFR, 0x0fffffff);
	apic_write(APIC_LDR, 0x21u << 24); /* cluster 2, first */
	apic_send(0x21, ICR_LOGICAL | 0xa0);
	expect_ipi("cluster 2", 0xa0, 1);
	apic_send(0x31, ICR_LOGICAL | 0xa0); /* 1 and 0x30: no bit of the others, which are flat */
	expect_ipi("cluster 3", 0xa0, 0);
	apic_write(APIC_DFR, 0xffffffff);
	apic_write(APIC_LDR, 1u << 24);
	stop_cpus();
}

TEST(many_ipis_are_not_lost)
{
	if (!start_cpus())
		return;
	for (unsigned i = 1; i <= 200 && cpus > 1; i++) {
		unsigned to = 1 + i % (cpus - 1), before = got[to][0xa0];

		apic_send(to, ICR_ASSERT | 0xa0);
		if (!CHECK(WAIT_FOR(got[to][0xa0] != before)))
			break;
		CHECK_EQ(before + 1, got[to][0xa0]);
	}
	stop_cpus();
}

/* --- INIT and SIPI -------------------------------------------------------------------------------
 */
static volatile unsigned restarts;

static void count_restart(void *arg)
{
	restarts++;
}

TEST(init_stops_a_cpu_and_sipi_starts_it)
{
	if (smp_count() < 2) {
		guest_skip("one CPU");
		return;
	}
	if (!start_cpus())
		return;
	/* a SIPI to a CPU that runs is ignored */
	apic_send(1, 0x4600 | 0x77);
	wait_ms(5);
	apic_send(1, ICR_ASSERT | 0xa0);
	CHECK(WAIT_FOR(got[1][0xa0]));

	apic_send(1, ICR_INIT | ICR_ASSERT);
	wait_ms(10);
	got[1][0xa0] = 0;
	apic_send(1, ICR_ASSERT | 0xa0); /* it does not take interrupts now */
	wait_ms(10);
	CHECK_EQ(0, got[1][0xa0]);
	smp_forget(1);
	CHECK(smp_run(1, count_restart, NULL));
	smp_wait(1);
	CHECK_EQ(1, restarts);
	release = true;
	for (unsigned i = 2; i < cpus; i++)
		smp_wait(i);
}

/* INIT leaves what the manual's table says: among others CR0, EFLAGS and the APIC reset, the vector
 * of SIPI in CS. */
CODE(".code16\n"
     "sipi_probe: mov %cs, %ax; mov %ax, %ds\n"
     "	mov %eax, sipi_cs - sipi_probe; mov %edx, sipi_edx - sipi_probe\n"
     "	mov %cr0, %eax; mov %eax, sipi_cr0 - sipi_probe\n"
     "	pushfl\n" /* SS:SP is 0:0, wraps to the end of the first 64 KiB */
     "	pop %eax; mov %eax, sipi_flags - sipi_probe\n"
     "	movb $1, sipi_done - sipi_probe\n"
     "1:	cli; hlt; jmp 1b\n"
     ".balign 4\n"
     "sipi_cs: .long 0\n"
     "sipi_edx: .long 0\n"
     "sipi_cr0: .long 0\n"
     "sipi_flags: .long 0\n"
     "sipi_done: .long 0\n"
     "sipi_end: .code64\n");
extern char sipi_probe[], sipi_cs[], sipi_cr0[], sipi_flags[], sipi_done[], sipi_end[];

static volatile u32 *probed(const char *field)
{
	return (volatile u32 *)(0x9000ull + (field - sipi_probe));
}

TEST(sipi_begins_in_real_mode_at_its_vector)
{
	unsigned last = smp_count() - 1;

	if (!last) {
		guest_skip("one CPU");
		return;
	}
	apic_on();
	for (unsigned i = 0; i < (unsigned)(sipi_end - sipi_probe); i++)
		((volatile u8 *)0x9000)[i] = sipi_probe[i];
	apic_send(last, ICR_INIT | ICR_ASSERT);
	wait_ms(10);
	apic_send(last, 0x4600 | 0x09);
	CHECK(WAIT_FOR(*probed(sipi_done)));
	CHECK_EQ(0x900, *probed(sipi_cs) & 0xffff);
	/* CD and NW keep their values at INIT; the rest is the reset value */
	CHECK_EQ(0x10, *probed(sipi_cr0) & ~(u32)(CR0_CD | CR0_NW));
	CHECK_EQ(2, *probed(sipi_flags));
	smp_forget(last);
}

/* --- x2APIC ------------------------------------------------------------------------------------
 */
enum { X2 = 0x800, X2_ID = 0x802, X2_TPR = 0x808, X2_LDR = 0x80d, X2_ICR = 0x830, X2_SELF = 0x83f };

static const struct {
	const char *name;
	u32 msr;
	u64 value;
	int write, read;
} x2_rows[] = {
	{"ID is read-only", 0x802, 0, GP, NONE},
	{"version is read-only", 0x803, 0, GP, NONE},
	{"TPR", 0x808, 0, NONE, NONE},
	{"TPR bit 8", 0x808, 0x100, GP, NONE},
	{"TPR bit 32", 0x808, 1ull << 32, GP, NONE},
	{"PPR is read-only", 0x80a, 0, GP, NONE},
	{"EOI is write-only", 0x80b, 0, NONE, GP},
	{"EOI takes only 0", 0x80b, 1, GP, GP},
	{"LDR is read-only", 0x80d, 0, GP, NONE},
	{"no DFR", 0x80e, 0, GP, GP},
	{"SVR", 0x80f, 0x1ff, NONE, NONE},
	{"SVR bit 31", 0x80f, 0x800001ff, GP, NONE},
	{"ISR is read-only", 0x810, 0, GP, NONE},
	{"TMR is read-only", 0x818, 0, GP, NONE},
	{"IRR is read-only", 0x827, 0, GP, NONE},
	{"ESR takes 0", 0x828, 0, NONE, NONE},
	{"ESR takes only 0", 0x828, 1, GP, NONE},
	{"no ICR high", 0x831, 0, GP, GP},
	{"LVT timer", 0x832, 0x10080, NONE, NONE},
	{"LVT timer bit 20", 0x832, 0x110080, GP, NONE},
	{"LVT LINT0", 0x835, 0x10700, NONE, NONE},
	{"LVT LINT0 bit 17", 0x835, 0x30700, GP, NONE},
	{"LVT error bit 8", 0x837, 0x10100, GP, NONE},
	{"timer's count is read-only", 0x839, 0, GP, NONE},
	{"divider", 0x83e, 0xb, NONE, NONE},
	{"divider bit 2", 0x83e, 0x4, GP, NONE},
	{"self IPI is write-only", 0x83f, 0x1ff, GP, GP},
	{"beyond", 0x840, 0, GP, GP},
	{"hole 0x804", 0x804, 0, GP, GP},
	{"hole 0x83c", 0x83c, 0, GP, GP},
	{"last", 0x8ff, 0, GP, GP},
};

static void x2_eoi(struct trap_frame *f)
{
	counts[f->vector]++;
	wrmsr(0x80b, 0);
}

static void check_x2_registers(void)
{
	u64 v;

	for (unsigned i = 0; i < ARRAY_SIZE(x2_rows); i++) {
		CHECK_ROW(x2_rows[i].name, x2_rows[i].write,
			  try_wrmsr(x2_rows[i].msr, x2_rows[i].value));
		CHECK_ROW(x2_rows[i].name, x2_rows[i].read, try_rdmsr(x2_rows[i].msr, &v));
	}
}

static void check_x2_interrupts(void)
{
	u32 id = rdmsr(X2_ID);

	CHECK_EQ((id >> 4) << 16 | 1u << (id & 15), rdmsr(X2_LDR));
	trap_set_handler(0xb0, x2_eoi);
	wrmsr(X2_SELF, 0xb0);
	open_interrupts();
	CHECK_EQ(1, counts[0xb0]);
	wrmsr(X2_ICR, (u64)id << 32 | 0xb0); /* physical */
	asm volatile("sti");
	CHECK(WAIT_FOR(counts[0xb0] == 2));
	wrmsr(X2_ICR, rdmsr(X2_LDR) << 32 | ICR_LOGICAL | 0xb0);
	CHECK(WAIT_FOR(counts[0xb0] == 3));
	wrmsr(X2_ICR, ICR_SELF | 0xb0);
	CHECK(WAIT_FOR(counts[0xb0] == 4));
	asm volatile("cli");
	wrmsr(X2_TPR, 0xb0);
	CHECK_EQ(0xb, READ_CR(8));
	wrmsr(X2_TPR, 0);
}

TEST(x2apic_registers_modes_and_interrupts)
{
	u64 base = rdmsr(MSR_APIC_BASE), id = apic_read(APIC_ID) >> 24, v;

	if (!HAS_X2APIC) {
		guest_skip("no x2APIC");
		return;
	}
	start();
	CHECK_EQ(GP, try_rdmsr(X2_ID, &v)); /* not yet */
	CHECK_EQ(NONE, try_wrmsr(MSR_APIC_BASE, base | APIC_BASE_X2));
	CHECK_EQ(id, rdmsr(X2_ID));
	CHECK_EQ(0x1ff, rdmsr(0x80f)); /* state is kept */
	check_x2_registers();
	check_x2_interrupts();
	/* back to xAPIC only through "disabled" */
	CHECK_EQ(GP, try_wrmsr(MSR_APIC_BASE, base));
	CHECK_EQ(NONE, try_wrmsr(MSR_APIC_BASE, base & ~APIC_BASE_ON));
	CHECK_EQ(GP, try_wrmsr(MSR_APIC_BASE, base | APIC_BASE_X2)); /* and from there */
	CHECK_EQ(GP, try_wrmsr(MSR_APIC_BASE, (base & ~APIC_BASE_ON) | APIC_BASE_X2));
	CHECK_EQ(0, cpu_has(1, 0, EDX, 9)); /* CPUID follows */
	CHECK_EQ(NONE, try_wrmsr(MSR_APIC_BASE, base));
	CHECK_EQ(1, cpu_has(1, 0, EDX, 9));
	CHECK_EQ(0xff, apic_read(APIC_SVR)); /* reset: software-disabled */
	CHECK_EQ(LVT_MASKED, apic_read(APIC_LVT_LINT0));
	CHECK_EQ(id, apic_read(APIC_ID) >> 24);
	start();
	handle(0xb1);
	apic_raise(0xb1);
	open_interrupts();
	CHECK_EQ(1, counts[0xb1]);
}

/* --- I/O APIC ----------------------------------------------------------------------------------
 */
TEST(ioapic_registers)
{
	unsigned pins = (ioapic_read(1) >> 16 & 0xff) + 1;

	CHECK_EQ(true, pins >= 24);
	CHECK_EQ(true, (ioapic_read(1) & 0xff) >= 0x11);
	for (unsigned pin = 0; pin < pins; pin++) {
		ioapic_write(0x11 + 2 * pin, 0xff000000);
		CHECK_EQ(0xff000000, ioapic_read(0x11 + 2 * pin) & 0xff000000);
		ioapic_write(0x10 + 2 * pin, 0x1ffff);
		CHECK_EQ(0x1afff, ioapic_read(0x10 + 2 * pin) & 0x1afff);
		CHECK_ROW("status and remote IRR are read-only", 0,
			  ioapic_read(0x10 + 2 * pin) & 0x5000);
		ioapic_write(0x10 + 2 * pin, LVT_MASKED);
		ioapic_write(0x11 + 2 * pin, 0);
	}
}

TEST(the_pit_arrives_through_the_ioapic)
{
	u8 pin = isa_gsi(0);

	handle(0x90);
	start();
	ioapic_route(pin, apic_read(APIC_ID) >> 24, 0x90);
	pit_start(0, 3000); /* once */
	asm volatile("sti");
	CHECK(WAIT_FOR(counts[0x90]));
	wait_ms(10);
	CHECK_EQ(1, counts[0x90]);
	pit_start(2, 3000); /* again and again */
	CHECK(WAIT_FOR(counts[0x90] >= 6));
	ioapic_write(0x10 + 2 * pin, LVT_MASKED | 0x90);
	wait_ms(2);
	counts[0x90] = 0;
	wait_ms(10);
	asm volatile("cli");
	CHECK_EQ(0, counts[0x90]);
	pit_stop();
}

static const struct {
	const char *name;
	u8 dest;
	u32 low;
	unsigned cpu;
} route_rows[] = {
	{"physical, CPU 0", 0, 0, 0},
	{"physical, last CPU", 1, 0, 1}, /* dest is replaced by its number */
	{"logical, last CPU", 2, 1 << 11, 1},
	{"lowest priority, CPU 0 only", 1, 1 << 11 | ICR_LOWEST, 0},
};

TEST(the_ioapic_routes_to_any_cpu)
{
	u8 pin = isa_gsi(0);

	if (!start_cpus())
		return;
	trap_set_handler(0x90, on_ipi);
	for (unsigned i = 0; i < ARRAY_SIZE(route_rows); i++) {
		unsigned cpu = route_rows[i].cpu ? cpus - 1 : 0;
		u8 dest = !route_rows[i].cpu            ? route_rows[i].dest
			  : route_rows[i].low & 1 << 11 ? 1u << cpu
							: cpu;

		ioapic_route(pin, dest, route_rows[i].low | 0x90);
		pit_start(0, 3000);
		expect_ipi(route_rows[i].name, 0x90, 1u << cpu);
		ioapic_write(0x10 + 2 * pin, LVT_MASKED);
	}
	ioapic_route(pin, 0, LVT_MASKED);
	pit_stop();
	stop_cpus();
}

/* --- 8259 pair ---------------------------------------------------------------------------------
 */
static void pic_init(u8 base)
{
	static const u8 icw_master[] = {0x11, 0, 4, 1}, icw_slave[] = {0x11, 8, 2, 1};

	outb(0x20, icw_master[0]);
	outb(0xa0, icw_slave[0]);
	outb(0x21, base);
	outb(0xa1, base + 8);
	outb(0x21, icw_master[2]);
	outb(0xa1, icw_slave[2]);
	outb(0x21, icw_master[3]);
	outb(0xa1, icw_slave[3]);
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
}

static volatile u8 pic_isr;

static void on_pic(struct trap_frame *f)
{
	counts[f->vector]++;
	outb(0x20, 0x0b); /* read ISR */
	pic_isr = inb(0x20);
	outb(0x20, 0x20); /* EOI */
}

TEST(the_pit_arrives_through_the_8259)
{
	start();
	ioapic_route(isa_gsi(0), 0, LVT_MASKED);
	pic_init(0x20);
	trap_set_handler(0x20, on_pic);
	CHECK_EQ(0xff, inb(0x21));
	apic_write(APIC_LVT_LINT0, LVT_EXTINT);
	pit_start(2, 3000);
	asm volatile("sti");
	wait_ms(5);
	CHECK_EQ(0, counts[0x20]); /* masked */
	outb(0x21, 0xfe);
	CHECK_EQ(0xfe, inb(0x21));
	CHECK(WAIT_FOR(counts[0x20] >= 4));
	CHECK_EQ(1, pic_isr);
	outb(0x21, 0xff);
	wait_ms(2);
	counts[0x20] = 0;
	wait_ms(5);
	CHECK_EQ(0, counts[0x20]);
	outb(0x21, 0xfe);
	CHECK(WAIT_FOR(counts[0x20] >= 2));
	apic_write(APIC_LVT_LINT0, LVT_MASKED | LVT_EXTINT); /* closed at the local APIC */
	wait_ms(2);
	counts[0x20] = 0;
	wait_ms(5);
	asm volatile("cli");
	CHECK_EQ(0, counts[0x20]);
	outb(0x21, 0xff);
	pit_stop();
}

/* Not acknowledged at the 8259, the line stays in service and nothing of its priority or below
 * comes. */
static void on_pic_no_eoi(struct trap_frame *f)
{
	counts[f->vector]++;
}

TEST(the_8259_waits_for_its_eoi)
{
	start();
	pic_init(0x20);
	trap_set_handler(0x20, on_pic_no_eoi);
	apic_write(APIC_LVT_LINT0, LVT_EXTINT);
	pit_start(2, 3000);
	outb(0x21, 0xfe);
	asm volatile("sti");
	CHECK(WAIT_FOR(counts[0x20]));
	wait_ms(10);
	CHECK_EQ(1, counts[0x20]);
	outb(0x20, 0x60); /* specific EOI of line 0 */
	CHECK(WAIT_FOR(counts[0x20] >= 2));
	asm volatile("cli");
	outb(0x21, 0xff);
	outb(0x20, 0x20);
	apic_write(APIC_LVT_LINT0, LVT_MASKED);
	pit_stop();
}
