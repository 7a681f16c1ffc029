/* test_msr.c - values that MSRs, control registers and XCR0 take, and those they refuse.
 *
 * SDM 4 and the instruction pages of SDM 2 (WRMSR, MOV CR, XSETBV, LMSW); AMD APM 2 "System
 * Resources".  A row gives the value and what writing it raises. */
#include "guest.h"

enum {
	TSC = 0x10,
	TSC_ADJUST = 0x3b,
	APIC_BASE = 0x1b,
	MTRRCAP = 0xfe,
	PAT = 0x277,
	MTRR_DEF_TYPE = 0x2ff,
	MTRR_BASE0 = 0x200,
	MTRR_MASK0 = 0x201,
	MTRR_FIX64K = 0x250,
	MTRR_FIX4K = 0x268,
};
#define SYSENTER_CS 0x174
#define STAR        0xc0000081u
#define SFMASK      0xc0000084u
#define TSC_AUX     0xc0000103u

enum { ALL_CPUS, INTEL, AMD };

static bool this_cpu(u8 which)
{
	return which == ALL_CPUS || (which == AMD) == cpu_is_amd();
}

/* --- MSRs --------------------------------------------------------------------------------------
 */
static const struct msr_row {
	const char *name;
	u32 index;
	u64 value;
	int vector;
	u8 cpu;
} msr_rows[] = {
	{"unknown MSR", 0xbadcafe, 0, GP, ALL_CPUS},
	{"unknown MSR near EFER", 0xc00000ff, 0, GP, ALL_CPUS},
	{"unknown MSR at the end", 0xffffffff, 0, GP, ALL_CPUS},
	{"PAT, power-on value", PAT, 0x0007040600070406, NONE, ALL_CPUS},
	{"PAT, all types", PAT, 0x0000070605040100, NONE, ALL_CPUS},
	{"PAT type 2", PAT, 0x0007040600070402, GP, ALL_CPUS},
	{"PAT type 3 in the last byte", PAT, 0x0307040600070406, GP, ALL_CPUS},
	{"PAT type 8", PAT, 0x0007040608070406, GP, ALL_CPUS},
	{"PAT bit 7 of byte 4", PAT, 0x0007048600070406, GP, ALL_CPUS},
	{"MTRR default type, write back", MTRR_DEF_TYPE, 0xc06, NONE, ALL_CPUS},
	{"MTRR default type 2", MTRR_DEF_TYPE, 0xc02, GP, ALL_CPUS},
	{"MTRR default type 7", MTRR_DEF_TYPE, 0xc07, GP, ALL_CPUS},
	{"MTRR default type bit 8", MTRR_DEF_TYPE, 0xd06, GP, ALL_CPUS},
	{"MTRR default type bit 12", MTRR_DEF_TYPE, 0x1c06, GP, ALL_CPUS},
	{"MTRRCAP is read-only", MTRRCAP, 0x508, GP, ALL_CPUS},
	{"MTRR base", MTRR_BASE0, 0x80000000, NONE, ALL_CPUS},
	{"MTRR base type 6", MTRR_BASE0, 0x80000006, NONE, ALL_CPUS},
	{"MTRR base type 3", MTRR_BASE0, 0x80000003, GP, ALL_CPUS},
	{"MTRR base bit 8", MTRR_BASE0, 0x80000106, GP, ALL_CPUS},
	{"MTRR base bit 63", MTRR_BASE0, 1ull << 63, GP, ALL_CPUS},
	{"MTRR mask", MTRR_MASK0, 0x80000800, NONE, ALL_CPUS},
	{"MTRR mask bit 0", MTRR_MASK0, 0x80000801, GP, ALL_CPUS},
	{"MTRR mask bit 10", MTRR_MASK0, 0x80000400, GP, ALL_CPUS},
	{"MTRR fixed, all types", MTRR_FIX64K, 0x0605040100060504, NONE, ALL_CPUS},
	{"MTRR fixed type 2", MTRR_FIX64K, 0x0605040200060504, GP, ALL_CPUS},
	{"MTRR fixed type 7 in the last byte", MTRR_FIX4K, 0x0706060606060606, GP, ALL_CPUS},
	{"STAR takes anything", STAR, 0xfedcba9876543210, NONE, ALL_CPUS},
	{"SFMASK", SFMASK, 0xffffffff, NONE, ALL_CPUS},
	/* The upper half of SFMASK and TSC_AUX: reserved on Intel, reads as zero on AMD. */
	{"SFMASK bit 32", SFMASK, 1ull << 32, GP, INTEL},
	{"TSC_AUX bit 32", TSC_AUX, 1ull << 32, GP, INTEL},
	{"TSC_AUX", TSC_AUX, 0x12345678, NONE, ALL_CPUS},
	{"SYSENTER_CS", SYSENTER_CS, 0x10, NONE, ALL_CPUS},
	{"EFER bit 1", EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | BIT(1), GP, ALL_CPUS},
	{"EFER bit 9", EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | BIT(9), GP, ALL_CPUS},
	{"EFER bit 22", EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | BIT(22), GP, ALL_CPUS},
	{"EFER bit 32", EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | BIT(32), GP, ALL_CPUS},
	{"EFER bit 63", EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | BIT(63), GP, ALL_CPUS},
	{"EFER without LME under paging", EFER, EFER_SCE | EFER_LMA | EFER_NXE, GP, ALL_CPUS},
	{"EFER without SCE", EFER, EFER_LME | EFER_LMA | EFER_NXE, NONE, ALL_CPUS},
	{"EFER without NXE", EFER, EFER_SCE | EFER_LME | EFER_LMA, NONE, ALL_CPUS},
	{"APIC_BASE bit 0", APIC_BASE, 0xfee00901, GP, ALL_CPUS},
	{"APIC_BASE bit 9", APIC_BASE, 0xfee00b00, GP, ALL_CPUS},
	{"APIC_BASE bit 63", APIC_BASE, 0x80000000fee00900, GP, ALL_CPUS},
	{"APIC_BASE, x2APIC without enable", APIC_BASE, 0xfee00500, GP, ALL_CPUS},
};

