/* Control and debug registers, MSRs, CPUID and the other system instructions: what is #GP, what is
 * #UD, and what a write changes.  SDM 2 (each instruction's page), SDM 3A "Control Registers". */
#include "soft_fixture.h"

#include "engine/soft/debug.h"
#include "engine/soft/system.h"

#define GP0 FAULT(X86_EXC_GP, 0)
#define UD  FAULT_PLAIN(X86_EXC_UD)

/* --- a CPU of model max over a machine that knows one MSR ------------------------------------- */

enum { MACHINE_MSR = 0x4b564d00 };

static struct {
	uint64_t msr, cr8;
	unsigned hypercalls;
} machine;

static bool machine_msr_read(void *opaque, uint32_t index, uint64_t *v)
{
	*v = machine.msr;
	return index == MACHINE_MSR;
}

static bool machine_msr_write(void *opaque, uint32_t index, uint64_t v)
{
	if (index == MACHINE_MSR)
		machine.msr = v;
	return index == MACHINE_MSR;
}

static uint8_t machine_cr8_read(void *opaque)
{
	return (uint8_t)machine.cr8;
}

static void machine_cr8_write(void *opaque, uint8_t v)
{
	machine.cr8 = v;
}

static void machine_cpuid(void *opaque, uint32_t leaf, uint32_t sub, uint32_t regs[4])
{
	if (leaf == 0x40000000)
		regs[1] = 0x12345678;
	if (leaf == 1)
		regs[2] |= 1u << 27; /* not the machine's to say: must not be believed */
}

static struct fixture *make(enum fix_mode mode)
{
	struct fixture *f = fixture_create(mode);

	if (cpu_model_resolve(&f->model, "max", NULL))
		abort();
	f->ops.msr_read = machine_msr_read;
	f->ops.msr_write = machine_msr_write;
	f->ops.cr8_read = machine_cr8_read;
	f->ops.cr8_write = machine_cr8_write;
	f->ops.cpuid = machine_cpuid;
	return f;
}

/* Long mode with an identity map of the first GiB. */
static struct fixture *make_long(void)
{
	struct fixture *f = make(FIX_LONG64);

	fix_put(f, 0x100000, 8, 0x101000 | PTE_P | PTE_W | PTE_U);
	fix_put(f, 0x101000, 8, PTE_P | PTE_W | PTE_U | PTE_PS);
	f->cpu->cr0 |= CR0_PG;
	f->cpu->cr4 |= CR4_PAE;
	f->cpu->cr3 = 0x100000;
	tlb_flush_all(f->cpu);
	cpu_mode_update(f->cpu);
	return f;
}

enum cr { W_CR0, W_CR3, W_CR4 };

struct cr_write {
	enum cr cr;
	uint64_t v;
};

static void do_cr(struct fixture *f, const void *arg)
{
	const struct cr_write *w = arg;

	if (w->cr == W_CR0)
		cpu_write_cr0(f->cpu, w->v);
	else if (w->cr == W_CR3)
		cpu_write_cr3(f->cpu, w->v);
	else
		cpu_write_cr4(f->cpu, w->v);
}

static uint32_t write_cr(struct fixture *f, enum cr cr, uint64_t v)
{
	struct cr_write w = {cr, v};

	return fixture_try(f, do_cr, &w);
}

/* A register operand in RAX, instruction register number n in ModRM.reg. */
static uint32_t exec_reg(struct fixture *f, insn_exec *exec, unsigned n, unsigned opsize)
{
	f->in = (struct insn){.vreg = (uint8_t)n,
			      .reg = CPU_GPR_OFF(n),
			      .rm = CPU_GPR_OFF(X86_RAX),
			      .opsize = (uint8_t)opsize};
	return fixture_exec(f, exec);
}

/* A memory operand at [rbx]. */
static uint32_t exec_mem(struct fixture *f, insn_exec *exec, gva_t at, unsigned reg,
			 unsigned opsize)
{
	f->cpu->gpr[X86_RBX] = at;
	f->in = (struct insn){.reg = CPU_GPR_OFF(reg),
			      .base = CPU_GPR_OFF(X86_RBX),
			      .index = CPU_OFF(zero),
			      .segbase = CPU_OFF(seg[X86_DS].base),
			      .seg = X86_DS,
			      .adsize = f->cpu->mode == INSN_MODE_64 ? 8 : 4,
			      .flags = INSN_MEM | (f->cpu->mode == INSN_MODE_64 ? INSN_FLAT : 0),
			      .opsize = (uint8_t)opsize};
	if (f->cpu->mode == INSN_MODE_64)
		f->in.segbase = CPU_OFF(zero);
	return fixture_exec(f, exec);
}

/* --- CR0 -------------------------------------------------------------------------------------- */

