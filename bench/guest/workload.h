/* bench/guest/workload.h - the rows of the guest workload set.
 *
 * One static program, run natively and as the only process of a guest.  Each row does a fixed
 * amount of work again and again; its checksum must be the same each time and everywhere, its time
 * is the best of its repetitions, in nanoseconds of CLOCK_MONOTONIC.  Single-threaded. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct row {
	const char *name;
	const char *what; /* one operation */
	uint64_t ops;     /* in one repetition; chosen for some milliseconds on bare hardware */
	void (*prepare)(void); /* once, not measured; or NULL */
	uint64_t (*run)(uint64_t ops);
	void (*finish)(void); /* once, not measured; or NULL */
	const char *needs;    /* a file under root_dir; the row is left out without it; or NULL */
};

/* Each ends with a row without a name. */
extern const struct row integer_rows[], library_rows[], float_rows[], code_rows[], os_rows[],
	memory_rows[], script_rows[];

/* Where files may be made, and where the root of the initramfs lies ("" in the guest). */
extern const char *work_dir, *root_dir;

/* The first argument of a run of this program that only ends, with status 7. */
#define WORKLOAD_ONLY_EXIT "--only-exit"

/* Memory of whole pages, huge ones where the kernel has them or never; ends the program if there is
 * none. */
void *pages_get(size_t size, int prot, int huge);
/* Say why and end the program. */
void die(const char *what);

/* xorshift64*: the same numbers everywhere. */
static inline uint64_t random_next(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dull;
}

static inline uint64_t mix(uint64_t sum, uint64_t value)
{
	sum = (sum ^ value) * 0x9e3779b97f4a7c15ull;
	return sum ^ sum >> 29;
}

uint64_t mix_bytes(uint64_t sum, const void *bytes, size_t len);

/* Made-up words, as text that compresses like text. */
void text_fill(char *out, size_t len, uint64_t seed);
