/* recover_cli.c - see recover_cli.h: options, the two processes, words. */
#include "programs/recover_cli.h"

#include "base/clock.h"
#include "base/utf8.h"
#include "jail/jail.h"
#include "jail/proxy.h"
#include "programs/hv.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* --- words -------------------------------------------------------------------------------------
 */

static void say(const struct recover *rc, const char *fmt, va_list ap)
{
	fprintf(stderr, "hv recover %s: ", rc->cmd->name);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
}

int recover_usage(const struct recover *rc, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(rc, fmt, ap);
	va_end(ap);
	fprintf(stderr, "Try 'hv recover %s --help'.\n", rc->cmd->name);
	return HV_EXIT_USAGE;
}

int recover_fail(const struct recover *rc, const struct error *err)
{
	char safe[sizeof(err->msg)];

	fprintf(stderr, "hv recover %s: %s\n", rc->cmd->name,
		recover_safe_text(err->msg, safe, sizeof(safe)));
	return HV_EXIT_FAILED;
}

void recover_say(const struct recover *rc, const char *fmt, ...)
{
	va_list ap;

	if (rc->opt.quiet)
		return;
	va_start(ap, fmt);
	say(rc, fmt, ap);
	va_end(ap);
}

const char *recover_time_text(uint32_t when, char *buf, size_t cap)
{
	time_t t = when;
	struct tm tm;

	if (!when || !localtime_r(&t, &tm) || !strftime(buf, cap, "%Y-%m-%d %H:%M", &tm))
		snprintf(buf, cap, "-");
	return buf;
}

/* C0, DEL and (as U+0080..9F) C1: what a terminal may obey. */
static bool is_control(const unsigned char *p)
{
	return *p < 0x20 || *p == 0x7f || (*p == 0xc2 && p[1] < 0xa0);
}

const char *recover_safe_text(const char *text, char *buf, size_t cap)
{
	const unsigned char *p = (const unsigned char *)text;
	size_t used = 0;

	while (*p) {
		unsigned n = utf8_char_len((const char *)p);

		if (used + MAX(n, 1U) >= cap)
			break;
		if (n == 0 || is_control(p)) {
			buf[used++] = '?';
		} else {
			memcpy(buf + used, p, n);
			used += n;
		}
		p += MAX(n, 1U);
	}
	buf[used] = 0;
	return buf;
}

const char *recover_trust_text(const struct rec_entry *e, char *buf, size_t cap)
{
	size_t used = 0;
	char size[32];

	snprintf(buf, cap, "exact");
	for (unsigned t = REC_EXACT + 1; t < REC_NR_TRUST; t++) {
		int n;

		if (!e->bytes[t] || used >= cap)
			continue;
		n = snprintf(buf + used, cap - used, "%s%s %s", used ? ", " : "",
			     size_text(e->bytes[t], size, sizeof(size)),
			     rec_trust_name((enum rec_trust)t));
		used += n > 0 ? (size_t)n : 0;
	}
	return buf;
}

static void json_ranges(struct json *j, struct recover *rc, const struct rec_entry *e)
{
	static const char *const kinds[] = {
		[VMFS_RANGE_DATA] = "data", [VMFS_RANGE_HOLE] = "hole",
		[VMFS_RANGE_ZERO] = "zero", [VMFS_RANGE_RESIDENT] = "resident",
		[VMFS_RANGE_LOST] = "lost",
	};
	struct rec_range r;

	json_begin(j, "ranges", true);
	for (uint64_t off = 0; off < e->length; off += r.len) {
		if (rec_range(rc->rec, e->id, off, &r) < 0 || r.len == 0)
			break;
		json_begin(j, NULL, false);
		json_number(j, "offset", r.off);
		json_number(j, "length", r.len);
		json_text(j, "trust", rec_trust_name(r.trust));
		json_text(j, "kind", kinds[r.kind]);
		if (r.source >= 0) {
			json_number(j, "source", (uint64_t)r.source);
			json_number(j, "source-offset", r.source_off);
		}
		if (r.why)
			json_text(j, "why", r.why);
		json_end(j);
	}
	json_end(j);
}

