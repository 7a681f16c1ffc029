/* truth_program.c - making a case: see truth.h.
 *
 * One instruction is the subject; others that touch no memory stand before and after it.  The
 * registers its addresses are made of get values that lead to the data region: mostly well inside a
 * page, often over a page edge, into the read-only page or an unmapped one. */
#include "engine/soft/cpu.h"
#include "gen.h"
#include "truth.h"

#include <string.h>

/* --- random state -------------------------------------------------------------------------------
 */

static uint64_t random_value(void)
{
	// clang-format off
	static const uint64_t interesting[] = {
		0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000,
		0xffffffff, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff,
		0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0x7ff8000000000000,
		0x7ff0000000000001, 0x000fffffffffffff, 0x3f8000003f800000, 0x7f8000007fc00001,
		0x0000000100000001, 0x4024000000000000,
	};
	// clang-format on

	switch (gen_random() % 4) {
	case 0:
		return interesting[gen_random() % ARRAY_SIZE(interesting)];
	case 1:
		return gen_random() >> (gen_random() % 64);
	default:
		return gen_random();
	}
}

void program_random_fill(void *p, unsigned len)
{
	for (unsigned i = 0; i + 8 <= len; i += 8) {
		uint64_t v = random_value();

		memcpy((uint8_t *)p + i, &v, 8);
	}
}

static void random_x87(uint8_t *area)
{
	uint16_t fcw = gen_random() % 2 ? 0x37f : 0x40 | (gen_random() & 0xf3f);
	uint16_t fsw = (gen_random() & 7) << 11, op = gen_random() & 0x7ff;
	uint64_t ip = gen_random() >> 17, dp = gen_random() >> 17;

	if (gen_one_in(8)) /* exceptions have been raised, perhaps unmasked ones */
		fsw |= gen_random() & 0x477f;
	memcpy(area, &fcw, 2);
	memcpy(area + 2, &fsw, 2);
	area[4] = gen_random() % 2 ? 0 : gen_random();
	if (fsw & ~fcw & 0x3f) { /* AMD's load the pointers only then */
		memcpy(area + 6, &op, 2);
		memcpy(area + 8, &ip, 8);
		memcpy(area + 16, &dp, 8);
	}
	for (unsigned r = 0; r < 8; r++) {
		uint16_t exp = gen_random() % 4 ? 0x3ff0 + gen_random() % 64 : gen_random();

		program_random_fill(area + 32 + 16 * r, 8);
		if (gen_random() % 4)
			area[32 + 16 * r + 7] |= 0x80; /* normal */
		memcpy(area + 32 + 16 * r + 8, &exp, 2);
	}
}

static void random_xsave(uint8_t *area)
{
	uint32_t mxcsr = gen_random() % 2 ? 0x1f80 : gen_random() & 0xffff;
	uint64_t bv = gen_one_in(4) ? truth_xcr0 & gen_random() : truth_xcr0;

	memset(area, 0, NATIVE_XSAVE_MAX);
	random_x87(area);
	memcpy(area + 24, &mxcsr, 4);
	program_random_fill(area + 160, 256);
	for (unsigned i = 2; i < 32; i++)
		program_random_fill(area + truth_comp[i].off, truth_comp[i].size);
	memcpy(area + 512, &bv, 8);
}

static uint16_t random_selector(void)
{
	static const uint16_t flat[] = {SEL_CODE32, SEL_DATA, SEL_CODE64, 0,   3,
					0x10,       0x18,     0x43,       0x63};

	switch (gen_random() % 8) {
	case 0:
		return (gen_random() & 0xff) | 0x100; /* beyond both tables */
	case 1:
		return SEL_DATA & ~(gen_random() & 3);
	case 2 ... 4:
		return truth_segs[gen_random() % truth_nr_segs].selector & ~(gen_one_in(4) ? 3 : 0);
	default:
		return flat[gen_random() % ARRAY_SIZE(flat)];
	}
}

/* A segment that may be used: present, and data, of code readable, for the stack writable. */
static uint16_t random_data_selector(bool stack)
{
	for (;;) {
		const struct truth_seg *s = &truth_segs[gen_random() % truth_nr_segs];
		bool code = s->attr & 8, two = s->attr & 2;

		if (s->attr & X86_SEG_P && (stack ? !code && two : !code || two))
			return s->selector;
	}
}

