/* engine/kvm/state.c - x86_state in and out.
 *
 * What x86_state leaves to the machine stays as it is in the kernel: CR8 and IA32_APIC_BASE.  A
 * set comes in an order: control registers first, since others are checked against them, pending
 * events last, since setting registers drops them. */
#include "engine/kvm/kvm.h"

#include "base/error.h"
#include "engine/cpu_model.h"
#include "engine/x86_defs.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* --- general registers -------------------------------------------------------------------------
 */

static int regs_get(struct engine_cpu *cpu, struct x86_state *s)
{
	struct kvm_regs r = {0};
	int e = kvm_ioctl(cpu->fd, KVM_GET_REGS, &r);
	const uint64_t gpr[X86_NR_GPR] = {r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi,
					  r.r8,  r.r9,  r.r10, r.r11, r.r12, r.r13, r.r14, r.r15};

	memcpy(s->gpr, gpr, sizeof(gpr));
	s->rip = r.rip;
	s->rflags = r.rflags;
	return e;
}

static int regs_set(struct engine_cpu *cpu, const struct x86_state *s)
{
	const uint64_t *g = s->gpr;
	struct kvm_regs r = {
		.rax = g[X86_RAX],
		.rcx = g[X86_RCX],
		.rdx = g[X86_RDX],
		.rbx = g[X86_RBX],
		.rsp = g[X86_RSP],
		.rbp = g[X86_RBP],
		.rsi = g[X86_RSI],
		.rdi = g[X86_RDI],
		.r8 = g[8],
		.r9 = g[9],
		.r10 = g[10],
		.r11 = g[11],
		.r12 = g[12],
		.r13 = g[13],
		.r14 = g[14],
		.r15 = g[15],
		.rip = s->rip,
		.rflags = s->rflags | RFLAGS_FIXED,
	};

	return kvm_ioctl(cpu->fd, KVM_SET_REGS, &r);
}

/* --- segments and control registers -------------------------------------------------------------
 */

static struct x86_segment seg_out(const struct kvm_segment *k)
{
	return (struct x86_segment){
		.base = k->base,
		.limit = k->limit,
		.selector = k->selector,
		.attr = k->type | (k->s ? X86_SEG_S : 0) | (uint32_t)k->dpl << 5 |
			(k->present ? X86_SEG_P : 0) | (k->avl ? X86_SEG_AVL : 0) |
			(k->l ? X86_SEG_L : 0) | (k->db ? X86_SEG_DB : 0) | (k->g ? X86_SEG_G : 0) |
			(k->unusable ? X86_SEG_UNUSABLE : 0),
	};
}

static struct kvm_segment seg_in(const struct x86_segment *x)
{
	return (struct kvm_segment){
		.base = x->base,
		.limit = x->limit,
		.selector = x->selector,
		.type = X86_SEG_TYPE(x->attr),
		.s = !!(x->attr & X86_SEG_S),
		.dpl = X86_SEG_DPL(x->attr),
		.present = !!(x->attr & X86_SEG_P),
		.avl = !!(x->attr & X86_SEG_AVL),
		.l = !!(x->attr & X86_SEG_L),
		.db = !!(x->attr & X86_SEG_DB),
		.g = !!(x->attr & X86_SEG_G),
		.unusable = !!(x->attr & X86_SEG_UNUSABLE),
	};
}

static void sregs_out(const struct kvm_sregs *k, struct x86_state *s)
{
	const struct kvm_segment *segs[X86_NR_SEG] = {&k->es, &k->cs, &k->ss,
						      &k->ds, &k->fs, &k->gs};

	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = seg_out(segs[i]);
	s->ldtr = seg_out(&k->ldt);
	s->tr = seg_out(&k->tr);
	s->gdtr = (struct x86_table){.base = k->gdt.base, .limit = k->gdt.limit};
	s->idtr = (struct x86_table){.base = k->idt.base, .limit = k->idt.limit};
	s->cr0 = k->cr0;
	s->cr2 = k->cr2;
	s->cr3 = k->cr3;
	s->cr4 = k->cr4;
	s->efer = k->efer;
}

/* The L bit of a code segment means nothing outside long mode, but KVM refuses it there. */
static void sregs_in(struct kvm_sregs *k, const struct x86_state *s)
{
	struct kvm_segment *segs[X86_NR_SEG] = {&k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs};

	for (unsigned i = 0; i < X86_NR_SEG; i++)
		*segs[i] = seg_in(&s->seg[i]);
	if (!(s->efer & EFER_LMA))
		k->cs.l = 0;
	k->ldt = seg_in(&s->ldtr);
	k->tr = seg_in(&s->tr);
	k->gdt = (struct kvm_dtable){.base = s->gdtr.base, .limit = s->gdtr.limit};
	k->idt = (struct kvm_dtable){.base = s->idtr.base, .limit = s->idtr.limit};
	k->cr0 = s->cr0;
	k->cr2 = s->cr2;
	k->cr3 = s->cr3;
	k->cr4 = s->cr4;
	k->efer = s->efer;
	memset(k->interrupt_bitmap, 0, sizeof(k->interrupt_bitmap));
}

