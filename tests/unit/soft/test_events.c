/* Events met by running code: a few instructions of guest code under the run loop, ending in a HLT
 * in ring 0, and then a look at the frame on the stack.  What is exact about faults, traps,
 * breakpoints and restarts shows only here.  SDM 3A "Interrupt and Exception Handling", SDM 3B
 * "Debug". */
#include "soft_fixture.h"

#include "engine/soft/debug.h"
#include "engine/soft/run.h"

enum { HANDLER = 0x7000, HANDLER2 = 0x7800, PAGES = 0x100000, UNMAPPED = 0x30000 };

#define CODE_AT(f, at, ...)                                                                        \
	do {                                                                                       \
		static const uint8_t bytes_[] = {__VA_ARGS__};                                     \
		memcpy(fix_ram(f, at), bytes_, sizeof(bytes_));                                    \
	} while (0)

/* Handlers that stop: vector v at HANDLER, as an interrupt gate open to all rings. */
static void handle(struct fixture *f, unsigned vector)
{
	bool lng = f->cpu->long_mode;

	fixture_idt(f, vector, ATTR_SYS(DESC_INT) | ATTR_DPL(3), SEL(lng ? FIX_CS64_0 : FIX_CS0, 0),
		    HANDLER, 0);
	CODE_AT(f, HANDLER, 0xf4);
}

static uint32_t frame32(struct fixture *f, unsigned slot)
{
	return (uint32_t)fix_get(f, f->cpu->gpr[X86_RSP] + slot * 4, 4);
}

/* Runs until a HLT; where it was, less one: the address of the HLT. */
static uint64_t run_to_hlt(struct fixture *f)
{
	CHECK_EQ(ENGINE_EXIT_HALTED, run_cpu(f->cpu));
	return f->cpu->rip - 1;
}

static struct fixture *prot32(unsigned cpl)
{
	struct fixture *f = fixture_create(FIX_PROT32);

	fixture_ring(f, cpl);
	return f;
}

/* Identity map of the first 2 MiB, user pages, by 4 KiB pages in 32-bit paging; UNMAPPED is not. */
static void page(struct fixture *f)
{
	fix_put(f, PAGES, 4, (PAGES + 0x1000) | PTE_P | PTE_W | PTE_U);
	for (unsigned i = 0; i < FIX_RAM / PAGE_SIZE; i++)
		fix_put(f, PAGES + 0x1000 + i * 4, 4, i * PAGE_SIZE | PTE_P | PTE_W | PTE_U);
	fix_put(f, PAGES + 0x1000 + UNMAPPED / PAGE_SIZE * 4, 4, 0);
	f->cpu->cr3 = PAGES;
	f->cpu->cr0 |= CR0_PG | CR0_WP;
	cpu_mode_update(f->cpu);
	tlb_flush_all(f->cpu);
}

/* --- exceptions and restarts -------------------------------------------------------------------
 */

TEST(int_n_enters_ring_0_and_iret_returns_behind_it)
{
	struct fixture *f = prot32(3);

	handle(f, 0x80);
	handle(f, X86_EXC_GP);
	CODE_AT(f, FIX_CODE, 0xcd, 0x80, 0xf4); /* int 80h; hlt: #GP in ring 3 */
	CODE_AT(f, HANDLER, 0x40, 0xcf);        /* inc eax; iret */
	fixture_idt(f, X86_EXC_GP, ATTR_SYS(DESC_INT), SEL(FIX_CS0, 0), HANDLER2, 0);
	CODE_AT(f, HANDLER2, 0xf4);
	CHECK_EQ(HANDLER2, run_to_hlt(f));
	CHECK_EQ(1, f->cpu->gpr[X86_RAX]);
	CHECK_EQ(0, frame32(f, 0));
	CHECK_EQ(FIX_CODE + 2, frame32(f, 1));
}

TEST(a_page_fault_on_the_inner_stack_is_delivered_instead_of_the_interrupt)
{
	struct fixture *f = prot32(3);

	page(f);
	fixture_gdt_gate(f, FIX_FREE + 1, ATTR_SYS(DESC_TASK_GATE), 0, 0, 0);
	fix_put(f, FIX_TSS + 4, 4, UNMAPPED + 8); /* the frame's upper part lies in it */
	handle(f, 0x80);
	/* The page fault's handler is conforming and stays on the user stack. */
	fixture_gdt(f, FIX_FREE, ATTR_CODE | CONFORMING | ATTR_32, 0, 0xfffff);
	fixture_idt(f, X86_EXC_PF, ATTR_SYS(DESC_INT), SEL(FIX_FREE, 0), HANDLER2, 0);
	CODE_AT(f, FIX_CODE, 0xcd, 0x80);
	/* pop eax; pop ebx; mov [0x20000], ebx; ud2 -> handled below */
	CODE_AT(f, HANDLER2, 0x58, 0x5b, 0x89, 0x1d, 0x00, 0x00, 0x02, 0x00, 0x0f, 0x0b);
	CHECK_EQ(ENGINE_EXIT_SHUTDOWN, run_cpu(f->cpu)); /* no handler for #UD */
	CHECK_EQ(FIX_CODE, fix_get(f, 0x20000, 4));      /* INT was to be restarted */
	CHECK_EQ(PF_W, f->cpu->gpr[X86_RAX]);            /* a supervisor write */
	CHECK_EQ(UNMAPPED + 4, f->cpu->cr2);             /* of the first push */
}

