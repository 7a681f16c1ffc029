/* test_smc.c - code that changes: under its own feet, through an alias, from another CPU; and
 * instructions that lie across two pages.
 *
 * SDM 3A "Handling Self- and Cross-Modifying Code", AMD APM 2 "Cross-Modifying Code".  A change
 * made through the same linear address counts at the next jump at the latest; any other needs a
 * serialising instruction on the CPU that runs the code. */
#include "guest.h"

typedef u64 (*routine)(u64);

enum { PAGE = 4096 };
#define HERE  (2ull << 39)
#define ALIAS (3ull << 39)

static u64 *pt, *alias_pt;
static u8 *frames[2]; /* two pages that are mapped next to each other at HERE and at ALIAS */

static u64 *map_table(u64 va)
{
	u64 *pdpt = page_alloc(), *pd = page_alloc(), *table = page_alloc();

	boot_pml4[va >> 39] = (u64)pdpt | 7;
	pdpt[0] = (u64)pd | 7;
	pd[0] = (u64)table | 7;
	return table;
}

static void setup(void)
{
	if (!pt) {
		pt = map_table(HERE);
		alias_pt = map_table(ALIAS);
		frames[0] = page_alloc();
		frames[1] = page_alloc();
	}
	for (unsigned i = 0; i < 2; i++) {
		pt[i] = alias_pt[i] = (u64)frames[i] | 7;
		invlpg((void *)(HERE + i * PAGE));
		invlpg((void *)(ALIAS + i * PAGE));
		for (unsigned k = 0; k < PAGE; k++)
			frames[i][k] = 0xcc;
	}
}

static void serialise(void)
{
	u32 r[4];

	cpuid(0, 0, r);
}

static void put(void *at, const void *bytes, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		((volatile u8 *)at)[i] = ((const u8 *)bytes)[i];
}

/* mov $v, %eax; ret */
static void put_return(void *at, u32 v)
{
	u8 code[6] = {0xb8, v, v >> 8, v >> 16, v >> 24, 0xc3};

	put(at, code, 6);
}

/* --- code that changes itself --------------------------------------------------------------------
 */
