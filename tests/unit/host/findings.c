/* The verdict and the advice for hosts written down as facts, each a change to a good one. */
#include "host/findings.h"

#include "test.h"

#include <errno.h>

static struct host_facts good_host(void)
{
	return (struct host_facts){
		.live = true,
		.kernel = "6.1.0-1-amd64",
		.vendor = "AuthenticAMD",
		.cpus = 8,
		.numa_nodes = 1,
		.flag_svm = true,
		.cpuid_svm = true,
		.clocksource = "tsc",
		.dev_kvm = {true, true, 0660, "kvm"},
		.user = "alice",
		.in_dev_group = true,
		.listed_in_dev_group = true,
		.kvm = {MODULE_LOADED},
		.kvm_amd = {MODULE_LOADED},
		.kvm_intel = {MODULE_AVAILABLE},
		.nested = 1,
		.second_level = 1,
		.probe = {KVM_PROBE_FAST, NULL, 0, 3500, 900},
		.memlock = HOST_UNLIMITED,
		.nofile = 1024,
		.nproc = 100000,
		.nofile_hard = 1048576,
		.memory_total = 64 * GiB,
		.memory_available = 32 * GiB,
		.cgroup_memory = HOST_UNLIMITED,
		.cgroup_pids = HOST_UNLIMITED,
		.overcommit = 0,
		.max_map_count = 65530,
		.huge_2m = {512, 512},
		.huge_1g = {0, 0},
		.thp = "madvise",
		.thp_shmem = "advise",
		.iommus = 2,
		.iommu_groups = 30,
		.vfio_pci = {MODULE_LOADED},
		.vhost_net = {MODULE_LOADED},
		.tun = {MODULE_LOADED},
		.dev_vfio = {true, true, 0666, "root"},
		.dev_vhost_net = {true, true, 0660, "kvm"},
		.dev_tun = {true, true, 0666, "root"},
		.max_user_namespaces = 10000,
		.unprivileged_userns = 1,
		.seccomp = true,
		.landlock = 2,
		.cgroup2 = 1,
		.cgroup_controllers = "cpu memory pids",
	};
}

static struct finding list[HOST_MAX_FINDINGS];

static const struct finding *find(const struct host_facts *f, const char *id)
{
	unsigned n = host_findings(f, list);

	for (unsigned i = 0; i < n; i++)
		if (!strcmp(list[i].id, id))
			return &list[i];
	printf("# there is no finding '%s'\n", id);
	fflush(stdout);
	_exit(TEST_FAILED);
}

/* The finding has this verdict, and words in its state and its advice (NULL: there is none). */
static void check(const struct host_facts *f, const char *id, enum finding_verdict v,
		  const char *state, const char *advice)
{
	const struct finding *d = find(f, id);

	printf("# %s: %s; %s\n", finding_verdict_name(d->verdict), d->state, d->advice);
	CHECK_EQ(v, d->verdict);
	CHECK(strstr(d->state, state));
	if (advice)
		CHECK(strstr(d->advice, advice));
	else
		CHECK_STR("", d->advice);
}

TEST(a_good_host_has_nothing_to_do)
{
	struct host_facts f = good_host();
	unsigned n = host_findings(&f, list);

	CHECK(n > 20);
	for (unsigned i = 0; i < n; i++) {
		if (list[i].verdict != FINDING_OK)
			printf("# %s: %s\n", list[i].id, list[i].state);
		CHECK_EQ(FINDING_OK, list[i].verdict);
		CHECK_STR("", list[i].advice);
		CHECK(list[i].state[0] && list[i].section[0]);
	}
	CHECK_EQ(FINDING_OK, host_worst(list, n));
	check(&f, "speed", FINDING_OK, "hardware speed: 3500", NULL);
}

TEST(no_dev_kvm_because_the_module_is_not_loaded)
{
	struct host_facts f = good_host();

	f.dev_kvm = (struct node_fact){0};
	f.kvm_amd.state = MODULE_AVAILABLE;
	f.probe = (struct kvm_probe){KVM_PROBE_ABSENT, "opening it", ENOENT};
	check(&f, "device", FINDING_BAD, "no /dev/kvm", "load the module");
	check(&f, "module", FINDING_BAD, "kvm_amd is not loaded", "modprobe kvm_amd");
	check(&f, "speed", FINDING_INFO, "not measured", NULL);
	CHECK_EQ(FINDING_BAD, host_worst(list, host_findings(&f, list)));
	f.kvm_amd.blacklisted = true;
	check(&f, "module", FINDING_BAD, "kvm_amd is blacklisted", "off the blacklist");
	f.kvm_amd = (struct module_fact){MODULE_ABSENT};
	check(&f, "module", FINDING_BAD, "has no kvm_amd", "CONFIG_KVM_AMD");
}

