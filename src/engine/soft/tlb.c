/* engine/soft/tlb.c - see tlb.h and, for the functions others call, cpu.h. */
#include "engine/soft/tlb.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* --- creation --------------------------------------------------------------------------------- */

static void tlb_clear(struct tlb *t)
{
	struct tlb_entry *e = (void *)t;

	for (unsigned i = 0; i < NR_KINDS * TLB_ENTRIES; i++)
		e[i].tag = TLB_INVALID;
	for (unsigned i = 0; i < TLB_ENTRIES; i++)
		t->exid[i] = 0;
}

int mmu_create(struct cpu *cpu, struct error *err)
{
	size_t size = (TLB_SLOTS * TLB_NR_CLASSES + 1) * sizeof(struct tlb);
	struct mmu *m = calloc(1, sizeof(*m));

	_Static_assert(offsetof(struct tlb, exid) ==
			       NR_KINDS * TLB_ENTRIES * sizeof(struct tlb_entry),
		       "rd, wr and ex follow each other");
	if (!m)
		return err_errno(err, ENOMEM, "TLB of vCPU %u", cpu->index);
	m->tlbs = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m->tlbs == MAP_FAILED) {
		free(m);
		return err_errno(err, ENOMEM, "TLB of vCPU %u", cpu->index);
	}
	m->tlbs_size = size;
	m->never = &m->tlbs[TLB_SLOTS * TLB_NR_CLASSES];
	tlb_clear(m->never);
	cpu->mmu = m;
	tlb_switch(cpu, false);
	return 0;
}

void mmu_destroy(struct cpu *cpu)
{
	if (!cpu->mmu)
		return;
	munmap(cpu->mmu->tlbs, cpu->mmu->tlbs_size);
	free(cpu->mmu);
	cpu->mmu = NULL;
}

/* --- TLB entries ------------------------------------------------------------------------------ */

static struct tlb_entry *tlb_array(struct mmu *m, unsigned slot, unsigned a)
{
	struct tlb *t = &m->tlbs[slot * TLB_NR_CLASSES + a / NR_KINDS];

	return (struct tlb_entry *)(void *)t + a % NR_KINDS * TLB_ENTRIES;
}

/* The page of code that the translator knew at an entry is not there any more. */
static void exid_drop(struct mmu *m, unsigned slot, unsigned a, unsigned i)
{
	if (a % NR_KINDS == KIND_EX)
		m->tlbs[slot * TLB_NR_CLASSES + a / NR_KINDS].exid[i] = 0;
}

void tlb_put(struct cpu *cpu, unsigned a, gva_t lin, const uint8_t *hva, bool global)
{
	struct mmu *m = cpu->mmu;
	gva_t page = lin & PAGE_MASK;
	unsigned i = (page >> PAGE_SHIFT) % TLB_ENTRIES;
	struct tlb_entry *e = &tlb_array(m, m->cur, a)[i];
	struct tlb_map *map = &m->slots[m->cur].map[a];

	exid_drop(m, m->cur, a, i);
	e->addend = (uintptr_t)hva - page;
	e->tag = page;
	map->used[i / 64] |= BIT(i % 64);
	if (global)
		map->local[i / 64] &= ~BIT(i % 64);
	else
		map->local[i / 64] |= BIT(i % 64);
}

static void entry_drop(struct mmu *m, unsigned slot, unsigned a, unsigned i)
{
	struct tlb_map *map = &m->slots[slot].map[a];

	tlb_array(m, slot, a)[i].tag = TLB_INVALID;
	exid_drop(m, slot, a, i);
	map->used[i / 64] &= ~BIT(i % 64);
	map->local[i / 64] &= ~BIT(i % 64);
}

