/* disk/pack.h - compressed clusters on their way from several threads into one image.
 *
 * For convert.c alone.  A batch is a chunk of the disk, read and compressed by one thread.  Where
 * the format wants its clusters in order, batches wait in a ring until those before them are
 * written; the thread that finds the next one ready writes it and all ready ones behind it.
 * `lock` below is the caller's, the one its tickets are taken under. */
#pragma once

#include "block/blk.h"
#include "disk/team.h"

struct pack;
struct pack_batch;

/* skip_zero: clusters of zeroes are left out. */
int pack_create(struct pack **out, struct blk *dst, uint64_t chunk, unsigned threads,
		bool skip_zero, struct error *err);
void pack_destroy(struct pack *p); /* NULL is fine */

/* With lock held: wait for room, then take the number of the next batch. */
void pack_wait(struct pack *p, pthread_mutex_t *lock, struct disk_team *team);
uint64_t pack_ticket(struct pack *p);

/* Without it. */
struct pack_batch *pack_batch_for(struct pack *p, uint64_t seq, unsigned worker);
uint8_t *pack_batch_data(struct pack_batch *b); /* chunk bytes, to fill */
int pack_batch_fill(struct pack *p, struct pack_batch *b, size_t len, uint64_t off,
		    struct error *err);
int pack_batch_write(struct pack *p, struct pack_batch *b, pthread_mutex_t *lock,
		     struct disk_team *team, struct error *err);
void pack_wake(struct pack *p, pthread_mutex_t *lock, bool failed);
