/* test_paging32.c - the paging of 32-bit modes: two levels with 4 KiB and 4 MiB pages, and PAE.
 *
 * SDM 3A "32-bit Paging", "PAE Paging", "Page-Fault Exceptions"; AMD APM 2 "Legacy-Mode Page
 * Translation".  As in the 64-bit image, a product of entry bits, control bits and accesses is
 * compared with a model. */
#include "guest.h"

#define PTE_P  BIT(0)
#define PTE_W  BIT(1)
#define PTE_U  BIT(2)
#define PTE_A  BIT(5)
#define PTE_D  BIT(6)
#define PTE_PS BIT(7)
#define PTE_G  BIT(8)
#define PTE_NX BIT(63)
#define OPEN   (PTE_P | PTE_W | PTE_U)

/* Where the tests map things: the last 4 MiB below 1 GiB, beyond memory. */
#define HERE 0x3fc00000u
enum { OFFSET = 0x6b4 };

static u8 *target; /* full of RET */
static u32 *pd, *pt;
static u64 *pdpt, *pae_pd, *pae_pt;

/* --- accesses and the model
 * ------------------------------------------------------------------------
 */
CODE("touch_read: mov 4(%esp), %edx; mov (%edx), %al; ret\n"
     "touch_write: mov 4(%esp), %edx; mov $0xc3, %al; mov %al, (%edx); ret\n"
     "touch_exec: mov 4(%esp), %edx; jmp *%edx\n");
extern char touch_read[], touch_write[], touch_exec[];

enum { READ, WRITE, EXEC };
static const struct access {
	const char *name;
	u8 kind;
	bool user;
	void *code;
} accesses[] = {
	{"user read", READ, true, touch_read},       {"user write", WRITE, true, touch_write},
	{"user fetch", EXEC, true, touch_exec},      {"kernel read", READ, false, touch_read},
	{"kernel write", WRITE, false, touch_write}, {"kernel fetch", EXEC, false, touch_exec},
};

struct control {
	bool wp, nxe, pae;
};

struct rights {
	bool present, reserved, w, u, nx;
};

static int model(const struct rights *r, const struct control *c, const struct access *a)
{
	int err = (a->kind == WRITE ? PF_W : 0) | (a->user ? PF_U : 0);

	if (a->kind == EXEC && c->pae && c->nxe)
		err |= PF_I;
	if (!r->present)
		return err;
	if (r->reserved)
		return err | PF_P | PF_RSVD;
	if ((a->kind == EXEC && r->nx) || (a->user && !r->u) ||
	    (a->kind == WRITE && !r->w && (a->user || c->wp)))
		return err | PF_P;
	return -1;
}

static int do_access(const struct access *a, u32 va)
{
	void (*fn)(void *) = (void (*)(void *))a->code;

	return a->user ? trap_run_user(fn, (void *)va) : trap_run(fn, (void *)va);
}

/* --- tables ------------------------------------------------------------------------------------
 */
static void setup(void)
{
	if (pd)
		return;
	pd = page_alloc();
	pt = page_alloc();
	pdpt = page_alloc();
	pae_pd = page_alloc();
	pae_pt = page_alloc();
	target = page_alloc();
	for (unsigned i = 0; i < 4096; i++)
		target[i] = 0xc3;
	for (u32 i = 0; i < 255; i++)
		pd[i] = i << 22 | PTE_PS | OPEN;
	pd[0xfee00000u >> 22] = (0xfee00000u & 0xffc00000) | PTE_PS | OPEN;
	for (u32 i = 0; i < 510; i++)
		pae_pd[i] = (u64)i << 21 | PTE_PS | OPEN;
	pdpt[0] = (u32)pae_pd | PTE_P;
}

static void paging_on(const struct control *c)
{
	u64 efer = cpu_has(0x80000001, 0, EDX, 20) ? rdmsr(EFER) : 0;

	setup();
	WRITE_CR(0, READ_CR(0) & ~(CR0_PG | CR0_WP));
	WRITE_CR(4, (READ_CR(4) & ~CR4_PAE) | CR4_PSE | (c->pae ? CR4_PAE : 0));
	if (cpu_has(0x80000001, 0, EDX, 20))
		wrmsr(EFER, (efer & ~EFER_NXE) | (c->nxe ? EFER_NXE : 0));
	WRITE_CR(3, c->pae ? (u32)pdpt : (u32)pd);
	WRITE_CR(0, READ_CR(0) | CR0_PG | (c->wp ? CR0_WP : 0));
}