CODE("self_next: movl $77, 1f+1(%rip)\n" /* the instruction that follows */
     "1:	mov $11, %eax; movl $11, 1b+1(%rip); ret\n"
     "self_after_jump: movl $77, 1f+1(%rip); jmp 1f; nop\n"
     "1:	mov $11, %eax; movl $11, 1b+1(%rip); ret\n"
     "self_far: movl $77, 1f+1(%rip); .skip 100, 0x90\n"
     "1:	mov $11, %eax; movl $11, 1b+1(%rip); ret\n"
     "self_loop: xor %edx, %edx; mov $100, %ecx\n" /* adds 1, 2, 3 ... by patching an immediate */
     "1:	add $0x01010101, %edx\n"
     "	mov %ecx, 1b+2(%rip); dec %ecx; jnz 1b\n"
     "	mov %edx, %eax; movl $0x01010101, 1b+2(%rip); ret\n"
     "self_length: mov 1f(%rip), %dx; movw $0x9090, 1f(%rip)\n" /* a jump away becomes two NOPs */
     "1:	jmp 2f\n"
     "	mov $77, %eax; mov %dx, 1b(%rip); ret\n"
     "2:	mov $11, %eax; ret\n"
     "self_push: mov %rsp, %rdx; lea 2f+8(%rip), %rsp; mov 1f(%rip), %rax; push %rax\n"
     "	mov %rdx, %rsp; jmp 2f\n"
     "1:	mov $77, %eax; ret; nop; nop\n"
     "2:	mov $11, %eax; ret; nop; nop\n"
     "self_stos: lea 2f(%rip), %rdi; mov 1f(%rip), %rax; mov $1, %ecx; rep stosq; jmp 2f\n"
     "1:	mov $77, %eax; ret; nop; nop\n"
     "2:	mov $11, %eax; ret; nop; nop\n"
     "self_movs: lea 2f(%rip), %rdi; lea 1f(%rip), %rsi; mov $8, %ecx; rep movsb; jmp 2f\n"
     "1:	mov $77, %eax; ret; nop; nop\n"
     "2:	mov $11, %eax; ret; nop; nop\n"
     "self_lock: lock addl $66, 1f+1(%rip); jmp 1f\n"
     "1:	mov $11, %eax; lock subl $66, 1b+1(%rip); ret\n"
     "self_xchg: mov $77, %ecx; xchg %ecx, 1f+1(%rip); jmp 1f\n"
     "1:	mov $11, %eax; movl $11, 1b+1(%rip); ret\n"
     "self_cmpxchg: mov $11, %eax; mov $77, %ecx; cmpxchg %ecx, 1f+1(%rip); jmp 1f\n"
     "1:	mov $11, %eax; movl $11, 1b+1(%rip); ret\n"
     "self_sse: movups 1f(%rip), %xmm0; movups %xmm0, 2f(%rip); jmp 2f\n"
     "1:	mov $77, %eax; ret; .skip 10, 0x90\n"
     "2:	mov $11, %eax; ret; .skip 10, 0x90\n"
     "self_fist: fninit; fildl 1f(%rip); fistpl 2f+1(%rip); jmp 2f\n"
     "1:	.long 77\n"
     "2:	mov $11, %eax; movl $11, 2b+1(%rip); ret\n"
     "self_setcc: xor %eax, %eax; setz 1f+1(%rip); jmp 1f\n" /* 11 becomes 1 */
     "1:	mov $11, %eax; add $76, %eax; movl $11, 1b+1(%rip); ret\n"
     "self_rmw: addb $66, 1f+1(%rip)\n"
     "1:	mov $11, %eax; subb $66, 1b+1(%rip); ret\n"
     /* REP STOS over the code that follows it */
     "self_rep_over: lea 1f(%rip), %rdi; mov $0x90, %al; mov $5, %ecx; rep stosb; mov $77, %eax\n"
     "1:	mov $11, %eax\n"
     "	movb $0xb8, 1b(%rip); movl $11, 1b+1(%rip); ret\n");
extern char self_next[], self_after_jump[], self_far[], self_loop[], self_length[], self_push[],
	self_stos[], self_movs[], self_lock[], self_xchg[], self_cmpxchg[], self_sse[], self_fist[],
	self_setcc[], self_rmw[], self_rep_over[];

static const struct {
	const char *name;
	char *code;
	u32 result;
} self_rows[] = {
	{"the next instruction", self_next, 77},
	{"behind a jump", self_after_jump, 77},
	{"further on in the block", self_far, 77},
	{"in a loop", self_loop, 0x01010101 + 5049},
	{"instructions of another length", self_length, 77},
	{"by PUSH", self_push, 77},
	{"by REP STOS", self_stos, 77},
	{"by REP MOVS", self_movs, 77},
	{"by a locked ADD", self_lock, 77},
	{"by XCHG", self_xchg, 77},
	{"by CMPXCHG", self_cmpxchg, 77},
	{"by MOVUPS", self_sse, 77},
	{"by FISTP", self_fist, 77},
	{"by SETcc", self_setcc, 77},
	{"by ADD to the next instruction", self_rmw, 77},
	{"by REP STOS right before", self_rep_over, 77},
};

TEST(code_that_changes_itself)
{
	for (unsigned round = 0; round < 3; round++)
		for (unsigned i = 0; i < ARRAY_SIZE(self_rows); i++)
			CHECK_ROW(guest_name("%s, round %u", self_rows[i].name, round),
				  self_rows[i].result, ((routine)self_rows[i].code)(0));
}

/* --- code changed from outside -------------------------------------------------------------------
 */
TEST(code_written_again_and_again)
{
	setup();
	for (u32 i = 0; i < 500; i++) {
		u8 *at = (u8 *)HERE + i * 7 % 4000;

		put_return(at, i);
		CHECK_EQ(i, ((routine)at)(0));
	}
}

