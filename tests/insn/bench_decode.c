/* How long a decode takes: over the code of this very program, which is as typical as code gets,
 * and over random instructions, where no branch can be predicted. */
#include "engine/cpu_model.h"
#include "engine/soft/insn.h"
#include "insn_random.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { REPEAT = 20, NR_RANDOM = 1 << 14 };

extern const uint8_t code_end[] __asm__("etext");

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(void);

static unsigned long decode_text(const struct cpu_model *m)
{
	const uint8_t *p = (const uint8_t *)main;
	unsigned long n = 0;
	struct insn in;

	for (; p + 64 < code_end; p += in.len, n++)
		if (insn_decode(&in, p, (size_t)(code_end - p), INSN_MODE_64, m) != INSN_OK)
			break;
	return n;
}

static void bench_text(const struct cpu_model *m)
{
	unsigned long n = decode_text(m);
	double start = now_ns();

	for (unsigned i = 0; i < REPEAT; i++)
		n = decode_text(m);
	printf("program text: %lu instructions, %.1f ns each\n", n,
	       (now_ns() - start) / REPEAT / (double)n);
}

static void bench_random(const struct cpu_model *m)
{
	static uint8_t bytes[NR_RANDOM][32];
	struct insn_random r = {1};
	struct insn in;
	double start;

	for (unsigned i = 0; i < NR_RANDOM; i++)
		insn_random_bytes(&r, bytes[i]);
	start = now_ns();
	for (unsigned j = 0; j < REPEAT; j++)
		for (unsigned i = 0; i < NR_RANDOM; i++)
			insn_decode(&in, bytes[i], 32, INSN_MODE_64, m);
	printf("random instructions: %.1f ns each\n", (now_ns() - start) / REPEAT / NR_RANDOM);
}

int main(void)
{
	struct cpu_model m = {.vendor = "AuthenticAMD"};

	memset(m.features, 0xff, sizeof(m.features));
	bench_text(&m);
	bench_random(&m);
	return 0;
}
