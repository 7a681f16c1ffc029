/* test_shadow.c - at which instruction an interrupt is taken: STI and MOV SS shadows, POPF, IRET,
 * HLT, CR8; NMI blocking; CLI, STI and POPF below ring 0.
 *
 * SDM 3A "Masking Exceptions and Interrupts When Switching Stacks", "Handling Multiple NMIs", SDM 2
 * STI, CLI, POPF; AMD APM 2 "Masking External and Internal Exceptions".  The interrupt is pending
 * in the local APIC before the routine starts. */
#include "apic.h"

enum { VEC = 0x40 };

static struct {
	unsigned count;
	u64 rip, cs, rflags;
} taken;

static void on_interrupt(struct trap_frame *f)
{
	taken.count++;
	taken.rip = f->rip;
	taken.cs = f->cs;
	taken.rflags = f->rflags;
	apic_eoi();
}

static void skip_ud2(struct trap_frame *f)
{
	f->rip += 2;
}

/* --- where it is taken -------------------------------------------------------------------------
 */
CODE("sh_sti: sti; nop\n"
     "sh_sti_at: nop; cli; ret\n"
     "sh_sti_jump: sti; jmp sh_sti_jump_at; nop\n"
     "sh_sti_jump_at: nop; cli; ret\n"
     "sh_sti_sti: sti; sti\n"
     "sh_sti_sti_at: nop; cli; ret\n"
     "sh_sti_cli: sti; cli; nop; nop; ret\n"
     "sh_popf: pushfq; orl $0x200, (%rsp); popfq\n"
     "sh_popf_at: nop; cli; ret\n"
     "sh_iret: mov %rsp, %rax; pushq $0x10; push %rax; pushfq; orl $0x200, (%rsp); pushq $8\n"
     "	pushq $sh_iret_at; iretq\n"
     "sh_iret_at: nop; cli; ret\n"
     "sh_mov_ss: mov %ss, %eax; pushfq; orl $0x200, (%rsp); mov %eax, %ss; popfq\n"
     "sh_mov_ss_at: nop; cli; ret\n"
     "sh_sti_hlt: sti; hlt\n"
     "sh_sti_hlt_at: nop; cli; ret\n"
     "sh_sti_fault: sti; ud2\n"
     "sh_sti_fault_at: nop; cli; ret\n"
     "sh_sti_load: sti; mov (%rsp), %rax\n"
     "sh_sti_load_at: nop; cli; ret\n"
     "sh_sti_iret: mov %rsp, %rax; pushq $0x10; push %rax; pushfq; orl $0x200, (%rsp)\n"
     "	pushq $8; pushq $sh_sti_iret_at; sti; iretq\n"
     "sh_sti_iret_at: nop; cli; ret\n"
     "sh_cli: nop; cli; nop; ret\n"
     "sh_cr8: mov $15, %eax; mov %rax, %cr8; sti; nop; nop; xor %eax, %eax; mov %rax, %cr8\n"
     "sh_cr8_at: nop; cli; ret\n"
     "sh_cr8_same: mov $4, %eax; mov %rax, %cr8; sti; nop; nop; cli; xor %eax, %eax\n"
     "	mov %rax, %cr8; ret\n"
     "sh_cr8_below: mov $3, %eax; mov %rax, %cr8; sti; nop\n"
     "sh_cr8_below_at: nop; cli; xor %eax, %eax; mov %rax, %cr8; ret\n"
     "sh_sti_mov_ss: mov %ss, %eax; sti; mov %eax, %ss\n"
     "sh_sti_mov_ss_at: nop\n"
     "	nop; cli; ret\n");
#define AT(name) extern char name[], name##_at[];
AT(sh_sti)
AT(sh_sti_jump)
AT(sh_sti_sti)
AT(sh_popf)
AT(sh_iret)
AT(sh_mov_ss)
AT(sh_sti_hlt)
AT(sh_sti_fault)
AT(sh_sti_load)
AT(sh_sti_iret)
AT(sh_cr8)
AT(sh_cr8_below)
AT(sh_sti_mov_ss)
extern char sh_sti_cli[], sh_cli[], sh_cr8_same[];

