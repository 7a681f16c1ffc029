/* engine/kvm/irq.c - interrupts into a kernel that has the local APICs, and event descriptors.
 *
 * The kernel's routing table says what a GSI number stands for.  Ours:
 *
 *   0..23     the pins of the I/O APIC: the kernel's own (ENGINE_CHIPS_ALL), or what our I/O APIC's
 *             entry sends (ENGINE_CHIPS_LAPIC), by which the kernel knows whose end to report
 *   24..39    the inputs of the kernel's 8259 pair
 *   64..      one per event descriptor that stands for a message
 *
 * The kernel takes the table as a whole; irq_lock orders changes. */
#include "engine/kvm/kvm.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GSI_PIC = ENGINE_GSI_PIC, GSI_IRQFD = 64 };
enum { MAX_ROUTES = KVM_NR_PINS + KVM_NR_PIC_INPUTS + KVM_MAX_IRQFDS };

/* --- messages ----------------------------------------------------------------------------------
 */

/* Address bits 11:5 are bits 14:8 of the destination, as our CPUID offers it to guests with more
 * than 255 CPUs (KVM_FEATURE_MSI_EXT_DEST_ID).  KVM wants them in the upper half. */
static uint32_t msi_high(const struct engine_vm *vm, uint64_t addr)
{
	return vm->has_x2apic_api ? (addr >> 5 & 0x7f) << 8 : 0;
}

static uint32_t msi_low(const struct engine_vm *vm, uint64_t addr)
{
	return (uint32_t)addr & ~(vm->has_x2apic_api ? 0x7fu << 5 : 0);
}

static int msi_send_kernel(struct engine_vm *vm, uint64_t addr, uint32_t data)
{
	struct kvm_msi msi = {
		.address_lo = msi_low(vm, addr),
		.address_hi = msi_high(vm, addr),
		.data = data,
	};
	int r;

	if (addr >> 20 != 0xfee)
		return -EINVAL;
	r = kvm_ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);
	return MIN(r, 0);
}

/* --- routes ------------------------------------------------------------------------------------
 */

static void route_chip(struct kvm_irq_routing *t, uint32_t gsi, uint32_t chip, uint32_t pin)
{
	t->entries[t->nr++] = (struct kvm_irq_routing_entry){
		.gsi = gsi,
		.type = KVM_IRQ_ROUTING_IRQCHIP,
		.u.irqchip = {.irqchip = chip, .pin = pin},
	};
}

static void route_msi(const struct engine_vm *vm, struct kvm_irq_routing *t, uint32_t gsi,
		      uint64_t addr, uint32_t data)
{
	t->entries[t->nr++] = (struct kvm_irq_routing_entry){
		.gsi = gsi,
		.type = KVM_IRQ_ROUTING_MSI,
		.u.msi = {.address_lo = msi_low(vm, addr),
			  .address_hi = msi_high(vm, addr),
			  .data = data},
	};
}

static void route_chips(const struct engine_vm *vm, struct kvm_irq_routing *t)
{
	for (unsigned n = 0; n < KVM_NR_PINS; n++) {
		const struct kvm_pin *p = &vm->pins[n];

		if (vm->chips == ENGINE_CHIPS_ALL)
			route_chip(t, n, KVM_IRQCHIP_IOAPIC, n);
		else if (p->on)
			route_msi(vm, t, n, p->addr, p->data);
	}
	for (unsigned n = 0; vm->chips == ENGINE_CHIPS_ALL && n < KVM_NR_PIC_INPUTS; n++)
		route_chip(t, GSI_PIC + n, n < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
			   n & 7);
}

