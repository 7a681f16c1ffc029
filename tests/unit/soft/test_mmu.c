/* Paging: every combination of page-table bits, modes and accesses against the rules as the manual
 * words them; what the TLB may keep; accesses over page edges, to devices and to code pages. */
#include "soft_fixture.h"

#include <pthread.h>
#include <sched.h>

/* Page tables of one linear address: the table of level n is at TABLE(n), n = 1 for the last. */
#define TABLE(n)   (0x100000ull + (n)*0x1000)
#define OTHER_PT   0x110000ull
#define FRAME      0x120000ull
#define OTHER      0x140000ull
#define SECOND     0x160000ull /* next page of a crossing access: not next in memory */
#define OPEN_ENTRY (PTE_P | PTE_W | PTE_U | PTE_A)

enum format { F_2LEVEL, F_PAE, F_4LEVEL, F_5LEVEL };

static unsigned levels(enum format f)
{
	return f == F_2LEVEL ? 2 : f == F_PAE ? 3 : f == F_4LEVEL ? 4 : 5;
}

static unsigned level_shift(enum format f, unsigned level)
{
	return f == F_2LEVEL ? (level == 2 ? 22 : 12) : 12 + 9 * (level - 1);
}

static unsigned entry_size(enum format f)
{
	return f == F_2LEVEL ? 4 : 8;
}

static gpa_t entry_at(enum format f, gva_t lin, unsigned level)
{
	unsigned bits = f == F_2LEVEL ? 10 : 9;

	return TABLE(level) + (lin >> level_shift(f, level) & (BIT(bits) - 1)) * entry_size(f);
}

/* --- a CPU with paging ------------------------------------------------------------------------ */

static struct fixture *paged(enum format format)
{
	struct fixture *f = fixture_create(format >= F_4LEVEL ? FIX_LONG64 : FIX_PROT32);
	struct cpu *cpu = f->cpu;

	if (cpu_model_resolve(&f->model, "max", NULL))
		abort();
	f->model.phys_bits = 46;
	cpu->cr0 |= CR0_PG;
	cpu->cr3 = TABLE(levels(format));
	cpu->cr4 = format == F_2LEVEL ? CR4_PSE : CR4_PAE;
	if (format == F_5LEVEL)
		cpu->cr4 |= CR4_LA57;
	tlb_flush_all(cpu);
	cpu_mode_update(cpu);
	return f;
}

/* Point lin at frame through tables that allow everything. */
static void map_page(struct fixture *f, enum format format, gva_t lin, uint64_t leaf)
{
	bool pae_top = format == F_PAE;

	for (unsigned n = levels(format); n > 1; n--)
		fix_put(f, entry_at(format, lin, n), entry_size(format),
			TABLE(n - 1) | (pae_top && n == 3 ? PTE_P : OPEN_ENTRY));
	fix_put(f, entry_at(format, lin, 1), entry_size(format), leaf);
	if (pae_top && !mmu_load_pdptes(f->cpu, f->cpu->cr3))
		abort();
}

struct outcome {
	uint32_t fault; /* FAULT() or 0 */
	uint64_t cr2;
	gpa_t gpa;
};

struct request {
	struct mmu_access a;
	gpa_t gpa;
};

static void do_translate(struct fixture *f, const void *arg)
{
	struct request *r = (struct request *)(uintptr_t)arg;

	r->gpa = mmu_translate(f->cpu, &r->a);
}

static struct outcome translate(struct fixture *f, struct mmu_access a)
{
	struct request r = {.a = a};
	struct outcome o = {.fault = fixture_try(f, do_translate, &r)};

	if (o.fault)
		o.cr2 = f->cpu->fault.cr2;
	else
		o.gpa = r.gpa;
	return o;
}

/* --- the rules once more ------------------------------------------------------------------------
 * SDM 3A "Determination of Access Rights" and "Page-Fault Exceptions", case by case. */

enum who { BY_USER, BY_SUPER, BY_SUPER_AC, BY_IMPLICIT, NR_WHO };
enum what { DATA_READ, DATA_WRITE, FETCH, NR_WHAT };

struct rules {
	enum format format;
	bool wp, smep, smap, pke, nxe;
	bool key_ad, key_wd; /* PKRU bits of the leaf's key */
	unsigned maxphyaddr;
	unsigned leaf_level;
};

struct verdict {
	bool ok;
	uint32_t error;
	unsigned walked; /* entries of levels above `walked` were used: they have A now */
};

static bool every(const uint64_t *entry, const struct rules *r, uint64_t bit)
{
	/* PDPTEs of PAE paging have no rights. */
	unsigned top = r->format == F_PAE ? 2 : levels(r->format);

	for (unsigned n = r->leaf_level; n <= top; n++)
		if (!(entry[n] & bit))
			return false;
	return true;
}

static bool no_execute(const uint64_t *entry, const struct rules *r)
{
	if (r->format == F_2LEVEL || !r->nxe)
		return false;
	for (unsigned n = r->leaf_level; n <= levels(r->format); n++)
		if (entry[n] & PTE_NX)
			return true;
	return false;
}

static bool entry_reserved(uint64_t e, unsigned level, const struct rules *r)
{
	bool leaf = level == r->leaf_level;

	if (r->format == F_2LEVEL)
		return level == 2 && leaf && e & BIT(21);
	for (unsigned bit = r->maxphyaddr; bit < 52; bit++)
		if (e >> bit & 1)
			return true;
	if (r->format == F_PAE && e >> 52 & 0x7ff)
		return true;
	if (e & PTE_NX && !r->nxe)
		return true;
	if (level == 2 && leaf && e & 0x1fe000)
		return true;
	if (level == 3 && leaf && e & 0x3fffe000)
		return true;
	return level >= 4 && e & PTE_PS;
}

static bool may_super(const uint64_t *entry, const struct rules *r, enum who who, enum what what)
{
	bool user_address = every(entry, r, PTE_U), writable = every(entry, r, PTE_W);

	if (what == FETCH) {
		if (user_address && r->smep)
			return false;
		return !no_execute(entry, r);
	}
	if (user_address && r->smap && who != BY_SUPER_AC)
		return false;
	if (what == DATA_WRITE && r->wp && !writable)
		return false;
	return true;
}

static bool may_user(const uint64_t *entry, const struct rules *r, enum what what)
{
	if (!every(entry, r, PTE_U))
		return false;
	switch (what) {
	case DATA_READ:
		return true;
	case DATA_WRITE:
		return every(entry, r, PTE_W);
	default:
		return !no_execute(entry, r);
	}
}

