/* Lists of CPUs, scheduling policies, and what is done with them to a thread. */
#include "host/placement.h"
#include "base/error.h"
#include "host/cgroup.h"

#include "test.h"

#include <errno.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

TEST(lists_of_cpus)
{
	static const struct {
		const char *text, *printed;
		unsigned count;
	} good[] = {
		{"0", "0", 1},
		{"3", "3", 1},
		{"0-3", "0-3", 4},
		{"0-3,8", "0-3,8", 5},
		{"8,0-3", "0-3,8", 5},
		{"1,2,3", "1-3", 3},
		{"5-5", "5", 1},
		{"1-3,2-5", "1-5", 5},
		{"63-64", "63-64", 2},
		{"1023", "1023", 1},
		{"0-1023", "0-1023", 1024},
	};
	char text[200];

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		struct host_cpus c;

		CHECK_EQ(0, host_cpus_parse(&c, good[i].text, NULL));
		CHECK_EQ(good[i].count, host_cpus_count(&c));
		host_cpus_print(&c, text, sizeof(text));
		CHECK_STR(good[i].printed, text);
	}
}

TEST(lists_that_are_none)
{
	static const char *const bad[] = {"",     ",",     "a",   "1-",   "-1",
					  "1,,2", "1,",    "3-1", "1024", "0-1024",
					  "1 2",  "1-2-3", "0x1", "1;2",  "99999999999999999999",
					  "+1"};
	struct error err;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct host_cpus c;

		printf("# '%s'\n", bad[i]);
		CHECK_EQ(-EINVAL, host_cpus_parse(&c, bad[i], &err));
		CHECK(strstr(err.msg, "list of CPUs"));
	}
}

TEST(the_nth_of_a_list)
{
	struct host_cpus c;

	CHECK_EQ(0, host_cpus_parse(&c, "2,4-5,70", NULL));
	CHECK_EQ(2, host_cpus_nth(&c, 0));
	CHECK_EQ(4, host_cpus_nth(&c, 1));
	CHECK_EQ(5, host_cpus_nth(&c, 2));
	CHECK_EQ(70, host_cpus_nth(&c, 3));
}

/* A text too short for the list is cut, not overrun. */
TEST(a_long_list_in_a_short_text)
{
	struct host_cpus c = {0};
	char text[16 + 1];

	for (unsigned i = 0; i < HOST_MAX_CPUS; i += 2)
		host_cpus_set(&c, i);
	memset(text, '#', sizeof(text));
	host_cpus_print(&c, text, 16);
	CHECK(strlen(text) < 16);
	CHECK_EQ('#', text[16]);
}

static unsigned first_allowed(void)
{
	cpu_set_t set;
	unsigned cpu = 0;

	CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
	while (!CPU_ISSET(cpu, &set))
		cpu++;
	return cpu;
}

TEST(cpus_this_process_may_not_use)
{
	struct host_cpus c = {0};
	struct error err;

	host_cpus_set(&c, first_allowed());
	CHECK_EQ(0, host_cpus_check(&c, &err));
	host_cpus_set(&c, HOST_MAX_CPUS - 1);
	CHECK_EQ(-EINVAL, host_cpus_check(&c, &err));
	CHECK(strstr(err.msg, "may not run on CPU 1023"));
}

TEST(pinning)
{
	struct host_cpus c = {0};
	cpu_set_t set;
	struct error err;

	CHECK_EQ(0, host_thread_pin(pthread_self(), &c, &err)); /* none: as it was */
	host_cpus_set(&c, first_allowed());
	CHECK_EQ(0, host_thread_pin(pthread_self(), &c, &err));
	CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
	CHECK_EQ(1, CPU_COUNT(&set));
	CHECK(CPU_ISSET(first_allowed(), &set));
	c = (struct host_cpus){0};
	host_cpus_set(&c, HOST_MAX_CPUS - 1);
	CHECK(host_thread_pin(pthread_self(), &c, &err) < 0);
	CHECK(strstr(err.msg, "CPUs 1023"));
}

