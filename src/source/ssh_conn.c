/* source/ssh_conn.c - see ssh_conn.h: the process, the script, the words.
 *
 * The script there: what it says of itself begins with a random token, because a login may print
 * anything.  Data are not framed: a request brings the exact number of bytes, or dd fails and the
 * script ends, so both sides always agree where they are.  A server that is sent probes answers
 * "good" or "bad!" first. */
#include "source/ssh_conn.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum {
	MAX_BANNER = 65536, /* what a login may print before the script speaks */
	END_MS = 2000,
	PIPE_BYTES = 1 << 20,
	CONNECT_S = 20,
};

/* $1: the file, $2: the token.  No single quotes: it travels between two.
 *
 * The size is asked for in the order in which the answers can be trusted: a block device of Linux
 * has 0 in its inode; ESXi shows devices and partitions (disk:2) as files with their size; then
 * ESXi's partition table; then "?", and the other side finds the end by reading. */
static const char script[] =
	"LC_ALL=C; export LC_ALL; set -f; f=$1; k=$2; exec 3>&1\n"
	"no() { echo \"$k no $*\"; exit 5; }\n"
	"e=$(ls -dL -- \"$f\" 2>&1) || no $e\n"
	"[ -d \"$f\" ] && no Is a directory\n"
	"[ -r \"$f\" ] || no Permission denied\n"
	"num() { case $1 in \"\"|*[!0-9]*) return 1;; esac; }\n"
	"fifth() { echo \"$5\"; }\n"
	"parts() { i=0; while read -r a b c d x; do i=$((i+1)); num \"$a\" && num \"$c\" || "
	"continue\n"
	"if [ $i -le 2 ] && num \"$d\"; then [ \"$1\" ] || echo $((d*512))\n"
	"elif [ \"$a\" = \"$1\" ]; then echo $((512*(c-b+1))); fi; done; }\n"
	"s=; [ -b \"$f\" ] && s=$(blockdev --getsize64 \"$f\" 2>/dev/null)\n"
	"num \"$s\" || [ -b \"$f\" ] || s=$(stat -L -c %s -- \"$f\" 2>/dev/null)\n"
	"num \"$s\" || s=$(fifth $(ls -lnL -- \"$f\" 2>/dev/null))\n"
	"if num \"$s\" && [ $s -gt 0 ]; then :; else\n"
	"case $f in *:*[0-9]) d=${f%:*}; n=${f##*:};; *) d=$f; n=;; esac\n"
	"p=$(partedUtil getptbl \"$d\" 2>/dev/null | parts \"$n\"); num \"$p\" && s=$p; fi\n"
	"num \"$s\" || s=?\n"
	"echo \"$k size $s\"\n"
	"full() { case $e in \"$1+0 records in\"*) ;; *) return 1;; esac; }\n"
	"while read -r o b s c; do\n"
	"if [ $o != d ]; then\n"
	"e=$(dd if=\"$f\" of=/dev/null bs=$b skip=$s count=$c 2>&1 </dev/null) && full $c && "
	"r=good "
	"|| r=bad!\n"
	"echo $r; [ $o$r = pgood ] || continue; fi\n"
	"e=$(dd if=\"$f\" bs=$b skip=$s count=$c 2>&1 >&3 3>&- </dev/null) && full $c || "
	"{ echo \"$k dd $e\" >&2; exit 6; }\n"
	"done\n";

/* --- the process --------------------------------------------------------------------------------
 */

/* 'text', for a shell (POSIX XCU 2.2.2). */
static char *quote(char *to, const char *text)
{
	*to++ = '\'';
	for (; *text; text++) {
		if (*text == '\'')
			to = stpcpy(to, "'\\''");
		else
			*to++ = *text;
	}
	*to++ = '\'';
	*to = 0;
	return to;
}

