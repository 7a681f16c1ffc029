/* Events on their way to a handler: which gate, which stack, which frame, and which fault when
 * something is wrong on the way.  SDM 3A "Interrupt and Exception Handling", SDM 2 INT. */
#include "soft_fixture.h"

#include "engine/soft/debug.h"

#define GP(e) FAULT(X86_EXC_GP, e)
#define NP(e) FAULT(X86_EXC_NP, e)
#define SS(e) FAULT(X86_EXC_SS, e)
#define TS(e) FAULT(X86_EXC_TS, e)

enum { HANDLER = 0x123456, VECTOR = 0x40 };

#define GATE(type, dpl) (ATTR_SYS(type) | ATTR_DPL(dpl))
#define IDT_ERR(v)      ((v) << 3 | 2)

static uint32_t soft_int(struct fixture *f, unsigned vector)
{
	f->in = (struct insn){.imm = vector};
	return fixture_exec(f, exec_int_I);
}

/* --- real mode ---------------------------------------------------------------------------------
 */

TEST(real_mode_goes_through_the_vector_table)
{
	struct fixture *f = fixture_create(FIX_REAL);

	fix_put(f, VECTOR * 4, 4, 0x12345678);
	f->cpu->rflags |= RFLAGS_IF | RFLAGS_TF | RFLAGS_AC;
	f->cpu->cc = RFLAGS_CF;
	f->cpu->seg[X86_CS].selector = 0x55;
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(0x1234, f->cpu->seg[X86_CS].selector);
	CHECK_EQ(0x12340, f->cpu->seg[X86_CS].base);
	CHECK_EQ(0x5678, f->cpu->rip);
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_CF, cpu_rflags(f->cpu));
	CHECK_EQ(FIX_STACK - 6, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE, fix_get(f, FIX_STACK - 6, 2));
	CHECK_EQ(0x55, fix_get(f, FIX_STACK - 4, 2));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_CF | RFLAGS_IF | RFLAGS_TF, fix_get(f, FIX_STACK - 2, 2));
}

TEST(real_mode_pushes_no_error_code)
{
	struct fixture *f = fixture_create(FIX_REAL);

	fix_put(f, X86_EXC_GP * 4, 4, 0x1000);
	CHECK_EQ(0, fixture_exception(f, &(struct cpu_fault_info){X86_EXC_GP, true, 0x18, 0}));
	CHECK_EQ(FIX_STACK - 6, f->cpu->gpr[X86_RSP]);
}

TEST(a_vector_outside_the_table_is_a_fault)
{
	struct fixture *f = fixture_create(FIX_REAL);

	f->cpu->idtr.limit = VECTOR * 4 + 2;
	CHECK_EQ(X86_EXC_GP, fixture_interrupt(f, VECTOR) >> 16 & 0xff);
	f->cpu->idtr.limit = VECTOR * 4 + 3;
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
}

TEST(a_real_mode_stack_wraps_between_words_but_not_inside_one)
{
	struct fixture *f = fixture_create(FIX_REAL);

	fix_put(f, VECTOR * 4, 4, 0x1000);
	f->cpu->gpr[X86_RSP] = 4;
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(0xfffe, f->cpu->gpr[X86_RSP]);
	f->cpu->gpr[X86_RSP] = 3;
	f->cpu->rip = 0x77;
	CHECK_EQ(SS(1), fixture_interrupt(f, VECTOR));
	CHECK_EQ(3, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0x77, f->cpu->rip);
}

/* --- frames ------------------------------------------------------------------------------------
 */

TEST(a_32_bit_interrupt_gate_in_the_same_ring)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS0, 0), HANDLER, 0);
	f->cpu->rflags |= RFLAGS_IF | RFLAGS_TF | RFLAGS_NT | RFLAGS_AC;
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(HANDLER, f->cpu->rip);
	CHECK_EQ(FIX_STACK - 12, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE, fix_get(f, FIX_STACK - 12, 4));
	CHECK_EQ(SEL(FIX_CS0, 0), fix_get(f, FIX_STACK - 8, 4));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_IF | RFLAGS_TF | RFLAGS_NT | RFLAGS_AC,
		 fix_get(f, FIX_STACK - 4, 4));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_AC, cpu_rflags(f->cpu));
}

