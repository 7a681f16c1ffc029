/* engine/kvm/debug.c - intercepted exceptions and single steps for a debugger.
 *
 * KVM can give two exceptions to user space, #DB and #BP.  A #BP exit is before delivery, with RIP
 * at the INT3, as engine_debug wants.  While a debugger single-steps or has #DB, KVM takes the
 * guest's debug registers for itself; so they are handed on as hardware breakpoints. */
#include "engine/kvm/kvm.h"

#include "engine/x86_defs.h"

#include <string.h>

static uint32_t control_bits(const struct engine_debug *d)
{
	uint32_t control = 0;

	if (d->single_step)
		control |= KVM_GUESTDBG_SINGLESTEP;
	if (d->intercept & BIT(X86_EXC_BP))
		control |= KVM_GUESTDBG_USE_SW_BP;
	if (d->intercept & BIT(X86_EXC_DB))
		control |= KVM_GUESTDBG_USE_HW_BP;
	return control ? control | KVM_GUESTDBG_ENABLE : 0;
}

/* With KVM's own use of the debug registers the guest's do not count: copy them. */
static void copy_breakpoints(struct engine_cpu *cpu, struct kvm_guest_debug *g)
{
	struct kvm_debugregs d = {0};

	kvm_ioctl(cpu->fd, KVM_GET_DEBUGREGS, &d);
	for (unsigned i = 0; i < 4; i++)
		g->arch.debugreg[i] = d.db[i];
	g->arch.debugreg[7] = d.dr7;
}

void kvm_cpu_debug(struct engine_cpu *cpu, const struct engine_debug *d)
{
	struct kvm_guest_debug g = {.control = control_bits(d)};

	cpu->debug = *d;
	if (g.control & KVM_GUESTDBG_USE_HW_BP)
		copy_breakpoints(cpu, &g);
	if (g.control || cpu->debug_on)
		kvm_ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &g);
	cpu->debug_on = g.control != 0;
}

/* Not asked for: it is the guest's own, which it gets back. */
static void give_back(struct engine_cpu *cpu, unsigned vector, uint64_t dr6)
{
	struct kvm_guest_debug g = {.control = control_bits(&cpu->debug)};
	struct kvm_debugregs d = {0};

	if (vector == X86_EXC_DB) {
		kvm_ioctl(cpu->fd, KVM_GET_DEBUGREGS, &d);
		d.dr6 = dr6;
		kvm_ioctl(cpu->fd, KVM_SET_DEBUGREGS, &d);
	}
	g.control |= vector == X86_EXC_DB ? KVM_GUESTDBG_INJECT_DB : KVM_GUESTDBG_INJECT_BP;
	kvm_ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &g);
}

/* True: leave the run. */
bool kvm_exit_debug(struct engine_cpu *cpu, struct engine_exit_info *info)
{
	const struct kvm_debug_exit_arch *a = &cpu->run->debug.arch;
	bool stepped = a->exception == X86_EXC_DB && cpu->debug.single_step;

	if (!stepped && !(cpu->debug.intercept & BIT(a->exception & 31))) {
		give_back(cpu, a->exception, a->dr6);
		return false;
	}
	info->vector = (uint8_t)a->exception;
	return true;
}
