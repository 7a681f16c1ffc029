/* engine/soft/int_stack.c - PUSH, POP, PUSHA, POPA, ENTER, LEAVE, and near CALL and RET, JMP, Jcc,
 * LOOP, JCXZ.
 *
 * Everything that can fault comes before RSP, RIP or a register changes. */
#include "engine/soft/int.h"

/* --- PUSH and POP ------------------------------------------------------------------------------
 */

#define PUSH(bits)                                                                                 \
	static inline void push_##bits(struct cpu *cpu, uint##bits##_t v)                          \
	{                                                                                          \
		uint64_t sp = cpu->gpr[X86_RSP] - bits / 8;                                        \
                                                                                                   \
		st##bits(cpu, stack_linear(cpu, sp, bits / 8, true), v);                           \
		stack_set_sp(cpu, sp);                                                             \
	}                                                                                          \
	static inline uint##bits##_t pop_peek_##bits(struct cpu *cpu)                              \
	{                                                                                          \
		return ld##bits(cpu, stack_linear(cpu, cpu->gpr[X86_RSP], bits / 8, false));       \
	}                                                                                          \
	void exec_push_R_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		push_##bits(cpu, REG(reg, bits));                                                  \
	}                                                                                          \
	void exec_push_I_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		push_##bits(cpu, (uint##bits##_t)in->imm);                                         \
	}                                                                                          \
	void exec_push_E_##bits##_r(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		push_##bits(cpu, REG(rm, bits));                                                   \
	}                                                                                          \
	void exec_push_E_##bits##_m(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		push_##bits(cpu, LOAD_RM(bits));                                                   \
	}                                                                                          \
	void exec_pop_R_##bits(struct cpu *cpu, const struct insn *in)                             \
	{                                                                                          \
		uint##bits##_t v = pop_peek_##bits(cpu);                                           \
                                                                                                   \
		stack_set_sp(cpu, cpu->gpr[X86_RSP] + bits / 8);                                   \
		reg_set_##bits(cpu, in->reg, v); /* after: POP RSP keeps what it loaded */         \
	}                                                                                          \
	void exec_pop_E_##bits##_r(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		uint##bits##_t v = pop_peek_##bits(cpu);                                           \
                                                                                                   \
		stack_set_sp(cpu, cpu->gpr[X86_RSP] + bits / 8);                                   \
		reg_set_##bits(cpu, in->rm, v);                                                    \
	}                                                                                          \
	void exec_pop_E_##bits##_m(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		uint64_t old = cpu->gpr[X86_RSP];                                                  \
		uint##bits##_t v = pop_peek_##bits(cpu);                                           \
                                                                                                   \
		st##bits(cpu, pop_linear(cpu, in, bits / 8), v);                                   \
		stack_set_sp(cpu, old + bits / 8);                                                 \
	}

/* Where POP [mem] stores: RSP as base counts after the increment (SDM 2B "POP").  Computed without
 * touching RSP, since the store may still fault. */
static gva_t pop_linear(struct cpu *cpu, const struct insn *in, unsigned size)
{
	uint64_t old = cpu->gpr[X86_RSP], sp;
	struct insn moved;

	if (in->base != CPU_GPR_OFF(X86_RSP))
		return insn_linear(cpu, in, size, true);
	stack_set_sp(cpu, old + size);
	sp = cpu->gpr[X86_RSP];
	cpu->gpr[X86_RSP] = old;
	cpu->scratch = sp;
	moved = *in;
	moved.base = CPU_OFF(scratch);
	return insn_linear(cpu, &moved, size, true);
}

PUSH(16)
PUSH(32)
PUSH(64)

/* --- PUSHA and POPA ----------------------------------------------------------------------------
 */

void exec_pusha(struct cpu *cpu, const struct insn *in)
{
	uint64_t sp = cpu->gpr[X86_RSP];
	gva_t lin[8];

	for (unsigned i = 0; i < 8; i++) {
		lin[i] = stack_linear(cpu, sp - (i + 1) * in->opsize, in->opsize, true);
		probe_store(cpu, lin[i], in->opsize);
	}
	for (unsigned i = 0; i < 8; i++)
		st_sized(cpu, lin[i], in->opsize, cpu->gpr[i]); /* RSP: the value before */
	stack_set_sp(cpu, sp - 8 * in->opsize);
}

