/* machine/timer/vclock.h - the time every chip of the board goes by.
 *
 * Nanoseconds since the board was powered on.  It runs with the host's CLOCK_MONOTONIC and stands
 * still while the VM is paused, so that no timer chip has to know of pauses or of being restored on
 * another host.  Timers fire on the event loop's thread with no lock held.
 *
 * A manual clock (loop == NULL) moves only by vclock_advance(); unit tests use it.
 *
 * Any thread, but for create, destroy and advance.  A chip may call in with its own lock held.
 * The loop must have ended, or be the caller's own, when the clock is destroyed. */
#pragma once

#include "base/evloop.h"
#include "base/types.h"

struct error;
struct state;
struct vclock;

/* Embedded in its chip, which stays alive until the clock has been stopped or destroyed. */
struct vtimer {
	struct vclock *clock;
	struct ev_timer ev;
	void (*fire)(void *opaque);
	void *opaque;
	struct vtimer *next;
	uint64_t deadline_ns; /* this and `armed` are guarded by the clock's lock */
	bool armed;
};

int vclock_create(struct vclock **out, struct evloop *loop, struct error *err);
void vclock_destroy(struct vclock *c);

uint64_t vclock_now_ns(const struct vclock *c);
uint64_t vclock_real_ns(const struct vclock *c); /* time of day, nanoseconds since 1970 UTC */

/* The board's time at a moment of CLOCK_MONOTONIC; 0 for a moment before power-on. */
uint64_t vclock_from_mono_ns(const struct vclock *c, uint64_t mono_ns);

/* While paused the clock stands and no timer fires.  Idempotent. */
void vclock_pause(struct vclock *c);
void vclock_resume(struct vclock *c);
void vclock_resume_at(struct vclock *c, uint64_t mono_ns); /* as if called at that moment */
uint64_t vclock_stood_ns(const struct vclock *c);          /* since the pause that was made here */

/* Manual clock: move on and fire what falls due, each at its own time. */
void vclock_advance(struct vclock *c, uint64_t ns);
void vclock_set_real_ns(struct vclock *c, uint64_t real_ns);

void vtimer_init(struct vtimer *t, struct vclock *c, void (*fire)(void *), void *opaque);
void vtimer_arm(struct vtimer *t, uint64_t deadline_ns); /* re-arms; past = as soon as possible */
void vtimer_cancel(struct vtimer *t); /* a callback already running may still finish */

/* The clock's own time.  After loading the clock is paused. */
void vclock_state(struct state *s, struct vclock *c);

/* Ticks of an oscillator of `hz` in `ns`, and the first nanosecond at which `ticks` have passed. */
static inline uint64_t ns_to_ticks(uint64_t ns, uint32_t hz)
{
	return (uint64_t)((unsigned __int128)ns * hz / 1000000000u);
}
static inline uint64_t ticks_to_ns(uint64_t ticks, uint32_t hz)
{
	unsigned __int128 ns = ((unsigned __int128)ticks * 1000000000u + hz - 1) / hz;

	return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

/* No periodic source interrupts more often than this, whatever the guest programs: ticks that would
 * come sooner, and ticks missed because the host was late, run together into one. */
#define VTIMER_MIN_PERIOD_NS 20000u

/* A periodic deadline has been reached: the next one, on the same grid. */
static inline uint64_t vtimer_next_period(uint64_t deadline_ns, uint64_t period_ns, uint64_t now_ns)
{
	uint64_t earliest = MAX(now_ns, deadline_ns) + 1, steps;

	if (period_ns < VTIMER_MIN_PERIOD_NS)
		earliest += VTIMER_MIN_PERIOD_NS - 1;
	steps = (earliest - deadline_ns + period_ns - 1) / period_ns;
	return deadline_ns + steps * period_ns;
}
