/* Far JMP, CALL, RET, IRET, SYSCALL and SYSENTER, and the flags they and POPF may change.
 * SDM 2 under each name; SDM 3A "Privilege Checking When Transferring Program Control". */
#include "soft_fixture.h"

#define GP(e) FAULT(X86_EXC_GP, e)
#define NP(e) FAULT(X86_EXC_NP, e)
#define SS(e) FAULT(X86_EXC_SS, e)
#define TS(e) FAULT(X86_EXC_TS, e)

enum { TARGET = 0x7000 };

#define FREE_SEL(rpl) SEL(FIX_FREE, rpl)
#define FREE_ERR      (FIX_FREE << 3)
#define CODE(dpl)     (ATTR_CODE | ATTR_DPL(dpl) | ATTR_32)
#define CODE64(dpl)   (ATTR_CODE | ATTR_DPL(dpl) | ATTR_64)
#define GONE(attr)    ((attr) & ~X86_SEG_P)

static void push(struct fixture *f, unsigned size, uint64_t v)
{
	f->cpu->gpr[X86_RSP] -= size;
	fix_put(f, f->cpu->gpr[X86_RSP], size, v);
}

/* --- JMP and CALL to code ----------------------------------------------------------------------
 */

struct code_row {
	const char *name;
	enum fix_mode mode;
	unsigned cpl;
	uint16_t sel;
	uint32_t attr; /* at FIX_FREE */
	uint32_t limit;
	uint64_t off;
	uint32_t want;
};

// clang-format off
static const struct code_row code_rows[] = {
	{"same ring",                  FIX_PROT32, 0, FREE_SEL(0), CODE(0), 0xfffff, TARGET, 0},
	{"null",                       FIX_PROT32, 0, 3, CODE(0), 0xfffff, TARGET, GP(0)},
	{"outside the GDT",            FIX_PROT32, 0, SEL(600, 1), CODE(0), 0xfffff, TARGET, GP(600 << 3)},
	{"outside the LDT",            FIX_PROT32, 0, LDT_SEL(600, 1), CODE(0), 0xfffff, TARGET, GP(600 << 3 | 4)},
	{"data",                       FIX_PROT32, 0, FREE_SEL(0), ATTR_DATA | ATTR_32, 0xfffff, TARGET, GP(FREE_ERR)},
	{"an LDT",                     FIX_PROT32, 0, FREE_SEL(0), ATTR_SYS(DESC_LDT), 0xfffff, TARGET, GP(FREE_ERR)},
	{"an interrupt gate",          FIX_PROT32, 0, FREE_SEL(0), ATTR_SYS(DESC_INT), 0xfffff, TARGET, GP(FREE_ERR)},
	{"a busy TSS",                 FIX_PROT32, 0, FREE_SEL(0), ATTR_SYS(DESC_TSS_BUSY), 0xfffff, TARGET, GP(FREE_ERR)},
	{"RPL > CPL",                  FIX_PROT32, 0, FREE_SEL(1), CODE(0), 0xfffff, TARGET, GP(FREE_ERR)},
	{"RPL < CPL",                  FIX_PROT32, 3, FREE_SEL(0), CODE(3), 0xfffff, TARGET, 0},
	{"inner ring",                 FIX_PROT32, 3, FREE_SEL(3), CODE(0), 0xfffff, TARGET, GP(FREE_ERR)},
	{"outer ring",                 FIX_PROT32, 0, FREE_SEL(0), CODE(3), 0xfffff, TARGET, GP(FREE_ERR)},
	{"conforming, inner",          FIX_PROT32, 3, FREE_SEL(3), CODE(0) | CONFORMING, 0xfffff, TARGET, 0},
	{"conforming ignores RPL",     FIX_PROT32, 0, FREE_SEL(3), CODE(0) | CONFORMING, 0xfffff, TARGET, 0},
	{"conforming, outer",          FIX_PROT32, 0, FREE_SEL(0), CODE(1) | CONFORMING, 0xfffff, TARGET, GP(FREE_ERR)},
	{"not present",                FIX_PROT32, 0, FREE_SEL(0), GONE(CODE(0)), 0xfffff, TARGET, NP(FREE_ERR)},
	{"privilege before presence",  FIX_PROT32, 3, FREE_SEL(3), GONE(CODE(0)), 0xfffff, TARGET, GP(FREE_ERR)},
	{"over the limit",             FIX_PROT32, 0, FREE_SEL(0), ATTR_CODE | X86_SEG_DB, 0x6fff, TARGET, GP(0)},
	{"at the limit",               FIX_PROT32, 0, FREE_SEL(0), ATTR_CODE | X86_SEG_DB, 0x7000, TARGET, 0},
	{"presence before limit",      FIX_PROT32, 0, FREE_SEL(0), GONE(ATTR_CODE), 0x6fff, TARGET, NP(FREE_ERR)},
	{"long to 64-bit",             FIX_COMPAT32, 0, FREE_SEL(0), CODE64(0), 0, TARGET, 0},
	{"long to compatibility",      FIX_LONG64, 0, FREE_SEL(0), CODE(0), 0xfffff, TARGET, 0},
	{"long, over the limit",       FIX_LONG64, 0, FREE_SEL(0), ATTR_CODE | X86_SEG_DB, 0x6fff, TARGET, GP(0)},
	{"L and D",                    FIX_LONG64, 0, FREE_SEL(0), CODE64(0) | X86_SEG_DB, 0, TARGET, GP(FREE_ERR)},
	{"L without long mode",        FIX_PROT32, 0, FREE_SEL(0), CODE64(0) | X86_SEG_DB, 0xfffff, TARGET, 0},
	{"long: a TSS",                FIX_LONG64, 0, FREE_SEL(0), ATTR_SYS(DESC_TSS), 0xff, TARGET, GP(FREE_ERR)},
	{"long: a task gate",          FIX_LONG64, 0, FREE_SEL(0), ATTR_SYS(DESC_TASK_GATE), 0, TARGET, GP(FREE_ERR)},
	{"long: a 16-bit call gate",   FIX_LONG64, 0, FREE_SEL(0), ATTR_SYS(DESC_CALL16), 0, TARGET, GP(FREE_ERR)},
};
// clang-format on

static void check_code_rows(insn_exec *exec, unsigned pushed)
{
	for (unsigned i = 0; i < ARRAY_SIZE(code_rows); i++) {
		const struct code_row *r = &code_rows[i];
		struct fixture *f = fixture_create(r->mode);

		fixture_ring(f, r->cpl);
		fixture_gdt(f, FIX_FREE, r->attr, 0, r->limit);
		CHECK_ROW(r->name, r->want, fixture_far(f, exec, r->sel, r->off, 4));
		CHECK_ROW(r->name, r->want ? FIX_CODE : TARGET, f->cpu->rip);
		CHECK_ROW(r->name, FIX_STACK - (r->want ? 0 : pushed), f->cpu->gpr[X86_RSP]);
		CHECK_ROW(r->name, r->cpl, f->cpu->cpl);
		if (!r->want)
			CHECK_ROW(r->name, (r->sel & ~3u) | r->cpl, f->cpu->seg[X86_CS].selector);
	}
}

TEST(far_jmp_to_every_kind_of_descriptor)
{
	check_code_rows(exec_jmp_far_A, 0);
}