static void paging_off(void)
{
	WRITE_CR(0, READ_CR(0) & ~(CR0_PG | CR0_WP));
	WRITE_CR(4, READ_CR(4) & ~(CR4_PAE | CR4_PSE));
}

/* Map one page, small or large, and say where target's first byte is. */
static u32 map(bool pae, bool large, u64 leaf)
{
	u32 frame = (u32)target, cover = !large ? 0xfff : pae ? 0x1fffff : 0x3fffff;

	if (pae) {
		pae_pd[510] = large ? (frame & ~cover) | PTE_PS | leaf : (u32)pae_pt | OPEN;
		pae_pt[0] = frame | leaf;
	} else {
		pd[255] = large ? (frame & ~cover) | PTE_PS | leaf : (u32)pt | OPEN;
		pt[0] = frame | leaf;
	}
	invlpg((void *)(HERE + (large ? frame & cover : 0)));
	return HERE + (large ? frame & cover : 0);
}

static u64 leaf_now(bool pae, bool large)
{
	return pae ? large ? pae_pd[510] : pae_pt[0] : large ? pd[255] : pt[0];
}

/* --- the products ------------------------------------------------------------------------------
 */
static void check_leaf(bool large, u64 leaf, bool reserved, const struct control *c,
		       const struct access *a)
{
	struct rights r = {
		.present = leaf & PTE_P,
		.reserved = reserved || (leaf & PTE_NX && !c->nxe),
		.w = leaf & PTE_W,
		.u = leaf & PTE_U,
		.nx = leaf & PTE_NX,
	};
	int err = model(&r, c, a), got;
	u32 va = map(c->pae, large, leaf) + OFFSET;
	u64 ad = err < 0 ? PTE_A | (a->kind == WRITE ? PTE_D : 0) : 0, mask = PTE_D;

	got = do_access(a, va);
#define ROW                                                                                        \
	guest_name("%s of %s leaf 0x%llx, PAE%d WP%d NXE%d", a->name, large ? "large" : "small",   \
		   (unsigned long long)leaf, c->pae, c->wp, c->nxe)
	if (!CHECK_ROW(ROW, err < 0 ? NONE : PF, got))
		return;
	if (err >= 0) {
		CHECK_ROW(ROW, err, trap_last()->error);
		CHECK_ROW(ROW, va, trap_last()->cr2);
	} else {
		mask |= PTE_A;
	}
	CHECK_ROW(ROW, (leaf | ad) & mask, leaf_now(c->pae, large) & mask);
#undef ROW
}

static void check_leaves(bool large, u64 reserved, const struct control *c)
{
	paging_on(c);
	for (unsigned n = 0; n < (c->pae ? 64 : 32); n++) {
		u64 leaf = (n & 1 ? PTE_P : 0) | (n & 2 ? PTE_W : 0) | (n & 4 ? PTE_U : 0) |
			   (n & 8 ? PTE_A : 0) | (n & 16 ? PTE_D : 0) | (n & 32 ? PTE_NX : 0);

		for (unsigned i = 0; i < ARRAY_SIZE(accesses); i++)
			check_leaf(large, leaf | reserved, reserved, c, &accesses[i]);
	}
	paging_off();
}

TEST(two_level_paging_follows_the_model)
{
	for (unsigned n = 0; n < 8; n++)
		check_leaves(n & 4, 0, &(struct control){.wp = n & 1, .nxe = n & 2});
}

TEST(pae_paging_follows_the_model)
{
	for (unsigned n = 0; n < 8; n++)
		check_leaves(n & 4, 0, &(struct control){.wp = n & 1, .nxe = n & 2, .pae = true});
}

TEST(reserved_bits_of_large_pages)
{
	/* 4 MiB: bit 21; above it PSE-36 takes bits 13 to 20 */
	check_leaves(true, BIT(21), &(struct control){.wp = true});
	check_leaves(true, BIT(13), &(struct control){.wp = true, .nxe = true, .pae = true});
	check_leaves(false, BIT(62), &(struct control){.wp = true, .nxe = true, .pae = true});
}

