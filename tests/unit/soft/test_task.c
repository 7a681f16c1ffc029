/* Hardware task switches: who may start one, what is saved and loaded, and whose fault a bad
 * selector is.  SDM 3A "Task Management". */
#include "soft_fixture.h"

#include "engine/soft/debug.h"

#define GP(e) FAULT(X86_EXC_GP, e)
#define NP(e) FAULT(X86_EXC_NP, e)
#define SS(e) FAULT(X86_EXC_SS, e)
#define TS(e) FAULT(X86_EXC_TS, e)

/* The task to switch to: TSS at FIX_TSS2, named by FREE; a task gate to it at FREE + 1. */
enum { NEW_EIP = 0x7000, NEW_ESP = 0xe000 };
#define NEW_SEL  SEL(FIX_FREE, 0)
#define NEW_ERR  (FIX_FREE << 3)
#define GATE_SEL SEL(FIX_FREE + 1, 0)
#define OLD_SEL  SEL(FIX_TSS_IDX, 0)

/* Offsets in a 32-bit TSS. */
enum {
	T_LINK = 0,
	T_CR3 = 28,
	T_EIP = 32,
	T_EFLAGS = 36,
	T_EAX = 40,
	T_ESP = 56,
	T_ES = 72,
	T_CS = 76,
	T_SS = 80,
	T_DS = 84,
	T_FS = 88,
	T_GS = 92,
	T_LDT = 96,
	T_TRAP = 100,
};

static void tss_put(struct fixture *f, unsigned off, uint32_t v)
{
	fix_put(f, FIX_TSS2 + off, 4, v);
}

static unsigned type_of(struct fixture *f, unsigned index)
{
	return fix_get(f, FIX_GDT + index * 8 + 5, 1) & 0xf;
}

static struct fixture *task_fixture(void)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, ATTR_SYS(DESC_TSS), FIX_TSS2, 103);
	fixture_gdt_gate(f, FIX_FREE + 1, ATTR_SYS(DESC_TASK_GATE), NEW_SEL, 0, 0);
	tss_put(f, T_EIP, NEW_EIP);
	tss_put(f, T_ESP, NEW_ESP);
	tss_put(f, T_EFLAGS, RFLAGS_FIXED);
	tss_put(f, T_CS, SEL(FIX_CS0, 0));
	tss_put(f, T_SS, SEL(FIX_DS0, 0));
	tss_put(f, T_DS, SEL(FIX_DS0, 0));
	return f;
}

static uint32_t jump(struct fixture *f, uint16_t sel)
{
	return fixture_far(f, exec_jmp_far_A, sel, 0, 4);
}

static uint32_t call(struct fixture *f, uint16_t sel)
{
	return fixture_far(f, exec_call_far_A, sel, 0, 4);
}

/* --- a good switch -----------------------------------------------------------------------------
 */

TEST(a_jmp_saves_the_old_task_and_loads_the_new)
{
	struct fixture *f = task_fixture();

	f->cpu->gpr[X86_RAX] = 0x11111111;
	f->cpu->gpr[X86_RDI] = 0x77777777;
	f->cpu->cc = RFLAGS_CF;
	tss_put(f, T_EAX, 0xaaaaaaaa);
	tss_put(f, T_ES, SEL(FIX_DS3, 3));
	tss_put(f, T_LDT, SEL(FIX_LDT_IDX, 0));
	tss_put(f, T_EFLAGS, RFLAGS_FIXED | RFLAGS_IF | RFLAGS_ZF);
	CHECK_EQ(0, jump(f, NEW_SEL));

	CHECK_EQ(FIX_CODE + 2, fix_get(f, FIX_TSS + T_EIP, 4));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_CF, fix_get(f, FIX_TSS + T_EFLAGS, 4));
	CHECK_EQ(0x11111111, fix_get(f, FIX_TSS + T_EAX, 4));
	CHECK_EQ(0x77777777, fix_get(f, FIX_TSS + T_EAX + 28, 4));
	CHECK_EQ(FIX_STACK, fix_get(f, FIX_TSS + T_ESP, 4));
	CHECK_EQ(SEL(FIX_CS0, 0), fix_get(f, FIX_TSS + T_CS, 2));

	CHECK_EQ(0xaaaaaaaa, f->cpu->gpr[X86_RAX]);
	CHECK_EQ(NEW_ESP, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(NEW_EIP, f->cpu->rip);
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_IF | RFLAGS_ZF, cpu_rflags(f->cpu));
	CHECK_EQ(SEL(FIX_DS3, 3), f->cpu->seg[X86_ES].selector);
	CHECK(f->cpu->seg[X86_FS].attr & X86_SEG_UNUSABLE);
	CHECK_EQ(FIX_LDT, f->cpu->ldtr.base);
	CHECK_EQ(NEW_SEL, f->cpu->tr.selector);
	CHECK_EQ(FIX_TSS2, f->cpu->tr.base);
	CHECK(f->cpu->cr0 & CR0_TS);
}

