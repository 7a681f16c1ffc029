/* test_task.c - hardware task switches in 32-bit protected mode.
 *
 * SDM 3A "Task Management", AMD APM 2 "Task Management".  The main task (TR = SEL_TSS) switches to
 * a task under test by JMP, CALL, IRET, a task gate or an interrupt; that one notes its state and
 * switches back, or the switch faults. */
#include "guest.h"

enum {
	N_TSS = SEL_TEST / 8, /* TSS of the other task */
	N_GATE,               /* task gate to it */
	N_LDT,
	N_A, /* descriptors that rows spoil */
	N_B,
	SEL_OTHER = N_TSS * 8,
	SEL_GATE = N_GATE * 8,
	SEL_LDT = N_LDT * 8,
	SEL_A = N_A * 8,
	SEL_B = N_B * 8,
	BEYOND = 0x140, /* first selector outside the GDT */
	VEC = 0x30,
	TYPE_TSS16 = 1,
	TYPE_TSS = 9,
	TYPE_BUSY = 2,
	TYPE_CODE = 0x1b,
	TYPE_DATA = 0x13,
	FLAT = 0xfffff,
};

static struct tss32 other;
static struct tss16 other16;
static u8 other_stack[4096] __attribute__((aligned(16))),
	other_stack0[4096] __attribute__((aligned(16)));
static u64 ldt[4];

/* What the other task sees. */
struct {
	u32 eax, ecx, edx, ebx, esp, ebp, esi, edi, eflags, cr0, cr3, tr, ldtr, cs, ds, es, ss, fs,
		gs;
} seen;

CODE("note: mov %eax, seen\n"
     "	mov %ds, %eax; push %eax; mov $0x10, %eax; mov %ax, %ds; pop seen+56\n"
     "	mov %ecx, seen+4; mov %edx, seen+8; mov %ebx, seen+12; mov %esp, seen+16\n"
     "	mov %ebp, seen+20; mov %esi, seen+24; mov %edi, seen+28\n"
     "	pushf; pop seen+32; mov %cr0, %eax; mov %eax, seen+36\n"
     "	mov %cr3, %eax; mov %eax, seen+40\n"
     "	str %eax; mov %eax, seen+44; sldt %eax; mov %eax, seen+48\n"
     "	mov %cs, %eax; mov %eax, seen+52; mov %es, %eax; mov %eax, seen+60\n"
     "	mov %ss, %eax; mov %eax, seen+64; mov %fs, %eax; mov %eax, seen+68\n"
     "	mov %gs, %eax; mov %eax, seen+72\n"
     "	ret\n"
     "task_iret: call note; iret; nop; jmp task_iret\n"
     "task_jmp: call note; ljmp $0x38, $0; jmp task_jmp\n"
     "task_call: call note; lcall $0x38, $0; jmp task_call\n"
     "task_error: pop error_code; call note; iret; jmp task_error\n"
     "task_ud: ud2\n"
     "do_jmp: mov 4(%esp), %eax; push %eax; push $0; ljmp *(%esp)\n"
     "do_jmp_back: add $8, %esp; ret\n"
     "do_call: mov 4(%esp), %eax; push %eax; push $0; lcall *(%esp)\n"
     "do_call_back: add $8, %esp; ret\n"
     "do_int: int $0x30\n"
     "do_int_back: ret\n"
     "do_iret_nt: pushf; orl $0x4000, (%esp); popf; iret\n"
     "do_iret_nt_back: pushf; andl $~0x4000, (%esp); popf; ret\n"
     "do_ud: ud2; ret\n");
u32 error_code;
extern char task_iret[], task_jmp[], task_call[], task_error[], task_ud[], do_jmp_back[],
	do_call_back[], do_int_back[], do_iret_nt_back[];
void do_jmp(void *sel);
void do_call(void *sel);
void do_int(void *arg);
void do_iret_nt(void *arg);
void do_ud(void *arg);

