/* engine/soft/xlat_sys.c - templates of what kernels do all the time: IF, AC, GS, TSC, PUSHF,
 * PAUSE.
 *
 * Each asks for the simple case (ring 0, no event waiting ...) and does that; else the interpreter
 * does the instruction, and what follows is the run loop's where the row ends a block.
 *
 * STI keeps interrupts away from the next instruction.  No event waits when it is done here, and
 * the next instruction usually runs at once.  If something comes just then and translated code
 * refuses to go on, the run loop learns from cpu->xl_sti that the shadow is still there.  Its being
 * out of date does no harm: then an interrupt comes one instruction later. */
#include "engine/soft/xlat_int.h"

static void slow(struct xgen *g, const struct insn *in, unsigned cc)
{
	xlat_slow(g, x_jcc(g, cc), !(in->flags & INSN_END));
}

static void op_mem(struct xgen *g, uint8_t code, unsigned reg, const struct xmem *m, unsigned imm)
{
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = code}, reg, m, imm);
}

static void op_reg(struct xgen *g, uint8_t code, unsigned reg, unsigned rm, bool w)
{
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = code, .w = w}, reg, rm);
}

/* test byte m, bits */
static void test_bits(struct xgen *g, const struct xmem *m, uint8_t bits)
{
	op_mem(g, 0xf6, 0, m, 1);
	x8(g, bits);
}

static void alu_mem(struct xgen *g, unsigned op, const struct xmem *m, uint32_t imm)
{
	op_mem(g, 0x81, op, m, 4);
	x32(g, imm);
}

static void need_ring0(struct xgen *g, const struct insn *in)
{
	const struct xmem cpl = XMEM_CPU(g, cpl);

	op_mem(g, 0x80, X_CMP, &cpl, 1);
	x8(g, 0);
	slow(g, in, CC_NZ);
}

static void need_no_event(struct xgen *g, const struct insn *in)
{
	const struct xmem events = XMEM_CPU(g, events);

	x_cmp_mem_imm32(g, &events, 0, false);
	slow(g, in, CC_NZ);
}

/* The byte of RFLAGS that has this bit. */
static struct xmem rflags_byte(struct xgen *g, uint64_t flag, uint8_t *bit)
{
	struct xmem m = XMEM_CPU(g, rflags);
	unsigned n = (unsigned)__builtin_ctzll(flag);

	m.abs = (const uint8_t *)m.abs + n / 8;
	*bit = (uint8_t)(1 << n % 8);
	return m;
}

/* --- IF ----------------------------------------------------------------------------------------
 */

static void cli(struct xgen *g, const struct insn *in)
{
	const struct xmem rflags = XMEM_CPU(g, rflags), mask = XMEM_CPU(g, xl_events);

	need_ring0(g, in);
	alu_mem(g, X_AND, &rflags, ~(uint32_t)RFLAGS_IF);
	alu_mem(g, X_AND, &mask, ~(uint32_t)CPU_EV_INTR);
}

static void sti(struct xgen *g, const struct insn *in)
{
	const struct xmem rflags = XMEM_CPU(g, rflags), mask = XMEM_CPU(g, xl_events);
	const struct xmem shadow = XMEM_CPU(g, xl_sti);
	uint8_t bit;
	struct xmem flag = rflags_byte(g, RFLAGS_IF, &bit);
	uint32_t done;

	need_ring0(g, in);
	test_bits(g, &flag, bit);
	done = x_jcc(g, CC_NZ);
	need_no_event(g, in);
	alu_mem(g, X_OR, &rflags, (uint32_t)RFLAGS_IF);
	alu_mem(g, X_OR, &mask, CPU_EV_INTR);
	x_mov_imm(g, T0, g->next_rip);
	x_store(g, &shadow, T0);
	x_patch(g->x, done, x_offset(g));
}

/* --- AC: another class of the TLB ----------------------------------------------------------------
 */

static void use_tlb(struct xgen *g, unsigned reg)
{
	const struct xmem tlb = XMEM_CPU(g, tlb), gs = XMEM_CPU(g, xl_gs);

	x_store(g, &tlb, reg);
	x_store(g, &gs, reg);
	x_op_reg(g, &(struct xop){.map = MAP_0F, .opcode = 0xae, .prefix = 0xf3, .w = true}, 3,
		 reg); /* wrgsbase */
}

static void set_ac(struct xgen *g, const struct insn *in, bool on)
{
	const struct xmem rflags = XMEM_CPU(g, rflags), sys = XMEM_CPU(g, tlb_sys);
	const struct xmem free = XMEM_CPU(g, tlb_super);

	need_ring0(g, in);
	if (on)
		alu_mem(g, X_OR, &rflags, RFLAGS_AC);
	else
		alu_mem(g, X_AND, &rflags, ~(uint32_t)RFLAGS_AC);
	x_load(g, T0, on ? &free : &sys);
	use_tlb(g, T0);
}

/* --- FS and GS bases -----------------------------------------------------------------------------
 */

static void swapgs(struct xgen *g, const struct insn *in)
{
	const struct xmem base = XMEM_CPU(g, seg[X86_GS].base), other = XMEM_CPU(g, kernel_gs_base);

	need_ring0(g, in);
	x_load(g, T0, &base);
	x_load(g, T1, &other);
	x_store(g, &base, T1);
	x_store(g, &other, T0);
}

