/* test_v86.c - virtual-8086 mode: how it is entered and left, what IOPL guards there, and VME.
 *
 * SDM 3B "8086 Emulation", AMD APM 2 "Virtual-8086 Mode" and "Virtual Interrupts".  A routine is
 * copied to 0700:0000 and runs until it faults; UD2 is the way it says that all went well. */
#include "guest.h"

enum {
	N = SEL_TEST / 8,
	SEL = SEL_TEST,
	CODE_SEG = 0x700,
	STACK_SEG = 0x300,
	STACK_SP = 0x1000,
	DATA_SEG = 0x800,
	FLAT = 0xfffff,
};
#define VME_FLAGS (FL_VIF | FL_VIP)

#define ROUTINE(name, code)                                                                        \
	CODE(".code16\n" #name ": " code "\n" #name "_end: .code32\n");                            \
	extern char name[], name##_end[]

static struct v86_regs regs;

static int run(const char *code, const char *end, u32 eflags)
{
	for (u32 i = 0; code + i < end; i++)
		((volatile u8 *)(CODE_SEG * 16))[i] = code[i];
	regs = (struct v86_regs){
		.cs = CODE_SEG,
		.ss = STACK_SEG,
		.sp = STACK_SP,
		.ds = DATA_SEG,
		.es = 0x1111,
		.fs = 0x2222,
		.gs = 0x3333,
		.eflags = eflags,
		.eax = 0xa0a0,
		.ecx = 0xc0c0,
	};
	return v86_run(&regs);
}

static u16 word(u32 at)
{
	return *(volatile u16 *)at;
}

#define STACK(n) word(STACK_SEG * 16 + STACK_SP - 2 * (n))

/* --- in and out ----------------------------------------------------------------------------------
 */
ROUTINE(v_ud, "nop; ud2");

TEST(the_frame_of_a_fault_has_all_segments)
{
	const struct trap_frame *f = &trap_last()->frame;

	CHECK_EQ(UD, run(v_ud, v_ud_end, 2 | FL_CF | FL_IOPL | FL_IF));
	CHECK_EQ(CODE_SEG, f->cs & 0xffff);
	CHECK_EQ(1, f->eip);
	CHECK_EQ(STACK_SEG, f->ss & 0xffff);
	CHECK_EQ(STACK_SP, f->esp);
	CHECK_EQ(DATA_SEG, f->ds & 0xffff);
	CHECK_EQ(0x1111, f->es & 0xffff);
	CHECK_EQ(0x2222, f->fs & 0xffff);
	CHECK_EQ(0x3333, f->gs & 0xffff);
	CHECK_EQ(2 | FL_CF | FL_IOPL | FL_IF | FL_VM | FL_RF, f->eflags);
	CHECK_EQ(0xa0a0, f->eax);
}

CODE("note_segments: push %eax; push %ebx; mov %ds, %eax; mov %es, %ebx; shl $16, %ebx\n"
     "	or %ebx, %eax; mov $0x10, %ebx; mov %bx, %ds; mov %eax, seen_data\n"
     "	mov %fs, %eax; mov %gs, %ebx; shl $16, %ebx; or %ebx, %eax; mov %eax, seen_data+4\n"
     "	pushf; pop seen_data+8; pop %ebx; pop %eax\n"
     "	push $0; push $6; jmp trap_common\n");
u32 seen_data[3];
extern char note_segments[];
ROUTINE(v_int3, "int3; ud2");

TEST(the_handler_starts_with_null_data_segments)
{
	seen_data[0] = seen_data[1] = 0xdead;
	idt_set(UD, (u32)note_segments, SEL_CODE, 15, 0); /* a trap gate */
	run(v_ud, v_ud_end, 2 | FL_IF);
	asm volatile("cli");
	CHECK_EQ(0, seen_data[0]);
	CHECK_EQ(0, seen_data[1]);
	CHECK_EQ(FL_IF, seen_data[2] & (FL_VM | FL_TF | FL_NT | FL_IF));
	idt_reset();
}

TEST(an_iret_beyond_64_kib_is_refused)
{
	static struct {
		u32 eip, cs, eflags, esp, ss, es, ds, fs, gs;
	} f = {0x10000, CODE_SEG, FL_VM | 2, STACK_SP, STACK_SEG, 0, 0, 0, 0};
	void go(void *p);

	CHECK_EQ(GP, trap_run(go, &f));
	CHECK_EQ(0, trap_last()->error);
	CHECK_EQ(SEL_CODE, trap_last()->cs); /* IRET's own fault */
	f.eip = 0xffff;
	CHECK_EQ(GP, trap_run(go, &f)); /* ADD [BX+SI], AL has its second byte outside */
	CHECK_EQ(CODE_SEG, trap_last()->cs);
}

void go(void *p)
{
	asm volatile("mov %0, %%esp; iret" : : "r"(p) : "memory");
}

/* Handlers have to be ring 0 code. */
static const struct {
	const char *name;
	u64 desc;
	int vector;
	u32 error;
} handler_rows[] = {
	{"ring 0", 0x00cf9b000000ffff, BP, 0},
	{"conforming", 0x00cf9f000000ffff, GP, SEL},
	{"ring 1", 0x00cfbb000000ffff, GP, SEL},
	{"ring 3", 0x00cffb000000ffff, GP, SEL},
};

TEST(only_ring_0_can_handle_what_virtual_8086_code_raises)
{
	for (unsigned i = 0; i < ARRAY_SIZE(handler_rows); i++) {
		gdt[N] = handler_rows[i].desc;
		idt_set(BP, (u32)trap_stubs + 16 * BP, SEL, 14, 3);
		CHECK_ROW(handler_rows[i].name, handler_rows[i].vector, run(v_int3, v_int3_end, 2));
		CHECK_ROW(handler_rows[i].name, handler_rows[i].error, trap_last()->error);
	}
	idt_reset();
}

/* --- what it may do ------------------------------------------------------------------------------
 */
ROUTINE(v_cli, "cli; ud2");
ROUTINE(v_sti, "sti; ud2");
ROUTINE(v_pushf, "pushf; ud2");
ROUTINE(v_pushfd, "pushfl; ud2");
ROUTINE(v_popf, "pushw $0x0ad7; popf; ud2");
ROUTINE(v_popfd, "pushl $0x00240ad7; popfl; ud2");
ROUTINE(v_int, "int $0x30; ud2");
ROUTINE(v_iret, "pushw $0x0ad7; pushw $0x0700; pushw $1f - v_iret; iret; hlt; 1: ud2");
ROUTINE(v_hlt, "hlt; ud2");
ROUTINE(v_into, "mov $0x7f, %al; add $1, %al; into; ud2");
ROUTINE(v_in, "in $0x80, %al; ud2");
ROUTINE(v_in_81, "in $0x81, %al; ud2");
ROUTINE(v_cr0, "mov %cr0, %eax; ud2");
ROUTINE(v_smsw, "smsw %ax; ud2; ud2");
ROUTINE(v_lgdt, "lgdtl 0; ud2");
ROUTINE(v_rdmsr, "rdmsr; ud2");
ROUTINE(v_clts, "clts; ud2");
ROUTINE(v_str, "str %ax");
ROUTINE(v_verr, "verr %ax");
ROUTINE(v_lar, "lar %ax, %ax");
ROUTINE(v_arpl, ".byte 0x63, 0xc0");
ROUTINE(v_word_end, "mov $0xffff, %bx; mov (%bx), %ax; ud2");
ROUTINE(v_stack_end, "mov $0xffff, %bp; mov (%bp), %ax; ud2");
ROUTINE(v_addr32, "mov $0x10000, %ebx; addr32 mov (%ebx), %al; ud2");
ROUTINE(v_segment, "mov $0xffff, %ax; mov %ax, %ds; mov 0x10, %eax; ud2");
ROUTINE(v_far, "ljmp $0x0701, $1f - v_far - 16; .skip 20; 1: mov %cs, %ax; ud2");
ROUTINE(v_mov_ss, "mov $0x1234, %ax; mov %ax, %ss; mov %ss, %cx; ud2");

static const struct row {
	const char *name;
	const char *code, *end;
	u8 iopl;
	int vector;
	u32 error;
} rows[] = {
#define ROW(id, text, iopl, vector, error)                                                         \
	{                                                                                          \
		text, id, id##_end, iopl, vector, error                                            \
	}
	ROW(v_cli, "CLI, IOPL 0", 0, GP, 0),
	ROW(v_sti, "STI, IOPL 2", 2, GP, 0),
	ROW(v_pushf, "PUSHF, IOPL 0", 0, GP, 0),
	ROW(v_pushfd, "PUSHFD, IOPL 0", 0, GP, 0),
	ROW(v_popf, "POPF, IOPL 0", 0, GP, 0),
	ROW(v_popfd, "POPFD, IOPL 0", 0, GP, 0),
	ROW(v_int, "INT, IOPL 0", 0, GP, 0),
	ROW(v_iret, "IRET, IOPL 0", 0, GP, 0),
	ROW(v_cli, "CLI, IOPL 3", 3, UD, 0),
	ROW(v_sti, "STI, IOPL 3", 3, UD, 0),
	ROW(v_pushf, "PUSHF, IOPL 3", 3, UD, 0),
	ROW(v_pushfd, "PUSHFD, IOPL 3", 3, UD, 0),
	ROW(v_popf, "POPF, IOPL 3", 3, UD, 0),
	ROW(v_popfd, "POPFD, IOPL 3", 3, UD, 0),
	ROW(v_int, "INT, IOPL 3, gate of DPL 0", 3, GP, 0x30 * 8 + 2),
	ROW(v_iret, "IRET, IOPL 3", 3, UD, 0),
	ROW(v_hlt, "HLT", 3, GP, 0),
	ROW(v_int3, "INT3 does not look at IOPL", 0, BP, 0),
	ROW(v_into, "INTO does not either", 0, OF, 0),
	ROW(v_in, "IN, allowed by the bitmap", 0, UD, 0),
	ROW(v_in_81, "IN, not allowed", 0, GP, 0),
	ROW(v_in_81, "IN, not allowed, IOPL 3", 3, GP, 0),
	ROW(v_cr0, "MOV from CR0", 3, GP, 0),
	ROW(v_smsw, "SMSW", 0, UD, 0),
	ROW(v_lgdt, "LGDT", 3, GP, 0),
	ROW(v_rdmsr, "RDMSR", 3, GP, 0),
	ROW(v_clts, "CLTS", 3, GP, 0),
	ROW(v_str, "STR", 3, UD, 0),
	ROW(v_verr, "VERR", 3, UD, 0),
	ROW(v_lar, "LAR", 3, UD, 0),
	ROW(v_arpl, "ARPL", 3, UD, 0),
	ROW(v_word_end, "word at FFFF", 0, GP, 0),
	ROW(v_stack_end, "word at SS:FFFF", 0, SS, 0),
	ROW(v_addr32, "beyond 64 KiB", 0, GP, 0),
	ROW(v_segment, "segments are bases times 16", 0, UD, 0),
	ROW(v_far, "far JMP", 0, UD, 0),
	ROW(v_mov_ss, "MOV SS takes anything", 0, UD, 0),
};

static void allow_port_80(void)
{
	for (unsigned i = 0; i < sizeof(guest_tss.io_bitmap); i++)
		guest_tss.io_bitmap[i] = 0xff;
	guest_tss.io_bitmap[0x10] = 0xfe;
	guest_tss.iomap = offsetof(struct tss32, io_bitmap);
}

TEST(instructions_in_virtual_8086_mode)
{
	allow_port_80();
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		CHECK_ROW(rows[i].name, rows[i].vector,
			  run(rows[i].code, rows[i].end, 2 | (u32)rows[i].iopl << 12));
		asm volatile("cli");
		CHECK_ROW(rows[i].name, FL_VM, trap_last()->eflags & FL_VM);
		if (rows[i].vector != UD)
			CHECK_ROW(rows[i].name, rows[i].error, trap_last()->error);
	}
	CHECK_EQ(UD, run(v_mov_ss, v_mov_ss_end, 2));
	CHECK_EQ(0x1234, trap_last()->frame.ecx & 0xffff);
	CHECK_EQ(UD, run(v_far, v_far_end, 2));
	CHECK_EQ(0x701, trap_last()->frame.eax & 0xffff);
	*(volatile u32 *)0x100000 = 0xfeedface;
	CHECK_EQ(UD, run(v_segment, v_segment_end, 2));
	CHECK_EQ(0xfeedface, trap_last()->frame.eax);
}