TEST(far_call_to_every_kind_of_descriptor)
{
	check_code_rows(exec_call_far_A, 8);
}

TEST(a_far_call_pushes_the_return_address_by_operand_size)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, CODE(0), 0, 0xfffff);
	CHECK_EQ(0, fixture_far(f, exec_call_far_A, FREE_SEL(0), 0x55557000, 2));
	CHECK_EQ(0x7000, f->cpu->rip);
	CHECK_EQ(FIX_STACK - 4, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE + 2, fix_get(f, FIX_STACK - 4, 2));
	CHECK_EQ(SEL(FIX_CS0, 0), fix_get(f, FIX_STACK - 2, 2));
}

TEST(a_far_jmp_to_16_bit_code_changes_the_mode)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, ATTR_CODE, 0x100, 0xffff);
	CHECK_EQ(0, fixture_far(f, exec_jmp_far_A, FREE_SEL(0), TARGET, 4));
	CHECK_EQ(INSN_MODE_16, f->cpu->mode);
	CHECK_EQ(0x100, f->cpu->seg[X86_CS].base);
	CHECK_EQ(0x9b, fix_get(f, FIX_GDT + FREE_ERR + 5, 1));
}

TEST(a_call_without_stack_room_changes_nothing)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->seg[X86_SS].limit = FIX_STACK - 5;
	f->cpu->seg[X86_SS].flat = 0;
	CHECK_EQ(SS(0), fixture_far(f, exec_call_far_A, SEL(FIX_CS0, 0), TARGET, 4));
	CHECK_EQ(FIX_STACK, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE, f->cpu->rip);
}

TEST(real_mode_far_transfers)
{
	struct fixture *f = fixture_create(FIX_REAL);

	CHECK_EQ(0, fixture_far(f, exec_call_far_A, 0x2000, TARGET, 2));
	CHECK_EQ(0x20000, f->cpu->seg[X86_CS].base);
	CHECK_EQ(TARGET, f->cpu->rip);
	CHECK_EQ(GP(0), fixture_far(f, exec_jmp_far_A, 0x2000, 0x10000, 4));
	CHECK_EQ(0, fixture_plain(f, exec_ret_far, 2));
	CHECK_EQ(0, f->cpu->seg[X86_CS].base);
	CHECK_EQ(FIX_CODE + 2, f->cpu->rip);
	CHECK_EQ(FIX_STACK, f->cpu->gpr[X86_RSP]);
}

TEST(protected_mode_is_entered_by_a_far_jmp_after_cr0)
{
	struct fixture *f = fixture_create(FIX_REAL);

	f->cpu->cr0 |= CR0_PE;
	cpu_mode_update(f->cpu);
	CHECK_EQ(INSN_MODE_16, f->cpu->mode);
	fixture_gdt(f, FIX_CS0, CODE(0), 0, 0xfffff);
	CHECK_EQ(0, fixture_far(f, exec_jmp_far_A, SEL(FIX_CS0, 0), TARGET, 4));
	CHECK_EQ(INSN_MODE_32, f->cpu->mode);
}

TEST(a_far_jump_may_have_64_bits_of_offset)
{
	struct fixture *f = fixture_create(FIX_LONG64);
	const struct insn far = {
		.flags = INSN_MEM | INSN_FLAT,
		.disp = 0x20000,
		.base = CPU_OFF(zero),
		.index = CPU_OFF(zero),
		.segbase = CPU_OFF(zero),
		.opsize = 8,
		.adsize = 8,
	};

	fix_put(f, 0x20000, 8, TARGET | (uint64_t)0x8000 << 48 | (uint64_t)SEL(FIX_CS3, 0) << 32);
	fix_put(f, 0x20008, 2, SEL(FIX_CS64_0, 0));
	f->in = far;
	CHECK_EQ(GP(0), fixture_exec(f, exec_jmp_far_M)); /* not canonical */
	fix_put(f, 0x20004, 4, 0);
	CHECK_EQ(0, fixture_exec(f, exec_jmp_far_M));
	CHECK_EQ(TARGET, f->cpu->rip);
}

/* --- call gates --------------------------------------------------------------------------------
 */

struct gate_row {
	const char *name;
	enum fix_mode mode;
	unsigned cpl, rpl;
	uint32_t gate; /* attributes of the gate at FIX_FREE */
	uint16_t code; /* selector in it */
	uint64_t off;
	uint32_t call, jmp; /* what CALL and JMP make of it */
};

#define GATE(dpl) (ATTR_SYS(DESC_CALL) | ATTR_DPL(dpl))
#define C0        SEL(FIX_CS0, 0)
#define C64       SEL(FIX_CS64_0, 0)

// clang-format off
static const struct gate_row gate_rows[] = {
	{"same ring",              FIX_PROT32, 0, 0, GATE(0), C0, TARGET, 0, 0},
	{"to an inner ring",       FIX_PROT32, 3, 3, GATE(3), C0, TARGET, 0, GP(FIX_CS0 << 3)},
	{"gate DPL < CPL",         FIX_PROT32, 3, 0, GATE(2), C0, TARGET, GP(FREE_ERR), GP(FREE_ERR)},
	{"gate DPL < RPL",         FIX_PROT32, 0, 1, GATE(0), C0, TARGET, GP(FREE_ERR), GP(FREE_ERR)},
	{"not present",            FIX_PROT32, 0, 0, GONE(GATE(0)), C0, TARGET, NP(FREE_ERR), NP(FREE_ERR)},
	{"privilege before presence", FIX_PROT32, 3, 0, GONE(GATE(0)), C0, TARGET, GP(FREE_ERR), GP(FREE_ERR)},
	{"null code",              FIX_PROT32, 0, 0, GATE(0), 2, TARGET, GP(0), GP(0)},
	{"code outside the GDT",   FIX_PROT32, 0, 0, GATE(0), SEL(600, 0), TARGET, GP(600 << 3), GP(600 << 3)},
	{"to data",                FIX_PROT32, 0, 0, GATE(0), SEL(FIX_DS0, 0), TARGET, GP(FIX_DS0 << 3), GP(FIX_DS0 << 3)},
	{"to an outer ring",       FIX_PROT32, 0, 0, GATE(0), SEL(FIX_CS3, 3), TARGET, GP(FIX_CS3 << 3), GP(FIX_CS3 << 3)},
	{"RPL in the gate is ignored", FIX_PROT32, 0, 0, GATE(0), SEL(FIX_CS0, 3), TARGET, 0, 0},
	{"over the limit",         FIX_PROT16, 0, 0, GATE(0), C0, 0x10000, GP(0), GP(0)},
	{"16-bit gate cuts",       FIX_PROT16, 0, 0, ATTR_SYS(DESC_CALL16), C0, 0x10000 + TARGET, 0, 0},
	{"long",                   FIX_LONG64, 0, 0, GATE(0), C64, TARGET, 0, 0},
	{"long, inner",            FIX_LONG64, 3, 3, GATE(3), C64, TARGET, 0, GP(FIX_CS64_0 << 3)},
	{"long, to 32-bit code",   FIX_LONG64, 0, 0, GATE(0), C0, TARGET, GP(FIX_CS0 << 3), GP(FIX_CS0 << 3)},
	{"long, not canonical",    FIX_LONG64, 0, 0, GATE(0), C64, 1ull << 47, GP(0), GP(0)},
};
// clang-format on

