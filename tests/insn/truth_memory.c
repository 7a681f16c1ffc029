/* truth_memory.c - the memory a case can reach, in this process and in the guest: see truth.h. */
#include "base/error.h"
#include "mem/mem.h"
#include "truth.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DATA_GPA  0x00100000ull
#define CODE_GPA  0x00200000ull
#define TABLE_GPA 0x00300000ull
#define DESC_GPA  0x00400000ull /* GDT, LDT, IDT */
#define DESC_GVA  0xffff800000000000ull
#define RAM_SIZE  (16 * MiB)

enum { LDT_OFFSET = 2048, IDT_OFFSET = 4096, GDT_ENTRIES = 16, INT3 = 0xcc };

static const bool page_mapped[DATA_PAGES] = {1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0};

static struct mem *mem;
static uint8_t *ram;       /* of the guest */
static uint8_t *host_code; /* where the host's code page can be written */

/* --- segments -----------------------------------------------------------------------------------
 */

#define DATA_ATTR (3 | X86_SEG_S | 3 << 5 | X86_SEG_P)
#define CODE_ATTR (0xb | X86_SEG_S | 3 << 5 | X86_SEG_P)
#define LDT(n)    ((n) << 3 | 7)

/* The kernel sets the accessed bit of every LDT entry and knows neither 64-bit code nor conforming
 * code there. */
const struct truth_seg truth_segs[] = {
	{LDT(0), CODE_GVA, 0xffff, CODE_ATTR},                        /* 16-bit code */
	{LDT(1), CODE_GVA, 0x9ff, CODE_ATTR | X86_SEG_DB},            /* short 32-bit code */
	{LDT(2), 0, ~0u, (CODE_ATTR & ~2u) | X86_SEG_DB | X86_SEG_G}, /* execute only */
	{LDT(3), DATA_GVA, 0xffff, DATA_ATTR | X86_SEG_DB},           /* data */
	{LDT(4), DATA_GVA + 0x801, 0x7ffe, DATA_ATTR | X86_SEG_DB},   /* odd base */
	{LDT(5), DATA_GVA, 0xffff, DATA_ATTR},                        /* 16-bit stack */
	{LDT(6), DATA_GVA, 0x1fff, DATA_ATTR | 4 | X86_SEG_DB},       /* expand down */
	{LDT(7), DATA_GVA, 0x3fff, DATA_ATTR | 4},                    /* that, 16 bits */
	{LDT(8), DATA_GVA - 0x2345, ~0u, DATA_ATTR | X86_SEG_DB | X86_SEG_G},
	{LDT(9), DATA_GVA + 0x20000000, ~0u, DATA_ATTR | X86_SEG_DB | X86_SEG_G}, /* wraps */
	{LDT(10), DATA_GVA, 0xffff, (DATA_ATTR & ~2u) | X86_SEG_DB},              /* read only */
	{LDT(11), DATA_GVA, 0xffff, (DATA_ATTR & ~X86_SEG_P) | X86_SEG_DB},       /* not present */
};
const unsigned truth_nr_segs = ARRAY_SIZE(truth_segs);

/* Linux's, as user code can see them; the kernel's own cannot be told from one another. */
static struct truth_seg gdt_segs[] = {
	{0x08, 0, ~0u, 0xb | X86_SEG_S | X86_SEG_P | X86_SEG_DB | X86_SEG_G},
	{0x10, 0, ~0u, 0xb | X86_SEG_S | X86_SEG_P | X86_SEG_L | X86_SEG_G},
	{0x18, 0, ~0u, 3 | X86_SEG_S | X86_SEG_P | X86_SEG_DB | X86_SEG_G},
	{SEL_CODE32, 0, ~0u, CODE_ATTR | X86_SEG_DB | X86_SEG_G},
	{SEL_DATA, 0, ~0u, DATA_ATTR | X86_SEG_DB | X86_SEG_G},
	{SEL_CODE64, 0, ~0u, CODE_ATTR | X86_SEG_L | X86_SEG_G},
	{0x40, 0, 0x67, 0xb | X86_SEG_P},
	{SEL_CPU, 0, 0, 5 | X86_SEG_S | 3 << 5 | X86_SEG_P | X86_SEG_DB},
};

