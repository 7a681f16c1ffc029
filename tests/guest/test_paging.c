/* test_paging.c - page faults, access and dirty bits, and what has to leave the TLB.
 *
 * The product tests run every combination of entry bits, control bits and accesses and compare
 * with a model written from SDM 3A "Access Rights", "Page-Fault Exceptions", "Accessed and Dirty
 * Flags" (AMD APM 2 "Page-Protection Checks" and "Page-Fault Exception" say the same).
 *
 * The identity mapping is made supervisor-only here, because SMEP and SMAP forbid ring 0 the use of
 * user pages; ring 3 runs from an alias of it. */
#include "guest.h"

#define PTE_P      BIT(0)
#define PTE_W      BIT(1)
#define PTE_U      BIT(2)
#define PTE_A      BIT(5)
#define PTE_D      BIT(6)
#define PTE_PS     BIT(7)
#define PTE_G      BIT(8)
#define PTE_NX     BIT(63)
#define PTE_KEY(n) ((u64)(n) << 59)
#define PTE_OPEN   (PTE_P | PTE_W | PTE_U)
#define FRAME      0x000ffffffffff000ull

#define ALIAS (1ull << 39) /* ring 3's view of low memory */
#define HERE  (2ull << 39) /* where the tests map things */
enum { OFFSET = 0x7b3 };

static u64 *pdpt, *pd, *pt;
static u8 *target; /* the page that is mapped, full of RET */

/* --- accesses ----------------------------------------------------------------------------------
 */
extern char touch_read[], touch_write[], touch_exec[];
extern char touch_read_ac[], touch_write_ac[], touch_exec_ac[];
CODE("touch_read: mov (%rdi), %al; ret\n"
     "touch_write: mov $0xc3, %al; mov %al, (%rdi); ret\n"
     "touch_exec: jmp *%rdi\n"
     ".macro with_ac target\n"
     "	pushfq; pushfq; orl $0x40000, (%rsp); popfq\n"
     "	call \\target\n"
     "	popfq; ret\n"
     ".endm\n"
     "touch_read_ac: with_ac touch_read\n"
     "touch_write_ac: with_ac touch_write\n"
     "touch_exec_ac: with_ac touch_exec\n");

enum { READ, WRITE, EXEC };
static const struct access {
	const char *name;
	u8 kind;
	bool user, ac;
	void *code;
} accesses[] = {
	{"user read", READ, true, false, touch_read},
	{"user write", WRITE, true, false, touch_write},
	{"user fetch", EXEC, true, false, touch_exec},
	{"kernel read", READ, false, false, touch_read},
	{"kernel write", WRITE, false, false, touch_write},
	{"kernel fetch", EXEC, false, false, touch_exec},
	{"kernel read, AC=1", READ, false, true, touch_read_ac},
	{"kernel write, AC=1", WRITE, false, true, touch_write_ac},
	{"kernel fetch, AC=1", EXEC, false, true, touch_exec_ac},
};

static int do_access(const struct access *a, u64 va)
{
	void (*fn)(void *) = (void (*)(void *))a->code;

	return a->user ? trap_run_user(fn, (void *)va) : trap_run(fn, (void *)va);
}

/* --- the model ---------------------------------------------------------------------------------
 */
struct control {
	bool wp, smep, smap, pke, nxe;
};

/* What all entries of a translation say together. */
struct rights {
	bool present, reserved, w, u, nx;
	u8 key;
};

enum { KEY_OPEN, KEY_NO_ACCESS, KEY_NO_WRITE, NR_KEYS };
enum { PKRU = 1 << 2 | 2 << 4 }; /* AD of key 1, WD of key 2 */

static bool key_refuses(const struct rights *r, const struct control *c, const struct access *a)
{
	if (!c->pke || !r->u || a->kind == EXEC)
		return false;
	return r->key == KEY_NO_ACCESS ||
	       (r->key == KEY_NO_WRITE && a->kind == WRITE && (a->user || c->wp));
}

static bool rights_refuse(const struct rights *r, const struct control *c, const struct access *a)
{
	if (a->kind == EXEC && r->nx)
		return true;
	if (a->user)
		return !r->u || (a->kind == WRITE && !r->w);
	if (r->u && (a->kind == EXEC ? c->smep : c->smap && !a->ac))
		return true;
	return a->kind == WRITE && !r->w && c->wp;
}

/* The error code, or -1 when the access is allowed. */
static int model(const struct rights *r, const struct control *c, const struct access *a)
{
	int err = (a->kind == WRITE ? PF_W : 0) | (a->user ? PF_U : 0);
	bool key = key_refuses(r, c, a);

	if (a->kind == EXEC && (c->nxe || c->smep))
		err |= PF_I;
	if (!r->present)
		return err;
	if (r->reserved)
		return err | PF_P | PF_RSVD;
	if (!key && !rights_refuse(r, c, a))
		return -1;
	return err | PF_P | (key ? PF_PK : 0);
}

/* --- setting up --------------------------------------------------------------------------------
 */
static void set_control(const struct control *c)
{
	u64 cr0 = READ_CR(0) & ~CR0_WP, cr4 = READ_CR(4) & ~(CR4_SMEP | CR4_SMAP | CR4_PKE);
	u64 efer = rdmsr(EFER) & ~EFER_NXE;

	WRITE_CR(0, cr0 | (c->wp ? CR0_WP : 0));
	WRITE_CR(4, cr4 | (c->smep ? CR4_SMEP : 0) | (c->smap ? CR4_SMAP : 0) |
			    (c->pke ? CR4_PKE : 0));
	wrmsr(EFER, efer | (c->nxe ? EFER_NXE : 0));
	if (c->pke)
		asm volatile("wrpkru" : : "a"(PKRU), "c"(0), "d"(0));
}