TEST(a_trap_gate_leaves_if)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_idt(f, VECTOR, GATE(DESC_TRAP, 0), SEL(FIX_CS0, 0), HANDLER, 0);
	f->cpu->rflags |= RFLAGS_IF;
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK(f->cpu->rflags & RFLAGS_IF);
}

TEST(a_16_bit_gate_pushes_words_and_cuts_the_offset)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_idt(f, VECTOR, GATE(DESC_INT16, 0), SEL(FIX_CS0, 0), HANDLER, 0);
	f->cpu->rip = 0x51234;
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(HANDLER & 0xffff, f->cpu->rip);
	CHECK_EQ(FIX_STACK - 6, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0x1234, fix_get(f, FIX_STACK - 6, 2));
}

TEST(from_ring_3_the_stack_comes_from_the_tss)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, 3);
	f->cpu->gpr[X86_RSP] = FIX_STACK_USER;
	fixture_idt(f, X86_EXC_GP, GATE(DESC_INT, 0), SEL(FIX_CS0, 3), HANDLER, 0);
	CHECK_EQ(0, fixture_exception(f, &(struct cpu_fault_info){X86_EXC_GP, true, 0xabc8, 0}));
	CHECK_EQ(0, f->cpu->cpl);
	CHECK_EQ(SEL(FIX_CS0, 0), f->cpu->seg[X86_CS].selector);
	CHECK_EQ(SEL(FIX_DS0, 0), f->cpu->seg[X86_SS].selector);
	CHECK_EQ(FIX_STACK_INNER - 24, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0xabc8, fix_get(f, FIX_STACK_INNER - 24, 4));
	CHECK_EQ(FIX_CODE, fix_get(f, FIX_STACK_INNER - 20, 4));
	CHECK_EQ(SEL(FIX_CS3, 3), fix_get(f, FIX_STACK_INNER - 16, 4));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_RF, fix_get(f, FIX_STACK_INNER - 12, 4));
	CHECK_EQ(FIX_STACK_USER, fix_get(f, FIX_STACK_INNER - 8, 4));
	CHECK_EQ(SEL(FIX_DS3, 3), fix_get(f, FIX_STACK_INNER - 4, 4));
	CHECK_EQ(SEL(FIX_DS3, 3), f->cpu->seg[X86_DS].selector);
}

TEST(a_16_bit_tss_has_16_bit_stacks)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, 3);
	f->cpu->tr.attr = ATTR_SYS(DESC_TSS16_BUSY);
	fix_put(f, FIX_TSS + 2, 2, 0xa000);
	fix_put(f, FIX_TSS + 4, 2, SEL(FIX_DS0, 0));
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS0, 0), HANDLER, 0);
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(0xa000 - 20, f->cpu->gpr[X86_RSP]);
}

TEST(a_conforming_handler_stays_in_the_ring)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, 3);
	fixture_gdt(f, FIX_FREE, ATTR_CODE | CONFORMING | ATTR_32, 0, 0xfffff);
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_FREE, 0), HANDLER, 0);
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(3, f->cpu->cpl);
	CHECK_EQ(SEL(FIX_FREE, 3), f->cpu->seg[X86_CS].selector);
	CHECK_EQ(FIX_STACK - 12, f->cpu->gpr[X86_RSP]);
}

TEST(leaving_v86_mode_saves_and_clears_the_data_segments)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->rflags |= RFLAGS_VM | RFLAGS_IF;
	cpu_mode_update(f->cpu);
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		seg_make_v86(&f->cpu->seg[i], 0x100 + i);
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS0, 0), HANDLER, 0);
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(FIX_STACK_INNER - 36, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE, fix_get(f, FIX_STACK_INNER - 36, 4));
	CHECK_EQ(0x100 + X86_CS, fix_get(f, FIX_STACK_INNER - 32, 4));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_VM | RFLAGS_IF, fix_get(f, FIX_STACK_INNER - 28, 4));
	CHECK_EQ(FIX_STACK, fix_get(f, FIX_STACK_INNER - 24, 4));
	CHECK_EQ(0x100 + X86_SS, fix_get(f, FIX_STACK_INNER - 20, 4));
	CHECK_EQ(0x100 + X86_ES, fix_get(f, FIX_STACK_INNER - 16, 4));
	CHECK_EQ(0x100 + X86_DS, fix_get(f, FIX_STACK_INNER - 12, 4));
	CHECK_EQ(0x100 + X86_FS, fix_get(f, FIX_STACK_INNER - 8, 4));
	CHECK_EQ(0x100 + X86_GS, fix_get(f, FIX_STACK_INNER - 4, 4));
	CHECK(!f->cpu->v86);
	CHECK_EQ(0, f->cpu->cpl);
	CHECK_EQ(0, f->cpu->seg[X86_DS].selector);
	CHECK(f->cpu->seg[X86_DS].attr & X86_SEG_UNUSABLE);
	CHECK(f->cpu->seg[X86_GS].attr & X86_SEG_UNUSABLE);
	CHECK_EQ(SEG_FLAT_READ | SEG_FLAT_WRITE, f->cpu->seg[X86_SS].flat);
}

