/* vm/pause.c - the VM stands, and goes on.
 *
 * Order matters: first no vCPU asks for anything any more, then the board's clock and its timers
 * stand, then what the devices had begun is completed, down to the interrupt that says so.  Going
 * on is the reverse.  The guest's TSC goes on where it stood, so that its time stands in all of
 * its clocks but the time of day. */
#include "base/clock.h"
#include "base/error.h"
#include "machine/machine.h"
#include "vm/vm_internal.h"

#include <errno.h>
#include <stdio.h>

enum { READINGS = 4 }; /* of two clocks at the same time */

enum vm_run_state vm_run_state(struct vm *vm)
{
	if (vm_has_ended(vm))
		return VM_ENDED;
	if (vm->save)
		return VM_SAVING;
	return vm->paused ? VM_PAUSED : VM_RUNNING;
}

int vm_cpu_thread(struct vm *vm, unsigned cpu)
{
	return cpu < vm->nr_cpus ? atomic_load(&vm->cpu[cpu].tid) : 0;
}

static void park_all(struct vm *vm)
{
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		vcpu_request(&vm->cpu[i], VCPU_PARK);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		vcpu_wait_parked(&vm->cpu[i]);
}

/* A CPU that asked for a reset parked everybody and may be waiting for the loop to come to it. */
void vm_settle_reset(struct vm *vm)
{
	if (!atomic_load(&vm->reset_posted))
		return;
	evloop_unpost(vm->loop, vm_do_reset, vm);
	vm_do_reset(vm);
}

/* What a CPU's TSC was when the board's clock stopped: Linux compares its clocks and gives up one
 * that is off by half a millisecond.  The host may let us wait between two readings: of some pairs
 * the closest counts. */
static uint64_t tsc_at_pause(struct vm *vm, unsigned cpu)
{
	uint64_t khz = vm->engine->tsc_khz(vm->evm), least = UINT64_MAX, then = 0;

	for (unsigned n = 0; n < READINGS; n++) {
		uint64_t before = machine_stood_ns(vm->machine);
		uint64_t tsc = vm->engine->cpu_tsc(vm->cpu[cpu].ec);
		uint64_t spent = machine_stood_ns(vm->machine) - before;

		if (spent >= least)
			continue;
		least = spent;
		then = tsc - (uint64_t)((unsigned __int128)(before + spent / 2) * khz / 1000000);
	}
	return then;
}

static void stand(struct vm *vm)
{
	vm->paused = true;
	vm_settle_reset(vm);
	machine_pause(vm->machine);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		vm->paused_tsc[i] = tsc_at_pause(vm, i);
	vm_devices_pause(vm);
}

void vm_pause(struct vm *vm)
{
	if (vm->paused || vm_has_ended(vm))
		return;
	park_all(vm);
	stand(vm);
	vm_tell(vm, &(struct vm_event){.what = VM_EVENT_STOP});
}

/* The others' go on from where the first CPU's has come to meanwhile: they must agree. */
static uint64_t tsc_to_restore(struct vm *vm, unsigned cpu)
{
	uint64_t since = cpu ? vm->engine->cpu_tsc(vm->cpu[0].ec) - vm->paused_tsc[0] : 0;

	return vm->paused_tsc[cpu] + since;
}

/* The TSC as it was, then all that was agreed in its terms again. */
static int restore_tsc(struct vm *vm, struct error *err)
{
	struct x86_state s;
	int r = 0;

	for (unsigned i = 0; i < vm->nr_cpus && r == 0; i++) {
		vcpu_get_state(&vm->cpu[i], &s);
		if (vm->paused_tsc[0])
			s.tsc = tsc_to_restore(vm, i);
		r = vcpu_set_state(&vm->cpu[i], &s, err);
	}
	return r;
}

static void announce_tsc(struct vm *vm)
{
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		machine_cpu_ops.tsc_written(machine_cpu(vm->machine, i));
}

/* CLOCK_MONOTONIC of the moment at which the TSCs went on; the latest answer is the one that was
 * not held up half-way. */
static uint64_t tsc_restored_ns(struct vm *vm)
{
	uint64_t latest = 0;

	if (!vm->paused_tsc[0]) /* it begins anew */
		return clock_mono_ns();
	for (unsigned n = 0; n < READINGS; n++)
		latest = MAX(latest, vm->engine->cpu_tsc_to_ns(vm->cpu[0].ec, vm->paused_tsc[0]));
	return MIN(latest, clock_mono_ns());
}

static void go(struct vm *vm)
{
	struct error err = {""};

	if (restore_tsc(vm, &err) < 0) { /* the state came from the engine itself */
		fprintf(stderr, "hv: cannot go on: %s\n", err.msg);
		vm_end(vm, VM_END_ERROR, 0);
		return;
	}
	vm->paused = false;
	machine_resume_at(vm->machine, tsc_restored_ns(vm));
	announce_tsc(vm);
	vm_devices_resume(vm);
}

int vm_cont(struct vm *vm, struct error *err)
{
	if (vm->save)
		return err_set(err, EBUSY, "the VM is being saved");
	if (!vm->paused || vm_has_ended(vm))
		return 0;
	go(vm);
	for (unsigned i = 0; i < vm->nr_cpus && !vm_has_ended(vm); i++)
		vcpu_unpark(&vm->cpu[i]);
	vm_tell(vm, &(struct vm_event){.what = VM_EVENT_RESUME});
	return 0;
}

int vm_reset(struct vm *vm, struct error *err)
{
	if (vm->save)
		return err_set(err, EBUSY, "the VM is being saved");
	vm->host_reset = true;
	vm_request_reset(vm);
	return 0;
}

/* A resumed VM was loaded standing, and one that starts paused shall stand: its CPUs have not been
 * started, so they are as good as parked. */
void vm_set_going(struct vm *vm)
{
	if (vm->cfg.start_paused) {
		for (unsigned i = 0; i < vm->nr_cpus; i++)
			vcpu_request(&vm->cpu[i], VCPU_PARK);
		if (!vm->paused)
			stand(vm);
	} else if (vm->paused) {
		go(vm);
	}
}
