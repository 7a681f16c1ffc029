/* host/findings.c - see findings.h.  One small function per finding; the table at the end is the
 * order of display. */
#include "host/findings.h"

#include "host/files.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

PRINTF_LIKE(3, 4)
static void state(struct finding *d, enum finding_verdict v, const char *fmt, ...)
{
	va_list ap;

	d->verdict = v;
	va_start(ap, fmt);
	vsnprintf(d->state, sizeof(d->state), fmt, ap);
	va_end(ap);
}

PRINTF_LIKE(2, 3)
static void advise(struct finding *d, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(d->advice, sizeof(d->advice), fmt, ap);
	va_end(ap);
}

static bool is_amd(const struct host_facts *f)
{
	return f->cpuid_svm || f->flag_svm ||
	       (!f->flag_vmx && !f->cpuid_vmx && strcmp(f->vendor, "GenuineIntel"));
}

static bool has_flag(const struct host_facts *f)
{
	return f->flag_svm || f->flag_vmx;
}

/* --- hardware virtualization ------------------------------------------------------------------ */

static void judge_kernel(const struct host_facts *f, struct finding *d)
{
	int major = 0, minor = 0;

	sscanf(f->kernel, "%d.%d", &major, &minor);
	state(d, FINDING_OK, "Linux %s", f->kernel);
	if (major > 5 || (major == 5 && minor >= 10))
		return;
	d->verdict = FINDING_WARN;
	advise(d, "Trivisor is written for Linux 5.10 and later; use a newer kernel");
}

static void judge_machine(const struct host_facts *f, struct finding *d)
{
	const char *by = f->hypervisor[0] ? f->hypervisor : "a hypervisor";
	const char *many = f->numa_nodes > 1 ? "s" : "";

	if (f->flag_hypervisor)
		state(d, FINDING_INFO, "a virtual machine (under %s), %d CPUs, %d NUMA node%s", by,
		      f->cpus, f->numa_nodes, many);
	else
		state(d, FINDING_OK, "real hardware, %d CPUs, %d NUMA node%s", f->cpus,
		      f->numa_nodes, many);
}

static void judge_cpu(const struct host_facts *f, struct finding *d)
{
	const char *name = is_amd(f) ? "AMD-V (svm)" : "VT-x (vmx)";

	if (has_flag(f)) {
		state(d, FINDING_OK, "%s has %s", f->vendor, name);
	} else if (f->cpuid_svm || f->cpuid_vmx) {
		state(d, FINDING_BAD, "%s has %s, but the firmware has turned it off", f->vendor,
		      name);
		advise(d, "turn on %s in the firmware's set-up, then power off and on",
		       is_amd(f) ? "SVM" : "Intel Virtualization Technology");
	} else if (f->flag_hypervisor) {
		state(d, FINDING_BAD, "%s shows neither svm nor vmx to this virtual machine",
		      f->vendor);
		advise(d, "let the host of this machine give it nested virtualization; until then "
			  "--engine soft runs guests without");
	} else {
		state(d, FINDING_BAD, "%s shows neither svm nor vmx", f->vendor);
		advise(d, "look for SVM or VT-x in the firmware's set-up; without it --engine soft "
			  "runs guests");
	}
}

static void judge_module_missing(const struct host_facts *f, struct finding *d,
				 const struct module_fact *m, const char *name)
{
	/* Without the processor's help the module would not load; that is said elsewhere. */
	enum finding_verdict v = has_flag(f) ? FINDING_BAD : FINDING_INFO;

	if (f->other_backend[0]) {
		state(d, FINDING_WARN, "%s serves /dev/kvm, not %s", f->other_backend, name);
		advise(d, "its speed is measured below; %s needs svm or vmx", name);
	} else if (m->blacklisted) {
		state(d, v, "%s is blacklisted", name);
		advise(d,
		       "take %s off the blacklist (/etc/modprobe.d, kernel command line), then as "
		       "root: modprobe %s",
		       name, name);
	} else if (m->state == MODULE_AVAILABLE) {
		state(d, v, "%s is not loaded", name);
		advise(d,
		       "as root: modprobe %s; to keep it, write %s to "
		       "/etc/modules-load.d/kvm.conf",
		       name, name);
	} else {
		state(d, v, "this kernel has no %s", name);
		advise(d, "use a kernel with CONFIG_KVM and CONFIG_%s, or install its modules",
		       is_amd(f) ? "KVM_AMD" : "KVM_INTEL");
	}
}

