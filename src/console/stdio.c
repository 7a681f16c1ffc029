/* console/stdio.c - standard input and output as a chardev.
 *
 * Descriptors 0 and 1 may be shared with a shell, and O_NONBLOCK sits on what they share, so it is
 * never set on them.  Standard output is opened anew where that means the same place (a terminal, a
 * pipe); a regular file is used as it is, because a second open would start at its beginning. */
#include "base/error.h"
#include "console/impl.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_output(struct chardev *c, struct error *err)
{
	struct stat st;
	int fd;

	if (fstat(STDOUT_FILENO, &st) < 0) { /* closed: `hv run ... >&-` */
		c->discard = true;
		return 0;
	}
	if (S_ISREG(st.st_mode))
		return chr_set_out(c, STDOUT_FILENO, false, CHR_NONBLOCK, err);
	fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd >= 0)
		return chr_set_out(c, fd, true, CHR_NONBLOCK, err);
	return chr_set_out(c, STDOUT_FILENO, false, CHR_SHARED, err); /* a socket, or no /proc */
}

static int open_input(struct chardev *c, struct error *err)
{
	int r;

	if (fcntl(STDIN_FILENO, F_GETFD) < 0)
		return 0;
	if (isatty(STDIN_FILENO)) {
		/* In the background a read, or a change of settings, would stop the process. */
		if (tcgetpgrp(STDIN_FILENO) != getpgrp())
			return 0;
		r = terminal_raw(STDIN_FILENO, err);
		if (r < 0)
			return r;
		c->is_tty = true;
	}
	return chr_set_in(c, STDIN_FILENO, false, err);
}

static int stdio_open(struct chardev *c, const char *arg, struct error *err)
{
	int r;

	signal(SIGPIPE, SIG_IGN); /* whoever reads our output may go; the guest stays */
	r = open_output(c, err);
	return r < 0 ? r : open_input(c, err);
}

static void stdio_close(struct chardev *c)
{
	if (c->is_tty)
		terminal_restore();
}

const struct chr_kind chr_stdio = {.name = "stdio", .open = stdio_open, .close = stdio_close};

static int stdout_open(struct chardev *c, const char *arg, struct error *err)
{
	signal(SIGPIPE, SIG_IGN);
	return open_output(c, err);
}

const struct chr_kind chr_stdout = {.name = "stdout", .open = stdout_open};
