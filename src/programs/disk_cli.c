/* disk_cli.c - see disk_cli.h. */
#include "programs/disk_cli.h"

#include "base/clock.h"
#include "base/error.h"
#include "block/source.h"
#include "programs/hv.h"
#include "source/source.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- words ---- */

static void say(const struct disk_cli *cli, const char *fmt, va_list ap)
{
	fprintf(stderr, "hv disk %s: ", cli->command);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
}

int disk_usage(const struct disk_cli *cli, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(cli, fmt, ap);
	va_end(ap);
	fprintf(stderr, "Try 'hv disk %s --help'.\n", cli->command);
	return cli->failed;
}

int disk_fail(const struct disk_cli *cli, const struct error *err)
{
	fprintf(stderr, "hv disk %s: %s\n", cli->command, err->msg);
	return cli->failed;
}

void disk_say(const struct disk_cli *cli, const char *fmt, ...)
{
	va_list ap;

	if (cli->quiet || cli->json)
		return;
	va_start(ap, fmt);
	say(cli, fmt, ap);
	va_end(ap);
}

uint64_t disk_file_usage(const char *path)
{
	struct stat st;

	return stat(path, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

/* ---- options ---- */

int disk_read_secret(const struct disk_cli *cli, char *buf, size_t cap)
{
	int fd = open(cli->secret_file, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, cap);
	int e = errno;

	if (fd >= 0)
		close(fd);
	if (n < 0)
		return -e;
	if ((size_t)n == cap)
		return -EFBIG;
	while (n && (buf[n - 1] == '\n' || buf[n - 1] == '\r')) /* as editors leave it */
		n--;
	return (int)n;
}

static int secret_from_file(void *opaque, const char *path, char *buf, size_t cap)
{
	return disk_read_secret(opaque, buf, cap);
}

void disk_cli_init(struct disk_cli *cli, const char *command)
{
	*cli = (struct disk_cli){.command = command, .failed = HV_EXIT_FAILED};
	cli->open.allow_ref = cli->allow;
}

static int set_output(struct disk_cli *cli, const char *how)
{
	if (strcmp(how, "json") && strcmp(how, "human")) {
		disk_usage(cli, "--output: '%s' is neither human nor json", how);
		return -EINVAL;
	}
	cli->json = !strcmp(how, "json");
	return 1;
}

int disk_cli_option(struct disk_cli *cli, int c)
{
	switch (c) {
	case 'q':
		cli->quiet = true;
		return 1;
	case 'U':
		cli->flags |= BLK_NO_LOCK;
		return 1;
	case DISK_OPT_JSON:
		cli->json = true;
		return 1;
	case DISK_OPT_OUTPUT:
		return set_output(cli, optarg);
	case DISK_OPT_SECRET:
		cli->secret_file = optarg;
		cli->open.secret = secret_from_file;
		cli->open.opaque = cli;
		return 1;
	case DISK_OPT_PASSWORD:
		cli->remote.password_file = optarg;
		cli->open.remote = &cli->remote;
		return 1;
	case DISK_OPT_CACERT:
		cli->remote.ca_file = optarg;
		cli->open.remote = &cli->remote;
		return 1;
	case DISK_OPT_PIN:
		cli->remote.pin = optarg;
		cli->open.remote = &cli->remote;
		return 1;
	case DISK_OPT_ALLOW_REF:
		if (cli->open.nr_allow_ref == DISK_MAX_ALLOW) {
			disk_usage(cli, "more than %d --allow-ref", DISK_MAX_ALLOW);
			return -EINVAL;
		}
		cli->allow[cli->open.nr_allow_ref++] = optarg;
		return 1;
	case '?':
	case ':':
		fprintf(stderr, "Try 'hv disk %s --help'.\n", cli->command);
		return -EINVAL;
	}
	return 0;
}

/* Up to the next single comma; two stand for one. */
static char *cut_value(char *text)
{
	char *out = text, *in = text;

	for (; *in; *out++ = *in++) {
		if (*in != ',')
			continue;
		if (in[1] != ',')
			break;
		in++;
	}
	if (*in)
		in++;
	else
		in = NULL;
	*out = 0;
	return in;
}

int disk_parse_kv(const struct disk_cli *cli, struct disk_kv *kv, char *text)
{
	while (text) {
		char *key = text, *eq;

		text = cut_value(key);
		eq = strchr(key, '=');
		if (!eq || eq == key) {
			disk_usage(cli, "-o: '%s' is not key=value", key);
			return -EINVAL;
		}
		if (kv->n == DISK_MAX_KV) {
			disk_usage(cli, "-o: more than %d options", DISK_MAX_KV);
			return -EINVAL;
		}
		*eq = 0;
		kv->kv[kv->n++] = (struct blk_kv){key, eq + 1};
	}
	return 0;
}

const char *disk_take_kv(struct disk_kv *kv, const char *key)
{
	const char *value = NULL;
	unsigned n = 0;

	for (unsigned i = 0; i < kv->n; i++) {
		if (!strcmp(kv->kv[i].key, key))
			value = kv->kv[i].value;
		else
			kv->kv[n++] = kv->kv[i];
	}
	kv->n = n;
	return value;
}

int disk_print_options(const char *format)
{
	const struct blk_option *o = blk_create_options(format);

	if (!o)
		return -ENOTSUP;
	printf("Options of format %s:\n", format);
	for (; o->key; o++)
		printf("  %s=%-*s %s%s%s%s\n", o->key, (int)MAX(1, 34 - (int)strlen(o->key)),
		       o->value, o->help ? o->help : "", o->preset ? " (" : "",
		       o->preset ? o->preset : "", o->preset ? ")" : "");
	return 0;
}

int disk_parse_threads(const struct disk_cli *cli, const char *text, struct disk_job *job)
{
	unsigned long n;
	char *end;

	n = strtoul(text, &end, 10);
	if (*end || !n || n > 64) {
		disk_usage(cli, "-m: '%s' is not a number of threads from 1 to 64", text);
		return -EINVAL;
	}
	job->threads = (unsigned)n;
	return 0;
}

const char *disk_snapshot_name(const char *text)
{
	const char *eq = strncmp(text, "snapshot.", 9) ? NULL : strchr(text, '=');

	return eq ? eq + 1 : text;
}

/* ---- images ---- */

/* Is it nothing but bytes?  A packed disk is; a compressed DMG begins as if it were one and is not.
 */
static bool is_plain_file(const char *path, const char *format)
{
	const struct blk_source *source;
	const char *file, *guess;
	struct error err;

	if (blk_source_find(path, &source, &file, &err) < 0 || source || file != path)
		return false;
	return format || blk_probe(path, &guess, &err) < 0 || !strcmp(guess, "raw");
}

int disk_find_packed(const struct disk_cli *cli, const char *path, const char *format,
		     unsigned flags, char **name, struct error *err)
{
	int r;

	*name = NULL;
	if (!is_plain_file(path, format))
		return 0;
	r = source_unpack_name(path, format, name, err);
	if (r < 0 || !*name)
		return r;
	if (!(flags & BLK_READONLY)) {
		free(*name);
		*name = NULL;
		return err_set(err, EROFS,
			       "'%s': what is packed can only be read (file:%s takes it as it is)",
			       path, path);
	}
	disk_say(cli, "'%s' is packed: its disk is %s (file:%s takes it as it is)", path, *name,
		 path);
	return 0;
}

int disk_open(const struct disk_cli *cli, struct blk **out, const char *path, const char *format,
	      unsigned flags, const char *snapshot, struct error *err)
{
	struct blk_open_opts opts = cli->open;
	char *packed;
	int r = disk_find_packed(cli, path, format, flags, &packed, err);

	if (r < 0)
		return r;
	path = packed ? packed : path;
	opts.snapshot = snapshot;
	r = blk_open_with(out, path, format, flags | cli->flags | BLK_NO_POOL, &opts, err);
	if (!r && !format)
		disk_say(cli, "'%s' is taken as %s, by its content (-f FORMAT says it)", path,
			 blk_info(*out)->format);
	free(packed);
	return r;
}

/* ---- progress ---- */

static _Atomic bool cancelled;

static void on_signal(int sig)
{
	if (cancelled) /* twice: now */
		_exit(128 + sig);
	cancelled = true;
}

static void show_progress(void *opaque, uint64_t done, uint64_t total)
{
	struct disk_progress *p = opaque;
	double s = (double)(clock_mono_ns() - p->start_ns) / 1e9;
	double rate = s > 0 ? (double)done / s : 0, left = 0;
	char text[32];

	if (rate > 0)
		left = (double)(total - done) / rate;
	fprintf(stderr, "\r  %6.2f%%  %9s/s  %u:%02u left ",
		total ? 100.0 * (double)done / (double)total : 100.0,
		size_text((uint64_t)rate, text, sizeof(text)), (unsigned)left / 60,
		(unsigned)left % 60);
	p->shown = true;
}

void disk_job_init(const struct disk_cli *cli, struct disk_job *job, struct disk_progress *p)
{
	struct sigaction sa = {.sa_handler = on_signal};

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	*p = (struct disk_progress){.start_ns = clock_mono_ns()};
	job->cancel = &cancelled;
	if (cli->progress && !cli->quiet) {
		job->progress = show_progress;
		job->opaque = p;
	}
}

void disk_progress_end(struct disk_progress *p)
{
	if (p->shown)
		fputc('\n', stderr);
}
