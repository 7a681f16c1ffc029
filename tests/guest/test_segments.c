/* test_segments.c - selectors, gates and far transfers in long mode.
 *
 * Products over descriptor type, DPL, RPL, CPL and present bit, each against a model written from
 * the operation sections of SDM 2 (MOV, LAR, LSL, VERR, JMP, CALL, RET, IRET, INT) and AMD APM 2
 * "Segment Protection", "Control Transfers".
 *
 * A transfer that succeeds lands on UD2, which is the same in 16-, 32- and 64-bit code; the frame
 * of that #UD then tells where it went. */
#include "guest.h"

enum {
	N = SEL_TEST / 8, /* the descriptor under test, 16 bytes */
	N2 = N + 2,       /* what a gate leads to, or a stack segment */
	SEL = SEL_TEST,
	SEL2 = SEL_TEST + 16,
	BEYOND = 0x158,   /* first selector outside the GDT */
	TYPE_CODE = 0x1b, /* present code, read, accessed; with S */
	TYPE_DATA = 0x13,
	TYPE_GATE = 0xc,
	CONFORMING = 4,
	FLAT = 0xfffff,
};

extern char landing[];
CODE("landing: ud2\n");

struct outcome {
	int vector; /* UD: landed */
	u32 error;
};

static struct outcome landed(void)
{
	return (struct outcome){UD, 0};
}

static struct outcome fault(int vector, u32 selector)
{
	return (struct outcome){vector, selector & 0xfffc};
}

/* What happened, as an outcome.  A #UD anywhere but at the landing is not the landing's. */
static struct outcome observed(int vector)
{
	const struct trap_catch *t = trap_last();

	if (vector == UD && t->rip != (u64)landing)
		return (struct outcome){UD, 0xbad};
	return (struct outcome){vector, vector < 0 || vector == UD ? 0 : t->error};
}

static int run(u8 cpl, void *code, void *arg)
{
	void (*fn)(void *) = (void (*)(void *))code;

	return cpl ? trap_run_user(fn, arg) : trap_run(fn, arg);
}

static bool is_system(u8 type)
{
	return !(type & 0x10);
}

static bool is_code(u8 type)
{
	return (type & 0x18) == 0x18;
}

static bool is_conforming(u8 type)
{
	return is_code(type) && type & CONFORMING;
}

static bool is_readable(u8 type)
{
	return !is_system(type) && (!is_code(type) || type & 2);
}

static bool is_stack(u8 type)
{
	return (type & 0x1a) == 0x12;
}

/* --- loads of data and stack segments ----------------------------------------------------------
 */
extern char load_ds[], load_es[], load_fs[], load_gs[], load_ss[];
CODE("load_ds: mov %edi, %ds; mov %ds, %eax; ret\n"
     "load_es: mov %edi, %es; mov %es, %eax; ret\n"
     "load_fs: mov %edi, %fs; mov %fs, %eax; ret\n"
     "load_gs: mov %edi, %gs; mov %gs, %eax; ret\n"
     "load_ss: mov %edi, %ss; mov %ss, %eax; ret\n");

static const struct {
	const char *name;
	void *code;
	bool stack;
} loads[] = {
	{"DS", load_ds, false}, {"ES", load_es, false}, {"FS", load_fs, false},
	{"GS", load_gs, false}, {"SS", load_ss, true},
};

static struct outcome fine(void)
{
	return (struct outcome){NONE, 0};
}

static struct outcome model_data(u8 type, u8 dpl, bool present, u8 rpl, u8 cpl)
{
	if (!is_readable(type))
		return fault(GP, SEL);
	if (!is_conforming(type) && (rpl > dpl || cpl > dpl))
		return fault(GP, SEL);
	return present ? fine() : fault(NP, SEL);
}

static struct outcome model_stack(u8 type, u8 dpl, bool present, u8 rpl, u8 cpl)
{
	if (rpl != cpl || !is_stack(type) || dpl != cpl)
		return fault(GP, SEL);
	return present ? fine() : fault(SS, SEL);
}

static void restore_segments(void)
{
	asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%ss; mov %1, %%fs; mov %1, %%gs"
		     :
		     : "r"(SEL_DATA), "r"(0));
}

static void check_load(unsigned reg, unsigned n)
{
	u8 type = n & 31, dpl = n >> 5 & 3, rpl = n >> 7 & 3, cpl = n & 1 << 9 ? 3 : 0;
	bool present = n >> 10 & 1;
	struct outcome want, got;

	gdt[N] = seg_desc(0, FLAT, type, dpl, present, SEG_G | SEG_DB);
	gdt[N + 1] = 0;
	want = (loads[reg].stack ? model_stack : model_data)(type, dpl, present, rpl, cpl);
	got = observed(run(cpl, loads[reg].code, (void *)(u64)(SEL | rpl)));
	restore_segments();
#define ROW                                                                                        \
	guest_name("%s type 0x%x DPL%d P%d RPL%d CPL%d", loads[reg].name, type, dpl, present, rpl, \
		   cpl)
	CHECK_ROW(ROW, want.vector, got.vector);
	CHECK_ROW(ROW, want.error, got.error);
	if (want.vector == NONE) /* the accessed bit, which is the type's lowest */
		CHECK_ROW(ROW, 1, gdt[N] >> 40 & 1);
	else
		CHECK_ROW(ROW, type & 1, gdt[N] >> 40 & 1);
#undef ROW
}

TEST(segment_loads_follow_the_model)
{
	for (unsigned reg = 0; reg < ARRAY_SIZE(loads); reg++)
		for (unsigned n = 0; n < 2048; n++)
			check_load(reg, n);
}

static const struct selector_row {
	const char *name;
	void *code;
	u8 cpl;
	u16 sel;
	int vector;
	u32 error;
	bool intel_only;
} selector_rows[] = {
	{"DS null", load_ds, 0, 0, NONE, 0, false},
	{"DS null, RPL 3", load_ds, 0, 3, NONE, 0, false},
	{"DS null in ring 3", load_ds, 3, 1, NONE, 0, false},
	{"GS null in ring 3", load_gs, 3, 0, NONE, 0, false},
	{"DS beyond the GDT", load_ds, 0, BEYOND, GP, BEYOND, false},
	{"DS far beyond the GDT, RPL 3", load_ds, 0, 0xfffb, GP, 0xfff8, false},
	{"SS beyond the GDT", load_ss, 0, BEYOND, GP, BEYOND, false},
	{"DS in an LDT when there is none", load_ds, 0, SEL | 4, GP, SEL | 4, false},
	{"SS in an LDT when there is none", load_ss, 0, 4, GP, 4, false},
	{"SS null in ring 0", load_ss, 0, 0, NONE, 0, false},
	{"SS null in ring 3", load_ss, 3, 3, GP, 0, false},
	/* APM 2 allows any null below ring 3, SDM 2 MOV wants RPL = CPL. */
	{"SS null, RPL 3, in ring 0", load_ss, 0, 3, GP, 0, true},
};

