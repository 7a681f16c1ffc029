/* cmd_disk_serve.c - hv disk serve and mount: an image as a network block device, and as files. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"
#include "block/filter.h"
#include "export/mount.h"

#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char serve_help[] =
	"Usage: hv disk serve [-f FORMAT] [-w] [-a ADDRESS] [--port N | --socket PATH] FILE\n\n"
	"Serves an image over NBD, with nbdkit, until it is stopped (Ctrl-C).  Read-only unless "
	"-w.\n\n"
	"  -f FORMAT           the image's format; without it, guessed (not with -w)\n"
	"  -w, --writable      let clients write\n"
	"  --socket PATH       on a Unix socket: nbd+unix:///?socket=PATH\n"
	"  --port N            on a TCP port (10809); 0: on one that is free, which is printed\n"
	"  -a ADDRESS          that TCP port's address (127.0.0.1); who reaches it reads the disk\n"
	"  --snapshot NAME     show an internal snapshot\n"
	"  --fork              go to the background; --pid-file says which process\n"
	"  --pid-file FILE     write the process's number there once clients can "
	"connect\n" DISK_COMMON_HELP
	"\nExit status: nbdkit's; 0 when it was stopped, 1 when it could not begin.\n";

static const char mount_help[] =
	"Usage: hv disk mount [-f FORMAT] [--overlay] [--foreground] FILE DIR\n\n"
	"Shows the content of an image as files in DIR, which must be empty, by FUSE: 'disk' is "
	"all\n"
	"of it, 'p1', 'p2', ... its partitions.  `mount -o loop,ro DIR/p1 /mnt` then shows what is "
	"in one.\n"
	"`fusermount3 -u DIR` ends it.\n\n"
	"  -f FORMAT           the image's format; without it, guessed\n"
	"  --overlay           the files can be written; what is written is forgotten in the end\n"
	"  --foreground        do not go to the background\n"
	"  --allow-other       other users may look too (see mount.fuse3(8))\n"
	"  --snapshot NAME     show an internal snapshot\n" DISK_COMMON_HELP;

/* --- serve --------------------------------------------------------------------------------------
 */

struct serve {
	const char *format, *address, *port, *socket, *snapshot, *pid_file;
	bool writable, fork, inherit; /* inherit: the socket is open already */
};

enum { MAX_ARGS = 64 + DISK_MAX_ALLOW };

struct args {
	char *list[MAX_ARGS];
	unsigned n;
};

static void arg(struct args *a, const char *text)
{
	if (a->n + 1 < MAX_ARGS)
		a->list[a->n++] = strdup(text);
}

static void arg_value(struct args *a, const char *key, const char *value)
{
	char text[4608];

	if (a->n + 1 < MAX_ARGS && snprintf(text, sizeof(text), "%s=%s", key, value) > 0)
		a->list[a->n++] = strdup(text);
}

/* Beside this program in a build tree, else where it was installed. */
static const char *plugin_path(void)
{
	static char path[4200];
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	if (n > 0) {
		self[n] = 0;
		slash = strrchr(self, '/');
		snprintf(path, sizeof(path), "%.*s/../export/hv-nbdkit-plugin.so",
			 (int)(slash - self), self);
		if (access(path, R_OK) == 0)
			return path;
	}
	snprintf(path, sizeof(path), "%s", HV_LIBDIR "/trivisor/hv-nbdkit-plugin.so");
	return path;
}

static void make_args(const struct disk_cli *cli, const struct serve *s, const char *file,
		      struct args *a)
{
	arg(a, "nbdkit");
	if (!s->fork)
		arg(a, "--foreground");
	if (!s->writable)
		arg(a, "--readonly");
	if (s->pid_file) {
		arg(a, "--pidfile");
		arg(a, s->pid_file);
	}
	if (s->inherit) {
		/* nbdkit finds it by itself */
	} else if (s->socket) {
		arg(a, "--unix");
		arg(a, s->socket);
	} else {
		arg(a, "--ipaddr");
		arg(a, s->address);
		arg(a, "--port");
		arg(a, s->port);
	}
	arg(a, plugin_path());
	arg_value(a, "image", file);
	if (s->format)
		arg_value(a, "format", s->format);
	if (s->snapshot)
		arg_value(a, "snapshot", s->snapshot);
	if (s->writable)
		arg(a, "writable=true");
	for (unsigned i = 0; i < cli->open.nr_allow_ref; i++)
		arg_value(a, "allow-ref", cli->allow[i]);
	if (cli->secret_file)
		arg_value(a, "secret", cli->secret_file);
	if (cli->remote.password_file)
		arg_value(a, "password-file", cli->remote.password_file);
	if (cli->remote.ca_file)
		arg_value(a, "cacert", cli->remote.ca_file);
	if (cli->remote.pin)
		arg_value(a, "pin", cli->remote.pin);
}

/* What cannot be opened is said here, in our words, before nbdkit begins.  *packed: what to serve
 * in place of the file, or NULL. */
