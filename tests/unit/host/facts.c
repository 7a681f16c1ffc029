/* Facts from the files of a made-up system below a directory, and from this one. */
#include "host/facts.h"
#include "host/cgroup.h"
#include "host/files.h"

#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

static char root[] = "/tmp/host_facts.XXXXXX";

static void make_root(void)
{
	CHECK(mkdtemp(root));
}

static void remove_root(void)
{
	char command[PATH_MAX];

	snprintf(command, sizeof(command), "rm -rf %s", root);
	CHECK(system(command) == 0);
}

/* Every directory on the way is made. */
static void put(const char *path, const char *text)
{
	char full[PATH_MAX];
	FILE *f;

	snprintf(full, sizeof(full), "%s%s", root, path);
	for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = 0;
		mkdir(full, 0755);
	}
	f = fopen(full, "w");
	CHECK(f);
	fputs(text, f);
	fclose(f);
}

static struct host_facts gather(void)
{
	struct host_facts f;

	memset(&f, 0xa5, sizeof(f));
	host_facts_gather(&f, root);
	remove_root();
	CHECK(!f.live);
	return f;
}

TEST(an_empty_root)
{
	struct host_facts f;

	make_root();
	f = gather();
	CHECK_STR("", f.kernel);
	CHECK(!f.flag_svm && !f.flag_vmx && !f.dev_kvm.exists);
	CHECK_EQ(MODULE_ABSENT, f.kvm.state);
	CHECK_EQ(HOST_UNKNOWN, f.nested);
	CHECK_EQ(HOST_UNKNOWN, f.memory_total);
	CHECK_EQ(HOST_UNLIMITED, f.cgroup_memory);
	CHECK_EQ(HOST_UNKNOWN, f.iommus);
	CHECK_EQ(0, f.cgroup2);
}

