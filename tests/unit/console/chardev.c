/* Unit tests of src/console, with pipes, sockets and pseudo-terminals for the host's side.
 *
 * Each test is a process of its own, so it may replace its standard input and output. */
#include "console/chardev.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/evloop.h"
#include "console/terminal.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>

/* A device that takes up to `room` bytes and keeps them. */
static struct {
	char got[8192];
	size_t len, room;
	unsigned writable;
} dev = {.room = sizeof(dev.got)};

static struct evloop *loop;
static struct chardev *chr;
static struct error err;

static size_t dev_can_receive(void *opaque)
{
	return MIN(dev.room, sizeof(dev.got) - 1 - dev.len);
}

static void dev_receive(void *opaque, const uint8_t *buf, size_t len)
{
	CHECK(len <= dev_can_receive(NULL));
	memcpy(dev.got + dev.len, buf, len);
	dev.len += len;
	dev.room -= len;
}

static void dev_writable(void *opaque)
{
	dev.writable++;
}

static const struct chr_handlers dev_handlers = {dev_can_receive, dev_receive, dev_writable, NULL};

static void open_chr(const char *spec)
{
	CHECK_EQ(0, evloop_create(&loop, NULL));
	CHECK_EQ(0, chr_open(&chr, spec, loop, &err));
	chr_set_handlers(chr, &dev_handlers);
}

static void close_chr(void)
{
	chr_close(chr);
	evloop_destroy(loop);
}

static void stop_loop(void *arg)
{
	evloop_stop(loop);
}

/* Long enough for whatever is ready to have happened. */
static void run_for_ms(unsigned ms)
{
	struct ev_timer t;

	ev_timer_init(&t, loop, stop_loop, NULL);
	ev_timer_arm(&t, clock_mono_ns() + ms * 1000000ull);
	CHECK_EQ(0, evloop_run(loop));
}

static size_t put(const char *text)
{
	return chr_write(chr, (const uint8_t *)text, strlen(text));
}