TEST(cr0_combinations_that_make_no_sense_are_refused)
{
	// clang-format off
	static const struct { uint64_t set, clear; uint32_t want; } rows[] = {
		{0, 0, 0},
		{CR0_NW, CR0_CD, GP0},
		{CR0_NW | CR0_CD, 0, 0},
		{CR0_CD, CR0_NW, 0},
		{CR0_PG, CR0_PE, GP0},
		{BIT(32), 0, GP0},
		{BIT(63), 0, GP0},
		{BIT(6) | BIT(17) | BIT(28), 0, 0}, /* reserved below bit 32: ignored */
		{0, CR0_ET, 0},                     /* stays set */
	};
	// clang-format on

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		struct fixture *f = make(FIX_PROT32);
		uint64_t v = ((f->cpu->cr0 | CR0_ET) & ~rows[i].clear) | rows[i].set;

		CHECK_EQ(rows[i].want, write_cr(f, W_CR0, v));
		CHECK_EQ(0, f->cpu->cr0 & (BIT(6) | BIT(17) | BIT(28)));
		CHECK(rows[i].want || f->cpu->cr0 & CR0_ET);
	}
}

TEST(paging_in_long_mode_needs_pae_and_a_32_bit_code_segment)
{
	for (unsigned n = 0; n < 4; n++) {
		struct fixture *f = make(FIX_PROT32);
		bool pae = n & 1, cs_l = n & 2;

		f->cpu->efer |= EFER_LME;
		f->cpu->cr4 |= pae ? CR4_PAE : 0;
		f->cpu->seg[X86_CS].attr |= cs_l ? X86_SEG_L : 0;
		CHECK_EQ(pae && !cs_l ? 0 : GP0, write_cr(f, W_CR0, f->cpu->cr0 | CR0_PG));
		CHECK_EQ(pae && !cs_l, f->cpu->long_mode);
		CHECK_EQ(pae && !cs_l, (f->cpu->efer & EFER_LMA) != 0);
	}
}

TEST(paging_goes_off_from_compatibility_mode_only_and_without_pcids)
{
	struct fixture *f = make_long();
	uint64_t off = f->cpu->cr0 & ~CR0_PG;

	CHECK_EQ(GP0, write_cr(f, W_CR0, off));
	f->cpu->seg[X86_CS].attr &= ~X86_SEG_L;
	cpu_mode_update(f->cpu);
	f->cpu->cr4 |= CR4_PCIDE;
	CHECK_EQ(GP0, write_cr(f, W_CR0, off));
	CHECK(f->cpu->long_mode);
	f->cpu->cr4 &= ~CR4_PCIDE;
	CHECK_EQ(0, write_cr(f, W_CR0, off));
	CHECK(!f->cpu->long_mode);
	CHECK_EQ(EFER_LME, f->cpu->efer & (EFER_LME | EFER_LMA));
}

TEST(pae_paging_is_refused_with_bad_directory_pointers)
{
	struct fixture *f = make(FIX_PROT32);

	f->cpu->cr4 |= CR4_PAE;
	f->cpu->cr3 = 0x100000;
	fix_put(f, 0x100008, 8, 0x101000 | PTE_P | PTE_W); /* bit 1 is reserved */
	CHECK_EQ(GP0, write_cr(f, W_CR0, f->cpu->cr0 | CR0_PG));
	CHECK_EQ(PAGING_NONE, f->cpu->paging);
	fix_put(f, 0x100008, 8, 0x101000 | PTE_P);
	CHECK_EQ(0, write_cr(f, W_CR0, f->cpu->cr0 | CR0_PG));
	CHECK_EQ(PAGING_PAE, f->cpu->paging);
	CHECK_EQ(0x101001, f->cpu->pdpte[1]);
	fix_put(f, 0x100020, 8, 0x102000 | PTE_P | BIT(8));
	CHECK_EQ(GP0, write_cr(f, W_CR3, 0x100020));
	CHECK_EQ(0x100000, f->cpu->cr3);
	fix_put(f, 0x100008, 8, 0x101000 | PTE_P | BIT(2));
	CHECK_EQ(GP0, write_cr(f, W_CR4, f->cpu->cr4 | CR4_PGE));
	CHECK_EQ(0, write_cr(f, W_CR4, f->cpu->cr4 | CR4_DE)); /* does not load them */
}

/* --- CR3 and CR4 ------------------------------------------------------------------------------ */

TEST(cr3_bits_above_the_physical_width_are_refused)
{
	struct fixture *f = make_long();

	f->model.phys_bits = 46;
	for (unsigned bit = 0; bit < 64; bit++) {
		CHECK_EQ(bit >= 46 ? GP0 : 0, write_cr(f, W_CR3, 0x100000 | BIT(bit)));
		f->cpu->cr3 = 0x100000;
	}
	f->cpu->cr4 |= CR4_PCIDE;
	CHECK_EQ(0, write_cr(f, W_CR3, 0x100000 | BIT(63) | 5));
	CHECK_EQ(0x100005, f->cpu->cr3); /* bit 63 is not kept */
	CHECK_EQ(GP0, write_cr(f, W_CR3, 0x100000 | BIT(62)));
}

