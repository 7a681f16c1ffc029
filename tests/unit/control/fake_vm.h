/* fake_vm.h - a VM that notes what the control socket asks of it. */
#pragma once

#include "base/error.h"
#include "control/core.h"

#include <errno.h>
#include <string.h>

struct fake_vm {
	char asked[256]; /* "stop cont " */
	bool running, refuse;
	char file[128];
	enum control_save_then then;
};

static inline int fake_note(struct fake_vm *vm, const char *what, struct error *err)
{
	if (vm->refuse)
		return err_set(err, EBUSY, "not now");
	strcat(strcat(vm->asked, what), " ");
	return 0;
}

static inline void fake_status(void *opaque, struct control_status *st)
{
	struct fake_vm *vm = opaque;

	*st = (struct control_status){vm->running, vm->running ? "running" : "paused"};
}

static inline unsigned fake_nr_cpus(void *opaque)
{
	return 2;
}

static inline int fake_cpu_thread(void *opaque, unsigned cpu)
{
	return 1000 + (int)cpu;
}

static inline int fake_stop(void *opaque, struct error *err)
{
	((struct fake_vm *)opaque)->running = false;
	return fake_note(opaque, "stop", err);
}

static inline int fake_cont(void *opaque, struct error *err)
{
	((struct fake_vm *)opaque)->running = true;
	return fake_note(opaque, "cont", err);
}

static inline int fake_reset(void *opaque, struct error *err)
{
	return fake_note(opaque, "reset", err);
}

static inline int fake_power_button(void *opaque, struct error *err)
{
	return fake_note(opaque, "power", err);
}

static inline void fake_quit(void *opaque)
{
	fake_note(opaque, "quit", NULL);
}

static inline int fake_save(void *opaque, const char *file, enum control_save_then then,
			    struct error *err)
{
	struct fake_vm *vm = opaque;

	snprintf(vm->file, sizeof(vm->file), "%s", file);
	vm->then = then;
	return fake_note(vm, "save", err);
}

static const struct control_vm fake_vm_ops = {
	.status = fake_status,
	.nr_cpus = fake_nr_cpus,
	.cpu_thread = fake_cpu_thread,
	.stop = fake_stop,
	.cont = fake_cont,
	.reset = fake_reset,
	.power_button = fake_power_button,
	.quit = fake_quit,
	.save = fake_save,
};
