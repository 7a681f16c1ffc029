/* truth.c - instructions against the host CPU.
 *
 *   truth [CASES] [SEED] [ROW-NAME]
 *
 * Random valid code, one to four instructions, is run natively (native.h) and in the soft engine
 * from the same registers, flags, vector state and memory; then registers, flags, vector state,
 * memory, the exception and its RIP, error code and CR2 are compared.  Memory operands go to a
 * small region that has unmapped and read-only pages in it, so page edges and faults come up often.
 *
 *   DATA_GVA  page 0..3 writable, 4 read-only, 5 unmapped, 6..9 writable, 10 unmapped
 *   CODE_GVA  one page of INT3, the code somewhere in it
 *
 * Prints TAP: one case per class of instructions.  A difference prints the code and what differs.
 */
#include "base/error.h"
#include "engine/engine.h"
#include "engine/soft/cpu.h"
#include "engine/x86_defs.h"
#include "gen.h"
#include "mem/mem.h"
#include "native.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { DATA_PAGES = 11, RO_PAGE = 4, MAX_INSNS = 4, MAX_REPORTS = 4000 };
#define DATA_GVA  0x10000000ull
#define CODE_GVA  0x20000000ull
#define DATA_GPA  0x00100000ull
#define CODE_GPA  0x00200000ull
#define TABLE_GPA 0x00300000ull
#define RAM_SIZE  (16 * MiB)

static const bool page_mapped[DATA_PAGES] = {1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0};

/* --- the two machines --------------------------------------------------------------------------
 */

static struct mem *mem;
static uint8_t *ram;
static struct engine_vm *vm;
static struct engine_cpu *cpu;
static struct cpu_model model;
static struct gen_row *rows;

static void die(const char *what)
{
	printf("Bail out! %s\n", what);
	exit(1);
}

static void put_pte(gpa_t table, unsigned index, uint64_t pte)
{
	memcpy(ram + table + 8 * index, &pte, 8);
}

static void map_guest(void)
{
	const gpa_t pdpt = TABLE_GPA + 0x1000, pd = TABLE_GPA + 0x2000, data = TABLE_GPA + 0x3000,
		    code = TABLE_GPA + 0x4000;
	const uint64_t all = PTE_P | PTE_W | PTE_U;

	put_pte(TABLE_GPA, 0, pdpt | all);
	put_pte(pdpt, 0, pd | all);
	put_pte(pd, DATA_GVA >> 21, data | all);
	put_pte(pd, CODE_GVA >> 21, code | all);
	for (unsigned i = 0; i < DATA_PAGES; i++)
		if (page_mapped[i])
			put_pte(data, i,
				(DATA_GPA + i * PAGE_SIZE) | PTE_P | PTE_U |
					(i == RO_PAGE ? 0 : PTE_W));
	put_pte(code, 0, CODE_GPA | PTE_P | PTE_U);
}

