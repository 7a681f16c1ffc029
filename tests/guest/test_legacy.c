/* test_legacy.c - 32-bit protected mode: segment limits and types, expand-down segments, call gates
 * with parameters, stacks of the TSS, 16-bit gates, and the instructions that 64-bit mode has not.
 *
 * SDM 3A "Protection", SDM 2 (AAA to XLAT); AMD APM 2 "Segment Protection", "Call Gates". */
#include "guest.h"

enum {
	N = SEL_TEST / 8,
	SEL = SEL_TEST,
	SEL2 = SEL_TEST + 8,
	SEL3 = SEL_TEST + 16,
	BEYOND = 0x140, /* first selector outside the GDT */
	FLAT = 0xfffff,
	DATA = 0x13,
	READ_ONLY = 0x11,
	DOWN = 0x17,
	CODE_READ = 0x1b,
	CODE_ONLY = 0x19,
};

static int run(bool user, void *code, u32 arg)
{
	void (*fn)(void *) = (void (*)(void *))code;

	return user ? trap_run_user(fn, (void *)arg) : trap_run(fn, (void *)arg);
}

static void restore_segments(void)
{
	asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%fs; mov %0, %%gs" : : "r"(SEL_DATA));
}

/* --- limits ------------------------------------------------------------------------------------
 */
CODE(".macro touch name, code:vararg\n"
     "	\\name: mov 4(%esp), %edx; mov $0x40, %eax; mov %ax, %es; \\code\n"
     "	mov $0x10, %eax; mov %ax, %es; ret\n"
     ".endm\n"
     "touch rd_1, mov %es:(%edx), %al\n"
     "touch rd_2, mov %es:(%edx), %ax\n"
     "touch rd_4, mov %es:(%edx), %eax\n"
     "touch wr_4, mov %eax, %es:(%edx)\n"
     "touch add_4, lock addl $0, %es:(%edx)\n"
     "touch fld_8, fldl %es:(%edx)\n"
     "touch ljmp_6, ljmp *%es:(%edx)\n");
extern char rd_1[], rd_2[], rd_4[], wr_4[], add_4[], fld_8[], ljmp_6[];

static const struct {
	const char *name;
	char *code;
	u8 size;
	bool write;
} touches[] = {
	{"byte read", rd_1, 1, false},       {"word read", rd_2, 2, false},
	{"doubleword read", rd_4, 4, false}, {"doubleword write", wr_4, 4, true},
	{"locked add", add_4, 4, true},      {"FLD", fld_8, 8, false},
	{"far pointer", ljmp_6, 6, false}, /* a null selector: #GP(0) in any case */
};

static const struct {
	const char *name;
	u32 limit; /* as in the descriptor */
	u8 type, flags;
	u32 first, last; /* offsets that are inside */
} segments[] = {
	{"limit 0FFFh", 0xfff, DATA, SEG_DB, 0, 0xfff},
	{"limit 0", 0, DATA, SEG_DB, 0, 0},
	{"limit 2 pages", 1, DATA, SEG_DB | SEG_G, 0, 0x1fff},
	{"16-bit, limit 0FFFFh", 0xffff, DATA, 0, 0, 0xffff},
	{"16-bit, limit 2 MiB", 0x1ff, DATA, SEG_G, 0, 0x1fffff},
	{"read-only", 0xfff, READ_ONLY, SEG_DB, 0, 0xfff},
	{"code", 0xfff, CODE_READ, SEG_DB, 0, 0xfff},
	{"expand-down, 32-bit", 0xfff, DOWN, SEG_DB, 0x1000, 0xffffffff},
	{"expand-down, 16-bit", 0xfff, DOWN, 0, 0x1000, 0xffff},
	{"expand-down, limit in pages", 1, DOWN, SEG_DB | SEG_G, 0x2000, 0xffffffff},
};

static bool writable(u8 type)
{
	return (type & 0x1a) == 0x12;
}

static bool inside(unsigned s, u32 offset, u8 size)
{
	u32 end = offset + size - 1;

	return end >= offset && offset >= segments[s].first && end <= segments[s].last;
}

