/* engine/kvm/dirty.c - which pages the guest wrote.
 *
 * Writes through mem/ are marked there; those of vCPUs come from KVM's dirty log, or from its dirty
 * rings (dirty=ring), one per vCPU, whose cost goes by pages written and not by memory there is.
 * Either way they are gathered in a bitmap per slot, from which a fetch takes its range: the log
 * can only be had for a whole slot, the rings only for the whole VM.
 *
 * Ring protocol: the kernel sets DIRTY in an entry, we take entries in order and set RESET, and
 * KVM_RESET_DIRTY_RINGS protects the pages again and frees the entries. */
#include "engine/kvm/kvm.h"

#include "base/error.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { RING_ENTRIES = 4096 };

/* --- rings -------------------------------------------------------------------------------------
 */

int kvm_dirty_vm_init(struct engine_vm *vm, struct error *err)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL};
	int max = kvm_cap(vm->fd, cap.cap), r;

	if (!max) {
		cap.cap = KVM_CAP_DIRTY_LOG_RING; /* the same on x86, under its first name */
		max = kvm_cap(vm->fd, cap.cap);
	}
	if (!max)
		return err_set(err, ENOTSUP, "this KVM has no dirty ring; use dirty=log");
	vm->ring_bytes =
		MIN((uint32_t)max, (uint32_t)(RING_ENTRIES * sizeof(struct kvm_dirty_gfn)));
	cap.args[0] = vm->ring_bytes;
	r = kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
	return r < 0 ? err_errno(err, -r, "dirty ring") : 0;
}

int kvm_dirty_cpu_init(struct engine_cpu *cpu, struct error *err)
{
	void *p;

	if (!cpu->vm->ring_bytes)
		return 0;
	p = mmap(NULL, cpu->vm->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd,
		 KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE);
	if (p == MAP_FAILED)
		return err_errno(err, errno, "vCPU %u: dirty ring", cpu->index);
	cpu->ring = p;
	return 0;
}

static void pending_add(struct engine_vm *vm, uint32_t slot, uint64_t page)
{
	struct kvm_slot *s = slot < vm->nr_slots ? &vm->slots[slot] : NULL;

	if (s && s->pending && page < s->size >> PAGE_SHIFT)
		s->pending[page / 64] |= BIT(page % 64);
}

static void collect_ring(struct engine_cpu *cpu)
{
	uint32_t n = cpu->vm->ring_bytes / sizeof(struct kvm_dirty_gfn);

	for (;;) {
		struct kvm_dirty_gfn *e = &cpu->ring[cpu->ring_next % n];

		if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
			return;
		pending_add(cpu->vm, e->slot, e->offset);
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		cpu->ring_next++;
	}
}

void kvm_dirty_collect(struct engine_vm *vm)
{
	pthread_mutex_lock(&vm->dirty_lock);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		if (vm->cpus[i] && vm->cpus[i]->ring)
			collect_ring(vm->cpus[i]);
	kvm_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);
	pthread_mutex_unlock(&vm->dirty_lock);
}

/* --- log ---------------------------------------------------------------------------------------
 */

/* With dirty_lock.  The kernel forgets what it tells. */
static int collect_log(struct engine_vm *vm, unsigned slot)
{
	uint64_t words = ((vm->slots[slot].size >> PAGE_SHIFT) + 63) / 64;
	uint64_t *bits = calloc(words, sizeof(*bits));
	struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bits};
	int r;

	if (!bits)
		return -ENOMEM;
	r = kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
	for (uint64_t i = 0; r == 0 && i < words; i++)
		vm->slots[slot].pending[i] |= bits[i];
	free(bits);
	return r;
}

static int collect(struct engine_vm *vm, unsigned slot)
{
	int r;

	if (vm->ring_bytes) {
		kvm_dirty_collect(vm);
		return 0;
	}
	pthread_mutex_lock(&vm->dirty_lock);
	r = collect_log(vm, slot);
	pthread_mutex_unlock(&vm->dirty_lock);
	return r;
}