void exec_popa(struct cpu *cpu, const struct insn *in)
{
	uint64_t sp = cpu->gpr[X86_RSP], v[8];

	for (unsigned i = 0; i < 8; i++)
		v[7 - i] = stack_load(cpu, sp + i * in->opsize, in->opsize);
	for (unsigned i = 0; i < 8; i++)
		if (i != X86_RSP)
			reg_set_sized(cpu, CPU_GPR_OFF(i), in->opsize, v[i]);
	stack_set_sp(cpu, sp + 8 * in->opsize);
}

/* --- ENTER and LEAVE ---------------------------------------------------------------------------
 */

/* The frame pointers of level - 1 outer frames are copied from below RBP, after the pushed RBP and
 * before the new frame's own pointer.  Every access is checked before the first store. */
static void enter_probe(struct cpu *cpu, unsigned size, unsigned level, uint16_t alloc)
{
	uint64_t sp = cpu->gpr[X86_RSP], bp = cpu->gpr[X86_RBP];
	unsigned pushes = level + 1;

	for (unsigned i = 1; i <= pushes; i++) {
		if (i > 1 && i <= level)
			probe_load(cpu, stack_linear(cpu, bp - (i - 1) * size, size, false), size);
		probe_store(cpu, stack_linear(cpu, sp - i * size, size, true), size);
	}
	/* The new locals are touched at the final stack pointer only (SDM 2A "ENTER"). */
	probe_store(cpu, stack_linear(cpu, sp - pushes * size - alloc, size, true), size);
}

void exec_enter(struct cpu *cpu, const struct insn *in)
{
	unsigned size = in->opsize, level = in->imm2 % 32;
	uint64_t bp = cpu->gpr[X86_RBP], frame;

	enter_probe(cpu, size, level, (uint16_t)in->imm);
	push_sized(cpu, size, bp);
	frame = cpu->gpr[X86_RSP];
	for (unsigned i = 1; i < level; i++)
		push_sized(cpu, size, stack_load(cpu, bp - i * size, size));
	if (level)
		push_sized(cpu, size, frame);
	stack_set_sp(cpu, cpu->gpr[X86_RSP] - (uint16_t)in->imm);
	reg_set_sized(cpu, CPU_GPR_OFF(X86_RBP), size, frame);
}

#define LEAVE(bits)                                                                                \
	void exec_leave_##bits(struct cpu *cpu, const struct insn *in)                             \
	{                                                                                          \
		uint64_t bp = cpu->gpr[X86_RBP];                                                   \
		uint##bits##_t v = ld##bits(cpu, stack_linear(cpu, bp, bits / 8, false));          \
                                                                                                   \
		stack_set_sp(cpu, bp + bits / 8);                                                  \
		reg_set_##bits(cpu, CPU_GPR_OFF(X86_RBP), v);                                      \
	}

LEAVE(16)
LEAVE(32)
LEAVE(64)

/* --- near branches -----------------------------------------------------------------------------
 * The target is cut to the operand size, then checked: canonical in 64-bit mode, within CS
 * otherwise; #GP(0) is the branch's own. */

static inline bool branch_bad(const struct cpu *cpu, uint64_t target)
{
	return cpu->mode == INSN_MODE_64 ? !cpu_canonical(cpu, target, 1)
					 : target > cpu->seg[X86_CS].limit;
}

