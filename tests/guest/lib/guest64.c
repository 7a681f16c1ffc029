/* guest64.c - see guest.h: exceptions, rings and other CPUs of 64-bit guests. */
#include "guest.h"

/* --- exceptions --------------------------------------------------------------------------------
 */

extern char trap_caught[];
long trap_catch_asm(struct trap_catch *c, void (*fn)(void *), void *arg);
void trap_handle(struct trap_frame *f);
void guest_ap_main(void);

struct tss guest_tss;
static struct trap_catch catch_now;
static void (*handlers[256])(struct trap_frame *f);
static struct {
	u64 lo, hi;
} idt[256] __attribute__((aligned(16)));
static u8 user_stack[16384] __attribute__((aligned(16)));
static u8 trap_stack[16384] __attribute__((aligned(16)));
static u8 ist_stack[8192] __attribute__((aligned(16)));
u64 guest_user_base;
enum { VECTOR_USER_DONE = 0x80 };

void idt_set(unsigned vector, u64 handler, u8 type, u8 dpl, u8 ist)
{
	idt[vector].lo = (handler & 0xffff) | 0x08 << 16 | (u64)(ist & 7) << 32 |
			 (u64)(0x80 | dpl << 5 | type) << 40 | (handler >> 16 & 0xffff) << 48;
	idt[vector].hi = handler >> 32;
}

static void idt_reset(u8 ist)
{
	for (unsigned v = 0; v < 256; v++)
		idt_set(v, (u64)trap_stubs + 16 * v, 14, v == BP || v == OF ? 3 : 0, ist);
}

void trap_on_ist(bool on)
{
	guest_tss.ist[0] = (u64)ist_stack + sizeof(ist_stack);
	idt_reset(on ? 1 : 0);
}

void *idt_entry(unsigned vector)
{
	return &idt[vector];
}

static void load_idt(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) p = {sizeof(idt) - 1, (u64)idt};

	asm volatile("lidt %0" : : "m"(p));
}