TEST(call_gates)
{
	for (unsigned i = 0; i < 2 * ARRAY_SIZE(gate_rows); i++) {
		const struct gate_row *r = &gate_rows[i / 2];
		uint32_t want = i & 1 ? r->jmp : r->call;
		struct fixture *f = fixture_create(r->mode);

		fixture_ring(f, r->cpl);
		fixture_gdt_gate(f, FIX_FREE, r->gate, r->code, r->off, 0);
		CHECK_ROW(r->name, want,
			  fixture_far(f, i & 1 ? exec_jmp_far_A : exec_call_far_A, FREE_SEL(r->rpl),
				      0x99999, 4));
		CHECK_ROW(r->name, want ? FIX_CODE : TARGET, f->cpu->rip);
	}
}

TEST(a_long_mode_gate_with_a_type_in_its_second_half)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	fixture_gdt_gate(f, FIX_FREE, GATE(0), C64, TARGET, 0);
	fix_put(f, FIX_GDT + FREE_ERR + 13, 1, DESC_CALL);
	CHECK_EQ(GP(FREE_ERR), fixture_far(f, exec_call_far_A, FREE_SEL(0), 0, 4));
}

TEST(a_call_to_an_inner_ring_copies_the_parameters)
{
	struct fixture *f = fixture_create(FIX_PROT32);
	gpa_t top = FIX_STACK_INNER;

	fixture_ring(f, 3);
	push(f, 4, 0x33);
	push(f, 4, 0x22);
	push(f, 4, 0x11);
	fixture_gdt_gate(f, FIX_FREE, GATE(3), C0, TARGET, 3);
	CHECK_EQ(0, fixture_far(f, exec_call_far_A, FREE_SEL(3), 0, 4));
	CHECK_EQ(top - 28, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE + 2, fix_get(f, top - 28, 4));
	CHECK_EQ(SEL(FIX_CS3, 3), fix_get(f, top - 24, 4));
	CHECK_EQ(0x11, fix_get(f, top - 20, 4));
	CHECK_EQ(0x22, fix_get(f, top - 16, 4));
	CHECK_EQ(0x33, fix_get(f, top - 12, 4));
	CHECK_EQ(FIX_STACK - 12, fix_get(f, top - 8, 4));
	CHECK_EQ(SEL(FIX_DS3, 3), fix_get(f, top - 4, 4));
	CHECK_EQ(0, f->cpu->cpl);
	CHECK_EQ(SEL(FIX_DS0, 0), f->cpu->seg[X86_SS].selector);

	/* RETF 12 releases them on both stacks. */
	f->in = (struct insn){.opsize = 4, .imm = 12};
	CHECK_EQ(0, fixture_exec(f, exec_ret_far_I));
	CHECK_EQ(3, f->cpu->cpl);
	CHECK_EQ(FIX_STACK, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE + 2, f->cpu->rip);
	CHECK_EQ(SEL(FIX_DS3, 3), f->cpu->seg[X86_SS].selector);
}

TEST(a_16_bit_gate_copies_words)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, 3);
	push(f, 2, 0x2222);
	push(f, 2, 0x1111);
	fixture_gdt_gate(f, FIX_FREE, ATTR_SYS(DESC_CALL16) | ATTR_DPL(3), C0, TARGET, 2);
	CHECK_EQ(0, fixture_far(f, exec_call_far_A, FREE_SEL(3), 0, 4));
	CHECK_EQ(FIX_STACK_INNER - 12, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0x1111, fix_get(f, FIX_STACK_INNER - 8, 2));
	CHECK_EQ(0x2222, fix_get(f, FIX_STACK_INNER - 6, 2));
}

TEST(a_long_mode_gate_pushes_four_quadwords_and_a_null_ss)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	fixture_ring(f, 3);
	fixture_gdt_gate(f, FIX_FREE, GATE(3), C64, TARGET, 0);
	CHECK_EQ(0, fixture_far(f, exec_call_far_A, FREE_SEL(3), 0, 4));
	CHECK_EQ(FIX_STACK_INNER - 32, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_STACK, fix_get(f, FIX_STACK_INNER - 16, 8));
	CHECK_EQ(0, f->cpu->seg[X86_SS].selector);
	CHECK(f->cpu->seg[X86_SS].attr & X86_SEG_UNUSABLE);
}

TEST(a_gate_whose_inner_stack_has_no_room_for_the_parameters)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, 3);
	fixture_gdt(f, FIX_FREE + 2, ATTR_DATA | X86_SEG_DB, 0, 0xffff);
	fix_put(f, FIX_TSS + 4, 4, 23);
	fix_put(f, FIX_TSS + 8, 4, SEL(FIX_FREE + 2, 0));
	fixture_gdt_gate(f, FIX_FREE, GATE(3), C0, TARGET, 2);
	CHECK_EQ(SS((FIX_FREE + 2) << 3), fixture_far(f, exec_call_far_A, FREE_SEL(3), 0, 4));
	fix_put(f, FIX_TSS + 4, 4, 24);
	CHECK_EQ(0, fixture_far(f, exec_call_far_A, FREE_SEL(3), 0, 4));
}

TEST(a_gate_with_a_bad_stack_in_the_tss)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, 3);
	fixture_gdt_gate(f, FIX_FREE, GATE(3), C0, TARGET, 0);
	fix_put(f, FIX_TSS + 8, 4, SEL(FIX_DS3, 3));
	CHECK_EQ(TS(FIX_DS3 << 3), fixture_far(f, exec_call_far_A, FREE_SEL(3), 0, 4));
	fix_put(f, FIX_TSS + 8, 4, 0);
	CHECK_EQ(TS(0), fixture_far(f, exec_call_far_A, FREE_SEL(3), 0, 4));
	f->cpu->tr.limit = 7;
	CHECK_EQ(TS(FIX_TSS_IDX << 3), fixture_far(f, exec_call_far_A, FREE_SEL(3), 0, 4));
	CHECK_EQ(3, f->cpu->cpl);
}

/* --- RETF and IRET -----------------------------------------------------------------------------
 */

struct ret_row {
	const char *name;
	enum fix_mode mode;
	unsigned cpl;
	uint16_t cs, ss;
	uint32_t code; /* attributes at FIX_FREE */
	uint32_t data; /* attributes at FIX_FREE + 2 */
	uint64_t rip;
	uint32_t want;
};

#define D         SEL(FIX_FREE + 2, 3)
#define D_ERR     ((FIX_FREE + 2) << 3)
#define DATA(dpl) (ATTR_DATA | ATTR_DPL(dpl) | ATTR_32)

