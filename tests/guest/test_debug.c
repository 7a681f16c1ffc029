/* test_debug.c - single step, breakpoints and the debug registers.
 *
 * SDM 3B "Debug, Branch Profile ..." and AMD APM 2 "Software-Debug Resources".  Each stepped
 * routine carries in its assembly the list of #DB exceptions it has to raise: where, and the DR6
 * bits. */
#include "guest.h"

enum { B0 = 1, B1 = 2, B2 = 4, BD = 1 << 13, BS = 1 << 14 };
#define DR6_NONE 0xffff0ff0ull

static struct {
	u64 rip, dr6, rflags, rcx;
} seen[64];
static unsigned nr_seen;

/* Log it, and go on past an instruction breakpoint. */
static void on_debug(struct trap_frame *f)
{
	u64 dr6 = READ_DR(6);

	if (nr_seen < ARRAY_SIZE(seen)) {
		seen[nr_seen].rip = f->rip;
		seen[nr_seen].dr6 = dr6;
		seen[nr_seen].rcx = f->rcx;
		seen[nr_seen++].rflags = f->rflags;
	}
	WRITE_DR(6, DR6_NONE);
	if (!(dr6 & (BS | BD)) && READ_DR(7) & 0xff)
		f->rflags |= FL_RF;
	if (nr_seen == ARRAY_SIZE(seen))
		f->rflags &= ~FL_TF; /* it would not end */
}

static void start_log(void)
{
	nr_seen = 0;
	WRITE_DR(6, DR6_NONE);
	trap_set_handler(DB, on_debug);
}

static void end_log(void)
{
	trap_set_handler(DB, NULL);
	WRITE_DR(7, 0);
	WRITE_DR(6, DR6_NONE);
}

static int run(bool user, char *code, void *arg)
{
	void (*fn)(void *) = (void (*)(void *))code;

	return user ? trap_run_user(fn, arg) : trap_run(fn, arg);
}

/* --- single step -------------------------------------------------------------------------------
 */
CODE(".macro expect name\n"
     "	.data; .balign 8; want_\\name: .text; \\name:\n"
     ".endm\n"
     ".macro want where, bits=0x4000\n"
     "	.data; .quad \\where, \\bits; .text\n"
     ".endm\n"
     ".macro trap bits=0x4000\n" /* the exception comes with RIP here */
     "	.Ltrap\\@: want .Ltrap\\@, \\bits\n"
     ".endm\n"
     ".macro done\n"
     "	.data; .quad 0, 0; .text; ret\n"
     ".endm\n"
     /* POPF that sets TF does not trap itself, POPF that clears it does. */
     ".macro step_on\n"
     "	pushfq; orl $0x100, (%rsp); popfq\n"
     ".endm\n"
     ".macro step_off\n"
     "	pushfq; trap; andl $~0x100, (%rsp); trap; popfq; trap\n"
     ".endm\n"

     "expect s_nop; step_on; nop; trap; nop; trap; step_off; done\n"
     "expect s_jump; step_on; jmp 1f; nop\n"
     "1:	trap; step_off; done\n"
     "expect s_mov_ss; mov %ss, %eax; step_on; mov %eax, %ss; nop; trap; step_off; done\n"
     "expect s_mov_ds; mov %ds, %eax; step_on; mov %eax, %ds; trap; nop; trap; step_off; done\n"
     "expect s_sti; step_on; sti; trap; nop; trap; cli; trap; step_off; done\n"
     "expect s_rep; lea scratch, %rdi; mov $3, %ecx; step_on\n"
     "1:	want 1b; want 1b; rep stosb; trap; step_off; done\n"
     "expect s_rep_0; xor %ecx, %ecx; step_on; rep stosb; trap; step_off; done\n"
     "expect s_repne; lea scratch, %rdi; movb $0, (%rdi); movb $1, 1(%rdi); mov $1, %al\n"
     "	mov $9, %ecx; step_on\n"
     "1:	want 1b; repne scasb; trap; step_off; done\n"
     "expect s_int; step_on; int $0x30; nop; trap; step_off; done\n"
     "expect s_int3; step_on; int3; nop; trap; step_off; done\n"
     "expect s_int1; step_on; .byte 0xf1; trap 0; nop; trap; step_off; done\n"
     "expect s_iret; mov %rsp, %rax; mov %ss, %edx; push %rdx; push %rax; pushfq\n"
     "	orl $0x100, (%rsp); mov %cs, %edx; push %rdx; push $1f; iretq\n"
     "1:	nop; trap; step_off; done\n"
     "expect s_pushf; step_on; pushfq; trap; pop %rax; trap; step_off\n"
     "	mov %rax, (%rdi); done\n"
     "expect s_fault; step_on; nop; trap; ud2; nop; trap; step_off; done\n"
     "expect s_call; step_on; want 1f; call 1f; trap; step_off; done\n"
     "1:	ret\n"
     "expect s_cpuid; step_on; cpuid; trap; rdtsc; trap; mov %cr0, %rax; trap; mov %rax, %cr0\n"
     "	trap; step_off; done\n"
     "expect s_syscall_masked; step_on; syscall; trap; step_off; done\n"
     "syscall_masked: push %r11; popfq; jmp *%rcx\n"
     "expect s_syscall; step_on; syscall; trap; step_off; done\n"
     "syscall_open: want syscall_open; nop; trap; jmp *%rcx\n"
     "expect s_lss; lea ss_here, %rax; step_on; lss (%rax), %edx; trap; nop; trap; step_off; done\n"
     ".data\n"
     "ss_here: .long 0; .word 0x10\n"
     "scratch: .skip 16\n");