static void random_segments(struct program *p)
{
	uint16_t *sel = p->start.sel;

	for (unsigned i = 0; i < X86_NR_SEG; i++)
		sel[i] = SEL_DATA;
	sel[X86_FS] = 0;
	sel[X86_CS] = p->mode == INSN_MODE_64 ? SEL_CODE64 : SEL_CODE32;
	if (p->mode == INSN_MODE_16)
		sel[X86_CS] = truth_segs[0].selector;
	if (p->mode == INSN_MODE_64) {
		sel[X86_GS] = 0;
		p->start.gs_base = DATA_GVA + gen_random() % 0x10000;
		return;
	}
	if (p->mode == INSN_MODE_32 && gen_one_in(8))
		sel[X86_CS] = truth_segs[1 + gen_random() % 2].selector;
	sel[X86_DS] = gen_one_in(2) ? SEL_DATA : random_data_selector(false);
	sel[X86_ES] = gen_one_in(2) ? SEL_DATA : random_data_selector(false);
	sel[X86_GS] = gen_one_in(2) ? SEL_DATA : random_data_selector(false);
	sel[X86_SS] = gen_one_in(2) ? SEL_DATA : random_data_selector(true);
}

static void random_state(struct program *p)
{
	struct native_state *s = &p->start;

	for (unsigned i = 0; i < 16; i++)
		s->gpr[i] = random_value();
	s->rflags = RFLAGS_ONE | RFLAGS_IF | (gen_random() & RFLAGS_ARITH) |
		    (gen_one_in(4) ? RFLAGS_DF : 0) | (gen_one_in(16) ? RFLAGS_AC : 0) |
		    (gen_one_in(32) ? RFLAGS_TF : 0);
	random_segments(p);
	random_xsave(s->xsave);
}

/* --- addresses ----------------------------------------------------------------------------------
 */

static gva_t random_target(unsigned size)
{
	static const uint8_t pages[] = {0, 1, 2, 6, 7, 8, 3, 4, 9};
	unsigned page = pages[gen_random() % ARRAY_SIZE(pages)];
	gva_t base = DATA_GVA + page * PAGE_SIZE;

	switch (gen_random() % 8) {
	case 0:
		return base + PAGE_SIZE - 1 - gen_random() % (size ? size : 1);
	case 1:
		return base + gen_random() % PAGE_SIZE;
	case 2:
		return base + gen_random() % 16; /* strings that go down cross here */
	default:
		return base + (gen_random() % (PAGE_SIZE - 256) & ~63ull);
	}
}

/* Somewhere in the code page where there is only INT3. */
static gva_t random_landing(const struct program *p)
{
	for (;;) {
		gva_t at = CODE_GVA + gen_random() % (PAGE_SIZE / 2);

		if (at + 1 < p->at || at > p->at + CODE_MAX)
			return at;
	}
}

static uint64_t seg_base(const struct program *p, unsigned seg)
{
	const struct truth_seg *s = truth_seg_of(p->start.sel[seg]);

	if (seg == X86_FS)
		return native_fs_base();
	if (seg == X86_GS && !(p->start.sel[seg] & ~3))
		return p->start.gs_base;
	return s && p->mode != INSN_MODE_64 ? s->base : 0;
}

/* A register whose low `size` bytes are v; above them is what must not matter. */
static uint64_t low_bytes(uint64_t v, unsigned size)
{
	uint64_t mask = size == 8 ? ~0ull : (1ull << 8 * size) - 1;

	return (v & mask) | (gen_random() & ~mask);
}

static bool is_cpu_gpr(uint16_t off)
{
	return off < 16 * 8 && off % 8 == 0;
}

/* A vector register as VSIB index: any lane width sees small numbers. */
static void vsib_indices(struct native_state *s, unsigned reg, uint64_t max)
{
	uint64_t v[8], bv;

	for (unsigned i = 0; i < 8; i++)
		v[i] = gen_random() % 2 ? (gen_random() % max) | (gen_random() % max) << 32
					: gen_random() % max;
	if (reg < 16) {
		memcpy(s->xsave + 160 + 16 * reg, v, 16);
		memcpy(s->xsave + truth_comp[2].off + 16 * reg, v + 2, 16);
		if (truth_comp[6].size)
			memcpy(s->xsave + truth_comp[6].off + 32 * reg, v + 4, 32);
	} else if (truth_comp[7].size) {
		memcpy(s->xsave + truth_comp[7].off + 64 * (reg - 16), v, 64);
	}
	bv = truth_xcr0;
	memcpy(s->xsave + 512, &bv, 8);
}