// clang-format off
static const struct ret_row ret_rows[] = {
	{"same ring",              FIX_PROT32, 0, FREE_SEL(0), 0, CODE(0), 0, TARGET, 0},
	{"null",                   FIX_PROT32, 0, 3, D, CODE(0), DATA(3), TARGET, GP(0)},
	{"outside the GDT",        FIX_PROT32, 0, SEL(600, 3), D, CODE(0), DATA(3), TARGET, GP(600 << 3)},
	{"data",                   FIX_PROT32, 0, FREE_SEL(0), D, ATTR_DATA | ATTR_32, DATA(3), TARGET, GP(FREE_ERR)},
	{"system",                 FIX_PROT32, 0, FREE_SEL(0), D, GATE(0), DATA(3), TARGET, GP(FREE_ERR)},
	{"to an inner ring",       FIX_PROT32, 3, FREE_SEL(0), D, CODE(0), DATA(3), TARGET, GP(FREE_ERR)},
	{"DPL is not RPL",         FIX_PROT32, 0, FREE_SEL(3), D, CODE(2), DATA(3), TARGET, GP(FREE_ERR)},
	{"conforming DPL <= RPL",  FIX_PROT32, 0, FREE_SEL(3), D, CODE(1) | CONFORMING, DATA(3), TARGET, 0},
	{"conforming DPL > RPL",   FIX_PROT32, 0, FREE_SEL(1), D, CODE(2) | CONFORMING, DATA(3), TARGET, GP(FREE_ERR)},
	{"not present",            FIX_PROT32, 0, FREE_SEL(3), D, GONE(CODE(3)), DATA(3), TARGET, NP(FREE_ERR)},
	{"outer",                  FIX_PROT32, 0, FREE_SEL(3), D, CODE(3), DATA(3), TARGET, 0},
	{"outer, null SS",         FIX_PROT32, 0, FREE_SEL(3), 3, CODE(3), DATA(3), TARGET, GP(0)},
	{"outer, SS outside",      FIX_PROT32, 0, FREE_SEL(3), SEL(600, 3), CODE(3), DATA(3), TARGET, GP(600 << 3)},
	{"outer, RPL of SS",       FIX_PROT32, 0, FREE_SEL(3), SEL(FIX_FREE + 2, 0), CODE(3), DATA(3), TARGET, GP(D_ERR)},
	{"outer, DPL of SS",       FIX_PROT32, 0, FREE_SEL(3), D, CODE(3), DATA(0), TARGET, GP(D_ERR)},
	{"outer, SS is code",      FIX_PROT32, 0, FREE_SEL(3), D, CODE(3), CODE(3), TARGET, GP(D_ERR)},
	{"outer, SS read-only",    FIX_PROT32, 0, FREE_SEL(3), D, CODE(3), DATA(3) & ~SEG_TYPE_RW, TARGET, GP(D_ERR)},
	{"outer, SS not present",  FIX_PROT32, 0, FREE_SEL(3), D, CODE(3), GONE(DATA(3)), TARGET, SS(D_ERR)},
	{"over the limit",         FIX_PROT32, 0, FREE_SEL(0), 0, ATTR_CODE, 0, 0x100000, GP(0)},
	{"64-bit",                 FIX_LONG64, 0, FREE_SEL(3), D, CODE64(3), DATA(3), TARGET, 0},
	{"64-bit, not canonical",  FIX_LONG64, 0, FREE_SEL(3), D, CODE64(3), DATA(3), 1ull << 47, GP(0)},
	{"64-bit to compatibility", FIX_LONG64, 0, FREE_SEL(3), D, CODE(3), DATA(3), TARGET, 0},
	{"compatibility over 4 GiB", FIX_LONG64, 0, FREE_SEL(3), D, CODE(3), DATA(3), 1ull << 32, GP(0)},
	{"64-bit, null SS, ring 3", FIX_LONG64, 0, FREE_SEL(3), 3, CODE64(3), DATA(3), TARGET, GP(0)},
	{"L and D",                FIX_LONG64, 0, FREE_SEL(3), D, CODE64(3) | X86_SEG_DB, DATA(3), TARGET, GP(FREE_ERR)},
};
// clang-format on

static struct fixture *return_fixture(const struct ret_row *r)
{
	struct fixture *f = fixture_create(r->mode);

	fixture_ring(f, r->cpl);
	fixture_gdt(f, FIX_FREE, r->code, 0, 0xfffff);
	fixture_gdt(f, FIX_FREE + 2, r->data, 0, 0xfffff);
	return f;
}

static void check_landed(struct fixture *f, const struct ret_row *r, gpa_t top)
{
	if (r->want) {
		CHECK_ROW(r->name, top, f->cpu->gpr[X86_RSP]);
		CHECK_ROW(r->name, r->cpl, f->cpu->cpl);
		CHECK_ROW(r->name, FIX_CODE, f->cpu->rip);
		return;
	}
	CHECK_ROW(r->name, TARGET, f->cpu->rip);
	CHECK_ROW(r->name, SEL_RPL(r->cs), f->cpu->cpl);
	CHECK_ROW(r->name, r->cs, f->cpu->seg[X86_CS].selector);
	if (SEL_RPL(r->cs) != r->cpl) {
		CHECK_ROW(r->name, FIX_STACK_USER, f->cpu->gpr[X86_RSP]);
		CHECK_ROW(r->name, r->ss, f->cpu->seg[X86_SS].selector);
	}
}

TEST(far_returns)
{
	for (unsigned i = 0; i < ARRAY_SIZE(ret_rows); i++) {
		const struct ret_row *r = &ret_rows[i];
		struct fixture *f = return_fixture(r);
		unsigned size = r->mode == FIX_LONG64 ? 8 : 4;
		gpa_t top;

		push(f, size, r->ss);
		push(f, size, FIX_STACK_USER);
		push(f, size, r->cs);
		push(f, size, r->rip);
		top = f->cpu->gpr[X86_RSP];
		CHECK_ROW(r->name, r->want, fixture_plain(f, exec_ret_far, size));
		check_landed(f, r, top);
	}
}

TEST(irets)
{
	for (unsigned i = 0; i < ARRAY_SIZE(ret_rows); i++) {
		const struct ret_row *r = &ret_rows[i];
		struct fixture *f = return_fixture(r);
		unsigned size = r->mode == FIX_LONG64 ? 8 : 4;
		gpa_t top;

		push(f, size, r->ss);
		push(f, size, FIX_STACK_USER);
		push(f, size, RFLAGS_FIXED);
		push(f, size, r->cs);
		push(f, size, r->rip);
		top = f->cpu->gpr[X86_RSP];
		CHECK_ROW(r->name, r->want, fixture_plain(f, exec_iret, size));
		check_landed(f, r, top);
	}
}

TEST(an_outer_return_drops_segments_the_ring_may_not_use)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, CODE(0) | CONFORMING, 0, 0xfffff);
	CHECK_EQ(0, fixture_load_seg(f, X86_ES, SEL(FIX_DS3, 0)));
	CHECK_EQ(0, fixture_load_seg(f, X86_FS, SEL(FIX_CS0, 0)));
	CHECK_EQ(0, fixture_load_seg(f, X86_GS, FREE_SEL(0)));
	push(f, 4, SEL(FIX_DS3, 3));
	push(f, 4, FIX_STACK_USER);
	push(f, 4, SEL(FIX_CS3, 3));
	push(f, 4, TARGET);
	CHECK_EQ(0, fixture_plain(f, exec_ret_far, 4));
	CHECK_EQ(0, f->cpu->seg[X86_DS].selector); /* data, DPL 0 */
	CHECK(f->cpu->seg[X86_DS].attr & X86_SEG_UNUSABLE);
	CHECK_EQ(SEL(FIX_DS3, 0), f->cpu->seg[X86_ES].selector); /* data, DPL 3 */
	CHECK_EQ(0, f->cpu->seg[X86_FS].selector);               /* nonconforming code */
	CHECK_EQ(FREE_SEL(0), f->cpu->seg[X86_GS].selector);     /* conforming code */
}