static int sregs_get(struct engine_cpu *cpu, struct x86_state *s)
{
	struct kvm_sregs k = {0};
	int r = kvm_ioctl(cpu->fd, KVM_GET_SREGS, &k);

	sregs_out(&k, s);
	return r;
}

static int sregs_set(struct engine_cpu *cpu, const struct x86_state *s)
{
	struct kvm_sregs k = {0};
	int r = kvm_ioctl(cpu->fd, KVM_GET_SREGS, &k);

	if (r < 0)
		return r;
	sregs_in(&k, s);
	return kvm_ioctl(cpu->fd, KVM_SET_SREGS, &k);
}

/* --- XCR0 and debug registers -------------------------------------------------------------------
 */

static int xcr0_get(struct engine_cpu *cpu, struct x86_state *s)
{
	struct kvm_xcrs x = {0};
	int r;

	s->xcr0 = XCR0_X87;
	if (!cpu_has(cpu->vm->model, CPU_FEAT_XSAVE))
		return 0;
	r = kvm_ioctl(cpu->fd, KVM_GET_XCRS, &x);
	for (uint32_t i = 0; r == 0 && i < MIN(x.nr_xcrs, (uint32_t)KVM_MAX_XCRS); i++)
		if (x.xcrs[i].xcr == 0)
			s->xcr0 = x.xcrs[i].value;
	return r;
}

static int xcr0_set(struct engine_cpu *cpu, const struct x86_state *s)
{
	struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = s->xcr0}}};

	if (!cpu_has(cpu->vm->model, CPU_FEAT_XSAVE))
		return s->xcr0 & ~XCR0_X87 ? -EINVAL : 0;
	return kvm_ioctl(cpu->fd, KVM_SET_XCRS, &x);
}

static int debugregs_get(struct engine_cpu *cpu, struct x86_state *s)
{
	struct kvm_debugregs d = {0};
	int r = kvm_ioctl(cpu->fd, KVM_GET_DEBUGREGS, &d);

	for (unsigned i = 0; i < 4; i++)
		s->dr[i] = d.db[i];
	s->dr6 = d.dr6;
	s->dr7 = d.dr7;
	return r;
}

static int debugregs_set(struct engine_cpu *cpu, const struct x86_state *s)
{
	struct kvm_debugregs d = {.dr6 = s->dr6, .dr7 = s->dr7};

	for (unsigned i = 0; i < 4; i++)
		d.db[i] = s->dr[i];
	return kvm_ioctl(cpu->fd, KVM_SET_DEBUGREGS, &d);
}

/* --- between instructions ----------------------------------------------------------------------
 */

enum { SHADOW_STI = 1, SHADOW_SS = 2 }; /* x86_state.int_shadow */

static void events_out(const struct kvm_vcpu_events *ev, struct x86_state *s)
{
	s->int_shadow = ev->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? SHADOW_SS
			: ev->interrupt.shadow & KVM_X86_SHADOW_INT_STI  ? SHADOW_STI
									 : 0;
	s->nmi_masked = !!ev->nmi.masked;
	s->nmi_pending = !!ev->nmi.pending;
	s->event_pending = s->event_type = s->event_vector = s->event_has_error = 0;
	s->event_error = 0;
	if (ev->exception.injected || ev->exception.pending) {
		s->event_pending = 1;
		s->event_type = X86_EVENT_EXCEPTION;
		s->event_vector = ev->exception.nr;
		s->event_has_error = !!ev->exception.has_error_code;
		s->event_error = s->event_has_error ? ev->exception.error_code : 0;
	} else if (ev->nmi.injected) {
		s->event_pending = 1;
		s->event_type = X86_EVENT_NMI;
		s->event_vector = X86_EXC_NMI;
	} else if (ev->interrupt.injected) {
		s->event_pending = 1;
		s->event_type = ev->interrupt.soft ? X86_EVENT_SOFT_INT : X86_EVENT_INTR;
		s->event_vector = ev->interrupt.nr;
	}
}

static void events_in(struct kvm_vcpu_events *ev, const struct x86_state *s)
{
	*ev = (struct kvm_vcpu_events){
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
		.interrupt.shadow = s->int_shadow == SHADOW_SS    ? KVM_X86_SHADOW_INT_MOV_SS
				    : s->int_shadow == SHADOW_STI ? KVM_X86_SHADOW_INT_STI
								  : 0,
		.nmi.masked = s->nmi_masked,
		.nmi.pending = s->nmi_pending,
	};
	if (!s->event_pending)
		return;
	switch (s->event_type) {
	case X86_EVENT_EXCEPTION:
		ev->exception.injected = 1;
		ev->exception.nr = s->event_vector;
		ev->exception.has_error_code = s->event_has_error;
		ev->exception.error_code = s->event_error;
		break;
	case X86_EVENT_NMI:
		ev->nmi.injected = 1;
		break;
	default:
		ev->interrupt.injected = 1;
		ev->interrupt.nr = s->event_vector;
		ev->interrupt.soft = s->event_type == X86_EVENT_SOFT_INT;
		break;
	}
}