static const struct control usual = {.wp = true, .nxe = true};

static bool control_possible(const struct control *c)
{
	return (!c->smep || HAS_SMEP) && (!c->smap || HAS_SMAP) && (!c->pke || HAS_PKU);
}

static void setup(void)
{
	u64 *alias_pdpt = page_alloc(), *alias_pd = page_alloc();

	if (pt)
		return;
	pdpt = page_alloc();
	pd = page_alloc();
	pt = page_alloc();
	target = page_alloc();
	for (unsigned i = 0; i < 4096; i++)
		target[i] = 0xc3;
	for (unsigned i = 0; i < 512; i++)
		alias_pd[i] = boot_pd[i];
	alias_pdpt[0] = (u64)alias_pd | PTE_OPEN;
	boot_pml4[ALIAS >> 39] = (u64)alias_pdpt | PTE_OPEN;
	for (unsigned i = 0; i < 2048; i++)
		boot_pd[i] &= ~PTE_U;
	guest_user_base = ALIAS;
	WRITE_CR(3, READ_CR(3));
}

/* Map `leaf` at HERE, by a page table (level 0), as 2 MiB (1) or 1 GiB (2); returns the address
 * of target's first byte.  The upper entries allow everything. */
static u64 map(unsigned level, u64 leaf, u64 **entry)
{
	u64 frame = (u64)target & FRAME, cover = BIT(12 + 9 * level) - 1;

	boot_pml4[HERE >> 39] = (u64)pdpt | PTE_OPEN;
	pdpt[0] = (u64)pd | PTE_OPEN;
	pd[0] = (u64)pt | PTE_OPEN;
	*entry = level == 2 ? pdpt : level == 1 ? pd : pt;
	**entry = (frame & ~cover) | (level ? PTE_PS : 0) | leaf;
	invlpg((void *)(HERE + (frame & cover)));
	return HERE + (frame & cover);
}

/* --- the product over one leaf entry -----------------------------------------------------------
 */
static const char *row_name(u64 leaf, const struct control *c, const struct access *a)
{
	return guest_name("%s of P%d W%d U%d A%d D%d NX%d key%d rest 0x%lx, "
			  "WP%d SMEP%d SMAP%d PKE%d NXE%d",
			  a->name, !!(leaf & PTE_P), !!(leaf & PTE_W), !!(leaf & PTE_U),
			  !!(leaf & PTE_A), !!(leaf & PTE_D), !!(leaf & PTE_NX),
			  (int)(leaf >> 59 & 15), leaf & 0x7fffffffffff98, c->wp, c->smep, c->smap,
			  c->pke, c->nxe);
}

/* A and D as they have to be afterwards.  For a refused access only D is certain: the manuals let a
 * CPU set A and refuse then. */
static u64 leaf_after(u64 leaf, const struct access *a, bool refused)
{
	if (refused)
		return leaf;
	return leaf | PTE_A | (a->kind == WRITE ? PTE_D : 0);
}

static void check_leaf(unsigned level, u64 leaf, bool reserved, const struct control *c,
		       const struct access *a)
{
	struct rights r = {
		.present = leaf & PTE_P,
		.reserved = reserved || (leaf & PTE_NX && !c->nxe),
		.w = leaf & PTE_W,
		.u = leaf & PTE_U,
		.nx = leaf & PTE_NX,
		.key = leaf >> 59 & 15,
	};
	int err = model(&r, c, a), vector;
	u64 *entry, va = map(level, leaf, &entry) + OFFSET, ad = PTE_A | PTE_D;

	vector = do_access(a, va);
	if (!CHECK_ROW(row_name(leaf, c, a), err < 0 ? NONE : PF, vector))
		return;
	if (err >= 0) {
		CHECK_ROW(row_name(leaf, c, a), err, trap_last()->error);
		CHECK_ROW(row_name(leaf, c, a), va, trap_last()->cr2);
		ad = PTE_D;
	}
	CHECK_ROW(row_name(leaf, c, a), leaf_after(leaf, a, err >= 0) & ad, *entry & ad);
}

static u64 leaf_bits(unsigned n)
{
	return (n & 1 ? PTE_P : 0) | (n & 2 ? PTE_W : 0) | (n & 4 ? PTE_U : 0) |
	       (n & 8 ? PTE_NX : 0) | (n & 16 ? PTE_A : 0) | (n & 32 ? PTE_D : 0);
}

static void check_leaves(unsigned level, u64 reserved, const struct control *c)
{
	unsigned nr_keys = c->pke ? NR_KEYS : 1;

	set_control(c);
	for (unsigned n = 0; n < 64 * nr_keys; n++)
		for (unsigned i = 0; i < ARRAY_SIZE(accesses); i++)
			check_leaf(level, leaf_bits(n % 64) | PTE_KEY(n / 64) | reserved, reserved,
				   c, &accesses[i]);
	set_control(&usual);
}

static void check_product(unsigned level, u64 reserved)
{
	for (unsigned n = 0; n < 32; n++) {
		struct control c = {n & 1, n & 2, n & 4, n & 8, n & 16};

		if (control_possible(&c))
			check_leaves(level, reserved, &c);
	}
}

TEST(faults_of_4_kib_pages_follow_the_model)
{
	setup();
	check_product(0, 0);
}

