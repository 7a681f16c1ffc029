/* console/terminal.c - see terminal.h. */
#include "console/terminal.h"

#include "base/error.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>

enum { CTRL_A = 1 };

const char terminal_help[] = "\r\n"
			     "Ctrl-A x   leave Trivisor: the guest is switched off at once\r\n"
			     "Ctrl-A a   send a Ctrl-A to the guest\r\n"
			     "Ctrl-A h   this list\r\n";

/* Written before `raw_fd` says so, read by signal handlers after. */
static struct termios saved;
static volatile sig_atomic_t raw_fd = -1;

void terminal_restore(void)
{
	int e = errno, fd = raw_fd;

	if (fd >= 0)
		tcsetattr(fd, TCSANOW, &saved);
	raw_fd = -1;
	errno = e;
}

static void restore_and_die(int sig)
{
	terminal_restore();
	signal(sig, SIG_DFL);
	raise(sig); /* comes when this handler returns */
}

static void catch_fatal_signals(void)
{
	static const int fatal[] = {SIGHUP,  SIGINT, SIGQUIT, SIGTERM, SIGABRT,
				    SIGSEGV, SIGBUS, SIGFPE,  SIGILL};
	struct sigaction now, ours = {.sa_handler = restore_and_die};

	for (unsigned i = 0; i < ARRAY_SIZE(fatal); i++)
		if (!sigaction(fatal[i], NULL, &now) && now.sa_handler == SIG_DFL)
			sigaction(fatal[i], &ours, NULL);
}

int terminal_raw(int fd, struct error *err)
{
	static bool registered;
	struct termios t;

	if (tcgetattr(fd, &t) < 0)
		return err_errno(err, errno, "cannot read the terminal's settings");
	saved = t;
	if (!registered) {
		atexit(terminal_restore);
		catch_fatal_signals();
		registered = true;
	}
	t.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
	t.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
	t.c_cflag = (t.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
	/* Output processing stays on: our own log lines end in a plain newline. */
	t.c_cc[VMIN] = 1;
	t.c_cc[VTIME] = 0;
	raw_fd = fd;
	if (tcsetattr(fd, TCSANOW, &t) < 0) {
		raw_fd = -1;
		return err_errno(err, errno, "cannot put the terminal into raw mode");
	}
	return 0;
}

enum terminal_action terminal_key(struct terminal_keys *k, uint8_t *key)
{
	if (!k->after_ctrl_a) {
		k->after_ctrl_a = *key == CTRL_A;
		return k->after_ctrl_a ? TERMINAL_NOTHING : TERMINAL_PASS;
	}
	k->after_ctrl_a = false;
	switch (*key) {
	case 'x':
		return TERMINAL_QUIT;
	case 'h':
	case '?':
		return TERMINAL_HELP;
	case 'a':
	case CTRL_A:
		*key = CTRL_A;
		return TERMINAL_PASS;
	default:
		return TERMINAL_NOTHING;
	}
}