static int look(const struct disk_cli *cli, const struct serve *s, const char *file, char **packed,
		struct error *err)
{
	unsigned flags = s->writable ? 0 : BLK_READONLY;
	struct blk *b = NULL;
	int r = disk_find_packed(cli, file, s->format, flags, packed, err);

	if (r == 0)
		r = disk_open(cli, &b, *packed ? *packed : file, s->format, flags, s->snapshot,
			      err);
	blk_close(b);
	return r;
}

/* A server that died leaves its socket; one that lives answers. */
static int clear_socket(const char *path, struct error *err)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct stat st;
	int fd, r = 0;

	if (strlen(path) >= sizeof(sa.sun_path))
		return err_set(err, ENAMETOOLONG,
			       "--socket: '%s' is longer than the %zu bytes a socket's name can be",
			       path, sizeof(sa.sun_path) - 1);
	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : err_errno(err, errno, "--socket '%s'", path);
	if (!S_ISSOCK(st.st_mode))
		return err_set(err, EEXIST, "--socket: '%s' exists and is no socket", path);
	strcpy(sa.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_errno(err, errno, "--socket '%s'", path);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 || errno == EAGAIN)
		r = err_set(err, EADDRINUSE, "--socket: somebody serves at '%s'", path);
	else if (errno != ECONNREFUSED)
		r = err_errno(err, errno, "--socket '%s'", path);
	else if (unlink(path) < 0)
		r = err_errno(err, errno, "--socket: cannot remove the stale '%s'", path);
	close(fd);
	return r;
}

/* --- any port that is free ---
 *
 * Bound here and handed on as systemd hands sockets on (sd_listen_fds(3)), so that nobody else can
 * take it before nbdkit does. */

enum { FIRST_PASSED_FD = 3 };

static int bind_free(const struct addrinfo *ai, char *port, size_t cap)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	int fd = socket(ai->ai_family, ai->ai_socktype, ai->ai_protocol), e;

	if (fd < 0)
		return -errno;
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0 &&
	    getsockname(fd, (struct sockaddr *)&sa, &len) == 0 &&
	    getnameinfo((struct sockaddr *)&sa, len, NULL, 0, port, (socklen_t)cap,
			NI_NUMERICSERV) == 0)
		return fd;
	e = errno;
	close(fd);
	return -e;
}

static int pass_on(int fd)
{
	char pid[24];

	if (fd != FIRST_PASSED_FD) {
		if (dup2(fd, FIRST_PASSED_FD) < 0)
			return -errno;
		close(fd);
	}
	snprintf(pid, sizeof(pid), "%ld", (long)getpid());
	return setenv("LISTEN_PID", pid, 1) || setenv("LISTEN_FDS", "1", 1) ? -errno : 0;
}

static int take_free_port(struct serve *s, char *port, size_t cap, struct error *err)
{
	struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *ai;
	int r = getaddrinfo(s->address, "0", &hints, &ai);

	if (r)
		return err_set(err, EINVAL, "-a '%s': %s", s->address, gai_strerror(r));
	r = bind_free(ai, port, cap);
	freeaddrinfo(ai);
	if (r >= 0)
		r = pass_on(r);
	if (r < 0)
		return err_errno(err, -r, "-a '%s': no port", s->address);
	s->inherit = true;
	s->port = port;
	return 0;
}

static int check_port(const struct disk_cli *cli, const struct serve *s)
{
	char *end;
	unsigned long n = strtoul(s->port, &end, 10);

	if (!isdigit((unsigned char)*s->port) || *end || n > 65535)
		return disk_usage(cli, "--port: '%s' is not a number from 0 to 65535", s->port);
	if (!n && s->fork && !s->socket)
		return disk_usage(cli, "--port 0 does not go with --fork");
	return 0;
}

static void say_where(const struct disk_cli *cli, const struct serve *s, const char *file)
{
	bool v6 = strchr(s->address, ':');
	struct json j = {.f = stdout};
	char uri[4200];

	if (s->socket)
		snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s", s->socket);
	else
		snprintf(uri, sizeof(uri), "nbd://%s%s%s:%s/", v6 ? "[" : "", s->address,
			 v6 ? "]" : "", s->port);
	if (cli->json) {
		json_begin(&j, NULL, false);
		json_text(&j, "image", file);
		json_text(&j, "uri", uri);
		json_end(&j);
		fflush(stdout);
	} else if (!cli->quiet) {
		fprintf(stderr, "serving '%s' at %s\n", file, uri);
	}
}

/* Returns only when it fails. */
static int become_server(const struct disk_cli *cli, struct serve *s, const char *file,
			 struct error *err)
{
	struct args args = {.n = 0};
	char *packed = NULL, port[16];
	int r = look(cli, s, file, &packed, err);

