/* machine/timer/vclock.c - the time every chip of the board goes by. */
#include "machine/timer/vclock.h"

#include "base/clock.h"
#include "base/error.h"
#include "state/state.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct vclock {
	struct evloop *loop; /* NULL: a manual clock */

	/* Board time = monotonic - base, or held_ns while paused.  base is negative (a wrapped
	 * number) for a board older than its host.  Written with the lock held;
	 * read without, as every counter read of the guest comes here.  A reader that races with
	 * a pause gets a value from one side of it or the other. */
	_Atomic uint64_t base_ns, held_ns;
	_Atomic bool paused;

	_Atomic uint64_t manual_ns; /* the manual clock's "monotonic" */
	_Atomic uint64_t manual_real_ns;

	/* Guards the list of timers, each timer's deadline and `armed`, and changes of the above.
	 * Taken inside every chip's lock; the event loop's own is taken inside it. */
	pthread_mutex_t lock;
	struct vtimer *timers;
};

static uint64_t vclock_mono_ns(const struct vclock *c)
{
	return c->loop ? clock_mono_ns() : atomic_load(&c->manual_ns);
}

int vclock_create(struct vclock **out, struct evloop *loop, struct error *err)
{
	struct vclock *c = calloc(1, sizeof(*c));

	if (!c)
		return err_set(err, ENOMEM, "no memory for the board's clock");
	c->loop = loop;
	pthread_mutex_init(&c->lock, NULL);
	atomic_store(&c->base_ns, vclock_mono_ns(c));
	*out = c;
	return 0;
}

