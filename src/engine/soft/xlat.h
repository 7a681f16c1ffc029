/* engine/soft/xlat.h - the translator: host code for guest code of the same instruction set.
 *
 * What it is and how it works: docs/engine.md.  run.c asks it for the host code of a decoded block
 * and enters it; block.c tells it when guest code has changed.  Each vCPU has a translator of its
 * own, so nothing here is locked; vCPU thread only, except where said.
 *
 * struct cpu must lie in the translator's region (xlat_region_create), because translated code
 * reaches it relative to RIP. */
#pragma once

#include "engine/soft/block.h"

struct error;
struct xblock;

/* What a VM's options ask of its translators: soft.c. */
struct xlat_config {
	bool on;
	bool exact;       /* flags are right in every frame, also those nobody will read */
	bool lockstep;    /* each block is interpreted too, and the outcome compared */
	bool count;       /* engine_stats.insns is right */
	uint8_t hot;      /* times a block is interpreted before it is translated */
	const char *dump; /* file for translated blocks beside their source, or NULL */
	const char *perf; /* file for perf's symbol map, or NULL */
};

/* Address space for one vCPU: `size` bytes of zeroed memory for its struct, and room for code. */
int xlat_region_create(void **cpu, size_t size, unsigned nr_cpus, struct error *err);
void xlat_region_destroy(void *cpu);

/* cpu->xlat; after the block cache exists. */
int xlat_create(struct cpu *cpu, const struct xlat_config *cfg, struct error *err);
void xlat_destroy(struct cpu *cpu);

/* This thread runs the CPU's code from now on. */
void xlat_attach(struct cpu *cpu);

/* The translation of b at cpu->rip, made if the block is worth it; NULL: interpret it. */
struct xblock *xlat_lookup(struct cpu *cpu, struct block *b);
/* Run translated code from xb on.  Returns with cpu->rip at the next instruction to run.  Where the
 * code before ended in a jump to xb, that jump leads here from now on. */
void xlat_enter(struct cpu *cpu, struct xblock *xb);

/* Run xb and nothing else, both ways: xlat_lockstep.c. */
void xlat_lockstep(struct cpu *cpu, struct xblock *xb);
/* Are blocks to be run by xlat_lockstep? */
bool xlat_is_lockstep(const struct cpu *cpu);

/* All decoded blocks are about to go. */
void xlat_flush(struct cpu *cpu);
/* This vCPU has written [offset, offset+len) of the page, and raised its gen by one. */
void xlat_written(struct cpu *cpu, struct mem_page *page, unsigned offset, unsigned len);
/* The page's lines are no longer watched. */
void xlat_forget_page(struct cpu *cpu, struct mem_page *page);
/* The block is decoded from bytes that are no longer there. */
void xlat_forget_block(struct cpu *cpu, struct block *b);
/* Any thread: code in the page was written, and its gen raised.  To every vCPU but one:
 * CPU_EV_CODE. */
void xlat_tell_written(struct soft_vm *vm, const struct cpu *but, struct mem_page *page);
/* CPU_EV_CODE: others have written code.  Drop what was made of it. */
void xlat_check_pages(struct cpu *cpu);

/* Is engine_stats.insns what it says? */
bool xlat_counts(const struct cpu *cpu);
/* Is this an address of the CPU's translated code? */
bool xlat_is_code(const struct cpu *cpu, uint64_t rip);

/* A host fault in translated code: turn RIP to where the instruction is interpreted instead.
 * False: not ours.  Signal handlers only. */
bool xlat_host_fault(void *ucontext);
