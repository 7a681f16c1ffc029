/* engine/soft/vec.c - running vector instructions, and who holds the vector registers.
 *
 * Residency.  vec_load puts the guest's x87, SSE, AVX and AVX-512 state into the host's registers
 * with XRSTOR; vec_release stores it with XSAVE and leaves the registers as C code expects them.
 * PKRU is never loaded: the host's own protects this process.  Signals may come at any time: the
 * kernel gives handlers a clean state and puts ours back; so do thread switches.
 *
 * A thunk runs with the guest's MXCSR and x87 control word, so unmasked exceptions are raised when
 * and as the hardware raises them.  x87 ones wait in the status word for the next waiting x87
 * instruction, which is the guest's own or never comes.  CR0.NE = 0 asks for IRQ 13 through FERR#
 * and IGNNE#; no PC of this century needs it, and #MF is raised instead. */
#include "engine/soft/vec.h"

#include "base/error.h"
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/vec_int.h"

#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_once_t probe_once = PTHREAD_ONCE_INIT;
static uint64_t host_components; /* what XSAVE and XRSTOR move */
struct vec_component vec_components[VEC_NR_COMPONENTS];
/* Of full size: XRSTOR may touch all of the area even when it loads none of it. */
static _Alignas(64) uint8_t host_defaults[X86_XSAVE_MAX];

/* --- residency ----------------------------------------------------------------------------------
 */

static inline void host_xsave(void *area)
{
	__asm__ volatile("xsave64 (%0)"
			 :
			 : "r"(area), "a"((uint32_t)host_components), "d"(0)
			 : "memory");
}

static inline void host_xrstor(const void *area)
{
	__asm__ volatile("xrstor64 (%0)"
			 :
			 : "r"(area), "a"((uint32_t)host_components), "d"(0)
			 : "memory");
}

void vec_load_slow(struct cpu *cpu)
{
	struct vec_state *vs = cpu->vec;

	vec_signal_attach(vs);
	host_xrstor(vs->area);
	cpu->vec_live = true;
}

void vec_release_slow(struct cpu *cpu)
{
	struct vec_state *vs = cpu->vec;

	host_xsave(vs->area);
	host_xrstor(host_defaults); /* no component: all to their initial state */
	cpu->vec_live = false;
}

void vec_settle(struct vec_state *vs)
{
	host_xrstor(vs->area);
	host_xsave(vs->area);
	host_xrstor(host_defaults);
}

/* --- may it run? --------------------------------------------------------------------------------
 */

static uint8_t deny_x87(const struct cpu *cpu)
{
	return cpu->cr0 & (CR0_EM | CR0_TS) ? X86_EXC_NM : 0;
}

static uint8_t deny_mmx(const struct cpu *cpu)
{
	if (cpu->cr0 & CR0_EM)
		return X86_EXC_UD;
	return cpu->cr0 & CR0_TS ? X86_EXC_NM : 0;
}

static uint8_t deny_vex(const struct cpu *cpu, uint64_t xcr0)
{
	if (cpu->real || cpu->v86 || !(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & xcr0) != xcr0)
		return X86_EXC_UD;
	return cpu->cr0 & CR0_TS ? X86_EXC_NM : 0;
}

/* SDM 3A "Emulation of FPU/SSE", 2A "Exception Conditions"; AMD APM 2 "FPU Control". */
void vec_update(struct cpu *cpu)
{
	uint8_t *deny = cpu->vec->deny;

	deny[VEC_X87] = deny_x87(cpu);
	deny[VEC_FWAIT] = (cpu->cr0 & CR0_MP) && (cpu->cr0 & CR0_TS) ? X86_EXC_NM : 0;
	deny[VEC_MMX] = deny_mmx(cpu);
	deny[VEC_SSE] = cpu->cr4 & CR4_OSFXSR ? deny_mmx(cpu) : X86_EXC_UD;
	deny[VEC_AVX] = deny_vex(cpu, XCR0_SSE | XCR0_AVX);
	deny[VEC_AVX512] = deny_vex(cpu, XCR0_SSE | XCR0_AVX | XCR0_AVX512);
	cpu->vec->deny_key = 0;
	for (unsigned i = 0; i < VEC_NR_CLASSES; i++)
		cpu->vec->deny_key |= (uint8_t)((deny[i] != 0) << i);
}

void vec_fault(struct cpu *cpu, int vector)
{
	if (vector == X86_EXC_XM && !(cpu->cr4 & CR4_OSXMMEXCPT))
		vector = X86_EXC_UD;
	if (vector == X86_EXC_GP)
		fault_gp(cpu, 0);
	cpu_fault_plain(cpu, (uint8_t)vector);
}

