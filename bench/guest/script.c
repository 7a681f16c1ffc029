/* script.c - rows that are a script from start to end: a shell's, with the programs it calls, and
 * Python's.  What the script says is the checksum. */
#include "workload.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char paths[4][512];

static char *in_root(int n, const char *path)
{
	snprintf(paths[n], sizeof(paths[n]), "%s%s", root_dir, path);
	return paths[n];
}

static uint64_t hash_output(int fd)
{
	char buf[4096];
	uint64_t sum = 0;
	ssize_t n;

	while ((n = read(fd, buf, sizeof(buf))) > 0)
		sum = mix_bytes(sum, buf, n);
	return sum;
}

static uint64_t run_program(char *const argv[])
{
	int fd[2], status;
	uint64_t sum;
	pid_t pid;

	if (pipe(fd))
		die("script");
	pid = fork();
	if (pid < 0)
		die("script");
	if (!pid) {
		dup2(fd[1], 1);
		close(fd[0]);
		close(fd[1]);
		execv(argv[0], argv);
		_exit(127);
	}
	close(fd[1]);
	sum = hash_output(fd[0]);
	close(fd[0]);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) && !WEXITSTATUS(status) ? sum : 0;
}

static uint64_t run_shell(uint64_t ops)
{
	char *busybox = in_root(0, "/bin/busybox");
	char *argv[] = {busybox, "sh", in_root(1, "/bench/script.sh"), busybox, NULL};
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i++)
		sum = mix(sum, run_program(argv));
	return sum;
}

/* With the C library of the initramfs, so that it is the same program outside. */
static uint64_t run_python(uint64_t ops)
{
	char *argv[] = {in_root(0, "/python/ld.so"),
			"--library-path",
			in_root(1, "/python/lib"),
			in_root(2, "/python/usr/bin/python3.11"),
			"-I",
			"-S",
			"-B",
			in_root(3, "/bench/script.py"),
			NULL};
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i++)
		sum = mix(sum, run_program(argv));
	return sum;
}

const struct row script_rows[] = {
	{"shell", "shell script that starts some programs", 1, NULL, run_shell, NULL},
	{"python", "Python script, with the interpreter's start", 1, NULL, run_python, NULL,
	 "/python/ld.so"},
	{0},
};
