/* host/facts.h - what there is to know about a host that is to run virtual machines.
 *
 * Facts are gathered once into a plain struct and judged elsewhere (findings.h), so that tests can
 * write the facts of any host.  Those from files come from below a root directory; the others ask
 * the running kernel and processor, and are left at "unknown" when the root is not "".
 *
 * Programs only.  One thread, since the probe of KVM is among them. */
#pragma once

#include "host/kvm_probe.h"

enum module_state { MODULE_ABSENT, MODULE_AVAILABLE, MODULE_BUILTIN, MODULE_LOADED };

struct module_fact {
	enum module_state state;
	bool blacklisted; /* by modprobe.d or on the kernel's command line */
};

/* A device node. */
struct node_fact {
	bool exists, usable; /* usable: we may open it for reading and writing */
	unsigned mode;
	char group[32]; /* "" when the group has no name */
};

/* A limit; HOST_UNLIMITED for none. */
#define HOST_UNLIMITED INT64_MAX
#define HOST_UNKNOWN   (-1)

struct page_pool_fact {
	int64_t total, unused; /* pages; HOST_UNKNOWN when the host has no such size */
};

struct host_facts {
	bool live; /* the facts that only a running system has are here */

	/* kernel and processor */
	char kernel[64];
	char vendor[16]; /* of CPUID: "AuthenticAMD" */
	int cpus, numa_nodes;
	bool flag_svm, flag_vmx, flag_hypervisor; /* as the kernel lists them */
	bool cpuid_svm, cpuid_vmx;                /* as the processor does (live) */
	char hypervisor[16];                      /* what we run in, by CPUID 0x40000000 (live) */
	char clocksource[32];

	/* KVM */
	struct node_fact dev_kvm;
	bool is_root, in_dev_group, listed_in_dev_group; /* of /dev/kvm's group */
	char user[32];
	struct module_fact kvm, kvm_amd, kvm_intel;
	char other_backend[32];    /* a module kvm_* that is neither of the two: "kvm_pvm" */
	char other_hypervisor[32]; /* one that holds the processor: "vboxdrv" */
	int nested;                /* HOST_UNKNOWN, 0, 1 */
	int second_level;          /* nested or extended page tables: HOST_UNKNOWN, 0, 1 */
	struct kvm_probe probe;    /* live */

	/* limits */
	int64_t memlock, nofile, nproc; /* soft limits, in bytes or numbers (live) */
	int64_t nofile_hard;
	int64_t memory_total, memory_available; /* bytes */
	int64_t cgroup_memory, cgroup_pids;     /* of our own cgroup and those above */
	int64_t overcommit, max_map_count;
	struct page_pool_fact huge_2m, huge_1g;
	char thp[16], thp_shmem[16];

	/* devices for guests */
	int iommus, iommu_groups; /* how many; HOST_UNKNOWN when the kernel has no IOMMU support */
	struct module_fact vfio_pci, vhost_net, tun;
	struct node_fact dev_vfio, dev_vhost_net, dev_tun;

	/* confinement */
	int64_t max_user_namespaces;
	int unprivileged_userns; /* HOST_UNKNOWN, 0, 1: what the distribution's switch says */
	bool seccomp;
	int landlock; /* ABI version, 0 none, HOST_UNKNOWN */
	int cgroup2;  /* HOST_UNKNOWN, 0 not mounted, 1 */
	char cgroup_controllers[64];
};

void host_facts_gather(struct host_facts *f, const char *root);
