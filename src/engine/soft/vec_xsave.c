/* engine/soft/vec_xsave.c - FXSAVE, XSAVE and their families, XCR0, MXCSR; state in and out.
 *
 * Guest state is released to vs->area first; the area is the host's standard XSAVE layout, which
 * is also the layout the guest is told (cpu_xsave_component), so images are made by copying
 * components.  Rules: SDM 1 "Managing State Using the XSAVE Feature Set".
 *
 *      0 +---------------------+
 *        | x87, MXCSR, XMM0-15 |  legacy region, as FXSAVE
 *    512 +---------------------+
 *        | XSTATE_BV  XCOMP_BV |  header, rest 0
 *    576 +---------------------+
 *        | AVX, opmask, ZMM .. |  standard: where CPUID says; compacted: in order, no gaps
 *        +---------------------+
 *
 * Page faults come as AMD's processors give them: the first byte of an image is looked at, then the
 * last of all that is asked for (of FXSAVE's the last only), then what is transferred.
 *
 * PKRU is a component whose register is cpu->pkru.  Outside 64-bit mode XMM8-15 and the parts of
 * other components that belong to registers 8 and up are neither stored nor changed. */
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/vec_int.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>

enum { LEGACY_X87 = 160, LEGACY_SIZE = 512, HEADER_SIZE = 64 };
#define XCOMP_COMPACTED BIT(63)

/* One XSAVE or XRSTOR. */
struct xop {
	gva_t lin;
	uint64_t rfbm;    /* components asked for */
	uint64_t in_use;  /* XINUSE */
	uint64_t compact; /* XCOMP_BV, or 0 for the standard form */
	bool wide;        /* 64-bit FIP and FDP */
	bool optimized;   /* components in their initial state are not written */
};

/* --- the state area -----------------------------------------------------------------------------
 */

/* MXCSR bits a guest may set: the host's, without misaligned SSE when that is not offered. */
uint32_t vec_mxcsr_mask(const struct cpu *cpu)
{
	static _Atomic uint32_t host_mask;
	_Alignas(16) uint8_t image[512];
	uint32_t mask = host_mask;

	if (!mask) {
		__asm__ volatile("fxsave64 %0" : "=m"(image));
		mask = VEC_AT(uint32_t, image, XS_MXCSR_MASK);
		host_mask = mask = mask ? mask : 0xffbf;
	}
	if (!cpu_has(cpu->vm->model, CPU_FEAT_MISALIGNSSE))
		mask &= ~(uint32_t)MXCSR_MM;
	return mask;
}

/* Bytes of a component that belong to registers the mode can name. */
static uint32_t component_bytes(const struct cpu *cpu, unsigned i)
{
	uint32_t size = vec_components[i].size;

	if (cpu->mode == INSN_MODE_64)
		return size;
	switch (BIT(i)) {
	case XCR0_AVX:
	case BIT(6): /* ZMM_Hi256 */
		return size / 2;
	case BIT(7): /* Hi16_ZMM */
		return 0;
	default:
		return size;
	}
}

static uint32_t legacy_end(const struct cpu *cpu)
{
	return cpu->mode == INSN_MODE_64 ? XS_XMM + 16 * 16 : XS_XMM + 8 * 16;
}

static uint64_t in_use(const struct cpu *cpu)
{
	return VEC_AT(const uint64_t, cpu->vec->area, XS_BV) | (cpu->pkru ? XCR0_PKRU : 0);
}

static void init_x87(struct cpu *cpu)
{
	uint8_t *area = cpu->vec->area;

	vec_zero(area, XS_MXCSR);
	vec_zero(area + XS_ST, XS_XMM - XS_ST);
	VEC_AT(uint16_t, area, XS_FCW) = FCW_DEFAULT;
	cpu->x87 = (struct x87_ptr){0};
}

static void set_in_use(struct cpu *cpu, uint64_t bits)
{
	VEC_AT(uint64_t, cpu->vec->area, XS_BV) |= bits;
}

/* --- FXSAVE -------------------------------------------------------------------------------------
 */

