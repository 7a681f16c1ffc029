/* recover/scan.c - the pass over the sources.
 *
 * A source is cut into segments of 64 MiB.  Workers take one after the other, read it by the MiB
 * (holes are not read), let detect.c look, and hand the finished segment over; the thread that
 * called puts it into the findings and tells how far it is.  A segment is done or not: an
 * interrupted scan goes on with those that are not.
 *
 * What cannot be read is tried again in smaller and smaller pieces down to 4 KiB; what remains is
 * noted as bad and skipped. */
#include "recover/internal.h"

#include "base/clock.h"
#include "block/blk.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, SMALLEST = 4096, MAX_THREADS = 16, MAX_WAITING = 8 };

struct job {
	unsigned source;
	uint64_t start, len;
};

struct scanner {
	struct rec *r;
	struct job *job;
	size_t nr_jobs, cap_jobs;
	unsigned phase[64]; /* of 4 KiB blocks, by source */
	_Atomic size_t next;
	_Atomic bool stop;
	_Atomic uint64_t done, hits, bad;

	pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t finished, taken;
	struct segment waiting[MAX_WAITING];
	unsigned nr_waiting, nr_running;
};

/* ---- reading ---- */

static bool known_bad(struct rec *r, unsigned source, uint64_t pos, uint64_t len)
{
	return r->cfg.unreadable && r->cfg.unreadable(r->cfg.opaque, source, pos, len);
}

/* Reads what can be read; the rest is zeroes and noted. */
static void read_pieces(struct rec *r, struct segment *s, uint8_t *buf, size_t len, uint64_t pos)
{
	struct blk *b = r->source[s->source].blk;
	size_t half;

	if (!known_bad(r, s->source, pos, len) && blk_read(b, buf, len, pos) == 0)
		return;
	if (len <= SMALLEST) {
		memset(buf, 0, len);
		(void)spans_add(&s->bad, pos, pos + len);
		return;
	}
	half = len > 64 * KiB ? (size_t)(64 * KiB) : SMALLEST;
	for (size_t at = 0; at < len; at += half)
		read_pieces(r, s, buf + at, MIN(half, len - at), pos + at);
}

/* Is all of [pos, pos + len) a hole? */
static bool is_hole(struct blk *b, uint64_t pos, uint64_t len)
{
	enum blk_extent what;
	uint64_t run = len;

	return blk_extent(b, pos, &run, &what) == 0 && run >= len && what != BLK_EXT_DATA;
}

static void scan_chunk(struct scanner *sc, struct segment *s, uint8_t *buf, uint64_t pos,
		       size_t len)
{
	struct rec *r = sc->r;
	struct blk *b = r->source[s->source].blk;
	size_t ahead = (size_t)MIN((uint64_t)DETECT_AHEAD, blk_size(b) - pos - len), nr_bad;
	struct detect d = {.buf = buf,
			   .look = len,
			   .len = len + ahead,
			   .pos = pos,
			   .source = s->source,
			   .phase = sc->phase[s->source],
			   .out = &s->hits};

	if (is_hole(b, pos, len)) {
		s->zero |= BIT((pos - s->start) / CHUNK);
		return;
	}
	read_pieces(r, s, buf, len, pos);
	nr_bad = s->bad.n;
	if (ahead) /* what is bad there is noted in its own turn */
		read_pieces(r, s, buf + len, ahead, pos + len);
	if (s->bad.n > nr_bad)
		s->bad.n = nr_bad;
	else if (nr_bad && s->bad.v[nr_bad - 1].end > pos + len)
		s->bad.v[nr_bad - 1].end = pos + len;
	if (all_zero(buf, len))
		s->zero |= BIT((pos - s->start) / CHUNK);
	else
		detect_run(&d);
}

static uint64_t spans_total(const struct spans *s)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < s->n; i++)
		sum += s->v[i].end - s->v[i].start;
	return sum;
}

/* False: stopped in the middle. */
static bool scan_segment(struct scanner *sc, struct segment *s, uint8_t *buf)
{
	for (uint64_t at = 0; at < s->len && !sc->stop; at += CHUNK) {
		uint64_t len = MIN((uint64_t)CHUNK, s->len - at);
		size_t hits = s->hits.n;

		scan_chunk(sc, s, buf, s->start + at, (size_t)len);
		sc->done += len;
		sc->hits += s->hits.n - hits;
	}
	spans_settle(&s->bad);
	sc->bad += spans_total(&s->bad);
	return !sc->stop;
}

/* ---- workers ---- */

static void hand_over(struct scanner *sc, const struct segment *s)
{
	pthread_mutex_lock(&sc->lock);
	while (sc->nr_waiting == MAX_WAITING)
		pthread_cond_wait(&sc->taken, &sc->lock);
	sc->waiting[sc->nr_waiting++] = *s;
	pthread_cond_signal(&sc->finished);
	pthread_mutex_unlock(&sc->lock);
}