TEST(no_dev_kvm_in_a_virtual_machine)
{
	struct host_facts f = good_host();

	f.dev_kvm = (struct node_fact){0};
	f.flag_svm = f.cpuid_svm = false;
	f.flag_hypervisor = true;
	strcpy(f.hypervisor, "VMwareVMware");
	strcpy(f.vendor, "GenuineIntel");
	f.kvm_intel.state = MODULE_AVAILABLE;
	f.probe = (struct kvm_probe){KVM_PROBE_ABSENT, "opening it", ENOENT};
	check(&f, "machine", FINDING_INFO, "VMwareVMware", NULL);
	check(&f, "cpu", FINDING_BAD, "neither svm nor vmx", "nested virtualization");
	check(&f, "module", FINDING_INFO, "kvm_intel", "modprobe kvm_intel");
	check(&f, "device", FINDING_BAD, "no /dev/kvm", "--device /dev/kvm");
}

TEST(turned_off_by_the_firmware)
{
	struct host_facts f = good_host();

	f.flag_svm = false;
	check(&f, "cpu", FINDING_BAD, "the firmware has turned it off", "SVM");
	f.cpuid_svm = false;
	f.cpuid_vmx = true;
	strcpy(f.vendor, "GenuineIntel");
	check(&f, "cpu", FINDING_BAD, "VT-x (vmx), but the firmware", "Intel Virtualization");
	f.cpuid_vmx = false;
	check(&f, "cpu", FINDING_BAD, "neither svm nor vmx", "--engine soft");
}

TEST(no_permission)
{
	struct host_facts f = good_host();

	f.dev_kvm.usable = false;
	f.in_dev_group = f.listed_in_dev_group = false;
	f.probe = (struct kvm_probe){KVM_PROBE_NO_PERMISSION, "opening it", EACCES};
	check(&f, "device", FINDING_BAD, "may not be opened by alice (mode 0660, group kvm)",
	      "usermod -aG kvm alice");
	check(&f, "speed", FINDING_INFO, "no permission", NULL);
	f.listed_in_dev_group = true;
	check(&f, "device", FINDING_BAD, "may not be opened", "log in again, or: newgrp kvm");
	f.dev_kvm = (struct node_fact){true, false, 0600, "root"};
	f.listed_in_dev_group = false;
	check(&f, "device", FINDING_BAD, "mode 0600", "setfacl -m u:alice:rw /dev/kvm");
	f.is_root = true;
	check(&f, "device", FINDING_BAD, "mode 0600", "container");
}

TEST(software_only_kvm)
{
	struct host_facts f = good_host();

	f.flag_svm = f.cpuid_svm = false;
	f.flag_hypervisor = true;
	strcpy(f.other_backend, "kvm_pvm");
	f.kvm_amd.state = MODULE_ABSENT;
	f.nested = f.second_level = HOST_UNKNOWN;
	f.probe = (struct kvm_probe){KVM_PROBE_EMULATED, NULL, 0, 1.6, 0};
	check(&f, "module", FINDING_WARN, "kvm_pvm serves /dev/kvm", "measured");
	check(&f, "device", FINDING_OK, "may be opened", NULL);
	check(&f, "speed", FINDING_BAD, "emulates ring 0: 1.6 million", "--engine auto takes soft");
	for (unsigned i = 0, n = host_findings(&f, list); i < n; i++)
		CHECK(strcmp(list[i].id, "nested") && strcmp(list[i].id, "page-tables"));
}

/* What names cannot tell: all looks right, and the guest crawls. */
TEST(a_slow_kvm_under_a_good_name)
{
	struct host_facts f = good_host();

	f.probe = (struct kvm_probe){KVM_PROBE_EMULATED, NULL, 0, 4, 0};
	check(&f, "module", FINDING_OK, "kvm_amd is loaded", NULL);
	check(&f, "speed", FINDING_BAD, "emulates ring 0", "soft");
}

TEST(a_kvm_that_fails)
{
	struct host_facts f = good_host();

	f.probe = (struct kvm_probe){KVM_PROBE_BROKEN, "KVM_CREATE_VCPU", ENOMEM};
	check(&f, "speed", FINDING_BAD, "KVM_CREATE_VCPU", "dmesg");
}

TEST(other_hypervisors)
{
	struct host_facts f = good_host();

	strcpy(f.other_hypervisor, "vboxdrv");
	check(&f, "other-hypervisor", FINDING_INFO, "vboxdrv is loaded", NULL);
	f.probe = (struct kvm_probe){KVM_PROBE_BUSY, "KVM_CREATE_VM", EBUSY};
	check(&f, "other-hypervisor", FINDING_BAD, "vboxdrv holds", "unload its module");
	strcpy(f.other_hypervisor, "");
	check(&f, "other-hypervisor", FINDING_BAD, "another program holds", "end that");
	f = good_host();
	strcpy(f.other_hypervisor, "xen");
	check(&f, "other-hypervisor", FINDING_WARN, "Xen runs below", "without Xen");
}

TEST(module_parameters)
{
	struct host_facts f = good_host();

	f.nested = 0;
	f.second_level = 0;
	check(&f, "nested", FINDING_INFO, "off", "options kvm_amd nested=1");
	check(&f, "page-tables", FINDING_WARN, "npt is off", "npt=1");
}