static void check_outer_return_keeps_gs_base(struct fixture *f)
{
	f->cpu->seg[X86_GS].base = 0x7f0012345678;
	push(f, 8, SEL(FIX_DS3, 3));
	push(f, 8, FIX_STACK_USER);
	push(f, 8, RFLAGS_FIXED);
	push(f, 8, SEL(FIX_CS64_3, 3));
	push(f, 8, TARGET);
	CHECK_EQ(0, fixture_plain(f, exec_iret, 8));
	CHECK_EQ(0, f->cpu->seg[X86_GS].selector);
	CHECK_EQ(0x7f0012345678, f->cpu->seg[X86_GS].base);
}

TEST(an_outer_return_keeps_the_base_under_a_null_gs)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	seg_make_null(&f->cpu->seg[X86_GS], 0);
	check_outer_return_keeps_gs_base(f);
}

TEST(an_outer_return_keeps_the_base_of_a_gs_it_makes_null)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	CHECK_EQ(0, fixture_load_seg(f, X86_GS, SEL(FIX_DS0, 0)));
	check_outer_return_keeps_gs_base(f);
}

TEST(a_return_to_a_16_bit_stack_sets_sp_only)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->gpr[X86_RSP] = 0x109000;
	fixture_gdt(f, FIX_FREE, ATTR_DATA | ATTR_DPL(3), 0, 0xffff);
	push(f, 4, FREE_SEL(3));
	push(f, 4, 0x7777f000);
	push(f, 4, RFLAGS_FIXED);
	push(f, 4, SEL(FIX_CS3, 3));
	push(f, 4, TARGET);
	CHECK_EQ(0, fixture_plain(f, exec_iret, 4));
	CHECK_EQ(0x10f000, f->cpu->gpr[X86_RSP]);
}

TEST(sixty_four_bit_iret_takes_the_stack_even_in_the_same_ring)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	push(f, 8, 0); /* null SS is fine in ring 0 */
	push(f, 8, 0x12340);
	push(f, 8, RFLAGS_FIXED | RFLAGS_IF);
	push(f, 8, SEL(FIX_CS64_0, 0));
	push(f, 8, TARGET);
	CHECK_EQ(0, fixture_plain(f, exec_iret, 8));
	CHECK_EQ(0x12340, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0, f->cpu->seg[X86_SS].selector);
	CHECK(f->cpu->rflags & RFLAGS_IF);
}

TEST(long_mode_has_no_nested_tasks)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	f->cpu->rflags |= RFLAGS_NT;
	f->cpu->nmi_masked = true;
	CHECK_EQ(GP(0), fixture_plain(f, exec_iret, 8));
	CHECK(!f->cpu->nmi_masked);
}

/* --- flags -------------------------------------------------------------------------------------
 */

#define EVERY_FLAG                                                                                 \
	(RFLAGS_ARITH | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT | RFLAGS_RF |  \
	 RFLAGS_VM | RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID)
#define USER16 (RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT)
#define USER32 (USER16 | RFLAGS_AC | RFLAGS_ID)

struct flags_row {
	const char *name;
	enum fix_mode mode;
	unsigned cpl, iopl, size;
	uint64_t iret, popf; /* flags that become set from an image of all ones */
};

// clang-format off
static const struct flags_row flags_rows[] = {
	{"ring 0",           FIX_PROT32, 0, 0, 4, USER32 | RFLAGS_RF | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP,
	                     USER32 | RFLAGS_IF | RFLAGS_IOPL},
	{"ring 0, 16-bit",   FIX_PROT32, 0, 0, 2, USER16 | RFLAGS_IF | RFLAGS_IOPL, USER16 | RFLAGS_IF | RFLAGS_IOPL},
	{"ring 3",           FIX_PROT32, 3, 0, 4, USER32 | RFLAGS_RF, USER32},
	{"ring 3, 16-bit",   FIX_PROT32, 3, 0, 2, USER16, USER16},
	{"ring 3, IOPL 3",   FIX_PROT32, 3, 3, 4, USER32 | RFLAGS_RF | RFLAGS_IF | RFLAGS_IOPL, USER32 | RFLAGS_IF | RFLAGS_IOPL},
	{"ring 1, IOPL 1",   FIX_PROT32, 1, 1, 4, USER32 | RFLAGS_RF | RFLAGS_IF | 1 << 12, USER32 | RFLAGS_IF | 1 << 12},
	{"real",             FIX_REAL,   0, 0, 4, USER32 | RFLAGS_RF | RFLAGS_IF | RFLAGS_IOPL, USER32 | RFLAGS_IF | RFLAGS_IOPL},
	{"real, 16-bit",     FIX_REAL,   0, 0, 2, USER16 | RFLAGS_IF | RFLAGS_IOPL, USER16 | RFLAGS_IF | RFLAGS_IOPL},
	{"64-bit, ring 3",   FIX_LONG64, 3, 0, 8, USER32 | RFLAGS_RF, USER32},
	{"64-bit, ring 0",   FIX_LONG64, 0, 0, 8, USER32 | RFLAGS_RF | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP,
	                     USER32 | RFLAGS_IF | RFLAGS_IOPL},
};
// clang-format on

static struct fixture *flags_fixture(const struct flags_row *r)
{
	struct fixture *f = fixture_create(r->mode);

	if (r->mode != FIX_REAL)
		fixture_ring(f, r->cpl);
	f->cpu->rflags |= (uint64_t)r->iopl << 12;
	return f;
}

TEST(iret_changes_the_flags_its_ring_may_change)
{
	for (unsigned i = 0; i < ARRAY_SIZE(flags_rows); i++) {
		const struct flags_row *r = &flags_rows[i];
		struct fixture *f = flags_fixture(r);
		uint64_t image = EVERY_FLAG;

		/* VM in ring 0 means something else. */
		if (r->cpl == 0 && r->size == 4)
			image &= ~RFLAGS_VM;
		if (r->size == 8) {
			push(f, 8, f->cpu->seg[X86_SS].selector);
			push(f, 8, FIX_STACK_USER);
		}
		push(f, r->size, image);
		push(f, r->size, f->cpu->seg[X86_CS].selector);
		push(f, r->size, TARGET);
		CHECK_ROW(r->name, 0, fixture_plain(f, exec_iret, r->size));
		CHECK_ROW(r->name, r->iret | RFLAGS_FIXED, cpu_rflags(f->cpu));
	}
}

TEST(popf_changes_the_flags_its_ring_may_change)
{
	for (unsigned i = 0; i < ARRAY_SIZE(flags_rows); i++) {
		const struct flags_row *r = &flags_rows[i];
		struct fixture *f = flags_fixture(r);

		push(f, r->size, EVERY_FLAG);
		CHECK_ROW(r->name, 0, fixture_plain(f, exec_popf, r->size));
		CHECK_ROW(r->name, r->popf | RFLAGS_FIXED, cpu_rflags(f->cpu));
		CHECK_ROW(r->name, FIX_STACK, f->cpu->gpr[X86_RSP]);
	}
}

