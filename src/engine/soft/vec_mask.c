/* engine/soft/vec_mask.c - memory operands of which only some elements are touched.
 *
 * Masked moves and EVEX memory operands with an opmask do not fault for elements that are masked
 * off.  When the whole operand is in one page of plain RAM the thunk works on it directly; only
 * otherwise do we come here, read or write the chosen elements one by one and run the thunk on the
 * bounce buffer.  Gathers and scatters are done here altogether: element by element, clearing each
 * one's mask, so that a fault in the middle leaves a state from which the instruction goes on
 * (SDM 2 "VGATHERDPS"). */
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/insn_rows.h"
#include "engine/soft/vec_int.h"

enum { ZMM_BYTES = 64, MMX_ALL_VALID = 0xff };

/* --- registers in the state area ----------------------------------------------------------------
 * Only while !live.  A register above XMM is spread over components.
 */

static uint8_t *component(struct vec_state *vs, unsigned i)
{
	return vs->area + vec_components[i].offset;
}

static void read_vector(struct vec_state *vs, unsigned n, uint8_t v[ZMM_BYTES])
{
	if (n >= 16) {
		vec_copy(v, component(vs, 7) + 64 * (n - 16), 64);
		return;
	}
	vec_copy(v, vs->area + XS_XMM + 16 * n, 16);
	vec_copy(v + 16, component(vs, 2) + 16 * n, 16);
	vec_copy(v + 32, component(vs, 6) + 32 * n, 32);
}

static void write_vector(struct vec_state *vs, unsigned n, const uint8_t v[ZMM_BYTES])
{
	if (n >= 16) {
		vec_copy(component(vs, 7) + 64 * (n - 16), v, 64);
		return;
	}
	vec_copy(vs->area + XS_XMM + 16 * n, v, 16);
	vec_copy(component(vs, 2) + 16 * n, v + 16, 16);
	vec_copy(component(vs, 6) + 32 * n, v + 32, 32);
}

/* What write_vector and write_opmask may fill counts as in use from now on. */
static void mark_in_use(struct vec_state *vs, bool evex)
{
	VEC_AT(uint64_t, vs->area, XS_BV) |= XCR0_SSE | XCR0_AVX | (evex ? XCR0_AVX512 : 0);
}

static uint64_t read_opmask(struct vec_state *vs, unsigned k)
{
	return VEC_AT(uint64_t, component(vs, 5), 8 * k);
}

static void write_opmask(struct vec_state *vs, unsigned k, uint64_t v)
{
	VEC_AT(uint64_t, component(vs, 5), 8 * k) = v;
}

/* --- masked operands ----------------------------------------------------------------------------
 */

static uint64_t low_bits(unsigned n)
{
	return n >= 64 ? ~0ull : BIT(n) - 1;
}

static bool sign_of(const uint8_t *v, unsigned i, unsigned elem)
{
	return v[(i + 1) * elem - 1] & 0x80;
}

static uint64_t sign_mask(struct vec_state *vs, unsigned reg, unsigned elem, unsigned n)
{
	uint8_t v[ZMM_BYTES];
	uint64_t mask = 0;

	read_vector(vs, reg, v);
	for (unsigned i = 0; i < n; i++)
		mask |= (uint64_t)sign_of(v, i, elem) << i;
	return mask;
}

/* Which memory elements are touched: bit per element, t->a.size / t->a.elem of them.  When the
 * operand has fewer elements than the mask has bits (broadcasts), each serves several bits. */
static uint64_t touched(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t)
{
	unsigned n = t->a.size / t->a.elem;
	uint64_t k, all = 0;

	vec_release(cpu);
	if (insn_rows[in->id].special == SPECIAL_MASKMOV)
		return sign_mask(cpu->vec, in->vv, t->a.elem, n);
	k = read_opmask(cpu->vec, in->k) & low_bits(t->a.bits);
	if (t->a.use & VEC_PACKED)
		return low_bits((unsigned)__builtin_popcountll(k));
	for (unsigned i = 0; i < t->a.bits; i += n)
		all |= k >> i;
	return all & low_bits(n);
}

bool vec_mask_empty(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t)
{
	return !touched(cpu, in, t);
}

void vec_masked_limits(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t,
		       bool write)
{
	uint64_t mask = touched(cpu, in, t), ea = insn_ea(cpu, in);
	unsigned elem = t->a.elem;

	for (unsigned i = 0; i < t->a.size / elem; i++)
		if (mask >> i & 1)
			seg_linear(cpu, in->seg, ea + i * elem, elem, write);
}

