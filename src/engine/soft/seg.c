/* engine/soft/seg.c - see seg.h.
 *
 * A descriptor is read once, as one 8-byte load, and all checks are made on that copy.  The only
 * write back is a locked OR of the type byte (accessed and busy bits), as on hardware, so that two
 * CPUs sharing a GDT cannot lose each other's changes. */
#include "engine/soft/seg.h"

#include "engine/soft/access.h"
#include "engine/soft/block.h"
#include "engine/soft/insn_exec.gen.h"

/* --- descriptor tables -------------------------------------------------------------------------
 */

static bool table_of(const struct cpu *cpu, uint16_t sel, uint64_t *base, uint32_t *limit)
{
	if (!(sel & SEL_TI)) {
		*base = cpu->gdtr.base;
		*limit = cpu->gdtr.limit;
		return true;
	}
	*base = cpu->ldtr.base;
	*limit = cpu->ldtr.limit;
	return !(cpu->ldtr.attr & X86_SEG_UNUSABLE);
}

bool desc_fetch(struct cpu *cpu, uint16_t sel, struct desc *d)
{
	uint64_t base;
	uint32_t limit;

	if (!table_of(cpu, sel, &base, &limit) || (sel | 7u) > limit)
		return false;
	d->sel = sel;
	d->lin = sys_linear(cpu, base, sel & ~7u);
	d->raw = sys_ld64(cpu, d->lin);
	d->raw_hi = 0;
	return true;
}

/* AMD APM 2 "Long-Mode Segment Descriptors": bits 12:8 of the last doubleword must be zero, so that
 * nobody can use the second half as a descriptor of its own. */
bool desc_fetch_high(struct cpu *cpu, struct desc *d)
{
	uint64_t base;
	uint32_t limit;

	if (!table_of(cpu, d->sel, &base, &limit) || (d->sel | 7u) + 8 > limit)
		return false;
	d->raw_hi = sys_ld64(cpu, sys_linear(cpu, d->lin, 8));
	return !(d->raw_hi >> 40 & 0x1f);
}

void sys_probe(struct cpu *cpu, gva_t lin, unsigned size, bool write)
{
	struct mmu_access a = {.lin = lin, .write = write, .smap = cpu->cr4 & CR4_SMAP};
	struct tlb *t = cpu->tlb_sys;

	for (gva_t end = lin + size; lin != end;) {
		unsigned part = MIN(end - lin, PAGE_SIZE - (lin & ~PAGE_MASK));

		a.lin = lin;
		if (!tlb_hit(tlb_slot(write ? t->wr : t->rd, lin), lin, part))
			mmu_translate(cpu, &a);
		lin += part;
	}
}

/* Change byte 5 of a descriptor.  RAM is changed by one locked operation even when its page holds
 * decoded code; a descriptor in device memory cannot be. */
static void desc_change_type(struct cpu *cpu, struct desc *d, unsigned clear, unsigned set)
{
	gva_t lin = sys_linear(cpu, d->lin, 5);
	struct mmu_access a = {.lin = lin, .write = true, .smap = cpu->cr4 & CR4_SMAP};
	gpa_t gpa = mmu_translate(cpu, &a);
	uint8_t *p = vm_hva(cpu->vm, gpa);

	d->raw = (d->raw & ~((uint64_t)clear << 40)) | (uint64_t)set << 40;
	if (!p) {
		sys_st8(cpu, lin, (sys_ld8(cpu, lin) & ~clear) | set);
		return;
	}
	if (set)
		__atomic_fetch_or(p, set, __ATOMIC_SEQ_CST);
	if (clear)
		__atomic_fetch_and(p, ~clear, __ATOMIC_SEQ_CST);
	block_ram_written(cpu, gpa, 1);
}

void desc_set_type_bits(struct cpu *cpu, struct desc *d, unsigned bits)
{
	desc_change_type(cpu, d, 0, bits);
}