static void judge_modules(const struct host_facts *f, struct finding *d)
{
	const char *name = is_amd(f) ? "kvm_amd" : "kvm_intel";
	const struct module_fact *m = is_amd(f) ? &f->kvm_amd : &f->kvm_intel;

	if (m->state == MODULE_LOADED || (m->state == MODULE_BUILTIN && !f->other_backend[0]))
		state(d, FINDING_OK, "%s is %s", name,
		      m->state == MODULE_LOADED ? "loaded" : "built in");
	else
		judge_module_missing(f, d, m, name);
}

static void judge_rival(const struct host_facts *f, struct finding *d)
{
	bool busy = f->probe.state == KVM_PROBE_BUSY;
	const char *who = f->other_hypervisor[0] ? f->other_hypervisor : "another program";

	if (busy) {
		state(d, FINDING_BAD, "%s holds the processor's virtualization", who);
		advise(d, "end that hypervisor's machines, or unload its module");
	} else if (!strcmp(f->other_hypervisor, "xen")) {
		state(d, FINDING_WARN,
		      "Xen runs below this system and keeps the hardware to itself");
		advise(d, "boot without Xen for KVM; --engine soft runs guests meanwhile");
	} else if (f->other_hypervisor[0]) {
		state(d, FINDING_INFO, "%s is loaded; its machines and KVM's exclude each other",
		      who);
	} else {
		state(d, FINDING_OK, "no other hypervisor");
	}
}

static void judge_permission(const struct host_facts *f, struct finding *d)
{
	const struct node_fact *n = &f->dev_kvm;

	state(d, FINDING_BAD, "/dev/kvm may not be opened by %s (mode %04o, group %s)",
	      f->user[0] ? f->user : "this user", n->mode, n->group[0] ? n->group : "unknown");
	if (f->is_root)
		advise(d, "something confines this process (a container, a security module): allow "
			  "it /dev/kvm");
	else if (f->listed_in_dev_group && !f->in_dev_group)
		advise(d,
		       "you are in group %s since this session began: log in again, or: newgrp %s",
		       n->group, n->group);
	else if ((n->mode & 060) == 060 && strcmp(n->group, "root") && n->group[0] &&
		 !f->in_dev_group)
		advise(d, "as root: usermod -aG %s %s, then log in again", n->group,
		       f->user[0] ? f->user : "USER");
	else
		advise(d, "as root: setfacl -m u:%s:rw /dev/kvm, or make it group kvm, mode 0660",
		       f->user[0] ? f->user : "USER");
}

static void judge_dev(const struct host_facts *f, struct finding *d)
{
	if (!f->dev_kvm.exists) {
		state(d, FINDING_BAD, "there is no /dev/kvm");
		advise(d, "load the module above; in a container, hand the device in "
			  "(--device /dev/kvm)");
	} else if (!f->dev_kvm.usable) {
		judge_permission(f, d);
	} else {
		state(d, FINDING_OK, "/dev/kvm may be opened (mode %04o, group %s)",
		      f->dev_kvm.mode, f->dev_kvm.group[0] ? f->dev_kvm.group : "unknown");
	}
}

static void judge_speed(const struct host_facts *f, struct finding *d)
{
	char text[160];

	kvm_probe_describe(&f->probe, text, sizeof(text));
	switch (f->probe.state) {
	case KVM_PROBE_FAST:
		state(d, FINDING_OK, "%s", text);
		break;
	case KVM_PROBE_EMULATED:
		state(d, FINDING_BAD, "%s", text);
		advise(d,
		       "kernels would crawl: --engine auto takes soft here; small guests may still "
		       "use --engine kvm");
		break;
	case KVM_PROBE_BROKEN:
		state(d, FINDING_BAD, "%s", text);
		advise(d, "look at the kernel's log (dmesg) for kvm; --engine soft runs guests");
		break;
	default: /* said by another finding */
		state(d, FINDING_INFO, "not measured: %s", text);
	}
}

static void judge_second_level(const struct host_facts *f, struct finding *d)
{
	const char *name = is_amd(f) ? "npt" : "ept";

	if (f->second_level == 1) {
		state(d, FINDING_OK, "the hardware walks the guest's page tables (%s)", name);
		return;
	}
	state(d, FINDING_WARN, "KVM keeps shadow page tables: %s is off", name);
	advise(d, "load %s with %s=1; a processor without it costs guests much of their speed",
	       is_amd(f) ? "kvm_amd" : "kvm_intel", name);
}