TEST(cr4_bits_of_features_not_offered_are_refused)
{
	struct fixture *f = make(FIX_PROT32);
	// clang-format off
	static const struct { uint64_t bit; const char *without; } rows[] = {
		{CR4_UMIP, "max,-umip"}, {CR4_SMEP, "max,-smep"},   {CR4_SMAP, "max,-smap"},
		{CR4_PKE, "max,-pku"},   {CR4_LA57, "max,-la57"},   {CR4_FSGSBASE, "max,-fsgsbase"},
		{CR4_PGE, "max,-pge"},   {CR4_OSXSAVE, "max,-xsave"},
	};
	// clang-format on

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		CHECK_EQ(0, cpu_model_resolve(&f->model, "max", NULL));
		CHECK_EQ(0, write_cr(f, W_CR4, rows[i].bit));
		CHECK_EQ(0, write_cr(f, W_CR4, 0));
		CHECK_EQ(0, cpu_model_resolve(&f->model, rows[i].without, NULL));
		CHECK_EQ(GP0, write_cr(f, W_CR4, rows[i].bit));
	}
	CHECK_EQ(0, cpu_model_resolve(&f->model, "max", NULL));
	for (unsigned bit = 23; bit < 64; bit++)
		CHECK_EQ(GP0, write_cr(f, W_CR4, BIT(bit)));
	CHECK_EQ(GP0, write_cr(f, W_CR4, BIT(13))); /* VMXE */
}

TEST(pcids_are_switched_on_in_long_mode_with_pcid_0)
{
	struct fixture *f = make(FIX_PROT32);

	CHECK_EQ(GP0, write_cr(f, W_CR4, CR4_PCIDE));
	f = make_long();
	f->cpu->cr3 = 0x100001;
	CHECK_EQ(GP0, write_cr(f, W_CR4, f->cpu->cr4 | CR4_PCIDE));
	f->cpu->cr3 = 0x100018; /* PWT and PCD are PCID bits then */
	CHECK_EQ(GP0, write_cr(f, W_CR4, f->cpu->cr4 | CR4_PCIDE));
	f->cpu->cr3 = 0x100000;
	CHECK_EQ(0, write_cr(f, W_CR4, f->cpu->cr4 | CR4_PCIDE));
	CHECK_EQ(0, write_cr(f, W_CR3, 0x100007));
	CHECK_EQ(0, write_cr(f, W_CR4, f->cpu->cr4)); /* staying on: PCID may be anything */
	CHECK_EQ(0, write_cr(f, W_CR4, f->cpu->cr4 & ~CR4_PCIDE));
	CHECK_EQ(0, cpu_model_resolve(&f->model, "max,-pcid", NULL));
	f->cpu->cr3 = 0x100000;
	CHECK_EQ(GP0, write_cr(f, W_CR4, f->cpu->cr4 | CR4_PCIDE));
}

TEST(long_mode_keeps_pae_and_la57_as_they_are)
{
	struct fixture *f = make_long();

	CHECK_EQ(GP0, write_cr(f, W_CR4, f->cpu->cr4 & ~CR4_PAE));
	CHECK_EQ(GP0, write_cr(f, W_CR4, f->cpu->cr4 | CR4_LA57));
	f = make(FIX_PROT32);
	CHECK_EQ(0, write_cr(f, W_CR4, CR4_PAE | CR4_LA57));
	CHECK_EQ(0, write_cr(f, W_CR4, 0));
}

/* --- MOV CRn, DRn and relatives --------------------------------------------------------------- */

TEST(mov_cr_knows_five_registers_on_ring_0)
{
	for (unsigned n = 0; n < 16; n++) {
		struct fixture *f = make_long();
		bool exists = n == 0 || n == 2 || n == 3 || n == 4 || n == 8;

		CHECK_EQ(exists ? 0 : UD, exec_reg(f, exec_mov_RC, n, 8));
		CHECK_EQ(exists ? 0 : UD, exec_reg(f, exec_mov_CR, n, 8)); /* what was read */
		f->cpu->cpl = 3;
		CHECK_EQ(exists ? GP0 : UD, exec_reg(f, exec_mov_RC, n, 8));
		CHECK_EQ(exists ? GP0 : UD, exec_reg(f, exec_mov_CR, n, 8));
	}
}

TEST(cr8_is_the_machines_task_priority)
{
	struct fixture *f = make_long();

	f->cpu->gpr[X86_RAX] = 0xb;
	CHECK_EQ(0, exec_reg(f, exec_mov_CR, 8, 8));
	CHECK_EQ(0xb, machine.cr8);
	f->cpu->gpr[X86_RAX] = 0;
	CHECK_EQ(0, exec_reg(f, exec_mov_RC, 8, 8));
	CHECK_EQ(0xb, f->cpu->gpr[X86_RAX]);
	f->cpu->gpr[X86_RAX] = 0x10;
	CHECK_EQ(GP0, exec_reg(f, exec_mov_CR, 8, 8));
}

TEST(debug_registers_4_and_5_are_aliases_until_de)
{
	struct fixture *f = make_long();

	f->cpu->gpr[X86_RAX] = 0xffffffff;
	CHECK_EQ(0, exec_reg(f, exec_mov_DR, 4, 8));
	CHECK_EQ(0xffffeff0 | 0xf, f->cpu->dr6); /* bit 12 is never set */
	f->cpu->gpr[X86_RAX] = 0xffffd0ff & ~DR7_GD;
	CHECK_EQ(0, exec_reg(f, exec_mov_DR, 5, 8));
	CHECK_EQ(0xffff04ff, f->cpu->dr7); /* 11, 12, 14, 15 never; 10 always */
	f->cpu->dr7 = 0x400;
	debug_update(f->cpu);
	f->cpu->gpr[X86_RAX] = BIT(32);
	CHECK_EQ(GP0, exec_reg(f, exec_mov_DR, 6, 8));
	CHECK_EQ(GP0, exec_reg(f, exec_mov_DR, 7, 8));
	CHECK_EQ(0, exec_reg(f, exec_mov_DR, 3, 8));
	CHECK_EQ(BIT(32), f->cpu->dr[3]);
	f->cpu->cr4 |= CR4_DE;
	for (unsigned n = 0; n < 16; n++)
		CHECK_EQ(n == 4 || n == 5 || n > 7 ? UD : 0, exec_reg(f, exec_mov_RD, n, 8));
	f->cpu->cpl = 3;
	CHECK_EQ(GP0, exec_reg(f, exec_mov_RD, 0, 8));
}