/* The whole address is in the code: RIP-relative and absolute forms. */
static bool patch_disp(struct program *p, struct insn *in, unsigned code_off, gva_t ea)
{
	int64_t disp = in->base == CPU_OFF(rip)
			       ? (int64_t)(ea - (p->start.rip + code_off + in->len))
			       : (int64_t)ea;
	uint8_t bytes[32] = {0};
	struct gen_layout l;

	gen_layout(in, p->mode, &l);
	if (is_cpu_gpr(in->index) || l.disp_len < 2)
		return false;
	if (in->seg == X86_FS && disp != (int32_t)disp) /* see reaches_from_fs */
		return false;
	memcpy(bytes, in->bytes, in->len);
	memcpy(bytes + l.disp, &disp, l.disp_len);
	return gen_decode(in, bytes, p->mode);
}

/* FS points into the C library's memory, wherever the host has put that: an operand that cannot get
 * away from there by 64 bits would find on the host what the engine's guest does not have. */
static bool reaches_from_fs(const struct program *p, const struct insn *in)
{
	return in->seg != X86_FS || p->mode != INSN_MODE_64 || in->adsize == 8;
}

/* Give the address registers values that lead the ModRM operand to the linear address. */
static bool aim_modrm(struct program *p, struct insn *in, unsigned code_off, gva_t target)
{
	const struct insn_row *row = &insn_rows[in->id];
	uint64_t *gpr = p->start.gpr, ea = target - seg_base(p, in->seg);
	unsigned b = in->base / 8, x = in->index / 8;
	bool vsib = row->special == SPECIAL_GATHER || row->special == SPECIAL_SCATTER;

	if (vsib)
		vsib_indices(&p->start, in->vrm, 40);
	if (!is_cpu_gpr(in->base) && (vsib || !is_cpu_gpr(in->index)))
		return patch_disp(p, in, code_off, ea);
	ea -= (uint64_t)(int64_t)in->disp;
	if (!vsib && is_cpu_gpr(in->index)) {
		if (!is_cpu_gpr(in->base)) { /* index * scale + disp */
			gpr[x] = low_bytes(ea >> in->scale, in->adsize);
			return in->adsize != 8 || ea >> 63 == 0;
		}
		if (x == b) {
			if (in->scale)
				return false;
			gpr[b] = low_bytes(ea / 2, in->adsize);
			return true;
		}
		gpr[x] = gen_random() % 64;
		ea -= gpr[x] << in->scale;
		gpr[x] = low_bytes(gpr[x], in->adsize);
	}
	gpr[b] = low_bytes(ea, in->adsize);
	return true;
}

/* --- what operands should hold ------------------------------------------------------------------
 */

static bool has_operand(const struct insn *in, unsigned kind, unsigned access)
{
	const struct insn_row *row = &insn_rows[in->id];

	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == kind && row->op[i].access & access)
			return true;
	return false;
}

static bool is_one_of(const struct insn *in, const char *const names[])
{
	for (; *names; names++)
		if (gen_is(in, *names))
			return true;
	return false;
}

static bool is_string(const struct insn *in)
{
	return has_operand(in, OP_STR_SRC, ~0u) || has_operand(in, OP_STR_DST, ~0u);
}

static bool is_stack(const struct insn *in)
{
	static const char *const names[] = {"push",  "pop",    "pusha",  "pushad", "popa",  "popad",
					    "call",  "callf",  "ret",    "retf",   "enter", "leave",
					    "pushf", "pushfd", "pushfq", "popf",   "popfd", "popfq",
					    "iret",  "iretd",  "iretq",  NULL};

	return is_one_of(in, names);
}

static bool is_implicit(const struct insn *in)
{
	static const char *const names[] = {"xlat", "maskmovq", "maskmovdqu", "vmaskmovdqu", NULL};

	return is_one_of(in, names);
}

static bool takes_selector(const struct insn *in)
{
	static const char *const names[] = {"lar", "lsl", "verr", "verw", "lldt", "ltr", NULL};

	return has_operand(in, OP_SEG_REG, OP_WRITE) || is_one_of(in, names);
}

static bool takes_far_pointer(const struct insn *in)
{
	static const char *const names[] = {"lds", "les", "lgs", "lss", NULL};

	if (is_one_of(in, names))
		return true;
	return in->flags & INSN_MEM && (gen_is(in, "callf") || gen_is(in, "jmpf"));
}

static uint64_t landing_offset(const struct program *p, uint16_t selector)
{
	const struct truth_seg *s = truth_seg_of(selector);

	return random_landing(p) - (s && selector != SEL_CODE64 ? s->base : 0);
}