/* The rest of the page is data, written between calls. */
TEST(data_beside_code)
{
	volatile u32 *data = (volatile u32 *)(HERE + 64);

	setup();
	put_return((void *)HERE, 5);
	for (u32 i = 0; i < 1000; i++) {
		data[i % 500] = i;
		CHECK_EQ(5, ((routine)HERE)(0));
	}
	CHECK_EQ(999, data[499]);
}

TEST(code_written_through_an_alias)
{
	setup();
	for (u32 i = 0; i < 100; i++) {
		put_return((void *)(ALIAS + 100), i);
		serialise();
		CHECK_EQ(i, ((routine)(HERE + 100))(0));
		put_return(frames[0] + 100, ~i);
		serialise();
		CHECK_EQ(~i, (u32)((routine)(HERE + 100))(0));
		CHECK_EQ(~i, (u32)((routine)(ALIAS + 100))(0));
	}
}

/* A write that lies across two pages of code changes both. */
TEST(a_write_across_the_edge_of_two_code_pages)
{
	u8 *edge = (u8 *)HERE + PAGE;

	setup();
	for (u32 i = 0; i < 20; i++) {
		put_return(edge - 6, 1);
		put_return(edge, 2);
		CHECK_EQ(1, ((routine)(edge - 6))(0));
		CHECK_EQ(2, ((routine)edge)(0));
		/* ...c3 | b8 03: the first RET becomes NOP; b8 imm8.. */
		*(volatile u32 *)(edge - 1) = 0x0003b890 | i << 24;
		CHECK_EQ(3 | i << 8, ((routine)(edge - 6))(0));
		CHECK_EQ(3 | i << 8, ((routine)edge)(0));
	}
}

/* --- another mapping ---------------------------------------------------------------------------
 */
TEST(a_page_of_code_is_replaced_by_another)
{
	setup();
	put_return(frames[0], 10);
	put_return(frames[1], 20);
	serialise();
	for (unsigned i = 0; i < 10; i++) {
		pt[0] = (u64)frames[i & 1] | 7;
		invlpg((void *)HERE);
		CHECK_ROW(guest_name("round %u", i), i & 1 ? 20 : 10, ((routine)HERE)(0));
	}
}

TEST(the_second_page_of_an_instruction_is_replaced)
{
	u8 *other = page_alloc();
	u8 *edge = (u8 *)HERE + PAGE;

	setup();
	put_return(edge - 3, 0x44332211); /* b8 11 22 | 33 44 c3 */
	other[0] = 0x77;
	other[1] = 0x88;
	other[2] = 0xc3;
	for (unsigned i = 0; i < 10; i++) {
		pt[1] = (u64)(i & 1 ? other : frames[1]) | 7;
		invlpg(edge);
		CHECK_EQ(i & 1 ? 0x88772211 : 0x44332211, (u32)((routine)(edge - 3))(0));
	}
	pt[1] = (u64)frames[1] | 7;
	invlpg(edge);
	CHECK_EQ(0x44332211, (u32)((routine)(edge - 3))(0));
	put(edge, "\x55\x66", 2); /* written, not remapped */
	CHECK_EQ(0x66552211, (u32)((routine)(edge - 3))(0));
	put(edge - 1, "\x99", 1);
	CHECK_EQ(0x66559911, (u32)((routine)(edge - 3))(0));
}

/* --- the same bytes in two modes -----------------------------------------------------------------
 */
CODE("two_modes: push %rbx; mov %rdi, %rdx; mov $10, %eax; call *%rdx\n" /* 64-bit */
     "	mov %eax, %ebx; pushq $0x18; pushq $1f; lretq\n"
     "	.code32\n"
     "1:	mov $10, %eax; call *%edx\n"
     "	ljmp $0x08, $2f\n"
     "	.code64\n"
     "2:	mov %eax, %eax; shl $32, %rax; or %rbx, %rax; pop %rbx; ret\n");
extern char two_modes[];

TEST(one_routine_means_two_things_in_two_modes)
{
	/* 48 ff c0 c3: INC RAX; RET.  In 32-bit code DEC EAX; INC EAX; RET. */
	static u8 code[] __attribute__((aligned(16))) = {0x48, 0xff, 0xc0, 0xc3};

	for (unsigned i = 0; i < 3; i++)
		CHECK_EQ(10ull << 32 | 11, ((routine)two_modes)((u64)code));
}

