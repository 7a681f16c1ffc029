/* engine/soft/xlat_mem.c - guest memory operands in translated code.
 *
 *     lea  t0, [ea + size - 1]
 *     lea  t1, [ea]
 *     shr  t1, 8 ; and t1, 0x3ff0            ; index of the TLB entry * 16
 *     and  t0, -4096
 *     cmp  t0, gs:[tlb + t1] ; jne slow
 *     mov  t1, gs:[tlb + t1 + 8]             ; addend
 *     op   [base + t1 + disp]
 *
 * The address is known while translating for RIP-relative and absolute operands; then so are index
 * and tag.  A miss, whatever its reason, interprets the whole instruction: access.c fills the TLB,
 * faults, or reaches the device.  The lookup destroys the host's flags. */
#include "engine/soft/xlat_int.h"

_Static_assert(sizeof(struct tlb_entry) == 16, "indices are shifted, not multiplied");

enum { INDEX_MASK = (TLB_ENTRIES - 1) << 4, INDEX_SHIFT = PAGE_SHIFT - 4 };

static int32_t array_of(bool write)
{
	return (int32_t)(write ? offsetof(struct tlb, wr) : offsetof(struct tlb, rd));
}

static const struct xmem *tlb_field(struct xmem *m, int base, int32_t disp)
{
	*m = (struct xmem){.base = (int8_t)base, .index = H_NONE, .gs = true, .disp = disp};
	return m;
}

void xlat_slow(struct xgen *g, uint32_t at, bool back)
{
	g->slow[g->nr_slow++] =
		(struct xslow){.from = at, .index = (uint8_t)g->index, .back = back};
}

/* --- addresses ---------------------------------------------------------------------------------
 */

struct ea {
	int base, index;         /* guest registers; -1: none */
	const uint64_t *segbase; /* to be added */
	bool known;              /* all of it: .at */
	uint64_t at;             /* displacement, of which RIP may be a part */
	int32_t disp;            /* the same; at may be more */
};

static int guest_reg(const struct xgen *g, uint16_t off)
{
	return off < CPU_GPR_OFF(X86_NR_GPR) ? off / 8 : -1;
}

bool xlat_has_segbase(const struct xgen *g, const struct insn *in)
{
	return g->narrow ? in->seg >= X86_FS : in->segbase != CPU_OFF(zero);
}

/* MOV between the accumulator and an address in the instruction. */
bool xlat_is_moffs(const struct insn *in)
{
	return in->map == MAP_1 && (in->opcode & 0xfc) == 0xa0;
}

static void ea_of(const struct xgen *g, const struct insn *in, struct ea *ea)
{
	ea->base = guest_reg(g, in->base);
	ea->index = guest_reg(g, in->index);
	ea->segbase = NULL;
	if (xlat_has_segbase(g, in))
		ea->segbase = (const uint64_t *)((const char *)g->cpu + in->segbase);
	ea->known = ea->base < 0 && ea->index < 0 && !ea->segbase;
	ea->at = (uint64_t)(int64_t)in->disp;
	if (in->base == CPU_OFF(rip))
		ea->at += g->next_rip;
	if (xlat_is_moffs(in))
		ea->at = in->imm;
	if (g->narrow)
		ea->at = (uint32_t)ea->at;
	ea->disp = (int32_t)ea->at;
}

bool xlat_mem_ok(const struct xgen *g, const struct insn *in)
{
	struct ea ea;

	ea_of(g, in, &ea);
	if (g->narrow) /* a code segment is not written, and perhaps not read */
		return in->adsize == 4 && in->seg != X86_CS;
	return in->flags & INSN_FLAT && (ea.known || (int64_t)ea.at == ea.disp) &&
	       ea.disp < INT32_MAX - 64;
}

static const struct xmem *gpr_mem(struct xmem *m, const struct xgen *g, int n)
{
	*m = (struct xmem){.base = H_RIP, .index = H_NONE, .abs = &g->cpu->gpr[n]};
	return m;
}

/* The host register of guest register n; one that lives in memory is loaded into tmp. */
static int reg_or_load(struct xgen *g, int n, unsigned tmp)
{
	struct xmem m;

	if (n < 0)
		return H_NONE;
	if (host_reg((unsigned)n) != H_NONE)
		return host_reg((unsigned)n);
	x_load(g, tmp, gpr_mem(&m, g, n));
	return (int)tmp;
}

/* base + index << scale + disp, with T0 and T1 as scratch.  No flags. */
static struct xmem ea_sum(struct xgen *g, const struct insn *in, const struct ea *ea, int32_t disp)
{
	int base = reg_or_load(g, ea->base, T0), index = reg_or_load(g, ea->index, T1);

	return (struct xmem){
		.base = (int8_t)base, .index = (int8_t)index, .scale = in->scale, .disp = disp};
}