static uint64_t near_landing(const struct program *p)
{
	return gen_one_in(4) ? random_value() : landing_offset(p, p->start.sel[X86_CS]);
}

static unsigned stack_size(const struct program *p)
{
	const struct truth_seg *ss = truth_seg_of(p->start.sel[X86_SS]);

	return p->mode == INSN_MODE_64 ? 8 : ss->attr & X86_SEG_DB ? 4 : 2;
}

/* A far call from 32-bit to 64-bit code pushes with all of RSP.  Should that fault above 4 GiB,
 * while CS is still a 32-bit one, Linux takes it for erratum 100 of the K8 and tries again, for
 * ever.  It does so when the push wraps, and when the stack is a 16-bit one: the kernel's way to
 * return to such a stack (espfix) leaves an address of its own in the upper half of RSP. */
static bool pushes_high(const struct program *p)
{
	return stack_size(p) == 2 ||
	       (p->mode != INSN_MODE_64 && (uint32_t)p->start.gpr[X86_RSP] < 64);
}

static uint16_t code_selector(const struct program *p)
{
	static const uint16_t code[] = {SEL_CODE32, SEL_CODE64, SEL_CODE64, SEL_CODE32,
					0x07,       0x0f,       0x17};
	uint16_t sel;

	do
		sel = gen_one_in(3) ? random_selector() : code[gen_random() % ARRAY_SIZE(code)];
	while (pushes_high(p) && (sel | 3) == SEL_CODE64);
	return sel;
}

static void poke_value(gva_t at, uint64_t v, unsigned size)
{
	memory_poke(at, &v, size);
}

static void poke_far_pointer(const struct program *p, const struct insn *in, gva_t at)
{
	bool code = gen_is(in, "callf") || gen_is(in, "jmpf");
	uint16_t sel = code ? code_selector(p) : random_selector();

	poke_value(at, landing_offset(p, sel), in->opsize);
	poke_value(at + in->opsize, sel, 2);
}

/* What RET, RETF, IRET and POP find. */
static void poke_stack(const struct program *p, const struct insn *in, gva_t at)
{
	unsigned size = in->opsize;
	uint16_t cs = code_selector(p);

	if (gen_is(in, "ret"))
		poke_value(at, near_landing(p), size);
	else if (has_operand(in, OP_SEG, OP_WRITE))
		poke_value(at, random_selector(), 2);
	if (!gen_is(in, "retf") && !gen_is(in, "iret") && !gen_is(in, "iretd") &&
	    !gen_is(in, "iretq"))
		return;
	poke_value(at, landing_offset(p, cs), size);
	poke_value(at + size, cs, size);
	if (gen_is(in, "retf"))
		return;
	poke_value(at + 2 * size, RFLAGS_ONE | (gen_random() & 0x277ed5), size);
	poke_value(at + 3 * size, DATA_GVA + 2 * PAGE_SIZE, size);
	poke_value(at + 4 * size, gen_one_in(4) ? random_selector() : SEL_DATA, size);
}

/* An image for FXRSTOR and XRSTOR: mostly right. */
static void poke_image(gva_t at)
{
	static uint8_t image[NATIVE_XSAVE_MAX];
	unsigned size = native_xsave_size();
	uint64_t compact = BIT(63) | (truth_xcr0 & gen_random());

	random_xsave(image);
	if (gen_one_in(2))
		memcpy(image + 520, &compact, 8);
	if (gen_one_in(8))
		image[gen_random() % 2 ? 26 : 512 + gen_random() % 64] ^= gen_random();
	memory_poke(at, image, size);
}

static bool is_cmpxchg(const struct insn *in)
{
	return insn_rows[in->id].attrs & ROW_LOCK && !memcmp(insn_rows[in->id].name, "cmpxchg", 7);
}

/* Let about half of the comparisons succeed. */
static void aim_cmpxchg(struct program *p, const struct insn *in, gva_t at)
{
	uint64_t v[2] = {0};

	if (gen_one_in(2) || !memory_peek(at, v, in->msize ? in->msize : in->opsize))
		return;
	if (gen_is(in, "cmpxchg8b")) {
		p->start.gpr[X86_RAX] = (uint32_t)v[0];
		p->start.gpr[X86_RDX] = v[0] >> 32;
	} else {
		p->start.gpr[X86_RAX] = v[0];
		if (gen_is(in, "cmpxchg16b"))
			p->start.gpr[X86_RDX] = v[1];
	}
}

