/* host/cgroup.c - see cgroup.h. */
#include "host/cgroup.h"

#include "base/error.h"
#include "host/files.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* The line of /proc/self/mounts: device, mount point, type, ... */
static bool find_mount(struct cgroup *cg, const char *root)
{
	char full[PATH_MAX], line[1024], point[128], type[32];
	bool found = false;
	FILE *f;

	snprintf(full, sizeof(full), "%s/proc/self/mounts", root);
	f = fopen(full, "re");
	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f))
		found = sscanf(line, "%*s %127s %31s", point, type) == 2 &&
			!strcmp(type, "cgroup2");
	fclose(f);
	if (found)
		snprintf(cg->mount, sizeof(cg->mount), "%s", point);
	return found;
}

/* The line "0::/path" of /proc/self/cgroup is the one of version 2. */
static bool find_own(struct cgroup *cg, const char *root)
{
	char text[2048], *line = text, *end;

	host_read(root, "/proc/self/cgroup", text, sizeof(text));
	while (strncmp(line, "0::", 3)) {
		line = strchr(line, '\n');
		if (!line++)
			return false;
	}
	end = strchr(line, '\n');
	if (end)
		*end = 0;
	snprintf(cg->path, sizeof(cg->path), "%s", line + 3);
	return true;
}

bool cgroup_find(struct cgroup *cg, const char *root)
{
	char file[PATH_MAX];

	*cg = (struct cgroup){0};
	if (!find_mount(cg, root) || !find_own(cg, root))
		return false;
	snprintf(file, sizeof(file), "%s%s/cgroup.controllers", cg->mount, cg->path);
	host_read(root, file, cg->controllers, sizeof(cg->controllers));
	return true;
}

bool cgroup_has(const struct cgroup *cg, const char *controller)
{
	return host_has_word(cg->controllers, controller);
}

int64_t cgroup_limit(const struct cgroup *cg, const char *root, const char *file)
{
	char path[sizeof(cg->path)], full[PATH_MAX];
	int64_t limit = INT64_MAX, value;

	snprintf(path, sizeof(path), "%s", cg->path);
	for (;;) {
		char *slash = strrchr(path, '/');

		snprintf(full, sizeof(full), "%s%s/%s", cg->mount, path, file);
		if (host_read_number(root, full, &value)) /* "max" is not a number */
			limit = MIN(limit, value);
		if (!slash)
			break;
		*slash = 0;
	}
	return limit;
}