#define STEPPED(name)                                                                              \
	extern char name[];                                                                        \
	extern u64 want_##name[];
STEPPED(s_nop)
STEPPED(s_jump)
STEPPED(s_mov_ss)
STEPPED(s_mov_ds)
STEPPED(s_sti)
STEPPED(s_rep)
STEPPED(s_rep_0)
STEPPED(s_repne)
STEPPED(s_int)
STEPPED(s_int3)
STEPPED(s_int1)
STEPPED(s_iret)
STEPPED(s_pushf)
STEPPED(s_fault)
STEPPED(s_call)
STEPPED(s_cpuid)
STEPPED(s_lss)
STEPPED(s_syscall_masked)
STEPPED(s_syscall)
extern char syscall_masked[], syscall_open[];

#define STEP_ROW(name, text, user)                                                                 \
	{                                                                                          \
		text, name, want_##name, user                                                      \
	}
static const struct step_row {
	const char *name;
	char *code;
	u64 *want; /* pairs: RIP, DR6 bits; ends with 0 */
	bool user; /* ring 3 can run it too */
} step_rows[] = {
	STEP_ROW(s_nop, "NOP", true),
	STEP_ROW(s_jump, "taken jump", true),
	STEP_ROW(s_mov_ss, "MOV SS: nothing until after the next instruction", true),
	STEP_ROW(s_mov_ds, "MOV DS", false),
	STEP_ROW(s_sti, "STI has no shadow for #DB", false),
	STEP_ROW(s_rep, "REP: after each iteration", true),
	STEP_ROW(s_rep_0, "REP with a count of 0", true),
	STEP_ROW(s_repne, "REPNE ends early", true),
	STEP_ROW(s_int, "INT n: handler runs without TF", false),
	STEP_ROW(s_int3, "INT3", true),
	STEP_ROW(s_int1, "INT1 leaves DR6 alone", true),
	STEP_ROW(s_iret, "IRET that sets TF", true),
	STEP_ROW(s_pushf, "PUSHF", true),
	STEP_ROW(s_fault, "a fault comes instead of the trap", true),
	STEP_ROW(s_call, "CALL and RET", true),
	STEP_ROW(s_cpuid, "instructions that trap in hypervisors", false),
	STEP_ROW(s_lss, "LSS has no shadow", false),
};

static void compare_log(const char *name, const u64 *want)
{
	unsigned n = 0;

	for (; want[2 * n]; n++) {
		const char *row = guest_name("%s, #DB %u", name, n);

		if (n >= nr_seen)
			break;
		CHECK_ROW(row, want[2 * n], seen[n].rip);
		CHECK_ROW(guest_name("%s, #DB %u", name, n), DR6_NONE | want[2 * n + 1],
			  seen[n].dr6);
	}
	CHECK_ROW(name, 0, want[2 * n]); /* all were seen */
	CHECK_ROW(name, n, nr_seen);     /* and no more */
}

static void skip_ud2(struct trap_frame *f)
{
	f->rip += 2;
}

static void return_at_once(struct trap_frame *f)
{
}

static void run_stepped(const struct step_row *r, bool user)
{
	u64 arg;

	start_log();
	CHECK_ROW(r->name, NONE, run(user, r->code, &arg));
	end_log();
	compare_log(guest_name("%s, ring %d", r->name, user ? 3 : 0), r->want);
	if (r->code == s_pushf)
		CHECK_ROW(r->name, FL_TF, arg & FL_TF);
}

