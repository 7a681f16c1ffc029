/* engine/soft/run.c - see run.h.
 *
 * The loop has two speeds.  Fast: blocks one after another, with one test between them whether
 * anything at all wants attention.  Careful: one instruction at a time, for the instruction in an
 * STI or MOV SS shadow, under TF, RF, breakpoints and a debugger's single step.
 *
 * Everything that does not simply go on comes back here by cpu_unwind, a long jump to run_guarded:
 * it costs nothing until it happens, and the exec functions need no error returns. */
#include "engine/soft/run.h"

#include "engine/soft/block.h"
#include "engine/soft/debug.h"
#include "engine/soft/sample.h"
#include "engine/soft/vec.h"
#include "engine/soft/xlat.h"

/* --- leaving an instruction --------------------------------------------------------------------
 */

_Noreturn void cpu_unwind(struct cpu *cpu, enum cpu_unwind why)
{
	cpu->unwind_why = (uint8_t)why;
	__builtin_longjmp(cpu->unwind_buf, 1);
}

_Noreturn void cpu_exit(struct cpu *cpu, enum engine_exit why)
{
	cpu->exit = why;
	cpu_unwind(cpu, UNWIND_EXIT);
}

static bool leave(struct cpu *cpu, enum engine_exit why)
{
	cpu->exit = why;
	return true;
}

static bool leave_debug(struct cpu *cpu, const struct cpu_fault_info *f)
{
	cpu->exit_info.vector = f->vector;
	cpu->exit_info.has_error = f->has_error;
	cpu->exit_info.error_code = f->error;
	cpu->exit_info.cr2 = f->cr2;
	return leave(cpu, ENGINE_EXIT_DEBUG);
}

/* --- exceptions --------------------------------------------------------------------------------
 */

enum fault_kind { FAULT_BENIGN, FAULT_CONTRIBUTORY, FAULT_PAGE };

static enum fault_kind fault_kind(unsigned vector)
{
	switch (vector) {
	case X86_EXC_DE:
	case X86_EXC_TS:
	case X86_EXC_NP:
	case X86_EXC_SS:
	case X86_EXC_GP:
	case X86_EXC_CP:
		return FAULT_CONTRIBUTORY;
	case X86_EXC_PF:
		return FAULT_PAGE;
	default:
		return FAULT_BENIGN;
	}
}

/* A second exception while the first was being delivered (SDM 3A "Interrupt 8"): does it make a
 * double fault of the two? */
static bool fault_doubles(unsigned first, unsigned second)
{
	enum fault_kind a = fault_kind(first), b = fault_kind(second);

	return (a == FAULT_CONTRIBUTORY && b == FAULT_CONTRIBUTORY) ||
	       (a == FAULT_PAGE && b != FAULT_BENIGN);
}

/* cpu->fault becomes what is to be delivered; false: a fault of the double fault, shut down. */
static bool fault_combine(struct cpu *cpu)
{
	struct cpu_fault_info *f = &cpu->fault;

	if (cpu->delivering == CPU_IDLE)
		return true;
	if (f->vector ==
	    X86_EXC_PF) /* also when something else comes of it (SDM 3A "Interrupt 14") */
		cpu->cr2 = f->cr2;
	if (cpu->delivering == X86_EXC_DF && fault_kind(f->vector) != FAULT_BENIGN)
		return false;
	if (fault_doubles(cpu->delivering, f->vector)) {
		f->vector = X86_EXC_DF;
		f->has_error = true;
		f->error = 0;
	}
	return true;
}

static void event_clear(struct cpu *cpu, uint32_t ev)
{
	atomic_fetch_and(&cpu->events, ~ev);
}

/* A fault met while delivering another may meet the next, for ever: with alignment checks a
 * misaligned stack of ring 3 does it to #AC.  Each is a point where a kick counts; the fault waits
 * as an injected event. */
static bool kicked_while_delivering(struct cpu *cpu)
{
	const struct cpu_fault_info *f = &cpu->fault;

	if (cpu->delivering == CPU_IDLE || !(atomic_load(&cpu->events) & CPU_EV_KICK))
		return false;
	cpu->delivering = CPU_IDLE;
	cpu->inject = (struct cpu_inject){.type = X86_EVENT_EXCEPTION,
					  .vector = f->vector,
					  .has_error = f->has_error,
					  .error = f->error};
	if (f->vector == X86_EXC_PF)
		cpu->cr2 = f->cr2;
	atomic_fetch_or(&cpu->events, CPU_EV_INJECT);
	event_clear(cpu, CPU_EV_KICK);
	return leave(cpu, ENGINE_EXIT_KICKED);
}

