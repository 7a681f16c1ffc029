/* test_modes.c - real mode: addresses and limits, the interrupt table, flags, what does not exist
 * there; "unreal" mode; 16-bit protected mode.
 *
 * SDM 3B "8086 Emulation", AMD APM 2 "Real Mode".  A routine is copied to 0000:7000 and ends by a
 * far return or an exception; memory from 0x8000 to 0xFFFF is its own. */
#include "guest.h"

#define ROUTINE(name, code)                                                                        \
	CODE(".code16\n" #name ": " code "\n" #name "_end: .code32\n");                            \
	extern char name[], name##_end[]

static volatile u8 *low(u32 at)
{
	return (volatile u8 *)at;
}

static void put32(u32 at, u32 v)
{
	for (unsigned i = 0; i < 4; i++)
		low(at)[i] = v >> 8 * i;
}

static u32 get32(u32 at)
{
	u32 v = 0;

	for (unsigned i = 0; i < 4; i++)
		v |= (u32)low(at)[i] << 8 * i;
	return v;
}

/* --- the table ---------------------------------------------------------------------------------
 */
/* clang-format off */
#define ROUTINES(X)                                                                                \
	X(r_add, "add 16 bits", "add %cx, %ax; pushf; pop %dx; lret",                              \
	  0x1234ffff, 0x99990001, NONE, 0x12340000)                                                \
	X(r_add32, "add 32 bits", "add %ecx, %eax; lret", 0x7fffffff, 1, NONE, 0x80000000)         \
	X(r_mul, "MUL of 16 bits", "mul %cx; lret", 0x4321, 0x1000, NONE, 0x1000)                  \
	X(r_div0, "#DE", "div %cl; lret", 1, 0, DE, 1)                                             \
	X(r_byte_end, "byte at FFFF", "mov $0xffff, %bx; mov (%bx), %al; lret", 0, 0, NONE, 0x5a)  \
	X(r_word_end, "word at FFFF", "mov $0xffff, %bx; mov (%bx), %ax; lret", 7, 0, GP, 7)       \
	X(r_word_end_w, "word written at FFFF", "mov $0xffff, %bx; mov %ax, (%bx); lret", 7, 0,    \
	  GP, 7)                                                                                   \
	X(r_dword_end, "doubleword at FFFD", "mov $0xfffd, %bx; mov (%bx), %eax; lret", 7, 0, GP,  \
	  7)                                                                                       \
	X(r_dword_fits, "doubleword at FFFC", "mov $0xfffc, %bx; mov (%bx), %eax; lret", 7, 0,     \
	  NONE, 0x5a5a5a5a)                                                                        \
	X(r_ss_end, "word at SS:FFFF", "mov $0xffff, %bp; mov (%bp), %ax; lret", 7, 0, SS, 7)      \
	X(r_wrap, "BX+SI wraps at 64 KiB", "mov $0xffff, %bx; mov $0x8001, %si; mov (%bx,%si), %al;"\
	  " lret", 0, 0, NONE, 0x77)                                                               \
	X(r_disp_wrap, "BX+disp16 wraps", "mov $0xf000, %bx; mov 0x9000(%bx), %al; lret", 0, 0,    \
	  NONE, 0x77)                                                                              \
	X(r_addr32, "32-bit address beyond 64 KiB", "mov $0x10000, %ebx; addr32 mov (%ebx), %al;"  \
	  " lret", 7, 0, GP, 7)                                                                    \
	X(r_addr32_in, "32-bit address within", "mov $0x8000, %ebx; addr32 mov (%ebx), %al; lret", \
	  7, 0, NONE, 0x77)                                                                        \
	X(r_addr32_neg, "32-bit address, negative", "mov $-1, %ebx; addr32 mov (%ebx), %al; lret", \
	  7, 0, GP, 7)                                                                             \
	X(r_addr32_stack, "32-bit address by EBP", "mov $0x10000, %ebp; addr32 mov (%ebp), %al;"   \
	  " lret", 7, 0, SS, 7)                                                                    \
	X(r_high, "FFFF:0010 is 1 MiB", "mov $0xffff, %bx; mov %bx, %es; mov %es:0x10, %eax; lret",\
	  0, 0, NONE, 0xfeedface)                                                                  \
	X(r_segment, "segment times 16", "mov $0x07f8, %bx; mov %bx, %es; mov %es:0x80, %al; lret",\
	  0, 0, NONE, 0x77)                                                                        \
	X(r_int, "INT 21h", "int $0x21; lret", 3, 0, 0x21, 3)                                      \
	X(r_int3, "INT3", "int3; lret", 3, 0, BP, 3)                                               \
	X(r_int1, "INT1", ".byte 0xf1; lret", 3, 0, DB, 3)                                         \
	X(r_into, "INTO with OF", "add $1, %al; into; lret", 0x7f, 0, OF, 0x80)                    \
	X(r_into_not, "INTO without OF", "add $1, %al; into; lret", 5, 0, NONE, 6)                 \
	X(r_bound, "BOUND outside", "bound %ax, 0x8010; lret", 11, 0, BR, 11)                      \
	X(r_bound_in, "BOUND inside", "bound %ax, 0x8010; lret", 10, 0, NONE, 10)                  \
	X(r_ud2, "UD2", "ud2; lret", 3, 0, UD, 3)                                                  \
	X(r_mov_cs, "MOV CS", ".byte 0x8e, 0xc8; lret", 0, 0, UD, 0)                               \
	X(r_lock, "LOCK NOP", ".byte 0xf0, 0x90; lret", 0, 0, UD, 0)                               \
	X(r_sldt, "SLDT", "sldt %ax; lret", 3, 0, UD, 3)                                           \
	X(r_str, "STR", "str %ax; lret", 3, 0, UD, 3)                                              \
	X(r_lldt, "LLDT", "lldt %ax; lret", 0, 0, UD, 0)                                           \
	X(r_ltr, "LTR", "ltr %ax; lret", 0, 0, UD, 0)                                              \
	X(r_lar, "LAR", "lar %ax, %ax; lret", 8, 0, UD, 8)                                         \
	X(r_lsl, "LSL", "lsl %ax, %ax; lret", 8, 0, UD, 8)                                         \
	X(r_verr, "VERR", "verr %ax; lret", 8, 0, UD, 8)                                           \
	X(r_arpl, "ARPL", ".byte 0x63, 0xc0; lret", 3, 0, UD, 3)                                   \
	X(r_sysenter, "SYSENTER", "sysenter; lret", 0, 0, GP, 0)                                   \
	X(r_sysexit, "SYSEXIT", "sysexit; lret", 0, 0, GP, 0)                                      \
	X(r_smsw, "SMSW", "smsw %ax; and $1, %ax; lret", 3, 0, NONE, 0)                            \
	X(r_vex, "C5 is LDS", "lds 0x8020, %ax; mov %ds, %cx; shl $16, %ecx; or %ecx, %eax; lret", \
	  0, 0, NONE, 0x00001234)                                                                  \
	X(r_les_reg, "C4 with a register is VEX, not here", ".byte 0xc4, 0xe2, 0x78, 0xf2, 0xc0;"  \
	  " lret", 3, 0, UD, 3)                                                                    \
	X(r_popf, "POPF", "pushw $0xfeff; popf; pushf; pop %ax; pushw $2; popf; lret", 0, 0, NONE, \
	  0x7ed7)                                                                                  \
	X(r_pushfd, "PUSHFD shows no VM and RF", "pushl $0x30202; popfl; pushfl; pop %eax; cli;"   \
	  " lret", 0, 0, NONE, 0x202)                                                              \
	X(r_iret, "IRET", "pushw $0x7cd7; pushw %cs; pushw $0x7000 + 1f - r_iret;" \
	  " iret; ud2; 1: pushf; pop %ax; pushw $2; popf; lret", 0, 0, NONE, 0x7cd7)               \
	X(r_iretd, "IRETD", "pushl $0x220047; pushl $0; pushl $0x7000 + 1f - r_iretd; iretl; ud2;" \
	  " 1: pushfl; pop %eax; pushl $2; popfl; lret", 0, 0, NONE, 0x200047)                     \
	X(r_iretd_far, "IRETD to EIP beyond 64 KiB", "pushl $2; pushl $0; pushl $0x10000; iretl",  \
	  3, 0, GP, 3)                                                                             \
	X(r_jmp32, "JMP to EIP beyond 64 KiB", "mov $0x10000, %ecx; jmp *%ecx", 3, 0, GP, 3)       \
	X(r_jmp16, "JMP cuts to 16 bits", "mov $0xabcd0000 + 0x7000 + 1f - r_jmp16, %ecx;"         \
	  " jmp *%cx; ud2; 1: lret", 3, 0, NONE, 3)                                                \
	X(r_call_far, "far CALL", "lcall $0x0700, $1f - r_call_far; lret; 1: mov %cs, %ax; lret",  \
	  0, 0, NONE, 0x0700)                                                                      \
	X(r_call_far32, "far CALL of 32 bits", "lcalll $0x0700, $1f - r_call_far32; lret;"         \
	  " 1: mov %cs, %ax; lretl", 0, 0, NONE, 0x0700)                                           \
	X(r_end, "running off FFFF", "movw $0x9090, 0xfffe; mov $0xfffe, %bx; jmp *%bx", 3, 0, GP, \
	  3)                                                                                       \
	X(r_cross, "an instruction over FFFF", "movb $0xb8, 0xffff; mov $0xffff, %bx; jmp *%bx", 3,\
	  0, GP, 3)                                                                                \
	X(r_push_wrap, "PUSH at SP = 0", "mov %sp, %bx; xor %sp, %sp; push %ax; mov %sp, %cx;"     \
	  " mov %bx, %sp; movzx %cx, %eax; lret", 3, 0, NONE, 0xfffe)                              \
	X(r_pop_end, "POP at FFFF", "mov $0xffff, %sp; pop %ax", 3, 0, SS, 3)                      \
	X(r_pop_wrap, "POP at FFFE", "mov %sp, %bx; mov $0xfffe, %sp; pop %ax; mov %sp, %cx;"      \
	  " mov %bx, %sp; movzx %cx, %eax; lret", 3, 0, NONE, 0)                                   \
	X(r_esp_high, "PUSH uses SP only", "movzwl %sp, %esp; mov %esp, %ebx; or $0x12340000, %esp; push %ax;"       \
	  " mov %esp, %eax; mov %ebx, %esp; sub %ebx, %eax; lret", 0, 0, NONE, 0x1233fffe)         \
	X(r_movs, "MOVS wraps in 64 KiB", "mov $0xffff, %si; mov $0x9000, %di; mov $2, %cx; cld;"  \
	  " movb $0x11, 0; rep movsb; mov 0x9000, %ax; movb $0, 0; lret", 0, 0, NONE, 0x115a)      \
	X(r_loop, "LOOP counts CX", "mov $0x10003, %ecx; xor %ax, %ax; 1: inc %ax; loop 1b;"       \
	  " lret", 0, 0, NONE, 3)                                                                  \
	X(r_loop32, "LOOP with a 32-bit count", "mov $0x10003, %ecx; xor %eax, %eax; 1: inc %eax;" \
	  " addr32 loop 1b; lret", 0, 0, NONE, 0x10003)                                            \
	X(r_enter, "ENTER and LEAVE", "mov %sp, %bx; enter $4, $0; sub %sp, %bx; leave;"           \
	  " mov %bx, %ax; lret", 0, 0, NONE, 6)                                                    \
	X(r_pusha, "PUSHA", "mov %sp, %bx; pusha; sub %sp, %bx; mov %bx, %cx; add $16, %sp;"       \
	  " mov %cx, %ax; lret", 0, 0, NONE, 16)                                                   \
	X(r_xlat, "XLAT", "mov $0x8000, %bx; xlat; lret", 0x21, 0, NONE, 0x12)                     \
	X(r_cpuid, "CPUID", "xor %eax, %eax; cpuid; mov $1, %eax; lret", 0, 0, NONE, 1)            \
	X(r_cr0, "MOV from CR0", "mov %cr0, %eax; and $0x80000001, %eax; lret", 3, 0, NONE, 0)     \
	X(r_cr0_bad, "PG without PE", "mov %cr0, %ecx; or $0x80000000, %ecx; mov %ecx, %cr0; lret",\
	  3, 0, GP, 3)                                                                             \
	X(r_hlt_free, "HLT is allowed", "nop; lret", 3, 0, NONE, 3)
/* clang-format on */

#define DEFINE(name, text, code, ax, cx, vector, result) ROUTINE(name, code);
ROUTINES(DEFINE)

static const struct {
	const char *name;
	const char *code, *end;
	u32 eax, ecx;
	int vector;
	u32 result;
} rows[] = {
#define TABLE(name, text, code, ax, cx, vector, result)                                            \
	{text, name, name##_end, ax, cx, vector, result},
	ROUTINES(TABLE)};

static void prepare_memory(void)
{
	put32(0xfffc, 0x5a5a5a5a);
	put32(0x8000, 0x77);
	put32(0x8010, 10u << 16 | 2); /* BOUND 2..10 */
	put32(0x8020, 0x1234);        /* LDS 0000:1234 */
	low(0x8000 + 0x21)[0] = 0x12; /* of 0x1234, and XLAT's */
	put32(0x100000, 0xfeedface);
}

TEST(real_mode_routines)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		struct real_regs r = {.eax = rows[i].eax, .ecx = rows[i].ecx};
		int got;

		prepare_memory();
		got = real_run(rows[i].code, rows[i].end - rows[i].code, &r);
		CHECK_ROW(rows[i].name, rows[i].vector, got);
		CHECK_ROW(rows[i].name, rows[i].result, r.eax);
	}
}