TEST(single_step_traps_where_it_should)
{
	trap_set_handler(0x30, return_at_once);
	trap_set_handler(BP, return_at_once);
	trap_set_handler(UD, skip_ud2);
	for (unsigned i = 0; i < ARRAY_SIZE(step_rows); i++) {
		run_stepped(&step_rows[i], false);
		if (step_rows[i].user)
			run_stepped(&step_rows[i], true);
	}
	trap_set_handler(0x30, NULL);
	trap_set_handler(BP, NULL);
	trap_set_handler(UD, NULL);
}

/* SYSCALL traps only when its mask leaves TF set. */
TEST(single_step_over_syscall_follows_its_mask)
{
	u64 star = rdmsr(0xc0000081);

	wrmsr(0xc0000081, (u64)SEL_CODE << 32);
	for (unsigned masked = 0; masked < 2; masked++) {
		wrmsr(0xc0000082, (u64)(masked ? syscall_masked : syscall_open));
		wrmsr(0xc0000084, masked ? FL_TF : 0);
		start_log();
		CHECK_EQ(NONE, run(false, masked ? s_syscall_masked : s_syscall, NULL));
		end_log();
		if (masked) {
			compare_log("masked", want_s_syscall_masked);
			continue;
		}
		/* the trap after SYSCALL is at its target */
		CHECK_EQ(syscall_open, seen[0].rip);
		CHECK_EQ(DR6_NONE | BS, seen[0].dr6);
		CHECK_EQ(syscall_open + 1, seen[1].rip);
		CHECK_EQ(want_s_syscall[0], seen[2].rip);
		CHECK_EQ(6, nr_seen);
	}
	wrmsr(0xc0000081, star);
}

CODE("sysret_with_tf: mov $after_sysret, %ecx; mov %rdi, %r11; sysretq\n"
     "after_sysret: nop; ud2\n");
extern char sysret_with_tf[], after_sysret[];

/* With POPF and IRET, the instruction after comes first; with SYSRET nothing does. */
TEST(sysret_that_sets_tf_traps_before_the_users_next_instruction)
{
	u64 star = rdmsr(0xc0000081);

	trap_on_ist(true);
	wrmsr(0xc0000081, (u64)(SEL_USER_CODE - 16) << 48 | (u64)SEL_CODE << 32);
	start_log();
	CHECK_EQ(UD, run(false, sysret_with_tf, (void *)(2 | FL_TF)));
	end_log();
	CHECK_EQ(2, nr_seen);
	CHECK_EQ(after_sysret, seen[0].rip);
	CHECK_EQ(DR6_NONE | BS, seen[0].dr6);
	CHECK_EQ(after_sysret + 1, seen[1].rip);
	wrmsr(0xc0000081, star);
	trap_on_ist(false);
}

TEST(the_frame_of_a_step_has_tf_and_the_handler_has_not)
{
	start_log();
	run(false, s_nop, NULL);
	end_log();
	CHECK_EQ(FL_TF, seen[0].rflags & (FL_TF | FL_RF));
}

/* --- data breakpoints --------------------------------------------------------------------------
 */
enum { RW_EXEC, RW_WRITE, RW_IO, RW_DATA };
static u8 watched[1024] __attribute__((aligned(64))); /* with room for the widest stores */

static u64 dr7_bits(unsigned n, u8 rw, unsigned len)
{
	u64 code = len == 8 ? 2 : len - 1;

	return 2ull << 2 * n | (u64)rw << (16 + 4 * n) | code << (18 + 4 * n);
}

CODE("load_1: mov (%rdi), %al; ret\n"
     "load_2: mov (%rdi), %ax; ret\n"
     "load_4: mov (%rdi), %eax; ret\n"
     "load_8: mov (%rdi), %rax; ret\n"
     "store_1: mov %al, (%rdi); ret\n"
     "store_2: mov %ax, (%rdi); ret\n"
     "store_4: mov %eax, (%rdi); ret\n"
     "store_8: mov %rax, (%rdi); ret\n"
     "rmw_1: incb (%rdi); ret\n"
     "rmw_2: lock incw (%rdi); ret\n"
     "rmw_4: incl (%rdi); ret\n"
     "rmw_8: lock incq (%rdi); ret\n");
extern char load_1[], load_2[], load_4[], load_8[], store_1[], store_2[], store_4[], store_8[],
	rmw_1[], rmw_2[], rmw_4[], rmw_8[];
static char *const touches[3][4] = {
	{load_1, load_2, load_4, load_8},
	{store_1, store_2, store_4, store_8},
	{rmw_1, rmw_2, rmw_4, rmw_8},
};