TEST(v86_mode_is_left_for_ring_0_only)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->rflags |= RFLAGS_VM;
	cpu_mode_update(f->cpu);
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS1, 0), HANDLER, 0);
	CHECK_EQ(GP(FIX_CS1 << 3 | 1), fixture_interrupt(f, VECTOR));
	fixture_gdt(f, FIX_FREE, ATTR_CODE | CONFORMING | ATTR_32, 0, 0xfffff);
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_FREE, 0), HANDLER, 0);
	CHECK_EQ(GP(FIX_FREE << 3 | 1), fixture_interrupt(f, VECTOR));
}

/* --- long mode ---------------------------------------------------------------------------------
 */

TEST(long_mode_always_pushes_the_stack_and_aligns_it)
{
	struct fixture *f = fixture_create(FIX_LONG64);
	uint64_t top = FIX_STACK - 16; /* of FIX_STACK - 5, aligned */

	f->cpu->gpr[X86_RSP] = FIX_STACK - 5;
	fixture_idt(f, X86_EXC_PF, GATE(DESC_INT, 0), SEL(FIX_CS64_0, 0), 0xffff800000001000, 0);
	CHECK_EQ(0, fixture_exception(f, &(struct cpu_fault_info){X86_EXC_PF, true, 6, 0xdead000}));
	CHECK_EQ(0xffff800000001000, f->cpu->rip);
	CHECK_EQ(0xdead000, f->cpu->cr2);
	CHECK_EQ(top - 48, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(6, fix_get(f, top - 48, 8));
	CHECK_EQ(FIX_CODE, fix_get(f, top - 40, 8));
	CHECK_EQ(SEL(FIX_CS64_0, 0), fix_get(f, top - 32, 8));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_RF, fix_get(f, top - 24, 8));
	CHECK_EQ(FIX_STACK - 5, fix_get(f, top - 16, 8));
	CHECK_EQ(SEL(FIX_DS0, 0), fix_get(f, top - 8, 8));
	CHECK_EQ(SEL(FIX_DS0, 0), f->cpu->seg[X86_SS].selector);
}

TEST(from_ring_3_long_mode_loads_a_null_ss)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	fixture_ring(f, 3);
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS64_0, 0), HANDLER, 0);
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(0, f->cpu->cpl);
	CHECK_EQ(0, f->cpu->seg[X86_SS].selector);
	CHECK(f->cpu->seg[X86_SS].attr & X86_SEG_UNUSABLE);
	CHECK_EQ(FIX_STACK_INNER - 40, f->cpu->gpr[X86_RSP]);
}

TEST(from_compatibility_mode_the_handler_is_64_bit)
{
	struct fixture *f = fixture_create(FIX_COMPAT32);

	fixture_ring(f, 3);
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS64_0, 0), HANDLER, 0);
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(INSN_MODE_64, f->cpu->mode);
	CHECK_EQ(SEL(FIX_CS3, 3), fix_get(f, FIX_STACK_INNER - 32, 8));
}

TEST(an_ist_stack_is_taken_even_without_a_change_of_ring)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	fix_put(f, FIX_TSS + 36 + 2 * 8, 8, 0x20008); /* IST3 */
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS64_0, 0), HANDLER, 3);
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK_EQ(0x20000 - 40, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_STACK, fix_get(f, 0x20000 - 16, 8));
	CHECK_EQ(SEL(FIX_DS0, 0), f->cpu->seg[X86_SS].selector);
}