void desc_clear_type_bits(struct cpu *cpu, struct desc *d, unsigned bits)
{
	desc_change_type(cpu, d, bits, 0);
}

void desc_set_accessed(struct cpu *cpu, struct desc *d)
{
	if (!(desc_type(d) & SEG_TYPE_ACCESSED))
		desc_change_type(cpu, d, 0, SEG_TYPE_ACCESSED);
}

/* --- hidden parts ------------------------------------------------------------------------------
 */

static uint8_t flat_bits(const struct cpu *cpu, const struct cpu_seg *s)
{
	unsigned type = X86_SEG_TYPE(s->attr);

	if (s->limit != 0xffffffff)
		return 0;
	if (cpu->real && !(type & SEG_TYPE_EXPAND)) /* only limits matter there */
		return SEG_FLAT_READ | SEG_FLAT_WRITE;
	if ((s->attr & X86_SEG_UNUSABLE) || !(s->attr & X86_SEG_P))
		return 0;
	if (type & SEG_TYPE_CODE)
		return type & SEG_TYPE_RW ? SEG_FLAT_READ : 0;
	if (type & SEG_TYPE_EXPAND)
		return 0;
	return type & SEG_TYPE_RW ? SEG_FLAT_READ | SEG_FLAT_WRITE : SEG_FLAT_READ;
}

void seg_update_flat(const struct cpu *cpu, struct cpu_seg *s)
{
	s->flat = flat_bits(cpu, s);
}

void seg_update_flat_all(struct cpu *cpu)
{
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		seg_update_flat(cpu, &cpu->seg[i]);
}

void seg_from_desc(struct cpu *cpu, struct cpu_seg *s, uint16_t sel, const struct desc *d)
{
	s->selector = sel;
	s->base = desc_base(d);
	s->limit = desc_limit(d);
	s->attr = desc_attr(d);
	if (desc_is_segment(d))
		s->attr |= SEG_TYPE_ACCESSED;
	seg_update_flat(cpu, s);
}

/* DPL follows RPL: for a null SS in 64-bit mode it is the CPL, which is where a saved state keeps
 * it. */
void seg_make_null(struct cpu_seg *s, uint16_t sel)
{
	*s = (struct cpu_seg){.selector = sel, .attr = X86_SEG_UNUSABLE | SEL_RPL(sel) << 5};
}

/* Limit and attributes survive a load in real mode: big real mode works that way.  A register that
 * protected mode left null has none worth keeping. */
void seg_make_real(struct cpu *cpu, struct cpu_seg *s, uint16_t sel)
{
	if (s->attr & X86_SEG_UNUSABLE) {
		s->limit = 0xffff;
		s->attr = X86_SEG_P | X86_SEG_S | SEG_TYPE_RW | SEG_TYPE_ACCESSED;
	}
	s->selector = sel;
	s->base = (uint32_t)sel << 4;
	seg_update_flat(cpu, s);
}

void seg_make_v86(struct cpu_seg *s, uint16_t sel)
{
	*s = (struct cpu_seg){
		.selector = sel,
		.base = (uint32_t)sel << 4,
		.limit = 0xffff,
		.attr = X86_SEG_P | 3u << 5 | X86_SEG_S | SEG_TYPE_RW | SEG_TYPE_ACCESSED,
	};
}

void seg_set_cs(struct cpu *cpu, const struct cpu_seg *cs, unsigned cpl)
{
	cpu->seg[X86_CS] = *cs;
	cpu->cpl = cpl;
}

/* SDM 2 RET, "RETURN-TO-OUTER-PRIVILEGE-LEVEL": data and nonconforming code segments whose DPL is
 * below the new CPL.  Only the selector and the right to use it go: the bases of FS and GS, which
 * 64-bit code goes on using (WRFSBASE may have set them), stay. */
