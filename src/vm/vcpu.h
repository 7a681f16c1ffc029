/* vm/vcpu.h - one virtual CPU: its thread, and what other threads may ask of it.
 *
 * Requests are flags: they are set from any thread (a LAPIC does so with its lock held), the vCPU
 * is kicked out of the engine or woken from its halt, and its own thread acts on them.  vm/ only.
 */
#pragma once

#include "engine/engine.h"

#include <pthread.h>
#include <stdatomic.h>

struct vm;

enum vcpu_todo {
	VCPU_INIT = 1 << 0, /* INIT signal from a LAPIC */
	VCPU_SIPI = 1 << 1, /* start-up IPI, vector in .sipi_vector */
	VCPU_PARK = 1 << 2, /* stay out of the engine until it is cleared */
	VCPU_QUIT = 1 << 3, /* end the thread */
};

struct vcpu {
	struct vm *vm;
	unsigned index;
	struct engine_cpu *ec;
	pthread_t thread;
	bool started;
	bool engine_apic; /* halts, INIT and start-up are the engine's: it has the local APICs */
	atomic_int tid;   /* Linux's number of the thread, 0 before it runs */

	pthread_mutex_t lock; /* guards all below; taken inside LAPIC locks, holds none itself */
	pthread_cond_t changed;
	unsigned todo; /* enum vcpu_todo */
	uint8_t sipi_vector;
	bool wake;   /* something happened since the CPU halted */
	bool parked; /* acknowledges VCPU_PARK */

	/* The vCPU thread's own (or anybody's while parked). */
	bool halted, wait_sipi;
};

int vcpu_create(struct vcpu *v, struct vm *vm, unsigned index, struct error *err);
void vcpu_destroy(struct vcpu *v); /* after vcpu_join */
int vcpu_start(struct vcpu *v, struct error *err);
void vcpu_join(struct vcpu *v);

/* Any thread. */
void vcpu_request(struct vcpu *v, enum vcpu_todo what);
void vcpu_sipi(struct vcpu *v, uint8_t vector);
void vcpu_wake(struct vcpu *v);

void vcpu_wait_parked(struct vcpu *v); /* after vcpu_request(PARK); not on a vCPU's thread */
void vcpu_unpark(struct vcpu *v);

/* While parked or not started.  get: with signals that were waiting for the thread applied. */
void vcpu_get_state(struct vcpu *v, struct x86_state *s);
int vcpu_set_state(struct vcpu *v, const struct x86_state *s, struct error *err);