#define BRANCH_CHECK(bits)                                                                         \
	static inline uint64_t branch_target_##bits(struct cpu *cpu, uint64_t target)              \
	{                                                                                          \
		target = (uint##bits##_t)target;                                                   \
		if (unlikely(branch_bad(cpu, target)))                                             \
			fault_gp(cpu, 0);                                                          \
		return target;                                                                     \
	}

BRANCH_CHECK(16)
BRANCH_CHECK(32)
BRANCH_CHECK(64)

static inline void branch_sized(struct cpu *cpu, unsigned size, uint64_t target)
{
	cpu->rip = size == 8   ? branch_target_64(cpu, target)
		   : size == 4 ? branch_target_32(cpu, target)
			       : branch_target_16(cpu, target);
}

/* AMD's processors find out about the stack first, Intel's about the target. */
static __attribute__((noinline)) void call_bad(struct cpu *cpu, unsigned size)
{
	uint64_t sp = cpu->gpr[X86_RSP] - size;

	if (cpu_model_is_amd(cpu->vm->model))
		probe_store(cpu, stack_linear(cpu, sp, size, true), size);
	fault_gp(cpu, 0);
}

#define BRANCH(bits)                                                                               \
	void exec_jmp_J_##bits(struct cpu *cpu, const struct insn *in)                             \
	{                                                                                          \
		cpu->rip = branch_target_##bits(cpu, cpu->rip + in->imm);                          \
	}                                                                                          \
	void exec_jmp_E_##bits##_r(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		cpu->rip = branch_target_##bits(cpu, REG(rm, bits));                               \
	}                                                                                          \
	void exec_jmp_E_##bits##_m(struct cpu *cpu, const struct insn *in)                         \
	{                                                                                          \
		cpu->rip = branch_target_##bits(cpu, LOAD_RM(bits));                               \
	}                                                                                          \
	static inline void call_##bits(struct cpu *cpu, uint64_t to)                               \
	{                                                                                          \
		uint64_t target = (uint##bits##_t)to;                                              \
                                                                                                   \
		if (unlikely(branch_bad(cpu, target)))                                             \
			call_bad(cpu, bits / 8);                                                   \
		push_##bits(cpu, (uint##bits##_t)cpu->rip);                                        \
		cpu->rip = target;                                                                 \
	}                                                                                          \
	void exec_call_J_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		call_##bits(cpu, cpu->rip + in->imm);                                              \
	}                                                                                          \
	void exec_call_E_##bits##_r(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		call_##bits(cpu, REG(rm, bits));                                                   \
	}                                                                                          \
	void exec_call_E_##bits##_m(struct cpu *cpu, const struct insn *in)                        \
	{                                                                                          \
		call_##bits(cpu, LOAD_RM(bits));                                                   \
	}                                                                                          \
	static inline void ret_##bits(struct cpu *cpu, unsigned drop)                              \
	{                                                                                          \
		uint64_t target = branch_target_##bits(cpu, pop_peek_##bits(cpu));                 \
                                                                                                   \
		stack_set_sp(cpu, cpu->gpr[X86_RSP] + bits / 8 + drop);                            \
		cpu->rip = target;                                                                 \
	}                                                                                          \
	void exec_ret_##bits(struct cpu *cpu, const struct insn *in)                               \
	{                                                                                          \
		ret_##bits(cpu, 0);                                                                \
	}                                                                                          \
	void exec_ret_I_##bits(struct cpu *cpu, const struct insn *in)                             \
	{                                                                                          \
		ret_##bits(cpu, (uint16_t)in->imm);                                                \
	}

BRANCH(16)
BRANCH(32)
BRANCH(64)

#define JCC_SIZE(name, cond, bits)                                                                 \
	void exec_jcc_##name##_##bits(struct cpu *cpu, const struct insn *in)                      \
	{                                                                                          \
		uint64_t cc = cpu->cc;                                                             \
                                                                                                   \
		if (!(cond))                                                                       \
			return;                                                                    \
		cpu->rip = branch_target_##bits(cpu, cpu->rip + in->imm);                          \
		if (unlikely(in + 1 < cpu->run_end)) /* block_extend */                            \
			cpu_stop_block(cpu);                                                       \
	}

#define JCC(name, cond)                                                                            \
	JCC_SIZE(name, cond, 16)                                                                   \
	JCC_SIZE(name, cond, 32)                                                                   \
	JCC_SIZE(name, cond, 64)

CONDITIONS(JCC)

/* --- LOOP and JCXZ: the count register goes by address size -------------------------------------
 */

static void loop_if(struct cpu *cpu, const struct insn *in, bool cond)
{
	uint64_t count = (cpu->gpr[X86_RCX] - 1) & mask_of(in->adsize);

	if (count && cond)
		branch_sized(cpu, in->opsize, cpu->rip + in->imm);
	reg_set_sized(cpu, CPU_GPR_OFF(X86_RCX), in->adsize, count);
}

void exec_loop(struct cpu *cpu, const struct insn *in)
{
	loop_if(cpu, in, true);
}

/* AMD's processors let an F3 or F2 prefix choose the condition, as it does for REPE and REPNE. */
static bool loop_cond(const struct cpu *cpu, const struct insn *in, bool want)
{
	if (in->flags & (INSN_REP | INSN_REPNE) && cpu_model_is_amd(cpu->vm->model))
		want = in->flags & INSN_REP;
	return !!(cpu->cc & RFLAGS_ZF) == want;
}

void exec_loopz(struct cpu *cpu, const struct insn *in)
{
	loop_if(cpu, in, loop_cond(cpu, in, true));
}

void exec_loopnz(struct cpu *cpu, const struct insn *in)
{
	loop_if(cpu, in, loop_cond(cpu, in, false));
}

void exec_jcxz(struct cpu *cpu, const struct insn *in)
{
	if (!(cpu->gpr[X86_RCX] & mask_of(in->adsize)))
		branch_sized(cpu, in->opsize, cpu->rip + in->imm);
}