TEST(faults_of_2_mib_pages_follow_the_model)
{
	setup();
	check_product(1, 0);
}

TEST(faults_of_1_gib_pages_follow_the_model)
{
	if (!HAS_1GIB) {
		guest_skip("no 1 GiB pages");
		return;
	}
	setup();
	check_product(2, 0);
}

TEST(reserved_bits_come_before_rights)
{
	const struct control all = {true, true, true, HAS_PKU, true};

	setup();
	if (!HAS_SMAP || !HAS_SMEP) {
		guest_skip("no SMEP or SMAP");
		return;
	}
	check_leaves(1, BIT(13), &all);
	check_leaves(1, BIT(20), &usual);
	if (HAS_1GIB)
		check_leaves(2, BIT(29), &all);
	if (cpu_phys_bits() < 52)
		for (unsigned level = 0; level < 2; level++)
			check_leaves(level, BIT(51), &all);
}

/* --- rights of several levels ------------------------------------------------------------------
 */
static u64 *entries[4]; /* of the page table, directory, pointer table, PML4 */

static u64 level_bits(unsigned n, unsigned level)
{
	n >>= 3 * level;
	return PTE_P | (n & 1 ? 0 : PTE_W) | (n & 2 ? 0 : PTE_U) | (n & 4 ? PTE_NX : 0);
}

static void check_levels(unsigned n, const struct control *c)
{
	struct rights r = {.present = true, .w = true, .u = true};
	u64 base[4], *entry;

	map(0, PTE_OPEN, &entry);
	for (unsigned level = 0; level < 4; level++) {
		u64 bits = level_bits(n, level);

		base[level] = *entries[level] & FRAME;
		*entries[level] = base[level] | bits;
		r.w &= !!(bits & PTE_W);
		r.u &= !!(bits & PTE_U);
		r.nx |= !!(bits & PTE_NX);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(accesses); i++) {
		int err = model(&r, c, &accesses[i]), vector;

		invlpg((void *)HERE);
		vector = do_access(&accesses[i], HERE);
		CHECK_ROW(guest_name("%s, levels 0%x (3 bits each: read-only, kernel, NX)",
				     accesses[i].name, n),
			  err < 0 ? NONE : PF, vector);
		if (vector == PF)
			CHECK_ROW(accesses[i].name, err, trap_last()->error);
	}
}

static void setup_levels(void)
{
	setup();
	entries[0] = pt;
	entries[1] = pd;
	entries[2] = pdpt;
	entries[3] = &boot_pml4[HERE >> 39];
}

TEST(rights_of_all_levels_are_combined)
{
	static const struct control strict = {true, true, true, false, true};

	setup_levels();
	set_control(HAS_SMAP && HAS_SMEP ? &strict : &usual);
	for (unsigned n = 0; n < 4096; n += 1)
		check_levels(n, HAS_SMAP && HAS_SMEP ? &strict : &usual);
	set_control(&usual);
}

/* Entry bits at one level; what a user's write says then.  With all else allowed. */
static const struct walk_row {
	const char *name;
	u8 level;
	u64 set, clear;
	int err; /* -1: fine */
} walk_rows[] = {
	{"PML4E not present", 3, 0, PTE_P, PF_W | PF_U},
	{"PDPTE not present", 2, 0, PTE_P, PF_W | PF_U},
	{"PDE not present", 1, 0, PTE_P, PF_W | PF_U},
	{"PTE not present", 0, 0, PTE_P, PF_W | PF_U},
	{"PML4E not present, NX", 3, PTE_NX, PTE_P, PF_W | PF_U},
	{"PML4E with PS", 3, PTE_PS, 0, PF_P | PF_W | PF_U | PF_RSVD},
	{"PML4E with PS, not present", 3, PTE_PS, PTE_P, PF_W | PF_U},
	{"PTE with PAT", 0, PTE_PS, 0, -1},
	{"PTE with PWT and PCD", 0, BIT(3) | BIT(4), 0, -1},
	{"PTE ignored bits 9 to 11", 0, BIT(9) | BIT(10) | BIT(11), 0, -1},
	{"PTE ignored bits 52 to 58", 0, 0x7full << 52, 0, -1},
	{"PTE key bits without PKE", 0, 0xfull << 59, 0, -1},
	{"PDE ignored bits 52 to 62", 1, 0x7ffull << 52, 0, -1},
	{"PDPTE ignored bits 52 to 62", 2, 0x7ffull << 52, 0, -1},
	{"PML4E ignored bits 52 to 62", 3, 0x7ffull << 52, 0, -1},
	{"PDE ignored bits 6 and 8 to 11", 1, BIT(6) | 0xfull << 8, 0, -1},
	{"PDPTE ignored bits 6 and 9 to 11", 2, BIT(6) | 7ull << 9, 0, -1},
	{"PML4E ignored bits 6 and 9 to 11", 3, BIT(6) | 7ull << 9, 0, -1},
	{"PTE global", 0, PTE_G, 0, -1},
};

TEST(bits_of_each_level_mean_what_they_should)
{
	setup_levels();
	for (unsigned i = 0; i < ARRAY_SIZE(walk_rows); i++) {
		const struct walk_row *r = &walk_rows[i];
		u64 *entry;

		map(0, PTE_OPEN, &entry);
		*entries[r->level] = (*entries[r->level] | r->set) & ~r->clear;
		invlpg((void *)HERE);
		CHECK_ROW(r->name, r->err < 0 ? NONE : PF, do_access(&accesses[1], HERE + OFFSET));
		if (r->err >= 0)
			CHECK_ROW(r->name, r->err, trap_last()->error);
	}
}