static void ea_compute(struct xgen *g, const struct insn *in, const struct ea *ea, unsigned to,
		       int32_t disp)
{
	const struct xmem m = ea_sum(g, in, ea, disp);

	x_lea_word(g, to, &m);
}

static void add_segbase(struct xgen *g, const struct ea *ea, unsigned to)
{
	const struct xmem m = {.base = H_RIP, .index = H_NONE, .abs = ea->segbase};

	if (ea->segbase)
		x_add_mem(g, to, &m);
}

/* T0 = address of the last byte, T1 = address: what a lookup begins with. */
static void ea_both(struct xgen *g, const struct insn *in, const struct ea *ea, unsigned size)
{
	bool scratch = ea->segbase || (ea->base >= 0 && host_reg((unsigned)ea->base) == H_NONE) ||
		       (ea->index >= 0 && host_reg((unsigned)ea->index) == H_NONE);

	if (!scratch) {
		ea_compute(g, in, ea, T1, ea->disp);
		if (size > 1)
			ea_compute(g, in, ea, T0, ea->disp + (int32_t)size - 1);
		else
			x_mov(g, T0, T1);
		return;
	}
	ea_compute(g, in, ea, T0, ea->disp);
	add_segbase(g, ea, T0);
	x_mov(g, T1, T0);
	if (size > 1)
		x_alu_imm(g, X_ADD, T0, (int32_t)size - 1, true);
}

/* --- lookups -----------------------------------------------------------------------------------
 */

uint32_t xlat_tlb_lookup(struct xgen *g, bool write)
{
	struct xmem m;
	uint32_t miss;

	x_shift(g, 5, T1, INDEX_SHIFT, false);
	x_alu_imm(g, X_AND, T1, INDEX_MASK, false);
	x_alu_imm(g, X_AND, T0, -(int32_t)PAGE_SIZE, true);
	x_cmp_mem(g, T0, tlb_field(&m, T1, array_of(write)));
	miss = x_jcc(g, CC_NZ);
	x_load(g, T1, tlb_field(&m, T1, array_of(write) + 8));
	return miss;
}

static void lookup_known(struct xgen *g, uint64_t at, unsigned size, bool write, bool back)
{
	uint64_t page = at & PAGE_MASK;
	int32_t entry = array_of(write) + (int32_t)((at >> PAGE_SHIFT) % TLB_ENTRIES * 16);
	struct xmem m;

	if ((at + size - 1) >> PAGE_SHIFT != at >> PAGE_SHIFT) {
		xlat_slow(g, x_jmp(g), back);
		return;
	}
	tlb_field(&m, H_NONE, entry);
	if (page == (uint64_t)(int32_t)page) {
		x_cmp_mem_imm32(g, &m, (int32_t)page, true);
	} else {
		x_mov_imm(g, T0, page);
		x_cmp_mem(g, T0, &m);
	}
	xlat_slow(g, x_jcc(g, CC_NZ), back);
	x_load(g, T1, tlb_field(&m, H_NONE, entry + 8));
}

static void operand_known(struct xgen *g, uint64_t at, struct xmem *m)
{
	*m = (struct xmem){.base = T1, .index = H_NONE};
	if (at == (uint64_t)(int32_t)at) {
		m->disp = (int32_t)at;
		return;
	}
	x_mov_imm(g, T0, at);
	x_lea(g, T1, &(struct xmem){.base = T1, .index = T0});
}

/* --- 32-bit code --------------------------------------------------------------------------------
 *
 * Its addresses wrap at 4 GiB, so the operand is [t2 + t1] with the whole address in t2.  FS and GS
 * may have a base; they must not have a limit to speak of, and their offsets must not wrap. */

static void add_segbase32(struct xgen *g, const struct insn *in, unsigned size, bool back)
{
	const struct xmem flat = XMEM_CPU(g, seg[in->seg].flat),
			  base = XMEM_CPU(g, seg[in->seg].base);

	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0x80}, X_CMP, &flat, 1);
	x8(g, SEG_FLAT_READ | SEG_FLAT_WRITE);
	xlat_slow(g, x_jcc(g, CC_NZ), back);
	if (size > 1) {
		x_lea32(g, T0,
			&(struct xmem){.base = T2, .index = H_NONE, .disp = (int32_t)size - 1});
		x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x39}, T2, T0);
		xlat_slow(g, x_jcc(g, CC_B), back);
	}
	x_op_mem(g, &(struct xop){.map = MAP_1, .opcode = 0x03}, T2, &base, 0);
}

/* Look up [t2, t2 + size). */
static uint32_t lookup_t2(struct xgen *g, unsigned size, bool write)
{
	const struct xmem last = {.base = T2, .index = H_NONE, .disp = (int32_t)size - 1};

	x_lea32(g, T0, &last);
	x_op_reg(g, &(struct xop){.map = MAP_1, .opcode = 0x89}, T2, T1);
	return xlat_tlb_lookup(g, write);
}

