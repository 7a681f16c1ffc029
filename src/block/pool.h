/* block/pool.h - the threads that run a disk's asynchronous requests.
 *
 * One pool per disk, so that a slow one (a network file system) holds up nobody else.  Only blk.c
 * uses this; blk.h says what blk_submit and blk_drain promise. */
#pragma once

#include "block/blk.h"

struct blk_pool;

int blk_pool_create(struct blk_pool **out, int (*run)(struct blk_req *r), struct error *err);
void blk_pool_destroy(struct blk_pool *p); /* drains; NULL is fine */
void blk_pool_submit(struct blk_pool *p, struct blk_req *r);
void blk_pool_drain(struct blk_pool *p);
