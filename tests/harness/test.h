/* test.h - the whole unit-test framework: TAP out, one child process per test.
 *
 * A test is a function; CHECK* record what was expected and what came, and stop the test.  SKIP()
 * says why a test cannot run here.  A crash, a sanitizer report or a hang fails that test alone.
 * One test can be run by name: ./test-foo name_of_test (without a child, for a debugger). */
#pragma once

#include "check.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef TEST_TIMEOUT_S
#define TEST_TIMEOUT_S 60
#endif

struct test {
	const char *name;
	void (*fn)(void);
	struct test *next;
};
static struct test *tests, **tests_tail = &tests;

#define TEST(id)                                                                                   \
	static void id(void);                                                                      \
	__attribute__((constructor)) static void id##_register(void)                               \
	{                                                                                          \
		static struct test t = {#id, id, NULL};                                            \
		*tests_tail = &t;                                                                  \
		tests_tail = &t.next;                                                              \
	}                                                                                          \
	static void id(void)

static int test_run_one(const struct test *t, int n)
{
	int status = 0;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		alarm(TEST_TIMEOUT_S);
		t->fn();
		exit(0); /* exit, not _exit: lets LeakSanitizer look */
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == TEST_SKIPPED) {
		printf("ok %d - %s # SKIP\n", n, t->name);
		return 0;
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		printf("ok %d - %s\n", n, t->name);
		return 0;
	}
	if (WIFSIGNALED(status))
		printf("# killed by %s\n", strsignal(WTERMSIG(status)));
	printf("not ok %d - %s\n", n, t->name);
	return 1;
}

int main(int argc, char **argv)
{
	int n = 0, failed = 0;

	for (struct test *t = tests; t; t = t->next) {
		n++;
		if (argc > 1 && !strcmp(argv[1], t->name)) {
			t->fn();
			return 0;
		}
	}
	printf("1..%d\n", n);
	n = 0;
	for (struct test *t = tests; t; t = t->next)
		failed += test_run_one(t, ++n);
	return failed != 0;
}
