/* host/facts.c - what the kernel's files say.  See facts.h; facts_live.c has the rest. */
#include "host/facts.h"

#include "host/cgroup.h"
#include "host/facts_live.h"
#include "host/files.h"

#include <dirent.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int64_t number_or_unknown(const char *root, const char *path)
{
	int64_t v;

	return host_read_number(root, path, &v) ? v : HOST_UNKNOWN;
}

/* A kernel switch: Y and N, or 1 and 0. */
static int read_switch(const char *root, const char *path)
{
	char text[8];

	if (!host_read(root, path, text, sizeof(text)))
		return HOST_UNKNOWN;
	return *text == 'Y' || *text == 'y' || (*text >= '1' && *text <= '9');
}

/* --- processor -------------------------------------------------------------------------------- */

/* One processor's entry is enough; it is much shorter than this. */
static void gather_cpu(struct host_facts *f, const char *root)
{
	char text[8192], *flags, *end, *vendor;

	host_read(root, "/proc/cpuinfo", text, sizeof(text));
	vendor = strstr(text, "vendor_id\t: ");
	if (vendor)
		sscanf(vendor, "vendor_id\t: %15s", f->vendor);
	flags = strstr(text, "flags\t");
	end = flags ? strchr(flags, '\n') : NULL;
	if (!flags)
		return;
	if (end)
		*end = 0;
	f->flag_svm = host_has_word(flags, "svm");
	f->flag_vmx = host_has_word(flags, "vmx");
	f->flag_hypervisor = host_has_word(flags, "hypervisor");
}

/* Entries named PREFIX<number>. */
static int count_numbered(const char *root, const char *path, const char *prefix)
{
	char full[PATH_MAX];
	size_t n = strlen(prefix);
	int count = 0;
	DIR *d;

	snprintf(full, sizeof(full), "%s%s", root, path);
	d = opendir(full);
	if (!d)
		return 0;
	for (struct dirent *e; (e = readdir(d));)
		count += !strncmp(e->d_name, prefix, n) && e->d_name[n] >= '0' &&
			 e->d_name[n] <= '9';
	closedir(d);
	return count;
}

static void gather_kernel(struct host_facts *f, const char *root)
{
	host_read(root, "/proc/sys/kernel/osrelease", f->kernel, sizeof(f->kernel));
	f->cpus = count_numbered(root, "/sys/devices/system/cpu", "cpu");
	f->numa_nodes = count_numbered(root, "/sys/devices/system/node", "node");
	host_read(root, "/sys/devices/system/clocksource/clocksource0/current_clocksource",
		  f->clocksource, sizeof(f->clocksource));
	gather_cpu(f, root);
}

/* --- modules ---------------------------------------------------------------------------------- */

/* Module names are the same with '-' and '_'; in files either is found. */
static bool same_module(const char *a, size_t len, const char *name)
{
	size_t i;

	for (i = 0; i < len && name[i]; i++)
		if ((a[i] == '-' ? '_' : a[i]) != name[i])
			return false;
	return i == len && !name[i];
}

/* Is there a line "DIR/NAME.ko..." in a list of modules? */
static bool list_has_module(const char *root, const char *release, const char *list,
			    const char *name)
{
	char full[PATH_MAX], *line = NULL;
	bool found = false;
	size_t cap = 0;
	FILE *f;

	snprintf(full, sizeof(full), "%s/lib/modules/%s/%s", root, release, list);
	f = fopen(full, "re");
	if (!f)
		return false;
	while (!found && getline(&line, &cap, f) >= 0) {
		char *end = strstr(line, ".ko"), *start;

		if (!end)
			continue;
		*end = 0;
		start = strrchr(line, '/');
		start = start ? start + 1 : line;
		found = same_module(start, end - start, name);
	}
	free(line);
	fclose(f);
	return found;
}

/* "blacklist NAME", or "install NAME /bin/false" and its like. */
static bool conf_blacklists(const char *root, const char *dir, const char *file, const char *name)
{
	static const char *const forms[] = {"blacklist %s", "install %s /bin/false",
					    "install %s /bin/true", "install %s /usr/bin/false",
					    "install %s /usr/bin/true"};
	char path[PATH_MAX], words[96], dashed[48];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	snprintf(dashed, sizeof(dashed), "%s", name);
	for (char *p = dashed; *p; p++)
		*p = *p == '_' ? '-' : *p;
	for (size_t i = 0; i < ARRAY_SIZE(forms); i++) {
		snprintf(words, sizeof(words), forms[i], name);
		if (host_file_has_line(root, path, words))
			return true;
		snprintf(words, sizeof(words), forms[i], dashed);
		if (host_file_has_line(root, path, words))
			return true;
	}
	return false;
}