static void judge_nested(const struct host_facts *f, struct finding *d)
{
	const char *name = is_amd(f) ? "kvm_amd" : "kvm_intel";

	if (f->nested == 1) {
		state(d, FINDING_OK, "guests can be hypervisors themselves");
		return;
	}
	state(d, FINDING_INFO, "nested virtualization is off");
	advise(d, "for guests that run guests: options %s nested=1 in /etc/modprobe.d/kvm.conf",
	       name);
}

static void judge_clock(const struct host_facts *f, struct finding *d)
{
	static const char *const fast[] = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page"};

	state(d, FINDING_OK, "clock source %s", f->clocksource);
	for (size_t i = 0; i < ARRAY_SIZE(fast); i++)
		if (!strcmp(f->clocksource, fast[i]))
			return;
	d->verdict = FINDING_WARN;
	advise(d, "each look at this clock is slow; see dmesg for why tsc was given up");
}

/* --- memory ----------------------------------------------------------------------------------- */

static void judge_memory(const struct host_facts *f, struct finding *d)
{
	state(d, FINDING_OK, "%.1f GiB, %.1f GiB of it available", f->memory_total / (double)GiB,
	      f->memory_available / (double)GiB);
	if (f->memory_available >= (int64_t)GiB)
		return;
	d->verdict = FINDING_WARN;
	advise(d, "end something, or give guests little --memory");
}

static void judge_cgroup_memory(const struct host_facts *f, struct finding *d)
{
	if (f->cgroup_memory == HOST_UNLIMITED || f->cgroup_memory >= f->memory_total) {
		state(d, FINDING_OK, "no cgroup v2 limits this process's memory");
		return;
	}
	state(d, f->cgroup_memory < (int64_t)GiB ? FINDING_WARN : FINDING_INFO,
	      "this process's cgroup is limited to %.1f GiB", f->cgroup_memory / (double)GiB);
	advise(d, "a guest that uses more is killed: raise memory.max, or give less --memory");
}

static void judge_overcommit(const struct host_facts *f, struct finding *d)
{
	if (f->overcommit != 2) {
		state(d, FINDING_OK, "vm.overcommit_memory is %lld", (long long)f->overcommit);
		return;
	}
	state(d, FINDING_WARN, "vm.overcommit_memory is 2: memory counts when it is asked for");
	advise(d,
	       "all guests' memory must fit at once; else as root: sysctl vm.overcommit_memory=0");
}

static void judge_map_count(const struct host_facts *f, struct finding *d)
{
	state(d, FINDING_OK, "vm.max_map_count is %lld", (long long)f->max_map_count);
	if (f->max_map_count >= 65530)
		return;
	d->verdict = FINDING_WARN;
	advise(d, "as root: sysctl vm.max_map_count=65530");
}

static void judge_huge_pages(const struct host_facts *f, struct finding *d)
{
	int64_t mib = MAX(f->huge_2m.unused, 0) * 2, gib = MAX(f->huge_1g.unused, 0);

	if (mib || gib) {
		state(d, FINDING_OK, "free: %lld MiB in 2 MiB pages, %lld GiB in 1 GiB pages",
		      (long long)mib, (long long)gib);
	} else if (f->huge_2m.total <= 0 && f->huge_1g.total <= 0) {
		state(d, FINDING_INFO, "no huge pages are reserved");
		advise(d, "for --memory SIZE,hugepages=2M: as root, sysctl vm.nr_hugepages=512 for "
			  "each GiB");
	} else {
		state(d, FINDING_INFO, "all reserved huge pages are in use");
		advise(d, "for --memory SIZE,hugepages=2M: reserve more (sysctl vm.nr_hugepages)");
	}
}

/* Guest memory is a memfd, so the switch for shared memory is the one that counts. */
static void judge_thp(const struct host_facts *f, struct finding *d)
{
	bool off = !strcmp(f->thp_shmem, "never") || !strcmp(f->thp_shmem, "deny");

	state(d, FINDING_OK, "transparent huge pages for guest memory: %s", f->thp_shmem);
	if (!off)
		return;
	d->verdict = FINDING_WARN;
	advise(d, "as root: echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled");
}

/* --- limits ----------------------------------------------------------------------------------- */

static void judge_memlock(const struct host_facts *f, struct finding *d)
{
	if (f->memlock == HOST_UNLIMITED || f->memlock >= f->memory_total) {
		state(d, FINDING_OK, "any amount of memory may be locked");
		return;
	}
	state(d, f->iommu_groups > 0 ? FINDING_WARN : FINDING_INFO, "%lld KiB may be locked",
	      (long long)(f->memlock / (int64_t)KiB));
	advise(d, "passing devices through locks all guest memory: raise memlock "
		  "(/etc/security/limits.conf, LimitMEMLOCK=)");
}