/* The walk stops at the first entry that is not present or has a reserved bit set: what lies
 * below is not looked at, and rights come last. */
TEST(the_first_bad_level_decides)
{
	u64 *entry;

	setup_levels();
	map(0, PTE_OPEN, &entry);
	pd[0] = PTE_W; /* not present, and what it points to is rubbish */
	boot_pml4[HERE >> 39] &= ~PTE_U;
	invlpg((void *)HERE);
	CHECK_EQ(PF, do_access(&accesses[0], HERE));
	CHECK_EQ(PF_U, trap_last()->error);

	map(0, PTE_OPEN, &entry);
	boot_pml4[HERE >> 39] |= PTE_PS;
	pd[0] = 0;
	invlpg((void *)HERE);
	CHECK_EQ(PF, do_access(&accesses[0], HERE));
	CHECK_EQ(PF_U | PF_P | PF_RSVD, trap_last()->error);
}

TEST(accessed_is_set_at_all_levels_and_dirty_at_the_leaf)
{
	setup_levels();
	for (unsigned write = 0; write < 2; write++) {
		u64 *entry;

		map(0, PTE_OPEN, &entry);
		CHECK_EQ(NONE, do_access(&accesses[write], HERE));
		for (unsigned level = 0; level < 4; level++)
			CHECK_ROW(guest_name("level %u, write %u", level, write),
				  PTE_OPEN | PTE_A | (write && !level ? PTE_D : 0),
				  *entries[level] & 0xfff);
	}
}

/* A cached translation of a clean page must not let a write pass without setting D. */
TEST(a_write_after_a_read_sets_dirty)
{
	u64 *entry;

	setup();
	for (unsigned level = 0; level < 2; level++) {
		u64 va = map(level, PTE_OPEN, &entry);

		do_access(&accesses[0], va);
		CHECK_EQ(PTE_A, *entry & (PTE_A | PTE_D));
		do_access(&accesses[1], va);
		CHECK_EQ(PTE_A | PTE_D, *entry & (PTE_A | PTE_D));
	}
}

/* --- accesses that cross pages -----------------------------------------------------------------
 */
static void write_8(void *p)
{
	*(volatile u64 *)p = 0x1122334455667788;
}

static void add_8_locked(void *p)
{
	asm volatile("lock addq $1, (%0)" : : "r"(p) : "memory");
}

static void push_8(void *p)
{
	asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; pushq $-1; mov %%rbx, %%rsp"
		     :
		     : "r"(p)
		     : "rbx", "memory");
}

TEST(a_write_across_pages_is_all_or_nothing)
{
	static const struct {
		const char *name;
		void (*fn)(void *);
		int at; /* added to the page edge */
	} rows[] = {
		{"store", write_8, -4},
		{"locked add", add_8_locked, -4},
		{"push", push_8, 4},
	};
	u8 *second = page_alloc();
	u64 *entry, edge = HERE + 4096;

	setup();
	trap_on_ist(true);
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		void *at = (void *)(edge + rows[i].at);

		map(0, PTE_OPEN, &entry);
		pt[1] = (u64)second | PTE_OPEN; /* fine */
		invlpg((void *)edge);
		CHECK_ROW(rows[i].name, NONE, trap_run(rows[i].fn, at));
		*(u64 *)(target + 4088) = *(u64 *)second = 0;

		pt[1] = (u64)second | PTE_P; /* second read-only */
		invlpg((void *)edge);
		CHECK_ROW(rows[i].name, PF, trap_run(rows[i].fn, at));
		CHECK_ROW(rows[i].name, edge, trap_last()->cr2);
		CHECK_ROW(rows[i].name, PF_P | PF_W, trap_last()->error);
		CHECK_ROW(rows[i].name, 0, *(u64 *)(target + 4088));

		pt[0] &= ~PTE_P; /* first missing */
		invlpg((void *)HERE);
		CHECK_ROW(rows[i].name, PF, trap_run(rows[i].fn, at));
		CHECK_ROW(rows[i].name, edge - 4, trap_last()->cr2);
		CHECK_ROW(rows[i].name, PF_W, trap_last()->error);
	}
	trap_on_ist(false);
	for (unsigned i = 0; i < 4096; i++)
		target[i] = 0xc3;
}

/* --- implicit accesses -------------------------------------------------------------------------
 */
extern char load_es[], load_es_ac[];
CODE("load_es: mov %edi, %eax; mov %ax, %es; ret\n"
     "load_es_ac: with_ac load_es\n");

enum { SEL_LDT = SEL_TEST, LDT_ENTRY = 4 };

static void load_ldt(u64 base)
{
	u64 *d = &gdt[SEL_LDT / 8];

	d[0] = seg_desc((u32)base, 0xfff, 2, 0, true, 0);
	d[1] = base >> 32;
	asm volatile("lldt %w0" : : "r"(SEL_LDT));
}

/* Reading a descriptor is a supervisor's access even when ring 3 loads the register, and SMAP
 * holds for it whatever AC says (SDM 3A "Access Rights": implicit supervisor-mode accesses). */
