/* replay.c - run a fuzz target without a fuzzer: every seed file of a folder, then mutations.
 *
 *   replay_NAME SEEDS [ROUNDS]
 *
 * The mutations are pseudo-random with a fixed start, so a failure repeats. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_BYTES = 1 << 16, DEFAULT_ROUNDS = 3000 };

static uint64_t rng = 0x9e3779b97f4a7c15ull;

static uint64_t next_random(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

static size_t read_seed(const char *path, uint8_t *buf)
{
	FILE *f = fopen(path, "rb");
	size_t n;

	if (!f)
		return 0;
	n = fread(buf, 1, MAX_BYTES, f);
	fclose(f);
	return n;
}

static size_t mutate(uint8_t *buf, size_t n)
{
	unsigned edits = 1 + next_random() % 8;

	if (n == 0 || next_random() % 16 == 0)
		n = 1 + next_random() % 512;
	while (edits--)
		buf[next_random() % n] = next_random();
	return next_random() % 8 ? n : 1 + next_random() % n;
}

static unsigned run_seeds(const char *dir, uint8_t *last, size_t *last_len)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d))) {
		char path[4096];

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		*last_len = read_seed(path, last);
		LLVMFuzzerTestOneInput(last, *last_len);
		n++;
	}
	if (d)
		closedir(d);
	return n;
}

int main(int argc, char **argv)
{
	uint8_t *seed = calloc(1, MAX_BYTES), *buf = calloc(1, MAX_BYTES);
	long rounds = argc > 2 ? atol(argv[2]) : DEFAULT_ROUNDS;
	size_t seed_len = 64;
	unsigned n;

	if (argc < 2 || !seed || !buf)
		return 2;
	n = run_seeds(argv[1], seed, &seed_len);
	for (long i = 0; i < rounds; i++) {
		memcpy(buf, seed, MAX_BYTES);
		LLVMFuzzerTestOneInput(buf, mutate(buf, seed_len));
	}
	printf("%u seeds and %ld mutations run\n", n, rounds);
	free(seed);
	free(buf);
	return 0;
}
