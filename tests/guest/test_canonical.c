/* test_canonical.c - every place where an address has to be canonical, with 48 and 57 bits.
 *
 * SDM 1 "Canonical Addressing", AMD APM 2 "Canonical Address Form".  Each row names an instruction
 * and what it raises for an address that is not canonical; the addresses are those around the edges
 * of both widths.  The same table runs with CR4.LA57 = 0 and, where the CPU has it, 1. */
#include "guest.h"

/* What an access does at a canonical address is no business of these tests: there is mostly no
 * page. */
enum { ANY = -2 };

static const u64 addresses[] = {
	0,
	0x00007fffffffffff,
	0x0000800000000000,
	0x0000ffffffffffff,
	0x0001000000000000,
	0x00ffffffffffffff,
	0x0100000000000000,
	0x7fffffffffffffff,
	0x8000000000000000,
	0xfeffffffffffffff,
	0xff00000000000000,
	0xfffeffffffffffff,
	0xffff000000000000,
	0xffff7fffffffffff,
	0xffff800000000000,
	0xffffffffffffffff,
};

static bool canonical(u64 address, unsigned bits)
{
	u64 half = BIT(bits - 1);

	return address + half < 2 * half;
}

static unsigned width(void)
{
	return READ_CR(4) & CR4_LA57 ? 57 : 48;
}

/* --- instructions ------------------------------------------------------------------------------
 */
CODE("op_load: mov (%rdi), %al; ret\n"
     "op_load_rbp: push %rbp; mov %rdi, %rbp; mov 0(%rbp), %al; pop %rbp; ret\n"
     "op_load_rbp_idx: push %rbp; mov %rdi, %rbp; xor %eax, %eax; mov 0(%rbp,%rax), %al\n"
     "	pop %rbp; ret\n"
     "op_load_idx_rbp: push %rbp; mov %rdi, %rbp; xor %eax, %eax; mov 0(%rax,%rbp), %al\n"
     "	pop %rbp; ret\n"
     "op_load_rsp: mov %rsp, %rbx; mov %rdi, %rsp; mov (%rsp), %al; mov %rbx, %rsp; ret\n"
     "op_load_ds_rbp: push %rbp; mov %rdi, %rbp; mov %ds:0(%rbp), %al; pop %rbp; ret\n"
     "op_store: mov %al, (%rdi); ret\n"
     "op_add: lock addb $0, (%rdi); ret\n"
     "op_movs: mov %rdi, %rsi; mov $byte_here, %edi; movsb; ret\n"
     "op_stos: stosb; ret\n"
     "op_lods: mov %rdi, %rsi; lodsb; ret\n"
     "op_scas: scasb; ret\n"
     "op_xlat: mov %rdi, %rbx; xor %eax, %eax; xlat; ret\n"
     "op_push: mov %rsp, %rbx; lea 8(%rdi), %rsp; push %rax; mov %rbx, %rsp; ret\n"
     "op_pop: mov %rsp, %rbx; mov %rdi, %rsp; pop %rax; mov %rbx, %rsp; ret\n"
     "op_pop_mem: pushq $0; popq (%rdi); ret\n"
     "op_push_mem: pushq (%rdi); pop %rax; ret\n"
     "op_pushf: mov %rsp, %rbx; lea 8(%rdi), %rsp; pushfq; mov %rbx, %rsp; ret\n"
     "op_popf: mov %rsp, %rbx; mov %rdi, %rsp; popfq; mov %rbx, %rsp; ret\n"
     "op_call_stack: mov %rsp, %rbx; lea 8(%rdi), %rsp; call 1f\n"
     "1:	mov %rbx, %rsp; ret\n"
     "op_ret_stack: mov %rsp, %rbx; mov %rdi, %rsp; ret\n"
     "op_leave: push %rbp; mov %rsp, %rbx; mov %rdi, %rbp; leave; mov %rbx, %rsp; pop %rbp; ret\n"
     "op_enter: push %rbp; mov %rsp, %rbx; lea 8(%rdi), %rsp; enter $0, $0; mov %rbx, %rsp\n"
     "	pop %rbp; ret\n"
     "op_iret_stack: mov %rsp, %rbx; mov %rdi, %rsp; iretq\n"
     "op_lret_stack: mov %rsp, %rbx; mov %rdi, %rsp; lretq\n"
     "op_jmp: jmp *%rdi\n"
     "op_call: call *%rdi; ret\n"
     "op_ret: push %rdi; ret\n"
     "op_jmp_mem: push %rdi; jmp *(%rsp)\n"
     "op_lretq: pushq $8; push %rdi; lretq\n"
     "op_iretq: mov %rsp, %rax; pushq $0x10; push %rax; pushq $2; pushq $8; push %rdi; iretq\n"
     "op_clflush: clflush (%rdi); ret\n"
     "op_prefetch: prefetcht0 (%rdi); ret\n"
     "op_nop: nopl (%rdi); ret\n"
     "op_lea: lea (%rdi), %rax; ret\n"
     "op_invlpg: invlpg (%rdi); ret\n"
     "op_lgdt_operand: lgdt (%rdi); ret\n"
     "op_sidt: sidt (%rdi); ret\n"
     "op_fld: fldt (%rdi); ret\n"
     "op_ljmp: ljmp *(%rdi)\n"
     "op_smsw: smsw (%rdi); ret\n"
     "op_fs_base: xor %eax, %eax; mov %fs:(%rdi), %al; ret\n"
     ".data\n"
     "byte_here: .byte 0\n");
