/* Tests of the run loop: events, shadows, stepping, faults that restart, code that changes. */
#include "fake_engine_ops.h"

#include <time.h>

/* --- plain running -----------------------------------------------------------------------------
 */

TEST(a_loop_computes_a_sum)
{
	static const uint8_t code[] = {
		0x31, 0xc0,                   /* xor eax, eax */
		0xb9, 0x64, 0x00, 0x00, 0x00, /* mov ecx, 100 */
		0x48, 0x01, 0xc8,             /* again: add rax, rcx */
		0x48, 0xff, 0xc9,             /* dec rcx */
		0x75, 0xf8,                   /* jnz again */
		0xf4,                         /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);
	struct engine_stats st;

	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(5050, g->state.gpr[X86_RAX]);
	CHECK_EQ(SG_CODE + sizeof(code), g->state.rip);
	engine_soft.cpu_stats(g->cpu[0], &st);
	if (st.counted)
		CHECK_EQ(2 + 3 * 100 + 1, st.insns);
	soft_guest_destroy(g);
}

TEST(call_and_ret_nest)
{
	static const uint8_t code[] = {
		0xbf, 0x0a, 0x00, 0x00, 0x00, /* mov edi, 10 */
		0xe8, 0x01, 0x00, 0x00, 0x00, /* call fib */
		0xf4,                         /* hlt */
		0x83, 0xff, 0x02,             /* fib: cmp edi, 2 */
		0x73, 0x03,                   /* jae more */
		0x89, 0xf8,                   /* mov eax, edi */
		0xc3,                         /* ret */
		0x57,                         /* more: push rdi */
		0xff, 0xcf,                   /* dec edi */
		0xe8, 0xf0, 0xff, 0xff, 0xff, /* call fib */
		0x5f,                         /* pop rdi */
		0x50,                         /* push rax */
		0x83, 0xef, 0x02,             /* sub edi, 2 */
		0xe8, 0xe6, 0xff, 0xff, 0xff, /* call fib */
		0x59,                         /* pop rcx */
		0x01, 0xc8,                   /* add eax, ecx */
		0xc3,                         /* ret */
	};
	struct soft_guest *g = soft_guest_create(1);

	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(55, g->state.gpr[X86_RAX]);
	CHECK_EQ(SG_STACK, g->state.gpr[X86_RSP]);
	soft_guest_destroy(g);
}

TEST(real_mode_code_wraps_nothing_and_stops_at_the_segment_end)
{
	static const uint8_t code[] = {
		0xb8, 0x34, 0x12, /* mov ax, 0x1234 */
		0xbb, 0x00, 0x20, /* mov bx, 0x2000 */
		0x8e, 0xdb,       /* mov ds, bx */
		0xa3, 0x10, 0x00, /* mov [0x10], ax */
		0xe9, 0xf0, 0xff, /* jmp 0x10000 + 0xfffe */
	};
	static const uint8_t tail[] = {0x90, 0x90}; /* nop; nop, then the segment ends */
	struct soft_guest *g = soft_guest_create(1);

	x86_state_reset(&g->state);
	g->state.seg[X86_CS].base = SG_CODE;
	g->state.seg[X86_CS].selector = SG_CODE >> 4;
	sg_put(g, SG_CODE, code, sizeof(code));
	sg_put(g, SG_CODE + 0xfffe, tail, sizeof(tail));
	g->state.rip = 0;
	sg_load(g);
	CHECK_EQ(ENGINE_EXIT_DEBUG, sg_run(g));
	CHECK_EQ(X86_EXC_GP, g->info.vector);
	CHECK_EQ(0x10000, g->state.rip);
	CHECK_EQ(0x1234, sg_get64(g, 0x20010) & 0xffff);
	soft_guest_destroy(g);
}