static void check_watch(unsigned at, unsigned len, u8 rw, unsigned kind, unsigned size_log)
{
	unsigned size = 1 << size_log, start = at & ~(len - 1);
	char *code = touches[kind][size_log];

	WRITE_DR(0, watched + at);
	WRITE_DR(7, dr7_bits(0, rw, len));
	for (unsigned off = 8; off < 32; off++) {
		bool hit = off < start + len && start < off + size && (kind || rw == RW_DATA);

		start_log();
		run(false, code, watched + off);
#define ROW                                                                                        \
	guest_name("DR0 +%u, %u bytes, RW %u; kind %u of %u bytes at +%u", at, len, rw, kind,      \
		   size, off)
		CHECK_ROW(ROW, hit, nr_seen);
		if (!hit || !nr_seen)
			continue;
		CHECK_ROW(ROW, DR6_NONE | B0, seen[0].dr6);
		CHECK_ROW(ROW, true, seen[0].rip > (u64)code && *(u8 *)seen[0].rip == 0xc3);
#undef ROW
	}
	end_log();
}

TEST(data_breakpoints_match_overlapping_accesses)
{
	for (unsigned len = 1; len <= 8; len *= 2)
		for (unsigned at = 16; at<24; at += len> 1 && len < 8 ? 1 : 4)
			for (unsigned kind = 0; kind < 3; kind++)
				for (unsigned size = 0; size < 4; size++) {
					check_watch(at, len, RW_WRITE, kind, size);
					check_watch(at, len, RW_DATA, kind, size);
				}
}

CODE("d_push: mov %rsp, %rbx; mov %rdi, %rsp; push $1; mov %rbx, %rsp; ret\n"
     "d_call: mov %rsp, %rbx; mov %rdi, %rsp; call 1f\n"
     "1:	mov %rbx, %rsp; ret\n"
     "d_rep: lea -3(%rdi), %rdi; mov $8, %ecx\n"
     "d_rep_at: rep stosb; ret\n"
     "d_movs: mov %rdi, %rsi; lea 32(%rdi), %rdi; movsb; ret\n"
     "d_mov_ss: movw $0x10, (%rdi); mov (%rdi), %ss\n"
     "	nop\n"
     "d_mov_ss_end: ret\n"
     "d_cmpxchg: mov $0x1234567, %eax; xor %edx, %edx; lock cmpxchg %edx, (%rdi); ret\n");
extern char d_push[], d_call[], d_rep[], d_rep_at[], d_movs[], d_mov_ss[], d_mov_ss_end[],
	d_cmpxchg[];

static const struct {
	const char *name;
	char *code;
	int arg; /* from the watched 4 bytes */
	u8 rw;
} data_rows[] = {
	{"PUSH", d_push, 8, RW_WRITE},
	{"CALL", d_call, 8, RW_WRITE},
	{"source of MOVS", d_movs, 0, RW_DATA},
	{"destination of MOVS", d_movs, -32, RW_WRITE},
	{"CMPXCHG that fails writes too", d_cmpxchg, 0, RW_WRITE},
};

TEST(data_breakpoints_see_implicit_accesses)
{
	WRITE_DR(0, watched + 32);
	trap_on_ist(true); /* the handler's frame must not match */
	for (unsigned i = 0; i < ARRAY_SIZE(data_rows); i++) {
		WRITE_DR(7, dr7_bits(0, data_rows[i].rw, 4));
		start_log();
		run(false, data_rows[i].code, watched + 32 + data_rows[i].arg);
		CHECK_ROW(data_rows[i].name, 1, nr_seen);
		CHECK_ROW(data_rows[i].name, DR6_NONE | B0, seen[0].dr6);
	}
	trap_on_ist(false);
	end_log();
}

TEST(a_data_breakpoint_stops_rep_between_iterations)
{
	WRITE_DR(0, watched + 32);
	WRITE_DR(7, dr7_bits(0, RW_WRITE, 1));
	start_log();
	run(false, d_rep, watched + 32);
	end_log();
	CHECK_EQ(1, nr_seen);
	CHECK_EQ(d_rep_at, seen[0].rip);
	CHECK_EQ(4, seen[0].rcx); /* the fourth of eight hit */
}

TEST(a_data_breakpoint_on_the_source_of_mov_ss_waits)
{
	WRITE_DR(0, watched + 32);
	WRITE_DR(7, dr7_bits(0, RW_DATA, 2));
	start_log();
	run(false, d_mov_ss, watched + 32);
	end_log();
	/* the store of the selector, then the load */
	CHECK_EQ(2, nr_seen);
	CHECK_EQ(d_mov_ss_end, seen[1].rip);
	CHECK_EQ(DR6_NONE | B0, seen[1].dr6);
}

