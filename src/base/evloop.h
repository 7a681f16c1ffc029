/* base/evloop.h - the small event loop: epoll + eventfd, timers in a heap.
 *
 * One thread runs a loop (evloop_run); callbacks run on that thread with no lock of the loop held,
 * so they may call any function here.  Timers may be armed and cancelled, and functions posted,
 * from any thread.  Descriptors are watched and unwatched from any thread too; after ev_fd_del()
 * returns, on the loop's thread no further callback comes; from another thread one that is already
 * running may still finish (use evloop_sync to wait for it).
 *
 * A descriptor is watched by at most one ev_fd of a loop.  EV_HANGUP comes whether asked for or not
 * while any event is; events 0 silences it too. */
#pragma once

#include "base/types.h"

struct error;
struct evloop;

int evloop_create(struct evloop **out, struct error *err);
void evloop_destroy(struct evloop *loop);
int evloop_run(struct evloop *loop); /* until evloop_stop(); 0 or -errno */
void evloop_stop(struct evloop *loop);
void evloop_post(struct evloop *loop, void (*fn)(void *arg), void *arg);
void evloop_unpost(struct evloop *loop, void (*fn)(void *arg), void *arg); /* if not yet begun */
void evloop_sync(struct evloop *loop); /* returns after all callbacks now running have ended */
bool evloop_is_self(const struct evloop *loop); /* am I on the loop's thread? */

enum { EV_READ = 1, EV_WRITE = 2, EV_HANGUP = 4 };

/* Embedded in its owner; the owner keeps it alive while it is watched. */
struct ev_fd {
	struct evloop *loop;
	int fd;
	unsigned events;
	void (*ready)(void *opaque, unsigned events);
	void *opaque;
};

int ev_fd_add(struct evloop *loop, struct ev_fd *e, int fd, unsigned events,
	      void (*ready)(void *opaque, unsigned events), void *opaque);
void ev_fd_mod(struct ev_fd *e, unsigned events); /* events may be 0: pause */
void ev_fd_del(struct ev_fd *e);

struct ev_timer {
	struct evloop *loop;
	void (*fire)(void *opaque);
	void *opaque;
	uint64_t deadline_ns; /* CLOCK_MONOTONIC; valid while armed */
	int heap_index;       /* -1 = not armed; guarded by the loop's lock */
};

void ev_timer_init(struct ev_timer *t, struct evloop *loop, void (*fire)(void *), void *opaque);
void ev_timer_arm(struct ev_timer *t, uint64_t deadline_ns); /* re-arms; past = at once */
void ev_timer_cancel(struct ev_timer *t);
