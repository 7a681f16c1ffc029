/* fake_blk.h - a disk in memory behind block/blk.h's asynchronous calls, for device tests.
 * Requests wait until the test lets them go (fake_blk.hold), so that resets can race them. */
#pragma once

#include "block/blk.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

enum { FAKE_BLK_SIZE = 1 << 20, FAKE_BLK_LOG = 64 };

static struct fake_blk {
	struct blk_info info;
	uint8_t data[FAKE_BLK_SIZE];
	pthread_mutex_t lock; /* guards all below */
	struct blk_req *held;
	bool hold;
	int fail; /* result of every request when negative */
	unsigned nr_done, nr_log;
	int log[FAKE_BLK_LOG]; /* operations in the order they ran */
} fake_blk = {.info = {.format = "fake",
		       .size = FAKE_BLK_SIZE,
		       .block_size = 512,
		       .can_discard = true,
		       .can_zero = true},
	      .lock = PTHREAD_MUTEX_INITIALIZER};

const struct blk_info *blk_info(const struct blk *b)
{
	return &fake_blk.info;
}

static int fake_blk_do(struct blk_req *r)
{
	uint64_t at = r->off;

	if (fake_blk.fail)
		return fake_blk.fail;
	for (unsigned i = 0; i < r->nr_iov && r->op <= BLK_OP_WRITE; i++) {
		if (r->op == BLK_OP_READ)
			memcpy(r->iov[i].iov_base, fake_blk.data + at, r->iov[i].iov_len);
		else
			memcpy(fake_blk.data + at, r->iov[i].iov_base, r->iov[i].iov_len);
		at += r->iov[i].iov_len;
	}
	if (r->op == BLK_OP_DISCARD || r->op == BLK_OP_ZERO)
		memset(fake_blk.data + at, 0, r->len);
	return 0;
}

static void *fake_blk_run(void *opaque)
{
	struct blk_req *r = opaque;
	int result;

	pthread_mutex_lock(&fake_blk.lock);
	fake_blk.log[fake_blk.nr_log++ % FAKE_BLK_LOG] = r->op;
	result = fake_blk_do(r);
	fake_blk.nr_done++;
	pthread_mutex_unlock(&fake_blk.lock);
	r->done(r, result);
	return NULL;
}

static void fake_blk_start(struct blk_req *r)
{
	pthread_t t;

	pthread_create(&t, NULL, fake_blk_run, r);
	pthread_detach(t);
}

void blk_submit(struct blk *b, struct blk_req *r)
{
	bool hold;

	pthread_mutex_lock(&fake_blk.lock);
	hold = fake_blk.hold;
	if (hold) {
		r->next = fake_blk.held;
		fake_blk.held = r;
	}
	pthread_mutex_unlock(&fake_blk.lock);
	if (!hold)
		fake_blk_start(r);
}

static inline void fake_blk_release(void)
{
	struct blk_req *r, *next;

	pthread_mutex_lock(&fake_blk.lock);
	fake_blk.hold = false;
	r = fake_blk.held;
	fake_blk.held = NULL;
	pthread_mutex_unlock(&fake_blk.lock);
	for (; r; r = next) {
		next = r->next;
		fake_blk_start(r);
	}
}