static u8 type_of(unsigned n)
{
	return gdt[n] >> 40 & 31;
}

static void set_idt_task(unsigned vector, u16 sel, u8 dpl)
{
	*(u64 *)idt_entry(vector) = (u64)sel << 16 | (u64)(0x85 | dpl << 5) << 40;
}

/* A task that starts at `entry`, everything as it should be. */
static void make_other(void *entry)
{
	other = (struct tss32){
		.esp0 = (u32)other_stack0 + sizeof(other_stack0),
		.ss0 = SEL_DATA,
		.eip = (u32)entry,
		.eflags = 2,
		.eax = 0xa0,
		.ecx = 0xc0,
		.edx = 0xd0,
		.ebx = 0xb0,
		.esp = (u32)other_stack + sizeof(other_stack),
		.ebp = 0xb1,
		.esi = 0x51,
		.edi = 0xd1,
		.es = SEL_DATA,
		.cs = SEL_CODE,
		.ss = SEL_DATA,
		.ds = SEL_DATA,
		.iomap = sizeof(other),
	};
	gdt[N_TSS] = seg_desc((u32)&other, sizeof(other) - 1, TYPE_TSS, 0, true, 0);
	gdt[N_GATE] = (u64)SEL_OTHER << 16 | (u64)0x85 << 40;
	gdt[N_LDT] = seg_desc((u32)ldt, sizeof(ldt) - 1, 2, 0, true, 0);
	ldt[1] = seg_desc(0, FLAT, TYPE_DATA, 0, true, SEG_G | SEG_DB);
	for (unsigned i = 0; i < sizeof(seen) / 4; i++)
		((u32 *)&seen)[i] = 0xdead;
	tss_reset();
}

static void clear_ts(void)
{
	asm volatile("clts");
}

/* --- the ways to switch --------------------------------------------------------------------------
 */
struct way {
	const char *name;
	void (*fn)(void *);
	u16 sel;
	void *entry, *back;
	bool nested; /* backlink, NT, and the old task stays busy */
};
static const struct way ways[] = {
	{"JMP to a TSS", do_jmp, SEL_OTHER, task_jmp, do_jmp_back, false},
	{"JMP to a task gate", do_jmp, SEL_GATE, task_jmp, do_jmp_back, false},
	{"CALL of a TSS", do_call, SEL_OTHER, task_iret, do_call_back, true},
	{"CALL of a task gate", do_call, SEL_GATE, task_iret, do_call_back, true},
	{"INT through a task gate", do_int, 0, task_iret, do_int_back, true},
};

static void check_seen(const char *name, const struct way *w)
{
	CHECK_ROW(name, 0xa0, seen.eax);
	CHECK_ROW(name, 0xc0, seen.ecx);
	CHECK_ROW(name, 0xd0, seen.edx);
	CHECK_ROW(name, 0xb0, seen.ebx);
	CHECK_ROW(name, (u32)other_stack + sizeof(other_stack) - 4,
		  seen.esp); /* a return address */
	CHECK_ROW(name, 0xb1, seen.ebp);
	CHECK_ROW(name, 0x51, seen.esi);
	CHECK_ROW(name, 0xd1, seen.edi);
	CHECK_ROW(name, 2 | (w->nested ? FL_NT : 0), seen.eflags);
	CHECK_ROW(name, CR0_TS, seen.cr0 & CR0_TS);
	CHECK_ROW(name, SEL_OTHER, seen.tr);
	CHECK_ROW(name, SEL_CODE, seen.cs);
	CHECK_ROW(name, SEL_DATA, seen.ss);
	CHECK_ROW(name, SEL_DATA, seen.ds);
	CHECK_ROW(name, 0, seen.fs);
}

