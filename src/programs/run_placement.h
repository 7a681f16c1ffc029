/* run_placement.h - the options of `hv run` that say where on the host a VM lives: CPUs, memory,
 * scheduling, share.  Programs only. */
#pragma once

#include "programs/run_options.h"

/* Each takes one option's text apart; 0, or the exit status of wrong usage, which has been said. */
int parse_memory(struct run_options *o, char *arg);
int parse_cpu_pin(struct run_options *o, char *arg);
int parse_sched(struct run_options *o, const char *arg);
int parse_cpu_weight(struct run_options *o, const char *arg);
int parse_cpu_max(struct run_options *o, const char *arg);

/* What only shows when the number of virtual CPUs is settled. */
int placement_check(const struct run_options *o);
