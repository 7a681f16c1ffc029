/* Unit tests of src/base/evloop.c. */
#include "base/evloop.h"

#include "base/clock.h"
#include "test.h"

#include <pthread.h>

static struct evloop *loop;
static char trace[64];

static void note(char c)
{
	size_t n = strlen(trace);

	CHECK(n + 1 < sizeof(trace));
	trace[n] = c;
}

static void stop(void *arg)
{
	evloop_stop(loop);
}

#define LETTER(c) ((void *)(uintptr_t)(c))

static void note_arg(void *arg)
{
	note((char)(uintptr_t)arg);
}

static void setup(void)
{
	CHECK_EQ(0, evloop_create(&loop, NULL));
}

static void run_and_free(void)
{
	CHECK_EQ(0, evloop_run(loop));
	evloop_destroy(loop);
}

TEST(posts_run_in_order)
{
	setup();
	evloop_post(loop, note_arg, LETTER('a'));
	evloop_post(loop, note_arg, LETTER('b'));
	evloop_post(loop, stop, NULL);
	run_and_free();
	CHECK_STR("ab", trace);
}

TEST(an_unposted_function_does_not_run)
{
	setup();
	evloop_post(loop, note_arg, LETTER('a'));
	evloop_post(loop, note_arg, LETTER('b'));
	evloop_unpost(loop, note_arg, LETTER('b'));
	evloop_post(loop, note_arg, LETTER('c'));
	evloop_post(loop, stop, NULL);
	run_and_free();
	CHECK_STR("ac", trace);
}

TEST(a_stop_before_the_run_is_not_lost)
{
	setup();
	evloop_stop(loop);
	run_and_free();
}

TEST(timers_fire_in_order_of_deadline)
{
	struct ev_timer t[4];
	uint64_t now = clock_mono_ns();

	setup();
	ev_timer_init(&t[0], loop, note_arg, LETTER('0'));
	ev_timer_init(&t[1], loop, note_arg, LETTER('1'));
	ev_timer_init(&t[2], loop, note_arg, LETTER('2'));
	ev_timer_init(&t[3], loop, stop, NULL);
	ev_timer_arm(&t[3], now + 30000000);
	ev_timer_arm(&t[1], now + 20000000);
	ev_timer_arm(&t[0], now + 10000000);
	ev_timer_arm(&t[2], now + 25000000);
	run_and_free();
	CHECK_STR("012", trace);
	CHECK(clock_mono_ns() - now >= 30000000);
}

TEST(a_cancelled_timer_does_not_fire)
{
	struct ev_timer a, b;
	uint64_t now = clock_mono_ns();

	setup();
	ev_timer_init(&a, loop, note_arg, LETTER('a'));
	ev_timer_init(&b, loop, stop, NULL);
	ev_timer_arm(&a, now + 1000000);
	ev_timer_arm(&b, now + 5000000);
	ev_timer_cancel(&a);
	CHECK_EQ((uint64_t)-1, (uint64_t)a.heap_index);
	run_and_free();
	CHECK_STR("", trace);
}

TEST(a_rearmed_timer_fires_once_at_the_new_time)
{
	struct ev_timer a, b;
	uint64_t now = clock_mono_ns();

	setup();
	ev_timer_init(&a, loop, note_arg, LETTER('a'));
	ev_timer_init(&b, loop, stop, NULL);
	ev_timer_arm(&b, now + 20000000);
	ev_timer_arm(&a, now + 900000000000);
	ev_timer_arm(&a, 0); /* the past: at once */
	run_and_free();
	CHECK_STR("a", trace);
}

static unsigned fired;
static uint64_t last_deadline;
static struct ev_timer many[300];

static void fire_many(void *arg)
{
	struct ev_timer *t = arg;

	CHECK(t->deadline_ns >= last_deadline);
	last_deadline = t->deadline_ns;
	fired++;
}

static void check_sorted(struct ev_timer *t, unsigned n)
{
	uint64_t now = clock_mono_ns();
	unsigned seed = 1, cancelled = 0;

	for (unsigned i = 0; i < n; i++) {
		seed = seed * 1103515245 + 12345;
		ev_timer_init(&t[i], loop, fire_many, &t[i]);
		ev_timer_arm(&t[i], now + 1000000 + seed % 5000000);
	}
	for (unsigned i = 0; i < n; i += 3, cancelled++)
		ev_timer_cancel(&t[i]);
	for (unsigned i = 1; i < n; i += 3)
		ev_timer_arm(&t[i], now + 500000 + i * 1000);
	ev_timer_init(&t[0], loop, stop, NULL);
	ev_timer_arm(&t[0], now + 10000000);
	CHECK_EQ(0, evloop_run(loop));
	CHECK_EQ(n - cancelled, fired);
}