static void load_tss(void)
{
	u64 base = (u64)&guest_tss;

	guest_tss.rsp[0] = (u64)trap_stack + sizeof(trap_stack);
	guest_tss.iomap = sizeof(guest_tss); /* no ports for ring 3 */
	gdt[9] = (sizeof(guest_tss) - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 |
		 (base >> 24 & 0xff) << 56;
	gdt[10] = base >> 32;
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
}

void trap_init(void)
{
	outb(0x21, 0xff); /* firmware may have left 8259 interrupts on */
	outb(0xa1, 0xff);
	idt_reset(0);
	load_idt();
	load_tss();
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
	catch_now.rip = f->rip;
	catch_now.rflags = f->rflags;
	catch_now.cs = f->cs;
	catch_now.cr2 = READ_CR(2);
	catch_now.dr6 = READ_DR(6);
}

void trap_handle(struct trap_frame *f)
{
	if (handlers[f->vector]) {
		handlers[f->vector](f);
		return;
	}
	if (!catch_now.armed) {
		guest_printf(
			"# unexpected exception %lu error 0x%lx at 0x%lx cr2 0x%lx\nBail out!\n",
			f->vector, f->error, f->rip, READ_CR(2));
		guest_exit(0x7f);
	}
	trap_record(f);
	catch_now.armed = false;
	f->rip = (u64)trap_caught;
	f->rsp = catch_now.rsp;
	f->cs = 0x08;
	f->ss = 0x10;
	f->rflags &= ~(BIT(8) | BIT(14) | BIT(16) | BIT(18)); /* TF NT RF AC end with the test */
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
	u64 *sp = (u64 *)(user_stack + sizeof(user_stack)) - 2;

	/* fn returns to an INT that ring 3 may make. */
	static const u8 leave[] = {0xcd, VECTOR_USER_DONE};
	*--sp = (u64)leave + guest_user_base;
	asm volatile("pushq $0x23; pushq %0; pushfq; pushq $0x2b; pushq %1; iretq"
		     :
		     : "r"((u64)sp + guest_user_base), "r"((u64)u->fn + guest_user_base),
		       "D"(u->arg)
		     : "memory");
	__builtin_unreachable();
}

int trap_run_user(void (*fn)(void *), void *arg)
{
	struct user_call u = {fn, arg};

	idt_set(VECTOR_USER_DONE, (u64)trap_stubs + 16 * VECTOR_USER_DONE, 14, 3, 0);
	return trap_run(enter_user, &u);
}

struct msr_access {
	u32 index;
	u64 v;
};

static void do_rdmsr(void *p)
{
	struct msr_access *a = p;

	a->v = rdmsr(a->index);
}

static void do_wrmsr(void *p)
{
	struct msr_access *a = p;

	wrmsr(a->index, a->v);
}

int try_rdmsr(u32 index, u64 *v)
{
	struct msr_access a = {index, 0};
	int vector = trap_run(do_rdmsr, &a);

	*v = a.v;
	return vector;
}

int try_wrmsr(u32 index, u64 v)
{
	return trap_run(do_wrmsr, &(struct msr_access){index, v});
}

/* --- other CPUs --------------------------------------------------------------------------------
 */

enum { MAX_CPUS = 64, APIC_ICR_LO = 0x300, APIC_ICR_HI = 0x310, APIC_SVR = 0xf0 };
extern char ap_trampoline[], ap_trampoline_end[];
extern volatile u32 ap_starting, ap_stack;
static struct {
	void (*volatile fn)(void *);
	void *volatile arg;
	volatile bool up;
} ap[MAX_CPUS];
static volatile unsigned ap_next;

static volatile u32 *apic_reg(u32 off)
{
	return (volatile u32 *)(0xfee00000ull + off);
}

void guest_ap_main(void)
{
	unsigned me = ap_next;

	load_idt();
	*apic_reg(APIC_SVR) = 0x1ff;
	ap[me].up = true;
	for (;;) {
		void (*fn)(void *) = ap[me].fn;

		if (!fn) {
			asm volatile("pause");
			continue;
		}
		fn(ap[me].arg);
		ap[me].fn = NULL;
	}
}

static void spin_us(u64 us)
{
	/* The ACPI PM timer would be exact; a coarse bound is all that start-up needs. */
	for (u64 end = rdtsc() + us * 2000; rdtsc() < end;)
		asm volatile("pause");
}

static bool ap_start(unsigned cpu)
{
	char *to = (char *)0x8000;

	for (char *p = ap_trampoline; p < ap_trampoline_end; p++)
		*to++ = *p;
	ap_starting = 1;
	ap_stack = (u32)(u64)page_alloc_n(4) + 4 * 4096;
	ap_next = cpu;
	*apic_reg(APIC_ICR_HI) = cpu << 24;
	*apic_reg(APIC_ICR_LO) = 0x4500; /* INIT, assert */
	spin_us(10000);
	for (int i = 0; i < 2 && !ap[cpu].up; i++) {
		*apic_reg(APIC_ICR_HI) = cpu << 24;
		*apic_reg(APIC_ICR_LO) = 0x4608; /* start-up at 0x8000 */
		for (int ms = 0; ms < 1000 && !ap[cpu].up; ms++)
			spin_us(1000);
	}
	return ap[cpu].up;
}

bool smp_run(unsigned cpu, void (*fn)(void *), void *arg)
{
	if (cpu >= MAX_CPUS || (!ap[cpu].up && !ap_start(cpu)))
		return false;
	ap[cpu].arg = arg;
	ap[cpu].fn = fn;
	return true;
}

void smp_forget(unsigned cpu)
{
	ap[cpu].up = false;
	ap[cpu].fn = NULL;
}

void smp_wait(unsigned cpu)
{
	while (ap[cpu].fn)
		asm volatile("pause");
}
