/* engine/soft/vec_x87.c - x87 instruction and data pointers, environments, FINIT, FSAVE, FRSTOR.
 *
 * The host's x87 keeps pointers to our thunks and buffers, so the guest's are kept in cpu->x87:
 * every x87 instruction that is not a control instruction sets IP, CS and the opcode, and with a
 * memory operand DP and DS too.  How much of them is shown is the maker's choice; the guest is told
 * the host's maker, so the host is asked once (vec_x87_probe_host):
 *   - AMD: FXSAVE and XSAVE show zeroes unless an unmasked exception is pending (ES = 1);
 *   - Intel, CPUID 7.EBX[6]: DP changes only when an unmasked exception arises;
 *   - Intel, CPUID 7.EBX[13]: CS and DS read as 0;
 *   - Intel: the opcode changes only when an unmasked exception arises.
 *
 * Environments (SDM 1 "Saving the x87 FPU's State"), 14 or 28 bytes; words are named here:
 *
 *             16-bit protected  16-bit real             32-bit protected    32-bit real
 *      +0     CW SW TW          CW SW TW                CW - SW - TW -      CW - SW - TW -
 *      ip     IP                IP[15:0]                IP                  IP[15:0] -
 *      cs     CS                IP[19:16] 0 OP[10:0]    CS, OP[10:0]        0 IP[31:16] 0 OP[10:0]
 *      dp     DP                DP[15:0]                DP                  DP[15:0] -
 *      ds     DS                DP[19:16] 0             DS -                0 DP[31:16] 0
 *
 * In real and virtual-8086 mode IP and DP are linear. */
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/vec_int.h"

struct x87_env {
	uint16_t cw, r0, sw, r1, tw, r2;
	uint32_t ip;
	uint16_t cs, op;
	uint32_t dp;
	uint16_t ds, r3;
};

enum { ENV16 = 14, ENV32 = 28, REGS = 80, OPCODE_MASK = 0x7ff };

static struct {
	bool hidden_until_es; /* FXSAVE and XSAVE show pointers only when ES = 1 */
	bool dp_on_exception, op_on_exception;
	bool no_selectors;
} host;

/* Called with C's own x87 state, which is left as it was: empty stack, default control word. */
void vec_x87_probe_host(void)
{
	_Alignas(16) uint8_t image[512] = {0};
	struct x87_env env;
	uint64_t one = 0x3ff0000000000000; /* 1.0 */

	__asm__ volatile("fninit\n\tfldl %2\n\tfxsave64 %0\n\tfnstenv %1\n\tfninit"
			 : "+m"(image), "=m"(env)
			 : "m"(one));
	host.hidden_until_es = !VEC_AT(uint64_t, image, XS_FIP);
	host.dp_on_exception = !env.dp;
	host.op_on_exception = !env.op;
	host.no_selectors = !env.cs;
}

/* --- pointers ----------------------------------------------------------------------------------
 */

static uint16_t live_status(void)
{
	uint16_t sw;

	__asm__ volatile("fnstsw %0" : "=m"(sw));
	return sw;
}

bool vec_x87_ptr_always(void)
{
	return !host.op_on_exception && !host.dp_on_exception;
}

bool vec_x87_has_selectors(void)
{
	return !host.no_selectors;
}

void vec_x87_pending(struct cpu *cpu)
{
	bool pending;

	vec_load(cpu);
	pending = live_status() & FSW_ES;
	vec_end(cpu);
	if (pending)
		vec_fault(cpu, X86_EXC_MF);
}

static uint16_t selector(const struct cpu *cpu, unsigned seg)
{
	return host.no_selectors ? 0 : cpu->seg[seg].selector;
}

void vec_x87_note(struct cpu *cpu, const struct insn *in)
{
	struct x87_ptr *x = &cpu->x87;
	bool raised = true;

	if (unlikely(host.op_on_exception || host.dp_on_exception)) {
		vec_load(cpu);
		raised = live_status() & FSW_ES;
	}
	x->ip = insn_start_rip(cpu);
	x->cs = selector(cpu, X86_CS);
	if (raised || !host.op_on_exception)
		x->op = (uint16_t)((in->opcode & 7) << 8 | in->modrm);
	if (in->flags & INSN_MEM && (raised || !host.dp_on_exception)) {
		x->dp = insn_ea(cpu, in);
		x->ds = selector(cpu, in->seg);
	}
}