extern char op_load[], op_load_rbp[], op_load_rbp_idx[], op_load_idx_rbp[], op_load_rsp[],
	op_load_ds_rbp[], op_store[], op_add[], op_movs[], op_stos[], op_lods[], op_scas[],
	op_xlat[], op_push[], op_pop[], op_pop_mem[], op_push_mem[], op_pushf[], op_popf[],
	op_call_stack[], op_ret_stack[], op_leave[], op_enter[], op_iret_stack[], op_lret_stack[],
	op_jmp[], op_call[], op_ret[], op_jmp_mem[], op_lretq[], op_iretq[], op_clflush[],
	op_prefetch[], op_nop[], op_lea[], op_invlpg[], op_lgdt_operand[], op_sidt[], op_fld[],
	op_ljmp[], op_smsw[], op_fs_base[];

static const struct op {
	const char *name;
	char *code;
	int vector; /* when not canonical; error code 0 */
	int fine;   /* when canonical; ANY: not looked at */
} ops[] = {
	{"load", op_load, GP, ANY},
	{"load by RBP", op_load_rbp, SS, ANY},
	{"load by RBP and index", op_load_rbp_idx, SS, ANY},
	{"load by base and index RBP", op_load_idx_rbp, GP, ANY},
	{"load by RSP", op_load_rsp, SS, ANY},
	{"store", op_store, GP, ANY},
	{"locked add", op_add, GP, ANY},
	{"MOVS", op_movs, GP, ANY},
	{"STOS", op_stos, GP, ANY},
	{"LODS", op_lods, GP, ANY},
	{"SCAS", op_scas, GP, ANY},
	{"XLAT", op_xlat, GP, ANY},
	{"PUSH", op_push, SS, ANY},
	{"POP", op_pop, SS, ANY},
	{"POP to memory", op_pop_mem, GP, ANY},
	{"PUSH of memory", op_push_mem, GP, ANY},
	{"PUSHF", op_pushf, SS, ANY},
	{"POPF", op_popf, SS, ANY},
	{"CALL's stack", op_call_stack, SS, ANY},
	{"RET's stack", op_ret_stack, SS, ANY},
	{"LEAVE's stack", op_leave, SS, ANY},
	{"ENTER's stack", op_enter, SS, ANY},
	{"IRETQ's stack", op_iret_stack, SS, ANY},
	{"LRETQ's stack", op_lret_stack, SS, ANY},
	{"JMP", op_jmp, GP, ANY},
	{"JMP by memory", op_jmp_mem, GP, ANY},
	{"CALL", op_call, GP, ANY},
	{"RET", op_ret, GP, ANY},
	{"LRETQ", op_lretq, GP, ANY},
	{"IRETQ", op_iretq, GP, ANY},
	{"CLFLUSH", op_clflush, GP, ANY},
	{"LGDT's operand", op_lgdt_operand, GP, ANY},
	{"SIDT's operand", op_sidt, GP, ANY},
	{"FLD", op_fld, GP, ANY},
	{"far JMP's operand", op_ljmp, GP, ANY},
	{"SMSW's operand", op_smsw, GP, ANY},
	{"load with an FS base of 0", op_fs_base, GP, ANY},
	{"PREFETCH", op_prefetch, NONE, NONE},
	{"NOP with an operand", op_nop, NONE, NONE},
	{"LEA", op_lea, NONE, NONE},
	{"INVLPG", op_invlpg, NONE, NONE},
};

