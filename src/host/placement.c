/* host/placement.c - see placement.h. */
#include "host/placement.h"

#include "base/error.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void host_cpus_set(struct host_cpus *c, unsigned cpu)
{
	c->bits[cpu / 64] |= BIT(cpu % 64);
}

bool host_cpus_has(const struct host_cpus *c, unsigned cpu)
{
	return cpu < HOST_MAX_CPUS && (c->bits[cpu / 64] >> cpu % 64 & 1);
}

unsigned host_cpus_count(const struct host_cpus *c)
{
	unsigned n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(c->bits); i++)
		n += __builtin_popcountll(c->bits[i]);
	return n;
}

bool host_cpus_empty(const struct host_cpus *c)
{
	return host_cpus_count(c) == 0;
}

unsigned host_cpus_nth(const struct host_cpus *c, unsigned n)
{
	unsigned cpu = 0;

	while (!host_cpus_has(c, cpu) || n--)
		cpu++;
	return cpu;
}

/* A number of a list; *end is what follows it. */
static bool list_number(const char *text, const char **end, unsigned *v)
{
	unsigned long n;
	char *e;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	n = strtoul(text, &e, 10);
	*end = e;
	*v = n;
	return !errno && n < HOST_MAX_CPUS;
}

int host_cpus_parse(struct host_cpus *c, const char *text, struct error *err)
{
	const char *p = text;

	*c = (struct host_cpus){0};
	for (;;) {
		unsigned first, last;

		if (!list_number(p, &p, &first))
			break;
		last = first;
		if (*p == '-' && !list_number(p + 1, &p, &last))
			break;
		if (last < first || (*p && *p != ','))
			break;
		for (unsigned i = first; i <= last; i++)
			host_cpus_set(c, i);
		if (!*p++)
			return 0;
	}
	return err_set(err, EINVAL, "'%s' is not a list of CPUs such as 0-3,8 (up to %d)", text,
		       HOST_MAX_CPUS - 1);
}

void host_cpus_print(const struct host_cpus *c, char *text, size_t len)
{
	size_t at = 0;

	text[0] = 0;
	for (unsigned i = 0; i < HOST_MAX_CPUS && at < len; i++) {
		unsigned last = i;

		if (!host_cpus_has(c, i))
			continue;
		while (host_cpus_has(c, last + 1))
			last++;
		at += snprintf(text + at, len - at, last > i ? "%s%u-%u" : "%s%u", at ? "," : "", i,
			       last);
		i = last;
	}
}

static void to_cpu_set(const struct host_cpus *c, cpu_set_t *set)
{
	CPU_ZERO(set);
	for (unsigned i = 0; i < HOST_MAX_CPUS; i++)
		if (host_cpus_has(c, i))
			CPU_SET(i, set);
}

static void allowed_cpus(struct host_cpus *c)
{
	cpu_set_t set;

	*c = (struct host_cpus){0};
	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return; /* more CPUs than we know of: the kernel will tell */
	for (unsigned i = 0; i < HOST_MAX_CPUS; i++)
		if (CPU_ISSET(i, &set))
			host_cpus_set(c, i);
}

int host_cpus_check(const struct host_cpus *c, struct error *err)
{
	struct host_cpus allowed;
	char text[128];

	allowed_cpus(&allowed);
	if (host_cpus_empty(&allowed))
		return 0;
	for (unsigned i = 0; i < HOST_MAX_CPUS; i++) {
		if (!host_cpus_has(c, i) || host_cpus_has(&allowed, i))
			continue;
		host_cpus_print(&allowed, text, sizeof(text));
		return err_set(err, EINVAL, "this process may not run on CPU %u, only on %s", i,
			       text);
	}
	return 0;
}

// clang-format off
static const struct {
	const char *name;
	enum host_policy policy;
	int native;
	bool realtime;
} policies[] = {
	{"other",	HOST_SCHED_OTHER,	SCHED_OTHER,	false},
	{"batch",	HOST_SCHED_BATCH,	SCHED_BATCH,	false},
	{"idle",	HOST_SCHED_IDLE,	SCHED_IDLE,	false},
	{"fifo",	HOST_SCHED_FIFO,	SCHED_FIFO,	true},
	{"rr",		HOST_SCHED_RR,		SCHED_RR,	true},
};
// clang-format on

static int bad_policy(const char *text, struct error *err)
{
	return err_set(err, EINVAL, "'%s' is not other, batch, idle, fifo:1 to 99 or rr:1 to 99",
		       text);
}

int host_sched_parse(struct host_sched *s, const char *text, struct error *err)
{
	size_t n = strcspn(text, ":");

	for (size_t i = 0; i < ARRAY_SIZE(policies); i++) {
		const char *end = text + n;
		unsigned priority = 0;

		if (strlen(policies[i].name) != n || strncmp(policies[i].name, text, n))
			continue;
		if (policies[i].realtime != (*end == ':'))
			break;
		if (*end == ':' && (!list_number(end + 1, &end, &priority) || *end ||
				    priority < 1 || priority > 99))
			break;
		*s = (struct host_sched){policies[i].policy, priority};
		return 0;
	}
	return bad_policy(text, err);
}

int host_thread_pin(pthread_t thread, const struct host_cpus *c, struct error *err)
{
	cpu_set_t set;
	char text[128];
	int r;

	if (host_cpus_empty(c))
		return 0;
	to_cpu_set(c, &set);
	r = pthread_setaffinity_np(thread, sizeof(set), &set);
	if (!r)
		return 0;
	host_cpus_print(c, text, sizeof(text));
	return err_errno(err, r, "cannot run a thread on CPUs %s", text);
}

int host_thread_schedule(pthread_t thread, const struct host_sched *s, struct error *err)
{
	struct sched_param param = {.sched_priority = s->priority};
	size_t i = 0;
	int r;

	if (s->policy == HOST_SCHED_DEFAULT)
		return 0;
	while (policies[i].policy != s->policy)
		i++;
	r = pthread_setschedparam(thread, policies[i].native, &param);
	if (r == EPERM)
		return err_set(err, EPERM,
			       "scheduling policy %s is not permitted: it needs CAP_SYS_NICE or a "
			       "higher rtprio limit (ulimit -r)",
			       policies[i].name);
	return r ? err_errno(err, r, "cannot set scheduling policy %s", policies[i].name) : 0;
}
