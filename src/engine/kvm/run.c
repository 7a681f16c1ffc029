/* engine/kvm/run.c - the run loop and its exits.
 *
 * An exit that asked for data (a port, MMIO, an MSR) leaves the instruction half done: the next
 * KVM_RUN finishes it.  So a vCPU never leaves kvm_cpu_run there: it goes back in once with
 * immediate_exit set, which finishes and returns at once (EINTR), and its state is whole. */
#include "engine/kvm/kvm.h"

#include "base/error.h"
#include "engine/x86_defs.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

enum step { STEP_ON, STEP_LEAVE };

static void count(_Atomic uint64_t *n)
{
	/* One writer: no locked instruction. */
	atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

/* --- ports and MMIO ----------------------------------------------------------------------------
 */

static uint64_t load_le(const uint8_t *p, unsigned size)
{
	uint64_t v = 0;

	memcpy(&v, p, size);
	return v;
}

/* INS and OUTS come with several elements at once. */
static void exit_io(struct engine_cpu *cpu)
{
	struct kvm_run *run = cpu->run;
	unsigned size = run->io.size;
	uint8_t *p = (uint8_t *)run + run->io.data_offset;

	count(&cpu->exits_pio);
	for (uint32_t i = 0; i < run->io.count; i++, p += size) {
		uint32_t v;

		if (run->io.direction == KVM_EXIT_IO_OUT) {
			cpu->ops->pio_write(cpu->opaque, run->io.port, (uint32_t)load_le(p, size),
					    size);
			continue;
		}
		v = cpu->ops->pio_read(cpu->opaque, run->io.port, size);
		memcpy(p, &v, size);
	}
}

/* Parts of an access that crossed a page have any length up to 8: split to powers of two. */
static unsigned mmio_piece(unsigned left)
{
	return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static void mmio_write(struct engine_cpu *cpu, gpa_t gpa, const uint8_t *data, unsigned len)
{
	while (len) {
		unsigned n = mmio_piece(len);

		cpu->ops->mmio_write(cpu->opaque, gpa, load_le(data, n), n);
		gpa += n;
		data += n;
		len -= n;
	}
}

static void mmio_read(struct engine_cpu *cpu, gpa_t gpa, uint8_t *data, unsigned len)
{
	while (len) {
		unsigned n = mmio_piece(len);
		uint64_t v = cpu->ops->mmio_read(cpu->opaque, gpa, n);

		memcpy(data, &v, n);
		gpa += n;
		data += n;
		len -= n;
	}
}

static void exit_mmio(struct engine_cpu *cpu)
{
	struct kvm_run *run = cpu->run;
	unsigned len = MIN(run->mmio.len, 8u);

	count(&cpu->exits_mmio);
	if (run->mmio.is_write)
		mmio_write(cpu, run->mmio.phys_addr, run->mmio.data, len);
	else
		mmio_read(cpu, run->mmio.phys_addr, run->mmio.data, len);
}

/* --- writes the kernel has gathered -------------------------------------------------------------
 */

int kvm_coalesce_add(struct engine_vm *vm, uint64_t addr, uint32_t size, bool pio)
{
	struct kvm_coalesced_mmio_zone zone = {.addr = addr, .size = size, .pio = pio};

	if (!vm->coalesced || (pio && !kvm_cap(vm->fd, KVM_CAP_COALESCED_PIO)))
		return -ENOTSUP;
	return kvm_ioctl(vm->fd, KVM_REGISTER_COALESCED_MMIO, &zone);
}

void kvm_coalesce_del(struct engine_vm *vm, uint64_t addr, uint32_t size, bool pio)
{
	struct kvm_coalesced_mmio_zone zone = {.addr = addr, .size = size, .pio = pio};

	kvm_ioctl(vm->fd, KVM_UNREGISTER_COALESCED_MMIO, &zone);
}

static void coalesced_one(struct engine_cpu *cpu, const struct kvm_coalesced_mmio *e)
{
	unsigned len = MIN(e->len, 8u);

	if (e->pio)
		cpu->ops->pio_write(cpu->opaque, (uint16_t)e->phys_addr,
				    (uint32_t)load_le(e->data, MIN(len, 4u)), MIN(len, 4u));
	else
		mmio_write(cpu, e->phys_addr, e->data, len);
}

/* The ring is the VM's: they are in the order of the writes, whichever CPU did them, and come
 * before what this exit is about.  A device's callback does not come back here, so the lock may be
 * held. */
void kvm_drain_coalesced(struct engine_cpu *cpu)
{
	const unsigned max = (PAGE_SIZE - sizeof(struct kvm_coalesced_mmio_ring)) /
			     sizeof(struct kvm_coalesced_mmio);
	struct kvm_coalesced_mmio_ring *ring = cpu->vm->coalesced;

	if (!ring || likely(__atomic_load_n(&ring->first, __ATOMIC_RELAXED) ==
			    __atomic_load_n(&ring->last, __ATOMIC_RELAXED)))
		return;
	pthread_mutex_lock(&cpu->vm->coalesced_lock);
	while (ring->first != __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE)) {
		coalesced_one(cpu, &ring->coalesced_mmio[ring->first]);
		__atomic_store_n(&ring->first, (ring->first + 1) % max, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&cpu->vm->coalesced_lock);
}

/* --- exits that end the run ---------------------------------------------------------------------
 */

static const char *suberror_name(uint32_t suberror)
{
	switch (suberror) {
	case KVM_INTERNAL_ERROR_EMULATION:
		return "KVM cannot emulate an instruction";
	case KVM_INTERNAL_ERROR_SIMUL_EX:
		return "KVM met an exception while it was emulating another";
	case KVM_INTERNAL_ERROR_DELIVERY_EV:
		return "KVM could not deliver an event";
	case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
		return "the processor left the guest for a reason KVM does not know";
	}
	return "KVM reports an internal error";
}

static int put_bytes(char *to, size_t room, const uint8_t *p, unsigned n)
{
	int used = 0;

	for (unsigned i = 0; i < n && used >= 0 && (size_t)used + 4 < room; i++)
		used += snprintf(to + used, room - (size_t)used, " %02x", p[i]);
	return used;
}

static enum step exit_internal(struct engine_cpu *cpu, struct engine_exit_info *info)
{
	const struct kvm_run *run = cpu->run;
	struct kvm_regs regs = {0};
	size_t room = sizeof(info->message);
	int n;

	kvm_ioctl(cpu->fd, KVM_GET_REGS, &regs);
	n = snprintf(info->message, room, "%s (%u) at rip %#llx",
		     suberror_name(run->internal.suberror), run->internal.suberror, regs.rip);
	if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
	    run->emulation_failure.ndata >= 3 &&
	    (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
		n += snprintf(info->message + n, room - (size_t)n, ":");
		n += put_bytes(info->message + n, room - (size_t)n,
			       run->emulation_failure.insn_bytes,
			       MIN(run->emulation_failure.insn_size, 15));
		snprintf(info->message + n, room - (size_t)n, "; try --engine soft");
	}
	return STEP_LEAVE;
}

static enum engine_exit leave_error(struct engine_exit_info *info, const char *what, uint64_t n)
{
	snprintf(info->message, sizeof(info->message), "%s (%#llx)", what, (unsigned long long)n);
	return ENGINE_EXIT_ERROR;
}

static void exit_hypercall(struct engine_cpu *cpu)
{
	struct kvm_run *run = cpu->run;

	run->hypercall.ret = (uint64_t)-1000; /* KVM_ENOSYS: the kernel serves all we offer */
}

static void exit_hlt(struct engine_cpu *cpu)
{
	cpu->halted = true;
}

/* The instruction this exit belongs to is finished by the next KVM_RUN. */
static bool must_complete(uint32_t reason)
{
	switch (reason) {
	case KVM_EXIT_IO:
	case KVM_EXIT_MMIO:
	case KVM_EXIT_HYPERCALL:
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR:
		return true;
	}
	return false;
}

/* STEP_LEAVE: *why says how. */
static enum step handle_exit(struct engine_cpu *cpu, struct engine_exit_info *info,
			     enum engine_exit *why)
{
	struct kvm_run *run = cpu->run;

	cpu->completing = must_complete(run->exit_reason);
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		exit_io(cpu);
		return STEP_ON;
	case KVM_EXIT_MMIO:
		exit_mmio(cpu);
		return STEP_ON;
	case KVM_EXIT_X86_RDMSR:
		kvm_exit_rdmsr(cpu);
		return STEP_ON;
	case KVM_EXIT_X86_WRMSR:
		kvm_exit_wrmsr(cpu);
		return STEP_ON;
	case KVM_EXIT_HYPERCALL:
		exit_hypercall(cpu);
		return STEP_ON;
	case KVM_EXIT_HLT:
		exit_hlt(cpu);
		return STEP_ON;
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_INTR:
	case KVM_EXIT_SET_TPR:
		return STEP_ON;
	case KVM_EXIT_IOAPIC_EOI:
		if (cpu->ops->eoi)
			cpu->ops->eoi(cpu->opaque, run->eoi.vector);
		return STEP_ON;
	case KVM_EXIT_DIRTY_RING_FULL:
		kvm_dirty_collect(cpu->vm);
		return STEP_ON;
	case KVM_EXIT_DEBUG:
		*why = ENGINE_EXIT_DEBUG;
		return kvm_exit_debug(cpu, info) ? STEP_LEAVE : STEP_ON;
	case KVM_EXIT_SHUTDOWN:
		*why = ENGINE_EXIT_SHUTDOWN;
		return STEP_LEAVE;
	case KVM_EXIT_INTERNAL_ERROR:
		*why = ENGINE_EXIT_ERROR;
		return exit_internal(cpu, info);
	case KVM_EXIT_FAIL_ENTRY:
		*why = leave_error(info, "the processor refuses to enter the guest, reason",
				   run->fail_entry.hardware_entry_failure_reason);
		return STEP_LEAVE;
	case KVM_EXIT_UNKNOWN:
		*why = leave_error(info, "the processor left the guest for an unknown reason",
				   run->hw.hardware_exit_reason);
		return STEP_LEAVE;
	}
	*why = leave_error(info, "KVM_RUN ended for a reason this engine does not know",
			   run->exit_reason);
	return STEP_LEAVE;
}

/* --- interrupts --------------------------------------------------------------------------------
 */

/* INTR comes to this CPU from outside: from our local APIC, or from the 8259 pair past the
 * kernel's (ENGINE_CHIPS_LAPIC). */
static bool takes_intr(const struct engine_cpu *cpu)
{
	return cpu->vm->chips == ENGINE_CHIPS_NONE ||
	       (cpu->vm->chips == ENGINE_CHIPS_LAPIC && cpu->index == 0);
}

static bool nmi_masked(const struct engine_cpu *cpu)
{
	struct kvm_vcpu_events ev = {0};

	kvm_ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &ev);
	return ev.nmi.masked;
}

