/* engine/soft/seg.h - descriptors, and the rules about what may be loaded into a segment register.
 *
 * For seg.c, exc.c, far.c, task.c and syscall.c.  All functions that take a struct cpu may unwind
 * with the fault the manuals name; none changes CPU state before its last point that can fault.
 * Error codes follow SDM 3A "Error Code": selector with RPL replaced by EXT (bit 0), IDT (bit 1).
 *
 * SDM 3A "Protection", AMD APM 2 "Segmented Virtual Memory". */
#pragma once

#include "engine/soft/cpu.h"

/* A descriptor as read from the GDT or LDT. */
struct desc {
	uint64_t raw;
	uint64_t raw_hi; /* second half of a 16-byte system descriptor, else 0 */
	gva_t lin;       /* where it was read */
	uint16_t sel;
};

/* Types of system descriptors (S = 0). */
enum {
	DESC_TSS16 = 1,
	DESC_LDT = 2,
	DESC_TSS16_BUSY = 3,
	DESC_CALL16 = 4,
	DESC_TASK_GATE = 5,
	DESC_INT16 = 6,
	DESC_TRAP16 = 7,
	DESC_TSS = 9,
	DESC_TSS_BUSY = 11,
	DESC_CALL = 12,
	DESC_INT = 14,
	DESC_TRAP = 15,
	DESC_BUSY_BIT = 2, /* TSS available -> busy */
};

/* Bits of the type of a code or data descriptor (S = 1). */
enum {
	SEG_TYPE_ACCESSED = 1,
	SEG_TYPE_RW = 2,     /* data: writable; code: readable */
	SEG_TYPE_EXPAND = 4, /* data: expand-down; code: conforming */
	SEG_TYPE_CODE = 8,
};

#define SEL_RPL(sel)  ((sel)&3u)
#define SEL_TI        4u
#define SEL_NULL(sel) (((sel) & ~3u) == 0)
#define SEL_ERR(sel)  ((uint32_t)((sel) & ~3u)) /* error code naming a selector */

static inline uint32_t desc_attr(const struct desc *d)
{
	return (uint32_t)(d->raw >> 40) & 0xf0ff;
}

static inline unsigned desc_type(const struct desc *d)
{
	return (d->raw >> 40) & 15;
}

static inline unsigned desc_dpl(const struct desc *d)
{
	return (d->raw >> 45) & 3;
}

static inline bool desc_present(const struct desc *d)
{
	return d->raw >> 47 & 1;
}

static inline bool desc_is_segment(const struct desc *d) /* code or data, not system */
{
	return d->raw >> 44 & 1;
}

static inline bool desc_is_code(const struct desc *d)
{
	return desc_is_segment(d) && (desc_type(d) & SEG_TYPE_CODE);
}

static inline bool desc_is_conforming(const struct desc *d) /* of a code segment */
{
	return desc_type(d) & SEG_TYPE_EXPAND;
}

static inline bool desc_is_writable_data(const struct desc *d)
{
	return desc_is_segment(d) && (desc_type(d) & (SEG_TYPE_CODE | SEG_TYPE_RW)) == SEG_TYPE_RW;
}

static inline bool desc_is_long(const struct desc *d) /* L, of a code segment */
{
	return d->raw >> 53 & 1;
}

static inline bool desc_is_big(const struct desc *d) /* D/B */
{
	return d->raw >> 54 & 1;
}

/* Base of a segment; of a 16-byte system descriptor when raw_hi was read. */
static inline uint64_t desc_base(const struct desc *d)
{
	return (d->raw >> 16 & 0xffffff) | (d->raw >> 56 & 0xff) << 24 | d->raw_hi << 32;
}