	if (r == 0 && s->socket)
		r = clear_socket(s->socket, err);
	else if (r == 0 && strtoul(s->port, NULL, 10) == 0)
		r = take_free_port(s, port, sizeof(port), err);
	if (r == 0) {
		make_args(cli, s, packed ? packed : file, &args);
		say_where(cli, s, file);
		execvp("nbdkit", args.list);
		r = err_errno(err, errno, "cannot start nbdkit (package nbdkit)");
	}
	free(packed);
	return r;
}

int disk_main_serve(int argc, char **argv)
{
	enum { OPT_PORT = DISK_OPT_OWN, OPT_SOCKET, OPT_SNAPSHOT, OPT_FORK, OPT_PID_FILE };
	static const struct option options[] = {
		DISK_COMMON_OPTIONS,
		{"writable", no_argument, NULL, 'w'},
		{"port", required_argument, NULL, OPT_PORT},
		{"socket", required_argument, NULL, OPT_SOCKET},
		{"snapshot", required_argument, NULL, OPT_SNAPSHOT},
		{"fork", no_argument, NULL, OPT_FORK},
		{"pid-file", required_argument, NULL, OPT_PID_FILE},
		{NULL},
	};
	struct serve s = {.address = "127.0.0.1", .port = "10809"};
	struct disk_cli cli;
	struct error err = {""};
	int c, r;

	disk_cli_init(&cli, "serve");
	while ((c = getopt_long(argc, argv, "f:wa:" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(serve_help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			s.format = optarg;
		else if (c == 'w')
			s.writable = true;
		else if (c == 'a')
			s.address = optarg;
		else if (c == OPT_PORT)
			s.port = optarg;
		else if (c == OPT_SOCKET)
			s.socket = optarg;
		else if (c == OPT_SNAPSHOT)
			s.snapshot = optarg;
		else if (c == OPT_FORK)
			s.fork = true;
		else if (c == OPT_PID_FILE)
			s.pid_file = optarg;
	}
	if (argc - optind != 1)
		return disk_usage(&cli, "one image is needed");
	if (check_port(&cli, &s))
		return cli.failed;
	become_server(&cli, &s, argv[optind], &err);
	return disk_fail(&cli, &err);
}

/* --- mount --------------------------------------------------------------------------------------
 */

struct mounting {
	const char *format, *snapshot;
	bool overlay, foreground, allow_other;
};

static void print_mounted(const struct mount_config *cfg)
{
	struct json j = {.f = stdout};

	json_begin(&j, NULL, false);
	json_text(&j, "image", cfg->name);
	json_text(&j, "directory", cfg->dir);
	json_end(&j);
	fflush(stdout); /* before it goes to the background */
}

static int mount_image(const struct disk_cli *cli, const struct mounting *m, const char *file,
		       const char *dir, struct error *err)
{
	struct mount_config cfg = {.dir = dir,
				   .name = file,
				   .writable = m->overlay,
				   .foreground = m->foreground,
				   .allow_other = m->allow_other,
				   .mounted = cli->json ? print_mounted : NULL};
	struct blk *b = NULL;
	int r = disk_open(cli, &b, file, m->format, BLK_READONLY, m->snapshot, err);

	if (r == 0 && m->overlay) {
		struct blk *below = b;

		b = NULL;
		r = blk_overlay(&b, below, BLK_NO_POOL, err);
	}
	cfg.blk = b;
	if (r == 0)
		r = mount_serve(&cfg, err);
	blk_close(b);
	return r;
}

int disk_main_mount(int argc, char **argv)
{
	enum { OPT_OVERLAY = DISK_OPT_OWN, OPT_FOREGROUND, OPT_ALLOW_OTHER, OPT_SNAPSHOT };
	static const struct option options[] = {
		DISK_COMMON_OPTIONS,
		{"overlay", no_argument, NULL, OPT_OVERLAY},
		{"foreground", no_argument, NULL, OPT_FOREGROUND},
		{"allow-other", no_argument, NULL, OPT_ALLOW_OTHER},
		{"snapshot", required_argument, NULL, OPT_SNAPSHOT},
		{NULL},
	};
	struct mounting m = {NULL};
	struct disk_cli cli;
	struct error err = {""};
	int c, r;

	disk_cli_init(&cli, "mount");
	while ((c = getopt_long(argc, argv, "f:" DISK_COMMON_LETTERS, options, NULL)) != -1) {
		if (c == 'h')
			return fputs(mount_help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			m.format = optarg;
		else if (c == OPT_OVERLAY)
			m.overlay = true;
		else if (c == OPT_FOREGROUND)
			m.foreground = true;
		else if (c == OPT_ALLOW_OTHER)
			m.allow_other = true;
		else if (c == OPT_SNAPSHOT)
			m.snapshot = optarg;
	}
	if (argc - optind != 2)
		return disk_usage(&cli, "an image and a directory are needed");
	r = mount_image(&cli, &m, argv[optind], argv[optind + 1], &err);
	return r < 0 ? disk_fail(&cli, &err) : HV_EXIT_OK;
}