static void fill_memory(struct program *p, const struct insn *in, gva_t at)
{
	uint32_t mxcsr = gen_random() & (gen_one_in(4) ? ~0u : 0xffff);

	if (takes_far_pointer(in))
		poke_far_pointer(p, in, at);
	else if (takes_selector(in))
		poke_value(at, random_selector(), 2);
	else if (gen_is(in, "call") || gen_is(in, "jmp"))
		poke_value(at, near_landing(p), in->opsize);
	else if (gen_is(in, "ldmxcsr") || gen_is(in, "vldmxcsr"))
		poke_value(at, mxcsr, 4);
	else if (insn_rows[in->id].special == SPECIAL_XSAVE ||
		 insn_rows[in->id].special == SPECIAL_FXSAVE)
		poke_image(at);
}

static void fill_register(struct program *p, const struct insn *in)
{
	if (!is_cpu_gpr(in->rm))
		return;
	if (takes_selector(in))
		p->start.gpr[in->rm / 8] = low_bytes(random_selector(), 2);
	else if (gen_is(in, "call") || gen_is(in, "jmp"))
		p->start.gpr[in->rm / 8] = low_bytes(near_landing(p), in->opsize);
}

/* --- aiming -------------------------------------------------------------------------------------
 */

static void aim_strings(struct program *p, const struct insn *in)
{
	uint64_t *gpr = p->start.gpr;
	unsigned size = in->adsize;
	gva_t from = random_target(8), to = random_target(16);
	unsigned seg = is_string(in) ? X86_ES : in->seg;

	if (gen_one_in(4)) /* overlapping */
		to = from + gen_random() % 32 - 16;
	if (is_string(in))
		gpr[X86_RCX] =
			low_bytes(gen_one_in(16) ? gen_random() % 5000 : gen_random() % 40, size);
	gpr[X86_RSI] = low_bytes(from - seg_base(p, in->seg), size);
	gpr[X86_RDI] = low_bytes(to - seg_base(p, seg), size);
	gpr[X86_RBX] = low_bytes(random_target(256) - seg_base(p, in->seg), size);
}

static void aim_stack(struct program *p, const struct insn *in)
{
	uint64_t *gpr = p->start.gpr;
	gva_t at = random_target(64) & ~(gen_one_in(8) ? 0ull : 1ull);

	gpr[X86_RSP] = low_bytes(at - seg_base(p, X86_SS), stack_size(p));
	gpr[X86_RBP] = low_bytes(random_target(64) - seg_base(p, X86_SS), stack_size(p));
	if (is_stack(in))
		poke_stack(p, in, at);
}

/* The bytes of a far pointer or an address in the code are the last ones. */
static bool patch_last(struct program *p, struct insn *in, uint64_t v, unsigned n,
		       unsigned before_end)
{
	uint8_t bytes[32] = {0};

	memcpy(bytes, in->bytes, in->len);
	memcpy(bytes + in->len - before_end, &v, n);
	return gen_decode(in, bytes, p->mode);
}

static bool aim_far_direct(struct program *p, struct insn *in)
{
	uint16_t sel = code_selector(p);

	return patch_last(p, in, sel, 2, 2) &&
	       patch_last(p, in, landing_offset(p, sel), in->opsize, in->opsize + 2);
}

/* See pushes_high: what could not be poked may name 64-bit code too. */
static bool calls_code64(const struct program *p, const struct insn *in, gva_t at)
{
	uint16_t sel;

	return gen_is(in, "callf") && stack_size(p) == 2 && memory_peek(at + in->opsize, &sel, 2) &&
	       (sel | 3) == SEL_CODE64;
}

