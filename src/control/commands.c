/* control/commands.c - the commands: one row each, from which query-commands, the check of
 * arguments, the CLI and docs/control-protocol.md are made. */
#include "base/error.h"
#include "control/core.h"

#include <string.h>

static enum control_answer answer(struct control_call *call, int r, const struct error *err)
{
	if (r == 0)
		return CONTROL_DONE;
	snprintf(call->err, sizeof(call->err), "%s", err->msg);
	return CONTROL_FAILED;
}

/* ---- the protocol itself ---- */

static enum control_answer run_capabilities(struct control_call *call)
{
	json_t *list = json_object_get(call->args, "enable");

	if (json_array_size(list)) {
		snprintf(call->err, sizeof(call->err), "Capability '%.64s' is not offered",
			 json_string_value(json_array_get(list, 0)));
		return CONTROL_FAILED;
	}
	call->session->negotiated = true;
	return CONTROL_DONE;
}

static enum control_answer run_version(struct control_call *call)
{
	call->result = json_pack("{s:{s:i,s:i,s:i},s:s}", "qemu", "micro", 0, "minor", 2, "major",
				 7, "package", "trivisor-0.1.0");
	return CONTROL_DONE;
}

static enum control_answer run_commands(struct control_call *call)
{
	call->result = json_array();
	for (const struct control_command *c = control_commands; c->name; c++)
		json_array_append_new(call->result, json_pack("{s:s}", "name", c->name));
	return CONTROL_DONE;
}

/* ---- looking ---- */

static enum control_answer run_status(struct control_call *call)
{
	struct control_status st = {0};

	call->core->vm.status(call->core->opaque, &st);
	call->result = json_pack("{s:b,s:b,s:s}", "running", st.running, "singlestep", false,
				 "status", st.status);
	return CONTROL_DONE;
}

static enum control_answer run_cpus(struct control_call *call)
{
	struct control_core *core = call->core;
	unsigned n = core->vm.nr_cpus(core->opaque);
	char path[40];

	call->result = json_array();
	for (unsigned i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "/machine/cpu[%u]", i);
		json_array_append_new(call->result, json_pack("{s:i,s:s,s:i,s:s}", "cpu-index",
							      (int)i, "qom-path", path, "thread-id",
							      core->vm.cpu_thread(core->opaque, i),
							      "target", "x86_64"));
	}
	return CONTROL_DONE;
}

/* ---- doing ---- */

static enum control_answer run_stop(struct control_call *call)
{
	struct error err = {""};

	return answer(call, call->core->vm.stop(call->core->opaque, &err), &err);
}

static enum control_answer run_cont(struct control_call *call)
{
	struct error err = {""};

	return answer(call, call->core->vm.cont(call->core->opaque, &err), &err);
}

static enum control_answer run_reset(struct control_call *call)
{
	struct error err = {""};

	return answer(call, call->core->vm.reset(call->core->opaque, &err), &err);
}

static enum control_answer run_powerdown(struct control_call *call)
{
	struct error err = {""};

	return answer(call, call->core->vm.power_button(call->core->opaque, &err), &err);
}

static enum control_answer run_quit(struct control_call *call)
{
	call->core->vm.quit(call->core->opaque);
	return CONTROL_DONE;
}

static const char *const then_names[] = {
	[CONTROL_SAVE_STOP] = "stop",
	[CONTROL_SAVE_CONT] = "cont",
	[CONTROL_SAVE_QUIT] = "quit",
	NULL,
};

static enum control_answer run_save(struct control_call *call)
{
	struct control_core *core = call->core;
	const char *word = control_arg_text(call, "then");
	enum control_save_then then = CONTROL_SAVE_STOP;
	struct error err = {""};
	int r;

	for (int i = 0; word && then_names[i]; i++)
		if (!strcmp(word, then_names[i]))
			then = (enum control_save_then)i;
	r = core->vm.save(core->opaque, control_arg_text(call, "file"), then, &err);
	if (r < 0)
		return answer(call, r, &err);
	core->saving = call;
	return CONTROL_LATER;
}

/* ---- the table ---- */

// clang-format off
const struct control_command control_commands[] = {
	{"qmp_capabilities", run_capabilities,
	 {{"enable", CONTROL_LIST, true, NULL, "capabilities of the greeting; there are none"}},
	 .help = "ends the negotiation; before it nothing else is answered",
	 .returns = "nothing"},
	{"query-commands", run_commands,
	 .help = "the commands there are",
	 .returns = "a list of objects with `name`"},
	{"query-version", run_version,
	 .help = "the version of QEMU whose protocol this follows, and ours as `package`",
	 .returns = "`qemu` with `major`, `minor` and `micro`; `package`"},
	{"query-status", run_status,
	 .help = "whether the guest runs",
	 .returns = "`running`; `status`: `running`, `paused`, `save-vm` or `shutdown`; `singlestep`, "
		    "always false"},
	{"query-cpus-fast", run_cpus,
	 .help = "the virtual CPUs",
	 .returns = "a list of objects with `cpu-index`, `thread-id` (of the host), `qom-path`, "
		    "`target`"},
	{"stop", run_stop,
	 .help = "pauses the guest: no instruction runs, its clocks stand, its I/O has ended when the "
		 "answer comes",
	 .returns = "nothing"},
	{"cont", run_cont,
	 .help = "lets a paused guest go on",
	 .returns = "nothing"},
	{"system_reset", run_reset,
	 .help = "the reset button",
	 .returns = "nothing; RESET follows"},
	{"system_powerdown", run_powerdown,
	 .help = "the power button: a guest that listens shuts down",
	 .returns = "nothing"},
	{"quit", run_quit,
	 .help = "ends the VM at once, as pulling the plug does; hv run exits with status 0",
	 .returns = "nothing; SHUTDOWN follows"},
	{"save", run_save,
	 {{"file", CONTROL_PATH, false, NULL, "where to; a saved VM of that name is replaced in one step"},
	  {"then", CONTROL_CHOICE, true, then_names,
	   "what the VM does afterwards: `stop` (stay paused, the default), `cont`, `quit`"}},
	 .help = "saves the VM for `hv run --resume`: the guest stands while it is written; when it fails "
		 "there is no file and the guest goes on as before",
	 .returns = "when all is on the disk: `file`, `bytes`; SAVE events come before"},
	{0},
};
// clang-format on

const struct control_command *control_command_find(const char *name)
{
	for (const struct control_command *c = control_commands; c->name; c++)
		if (!strcmp(c->name, name))
			return c;
	return NULL;
}