TEST(lmsw_sets_protection_but_never_clears_it)
{
	struct fixture *f = make(FIX_PROT32);

	f->cpu->gpr[X86_RAX] = 0xfff0;
	CHECK_EQ(0, exec_reg(f, exec_lmsw_E_r, 0, 2));
	CHECK_EQ(CR0_PE, f->cpu->cr0 & 0xf);
	CHECK_EQ(0, f->cpu->cr0 & 0xffe0); /* only the low four */
	f->cpu->gpr[X86_RAX] = 0xe;
	CHECK_EQ(0, exec_reg(f, exec_lmsw_E_r, 0, 2));
	CHECK_EQ(0xf, f->cpu->cr0 & 0xf);
	CHECK_EQ(0, fixture_plain(f, exec_clts, 4));
	CHECK_EQ(0x7, f->cpu->cr0 & 0xf);
	f = make(FIX_REAL);
	f->cpu->gpr[X86_RAX] = 1;
	CHECK_EQ(0, exec_reg(f, exec_lmsw_E_r, 0, 2));
	CHECK(!f->cpu->real);
}

TEST(umip_hides_tables_from_user_mode)
{
	static insn_exec *const mem[] = {exec_sgdt, exec_sidt, exec_smsw_E_m};

	for (unsigned n = 0; n < 4; n++) {
		struct fixture *f = make_long();
		bool hidden = n == 3;

		f->cpu->cpl = n & 1 ? 3 : 0;
		f->cpu->cr4 |= n & 2 ? CR4_UMIP : 0;
		cpu_mode_update(f->cpu);
		for (unsigned i = 0; i < ARRAY_SIZE(mem); i++)
			CHECK_EQ(hidden ? GP0 : 0, exec_mem(f, mem[i], FIX_CODE, 0, 8));
		CHECK_EQ(hidden ? GP0 : 0, exec_reg(f, exec_smsw_E_r, 0, 8));
	}
}

TEST(smsw_writes_as_much_as_its_operand_holds)
{
	struct fixture *f = make_long();

	f->cpu->gpr[X86_RAX] = ~0ull;
	CHECK_EQ(0, exec_reg(f, exec_smsw_E_r, 0, 2));
	CHECK_EQ((~0ull & ~0xffffull) | (f->cpu->cr0 & 0xffff), f->cpu->gpr[X86_RAX]);
	CHECK_EQ(0, exec_reg(f, exec_smsw_E_r, 0, 8));
	CHECK_EQ(f->cpu->cr0, f->cpu->gpr[X86_RAX]);
}

TEST(lgdt_loads_what_sgdt_stored)
{
	struct fixture *f = make_long();

	f->cpu->idtr = (struct x86_table){0xffff812345678000, 0xabc};
	CHECK_EQ(0, exec_mem(f, exec_sidt, FIX_CODE, 0, 8));
	CHECK_EQ(0xabc, fix_get(f, FIX_CODE, 2));
	CHECK_EQ(0xffff812345678000, fix_get(f, FIX_CODE + 2, 8));
	f->cpu->idtr = (struct x86_table){0, 0};
	CHECK_EQ(0, exec_mem(f, exec_lidt, FIX_CODE, 0, 8));
	CHECK_EQ(0xffff812345678000, f->cpu->idtr.base);
	CHECK_EQ(0xabc, f->cpu->idtr.limit);
	fix_put(f, FIX_CODE + 2, 8, 0x0100000000000000);
	CHECK_EQ(GP0, exec_mem(f, exec_lgdt, FIX_CODE, 0, 8));
	CHECK_EQ(0xffff812345678000, f->cpu->idtr.base);
	f->cpu->cpl = 3;
	cpu_mode_update(f->cpu);
	CHECK_EQ(GP0, exec_mem(f, exec_lidt, FIX_CODE, 0, 8));
}

TEST(lgdt_with_16_bit_operands_takes_24_bits_of_base)
{
	struct fixture *f = make(FIX_PROT32);

	fix_put(f, FIX_CODE, 8, 0x12345678ffff);
	CHECK_EQ(0, exec_mem(f, exec_lgdt, FIX_CODE, 0, 2));
	CHECK_EQ(0x345678, f->cpu->gdtr.base);
	CHECK_EQ(0, exec_mem(f, exec_lgdt, FIX_CODE, 0, 4));
	CHECK_EQ(0x12345678, f->cpu->gdtr.base);
}