static void check_msr(const struct msr_row *r)
{
	u64 old = 0, now = 0;
	bool readable = try_rdmsr(r->index, &old) == NONE;

	CHECK_ROW(r->name, r->vector, try_wrmsr(r->index, r->value));
	if (r->vector == GP)
		CHECK_ROW(r->name, 0, trap_last()->error);
	if (!readable)
		return;
	try_rdmsr(r->index, &now);
	CHECK_ROW(r->name, r->vector == NONE ? r->value : old, now);
	try_wrmsr(r->index, old);
}

TEST(msrs_refuse_bad_values)
{
	for (unsigned i = 0; i < ARRAY_SIZE(msr_rows); i++)
		if (this_cpu(msr_rows[i].cpu))
			check_msr(&msr_rows[i]);
}

/* The manuals differ about a write to LMA: Intel's ignores it, AMD's may refuse. */
TEST(efer_lma_cannot_be_written)
{
	u64 efer = rdmsr(EFER);
	int got = try_wrmsr(EFER, efer & ~EFER_LMA);

	CHECK(got == NONE || (cpu_is_amd() && got == GP));
	CHECK_EQ(efer, rdmsr(EFER));
}

TEST(reads_of_unknown_msrs_fault)
{
	static const u32 unknown[] = {0xbadcafe, 0xc00000ff, 0x40000fff, 0xffffffff, 0x2f0};
	u64 v;

	for (unsigned i = 0; i < ARRAY_SIZE(unknown); i++) {
		CHECK_ROW(guest_name("MSR 0x%x", unknown[i]), GP, try_rdmsr(unknown[i], &v));
		CHECK_ROW(guest_name("MSR 0x%x", unknown[i]), 0, trap_last()->error);
	}
}

/* MSRs that a CPUID bit announces. */
static const struct {
	const char *name;
	u32 msr, leaf;
	u8 reg, bit;
} announced[] = {
	{"TSC_ADJUST", TSC_ADJUST, 7, EBX, 1},     {"XSS", 0xda0, 0, 0, 0}, /* leaf 0xD.1, below */
	{"TSC_AUX", TSC_AUX, 0x80000001, EDX, 27}, {"TSC_DEADLINE", 0x6e0, 1, ECX, 24},
	{"MTRRCAP", MTRRCAP, 1, EDX, 12},          {"PAT", PAT, 1, EDX, 16},
};