const struct truth_seg *truth_seg_of(uint16_t selector)
{
	for (unsigned i = 0; i < truth_nr_segs; i++)
		if (truth_segs[i].selector == (selector | 3))
			return &truth_segs[i];
	for (unsigned i = 0; i < ARRAY_SIZE(gdt_segs); i++)
		if ((gdt_segs[i].selector | 3) == (selector | 3))
			return &gdt_segs[i];
	return NULL;
}

static uint64_t descriptor(const struct truth_seg *s)
{
	uint64_t limit = s->attr & X86_SEG_G ? s->limit >> 12 : s->limit, base = s->base;

	return (limit & 0xffff) | (base & 0xffffff) << 16 | (uint64_t)(s->attr & 0xff) << 40 |
	       (limit >> 16) << 48 | (uint64_t)(s->attr >> 12) << 52 | (base >> 24) << 56;
}

/* Linux: the number of the CPU is the limit of a segment. */
static uint32_t limit_of(uint16_t selector)
{
	uint32_t limit = 0;

	asm("lsl %1, %0" : "+r"(limit) : "r"((uint32_t)selector));
	return limit;
}

static void put_descriptors(void)
{
	gdt_segs[ARRAY_SIZE(gdt_segs) - 1].limit = limit_of(SEL_CPU);
	for (unsigned i = 0; i < ARRAY_SIZE(gdt_segs); i++) {
		uint64_t d = descriptor(&gdt_segs[i]);

		memcpy(ram + DESC_GPA + (gdt_segs[i].selector & ~7), &d, 8);
	}
	for (unsigned i = 0; i < truth_nr_segs; i++) {
		uint64_t d = descriptor(&truth_segs[i]);

		memcpy(ram + DESC_GPA + LDT_OFFSET + 8 * i, &d, 8);
		if (!native_set_ldt(i, d))
			die("the kernel has no LDT");
	}
}

/* Gates that user code may not use: INT n is #GP(n * 8 + 2). */
static void put_idt(void)
{
	for (unsigned i = 0; i < 256; i++) {
		uint64_t gate = (uint64_t)0x10 << 16 | (uint64_t)(X86_SEG_P | 0xe) << 40;

		memcpy(ram + DESC_GPA + IDT_OFFSET + 16 * i, &gate, 8);
	}
}

struct x86_table memory_idt(void)
{
	return (struct x86_table){DESC_GVA + IDT_OFFSET, 256 * 16 - 1};
}

struct x86_table memory_gdt(void)
{
	return (struct x86_table){DESC_GVA, GDT_ENTRIES * 8 - 1};
}

struct x86_table memory_ldt(void)
{
	return (struct x86_table){DESC_GVA + LDT_OFFSET, (uint16_t)(truth_nr_segs * 8 - 1)};
}

/* --- both memories ------------------------------------------------------------------------------
 */

static void put_pte(gpa_t table, gva_t index, uint64_t pte)
{
	memcpy(ram + table + 8 * (index & 511), &pte, 8);
}

static void map_guest(void)
{
	const gpa_t pdpt = TABLE_GPA + 0x1000, pd = TABLE_GPA + 0x2000, data = TABLE_GPA + 0x3000,
		    code = TABLE_GPA + 0x4000, high = TABLE_GPA + 0x5000;
	const uint64_t all = PTE_P | PTE_W | PTE_U;

	put_pte(TABLE_GPA, 0, pdpt | all);
	put_pte(pdpt, 0, pd | all);
	put_pte(pd, DATA_GVA >> 21, data | all);
	put_pte(pd, CODE_GVA >> 21, code | all);
	for (unsigned i = 0; i < DATA_PAGES; i++)
		if (page_mapped[i])
			put_pte(data, i,
				(DATA_GPA + i * PAGE_SIZE) | PTE_P | PTE_U | PTE_NX |
					(i == RO_PAGE ? 0 : PTE_W));
	put_pte(code, 0, CODE_GPA | PTE_P | PTE_U);
	put_pte(TABLE_GPA, DESC_GVA >> 39, high | PTE_P | PTE_W);
	put_pte(high, 0, (high + 0x1000) | PTE_P | PTE_W);
	put_pte(high + 0x1000, 0, (high + 0x2000) | PTE_P | PTE_W);
	for (unsigned i = 0; i < 2; i++)
		put_pte(high + 0x2000, i, (DESC_GPA + i * PAGE_SIZE) | PTE_P | PTE_W);
}

