/* hv.h - what the sub-commands of hv share.  Programs only. */
#pragma once

#include "base/error.h"
#include "base/types.h"
#include "engine/engine.h"

/* Exit statuses that scripts may rely on; see hv(1). */
enum {
	HV_EXIT_OK = 0,
	HV_EXIT_FAILED = 1,
	HV_EXIT_USAGE = 2,
	HV_EXIT_DIED = 3,
	HV_EXIT_TIMEOUT = 124,
};

struct hv_command {
	const char *name, *summary;
	int (*main)(int argc, char **argv); /* argv[0] is the sub-command's name */
};

int cmd_run(int argc, char **argv);
int cmd_control(int argc, char **argv);
int cmd_cpu(int argc, char **argv);
int cmd_disk(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_recover(int argc, char **argv);

/* Become the program `name` of ours; returns, with an exit status, only when that cannot be. */
int run_helper(const char *command, const char *name, char **argv);

/* "hv run: MESSAGE" on standard error; returns HV_EXIT_USAGE with a hint at --help. */
int usage_error(const char *command, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Parse "4G", "512M", "65536K", or a plain number of `unit` bytes. */
int parse_size(const char *text, uint64_t unit, uint64_t *bytes);
int parse_number(const char *text, uint64_t max, uint64_t *value);

/* The engines this build has, best first. */
extern const struct engine *const hv_engines[];
const struct engine *engine_find(const char *name); /* NULL: not in this build */
/* Choose by name or "auto".  why: a few words for the person ("no /dev/kvm"). */
const struct engine *engine_choose(const char *name, const char **why, struct error *err);