CODE("expect s_store; step_on; movb $1, (%rdi); trap 0x4001; step_off; done\n");
STEPPED(s_store)

TEST(two_breakpoints_make_one_exception)
{
	WRITE_DR(0, watched + 32);
	WRITE_DR(2, watched + 33);
	WRITE_DR(7, dr7_bits(0, RW_WRITE, 1) | dr7_bits(2, RW_DATA, 1));
	start_log();
	run(false, store_2, watched + 32);
	CHECK_EQ(1, nr_seen);
	CHECK_EQ(DR6_NONE | B0 | B2, seen[0].dr6);
	end_log();
}

TEST(a_breakpoint_and_a_step_make_one_exception)
{
	WRITE_DR(0, watched + 32);
	WRITE_DR(7, dr7_bits(0, RW_WRITE, 1));
	start_log();
	run(false, s_store, watched + 32);
	end_log();
	compare_log("store", want_s_store);
}

TEST(enable_bits_of_both_kinds_work_and_neither_means_off)
{
	for (unsigned n = 0; n < 4; n++)
		for (unsigned bits = 0; bits < 4; bits++) {
			u64 dr7 = (dr7_bits(n, RW_WRITE, 1) & ~0xffull) | (u64)bits << 2 * n;

			WRITE_DR(0, 0);
			WRITE_DR(1, 0);
			WRITE_DR(2, 0);
			WRITE_DR(3, 0);
			if (n == 0)
				WRITE_DR(0, watched);
			else if (n == 1)
				WRITE_DR(1, watched);
			else if (n == 2)
				WRITE_DR(2, watched);
			else
				WRITE_DR(3, watched);
			WRITE_DR(7, dr7);
			start_log();
			run(false, store_1, watched);
			CHECK_ROW(guest_name("DR%u, enable %u", n, bits), bits != 0, nr_seen);
			if (bits)
				CHECK_ROW(guest_name("DR%u", n), DR6_NONE | BIT(n), seen[0].dr6);
		}
	end_log();
}

/* An access that faults is not reported. */
static void to_next(struct trap_frame *f)
{
	f->rip += 2; /* MOV (RDI), AL */
}

TEST(a_faulting_access_does_not_match)
{
	u8 *nowhere = (u8 *)(3ull << 39);

	WRITE_DR(0, nowhere);
	WRITE_DR(7, dr7_bits(0, RW_DATA, 4));
	trap_set_handler(PF, to_next);
	start_log();
	run(false, load_1, nowhere);
	run(false, store_1, nowhere);
	trap_set_handler(PF, NULL);
	CHECK_EQ(0, nr_seen);
	end_log();
}

TEST(ring_3_hits_breakpoints_too)
{
	WRITE_DR(0, watched + 8);
	WRITE_DR(7, dr7_bits(0, RW_WRITE, 8));
	start_log();
	run(true, store_4, watched + 12);
	CHECK_EQ(1, nr_seen);
	end_log();
}

/* --- instruction breakpoints -------------------------------------------------------------------
 */
CODE("x_plain: nop\n"
     "x_plain_at: nop; ret\n"
     "x_loop: mov $3, %ecx\n"
     "x_loop_at: nop; loop x_loop_at; ret\n"
     "x_mov_ss: mov %ss, %eax; mov %eax, %ss\n"
     "x_mov_ss_at: nop; ret\n"
     "x_sti: cli; sti\n"
     "x_sti_at: cli; ret\n"
     "x_popf: pushfq; orl $0x10000, (%rsp); popfq\n"
     "x_popf_at: nop; ret\n"
     "x_rep: lea scratch, %rdi; mov $5, %ecx\n"
     "x_rep_at: rep stosb; ret\n"
     "x_middle: .byte 0x48, 0x8d\n"
     "x_middle_at: .byte 0x05, 0, 0, 0, 0\n" /* LEA RAX, [RIP] */
     "	ret\n"
     "x_prefix:\n"
     "x_prefix_at: .byte 0x66, 0x90; ret\n"
     "x_iret_rf: mov %rsp, %rax; mov %ss, %edx; push %rdx; push %rax; pushfq\n"
     "	orl $0x10000, (%rsp); mov %cs, %edx; push %rdx; push $x_iret_rf_at; iretq\n"
     "x_iret_rf_at: nop; ret\n"
     "x_iret: mov %rsp, %rax; mov %ss, %edx; push %rdx; push %rax; pushfq\n"
     "	mov %cs, %edx; push %rdx; push $x_iret_at; iretq\n"
     "x_iret_at: nop; ret\n"
     "x_iret_rf_used: mov %rsp, %rax; mov %ss, %edx; push %rdx; push %rax; pushfq\n"
     "	orl $0x10000, (%rsp); mov %cs, %edx; push %rdx; push $1f; iretq\n"
     "1:	nop\n" /* RF lasts for one instruction */
     "x_iret_rf_used_at: nop; ret\n"
     "x_ud: nop\n"
     "x_ud_at: ud2; ret\n");