TEST(null_and_absent_selectors)
{
	for (unsigned i = 0; i < ARRAY_SIZE(selector_rows); i++) {
		const struct selector_row *r = &selector_rows[i];
		struct outcome got;

		if (r->intel_only && cpu_is_amd())
			continue;
		got = observed(run(r->cpl, r->code, (void *)(u64)r->sel));
		restore_segments();
		CHECK_ROW(r->name, r->vector, got.vector);
		CHECK_ROW(r->name, r->error, got.error);
	}
}

/* The GDT's limit counts bytes: a descriptor that sticks out by one does not exist. */
TEST(a_descriptor_has_to_be_inside_the_table_as_a_whole)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) p = {SEL + 7, (u64)gdt}, old;

	asm volatile("sgdt %0" : "=m"(old));
	gdt[N] = seg_desc(0, FLAT, TYPE_DATA, 0, true, SEG_G | SEG_DB);
	asm volatile("lgdt %0" : : "m"(p));
	CHECK_EQ(NONE, run(0, load_es, (void *)SEL));
	p.limit--;
	asm volatile("lgdt %0" : : "m"(p));
	CHECK_EQ(GP, run(0, load_es, (void *)SEL));
	asm volatile("lgdt %0" : : "m"(old));
	restore_segments();
}

TEST(fs_and_gs_take_their_base_from_the_descriptor)
{
	u32 r[4];

	gdt[N] = seg_desc(0xfedcba98, 0, TYPE_DATA, 0, true, 0);
	asm volatile("mov %0, %%fs; mov %0, %%gs" : : "r"(SEL));
	CHECK_EQ(0xfedcba98, rdmsr(0xc0000100));
	CHECK_EQ(0xfedcba98, rdmsr(0xc0000101));
	asm volatile("mov %0, %%fs; mov %0, %%gs" : : "r"(0));
	cpuid(0x80000021, 0, r);
	if (cpu_is_amd() && !(r[EAX] >> 6 & 1))
		return; /* such an AMD CPU leaves the base (CPUID NullSelectClearsBase) */
	CHECK_EQ(0, rdmsr(0xc0000100));
	CHECK_EQ(0, rdmsr(0xc0000101));
}

/* --- LAR, LSL, VERR, VERW ----------------------------------------------------------------------
 */
extern char ask_lar[], ask_lsl[], ask_verr[], ask_verw[];
CODE(".macro ask_result\n"
     "	setz %cl; mov %rax, (%rsi); mov %cl, 8(%rsi); ret\n"
     ".endm\n"
     "ask_lar: mov 16(%rdi), %esi; xchg %rsi, %rdi; mov $-1, %rax; lar %edi, %eax\n"
     "	ask_result\n"
     "ask_lsl: mov 16(%rdi), %esi; xchg %rsi, %rdi; mov $-1, %rax; lsl %edi, %eax\n"
     "	ask_result\n"
     "ask_verr: mov 16(%rdi), %esi; xchg %rsi, %rdi; mov $-1, %rax; verr %di\n"
     "	ask_result\n"
     "ask_verw: mov 16(%rdi), %esi; xchg %rsi, %rdi; mov $-1, %rax; verw %di\n"
     "	ask_result\n");

struct answer {
	u64 value;
	u64 zf;
	u64 sel;
};

enum { LIMIT = 0x12345, LIMIT_BYTES = 0x12345fff };

static bool visible(u8 type, u8 dpl, u8 rpl, u8 cpl)
{
	return is_conforming(type) || (dpl >= cpl && dpl >= rpl);
}

static bool knows_lsl(u8 type)
{
	return !is_system(type) || type == 2 || type == 9 || type == 0xb;
}

static void check_answer(const char *what, void *code, u8 cpl, u16 sel, bool ok, u64 value,
			 u64 mask)
{
	struct answer a = {.sel = sel};

	if (!CHECK_ROW(what, NONE, run(cpl, code, &a)))
		return;
	CHECK_ROW(what, ok, a.zf & 1);
	CHECK_ROW(what, (ok ? value : -1ull) & mask, a.value & mask);
}

static void check_queries(unsigned n)
{
	u8 type = n & 31, dpl = n >> 5 & 3, rpl = n >> 7 & 3, cpl = n & 1 << 9 ? 3 : 0;
	bool present = n >> 10 & 1, seen = visible(type, dpl, rpl, cpl);
	static char name[80];
	u64 lar;

	gdt[N] = seg_desc(0x123456, LIMIT, type, dpl, present, SEG_G | SEG_AVL);
	gdt[N + 1] = 0;
	lar = gdt[N] >> 32 & 0xffff00;
	for (const char *s = guest_name("type 0x%x DPL%d P%d RPL%d CPL%d", type, dpl, present, rpl,
					cpl),
			*end = s;
	     s == end || s[-1]; s++)
		name[s - end] = *s;
	/* Intel leaves bits 19:16 of LAR's result undefined. */
	check_answer(name, ask_lar, cpl, SEL | rpl, seen && (knows_lsl(type) || type == TYPE_GATE),
		     lar, cpu_is_amd() ? -1ull : ~0xf0000ull);
	check_answer(name, ask_lsl, cpl, SEL | rpl, seen && knows_lsl(type), LIMIT_BYTES, -1ull);
	check_answer(name, ask_verr, cpl, SEL | rpl, seen && is_readable(type), -1ull, -1ull);
	check_answer(name, ask_verw, cpl, SEL | rpl, seen && is_stack(type), -1ull, -1ull);
}

TEST(lar_lsl_verr_verw_follow_the_model)
{
	for (unsigned n = 0; n < 2048; n++)
		check_queries(n);
}

TEST(lar_lsl_verr_verw_of_no_descriptor_clear_zf)
{
	static const u16 sels[] = {0, 3, BEYOND, 0xffff, 4, SEL | 4};
	static void *const asks[] = {ask_lar, ask_lsl, ask_verr, ask_verw};

	gdt[0] = seg_desc(0, FLAT, TYPE_DATA, 3, true, SEG_G); /* null is null, whatever is there */
	for (unsigned i = 0; i < ARRAY_SIZE(sels); i++)
		for (unsigned k = 0; k < ARRAY_SIZE(asks); k++)
			check_answer(guest_name("selector 0x%x, instruction %u", sels[i], k),
				     asks[k], 0, sels[i], false, 0, -1ull);
	gdt[0] = 0;
}

TEST(lsl_counts_bytes_or_pages)
{
	gdt[N] = seg_desc(0, 0x12345, TYPE_DATA, 0, true, 0);
	check_answer("bytes", ask_lsl, 0, SEL, true, 0x12345, -1ull);
	gdt[N] = seg_desc(0, 0, TYPE_DATA, 0, true, SEG_G);
	check_answer("one page", ask_lsl, 0, SEL, true, 0xfff, -1ull);
	gdt[N] = seg_desc(0, FLAT, TYPE_DATA, 0, true, SEG_G);
	check_answer("all", ask_lsl, 0, SEL, true, 0xffffffff, -1ull);
}