static void inject_nmis(struct engine_cpu *cpu)
{
	unsigned n = atomic_exchange(&cpu->nmis, 0);

	if (likely(!n))
		return;
	for (; n; n--)
		kvm_ioctl(cpu->fd, KVM_NMI, NULL);
	if (cpu->halted && !nmi_masked(cpu))
		cpu->halted = false;
}

static void inject_intr(struct engine_cpu *cpu)
{
	struct kvm_run *run = cpu->run;
	struct kvm_interrupt irq;
	int vector;

	run->request_interrupt_window = 0;
	if (!takes_intr(cpu) || !atomic_load(&cpu->intr))
		return;
	if (run->ready_for_interrupt_injection) {
		vector = cpu->ops->intr_ack(cpu->opaque);
		if (vector >= 0) {
			irq.irq = (uint32_t)vector;
			kvm_ioctl(cpu->fd, KVM_INTERRUPT, &irq);
			run->ready_for_interrupt_injection = 0;
			cpu->halted = false;
			count(&cpu->interrupts);
		}
	}
	run->request_interrupt_window = atomic_load(&cpu->intr);
}

/* The task priority is our local APIC's; the guest may have it in CR8 while it runs. */
static void cr8_out(struct engine_cpu *cpu)
{
	if (!kvm_has_lapic(cpu->vm))
		cpu->run->cr8 = cpu->ops->cr8_read(cpu->opaque);
}