/* --- the interrupt table -------------------------------------------------------------------------
 */
ROUTINE(i_frame, "pushw $0xad7; popf; int $0x60; lret");
ROUTINE(i_return, "movw $0x7000 + 1f - i_return, 0x60*4; movw $0, 0x60*4+2\n"
		  "	sti; int $0x60; pushf; cli; pop %ax; lret\n"
		  "1:	pushf; pop %cx; iret");
ROUTINE(i_limit, "lidtl %cs:0x7000 + 1f - i_limit; int $0x20; lret\n"
		 "1:	.word 0x20*4 + 2; .long 0");
ROUTINE(i_limit_fits, "lidtl %cs:0x7000 + 1f - i_limit_fits; int $0x20; lret\n"
		      "1:	.word 0x20*4 + 3; .long 0");
ROUTINE(i_base, "movl $0x7000 + 2f - i_base, 0x9000 + 4*5\n"
		"	lidtl %cs:0x7000 + 1f - i_base; int $5\n"
		"1:	.word 0x3ff; .long 0x9000\n"
		"2:	add $6, %sp; movw $0x55, %ax; lret");
#define RUN(name, r) real_run(name, name##_end - name, r)

TEST(interrupts_go_through_the_vector_table)
{
	struct real_regs r = {0};

	CHECK_EQ(0x60, RUN(i_frame, &r));
	CHECK_EQ(0x7000 + 6, r.ip & 0xffff);
	CHECK_EQ(0, r.cs & 0xffff);
	CHECK_EQ(0xad7, r.flags & 0xffff); /* as POPF left them */
	CHECK_EQ(NONE, RUN(i_return, &r));
	CHECK_EQ(0, r.ecx & (FL_IF | FL_TF)); /* in the handler */
	CHECK_EQ(FL_IF, r.eax & FL_IF);       /* IRET brought it back */
}