void vec_masked_load(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t, gva_t lin)
{
	uint64_t mask = touched(cpu, in, t);
	unsigned elem = t->a.elem;
	uint8_t *bounce = cpu->vec->bounce + (lin & (ZMM_BYTES - 1)); /* as misaligned */

	vec_zero(bounce, t->a.size);
	for (unsigned i = 0; i < t->a.size / elem; i++)
		if (mask >> i & 1)
			ld_bytes(cpu, lin + i * elem, bounce + i * elem, elem);
	vec_run(cpu, t, bounce);
}

void vec_masked_store(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t, gva_t lin)
{
	uint64_t mask = touched(cpu, in, t);
	unsigned elem = t->a.elem;
	uint8_t *bounce = cpu->vec->bounce + (lin & (ZMM_BYTES - 1));

	if (t->a.use & VEC_FAULTS_WHOLE)
		probe_write(cpu, lin, t->a.size);
	for (unsigned i = 0; i < t->a.size / elem; i++)
		if (mask >> i & 1)
			probe_write(cpu, lin + i * elem, elem);
	vec_run(cpu, t, bounce);
	for (unsigned i = 0; i < t->a.size / elem; i++)
		if (mask >> i & 1)
			st_bytes(cpu, lin + i * elem, bounce + i * elem, elem);
}

/* --- MASKMOVQ, MASKMOVDQU -----------------------------------------------------------------------
 */

/* Linear address of n bytes at [rDI], which has no ModRM form. */
static gva_t rdi_linear(struct cpu *cpu, const struct insn *in, unsigned n)
{
	uint64_t ea = cpu->gpr[X86_RDI];

	if (in->adsize != 8)
		ea = in->adsize == 4 ? (uint32_t)ea : (uint16_t)ea;
	if (cpu->mode == INSN_MODE_64)
		return ea + CPU_REG(cpu, in->segbase, const uint64_t);
	return seg_linear(cpu, in->seg, ea, n, true);
}

static void store_masked_bytes(struct cpu *cpu, gva_t lin, const uint8_t *data, const uint8_t *mask,
			       unsigned n)
{
	/* What a clear mask byte keeps away is the maker's choice (SDM 2B "MASKMOVDQU"). */
	if (cpu_model_is_amd(cpu->vm->model))
		probe_write(cpu, lin, n);
	for (unsigned i = 0; i < n; i++)
		if (mask[i] & 0x80)
			probe_write(cpu, lin + i, 1);
	for (unsigned i = 0; i < n; i++)
		if (mask[i] & 0x80)
			st8(cpu, lin + i, data[i]);
}

/* Any MMX instruction makes TOP 0 and all registers valid; reading one does only that.  AMD's
 * processors do it even when the store then faults. */
static void enter_mmx(struct cpu *cpu)
{
	uint32_t unused;

	vec_load(cpu);
	__asm__ volatile("movd %%mm0, %0" : "=r"(unused));
}

void exec_maskmov(struct cpu *cpu, const struct insn *in)
{
	struct vec_state *vs = cpu->vec;
	const struct vec_thunk *t = vec_thunk_of(cpu, in);
	bool mmx = t->a.cls == VEC_MMX;
	unsigned n = mmx ? 8 : 16;
	uint8_t data[16], mask[16];
	const uint8_t *regs;
	gva_t lin;

	vec_check(cpu, t);
	if (mmx) {
		vec_x87_pending(cpu);
		enter_mmx(cpu);
	}
	lin = rdi_linear(cpu, in, n);
	vec_check_ac(cpu, lin, 8);
	vec_release(cpu);
	regs = vs->area + (mmx ? XS_ST : XS_XMM); /* MMn is ST(n) while TOP is 0 */
	vec_copy(data, regs + 16 * (in->vreg & (mmx ? 7 : 15)), n);
	vec_copy(mask, regs + 16 * (in->vrm & (mmx ? 7 : 15)), n);
	store_masked_bytes(cpu, lin, data, mask, n);
}

/* --- gathers and scatters -----------------------------------------------------------------------
 */

struct vsib {
	uint8_t index[ZMM_BYTES];
	unsigned n, elem; /* elements, and bytes of each in memory */
	unsigned index_bytes;
};

/* Opcode bit 0: indices of 8 bytes, else 4; W: elements of 8 bytes. */
static void vsib_init(struct vsib *v, struct vec_state *vs, const struct insn *in)
{
	v->elem = in->flags & INSN_REXW ? 8 : 4;
	v->index_bytes = in->opcode & 1 ? 8 : 4;
	v->n = in->vlen / MAX(v->elem, v->index_bytes);
	read_vector(vs, in->vrm, v->index);
}

static gva_t vsib_linear(struct cpu *cpu, const struct insn *in, const struct vsib *v, unsigned i,
			 bool write)
{
	int64_t index = v->index_bytes == 8 ? VEC_AT(const int64_t, v->index, 8 * i)
					    : VEC_AT(const int32_t, v->index, 4 * i);
	uint64_t ea = CPU_REG(cpu, in->base, const uint64_t) + ((uint64_t)index << in->scale) +
		      (uint64_t)(int64_t)in->disp;

	if (in->adsize != 8)
		ea = (uint32_t)ea;
	if (cpu->mode == INSN_MODE_64)
		return ea + CPU_REG(cpu, in->segbase, const uint64_t);
	return seg_linear(cpu, in->seg, ea, v->elem, write);
}