#define EXEC_ROW(id, text, hits)                                                                   \
	{                                                                                          \
		text, id, id##_at, hits                                                            \
	}
#define AT(id) extern char id[], id##_at[];
AT(x_plain)
AT(x_loop)
AT(x_mov_ss)
AT(x_sti)
AT(x_popf)
AT(x_rep)
AT(x_middle)
AT(x_prefix)
AT(x_iret_rf)
AT(x_iret)
AT(x_iret_rf_used)
AT(x_ud)

static const struct {
	const char *name;
	char *code, *at;
	unsigned hits;
} exec_rows[] = {
	EXEC_ROW(x_plain, "once", 1),
	EXEC_ROW(x_loop, "in a loop", 3),
	EXEC_ROW(x_mov_ss, "after MOV SS: not reported", 0),
	EXEC_ROW(x_sti, "after STI", 1),
	EXEC_ROW(x_popf, "POPF cannot set RF", 1),
	EXEC_ROW(x_rep, "REP: once", 1),
	EXEC_ROW(x_middle, "inside an instruction", 0),
	EXEC_ROW(x_prefix, "at a prefix", 1),
	EXEC_ROW(x_iret_rf, "IRET with RF", 0),
	EXEC_ROW(x_iret, "IRET without RF", 1),
	EXEC_ROW(x_iret_rf_used, "RF is used up", 1),
	EXEC_ROW(x_ud, "before a fault of the instruction itself", 1),
};

TEST(instruction_breakpoints_are_faults_before_the_instruction)
{
	trap_set_handler(UD, skip_ud2);
	for (unsigned i = 0; i < ARRAY_SIZE(exec_rows); i++) {
		const char *name = exec_rows[i].name;

		WRITE_DR(1, exec_rows[i].at);
		WRITE_DR(7, dr7_bits(1, RW_EXEC, 1));
		start_log();
		CHECK_ROW(name, NONE, run(false, exec_rows[i].code, NULL));
		CHECK_ROW(name, exec_rows[i].hits, nr_seen);
		for (unsigned k = 0; k < nr_seen; k++) {
			CHECK_ROW(name, exec_rows[i].at, seen[k].rip);
			CHECK_ROW(name, DR6_NONE | B1, seen[k].dr6);
			CHECK_ROW(name, 0, seen[k].rflags & FL_RF);
		}
	}
	trap_set_handler(UD, NULL);
	end_log();
}

/* Step first, breakpoint then; RF from the breakpoint lets REP go on under single step. */
CODE("expect s_exec; step_on; nop\n"
     "s_exec_at: want s_exec_at; want s_exec_at, 2; nop; trap; step_off; done\n"
     "expect s_exec_rep; lea scratch, %rdi; mov $3, %ecx; step_on; nop\n"
     "s_exec_rep_at: want s_exec_rep_at; want s_exec_rep_at, 2\n"
     "	want s_exec_rep_at; want s_exec_rep_at; rep stosb; trap; step_off; done\n");
STEPPED(s_exec)
STEPPED(s_exec_rep)
extern char s_exec_at[], s_exec_rep_at[];

TEST(instruction_breakpoints_under_single_step)
{
	WRITE_DR(1, s_exec_at);
	WRITE_DR(7, dr7_bits(1, RW_EXEC, 1));
	start_log();
	run(false, s_exec, NULL);
	compare_log("NOP", want_s_exec);
	WRITE_DR(1, s_exec_rep_at);
	start_log();
	run(false, s_exec_rep, NULL);
	compare_log("REP", want_s_exec_rep);
	end_log();
}

/* --- I/O breakpoints ---------------------------------------------------------------------------
 */
CODE("io_out: mov %edi, %edx; xor %eax, %eax; out %al, %dx\n"
     "io_out_end: ret\n"
     "io_in: mov %edi, %edx; in %dx, %al\n"
     "io_in_end: ret\n");
extern char io_out[], io_out_end[], io_in[], io_in_end[];