TEST(a_task_switch_and_back)
{
	for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
		const struct way *w = &ways[i];
		u16 tr;

		make_other(w->entry);
		set_idt_task(VEC, SEL_OTHER, 0);
		guest_tss.link = 0x1234;
		CHECK_ROW(w->name, NONE, trap_run(w->fn, (void *)(u32)w->sel));
		asm volatile("str %0" : "=r"(tr));
		check_seen(w->name, w);
		/* back in the main task, whose state had been saved */
		CHECK_ROW(w->name, SEL_TSS, tr);
		CHECK_ROW(w->name, w->back, guest_tss.eip);
		CHECK_ROW(w->name, SEL_CODE, guest_tss.cs & 0xffff);
		CHECK_ROW(w->name, SEL_DATA, guest_tss.ss & 0xffff);
		CHECK_ROW(w->name, 0, guest_tss.eflags & FL_NT);
		CHECK_ROW(w->name, w->nested ? SEL_TSS : 0, other.link & 0xffff);
		CHECK_ROW(w->name, TYPE_TSS, type_of(N_TSS)); /* free again */
		CHECK_ROW(w->name, TYPE_TSS | TYPE_BUSY, type_of(SEL_TSS / 8));
		clear_ts();
	}
	idt_reset();
}

/* The second time the other task goes on where it left. */
TEST(a_task_is_left_and_entered_again)
{
	u32 eip;

	make_other(task_jmp);
	CHECK_EQ(NONE, trap_run(do_jmp, (void *)SEL_OTHER));
	eip = other.eip;
	CHECK_EQ(true, eip > (u32)task_jmp && eip < (u32)task_jmp + 16);
	CHECK_EQ(0xb0, other.ebx);
	CHECK_EQ(SEL_DATA, other.ds & 0xffff);
	other.ebx = 0x77;
	CHECK_EQ(NONE, trap_run(do_jmp, (void *)SEL_OTHER));
	CHECK_EQ(0x77, seen.ebx);
	clear_ts();
}

CODE("task_busy: mov gdt+0x38+5, %al; mov %al, busy_at; mov gdt+0x40+5, %al; mov %al, busy_at+1\n"
     "	iret; jmp task_busy\n"
     "task_busy_jmp: mov gdt+0x38+5, %al; mov %al, busy_at; mov gdt+0x40+5, %al\n"
     "	mov %al, busy_at+1; ljmp $0x38, $0; jmp task_busy_jmp\n");
u8 busy_at[2];
extern char task_busy[], task_busy_jmp[];

TEST(busy_bits_during_a_switch)
{
	make_other(task_busy);
	CHECK_EQ(NONE, trap_run(do_call, (void *)SEL_OTHER));
	CHECK_EQ(0x8b, busy_at[0]); /* nested: both are busy */
	CHECK_EQ(0x8b, busy_at[1]);
	make_other(task_busy_jmp);
	CHECK_EQ(NONE, trap_run(do_jmp, (void *)SEL_OTHER));
	CHECK_EQ(0x89, busy_at[0]); /* JMP leaves the old one free */
	CHECK_EQ(0x8b, busy_at[1]);
	clear_ts();
}

/* IRET with NT goes to the task in the backlink. */
TEST(iret_with_nt_follows_the_backlink)
{
	make_other(task_jmp);
	gdt[N_TSS] |= (u64)TYPE_BUSY << 40;
	guest_tss.link = SEL_OTHER;
	CHECK_EQ(NONE, trap_run(do_iret_nt, NULL));
	CHECK_EQ(SEL_OTHER, seen.tr);
	CHECK_EQ(2, seen.eflags);              /* NT is not set on the way out */
	CHECK_EQ(0, guest_tss.eflags & FL_NT); /* and cleared in what is saved */
	CHECK_EQ(do_iret_nt_back, guest_tss.eip);
	clear_ts();
}

