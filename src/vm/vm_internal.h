/* vm/vm_internal.h - struct vm, for the files of vm/ only. */
#pragma once

#include "base/evloop.h"
#include "boot/boot.h"
#include "engine/cpu_model.h"
#include "vm/devices.h"
#include "vm/vcpu.h"
#include "vm/vm.h"

#include <stdatomic.h>

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
};

/* Any thread, as a rule a vCPU's: no further guest instruction runs after the one that asked. */
void vm_stop_with(struct vm *vm, enum vm_end how, int code);
void vm_request_reset(struct vm *vm);
