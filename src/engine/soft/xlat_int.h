/* engine/soft/xlat_int.h - what the xlat*.c files share.  Nobody else includes this.
 *
 *   xlat.c         blocks: analysis, translation of one decoded block
 *   xlat_insn.c    templates: copied instructions, stack, moves
 *   xlat_flow.c    templates: branches, entries and exits of a block
 *   xlat_group.c   one lookup for several operands
 *   xlat_mem.c     templates: memory operands through the software TLB
 *   xlat_string.c  templates: MOVS and its kind
 *   xlat_sys.c     templates: STI, SWAPGS, RDTSC ...
 *   xlat_vec.c     templates: vector instructions
 *   xlat_x87.c     what x87 instructions need beside that
 *   xlat_flags.c   which flags an instruction reads and sets; liveness
 *   xlat_emit.c    the encoder
 *   xlat_thunk.c   entry to and exit from translated code, and the way to the interpreter
 *   xlat_cache.c   code memory, pages, links, dropping what is stale
 *   xlat_signal.c  host faults
 *   xlat_dump.c    listings
 *   xlat_lockstep.c comparing with the interpreter
 *
 * 32-bit code with flat segments is translated too ("narrow"): addresses are computed in 32 bits
 * into host R8 (T2), which is free there, and sizes of the stack and of targets are 4.  Guest
 * R8..R15 stay in struct cpu then.
 *
 * Registers.  Guest RAX..RDI but RSP, and R8..R12 are the host's.  Guest RSP is host R15.  Guest
 * R13..R15 stay in struct cpu.  Host R13 and R14 are scratch (T0, T1), host RSP is C's stack, GS
 * base is cpu->tlb.  struct cpu is reached relative to RIP.
 *
 * Flags.  Guest flags are in the host's flags (FL_HOST), in cpu->xl_flags as LAHF and SETO AL leave
 * them in EAX (FL_MEM), or both; where no one reads them before they are set again, nowhere. */
#pragma once

#include "engine/soft/insn_rows.h"
#include "engine/soft/xlat.h"

/* Host registers by number. */
enum {
	H_RAX,
	H_RCX,
	H_RDX,
	H_RBX,
	H_RSP,
	H_RBP,
	H_RSI,
	H_RDI,
	T2 = 8, /* in 32-bit code */
	H_R12 = 12,
	T0 = 13,
	T1 = 14,
	H_GUEST_RSP = 15,
	H_NONE = -1,
	H_RIP = -2, /* struct xmem.base: relative to RIP, target in .abs */
};

enum { FL_HOST = 1, FL_MEM = 2 };

/* A memory operand of host code. */
struct xmem {
	int8_t base, index; /* host registers, H_NONE, H_RIP */
	uint8_t scale;      /* 0..3 */
	bool gs;
	int32_t disp;
	const void *abs;
};

/* Encoding of one legacy instruction. */
struct xop {
	uint8_t map;    /* MAP_1, MAP_0F, MAP_0F38, MAP_0F3A */
	uint8_t opcode; /* last byte */
	uint8_t prefix; /* 0, F2, F3, 66 */
	bool p66, lock, w;
	bool rex; /* a REX is needed to name SPL..DIL */
};

/* Where an instruction's host code is, and what to do to run it in the interpreter. */
struct xsite {
	uint32_t host;   /* offset of its host code from the start of the block's */
	uint16_t next;   /* guest bytes from the start of the block to the next instruction */
	uint8_t index;   /* in block.insns */
	uint8_t in_host; /* IN_HOST_*: guest flags are in the host's while the instruction runs */
	bool has_cold;
	bool interp;   /* has no template: the interpreter's each time */
	uint32_t cold; /* offset of its copy in the cold part (xlat_group.c) from xblock.cold */
};

enum { IN_HOST_HOT = 1, IN_HOST_COLD = 2 };

enum { LINK_NONE, LINK_JUMP, LINK_STUB };

