/* run_options.h - the options of `hv run`, parsed.  Programs only. */
#pragma once

#include "host/cgroup.h"
#include "vm/vm.h"

struct run_options {
	struct vm_config vm; /* with --resume: what was given; the rest is 0 or NULL */
	const char *engine;
	const char *control; /* path of the control socket, or NULL */
	const char *resume;  /* a saved VM, or NULL */
	bool stats;
	unsigned pinned;      /* host CPUs that --cpu-pin LIST names; 0: not given */
	unsigned pin_highest; /* virtual CPU that --cpu-pin VCPUS=LIST names */
	struct cgroup_cpu share;
};

/* Strings point into argv, which is taken apart.  0, or the exit status of wrong usage, which has
 * been said.  *help: the help was asked for and has been printed. */
int run_options_parse(struct run_options *o, int argc, char **argv, bool *help);
