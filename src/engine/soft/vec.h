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

/* Instruction classes with their own availability rule; see vec_update(). */
enum vec_class { VEC_X87, VEC_MMX, VEC_SSE, VEC_AVX, VEC_AVX512, VEC_FWAIT, VEC_NR_CLASSES };

struct vec_state {
	bool live; /* guest state is in the host's registers */
	/* 0 = may run; else the exception to raise (#UD or #NM), from CR0, CR4 and XCR0. */
	uint8_t deny[VEC_NR_CLASSES];
	_Alignas(64) uint8_t area[X86_XSAVE_MAX]; /* standard XSAVE layout; true when !live */
	/* vec.c's own fields follow here: thunk cache handle, scratch operand buffers ... */
	void *priv;
};

int vec_create(struct cpu *cpu, struct error *err);
void vec_destroy(struct cpu *cpu);
void vec_update(struct cpu *cpu); /* after CR0, CR4, XCR0 changed: refill deny[] */
void vec_release_slow(struct cpu *cpu);
static inline void vec_release(struct cpu *cpu)
{
	if (cpu->vec->live)
		vec_release_slow(cpu);
}
void vec_get(struct cpu *cpu, struct x86_state *s);
int vec_set(struct cpu *cpu, const struct x86_state *s, struct error *err);
void vec_init_signal(struct cpu *cpu);