TEST(msrs_exist_as_cpuid_says)
{
	u64 v;

	for (unsigned i = 0; i < ARRAY_SIZE(announced); i++) {
		bool has = announced[i].leaf ? cpu_has(announced[i].leaf, 0, announced[i].reg,
						       announced[i].bit)
					     : HAS_XSAVE && cpu_has(0xd, 1, EAX, 3);

		CHECK_ROW(announced[i].name, has ? NONE : GP, try_rdmsr(announced[i].msr, &v));
	}
}

CODE("user_rdmsr: mov $0x10, %ecx; rdmsr; ret\n"
     "user_wrmsr: mov $0x10, %ecx; wrmsr; ret\n");
extern char user_rdmsr[], user_wrmsr[];

TEST(msrs_are_for_ring_0)
{
	CHECK_EQ(GP, trap_run_user((void (*)(void *))user_rdmsr, NULL));
	CHECK_EQ(0, trap_last()->error);
	CHECK_EQ(GP, trap_run_user((void (*)(void *))user_wrmsr, NULL));
	CHECK_EQ(0, trap_last()->error);
}

/* --- time stamp counter ------------------------------------------------------------------------
 */
TEST(tsc_adjust_and_tsc_move_together)
{
	const u64 step = 1ull << 50, slack = 1ull << 40;
	u64 before;

	if (!cpu_has(7, 0, EBX, 1)) {
		guest_skip("no TSC_ADJUST");
		return;
	}
	wrmsr(TSC_ADJUST, 0);
	before = rdtsc();
	wrmsr(TSC_ADJUST, step);
	CHECK(rdtsc() - before - step < slack);
	CHECK_EQ(step, rdmsr(TSC_ADJUST));
	wrmsr(TSC, rdtsc() + step);
	CHECK(rdmsr(TSC_ADJUST) - 2 * step + slack < 2 * slack); /* less the time in between */
	CHECK(rdtsc() - before - 2 * step + slack < 2 * slack);
	wrmsr(TSC_ADJUST, 0);
	CHECK(rdtsc() - before < slack);
}

TEST(the_tsc_counts_up)
{
	u64 a = rdtsc(), b = rdmsr(TSC), c = rdtsc();

	CHECK(a <= b);
	CHECK(b <= c);
}

/* --- CR0 ---------------------------------------------------------------------------------------
 */
static void write_cr0(void *v)
{
	WRITE_CR(0, v);
}

static void write_cr3(void *v)
{
	WRITE_CR(3, v);
}

static void write_cr4(void *v)
{
	WRITE_CR(4, v);
}

static void write_cr8(void *v)
{
	WRITE_CR(8, v);
}

static const struct {
	const char *name;
	u64 set, clear;
	int vector;
	u64 reads; /* of the bits in set or clear */
} cr0_rows[] = {
	{"as it is", 0, 0, NONE, 0},
	{"bit 32", BIT(32), 0, GP, 0},
	{"bit 63", BIT(63), 0, GP, 0},
	{"PG without PE", 0, CR0_PE, GP, 0},
	{"no paging in 64-bit mode", 0, CR0_PG, GP, 0},
	{"NW without CD", CR0_NW, 0, GP, 0},
	{"NW with CD", CR0_NW | CR0_CD, 0, NONE, CR0_NW | CR0_CD},
	{"CD", CR0_CD, 0, NONE, CR0_CD},
	{"ET cannot be cleared", 0, BIT(4), NONE, BIT(4)},
	{"reserved low bits are ignored", BIT(6) | BIT(15) | BIT(17) | BIT(28), 0, NONE, 0},
	{"TS", CR0_TS, 0, NONE, CR0_TS},
	{"EM", CR0_EM, 0, NONE, CR0_EM},
	{"AM", CR0_AM, 0, NONE, CR0_AM},
	{"no WP", 0, CR0_WP, NONE, 0},
	{"no NE", 0, CR0_NE, NONE, 0},
};