/* --- what can be wrong with a gate -------------------------------------------------------------
 */

enum event_kind { EXTERNAL, SOFTWARE };

struct gate_row {
	const char *name;
	enum fix_mode mode;
	unsigned cpl;
	enum event_kind kind;
	uint32_t attr; /* of the gate */
	uint16_t sel;
	uint64_t off;
	uint32_t want;
};

#define CODE0   SEL(FIX_CS0, 0)
#define CODE64  SEL(FIX_CS64_0, 0)
#define VEC_ERR IDT_ERR(VECTOR)

// clang-format off
static const struct gate_row gate_rows[] = {
	{"external, EXT is set",       FIX_PROT32, 0, EXTERNAL, GATE(DESC_CALL, 0), CODE0, 0, GP(VEC_ERR | 1)},
	{"software, EXT is clear",     FIX_PROT32, 0, SOFTWARE, GATE(DESC_CALL, 0), CODE0, 0, GP(VEC_ERR)},
	{"type 0",                     FIX_PROT32, 0, EXTERNAL, GATE(0, 0), CODE0, 0, GP(VEC_ERR | 1)},
	{"a code segment, S = 1",      FIX_PROT32, 0, EXTERNAL, GATE(DESC_INT, 0) | X86_SEG_S, CODE0, 0, GP(VEC_ERR | 1)},
	{"type before presence",       FIX_PROT32, 0, EXTERNAL, DESC_CALL, CODE0, 0, GP(VEC_ERR | 1)},
	{"not present",                FIX_PROT32, 0, EXTERNAL, DESC_INT, CODE0, 0, NP(VEC_ERR | 1)},
	{"not present, software",      FIX_PROT32, 0, SOFTWARE, DESC_INT, CODE0, 0, NP(VEC_ERR)},
	{"DPL < CPL, software",        FIX_PROT32, 3, SOFTWARE, GATE(DESC_INT, 2), CODE0, 0, GP(VEC_ERR)},
	{"DPL before presence",        FIX_PROT32, 3, SOFTWARE, DESC_INT, CODE0, 0, GP(VEC_ERR)},
	{"DPL < CPL, external",        FIX_PROT32, 3, EXTERNAL, GATE(DESC_INT, 0), CODE0, 0, 0},
	{"DPL = CPL, software",        FIX_PROT32, 3, SOFTWARE, GATE(DESC_INT, 3), CODE0, 0, 0},
	{"null handler segment",       FIX_PROT32, 0, EXTERNAL, GATE(DESC_INT, 0), 3, 0, GP(1)},
	{"null, software",             FIX_PROT32, 0, SOFTWARE, GATE(DESC_INT, 0), 0, 0, GP(0)},
	{"handler outside the GDT",    FIX_PROT32, 0, EXTERNAL, GATE(DESC_INT, 0), SEL(600, 3), 0, GP(600 << 3 | 1)},
	{"handler in data",            FIX_PROT32, 0, EXTERNAL, GATE(DESC_INT, 0), SEL(FIX_DS0, 0), 0, GP(FIX_DS0 << 3 | 1)},
	{"handler in a TSS",           FIX_PROT32, 0, EXTERNAL, GATE(DESC_INT, 0), SEL(FIX_TSS_IDX, 0), 0, GP(FIX_TSS_IDX << 3 | 1)},
	{"handler in an outer ring",   FIX_PROT32, 0, EXTERNAL, GATE(DESC_INT, 0), SEL(FIX_CS3, 3), 0, GP(FIX_CS3 << 3 | 1)},
	{"handler over the limit",     FIX_PROT16, 0, EXTERNAL, GATE(DESC_INT, 0), CODE0, 0x10000, GP(1)},
	{"handler at the limit",       FIX_PROT16, 0, EXTERNAL, GATE(DESC_INT, 0), CODE0, 0xffff, 0},
	{"long: 16-bit gate",          FIX_LONG64, 0, EXTERNAL, GATE(DESC_INT16, 0), CODE64, 0, GP(VEC_ERR | 1)},
	{"long: task gate",            FIX_LONG64, 0, EXTERNAL, GATE(DESC_TASK_GATE, 0), CODE64, 0, GP(VEC_ERR | 1)},
	{"long: 32-bit handler",       FIX_LONG64, 0, EXTERNAL, GATE(DESC_INT, 0), CODE0, 0, GP(FIX_CS0 << 3 | 1)},
	{"long: not canonical",        FIX_LONG64, 0, EXTERNAL, GATE(DESC_INT, 0), CODE64, 1ull << 47, GP(1)},
	{"long: software DPL",         FIX_LONG64, 3, SOFTWARE, GATE(DESC_INT, 0), CODE64, 0, GP(VEC_ERR)},
};
// clang-format on

