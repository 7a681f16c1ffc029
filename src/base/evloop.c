/* base/evloop.c - see evloop.h.
 *
 * What epoll hands back is not a pointer but (generation << 32 | fd): the watch is looked up again
 * under the lock for each event, so one that was removed, or replaced by a new user of the same
 * descriptor number, in the middle of a batch gets no stale event.
 *
 * Timers live in a binary heap under the same lock; a timerfd in the epoll set holds the earliest
 * deadline.  Arming from another thread therefore needs no wake-up: at most one timerfd_settime,
 * and none when an earlier deadline is already set.  A cancelled timer leaves the timerfd alone;
 * the loop then wakes once for nothing. */
#include "base/evloop.h"

#include "base/clock.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { BATCH = 64 };

struct post {
	struct post *next;
	void (*fn)(void *arg);
	void *arg;
};

struct watch {
	struct ev_fd *e; /* NULL: nobody watches this descriptor */
	uint32_t gen;
	bool in_epoll;
};

struct evloop {
	int epoll_fd, wake_fd, timer_fd;

	/* Guards everything below, and heap_index and deadline_ns of the timers. */
	pthread_mutex_t lock;
	pthread_cond_t call_ended; /* for evloop_sync */
	struct watch *watches;     /* by descriptor number */
	unsigned nr_watches;
	struct ev_timer **heap; /* earliest first */
	unsigned nr_timers, heap_cap;
	uint64_t timer_fd_ns; /* what the timerfd is set to; UINT64_MAX = nothing */
	struct post *posts, **posts_tail;
	uint64_t calls; /* callbacks begun */
	bool in_call, running, stop;
	pthread_t thread; /* valid while running */
};

static int epoll_add(struct evloop *loop, int fd)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = (uint64_t)fd};

	return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &ev);
}

