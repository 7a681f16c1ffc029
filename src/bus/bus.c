/* bus/bus.c - see bus.h.
 *
 * Two address spaces, each an array of regions sorted by start.  A lookup takes the read lock,
 * finds the region, takes a reference and drops the lock; the callback runs with the reference
 * only.  The registration itself is a reference too, so the last one out, whoever that is, frees
 * the region and wakes the thread that removes it.
 *
 * A thread that removes a region from inside one of its callbacks must not wait for itself.  Each
 * thread therefore keeps the list of calls it is in, on its stack. */
#include "bus/bus.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DOORBELLS = 32 };

struct io_region {
	struct space *space;
	uint64_t start, last; /* both inclusive: a region may end at 2^64 - 1 */
	const struct io_ops *ops;
	void *opaque;
	const char *name;
	unsigned max_size;
	_Atomic unsigned refs; /* one for being registered, one per running callback */
	sem_t *gone;           /* posted when refs reaches zero; set before the first ref drops */
	/* Doorbells that somebody took.  Guarded by bus.bells_lock. */
	struct io_doorbell bells[MAX_DOORBELLS];
	unsigned nr_bells;
};

struct space {
	const char *what;
	pthread_rwlock_t lock; /* guards the next three */
	struct io_region **regions;
	unsigned nr, cap;
};

struct bus {
	struct space pio, mmio;

	pthread_mutex_t bells_lock; /* guards the next two; taken inside a space's lock */
	const struct bus_doorbells *bells;
	void *bells_opaque;
};

struct call {
	const struct io_region *region;
	const struct call *outer;
};
static _Thread_local const struct call *calls;