static const char *type_name(const struct rec_entry *e)
{
	if (e->is_dir)
		return "directory";
	return e->type == VMFS_SYMLINK ? "symlink" : e->type == VMFS_RDM ? "rdm" : "file";
}

void recover_json_entry(struct json *j, struct recover *rc, const struct rec_entry *e, bool ranges)
{
	char path[RECOVER_PATH_MAX], mode[16];

	snprintf(mode, sizeof(mode), "%04o", e->mode & 07777);
	json_begin(j, NULL, false);
	json_number(j, "id", e->id);
	if (rec_path(rc->rec, e->id, path, sizeof(path)) == 0)
		json_text(j, "path", path);
	json_text(j, "name", e->name);
	json_flag(j, "name-made", e->name_made);
	json_text(j, "type", type_name(e));
	json_flag(j, "system", e->system);
	json_text(j, "state", rec_state_name(e->state));
	if (e->grade)
		json_number(j, "grade", e->grade);
	json_number(j, "size", e->length);
	json_number(j, "stored", e->stored);
	json_number(j, "mtime", e->mtime);
	json_text(j, "mode", mode);
	if (e->fd)
		json_number(j, "descriptor", e->fd);
	if (e->what)
		json_text(j, "content", e->what);
	json_text(j, "trust", rec_trust_name(e->worst));
	json_begin(j, "bytes", false);
	for (unsigned t = 0; t < REC_NR_TRUST; t++)
		json_number(j, rec_trust_name((enum rec_trust)t), e->bytes[t]);
	json_end(j);
	if (e->note)
		json_text(j, "note", e->note);
	if (ranges)
		json_ranges(j, rc, e);
	json_end(j);
}

/* --- options -----------------------------------------------------------------------------------
 */

enum {
	OPT_FINDINGS = 1000,
	OPT_NO_FINDINGS,
	OPT_FULL,
	OPT_AGAIN,
	OPT_SHALLOW,
	OPT_VOLUME,
	OPT_THREADS,
	OPT_MAP,
	OPT_RETRIES,
	OPT_SNAPSHOT,
	OPT_JSON,
	OPT_NO_PROGRESS,
	OPT_PASSWORD,
	OPT_CA,
	OPT_PIN,
	OPT_SSH,
	OPT_ALLOW_REF,
};

// clang-format off
static const struct option common[] = {
	{"help", no_argument, NULL, 'h'},
	{"quiet", no_argument, NULL, 'q'},
	{"format", required_argument, NULL, 'f'},
	{"progress", no_argument, NULL, 'p'},
	{"findings", required_argument, NULL, OPT_FINDINGS},
	{"no-findings", no_argument, NULL, OPT_NO_FINDINGS},
	{"full", no_argument, NULL, OPT_FULL},
	{"again", no_argument, NULL, OPT_AGAIN},
	{"as-is", no_argument, NULL, OPT_SHALLOW},
	{"volume", required_argument, NULL, OPT_VOLUME},
	{"threads", required_argument, NULL, OPT_THREADS},
	{"map", required_argument, NULL, OPT_MAP},
	{"retries", required_argument, NULL, OPT_RETRIES},
	{"snapshot-volumes", no_argument, NULL, OPT_SNAPSHOT},
	{"json", no_argument, NULL, OPT_JSON},
	{"no-progress", no_argument, NULL, OPT_NO_PROGRESS},
	{"password-file", required_argument, NULL, OPT_PASSWORD},
	{"cacert", required_argument, NULL, OPT_CA},
	{"pin", required_argument, NULL, OPT_PIN},
	{"ssh", required_argument, NULL, OPT_SSH},
	{"allow-ref", required_argument, NULL, OPT_ALLOW_REF},
};

