/* engine/soft/access.h - guest memory as exec functions see it: linear addresses, faults included.
 *
 * ld8..ld64, st8..st64      one access with the rights of the current CPL
 * sys_ld8..                 implicit supervisor reads/writes (GDT, LDT, IDT, TSS)
 * insn_ea / insn_linear     effective and linear address of the ModRM memory operand
 * rmw_begin / rmw_end       read-modify-write: checked for writing first, then read, then written
 *
 * The fast path is one TLB compare.  Everything unusual (miss, page crossing, MMIO, code pages,
 * wrap-around, non-canonical) is in access.c.  All may unwind; see cpu.h. */
#pragma once

#include "engine/soft/cpu.h"

uint64_t ld_slow(struct cpu *cpu, gva_t lin, unsigned size);
void st_slow(struct cpu *cpu, gva_t lin, unsigned size, uint64_t v);
uint64_t sys_ld_slow(struct cpu *cpu, gva_t lin, unsigned size);
void sys_st_slow(struct cpu *cpu, gva_t lin, unsigned size, uint64_t v);

/* Any size up to 4096 bytes, possibly over a page edge; each page is checked before any byte is
 * written.  For FXSAVE, vector operands, ENTER and the like. */
void ld_bytes(struct cpu *cpu, gva_t lin, void *buf, unsigned size);
void st_bytes(struct cpu *cpu, gva_t lin, const void *buf, unsigned size);
/* Fault now if [lin, lin+size) could not be written (read); touches nothing. */
void probe_write(struct cpu *cpu, gva_t lin, unsigned size);
void probe_read(struct cpu *cpu, gva_t lin, unsigned size);
/* The same with the alignment check of one value of 1, 2, 4 or 8 bytes. */
void probe_store(struct cpu *cpu, gva_t lin, unsigned size);
void probe_load(struct cpu *cpu, gva_t lin, unsigned size);

/* Host address of [lin, lin+size) when it is plain RAM inside one page and needs no care, else
 * NULL (after having faulted if the access is not allowed).  Valid until the next unwind point. */
void *ld_ptr(struct cpu *cpu, gva_t lin, unsigned size);
void *st_ptr(struct cpu *cpu, gva_t lin, unsigned size);

static inline struct tlb_entry *tlb_slot(struct tlb_entry *t, gva_t lin)
{
	return &t[(lin >> PAGE_SHIFT) % TLB_ENTRIES];
}

static inline bool tlb_hit(const struct tlb_entry *e, gva_t lin, unsigned size)
{
	return likely(e->tag == ((lin + size - 1) & PAGE_MASK));
}

/* Guest memory as the host reaches it: at any alignment, as a whole where the host makes it so. */
typedef uint8_t guest8;
typedef uint16_t guest16 __attribute__((aligned(1), may_alias));
typedef uint32_t guest32 __attribute__((aligned(1), may_alias));
typedef uint64_t guest64 __attribute__((aligned(1), may_alias));