TEST(a_task_can_be_called_from_ring_3_through_a_gate)
{
	make_other(task_iret);
	gdt[N_GATE] |= 3ull << 45;
	CHECK_EQ(NONE, trap_run_user(do_call, (void *)SEL_GATE));
	CHECK_EQ(SEL_CODE, seen.cs);
	CHECK_EQ(GP, trap_run_user(do_call, (void *)SEL_OTHER)); /* the TSS itself has DPL 0 */
	CHECK_EQ(SEL_OTHER, trap_last()->error);
	CHECK_EQ(GP, trap_run_user(do_jmp, (void *)SEL_OTHER));
	clear_ts();
}

/* --- an exception's error code on the task's stack
 * -------------------------------------------------
 */
CODE("fix_and_return: pop error_code; movl $0xffff, gdt+0x58; movl $0x00cf9300, gdt+0x5c\n"
     "	iret; jmp fix_and_return\n"
     "load_bad: mov $0x58, %eax; mov %ax, %es; mov $0x10, %eax; mov %ax, %es; ret\n");
extern char fix_and_return[];
void load_bad(void *arg);

TEST(an_error_code_is_pushed_on_the_new_stack)
{
	make_other(fix_and_return);
	gdt[N_A] = 0;
	error_code = 0xbad;
	set_idt_task(GP, SEL_OTHER, 0);
	CHECK_EQ(NONE, trap_run(load_bad, NULL));
	CHECK_EQ(SEL_A, error_code);
	CHECK_EQ(SEL_TSS, other.link & 0xffff);
	idt_reset();
	clear_ts();
}

/* --- 16-bit tasks --------------------------------------------------------------------------------
 */
TEST(a_16_bit_task)
{
	static u8 code16[64] __attribute__((aligned(16)));
	static const u8 body[] = {0x66, 0xb8, 0x10, 0x00, 0x00, 0x00,       /* mov $0x10, %eax */
				  0x8e, 0xd8,                               /* mov %ax, %ds */
				  0x67, 0x66, 0x89, 0x0d, 0,    0,    0, 0, /* mov %ecx, abs32 */
				  0x67, 0x89, 0x1d, 0,    0,    0,    0,    /* mov %bx, abs32 */
				  0x0f, 0x00, 0xc8,                         /* str %ax */
				  0x67, 0xa3, 0,    0,    0,    0,          /* mov %ax, abs32 */
				  0xcf};                                    /* iret */
	u32 at[3] = {(u32)&seen.ecx, (u32)&seen.ebx, (u32)&seen.tr};

	for (unsigned i = 0; i < sizeof(body); i++)
		code16[i] = body[i];
	*(u32 *)(code16 + 12) = at[0];
	*(u32 *)(code16 + 19) = at[1];
	*(u32 *)(code16 + 28) = at[2];
	make_other(NULL);
	seen.ecx = seen.ebx = seen.tr = 0;
	other16 = (struct tss16){
		.ip = 0,
		.flags = 2,
		.cx = 0xccc,
		.bx = 0xbbb,
		.sp = 0x800,
		.cs = SEL_A,
		.ss = SEL_B,
		.ds = SEL_B,
		.es = SEL_B,
	};
	gdt[N_A] = seg_desc((u32)code16, 0xffff, TYPE_CODE, 0, true, 0);
	gdt[N_B] = seg_desc((u32)other_stack, 0xfff, TYPE_DATA, 0, true, 0);
	gdt[N_TSS] = seg_desc((u32)&other16, sizeof(other16) - 1, TYPE_TSS16, 0, true, 0);
	CHECK_EQ(NONE, trap_run(do_call, (void *)SEL_OTHER));
	CHECK_EQ(0xccc, seen.ecx & 0xffff); /* the upper half is undefined */
	CHECK_EQ(0xbbb, seen.ebx);
	CHECK_EQ(SEL_OTHER, seen.tr);
	CHECK_EQ(SEL_TSS, other16.link);
	CHECK_EQ(sizeof(body), other16.ip); /* after its IRET */
	CHECK_EQ(0, other16.flags & FL_NT);
	CHECK_EQ(TYPE_TSS16, type_of(N_TSS));
	clear_ts();
}

