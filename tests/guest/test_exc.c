/* test_exc.c - which exception an instruction raises: double faults, LOCK, FPU rules, alignment,
 * privilege, system calls, I/O permission, instruction length.
 *
 * SDM 3A "Interrupt and Exception Handling", the exception tables of SDM 2; AMD APM 2 "Exceptions
 * and Interrupts". */
#include "guest.h"

static int run(bool user, void *code, u64 arg)
{
	void (*fn)(void *) = (void (*)(void *))code;

	return user ? trap_run_user(fn, (void *)arg) : trap_run(fn, (void *)arg);
}

/* Code bytes, then RET, on a page that ring 3 may run too. */
static u8 *code_page;

static int run_bytes(bool user, const u8 *bytes, unsigned n, u64 arg)
{
	if (!code_page)
		code_page = page_alloc_n(2);
	for (unsigned i = 0; i < n; i++)
		code_page[i] = bytes[i];
	code_page[n] = 0xc3;
	return run(user, code_page, arg);
}

/* --- double faults -----------------------------------------------------------------------------
 */
CODE("f_ud: ud2; ret\n"
     "f_int3: int3; ret\n"
     "f_de: xor %edx, %edx; xor %eax, %eax; div %edx; ret\n"
     "f_gp: mov $1, %eax; shl $63, %rax; mov (%rax), %al; ret\n"
     "f_np: mov $0x58, %eax; mov %ax, %es; ret\n"
     "f_ss: mov $0x58, %eax; mov %ax, %ss; ret\n"
     "f_pf: mov $3, %eax; shl $39, %rax; mov (%rax), %al; ret\n"
     "f_nm: mov %cr0, %rax; or $8, %eax; mov %rax, %cr0; fnop; ret\n"
     "f_int: int $0x30; ret\n");
extern char f_ud[], f_int3[], f_de[], f_gp[], f_np[], f_ss[], f_pf[], f_nm[], f_int[];

enum fault_class { BENIGN, CONTRIBUTORY, PAGE_FAULT };
static const struct first {
	const char *name;
	void *code;
	u8 vector;
	enum fault_class cls;
	bool soft; /* INT n and INT3: EXT is 0 in the second fault's error code */
} firsts[] = {
	{"#UD", f_ud, UD, BENIGN, false},       {"#BP", f_int3, BP, BENIGN, true},
	{"#NM", f_nm, NM, BENIGN, false},       {"INT n", f_int, 0x30, BENIGN, true},
	{"#DE", f_de, DE, CONTRIBUTORY, false}, {"#GP", f_gp, GP, CONTRIBUTORY, false},
	{"#NP", f_np, NP, CONTRIBUTORY, false}, {"#SS", f_ss, SS, CONTRIBUTORY, false},
	{"#PF", f_pf, PF, PAGE_FAULT, false},
};

/* How delivery of the first is made to fail. */
enum { GATE_ABSENT, GATE_TYPE, GATE_SELECTOR, STACK_CANONICAL, STACK_UNMAPPED, STACK_OUTSIDE };
static const struct second {
	const char *name;
	u8 how, vector;
	enum fault_class cls;
} seconds[] = {
	{"#NP for the gate", GATE_ABSENT, NP, CONTRIBUTORY},
	{"#GP for the gate", GATE_TYPE, GP, CONTRIBUTORY},
	{"#GP for the selector", GATE_SELECTOR, GP, CONTRIBUTORY},
	{"#SS for the stack", STACK_CANONICAL, SS, CONTRIBUTORY},
	{"#PF for the stack", STACK_UNMAPPED, PF, PAGE_FAULT},
	{"#TS for the stack", STACK_OUTSIDE, TS, CONTRIBUTORY},
};

/* SDM 3A table "Conditions for Generating a Double Fault". */
static bool becomes_double(enum fault_class first, enum fault_class second)
{
	if (first == CONTRIBUTORY)
		return second == CONTRIBUTORY;
	return first == PAGE_FAULT && second != BENIGN;
}

static void load_tss_limit(u32 limit)
{
	u64 base = (u64)&guest_tss;

	gdt[SEL_TSS / 8] = seg_desc((u32)base, limit, 9, 0, true, 0);
	gdt[SEL_TSS / 8 + 1] = base >> 32;
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
}

enum { TSS_LIMIT = sizeof(struct tss) - 1 };

static u32 spoil(const struct first *f, u8 how)
{
	u64 *gate = idt_entry(f->vector);
	u32 ext = !f->soft, idt_error = f->vector * 8 + 2 + ext;

	switch (how) {
	case GATE_ABSENT:
		gate[0] &= ~BIT(47);
		return idt_error;
	case GATE_TYPE:
		gate[0] &= ~(0xfull << 40);
		return idt_error;
	case GATE_SELECTOR:
		gate[0] = (gate[0] & ~(0xffffull << 16)) | SEL_DATA << 16;
		return SEL_DATA + ext;
	case STACK_CANONICAL:
		gate[0] |= 2ull << 32;
		guest_tss.ist[1] = BIT(60);
		return ext;
	case STACK_UNMAPPED:
		gate[0] |= 2ull << 32;
		guest_tss.ist[1] = (4ull << 39) + 0x1000;
		return PF_W;
	default:
		gate[0] |= 7ull << 32;
		load_tss_limit(36 + 6 * 8 + 6); /* IST7 ends one byte later */
		return SEL_TSS + ext;
	}
}

static void check_double(const struct first *f, const struct second *s)
{
	bool dbl = becomes_double(f->cls, s->cls);
	u64 *gate, old;
	u32 error;
	int got;

	if (f->vector == s->vector && !dbl)
		return; /* not deliverable either */
	gate = idt_entry(f->vector);
	old = gate[0];
	error = spoil(f, s->how);
	/* The same vector again would meet the same gate: #DF, which is right for those. */
	got = run(false, f->code, 0);
	gate[0] = old;
	WRITE_CR(0, READ_CR(0) & ~CR0_TS);
	if (s->how == STACK_OUTSIDE)
		load_tss_limit(TSS_LIMIT);
#define ROW guest_name("%s, then %s", f->name, s->name)
	CHECK_ROW(ROW, dbl ? DF : s->vector, got);
	CHECK_ROW(ROW, dbl ? 0 : error, trap_last()->error);
	if (s->vector == PF)
		CHECK_ROW(ROW, (4ull << 39) + 0x1000 - 8, trap_last()->cr2);
#undef ROW
}