static bool key_forbids(const uint64_t *entry, const struct rules *r, enum who who, enum what what)
{
	if (r->format < F_4LEVEL || !r->pke || what == FETCH || !every(entry, r, PTE_U))
		return false;
	if (r->key_ad)
		return true;
	return r->key_wd && what == DATA_WRITE && (who == BY_USER || r->wp);
}

static struct verdict judge(const uint64_t *entry, const struct rules *r, enum who who,
			    enum what what)
{
	struct verdict v = {.walked = levels(r->format)};
	bool key, allowed;

	if (what == DATA_WRITE)
		v.error |= 2;
	if (who == BY_USER)
		v.error |= 4;
	if (what == FETCH && (r->smep || (r->format != F_2LEVEL && r->nxe)))
		v.error |= 16;
	for (unsigned n = levels(r->format); n >= r->leaf_level; n--) {
		v.walked = n;
		if (!(entry[n] & PTE_P))
			return v;
		if (entry_reserved(entry[n], n, r)) {
			v.error |= 1 | 8;
			return v;
		}
	}
	key = key_forbids(entry, r, who, what);
	allowed = who == BY_USER ? may_user(entry, r, what) : may_super(entry, r, who, what);
	v.ok = allowed && !key;
	if (!v.ok)
		v.error |= 1 | (key ? 32 : 0);
	return v;
}

/* --- the matrix ------------------------------------------------------------------------------- */

struct matrix {
	struct fixture *f;
	struct rules r;
	gva_t lin;
	uint64_t entry[6]; /* [level] */
	uint64_t checked, faults, denied;
};

static struct mmu_access access_of(gva_t lin, enum who who, enum what what, bool smap)
{
	return (struct mmu_access){
		.lin = lin,
		.write = what == DATA_WRITE,
		.exec = what == FETCH,
		.user = who == BY_USER,
		.smap = smap && (who == BY_SUPER || who == BY_IMPLICIT),
	};
}

static void describe(const struct matrix *m, enum who who, enum what what)
{
	const struct rules *r = &m->r;

	printf("# format %d who %d what %d leaf level %u wp %d smep %d smap %d pke %d nxe %d ad %d "
	       "wd %d; entries",
	       r->format, who, what, r->leaf_level, r->wp, r->smep, r->smap, r->pke, r->nxe,
	       r->key_ad, r->key_wd);
	for (unsigned n = levels(r->format); n >= r->leaf_level; n--)
		printf(" %#llx", (unsigned long long)m->entry[n]);
	printf("\n");
}

#define MATRIX_EQ(want, got)                                                                       \
	do {                                                                                       \
		uint64_t mw_ = (want), mg_ = (got);                                                \
		if (mw_ != mg_) {                                                                  \
			describe(m, who, what);                                                    \
			CHECK_EQ(mw_, mg_);                                                        \
		}                                                                                  \
	} while (0)

/* A and D bits in memory are those the walk had to set, and no others. */
static void check_entries(struct matrix *m, const struct verdict *v, enum who who, enum what what)
{
	for (unsigned n = m->r.leaf_level; n <= levels(m->r.format); n++) {
		uint64_t want = m->entry[n];
		bool pdpte = m->r.format == F_PAE && n == 3;

		if (!pdpte && (n > v->walked || (v->ok && n == m->r.leaf_level)))
			want |= PTE_A;
		if (v->ok && n == m->r.leaf_level && what == DATA_WRITE)
			want |= PTE_D;
		MATRIX_EQ(want,
			  fix_get(m->f, entry_at(m->r.format, m->lin, n), entry_size(m->r.format)));
	}
}

/* Whatever the TLB holds now is allowed by the entries as they are now. */
static void check_tlb(struct matrix *m, enum who who)
{
	struct cpu *cpu = m->f->cpu;
	const struct tlb *t = who == BY_IMPLICIT ? cpu->tlb_sys : cpu->tlb;
	uint64_t leaf = fix_get(m->f, entry_at(m->r.format, m->lin, m->r.leaf_level),
				entry_size(m->r.format));
	enum what what = DATA_READ;

	if (t->rd[(m->lin >> 12) % TLB_ENTRIES].tag == (m->lin & PAGE_MASK))
		MATRIX_EQ(1, judge(m->entry, &m->r, who, what).ok);
	what = DATA_WRITE;
	if (t->wr[(m->lin >> 12) % TLB_ENTRIES].tag == (m->lin & PAGE_MASK))
		MATRIX_EQ(1, judge(m->entry, &m->r, who, what).ok && leaf & PTE_D);
	what = FETCH;
	if (cpu->tlb->ex[(m->lin >> 12) % TLB_ENTRIES].tag == (m->lin & PAGE_MASK))
		MATRIX_EQ(1, judge(m->entry, &m->r, who, what).ok);
}

static void check_one(struct matrix *m, enum who who, enum what what)
{
	struct verdict v = judge(m->entry, &m->r, who, what);
	struct cpu *cpu = m->f->cpu;
	struct outcome o;

	for (unsigned n = m->r.leaf_level; n <= levels(m->r.format); n++)
		fix_put(m->f, entry_at(m->r.format, m->lin, n), entry_size(m->r.format),
			m->entry[n]);
	tlb_flush_context(cpu, true);
	cpu->cpl = who == BY_USER ? 3 : 0;
	cpu->rflags = who == BY_SUPER_AC ? cpu->rflags | RFLAGS_AC : cpu->rflags & ~RFLAGS_AC;
	tlb_pick(cpu);
	o = translate(m->f, access_of(m->lin, who, what, m->r.smap));
	MATRIX_EQ(v.ok ? 0 : FAULT(X86_EXC_PF, v.error), o.fault);
	if (v.ok)
		MATRIX_EQ((m->entry[m->r.leaf_level] & 0x1ff000) |
				  (m->lin & (BIT(level_shift(m->r.format, m->r.leaf_level)) - 1)),
			  o.gpa);
	else
		MATRIX_EQ(m->lin, o.cr2);
	check_entries(m, &v, who, what);
	check_tlb(m, who);
	m->checked++;
	m->faults += !v.ok;
	m->denied += !v.ok && v.error & PF_P && !(v.error & PF_RSVD);
}

