/* engine/kvm/tsc.c - the time-stamp counter, and kvm-clock.
 *
 * Guest TSC = host TSC * ratio + offset.  The kernel tells the offset (since Linux 5.16, else it is
 * had from reading both); a copy that other threads may read is kept in the vCPU.  It is taken
 * anew whenever the vCPU is outside KVM_RUN and somebody asks, because a kernel whose TSC stops or
 * drifts moves it. */
#include "engine/kvm/kvm.h"

#include "base/clock.h"
#include "base/error.h"
#include "engine/x86_defs.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

uint64_t kvm_host_tsc(void)
{
	return __builtin_ia32_rdtsc();
}

/* --- rate --------------------------------------------------------------------------------------
 */

static uint64_t host_khz(struct engine_vm *vm)
{
	int khz = kvm_ioctl(vm->fd, KVM_GET_TSC_KHZ, NULL);

	if (khz <= 0 && vm->cpus[0])
		khz = kvm_ioctl(vm->cpus[0]->fd, KVM_GET_TSC_KHZ, NULL);
	return khz > 0 ? (uint64_t)khz : 0;
}

/* Without a VM-wide question (before Linux 5.18) only a vCPU can be asked, and there is none yet:
 * one of a VM that is thrown away. */
static uint64_t khz_of_scratch_vm(void)
{
	int sys = kvm_open(NULL), vm, cpu, khz = 0;

	if (sys < 0)
		return 0;
	vm = kvm_ioctl(sys, KVM_CREATE_VM, NULL);
	cpu = vm >= 0 ? kvm_ioctl(vm, KVM_CREATE_VCPU, NULL) : -1;
	if (cpu >= 0) {
		khz = kvm_ioctl(cpu, KVM_GET_TSC_KHZ, NULL);
		close(cpu);
	}
	if (vm >= 0)
		close(vm);
	close(sys);
	return khz > 0 ? (uint64_t)khz : 0;
}

uint64_t kvm_tsc_khz(struct engine_vm *vm)
{
	if (!vm->tsc_khz)
		vm->tsc_khz = host_khz(vm);
	if (!vm->tsc_khz)
		vm->tsc_khz = khz_of_scratch_vm();
	return vm->tsc_khz;
}

/* --- offset ------------------------------------------------------------------------------------
 */

static struct kvm_device_attr offset_attr(uint64_t *offset)
{
	return (struct kvm_device_attr){
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)offset,
	};
}

/* Host ticks to the guest's. */
static uint64_t scaled(const struct engine_vm *vm, uint64_t ticks)
{
	if (likely(!vm->tsc_scaled))
		return ticks;
	return (uint64_t)((unsigned __int128)ticks * vm->tsc_khz / vm->host_khz);
}

static uint64_t guest_now(const struct engine_vm *vm, uint64_t offset)
{
	return scaled(vm, kvm_host_tsc()) + offset;
}

static int offset_get(struct engine_cpu *cpu, uint64_t *offset)
{
	struct kvm_device_attr a = offset_attr(offset);
	uint64_t guest;
	int r = kvm_ioctl(cpu->fd, KVM_GET_DEVICE_ATTR, &a);

	if (r == 0)
		return 0;
	r = kvm_msr_get(cpu, MSR_TSC, &guest);
	if (r == 0)
		*offset = guest - scaled(cpu->vm, kvm_host_tsc());
	return r;
}

static int offset_set(struct engine_cpu *cpu, uint64_t offset)
{
	struct kvm_device_attr a = offset_attr(&offset);
	int r = kvm_ioctl(cpu->fd, KVM_SET_DEVICE_ATTR, &a);

	if (r < 0)
		r = kvm_msr_set(cpu, MSR_TSC, guest_now(cpu->vm, offset));
	if (r == 0)
		atomic_store(&cpu->tsc_offset, offset);
	return r;
}

void kvm_tsc_refresh(struct engine_cpu *cpu)
{
	uint64_t offset;

	if (offset_get(cpu, &offset) == 0)
		atomic_store(&cpu->tsc_offset, offset);
}

/* All vCPUs of a VM are set one after another, CPU 0 first, to values that were read one after
 * another, and their counters must still agree: the others move by what CPU 0's was moved by when
 * that is less than a second from what is asked for. */
static uint64_t go_along(struct engine_cpu *cpu, uint64_t offset)
{
	struct engine_vm *vm = cpu->vm;
	uint64_t second = kvm_tsc_khz(vm) * 1000, own = atomic_load(&cpu->tsc_offset);
	bool behind = cpu->tsc_round != vm->tsc_round;

	if (cpu->index == 0) {
		vm->tsc_move = offset - own;
		vm->tsc_round++;
	} else if (behind && own + vm->tsc_move - offset + second < 2 * second) {
		offset = own + vm->tsc_move;
	}
	cpu->tsc_round = vm->tsc_round;
	return offset;
}

/* A state that was taken from this vCPU and comes back with other changes does not turn the counter
 * back; any other value is meant.  One that is made starts with the others. */
static uint64_t choose_offset(struct engine_cpu *cpu, uint64_t tsc, uint64_t offset)
{
	struct engine_vm *vm = cpu->vm;
	bool is_new = vm->cpus[cpu->index] != cpu;

	if (is_new)
		cpu->tsc_round = vm->tsc_round;
	if (is_new && vm->tsc_offset_known)
		return vm->tsc_offset;
	if (is_new || (tsc && tsc == cpu->tsc_given))
		return atomic_load(&cpu->tsc_offset);
	return go_along(cpu, offset);
}