TEST(double_faults_are_made_of_the_right_pairs)
{
	gdt[SEL_TEST / 8] = seg_desc(0, 0xfffff, 0x13, 0, false, SEG_G | SEG_DB);
	for (unsigned i = 0; i < ARRAY_SIZE(firsts); i++)
		for (unsigned k = 0; k < ARRAY_SIZE(seconds); k++)
			check_double(&firsts[i], &seconds[k]);
}

/* --- LOCK --------------------------------------------------------------------------------------
 */
static u64 lock_target[4] __attribute__((aligned(16)));

static const struct bytes_row {
	const char *name;
	u8 code[15], size;
	int vector;
} lock_rows[] = {
	{"ADD to memory", {0xf0, 0x01, 0x07}, 3, NONE},
	{"ADD from memory", {0xf0, 0x03, 0x07}, 3, UD},
	{"ADD register", {0xf0, 0x01, 0xc0}, 3, UD},
	{"ADD immediate to memory", {0xf0, 0x83, 0x07, 1}, 4, NONE},
	{"OR, ADC, SBB, AND, SUB, XOR: OR", {0xf0, 0x09, 0x07}, 3, NONE},
	{"XOR immediate", {0xf0, 0x80, 0x37, 1}, 4, NONE},
	{"CMP to memory", {0xf0, 0x39, 0x07}, 3, UD},
	{"CMP immediate", {0xf0, 0x83, 0x3f, 1}, 4, UD},
	{"TEST", {0xf0, 0x85, 0x07}, 3, UD},
	{"XCHG memory", {0xf0, 0x87, 0x07}, 3, NONE},
	{"XCHG registers", {0xf0, 0x87, 0xc0}, 3, UD},
	{"XCHG with RAX", {0xf0, 0x91}, 2, UD},
	{"MOV to memory", {0xf0, 0x89, 0x07}, 3, UD},
	{"MOV immediate", {0xf0, 0xc6, 0x07, 1}, 4, UD},
	{"INC memory", {0xf0, 0xff, 0x07}, 3, NONE},
	{"DEC memory", {0xf0, 0xfe, 0x0f}, 3, NONE},
	{"INC register", {0xf0, 0xff, 0xc0}, 3, UD},
	{"NOT memory", {0xf0, 0xf7, 0x17}, 3, NONE},
	{"NEG memory", {0xf0, 0xf6, 0x1f}, 3, NONE},
	{"MUL memory", {0xf0, 0xf7, 0x27}, 3, UD},
	{"PUSH memory", {0xf0, 0xff, 0x37}, 3, UD},
	{"BT", {0xf0, 0x0f, 0xa3, 0x07}, 4, UD},
	{"BT immediate", {0xf0, 0x0f, 0xba, 0x27, 1}, 5, UD},
	{"BTS", {0xf0, 0x0f, 0xba, 0x2f, 1}, 5, NONE},
	{"BTR", {0xf0, 0x0f, 0xba, 0x37, 1}, 5, NONE},
	{"BTC", {0xf0, 0x0f, 0xba, 0x3f, 1}, 5, NONE},
	{"BTS register", {0xf0, 0x0f, 0xba, 0xe8, 1}, 5, UD},
	{"XADD memory", {0xf0, 0x0f, 0xc1, 0x07}, 4, NONE},
	{"XADD register", {0xf0, 0x0f, 0xc1, 0xc0}, 4, UD},
	{"CMPXCHG memory", {0xf0, 0x0f, 0xb1, 0x07}, 4, NONE},
	{"CMPXCHG register", {0xf0, 0x0f, 0xb1, 0xc0}, 4, UD},
	{"CMPXCHG8B", {0xf0, 0x0f, 0xc7, 0x0f}, 4, NONE},
	{"SHL memory", {0xf0, 0xd1, 0x27}, 3, UD},
	{"NOP", {0xf0, 0x90}, 2, UD},
	{"LEA", {0xf0, 0x8d, 0x07}, 3, UD},
	{"MOVS", {0xf0, 0xa4}, 2, UD},
	{"STOS", {0xf0, 0xaa}, 2, UD},
	{"PUSH", {0xf0, 0x50}, 2, UD},
	{"JMP", {0xf0, 0xeb, 0}, 3, UD},
	{"CPUID", {0xf0, 0x0f, 0xa2}, 3, UD},
	{"LGDT", {0xf0, 0x0f, 0x01, 0x17}, 4, UD},
	{"FLD", {0xf0, 0xd9, 0x07}, 3, UD},
	{"MOVAPS", {0xf0, 0x0f, 0x28, 0x07}, 4, UD},
	{"MFENCE", {0xf0, 0x0f, 0xae, 0xf0}, 4, UD},
	{"after other prefixes", {0x66, 0x2e, 0xf0, 0x01, 0x07}, 5, NONE},
};

TEST(lock_is_for_read_modify_write_of_memory)
{
	for (unsigned i = 0; i < ARRAY_SIZE(lock_rows); i++)
		CHECK_ROW(lock_rows[i].name, lock_rows[i].vector,
			  run_bytes(false, lock_rows[i].code, lock_rows[i].size, (u64)lock_target));
}

/* --- opcodes -----------------------------------------------------------------------------------
 */