TEST(a_fault_in_ring_3_names_its_instruction_and_sets_rf)
{
	struct fixture *f = prot32(3);

	handle(f, X86_EXC_UD);
	CODE_AT(f, FIX_CODE, 0x90, 0x0f, 0x0b); /* nop; ud2 */
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(FIX_CODE + 1, frame32(f, 0));
	CHECK(frame32(f, 2) & RFLAGS_RF);
}

TEST(a_refused_gate_is_a_general_protection_fault_at_the_int)
{
	struct fixture *f = prot32(3);

	handle(f, X86_EXC_GP);
	fixture_idt(f, 0x21, ATTR_SYS(DESC_INT), SEL(FIX_CS0, 0), HANDLER2, 0);
	CODE_AT(f, FIX_CODE, 0xcd, 0x21);
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(0x21 << 3 | 2, frame32(f, 0));
	CHECK_EQ(FIX_CODE, frame32(f, 1));
}

TEST(a_bad_ss_in_the_tss_makes_a_double_fault_through_a_task_gate)
{
	struct fixture *f = prot32(3);

	fix_put(f, FIX_TSS + 8, 4, 0); /* SS0 null: #TS for #GP's handler, #TS again for that */
	handle(f, X86_EXC_GP);
	handle(f, X86_EXC_TS);
	fixture_gdt(f, FIX_FREE, ATTR_SYS(DESC_TSS), FIX_TSS2, 103);
	fixture_idt(f, X86_EXC_DF, ATTR_SYS(DESC_TASK_GATE), SEL(FIX_FREE, 0), 0, 0);
	fix_put(f, FIX_TSS2 + 32, 4, HANDLER);
	fix_put(f, FIX_TSS2 + 56, 4, 0xe000);
	fix_put(f, FIX_TSS2 + 76, 4, SEL(FIX_CS0, 0));
	fix_put(f, FIX_TSS2 + 80, 4, SEL(FIX_DS0, 0));
	CODE_AT(f, FIX_CODE, 0xfa); /* cli: #GP in ring 3 */
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(0, frame32(f, 0));                      /* the double fault's error code */
	CHECK_EQ(FIX_CODE, fix_get(f, FIX_TSS + 32, 4)); /* saved EIP of the old task */
	CHECK_EQ(SEL(FIX_FREE, 0), f->cpu->tr.selector);
}

/* --- single step -------------------------------------------------------------------------------
 */

TEST(the_trap_flag_skips_the_handler_of_int_n)
{
	struct fixture *f = prot32(0);

	handle(f, X86_EXC_DB);
	fixture_idt(f, 0x80, ATTR_SYS(DESC_INT), SEL(FIX_CS0, 0), HANDLER2, 0);
	CODE_AT(f, HANDLER2, 0x40, 0xcf);             /* inc eax; iret */
	CODE_AT(f, FIX_CODE, 0xcd, 0x80, 0x90, 0x90); /* int 80h; nop; nop */
	f->cpu->rflags |= RFLAGS_TF;
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(1, f->cpu->gpr[X86_RAX]);
	/* IRET brought TF back; the nop behind it is the first to be trapped. */
	CHECK_EQ(FIX_CODE + 3, frame32(f, 0));
	CHECK_EQ(DR6_FIXED | DR6_BS, f->cpu->dr6);
}

TEST(popf_that_sets_tf_is_not_trapped_itself)
{
	struct fixture *f = prot32(0);

	handle(f, X86_EXC_DB);
	CODE_AT(f, FIX_CODE, 0x9d, 0x90, 0x90); /* popfd; nop; nop */
	f->cpu->gpr[X86_RSP] -= 4;
	fix_put(f, f->cpu->gpr[X86_RSP], 4, RFLAGS_TF);
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(FIX_CODE + 2, frame32(f, 0));
	CHECK(frame32(f, 2) & RFLAGS_TF);
}

TEST(a_load_of_ss_is_not_single_stepped)
{
	struct fixture *f = prot32(0);

	handle(f, X86_EXC_DB);
	CODE_AT(f, FIX_CODE, 0x8e, 0xd0, 0x90, 0x90); /* mov ss, eax; nop; nop */
	f->cpu->gpr[X86_RAX] = SEL(FIX_DS0, 0);
	f->cpu->rflags |= RFLAGS_TF;
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(FIX_CODE + 3, frame32(f, 0));
}