static bool is_wide(const struct cpu *cpu, const struct insn *in)
{
	return cpu->mode == INSN_MODE_64 && in->flags & INSN_REXW;
}

/* AMD APM 2 "Fast FXSAVE/FXRSTOR": XMM registers are left out at CPL 0 in 64-bit mode. */
static uint32_t fxsave_bytes(const struct cpu *cpu)
{
	if (cpu->efer & EFER_FFXSR && cpu->mode == INSN_MODE_64 && cpu->cpl == 0)
		return XS_XMM;
	return legacy_end(cpu);
}

/* The operand's address before its segment is asked: misalignment comes first. */
static gva_t unlimited_linear(struct cpu *cpu, const struct insn *in)
{
	if (cpu->mode == INSN_MODE_64)
		return insn_linear(cpu, in, 1, false);
	return (uint32_t)(cpu->seg[in->seg].base + insn_ea(cpu, in));
}

static gva_t fxsave_operand(struct cpu *cpu, const struct insn *in, bool write)
{
	gva_t lin;

	if (cpu->vec->deny[VEC_X87])
		cpu_fault_plain(cpu, cpu->vec->deny[VEC_X87]);
	lin = insn_linear(cpu, in, LEGACY_SIZE, false); /* write permission comes last */
	vec_check_ac(cpu, lin, 4);
	if (lin & 15)
		fault_gp(cpu, 0);
	lin = insn_linear(cpu, in, LEGACY_SIZE, write);
	if (write)
		probe_write(cpu, vec_last(cpu, lin, LEGACY_SIZE), 1);
	else
		probe_read(cpu, vec_last(cpu, lin, LEGACY_SIZE), 1);
	return lin;
}

static void legacy_image(struct cpu *cpu, uint8_t *image, bool wide)
{
	vec_copy(image, cpu->vec->area, LEGACY_SIZE);
	VEC_AT(uint32_t, image, XS_MXCSR_MASK) = vec_mxcsr_mask(cpu);
	vec_x87_put_ptr(cpu, image, wide);
}

void exec_fxsave(struct cpu *cpu, const struct insn *in)
{
	gva_t lin = fxsave_operand(cpu, in, true);
	uint8_t *image = cpu->vec->bounce;

	probe_write(cpu, lin, LEGACY_SIZE);
	vec_release(cpu);
	legacy_image(cpu, image, is_wide(cpu, in));
	st_bytes(cpu, lin, image, fxsave_bytes(cpu));
}

void exec_fxrstor(struct cpu *cpu, const struct insn *in)
{
	gva_t lin = fxsave_operand(cpu, in, false);
	uint8_t *image = cpu->vec->bounce, *area = cpu->vec->area;

	ld_bytes(cpu, lin, image, LEGACY_SIZE);
	if (VEC_AT(uint32_t, image, XS_MXCSR) & ~vec_mxcsr_mask(cpu))
		fault_gp(cpu, 0);
	vec_release(cpu);
	vec_copy(area, image, fxsave_bytes(cpu));
	vec_x87_take_ptr(cpu, image, is_wide(cpu, in));
	set_in_use(cpu, XCR0_X87 | XCR0_SSE);
	vec_settle(cpu->vec);
}

/* --- XSAVE --------------------------------------------------------------------------------------
 */

static void check_xsave(struct cpu *cpu)
{
	if (!(cpu->cr4 & CR4_OSXSAVE))
		fault_ud(cpu);
	if (cpu->cr0 & CR0_TS)
		cpu_fault_plain(cpu, X86_EXC_NM);
}

static void check_supervisor(struct cpu *cpu)
{
	if (cpu->cpl)
		fault_gp(cpu, 0);
}

static uint64_t edx_eax(const struct cpu *cpu)
{
	return (uint32_t)cpu->gpr[X86_RAX] | cpu->gpr[X86_RDX] << 32;
}

