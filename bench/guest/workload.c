/* workload.c - run the rows and print each one's checksum and best time.
 *
 *   workload [--quick] [--only NAME,NAME...] [--budget MS] [--root DIR] [--work DIR]
 *            [--list]
 *
 * Output: "CLOCK begin NS" and "CLOCK end NS" around all (for whoever reads it to compare with a
 * clock of its own), "ROW NAME CHECKSUM NS-PER-OPERATION REPETITIONS" for each row. */
#include "workload.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* A row is repeated for this long, at least and at most so often. */
static uint64_t budget_ns = 300000000;
static const unsigned min_repeats = 4, max_repeats = 10000;

const char *work_dir = "/tmp", *root_dir = "";

static const struct row *const groups[] = {
	integer_rows, library_rows, float_rows, code_rows, os_rows, memory_rows, script_rows,
};

void die(const char *what)
{
	fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
	exit(1);
}

void *pages_get(size_t size, int prot, int huge)
{
	const size_t align = 2u << 20;
	char *p = mmap(NULL, size + align, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	p = (char *)(((uintptr_t)p + align - 1) & -align);
	/* Kernels without huge pages refuse, and then all have small ones. */
	madvise(p, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return p;
}

uint64_t mix_bytes(uint64_t sum, const void *bytes, size_t len)
{
	const unsigned char *p = bytes;

	for (size_t i = 0; i < len; i++)
		sum = mix(sum, p[i]);
	return sum;
}

void text_fill(char *out, size_t len, uint64_t seed)
{
	static const char *const syllables[] = {"ka", "ro", "min", "tel", "o",  "dan", "vi", "sur",
						"el", "na", "pro", "ti",  "mo", "gar", "le", "qui"};
	size_t at = 0;

	while (at < len) {
		uint64_t r = random_next(&seed);
		/* few words often, many seldom */
		unsigned word = r % 7 ? r >> 8 & 63 : r >> 8 & 4095;

		for (unsigned n = 1 + word % 3; n && at < len; n--, word /= 5) {
			const char *s = syllables[(word * 7 + n) & 15];

			while (*s && at < len)
				out[at++] = *s++;
		}
		if (at < len)
			out[at++] = r >> 40 & 15 ? ' ' : '\n';
	}
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Twice in quick mode, so that a row which does not come out the same each time is seen. */
static void row_measure(const struct row *row, bool quick)
{
	uint64_t best = UINT64_MAX, sum = 0, start = now_ns(), end = start;
	unsigned repeats = 0;

	if (row->prepare)
		row->prepare();
	while (quick ? repeats < 2
		     : repeats < min_repeats ||
			       (repeats < max_repeats && end - start < budget_ns)) {
		uint64_t begin = now_ns(), got = row->run(row->ops);

		end = now_ns();
		if (repeats && got != sum) {
			printf("DIFFERS %s\n", row->name);
			break;
		}
		sum = got;
		best = end - begin < best ? end - begin : best;
		repeats++;
	}
	if (row->finish)
		row->finish();
	printf("ROW %s %016llx %.3f %u\n", row->name, (unsigned long long)sum,
	       (double)best / row->ops, repeats);
}

static bool row_can_run(const struct row *row)
{
	char path[512];

	if (!row->needs)
		return true;
	snprintf(path, sizeof(path), "%s%s", root_dir, row->needs);
	return !access(path, R_OK);
}

static bool list_has(const char *list, const char *name)
{
	size_t len = strlen(name);

	for (const char *p = list; p; p = strchr(p, ','), p = p ? p + 1 : NULL)
		if (!strncmp(p, name, len) && (p[len] == ',' || !p[len]))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	const char *only = NULL;
	bool quick = false, list = false;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], WORKLOAD_ONLY_EXIT))
			_exit(7);
		else if (!strcmp(argv[i], "--quick"))
			quick = true;
		else if (!strcmp(argv[i], "--list"))
			list = true;
		else if (!strcmp(argv[i], "--only") && i + 1 < argc)
			only = argv[++i];
		else if (!strcmp(argv[i], "--budget") && i + 1 < argc)
			budget_ns = strtoull(argv[++i], NULL, 0) * 1000000;
		else if (!strcmp(argv[i], "--root") && i + 1 < argc)
			root_dir = argv[++i];
		else if (!strcmp(argv[i], "--work") && i + 1 < argc)
			work_dir = argv[++i];
		else
			return fprintf(stderr, "workload: what is '%s'?\n", argv[i]), 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!list)
		printf("CLOCK begin %llu\n", (unsigned long long)now_ns());
	for (size_t g = 0; g < sizeof(groups) / sizeof(*groups); g++) {
		for (const struct row *row = groups[g]; row->name; row++) {
			if (only && !list_has(only, row->name))
				continue;
			if (list)
				printf("%s\t%s\n", row->name, row->what);
			else if (row_can_run(row))
				row_measure(row, quick);
		}
	}
	if (!list)
		printf("CLOCK end %llu\n", (unsigned long long)now_ns());
	return 0;
}