static void read_base(struct xgen *g, const struct insn *in, unsigned seg)
{
	struct xmem cr4 = XMEM_CPU(g, cr4), base = XMEM_CPU(g, seg[seg].base);
	struct xmem to = XMEM_CPU(g, gpr[in->rm / 8]);
	int reg = host_reg(in->rm / 8);

	cr4.abs = (const uint8_t *)cr4.abs + 2;
	test_bits(g, &cr4, CR4_FSGSBASE >> 16);
	slow(g, in, CC_Z);
	if (in->opsize == 8)
		x_load(g, reg == H_NONE ? T0 : (unsigned)reg, &base);
	else
		x_load32(g, reg == H_NONE ? T0 : (unsigned)reg, &base);
	if (reg == H_NONE)
		x_store(g, &to, T0);
}

/* --- time ----------------------------------------------------------------------------------------
 */

static void rdtsc(struct xgen *g, const struct insn *in)
{
	const struct xmem cr4 = XMEM_CPU(g, cr4), offset = XMEM_CPU(g, tsc_offset);
	const struct xmem aux = XMEM_CPU(g, tsc_aux);

	test_bits(g, &cr4, CR4_TSD);
	slow(g, in, CC_NZ);
	x8(g, 0x0f);
	x8(g, 0x31);
	x_shift(g, 4, H_RDX, 32, true);
	op_reg(g, 0x09, H_RDX, H_RAX, true);
	x_add_mem(g, H_RAX, &offset);
	x_mov(g, H_RDX, H_RAX);
	x_shift(g, 5, H_RDX, 32, true);
	op_reg(g, 0x89, H_RAX, H_RAX, false);
	if (in->id == INSN_rdtscp)
		x_load32(g, H_RCX, &aux);
}

/* --- the rest ------------------------------------------------------------------------------------
 */

/* With more vCPUs than one the interpreter gives way at every 64th: exec_pause. */
static void pause(struct xgen *g, const struct insn *in)
{
	const struct xmem pauses = XMEM_CPU(g, pauses);

	if (g->cpu->vm->nr_cpus > 1) {
		x_load32(g, T0, &pauses);
		x_alu_imm(g, X_ADD, T0, 1, false);
		x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0xf6}, 0, T0); /* test t0b, 63 */
		x8(g, 63);
		slow(g, in, CC_Z);
		x_store32(g, &pauses, T0);
	}
	x8(g, 0xf3);
	x8(g, 0x90);
}

/* Code that others have written is given up in the run loop, if there is such. */
static void serialize(struct xgen *g, const struct insn *in)
{
	need_no_event(g, in);
	x8(g, 0x0f); /* mfence */
	x8(g, 0xae);
	x8(g, 0xf0);
}

/* T0 = RFLAGS as PUSHF shows them, of xl_flags and cpu->rflags. */
static void flags_image(struct xgen *g)
{
	const struct xmem fl = XMEM_CPU(g, xl_flags), rflags = XMEM_CPU(g, rflags);

	x_load32(g, T0, &fl);
	op_reg(g, 0x89, T0, T1, false);
	x_shift(g, 5, T0, 8, false);
	x_alu_imm(g, X_AND, T0, RFLAGS_ARITH & 0xff, false);
	x_alu_imm(g, X_AND, T1, 1, false);
	x_shift(g, 4, T1, 11, false);
	op_reg(g, 0x09, T1, T0, false);
	x_load(g, T1, &rflags);
	x_alu_imm(g, X_AND, T1, ~(int32_t)(RFLAGS_ARITH | RFLAGS_RF | RFLAGS_VM), true);
	op_reg(g, 0x09, T1, T0, true);
	x_alu_imm(g, X_OR, T0, RFLAGS_FIXED, false);
}

static void pushf(struct xgen *g)
{
	const struct xmem kept = XMEM_CPU(g, xl_kept);
	int32_t word = (int32_t)xgen_word(g);
	struct xmem m;

	flags_image(g);
	x_store(g, &kept, T0);
	xlat_mem_at(g, H_GUEST_RSP, -word, (unsigned)word, true, true, &m);
	x_load(g, T0, &kept);
	x_store_word(g, &m, T0);
	x_lea_word(g, H_GUEST_RSP,
		   &(struct xmem){.base = H_GUEST_RSP, .index = H_NONE, .disp = -word});
}

bool xlat_sys_ok(const struct xgen *g, const struct insn *in)
{
	if (g->x->cfg.lockstep) /* which could not undo them */
		return false;
	switch (in->id) {
	case INSN_pushf:
		return in->opsize == xgen_word(g);
	case INSN_stac:
	case INSN_clac:
		return xlat_gs_is_quick();
	default:
		return true;
	}
}

void xlat_sys(struct xgen *g, const struct insn *in)
{
	xlat_flags_clobber(g);
	switch (in->id) {
	case INSN_cli:
		cli(g, in);
		break;
	case INSN_sti:
		sti(g, in);
		break;
	case INSN_stac:
	case INSN_clac:
		set_ac(g, in, in->id == INSN_stac);
		break;
	case INSN_swapgs:
		swapgs(g, in);
		break;
	case INSN_rdfsbase_Ry:
	case INSN_rdgsbase_Ry:
		read_base(g, in, in->id == INSN_rdfsbase_Ry ? X86_FS : X86_GS);
		break;
	case INSN_rdtsc:
	case INSN_rdtscp:
		rdtsc(g, in);
		break;
	case INSN_pause:
		pause(g, in);
		break;
	case INSN_serialize:
		serialize(g, in);
		break;
	default:
		pushf(g);
	}
}