TEST(lar_and_lsl_of_16_bits_leave_the_rest)
{
	u64 v = 0x1111222233334444;

	gdt[N] = seg_desc(0, 0x12345, TYPE_DATA, 0, true, SEG_G);
	asm volatile("larw %w1, %w0" : "+r"(v) : "r"(SEL));
	CHECK_EQ(0x1111222233339300, v);
	asm volatile("lslw %w1, %w0" : "+r"(v) : "r"(SEL));
	CHECK_EQ(0x1111222233335fff, v);
	asm volatile("lar %q1, %q0" : "+r"(v) : "r"(SEL));
	CHECK_EQ(0x809300, v & ~0xf0000ull);
}

/* --- direct far transfers ----------------------------------------------------------------------
 */
extern char do_jmp[], do_call[];
CODE("do_jmp: mov %rsp, %rbx; ljmp *(%rdi)\n"
     "do_call: mov %rsp, %rbx; lcall *(%rdi)\n"
     "after_call:\n");
extern char after_call[];

struct far_ptr {
	u32 offset;
	u16 sel;
} __attribute__((packed));

static struct outcome model_direct(u8 type, u8 dpl, bool present, u8 rpl, u8 cpl, u8 flags)
{
	if (!is_code(type) || (flags & SEG_L && flags & SEG_DB))
		return fault(GP, SEL);
	if (type & CONFORMING ? dpl > cpl : dpl != cpl || rpl > cpl)
		return fault(GP, SEL);
	return present ? landed() : fault(NP, SEL);
}

static void check_direct(unsigned n, bool call)
{
	static const u8 kinds[] = {SEG_L, SEG_DB, 0, SEG_L | SEG_DB};
	u8 type = n & 31, dpl = n >> 5 & 3, rpl = n >> 7 & 3, cpl = n & 1 << 9 ? 3 : 0;
	u8 flags = kinds[n >> 11 & 3];
	bool present = n >> 10 & 1;
	struct far_ptr p = {(u32)(u64)landing, SEL | rpl};
	struct outcome want, got;

	if (type == TYPE_GATE)
		return;
	gdt[N] = seg_desc(0, FLAT, type, dpl, present, SEG_G | flags);
	gdt[N + 1] = 0;
	want = model_direct(type, dpl, present, rpl, cpl, flags);
	got = observed(run(cpl, call ? do_call : do_jmp, &p));
#define ROW                                                                                        \
	guest_name("%s type 0x%x DPL%d P%d RPL%d CPL%d flags 0x%x", call ? "CALL" : "JMP", type,   \
		   dpl, present, rpl, cpl, flags)
	CHECK_ROW(ROW, want.vector, got.vector);
	CHECK_ROW(ROW, want.error, got.error);
	if (want.vector != UD || got.vector != UD)
		return;
	CHECK_ROW(ROW, SEL | cpl, trap_last()->frame.cs);
	CHECK_ROW(ROW, trap_last()->frame.rbx - (call ? 8 : 0), trap_last()->frame.rsp);
	if (call) {
		const u32 *sp = (const u32 *)trap_last()->frame.rsp;

		CHECK_ROW(ROW, (u64)after_call, sp[0]);
		CHECK_ROW(ROW, cpl ? SEL_USER_CODE : SEL_CODE, sp[1]);
	}
#undef ROW
}

TEST(far_jumps_follow_the_model)
{
	for (unsigned n = 0; n < 8192; n++)
		check_direct(n, false);
}

TEST(far_calls_follow_the_model)
{
	for (unsigned n = 0; n < 8192; n++)
		check_direct(n, true);
}

static const struct far_row {
	const char *name;
	u64 desc;
	struct far_ptr to;
	int vector;
	u32 error;
} far_rows[] = {
	{"null selector", 0, {0, 0}, GP, 0},
	{"null selector, RPL 3", 0, {0, 3}, GP, 0},
	{"beyond the GDT", 0, {0, BEYOND | 1}, GP, BEYOND},
	{"in the LDT that is not there", 0, {0, 12}, GP, 12},
	/* limits count in 32-bit code only */
	{"offset at the limit", 0, {0x3fffff, SEL}, NONE, 0},
	{"offset beyond the limit", 0, {0x400000, SEL}, GP, 0},
};

TEST(far_jumps_check_selector_and_limit)
{
	u8 *at_limit = (u8 *)0x3fffff, old = *at_limit;

	for (unsigned i = 0; i < ARRAY_SIZE(far_rows); i++) {
		const struct far_row *r = &far_rows[i];
		struct far_ptr p = r->to;
		int got;

		gdt[N] = seg_desc(0, 0x3ff, TYPE_CODE, 0, true, SEG_G | SEG_DB);
		*at_limit = 0xf1; /* INT1, one byte */
		got = run(0, do_jmp, &p);
		*at_limit = old;
		CHECK_ROW(r->name, r->vector == NONE ? DB : r->vector, got);
		if (r->vector != NONE)
			CHECK_ROW(r->name, r->error, trap_last()->error);
	}
}

/* --- call gates --------------------------------------------------------------------------------
 */
static u8 stacks[3][512] __attribute__((aligned(16)));

static void set_gate(u16 sel, u64 offset, u8 type, u8 dpl, bool present, u8 upper_type)
{
	gdt[N] = (offset & 0xffff) | (u64)sel << 16 | (u64)type << 40 | (u64)dpl << 45 |
		 (u64)present << 47 | (offset >> 16 & 0xffff) << 48;
	gdt[N + 1] = offset >> 32 | (u64)upper_type << 40;
}

struct gate_case {
	u8 dpl, rpl, cpl, target_dpl;
	bool present, call, target_present, conforming, long_code;
};

static struct outcome model_gate(const struct gate_case *c)
{
	if (c->dpl < c->cpl || c->rpl > c->dpl)
		return fault(GP, SEL);
	if (!c->present)
		return fault(NP, SEL);
	if (c->target_dpl > c->cpl || !c->long_code)
		return fault(GP, SEL2);
	if (!c->call && !c->conforming && c->target_dpl != c->cpl)
		return fault(GP, SEL2);
	return c->target_present ? landed() : fault(NP, SEL2);
}

static void check_gate_stack(const struct gate_case *c, const char *row)
{
	const struct trap_frame *f = &trap_last()->frame;
	u8 cpl = c->conforming ? c->cpl : c->target_dpl;
	const u64 *sp = (const u64 *)f->rsp;

	CHECK_ROW(row, SEL2 | cpl, f->cs);
	if (!c->call) {
		CHECK_ROW(row, f->rbx, f->rsp);
		return;
	}
	CHECK_ROW(row, (u64)after_call, sp[0]);
	CHECK_ROW(row, c->cpl ? SEL_USER_CODE : SEL_CODE, sp[1]);
	if (cpl == c->cpl) {
		CHECK_ROW(row, f->rbx - 16, f->rsp);
		return;
	}
	/* an inner ring: its stack from the TSS, a null SS with the ring as RPL */
	CHECK_ROW(row, (u64)stacks[cpl] + 512 - 32, f->rsp);
	CHECK_ROW(row, cpl, f->ss);
	CHECK_ROW(row, f->rbx, sp[2]);
	CHECK_ROW(row, SEL_USER_DATA, sp[3]);
}