/* With irq_lock. */
static int routes_write(struct engine_vm *vm)
{
	struct kvm_irq_routing *t = calloc(1, sizeof(*t) + MAX_ROUTES * sizeof(t->entries[0]));
	int r;

	if (!t)
		return -ENOMEM;
	route_chips(vm, t);
	for (unsigned i = 0; i < KVM_MAX_IRQFDS; i++)
		if (vm->irqfds[i].used && vm->irqfds[i].msi)
			route_msi(vm, t, GSI_IRQFD + i, vm->irqfds[i].addr, vm->irqfds[i].data);
	r = kvm_ioctl(vm->fd, KVM_SET_GSI_ROUTING, t);
	free(t);
	return r;
}

/* The kernel only cares which vectors are level-triggered and where they go; a change that says the
 * same again (a mask going off and on) is not worth a new table. */
static int pin_route(struct engine_vm *vm, unsigned pin, bool on, uint64_t addr, uint32_t data)
{
	struct kvm_pin want = {.on = on, .addr = addr, .data = data};
	struct kvm_pin *p = &vm->pins[pin];
	int r = 0;

	assert(pin < KVM_NR_PINS);
	pthread_mutex_lock(&vm->irq_lock);
	if (p->on != on || (on && (p->addr != addr || p->data != data))) {
		*p = want;
		r = routes_write(vm);
	}
	pthread_mutex_unlock(&vm->irq_lock);
	return r;
}

static int gsi_set(struct engine_vm *vm, unsigned gsi, bool level)
{
	struct kvm_irq_level line = {.irq = gsi, .level = level};

	return kvm_ioctl(vm->fd, KVM_IRQ_LINE, &line);
}

/* --- event descriptors that interrupt -----------------------------------------------------------
 */

static int irqfd_ioctl(struct engine_vm *vm, const struct kvm_irqfd_slot *s, unsigned n, bool add)
{
	struct kvm_irqfd f = {
		.fd = (uint32_t)s->fd,
		.gsi = s->msi ? GSI_IRQFD + n : s->gsi,
		.flags = add ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
	};

	if (add && !s->msi && s->resample_fd >= 0) {
		f.flags |= KVM_IRQFD_FLAG_RESAMPLE;
		f.resamplefd = (uint32_t)s->resample_fd;
	}
	return kvm_ioctl(vm->fd, KVM_IRQFD, &f);
}

static struct kvm_irqfd_slot *irqfd_free_slot(struct engine_vm *vm, unsigned *n)
{
	for (*n = 0; *n < KVM_MAX_IRQFDS; ++*n)
		if (!vm->irqfds[*n].used)
			return &vm->irqfds[*n];
	return NULL;
}

/* With irq_lock. */
static int irqfd_start(struct engine_vm *vm, struct kvm_irqfd_slot *s, unsigned n)
{
	int r = s->msi ? routes_write(vm) : 0;

	if (r == 0)
		r = irqfd_ioctl(vm, s, n, true);
	if (r == 0)
		return 0;
	*s = (struct kvm_irqfd_slot){0};
	return r;
}

static int irqfd_add(struct engine_vm *vm, int fd, const struct engine_irq_source *src,
		     unsigned *handle, struct error *err)
{
	struct kvm_irqfd_slot *s;
	int r;

	if (!kvm_has_lapic(vm) || (!src->msi && vm->chips != ENGINE_CHIPS_ALL))
		return err_set(err, ENOTSUP,
			       "event descriptors cannot interrupt: the interrupt chips are not in "
			       "the kernel (--engine kvm,irqchip=%s)",
			       src->msi ? "split" : "kernel");
	pthread_mutex_lock(&vm->irq_lock);
	s = irqfd_free_slot(vm, handle);
	if (s) {
		*s = (struct kvm_irqfd_slot){.used = true,
					     .msi = src->msi,
					     .fd = fd,
					     .resample_fd = src->msi ? -1 : src->resample_fd,
					     .addr = src->addr,
					     .data = src->data,
					     .gsi = src->gsi};
		r = irqfd_start(vm, s, *handle);
	} else {
		r = -ENOSPC;
	}
	pthread_mutex_unlock(&vm->irq_lock);
	return r < 0 ? err_errno(err, -r, "cannot make an event descriptor interrupt") : 0;
}