static bool dir_blacklists(const char *root, const char *dir, const char *name)
{
	char full[PATH_MAX];
	bool found = false;
	DIR *d;

	snprintf(full, sizeof(full), "%s%s", root, dir);
	d = opendir(full);
	if (!d)
		return false;
	for (struct dirent *e; !found && (e = readdir(d));) {
		size_t n = strlen(e->d_name);

		found = n > 5 && !strcmp(e->d_name + n - 5, ".conf") &&
			conf_blacklists(root, dir, e->d_name, name);
	}
	closedir(d);
	return found;
}

/* module_blacklist=a,b (the kernel's own) or modprobe.blacklist=a,b. */
static bool cmdline_blacklists(const char *root, const char *name)
{
	char text[4096], *p = text, *word, *rest;

	host_read(root, "/proc/cmdline", text, sizeof(text));
	while ((word = strsep(&p, " "))) {
		if (strncmp(word, "module_blacklist=", 17) &&
		    strncmp(word, "modprobe.blacklist=", 19))
			continue;
		rest = strchr(word, '=') + 1;
		for (char *one; (one = strsep(&rest, ","));)
			if (same_module(one, strlen(one), name))
				return true;
	}
	return false;
}

static void gather_module(struct module_fact *m, const struct host_facts *f, const char *root,
			  const char *name)
{
	static const char *const dirs[] = {"/etc/modprobe.d", "/run/modprobe.d",
					   "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d",
					   "/lib/modprobe.d"};
	char path[96];

	snprintf(path, sizeof(path), "/sys/module/%s", name);
	if (list_has_module(root, f->kernel, "modules.builtin", name))
		m->state = MODULE_BUILTIN;
	else if (host_exists(root, path))
		m->state = MODULE_LOADED;
	else if (list_has_module(root, f->kernel, "modules.dep", name))
		m->state = MODULE_AVAILABLE;
	m->blacklisted = cmdline_blacklists(root, name);
	for (size_t i = 0; !m->blacklisted && i < ARRAY_SIZE(dirs); i++)
		m->blacklisted = dir_blacklists(root, dirs[i], name);
}

/* A back end of KVM that is neither Intel's nor AMD's. */
static void find_other_backend(struct host_facts *f, const char *root)
{
	char full[PATH_MAX];
	DIR *d;

	snprintf(full, sizeof(full), "%s/sys/module", root);
	d = opendir(full);
	if (!d)
		return;
	for (struct dirent *e; (e = readdir(d));)
		if (!strncmp(e->d_name, "kvm_", 4) && strcmp(e->d_name, "kvm_intel") &&
		    strcmp(e->d_name, "kvm_amd"))
			snprintf(f->other_backend, sizeof(f->other_backend), "%.31s", e->d_name);
	closedir(d);
}

/* Modules of hypervisors that take VT-x or AMD-V for themselves, and Xen below us. */
static void find_other_hypervisor(struct host_facts *f, const char *root)
{
	static const char *const modules[] = {"vboxdrv", "vmmon"};
	char path[64], type[16];

	for (size_t i = 0; i < ARRAY_SIZE(modules); i++) {
		snprintf(path, sizeof(path), "/sys/module/%s", modules[i]);
		if (host_exists(root, path))
			snprintf(f->other_hypervisor, sizeof(f->other_hypervisor), "%s",
				 modules[i]);
	}
	if (host_read(root, "/sys/hypervisor/type", type, sizeof(type)) && !strcmp(type, "xen"))
		snprintf(f->other_hypervisor, sizeof(f->other_hypervisor), "xen");
}

/* --- device nodes ----------------------------------------------------------------------------- */

static void gather_node(struct node_fact *n, const char *root, const char *path)
{
	char full[PATH_MAX];
	struct group *g;
	struct stat st;

	snprintf(full, sizeof(full), "%s%s", root, path);
	n->exists = stat(full, &st) == 0;
	if (!n->exists)
		return;
	n->mode = st.st_mode & 07777;
	n->usable = access(full, R_OK | W_OK) == 0;
	g = getgrgid(st.st_gid);
	if (g)
		snprintf(n->group, sizeof(n->group), "%s", g->gr_name);
}

/* The group's members as written down, which a session may be older than. */
static bool group_lists(const char *group, const char *user)
{
	struct group *g = getgrnam(group);

	for (char **m = g ? g->gr_mem : NULL; m && *m; m++)
		if (!strcmp(*m, user))
			return true;
	return false;
}

static void gather_access(struct host_facts *f)
{
	struct group *g = f->dev_kvm.group[0] ? getgrnam(f->dev_kvm.group) : NULL;
	struct passwd *pw = getpwuid(geteuid());

	f->is_root = geteuid() == 0;
	if (pw)
		snprintf(f->user, sizeof(f->user), "%s", pw->pw_name);
	f->in_dev_group = g && (group_member(g->gr_gid) || getegid() == g->gr_gid);
	f->listed_in_dev_group = g && group_lists(f->dev_kvm.group, f->user);
}