/* With IOPL 3 the flags are real ones; IOPL and VM stay. */
static const struct {
	const char *name;
	const char *code, *end;
	u32 before, after; /* EFLAGS, without RF and VM */
} flag_rows[] = {
#define FLAGS(id, before, after)                                                                   \
	{                                                                                          \
#id, id, id##_end, before, after                                                   \
	}
	FLAGS(v_cli, 2 | FL_IOPL | FL_IF, 2 | FL_IOPL),
	FLAGS(v_sti, 2 | FL_IOPL, 2 | FL_IOPL | FL_IF),
	FLAGS(v_popf, 2 | FL_IOPL, 0xad7 | FL_IOPL),
	FLAGS(v_popf, 2 | FL_IOPL | FL_AC, 0xad7 | FL_IOPL | FL_AC),
	FLAGS(v_popfd, 2 | FL_IOPL, 0xad7 | FL_IOPL | FL_AC | BIT(21)),
	FLAGS(v_iret, 2 | FL_IOPL, 0xad7 | FL_IOPL),
};

TEST(flags_with_iopl_3)
{
	for (unsigned i = 0; i < ARRAY_SIZE(flag_rows); i++) {
		CHECK_ROW(flag_rows[i].name, UD,
			  run(flag_rows[i].code, flag_rows[i].end, flag_rows[i].before));
		asm volatile("cli");
		CHECK_ROW(flag_rows[i].name, flag_rows[i].after,
			  trap_last()->eflags & ~(u32)(FL_VM | FL_RF));
	}
	CHECK_EQ(UD, run(v_pushf, v_pushf_end, 2 | FL_IOPL | FL_CF));
	CHECK_EQ(2 | FL_IOPL | FL_CF, STACK(1));
	CHECK_EQ(UD, run(v_pushfd, v_pushfd_end, 2 | FL_IOPL | FL_CF));
	CHECK_EQ(0, STACK(1)); /* no VM, no RF */
	CHECK_EQ(2 | FL_IOPL | FL_CF, STACK(2));
}