TEST(policies)
{
	struct host_sched s;

	CHECK_EQ(0, host_sched_parse(&s, "other", NULL));
	CHECK_EQ(HOST_SCHED_OTHER, s.policy);
	CHECK_EQ(0, host_sched_parse(&s, "batch", NULL));
	CHECK_EQ(HOST_SCHED_BATCH, s.policy);
	CHECK_EQ(0, host_sched_parse(&s, "fifo:99", NULL));
	CHECK_EQ(HOST_SCHED_FIFO, s.policy);
	CHECK_EQ(99, s.priority);
	CHECK_EQ(0, host_sched_parse(&s, "rr:1", NULL));
	CHECK_EQ(HOST_SCHED_RR, s.policy);
	CHECK_EQ(1, s.priority);
}

TEST(policies_that_are_none)
{
	static const char *const bad[] = {"",        "fifo",  "fifo:",   "fifo:0",  "fifo:100",
					  "fifo:1x", "fif:1", "batch:1", "other:",  "idle,",
					  "rr",      "rr:-1", "FIFO:1",  "fifo:1:1"};
	struct host_sched s;
	struct error err;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		printf("# '%s'\n", bad[i]);
		CHECK_EQ(-EINVAL, host_sched_parse(&s, bad[i], &err));
		CHECK(strstr(err.msg, "fifo:1 to 99"));
	}
}

TEST(scheduling)
{
	struct host_sched s;
	struct error err;

	CHECK_EQ(0, host_sched_parse(&s, "batch", NULL));
	CHECK_EQ(0, host_thread_schedule(pthread_self(), &s, &err));
	CHECK_EQ(SCHED_BATCH, sched_getscheduler(0));
	CHECK_EQ(0, host_sched_parse(&s, "idle", NULL));
	CHECK_EQ(0, host_thread_schedule(pthread_self(), &s, &err));
	CHECK_EQ(SCHED_IDLE, sched_getscheduler(0));
}

TEST(scheduling_without_the_right)
{
	struct host_sched s = {HOST_SCHED_FIFO, 50};
	struct rlimit none = {0, 0};
	struct error err;

	CHECK(setrlimit(RLIMIT_RTPRIO, &none) == 0);
	if (geteuid() == 0)
		CHECK(seteuid(65534) == 0);
	CHECK_EQ(-EPERM, host_thread_schedule(pthread_self(), &s, &err));
	CHECK(strstr(err.msg, "fifo is not permitted"));
	/* The leak sanitizer looks at this process at its end. */
	CHECK(seteuid(getuid()) == 0);
	prctl(PR_SET_DUMPABLE, 1);
}

TEST(no_share_asked_for_needs_no_cgroup)
{
	struct cgroup_cpu none = {0};
	struct cgroup_child c;

	CHECK_EQ(0, cgroup_cpu_enter(&c, &none, NULL));
	CHECK_STR("", c.path);
	cgroup_cpu_leave(&c);
}

/* Where it works, the share is in the kernel's files and the cgroup goes with us; else a sentence
 * says why and we are where we were. */
TEST(a_share_of_the_cpus)
{
	struct cgroup_cpu want = {.weight = 50, .percent = 150};
	struct cgroup before, after;
	struct cgroup_child c;
	struct error err = {""};
	char path[800], line[64] = "";
	bool any = cgroup_find(&before, "");
	int r = cgroup_cpu_enter(&c, &want, &err);
	FILE *f;

	if (r < 0) {
		CHECK(err.msg[0]);
		CHECK_STR("", c.path);
		CHECK_EQ(any, cgroup_find(&after, ""));
		CHECK_STR(before.path, after.path);
		SKIP(err.msg);
	}
	snprintf(path, sizeof(path), "%s/cpu.max", c.path);
	f = fopen(path, "r");
	CHECK(f && fgets(line, sizeof(line), f));
	CHECK_STR("150000 100000\n", line);
	fclose(f);
	CHECK(cgroup_find(&after, ""));
	CHECK(strcmp(before.path, after.path));
	snprintf(path, sizeof(path), "%s", c.path);
	cgroup_cpu_leave(&c);
	CHECK(cgroup_find(&after, ""));
	CHECK_STR(before.path, after.path);
	CHECK(access(path, F_OK) < 0);
}
