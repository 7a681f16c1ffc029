/* The local APIC, as a guest drives it. */
#include "board.h"

TEST(version_says_six_local_vectors)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(0x00050014, apic_read(&b, 0, APIC_VERSION));
	board_stop(&b);
}

TEST(every_cpu_sees_its_own_id_at_the_same_address)
{
	struct board b;

	board_start(&b, 2, 16 * MiB);
	CHECK_EQ(0, apic_read(&b, 0, APIC_ID));
	CHECK_EQ(1 << 24, apic_read(&b, 1, APIC_ID));
	board_stop(&b);
}

TEST(a_disabled_apic_drops_what_it_is_sent)
{
	struct board b;

	board_start(&b, 2, 16 * MiB);
	apic_enable(&b, 0);
	apic_write(&b, 0, APIC_ICR_HIGH, 1 << 24);
	apic_write(&b, 0, APIC_ICR, 0x40);
	CHECK(!b.intr[1]);
	board_stop(&b);
}

TEST(interrupts_are_taken_in_order_of_vector)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	apic_self(&b, 0, 0x41);
	apic_self(&b, 0, 0x83);
	apic_self(&b, 0, 0x52);
	CHECK(b.intr[0]);
	CHECK_EQ(0x83, ack(&b, 0));
	CHECK_EQ(0x80, apic_read(&b, 0, APIC_PPR));
	/* 0x52 and 0x41 are less urgent than what runs. */
	CHECK(!b.intr[0]);
	CHECK_EQ(-1, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK(b.intr[0]);
	CHECK_EQ(0x52, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK_EQ(0x41, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(a_more_urgent_class_interrupts_a_handler_and_the_same_class_does_not)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	apic_self(&b, 0, 0x50);
	CHECK_EQ(0x50, ack(&b, 0));
	apic_self(&b, 0, 0x5F);
	CHECK(!b.intr[0]);
	apic_self(&b, 0, 0x60);
	CHECK_EQ(0x60, ack(&b, 0));
	CHECK_EQ(1u << 0x10, apic_read(&b, 0, APIC_ISR + 0x20)); /* 0x50 */
	CHECK_EQ(1u << 0x00, apic_read(&b, 0, APIC_ISR + 0x30)); /* 0x60 */
	board_stop(&b);
}

TEST(task_priority_holds_back_its_class_and_below)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	apic_write(&b, 0, APIC_TPR, 0x55);
	apic_self(&b, 0, 0x5F);
	CHECK(!b.intr[0]);
	CHECK_EQ(0x55, apic_read(&b, 0, APIC_PPR));
	machine_cpu_ops.cr8_write(machine_cpu(b.machine, 0), 4);
	CHECK(b.intr[0]);
	CHECK_EQ(0x40, apic_read(&b, 0, APIC_TPR));
	machine_cpu_ops.cr8_write(machine_cpu(b.machine, 0), 5);
	CHECK(!b.intr[0]);
	CHECK_EQ(5, machine_cpu_ops.cr8_read(machine_cpu(b.machine, 0)));
	board_stop(&b);
}

TEST(the_same_vector_twice_is_one_interrupt_until_it_is_taken)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	apic_self(&b, 0, 0x40);
	apic_self(&b, 0, 0x40);
	CHECK_EQ(0x40, ack(&b, 0));
	apic_self(&b, 0, 0x40); /* one more may wait behind the one in service */
	apic_eoi(&b, 0);
	CHECK_EQ(0x40, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK_EQ(-1, ack(&b, 0));
	board_stop(&b);
}

/* ---- inter-processor interrupts ---- */

static void start_cpus(struct board *b, unsigned nr)
{
	board_start(b, nr, 16 * MiB);
	for (unsigned i = 0; i < nr; i++)
		apic_enable(b, i);
}

TEST(physical_destination_reaches_one_cpu)
{
	struct board b;

	start_cpus(&b, 4);
	apic_write(&b, 0, APIC_ICR_HIGH, 2 << 24);
	apic_write(&b, 0, APIC_ICR, 0x40);
	CHECK(!b.intr[0] && !b.intr[1] && b.intr[2] && !b.intr[3]);
	board_stop(&b);
}

TEST(physical_destination_ff_reaches_all)
{
	struct board b;

	start_cpus(&b, 3);
	apic_write(&b, 0, APIC_ICR_HIGH, 0xFFu << 24);
	apic_write(&b, 0, APIC_ICR, 0x40);
	CHECK(b.intr[0] && b.intr[1] && b.intr[2]);
	board_stop(&b);
}

TEST(shorthands_name_self_all_and_all_others)
{
	struct board b;

	start_cpus(&b, 3);
	apic_write(&b, 1, APIC_ICR, 3 << 18 | 0x40);
	CHECK(b.intr[0] && !b.intr[1] && b.intr[2]);
	apic_write(&b, 1, APIC_ICR, 2 << 18 | 0x50);
	CHECK(b.intr[1]);
	CHECK_EQ(0x50, ack(&b, 0));
	CHECK_EQ(0x50, ack(&b, 1));
	CHECK_EQ(-1, ack(&b, 1));
	board_stop(&b);
}

TEST(flat_logical_destination_is_a_bit_mask)
{
	struct board b;

	start_cpus(&b, 3);
	for (unsigned i = 0; i < 3; i++)
		apic_write(&b, i, APIC_LDR, 1u << (24 + i));
	apic_write(&b, 0, APIC_ICR_HIGH, 5u << 24);
	apic_write(&b, 0, APIC_ICR, 1 << 11 | 0x40);
	CHECK(b.intr[0] && !b.intr[1] && b.intr[2]);
	board_stop(&b);
}

TEST(cluster_logical_destination_is_a_cluster_and_a_mask)
{
	struct board b;

	start_cpus(&b, 3);
	for (unsigned i = 0; i < 3; i++)
		apic_write(&b, i, APIC_DFR, 0x0FFFFFFF);
	apic_write(&b, 0, APIC_LDR, 0x11u << 24);
	apic_write(&b, 1, APIC_LDR, 0x12u << 24);
	apic_write(&b, 2, APIC_LDR, 0x21u << 24);
	apic_write(&b, 0, APIC_ICR_HIGH, 0x13u << 24);
	apic_write(&b, 0, APIC_ICR, 1 << 11 | 0x40);
	CHECK(b.intr[0] && b.intr[1] && !b.intr[2]);
	board_stop(&b);
}

TEST(lowest_priority_goes_to_the_cpu_with_the_least_to_do)
{
	struct board b;

	start_cpus(&b, 3);
	for (unsigned i = 0; i < 3; i++)
		apic_write(&b, i, APIC_LDR, 1u << (24 + i));
	apic_write(&b, 0, APIC_TPR, 0x50);
	apic_write(&b, 1, APIC_TPR, 0x20);
	apic_write(&b, 2, APIC_TPR, 0x30);
	apic_write(&b, 0, APIC_ICR_HIGH, 7u << 24);
	apic_write(&b, 0, APIC_ICR, 1 << 11 | 1 << 8 | 0x60);
	CHECK(!b.intr[0] && b.intr[1] && !b.intr[2]);
	board_stop(&b);
}

TEST(init_and_startup_reach_the_others_and_never_the_sender)
{
	struct board b;

	start_cpus(&b, 2);
	apic_write(&b, 0, APIC_ICR, 3 << 18 | 1 << 14 | 5 << 8);
	CHECK_EQ(0, b.inits[0]);
	CHECK_EQ(1, b.inits[1]);
	/* INIT level de-assert, which systems still send, does nothing. */
	apic_write(&b, 0, APIC_ICR, 3 << 18 | 1 << 15 | 5 << 8);
	CHECK_EQ(1, b.inits[1]);
	apic_write(&b, 0, APIC_ICR, 3 << 18 | 6 << 8 | 0x9A);
	CHECK_EQ(0, b.sipis[0]);
	CHECK_EQ(1, b.sipis[1]);
	CHECK_EQ(0x9A, b.sipi_vector);
	board_stop(&b);
}

TEST(init_resets_the_apic_but_not_its_mode)
{
	struct board b;
	uint64_t base;

	start_cpus(&b, 2);
	apic_enter_x2apic(&b, 1);
	apic_write(&b, 0, APIC_ICR_HIGH, 1u << 24);
	apic_write(&b, 0, APIC_ICR, 0x40);
	CHECK(b.intr[1]);
	apic_write(&b, 0, APIC_ICR, 1 << 14 | 5 << 8);
	CHECK(!b.intr[1]);
	CHECK(rdmsr(&b, 1, MSR_APIC_BASE, &base));
	CHECK_EQ(MEMMAP_LAPIC | BASE_ENABLE | BASE_X2APIC, base);
	CHECK(rdmsr(&b, 1, MSR_X2APIC + 0xF, &base));
	CHECK_EQ(0xFF, base);
	board_stop(&b);
}

TEST(nmi_needs_no_enabled_apic)
{
	struct board b;

	board_start(&b, 2, 16 * MiB);
	apic_enable(&b, 0);
	apic_write(&b, 0, APIC_ICR_HIGH, 1 << 24);
	apic_write(&b, 0, APIC_ICR, 4 << 8);
	CHECK_EQ(1, b.nmis[1]);
	board_stop(&b);
}

TEST(the_nmi_button_goes_through_lint1)
{
	struct board b;

	board_start(&b, 2, 16 * MiB);
	machine_nmi(b.machine);
	CHECK_EQ(1, b.nmis[0]); /* firmware left it unmasked on the first CPU only */
	CHECK_EQ(0, b.nmis[1]);
	apic_write(&b, 0, APIC_LVT_LINT1, 1 << 16 | 4 << 8);
	machine_nmi(b.machine);
	CHECK_EQ(1, b.nmis[0]);
	board_stop(&b);
}

/* ---- errors ---- */

TEST(sending_an_illegal_vector_is_an_error)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_LVT_ERROR, 0xFE);
	apic_self(&b, 0, 0x0F);
	CHECK_EQ(0xFE, ack(&b, 0));
	CHECK_EQ(0, apic_read(&b, 0, APIC_ESR)); /* shown only after a write */
	apic_write(&b, 0, APIC_ESR, 0);
	CHECK_EQ(1 << 5, apic_read(&b, 0, APIC_ESR));
	apic_write(&b, 0, APIC_ESR, 0);
	CHECK_EQ(0, apic_read(&b, 0, APIC_ESR));
	board_stop(&b);
}

