/* engine/soft/state_check.h - may a CPU of this model be in this state?  soft.c's cpu_set asks
 * before it changes anything.  -EINVAL with what is wrong. */
#pragma once

struct cpu_model;
struct error;
struct x86_state;

int cpu_state_check(const struct cpu_model *m, const struct x86_state *s, struct error *err);