static void map_host(void)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;

	for (unsigned i = 0; i < DATA_PAGES; i++)
		if (page_mapped[i] && mmap((void *)(DATA_GVA + i * PAGE_SIZE), PAGE_SIZE,
					   PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
			die("cannot map the data region");
	if (mmap((void *)CODE_GVA, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0) ==
	    MAP_FAILED)
		die("cannot map the code page");
	memset((void *)CODE_GVA, 0xcc, PAGE_SIZE);
}

static uint64_t no_mmio_read(void *o, gpa_t gpa, unsigned size)
{
	return ~0ull;
}
static void no_mmio_write(void *o, gpa_t gpa, uint64_t v, unsigned size)
{
}
static uint32_t no_pio_read(void *o, uint16_t port, unsigned size)
{
	return ~0u;
}
static void no_pio_write(void *o, uint16_t port, uint32_t v, unsigned size)
{
}
static bool no_msr_read(void *o, uint32_t index, uint64_t *v)
{
	return false;
}
static bool no_msr_write(void *o, uint32_t index, uint64_t v)
{
	return false;
}
static int no_intr(void *o)
{
	return -1;
}
static uint8_t no_cr8(void *o)
{
	return 0;
}
static void no_cr8_write(void *o, uint8_t v)
{
}
static bool no_hypercall(void *o, struct engine_cpu *c, uint64_t gpr[X86_NR_GPR])
{
	return false;
}
static void no_cpuid(void *o, uint32_t leaf, uint32_t sub, uint32_t r[4])
{
}

static const struct engine_cpu_ops no_ops = {
	.mmio_read = no_mmio_read,
	.mmio_write = no_mmio_write,
	.pio_read = no_pio_read,
	.pio_write = no_pio_write,
	.msr_read = no_msr_read,
	.msr_write = no_msr_write,
	.intr_ack = no_intr,
	.cr8_read = no_cr8,
	.cr8_write = no_cr8_write,
	.hypercall = no_hypercall,
	.cpuid = no_cpuid,
};

static void create_engine(void)
{
	struct engine_vm_config cfg = {.nr_cpus = 1, .model = &model, .options = ""};
	struct engine_debug debug = {.intercept = ~0u};
	const struct mem_range *range;
	struct error err;

	if (mem_create(&mem, &err) < 0 || mem_add_ram(mem, 0, RAM_SIZE, &err) < 0)
		die(err.msg);
	mem_ram_ranges(mem, &range);
	ram = range[0].hva;
	cfg.mem = mem;
	if (engine_soft.vm_create(&vm, &cfg, &err) < 0 ||
	    engine_soft.cpu_create(&cpu, vm, 0, &no_ops, NULL, &err) < 0)
		die(err.msg);
	engine_soft.cpu_debug(cpu, &debug);
	map_guest();
	memset(ram + CODE_GPA, 0xcc, PAGE_SIZE);
}

/* --- the vector state --------------------------------------------------------------------------
 */

/* XSAVE components by standard offset and size (CPUID leaf 0xD). */
static struct {
	unsigned off, size;
} comp[64];
static uint64_t xcr0;

static void read_layout(void)
{
	xcr0 = native_xcr0() & model.xcr0_supported & ~XCR0_PKRU;
	for (unsigned i = 2; i < 32; i++)
		if (xcr0 >> i & 1) {
			uint32_t a, b, c, d;

			asm volatile("cpuid"
				     : "=a"(a), "=b"(b), "=c"(c), "=d"(d)
				     : "a"(0xd), "c"(i));
			comp[i].off = b;
			comp[i].size = a;
		}
}

/* Components in their initial state may hold anything; make them hold that state.  The x87
 * instruction and data pointers are left out: what is in them depends on vendor and on whether an
 * exception is pending. */
static void canonical(uint8_t *area)
{
	uint64_t bv;

	memcpy(&bv, area + 512, 8);
	if (!(bv & XCR0_X87)) {
		memset(area, 0, 24);
		area[0] = 0x7f;
		area[1] = 3;
		memset(area + 32, 0, 128);
	}
	memset(area + 6, 0, 18);
	memset(area + 28, 0, 4); /* MXCSR_MASK */
	if (!(bv & XCR0_SSE))
		memset(area + 160, 0, 256);
	memset(area + 416, 0, 96);
	for (unsigned r = 0; r < 8; r++) /* ST registers are 10 bytes in 16 */
		memset(area + 32 + 16 * r + 10, 0, 6);
	for (unsigned i = 2; i < 32; i++)
		if (comp[i].size && !(bv >> i & 1))
			memset(area + comp[i].off, 0, comp[i].size);
	memset(area + 512, 0, 64);
}

static uint64_t random_value(void)
{
	static const uint64_t interesting[] = {0,
					       1,
					       2,
					       0x7f,
					       0x80,
					       0xff,
					       0x7fff,
					       0x8000,
					       0xffff,
					       0x7fffffff,
					       0x80000000,
					       0xffffffff,
					       0x7fffffffffffffff,
					       0x8000000000000000,
					       0xffffffffffffffff,
					       0x3ff0000000000000,
					       0xbff0000000000000,
					       0x7ff0000000000000,
					       0x7ff8000000000000,
					       0x7ff0000000000001,
					       0x000fffffffffffff,
					       0x3f8000003f800000,
					       0x7f8000007fc00001,
					       0x0000000100000001,
					       0x4024000000000000};

	switch (gen_random() % 4) {
	case 0:
		return interesting[gen_random() % ARRAY_SIZE(interesting)];
	case 1:
		return gen_random() >> (gen_random() % 64);
	default:
		return gen_random();
	}
}

static void random_fill(void *p, unsigned len)
{
	for (unsigned i = 0; i + 8 <= len; i += 8) {
		uint64_t v = random_value();

		memcpy((uint8_t *)p + i, &v, 8);
	}
}

static void random_xsave(uint8_t *area)
{
	uint16_t fcw = gen_random() % 4 ? 0x37f : 0x40 | (gen_random() & 0xf3f);
	uint16_t top = (gen_random() & 7) << 11;
	uint32_t mxcsr = gen_random() % 4 ? 0x1f80 : gen_random() & 0xffff;
	uint64_t bv = xcr0;

	memset(area, 0, NATIVE_XSAVE_MAX);
	memcpy(area, &fcw, 2);
	memcpy(area + 2, &top, 2);
	area[4] = gen_random() % 2 ? 0 : gen_random();
	memcpy(area + 24, &mxcsr, 4);
	random_fill(area + 160, 256);
	for (unsigned r = 0; r < 8; r++) {
		uint16_t exp = gen_random() % 4 ? 0x3ff0 + gen_random() % 64 : gen_random();

		random_fill(area + 32 + 16 * r, 8);
		if (gen_random() % 4)
			area[32 + 16 * r + 7] |= 0x80; /* normal */
		memcpy(area + 32 + 16 * r + 8, &exp, 2);
	}
	for (unsigned i = 2; i < 32; i++)
		random_fill(area + comp[i].off, comp[i].size);
	memcpy(area + 512, &bv, 8);
}

/* --- making one case ---------------------------------------------------------------------------
 */

struct program {
	struct insn in[MAX_INSNS];
	unsigned nr;
	uint8_t code[64];
	unsigned len;
	gva_t at;
	struct native_state start;
};

static gva_t random_target(unsigned size)
{
	/* Mostly well inside; often over a page edge, into the read-only or an unmapped page. */
	static const uint8_t pages[] = {0, 1, 2, 6, 7, 8, 3, 4, 9};
	unsigned page = pages[gen_random() % ARRAY_SIZE(pages)];
	gva_t base = DATA_GVA + page * PAGE_SIZE;

	switch (gen_random() % 8) {
	case 0:
		return base + PAGE_SIZE - 1 - gen_random() % (size ? size : 1);
	case 1:
		return base + gen_random() % PAGE_SIZE;
	default:
		return base + (gen_random() % (PAGE_SIZE - 256) & ~63ull);
	}
}

static bool is_cpu_gpr(uint16_t off)
{
	return off < 16 * 8 && off % 8 == 0;
}

/* Patch a displacement that stands in the code as it is: RIP-relative and absolute forms. */
static bool patch_disp(struct program *p, struct insn *in, unsigned code_off, gva_t target)
{
	bool rip = in->base == CPU_OFF(rip);
	int64_t disp = rip ? (int64_t)(target - (p->at + code_off + in->len)) : (int64_t)target;
	int32_t d32 = disp;

	if (in->index != CPU_OFF(zero))
		return false;
	for (unsigned i = 1; i + 4 <= in->len; i++)
		if (!memcmp(in->bytes + i, &in->disp, 4)) {
			memcpy(in->bytes + i, &d32, 4);
			return true;
		}
	return false;
}

static void vsib_indices(struct native_state *s, unsigned reg, int64_t max)
{
	/* Any lane width sees small numbers: write dwords, or qwords, of 0..max. */
	uint64_t v[8];

	for (unsigned i = 0; i < 8; i++)
		v[i] = gen_random() % 2 ? (gen_random() % max) | (gen_random() % max) << 32
					: gen_random() % max;
	if (reg < 16) {
		memcpy(s->xsave + 160 + 16 * reg, v, 16);
		memcpy(s->xsave + comp[2].off + 16 * reg, v + 2, 16);
		if (comp[6].size)
			memcpy(s->xsave + comp[6].off + 32 * reg, v + 4, 32);
	} else if (comp[7].size) {
		memcpy(s->xsave + comp[7].off + 64 * (reg - 16), v, 64);
	}
}

/* Give the address registers values that lead the ModRM operand to the data region. */
static bool aim_modrm(struct program *p, struct insn *in, unsigned code_off)
{
	const struct insn_row *row = &insn_rows[in->id];
	uint64_t *gpr = p->start.gpr;
	gva_t target = random_target(in->msize);
	unsigned b = in->base / 8, x = in->index / 8;
	bool vsib = row->special == SPECIAL_GATHER || row->special == SPECIAL_SCATTER;

	if (in->seg == X86_FS || in->seg == X86_GS)
		return false;
	if (row->attrs & ROW_BITSTRING) { /* keep the bit offset near */
		if (!is_cpu_gpr(in->reg) || in->reg == in->base || in->reg == in->index)
			return false;
		gpr[in->reg / 8] = gen_random() % 512 - 256;
	}
	if (vsib)
		vsib_indices(&p->start, in->vrm, 40);
	if (!is_cpu_gpr(in->base))
		return patch_disp(p, in, code_off, target);
	if (!vsib && is_cpu_gpr(in->index)) {
		if (x == b) {
			if (in->scale)
				return false;
			gpr[b] = (target - in->disp) / 2;
			return true;
		}
		gpr[x] = gen_random() % 64;
		gpr[b] = target - in->disp - (gpr[x] << in->scale);
	} else {
		gpr[b] = target - in->disp;
	}
	if (in->adsize == 4)
		gpr[b] = (uint32_t)gpr[b] | (gen_random() << 32);
	return true;
}

/* Implicit memory operands: stack, strings, XLAT, MASKMOV. */
static void aim_implicit(struct program *p, const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];
	uint64_t *gpr = p->start.gpr;

	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_STR_SRC || row->op[i].kind == OP_STR_DST)
			gpr[X86_RCX] = gen_random() % 40;
	gpr[X86_RSI] = random_target(8);
	gpr[X86_RDI] = random_target(16);
}

