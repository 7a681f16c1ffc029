/* guest.c - see guest.h. */
#include "guest.h"

#include <stdarg.h>

/* --- console -----------------------------------------------------------------------------------
 */

static void put_char(char c)
{
	outb(0xe9, c);
}

static void put_number(u64 v, unsigned base, int width)
{
	char buf[24];
	int n = 0;

	do {
		buf[n++] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v || n < width);
	while (n)
		put_char(buf[--n]);
}

static void put_signed(long v)
{
	if (v < 0)
		put_char('-');
	put_number(v < 0 ? -(u64)v : (u64)v, 10, 1);
}

void guest_printf(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	for (; *fmt; fmt++) {
		bool is_long = false;

		if (*fmt != '%') {
			put_char(*fmt);
			continue;
		}
		while (*++fmt == 'l')
			is_long = true;
		if (*fmt == 's')
			for (const char *s = va_arg(ap, const char *); *s; s++)
				put_char(*s);
		else if (*fmt == 'd')
			put_signed(is_long ? va_arg(ap, long) : va_arg(ap, int));
		else if (*fmt == 'u')
			put_number(is_long ? va_arg(ap, u64) : va_arg(ap, u32), 10, 1);
		else if (*fmt == 'x')
			put_number(is_long ? va_arg(ap, u64) : va_arg(ap, u32), 16, 1);
		else if (*fmt == 'c')
			put_char(va_arg(ap, int));
		else
			put_char(*fmt);
	}
	va_end(ap);
}

void guest_exit(u8 status)
{
	outb(0xf4, status);
	for (;;)
		asm volatile("cli; hlt");
}

/* --- tests -------------------------------------------------------------------------------------
 */

static bool test_failed, test_skipped;

bool guest_check_row(const char *row, u64 want, u64 got, const char *what, const char *file,
		     int line)
{
	if (want == got)
		return true;
	test_failed = true;
	guest_printf("# %s:%d: %s%s%s: want 0x%lx, got 0x%lx\n", file, line, row, *row ? ": " : "",
		     what, want, got);
	return false;
}

bool guest_check_eq(u64 want, u64 got, const char *what, const char *file, int line)
{
	return guest_check_row("", want, got, what, file, line);
}

bool guest_check(bool ok, const char *what, const char *file, int line)
{
	if (!ok) {
		test_failed = true;
		guest_printf("# %s:%d: %s\n", file, line, what);
	}
	return ok;
}

void guest_skip(const char *why)
{
	test_skipped = true;
	guest_printf("# skip: %s\n", why);
}

/* --- exceptions --------------------------------------------------------------------------------
 */

extern char trap_stubs[], trap_caught[], boot_stack_top[];
long trap_catch_asm(struct trap_catch *c, void (*fn)(void *), void *arg);
void trap_handle(struct trap_frame *f);
void guest_main(void);
void guest_ap_main(void);

struct tss guest_tss;
static struct trap_catch catch_now;
static void (*handlers[256])(struct trap_frame *f);
static struct {
	u64 lo, hi;
} idt[256] __attribute__((aligned(16)));
static u8 user_stack[16384] __attribute__((aligned(16)));
static u8 trap_stack[16384] __attribute__((aligned(16)));
enum { VECTOR_USER_DONE = 0x80 };

void idt_set(unsigned vector, u64 handler, u8 type, u8 dpl, u8 ist)
{
	idt[vector].lo = (handler & 0xffff) | 0x08 << 16 | (u64)(ist & 7) << 32 |
			 (u64)(0x80 | dpl << 5 | type) << 40 | (handler >> 16 & 0xffff) << 48;
	idt[vector].hi = handler >> 32;
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
	asm volatile("ltr %w0" : : "r"(0x48));
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
	*--sp = (u64)leave;
	asm volatile("pushq $0x23; pushq %0; pushfq; pushq $0x2b; pushq %1; iretq"
		     :
		     : "r"(sp), "r"(u->fn), "D"(u->arg)
		     : "memory");
	__builtin_unreachable();
}

int trap_run_user(void (*fn)(void *), void *arg)
{
	struct user_call u = {fn, arg};

	idt_set(VECTOR_USER_DONE, (u64)trap_stubs + 16 * VECTOR_USER_DONE, 14, 3, 0);
	return trap_run(enter_user, &u);
}

/* --- CPU and memory ----------------------------------------------------------------------------
 */

bool cpu_has(u32 leaf, u32 sub, int reg, int bit)
{
	u32 r[4];

	cpuid(leaf & 0x80000000, 0, r);
	if (r[0] < leaf)
		return false;
	cpuid(leaf, sub, r);
	return r[reg] >> bit & 1;
}

extern char guest_end[];

void *page_alloc_n(unsigned n)
{
	static u64 next;
	u64 p;

	if (!next)
		next = ((u64)guest_end + 4095) & ~4095ull;
	p = next;
	next += n * 4096ull;
	for (u64 *q = (u64 *)p; q < (u64 *)next; q++)
		*q = 0;
	return (void *)p;
}

void *page_alloc(void)
{
	return page_alloc_n(1);
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

void smp_wait(unsigned cpu)
{
	while (ap[cpu].fn)
		asm volatile("pause");
}

/* CPUs in the MADT, found by RSDP -> XSDT or RSDT. */
static const u8 *acpi_find(const char *sig)
{
	for (u64 p = 0xe0000; p < 0x100000; p += 16) {
		const u8 *rsdp = (const u8 *)p;
		bool xsdt;
		const u8 *t;

		if (*(const u64 *)rsdp != 0x2052545020445352ull) /* "RSD PTR " */
			continue;
		xsdt = rsdp[15] >= 2;
		t = (const u8 *)(xsdt ? *(const u64 *)(rsdp + 24) : *(const u32 *)(rsdp + 16));
		for (u32 off = 36; off < *(const u32 *)(t + 4); off += xsdt ? 8 : 4) {
			const u8 *e = (const u8 *)(xsdt ? *(const u64 *)(t + off)
							: *(const u32 *)(t + off));

			if (*(const u32 *)e == *(const u32 *)sig)
				return e;
		}
	}
	return NULL;
}

unsigned smp_count(void)
{
	const u8 *madt = acpi_find("APIC");
	unsigned n = 0;

	if (!madt)
		return 1;
	for (u32 off = 44; off < *(const u32 *)(madt + 4); off += madt[off + 1])
		if (madt[off] == 0 && (madt[off + 4] & 1))
			n++;
	return n ? n : 1;
}

/* --- the whole ---------------------------------------------------------------------------------
 */

extern const struct guest_test guest_tests[], guest_tests_end[];

void guest_main(void)
{
	unsigned n = guest_tests_end - guest_tests, failed = 0;

	for (unsigned v = 0; v < 256; v++)
		idt_set(v, (u64)trap_stubs + 16 * v, 14, v == BP || v == OF ? 3 : 0, 0);
	load_idt();
	load_tss();
	guest_printf("1..%u\n", n);
	for (unsigned i = 0; i < n; i++) {
		test_failed = test_skipped = false;
		guest_tests[i].fn();
		guest_printf("%sok %u - %s%s\n", test_failed ? "not " : "", i + 1,
			     guest_tests[i].name, test_skipped && !test_failed ? " # SKIP" : "");
		failed += test_failed;
	}
	guest_exit(failed ? 1 : 0);
}