TEST(every_way_a_gate_can_be_wrong)
{
	for (unsigned i = 0; i < ARRAY_SIZE(gate_rows); i++) {
		const struct gate_row *r = &gate_rows[i];
		struct fixture *f = fixture_create(r->mode);

		fixture_ring(f, r->cpl);
		fixture_idt(f, VECTOR, r->attr, r->sel, r->off, 0);
		CHECK_ROW(r->name, r->want,
			  r->kind == SOFTWARE ? soft_int(f, VECTOR) : fixture_interrupt(f, VECTOR));
		if (r->want) {
			CHECK_ROW(r->name, FIX_CODE, f->cpu->rip);
			CHECK_ROW(r->name, FIX_STACK, f->cpu->gpr[X86_RSP]);
			CHECK_ROW(r->name, r->cpl, f->cpu->cpl);
		}
	}
}

TEST(a_handler_segment_that_is_not_present)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, (ATTR_CODE & ~X86_SEG_P) | ATTR_32, 0, 0xfffff);
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_FREE, 0), HANDLER, 0);
	CHECK_EQ(NP(FIX_FREE << 3 | 1), fixture_interrupt(f, VECTOR));
	CHECK_EQ(NP(FIX_FREE << 3), soft_int(f, VECTOR));
}

TEST(a_gate_cut_by_the_idt_limit_is_outside)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS0, 0), HANDLER, 0);
	f->cpu->idtr.limit = VECTOR * 8 + 6;
	CHECK_EQ(GP(VEC_ERR | 1), fixture_interrupt(f, VECTOR));
	f->cpu->idtr.limit = VECTOR * 8 + 7;
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
}

/* --- what can be wrong with a stack ------------------------------------------------------------
 */

struct stack_row {
	const char *name;
	uint16_t sel;  /* SS0 in the TSS */
	uint32_t attr; /* of the descriptor at FIX_FREE */
	uint32_t limit, esp, tss_limit;
	uint32_t want;
};

#define STK     SEL(FIX_FREE, 0)
#define STK_ERR (FIX_FREE << 3 | 1)
#define TSS_ERR (FIX_TSS_IDX << 3 | 1)

// clang-format off
static const struct stack_row stack_rows[] = {
	{"good",                  STK, ATTR_DATA | ATTR_32, 0xfffff, 0x9000, 0xff, 0},
	{"TSS ends inside SS0",   STK, ATTR_DATA | ATTR_32, 0xfffff, 0x9000, 8, TS(TSS_ERR)},
	{"TSS ends after SS0",    STK, ATTR_DATA | ATTR_32, 0xfffff, 0x9000, 9, 0},
	{"null",                  0, ATTR_DATA | ATTR_32, 0xfffff, 0x9000, 0xff, TS(1)},
	{"outside the GDT",       SEL(600, 0), ATTR_DATA | ATTR_32, 0xfffff, 0x9000, 0xff, TS(600 << 3 | 1)},
	{"RPL",                   SEL(FIX_FREE, 1), ATTR_DATA | ATTR_32, 0xfffff, 0x9000, 0xff, TS(STK_ERR)},
	{"DPL",                   STK, ATTR_DATA | ATTR_32 | ATTR_DPL(3), 0xfffff, 0x9000, 0xff, TS(STK_ERR)},
	{"code",                  STK, ATTR_CODE | ATTR_32, 0xfffff, 0x9000, 0xff, TS(STK_ERR)},
	{"read-only",             STK, (ATTR_DATA & ~SEG_TYPE_RW) | ATTR_32, 0xfffff, 0x9000, 0xff, TS(STK_ERR)},
	{"not present",           STK, (ATTR_DATA & ~X86_SEG_P) | ATTR_32, 0xfffff, 0x9000, 0xff, SS(STK_ERR)},
	{"no room: 20 bytes",     STK, ATTR_DATA | X86_SEG_DB, 0xffff, 19, 0xff, SS(STK_ERR)},
	{"just enough room",      STK, ATTR_DATA | X86_SEG_DB, 0xffff, 20, 0xff, 0},
	{"over the limit",        STK, ATTR_DATA | X86_SEG_DB, 0x8fff, 0x9001, 0xff, SS(STK_ERR)},
};
// clang-format on