static bool has_string_or_stack(const struct insn *in)
{
	static const char *const names[] = {
		"push",  "pop",  "pusha",    "popa",       "call",        "ret",  "enter",
		"leave", "xlat", "maskmovq", "maskmovdqu", "vmaskmovdqu", "pushf"};
	const struct insn_row *row = &insn_rows[in->id];
	const char *name;
	unsigned len = insn_name(in, &name);

	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_STR_SRC || row->op[i].kind == OP_STR_DST)
			return true;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (strlen(names[i]) == len && !memcmp(names[i], name, len))
			return true;
	return false;
}

static bool reaches_memory(const struct insn *in)
{
	return (in->flags & INSN_MEM) || has_string_or_stack(in);
}

/* May stand before the one that reaches memory: changes no general register. */
static bool leaves_gprs(const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	return row->cls != CLASS_GPR && row->cls != CLASS_VEXGPR && !(row->attrs & ROW_GPR_WRITE) &&
	       !(in->flags & INSN_END);
}

static const struct insn *random_insn(void)
{
	for (;;) {
		struct gen_row *r = &rows[gen_random() % INSN_NR_IDS];

		if (r->nr)
			return &r->stock[gen_random() % r->nr];
	}
}

static bool moffs(const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	return row->nr_ops == 2 && (row->op[0].kind == OP_MOFFS || row->op[1].kind == OP_MOFFS);
}