/* --- bad TSSs: faults of the old task ------------------------------------------------------------
 */
static const struct bad_row {
	const char *name;
	u64 tss; /* descriptor; base is filled in */
	u16 sel;
	int vector;
	u32 error;
} bad_rows[] = {
	{"null selector", 0, 0, GP, 0},
	{"beyond the GDT", 0, BEYOND, GP, BEYOND},
	{"not present", 0x0000090000000067, SEL_OTHER, NP, SEL_OTHER},
	{"busy", 0x00008b0000000067, SEL_OTHER, GP, SEL_OTHER},
	{"DPL below RPL", 0x0000890000000067, SEL_OTHER | 3, GP, SEL_OTHER},
	{"limit 102", 0x0000890000000066, SEL_OTHER, TS, SEL_OTHER},
	{"16-bit, limit 42", 0x000081000000002a, SEL_OTHER, TS, SEL_OTHER},
	{"an LDT", 0x0000820000000067, SEL_OTHER, GP, SEL_OTHER},
	{"data", 0x0000930000000067, SEL_OTHER, GP, SEL_OTHER},
	{"in the LDT", 0x0000890000000067, SEL_OTHER | 4, GP, SEL_OTHER | 4},
};

TEST(bad_tss_descriptors_fault_in_the_old_task)
{
	for (unsigned i = 0; i < ARRAY_SIZE(bad_rows); i++)
		for (unsigned call = 0; call < 2; call++) {
			const struct bad_row *r = &bad_rows[i];

			make_other(task_ud);
			gdt[N_TSS] = r->tss | (gdt[N_TSS] & 0xff0000ffffff0000);
			CHECK_ROW(r->name, r->vector,
				  trap_run(call ? do_call : do_jmp, (void *)(u32)r->sel));
			CHECK_ROW(r->name, r->error, trap_last()->error);
			CHECK_ROW(r->name, SEL_TSS, trap_last()->tr);
			CHECK_ROW(r->name, true,
				  trap_last()->eip - (u32)(call ? do_call : do_jmp) < 16);
			CHECK_ROW(r->name, r->tss >> 40 & 31, type_of(N_TSS));
		}
}

/* Through a gate the TSS's own DPL and the selector's RPL do not count, but its type does. */
static const struct gate_row {
	const char *name;
	u16 target;
	u8 access; /* of the gate */
	u8 tss_type;
	int vector;
	u32 error;
} gate_rows[] = {
	{"gate not present", SEL_OTHER, 0x05, TYPE_TSS, NP, SEL_GATE},
	{"null target", 0, 0x85, TYPE_TSS, GP, 0},
	{"target in the LDT", SEL_OTHER | 4, 0x85, TYPE_TSS, GP, SEL_OTHER | 4},
	{"target beyond the GDT", BEYOND, 0x85, TYPE_TSS, GP, BEYOND},
	{"target busy", SEL_OTHER, 0x85, TYPE_TSS | TYPE_BUSY, GP, SEL_OTHER},
	{"target is an LDT", SEL_OTHER, 0x85, 2, GP, SEL_OTHER},
};

TEST(bad_task_gates_fault_in_the_old_task)
{
	for (unsigned i = 0; i < ARRAY_SIZE(gate_rows); i++) {
		const struct gate_row *r = &gate_rows[i];

		make_other(task_ud);
		gdt[N_GATE] = (u64)r->target << 16 | (u64)r->access << 40;
		gdt[N_TSS] = (gdt[N_TSS] & ~(0x1full << 40)) | (u64)r->tss_type << 40;
		CHECK_ROW(r->name, r->vector, trap_run(do_call, (void *)SEL_GATE));
		CHECK_ROW(r->name, r->error, trap_last()->error);
	}
}