static char *command_line(const struct ssh_where *w, const char *token)
{
	char *line = malloc(sizeof(script) + 4 * strlen(w->path) + 128), *to;

	if (!line)
		return NULL;
	to = stpcpy(line, "exec sh -c ");
	to = quote(to, script);
	to = stpcpy(to, " sh ");
	to = quote(to, w->path);
	*to++ = ' ';
	strcpy(to, token);
	return line;
}

struct pipes {
	int in[2], out[2], err[2]; /* [0]: ours */
};

static void close_all(const int *fd, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (fd[i] >= 0)
			close(fd[i]);
}

/* Input is a socket: writing to a program that has ended is an error there, not a signal. */
static int make_pipes(struct pipes *p)
{
	int *all = &p->in[0], two[2];

	for (unsigned i = 0; i < 6; i++)
		all[i] = -1;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p->in) < 0)
		goto failed;
	for (unsigned i = 0; i < 2; i++) {
		if (pipe2(two, O_CLOEXEC) < 0)
			goto failed;
		all[2 + 2 * i] = two[0];
		all[3 + 2 * i] = two[1];
	}
	fcntl(p->out[0], F_SETPIPE_SZ, PIPE_BYTES); /* more is faster; less does */
	fcntl(p->out[0], F_SETFL, O_NONBLOCK);
	fcntl(p->err[0], F_SETFL, O_NONBLOCK);
	return 0;
failed:
	two[0] = -errno;
	close_all(all, 6);
	return two[0];
}

/* The user's configuration holds but for what would wait for a person or open more than a pipe. */
static unsigned build_args(const char **argv, const struct ssh_where *w, const struct ssh_how *h,
			   const char *command)
{
	static const char *const fixed[] = {
		"-T",
		"-x",
		"-a",
		"-oBatchMode=yes",
		"-oClearAllForwardings=yes",
		"-oEscapeChar=none",
		"-oPermitLocalCommand=no",
		"-oServerAliveInterval=10",
		"-oServerAliveCountMax=3",
		"-oConnectTimeout=20",
		"-oRemoteCommand=none",
		"-oLogLevel=ERROR",
	};
	unsigned n = 0;

	for (unsigned i = 0; i < h->nr_args; i++)
		argv[n++] = h->args[i];
	for (unsigned i = 0; i < ARRAY_SIZE(fixed); i++)
		argv[n++] = fixed[i];
	if (w->port) {
		argv[n++] = "-p";
		argv[n++] = w->port;
	}
	if (w->user) {
		argv[n++] = "-l";
		argv[n++] = w->user;
	}
	argv[n++] = "--";
	argv[n++] = w->host;
	argv[n++] = command;
	argv[n] = NULL;
	return n;
}

/* In a session of its own: what is typed at our terminal, Ctrl-C too, is for us. */
static int spawn(struct ssh_conn *c, const char **argv, const struct pipes *p)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none, pipe_too;
	int r;

	sigemptyset(&none);
	sigemptyset(&pipe_too);
	sigaddset(&pipe_too, SIGPIPE);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
						POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &pipe_too);
	r = posix_spawn_file_actions_adddup2(&files, p->in[1], 0);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&files, p->out[1], 1);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&files, p->err[1], 2);
	if (!r)
		r = posix_spawnp(&c->pid, argv[0], &files, &attr, (char *const *)(uintptr_t)argv,
				 environ);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attr);
	if (r)
		c->pid = 0;
	return -r;
}

static int make_token(char *token)
{
	uint64_t v;

	if (getrandom(&v, sizeof(v), 0) != sizeof(v))
		return -EIO;
	snprintf(token, SSH_TOKEN, "%016" PRIx64, v);
	return 0;
}

static int start(struct ssh_conn *c, const struct ssh_where *w, const struct ssh_how *h,
		 struct error *err)
{
	const char *argv[SSH_ARGS + 32];
	struct pipes p;
	char *command;
	int r;

