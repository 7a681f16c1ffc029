/* host/kvm_probe.c - see kvm_probe.h. */
#include "host/kvm_probe.h"

#include "base/bytes.h"
#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Guest-physical layout of the tiny guest. */
enum {
	GUEST_PML4 = 0x1000,
	GUEST_PDPT = 0x2000,
	GUEST_PD = 0x3000,
	GUEST_PLAIN = 0x4000,
	GUEST_PRIVILEGED = 0x4100,
	GUEST_STACK = 0x5000,
	GUEST_SIZE = 0x5000,
};

/* Loops of RCX turns that end in HLT. */
static const uint8_t plain_code[] = {
	0x48, 0xff, 0xc9, /* 1: dec %rcx */
	0x75, 0xfb,       /* jnz 1b */
	0xf4,             /* hlt */
};
/* What a kernel does all day and hardware does without leaving the guest. */
static const uint8_t privileged_code[] = {
	0xfa,             /* 1: cli */
	0x0f, 0x01, 0xf8, /* swapgs */
	0x0f, 0x01, 0xf8, /* swapgs */
	0x0f, 0x20, 0xd8, /* mov %cr3,%rax */
	0x0f, 0x20, 0xd0, /* mov %cr2,%rax */
	0x48, 0xff, 0xc9, /* dec %rcx */
	0x75, 0xee,       /* jnz 1b */
	0xf4,             /* hlt */
};
enum { PLAIN_INSNS = 2, PRIVILEGED_INSNS = 7 };

/* Two runs one after the other that took at least this much CPU time and agree are believed. */
#define ENOUGH_NS    100000ull
#define FIRST_INSNS  200ull
#define MAX_INSNS    (4ull << 20)
#define INSNS_GROWTH 4

struct probe {
	struct kvm_probe *out;
	int dev, vm, cpu;
	uint8_t *ram;
	struct kvm_run *run;
	size_t run_size;
	uint64_t deadline_ns; /* CLOCK_MONOTONIC */
};

static bool failed(struct probe *p, enum kvm_probe_state state, const char *step, int error)
{
	p->out->state = state;
	p->out->step = step;
	p->out->error = error;
	return false;
}

static bool broken(struct probe *p, const char *step)
{
	return failed(p, KVM_PROBE_BROKEN, step, errno);
}

