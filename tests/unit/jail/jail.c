/* What a jailed process can and cannot do, and disks over a socket pair. */
#include "test.h"

#include "base/error.h"
#include "block/filter.h"
#include "block/format.h"
#include "jail/jail.h"
#include "jail/proxy.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

static char *scratch(void)
{
	static char dir[] = "/tmp/jail-test-XXXXXX";

	CHECK(mkdtemp(dir));
	return dir;
}

static void lock_in(const char *readable)
{
	struct error err = {0};
	const char *dirs[] = {readable};

	if (jail_enter(&(struct jail){.readable = dirs, .nr_readable = readable ? 1 : 0}, &err) < 0)
		SKIP(err.msg);
}

static void *write_a_one(void *to)
{
	*(int *)to = 1;
	return NULL;
}

/* Checks run in a child, so that the directory can be removed outside. */
static void inside(const char *dir, void (*fn)(const char *dir))
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		fn(dir);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
}

static void refuses_changes(const char *dir)
{
	char path[256], other[300];
	int fd;

	snprintf(path, sizeof(path), "%s/there", dir);
	snprintf(other, sizeof(other), "%s/new", dir);
	lock_in(dir);
	CHECK_EQ(open(path, O_RDWR), -1);
	CHECK_EQ(open(path, O_WRONLY | O_APPEND), -1);
	CHECK_EQ(open(path, O_RDONLY | O_TRUNC), -1);
	CHECK_EQ(open(other, O_RDONLY | O_CREAT, 0600), -1);
	CHECK_EQ(open(dir, O_TMPFILE | O_RDWR, 0600), -1);
	CHECK_EQ(unlink(path), -1);
	CHECK_EQ(rename(path, other), -1);
	CHECK_EQ(mkdir(other, 0700), -1);
	CHECK_EQ(symlink(path, other), -1);
	CHECK_EQ(truncate(path, 0), -1);
	CHECK_EQ(chmod(path, 0), -1);
	fd = open(path, O_RDONLY);
	CHECK(fd >= 0);
	CHECK_EQ(read(fd, other, 5), 5);
}

TEST(no_file_can_be_changed)
{
	char *dir = scratch(), path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/there", dir);
	f = fopen(path, "w");
	CHECK(f && fputs("hello", f) >= 0 && fclose(f) == 0);
	inside(dir, refuses_changes);
	CHECK_EQ(unlink(path), 0);
	CHECK_EQ(rmdir(dir), 0);
}

static void refuses_company(const char *dir)
{
	char name[] = "true", *argv[] = {name, NULL};

	lock_in(NULL);
	CHECK_EQ(socket(AF_INET, SOCK_STREAM, 0), -1);
	CHECK_EQ(socket(AF_UNIX, SOCK_STREAM, 0), -1);
	CHECK_EQ(execv("/bin/true", argv), -1);
	CHECK_EQ(fork(), -1);
	CHECK_EQ(kill(getppid(), 0), -1);
}

TEST(no_program_process_or_network)
{
	inside(NULL, refuses_company);
}

static void works(const char *dir)
{
	pthread_t t;
	int one = 0;
	void *m;

	lock_in(NULL);
	CHECK_EQ(pthread_create(&t, NULL, write_a_one, &one), 0);
	CHECK_EQ(pthread_join(t, NULL), 0);
	CHECK_EQ(one, 1);
	m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(m != MAP_FAILED);
	CHECK_EQ(write(STDOUT_FILENO, "", 0), 0);
}

TEST(threads_memory_and_open_files_work)
{
	inside(NULL, works);
}

TEST(only_named_directories_are_read)
{
	char *dir = scratch();
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		lock_in(dir);
		_exit(open("/etc/passwd", O_RDONLY) < 0 ? 0 : 42);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	CHECK_EQ(rmdir(dir), 0);
	if (WEXITSTATUS(status) == 42)
		SKIP("this kernel has no Landlock");
	CHECK_EQ(WEXITSTATUS(status), 0);
}

/* --- proxy -------------------------------------------------------------------------------------
 */

static uint8_t byte_at(uint64_t off)
{
	return (uint8_t)(off * 7 + (off >> 9));
}

static int pattern_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			 uint64_t off)
{
	if (off <= 3 * MiB && off + len > 3 * MiB)
		return -EIO;
	for (unsigned i = 0; i < n; i++)
		for (size_t k = 0; k < iov[i].iov_len; k++)
			((uint8_t *)iov[i].iov_base)[k] = byte_at(off++);
	return 0;
}

static int pattern_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	*what = off < 4096 ? BLK_EXT_HOLE : BLK_EXT_DATA;
	*len = off < 4096 ? MIN(*len, 4096 - off) : *len;
	return 0;
}