static const char common_help[] =
	"\nSources, in any order; all extents of a datastore, or those that are left:\n"
	"  FILE or DEVICE, an image of any format (hv disk formats), ssh://[USER@]HOST/PATH,\n"
	"  https://[USER@]HOST/PATH.  None is ever written to.\n\n"
	"Options of every command:\n"
	"  --full              look at every byte for what was deleted and for pieces of files\n"
	"  --as-is             believe the volume's headers; no search when they are damaged\n"
	"  --again             forget what earlier commands have found\n"
	"  --findings FILE     keep what is found there (default: below ~/.local/state/trivisor)\n"
	"  --no-findings       keep nothing\n"
	"  --volume N          the Nth volume of several (hv recover scan lists them)\n"
	"  --snapshot-volumes  take extents that say they are copies of another volume's\n"
	"  -f, --format FORMAT the format of the image files; without it, guessed\n"
	"  --map FILE          a ddrescue map: what cannot be read is noted there and not tried again;\n"
	"                      for a remote source the data read so far are kept in FILE.data\n"
	"  --retries N         how often a sector that cannot be read is tried again (2)\n"
	"  --threads N         how many threads scan (one per CPU)\n"
	"  --password-file F   the password for https:// is the first line of F\n"
	"  --cacert F          who may sign the server's certificate (PEM)\n"
	"  --pin KEY           the server's public key must be this: sha256//BASE64\n"
	"  --ssh COMMAND       the ssh program and its options (ssh)\n"
	"  --allow-ref DIR     files that an image names may also lie under DIR\n"
	"  --json              print JSON\n"
	"  -p, --progress, --no-progress   show progress (when standard error is a terminal)\n"
	"  -q, --quiet         say nothing but errors\n"
	"  -h, --help          this text\n"
	"\nExit status: 0, 1 for an error, 2 for a wrong command line, 4 when it was done but some bytes\n"
	"are doubtful or missing.\n";
// clang-format on

enum { MAX_OPTIONS = 64, MAX_ALLOW = 16 };
static const char *allow_ref[MAX_ALLOW];

static void print_help(const struct recover_command *cmd)
{
	printf("Usage: hv recover %s %s\n\n%s%s", cmd->name, cmd->usage, cmd->help, common_help);
}

static int parse_count(struct recover *rc, const char *name, unsigned max, unsigned *value)
{
	char *end;
	unsigned long v = strtoul(optarg, &end, 10);

	if (!*optarg || *end || v > max) {
		recover_usage(rc, "%s: '%s' is no number up to %u", name, optarg, max);
		return -EINVAL;
	}
	*value = (unsigned)v;
	return 1;
}

static int allow(struct recover *rc)
{
	struct blk_open_opts *o = &rc->opt.open;

	if (o->nr_allow_ref == MAX_ALLOW) {
		recover_usage(rc, "more than %d --allow-ref", MAX_ALLOW);
		return -EINVAL;
	}
	allow_ref[o->nr_allow_ref++] = optarg;
	o->allow_ref = allow_ref;
	return 1;
}

static int common_option(struct recover *rc, int c)
{
	struct recover_options *o = &rc->opt;

	switch (c) {
	case 'q':
		o->quiet = true;
		return 1;
	case 'f':
		o->format = optarg;
		return 1;
	case 'p':
		o->progress = true;
		return 1;
	case OPT_FINDINGS:
		o->findings = optarg;
		return 1;
	case OPT_NO_FINDINGS:
		o->no_findings = true;
		return 1;
	case OPT_FULL:
		o->full = true;
		return 1;
	case OPT_AGAIN:
		o->again = true;
		return 1;
	case OPT_SHALLOW:
		o->shallow = true;
		return 1;
	case OPT_VOLUME:
		return parse_count(rc, "--volume", 1000, &o->volume);
	case OPT_THREADS:
		return parse_count(rc, "--threads", 256, &o->threads);
	case OPT_MAP:
		o->map = optarg;
		return 1;
	case OPT_RETRIES:
		return parse_count(rc, "--retries", 1000, &o->retries);
	case OPT_SNAPSHOT:
		o->other_snapshot = true;
		return 1;
	case OPT_JSON:
		o->json = true;
		return 1;
	case OPT_NO_PROGRESS:
		o->no_progress = true;
		return 1;
	case OPT_PASSWORD:
		o->remote.password_file = optarg;
		return 1;
	case OPT_CA:
		o->remote.ca_file = optarg;
		return 1;
	case OPT_PIN:
		o->remote.pin = optarg;
		return 1;
	case OPT_SSH:
		o->remote.ssh = optarg;
		return 1;
	case OPT_ALLOW_REF:
		return allow(rc);
	default:
		return 0;
	}
}