static void check_gate(unsigned n)
{
	struct gate_case c = {
		.dpl = n & 3,
		.rpl = n >> 2 & 3,
		.cpl = n & 16 ? 3 : 0,
		.target_dpl = n >> 5 & 3,
		.present = n & 128,
		.call = n & 256,
		.target_present = n & 512,
		.conforming = n & 1024,
		.long_code = n & 2048,
	};
	struct far_ptr p = {0xdeadbeef, SEL | c.rpl}; /* a gate has its own offset */
	struct outcome want = model_gate(&c), got;

	set_gate(SEL2 | 3, (u64)landing, TYPE_GATE, c.dpl, c.present, 0);
	gdt[N2] = seg_desc(0, 0, TYPE_CODE | (c.conforming ? CONFORMING : 0), c.target_dpl,
			   c.target_present, c.long_code ? SEG_L : SEG_DB | SEG_G);
	got = observed(run(c.cpl, c.call ? do_call : do_jmp, &p));
#define ROW                                                                                        \
	guest_name("%s gate DPL%d P%d RPL%d CPL%d to DPL%d P%d conforming%d 64-bit%d",             \
		   c.call ? "CALL" : "JMP", c.dpl, c.present, c.rpl, c.cpl, c.target_dpl,          \
		   c.target_present, c.conforming, c.long_code)
	CHECK_ROW(ROW, want.vector, got.vector);
	CHECK_ROW(ROW, want.error, got.error);
	if (want.vector == UD && got.vector == UD)
		check_gate_stack(&c, c.call ? "CALL through a gate" : "JMP through a gate");
#undef ROW
}

static void own_stacks(void)
{
	for (unsigned i = 0; i < 3; i++)
		guest_tss.rsp[i] = (u64)stacks[i] + sizeof(stacks[i]);
}

static u64 usual_rsp0;

TEST(call_gates_follow_the_model)
{
	usual_rsp0 = guest_tss.rsp[0];
	own_stacks();
	guest_tss.rsp[0] = (u64)stacks[0] + sizeof(stacks[0]);
	trap_on_ist(true); /* the inner stacks are too small for C */
	for (unsigned n = 0; n < 4096; n++)
		check_gate(n);
	trap_on_ist(false);
	guest_tss.rsp[0] = usual_rsp0;
}

static const struct gate_row {
	const char *name;
	u16 target;
	u64 offset;
	u8 type, upper_type;
	u64 target_desc;
	int vector;
	u32 error;
} gate_rows[] = {
	{"null target", 0, 0, TYPE_GATE, 0, 0, GP, 0},
	{"null target, RPL 3", 3, 0, TYPE_GATE, 0, 0, GP, 0},
	{"target beyond the GDT", BEYOND + 2, 0, TYPE_GATE, 0, 0, GP, BEYOND},
	{"target is data", SEL_DATA, 0, TYPE_GATE, 0, 0, GP, SEL_DATA},
	{"target is a TSS", SEL_TSS, 0, TYPE_GATE, 0, 0, GP, SEL_TSS},
	{"target is 64- and 32-bit", SEL2, 0, TYPE_GATE, 0, 0x00ef9b000000ffff, GP, SEL2},
	{"offset not canonical", SEL_CODE, 0x800000000000, TYPE_GATE, 0, 0, GP, 0},
	{"second half has a type", SEL_CODE, 0, TYPE_GATE, 0x02, 0, GP, SEL},
	{"16-bit gate", SEL_CODE, 0, 4, 0, 0, GP, SEL},
	{"task gate", SEL_CODE, 0, 5, 0, 0, GP, SEL},
	{"interrupt gate", SEL_CODE, 0, 14, 0, 0, GP, SEL},
	{"trap gate", SEL_CODE, 0, 15, 0, 0, GP, SEL},
	{"TSS", SEL_CODE, 0, 9, 0, 0, GP, SEL},
	{"LDT", SEL_CODE, 0, 2, 0, 0, GP, SEL},
};

TEST(bad_gates_name_the_right_selector)
{
	struct far_ptr p = {0, SEL};

	for (unsigned i = 0; i < ARRAY_SIZE(gate_rows); i++) {
		const struct gate_row *r = &gate_rows[i];

		set_gate(r->target, r->offset, r->type, 0, true, r->upper_type);
		gdt[N2] = r->target_desc;
		for (unsigned call = 0; call < 2; call++) {
			CHECK_ROW(r->name, r->vector, run(0, call ? do_call : do_jmp, &p));
			CHECK_ROW(r->name, r->error, trap_last()->error);
		}
	}
}

/* A gate's descriptor is 16 bytes, the table must hold them all. */
TEST(a_gate_at_the_end_of_the_table_is_cut)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) p = {SEL + 14, (u64)gdt}, old;
	struct far_ptr to = {0, SEL};

	asm volatile("sgdt %0" : "=m"(old));
	set_gate(SEL_CODE, (u64)landing, TYPE_GATE, 0, true, 0);
	asm volatile("lgdt %0" : : "m"(p));
	CHECK_EQ(GP, run(0, do_jmp, &to));
	CHECK_EQ(SEL, trap_last()->error);
	asm volatile("lgdt %0" : : "m"(old));
}

/* --- far returns and IRET ----------------------------------------------------------------------
 */
extern char do_lretq[], do_iretq[], do_lretl[], do_iretl[];
CODE("do_lretq: pushq 24(%rdi); pushq 16(%rdi); pushq 8(%rdi); pushq (%rdi); lretq\n"
     "do_iretq: pushq 24(%rdi); pushq 16(%rdi); pushq 32(%rdi); pushq 8(%rdi); pushq (%rdi)\n"
     "	iretq\n"
     "do_lretl: mov %rsp, %rbx; sub $16, %rsp; mov 24(%rdi), %eax; mov %eax, 12(%rsp)\n"
     "	mov 16(%rdi), %eax; mov %eax, 8(%rsp); mov 8(%rdi), %eax; mov %eax, 4(%rsp)\n"
     "	mov (%rdi), %eax; mov %eax, (%rsp); lretl\n"
     "do_iretl: mov %rsp, %rbx; sub $20, %rsp; mov 24(%rdi), %eax; mov %eax, 16(%rsp)\n"
     "	mov 16(%rdi), %eax; mov %eax, 12(%rsp); mov 32(%rdi), %eax; mov %eax, 8(%rsp)\n"
     "	mov 8(%rdi), %eax; mov %eax, 4(%rsp); mov (%rdi), %eax; mov %eax, (%rsp); iretl\n");

struct return_frame {
	u64 rip, cs, rsp, ss, rflags;
};

struct return_case {
	u8 type, dpl, rpl, cpl, flags;
	bool present;
	u8 ss_dpl, ss_rpl, ss_type;
	bool ss_present, ss_null, iret;
};

static struct outcome model_return_cs(const struct return_case *c)
{
	if (!is_code(c->type) || c->rpl < c->cpl || (c->flags & SEG_L && c->flags & SEG_DB))
		return fault(GP, SEL);
	if (c->type & CONFORMING ? c->dpl > c->rpl : c->dpl != c->rpl)
		return fault(GP, SEL);
	return c->present ? landed() : fault(NP, SEL);
}