static void check_all_accesses(struct matrix *m)
{
	for (enum who who = 0; who < NR_WHO; who++)
		for (enum what what = 0; what < NR_WHAT; what++)
			check_one(m, who, what);
}

/* Bits of one entry under test, chosen by the bits of n. */
static uint64_t vary(uint64_t base, enum format format, unsigned n, uint64_t reserved)
{
	uint64_t e = base & ~(PTE_P | PTE_W | PTE_U | PTE_A | PTE_D | PTE_NX);

	e |= n & 1 ? 0 : PTE_P; /* present first: most cases are */
	e |= n & 2 ? PTE_W : 0;
	e |= n & 4 ? PTE_U : 0;
	e |= n & 8 && format != F_2LEVEL ? PTE_NX : 0;
	e |= n & 16 ? PTE_A : 0;
	e |= n & 32 ? PTE_D : 0;
	e |= n & 64 ? reserved : 0;
	return e;
}

static void set_rules(struct matrix *m, unsigned n)
{
	struct cpu *cpu = m->f->cpu;
	struct rules *r = &m->r;

	r->wp = n & 1;
	r->smep = n & 2;
	r->smap = n & 4;
	r->nxe = n & 8;
	r->pke = n & 16;
	cpu->cr0 = (cpu->cr0 & ~CR0_WP) | (r->wp ? CR0_WP : 0);
	cpu->cr4 = (cpu->cr4 & ~(CR4_SMEP | CR4_SMAP | CR4_PKE)) | (r->smep ? CR4_SMEP : 0) |
		   (r->smap ? CR4_SMAP : 0) | (r->pke ? CR4_PKE : 0);
	cpu->efer = (cpu->efer & ~EFER_NXE) | (r->nxe ? EFER_NXE : 0);
	cpu_mode_update(cpu);
}

/* All leaf entries (with all three kinds of key) under the upper entries as they are. */
static void check_leaves(struct matrix *m, uint64_t leaf, uint64_t reserved)
{
	const unsigned key = 5;

	for (unsigned rights = 0; rights < (m->r.pke ? 3 : 1); rights++) {
		m->r.key_ad = rights == 1;
		m->r.key_wd = rights == 2;
		cpu_set_pkru(m->f->cpu, rights << 2 * key);
		for (unsigned n = 0; n < 128; n++) {
			m->entry[m->r.leaf_level] = vary(leaf, m->r.format, n, reserved);
			if (m->r.format >= F_4LEVEL)
				m->entry[m->r.leaf_level] |= (uint64_t)key << 59;
			check_all_accesses(m);
		}
	}
}

/* Each upper level in turn gets each of these kinds; the others allow everything. */
static void check_uppers(struct matrix *m, unsigned level, uint64_t leaf, uint64_t reserved)
{
	const uint64_t upper_reserved = m->r.format == F_2LEVEL ? 0 : BIT(50);
	const uint64_t open = TABLE(level - 1) | PTE_P | PTE_W | PTE_U;
	// clang-format off
	const uint64_t kinds[] = {
		open, open & ~PTE_W, open & ~PTE_U, open & ~(PTE_W | PTE_U), open | PTE_A,
		open & ~PTE_P, open | upper_reserved, m->r.format == F_2LEVEL ? open : open | PTE_NX,
	};
	// clang-format on
	uint64_t saved = m->entry[level];

	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		m->entry[level] = kinds[k];
		check_leaves(m, leaf, reserved);
	}
	m->entry[level] = saved;
}

static void matrix_run(enum format format, unsigned leaf_level, uint64_t leaf, uint64_t reserved)
{
	struct matrix m = {.f = paged(format),
			   .r = {.format = format, .maxphyaddr = 46, .leaf_level = leaf_level},
			   .lin = format == F_5LEVEL   ? 0x00a5123456789abcull
				  : format == F_4LEVEL ? 0x0000123456789abcull
						       : 0x56789abcull};
	unsigned top = format == F_PAE ? 2 : levels(format);

	/* A 1 GiB page's offset must stay within RAM. */
	if (leaf_level == 3)
		m.lin = (m.lin & ~(GiB - 1)) | 0x123456;
	map_page(m.f, format, m.lin, 0);
	for (unsigned n = leaf_level + 1; n <= levels(format); n++)
		m.entry[n] = fix_get(m.f, entry_at(format, m.lin, n), entry_size(format)) & ~PTE_A;
	for (unsigned rules = 0; rules < 32; rules++) {
		if (format == F_2LEVEL && rules & 8)
			continue; /* no NX there */
		set_rules(&m, rules);
		check_leaves(&m, leaf, reserved);
		for (unsigned n = leaf_level + 1; n <= top; n++)
			check_uppers(&m, n, leaf, reserved);
	}
	printf("# %llu cases, %llu faults, %llu by rights\n", (unsigned long long)m.checked,
	       (unsigned long long)m.faults, (unsigned long long)m.denied);
	CHECK(m.denied > m.checked / 32 && m.checked - m.faults > m.checked / 32);
}

TEST(two_level_pages_fault_as_the_manual_says)
{
	matrix_run(F_2LEVEL, 1, FRAME, 0);
}

TEST(two_level_4m_pages_fault_as_the_manual_says)
{
	matrix_run(F_2LEVEL, 2, PTE_PS, BIT(21));
}

TEST(pae_pages_fault_as_the_manual_says)
{
	matrix_run(F_PAE, 1, FRAME, BIT(52));
}

TEST(pae_2m_pages_fault_as_the_manual_says)
{
	matrix_run(F_PAE, 2, PTE_PS, BIT(13));
}

TEST(four_level_pages_fault_as_the_manual_says)
{
	matrix_run(F_4LEVEL, 1, FRAME, BIT(51));
}

TEST(four_level_2m_pages_fault_as_the_manual_says)
{
	matrix_run(F_4LEVEL, 2, PTE_PS, BIT(20));
}

TEST(four_level_1g_pages_fault_as_the_manual_says)
{
	matrix_run(F_4LEVEL, 3, PTE_PS, BIT(29));
}

TEST(five_level_pages_fault_as_the_manual_says)
{
	matrix_run(F_5LEVEL, 1, FRAME, BIT(46));
}