TEST(privileged_instructions_fault_on_rings_1_to_3)
{
	static insn_exec *const plain[] = {exec_clts,     exec_hlt,   exec_invd, exec_wbinvd,
					   exec_wbnoinvd, exec_rdmsr, exec_wrmsr};

	for (uint8_t cpl = 0; cpl < 4; cpl++) {
		struct fixture *f = make_long();

		f->cpu->cpl = cpl;
		cpu_mode_update(f->cpu);
		f->cpu->gpr[X86_RCX] = MSR_PAT;
		f->cpu->gpr[X86_RDX] = f->cpu->gpr[X86_RAX] = 0x06060606;
		for (unsigned i = 0; i < ARRAY_SIZE(plain); i++)
			CHECK_EQ(cpl ? GP0 : 0, fixture_plain(f, plain[i], 4));
		CHECK_EQ(cpl ? GP0 : 0, exec_mem(f, exec_invlpg, FIX_CODE, 0, 8));
		CHECK_EQ(cpl ? UD : 0, fixture_plain(f, exec_stac, 4));
		CHECK_EQ(cpl ? UD : 0, fixture_plain(f, exec_clac, 4));
		CHECK_EQ(!cpl, f->cpu->halted);
	}
}

/* --- TLB -------------------------------------------------------------------------------------- */

TEST(invpcid_refuses_bad_types_and_descriptors)
{
	// clang-format off
	static const struct { uint64_t type, pcid, lin; bool pcide; uint32_t want; } rows[] = {
		{0, 1, 0x1000, true, 0},               {0, 1, 0x1000, false, GP0},
		{0, 0, 0x1000, false, 0},              {0, 1, BIT(56), true, GP0},
		{1, 1, BIT(56), true, 0},              {1, 1, 0, false, GP0},
		{1, 0x1000, 0, true, GP0},             {2, 0x1000, 0, true, GP0},
		{2, 5, BIT(50), false, 0},             {3, 5, 0, false, 0},
		{3, BIT(63), 0, true, GP0},            {4, 0, 0, true, GP0},
		{BIT(32), 0, 0, true, GP0},
	};
	// clang-format on

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		struct fixture *f = make_long();

		f->cpu->cr4 |= rows[i].pcide ? CR4_PCIDE : 0;
		f->cpu->gpr[X86_RDX] = rows[i].type;
		fix_put(f, FIX_CODE, 8, rows[i].pcid);
		fix_put(f, FIX_CODE + 8, 8, rows[i].lin);
		CHECK_EQ(rows[i].want, exec_mem(f, exec_invpcid, FIX_CODE, X86_RDX, 8));
	}
}

TEST(invlpg_accesses_nothing)
{
	struct fixture *f = make_long();

	CHECK_EQ(0, exec_mem(f, exec_invlpg, 0x0000800000000000, 0, 8)); /* not canonical */
	CHECK_EQ(0, exec_mem(f, exec_invlpg, 0x00007fff00000000, 0, 8)); /* not mapped */
}

/* --- MSRs ------------------------------------------------------------------------------------- */

static bool can_write(struct fixture *f, uint32_t index, uint64_t v)
{
	f->cpu->gpr[X86_RCX] = index | BIT(40); /* only ECX counts */
	f->cpu->gpr[X86_RAX] = (uint32_t)v | BIT(50);
	f->cpu->gpr[X86_RDX] = v >> 32 | BIT(50);
	return fixture_plain(f, exec_wrmsr, 4) == 0;
}

static bool can_read(struct fixture *f, uint32_t index, uint64_t *v)
{
	f->cpu->gpr[X86_RCX] = index;
	if (fixture_plain(f, exec_rdmsr, 4))
		return false;
	*v = f->cpu->gpr[X86_RDX] << 32 | f->cpu->gpr[X86_RAX];
	return true;
}

TEST(msrs_take_what_they_may_hold)
{
	// clang-format off
	static const struct { uint32_t index; uint64_t v; bool ok; } rows[] = {
		{MSR_PAT, 0x0007040600070406, true},   {MSR_PAT, 0x0102, false},
		{MSR_PAT, 0x0306, false},              {MSR_PAT, BIT(63), false},
		{MSR_PAT, 0x0701040506000000, true},
		{MSR_MTRR_DEF_TYPE, 0xc06, true},      {MSR_MTRR_DEF_TYPE, 0xc02, false},
		{MSR_MTRR_DEF_TYPE, 0x1c06, false},    {MSR_MTRR_DEF_TYPE, 0xc07, false},
		{MSR_MTRR_PHYSBASE0, 0x80000006, true},  {MSR_MTRR_PHYSBASE0, 0x80000106, false},
		{MSR_MTRR_PHYSBASE0, 0x80000003, false}, {MSR_MTRR_PHYSBASE0, BIT(50), false},
		{MSR_MTRR_PHYSBASE0 + 1, 0x3fff80000800, true},
		{MSR_MTRR_PHYSBASE0 + 1, 0x3fff80000006, false},
		{MSR_MTRR_PHYSBASE0 + 15, 0x800, true},
		{0x250, 0x0606060606060606, true},     {0x250, 0x0606060606060602, false},
		{0x26f, 0x0504010006060606, true},     {0x259, 0x0700000000000000, false},
		{MSR_EFER, EFER_SCE | EFER_NXE | EFER_LME | EFER_LMA, true},
		{MSR_EFER, BIT(1), false},             {MSR_EFER, EFER_LME | EFER_LMA | BIT(12), false},
		{MSR_EFER, EFER_LMA, false}, /* LME cannot go under paging */
		{MSR_EFER, EFER_LME, true},  /* LMA is not written */
		{MSR_SFMASK, 0xffffffff, true},        {MSR_SFMASK, BIT(32), false},
		{MSR_STAR, ~0ull, true},
		{MSR_MTRRCAP, 0, false},               {MSR_MCG_CAP, 0, false},
		{MSR_XSS, 0, true},                    {MSR_XSS, 1, false},
		{MACHINE_MSR, 77, true},               {MACHINE_MSR + 1, 0, false},
		{0xc0000105, 0, false},
	};
	// clang-format on

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		struct fixture *f = make_long();
		char row[60];

		f->model.phys_bits = 46;
		snprintf(row, sizeof(row), "msr %#x value %#llx", rows[i].index,
			 (unsigned long long)rows[i].v);
		CHECK_ROW(row, rows[i].ok, can_write(f, rows[i].index, rows[i].v));
	}
}