TEST(code_in_mmio_runs)
{
	static const uint8_t code[] = {
		0x48, 0xff, 0xc0, /* inc rax */
		0x48, 0xff, 0xc0, /* inc rax */
		0xf4,             /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->machine[0].rom_at = SG_MMIO;
	memcpy(g->machine[0].rom + 16, code, sizeof(code));
	g->state.rip = SG_MMIO + 16;
	sg_load(g);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(2, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

/* --- faults ------------------------------------------------------------------------------------
 */

TEST(a_push_that_faults_changes_nothing_and_restarts)
{
	static const uint8_t code[] = {
		0x50, /* push rax */
		0xf4, /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	sg_map(g, SG_STACK - PAGE_SIZE, 0);
	g->state.gpr[X86_RAX] = 0x1122334455667788;
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_PF, g->info.vector);
	CHECK_EQ(PF_W, g->info.error_code);
	CHECK_EQ(SG_STACK - 8, g->info.cr2);
	CHECK_EQ(SG_CODE, g->state.rip);
	CHECK_EQ(SG_STACK, g->state.gpr[X86_RSP]);
	sg_map(g, SG_STACK - PAGE_SIZE, (SG_STACK - PAGE_SIZE) | SG_PTE);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(0x1122334455667788, sg_get64(g, SG_STACK - 8));
	soft_guest_destroy(g);
}

TEST(a_fault_behind_jumps_not_taken_is_precise_and_restarts)
{
	static const uint8_t code[] = {
		0xbf, 0x14, 0x00, 0x00, 0x00, /* mov edi, 20 */
		0xff, 0xc0,                   /* again: inc eax */
		0x83, 0xff, 0x64,             /* cmp edi, 100 */
		0x74, 0x14,                   /* je out */
		0x83, 0xff, 0x0a,             /* cmp edi, 10 */
		0x48, 0x0f, 0x44, 0xf3,       /* cmovz rsi, rbx */
		0x83, 0xff, 0x05,             /* cmp edi, 5 */
		0x72, 0x02,                   /* jb skip */
		0xff, 0xc1,                   /* inc ecx */
		0x8b, 0x16,                   /* skip: mov edx, [rsi] */
		0xff, 0xcf,                   /* dec edi */
		0x75, 0xe5,                   /* jnz again */
		0xf4,                         /* out: hlt */
	};
	struct soft_guest *g = soft_guest_create(1);
	uint64_t *gpr = g->state.gpr;

	sg_map(g, SG_DATA + PAGE_SIZE, 0);
	gpr[X86_RAX] = gpr[X86_RCX] = 0;
	gpr[X86_RSI] = SG_DATA;
	gpr[X86_RBX] = SG_DATA + PAGE_SIZE;
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_PF, g->info.vector);
	CHECK_EQ(SG_DATA + PAGE_SIZE, g->info.cr2);
	CHECK_EQ(SG_CODE + 0x1a, g->state.rip);
	CHECK_EQ(11, gpr[X86_RAX]);
	CHECK_EQ(11, gpr[X86_RCX]);
	CHECK_EQ(10, gpr[X86_RDI]);
	CHECK_EQ(0, g->state.rflags & RFLAGS_CF);
	gpr[X86_RSI] = gpr[X86_RBX] = SG_DATA;
	sg_load(g);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(20, gpr[X86_RAX]);
	CHECK_EQ(16, gpr[X86_RCX]);
	CHECK_EQ(0, gpr[X86_RDI]);
	soft_guest_destroy(g);
}

TEST(pop_to_memory_based_on_rsp_uses_the_new_rsp_and_restarts)
{
	static const uint8_t code[] = {
		0x8f, 0x44, 0x24, 0x08, /* pop qword [rsp + 8] */
		0xf4,                   /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->state.gpr[X86_RSP] = SG_STACK - 16;
	sg_put64(g, SG_STACK - 16, 0xabcdef);
	sg_map(g, SG_STACK, 0);
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(SG_STACK, g->info.cr2);
	CHECK_EQ(SG_STACK - 16, g->state.gpr[X86_RSP]);
	sg_map(g, SG_STACK, SG_STACK | SG_PTE);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(0xabcdef, sg_get64(g, SG_STACK));
	CHECK_EQ(SG_STACK - 8, g->state.gpr[X86_RSP]);
	soft_guest_destroy(g);
}

TEST(a_fetch_over_a_page_edge_faults_at_the_second_page)
{
	static const uint8_t code[] = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xf4}; /* mov rax, .. */
	struct soft_guest *g = soft_guest_create(1);
	const gpa_t at = SG_CODE + PAGE_SIZE - 4;

	sg_put(g, at, code, sizeof(code));
	sg_map(g, SG_CODE + PAGE_SIZE, 0);
	g->state.rip = at;
	sg_load(g);
	CHECK_EQ(ENGINE_EXIT_DEBUG, sg_run(g));
	CHECK_EQ(X86_EXC_PF, g->info.vector);
	CHECK_EQ(SG_CODE + PAGE_SIZE, g->info.cr2);
	CHECK_EQ(at, g->state.rip);
	sg_map(g, SG_CODE + PAGE_SIZE, (SG_CODE + PAGE_SIZE) | SG_PTE);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(0x0807060504030201, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(a_jump_to_a_non_canonical_address_faults_at_the_jump)
{
	static const uint8_t code[] = {
		0x48, 0xb8, 0x00, 0x00, 0x00,
		0x00, 0x00, 0x80, 0x00, 0x00, /* mov rax, 0x800000000000 */
		0xff, 0xe0,                   /* jmp rax */
	};
	struct soft_guest *g = soft_guest_create(1);

	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_GP, g->info.vector);
	CHECK_EQ(SG_CODE + 10, g->state.rip);
	soft_guest_destroy(g);
}

TEST(division_overflow_and_zero_are_divide_errors)
{
	static const uint8_t by_zero[] = {
		0x31, 0xc9, /* xor ecx, ecx */
		0xf7, 0xf1, /* div ecx */
	};
	static const uint8_t too_big[] = {
		0xba, 0x05, 0x00, 0x00, 0x00, /* mov rdx, 5 */
		0xb9, 0x05, 0x00, 0x00, 0x00, /* mov rcx, 5 */
		0x48, 0xf7, 0xf1,             /* div rcx */
	};
	static const uint8_t min_by_minus_one[] = {
		0xb8, 0x00, 0x00, 0x00, 0x80, /* mov eax, 0x80000000 */
		0x99,                         /* cdq */
		0xb9, 0xff, 0xff, 0xff, 0xff, /* mov ecx, -1 */
		0xf7, 0xf9,                   /* idiv ecx */
	};
	static const uint8_t just_fits[] = {
		0xb8, 0x00, 0x00, 0x00, 0x80, /* mov eax, 0x80000000 */
		0x99,                         /* cdq */
		0xb9, 0x01, 0x00, 0x00, 0x00, /* mov ecx, 1 */
		0xf7, 0xf9,                   /* idiv ecx */
		0xf4,                         /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, by_zero, sizeof(by_zero)));
	CHECK_EQ(X86_EXC_DE, g->info.vector);
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, too_big, sizeof(too_big)));
	CHECK_EQ(X86_EXC_DE, g->info.vector);
	CHECK_EQ(ENGINE_EXIT_DEBUG,
		 soft_guest_run_code(g, min_by_minus_one, sizeof(min_by_minus_one)));
	CHECK_EQ(X86_EXC_DE, g->info.vector);
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, just_fits, sizeof(just_fits)));
	CHECK_EQ(0x80000000, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(a_handler_gets_the_fault_and_returns)
{
	static const uint8_t code[] = {
		0x48, 0x8b, 0x04, 0x25, 0x00, 0x10, 0x02, 0x00, /* mov rax, [0x21000] */
		0x48, 0x89, 0xc3,                               /* mov rbx, rax */
		0xf4,                                           /* hlt */
	};
	/* Maps the page again and drops the error code. */
	static const uint8_t handler[] = {
		0x48, 0x83, 0xc4, 0x08, /* add rsp, 8 */
		0x0f, 0x20, 0xd1,       /* mov rcx, cr2 */
		0x48, 0xc7, 0x04, 0x25, 0x08, 0x41,
		0x00, 0x00, 0x67, 0x10, 0x02, 0x00, /* mov qword [0x4000 + 0x21 * 8], 0x21067 */
		0x0f, 0x01, 0x39,                   /* invlpg [rcx] */
		0x48, 0xcf,                         /* iretq */
	};
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_HANDLERS, handler, sizeof(handler));
	sg_gate(g, X86_EXC_PF, SG_HANDLERS);
	sg_put64(g, 0x21000, 77);
	sg_map(g, 0x21000, 0);
	sg_intercept(g, ~(uint32_t)BIT(X86_EXC_PF));
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(77, g->state.gpr[X86_RBX]);
	CHECK_EQ(0x21000, g->state.gpr[X86_RCX]);
	CHECK_EQ(SG_STACK, g->state.gpr[X86_RSP]);
	soft_guest_destroy(g);
}

TEST(a_fault_without_a_handler_becomes_a_double_fault)
{
	static const uint8_t code[] = {
		0x0f, 0x0b, /* ud2 */
	};
	struct soft_guest *g = soft_guest_create(1);

	sg_intercept(g, (uint32_t)BIT(X86_EXC_DF)); /* no gates: #UD, then #NP, then #GP ... */
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_DF, g->info.vector);
	CHECK_EQ(SG_CODE, g->state.rip);
	soft_guest_destroy(g);
}

