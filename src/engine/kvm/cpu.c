/* engine/kvm/cpu.c - a vCPU: creation, and how another thread gets its attention.
 *
 * Whoever wants something leaves it in an atomic (kicked, intr, nmis) and then fetches the vCPU
 * out of the kernel:
 *
 *   asker                             vCPU's thread
 *   A1 what it wants                  V1 tid = me
 *   A2 run->immediate_exit = 1        V2 immediate_exit = 0
 *   A3 tid set? signal it             V3 look at what is wanted
 *                                     V4 KVM_RUN
 *
 * with full fences between.  An asker before V2 is seen at V3.  One after V2 leaves immediate_exit
 * set, so V4 comes straight back; and if the thread is in the guest already, the signal fetches it.
 * A signal that is late finds an empty handler and system calls that restart.  Nobody is signalled
 * who is not inside kvm_cpu_run. */
#include "engine/kvm/kvm.h"

#include "base/error.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int kick_signal(void)
{
	return SIGRTMIN + 3;
}

static void on_kick(int signal)
{
}

static void install_handler(void)
{
	struct sigaction sa = {.sa_handler = on_kick, .sa_flags = SA_RESTART};

	sigaction(kick_signal(), &sa, NULL);
}

void kvm_kick_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install_handler);
}

/* --- asking ------------------------------------------------------------------------------------
 */

static void set_immediate_exit(struct engine_cpu *cpu, bool on)
{
	__atomic_store_n(&cpu->run->immediate_exit, on, __ATOMIC_SEQ_CST);
}

static void fetch_out(struct engine_cpu *cpu)
{
	int tid;

	set_immediate_exit(cpu, true);
	tid = atomic_load(&cpu->tid);
	if (tid && tid != gettid())
		syscall(SYS_tgkill, getpid(), tid, kick_signal());
}

void kvm_cpu_kick(struct engine_cpu *cpu)
{
	atomic_store(&cpu->kicked, true);
	fetch_out(cpu);
}

void kvm_cpu_intr(struct engine_cpu *cpu, bool level)
{
	if (atomic_exchange(&cpu->intr, level) != level && level)
		fetch_out(cpu);
}

/* One that waits for the handler of the last to end, and one more that comes meanwhile; any further
 * are the same as that (SDM 3A "Handling Multiple NMIs"). */
void kvm_cpu_nmi(struct engine_cpu *cpu)
{
	unsigned n = atomic_load(&cpu->nmis);

	while (n < 2 && !atomic_compare_exchange_weak(&cpu->nmis, &n, n + 1))
		;
	fetch_out(cpu);
}

/* --- the vCPU's thread -------------------------------------------------------------------------
 */

void kvm_cpu_enter(struct engine_cpu *cpu)
{
	if (!cpu->thread_ready || !pthread_equal(cpu->thread, pthread_self())) {
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, kick_signal());
		pthread_sigmask(SIG_UNBLOCK, &set, NULL);
		cpu->thread = pthread_self();
		cpu->thread_ready = true;
	}
	atomic_store(&cpu->tid, gettid());
}

void kvm_cpu_leave(struct engine_cpu *cpu)
{
	atomic_store(&cpu->tid, 0);
}

/* --- life --------------------------------------------------------------------------------------
 */

static int map_run(struct engine_cpu *cpu, struct error *err)
{
	void *p = mmap(NULL, cpu->vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
	int page;

	if (p == MAP_FAILED)
		return err_errno(err, errno, "vCPU %u", cpu->index);
	cpu->run = p;
	page = kvm_cap(cpu->vm->fd, KVM_CAP_COALESCED_MMIO);
	if (cpu->index == 0 && page)
		cpu->vm->coalesced = (void *)((char *)p + (uint64_t)page * PAGE_SIZE);
	return 0;
}

/* The kernel's own start is near, but not the same in all of the state. */
static int reset_state(struct engine_cpu *cpu, struct error *err)
{
	struct x86_state *s = aligned_alloc(64, sizeof(*s));
	int r;

	if (!s)
		return err_errno(err, ENOMEM, "vCPU %u", cpu->index);
	x86_state_reset(s);
	r = kvm_cpu_set(cpu, s, err);
	free(s);
	return r;
}

static int cpu_build(struct engine_cpu *cpu, struct error *err)
{
	int r = kvm_ioctl(cpu->vm->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)cpu->index);

	if (r < 0)
		return err_errno(err, -r, "cannot make vCPU %u", cpu->index);
	cpu->fd = r;
	r = map_run(cpu, err);
	if (r == 0)
		r = kvm_dirty_cpu_init(cpu, err);
	if (r == 0)
		r = kvm_set_cpuid(cpu, err);
	if (r < 0)
		return r;
	kvm_tsc_khz_apply(cpu);
	kvm_msr_cpu_init(cpu);
	return reset_state(cpu, err);
}

int kvm_cpu_create(struct engine_cpu **out, struct engine_vm *vm, unsigned index,
		   const struct engine_cpu_ops *ops, void *opaque, struct error *err)
{
	struct engine_cpu *cpu = calloc(1, sizeof(*cpu));
	int r;

	if (!cpu)
		return err_errno(err, ENOMEM, "vCPU %u", index);
	cpu->vm = vm;
	cpu->index = index;
	cpu->fd = -1;
	cpu->ops = ops;
	cpu->opaque = opaque;
	r = cpu_build(cpu, err);
	if (r < 0) {
		kvm_cpu_destroy(cpu);
		return r;
	}
	vm->cpus[index] = cpu;
	*out = cpu;
	return 0;
}

void kvm_cpu_destroy(struct engine_cpu *cpu)
{
	if (!cpu)
		return;
	cpu->vm->cpus[cpu->index] = NULL;
	if (cpu->index == 0)
		cpu->vm->coalesced = NULL;
	if (cpu->ring)
		munmap(cpu->ring, cpu->vm->ring_bytes);
	if (cpu->run)
		munmap(cpu->run, cpu->vm->run_size);
	if (cpu->fd >= 0)
		close(cpu->fd);
	free(cpu);
}

void kvm_cpu_stats(struct engine_cpu *cpu, struct engine_stats *st)
{
	*st = (struct engine_stats){
		.exits_mmio = atomic_load_explicit(&cpu->exits_mmio, memory_order_relaxed),
		.exits_pio = atomic_load_explicit(&cpu->exits_pio, memory_order_relaxed),
		.interrupts = atomic_load_explicit(&cpu->interrupts, memory_order_relaxed),
	};
}