TEST(many_timers_keep_the_heap_in_order)
{
	setup();
	check_sorted(many, ARRAY_SIZE(many));
	evloop_destroy(loop);
}

struct pipe_user {
	struct ev_fd e;
	int fds[2];
	unsigned events;
};

static void pipe_ready(void *opaque, unsigned events)
{
	struct pipe_user *u = opaque;
	char c;

	u->events |= events;
	if (events & EV_READ && read(u->fds[0], &c, 1) == 1)
		note(c);
	else
		evloop_stop(loop);
}

static void pipe_setup(struct pipe_user *u)
{
	setup();
	CHECK_EQ(0, pipe(u->fds));
	CHECK_EQ(0, ev_fd_add(loop, &u->e, u->fds[0], EV_READ, pipe_ready, u));
}

TEST(a_readable_descriptor_is_told)
{
	struct pipe_user u = {0};

	pipe_setup(&u);
	CHECK_EQ(2, write(u.fds[1], "hi", 2));
	close(u.fds[1]);
	run_and_free();
	CHECK_STR("hi", trace);
	CHECK_EQ(EV_READ | EV_HANGUP, u.events);
}

static struct pipe_user pu;

static void resume(void *arg)
{
	note('r');
	ev_fd_mod(&pu.e, EV_READ);
}

TEST(a_paused_descriptor_is_silent_even_when_hung_up)
{
	struct ev_timer t;

	pipe_setup(&pu);
	ev_fd_mod(&pu.e, 0);
	CHECK_EQ(1, write(pu.fds[1], "x", 1));
	close(pu.fds[1]);
	ev_timer_init(&t, loop, resume, NULL);
	ev_timer_arm(&t, clock_mono_ns() + 10000000);
	run_and_free();
	CHECK_STR("rx", trace);
}

/* Two ready descriptors in one batch: the first to run removes the other. */
static struct pipe_user pair[2];

static void remove_other(void *opaque, unsigned events)
{
	struct pipe_user *u = opaque, *other = u == &pair[0] ? &pair[1] : &pair[0];

	note('x');
	ev_fd_del(&other->e);
	ev_fd_del(&u->e);
	evloop_post(loop, stop, NULL);
}

TEST(a_removed_descriptor_gets_no_event_of_the_same_batch)
{
	setup();
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(0, pipe(pair[i].fds));
		CHECK_EQ(1, write(pair[i].fds[1], "x", 1));
		CHECK_EQ(0, ev_fd_add(loop, &pair[i].e, pair[i].fds[0], EV_READ, remove_other,
				      &pair[i]));
	}
	run_and_free();
	CHECK_STR("x", trace);
}

TEST(a_regular_file_is_refused_not_fatal)
{
	struct ev_fd e;
	FILE *f = tmpfile();

	setup();
	CHECK(ev_fd_add(loop, &e, fileno(f), EV_READ, pipe_ready, NULL) < 0);
	ev_fd_del(&e);
	evloop_destroy(loop);
	fclose(f);
}

static _Atomic int slow_state;

static void slow(void *arg)
{
	slow_state = 1;
	usleep(30000);
	slow_state = 2;
}

static void *loop_thread(void *arg)
{
	CHECK_EQ(0, evloop_run(loop));
	return NULL;
}

TEST(sync_waits_for_the_running_callback)
{
	pthread_t t;

	setup();
	pthread_create(&t, NULL, loop_thread, NULL);
	evloop_post(loop, slow, NULL);
	while (!slow_state)
		usleep(1000);
	evloop_sync(loop);
	CHECK_EQ(2, slow_state);
	CHECK(!evloop_is_self(loop));
	evloop_stop(loop);
	pthread_join(t, NULL);
	evloop_sync(loop); /* not running: returns */
	evloop_destroy(loop);
}

static void self_check(void *arg)
{
	CHECK(evloop_is_self(loop));
	evloop_sync(loop); /* on the loop itself: no deadlock */
	evloop_stop(loop);
}

TEST(a_timer_armed_by_another_thread_wakes_the_loop)
{
	struct ev_timer t;
	pthread_t thread;

	setup();
	ev_timer_init(&t, loop, self_check, NULL);
	pthread_create(&thread, NULL, loop_thread, NULL);
	usleep(5000);
	ev_timer_arm(&t, clock_mono_ns() + 1000000);
	pthread_join(thread, NULL);
	evloop_destroy(loop);
}