static const struct link_row {
	const char *name;
	u16 link;
	u8 type;
	bool present;
	int vector;
	u32 error;
} link_rows[] = {
	{"not busy", SEL_OTHER, TYPE_TSS, true, TS, SEL_OTHER},
	{"in the LDT", SEL_OTHER | 4, TYPE_TSS | TYPE_BUSY, true, TS, SEL_OTHER | 4},
	{"beyond the GDT", BEYOND, TYPE_TSS | TYPE_BUSY, true, TS, BEYOND},
	{"an LDT", SEL_OTHER, 2, true, TS, SEL_OTHER},
	{"not present", SEL_OTHER, TYPE_TSS | TYPE_BUSY, false, NP, SEL_OTHER},
};

TEST(bad_backlinks_fault_at_iret)
{
	for (unsigned i = 0; i < ARRAY_SIZE(link_rows); i++) {
		const struct link_row *r = &link_rows[i];

		make_other(task_ud);
		gdt[N_TSS] = seg_desc((u32)&other, sizeof(other) - 1, r->type, 0, r->present, 0);
		guest_tss.link = r->link;
		CHECK_ROW(r->name, r->vector, trap_run(do_iret_nt, NULL));
		CHECK_ROW(r->name, r->error, trap_last()->error);
		CHECK_ROW(r->name, SEL_TSS, trap_last()->tr);
	}
}

/* --- bad state: faults of the new task
 * -------------------------------------------------------------
 */
enum { CS, SSEG, DSEG, LDTSEG };
static const struct state_row {
	const char *name;
	u8 reg;
	u16 sel;
	u64 desc; /* of SEL_A */
	int vector;
	u32 error;
} state_rows[] = {
	{"CS null", CS, 0, 0, TS, 0},
	{"CS beyond the GDT", CS, BEYOND, 0, TS, BEYOND},
	{"CS is data", CS, SEL_DATA, 0, TS, SEL_DATA},
	{"CS is a TSS", CS, SEL_TSS, 0, TS, SEL_TSS},
	{"CS with RPL 3 and DPL 0", CS, SEL_A | 3, 0x00cf9b000000ffff, TS, SEL_A},
	{"CS conforming above its RPL", CS, SEL_A, 0x00cfff000000ffff, TS, SEL_A},
	{"CS not present", CS, SEL_A, 0x00cf1b000000ffff, NP, SEL_A},
	{"SS null", SSEG, 0, 0, TS, 0},
	{"SS beyond the GDT", SSEG, BEYOND, 0, TS, BEYOND},
	{"SS is code", SSEG, SEL_CODE, 0, TS, SEL_CODE},
	{"SS read-only", SSEG, SEL_A, 0x00cf91000000ffff, TS, SEL_A},
	{"SS with another RPL", SSEG, SEL_DATA | 1, 0, TS, SEL_DATA},
	{"SS with another DPL", SSEG, SEL_A, 0x00cff3000000ffff, TS, SEL_A},
	{"SS not present", SSEG, SEL_A, 0x00cf13000000ffff, SS, SEL_A},
	{"DS beyond the GDT", DSEG, BEYOND, 0, TS, BEYOND},
	{"DS execute-only", DSEG, SEL_A, 0x00cf99000000ffff, TS, SEL_A},
	{"DS is a TSS", DSEG, SEL_TSS, 0, TS, SEL_TSS},
	{"DS with RPL 3 and DPL 0", DSEG, SEL_DATA | 3, 0, TS, SEL_DATA},
	{"DS not present", DSEG, SEL_A, 0x00cf13000000ffff, NP, SEL_A},
	{"LDT in the LDT", LDTSEG, 12, 0, TS, 12},
	{"LDT beyond the GDT", LDTSEG, BEYOND, 0, TS, BEYOND},
	{"LDT is a TSS", LDTSEG, SEL_TSS, 0, TS, SEL_TSS},
	{"LDT not present", LDTSEG, SEL_A, 0x0000020000000fff, TS, SEL_A},
};