/* --- memory operands ----------------------------------------------------------------------------
 */

static bool misaligned_sse(struct cpu *cpu)
{
	uint32_t mxcsr;

	vec_load(cpu);
	__asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
	vec_end(cpu);
	return mxcsr & MXCSR_MM;
}

/* With no element to touch it is the host that says whether there is a fault. */
static __attribute__((noinline)) void misaligned(struct cpu *cpu, const struct insn *in,
						 const struct vec_thunk *t)
{
	if (t->a.use & VEC_WAITS)
		vec_x87_pending(cpu);
	if (t->a.use & VEC_MASKED && vec_mask_empty(cpu, in, t))
		return;
	if (!(t->a.use & VEC_ALIGN_MM) || !misaligned_sse(cpu))
		fault_gp(cpu, 0);
}

static void check_align(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t,
			gva_t lin)
{
	if (unlikely(t->a.align && lin & (t->a.align - 1)))
		misaligned(cpu, in, t);
}

/* As misaligned as the operand: where processors differ the host itself checks (SHA). */
static void *load_to_bounce(struct cpu *cpu, gva_t lin, unsigned size)
{
	uint8_t *b = cpu->vec->bounce + (lin & 15);

	switch (size) {
	case 1:
		*b = ld8(cpu, lin);
		break;
	case 2:
		VEC_AT(uint16_t, b, 0) = ld16(cpu, lin);
		break;
	case 4:
		VEC_AT(uint32_t, b, 0) = ld32(cpu, lin);
		break;
	case 8:
		VEC_AT(uint64_t, b, 0) = ld64(cpu, lin);
		break;
	default:
		ld_bytes(cpu, lin, b, size);
	}
	return b;
}

static void store_from_bounce(struct cpu *cpu, gva_t lin, unsigned size)
{
	const uint8_t *b = cpu->vec->bounce;

	switch (size) {
	case 1:
		st8(cpu, lin, *b);
		break;
	case 2:
		st16(cpu, lin, VEC_AT(const uint16_t, b, 0));
		break;
	case 4:
		st32(cpu, lin, VEC_AT(const uint32_t, b, 0));
		break;
	case 8:
		st64(cpu, lin, VEC_AT(const uint64_t, b, 0));
		break;
	default:
		st_bytes(cpu, lin, b, size);
	}
}

static void check_ac(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t, gva_t lin)
{
	if (unlikely(cpu->rflags & RFLAGS_AC && lin & (t->a.ac - 1)) &&
	    (!(t->a.use & VEC_MASKED) || t->a.use & VEC_FAULTS_WHOLE ||
	     !vec_mask_empty(cpu, in, t)))
		vec_check_ac(cpu, lin, t->a.ac);
}

static __attribute__((noinline)) void load_slow(struct cpu *cpu, const struct insn *in,
						const struct vec_thunk *t, gva_t lin)
{
	void *p;

	if (t->a.use & VEC_WAITS)
		vec_x87_pending(cpu);
	check_ac(cpu, in, t, lin);
	if (t->a.use & VEC_MASKED) {
		vec_masked_load(cpu, in, t, lin);
		return;
	}
	p = ld_ptr(cpu, lin, t->a.size);
	if (!p)
		p = load_to_bounce(cpu, lin, t->a.size);
	vec_run(cpu, t, p);
}

/* Where limits are to be looked at: a pending x87 exception and misalignment come before them, and
 * elements masked off may lie beyond. */
static __attribute__((noinline)) gva_t limited_linear(struct cpu *cpu, const struct insn *in,
						      const struct vec_thunk *t, bool write)
{
	gva_t lin = (uint32_t)(cpu->seg[in->seg].base + insn_ea(cpu, in));

	if (t->a.use & VEC_WAITS)
		vec_x87_pending(cpu);
	if (cpu->mode == INSN_MODE_64)
		return insn_linear(cpu, in, t->a.size, write);
	check_align(cpu, in, t, lin);
	if (!(t->a.use & VEC_MASKED) || t->a.use & VEC_FAULTS_WHOLE)
		return insn_linear(cpu, in, t->a.size, write);
	vec_masked_limits(cpu, in, t, write);
	return lin;
}

static inline gva_t operand_linear(struct cpu *cpu, const struct insn *in,
				   const struct vec_thunk *t, bool write)
{
	if (likely(in->flags & INSN_FLAT ||
		   cpu->seg[in->seg].flat == (SEG_FLAT_READ | SEG_FLAT_WRITE)))
		return insn_linear(cpu, in, t->a.size, write);
	return limited_linear(cpu, in, t, write);
}