TEST(int_n_with_iopl_3_goes_through_the_idt)
{
	idt_set(0x30, (u32)trap_stubs + 16 * 0x30, SEL_CODE, 14, 3);
	CHECK_EQ(0x30, run(v_int, v_int_end, 2 | FL_IOPL));
	CHECK_EQ(2, trap_last()->eip);
	CHECK_EQ(CODE_SEG, trap_last()->cs);
	idt_reset();
}

/* --- VME ---------------------------------------------------------------------------------------
 */
static const struct vme_row {
	const char *name;
	const char *code, *end;
	u8 iopl;
	u32 before; /* VIF, VIP, IF */
	int vector;
	u32 after; /* likewise */
} vme_rows[] = {
#define VME(id, text, iopl, before, vector, after)                                                 \
	{                                                                                          \
		text, id, id##_end, iopl, before, vector, after                                    \
	}
	VME(v_cli, "CLI clears VIF", 0, FL_VIF | FL_IF, UD, FL_IF),
	VME(v_cli, "CLI with VIP", 0, FL_VIF | FL_VIP, UD, FL_VIP),
	VME(v_sti, "STI sets VIF", 0, 0, UD, FL_VIF),
	VME(v_sti, "STI with VIP", 0, FL_VIP, GP, FL_VIP),
	VME(v_cli, "CLI with IOPL 3: IF", 3, FL_VIF | FL_IF, UD, FL_VIF),
	VME(v_popf, "POPF sets VIF", 0, 0, UD, FL_VIF),
	VME(v_popf, "POPF of IF with VIP", 0, FL_VIP, GP, FL_VIP),
	VME(v_popf, "POPF with IOPL 3: IF", 3, 0, UD, FL_IF),
	VME(v_popfd, "POPFD", 0, 0, GP, 0),
	VME(v_pushfd, "PUSHFD", 0, 0, GP, 0),
	VME(v_iret, "IRET sets VIF", 0, 0, UD, FL_VIF),
	VME(v_iret, "IRET of IF with VIP", 0, FL_VIP, GP, FL_VIP),
	VME(v_iret, "IRET with IOPL 3: IF", 3, 0, UD, FL_IF),
};
ROUTINE(v_popf_tf, "pushw $0x0102; popf; ud2");
ROUTINE(v_iret_tf, "pushw $0x0102; pushw $0x0700; pushw $1f - v_iret_tf; iret; hlt; 1: ud2");
ROUTINE(v_iretd, "pushl $0x202; pushl $0x0700; pushl $1f - v_iretd; iretl; hlt; 1: ud2");