/* Where component i is in an image of this form; 0: nowhere. */
static uint32_t component_at(const struct xop *x, unsigned i)
{
	uint32_t at = XS_EXT;

	if (!vec_components[i].size)
		return 0;
	if (!x->compact)
		return vec_components[i].offset;
	if (!(x->compact >> i & 1))
		return 0;
	for (unsigned j = 2; j < i; j++)
		if (x->compact >> j & 1)
			at += vec_components[j].size;
	return at;
}

static uint32_t image_end(const struct xop *x, uint64_t components)
{
	uint32_t end = XS_EXT;

	for (unsigned i = 2; i < VEC_NR_COMPONENTS; i++)
		if (components >> i & 1 && component_at(x, i))
			end = MAX(end, component_at(x, i) + vec_components[i].size);
	return end;
}

static void operand(struct cpu *cpu, const struct insn *in, struct xop *x, bool write)
{
	uint64_t all = x->compact ? x->compact : x->rfbm;
	/* What XRSTOR reads of it is known when the header has been read. */
	uint32_t size = write ? image_end(x, all) : XS_EXT;

	x->wide = is_wide(cpu, in);
	if (unlimited_linear(cpu, in) & 63)
		fault_gp(cpu, 0);
	x->lin = insn_linear(cpu, in, size, write);
}

/* The legacy region piece by piece: what is not asked for keeps its bytes in memory. */
static void save_legacy(struct cpu *cpu, const struct xop *x, uint64_t components)
{
	uint8_t *image = cpu->vec->bounce;
	uint64_t mxcsr_with = x->compact ? XCR0_SSE : XCR0_SSE | XCR0_AVX;

	legacy_image(cpu, image, x->wide);
	if (components & XCR0_X87) {
		st_bytes(cpu, x->lin, image, XS_MXCSR);
		st_bytes(cpu, x->lin + XS_ST, image + XS_ST, XS_XMM - XS_ST);
	}
	if ((x->compact ? components : x->rfbm) & mxcsr_with)
		st_bytes(cpu, x->lin + XS_MXCSR, image + XS_MXCSR, XS_ST - XS_MXCSR);
	if (components & XCR0_SSE)
		st_bytes(cpu, x->lin + XS_XMM, image + XS_XMM, legacy_end(cpu) - XS_XMM);
}

static void save_component(struct cpu *cpu, const struct xop *x, unsigned i)
{
	uint32_t offset = component_at(x, i), bytes = component_bytes(cpu, i);

	if (!offset || !bytes)
		return;
	if (BIT(i) == XCR0_PKRU)
		st64(cpu, x->lin + offset, cpu->pkru);
	else
		st_bytes(cpu, x->lin + offset, cpu->vec->area + vec_components[i].offset, bytes);
}

static void save(struct cpu *cpu, struct xop *x)
{
	uint64_t components, old = 0;

	vec_release(cpu);
	x->in_use = in_use(cpu);
	if (x->compact && VEC_AT(uint32_t, cpu->vec->area, XS_MXCSR) != MXCSR_DEFAULT)
		x->in_use |= XCR0_SSE;
	components = x->optimized ? x->rfbm & x->in_use : x->rfbm;
	probe_write(cpu, x->lin, 1);
	probe_write(cpu, vec_last(cpu, x->lin, image_end(x, x->rfbm)), 1);
	probe_write(cpu, x->lin, image_end(x, components));
	if (!x->compact)
		old = ld64(cpu, x->lin + XS_BV);
	save_legacy(cpu, x, components);
	for (unsigned i = 2; i < VEC_NR_COMPONENTS; i++)
		if (components >> i & 1)
			save_component(cpu, x, i);
	st64(cpu, x->lin + XS_BV, (old & ~x->rfbm) | (x->rfbm & x->in_use));
	if (x->compact)
		st64(cpu, x->lin + XS_XCOMP, x->compact);
}

void exec_xsave(struct cpu *cpu, const struct insn *in)
{
	struct xop x = {.rfbm = edx_eax(cpu) & cpu->xcr0};

	check_xsave(cpu);
	operand(cpu, in, &x, true);
	save(cpu, &x);
}