static struct fixture *syscall_step(uint64_t sfmask)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	handle(f, X86_EXC_DB);
	fixture_ring(f, 3);
	f->cpu->star = (uint64_t)SEL(FIX_CS64_0, 0) << 32;
	f->cpu->lstar = HANDLER2;
	f->cpu->sfmask = sfmask;
	f->cpu->rflags |= RFLAGS_TF;
	CODE_AT(f, FIX_CODE, 0x0f, 0x05); /* syscall */
	CODE_AT(f, HANDLER2, 0xf4);
	return f;
}

TEST(syscall_traps_only_when_tf_survives_the_mask)
{
	struct fixture *f = syscall_step(RFLAGS_TF);

	CHECK_EQ(HANDLER2, run_to_hlt(f));
	f = syscall_step(0);
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(HANDLER2, fix_get(f, f->cpu->gpr[X86_RSP], 8));
}

/* --- breakpoints -------------------------------------------------------------------------------
 */

static void arm(struct fixture *f, unsigned n, uint64_t addr, unsigned rw, unsigned len)
{
	f->cpu->dr[n] = addr;
	f->cpu->dr7 |= BIT(2 * n) | (uint64_t)rw << (16 + 4 * n) | (uint64_t)len << (18 + 4 * n);
	debug_update(f->cpu);
}

TEST(an_instruction_breakpoint_stops_before_it_and_rf_passes_it)
{
	struct fixture *f = prot32(0);

	fixture_idt(f, X86_EXC_DB, ATTR_SYS(DESC_INT), SEL(FIX_CS0, 0), HANDLER2, 0);
	CODE_AT(f, FIX_CODE, 0x90, 0x43, 0x43, 0xf4); /* nop; inc ebx; inc ebx; hlt */
	/* inc eax; or dword [esp+8], 10000h; iret */
	CODE_AT(f, HANDLER2, 0x40, 0x81, 0x4c, 0x24, 0x08, 0x00, 0x00, 0x01, 0x00, 0xcf);
	arm(f, 1, FIX_CODE + 1, 0, 0);
	CHECK_EQ(FIX_CODE + 3, run_to_hlt(f));
	CHECK_EQ(1, f->cpu->gpr[X86_RAX]);
	CHECK_EQ(2, f->cpu->gpr[X86_RBX]);
	CHECK_EQ(DR6_FIXED | DR6_B(1), f->cpu->dr6);
	CHECK(!(f->cpu->rflags & RFLAGS_RF));
}

TEST(a_data_breakpoint_traps_after_the_store)
{
	struct fixture *f = prot32(0);

	handle(f, X86_EXC_DB);
	/* mov [0x20000], eax; mov [0x20004], eax; nop */
	CODE_AT(f, FIX_CODE, 0xa3, 0, 0, 2, 0, 0xa3, 4, 0, 2, 0, 0x90, 0x90);
	f->cpu->gpr[X86_RAX] = 0x5555;
	arm(f, 0, 0x20004, 1, 3);
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(FIX_CODE + 10, frame32(f, 0));
	CHECK_EQ(0x5555, fix_get(f, 0x20004, 4));
	CHECK_EQ(DR6_FIXED | DR6_B(0), f->cpu->dr6);
}

TEST(a_data_breakpoint_of_mov_ss_waits_for_the_next_instruction)
{
	struct fixture *f = prot32(0);

	handle(f, X86_EXC_DB);
	fixture_idt(f, 0x80, ATTR_SYS(DESC_INT), SEL(FIX_CS0, 0), HANDLER2, 0);
	fix_put(f, 0x20000, 2, SEL(FIX_DS0, 0));
	/* mov ss, [0x20000]; int 80h */
	CODE_AT(f, FIX_CODE, 0x8e, 0x15, 0, 0, 2, 0, 0xcd, 0x80);
	CODE_AT(f, HANDLER2, 0x90, 0xf4);
	arm(f, 0, 0x20000, 3, 1);
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(HANDLER2, frame32(f, 0)); /* at the first instruction of INT's handler */
}

TEST(the_trap_bit_of_a_task_stops_before_its_first_instruction)
{
	struct fixture *f = prot32(0);

	handle(f, X86_EXC_DB);
	fixture_gdt(f, FIX_FREE, ATTR_SYS(DESC_TSS), FIX_TSS2, 103);
	fix_put(f, FIX_TSS2 + 32, 4, HANDLER2);
	fix_put(f, FIX_TSS2 + 56, 4, 0xe000);
	fix_put(f, FIX_TSS2 + 76, 4, SEL(FIX_CS0, 0));
	fix_put(f, FIX_TSS2 + 80, 4, SEL(FIX_DS0, 0));
	fix_put(f, FIX_TSS2 + 100, 2, 1);
	CODE_AT(f, FIX_CODE, 0xea, 0, 0, 0, 0, FIX_FREE << 3, 0); /* jmp far TSS */
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(HANDLER2, frame32(f, 0));
	CHECK_EQ(DR6_FIXED | DR6_BT, f->cpu->dr6);
}