static void check_limit(unsigned s, unsigned t, u32 offset)
{
	static u64 target[2];
	bool fine = inside(s, offset, touches[t].size) && touches[t].size != 6 &&
		    !(touches[t].write && !writable(segments[s].type));
	int got;

	gdt[N] = seg_desc((u32)target - offset, segments[s].limit, segments[s].type, 0, true,
			  segments[s].flags);
	got = run(false, touches[t].code, offset);
	asm volatile("fninit");
	CHECK_ROW(guest_name("%s of %s at 0x%x", touches[t].name, segments[s].name, offset),
		  fine ? NONE : GP, got);
	if (got == GP)
		CHECK_ROW(segments[s].name, 0, trap_last()->error);
}

TEST(segment_limits_count_to_the_last_byte)
{
	for (unsigned s = 0; s < ARRAY_SIZE(segments); s++)
		for (unsigned t = 0; t < ARRAY_SIZE(touches); t++)
			for (int d = -8; d <= 4; d++) {
				check_limit(s, t, segments[s].last + d);
				if (segments[s].first)
					check_limit(s, t, segments[s].first + d);
			}
	restore_segments();
}

/* --- loads -------------------------------------------------------------------------------------
 */
CODE("load_ds: mov 4(%esp), %eax; mov %ax, %ds; mov $0x10, %eax; mov %ax, %ds; ret\n"
     "load_gs: mov 4(%esp), %eax; mov %ax, %gs; ret\n"
     "load_ss: mov 4(%esp), %eax; mov %ax, %ss; ret\n"
     "pop_es: pushl 4(%esp); pop %es; ret\n"
     "pop_ss: pushl 4(%esp); pop %ss; ret\n"
     "do_lds: sub $8, %esp; mov 12(%esp), %eax; mov %eax, 4(%esp); movl $77, (%esp)\n"
     "	lds (%esp), %eax; add $8, %esp; mov $0x10, %ecx; mov %cx, %ds; ret\n"
     "do_lss: mov 4(%esp), %ecx; sub $8, %esp; mov %ecx, 4(%esp); lea 8(%esp), %eax\n"
     "	mov %eax, (%esp); lss (%esp), %esp; ret\n"
     "use_null: xor %eax, %eax; mov %ax, %es; mov %es:0, %al; ret\n");
extern char load_ds[], load_gs[], load_ss[], pop_es[], pop_ss[], do_lds[], do_lss[], use_null[];

static const struct {
	const char *name;
	void *code;
	u64 desc; /* of SEL */
	u16 sel;
	int vector;
	u32 error;
} load_rows[] = {
	{"DS null", load_gs, 0, 0, NONE, 0},
	{"use of a null ES", use_null, 0, 0, GP, 0},
	{"SS null", load_ss, 0, 0, GP, 0},
	{"POP SS null", pop_ss, 0, 0, GP, 0},
	{"LSS null", do_lss, 0, 0, GP, 0},
	{"DS beyond the GDT", load_ds, 0, BEYOND, GP, BEYOND},
	{"DS system segment", load_ds, 0x0000890000000067, SEL, GP, SEL},
	{"DS execute-only", load_ds, 0x00cf99000000ffff, SEL, GP, SEL},
	{"DS readable code", load_ds, 0x00cf9b000000ffff, SEL, NONE, 0},
	{"DS with RPL 3, DPL 0", load_ds, 0x00cf93000000ffff, SEL | 3, GP, SEL},
	{"DS conforming code, RPL 3, DPL 0", load_ds, 0x00cf9f000000ffff, SEL | 3, NONE, 0},
	{"DS not present", load_ds, 0x00cf13000000ffff, SEL, NP, SEL},
	{"POP ES not present", pop_es, 0x00cf13000000ffff, SEL, NP, SEL},
	{"LDS not present", do_lds, 0x00cf13000000ffff, SEL, NP, SEL},
	{"LDS", do_lds, 0x00cf93000000ffff, SEL, NONE, 0},
	{"SS not present", load_ss, 0x00cf13000000ffff, SEL, SS, SEL},
	{"SS read-only", load_ss, 0x00cf91000000ffff, SEL, GP, SEL},
	{"SS code", load_ss, 0x00cf9b000000ffff, SEL, GP, SEL},
	{"SS with DPL 3", load_ss, 0x00cff3000000ffff, SEL, GP, SEL},
	{"SS with RPL 3", load_ss, 0x00cf93000000ffff, SEL | 3, GP, SEL},
	{"LSS not present", do_lss, 0x00cf13000000ffff, SEL, SS, SEL},
};