int evloop_create(struct evloop **out, struct error *err)
{
	struct evloop *loop = calloc(1, sizeof(*loop));
	int e;

	if (!loop)
		return err_errno(err, ENOMEM, "event loop");
	pthread_mutex_init(&loop->lock, NULL);
	pthread_cond_init(&loop->call_ended, NULL);
	loop->posts_tail = &loop->posts;
	loop->timer_fd_ns = UINT64_MAX;
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (loop->epoll_fd < 0 || loop->wake_fd < 0 || loop->timer_fd < 0 ||
	    epoll_add(loop, loop->wake_fd) < 0 || epoll_add(loop, loop->timer_fd) < 0) {
		e = errno;
		evloop_destroy(loop);
		return err_errno(err, e, "cannot make an event loop");
	}
	*out = loop;
	return 0;
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* Posts that never ran are dropped; watches and timers are their owners' memory. */
void evloop_destroy(struct evloop *loop)
{
	struct post *p;

	if (!loop)
		return;
	assert(!loop->running);
	while ((p = loop->posts)) {
		loop->posts = p->next;
		free(p);
	}
	close_if_open(loop->epoll_fd);
	close_if_open(loop->wake_fd);
	close_if_open(loop->timer_fd);
	pthread_cond_destroy(&loop->call_ended);
	pthread_mutex_destroy(&loop->lock);
	free(loop->watches);
	free(loop->heap);
	free(loop);
}

static void wake(struct evloop *loop)
{
	uint64_t one = 1;
	ssize_t n = write(loop->wake_fd, &one, sizeof(one));

	assert(n == sizeof(one) || errno == EAGAIN); /* full means: awake already */
}

/* Memory for a few words of bookkeeping is not there: nothing sensible can go on. */
static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

/* ---- callbacks ---- */

/* Called and returns with the lock held; without it in between. */
static void call(struct evloop *loop, void (*fn)(void *), void *arg)
{
	loop->calls++;
	loop->in_call = true;
	pthread_mutex_unlock(&loop->lock);
	fn(arg);
	pthread_mutex_lock(&loop->lock);
	loop->in_call = false;
	pthread_cond_broadcast(&loop->call_ended);
}

bool evloop_is_self(const struct evloop *loop)
{
	struct evloop *l = (struct evloop *)loop;
	bool self;

	pthread_mutex_lock(&l->lock);
	self = l->running && pthread_equal(l->thread, pthread_self());
	pthread_mutex_unlock(&l->lock);
	return self;
}

void evloop_sync(struct evloop *loop)
{
	uint64_t calls;

	pthread_mutex_lock(&loop->lock);
	if (!loop->running || !pthread_equal(loop->thread, pthread_self())) {
		calls = loop->calls;
		while (loop->in_call && loop->calls == calls)
			pthread_cond_wait(&loop->call_ended, &loop->lock);
	}
	pthread_mutex_unlock(&loop->lock);
}

void evloop_post(struct evloop *loop, void (*fn)(void *arg), void *arg)
{
	struct post *p = must(malloc(sizeof(*p)));
	bool first;

	*p = (struct post){.fn = fn, .arg = arg};
	pthread_mutex_lock(&loop->lock);
	first = !loop->posts;
	*loop->posts_tail = p;
	loop->posts_tail = &p->next;
	pthread_mutex_unlock(&loop->lock);
	if (first)
		wake(loop);
}

void evloop_unpost(struct evloop *loop, void (*fn)(void *arg), void *arg)
{
	struct post **at, *p;

	pthread_mutex_lock(&loop->lock);
	for (at = &loop->posts; (p = *at);) {
		if (p->fn == fn && p->arg == arg) {
			*at = p->next;
			free(p);
		} else {
			at = &p->next;
		}
	}
	loop->posts_tail = at;
	pthread_mutex_unlock(&loop->lock);
}

/* Only as many as there were: one that posts itself again does not starve descriptors. */
static void run_posts(struct evloop *loop)
{
	struct post *last = NULL, *p;
	unsigned n = 0;

	for (p = loop->posts; p; p = p->next)
		n++;
	for (; n && loop->posts; n--) {
		struct post now = *loop->posts;

		last = loop->posts;
		loop->posts = now.next;
		if (!now.next)
			loop->posts_tail = &loop->posts;
		free(last);
		call(loop, now.fn, now.arg);
	}
	if (loop->posts)
		wake(loop);
}

/* ---- descriptors ---- */

static uint32_t to_epoll(unsigned events)
{
	return (events & EV_READ ? EPOLLIN : 0u) | (events & EV_WRITE ? EPOLLOUT : 0u) |
	       (events & EV_HANGUP ? EPOLLRDHUP : 0u);
}

static unsigned from_epoll(uint32_t events)
{
	return (events & EPOLLIN ? EV_READ : 0u) | (events & EPOLLOUT ? EV_WRITE : 0u) |
	       (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP) ? EV_HANGUP : 0u);
}

/* Bring epoll in line with e->events.  A paused descriptor leaves the set altogether, because
 * epoll reports errors and hang-ups even with an empty mask and the loop would spin on them. */
static int watch_apply(struct evloop *loop, struct ev_fd *e)
{
	struct watch *w = &loop->watches[e->fd];
	struct epoll_event ev = {.events = to_epoll(e->events),
				 .data.u64 = (uint64_t)w->gen << 32 | (uint32_t)e->fd};
	int op = w->in_epoll ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

	if (!e->events && !w->in_epoll)
		return 0;
	if (!e->events)
		op = EPOLL_CTL_DEL;
	if (epoll_ctl(loop->epoll_fd, op, e->fd, &ev) < 0)
		return -errno;
	w->in_epoll = op != EPOLL_CTL_DEL;
	return 0;
}

static void watches_reserve(struct evloop *loop, unsigned nr)
{
	if (nr <= loop->nr_watches)
		return;
	nr = (unsigned)ALIGN_UP(nr, 64);
	loop->watches = must(realloc(loop->watches, nr * sizeof(loop->watches[0])));
	memset(loop->watches + loop->nr_watches, 0,
	       (nr - loop->nr_watches) * sizeof(loop->watches[0]));
	loop->nr_watches = nr;
}