void seg_drop_inner(struct cpu *cpu)
{
	static const uint8_t regs[] = {X86_ES, X86_DS, X86_FS, X86_GS};

	for (unsigned i = 0; i < ARRAY_SIZE(regs); i++) {
		struct cpu_seg *s = &cpu->seg[regs[i]];
		bool conforming_code = (s->attr & (SEG_TYPE_CODE | SEG_TYPE_EXPAND)) ==
				       (SEG_TYPE_CODE | SEG_TYPE_EXPAND);

		if (!(s->attr & X86_SEG_UNUSABLE) && !conforming_code &&
		    X86_SEG_DPL(s->attr) < cpu->cpl)
			*s = (struct cpu_seg){.base = s->base, .attr = X86_SEG_UNUSABLE};
	}
}

/* --- loading -----------------------------------------------------------------------------------
 */

void seg_check_stack(struct cpu *cpu, uint16_t sel, unsigned cpl, uint8_t vector, uint32_t ext,
		     struct desc *d)
{
	uint32_t err = SEL_ERR(sel) | ext;

	if (SEL_NULL(sel))
		cpu_fault(cpu, vector, ext);
	if (!desc_fetch(cpu, sel, d))
		cpu_fault(cpu, vector, err);
	if (SEL_RPL(sel) != cpl || !desc_is_writable_data(d) || desc_dpl(d) != cpl)
		cpu_fault(cpu, vector, err);
	if (!desc_present(d))
		cpu_fault(cpu, X86_EXC_SS, err);
}

/* A null SS is for 64-bit mode inside the kernel only. */
static void prepare_ss(struct cpu *cpu, uint16_t sel, struct cpu_seg *out)
{
	struct desc d;

	if (SEL_NULL(sel) && cpu->mode == INSN_MODE_64 && cpu->cpl != 3 &&
	    SEL_RPL(sel) == cpu->cpl) {
		seg_make_null(out, sel);
		return;
	}
	seg_check_stack(cpu, sel, cpu->cpl, X86_EXC_GP, 0, &d);
	desc_set_accessed(cpu, &d);
	seg_from_desc(cpu, out, sel, &d);
}

/* May a data segment register be given this descriptor? */
static bool data_type_ok(const struct desc *d)
{
	if (!desc_is_segment(d))
		return false;
	return !desc_is_code(d) || (desc_type(d) & SEG_TYPE_RW);
}

static void prepare_data(struct cpu *cpu, uint16_t sel, struct cpu_seg *out)
{
	uint32_t err = SEL_ERR(sel);
	struct desc d;

	if (SEL_NULL(sel)) {
		seg_make_null(out, sel);
		return;
	}
	if (!desc_fetch(cpu, sel, &d) || !data_type_ok(&d))
		fault_gp(cpu, err);
	if (!(desc_is_code(&d) && desc_is_conforming(&d)) &&
	    (SEL_RPL(sel) > desc_dpl(&d) || cpu->cpl > desc_dpl(&d)))
		fault_gp(cpu, err);
	if (!desc_present(&d))
		cpu_fault(cpu, X86_EXC_NP, err);
	desc_set_accessed(cpu, &d);
	seg_from_desc(cpu, out, sel, &d);
}

void seg_prepare(struct cpu *cpu, unsigned seg, uint16_t sel, struct cpu_seg *out)
{
	*out = cpu->seg[seg];
	if (cpu->real)
		seg_make_real(cpu, out, sel);
	else if (cpu->v86)
		seg_make_v86(out, sel);
	else if (seg == X86_SS)
		prepare_ss(cpu, sel, out);
	else
		prepare_data(cpu, sel, out);
}

static void seg_commit(struct cpu *cpu, unsigned seg, const struct cpu_seg *s)
{
	cpu->seg[seg] = *s;
	if (seg == X86_SS)
		cpu_mode_update(cpu); /* stack size */
}

void seg_load(struct cpu *cpu, unsigned seg, uint16_t selector)
{
	struct cpu_seg s;

	seg_prepare(cpu, seg, selector, &s);
	seg_commit(cpu, seg, &s);
}

/* --- checking an access ------------------------------------------------------------------------
 */