#define ACCESS_FUNCTIONS(bits)                                                                     \
	static inline uint##bits##_t ld##bits(struct cpu *cpu, gva_t lin)                          \
	{                                                                                          \
		const struct tlb_entry *e = tlb_slot(cpu->tlb->rd, lin);                           \
		if (tlb_hit(e, lin, bits / 8))                                                     \
			return *(const volatile guest##bits *)(lin + e->addend);                   \
		return (uint##bits##_t)ld_slow(cpu, lin, bits / 8);                                \
	}                                                                                          \
	static inline void st##bits(struct cpu *cpu, gva_t lin, uint##bits##_t v)                  \
	{                                                                                          \
		const struct tlb_entry *e = tlb_slot(cpu->tlb->wr, lin);                           \
		if (tlb_hit(e, lin, bits / 8))                                                     \
			*(volatile guest##bits *)(lin + e->addend) = v;                            \
		else                                                                               \
			st_slow(cpu, lin, bits / 8, v);                                            \
	}                                                                                          \
	static inline uint##bits##_t sys_ld##bits(struct cpu *cpu, gva_t lin)                      \
	{                                                                                          \
		const struct tlb_entry *e = tlb_slot(cpu->tlb_sys->rd, lin);                       \
		if (tlb_hit(e, lin, bits / 8))                                                     \
			return *(const volatile guest##bits *)(lin + e->addend);                   \
		return (uint##bits##_t)sys_ld_slow(cpu, lin, bits / 8);                            \
	}                                                                                          \
	static inline void sys_st##bits(struct cpu *cpu, gva_t lin, uint##bits##_t v)              \
	{                                                                                          \
		const struct tlb_entry *e = tlb_slot(cpu->tlb_sys->wr, lin);                       \
		if (tlb_hit(e, lin, bits / 8))                                                     \
			*(volatile guest##bits *)(lin + e->addend) = v;                            \
		else                                                                               \
			sys_st_slow(cpu, lin, bits / 8, v);                                        \
	}

ACCESS_FUNCTIONS(8)
ACCESS_FUNCTIONS(16)
ACCESS_FUNCTIONS(32)
ACCESS_FUNCTIONS(64)

/* --- addresses -------------------------------------------------------------------------------- */

/* Effective address, cut to the address size.  For RIP-relative operands base is cpu->rip, which
 * is the next instruction's address, as the architecture wants. */
static inline uint64_t insn_ea(const struct cpu *cpu, const struct insn *in)
{
	uint64_t ea = CPU_REG(cpu, in->base, const uint64_t) +
		      (CPU_REG(cpu, in->index, const uint64_t) << in->scale) + (int64_t)in->disp;

	if (likely(in->flags & INSN_FLAT))
		return ea;
	return in->adsize == 8 ? ea : in->adsize == 4 ? (uint32_t)ea : (uint16_t)ea;
}

/* Linear address of the memory operand, size bytes, checked against its segment. */
gva_t insn_linear_slow(struct cpu *cpu, const struct insn *in, unsigned size, bool write);

static inline gva_t insn_linear(struct cpu *cpu, const struct insn *in, unsigned size, bool write)
{
	if (likely(in->flags & INSN_FLAT))
		return insn_ea(cpu, in) + CPU_REG(cpu, in->segbase, const uint64_t);
	return insn_linear_slow(cpu, in, size, write);
}

/* --- read-modify-write -----------------------------------------------------------------------
 * p points at the operand: in guest RAM when it can be used directly, else at .bounce.
 * rmw_begin checks writability first (#PF with W=1).  rmw_end stores a bounced value and tells
 * the code tracker about writes to code pages.  With lock=true p is the real RAM location whenever
 * one host operation can reach it; otherwise the split lock is held until rmw_end: nothing may
 * unwind between the two. */
struct rmw {
	void *p;
	gva_t lin;
	gpa_t gpa[2]; /* of the two pieces; the first has `first` bytes */
	uint8_t size, first;
	bool bounced; /* rmw_end has something to do */
	bool code;    /* p is guest RAM, and the page may hold code */
	bool locked;  /* the split lock is held */
	_Alignas(16) uint8_t bounce[16];
};
void rmw_begin_slow(struct cpu *cpu, struct rmw *r, gva_t lin, unsigned size, bool lock);
void rmw_end_slow(struct cpu *cpu, struct rmw *r);

static inline void rmw_begin(struct cpu *cpu, struct rmw *r, gva_t lin, unsigned size, bool lock)
{
	const struct tlb_entry *e = tlb_slot(cpu->tlb->wr, lin);

	r->bounced = false;
	if (tlb_hit(e, lin, size))
		r->p = (void *)(lin + e->addend);
	else
		rmw_begin_slow(cpu, r, lin, size, lock);
}

static inline void rmw_end(struct cpu *cpu, struct rmw *r)
{
	if (unlikely(r->bounced))
		rmw_end_slow(cpu, r);
}

/* --- stack --------------------------------------------------------------------------------------
 * In 64-bit mode linear = RSP; else SS base and limit apply and RSP wraps at sp_mask. */
static inline gva_t stack_linear(struct cpu *cpu, uint64_t sp, unsigned size, bool write)
{
	if (likely(cpu->mode == INSN_MODE_64)) {
		if (unlikely(!cpu_canonical(cpu, sp, size)))
			cpu_fault(cpu, X86_EXC_SS, 0);
		return sp;
	}
	return seg_linear(cpu, X86_SS, sp & cpu->sp_mask, size, write);
}

static inline void stack_set_sp(struct cpu *cpu, uint64_t sp)
{
	uint64_t *rsp = &cpu->gpr[X86_RSP];

	*rsp = (*rsp & ~cpu->sp_mask) | (sp & cpu->sp_mask);
	if (cpu->sp_mask == 0xffffffffu)
		*rsp &= 0xffffffffu;
}