TEST(every_way_an_inner_stack_can_be_wrong)
{
	for (unsigned i = 0; i < ARRAY_SIZE(stack_rows); i++) {
		const struct stack_row *r = &stack_rows[i];
		struct fixture *f = fixture_create(FIX_PROT32);

		fixture_ring(f, 3);
		fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS0, 0), HANDLER, 0);
		fixture_gdt(f, FIX_FREE, r->attr, 0, r->limit);
		fix_put(f, FIX_TSS + 4, 4, r->esp);
		fix_put(f, FIX_TSS + 8, 4, r->sel);
		f->cpu->tr.limit = r->tss_limit;
		CHECK_ROW(r->name, r->want, fixture_interrupt(f, VECTOR));
		CHECK_ROW(r->name, r->want ? 3 : 0, f->cpu->cpl);
	}
}

TEST(long_mode_stack_pointers_must_be_canonical_and_inside_the_tss)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	fixture_ring(f, 3);
	fixture_idt(f, VECTOR, GATE(DESC_INT, 0), SEL(FIX_CS64_0, 0), HANDLER, 0);
	fix_put(f, FIX_TSS + 4, 8, 1ull << 47);
	CHECK_EQ(SS(1), fixture_interrupt(f, VECTOR));
	f->cpu->tr.limit = 10;
	CHECK_EQ(TS(TSS_ERR), fixture_interrupt(f, VECTOR));
}

/* --- kinds of events ---------------------------------------------------------------------------
 */

static uint64_t pushed_flags(struct fixture *f)
{
	return fix_get(f, f->cpu->gpr[X86_RSP] + 8, 4);
}

static struct fixture *with_gate(unsigned vector)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_idt(f, vector, GATE(DESC_INT, 0), SEL(FIX_CS0, 0), HANDLER, 0);
	return f;
}

TEST(faults_push_rf)
{
	struct fixture *f = with_gate(X86_EXC_UD);

	CHECK_EQ(0, fixture_exception(f, &(struct cpu_fault_info){.vector = X86_EXC_UD}));
	CHECK(pushed_flags(f) & RFLAGS_RF);
	CHECK(!(f->cpu->rflags & RFLAGS_RF));
}

TEST(traps_interrupts_and_debug_exceptions_push_rf_as_it_is)
{
	struct fixture *f = with_gate(X86_EXC_DB);

	CHECK_EQ(0, fixture_exception(f, &(struct cpu_fault_info){.vector = X86_EXC_DB}));
	CHECK(!(pushed_flags(f) & RFLAGS_RF));
	f = with_gate(VECTOR);
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK(!(pushed_flags(f) & RFLAGS_RF));
	f->cpu->rflags |= RFLAGS_RF;
	CHECK_EQ(0, fixture_interrupt(f, VECTOR));
	CHECK(pushed_flags(f) & RFLAGS_RF);
}

TEST(int_n_returns_to_the_next_instruction_and_never_pushes_rf)
{
	struct fixture *f = with_gate(VECTOR);

	f->cpu->rflags |= RFLAGS_RF;
	CHECK_EQ(0, soft_int(f, VECTOR));
	CHECK_EQ(FIX_CODE + 2, fix_get(f, f->cpu->gpr[X86_RSP], 4));
	CHECK(!(pushed_flags(f) & RFLAGS_RF));
	CHECK(f->cpu->dbg_no_step);
}