static const struct bytes_row opcode_rows[] = {
	{"UD2", {0x0f, 0x0b}, 2, UD},
	{"UD1", {0x0f, 0xb9, 0xc0}, 3, UD},
	{"UD0", {0x0f, 0xff, 0xc0}, 3, UD},
	{"PUSH ES", {0x06}, 1, UD},
	{"POP ES", {0x07}, 1, UD},
	{"PUSH CS", {0x0e}, 1, UD},
	{"PUSH SS", {0x16}, 1, UD},
	{"POP SS", {0x17}, 1, UD},
	{"PUSH DS", {0x1e}, 1, UD},
	{"POP DS", {0x1f}, 1, UD},
	{"DAA", {0x27}, 1, UD},
	{"DAS", {0x2f}, 1, UD},
	{"AAA", {0x37}, 1, UD},
	{"AAS", {0x3f}, 1, UD},
	{"PUSHA", {0x60}, 1, UD},
	{"POPA", {0x61}, 1, UD},
	{"82h group", {0x82, 0xc0, 0}, 3, UD},
	{"far CALL with a pointer", {0x9a, 0, 0, 0, 0, 8, 0}, 7, UD},
	{"far JMP with a pointer", {0xea, 0, 0, 0, 0, 8, 0}, 7, UD},
	{"INTO", {0xce}, 1, UD},
	{"AAM", {0xd4, 10}, 2, UD},
	{"AAD", {0xd5, 10}, 2, UD},
	{"SALC", {0xd6}, 1, UD},
	{"group 4 /2", {0xfe, 0xd0}, 2, UD},
	{"group 5 /7", {0xff, 0xf8}, 2, UD},
	{"group 11 /1", {0xc6, 0xc8, 0}, 3, UD},
	{"POP group /1", {0x8f, 0xc8}, 2, UD},
	{"LEA of a register", {0x8d, 0xc0}, 2, UD},
	{"LSS of a register", {0x0f, 0xb2, 0xc0}, 3, UD},
	{"far JMP by a register", {0xff, 0xe8}, 2, UD},
	{"far CALL by a register", {0xff, 0xd8}, 2, UD},
	{"INVLPG of a register", {0x0f, 0x01, 0xff}, 3, UD},
	{"CMPXCHG8B of a register", {0x0f, 0xc7, 0xc8}, 3, UD},
	{"MOVNTI of a register", {0x0f, 0xc3, 0xc0}, 3, UD},
	{"LGDT of a register", {0x0f, 0x01, 0xd7}, 3, UD},
	{"group 6 /6", {0x0f, 0x00, 0x30}, 3, UD},
	{"group 8 /0", {0x0f, 0xba, 0xc0, 0}, 4, UD},
	{"0F 04", {0x0f, 0x04}, 2, UD},
	{"0F 0A", {0x0f, 0x0a}, 2, UD},
	{"0F 24: MOV from test register", {0x0f, 0x24, 0xc0}, 3, UD},
	{"0F 26: MOV to test register", {0x0f, 0x26, 0xc0}, 3, UD},
	{"0F 3B", {0x0f, 0x3b}, 2, UD},
	{"0F A6", {0x0f, 0xa6, 0xc0}, 3, UD},
	{"VEX with LOCK", {0xf0, 0xc5, 0xf8, 0x57, 0xc0}, 5, UD},
	{"VEX after 66", {0x66, 0xc5, 0xf8, 0x57, 0xc0}, 5, UD},
	{"VEX after REX", {0x40, 0xc5, 0xf8, 0x57, 0xc0}, 5, UD},
	{"RSM outside SMM", {0x0f, 0xaa}, 2, UD},
	{"multi-byte NOP", {0x0f, 0x1f, 0xc0}, 3, NONE},
	{"hint NOP 0F 19", {0x0f, 0x19, 0xc0}, 3, NONE},
	{"REX before nothing of use", {0x48, 0x90}, 2, NONE},
	{"REX that does not count", {0x48, 0x66, 0x90}, 3, NONE},
	{"PAUSE", {0xf3, 0x90}, 2, NONE},
	{"REP RET", {0xf3, 0xc3}, 2, NONE},
	{"REPNE NOP", {0xf2, 0x90}, 2, NONE},
	{"segment prefixes", {0x2e, 0x36, 0x3e, 0x26, 0x90}, 5, NONE},
	{"SHL /6 is SHL", {0xd1, 0xf0}, 2, NONE},
	{"TEST /1 is TEST", {0xf6, 0xc8, 0}, 3, NONE},
};

TEST(opcodes_that_do_not_exist_in_64_bit_mode)
{
	for (unsigned i = 0; i < ARRAY_SIZE(opcode_rows); i++) {
		CHECK_ROW(opcode_rows[i].name, opcode_rows[i].vector,
			  run_bytes(false, opcode_rows[i].code, opcode_rows[i].size, 0));
		if (opcode_rows[i].vector == UD)
			CHECK_ROW(opcode_rows[i].name, code_page, trap_last()->rip);
	}
}

/* --- length ------------------------------------------------------------------------------------
 */
TEST(instructions_have_at_most_15_bytes)
{
	static const struct {
		const char *name;
		u8 tail[8], size;
	} rows[] = {
		{"NOP", {0x90}, 1},
		{"MOV with immediate", {0xb8, 1, 0}, 3},
		{"ADD with displacement", {0x01, 0x44, 0x27, 0x00}, 4},
		{"far JMP's opcode alone decides nothing", {0x0f, 0x1f, 0x40, 0x00}, 4},
	};
	u8 code[20];

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
		for (unsigned len = 13; len <= 17; len++) {
			unsigned prefixes = len - rows[i].size;

			for (unsigned k = 0; k < prefixes; k++)
				code[k] = k & 1 ? 0x66 : 0x3e;
			for (unsigned k = 0; k < rows[i].size; k++)
				code[prefixes + k] = rows[i].tail[k];
			CHECK_ROW(guest_name("%s, %u bytes", rows[i].name, len),
				  len > 15 ? GP : NONE,
				  run_bytes(false, code, len, (u64)lock_target));
			if (len > 15)
				CHECK_ROW(rows[i].name, 0, trap_last()->error);
		}
}

/* --- x87, MMX, SSE, AVX availability -------------------------------------------------------------
 */