static const struct ldt_row {
	const char *name;
	void *code;
	bool user;
	u64 leaf, type; /* of the LDT's page, of its descriptor */
	bool smap;
	int err; /* -1: fine */
} ldt_rows[] = {
	{"kernel page, ring 0", load_es, false, PTE_P | PTE_W, 0x13, true, -1},
	{"kernel page, ring 3", load_es, true, PTE_P | PTE_W, 0x13, true, -1},
	{"user page, no SMAP, ring 0", load_es, false, PTE_OPEN, 0x13, false, -1},
	{"user page, no SMAP, ring 3", load_es, true, PTE_OPEN, 0x13, false, -1},
	{"user page, SMAP, ring 0", load_es, false, PTE_OPEN, 0x13, true, PF_P},
	{"user page, SMAP, AC, ring 0", load_es_ac, false, PTE_OPEN, 0x13, true, PF_P},
	{"user page, SMAP, ring 3", load_es, true, PTE_OPEN, 0x13, true, PF_P},
	{"user page, SMAP, AC, ring 3", load_es_ac, true, PTE_OPEN, 0x13, true, PF_P},
	{"page missing, ring 3", load_es, true, PTE_W, 0x13, false, 0},
	{"read-only, accessed, ring 3", load_es, true, PTE_P, 0x13, false, -1},
	{"read-only, to be accessed, ring 3", load_es, true, PTE_P, 0x12, false, PF_P | PF_W},
	{"read-only, to be accessed, ring 0", load_es, false, PTE_P, 0x12, false, PF_P | PF_W},
};

TEST(descriptor_reads_are_implicit_supervisor_accesses)
{
	setup();
	for (unsigned i = 0; i < ARRAY_SIZE(ldt_rows); i++) {
		const struct ldt_row *r = &ldt_rows[i];
		void (*fn)(void *) = (void (*)(void *))r->code;
		void *sel = (void *)(u64)(LDT_ENTRY * 8 + 4 + 3);
		u64 *entry;
		int got;

		if (r->smap && !HAS_SMAP)
			continue;
		((u64 *)target)[LDT_ENTRY] = seg_desc(0, 0xfffff, r->type, 3, true, SEG_G | SEG_DB);
		load_ldt(map(0, r->leaf, &entry));
		set_control(&(struct control){.wp = true, .smap = r->smap, .nxe = true});
		got = r->user ? trap_run_user(fn, sel) : trap_run(fn, sel);
		set_control(&usual);
		asm volatile("mov %w0, %%es" : : "r"(SEL_DATA));
		CHECK_ROW(r->name, r->err < 0 ? NONE : PF, got);
		if (r->err >= 0) {
			CHECK_ROW(r->name, r->err, trap_last()->error);
			/* Which of its bytes: setting the accessed bit may begin at any. */
			CHECK_ROW(r->name, HERE + LDT_ENTRY * 8, trap_last()->cr2 & ~7ull);
		}
	}
	asm volatile("lldt %w0" : : "r"(0));
	((u64 *)target)[LDT_ENTRY] = 0xc3c3c3c3c3c3c3c3;
}

static void stac(void *arg)
{
	asm volatile(".byte 0x0f, 0x01, 0xcb"); /* STAC */
}

static void clac(void *arg)
{
	asm volatile(".byte 0x0f, 0x01, 0xca"); /* CLAC */
}

TEST(stac_and_clac_belong_to_ring_0)
{
	u64 flags;

	if (!HAS_SMAP) {
		CHECK_EQ(UD, trap_run(stac, NULL));
		return;
	}
	setup();
	CHECK_EQ(UD, trap_run_user(stac, NULL));
	CHECK_EQ(UD, trap_run_user(clac, NULL));
	asm volatile(".byte 0x0f, 0x01, 0xcb; pushfq; .byte 0x0f, 0x01, 0xca; pop %0"
		     : "=r"(flags));
	CHECK_EQ(FL_AC, flags & FL_AC);
	asm volatile("pushfq; pop %0" : "=r"(flags));
	CHECK_EQ(0, flags & FL_AC);
}

/* --- what has to leave the TLB -----------------------------------------------------------------
 */
static u8 *page_a, *page_b;

static void two_pages(void)
{
	setup();
	if (page_a)
		return;
	page_a = page_alloc();
	page_b = page_alloc();
	*page_a = 'a';
	*page_b = 'b';
}

static char seen(void)
{
	return *(volatile char *)HERE;
}

/* Have page a in the TLB, then change the entry to page b without saying so. */
static void change_under_tlb(u64 bits)
{
	u64 *entry;

	map(0, PTE_OPEN, &entry);
	pt[0] = (u64)page_a | PTE_OPEN | bits;
	invlpg((void *)HERE);
	CHECK_EQ('a', seen());
	pt[0] = (u64)page_b | PTE_OPEN | bits;
}

static void load_cr3(void)
{
	WRITE_CR(3, READ_CR(3));
}

static void toggle_pge(void)
{
	WRITE_CR(4, READ_CR(4) ^ CR4_PGE);
	WRITE_CR(4, READ_CR(4) ^ CR4_PGE);
}

static void toggle_paging(void)
{
	paging_switch(READ_CR(3), READ_CR(4));
}

static void flush_page(void)
{
	invlpg((void *)(HERE + 0xabc)); /* any address in the page */
}

static void invpcid(u64 type, u64 pcid, u64 addr)
{
	u64 desc[2] = {pcid, addr};

	asm volatile("invpcid %0, %1" : : "m"(desc), "r"(type) : "memory");
}

static void invpcid_page(void)
{
	invpcid(0, READ_CR(4) & CR4_PCIDE ? READ_CR(3) & 0xfff : 0, HERE);
}

static void invpcid_context(void)
{
	invpcid(1, READ_CR(4) & CR4_PCIDE ? READ_CR(3) & 0xfff : 0, 0);
}