TEST(a_jmp_moves_the_busy_bit)
{
	struct fixture *f = task_fixture();

	CHECK_EQ(0, jump(f, NEW_SEL));
	CHECK_EQ(DESC_TSS, type_of(f, FIX_TSS_IDX));
	CHECK_EQ(DESC_TSS_BUSY, type_of(f, FIX_FREE));
	CHECK_EQ(DESC_TSS_BUSY, X86_SEG_TYPE(f->cpu->tr.attr));
	CHECK(!(f->cpu->rflags & RFLAGS_NT));
}

TEST(a_call_nests_and_iret_comes_back)
{
	struct fixture *f = task_fixture();

	CHECK_EQ(0, call(f, NEW_SEL));
	CHECK_EQ(DESC_TSS_BUSY, type_of(f, FIX_TSS_IDX));
	CHECK_EQ(DESC_TSS_BUSY, type_of(f, FIX_FREE));
	CHECK_EQ(OLD_SEL, fix_get(f, FIX_TSS2 + T_LINK, 2));
	CHECK(f->cpu->rflags & RFLAGS_NT);

	CHECK_EQ(0, fixture_plain(f, exec_iret, 4));
	CHECK_EQ(FIX_CODE + 2, f->cpu->rip);
	CHECK_EQ(OLD_SEL, f->cpu->tr.selector);
	CHECK_EQ(DESC_TSS, type_of(f, FIX_FREE));
	CHECK_EQ(DESC_TSS_BUSY, type_of(f, FIX_TSS_IDX));
	CHECK_EQ(0, fix_get(f, FIX_TSS2 + T_EFLAGS, 4) & RFLAGS_NT);
	CHECK_EQ(NEW_EIP + 2, fix_get(f, FIX_TSS2 + T_EIP, 4));
}

TEST(a_task_gate_in_gdt_leads_to_the_tss)
{
	struct fixture *f = task_fixture();

	CHECK_EQ(0, call(f, GATE_SEL));
	CHECK_EQ(NEW_EIP, f->cpu->rip);
}

TEST(a_task_gate_in_the_idt_nests_and_takes_the_error_code)
{
	struct fixture *f = task_fixture();

	fixture_idt(f, X86_EXC_GP, ATTR_SYS(DESC_TASK_GATE), NEW_SEL, 0, 0);
	CHECK_EQ(0, fixture_exception(f, &(struct cpu_fault_info){X86_EXC_GP, true, 0xbeec, 0}));
	CHECK_EQ(NEW_EIP, f->cpu->rip);
	CHECK_EQ(NEW_ESP - 4, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0xbeec, fix_get(f, NEW_ESP - 4, 4));
	CHECK_EQ(FIX_CODE, fix_get(f, FIX_TSS + T_EIP, 4));
	CHECK(fix_get(f, FIX_TSS + T_EFLAGS, 4) & RFLAGS_RF);
	CHECK(f->cpu->rflags & RFLAGS_NT);
}

TEST(a_task_may_start_in_ring_3)
{
	struct fixture *f = task_fixture();

	tss_put(f, T_CS, SEL(FIX_CS3, 3));
	tss_put(f, T_SS, SEL(FIX_DS3, 3));
	tss_put(f, T_DS, SEL(FIX_DS3, 3));
	CHECK_EQ(0, jump(f, NEW_SEL));
	CHECK_EQ(3, f->cpu->cpl);
}

TEST(a_task_may_start_in_v86_mode)
{
	struct fixture *f = task_fixture();

	tss_put(f, T_EFLAGS, RFLAGS_FIXED | RFLAGS_VM);
	tss_put(f, T_CS, 0x1000);
	tss_put(f, T_SS, 0x2000);
	tss_put(f, T_GS, 0x3000);
	CHECK_EQ(0, jump(f, NEW_SEL));
	CHECK(f->cpu->v86);
	CHECK_EQ(3, f->cpu->cpl);
	CHECK_EQ(0x10000, f->cpu->seg[X86_CS].base);
	CHECK_EQ(0x30000, f->cpu->seg[X86_GS].base);
}