static bool vme_on(void)
{
	if (!cpu_has(1, 0, EDX, 1)) {
		guest_skip("no VME");
		return false;
	}
	WRITE_CR(4, READ_CR(4) | CR4_VME);
	return true;
}

static void vme_off(void)
{
	WRITE_CR(4, READ_CR(4) & ~CR4_VME);
}

TEST(vme_gives_virtual_8086_code_a_virtual_interrupt_flag)
{
	if (!vme_on())
		return;
	for (unsigned i = 0; i < ARRAY_SIZE(vme_rows); i++) {
		const struct vme_row *r = &vme_rows[i];

		CHECK_ROW(r->name, r->vector,
			  run(r->code, r->end, 2 | r->before | (u32)r->iopl << 12));
		asm volatile("cli");
		CHECK_ROW(r->name, r->after, trap_last()->eflags & (VME_FLAGS | FL_IF));
		CHECK_ROW(r->name, (u32)r->iopl << 12, trap_last()->eflags & FL_IOPL);
		if (r->vector == GP)
			CHECK_ROW(r->name, 0, trap_last()->error);
	}
	CHECK_EQ(GP, run(v_popf_tf, v_popf_tf_end, 2));
	CHECK_EQ(GP, run(v_iret_tf, v_iret_tf_end, 2));
	CHECK_EQ(GP, run(v_iretd, v_iretd_end, 2)); /* 16 bits only */
	vme_off();
}

