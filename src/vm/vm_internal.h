/* vm/vm_internal.h - struct vm, for the files of vm/ only. */
#pragma once

#include "base/evloop.h"
#include "boot/boot.h"
#include "engine/cpu_model.h"
#include "vm/devices.h"
#include "vm/vcpu.h"
#include "vm/vm.h"

#include <stdatomic.h>

struct vm_save_job;

struct vm {
	struct vm_config cfg;
	const struct engine *engine;
	struct evloop *loop;
	struct mem *mem;
	struct cpu_model model;
	struct engine_vm *evm;
	struct machine *machine;
	struct vcpu cpu[VM_MAX_CPUS];
	unsigned nr_cpus; /* created so far */
	struct vm_devices devices;

	struct ev_timer timeout;
	struct ev_fd signals;
	int signal_fd;

	atomic_bool reset_posted; /* one reset at a time is on its way to the loop */
	pthread_mutex_t end_lock; /* guards the next two */
	bool ended;
	struct vm_result result;

	/* The loop's thread alone, from here. */
	bool paused;
	bool host_reset; /* the reset under way was asked for by the host */
	uint64_t paused_tsc[VM_MAX_CPUS];
	struct vm_save_job *save; /* under way; save.c */
	void (*observer)(void *opaque, const struct vm_event *ev);
	void *observer_opaque;
};

/* Any thread, as a rule a vCPU's: no further guest instruction runs after the one that asked. */
void vm_stop_with(struct vm *vm, enum vm_end how, int code);
void vm_request_reset(struct vm *vm);

/* The loop's thread. */
void vm_do_reset(void *vm);
void vm_tell(struct vm *vm, const struct vm_event *ev);
bool vm_has_ended(struct vm *vm);
/* Is a reset on its way that must come before anything else is done with a parked VM?  Does it. */
void vm_settle_reset(struct vm *vm);
void vm_set_going(struct vm *vm);   /* before the CPUs start: out of the pause a resume begins in */
void vm_save_cancel(struct vm *vm); /* waits until the thread has ended; no file is left */
int vm_resume_load(struct vm *vm, struct error *err);
