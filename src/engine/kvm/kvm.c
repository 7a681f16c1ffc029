/* engine/kvm/kvm.c - the engine's table, and what the host offers.
 *
 * Needed, all there since Linux 5.10 on any CPU with virtualization: the API's version 12, user
 * memory, immediate exit, vCPU events, debug registers, MSR exits with a filter.  What is newer is
 * asked for where it is used, and done without when absent. */
#include "engine/kvm/kvm.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int kvm_ioctl(int fd, unsigned long req, void *arg)
{
	int r;

	do
		r = ioctl(fd, req, arg);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

int kvm_cap(int fd, unsigned cap)
{
	int r = ioctl(fd, KVM_CHECK_EXTENSION, (unsigned long)cap);

	return MAX(r, 0);
}

static int explain_open(struct error *err, int e)
{
	switch (e) {
	case ENOENT:
		return err_set(err, e,
			       "no /dev/kvm: the processor's virtualization is off or hidden, or "
			       "the kvm module is not loaded; use --engine soft");
	case EACCES:
	case EPERM:
		return err_set(err, e,
			       "no permission to open /dev/kvm; be in the group that owns it (as a "
			       "rule kvm), or use --engine soft");
	case ENODEV:
	case ENXIO:
		return err_set(err, e,
			       "/dev/kvm is there but no driver is behind it; load kvm_intel or "
			       "kvm_amd, or use --engine soft");
	}
	return err_errno(err, e, "cannot open /dev/kvm");
}

static const struct {
	unsigned cap;
	const char *what;
} needed[] = {
	{KVM_CAP_USER_MEMORY, "user memory"},
	{KVM_CAP_IMMEDIATE_EXIT, "immediate exit (Linux 4.13)"},
	{KVM_CAP_EXT_CPUID, "CPUID tables"},
	{KVM_CAP_VCPU_EVENTS, "vCPU events"},
	{KVM_CAP_DEBUGREGS, "debug registers"},
	{KVM_CAP_XSAVE, "XSAVE state"},
	{KVM_CAP_X86_USER_SPACE_MSR, "MSR exits to user space (Linux 5.10)"},
	{KVM_CAP_X86_MSR_FILTER, "MSR filters (Linux 5.10)"},
	{KVM_CAP_ADJUST_CLOCK, "kvm-clock"},
};

static int check_needed(int fd, struct error *err)
{
	int version = kvm_ioctl(fd, KVM_GET_API_VERSION, NULL);

	if (version != KVM_API_VERSION)
		return err_set(err, ENOTSUP, "/dev/kvm speaks version %d of its interface, not %d",
			       version, KVM_API_VERSION);
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (!kvm_cap(fd, needed[i].cap))
			return err_set(err, ENOTSUP,
				       "this kernel's KVM lacks %s; use --engine soft",
				       needed[i].what);
	return 0;
}

int kvm_open(struct error *err)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), r;

	if (fd < 0)
		return explain_open(err, errno);
	r = check_needed(fd, err);
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

/* Creating a VM is what fails when another hypervisor holds the CPU's virtualization. */
static int kvm_probe(struct error *err)
{
	int fd = kvm_open(err), vm;

	if (fd < 0)
		return fd;
	vm = kvm_ioctl(fd, KVM_CREATE_VM, NULL);
	close(fd);
	if (vm < 0)
		return err_errno(err, -vm, "/dev/kvm cannot make a VM%s",
				 vm == -EBUSY ? " (another hypervisor uses the processor)" : "");
	close(vm);
	return 0;
}

static unsigned kvm_caps(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	unsigned caps = ENGINE_CAP_HW;

	if (fd < 0)
		return caps;
	if (kvm_cap(fd, KVM_CAP_SPLIT_IRQCHIP))
		caps |= ENGINE_CAP_IRQCHIP;
	if (kvm_cap(fd, KVM_CAP_ADJUST_CLOCK))
		caps |= ENGINE_CAP_PV_CLOCK;
	if (kvm_cap(fd, KVM_CAP_TSC_CONTROL))
		caps |= ENGINE_CAP_TSC_SCALING;
	if (kvm_cap(fd, KVM_CAP_NESTED_STATE))
		caps |= ENGINE_CAP_NESTED;
	close(fd);
	return caps;
}

const struct engine engine_kvm = {
	.name = "kvm",
	.probe = kvm_probe,
	.caps = kvm_caps,
	.cpu_lacks = kvm_cpu_lacks,
	.vm_create = kvm_vm_create,
	.vm_destroy = kvm_vm_destroy,
	.cpu_create = kvm_cpu_create,
	.cpu_destroy = kvm_cpu_destroy,
	.cpu_run = kvm_cpu_run,
	.cpu_kick = kvm_cpu_kick,
	.cpu_intr = kvm_cpu_intr,
	.cpu_nmi = kvm_cpu_nmi,
	.cpu_get = kvm_cpu_get,
	.cpu_set = kvm_cpu_set,
	.cpu_debug = kvm_cpu_debug,
	.cpu_stats = kvm_cpu_stats,
	.cpu_tsc = kvm_cpu_tsc,
	.tsc_khz = kvm_tsc_khz,
	.cpu_tsc_to_ns = kvm_cpu_tsc_to_ns,
	.tsc_khz_set = kvm_tsc_khz_set,
	.dirty_start = kvm_dirty_start,
	.dirty_fetch = kvm_dirty_fetch,
	.dirty_stop = kvm_dirty_stop,
	.pv_clock_get = kvm_pv_clock_get,
	.pv_clock_set = kvm_pv_clock_set,
	.msr_get = kvm_msr_get,
	.msr_set = kvm_msr_set,
	.doorbell_add = kvm_doorbell_add,
	.doorbell_del = kvm_doorbell_del,
	.coalesce_add = kvm_coalesce_add,
	.coalesce_del = kvm_coalesce_del,
	.irq = &kvm_irq,
};
