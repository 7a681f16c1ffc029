/* vm/vm.h - one guest: built from a description, run to its end.
 *
 * A struct vm is created, run and destroyed by one thread, which becomes the VM's event-loop
 * thread while vm_run lasts: timers, console and lifecycle requests are served there.  Each vCPU
 * has a thread of its own (vcpu.c); devices have theirs.  vm_end and vm_power_button may be called
 * from any thread. */
#pragma once

#include "base/types.h"
#include "block/filter.h"
#include "engine/engine.h"
#include "host/placement.h"
#include "mem/mem.h"

struct error;
struct evloop;
struct vm;
struct vm_saved;

enum {
	VM_MAX_CPUS = 64,
	VM_MAX_DISKS = 16,
	VM_MAX_ALLOW_REF = 8,
	VM_MAX_NETS = 4,
	VM_MAX_SERIALS = 4,
	VM_MAX_VFIO = 8
};

struct vm_disk {
	const char *path, *format;
	bool readonly;
	const char *allow_ref[VM_MAX_ALLOW_REF]; /* where files the image names may lie too */
	unsigned nr_allow_ref;
	const char *secret_file;  /* the passphrase of an encrypted image is in it, or NULL */
	const char *snapshot;     /* show this internal snapshot (read-only), or NULL */
	bool overlay;             /* what the guest writes is forgotten in the end */
	struct blk_limits limits; /* all 0: none */
	bool vhost_user;          /* path is the socket of a process that serves the disk */
};

struct vm_net {
	enum vm_net_kind { VM_NET_USER, VM_NET_TAP, VM_NET_VHOST_USER } kind;
	const char *target; /* USER: its options (net/net.h); TAP: interface, "" = a new one;
			     * VHOST_USER: a socket */
	enum vm_vhost { VM_VHOST_AUTO, VM_VHOST_ON, VM_VHOST_OFF } vhost; /* TAP: by the kernel */
	bool has_mac;
	uint8_t mac[6];
};

/* All strings are borrowed until vm_destroy. */
struct vm_config {
	const struct engine *engine;
	const char *engine_options; /* what followed the comma in --engine, or "" */
	const char *cpu;            /* CPU model, "max" */
	unsigned cpus;
	uint64_t memory;    /* bytes, a multiple of 1 MiB */
	uint64_t huge_page; /* memory of the host's huge pages, 0 or their size in bytes */
	struct mem_hold hold;
	struct host_cpus pin[VM_MAX_CPUS]; /* where each CPU's thread may run; none: anywhere */
	struct host_sched sched;           /* of the CPUs' threads */

	const char *kernel, *initrd, *append; /* initrd and append may be NULL */

	struct vm_disk disk[VM_MAX_DISKS];
	unsigned nr_disks;
	struct vm_net net[VM_MAX_NETS];
	unsigned nr_nets;
	const char *serial[VM_MAX_SERIALS]; /* chardev specs of COM1.. */
	unsigned nr_serials;
	const char *console; /* chardev spec of a virtio console, or NULL */

	const char *vfio[VM_MAX_VFIO]; /* PCI devices of the host: "0000:65:00.0" */
	unsigned nr_vfio;

	bool micro;     /* a board with only what a direct-boot Linux needs */
	int exit_port;  /* -1: none */
	bool testdev;   /* devices/debug/testdev.h */
	bool debugcon;  /* port 0xE9 writes to standard output */
	bool no_reboot; /* a guest reset ends the run like a power-off */
	bool sample;    /* see what the CPUs do with their time: vm_result.stats.samples */
	unsigned timeout_s;

	/* Go on from here (vm/save.h) instead of loading a kernel; what the guest saw of the board
	 * has been filled in from it by vm_saved_config.  Borrowed until vm_destroy. */
	struct vm_saved *saved;
	bool start_paused; /* run no guest instruction before vm_cont */
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

/* --- for whoever manages the VM: on its event-loop thread, from vm_create to vm_destroy ---------
 */

struct evloop *vm_loop(struct vm *vm);
const struct vm_config *vm_config(const struct vm *vm);

enum vm_run_state {
	VM_RUNNING,
	VM_PAUSED, /* no guest instruction runs, the guest's clocks stand, no I/O is under way */
	VM_SAVING, /* paused, and being written to a file */
	VM_ENDED,
};
enum vm_run_state vm_run_state(struct vm *vm);

void vm_pause(struct vm *vm);                   /* returns when the VM stands; idempotent */
int vm_cont(struct vm *vm, struct error *err);  /* -EBUSY while it is being saved */
int vm_reset(struct vm *vm, struct error *err); /* as the reset button; what was paused stays so */
int vm_cpu_thread(struct vm *vm, unsigned cpu); /* Linux thread id; 0 before it runs */

/* What happens to the VM, told on the same thread.  Strings are borrowed for the call. */
struct vm_event {
	enum {
		VM_EVENT_STOP,
		VM_EVENT_RESUME,
		VM_EVENT_RESET,
		VM_EVENT_POWERDOWN, /* the power button was pressed */
		VM_EVENT_SHUTDOWN,  /* the run has ended: the last one */
		VM_EVENT_SAVE_PROGRESS,
		VM_EVENT_SAVE_DONE,
		VM_EVENT_SAVE_FAILED,
	} what;
	bool guest;       /* RESET, SHUTDOWN: the guest's own doing */
	enum vm_end end;  /* SHUTDOWN */
	const char *file; /* SAVE_* */
	uint64_t done,
		total;     /* SAVE_PROGRESS: bytes of guest memory; SAVE_DONE: done = file size */
	const char *error; /* SAVE_FAILED */
};
void vm_set_observer(struct vm *vm, void (*fn)(void *opaque, const struct vm_event *ev),
		     void *opaque);
