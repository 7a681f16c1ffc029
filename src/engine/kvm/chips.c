/* engine/kvm/chips.c - the registers of the kernel's interrupt chips, in and out.
 *
 * KVM's local APIC is its register page.  Its timer goes on from the current count that is set, so
 * one that has run out must be set without an initial count: otherwise it would fire once more. */
#include "engine/kvm/kvm.h"

#include "base/error.h"
#include "engine/x86_defs.h"

#include <errno.h>
#include <string.h>

enum { MSR_KVM_PV_EOI = 0x4b564d04 };
enum { REG_LVT_TIMER = 0x32, REG_TIMER_INIT = 0x38, REG_TIMER_CURRENT = 0x39 };
#define LVT_TIMER_PERIODIC (1u << 17)

/* --- local APIC --------------------------------------------------------------------------------
 */

_Static_assert(sizeof(((struct engine_lapic *)0)->reg) * 4 == KVM_APIC_REG_SIZE,
	       "a register every 16 bytes");

int kvm_lapic_get(struct engine_cpu *cpu, struct engine_lapic *l)
{
	struct kvm_lapic_state k;
	int r = kvm_ioctl(cpu->fd, KVM_GET_LAPIC, &k);

	for (unsigned n = 0; n < ARRAY_SIZE(l->reg); n++)
		memcpy(&l->reg[n], k.regs + n * 16, 4);
	if (r == 0)
		r = kvm_msr_get(cpu, MSR_APIC_BASE, &l->base);
	l->tsc_deadline = l->pv_eoi = 0;
	kvm_msr_get(cpu, MSR_TSC_DEADLINE, &l->tsc_deadline);
	kvm_msr_get(cpu, MSR_KVM_PV_EOI, &l->pv_eoi);
	return r;
}

static void fill_page(struct kvm_lapic_state *k, const struct engine_lapic *l)
{
	uint32_t reg[ARRAY_SIZE(l->reg)];

	memcpy(reg, l->reg, sizeof(reg));
	if (!reg[REG_TIMER_CURRENT] && !(reg[REG_LVT_TIMER] & LVT_TIMER_PERIODIC))
		reg[REG_TIMER_INIT] = 0;
	memset(k, 0, sizeof(*k));
	for (unsigned n = 0; n < ARRAY_SIZE(reg); n++)
		memcpy(k->regs + n * 16, &reg[n], 4);
}

/* The base first: it says whether the page is to be read as xAPIC or x2APIC. */
int kvm_lapic_set(struct engine_cpu *cpu, const struct engine_lapic *l, struct error *err)
{
	struct kvm_lapic_state k;
	int r = kvm_msr_set(cpu, MSR_APIC_BASE, l->base);

	fill_page(&k, l);
	if (r == 0)
		r = kvm_ioctl(cpu->fd, KVM_SET_LAPIC, &k);
	if (r == 0 && l->tsc_deadline)
		r = kvm_msr_set(cpu, MSR_TSC_DEADLINE, l->tsc_deadline);
	if (r == 0 && kvm_msr_set(cpu, MSR_KVM_PV_EOI, l->pv_eoi) < 0 && l->pv_eoi)
		r = -ENOTSUP;
	return r < 0 ? err_errno(err, -r, "vCPU %u: KVM does not take the local APIC's state",
				 cpu->index)
		     : 0;
}

/* --- I/O APIC ----------------------------------------------------------------------------------
 */

int kvm_ioapic_get(struct engine_vm *vm, struct engine_ioapic *io)
{
	struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
	const struct kvm_ioapic_state *k = &chip.chip.ioapic;
	int r = kvm_ioctl(vm->fd, KVM_GET_IRQCHIP, &chip);

	*io = (struct engine_ioapic){.select = k->ioregsel, .id = k->id, .level = k->irr};
	for (unsigned n = 0; n < KVM_IOAPIC_NUM_PINS; n++)
		io->rte[n] = k->redirtbl[n].bits;
	return r;
}

int kvm_ioapic_set(struct engine_vm *vm, const struct engine_ioapic *io)
{
	struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
	struct kvm_ioapic_state *k = &chip.chip.ioapic;

	k->base_address = 0xfec00000;
	k->ioregsel = io->select;
	k->id = io->id;
	k->irr = io->level;
	for (unsigned n = 0; n < KVM_IOAPIC_NUM_PINS; n++)
		k->redirtbl[n].bits = io->rte[n];
	return kvm_ioctl(vm->fd, KVM_SET_IRQCHIP, &chip);
}

/* --- 8259 pair ---------------------------------------------------------------------------------
 */

static struct engine_pic pic_out(const struct kvm_pic_state *k)
{
	return (struct engine_pic){
		.irr = k->irr,
		.imr = k->imr,
		.isr = k->isr,
		.last_irr = k->last_irr,
		.priority = k->priority_add,
		.icw2 = k->irq_base,
		.init_state = k->init_state,
		.icw4_needed = k->init4,
		.read_isr = k->read_reg_select,
		.poll = k->poll,
		.special_mask = k->special_mask,
		.auto_eoi = k->auto_eoi,
		.rotate_aeoi = k->rotate_on_auto_eoi,
		.special_nested = k->special_fully_nested_mode,
		.elcr = k->elcr,
	};
}

static struct kvm_pic_state pic_in(const struct engine_pic *p, unsigned n)
{
	return (struct kvm_pic_state){
		.irr = p->irr,
		.imr = p->imr,
		.isr = p->isr,
		.last_irr = p->last_irr,
		.priority_add = p->priority,
		.irq_base = p->icw2,
		.init_state = p->init_state,
		.init4 = p->icw4_needed,
		.read_reg_select = p->read_isr,
		.poll = p->poll,
		.special_mask = p->special_mask,
		.auto_eoi = p->auto_eoi,
		.rotate_on_auto_eoi = p->rotate_aeoi,
		.special_fully_nested_mode = p->special_nested,
		.elcr = p->elcr,
		.elcr_mask = n ? 0xde : 0xf8, /* IRQ 0, 1, 2, 8 and 13 are always edges */
	};
}

int kvm_pic_get(struct engine_vm *vm, struct engine_pic pic[2])
{
	int r = 0;

	for (unsigned n = 0; r == 0 && n < 2; n++) {
		struct kvm_irqchip chip = {.chip_id = n ? KVM_IRQCHIP_PIC_SLAVE
							: KVM_IRQCHIP_PIC_MASTER};

		r = kvm_ioctl(vm->fd, KVM_GET_IRQCHIP, &chip);
		pic[n] = pic_out(&chip.chip.pic);
	}
	return r;
}

int kvm_pic_set(struct engine_vm *vm, const struct engine_pic pic[2])
{
	int r = 0;

	for (unsigned n = 0; r == 0 && n < 2; n++) {
		struct kvm_irqchip chip = {.chip_id = n ? KVM_IRQCHIP_PIC_SLAVE
							: KVM_IRQCHIP_PIC_MASTER};

		chip.chip.pic = pic_in(&pic[n], n);
		r = kvm_ioctl(vm->fd, KVM_SET_IRQCHIP, &chip);
	}
	return r;
}