static void space_init(struct space *s, const char *what)
{
	pthread_rwlockattr_t attr;

	/* The read lock is never taken twice by one thread, so writers need not starve. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&s->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	s->what = what;
}

static void space_fini(struct space *s)
{
	for (unsigned i = 0; i < s->nr; i++)
		free(s->regions[i]);
	free(s->regions);
	pthread_rwlock_destroy(&s->lock);
}

int bus_create(struct bus **out, struct error *err)
{
	struct bus *b = calloc(1, sizeof(*b));

	if (!b)
		return err_errno(err, ENOMEM, "bus");
	space_init(&b->pio, "port");
	space_init(&b->mmio, "address");
	pthread_mutex_init(&b->bells_lock, NULL);
	*out = b;
	return 0;
}

void bus_destroy(struct bus *b)
{
	if (!b)
		return;
	space_fini(&b->pio);
	space_fini(&b->mmio);
	pthread_mutex_destroy(&b->bells_lock);
	free(b);
}

/* ---- doorbells ---- */

/* With bells_lock. */
static void region_offer(struct bus *b, struct io_region *r)
{
	struct io_doorbell all[MAX_DOORBELLS];
	unsigned nr = 0;

	if (b->bells && r->ops->doorbells)
		nr = r->ops->doorbells(r->opaque, all, MAX_DOORBELLS);
	for (unsigned i = 0; i < nr; i++)
		if (b->bells->add(b->bells_opaque, &all[i], r->space == &b->pio,
				  r->start + all[i].off))
			r->bells[r->nr_bells++] = all[i];
}

/* With bells_lock. */
static void region_withdraw(struct bus *b, struct io_region *r)
{
	for (unsigned i = 0; i < r->nr_bells; i++)
		b->bells->del(b->bells_opaque, &r->bells[i], r->space == &b->pio,
			      r->start + r->bells[i].off);
	r->nr_bells = 0;
}

static void space_each(struct bus *b, struct space *s, void (*fn)(struct bus *, struct io_region *))
{
	pthread_rwlock_rdlock(&s->lock);
	pthread_mutex_lock(&b->bells_lock);
	for (unsigned i = 0; i < s->nr; i++)
		fn(b, s->regions[i]);
	pthread_mutex_unlock(&b->bells_lock);
	pthread_rwlock_unlock(&s->lock);
}

void bus_set_doorbells(struct bus *b, const struct bus_doorbells *ops, void *opaque)
{
	space_each(b, &b->pio, region_withdraw);
	space_each(b, &b->mmio, region_withdraw);
	pthread_mutex_lock(&b->bells_lock);
	b->bells = ops;
	b->bells_opaque = opaque;
	pthread_mutex_unlock(&b->bells_lock);
	space_each(b, &b->pio, region_offer);
	space_each(b, &b->mmio, region_offer);
}

/* Index of the first region that ends at or after addr: the one that holds addr, if any does. */
static unsigned space_index(const struct space *s, uint64_t addr)
{
	unsigned lo = 0, hi = s->nr;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (s->regions[mid]->last < addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static int space_insert(struct space *s, struct io_region *r, struct error *err)
{
	unsigned at = space_index(s, r->start);

	if (at < s->nr && s->regions[at]->start <= r->last)
		return err_set(err, EEXIST, "%s: %s range %#llx-%#llx belongs to %s already",
			       r->name, s->what, (unsigned long long)r->start,
			       (unsigned long long)r->last, s->regions[at]->name);
	if (s->nr == s->cap) {
		unsigned cap = MAX(16u, 2 * s->cap);
		struct io_region **p = realloc(s->regions, cap * sizeof(*p));

		if (!p)
			return err_errno(err, ENOMEM, "%s", r->name);
		s->regions = p;
		s->cap = cap;
	}
	memmove(&s->regions[at + 1], &s->regions[at], (s->nr - at) * sizeof(s->regions[0]));
	s->regions[at] = r;
	s->nr++;
	return 0;
}

static int space_add(struct bus *b, struct space *s, const struct io_region *proto,
		     struct io_region **out, struct error *err)
{
	struct io_region *r = malloc(sizeof(*r));
	int ret;

	if (!r)
		return err_errno(err, ENOMEM, "%s", proto->name);
	*r = *proto;
	r->space = s;
	atomic_init(&r->refs, 1);
	pthread_rwlock_wrlock(&s->lock);
	ret = space_insert(s, r, err);
	if (ret == 0) {
		pthread_mutex_lock(&b->bells_lock);
		region_offer(b, r);
		pthread_mutex_unlock(&b->bells_lock);
	}
	pthread_rwlock_unlock(&s->lock);
	if (ret < 0)
		free(r);
	else if (out)
		*out = r;
	return ret;
}

int bus_add_pio(struct bus *b, uint16_t port, uint32_t count, const struct io_ops *ops,
		void *opaque, const char *name, struct io_region **out, struct error *err)
{
	struct io_region r = {
		.start = port,
		.last = (uint64_t)port + count - 1,
		.ops = ops,
		.opaque = opaque,
		.name = name,
		.max_size = ops->max_size ? ops->max_size : 4,
	};

	if (!count || r.last > 0xffff)
		return err_set(err, EINVAL, "%s: %u ports from %#x do not fit", name, count, port);
	return space_add(b, &b->pio, &r, out, err);
}

int bus_add_mmio(struct bus *b, gpa_t gpa, uint64_t size, const struct io_ops *ops, void *opaque,
		 const char *name, struct io_region **out, struct error *err)
{
	struct io_region r = {
		.start = gpa,
		.last = gpa + size - 1,
		.ops = ops,
		.opaque = opaque,
		.name = name,
		.max_size = ops->max_size ? ops->max_size : 8,
	};

	if (!size || r.last < gpa)
		return err_set(err, EINVAL, "%s: %#llx bytes from %#llx do not fit", name,
			       (unsigned long long)size, (unsigned long long)gpa);
	return space_add(b, &b->mmio, &r, out, err);
}

static void region_put(struct io_region *r)
{
	sem_t *gone;

	if (atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
		return;
	gone = r->gone;
	free(r);
	if (gone)
		sem_post(gone);
}

static bool inside_callback_of(const struct io_region *r)
{
	for (const struct call *c = calls; c; c = c->outer)
		if (c->region == r)
			return true;
	return false;
}

void bus_remove(struct bus *b, struct io_region *r)
{
	struct space *s = r->space;
	bool wait = !inside_callback_of(r);
	unsigned at;
	sem_t gone;

	pthread_rwlock_wrlock(&s->lock);
	at = space_index(s, r->start);
	assert(at < s->nr && s->regions[at] == r);
	pthread_mutex_lock(&b->bells_lock);
	region_withdraw(b, r);
	pthread_mutex_unlock(&b->bells_lock);
	s->nr--;
	memmove(&s->regions[at], &s->regions[at + 1], (s->nr - at) * sizeof(s->regions[0]));
	pthread_rwlock_unlock(&s->lock);

	sem_init(&gone, 0, 0);
	r->gone = wait ? &gone : NULL;
	region_put(r);
	while (wait && sem_wait(&gone) < 0)
		assert(errno == EINTR);
	sem_destroy(&gone);
}

enum answer { ANSWER_NOBODY, ANSWER_WHOLE, ANSWER_SPLIT };

/* Who answers [addr, addr+size)?  WHOLE: *out does, alone, and is referenced. */
static enum answer space_find(struct space *s, uint64_t addr, unsigned size, struct io_region **out)
{
	enum answer a = ANSWER_NOBODY;
	uint64_t last = addr + size - 1;
	struct io_region *r;
	unsigned at;

	if (last < addr)
		return ANSWER_SPLIT; /* wraps: the halves find their own */
	pthread_rwlock_rdlock(&s->lock);
	at = space_index(s, addr);
	r = at < s->nr ? s->regions[at] : NULL;
	if (r && r->start <= addr && last <= r->last && size <= r->max_size) {
		atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
		*out = r;
		a = ANSWER_WHOLE;
	} else if (r && r->start <= last) {
		a = ANSWER_SPLIT;
	}
	pthread_rwlock_unlock(&s->lock);
	return a;
}

static uint64_t size_mask(unsigned size)
{
	return ~0ull >> (64 - 8 * size);
}

static uint64_t region_read(struct io_region *r, uint64_t addr, unsigned size)
{
	struct call c = {r, calls};
	uint64_t v = ~0ull;

	calls = &c;
	if (r->ops->read)
		v = r->ops->read(r->opaque, addr - r->start, size);
	calls = c.outer;
	region_put(r);
	return v & size_mask(size);
}

static void region_write(struct io_region *r, uint64_t addr, uint64_t v, unsigned size)
{
	struct call c = {r, calls};

	calls = &c;
	if (r->ops->write)
		r->ops->write(r->opaque, addr - r->start, v & size_mask(size), size);
	calls = c.outer;
	region_put(r);
}

static uint64_t space_read(struct space *s, uint64_t addr, unsigned size)
{
	unsigned half = size / 2;
	struct io_region *r;
	uint64_t low;

	switch (space_find(s, addr, size, &r)) {
	case ANSWER_WHOLE:
		return region_read(r, addr, size);
	case ANSWER_SPLIT:
		/* A region always takes a byte, so a split of one cannot come. */
		low = space_read(s, addr, half);
		return low | space_read(s, addr + half, half) << 8 * half;
	default:
		return size_mask(size);
	}
}

static void space_write(struct space *s, uint64_t addr, uint64_t v, unsigned size)
{
	unsigned half = size / 2;
	struct io_region *r;

	switch (space_find(s, addr, size, &r)) {
	case ANSWER_WHOLE:
		region_write(r, addr, v, size);
		break;
	case ANSWER_SPLIT:
		space_write(s, addr, v, half);
		space_write(s, addr + half, v >> 8 * half, half);
		break;
	default:
		break;
	}
}

uint32_t bus_pio_read(struct bus *b, uint16_t port, unsigned size)
{
	assert(size == 1 || size == 2 || size == 4);
	return (uint32_t)space_read(&b->pio, port, size);
}

void bus_pio_write(struct bus *b, uint16_t port, uint32_t value, unsigned size)
{
	assert(size == 1 || size == 2 || size == 4);
	space_write(&b->pio, port, value, size);
}

uint64_t bus_mmio_read(struct bus *b, gpa_t gpa, unsigned size)
{
	assert(size == 1 || size == 2 || size == 4 || size == 8);
	return space_read(&b->mmio, gpa, size);
}

void bus_mmio_write(struct bus *b, gpa_t gpa, uint64_t value, unsigned size)
{
	assert(size == 1 || size == 2 || size == 4 || size == 8);
	space_write(&b->mmio, gpa, value, size);
}