TEST(segment_loads_name_the_right_fault)
{
	for (unsigned i = 0; i < ARRAY_SIZE(load_rows); i++) {
		int got;

		gdt[N] = load_rows[i].desc;
		got = run(false, load_rows[i].code, load_rows[i].sel);
		asm volatile("mov %0, %%ss" : : "r"(SEL_DATA));
		restore_segments();
		CHECK_ROW(load_rows[i].name, load_rows[i].vector, got);
		if (got > 0)
			CHECK_ROW(load_rows[i].name, load_rows[i].error, trap_last()->error);
	}
}

/* --- code segments -------------------------------------------------------------------------------
 */
CODE("code_wr: mov %eax, %cs:scratch; ret\n"
     "code_rd: mov %cs:scratch, %eax; ret\n"
     "go_sel: pushl $0x40; pushl 8(%esp); lret\n" /* to SEL:arg */
     "exec_only: mov %cs:scratch, %eax; ud2\n"
     ".balign 16\n"
     "small: nop\n" /* 0 */
     "	nop\n"      /* 1, the last byte inside */
     "	ud2\n"      /* 2 */
     ".data; .balign 4\n"
     "scratch: .long 0\n");
extern char code_wr[], code_rd[], go_sel[], exec_only[], small[];

TEST(code_segments_are_not_written_and_may_not_be_readable)
{
	CHECK_EQ(GP, run(false, code_wr, 0));
	CHECK_EQ(0, trap_last()->error);
	CHECK_EQ(NONE, run(false, code_rd, 0));
	gdt[N] = seg_desc(0, FLAT, CODE_ONLY, 0, true, SEG_G | SEG_DB);
	CHECK_EQ(GP, run(false, go_sel, (u32)exec_only));
	CHECK_EQ(SEL, trap_last()->cs);
	gdt[N] = seg_desc(0, FLAT, CODE_READ, 0, true, SEG_G | SEG_DB);
	CHECK_EQ(UD, run(false, go_sel, (u32)exec_only));
}

static const struct {
	const char *name;
	u32 limit, start;
	int vector;
	u32 eip;
} fetch_rows[] = {
	{"all inside", 7, 0, UD, 2},
	{"runs off the limit", 1, 0, GP, 2},
	{"an instruction half inside", 2, 0, GP, 2},
	{"just inside", 3, 0, UD, 2},
	{"far return beyond the limit", 3, 4, GP, ~0u},
};

TEST(code_is_fetched_within_the_limit)
{
	for (unsigned i = 0; i < ARRAY_SIZE(fetch_rows); i++) {
		gdt[N] = seg_desc((u32)small, fetch_rows[i].limit, CODE_READ, 0, true, SEG_DB);
		CHECK_ROW(fetch_rows[i].name, fetch_rows[i].vector,
			  run(false, go_sel, fetch_rows[i].start));
		if (fetch_rows[i].eip != ~0u) {
			CHECK_ROW(fetch_rows[i].name, fetch_rows[i].eip, trap_last()->eip);
			CHECK_ROW(fetch_rows[i].name, SEL, trap_last()->cs);
		} else {
			CHECK_ROW(fetch_rows[i].name, SEL_CODE, trap_last()->cs);
		}
		if (fetch_rows[i].vector == GP)
			CHECK_ROW(fetch_rows[i].name, 0, trap_last()->error);
	}
}

CODE("near_out: .byte 0x66, 0xe9; .word 0x1000\n"); /* JMP rel16 */
extern char near_out[];