static void *work(void *arg)
{
	struct scanner *sc = arg;
	uint8_t *buf = malloc(CHUNK + DETECT_AHEAD);
	size_t i;

	while (buf && !sc->stop && (i = sc->next++) < sc->nr_jobs) {
		struct segment s = {.source = sc->job[i].source,
				    .start = sc->job[i].start,
				    .len = sc->job[i].len};

		if (scan_segment(sc, &s, buf)) {
			hand_over(sc, &s);
		} else {
			free(s.hits.v);
			spans_fini(&s.bad);
		}
	}
	free(buf);
	pthread_mutex_lock(&sc->lock);
	sc->nr_running--;
	pthread_cond_signal(&sc->finished);
	pthread_mutex_unlock(&sc->lock);
	return NULL;
}

/* ---- what is to be done ---- */

static bool is_done(const struct segments *s, unsigned source, uint64_t start, uint64_t len)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].source == source && s->v[i].start == start)
			return s->v[i].len >= len;
	return false;
}

/* How far metadata usually go: behind the start of each place that may hold a volume. */
static uint64_t meta_end(struct rec *r, unsigned source)
{
	struct blk *b = r->source[source].blk;
	struct vmfs_place place[VMFS_MAX_DEVICES];
	int n = vmfs_places(b, place, ARRAY_SIZE(place));
	uint64_t end = REC_META_BYTES, size = blk_size(b);

	for (int i = 0; i < n; i++)
		if (place[i].partition && place[i].start < size)
			end = MAX(end, place[i].start + REC_META_BYTES);
	return MIN(end, size);
}

static unsigned block_phase(struct rec *r, unsigned source)
{
	struct vmfs_place place[VMFS_MAX_DEVICES];
	int n = vmfs_places(r->source[source].blk, place, ARRAY_SIZE(place));

	return n > 0 ? (unsigned)(place[0].start % 4096) : 0;
}

static bool add_job(struct scanner *sc, unsigned source, uint64_t start, uint64_t len)
{
	if (is_done(&sc->r->segments, source, start, len))
		return true;
	if (!array_room(&sc->job, sc->nr_jobs, &sc->cap_jobs, sizeof(*sc->job)))
		return false;
	sc->job[sc->nr_jobs++] = (struct job){source, start, len};
	return true;
}

static bool plan_jobs(struct scanner *sc, enum rec_depth depth)
{
	for (unsigned i = 0; i < sc->r->nr_sources; i++) {
		uint64_t size = blk_size(sc->r->source[i].blk);
		uint64_t end = depth == REC_FULL ? size : meta_end(sc->r, i);

		if (i < ARRAY_SIZE(sc->phase))
			sc->phase[i] = block_phase(sc->r, i);
		for (uint64_t at = 0; at < end; at += REC_SEGMENT)
			if (!add_job(sc, i, at, MIN((uint64_t)REC_SEGMENT, size - at)))
				return false;
	}
	return true;
}

/* ---- the calling thread ---- */

static int keep(struct rec *r, struct segment *s, struct error *err)
{
	struct segments *all = &r->segments;
	int e = findings_put(r->findings, s, err);

	if (!e && array_room(&all->v, all->n, &all->cap, sizeof(*s))) {
		all->v[all->n++] = *s;
		return 0;
	}
	free(s->hits.v);
	spans_fini(&s->bad);
	return e ? e : err_errno(err, ENOMEM, "scan");
}

static void tell(struct scanner *sc, uint64_t total)
{
	const struct rec_scan *scan = sc->r->scan;
	struct rec_progress p = {.phase = REC_PHASE_SCAN,
				 .done = sc->done,
				 .total = total,
				 .hits = sc->hits,
				 .unreadable_bytes = sc->bad};

	if (scan && scan->progress)
		scan->progress(scan->opaque, &p);
}

/* Takes what is finished, with the lock; false: nothing more will come. */
static bool take_finished(struct scanner *sc, struct segment *s, unsigned *n)
{
	struct timespec until;
	bool more;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += 100 * 1000 * 1000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	pthread_mutex_lock(&sc->lock);
	while (!sc->nr_waiting && sc->nr_running)
		if (pthread_cond_timedwait(&sc->finished, &sc->lock, &until))
			break;
	*n = sc->nr_waiting;
	memcpy(s, sc->waiting, *n * sizeof(*s));
	sc->nr_waiting = 0;
	more = *n || sc->nr_running;
	pthread_cond_broadcast(&sc->taken);
	pthread_mutex_unlock(&sc->lock);
	return more;
}