TEST(a_register_that_is_not_there_is_an_error)
{
	struct board b;

	start_cpus(&b, 1);
	CHECK_EQ(0, apic_read(&b, 0, 0x40));
	apic_write(&b, 0, APIC_ESR, 0);
	CHECK_EQ(1 << 7, apic_read(&b, 0, APIC_ESR));
	board_stop(&b);
}

TEST(software_disable_masks_every_local_vector)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_LVT_ERROR, 0xFE);
	apic_write(&b, 0, APIC_SVR, 0xFF);
	CHECK_EQ(1 << 16 | 0xFE, apic_read(&b, 0, APIC_LVT_ERROR));
	apic_write(&b, 0, APIC_LVT_ERROR, 0xFE);
	CHECK_EQ(1 << 16 | 0xFE, apic_read(&b, 0, APIC_LVT_ERROR));
	board_stop(&b);
}

/* ---- IA32_APIC_BASE and x2APIC ---- */

TEST(apic_base_allows_only_the_documented_steps)
{
	struct board b;
	uint64_t off = MEMMAP_LAPIC, x = off | BASE_ENABLE, x2 = x | BASE_X2APIC;

	board_start(&b, 1, 16 * MiB);
	CHECK(!wrmsr(&b, 0, MSR_APIC_BASE, off | BASE_X2APIC));
	CHECK(wrmsr(&b, 0, MSR_APIC_BASE, x2));
	CHECK(!wrmsr(&b, 0, MSR_APIC_BASE, x));
	CHECK(wrmsr(&b, 0, MSR_APIC_BASE, off));
	CHECK(!wrmsr(&b, 0, MSR_APIC_BASE, x2));
	CHECK(wrmsr(&b, 0, MSR_APIC_BASE, x));
	CHECK(!wrmsr(&b, 0, MSR_APIC_BASE, x | 1 << 9));
	CHECK(!wrmsr(&b, 0, MSR_APIC_BASE, x | BIT(40)));
	board_stop(&b);
}