enum fpu_kind { X87, WAIT, MMX, SSE, FXSAVE, LDMXCSR, AVX, XSAVE, INTEGER };
static const struct {
	const char *name;
	u8 kind, code[8], size;
} fpu_rows[] = {
	{"FNOP", X87, {0xd9, 0xd0}, 2},
	{"FNINIT", X87, {0xdb, 0xe3}, 2},
	{"FNSTSW AX", X87, {0xdf, 0xe0}, 2},
	{"FLD", X87, {0xd9, 0x07}, 2},
	{"FNSTCW", X87, {0xd9, 0x3f}, 2},
	{"FWAIT", WAIT, {0x9b}, 1},
	{"EMMS", MMX, {0x0f, 0x77}, 2},
	{"PXOR MM", MMX, {0x0f, 0xef, 0xc0}, 3},
	{"MOVQ MM from memory", MMX, {0x0f, 0x6f, 0x07}, 3},
	{"XORPS", SSE, {0x0f, 0x57, 0xc0}, 3},
	{"PXOR XMM", SSE, {0x66, 0x0f, 0xef, 0xc0}, 4},
	{"MOVUPS from memory", SSE, {0x0f, 0x10, 0x07}, 3},
	{"CVTSI2SD", SSE, {0xf2, 0x0f, 0x2a, 0xc0}, 4},
	{"LDMXCSR", LDMXCSR, {0x0f, 0xae, 0x17}, 3},
	{"STMXCSR", LDMXCSR, {0x0f, 0xae, 0x1f}, 3},
	{"FXSAVE", FXSAVE, {0x0f, 0xae, 0x07}, 3},
	{"FXRSTOR", FXSAVE, {0x0f, 0xae, 0x0f}, 3},
	{"VXORPS", AVX, {0xc5, 0xf8, 0x57, 0xc0}, 4},
	{"VXORPS YMM", AVX, {0xc5, 0xfc, 0x57, 0xc0}, 4},
	{"VZEROUPPER", AVX, {0xc5, 0xf8, 0x77}, 3},
	{"XSAVE", XSAVE, {0x0f, 0xae, 0x27}, 3},
	{"MFENCE", INTEGER, {0x0f, 0xae, 0xf0}, 3},
	{"PREFETCH", INTEGER, {0x0f, 0x18, 0x07}, 3},
	{"MOVNTI", INTEGER, {0x0f, 0xc3, 0x07}, 3},
	{"POPCNT", INTEGER, {0xf3, 0x0f, 0xb8, 0xc0}, 4},
	{"CRC32", INTEGER, {0xf2, 0x0f, 0x38, 0xf0, 0xc0}, 5},
};

struct fpu_control {
	bool em, ts, mp, osfxsr, osxsave;
	u8 xcr0; /* only with osxsave */
};

static int model_fpu(u8 kind, const struct fpu_control *c)
{
	switch (kind) {
	case X87:
		return c->em || c->ts ? NM : NONE;
	case WAIT:
		return c->mp && c->ts ? NM : NONE;
	case MMX:
		return c->em ? UD : c->ts ? NM : NONE;
	case SSE:
	case LDMXCSR:
		return c->em || !c->osfxsr ? UD : c->ts ? NM : NONE;
	case FXSAVE:
		return c->em || c->ts ? NM : NONE;
	case AVX:
		return !c->osxsave || (c->xcr0 & 6) != 6 ? UD : c->ts ? NM : NONE;
	case XSAVE:
		return !c->osxsave ? UD : c->ts ? NM : NONE;
	default:
		return NONE;
	}
}

static void set_fpu(const struct fpu_control *c)
{
	u64 cr0 = READ_CR(0) & ~(CR0_EM | CR0_TS | CR0_MP), cr4 = READ_CR(4);

	cr4 &= ~(CR4_OSFXSR | CR4_OSXSAVE);
	if (c->osxsave) {
		WRITE_CR(4, cr4 | CR4_OSXSAVE);
		asm volatile("xsetbv" : : "c"(0), "a"((u32)c->xcr0), "d"(0));
	}
	WRITE_CR(4, cr4 | (c->osfxsr ? CR4_OSFXSR : 0) | (c->osxsave ? CR4_OSXSAVE : 0));
	WRITE_CR(0, cr0 | (c->em ? CR0_EM : 0) | (c->ts ? CR0_TS : 0) | (c->mp ? CR0_MP : 0));
}

static const struct fpu_control fpu_usual = {false, false, true, true, false, 0};

TEST(fpu_instructions_follow_cr0_cr4_and_xcr0)
{
	static u8 area[1024] __attribute__((aligned(64)));
	bool avx = cpu_has(1, 0, ECX, 28);

	*(u32 *)(area + 24) = 0x1f80; /* FXRSTOR's MXCSR */
	for (unsigned n = 0; n < 96; n++) {
		struct fpu_control c = {n & 1, n & 2, n & 4, n & 8, n & 16 && avx, n >= 64 ? 3 : 7};

		if (n >= 64 && !c.osxsave)
			continue;
		for (unsigned i = 0; i < ARRAY_SIZE(fpu_rows); i++) {
			int want = model_fpu(fpu_rows[i].kind, &c), got;

			*(u32 *)area = 0x1f80; /* LDMXCSR's operand */
			for (unsigned user = 0; user < 2; user++) {
				set_fpu(&c);
				got = run_bytes(user, fpu_rows[i].code, fpu_rows[i].size,
						(u64)area);
				set_fpu(&fpu_usual);
				CHECK_ROW(
					guest_name("%s, EM%d TS%d MP%d OSFXSR%d OSXSAVE%d XCR0 %d, "
						   "ring %d",
						   fpu_rows[i].name, c.em, c.ts, c.mp, c.osfxsr,
						   c.osxsave, c.xcr0, user ? 3 : 0),
					want, got);
			}
			asm volatile("fninit");
		}
	}
}

/* Exceptions of the units themselves. */
CODE("mf_raise: fninit; fldcw mf_cw; fld1; fldz; fdivrp\n"
     "mf_at: fnop; fninit; ret\n"
     "mf_wait: fninit; fldcw mf_cw; fld1; fldz; fdivrp\n"
     "mf_wait_at: fwait; fninit; ret\n"
     "mf_mmx: fninit; fldcw mf_cw; fld1; fldz; fdivrp\n"
     "mf_mmx_at: emms; fninit; ret\n"
     "mf_nowait: fninit; fldcw mf_cw; fld1; fldz; fdivrp; fnstsw %ax; fnstcw mf_scratch; fnclex\n"
     "	fnop; fninit; ret\n"
     "mf_late: fninit; fld1; fldz; fdivrp; fldcw mf_cw\n" /* unmasked afterwards */
     "mf_late_at: fnop; fninit; ret\n"
     "mf_fxsave: fninit; fldcw mf_cw; fld1; fldz; fdivrp; fxsave fx_area; fnclex; fninit; ret\n"
     ".data\n"
     ".balign 64\n"
     "fx_area: .skip 512\n"
     "mf_cw: .word 0x37b\n" /* division by zero unmasked */
     "mf_scratch: .word 0\n");
