/* engine/kvm/msr.c - model-specific registers: one table of those in x86_state, and the exits for
 * those the machine owns.
 *
 * With local APICs in the kernel it serves every MSR there is.  Without, those of the local APIC,
 * the deadline timer and the end of interrupt in memory belong to the machine, and writes of the
 * TSC have to be seen because the deadline is in its terms: a filter sends them here.  x2APIC's
 * MSRs cannot be filtered, but the kernel, which has no local APIC then, does not know them, and
 * unknown MSRs come here too.  What the machine does not know either is #GP. */
#include "engine/kvm/kvm.h"

#include "base/error.h"
#include "engine/x86_defs.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

enum { MSR_KVM_PV_EOI = 0x4b564d04 };

#define ROW(index, field)                                                                          \
	{                                                                                          \
		index, offsetof(struct x86_state, field), sizeof(((struct x86_state *)0)->field)   \
	}

/* In the order they are set: nothing here depends on another row. */
// clang-format off
static const struct msr_row {
	uint32_t index;
	uint16_t offset, size;
} rows[] = {
	ROW(MSR_STAR, star),
	ROW(MSR_LSTAR, lstar),
	ROW(MSR_CSTAR, cstar),
	ROW(MSR_SFMASK, sfmask),
	ROW(MSR_KERNEL_GS_BASE, kernel_gs_base),
	ROW(MSR_SYSENTER_CS, sysenter_cs),
	ROW(MSR_SYSENTER_ESP, sysenter_esp),
	ROW(MSR_SYSENTER_EIP, sysenter_eip),
	ROW(MSR_PAT, pat),
	ROW(MSR_TSC_AUX, tsc_aux),
	ROW(MSR_MISC_ENABLE, misc_enable),
	ROW(MSR_SPEC_CTRL, spec_ctrl),
	ROW(MSR_XSS, xss),
	ROW(MSR_TSC_ADJUST, tsc_adjust),
	ROW(MSR_MTRR_DEF_TYPE, mtrr_def_type),
	ROW(0x250, mtrr_fixed[0]),
	ROW(0x258, mtrr_fixed[1]), ROW(0x259, mtrr_fixed[2]),
	ROW(0x268, mtrr_fixed[3]), ROW(0x269, mtrr_fixed[4]),
	ROW(0x26a, mtrr_fixed[5]), ROW(0x26b, mtrr_fixed[6]),
	ROW(0x26c, mtrr_fixed[7]), ROW(0x26d, mtrr_fixed[8]),
	ROW(0x26e, mtrr_fixed[9]), ROW(0x26f, mtrr_fixed[10]),
	ROW(0x200, mtrr_var[0]), ROW(0x201, mtrr_var[1]), ROW(0x202, mtrr_var[2]),
	ROW(0x203, mtrr_var[3]), ROW(0x204, mtrr_var[4]), ROW(0x205, mtrr_var[5]),
	ROW(0x206, mtrr_var[6]), ROW(0x207, mtrr_var[7]), ROW(0x208, mtrr_var[8]),
	ROW(0x209, mtrr_var[9]), ROW(0x20a, mtrr_var[10]), ROW(0x20b, mtrr_var[11]),
	ROW(0x20c, mtrr_var[12]), ROW(0x20d, mtrr_var[13]), ROW(0x20e, mtrr_var[14]),
	ROW(0x20f, mtrr_var[15]),
};
// clang-format on
_Static_assert(ARRAY_SIZE(rows) <= 64, "engine_vm.msr_mask has one bit per row");

/* Room for n entries behind the head. */
#define MSR_LIST(n)                                                                                \
	union {                                                                                    \
		struct kvm_msrs head;                                                              \
		uint8_t room[sizeof(struct kvm_msrs) + (n) * sizeof(struct kvm_msr_entry)];        \
	}

/* --- state -------------------------------------------------------------------------------------
 */

int kvm_msr_get(struct engine_cpu *cpu, uint32_t index, uint64_t *value)
{
	MSR_LIST(1) one = {.room = {0}};
	int r;

	one.head.nmsrs = 1;
	one.head.entries[0].index = index;
	r = kvm_ioctl(cpu->fd, KVM_GET_MSRS, &one);
	if (r != 1)
		return r < 0 ? r : -ENOENT;
	*value = one.head.entries[0].data;
	return 0;
}

int kvm_msr_set(struct engine_cpu *cpu, uint32_t index, uint64_t value)
{
	MSR_LIST(1) one = {.room = {0}};
	int r;

	one.head.nmsrs = 1;
	one.head.entries[0] = (struct kvm_msr_entry){.index = index, .data = value};
	r = kvm_ioctl(cpu->fd, KVM_SET_MSRS, &one);
	return r == 1 ? 0 : r < 0 ? r : -EINVAL;
}

/* Which rows there are depends on kernel, CPU and model; all vCPUs of a VM are alike. */
void kvm_msr_cpu_init(struct engine_cpu *cpu)
{
	uint64_t mask = 0, v;

	if (cpu->vm->msr_mask)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (kvm_msr_get(cpu, rows[i].index, &v) == 0 &&
		    kvm_msr_set(cpu, rows[i].index, v) == 0)
			mask |= BIT(i);
	cpu->vm->msr_mask = mask;
}