static bool aim(struct program *p, struct insn *in, unsigned code_off)
{
	const struct insn_row *row = &insn_rows[in->id];
	gva_t at = random_target(in->msize);

	aim_stack(p, in);
	if (is_string(in) || is_implicit(in))
		aim_strings(p, in);
	if (!reaches_from_fs(p, in))
		return false;
	if (has_operand(in, OP_FAR, ~0u))
		return aim_far_direct(p, in);
	if (has_operand(in, OP_MOFFS, ~0u))
		return patch_last(p, in, at - seg_base(p, in->seg), in->adsize, in->adsize);
	if (row->special == SPECIAL_XSAVE)
		p->start.gpr[X86_RAX] = gen_one_in(4) ? random_value() : truth_xcr0 & gen_random();
	if (!(in->flags & INSN_MEM)) {
		fill_register(p, in);
		return true;
	}
	if (row->special == SPECIAL_XSAVE || row->special == SPECIAL_FXSAVE)
		at &= gen_one_in(8) ? ~0ull : ~63ull;
	p->operand = at;
	if (row->attrs & ROW_BITSTRING) { /* keep the bit offset near */
		if (!is_cpu_gpr(in->reg) || in->reg == in->base || in->reg == in->index)
			return false;
		p->start.gpr[in->reg / 8] = low_bytes(gen_random() % 512 - 256, in->opsize);
	}
	if (!aim_modrm(p, in, code_off, at))
		return false;
	fill_memory(p, in, at);
	if (calls_code64(p, in, at))
		return false;
	if (is_cmpxchg(in) && in->base != CPU_GPR_OFF(X86_RAX) &&
	    in->base != CPU_GPR_OFF(X86_RDX) && in->index != CPU_GPR_OFF(X86_RAX) &&
	    in->index != CPU_GPR_OFF(X86_RDX))
		aim_cmpxchg(p, in, at);
	return true;
}

/* --- programs -----------------------------------------------------------------------------------
 */

static bool reaches_memory(const struct insn *in)
{
	return (in->flags & INSN_MEM) || is_string(in) || is_stack(in) || is_implicit(in);
}

/* What the registers the subject needs are, or the segments, it must be the one to say. */
static bool leaves_gprs(const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	return row->cls != CLASS_GPR && row->cls != CLASS_VEXGPR && !(row->attrs & ROW_GPR_WRITE) &&
	       !(in->flags & INSN_END);
}

static bool random_insn(struct insn *in, enum insn_mode mode, bool reads_flags)
{
	for (unsigned tries = 0; tries < 100000; tries++) {
		unsigned id = gen_random() % INSN_NR_IDS;
		const struct gen_row *r = gen_row(mode, id);

		if (!r->nr || (reads_flags && !insn_rows[id].fl_read))
			continue;
		*in = r->stock[gen_random() % r->nr];
		gen_vary(in, mode);
		return true;
	}
	return false;
}

static void append(struct program *p, const struct insn *in)
{
	p->in[p->nr++] = *in;
	memcpy(p->code + p->len, in->bytes, in->len);
	p->len += in->len;
}

/* One that touches no memory; before the subject it keeps what the subject's address is made of. */
static void append_filler(struct program *p, bool before_memory, bool reads_flags)
{
	struct insn in;

	if (!random_insn(&in, p->mode, reads_flags) || reaches_memory(&in) ||
	    (in.flags & INSN_END && !reads_flags) || (before_memory && !leaves_gprs(&in)))
		return;
	append(p, &in);
}

/* A branch into the middle of the code would run who knows what. */
static bool branches_into(const struct program *p)
{
	const struct insn *last = &p->in[p->nr - 1];
	uint64_t start = p->start.rip, target = start + p->len + last->imm;

	if (!has_operand(last, OP_REL, ~0u))
		return false;
	return target - start < p->len || (uint16_t)(target - start) < p->len;
}

bool program_make(struct program *p, enum insn_mode mode, const struct insn *subject)
{
	unsigned before = gen_random() % 3, after = gen_random() % 3;
	struct insn in = *subject;
	bool memory = reaches_memory(&in);

	p->mode = mode;
	p->nr = p->len = 0;
	/* Anywhere in the page, so that code at its end runs off into an unmapped one. */
	p->at = CODE_GVA + (gen_one_in(16) ? PAGE_SIZE - gen_random() % 24 : gen_random() % 2048);
	random_state(p);
	p->tf = p->start.rflags & RFLAGS_TF;
	p->start.rip = p->at - seg_base(p, X86_CS);
	for (unsigned i = 0; i < before; i++)
		append_filler(p, memory, false);
	if (!aim(p, &in, p->len) || gen_excluded(&in, mode))
		return false;
	if (mode != INSN_MODE_64) /* the upper halves are nobody's (AMD APM 1 "64-Bit Mode") */
		for (unsigned i = 0; i < 8; i++)
			p->start.gpr[i] &= 0xffffffff;
	append(p, &in);
	for (unsigned i = 0; i < after && !(in.flags & INSN_END); i++)
		append_filler(p, false, false);
	if (!(in.flags & INSN_END) && gen_one_in(3))
		append_filler(p, false, true);
	/* With the upper half in use, a far call to 64-bit code may fault above 4 GiB while CS is
	 * still a 32-bit one.  Linux takes that for erratum 100 of the K8 and tries again, for
	 * ever. */
	return !branches_into(p);
}