TEST(msrs_read_back_what_was_written)
{
	static const uint32_t kept[] = {MSR_PAT,
					MSR_MTRR_PHYSBASE0,
					MSR_STAR,
					MSR_LSTAR,
					MSR_CSTAR,
					MSR_SFMASK,
					MSR_FS_BASE,
					MSR_GS_BASE,
					MSR_KERNEL_GS_BASE,
					MSR_TSC_AUX,
					MSR_SYSENTER_CS,
					MSR_SYSENTER_ESP,
					MSR_SYSENTER_EIP,
					0x250,
					0x258,
					0x259,
					0x268,
					0x26f,
					MSR_MTRR_PHYSBASE0 + 14,
					MACHINE_MSR};
	struct fixture *f = make_long();
	uint64_t v = 0;

	/* A value of valid memory types, different in each, so that two that share a home show. */
	for (unsigned i = 0; i < ARRAY_SIZE(kept); i++)
		CHECK(can_write(f, kept[i],
				(i & 1 ? 6 : 4) | (i & 2 ? 0x01000000 : 0) |
					(i & 4 ? 0x04000000 : 0) | (i & 8 ? 0x00010000 : 0) |
					(i & 16 ? 0x00050000 : 0)));
	for (unsigned i = 0; i < ARRAY_SIZE(kept); i++) {
		CHECK(can_read(f, kept[i], &v));
		CHECK_EQ((i & 1 ? 6 : 4) | (i & 2 ? 0x01000000 : 0) | (i & 4 ? 0x04000000 : 0) |
				 (i & 8 ? 0x00010000 : 0) | (i & 16 ? 0x00050000 : 0),
			 v);
	}
}

/* For what the processor can have, not for the current paging mode. */
TEST(msrs_that_hold_addresses_want_them_canonical)
{
	static const uint32_t holders[] = {MSR_FS_BASE,     MSR_GS_BASE, MSR_KERNEL_GS_BASE,
					   MSR_LSTAR,       MSR_CSTAR,   MSR_SYSENTER_ESP,
					   MSR_SYSENTER_EIP};
	// clang-format off
	static const struct { uint64_t v; bool ok48, ok57; } rows[] = {
		{0x00007fffffffffff, true, true},  {0x0000800000000000, false, true},
		{0xffff800000000000, true, true},  {0xffff7fffffffffff, false, true},
		{0x00ffffffffffffff, false, true}, {0x0100000000000000, false, false},
		{0xff00000000000000, false, true}, {0xfeffffffffffffff, false, false},
	};
	// clang-format on

	for (unsigned la57 = 0; la57 < 2; la57++) {
		struct fixture *f = make_long();

		CHECK_EQ(0, cpu_model_resolve(&f->model, la57 ? "max" : "max,-la57", NULL));
		CHECK_EQ(BIT(47), f->cpu->canon_half);
		for (unsigned i = 0; i < ARRAY_SIZE(holders); i++)
			for (unsigned k = 0; k < ARRAY_SIZE(rows); k++)
				CHECK_EQ(la57 ? rows[k].ok57 : rows[k].ok48,
					 can_write(f, holders[i], rows[k].v));
	}
}

TEST(msrs_of_features_not_offered_do_not_exist)
{
	struct fixture *f = make_long();
	uint64_t v;

	CHECK(can_read(f, MSR_TSC_ADJUST, &v));
	CHECK(can_read(f, MSR_TSC_AUX, &v));
	CHECK_EQ(0, cpu_model_resolve(&f->model, "max,-tsc_adjust,-rdtscp,-nx", NULL));
	CHECK(!can_read(f, MSR_TSC_ADJUST, &v));
	CHECK(!can_write(f, MSR_TSC_AUX, 0));
	CHECK(!can_write(f, MSR_EFER, EFER_LME | EFER_NXE));
}