void vec_x87_put_ptr(const struct cpu *cpu, uint8_t *image, bool wide)
{
	const struct x87_ptr *x = &cpu->x87;
	bool shown = !host.hidden_until_es || VEC_AT(uint16_t, image, XS_FSW) & FSW_ES;

	VEC_AT(uint16_t, image, XS_FOP) = 0;
	VEC_AT(uint64_t, image, XS_FIP) = 0;
	VEC_AT(uint64_t, image, XS_FDP) = 0;
	if (!shown)
		return;
	VEC_AT(uint16_t, image, XS_FOP) = x->op;
	if (wide) {
		VEC_AT(uint64_t, image, XS_FIP) = x->ip;
		VEC_AT(uint64_t, image, XS_FDP) = x->dp;
	} else {
		VEC_AT(uint32_t, image, XS_FIP) = (uint32_t)x->ip;
		VEC_AT(uint16_t, image, XS_FCS) = x->cs;
		VEC_AT(uint32_t, image, XS_FDP) = (uint32_t)x->dp;
		VEC_AT(uint16_t, image, XS_FDS) = x->ds;
	}
}

/* AMD's processors keep as many bits of a pointer as linear addresses have. */
static uint64_t linear_bits(const struct cpu *cpu, uint64_t p)
{
	unsigned unused = 64 - cpu->vm->model->virt_bits;

	return cpu_model_is_amd(cpu->vm->model) ? (uint64_t)((int64_t)(p << unused) >> unused) : p;
}

void vec_x87_take_ptr(struct cpu *cpu, const uint8_t *image, bool wide)
{
	struct x87_ptr *x = &cpu->x87;

	x->op = VEC_AT(const uint16_t, image, XS_FOP) & OPCODE_MASK;
	x->ip = wide ? linear_bits(cpu, VEC_AT(const uint64_t, image, XS_FIP))
		     : VEC_AT(const uint32_t, image, XS_FIP);
	x->dp = wide ? linear_bits(cpu, VEC_AT(const uint64_t, image, XS_FDP))
		     : VEC_AT(const uint32_t, image, XS_FDP);
	x->cs = wide || host.no_selectors ? 0 : VEC_AT(const uint16_t, image, XS_FCS);
	x->ds = wide || host.no_selectors ? 0 : VEC_AT(const uint16_t, image, XS_FDS);
}

static void clear_ptr(struct cpu *cpu)
{
	cpu->x87 = (struct x87_ptr){0};
}

/* --- environments -------------------------------------------------------------------------------
 * The host works on the 32-bit protected layout; these convert at `e`, the guest's 14 or 28 bytes.
 */

static void put_env16(const struct cpu *cpu, uint16_t *e, const struct x87_env *env)
{
	const struct x87_ptr *x = &cpu->x87;
	bool linear = cpu->real || cpu->v86;
	uint32_t ip = (uint32_t)x->ip + (linear ? x->cs * 16u : 0);
	uint32_t dp = (uint32_t)x->dp + (linear ? x->ds * 16u : 0);

	e[0] = env->cw;
	e[1] = env->sw;
	e[2] = env->tw;
	e[3] = (uint16_t)ip;
	e[4] = linear ? (uint16_t)(ip >> 16 << 12 | x->op) : x->cs;
	e[5] = (uint16_t)dp;
	e[6] = linear ? (uint16_t)(dp >> 16 << 12) : x->ds;
}

static void put_env32(const struct cpu *cpu, struct x87_env *env)
{
	const struct x87_ptr *x = &cpu->x87;
	uint32_t ip = (uint32_t)x->ip + x->cs * 16u, dp = (uint32_t)x->dp + x->ds * 16u;
	uint32_t *w = &env->ip;

	if (cpu->real || cpu->v86) {
		w[0] = ip & 0xffff;
		w[1] = ip >> 16 << 12 | x->op;
		w[2] = dp & 0xffff;
		w[3] = dp >> 16 << 12;
		return;
	}
	env->ip = (uint32_t)x->ip;
	env->cs = x->cs;
	env->op = x->op;
	env->dp = (uint32_t)x->dp;
	env->ds = x->ds;
}

static void take_env16(struct cpu *cpu, const uint16_t *e, struct x87_env *env)
{
	struct x87_ptr *x = &cpu->x87;
	bool linear = cpu->real || cpu->v86;

	*env = (struct x87_env){.cw = e[0], .sw = e[1], .tw = e[2]};
	x->ip = e[3] | (linear ? (uint32_t)e[4] >> 12 << 16 : 0);
	x->cs = linear ? 0 : e[4];
	x->op = linear ? e[4] & OPCODE_MASK : 0;
	x->dp = e[5] | (linear ? (uint32_t)e[6] >> 12 << 16 : 0);
	x->ds = linear ? 0 : e[6];
}

static void take_env32(struct cpu *cpu, const struct x87_env *env)
{
	struct x87_ptr *x = &cpu->x87;
	const uint32_t *w = &env->ip;

	if (cpu->real || cpu->v86) {
		x->ip = (w[0] & 0xffff) | (w[1] >> 12 & 0xffff) << 16;
		x->op = w[1] & OPCODE_MASK;
		x->dp = (w[2] & 0xffff) | (w[3] >> 12 & 0xffff) << 16;
		x->cs = x->ds = 0;
		return;
	}
	x->ip = env->ip;
	x->op = env->op & OPCODE_MASK;
	x->dp = env->dp;
	x->cs = host.no_selectors ? 0 : env->cs;
	x->ds = host.no_selectors ? 0 : env->ds;
}