/* Deliver cpu->fault.  True: leave the loop. */
static bool deliver_fault(struct cpu *cpu)
{
	struct cpu_fault_info f;

	cpu->rip = insn_start_rip(cpu);
	cpu->in = NULL;
	if (!fault_combine(cpu)) {
		cpu->delivering = CPU_IDLE;
		return leave(cpu, ENGINE_EXIT_SHUTDOWN);
	}
	f = cpu->fault;
	cpu->int_shadow = 0;
	cpu->halted = false;
	if (f.vector < 32 && (cpu->debug.intercept & BIT(f.vector))) {
		cpu->delivering = CPU_IDLE;
		return leave_debug(cpu, &f);
	}
	if (kicked_while_delivering(cpu))
		return true;
	cpu->stats.exceptions++;
	cpu->delivering = f.vector;
	exc_deliver(cpu, &f);
	cpu->delivering = CPU_IDLE;
	if (cpu->debug.single_step)
		return leave_debug(cpu, &(struct cpu_fault_info){.vector = X86_EXC_DB});
	return false;
}

/* A #DB after the instruction: single step, data and I/O breakpoints, task switch.  A load of SS
 * holds it back for one instruction and loses the single step: debug.h. */
static bool deliver_debug_trap(struct cpu *cpu)
{
	uint32_t bits = cpu->dbg_pending;

	cpu->dbg_pending = 0;
	debug_set_dr6(cpu, bits);
	cpu->fault = (struct cpu_fault_info){.vector = X86_EXC_DB};
	return deliver_fault(cpu);
}

/* --- running -----------------------------------------------------------------------------------
 */

/* The heart: run instructions until the block ends, or is ended by cpu_stop_block.  rip is kept in
 * a register; only INSN_END rows and interrupted string instructions change it. */
static inline void run_insns(struct cpu *cpu, const struct insn *in, unsigned nr)
{
	uint64_t rip = cpu->rip;

	cpu->run_first = in;
	cpu->run_end = in + nr;
	do {
		rip += in->len;
		cpu->rip = rip;
		cpu->in = in;
		in->exec(cpu, in);
		in++;
	} while (likely(in < cpu->run_end));
	cpu->stats.insns += likely(cpu->run_end) ? nr : (uint64_t)(in - cpu->run_first);
	cpu->in = NULL;
}

/* One instruction with all the care: shadows, TF, RF, breakpoints.  True: leave the loop. */
static bool step(struct cpu *cpu)
{
	bool trap = cpu->rflags & RFLAGS_TF;
	struct block *b;

	if (cpu->dbg_exec && !(cpu->rflags & RFLAGS_RF) && !(cpu->int_shadow & CPU_SHADOW_SS))
		debug_check_insn(cpu);
	b = block_lookup(cpu);
	cpu->int_shadow = 0;
	cpu->rflags &= ~RFLAGS_RF; /* IRET and task switches set it anew */
	cpu->dbg_no_step = false;
	run_insns(cpu, b->insns, 1);
	if (trap && !cpu->dbg_no_step)
		cpu->dbg_pending |= DR6_BS;
	if (cpu->debug.single_step)
		return leave_debug(cpu, &(struct cpu_fault_info){.vector = X86_EXC_DB});
	return false;
}

/* --- events ------------------------------------------------------------------------------------
 */

/* What a saved state had accepted but not begun to deliver. */
static bool deliver_injected(struct cpu *cpu)
{
	const struct cpu_inject *j = &cpu->inject;

	event_clear(cpu, CPU_EV_INJECT);
	cpu->halted = false;
	switch (j->type) {
	case X86_EVENT_INTR:
		exc_interrupt(cpu, j->vector);
		return false;
	case X86_EVENT_NMI:
		exc_nmi(cpu);
		return false;
	case X86_EVENT_SOFT_INT:
		exc_soft_int(cpu, j->vector, false);
		return false;
	default:
		cpu->fault = (struct cpu_fault_info){.vector = j->vector,
						     .has_error = j->has_error,
						     .error = j->error,
						     .cr2 = cpu->cr2};
		return deliver_fault(cpu);
	}
}

/* Two NMIs may have come before we look, where a CPU would have taken the first at once and kept
 * the second for after its IRET.  More than one waiting at that IRET are one (SDM 3A "Handling
 * Multiple NMIs"): cpu_nmi_unmask. */
static bool take_nmi(struct cpu *cpu, uint32_t ev)
{
	if (!(ev & (CPU_EV_NMI | CPU_EV_NMI2)) || cpu->nmi_masked || cpu->int_shadow)
		return false;
	event_clear(cpu, ev & CPU_EV_NMI2 ? CPU_EV_NMI2 : CPU_EV_NMI);
	cpu->halted = false;
	cpu->stats.interrupts++;
	exc_nmi(cpu);
	return true;
}