static void judge_nofile(const struct host_facts *f, struct finding *d)
{
	state(d, FINDING_OK, "%lld open files", (long long)f->nofile);
	if (f->nofile >= 1024)
		return;
	d->verdict = FINDING_WARN;
	advise(d, f->nofile_hard >= 1024 ? "before hv: ulimit -n 1024"
					 : "raise nofile in /etc/security/limits.conf");
}

static void judge_threads(const struct host_facts *f, struct finding *d)
{
	int64_t n = MIN(f->nproc, f->cgroup_pids);

	if (n == HOST_UNLIMITED)
		state(d, FINDING_OK, "threads without limit");
	else
		state(d, FINDING_OK, "%lld threads", (long long)n);
	if (n >= 256)
		return;
	d->verdict = FINDING_WARN;
	advise(d, "a guest needs one for each CPU and device: raise %s",
	       f->cgroup_pids < f->nproc ? "pids.max of the cgroup" : "nproc (ulimit -u)");
}

static void judge_cgroup(const struct host_facts *f, struct finding *d)
{
	bool cpu = host_has_word(f->cgroup_controllers, "cpu");

	if (f->cgroup2 == 1 && cpu) {
		state(d, FINDING_OK, "cgroup v2 with controllers %s", f->cgroup_controllers);
		return;
	}
	state(d, FINDING_INFO,
	      f->cgroup2 == 1 ? "cgroup v2 without the cpu controller here" : "no cgroup v2");
	advise(d, "for --cpu-weight and --cpu-max: run hv by systemd-run --user --scope -p "
		  "Delegate=yes");
}

/* --- devices for guests ----------------------------------------------------------------------- */

static void judge_iommu(const struct host_facts *f, struct finding *d)
{
	if (f->iommu_groups > 0) {
		state(d, FINDING_OK, "%d IOMMU groups", f->iommu_groups);
		return;
	}
	state(d, FINDING_INFO, "no IOMMU: no device can be passed through");
	if (f->flag_hypervisor)
		advise(d, "a virtual machine needs a virtual IOMMU from its host");
	else
		advise(d, "turn on %s in the firmware's set-up and boot with %s=on",
		       is_amd(f) ? "IOMMU" : "VT-d", is_amd(f) ? "amd_iommu" : "intel_iommu");
}

static const char *module_words(const struct module_fact *m)
{
	switch (m->state) {
	case MODULE_LOADED:
		return "loaded";
	case MODULE_BUILTIN:
		return "built in";
	case MODULE_AVAILABLE:
		return m->blacklisted ? "blacklisted" : "not loaded";
	case MODULE_ABSENT:
		break;
	}
	return "not of this kernel";
}

/* A device that comes with a module: both there and allowed, or what is missing. */
static void judge_helper(struct finding *d, const struct module_fact *m, const char *module,
			 const struct node_fact *n, const char *node, const char *use)
{
	if (n->exists && n->usable) {
		state(d, FINDING_OK, "%s may be opened", node);
		return;
	}
	if (n->exists) {
		state(d, FINDING_INFO, "%s may not be opened", node);
		advise(d, "for %s: as root, give this user %s", use, node);
		return;
	}
	state(d, FINDING_INFO, "there is no %s (%s is %s)", node, module, module_words(m));
	if (m->state == MODULE_ABSENT)
		advise(d, "for %s: use a kernel that has %s", use, module);
	else
		advise(d, "for %s: as root, modprobe %s", use, module);
}

static void judge_vfio(const struct host_facts *f, struct finding *d)
{
	judge_helper(d, &f->vfio_pci, "vfio_pci", &f->dev_vfio, "/dev/vfio/vfio",
		     "passing PCI devices");
}

static void judge_vhost(const struct host_facts *f, struct finding *d)
{
	judge_helper(d, &f->vhost_net, "vhost_net", &f->dev_vhost_net, "/dev/vhost-net",
		     "fast tap networks");
}

static void judge_tun(const struct host_facts *f, struct finding *d)
{
	judge_helper(d, &f->tun, "tun", &f->dev_tun, "/dev/net/tun", "tap networks");
}

/* --- confinement ------------------------------------------------------------------------------ */

static void judge_userns(const struct host_facts *f, struct finding *d)
{
	if (f->max_user_namespaces > 0 && f->unprivileged_userns != 0) {
		state(d, FINDING_OK, "users may make namespaces");
		return;
	}
	state(d, FINDING_INFO, "users may not make namespaces");
	advise(d, "VMs of users are then confined by seccomp and Landlock alone");
}