TEST(upper_levels_have_no_page_size_bit)
{
	struct fixture *f = paged(F_5LEVEL);
	gva_t lin = 0x00a5123456789000;

	for (unsigned n = 4; n <= 5; n++) {
		map_page(f, F_5LEVEL, lin, FRAME | OPEN_ENTRY);
		fix_put(f, entry_at(F_5LEVEL, lin, n), 8, TABLE(n - 1) | OPEN_ENTRY | PTE_PS);
		tlb_flush_all(f->cpu);
		CHECK_EQ(FAULT(X86_EXC_PF, PF_P | PF_RSVD),
			 translate(f, (struct mmu_access){.lin = lin}).fault);
	}
}

TEST(a_1g_page_is_reserved_where_the_cpu_has_none)
{
	struct fixture *f = paged(F_4LEVEL);
	gva_t lin = 0x123456;

	map_page(f, F_4LEVEL, lin, 0);
	fix_put(f, entry_at(F_4LEVEL, lin, 3), 8, OPEN_ENTRY | PTE_PS);
	CHECK_EQ(0x123456, translate(f, (struct mmu_access){.lin = lin}).gpa);
	CHECK_EQ(0, cpu_model_resolve(&f->model, "max,-pdpe1gb", NULL));
	tlb_flush_all(f->cpu);
	CHECK_EQ(FAULT(X86_EXC_PF, PF_P | PF_RSVD),
		 translate(f, (struct mmu_access){.lin = lin}).fault);
}

TEST(a_4m_page_reaches_above_4g_by_pse36)
{
	struct fixture *f = paged(F_2LEVEL);
	gva_t lin = 0x00412345;
	gpa_t gpa;

	fix_put(f, entry_at(F_2LEVEL, lin, 2), 4, 0x00c00000 | 0x5a << 13 | PTE_PS | OPEN_ENTRY);
	CHECK(mmu_probe(f->cpu, lin, &gpa));
	CHECK_EQ(0x5a00c12345, gpa);
	f->model.phys_bits = 36; /* bits 39-36 of the address are reserved now */
	CHECK_EQ(FAULT(X86_EXC_PF, PF_P | PF_RSVD),
		 translate(f, (struct mmu_access){.lin = lin}).fault);
	CHECK(!mmu_probe(f->cpu, lin, &gpa));
}

TEST(pae_directory_pointers_are_checked_when_loaded)
{
	struct fixture *f = paged(F_PAE);

	map_page(f, F_PAE, 0, FRAME | OPEN_ENTRY);
	for (unsigned bit = 0; bit < 64; bit++) {
		bool reserved = bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= 46;

		fix_put(f, TABLE(3) + 8, 8, TABLE(2) | PTE_P | BIT(bit));
		CHECK_EQ(!reserved, mmu_load_pdptes(f->cpu, TABLE(3)));
		fix_put(f, TABLE(3) + 8, 8, (TABLE(2) | BIT(bit)) & ~PTE_P);
		CHECK_EQ(1, mmu_load_pdptes(f->cpu, TABLE(3)));
	}
	/* What is in memory counts at the next load only. */
	fix_put(f, TABLE(3), 8, 0);
	tlb_flush_all(f->cpu);
	CHECK_EQ(0, translate(f, (struct mmu_access){.lin = 0}).fault);
	CHECK(mmu_load_pdptes(f->cpu, TABLE(3)));
	tlb_flush_all(f->cpu);
	CHECK_EQ(FAULT(X86_EXC_PF, 0), translate(f, (struct mmu_access){.lin = 0}).fault);
}

TEST(page_tables_outside_ram_read_as_ones)
{
	struct fixture *f = paged(F_4LEVEL);

	f->cpu->cr3 = 0x40000000;
	CHECK_EQ(FAULT(X86_EXC_PF, PF_P | PF_RSVD),
		 translate(f, (struct mmu_access){.lin = 0x1000}).fault);
}

/* --- the TLB ---------------------------------------------------------------------------------- */

#define LIN 0x0000123456789000ull

static uint64_t lin_value(struct fixture *f, gva_t lin)
{
	return ld64(f->cpu, lin);
}

static struct fixture *two_frames(void)
{
	struct fixture *f = paged(F_4LEVEL);

	map_page(f, F_4LEVEL, LIN, FRAME | OPEN_ENTRY);
	fix_put(f, FRAME, 8, 1);
	fix_put(f, OTHER, 8, 2);
	return f;
}

static void remap(struct fixture *f, uint64_t leaf)
{
	fix_put(f, entry_at(F_4LEVEL, LIN, 1), 8, leaf);
}

TEST(invlpg_makes_a_changed_entry_seen)
{
	struct fixture *f = two_frames();

	CHECK_EQ(1, lin_value(f, LIN));
	remap(f, OTHER | OPEN_ENTRY);
	CHECK_EQ(1,
		 lin_value(f,
			   LIN)); /* cached: allowed, and what makes the next line mean something */
	tlb_flush_page(f->cpu, LIN + 0x123);
	CHECK_EQ(2, lin_value(f, LIN));
}

TEST(invlpg_makes_a_changed_directory_seen)
{
	struct fixture *f = two_frames();

	CHECK_EQ(1, lin_value(f, LIN));
	fix_put(f, OTHER_PT + (LIN >> 12 & 511) * 8, 8, OTHER | OPEN_ENTRY);
	fix_put(f, entry_at(F_4LEVEL, LIN, 2), 8, OTHER_PT | OPEN_ENTRY);
	tlb_flush_page(f->cpu, LIN);
	CHECK_EQ(2, lin_value(f, LIN));
}

TEST(invlpg_drops_every_piece_of_a_2m_page)
{
	struct fixture *f = two_frames();
	gva_t base = LIN & ~(2 * MiB - 1);

	fix_put(f, entry_at(F_4LEVEL, base, 2), 8, PTE_PS | OPEN_ENTRY);
	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ(1, lin_value(f, base + FRAME));
		CHECK_EQ(2, lin_value(f, base + OTHER));
		fix_put(f, entry_at(F_4LEVEL, base, 2), 8, 0);
		tlb_flush_page(f->cpu, base + 0x3000);
		CHECK_EQ(FAULT(X86_EXC_PF, 0),
			 translate(f, (struct mmu_access){.lin = base + FRAME}).fault);
		CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->rd, base + OTHER), base + OTHER, 1));
		fix_put(f, entry_at(F_4LEVEL, base, 2), 8, PTE_PS | OPEN_ENTRY);
	}
}