TEST(each_maker_has_its_own_msrs)
{
	struct fixture *f = make_long();
	uint64_t v;

	strcpy(f->model.vendor, "AuthenticAMD");
	CHECK(can_read(f, 0xc0010015, &v));
	CHECK_EQ(BIT(24), v);
	CHECK(can_read(f, 0xc0011029, &v));
	CHECK_EQ(BIT(1), v);
	CHECK(can_read(f, 0xc0010010, &v));
	CHECK(can_write(f, MSR_TSC_AUX, BIT(32) | 3));
	CHECK_EQ(3, f->cpu->tsc_aux);
	strcpy(f->model.vendor, "GenuineIntel");
	f->cpu->misc_enable = 0x1801;
	CHECK(!can_read(f, 0xc0010015, &v));
	CHECK(can_read(f, MSR_MISC_ENABLE, &v));
	CHECK(can_write(f, MSR_MISC_ENABLE, 0x1800));
	CHECK(!can_write(f, MSR_MISC_ENABLE, 0));
	CHECK(!can_write(f, MSR_TSC_AUX, BIT(32)));
	CHECK(can_read(f, MSR_BIOS_SIGN_ID, &v));
	CHECK(v >> 32);
}

TEST(misc_enable_can_hide_leaves_and_nx)
{
	struct fixture *f = make_long();
	uint32_t r[4];

	f->cpu->misc_enable = 0x1801;
	CHECK_EQ(0, cpu_model_resolve(&f->model, "base", NULL));
	CHECK(can_write(f, MSR_MISC_ENABLE, 0x1801 | MISC_ENABLE_LIMIT_CPUID | MISC_ENABLE_NO_XD));
	cpu_cpuid(f->cpu, 0, 0, r);
	CHECK_EQ(3, r[0]);
	cpu_cpuid(f->cpu, 0x80000001, 0, r);
	CHECK(!(r[3] & BIT(20)));
	CHECK(!can_write(f, MSR_EFER, EFER_LME | EFER_NXE));
	CHECK(can_write(f, MSR_MISC_ENABLE, 0x1801));
	cpu_cpuid(f->cpu, 0x80000001, 0, r);
	CHECK(r[3] & BIT(20));
}

/* --- time ------------------------------------------------------------------------------------- */

TEST(a_written_tsc_goes_on_from_there_and_moves_tsc_adjust)
{
	struct fixture *f = make_long();
	uint64_t v = 0, adjust = 0, before;

	CHECK(can_write(f, MSR_TSC, 1000));
	CHECK(can_read(f, MSR_TSC, &v));
	CHECK(v >= 1000 && v < 1000 + 1000000000ull);
	before = cpu_read_tsc(f->cpu);
	CHECK(can_read(f, MSR_TSC_ADJUST, &adjust));
	CHECK_EQ(f->cpu->tsc_offset, adjust); /* both were 0 */
	CHECK(can_write(f, MSR_TSC_ADJUST, adjust + (1ull << 50)));
	CHECK(cpu_read_tsc(f->cpu) - before >= 1ull << 50);
	CHECK(cpu_read_tsc(f->cpu) - before < (1ull << 50) + 1000000000ull);
}

TEST(rdtsc_is_refused_in_user_mode_with_tsd)
{
	for (unsigned n = 0; n < 4; n++) {
		struct fixture *f = make_long();

		f->cpu->cpl = n & 1 ? 3 : 0;
		f->cpu->cr4 |= n & 2 ? CR4_TSD : 0;
		f->cpu->tsc_aux = 0x77;
		CHECK_EQ(n == 3 ? GP0 : 0, fixture_plain(f, exec_rdtsc, 4));
		CHECK_EQ(n == 3 ? GP0 : 0, fixture_plain(f, exec_rdtscp, 4));
		CHECK_EQ(n == 3 ? 0 : 0x77, f->cpu->gpr[X86_RCX]);
	}
}

TEST(rdpmc_is_refused_in_user_mode_without_pce)
{
	struct fixture *f = make_long();

	strcpy(f->model.vendor, "AuthenticAMD");
	f->cpu->gpr[X86_RCX] = 3;
	CHECK_EQ(0, fixture_plain(f, exec_rdpmc, 4));
	f->cpu->cpl = 3;
	CHECK_EQ(GP0, fixture_plain(f, exec_rdpmc, 4));
	f->cpu->cr4 |= CR4_PCE;
	CHECK_EQ(0, fixture_plain(f, exec_rdpmc, 4));
	f->cpu->gpr[X86_RCX] = 4;
	CHECK_EQ(GP0, fixture_plain(f, exec_rdpmc, 4));
}

/* --- keys, bases, calls ----------------------------------------------------------------------- */

TEST(pkru_is_reached_with_pke_and_zeroes_around_it)
{
	struct fixture *f = make_long();
	uint64_t *gpr = f->cpu->gpr;

	CHECK_EQ(UD, fixture_plain(f, exec_rdpkru, 4));
	CHECK_EQ(UD, fixture_plain(f, exec_wrpkru, 4));
	f->cpu->cr4 |= CR4_PKE;
	f->cpu->cpl = 3;
	gpr[X86_RAX] = 0x12345678ull | BIT(40);
	gpr[X86_RCX] = gpr[X86_RDX] = BIT(32);
	CHECK_EQ(0, fixture_plain(f, exec_wrpkru, 4));
	gpr[X86_RDX] = ~0ull;
	CHECK_EQ(GP0, fixture_plain(f, exec_wrpkru, 4));
	CHECK_EQ(0, fixture_plain(f, exec_rdpkru, 4));
	CHECK_EQ(0x12345678, gpr[X86_RAX]);
	CHECK_EQ(0, gpr[X86_RDX]);
	gpr[X86_RCX] = 1;
	CHECK_EQ(GP0, fixture_plain(f, exec_rdpkru, 4));
	CHECK_EQ(GP0, fixture_plain(f, exec_wrpkru, 4));
}

