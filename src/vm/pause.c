/* vm/pause.c - the VM stands, and goes on.
 *
 * Order matters: first no vCPU asks for anything any more, then the board's clock and its timers
 * stand, then what the devices had begun is completed, down to the interrupt that says so.  Going
 * on is the reverse.  The guest's TSC goes on where it stood, so that its time stands in all of
 * its clocks but the time of day. */
#include "base/error.h"
#include "machine/machine.h"
#include "vm/vm_internal.h"

#include <errno.h>
#include <stdio.h>

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

static void stand(struct vm *vm)
{
	vm->paused = true;
	vm_settle_reset(vm);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		vm->paused_tsc[i] = vm->engine->cpu_tsc(vm->cpu[i].ec);
	machine_pause(vm->machine);
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

/* The TSC as it was, then all that was agreed in its terms again. */
static int restore_tsc(struct vm *vm, struct error *err)
{
	struct x86_state s;
	int r = 0;

	for (unsigned i = 0; i < vm->nr_cpus && r == 0; i++) {
		vcpu_get_state(&vm->cpu[i], &s);
		s.tsc = vm->paused_tsc[i] ? vm->paused_tsc[i] : s.tsc;
		r = vcpu_set_state(&vm->cpu[i], &s, err);
	}
	return r;
}

static void announce_tsc(struct vm *vm)
{
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		machine_cpu_ops.tsc_written(machine_cpu(vm->machine, i));
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
	machine_resume(vm->machine);
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