TEST(invlpg_drops_every_piece_of_a_1g_page)
{
	struct fixture *f = two_frames();
	gva_t base = LIN & ~(GiB - 1);

	fix_put(f, entry_at(F_4LEVEL, base, 3), 8, PTE_PS | OPEN_ENTRY);
	CHECK_EQ(2, lin_value(f, base + OTHER));
	tlb_flush_page(f->cpu, base + GiB - 1);
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->rd, base + OTHER), base + OTHER, 1));
}

TEST(a_stale_cached_directory_causes_no_fault)
{
	struct fixture *f = two_frames();

	fix_put(f, entry_at(F_4LEVEL, LIN, 2), 8, (TABLE(1) | OPEN_ENTRY) & ~PTE_W);
	CHECK_EQ(1, lin_value(f, LIN));
	fix_put(f, entry_at(F_4LEVEL, LIN, 2), 8, TABLE(1) | OPEN_ENTRY);
	f->cpu->cpl = 3;
	tlb_pick(f->cpu);
	CHECK_EQ(0,
		 translate(f, (struct mmu_access){.lin = LIN, .write = true, .user = true}).fault);
}

TEST(a_clean_page_is_written_through_the_walk_once)
{
	struct fixture *f = two_frames();

	CHECK_EQ(1, lin_value(f, LIN));
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1));
	CHECK(!(fix_get(f, entry_at(F_4LEVEL, LIN, 1), 8) & PTE_D));
	st64(f->cpu, LIN, 7);
	CHECK(tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1));
	CHECK(fix_get(f, entry_at(F_4LEVEL, LIN, 1), 8) & PTE_D);
	CHECK_EQ(7, fix_get(f, FRAME, 8));
}

TEST(looking_with_probe_changes_nothing)
{
	struct fixture *f = two_frames();
	gpa_t gpa;

	remap(f, FRAME | PTE_P);
	CHECK(mmu_probe(f->cpu, LIN + 5, &gpa));
	CHECK_EQ(FRAME + 5, gpa);
	CHECK_EQ(FRAME | PTE_P, fix_get(f, entry_at(F_4LEVEL, LIN, 1), 8));
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->rd, LIN), LIN, 1));
}

static void do_cr3(struct fixture *f, const void *arg)
{
	cpu_write_cr3(f->cpu, *(const uint64_t *)arg);
}

static uint32_t write_cr3(struct fixture *f, uint64_t v)
{
	return fixture_try(f, do_cr3, &v);
}

TEST(mov_cr3_keeps_global_pages_only)
{
	struct fixture *f = two_frames();
	gva_t other = LIN + PAGE_SIZE;

	f->cpu->cr4 |= CR4_PGE;
	fix_put(f, entry_at(F_4LEVEL, LIN, 1), 8, FRAME | OPEN_ENTRY | PTE_G);
	fix_put(f, entry_at(F_4LEVEL, other, 1), 8, FRAME | OPEN_ENTRY);
	CHECK_EQ(1, lin_value(f, LIN));
	CHECK_EQ(1, lin_value(f, other));
	CHECK_EQ(0, write_cr3(f, TABLE(4)));
	CHECK(tlb_hit(tlb_slot(f->cpu->tlb->rd, LIN), LIN, 1));
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->rd, other), other, 1));
	tlb_flush_page(f->cpu, LIN);
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->rd, LIN), LIN, 1));
}

TEST(without_pge_no_page_is_global)
{
	struct fixture *f = two_frames();

	remap(f, FRAME | OPEN_ENTRY | PTE_G);
	CHECK_EQ(1, lin_value(f, LIN));
	CHECK_EQ(0, write_cr3(f, TABLE(4)));
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->rd, LIN), LIN, 1));
}

/* --- process contexts ------------------------------------------------------------------------- */

#define NOFLUSH BIT(63)

static bool cached(struct fixture *f)
{
	return tlb_hit(tlb_slot(f->cpu->tlb->rd, LIN), LIN, 1);
}

static struct fixture *with_pcids(void)
{
	struct fixture *f = two_frames();

	f->cpu->cr4 |= CR4_PCIDE | CR4_PGE;
	tlb_flush_all(f->cpu);
	tlb_switch(f->cpu, false);
	return f;
}

TEST(a_context_survives_switches_that_keep_it)
{
	struct fixture *f = with_pcids();

	CHECK_EQ(0, write_cr3(f, TABLE(4) | 1));
	CHECK_EQ(1, lin_value(f, LIN));
	CHECK_EQ(0, write_cr3(f, TABLE(4) | 2));
	CHECK(!cached(f)); /* not global: another context does not see it */
	CHECK_EQ(0, write_cr3(f, TABLE(4) | 1 | NOFLUSH));
	CHECK(cached(f));
	CHECK_EQ(TABLE(4) | 1, f->cpu->cr3);
	CHECK_EQ(0, write_cr3(f, TABLE(4) | 2 | NOFLUSH));
	CHECK_EQ(0, write_cr3(f, TABLE(4) | 1)); /* bit 63 clear: drop what this PCID has */
	CHECK(!cached(f));
}

TEST(more_contexts_than_slots_stay_apart)
{
	struct fixture *f = with_pcids();

	for (unsigned round = 0; round < 3; round++)
		for (uint64_t pcid = 1; pcid <= 3 * TLB_SLOTS; pcid++) {
			remap(f, (pcid & 1 ? FRAME : OTHER) | OPEN_ENTRY);
			CHECK_EQ(0, write_cr3(f, TABLE(4) | pcid));
			CHECK_EQ(pcid & 1 ? 1 : 2, lin_value(f, LIN));
		}
}

TEST(invlpg_reaches_global_pages_of_all_contexts)
{
	struct fixture *f = with_pcids();

	remap(f, FRAME | OPEN_ENTRY | PTE_G);
	for (uint64_t pcid = 1; pcid <= 3; pcid++) {
		CHECK_EQ(0, write_cr3(f, TABLE(4) | pcid | NOFLUSH));
		CHECK_EQ(1, lin_value(f, LIN));
	}
	remap(f, OTHER | OPEN_ENTRY | PTE_G);
	tlb_flush_page(f->cpu, LIN);
	for (uint64_t pcid = 1; pcid <= 3; pcid++) {
		CHECK_EQ(0, write_cr3(f, TABLE(4) | pcid | NOFLUSH));
		CHECK_EQ(2, lin_value(f, LIN));
	}
}