extern char mf_raise[], mf_at[], mf_wait[], mf_wait_at[], mf_mmx[], mf_mmx_at[], mf_nowait[],
	mf_late[], mf_late_at[], mf_fxsave[];

static const struct {
	const char *name;
	char *code, *at;
} mf_rows[] = {
	{"at the next x87 instruction", mf_raise, mf_at},
	{"at FWAIT", mf_wait, mf_wait_at},
	{"at an MMX instruction", mf_mmx, mf_mmx_at},
	{"not at instructions that do not wait", mf_nowait, NULL},
	{"unmasked later", mf_late, mf_late_at},
	{"not at FXSAVE", mf_fxsave, NULL},
};

TEST(x87_exceptions_come_with_the_next_waiting_instruction)
{
	for (unsigned i = 0; i < ARRAY_SIZE(mf_rows); i++)
		for (unsigned user = 0; user < 2; user++) {
			CHECK_ROW(mf_rows[i].name, mf_rows[i].at ? MF : NONE,
				  run(user, mf_rows[i].code, 0));
			if (mf_rows[i].at)
				CHECK_ROW(mf_rows[i].name, mf_rows[i].at, trap_last()->rip);
			asm volatile("fnclex; fninit");
		}
}

CODE("xm_raise: ldmxcsr xm_open; xorps %xmm0, %xmm0; movaps xm_ones, %xmm1\n"
     "xm_at: divps %xmm0, %xmm1; ldmxcsr xm_default; ret\n"
     "xm_masked: ldmxcsr xm_default; xorps %xmm0, %xmm0; movaps xm_ones, %xmm1\n"
     "	divps %xmm0, %xmm1; ldmxcsr xm_default; ret\n"
     "xm_reserved: ldmxcsr xm_bad; ret\n"
     ".data\n"
     ".balign 16\n"
     "xm_ones: .float 1, 1, 1, 1\n"
     "xm_open: .long 0x1d80\n"
     "xm_default: .long 0x1f80\n"
     "xm_bad: .long 0x80001f80\n");
extern char xm_raise[], xm_at[], xm_masked[], xm_reserved[];

TEST(simd_exceptions_are_xm_or_ud)
{
	WRITE_CR(4, READ_CR(4) & ~CR4_OSXMM);
	CHECK_EQ(UD, run(false, xm_raise, 0));
	CHECK_EQ(xm_at, trap_last()->rip);
	CHECK_EQ(NONE, run(false, xm_masked, 0));
	WRITE_CR(4, READ_CR(4) | CR4_OSXMM);
	CHECK_EQ(XM, run(false, xm_raise, 0));
	CHECK_EQ(xm_at, trap_last()->rip);
	CHECK_EQ(XM, run(true, xm_raise, 0));
	CHECK_EQ(NONE, run(false, xm_masked, 0));
	CHECK_EQ(GP, run(false, xm_reserved, 0));
}

/* --- alignment ---------------------------------------------------------------------------------
 */
CODE(".macro with_ac name, code\n"
     "	\\name: pushfq; orl $0x40000, (%rsp); popfq; \\code; pushfq; andl $~0x40000, (%rsp)\n"
     "	popfq; ret\n"
     ".endm\n"
     "with_ac ac_1, \"mov (%rdi), %al\"\n"
     "with_ac ac_2, \"mov (%rdi), %ax\"\n"
     "with_ac ac_4, \"mov (%rdi), %eax\"\n"
     "with_ac ac_8, \"mov %rax, (%rdi)\"\n"
     "with_ac ac_lock, \"lock incl (%rdi)\"\n"
     "with_ac ac_fld, \"fldl (%rdi); fninit\"\n"
     "with_ac ac_push, \"mov %rsp, %rbx; lea 64(%rdi), %rsp; push $0; mov %rbx, %rsp\"\n"
     "with_ac ac_call, \"mov %rsp, %rbx; lea 64(%rdi), %rsp; call ac_ret; mov %rbx, %rsp\"\n"
     "ac_ret: ret\n"
     "with_ac ac_movaps, \"movaps (%rdi), %xmm0\"\n"
     "no_ac: mov (%rdi), %rax; ret\n");
extern char ac_1[], ac_2[], ac_4[], ac_8[], ac_lock[], ac_fld[], ac_push[], ac_call[], ac_movaps[],
	no_ac[];

static const struct {
	const char *name;
	char *code;
	u8 align;    /* what the access needs; 0: never checked */
	bool always; /* #GP without alignment checking too */
} ac_rows[] = {
	{"byte", ac_1, 1, false},        {"word", ac_2, 2, false},
	{"doubleword", ac_4, 4, false},  {"quadword store", ac_8, 8, false},
	{"locked", ac_lock, 4, false},   {"FLD of a double", ac_fld, 8, false},
	{"PUSH", ac_push, 8, false},     {"CALL", ac_call, 8, false},
	{"MOVAPS", ac_movaps, 16, true},
};

static void check_alignment(unsigned row, unsigned offset, bool user, bool am)
{
	static u8 data[160] __attribute__((aligned(64)));
	bool aligned = offset % ac_rows[row].align == 0;
	int want = aligned ? NONE : ac_rows[row].always ? GP : user && am ? AC : NONE;

	CHECK_ROW(
		guest_name("%s at +%u, ring %d, AM%d", ac_rows[row].name, offset, user ? 3 : 0, am),
		want, run(user, ac_rows[row].code, (u64)data + offset));
	if (want == AC)
		CHECK_ROW(ac_rows[row].name, 0, trap_last()->error);
}

