/* engine/kvm/vm.c - a VM: options, memory slots.
 *
 * Each RAM range of the map is one memory slot; what no slot covers leaves KVM_RUN as MMIO. */
#include "engine/kvm/kvm.h"

#include "base/error.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- options -----------------------------------------------------------------------------------
 */

struct kvm_options {
	const char *irqchip; /* "user", "split", "kernel"; NULL: split where offered */
	bool ring;
	uint64_t halt_poll_ns; /* ~0: the kernel's default */
};

static const char *option_value(const char *word, size_t len, const char *name, size_t *vlen)
{
	size_t n = strlen(name);

	if (len <= n || strncmp(word, name, n) || word[n] != '=')
		return NULL;
	*vlen = len - n - 1;
	return word + n + 1;
}

/* The value as one of the words of a NULL-terminated list, or NULL. */
static const char *one_of(const char *v, size_t len, const char *const *words)
{
	for (; *words; words++)
		if (strlen(*words) == len && !strncmp(*words, v, len))
			return *words;
	return NULL;
}

static bool parse_option(struct kvm_options *o, const char *word, size_t len)
{
	static const char *const irqchips[] = {"user", "split", "kernel", NULL};
	static const char *const trackers[] = {"log", "ring", NULL};
	const char *v, *which;
	size_t n;
	char *end;

	if ((v = option_value(word, len, "irqchip", &n))) {
		o->irqchip = one_of(v, n, irqchips);
		return o->irqchip != NULL;
	}
	if ((v = option_value(word, len, "dirty", &n))) {
		which = one_of(v, n, trackers);
		o->ring = which == trackers[1];
		return which != NULL;
	}
	if ((v = option_value(word, len, "halt-poll-ns", &n)) && n && v[0] >= '0' && v[0] <= '9') {
		o->halt_poll_ns = strtoull(v, &end, 10);
		return end == v + n && o->halt_poll_ns <= UINT32_MAX;
	}
	return false;
}

static int parse_options(struct kvm_options *o, const char *options, struct error *err)
{
	*o = (struct kvm_options){.halt_poll_ns = ~0ull};
	while (options && *options) {
		size_t len = strcspn(options, ",");

		if (!parse_option(o, options, len))
			return err_set(err, EINVAL,
				       "engine kvm: unknown option '%.*s', known: "
				       "irqchip=user|split|kernel, dirty=log|ring, halt-poll-ns=N",
				       (int)MIN(len, 64), options);
		options += len + (options[len] == ',');
	}
	return 0;
}

/* Messages with APIC ids of 32 bits came with the split or soon after. */
static bool has_split(const struct engine_vm *vm)
{
	return kvm_cap(vm->fd, KVM_CAP_SPLIT_IRQCHIP) && kvm_cap(vm->fd, KVM_CAP_X2APIC_API);
}

static int choose_chips(struct engine_vm *vm, const struct kvm_options *o, struct error *err)
{
	const char *want = o->irqchip;

	if (!want)
		want = has_split(vm) ? "split" : "user";
	if (!strcmp(want, "split") && !has_split(vm))
		return err_set(err, ENOTSUP, "this KVM has no irqchip=split");
	if (!strcmp(want, "kernel") && !kvm_cap(vm->fd, KVM_CAP_IRQCHIP))
		return err_set(err, ENOTSUP, "this KVM has no irqchip=kernel");
	vm->chips = !strcmp(want, "user")    ? ENGINE_CHIPS_NONE
		    : !strcmp(want, "split") ? ENGINE_CHIPS_LAPIC
					     : ENGINE_CHIPS_ALL;
	return 0;
}

/* How long a vCPU that halts spins in the kernel in the hope of an interrupt. */
static int set_halt_poll(struct engine_vm *vm, uint64_t ns, struct error *err)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_HALT_POLL, .args = {ns}};
	int r;

	if (ns == ~0ull)
		return 0;
	r = kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
	return r < 0 ? err_errno(err, -r, "this KVM cannot set halt-poll-ns") : 0;
}

/* --- memory ------------------------------------------------------------------------------------
 */