static void load_contexts(struct fixture *f, uint64_t leaf)
{
	remap(f, leaf);
	for (uint64_t pcid = 1; pcid <= 3; pcid++) {
		CHECK_EQ(0, write_cr3(f, TABLE(4) | pcid | NOFLUSH));
		lin_value(f, LIN);
	}
}

static unsigned contexts_cached(struct fixture *f)
{
	unsigned n = 0;

	for (uint64_t pcid = 1; pcid <= 3; pcid++) {
		CHECK_EQ(0, write_cr3(f, TABLE(4) | pcid | NOFLUSH));
		n |= cached(f) ? 1u << pcid : 0;
	}
	return n;
}

TEST(invpcid_drops_what_its_type_says)
{
	// clang-format off
	static const struct { unsigned type, pcid, local, global; } rows[] = {
		{INVPCID_PAGE, 2, 0xa, 0xe},
		{INVPCID_CONTEXT, 2, 0xa, 0xe},
		{INVPCID_ALL, 2, 0, 0},
		{INVPCID_ALL_NONGLOBAL, 2, 0, 0xe},
		{INVPCID_PAGE, 9, 0xe, 0xe},
	};
	// clang-format on

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		struct fixture *f = with_pcids();

		load_contexts(f, FRAME | OPEN_ENTRY);
		CHECK_EQ(0xe, contexts_cached(f));
		tlb_invpcid(f->cpu, rows[i].type, (uint16_t)rows[i].pcid, LIN);
		CHECK_EQ(rows[i].local, contexts_cached(f));
		tlb_flush_all(f->cpu);
		load_contexts(f, FRAME | OPEN_ENTRY | PTE_G);
		tlb_invpcid(f->cpu, rows[i].type, (uint16_t)rows[i].pcid, LIN);
		/* A single-page INVPCID may drop a global translation, but need not. */
		CHECK_EQ(rows[i].global,
			 contexts_cached(f) | (rows[i].type == INVPCID_PAGE ? 0xe : 0));
	}
}

TEST(a_new_pkru_is_obeyed_at_once)
{
	struct fixture *f = two_frames();

	f->cpu->cr4 |= CR4_PKE;
	remap(f, FRAME | OPEN_ENTRY | PTE_D | 3ull << 59);
	f->cpu->cpl = 3;
	tlb_pick(f->cpu);
	st64(f->cpu, LIN, 9);
	cpu_set_pkru(f->cpu, 1 << 6); /* key 3: no access */
	CHECK(!cached(f));
	CHECK_EQ(FAULT(X86_EXC_PF, PF_P | PF_U | PF_PK),
		 translate(f, (struct mmu_access){.lin = LIN, .user = true}).fault);
	cpu_set_pkru(f->cpu, 2 << 6); /* no writes */
	CHECK_EQ(9, lin_value(f, LIN));
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1));
}

TEST(setting_wp_takes_supervisor_writes_back)
{
	struct fixture *f = two_frames();

	remap(f, (FRAME | OPEN_ENTRY | PTE_D) & ~PTE_W);
	st64(f->cpu, LIN, 9);
	CHECK(tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1));
	cpu_write_cr0(f->cpu, f->cpu->cr0 | CR0_WP);
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1));
	CHECK_EQ(FAULT(X86_EXC_PF, PF_P | PF_W),
		 translate(f, (struct mmu_access){.lin = LIN, .write = true}).fault);
}

/* --- accesses --------------------------------------------------------------------------------- */

struct st {
	gva_t lin;
	unsigned size;
	uint64_t v;
};

static void do_store(struct fixture *f, const void *arg)
{
	const struct st *s = arg;

	if (s->size <= 8)
		st_slow(f->cpu, s->lin, s->size, s->v);
	else
		st_bytes(f->cpu, s->lin, fix_ram(f, FIX_CODE), s->size);
}

static uint32_t store(struct fixture *f, gva_t lin, unsigned size, uint64_t v)
{
	struct st s = {lin, size, v};

	return fixture_try(f, do_store, &s);
}

static void do_load(struct fixture *f, const void *arg)
{
	const struct st *s = arg;

	f->cpu->gpr[X86_RAX] = ld_slow(f->cpu, s->lin, s->size);
}

static uint32_t load(struct fixture *f, gva_t lin, unsigned size)
{
	struct st s = {lin, size, 0};

	return fixture_try(f, do_load, &s);
}

static void map_second(struct fixture *f, uint64_t leaf)
{
	fix_put(f, entry_at(F_4LEVEL, LIN + PAGE_SIZE, 1), 8, leaf);
}

TEST(an_access_over_a_page_edge_reaches_both_pages)
{
	struct fixture *f = two_frames();

	map_second(f, SECOND | OPEN_ENTRY);
	CHECK_EQ(0, store(f, LIN + 0xffd, 8, 0x8877665544332211));
	CHECK_EQ(0x332211, fix_get(f, FRAME + 0xffd, 3));
	CHECK_EQ(0x8877665544, fix_get(f, SECOND, 5));
	CHECK_EQ(0x8877665544332211, ld64(f->cpu, LIN + 0xffd));
	CHECK_EQ(0x4433, ld16(f->cpu, LIN + 0xfff));
}

TEST(a_fault_on_the_second_page_writes_nothing_and_names_it)
{
	struct fixture *f = two_frames();
	const unsigned sizes[] = {2, 4, 8, 64, 4096};

	map_second(f, (SECOND | OPEN_ENTRY) & ~PTE_W);
	f->cpu->cr0 |= CR0_WP;
	fix_put(f, FRAME + 0xfff, 1, 0x5a);
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		CHECK_EQ(FAULT(X86_EXC_PF, PF_P | PF_W), store(f, LIN + 0xfff, sizes[i], 0));
		CHECK_EQ(LIN + PAGE_SIZE, f->cpu->fault.cr2);
		CHECK_EQ(0x5a, fix_get(f, FRAME + 0xfff, 1));
	}
}

TEST(a_fault_on_the_first_page_comes_first)
{
	struct fixture *f = two_frames();

	remap(f, 0);
	map_second(f, 0);
	CHECK_EQ(FAULT(X86_EXC_PF, 0), load(f, LIN + 0xffd, 8));
	CHECK_EQ(LIN + 0xffd, f->cpu->fault.cr2);
}