/* --- rings and modes by real code --------------------------------------------------------------
 */

TEST(syscall_and_sysret_in_a_loop)
{
	struct fixture *f = fixture_create(FIX_LONG64);

	fixture_ring(f, 3);
	f->cpu->star = (uint64_t)SEL(FIX_CS0, 0) << 32 | (uint64_t)SEL(FIX_FREE, 3) << 48;
	/* SYSRET takes CS from STAR + 16 and SS from STAR + 8. */
	fixture_gdt(f, FIX_FREE + 1, ATTR_DATA | ATTR_32 | ATTR_DPL(3), 0, 0xfffff);
	fixture_gdt(f, FIX_FREE + 2, ATTR_CODE | ATTR_64 | ATTR_DPL(3), 0, 0xfffff);
	f->cpu->lstar = HANDLER2;
	handle(f, X86_EXC_GP);
	/* l: syscall; dec ebx; jnz l; hlt: #GP */
	CODE_AT(f, FIX_CODE, 0x0f, 0x05, 0xff, 0xcb, 0x75, 0xfa, 0xf4);
	CODE_AT(f, HANDLER2, 0x48, 0xff, 0xc0, 0x48, 0x0f, 0x07); /* inc rax; sysretq */
	f->cpu->gpr[X86_RBX] = 1000;
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(1000, f->cpu->gpr[X86_RAX]);
	CHECK_EQ(FIX_CODE + 6, fix_get(f, f->cpu->gpr[X86_RSP] + 8, 8));
}

TEST(real_mode_code_enters_protected_mode_and_comes_back)
{
	struct fixture *f = fixture_create(FIX_REAL);

	fixture_gdt(f, 1, ATTR_CODE | ATTR_32, 0, 0xfffff);
	fixture_gdt(f, 2, ATTR_DATA | ATTR_32, 0, 0xfffff);
	fixture_gdt(f, 3, ATTR_CODE, 0, 0xffff);
	/* mov eax, cr0; or al, 1; mov cr0, eax; jmp 8:7000h */
	CODE_AT(f, FIX_CODE, 0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0xea, 0x00, 0x70, 8, 0);
	/* mov bx, 10h; mov ds, bx; mov dword [100000h], 12345678h; jmp 18h:7800h */
	CODE_AT(f, HANDLER, 0x66, 0xbb, 0x10, 0, 0x8e, 0xdb, 0xc7, 0x05, 0, 0, 0x10, 0, 0x78, 0x56,
		0x34, 0x12, 0xea, 0x00, 0x78, 0, 0, 0x18, 0);
	/* dec ax; mov cr0, eax; jmp 0:7900h */
	CODE_AT(f, HANDLER2, 0x48, 0x0f, 0x22, 0xc0, 0xea, 0x00, 0x79, 0, 0);
	/* mov ebx, [dword 100000h] (big real mode); hlt */
	CODE_AT(f, 0x7900, 0x67, 0x66, 0x8b, 0x1d, 0, 0, 0x10, 0, 0xf4);
	CHECK_EQ(0x7909 - 1, run_to_hlt(f));
	CHECK_EQ(0x12345678, f->cpu->gpr[X86_RBX]);
	CHECK(f->cpu->real);
}

TEST(v86_code_faults_into_its_monitor)
{
	struct fixture *f = prot32(0);
	static const uint32_t frame[] = {
		0x0100, 0x600, RFLAGS_FIXED | RFLAGS_VM, 0xf000, 0, 0, 0x777, 0, 0};

	handle(f, X86_EXC_GP);
	CODE_AT(f, FIX_CODE, 0xcf);     /* iret into it */
	CODE_AT(f, 0x6100, 0x90, 0xfa); /* nop; cli at IOPL 0 */
	f->cpu->gpr[X86_RSP] = FIX_STACK - sizeof(frame);
	memcpy(fix_ram(f, FIX_STACK - sizeof(frame)), frame, sizeof(frame));
	CHECK_EQ(HANDLER, run_to_hlt(f));
	CHECK_EQ(FIX_STACK_INNER - 40, f->cpu->gpr[X86_RSP]);
	CHECK_EQ(0, frame32(f, 0));
	CHECK_EQ(0x101, frame32(f, 1));
	CHECK_EQ(0x600, frame32(f, 2));
	CHECK(frame32(f, 3) & RFLAGS_VM);
	CHECK_EQ(0x777, frame32(f, 7)); /* DS */
}