/* Element i is done: clear its mask.  A VEX gather's mask is a vector register, of which elements
 * still to do keep what they hold. */
static void clear_mask(struct vec_state *vs, const struct insn *in, const struct vsib *v,
		       unsigned i)
{
	uint8_t m[ZMM_BYTES];

	if (in->flags & INSN_EVEX) {
		write_opmask(vs, in->k, read_opmask(vs, in->k) & ~BIT(i));
		return;
	}
	read_vector(vs, in->vv, m);
	vec_zero(m + i * v->elem, v->elem);
	write_vector(vs, in->vv, m);
}

/* All are done: nothing is left of the mask, elements beyond the last included. */
static void finish_mask(struct vec_state *vs, const struct insn *in)
{
	static const uint8_t zero[ZMM_BYTES];

	if (in->flags & INSN_EVEX)
		write_opmask(vs, in->k, 0);
	else
		write_vector(vs, in->vv, zero);
}

static uint64_t read_mask(struct vec_state *vs, const struct insn *in, const struct vsib *v)
{
	if (in->flags & INSN_EVEX)
		return read_opmask(vs, in->k) & low_bits(v->n);
	return sign_mask(vs, in->vv, v->elem, v->n);
}

static void gather(struct cpu *cpu, const struct insn *in, const struct vsib *v)
{
	struct vec_state *vs = cpu->vec;
	uint64_t mask = read_mask(vs, in, v);
	unsigned used = v->n * v->elem;
	uint8_t dest[ZMM_BYTES], elem[8];

	read_vector(vs, in->vreg, dest);
	for (unsigned i = 0; i < v->n; i++) {
		if (mask >> i & 1) {
			ld_bytes(cpu, vsib_linear(cpu, in, v, i, false), elem, v->elem);
			vec_copy(dest + i * v->elem, elem, v->elem);
			if (in->flags & INSN_EVEX) /* as AMD's do after the first element */
				vec_zero(dest + in->vlen, ZMM_BYTES - in->vlen);
			write_vector(vs, in->vreg, dest);
		}
		clear_mask(vs, in, v, i);
	}
	vec_zero(dest + used, ZMM_BYTES - used);
	write_vector(vs, in->vreg, dest);
	finish_mask(vs, in);
}

static void scatter(struct cpu *cpu, const struct insn *in, const struct vsib *v)
{
	struct vec_state *vs = cpu->vec;
	uint64_t mask = read_mask(vs, in, v);
	uint8_t src[ZMM_BYTES];

	read_vector(vs, in->vreg, src);
	for (unsigned i = 0; i < v->n; i++) {
		if (mask >> i & 1)
			st_bytes(cpu, vsib_linear(cpu, in, v, i, true), src + i * v->elem, v->elem);
		clear_mask(vs, in, v, i);
	}
	finish_mask(vs, in);
}

static void begin_vsib(struct cpu *cpu, const struct insn *in, struct vsib *v)
{
	uint8_t deny = cpu->vec->deny[in->flags & INSN_EVEX ? VEC_AVX512 : VEC_AVX];

	if (deny)
		cpu_fault_plain(cpu, deny);
	vec_release(cpu);
	mark_in_use(cpu->vec, in->flags & INSN_EVEX);
	vsib_init(v, cpu->vec, in);
}

void exec_vec_gather(struct cpu *cpu, const struct insn *in)
{
	struct vsib v;

	begin_vsib(cpu, in, &v);
	gather(cpu, in, &v);
}

void exec_vec_scatter(struct cpu *cpu, const struct insn *in)
{
	struct vsib v;

	begin_vsib(cpu, in, &v);
	scatter(cpu, in, &v);
}

/* --- VZEROUPPER, VZEROALL -----------------------------------------------------------------------
 */

/* Outside 64-bit mode registers 8 to 15 keep what they hold (SDM 2C "VZEROUPPER"). */
void exec_vec_zero(struct cpu *cpu, const struct insn *in)
{
	struct vec_state *vs = cpu->vec;

	if (cpu->mode == INSN_MODE_64) {
		exec_vec(cpu, in);
		return;
	}
	vec_check(cpu, vec_thunk_of(cpu, in));
	vec_release(cpu);
	if (in->vlen == 32)
		vec_zero(vs->area + XS_XMM, 8 * 16);
	vec_zero(component(vs, 2), 8 * 16);
	vec_zero(component(vs, 6), 8 * 32 * (vec_components[6].size != 0));
}