static bool open_device(struct probe *p, const char *device)
{
	p->dev = open(device, O_RDWR | O_CLOEXEC);
	if (p->dev < 0 && (errno == EACCES || errno == EPERM))
		return failed(p, KVM_PROBE_NO_PERMISSION, "opening it", errno);
	if (p->dev < 0) /* ENODEV, ENXIO: a node without a driver */
		return failed(p, KVM_PROBE_ABSENT, "opening it", errno);
	if (ioctl(p->dev, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return failed(p, KVM_PROBE_ABSENT, "KVM_GET_API_VERSION", 0);
	return true;
}

static bool create_vm(struct probe *p)
{
	struct kvm_userspace_memory_region slot = {.memory_size = GUEST_SIZE};

	do
		p->vm = ioctl(p->dev, KVM_CREATE_VM, 0);
	while (p->vm < 0 && errno == EINTR);
	if (p->vm < 0 && errno == EBUSY)
		return failed(p, KVM_PROBE_BUSY, "KVM_CREATE_VM", errno);
	if (p->vm < 0)
		return broken(p, "KVM_CREATE_VM");
	p->ram = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p->ram == MAP_FAILED)
		return broken(p, "guest memory");
	slot.userspace_addr = (uintptr_t)p->ram;
	if (ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		return broken(p, "KVM_SET_USER_MEMORY_REGION");
	return true;
}

/* Only what long mode asks for: a CPU with LM, PAE, PSE, MSRs, FXSAVE and SSE2. */
static bool set_cpuid(struct probe *p)
{
	static const struct kvm_cpuid_entry2 entries[] = {
		{.function = 0, .eax = 1},
		{.function = 1,
		 .edx = BIT(0) | BIT(3) | BIT(5) | BIT(6) | BIT(24) | BIT(25) | BIT(26)},
		{.function = 0x80000000, .eax = 0x80000001},
		{.function = 0x80000001, .edx = BIT(3) | BIT(6) | BIT(20) | BIT(29)},
	};
	union {
		struct kvm_cpuid2 head;
		uint8_t bytes[sizeof(struct kvm_cpuid2) + sizeof(entries)];
	} c = {.head.nent = ARRAY_SIZE(entries)};

	memcpy(c.head.entries, entries, sizeof(entries));
	return ioctl(p->cpu, KVM_SET_CPUID2, &c) == 0 || broken(p, "KVM_SET_CPUID2");
}

/* Long mode at CPL 0, the first 2 MiB mapped to themselves; no IDT: a fault is a shutdown. */
static bool set_sregs(struct probe *p)
{
	struct kvm_segment seg = {.limit = 0xffffffff,
				  .selector = 8,
				  .present = 1,
				  .type = 11,
				  .s = 1,
				  .l = 1,
				  .g = 1};
	struct kvm_sregs s;

	if (ioctl(p->cpu, KVM_GET_SREGS, &s) < 0)
		return broken(p, "KVM_GET_SREGS");
	s.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
	s.cr3 = GUEST_PML4;
	s.cr4 = 0x20;   /* PAE */
	s.efer = 0x500; /* LME LMA */
	s.cs = seg;
	seg.type = 3;
	seg.l = 0;
	seg.db = 1;
	seg.selector = 16;
	s.ds = s.es = s.fs = s.gs = s.ss = seg;
	return ioctl(p->cpu, KVM_SET_SREGS, &s) == 0 || broken(p, "KVM_SET_SREGS");
}

static bool create_cpu(struct probe *p)
{
	int size = ioctl(p->dev, KVM_GET_VCPU_MMAP_SIZE, 0);

	p->cpu = ioctl(p->vm, KVM_CREATE_VCPU, 0);
	if (p->cpu < 0)
		return broken(p, "KVM_CREATE_VCPU");
	if (size < (int)sizeof(*p->run))
		return failed(p, KVM_PROBE_BROKEN, "KVM_GET_VCPU_MMAP_SIZE", 0);
	p->run_size = size;
	p->run = mmap(NULL, p->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, p->cpu, 0);
	if (p->run == MAP_FAILED)
		return broken(p, "mapping the vCPU");
	return set_cpuid(p) && set_sregs(p);
}

static void write_guest(struct probe *p)
{
	le64_store(p->ram + GUEST_PML4, GUEST_PDPT | 3);
	le64_store(p->ram + GUEST_PDPT, GUEST_PD | 3);
	le64_store(p->ram + GUEST_PD, 0x83); /* one 2 MiB page */
	memcpy(p->ram + GUEST_PLAIN, plain_code, sizeof(plain_code));
	memcpy(p->ram + GUEST_PRIVILEGED, privileged_code, sizeof(privileged_code));
}

static uint64_t cpu_time_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

static bool run_to_hlt(struct probe *p)
{
	while (ioctl(p->cpu, KVM_RUN, 0) < 0) {
		if (errno != EINTR && errno != EAGAIN)
			return broken(p, "KVM_RUN");
		if (clock_mono_ns() >= p->deadline_ns)
			return failed(p, KVM_PROBE_BROKEN, "the test guest did not end", 0);
	}
	if (p->run->exit_reason != KVM_EXIT_HLT)
		return failed(p, KVM_PROBE_BROKEN, "the test guest ended in a wrong way", 0);
	return true;
}

static bool time_loop(struct probe *p, uint64_t rip, uint64_t turns, uint64_t *spent_ns)
{
	struct kvm_regs regs = {.rip = rip, .rcx = turns, .rsp = GUEST_STACK, .rflags = 2};
	uint64_t start;

	if (ioctl(p->cpu, KVM_SET_REGS, &regs) < 0)
		return broken(p, "KVM_SET_REGS");
	start = cpu_time_ns();
	if (!run_to_hlt(p))
		return false;
	*spent_ns = MAX(cpu_time_ns() - start, 1);
	return true;
}

/* Longer and longer runs until two agree: until then what a run pays for entering the guest and for
 * page faults is not small.  The best counts, as a disturbed run pays for the disturbance. */
static bool measure(struct probe *p, uint64_t rip, unsigned insns, double *minsn)
{
	double speed = 0, last;
	uint64_t spent = 0, last_spent;

	for (uint64_t n = FIRST_INSNS; n <= MAX_INSNS; n *= INSNS_GROWTH) {
		last = speed;
		last_spent = spent;
		if (!time_loop(p, rip, n / insns, &spent))
			return false;
		speed = n * 1e3 / spent;
		*minsn = MAX(*minsn, speed);
		if (MIN(spent, last_spent) > ENOUGH_NS && speed < last * 1.3)
			break;
	}
	return true;
}

static void on_limit(int sig)
{
}

/* A guest that never ends is interrupted: the signal makes KVM_RUN return. */
static bool measure_within_limit(struct probe *p)
{
	struct sigaction act = {.sa_handler = on_limit}, old;
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMAX};
	/* Again and again: one that comes just before KVM_RUN is entered interrupts nothing. */
	struct itimerspec limit = {.it_value.tv_nsec = KVM_PROBE_LIMIT_NS,
				   .it_interval.tv_nsec = KVM_PROBE_LIMIT_NS / 10};
	timer_t timer;
	bool good;

	event._sigev_un._tid = syscall(SYS_gettid);
	if (sigaction(SIGRTMAX, &act, &old) < 0 ||
	    timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
		return broken(p, "a timer");
	p->deadline_ns = clock_mono_ns() + KVM_PROBE_LIMIT_NS;
	timer_settime(timer, 0, &limit, NULL);
	good = measure(p, GUEST_PLAIN, PLAIN_INSNS, &p->out->plain_minsn);
	if (good &&
	    p->out->plain_minsn >= KVM_PROBE_MIN_PLAIN_MINSN) /* else it is judged already */
		good = measure(p, GUEST_PRIVILEGED, PRIVILEGED_INSNS, &p->out->privileged_minsn);
	timer_delete(timer);
	sigaction(SIGRTMAX, &old, NULL);
	return good;
}

static void clean_up(struct probe *p)
{
	if (p->run != MAP_FAILED)
		munmap(p->run, p->run_size);
	if (p->cpu >= 0)
		close(p->cpu);
	if (p->vm >= 0)
		close(p->vm);
	if (p->ram != MAP_FAILED)
		munmap(p->ram, GUEST_SIZE);
	if (p->dev >= 0)
		close(p->dev);
}

enum kvm_probe_state kvm_probe_judge(double plain_minsn, double privileged_minsn)
{
	return plain_minsn >= KVM_PROBE_MIN_PLAIN_MINSN &&
			       privileged_minsn >= KVM_PROBE_MIN_PRIVILEGED_MINSN
		       ? KVM_PROBE_FAST
		       : KVM_PROBE_EMULATED;
}

void kvm_probe(const char *device, struct kvm_probe *out)
{
	struct probe p = {
		.out = out, .dev = -1, .vm = -1, .cpu = -1, .ram = MAP_FAILED, .run = MAP_FAILED};
	uint64_t start = clock_mono_ns();

	*out = (struct kvm_probe){0};
	if (open_device(&p, device) && create_vm(&p) && create_cpu(&p)) {
		write_guest(&p);
		if (measure_within_limit(&p))
			out->state = kvm_probe_judge(out->plain_minsn, out->privileged_minsn);
	}
	clean_up(&p);
	out->cost_ns = clock_mono_ns() - start;
}

void kvm_probe_describe(const struct kvm_probe *p, char *text, size_t len)
{
	switch (p->state) {
	case KVM_PROBE_ABSENT:
		snprintf(text, len, p->error == ENOENT ? "no %s" : "%s has no KVM behind it",
			 KVM_DEVICE);
		break;
	case KVM_PROBE_NO_PERMISSION:
		snprintf(text, len, "no permission to open %s", KVM_DEVICE);
		break;
	case KVM_PROBE_BUSY:
		snprintf(text, len, "another hypervisor holds the CPU's virtualization");
		break;
	case KVM_PROBE_BROKEN:
		snprintf(text, len, "KVM does not work: %s%s%s", p->step, p->error ? ": " : "",
			 p->error ? strerrordesc_np(p->error) : "");
		break;
	case KVM_PROBE_EMULATED:
		snprintf(text, len, "KVM emulates ring 0: %.1f million %sinstructions/s",
			 p->privileged_minsn ? p->privileged_minsn : p->plain_minsn,
			 p->privileged_minsn ? "privileged " : "");
		break;
	case KVM_PROBE_FAST:
		snprintf(text, len, "KVM at hardware speed: %.0f million instructions/s in ring 0",
			 p->plain_minsn);
		break;
	}
}