static _Noreturn void fault_access(struct cpu *cpu, unsigned seg)
{
	cpu_fault(cpu, seg == X86_SS ? X86_EXC_SS : X86_EXC_GP, 0);
}

static bool type_allows(const struct cpu *cpu, const struct cpu_seg *s, bool write)
{
	unsigned type = X86_SEG_TYPE(s->attr);

	if (cpu->real)
		return true;
	if (s->attr & X86_SEG_UNUSABLE)
		return false;
	if (type & SEG_TYPE_CODE)
		return !write && (type & SEG_TYPE_RW);
	return !write || (type & SEG_TYPE_RW);
}

/* SDM 3A "Limit Checking".  An expand-down segment holds the offsets above its limit. */
bool seg_limit_allows(const struct cpu_seg *s, uint64_t off, unsigned size)
{
	uint64_t last = off + size - 1;

	if ((s->attr & (SEG_TYPE_CODE | SEG_TYPE_EXPAND)) == SEG_TYPE_EXPAND)
		return off > s->limit && last <= (s->attr & X86_SEG_DB ? 0xffffffffull : 0xffff);
	return last <= s->limit;
}

static gva_t linear64(struct cpu *cpu, unsigned seg, uint64_t off, unsigned size)
{
	gva_t lin = off + (seg >= X86_FS ? cpu->seg[seg].base : 0);

	if (!cpu_canonical(cpu, lin, size))
		fault_access(cpu, seg);
	return lin;
}

gva_t seg_linear(struct cpu *cpu, unsigned seg, uint64_t off, unsigned size, bool write)
{
	const struct cpu_seg *s = &cpu->seg[seg];

	if (cpu->mode == INSN_MODE_64)
		return linear64(cpu, seg, off, size);
	if (likely(s->flat & (write ? SEG_FLAT_WRITE : SEG_FLAT_READ)) &&
	    off + size - 1 <= 0xffffffff)
		return (uint32_t)(s->base + off);
	if (!type_allows(cpu, s, write) || !seg_limit_allows(s, off, size))
		fault_access(cpu, seg);
	return (uint32_t)(s->base + off);
}

/* The table binds register and memory forms separately; here both are one function that looks at
 * INSN_MEM. */
#define EXEC_BOTH_FORMS(name)                                                                      \
	void exec_##name##_r(struct cpu *cpu, const struct insn *in)                               \
	{                                                                                          \
		name(cpu, in);                                                                     \
	}                                                                                          \
	void exec_##name##_m(struct cpu *cpu, const struct insn *in)                               \
	{                                                                                          \
		name(cpu, in);                                                                     \
	}

/* --- instructions: MOV, PUSH, POP, LDS and relatives -------------------------------------------
 */

/* Reading costs nothing but the access; where a selector is written to a register it fills the
 * operand size, in memory it is always a word (SDM 2 MOV). */
static void store_selector(struct cpu *cpu, const struct insn *in, uint16_t sel)
{
	if (in->flags & INSN_MEM)
		st16(cpu, insn_linear(cpu, in, 2, true), sel);
	else if (in->opsize == 2)
		CPU_REG(cpu, in->rm, uint16_t) = sel;
	else
		CPU_REG(cpu, in->rm, uint64_t) = sel;
}

static uint16_t load_selector(struct cpu *cpu, const struct insn *in)
{
	if (in->flags & INSN_MEM)
		return ld16(cpu, insn_linear(cpu, in, 2, false));
	return CPU_REG(cpu, in->rm, uint16_t);
}

static unsigned modrm_reg(const struct insn *in)
{
	return in->modrm >> 3 & 7; /* REX.R does not extend segment registers */
}

static void mov_ES(struct cpu *cpu, const struct insn *in)
{
	if (modrm_reg(in) >= X86_NR_SEG)
		fault_ud(cpu);
	store_selector(cpu, in, cpu->seg[modrm_reg(in)].selector);
}
EXEC_BOTH_FORMS(mov_ES)

