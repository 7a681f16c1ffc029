/* Segment registers: what may be loaded, with which error code, and what an access through them
 * may reach.  SDM 3A "Protection", SDM 2 MOV, LAR, LSL, VERR, ARPL, LLDT, LTR. */
#include "soft_fixture.h"

#define GP(e) FAULT(X86_EXC_GP, e)
#define NP(e) FAULT(X86_EXC_NP, e)
#define SS(e) FAULT(X86_EXC_SS, e)

#define FREE_SEL(rpl) SEL(FIX_FREE, rpl)
#define FREE_ERR      (FIX_FREE << 3)

/* --- every combination, against the rule said in another way -----------------------------------
 */

struct combo {
	uint32_t attr; /* type, S, P */
	unsigned dpl, rpl, cpl;
};

static uint32_t want_ss(const struct combo *c)
{
	bool writable_data = (c->attr & (X86_SEG_S | 8 | 2)) == (X86_SEG_S | 2);

	if (!writable_data || c->dpl != c->cpl || c->rpl != c->cpl)
		return GP(FREE_ERR);
	return c->attr & X86_SEG_P ? 0 : SS(FREE_ERR);
}

static uint32_t want_data(const struct combo *c)
{
	bool code = c->attr & 8, readable = !code || (c->attr & 2);
	bool shared = code && (c->attr & 4);

	if (!(c->attr & X86_SEG_S) || !readable)
		return GP(FREE_ERR);
	if (!shared && MAX(c->rpl, c->cpl) > c->dpl)
		return GP(FREE_ERR);
	return c->attr & X86_SEG_P ? 0 : NP(FREE_ERR);
}

static void check_combo(struct fixture *f, const struct combo *c)
{
	char row[80];

	snprintf(row, sizeof(row), "attr %#x dpl %u rpl %u cpl %u", c->attr, c->dpl, c->rpl,
		 c->cpl);
	fixture_ring(f, c->cpl);
	fixture_gdt(f, FIX_FREE, c->attr | ATTR_DPL(c->dpl) | ATTR_32, 0, 0xfffff);
	CHECK_ROW(row, want_ss(c), fixture_load_seg(f, X86_SS, FREE_SEL(c->rpl)));
	fixture_gdt(f, FIX_FREE, c->attr | ATTR_DPL(c->dpl) | ATTR_32, 0, 0xfffff);
	CHECK_ROW(row, want_data(c), fixture_load_seg(f, X86_ES, FREE_SEL(c->rpl)));
}

/* 16 types x code-or-system x present x DPL x RPL x CPL */
static void check_all_combos(enum fix_mode mode, bool rings12)
{
	struct fixture *f = fixture_create(mode);

	for (unsigned n = 0; n < 4096; n++) {
		struct combo c = {
			.attr = (n & 15) | (n & 16 ? X86_SEG_S : 0) | (n & 32 ? X86_SEG_P : 0),
			.dpl = n >> 6 & 3,
			.rpl = n >> 8 & 3,
			.cpl = n >> 10 & 3,
		};
		if (rings12 || c.cpl == 0 || c.cpl == 3)
			check_combo(f, &c);
	}
}

TEST(every_descriptor_dpl_rpl_cpl_loads_or_faults_as_the_manual_says)
{
	check_all_combos(FIX_PROT32, true);
}

TEST(the_same_in_64_bit_mode)
{
	check_all_combos(FIX_LONG64, false);
}

/* --- selectors that name nothing ---------------------------------------------------------------
 */

struct load_row {
	const char *name;
	enum fix_mode mode;
	unsigned cpl, seg;
	uint16_t sel;
	uint32_t want;
};

// clang-format off
static const struct load_row load_rows[] = {
	{"null in DS",                     FIX_PROT32, 3, X86_DS, 0, 0},
	{"null with RPL in GS",            FIX_PROT32, 0, X86_GS, 3, 0},
	{"null in SS, 32-bit",             FIX_PROT32, 0, X86_SS, 0, GP(0)},
	{"null with RPL in SS, 32-bit",    FIX_PROT32, 0, X86_SS, 3, GP(0)},
	{"null in SS, 64-bit, ring 0",     FIX_LONG64, 0, X86_SS, 0, 0},
	{"null in SS, 64-bit, RPL != CPL", FIX_LONG64, 0, X86_SS, 1, GP(0)},
	{"null in SS, 64-bit, ring 3",     FIX_LONG64, 3, X86_SS, 3, GP(0)},
	{"null in SS, compatibility mode", FIX_COMPAT32, 0, X86_SS, 0, GP(0)},
	{"LDT selector 0 is not null",     FIX_PROT32, 0, X86_DS, LDT_SEL(0, 0), GP(4)},
	{"LDT selector 0 in SS",           FIX_PROT32, 0, X86_SS, LDT_SEL(0, 0), GP(4)},
	{"last entry of the GDT: absent",  FIX_PROT32, 0, X86_DS, SEL(511, 0), GP(511 << 3)},
	{"beyond the GDT",                 FIX_PROT32, 0, X86_DS, SEL(512, 0), GP(512 << 3)},
	{"beyond the GDT, RPL is cut",     FIX_PROT32, 3, X86_DS, SEL(512, 3), GP(512 << 3)},
	{"beyond the GDT in SS",           FIX_PROT32, 0, X86_SS, SEL(512, 0), GP(512 << 3)},
	{"beyond the LDT: TI stays",       FIX_PROT32, 0, X86_DS, LDT_SEL(512, 0), GP(512 << 3 | 4)},
	{"system descriptor",              FIX_PROT32, 0, X86_DS, SEL(FIX_TSS_IDX, 0), GP(FIX_TSS_IDX << 3)},
};
// clang-format on