#define ROW(text, name)                                                                            \
	{                                                                                          \
		text, name, name##_at                                                              \
	}
static const struct {
	const char *name;
	char *code, *at; /* at NULL: not taken */
} rows[] = {
	ROW("STI, NOP", sh_sti),
	ROW("STI, JMP", sh_sti_jump),
	ROW("STI, STI: the second has no shadow", sh_sti_sti),
	{"STI, CLI", sh_sti_cli, NULL},
	ROW("POPF has no shadow", sh_popf),
	ROW("IRET has no shadow", sh_iret),
	ROW("MOV SS, POPF", sh_mov_ss),
	ROW("STI, HLT", sh_sti_hlt),
	ROW("STI, a fault", sh_sti_fault),
	ROW("STI, a load", sh_sti_load),
	ROW("STI, IRET", sh_sti_iret),
	{"IF stays 0", sh_cli, NULL},
	ROW("CR8 lowered", sh_cr8),
	{"CR8 of the same class", sh_cr8_same, NULL},
	ROW("CR8 one class below", sh_cr8_below),
};

static void drain(void)
{
	asm volatile("sti; nop; nop; cli");
}

TEST(interrupts_are_taken_at_the_right_instruction)
{
	apic_on();
	trap_set_handler(VEC, on_interrupt);
	trap_set_handler(UD, skip_ud2);
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		taken.count = 0;
		apic_raise(VEC);
		CHECK_ROW(rows[i].name, NONE, trap_run((void (*)(void *))rows[i].code, NULL));
		CHECK_ROW(rows[i].name, rows[i].at != NULL, taken.count);
		if (rows[i].at)
			CHECK_ROW(rows[i].name, rows[i].at, taken.rip);
		drain();
		CHECK_ROW(rows[i].name, 1, taken.count); /* never lost, never twice */
	}
	trap_set_handler(UD, NULL);
}

/* SDM 2 MOV: of two shadows in a row only the first is certain. */
TEST(sti_followed_by_mov_ss)
{
	apic_on();
	taken.count = 0;
	apic_raise(VEC);
	trap_run((void (*)(void *))sh_sti_mov_ss, NULL);
	CHECK_EQ(1, taken.count);
	CHECK(taken.rip == (u64)sh_sti_mov_ss_at || taken.rip == (u64)sh_sti_mov_ss_at + 1);
}

TEST(a_frame_of_an_interrupt_has_if_set)
{
	apic_on();
	taken.count = 0;
	apic_raise(VEC);
	trap_run((void (*)(void *))sh_sti, NULL);
	CHECK_EQ(FL_IF, taken.rflags & (FL_IF | FL_RF | FL_TF));
	CHECK_EQ(SEL_CODE, taken.cs);
}

/* --- HLT ---------------------------------------------------------------------------------------
 */
CODE("halt_at_timer: sti; hlt\n"
     "halt_at_timer_at: cli; ret\n"
     "halt_masked: hlt\n" /* only an NMI can end it */
     "halt_masked_at: ret\n");
AT(halt_at_timer)
AT(halt_masked)

TEST(hlt_ends_with_an_interrupt)
{
	apic_on();
	apic_write(APIC_TIMER_DIVIDE, 0xb);
	apic_write(APIC_LVT_TIMER, VEC);
	for (unsigned i = 0; i < 3; i++) {
		taken.count = 0;
		apic_write(APIC_TIMER_INITIAL, 2000000);
		trap_run((void (*)(void *))halt_at_timer, NULL);
		CHECK_EQ(1, taken.count);
		CHECK_EQ(halt_at_timer_at, taken.rip);
	}
	apic_write(APIC_LVT_TIMER, LVT_MASKED);
}

static struct {
	volatile unsigned count, depth, max_depth;
	unsigned send;   /* how many more the handler sends to itself */
	bool breakpoint; /* and raises #BP, whose IRET ends the blocking */
	u64 rip;
} nmi;