/* SDM 3A "Masking Exceptions and Interrupts When Switching Stacks". */
static void shadow_after_ss(struct cpu *cpu, unsigned seg)
{
	if (seg == X86_SS)
		cpu->int_shadow = CPU_SHADOW_SS;
}

static void mov_SE(struct cpu *cpu, const struct insn *in)
{
	unsigned seg = modrm_reg(in);

	if (seg == X86_CS || seg >= X86_NR_SEG)
		fault_ud(cpu);
	seg_load(cpu, seg, load_selector(cpu, in));
	shadow_after_ss(cpu, seg);
}
EXEC_BOTH_FORMS(mov_SE)

/* 06 0E 16 1E and their POPs, 0F A0/A1, 0F A8/A9: the register is in bits 5:3. */
static unsigned opcode_seg(const struct insn *in)
{
	return in->opcode >> 3 & 7;
}

void exec_push_S(struct cpu *cpu, const struct insn *in)
{
	uint64_t sp = cpu->gpr[X86_RSP] - in->opsize;
	uint16_t sel = cpu->seg[opcode_seg(in)].selector;
	gva_t lin = stack_linear(cpu, sp, in->opsize, true);

	if (in->opsize == 2)
		st16(cpu, lin, sel);
	else if (in->opsize == 4)
		st32(cpu, lin, sel);
	else
		st64(cpu, lin, sel);
	stack_set_sp(cpu, sp);
}

/* Intel's processors read the selector, AMD's all of the operand. */
static uint16_t pop_selector(struct cpu *cpu, gva_t lin, unsigned size)
{
	if (size == 2 || !cpu_model_is_amd(cpu->vm->model))
		return ld16(cpu, lin);
	return (uint16_t)(size == 4 ? ld32(cpu, lin) : ld64(cpu, lin));
}

void exec_pop_S(struct cpu *cpu, const struct insn *in)
{
	uint64_t sp = cpu->gpr[X86_RSP];
	gva_t lin = stack_linear(cpu, sp, in->opsize, false);
	unsigned seg = opcode_seg(in);
	struct cpu_seg s;

	seg_prepare(cpu, seg, pop_selector(cpu, lin, in->opsize), &s);
	stack_set_sp(cpu, sp + in->opsize); /* with the old stack's size, also for POP SS */
	seg_commit(cpu, seg, &s);
	shadow_after_ss(cpu, seg);
}

static void load_far_pointer(struct cpu *cpu, const struct insn *in, unsigned seg)
{
	unsigned size = far_pointer_size(cpu, in);
	gva_t lin = insn_linear(cpu, in, size + 2, false);
	uint64_t off = size == 2 ? ld16(cpu, lin) : size == 4 ? ld32(cpu, lin) : ld64(cpu, lin);
	struct cpu_seg s;

	seg_prepare(cpu, seg, ld16(cpu, sys_linear(cpu, lin, size)), &s);
	if (size == 2)
		CPU_REG(cpu, in->reg, uint16_t) = off;
	else
		CPU_REG(cpu, in->reg, uint64_t) = off;
	seg_commit(cpu, seg, &s);
}

#define EXEC_LOAD_FAR(name, size, seg)                                                             \
	void exec_##name##_##size(struct cpu *cpu, const struct insn *in)                          \
	{                                                                                          \
		load_far_pointer(cpu, in, seg);                                                    \
	}

// clang-format off
EXEC_LOAD_FAR(les, 16, X86_ES)
EXEC_LOAD_FAR(les, 32, X86_ES)
EXEC_LOAD_FAR(lds, 16, X86_DS)
EXEC_LOAD_FAR(lds, 32, X86_DS)
EXEC_LOAD_FAR(lss, 16, X86_SS)
EXEC_LOAD_FAR(lss, 32, X86_SS)
EXEC_LOAD_FAR(lss, 64, X86_SS)
EXEC_LOAD_FAR(lfs, 16, X86_FS)
EXEC_LOAD_FAR(lfs, 32, X86_FS)
EXEC_LOAD_FAR(lfs, 64, X86_FS)
EXEC_LOAD_FAR(lgs, 16, X86_GS)
EXEC_LOAD_FAR(lgs, 32, X86_GS)
EXEC_LOAD_FAR(lgs, 64, X86_GS)
// clang-format on

