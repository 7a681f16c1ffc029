/* mem/mem.h - the guest-physical address space.
 *
 * RAM is one memfd, mapped once, read-write.  The map of where it appears is fixed when the VM is
 * built (mem_add_ram) and read without a lock ever after.  Everything else that a gpa can name is
 * MMIO and belongs to bus/.
 *
 * Devices, loaders and interrupt chips reach RAM through mem_read/mem_write and the typed helpers
 * only: they check range and overflow, mark pages dirty and tell the engine about writes to pages
 * it holds decoded code of.  Nobody keeps a raw pointer past a call; the one exception is an
 * engine, which maps RAM by mem_ram_ranges() and keeps the promises of struct mem_page itself.
 *
 * Any thread.  Concurrent access to the same bytes behaves as on hardware: aligned accesses of up
 * to 8 bytes by the typed helpers are single, everything else may tear. */
#pragma once

#include "base/types.h"

#include <stdatomic.h>

struct error;
struct mem;

struct mem_range {
	gpa_t gpa;
	uint64_t size; /* bytes, page-aligned */
	uint8_t *hva;  /* where gpa is mapped in this process */
};

/* One per RAM page.  Lets a store be compared with the code decoded from that page without a lock.
 *
 *   code_lines  bit n set: some engine holds code decoded from bytes [64n, 64n+64) of the page
 *   gen         goes up after each write that touched a line whose bit is set
 *
 * Decode: set the bits, then read gen, then read the bytes.  Enter decoded code: compare gen. */
struct mem_page {
	_Atomic uint64_t code_lines;
	_Atomic uint32_t gen;
	_Atomic uint32_t flags; /* MEM_PAGE_* */
};
enum {
	MEM_PAGE_DIRTY = 1 << 0, /* written since the last mem_dirty_fetch (only while tracking) */
};

int mem_create(struct mem **out, struct error *err);
/* RAM of huge pages from the host's pool: 2 MiB or 1 GiB, as it has them; 0 = of ordinary pages. */
int mem_create_huge(struct mem **out, uint64_t huge_page, struct error *err);
void mem_destroy(struct mem *m);

/* Reserve `size` bytes of RAM at gpa (both page-aligned).  Before any vCPU runs. */
int mem_add_ram(struct mem *m, gpa_t gpa, uint64_t size, struct error *err);

/* How RAM is held by the host, once all of it has been added: mem/hold.c. */
enum mem_numa { MEM_NUMA_NONE, MEM_NUMA_BIND, MEM_NUMA_PREFER, MEM_NUMA_INTERLEAVE };
struct mem_hold {
	enum mem_numa numa;
	uint64_t nodes; /* bit n: node n of the host, for any but NONE */
	bool prealloc;  /* have all of it now, not when it is touched */
	bool lock;      /* and never swapped out */
};
int mem_hold(struct mem *m, const struct mem_hold *h, struct error *err);

unsigned mem_ram_ranges(const struct mem *m, const struct mem_range **out);
uint64_t mem_ram_size(const struct mem *m); /* all ranges together, bytes */
int mem_fd(const struct mem *m);            /* the memfd; stays owned by m */
uint64_t mem_fd_offset(const struct mem *m, const struct mem_range *r); /* of a range in it */

/* -EFAULT when any byte of [gpa, gpa+len) is not RAM; then nothing was transferred. */
int mem_read(struct mem *m, gpa_t gpa, void *buf, uint64_t len);
int mem_write(struct mem *m, gpa_t gpa, const void *buf, uint64_t len);
int mem_zero(struct mem *m, gpa_t gpa, uint64_t len);

/* Naturally aligned gpa only (else -EFAULT): one atomic access, with acquire/release order, as
 * ring indices shared with a running guest need. */
int mem_load16(struct mem *m, gpa_t gpa, uint16_t *v);
int mem_load32(struct mem *m, gpa_t gpa, uint32_t *v);
int mem_load64(struct mem *m, gpa_t gpa, uint64_t *v);
int mem_store16(struct mem *m, gpa_t gpa, uint16_t v);
int mem_store32(struct mem *m, gpa_t gpa, uint32_t v);
int mem_store64(struct mem *m, gpa_t gpa, uint64_t v);

/* Lend the bytes of [gpa, gpa+len) to a system call (readv into guest buffers).  Returns how many
 * bytes from gpa on are contiguous at *hva, 0 when gpa is not RAM.  After writing into them call
 * mem_wrote.  The pointer is not kept past the request. */
uint64_t mem_borrow(struct mem *m, gpa_t gpa, uint64_t len, uint8_t **hva);
void mem_wrote(struct mem *m, gpa_t gpa, uint64_t len);

/* How many bytes of [gpa, gpa+len) from gpa on nobody has ever written: zeroes that take no host
 * memory, and would if one read them.  0: there may be something.  Whole pages, in one RAM range.
 */
uint64_t mem_hole(struct mem *m, gpa_t gpa, uint64_t len);

/* Engines only: the page record of a RAM gpa, NULL when not RAM. */
struct mem_page *mem_page(struct mem *m, gpa_t gpa);
/* Engines only: call written after each write that has raised the page's gen, on the thread that
 * wrote.  Set before anybody writes; NULL: nobody is to be told. */
void mem_watch_code(struct mem *m, void (*written)(void *opaque, struct mem_page *page),
		    void *opaque);

/* Dirty tracking for snapshots and migration.  fetch: bit n of bitmap = page n of the range was
 * written since the last fetch.  gpa and size are page-aligned and inside one RAM range. */
void mem_dirty_track(struct mem *m, bool on);
bool mem_dirty_tracking(const struct mem *m);
int mem_dirty_fetch(struct mem *m, gpa_t gpa, uint64_t size, uint64_t *bitmap);
