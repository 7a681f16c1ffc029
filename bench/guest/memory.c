/* memory.c - rows that are bound by memory. */
#include "workload.h"

#include <string.h>
#include <sys/mman.h>

enum { BIG = 16 << 20 };

static char *from, *to;
/* Through a pointer, so that the C library's copy is what runs. */
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;

static void prepare_copy(void)
{
	from = pages_get(BIG, PROT_READ | PROT_WRITE, 1);
	to = pages_get(BIG, PROT_READ | PROT_WRITE, 1);
	memset(to, 1, BIG);
	for (size_t i = 0; i < BIG; i += 8) {
		uint64_t v = i * 0x9e3779b97f4a7c15ull;

		memcpy(from + i, &v, 8);
	}
}

static void finish_copy(void)
{
	munmap(from, BIG);
	munmap(to, BIG);
}

/* Copies of size bytes inside 16 KiB (what lies in the first cache), or the whole. */
static uint64_t copy_many(uint64_t ops, size_t size)
{
	size_t mask = size < BIG ? 0x3fff & -size : 0;

	for (uint64_t i = 0; i < ops; i++)
		copy(to + (i * size & mask), from + (i * size * 5 & mask), size);
	return mix_bytes(0, to + (ops * size & mask), 64);
}

static uint64_t run_copy64(uint64_t ops)
{
	return copy_many(ops, 64);
}

static uint64_t run_copy4k(uint64_t ops)
{
	return copy_many(ops, 4096);
}

static uint64_t run_copy16m(uint64_t ops)
{
	return copy_many(ops, BIG);
}

/* --- one load after the other --------------------------------------------------------------------
 */

struct link {
	struct link *next;
	char line[56];
};

static struct link *links;
static size_t nr_links;

/* One ring through all of them in random order (Sattolo's shuffle). */
static void make_ring(size_t bytes)
{
	uint64_t seed = 21;

	nr_links = bytes / sizeof(*links);
	links = pages_get(bytes, PROT_READ | PROT_WRITE, 1);
	for (size_t i = 0; i < nr_links; i++)
		links[i].next = &links[i];
	for (size_t i = nr_links - 1; i; i--) {
		size_t j = random_next(&seed) % i;
		struct link *t = links[i].next;

		links[i].next = links[j].next;
		links[j].next = t;
	}
}

static void prepare_ring(void)
{
	make_ring(32 << 10);
}

static void prepare_big_ring(void)
{
	make_ring(64 << 20);
}

static uint64_t run_chase(uint64_t ops)
{
	struct link *l = links;

	for (uint64_t i = 0; i < ops; i++)
		l = l->next;
	return l - links;
}

static void finish_ring(void)
{
	munmap(links, nr_links * sizeof(*links));
}

const struct row memory_rows[] = {
	{"copy-64", "memcpy of 64 bytes", 500000, prepare_copy, run_copy64, finish_copy},
	{"copy-4k", "memcpy of 4 KiB", 50000, prepare_copy, run_copy4k, finish_copy},
	{"copy-16m", "memcpy of 16 MiB", 1, prepare_copy, run_copy16m, finish_copy},
	{"chase", "load that needs the one before, in 32 KiB", 1000000, prepare_ring, run_chase,
	 finish_ring},
	{"chase-big", "load that needs the one before, in 64 MiB", 1 << 20, prepare_big_ring,
	 run_chase, finish_ring},
	{0},
};
