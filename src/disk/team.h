/* disk/team.h - several threads on one long piece of work, one result.
 *
 * disk_team_run() runs fn on n threads, the caller's among them, and returns when all have ended:
 * 0, or the first negative errno with its sentence.  After a failure or a cancel the others see
 * disk_team_stopped() and end early. */
#pragma once

#include "base/error.h"
#include "base/types.h"

#include <pthread.h>

/* How a piece of work is to run and whom it tells; zeroed is a good default. */
struct disk_job {
	unsigned threads;           /* 0: one per core this process may use */
	uint64_t rate;              /* at most so many bytes a second; 0: as fast as it goes */
	const _Atomic bool *cancel; /* turns true: stop soon; NULL: never */
	/* Now and then, one call at a time, on any of the threads; bytes. */
	void (*progress)(void *opaque, uint64_t done, uint64_t total);
	void *opaque;
};

struct disk_team {
	const struct disk_job *job;
	pthread_mutex_t lock; /* guards result, err, done, told */
	int result;
	struct error err;
	uint64_t done, total, told_ns, start_ns;
	_Atomic bool stop;
};

void disk_team_init(struct disk_team *t, const struct disk_job *job, uint64_t total);
void disk_team_fini(struct disk_team *t);
unsigned disk_team_size(const struct disk_job *job);
int disk_team_run(struct disk_team *t, int (*fn)(void *opaque, struct error *err), void *opaque,
		  struct error *err);
bool disk_team_stopped(struct disk_team *t);
void disk_team_advance(struct disk_team *t, uint64_t bytes); /* waits where there is a rate */