TEST(cr0_refuses_bad_values)
{
	u64 old = READ_CR(0);

	for (unsigned i = 0; i < ARRAY_SIZE(cr0_rows); i++) {
		u64 set = cr0_rows[i].set, clear = cr0_rows[i].clear;
		u64 want = cr0_rows[i].vector == NONE ? cr0_rows[i].reads : old & (set | clear);

		CHECK_ROW(cr0_rows[i].name, cr0_rows[i].vector,
			  trap_run(write_cr0, (void *)((old | set) & ~clear)));
		CHECK_ROW(cr0_rows[i].name, want, READ_CR(0) & (set | clear));
		WRITE_CR(0, old);
	}
}

CODE("do_lmsw: lmsw %di; ret\n"
     "do_clts: clts; ret\n"
     "do_smsw: smsw %rax; mov %rax, (%rdi); ret\n");
extern char do_lmsw[], do_clts[], do_smsw[];

static int run(bool user, char *code, u64 arg)
{
	void (*fn)(void *) = (void (*)(void *))code;

	return user ? trap_run_user(fn, (void *)arg) : trap_run(fn, (void *)arg);
}

TEST(lmsw_sets_the_low_bits_and_cannot_leave_protected_mode)
{
	u64 old = READ_CR(0), smsw = 0;

	CHECK_EQ(NONE, run(false, do_lmsw, 0));
	CHECK_EQ((old & ~15ull) | 1, READ_CR(0));
	CHECK_EQ(NONE, run(false, do_lmsw, 0xffff));
	CHECK_EQ(old | 15, READ_CR(0));
	CHECK_EQ(NONE, run(false, do_smsw, (u64)&smsw));
	CHECK_EQ(old | 15, smsw);
	CHECK_EQ(NONE, run(false, do_clts, 0));
	CHECK_EQ((old | 15) & ~CR0_TS, READ_CR(0));
	WRITE_CR(0, old);
	CHECK_EQ(GP, run(true, do_lmsw, 0));
	CHECK_EQ(GP, run(true, do_clts, 0));
}

/* --- CR3 ---------------------------------------------------------------------------------------
 */
TEST(cr3_refuses_bits_above_the_physical_width)
{
	u64 old = READ_CR(3);

	for (unsigned bit = cpu_phys_bits(); bit < 64; bit++) {
		if ((bit == 61 || bit == 62) && cpu_has(7, 1, EAX, 26))
			continue; /* linear-address masking */
		CHECK_ROW(guest_name("bit %u", bit), GP,
			  trap_run(write_cr3, (void *)(old | BIT(bit))));
		CHECK_ROW(guest_name("bit %u", bit), 0, trap_last()->error);
	}
	CHECK_EQ(old, READ_CR(3));
	CHECK_EQ(NONE, trap_run(write_cr3, (void *)(old | 0x18))); /* PWT, PCD */
	CHECK_EQ(old | 0x18, READ_CR(3));
	WRITE_CR(3, old);
}

/* --- CR4 ---------------------------------------------------------------------------------------
 */
/* Which CPUID bit allows a CR4 bit; leaf 0: always. */
static const struct {
	u8 bit;
	u32 leaf, sub;
	u8 reg, cpuid_bit;
} cr4_bits[] = {
	{0, 1, 0, EDX, 1},   {1, 1, 0, EDX, 1},   {2, 1, 0, EDX, 4},   {3, 1, 0, EDX, 2},
	{4, 1, 0, EDX, 3},   {6, 1, 0, EDX, 7},   {7, 1, 0, EDX, 13},  {8, 0, 0, 0, 0},
	{9, 1, 0, EDX, 24},  {10, 1, 0, EDX, 25}, {11, 7, 0, ECX, 2},  {13, 1, 0, ECX, 5},
	{14, 1, 0, ECX, 6},  {16, 7, 0, EBX, 0},  {17, 1, 0, ECX, 17}, {18, 1, 0, ECX, 26},
	{19, 7, 0, ECX, 23}, {20, 7, 0, EBX, 7},  {22, 7, 0, ECX, 3},  {24, 7, 0, ECX, 31},
	{25, 7, 0, EDX, 5},  {27, 7, 1, EAX, 6},  {28, 7, 1, EAX, 26}, {32, 7, 1, EAX, 17},
};