static void cr8_in(struct engine_cpu *cpu)
{
	uint8_t cr8 = (uint8_t)cpu->run->cr8;

	if (!kvm_has_lapic(cpu->vm) && cr8 != cpu->ops->cr8_read(cpu->opaque))
		cpu->ops->cr8_write(cpu->opaque, cr8);
}

/* --- the loop ----------------------------------------------------------------------------------
 */

/* A halted CPU that only we know to be halted (no local APIC in the kernel) stays so until an
 * interrupt or NMI was injected. */
static bool stays_halted(const struct engine_cpu *cpu)
{
	return cpu->halted || cpu->wait_sipi;
}

static void run_once(struct engine_cpu *cpu, int *error)
{
	int r;

	cr8_out(cpu);
	r = ioctl(cpu->fd, KVM_RUN, 0);
	*error = r < 0 ? errno : 0;
	cr8_in(cpu);
	kvm_drain_coalesced(cpu);
}

/* EINTR: fetched out.  EAGAIN: a vCPU that waits for its start-up was woken and still waits. */
static enum step after_run(struct engine_cpu *cpu, int error, struct engine_exit_info *info,
			   enum engine_exit *why)
{
	switch (error) {
	case 0:
		return handle_exit(cpu, info, why);
	case EINTR:
	case EAGAIN:
		cpu->completing = false;
		return STEP_ON;
	case EFAULT:
		*why = leave_error(info, "KVM cannot reach memory of the guest", (uint64_t)error);
		return STEP_LEAVE;
	}
	snprintf(info->message, sizeof(info->message), "KVM_RUN: %s", strerror(error));
	*why = ENGINE_EXIT_ERROR;
	return STEP_LEAVE;
}

/* Finish a half-done instruction and come straight back. */
static void ask_completion(struct engine_cpu *cpu)
{
	__atomic_store_n(&cpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

static enum engine_exit run_loop(struct engine_cpu *cpu, struct engine_exit_info *info)
{
	enum engine_exit why = ENGINE_EXIT_ERROR;
	int error;

	for (;;) {
		__atomic_store_n(&cpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		if (atomic_load(&cpu->kicked)) {
			if (!cpu->completing) {
				atomic_store(&cpu->kicked, false);
				return ENGINE_EXIT_KICKED;
			}
			ask_completion(cpu);
		}
		inject_nmis(cpu);
		inject_intr(cpu);
		if (stays_halted(cpu))
			return ENGINE_EXIT_HALTED;
		run_once(cpu, &error);
		if (after_run(cpu, error, info, &why) == STEP_LEAVE)
			return why;
	}
}

enum engine_exit kvm_cpu_run(struct engine_cpu *cpu, struct engine_exit_info *info)
{
	enum engine_exit why;

	memset(info, 0, sizeof(*info));
	kvm_cpu_enter(cpu);
	why = run_loop(cpu, info);
	kvm_cpu_leave(cpu);
	return why;
}