TEST(memory)
{
	struct host_facts f = good_host();

	f.memory_available = 100 * MiB;
	f.cgroup_memory = 2 * GiB;
	f.overcommit = 2;
	f.max_map_count = 1000;
	f.huge_2m = (struct page_pool_fact){0, 0};
	strcpy(f.thp_shmem, "never");
	check(&f, "memory", FINDING_WARN, "0.1 GiB of it available", "--memory");
	check(&f, "cgroup-memory", FINDING_INFO, "limited to 2.0 GiB", "memory.max");
	check(&f, "overcommit", FINDING_WARN, "is 2", "sysctl vm.overcommit_memory=0");
	check(&f, "map-count", FINDING_WARN, "1000", "sysctl vm.max_map_count=65530");
	check(&f, "huge-pages", FINDING_INFO, "no huge pages", "vm.nr_hugepages");
	check(&f, "transparent-huge-pages", FINDING_WARN, "never", "echo advise");
	f.cgroup_memory = 512 * MiB;
	f.huge_2m = (struct page_pool_fact){512, 0};
	check(&f, "cgroup-memory", FINDING_WARN, "0.5 GiB", "killed");
	check(&f, "huge-pages", FINDING_INFO, "in use", "reserve more");
	f.huge_1g = (struct page_pool_fact){4, 3};
	check(&f, "huge-pages", FINDING_OK, "3 GiB in 1 GiB pages", NULL);
}

TEST(limits)
{
	struct host_facts f = good_host();

	f.memlock = 8 * MiB;
	f.nofile = 256;
	f.nproc = 200;
	strcpy(f.cgroup_controllers, "memory cpuset");
	check(&f, "locked-memory", FINDING_WARN, "8192 KiB", "memlock");
	check(&f, "open-files", FINDING_WARN, "256", "ulimit -n 1024");
	check(&f, "threads", FINDING_WARN, "200", "ulimit -u");
	f.cgroup_pids = 100;
	check(&f, "threads", FINDING_WARN, "100", "pids.max");
	check(&f, "cgroup", FINDING_INFO, "without the cpu controller", "Delegate=yes");
	f.cgroup2 = 0;
	check(&f, "cgroup", FINDING_INFO, "no cgroup v2", "systemd-run");
	f.iommu_groups = 0;
	check(&f, "locked-memory", FINDING_INFO, "8192 KiB", "memlock");
}

TEST(devices)
{
	struct host_facts f = good_host();

	f.iommu_groups = 0;
	f.dev_vfio = f.dev_vhost_net = (struct node_fact){0};
	f.vfio_pci.state = MODULE_AVAILABLE;
	f.vhost_net.state = MODULE_ABSENT;
	f.dev_tun.usable = false;
	check(&f, "iommu", FINDING_INFO, "no IOMMU", "amd_iommu=on");
	check(&f, "vfio", FINDING_INFO, "vfio_pci is not loaded", "modprobe vfio_pci");
	check(&f, "vhost-net", FINDING_INFO, "not of this kernel", "use a kernel that has");
	check(&f, "tun", FINDING_INFO, "may not be opened", "give this user");
	f.flag_hypervisor = true;
	check(&f, "iommu", FINDING_INFO, "no IOMMU", "virtual IOMMU");
}

TEST(confinement)
{
	struct host_facts f = good_host();

	f.unprivileged_userns = 0;
	f.landlock = 0;
	check(&f, "user-namespaces", FINDING_INFO, "may not", "seccomp and Landlock alone");
	check(&f, "sandbox", FINDING_WARN, "no Landlock", "lsm=");
	f = good_host();
	f.max_user_namespaces = 0;
	f.seccomp = false;
	check(&f, "user-namespaces", FINDING_INFO, "may not", "");
	check(&f, "sandbox", FINDING_WARN, "no seccomp", "use a kernel");
}

TEST(an_old_kernel_and_a_slow_clock)
{
	struct host_facts f = good_host();

	strcpy(f.kernel, "4.19.0");
	strcpy(f.clocksource, "hpet");
	check(&f, "kernel", FINDING_WARN, "4.19", "newer kernel");
	check(&f, "clock", FINDING_WARN, "hpet", "dmesg");
}

/* Files alone, as with --root: nothing is said of what was not asked. */
TEST(without_a_running_system)
{
	struct host_facts f = good_host();

	f.live = false;
	for (unsigned i = 0, n = host_findings(&f, list); i < n; i++)
		CHECK(strcmp(list[i].id, "speed") && strcmp(list[i].id, "open-files") &&
		      strcmp(list[i].id, "sandbox"));
}

/* Nothing at all is known: every finding still has words that fit. */
TEST(no_facts)
{
	struct host_facts f = {0};
	unsigned n = host_findings(&f, list);

	for (unsigned i = 0; i < n; i++) {
		CHECK(list[i].state[0]);
		CHECK(strlen(list[i].state) < sizeof(list[i].state) - 1);
		CHECK(strlen(list[i].advice) < sizeof(list[i].advice) - 1);
	}
}