TEST(selectors_that_name_no_segment)
{
	for (unsigned i = 0; i < ARRAY_SIZE(load_rows); i++) {
		const struct load_row *r = &load_rows[i];
		struct fixture *f = fixture_create(r->mode);

		fixture_ring(f, r->cpl);
		CHECK_ROW(r->name, r->want, fixture_load_seg(f, r->seg, r->sel));
	}
}

TEST(a_null_ldt_has_no_entries)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	seg_make_null(&f->cpu->ldtr, 0);
	CHECK_EQ(GP(0xc), fixture_load_seg(f, X86_DS, LDT_SEL(1, 0)));
}

TEST(a_descriptor_cut_by_the_table_limit_is_outside)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->gdtr.limit = FIX_DS0 * 8 + 6;
	CHECK_EQ(GP(FIX_DS0 << 3), fixture_load_seg(f, X86_DS, SEL(FIX_DS0, 0)));
	f->cpu->gdtr.limit = FIX_DS0 * 8 + 7;
	CHECK_EQ(0, fixture_load_seg(f, X86_DS, SEL(FIX_DS0, 0)));
}

/* --- what a load leaves behind -----------------------------------------------------------------
 */

TEST(a_load_fills_base_limit_and_attributes)
{
	struct fixture *f = fixture_create(FIX_PROT32);
	const struct cpu_seg *s = &f->cpu->seg[X86_FS];

	fixture_gdt(f, FIX_FREE, ATTR_DATA | ATTR_DPL(3) | X86_SEG_G | X86_SEG_AVL, 0x89abcdef,
		    0x12345);
	CHECK_EQ(0, fixture_load_seg(f, X86_FS, FREE_SEL(3)));
	CHECK_EQ(FREE_SEL(3), s->selector);
	CHECK_EQ(0x89abcdef, s->base);
	CHECK_EQ(0x12345fff, s->limit);
	CHECK_EQ(ATTR_DATA | ATTR_DPL(3) | X86_SEG_G | X86_SEG_AVL | SEG_TYPE_ACCESSED, s->attr);
}

TEST(a_byte_limit_is_not_scaled)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, ATTR_DATA, 0, 0xfffff);
	CHECK_EQ(0, fixture_load_seg(f, X86_FS, FREE_SEL(0)));
	CHECK_EQ(0xfffff, f->cpu->seg[X86_FS].limit);
	CHECK_EQ(0, f->cpu->seg[X86_FS].flat);
}

TEST(a_load_sets_the_accessed_bit_in_memory)
{
	struct fixture *f = fixture_create(FIX_PROT32);
	gpa_t type = FIX_GDT + FIX_FREE * 8 + 5;

	fixture_gdt(f, FIX_FREE, ATTR_DATA | ATTR_32, 0, 0xfffff);
	CHECK_EQ(0x92, fix_get(f, type, 1));
	CHECK_EQ(0, fixture_load_seg(f, X86_FS, FREE_SEL(0)));
	CHECK_EQ(0x93, fix_get(f, type, 1));
}

TEST(a_refused_load_changes_neither_register_nor_descriptor)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, (ATTR_DATA & ~X86_SEG_P) | ATTR_32, 0, 0xfffff);
	CHECK_EQ(NP(FREE_ERR), fixture_load_seg(f, X86_FS, FREE_SEL(0)));
	CHECK_EQ(SEL(FIX_DS0, 0), f->cpu->seg[X86_FS].selector);
	CHECK_EQ(0x12, fix_get(f, FIX_GDT + FIX_FREE * 8 + 5, 1));
}