TEST(io_breakpoints_need_de_and_trap_after)
{
	WRITE_CR(4, READ_CR(4) | CR4_DE);
	for (unsigned len = 1; len <= 4; len *= 2)
		for (unsigned port = 0x7e; port < 0x88; port++) {
			bool hit = port >= 0x80 && port < 0x80 + len;

			WRITE_DR(0, 0x80);
			WRITE_DR(7, dr7_bits(0, RW_IO, len));
			start_log();
			run(false, port & 1 ? io_in : io_out, (void *)(u64)port);
			CHECK_ROW(guest_name("port 0x%x, %u ports", port, len), hit, nr_seen);
			if (!hit || !nr_seen)
				continue;
			CHECK_EQ(port & 1 ? io_in_end : io_out_end, seen[0].rip);
			CHECK_EQ(DR6_NONE | B0, seen[0].dr6);
		}
	end_log();
	WRITE_CR(4, READ_CR(4) & ~CR4_DE);
}

/* --- the registers themselves ------------------------------------------------------------------
 */
static const struct {
	u64 write, read;
} dr6_rows[] =
	{
		{0, DR6_NONE},
		{0xffffffff, 0xffffefff},
		{0xe00f, DR6_NONE | 0xe00f},
		{0x1000, DR6_NONE},
},
  dr7_rows[] = {
	  {0, 0x400},     {0xffffdfff & ~0xffull, 0xffff0700}, {0x55, 0x455}, {0xd800, 0x400},
	  {0x300, 0x700},
};

TEST(fixed_bits_of_dr6_and_dr7)
{
	WRITE_DR(0, 0);
	WRITE_DR(1, 0);
	WRITE_DR(2, 0);
	WRITE_DR(3, 0);
	for (unsigned i = 0; i < ARRAY_SIZE(dr6_rows); i++) {
		WRITE_DR(6, dr6_rows[i].write);
		CHECK_ROW(guest_name("DR6 0x%lx", dr6_rows[i].write), dr6_rows[i].read, READ_DR(6));
	}
	for (unsigned i = 0; i < ARRAY_SIZE(dr7_rows); i++) {
		WRITE_DR(7, dr7_rows[i].write);
		CHECK_ROW(guest_name("DR7 0x%lx", dr7_rows[i].write), dr7_rows[i].read, READ_DR(7));
	}
	end_log();
}

CODE("set_dr0: mov %rdi, %dr0; mov %dr0, %rax; ret\n"
     "set_dr6: mov %rdi, %dr6; mov %dr6, %rax; ret\n"
     "set_dr7: mov %rdi, %dr7; mov %dr7, %rax; ret\n"
     "get_dr7: mov %dr7, %rax; ret\n"
     "set_dr4: .byte 0x0f, 0x23, 0xe7; .byte 0x0f, 0x21, 0xe0; ret\n" /* MOV DR4, RDI and back */
     "set_dr5: .byte 0x0f, 0x23, 0xef; .byte 0x0f, 0x21, 0xe8; ret\n"
     "set_dr8: .byte 0x44, 0x0f, 0x23, 0xc7; ret\n");
extern char set_dr0[], set_dr6[], set_dr7[], get_dr7[], set_dr4[], set_dr5[], set_dr8[];

static const struct {
	const char *name;
	char *code;
	u64 value;
	bool de, user;
	int vector;
} access_rows[] = {
	{"DR0 takes all 64 bits", set_dr0, 0xdead00000000beef, false, false, NONE},
	{"DR6 above 32 bits", set_dr6, 1ull << 32, false, false, GP},
	{"DR7 above 32 bits", set_dr7, 1ull << 63, false, false, GP},
	{"DR4 is DR6", set_dr4, 0, false, false, NONE},
	{"DR5 is DR7", set_dr5, 0, false, false, NONE},
	{"DR4 above 32 bits", set_dr4, 1ull << 32, false, false, GP},
	{"DR4 with DE", set_dr4, 0, true, false, UD},
	{"DR5 with DE", set_dr5, 0, true, false, UD},
	{"DR8", set_dr8, 0, false, false, UD},
	{"DR0 in ring 3", set_dr0, 0, false, true, GP},
	{"DR7 read in ring 3", get_dr7, 0, false, true, GP},
};

TEST(access_to_debug_registers_is_checked)
{
	for (unsigned i = 0; i < ARRAY_SIZE(access_rows); i++) {
		if (access_rows[i].de)
			WRITE_CR(4, READ_CR(4) | CR4_DE);
		CHECK_ROW(access_rows[i].name, access_rows[i].vector,
			  run(access_rows[i].user, access_rows[i].code,
			      (void *)access_rows[i].value));
		WRITE_CR(4, READ_CR(4) & ~CR4_DE);
	}
	WRITE_DR(0, 0xdead00000000beef);
	CHECK_EQ(0xdead00000000beef, READ_DR(0));
	WRITE_DR(0, 0);
	WRITE_DR(6, DR6_NONE);
	WRITE_DR(7, 0);
}