static void judge_sandbox(const struct host_facts *f, struct finding *d)
{
	const char *seccomp = f->seccomp ? "seccomp" : "no seccomp";

	if (f->landlock > 0)
		state(d, FINDING_OK, "%s, Landlock version %d", seccomp, f->landlock);
	else
		state(d, FINDING_WARN, "%s, no Landlock", seccomp);
	if (f->seccomp && f->landlock > 0)
		return;
	d->verdict = FINDING_WARN;
	advise(d, "VM processes are confined less: use a kernel with both, and landlock in lsm= on "
		  "its command line");
}

/* --- the table -------------------------------------------------------------------------------- */

static bool if_live(const struct host_facts *f)
{
	return f->live;
}

static bool if_kvm_parameters(const struct host_facts *f)
{
	return f->second_level != HOST_UNKNOWN;
}

static bool if_nested(const struct host_facts *f)
{
	return f->nested != HOST_UNKNOWN;
}

static bool if_clock(const struct host_facts *f)
{
	return f->clocksource[0];
}

static bool if_memory(const struct host_facts *f)
{
	return f->memory_total >= 0 && f->memory_available >= 0;
}

static bool if_overcommit(const struct host_facts *f)
{
	return f->overcommit >= 0;
}

static bool if_map_count(const struct host_facts *f)
{
	return f->max_map_count >= 0;
}

static bool if_thp(const struct host_facts *f)
{
	return f->thp_shmem[0];
}

// clang-format off
static const struct {
	const char *section, *id;
	void (*judge)(const struct host_facts *f, struct finding *d);
	bool (*asked)(const struct host_facts *f);	/* NULL: always */
} table[] = {
	{"Host",		"kernel",		judge_kernel,		NULL},
	{"Host",		"machine",		judge_machine,		NULL},
	{"Host",		"clock",		judge_clock,		if_clock},
	{"KVM",			"cpu",			judge_cpu,		NULL},
	{"KVM",			"module",		judge_modules,		NULL},
	{"KVM",			"other-hypervisor",	judge_rival,		NULL},
	{"KVM",			"device",		judge_dev,		NULL},
	{"KVM",			"speed",		judge_speed,		if_live},
	{"KVM",			"page-tables",		judge_second_level,	if_kvm_parameters},
	{"KVM",			"nested",		judge_nested,		if_nested},
	{"Memory",		"memory",		judge_memory,		if_memory},
	{"Memory",		"cgroup-memory",	judge_cgroup_memory,	NULL},
	{"Memory",		"overcommit",		judge_overcommit,	if_overcommit},
	{"Memory",		"map-count",		judge_map_count,	if_map_count},
	{"Memory",		"huge-pages",		judge_huge_pages,	NULL},
	{"Memory",		"transparent-huge-pages", judge_thp,		if_thp},
	{"Limits",		"locked-memory",	judge_memlock,		if_live},
	{"Limits",		"open-files",		judge_nofile,		if_live},
	{"Limits",		"threads",		judge_threads,		if_live},
	{"Limits",		"cgroup",		judge_cgroup,		NULL},
	{"Devices for guests",	"iommu",		judge_iommu,		NULL},
	{"Devices for guests",	"vfio",			judge_vfio,		NULL},
	{"Devices for guests",	"vhost-net",		judge_vhost,		NULL},
	{"Devices for guests",	"tun",			judge_tun,		NULL},
	{"Confinement",		"user-namespaces",	judge_userns,		NULL},
	{"Confinement",		"sandbox",		judge_sandbox,		if_live},
};
// clang-format on
_Static_assert(ARRAY_SIZE(table) <= HOST_MAX_FINDINGS, "room for all findings");

unsigned host_findings(const struct host_facts *f, struct finding out[HOST_MAX_FINDINGS])
{
	unsigned n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		if (table[i].asked && !table[i].asked(f))
			continue;
		out[n] = (struct finding){.section = table[i].section, .id = table[i].id};
		table[i].judge(f, &out[n++]);
	}
	return n;
}

enum finding_verdict host_worst(const struct finding *list, unsigned n)
{
	enum finding_verdict worst = FINDING_OK;

	for (unsigned i = 0; i < n; i++)
		worst = MAX(worst, list[i].verdict);
	return worst;
}

const char *finding_verdict_name(enum finding_verdict v)
{
	static const char *const names[] = {"ok", "info", "warn", "bad"};

	return names[v];
}
