/* vm/vm.h - one guest: built from a description, run to its end.
 *
 * A struct vm is created, run and destroyed by one thread, which becomes the VM's event-loop
 * thread while vm_run lasts: timers, console and lifecycle requests are served there.  Each vCPU
 * has a thread of its own (vcpu.c); devices have theirs.  vm_end and vm_power_button may be called
 * from any thread. */
#pragma once

#include "base/types.h"
#include "engine/engine.h"

struct error;
struct vm;

enum { VM_MAX_CPUS = 64, VM_MAX_DISKS = 16, VM_MAX_NETS = 4, VM_MAX_SERIALS = 4 };

struct vm_disk {
	const char *path, *format;
	bool readonly;
};

/* All strings are borrowed until vm_destroy. */
struct vm_config {
	const struct engine *engine;
	const char *engine_options; /* what followed the comma in --engine, or "" */
	const char *cpu;            /* CPU model, "max" */
	unsigned cpus;
	uint64_t memory; /* bytes, a multiple of 1 MiB */

	const char *kernel, *initrd, *append; /* initrd and append may be NULL */

	struct vm_disk disk[VM_MAX_DISKS];
	unsigned nr_disks;
	const char *net[VM_MAX_NETS]; /* options after "user": see net/net.h */
	unsigned nr_nets;
	const char *serial[VM_MAX_SERIALS]; /* chardev specs of COM1.. */
	unsigned nr_serials;
	const char *console; /* chardev spec of a virtio console, or NULL */

	int exit_port;  /* -1: none */
	bool testdev;   /* devices/debug/testdev.h */
	bool debugcon;  /* port 0xE9 writes to standard output */
	bool no_reboot; /* a guest reset ends the run like a power-off */
	unsigned timeout_s;
};

enum vm_end {
	VM_END_POWEROFF,
	VM_END_RESET,     /* a reset, with no_reboot */
	VM_END_EXIT_PORT, /* code: (value << 1) | 1, cut to a byte */
	VM_END_DIED,      /* triple fault; registers were printed */
	VM_END_TIMEOUT,
	VM_END_QUIT,  /* Ctrl-A x or vm_end() */
	VM_END_ERROR, /* the host or the engine failed; said on standard error */
};

struct vm_result {
	enum vm_end end;
	int code;                  /* EXIT_PORT: the status; QUIT: what vm_end was given */
	struct engine_stats stats; /* all CPUs together */
	uint64_t run_ns;
};

int vm_create(struct vm **out, const struct vm_config *cfg, struct error *err);
void vm_run(struct vm *vm, struct vm_result *res);
void vm_destroy(struct vm *vm);

void vm_end(struct vm *vm, enum vm_end how, int code); /* the first call wins */
void vm_power_button(struct vm *vm);