CODE("gd_read: xor %eax, %eax\n"
     "gd_read_at: mov %dr7, %rax; mov %rax, (%rdi); ret\n"
     "gd_write: xor %eax, %eax\n"
     "gd_write_at: mov %rax, %dr0; mov %dr7, %rax; mov %rax, (%rdi); ret\n");
AT(gd_read)
AT(gd_write)

/* The exception comes before the access, and clears GD so that its handler may look. */
TEST(general_detect_guards_the_registers_once)
{
	static char *const codes[][2] = {{gd_read, gd_read_at}, {gd_write, gd_write_at}};

	for (unsigned i = 0; i < 2; i++) {
		u64 dr7 = 0;

		start_log();
		WRITE_DR(7, 1 << 13);
		CHECK_EQ(NONE, run(false, codes[i][0], &dr7));
		CHECK_EQ(1, nr_seen);
		CHECK_EQ(codes[i][1], seen[0].rip);
		CHECK_EQ(DR6_NONE | BD, seen[0].dr6);
		CHECK_EQ(0x400, dr7);
	}
	end_log();
}

/* --- INT1 and INT3 -----------------------------------------------------------------------------
 */
CODE("i_int1: .byte 0xf1\n"
     "i_int1_at: ret\n"
     "i_int3: int3\n"
     "i_int3_at: ret\n"
     "i_cd03: .byte 0xcd, 3\n"
     "i_cd03_at: ret\n"
     "i_cd01: .byte 0xcd, 1\n"
     "i_cd01_at: ret\n");
AT(i_int1)
AT(i_int3)
AT(i_cd03)
AT(i_cd01)

/* Gates have DPL 3 for #BP and 0 for #DB here. */
static const struct {
	const char *name;
	char *code, *after;
	bool user;
	int vector;
	u32 error;
} int_rows[] = {
	{"INT1", i_int1, i_int1_at, false, DB, 0},
	{"INT1 in ring 3: no DPL check", i_int1, i_int1_at, true, DB, 0},
	{"INT3", i_int3, i_int3_at, false, BP, 0},
	{"INT3 in ring 3", i_int3, i_int3_at, true, BP, 0},
	{"INT 3", i_cd03, i_cd03_at, true, BP, 0},
	{"INT 1", i_cd01, i_cd01_at, false, DB, 0},
	{"INT 1 in ring 3", i_cd01, i_cd01_at - 2, true, GP, 1 * 8 + 2},
};

TEST(int1_and_int3)
{
	for (unsigned i = 0; i < ARRAY_SIZE(int_rows); i++) {
		const char *name = int_rows[i].name;

		WRITE_DR(6, DR6_NONE);
		CHECK_ROW(name, int_rows[i].vector, run(int_rows[i].user, int_rows[i].code, NULL));
		CHECK_ROW(name, int_rows[i].after, trap_last()->rip);
		CHECK_ROW(name, DR6_NONE, trap_last()->dr6);
		if (int_rows[i].vector == GP)
			CHECK_ROW(name, int_rows[i].error, trap_last()->error);
	}
}

/* Bits other than B0 to B3 are left for the handler to clear. */
TEST(dr6_is_sticky)
{
	WRITE_DR(6, DR6_NONE | BS);
	WRITE_DR(0, watched);
	WRITE_DR(7, dr7_bits(0, RW_WRITE, 1));
	CHECK_EQ(DB, run(false, store_1, watched));
	CHECK_EQ(DR6_NONE | BS | B0, trap_last()->dr6);
	WRITE_DR(7, 0);
	WRITE_DR(6, DR6_NONE);
}

/* RF in the frames: 1 for faults, 0 for traps. */
CODE("rf_ud: ud2; ret\n"
     "rf_int3: int3; ret\n"
     "rf_pf: mov 0(,%rdi), %al; ret\n");
extern char rf_ud[], rf_int3[], rf_pf[];

TEST(faults_push_rf)
{
	CHECK_EQ(UD, run(false, rf_ud, NULL));
	CHECK_EQ(FL_RF, trap_last()->rflags & FL_RF);
	CHECK_EQ(PF, run(false, rf_pf, (void *)(3ull << 39)));
	CHECK_EQ(FL_RF, trap_last()->rflags & FL_RF);
	CHECK_EQ(BP, run(false, rf_int3, NULL));
	CHECK_EQ(0, trap_last()->rflags & FL_RF);
}