TEST(the_page_follows_apic_base_and_vanishes_in_x2apic_mode)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK(wrmsr(&b, 0, MSR_APIC_BASE, 0xFEE10000 | BASE_ENABLE));
	CHECK_EQ(0x50014, mmio_read(&b, 0, 0xFEE10030, 4));
	CHECK_EQ(0xFFFFFFFF, mmio_read(&b, 0, MEMMAP_LAPIC + APIC_VERSION, 4));
	CHECK(wrmsr(&b, 0, MSR_APIC_BASE, 0xFEE10000 | BASE_ENABLE | BASE_X2APIC));
	CHECK_EQ(0xFFFFFFFF, mmio_read(&b, 0, 0xFEE10030, 4));
	board_stop(&b);
}

TEST(x2apic_registers_fault_where_the_manual_says)
{
	struct board b;
	uint64_t v;

	board_start(&b, 1, 16 * MiB);
	CHECK(!rdmsr(&b, 0, MSR_X2APIC + 0x2, &v)); /* not in x2APIC mode */
	apic_enter_x2apic(&b, 0);
	CHECK(rdmsr(&b, 0, MSR_X2APIC + 0x2, &v));
	CHECK(!wrmsr(&b, 0, MSR_X2APIC + 0x2, 1));        /* id: read-only */
	CHECK(!wrmsr(&b, 0, MSR_X2APIC + 0xD, 1));        /* LDR: read-only */
	CHECK(!rdmsr(&b, 0, MSR_X2APIC + 0xE, &v));       /* DFR: not there */
	CHECK(!rdmsr(&b, 0, MSR_X2APIC + 0x31, &v));      /* ICR high: not there */
	CHECK(!rdmsr(&b, 0, MSR_X2APIC + 0xB, &v));       /* EOI: write-only */
	CHECK(!wrmsr(&b, 0, MSR_X2APIC + 0xB, 1));        /* and 0 only */
	CHECK(!wrmsr(&b, 0, MSR_X2APIC + 0x8, 0x100));    /* TPR: reserved bits */
	CHECK(!wrmsr(&b, 0, MSR_X2APIC + 0x28, 1));       /* ESR: 0 only */
	CHECK(!wrmsr(&b, 0, MSR_X2APIC + 0x30, 1 << 20)); /* ICR: reserved bits */
	CHECK(!wrmsr(&b, 0, MSR_X2APIC + 0x3F, 0x100));   /* self IPI: a vector */
	CHECK(!rdmsr(&b, 0, MSR_X2APIC + 0x3F, &v));
	CHECK(!rdmsr(&b, 0, MSR_X2APIC + 0x2F, &v)); /* no CMCI */
	CHECK(!rdmsr(&b, 0, MSR_X2APIC + 0xFF, &v));
	board_stop(&b);
}

