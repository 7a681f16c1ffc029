/* test_boot.c - the guest library itself: exceptions, rings, other CPUs. */
#include "guest.h"

static void divide_by_zero(void *arg)
{
	asm volatile("xor %%edx, %%edx; mov $1, %%eax; div %%edx" : : : "eax", "edx");
}

static void do_nothing(void *arg)
{
}

static void halt(void *arg)
{
	asm volatile("hlt");
}

static void set_flag(void *arg)
{
	*(volatile int *)arg = 1;
}

TEST(division_by_zero_is_a_divide_error)
{
	CHECK_EQ(DE, trap_run(divide_by_zero, NULL));
}

TEST(an_uneventful_function_raises_nothing)
{
	CHECK_EQ((u64)NONE, trap_run(do_nothing, NULL));
	CHECK_EQ((u64)NONE, trap_run_user(do_nothing, NULL));
}

TEST(ring_3_may_not_halt)
{
	CHECK_EQ(GP, trap_run_user(halt, NULL));
	CHECK_EQ(0, trap_last()->error);
	CHECK_EQ(0x2b, trap_last()->cs);
}

TEST(other_cpus_start_and_run_code)
{
	volatile int flag;

	for (unsigned cpu = 1; cpu < smp_count(); cpu++) {
		flag = 0;
		if (!CHECK(smp_run(cpu, set_flag, (void *)&flag)))
			return;
		smp_wait(cpu);
		CHECK_EQ(1, flag);
	}
}