TEST(pushf_hides_vm_and_rf)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->rflags |= RFLAGS_RF | RFLAGS_ID | RFLAGS_IF;
	f->cpu->cc = RFLAGS_ZF;
	CHECK_EQ(0, fixture_plain(f, exec_pushf, 4));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_ID | RFLAGS_IF | RFLAGS_ZF,
		 fix_get(f, f->cpu->gpr[X86_RSP], 4));
}

struct if_row {
	const char *name;
	unsigned cpl, iopl;
	uint64_t cr4;
	bool v86;
	uint32_t cli, sti;
	uint64_t flag; /* which one they change */
};

// clang-format off
static const struct if_row if_rows[] = {
	{"ring 0",                0, 0, 0, false, 0, 0, RFLAGS_IF},
	{"ring 3, IOPL 0",        3, 0, 0, false, GP(0), GP(0), 0},
	{"ring 3, IOPL 3",        3, 3, 0, false, 0, 0, RFLAGS_IF},
	{"ring 3, PVI",           3, 0, CR4_PVI, false, 0, 0, RFLAGS_VIF},
	{"ring 3, VME is not PVI", 3, 0, CR4_VME, false, GP(0), GP(0), 0},
	{"ring 2, PVI",           2, 0, CR4_PVI, false, GP(0), GP(0), 0},
	{"v86, IOPL 3",           3, 3, 0, true, 0, 0, RFLAGS_IF},
	{"v86, IOPL 0",           3, 0, 0, true, GP(0), GP(0), 0},
	{"v86, VME",              3, 0, CR4_VME, true, 0, 0, RFLAGS_VIF},
	{"v86, PVI is not VME",   3, 0, CR4_PVI, true, GP(0), GP(0), 0},
};
// clang-format on

static struct fixture *if_fixture(const struct if_row *r)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, r->cpl);
	f->cpu->cr4 |= r->cr4;
	f->cpu->rflags |= (uint64_t)r->iopl << 12 | (r->v86 ? RFLAGS_VM : 0);
	cpu_mode_update(f->cpu);
	return f;
}

TEST(cli_and_sti_change_if_or_vif_or_fault)
{
	for (unsigned i = 0; i < ARRAY_SIZE(if_rows); i++) {
		const struct if_row *r = &if_rows[i];
		struct fixture *f = if_fixture(r);
		const uint64_t both = RFLAGS_IF | RFLAGS_VIF;

		CHECK_ROW(r->name, r->sti, fixture_plain(f, exec_sti, 4));
		CHECK_ROW(r->name, r->flag, f->cpu->rflags & both);
		f->cpu->rflags |= both;
		CHECK_ROW(r->name, r->cli, fixture_plain(f, exec_cli, 4));
		CHECK_ROW(r->name, both & ~r->flag, f->cpu->rflags & both);
	}
}

TEST(sti_shadows_one_instruction_if_interrupts_were_off)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	CHECK_EQ(0, fixture_plain(f, exec_sti, 4));
	CHECK_EQ(CPU_SHADOW_STI, f->cpu->int_shadow);
	f->cpu->int_shadow = 0;
	CHECK_EQ(0, fixture_plain(f, exec_sti, 4));
	CHECK_EQ(0, f->cpu->int_shadow);
}

TEST(sti_with_a_virtual_interrupt_pending_faults)
{
	static const struct if_row r = {"", 3, 0, CR4_PVI, false, 0, 0, 0};
	struct fixture *f = if_fixture(&r);

	f->cpu->rflags |= RFLAGS_VIP;
	CHECK_EQ(GP(0), fixture_plain(f, exec_sti, 4));
	CHECK(!(f->cpu->rflags & RFLAGS_VIF));
}

/* --- virtual-8086 mode -------------------------------------------------------------------------
 */

static struct fixture *v86_fixture(unsigned iopl, uint64_t cr4)
{
	const struct if_row r = {.cpl = 3, .iopl = iopl, .cr4 = cr4, .v86 = true};
	struct fixture *f = if_fixture(&r);

	for (unsigned i = 0; i < X86_NR_SEG; i++)
		seg_make_v86(&f->cpu->seg[i], 0);
	cpu_mode_update(f->cpu);
	fix_put(f, FIX_TSS + 102, 2, 0x88); /* I/O map; redirection bitmap at 0x68 */
	return f;
}

TEST(iret_enters_v86_mode_from_ring_0)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	push(f, 4, 0x600);
	push(f, 4, 0x500);
	push(f, 4, 0x400);
	push(f, 4, 0x300);
	push(f, 4, 0x200);
	push(f, 4, 0x1234);
	push(f, 4, RFLAGS_FIXED | RFLAGS_VM | RFLAGS_IF | RFLAGS_IOPL);
	push(f, 4, 0x100);
	push(f, 4, 0xfff0);
	CHECK_EQ(0, fixture_plain(f, exec_iret, 4));
	CHECK(f->cpu->v86);
	CHECK_EQ(3, f->cpu->cpl);
	CHECK_EQ(INSN_MODE_16, f->cpu->mode);
	CHECK_EQ(0x1000, f->cpu->seg[X86_CS].base);
	CHECK_EQ(0x2000, f->cpu->seg[X86_SS].base);
	CHECK_EQ(0x3000, f->cpu->seg[X86_ES].base);
	CHECK_EQ(0x4000, f->cpu->seg[X86_DS].base);
	CHECK_EQ(0x5000, f->cpu->seg[X86_FS].base);
	CHECK_EQ(0x6000, f->cpu->seg[X86_GS].base);
	CHECK_EQ(0x1234, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0xfff0, f->cpu->rip);
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_VM | RFLAGS_IF | RFLAGS_IOPL, cpu_rflags(f->cpu));
}

TEST(ring_3_cannot_enter_v86_mode)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, 3);
	push(f, 4, RFLAGS_FIXED | RFLAGS_VM);
	push(f, 4, SEL(FIX_CS3, 3));
	push(f, 4, TARGET);
	CHECK_EQ(0, fixture_plain(f, exec_iret, 4));
	CHECK(!f->cpu->v86);
	CHECK(!(f->cpu->rflags & RFLAGS_VM));
}

TEST(v86_below_iopl_3_traps_flag_instructions)
{
	struct fixture *f = v86_fixture(0, 0);

	CHECK_EQ(GP(0), fixture_plain(f, exec_pushf, 2));
	CHECK_EQ(GP(0), fixture_plain(f, exec_popf, 2));
	CHECK_EQ(GP(0), fixture_plain(f, exec_iret, 2));
	f->in = (struct insn){.imm = 0x21};
	CHECK_EQ(GP(0), fixture_exec(f, exec_int_I));
}

TEST(v86_at_iopl_3_cannot_change_iopl)
{
	struct fixture *f = v86_fixture(3, 0);

	push(f, 2, RFLAGS_IF);
	CHECK_EQ(0, fixture_plain(f, exec_popf, 2));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_VM | RFLAGS_IOPL | RFLAGS_IF, cpu_rflags(f->cpu));
	push(f, 2, 0);
	push(f, 2, 0x100);
	push(f, 2, TARGET);
	CHECK_EQ(0, fixture_plain(f, exec_iret, 2));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_VM | RFLAGS_IOPL, cpu_rflags(f->cpu));
	CHECK_EQ(0x1000, f->cpu->seg[X86_CS].base);
}