	*c = (struct ssh_conn){.in = -1, .out = -1, .err = -1, .timeout_ms = h->timeout_ms};
	r = make_token(c->token);
	if (r < 0)
		return err_errno(err, -r, "ssh");
	command = command_line(w, c->token);
	if (!command)
		return err_errno(err, ENOMEM, "ssh");
	r = make_pipes(&p);
	if (!r) {
		build_args(argv, w, h, command);
		r = spawn(c, argv, &p);
		close_all((const int[]){p.in[1], p.out[1], p.err[1]}, 3);
		c->in = p.in[0];
		c->out = p.out[0];
		c->err = p.err[0];
	}
	free(command);
	if (r == -ENOENT)
		return err_set(err, ENOEXEC,
			       "cannot start '%s', which reaches other hosts; install "
			       "openssh-client, or say where it is with TRIVISOR_SSH",
			       h->args[0]);
	return r < 0 ? err_errno(err, -r, "cannot start '%s'", h->args[0]) : 0;
}

/* True: it has ended. */
static bool reap(struct ssh_conn *c, int *status)
{
	pid_t r;

	do
		r = waitpid(c->pid, status, WNOHANG);
	while (r < 0 && errno == EINTR);
	return r != 0;
}

/* The exit status; a program that does not end is ended.  128: by a signal. */
static int end(struct ssh_conn *c)
{
	const struct timespec nap = {.tv_nsec = 5000000};
	int status = 0;
	bool ended = false;

	if (!c->pid)
		return 0;
	for (unsigned i = 0; i < END_MS / 5 && !ended; i++) {
		ended = reap(c, &status);
		if (!ended)
			nanosleep(&nap, NULL);
	}
	if (!ended) {
		kill(c->pid, SIGKILL);
		while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR)
			;
	}
	c->pid = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

void ssh_conn_close(struct ssh_conn *c)
{
	if (c->pid) {
		/* With its input gone the script ends by itself; but it may be waiting to write,
		 * and nobody needs that any more. */
		kill(c->pid, SIGTERM);
		end(c);
	}
	close_all((const int[]){c->in, c->out, c->err}, 3);
	c->in = c->out = c->err = -1;
}

/* --- bytes --------------------------------------------------------------------------------------
 */

/* Standard error: the end of it is kept.  Bytes taken, 0 for now none, -1: no more to come. */
static int take_text(struct ssh_conn *c)
{
	char buf[512];
	ssize_t n = read(c->err, buf, sizeof(buf));
	size_t over;

	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
	over = c->text_len + (size_t)n > SSH_TEXT - 1 ? c->text_len + (size_t)n - (SSH_TEXT - 1)
						      : 0;
	memmove(c->text, c->text + over, c->text_len - over);
	c->text_len -= over;
	memcpy(c->text + c->text_len, buf, (size_t)n);
	c->text_len += (size_t)n;
	c->text[c->text_len] = 0;
	return (int)n;
}

static void drain_text(struct ssh_conn *c)
{
	while (c->err >= 0 && take_text(c) > 0)
		;
}

int ssh_conn_ask(struct ssh_conn *c, enum ssh_op op, uint32_t bs, uint64_t skip, uint64_t count)
{
	char line[96];
	int n = snprintf(line, sizeof(line), "%c %" PRIu32 " %" PRIu64 " %" PRIu64 "\n", op, bs,
			 skip, count);

	for (int done = 0; done < n;) {
		ssize_t step = send(c->in, line + done, (size_t)(n - done), MSG_NOSIGNAL);

		if (step < 0 && errno == EINTR)
			continue;
		if (step < 0)
			return -errno;
		done += (int)step;
	}
	return 0;
}

static ssize_t take_until(struct ssh_conn *c, void *buf, size_t len, uint64_t deadline_ns)
{
	for (;;) {
		struct pollfd p[2] = {{c->out, POLLIN, 0}, {c->err, POLLIN, 0}};
		uint64_t now = clock_mono_ns();
		ssize_t n;

		if (now >= deadline_ns)
			return -ETIMEDOUT;
		if (poll(p, 2, (int)MIN((deadline_ns - now) / 1000000 + 1, 3600000u)) < 0 &&
		    errno != EINTR)
			return -errno;
		if (p[1].revents && take_text(c) < 0) {
			close(c->err);
			c->err = -1;
		}
		if (!p[0].revents)
			continue;
		n = read(c->out, buf, len);
		if (n >= 0)
			return n;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	}
}