TEST(a_triple_fault_shuts_down_with_the_state_of_the_first)
{
	static const uint8_t code[] = {
		0xb8, 0x05, 0x00, 0x00, 0x00, /* mov eax, 5 */
		0x0f, 0x0b,                   /* ud2 */
	};
	struct soft_guest *g = soft_guest_create(1);

	sg_intercept(g, 0);
	CHECK_EQ(ENGINE_EXIT_SHUTDOWN, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(SG_CODE + 5, g->state.rip);
	CHECK_EQ(5, g->state.gpr[X86_RAX]);
	CHECK_EQ(SG_STACK, g->state.gpr[X86_RSP]);
	soft_guest_destroy(g);
}

/* --- code that changes -------------------------------------------------------------------------
 */

TEST(a_store_to_the_next_instruction_is_seen)
{
	/* The byte written is the immediate of the very next instruction, in the same block. */
	static const uint8_t code[] = {
		0xc6, 0x05, 0x01, 0x00, 0x00, 0x00, 0x07, /* mov byte [rel patch + 1], 7 */
		0xb8, 0x01, 0x00, 0x00, 0x00,             /* patch: mov eax, 1 */
		0xf4,                                     /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);
	struct engine_stats st;

	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(7, g->state.gpr[X86_RAX]);
	engine_soft.cpu_stats(g->cpu[0], &st);
	CHECK_EQ(1, st.smc_hits);
	soft_guest_destroy(g);
}

TEST(a_store_behind_a_jump_not_taken_is_seen)
{
	static const uint8_t code[] = {
		0xbf, 0x14, 0x00, 0x00, 0x00, /* mov edi, 20 */
		0x83, 0xff, 0x03,             /* again: cmp edi, 3 */
		0x48, 0x0f, 0x44, 0xf3,       /* cmovz rsi, rbx */
		0x88, 0x16,                   /* mov [rsi], dl */
		0x83, 0xff, 0x64,             /* cmp edi, 100 */
		0x74, 0x0c,                   /* je out */
		0xb8, 0x01, 0x00, 0x00, 0x00, /* patch: mov eax, 1 */
		0x01, 0xc1,                   /* add ecx, eax */
		0xff, 0xcf,                   /* dec edi */
		0x75, 0xe7,                   /* jnz again */
		0xf4, 0xf4,                   /* hlt; out: hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->state.gpr[X86_RCX] = 0;
	g->state.gpr[X86_RDX] = 7;
	g->state.gpr[X86_RSI] = SG_DATA;
	g->state.gpr[X86_RBX] = SG_CODE + 0x14;
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(17 + 3 * 7, g->state.gpr[X86_RCX]);
	CHECK_EQ(SG_CODE + 0x1f, g->state.rip);
	soft_guest_destroy(g);
}

TEST(a_store_to_another_block_is_seen)
{
	static const uint8_t code[] = {
		0xe8, 0xfb, 0x00, 0x00, 0x00, /* call 0x10100 */
		0x89, 0xc3,                   /* mov ebx, eax */
		0xc7, 0x04, 0x25, 0x01, 0x01, 0x01,
		0x00, 0x55, 0x00, 0x00, 0x00, /* mov dword [0x10101], 0x55 */
		0xe8, 0xe9, 0x00, 0x00, 0x00, /* call 0x10100 */
		0xf4,                         /* hlt */
	};
	static const uint8_t sub[] = {0xb8, 1, 0, 0, 0, 0xc3}; /* mov eax, 1; ret */
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_CODE + 0x100, sub, sizeof(sub));
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(1, g->state.gpr[X86_RBX]);
	CHECK_EQ(0x55, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(a_store_to_an_instruction_over_a_page_edge_is_seen)
{
	/* At SG_CODE + PAGE_SIZE - 2: mov eax, imm32; ret: the immediate is in the second page. */
	static const uint8_t sub[] = {0xb8, 1, 2, 0, 0, 0xc3};
	static const uint8_t code[] = {
		0xe8, 0xf9, 0x0f, 0x00, 0x00,                   /* call 0x10ffe */
		0x89, 0xc3,                                     /* mov ebx, eax */
		0xc6, 0x04, 0x25, 0x00, 0x10, 0x01, 0x00, 0x09, /* mov byte [0x11000], 9 */
		0xe8, 0xea, 0x0f, 0x00, 0x00,                   /* call 0x10ffe */
		0x89, 0xc1,                                     /* mov ecx, eax */
		0xc6, 0x04, 0x25, 0xff, 0x0f, 0x01, 0x00, 0x08, /* mov byte [0x10fff], 8 */
		0xe8, 0xdb, 0x0f, 0x00, 0x00,                   /* call 0x10ffe */
		0xf4,                                           /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_CODE + PAGE_SIZE - 2, sub, sizeof(sub));
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(0x201, g->state.gpr[X86_RBX]);
	CHECK_EQ(0x901, g->state.gpr[X86_RCX]);
	CHECK_EQ(0x908, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(a_rep_store_over_code_is_seen)
{
	static const uint8_t code[] = {
		0xe8, 0xfb, 0x1f, 0x00, 0x00,                   /* call 0x12000 */
		0x89, 0xc3,                                     /* mov ebx, eax */
		0xbf, 0x00, 0x20, 0x01, 0x00,                   /* mov edi, 0x12000 */
		0xb9, 0x00, 0x10, 0x00, 0x00,                   /* mov ecx, 4096 */
		0xb0, 0x90,                                     /* mov al, 0x90 */
		0xf3, 0xaa,                                     /* rep stosb */
		0xc6, 0x04, 0x25, 0xfd, 0x2f, 0x01, 0x00, 0xb0, /* mov byte [0x12ffd], 0xb0 */
		0xc6, 0x04, 0x25, 0xfe, 0x2f, 0x01, 0x00, 0x42, /* mov byte [0x12ffe], 0x42 */
		0xc6, 0x04, 0x25, 0xff, 0x2f, 0x01, 0x00, 0xc3, /* mov byte [0x12fff], 0xc3 */
		0xe8, 0xce, 0x1f, 0x00, 0x00,                   /* call 0x12000 */
		0xf4,                                           /* hlt */
	};
	static const uint8_t sub[] = {0xb8, 1, 0, 0, 0, 0xc3}; /* mov eax, 1; ret */
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, 0x12000, sub, sizeof(sub));
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(1, g->state.gpr[X86_RBX]);
	CHECK_EQ(0x42, g->state.gpr[X86_RAX] & 0xff);
	soft_guest_destroy(g);
}

static void dma_patches_code(struct fake_machine *m, uint16_t port, uint32_t value)
{
	const uint8_t imm = (uint8_t)value;

	CHECK_EQ(0, mem_write(((struct soft_guest *)m->test)->mem, SG_CODE + 0x101, &imm, 1));
}

TEST(a_write_by_dma_is_seen)
{
	static const uint8_t code[] = {
		0xe8, 0xfb, 0x00, 0x00, 0x00, /* call 0x10100 */
		0x89, 0xc3,                   /* mov ebx, eax */
		0xb0, 0x33,                   /* mov al, 0x33 */
		0xe6, 0x80,                   /* out 0x80, al */
		0xe8, 0xf0, 0x00, 0x00, 0x00, /* call 0x10100 */
		0xf4,                         /* hlt */
	};
	static const uint8_t sub[] = {0xb8, 1, 0, 0, 0, 0xc3};
	struct soft_guest *g = soft_guest_create(1);

	g->machine[0].on_pio_write = dma_patches_code;
	sg_put(g, SG_CODE + 0x100, sub, sizeof(sub));
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(1, g->state.gpr[X86_RBX]);
	CHECK_EQ(0x33, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(the_same_code_through_another_mapping_is_seen_to_change)
{
	/* 0x14000 shows the page of 0x12000. */
	static const uint8_t code[] = {
		0xe8, 0xfb, 0x1f, 0x00, 0x00,                   /* call 0x12000 */
		0x89, 0xc3,                                     /* mov ebx, eax */
		0xc6, 0x04, 0x25, 0x01, 0x40, 0x01, 0x00, 0x06, /* mov byte [0x14001], 6 */
		0xe8, 0xec, 0x1f, 0x00, 0x00,                   /* call 0x12000 */
		0xf4,                                           /* hlt */
	};
	static const uint8_t sub[] = {0xb8, 1, 0, 0, 0, 0xc3};
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, 0x12000, sub, sizeof(sub));
	sg_map(g, 0x14000, 0x12000 | SG_PTE);
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(1, g->state.gpr[X86_RBX]);
	CHECK_EQ(6, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(a_page_that_became_data_is_stored_to_quickly_again)
{
	/* Runs code from 0x12000 once, then stores 100000 times over it. */
	static const uint8_t code[] = {
		0xe8, 0xfb, 0x1f, 0x00, 0x00,                   /* call 0x12000 */
		0xb9, 0xa0, 0x86, 0x01, 0x00,                   /* mov ecx, 100000 */
		0x48, 0x89, 0x0c, 0x25, 0x00, 0x20, 0x01, 0x00, /* again: mov [0x12000], rcx */
		0x48, 0xff, 0xc9,                               /* dec rcx */
		0x75, 0xf3,                                     /* jnz again */
		0xf4,                                           /* hlt */
	};
	static const uint8_t sub[] = {0xb8, 1, 0, 0, 0, 0xc3};
	struct soft_guest *g = soft_guest_create(1);
	struct engine_stats st;

	sg_put(g, 0x12000, sub, sizeof(sub));
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	engine_soft.cpu_stats(g->cpu[0], &st);
	CHECK(st.smc_hits < 100);
	CHECK_EQ(1, sg_get64(g, 0x12000));
	soft_guest_destroy(g);
}

TEST(more_code_than_the_cache_holds_runs_all_the_same)
{
	/* inc eax; nop; ... over 5 MiB, three times. */
	static const uint8_t code[] = {0xff, 0xd3, 0xff, 0xd3, 0xff, 0xd3, 0xf4}; /* call rbx x 3 */
	enum { FROM = 0x200000, SIZE = 5 * 1024 * 1024, STEP = 8 };
	uint8_t *bytes = malloc(SIZE);
	struct soft_guest *g = soft_guest_create(1);

	memset(bytes, 0x90, SIZE);
	for (unsigned i = 0; i + STEP < SIZE; i += STEP)
		memcpy(bytes + i, "\xff\xc0", 2);
	bytes[SIZE - 1] = 0xc3;
	sg_put(g, FROM, bytes, SIZE);
	g->state.gpr[X86_RBX] = FROM;
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(3 * (SIZE / STEP - 1), g->state.gpr[X86_RAX]);
	free(bytes);
	soft_guest_destroy(g);
}

struct runner {
	struct soft_guest *g;
	unsigned cpu;
	enum engine_exit why;
};

static void *run_thread(void *arg)
{
	struct runner *r = arg;
	struct engine_exit_info info;

	r->why = engine_soft.cpu_run(r->g->cpu[r->cpu], &info);
	return NULL;
}

TEST(a_store_by_another_vcpu_is_seen)
{
	/* vCPU 0 calls until the routine returns 2, counting in RCX; vCPU 1 patches the routine
	 * 1 -> 3 -> 1 ... many times and ends with 2. */
	static const uint8_t waiter[] = {
		0x48, 0xff, 0xc1,             /* again: inc rcx */
		0xe8, 0xf8, 0x1f, 0x00, 0x00, /* call 0x12000 */
		0x83, 0xf8, 0x02,             /* cmp eax, 2 */
		0x75, 0xf3,                   /* jne again */
		0xf4,                         /* hlt */
	};
	static const uint8_t patcher[] = {
		0xb9, 0x20, 0x4e, 0x00, 0x00,                   /* mov ecx, 20000 */
		0xc6, 0x04, 0x25, 0x01, 0x20, 0x01, 0x00, 0x03, /* again: mov byte [0x12001], 3 */
		0xf3, 0x90,                                     /* pause */
		0xc6, 0x04, 0x25, 0x01, 0x20, 0x01, 0x00, 0x01, /* mov byte [0x12001], 1 */
		0xff, 0xc9,                                     /* dec ecx */
		0x75, 0xea,                                     /* jnz again */
		0xc6, 0x04, 0x25, 0x01, 0x20, 0x01, 0x00, 0x02, /* mov byte [0x12001], 2 */
		0xf4,                                           /* hlt */
	};
	static const uint8_t sub[] = {0xb8, 1, 0, 0, 0, 0xc3};
	struct soft_guest *g = soft_guest_create(2);
	struct runner r[2] = {{g, 0, 0}, {g, 1, 0}};
	pthread_t t[2];

	sg_put(g, SG_CODE, waiter, sizeof(waiter));
	sg_put(g, 0x13000, patcher, sizeof(patcher));
	sg_put(g, 0x12000, sub, sizeof(sub));
	g->state.rip = 0x13000;
	g->state.gpr[X86_RSP] = SG_STACK - 0x1000;
	CHECK_EQ(0, engine_soft.cpu_set(g->cpu[1], &g->state, NULL));
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(0, pthread_create(&t[i], NULL, run_thread, &r[i]));
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(0, pthread_join(t[i], NULL));
	CHECK_EQ(ENGINE_EXIT_HALTED, r[0].why);
	CHECK_EQ(ENGINE_EXIT_HALTED, r[1].why);
	engine_soft.cpu_get(g->cpu[0], &g->state);
	CHECK_EQ(2, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(locked_increments_of_two_vcpus_all_count)
{
	static const uint8_t code[] = {
		0xb9, 0x40, 0x0d, 0x03, 0x00, /* mov ecx, 200000 */
		0xf0, 0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x02,
		0x00, /* again: lock inc qword [0x20000] */
		0xf0, 0xff, 0x04, 0x25, 0xfe, 0x0f, 0x02, 0x00, /* lock inc dword [0x20ffe] */
		0xff, 0xc9,                                     /* dec ecx */
		0x75, 0xeb,                                     /* jnz again */
		0xf4,                                           /* hlt */
	};
	struct soft_guest *g = soft_guest_create(2);
	struct runner r[2] = {{g, 0, 0}, {g, 1, 0}};
	uint32_t split = 0;
	pthread_t t[2];

	sg_put(g, SG_CODE, code, sizeof(code));
	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ(0, engine_soft.cpu_set(g->cpu[i], &g->state, NULL));
		CHECK_EQ(0, pthread_create(&t[i], NULL, run_thread, &r[i]));
	}
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(0, pthread_join(t[i], NULL));
	CHECK_EQ(400000, sg_get64(g, 0x20000));
	CHECK_EQ(0, mem_read(g->mem, 0x20ffe, &split, 4)); /* crosses a page */
	CHECK_EQ(400000, split);
	soft_guest_destroy(g);
}

/* --- events ------------------------------------------------------------------------------------
 */

TEST(hlt_leaves_and_an_interrupt_wakes)
{
	static const uint8_t code[] = {
		0xfb,       /* sti */
		0xf4,       /* hlt */
		0xff, 0xc3, /* inc ebx */
		0xfa,       /* cli */
		0xf4,       /* hlt */
	};
	static const uint8_t handler[] = {0xff, 0xc1, 0x48, 0xcf}; /* inc ecx; iretq */
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_HANDLERS, handler, sizeof(handler));
	sg_gate(g, 0x41, SG_HANDLERS);
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_MP_HALTED, g->state.mp_state);
	CHECK_EQ(SG_CODE + 2, g->state.rip);
	fake_interrupt(&g->machine[0], 0x41);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(1, g->state.gpr[X86_RCX]);
	CHECK_EQ(1, g->state.gpr[X86_RBX]);
	CHECK_EQ(1, g->machine[0].nr_acks);
	soft_guest_destroy(g);
}

TEST(an_interrupt_waits_for_if_and_the_sti_shadow)
{
	/* Pending from the start; RBX at the time of the interrupt tells when it came. */
	static const uint8_t code[] = {
		0xbb, 0x01, 0x00, 0x00, 0x00, /* mov ebx, 1 */
		0xbb, 0x02, 0x00, 0x00, 0x00, /* mov ebx, 2 */
		0xfb,                         /* sti */
		0xbb, 0x03, 0x00, 0x00, 0x00, /* mov ebx, 3 */
		0xbb, 0x04, 0x00, 0x00, 0x00, /* mov ebx, 4 */
		0xfa,                         /* cli */
		0xf4,                         /* hlt */
	};
	static const uint8_t handler[] = {0x89, 0xd9, 0x48, 0xcf}; /* mov ecx, ebx; iretq */
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_HANDLERS, handler, sizeof(handler));
	sg_gate(g, 0x41, SG_HANDLERS);
	fake_interrupt(&g->machine[0], 0x41);
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(3, g->state.gpr[X86_RCX]);
	CHECK_EQ(4, g->state.gpr[X86_RBX]);
	soft_guest_destroy(g);
}

TEST(a_load_of_ss_holds_interrupts_for_one_instruction)
{
	static const uint8_t code[] = {
		0x66, 0x8c, 0xd0,             /* mov ax, ss */
		0xbb, 0x01, 0x00, 0x00, 0x00, /* mov ebx, 1 */
		0x8e, 0xd0,                   /* mov ss, ax */
		0xbb, 0x02, 0x00, 0x00, 0x00, /* mov ebx, 2 */
		0xbb, 0x03, 0x00, 0x00, 0x00, /* mov ebx, 3 */
		0xfa,                         /* cli */
		0xf4,                         /* hlt */
	};
	static const uint8_t handler[] = {0x89, 0xd9, 0x48, 0xcf};
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_HANDLERS, handler, sizeof(handler));
	sg_gate(g, 0x41, SG_HANDLERS);
	g->state.rflags |= RFLAGS_IF;
	g->state.int_shadow = 2; /* over "mov ax, ss" */
	fake_interrupt(&g->machine[0], 0x41);
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(0, g->state.gpr[X86_RCX]); /* right after the shadow: RBX not yet written */
	soft_guest_destroy(g);
}

static void another_nmi(struct fake_machine *m, uint16_t port, uint32_t value)
{
	if (m->nr_pio == 1)
		engine_soft.cpu_nmi(m->cpu);
}

TEST(nmi_is_taken_once_until_iret)
{
	static const uint8_t code[] = {
		0xbb, 0x01, 0x00, 0x00, 0x00, /* mov ebx, 1 */
		0xf4,                         /* hlt */
	};
	/* A second NMI arrives with the first port write and is held until IRET. */
	static const uint8_t handler[] = {
		0xff, 0xc1, /* inc ecx */
		0xe6, 0x10, /* out 0x10, al */
		0x89, 0xc8, /* mov eax, ecx */
		0xe6, 0x11, /* out 0x11, al */
		0x48, 0xcf, /* iretq */
	};
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_HANDLERS, handler, sizeof(handler));
	sg_gate(g, 2, SG_HANDLERS);
	g->machine[0].on_pio_write = another_nmi;
	g->state.nmi_pending = 1;
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(2, g->state.gpr[X86_RCX]);
	CHECK_EQ(4, g->machine[0].nr_pio);
	CHECK_EQ(1, g->machine[0].pio[1].value);
	CHECK_EQ(0, g->state.nmi_masked);
	soft_guest_destroy(g);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

TEST(a_kick_stops_an_endless_loop)
{
	static const uint8_t loop[] = {0xeb, 0xfe};
	struct soft_guest *g = soft_guest_create(1);
	struct runner r = {g, 0, 0};
	const struct timespec ms = {.tv_nsec = 1000000};
	uint64_t kicked;
	pthread_t t;

	sg_put(g, SG_CODE, loop, sizeof(loop));
	sg_load(g);
	CHECK_EQ(0, pthread_create(&t, NULL, run_thread, &r));
	nanosleep(&ms, NULL);
	kicked = now_ns();
	engine_soft.cpu_kick(g->cpu[0]);
	CHECK_EQ(0, pthread_join(t, NULL));
	CHECK_EQ(ENGINE_EXIT_KICKED, r.why);
	CHECK(now_ns() - kicked < 1000000000);
	soft_guest_destroy(g);
}

static void kick_at_100(struct fake_machine *m, uint16_t port, uint32_t value)
{
	if (m->nr_pio == 100)
		engine_soft.cpu_kick(m->cpu);
}

TEST(a_kick_stops_a_long_rep_between_iterations)
{
	static const uint8_t code[] = {
		0xf3, 0x6e, /* rep outsb */
		0xf4,       /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->machine[0].on_pio_write = kick_at_100;
	g->state.gpr[X86_RSI] = SG_DATA;
	g->state.gpr[X86_RCX] = 1000;
	CHECK_EQ(ENGINE_EXIT_KICKED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(SG_CODE, g->state.rip);
	CHECK(g->state.gpr[X86_RCX] > 0 && g->state.gpr[X86_RCX] <= 900);
	CHECK_EQ(1000 - g->state.gpr[X86_RCX], g->machine[0].nr_pio);
	CHECK_EQ(SG_DATA + g->machine[0].nr_pio, g->state.gpr[X86_RSI]);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(1000, g->machine[0].nr_pio);
	soft_guest_destroy(g);
}

TEST(a_waiting_processor_stays_halted_until_its_state_is_set)
{
	static const uint8_t code[] = {0xff, 0xc0, 0xf4}; /* inc eax; hlt */
	struct soft_guest *g = soft_guest_create(1);

	g->state.mp_state = X86_MP_WAIT_SIPI;
	sg_put(g, SG_CODE, code, sizeof(code));
	sg_load(g);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(0, g->state.gpr[X86_RAX]);
	CHECK_EQ(X86_MP_WAIT_SIPI, g->state.mp_state);
	g->state.mp_state = X86_MP_RUNNABLE;
	sg_load(g);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(1, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

/* --- single-stepping ---------------------------------------------------------------------------
 */

TEST(the_trap_flag_traps_after_each_instruction)
{
	static const uint8_t code[] = {
		0x9c,                                     /* pushfq */
		0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, /* or dword [rsp], 0x100 */
		0x9d,                                     /* popfq */
		0xff, 0xc3,                               /* inc ebx */
		0xff, 0xc3,                               /* inc ebx */
		0xf4,                                     /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_DB, g->info.vector);
	CHECK_EQ(1, g->state.gpr[X86_RBX]); /* not after POPF, but after the next one */
	CHECK_EQ(0x4000, g->state.dr6 & 0x4000);
	CHECK_EQ(ENGINE_EXIT_DEBUG, sg_run(g));
	CHECK_EQ(2, g->state.gpr[X86_RBX]);
	soft_guest_destroy(g);
}

TEST(the_trap_flag_traps_between_iterations_of_rep)
{
	static const uint8_t code[] = {
		0xf3, 0xaa, /* rep stosb */
		0xf4,       /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->state.gpr[X86_RDI] = SG_DATA;
	g->state.gpr[X86_RCX] = 3;
	g->state.rflags |= RFLAGS_TF;
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(2, g->state.gpr[X86_RCX]);
	CHECK_EQ(SG_CODE, g->state.rip);
	CHECK_EQ(ENGINE_EXIT_DEBUG, sg_run(g));
	CHECK_EQ(1, g->state.gpr[X86_RCX]);
	CHECK_EQ(ENGINE_EXIT_DEBUG, sg_run(g));
	CHECK_EQ(0, g->state.gpr[X86_RCX]);
	CHECK_EQ(SG_CODE + 2, g->state.rip);
	soft_guest_destroy(g);
}

TEST(a_debugger_steps_one_instruction)
{
	static const uint8_t code[] = {
		0xff, 0xc0, /* inc eax */
		0xff, 0xc0, /* inc eax */
		0xf4,       /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_CODE, code, sizeof(code));
	engine_soft.cpu_debug(g->cpu[0], &(struct engine_debug){.single_step = true});
	sg_load(g);
	CHECK_EQ(ENGINE_EXIT_DEBUG, sg_run(g));
	CHECK_EQ(1, g->state.gpr[X86_RAX]);
	CHECK_EQ(SG_CODE + 2, g->state.rip);
	engine_soft.cpu_debug(g->cpu[0], &(struct engine_debug){0});
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(2, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

/* --- strings and ports -------------------------------------------------------------------------
 */

TEST(rep_movs_restarts_after_a_page_fault_with_exact_registers)
{
	static const uint8_t code[] = {
		0xf3, 0x48, 0xa5, /* rep movsq */
		0xf4,             /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	for (unsigned i = 0; i < 1024; i++)
		sg_put64(g, SG_DATA + i * 8, i);
	sg_map(g, 0x23000, 0); /* second page of the destination, which begins at 0x22ff0 - 0xfe8 */
	g->state.gpr[X86_RSI] = SG_DATA;
	g->state.gpr[X86_RDI] = 0x22008;
	g->state.gpr[X86_RCX] = 1000;
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_PF, g->info.vector);
	CHECK_EQ(0x23000, g->info.cr2);
	CHECK_EQ(SG_CODE, g->state.rip);
	CHECK_EQ(511, 1000 - g->state.gpr[X86_RCX]);
	CHECK_EQ(0x23000, g->state.gpr[X86_RDI]);
	CHECK_EQ(SG_DATA + 511 * 8, g->state.gpr[X86_RSI]);
	sg_map(g, 0x23000, 0x23000 | SG_PTE);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(0, g->state.gpr[X86_RCX]);
	for (unsigned i = 0; i < 1000; i++)
		CHECK_EQ(i, sg_get64(g, 0x22008 + i * 8));
	soft_guest_destroy(g);
}

TEST(rep_movs_that_overlaps_repeats_the_pattern)
{
	static const uint8_t code[] = {
		0xbe, 0x00, 0x00, 0x02, 0x00, /* mov esi, 0x20000 */
		0xbf, 0x02, 0x00, 0x02, 0x00, /* mov edi, 0x20002 */
		0xb9, 0x64, 0x00, 0x00, 0x00, /* mov ecx, 100 */
		0xf3, 0x66, 0xa5,             /* rep movsw */
		0xfd,                         /* std */
		0xbe, 0x00, 0x11, 0x02, 0x00, /* mov esi, 0x21100 */
		0xbf, 0x08, 0x11, 0x02, 0x00, /* mov edi, 0x21108 */
		0xb9, 0x04, 0x00, 0x00, 0x00, /* mov ecx, 4 */
		0xf3, 0x48, 0xa5,             /* rep movsq */
		0xf4,                         /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	sg_put64(g, SG_DATA, 0xbeef);
	for (unsigned i = 0; i < 8; i++)
		sg_put64(g, 0x210e8 + i * 8, i + 1);
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(0xbeefbeefbeefbeef, sg_get64(g, SG_DATA + 192));
	CHECK_EQ(0, sg_get64(g, SG_DATA + 202));
	CHECK_EQ(4, sg_get64(g, 0x21108));
	CHECK_EQ(1, sg_get64(g, 0x210f0));
	CHECK_EQ(0x210e0, g->state.gpr[X86_RSI]);
	soft_guest_destroy(g);
}

TEST(scas_and_cmps_stop_where_they_should)
{
	static const uint8_t code[] = {
		0xbf, 0xf0, 0x0f, 0x02, 0x00,             /* mov edi, 0x20ff0 */
		0x48, 0xc7, 0xc1, 0xff, 0xff, 0xff, 0xff, /* mov rcx, -1 */
		0x31, 0xc0,                               /* xor eax, eax */
		0xf2, 0xae,                               /* repne scasb */
		0x49, 0x89, 0xf8,                         /* mov r8, rdi */
		0xbe, 0x00, 0x20, 0x02, 0x00,             /* mov esi, 0x22000 */
		0xbf, 0x00, 0x30, 0x02, 0x00,             /* mov edi, 0x23000 */
		0xb9, 0x32, 0x00, 0x00, 0x00,             /* mov ecx, 50 */
		0xf3, 0xa7,                               /* repe cmpsd */
		0x41, 0x0f, 0x92, 0xc1,                   /* setb r9b */
		0xf4,                                     /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);
	char text[40];

	memset(text, 'x', sizeof(text));
	text[30] = 0;
	sg_put(g, 0x20ff0, text, sizeof(text)); /* over a page edge */
	sg_put64(g, 0x22000 + 80, 5);
	sg_put64(g, 0x23000 + 80, 6);
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(0x20ff0 + 31, g->state.gpr[8]);
	CHECK_EQ(0x22000 + 84, g->state.gpr[X86_RSI]);
	CHECK_EQ(50 - 21, g->state.gpr[X86_RCX]);
	CHECK_EQ(1, g->state.gpr[9]);
	soft_guest_destroy(g);
}

TEST(ins_does_not_read_the_port_when_it_cannot_store)
{
	static const uint8_t code[] = {
		0xba, 0xf0, 0x01, 0x00, 0x00, /* mov edx, 0x1f0 */
		0xbf, 0xfe, 0x0f, 0x02, 0x00, /* mov edi, 0x20ffe */
		0xb9, 0x02, 0x00, 0x00, 0x00, /* mov ecx, 2 */
		0xf3, 0x66, 0x6d,             /* rep insw */
		0xf4,                         /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->machine[0].read_value = 0xabcd;
	sg_map(g, 0x21000, 0);
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_PF, g->info.vector);
	CHECK_EQ(1, g->machine[0].nr_pio);
	CHECK_EQ(1, g->state.gpr[X86_RCX]);
	CHECK_EQ(0xabcd, sg_get64(g, 0x20ff8) >> 48);
	soft_guest_destroy(g);
}

TEST(out_sends_the_size_and_value)
{
	static const uint8_t code[] = {
		0xb8, 0x44, 0x33, 0x22, 0x11, /* mov eax, 0x11223344 */
		0xe6, 0x80,                   /* out 0x80, al */
		0x66, 0xba, 0xf8, 0x0c,       /* mov dx, 0xcf8 */
		0xef,                         /* out dx, eax */
		0x66, 0xef,                   /* out dx, ax */
		0xbe, 0x00, 0x00, 0x02, 0x00, /* mov esi, 0x20000 */
		0x6e,                         /* outsb */
		0xed,                         /* in eax, dx */
		0xf4,                         /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);
	const struct fake_access *io = g->machine[0].pio;

	sg_put64(g, SG_DATA, 0x77);
	g->machine[0].read_value = 0xcafe0001;
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(5, g->machine[0].nr_pio);
	CHECK(io[0].addr == 0x80 && io[0].value == 0x44 && io[0].size == 1);
	CHECK(io[1].addr == 0xcf8 && io[1].value == 0x11223344 && io[1].size == 4);
	CHECK(io[2].value == 0x3344 && io[2].size == 2);
	CHECK(io[3].value == 0x77 && io[3].size == 1 && io[3].write);
	CHECK_EQ(0xcafe0001, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(user_code_needs_the_permission_bitmap)
{
	static const uint8_t code[] = {
		0xe4, 0x60, /* in al, 0x60 */
		0xe4, 0x61, /* in al, 0x61 */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->state.seg[X86_CS] = (struct x86_segment){0, ~0u, 0xa0fb, SG_CS3};
	g->state.seg[X86_SS] = (struct x86_segment){0, ~0u, 0xc0f3, SG_DS3};
	g->state.tr.limit = 0x68 + 0x20;
	sg_put64(g, SG_TSS + 0x60, 0x0068000000000000); /* I/O map base */
	sg_put64(g, SG_TSS + 0x68 + 8, 0x02ull << 32);  /* port 0x61 denied */
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_GP, g->info.vector);
	CHECK_EQ(SG_CODE + 2, g->state.rip);
	CHECK_EQ(1, g->machine[0].nr_pio);
	soft_guest_destroy(g);
}

TEST(a_string_store_to_mmio_reaches_the_device_element_by_element)
{
	static const uint8_t code[] = {
		0xbf, 0x00, 0x00, 0x00, 0x01, /* mov edi, 0x1000000 */
		0xb8, 0x5a, 0x5a, 0x00, 0x00, /* mov eax, 0x5a5a */
		0xb9, 0x03, 0x00, 0x00, 0x00, /* mov ecx, 3 */
		0xf3, 0x66, 0xab,             /* rep stosw */
		0xf4,                         /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);
	const struct fake_access *io = g->machine[0].mmio;

	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(3, g->machine[0].nr_mmio);
	CHECK(io[2].addr == SG_MMIO + 4 && io[2].size == 2 && io[2].value == 0x5a5a);
	soft_guest_destroy(g);
}

/* --- alignment ---------------------------------------------------------------------------------
 */

TEST(alignment_is_checked_only_for_user_code_that_asks)
{
	static const uint8_t code[] = {
		0x48, 0x8b, 0x04, 0x25, 0x01, 0x00, 0x02, 0x00, /* mov rax, [0x20001] */
		0xf4,                                           /* hlt */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->state.cr0 |= CR0_AM;
	g->state.rflags |= RFLAGS_AC;
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	g->state.seg[X86_CS] = (struct x86_segment){0, ~0u, 0xa0fb, SG_CS3};
	g->state.seg[X86_SS] = (struct x86_segment){0, ~0u, 0xc0f3, SG_DS3};
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_AC, g->info.vector);
	soft_guest_destroy(g);
}

TEST(cmpxchg16b_wants_alignment)
{
	static const uint8_t code[] = {
		0xf0, 0x48, 0x0f, 0xc7, 0x0c,
		0x25, 0x10, 0x00, 0x02, 0x00, /* lock cmpxchg16b [0x20010] */
		0xf0, 0x48, 0x0f, 0xc7, 0x0c,
		0x25, 0x18, 0x00, 0x02, 0x00, /* lock cmpxchg16b [0x20018] */
	};
	struct soft_guest *g = soft_guest_create(1);

	g->state.gpr[X86_RBX] = 1;
	g->state.gpr[X86_RCX] = 2;
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_GP, g->info.vector);
	CHECK_EQ(SG_CODE + 10, g->state.rip);
	CHECK_EQ(1, sg_get64(g, 0x20010));
	CHECK_EQ(2, sg_get64(g, 0x20018));
	CHECK_EQ(RFLAGS_ZF, g->state.rflags & RFLAGS_ZF);
	soft_guest_destroy(g);
}

/* --- 32-bit code -------------------------------------------------------------------------------
 */

static struct soft_guest *legacy_guest(void)
{
	struct soft_guest *g = soft_guest_create(1);

	g->state.seg[X86_CS] = (struct x86_segment){0, ~0u, 0xc09b, SG_CS};
	return g;
}

TEST(decimal_adjustments_are_those_of_the_manual)
{
	/* Results go to successive words at EDI. */
	static const uint8_t code[] = {
		0xbf, 0x00, 0x00, 0x02, 0x00, /* mov edi, 0x20000 */
		0xb0, 0x79,                   /* mov al, 0x79 */
		0x04, 0x35,                   /* add al, 0x35 */
		0x27,                         /* daa */
		0xe8, 0x40, 0x00, 0x00, 0x00, /* call put */
		0xb0, 0x35,                   /* mov al, 0x35 */
		0x2c, 0x47,                   /* sub al, 0x47 */
		0x2f,                         /* das */
		0xe8, 0x36, 0x00, 0x00, 0x00, /* call put */
		0x66, 0xb8, 0x09, 0x01,       /* mov ax, 0x0109 */
		0x04, 0x08,                   /* add al, 8 */
		0x37,                         /* aaa */
		0xe8, 0x2a, 0x00, 0x00, 0x00, /* call put */
		0x66, 0xb8, 0x03, 0x02,       /* mov ax, 0x0203 */
		0x2c, 0x08,                   /* sub al, 8 */
		0x3f,                         /* aas */
		0xe8, 0x1e, 0x00, 0x00, 0x00, /* call put */
		0x66, 0xb8, 0x63, 0x00,       /* mov ax, 99 */
		0xd4, 0x0a,                   /* aam */
		0xe8, 0x13, 0x00, 0x00, 0x00, /* call put */
		0x66, 0xb8, 0x05, 0x09,       /* mov ax, 0x0905 */
		0xd5, 0x0a,                   /* aad */
		0xe8, 0x08, 0x00, 0x00, 0x00, /* call put */
		0xf9,                         /* stc */
		0xd6,                         /* db 0xd6 */
		0xe8, 0x01, 0x00, 0x00, 0x00, /* call put */
		0xf4,                         /* hlt */
		0x9c,                         /* put: pushfd */
		0x66, 0x89, 0x07,             /* mov [edi], ax */
		0x58,                         /* pop eax */
		0x66, 0x89, 0x47, 0x02,       /* mov [edi + 2], ax */
		0x83, 0xc7, 0x04,             /* add edi, 4 */
		0xc3,                         /* ret */
	};
	static const struct {
		uint16_t ax, flags;
	} want[] = {
		{0x0014, RFLAGS_CF | RFLAGS_AF | RFLAGS_PF}, /* 79 + 35 = 114; AH was 0 */
		{0x0088, RFLAGS_CF | RFLAGS_AF | RFLAGS_SF | RFLAGS_PF},
		{0x0207, RFLAGS_CF | RFLAGS_AF},
		{0x0105, RFLAGS_CF | RFLAGS_AF},
		{0x0909, RFLAGS_PF},
		{0x005f, RFLAGS_PF},
		{0x00ff, RFLAGS_CF},
	};
	static const uint16_t defined[] = {RFLAGS_ARITH & ~RFLAGS_OF,
					   RFLAGS_ARITH & ~RFLAGS_OF,
					   RFLAGS_CF | RFLAGS_AF,
					   RFLAGS_CF | RFLAGS_AF,
					   RFLAGS_PF | RFLAGS_SF | RFLAGS_ZF,
					   RFLAGS_PF | RFLAGS_SF | RFLAGS_ZF,
					   RFLAGS_CF};
	struct soft_guest *g = legacy_guest();

	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
		uint64_t got = sg_get64(g, SG_DATA + i * 4);
		uint16_t ax = i == 0 || i == 1 || i == 6 ? got & 0xff : got & 0xffff;

		CHECK_EQ(want[i].ax, ax);
		CHECK_EQ(want[i].flags, got >> 16 & defined[i]);
	}
	soft_guest_destroy(g);
}

TEST(aam_by_zero_is_a_divide_error_and_bound_has_its_own)
{
	static const uint8_t aam0[] = {
		0xd4, 0x00, /* aam 0 */
	};
	static const uint8_t range[] = {
		0xc7, 0x05, 0x00, 0x00, 0x02, 0x00,
		0xfb, 0xff, 0xff, 0xff, /* mov dword [0x20000], -5 */
		0xc7, 0x05, 0x04, 0x00, 0x02, 0x00,
		0x0a, 0x00, 0x00, 0x00,             /* mov dword [0x20004], 10 */
		0xb8, 0xfb, 0xff, 0xff, 0xff,       /* mov eax, -5 */
		0x62, 0x05, 0x00, 0x00, 0x02, 0x00, /* bound eax, [0x20000] */
		0xb8, 0x0b, 0x00, 0x00, 0x00,       /* mov eax, 11 */
		0x62, 0x05, 0x00, 0x00, 0x02, 0x00, /* bound eax, [0x20000] */
	};
	struct soft_guest *g = legacy_guest();

	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, aam0, sizeof(aam0)));
	CHECK_EQ(X86_EXC_DE, g->info.vector);
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, range, sizeof(range)));
	CHECK_EQ(X86_EXC_BR, g->info.vector);
	CHECK_EQ(11, g->state.gpr[X86_RAX]);
	soft_guest_destroy(g);
}

TEST(pusha_is_all_or_nothing_and_popa_skips_esp)
{
	static const uint8_t code[] = {
		0x60,       /* pusha */
		0x31, 0xc0, /* xor eax, eax */
		0x31, 0xf6, /* xor esi, esi */
		0x61,       /* popa */
		0xf4,       /* hlt */
	};
	struct soft_guest *g = legacy_guest();

	for (unsigned i = 0; i < 8; i++)
		if (i != X86_RSP)
			g->state.gpr[i] = 0x1000 + i;
	g->state.gpr[X86_RSP] = 0x2f010;
	sg_map(g, 0x2e000, 0);
	CHECK_EQ(ENGINE_EXIT_DEBUG, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_EXC_PF, g->info.vector);
	CHECK_EQ(0x2f010, g->state.gpr[X86_RSP]);
	CHECK_EQ(0, sg_get64(g, 0x2f008));
	sg_map(g, 0x2e000, 0x2e000 | SG_PTE);
	CHECK_EQ(ENGINE_EXIT_HALTED, sg_run(g));
	CHECK_EQ(0x1000, g->state.gpr[X86_RAX]);
	CHECK_EQ(0x1006, g->state.gpr[X86_RSI]);
	CHECK_EQ(0x2f010, g->state.gpr[X86_RSP]);
	CHECK_EQ(0x2f010, sg_get64(g, 0x2effc) & 0xffffffff); /* ESP as it was */
	soft_guest_destroy(g);
}

TEST(address_size_prefixes_choose_the_count_and_index_registers)
{
	static const uint8_t code[] = {
		0xb9, 0x00, 0x00, 0x01, 0x00, /* mov ecx, 0x10000 */
		0x67, 0xe3, 0x01,             /* jcxz taken */
		0xf4,                         /* hlt */
		0xbf, 0x00, 0x00, 0x02, 0x10, /* taken: mov edi, 0x10020000 */
		0xb9, 0x02, 0x00, 0xff, 0xff, /* mov ecx, 0xffff0002 */
		0xb0, 0x66,                   /* mov al, 0x66 */
		0xf3, 0x67, 0xaa,             /* a16 rep stosb */
		0xb9, 0x01, 0x00, 0x03, 0x00, /* mov ecx, 0x30001 */
		0x67, 0xe2, 0xe9,             /* a16 loop taken */
		0xbb, 0x01, 0x00, 0x00, 0x00, /* mov ebx, 1 */
		0xf4,                         /* hlt */
	};
	struct soft_guest *g = legacy_guest();

	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(1, g->state.gpr[X86_RBX]);
	CHECK_EQ(0x30000, g->state.gpr[X86_RCX]);
	CHECK_EQ(0x10020002, g->state.gpr[X86_RDI]);
	CHECK_EQ(0x6666, sg_get64(g, 0) & 0xffffff);
	soft_guest_destroy(g);
}

TEST(a_jump_beyond_the_code_limit_faults_at_the_jump)
{
	static const uint8_t code[] = {
		0x90,                         /* nop */
		0xe9, 0xfa, 0x1f, 0x00, 0x00, /* jmp 0x10000 + 0x2000 */
	};
	struct soft_guest *g = legacy_guest();

	g->state.seg[X86_CS].base = SG_CODE;
	g->state.seg[X86_CS].limit = 0xfff;
	sg_put(g, SG_CODE, code, sizeof(code));
	g->state.rip = 0;
	sg_load(g);
	CHECK_EQ(ENGINE_EXIT_DEBUG, sg_run(g));
	CHECK_EQ(X86_EXC_GP, g->info.vector);
	CHECK_EQ(1, g->state.rip);
	soft_guest_destroy(g);
}

/* --- state and time ----------------------------------------------------------------------------
 */

TEST(state_survives_set_and_get)
{
	struct soft_guest *g = soft_guest_create(1);
	struct x86_state *s = &g->state;

	for (unsigned i = 0; i < X86_NR_GPR; i++)
		s->gpr[i] = 0x0101010101010101 * i;
	s->rflags = RFLAGS_FIXED | RFLAGS_CF | RFLAGS_DF | RFLAGS_IF;
	s->lstar = 0xffffffff81000000;
	s->dr[2] = 0x1234;
	s->int_shadow = 1;
	s->nmi_pending = 1;
	s->event_pending = 1;
	s->event_vector = 0x51;
	sg_load(g);
	memset(s, 0, sizeof(*s));
	engine_soft.cpu_get(g->cpu[0], s);
	CHECK_EQ(0x0f0f0f0f0f0f0f0f, s->gpr[15]);
	CHECK_EQ(RFLAGS_FIXED | RFLAGS_CF | RFLAGS_DF | RFLAGS_IF, s->rflags);
	CHECK_EQ(0xffffffff81000000, s->lstar);
	CHECK_EQ(0x1234, s->dr[2]);
	CHECK_EQ(1, s->int_shadow);
	CHECK_EQ(1, s->nmi_pending);
	CHECK_EQ(1, s->event_pending);
	CHECK_EQ(0x51, s->event_vector);
	CHECK_EQ(SG_CS, s->seg[X86_CS].selector);
	soft_guest_destroy(g);
}

TEST(an_event_accepted_before_a_save_is_delivered_after_it)
{
	static const uint8_t code[] = {0xf4};
	static const uint8_t handler[] = {0xff, 0xc1, 0x48, 0xcf}; /* inc ecx; iretq */
	struct soft_guest *g = soft_guest_create(1);

	sg_put(g, SG_HANDLERS, handler, sizeof(handler));
	sg_gate(g, 0x51, SG_HANDLERS);
	g->state.event_pending = 1;
	g->state.event_type = X86_EVENT_INTR;
	g->state.event_vector = 0x51;
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, code, sizeof(code)));
	CHECK_EQ(1, g->state.gpr[X86_RCX]);
	CHECK_EQ(0, g->state.event_pending);
	soft_guest_destroy(g);
}

TEST(time_stamp_counters_of_all_vcpus_agree_with_the_clock)
{
	struct soft_guest *g = soft_guest_create(2);
	uint64_t khz = engine_soft.tsc_khz(g->vm), a, b, later;

	CHECK(khz > 100000 && khz < 20000000);
	a = engine_soft.cpu_tsc(g->cpu[0]);
	b = engine_soft.cpu_tsc(g->cpu[1]);
	CHECK(b >= a && b - a < khz); /* less than a millisecond apart, in order */
	later = engine_soft.cpu_tsc_to_ns(g->cpu[0], a + khz * 1000);
	CHECK(later > now_ns() + 500000000 && later < now_ns() + 1500000000);
	soft_guest_destroy(g);
}
