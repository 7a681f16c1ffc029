/* vm/save.h - a whole VM in a file, and back: `save` while it runs, vm_saved before it is made.
 *
 * Saving: on the VM's event-loop thread.  The VM stands; its state is taken at once, its memory is
 * written by a thread, with VM_EVENT_SAVE_* on the way.  A save that fails leaves no file and the
 * VM goes on as it was.
 *
 * Resuming: vm_saved_open reads what the VM was (its board, CPU model and devices),
 * vm_saved_config puts that into a vm_config and says where the caller's differs, and vm_create
 * loads memory and state.  The file is hostile until all of it has been checked: it names no file
 * of the host but disks beside itself, and no device does any I/O before the whole load went well.
 * The state knows no engine.  The layout is in vm/savefile.h. */
#pragma once

#include "base/types.h"

struct cpu_model;
struct engine;
struct error;
struct vm;
struct vm_config;
struct vm_saved;

enum vm_save_then {
	VM_SAVE_STAY, /* paused, for vm_cont or an end; a failed save goes on as before */
	VM_SAVE_CONT,
	VM_SAVE_QUIT,
};

/* Begins; 0: an event will tell how it ended.  path is copied. */
int vm_save(struct vm *vm, const char *path, enum vm_save_then then, struct error *err);

int vm_saved_open(struct vm_saved **out, const char *path, struct error *err);
void vm_saved_close(struct vm_saved *s); /* NULL is fine */

/* In: what the caller chose, 0 or NULL for what it leaves to the file; disks, nets, serials and
 * console are host ends for the file's devices, in order.  Out: the file's board with them, and
 * .saved.  Strings it adds belong to s. */
int vm_saved_config(struct vm_saved *s, struct vm_config *cfg, struct error *err);
/* One line a caller may show: "saved 2026-11-22 17:05:25 UTC by Trivisor, engine soft". */
const char *vm_saved_summary(const struct vm_saved *s);

/* vm.c: the CPU model the guest has seen, if this host and engine can be it. */
int vm_saved_cpu(const struct vm_saved *s, const struct engine *engine, struct cpu_model *m,
		 struct error *err);
