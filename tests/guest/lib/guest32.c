/* guest32.c - see guest.h and guest32.h. */
#include "guest.h"

enum { VECTOR_USER_DONE = 0x80 };

int trap_catch_asm(struct trap_catch *c, void (*fn)(void *), void *arg);
_Noreturn void trap_resume(u32 esp);
void trap_handle(struct trap_frame *f);
void real_call(void);
extern char real_code[], real_code_end[], real_stub_common[];

struct tss32 guest_tss;
static struct trap_catch catch_now;
static void (*handlers[256])(struct trap_frame *f);
static u64 idt[256] __attribute__((aligned(16)));
static u8 user_stack[16384] __attribute__((aligned(16)));
static u8 ring0_stack[4096] __attribute__((aligned(16)));

/* --- exceptions --------------------------------------------------------------------------------
 */

void idt_set(unsigned vector, u32 handler, u16 sel, u8 type, u8 dpl)
{
	idt[vector] = (handler & 0xffff) | (u32)sel << 16 | (u64)(0x80 | dpl << 5 | type) << 40 |
		      (u64)(handler >> 16) << 48;
}

void *idt_entry(unsigned vector)
{
	return &idt[vector];
}

void idt_reset(void)
{
	for (unsigned v = 0; v < 256; v++)
		idt_set(v, (u32)trap_stubs + 16 * v, SEL_CODE, 14,
			v == BP || v == OF || v == VECTOR_USER_DONE ? 3 : 0);
}

static void load_idt(void)
{
	struct {
		u16 limit;
		u32 base;
	} __attribute__((packed)) p = {sizeof(idt) - 1, (u32)idt};

	asm volatile("lidt %0" : : "m"(p));
}

void tss_reset(void)
{
	guest_tss.esp0 = (u32)ring0_stack + sizeof(ring0_stack);
	guest_tss.ss0 = SEL_DATA;
	guest_tss.iomap = sizeof(guest_tss); /* no ports for ring 3 */
	gdt[SEL_TSS / 8] = seg_desc((u32)&guest_tss, sizeof(guest_tss) - 1, 9, 0, true, 0);
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
}

void trap_init(void)
{
	outb(0x21, 0xff); /* firmware may have left 8259 interrupts on */
	outb(0xa1, 0xff);
	idt_reset();
	load_idt();
	tss_reset();
	asm volatile("lldt %w0" : : "r"(0)); /* a reset leaves one of 64 KiB at 0 */
}

void trap_set_handler(unsigned vector, void (*handler)(struct trap_frame *f))
{
	handlers[vector] = handler;
}

struct trap_catch *trap_last(void)
{
	return &catch_now;
}

static void trap_record(const struct trap_frame *f)
{
	catch_now.frame = *f;
	catch_now.vector = f->vector == VECTOR_USER_DONE ? NONE : (int)f->vector;
	catch_now.error = f->error;
	catch_now.eip = f->eip;
	catch_now.eflags = f->eflags;
	catch_now.cs = f->cs & 0xffff;
	catch_now.cr2 = READ_CR(2);
	catch_now.dr6 = READ_DR(6);
	asm volatile("str %0" : "=m"(catch_now.tr));
}

void trap_handle(struct trap_frame *f)
{
	if (handlers[f->vector]) {
		handlers[f->vector](f);
		return;
	}
	if (!catch_now.armed) {
		guest_printf(
			"# unexpected exception %u error 0x%x at 0x%x:0x%x flags 0x%x\nBail out!\n",
			f->vector, f->error, f->cs, f->eip, f->eflags);
		guest_exit(0x7f);
	}
	trap_record(f);
	catch_now.armed = false;
	trap_resume(catch_now.esp);
}

int trap_run(void (*fn)(void *), void *arg)
{
	catch_now.armed = true;
	catch_now.vector = NONE;
	trap_catch_asm(&catch_now, fn, arg);
	catch_now.armed = false;
	return catch_now.vector;
}

struct user_call {
	void (*fn)(void *);
	void *arg;
};

static void enter_user(void *p)
{
	struct user_call *u = p;
	u32 *sp = (u32 *)(user_stack + sizeof(user_stack)) - 2;

	/* fn returns to an INT that ring 3 may make. */
	static const u8 leave[] = {0xcd, VECTOR_USER_DONE};
	*--sp = (u32)u->arg;
	*--sp = (u32)leave;
	asm volatile("mov %2, %%ds; mov %2, %%es; push %2; push %0; pushf; push %3; push %1; iret"
		     :
		     : "r"(sp), "r"(u->fn), "r"(SEL_USER_DATA), "i"(SEL_USER_CODE)
		     : "memory");
	__builtin_unreachable();
}

int trap_run_user(void (*fn)(void *), void *arg)
{
	struct user_call u = {fn, arg};

	return trap_run(enter_user, &u);
}

/* --- real mode ---------------------------------------------------------------------------------
 */

/* Real mode's vectors all lead to one place, each with its number: PUSH imm16; JMP. */
static void real_vectors(void)
{
	u32 common = 0x6000 + (real_stub_common - real_code);

	for (u32 v = 0; v < 256; v++) {
		u8 *stub = (u8 *)0x6800 + 6 * v;
		u32 rel = common - ((u32)stub + 6);

		stub[0] = 0x68;
		*(u16 *)(stub + 1) = v;
		stub[3] = 0xe9;
		*(u16 *)(stub + 4) = rel;
		((volatile u32 *)0)[v] = (u32)stub;
	}
}

static void copy(void *to, const void *from, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		((volatile u8 *)to)[i] = ((const u8 *)from)[i];
}

int real_run(const void *code, unsigned size, struct real_regs *regs)
{
	real_vectors();
	copy((void *)0x6000, real_code, real_code_end - real_code);
	copy((void *)0x7000, code, size);
	copy((void *)0x5f00, regs, sizeof(*regs));
	real_call();
	copy(regs, (void *)0x5f00, sizeof(*regs));
	regs->vector &= 0xffff;
	return regs->vector == 0xffff ? NONE : (int)regs->vector;
}

/* --- virtual-8086 mode ---------------------------------------------------------------------------
 */

static void enter_v86(void *p)
{
	const struct v86_regs *r = p;
	u32 frame[9] = {r->ip, r->cs, r->eflags | FL_VM | 2, r->sp, r->ss, r->es, r->ds,
			r->fs, r->gs};

	asm volatile("mov %0, %%esp; iret"
		     :
		     : "r"(frame), "a"(r->eax), "c"(r->ecx), "d"(r->edx), "b"(r->ebx), "S"(r->esi),
		       "m"(frame)
		     : "memory");
	__builtin_unreachable();
}

int v86_run(const struct v86_regs *regs)
{
	return trap_run(enter_v86, (void *)regs);
}