static void invpcid_all(void)
{
	invpcid(2, 0, 0);
}

static void invpcid_all_nonglobal(void)
{
	invpcid(3, 0, 0);
}

static const struct flush_row {
	const char *name;
	void (*flush)(void);
	bool global_too, invpcid;
} flush_rows[] = {
	{"MOV to CR3", load_cr3, false, false},
	{"CR4.PGE toggled", toggle_pge, true, false},
	{"paging off and on", toggle_paging, true, false},
	{"INVLPG", flush_page, true, false},
	{"INVPCID of an address", invpcid_page, false, true},
	{"INVPCID of a context", invpcid_context, false, true},
	{"INVPCID of all", invpcid_all, true, true},
	{"INVPCID of all but global", invpcid_all_nonglobal, false, true},
};

static void check_flushes(const char *when)
{
	for (unsigned i = 0; i < ARRAY_SIZE(flush_rows); i++) {
		const struct flush_row *r = &flush_rows[i];

		if (r->invpcid && !HAS_INVPCID)
			continue;
		for (unsigned global = 0; global <= r->global_too; global++) {
			change_under_tlb(global ? PTE_G : 0);
			r->flush();
			CHECK_ROW(guest_name("%s, global %u, %s", r->name, global, when), 'b',
				  seen());
		}
	}
}

TEST(flushes_make_a_change_visible)
{
	two_pages();
	check_flushes("no PGE");
	WRITE_CR(4, READ_CR(4) | CR4_PGE);
	check_flushes("PGE");
	WRITE_CR(4, READ_CR(4) & ~CR4_PGE);
}

TEST(flushes_make_a_change_visible_with_pcid)
{
	if (!HAS_PCID) {
		guest_skip("no PCID");
		return;
	}
	two_pages();
	WRITE_CR(4, READ_CR(4) | CR4_PCIDE);
	WRITE_CR(3, (u64)boot_pml4 | 5);
	for (unsigned i = 0; i < ARRAY_SIZE(flush_rows); i++) {
		if (flush_rows[i].flush == toggle_paging || (flush_rows[i].invpcid && !HAS_INVPCID))
			continue; /* CR0.PG may not be cleared with PCIDE */
		change_under_tlb(0);
		flush_rows[i].flush();
		CHECK_ROW(flush_rows[i].name, 'b', seen());
	}
	WRITE_CR(3, (u64)boot_pml4);
	WRITE_CR(4, READ_CR(4) & ~CR4_PCIDE);
}

/* Non-present entries are never cached, so mapping a page needs no flush (SDM 3A "Details of TLB
 * Use"). */
TEST(a_page_appears_without_a_flush)
{
	u64 *entry;

	setup();
	for (unsigned level = 0; level < 3; level++) {
		u64 *e;

		map(0, PTE_OPEN, &entry);
		e = level == 0 ? pt : level == 1 ? pd : pdpt;
		*e &= ~PTE_P;
		invlpg((void *)HERE);
		CHECK_EQ(PF, do_access(&accesses[3], HERE));
		*e |= PTE_P;
		CHECK_ROW(guest_name("level %u", level), NONE, do_access(&accesses[3], HERE));
	}
}

/* More rights need no flush either: at worst one fault, which drops the stale entry. */
TEST(more_rights_come_with_the_next_fault)
{
	static const struct {
		const char *name;
		u64 before, after;
		u8 access;
	} rows[] = {
		{"writable", PTE_P | PTE_U, PTE_OPEN, 1},
		{"user", PTE_P | PTE_W, PTE_OPEN, 0},
		{"executable", PTE_OPEN | PTE_NX, PTE_OPEN, 2},
	};
	u64 *entry;

	setup();
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		map(0, rows[i].before, &entry);
		do_access(&accesses[3], HERE);
		CHECK_ROW(rows[i].name, PF, do_access(&accesses[rows[i].access], HERE));
		*entry |= rows[i].after;
		*entry &= ~(rows[i].before & ~rows[i].after);
		do_access(&accesses[rows[i].access], HERE);
		CHECK_ROW(rows[i].name, NONE, do_access(&accesses[rows[i].access], HERE));
	}
}

/* INVLPG drops the paging-structure caches as a whole: after a change high up, one flush of each
 * page is enough. */
TEST(a_change_of_a_directory_entry_needs_one_invlpg_per_page)
{
	u64 *pt2 = page_alloc(), *entry;

	two_pages();
	map(0, PTE_OPEN, &entry);
	pt[0] = (u64)page_a | PTE_OPEN;
	pt2[0] = (u64)page_b | PTE_OPEN;
	invlpg((void *)HERE);
	CHECK_EQ('a', seen());
	pd[0] = (u64)pt2 | PTE_OPEN;
	invlpg((void *)HERE);
	CHECK_EQ('b', seen());
}

TEST(invlpg_of_any_byte_drops_a_large_page)
{
	u64 other = ((u64)target & ~0x1fffffull) + (8 << 20), *entry;

	setup();
	map(1, PTE_OPEN, &entry);
	*(volatile u8 *)other = 'o';
	pd[0] = ((u64)target & ~0x1fffffull) | PTE_OPEN | PTE_PS;
	invlpg((void *)HERE);
	(void)*(volatile u8 *)HERE;
	(void)*(volatile u8 *)(HERE + 0x1ff000);
	pd[0] = other | PTE_OPEN | PTE_PS;
	invlpg((void *)(HERE + 0x123456));
	CHECK_EQ('o', *(volatile u8 *)HERE);
	*(volatile u8 *)(other + 0x1ff000) = 'p';
	CHECK_EQ('p', *(volatile u8 *)(HERE + 0x1ff000));
}