/* --- instructions across a page edge
 * ---------------------------------------------------------------
 */
static const struct {
	const char *name;
	u8 code[16], size;
} crossing[] = {
	{"MOV RAX, imm64", {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8}, 10},
	{"MOV with SIB, disp32 and imm32",
	 {0x48, 0xc7, 0x84, 0x24, 0xf0, 0xff, 0xff, 0xff, 1, 0, 0, 0},
	 12},
	{"prefixes", {0x66, 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0}, 12},
	{"VEX", {0xc4, 0xe2, 0x78, 0xf2, 0xc0}, 5}, /* ANDN EAX, EAX, EAX */
	{"JMP rel32", {0xe9, 0, 0, 0, 0}, 5},
	{"two-byte NOP", {0x66, 0x90}, 2},
};

static void call(void *p)
{
	((routine)p)(0);
}

static void check_cross_fault(const char *name, u8 *at, u8 *edge, bool user, u64 pte, u32 error)
{
	void (*fn)(void *) = user ? (void (*)(void *))at : call;

	pt[1] = pte;
	invlpg(edge);
	CHECK_ROW(name, PF, user ? trap_run_user(fn, NULL) : trap_run(fn, at));
	CHECK_ROW(name, error, trap_last()->error);
	CHECK_ROW(name, edge, trap_last()->cr2);
	CHECK_ROW(name, at, trap_last()->rip);
}

TEST(an_instruction_faults_on_its_second_page)
{
	u8 *edge = (u8 *)HERE + PAGE;

	for (unsigned i = 0; i < ARRAY_SIZE(crossing); i++)
		for (unsigned first = 1; first < crossing[i].size; first++) {
			u8 *at = edge - first;
			const char *name =
				guest_name("%s, %u bytes before the edge", crossing[i].name, first);
			u64 pte;

			if (crossing[i].code[0] == 0xc4 && !cpu_has(7, 0, EBX, 3))
				continue;
			setup();
			pte = pt[1];
			put(at, crossing[i].code, crossing[i].size);
			put(at + crossing[i].size, "\xc3", 1);
			check_cross_fault(name, at, edge, false, pte & ~1ull, PF_I);
			check_cross_fault(name, at, edge, true, pte & ~1ull, PF_I | PF_U);
			check_cross_fault(name, at, edge, false, pte | BIT(63), PF_I | PF_P);
			check_cross_fault(name, at, edge, true, pte & ~4ull, PF_I | PF_U | PF_P);
			pt[1] = pte;
			invlpg(edge);
			CHECK_ROW(name, NONE, trap_run(call, at));
			check_cross_fault(name, at, edge, false, pte & ~1ull,
					  PF_I); /* cached now */
		}
}

/* Only bytes of the instruction are fetched, as far as anyone can tell. */
static const struct {
	const char *name;
	u8 code[16], size; /* ends at the edge; the next page is missing */
	int vector;
	bool at_edge; /* #PF: RIP is the edge, not the instruction */
} edges[] = {
	{"RET", {0xc3}, 1, NONE, false},
	{"INT3", {0xcc}, 1, BP, false},
	{"UD2", {0x0f, 0x0b}, 2, UD, false},
	{"an opcode that does not exist", {0x06}, 1, UD, false},
	{"two-byte opcode that does not exist", {0x0f, 0x04}, 2, UD, false},
	{"NOP runs off", {0x90}, 1, PF, true},
	{"a jump back", {0xc3, 0xeb, 0xfd}, 3, NONE, false},
	{"LOCK alone needs the next byte", {0xf0}, 1, PF, false},
	{"an opcode that needs ModRM", {0x01}, 1, PF, false},
	{"14 prefixes",
	 {0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66},
	 14,
	 PF,
	 false},
	{"15 prefixes are too long already",
	 {0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66},
	 15,
	 GP,
	 false},
};