/* CR4.SMAP (21) and SMEP (20) would stop this very code, whose pages are the user's; CET (23) has
 * more conditions.  PAE and LA57 are below. */
static int cr4_rule(unsigned bit)
{
	for (unsigned i = 0; i < ARRAY_SIZE(cr4_bits); i++)
		if (cr4_bits[i].bit == bit)
			return !cr4_bits[i].leaf || cpu_has(cr4_bits[i].leaf, cr4_bits[i].sub,
							    cr4_bits[i].reg, cr4_bits[i].cpuid_bit);
	return 0;
}

TEST(cr4_takes_the_bits_that_cpuid_announces)
{
	u64 old = READ_CR(4);

	for (unsigned bit = 0; bit < 64; bit++) {
		bool allowed = cr4_rule(bit);
		u64 v = old | BIT(bit);

		if (bit == 5 || bit == 12 || bit == 20 || bit == 21 || bit == 23)
			continue;
		CHECK_ROW(guest_name("bit %u", bit), allowed ? NONE : GP,
			  trap_run(write_cr4, (void *)v));
		CHECK_ROW(guest_name("bit %u", bit), allowed ? v : old, READ_CR(4));
		WRITE_CR(4, old);
	}
}

TEST(cr4_pae_and_la57_stay_in_long_mode)
{
	u64 old = READ_CR(4);

	CHECK_EQ(GP, trap_run(write_cr4, (void *)(old & ~CR4_PAE)));
	CHECK_EQ(GP, trap_run(write_cr4, (void *)(old ^ CR4_LA57)));
	CHECK_EQ(old, READ_CR(4));
}

/* --- the other control registers -----------------------------------------------------------------
 */
CODE(".macro mov_cr n, rex\n"
     "	.byte \\rex, 0x0f, 0x20, 0xc0 + (\\n & 7) * 8; ret\n"
     ".endm\n"
     "cr1: mov_cr 1, 0x40\n"
     "cr5: mov_cr 5, 0x40\n"
     "cr6: mov_cr 6, 0x40\n"
     "cr7: mov_cr 7, 0x40\n"
     "cr9: mov_cr 1, 0x44\n"
     "cr15: mov_cr 7, 0x44\n"
     "cr8: mov_cr 0, 0x44\n"
     "cr0: mov_cr 0, 0x40\n");
extern char cr1[], cr5[], cr6[], cr7[], cr9[], cr15[], cr8[], cr0[];

TEST(there_are_five_control_registers)
{
	static char *const none[] = {cr1, cr5, cr6, cr7, cr9, cr15};

	for (unsigned i = 0; i < ARRAY_SIZE(none); i++) {
		CHECK_ROW(guest_name("row %u", i), UD, run(false, none[i], 0));
		CHECK_ROW(guest_name("row %u, ring 3", i), UD, run(true, none[i], 0));
	}
	CHECK_EQ(NONE, run(false, cr8, 0));
	CHECK_EQ(GP, run(true, cr8, 0));
	CHECK_EQ(GP, run(true, cr0, 0));
	CHECK_EQ(0, trap_last()->error);
}

TEST(cr8_takes_four_bits)
{
	for (u64 v = 0; v < 16; v++) {
		CHECK_EQ(NONE, trap_run(write_cr8, (void *)v));
		CHECK_EQ(v, READ_CR(8));
	}
	WRITE_CR(8, 0);
	CHECK_EQ(GP, trap_run(write_cr8, (void *)16));
	CHECK_EQ(GP, trap_run(write_cr8, (void *)BIT(32)));
	CHECK_EQ(GP, trap_run(write_cr8, (void *)BIT(63)));
	CHECK_EQ(0, READ_CR(8));
}

/* --- XCR0 --------------------------------------------------------------------------------------
 */
struct xcr {
	u32 index;
	u64 value;
};

static void xsetbv(void *p)
{
	struct xcr *x = p;

	asm volatile("xsetbv" : : "c"(x->index), "a"((u32)x->value), "d"((u32)(x->value >> 32)));
}