/* The order in which IRET and RETF read their frame is not told, and differs between makers: with a
 * part of it canonical, but not mapped, either fault may come. */
static bool frame_partly_canonical(const struct op *op, u64 address)
{
	return (op->code == op_iret_stack || op->code == op_lret_stack) &&
	       canonical(address + 39, width());
}

static void run_op(const struct op *op, u64 address)
{
	bool fine = canonical(address, width());
	int got;

#define ROW guest_name("%s at 0x%lx, %u bits", op->name, address, width())
	if ((fine && op->fine == ANY) || frame_partly_canonical(op, address))
		return;
	got = trap_run((void (*)(void *))op->code, (void *)address);
	CHECK_ROW(ROW, fine ? op->fine : op->vector, got);
	if (got == GP || got == SS) {
		CHECK_ROW(ROW, 0, trap_last()->error);
		CHECK_ROW(ROW, true,
			  trap_last()->rip - (u64)op->code < 40); /* at the instruction */
	}
#undef ROW
}

static void run_ops(void)
{
	trap_on_ist(true);
	for (unsigned i = 0; i < ARRAY_SIZE(ops); i++)
		for (unsigned k = 0; k < ARRAY_SIZE(addresses); k++)
			run_op(&ops[i], addresses[k]);
	trap_on_ist(false);
}

/* 57-bit runs need a PML5 over the same tables. */
static u64 *pml5;

static bool switch_width(bool la57)
{
	if (la57 && !HAS_LA57) {
		guest_skip("no LA57");
		return false;
	}
	if (!pml5)
		pml5 = page_alloc();
	pml5[0] = (u64)boot_pml4 | 7;
	paging_switch((u64)(la57 ? pml5 : boot_pml4),
		      (READ_CR(4) & ~CR4_LA57) | (la57 ? CR4_LA57 : 0));
	return true;
}

TEST(instructions_check_48_bits)
{
	run_ops();
}

TEST(instructions_check_57_bits)
{
	if (!switch_width(true))
		return;
	run_ops();
	switch_width(false);
}

/* An operand that is canonical only in part is not. */
CODE("wide_8: mov (%rdi), %rax; ret\n"
     "wide_8_store: mov %rax, (%rdi); ret\n"
     "wide_2_stack: mov %rsp, %rbx; mov %rdi, %rsp; popw %ax; mov %rbx, %rsp; ret\n"
     "wide_10: fldt (%rdi); ret\n"
     "wide_16: cmpxchg16b (%rdi); ret\n");
extern char wide_8[], wide_8_store[], wide_2_stack[], wide_10[], wide_16[];