/* Drop the entries of one array that `bits` (its map's used or local) names. */
static void array_drop(struct mmu *m, unsigned slot, unsigned a, const uint64_t *bits)
{
	struct tlb_entry *e = tlb_array(m, slot, a);
	struct tlb_map *map = &m->slots[slot].map[a];

	for (unsigned w = 0; w < MAP_WORDS; w++) {
		uint64_t drop = bits[w];

		if (!drop)
			continue;
		map->used[w] &= ~drop;
		map->local[w] &= ~drop;
		for (; drop; drop &= drop - 1) {
			unsigned i = w * 64 + (unsigned)__builtin_ctzll(drop);

			e[i].tag = TLB_INVALID;
			exid_drop(m, slot, a, i);
		}
	}
}

/* Drop entries with the same linear address >> shift. */
static void array_drop_region(struct mmu *m, unsigned slot, unsigned a, gva_t lin, unsigned shift)
{
	const struct tlb_entry *e = tlb_array(m, slot, a);
	const uint64_t *used = m->slots[slot].map[a].used;

	for (unsigned w = 0; w < MAP_WORDS; w++)
		for (uint64_t left = used[w]; left; left &= left - 1) {
			unsigned i = w * 64 + (unsigned)__builtin_ctzll(left);

			if (e[i].tag >> shift == lin >> shift)
				entry_drop(m, slot, a, i);
		}
}

static void slot_flush_all(struct mmu *m, unsigned n)
{
	struct slot *s = &m->slots[n];

	for (unsigned a = 0; a < NR_ARRAYS; a++)
		array_drop(m, n, a, s->map[a].used);
	for (unsigned i = 0; i < ARRAY_SIZE(s->big); i++)
		s->big[i] = s->huge[i] = 0;
	s->keys_seen = 0;
	s->psc_gen++;
}

static void slot_flush_local(struct mmu *m, unsigned n)
{
	struct slot *s = &m->slots[n];

	for (unsigned a = 0; a < NR_ARRAYS; a++)
		array_drop(m, n, a, s->map[a].local);
	s->psc_gen++;
}

/* big and huge: the bit of the region lin >> shift. */
static unsigned region_bit(gva_t lin, unsigned shift)
{
	uint64_t region = lin >> shift;

	return (region ^ region >> 11) % BIG_BITS;
}

static bool region_noted(const uint64_t *bits, gva_t lin, unsigned shift)
{
	unsigned n = region_bit(lin, shift);

	return unlikely(bits[n / 64] >> (n % 64) & 1);
}

static void region_note(uint64_t *bits, gva_t lin, unsigned shift)
{
	unsigned n = region_bit(lin, shift);

	bits[n / 64] |= BIT(n % 64);
}

void tlb_note_size(struct cpu *cpu, gva_t lin, unsigned shift)
{
	struct slot *s = tlb_current(cpu);

	if (shift == BIG_SHIFT)
		region_note(s->big, lin, BIG_SHIFT);
	else if (shift > BIG_SHIFT)
		region_note(s->huge, lin, HUGE_SHIFT);
}

static void slot_flush_page(struct mmu *m, unsigned n, gva_t lin)
{
	struct slot *s = &m->slots[n];
	unsigned i = (lin >> PAGE_SHIFT) % TLB_ENTRIES, shift = PAGE_SHIFT;

	if (region_noted(s->huge, lin, HUGE_SHIFT))
		shift = HUGE_SHIFT;
	else if (region_noted(s->big, lin, BIG_SHIFT))
		shift = BIG_SHIFT;
	for (unsigned a = 0; a < NR_ARRAYS; a++) {
		if (shift != PAGE_SHIFT)
			array_drop_region(m, n, a, lin, shift);
		else if (s->map[a].used[i / 64] >> (i % 64) & 1 &&
			 tlb_array(m, n, a)[i].tag == (lin & PAGE_MASK))
			entry_drop(m, n, a, i);
	}
	s->psc_gen++;
}

/* --- flushes, by name of the instruction that causes them ------------------------------------- */