void exec_xsaveopt(struct cpu *cpu, const struct insn *in)
{
	struct xop x = {.rfbm = edx_eax(cpu) & cpu->xcr0, .optimized = true};

	check_xsave(cpu);
	operand(cpu, in, &x, true);
	save(cpu, &x);
}

void exec_xsavec(struct cpu *cpu, const struct insn *in)
{
	struct xop x = {.rfbm = edx_eax(cpu) & cpu->xcr0, .optimized = true};

	check_xsave(cpu);
	x.compact = x.rfbm | XCOMP_COMPACTED;
	operand(cpu, in, &x, true);
	save(cpu, &x);
}

void exec_xsaves(struct cpu *cpu, const struct insn *in)
{
	struct xop x = {.rfbm = edx_eax(cpu) & (cpu->xcr0 | cpu->xss), .optimized = true};

	check_xsave(cpu);
	check_supervisor(cpu);
	x.compact = x.rfbm | XCOMP_COMPACTED;
	operand(cpu, in, &x, true);
	save(cpu, &x);
}

/* --- XRSTOR -------------------------------------------------------------------------------------
 */

/* Read and check the header; XSTATE_BV is returned. */
static uint64_t restore_header(struct cpu *cpu, struct xop *x, uint64_t allowed)
{
	uint64_t h[HEADER_SIZE / 8];
	unsigned first_zero;

	probe_read(cpu, x->lin, 1);
	ld_bytes(cpu, x->lin + XS_BV, h, sizeof(h));
	x->compact = h[1] & XCOMP_COMPACTED ? h[1] : 0;
	if (x->compact && !cpu_has(cpu->vm->model, CPU_FEAT_XSAVEC))
		fault_gp(cpu, 0);
	if (x->compact ? h[0] & ~h[1] || h[1] & ~XCOMP_COMPACTED & ~allowed : h[0] & ~allowed)
		fault_gp(cpu, 0);
	/* Standard form: bytes 23:8 must be zero; compacted: 63:16. */
	first_zero = x->compact ? 2 : 1;
	for (unsigned i = first_zero; i < (x->compact ? ARRAY_SIZE(h) : 3); i++)
		if (h[i])
			fault_gp(cpu, 0);
	return h[0];
}

/* MXCSR as it will be; checked. */
static uint32_t restored_mxcsr(struct cpu *cpu, const struct xop *x, uint64_t bv)
{
	uint32_t v = VEC_AT(uint32_t, cpu->vec->bounce, XS_MXCSR);

	if (!(x->rfbm & (x->compact ? XCR0_SSE : XCR0_SSE | XCR0_AVX)))
		return VEC_AT(uint32_t, cpu->vec->area, XS_MXCSR);
	if (x->compact && !(bv & XCR0_SSE))
		return MXCSR_DEFAULT;
	if (v & ~vec_mxcsr_mask(cpu))
		fault_gp(cpu, 0);
	return v;
}

/* Read all components to be loaded to the bounce buffer, at their standard places. */
static void restore_read(struct cpu *cpu, const struct xop *x, uint64_t load)
{
	uint8_t *image = cpu->vec->bounce;

	ld_bytes(cpu, x->lin, image, LEGACY_SIZE);
	for (unsigned i = 2; i < VEC_NR_COMPONENTS; i++) {
		uint32_t offset = component_at(x, i), bytes = component_bytes(cpu, i);

		if (load >> i & 1 && offset && bytes)
			ld_bytes(cpu, x->lin + offset, image + vec_components[i].offset, bytes);
	}
}

static void restore_legacy(struct cpu *cpu, const struct xop *x, uint64_t load)
{
	uint8_t *image = cpu->vec->bounce, *area = cpu->vec->area;
	uint32_t xmm_bytes = legacy_end(cpu) - XS_XMM;

	if (load & XCR0_X87) {
		vec_copy(area, image, XS_MXCSR);
		vec_copy(area + XS_ST, image + XS_ST, XS_XMM - XS_ST);
		vec_x87_take_ptr(cpu, image, x->wide);
	} else if (x->rfbm & XCR0_X87) {
		init_x87(cpu);
	}
	if (load & XCR0_SSE)
		vec_copy(area + XS_XMM, image + XS_XMM, xmm_bytes);
	else if (x->rfbm & XCR0_SSE)
		vec_zero(area + XS_XMM, xmm_bytes);
}