static int gather(struct scanner *sc, struct error *err)
{
	struct segment s[MAX_WAITING];
	uint64_t total = 0;
	unsigned n = 0;
	int r = 0;

	for (size_t i = 0; i < sc->nr_jobs; i++)
		total += sc->job[i].len;
	while (take_finished(sc, s, &n)) {
		for (unsigned i = 0; i < n; i++) {
			int e = keep(sc->r, &s[i], r ? NULL : err);

			r = r ? r : e;
		}
		tell(sc, total);
		if (!r && rec_stopped(sc->r))
			r = err_set(err, EINTR, "stopped; what was found is kept");
		if (r)
			sc->stop = true;
	}
	return r;
}

static unsigned nr_threads(const struct rec_scan *scan, size_t nr_jobs)
{
	long n = scan->threads ? (long)scan->threads : sysconf(_SC_NPROCESSORS_ONLN);

	n = MAX(1L, MIN(n, (long)MAX_THREADS));
	return (unsigned)MIN((size_t)n, nr_jobs);
}

static int run_workers(struct scanner *sc, unsigned want, struct error *err)
{
	pthread_t thread[MAX_THREADS];
	unsigned n = 0;
	int r = 0;

	sc->nr_running = want;
	for (; n < want; n++) {
		int e = pthread_create(&thread[n], NULL, work, sc);

		if (e) {
			pthread_mutex_lock(&sc->lock);
			sc->nr_running -= want - n;
			pthread_mutex_unlock(&sc->lock);
			if (!n)
				r = err_errno(err, e, "a thread for the scan");
			break;
		}
	}
	if (!r)
		r = gather(sc, err);
	for (unsigned i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	return r;
}

int scan_run(struct rec *r, const struct rec_scan *scan, struct error *err)
{
	struct scanner *sc = calloc(1, sizeof(*sc));
	int e = 0;

	if (!sc)
		return err_errno(err, ENOMEM, "scan");
	sc->r = r;
	pthread_mutex_init(&sc->lock, NULL);
	pthread_cond_init(&sc->finished, NULL);
	pthread_cond_init(&sc->taken, NULL);
	if (!plan_jobs(sc, scan->depth))
		e = err_errno(err, ENOMEM, "scan");
	if (!e && sc->nr_jobs)
		e = run_workers(sc, nr_threads(scan, sc->nr_jobs), err);
	if (!e && sc->next < sc->nr_jobs) /* no memory in any worker */
		e = err_errno(err, ENOMEM, "scan");
	if (findings_flush(r->findings, e ? NULL : err) < 0 && !e)
		e = -EIO;
	pthread_cond_destroy(&sc->taken);
	pthread_cond_destroy(&sc->finished);
	pthread_mutex_destroy(&sc->lock);
	free(sc->job);
	free(sc);
	return e;
}

/* ---- afterwards ---- */

static int segment_order(const void *a, const void *b)
{
	const struct segment *x = a, *y = b;

	if (x->source != y->source)
		return x->source < y->source ? -1 : 1;
	return x->start < y->start ? -1 : x->start > y->start;
}

static void add_zero(struct rec *r, const struct segment *s)
{
	for (unsigned i = 0; i < REC_SEGMENT / CHUNK; i++) {
		uint64_t at = s->start + (uint64_t)i * CHUNK;

		if (s->zero & BIT(i))
			(void)spans_add(&r->zero[s->source], at, at + CHUNK);
	}
}

void scan_settle(struct rec *r)
{
	size_t n = 0;

	if (r->segments.n)
		qsort(r->segments.v, r->segments.n, sizeof(struct segment), segment_order);
	for (size_t i = 0; i < r->segments.n; i++)
		n += r->segments.v[i].hits.n;
	n = MIN(n, (size_t)REC_MAX_HITS);
	free(r->hits.v);
	r->hits = (struct hits){.v = malloc(MAX(n, (size_t)1) * sizeof(struct hit)), .cap = n};
	for (unsigned i = 0; i < r->nr_sources; i++)
		r->bad[i].n = r->zero[i].n = 0;
	for (size_t i = 0; i < r->segments.n; i++) {
		struct segment *s = &r->segments.v[i];
		size_t take = r->hits.v ? MIN(s->hits.n, n - r->hits.n) : 0;

		if (take)
			memcpy(r->hits.v + r->hits.n, s->hits.v, take * sizeof(struct hit));
		r->hits.n += take;
		add_zero(r, s);
		for (size_t k = 0; k < s->bad.n; k++)
			(void)spans_add(&r->bad[s->source], s->bad.v[k].start, s->bad.v[k].end);
	}
	for (unsigned i = 0; i < r->nr_sources; i++)
		spans_settle(&r->bad[i]);
	if (n == REC_MAX_HITS)
		rec_note(r, "more than %u pieces of metadata: the rest is left out", REC_MAX_HITS);
}

int scan_load(struct rec *r, struct error *err)
{
	int e = findings_load(r->findings, &r->segments, err);

	if (!e)
		scan_settle(r);
	return e;
}