/* The common options and the command's own, in one table for getopt. */
static void all_options(const struct recover_command *cmd, struct option table[MAX_OPTIONS])
{
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(common); i++)
		table[n++] = common[i];
	for (const struct option *o = cmd->options; o && o->name && n + 1 < MAX_OPTIONS; o++)
		table[n++] = *o;
	table[n] = (struct option){0};
}

/* "DATASTORE:/vm/disk.vmdk": cuts the path off, unless there is a file of that whole name or what
 * looks like a path is the rest of "scheme://". */
static char *split_path(char *arg)
{
	char *at = NULL;

	if (access(arg, F_OK) == 0)
		return NULL;
	for (char *p = strstr(arg, ":/"); p; p = strstr(p + 2, ":/"))
		if (p[2] != '/')
			at = p;
	if (!at || at == arg)
		return NULL;
	*at = 0;
	return at + 1;
}

static int take_arguments(struct recover *rc, int argc, char **argv)
{
	const struct recover_command *cmd = rc->cmd;

	if (argc < 1 + (int)cmd->extra_args)
		return recover_usage(rc, cmd->extra_args ? "a source and where to, please"
							 : "which source?");
	for (unsigned i = 0; i < cmd->extra_args; i++)
		rc->extra[i] = argv[argc - (int)cmd->extra_args + (int)i];
	argc -= (int)cmd->extra_args;
	if (argc > VMFS_MAX_DEVICES)
		return recover_usage(rc, "more than %d sources", VMFS_MAX_DEVICES);
	if (cmd->takes_path)
		rc->path = split_path(argv[argc - 1]);
	if (cmd->needs_path && !rc->path)
		return recover_usage(
			rc, "which file?  Name it as SOURCE:/PATH (hv recover tree lists them)");
	for (int i = 0; i < argc; i++)
		rc->name[rc->nr_sources++] = argv[i];
	return 0;
}

/* What is behind "--" is not for us. */
static int split_rest(struct recover *rc, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "--")) {
			rc->rest = argv + i + 1;
			rc->nr_rest = (unsigned)(argc - i - 1);
			argv[i] = NULL;
			return i;
		}
	return argc;
}

/* 0: go on; else leave with *status. */
static int parse(struct recover *rc, int argc, char **argv, int *status)
{
	const struct recover_command *cmd = rc->cmd;
	struct option table[MAX_OPTIONS];
	char letters[64];
	int c;

	if (cmd->takes_rest)
		argc = split_rest(rc, argc, argv);
	all_options(cmd, table);
	snprintf(letters, sizeof(letters), "hqf:p%s", cmd->letters ?: "");
	while ((c = getopt_long(argc, argv, letters, table, NULL)) != -1) {
		int r = c == '?' ? -EINVAL : 0;

		if (c == 'h') {
			print_help(cmd);
			*status = HV_EXIT_OK;
			return 1;
		}
		if (r == 0)
			r = common_option(rc, c);
		if (r == 0 && cmd->option)
			r = cmd->option(rc, c);
		if (r <= 0) {
			if (c == '?')
				fprintf(stderr, "Try 'hv recover %s --help'.\n", cmd->name);
			*status = HV_EXIT_USAGE;
			return 1;
		}
	}
	*status = take_arguments(rc, argc - optind, argv + optind);
	return *status != 0;
}

/* --- progress ----------------------------------------------------------------------------------
 */