static void restore_component(struct cpu *cpu, unsigned i, bool load)
{
	uint32_t home = vec_components[i].offset, bytes = component_bytes(cpu, i);

	if (BIT(i) == XCR0_PKRU)
		cpu_set_pkru(cpu, load ? VEC_AT(uint32_t, cpu->vec->bounce, home) : 0);
	else if (load)
		vec_copy(cpu->vec->area + home, cpu->vec->bounce + home, bytes);
	else
		vec_zero(cpu->vec->area + home, bytes);
}

static void restore(struct cpu *cpu, struct xop *x, uint64_t bv)
{
	uint64_t load = x->rfbm & bv, partly = 0;
	uint32_t mxcsr, end;

	end = image_end(x, x->compact ? load : x->rfbm);
	insn_linear(cpu, cpu->in, end, false);
	probe_read(cpu, vec_last(cpu, x->lin, end), 1);
	restore_read(cpu, x, load);
	vec_release(cpu);
	mxcsr = restored_mxcsr(cpu, x, bv);
	restore_legacy(cpu, x, load);
	VEC_AT(uint32_t, cpu->vec->area, XS_MXCSR) = mxcsr;
	for (unsigned i = 2; i < VEC_NR_COMPONENTS; i++)
		if (x->rfbm >> i & 1)
			restore_component(cpu, i, load >> i & 1);
	if (cpu->mode != INSN_MODE_64) /* registers 8 and up may still hold something */
		partly = XCR0_SSE | XCR0_AVX | XCR0_AVX512;
	VEC_AT(uint64_t, cpu->vec->area, XS_BV) &= ~(x->rfbm & ~load & ~partly);
	set_in_use(cpu, load & ~XCR0_PKRU);
	vec_settle(cpu->vec);
}

void exec_xrstor(struct cpu *cpu, const struct insn *in)
{
	struct xop x = {.rfbm = edx_eax(cpu) & cpu->xcr0};
	uint64_t bv;

	check_xsave(cpu);
	operand(cpu, in, &x, false);
	bv = restore_header(cpu, &x, cpu->xcr0);
	restore(cpu, &x, bv);
}

void exec_xrstors(struct cpu *cpu, const struct insn *in)
{
	struct xop x = {.rfbm = edx_eax(cpu) & (cpu->xcr0 | cpu->xss)};
	uint64_t bv;

	check_xsave(cpu);
	check_supervisor(cpu);
	operand(cpu, in, &x, false);
	bv = restore_header(cpu, &x, cpu->xcr0 | cpu->xss);
	if (!x.compact)
		fault_gp(cpu, 0);
	restore(cpu, &x, bv);
}

/* --- XCR0 and MXCSR -----------------------------------------------------------------------------
 */

/* XINUSE as the host tells it; XSAVE's XSTATE_BV is not quite the same on AMD. */
static uint64_t live_in_use(struct cpu *cpu)
{
	uint32_t lo, hi;

	vec_load(cpu);
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(1));
	vec_end(cpu);
	return (lo & ~(uint32_t)XCR0_PKRU) | (cpu->pkru ? XCR0_PKRU : 0);
}

void exec_xgetbv(struct cpu *cpu, const struct insn *in)
{
	uint32_t index = (uint32_t)cpu->gpr[X86_RCX];
	uint64_t v = cpu->xcr0;

	if (!(cpu->cr4 & CR4_OSXSAVE))
		fault_ud(cpu);
	if (index > 1 || (index == 1 && !cpu_has(cpu->vm->model, CPU_FEAT_XGETBV1)))
		fault_gp(cpu, 0);
	if (index == 1)
		v &= live_in_use(cpu);
	cpu->gpr[X86_RAX] = (uint32_t)v;
	cpu->gpr[X86_RDX] = v >> 32;
}