static void check_x87(struct cpu *cpu)
{
	if (cpu->vec->deny[VEC_X87])
		cpu_fault_plain(cpu, cpu->vec->deny[VEC_X87]);
}

static unsigned env_size(const struct insn *in)
{
	return in->opsize == 2 ? ENV16 : ENV32;
}

/* The first word is touched, then the last byte, then the rest: a page fault on the second page
 * has the address of what found it. */
static void probe_ends(struct cpu *cpu, const struct insn *in, gva_t lin, unsigned size, bool write)
{
	unsigned word = in->opsize == 2 ? 2 : 4;
	gva_t last = vec_last(cpu, lin, size);

	if (write) {
		probe_write(cpu, lin, word);
		probe_write(cpu, last, 1);
	} else {
		probe_read(cpu, lin, word);
		probe_read(cpu, last, 1);
	}
}

/* --- instructions -------------------------------------------------------------------------------
 */

void exec_fninit(struct cpu *cpu, const struct insn *in)
{
	check_x87(cpu);
	vec_load(cpu);
	__asm__ volatile("fninit");
	clear_ptr(cpu);
	vec_end(cpu);
}

/* Store what `save` wrote at the bounce buffer: environment, then `regs` bytes of registers. */
static void store_env(struct cpu *cpu, const struct insn *in, gva_t lin, unsigned regs)
{
	struct x87_env *env = (struct x87_env *)cpu->vec->bounce;
	uint16_t env16[ENV16 / 2];

	if (in->opsize == 2) {
		put_env16(cpu, env16, env);
		st_bytes(cpu, lin, env16, ENV16);
		if (regs)
			st_bytes(cpu, lin + ENV16, (uint8_t *)env + ENV32, regs);
		return;
	}
	put_env32(cpu, env);
	st_bytes(cpu, lin, env, ENV32 + regs);
}

void exec_fnstenv(struct cpu *cpu, const struct insn *in)
{
	gva_t lin;

	check_x87(cpu);
	lin = insn_linear(cpu, in, env_size(in), true);
	vec_check_ac(cpu, lin, in->opsize == 2 ? 2 : 4);
	probe_ends(cpu, in, lin, env_size(in), true);
	vec_load(cpu);
	__asm__ volatile("fnstenv (%0)" : : "r"(cpu->vec->bounce) : "memory");
	store_env(cpu, in, lin, 0);
	vec_end(cpu);
}

void exec_fnsave(struct cpu *cpu, const struct insn *in)
{
	gva_t lin;

	check_x87(cpu);
	lin = insn_linear(cpu, in, env_size(in) + REGS, true);
	vec_check_ac(cpu, lin, in->opsize == 2 ? 2 : 4);
	probe_ends(cpu, in, lin, env_size(in) + REGS, true);
	vec_load(cpu);
	__asm__ volatile("fnsave (%0)" : : "r"(cpu->vec->bounce) : "memory");
	store_env(cpu, in, lin, REGS);
	clear_ptr(cpu);
	vec_end(cpu);
}

/* Read environment and registers to the bounce buffer in the host's layout. */
static void load_env(struct cpu *cpu, const struct insn *in, gva_t lin, unsigned regs)
{
	struct x87_env *env = (struct x87_env *)cpu->vec->bounce;
	uint16_t env16[(ENV16 + REGS) / 2];

	vec_check_ac(cpu, lin, in->opsize == 2 ? 2 : 4);
	probe_ends(cpu, in, lin, env_size(in) + regs, false);
	if (in->opsize != 2) {
		ld_bytes(cpu, lin, env, ENV32 + regs);
		take_env32(cpu, env);
		return;
	}
	ld_bytes(cpu, lin, env16, ENV16 + regs);
	take_env16(cpu, env16, env);
	vec_copy(env + 1, env16 + ENV16 / 2, regs);
}

void exec_fldenv(struct cpu *cpu, const struct insn *in)
{
	check_x87(cpu);
	vec_x87_pending(cpu);
	load_env(cpu, in, insn_linear(cpu, in, env_size(in), false), 0);
	vec_load(cpu);
	__asm__ volatile("fldenv (%0)" : : "r"(cpu->vec->bounce) : "memory");
	vec_end(cpu);
}

void exec_frstor(struct cpu *cpu, const struct insn *in)
{
	check_x87(cpu);
	vec_x87_pending(cpu);
	load_env(cpu, in, insn_linear(cpu, in, env_size(in) + REGS, false), REGS);
	vec_load(cpu);
	__asm__ volatile("frstor (%0)" : : "r"(cpu->vec->bounce) : "memory");
	vec_end(cpu);
}
