/* engine/soft/mmu.c - page tables, and filling the software TLB from them.
 *
 * A walk reads the guest's page tables through host addresses, sets accessed and dirty bits by
 * compare-and-exchange on the guest's entry, and starts again when another CPU changed an entry
 * under it.  Rights are decided only when the leaf is known, in violation(), for one access; the
 * TLB arrays rd, wr and ex of a class then remember "this access is allowed", nothing else.
 *
 * The page-structure cache (psc) of a slot keeps the address and the accumulated rights of page
 * tables (the last level), so that a refill reads one entry.  Any fault found with its help is
 * found again without it: what software sees is always what the tables say now.
 *
 * SDM 3A "Paging"; AMD APM 2 "Page Translation and Protection". */
#include "engine/soft/block.h"
#include "engine/soft/debug.h"
#include "engine/soft/tlb.h"

/* --- the walk --------------------------------------------------------------------------------- */

enum { RIGHT_W = 1, RIGHT_U = 2, RIGHT_NX = 4 }; /* W, U: all levels have it; NX: any level */

enum walk_result { WALK_OK, WALK_NOT_PRESENT, WALK_RESERVED, WALK_DENIED, WALK_RACE };

struct walk {
	const struct mmu_access *a; /* NULL: only look; no rights, no A/D */
	bool use_psc, used_psc;
	/* The result. */
	gpa_t gpa;
	uint8_t rights, key;
	uint8_t shift; /* log2 of the page size */
	bool global, dirty;
	uint32_t error; /* for #PF */
};

/* An entry of a paging structure: where it is and what was read. */
struct entry {
	gpa_t gpa;
	uint8_t *hva; /* NULL: not in RAM */
	uint64_t v;
	uint8_t size; /* 4 or 8 */
};

/* What is not RAM reads as all ones, as a bus without a device does; no device call from here. */
static void entry_read(const struct cpu *cpu, struct entry *e)
{
	e->hva = vm_hva(cpu->vm, e->gpa);
	if (unlikely(!e->hva))
		e->v = e->size == 8 ? ~0ull : 0xffffffff;
	else if (e->size == 8)
		e->v = *(const volatile uint64_t *)e->hva;
	else
		e->v = *(const volatile uint32_t *)e->hva;
}

