/* host/cgroup.h - where this process stands in the cgroup v2 tree.
 *
 * Linux Documentation/admin-guide/cgroup-v2.rst.  A host may have version 1 hierarchies as well, or
 * only; then the controllers are not here and the functions say so.  Any thread. */
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
