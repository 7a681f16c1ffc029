/* run_control.c - see run_control.h: what the protocol asks, of vm/; what happens there, as events.
 */
#include "programs/run_control.h"

#include "base/error.h"
#include "control/control.h"
#include "vm/save.h"
#include "vm/vm.h"

#include <errno.h>
#include <stdlib.h>

struct run_control {
	struct vm *vm;
	struct control_server *server;
	bool quit;       /* the end was asked for here */
	bool save_quits; /* by the save that is under way */
};

/* ---- asked ---- */

static void get_status(void *opaque, struct control_status *st)
{
	static const char *const words[] = {
		[VM_RUNNING] = "running",
		[VM_PAUSED] = "paused",
		[VM_SAVING] = "save-vm",
		[VM_ENDED] = "shutdown",
	};
	struct run_control *c = opaque;
	enum vm_run_state now = vm_run_state(c->vm);

	*st = (struct control_status){.running = now == VM_RUNNING, .status = words[now]};
}

static unsigned get_nr_cpus(void *opaque)
{
	struct run_control *c = opaque;

	return vm_config(c->vm)->cpus;
}

static int get_cpu_thread(void *opaque, unsigned cpu)
{
	struct run_control *c = opaque;

	return vm_cpu_thread(c->vm, cpu);
}

static int do_stop(void *opaque, struct error *err)
{
	struct run_control *c = opaque;

	vm_pause(c->vm);
	return 0;
}

static int do_cont(void *opaque, struct error *err)
{
	struct run_control *c = opaque;

	return vm_cont(c->vm, err);
}

static int do_reset(void *opaque, struct error *err)
{
	struct run_control *c = opaque;

	return vm_reset(c->vm, err);
}

static int do_power_button(void *opaque, struct error *err)
{
	struct run_control *c = opaque;

	if (vm_run_state(c->vm) == VM_SAVING)
		return err_set(err, EBUSY, "the VM is being saved");
	vm_power_button(c->vm);
	control_server_tell(c->server, &(struct control_event){.kind = CONTROL_POWERDOWN});
	return 0;
}

static void do_quit(void *opaque)
{
	struct run_control *c = opaque;

	c->quit = true;
	vm_end(c->vm, VM_END_QUIT, 0);
}

static int do_save(void *opaque, const char *file, enum control_save_then then, struct error *err)
{
	static const enum vm_save_then map[] = {
		[CONTROL_SAVE_STOP] = VM_SAVE_STAY,
		[CONTROL_SAVE_CONT] = VM_SAVE_CONT,
		[CONTROL_SAVE_QUIT] = VM_SAVE_QUIT,
	};
	struct run_control *c = opaque;
	int r = vm_save(c->vm, file, map[then], err);

	if (r == 0)
		c->save_quits = then == CONTROL_SAVE_QUIT;
	return r;
}

static const struct control_vm asked = {
	.status = get_status,
	.nr_cpus = get_nr_cpus,
	.cpu_thread = get_cpu_thread,
	.stop = do_stop,
	.cont = do_cont,
	.reset = do_reset,
	.power_button = do_power_button,
	.quit = do_quit,
	.save = do_save,
};

/* ---- told ---- */

/* QEMU's words (ShutdownCause). */
static const char *shutdown_reason(const struct run_control *c, const struct vm_event *ev)
{
	switch (ev->end) {
	case VM_END_POWEROFF:
	case VM_END_EXIT_PORT:
		return "guest-shutdown";
	case VM_END_RESET:
		return "guest-reset";
	case VM_END_DIED:
		return "guest-panic";
	case VM_END_QUIT:
		return c->quit ? "host-qmp-quit" : "host-signal";
	case VM_END_TIMEOUT:
		return "host-signal";
	case VM_END_ERROR:
		break;
	}
	return "host-error";
}

static void told(void *opaque, const struct vm_event *ev)
{
	static const enum control_event_kind kinds[] = {
		[VM_EVENT_STOP] = CONTROL_STOP,
		[VM_EVENT_RESUME] = CONTROL_RESUME,
		[VM_EVENT_RESET] = CONTROL_RESET,
		[VM_EVENT_SHUTDOWN] = CONTROL_SHUTDOWN,
		[VM_EVENT_SAVE_PROGRESS] = CONTROL_SAVE_PROGRESS,
		[VM_EVENT_SAVE_DONE] = CONTROL_SAVE_COMPLETED,
		[VM_EVENT_SAVE_FAILED] = CONTROL_SAVE_FAILED,
	};
	struct run_control *c = opaque;
	struct control_event e = {
		.kind = kinds[ev->what],
		.guest = ev->guest,
		.file = ev->file,
		.done = ev->done,
		.total = ev->total,
		.error = ev->error,
	};

	if (ev->what == VM_EVENT_SAVE_DONE)
		c->quit |= c->save_quits;
	if (ev->what == VM_EVENT_RESET)
		e.reason = ev->guest ? "guest-reset" : "host-qmp-system-reset";
	if (ev->what == VM_EVENT_SHUTDOWN)
		e.reason = shutdown_reason(c, ev);
	control_server_tell(c->server, &e);
}

/* ---- life ---- */

int run_control_open(struct run_control **out, struct vm *vm, const char *path, struct error *err)
{
	struct run_control *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return err_errno(err, ENOMEM, "control socket");
	c->vm = vm;
	r = control_server_create(&c->server, path, vm_loop(vm), &asked, c, err);
	if (r < 0) {
		free(c);
		return r;
	}
	vm_set_observer(vm, told, c);
	*out = c;
	return 0;
}

void run_control_close(struct run_control *c)
{
	if (!c)
		return;
	vm_set_observer(c->vm, NULL, NULL);
	control_server_destroy(c->server);
	free(c);
}