TEST(int1_needs_no_gate_privilege_and_counts_as_external)
{
	struct fixture *f = with_gate(X86_EXC_DB);

	fixture_ring(f, 3);
	f->in = (struct insn){0};
	CHECK_EQ(0, fixture_exec(f, exec_int1));
	CHECK_EQ(0, f->cpu->cpl);
	f = fixture_create(FIX_PROT32);
	f->in = (struct insn){0};
	CHECK_EQ(GP(IDT_ERR(X86_EXC_DB) | 1), fixture_exec(f, exec_int1));
}

TEST(into_interrupts_only_on_overflow)
{
	struct fixture *f = with_gate(X86_EXC_OF);

	f->in = (struct insn){0};
	CHECK_EQ(0, fixture_exec(f, exec_into));
	CHECK_EQ(FIX_CODE + 2, f->cpu->rip);
	f->cpu->cc = RFLAGS_OF;
	CHECK_EQ(0, fixture_exec(f, exec_into));
	CHECK_EQ(HANDLER, f->cpu->rip);
}

static void do_nmi(struct fixture *f, const void *arg)
{
	(void)arg;
	exc_nmi(f->cpu);
}

TEST(an_nmi_blocks_further_ones_until_iret)
{
	struct fixture *f = with_gate(X86_EXC_NMI);

	f->cpu->halted = true;
	f->cpu->int_shadow = CPU_SHADOW_STI;
	CHECK_EQ(0, fixture_try(f, do_nmi, NULL));
	CHECK(f->cpu->nmi_masked);
	CHECK(!f->cpu->halted);
	CHECK_EQ(0, f->cpu->int_shadow);
	CHECK_EQ(0, fixture_plain(f, exec_iret, 4));
	CHECK(!f->cpu->nmi_masked);
	CHECK_EQ(FIX_CODE, f->cpu->rip);
}

TEST(a_debug_exception_clears_general_detect)
{
	struct fixture *f = with_gate(X86_EXC_DB);

	f->cpu->dr7 |= DR7_GD;
	CHECK_EQ(0, fixture_exception(f, &(struct cpu_fault_info){.vector = X86_EXC_DB}));
	CHECK_EQ(DR7_FIXED, f->cpu->dr7);
}

TEST(cr2_changes_even_when_the_delivery_fails)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	CHECK_EQ(GP(IDT_ERR(X86_EXC_PF) | 1),
		 fixture_exception(f, &(struct cpu_fault_info){X86_EXC_PF, true, 0, 0x8765000}));
	CHECK_EQ(0x8765000, f->cpu->cr2);
}

/* --- breakpoints -------------------------------------------------------------------------------
 */

static void do_check_insn(struct fixture *f, const void *arg)
{
	(void)arg;
	debug_check_insn(f->cpu);
}

static void do_check_gd(struct fixture *f, const void *arg)
{
	(void)arg;
	debug_check_gd(f->cpu);
}

#define DR7_SET(n, rw, len)                                                                        \
	(BIT(2 * (n)) | (uint64_t)(rw) << (16 + 4 * (n)) | (uint64_t)(len) << (18 + 4 * (n)))

TEST(an_instruction_breakpoint_faults_before_the_instruction)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->dr[2] = FIX_CODE;
	f->cpu->dr7 |= DR7_SET(2, 0, 0);
	debug_update(f->cpu);
	CHECK(debug_careful(f->cpu));
	CHECK_EQ(FAULT_PLAIN(X86_EXC_DB), fixture_try(f, do_check_insn, NULL));
	CHECK_EQ(DR6_FIXED | DR6_B(2), f->cpu->dr6);
	f->cpu->rip++;
	CHECK_EQ(0, fixture_try(f, do_check_insn, NULL));
}

TEST(the_code_segment_base_counts_for_instruction_breakpoints)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->seg[X86_CS].base = 0x10000;
	f->cpu->dr[0] = 0x10000 + FIX_CODE;
	f->cpu->dr7 |= DR7_SET(0, 0, 0);
	debug_update(f->cpu);
	CHECK_EQ(FAULT_PLAIN(X86_EXC_DB), fixture_try(f, do_check_insn, NULL));
}

struct watch_row {
	const char *name;
	unsigned rw, len;
	uint64_t addr;
	unsigned size;
	bool write, hit;
};