TEST(vme_shows_vif_as_if)
{
	struct fixture *f = v86_fixture(0, CR4_VME);

	f->cpu->rflags |= RFLAGS_IF | RFLAGS_VIF;
	CHECK_EQ(0, fixture_plain(f, exec_pushf, 2));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_IF | RFLAGS_IOPL, fix_get(f, f->cpu->gpr[X86_RSP], 2));
	f->cpu->rflags &= ~RFLAGS_VIF;
	CHECK_EQ(0, fixture_plain(f, exec_pushf, 2));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_IOPL, fix_get(f, f->cpu->gpr[X86_RSP], 2));
	CHECK_EQ(GP(0), fixture_plain(f, exec_pushf, 4));
}

TEST(vme_popf_and_iret_set_vif_and_leave_if)
{
	struct fixture *f = v86_fixture(0, CR4_VME);
	const uint64_t base = RFLAGS_FIXED | RFLAGS_VM;

	push(f, 2, RFLAGS_IF | RFLAGS_IOPL | RFLAGS_CF);
	CHECK_EQ(0, fixture_plain(f, exec_popf, 2));
	CHECK_EQ(base | RFLAGS_VIF | RFLAGS_CF, cpu_rflags(f->cpu));
	push(f, 2, RFLAGS_ZF);
	push(f, 2, 0);
	push(f, 2, TARGET);
	CHECK_EQ(0, fixture_plain(f, exec_iret, 2));
	CHECK_EQ(base | RFLAGS_ZF, cpu_rflags(f->cpu));
}

TEST(vme_traps_tf_and_if_while_an_interrupt_is_pending)
{
	struct fixture *f = v86_fixture(0, CR4_VME);

	push(f, 2, RFLAGS_TF);
	CHECK_EQ(GP(0), fixture_plain(f, exec_popf, 2));
	push(f, 2, RFLAGS_IF);
	f->cpu->rflags |= RFLAGS_VIP;
	CHECK_EQ(GP(0), fixture_plain(f, exec_popf, 2));
	push(f, 2, 0);
	CHECK_EQ(0, fixture_plain(f, exec_popf, 2));
}

struct redirect_row {
	const char *name;
	unsigned iopl;
	bool bit, vme;
	uint32_t want;
	bool monitor; /* handled in ring 0 */
};

// clang-format off
static const struct redirect_row redirect_rows[] = {
	{"method 1: IOPL 3, no VME",      3, false, false, 0, true},
	{"method 2: IOPL 0, no VME",      0, false, false, GP(0), false},
	{"method 3: IOPL 0, bit set",     0, true, true, GP(0), false},
	{"method 4: IOPL 3, bit set",     3, true, true, 0, true},
	{"method 5: IOPL 3, bit clear",   3, false, true, 0, false},
	{"method 6: IOPL 0, bit clear",   0, false, true, 0, false},
};
// clang-format on

static struct fixture *redirect_fixture(const struct redirect_row *r)
{
	struct fixture *f = v86_fixture(r->iopl, r->vme ? CR4_VME : 0);

	fix_put(f, FIX_TSS + 0x68 + 0x21 / 8, 1, r->bit ? 1 << (0x21 % 8) : 0);
	fix_put(f, 0x21 * 4, 4, 0x02003333);
	fixture_idt(f, 0x21, ATTR_SYS(DESC_TRAP) | ATTR_DPL(3), C0, TARGET, 0);
	f->in = (struct insn){.imm = 0x21};
	return f;
}

TEST(int_n_in_v86_mode_by_the_redirection_bitmap)
{
	for (unsigned i = 0; i < ARRAY_SIZE(redirect_rows); i++) {
		const struct redirect_row *r = &redirect_rows[i];
		struct fixture *f = redirect_fixture(r);
		uint64_t rip = r->want ? FIX_CODE : r->monitor ? TARGET : 0x3333;

		CHECK_ROW(r->name, r->want, fixture_exec(f, exec_int_I));
		CHECK_ROW(r->name, rip, f->cpu->rip);
		CHECK_ROW(r->name, !r->monitor, f->cpu->v86);
	}
}

TEST(a_redirected_interrupt_uses_the_8086_stack_and_vif)
{
	struct fixture *f = redirect_fixture(&redirect_rows[5]);

	f->cpu->rflags |= RFLAGS_IF | RFLAGS_VIF | RFLAGS_TF;
	CHECK_EQ(0, fixture_exec(f, exec_int_I));
	CHECK_EQ(0x2000, f->cpu->seg[X86_CS].base);
	CHECK_EQ(FIX_STACK - 6, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE + 2, fix_get(f, FIX_STACK - 6, 2));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_IF | RFLAGS_TF | RFLAGS_IOPL, fix_get(f, FIX_STACK - 2, 2));
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_VM | RFLAGS_IF, cpu_rflags(f->cpu));
}

/* --- SYSCALL and SYSENTER ----------------------------------------------------------------------
 */

#define STAR_VALUE ((uint64_t)SEL(FIX_CS0, 0) << 32 | (uint64_t)0x33 << 48)

static struct fixture *syscall_fixture(enum fix_mode mode, const char *vendor)
{
	struct fixture *f = fixture_create(mode);

	strcpy(f->model.vendor, vendor);
	f->cpu->star = STAR_VALUE | 0x4321;
	f->cpu->lstar = 0xffffffff81000000;
	f->cpu->cstar = 0xffffffff82000000;
	f->cpu->sfmask = RFLAGS_IF | RFLAGS_TF | RFLAGS_DF;
	f->cpu->sysenter_cs = SEL(FIX_CS0, 0);
	f->cpu->sysenter_esp = 0xffff800000001000;
	f->cpu->sysenter_eip = 0xffff800000002000;
	return f;
}

#define AMD   "AuthenticAMD"
#define INTEL "GenuineIntel"
#define UD    FAULT_PLAIN(X86_EXC_UD)

TEST(syscall_saves_rip_and_flags_and_enters_ring_0)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, AMD);

	fixture_ring(f, 3);
	f->cpu->rflags |= RFLAGS_IF | RFLAGS_RF;
	f->cpu->cc = RFLAGS_CF;
	CHECK_EQ(0, fixture_plain(f, exec_syscall, 8));
	CHECK_EQ(0xffffffff81000000, f->cpu->rip);
	CHECK_EQ(FIX_CODE + 2, f->cpu->gpr[X86_RCX]);
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_IF | RFLAGS_CF, f->cpu->gpr[11]);
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_CF, cpu_rflags(f->cpu));
	CHECK_EQ(SEL(FIX_CS0, 0), f->cpu->seg[X86_CS].selector);
	CHECK_EQ(SEL(FIX_CS0, 0) + 8, f->cpu->seg[X86_SS].selector);
	CHECK_EQ(0, f->cpu->cpl);
	CHECK_EQ(INSN_MODE_64, f->cpu->mode);
}

TEST(sysret_goes_back)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, INTEL);

	f->cpu->gpr[X86_RCX] = 0x7ffff000;
	f->cpu->gpr[11] = EVERY_FLAG;
	CHECK_EQ(0, fixture_plain(f, exec_sysret, 8));
	CHECK_EQ(0x7ffff000, f->cpu->rip);
	CHECK_EQ((EVERY_FLAG & ~(RFLAGS_RF | RFLAGS_VM)) | RFLAGS_FIXED, cpu_rflags(f->cpu));
	CHECK_EQ(0x43, f->cpu->seg[X86_CS].selector);
	CHECK_EQ(0x3b, f->cpu->seg[X86_SS].selector);
	CHECK_EQ(3, f->cpu->cpl);
	CHECK_EQ(INSN_MODE_64, f->cpu->mode);
}

