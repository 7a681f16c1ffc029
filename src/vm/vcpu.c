/* vm/vcpu.c - see vcpu.h. */
#include "vm/vcpu.h"

#include "base/error.h"
#include "machine/machine.h"
#include "vm/vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

int vcpu_create(struct vcpu *v, struct vm *vm, unsigned index, struct error *err)
{
	v->vm = vm;
	v->index = index;
	pthread_mutex_init(&v->lock, NULL);
	pthread_cond_init(&v->changed, NULL);
	v->engine_apic = vm->engine->irq && vm->engine->irq->chips(vm->evm) != ENGINE_CHIPS_NONE;
	return vm->engine->cpu_create(&v->ec, vm->evm, index, &machine_cpu_ops,
				      machine_cpu(vm->machine, index), err);
}

void vcpu_destroy(struct vcpu *v)
{
	if (v->ec)
		v->vm->engine->cpu_destroy(v->ec);
	v->ec = NULL; /* the board may still lower its interrupt line */
	pthread_cond_destroy(&v->changed);
	pthread_mutex_destroy(&v->lock);
}

void vcpu_wake(struct vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	v->wake = true;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
}

void vcpu_request(struct vcpu *v, enum vcpu_todo what)
{
	pthread_mutex_lock(&v->lock);
	v->todo |= what;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
	v->vm->engine->cpu_kick(v->ec);
}

void vcpu_sipi(struct vcpu *v, uint8_t vector)
{
	pthread_mutex_lock(&v->lock);
	v->sipi_vector = vector;
	pthread_mutex_unlock(&v->lock);
	vcpu_request(v, VCPU_SIPI);
}

void vcpu_wait_parked(struct vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	while (v->started && !v->parked)
		pthread_cond_wait(&v->changed, &v->lock);
	pthread_mutex_unlock(&v->lock);
}

void vcpu_unpark(struct vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	v->todo &= ~VCPU_PARK;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
}

int vcpu_set_state(struct vcpu *v, const struct x86_state *s, struct error *err)
{
	pthread_mutex_lock(&v->lock);
	v->todo &= ~(VCPU_INIT | VCPU_SIPI); /* what was asked of the CPU's former life */
	pthread_mutex_unlock(&v->lock);
	v->wait_sipi = s->mp_state == X86_MP_WAIT_SIPI && !v->engine_apic;
	v->halted = s->mp_state == X86_MP_HALTED && !v->engine_apic;
	/* What would have ended the halt may be in the state: the engine is asked once. */
	vcpu_wake(v);
	return v->vm->engine->cpu_set(v->ec, s, err);
}

/* Sleep while there is nothing to run; returns the requests, which are now ours to act on. */
static unsigned vcpu_wait(struct vcpu *v)
{
	unsigned todo;

	pthread_mutex_lock(&v->lock);
	for (;;) {
		if (v->todo & VCPU_QUIT)
			break;
		if (v->todo & VCPU_PARK) {
			v->parked = true;
			pthread_cond_broadcast(&v->changed);
			pthread_cond_wait(&v->changed, &v->lock);
			continue;
		}
		v->parked = false;
		if (v->todo || (!v->wait_sipi && (!v->halted || v->wake)))
			break;
		pthread_cond_wait(&v->changed, &v->lock);
	}
	todo = v->todo;
	v->todo &= VCPU_QUIT;
	v->wake = false;
	pthread_mutex_unlock(&v->lock);
	return todo;
}