static void on_nmi(struct trap_frame *f)
{
	nmi.count++;
	nmi.depth++;
	if (nmi.depth > nmi.max_depth)
		nmi.max_depth = nmi.depth;
	nmi.rip = f->rip;
	while (nmi.send) {
		nmi.send--;
		apic_write(APIC_ICR, ICR_SELF | ICR_NMI | ICR_ASSERT);
	}
	if (nmi.breakpoint) {
		nmi.breakpoint = false;
		asm volatile("int3");
		asm volatile("nop; nop; nop; nop");
	}
	nmi.depth--;
}

static void return_at_once(struct trap_frame *f)
{
}

static void start_nmi(unsigned send, bool breakpoint)
{
	apic_on();
	nmi.count = nmi.depth = nmi.max_depth = 0;
	nmi.send = send;
	nmi.breakpoint = breakpoint;
	trap_set_handler(NMI, on_nmi);
}

static void send_nmi(void)
{
	apic_write(APIC_ICR, ICR_SELF | ICR_NMI | ICR_ASSERT);
	WAIT_FOR(nmi.count);
	wait_ms(1);
}

TEST(hlt_with_if_clear_ends_with_an_nmi)
{
	u8 pin = isa_gsi(0);

	start_nmi(0, false);
	ioapic_route(pin, apic_read(APIC_ID) >> 24, ICR_NMI);
	pit_start(0, 20000);
	trap_run((void (*)(void *))halt_masked, NULL);
	ioapic_route(pin, 0, LVT_MASKED);
	pit_stop();
	CHECK_EQ(1, nmi.count);
	CHECK_EQ(halt_masked_at, nmi.rip);
}

/* --- NMI blocking ------------------------------------------------------------------------------
 */
static const struct {
	const char *name;
	unsigned send;
	bool breakpoint;
	unsigned count, depth;
} nmi_rows[] = {
	{"alone", 0, false, 1, 1},
	{"one during the handler waits for IRET", 1, false, 2, 1},
	{"of two during the handler one is kept", 2, false, 2, 1},
	{"IRET of another exception unblocks", 1, true, 2, 2},
};

TEST(nmis_are_blocked_until_iret)
{
	trap_set_handler(BP, return_at_once);
	for (unsigned i = 0; i < ARRAY_SIZE(nmi_rows); i++) {
		start_nmi(nmi_rows[i].send, nmi_rows[i].breakpoint);
		send_nmi();
		CHECK_ROW(nmi_rows[i].name, nmi_rows[i].count, nmi.count);
		CHECK_ROW(nmi_rows[i].name, nmi_rows[i].depth, nmi.max_depth);
	}
	trap_set_handler(BP, NULL);
}

/* --- CLI, STI, POPF and IOPL in ring 3 -----------------------------------------------------------
 */
CODE("u_cli: cli; pushfq; pop %rax; mov %rax, (%rdi); ret\n"
     "u_sti: sti; nop; pushfq; pop %rax; mov %rax, (%rdi); ret\n"
     "u_popf: pushq $0x3ed7; popfq; pushfq; pop %rax; mov %rax, (%rdi); pushq $2; popfq; ret\n"
     "u_popfw: pushw $0x3ed7; popfw; pushfq; pop %rax; mov %rax, (%rdi); pushq $2; popfq; ret\n"
     /* to ring 3 with the flags in RSI, where #UD ends it */
     "ring_3: mov %rsp, %rax; pushq $0x23; push %rax; push %rsi; pushq $0x2b; push %rdx; iretq\n"
     "pvi_cli: cli; ud2\n"
     "pvi_sti: sti; ud2\n"
     "pvi_popf: pushq $0x202; popfq; ud2\n");
extern char u_cli[], u_sti[], u_popf[], u_popfw[], pvi_cli[], pvi_sti[], pvi_popf[];

static void set_iopl(unsigned iopl)
{
	asm volatile("pushfq; andl $~0x3000, (%%rsp); orl %0, (%%rsp); popfq" : : "r"(iopl << 12));
}

