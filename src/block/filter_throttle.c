/* block/filter_throttle.c - limits by token buckets.
 *
 * A bucket holds up to `burst` tokens and fills at its rate; a request takes what it costs even
 * into debt, and waits first while there is debt.  So a request of any size passes and the rate
 * holds. */
#include "block/filter.h"
#include "block/filter_common.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

struct bucket {
	struct blk_rate rate;
	double tokens; /* below zero: debt */
	uint64_t at_ns;
};

enum which { BYTES, BYTES_READ, BYTES_WRITTEN, REQUESTS, READS, WRITES, NR_BUCKETS };

struct throttle {
	pthread_mutex_t lock; /* guards bucket */
	struct bucket bucket[NR_BUCKETS];
};

static void bucket_fill(struct bucket *k, uint64_t now)
{
	double burst = k->rate.burst ? (double)k->rate.burst : (double)k->rate.per_s / 10;

	k->tokens += (double)(now - k->at_ns) * (double)k->rate.per_s / 1e9;
	k->at_ns = now;
	if (k->tokens > burst)
		k->tokens = burst;
}

/* Take `cost`; until when the request has to wait. */
static uint64_t bucket_take(struct bucket *k, uint64_t cost, uint64_t now)
{
	uint64_t wait = 0;

	if (!k->rate.per_s)
		return now;
	bucket_fill(k, now);
	if (k->tokens < 0)
		wait = (uint64_t)(-k->tokens * 1e9 / (double)k->rate.per_s);
	k->tokens -= (double)cost;
	return now + wait;
}

static void wait_turn(struct throttle *t, bool write, uint64_t bytes)
{
	uint64_t now = clock_mono_ns(), until;
	struct timespec ts;

	pthread_mutex_lock(&t->lock);
	until = bucket_take(&t->bucket[BYTES], bytes, now);
	until = MAX(until, bucket_take(&t->bucket[write ? BYTES_WRITTEN : BYTES_READ], bytes, now));
	until = MAX(until, bucket_take(&t->bucket[REQUESTS], 1, now));
	until = MAX(until, bucket_take(&t->bucket[write ? WRITES : READS], 1, now));
	pthread_mutex_unlock(&t->lock);
	if (until == now)
		return;
	ts = (struct timespec){(time_t)(until / NSEC_PER_SEC), (long)(until % NSEC_PER_SEC)};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

static int throttle_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			  uint64_t off)
{
	wait_turn(b->priv, false, len);
	return blk_readv(b->file, iov, n, off);
}

static int throttle_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			   uint64_t off)
{
	wait_turn(b->priv, true, len);
	return blk_writev(b->file, iov, n, off);
}

static void throttle_free(struct throttle *t)
{
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static void throttle_close(struct blk *b)
{
	throttle_free(b->priv);
}

static const struct blk_format throttle_format = {
	.name = "throttle",
	.parallel = true,
	.close = throttle_close,
	.readv = throttle_readv,
	.writev = throttle_writev,
	.flush = filter_flush,
	.discard = filter_discard,
	.write_zeroes = filter_write_zeroes,
	.map = filter_map,
};

void blk_throttle_set(struct blk *b, const struct blk_limits *l)
{
	const struct blk_rate rates[NR_BUCKETS] = {
		[BYTES] = l->bytes,       [BYTES_READ] = l->bytes_read,
		[REQUESTS] = l->requests, [BYTES_WRITTEN] = l->bytes_written,
		[READS] = l->reads,       [WRITES] = l->writes,
	};
	struct throttle *t = b->priv;
	uint64_t now = clock_mono_ns();

	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < NR_BUCKETS; i++)
		t->bucket[i] = (struct bucket){rates[i], 0, now};
	pthread_mutex_unlock(&t->lock);
}

int blk_throttle(struct blk **out, struct blk *below, const struct blk_limits *limits,
		 unsigned flags, struct error *err)
{
	struct throttle *t = calloc(1, sizeof(*t));
	int r;

	if (!t) {
		blk_close(below);
		return err_errno(err, ENOMEM, "throttle");
	}
	pthread_mutex_init(&t->lock, NULL);
	r = filter_wrap(out, below, &throttle_format, t, flags, err);
	if (r < 0)
		throttle_free(t);
	else
		blk_throttle_set(*out, limits);
	return r;
}