static void field_put(struct x86_state *s, const struct msr_row *row, uint64_t v)
{
	memcpy((char *)s + row->offset, &v, row->size);
}

static uint64_t field_get(const struct x86_state *s, const struct msr_row *row)
{
	uint64_t v = 0;

	memcpy(&v, (const char *)s + row->offset, row->size);
	return v;
}

int kvm_msrs_get(struct engine_cpu *cpu, struct x86_state *s)
{
	MSR_LIST(ARRAY_SIZE(rows)) list = {.room = {0}};
	uint64_t mask = cpu->vm->msr_mask;
	uint32_t n = 0;
	int r;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (mask >> i & 1)
			list.head.entries[n++].index = rows[i].index;
	list.head.nmsrs = n;
	r = kvm_ioctl(cpu->fd, KVM_GET_MSRS, &list);
	if (r != (int)n)
		return r < 0 ? r : -EIO;
	n = 0;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (mask >> i & 1)
			field_put(s, &rows[i], list.head.entries[n++].data);
	return 0;
}

/* A register that is not there may only be asked to hold what it would after reset. */
static bool row_needed(const struct msr_row *row, uint64_t v)
{
	return v != 0 && row->index != MSR_MISC_ENABLE;
}

int kvm_msrs_set(struct engine_cpu *cpu, const struct x86_state *s, struct error *err)
{
	MSR_LIST(ARRAY_SIZE(rows)) list = {.room = {0}};
	uint64_t mask = cpu->vm->msr_mask;
	uint32_t n = 0;
	int r;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		uint64_t v = field_get(s, &rows[i]);

		if (mask >> i & 1)
			list.head.entries[n++] =
				(struct kvm_msr_entry){.index = rows[i].index, .data = v};
		else if (row_needed(&rows[i], v))
			return err_set(err, ENOTSUP,
				       "vCPU %u: MSR %#x holds %#llx, and this KVM has no such MSR",
				       cpu->index, rows[i].index, (unsigned long long)v);
	}
	list.head.nmsrs = n;
	r = kvm_ioctl(cpu->fd, KVM_SET_MSRS, &list);
	if (r == (int)n)
		return 0;
	if (r < 0)
		return err_errno(err, -r, "vCPU %u: MSRs", cpu->index);
	return err_set(err, EINVAL, "vCPU %u: KVM does not take %#llx in MSR %#x", cpu->index,
		       (unsigned long long)list.head.entries[r].data, list.head.entries[r].index);
}

/* --- who serves which --------------------------------------------------------------------------
 */

static int enable_exits(struct engine_vm *vm)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR,
		.args = {KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER |
			 (kvm_has_lapic(vm) ? 0 : KVM_MSR_EXIT_REASON_INVAL)},
	};

	return kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

/* A 0 bit denies, and sends the access to us. */
static int filter_lapic_msrs(struct engine_vm *vm)
{
	enum { RD = KVM_MSR_FILTER_READ, WR = KVM_MSR_FILTER_WRITE };
	static uint8_t deny = 0;
	struct kvm_msr_filter f = {
		.ranges =
			{
				{.flags = RD | WR,
				 .nmsrs = 1,
				 .base = MSR_APIC_BASE,
				 .bitmap = &deny},
				{.flags = RD | WR,
				 .nmsrs = 1,
				 .base = MSR_TSC_DEADLINE,
				 .bitmap = &deny},
				{.flags = RD | WR,
				 .nmsrs = 1,
				 .base = MSR_KVM_PV_EOI,
				 .bitmap = &deny},
				{.flags = WR, .nmsrs = 1, .base = MSR_TSC, .bitmap = &deny},
				{.flags = WR, .nmsrs = 1, .base = MSR_TSC_ADJUST, .bitmap = &deny},
			},
	};

	return kvm_ioctl(vm->fd, KVM_X86_SET_MSR_FILTER, &f);
}

int kvm_msr_vm_init(struct engine_vm *vm, struct error *err)
{
	int r = enable_exits(vm);

	if (r == 0 && !kvm_has_lapic(vm))
		r = filter_lapic_msrs(vm);
	return r < 0 ? err_errno(err, -r, "MSR exits") : 0;
}

void kvm_exit_rdmsr(struct engine_cpu *cpu)
{
	struct kvm_run *run = cpu->run;
	uint64_t v = 0;

	run->msr.error = !cpu->ops->msr_read(cpu->opaque, run->msr.index, &v);
	run->msr.data = v;
}

/* KVM shows the guest CPUID's APIC bit by its own idea of this register. */
static bool write_apic_base(struct engine_cpu *cpu, uint64_t value)
{
	if (!cpu->ops->msr_write(cpu->opaque, MSR_APIC_BASE, value))
		return false;
	kvm_msr_set(cpu, MSR_APIC_BASE, value);
	return true;
}

void kvm_exit_wrmsr(struct engine_cpu *cpu)
{
	struct kvm_run *run = cpu->run;
	uint32_t index = run->msr.index;
	bool ok;

	if (index == MSR_TSC || index == MSR_TSC_ADJUST)
		ok = kvm_tsc_write(cpu, index, run->msr.data);
	else if (index == MSR_APIC_BASE)
		ok = write_apic_base(cpu, run->msr.data);
	else
		ok = cpu->ops->msr_write(cpu->opaque, index, run->msr.data);
	run->msr.error = !ok;
}