TEST(a_16_bit_jump_cuts_eip)
{
	/* the segment begins at near_out: EIP is small, and 4 + 0x1000 */
	gdt[N] = seg_desc((u32)near_out, 0xfff, CODE_READ, 0, true, SEG_DB);
	CHECK_EQ(GP, run(false, go_sel, 0));
	CHECK_EQ(0, trap_last()->eip); /* at the jump: the target is outside */
	CHECK_EQ(SEL, trap_last()->cs);
}

/* --- call gates with parameters ------------------------------------------------------------------
 */
static u8 ring1_stack[1024] __attribute__((aligned(16)));
u32 user_esp;
CODE("call_gate: mov 4(%esp), %ecx; mov %esp, user_esp; mov $40, %edx\n"
     "1:	push %edx; dec %edx; jnz 1b\n" /* 1, 2, 3 ... from the top of the stack up */
     "	lcall $0x43, $0\n"
     "gate_return: mov %esp, %eax; int $0x80\n"
     "gate_target: ud2\n"
     "gate_lret: .byte 0xca\n"
     "gate_release: .word 0\n");
extern char call_gate[], gate_return[], gate_target[], gate_lret[];
extern u16 gate_release;

static void set_gate(u16 sel, u32 offset, u8 type, u8 params, u8 dpl)
{
	gdt[N] = (offset & 0xffff) | (u32)sel << 16 | (u64)(params & 31) << 32 |
		 (u64)(0x80 | dpl << 5 | type) << 40 | (u64)(offset >> 16) << 48;
}

static u32 stack_word(const void *sp, unsigned n, bool wide)
{
	return wide ? ((const u32 *)sp)[n] : ((const u16 *)sp)[n];
}

static void check_gate_frame(unsigned params, bool wide)
{
	const struct trap_frame *f = &trap_last()->frame;
	unsigned slot = wide ? 4 : 2;
	const void *sp = (const void *)f->esp;
	const char *row = guest_name("%s gate, %u parameters", wide ? "32-bit" : "16-bit", params);
	u32 cut = wide ? ~0u : 0xffff, old_sp = user_esp - 160;

	CHECK_ROW(row, SEL2 | 1, f->cs & 0xffff);
	CHECK_ROW(row, SEL3 | 1, f->ss & 0xffff);
	CHECK_ROW(row, (u32)ring1_stack + sizeof(ring1_stack) - slot * (4 + params), f->esp);
	CHECK_ROW(row, (u32)gate_return & cut, stack_word(sp, 0, wide));
	CHECK_ROW(row, SEL_USER_CODE, stack_word(sp, 1, wide) & 0xffff);
	/* parameters are copied slot by slot from the caller's stack, which has 1, 0, 2, 0 ... as
	 * words */
	for (unsigned i = 0; i < params; i++)
		CHECK_ROW(row, wide ? i + 1 : i & 1 ? 0 : i / 2 + 1, stack_word(sp, 2 + i, wide));
	CHECK_ROW(row, old_sp & cut, stack_word(sp, 2 + params, wide));
	CHECK_ROW(row, SEL_USER_DATA, stack_word(sp, 3 + params, wide) & 0xffff);
}

static void use_ring_1(bool wide)
{
	u32 base = wide ? 0 : (u32)gate_target;

	guest_tss.ss1 = SEL3 | 1;
	guest_tss.esp1 = (u32)ring1_stack + sizeof(ring1_stack);
	gdt[N + 1] = seg_desc(base, FLAT, CODE_READ, 1, true, SEG_G | SEG_DB);
	gdt[N + 2] = seg_desc(0, FLAT, DATA, 1, true, SEG_G | SEG_DB);
}

TEST(call_gates_copy_parameters)
{
	static const u8 counts[] = {0, 1, 2, 5, 31};

	for (unsigned wide = 0; wide < 2; wide++)
		for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
			use_ring_1(wide);
			set_gate(SEL2, wide ? (u32)gate_target : 0, wide ? 12 : 4, counts[i], 3);
			CHECK_EQ(UD, run(true, call_gate, 0));
			check_gate_frame(counts[i], wide);
		}
}