static void put_amd_machine(void)
{
	put("/proc/sys/kernel/osrelease", "6.1.0-9-amd64\n");
	put("/proc/cpuinfo", "processor\t: 0\nvendor_id\t: AuthenticAMD\n"
			     "flags\t\t: fpu svmlock svm nx\nbugs\t\t: vmx hypervisor\n");
	put("/sys/devices/system/cpu/cpu0/x", "");
	put("/sys/devices/system/cpu/cpu1/x", "");
	put("/sys/devices/system/cpu/cpufreq/x", "");
	put("/sys/devices/system/node/node0/x", "");
	put("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
	put("/sys/module/kvm/x", "");
	put("/sys/module/kvm_amd/parameters/nested", "0\n");
	put("/sys/module/kvm_amd/parameters/npt", "Y\n");
	put("/dev/kvm", "");
}

TEST(processor_and_kvm)
{
	struct host_facts f;

	make_root();
	put_amd_machine();
	f = gather();
	CHECK_STR("6.1.0-9-amd64", f.kernel);
	CHECK_STR("AuthenticAMD", f.vendor);
	CHECK_STR("hpet", f.clocksource);
	CHECK(f.flag_svm);
	CHECK(!f.flag_vmx && !f.flag_hypervisor);
	CHECK_EQ(2, f.cpus);
	CHECK_EQ(1, f.numa_nodes);
	CHECK_EQ(MODULE_LOADED, f.kvm.state);
	CHECK_EQ(MODULE_LOADED, f.kvm_amd.state);
	CHECK_EQ(MODULE_ABSENT, f.kvm_intel.state);
	CHECK_EQ(0, f.nested);
	CHECK_EQ(1, f.second_level);
	CHECK(f.dev_kvm.exists && f.dev_kvm.usable);
	CHECK_STR("", f.other_backend);
	CHECK_STR("", f.other_hypervisor);
}

TEST(modules)
{
	struct host_facts f;

	make_root();
	put("/proc/sys/kernel/osrelease", "6.1\n");
	put("/lib/modules/6.1/modules.builtin", "kernel/virt/kvm/kvm.ko\nkernel/x/tun.ko\n");
	put("/lib/modules/6.1/modules.dep",
	    "kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz\n"
	    "kernel/drivers/vhost/vhost_net.ko: kernel/drivers/vhost/vhost.ko\n"
	    "kernel/drivers/vfio/pci/vfio-pci-core.ko:\n");
	put("/sys/module/kvm/x", "");
	put("/sys/module/kvm_pvm/x", "");
	put("/sys/module/vmmon/x", "");
	put("/etc/modprobe.d/a.conf", "# blacklist vhost_net\n  blacklist   kvm-amd # no\n");
	put("/etc/modprobe.d/b.disabled", "blacklist tun\n");
	put("/usr/lib/modprobe.d/c.conf", "install kvm_intel /bin/false\nblacklist tunnel\n");
	put("/proc/cmdline", "quiet modprobe.blacklist=a,vfio-pci root=/dev/sda1\n");
	f = gather();
	CHECK_EQ(MODULE_BUILTIN, f.kvm.state);
	CHECK_EQ(MODULE_BUILTIN, f.tun.state);
	CHECK_EQ(MODULE_AVAILABLE, f.kvm_amd.state);
	CHECK_EQ(MODULE_AVAILABLE, f.vhost_net.state);
	CHECK_EQ(MODULE_ABSENT, f.vfio_pci.state);
	CHECK(f.kvm_amd.blacklisted);
	CHECK(f.kvm_intel.blacklisted);
	CHECK(f.vfio_pci.blacklisted);
	CHECK(!f.vhost_net.blacklisted && !f.tun.blacklisted && !f.kvm.blacklisted);
	CHECK_STR("kvm_pvm", f.other_backend);
	CHECK_STR("vmmon", f.other_hypervisor);
}

TEST(memory)
{
	struct host_facts f;

	make_root();
	put("/proc/meminfo", "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n");
	put("/proc/sys/vm/overcommit_memory", "2\n");
	put("/proc/sys/vm/max_map_count", "65530\n");
	put("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "10\n");
	put("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "4\n");
	put("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
	put("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "always advise [never] deny\n");
	f = gather();
	CHECK_EQ(2 * MiB, f.memory_total);
	CHECK_EQ(MiB, f.memory_available);
	CHECK_EQ(2, f.overcommit);
	CHECK_EQ(65530, f.max_map_count);
	CHECK_EQ(10, f.huge_2m.total);
	CHECK_EQ(4, f.huge_2m.unused);
	CHECK_EQ(HOST_UNKNOWN, f.huge_1g.total);
	CHECK_STR("madvise", f.thp);
	CHECK_STR("never", f.thp_shmem);
}

TEST(cgroup_limits)
{
	struct host_facts f;

	make_root();
	put("/proc/self/mounts", "proc /proc proc rw 0 0\ncg /cg/unified cgroup2 rw 0 0\n");
	put("/proc/self/cgroup", "3:cpu:/x\n0::/a/b\n");
	put("/cg/unified/memory.max", "max\n");
	put("/cg/unified/a/memory.max", "1000\n");
	put("/cg/unified/a/b/memory.max", "2000\n");
	put("/cg/unified/a/b/pids.max", "max\n");
	put("/cg/unified/a/b/cgroup.controllers", "memory pids\n");
	f = gather();
	CHECK_EQ(1, f.cgroup2);
	CHECK_EQ(1000, f.cgroup_memory);
	CHECK_EQ(HOST_UNLIMITED, f.cgroup_pids);
	CHECK_STR("memory pids", f.cgroup_controllers);
}

/* In a cgroup namespace our own group is "/", and its files say what limits us. */
TEST(cgroup_of_a_container)
{
	struct host_facts f;

	make_root();
	put("/proc/self/mounts", "cg /cg cgroup2 rw 0 0\n");
	put("/proc/self/cgroup", "0::/\n");
	put("/cg/memory.max", "4096\n");
	put("/cg/cgroup.controllers", "cpuset cpu memory\n");
	f = gather();
	CHECK_EQ(4096, f.cgroup_memory);
	CHECK_STR("cpuset cpu memory", f.cgroup_controllers);
}

TEST(cgroup_words)
{
	struct cgroup cg = {.controllers = "cpuset cpu io"};

	CHECK(cgroup_has(&cg, "cpu"));
	CHECK(cgroup_has(&cg, "io"));
	CHECK(!cgroup_has(&cg, "cp"));
	CHECK(!cgroup_has(&cg, "memory"));
}

TEST(devices_and_confinement)
{
	struct host_facts f;

	make_root();
	put("/sys/class/iommu/dmar0/x", "");
	put("/sys/kernel/iommu_groups/0/x", "");
	put("/sys/kernel/iommu_groups/1/x", "");
	put("/dev/net/tun", "");
	put("/proc/sys/user/max_user_namespaces", "1234\n");
	put("/proc/sys/kernel/unprivileged_userns_clone", "1\n");
	put("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
	put("/proc/sys/kernel/seccomp/actions_avail", "kill\n");
	put("/sys/hypervisor/type", "xen\n");
	f = gather();
	CHECK_EQ(1, f.iommus);
	CHECK_EQ(2, f.iommu_groups);
	CHECK(f.dev_tun.exists && !f.dev_vfio.exists);
	CHECK_EQ(1234, f.max_user_namespaces);
	CHECK_EQ(0, f.unprivileged_userns);
	CHECK(f.seccomp);
	CHECK_STR("xen", f.other_hypervisor);
}

/* Files of absurd content: nothing is believed, nothing breaks. */
TEST(nonsense)
{
	struct host_facts f;
	char *big = malloc(100000);

	memset(big, 'x', 99999);
	big[99999] = 0;
	make_root();
	put("/proc/cpuinfo", big);
	put("/proc/meminfo", "MemTotal:\nMemAvailable: none\n");
	put("/proc/self/mounts", big);
	put("/proc/self/cgroup", "no such thing");
	put("/proc/sys/kernel/osrelease", big);
	put("/sys/kernel/mm/transparent_hugepage/enabled", "always ] [ never");
	put("/proc/sys/vm/overcommit_memory", "?");
	put("/etc/modprobe.d/a.conf", big);
	free(big);
	f = gather();
	CHECK_EQ(HOST_UNKNOWN, f.memory_total);
	CHECK_EQ(HOST_UNKNOWN, f.overcommit);
	CHECK_STR("", f.thp);
}

TEST(this_host)
{
	struct host_facts f;

	host_facts_gather(&f, "");
	CHECK(f.live);
	CHECK(f.kernel[0] && f.vendor[0]);
	CHECK(f.cpus >= 1);
	CHECK(f.memory_total > 0);
	CHECK(f.nofile > 0);
	CHECK_EQ(access("/dev/kvm", F_OK) == 0, f.dev_kvm.exists);
	CHECK_EQ(f.dev_kvm.exists, f.probe.state != KVM_PROBE_ABSENT || f.probe.error != ENOENT);
	if (f.flag_svm)
		CHECK(f.cpuid_svm);
}