int kvm_tsc_set(struct engine_cpu *cpu, uint64_t tsc)
{
	struct engine_vm *vm = cpu->vm;
	uint64_t offset = tsc - guest_now(vm, 0), deadline = 0;
	bool armed = kvm_has_lapic(vm) && kvm_msr_get(cpu, MSR_TSC_DEADLINE, &deadline) == 0;
	int r;

	kvm_tsc_refresh(cpu);
	vm->tsc_offset = offset = choose_offset(cpu, tsc, offset);
	vm->tsc_offset_known = true;
	r = offset_set(cpu, offset);
	/* The kernel's timer was started by the old counter. */
	if (r == 0 && armed && deadline)
		r = kvm_msr_set(cpu, MSR_TSC_DEADLINE, deadline);
	return r;
}

/* The guest writes the counter, or TSC_ADJUST, which moves by as much (SDM 3B "Time-Stamp Counter
 * Adjustment"). */
bool kvm_tsc_write(struct engine_cpu *cpu, uint32_t index, uint64_t value)
{
	uint64_t offset, adjust = 0, delta;

	kvm_msr_get(cpu, MSR_TSC_ADJUST, &adjust);
	if (offset_get(cpu, &offset) < 0)
		return false;
	if (index == MSR_TSC)
		delta = value - guest_now(cpu->vm, offset);
	else
		delta = value - adjust;
	kvm_msr_set(cpu, MSR_TSC_ADJUST, adjust + delta);
	if (offset_set(cpu, offset + delta) < 0)
		return false;
	if (cpu->ops->tsc_written)
		cpu->ops->tsc_written(cpu->opaque);
	return true;
}

/* --- reading -----------------------------------------------------------------------------------
 */

/* On its own thread, between runs, the kernel can be asked. */
static void refresh_if_mine(struct engine_cpu *cpu)
{
	if (atomic_load(&cpu->tid) == gettid())
		kvm_tsc_refresh(cpu);
}

uint64_t kvm_cpu_tsc(struct engine_cpu *cpu)
{
	refresh_if_mine(cpu);
	return guest_now(cpu->vm, atomic_load(&cpu->tsc_offset));
}

static uint64_t ticks_to_ns(uint64_t ticks, uint64_t khz)
{
	return (uint64_t)((unsigned __int128)ticks * 1000000 / khz);
}

uint64_t kvm_cpu_tsc_to_ns(struct engine_cpu *cpu, uint64_t tsc)
{
	uint64_t khz = kvm_tsc_khz(cpu->vm), now = clock_mono_ns();
	uint64_t delta = tsc - kvm_cpu_tsc(cpu), ns;

	if ((int64_t)delta < 0) {
		ns = ticks_to_ns(-delta, khz);
		return ns < now ? now - ns : 0;
	}
	ns = ticks_to_ns(delta, khz);
	return ns < UINT64_MAX - now ? now + ns : UINT64_MAX;
}

/* --- another rate ------------------------------------------------------------------------------
 */

int kvm_tsc_khz_apply(struct engine_cpu *cpu)
{
	if (!cpu->vm->tsc_scaled)
		return 0;
	return kvm_ioctl(cpu->fd, KVM_SET_TSC_KHZ, (void *)(uintptr_t)cpu->vm->tsc_khz);
}

static int apply_to_all(struct engine_vm *vm)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < vm->nr_cpus; i++)
		if (vm->cpus[i])
			r = kvm_tsc_khz_apply(vm->cpus[i]);
	return r;
}

/* 250 ppm is what NTP's discipline of a clock copes with. */
int kvm_tsc_khz_set(struct engine_vm *vm, uint64_t khz, struct error *err)
{
	uint64_t have = kvm_tsc_khz(vm), off = khz > have ? khz - have : have - khz;
	int r;

	if (off <= have / 4000)
		return 0;
	if (!vm->tsc_scaled)
		vm->host_khz = have;
	vm->tsc_khz = khz;
	vm->tsc_scaled = true;
	vm->tsc_offset_known = false;
	r = kvm_cap(vm->fd, KVM_CAP_TSC_CONTROL) ? apply_to_all(vm) : -ENOTSUP;
	if (r == 0)
		return 0;
	vm->tsc_khz = vm->host_khz;
	vm->tsc_scaled = false;
	return err_set(
		err, ENOTSUP,
		"the guest's time-stamp counter runs at %llu kHz, this host's at %llu, and its "
		"processor cannot scale",
		(unsigned long long)khz, (unsigned long long)vm->host_khz);
}

/* --- kvm-clock ---------------------------------------------------------------------------------
 */

int kvm_pv_clock_get(struct engine_vm *vm, uint64_t *ns)
{
	struct kvm_clock_data data = {0};
	int r = kvm_ioctl(vm->fd, KVM_GET_CLOCK, &data);

	*ns = data.clock;
	return r;
}

/* KVM_KVMCLOCK_CTRL fails for a guest that has not begun to use the clock, and has no watchdog to
 * be told then. */
int kvm_pv_clock_set(struct engine_vm *vm, uint64_t ns)
{
	struct kvm_clock_data data = {.clock = ns};
	int r = kvm_ioctl(vm->fd, KVM_SET_CLOCK, &data);

	for (unsigned i = 0; i < vm->nr_cpus; i++)
		if (vm->cpus[i])
			kvm_ioctl(vm->cpus[i]->fd, KVM_KVMCLOCK_CTRL, NULL);
	return r;
}
