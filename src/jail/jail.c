/* jail/jail.c - see jail.h.  seccomp(2), landlock(7). */
#include "jail/jail.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* --- system calls ------------------------------------------------------------------------------
 */

// clang-format off
static const int allowed[] = {
	/* data of what is open */
	SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(pread64),
	SCMP_SYS(pwrite64), SCMP_SYS(preadv), SCMP_SYS(pwritev), SCMP_SYS(preadv2),
	SCMP_SYS(pwritev2), SCMP_SYS(lseek), SCMP_SYS(fsync), SCMP_SYS(fdatasync),
	SCMP_SYS(ftruncate), SCMP_SYS(fallocate), SCMP_SYS(fadvise64), SCMP_SYS(readahead),
	SCMP_SYS(splice), SCMP_SYS(copy_file_range), SCMP_SYS(sendmsg), SCMP_SYS(recvmsg),
	SCMP_SYS(sendto), SCMP_SYS(recvfrom), SCMP_SYS(shutdown), SCMP_SYS(poll), SCMP_SYS(ppoll),
	SCMP_SYS(select), SCMP_SYS(pselect6), SCMP_SYS(close), SCMP_SYS(dup), SCMP_SYS(dup2),
	SCMP_SYS(dup3), SCMP_SYS(fcntl), SCMP_SYS(flock), SCMP_SYS(pipe2), SCMP_SYS(pipe),
	SCMP_SYS(eventfd2), SCMP_SYS(ioctl),
	/* what is told about files, open or not */
	SCMP_SYS(fstat), SCMP_SYS(stat), SCMP_SYS(lstat), SCMP_SYS(newfstatat), SCMP_SYS(statx),
	SCMP_SYS(fstatfs), SCMP_SYS(access), SCMP_SYS(faccessat), SCMP_SYS(faccessat2),
	SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(getdents64), SCMP_SYS(getcwd),
	/* memory */
	SCMP_SYS(mmap), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(mprotect), SCMP_SYS(madvise),
	SCMP_SYS(brk), SCMP_SYS(mincore), SCMP_SYS(msync), SCMP_SYS(memfd_create),
	/* threads, time, signals to itself */
	SCMP_SYS(futex), SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(set_tid_address),
	SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(getppid),
	SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getegid),
	SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity), SCMP_SYS(getcpu), SCMP_SYS(nanosleep),
	SCMP_SYS(clock_nanosleep), SCMP_SYS(clock_gettime), SCMP_SYS(clock_getres),
	SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigtimedwait), SCMP_SYS(sigaltstack),
	SCMP_SYS(restart_syscall), SCMP_SYS(getrusage), SCMP_SYS(sysinfo), SCMP_SYS(uname),
	SCMP_SYS(getrandom), SCMP_SYS(umask), SCMP_SYS(membarrier),
};
// clang-format on

enum {
	/* Any of these in open's flags makes it more than reading what is there. */
	OPEN_CHANGES = O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | __O_TMPFILE,
	IOCTL_TYPE = 0xff00,
	IOCTL_BLOCK = 0x1200, /* size and sector of a block device; no terminal, no file system */
};

static int rule(scmp_filter_ctx f, int call, unsigned nr, struct scmp_arg_cmp arg)
{
	return seccomp_rule_add_array(f, SCMP_ACT_ALLOW, call, nr, &arg);
}

/* Calls that are fine with some arguments only. */
static int add_conditional(scmp_filter_ctx f, pid_t self)
{
	/* O_DIRECTORY is a part of O_TMPFILE's value, and fine by itself. */
	const uint64_t changes = OPEN_CHANGES & ~(uint64_t)O_DIRECTORY;
	int r = rule(f, SCMP_SYS(open), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, changes, O_RDONLY));

	r = r ?: rule(f, SCMP_SYS(openat), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, changes, O_RDONLY));
	/* Threads, no processes.  glibc asks clone3 first, whose arguments a filter cannot see. */
	r = r
		    ?: rule(f, SCMP_SYS(clone), 1,
			    SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_VM,
				    CLONE_THREAD | CLONE_VM));
	r = r ?: seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	/* abort() */
	r = r ?: rule(f, SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)self));
	/* glibc names threads and asks for limits; nobody else's, nothing set. */
	r = r ?: rule(f, SCMP_SYS(prlimit64), 1, SCMP_A2(SCMP_CMP_EQ, 0));
	r = r ?: rule(f, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
	r = r ?: rule(f, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_VMA));
	return r;
}

static int filter_calls(struct error *err)
{
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	int r = f ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(allowed); i++)
		r = allowed[i] == SCMP_SYS(ioctl)
			    ? rule(f, allowed[i], 1,
				   SCMP_A1(SCMP_CMP_MASKED_EQ, IOCTL_TYPE, IOCTL_BLOCK))
			    : seccomp_rule_add(f, SCMP_ACT_ALLOW, allowed[i], 0);
	if (r == 0)
		r = add_conditional(f, getpid());
	if (r == 0)
		r = seccomp_load(f);
	if (f)
		seccomp_release(f);
	return r < 0 ? err_errno(err, -r, "cannot confine this process (seccomp)") : 0;
}

/* --- the file system ---------------------------------------------------------------------------
 */

static int add_directory(int ruleset, const char *dir)
{
	struct landlock_path_beneath_attr below = {
		.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR,
		.parent_fd = open(dir, O_PATH | O_CLOEXEC),
	};
	int r;

	if (below.parent_fd < 0)
		return -errno;
	r = (int)syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &below, 0);
	r = r < 0 ? -errno : 0;
	close(below.parent_fd);
	return r;
}

/* Everything Landlock's first version knows; later rights are seccomp's here already. */
static int limit_files(const struct jail *j)
{
	const struct landlock_ruleset_attr all = {
		.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE |
				     LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR |
				     LANDLOCK_ACCESS_FS_REMOVE_DIR |
				     LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
				     LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
				     LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
				     LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM,
	};
	int set = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof(all), 0);
	int r = 0;

	if (set < 0) /* an older kernel, or switched off: the filter must do */
		return errno == ENOSYS || errno == EOPNOTSUPP ? 0 : -errno;
	for (unsigned i = 0; r == 0 && i < j->nr_readable; i++)
		r = add_directory(set, j->readable[i]);
	if (r == 0 && syscall(SYS_landlock_restrict_self, set, 0) < 0)
		r = -errno;
	close(set);
	return r;
}

int jail_enter(const struct jail *j, struct error *err)
{
	int r;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return err_errno(err, errno, "cannot confine this process");
	r = limit_files(j);
	if (r < 0)
		return err_errno(err, -r, "cannot confine this process (Landlock)");
	return filter_calls(err);
}
