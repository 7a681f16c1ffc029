/* disk/pack.c - see pack.h. */
#include "disk/pack.h"

#include "disk/zero.h"

#include <errno.h>
#include <stdlib.h>

enum { BUFFER_ALIGN = 4096 };

/* What became of one cluster. */
struct unit {
	enum { UNIT_ZERO, UNIT_PLAIN, UNIT_PACKED } kind;
	size_t at, len; /* in packed */
};

struct pack_batch {
	uint8_t *data, *packed;
	struct unit *unit;
	unsigned nr;
	size_t len;
	uint64_t off;
	bool ready;
};

struct pack {
	struct blk *dst;
	size_t cluster, chunk, bound;
	bool in_order, skip_zero;
	unsigned nr_batches;
	pthread_cond_t room;

	/* guarded by the caller's lock */
	uint64_t given, written; /* batches */
	bool draining, failed;

	struct pack_batch batch[];
};

static int batch_init(struct pack *p, struct pack_batch *b)
{
	unsigned n = (unsigned)(p->chunk / p->cluster);

	b->data = aligned_alloc(BUFFER_ALIGN, ALIGN_UP(p->chunk, BUFFER_ALIGN));
	b->packed = malloc(n * p->bound);
	b->unit = calloc(n, sizeof(b->unit[0]));
	return b->data && b->packed && b->unit ? 0 : -ENOMEM;
}

static void batch_fini(struct pack_batch *b)
{
	free(b->data);
	free(b->packed);
	free(b->unit);
}

int pack_create(struct pack **out, struct blk *dst, uint64_t chunk, unsigned threads,
		bool skip_zero, struct error *err)
{
	bool in_order = blk_packs_in_order(dst);
	unsigned n = in_order ? 3 * threads + 1 : threads;
	struct pack *p = calloc(1, sizeof(*p) + n * sizeof(p->batch[0]));
	int r = p ? 0 : -ENOMEM;

	if (p) {
		p->dst = dst;
		p->chunk = chunk;
		p->cluster = blk_info(dst)->cluster;
		p->bound = blk_pack_bound(dst);
		p->in_order = in_order;
		p->skip_zero = skip_zero;
		p->nr_batches = n;
		pthread_cond_init(&p->room, NULL);
	}
	for (unsigned i = 0; i < n && !r; i++)
		r = batch_init(p, &p->batch[i]);
	if (r < 0) {
		pack_destroy(p);
		return err_errno(err, -r, "convert");
	}
	*out = p;
	return 0;
}

void pack_destroy(struct pack *p)
{
	if (!p)
		return;
	for (unsigned i = 0; i < p->nr_batches; i++)
		batch_fini(&p->batch[i]);
	pthread_cond_destroy(&p->room);
	free(p);
}

void pack_wait(struct pack *p, pthread_mutex_t *lock, struct disk_team *team)
{
	while (p->in_order && p->given - p->written >= p->nr_batches && !p->failed &&
	       !disk_team_stopped(team))
		pthread_cond_wait(&p->room, lock);
}

uint64_t pack_ticket(struct pack *p)
{
	return p->given++;
}

struct pack_batch *pack_batch_for(struct pack *p, uint64_t seq, unsigned worker)
{
	return &p->batch[p->in_order ? seq % p->nr_batches : worker];
}

uint8_t *pack_batch_data(struct pack_batch *b)
{
	return b->data;
}

int pack_batch_fill(struct pack *p, struct pack_batch *b, size_t len, uint64_t off,
		    struct error *err)
{
	size_t at = 0;

	b->len = len;
	b->off = off;
	b->nr = 0;
	for (size_t done = 0; done < len; done += p->cluster, b->nr++) {
		size_t step = MIN(len - done, p->cluster);
		struct unit *u = &b->unit[b->nr];
		int r;

		*u = (struct unit){.kind = UNIT_ZERO};
		if (p->skip_zero && disk_is_zero(b->data + done, step))
			continue;
		u->at = at;
		u->kind = UNIT_PACKED;
		r = blk_pack(p->dst, b->data + done, step, b->packed + at, p->bound, &u->len);
		if (r == -E2BIG)
			u->kind = UNIT_PLAIN;
		else if (r < 0)
			return err_errno(err, -r, "cannot compress for '%s'", blk_path(p->dst));
		else
			at += u->len;
	}
	return 0;
}

/* Clusters side by side that did not get smaller go out in one write. */
static size_t plain_run(const struct pack *p, const struct pack_batch *b, unsigned i)
{
	size_t start = i * p->cluster;

	while (i < b->nr && b->unit[i].kind == UNIT_PLAIN)
		i++;
	return MIN(i * p->cluster, b->len) - start;
}

static int write_batch(struct pack *p, const struct pack_batch *b, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < b->nr && !r;) {
		const struct unit *u = &b->unit[i];
		size_t skip = i * p->cluster, len = MIN(p->cluster, b->len - skip);

		if (u->kind == UNIT_PLAIN) {
			len = plain_run(p, b, i);
			r = blk_write(p->dst, b->data + skip, len, b->off + skip);
		} else if (u->kind == UNIT_PACKED) {
			r = blk_write_packed(p->dst, b->packed + u->at, u->len, len, b->off + skip);
		}
		if (r < 0)
			return err_errno(err, -r, "cannot write '%s' at byte %llu",
					 blk_path(p->dst), (unsigned long long)(b->off + skip));
		i += (unsigned)((len + p->cluster - 1) / p->cluster);
	}
	return r;
}

/* Lock held; writes whatever is next and ready. */
static int drain(struct pack *p, pthread_mutex_t *lock, struct disk_team *team, struct error *err)
{
	struct pack_batch *b = &p->batch[p->written % p->nr_batches];
	int r = 0;

	while (b->ready && !r && !disk_team_stopped(team)) {
		pthread_mutex_unlock(lock);
		r = write_batch(p, b, err);
		pthread_mutex_lock(lock);
		b->ready = false;
		p->written++;
		pthread_cond_broadcast(&p->room);
		b = &p->batch[p->written % p->nr_batches];
	}
	return r;
}

int pack_batch_write(struct pack *p, struct pack_batch *b, pthread_mutex_t *lock,
		     struct disk_team *team, struct error *err)
{
	int r = 0;

	if (!p->in_order)
		return write_batch(p, b, err);
	pthread_mutex_lock(lock);
	b->ready = true;
	if (!p->draining) {
		p->draining = true;
		r = drain(p, lock, team, err);
		p->draining = false;
	}
	pthread_mutex_unlock(lock);
	return r;
}

void pack_wake(struct pack *p, pthread_mutex_t *lock, bool failed)
{
	pthread_mutex_lock(lock);
	p->failed |= failed;
	pthread_cond_broadcast(&p->room);
	pthread_mutex_unlock(lock);
}
