/* engine/soft/far.h - what transfers of control between segments, rings and tasks share.
 *
 * For exc.c, far.c, task.c and syscall.c.  A transfer is made in three steps:
 *   1. check everything and read everything (may fault);
 *   2. stack_reserve() the frame with the rights of the ring it belongs to (may fault);
 *   3. commit CS, SS, CPL, flags, RIP, cpu_mode_update(), then stack_put() the frame, which by
 *      then cannot fault. */
#pragma once

#include "engine/soft/seg.h"

/* A stack that may be another ring's than the current one. */
struct far_stack {
	struct cpu_seg ss;
	uint64_t sp, mask; /* as RSP and cpu->sp_mask */
	uint32_t err;      /* error code of #SS: of the new SS when rings change, else EXT only */
	uint8_t slot;      /* bytes per push: 2 4 8 */
	uint8_t cpl;
	bool wide; /* 64-bit mode: no base, no limit, canonical addresses */
};

void stack_current(const struct cpu *cpu, struct far_stack *st, unsigned slot, uint32_t ext);
void stack_from_desc(struct cpu *cpu, struct far_stack *st, const struct desc *ss, uint64_t sp,
		     unsigned cpl);
void stack_check(struct cpu *cpu, const struct far_stack *st, unsigned slots); /* #SS only */
void stack_reserve(struct cpu *cpu, const struct far_stack *st, unsigned slots);
void stack_put(struct cpu *cpu, struct far_stack *st, uint64_t v);
void stack_commit(struct cpu *cpu, const struct far_stack *st); /* RSP = st->sp */
/* The slot number n above the top of the current stack, skipping `skip` bytes. */
uint64_t stack_peek(struct cpu *cpu, const struct far_stack *st, unsigned n, unsigned skip);

/* SS:ESP for ring `cpl` from the current 16- or 32-bit TSS, all checks done (#TS, #SS); long mode:
 * RSP, with SS null. */
void far_tss_stack(struct cpu *cpu, struct far_stack *st, struct desc *ss, unsigned cpl,
		   uint32_t ext);
/* Long mode: RSP at a byte offset of the TSS (RSPn, ISTn). */
uint64_t far_tss_rsp(struct cpu *cpu, unsigned off, uint32_t ext);

/* #GP(ext) unless rip lies in the code segment. */
void far_check_rip(struct cpu *cpu, const struct cpu_seg *cs, uint64_t rip, uint32_t ext);

/* --- task.c ------------------------------------------------------------------------------------
 */

enum task_reason { TASK_JMP, TASK_CALL, TASK_EVENT, TASK_IRET };

/* Switch to the task whose TSS descriptor is d; type, privilege and presence are checked already.
 * The outgoing task continues at cpu->rip.  has_error (TASK_EVENT): push `error` on the new stack.
 * A fault after the point of no return belongs to the new task. */
struct task_event {
	bool has_error;
	uint32_t error;
	uint32_t ext;
};
void task_switch(struct cpu *cpu, struct desc *d, enum task_reason why,
		 const struct task_event *ev);
/* JMP/CALL through a task gate, or an event's: find and check the TSS (#GP, #NP). */
void task_fetch_tss(struct cpu *cpu, uint16_t sel, uint32_t ext, struct desc *d);
/* IRET with NT=1. */
void task_return(struct cpu *cpu);