/* --- instructions: LDTR and TR -----------------------------------------------------------------
 */

static void need_protected(struct cpu *cpu)
{
	if (!cpu_protected(cpu))
		fault_ud(cpu);
}

static void need_cpl0(struct cpu *cpu)
{
	if (cpu->cpl)
		fault_gp(cpu, 0);
}

static void store_system(struct cpu *cpu, const struct insn *in, uint16_t sel)
{
	need_protected(cpu);
	if (cpu->cr4 & CR4_UMIP)
		need_cpl0(cpu);
	store_selector(cpu, in, sel);
}

static void sldt_E(struct cpu *cpu, const struct insn *in)
{
	store_system(cpu, in, cpu->ldtr.selector);
}
EXEC_BOTH_FORMS(sldt_E)

static void str_E(struct cpu *cpu, const struct insn *in)
{
	store_system(cpu, in, cpu->tr.selector);
}
EXEC_BOTH_FORMS(str_E)

/* Common part of LLDT and LTR: a present descriptor in the GDT of one of two types. */
static void fetch_system(struct cpu *cpu, uint16_t sel, unsigned types, struct desc *d)
{
	uint32_t err = SEL_ERR(sel);

	if ((sel & SEL_TI) || !desc_fetch(cpu, sel, d) || desc_is_segment(d) ||
	    !(types >> desc_type(d) & 1))
		fault_gp(cpu, err);
	if (cpu->long_mode && !desc_fetch_high(cpu, d))
		fault_gp(cpu, err);
	if (!desc_present(d))
		cpu_fault(cpu, X86_EXC_NP, err);
	if (cpu->long_mode && !cpu_canonical_base(cpu, desc_base(d)))
		fault_gp(cpu, err);
}

static void lldt_E(struct cpu *cpu, const struct insn *in)
{
	uint16_t sel;
	struct desc d;

	need_protected(cpu);
	need_cpl0(cpu);
	sel = load_selector(cpu, in);
	if (SEL_NULL(sel)) {
		seg_make_null(&cpu->ldtr, sel);
		return;
	}
	fetch_system(cpu, sel, 1u << DESC_LDT, &d);
	seg_from_desc(cpu, &cpu->ldtr, sel, &d);
}
EXEC_BOTH_FORMS(lldt_E)

static void ltr_E(struct cpu *cpu, const struct insn *in)
{
	uint16_t sel;
	struct desc d;

	need_protected(cpu);
	need_cpl0(cpu);
	sel = load_selector(cpu, in);
	if (SEL_NULL(sel))
		fault_gp(cpu, 0);
	fetch_system(cpu, sel, 1u << DESC_TSS | (cpu->long_mode ? 0 : 1u << DESC_TSS16), &d);
	desc_set_type_bits(cpu, &d, DESC_BUSY_BIT);
	seg_from_desc(cpu, &cpu->tr, sel, &d);
}
EXEC_BOTH_FORMS(ltr_E)

/* --- instructions: asking about selectors ------------------------------------------------------
 */

static void set_zf(struct cpu *cpu, bool zf)
{
	cpu->cc = zf ? cpu->cc | RFLAGS_ZF : cpu->cc & ~RFLAGS_ZF;
}

/* Conforming code is visible to everyone; all else needs DPL >= CPL and RPL. */
static bool selector_visible(const struct cpu *cpu, const struct desc *d)
{
	if (desc_is_code(d) && desc_is_conforming(d))
		return true;
	return desc_dpl(d) >= cpu->cpl && desc_dpl(d) >= SEL_RPL(d->sel);
}