TEST(the_vector_table_has_a_base_and_a_limit)
{
	struct real_regs r = {0};

	CHECK_EQ(GP, RUN(i_limit, &r)); /* vector 20h sticks out */
	CHECK_EQ(0x7000 + (i_limit_end - i_limit) - 9, r.ip & 0xffff);
	CHECK_EQ(0x20, RUN(i_limit_fits, &r));
	CHECK_EQ(NONE, RUN(i_base, &r));
	CHECK_EQ(0x55, r.eax & 0xffff);
}

/* Faults point at the instruction, traps behind it. */
ROUTINE(f_de, "nop; xor %cx, %cx; div %cx; lret");
ROUTINE(f_int3, "nop; int3; lret");
ROUTINE(f_bound, "nop; mov $0x8010, %bx; mov $99, %ax; bound %ax, (%bx); lret");

TEST(saved_ip_of_faults_and_traps)
{
	struct real_regs r = {0};

	prepare_memory();
	CHECK_EQ(DE, RUN(f_de, &r));
	CHECK_EQ(0x7003, r.ip & 0xffff);
	CHECK_EQ(BP, RUN(f_int3, &r));
	CHECK_EQ(0x7002, r.ip & 0xffff);
	CHECK_EQ(BR, RUN(f_bound, &r));
	CHECK_EQ(0x7007, r.ip & 0xffff);
}