/* A way out of a block to a known address. */
struct xexit {
	struct xblock *from;
	struct xblock *to;     /* linked to */
	struct xexit *next_in; /* in to->in */
	uint64_t target;       /* guest linear address */
	uint32_t jump;         /* code offset of the rel32 of its jump */
	uint32_t stub, tail;   /* code offsets: its stub; what follows the stub's saving of flags */
	uint8_t flags;         /* FL_* at the jump */
	uint8_t link;          /* LINK_* */
	bool back;             /* target is not ahead: events are looked at on the way */
	bool entry;            /* not a way out but the refusal to come in */
};

struct xblock {
	struct block *b;
	struct xblock *b_next; /* others of the same b */
	struct xpage *page;
	struct xblock *page_next;
	/* An instruction over a page edge: the second page, and the next that ends there. */
	struct xpage *page2;
	struct xblock *page2_next;
	uint64_t lin;
	uint32_t key;
	uint32_t code, code_end; /* offsets of the host code */
	uint32_t cold, cold_end; /* and of what lies apart: slow paths, stubs, copies */
	/* Entries.  guarded: from anywhere, flags in FL_MEM; checks pages and events.  mem: from
	 * the same page, FL_MEM, checks events.  checked: as plain, checks events.  plain:
	 * flags_in. Over a page edge there is no way in but guarded, and the run loop's to plain.
	 */
	uint32_t guarded, mem, checked, plain;
	uint8_t flags_in; /* FL_HOST, FL_MEM, or 0: no flag is read */
	bool dead, uses_vec, uses_x87;
	uint8_t nr;           /* of sites: instructions translated, the first ones of b */
	struct xexit *in;     /* linked here */
	struct xexit exit[3]; /* falls through, jumps, refuses */
	struct xexit *mid;    /* of conditional jumps on the way */
	uint8_t nr_mid;
	struct xsite site[];
};

/* One guest page of code at one linear address. */
struct xpage {
	struct xpage *next;    /* in its hash chain */
	struct xblock *blocks; /* that begin in it */
	struct xblock *ending; /* that begin in the page before */
	struct mem_page *page;
	uint64_t lin;
	uint32_t id;  /* in tlb.exid where this page is mapped */
	uint32_t gen; /* of page: as far as blocks know */
};

enum {
	XLAT_JUMP_ENTRIES = 32768,
	XLAT_JUMP_TABLES = 4,
	XLAT_FOUND = 1, /* in place of an exit: xlat.expected was reached */
	XLAT_PAGE_HEADS = 4096,
	/* Most that one block may need. */
	XLAT_MAX_HOT = 16384,
	XLAT_MAX_COLD = 12288,
	XLAT_THUNKS = 4096,
};

struct xlat_jump {
	uint64_t lin;
	const void *code;
};

/* xlat_thunk.c */
struct xthunks {
	struct xexit *(*enter)(const void *code);
	uint32_t leave, leave_to, leave_found, interp, interp_end;
};

struct xlat {
	struct cpu *cpu;
	struct xlat_config cfg;
	/* Code: rw and rx are the same memory; offsets count from either. */
	uint8_t *rw, *rx;
	size_t size, cold_start;
	size_t hot_used, cold_used;
	uint8_t *meta;
	size_t meta_size, meta_used;
	uint64_t flushes;
	uint32_t key; /* what code is translated for now */
	uint32_t last_page;
	struct xlat_jump *jump; /* the table of that key, one of XLAT_JUMP_TABLES */
	struct xlat_jump *jumps;
	uint32_t jump_key[XLAT_JUMP_TABLES];
	unsigned next_table;
	struct xpage *pages[XLAT_PAGE_HEADS];
	/* All blocks in the order of their code, growing down from the end of meta: order[-n]. */
	struct xblock **order;
	size_t nr_order;
	struct xthunks thunks[2]; /* of 64-bit and of 32-bit code */
	struct xlat_lockstep *lockstep;
	uint64_t expected; /* xlat_jump_expect */
	int dump_fd, perf_fd;
	struct xgen *gen;   /* the translation under way */
	struct xexit *from; /* how translated code was left last; to be linked */
};

/* --- one translation ---------------------------------------------------------------------------
 */

struct xslow {
	uint32_t from; /* code offset of the rel32 that leads here */
	uint32_t back; /* where to go on; 0: nowhere, the block is left */
	uint8_t index;
};

