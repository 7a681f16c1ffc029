/* disk/compare.c - see compare.h. */
#include "disk/compare.h"

#include "disk/cursor.h"
#include "disk/zero.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 20, BUFFER_ALIGN = 4096 };

struct side {
	struct blk *blk;
	uint64_t size, run_end; /* the run at off ends here */
	struct blk_map run;
	uint64_t run_off;
};

struct compare {
	struct disk_compare *o;
	struct disk_team team;
	pthread_mutex_t lock; /* guards all below, and o's results */
	struct side side[2];
	uint64_t off, end;
};

/* What to do with [off, off+len). */
struct task {
	uint64_t off, len;
	bool data[2]; /* false: zeroes */
};

static int look(struct side *s, uint64_t off)
{
	int r;

	if (off < s->run_end)
		return 0;
	s->run_off = off;
	if (off >= s->size) { /* behind the end of the shorter one */
		s->run = (struct blk_map){.len = INT64_MAX - off, .what = BLK_EXT_HOLE};
		s->run_end = INT64_MAX;
		return 0;
	}
	s->run.len = s->size - off;
	r = blk_map(s->blk, off, &s->run);
	s->run_end = off + s->run.len;
	return r;
}

static bool same_place(const struct side *s, uint64_t off)
{
	const struct side *a = &s[0], *b = &s[1];

	if (a->run.what != BLK_EXT_DATA || b->run.what != BLK_EXT_DATA)
		return false;
	if (!a->run.host || !b->run.host || !blk_same_file(a->run.host, b->run.host))
		return false;
	return a->run.host_off + off - a->run_off == b->run.host_off + off - b->run_off;
}

static bool same_allocation(const struct side *s)
{
	return (s[0].run.what == BLK_EXT_HOLE) == (s[1].run.what == BLK_EXT_HOLE);
}

static void note_difference(struct compare *c, uint64_t off, uint64_t count, bool map)
{
	struct disk_compare *o = c->o;

	o->nr_different += count;
	if (o->same || off < o->first) {
		o->first = off;
		o->map_differs = map;
	}
	o->same = false;
}

/* 1: *t has to be read; 0: the end.  Lock held. */
static int next_task(struct compare *c, struct task *t)
{
	while (c->off < c->end && (c->o->same || c->o->count_all)) {
		uint64_t stop;
		int r = look(&c->side[0], c->off);

		if (!r)
			r = look(&c->side[1], c->off);
		if (r < 0)
			return r;
		stop = MIN(c->end, MIN(c->side[0].run_end, c->side[1].run_end));
		if (c->o->strict && !same_allocation(c->side)) {
			note_difference(c, c->off, 0, true);
			if (!c->o->count_all)
				return 0;
		}
		t->off = c->off;
		for (int i = 0; i < 2; i++)
			t->data[i] = c->side[i].run.what == BLK_EXT_DATA;
		if ((!t->data[0] && !t->data[1]) || same_place(c->side, c->off)) {
			c->off = stop;
			continue;
		}
		c->off = MIN(stop, ALIGN_UP(t->off + 1, CHUNK));
		t->len = c->off - t->off;
		return 1;
	}
	return 0;
}

static int read_side(struct compare *c, int i, const struct task *t, uint8_t *buf,
		     struct error *err)
{
	int r;

	if (!t->data[i])
		return 0;
	r = blk_read(c->side[i].blk, buf, t->len, t->off);
	return r < 0 ? err_errno(err, -r, "cannot read '%s' at byte %llu", blk_path(c->side[i].blk),
				 (unsigned long long)t->off)
		     : 0;
}

static void find_difference(struct compare *c, const struct task *t, const uint8_t *a,
			    const uint8_t *b)
{
	uint64_t first = UINT64_MAX, count = 0;

	for (uint64_t i = 0; i < t->len; i++) {
		if ((t->data[0] ? a[i] : 0) == (t->data[1] ? b[i] : 0))
			continue;
		count++;
		first = MIN(first, t->off + i);
	}
	pthread_mutex_lock(&c->lock);
	note_difference(c, first, count, false);
	pthread_mutex_unlock(&c->lock);
}

static int do_task(struct compare *c, const struct task *t, uint8_t *a, uint8_t *b,
		   struct error *err)
{
	bool same;
	int r = read_side(c, 0, t, a, err);

	if (!r)
		r = read_side(c, 1, t, b, err);
	if (r < 0)
		return r;
	if (t->data[0] && t->data[1])
		same = !memcmp(a, b, t->len);
	else
		same = disk_is_zero(t->data[0] ? a : b, t->len);
	if (!same)
		find_difference(c, t, a, b);
	disk_team_advance(&c->team, t->len);
	return 0;
}

static int take_task(struct compare *c, struct task *t, struct error *err)
{
	int r = 0;

	pthread_mutex_lock(&c->lock);
	if (!disk_team_stopped(&c->team))
		r = next_task(c, t);
	if (r < 0)
		err_errno(err, -r, "cannot map at byte %llu", (unsigned long long)c->off);
	pthread_mutex_unlock(&c->lock);
	return r;
}

static int work(void *opaque, struct error *err)
{
	struct compare *c = opaque;
	uint8_t *a = aligned_alloc(BUFFER_ALIGN, CHUNK), *b = aligned_alloc(BUFFER_ALIGN, CHUNK);
	struct task t;
	int r = a && b ? 0 : err_errno(err, ENOMEM, "compare");

	while (!r && (r = take_task(c, &t, err)) > 0)
		r = do_task(c, &t, a, b, err);
	free(a);
	free(b);
	return r;
}

static int count_data(struct blk *b, uint64_t *data)
{
	struct disk_cursor cursor = {
		.blk = b, .end = blk_size(b), .chunk = CHUNK, .round = BUFFER_ALIGN};

	return disk_cursor_count(&cursor, data);
}

int disk_compare(struct blk *a, struct blk *b, struct disk_compare *o, struct error *err)
{
	struct compare c = {.o = o};
	struct blk *const blk[2] = {a, b};
	uint64_t total = 0;
	int r = 0;

	for (int i = 0; i < 2; i++)
		c.side[i] = (struct side){.blk = blk[i], .size = blk_size(blk[i])};
	c.end = MAX(c.side[0].size, c.side[1].size);
	o->same = true;
	o->first = UINT64_MAX;
	o->nr_different = 0;
	o->map_differs = false;
	o->size_differs = c.side[0].size != c.side[1].size;
	if (o->job.progress && (r = count_data(a, &total)) < 0)
		return err_errno(err, -r, "cannot map '%s'", blk_path(a));
	pthread_mutex_init(&c.lock, NULL);
	disk_team_init(&c.team, &o->job, total);
	r = disk_team_run(&c.team, work, &c, err);
	pthread_mutex_destroy(&c.lock);
	disk_team_fini(&c.team);
	return r;
}
