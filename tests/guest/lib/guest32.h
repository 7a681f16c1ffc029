/* guest32.h - the part of guest.h for 32-bit guests: ring 0, flat protected mode, no paging; trips
 * to real mode and virtual-8086 mode. */
#pragma once

struct trap_frame {
	u32 eax, ecx, edx, ebx, ebp, esi, edi;
	u32 ds, es, fs, gs; /* low halves count */
	u32 vector, error;
	u32 eip, cs, eflags, esp, ss;
};
struct trap_catch {
	u32 esp; /* first: trap_catch_asm stores it */
	bool armed;
	int vector; /* NONE: nothing was raised */
	u32 error, eip, cr2, eflags, cs, dr6;
	struct trap_frame frame; /* as it was raised */
	u16 tr;                  /* the task that was interrupted, or the one that came */
};

/* trap_run() in ring 3. */
int trap_run_user(void (*fn)(void *), void *arg);
/* 8-byte gate: type 14 interrupt gate and the like. */
void idt_set(unsigned vector, u32 handler, u16 sel, u8 type, u8 dpl);
void *idt_entry(unsigned vector);
void idt_reset(void);
void tss_reset(void); /* TR and its descriptor as at the start */

/* Run `size` bytes of 16-bit code in real mode, at 0000:7000 with SS:SP = 0000:7000.  It ends with
 * a far return; or with an exception, whose vector is the result.  Registers go in and come out. */
struct real_regs {
	u32 eax, ecx, edx, ebx, ebp, esi, edi;
	u32 ds, es, ss, esp;       /* out only */
	u32 vector, ip, cs, flags; /* of an exception */
};
int real_run(const void *code, unsigned size, struct real_regs *regs);

/* Run 16-bit code at `cs`:`ip` in virtual-8086 mode until it faults. */
struct v86_regs {
	u16 cs, ip, ss, sp, ds, es, fs, gs;
	u32 eflags; /* VM is added */
	u32 eax, ecx, edx, ebx, esi;
};
int v86_run(const struct v86_regs *regs);

enum {
	SEL_CODE = 0x08,
	SEL_DATA = 0x10,
	SEL_REAL_CODE = 0x18,
	SEL_REAL_DATA = 0x20,
	SEL_USER_CODE = 0x2b,
	SEL_USER_DATA = 0x33,
	SEL_TSS = 0x38,
	SEL_TEST = 0x40, /* and up: for tests */
};
extern u64 gdt[];
extern char gdt_end[], trap_stubs[];

struct tss32 {
	u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags;
	u32 eax, ecx, edx, ebx, esp, ebp, esi, edi;
	u32 es, cs, ss, ds, fs, gs, ldt;
	u16 trap, iomap;
	u8 redirection[32], io_bitmap[8193];
} __attribute__((packed));
struct tss16 {
	u16 link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags;
	u16 ax, cx, dx, bx, sp, bp, si, di;
	u16 es, cs, ss, ds, ldt;
} __attribute__((packed));
extern struct tss32 guest_tss;
