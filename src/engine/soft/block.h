/* engine/soft/block.h - decoded guest code, kept by the host address of its bytes.
 *
 * Each vCPU has its own cache, so nothing here is locked; what the vCPUs share are the page records
 * of mem.h.  A block is at most BLOCK_MAX_INSNS instructions in a row inside one page (or one
 * instruction over a page edge), decoded for one cpu->mode_key.  It holds no linear address: the
 * same bytes mapped twice are one block.
 *
 * In 64-bit mode a block may go on behind conditional jumps; taken, they end it.
 *
 * run.c looks blocks up.  access.c reports stores through block_ram_written.  mmu.c must not give
 * write entries for pages with code lines.  Only the vCPU's own thread. */
#pragma once

#include "engine/soft/access.h"
#include "engine/soft/cpu.h"

struct error;
struct xblock;

enum { BLOCK_MAX_INSNS = 32 };

/* block.flags: any of them sends the look-up through its slow path. */
enum {
	BLOCK_CROSS = 1 << 0,     /* one instruction over a page edge */
	BLOCK_UNTRUSTED = 1 << 1, /* other vCPUs may still write without telling us */
};

/* The first three fields are rarely looked at; block.c places blocks so that the others begin a
 * host cache line. */
struct block {
	struct xblock *xlat; /* translations, if made since flush number xlat_flush */
	uint64_t xlat_flush;
	uint8_t heat;     /* times it was interpreted where it might have been translated, */
	uint32_t heat_at; /* at this address (its low half) */
	struct block *hash_next;
	struct mem_page *page2; /* BLOCK_CROSS: the second page and its bytes */
	const uint8_t *hva2;

	const uint8_t *hva; /* of the first byte; NULL: forgotten */
	uint32_t mode_key;
	uint32_t gen; /* of page, when the bytes were last seen to be ours */
	struct mem_page *page;
	uint8_t flags;
	uint8_t nr;
	uint16_t len; /* guest bytes; a copy of them follows the instructions */
	uint32_t gen2;
	/* What ran after this block: [0] where it falls through to, [1] elsewhere.  Guesses,
	 * checked like any other find; never NULL. */
	struct block *link[2];
	struct insn insns[];
};

#define BLOCK_JUMP_ENTRIES 8192u
#define BLOCK_HASH_HEADS   131072u

struct block_cache {
	struct block *jump[BLOCK_JUMP_ENTRIES]; /* by linear address; never NULL */
	struct block *hash[BLOCK_HASH_HEADS];   /* by hva and mode_key */
	uint8_t *arena;
	size_t arena_size, arena_used;
	uint64_t flushes;    /* of the whole cache: pointers to blocks from before are void */
	struct block *once;  /* an instruction that is run once and not kept: code in MMIO */
	struct block *entry; /* empty; its links are the guesses for entering the loop */
	struct {
		struct mem_page *page;
		unsigned hits;
	} written[64]; /* pages that look like data now: block_ram_written */
};

int block_cache_create(struct cpu *cpu, struct error *err);
void block_cache_destroy(struct cpu *cpu);
void block_cache_flush(struct cpu *cpu);

/* The translator makes better code of more at a time: b, or the block that is there in its place
 * from now on, which goes on behind conditional jumps with what has been run there before. */
struct block *block_extend(struct cpu *cpu, struct block *b);

/* The block at CS:RIP, ready to run; faults as an instruction fetch does. */
struct block *block_lookup_slow(struct cpu *cpu, gva_t lin);

static inline gva_t block_code_linear(const struct cpu *cpu)
{
	gva_t lin = cpu->seg[X86_CS].base + cpu->rip;

	return cpu->mode == INSN_MODE_64 ? cpu->rip : (uint32_t)lin;
}

static inline unsigned block_jump_index(gva_t lin)
{
	return (lin ^ (lin >> 12)) % BLOCK_JUMP_ENTRIES;
}

/* Is b the block at CS:RIP, and still true?  In one go for almost all of them: BLOCK_ flags and
 * unusual segments make it false. */
static inline bool block_matches(const struct cpu *cpu, const struct block *b, gva_t lin)
{
	const struct tlb_entry *e = tlb_slot(cpu->tlb->ex, lin);

	return likely(
		tlb_hit(e, lin, 1) && (uintptr_t)b->hva == lin + e->addend &&
		b->mode_key == cpu->mode_key && !b->flags &&
		b->gen == atomic_load_explicit(&b->page->gen, memory_order_acquire) &&
		(cpu->mode == INSN_MODE_64 || cpu->rip + b->len - 1 <= cpu->seg[X86_CS].limit));
}

static inline struct block *block_lookup(struct cpu *cpu)
{
	gva_t lin = block_code_linear(cpu);
	struct block *b = cpu->blocks->jump[block_jump_index(lin)];

	return block_matches(cpu, b, lin) ? b : block_lookup_slow(cpu, lin);
}

/* As block_lookup, after the block whose link this is. */
struct block *block_follow_slow(struct cpu *cpu, struct block **link);

static inline struct block *block_follow(struct cpu *cpu, struct block **link)
{
	struct block *b = *link;

	return block_matches(cpu, b, block_code_linear(cpu)) ? b : block_follow_slow(cpu, link);
}

/* To be called after each store to RAM that did not go through a write entry (one that may have
 * hit a page with code lines): len bytes at gpa, inside one page.  Makes blocks of those bytes
 * stale and ends the current block. */
void block_ram_written(struct cpu *cpu, gpa_t gpa, unsigned len);

/* CPU_EV_PURGE: drop write entries of code pages, then tell the others so. */
void block_purge(struct cpu *cpu);
/* Have every vCPU drop its translations for writing, and wait until those that run have.  Not on a
 * vCPU's thread. */
void block_drop_writes(struct soft_vm *vm);
