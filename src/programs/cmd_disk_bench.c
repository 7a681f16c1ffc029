/* cmd_disk_bench.c - hv disk bench: requests at a disk image, and how long they take. */
#include "programs/disk_ops.h"
#include "programs/hv.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: hv disk bench [-f FORMAT] [-w] [-c COUNT] [-d DEPTH] [-s SIZE] [-S STEP] [-o "
	"OFFSET]\n"
	"                     [--pattern BYTE] [--flush-interval N] FILE\n\n"
	"Sends requests to an image as a guest's disk would, and tells how long they took.\n\n"
	"  -c COUNT            requests (75000)\n"
	"  -d DEPTH            requests under way at a time (64)\n"
	"  -s SIZE             bytes of each (4096)\n"
	"  -S STEP             from one to the next (SIZE)\n"
	"  -o OFFSET           of the first (0)\n"
	"  -w                  write instead of reading: destroys what the image holds\n"
	"  --pattern BYTE      what to write (0)\n"
	"  --flush-interval N  flush after every N writes\n"
	"  -f FORMAT           the image's format\n" DISK_COMMON_HELP;

enum { MAX_DEPTH = 1024, MAX_SIZE = 64 * MiB };

struct bench {
	struct blk *b;
	uint64_t count, depth, size, step, offset, pattern, flush_every;
	bool write;

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t done;
	uint64_t started, flying, next;
	int error;
};

struct request {
	struct blk_req r;
	struct iovec iov;
	struct bench *bench;
	bool is_flush;
};

/* The next request of this slot, or nothing more to do.  Lock held. */
static bool prepare(struct bench *k, struct request *q)
{
	if (k->error || k->started == k->count)
		return false;
	q->is_flush = k->write && k->flush_every && !q->is_flush && k->started &&
		      k->started % k->flush_every == 0;
	if (q->is_flush) {
		q->r.op = BLK_OP_FLUSH;
		return true;
	}
	q->r.op = k->write ? BLK_OP_WRITE : BLK_OP_READ;
	if (k->next > blk_size(k->b) - k->size)
		k->next = 0;
	q->r.off = k->next;
	k->next += k->step;
	k->started++;
	return true;
}

static void on_done(struct blk_req *r, int result)
{
	struct request *q = container_of(r, struct request, r);
	struct bench *k = q->bench;
	bool more;

	pthread_mutex_lock(&k->lock);
	if (result < 0)
		k->error = result;
	more = prepare(k, q);
	if (!more) {
		k->flying--;
		pthread_cond_signal(&k->done);
	}
	pthread_mutex_unlock(&k->lock);
	if (more)
		blk_submit(k->b, &q->r);
}

static void start(struct bench *k, struct request *q, uint8_t *buf)
{
	bool go;

	q->bench = k;
	q->iov = (struct iovec){buf, k->size};
	q->r.iov = &q->iov;
	q->r.nr_iov = 1;
	q->r.done = on_done;
	pthread_mutex_lock(&k->lock);
	go = prepare(k, q);
	k->flying += go;
	pthread_mutex_unlock(&k->lock);
	if (go)
		blk_submit(k->b, &q->r);
}

static int run(struct bench *k, uint64_t *ns, struct error *err)
{
	struct request *q = calloc(k->depth, sizeof(*q));
	uint8_t *buf = NULL;
	uint64_t begin;

	if (!q || posix_memalign((void **)&buf, 4096, k->depth * k->size)) {
		free(q);
		return err_errno(err, ENOMEM, "buffers");
	}
	memset(buf, (int)k->pattern, k->depth * k->size);
	k->next = k->offset;
	begin = clock_mono_ns();
	for (uint64_t i = 0; i < k->depth; i++)
		start(k, &q[i], buf + i * k->size);
	pthread_mutex_lock(&k->lock);
	while (k->flying)
		pthread_cond_wait(&k->done, &k->lock);
	pthread_mutex_unlock(&k->lock);
	blk_drain(k->b); /* the last callback has returned */
	*ns = clock_mono_ns() - begin;
	free(q);
	free(buf);
	return k->error < 0 ? err_errno(err, -k->error, "'%s'", blk_path(k->b)) : 0;
}