TEST(nothing_is_fetched_that_is_not_executed)
{
	u8 *edge = (u8 *)HERE + PAGE;

	setup();
	pt[1] = 0;
	invlpg(edge);
	for (unsigned i = 0; i < ARRAY_SIZE(edges); i++) {
		u8 *at = edge - edges[i].size,
		   *start = at + (edges[i].code[0] == 0xc3 && edges[i].size > 1);

		put(at, edges[i].code, edges[i].size);
		CHECK_ROW(edges[i].name, edges[i].vector, trap_run(call, start));
		if (edges[i].vector != PF)
			continue;
		CHECK_ROW(edges[i].name, edge, trap_last()->cr2);
		CHECK_ROW(edges[i].name, edges[i].at_edge ? edge : at, trap_last()->rip);
	}
}

/* --- other CPUs --------------------------------------------------------------------------------
 */
static struct {
	volatile u32 wanted, done, result;
	routine fn;
} order;

/* Wait for the next round, serialise, run. */
static void follow(void *arg)
{
	u32 rounds = (u32)(u64)arg;

	for (u32 round = 1; round <= rounds; round++) {
		while (order.wanted != round)
			asm volatile("pause");
		serialise();
		order.result = order.fn(0);
		order.done = round;
	}
}

static bool start_follower(u32 rounds)
{
	order.wanted = order.done = 0;
	if (smp_count() < 2) {
		guest_skip("one CPU");
		return false;
	}
	return CHECK(smp_run(1, follow, (void *)(u64)rounds));
}

static u32 one_round(u32 round, void *fn)
{
	order.fn = (routine)fn;
	order.wanted = round;
	while (order.done != round)
		asm volatile("pause");
	return order.result;
}

TEST(another_cpu_sees_new_code_after_serialising)
{
	enum { ROUNDS = 300 };

	setup();
	if (!start_follower(ROUNDS))
		return;
	for (u32 i = 1; i <= ROUNDS; i++) {
		put_return(frames[0], i);
		CHECK_EQ(i, one_round(i, frames[0]));
	}
	smp_wait(1);
}

/* This CPU can write the page fast before the other runs it for the first time; that must not let
 * the write after that go unseen. */
TEST(a_page_that_just_became_code_is_watched)
{
	enum { ROUNDS = 60 };
	u8 *pages = page_alloc_n(ROUNDS / 2);

	if (!start_follower(ROUNDS))
		return;
	for (u32 i = 0; i < ROUNDS / 2; i++) {
		u8 *page = pages + i * PAGE;

		for (unsigned k = 0; k < PAGE; k += 64)
			put_return(page + k, 1000);
		CHECK_EQ(1000, one_round(2 * i + 1, page + 64));
		put_return(page + 64, i);
		CHECK_EQ(i, one_round(2 * i + 2, page + 64));
	}
	smp_wait(1);
}

/* The other CPU keeps running a routine while this one writes beside it and, now and then, its
 * immediate, which is written as one aligned value: each result is an old or a new one. */
static volatile bool stop;
static volatile u64 bad_results, runs;

static void keep_running(void *p)
{
	u32 last = 0;

	while (!stop) {
		u32 v = ((routine)p)(0);

		if (v < last || v > 1000)
			bad_results++;
		last = v;
		runs++;
	}
}

TEST(code_changes_under_a_running_cpu)
{
	u8 *at;

	if (smp_count() < 2) {
		guest_skip("one CPU");
		return;
	}
	setup();
	at = frames[1] + 63; /* b8 at 63: the immediate is aligned */
	put_return(at, 0);
	stop = false;
	bad_results = runs = 0;
	if (!CHECK(smp_run(1, keep_running, at)))
		return;
	while (!runs)
		asm volatile("pause");
	for (u32 i = 1; i <= 1000; i++) {
		*(volatile u32 *)(at + 1) = i;
		((volatile u32 *)frames[1])[100 + i % 800] = i;
	}
	stop = true;
	smp_wait(1);
	CHECK_EQ(0, bad_results);
	serialise();
	CHECK_EQ(1000, ((routine)at)(0));
}