static void mem_narrow(struct xgen *g, const struct insn *in, const struct ea *ea, unsigned size,
		       bool write, bool back)
{
	ea_compute(g, in, ea, T2, ea->disp);
	if (ea->segbase)
		add_segbase32(g, in, size, back);
	xlat_slow(g, lookup_t2(g, size, write), back);
}

/* T2 = reg + disp */
static void at_t2(struct xgen *g, unsigned reg, int32_t disp, struct xmem *m)
{
	x_lea32(g, T2, &(struct xmem){.base = (int8_t)reg, .index = H_NONE, .disp = disp});
	*m = (struct xmem){.base = T2, .index = T1};
}

/* --- operands ----------------------------------------------------------------------------------
 */

/* T1 holds the addend: fold in what does not fit one operand. */
static void operand(struct xgen *g, const struct insn *in, const struct ea *ea, struct xmem *m)
{
	struct xmem t;
	int index = reg_or_load(g, ea->index, T0), base;

	add_segbase(g, ea, T1);
	if (index != H_NONE)
		x_lea(g, T1,
		      &(struct xmem){.base = T1, .index = (int8_t)index, .scale = in->scale});
	*m = (struct xmem){.base = T1, .index = H_NONE, .disp = ea->disp};
	if (ea->base < 0)
		return;
	base = host_reg((unsigned)ea->base);
	if (base != H_NONE) {
		m->base = (int8_t)base;
		m->index = T1;
	} else {
		x_add_mem(g, T1, gpr_mem(&t, g, ea->base));
	}
}

void xlat_mem(struct xgen *g, const struct insn *in, unsigned size, bool write, bool back,
	      struct xmem *m)
{
	struct ea ea;

	ea_of(g, in, &ea);
	if (g->group && g->narrow) {
		at_t2(g, (unsigned)host_reg((unsigned)ea.base), ea.disp, m);
		return;
	}
	if (g->group) {
		*m = (struct xmem){
			.base = (int8_t)host_reg((unsigned)ea.base), .index = T1, .disp = ea.disp};
		return;
	}
	xlat_flags_clobber(g);
	if (ea.known) {
		lookup_known(g, ea.at, size, write, back);
		operand_known(g, ea.at, m);
		return;
	}
	if (g->narrow) {
		mem_narrow(g, in, &ea, size, write, back);
		*m = (struct xmem){.base = T2, .index = T1};
		return;
	}
	ea_both(g, in, &ea, size);
	xlat_slow(g, xlat_tlb_lookup(g, write), back);
	operand(g, in, &ea, m);
}

void xlat_mem_at(struct xgen *g, unsigned reg, int32_t disp, unsigned size, bool write, bool back,
		 struct xmem *m)
{
	*m = (struct xmem){.base = (int8_t)reg, .index = T1, .disp = disp};
	if (g->group && back) {
		if (g->narrow)
			at_t2(g, reg, disp, m);
		return;
	}
	xlat_flags_clobber(g);
	if (g->group) { /* CALL or RET, the last of all */
		g->group->inside = true;
		g->group->write_last = write;
		g->group->back = x_offset(g);
		if (g->narrow)
			at_t2(g, reg, disp, m);
		return;
	}
	if (g->narrow) {
		at_t2(g, reg, disp, m);
		xlat_slow(g, lookup_t2(g, size, write), back);
		return;
	}
	x_lea32(g, T1, &(struct xmem){.base = (int8_t)reg, .index = H_NONE, .disp = disp});
	x_lea(g, T0,
	      &(struct xmem){
		      .base = (int8_t)reg, .index = H_NONE, .disp = disp + (int32_t)size - 1});
	xlat_slow(g, xlat_tlb_lookup(g, write), back);
}

uint32_t xlat_lookup_span(struct xgen *g, unsigned reg, int32_t disp, unsigned size, bool write)
{
	x_lea32(g, T1, &(struct xmem){.base = (int8_t)reg, .index = H_NONE, .disp = disp});
	x_lea_word(g, T0,
		   &(struct xmem){
			   .base = (int8_t)reg, .index = H_NONE, .disp = disp + (int32_t)size - 1});
	return xlat_tlb_lookup(g, write);
}

void xlat_ea(struct xgen *g, const struct insn *in, unsigned reg, bool half)
{
	struct xmem m;
	struct ea ea;

	ea_of(g, in, &ea);
	if (ea.known || in->base == CPU_OFF(rip)) {
		x_mov_imm(g, reg, half ? (uint32_t)ea.at : ea.at);
		return;
	}
	m = ea_sum(g, in, &ea, ea.disp);
	if (half)
		x_lea32(g, reg, &m);
	else
		x_lea_word(g, reg, &m);
}