/* These come in the new task, before its first instruction; the handler runs on that task's state,
 * so CS and SS that are no good need a handler that is a task itself. */
static u8 handler_stack[4096] __attribute__((aligned(16)));
enum { N_HANDLER = SEL_TEST / 8 + 8, SEL_HANDLER = N_HANDLER * 8 };
u32 handler_error, handler_vector;
_Noreturn void handler_done(void);
void trap_handle(struct trap_frame *f);

/* In the handler's task: hand it over as if it had been an ordinary exception. */
_Noreturn void handler_done(void)
{
	struct trap_frame f = {
		.vector = handler_vector,
		.error = handler_error,
		.eip = other.eip,
		.cs = other.cs,
	};

	trap_handle(&f);
	__builtin_unreachable();
}

CODE(".irp v, 10, 11, 12, 13\n"
     "handler_task_\\v: movl $\\v, handler_vector; pop handler_error; jmp handler_done\n"
     ".endr\n");
extern char handler_task_10[], handler_task_11[], handler_task_12[], handler_task_13[];

static struct tss32 handler_tsses[4];

static void arm_handlers(void)
{
	static char *const entries[] = {handler_task_10, handler_task_11, handler_task_12,
					handler_task_13};

	for (unsigned i = 0; i < 4; i++) {
		handler_tsses[i] = (struct tss32){
			.eip = (u32)entries[i],
			.eflags = 2,
			.esp = (u32)handler_stack + sizeof(handler_stack),
			.es = SEL_DATA,
			.cs = SEL_CODE,
			.ss = SEL_DATA,
			.ds = SEL_DATA,
			.esp0 = (u32)other_stack0 + sizeof(other_stack0),
			.ss0 = SEL_DATA,
			.iomap = sizeof(struct tss32),
		};
		gdt[N_HANDLER + i] = seg_desc((u32)&handler_tsses[i], sizeof(struct tss32) - 1,
					      TYPE_TSS, 0, true, 0);
		set_idt_task(10 + i, SEL_HANDLER + 8 * i, 0);
	}
}

TEST(bad_state_faults_in_the_new_task)
{
	for (unsigned i = 0; i < ARRAY_SIZE(state_rows); i++) {
		const struct state_row *r = &state_rows[i];
		int got;

		make_other(task_ud);
		arm_handlers();
		gdt[N_A] = r->desc;
		if (r->reg == CS)
			other.cs = r->sel;
		else if (r->reg == SSEG)
			other.ss = r->sel;
		else if (r->reg == DSEG)
			other.ds = r->sel;
		else
			other.ldt = r->sel;
		got = trap_run(do_call, (void *)SEL_OTHER);
		CHECK_ROW(r->name, r->vector, got);
		CHECK_ROW(r->name, r->error, trap_last()->error);
		/* the switch is done: the handler's task was nested in the new one, which has not
		 * begun */
		if (got >= 10 && got <= 13)
			CHECK_ROW(r->name, SEL_OTHER, handler_tsses[got - 10].link & 0xffff);
		CHECK_ROW(r->name, (u32)task_ud, trap_last()->eip);
		CHECK_ROW(r->name, TYPE_TSS | TYPE_BUSY, type_of(N_TSS));
	}
	idt_reset();
	tss_reset();
	clear_ts();
}

/* EIP beyond the limit of CS. */
TEST(an_entry_point_beyond_the_limit_is_gp)
{
	make_other((void *)0x100000);
	arm_handlers();
	gdt[N_A] = seg_desc(0, 0xffff, TYPE_CODE, 0, true, SEG_DB);
	other.cs = SEL_A;
	CHECK_EQ(GP, trap_run(do_call, (void *)SEL_OTHER));
	CHECK_EQ(0, trap_last()->error);
	CHECK_EQ(SEL_OTHER, handler_tsses[3].link & 0xffff);
	idt_reset();
	tss_reset();
	clear_ts();
}