static void xgetbv(void *p)
{
	struct xcr *x = p;
	u32 lo, hi;

	asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(x->index));
	x->value = (u64)hi << 32 | lo;
}

static u64 xcr0_supported(void)
{
	u32 r[4];

	cpuid(0xd, 0, r);
	return (u64)r[EDX] << 32 | r[EAX];
}

/* SDM 1 "Enabling the XSAVE Feature Set": x87 always; AVX needs SSE; AVX-512 its three parts and
 * AVX; tiles both; MPX both. */
static bool xcr0_valid(u64 v, u64 supported)
{
	if (v & ~supported || !(v & 1))
		return false;
	if (v & 4 && !(v & 2))
		return false;
	if (v & 0xe0 && ((v & 0xe0) != 0xe0 || !(v & 4)))
		return false;
	if ((v & 0x18) == 8 || (v & 0x18) == 0x10)
		return false;
	return !((v >> 17 & 3) == 1 || (v >> 17 & 3) == 2);
}

static void check_xcr0(u64 v, u64 supported)
{
	struct xcr x = {0, v}, now = {0, 0};

	CHECK_ROW(guest_name("XCR0 0x%lx", v), xcr0_valid(v, supported) ? NONE : GP,
		  trap_run(xsetbv, &x));
	xgetbv(&now);
	if (xcr0_valid(v, supported))
		CHECK_ROW(guest_name("XCR0 0x%lx", v), v, now.value);
	xsetbv(&(struct xcr){0, 1});
}

TEST(xcr0_takes_valid_combinations)
{
	u64 supported = xcr0_supported();

	if (!HAS_XSAVE) {
		guest_skip("no XSAVE");
		return;
	}
	WRITE_CR(4, READ_CR(4) | CR4_OSXSAVE);
	for (u64 v = 0; v < 1024; v++)
		check_xcr0(v, supported);
	for (unsigned bit = 10; bit < 64; bit++)
		check_xcr0(1 | BIT(bit), supported);
	CHECK_EQ(GP, trap_run(xsetbv, &(struct xcr){1, 1}));
	CHECK_EQ(GP, trap_run(xsetbv, &(struct xcr){-1u, 1}));
	CHECK_EQ(GP, trap_run(xgetbv, &(struct xcr){2, 0}));
	CHECK_EQ(cpu_has(0xd, 1, EAX, 2) ? NONE : GP, trap_run(xgetbv, &(struct xcr){1, 0}));
	WRITE_CR(4, READ_CR(4) & ~CR4_OSXSAVE);
	CHECK_EQ(UD, trap_run(xsetbv, &(struct xcr){0, 1}));
	CHECK_EQ(UD, trap_run(xgetbv, &(struct xcr){0, 0}));
}

CODE("user_xsetbv: xor %ecx, %ecx; mov $1, %eax; xor %edx, %edx; xsetbv; ret\n"
     "user_xgetbv: xor %ecx, %ecx; xgetbv; ret\n");
extern char user_xsetbv[], user_xgetbv[];

TEST(xsetbv_is_for_ring_0_and_xgetbv_for_all)
{
	if (!HAS_XSAVE) {
		guest_skip("no XSAVE");
		return;
	}
	WRITE_CR(4, READ_CR(4) | CR4_OSXSAVE);
	CHECK_EQ(GP, run(true, user_xsetbv, 0));
	CHECK_EQ(0, trap_last()->error);
	CHECK_EQ(NONE, run(true, user_xgetbv, 0));
	WRITE_CR(4, READ_CR(4) & ~CR4_OSXSAVE);
	CHECK_EQ(UD, run(true, user_xsetbv, 0));
}

/* CPUID follows CR4. */
TEST(cpuid_shows_osxsave_and_ospke)
{
	u64 old = READ_CR(4);

	CHECK_EQ(0, cpu_has(1, 0, ECX, 27));
	if (HAS_XSAVE) {
		WRITE_CR(4, old | CR4_OSXSAVE);
		CHECK_EQ(1, cpu_has(1, 0, ECX, 27));
	}
	CHECK_EQ(0, cpu_has(7, 0, ECX, 4));
	if (HAS_PKU) {
		WRITE_CR(4, old | CR4_PKE);
		CHECK_EQ(1, cpu_has(7, 0, ECX, 4));
	}
	WRITE_CR(4, old);
}