static void gather_kvm(struct host_facts *f, const char *root)
{
	bool amd;

	gather_node(&f->dev_kvm, root, KVM_DEVICE);
	gather_access(f);
	gather_module(&f->kvm, f, root, "kvm");
	gather_module(&f->kvm_amd, f, root, "kvm_amd");
	gather_module(&f->kvm_intel, f, root, "kvm_intel");
	find_other_backend(f, root);
	find_other_hypervisor(f, root);
	amd = host_exists(root, "/sys/module/kvm_amd");
	f->nested = read_switch(root, amd ? "/sys/module/kvm_amd/parameters/nested"
					  : "/sys/module/kvm_intel/parameters/nested");
	f->second_level = read_switch(root, amd ? "/sys/module/kvm_amd/parameters/npt"
						: "/sys/module/kvm_intel/parameters/ept");
}

/* --- memory and limits ------------------------------------------------------------------------ */

static int64_t meminfo_bytes(const char *text, const char *name)
{
	const char *line = strstr(text, name);
	long long kib;

	if (!line || sscanf(line + strlen(name), " %lld kB", &kib) != 1)
		return HOST_UNKNOWN;
	return kib * KiB;
}

static void gather_pool(struct page_pool_fact *p, const char *root, unsigned kib)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%ukB/nr_hugepages", kib);
	p->total = number_or_unknown(root, path);
	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%ukB/free_hugepages", kib);
	p->unused = number_or_unknown(root, path);
}

static void gather_memory(struct host_facts *f, const char *root)
{
	char text[2048];

	host_read(root, "/proc/meminfo", text, sizeof(text));
	f->memory_total = meminfo_bytes(text, "MemTotal:");
	f->memory_available = meminfo_bytes(text, "MemAvailable:");
	f->overcommit = number_or_unknown(root, "/proc/sys/vm/overcommit_memory");
	f->max_map_count = number_or_unknown(root, "/proc/sys/vm/max_map_count");
	gather_pool(&f->huge_2m, root, 2048);
	gather_pool(&f->huge_1g, root, 1048576);
	host_read_choice(root, "/sys/kernel/mm/transparent_hugepage/enabled", f->thp,
			 sizeof(f->thp));
	host_read_choice(root, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", f->thp_shmem,
			 sizeof(f->thp_shmem));
}

static void gather_cgroup(struct host_facts *f, const char *root)
{
	struct cgroup cg;

	f->cgroup2 = cgroup_find(&cg, root);
	f->cgroup_memory = f->cgroup_pids = HOST_UNLIMITED;
	if (!f->cgroup2)
		return;
	f->cgroup_memory = cgroup_limit(&cg, root, "memory.max");
	f->cgroup_pids = cgroup_limit(&cg, root, "pids.max");
	snprintf(f->cgroup_controllers, sizeof(f->cgroup_controllers), "%.63s", cg.controllers);
}

/* --- devices, confinement --------------------------------------------------------------------- */

static void gather_devices(struct host_facts *f, const char *root)
{
	f->iommus = host_count_entries(root, "/sys/class/iommu");
	f->iommu_groups = host_count_entries(root, "/sys/kernel/iommu_groups");
	gather_module(&f->vfio_pci, f, root, "vfio_pci");
	gather_module(&f->vhost_net, f, root, "vhost_net");
	gather_module(&f->tun, f, root, "tun");
	gather_node(&f->dev_vfio, root, "/dev/vfio/vfio");
	gather_node(&f->dev_vhost_net, root, "/dev/vhost-net");
	gather_node(&f->dev_tun, root, "/dev/net/tun");
}

/* Debian's switch says 0 for "forbidden", Ubuntu's 1 for "restricted". */
static void gather_confinement(struct host_facts *f, const char *root)
{
	int debian = read_switch(root, "/proc/sys/kernel/unprivileged_userns_clone");
	int ubuntu = read_switch(root, "/proc/sys/kernel/apparmor_restrict_unprivileged_userns");

	f->max_user_namespaces = number_or_unknown(root, "/proc/sys/user/max_user_namespaces");
	f->unprivileged_userns = debian;
	if (ubuntu != HOST_UNKNOWN && debian != 0)
		f->unprivileged_userns = !ubuntu;
	f->seccomp = host_exists(root, "/proc/sys/kernel/seccomp/actions_avail");
}

void host_facts_gather(struct host_facts *f, const char *root)
{
	*f = (struct host_facts){.landlock = HOST_UNKNOWN,
				 .memlock = HOST_UNKNOWN,
				 .nofile = HOST_UNKNOWN,
				 .nofile_hard = HOST_UNKNOWN,
				 .nproc = HOST_UNKNOWN};
	gather_kernel(f, root);
	gather_kvm(f, root);
	gather_memory(f, root);
	gather_cgroup(f, root);
	gather_devices(f, root);
	gather_confinement(f, root);
	if (!*root)
		host_facts_live(f);
}
