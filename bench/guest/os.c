/* os.c - rows that are the operating system's work. */
#include "workload.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t run_getppid(uint64_t ops)
{
	long first = syscall(SYS_getppid);
	uint64_t same = 0;

	for (uint64_t i = 0; i < ops; i++)
		same += syscall(SYS_getppid) == first;
	return same;
}

static uint64_t run_clock(uint64_t ops)
{
	struct timespec t, before = {0};
	uint64_t forward = 0;

	for (uint64_t i = 0; i < ops; i++) {
		clock_gettime(CLOCK_MONOTONIC, &t);
		forward += t.tv_sec > before.tv_sec ||
			   (t.tv_sec == before.tv_sec && t.tv_nsec >= before.tv_nsec);
		before = t;
	}
	return forward;
}

/* --- files ---------------------------------------------------------------------------------------
 */

static int zero_fd;

static void prepare_zero(void)
{
	zero_fd = open("/dev/zero", O_RDONLY);
	if (zero_fd < 0)
		die("/dev/zero");
}

static uint64_t run_zero(uint64_t ops)
{
	static char page[4096] __attribute__((aligned(4096)));
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i++) {
		page[i & 4095] = 1;
		sum += read(zero_fd, page, sizeof(page));
		sum += page[i & 4095];
	}
	return sum;
}

static void finish_zero(void)
{
	close(zero_fd);
}

static char stat_path[4096];

static void prepare_stat(void)
{
	static const char *const parts[] = {"/workload.stat", "/deeper", "/still", "/file"};
	int fd;

	snprintf(stat_path, sizeof(stat_path), "%s", work_dir);
	for (int i = 0; i < 4; i++) {
		strncat(stat_path, parts[i], sizeof(stat_path) - strlen(stat_path) - 1);
		if (i < 3)
			mkdir(stat_path, 0700);
	}
	fd = open(stat_path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
	if (fd < 0 || write(fd, "12345", 5) != 5)
		die(stat_path);
	close(fd);
}

static uint64_t run_stat(uint64_t ops)
{
	struct stat st;
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i++)
		sum += !stat(stat_path, &st) ? st.st_size : 0;
	return sum;
}

static void finish_stat(void)
{
	unlink(stat_path);
	for (int i = 0; i < 3; i++) {
		*strrchr(stat_path, '/') = 0;
		rmdir(stat_path);
	}
}

/* --- memory --------------------------------------------------------------------------------------
 */

static uint64_t run_touch(uint64_t ops)
{
	char *p = pages_get(ops * 4096, PROT_READ | PROT_WRITE, 0);
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i++)
		p[i * 4096] = i;
	for (uint64_t i = 0; i < ops; i++)
		sum += (unsigned char)p[i * 4096];
	munmap(p, ops * 4096);
	return sum;
}

/* --- signals and processes -----------------------------------------------------------------------
 */

static volatile uint64_t signals_seen;

static void on_signal(int sig)
{
	signals_seen++;
}

static uint64_t run_signal(uint64_t ops)
{
	struct sigaction sa = {.sa_handler = on_signal};

	sigaction(SIGUSR1, &sa, NULL);
	signals_seen = 0;
	for (uint64_t i = 0; i < ops; i++)
		kill(getpid(), SIGUSR1);
	return signals_seen;
}

static uint64_t wait_for(pid_t pid)
{
	int status = 0;

	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		die("a child");
	return WEXITSTATUS(status);
}

static uint64_t run_fork(uint64_t ops)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(i & 127);
		sum += wait_for(pid);
	}
	return sum;
}

static uint64_t run_exec(uint64_t ops)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i++) {
		pid_t pid = fork();

		if (!pid) {
			execl("/proc/self/exe", "workload", WORKLOAD_ONLY_EXIT, NULL);
			_exit(1);
		}
		sum += wait_for(pid);
	}
	return sum;
}

static int to_child[2], from_child[2];
static pid_t echo_pid;

static void echo(void)
{
	char c;

	close(to_child[1]);
	while (read(to_child[0], &c, 1) == 1) {
		c++;
		if (write(from_child[1], &c, 1) != 1)
			break;
	}
	_exit(0);
}

static void prepare_pipe(void)
{
	if (pipe(to_child) || pipe(from_child))
		die("pipe");
	echo_pid = fork();
	if (!echo_pid)
		echo();
	close(to_child[0]);
	close(from_child[1]);
}

static uint64_t run_pipe(uint64_t ops)
{
	uint64_t sum = 0;
	char c = 0;

	for (uint64_t i = 0; i < ops; i++) {
		c = i;
		if (write(to_child[1], &c, 1) != 1 || read(from_child[0], &c, 1) != 1)
			die("pipe");
		sum += (unsigned char)c;
	}
	return sum;
}

static void finish_pipe(void)
{
	close(to_child[1]);
	close(from_child[0]);
	wait_for(echo_pid);
}

const struct row os_rows[] = {
	{"getppid", "system call", 10000, NULL, run_getppid, NULL},
	{"clock", "clock_gettime through the vDSO", 50000, NULL, run_clock, NULL},
	{"read-zero", "read of 4 KiB of zeroes", 4000, prepare_zero, run_zero, finish_zero},
	{"stat", "stat of a path of five parts", 2000, prepare_stat, run_stat, finish_stat},
	{"touch", "first touch of a page", 1024, NULL, run_touch, NULL},
	{"signal", "signal to itself", 1000, NULL, run_signal, NULL},
	{"fork", "fork, exit and wait", 20, NULL, run_fork, NULL},
	{"exec", "fork, exec, exit and wait", 10, NULL, run_exec, NULL},
	{"pipe", "byte to another process and back", 400, prepare_pipe, run_pipe, finish_pipe},
	{0},
};