static bool take_interrupt(struct cpu *cpu, uint32_t ev)
{
	int vector;

	if (!(ev & CPU_EV_INTR) || !(cpu->rflags & RFLAGS_IF) || cpu->int_shadow)
		return false;
	vec_release(cpu);
	vector = cpu->ops->intr_ack(cpu->opaque);
	if (vector < 0)
		return false;
	cpu->halted = false;
	cpu->stats.interrupts++;
	exc_interrupt(cpu, (uint8_t)vector);
	return true;
}

/* Something wants attention: do one thing about it, or run on if nothing can be done now.
 * In order of SDM 3A "Priority Among Concurrent Events", but kicks.  True: leave the loop. */
static bool attend(struct cpu *cpu)
{
	uint32_t ev = atomic_load(&cpu->events);
	struct block *b;

	if (unlikely(cpu->xl_sti && cpu->xl_sti == cpu->rip)) {
		cpu->int_shadow |= CPU_SHADOW_STI;
		cpu->xl_sti = 0;
	}
	if (ev & CPU_EV_PURGE)
		block_purge(cpu);
	if (ev & CPU_EV_CODE) {
		event_clear(cpu, CPU_EV_CODE);
		xlat_check_pages(cpu);
	}
	/* Before what the guest brings about: a #DB whose own delivery hits a data breakpoint would
	 * keep us here.  What is pending stays so. */
	if (ev & CPU_EV_KICK) {
		event_clear(cpu, CPU_EV_KICK);
		return leave(cpu, ENGINE_EXIT_KICKED);
	}
	if (ev & CPU_EV_INJECT)
		return deliver_injected(cpu);
	if (cpu->int_shadow & CPU_SHADOW_SS)
		cpu->dbg_pending &= ~(uint32_t)DR6_BS;
	else if (cpu->dbg_pending)
		return deliver_debug_trap(cpu);
	if (cpu->wait_sipi)
		return leave(cpu, ENGINE_EXIT_HALTED);
	if (take_nmi(cpu, ev) || take_interrupt(cpu, ev))
		return false;
	if (cpu->halted)
		return leave(cpu, ENGINE_EXIT_HALTED);
	if (cpu->debug.single_step || cpu->int_shadow || debug_careful(cpu))
		return step(cpu);
	b = block_lookup(cpu);
	run_insns(cpu, b->insns, b->nr);
	return false;
}

/* Where cpu_unwind lands.  True: leave the loop. */
static bool unwound(struct cpu *cpu)
{
	if (cpu->in)
		cpu->stats.insns += (uint64_t)(cpu->in - cpu->run_first);
	cpu->stats.insns -= cpu->xl_left;
	cpu->xl_left = 0;
	cpu->doing = CPU_DOING_REST;
	if (cpu->unwind_why == UNWIND_FAULT)
		return deliver_fault(cpu);
	cpu->stats.insns += cpu->in != NULL;
	cpu->in = NULL;
	return cpu->unwind_why == UNWIND_EXIT;
}

/* Apart from run_guarded: there the compiler may keep nothing in registers. */
static __attribute__((noinline, hot)) void run_fast(struct cpu *cpu)
{
	struct block *b = cpu->blocks->entry;
	uint64_t next = 0; /* where b falls through to */

	while (likely(!run_wants_attention(cpu))) {
		b = block_follow(cpu, &b->link[cpu->rip != next]);
		next = cpu->rip + b->len;
		run_insns(cpu, b->insns, b->nr);
	}
}

/* The same with translated code, where there is some. */
static __attribute__((noinline, hot)) void run_translated(struct cpu *cpu)
{
	while (likely(!run_wants_attention(cpu))) {
		struct block *b = block_lookup(cpu);
		struct xblock *xb = xlat_lookup(cpu, b);

		if (unlikely(xb && xlat_is_lockstep(cpu)))
			xlat_lockstep(cpu, xb);
		else if (likely(xb))
			xlat_enter(cpu, xb);
		else
			run_insns(cpu, b->insns, b->nr);
	}
}

static __attribute__((noinline)) void run_guarded(struct cpu *cpu)
{
	if (__builtin_setjmp(cpu->unwind_buf) && unwound(cpu))
		return;
	do {
		if (cpu->xlat)
			run_translated(cpu);
		else
			run_fast(cpu);
	} while (!attend(cpu));
}

enum engine_exit run_cpu(struct cpu *cpu)
{
	/* From here others wait for our purge_ack; events they posted before are seen first. */
	atomic_store(&cpu->running, true);
	cpu->in = NULL;
	cpu->delivering = CPU_IDLE;
	if (cpu->xlat)
		xlat_attach(cpu);
	if (cpu->vm->sample)
		sample_attach(cpu);
	run_guarded(cpu);
	vec_release(cpu);
	atomic_store(&cpu->running, false);
	return cpu->exit;
}