static const struct {
	const char *name;
	char *code;
	u8 iopl;
	int vector;
	u64 mask, flags; /* what RFLAGS shows then */
} iopl_rows[] = {
	{"CLI, IOPL 0", u_cli, 0, GP, 0, 0},
	{"CLI, IOPL 2", u_cli, 2, GP, 0, 0},
	{"CLI, IOPL 3", u_cli, 3, NONE, FL_IF, 0},
	{"STI, IOPL 0", u_sti, 0, GP, 0, 0},
	{"STI, IOPL 3", u_sti, 3, NONE, FL_IF, FL_IF},
	{"POPF, IOPL 0: IF and IOPL stay", u_popf, 0, NONE, FL_IF | FL_IOPL | FL_CF | FL_DF,
	 FL_CF | FL_DF},
	{"POPF, IOPL 3: IF changes", u_popf, 3, NONE, FL_IF | FL_IOPL | FL_CF,
	 FL_IF | FL_IOPL | FL_CF},
	{"POPFW, IOPL 0", u_popfw, 0, NONE, FL_IF | FL_IOPL | FL_CF, FL_CF},
	{"POPFW, IOPL 3", u_popfw, 3, NONE, FL_IF | FL_IOPL | FL_CF, FL_IF | FL_IOPL | FL_CF},
};

TEST(iopl_guards_the_interrupt_flag)
{
	u64 flags;

	for (unsigned i = 0; i < ARRAY_SIZE(iopl_rows); i++) {
		int got;

		set_iopl(iopl_rows[i].iopl);
		got = trap_run_user((void (*)(void *))iopl_rows[i].code, &flags);
		asm volatile("cli");
		set_iopl(0);
		CHECK_ROW(iopl_rows[i].name, iopl_rows[i].vector, got);
		if (got == NONE)
			CHECK_ROW(iopl_rows[i].name, iopl_rows[i].flags, flags & iopl_rows[i].mask);
		else
			CHECK_ROW(iopl_rows[i].name, 0, trap_last()->error);
	}
}

/* Protected-mode virtual interrupts: VIF stands in for IF (SDM 3B "Protected-Mode Virtual
 * Interrupts"). */
static const struct {
	const char *name;
	char *code;
	u64 flags;
	int vector;
	u64 after; /* of IF, VIF and VIP; with #GP unchanged */
} pvi_rows[] = {
	{"CLI", pvi_cli, FL_VIF, UD, 0},
	{"CLI with VIP", pvi_cli, FL_VIF | FL_VIP, UD, FL_VIP},
	{"STI", pvi_sti, 0, UD, FL_VIF},
	{"STI with VIP", pvi_sti, FL_VIP, GP, FL_VIP},
	{"CLI leaves IF", pvi_cli, FL_IF | FL_VIF, UD, FL_IF},
	{"STI leaves IF", pvi_sti, 0, UD, FL_VIF},
	{"POPF leaves VIF", pvi_popf, FL_VIF, UD, FL_VIF},
	{"CLI, IOPL 3: IF itself", pvi_cli, FL_IF | FL_VIF | FL_IOPL, UD, FL_VIF},
};

struct ring3_arg {
	u64 flags;
	char *code;
};

static void go_ring_3(void *p)
{
	const struct ring3_arg *a = p;

	asm volatile("jmp ring_3" : : "S"(a->flags), "d"(a->code));
}

TEST(pvi_gives_ring_3_a_virtual_interrupt_flag)
{
	if (!cpu_has(1, 0, EDX, 1)) {
		guest_skip("no VME");
		return;
	}
	WRITE_CR(4, READ_CR(4) | CR4_PVI);
	for (unsigned i = 0; i < ARRAY_SIZE(pvi_rows); i++) {
		struct ring3_arg a = {pvi_rows[i].flags | 2, pvi_rows[i].code};

		CHECK_ROW(pvi_rows[i].name, pvi_rows[i].vector, trap_run(go_ring_3, &a));
		CHECK_ROW(pvi_rows[i].name, pvi_rows[i].after,
			  trap_last()->rflags & (FL_IF | FL_VIF | FL_VIP));
		asm volatile("cli");
	}
	WRITE_CR(4, READ_CR(4) & ~CR4_PVI);
	CHECK_EQ(GP, trap_run(go_ring_3, &(struct ring3_arg){2 | FL_VIF, pvi_cli}));
}