/* Single step works as anywhere. */
ROUTINE(t_step, "movw $0x7000 + 1f - t_step, 4; movw $0, 6; xor %ax, %ax; xor %cx, %cx\n"
		"	pushf; pushf; pop %bx; or $0x100, %bx; push %bx; popf\n"
		"	nop; inc %cx; nop\n"
		"	popf; lret\n"
		"1:	inc %ax; iret");

TEST(single_step_in_real_mode)
{
	struct real_regs r = {0};

	CHECK_EQ(NONE, RUN(t_step, &r));
	CHECK_EQ(4, r.eax & 0xffff); /* NOP, INC, NOP, POPF */
}

/* --- limits that stay from protected mode
 * ----------------------------------------------------------
 */
ROUTINE(u_big, "cli; lgdtl %cs:0x7000 + 3f - u_big; mov %cr0, %eax; or $1, %al; mov %eax, %cr0\n"
	       "	jmp 1f\n"
	       "1:	mov $0x10, %bx; mov %bx, %ds; and $0xfe, %al; mov %eax, %cr0; jmp 2f\n"
	       "2:	xor %bx, %bx; mov %bx, %ds; addr32 mov 0x100000, %eax; lret\n"
	       "3:	.word 0x3f; .long gdt");
ROUTINE(u_small, "addr32 mov 0x100000, %eax; lret");
ROUTINE(u_stack,
	"cli; lgdtl %cs:0x7000 + 3f - u_stack; mov %cr0, %eax; or $1, %al\n"
	"	mov %eax, %cr0; jmp 1f\n"
	"1:	mov $0x10, %bx; mov %bx, %ss; and $0xfe, %al; mov %eax, %cr0; jmp 2f\n"
	"2:	xor %bx, %bx; mov %bx, %ss; movzwl %sp, %esp; mov %esp, %ecx; pushw $1; sub %esp, "
	"%ecx\n"
	"	addl $2, %esp; mov %ecx, %eax; mov $0x100000, %ebp; addr32 mov (%ebp), %ecx\n"
	"	lret\n"
	"3:	.word 0x3f; .long gdt");