/* --- PKRU --------------------------------------------------------------------------------------
 */
struct pkru {
	u32 eax, ecx, edx;
};

static void wrpkru(void *p)
{
	struct pkru *k = p;

	asm volatile(".byte 0x0f, 0x01, 0xef" : : "a"(k->eax), "c"(k->ecx), "d"(k->edx));
}

static void rdpkru(void *p)
{
	struct pkru *k = p;

	asm volatile(".byte 0x0f, 0x01, 0xee" : "=a"(k->eax), "=d"(k->edx) : "c"(k->ecx));
}

TEST(pkru_instructions_check_ecx_and_edx)
{
	struct pkru k = {0, 0, 1};

	CHECK_EQ(UD, trap_run(rdpkru, &k));
	CHECK_EQ(UD, trap_run(wrpkru, &k));
	if (!HAS_PKU) {
		guest_skip("no PKU");
		return;
	}
	WRITE_CR(4, READ_CR(4) | CR4_PKE);
	CHECK_EQ(GP, trap_run(wrpkru, &(struct pkru){0, 0, 1}));
	CHECK_EQ(GP, trap_run(wrpkru, &(struct pkru){0, 1, 0}));
	CHECK_EQ(GP, trap_run(rdpkru, &(struct pkru){0, 1, 0}));
	CHECK_EQ(NONE, trap_run(wrpkru, &(struct pkru){0xfedcba98, 0, 0}));
	CHECK_EQ(NONE, trap_run(rdpkru, &k));
	CHECK_EQ(0xfedcba98, k.eax);
	CHECK_EQ(0, k.edx);
	trap_run(wrpkru, &(struct pkru){0, 0, 0});
	WRITE_CR(4, READ_CR(4) & ~CR4_PKE);
}

/* --- FSGSBASE and SWAPGS -----------------------------------------------------------------------
 */
CODE("rd_fs: rdfsbase %rax; ret\n"
     "wr_gs: xor %eax, %eax; wrgsbase %rax; ret\n"
     "do_swapgs: swapgs; swapgs; ret\n"
     "wr_fs_32: mov $-1, %rax; wrfsbase %eax; rdfsbase %rax; mov %rax, (%rdi)\n"
     "	mov $-1, %rax; rdfsbase %eax; mov %rax, 8(%rdi); xor %eax, %eax; wrfsbase %rax; ret\n");
extern char rd_fs[], wr_gs[], do_swapgs[], wr_fs_32[];

TEST(fsgsbase_needs_its_cr4_bit)
{
	u64 got[2];

	CHECK_EQ(UD, run(false, rd_fs, 0));
	CHECK_EQ(UD, run(true, wr_gs, 0));
	if (!HAS_FSGSBASE)
		return;
	WRITE_CR(4, READ_CR(4) | CR4_FSGSBASE);
	CHECK_EQ(NONE, run(false, rd_fs, 0));
	CHECK_EQ(NONE, run(true, rd_fs, 0));
	CHECK_EQ(NONE, run(true, wr_gs, 0));
	CHECK_EQ(NONE, run(false, wr_fs_32, (u64)got));
	CHECK_EQ(0xffffffff, got[0]);
	CHECK_EQ(0xffffffff, got[1]);
	WRITE_CR(4, READ_CR(4) & ~CR4_FSGSBASE);
}

TEST(swapgs_exchanges_the_bases_in_ring_0)
{
	wrmsr(0xc0000101, 0x1111);
	wrmsr(0xc0000102, 0x2222);
	asm volatile("swapgs");
	CHECK_EQ(0x2222, rdmsr(0xc0000101));
	CHECK_EQ(0x1111, rdmsr(0xc0000102));
	wrmsr(0xc0000101, 0);
	wrmsr(0xc0000102, 0);
	CHECK_EQ(GP, run(true, do_swapgs, 0));
}
