/* disk/cursor.c - see cursor.h. */
#include "disk/cursor.h"

/* Learn the run at c->off. */
static int look(struct disk_cursor *c)
{
	struct blk_map m = {.len = c->end - c->off};
	int r;

	if (c->off < c->run_end)
		return 0;
	if (c->everything) {
		c->run_end = c->end;
		return 0;
	}
	r = blk_map(c->blk, c->off, &m);
	if (r < 0)
		return r;
	c->kind = m.what == BLK_EXT_DATA ? DISK_DATA : DISK_ZERO;
	if (c->top_only && (m.depth || (m.what == BLK_EXT_HOLE && !m.host)))
		c->kind = DISK_BELOW;
	c->run_end = c->off + m.len;
	c->host = m.what == BLK_EXT_DATA && !m.compressed ? m.host : NULL;
	c->host_off = m.host_off;
	return 0;
}

static void go_to(struct disk_cursor *c, uint64_t off)
{
	if (c->host)
		c->host_off += off - c->off;
	c->off = off;
}

static bool continues(const struct disk_cursor *c, const struct disk_piece *p)
{
	return c->host == p->host && (!c->host || c->host_off == p->host_off + c->off - p->off);
}

/* Runs of one kind side by side are one piece; one file when they are side by side there too.  Data
 * take the whole of the units they touch. */
static int gather(struct disk_cursor *c, struct disk_piece *p, uint64_t stop)
{
	while (c->off < stop) {
		uint64_t edge = ALIGN_UP(c->off, c->round);
		int r = look(c);

		if (r < 0)
			return r;
		if (c->kind == p->kind) {
			if (!continues(c, p))
				p->host = NULL;
			go_to(c, MIN(c->run_end, stop));
		} else if (p->kind == DISK_DATA && edge != c->off) {
			p->host = NULL;
			go_to(c, MIN(edge, stop));
		} else {
			break;
		}
	}
	return 0;
}

/* What is not data ends where the unit begins that data are in. */
static int give_back(struct disk_cursor *c, struct disk_piece *p)
{
	uint64_t edge = ALIGN_DOWN(c->off, c->round);

	if (p->kind == DISK_DATA || c->off == c->end || edge == c->off)
		return 0;
	if (edge > p->off) {
		c->off = edge;
		c->run_end = 0; /* look again */
		return 0;
	}
	p->kind = DISK_DATA; /* less than a unit without data */
	p->host = NULL;
	return gather(c, p, MIN(c->end, ALIGN_UP(p->off + 1, c->chunk)));
}

int disk_cursor_next(struct disk_cursor *c, struct disk_piece *p)
{
	uint64_t stop = c->end;
	int r;

	if (c->off >= c->end)
		return 0;
	r = look(c);
	if (r < 0)
		return r;
	*p = (struct disk_piece){
		.off = c->off, .kind = c->kind, .host = c->host, .host_off = c->host_off};
	if (p->kind == DISK_DATA)
		stop = MIN(c->end, ALIGN_UP(c->off + 1, c->chunk));
	r = gather(c, p, stop);
	if (!r)
		r = give_back(c, p);
	p->len = c->off - p->off;
	return r < 0 ? r : 1;
}

int disk_cursor_count(const struct disk_cursor *like, uint64_t *data)
{
	struct disk_cursor c = *like;
	struct disk_piece p;
	int r;

	for (*data = 0; (r = disk_cursor_next(&c, &p)) > 0;)
		*data += p.kind == DISK_DATA ? p.len : 0;
	return r;
}