TEST(the_ldt_is_used_when_ti_is_set)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ldt(f, 5, ATTR_DATA | ATTR_32, 0x777000, 0xfffff);
	CHECK_EQ(0, fixture_load_seg(f, X86_GS, LDT_SEL(5, 0)));
	CHECK_EQ(0x777000, f->cpu->seg[X86_GS].base);
}

TEST(loading_null_clears_the_base_and_makes_the_register_unusable)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	f->cpu->seg[X86_GS].base = 0xffff888000000000;
	CHECK_EQ(0, fixture_load_seg(f, X86_GS, 0));
	CHECK_EQ(0, f->cpu->seg[X86_GS].base);
	CHECK(f->cpu->seg[X86_GS].attr & X86_SEG_UNUSABLE);
}

TEST(a_16_bit_ss_makes_the_stack_16_bit)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, ATTR_DATA, 0, 0xffff);
	CHECK_EQ(0xffffffff, f->cpu->sp_mask);
	CHECK_EQ(0, fixture_load_seg(f, X86_SS, FREE_SEL(0)));
	CHECK_EQ(0xffff, f->cpu->sp_mask);
}

TEST(real_mode_changes_only_the_base)
{
	struct fixture *f = fixture_create(FIX_REAL);

	f->cpu->seg[X86_DS].limit = 0xffffffff;
	CHECK_EQ(0, fixture_load_seg(f, X86_DS, 0x1234));
	CHECK_EQ(0x12340, f->cpu->seg[X86_DS].base);
	CHECK_EQ(0x1234, f->cpu->seg[X86_DS].selector);
	CHECK_EQ(0xffffffff, f->cpu->seg[X86_DS].limit);
}

TEST(v86_mode_gives_fixed_limits_and_rights)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->rflags |= RFLAGS_VM;
	cpu_mode_update(f->cpu);
	CHECK_EQ(0, fixture_load_seg(f, X86_DS, 0xf00f));
	CHECK_EQ(0xf00f0, f->cpu->seg[X86_DS].base);
	CHECK_EQ(0xffff, f->cpu->seg[X86_DS].limit);
	CHECK_EQ(0xf3, f->cpu->seg[X86_DS].attr);
}

/* --- accesses ----------------------------------------------------------------------------------
 */

struct access_row {
	const char *name;
	unsigned seg;
	uint32_t attr, base, limit;
	uint64_t off;
	unsigned size;
	bool write;
	uint32_t want;
	uint64_t lin;
};

#define EXPAND_DOWN (ATTR_DATA | SEG_TYPE_EXPAND)
#define XONLY       (ATTR_CODE & ~SEG_TYPE_RW)
#define RONLY       (ATTR_DATA & ~SEG_TYPE_RW)

// clang-format off
static const struct access_row access_rows[] = {
	{"last byte",                   X86_DS, ATTR_DATA, 0x100, 0xfff, 0xfff, 1, true, 0, 0x10ff},
	{"one byte too far",            X86_DS, ATTR_DATA, 0x100, 0xfff, 0x1000, 1, true, GP(0), 0},
	{"last word",                   X86_DS, ATTR_DATA, 0x100, 0xfff, 0xffe, 2, true, 0, 0x10fe},
	{"word half outside",           X86_DS, ATTR_DATA, 0x100, 0xfff, 0xfff, 2, false, GP(0), 0},
	{"stack: #SS",                  X86_SS, ATTR_DATA | ATTR_32, 0, 0, 0x1000, 1, true, SS(0), 0},
	{"flat",                        X86_DS, ATTR_DATA | ATTR_32, 0x1000, 0xfffff, 0x5000, 8, true, 0, 0x6000},
	{"flat wraps at 4 GiB",         X86_DS, ATTR_DATA | ATTR_32, 0x1000, 0xfffff, 0xfffff800, 4, true, 0, 0x800},
	{"read of read-only data",      X86_DS, RONLY | ATTR_32, 0, 0xfffff, 4, 4, false, 0, 4},
	{"write to read-only data",     X86_DS, RONLY | ATTR_32, 0, 0xfffff, 4, 4, true, GP(0), 0},
	{"read of code",                X86_DS, ATTR_CODE | ATTR_32, 0, 0xfffff, 4, 4, false, 0, 4},
	{"write to code",               X86_DS, ATTR_CODE | ATTR_32, 0, 0xfffff, 4, 4, true, GP(0), 0},
	{"expand-down: at the limit",   X86_DS, EXPAND_DOWN | X86_SEG_DB, 0, 0xfff, 0xfff, 1, true, GP(0), 0},
	{"expand-down: above it",       X86_DS, EXPAND_DOWN | X86_SEG_DB, 0, 0xfff, 0x1000, 1, true, 0, 0x1000},
	{"expand-down: top, 32-bit",    X86_DS, EXPAND_DOWN | X86_SEG_DB, 0, 0xfff, 0xffffffff, 1, true, 0, 0xffffffff},
	{"expand-down: over the top",   X86_DS, EXPAND_DOWN | X86_SEG_DB, 0, 0xfff, 0xffffffff, 2, true, GP(0), 0},
	{"expand-down: top, 16-bit",    X86_DS, EXPAND_DOWN, 0, 0xfff, 0xffff, 1, true, 0, 0xffff},
	{"expand-down: over 64 KiB",    X86_DS, EXPAND_DOWN, 0, 0xfff, 0x10000, 1, true, GP(0), 0},
	{"expand-down: nothing left",   X86_DS, EXPAND_DOWN | ATTR_32, 0, 0xfffff, 0x1000, 1, true, GP(0), 0},
};
// clang-format on