static const struct {
	const char *name;
	char *code;
	unsigned size, align;
	int vector;
} wides[] = {
	{"8 bytes", wide_8, 8, 1, GP},
	{"8 bytes stored", wide_8_store, 8, 1, GP},
	{"POP of 2 bytes", wide_2_stack, 2, 1, SS},
	{"10 bytes", wide_10, 10, 1, GP},
	{"CMPXCHG16B", wide_16, 16, 16, GP},
};

TEST(operands_may_not_leave_the_canonical_range)
{
	u64 end = 1ull << 47;

	trap_on_ist(true);
	for (unsigned i = 0; i < ARRAY_SIZE(wides); i++)
		for (unsigned over = 0; over < wides[i].size; over++) {
			u64 at = end - wides[i].size + over;
			int want = over ? wides[i].vector : PF; /* there is no page */

			if (over % wides[i].align)
				continue;
			CHECK_ROW(guest_name("%s, %u over the end", wides[i].name, over), want,
				  trap_run((void (*)(void *))wides[i].code, (void *)at));
			if (want == PF)
				CHECK_ROW(wides[i].name, at, trap_last()->cr2);
			else
				CHECK_ROW(wides[i].name, 0, trap_last()->error);
		}
	/* from the other side: the lowest bytes are outside */
	CHECK_EQ(GP, trap_run((void (*)(void *))wide_8, (void *)0xffff7ffffffffff9));
	CHECK_EQ(PF, trap_run((void (*)(void *))wide_8, (void *)0xffff800000000000));
	trap_on_ist(false);
}

/* --- MSRs and the like -------------------------------------------------------------------------
 */
static void wrfsbase(void *p)
{
	asm volatile("wrfsbase %0" : : "r"(p));
}

static void wrgsbase(void *p)
{
	asm volatile("wrgsbase %0" : : "r"(p));
}

struct table {
	u16 limit;
	u64 base;
} __attribute__((packed));

static void load_idt_base(void *p)
{
	struct table t = {0xfff, (u64)p}, old;

	asm volatile("sidt %0; lidt %1; lidt %0" : "=m"(old) : "m"(t));
}

static void load_gdt_base(void *p)
{
	struct table t = {0xfff, (u64)p}, old;

	asm volatile("sgdt %0; lgdt %1; lgdt %0" : "=m"(old) : "m"(t));
}

static void write_cr2(void *p)
{
	WRITE_CR(2, p);
}

static void write_dr0(void *p)
{
	WRITE_DR(0, p);
	WRITE_DR(0, 0);
}

static void do_invpcid(void *p)
{
	u64 desc[2] = {0, (u64)p};

	asm volatile("invpcid %0, %1" : : "m"(desc), "r"(0ull) : "memory");
}

static void write_msr(u32 index, void *p)
{
	u64 old = rdmsr(index);

	wrmsr(index, (u64)p);
	CHECK_EQ(p, rdmsr(index));
	wrmsr(index, old);
}

#define MSR_WRITER(name, index)                                                                    \
	static void name(void *p)                                                                  \
	{                                                                                          \
		write_msr(index, p);                                                               \
	}
MSR_WRITER(write_fs_base, 0xc0000100)
MSR_WRITER(write_gs_base, 0xc0000101)
MSR_WRITER(write_kernel_gs_base, 0xc0000102)
MSR_WRITER(write_lstar, 0xc0000082)
MSR_WRITER(write_cstar, 0xc0000083)
MSR_WRITER(write_sysenter_esp, 0x175)
MSR_WRITER(write_sysenter_eip, 0x176)