void vclock_destroy(struct vclock *c)
{
	if (!c)
		return;
	vclock_pause(c);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

uint64_t vclock_from_mono_ns(const struct vclock *c, uint64_t mono_ns)
{
	uint64_t base = atomic_load_explicit(&c->base_ns, memory_order_relaxed);
	int64_t since = (int64_t)(mono_ns - base);

	return mono_ns == UINT64_MAX ? INT64_MAX : MAX(since, 0);
}

uint64_t vclock_now_ns(const struct vclock *c)
{
	if (unlikely(atomic_load_explicit(&c->paused, memory_order_acquire)))
		return atomic_load(&c->held_ns);
	return vclock_from_mono_ns(c, vclock_mono_ns(c));
}

uint64_t vclock_real_ns(const struct vclock *c)
{
	return c->loop ? clock_real_ns() : atomic_load(&c->manual_real_ns);
}

void vclock_set_real_ns(struct vclock *c, uint64_t real_ns)
{
	assert(!c->loop);
	atomic_store(&c->manual_real_ns, real_ns);
}

/* With the clock's lock held. */
static void vtimer_start(struct vtimer *t)
{
	struct vclock *c = t->clock;
	/* A century is for ever, and leaves room for any base. */
	uint64_t deadline = MIN(t->deadline_ns, 100ull * 365 * 86400 * NSEC_PER_SEC);
	int64_t mono = (int64_t)(deadline + atomic_load(&c->base_ns));

	if (c->loop && !atomic_load(&c->paused))
		ev_timer_arm(&t->ev, MAX(mono, 0));
}

void vclock_pause(struct vclock *c)
{
	pthread_mutex_lock(&c->lock);
	if (!atomic_load(&c->paused)) {
		atomic_store(&c->held_ns, vclock_now_ns(c));
		atomic_store(&c->paused, true);
		for (struct vtimer *t = c->timers; t && c->loop; t = t->next)
			ev_timer_cancel(&t->ev);
	}
	pthread_mutex_unlock(&c->lock);
}

uint64_t vclock_stood_ns(const struct vclock *c)
{
	uint64_t now = vclock_from_mono_ns(c, vclock_mono_ns(c));

	return now - vclock_now_ns(c);
}

void vclock_resume(struct vclock *c)
{
	vclock_resume_at(c, vclock_mono_ns(c));
}

void vclock_resume_at(struct vclock *c, uint64_t mono_ns)
{
	pthread_mutex_lock(&c->lock);
	if (atomic_load(&c->paused)) {
		atomic_store(&c->base_ns, mono_ns - atomic_load(&c->held_ns));
		atomic_store(&c->paused, false);
		for (struct vtimer *t = c->timers; t; t = t->next)
			if (t->armed)
				vtimer_start(t);
	}
	pthread_mutex_unlock(&c->lock);
}

/* On the loop's thread.  A timer re-armed for later while this was on its way goes back. */
static void vtimer_expired(void *opaque)
{
	struct vtimer *t = opaque;
	struct vclock *c = t->clock;
	bool due = false;

	pthread_mutex_lock(&c->lock);
	if (t->armed && !atomic_load(&c->paused)) {
		due = vclock_now_ns(c) >= t->deadline_ns;
		if (due)
			t->armed = false;
		else
			vtimer_start(t);
	}
	pthread_mutex_unlock(&c->lock);
	if (due)
		t->fire(t->opaque);
}

void vtimer_init(struct vtimer *t, struct vclock *c, void (*fire)(void *), void *opaque)
{
	*t = (struct vtimer){.clock = c, .fire = fire, .opaque = opaque};
	if (c->loop)
		ev_timer_init(&t->ev, c->loop, vtimer_expired, t);
	pthread_mutex_lock(&c->lock);
	t->next = c->timers;
	c->timers = t;
	pthread_mutex_unlock(&c->lock);
}

void vtimer_arm(struct vtimer *t, uint64_t deadline_ns)
{
	pthread_mutex_lock(&t->clock->lock);
	t->deadline_ns = deadline_ns;
	t->armed = true;
	vtimer_start(t);
	pthread_mutex_unlock(&t->clock->lock);
}

void vtimer_cancel(struct vtimer *t)
{
	pthread_mutex_lock(&t->clock->lock);
	if (t->armed && t->clock->loop)
		ev_timer_cancel(&t->ev);
	t->armed = false;
	pthread_mutex_unlock(&t->clock->lock);
}

static struct vtimer *vclock_take_due(struct vclock *c, uint64_t now_ns)
{
	struct vtimer *first = NULL;

	pthread_mutex_lock(&c->lock);
	for (struct vtimer *t = c->timers; t; t = t->next)
		if (t->armed && t->deadline_ns <= now_ns &&
		    (!first || t->deadline_ns < first->deadline_ns))
			first = t;
	if (first)
		first->armed = false;
	pthread_mutex_unlock(&c->lock);
	return first;
}

static void vclock_manual_move_to(struct vclock *c, uint64_t mono_ns)
{
	uint64_t was = atomic_load(&c->manual_ns);

	if ((int64_t)(mono_ns - was) <=
	    0) /* a moment before the clock's start is a wrapped number */
		return;
	atomic_fetch_add(&c->manual_real_ns, mono_ns - was);
	atomic_store(&c->manual_ns, mono_ns);
}

void vclock_advance(struct vclock *c, uint64_t ns)
{
	uint64_t end = atomic_load(&c->manual_ns) + ns;
	struct vtimer *t;

	assert(!c->loop);
	while (!atomic_load(&c->paused) && (t = vclock_take_due(c, end - c->base_ns)) != NULL) {
		vclock_manual_move_to(c, t->deadline_ns + c->base_ns);
		t->fire(t->opaque);
	}
	vclock_manual_move_to(c, end);
}

void vclock_state(struct state *s, struct vclock *c)
{
	uint64_t now = vclock_now_ns(c);

	state_enter(s, "clock", 1);
	state_u64(s, "now_ns", &now);
	/* 146 years, and as many until board time would look negative. */
	state_check(s, now <= INT64_MAX / 2, "the board's clock is out of range");
	if (state_loading(s)) {
		vclock_pause(c);
		atomic_store(&c->held_ns, now);
	}
	state_leave(s);
}