static void report(const struct disk_cli *cli, const struct bench *k, uint64_t ns)
{
	double s = (double)ns / 1e9, bytes = (double)k->count * (double)k->size;
	struct json j = {.f = stdout};
	char rate[32];

	if (cli->json) {
		json_begin(&j, NULL, false);
		json_number(&j, "requests", k->count);
		json_number(&j, "size", k->size);
		json_real(&j, "seconds", s);
		json_real(&j, "requests-per-second", (double)k->count / s);
		json_real(&j, "bytes-per-second", bytes / s);
		json_end(&j);
	} else {
		printf("%llu requests of %llu bytes in %.3f seconds: %.0f a second, %s/s\n",
		       (unsigned long long)k->count, (unsigned long long)k->size, s,
		       (double)k->count / s, size_text((uint64_t)(bytes / s), rate, sizeof(rate)));
	}
}

static int check_plan(const struct disk_cli *cli, const struct bench *k)
{
	if (!k->count || !k->depth || k->depth > MAX_DEPTH)
		return disk_usage(cli, "-c is at least 1, -d from 1 to %d", MAX_DEPTH);
	if (!k->size || k->size > MAX_SIZE || k->size % 512 || k->step % 512 || k->offset % 512)
		return disk_usage(cli, "-s, -S and -o are multiples of 512, -s at most 64M");
	if (k->pattern > 255)
		return disk_usage(cli, "--pattern is a byte");
	return 0;
}

int disk_main_bench(int argc, char **argv)
{
	enum { OPT_PATTERN = DISK_OPT_OWN, OPT_FLUSH };
	static const struct option options[] = {
		DISK_COMMON_OPTIONS,
		{"pattern", required_argument, NULL, OPT_PATTERN},
		{"flush-interval", required_argument, NULL, OPT_FLUSH},
		{NULL},
	};
	struct bench k = {.count = 75000,
			  .depth = 64,
			  .size = 4096,
			  .lock = PTHREAD_MUTEX_INITIALIZER,
			  .done = PTHREAD_COND_INITIALIZER};
	struct {
		int c;
		uint64_t *value;
	} numbers[] = {{'c', &k.count}, {'d', &k.depth},           {'s', &k.size},
		       {'S', &k.step},  {OPT_PATTERN, &k.pattern}, {OPT_FLUSH, &k.flush_every},
		       {'o', &k.offset}};
	const char *format = NULL;
	struct disk_cli cli;
	struct error err = {""};
	uint64_t ns = 0;
	int c, r;

	disk_cli_init(&cli, "bench");
	while ((c = getopt_long(argc, argv, "f:c:d:s:S:o:w" DISK_COMMON_LETTERS, options, NULL)) !=
	       -1) {
		if (c == 'h')
			return fputs(help, stdout), HV_EXIT_OK;
		r = disk_cli_option(&cli, c);
		if (r < 0)
			return cli.failed;
		if (c == 'f')
			format = optarg;
		else if (c == 'w')
			k.write = true;
		for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
			if (numbers[i].c == c && disk_parse_size(optarg, numbers[i].value) < 0)
				return disk_usage(&cli, "'%s' is not a number", optarg);
	}
	if (argc - optind != 1)
		return disk_usage(&cli, "one image is needed");
	if (!k.step)
		k.step = k.size;
	if (check_plan(&cli, &k))
		return cli.failed;
	r = blk_open_with(&k.b, argv[optind], format, cli.flags | (k.write ? 0 : BLK_READONLY),
			  &cli.open, &err);
	if (r == 0 && (k.size > blk_size(k.b) || k.offset > blk_size(k.b) - k.size))
		r = err_set(&err, EINVAL, "'%s' holds only %llu bytes", argv[optind],
			    (unsigned long long)blk_size(k.b));
	if (r == 0)
		r = run(&k, &ns, &err);
	blk_close(k.b);
	if (r < 0)
		return disk_fail(&cli, &err);
	report(&cli, &k, ns);
	return HV_EXIT_OK;
}