struct access_arg {
	const struct access_row *row;
	gva_t lin;
};

static void do_linear(struct fixture *f, const void *arg)
{
	struct access_arg *a = (struct access_arg *)arg;
	const struct access_row *r = a->row;

	a->lin = seg_linear(f->cpu, r->seg, r->off, r->size, r->write);
}

TEST(an_access_is_checked_against_limit_and_type)
{
	for (unsigned i = 0; i < ARRAY_SIZE(access_rows); i++) {
		const struct access_row *r = &access_rows[i];
		struct fixture *f = fixture_create(FIX_PROT32);
		struct access_arg a = {.row = r};

		fixture_gdt(f, FIX_FREE, r->attr, r->base, r->limit);
		CHECK_ROW(r->name, 0, fixture_load_seg(f, r->seg, FREE_SEL(0)));
		CHECK_ROW(r->name, r->want, fixture_try(f, do_linear, &a));
		CHECK_ROW(r->name, r->lin, a.lin);
	}
}

TEST(an_access_through_a_null_segment_faults)
{
	static const struct access_row ds = {.seg = X86_DS, .size = 1};
	struct fixture *f = fixture_create(FIX_PROT32);
	struct access_arg a = {.row = &ds};

	CHECK_EQ(0, fixture_load_seg(f, X86_DS, 0));
	CHECK_EQ(GP(0), fixture_try(f, do_linear, &a));
}

TEST(execute_only_code_cannot_be_read)
{
	static const struct access_row cs = {.seg = X86_CS, .size = 1};
	struct fixture *f = fixture_create(FIX_PROT32);
	struct access_arg a = {.row = &cs};

	CHECK_EQ(0, fixture_try(f, do_linear, &a));
	f->cpu->seg[X86_CS].attr &= ~SEG_TYPE_RW;
	seg_update_flat_all(f->cpu);
	CHECK_EQ(GP(0), fixture_try(f, do_linear, &a));
}

TEST(sixty_four_bit_mode_checks_canonical_addresses_only)
{
	static const struct access_row low = {.seg = X86_DS, .off = 0x7ffffffffff8, .size = 8};
	static const struct access_row over = {.seg = X86_DS, .off = 0x7ffffffffff9, .size = 8};
	static const struct access_row stack = {.seg = X86_SS, .off = 0x800000000000, .size = 8};
	struct fixture *f = fixture_create(FIX_LONG64);
	struct access_arg a = {.row = &low};

	CHECK_EQ(0, fixture_try(f, do_linear, &a));
	CHECK_EQ(0x7ffffffffff8, a.lin);
	a.row = &over;
	CHECK_EQ(GP(0), fixture_try(f, do_linear, &a));
	a.row = &stack;
	CHECK_EQ(SS(0), fixture_try(f, do_linear, &a));
	f->cpu->cr4 |= CR4_LA57;
	cpu_mode_update(f->cpu);
	CHECK_EQ(0, fixture_try(f, do_linear, &a));
}

TEST(big_real_mode_reaches_above_64_kib)
{
	static const struct access_row high = {
		.seg = X86_DS, .off = 0x123456, .size = 4, .write = true};
	struct fixture *f = fixture_create(FIX_REAL);
	struct access_arg a = {.row = &high};

	CHECK_EQ(GP(0), fixture_try(f, do_linear, &a));
	f->cpu->seg[X86_DS].limit = 0xffffffff;
	CHECK_EQ(0, fixture_load_seg(f, X86_DS, 0x10));
	CHECK_EQ(0, fixture_try(f, do_linear, &a));
	CHECK_EQ(0x123556, a.lin);
}

/* --- MOV, PUSH, POP, LDS -----------------------------------------------------------------------
 */