static _Atomic bool interrupted;

static void on_interrupt(int sig)
{
	interrupted = true;
}

static bool is_interrupted(void *opaque)
{
	return interrupted;
}

struct shown {
	const struct recover *rc;
	uint64_t start_ns, last_ns, start_done;
	enum rec_phase phase;
	bool any;
};

static void draw(struct shown *s, const struct rec_progress *p, uint64_t now)
{
	static const char *const phases[] = {
		[REC_PHASE_OPEN] = "opening",
		[REC_PHASE_SCAN] = "scanning",
		[REC_PHASE_REBUILD] = "rebuilding",
		[REC_PHASE_TREE] = "reading the tree",
		[REC_PHASE_CARVE] = "looking for pieces",
	};
	double seconds = (double)(now - s->start_ns) / 1e9;
	double rate = seconds > 0.2 ? (double)(p->done - s->start_done) / seconds : 0;
	uint64_t left = rate > 0 && p->total > p->done
				? (uint64_t)((double)(p->total - p->done) / rate)
				: 0;
	char done[32], speed[32];

	fprintf(stderr, "\r%s: %5.1f %%, %s", phases[p->phase],
		p->total ? 100.0 * (double)p->done / (double)p->total : 0,
		size_text(p->done, done, sizeof(done)));
	if (rate > 0)
		fprintf(stderr, ", %s/s, %" PRIu64 ":%02" PRIu64 " left",
			size_text((uint64_t)rate, speed, sizeof(speed)), left / 60, left % 60);
	fprintf(stderr, ", %" PRIu64 " records", p->hits);
	if (p->unreadable_bytes)
		fprintf(stderr, ", %s unreadable",
			size_text(p->unreadable_bytes, speed, sizeof(speed)));
	fputs("\033[K", stderr);
	s->any = true;
}

static void on_progress(void *opaque, const struct rec_progress *p)
{
	struct shown *s = opaque;
	uint64_t now = clock_mono_ns();

	if (p->phase != s->phase || !s->start_ns) {
		s->phase = p->phase;
		s->start_ns = now;
		s->start_done = p->done;
	}
	if (now - s->last_ns < NSEC_PER_SEC / 5)
		return;
	s->last_ns = now;
	draw(s, p, now);
}

/* --- the worker --------------------------------------------------------------------------------
 */

static int open_recovery(struct recover *rc, struct error *err)
{
	int r = recover_sources_open(rc, err);
	struct rec_config cfg = {
		.source = rc->source,
		.nr_sources = rc->nr_sources,
		.other_snapshot = rc->opt.other_snapshot,
		.unreadable = recover_unreadable,
		.opaque = rc,
	};

	if (r == 0)
		r = recover_findings_path(rc, &rc->findings_path, err);
	if (r < 0)
		return r;
	cfg.findings = rc->findings_path;
	return rec_open(&rc->rec, &cfg, err);
}

static int scan(struct recover *rc, enum rec_depth depth, struct error *err)
{
	struct shown shown = {.rc = rc};
	const struct recover_options *o = &rc->opt;
	struct rec_scan scan = {
		.depth = o->full ? REC_FULL : depth,
		.deepen = !o->shallow,
		.again = o->again && !rc->scanned,
		.volume = o->volume,
		.threads = o->threads,
		.stop = is_interrupted,
		.opaque = &shown,
	};
	int r;

	if (o->progress || (rc->on_terminal && !o->quiet && !o->no_progress))
		scan.progress = on_progress;
	r = rec_scan(rc->rec, &scan, err);
	rc->scanned = true;
	if (shown.any)
		fputs("\r\033[K", stderr);
	return r;
}

int recover_find(struct recover *rc, struct rec_entry *e, struct error *err)
{
	int r = rec_lookup(rc->rec, rc->path, e, err);

	if (r != -ENOENT || rc->cmd->depth >= REC_META || rc->opt.shallow || rc->opt.full)
		return r;
	r = scan(rc, REC_META, err);
	return r < 0 ? r : rec_lookup(rc->rec, rc->path, e, err);
}