static inline void run_load(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t)
{
	gva_t lin = operand_linear(cpu, in, t, false);
	const struct tlb_entry *e = tlb_slot(cpu->tlb->rd, lin);

	check_align(cpu, in, t, lin);
	if (tlb_hit(e, lin, t->a.size))
		vec_run(cpu, t, (void *)(lin + e->addend));
	else
		load_slow(cpu, in, t, lin);
}

/* An x87 store that raises an unmasked exception other than inexact stores nothing. */
static bool x87_stored(void)
{
	uint16_t cw, sw;

	__asm__ volatile("fnstcw %0" : "=m"(cw));
	__asm__ volatile("fnstsw %0" : "=m"(sw));
	return !(sw & ~cw & 0x1f);
}

static __attribute__((noinline)) void store_slow(struct cpu *cpu, const struct insn *in,
						 const struct vec_thunk *t, gva_t lin)
{
	void *p;

	if (t->a.use & VEC_WAITS)
		vec_x87_pending(cpu);
	check_ac(cpu, in, t, lin);
	if (t->a.use & VEC_MASKED) {
		vec_masked_store(cpu, in, t, lin);
		return;
	}
	p = st_ptr(cpu, lin, t->a.size);
	if (p) {
		vec_run(cpu, t, p);
		return;
	}
	probe_write(cpu, lin, t->a.size);
	vec_run(cpu, t, cpu->vec->bounce);
	if (!(t->a.use & VEC_X87_PTR) || x87_stored())
		store_from_bounce(cpu, lin, t->a.size);
}

static inline void run_store(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t)
{
	gva_t lin = operand_linear(cpu, in, t, true);
	const struct tlb_entry *e = tlb_slot(cpu->tlb->wr, lin);

	check_align(cpu, in, t, lin);
	if (tlb_hit(e, lin, t->a.size))
		vec_run(cpu, t, (void *)(lin + e->addend));
	else
		store_slow(cpu, in, t, lin);
}

/* --- the executor -------------------------------------------------------------------------------
 */

void vec_check(struct cpu *cpu, const struct vec_thunk *t)
{
	uint8_t deny = cpu->vec->deny[t->a.cls];

	if (unlikely(deny))
		cpu_fault_plain(cpu, deny);
}

void exec_vec(struct cpu *cpu, const struct insn *in)
{
	const struct vec_thunk *t = vec_thunk_of(cpu, in);

	vec_check(cpu, t);
	if (t->a.mem == VEC_MEM_NONE)
		vec_run(cpu, t, NULL);
	else if (t->a.mem == VEC_MEM_LOAD)
		run_load(cpu, in, t);
	else
		run_store(cpu, in, t);
	if (t->a.use & VEC_X87_PTR)
		vec_x87_note(cpu, in);
	vec_end(cpu);
}

/* --- life ---------------------------------------------------------------------------------------
 */

/* Called with C's own state in the registers. */
static void probe_host(void)
{
	uint32_t a, b, c, d, lo, hi;

	__cpuid(1, a, b, c, d);
	if (!(c & bit_OSXSAVE))
		return;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	host_components = lo & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
	VEC_AT(uint16_t, host_defaults, XS_FCW) = FCW_DEFAULT;
	VEC_AT(uint32_t, host_defaults, XS_MXCSR) = MXCSR_DEFAULT;
	for (unsigned i = 2; i < VEC_NR_COMPONENTS; i++) {
		struct vec_component *v = &vec_components[i];

		if (!cpu_xsave_component(i, &v->offset, &v->size))
			v->size = 0;
	}
	vec_x87_probe_host();
}

int vec_create(struct cpu *cpu, struct error *err)
{
	struct vec_state *vs;
	int r;

	pthread_once(&probe_once, probe_host);
	if (!host_components)
		return err_set(err, ENOTSUP, "the host CPU or kernel has no XSAVE");
	r = vec_signal_install(err);
	if (r)
		return r;
	vs = aligned_alloc(64, sizeof(*vs));
	if (!vs)
		return err_set(err, ENOMEM, "no memory for vector state");
	memset(vs, 0, sizeof(*vs));
	r = vec_code_create(vs, err);
	if (r) {
		free(vs);
		return r;
	}
	VEC_AT(uint16_t, vs->area, XS_FCW) = FCW_DEFAULT;
	VEC_AT(uint32_t, vs->area, XS_MXCSR) = MXCSR_DEFAULT;
	cpu->vec = vs;
	vec_update(cpu);
	return 0;
}

void vec_destroy(struct cpu *cpu)
{
	vec_release(cpu);
	vec_signal_detach(cpu->vec);
	vec_code_destroy(cpu->vec);
	free(cpu->vec);
	cpu->vec = NULL;
}
