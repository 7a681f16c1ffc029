/* Guests whose every exception causes the next one: a kick must still get the vCPU back. */
#include "fake_engine_ops.h"

#include <unistd.h>

/* An interrupt gate to SG_HANDLERS. */
#define STORM_GATE(sel, attr)                                                                      \
	((SG_HANDLERS & 0xffffull) | (uint64_t)(sel) << 16 | (uint64_t)(attr) << 40 |              \
	 (uint64_t)(SG_HANDLERS >> 16) << 48)

static void *kick_later(void *opaque)
{
	usleep(20 * 1000);
	engine_soft.cpu_kick(opaque);
	return NULL;
}

/* Run until the kick; more than once, as what waits must not be lost for good. */
static void run_and_kick(struct soft_guest *g)
{
	for (unsigned i = 0; i < 3; i++) {
		struct engine_exit_info info;
		pthread_t t;

		CHECK_EQ(0, pthread_create(&t, NULL, kick_later, g->cpu[0]));
		CHECK_EQ(ENGINE_EXIT_KICKED, engine_soft.cpu_run(g->cpu[0], &info));
		pthread_join(t, NULL);
	}
}

/* #DB on a stack of its own, with a breakpoint on that stack and one to begin with. */
static struct soft_guest *debug_storm(void)
{
	static const uint8_t code[] = {
		0x48, 0xa3, 0x00, 0x00, 0x02, 0x00, 0, 0, 0, 0, /* mov [SG_DATA], rax */
	};
	struct soft_guest *g = soft_guest_create(1);
	const uint64_t ist1 = SG_DATA + 64;

	sg_intercept(g, 0);
	sg_put(g, SG_CODE, code, sizeof(code));
	sg_put64(g, SG_IDT + X86_EXC_DB * 16, STORM_GATE(SG_CS, 0x8e) | 1ull << 32);
	sg_put64(g, SG_TSS + 0x24, ist1);
	g->state.dr[0] = SG_DATA;
	g->state.dr[1] = ist1 - 8; /* SS of the frame */
	g->state.dr7 = 0x40f | 0xd << 16 | 0x9 << 20;
	g->state.rip = SG_CODE;
	sg_load(g);
	return g;
}

TEST(a_debug_trap_whose_delivery_hits_its_breakpoint_again_can_be_kicked)
{
	struct soft_guest *g = debug_storm();

	run_and_kick(g);
	soft_guest_destroy(g);
}

TEST(a_debug_trap_that_is_due_travels_with_the_state)
{
	struct soft_guest *g = debug_storm();

	run_and_kick(g);
	engine_soft.cpu_get(g->cpu[0], &g->state);
	CHECK_EQ(1, g->state.event_pending);
	CHECK_EQ(X86_EXC_DB, g->state.event_vector);
	CHECK_EQ(2, g->state.dr6 & 15);
	sg_load(g);
	run_and_kick(g);
	soft_guest_destroy(g);
}

/* 32-bit protected mode: the handler of #AC is in ring 3, on the misaligned stack that caused it.
 */
TEST(alignment_checks_that_cause_one_another_can_be_kicked)
{
	static const uint64_t code3 = 0x00cffb000000ffff;
	struct soft_guest *g = soft_guest_create(1);
	const struct x86_segment data3 = {0, ~0u, 0xc0f3, SG_DS3};
	uint8_t load[] = {0x8b, 0x04, 0x24}; /* mov eax, [esp] */

	sg_intercept(g, 0);
	sg_put64(g, SG_GDT + 3 * 8, code3);
	sg_put(g, SG_CODE, load, sizeof(load));
	sg_put64(g, SG_IDT + X86_EXC_AC * 8, STORM_GATE(SG_CS3, 0xee));
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		g->state.seg[i] = data3;
	g->state.seg[X86_CS] = (struct x86_segment){0, ~0u, 0xc0fb, SG_CS3};
	g->state.cr0 = CR0_PE | CR0_AM | CR0_ET | CR0_NE;
	g->state.efer = 0;
	g->state.cr4 = 0;
	g->state.rflags = RFLAGS_FIXED | RFLAGS_AC;
	g->state.gpr[X86_RSP] = SG_STACK - 64 + 1;
	g->state.rip = SG_CODE;
	sg_load(g);
	run_and_kick(g);
	engine_soft.cpu_get(g->cpu[0], &g->state);
	CHECK_EQ(X86_EXC_AC, g->state.event_vector);
	CHECK_EQ(SG_CODE, g->state.rip);
	soft_guest_destroy(g);
}