/* What can be read now, as a string. */
static const char *read_now(int fd)
{
	static char text[8192];
	ssize_t n;

	fcntl(fd, F_SETFL, O_NONBLOCK);
	n = read(fd, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = '\0';
	return text;
}

static int to_guest, from_guest; /* the test's ends */

static void stdio_on_pipes(void)
{
	int in[2], out[2];

	CHECK_EQ(0, pipe(in));
	CHECK_EQ(0, pipe(out));
	fflush(stdout);
	dup2(in[0], 0);
	dup2(out[1], 1);
	close(in[0]);
	close(out[1]);
	to_guest = in[1];
	from_guest = out[0];
}

TEST(unknown_kinds_are_refused_with_the_list)
{
	CHECK_EQ(0, evloop_create(&loop, NULL));
	CHECK_EQ(-EINVAL, chr_open(&chr, "tape", loop, &err));
	CHECK_STR("console 'tape' is none of stdio, stdout, file=PATH, unix=PATH, null", err.msg);
	CHECK_EQ(-EINVAL, chr_open(&chr, "file", loop, NULL));
	CHECK_EQ(-EINVAL, chr_open(&chr, "file=", loop, NULL));
	CHECK_EQ(-EINVAL, chr_open(&chr, "null=x", loop, NULL));
	CHECK_EQ(-ENOENT, chr_open(&chr, "file=/no/such/dir/x", loop, &err));
	evloop_destroy(loop);
}

TEST(null_takes_everything)
{
	open_chr("null");
	CHECK_EQ(5, put("hello"));
	run_for_ms(1);
	CHECK_EQ(0, dev.len);
	close_chr();
}

static char path[64];

static void remove_path(void)
{
	unlink(path);
}

static const char *own_path(const char *kind)
{
	static char spec[80];

	snprintf(path, sizeof(path), "test-chr-%d", (int)getpid());
	snprintf(spec, sizeof(spec), "%s=%s", kind, path);
	atexit(remove_path);
	return spec;
}

TEST(a_file_holds_all_output_after_close)
{
	char big[3000];
	struct stat st;

	open_chr(own_path("file"));
	memset(big, 'x', sizeof(big));
	for (int i = 0; i < 20; i++)
		CHECK_EQ(sizeof(big), chr_write(chr, (uint8_t *)big, sizeof(big)));
	run_for_ms(1);
	CHECK_EQ(4, put("end\n")); /* not drained by the loop any more */
	close_chr();
	CHECK_EQ(0, stat(path, &st));
	CHECK_EQ(20 * sizeof(big) + 4, st.st_size);
}

TEST(stdio_moves_bytes_both_ways)
{
	stdio_on_pipes();
	open_chr("stdio");
	CHECK_EQ(3, put("out"));
	CHECK_EQ(4, write(to_guest, "in\1x", 4)); /* no terminal: Ctrl-A is the guest's */
	run_for_ms(5);
	CHECK_STR("out", read_now(from_guest));
	CHECK_STR("in\1x", dev.got);
	CHECK_EQ(0, fcntl(0, F_GETFL) & O_NONBLOCK);
	CHECK_EQ(0, fcntl(1, F_GETFL) & O_NONBLOCK);
	close_chr();
}

TEST(input_waits_for_room_in_the_device)
{
	stdio_on_pipes();
	dev.room = 2;
	open_chr("stdio");
	CHECK_EQ(5, write(to_guest, "abcde", 5));
	run_for_ms(5);
	CHECK_STR("ab", dev.got);
	dev.room = 100;
	chr_accept_input(chr);
	run_for_ms(5);
	CHECK_STR("abcde", dev.got);
	close_chr();
}

TEST(the_end_of_input_stops_nothing_else)
{
	stdio_on_pipes();
	open_chr("stdio");
	CHECK_EQ(1, write(to_guest, "z", 1));
	close(to_guest);
	run_for_ms(5);
	CHECK_STR("z", dev.got);
	CHECK_EQ(2, put("ok"));
	run_for_ms(5);
	CHECK_STR("ok", read_now(from_guest));
	close_chr();
}

TEST(a_reader_that_goes_stops_nothing)
{
	stdio_on_pipes();
	open_chr("stdio");
	close(from_guest);
	for (int i = 0; i < 100; i++) {
		CHECK_EQ(4, put("lost"));
		run_for_ms(0);
	}
	close_chr();
}

TEST(dev_null_is_a_fine_console)
{
	int fd = open("/dev/null", O_RDWR);

	dup2(fd, 0);
	fflush(stdout);
	dup2(fd, 1);
	open_chr("stdio");
	CHECK_EQ(4, put("void"));
	run_for_ms(2);
	CHECK_EQ(0, dev.len);
	close_chr();
}

TEST(a_file_as_input_is_read_to_its_end)
{
	FILE *f = tmpfile();

	for (int i = 0; i < 1000; i++)
		fprintf(f, "%d\n", i % 10);
	rewind(f);
	dup2(fileno(f), 0);
	dev.room = 100;
	open_chr("stdio");
	run_for_ms(2);
	CHECK_EQ(100, dev.len);
	dev.room = 5000;
	chr_accept_input(chr);
	run_for_ms(5);
	CHECK_EQ(2000, dev.len);
	CHECK_EQ('9', dev.got[1998]);
	close_chr();
	fclose(f);
}

TEST(a_full_buffer_pauses_the_device)
{
	static char block[4096];
	size_t sent = 0, n, got = 0;

	stdio_on_pipes();
	open_chr("stdio");
	memset(block, 'b', sizeof(block));
	do {
		n = chr_write(chr, (uint8_t *)block, sizeof(block));
		sent += n;
		run_for_ms(0);
	} while (n == sizeof(block) && sent < MiB);
	CHECK(sent < MiB); /* the pipe's 64 KiB and ours */
	CHECK_EQ(0, dev.writable);
	while (got < sent) {
		size_t len = strlen(read_now(from_guest));

		got += len;
		run_for_ms(1);
	}
	CHECK_EQ(sent, got);
	CHECK(dev.writable >= 1);
	close_chr();
}

/* ---- a terminal ---- */

static int pty_master;
static struct termios before;

static void stdio_on_pty(void)
{
	int slave;

	pty_master = posix_openpt(O_RDWR | O_NOCTTY);
	if (pty_master < 0 || grantpt(pty_master) || unlockpt(pty_master))
		SKIP("no pseudo-terminals here");
	setsid();
	slave = open(ptsname(pty_master), O_RDWR); /* becomes our controlling terminal */
	CHECK(slave >= 0);
	ioctl(slave, TIOCSCTTY, 0);
	CHECK_EQ(0, tcgetattr(slave, &before));
	fflush(stdout);
	dup2(slave, 0);
	dup2(slave, 1);
	close(slave);
}

static unsigned quits;

static void quit(void *opaque)
{
	quits++;
}

TEST(a_terminal_is_raw_until_close)
{
	struct termios t;

	stdio_on_pty();
	open_chr("stdio");
	CHECK_EQ(0, tcgetattr(0, &t));
	CHECK_EQ(0, t.c_lflag & (ICANON | ECHO | ISIG));
	CHECK(t.c_oflag & OPOST);
	CHECK_EQ(2, write(pty_master, "\3\r", 2)); /* Ctrl-C and Enter are the guest's */
	run_for_ms(5);
	CHECK_STR("\3\r", dev.got);
	CHECK_EQ(3, put("abc"));
	run_for_ms(5);
	CHECK_STR("abc", read_now(pty_master));
	close_chr();
	CHECK_EQ(0, tcgetattr(0, &t));
	CHECK_EQ(before.c_lflag, t.c_lflag);
	CHECK_EQ(before.c_iflag, t.c_iflag);
}

TEST(ctrl_a_x_quits_even_when_the_guest_takes_no_input)
{
	static char noise[5000];

	stdio_on_pty();
	chr_set_quit(quit, NULL);
	dev.room = 0;
	open_chr("stdio");
	memset(noise, 'n', sizeof(noise));
	for (int i = 0; i < 4; i++) {
		CHECK_EQ(2000, write(pty_master, noise, 2000));
		run_for_ms(2);
	}
	CHECK_EQ(0, quits);
	CHECK_EQ(2, write(pty_master, "\1x", 2));
	run_for_ms(5);
	CHECK_EQ(1, quits);
	close_chr();
}

TEST(the_other_keys_do_what_the_help_says)
{
	stdio_on_pty();
	chr_set_quit(quit, NULL);
	open_chr("stdio");
	CHECK_EQ(11, write(pty_master, "a\1ab\1\1c\1zdx", 11));
	CHECK_EQ(2, write(pty_master, "\1h", 2));
	run_for_ms(5);
	CHECK_STR("a\1b\1cdx", dev.got);
	CHECK_EQ(0, quits);
	CHECK(strstr(read_now(pty_master), "Ctrl-A x"));
	close_chr();
}

static void check_restored_after(int sig)
{
	struct termios t;
	int status, go[2];
	pid_t pid;
	char c;

	stdio_on_pty();
	CHECK_EQ(0, pipe(go));
	pid = fork();
	if (!pid) {
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		open_chr("stdio");
		tcgetattr(0, &t);
		CHECK_EQ(0, t.c_lflag & ICANON);
		CHECK_EQ(1, write(go[1], "g", 1));
		pause();
		_exit(0);
	}
	CHECK_EQ(1, read(go[0], &c, 1));
	kill(pid, sig);
	CHECK_EQ(pid, waitpid(pid, &status, 0));
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(sig, WTERMSIG(status));
	CHECK_EQ(0, tcgetattr(0, &t));
	CHECK_EQ(before.c_lflag, t.c_lflag);
}

TEST(the_terminal_is_given_back_on_sigterm)
{
	check_restored_after(SIGTERM);
}

TEST(the_terminal_is_given_back_on_abort)
{
	check_restored_after(SIGABRT);
}

/* ---- a socket ---- */

static int dial(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(a.sun_path, path);
	CHECK_EQ(0, connect(fd, (struct sockaddr *)&a, sizeof(a)));
	return fd;
}

TEST(a_client_sees_what_it_missed_and_can_talk)
{
	struct stat st;
	int fd;

	open_chr(own_path("unix"));
	CHECK_EQ(0, stat(path, &st));
	CHECK_EQ(0600, st.st_mode & 0777);
	CHECK_EQ(6, put("before"));
	run_for_ms(2);
	fd = dial();
	CHECK_EQ(4, write(fd, "talk", 4));
	run_for_ms(5);
	CHECK_STR("before", read_now(fd));
	CHECK_STR("talk", dev.got);
	CHECK_EQ(5, put("after"));
	run_for_ms(5);
	CHECK_STR("after", read_now(fd));
	close_chr();
	CHECK(stat(path, &st) < 0);
	close(fd);
}

TEST(without_a_client_the_oldest_output_goes)
{
	static char block[40000];
	int fd;

	open_chr(own_path("unix"));
	memset(block, 'o', sizeof(block));
	CHECK_EQ(sizeof(block), chr_write(chr, (uint8_t *)block, sizeof(block)));
	memset(block, 'n', sizeof(block));
	CHECK_EQ(sizeof(block), chr_write(chr, (uint8_t *)block, sizeof(block)));
	CHECK_EQ(3, put("end"));
	fd = dial();
	run_for_ms(5);
	{
		size_t total = 0, old = 0;
		const char *text;

		while (*(text = read_now(fd))) {
			total += strlen(text);
			old += strspn(text, "o");
			run_for_ms(1);
		}
		CHECK_EQ(65536, total);
		CHECK_EQ(65536 - 40003, old);
	}
	close_chr();
	close(fd);
}

TEST(the_next_client_gets_its_turn)
{
	int a, b;

	open_chr(own_path("unix"));
	a = dial();
	run_for_ms(2);
	b = dial();
	CHECK_EQ(1, write(b, "b", 1));
	run_for_ms(5);
	CHECK_EQ(0, dev.len); /* b waits */
	close(a);
	run_for_ms(5);
	CHECK_STR("b", dev.got);
	put("hi b");
	run_for_ms(5);
	CHECK_STR("hi b", read_now(b));
	close_chr();
	close(b);
}

TEST(a_stale_socket_is_replaced_and_a_live_one_is_not)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	const char *spec = own_path("unix");
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(a.sun_path, path);
	CHECK_EQ(0, bind(fd, (struct sockaddr *)&a, sizeof(a)));
	CHECK_EQ(0, listen(fd, 1));
	CHECK_EQ(0, evloop_create(&loop, NULL));
	CHECK_EQ(-EADDRINUSE, chr_open(&chr, spec, loop, &err));
	CHECK(strstr(err.msg, "cannot listen on 'test-chr-"));
	close(fd); /* as a crash would: the file stays */
	CHECK_EQ(0, chr_open(&chr, spec, loop, &err));
	close_chr();
}

TEST(a_socket_path_that_is_too_long_is_refused)
{
	char spec[300] = "unix=/";

	memset(spec + 6, 'p', 200);
	CHECK_EQ(0, evloop_create(&loop, NULL));
	CHECK_EQ(-ENAMETOOLONG, chr_open(&chr, spec, loop, &err));
	evloop_destroy(loop);
}