static bool entry_exchange(const struct entry *e, uint64_t v)
{
	uint64_t old8 = e->v;
	uint32_t old4 = (uint32_t)e->v;

	if (e->size == 8)
		return __atomic_compare_exchange_n((uint64_t *)(void *)e->hva, &old8, v, false,
						   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return __atomic_compare_exchange_n((uint32_t *)(void *)e->hva, &old4, (uint32_t)v, false,
					   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void mark_dirty(const struct cpu *cpu, gpa_t gpa)
{
	struct mem_page *p;

	if (likely(!mem_dirty_tracking(cpu->vm->mem)))
		return;
	p = mem_page(cpu->vm->mem, gpa);
	if (p)
		atomic_fetch_or(&p->flags, MEM_PAGE_DIRTY);
}

/* Set A or D bits.  False when another CPU changed the entry: walk again. */
static bool entry_set(struct cpu *cpu, struct entry *e, uint64_t bits)
{
	if (likely((e->v & bits) == bits) || !e->hva)
		return true;
	if (!entry_exchange(e, e->v | bits))
		return false;
	e->v |= bits;
	block_ram_written(cpu, e->gpa, e->size);
	mark_dirty(cpu, e->gpa);
	return true;
}

static uint64_t phys_mask(const struct cpu *cpu)
{
	return BIT(cpu->vm->model->phys_bits) - 1;
}

/* Bits that must be 0 in a present 64-bit entry of `level` (1 = PTE .. 5 = PML5E): SDM 3A, tables
 * "Format of ..." of the PAE and 4-level sections; APM 2, the figures of "Long-Mode Page
 * Translation", which reserve bit 8 of the upper levels. */
static uint64_t reserved_bits(const struct cpu *cpu, unsigned level, uint64_t v)
{
	const struct cpu_model *m = cpu->vm->model;
	uint64_t r = (BIT(52) - 1) & ~phys_mask(cpu);

	if (cpu->paging == PAGING_PAE)
		r |= BIT(63) - BIT(52); /* ignored in the longer formats, reserved here */
	if (!(cpu->efer & EFER_NXE))
		r |= PTE_NX;
	if (level >= 4)
		r |= PTE_PS | (cpu_model_is_amd(m) ? PTE_G : 0);
	else if (level == 3 && v & PTE_PS)
		r |= cpu_has(m, CPU_FEAT_PDPE1GB) ? BIT(30) - BIT(13) : PTE_PS;
	else if (level == 2 && v & PTE_PS)
		r |= BIT(21) - BIT(13);
	return r;
}

static uint8_t merge_rights(uint8_t rights, uint64_t v)
{
	if (!(v & PTE_W))
		rights &= ~RIGHT_W;
	if (!(v & PTE_U))
		rights &= ~RIGHT_U;
	if (v & PTE_NX)
		rights |= RIGHT_NX;
	return rights;
}

/* May a data access to a user page with this key be made (SDM 3A "Protection Keys")? */
static bool key_denies(const struct cpu *cpu, const struct mmu_access *a, const struct walk *w)
{
	uint32_t bits = cpu->pkru >> 2 * w->key & 3;

	if (!(cpu->cr4 & CR4_PKE) || !cpu->long_mode || a->exec || !(w->rights & RIGHT_U))
		return false;
	return bits & 1 || (bits & 2 && a->write && (a->user || cpu->cr0 & CR0_WP));
}

static bool rights_deny(const struct cpu *cpu, const struct mmu_access *a, const struct walk *w)
{
	bool user_page = w->rights & RIGHT_U;

	if (a->user && !user_page)
		return true;
	if (a->exec)
		return w->rights & RIGHT_NX || (!a->user && user_page && cpu->cr4 & CR4_SMEP);
	if (!a->user && user_page && a->smap)
		return true;
	return a->write && !(w->rights & RIGHT_W) && (a->user || cpu->cr0 & CR0_WP);
}

/* SDM 3A "Determination of Access Rights".  0, or the bits of a protection violation.  PK says
 * that the key forbids the access, whatever else does ("Interrupt 14", bit 5). */
static uint32_t violation(const struct cpu *cpu, const struct mmu_access *a, const struct walk *w)
{
	bool key = key_denies(cpu, a, w);

	if (!key && !rights_deny(cpu, a, w))
		return 0;
	return PF_P | (key ? PF_PK : 0);
}

static enum walk_result walk_leaf(struct cpu *cpu, struct walk *w, struct entry *e, bool dirty_bit)
{
	uint64_t set = PTE_A;

	w->global = e->v & PTE_G && cpu->cr4 & CR4_PGE;
	w->dirty = e->v & PTE_D || !dirty_bit;
	if (!w->a)
		return WALK_OK;
	w->error = violation(cpu, w->a, w);
	if (w->error)
		return WALK_DENIED;
	if (w->a->write && dirty_bit)
		set |= PTE_D;
	if (!entry_set(cpu, e, set))
		return WALK_RACE;
	w->dirty |= w->a->write;
	return WALK_OK;
}

static struct psc_entry *psc_entry(struct cpu *cpu, gva_t lin, struct slot **slot)
{
	*slot = tlb_current(cpu);
	return &(*slot)->psc[(lin >> 21) % PSC_ENTRIES];
}

static bool psc_find(struct cpu *cpu, gva_t lin, struct walk *w, gpa_t *table)
{
	struct slot *s;
	struct psc_entry *p = psc_entry(cpu, lin, &s);

	if (!w->use_psc || p->gen != s->psc_gen || p->region != lin >> 21)
		return false;
	*table = p->table;
	w->rights = p->rights;
	w->used_psc = true;
	return true;
}

static void psc_put(struct cpu *cpu, gva_t lin, const struct walk *w, gpa_t table)
{
	struct slot *s;
	struct psc_entry *p = psc_entry(cpu, lin, &s);

	if (w->a) /* else A may not be set above */
		*p = (struct psc_entry){lin >> 21, table, s->psc_gen, w->rights};
}

/* Where the walk of a 64-bit format starts. */
static unsigned walk64_start(struct cpu *cpu, gva_t lin, struct walk *w, gpa_t *table)
{
	if (psc_find(cpu, lin, w, table))
		return 1;
	w->rights = RIGHT_W | RIGHT_U;
	if (cpu->paging == PAGING_PAE) {
		uint64_t v = cpu->pdpte[lin >> 30 & 3];

		*table = v & phys_mask(cpu) & PAGE_MASK;
		return v & PTE_P ? 2 : 0;
	}
	*table = cpu->cr3 & phys_mask(cpu) & PAGE_MASK;
	return cpu->paging == PAGING_5LEVEL ? 5 : 4;
}

static enum walk_result walk64(struct cpu *cpu, gva_t lin, struct walk *w)
{
	gpa_t table;
	unsigned level = walk64_start(cpu, lin, w, &table);
	struct entry e = {.size = 8};
	uint64_t frame;

	for (; level; level--) {
		w->shift = (uint8_t)(PAGE_SHIFT + 9 * (level - 1));
		e.gpa = table + (lin >> w->shift & 511) * 8;
		entry_read(cpu, &e);
		if (!(e.v & PTE_P))
			return WALK_NOT_PRESENT;
		if (e.v & reserved_bits(cpu, level, e.v))
			return WALK_RESERVED;
		w->rights = merge_rights(w->rights, e.v);
		if (level == 1 || (level <= 3 && e.v & PTE_PS))
			break;
		if (w->a && !entry_set(cpu, &e, PTE_A))
			return WALK_RACE;
		table = e.v & phys_mask(cpu) & PAGE_MASK;
		if (level == 2)
			psc_put(cpu, lin, w, table);
	}
	if (!level) /* a PDPTE that is not present */
		return WALK_NOT_PRESENT;
	frame = e.v & phys_mask(cpu) & ~(BIT(w->shift) - 1);
	w->gpa = frame | (lin & (BIT(w->shift) - 1));
	w->key = PTE_PK(e.v);
	return walk_leaf(cpu, w, &e, true);
}

/* Frame of a 4 MiB page: bits 31-22, and 20-13 are address bits 39-32 (PSE-36). */
static bool pde4m_frame(const struct cpu *cpu, uint64_t v, gpa_t *frame)
{
	bool pse36 = cpu_has(cpu->vm->model, CPU_FEAT_PSE36);
	uint64_t high = v >> 13 & 0xff, high_mask = pse36 ? phys_mask(cpu) >> 32 & 0xff : 0;

	*frame = (v & 0xffc00000) | high << 32;
	return !(v & BIT(21)) && !(high & ~high_mask);
}

static enum walk_result walk32(struct cpu *cpu, gva_t lin, struct walk *w)
{
	struct entry e = {.size = 4};

	w->rights = RIGHT_W | RIGHT_U;
	w->key = 0;
	w->shift = 22;
	e.gpa = (cpu->cr3 & 0xfffff000) + (lin >> 22 & 1023) * 4;
	entry_read(cpu, &e);
	if (!(e.v & PTE_P))
		return WALK_NOT_PRESENT;
	w->rights = merge_rights(w->rights, e.v);
	if (e.v & PTE_PS && cpu->cr4 & CR4_PSE) {
		if (!pde4m_frame(cpu, e.v, &w->gpa))
			return WALK_RESERVED;
		w->gpa |= lin & (BIT(22) - 1);
		return walk_leaf(cpu, w, &e, true);
	}
	if (w->a && !entry_set(cpu, &e, PTE_A))
		return WALK_RACE;
	w->shift = PAGE_SHIFT;
	e.gpa = (e.v & 0xfffff000) + (lin >> PAGE_SHIFT & 1023) * 4;
	entry_read(cpu, &e);
	if (!(e.v & PTE_P))
		return WALK_NOT_PRESENT;
	w->rights = merge_rights(w->rights, e.v);
	w->gpa = (e.v & 0xfffff000) | (lin & ~PAGE_MASK);
	return walk_leaf(cpu, w, &e, true);
}

static enum walk_result walk_none(gva_t lin, struct walk *w)
{
	w->gpa = (uint32_t)lin;
	w->rights = RIGHT_W; /* not a user page: SMAP, SMEP and keys need paging */
	w->shift = PAGE_SHIFT;
	w->global = false;
	w->dirty = true;
	return WALK_OK;
}

static enum walk_result walk(struct cpu *cpu, gva_t lin, struct walk *w)
{
	switch (cpu->paging) {
	case PAGING_NONE:
		return walk_none(lin, w);
	case PAGING_2LEVEL:
		return walk32(cpu, lin, w);
	default:
		return walk64(cpu, lin, w);
	}
}

/* Until no other CPU interferes and no cached structure is to blame. */
static enum walk_result walk_settled(struct cpu *cpu, gva_t lin, struct walk *w)
{
	enum walk_result r;

	do {
		w->used_psc = false;
		r = walk(cpu, lin, w);
		if (r != WALK_OK && w->used_psc)
			w->use_psc = false;
		else if (r != WALK_RACE)
			return r;
	} while (true);
}

/* SDM 3A "Interrupt 14": the error code's bits that describe the access. */
static uint32_t access_error(const struct cpu *cpu, const struct mmu_access *a)
{
	bool fetch_bit = cpu->cr4 & CR4_SMEP || (cpu->cr4 & CR4_PAE && cpu->efer & EFER_NXE);

	return (a->write ? PF_W : 0) | (a->user ? PF_U : 0) | (a->exec && fetch_bit ? PF_I : 0);
}

/* --- filling ---------------------------------------------------------------------------------- */

/* May stores to this page go unseen?  Not while it holds decoded code.  While dirty pages are
 * tracked its mark is set first; whoever fetches marks drops write entries (tlb_flush_writes). */
static bool stores_unseen(const struct cpu *cpu, gpa_t gpa)
{
	struct mem_page *p = mem_page(cpu->vm->mem, gpa);

	if (atomic_load(&p->code_lines))
		return false;
	return !mem_dirty_tracking(cpu->vm->mem) ||
	       atomic_load_explicit(&p->flags, memory_order_relaxed) & MEM_PAGE_DIRTY;
}

static void fill_data(struct cpu *cpu, const struct mmu_access *a, const struct walk *w,
		      const uint8_t *hva)
{
	unsigned cls = a->user ? TLB_USER : a->smap ? TLB_SUPER_SMAP : TLB_SUPER;
	struct mmu_access other = *a;

	/* Not only for the access that missed: a page read is often written next. */
	other.write = false;
	if (cpu->paging == PAGING_NONE || !violation(cpu, &other, w))
		tlb_put(cpu, ARRAY_OF(cls, KIND_RD), a->lin, hva, w->global);
	other.write = true;
	if (w->dirty && (cpu->paging == PAGING_NONE || !violation(cpu, &other, w)) &&
	    stores_unseen(cpu, w->gpa))
		tlb_put(cpu, ARRAY_OF(cls, KIND_WR), a->lin, hva, w->global);
}

static void fill(struct cpu *cpu, const struct mmu_access *a, const struct walk *w)
{
	const uint8_t *hva = vm_hva(cpu->vm, w->gpa & PAGE_MASK);
	struct slot *s = tlb_current(cpu);

	if (!hva)
		return;
	if (a->exec)
		tlb_put(cpu, ARRAY_OF(tlb_data_class(cpu), KIND_EX), a->lin, hva, w->global);
	else if (!debug_page_armed(cpu, a->lin))
		fill_data(cpu, a, w, hva);
	if (w->rights & RIGHT_U)
		s->keys_seen |= (uint16_t)(1 << w->key);
	tlb_note_size(cpu, a->lin, w->shift);
}

gpa_t mmu_translate(struct cpu *cpu, const struct mmu_access *a)
{
	struct walk w = {.a = a, .use_psc = true};
	enum walk_result r = walk_settled(cpu, a->lin, &w);

	if (unlikely(r != WALK_OK)) {
		uint32_t error = access_error(cpu, a);

		if (r == WALK_RESERVED)
			error |= PF_P | PF_RSVD;
		else if (r == WALK_DENIED)
			error |= w.error;
		cpu_page_fault(cpu, a->lin, error);
	}
	cpu->stats.tlb_fills++;
	if (a->write)
		mark_dirty(cpu, w.gpa);
	fill(cpu, a, &w);
	return w.gpa;
}

bool mmu_probe(struct cpu *cpu, gva_t lin, gpa_t *gpa)
{
	struct walk w = {.use_psc = false};

	if (walk_settled(cpu, lin, &w) != WALK_OK)
		return false;
	*gpa = w.gpa;
	return true;
}

/* SDM 3A "PDPTE Registers": bits 2:1, 8:5 and those above the physical width are reserved. */
bool mmu_load_pdptes(struct cpu *cpu, uint64_t cr3)
{
	uint64_t reserved = ~phys_mask(cpu) | 0x1e6, v[4];

	for (unsigned i = 0; i < 4; i++) {
		struct entry e = {.gpa = (cr3 & 0xffffffe0) + 8 * i, .size = 8};

		entry_read(cpu, &e);
		if (e.v & PTE_P && e.v & reserved)
			return false;
		v[i] = e.v;
	}
	for (unsigned i = 0; i < 4; i++)
		cpu->pdpte[i] = v[i];
	return true;
}
