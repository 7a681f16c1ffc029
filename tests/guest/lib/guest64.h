/* guest64.h - the part of guest.h for 64-bit guests: ring 0, memory below 4 GiB identity-mapped
 * with 2 MiB pages that ring 3 may use too. */
#pragma once

struct trap_frame {
	u64 rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
	u64 vector, error;
	u64 rip, cs, rflags, rsp, ss;
};
struct trap_catch {
	u64 rsp; /* first: trap_catch_asm stores it */
	bool armed;
	int vector; /* NONE: nothing was raised */
	u32 error;
	u64 rip, cr2, rflags, cs, dr6;
	struct trap_frame frame; /* as it was raised */
};

/* trap_run() in ring 3 (64-bit); fn must not touch ring-0 things.  Interrupts as they are. */
int trap_run_user(void (*fn)(void *), void *arg);
/* Where ring 3 finds the identity mapping, for tests that take the plain one away from it: fn has
 * to be position-independent then. */
extern u64 guest_user_base;
/* IDT entry as the tests like it: type 14 interrupt gate, dpl, IST. */
void idt_set(unsigned vector, u64 handler, u8 type, u8 dpl, u8 ist);
void *idt_entry(unsigned vector); /* its 16 bytes */
/* Exceptions run on a stack of their own, for tests that spoil RSP; also resets all gates. */
void trap_on_ist(bool on);
int try_rdmsr(u32 index, u64 *v);
int try_wrmsr(u32 index, u64 v);

/* Leave long mode, load CR4 and CR3, enter it again; all below 4 GiB and identity-mapped. */
void paging_switch(u64 cr3, u64 cr4);

bool smp_run(unsigned cpu, void (*fn)(void *), void *arg); /* start it; false: it did not come */
void smp_forget(unsigned cpu); /* it was stopped by INIT: start it anew */
void smp_wait(unsigned cpu);   /* until fn returned */

enum {
	SEL_CODE = 0x08, /* ring 0, 64-bit */
	SEL_DATA = 0x10,
	SEL_CODE32 = 0x18, /* ring 0, compatibility mode */
	SEL_USER_DATA = 0x23,
	SEL_USER_CODE = 0x2b,
	SEL_USER_CODE32 = 0x33,
	SEL_CODE16 = 0x38,
	SEL_DATA16 = 0x40,
	SEL_TSS = 0x48,
	SEL_TEST = 0x58, /* and up: for tests */
};
extern u64 gdt[];
extern char gdt_end[], trap_stubs[];
extern u64 boot_pml4[], boot_pdpt[], boot_pd[];
extern struct tss {
	u32 reserved0;
	u64 rsp[3], reserved1, ist[7], reserved2;
	u16 reserved3, iomap;
	u8 io_bitmap[8193];
} __attribute__((packed)) guest_tss;
