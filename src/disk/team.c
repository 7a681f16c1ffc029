/* disk/team.c - see team.h. */
#include "disk/team.h"

#include "base/clock.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

enum { MAX_THREADS = 64 };

#define TELL_EVERY_NS (NSEC_PER_SEC / 10)
#define NAP_NS        (NSEC_PER_SEC / 20)

struct member {
	struct disk_team *team;
	int (*fn)(void *opaque, struct error *err);
	void *opaque;
};

void disk_team_init(struct disk_team *t, const struct disk_job *job, uint64_t total)
{
	*t = (struct disk_team){.job = job, .total = total, .start_ns = clock_mono_ns()};
	pthread_mutex_init(&t->lock, NULL);
}

void disk_team_fini(struct disk_team *t)
{
	pthread_mutex_destroy(&t->lock);
}

unsigned disk_team_size(const struct disk_job *job)
{
	cpu_set_t set;
	int n = job->threads ? (int)MIN(job->threads, MAX_THREADS) : 1;

	if (!job->threads && !sched_getaffinity(0, sizeof(set), &set))
		n = CPU_COUNT(&set);
	return (unsigned)MIN(MAX(n, 1), MAX_THREADS);
}

bool disk_team_stopped(struct disk_team *t)
{
	return t->stop || (t->job->cancel && *t->job->cancel);
}

static void member_failed(struct disk_team *t, int r, const struct error *err)
{
	pthread_mutex_lock(&t->lock);
	if (!t->result) {
		t->result = r;
		t->err = *err;
	}
	pthread_mutex_unlock(&t->lock);
	t->stop = true;
}

static void *member_run(void *arg)
{
	struct member *m = arg;
	struct error err = {""};
	int r = m->fn(m->opaque, &err);

	if (r < 0)
		member_failed(m->team, r, &err);
	return NULL;
}

/* Fewer threads than asked for only make it slower.  Signals are for the caller's thread. */
static unsigned start_members(struct member *m, pthread_t *thread, unsigned n)
{
	sigset_t all, old;
	unsigned nr = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (nr < n && !pthread_create(&thread[nr], NULL, member_run, m))
		nr++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return nr;
}

int disk_team_run(struct disk_team *t, int (*fn)(void *opaque, struct error *err), void *opaque,
		  struct error *err)
{
	struct member m = {t, fn, opaque};
	pthread_t thread[MAX_THREADS];
	unsigned nr = start_members(&m, thread, disk_team_size(t->job) - 1);

	member_run(&m);
	while (nr)
		pthread_join(thread[--nr], NULL);
	if (t->result < 0)
		return err_set(err, -t->result, "%s", t->err.msg);
	if (t->job->cancel && *t->job->cancel)
		return err_set(err, ECANCELED, "cancelled");
	if (t->job->progress)
		t->job->progress(t->job->opaque, t->total, t->total);
	return 0;
}

/* Sleep until so many bytes are due, in small steps so that a cancel is seen. */
static void keep_rate(struct disk_team *t, uint64_t done)
{
	uint64_t due = t->start_ns + (uint64_t)((double)done * 1e9 / (double)t->job->rate);

	for (uint64_t now; (now = clock_mono_ns()) < due && !disk_team_stopped(t);) {
		uint64_t nap = MIN(due - now, NAP_NS);

		nanosleep(&(struct timespec){0, (long)nap}, NULL);
	}
}

void disk_team_advance(struct disk_team *t, uint64_t bytes)
{
	uint64_t now = clock_mono_ns(), done;

	pthread_mutex_lock(&t->lock);
	t->done += bytes;
	done = t->done;
	if (t->job->progress && now - t->told_ns >= TELL_EVERY_NS) {
		t->told_ns = now;
		t->job->progress(t->job->opaque, MIN(done, t->total), t->total);
	}
	pthread_mutex_unlock(&t->lock);
	if (t->job->rate)
		keep_rate(t, done);
}