void tlb_flush_all(struct cpu *cpu)
{
	for (unsigned n = 0; n < TLB_SLOTS; n++)
		if (cpu->mmu->slots[n].ready)
			slot_flush_all(cpu->mmu, n);
}

void tlb_flush_context(struct cpu *cpu, bool global_too)
{
	if (global_too)
		slot_flush_all(cpu->mmu, cpu->mmu->cur);
	else
		slot_flush_local(cpu->mmu, cpu->mmu->cur);
}

/* INVLPG drops global translations of any PCID (SDM 3A "Operations that Invalidate TLBs and
 * Paging-Structure Caches"), and each slot may hold its own copy of one. */
void tlb_flush_page(struct cpu *cpu, gva_t lin)
{
	for (unsigned n = 0; n < TLB_SLOTS; n++)
		if (cpu->mmu->slots[n].valid)
			slot_flush_page(cpu->mmu, n, lin);
}

static void flush_pcid(struct mmu *m, uint16_t pcid)
{
	for (unsigned n = 0; n < TLB_SLOTS; n++)
		if (m->slots[n].valid && (m->slots[n].key & 0xfff) == pcid)
			slot_flush_local(m, n);
}

void tlb_invpcid(struct cpu *cpu, unsigned type, uint16_t pcid, gva_t lin)
{
	struct mmu *m = cpu->mmu;

	switch (type) {
	case INVPCID_PAGE:
		for (unsigned n = 0; n < TLB_SLOTS; n++)
			if (m->slots[n].valid && (m->slots[n].key & 0xfff) == pcid)
				slot_flush_page(m, n, lin);
		break;
	case INVPCID_CONTEXT:
		flush_pcid(m, pcid);
		break;
	case INVPCID_ALL:
		tlb_flush_all(cpu);
		break;
	case INVPCID_ALL_NONGLOBAL:
		for (unsigned n = 0; n < TLB_SLOTS; n++)
			if (m->slots[n].ready)
				slot_flush_local(m, n);
		break;
	}
}

void tlb_flush_writes(struct cpu *cpu)
{
	struct mmu *m = cpu->mmu;

	for (unsigned n = 0; n < TLB_SLOTS; n++)
		for (unsigned a = KIND_WR; a < NR_ARRAYS; a += NR_KINDS)
			array_drop(m, n, a, m->slots[n].map[a].used);
}

static struct mem_page *page_of_hva(const struct cpu *cpu, uintptr_t hva)
{
	return mem_page(cpu->vm->mem, vm_gpa(cpu->vm, (const uint8_t *)hva));
}

/* Drop entries of the page at `only`; of all pages with code when it is 0. */
static void array_purge_code(struct cpu *cpu, unsigned slot, unsigned a, uintptr_t only)
{
	struct tlb_entry *e = tlb_array(cpu->mmu, slot, a);
	const uint64_t *used = cpu->mmu->slots[slot].map[a].used;

	for (unsigned w = 0; w < MAP_WORDS; w++)
		for (uint64_t left = used[w]; left; left &= left - 1) {
			unsigned i = w * 64 + (unsigned)__builtin_ctzll(left);
			uintptr_t hva = e[i].tag + e[i].addend;

			if (only ? hva == only
				 : atomic_load(&page_of_hva(cpu, hva)->code_lines) != 0)
				entry_drop(cpu->mmu, slot, a, i);
		}
}

static void purge_code(struct cpu *cpu, uintptr_t only)
{
	for (unsigned n = 0; n < TLB_SLOTS; n++)
		if (cpu->mmu->slots[n].ready)
			for (unsigned a = KIND_WR; a < NR_ARRAYS; a += NR_KINDS)
				array_purge_code(cpu, n, a, only);
}

void tlb_purge_code_writes(struct cpu *cpu)
{
	purge_code(cpu, 0);
}

void tlb_purge_page_writes(struct cpu *cpu, const uint8_t *hva)
{
	purge_code(cpu, (uintptr_t)hva & PAGE_MASK);
}