/* system_types: which system descriptors the instruction knows. */
static bool query(struct cpu *cpu, const struct insn *in, unsigned system_types, struct desc *d)
{
	uint16_t sel;

	need_protected(cpu);
	sel = load_selector(cpu, in);
	if (SEL_NULL(sel) || !desc_fetch(cpu, sel, d))
		return false;
	if (!desc_is_segment(d)) {
		if (!(system_types >> desc_type(d) & 1))
			return false;
		/* Long mode's 16-byte descriptors have to lie in the table as a whole. */
		if (cpu->long_mode && desc_type(d) != DESC_TASK_GATE && !desc_fetch_high(cpu, d))
			return false;
	}
	return selector_visible(cpu, d);
}

static void write_reg(struct cpu *cpu, const struct insn *in, uint32_t v)
{
	if (in->opsize == 2)
		CPU_REG(cpu, in->reg, uint16_t) = v;
	else
		CPU_REG(cpu, in->reg, uint64_t) = v;
}

/* SDM 2 LAR, table "Segment and Gate Types". */
enum {
	LSL_LONG = 1u << DESC_LDT | 1u << DESC_TSS | 1u << DESC_TSS_BUSY,
	LSL_LEGACY = LSL_LONG | 1u << DESC_TSS16 | 1u << DESC_TSS16_BUSY,
	LAR_LONG = LSL_LONG | 1u << DESC_CALL,
	LAR_LEGACY = LSL_LEGACY | 1u << DESC_CALL16 | 1u << DESC_TASK_GATE | 1u << DESC_CALL,
};

static void lar_GE(struct cpu *cpu, const struct insn *in)
{
	struct desc d;
	bool ok = query(cpu, in, cpu->long_mode ? LAR_LONG : LAR_LEGACY, &d);

	if (ok)
		write_reg(cpu, in, (d.raw >> 32) & (in->opsize == 2 ? 0xff00 : 0xffff00));
	set_zf(cpu, ok);
}
EXEC_BOTH_FORMS(lar_GE)

static void lsl_GE(struct cpu *cpu, const struct insn *in)
{
	struct desc d;
	bool ok = query(cpu, in, cpu->long_mode ? LSL_LONG : LSL_LEGACY, &d);

	if (ok)
		write_reg(cpu, in, desc_limit(&d));
	set_zf(cpu, ok);
}
EXEC_BOTH_FORMS(lsl_GE)

static void verr_E(struct cpu *cpu, const struct insn *in)
{
	struct desc d;

	set_zf(cpu, query(cpu, in, 0, &d) && data_type_ok(&d));
}
EXEC_BOTH_FORMS(verr_E)

static void verw_E(struct cpu *cpu, const struct insn *in)
{
	struct desc d;

	set_zf(cpu, query(cpu, in, 0, &d) && desc_is_writable_data(&d));
}
EXEC_BOTH_FORMS(verw_E)

static void arpl_EG(struct cpu *cpu, const struct insn *in)
{
	uint16_t want = SEL_RPL(CPU_REG(cpu, in->reg, uint16_t));
	bool amd = cpu_model_is_amd(cpu->vm->model);
	gva_t lin = 0;
	uint16_t sel;
	bool raise;

	need_protected(cpu);
	if (in->flags & INSN_MEM) {
		/* The destination is written only when it changes; on Intel's processors it must
		 * be writable anyhow. */
		lin = insn_linear(cpu, in, 2, !amd);
		if (!amd)
			probe_write(cpu, lin, 2);
		sel = ld16(cpu, lin);
	} else {
		sel = CPU_REG(cpu, in->rm, uint16_t);
	}
	raise = SEL_RPL(sel) < want;
	if (raise && (in->flags & INSN_MEM))
		st16(cpu, insn_linear(cpu, in, 2, true), (sel & ~3u) | want);
	else if (raise)
		CPU_REG(cpu, in->rm, uint16_t) = (sel & ~3u) | want;
	set_zf(cpu, raise);
}
EXEC_BOTH_FORMS(arpl_EG)