TEST(a_far_return_releases_parameters_on_both_stacks)
{
	for (unsigned params = 0; params <= 31; params++) {
		use_ring_1(true);
		gate_release = params * 4;
		asm volatile("cpuid" /* that was code */
			     :
			     : "a"(0)
			     : "ebx", "ecx", "edx", "memory");
		set_gate(SEL2, (u32)gate_lret, 12, params, 3);
		CHECK_EQ(NONE, run(true, call_gate, 0));
		CHECK_ROW(guest_name("%u parameters", params), user_esp - 160 + params * 4,
			  trap_last()->frame.eax);
		CHECK_EQ(SEL_USER_CODE, trap_last()->cs);
	}
}

/* --- stacks of the TSS
 * -----------------------------------------------------------------------------
 */
static const struct {
	const char *name;
	u16 ss;
	u64 desc; /* of SEL3 */
	int vector;
	u32 error;
} stack_rows[] = {
	{"fine", SEL3 | 1, 0x00cfb3000000ffff, UD, 0},
	{"null", 0, 0, TS, 0},
	{"null with RPL 1", 1, 0, TS, 0},
	{"beyond the GDT", BEYOND | 1, 0, TS, BEYOND},
	{"RPL 0", SEL3, 0x00cfb3000000ffff, TS, SEL3},
	{"DPL 0", SEL3 | 1, 0x00cf93000000ffff, TS, SEL3},
	{"read-only", SEL3 | 1, 0x00cfb1000000ffff, TS, SEL3},
	{"code", SEL3 | 1, 0x00cfbb000000ffff, TS, SEL3},
	{"a TSS", SEL3 | 1, 0x0000a90000000067, TS, SEL3},
	{"not present", SEL3 | 1, 0x00cf33000000ffff, SS, SEL3},
	{"limit below ESP", SEL3 | 1, 0x0040b30000000fff, SS, SEL3},
};

TEST(an_inner_stack_segment_is_checked)
{
	for (unsigned i = 0; i < ARRAY_SIZE(stack_rows); i++) {
		use_ring_1(true);
		guest_tss.ss1 = stack_rows[i].ss;
		gdt[N + 2] = stack_rows[i].desc;
		set_gate(SEL2, (u32)gate_target, 12, 0, 3);
		CHECK_ROW(stack_rows[i].name, stack_rows[i].vector, run(true, call_gate, 0));
		CHECK_ROW(stack_rows[i].name, stack_rows[i].error, trap_last()->error);
		if (stack_rows[i].vector != UD)
			CHECK_ROW(stack_rows[i].name, SEL_USER_CODE, trap_last()->cs);
	}
}

/* --- interrupt gates
 * -------------------------------------------------------------------------------
 */
CODE("int_30: mov 4(%esp), %eax; or $0x200, %eax; push 4(%esp); popf; int $0x30\n"
     "int_30_back: ret\n"
     "int_target: ud2\n");
extern char int_30[], int_30_back[], int_target[];

TEST(a_16_bit_interrupt_gate_pushes_words)
{
	const struct trap_frame *f = &trap_last()->frame;
	const u16 *sp;

	gdt[N] = seg_desc((u32)int_target, FLAT, CODE_READ, 0, true, SEG_G | SEG_DB);
	for (unsigned type = 6; type <= 7; type++) {
		idt_set(0x30, 0xabcd0000, SEL, type, 3); /* the upper half does not count */
		CHECK_EQ(UD, run(false, int_30, 2 | FL_CF | FL_IF));
		asm volatile("cli");
		sp = (const u16 *)f->esp;
		CHECK_EQ(SEL, f->cs & 0xffff);
		CHECK_EQ(0, f->eip);
		CHECK_EQ((u32)int_30_back & 0xffff, sp[0]);
		CHECK_EQ(SEL_CODE, sp[1]);
		CHECK_EQ(2 | FL_CF | FL_IF, sp[2]);
		CHECK_ROW("IF", type == 7 ? FL_IF : 0, f->eflags & FL_IF);
		CHECK_EQ(UD, run(true, int_30, 2));
		sp = (const u16 *)f->esp;
		CHECK_EQ(SEL_USER_CODE, sp[1]);
		CHECK_EQ(SEL_USER_DATA, sp[4]);
	}
	idt_reset();
}