static bool aim(struct program *p, struct insn *in, unsigned code_off)
{
	if (moffs(in)) {
		gva_t t = random_target(8);
		unsigned n = in->adsize;

		memcpy(in->bytes + in->len - n, &t, n);
		return in->segbase == CPU_OFF(zero);
	}
	if (has_string_or_stack(in)) {
		if (in->seg == X86_FS || in->seg == X86_GS)
			return false;
		aim_implicit(p, in);
		p->start.gpr[X86_RSP] = random_target(64) & ~1ull;
		p->start.gpr[X86_RBP] = random_target(64);
		p->start.gpr[X86_RBX] = random_target(256);
	}
	return !(in->flags & INSN_MEM) || moffs(in) || aim_modrm(p, in, code_off);
}

/* A branch into the middle of the code would run who knows what. */
static bool branches_into(const struct program *p)
{
	const struct insn *last = &p->in[p->nr - 1];
	const struct insn_row *row = &insn_rows[last->id];
	gva_t target = p->at + p->len + last->imm;

	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_REL)
			return target - p->at < p->len ||
			       (uint16_t)target - (uint16_t)p->at < p->len;
	return false;
}

static bool make_program(struct program *p, const struct insn *subject)
{
	unsigned nr = 1 + gen_random() % MAX_INSNS, at = gen_random() % nr;
	bool memory = reaches_memory(subject);

	p->nr = p->len = 0;
	/* Anywhere in the page, so that code at its end runs off into an unmapped one. */
	p->at = CODE_GVA +
		(gen_random() % 16 ? gen_random() % 2048 : PAGE_SIZE - gen_random() % 24);
	for (unsigned i = 0; i < 16; i++)
		p->start.gpr[i] = random_value();
	p->start.gpr[X86_RSP] = DATA_GVA + 2 * PAGE_SIZE;
	p->start.rflags = RFLAGS_ONE | RFLAGS_IF | (gen_random() & RFLAGS_ARITH) |
			  (gen_random() % 4 ? 0 : RFLAGS_DF);
	random_xsave(p->start.xsave);
	for (unsigned i = 0; i < nr; i++) {
		const struct insn *in = i == at ? subject : random_insn();

		if (i != at && (reaches_memory(in) || (in->flags & INSN_END) ||
				(i < at && memory && !leaves_gprs(in))))
			continue;
		p->in[p->nr] = *in;
		if (i == at && !aim(p, &p->in[p->nr], p->len))
			return false;
		memcpy(p->code + p->len, p->in[p->nr].bytes, in->len);
		p->len += in->len;
		p->nr++;
		if (in->flags & INSN_END)
			break;
	}
	p->start.rip = p->at;
	return !branches_into(p);
}

