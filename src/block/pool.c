/* block/pool.c - see pool.h. */
#include "block/pool.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

enum { POOL_THREADS = 4 };

struct blk_pool {
	int (*run)(struct blk_req *r);
	pthread_t threads[POOL_THREADS];
	unsigned nr_threads;

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t work, idle;
	struct blk_req *queue, **queue_tail;
	/* Requests of the current and of the previous epoch that are not done.  A drain starts a
	 * new epoch and waits for the old one to empty: later requests cannot hold it up. */
	unsigned epoch, pending[2];
	bool draining, stop;
};

static _Thread_local struct blk_pool *own_pool; /* of the pool thread we are on */

static struct blk_req *next_request(struct blk_pool *p)
{
	struct blk_req *r;

	while (!p->queue && !p->stop)
		pthread_cond_wait(&p->work, &p->lock);
	r = p->queue;
	if (!r)
		return NULL;
	p->queue = r->next;
	if (!p->queue)
		p->queue_tail = &p->queue;
	return r;
}

static void *pool_thread(void *arg)
{
	struct blk_pool *p = arg;
	struct blk_req *r;

	own_pool = p;
	pthread_mutex_lock(&p->lock);
	while ((r = next_request(p))) {
		unsigned epoch = r->epoch & 1; /* done() may reuse r */

		pthread_mutex_unlock(&p->lock);
		r->done(r, p->run(r));
		pthread_mutex_lock(&p->lock);
		if (!--p->pending[epoch])
			pthread_cond_broadcast(&p->idle);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* Signals are for the threads that expect them. */
static int start_thread(struct blk_pool *p)
{
	sigset_t all, old;
	int e;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	e = pthread_create(&p->threads[p->nr_threads], NULL, pool_thread, p);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!e)
		p->nr_threads++;
	return -e;
}

int blk_pool_create(struct blk_pool **out, int (*run)(struct blk_req *r), struct error *err)
{
	struct blk_pool *p = calloc(1, sizeof(*p));
	int r = 0;

	if (!p)
		return err_errno(err, ENOMEM, "disk threads");
	p->run = run;
	p->queue_tail = &p->queue;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->idle, NULL);
	while (!r && p->nr_threads < POOL_THREADS)
		r = start_thread(p);
	if (!p->nr_threads) { /* one is enough to go on */
		blk_pool_destroy(p);
		return err_errno(err, -r, "cannot start a disk thread");
	}
	*out = p;
	return 0;
}

void blk_pool_destroy(struct blk_pool *p)
{
	if (!p)
		return;
	blk_pool_drain(p);
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->nr_threads; i++)
		pthread_join(p->threads[i], NULL);
	pthread_cond_destroy(&p->idle);
	pthread_cond_destroy(&p->work);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

void blk_pool_submit(struct blk_pool *p, struct blk_req *r)
{
	r->next = NULL;
	pthread_mutex_lock(&p->lock);
	r->epoch = p->epoch;
	p->pending[p->epoch & 1]++;
	*p->queue_tail = r;
	p->queue_tail = &r->next;
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
}

void blk_pool_drain(struct blk_pool *p)
{
	unsigned old;

	assert(own_pool != p); /* it would wait for itself */
	pthread_mutex_lock(&p->lock);
	while (p->draining)
		pthread_cond_wait(&p->idle, &p->lock);
	p->draining = true;
	old = p->epoch++ & 1;
	while (p->pending[old])
		pthread_cond_wait(&p->idle, &p->lock);
	p->draining = false;
	pthread_cond_broadcast(&p->idle);
	pthread_mutex_unlock(&p->lock);
}