TEST(the_trap_bit_pends_a_debug_exception)
{
	struct fixture *f = task_fixture();

	tss_put(f, T_TRAP, 1);
	CHECK_EQ(0, jump(f, NEW_SEL));
	CHECK_EQ(DR6_BT, f->cpu->dbg_pending);
}

TEST(local_breakpoints_end_with_the_task)
{
	struct fixture *f = task_fixture();

	f->cpu->dr7 = DR7_FIXED | 0x3ff;
	CHECK_EQ(0, jump(f, NEW_SEL));
	CHECK_EQ(DR7_FIXED | 0x2aa, f->cpu->dr7);
}

TEST(a_16_bit_task)
{
	struct fixture *f = task_fixture();

	fixture_gdt(f, FIX_FREE, ATTR_SYS(DESC_TSS16), FIX_TSS2, 43);
	memset(fix_ram(f, FIX_TSS2), 0, 104);
	fix_put(f, FIX_TSS2 + 14, 2, 0x4444);          /* IP */
	fix_put(f, FIX_TSS2 + 16, 2, RFLAGS_CF | 2);   /* FLAGS */
	fix_put(f, FIX_TSS2 + 18, 2, 0x1111);          /* AX */
	fix_put(f, FIX_TSS2 + 26, 2, 0x9000);          /* SP */
	fix_put(f, FIX_TSS2 + 36, 2, SEL(FIX_CS0, 0)); /* CS */
	fix_put(f, FIX_TSS2 + 38, 2, SEL(FIX_DS0, 0)); /* SS */
	CHECK_EQ(0, call(f, NEW_SEL));
	CHECK_EQ(0x4444, f->cpu->rip);
	CHECK_EQ(0x1111, (uint16_t)f->cpu->gpr[X86_RAX]);
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_CF | RFLAGS_NT, cpu_rflags(f->cpu));
	CHECK_EQ(DESC_TSS16_BUSY, type_of(f, FIX_FREE));

	/* And back: the 16-bit TSS is saved in its own layout. */
	f->cpu->gpr[X86_RAX] = 0x2222;
	CHECK_EQ(0, fixture_plain(f, exec_iret, 4));
	CHECK_EQ(0x2222, fix_get(f, FIX_TSS2 + 18, 2));
	CHECK_EQ(0x4446, fix_get(f, FIX_TSS2 + 14, 2));
	CHECK_EQ(FIX_CODE + 2, f->cpu->rip);
}

/* --- refused before anything changes -----------------------------------------------------------
 */

struct start_row {
	const char *name;
	unsigned cpl;
	uint16_t sel;       /* target of the JMP */
	uint32_t tss, gate; /* attributes of the two descriptors */
	uint32_t limit;
	uint16_t gate_sel;
	uint32_t want;
};

#define T_OK ATTR_SYS(DESC_TSS)
#define G_OK ATTR_SYS(DESC_TASK_GATE)

// clang-format off
static const struct start_row start_rows[] = {
	{"TSS",                      0, NEW_SEL, T_OK, G_OK, 103, NEW_SEL, 0},
	{"TSS, DPL < CPL",           3, NEW_SEL, T_OK, G_OK, 103, NEW_SEL, GP(NEW_ERR)},
	{"TSS, DPL < RPL",           0, NEW_SEL | 1, T_OK, G_OK, 103, NEW_SEL, GP(NEW_ERR)},
	{"TSS, busy",                0, NEW_SEL, ATTR_SYS(DESC_TSS_BUSY), G_OK, 103, NEW_SEL, GP(NEW_ERR)},
	{"TSS, not present",         0, NEW_SEL, DESC_TSS, G_OK, 103, NEW_SEL, NP(NEW_ERR)},
	{"TSS, too short",           0, NEW_SEL, T_OK, G_OK, 102, NEW_SEL, TS(NEW_ERR)},
	{"16-bit TSS, too short",    0, NEW_SEL, ATTR_SYS(DESC_TSS16), G_OK, 42, NEW_SEL, TS(NEW_ERR)},
	{"gate",                     0, GATE_SEL, T_OK, G_OK, 103, NEW_SEL, 0},
	{"gate, DPL < CPL",          3, GATE_SEL, T_OK, G_OK, 103, NEW_SEL, GP((FIX_FREE + 1) << 3)},
	{"gate, not present",        0, GATE_SEL, T_OK, DESC_TASK_GATE, 103, NEW_SEL, NP((FIX_FREE + 1) << 3)},
	{"gate: DPL of TSS ignored", 3, GATE_SEL | 3, T_OK, G_OK | ATTR_DPL(3), 103, NEW_SEL, 0},
	{"gate to the LDT",          0, GATE_SEL, T_OK, G_OK, 103, LDT_SEL(FIX_FREE, 0), GP(NEW_ERR | 4)},
	{"gate to outside",          0, GATE_SEL, T_OK, G_OK, 103, SEL(600, 0), GP(600 << 3)},
	{"gate to a busy TSS",       0, GATE_SEL, ATTR_SYS(DESC_TSS_BUSY), G_OK, 103, NEW_SEL, GP(NEW_ERR)},
	{"gate to data",             0, GATE_SEL, ATTR_DATA, G_OK, 103, NEW_SEL, GP(NEW_ERR)},
	{"gate to absent TSS",       0, GATE_SEL, DESC_TSS, G_OK, 103, NEW_SEL, NP(NEW_ERR)},
	{"gate to short TSS",        0, GATE_SEL, T_OK, G_OK, 0, NEW_SEL, TS(NEW_ERR)},
};
// clang-format on

