/* code.c - rows of a program that writes its own code. */
#include "workload.h"

#include <string.h>
#include <sys/mman.h>

enum { FRESH_PAGES = 64, FRESH_INSNS = 400, FRESH_RUNS = 3 };

static unsigned char *code;

static void prepare_code(void)
{
	code = pages_get(FRESH_PAGES * 4096, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
	memset(code, 0xc3, FRESH_PAGES * 4096);
}

typedef uint32_t (*made)(uint32_t);

/* lea eax, [rdi + imm32]; ret, where imm32 changes before each call */
static uint64_t run_patch(uint64_t ops)
{
	static const unsigned char body[] = {0x8d, 0x87, 0, 0, 0, 0, 0xc3};
	uint32_t x = 1;

	memcpy(code, body, sizeof(body));
	for (uint64_t i = 0; i < ops; i++) {
		uint32_t imm = i * 2654435761u;

		memcpy(code + 2, &imm, sizeof(imm));
		__asm__ volatile("" ::: "memory");
		x = ((made)(uintptr_t)code)(x);
	}
	return x;
}

/* A page of straight code that depends on seed. */
static void emit_page(unsigned char *p, uint64_t seed)
{
	static const unsigned char shapes[8][3] = {
		{0x01, 0xf8},       /* add eax, edi */
		{0x31, 0xc7},       /* xor edi, eax */
		{0xc1, 0xc0, 0x05}, /* rol eax, 5 */
		{0x29, 0xf8},       /* sub eax, edi */
		{0x0f, 0xc8},       /* bswap eax */
		{0x01, 0xc7},       /* add edi, eax */
		{0xf7, 0xd0},       /* not eax */
		{0x6b, 0xff, 0x11}, /* imul edi, edi, 17 */
	};
	static const unsigned char lens[8] = {2, 2, 3, 2, 2, 2, 2, 3};

	*p++ = 0x89, *p++ = 0xf8; /* mov eax, edi */
	for (int i = 0; i < FRESH_INSNS; i++) {
		unsigned shape = random_next(&seed) >> 40 & 7;

		memcpy(p, shapes[shape], lens[shape]);
		p += lens[shape];
	}
	*p = 0xc3;
}

/* ops pages, each emitted once and run a few times, as a JIT compiler's users do. */
static uint64_t run_fresh(uint64_t ops)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i++) {
		unsigned char *page = code + i % FRESH_PAGES * 4096;

		emit_page(page, i + 1);
		__asm__ volatile("" ::: "memory");
		for (int run = 0; run < FRESH_RUNS; run++)
			sum = mix(sum, ((made)(uintptr_t)page)(run + i));
	}
	return sum;
}

static void finish_code(void)
{
	munmap(code, FRESH_PAGES * 4096);
}

const struct row code_rows[] = {
	{"patch", "instruction patched and run", 20000, prepare_code, run_patch, finish_code},
	{"fresh", "page of 400 instructions emitted and run three times", 256, prepare_code,
	 run_fresh, finish_code},
	{0},
};