/* --- address spaces --------------------------------------------------------------------------- */

/* What distinguishes address spaces in CR3: base and PCID; without PCIDs there is only one. */
static uint64_t slot_key(const struct cpu *cpu)
{
	if (cpu->cr4 & CR4_PCIDE)
		return cpu->cr3 & ~BIT(63);
	return cpu->cr3 & PAGE_MASK;
}

static unsigned slot_oldest(const struct mmu *m)
{
	unsigned best = 0;

	for (unsigned n = 0; n < TLB_SLOTS; n++) {
		if (!m->slots[n].valid)
			return n;
		if (m->slots[n].used < m->slots[best].used)
			best = n;
	}
	return best;
}

static unsigned slot_take(struct mmu *m, uint64_t key)
{
	unsigned n = slot_oldest(m);
	struct slot *s = &m->slots[n];

	if (s->ready) {
		slot_flush_all(m, n);
	} else {
		for (unsigned cls = 0; cls < TLB_NR_CLASSES; cls++)
			tlb_clear(&m->tlbs[n * TLB_NR_CLASSES + cls]);
		s->ready = true;
		s->psc_gen = 1;
	}
	s->valid = true;
	s->key = key;
	return n;
}

static unsigned slot_find(struct mmu *m, uint64_t key)
{
	for (unsigned n = 0; n < TLB_SLOTS; n++)
		if (m->slots[n].valid && m->slots[n].key == key)
			return n;
	return slot_take(m, key);
}

void tlb_switch(struct cpu *cpu, bool keep)
{
	struct mmu *m = cpu->mmu;
	uint64_t key = slot_key(cpu);

	if (cpu->cr4 & CR4_PCIDE || !m->slots[m->cur].valid) {
		if (!keep)
			flush_pcid(m, key & 0xfff);
		m->cur = slot_find(m, key);
	} else {
		/* One address space at a time: what is global survives in its slot. */
		slot_flush_local(m, m->cur);
		m->slots[m->cur].key = key;
	}
	m->slots[m->cur].used = ++m->clock;
	tlb_pick(cpu);
}

unsigned tlb_data_class(const struct cpu *cpu)
{
	if (cpu->cpl == 3)
		return TLB_USER;
	return cpu->cr4 & CR4_SMAP && !(cpu->rflags & RFLAGS_AC) ? TLB_SUPER_SMAP : TLB_SUPER;
}

void tlb_pick(struct cpu *cpu)
{
	struct mmu *m = cpu->mmu;
	struct tlb *t = &m->tlbs[m->cur * TLB_NR_CLASSES];

	cpu->tlb = &t[tlb_data_class(cpu)];
	cpu->tlb_super = &t[TLB_SUPER];
	cpu->tlb_sys = &t[cpu->cr4 & CR4_SMAP ? TLB_SUPER_SMAP : TLB_SUPER];
	/* Alignment is looked at in access.c only, so nothing may hit (SDM 3A "Interrupt 17"). */
	if (unlikely(cpu->cpl == 3 && cpu->cr0 & CR0_AM && cpu->rflags & RFLAGS_AC))
		cpu->tlb = m->never;
}

/* Entries hold what PKRU allowed.  Those of keys whose rights stay as they were stay true. */
void cpu_set_pkru(struct cpu *cpu, uint32_t pkru)
{
	uint32_t changed = cpu->pkru ^ pkru;
	uint16_t keys = 0;

	cpu->pkru = pkru;
	if (!changed || !(cpu->cr4 & CR4_PKE))
		return;
	for (unsigned k = 0; k < 16; k++)
		keys |= (uint16_t)((changed >> 2 * k & 3) ? 1 << k : 0);
	for (unsigned n = 0; n < TLB_SLOTS; n++)
		if (cpu->mmu->slots[n].ready && cpu->mmu->slots[n].keys_seen & keys)
			slot_flush_all(cpu->mmu, n);
}