// clang-format off
static const struct watch_row watch_rows[] = {
	{"write to a write watch",        1, 3, 0x1000, 4, true, true},
	{"read of a write watch",         1, 3, 0x1000, 4, false, false},
	{"read of a read-write watch",    3, 3, 0x1000, 4, false, true},
	{"byte before",                   3, 3, 0xfff, 1, false, false},
	{"word that ends in it",          3, 3, 0xfff, 2, false, true},
	{"last byte",                     3, 3, 0x1003, 1, false, true},
	{"byte after, length 4",          3, 3, 0x1004, 1, false, false},
	{"byte after, length 1",          3, 0, 0x1001, 1, false, false},
	{"length 2",                      3, 1, 0x1001, 1, false, true},
	{"length 8",                      3, 2, 0x1007, 1, false, true},
	{"byte after, length 8",          3, 2, 0x1008, 1, false, false},
	{"an I/O watch is none without CR4.DE", 2, 0, 0x1000, 1, true, false},
};
// clang-format on

TEST(a_data_breakpoint_covers_its_length)
{
	for (unsigned i = 0; i < ARRAY_SIZE(watch_rows); i++) {
		const struct watch_row *r = &watch_rows[i];
		struct fixture *f = fixture_create(FIX_PROT32);

		f->cpu->dr[1] = 0x1000;
		f->cpu->dr7 |= DR7_SET(1, r->rw, r->len);
		debug_update(f->cpu);
		debug_note_data(f->cpu, r->addr, r->size, r->write);
		CHECK_ROW(r->name, r->hit ? DR6_B(1) : 0, f->cpu->dbg_pending);
	}
}

TEST(low_address_bits_inside_the_length_are_ignored)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->dr[0] = 0x1003;
	f->cpu->dr7 |= DR7_SET(0, 1, 3);
	debug_update(f->cpu);
	debug_note_data(f->cpu, 0x1000, 1, true);
	CHECK_EQ(DR6_B(0), f->cpu->dbg_pending);
}

TEST(stores_to_a_watched_page_are_seen_through_the_tlb)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	st32(f->cpu, 0x20000, 1); /* fills the TLB */
	f->cpu->dr[0] = 0x20010;
	f->cpu->dr7 |= DR7_SET(0, 1, 3);
	debug_update(f->cpu);
	st32(f->cpu, 0x20000, 2);
	CHECK_EQ(0, f->cpu->dbg_pending);
	st32(f->cpu, 0x20010, 3);
	CHECK_EQ(DR6_B(0), f->cpu->dbg_pending);
	CHECK_EQ(3, fix_get(f, 0x20010, 4));
}

TEST(an_io_breakpoint_needs_cr4_de)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->cr4 |= CR4_DE;
	f->cpu->dr[3] = 0x3f8;
	f->cpu->dr7 |= DR7_SET(3, 2, 0);
	debug_update(f->cpu);
	debug_note_io(f->cpu, 0x3f7, 1);
	CHECK_EQ(0, f->cpu->dbg_pending);
	debug_note_io(f->cpu, 0x3f7, 2);
	CHECK_EQ(DR6_B(3), f->cpu->dbg_pending);
}

TEST(dr6_shows_matching_breakpoints_that_are_not_enabled)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->dr[0] = f->cpu->dr[1] = 0x1000;
	f->cpu->dr7 |= DR7_SET(0, 1, 0) | (DR7_SET(1, 1, 0) & ~BIT(2));
	debug_update(f->cpu);
	debug_note_data(f->cpu, 0x1000, 1, true);
	CHECK_EQ(DR6_B(0) | DR6_B(1), f->cpu->dbg_pending);
}

TEST(general_detect_protects_the_debug_registers)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	CHECK_EQ(0, fixture_try(f, do_check_gd, NULL));
	f->cpu->dr7 |= DR7_GD;
	CHECK_EQ(FAULT_PLAIN(X86_EXC_DB), fixture_try(f, do_check_gd, NULL));
	CHECK_EQ(DR6_FIXED | DR6_BD, f->cpu->dr6);
}

TEST(dr6_keeps_all_but_the_breakpoint_bits)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	debug_set_dr6(f->cpu, DR6_B(0) | DR6_BS);
	debug_set_dr6(f->cpu, DR6_B(3));
	CHECK_EQ(DR6_FIXED | DR6_B(3) | DR6_BS, f->cpu->dr6);
}