/* --- running and comparing ---------------------------------------------------------------------
 */

static struct x86_state guest_state;

static void init_guest_state(void)
{
	struct x86_segment code = {.limit = ~0u,
				   .selector = 0x33,
				   .attr = 0xb | X86_SEG_S | 3 << 5 | X86_SEG_P | X86_SEG_L |
					   X86_SEG_G},
			   data = {.limit = ~0u,
				   .selector = 0x2b,
				   .attr = 3 | X86_SEG_S | 3 << 5 | X86_SEG_P | X86_SEG_DB |
					   X86_SEG_G};
	struct x86_state *s = &guest_state;

	x86_state_reset(s);
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = i == X86_CS ? code : data;
	s->seg[X86_FS].base = s->seg[X86_GS].base = 0;
	s->cr0 = CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE | CR0_AM;
	s->cr3 = TABLE_GPA;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE | CR4_UMIP;
	s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	s->xcr0 = xcr0;
	s->dr7 = 0x400;
	s->dr6 = 0xffff0ff0;
	s->tr.limit = 0; /* no I/O permission bitmap */
	s->mp_state = X86_MP_RUNNABLE;
}

/* Copies of the data region, mapped pages only. */
static void data_to(uint8_t *guest)
{
	for (unsigned i = 0; i < DATA_PAGES; i++)
		if (page_mapped[i])
			memcpy((void *)(DATA_GVA + i * PAGE_SIZE), guest + i * PAGE_SIZE,
			       PAGE_SIZE);
}

static bool data_same(const uint8_t *guest, unsigned *off)
{
	for (unsigned i = 0; i < DATA_PAGES; i++) {
		const uint8_t *a = guest + i * PAGE_SIZE,
			      *b = (const uint8_t *)(DATA_GVA + i * PAGE_SIZE);

		if (!page_mapped[i] || !memcmp(a, b, PAGE_SIZE))
			continue;
		for (*off = 0; a[*off] == b[*off]; ++*off)
			;
		*off += i * PAGE_SIZE;
		return false;
	}
	return true;
}

static void protect_host(int prot)
{
	mprotect((void *)(DATA_GVA + RO_PAGE * PAGE_SIZE), PAGE_SIZE, prot);
}

static void put_code(const struct program *p, bool in)
{
	unsigned room = CODE_GVA + PAGE_SIZE - p->at, n = MIN(p->len, room);
	unsigned off = p->at - CODE_GVA;

	if (in) {
		memcpy((void *)p->at, p->code, n);
		mem_write(mem, CODE_GPA + off, p->code, n);
	} else {
		uint8_t int3[64];

		memset(int3, 0xcc, sizeof(int3));
		memset((void *)p->at, 0xcc, n);
		mem_write(mem, CODE_GPA + off, int3, n);
	}
}

static enum engine_exit run_guest(const struct program *p, struct engine_exit_info *info)
{
	struct error err;

	memcpy(guest_state.gpr, p->start.gpr, sizeof(guest_state.gpr));
	guest_state.rip = p->start.rip;
	guest_state.rflags = p->start.rflags;
	guest_state.mp_state = X86_MP_RUNNABLE;
	guest_state.event_pending = guest_state.int_shadow = 0;
	memcpy(guest_state.xsave, p->start.xsave, sizeof(guest_state.xsave));
	if (engine_soft.cpu_set(cpu, &guest_state, &err) < 0)
		die(err.msg);
	return engine_soft.cpu_run(cpu, info);
}