/* --- PCID --------------------------------------------------------------------------------------
 */
static void load_cr3_value(void *v)
{
	WRITE_CR(3, v);
}

static void load_cr4_value(void *v)
{
	WRITE_CR(4, v);
}

static u64 *second_space; /* a PML4 whose HERE leads to page b */

static void make_second_space(void)
{
	u64 *pdpt2 = page_alloc(), *pd2 = page_alloc(), *pt2 = page_alloc();

	two_pages();
	if (second_space)
		return;
	second_space = page_alloc();
	for (unsigned i = 0; i < 512; i++)
		second_space[i] = boot_pml4[i];
	second_space[HERE >> 39] = (u64)pdpt2 | PTE_OPEN;
	pdpt2[0] = (u64)pd2 | PTE_OPEN;
	pd2[0] = (u64)pt2 | PTE_OPEN;
	pt2[0] = (u64)page_b | PTE_OPEN;
}

TEST(address_spaces_of_two_pcids_stay_apart)
{
	u64 *entry;

	if (!HAS_PCID) {
		guest_skip("no PCID");
		return;
	}
	make_second_space();
	map(0, PTE_OPEN, &entry);
	pt[0] = (u64)page_a | PTE_OPEN;
	invlpg((void *)HERE);
	WRITE_CR(4, READ_CR(4) | CR4_PCIDE);
	for (unsigned i = 0; i < 20; i++) {
		unsigned pcid = 1 + i % 10; /* more than an implementation may keep */

		WRITE_CR(3,
			 (u64)(i & 1 ? second_space : boot_pml4) | pcid | (i < 10 ? 0 : BIT(63)));
		CHECK_ROW(guest_name("round %u", i), i & 1 ? 'b' : 'a', seen());
		CHECK_ROW(guest_name("round %u", i), (u64)(i & 1 ? second_space : boot_pml4) | pcid,
			  READ_CR(3)); /* bit 63 is not kept */
	}
	/* Without bit 63 the PCID is emptied first, whatever it was used for before. */
	WRITE_CR(3, (u64)second_space | 1);
	CHECK_EQ('b', seen());
	WRITE_CR(3, (u64)boot_pml4 | 2);
	CHECK_EQ('a', seen());
	WRITE_CR(3, (u64)boot_pml4);
	CHECK_EQ('a', seen());
	WRITE_CR(4, READ_CR(4) & ~CR4_PCIDE);
	CHECK_EQ('a', seen());
}

/* INVPCID reaches an address space that is not the current one. */
TEST(invpcid_reaches_other_contexts)
{
	u64 *entry;

	if (!HAS_INVPCID || !HAS_PCID) {
		guest_skip("no INVPCID");
		return;
	}
	make_second_space();
	WRITE_CR(4, READ_CR(4) | CR4_PCIDE);
	for (unsigned type = 0; type < 4; type++) {
		map(0, PTE_OPEN, &entry);
		pt[0] = (u64)page_a | PTE_OPEN;
		WRITE_CR(3, (u64)boot_pml4 | 7);
		CHECK_EQ('a', seen());
		WRITE_CR(3, (u64)second_space | 8);
		pt[0] = (u64)page_b | PTE_OPEN;
		invpcid(type, 7, HERE);
		WRITE_CR(3, (u64)boot_pml4 | 7 | BIT(63));
		CHECK_ROW(guest_name("type %u", type), 'b', seen());
	}
	WRITE_CR(3, (u64)boot_pml4);
	WRITE_CR(4, READ_CR(4) & ~CR4_PCIDE);
}

TEST(pcid_rules_are_enforced)
{
	u64 cr3 = READ_CR(3), cr4 = READ_CR(4);

	if (!HAS_PCID) {
		guest_skip("no PCID");
		return;
	}
	setup();
	CHECK_EQ(GP,
		 trap_run(load_cr3_value, (void *)(cr3 | BIT(63)))); /* reserved without PCIDE */
	WRITE_CR(3, cr3 | 1 << 3);
	CHECK_EQ(GP, trap_run(load_cr4_value, (void *)(cr4 | CR4_PCIDE))); /* CR3[11:0] != 0 */
	CHECK_EQ(0, trap_last()->error);
	WRITE_CR(3, cr3);
	CHECK_EQ(NONE, trap_run(load_cr4_value, (void *)(cr4 | CR4_PCIDE)));
	CHECK_EQ(NONE, trap_run(load_cr3_value, (void *)(cr3 | 0xfff | BIT(63))));
	CHECK_EQ(cr3 | 0xfff, READ_CR(3));
	CHECK_EQ(NONE, trap_run(load_cr4_value, (void *)cr4)); /* may end with any PCID */
	WRITE_CR(3, cr3);
}

extern char clear_pg_in_compat[];
CODE("clear_pg_in_compat:\n"
     "	pushq $0x18; pushq $1f; lretq\n"
     "	.code32\n"
     "1:	mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0\n"
     "	or $0x80000000, %eax; mov %eax, %cr0\n"
     "	ljmp $0x08, $2f\n"
     "	.code64\n"
     "2:	ret\n");

TEST(paging_stays_on_while_pcide_is_set)
{
	if (!HAS_PCID) {
		guest_skip("no PCID");
		return;
	}
	setup();
	CHECK_EQ(NONE, trap_run((void (*)(void *))clear_pg_in_compat, NULL));
	WRITE_CR(4, READ_CR(4) | CR4_PCIDE);
	CHECK_EQ(GP, trap_run((void (*)(void *))clear_pg_in_compat, NULL));
	CHECK_EQ(0, trap_last()->error);
	WRITE_CR(4, READ_CR(4) & ~CR4_PCIDE);
}

