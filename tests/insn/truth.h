/* truth.h - what the parts of the instruction truth test share.
 *
 *   truth_memory.c   the data region, the code page and the descriptor tables, in this process and
 *                    in the guest
 *   truth_engine.c   the soft engine with one CPU whose state is that of this process
 *   truth_program.c  making a case: one to four instructions and the state they start from
 *   truth_known.c    differences that are not faults of the engine, each with its reason
 *   native.c         running a case on the host CPU
 *   gen.c            encodings of every row of the instruction table
 *   truth.c          comparing, counting, reporting
 *
 * Linear addresses are below 4 GiB so that 32-bit and 16-bit code reaches them:
 *
 *   DATA_GVA  page 0..3 writable, 4 read-only, 5 unmapped, 6..9 writable, 10 unmapped; no code
 *   CODE_GVA  one page of INT3, the code somewhere in it; the page after it is unmapped
 *
 * Segments: the flat ones of Linux, and those of truth_segs[], which are in the LDT of both. */
#pragma once

#include "engine/cpu_model.h"
#include "engine/engine.h"
#include "engine/soft/insn_rows.h"
#include "engine/x86_defs.h"
#include "engine/x86_state.h"
#include "native.h"

enum { DATA_PAGES = 11, RO_PAGE = 4, MAX_INSNS = 6, CODE_MAX = 96 };
#define DATA_GVA 0x10000000ull
#define CODE_GVA 0x20000000ull

/* Selectors of Linux: GDT entries 4 to 6, and 15. */
enum { SEL_CODE32 = 0x23, SEL_DATA = 0x2b, SEL_CODE64 = 0x33, SEL_CPU = 0x7b };

struct truth_seg {
	uint16_t selector;
	uint32_t base, limit; /* limit in bytes */
	uint32_t attr;        /* as struct x86_segment */
};
extern const struct truth_seg truth_segs[];
extern const unsigned truth_nr_segs;
/* Flat or of truth_segs[]; NULL for a null selector. */
const struct truth_seg *truth_seg_of(uint16_t selector);

struct program {
	enum insn_mode mode;
	struct insn in[MAX_INSNS];
	unsigned nr, len;
	uint8_t code[CODE_MAX];
	gva_t at; /* linear address of the code */
	struct native_state start;
	gva_t operand; /* linear address of the subject's memory operand */
	bool tf;       /* starts single-stepping */
};

_Noreturn void die(const char *what);

/* --- truth_memory.c: both memories always hold the same between cases --------------------------
 */
struct mem *memory_create(void);
gpa_t memory_page_tables(void);
bool memory_can(unsigned page, bool write); /* may the program read, write that data page? */
struct x86_table memory_gdt(void), memory_ldt(void), memory_idt(void);
void memory_random(void);
/* Write to the data region, where it is writable; read from it: false where it is unmapped. */
void memory_poke(gva_t at, const void *bytes, unsigned len);
bool memory_peek(gva_t at, void *bytes, unsigned len);
void memory_put_code(const struct program *p, bool in);
bool memory_same(unsigned *off, uint8_t *host, uint8_t *guest);
void memory_sync(void); /* after a difference: the guest's is right */

/* --- truth_engine.c -----------------------------------------------------------------------------
 */
extern struct cpu_model truth_model;
extern uint64_t truth_xcr0; /* components compared */
struct truth_component {
	unsigned off, size;
};
extern struct truth_component truth_comp[64]; /* XSAVE, standard format */
void engine_create(void);
/* The state afterwards is in *state. */
enum engine_exit engine_run(const struct program *p, struct engine_exit_info *info,
			    struct x86_state *state);

/* --- truth_program.c ----------------------------------------------------------------------------
 */
/* False: this encoding cannot be aimed at the data region; try another. */
bool program_make(struct program *p, enum insn_mode mode, const struct insn *subject);
void program_random_fill(void *p, unsigned len);

/* --- truth_known.c ------------------------------------------------------------------------------
 */
enum {
	DIFF_EXCEPTION = 1 << 0,
	DIFF_RIP = 1 << 1,
	DIFF_GPR = 1 << 2,
	DIFF_FLAGS = 1 << 3,
	DIFF_ERROR = 1 << 4,
	DIFF_CR2 = 1 << 5,
	DIFF_X87 = 1 << 6, /* x87 state and MXCSR */
	DIFF_VECTOR = 1 << 7,
	DIFF_MEMORY = 1 << 8,
	DIFF_SEGMENT = 1 << 9,
};
/* Is a difference in no more than `what` to be expected?  Counts it. */
bool known_difference(const struct program *p, unsigned what, const struct native_state *host,
		      const struct x86_state *soft, const struct engine_exit_info *info);
void known_print(void);