TEST(vme_shows_vif_as_if_and_iopl_3)
{
	if (!vme_on())
		return;
	CHECK_EQ(UD, run(v_pushf, v_pushf_end, 2 | FL_VIF | FL_CF));
	CHECK_EQ(2 | FL_CF | FL_IF | FL_IOPL, STACK(1));
	CHECK_EQ(UD, run(v_pushf, v_pushf_end, 2 | FL_IF | FL_CF));
	asm volatile("cli");
	CHECK_EQ(2 | FL_CF | FL_IOPL, STACK(1));
	vme_off();
}

/* The interrupt redirection bitmap: 0 means the program's own handler in the table at 0. */
static const struct redirect_row {
	const char *name;
	u8 iopl;
	bool bit;
	u32 before;
	int vector;
	u32 error, image; /* pushed flags, when redirected */
	u32 after;
} redirect_rows[] = {
	{"redirected, IOPL 3", 3, false, FL_IF, UD, 0, 2 | FL_IF | FL_IOPL, 0},
	{"redirected, IOPL 3, IF 0", 3, false, 0, UD, 0, 2 | FL_IOPL, 0},
	{"redirected, IOPL 0, VIF", 0, false, FL_VIF, UD, 0, 2 | FL_IF | FL_IOPL, 0},
	{"redirected, IOPL 0, no VIF", 0, false, FL_IF, UD, 0, 2 | FL_IOPL, FL_IF},
	{"not redirected, IOPL 0", 0, true, 0, GP, 0, 0, 0},
	{"not redirected, IOPL 3", 3, true, 0, 0x30, 0, 0, 0},
};

static void set_redirection(u8 vector, bool bit)
{
	u8 *byte = &guest_tss.redirection[vector / 8];

	guest_tss.iomap = offsetof(struct tss32, io_bitmap);
	*byte = bit ? *byte | 1 << vector % 8 : *byte & ~(1 << vector % 8);
}

TEST(vme_redirects_int_n)
{
	if (!vme_on())
		return;
	/* the handler at 0900:0004 is UD2 */
	*(volatile u32 *)(0x30 * 4) = 0x0900 << 16 | 4;
	*(volatile u16 *)(0x9004) = 0x0b0f;
	idt_set(0x30, (u32)trap_stubs + 16 * 0x30, SEL_CODE, 14, 3);
	for (unsigned i = 0; i < ARRAY_SIZE(redirect_rows); i++) {
		const struct redirect_row *r = &redirect_rows[i];

		set_redirection(0x30, r->bit);
		CHECK_ROW(r->name, r->vector,
			  run(v_int, v_int_end, 2 | r->before | (u32)r->iopl << 12));
		asm volatile("cli");
		if (r->vector == GP)
			CHECK_ROW(r->name, r->error, trap_last()->error);
		if (r->vector != UD)
			continue;
		CHECK_ROW(r->name, 0x900, trap_last()->cs);
		CHECK_ROW(r->name, 4, trap_last()->eip);
		CHECK_ROW(r->name, STACK_SP - 6, trap_last()->frame.esp);
		CHECK_ROW(r->name, r->image, STACK(1));
		CHECK_ROW(r->name, CODE_SEG, STACK(2));
		CHECK_ROW(r->name, 2, STACK(3));
		CHECK_ROW(r->name, r->after, trap_last()->eflags & (FL_IF | VME_FLAGS));
	}
	idt_reset();
	vme_off();
}

/* Ring 3 in protected mode is not asked: CR4.VME is for virtual-8086 mode. */
CODE("user_cli: cli; ret\n");
extern char user_cli[];

TEST(vme_does_not_help_ring_3)
{
	if (!vme_on())
		return;
	CHECK_EQ(GP, trap_run_user((void (*)(void *))user_cli, NULL));
	vme_off();
}