int ev_fd_add(struct evloop *loop, struct ev_fd *e, int fd, unsigned events,
	      void (*ready)(void *opaque, unsigned events), void *opaque)
{
	int r;

	assert(fd >= 0);
	*e = (struct ev_fd){loop, fd, events, ready, opaque};
	pthread_mutex_lock(&loop->lock);
	watches_reserve(loop, (unsigned)fd + 1);
	assert(!loop->watches[fd].e);
	loop->watches[fd].gen++;
	loop->watches[fd].in_epoll = false;
	r = watch_apply(loop, e);
	if (!r)
		loop->watches[fd].e = e;
	else
		e->loop = NULL;
	pthread_mutex_unlock(&loop->lock);
	return r;
}

void ev_fd_mod(struct ev_fd *e, unsigned events)
{
	pthread_mutex_lock(&e->loop->lock);
	if (events != e->events) {
		e->events = events;
		/* It was accepted once; a failure now means the owner closed it too early. */
		watch_apply(e->loop, e);
	}
	pthread_mutex_unlock(&e->loop->lock);
}

void ev_fd_del(struct ev_fd *e)
{
	struct evloop *loop = e->loop;

	if (!loop)
		return;
	pthread_mutex_lock(&loop->lock);
	e->events = 0;
	watch_apply(loop, e);
	loop->watches[e->fd].e = NULL;
	e->loop = NULL;
	pthread_mutex_unlock(&loop->lock);
}

static void run_fd(struct evloop *loop, const struct epoll_event *ev)
{
	uint32_t fd = (uint32_t)ev->data.u64, gen = (uint32_t)(ev->data.u64 >> 32);
	unsigned events = from_epoll(ev->events);
	struct ev_fd *e = fd < loop->nr_watches ? loop->watches[fd].e : NULL;
	void (*ready)(void *, unsigned);
	void *opaque;

	if (!e || loop->watches[fd].gen != gen)
		return;
	events &= e->events | EV_HANGUP; /* it may have asked for less since */
	if (!events || !e->events)
		return;
	ready = e->ready;
	opaque = e->opaque;
	loop->calls++;
	loop->in_call = true;
	pthread_mutex_unlock(&loop->lock);
	ready(opaque, events);
	pthread_mutex_lock(&loop->lock);
	loop->in_call = false;
	pthread_cond_broadcast(&loop->call_ended);
}

/* ---- timers ---- */

static void heap_put(struct evloop *loop, unsigned i, struct ev_timer *t)
{
	loop->heap[i] = t;
	t->heap_index = (int)i;
}