struct invpcid_arg {
	u64 type, pcid, addr;
};

static void run_invpcid(void *p)
{
	struct invpcid_arg *a = p;

	invpcid(a->type, a->pcid, a->addr);
}

static const struct invpcid_row {
	const char *name;
	struct invpcid_arg arg;
	int without, with; /* CR4.PCIDE */
} invpcid_rows[] = {
	{"address", {0, 0, HERE}, NONE, NONE},
	{"address of PCID 1", {0, 1, HERE}, GP, NONE},
	{"address of PCID 4095", {0, 4095, HERE}, GP, NONE},
	{"address not canonical", {0, 0, 1ull << 62}, GP, GP},
	{"context, address is ignored", {1, 0, 1ull << 62}, NONE, NONE},
	{"context of PCID 1", {1, 1, 0}, GP, NONE},
	{"all, address and PCID are ignored", {2, 1, 1ull << 62}, NONE, NONE},
	{"all but global", {3, 1, 1ull << 62}, NONE, NONE},
	{"type 4", {4, 0, 0}, GP, GP},
	{"type 2^32", {1ull << 32, 0, 0}, GP, GP},
	{"type -1", {-1ull, 0, 0}, GP, GP},
	{"address, descriptor bit 12", {0, 1 << 12, HERE}, GP, GP},
	{"context, descriptor bit 63", {1, 1ull << 63, 0}, GP, GP},
	{"all, descriptor bit 12", {2, 1 << 12, 0}, GP, GP},
	{"all but global, descriptor bit 32", {3, 1ull << 32, 0}, GP, GP},
};

TEST(invpcid_checks_its_operands)
{
	if (!HAS_INVPCID || !HAS_PCID) {
		guest_skip("no INVPCID");
		return;
	}
	setup();
	for (unsigned i = 0; i < ARRAY_SIZE(invpcid_rows); i++) {
		const struct invpcid_row *r = &invpcid_rows[i];

		CHECK_ROW(r->name, r->without, trap_run(run_invpcid, (void *)&r->arg));
		WRITE_CR(4, READ_CR(4) | CR4_PCIDE);
		CHECK_ROW(r->name, r->with, trap_run(run_invpcid, (void *)&r->arg));
		WRITE_CR(4, READ_CR(4) & ~CR4_PCIDE);
	}
}

extern char user_invpcid[], user_invlpg[];
CODE("user_invpcid: xor %eax, %eax; invpcid (%rsp), %rax; ret\n"
     "user_invlpg: invlpg (%rsp); ret\n");

TEST(ring_3_may_not_flush)
{
	setup();
	CHECK_EQ(GP, trap_run_user((void (*)(void *))user_invlpg, NULL));
	CHECK_EQ(0, trap_last()->error);
	if (!HAS_INVPCID)
		return;
	CHECK_EQ(GP, trap_run_user((void (*)(void *))user_invpcid, NULL));
	CHECK_EQ(0, trap_last()->error);
}

/* --- five levels -------------------------------------------------------------------------------
 */
TEST(five_level_paging_translates_57_bits)
{
	static const u64 far = 3ull << 48; /* PML5 entry 3 */
	u64 *pml5 = page_alloc(), *pml4 = page_alloc(), cr3 = READ_CR(3), *entry;

	if (!HAS_LA57) {
		guest_skip("no LA57");
		return;
	}
	two_pages();
	map(0, PTE_OPEN, &entry);
	pt[0] = (u64)page_a | PTE_OPEN;
	pml5[0] = (u64)boot_pml4 | PTE_OPEN;
	pml5[3] = (u64)pml4 | PTE_OPEN;
	pml4[0] = boot_pml4[HERE >> 39];
	paging_switch((u64)pml5, READ_CR(4) | CR4_LA57);
	CHECK_EQ('a', seen());
	CHECK_EQ(NONE, do_access(&accesses[1], far + 1));
	CHECK_EQ(PTE_A, pml5[3] & (PTE_A | PTE_D));
	CHECK_EQ('a', *(volatile u8 *)far);

	pml5[3] &= ~PTE_W;
	invlpg((void *)far);
	CHECK_EQ(PF, do_access(&accesses[1], far + OFFSET));
	CHECK_EQ(PF_P | PF_W | PF_U, trap_last()->error);
	CHECK_EQ(far + OFFSET, trap_last()->cr2);
	pml5[3] |= PTE_PS;
	invlpg((void *)far);
	CHECK_EQ(PF, do_access(&accesses[0], far));
	CHECK_EQ(PF_P | PF_U | PF_RSVD, trap_last()->error);
	CHECK_EQ(PF, do_access(&accesses[0], 5ull << 48));
	CHECK_EQ(PF_U, trap_last()->error);
	CHECK_EQ(PF, do_access(&accesses[0], -(1ull << 56)));
	CHECK_EQ(GP, do_access(&accesses[0], 1ull << 56));
	CHECK_EQ(GP, trap_run(load_cr4_value, (void *)(READ_CR(4) & ~CR4_LA57)));

	paging_switch(cr3, READ_CR(4) & ~CR4_LA57);
	CHECK_EQ(GP, do_access(&accesses[0], far));
	CHECK_EQ(GP, trap_run(load_cr4_value, (void *)(READ_CR(4) | CR4_LA57)));
}