TEST(alignment_is_checked_in_ring_3_with_am_and_ac)
{
	for (unsigned am = 0; am < 2; am++) {
		WRITE_CR(0, (READ_CR(0) & ~CR0_AM) | (am ? CR0_AM : 0));
		for (unsigned row = 0; row < ARRAY_SIZE(ac_rows); row++)
			for (unsigned offset = 0; offset < 16; offset++)
				for (unsigned user = 0; user < 2; user++)
					check_alignment(row, offset, user, am);
		CHECK_EQ(NONE, run(true, no_ac, (u64)lock_target + 1));
	}
	WRITE_CR(0, READ_CR(0) & ~CR0_AM);
}

/* --- division ----------------------------------------------------------------------------------
 */
CODE("div_8: mov %edi, %eax; mov $0x10, %cl; div %cl; ret\n"
     "idiv_8: mov %edi, %eax; mov $-1, %cl; idiv %cl; ret\n"
     "div_64: mov %rdi, %rdx; xor %eax, %eax; mov $7, %ecx; div %rcx; ret\n"
     "idiv_64: mov %rdi, %rax; cqo; mov $-1, %rcx; idiv %rcx; ret\n"
     "idiv_32: mov %edi, %eax; cltd; mov $-1, %ecx; idiv %ecx; ret\n");
extern char div_8[], idiv_8[], div_64[], idiv_64[], idiv_32[];

static const struct {
	const char *name;
	char *code;
	u64 arg;
	int vector;
} div_rows[] = {
	{"8 bits, quotient 255", div_8, 0xfff, NONE},
	{"8 bits, quotient 256", div_8, 0x1000, DE},
	{"8 bits signed, quotient 127", idiv_8, 0xff81, NONE},
	{"8 bits signed, quotient 128", idiv_8, 0xff80, DE},
	{"8 bits signed, quotient -128", idiv_8, 128, NONE},
	{"64 bits, high part below the divisor", div_64, 6, NONE},
	{"64 bits, high part as the divisor", div_64, 7, DE},
	{"64 bits signed, most negative by -1", idiv_64, 1ull << 63, DE},
	{"64 bits signed, one above", idiv_64, (1ull << 63) + 1, NONE},
	{"32 bits signed, most negative by -1", idiv_32, 1u << 31, DE},
};

TEST(division_faults_on_overflow)
{
	for (unsigned i = 0; i < ARRAY_SIZE(div_rows); i++)
		CHECK_ROW(div_rows[i].name, div_rows[i].vector,
			  run(false, div_rows[i].code, div_rows[i].arg));
}

/* --- privileged instructions ---------------------------------------------------------------------
 */
static const struct bytes_row privileged[] = {
	{"HLT", {0xf4}, 1, GP},
	{"CLI", {0xfa}, 1, GP},
	{"STI", {0xfb}, 1, GP},
	{"INVD", {0x0f, 0x08}, 2, GP},
	{"WBINVD", {0x0f, 0x09}, 2, GP},
	{"CLTS", {0x0f, 0x06}, 2, GP},
	{"LGDT", {0x0f, 0x01, 0x17}, 3, GP},
	{"LIDT", {0x0f, 0x01, 0x1f}, 3, GP},
	{"LLDT", {0x0f, 0x00, 0xd7}, 3, GP},
	{"LTR", {0x0f, 0x00, 0xdf}, 3, GP},
	{"LMSW", {0x0f, 0x01, 0xf7}, 3, GP},
	{"INVLPG", {0x0f, 0x01, 0x3f}, 3, GP},
	{"SWAPGS", {0x0f, 0x01, 0xf8}, 3, GP},
	{"RDMSR", {0x0f, 0x32}, 2, GP},
	{"WRMSR", {0x0f, 0x30}, 2, GP},
	{"MOV from CR0", {0x0f, 0x20, 0xc0}, 3, GP},
	{"MOV to CR4", {0x0f, 0x22, 0xe0}, 3, GP},
	{"MOV from DR7", {0x0f, 0x21, 0xf8}, 3, GP},
	{"MOV to DR0", {0x0f, 0x23, 0xc0}, 3, GP},
	{"SYSRET", {0x48, 0x0f, 0x07}, 3, GP},
	{"IN AL, imm", {0xe4, 0x80}, 2, GP},
	{"IN EAX, DX", {0xed}, 1, GP},
	{"OUT imm, AL", {0xe6, 0x80}, 2, GP},
	{"OUT DX, AX", {0x66, 0xef}, 2, GP},
	{"INSB", {0x6c}, 1, GP},
	{"OUTSD", {0x6f}, 1, GP},
	{"INT 0x31", {0xcd, 0x31}, 2, GP},
	{"RDTSC", {0x0f, 0x31}, 2, NONE},
	{"CPUID", {0x0f, 0xa2}, 2, NONE},
	{"SGDT", {0x0f, 0x01, 0x07}, 3, NONE},
	{"SMSW", {0x0f, 0x01, 0xe0}, 3, NONE},
	{"SLDT", {0x0f, 0x00, 0xc0}, 3, NONE},
	{"STR", {0x0f, 0x00, 0xc8}, 3, NONE},
	{"CLFLUSH", {0x0f, 0xae, 0x3f}, 3, NONE},
};

TEST(privileged_instructions_fault_in_ring_3)
{
	for (unsigned i = 0; i < ARRAY_SIZE(privileged); i++) {
		CHECK_ROW(
			privileged[i].name, privileged[i].vector,
			run_bytes(true, privileged[i].code, privileged[i].size, (u64)lock_target));
		if (privileged[i].vector == GP)
			CHECK_ROW(privileged[i].name,
				  privileged[i].code[0] == 0xcd ? 0x31 * 8 + 2 : 0,
				  trap_last()->error);
	}
}

static const struct bytes_row umip_rows[] = {
	{"SGDT", {0x0f, 0x01, 0x07}, 3, GP},   {"SIDT", {0x0f, 0x01, 0x0f}, 3, GP},
	{"SLDT", {0x0f, 0x00, 0xc0}, 3, GP},   {"STR", {0x0f, 0x00, 0xc8}, 3, GP},
	{"SMSW", {0x0f, 0x01, 0xe0}, 3, GP},   {"SMSW to memory", {0x0f, 0x01, 0x27}, 3, GP},
	{"VERR", {0x0f, 0x00, 0xe0}, 3, NONE}, {"LAR", {0x0f, 0x02, 0xc0}, 3, NONE},
};