TEST(sysret_to_compatibility_mode)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, AMD);

	f->cpu->gpr[X86_RCX] = 0x1234567890;
	CHECK_EQ(0, fixture_plain(f, exec_sysret, 4));
	CHECK_EQ(0x34567890, f->cpu->rip);
	CHECK_EQ(0x33, f->cpu->seg[X86_CS].selector);
	CHECK_EQ(INSN_MODE_32, f->cpu->mode);
}

TEST(sysret_to_a_noncanonical_address_faults_in_ring_0_on_intel_only)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, INTEL);

	f->cpu->gpr[X86_RCX] = 1ull << 47;
	CHECK_EQ(GP(0), fixture_plain(f, exec_sysret, 8));
	CHECK_EQ(0, f->cpu->cpl);
	f = syscall_fixture(FIX_LONG64, AMD);
	f->cpu->gpr[X86_RCX] = 1ull << 47;
	CHECK_EQ(0, fixture_plain(f, exec_sysret, 8));
	CHECK_EQ(3, f->cpu->cpl);
	CHECK_EQ(1ull << 47, f->cpu->rip);
}

TEST(amd_leaves_the_hidden_ss_at_sysret)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, AMD);

	seg_make_null(&f->cpu->seg[X86_SS], 0);
	CHECK_EQ(0, fixture_plain(f, exec_sysret, 8));
	CHECK_EQ(0x3b, f->cpu->seg[X86_SS].selector);
	CHECK(f->cpu->seg[X86_SS].attr & X86_SEG_UNUSABLE);
	CHECK_EQ(3, X86_SEG_DPL(f->cpu->seg[X86_SS].attr));
}

TEST(syscall_without_sce_is_an_invalid_opcode)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, AMD);

	f->cpu->efer &= ~EFER_SCE;
	CHECK_EQ(UD, fixture_plain(f, exec_syscall, 8));
	CHECK_EQ(UD, fixture_plain(f, exec_sysret, 8));
}

TEST(sysret_needs_ring_0)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, AMD);

	fixture_ring(f, 3);
	CHECK_EQ(GP(0), fixture_plain(f, exec_sysret, 8));
}

TEST(syscall_in_compatibility_mode_is_amd_only)
{
	struct fixture *f = syscall_fixture(FIX_COMPAT32, INTEL);

	CHECK_EQ(UD, fixture_plain(f, exec_syscall, 4));
	f = syscall_fixture(FIX_COMPAT32, AMD);
	fixture_ring(f, 3);
	CHECK_EQ(0, fixture_plain(f, exec_syscall, 4));
	CHECK_EQ(0xffffffff82000000, f->cpu->rip);
	CHECK_EQ(INSN_MODE_64, f->cpu->mode);
}

TEST(syscall_in_legacy_mode_is_amd_only)
{
	struct fixture *f = syscall_fixture(FIX_PROT32, AMD);

	fixture_ring(f, 3);
	f->cpu->rflags |= RFLAGS_IF;
	CHECK_EQ(0, fixture_plain(f, exec_syscall, 4));
	CHECK_EQ(0x4321, f->cpu->rip);
	CHECK_EQ(INSN_MODE_32, f->cpu->mode);
	CHECK_EQ(RFLAGS_FIXED, cpu_rflags(f->cpu));
	CHECK_EQ(0, fixture_plain(f, exec_sysret, 4));
	CHECK_EQ(FIX_CODE + 2, f->cpu->rip);
	CHECK(f->cpu->rflags & RFLAGS_IF);
}

TEST(sysenter_in_long_mode_is_intel_only)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, AMD);

	CHECK_EQ(UD, fixture_plain(f, exec_sysenter, 8));
	CHECK_EQ(UD, fixture_plain(f, exec_sysexit, 8));
	f = syscall_fixture(FIX_LONG64, INTEL);
	fixture_ring(f, 3);
	f->cpu->rflags |= RFLAGS_IF;
	CHECK_EQ(0, fixture_plain(f, exec_sysenter, 8));
	CHECK_EQ(0xffff800000002000, f->cpu->rip);
	CHECK_EQ(0xffff800000001000, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0, f->cpu->cpl);
	CHECK(!(f->cpu->rflags & RFLAGS_IF));
}

TEST(sysenter_and_sysexit_in_legacy_mode)
{
	struct fixture *f = syscall_fixture(FIX_PROT32, AMD);

	fixture_ring(f, 3);
	CHECK_EQ(0, fixture_plain(f, exec_sysenter, 4));
	CHECK_EQ(0x2000, f->cpu->rip);
	CHECK_EQ(0x1000, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(SEL(FIX_CS0, 0) + 8, f->cpu->seg[X86_SS].selector);
	f->cpu->gpr[X86_RCX] = FIX_STACK_USER;
	f->cpu->gpr[X86_RDX] = TARGET;
	CHECK_EQ(0, fixture_plain(f, exec_sysexit, 4));
	CHECK_EQ(TARGET, f->cpu->rip);
	CHECK_EQ(FIX_STACK_USER, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(SEL(FIX_CS0, 3) + 16, f->cpu->seg[X86_CS].selector);
	CHECK_EQ(SEL(FIX_CS0, 3) + 24, f->cpu->seg[X86_SS].selector);
	CHECK_EQ(GP(0), fixture_plain(f, exec_sysexit, 4));
}

TEST(sysenter_needs_a_code_segment)
{
	struct fixture *f = syscall_fixture(FIX_PROT32, AMD);

	f->cpu->sysenter_cs = 3;
	CHECK_EQ(GP(0), fixture_plain(f, exec_sysenter, 4));
	CHECK_EQ(GP(0), fixture_plain(f, exec_sysexit, 4));
}

TEST(sysexit_to_noncanonical_addresses_faults)
{
	struct fixture *f = syscall_fixture(FIX_LONG64, INTEL);

	f->cpu->gpr[X86_RCX] = 1ull << 47;
	CHECK_EQ(GP(0), fixture_plain(f, exec_sysexit, 8));
	f->cpu->gpr[X86_RCX] = 0;
	f->cpu->gpr[X86_RDX] = 1ull << 47;
	CHECK_EQ(GP(0), fixture_plain(f, exec_sysexit, 8));
	f->cpu->gpr[X86_RDX] = TARGET;
	CHECK_EQ(0, fixture_plain(f, exec_sysexit, 8));
	CHECK_EQ(INSN_MODE_64, f->cpu->mode);
}

TEST(swapgs_exchanges_the_bases_in_ring_0)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	f->cpu->seg[X86_GS].base = 1;
	f->cpu->kernel_gs_base = 2;
	CHECK_EQ(0, fixture_plain(f, exec_swapgs, 8));
	CHECK_EQ(2, f->cpu->seg[X86_GS].base);
	CHECK_EQ(1, f->cpu->kernel_gs_base);
	fixture_ring(f, 3);
	CHECK_EQ(GP(0), fixture_plain(f, exec_swapgs, 8));
}
