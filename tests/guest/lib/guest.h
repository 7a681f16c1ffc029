/* guest.h - what a bare-metal test guest has: a console, tests, exceptions, MSRs, other CPUs.
 *
 * A guest is a set of TEST(name) functions.  It prints TAP on the debug port 0xE9 and ends by the
 * exit port 0xF4 (0 = all fine), so the same image runs under any engine and under other
 * hypervisors with an isa-debug-exit device.  Code runs in ring 0, in 64-bit mode with memory
 * identity-mapped (guest64.h) or in 32-bit mode without paging (guest32.h); there is no library.
 * Where makers of CPUs differ, a row says so and asks cpu_is_amd(). */
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
	({                                                                                         \
		u64 want_ = (u64)(want), got_ = (u64)(got);                                        \
		want_ == got_ || guest_check_row((row), want_, got_, #got, __FILE__, __LINE__);    \
	})
bool guest_check(bool ok, const char *what, const char *file, int line);
bool guest_check_eq(u64 want, u64 got, const char *what, const char *file, int line);
bool guest_check_row(const char *row, u64 want, u64 got, const char *what, const char *file,
		     int line);
void guest_skip(const char *why); /* call and return from the test */
/* The name of a row made from its numbers; for CHECK_ROW, which evaluates it only on failure. */
const char *guest_name(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Assembly outside functions; the section may be any when the compiler comes to it. */
#define CODE(text) asm(".text\n" text)

/* --- console: %s %d %u %x %lx %c %%, %llx ------------------------------------
 */
void guest_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void guest_exit(u8 status);

/* --- exceptions --------------------------------------------------------------------------------
 */
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
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16, PF_PK = 32 };

struct trap_frame;
struct trap_catch;

void trap_init(void); /* guest_main calls it */
/* Run fn(arg) in ring 0; what it raised, as vector, or NONE.  Details in *trap_last(). */
int trap_run(void (*fn)(void *), void *arg);
struct trap_catch *trap_last(void);
/* Any vector with a handler calls it instead, and returns to where it was raised. */
void trap_set_handler(unsigned vector, void (*handler)(struct trap_frame *f));

#ifdef __x86_64__
#include "guest64.h"
#else
#include "guest32.h"
#endif

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
static inline void outw(u16 port, u16 v)
{
	asm volatile("outw %0, %1" : : "a"(v), "Nd"(port));
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
		unsigned long v_;                                                                  \
		asm volatile("mov %%cr" #n ", %0" : "=r"(v_) : : "memory");                        \
		v_;                                                                                \
	})
#define WRITE_CR(n, v) asm volatile("mov %0, %%cr" #n : : "r"((unsigned long)(v)) : "memory")
#define READ_DR(n)                                                                                 \
	({                                                                                         \
		unsigned long v_;                                                                  \
		asm volatile("mov %%db" #n ", %0" : "=r"(v_));                                     \
		v_;                                                                                \
	})
#define WRITE_DR(n, v) asm volatile("mov %0, %%db" #n : : "r"((unsigned long)(v)))
static inline void invlpg(const volatile void *p)
{
	asm volatile("invlpg (%0)" : : "r"(p) : "memory");
}
enum { EAX, EBX, ECX, EDX };
bool cpu_has(u32 leaf, u32 sub, int reg, int bit);
bool cpu_is_amd(void); /* makers differ in places; else as Intel */
unsigned cpu_phys_bits(void);

#define EFER         0xc0000080u
#define EFER_SCE     BIT(0)
#define EFER_LME     BIT(8)
#define EFER_LMA     BIT(10)
#define EFER_NXE     BIT(11)
#define CR0_PE       BIT(0)
#define CR0_MP       BIT(1)
#define CR0_EM       BIT(2)
#define CR0_TS       BIT(3)
#define CR0_NE       BIT(5)
#define CR0_WP       BIT(16)
#define CR0_AM       BIT(18)
#define CR0_NW       BIT(29)
#define CR0_CD       BIT(30)
#define CR0_PG       BIT(31)
#define CR4_VME      BIT(0)
#define CR4_PVI      BIT(1)
#define CR4_TSD      BIT(2)
#define CR4_DE       BIT(3)
#define CR4_PSE      BIT(4)
#define CR4_PAE      BIT(5)
#define CR4_PGE      BIT(7)
#define CR4_OSFXSR   BIT(9)
#define CR4_OSXMM    BIT(10)
#define CR4_UMIP     BIT(11)
#define CR4_LA57     BIT(12)
#define CR4_FSGSBASE BIT(16)
#define CR4_PCIDE    BIT(17)
#define CR4_OSXSAVE  BIT(18)
#define CR4_SMEP     BIT(20)
#define CR4_SMAP     BIT(21)
#define CR4_PKE      BIT(22)
#define FL_CF        BIT(0)
#define FL_ZF        BIT(6)
#define FL_TF        BIT(8)
#define FL_IF        BIT(9)
#define FL_DF        BIT(10)
#define FL_IOPL      (3ull << 12)
#define FL_NT        BIT(14)
#define FL_RF        BIT(16)
#define FL_VM        BIT(17)
#define FL_AC        BIT(18)
#define FL_VIF       BIT(19)
#define FL_VIP       BIT(20)
#define HAS_PCID     cpu_has(1, 0, ECX, 17)
#define HAS_X2APIC   cpu_has(1, 0, ECX, 21)
#define HAS_XSAVE    cpu_has(1, 0, ECX, 26)
#define HAS_FSGSBASE cpu_has(7, 0, EBX, 0)
#define HAS_SMEP     cpu_has(7, 0, EBX, 7)
#define HAS_INVPCID  cpu_has(7, 0, EBX, 10)
#define HAS_SMAP     cpu_has(7, 0, EBX, 20)
#define HAS_UMIP     cpu_has(7, 0, ECX, 2)
#define HAS_PKU      cpu_has(7, 0, ECX, 3)
#define HAS_LA57     cpu_has(7, 0, ECX, 16)
#define HAS_1GIB     cpu_has(0x80000001, 0, EDX, 26)

/* Segment descriptors, the raw 8 bytes: type (with S), DPL, present, and flags G DB L AVL. */
enum { SEG_AVL = 1, SEG_L = 2, SEG_DB = 4, SEG_G = 8 };
static inline u64 seg_desc(u32 base, u32 limit, u8 type, u8 dpl, bool present, u8 flags)
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)(type & 31) << 40 |
	       (u64)dpl << 45 | (u64)present << 47 | (u64)(limit >> 16 & 15) << 48 |
	       (u64)flags << 52 | (u64)(base >> 24) << 56;
}

/* --- memory: pages handed out from after the image, never freed --------------------------------
 */
void *page_alloc(void); /* zeroed */
void *page_alloc_n(unsigned n);

unsigned smp_count(void);             /* CPUs the ACPI tables name; 1 without */
const u8 *acpi_find(const char *sig); /* a table by its four letters, or NULL */
extern u32 boot_eax, boot_ebx;