static const struct reg {
	const char *name;
	void (*fn)(void *);
	int vector;     /* when not canonical */
	bool any_width; /* with LA57 in the CPU but off: 57 bits may be enough, see below */
	bool intel_only;
} regs[] = {
	{"FS_BASE", write_fs_base, GP, true, false},
	{"GS_BASE", write_gs_base, GP, true, false},
	{"KERNEL_GS_BASE", write_kernel_gs_base, GP, true, false},
	{"LSTAR", write_lstar, GP, true, false},
	{"CSTAR", write_cstar, GP, true, false},
	/* AMD has 32-bit SYSENTER only and does not say what these hold. */
	{"SYSENTER_ESP", write_sysenter_esp, GP, true, true},
	{"SYSENTER_EIP", write_sysenter_eip, GP, true, true},
	{"WRFSBASE", wrfsbase, GP, true, false},
	{"WRGSBASE", wrgsbase, GP, true, false},
	{"LIDT's base", load_idt_base, GP, true, false},
	{"LGDT's base", load_gdt_base, GP, true, false},
	{"INVPCID", do_invpcid, GP, true, false},
	{"CR2", write_cr2, NONE, false, false},
	{"DR0", write_dr0, NONE, false, false},
};

/* Registers that hold addresses are checked against the width in use or against the width the CPU
 * has, whatever CR4.LA57 says: Intel's manual (LAM chapter) says the latter for MSRs, and its CPUs
 * do so for descriptor tables and INVPCID too; AMD's manual does not tell them apart. */
static void run_reg(const struct reg *r, u64 address)
{
	bool here = canonical(address, width());
	bool somewhere = r->any_width && HAS_LA57 && canonical(address, 57);
	int got;

	if (!here && somewhere)
		return;
	got = trap_run(r->fn, (void *)address);
	CHECK_ROW(guest_name("%s of 0x%lx, %u bits", r->name, address, width()),
		  here ? NONE : r->vector, got);
	if (got == GP)
		CHECK_ROW(r->name, 0, trap_last()->error);
}

static bool reg_exists(const struct reg *r)
{
	if (r->fn == wrfsbase || r->fn == wrgsbase)
		return HAS_FSGSBASE;
	return r->fn == do_invpcid ? HAS_INVPCID : !(r->intel_only && cpu_is_amd());
}

static void run_regs(void)
{
	if (HAS_FSGSBASE)
		WRITE_CR(4, READ_CR(4) | CR4_FSGSBASE);
	for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
		for (unsigned k = 0; k < ARRAY_SIZE(addresses); k++)
			if (reg_exists(&regs[i]))
				run_reg(&regs[i], addresses[k]);
	wrmsr(0xc0000100, 0);
	wrmsr(0xc0000101, 0);
	WRITE_CR(4, READ_CR(4) & ~CR4_FSGSBASE);
}

TEST(registers_check_48_bits)
{
	run_regs();
}

TEST(registers_check_57_bits)
{
	if (!switch_width(true))
		return;
	run_regs();
	switch_width(false);
}

/* Base and offset are added first; the sum counts. */
CODE("fs_load: mov %fs:(%rdi), %al; ret\n");
extern char fs_load[];

TEST(the_sum_of_base_and_offset_has_to_be_canonical)
{
	static const struct {
		const char *name;
		u64 base, offset;
		int vector;
	} rows[] = {
		{"both canonical, sum not", 0x7ffffffff000, 0x1000, GP},
		{"sum in the lower half", 0x7fff00000000, 0x1000, PF},
		{"offset not canonical, sum is", 0xffff800000000000, 0x0000800000000000 + 0x1000,
		 NONE},
		{"wraps to low memory", 0xfffffffffffff000, 0x201000, NONE},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		wrmsr(0xc0000100, rows[i].base);
		CHECK_ROW(rows[i].name, rows[i].vector,
			  trap_run((void (*)(void *))fs_load, (void *)rows[i].offset));
	}
	wrmsr(0xc0000100, 0);
}

/* --- string instructions -----------------------------------------------------------------------
 */
static u64 *map_top(void)
{
	/* the last page of the lower half */
	static u64 *pt;
	u64 *pdpt, *pd;

	if (pt)
		return pt;
	pdpt = page_alloc();
	pd = page_alloc();
	pt = page_alloc();
	boot_pml4[255] = (u64)pdpt | 7;
	pdpt[511] = (u64)pd | 7;
	pd[511] = (u64)pt | 7;
	pt[511] = (u64)page_alloc() | 7;
	return pt;
}