/* Analysis of one instruction. */
struct xinfo {
	uint8_t kind;    /* enum insn_xlat */
	uint8_t clobber; /* its host code destroys the host's flags before the instruction itself */
	uint8_t touch;   /* it sets some flags */
	uint16_t own_read; /* flags the instruction itself reads */
	uint16_t read;     /* those, and all where what it does may look at them */
	uint16_t kill;     /* flags it sets for certain */
	uint16_t live;     /* flags read after it */
};

/* Instructions that share a lookup: xlat_group.c */
struct xgroup {
	uint8_t first, last;
	int base;       /* guest register */
	int32_t lo, hi; /* span, from the base before the first */
	bool write;
	uint8_t flags_in, flags_out;
	uint32_t from; /* rel32 of the jump to the copy in the cold part */
	uint32_t back; /* where that comes back to */
	/* back lies inside the last instruction, after its lookup; of a store? */
	bool inside, write_last;
};
enum { XLAT_GROUPS = 8 };

struct xgen {
	struct xlat *x;
	struct cpu *cpu;
	struct block *b;
	struct xblock *xb;
	uint8_t *p; /* next byte, in x->rw */
	uint64_t lin;
	uint64_t next_rip; /* of the current instruction */
	uint8_t flags;     /* FL_*: where guest flags are valid now */
	bool narrow;       /* 32-bit code */
	bool vec_checked;
	bool ended;  /* the last instruction has emitted the way out */
	unsigned nr; /* instructions of b to translate */
	unsigned index;
	unsigned imm;         /* bytes of immediate of the instruction being copied */
	struct xgroup *group; /* the one being generated */
	unsigned nr_groups, next_group, next_mid;
	struct xgroup groups[XLAT_GROUPS];
	bool in_cold; /* the copy of a group is being generated */
	unsigned nr_slow;
	struct xslow slow[8 * BLOCK_MAX_INSNS + 4];
	struct xinfo info[BLOCK_MAX_INSNS];
};

static inline bool xlat_key_narrow(uint32_t key)
{
	return (key & 3) == INSN_MODE_32;
}

static inline const struct xthunks *xlat_thunks_of(const struct xlat *x, uint32_t key)
{
	return &x->thunks[xlat_key_narrow(key)];
}

/* Bytes of an address, a return address, a push. */
static inline unsigned xgen_word(const struct xgen *g)
{
	return g->narrow ? 4 : 8;
}

/* --- xlat_emit.c -------------------------------------------------------------------------------
 */

static inline void x8(struct xgen *g, uint8_t v)
{
	*g->p++ = v;
}

void x16(struct xgen *g, uint16_t v);
void x32(struct xgen *g, uint32_t v);
void x64(struct xgen *g, uint64_t v);
uint32_t x_offset(const struct xgen *g);
/* Executable address of an offset. */
const void *x_rx(const struct xlat *x, uint32_t offset);

void x_op_plain(struct xgen *g, const struct xop *o); /* no ModRM */
void x_op_reg(struct xgen *g, const struct xop *o, unsigned reg, unsigned rm);
/* imm: bytes that will follow the operand. */
void x_op_mem(struct xgen *g, const struct xop *o, unsigned reg, const struct xmem *m,
	      unsigned imm);
void x_modrm_mem(struct xgen *g, unsigned reg, const struct xmem *m, unsigned imm);

#define XMEM_CPU(g, field) ((struct xmem){.base = H_RIP, .index = H_NONE, .abs = &(g)->cpu->field})