static unsigned reports;

static void report_header(const struct program *p)
{
	char text[128];

	printf("# at %#" PRIx64 ":\n", p->at);
	for (unsigned i = 0, off = 0; i < p->nr; i++) {
		insn_print(&p->in[i], p->at + off, text, sizeof(text));
		printf("#   ");
		for (unsigned k = 0; k < p->in[i].len; k++)
			printf("%02x", p->code[off + k]);
		printf("  %s\n", text);
		off += p->in[i].len;
	}
	printf("#   start rflags %#" PRIx64 " rax %#" PRIx64 " rcx %#" PRIx64 " rdx %#" PRIx64
	       " rbx %#" PRIx64 " rsi %#" PRIx64 " rdi %#" PRIx64 " mxcsr %#x fcw %#x\n",
	       p->start.rflags, p->start.gpr[0], p->start.gpr[1], p->start.gpr[2], p->start.gpr[3],
	       p->start.gpr[6], p->start.gpr[7], *(const uint32_t *)(p->start.xsave + 24),
	       *(const uint16_t *)p->start.xsave);
}

static bool differ(const struct program *p, bool *first, const char *what, unsigned n,
		   uint64_t host, uint64_t soft)
{
	if (*first && reports++ < MAX_REPORTS)
		report_header(p);
	*first = false;
	if (reports <= MAX_REPORTS)
		printf("#   %s %u: host %#" PRIx64 ", engine %#" PRIx64 "\n", what, n, host, soft);
	return false;
}

static bool compare_xsave(const struct program *p, bool *first, uint8_t *host, uint8_t *soft)
{
	bool same = true;

	canonical(host);
	canonical(soft);
	for (unsigned i = 0; i < native_xsave_size(); i += 8) {
		uint64_t h, s;

		memcpy(&h, host + i, 8);
		memcpy(&s, soft + i, 8);
		if (h != s && !(i >= 576 && i < 576)) {
			bool known = i < 512;

			for (unsigned c = 2; c < 32; c++)
				known |= comp[c].size && i >= comp[c].off &&
					 i < comp[c].off + comp[c].size;
			if (known)
				same = differ(p, first, "xsave byte", i, h, s);
		}
	}
	return same;
}

/* An ENTER that faults may or may not have written the frame below the stack pointer. */
static bool memory_undefined(const struct program *p, int vector)
{
	const char *name;

	for (unsigned i = 0; vector != X86_EXC_BP && i < p->nr; i++)
		if (insn_name(&p->in[i], &name) == 5 && !memcmp(name, "enter", 5))
			return true;
	return false;
}

static bool compare(const struct program *p, struct native_state *host,
		    const struct engine_exit_info *info)
{
	static struct x86_state soft;
	const uint64_t flags = RFLAGS_ARITH | RFLAGS_DF | RFLAGS_AC;
	bool first = true, same = true;
	unsigned off;

	engine_soft.cpu_get(cpu, &soft);
	if (host->vector != info->vector)
		same = differ(p, &first, "exception", 0, host->vector, info->vector);
	if (host->vector == X86_EXC_BP)
		host->rip--; /* a trap; the engine stops at the INT3 */
	if (host->rip != soft.rip)
		same = differ(p, &first, "rip", 0, host->rip, soft.rip);
	for (unsigned i = 0; i < 16; i++)
		if (host->gpr[i] != soft.gpr[i])
			same = differ(p, &first, "register", i, host->gpr[i], soft.gpr[i]);
	if ((host->rflags ^ soft.rflags) & flags)
		same = differ(p, &first, "rflags", 0, host->rflags & flags, soft.rflags & flags);
	if (host->vector == X86_EXC_PF && info->vector == X86_EXC_PF) {
		/* The upper half is the host kernel's: present there, not in the guest. */
		if ((host->error ^ info->error_code) & ~(host->cr2 >> 63 ? PF_P : 0))
			same = differ(p, &first, "error code", 0, host->error, info->error_code);
		if (host->cr2 != info->cr2)
			same = differ(p, &first, "cr2", 0, host->cr2, info->cr2);
	}
	if (!compare_xsave(p, &first, host->xsave, soft.xsave))
		same = false;
	if (!memory_undefined(p, host->vector) && !data_same(ram + DATA_GPA, &off))
		same = differ(p, &first, "memory at", off, *(uint8_t *)(DATA_GVA + off),
			      ram[DATA_GPA + off]);
	return same;
}

