/* control/events.c - what happens, as QMP events; and the table of both for people. */
#include "base/clock.h"
#include "control/core.h"

/* ---- the table ---- */

// clang-format off
static const struct {
	const char *name, *help;
} events[] = {
	[CONTROL_STOP]           = {"STOP", "the guest has been paused"},
	[CONTROL_RESUME]         = {"RESUME", "the guest goes on"},
	[CONTROL_RESET]          = {"RESET", "the machine has been reset; `guest`: by itself; `reason`: "
					     "`guest-reset` or `host-qmp-system-reset`"},
	[CONTROL_POWERDOWN]      = {"POWERDOWN", "the power button was pressed"},
	[CONTROL_SHUTDOWN]       = {"SHUTDOWN", "the VM has ended, the last event; `guest`: by itself; "
						"`reason`: `guest-shutdown`, `guest-reset` (with --no-reboot), "
						"`guest-panic` (it died), `host-qmp-quit`, `host-signal`, `host-error`"},
	[CONTROL_SAVE_PROGRESS]  = {"SAVE", "`status` `active`: `done` of `total` bytes of guest memory "
					    "have been gone through; `file`"},
	[CONTROL_SAVE_COMPLETED] = {"SAVE", "`status` `completed`: `bytes` is the size of `file`"},
	[CONTROL_SAVE_FAILED]    = {"SAVE", "`status` `failed`: `error` says why; `file`"},
};
// clang-format on

/* ---- as JSON ---- */

static json_t *event_data(const struct control_event *ev)
{
	switch (ev->kind) {
	case CONTROL_STOP:
	case CONTROL_RESUME:
	case CONTROL_POWERDOWN:
		break;
	case CONTROL_RESET:
	case CONTROL_SHUTDOWN:
		return json_pack("{s:b,s:s}", "guest", ev->guest, "reason", ev->reason);
	case CONTROL_SAVE_PROGRESS:
		return json_pack("{s:s,s:o,s:I,s:I}", "status", "active", "file",
				 control_text(ev->file), "done", (json_int_t)ev->done, "total",
				 (json_int_t)ev->total);
	case CONTROL_SAVE_COMPLETED:
		return json_pack("{s:s,s:o,s:I}", "status", "completed", "file",
				 control_text(ev->file), "bytes", (json_int_t)ev->done);
	case CONTROL_SAVE_FAILED:
		return json_pack("{s:s,s:o,s:o}", "status", "failed", "file",
				 control_text(ev->file), "error", control_text(ev->error));
	}
	return NULL;
}

static json_t *event_json(const struct control_event *ev)
{
	uint64_t now = clock_real_ns();
	json_t *data = event_data(ev);
	json_t *msg =
		json_pack("{s:{s:I,s:I},s:s}", "timestamp", "seconds",
			  (json_int_t)(now / NSEC_PER_SEC), "microseconds",
			  (json_int_t)(now % NSEC_PER_SEC / 1000), "event", events[ev->kind].name);

	if (msg && data)
		json_object_set_new(msg, "data", data);
	return msg;
}

/* The answer to the save that has ended comes after its event. */
static void answer_save(struct control_core *core, const struct control_event *ev)
{
	struct control_call *call = core->saving;

	if (!call || (ev->kind != CONTROL_SAVE_COMPLETED && ev->kind != CONTROL_SAVE_FAILED))
		return;
	core->saving = NULL;
	if (ev->kind == CONTROL_SAVE_FAILED)
		control_call_finish(call, NULL, ev->error);
	else
		control_call_finish(call,
				    json_pack("{s:o,s:I}", "file", control_text(ev->file), "bytes",
					      (json_int_t)ev->done),
				    NULL);
}

void control_core_tell(struct control_core *core, const struct control_event *ev)
{
	for (struct control_session *s = core->sessions; s; s = s->next)
		if (s->negotiated)
			control_session_send(s, event_json(ev));
	answer_save(core, ev);
}

/* ---- for people ---- */

static const char *type_name(const struct control_arg *a)
{
	switch (a->type) {
	case CONTROL_STRING:
		return "string";
	case CONTROL_PATH:
		return "string, a path";
	case CONTROL_CHOICE:
		return "string, one of a few";
	case CONTROL_LIST:
		return "list of strings";
	case CONTROL_NO_ARG:
		break;
	}
	return "";
}

static void print_command(FILE *out, const struct control_command *c)
{
	fprintf(out, "### %s\n\n%s.\n\n", c->name, c->help);
	for (unsigned i = 0; i < CONTROL_ARGS_MAX && c->args[i].name; i++)
		fprintf(out, "* `%s` (%s%s): %s\n%s", c->args[i].name, type_name(&c->args[i]),
			c->args[i].optional ? ", optional" : "", c->args[i].help,
			i + 1 == CONTROL_ARGS_MAX || !c->args[i + 1].name ? "\n" : "");
	fprintf(out, "Returns %s.\n\n", c->returns);
}

void control_print_protocol(FILE *out)
{
	fprintf(out, "## Commands\n\n");
	for (const struct control_command *c = control_commands; c->name; c++)
		print_command(out, c);
	fprintf(out, "## Events\n\n| event | when, and its data |\n|---|---|\n");
	for (size_t i = 0; i < ARRAY_SIZE(events); i++)
		fprintf(out, "| %s | %s |\n", events[i].name, events[i].help);
}