TEST(umip_hides_system_registers_from_ring_3)
{
	if (!HAS_UMIP) {
		guest_skip("no UMIP");
		return;
	}
	WRITE_CR(4, READ_CR(4) | CR4_UMIP);
	for (unsigned i = 0; i < ARRAY_SIZE(umip_rows); i++) {
		const struct bytes_row *r = &umip_rows[i];

		CHECK_ROW(r->name, r->vector, run_bytes(true, r->code, r->size, (u64)lock_target));
		CHECK_ROW(r->name, NONE, run_bytes(false, r->code, r->size, (u64)lock_target));
	}
	WRITE_CR(4, READ_CR(4) & ~CR4_UMIP);
}

TEST(tsd_keeps_the_time_stamp_from_ring_3)
{
	static const struct bytes_row rows[] = {
		{"RDTSC", {0x0f, 0x31}, 2, GP},
		{"RDTSCP", {0x0f, 0x01, 0xf9}, 3, GP},
	};

	WRITE_CR(4, READ_CR(4) | CR4_TSD);
	for (unsigned i = 0; i < 1u + cpu_has(0x80000001, 0, EDX, 27); i++) {
		CHECK_ROW(rows[i].name, GP, run_bytes(true, rows[i].code, rows[i].size, 0));
		CHECK_ROW(rows[i].name, 0, trap_last()->error);
		CHECK_ROW(rows[i].name, NONE, run_bytes(false, rows[i].code, rows[i].size, 0));
	}
	WRITE_CR(4, READ_CR(4) & ~CR4_TSD);
}

/* --- ports -------------------------------------------------------------------------------------
 */
CODE("p_in_1: mov %edi, %edx; in %dx, %al; ret\n"
     "p_in_2: mov %edi, %edx; in %dx, %ax; ret\n"
     "p_in_4: mov %edi, %edx; in %dx, %eax; ret\n"
     "p_out_1: mov %edi, %edx; xor %eax, %eax; out %al, %dx; ret\n"
     "p_ins_1: mov %edi, %edx; lea p_data, %rdi; insb; ret\n"
     ".data\n"
     "p_data: .quad 0\n");
extern char p_in_1[], p_in_2[], p_in_4[], p_out_1[], p_ins_1[];

/* Bitmap: ports 0x80 and 0x82 are allowed, and 0xb8 to 0xbf; all others not. */
static const struct {
	const char *name;
	char *code;
	u16 port;
	int vector;
} port_rows[] = {
	{"allowed", p_in_1, 0x80, NONE},
	{"allowed OUT", p_out_1, 0x80, NONE},
	{"not allowed", p_in_1, 0x81, GP},
	{"not allowed OUT", p_out_1, 0x81, GP},
	{"second byte not allowed", p_in_2, 0x80, GP},
	{"INS", p_ins_1, 0x82, NONE},
	{"INS not allowed", p_ins_1, 0x83, GP},
	{"four bytes inside", p_in_4, 0xbc, NONE},
	{"four bytes, last outside", p_in_4, 0xbd, GP},
	{"across bytes of the map", p_in_2, 0xb7, GP},
	{"the last port", p_in_1, 0xffff, GP},
};

static void set_bitmap(void)
{
	for (unsigned i = 0; i < sizeof(guest_tss.io_bitmap); i++)
		guest_tss.io_bitmap[i] = 0xff;
	guest_tss.io_bitmap[0x80 / 8] = 0xff & ~5;
	guest_tss.io_bitmap[0xb8 / 8] = 0;
	guest_tss.iomap = offsetof(struct tss, io_bitmap);
}

TEST(the_io_bitmap_decides_for_ring_3)
{
	set_bitmap();
	for (unsigned i = 0; i < ARRAY_SIZE(port_rows); i++) {
		CHECK_ROW(port_rows[i].name, port_rows[i].vector,
			  run(true, port_rows[i].code, port_rows[i].port));
		if (port_rows[i].vector == GP)
			CHECK_ROW(port_rows[i].name, 0, trap_last()->error);
		CHECK_ROW(port_rows[i].name, NONE,
			  run(false, port_rows[i].code, port_rows[i].port));
	}
	guest_tss.iomap = sizeof(guest_tss);
}

/* Two bytes of the map are read always: the map ends with a byte of ones. */
TEST(the_io_bitmap_ends_with_the_tss)
{
	set_bitmap();
	load_tss_limit(offsetof(struct tss, io_bitmap) + 0xb8 / 8 + 1);
	CHECK_EQ(NONE, run(true, p_in_1, 0xb8));
	load_tss_limit(offsetof(struct tss, io_bitmap) + 0xb8 / 8);
	CHECK_EQ(GP, run(true, p_in_1, 0xb8));
	CHECK_EQ(NONE, run(true, p_in_1, 0x80));
	load_tss_limit(0x66);
	CHECK_EQ(GP, run(true, p_in_1, 0x80)); /* no map */
	load_tss_limit(TSS_LIMIT);
	guest_tss.iomap = sizeof(guest_tss);
}

/* With IOPL 3 ring 3 is asked nothing. */
static void enter_with_iopl(void *p)
{
	asm volatile("pushfq; orl $0x3000, (%%rsp); popfq" : : : "memory");
}

TEST(iopl_3_opens_all_ports)
{
	u64 flags;

	enter_with_iopl(NULL);
	CHECK_EQ(NONE, run(true, p_in_1, 0x81));
	CHECK_EQ(NONE, run(true, p_in_4, 0x80));
	asm volatile("pushfq; andl $~0x3000, (%%rsp); popfq; pushfq; pop %0" : "=r"(flags));
	CHECK_EQ(0, flags & FL_IOPL);
	CHECK_EQ(GP, run(true, p_in_1, 0x81));
}

/* --- system calls ------------------------------------------------------------------------------
 */