static inline uint32_t desc_limit(const struct desc *d)
{
	uint32_t limit = (d->raw & 0xffff) | (d->raw >> 32 & 0xf0000);

	return d->raw >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

static inline bool cpu_protected(const struct cpu *cpu) /* selectors name descriptors */
{
	return !cpu->real && !cpu->v86;
}

/* Intel and AMD differ here and there; other vendors follow Intel.  By letter, not by strcmp: no
 * libc between guest instructions. */
static inline bool cpu_like_intel(const struct cpu *cpu)
{
	char c = cpu->vm->model->vendor[0];

	return c != 'A' && c != 'H'; /* AuthenticAMD, HygonGenuine */
}

/* Size of the offset in a far pointer in memory.  AMD has no 64-bit one: REX.W means 32 bits there
 * (AMD APM 3 JMP (Far), LSS; SDM 2 the same). */
static inline unsigned far_pointer_size(const struct cpu *cpu, const struct insn *in)
{
	return in->opsize == 8 && !cpu_like_intel(cpu) ? 4 : in->opsize;
}

static inline unsigned cpu_iopl(const struct cpu *cpu)
{
	return (cpu->rflags & RFLAGS_IOPL) >> 12;
}

/* Read the descriptor a selector names.  False when it lies outside its table (or the table is
 * absent).  Does not look at null selectors.  desc_fetch_system also reads the second half in long
 * mode, when the type is one that has it. */
bool desc_fetch(struct cpu *cpu, uint16_t sel, struct desc *d);
bool desc_fetch_high(struct cpu *cpu, struct desc *d); /* 16-byte descriptors of long mode */

/* Or bits into the type byte of a descriptor in memory, atomically against other CPUs. */
void desc_set_type_bits(struct cpu *cpu, struct desc *d, unsigned bits);
void desc_clear_type_bits(struct cpu *cpu, struct desc *d, unsigned bits);
/* Sets the accessed bit in memory if it is clear; the last thing that may fault. */
void desc_set_accessed(struct cpu *cpu, struct desc *d);

/* Fill the hidden part from a descriptor. */
void seg_from_desc(struct cpu *cpu, struct cpu_seg *s, uint16_t sel, const struct desc *d);
void seg_make_null(struct cpu_seg *s, uint16_t sel);
/* What a load of `sel` makes of the register in real mode (base only) and in v86 mode. */
void seg_make_real(struct cpu *cpu, struct cpu_seg *s, uint16_t sel);
void seg_make_v86(struct cpu_seg *s, uint16_t sel);

/* Recompute the fast bits of one register; of all after a change between modes. */
void seg_update_flat(const struct cpu *cpu, struct cpu_seg *s);
void seg_update_flat_all(struct cpu *cpu);

/* Everything seg_load does up to, but not including, the change of the register. */
void seg_prepare(struct cpu *cpu, unsigned seg, uint16_t sel, struct cpu_seg *out);
/* SS for a stack of privilege `cpl`: of the outer side of RETF and IRET (fault #GP), of a TSS
 * (fault #TS).  ext is ored into error codes.  Does not set the accessed bit. */
void seg_check_stack(struct cpu *cpu, uint16_t sel, unsigned cpl, uint8_t vector, uint32_t ext,
		     struct desc *d);

/* Commit CS (selector with its final RPL) and CPL.  The caller runs cpu_mode_update. */
void seg_set_cs(struct cpu *cpu, const struct cpu_seg *cs, unsigned cpl);
/* Forget data segments an outer ring may not see (RETF, IRET). */
void seg_drop_inner(struct cpu *cpu);

/* Is [off, off+size) inside the segment?  Limits only, no types. */
bool seg_limit_allows(const struct cpu_seg *s, uint64_t off, unsigned size);

/* Implicit supervisor access: fault now unless [lin, lin+size) may be written (read). */
void sys_probe(struct cpu *cpu, gva_t lin, unsigned size, bool write);
/* Linear address of an implicit access, cut to 32 bits outside long mode. */
static inline gva_t sys_linear(const struct cpu *cpu, uint64_t base, uint64_t off)
{
	return cpu->long_mode ? base + off : (uint32_t)(base + off);
}
