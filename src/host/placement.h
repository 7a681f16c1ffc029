/* host/placement.h - where and how eagerly the threads of a VM run: host CPUs and scheduling
 * policy.
 *
 * Parsing is pure; applying is for any thread.  See sched(7), cpuset(7) "List format". */
#pragma once

#include "base/types.h"

#include <pthread.h>

struct error;

enum { HOST_MAX_CPUS = 1024 };

struct host_cpus {
	uint64_t bits[HOST_MAX_CPUS / 64]; /* none: anywhere */
};

/* "0-3,8": cpuset's list format. */
int host_cpus_parse(struct host_cpus *c, const char *text, struct error *err);
bool host_cpus_empty(const struct host_cpus *c);
unsigned host_cpus_count(const struct host_cpus *c);
unsigned host_cpus_nth(const struct host_cpus *c, unsigned n); /* n < count */
void host_cpus_set(struct host_cpus *c, unsigned cpu);
bool host_cpus_has(const struct host_cpus *c, unsigned cpu);
void host_cpus_print(const struct host_cpus *c, char *text, size_t len);
/* May this process run on all of them?  A sentence names one that it may not. */
int host_cpus_check(const struct host_cpus *c, struct error *err);

enum host_policy {
	HOST_SCHED_DEFAULT,
	HOST_SCHED_OTHER,
	HOST_SCHED_BATCH,
	HOST_SCHED_IDLE,
	HOST_SCHED_FIFO,
	HOST_SCHED_RR
};

struct host_sched {
	enum host_policy policy;
	unsigned priority; /* 1 to 99 for FIFO and RR */
};

/* "other", "batch", "idle", "fifo:10", "rr:10". */
int host_sched_parse(struct host_sched *s, const char *text, struct error *err);

int host_thread_pin(pthread_t thread, const struct host_cpus *c, struct error *err);
int host_thread_schedule(pthread_t thread, const struct host_sched *s, struct error *err);