/* A signal that replaces the CPU's state.  The state came from us, so the engine takes it. */
static void vcpu_signal(struct vcpu *v, bool init)
{
	struct x86_state s;
	struct error err;

	v->vm->engine->cpu_get(v->ec, &s);
	if (init) {
		x86_state_init_signal(&s);
		/* Only the bootstrap processor starts at the reset vector (SDM 3A "MP
		 * Initialization"). */
		s.mp_state = v->index ? X86_MP_WAIT_SIPI : X86_MP_RUNNABLE;
	} else {
		x86_state_sipi(&s, v->sipi_vector);
		s.mp_state = X86_MP_RUNNABLE;
	}
	if (v->vm->engine->cpu_set(v->ec, &s, &err) < 0) {
		fprintf(stderr, "cpu %u: %s\n", v->index, err.msg);
		vm_end(v->vm, VM_END_ERROR, 0);
	}
	v->wait_sipi = s.mp_state == X86_MP_WAIT_SIPI;
	v->halted = false;
}

void vcpu_get_state(struct vcpu *v, struct x86_state *s)
{
	unsigned todo;

	pthread_mutex_lock(&v->lock);
	todo = v->todo;
	v->todo &= ~(VCPU_INIT | VCPU_SIPI);
	pthread_mutex_unlock(&v->lock);
	if (todo & VCPU_INIT)
		vcpu_signal(v, true);
	if ((todo & VCPU_SIPI) && v->wait_sipi)
		vcpu_signal(v, false);
	v->vm->engine->cpu_get(v->ec, s);
	if (v->wait_sipi)
		s->mp_state = X86_MP_WAIT_SIPI;
}

/* A triple fault resets a PC; here it ends the run, because nearly always it is a bug of the guest
 * that nobody wants to miss. */
static void vcpu_died(struct vcpu *v)
{
	struct x86_state s;
	char text[4096];

	v->vm->engine->cpu_get(v->ec, &s);
	x86_state_print(&s, text, sizeof(text));
	fprintf(stderr, "cpu %u: triple fault, the guest is dead\n%s", v->index, text);
	vm_end(v->vm, VM_END_DIED, 0);
	vcpu_request(v, VCPU_PARK);
}

static void vcpu_run_engine(struct vcpu *v)
{
	struct engine_exit_info info;

	v->halted = false;
	switch (v->vm->engine->cpu_run(v->ec, &info)) {
	case ENGINE_EXIT_KICKED:
	case ENGINE_EXIT_DEBUG:
		break;
	case ENGINE_EXIT_HALTED:
		v->halted = true;
		break;
	case ENGINE_EXIT_SHUTDOWN:
		vcpu_died(v);
		break;
	case ENGINE_EXIT_ERROR:
		fprintf(stderr, "cpu %u: the engine cannot go on: %s\n", v->index, info.message);
		vm_end(v->vm, VM_END_ERROR, 0);
		vcpu_request(v, VCPU_PARK);
		break;
	}
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	unsigned todo;

	atomic_store(&v->tid, gettid());

	while (!((todo = vcpu_wait(v)) & VCPU_QUIT)) {
		if (todo & VCPU_INIT)
			vcpu_signal(v, true);
		if ((todo & VCPU_SIPI) && v->wait_sipi)
			vcpu_signal(v, false);
		if (!v->wait_sipi)
			vcpu_run_engine(v);
	}
	return NULL;
}

int vcpu_start(struct vcpu *v, struct error *err)
{
	char name[16];
	int r = pthread_create(&v->thread, NULL, vcpu_main, v);

	if (r)
		return err_errno(err, r, "cannot start a thread for cpu %u", v->index);
	pthread_mutex_lock(&v->lock);
	v->started = true;
	pthread_mutex_unlock(&v->lock);
	snprintf(name, sizeof(name), "vcpu %u", v->index);
	pthread_setname_np(v->thread, name);
	r = host_thread_pin(v->thread, &v->vm->cfg.pin[v->index], err);
	if (r == 0)
		r = host_thread_schedule(v->thread, &v->vm->cfg.sched, err);
	return r < 0 ? err_wrap(err, r, "cpu %u", v->index) : 0;
}

void vcpu_join(struct vcpu *v)
{
	if (!v->started)
		return;
	vcpu_request(v, VCPU_QUIT);
	pthread_join(v->thread, NULL);
	v->started = false;
}