TEST(addresses_wrap_at_4g_outside_64_bit_mode)
{
	struct fixture *f = paged(F_PAE);

	map_page(f, F_PAE, 0xfffff000, FRAME | OPEN_ENTRY);
	map_page(f, F_PAE, 0, OTHER | OPEN_ENTRY);
	/* Two paths through the same tables: the PDPTEs of both are needed. */
	CHECK(mmu_load_pdptes(f->cpu, f->cpu->cr3));
	CHECK_EQ(0, store(f, 0xfffffffe, 4, 0x44332211));
	CHECK_EQ(0x2211, fix_get(f, FRAME + 0xffe, 2));
	CHECK_EQ(0x4433, fix_get(f, OTHER, 2));
}

TEST(non_canonical_addresses_are_gp_or_ss)
{
	// clang-format off
	static const struct { gva_t lin; unsigned size; bool ok48, ok57; } rows[] = {
		{0x00007ffffffffff8, 8, true, true},   {0x00007ffffffffff9, 8, false, true},
		{0x0000800000000000, 1, false, true},  {0xffff800000000000, 1, true, true},
		{0xffff7fffffffffff, 1, false, true},  {0xffff7fffffffffff, 2, false, true},
		{0x00ffffffffffffff, 1, false, true},  {0x00ffffffffffffff, 2, false, false},
		{0x0100000000000000, 1, false, false}, {0xff00000000000000, 1, false, true},
		{0xfeffffffffffffff, 1, false, false}, {0xffffffffffffffff, 1, true, true},
	};
	// clang-format on

	for (unsigned la57 = 0; la57 < 2; la57++) {
		struct fixture *f = paged(la57 ? F_5LEVEL : F_4LEVEL);

		for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
			bool ok = la57 ? rows[i].ok57 : rows[i].ok48;

			f->in.flags = 0;
			f->cpu->in = &f->in;
			CHECK_EQ(ok ? FAULT(X86_EXC_PF, 0) : FAULT(X86_EXC_GP, 0),
				 load(f, rows[i].lin, rows[i].size));
			f->in.flags = INSN_STACK;
			CHECK_EQ(ok ? FAULT(X86_EXC_PF, 0) : FAULT(X86_EXC_SS, 0),
				 load(f, rows[i].lin, rows[i].size));
			f->cpu->in = NULL;
		}
	}
}

static void do_stack(struct fixture *f, const void *arg)
{
	f->cpu->gpr[X86_RAX] = stack_linear(f->cpu, *(const uint64_t *)arg, 8, true);
}

TEST(a_bad_stack_pointer_is_ss)
{
	struct fixture *f = paged(F_4LEVEL);
	const uint64_t good = 0x00007ffffffffff8, bad[] = {good + 1, good + 8, 0xffff7ffffffffff8};

	CHECK_EQ(0, fixture_try(f, do_stack, &good));
	CHECK_EQ(good, f->cpu->gpr[X86_RAX]);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		CHECK_EQ(FAULT(X86_EXC_SS, 0), fixture_try(f, do_stack, &bad[i]));
}

TEST(alignment_is_checked_on_ring_3_with_am_and_ac_only)
{
	struct fixture *f = two_frames();
	struct cpu *cpu = f->cpu;

	for (unsigned n = 0; n < 8; n++) {
		bool all = n == 7;

		cpu->cpl = n & 1 ? 3 : 0;
		cpu->cr0 = (cpu->cr0 & ~CR0_AM) | (n & 2 ? CR0_AM : 0);
		cpu->rflags = (cpu->rflags & ~RFLAGS_AC) | (n & 4 ? RFLAGS_AC : 0);
		cpu_mode_update(cpu);
		lin_value(f, LIN); /* would fill the TLB */
		CHECK_EQ(all ? FAULT(X86_EXC_AC, 0) : 0, load(f, LIN + 1, 2));
		CHECK_EQ(all ? FAULT(X86_EXC_AC, 0) : 0, load(f, LIN + 6, 4));
		CHECK_EQ(all ? FAULT(X86_EXC_AC, 0) : 0, store(f, LIN + 4, 8, 1));
		CHECK_EQ(0, load(f, LIN + 8, 8));
		CHECK_EQ(0, load(f, LIN + 3, 1));
		CHECK_EQ(!all, tlb_hit(tlb_slot(cpu->tlb->rd, LIN), LIN, 1));
	}
}

/* A device that remembers. */
static struct {
	gpa_t gpa[8];
	unsigned size[8], nr;
	uint64_t value;
} device;

static uint64_t device_read(void *opaque, gpa_t gpa, unsigned size)
{
	device.gpa[device.nr % 8] = gpa;
	device.size[device.nr++ % 8] = size;
	return 0x8877665544332211 >> (gpa % 8 * 8);
}

static void device_write(void *opaque, gpa_t gpa, uint64_t value, unsigned size)
{
	device.gpa[device.nr % 8] = gpa;
	device.size[device.nr++ % 8] = size;
	device.value = value;
}

static struct fixture *with_device(void)
{
	struct fixture *f = two_frames();

	f->ops.mmio_read = device_read;
	f->ops.mmio_write = device_write;
	remap(f, 0xfe000000 | OPEN_ENTRY);
	map_second(f, SECOND | OPEN_ENTRY);
	device.nr = 0;
	return f;
}

TEST(a_device_sees_one_access_of_the_size_made)
{
	struct fixture *f = with_device();

	for (unsigned size = 1; size <= 8; size *= 2) {
		CHECK_EQ(0, load(f, LIN + 0x10, size));
		CHECK_EQ(0, store(f, LIN + 0x10, size, 0xabcd));
	}
	CHECK_EQ(8, device.nr);
	for (unsigned i = 0; i < 8; i++) {
		CHECK_EQ(1u << i / 2, device.size[i]);
		CHECK_EQ(0xfe000010, device.gpa[i]);
	}
	CHECK_EQ(0xabcd, device.value);
	CHECK(!cached(f));
}

TEST(an_access_half_in_a_device_is_cut_at_the_edge)
{
	struct fixture *f = with_device();

	fix_put(f, SECOND, 2, 0xbbaa);
	CHECK_EQ(0, load(f, LIN + 0xffa, 8));
	CHECK_EQ(2, device.nr); /* 2 bytes at ffa, 4 at ffc */
	CHECK_EQ(2, device.size[0]);
	CHECK_EQ(4, device.size[1]);
	CHECK_EQ(0xfe000ffc, device.gpa[1]);
	CHECK_EQ(0xbbaa887766554433, f->cpu->gpr[X86_RAX]);
}