static struct outcome model_return_ss(const struct return_case *c)
{
	if (c->ss_null)
		return c->flags & SEG_L && c->rpl != 3 && c->ss_rpl == c->rpl ? landed()
									      : fault(GP, 0);
	if (c->ss_rpl != c->rpl || !is_stack(c->ss_type) || c->ss_dpl != c->rpl)
		return fault(GP, SEL2);
	return c->ss_present ? landed() : fault(SS, SEL2);
}

static struct outcome model_return(const struct return_case *c)
{
	struct outcome o = model_return_cs(c);

	/* IRET in 64-bit mode takes SS:RSP always, RETF to an outer ring only. */
	if (o.vector != UD || (!c->iret && c->rpl == c->cpl))
		return o;
	return model_return_ss(c);
}

static void check_return(const struct return_case *c, u64 rflags)
{
	static u8 stack[64] __attribute__((aligned(16)));
	struct return_frame f = {
		.rip = (u64)landing,
		.cs = SEL | c->rpl,
		.rsp = (u64)stack + 48,
		.ss = (c->ss_null ? 0 : SEL2) | c->ss_rpl,
		.rflags = rflags,
	};
	struct outcome want = model_return(c), got;
	const struct trap_frame *t = &trap_last()->frame;

	gdt[N] = seg_desc(0, FLAT, c->type, c->dpl, c->present, SEG_G | c->flags);
	gdt[N2] = seg_desc(0, FLAT, c->ss_type, c->ss_dpl, c->ss_present, SEG_G | SEG_DB);
	got = observed(run(c->cpl, c->iret ? do_iretq : do_lretq, &f));
#define ROW                                                                                        \
	guest_name("%s CPL%d CS type 0x%x DPL%d P%d RPL%d flags 0x%x SS %s type 0x%x DPL%d P%d "   \
		   "RPL%d",                                                                        \
		   c->iret ? "IRETQ" : "LRETQ", c->cpl, c->type, c->dpl, c->present, c->rpl,       \
		   c->flags, c->ss_null ? "null" : "", c->ss_type, c->ss_dpl, c->ss_present,       \
		   c->ss_rpl)
	CHECK_ROW(ROW, want.vector, got.vector);
	CHECK_ROW(ROW, want.error, got.error);
	if (want.vector != UD || got.vector != UD)
		return;
	CHECK_ROW(ROW, f.cs, t->cs);
	if (c->iret || c->rpl != c->cpl) {
		CHECK_ROW(ROW, f.ss, t->ss);
		CHECK_ROW(ROW, f.rsp, t->rsp);
	}
#undef ROW
}

static void check_return_cs(unsigned n, bool iret)
{
	static const u8 kinds[] = {SEG_L, SEG_DB, SEG_L | SEG_DB, 0};
	struct return_case c = {
		.type = n & 31,
		.dpl = n >> 5 & 3,
		.rpl = n >> 7 & 3,
		.present = n & 512,
		.cpl = n & 1024 ? 3 : 0,
		.flags = kinds[n >> 11 & 3],
		.ss_dpl = n >> 7 & 3,
		.ss_rpl = n >> 7 & 3,
		.ss_type = TYPE_DATA,
		.ss_present = true,
		.iret = iret,
	};

	check_return(&c, 2);
}

TEST(far_returns_check_cs_as_the_model)
{
	for (unsigned n = 0; n < 8192; n++)
		check_return_cs(n, false);
}

TEST(iretq_checks_cs_as_the_model)
{
	for (unsigned n = 0; n < 8192; n++)
		check_return_cs(n, true);
}

static void check_return_stack(unsigned n, bool iret)
{
	struct return_case c = {
		.type = TYPE_CODE,
		.dpl = n & 3,
		.rpl = n & 3,
		.present = true,
		.flags = n & 4 ? SEG_L : SEG_DB,
		.ss_null = n & 8,
		.ss_rpl = n >> 4 & 3,
		.ss_dpl = n >> 6 & 3,
		.ss_present = n & 256,
		.ss_type = n >> 9 & 31,
		.iret = iret,
	};

	check_return(&c, 2);
}

TEST(returns_check_ss_as_the_model)
{
	for (unsigned n = 0; n < 16384; n++) {
		if (n & 8 && n >> 6) /* null has no descriptor to vary */
			continue;
		check_return_stack(n, false);
		check_return_stack(n, true);
	}
}

static const struct return_row {
	const char *name;
	void *code;
	struct return_frame f;
	int vector;
	u32 error;
	u64 rip; /* expected, when it matters */
} return_rows[] = {
	{"LRETQ, null CS", do_lretq, {0, 0, 0, 0, 2}, GP, 0, 0},
	{"LRETQ, null CS with RPL 3", do_lretq, {0, 3, 0, 0, 2}, GP, 0, 0},
	{"LRETQ, CS beyond the GDT", do_lretq, {0, BEYOND, 0, 0, 2}, GP, BEYOND, 0},
	{"LRETQ, SS beyond the GDT", do_lretq, {0, SEL_USER_CODE, 0, BEYOND | 3, 2}, GP, BEYOND, 0},
	{"LRETQ, RIP not canonical",
	 do_lretq,
	 {1ull << 47, SEL_CODE, 0, 0, 2},
	 GP,
	 0,
	 (u64)do_lretq},
	{"LRETQ to ring 3, RIP not canonical",
	 do_lretq,
	 {1ull << 63, SEL_USER_CODE, 0, SEL_USER_DATA, 2},
	 GP,
	 0,
	 (u64)do_lretq},
	{"LRETQ to 32-bit code, RIP above 4 GiB",
	 do_lretq,
	 {1ull << 32, SEL_CODE32, 0, 0, 2},
	 GP,
	 0,
	 (u64)do_lretq},
	{"IRETQ, null CS", do_iretq, {0, 0, 0, SEL_DATA, 2}, GP, 0, 0},
	{"IRETQ, CS beyond the GDT", do_iretq, {0, BEYOND, 0, SEL_DATA, 2}, GP, BEYOND, 0},
	{"IRETQ, SS beyond the GDT", do_iretq, {0, SEL_CODE, 0, BEYOND, 2}, GP, BEYOND, 0},
	{"IRETQ, RIP not canonical",
	 do_iretq,
	 {1ull << 47, SEL_CODE, 0, SEL_DATA, 2},
	 GP,
	 0,
	 (u64)do_iretq},
	{"IRETQ to ring 3, RIP not canonical",
	 do_iretq,
	 {1ull << 63, SEL_USER_CODE, 0, SEL_USER_DATA, 2},
	 GP,
	 0,
	 (u64)do_iretq},
	{"IRETQ, null SS in ring 0", do_iretq, {(u64)landing, SEL_CODE, 64, 0, 2}, UD, 0, 0},
};