/* --- LDT, ring 3, T bit
 * ----------------------------------------------------------------------------
 */
TEST(a_task_brings_its_ldt)
{
	make_other(task_iret);
	other.ldt = SEL_LDT;
	other.es = 8 | 4; /* of that LDT */
	CHECK_EQ(NONE, trap_run(do_call, (void *)SEL_OTHER));
	CHECK_EQ(SEL_LDT, seen.ldtr);
	CHECK_EQ(8 | 4, seen.es);
	CHECK_EQ(0, other.link >> 16);
	clear_ts();
}

CODE("task_user: int $0x80\n");
extern char task_user[];

TEST(a_task_can_start_in_ring_3)
{
	make_other(task_user);
	other.cs = SEL_USER_CODE;
	other.ss = other.ds = other.es = SEL_USER_DATA;
	CHECK_EQ(NONE, trap_run(do_call, (void *)SEL_OTHER));
	CHECK_EQ(SEL_USER_CODE, trap_last()->cs);
	CHECK_EQ(SEL_OTHER, trap_last()->tr);
	CHECK_EQ((u32)other_stack + sizeof(other_stack), trap_last()->frame.esp);
	CHECK_EQ(SEL_USER_DATA, trap_last()->frame.ds & 0xffff);
	tss_reset();
	clear_ts();
}

/* The T bit of the incoming task: #DB before its first instruction. */
TEST(the_t_bit_traps_the_new_task)
{
	make_other(task_ud);
	other.trap = 1;
	WRITE_DR(6, 0xffff0ff0);
	CHECK_EQ(DB, trap_run(do_call, (void *)SEL_OTHER));
	CHECK_EQ(task_ud, trap_last()->eip);
	CHECK_EQ(0xffff8ff0, trap_last()->dr6);
	CHECK_EQ(SEL_OTHER, trap_last()->tr);
	WRITE_DR(6, 0xffff0ff0);
	tss_reset();
	clear_ts();
}

/* Local breakpoint bits go with the task. */
TEST(a_switch_clears_local_breakpoints)
{
	make_other(task_iret);
	WRITE_DR(0, 0);
	WRITE_DR(7, 0x401 | 0x300 | 2);
	CHECK_EQ(NONE, trap_run(do_call, (void *)SEL_OTHER));
	CHECK_EQ(0x602, READ_DR(7)); /* G0 and GE stay */
	WRITE_DR(7, 0x400);
	clear_ts();
}

/* --- paging --------------------------------------------------------------------------------------
 */
static u32 *make_directory(u32 at_4gib_end)
{
	u32 *pd = page_alloc();

	for (u32 i = 0; i < 1024; i++)
		pd[i] = i << 22 | 0x87; /* 4 MiB pages */
	pd[1023] = at_4gib_end;
	return pd;
}

TEST(a_task_brings_its_page_tables)
{
	u32 *pd_a, *pd_b;

	if (!cpu_has(1, 0, EDX, 3)) {
		guest_skip("no PSE");
		return;
	}
	pd_a = make_directory(0x87);
	pd_b = make_directory(0x400087);
	WRITE_CR(4, READ_CR(4) | CR4_PSE);
	WRITE_CR(3, pd_a);
	WRITE_CR(0, READ_CR(0) | CR0_PG);
	make_other(task_iret);
	other.cr3 = (u32)pd_b;
	guest_tss.cr3 = (u32)pd_a; /* never written by a switch */
	CHECK_EQ(NONE, trap_run(do_call, (void *)SEL_OTHER));
	CHECK_EQ(pd_b, seen.cr3);
	CHECK_EQ(pd_a, READ_CR(3));
	CHECK_EQ(pd_b, other.cr3);
	WRITE_CR(0, READ_CR(0) & ~CR0_PG);
	clear_ts();
}
