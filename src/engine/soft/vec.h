/* engine/soft/vec.h - x87, MMX, SSE, AVX and AVX-512: guest vector state and who holds it now.
 *
 * Guest vector instructions run on the host's own units.  While they do, guest state is live in the
 * host's registers and stays there across other guest instructions, because the rest of the engine
 * is compiled without vector registers.  vec_release() stores it to the state area and gives the
 * registers back to C code; it must be called before any callback to the machine, any libc call
 * and any return from engine_cpu_run.  Loading again is lazy.  vCPU thread only. */
#pragma once

#include "engine/soft/cpu.h"

struct error;
struct vec_thunk;

/* Instruction classes with their own availability rule; see vec_update(). */
enum vec_class { VEC_X87, VEC_MMX, VEC_SSE, VEC_AVX, VEC_AVX512, VEC_FWAIT, VEC_NR_CLASSES };

struct vec_state {
	/* 0 = may run; else the exception to raise (#UD or #NM), from CR0, CR4 and XCR0. */
	uint8_t deny[VEC_NR_CLASSES];
	uint8_t deny_key;   /* bit n: deny[n] != 0 */
	uint32_t thunk_gen; /* of the thunks in the cache; never 0, no two vCPUs share one */
	struct vec_thunk *thunks;

	_Alignas(64) uint8_t area[X86_XSAVE_MAX];   /* the host's XSAVE layout; true when !live */
	_Alignas(64) uint8_t bounce[X86_XSAVE_MAX]; /* memory operands that need care, images */

	/* Thunk cache: vec_thunk.c */
	uint8_t *code_rw, *code_rx; /* the same pages */
	size_t code_used;
	unsigned nr_thunks;
	uint16_t *thunk_hash;
};

void vec_signal_unblock(void); /* this thread gets the host's exceptions */
int vec_create(struct cpu *cpu, struct error *err);
void vec_destroy(struct cpu *cpu);
void vec_update(struct cpu *cpu); /* after CR0, CR4, XCR0, EFER, RFLAGS.VM changed: refill deny[] */
void vec_release_slow(struct cpu *cpu);
static inline void vec_release(struct cpu *cpu)
{
	if (cpu->vec_live)
		vec_release_slow(cpu);
}
void vec_get(struct cpu *cpu, struct x86_state *s);
/* -EINVAL when s->xsave could not have come from a guest with this XCR0. */
int vec_set(struct cpu *cpu, const struct x86_state *s, struct error *err);