TEST(every_way_a_switch_is_refused)
{
	for (unsigned i = 0; i < ARRAY_SIZE(start_rows); i++) {
		const struct start_row *r = &start_rows[i];
		struct fixture *f = task_fixture();

		fixture_ring(f, r->cpl);
		fixture_gdt(f, FIX_FREE, r->tss, FIX_TSS2, r->limit);
		fixture_gdt_gate(f, FIX_FREE + 1, r->gate, r->gate_sel, 0, 0);
		CHECK_ROW(r->name, r->want, jump(f, r->sel));
		CHECK_ROW(r->name, r->want ? FIX_CODE : NEW_EIP, f->cpu->rip);
		CHECK_ROW(r->name, r->want ? OLD_SEL : NEW_SEL, f->cpu->tr.selector);
	}
}

TEST(an_events_refusal_carries_ext)
{
	struct fixture *f = task_fixture();

	fixture_idt(f, 0x40, G_OK, NEW_SEL, 0, 0);
	fixture_gdt(f, FIX_FREE, DESC_TSS, FIX_TSS2, 103);
	CHECK_EQ(NP(NEW_ERR | 1), fixture_interrupt(f, 0x40));
	fixture_gdt(f, FIX_FREE, T_OK, FIX_TSS2, 50);
	CHECK_EQ(TS(NEW_ERR | 1), fixture_interrupt(f, 0x40));
}

struct link_row {
	const char *name;
	uint16_t link;
	uint32_t attr;
	uint32_t want;
};

// clang-format off
static const struct link_row link_rows[] = {
	{"busy",          NEW_SEL, ATTR_SYS(DESC_TSS_BUSY), 0},
	{"not busy",      NEW_SEL, T_OK, TS(NEW_ERR)},
	{"in the LDT",    NEW_SEL | SEL_TI, T_OK, TS(NEW_ERR | 4)},
	{"outside",       SEL(600, 0), T_OK, TS(600 << 3)},
	{"data",          NEW_SEL, ATTR_DATA, TS(NEW_ERR)},
	{"not present",   NEW_SEL, DESC_TSS_BUSY, NP(NEW_ERR)},
};
// clang-format on

TEST(iret_with_nt_follows_the_back_link)
{
	for (unsigned i = 0; i < ARRAY_SIZE(link_rows); i++) {
		const struct link_row *r = &link_rows[i];
		struct fixture *f = task_fixture();

		f->cpu->rflags |= RFLAGS_NT;
		fixture_gdt(f, FIX_FREE, r->attr, FIX_TSS2, 103);
		fix_put(f, FIX_TSS + T_LINK, 2, r->link);
		CHECK_ROW(r->name, r->want, fixture_plain(f, exec_iret, 4));
		CHECK_ROW(r->name, r->want ? FIX_CODE : NEW_EIP, f->cpu->rip);
	}
}

/* --- faults of the new task --------------------------------------------------------------------
 */

struct image_row {
	const char *name;
	unsigned off; /* of the selector in the TSS */
	uint16_t sel;
	uint32_t attr; /* at FIX_FREE + 4 */
	uint32_t want;
};

#define X         SEL(FIX_FREE + 4, 0)
#define X3        SEL(FIX_FREE + 4, 3)
#define X_ERR     ((FIX_FREE + 4) << 3)
#define DATA(dpl) (ATTR_DATA | ATTR_DPL(dpl) | ATTR_32)
#define CODE(dpl) (ATTR_CODE | ATTR_DPL(dpl) | ATTR_32)