TEST(x2apic_sends_with_one_write_and_self_ipi_with_a_short_one)
{
	struct board b;

	board_start(&b, 2, 16 * MiB);
	apic_enter_x2apic(&b, 0);
	apic_enter_x2apic(&b, 1);
	CHECK(wrmsr(&b, 0, MSR_X2APIC + 0x30, 1ull << 32 | 0x40));
	CHECK_EQ(0x40, ack(&b, 1));
	CHECK(wrmsr(&b, 0, MSR_X2APIC + 0x3F, 0x41));
	CHECK_EQ(0x41, ack(&b, 0));
	CHECK(wrmsr(&b, 0, MSR_X2APIC + 0xB, 0));
	CHECK_EQ(-1, ack(&b, 0));
	board_stop(&b);
}

TEST(x2apic_logical_ids_are_clusters_of_sixteen)
{
	struct board b;
	uint64_t ldr;

	board_start(&b, 18, 16 * MiB);
	for (unsigned i = 0; i < 18; i++)
		apic_enter_x2apic(&b, i);
	CHECK(rdmsr(&b, 17, MSR_X2APIC + 0xD, &ldr));
	CHECK_EQ(0x00010002, ldr);
	CHECK(wrmsr(&b, 0, MSR_X2APIC + 0x30, 0x00010003ull << 32 | 1 << 11 | 0x40));
	CHECK(b.intr[16] && b.intr[17] && !b.intr[0] && !b.intr[1]);
	board_stop(&b);
}