static void set_reg_forms(struct fixture *f, unsigned modrm_reg, unsigned opsize)
{
	f->in = (struct insn){
		.modrm = (uint8_t)(0xc0 | modrm_reg << 3),
		.opsize = (uint8_t)opsize,
		.rm = CPU_GPR_OFF(X86_RAX),
		.reg = CPU_GPR_OFF(X86_RCX),
	};
}

TEST(mov_from_a_selector_fills_the_operand_size)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->gpr[X86_RAX] = ~0ull;
	set_reg_forms(f, X86_CS, 2);
	CHECK_EQ(0, fixture_exec(f, exec_mov_ES_r));
	CHECK_EQ(0xffffffffffff0008, f->cpu->gpr[X86_RAX]);
	set_reg_forms(f, X86_CS, 4);
	CHECK_EQ(0, fixture_exec(f, exec_mov_ES_r));
	CHECK_EQ(8, f->cpu->gpr[X86_RAX]);
}

TEST(mov_to_cs_is_an_invalid_opcode)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	set_reg_forms(f, X86_CS, 2);
	CHECK_EQ(FAULT_PLAIN(X86_EXC_UD), fixture_exec(f, exec_mov_SE_r));
}

TEST(mov_to_ss_shadows_the_next_instruction)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->gpr[X86_RAX] = SEL(FIX_DS0, 0);
	set_reg_forms(f, X86_DS, 4);
	CHECK_EQ(0, fixture_exec(f, exec_mov_SE_r));
	CHECK_EQ(0, f->cpu->int_shadow);
	set_reg_forms(f, X86_SS, 4);
	CHECK_EQ(0, fixture_exec(f, exec_mov_SE_r));
	CHECK_EQ(CPU_SHADOW_SS, f->cpu->int_shadow);
}

TEST(push_and_pop_of_a_segment_move_the_stack_by_the_operand_size)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->in = (struct insn){.opcode = 0x1e, .opsize = 4};
	CHECK_EQ(0, fixture_exec(f, exec_push_S));
	CHECK_EQ(FIX_STACK - 4, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(SEL(FIX_DS0, 0), fix_get(f, FIX_STACK - 4, 4));
	f->in = (struct insn){.opcode = 0xa9, .opsize = 4};
	fix_put(f, FIX_STACK - 4, 4, 0);
	CHECK_EQ(0, fixture_exec(f, exec_pop_S));
	CHECK_EQ(FIX_STACK, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0, f->cpu->seg[X86_GS].selector);
}

TEST(a_faulting_pop_leaves_the_stack_pointer)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->in = (struct insn){.opcode = 0x1f, .opsize = 4};
	fix_put(f, FIX_STACK, 4, SEL(FIX_TSS_IDX, 0));
	CHECK_EQ(GP(FIX_TSS_IDX << 3), fixture_exec(f, exec_pop_S));
	CHECK_EQ(FIX_STACK, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(FIX_CODE, f->cpu->rip);
}

static void set_far_memory(struct fixture *f, gpa_t at, unsigned opsize)
{
	f->in = (struct insn){
		.flags = INSN_MEM,
		.disp = (int32_t)at,
		.base = CPU_OFF(zero),
		.index = CPU_OFF(zero),
		.segbase = CPU_OFF(seg[X86_DS].base),
		.seg = X86_DS,
		.opsize = (uint8_t)opsize,
		.adsize = 4,
		.reg = CPU_GPR_OFF(X86_RSI),
		.rm = CPU_GPR_OFF(X86_RAX),
	};
}

TEST(les_loads_both_or_neither)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	f->cpu->gpr[X86_RSI] = 0x11111111;
	fix_put(f, 0x20000, 4, 0xcafebabe);
	fix_put(f, 0x20004, 2, SEL(FIX_TSS_IDX, 0));
	set_far_memory(f, 0x20000, 4);
	CHECK_EQ(GP(FIX_TSS_IDX << 3), fixture_exec(f, exec_les_32));
	CHECK_EQ(0x11111111, f->cpu->gpr[X86_RSI]);
	fix_put(f, 0x20004, 2, SEL(FIX_DS3, 3));
	CHECK_EQ(0, fixture_exec(f, exec_les_32));
	CHECK_EQ(0xcafebabe, f->cpu->gpr[X86_RSI]);
	CHECK_EQ(SEL(FIX_DS3, 3), f->cpu->seg[X86_ES].selector);
}

/* --- LDTR and TR -------------------------------------------------------------------------------
 */

struct sys_row {
	const char *name;
	enum fix_mode mode;
	unsigned cpl;
	uint16_t sel;
	uint32_t attr; /* of the descriptor at FIX_FREE */
	uint64_t high; /* its second half, for long mode */
	uint32_t want;
};