/* --- for the VM --------------------------------------------------------------------------------
 */

static void drop_pending(struct engine_vm *vm)
{
	pthread_mutex_lock(&vm->dirty_lock);
	for (unsigned i = 0; i < vm->nr_slots; i++) {
		free(vm->slots[i].pending);
		vm->slots[i].pending = NULL;
	}
	pthread_mutex_unlock(&vm->dirty_lock);
}

static int start_slot(struct engine_vm *vm, unsigned n)
{
	struct kvm_slot *s = &vm->slots[n];

	s->pending = calloc(((s->size >> PAGE_SHIFT) + 63) / 64, sizeof(*s->pending));
	return s->pending ? kvm_slot_set(vm, n, true) : -ENOMEM;
}

int kvm_dirty_start(struct engine_vm *vm, struct error *err)
{
	int r = 0;

	mem_dirty_track(vm->mem, true);
	pthread_mutex_lock(&vm->dirty_lock);
	for (unsigned i = 0; r == 0 && i < vm->nr_slots; i++)
		r = start_slot(vm, i);
	pthread_mutex_unlock(&vm->dirty_lock);
	atomic_store(&vm->tracking, true);
	if (r < 0) {
		kvm_dirty_stop(vm);
		return err_errno(err, -r, "cannot track dirty pages");
	}
	return 0;
}

void kvm_dirty_stop(struct engine_vm *vm)
{
	atomic_store(&vm->tracking, false);
	for (unsigned i = 0; i < vm->nr_slots; i++)
		kvm_slot_set(vm, i, false);
	if (vm->ring_bytes)
		kvm_dirty_collect(vm); /* empties the rings */
	drop_pending(vm);
	mem_dirty_track(vm->mem, false);
}

static int find_slot(const struct engine_vm *vm, gpa_t gpa, uint64_t size)
{
	for (unsigned i = 0; i < vm->nr_slots; i++)
		if (gpa >= vm->slots[i].gpa && gpa - vm->slots[i].gpa < vm->slots[i].size &&
		    size <= vm->slots[i].size - (gpa - vm->slots[i].gpa))
			return (int)i;
	return -EFAULT;
}

/* Bits [first, first+nr) of the slot's bitmap, ORed into `to` and forgotten. */
static void take_pending(struct kvm_slot *s, uint64_t first, uint64_t nr, uint64_t *to)
{
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t p = first + i;

		if (!(p % 64) && nr - i >= 64 && !s->pending[p / 64]) {
			i += 63;
			continue;
		}
		if (!(s->pending[p / 64] >> (p % 64) & 1))
			continue;
		s->pending[p / 64] &= ~BIT(p % 64);
		to[i / 64] |= BIT(i % 64);
	}
}

int kvm_dirty_fetch(struct engine_vm *vm, gpa_t gpa, uint64_t size, uint64_t *bitmap,
		    struct error *err)
{
	int slot = find_slot(vm, gpa, size), r;
	struct kvm_slot *s;

	if (slot < 0 || !vm->slots[slot].pending)
		return err_errno(err, slot < 0 ? EFAULT : EINVAL, "dirty pages at %#llx",
				 (unsigned long long)gpa);
	r = mem_dirty_fetch(vm->mem, gpa, size, bitmap);
	if (r == 0)
		r = collect(vm, (unsigned)slot);
	if (r < 0)
		return err_errno(err, -r, "dirty pages at %#llx", (unsigned long long)gpa);
	s = &vm->slots[slot];
	pthread_mutex_lock(&vm->dirty_lock);
	take_pending(s, (gpa - s->gpa) >> PAGE_SHIFT, size >> PAGE_SHIFT, bitmap);
	pthread_mutex_unlock(&vm->dirty_lock);
	return 0;
}