TEST(bad_return_frames_fault_at_the_return)
{
	trap_on_ist(true);
	for (unsigned i = 0; i < ARRAY_SIZE(return_rows); i++) {
		const struct return_row *r = &return_rows[i];
		struct outcome got = observed(run(0, r->code, (void *)&r->f));

		CHECK_ROW(r->name, r->vector, got.vector);
		CHECK_ROW(r->name, r->error, got.error);
		if (r->rip) /* within the few bytes of the routine */
			CHECK_ROW(r->name, true, trap_last()->rip - r->rip < 24);
		CHECK_ROW(r->name, SEL_CODE, trap_last()->cs);
	}
	trap_on_ist(false);
}

static void iret_with_nt(void *arg)
{
	asm volatile(
		"pushfq; orl $0x4000, (%%rsp); popfq\n"
		"mov %%rsp, %%rax; pushq $0x10; push %%rax; pushq $2; pushq $8; pushq $landing\n"
		"iretq"
		:
		:
		: "rax", "memory");
}

TEST(iretq_with_nt_set_is_refused)
{
	CHECK_EQ(GP, trap_run(iret_with_nt, NULL)); /* no tasks to return to in long mode */
	CHECK_EQ(0, trap_last()->error);
}

/* 32-bit returns in 64-bit mode take 32-bit slots. */
TEST(returns_with_32_bit_operands)
{
	static u8 stack[64] __attribute__((aligned(16)));
	struct return_frame f = {(u64)landing, SEL_USER_CODE32, (u64)stack + 32, SEL_USER_DATA, 2};
	const struct trap_frame *t = &trap_last()->frame;

	CHECK_EQ(UD, observed(run(0, do_lretl, &f)).vector);
	CHECK_EQ(SEL_USER_CODE32, t->cs);
	CHECK_EQ(f.rsp, t->rsp);
	CHECK_EQ(SEL_USER_DATA, t->ss);
	CHECK_EQ(UD, observed(run(0, do_iretl, &f)).vector);
	CHECK_EQ(SEL_USER_CODE32, t->cs);
	CHECK_EQ(f.rsp, t->rsp);
	f.cs = SEL_CODE;
	CHECK_EQ(UD, observed(run(0, do_lretl, &f)).vector);
	CHECK_EQ(t->rbx - 8, t->rsp); /* same ring: the other two slots stay */
}

/* What a return to an outer ring leaves in DS..GS: selectors of more privileged data become null,
 * but the base that 64-bit code sees stays. */
TEST(a_return_outward_drops_inner_segments)
{
	struct return_frame f = {(u64)landing, SEL_USER_CODE, 64, SEL_USER_DATA, 2};
	const u64 base = 0x123456789000;
	u16 ds, es, fs, gs;

	gdt[N] = seg_desc(0, FLAT, TYPE_CODE | CONFORMING, 0, true, SEG_G | SEG_DB);
	asm volatile("mov %0, %%ds; mov %1, %%es; mov %2, %%fs"
		     :
		     : "r"(SEL_DATA), "r"(SEL_USER_DATA), "r"(SEL));
	asm volatile("mov %0, %%gs" : : "r"(SEL_DATA));
	wrmsr(0xc0000101, base);
	CHECK_EQ(UD, observed(run(0, do_lretq, &f)).vector);
	CHECK_EQ(base, rdmsr(0xc0000101));
	wrmsr(0xc0000101, 0);
	asm volatile("mov %%ds, %0; mov %%es, %1; mov %%fs, %2" : "=r"(ds), "=r"(es), "=r"(fs));
	asm volatile("mov %%gs, %0" : "=r"(gs));
	restore_segments();
	CHECK_EQ(0, ds);
	CHECK_EQ(SEL_USER_DATA, es);
	CHECK_EQ(SEL, fs); /* conforming code stays */
	CHECK_EQ(0, gs);
}

/* --- IDT gates ---------------------------------------------------------------------------------
 */
enum { VEC = 0x30, IDT_ERR = VEC * 8 + 2 };
extern char do_int[];
CODE("do_int: mov %rsp, %rbx; int $0x30\n"
     "after_int: ret\n");
extern char after_int[];

static void set_idt(u16 sel, u64 offset, u8 type, u8 dpl, bool present, u8 ist)
{
	u64 *e = idt_entry(VEC);

	e[0] = (offset & 0xffff) | (u64)sel << 16 | (u64)ist << 32 | (u64)type << 40 |
	       (u64)dpl << 45 | (u64)present << 47 | (offset >> 16 & 0xffff) << 48;
	e[1] = offset >> 32;
}

static struct outcome model_idt(u8 type, u8 dpl, bool present, u8 cpl)
{
	if ((type != 14 && type != 15) || dpl < cpl)
		return (struct outcome){GP, IDT_ERR};
	return present ? landed() : (struct outcome){NP, IDT_ERR};
}

TEST(idt_gates_follow_the_model)
{
	for (unsigned n = 0; n < 512; n++) {
		u8 type = n & 31, dpl = n >> 5 & 3, cpl = n & 128 ? 3 : 0;
		bool present = n & 256;
		struct outcome want = model_idt(type, dpl, present, cpl), got;

		set_idt(SEL_CODE, (u64)landing, type, dpl, present, 0);
		got = observed(run(cpl, do_int, NULL));
#define ROW guest_name("IDT type 0x%x DPL%d P%d CPL%d", type, dpl, present, cpl)
		CHECK_ROW(ROW, want.vector, got.vector);
		CHECK_ROW(ROW, want.error, got.error);
#undef ROW
	}
}

static const struct idt_row {
	const char *name;
	u16 sel;
	u64 offset, desc; /* desc: of SEL */
	u8 cpl;
	int vector;
	u32 error;
} idt_rows[] = {
	{"null selector", 0, 0, 0, 0, GP, 0},
	{"null selector, RPL 3", 3, 0, 0, 0, GP, 0},
	{"beyond the GDT", BEYOND | 3, 0, 0, 0, GP, BEYOND},
	{"in the LDT", 12, 0, 0, 0, GP, 12},
	{"data", SEL_DATA, 0, 0, 0, GP, SEL_DATA},
	{"TSS", SEL_TSS, 0, 0, 0, GP, SEL_TSS},
	{"32-bit code", SEL_CODE32, 0, 0, 0, GP, SEL_CODE32},
	{"64- and 32-bit code", SEL, 0, 0x00ef9b000000ffff, 0, GP, SEL},
	{"less privileged code", SEL_USER_CODE, 0, 0, 0, GP, SEL_USER_CODE & ~3},
	{"code not present", SEL, 0, 0x00af1b000000ffff, 0, NP, SEL},
	{"offset not canonical", SEL_CODE, 1ull << 47, 0, 0, GP, 0},
	{"offset not canonical, from ring 3", SEL_CODE, 1ull << 63, 0, 3, GP, 0},
	{"conforming code", SEL, (u64)landing, 0x00af9f000000ffff, 0, UD, 0},
	{"conforming code from ring 3", SEL, (u64)landing, 0x00af9f000000ffff, 3, UD, 0},
	{"ring 1 code from ring 3", SEL, (u64)landing, 0x00afbb000000ffff, 3, UD, 0},
	{"ring 1 code from ring 0", SEL, (u64)landing, 0x00afbb000000ffff, 0, GP, SEL},
};