/* --- details -----------------------------------------------------------------------------------
 */
static bool reads(u32 va)
{
	return do_access(&accesses[3], va) == NONE;
}

TEST(without_pse_the_ps_bit_is_ignored)
{
	static const struct control usual = {.wp = true};

	paging_off();
	setup();
	map(false, false, OPEN);
	/* all that runs here needs small pages then */
	for (u32 i = 0; i < 2; i++) {
		u32 *table = page_alloc();

		for (u32 k = 0; k < 1024; k++)
			table[k] = i << 22 | k << 12 | OPEN;
		pd[i] = (u32)table | PTE_PS | OPEN;
	}
	pd[255] |= PTE_PS;
	WRITE_CR(4, READ_CR(4) & ~(CR4_PAE | CR4_PSE));
	WRITE_CR(3, pd);
	WRITE_CR(0, READ_CR(0) | CR0_PG);
	CHECK(reads(HERE + OFFSET));
	CHECK_EQ(0xc3, *(volatile u8 *)(HERE + OFFSET));
	paging_off();
	for (u32 i = 0; i < 2; i++)
		pd[i] = i << 22 | PTE_PS | OPEN;
	paging_on(&usual);
	CHECK(reads(0x200000));
	paging_off();
}

static void write_cr3(void *v)
{
	WRITE_CR(3, v);
}

static const struct {
	const char *name;
	u64 entry;
	int vector;
} pdpte_rows[] = {
	{"present", PTE_P, NONE},
	{"PWT and PCD", PTE_P | 0x18, NONE},
	{"available bits", PTE_P | 0xe00, NONE},
	{"bit 1", PTE_P | BIT(1), GP},
	{"bit 2", PTE_P | BIT(2), GP},
	{"bit 5", PTE_P | BIT(5), GP},
	{"bit 8", PTE_P | BIT(8), GP},
	{"bit 63", PTE_P | BIT(63), GP},
	{"bit 62", PTE_P | BIT(62), GP},
	{"not present, all other bits set", ~1ull, NONE},
};

/* The four entries are checked and taken when CR3 is loaded (SDM 3A "PDPTE Registers"). */
TEST(pae_checks_the_pointer_table_at_mov_cr3)
{
	paging_on(&(struct control){.wp = true, .nxe = true, .pae = true});
	for (unsigned i = 0; i < ARRAY_SIZE(pdpte_rows); i++)
		for (unsigned n = 1; n < 4; n++) {
			u64 entry = pdpte_rows[i].entry;

			pdpt[n] = entry & 1 ? entry | (u32)pae_pd : entry;
			CHECK_ROW(guest_name("%s, entry %u", pdpte_rows[i].name, n),
				  pdpte_rows[i].vector, trap_run(write_cr3, pdpt));
			pdpt[n] = 0;
		}
	WRITE_CR(3, pdpt);
	paging_off();
}

static void set_pg(void *arg)
{
	WRITE_CR(0, READ_CR(0) | CR0_PG);
}

TEST(pae_checks_the_pointer_table_when_paging_starts)
{
	paging_on(&(struct control){.pae = true});
	WRITE_CR(0, READ_CR(0) & ~CR0_PG);
	pdpt[3] = (u32)pae_pd | PTE_P | PTE_W;
	CHECK_EQ(GP, trap_run(set_pg, NULL));
	CHECK_EQ(0, READ_CR(0) & CR0_PG);
	pdpt[3] = 0;
	CHECK_EQ(NONE, trap_run(set_pg, NULL));
	paging_off();
}

/* A table with its first entry missing is fine to load; Intel keeps the entries in registers until
 * the next load, AMD reads them from memory when it walks (APM 2 "PAE Paging"). */
TEST(a_missing_pointer_entry_is_a_page_fault)
{
	paging_on(&(struct control){.wp = true, .nxe = true, .pae = true});
	CHECK_EQ(PF, do_access(&accesses[1], 0x40000000 + OFFSET));
	CHECK_EQ(PF_W | PF_U, trap_last()->error);
	CHECK_EQ(0x40000000 + OFFSET, trap_last()->cr2);
	pdpt[1] = (u32)pae_pd | PTE_P;
	WRITE_CR(3, pdpt);
	CHECK(reads(0x40200000));
	pdpt[1] = 0;
	WRITE_CR(3, pdpt);
	CHECK(!reads(0x40200000));
	paging_off();
}