static void check_sys_rows(const struct sys_row *rows, unsigned n, insn_exec *exec)
{
	for (unsigned i = 0; i < n; i++) {
		const struct sys_row *r = &rows[i];
		struct fixture *f = fixture_create(r->mode);

		fixture_ring(f, r->cpl);
		fixture_gdt(f, FIX_FREE, r->attr, 0x5000, 0xff);
		fix_put(f, FIX_GDT + FIX_FREE * 8 + 8, 8, r->high);
		set_reg_forms(f, 0, 2);
		f->cpu->gpr[X86_RAX] = r->sel;
		CHECK_ROW(r->name, r->want, fixture_exec(f, exec));
	}
}

#define LDT_GOOD ATTR_SYS(DESC_LDT)
#define TSS_GOOD ATTR_SYS(DESC_TSS)

// clang-format off
static const struct sys_row lldt_rows[] = {
	{"good",                   FIX_PROT32, 0, FREE_SEL(0), LDT_GOOD, 0, 0},
	{"RPL does not matter",    FIX_PROT32, 0, FREE_SEL(3), LDT_GOOD, 0, 0},
	{"null",                   FIX_PROT32, 0, 3, LDT_GOOD, 0, 0},
	{"not ring 0",             FIX_PROT32, 1, FREE_SEL(0), LDT_GOOD, 0, GP(0)},
	{"in the LDT",             FIX_PROT32, 0, LDT_SEL(3, 0), LDT_GOOD, 0, GP(0x1c)},
	{"outside the GDT",        FIX_PROT32, 0, SEL(600, 0), LDT_GOOD, 0, GP(600 << 3)},
	{"a TSS",                  FIX_PROT32, 0, FREE_SEL(0), TSS_GOOD, 0, GP(FREE_ERR)},
	{"writable data, type 2",  FIX_PROT32, 0, FREE_SEL(0), ATTR_DATA, 0, GP(FREE_ERR)},
	{"not present",            FIX_PROT32, 0, FREE_SEL(0), DESC_LDT, 0, NP(FREE_ERR)},
	{"long: good",             FIX_LONG64, 0, FREE_SEL(0), LDT_GOOD, 0xffff8000, 0},
	{"long: base of 57 bits",  FIX_LONG64, 0, FREE_SEL(0), LDT_GOOD, 0x8000, 0},
	{"long: base not canonical", FIX_LONG64, 0, FREE_SEL(0), LDT_GOOD, 0x01000000, GP(FREE_ERR)},
	{"long: type in second half", FIX_LONG64, 0, FREE_SEL(0), LDT_GOOD, 0x020000000000, GP(FREE_ERR)},
	{"long: half outside",     FIX_LONG64, 0, SEL(511, 0), LDT_GOOD, 0, GP(511 << 3)},
};
static const struct sys_row ltr_rows[] = {
	{"good",                   FIX_PROT32, 0, FREE_SEL(0), TSS_GOOD, 0, 0},
	{"16-bit",                 FIX_PROT32, 0, FREE_SEL(0), ATTR_SYS(DESC_TSS16), 0, 0},
	{"null",                   FIX_PROT32, 0, 0, TSS_GOOD, 0, GP(0)},
	{"not ring 0",             FIX_PROT32, 3, FREE_SEL(0), TSS_GOOD, 0, GP(0)},
	{"in the LDT",             FIX_PROT32, 0, LDT_SEL(3, 0), TSS_GOOD, 0, GP(0x1c)},
	{"busy",                   FIX_PROT32, 0, FREE_SEL(0), ATTR_SYS(DESC_TSS_BUSY), 0, GP(FREE_ERR)},
	{"busy, 16-bit",           FIX_PROT32, 0, FREE_SEL(0), ATTR_SYS(DESC_TSS16_BUSY), 0, GP(FREE_ERR)},
	{"an LDT",                 FIX_PROT32, 0, FREE_SEL(0), LDT_GOOD, 0, GP(FREE_ERR)},
	{"not present",            FIX_PROT32, 0, FREE_SEL(0), DESC_TSS, 0, NP(FREE_ERR)},
	{"long: good",             FIX_LONG64, 0, FREE_SEL(0), TSS_GOOD, 0, 0},
	{"long: 16-bit",           FIX_LONG64, 0, FREE_SEL(0), ATTR_SYS(DESC_TSS16), 0, GP(FREE_ERR)},
};
// clang-format on

TEST(lldt_accepts_a_present_ldt_in_the_gdt)
{
	check_sys_rows(lldt_rows, ARRAY_SIZE(lldt_rows), exec_lldt_E_r);
}

TEST(ltr_accepts_a_present_available_tss_in_the_gdt)
{
	check_sys_rows(ltr_rows, ARRAY_SIZE(ltr_rows), exec_ltr_E_r);
}