static int work(struct recover *rc)
{
	struct error err = {0};
	int r = open_recovery(rc, &err), status;

	if (r == 0)
		r = jail_enter(&(struct jail){0}, &err);
	if (r == 0)
		r = scan(rc, rc->cmd->depth, &err);
	if (r == -EINTR)
		fprintf(stderr,
			"hv recover %s: interrupted; what was found is kept, and the same command "
			"goes "
			"on from there\n",
			rc->cmd->name);
	status = r == 0 ? rc->cmd->work(rc) : r == -EINTR ? HV_EXIT_FAILED : recover_fail(rc, &err);
	rec_close(rc->rec);
	recover_sources_close(rc);
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "hv recover %s: cannot write the output: %s\n", rc->cmd->name,
			strerror(errno));
		status = HV_EXIT_FAILED;
	}
	return status;
}

static void be_worker(struct recover *rc)
{
	const struct sigaction stop = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};

	prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody is left to work for */
	sigaction(SIGINT, &stop, NULL);
	sigaction(SIGTERM, &stop, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* No exit handlers: they belong to the process outside. */
	_exit(work(rc));
}

/* --- outside -----------------------------------------------------------------------------------
 */

static int wait_for(const struct recover *rc, pid_t worker)
{
	int status;

	while (waitpid(worker, &status, 0) < 0)
		if (errno != EINTR)
			return HV_EXIT_FAILED;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	fprintf(stderr,
		"hv recover %s: the process that reads the damaged data died (%s); nothing but it "
		"was "
		"touched.  Please report this\n",
		rc->cmd->name, strsignal(WTERMSIG(status)));
	return HV_EXIT_FAILED;
}

static pid_t worker_pid;

static void pass_on(int sig)
{
	if (worker_pid > 0)
		kill(worker_pid, SIGTERM);
}

static int run(struct recover *rc)
{
	const struct sigaction on_term = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
	int ctl[2], disk[2], status, other = -1;
	struct error err = {0};

	if (recover_sources_start(rc, &err) < 0) {
		recover_sources_leave(rc);
		if (rc->cmd->after)
			rc->cmd->after(rc);
		return recover_fail(rc, &err);
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ctl) < 0 ||
	    proxy_pair(disk) < 0) {
		fprintf(stderr, "hv recover: %s\n", strerror(errno));
		return HV_EXIT_FAILED;
	}
	fflush(NULL);
	worker_pid = fork();
	if (worker_pid < 0) {
		fprintf(stderr, "hv recover: cannot start a process: %s\n", strerror(errno));
		return HV_EXIT_FAILED;
	}
	rc->ctl = ctl[worker_pid == 0];
	rc->disk = disk[worker_pid == 0];
	close(ctl[worker_pid != 0]);
	close(disk[worker_pid != 0]);
	if (worker_pid == 0)
		be_worker(rc);
	recover_sources_leave(rc);
	signal(SIGINT, SIG_IGN); /* the worker has it too, and decides */
	sigaction(SIGTERM, &on_term, NULL);
	signal(SIGPIPE, SIG_IGN);
	recover_outside_serve(rc);
	if (rc->cmd->outside)
		other = rc->cmd->outside(rc);
	status = wait_for(rc, worker_pid);
	recover_sources_wait(rc);
	if (rc->cmd->after)
		rc->cmd->after(rc);
	return other >= 0 && status == HV_EXIT_OK ? other : status;
}

int recover_main(const struct recover_command *cmd, int argc, char **argv)
{
	struct recover rc = {.cmd = cmd, .opt.retries = 2, .on_terminal = isatty(STDERR_FILENO)};
	int status;

	if (parse(&rc, argc, argv, &status))
		return status;
	rc.opt.open.remote = &rc.opt.remote;
	tzset(); /* its file cannot be read later */
	status = cmd->before ? cmd->before(&rc) : 0;
	return status || rc.done ? status : run(&rc);
}