static uint64_t after_ms(int ms)
{
	return clock_mono_ns() + (uint64_t)ms * 1000000;
}

ssize_t ssh_conn_take(struct ssh_conn *c, void *buf, size_t len)
{
	return take_until(c, buf, len, after_ms(c->timeout_ms));
}

int ssh_conn_verdict(struct ssh_conn *c)
{
	char word[5];

	for (size_t have = 0; have < sizeof(word);) {
		ssize_t n = ssh_conn_take(c, word + have, sizeof(word) - have);

		if (n <= 0)
			return n ? (int)n : -EPIPE;
		have += (size_t)n;
	}
	if (!memcmp(word, "good\n", 5))
		return 1;
	return memcmp(word, "bad!\n", 5) ? -EPROTO : 0;
}

/* --- words --------------------------------------------------------------------------------------
 */

/* The last line that says something, fit for a terminal. */
static void last_line(const char *text, const char *token, char *out, size_t cap)
{
	const char *line = text, *best = "";
	size_t n = 0, best_len = 0;

	for (; *line; line += n + (line[n] == '\n')) {
		n = strcspn(line, "\n");
		if (n && line[0] != '\r' && strncmp(line, token, strlen(token))) {
			best = line;
			best_len = n;
		}
	}
	best_len = MIN(best_len, cap - 1);
	for (n = 0; n < best_len; n++)
		out[n] = (unsigned char)best[n] < ' ' || best[n] == 0x7f ? ' ' : best[n];
	while (n && out[n - 1] == ' ')
		n--;
	out[n] = 0;
}

struct reason {
	const char *words; /* of ssh */
	int code;
	const char *advice;
};

// clang-format off
static const struct reason reasons[] = {
	{"REMOTE HOST IDENTIFICATION HAS CHANGED", EKEYREJECTED,
	 "its host key is not the one known for it; if it was installed anew: ssh-keygen -R"},
	{"Host key verification failed", EKEYREJECTED,
	 "its host key is not known here; compare and accept it by hand once: ssh"},
	{"Permission denied", EPERM,
	 "it does not let us in; nobody is asked for a password here, so give it a key: ssh-copy-id"},
	{"Too many authentication failures", EPERM,
	 "it does not let us in; say which key in ~/.ssh/config, then try: ssh"},
	{"Could not resolve hostname", EHOSTUNREACH,
	 "its name is not known; try: ssh"},
	{"Connection refused", ECONNREFUSED,
	 "nothing answers there; switch its SSH service on (ESXi: Host, Actions, Services), then try: ssh"},
	{"timed out", ETIMEDOUT,
	 "it does not answer; try: ssh"},
	{"No route to host", EHOSTUNREACH,
	 "it cannot be reached; try: ssh"},
};
// clang-format on

static const struct reason *find_reason(const char *text)
{
	for (unsigned i = 0; i < ARRAY_SIZE(reasons); i++)
		if (strstr(text, reasons[i].words))
			return &reasons[i];
	return NULL;
}

/* ssh ended before the script spoke. */
static int no_start(struct ssh_conn *c, const struct ssh_where *w, ssize_t how, struct error *err)
{
	const struct reason *reason;
	char line[160];
	int status;

	if (how == -ETIMEDOUT)
		kill(c->pid, SIGTERM);
	status = end(c);
	drain_text(c);
	reason = find_reason(c->text);
	last_line(c->text, c->token, line, sizeof(line));
	if (reason)
		return err_set(err, reason->code, "cannot reach '%s' (%s): %s %s", w->shown, line,
			       reason->advice, w->shown);
	if (how == -ETIMEDOUT)
		return err_set(err, ETIMEDOUT, "'%s' does not answer", w->shown);
	return err_set(err, status == 255 ? ENOTCONN : EPROTO,
		       "cannot read files of '%s': ssh ended with status %d%s%s; try: ssh %s true",
		       w->shown, status, line[0] ? ": " : "", line, w->shown);
}