struct {
	u64 rip, rcx, r11, rflags, cs, ss, rsp, rbx;
} call_seen __attribute__((used));
CODE("syscall_target: mov %rcx, call_seen+8; mov %r11, call_seen+16; pushfq\n"
     "	pop call_seen+24; mov %cs, %eax; mov %rax, call_seen+32; mov %ss, %eax\n"
     "	mov %rax, call_seen+40; mov %rsp, call_seen+48; ud2\n"
     "do_syscall: mov %rsp, %rbx; mov %rbx, %rbp; push %rdi; popfq\n"
     "	syscall\n"
     "after_syscall: ret\n"
     "user_syscall: mov %rsp, %rbx; push %rdi; popfq; syscall\n"
     "after_user_syscall: ret\n"
     "ud_landing: ud2\n");
extern char syscall_target[], user_syscall[], after_user_syscall[], do_syscall[], after_syscall[],
	ud_landing[];
enum { MSR_STAR = 0xc0000081, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK };

TEST(syscall_loads_what_the_msrs_say)
{
	/* user CS base 0x1b: SYSRET's CS 0x2b, SS 0x23, 32-bit CS 0x1b */
	const u64 user_flags = 2 | FL_CF | FL_DF | FL_AC;

	trap_on_ist(true); /* SYSCALL keeps the user's RSP */
	wrmsr(MSR_STAR, (u64)0x1b << 48 | (u64)SEL_CODE << 32);
	wrmsr(MSR_LSTAR, (u64)syscall_target);
	wrmsr(MSR_SFMASK, FL_DF | FL_AC | FL_IF);
	for (unsigned user = 0; user < 2; user++) {
		CHECK_EQ(UD, run(user, user ? user_syscall : do_syscall, user_flags));
		CHECK_EQ((user ? after_user_syscall : after_syscall), call_seen.rcx);
		CHECK_EQ(user_flags, call_seen.r11 & ~FL_IF);
		CHECK_EQ(2 | FL_CF, call_seen.rflags);
		CHECK_EQ(SEL_CODE, call_seen.cs);
		CHECK_EQ(SEL_DATA, call_seen.ss);
		CHECK_EQ(trap_last()->frame.rbx, call_seen.rsp);
	}
	wrmsr(MSR_SFMASK, 0);
	wrmsr(MSR_STAR, (u64)(SEL_CODE | 3) << 32); /* RPL is dropped */
	CHECK_EQ(UD, run(true, user_syscall, 2));
	CHECK_EQ(SEL_CODE, call_seen.cs);
	trap_on_ist(false);
}

CODE("go_sysret: mov $ud_landing, %ecx; mov %rdi, %r11; sysretq\n"
     "go_sysret32: mov $ud_landing, %ecx; mov %rdi, %r11; sysretl\n");
extern char go_sysret[], go_sysret32[];

TEST(sysret_goes_to_ring_3)
{
	const u64 flags = 2 | FL_CF | FL_DF | FL_RF | FL_VM | BIT(3) | BIT(15) | FL_NT;

	trap_on_ist(true);
	wrmsr(MSR_STAR, (u64)(SEL_USER_CODE - 16) << 48 | (u64)SEL_CODE << 32);
	CHECK_EQ(UD, run(false, go_sysret, flags));
	CHECK_EQ(ud_landing, trap_last()->rip);
	CHECK_EQ(SEL_USER_CODE, trap_last()->cs);
	CHECK_EQ(SEL_USER_DATA, trap_last()->frame.ss);
	/* RF and VM are not taken; #UD pushes RF */
	CHECK_EQ(2 | FL_CF | FL_DF | FL_NT | FL_RF, trap_last()->rflags);
	CHECK_EQ(UD, run(false, go_sysret32, 2));
	CHECK_EQ(ud_landing, trap_last()->rip);
	CHECK_EQ(SEL_USER_CODE - 16, trap_last()->cs);
	trap_on_ist(false);
}

TEST(syscall_needs_sce)
{
	CHECK_EQ(GP, run(true, go_sysret, 2));
	wrmsr(EFER, rdmsr(EFER) & ~EFER_SCE);
	CHECK_EQ(UD, run(true, user_syscall, 2));
	CHECK_EQ(UD, run(false, do_syscall, 2));
	CHECK_EQ(UD, run(false, go_sysret, 2));
	wrmsr(EFER, rdmsr(EFER) | EFER_SCE);
}

CODE("go_sysenter: mov %rsp, %rbx; sysenter\n"
     "go_sysexit: mov $ud_landing, %edx; lea -8(%rsp), %rcx; rex.w sysexit\n"
     "go_sysexit32: mov $ud_landing, %edx; lea -8(%rsp), %rcx; sysexit\n"
     "sysenter_target: pushfq; pop call_seen+24; mov %cs, %eax; mov %rax, call_seen+32\n"
     "	mov %ss, %eax; mov %rax, call_seen+40; mov %rsp, call_seen+48; ud2\n");
extern char go_sysenter[], go_sysexit[], go_sysexit32[], sysenter_target[];

/* AMD has no SYSENTER in long mode. */
TEST(sysenter_and_sysexit)
{
	static u8 stack[256] __attribute__((aligned(16)));

	wrmsr(0x174, SEL_CODE);
	wrmsr(0x175, (u64)stack + 256);
	wrmsr(0x176, (u64)sysenter_target);
	if (cpu_is_amd()) {
		CHECK_EQ(UD, run(true, go_sysenter, 0));
		CHECK_EQ(UD, run(false, go_sysexit, 0));
		return;
	}
	trap_on_ist(true);
	CHECK_EQ(UD, run(true, go_sysenter, 0));
	CHECK_EQ(SEL_CODE, call_seen.cs);
	CHECK_EQ(SEL_DATA, call_seen.ss);
	CHECK_EQ((u64)stack + 256, call_seen.rsp);
	CHECK_EQ(0, call_seen.rflags & (FL_IF | FL_VM | FL_RF));
	CHECK_EQ(UD, run(false, go_sysexit, 0));
	CHECK_EQ(SEL_CODE + 32 + 3, trap_last()->cs);
	CHECK_EQ(UD, run(false, go_sysexit32, 0));
	CHECK_EQ(SEL_CODE + 16 + 3, trap_last()->cs);
	CHECK_EQ(GP, run(true, go_sysexit, 0));
	wrmsr(0x174, 3);
	CHECK_EQ(GP, run(true, go_sysenter, 0));
	CHECK_EQ(GP, run(false, go_sysexit, 0));
	trap_on_ist(false);
}