static int events_get(struct engine_cpu *cpu, struct x86_state *s)
{
	struct kvm_vcpu_events ev = {0};
	int r = kvm_ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &ev);

	events_out(&ev, s);
	if (atomic_load(&cpu->nmis))
		s->nmi_pending = 1;
	return r;
}

static int events_set(struct engine_cpu *cpu, const struct x86_state *s)
{
	struct kvm_vcpu_events ev;

	events_in(&ev, s);
	atomic_store(&cpu->nmis, 0);
	return kvm_ioctl(cpu->fd, KVM_SET_VCPU_EVENTS, &ev);
}

static int mp_state_get(struct engine_cpu *cpu, struct x86_state *s)
{
	struct kvm_mp_state mp = {0};
	int r = 0;

	if (!kvm_has_lapic(cpu->vm)) {
		s->mp_state = cpu->wait_sipi ? X86_MP_WAIT_SIPI
			      : cpu->halted  ? X86_MP_HALTED
					     : X86_MP_RUNNABLE;
		return 0;
	}
	r = kvm_ioctl(cpu->fd, KVM_GET_MP_STATE, &mp);
	s->mp_state = mp.mp_state == KVM_MP_STATE_HALTED ? X86_MP_HALTED
		      : mp.mp_state == KVM_MP_STATE_INIT_RECEIVED ||
				      mp.mp_state == KVM_MP_STATE_UNINITIALIZED
			      ? X86_MP_WAIT_SIPI
			      : X86_MP_RUNNABLE;
	return r;
}

static int mp_state_set(struct engine_cpu *cpu, const struct x86_state *s)
{
	static const uint32_t states[] = {
		[X86_MP_RUNNABLE] = KVM_MP_STATE_RUNNABLE,
		[X86_MP_HALTED] = KVM_MP_STATE_HALTED,
		[X86_MP_WAIT_SIPI] = KVM_MP_STATE_INIT_RECEIVED,
	};
	struct kvm_mp_state mp = {.mp_state = states[s->mp_state]};

	cpu->wait_sipi = cpu->halted = false;
	if (kvm_has_lapic(cpu->vm))
		return kvm_ioctl(cpu->fd, KVM_SET_MP_STATE, &mp);
	cpu->wait_sipi = s->mp_state == X86_MP_WAIT_SIPI;
	cpu->halted = s->mp_state == X86_MP_HALTED;
	return 0;
}

/* --- all of it ---------------------------------------------------------------------------------
 */

/* Nothing here depends on what a guest can do: a failure is the kernel's or ours. */
void kvm_cpu_get(struct engine_cpu *cpu, struct x86_state *s)
{
	int r = 0;

	memset(s, 0, sizeof(*s));
	r |= mp_state_get(cpu, s); /* first: it makes the kernel act on INIT and start-up */
	r |= regs_get(cpu, s);
	r |= sregs_get(cpu, s);
	r |= xcr0_get(cpu, s);
	r |= debugregs_get(cpu, s);
	r |= kvm_xsave_get(cpu, s);
	r |= kvm_msrs_get(cpu, s);
	r |= events_get(cpu, s);
	r |= kvm_msr_get(cpu, MSR_TSC, &s->tsc);
	cpu->tsc_given = s->tsc;
	assert(r == 0);
}

/* What the kernel would say after a run: may an interrupt be injected right away? */
static void settle_run(struct engine_cpu *cpu, const struct x86_state *s)
{
	cpu->completing = false;
	cpu->run->if_flag = !!(s->rflags & RFLAGS_IF);
	cpu->run->ready_for_interrupt_injection =
		!kvm_has_lapic(cpu->vm) && cpu->run->if_flag && !s->int_shadow && !s->event_pending;
}

int kvm_cpu_set(struct engine_cpu *cpu, const struct x86_state *s, struct error *err)
{
	static const struct {
		int (*set)(struct engine_cpu *cpu, const struct x86_state *s);
		const char *what;
	} parts[] = {
		{sregs_set, "segments and control registers"},
		{regs_set, "general registers"},
		{xcr0_set, "XCR0"},
		{kvm_xsave_set, "vector registers"},
		{debugregs_set, "debug registers"},
		{mp_state_set, "run state"},
	};
	int r;

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		r = parts[i].set(cpu, s);
		if (r < 0)
			return err_errno(err, -r, "vCPU %u: KVM does not take the %s", cpu->index,
					 parts[i].what);
	}
	r = kvm_msrs_set(cpu, s, err);
	if (r < 0)
		return r;
	r = kvm_tsc_set(cpu, s->tsc);
	if (r < 0)
		return err_errno(err, -r, "vCPU %u: time-stamp counter", cpu->index);
	r = events_set(cpu, s);
	if (r < 0)
		return err_errno(err, -r, "vCPU %u: pending events", cpu->index);
	settle_run(cpu, s);
	return 0;
}