/* What the script found wrong with the file. */
static int refused(const struct ssh_where *w, const char *words, struct error *err)
{
	if (strstr(words, "No such file"))
		return err_set(err, ENOENT,
			       "there is no '%s' on '%s' (what there is: ssh %s ls -l "
			       "/vmfs/devices/disks)",
			       w->path, w->shown, w->shown);
	if (strstr(words, "ermission denied"))
		return err_set(err, EACCES, "'%s' may not read '%s'; log in as another user",
			       w->shown, w->path);
	if (strstr(words, "Is a directory"))
		return err_set(err, EISDIR, "'%s' on '%s' is a directory; name a disk or a file",
			       w->path, w->shown);
	return err_set(err, EIO, "cannot read '%s' on '%s': %s", w->path, w->shown, words);
}

bool ssh_conn_why(struct ssh_conn *c, const struct ssh_where *w, struct error *err)
{
	char line[160], *said;
	int status;

	close(c->in); /* it may be waiting for us */
	c->in = -1;
	status = end(c);
	drain_text(c);
	said = strstr(c->text, c->token);
	if (status == 6 && said) {
		said += strlen(c->token) + strlen(" dd ");
		said[strcspn(said, "\n")] = 0;
		last_line(said, c->token, line, sizeof(line));
		err_set(err, EIO, "'%s' on '%s': %s", w->path, w->shown, line);
		return true;
	}
	last_line(c->text, c->token, line, sizeof(line));
	err_set(err, ENOTCONN, "the connection to '%s' is lost%s%s", w->shown, line[0] ? ": " : "",
		line);
	return false;
}

/* --- the beginning ------------------------------------------------------------------------------
 */

/* The script's first line, behind the token; all before it is a login's chatter. */
static int greeting(struct ssh_conn *c, char *line, size_t cap, ssize_t *how)
{
	uint64_t deadline = after_ms(MAX(c->timeout_ms, CONNECT_S * 1000) + 10000);
	size_t n = 0;
	char ch;

	for (unsigned seen = 0; seen < MAX_BANNER; seen++) {
		*how = take_until(c, &ch, 1, deadline);
		if (*how <= 0)
			return -EPIPE;
		if (ch != '\n') {
			line[n] = (unsigned char)ch < ' ' ? ' ' : ch;
			n = MIN(n + 1, cap - 1);
			continue;
		}
		line[n] = 0;
		n = 0;
		if (strncmp(line, c->token, strlen(c->token)))
			continue;
		memmove(line, line + strlen(c->token), strlen(line) + 1 - strlen(c->token));
		return 0;
	}
	*how = -EMSGSIZE;
	return -EPIPE;
}

int ssh_conn_open(struct ssh_conn *c, const struct ssh_where *w, const struct ssh_how *h,
		  uint64_t *size, struct error *err)
{
	char line[300], unknown;
	ssize_t how = 0;
	int r = start(c, w, h, err);

	if (r < 0)
		return r;
	if (greeting(c, line, sizeof(line), &how) < 0)
		r = no_start(c, w, how, err);
	else if (!strncmp(line, " no ", 4))
		r = refused(w, line + 4, err);
	else if (sscanf(line, " size %" SCNu64, size) != 1)
		*size = UINT64_MAX;
	if (r == 0 && *size == UINT64_MAX && sscanf(line, " size %c", &unknown) != 1)
		r = err_set(err, EPROTO, "'%s' answers with nonsense; try: ssh %s true", w->shown,
			    w->shown);
	if (r < 0)
		ssh_conn_close(c);
	return r;
}