void x_mov(struct xgen *g, unsigned to, unsigned from);
void x_load(struct xgen *g, unsigned to, const struct xmem *m);
void x_store(struct xgen *g, const struct xmem *m, unsigned from);
void x_load32(struct xgen *g, unsigned to, const struct xmem *m);
void x_store32(struct xgen *g, const struct xmem *m, unsigned from);
void x_lea(struct xgen *g, unsigned to, const struct xmem *m);
void x_lea32(struct xgen *g, unsigned to, const struct xmem *m);
/* Of the size of an address in the code at hand. */
void x_load_word(struct xgen *g, unsigned to, const struct xmem *m);
void x_store_word(struct xgen *g, const struct xmem *m, unsigned from);
void x_lea_word(struct xgen *g, unsigned to, const struct xmem *m);
/* to += m */
void x_add_mem(struct xgen *g, unsigned to, const struct xmem *m);
/* cmp reg, m */
void x_cmp_mem(struct xgen *g, unsigned reg, const struct xmem *m);
void x_cmp_mem_imm32(struct xgen *g, const struct xmem *m, int32_t imm, bool w);
enum { X_ADD, X_OR, X_ADC, X_SBB, X_AND, X_SUB, X_XOR, X_CMP };
void x_alu_imm(struct xgen *g, unsigned op, unsigned reg, int32_t imm, bool w);
void x_shift(struct xgen *g, unsigned digit, unsigned reg, unsigned count, bool w);
/* The shortest form that gives all 64 bits. */
void x_mov_imm(struct xgen *g, unsigned to, uint64_t imm);
/* Jumps: return the code offset of the rel32. */
uint32_t x_jmp(struct xgen *g);
uint32_t x_jcc(struct xgen *g, unsigned cc);
void x_jmp_to(struct xgen *g, uint32_t offset);
void x_call_to(struct xgen *g, uint32_t offset);
void x_jmp_mem(struct xgen *g, const struct xmem *m);
/* Let the rel32 at `at` lead to `to`. */
void x_patch(struct xlat *x, uint32_t at, uint32_t to);
enum { CC_O, CC_NO, CC_B, CC_AE, CC_Z, CC_NZ };

/* Guest register n: its host register, or H_NONE when it lives in memory. */
static inline int host_reg(unsigned n)
{
	return n == X86_RSP ? H_GUEST_RSP : n <= 12 ? (int)n : H_NONE;
}

/* --- flags: xlat_flags.c -----------------------------------------------------------------------
 */

#define FLAGS_ALL ((uint16_t)RFLAGS_ARITH)

void xlat_flags_of(struct xgen *g, const struct insn *in, struct xinfo *f);
/* Fill info[].live; returns the flags read before they are set by the block. */
uint16_t xlat_liveness(struct xgen *g);
/* Where the block wants its flags on entry. */
uint8_t xlat_flags_in(struct xgen *g, uint16_t live);
void xlat_flags_save(struct xgen *g);    /* FL_HOST to FL_MEM; uses T0 */
void xlat_flags_restore(struct xgen *g); /* FL_MEM to FL_HOST; uses T0 */
/* The host's flags are about to be destroyed by the current instruction's own code. */
void xlat_flags_clobber(struct xgen *g);
/* The current instruction itself comes now: flags it needs must be in the host's. */
void xlat_flags_before(struct xgen *g);
void xlat_flags_after(struct xgen *g);
/* Flags that the instruction, or what follows, needs from before it. */
uint16_t xlat_flags_needed(const struct xinfo *f);
/* The instruction's own bytes come now. */
static inline void xlat_note_site(struct xgen *g)
{
	struct xsite *s = &g->xb->site[g->index];

	if (g->flags & FL_HOST)
		s->in_host |= g->in_cold ? IN_HOST_COLD : IN_HOST_HOT;
}

/* --- groups: xlat_group.c ----------------------------------------------------------------------
 */

void xlat_groups(struct xgen *g); /* find them */
void xlat_group_begin(struct xgen *g);
void xlat_group_end(struct xgen *g);
void xlat_group_cold(struct xgen *g);
/* Look up [reg + disp, + size); T1 is the addend.  The rel32 to take when it misses. */
uint32_t xlat_lookup_span(struct xgen *g, unsigned reg, int32_t disp, unsigned size, bool write);

/* --- memory: xlat_mem.c ------------------------------------------------------------------------
 */

/* Can the operand be reached by code of ours at all? */
bool xlat_mem_ok(const struct xgen *g, const struct insn *in);
/* Look the operand up; *m names it then, with T1 and perhaps guest registers.  T0 is free after.
 * Misses go to the interpreter; back: they come back to the end of the instruction. */
void xlat_mem(struct xgen *g, const struct insn *in, unsigned size, bool write, bool back,
	      struct xmem *m);