static bool run_case(const struct insn *subject)
{
	static struct program p;
	static struct native_state host;
	struct engine_exit_info info = {0};
	enum engine_exit exit;
	bool same;

	for (unsigned tries = 0; !make_program(&p, subject); tries++)
		if (tries == 20)
			return true; /* this encoding cannot be aimed (FS, GS, fixed addresses) */
	host = p.start;
	put_code(&p, true);
	native_run(&host);
	exit = run_guest(&p, &info);
	put_code(&p, false);
	if (exit != ENGINE_EXIT_DEBUG) {
		bool first = true;

		same = differ(&p, &first, "engine exit", 0, ENGINE_EXIT_DEBUG, exit);
	} else {
		same = compare(&p, &host, &info);
	}
	if (!same || memory_undefined(&p, host.vector)) {
		protect_host(PROT_READ | PROT_WRITE);
		data_to(ram + DATA_GPA);
		protect_host(PROT_READ);
	}
	return same;
}

/* --- the whole ---------------------------------------------------------------------------------
 */

static const char *const class_names[] = {
	[CLASS_GPR] = "integer instructions",
	[CLASS_VEXGPR] = "BMI instructions",
	[CLASS_X87] = "x87 instructions",
	[CLASS_MMX] = "MMX instructions",
	[CLASS_SSE] = "SSE instructions",
	[CLASS_AVX] = "AVX instructions",
	[CLASS_AVX512] = "AVX-512 instructions",
	[CLASS_K] = "opmask instructions",
	[CLASS_FWAIT] = "FWAIT",
};

static bool wanted(unsigned id, const char *name)
{
	return rows[id].nr && (!name || !strncmp(insn_rows[id].name, name, strlen(name)));
}

/* Every row of a class in turn, until its share of the cases is used up. */
static void run_class(unsigned cls, unsigned long cases, const char *name, unsigned n)
{
	unsigned nr_rows = 0;
	unsigned long done = 0, bad = 0;
	static unsigned bad_of[INSN_NR_IDS];

	for (unsigned id = 0; id < INSN_NR_IDS; id++)
		nr_rows += insn_rows[id].cls == cls && wanted(id, name);
	while (nr_rows && done < cases)
		for (unsigned id = 0; id < INSN_NR_IDS; id++) {
			if (insn_rows[id].cls != cls || !wanted(id, name))
				continue;
			done++;
			if (run_case(&rows[id].stock[gen_random() % rows[id].nr]))
				continue;
			bad++;
			bad_of[id]++;
		}
	for (unsigned id = 0; id < INSN_NR_IDS; id++)
		if (bad_of[id] && insn_rows[id].cls == cls)
			printf("# %u differences in row %u %s\n", bad_of[id], id,
			       insn_rows[id].name);
	printf("%sok %u - %s: %u rows, %lu cases agree with the host%s\n", bad ? "not " : "", n,
	       class_names[cls], nr_rows, done - bad, nr_rows ? "" : " # SKIP none here");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	unsigned long cases = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	const char *name = argc > 3 ? argv[3] : NULL;
	unsigned nr_rows[ARRAY_SIZE(class_names)] = {0}, total = 0;
	struct error err;

	native_init();
	if (cpu_model_resolve(&model, "max", &err) < 0)
		die(err.msg);
	create_engine();
	map_host();
	read_layout();
	init_guest_state();
	gen_seed(seed);
	rows = calloc(INSN_NR_IDS, sizeof(*rows));
	gen_build(rows, &model, 6000000);
	random_fill(ram + DATA_GPA, DATA_PAGES * PAGE_SIZE);
	data_to(ram + DATA_GPA);
	protect_host(PROT_READ);
	for (unsigned id = 0; id < INSN_NR_IDS; id++)
		if (rows[id].nr) {
			nr_rows[insn_rows[id].cls]++;
			total++;
		}
	printf("1..%zu\n# %u rows of %u have encodings to test; seed %" PRIu64 "\n",
	       ARRAY_SIZE(class_names), total, (unsigned)INSN_NR_IDS, seed);
	for (unsigned c = 0; c < ARRAY_SIZE(class_names); c++)
		run_class(c, total ? cases * nr_rows[c] / total : 0, name, c + 1);
	return 0;
}
