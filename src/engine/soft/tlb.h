/* engine/soft/tlb.h - the software TLB's memory, shared by tlb.c (slots, flushes) and mmu.c
 * (walks).
 *
 * The TLB has TLB_SLOTS slots, one per address space (CR3 base and PCID) used lately, each with one
 * struct tlb per class.  A change of address space changes a pointer.  Global translations live in
 * the slot that met them; what must drop a global one looks at every slot.  Bitmaps beside each
 * array say which entries are in use and which are not global, so that a flush costs as much as
 * there is to flush.
 *
 * A translation from a page larger than 4 KiB is entered in pieces.  INVLPG must drop all pieces:
 * `big` remembers, per slot and hashed by 2 MiB region, where such pieces may be, and `huge` the
 * same by 1 GiB region for 4 MiB and 1 GiB pages.
 *
 * vCPU thread only.  SDM 3A "Caching Translation Information". */
#pragma once

#include "engine/soft/cpu.h"

/* The arrays of a slot, in memory order: rd, wr and ex of each class. */
enum { KIND_RD, KIND_WR, KIND_EX, NR_KINDS, NR_ARRAYS = TLB_NR_CLASSES * NR_KINDS };
#define ARRAY_OF(cls, kind) ((cls)*NR_KINDS + (kind))

enum {
	MAP_WORDS = TLB_ENTRIES / 64,
	PSC_ENTRIES = 64,
	BIG_BITS = 2048,
	BIG_SHIFT = 21,
	HUGE_SHIFT = 30,
};

/* Bit n: entry n of the array is valid (used), valid and not global (local). */
struct tlb_map {
	uint64_t used[MAP_WORDS], local[MAP_WORDS];
};

struct psc_entry {
	uint64_t region; /* linear address >> 21 */
	gpa_t table;
	uint32_t gen; /* == slot's psc_gen, else stale */
	uint8_t rights;
};

struct slot {
	bool valid, ready; /* ready: the arrays have been filled once */
	uint64_t key;      /* CR3 without bit 63, ignored bits masked */
	uint64_t used;     /* time of the last switch to it */
	uint32_t psc_gen;
	uint16_t keys_seen; /* protection keys of user pages it has entries of */
	uint64_t big[BIG_BITS / 64], huge[BIG_BITS / 64];
	struct psc_entry psc[PSC_ENTRIES];
	struct tlb_map map[NR_ARRAYS];
};

struct mmu {
	struct tlb *tlbs;  /* [TLB_SLOTS][TLB_NR_CLASSES] */
	struct tlb *never; /* always empty: sends every access the slow way, for #AC */
	size_t tlbs_size;
	struct slot slots[TLB_SLOTS];
	unsigned cur;
	uint64_t clock;
};

/* Cache a translation of the page at lin in the current slot.  a: ARRAY_OF(). */
void tlb_put(struct cpu *cpu, unsigned a, gva_t lin, const uint8_t *hva, bool global);
/* Something of a page of 1 << shift bytes around lin is cached now. */
void tlb_note_size(struct cpu *cpu, gva_t lin, unsigned shift);
/* The class of the data accesses of the current CPL and AC. */
unsigned tlb_data_class(const struct cpu *cpu);

static inline struct slot *tlb_current(const struct cpu *cpu)
{
	return &cpu->mmu->slots[cpu->mmu->cur];
}