/* The same for [reg + disp], flat. */
void xlat_mem_at(struct xgen *g, unsigned reg, int32_t disp, unsigned size, bool write, bool back,
		 struct xmem *m);
/* A segment other than one with base 0? */
bool xlat_has_segbase(const struct xgen *g, const struct insn *in);
bool xlat_is_moffs(const struct insn *in);
/* T1 = its address, T0 = that of its last byte, inside one page or the next: T1 becomes the addend.
 * Returns the rel32 to take on a miss. */
uint32_t xlat_tlb_lookup(struct xgen *g, bool write);
/* The rel32 at `at` leads to the interpretation of the current instruction. */
void xlat_slow(struct xgen *g, uint32_t at, bool back);
/* The effective address alone, into reg; half: its low 32 bits. */
void xlat_ea(struct xgen *g, const struct insn *in, unsigned reg, bool half);

/* --- templates ---------------------------------------------------------------------------------
 */

/* May this instruction be done by its row's template?  Else XLAT_INTERP. */
uint8_t xlat_insn_kind(struct xgen *g, const struct insn *in);
void xlat_insn(struct xgen *g, const struct insn *in);
bool xlat_copy_ok(struct xgen *g, const struct insn *in, const struct insn_row *row);
void xlat_copy(struct xgen *g, const struct insn *in, const struct insn_row *row);
bool xlat_vec_ok(struct xgen *g, const struct insn *in);
void xlat_vec(struct xgen *g, const struct insn *in);
bool xlat_x87_ok(const struct insn *in);
/* After it.  Uses T0, and T1 outside groups. */
void xlat_x87_note(struct xgen *g, const struct insn *in);
/* Translated code was left before instruction `index` of the block. */
void xlat_x87_settle(struct cpu *cpu, const struct xblock *xb, unsigned index);
bool xlat_string_ok(const struct xgen *g, const struct insn *in);
void xlat_string(struct xgen *g, const struct insn *in);
bool xlat_sys_ok(const struct xgen *g, const struct insn *in);
void xlat_sys(struct xgen *g, const struct insn *in);
bool xlat_flow_ok(struct xgen *g, const struct insn *in, uint8_t kind);
void xlat_flow(struct xgen *g, const struct insn *in, uint8_t kind);
void xlat_call_interp(struct xgen *g, bool last);

void xlat_entries(struct xgen *g);
void xlat_exit_jump(struct xgen *g, unsigned n, uint64_t target, unsigned cc_or_jmp);
enum { EXIT_JMP = 16, EXIT_CALL };
void xlat_cold(struct xgen *g); /* slow paths and exit stubs */

/* --- the rest ----------------------------------------------------------------------------------
 */

void xlat_thunks(struct xlat *x);
/* The record of that page, seen at `lin` and as of `gen`; made if need be. */
struct xpage *xlat_page(struct xlat *x, struct mem_page *page, uint64_t lin, uint32_t gen);
void xlat_jump_set(struct xlat *x, struct xblock *xb);
void xlat_room(struct xlat *x); /* for one more block; may flush */
struct xblock *xlat_block_of(const struct xsite *s);
void xlat_dump_block(struct xlat *x, const struct xblock *xb);
/* The jump table of x->key becomes the current one. */
void xlat_jump_choose(struct xlat *x);
/* The only target in the jump table is lin, and going there leaves translated code. */
void xlat_jump_expect(struct xlat *x, uint64_t lin);
extern const size_t xlat_lockstep_size;
void xlat_signal_attach(struct cpu *cpu);
void xlat_signal_detach(struct cpu *cpu);
int xlat_dump_open(struct xlat *x, struct error *err);
void xlat_dump_close(struct xlat *x);
void xlat_link(struct xlat *x, struct xexit *from, struct xblock *to);
bool xlat_gs_is_quick(void);       /* WRGSBASE can be used */
void xlat_settle(struct cpu *cpu); /* GS base and event mask as cpu says */
uint64_t xlat_interp_one(struct cpu *cpu, const struct xsite *s);
const void *xlat_interp_last(struct cpu *cpu, const struct xsite *s);
/* The entry of the jump table for lin, be it there or not. */
const struct xlat_jump *xlat_jump_at(const struct xlat *x, uint64_t lin);