int kvm_slot_set(struct engine_vm *vm, unsigned n, bool log_dirty)
{
	const struct kvm_slot *s = &vm->slots[n];
	struct kvm_userspace_memory_region region = {
		.slot = n,
		.flags = log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0,
		.guest_phys_addr = s->gpa,
		.memory_size = s->size,
		.userspace_addr = (uintptr_t)s->hva,
	};

	return kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static int add_memory(struct engine_vm *vm, struct error *err)
{
	const struct mem_range *r;
	unsigned nr = mem_ram_ranges(vm->mem, &r);

	if (nr > KVM_MAX_SLOTS)
		return err_set(err, E2BIG, "at most %d ranges of memory", KVM_MAX_SLOTS);
	for (unsigned i = 0; i < nr; i++) {
		int e;

		vm->slots[i] =
			(struct kvm_slot){.gpa = r[i].gpa, .size = r[i].size, .hva = r[i].hva};
		e = kvm_slot_set(vm, i, false);
		if (e < 0)
			return err_errno(err, -e, "memory at %#llx", (unsigned long long)r[i].gpa);
		vm->nr_slots++;
	}
	return 0;
}

/* Intel CPUs without "unrestricted guest" need three pages for a task-state segment and one for a
 * page table, where the guest has nothing; below the firmware's place at 4 GiB. */
static int add_private_pages(struct engine_vm *vm, struct error *err)
{
	uint64_t identity_map = 0xfeffc000;
	int r;

	r = kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
	if (r == 0)
		r = kvm_ioctl(vm->fd, KVM_SET_TSS_ADDR, (void *)0xfeffd000ul);
	return r < 0 ? err_errno(err, -r, "place for the CPU's own pages") : 0;
}

/* --- life --------------------------------------------------------------------------------------
 */

static int vm_open(struct engine_vm *vm, struct error *err)
{
	int sys = kvm_open(err), r;

	if (sys < 0)
		return sys;
	r = vm->fd = kvm_ioctl(sys, KVM_CREATE_VM, NULL);
	if (r < 0)
		r = err_errno(err, -r, "cannot make a VM");
	else
		vm->run_size = (unsigned)kvm_ioctl(sys, KVM_GET_VCPU_MMAP_SIZE, NULL);
	close(sys);
	return MIN(r, 0);
}

static int check_nr_cpus(const struct engine_vm *vm, struct error *err)
{
	int max = kvm_cap(vm->fd, KVM_CAP_MAX_VCPUS);

	if (vm->nr_cpus > (unsigned)max)
		return err_set(err, EINVAL, "%u CPUs: this KVM takes at most %d", vm->nr_cpus, max);
	return 0;
}

static void ask_capabilities(struct engine_vm *vm)
{
	vm->has_x2apic_api = kvm_cap(vm->fd, KVM_CAP_X2APIC_API);
}

static int vm_build(struct engine_vm *vm, const struct kvm_options *o, struct error *err)
{
	int r = vm_open(vm, err);

	if (r == 0)
		r = check_nr_cpus(vm, err);
	if (r == 0)
		r = kvm_check_model(vm->model, err);
	if (r == 0)
		r = choose_chips(vm, o, err);
	if (r < 0)
		return r;
	ask_capabilities(vm);
	r = kvm_host_pv_features(&vm->pv_features, err);
	if (r == 0)
		r = add_private_pages(vm, err);
	if (r == 0)
		r = add_memory(vm, err);
	if (r == 0)
		r = kvm_irq_vm_init(vm, err);
	if (r == 0)
		r = kvm_msr_vm_init(vm, err);
	if (r == 0)
		r = set_halt_poll(vm, o->halt_poll_ns, err);
	if (r == 0 && o->ring)
		r = kvm_dirty_vm_init(vm, err);
	return r;
}

int kvm_vm_create(struct engine_vm **out, const struct engine_vm_config *cfg, struct error *err)
{
	struct kvm_options o;
	struct engine_vm *vm;
	int r = parse_options(&o, cfg->options, err);

	if (r < 0)
		return r;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return err_errno(err, ENOMEM, "kvm engine");
	vm->fd = -1;
	vm->mem = cfg->mem;
	vm->model = cfg->model;
	vm->nr_cpus = cfg->nr_cpus;
	pthread_mutex_init(&vm->dirty_lock, NULL);
	pthread_mutex_init(&vm->irq_lock, NULL);
	pthread_mutex_init(&vm->coalesced_lock, NULL);
	kvm_kick_init();
	vm->cpus = calloc(cfg->nr_cpus, sizeof(struct engine_cpu *));
	r = vm->cpus ? vm_build(vm, &o, err) : err_errno(err, ENOMEM, "kvm engine");
	if (r < 0) {
		kvm_vm_destroy(vm);
		return r;
	}
	*out = vm;
	return 0;
}

void kvm_vm_destroy(struct engine_vm *vm)
{
	if (!vm)
		return;
	if (vm->tracking)
		kvm_dirty_stop(vm);
	if (vm->fd >= 0)
		close(vm->fd);
	pthread_mutex_destroy(&vm->coalesced_lock);
	pthread_mutex_destroy(&vm->irq_lock);
	pthread_mutex_destroy(&vm->dirty_lock);
	free(vm->cpus);
	free(vm);
}