/* The rights of PDPTEs: there are none. */
TEST(rights_of_directory_and_table_are_combined)
{
	static const struct control c = {.wp = true, .nxe = true, .pae = true};

	paging_on(&c);
	for (unsigned n = 0; n < 64; n++) {
		u64 upper =
			PTE_P | (n & 1 ? PTE_W : 0) | (n & 2 ? PTE_U : 0) | (n & 4 ? PTE_NX : 0);
		u64 lower =
			PTE_P | (n & 8 ? PTE_W : 0) | (n & 16 ? PTE_U : 0) | (n & 32 ? PTE_NX : 0);
		struct rights r = {
			.present = true,
			.w = upper & lower & PTE_W,
			.u = upper & lower & PTE_U,
			.nx = (upper | lower) & PTE_NX,
		};

		for (unsigned i = 0; i < ARRAY_SIZE(accesses); i++) {
			int err = model(&r, &c, &accesses[i]), got;

			map(true, false, lower);
			pae_pd[510] = (u32)pae_pt | upper;
			invlpg((void *)HERE);
			got = do_access(&accesses[i], HERE);
			CHECK_ROW(guest_name("%s, case 0x%x", accesses[i].name, n),
				  err < 0 ? NONE : PF, got);
			if (got == PF)
				CHECK_ROW(accesses[i].name, err, trap_last()->error);
		}
	}
	paging_off();
}

/* Changing the kind of paging flushes: the same address means another page at once. */
TEST(two_kinds_of_paging_in_turn)
{
	u8 *other = page_alloc();

	setup();
	*other = 0x77;
	for (unsigned i = 0; i < 4; i++) {
		struct control c = {.wp = true, .pae = i & 1};

		paging_on(&c);
		map(c.pae, false, OPEN);
		if (c.pae)
			pae_pt[0] = (u32)other | OPEN;
		invlpg((void *)HERE);
		CHECK_ROW(guest_name("round %u", i), c.pae ? 0x77 : 0xc3, *(volatile u8 *)HERE);
		paging_off();
	}
}

/* A CR4 bit that belongs to the kind of paging cannot change while a bad table is in place. */
static void set_pae(void *arg)
{
	WRITE_CR(4, READ_CR(4) | CR4_PAE);
}

TEST(turning_pae_on_under_paging_loads_the_pointer_table)
{
	paging_on(&(struct control){.wp = true});
	/* read as PDPTEs the directory's first entries have bits 1 and 2 set */
	CHECK_EQ(GP, trap_run(set_pae, NULL));
	CHECK_EQ(0, READ_CR(4) & CR4_PAE);
	paging_off();
}

/* Below 64-bit mode addresses wrap at 4 GiB. */
TEST(linear_addresses_wrap_at_4_gib)
{
	u8 *low = page_alloc(), *high = page_alloc();
	u32 *first = page_alloc(), *last = page_alloc(), v;

	paging_on(&(struct control){.wp = true});
	for (u32 k = 0; k < 1024; k++)
		first[k] = k << 12 | OPEN;
	first[0] = (u32)low | OPEN;
	last[1023] = (u32)high | OPEN;
	pd[0] = (u32)first | OPEN;
	pd[1023] = (u32)last | OPEN;
	WRITE_CR(3, pd);
	*(u16 *)(high + 4094) = 0x2211;
	*(u16 *)low = 0x4433;
	/* a segment that begins at 4 GiB - 2, so that no offset wraps */
	gdt[SEL_TEST / 8] = seg_desc(0xfffffffe, 0xfffff, 0x13, 0, true, SEG_G | SEG_DB);
	asm volatile("mov %1, %%fs; mov %%fs:0, %0" : "=r"(v) : "r"(SEL_TEST));
	CHECK_EQ(0x44332211, v);
	asm volatile("mov %0, %%fs" : : "r"(SEL_DATA));
	paging_off();
	pd[0] = PTE_PS | OPEN;
	pd[1023] = 0;
}