static int irqfd_route(struct engine_vm *vm, unsigned handle, uint64_t addr, uint32_t data)
{
	struct kvm_irqfd_slot *s = &vm->irqfds[handle];
	int r;

	pthread_mutex_lock(&vm->irq_lock);
	s->addr = addr;
	s->data = data;
	r = routes_write(vm);
	pthread_mutex_unlock(&vm->irq_lock);
	return r;
}

static void irqfd_del(struct engine_vm *vm, unsigned handle)
{
	pthread_mutex_lock(&vm->irq_lock);
	irqfd_ioctl(vm, &vm->irqfds[handle], handle, false);
	vm->irqfds[handle] = (struct kvm_irqfd_slot){0};
	routes_write(vm);
	pthread_mutex_unlock(&vm->irq_lock);
}

/* --- doorbells ---------------------------------------------------------------------------------
 */

static int doorbell_ioctl(struct engine_vm *vm, const struct engine_doorbell *d, int fd, bool add)
{
	struct kvm_ioeventfd f = {
		.datamatch = d->value,
		.addr = d->addr,
		.len = d->size,
		.fd = fd,
		.flags = (d->pio ? KVM_IOEVENTFD_FLAG_PIO : 0) |
			 (d->match ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
			 (add ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
	};

	return kvm_ioctl(vm->fd, KVM_IOEVENTFD, &f);
}

int kvm_doorbell_add(struct engine_vm *vm, const struct engine_doorbell *d, int fd)
{
	if (!kvm_cap(vm->fd, KVM_CAP_IOEVENTFD) ||
	    (!d->size && !kvm_cap(vm->fd, KVM_CAP_IOEVENTFD_ANY_LENGTH)))
		return -ENOTSUP;
	return doorbell_ioctl(vm, d, fd, true);
}

void kvm_doorbell_del(struct engine_vm *vm, const struct engine_doorbell *d, int fd)
{
	doorbell_ioctl(vm, d, fd, false);
}

/* --- making the chips --------------------------------------------------------------------------
 */

/* APIC ids of 32 bits in messages and in saved registers.  With more CPUs than 8 bits can name, 255
 * is one of them and no broadcast. */
static int enable_x2apic_api(struct engine_vm *vm)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X2APIC_API,
		.args = {KVM_X2APIC_API_USE_32BIT_IDS |
			 (vm->nr_cpus > 255 ? KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK : 0)},
	};

	return vm->has_x2apic_api ? kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap) : 0;
}

int kvm_irq_vm_init(struct engine_vm *vm, struct error *err)
{
	struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {KVM_NR_PINS}};
	int r = 0;

	if (vm->chips == ENGINE_CHIPS_NONE)
		return 0;
	if (vm->chips == ENGINE_CHIPS_LAPIC)
		r = kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &split);
	else
		r = kvm_ioctl(vm->fd, KVM_CREATE_IRQCHIP, NULL);
	if (r == 0)
		r = enable_x2apic_api(vm);
	if (r == 0)
		r = routes_write(vm);
	return r < 0 ? err_errno(err, -r, "interrupt chips in the kernel") : 0;
}

static enum engine_chips chips(struct engine_vm *vm)
{
	return vm->chips;
}

const struct engine_irq kvm_irq = {
	.chips = chips,
	.msi_send = msi_send_kernel,
	.pin_route = pin_route,
	.gsi_set = gsi_set,
	.lapic_get = kvm_lapic_get,
	.lapic_set = kvm_lapic_set,
	.ioapic_get = kvm_ioapic_get,
	.ioapic_set = kvm_ioapic_set,
	.pic_get = kvm_pic_get,
	.pic_set = kvm_pic_set,
	.irqfd_add = irqfd_add,
	.irqfd_route = irqfd_route,
	.irqfd_del = irqfd_del,
};
