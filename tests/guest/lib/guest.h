/* guest.h - what a bare-metal test guest has: a console, tests, exceptions, MSRs, other CPUs.
 *
 * A guest is a set of TEST(name) functions.  It prints TAP on the debug port 0xE9 and ends by the
 * exit port 0xF4 (0 = all fine), so the same image runs under any engine and under other
 * hypervisors with an isa-debug-exit device.  Code runs in ring 0, 64-bit, memory identity-mapped;
 * there is no library. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define BIT(n)        (1ull << (n))

/* --- tests -------------------------------------------------------------------------------------
 */
struct guest_test {
	const char *name;
	void (*fn)(void);
};
#define TEST(id)                                                                                   \
	static void id(void);                                                                      \
	static const struct guest_test id##_entry                                                  \
		__attribute__((section(".guest_tests"), used)) = {#id, id};                        \
	static void id(void)

/* Record a difference; the test goes on, so that a table shows all that are wrong. */
#define CHECK(cond)         guest_check((cond), #cond, __FILE__, __LINE__)
#define CHECK_EQ(want, got) guest_check_eq((u64)(want), (u64)(got), #got, __FILE__, __LINE__)
#define CHECK_ROW(row, want, got)                                                                  \
	guest_check_row((row), (u64)(want), (u64)(got), #got, __FILE__, __LINE__)
bool guest_check(bool ok, const char *what, const char *file, int line);
bool guest_check_eq(u64 want, u64 got, const char *what, const char *file, int line);
bool guest_check_row(const char *row, u64 want, u64 got, const char *what, const char *file,
		     int line);
void guest_skip(const char *why); /* call and return from the test */

/* --- console: %s %d %u %x %lx %c %%, printed as a TAP comment line by guest_note ---------------
 */
void guest_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void guest_exit(u8 status);

/* --- exceptions --------------------------------------------------------------------------------
 */
struct trap_frame {
	u64 rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
	u64 vector, error;
	u64 rip, cs, rflags, rsp, ss;
};
struct trap_catch {
	u64 rsp; /* first: trap_catch_asm stores it */
	bool armed;
	int vector; /* -1: nothing was raised */
	u32 error;
	u64 rip, cr2, rflags, cs, dr6;
};
enum {
	DE = 0,
	DB = 1,
	NMI = 2,
	BP = 3,
	OF = 4,
	BR = 5,
	UD = 6,
	NM = 7,
	DF = 8,
	TS = 10,
	NP = 11,
	SS = 12,
	GP = 13,
	PF = 14,
	MF = 16,
	AC = 17,
	XM = 19,
	NONE = -1
};

/* Run fn(arg) in ring 0; what it raised, as vector, or NONE.  Details in *trap_last(). */
int trap_run(void (*fn)(void *), void *arg);
struct trap_catch *trap_last(void);
/* The same in ring 3 (64-bit); fn must not touch ring-0 things.  Interrupts as they are. */
int trap_run_user(void (*fn)(void *), void *arg);
/* Interrupt vectors >= 32, and any vector with a handler, call it instead. */
void trap_set_handler(unsigned vector, void (*handler)(struct trap_frame *f));
/* IDT entry as the tests like it: type 14 interrupt gate, dpl, IST. */
void idt_set(unsigned vector, u64 handler, u8 type, u8 dpl, u8 ist);

/* --- CPU ---------------------------------------------------------------------------------------
 */
static inline void outb(u16 port, u8 v)
{
	asm volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}
static inline u8 inb(u16 port)
{
	u8 v;
	asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline void outl(u16 port, u32 v)
{
	asm volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}
static inline u32 inl(u16 port)
{
	u32 v;
	asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline u64 rdmsr(u32 index)
{
	u32 lo, hi;
	asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(index) : "memory");
	return (u64)hi << 32 | lo;
}
static inline void wrmsr(u32 index, u64 v)
{
	asm volatile("wrmsr" : : "c"(index), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
static inline u64 rdtsc(void)
{
	u32 lo, hi;
	asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (u64)hi << 32 | lo;
}
static inline void cpuid(u32 leaf, u32 sub, u32 r[4])
{
	asm volatile("cpuid"
		     : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3])
		     : "a"(leaf), "c"(sub));
}
#define READ_CR(n)                                                                                 \
	({                                                                                         \
		u64 v_;                                                                            \
		asm volatile("mov %%cr" #n ", %0" : "=r"(v_) : : "memory");                        \
		v_;                                                                                \
	})
#define WRITE_CR(n, v) asm volatile("mov %0, %%cr" #n : : "r"((u64)(v)) : "memory")
#define READ_DR(n)                                                                                 \
	({                                                                                         \
		u64 v_;                                                                            \
		asm volatile("mov %%db" #n ", %0" : "=r"(v_));                                     \
		v_;                                                                                \
	})
#define WRITE_DR(n, v) asm volatile("mov %0, %%db" #n : : "r"((u64)(v)))
static inline void invlpg(const volatile void *p)
{
	asm volatile("invlpg (%0)" : : "r"(p) : "memory");
}
bool cpu_has(u32 leaf, u32 sub, int reg, int bit);

/* --- memory: pages handed out from after the image, never freed --------------------------------
 */
void *page_alloc(void); /* zeroed */
void *page_alloc_n(unsigned n);

/* --- other CPUs --------------------------------------------------------------------------------
 */
unsigned smp_count(void); /* CPUs the ACPI tables name; 1 without */
bool smp_run(unsigned cpu, void (*fn)(void *),
	     void *arg);     /* start it; false when it did not come */
void smp_wait(unsigned cpu); /* until fn returned */

extern u64 gdt[];
extern char gdt_end[];
extern u64 boot_pml4[], boot_pdpt[], boot_pd[];
extern u32 boot_eax, boot_ebx;
extern struct tss {
	u32 reserved0;
	u64 rsp[3], reserved1, ist[7], reserved2;
	u16 reserved3, iomap;
	u8 io_bitmap[8193];
} __attribute__((packed)) guest_tss;