TEST(idt_gates_check_their_code_segment)
{
	usual_rsp0 = guest_tss.rsp[0];
	own_stacks();
	guest_tss.rsp[0] = usual_rsp0;
	for (unsigned i = 0; i < ARRAY_SIZE(idt_rows); i++) {
		const struct idt_row *r = &idt_rows[i];
		struct outcome got;

		gdt[N] = r->desc;
		set_idt(r->sel, r->offset, 14, 3, true, 0);
		got = observed(run(r->cpl, do_int, NULL));
		CHECK_ROW(r->name, r->vector, got.vector);
		CHECK_ROW(r->name, r->error, got.error);
		if (r->vector == GP) /* a fault of INT n is at INT n */
			CHECK_ROW(r->name, (u64)after_int - 2, trap_last()->rip);
	}
}

static void *idt_with_limit(u16 limit)
{
	static struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) p;

	p.limit = limit;
	p.base = (u64)idt_entry(0);
	return &p;
}

TEST(vectors_beyond_the_idt_do_not_exist)
{
	set_idt(SEL_CODE, (u64)landing, 14, 3, true, 0);
	asm volatile("lidt (%0)" : : "r"(idt_with_limit(VEC * 16 + 15)) : "memory");
	CHECK_EQ(UD, observed(run(0, do_int, NULL)).vector);
	asm volatile("lidt (%0)" : : "r"(idt_with_limit(VEC * 16 + 14)) : "memory");
	CHECK_EQ(GP, run(0, do_int, NULL));
	CHECK_EQ(IDT_ERR, trap_last()->error);
	asm volatile("lidt (%0)" : : "r"(idt_with_limit(0xfff)) : "memory");
}

static void undefined(void *arg)
{
	asm volatile("ud2");
}

/* When the event is not an INT n, the EXT bit says so. */
static const struct ext_row {
	const char *name;
	u64 gate;
	int vector;
	u32 error;
} ext_rows[] = {
	{"not present", 0x00000e0000080000, NP, UD * 8 + 3},
	{"bad type", 0x0000860000080000, GP, UD * 8 + 3},
	{"null selector", 0x00008e0000000000, GP, 1},
	{"data segment", 0x00008e0000100000, GP, SEL_DATA + 1},
	{"DPL does not count", 0x00008e0000080000, NONE, 0},
};

TEST(faults_of_exception_delivery_have_ext_set)
{
	u64 *e = idt_entry(UD), old = e[0], offset = old & 0xffff00000000ffff;

	for (unsigned i = 0; i < ARRAY_SIZE(ext_rows); i++) {
		const struct ext_row *r = &ext_rows[i];
		int got;

		e[0] = r->gate | offset;
		got = trap_run(undefined, NULL);
		CHECK_ROW(r->name, r->vector == NONE ? UD : r->vector, got);
		if (r->vector != NONE)
			CHECK_ROW(r->name, r->error, trap_last()->error);
	}
	CHECK_EQ(UD, trap_run_user(undefined, NULL));
	e[0] = old;
}

/* The frame of an INT from ring 0 and ring 3, on the same stack, RSP0 and an IST stack; RSP is
 * aligned to 16 first in every case. */
static const struct frame_row {
	const char *name;
	u8 cpl, ist, type;
} frame_rows[] = {
	{"ring 0", 0, 0, 14}, {"ring 0, trap gate", 0, 0, 15}, {"ring 0, IST", 0, 2, 14},
	{"ring 3", 3, 0, 14}, {"ring 3, IST", 3, 7, 15},
};
extern char int_handler[];
u64 int_rsp, int_flags, int_ss;
CODE("int_handler: mov %rsp, int_rsp; pushfq; pop int_flags; mov %ss, int_ss; ud2\n");

TEST(interrupt_frames_and_stacks)
{
	static u8 ist[1024] __attribute__((aligned(16)));
	const struct trap_frame *t = &trap_last()->frame;

	guest_tss.ist[1] = (u64)ist + 520; /* not aligned on purpose */
	guest_tss.ist[6] = (u64)ist + 1024;
	for (unsigned i = 0; i < ARRAY_SIZE(frame_rows); i++) {
		const struct frame_row *r = &frame_rows[i];
		u64 *sp, top;

		set_idt(SEL_CODE, (u64)int_handler, r->type, 3, true, r->ist);
		CHECK_ROW(r->name, UD, run(r->cpl, do_int, NULL));
		sp = (u64 *)int_rsp;
		top = r->ist   ? guest_tss.ist[r->ist - 1] & ~15ull
		      : r->cpl ? guest_tss.rsp[0]
			       : t->rbx & ~15ull;
		CHECK_ROW(r->name, top - 40, sp);
		CHECK_ROW(r->name, (u64)after_int, sp[0]);
		CHECK_ROW(r->name, r->cpl ? SEL_USER_CODE : SEL_CODE, sp[1]);
		CHECK_ROW(r->name, t->rbx, sp[3]);
		CHECK_ROW(r->name, r->cpl ? SEL_USER_DATA : SEL_DATA, sp[4]);
		CHECK_ROW(r->name, r->cpl ? 0 : SEL_DATA, (u16)int_ss);
		CHECK_ROW(r->name, sp[2] & ~(FL_IF | FL_TF | FL_NT | FL_RF), int_flags & ~FL_IF);
	}
}

/* IF after an interrupt gate is 0, after a trap gate as it was. */
static void int_with_if(void *arg)
{
	asm volatile("sti; int $0x30");
}

TEST(interrupt_gates_clear_if_and_trap_gates_do_not)
{
	for (u8 type = 14; type <= 15; type++) {
		set_idt(SEL_CODE, (u64)int_handler, type, 3, true, 0);
		/* nothing interrupts: no source is set up */
		CHECK_EQ(UD, trap_run(int_with_if, NULL));
		asm volatile("cli");
		CHECK_ROW(guest_name("gate type %u", type), type == 15 ? FL_IF : 0,
			  int_flags & FL_IF);
	}
}

/* --- stacks of the TSS -------------------------------------------------------------------------
 */
static void load_tss_limit(u32 limit)
{
	u64 base = (u64)&guest_tss;

	gdt[SEL_TSS / 8] = seg_desc((u32)base, limit, 9, 0, true, 0);
	gdt[SEL_TSS / 8 + 1] = base >> 32;
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
}

TEST(a_stack_outside_the_tss_is_ts)
{
	struct far_ptr p = {0, SEL | 3};

	own_stacks();
	guest_tss.rsp[0] = usual_rsp0;
	set_gate(SEL2, (u64)landing, TYPE_GATE, 3, true, 0);
	gdt[N2] = seg_desc(0, 0, TYPE_CODE, 1, true, SEG_L);
	load_tss_limit(19); /* RSP1 is at 12 to 19 */
	CHECK_EQ(UD, observed(run(3, do_call, &p)).vector);
	load_tss_limit(18);
	CHECK_EQ(TS, run(3, do_call, &p));
	CHECK_EQ(SEL_TSS, trap_last()->error);
	CHECK_EQ(SEL_USER_CODE, trap_last()->cs);

	set_idt(SEL_CODE, (u64)landing, 14, 3, true, 1); /* IST1 is at 36 to 43 */
	guest_tss.ist[0] = (u64)stacks[2] + 512;
	load_tss_limit(43);
	CHECK_EQ(UD, observed(run(0, do_int, NULL)).vector);
	load_tss_limit(42);
	CHECK_EQ(TS, run(0, do_int, NULL));
	CHECK_EQ(SEL_TSS, trap_last()->error);
	load_tss_limit(sizeof(guest_tss) - 1);
}

