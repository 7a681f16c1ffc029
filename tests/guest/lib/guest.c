/* guest.c - see guest.h: what 64-bit and 32-bit guests have in common. */
#include "guest.h"

#include <stdarg.h>

/* --- console -----------------------------------------------------------------------------------
 */

/* Where the text goes: to the debug port, or into a buffer while `to` is set. */
static char *to, *to_end;

static void put_char(char c)
{
	if (!to)
		outb(0xe9, c);
	else if (to < to_end)
		*to++ = c;
}

/* 64-bit division in two steps of the hardware's: the 32-bit images have no library. */
static u64 divide(u64 v, u32 by, u32 *rest)
{
	u32 hi = v >> 32, lo = v, q_hi = hi / by, q_lo;

	asm("divl %4" : "=a"(q_lo), "=d"(*rest) : "a"(lo), "d"(hi % by), "r"(by));
	return (u64)q_hi << 32 | q_lo;
}

static void put_number(u64 v, u32 base)
{
	char buf[24];
	int n = 0;
	u32 digit;

	do {
		v = divide(v, base, &digit);
		buf[n++] = "0123456789abcdef"[digit];
	} while (v);
	while (n)
		put_char(buf[--n]);
}

static void put_signed(int64_t v)
{
	if (v < 0)
		put_char('-');
	put_number(v < 0 ? -(u64)v : (u64)v, 10);
}

static void put_string(const char *s)
{
	while (*s)
		put_char(*s++);
}

static void put_format(const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		int longs = 0;

		if (*fmt != '%') {
			put_char(*fmt);
			continue;
		}
		while (*++fmt == 'l')
			longs++;
		if (*fmt == 's')
			put_string(va_arg(ap, const char *));
		else if (*fmt == 'd')
			put_signed(longs ? va_arg(ap, long) : va_arg(ap, int));
		else if (*fmt == 'u' || *fmt == 'x')
			put_number(longs > 1 ? va_arg(ap, unsigned long long)
				   : longs   ? va_arg(ap, unsigned long)
					     : va_arg(ap, unsigned),
				   *fmt == 'u' ? 10 : 16);
		else if (*fmt == 'c')
			put_char(va_arg(ap, int));
		else
			put_char(*fmt);
	}
}

void guest_printf(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	put_format(fmt, ap);
	va_end(ap);
}

const char *guest_name(const char *fmt, ...)
{
	static char names[4][256]; /* one name may be a part of the next */
	static unsigned turn;
	char *name = names[turn++ % 4];
	va_list ap;

	to = name;
	to_end = name + sizeof(names[0]) - 1;
	va_start(ap, fmt);
	put_format(fmt, ap);
	va_end(ap);
	*to = '\0';
	to = NULL;
	return name;
}

void guest_exit(u8 status)
{
	outb(0xf4, status);
	for (;;)
		asm volatile("cli; hlt");
}

/* The compiler calls these on its own. */
void *memset(void *to, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);

void *memset(void *to, int c, size_t n)
{
	void *p = to;

	asm volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
	return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *p = to;

	asm volatile("rep movsb" : "+D"(p), "+S"(from), "+c"(n) : : "memory");
	return to;
}

/* --- tests -------------------------------------------------------------------------------------
 */

/* A table that is wrong everywhere says so in the first lines; the rest only hides them. */
enum { MAX_NOTES = 20 };
static bool test_failed, test_skipped;
static unsigned test_notes;

static bool note_failure(void)
{
	test_failed = true;
	if (++test_notes == MAX_NOTES + 1)
		guest_printf("# ... and more\n");
	return test_notes <= MAX_NOTES;
}

bool guest_check_row(const char *row, u64 want, u64 got, const char *what, const char *file,
		     int line)
{
	if (want == got)
		return true;
	if (note_failure())
		guest_printf("# %s:%d: %s%s%s: want 0x%llx, got 0x%llx\n", file, line, row,
			     *row ? ": " : "", what, (unsigned long long)want,
			     (unsigned long long)got);
	return false;
}

bool guest_check_eq(u64 want, u64 got, const char *what, const char *file, int line)
{
	return guest_check_row("", want, got, what, file, line);
}

bool guest_check(bool ok, const char *what, const char *file, int line)
{
	if (!ok && note_failure())
		guest_printf("# %s:%d: %s\n", file, line, what);
	return ok;
}

void guest_skip(const char *why)
{
	test_skipped = true;
	guest_printf("# skip: %s\n", why);
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

bool cpu_is_amd(void)
{
	u32 r[4];

	cpuid(0, 0, r);
	return r[1] == 0x68747541 || r[1] == 0x6f677948; /* "Auth"enticAMD, "Hygo"nGenuine */
}

unsigned cpu_phys_bits(void)
{
	u32 r[4];

	cpuid(0x80000008, 0, r);
	return r[0] & 0xff;
}

extern char guest_end[];

void *page_alloc_n(unsigned n)
{
	static char *next;
	char *p;

	if (!next)
		next = (char *)(((uintptr_t)guest_end + 4095) & ~(uintptr_t)4095);
	p = next;
	next += n * 4096;
	for (uintptr_t *q = (uintptr_t *)p; q < (uintptr_t *)next; q++)
		*q = 0;
	return p;
}

void *page_alloc(void)
{
	return page_alloc_n(1);
}

/* --- ACPI -----------------------------------------------------------------------------------
 */

/* RSDP -> XSDT or RSDT -> table */
const u8 *acpi_find(const char *sig)
{
	for (uintptr_t p = 0xe0000; p < 0x100000; p += 16) {
		const u8 *rsdp = (const u8 *)p;
		bool xsdt;
		const u8 *t;

		if (*(const u64 *)rsdp != 0x2052545020445352ull) /* "RSD PTR " */
			continue;
		xsdt = rsdp[15] >= 2;
		t = (const u8 *)(uintptr_t)(xsdt ? *(const u64 *)(rsdp + 24)
						 : *(const u32 *)(rsdp + 16));
		for (u32 off = 36; off < *(const u32 *)(t + 4); off += xsdt ? 8 : 4) {
			const u8 *e = (const u8 *)(uintptr_t)(xsdt ? *(const u64 *)(t + off)
								   : *(const u32 *)(t + off));

			if (*(const u32 *)e == *(const u32 *)sig)
				return e;
		}
	}
	return NULL;
}

/* Usable local APICs in the MADT. */
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

	trap_init();
	guest_printf("1..%u\n", n);
	for (unsigned i = 0; i < n; i++) {
		test_failed = test_skipped = false;
		test_notes = 0;
		guest_tests[i].fn();
		guest_printf("%sok %u - %s%s\n", test_failed ? "not " : "", i + 1,
			     guest_tests[i].name, test_skipped && !test_failed ? " # SKIP" : "");
		failed += test_failed;
	}
	guest_exit(failed ? 1 : 0);
}
