/* cmd_disk_serve.c - hv disk serve and mount: an image as a network block device, and as files. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/error.h"
#include "block/filter.h"
#include "export/mount.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char serve_help[] =
	"Usage: hv disk serve [-f FORMAT] [-w] [-a ADDRESS] [--port N | --socket PATH] FILE\n\n"
	"Serves an image over NBD, with nbdkit, until it is stopped (Ctrl-C).  Read-only unless "
	"-w.\n\n"
	"  -f FORMAT           the image's format; without it, guessed (not with -w)\n"
	"  -w, --writable      let clients write\n"
	"  --socket PATH       on a Unix socket: nbd+unix:///?socket=PATH\n"
	"  --port N            on a TCP port (10809)\n"
	"  -a ADDRESS          that TCP port's address (127.0.0.1); who reaches it reads the disk\n"
	"  --snapshot NAME     show an internal snapshot\n"
	"  --fork              go to the background; --pid-file says which process\n"
	"  --pid-file FILE     write the process's number there once clients can "
	"connect\n" DISK_COMMON_HELP;

static const char mount_help[] =
	"Usage: hv disk mount [-f FORMAT] [--overlay] [--foreground] FILE DIR\n\n"
	"Shows the content of an image as files in DIR, by FUSE: 'disk' is all of it, 'p1', 'p2', "
	"...\n"
	"its partitions.  `mount -o loop,ro DIR/p1 /mnt` then shows what is in one.\n"
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
	bool writable, fork;
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
	if (s->socket) {
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
}

/* What cannot be opened is said here, in our words, before nbdkit begins. */
static int look(const struct disk_cli *cli, const struct serve *s, const char *file,
		struct error *err)
{
	struct blk *b = NULL;
	int r = disk_open(cli, &b, file, s->format, s->writable ? 0 : BLK_READONLY, s->snapshot,
			  err);

	blk_close(b);
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
	struct args args = {.n = 0};
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
	r = look(&cli, &s, argv[optind], &err);
	if (r < 0)
		return disk_fail(&cli, &err);
	make_args(&cli, &s, argv[optind], &args);
	if (!cli.quiet && s.socket)
		fprintf(stderr, "serving '%s' at nbd+unix:///?socket=%s\n", argv[optind], s.socket);
	else if (!cli.quiet)
		fprintf(stderr, "serving '%s' at nbd://%s:%s/\n", argv[optind], s.address, s.port);
	execvp("nbdkit", args.list);
	err_errno(&err, errno, "cannot start nbdkit (package nbdkit)");
	return disk_fail(&cli, &err);
}

/* --- mount --------------------------------------------------------------------------------------
 */

struct mounting {
	const char *format, *snapshot;
	bool overlay, foreground, allow_other;
};

static int mount_image(const struct disk_cli *cli, const struct mounting *m, const char *file,
		       const char *dir, struct error *err)
{
	struct mount_config cfg = {.dir = dir,
				   .name = file,
				   .writable = m->overlay,
				   .foreground = m->foreground,
				   .allow_other = m->allow_other};
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