static void map_host(void)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;

	for (unsigned i = 0; i < DATA_PAGES; i++)
		if (page_mapped[i] && mmap((void *)(DATA_GVA + i * PAGE_SIZE), PAGE_SIZE,
					   PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
			die("cannot map the data region");
}

/* As in the guest, the code cannot be written where it runs. */
static void map_host_code(void)
{
	int fd = memfd_create("truth-code", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, PAGE_SIZE) < 0 ||
	    mmap((void *)CODE_GVA, PAGE_SIZE, PROT_READ | PROT_EXEC,
		 MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == MAP_FAILED)
		die("cannot map the code page");
	host_code = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (host_code == MAP_FAILED)
		die("cannot map the code page twice");
	close(fd);
	memset(host_code, INT3, PAGE_SIZE);
}

struct mem *memory_create(void)
{
	const struct mem_range *range;
	struct error err;

	if (mem_create(&mem, &err) < 0 || mem_add_ram(mem, 0, RAM_SIZE, &err) < 0)
		die(err.msg);
	mem_ram_ranges(mem, &range);
	ram = range[0].hva;
	map_guest();
	map_host();
	map_host_code();
	put_descriptors();
	put_idt();
	memset(ram + CODE_GPA, INT3, PAGE_SIZE);
	return mem;
}

gpa_t memory_page_tables(void)
{
	return TABLE_GPA;
}

bool memory_can(unsigned page, bool write)
{
	return page_mapped[page] && !(write && page == RO_PAGE);
}

static void protect_host(int prot)
{
	mprotect((void *)(DATA_GVA + RO_PAGE * PAGE_SIZE), PAGE_SIZE, prot);
}

void memory_sync(void)
{
	protect_host(PROT_READ | PROT_WRITE);
	for (unsigned i = 0; i < DATA_PAGES; i++)
		if (page_mapped[i])
			memcpy((void *)(DATA_GVA + i * PAGE_SIZE), ram + DATA_GPA + i * PAGE_SIZE,
			       PAGE_SIZE);
	protect_host(PROT_READ);
}

void memory_random(void)
{
	program_random_fill(ram + DATA_GPA, DATA_PAGES * PAGE_SIZE);
	memory_sync();
}

bool memory_same(unsigned *off, uint8_t *host, uint8_t *guest)
{
	for (unsigned i = 0; i < DATA_PAGES; i++) {
		const uint8_t *a = ram + DATA_GPA + i * PAGE_SIZE,
			      *b = (const uint8_t *)(DATA_GVA + i * PAGE_SIZE);
		unsigned n = 0;

		if (!page_mapped[i] || !memcmp(a, b, PAGE_SIZE))
			continue;
		while (a[n] == b[n])
			n++;
		*off = i * PAGE_SIZE + n;
		*guest = a[n];
		*host = b[n];
		return false;
	}
	return true;
}

static bool in_data(gva_t at)
{
	return at - DATA_GVA < DATA_PAGES * PAGE_SIZE && page_mapped[(at - DATA_GVA) / PAGE_SIZE];
}

void memory_poke(gva_t at, const void *bytes, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		if (in_data(at + i) && (at + i - DATA_GVA) / PAGE_SIZE != RO_PAGE) {
			uint8_t b = ((const uint8_t *)bytes)[i];

			ram[DATA_GPA + at + i - DATA_GVA] = b;
			*(uint8_t *)(at + i) = b;
		}
}

bool memory_peek(gva_t at, void *bytes, unsigned len)
{
	if (!in_data(at) || !in_data(at + len - 1))
		return false;
	memcpy(bytes, ram + DATA_GPA + at - DATA_GVA, len);
	return true;
}

void memory_put_code(const struct program *p, bool in)
{
	unsigned off = (unsigned)(p->at - CODE_GVA);
	unsigned n = MIN(p->len, (unsigned)PAGE_SIZE - off);
	uint8_t int3[CODE_MAX];
	const uint8_t *from = p->code;

	if (!in) {
		memset(int3, INT3, sizeof(int3));
		from = int3;
	}
	memcpy(host_code + off, from, n);
	mem_write(mem, CODE_GPA + off, from, n);
}