static bool xcr0_valid(const struct cpu *cpu, uint64_t v)
{
	if (v & ~cpu->vm->model->xcr0_supported || !(v & XCR0_X87))
		return false;
	if (v & XCR0_AVX && !(v & XCR0_SSE))
		return false;
	if (v & XCR0_AVX512)
		return (v & XCR0_AVX512) == XCR0_AVX512 && v & XCR0_AVX;
	return true;
}

void exec_xsetbv(struct cpu *cpu, const struct insn *in)
{
	uint64_t v = edx_eax(cpu);

	if (!(cpu->cr4 & CR4_OSXSAVE))
		fault_ud(cpu);
	if (cpu->cpl || (uint32_t)cpu->gpr[X86_RCX] || !xcr0_valid(cpu, v))
		fault_gp(cpu, 0);
	cpu->xcr0 = v;
	vec_update(cpu);
}

void exec_ldmxcsr(struct cpu *cpu, const struct insn *in)
{
	const struct vec_thunk *t = vec_thunk_of(cpu, in);
	uint32_t v;

	vec_check(cpu, t);
	v = ld32(cpu, insn_linear(cpu, in, 4, false));
	if (v & ~vec_mxcsr_mask(cpu))
		fault_gp(cpu, 0);
	vec_run(cpu, t, &v);
	vec_end(cpu);
}

/* --- state in and out ---------------------------------------------------------------------------
 */

static void clear_unused(uint8_t *area, uint64_t bv)
{
	for (unsigned i = 2; i < VEC_NR_COMPONENTS; i++)
		if (!(bv >> i & 1))
			memset(area + vec_components[i].offset, 0, vec_components[i].size);
}

static uint64_t known_components(const struct cpu *cpu)
{
	return cpu->vm->model->xcr0_supported | XCR0_X87 | XCR0_SSE;
}

void vec_get(struct cpu *cpu, struct x86_state *s)
{
	const struct x87_ptr *x = &cpu->x87;
	uint64_t bv;

	vec_release(cpu);
	memcpy(s->xsave, cpu->vec->area, sizeof(s->xsave));
	/* A host that does not track what is in use says that everything is. */
	bv = VEC_AT(uint64_t, s->xsave, XS_BV) & known_components(cpu);
	VEC_AT(uint64_t, s->xsave, XS_BV) = bv;
	clear_unused(s->xsave, bv);
	VEC_AT(uint32_t, s->xsave, XS_MXCSR_MASK) = vec_mxcsr_mask(cpu);
	VEC_AT(uint16_t, s->xsave, XS_FOP) = x->op;
	VEC_AT(uint64_t, s->xsave, XS_FIP) = x->ip;
	VEC_AT(uint64_t, s->xsave, XS_FDP) = x->dp;
}

int vec_set(struct cpu *cpu, const struct x86_state *s, struct error *err)
{
	uint64_t known = known_components(cpu);
	uint64_t bv = VEC_AT(const uint64_t, s->xsave, XS_BV) & ~XCR0_PKRU;

	if (bv & ~known)
		return err_set(err, EINVAL, "vector state has components (%#llx) this CPU lacks",
			       (unsigned long long)(bv & ~known));
	if (VEC_AT(const uint32_t, s->xsave, XS_MXCSR) & ~vec_mxcsr_mask(cpu))
		return err_set(err, EINVAL, "vector state has reserved MXCSR bits set");
	vec_release(cpu);
	memcpy(cpu->vec->area, s->xsave, sizeof(cpu->vec->area));
	memset(cpu->vec->area + XS_BV, 0, HEADER_SIZE);
	VEC_AT(uint64_t, cpu->vec->area, XS_BV) = bv;
	vec_x87_take_ptr(cpu, cpu->vec->area, true);
	clear_unused(cpu->vec->area, bv);
	if (!(bv & XCR0_X87))
		init_x87(cpu);
	if (!(bv & XCR0_SSE))
		memset(cpu->vec->area + XS_XMM, 0, 16 * 16);
	vec_settle(cpu->vec);
	vec_update(cpu);
	return 0;
}