/* ---- timer ---- */

TEST(one_shot_timer_fires_once_after_its_count)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_TIMER_DIVIDE, 0xB); /* by 1: 1 GHz */
	apic_write(&b, 0, APIC_LVT_TIMER, 0x40);
	apic_write(&b, 0, APIC_TIMER_INIT, 100000);
	board_advance(&b, 40000);
	CHECK_EQ(60000, apic_read(&b, 0, APIC_TIMER_CURRENT));
	board_advance(&b, 59999);
	CHECK(!b.intr[0]);
	board_advance(&b, 1);
	CHECK_EQ(0x40, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK_EQ(0, apic_read(&b, 0, APIC_TIMER_CURRENT));
	board_advance(&b, 1000000);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(a_change_of_mode_keeps_the_count)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_TIMER_DIVIDE, 0xB);
	apic_write(&b, 0, APIC_LVT_TIMER, 0x40);
	apic_write(&b, 0, APIC_TIMER_INIT, 100000);
	board_advance(&b, 60000);
	apic_write(&b, 0, APIC_LVT_TIMER, 0x20040); /* periodic */
	CHECK_EQ(40000, apic_read(&b, 0, APIC_TIMER_CURRENT));
	board_advance(&b, 50000);
	CHECK_EQ(90000, apic_read(&b, 0, APIC_TIMER_CURRENT));
	CHECK_EQ(0x40, ack(&b, 0));
	apic_eoi(&b, 0);
	apic_write(&b, 0, APIC_LVT_TIMER, 0x40); /* one-shot: the last period */
	CHECK_EQ(90000, apic_read(&b, 0, APIC_TIMER_CURRENT));
	board_advance(&b, 90000);
	CHECK_EQ(0, apic_read(&b, 0, APIC_TIMER_CURRENT));
	CHECK_EQ(0x40, ack(&b, 0));
	apic_eoi(&b, 0);
	apic_write(&b, 0, APIC_LVT_TIMER, 0x20040); /* periodic again, but it has run out */
	board_advance(&b, 30000);
	CHECK_EQ(0, apic_read(&b, 0, APIC_TIMER_CURRENT));
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(the_divider_slows_the_timer)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_TIMER_DIVIDE, 0x3); /* by 16 */
	apic_write(&b, 0, APIC_LVT_TIMER, 0x40);
	apic_write(&b, 0, APIC_TIMER_INIT, 1000);
	board_advance(&b, 15999);
	CHECK(!b.intr[0]);
	board_advance(&b, 1);
	CHECK(b.intr[0]);
	board_stop(&b);
}

TEST(periodic_timer_keeps_its_grid_and_merges_ticks_nobody_took)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_TIMER_DIVIDE, 0xB);
	apic_write(&b, 0, APIC_LVT_TIMER, 1 << 17 | 0x40);
	apic_write(&b, 0, APIC_TIMER_INIT, 1000000);
	for (unsigned i = 0; i < 3; i++) {
		board_advance(&b, 1000000);
		CHECK_EQ(0x40, ack(&b, 0));
		apic_eoi(&b, 0);
	}
	board_advance(&b, 5500000);
	CHECK_EQ(0x40, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK(!b.intr[0]);
	CHECK_EQ(500000, apic_read(&b, 0, APIC_TIMER_CURRENT));
	board_advance(&b, 500000);
	CHECK(b.intr[0]);
	board_stop(&b);
}