static void do_rmw(struct fixture *f, const void *arg)
{
	const struct st *s = arg;
	struct rmw r;

	rmw_begin(f->cpu, &r, s->lin, s->size, s->v);
	*(guest64 *)r.p += 0x0101010101010101;
	rmw_end(f->cpu, &r);
}

static uint32_t rmw(struct fixture *f, gva_t lin, bool lock)
{
	struct st s = {lin, 8, lock};

	return fixture_try(f, do_rmw, &s);
}

TEST(read_modify_write_works_wherever_the_operand_is)
{
	struct fixture *f = two_frames();

	map_second(f, SECOND | OPEN_ENTRY);
	for (unsigned lock = 0; lock < 2; lock++) {
		fix_put(f, FRAME + 0xffc, 4, 0);
		fix_put(f, SECOND, 4, 0);
		fix_put(f, FRAME, 8, 5);
		CHECK_EQ(0, rmw(f, LIN, lock));
		CHECK_EQ(0x0101010101010106, fix_get(f, FRAME, 8));
		CHECK_EQ(0, rmw(f, LIN + 0xffc, lock));
		CHECK_EQ(0x01010101, fix_get(f, FRAME + 0xffc, 4));
		CHECK_EQ(0x01010101, fix_get(f, SECOND, 4));
		CHECK(!f->vm.split_lock);
	}
}

TEST(read_modify_write_faults_as_a_write_before_reading)
{
	struct fixture *f = with_device();

	f->cpu->cr0 |= CR0_WP;
	remap(f, (0xfe000000 | OPEN_ENTRY) & ~PTE_W);
	CHECK_EQ(FAULT(X86_EXC_PF, PF_P | PF_W), rmw(f, LIN, false));
	CHECK_EQ(0, device.nr);
	remap(f, 0xfe000000 | OPEN_ENTRY);
	CHECK_EQ(0, rmw(f, LIN + 8, false));
	CHECK_EQ(2, device.nr);
	CHECK_EQ(0x8978675645342312, device.value);
}

/* --- another CPU at the same tables ----------------------------------------------------------- */

enum { ROUNDS = 1000000, COUNT_SHIFT = 52, COUNT_MASK = 0x7f };

struct changer {
	_Atomic uint64_t *entry;
	_Atomic bool stop;
	_Atomic uint64_t changes;
};

/* Counts in bits 58-52 of the entry, which the CPU ignores. */
static void *change_entry(void *arg)
{
	struct changer *c = arg;

	for (; !atomic_load_explicit(&c->stop, memory_order_relaxed); c->changes++) {
		uint64_t v = atomic_load(c->entry), next, count;

		do {
			count = ((v >> COUNT_SHIFT) + 1) & COUNT_MASK;
			next = (v & ~((uint64_t)COUNT_MASK << COUNT_SHIFT)) | count << COUNT_SHIFT;
		} while (!atomic_compare_exchange_weak(c->entry, &v, next));
	}
	return NULL;
}

TEST(setting_a_and_d_loses_no_change_by_another_cpu)
{
	struct fixture *f = two_frames();
	struct changer c = {.entry = (void *)fix_ram(f, entry_at(F_4LEVEL, LIN, 1))};
	pthread_t other;

	CHECK_EQ(0, pthread_create(&other, NULL, change_entry, &c));
	while (!c.changes)
		sched_yield();
	for (unsigned i = 0; i < ROUNDS; i++) {
		atomic_fetch_and(c.entry, ~(PTE_A | PTE_D));
		tlb_flush_page(f->cpu, LIN);
		st64(f->cpu, LIN, i);
		CHECK_EQ(PTE_A | PTE_D, atomic_load(c.entry) & (PTE_A | PTE_D));
	}
	atomic_store(&c.stop, true);
	pthread_join(other, NULL);
	CHECK_EQ(c.changes & COUNT_MASK, atomic_load(c.entry) >> COUNT_SHIFT & COUNT_MASK);
}

/* --- code pages and dirty pages --------------------------------------------------------------- */

TEST(a_store_to_decoded_code_is_noticed)
{
	struct fixture *f = two_frames();
	struct mem_page *p = mem_page(f->vm.mem, FRAME);
	uint32_t gen;

	st64(f->cpu, LIN, 1);
	CHECK(tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1));
	atomic_store(&p->code_lines, BIT(1));
	tlb_purge_code_writes(f->cpu);
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1));
	CHECK(cached(f)); /* reads go on undisturbed */
	gen = p->gen;
	st64(f->cpu, LIN, 2); /* another line */
	CHECK_EQ(gen, p->gen);
	CHECK(!tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1));
	st64(f->cpu, LIN + 0x40, 2);
	CHECK(p->gen != gen);
	gen = p->gen;
	CHECK_EQ(0, rmw(f, LIN + 0x3c, true)); /* reaches into the line */
	CHECK(p->gen != gen);
}

TEST(a_store_marks_its_page_dirty_while_that_is_tracked)
{
	struct fixture *f = two_frames();
	uint64_t map[FIX_RAM / PAGE_SIZE / 64];
	const unsigned page = FRAME / PAGE_SIZE;

	st64(f->cpu, LIN, 1);
	mem_dirty_track(f->vm.mem, true);
	tlb_flush_writes(f->cpu);
	for (unsigned round = 0; round < 2; round++) {
		CHECK_EQ(0, mem_dirty_fetch(f->vm.mem, 0, FIX_RAM, map));
		CHECK(!(map[page / 64] >> page % 64 & 1));
		tlb_flush_writes(f->cpu);
		st64(f->cpu, LIN, 1);
		CHECK(tlb_hit(tlb_slot(f->cpu->tlb->wr, LIN), LIN, 1)); /* quick again */
		CHECK_EQ(0, mem_dirty_fetch(f->vm.mem, 0, FIX_RAM, map));
		CHECK(map[page / 64] >> page % 64 & 1);
		tlb_flush_writes(f->cpu);
	}
}

TEST(setting_a_and_d_marks_the_table_dirty_too)
{
	struct fixture *f = two_frames();
	uint64_t map[FIX_RAM / PAGE_SIZE / 64];
	const unsigned page = TABLE(1) / PAGE_SIZE;

	mem_dirty_track(f->vm.mem, true);
	st64(f->cpu, LIN, 1);
	CHECK_EQ(0, mem_dirty_fetch(f->vm.mem, 0, FIX_RAM, map));
	CHECK(map[page / 64] >> page % 64 & 1);
}