static void heap_up(struct evloop *loop, unsigned i, struct ev_timer *t)
{
	while (i && loop->heap[(i - 1) / 2]->deadline_ns > t->deadline_ns) {
		heap_put(loop, i, loop->heap[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	heap_put(loop, i, t);
}

static void heap_down(struct evloop *loop, unsigned i, struct ev_timer *t)
{
	for (;;) {
		unsigned kid = 2 * i + 1;

		if (kid + 1 < loop->nr_timers &&
		    loop->heap[kid + 1]->deadline_ns < loop->heap[kid]->deadline_ns)
			kid++;
		if (kid >= loop->nr_timers || loop->heap[kid]->deadline_ns >= t->deadline_ns)
			break;
		heap_put(loop, i, loop->heap[kid]);
		i = kid;
	}
	heap_put(loop, i, t);
}

static void heap_insert(struct evloop *loop, struct ev_timer *t)
{
	if (loop->nr_timers == loop->heap_cap) {
		loop->heap_cap = MAX(16u, 2 * loop->heap_cap);
		loop->heap = must(realloc(loop->heap, loop->heap_cap * sizeof(loop->heap[0])));
	}
	heap_up(loop, loop->nr_timers++, t);
}

static void heap_remove(struct evloop *loop, struct ev_timer *t)
{
	struct ev_timer *last = loop->heap[--loop->nr_timers];
	unsigned i = (unsigned)t->heap_index;

	t->heap_index = -1;
	if (last == t)
		return;
	if (last->deadline_ns < t->deadline_ns)
		heap_up(loop, i, last);
	else
		heap_down(loop, i, last);
}

static void timer_fd_set(struct evloop *loop, uint64_t deadline_ns)
{
	struct itimerspec its = {0};
	int r;

	if (deadline_ns == loop->timer_fd_ns)
		return;
	loop->timer_fd_ns = deadline_ns;
	if (deadline_ns != UINT64_MAX) {
		deadline_ns = MAX(deadline_ns, 1u); /* zero would switch it off */
		its.it_value.tv_sec = (time_t)(deadline_ns / NSEC_PER_SEC);
		its.it_value.tv_nsec = (long)(deadline_ns % NSEC_PER_SEC);
	}
	r = timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
	assert(r == 0);
}

void ev_timer_init(struct ev_timer *t, struct evloop *loop, void (*fire)(void *), void *opaque)
{
	*t = (struct ev_timer){.loop = loop, .fire = fire, .opaque = opaque, .heap_index = -1};
}

void ev_timer_arm(struct ev_timer *t, uint64_t deadline_ns)
{
	struct evloop *loop = t->loop;

	pthread_mutex_lock(&loop->lock);
	if (t->heap_index >= 0)
		heap_remove(loop, t);
	t->deadline_ns = deadline_ns;
	heap_insert(loop, t);
	if (deadline_ns < loop->timer_fd_ns)
		timer_fd_set(loop, deadline_ns);
	pthread_mutex_unlock(&loop->lock);
}

void ev_timer_cancel(struct ev_timer *t)
{
	pthread_mutex_lock(&t->loop->lock);
	if (t->heap_index >= 0)
		heap_remove(t->loop, t);
	pthread_mutex_unlock(&t->loop->lock);
}

/* Fire what was due when we began; one that re-arms itself in the past waits for the next round. */
static void run_timers(struct evloop *loop)
{
	uint64_t now = clock_mono_ns();
	unsigned most = loop->nr_timers;

	loop->timer_fd_ns = 0; /* expired: later arms need not touch it, we set it below */
	while (most-- && loop->nr_timers && loop->heap[0]->deadline_ns <= now) {
		struct ev_timer *t = loop->heap[0];

		heap_remove(loop, t);
		call(loop, t->fire, t->opaque);
	}
	timer_fd_set(loop, loop->nr_timers ? MAX(loop->heap[0]->deadline_ns, 1u) : UINT64_MAX);
}

/* ---- the loop ---- */

static void drain(int fd)
{
	uint64_t count;

	if (read(fd, &count, sizeof(count)) < 0)
		assert(errno == EAGAIN);
}

static void run_batch(struct evloop *loop, const struct epoll_event *evs, int n)
{
	for (int i = 0; i < n; i++) {
		if (evs[i].data.u64 == (uint64_t)loop->timer_fd) {
			drain(loop->timer_fd);
			run_timers(loop);
		} else if (evs[i].data.u64 == (uint64_t)loop->wake_fd) {
			drain(loop->wake_fd);
			run_posts(loop);
		} else {
			run_fd(loop, &evs[i]);
		}
	}
}

int evloop_run(struct evloop *loop)
{
	struct epoll_event evs[BATCH];
	int n, r = 0;

	pthread_mutex_lock(&loop->lock);
	assert(!loop->running);
	loop->running = true;
	loop->thread = pthread_self();
	while (!loop->stop) {
		pthread_mutex_unlock(&loop->lock);
		n = epoll_wait(loop->epoll_fd, evs, BATCH, -1);
		r = n < 0 && errno != EINTR ? -errno : 0;
		pthread_mutex_lock(&loop->lock);
		if (r < 0)
			break;
		run_batch(loop, evs, n);
	}
	loop->stop = false;
	loop->running = false;
	pthread_mutex_unlock(&loop->lock);
	return r;
}

void evloop_stop(struct evloop *loop)
{
	pthread_mutex_lock(&loop->lock);
	loop->stop = true;
	pthread_mutex_unlock(&loop->lock);
	wake(loop);
}