/* --- decimal adjustment
 * ----------------------------------------------------------------------------
 */
enum { CF = 1, PF_FLAG = 4, AF = 16, ZF = 64, SF = 128 };

struct bcd {
	u32 eax, flags;
};

#define BCD(name, bytes)                                                                           \
	static struct bcd name(u32 eax, u32 flags)                                                 \
	{                                                                                          \
		asm volatile("push %1; popf; .byte " bytes "; pushf; pop %1"                       \
			     : "+a"(eax), "+r"(flags));                                            \
		return (struct bcd){eax, flags};                                                   \
	}
BCD(do_aaa, "0x37")
BCD(do_aas, "0x3f")
BCD(do_daa, "0x27")
BCD(do_das, "0x2f")
BCD(do_aam, "0xd4, 10")
BCD(do_aam7, "0xd4, 7")
BCD(do_aad, "0xd5, 10")
BCD(do_aad7, "0xd5, 7")
BCD(do_salc, "0xd6")

static u32 szp(u8 v)
{
	u8 p = v ^ v >> 4;

	p ^= p >> 2;
	p ^= p >> 1;
	return (v & SF) | (v ? 0 : ZF) | (p & 1 ? 0 : PF_FLAG);
}

static struct bcd model_ascii(u32 eax, u32 flags, bool sub)
{
	u16 ax = eax;
	bool adjust = (ax & 15) > 9 || flags & AF;

	if (adjust)
		ax += sub ? -0x106 : 0x106;
	ax &= 0xff0f;
	return (struct bcd){(eax & 0xffff0000) | ax, adjust ? CF | AF : 0};
}

static struct bcd model_decimal(u32 eax, u32 flags, bool sub)
{
	u8 old = eax, al = old;
	u32 out = 0;

	if ((old & 15) > 9 || flags & AF) {
		al += sub ? -6 : 6;
		out |= AF;
		if (sub && old < 6) /* a borrow; DAA's carry out of here means old > 99h */
			out |= CF;
	}
	if (old > 0x99 || flags & CF) {
		al += sub ? -0x60 : 0x60;
		out |= CF;
	}
	return (struct bcd){(eax & 0xffffff00) | al, out | szp(al)};
}

static void check_bcd(const char *name, u32 eax, u32 flags, struct bcd want, struct bcd got,
		      u32 mask)
{
	CHECK_ROW(guest_name("%s of 0x%x, flags 0x%x", name, eax, flags), want.eax, got.eax);
	CHECK_ROW(guest_name("%s of 0x%x, flags 0x%x: flags", name, eax, flags), want.flags & mask,
		  got.flags & mask);
}

TEST(decimal_and_ascii_adjustment)
{
	enum { ALL = CF | AF | ZF | SF | PF_FLAG };

	for (u32 al = 0; al < 256; al++)
		for (u32 n = 0; n < 4; n++) {
			u32 eax = 0xabcd1200 | al | n << 9,
			    fl = 2 | (n & 1 ? CF : 0) | (n & 2 ? AF : 0);

			check_bcd("AAA", eax, fl, model_ascii(eax, fl, false), do_aaa(eax, fl),
				  CF | AF);
			check_bcd("AAS", eax, fl, model_ascii(eax, fl, true), do_aas(eax, fl),
				  CF | AF);
			check_bcd("DAA", eax, fl, model_decimal(eax, fl, false), do_daa(eax, fl),
				  ALL);
			check_bcd("DAS", eax, fl, model_decimal(eax, fl, true), do_das(eax, fl),
				  ALL);
			check_bcd("SALC", eax, fl,
				  (struct bcd){(eax & ~0xffu) | (fl & CF ? 0xff : 0), fl},
				  do_salc(eax, fl), ALL);
		}
}

