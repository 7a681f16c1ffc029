/* recover/util.c - memory that lives as long as the recovery, growing texts, sets of ranges. */
#include "recover/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_BLOCK = 256 << 10 };

struct arena_block {
	struct arena_block *next;
	size_t used, cap;
	_Alignas(16) uint8_t data[];
};

void *arena_alloc(struct arena *a, size_t size)
{
	struct arena_block *b = a->block;

	size = ALIGN_UP(size, 16);
	if (!b || b->cap - b->used < size) {
		size_t cap = MAX(size, (size_t)ARENA_BLOCK);

		b = calloc(1, sizeof(*b) + cap);
		if (!b)
			return NULL;
		b->cap = cap;
		b->next = a->block;
		a->block = b;
	}
	b->used += size;
	return b->data + b->used - size;
}

char *arena_text(struct arena *a, const char *text, size_t len)
{
	char *s = arena_alloc(a, len + 1);

	if (s)
		memcpy(s, text, len);
	return s;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
	va_list ap;
	char *tmp = NULL, *s = NULL;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&tmp, fmt, ap);
	va_end(ap);
	if (n >= 0) {
		s = arena_text(a, tmp, (size_t)n);
		free(tmp);
	}
	return s;
}

void arena_fini(struct arena *a)
{
	struct arena_block *b = a->block, *next;

	for (; b; b = next) {
		next = b->next;
		free(b);
	}
	a->block = NULL;
}

bool array_room(void *array_pointer, size_t n, size_t *cap, size_t size)
{
	void **array = array_pointer, *grown;
	size_t want;

	if (n < *cap)
		return true;
	want = MAX((size_t)16, *cap + *cap / 2);
	grown = realloc(*array, want * size);
	if (!grown)
		return false;
	*array = grown;
	*cap = want;
	return true;
}

int text_add(struct text *t, const char *fmt, ...)
{
	char *more = NULL, *grown;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&more, fmt, ap);
	va_end(ap);
	if (n < 0)
		return -1;
	if (t->len + (size_t)n + 1 > t->cap) {
		size_t cap = MAX(t->cap * 2, t->len + (size_t)n + 1);

		grown = realloc(t->s, cap);
		if (!grown) {
			free(more);
			return -1;
		}
		t->s = grown;
		t->cap = cap;
	}
	memcpy(t->s + t->len, more, (size_t)n + 1);
	t->len += (size_t)n;
	free(more);
	return 0;
}

void text_fini(struct text *t)
{
	free(t->s);
	*t = (struct text){0};
}

/* ---- sets of ranges ---- */

bool spans_add(struct spans *s, uint64_t start, uint64_t end)
{
	if (s->n && s->v[s->n - 1].end == start) {
		s->v[s->n - 1].end = end;
		return true;
	}
	if (!array_room(&s->v, s->n, &s->cap, sizeof(*s->v)))
		return false;
	s->v[s->n++] = (struct span){start, end};
	return true;
}

static int span_order(const void *a, const void *b)
{
	const struct span *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

void spans_settle(struct spans *s)
{
	size_t n = 0;

	if (!s->n)
		return;
	qsort(s->v, s->n, sizeof(*s->v), span_order);
	for (size_t i = 1; i < s->n; i++) {
		if (s->v[i].start <= s->v[n].end)
			s->v[n].end = MAX(s->v[n].end, s->v[i].end);
		else
			s->v[++n] = s->v[i];
	}
	s->n = n + 1;
}

bool spans_at(const struct spans *s, uint64_t off, uint64_t *end)
{
	size_t lo = 0, hi = s->n;

	while (lo < hi) { /* the first that ends behind off */
		size_t mid = (lo + hi) / 2;

		if (s->v[mid].end <= off)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == s->n) {
		*end = UINT64_MAX;
		return false;
	}
	*end = s->v[lo].start <= off ? s->v[lo].end : s->v[lo].start;
	return s->v[lo].start <= off;
}

void spans_fini(struct spans *s)
{
	free(s->v);
	*s = (struct spans){0};
}

void segments_fini(struct segments *s)
{
	for (size_t i = 0; i < s->n; i++) {
		free(s->v[i].hits.v);
		spans_fini(&s->v[i].bad);
	}
	free(s->v);
	*s = (struct segments){0};
}