TEST(a_masked_timer_counts_but_does_not_interrupt)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_TIMER_DIVIDE, 0xB);
	apic_write(&b, 0, APIC_LVT_TIMER, 1 << 16 | 0x40);
	apic_write(&b, 0, APIC_TIMER_INIT, 0xFFFFFFFF);
	board_advance(&b, 1000000);
	CHECK_EQ(0xFFFFFFFF - 1000000, apic_read(&b, 0, APIC_TIMER_CURRENT));
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(changing_the_divider_keeps_the_count)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_TIMER_DIVIDE, 0xB);
	apic_write(&b, 0, APIC_LVT_TIMER, 0x40);
	apic_write(&b, 0, APIC_TIMER_INIT, 1000);
	board_advance(&b, 400);
	apic_write(&b, 0, APIC_TIMER_DIVIDE, 0x0); /* by 2 */
	CHECK_EQ(600, apic_read(&b, 0, APIC_TIMER_CURRENT));
	board_advance(&b, 1199);
	CHECK(!b.intr[0]);
	board_advance(&b, 1);
	CHECK(b.intr[0]);
	board_stop(&b);
}

TEST(tsc_deadline_fires_when_the_tsc_gets_there)
{
	struct board b;
	uint64_t v;

	start_cpus(&b, 1);
	b.tsc_offset[0] = 1000;
	apic_write(&b, 0, APIC_LVT_TIMER, 2 << 17 | 0x40);
	CHECK(wrmsr(&b, 0, MSR_TSC_DEADLINE, 1000 + 3 * 50000));
	CHECK(rdmsr(&b, 0, MSR_TSC_DEADLINE, &v));
	CHECK_EQ(151000, v);
	board_advance(&b, 49999);
	CHECK(!b.intr[0]);
	board_advance(&b, 1);
	CHECK_EQ(0x40, ack(&b, 0));
	CHECK(rdmsr(&b, 0, MSR_TSC_DEADLINE, &v));
	CHECK_EQ(0, v);
	board_stop(&b);
}

TEST(a_tsc_deadline_is_met_after_the_guest_sets_its_tsc)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_LVT_TIMER, 2 << 17 | 0x40);
	CHECK(wrmsr(&b, 0, MSR_TSC_DEADLINE, 3 * 50000));
	b.tsc_offset[0] = 3 * 40000;
	machine_cpu_ops.tsc_written(machine_cpu(b.machine, 0));
	board_advance(&b, 9999);
	CHECK(!b.intr[0]);
	board_advance(&b, 1);
	CHECK_EQ(0x40, ack(&b, 0));
	board_stop(&b);
}

TEST(a_tsc_deadline_in_the_past_fires_at_once_and_zero_disarms)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_LVT_TIMER, 2 << 17 | 0x40);
	board_advance(&b, 1000);
	CHECK(wrmsr(&b, 0, MSR_TSC_DEADLINE, 1));
	CHECK_EQ(0x40, ack(&b, 0));
	apic_eoi(&b, 0);
	CHECK(wrmsr(&b, 0, MSR_TSC_DEADLINE, 3 * 100000));
	CHECK(wrmsr(&b, 0, MSR_TSC_DEADLINE, 0));
	board_advance(&b, 200000);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(a_tsc_deadline_in_another_mode_is_ignored)
{
	struct board b;
	uint64_t v;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_LVT_TIMER, 0x40);
	CHECK(wrmsr(&b, 0, MSR_TSC_DEADLINE, 1));
	CHECK(!b.intr[0]);
	CHECK(rdmsr(&b, 0, MSR_TSC_DEADLINE, &v));
	CHECK_EQ(0, v);
	board_stop(&b);
}

TEST(leaving_deadline_mode_disarms_the_timer)
{
	struct board b;

	start_cpus(&b, 1);
	apic_write(&b, 0, APIC_LVT_TIMER, 2 << 17 | 0x40);
	CHECK(wrmsr(&b, 0, MSR_TSC_DEADLINE, 3 * 1000));
	apic_write(&b, 0, APIC_LVT_TIMER, 0x40);
	board_advance(&b, 100000);
	CHECK(!b.intr[0]);
	board_stop(&b);
}
