/* host/facts_live.c - see facts_live.h: processor, limits of this process, what the kernel offers.
 */
#include "host/facts_live.h"

#include <cpuid.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* CPUID 1 ECX bits 5 (VMX) and 31 (a hypervisor answers at 0x40000000); 0x80000001 ECX bit 2 (SVM).
 */
static void ask_cpuid(struct host_facts *f)
{
	unsigned eax, ebx, ecx, edx;

	if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx))
		f->cpuid_svm = ecx & BIT(2);
	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx))
		return;
	f->cpuid_vmx = ecx & BIT(5);
	if (!(ecx & BIT(31)))
		return;
	__cpuid(0x40000000, eax, ebx, ecx, edx);
	memcpy(f->hypervisor, &ebx, 4);
	memcpy(f->hypervisor + 4, &ecx, 4);
	memcpy(f->hypervisor + 8, &edx, 4);
	f->hypervisor[12] = 0;
}

static int64_t limit_value(rlim_t v)
{
	return v == RLIM_INFINITY ? HOST_UNLIMITED : (int64_t)v;
}

static void ask_limits(struct host_facts *f)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_MEMLOCK, &r) == 0)
		f->memlock = limit_value(r.rlim_cur);
	if (getrlimit(RLIMIT_NPROC, &r) == 0)
		f->nproc = limit_value(r.rlim_cur);
	if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
		f->nofile = limit_value(r.rlim_cur);
		f->nofile_hard = limit_value(r.rlim_max);
	}
}

/* landlock_create_ruleset(NULL, 0, VERSION) gives the ABI version (landlock(7)). */
static void ask_landlock(struct host_facts *f)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1u);

	f->landlock = abi < 0 ? 0 : (int)abi;
}

void host_facts_live(struct host_facts *f)
{
	f->live = true;
	ask_cpuid(f);
	ask_limits(f);
	ask_landlock(f);
	kvm_probe(KVM_DEVICE, &f->probe);
}