TEST(a_segment_limit_stays_after_protected_mode)
{
	struct real_regs r = {0};

	prepare_memory();
	CHECK_EQ(GP, RUN(u_small, &r));
	CHECK_EQ(NONE, RUN(u_big, &r));
	CHECK_EQ(0xfeedface, r.eax);
	CHECK_EQ(GP, RUN(u_small, &r)); /* the way here loads 64 KiB segments again */
	CHECK_EQ(NONE, RUN(u_stack, &r));
	CHECK_EQ(2, r.eax);
	CHECK_EQ(0xfeedface, r.ecx);
}

/* --- 16-bit protected mode
 * -------------------------------------------------------------------------
 */
enum { C16 = SEL_TEST, D16 = SEL_TEST + 8, S16 = SEL_TEST + 16 };

/* Called with lcall from 32-bit code; a 32-bit far return goes back. */
CODE(".code16\n"
     ".balign 16\n"
     "pm16: mov $0x48, %ax; mov %ax, %ds; mov $0x8000, %si; mov $0x1000, %bx\n"
     "	mov (%bx,%si), %dx\n" /* 9000 */
     "	lea (%bx,%si), %ecx\n"
     "	mov $0xffff, %bx; mov 2(%bx), %bl\n" /* wraps: 1 */
     "	lretl\n"
     "pm16_limit: mov $0x48, %ax; mov %ax, %ds; mov $0xffff, %bx\n"
     "pm16_limit_at: mov (%bx), %ax; lretl\n"
     "pm16_call: call 1f; lretl\n"
     "1:	mov %sp, %bp; mov (%bp), %ax; ret\n"
     "pm16_push: mov %esp, %ebx; pushw $1; pushl $2; mov %esp, %ecx; sub %ecx, %ebx\n"
     "	add $6, %sp; lretl\n"
     "pm16_end: .code32\n"
     "call_pm16: push %ebx; push %esi; push %ebp; mov 16(%esp), %eax\n"
     "	lcall *(%eax)\n"
     "	mov $0x10, %esi; mov %esi, %ds; mov 16(%esp), %esi\n"
     "	mov %eax, 8(%esi); mov %ebx, 12(%esi); mov %ecx, 16(%esi); mov %edx, 20(%esi)\n"
     "	pop %ebp; pop %esi; pop %ebx; ret\n");