TEST(ltr_marks_the_tss_busy)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	fixture_gdt(f, FIX_FREE, TSS_GOOD, 0x5000, 0x67);
	fix_put(f, FIX_GDT + FIX_FREE * 8 + 8, 8, 0xffff8880);
	set_reg_forms(f, 0, 2);
	f->cpu->gpr[X86_RAX] = FREE_SEL(0);
	CHECK_EQ(0, fixture_exec(f, exec_ltr_E_r));
	CHECK_EQ(0x8b, fix_get(f, FIX_GDT + FIX_FREE * 8 + 5, 1));
	CHECK_EQ(0xffff888000005000, f->cpu->tr.base);
	CHECK_EQ(DESC_TSS_BUSY, X86_SEG_TYPE(f->cpu->tr.attr));
}

TEST(str_is_hidden_from_user_programs_by_umip)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, 3);
	set_reg_forms(f, 0, 4);
	CHECK_EQ(0, fixture_exec(f, exec_str_E_r));
	CHECK_EQ(SEL(FIX_TSS_IDX, 0), f->cpu->gpr[X86_RAX]);
	f->cpu->cr4 |= CR4_UMIP;
	CHECK_EQ(GP(0), fixture_exec(f, exec_str_E_r));
}

TEST(real_mode_does_not_know_the_selector_instructions)
{
	struct fixture *f = fixture_create(FIX_REAL);

	set_reg_forms(f, 0, 2);
	CHECK_EQ(FAULT_PLAIN(X86_EXC_UD), fixture_exec(f, exec_lldt_E_r));
	CHECK_EQ(FAULT_PLAIN(X86_EXC_UD), fixture_exec(f, exec_sldt_E_r));
	CHECK_EQ(FAULT_PLAIN(X86_EXC_UD), fixture_exec(f, exec_lar_GE_r));
	CHECK_EQ(FAULT_PLAIN(X86_EXC_UD), fixture_exec(f, exec_verr_E_r));
	CHECK_EQ(FAULT_PLAIN(X86_EXC_UD), fixture_exec(f, exec_arpl_EG_r));
}

/* --- LAR, LSL, VERR, VERW, ARPL ----------------------------------------------------------------
 */

enum { LAR = 1, LSL = 2, VERR = 4, VERW = 8 };

struct query_row {
	const char *name;
	enum fix_mode mode;
	unsigned cpl, rpl;
	uint32_t attr;
	unsigned yes; /* instructions that set ZF */
};

// clang-format off
static const struct query_row query_rows[] = {
	{"data",                   FIX_PROT32, 0, 0, ATTR_DATA, LAR | LSL | VERR | VERW},
	{"data, DPL < CPL",        FIX_PROT32, 3, 0, ATTR_DATA, 0},
	{"data, DPL < RPL",        FIX_PROT32, 0, 1, ATTR_DATA, 0},
	{"read-only data",         FIX_PROT32, 0, 0, RONLY, LAR | LSL | VERR},
	{"not present: still told", FIX_PROT32, 0, 0, ATTR_DATA & ~X86_SEG_P, LAR | LSL | VERR | VERW},
	{"readable code",          FIX_PROT32, 0, 0, ATTR_CODE, LAR | LSL | VERR},
	{"execute-only code",      FIX_PROT32, 0, 0, XONLY, LAR | LSL},
	{"conforming, any ring",   FIX_PROT32, 3, 3, ATTR_CODE | CONFORMING, LAR | LSL | VERR},
	{"conforming, unreadable", FIX_PROT32, 3, 3, XONLY | CONFORMING, LAR | LSL},
	{"reserved type 0",        FIX_PROT32, 0, 0, ATTR_SYS(0), 0},
	{"16-bit TSS",             FIX_PROT32, 0, 0, ATTR_SYS(DESC_TSS16), LAR | LSL},
	{"LDT",                    FIX_PROT32, 0, 0, LDT_GOOD, LAR | LSL},
	{"busy 16-bit TSS",        FIX_PROT32, 0, 0, ATTR_SYS(DESC_TSS16_BUSY), LAR | LSL},
	{"16-bit call gate",       FIX_PROT32, 0, 0, ATTR_SYS(DESC_CALL16), LAR},
	{"task gate",              FIX_PROT32, 0, 0, ATTR_SYS(DESC_TASK_GATE), LAR},
	{"16-bit interrupt gate",  FIX_PROT32, 0, 0, ATTR_SYS(DESC_INT16), 0},
	{"16-bit trap gate",       FIX_PROT32, 0, 0, ATTR_SYS(DESC_TRAP16), 0},
	{"reserved type 8",        FIX_PROT32, 0, 0, ATTR_SYS(8), 0},
	{"TSS",                    FIX_PROT32, 0, 0, TSS_GOOD, LAR | LSL},
	{"busy TSS",               FIX_PROT32, 0, 0, ATTR_SYS(DESC_TSS_BUSY), LAR | LSL},
	{"call gate",              FIX_PROT32, 0, 0, ATTR_SYS(DESC_CALL), LAR},
	{"interrupt gate",         FIX_PROT32, 0, 0, ATTR_SYS(DESC_INT), 0},
	{"trap gate",              FIX_PROT32, 0, 0, ATTR_SYS(DESC_TRAP), 0},
	{"long: data",             FIX_LONG64, 0, 0, ATTR_DATA, LAR | LSL | VERR | VERW},
	{"long: 16-bit TSS",       FIX_LONG64, 0, 0, ATTR_SYS(DESC_TSS16), 0},
	{"long: LDT",              FIX_LONG64, 0, 0, LDT_GOOD, LAR | LSL},
	{"long: 16-bit call gate", FIX_LONG64, 0, 0, ATTR_SYS(DESC_CALL16), 0},
	{"long: task gate",        FIX_LONG64, 0, 0, ATTR_SYS(DESC_TASK_GATE), 0},
	{"long: TSS",              FIX_LONG64, 0, 0, TSS_GOOD, LAR | LSL},
	{"long: call gate",        FIX_LONG64, 0, 0, ATTR_SYS(DESC_CALL), LAR},
};
// clang-format on