static const struct blk_format pattern = {
	.name = "pattern", .parallel = true, .readv = pattern_readv, .extent = pattern_extent};

static bool third_mebibyte(void *opaque, uint64_t off, uint64_t len)
{
	return off <= 3 * MiB && off + len > 3 * MiB;
}

enum { DISK_SIZE = 5 * MiB + 123 };

/* A child serves; the disk is what the other end opens. */
static struct blk *served(pid_t *child)
{
	struct error err = {0};
	struct blk *b;
	int fd[2];

	CHECK_EQ(proxy_pair(fd), 0);
	*child = fork();
	if (*child == 0) {
		close(fd[1]);
		CHECK_EQ(blk_wrap(&b, &pattern, NULL,
				  &(struct blk_info){.format = "pattern",
						     .size = DISK_SIZE,
						     .block_size = 512,
						     .readonly = true},
				  BLK_READONLY | BLK_FILE | BLK_NO_POOL, &err),
			 0);
		_exit(proxy_serve(fd[0], b, third_mebibyte, NULL) == 0 ? 0 : 1);
	}
	close(fd[0]);
	CHECK_EQ(proxy_open(&b, fd[1], "test", &err), 0);
	return b;
}

TEST(what_is_served_is_read)
{
	uint8_t *buf = malloc(2 * MiB + 1000);
	enum blk_extent what;
	uint64_t len = MiB;
	int status;
	pid_t child;
	struct blk *b = served(&child);

	CHECK_EQ(blk_size(b), DISK_SIZE);
	CHECK_EQ(blk_read(b, buf, 2 * MiB + 1000, 777), 0);
	for (size_t i = 0; i < 2 * MiB + 1000; i++)
		if (buf[i] != byte_at(777 + i))
			CHECK_EQ(i, SIZE_MAX);
	CHECK_EQ(blk_read(b, buf, 23, DISK_SIZE - 23), 0);
	CHECK_EQ(buf[22], byte_at(DISK_SIZE - 1));
	CHECK_EQ(blk_extent(b, 0, &len, &what), 0);
	CHECK_EQ(len, 4096);
	CHECK_EQ((int)what, (int)BLK_EXT_HOLE);
	/* An error is that request's alone. */
	CHECK_EQ(blk_read(b, buf, 512, 3 * MiB), -EIO);
	CHECK_EQ(blk_read(b, buf, 512, 4 * MiB), 0);
	CHECK(proxy_is_bad(b, 3 * MiB - 10, 20));
	CHECK(!proxy_is_bad(b, 4 * MiB, 20));
	free(buf);
	blk_close(b);
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
}

TEST(a_dead_server_is_an_error)
{
	uint8_t buf[512];
	pid_t child;
	struct blk *b = served(&child);

	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	CHECK_EQ(blk_read(b, buf, 512, 0), -EIO);
	CHECK_EQ(blk_read(b, buf, 512, 0), -EIO);
	blk_close(b);
}

TEST(a_refusal_brings_its_sentence)
{
	struct error err = {0};
	struct blk *b;
	int fd[2];

	CHECK_EQ(proxy_pair(fd), 0);
	proxy_refuse(fd[0], -ENOENT, "there is nothing");
	CHECK_EQ(proxy_open(&b, fd[1], "test", &err), -ENOENT);
	CHECK(!strcmp(err.msg, "there is nothing"));
	close(fd[0]);
}

TEST(nonsense_is_refused_by_both_ends)
{
	uint64_t nonsense[8] = {0x4141414141414141, 2, 3, 4, 5, 6, 7, 8};
	uint8_t hello[1024] = {0};
	struct error err = {0};
	struct blk *b;
	int fd[2], status;
	pid_t child;

	CHECK_EQ(proxy_pair(fd), 0);
	CHECK_EQ(send(fd[0], hello, sizeof(hello), 0), (ssize_t)sizeof(hello));
	CHECK_EQ(proxy_open(&b, fd[1], "test", &err), -EIO);
	close(fd[0]);

	CHECK_EQ(proxy_pair(fd), 0);
	child = fork();
	if (child == 0) {
		close(fd[1]);
		CHECK_EQ(blk_wrap(&b, &pattern, NULL,
				  &(struct blk_info){.size = DISK_SIZE, .block_size = 512}, 0,
				  &err),
			 0);
		_exit(proxy_serve(fd[0], b, NULL, NULL) == -EIO ? 0 : 1);
	}
	close(fd[0]);
	CHECK_EQ(send(fd[1], nonsense, sizeof(nonsense), 0), (ssize_t)sizeof(nonsense));
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
	close(fd[1]);
}