extern char pm16[], pm16_limit[], pm16_limit_at[], pm16_call[], pm16_push[], pm16_end[];
void call_pm16(void *p);

struct pm16_call {
	u32 offset;
	u16 sel, pad;
	u32 eax, ebx, ecx, edx;
};

static struct pm16_call run_pm16(char *entry, int *vector)
{
	struct pm16_call c = {entry - pm16, C16, 0, 0, 0, 0, 0};

	gdt[C16 / 8] = seg_desc((u32)pm16, 0xffff, 0x1b, 0, true, 0);
	gdt[D16 / 8] = seg_desc(0x10000, 0xffff, 0x13, 0, true, 0);
	*vector = trap_run(call_pm16, &c);
	return c;
}

TEST(protected_mode_with_16_bit_segments)
{
	int vector;
	struct pm16_call c;

	*(volatile u16 *)0x19000 = 0xbeef;
	*low(0x10001) = 0x42;
	c = run_pm16(pm16, &vector);
	CHECK_EQ(NONE, vector);
	CHECK_EQ(0xbeef, c.edx & 0xffff);
	CHECK_EQ(0x9000, c.ecx);
	CHECK_EQ(0x42, c.ebx & 0xff);

	run_pm16(pm16_limit, &vector);
	CHECK_EQ(GP, vector);
	CHECK_EQ(0, trap_last()->error);
	CHECK_EQ(pm16_limit_at - pm16, trap_last()->eip);
	CHECK_EQ(C16, trap_last()->cs);

	/* a 16-bit near CALL pushes 16 bits; the stack is the 32-bit one here */
	c = run_pm16(pm16_call, &vector);
	CHECK_EQ(NONE, vector);
	c = run_pm16(pm16_push, &vector);
	CHECK_EQ(NONE, vector);
	CHECK_EQ(6, c.ebx);
}

/* A stack segment with a 16-bit size: SP wraps and the upper half of ESP stays. */
CODE("ss16: push %ebp; mov %esp, %ebp; mov %ss, %ecx; mov $0x50, %eax; mov %ax, %ss\n"
     "	mov $0xabcd0006, %esp; push $0x55667788; pushw $1; pushw $0x1122\n"
     "	mov %esp, %eax; mov %cx, %ss; mov %ebp, %esp; pop %ebp; ret\n");
u32 ss16(void);

static void go_ss16(void *p)
{
	*(u32 *)p = ss16();
}

TEST(a_16_bit_stack_wraps)
{
	u32 esp = 0;

	gdt[S16 / 8] = seg_desc(0x10000, 0xffff, 0x13, 0, true, 0);
	CHECK_EQ(NONE, trap_run(go_ss16, &esp));
	CHECK_EQ(0xabcdfffe, esp);
	CHECK_EQ(0x55667788, get32(0x10002));
	CHECK_EQ(0x1122, *(volatile u16 *)0x1fffe);
}
