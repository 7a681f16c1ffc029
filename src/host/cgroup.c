/* host/cgroup.c - see cgroup.h. */
#include "host/cgroup.h"

#include "base/error.h"
#include "host/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* --- a cgroup of our own ---------------------------------------------------------------------- */

#define OWN_SCOPE                                                                                  \
	"start it in a cgroup of its own: systemd-run --user --scope -p Delegate=yes hv run ..."

static int write_file(const char *dir, const char *file, const char *text)
{
	char path[PATH_MAX];
	int fd, r = 0;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		r = -errno;
	close(fd);
	return r;
}

static void parent_dir(const struct cgroup_child *c, char *dir, size_t len)
{
	/* "/" would make two slashes; the kernel does not mind, people do */
	snprintf(dir, len, "%s%s", c->parent.mount,
		 strcmp(c->parent.path, "/") ? c->parent.path : "");
}

static int move_to(const char *dir)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", getpid());
	return write_file(dir, "cgroup.procs", pid);
}

/* The kernel gives children a controller only where the parent has no process itself ("no internal
 * processes"), so we have moved already. */
static int enable_for_children(struct cgroup_child *c, const char *parent, struct error *err)
{
	char path[PATH_MAX], now[256];
	int r;

	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", parent);
	host_read("", path, now, sizeof(now));
	if (host_has_word(now, "cpu"))
		return 0;
	r = write_file(parent, "cgroup.subtree_control", "+cpu");
	c->enabled = r == 0;
	if (r == -EBUSY)
		return err_set(err, EBUSY,
			       "other processes are in hv's cgroup %s, so its CPU time cannot be "
			       "shared out; " OWN_SCOPE,
			       c->parent.path);
	return r < 0 ? err_errno(err, -r,
				 "cannot pass the cpu controller on in cgroup %s; " OWN_SCOPE,
				 c->parent.path)
		     : 0;
}

static int set_share(const struct cgroup_child *c, const struct cgroup_cpu *want, struct error *err)
{
	enum { PERIOD_US = 100000 };
	char text[48];
	int r = 0;

	if (want->weight) {
		snprintf(text, sizeof(text), "%u", want->weight);
		r = write_file(c->path, "cpu.weight", text);
	}
	if (r == 0 && want->percent) {
		snprintf(text, sizeof(text), "%llu %d", want->percent * (PERIOD_US / 100ull),
			 PERIOD_US);
		r = write_file(c->path, "cpu.max", text);
	}
	return r < 0 ? err_errno(err, -r, "cannot set the CPU share of cgroup %s", c->path) : 0;
}

static int enter(struct cgroup_child *c, const struct cgroup_cpu *want, struct error *err)
{
	char parent[sizeof(c->parent.mount) + sizeof(c->parent.path)], path[sizeof(c->path)];
	int r;

	parent_dir(c, parent, sizeof(parent));
	snprintf(path, sizeof(path), "%s/hv-%d", parent, getpid());
	if (mkdir(path, 0755) < 0)
		return err_errno(err, errno, "may not make a cgroup below %s; " OWN_SCOPE,
				 c->parent.path);
	memcpy(c->path, path, sizeof(path));
	r = move_to(path);
	if (r < 0)
		return err_errno(err, -r, "cannot move to cgroup %s; " OWN_SCOPE, path);
	r = enable_for_children(c, parent, err);
	return r < 0 ? r : set_share(c, want, err);
}

int cgroup_cpu_enter(struct cgroup_child *c, const struct cgroup_cpu *want, struct error *err)
{
	int r;

	*c = (struct cgroup_child){0};
	if (!want->weight && !want->percent)
		return 0;
	if (!cgroup_find(&c->parent, ""))
		return err_set(err, ENOTSUP, "no cgroup v2 tree is mounted here");
	if (!cgroup_has(&c->parent, "cpu"))
		return err_set(err, ENOTSUP,
			       "hv's cgroup %s has no cpu controller to share out; " OWN_SCOPE,
			       c->parent.path);
	r = enter(c, want, err);
	if (r < 0)
		cgroup_cpu_leave(c);
	return r;
}

void cgroup_cpu_leave(struct cgroup_child *c)
{
	char parent[sizeof(c->parent.mount) + sizeof(c->parent.path)];

	if (!c->path[0])
		return;
	parent_dir(c, parent, sizeof(parent));
	if (c->enabled)
		write_file(parent, "cgroup.subtree_control", "-cpu");
	move_to(parent);
	rmdir(c->path);
	c->path[0] = 0;
}