// clang-format off
static const struct image_row image_rows[] = {
	{"LDT in the LDT",          T_LDT, X | SEL_TI, ATTR_SYS(DESC_LDT), TS(X_ERR | 4)},
	{"LDT outside",             T_LDT, SEL(600, 0), 0, TS(600 << 3)},
	{"LDT is a TSS",            T_LDT, X, ATTR_SYS(DESC_TSS), TS(X_ERR)},
	{"LDT not present",         T_LDT, X, DESC_LDT, TS(X_ERR)},
	{"CS null",                 T_CS, 0, 0, TS(0)},
	{"CS outside",              T_CS, SEL(600, 0), 0, TS(600 << 3)},
	{"CS is data",              T_CS, X, DATA(0), TS(X_ERR)},
	{"CS, DPL is not RPL",      T_CS, X, CODE(3), TS(X_ERR)},
	{"CS conforming, DPL > RPL", T_CS, X, CODE(3) | CONFORMING, TS(X_ERR)},
	{"CS not present",          T_CS, X, CODE(0) & ~X86_SEG_P, NP(X_ERR)},
	{"SS null",                 T_SS, 0, 0, TS(0)},
	{"SS outside",              T_SS, SEL(600, 0), 0, TS(600 << 3)},
	{"SS, RPL is not CPL",      T_SS, X3, DATA(3), TS(X_ERR)},
	{"SS, DPL is not CPL",      T_SS, X, DATA(3), TS(X_ERR)},
	{"SS is code",              T_SS, X, CODE(0), TS(X_ERR)},
	{"SS read-only",            T_SS, X, DATA(0) & ~SEG_TYPE_RW, TS(X_ERR)},
	{"SS not present",          T_SS, X, DATA(0) & ~X86_SEG_P, SS(X_ERR)},
	{"DS null",                 T_DS, 0, 0, 0},
	{"DS outside",              T_DS, SEL(600, 0), 0, TS(600 << 3)},
	{"ES system",               T_ES, X, ATTR_SYS(DESC_TSS), TS(X_ERR)},
	{"FS execute-only",         T_FS, X, CODE(0) & ~SEG_TYPE_RW, TS(X_ERR)},
	{"GS, DPL < RPL",           T_GS, X3, DATA(0), TS(X_ERR)},
	{"GS conforming",           T_GS, X3, CODE(0) | CONFORMING, 0},
	{"DS not present",          T_DS, X, DATA(0) & ~X86_SEG_P, NP(X_ERR)},
};
// clang-format on

TEST(a_bad_selector_faults_in_the_new_task)
{
	for (unsigned i = 0; i < ARRAY_SIZE(image_rows); i++) {
		const struct image_row *r = &image_rows[i];
		struct fixture *f = task_fixture();

		fixture_gdt(f, FIX_FREE + 4, r->attr, 0, 0xfffff);
		fix_put(f, FIX_TSS2 + r->off, 2, r->sel);
		CHECK_ROW(r->name, r->want, jump(f, NEW_SEL));
		CHECK_ROW(r->name, NEW_EIP, f->cpu->rip);
		CHECK_ROW(r->name, NEW_SEL, f->cpu->tr.selector);
		CHECK_ROW(r->name, FIX_CODE + 2, fix_get(f, FIX_TSS + T_EIP, 4));
	}
}

TEST(an_eip_over_the_limit_faults_in_the_new_task)
{
	struct fixture *f = task_fixture();

	fixture_gdt(f, FIX_FREE + 4, ATTR_CODE | X86_SEG_DB, 0, NEW_EIP - 1);
	tss_put(f, T_CS, X);
	CHECK_EQ(GP(0), jump(f, NEW_SEL));
	CHECK_EQ(NEW_EIP, f->cpu->rip);
}

TEST(an_error_code_that_does_not_fit_the_new_stack)
{
	struct fixture *f = task_fixture();

	fixture_gdt(f, FIX_FREE + 4, ATTR_DATA | X86_SEG_DB, 0, 0xfff);
	tss_put(f, T_SS, X);
	fixture_idt(f, X86_EXC_GP, G_OK, NEW_SEL, 0, 0);
	CHECK_EQ(SS(1), fixture_exception(f, &(struct cpu_fault_info){X86_EXC_GP, true, 0, 0}));
	CHECK_EQ(NEW_EIP, f->cpu->rip);
}
