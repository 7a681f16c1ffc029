/* engine/soft/access.c - what the fast paths of access.h leave over.
 *
 * An access is first turned into pieces: one, or two when it crosses a page edge.  All pieces are
 * translated (and so checked) before anything is read or written.  A piece is RAM, reached through
 * its host address, or belongs to the machine, which is asked through cpu->ops.
 *
 * SDM 3A "Canonical Addressing", "Interrupt 17 - Alignment Check", "Page-Fault Exceptions". */
#include "engine/soft/access.h"

#include "engine/soft/block.h"
#include "engine/soft/debug.h"
#include "engine/soft/vec.h"

#include <sched.h>

struct piece {
	gpa_t gpa;
	uint8_t *hva; /* NULL: not RAM */
	unsigned len; /* 0: there is no such piece */
};

/* --- bytes: no libc here, guest vector state may be live ------------------------------------- */

static void bytes_copy(void *to, const void *from, unsigned len)
{
	uint64_t count = len;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

static uint64_t host_load(const uint8_t *p, unsigned size)
{
	switch (size) {
	case 1:
		return *(const volatile uint8_t *)p;
	case 2:
		return *(const volatile guest16 *)(const void *)p;
	case 4:
		return *(const volatile guest32 *)(const void *)p;
	default:
		return *(const volatile guest64 *)(const void *)p;
	}
}

static void host_store(uint8_t *p, unsigned size, uint64_t v)
{
	switch (size) {
	case 1:
		*(volatile uint8_t *)p = (uint8_t)v;
		break;
	case 2:
		*(volatile guest16 *)(void *)p = (uint16_t)v;
		break;
	case 4:
		*(volatile guest32 *)(void *)p = (uint32_t)v;
		break;
	default:
		*(volatile guest64 *)(void *)p = v;
		break;
	}
}

/* --- translation ----------------------------------------------------------------------------- */

static gpa_t translate(struct cpu *cpu, gva_t lin, bool write, bool sys)
{
	const struct mmu_access a = {
		.lin = lin,
		.write = write,
		.user = cpu->cpl == 3 && !sys,
		.smap = cpu->cr4 & CR4_SMAP && (sys || !(cpu->rflags & RFLAGS_AC)),
	};

	return mmu_translate(cpu, &a);
}

/* Implicit accesses use 64-bit bases in all of long mode, others only in 64-bit mode. */
static bool wide(const struct cpu *cpu, bool sys)
{
	return sys ? cpu->long_mode : cpu->mode == INSN_MODE_64;
}

static void check_canonical(struct cpu *cpu, gva_t lin, unsigned size, bool sys)
{
	bool stack = !sys && cpu->in && cpu->in->flags & INSN_STACK;

	if (wide(cpu, sys) && unlikely(!cpu_canonical(cpu, lin, size)))
		cpu_fault(cpu, stack ? X86_EXC_SS : X86_EXC_GP, 0);
}

static void check_alignment(struct cpu *cpu, gva_t lin, unsigned size)
{
	if (unlikely(cpu->cpl == 3 && cpu->cr0 & CR0_AM && cpu->rflags & RFLAGS_AC &&
		     lin & (size - 1)))
		cpu_fault(cpu, X86_EXC_AC, 0);
}

/* What the TLB knows of the page at lin for this kind of access; NULL: nothing. */
static uint8_t *known_hva(struct cpu *cpu, gva_t lin, bool write, bool sys)
{
	struct tlb *t = sys ? cpu->tlb_sys : cpu->tlb;
	const struct tlb_entry *e = tlb_slot(write ? t->wr : t->rd, lin);

	return tlb_hit(e, lin, 1) ? (uint8_t *)(lin + e->addend) : NULL;
}

static struct piece piece_at(struct cpu *cpu, gva_t lin, unsigned len, bool write, bool sys)
{
	uint8_t *hva = known_hva(cpu, lin, write, sys);
	gpa_t gpa;

	if (hva)
		return (struct piece){vm_gpa(cpu->vm, hva), hva, len};
	gpa = translate(cpu, lin, write, sys);
	return (struct piece){gpa, vm_hva(cpu->vm, gpa), len};
}

/* [lin, lin+size), size <= 4096, checked and translated.  Below 64-bit mode addresses wrap at
 * 4 GiB. */
static void pieces_get(struct cpu *cpu, gva_t lin, unsigned size, bool write, bool sys,
		       struct piece p[2])
{
	unsigned first = (unsigned)(PAGE_SIZE - lin % PAGE_SIZE);
	gva_t next = lin + first;

	check_canonical(cpu, lin, size, sys);
	p[0] = piece_at(cpu, lin, MIN(size, first), write, sys);
	p[1].len = 0;
	if (likely(size <= first))
		return;
	if (!wide(cpu, sys))
		next = (uint32_t)next;
	p[1] = piece_at(cpu, next, size - first, write, sys);
}

static void note_data(struct cpu *cpu, gva_t lin, unsigned size, bool write)
{
	if (unlikely(cpu->dbg_data))
		debug_note_data(cpu, lin, size, write);
}

/* --- pieces ---------------------------------------------------------------------------------- */

static uint64_t mmio_load(struct cpu *cpu, gpa_t gpa, unsigned size)
{
	uint8_t doing = cpu->doing;
	uint64_t v;

	vec_release(cpu);
	cpu->stats.exits_mmio++;
	cpu->doing = CPU_DOING_DEVICE;
	v = cpu->ops->mmio_read(cpu->opaque, gpa, size);
	cpu->doing = doing;
	cpu_notice_events(cpu);
	return v;
}

static void mmio_store(struct cpu *cpu, gpa_t gpa, unsigned size, uint64_t v)
{
	uint8_t doing = cpu->doing;

	vec_release(cpu);
	cpu->stats.exits_mmio++;
	cpu->doing = CPU_DOING_DEVICE;
	cpu->ops->mmio_write(cpu->opaque, gpa, v, size);
	cpu->doing = doing;
	cpu_notice_events(cpu);
}

/* The largest access the bus knows that is aligned at gpa and not longer than len. */
static unsigned mmio_chunk(gpa_t gpa, unsigned len)
{
	unsigned size = 8;

	while (size > len || gpa & (size - 1))
		size /= 2;
	return size;
}

static void piece_read(struct cpu *cpu, const struct piece *p, uint8_t *buf)
{
	if (p->hva) {
		bytes_copy(buf, p->hva, p->len);
		return;
	}
	for (unsigned done = 0, n; done < p->len; done += n) {
		uint64_t v;

		n = mmio_chunk(p->gpa + done, p->len - done);
		v = mmio_load(cpu, p->gpa + done, n);
		bytes_copy(buf + done, &v, n);
	}
}

static void piece_write(struct cpu *cpu, const struct piece *p, const uint8_t *buf)
{
	if (p->hva) {
		bytes_copy(p->hva, buf, p->len);
		block_ram_written(cpu, p->gpa, p->len);
		return;
	}
	for (unsigned done = 0, n; done < p->len; done += n) {
		uint64_t v = 0;

		n = mmio_chunk(p->gpa + done, p->len - done);
		bytes_copy(&v, buf + done, n);
		mmio_store(cpu, p->gpa + done, n, v);
	}
}

static void pieces_read(struct cpu *cpu, const struct piece p[2], uint8_t *buf)
{
	piece_read(cpu, &p[0], buf);
	if (p[1].len)
		piece_read(cpu, &p[1], buf + p[0].len);
}

static void pieces_write(struct cpu *cpu, const struct piece p[2], const uint8_t *buf)
{
	piece_write(cpu, &p[0], buf);
	if (p[1].len)
		piece_write(cpu, &p[1], buf + p[0].len);
}

/* --- one value ------------------------------------------------------------------------------- */

/* A value of 1, 2, 4 or 8 bytes in one page is one access, to RAM and to a device. */
static uint64_t value_load(struct cpu *cpu, const struct piece p[2], unsigned size)
{
	uint64_t v = 0;

	if (unlikely(p[1].len))
		pieces_read(cpu, p, (uint8_t *)&v);
	else if (p[0].hva)
		v = host_load(p[0].hva, size);
	else
		v = mmio_load(cpu, p[0].gpa, size);
	return v;
}

static void value_store(struct cpu *cpu, const struct piece p[2], unsigned size, uint64_t v)
{
	if (unlikely(p[1].len)) {
		pieces_write(cpu, p, (const uint8_t *)&v);
	} else if (p[0].hva) {
		host_store(p[0].hva, size, v);
		block_ram_written(cpu, p[0].gpa, size);
	} else {
		mmio_store(cpu, p[0].gpa, size, v);
	}
}

uint64_t ld_slow(struct cpu *cpu, gva_t lin, unsigned size)
{
	struct piece p[2];

	check_alignment(cpu, lin, size);
	pieces_get(cpu, lin, size, false, false, p);
	note_data(cpu, lin, size, false);
	return value_load(cpu, p, size);
}

void st_slow(struct cpu *cpu, gva_t lin, unsigned size, uint64_t v)
{
	struct piece p[2];

	check_alignment(cpu, lin, size);
	pieces_get(cpu, lin, size, true, false, p);
	note_data(cpu, lin, size, true);
	value_store(cpu, p, size, v);
}

uint64_t sys_ld_slow(struct cpu *cpu, gva_t lin, unsigned size)
{
	struct piece p[2];

	pieces_get(cpu, lin, size, false, true, p);
	return value_load(cpu, p, size);
}

void sys_st_slow(struct cpu *cpu, gva_t lin, unsigned size, uint64_t v)
{
	struct piece p[2];

	pieces_get(cpu, lin, size, true, true, p);
	value_store(cpu, p, size, v);
}

/* --- many bytes ------------------------------------------------------------------------------ */

void ld_bytes(struct cpu *cpu, gva_t lin, void *buf, unsigned size)
{
	struct piece p[2];

	pieces_get(cpu, lin, size, false, false, p);
	note_data(cpu, lin, size, false);
	pieces_read(cpu, p, buf);
}

void st_bytes(struct cpu *cpu, gva_t lin, const void *buf, unsigned size)
{
	struct piece p[2];

	pieces_get(cpu, lin, size, true, false, p);
	note_data(cpu, lin, size, true);
	pieces_write(cpu, p, buf);
}

void probe_read(struct cpu *cpu, gva_t lin, unsigned size)
{
	struct piece p[2];

	pieces_get(cpu, lin, size, false, false, p);
}

void probe_write(struct cpu *cpu, gva_t lin, unsigned size)
{
	struct piece p[2];

	pieces_get(cpu, lin, size, true, false, p);
}

void probe_load(struct cpu *cpu, gva_t lin, unsigned size)
{
	check_alignment(cpu, lin, size);
	probe_read(cpu, lin, size);
}

void probe_store(struct cpu *cpu, gva_t lin, unsigned size)
{
	check_alignment(cpu, lin, size);
	probe_write(cpu, lin, size);
}

/* A miss is filled by the translation; what still misses then needs care. */
void *ld_ptr(struct cpu *cpu, gva_t lin, unsigned size)
{
	const struct tlb_entry *e = tlb_slot(cpu->tlb->rd, lin);
	struct piece p[2];

	if (!tlb_hit(e, lin, size))
		pieces_get(cpu, lin, size, false, false, p);
	return tlb_hit(e, lin, size) ? (void *)(lin + e->addend) : NULL;
}

void *st_ptr(struct cpu *cpu, gva_t lin, unsigned size)
{
	const struct tlb_entry *e = tlb_slot(cpu->tlb->wr, lin);
	struct piece p[2];

	if (!tlb_hit(e, lin, size))
		pieces_get(cpu, lin, size, true, false, p);
	return tlb_hit(e, lin, size) ? (void *)(lin + e->addend) : NULL;
}

gva_t insn_linear_slow(struct cpu *cpu, const struct insn *in, unsigned size, bool write)
{
	uint64_t ea = insn_ea(cpu, in);

	if (cpu->mode == INSN_MODE_64)
		return ea + CPU_REG(cpu, in->segbase, const uint64_t);
	return seg_linear(cpu, in->seg, ea, size, write);
}

/* --- read-modify-write ----------------------------------------------------------------------- */

static void split_lock(struct cpu *cpu)
{
	struct soft_vm *vm = cpu->vm;

	while (atomic_exchange_explicit(&vm->split_lock, true, memory_order_acquire)) {
		vec_release(cpu);
		sched_yield();
	}
}

static void split_unlock(struct cpu *cpu)
{
	atomic_store_explicit(&cpu->vm->split_lock, false, memory_order_release);
}

/* Is the operand one stretch of host memory?  Then the host's own operation does it, locked or
 * not, even over a page or cache-line edge. */
static bool contiguous(const struct piece p[2])
{
	return p[0].hva && (!p[1].len || p[1].hva == p[0].hva + p[0].len);
}

void rmw_begin_slow(struct cpu *cpu, struct rmw *r, gva_t lin, unsigned size, bool lock)
{
	struct piece p[2];

	check_alignment(cpu, lin, size);
	pieces_get(cpu, lin, size, true, false, p);
	note_data(cpu, lin, size, true);
	r->lin = lin;
	r->size = (uint8_t)size;
	r->bounced = true; /* rmw_end is to be called in any case */
	r->first = (uint8_t)p[0].len;
	r->gpa[0] = p[0].gpa;
	r->gpa[1] = p[1].len ? p[1].gpa : 0;
	r->locked = false;
	r->code = contiguous(p);
	if (r->code) {
		r->p = p[0].hva;
		return;
	}
	r->locked = lock && p[1].len;
	if (r->locked)
		split_lock(cpu);
	r->p = r->bounce;
	pieces_read(cpu, p, r->bounce);
}

void rmw_end_slow(struct cpu *cpu, struct rmw *r)
{
	struct piece p[2] = {
		{r->gpa[0], vm_hva(cpu->vm, r->gpa[0]), r->first},
		{r->gpa[1], vm_hva(cpu->vm, r->gpa[1]), (unsigned)(r->size - r->first)},
	};

	if (!r->code) {
		pieces_write(cpu, p, r->bounce);
		if (r->locked)
			split_unlock(cpu);
		return;
	}
	for (unsigned i = 0; i < 2; i++)
		if (p[i].len)
			block_ram_written(cpu, p[i].gpa, p[i].len);
}