static bool says_yes(struct fixture *f, insn_exec *exec, const struct query_row *r)
{
	set_reg_forms(f, 0, 4);
	f->cpu->gpr[X86_RAX] = FREE_SEL(r->rpl);
	CHECK_ROW(r->name, 0, fixture_exec(f, exec));
	return f->cpu->cc & RFLAGS_ZF;
}

TEST(lar_lsl_verr_verw_know_which_descriptors_they_are_for)
{
	for (unsigned i = 0; i < ARRAY_SIZE(query_rows); i++) {
		const struct query_row *r = &query_rows[i];
		struct fixture *f = fixture_create(r->mode);
		unsigned yes = 0;

		fixture_ring(f, r->cpl);
		fixture_gdt(f, FIX_FREE, r->attr, 0, 0xff);
		yes |= says_yes(f, exec_lar_GE_r, r) ? LAR : 0;
		yes |= says_yes(f, exec_lsl_GE_r, r) ? LSL : 0;
		yes |= says_yes(f, exec_verr_E_r, r) ? VERR : 0;
		yes |= says_yes(f, exec_verw_E_r, r) ? VERW : 0;
		CHECK_ROW(r->name, r->yes, yes);
	}
}

TEST(lar_and_lsl_return_rights_and_scaled_limit)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_gdt(f, FIX_FREE, ATTR_DATA | ATTR_DPL(3) | ATTR_32 | X86_SEG_AVL, 0x12345678,
		    0x54321);
	set_reg_forms(f, 0, 4);
	f->cpu->gpr[X86_RAX] = FREE_SEL(0);
	CHECK_EQ(0, fixture_exec(f, exec_lar_GE_r));
	CHECK_EQ(0xd5f200, f->cpu->gpr[X86_RCX]);
	CHECK_EQ(0, fixture_exec(f, exec_lsl_GE_r));
	CHECK_EQ(0x54321fff, f->cpu->gpr[X86_RCX]);
}

TEST(a_failed_lar_leaves_the_register)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	set_reg_forms(f, 0, 4);
	f->cpu->gpr[X86_RCX] = 0x1234;
	f->cpu->gpr[X86_RAX] = 0;
	f->cpu->cc = RFLAGS_ZF;
	CHECK_EQ(0, fixture_exec(f, exec_lar_GE_r));
	CHECK_EQ(0x1234, f->cpu->gpr[X86_RCX]);
	CHECK_EQ(0, f->cpu->cc & RFLAGS_ZF);
}

TEST(arpl_raises_the_rpl_and_says_so)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	set_reg_forms(f, 0, 2);
	f->cpu->gpr[X86_RAX] = 0x20;
	f->cpu->gpr[X86_RCX] = 0x33;
	CHECK_EQ(0, fixture_exec(f, exec_arpl_EG_r));
	CHECK_EQ(0x23, f->cpu->gpr[X86_RAX]);
	CHECK(f->cpu->cc & RFLAGS_ZF);
	CHECK_EQ(0, fixture_exec(f, exec_arpl_EG_r));
	CHECK_EQ(0x23, f->cpu->gpr[X86_RAX]);
	CHECK(!(f->cpu->cc & RFLAGS_ZF));
}
