/* run_options.h - the options of `hv run`, parsed.  Programs only. */
#pragma once

#include "vm/vm.h"

struct run_options {
	struct vm_config vm; /* with --resume: what was given; the rest is 0 or NULL */
	const char *engine;
	const char *control; /* path of the control socket, or NULL */
	const char *resume;  /* a saved VM, or NULL */
	bool stats;
};

/* Strings point into argv, which is taken apart.  0, or the exit status of wrong usage, which has
 * been said.  *help: the help was asked for and has been printed. */
int run_options_parse(struct run_options *o, int argc, char **argv, bool *help);
