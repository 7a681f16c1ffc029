/* check.h - CHECK, CHECK_EQ, CHECK_STR: what was expected and what came, and the end of this
 * process.
 *
 * For tests (test.h includes it) and for programs that are a test as a whole. */
#pragma once

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEST_FAILED = 1, TEST_SKIPPED = 77 };

#define CHECK(cond)                                                                                \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			printf("# %s:%d: %s\n", __FILE__, __LINE__, #cond);                        \
			fflush(stdout);                                                            \
			_exit(TEST_FAILED);                                                        \
		}                                                                                  \
	} while (0)

#define CHECK_EQ(want, got)                                                                        \
	do {                                                                                       \
		uint64_t want_ = (uint64_t)(want), got_ = (uint64_t)(got);                         \
		if (want_ != got_) {                                                               \
			printf("# %s:%d: %s: want %#" PRIx64 ", got %#" PRIx64 "\n", __FILE__,     \
			       __LINE__, #got, want_, got_);                                       \
			fflush(stdout);                                                            \
			_exit(TEST_FAILED);                                                        \
		}                                                                                  \
	} while (0)

#define CHECK_STR(want, got)                                                                       \
	do {                                                                                       \
		const char *want_ = (want), *got_ = (got);                                         \
		if (strcmp(want_, got_)) {                                                         \
			printf("# %s:%d: %s: want '%s', got '%s'\n", __FILE__, __LINE__, #got,     \
			       want_, got_);                                                       \
			fflush(stdout);                                                            \
			_exit(TEST_FAILED);                                                        \
		}                                                                                  \
	} while (0)

#define SKIP(why)                                                                                  \
	do {                                                                                       \
		printf("# skip: %s\n", why);                                                       \
		fflush(stdout);                                                                    \
		_exit(TEST_SKIPPED);                                                               \
	} while (0)