TEST(stac_and_clac_choose_the_translations)
{
	struct fixture *f = make_long();
	const struct tlb *strict;

	f->cpu->cr4 |= CR4_SMAP;
	cpu_mode_update(f->cpu);
	strict = f->cpu->tlb;
	CHECK(strict == f->cpu->tlb_sys);
	CHECK_EQ(0, fixture_plain(f, exec_stac, 4));
	CHECK(f->cpu->rflags & RFLAGS_AC);
	CHECK(f->cpu->tlb != strict);
	CHECK(f->cpu->tlb_sys == strict); /* implicit accesses do not look at AC */
	CHECK_EQ(0, fixture_plain(f, exec_clac, 4));
	CHECK(f->cpu->tlb == strict);
}

TEST(fs_and_gs_bases_need_the_feature_switched_on)
{
	struct fixture *f = make_long();
	uint64_t *rax = &f->cpu->gpr[X86_RAX];

	f->cpu->cpl = 3;
	CHECK_EQ(UD, exec_reg(f, exec_rdfsbase_64, 0, 8));
	CHECK_EQ(UD, exec_reg(f, exec_wrgsbase_32, 0, 4));
	f->cpu->cr4 |= CR4_FSGSBASE;
	*rax = 0x00007fff12345678;
	CHECK_EQ(0, exec_reg(f, exec_wrfsbase_64, 0, 8));
	CHECK_EQ(0, exec_reg(f, exec_wrgsbase_32, 0, 4));
	CHECK_EQ(0x00007fff12345678, f->cpu->seg[X86_FS].base);
	CHECK_EQ(0x12345678, f->cpu->seg[X86_GS].base);
	CHECK_EQ(0, exec_reg(f, exec_rdfsbase_32, 0, 4));
	CHECK_EQ(0x12345678, *rax);
	*rax = 0x0100000000000000;
	CHECK_EQ(GP0, exec_reg(f, exec_wrfsbase_64, 0, 8));
	CHECK_EQ(0x00007fff12345678, f->cpu->seg[X86_FS].base);
}

static bool answer_call(void *opaque, struct engine_cpu *cpu, uint64_t gpr[X86_NR_GPR])
{
	machine.hypercalls++;
	gpr[X86_RAX] = 42;
	return true;
}

TEST(hypervisor_calls_reach_the_machine_from_ring_0)
{
	struct fixture *f = make_long();

	CHECK_EQ(UD, fixture_plain(f, exec_vmcall, 4));
	CHECK_EQ(UD, fixture_plain(f, exec_vmmcall, 4));
	f->ops.hypercall = answer_call;
	CHECK_EQ(0, fixture_plain(f, exec_vmmcall, 4));
	CHECK_EQ(42, f->cpu->gpr[X86_RAX]);
	f->cpu->cpl = 3;
	CHECK_EQ(UD, fixture_plain(f, exec_vmcall, 4));
	CHECK_EQ(1, machine.hypercalls);
}

/* --- CPUID ------------------------------------------------------------------------------------ */

TEST(cpuid_follows_cr4_and_xcr0)
{
	struct fixture *f = make_long();
	uint32_t r[4];

	if (!cpu_has(&f->model, CPU_FEAT_AVX))
		SKIP("this host has no AVX");
	cpu_cpuid(f->cpu, 1, 0, r);
	CHECK(!(r[2] >> 27 & 1));
	cpu_cpuid(f->cpu, 7, 0, r);
	CHECK(!(r[2] >> 4 & 1) && r[2] >> 3 & 1);
	f->cpu->cr4 |= CR4_OSXSAVE | CR4_PKE;
	cpu_cpuid(f->cpu, 1, 0, r);
	CHECK(r[2] >> 27 & 1);
	cpu_cpuid(f->cpu, 7, 0, r);
	CHECK(r[2] >> 4 & 1);
	f->cpu->xcr0 = 3;
	cpu_cpuid(f->cpu, 0xd, 0, r);
	CHECK_EQ(576, r[1]);
	f->cpu->xcr0 = 7;
	cpu_cpuid(f->cpu, 0xd, 0, r);
	CHECK_EQ(832, r[1]);
	CHECK_EQ(f->model.xsave_size, r[2]);
}

TEST(cpuid_clears_the_upper_halves_and_asks_the_machine)
{
	struct fixture *f = make_long();

	for (unsigned i = 0; i < 4; i++)
		f->cpu->gpr[i] = ~0ull;
	f->cpu->gpr[X86_RAX] = 0x40000000 | BIT(60);
	CHECK_EQ(0, fixture_plain(f, exec_cpuid, 4));
	CHECK_EQ(0x12345678, f->cpu->gpr[X86_RBX]);
	CHECK_EQ(0, f->cpu->gpr[X86_RAX]);
}
