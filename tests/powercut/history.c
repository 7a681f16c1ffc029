/* history.c - see history.h. */
#include "history.h"

#include "check.h"

static void *grown(void *p, unsigned n, unsigned *cap, size_t size)
{
	if (n < *cap)
		return p;
	*cap = *cap ? 2 * *cap : 4;
	p = realloc(p, *cap * size);
	CHECK(p);
	return p;
}

void history_grow(struct history *h, uint64_t nr_sectors)
{
	if (nr_sectors > h->cap) {
		h->sector = realloc(h->sector, nr_sectors * sizeof(*h->sector));
		CHECK(h->sector);
		memset(h->sector + h->cap, 0, (nr_sectors - h->cap) * sizeof(*h->sector));
		h->cap = nr_sectors;
	}
	for (uint64_t i = h->nr_sectors; i < nr_sectors; i++)
		if (!h->sector[i].n)
			history_write(h, i, (struct version){0});
	h->nr_sectors = nr_sectors;
}

void history_init(struct history *h, uint64_t nr_sectors)
{
	memset(h, 0, sizeof(*h));
	history_grow(h, nr_sectors);
}

void history_free(struct history *h)
{
	for (uint64_t i = 0; i < h->cap; i++)
		free(h->sector[i].v);
	free(h->sector);
	free(h->flush);
}

void history_write(struct history *h, uint64_t sector, struct version v)
{
	struct sector_history *s = &h->sector[sector];

	s->v = grown(s->v, s->n, &s->cap, sizeof(*s->v));
	s->v[s->n++] = v;
}

void history_flush(struct history *h, unsigned begun, unsigned done)
{
	h->flush = grown(h->flush, h->nr_flushes, &h->flush_cap, sizeof(*h->flush));
	h->flush[h->nr_flushes++] = (struct flush){begun, done};
}

uint64_t history_now(const struct history *h, uint64_t sector)
{
	const struct sector_history *s = &h->sector[sector];

	return s->v[s->n - 1].id;
}

/* Everything done by then had been flushed when the power went. */
static unsigned flushed_at(const struct history *h, unsigned cut)
{
	unsigned time = 0;

	for (unsigned i = 0; i < h->nr_flushes && h->flush[i].done <= cut; i++)
		time = h->flush[i].begun;
	return time;
}

bool history_allows(const struct history *h, uint64_t sector, unsigned cut, uint64_t id)
{
	const struct sector_history *s = &h->sector[sector];
	unsigned sure = flushed_at(h, cut);

	for (unsigned i = s->n; i-- > 0;) {
		if (s->v[i].begun < cut || !s->v[i].begun) {
			if (s->v[i].id == id)
				return true;
			if (s->v[i].done <= sure && !s->v[i].weak)
				return false;
		}
	}
	return false;
}