TEST(a_stack_pointer_that_is_not_canonical_is_ss)
{
	struct far_ptr p = {0, SEL | 3};

	set_gate(SEL2, (u64)landing, TYPE_GATE, 3, true, 0);
	gdt[N2] = seg_desc(0, 0, TYPE_CODE, 1, true, SEG_L);
	guest_tss.rsp[1] = 1ull << 47;
	CHECK_EQ(SS, run(3, do_call, &p));
	CHECK_EQ(0, trap_last()->error);
	set_idt(SEL_CODE, (u64)landing, 14, 3, true, 2);
	guest_tss.ist[1] = 1ull << 62;
	CHECK_EQ(SS, run(3, do_int, NULL));
	CHECK_EQ(0, trap_last()->error);
	CHECK_EQ(SS, run(0, do_int, NULL));
}

/* --- LTR and LLDT ------------------------------------------------------------------------------
 */
extern char do_ltr[], do_lldt[];
CODE("do_ltr: ltr %di; ret\n"
     "do_lldt: lldt %di; ret\n");

static const struct sys_row {
	const char *name;
	bool ltr;
	u16 sel;
	u8 type, dpl;
	bool present;
	u64 upper;
	int vector;
	u32 error;
} sys_rows[] = {
	{"LTR null", true, 0, 9, 0, true, 0, GP, 0},
	{"LTR null, RPL 3", true, 3, 9, 0, true, 0, GP, 0},
	{"LTR in the LDT", true, SEL | 4, 9, 0, true, 0, GP, SEL | 4},
	{"LTR beyond the GDT", true, BEYOND, 9, 0, true, 0, GP, BEYOND},
	{"LTR of a busy TSS", true, SEL, 11, 0, true, 0, GP, SEL},
	{"LTR of a 16-bit TSS", true, SEL, 1, 0, true, 0, GP, SEL},
	{"LTR of an LDT", true, SEL, 2, 0, true, 0, GP, SEL},
	{"LTR of data", true, SEL, 0x13, 0, true, 0, GP, SEL},
	{"LTR not present", true, SEL, 9, 0, false, 0, NP, SEL},
	{"LTR base not canonical", true, SEL, 9, 0, true, 0x00800000 << 8, GP, SEL},
	{"LTR second half has a type", true, SEL, 9, 0, true, 0x02ull << 40, GP, SEL},
	{"LTR with DPL 3", true, SEL | 3, 9, 3, true, 0, NONE, 0},
	{"LTR", true, SEL, 9, 0, true, 0, NONE, 0},
	{"LLDT null", false, 0, 2, 0, true, 0, NONE, 0},
	{"LLDT null, RPL 3", false, 3, 2, 0, true, 0, NONE, 0},
	{"LLDT in the LDT", false, SEL | 4, 2, 0, true, 0, GP, SEL | 4},
	{"LLDT beyond the GDT", false, BEYOND, 2, 0, true, 0, GP, BEYOND},
	{"LLDT of a TSS", false, SEL, 9, 0, true, 0, GP, SEL},
	{"LLDT of code", false, SEL, 0x1b, 0, true, 0, GP, SEL},
	{"LLDT not present", false, SEL, 2, 0, false, 0, NP, SEL},
	{"LLDT base not canonical", false, SEL, 2, 0, true, 0xfeffffff, GP, SEL},
	{"LLDT second half has a type", false, SEL, 2, 0, true, 0x01ull << 40, GP, SEL},
	{"LLDT", false, SEL, 2, 0, true, 0, NONE, 0},
};

TEST(ltr_and_lldt_check_their_descriptor)
{
	u64 base = (u64)&guest_tss;

	for (unsigned i = 0; i < ARRAY_SIZE(sys_rows); i++) {
		const struct sys_row *r = &sys_rows[i];
		void *code = r->ltr ? do_ltr : do_lldt;
		struct outcome got;

		gdt[N] = seg_desc((u32)base, sizeof(guest_tss) - 1, r->type, r->dpl, r->present, 0);
		gdt[N + 1] = base >> 32 | r->upper;
		got = observed(run(0, code, (void *)(u64)r->sel));
		CHECK_ROW(r->name, r->vector, got.vector);
		CHECK_ROW(r->name, r->error, got.error);
		if (r->ltr)
			CHECK_ROW(r->name, r->vector == NONE ? r->type | 2 : r->type,
				  gdt[N] >> 40 & 31);
		CHECK_ROW(r->name, GP, run(3, code, (void *)(u64)r->sel));
		CHECK_ROW(r->name, 0, trap_last()->error);
	}
	asm volatile("lldt %w0" : : "r"(0));
	load_tss_limit(sizeof(guest_tss) - 1);
}

/* --- selectors in an LDT -----------------------------------------------------------------------
 */
TEST(an_ldt_gives_descriptors_within_its_limit)
{
	static u64 ldt[4];

	ldt[0] = seg_desc(0, FLAT, TYPE_DATA, 3, true, SEG_G | SEG_DB); /* no null in an LDT */
	ldt[3] = ldt[0];
	gdt[N] = seg_desc((u32)(u64)ldt, 24, 2, 0, true, 0); /* entry 3 sticks out */
	gdt[N + 1] = 0;
	asm volatile("lldt %w0" : : "r"(SEL));
	CHECK_EQ(NONE, run(3, load_es, (void *)7));
	CHECK_EQ(NONE, run(0, load_es, (void *)4));
	CHECK_EQ(GP, run(0, load_es, (void *)(3 * 8 + 4)));
	CHECK_EQ(3 * 8 + 4, trap_last()->error);
	restore_segments();
	asm volatile("lldt %w0" : : "r"(0));
}

/* --- instructions that must not load CS or are gone ----------------------------------------------
 */
extern char mov_to_cs[], mov_sreg_6[], mov_from_sreg_7[];
CODE("mov_to_cs: .byte 0x8e, 0xcf\n" /* MOV CS, EDI */
     "	ret\n"
     "mov_sreg_6: .byte 0x8e, 0xf7\n"
     "	ret\n"
     "mov_from_sreg_7: .byte 0x8c, 0xff\n"
     "	ret\n");

TEST(mov_knows_six_segment_registers_and_not_to_load_cs)
{
	CHECK_EQ(UD, run(0, mov_to_cs, (void *)SEL_CODE));
	CHECK_EQ(UD, run(0, mov_sreg_6, (void *)SEL_DATA));
	CHECK_EQ(UD, run(0, mov_from_sreg_7, (void *)SEL_DATA));
}
