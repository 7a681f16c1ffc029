/* replay.c - run a fuzz target without a fuzzer: every seed file of a folder, then mutations of
 * them.
 *
 *   replay_NAME SEEDS [ROUNDS [START]]
 *
 * The mutations are pseudo-random and START (1) chooses them, so a failure repeats.  When the
 * target dies, the input it died of stays in the file replay-NAME.crash of the working directory.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_MAX = 1 << 16, SEEDS_MAX = 512, DEFAULT_ROUNDS = 10000 };

struct input {
	uint8_t *data;
	size_t len;
};

static struct input seeds[SEEDS_MAX];
static unsigned nr_seeds;
static uint64_t rng = 0x9e3779b97f4a7c15ull;

/* What the target is being given, for on_death. */
static struct input current;
static char crash_path[256];

static uint64_t next_random(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

/* --- when the target dies ----------------------------------------------------------------------
 */

static void on_death(int sig)
{
	int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (fd < 0 || write(fd, current.data, current.len) < 0)
		perror(crash_path);
	signal(sig, SIG_DFL);
	raise(sig);
}

/* Sanitizers abort by SIGABRT when asked to (abort_on_error=1); the rest are the target's own.
 * A target that has handlers of its own puts them in front of these. */
static void catch_death(const char *program)
{
	static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGALRM, SIGTERM};
	const char *name = strrchr(program, '/');

	snprintf(crash_path, sizeof(crash_path), "%s.crash", name ? name + 1 : program);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		signal(signals[i], on_death);
}

static void run(uint8_t *data, size_t len)
{
	current = (struct input){data, len};
	LLVMFuzzerTestOneInput(data, len);
}

/* --- seeds --------------------------------------------------------------------------------------
 */

static int read_seed(const char *path, struct input *in)
{
	FILE *f = fopen(path, "rb");

	if (!f)
		return -1;
	in->data = malloc(INPUT_MAX);
	in->len = in->data ? fread(in->data, 1, INPUT_MAX, f) : 0;
	fclose(f);
	return in->data ? 0 : -1;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

/* Sorted, so that the mutations are the same wherever the folder lies. */
static int read_seeds(const char *dir)
{
	struct dirent **names;
	int n = scandir(dir, &names, NULL, by_name);

	for (int i = 0; i < n; i++) {
		char path[4096];

		snprintf(path, sizeof(path), "%s/%s", dir, names[i]->d_name);
		if (names[i]->d_name[0] != '.' && nr_seeds < SEEDS_MAX &&
		    !read_seed(path, &seeds[nr_seeds]))
			nr_seeds++;
		free(names[i]);
	}
	if (n >= 0)
		free(names);
	return n;
}

/* --- mutations ----------------------------------------------------------------------------------
 */

static const struct input *any_seed(void)
{
	return &seeds[next_random() % nr_seeds];
}

/* The beginning of one seed and the end of another. */
static size_t cross(uint8_t *buf, size_t n)
{
	const struct input *other = any_seed();
	size_t from = n ? next_random() % n : 0, at = other->len ? next_random() % other->len : 0;
	size_t len = other->len - at;

	if (len > INPUT_MAX - from)
		len = INPUT_MAX - from;
	memcpy(buf + from, other->data + at, len);
	return from + len;
}

static void edit(uint8_t *buf, size_t n)
{
	static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff, 0xfe, 0x10, 0x40};
	size_t at = next_random() % n;

	switch (next_random() % 4) {
	case 0:
		buf[at] ^= (uint8_t)(1u << next_random() % 8);
		break;
	case 1:
		buf[at] = telling[next_random() % sizeof(telling)];
		break;
	case 2:
		for (unsigned i = 0; i < 4 && at + i < n; i++)
			buf[at + i] = (uint8_t)next_random();
		break;
	default:
		buf[at] = (uint8_t)next_random();
	}
}

static size_t mutate(uint8_t *buf)
{
	const struct input *seed = any_seed();
	unsigned edits = 1 + (unsigned)(next_random() % 8);
	size_t n = seed->len;

	memcpy(buf, seed->data, n);
	if (next_random() % 4 == 0)
		n = cross(buf, n);
	if (n == 0 || next_random() % 16 == 0)
		n = 1 + next_random() % 512;
	while (edits--)
		edit(buf, n);
	return next_random() % 8 ? n : 1 + next_random() % n;
}

int main(int argc, char **argv)
{
	uint8_t *buf = calloc(1, INPUT_MAX);
	long rounds = argc > 2 ? atol(argv[2]) : DEFAULT_ROUNDS;

	if (argc < 2 || !buf || read_seeds(argv[1]) < 0 || !nr_seeds) {
		fprintf(stderr, "%s: no seeds\n", argv[0]);
		return 2;
	}
	if (argc > 3)
		rng += (uint64_t)atol(argv[3]) * 0x2545f4914f6cdd1dull;
	catch_death(argv[0]);
	for (unsigned i = 0; i < nr_seeds; i++)
		run(seeds[i].data, seeds[i].len);
	for (long i = 0; i < rounds; i++)
		run(buf, mutate(buf));
	printf("%u seeds and %ld mutations run\n", nr_seeds, rounds);
	for (unsigned i = 0; i < nr_seeds; i++)
		free(seeds[i].data);
	free(buf);
	return 0;
}