TEST(aam_and_aad)
{
	enum { DEFINED = ZF | SF | PF_FLAG };

	for (u32 ax = 0; ax < 65536; ax += 37) {
		u8 al = ax, ah = ax >> 8;
		u8 sum10 = al + ah * 10, sum7 = al + ah * 7;

		check_bcd("AAM", ax, 2, (struct bcd){al / 10 << 8 | al % 10, szp(al % 10)},
			  do_aam(ax, 2), DEFINED);
		check_bcd("AAM 7", ax, 2, (struct bcd){al / 7 << 8 | al % 7, szp(al % 7)},
			  do_aam7(ax, 2), DEFINED);
		check_bcd("AAD", ax, 2, (struct bcd){sum10, szp(sum10)}, do_aad(ax, 2), DEFINED);
		check_bcd("AAD 7", ax, 2, (struct bcd){sum7, szp(sum7)}, do_aad7(ax, 2), DEFINED);
	}
}

/* --- the rest ----------------------------------------------------------------------------------
 */
static u32 operands[16] __attribute__((aligned(16)));
CODE("l_aam0: mov $5, %al; .byte 0xd4, 0; ret\n"
     "l_into: mov $0x7f, %al; add $1, %al; into; ret\n"
     "l_into_not: xor %eax, %eax; into; ret\n"
     "l_bound: mov 4(%esp), %edx; mov $11, %eax; bound %eax, (%edx); ret\n"
     "l_bound_low: mov 4(%esp), %edx; mov $-6, %eax; bound %eax, (%edx); ret\n"
     "l_bound_edge: mov 4(%esp), %edx; mov $10, %eax; bound %eax, (%edx); mov $-5, %eax\n"
     "	bound %eax, (%edx); ret\n"
     "l_bound_16: mov 4(%esp), %edx; mov $0x10001, %eax; boundw %ax, (%edx); ret\n"
     "l_bound_reg: .byte 0x62, 0xc0; ret\n"
     "l_movsxd: .byte 0x63, 0xc0; ret\n" /* ARPL here */
     "l_82: .byte 0x82, 0xc0, 5; ret\n"  /* ADD AL, 5 */
     "l_les_reg: .byte 0xc4, 0xc0; ret\n"
     "l_lock_inc: .byte 0xf0, 0x40; ret\n"
     "l_swapgs: .byte 0x0f, 0x01, 0xf8; ret\n"
     "l_long_imm: .byte 0x48, 0xb8, 1, 0, 0, 0; ret\n"); /* DEC EAX; MOV EAX, 1 */
extern char l_aam0[], l_into[], l_into_not[], l_bound[], l_bound_low[], l_bound_edge[],
	l_bound_16[], l_bound_reg[], l_82[], l_les_reg[], l_lock_inc[], l_swapgs[], l_long_imm[],
	l_movsxd[];

static const struct {
	const char *name;
	void *code;
	int vector;
} legacy_rows[] = {
	{"AAM 0", l_aam0, DE},
	{"INTO with OF", l_into, OF},
	{"INTO without", l_into_not, NONE},
	{"BOUND above", l_bound, BR},
	{"BOUND below, signed", l_bound_low, BR},
	{"BOUND at both edges", l_bound_edge, NONE},
	{"BOUND of 16 bits", l_bound_16, BR}, /* bounds -5 and -1 */
	{"BOUND of a register", l_bound_reg, UD},
	{"82h is 80h", l_82, NONE},
	{"LES of a register", l_les_reg, UD},
	{"LOCK INC EAX", l_lock_inc, UD},
	{"SWAPGS", l_swapgs, UD},
	{"48h is DEC", l_long_imm, NONE},
	{"63h is ARPL", l_movsxd, NONE},
};

TEST(instructions_of_32_bit_mode)
{
	for (unsigned i = 0; i < ARRAY_SIZE(legacy_rows); i++)
		for (unsigned user = 0; user < 2; user++) {
			operands[0] = -5;
			operands[1] = 10;
			CHECK_ROW(guest_name("%s, ring %d", legacy_rows[i].name, user ? 3 : 0),
				  legacy_rows[i].vector,
				  run(user, legacy_rows[i].code, (u32)operands));
		}
}

