/* host/cgroup.h - where this process stands in the cgroup v2 tree.
 *
 * Linux Documentation/admin-guide/cgroup-v2.rst.  A host may have version 1 hierarchies as well, or
 * only; then the controllers are not here and the functions say so.  Any thread; entering and
 * leaving moves the whole process. */
#pragma once

#include "base/types.h"

struct error;

struct cgroup {
	char mount[128];       /* "/sys/fs/cgroup" */
	char path[512];        /* of our own group below it: "/user.slice/x" or "/" */
	char controllers[128]; /* that our group has: "cpu memory pids" */
};

/* False when no cgroup v2 tree is mounted (below root) or we are in none. */
bool cgroup_find(struct cgroup *cg, const char *root);
bool cgroup_has(const struct cgroup *cg, const char *controller);
/* The smallest value of this file ("memory.max") from our group to the top; INT64_MAX for none. */
int64_t cgroup_limit(const struct cgroup *cg, const char *root, const char *file);

/* A share of the host's CPUs for this process, by a cgroup of its own below the one it is in. */
struct cgroup_cpu {
	unsigned weight;  /* 1 to 10000 beside its neighbours, 100 is usual; 0: not set */
	unsigned percent; /* of one CPU, at most, 250 = two and a half; 0: not limited */
};
struct cgroup_child {
	struct cgroup parent;
	char path[700]; /* "" = there is none */
	bool enabled;   /* we turned the parent's cpu controller on for its children */
};

/* 0, or -errno and nothing has changed.  The sentence says what to try. */
int cgroup_cpu_enter(struct cgroup_child *c, const struct cgroup_cpu *want, struct error *err);
void cgroup_cpu_leave(struct cgroup_child *c); /* back where we were; nothing when path is "" */