static void rep_stos(void *p)
{
	u64 rdi = (u64)p, rcx = 100;

	asm volatile("rep stosb" : "+D"(rdi), "+c"(rcx) : "a"(0x5a) : "memory");
}

TEST(a_string_instruction_stops_at_the_edge)
{
	const u8 *top = (const u8 *)0x7ffffffff000;

	map_top();
	CHECK_EQ(GP, trap_run(rep_stos, (void *)(0x800000000000 - 10)));
	CHECK_EQ(90, trap_last()->frame.rcx);
	CHECK_EQ(0x800000000000, trap_last()->frame.rdi);
	CHECK_EQ(0, top[4085]);
	CHECK_EQ(0x5a, top[4086]);
	CHECK_EQ(0x5a, top[4095]);
}

/* --- running off the end -----------------------------------------------------------------------
 */
static const struct {
	const char *name;
	u8 code[4], size;
	u8 at; /* of the instruction that faults, counted from the start; = size: after it */
} ends[] = {
	{"after NOP", {0x90}, 1, 1},        {"inside an instruction", {0x90, 0x48, 0x89}, 3, 1},
	{"a jump out", {0xeb, 0x00}, 2, 0}, {"after a jump that is not taken", {0x70, 0x00}, 2, 2},
	{"only a prefix", {0x66}, 1, 0},
};

static void jump(void *p)
{
	asm volatile("jmp *%0" : : "r"(p));
}

TEST(execution_runs_off_the_canonical_range)
{
	u8 *top = (u8 *)0x7ffffffff000;

	map_top();
	for (unsigned i = 0; i < ARRAY_SIZE(ends); i++) {
		u64 start = 0x800000000000 - ends[i].size;

		for (unsigned k = 0; k < ends[i].size; k++)
			top[4096 - ends[i].size + k] = ends[i].code[k];
		CHECK_ROW(ends[i].name, GP, trap_run(jump, (void *)start));
		CHECK_ROW(ends[i].name, 0, trap_last()->error);
		CHECK_ROW(ends[i].name, start + ends[i].at, trap_last()->rip);
	}
}

/* A CALL whose return address would be the first byte outside is fine; its RET is not. */
CODE("just_ret: ret\n"
     "call_at_end: lea just_ret, %rax; jmp *%rdi\n");
extern char call_at_end[], just_ret[];

TEST(a_call_at_the_very_end)
{
	u8 *top = (u8 *)0x7ffffffff000;

	map_top();
	top[4094] = 0xff; /* CALL RAX */
	top[4095] = 0xd0;
	CHECK_EQ(GP, trap_run((void (*)(void *))call_at_end, top + 4094));
	CHECK_EQ(just_ret, trap_last()->rip);
}

/* --- SYSRET, SYSEXIT ---------------------------------------------------------------------------
 */
static void do_sysret(void *p)
{
	asm volatile("mov $2, %%r11d; sysretq" : : "c"(p) : "r11");
}

TEST(sysret_to_an_address_that_is_not_canonical)
{
	u64 star = rdmsr(0xc0000081), at = 1ull << 47;

	wrmsr(0xc0000081, (u64)(SEL_USER_CODE - 16) << 48 | (u64)SEL_CODE << 32);
	CHECK_EQ(GP, trap_run(do_sysret, (void *)at));
	CHECK_EQ(0, trap_last()->error);
	/* Intel refuses in ring 0; AMD goes to ring 3 and the fetch faults there. */
	if (cpu_is_amd()) {
		CHECK_EQ(3, trap_last()->cs & 3);
		CHECK_EQ(at, trap_last()->rip);
	} else {
		CHECK_EQ(0, trap_last()->cs & 3);
	}
	wrmsr(0xc0000081, star);
}