/* BOUND is a fault, INTO a trap. */
TEST(saved_eip_of_bound_and_into)
{
	operands[0] = -5;
	operands[1] = 10;
	run(false, l_bound, (u32)operands);
	CHECK_EQ(l_bound + 9, trap_last()->eip);
	run(false, l_into, 0);
	CHECK_EQ(l_into + 5, trap_last()->eip);
}

CODE("pushes: mov 4(%esp), %edx; push %ebx; push %ebp; push %esi; push %edi; mov %esp, %ebp\n"
     "	mov %ebp, (%edx)\n"
     "	mov $1, %eax; mov $2, %ecx; mov $4, %ebx; mov $6, %esi; mov $7, %edi\n"
     "	pusha\n"
     "	mov (%esp), %eax; mov %eax, 4(%edx); mov 12(%esp), %eax; mov %eax, 8(%edx)\n"
     "	mov 28(%esp), %eax; mov %eax, 12(%edx)\n"
     "	movl $99, 12(%esp)\n" /* POPA drops the saved ESP */
     "	movl $55, 28(%esp); popa; mov %eax, 16(%edx); mov %esp, 20(%edx)\n"
     "	pushw %ds; mov %esp, %eax; sub %ebp, %eax; mov %eax, 24(%edx); add $2, %esp\n"
     "	push %ds; mov %esp, %eax; sub %ebp, %eax; mov %eax, 28(%edx); add $4, %esp\n"
     "	pop %edi; pop %esi; pop %ebp; pop %ebx; ret\n"
     "enters: mov 4(%esp), %edx; push %ebp; mov %esp, %ebp; push $0x1111\n"
     "	mov %ebp, (%edx)\n"
     "	enter $8, $2\n"
     "	mov %ebp, 4(%edx); mov %esp, 8(%edx); mov -4(%ebp), %eax; mov %eax, 12(%edx)\n"
     "	mov -8(%ebp), %eax; mov %eax, 16(%edx)\n"
     "	leave; mov %ebp, 20(%edx); pop %eax; pop %ebp; ret\n"
     "arpls: mov 4(%esp), %edx; mov $0x41, %eax; mov $3, %ecx; arpl %cx, %ax; setz (%edx)\n"
     "	mov %eax, 4(%edx); mov $1, %ecx; arpl %cx, %ax; setz 8(%edx); mov %eax, 12(%edx); ret\n");
extern char pushes[], enters[], arpls[];

TEST(pusha_popa_and_pushes_of_segments)
{
	u32 r[8];

	CHECK_EQ(NONE, run(false, pushes, (u32)r));
	CHECK_EQ(7, r[1]);    /* EDI is on top */
	CHECK_EQ(r[0], r[2]); /* ESP as it was before */
	CHECK_EQ(1, r[3]);
	CHECK_EQ(55, r[4]);
	CHECK_EQ(r[0], r[5]);
	CHECK_EQ(-2, (int)r[6]);
	CHECK_EQ(-4, (int)r[7]);
}

TEST(enter_with_levels)
{
	u32 r[6];

	CHECK_EQ(NONE, run(false, enters, (u32)r));
	CHECK_EQ(r[0] - 8, r[1]);     /* the new frame */
	CHECK_EQ(r[1] - 8 - 8, r[2]); /* two pointers and eight bytes below */
	CHECK_EQ(0x1111, r[3]);       /* copied from the old frame's -4 ... */
	CHECK_EQ(r[1], r[4]);         /* and the new frame itself */
	CHECK_EQ(r[0], r[5]);
}

TEST(arpl_raises_the_rpl)
{
	u32 r[4] = {0};

	CHECK_EQ(NONE, run(false, arpls, (u32)r));
	CHECK_EQ(1, r[0] & 0xff);
	CHECK_EQ(0x43, r[1]);
	CHECK_EQ(0, r[2] & 0xff);
	CHECK_EQ(0x43, r[3]);
}
