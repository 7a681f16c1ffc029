/* block/vhdx/log.c - the log: what is to be written to the tables stands there first.
 *
 * An entry (2.3.1) is whole sectors of 4 KiB in a ring: a header, descriptors, and a sector of data
 * for each page it changes.  Its checksum and sequence number tell whether it is all there.  The
 * entry with the greatest number, and those before it back to its "tail", are what has to be done
 * (again) when the file is opened.
 *
 * Writing: a batch goes out in groups of entries that take at most half of the ring each, so that
 * the group before is whole until this one is; a flush after it; then the pages go to their places;
 * and a flush before the next group, so that a group never needs those before it. */
#include "block/vhdx/vhdx.h"

#include "base/error.h"
#include "base/log.h"
#include "block/iov.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static struct log_component log_vhdx = LOG_COMPONENT("vhdx");

enum {
	LOG_SECTOR = 4096,
	ENTRY_LENGTH = 8,
	ENTRY_TAIL = 12,
	ENTRY_SEQUENCE = 16,
	ENTRY_COUNT = 24,
	ENTRY_LOG = 32,
	ENTRY_FLUSHED = 48,
	ENTRY_LAST = 56,
	ENTRY_HEADER = 64,

	DESC_TRAILING = 4,
	DESC_LEADING = 8,
	DESC_ZERO_LENGTH = 8,
	DESC_OFFSET = 16,
	DESC_SEQUENCE = 24,
	DESC_LEN = 32,

	DATA_HIGH = 4,
	DATA_BYTES = 8,
	DATA_LOW = 4092,
	DATA_LEN = 4084,
};

/* ---- what is to be done ---- */

/* A page of data, or zeroes. */
struct change {
	uint64_t off, len;
	uint8_t *data; /* len is LOG_SECTOR then */
};

struct replay {
	struct blk *file; /* below */
	struct change *change;
	unsigned n, cap;
	uint64_t low, high; /* all of them lie in here */
	uint64_t file_size; /* what the file must have at least */
};

enum { CHANGES_MAX = 65536 }; /* 256 MiB of pages */

static int add_change(struct replay *p, uint64_t off, uint64_t len, const uint8_t *data)
{
	struct change *c;

	if (p->n == CHANGES_MAX)
		return -EFBIG;
	if (p->n == p->cap) {
		p->cap = p->cap ? 2 * p->cap : 64;
		c = realloc(p->change, p->cap * sizeof(*c));
		if (!c)
			return -ENOMEM;
		p->change = c;
	}
	c = &p->change[p->n];
	*c = (struct change){off, len, data ? malloc(LOG_SECTOR) : NULL};
	if (data && !c->data)
		return -ENOMEM;
	if (data)
		memcpy(c->data, data, LOG_SECTOR);
	p->low = p->n ? MIN(p->low, off) : off;
	p->high = MAX(p->high, off + len);
	p->n++;
	return 0;
}

static void replay_free(struct replay *p)
{
	for (unsigned i = 0; i < p->n; i++)
		free(p->change[i].data);
	free(p->change);
	free(p);
}

/* ---- reading entries ---- */

struct entry {
	uint64_t at, sequence, flushed, last; /* at: in the ring */
	uint32_t len, tail, count;
};

static int ring_read(const struct vhdx *v, uint64_t at, uint8_t *buf, uint64_t len)
{
	uint64_t first = MIN(len, v->log.len - at);
	int r = blk_read(v->file, buf, first, v->log.off + at);

	return r < 0 || first == len ? r : blk_read(v->file, buf + first, len - first, v->log.off);
}

static uint64_t descriptor_sectors(uint64_t count)
{
	return (ENTRY_HEADER + count * DESC_LEN + LOG_SECTOR - 1) / LOG_SECTOR;
}

static bool parse_header(const struct vhdx *v, const uint8_t *h, uint64_t at, struct entry *e)
{
	*e = (struct entry){.at = at,
			    .sequence = le64_load(h + ENTRY_SEQUENCE),
			    .flushed = le64_load(h + ENTRY_FLUSHED),
			    .last = le64_load(h + ENTRY_LAST),
			    .len = le32_load(h + ENTRY_LENGTH),
			    .tail = le32_load(h + ENTRY_TAIL),
			    .count = le32_load(h + ENTRY_COUNT)};
	return !memcmp(h, "loge", 4) && e->sequence && e->len && e->len % LOG_SECTOR == 0 &&
	       e->len <= v->log.len && e->tail % LOG_SECTOR == 0 && e->tail < v->log.len &&
	       descriptor_sectors(e->count) * LOG_SECTOR <= e->len &&
	       !memcmp(h + ENTRY_LOG, v->head + HEAD_LOG, ID_LEN);
}

static bool descriptors_good(const uint8_t *buf, const struct entry *e)
{
	uint64_t data = descriptor_sectors(e->count);

	for (uint32_t i = 0; i < e->count; i++) {
		const uint8_t *d = buf + ENTRY_HEADER + i * DESC_LEN, *s;

		if (le64_load(d + DESC_SEQUENCE) != e->sequence ||
		    le64_load(d + DESC_OFFSET) % LOG_SECTOR)
			return false;
		if (!memcmp(d, "zero", 4)) {
			if (le64_load(d + DESC_ZERO_LENGTH) % LOG_SECTOR)
				return false;
			continue;
		}
		s = buf + data++ * LOG_SECTOR;
		if (memcmp(d, "desc", 4) || data * LOG_SECTOR > e->len || memcmp(s, "data", 4) ||
		    le32_load(s + DATA_HIGH) != e->sequence >> 32 ||
		    le32_load(s + DATA_LOW) != (uint32_t)e->sequence)
			return false;
	}
	return true;
}

/* The entry at `at`, whole and good; its bytes in *buf (to be freed). */
static bool read_entry(const struct vhdx *v, uint64_t at, struct entry *e, uint8_t **buf)
{
	uint8_t h[ENTRY_HEADER];
	bool good;

	*buf = NULL;
	if (ring_read(v, at, h, sizeof(h)) < 0 || !parse_header(v, h, at, e))
		return false;
	*buf = malloc(e->len);
	good = *buf && ring_read(v, at, *buf, e->len) == 0 && vhdx_sealed(*buf, e->len, "loge") &&
	       descriptors_good(*buf, e);
	if (!good) {
		free(*buf);
		*buf = NULL;
	}
	return good;
}

/* Entries one behind the other with numbers without a gap, from `at` on; 2.3.2: they count when the
 * last one's tail is one of them. */
struct sequence {
	uint64_t at, len;      /* in the ring */
	uint64_t tail, number; /* of its last entry */
	uint64_t flushed, last;
};

static bool read_sequence(const struct vhdx *v, uint64_t at, struct sequence *s)
{
	struct entry e;
	uint8_t *buf;

	*s = (struct sequence){.at = at};
	while (s->len < v->log.len && read_entry(v, (at + s->len) % v->log.len, &e, &buf)) {
		free(buf);
		if (s->number && e.sequence != s->number + 1)
			break;
		s->len += e.len;
		s->number = e.sequence;
		s->tail = e.tail;
		s->flushed = e.flushed;
		s->last = e.last;
	}
	return s->len && (s->tail + v->log.len - at) % v->log.len < s->len;
}

static bool find_sequence(const struct vhdx *v, struct sequence *best)
{
	struct sequence s;
	uint64_t step;

	*best = (struct sequence){0};
	for (uint64_t at = 0; at < v->log.len; at += step) {
		bool good = read_sequence(v, at, &s);

		step = s.len ? s.len : LOG_SECTOR;
		if (good && s.number > best->number)
			*best = s;
	}
	return best->number;
}

static int take_entry(struct replay *p, const uint8_t *buf, const struct entry *e)
{
	uint64_t data = descriptor_sectors(e->count);
	uint8_t page[LOG_SECTOR];
	int r = 0;

	for (uint32_t i = 0; i < e->count && !r; i++) {
		const uint8_t *d = buf + ENTRY_HEADER + i * DESC_LEN;
		uint64_t off = le64_load(d + DESC_OFFSET), len = le64_load(d + DESC_ZERO_LENGTH);

		if (!memcmp(d, "zero", 4)) {
			if (!range_inside(off, len, MAX(e->last, blk_size(p->file))))
				return -EINVAL;
			r = len ? add_change(p, off, len, NULL) : 0;
			continue;
		}
		if (!range_inside(off, LOG_SECTOR, MAX(e->last, blk_size(p->file))))
			return -EINVAL;
		memcpy(page, d + DESC_LEADING, DATA_BYTES);
		memcpy(page + DATA_BYTES, buf + data++ * LOG_SECTOR + DATA_BYTES, DATA_LEN);
		memcpy(page + DATA_LOW, d + DESC_TRAILING, 4);
		r = add_change(p, off, LOG_SECTOR, page);
	}
	return r;
}

static int take_sequence(const struct vhdx *v, const struct sequence *s, struct replay *p)
{
	uint64_t left = s->at + s->len - (s->tail < s->at ? s->tail + v->log.len : s->tail);
	uint64_t at = s->tail;
	int r = 0;

	while (left && !r) {
		struct entry e;
		uint8_t *buf;

		if (!read_entry(v, at, &e, &buf) || e.len > left) {
			free(buf);
			return -EIO;
		}
		r = take_entry(p, buf, &e);
		free(buf);
		at = (at + e.len) % v->log.len;
		left -= e.len;
	}
	p->file_size = MAX(s->flushed, s->last);
	return r;
}

/* ---- doing it in memory ---- */

/* Laid over the file: what the log says, else what the file says. */
static void show_change(const struct change *c, const struct iovec *iov, unsigned n, uint64_t off)
{
	for (unsigned i = 0; i < n; off += iov[i++].iov_len) {
		uint64_t from = MAX(off, c->off), to = MIN(off + iov[i].iov_len, c->off + c->len);

		if (from >= to)
			continue;
		if (c->data)
			memcpy((char *)iov[i].iov_base + (from - off), c->data + (from - c->off),
			       to - from);
		else
			memset((char *)iov[i].iov_base + (from - off), 0, to - from);
	}
}

static int replayed_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			  uint64_t off)
{
	const struct replay *p = b->priv;
	uint64_t size = blk_size(p->file), have = off < size ? MIN(len, size - off) : 0;
	struct iov_walk walk = {iov, n, 0};
	int r = 0;

	if (have == len) {
		r = blk_readv(p->file, iov, n, off);
	} else {
		for (uint64_t done = 0; done < have && !r;) {
			struct iovec part[16];
			uint64_t step = have - done;
			unsigned nr = iov_peek(&walk, part, ARRAY_SIZE(part), &step);

			r = blk_readv(p->file, part, nr, off + done);
			iov_advance(&walk, step);
			done += step;
		}
		iov_zero(&walk, len - have);
	}
	for (unsigned i = 0; i < p->n && !r && off < p->high && off + len > p->low; i++)
		show_change(&p->change[i], iov, n, off);
	return r;
}

static void replayed_close(struct blk *b)
{
	replay_free(b->priv);
}

static const struct blk_format replayed_format = {
	.name = "vhdx-replayed",
	.parallel = true,
	.readv = replayed_readv,
	.close = replayed_close,
};

static int replay_in_memory(struct vhdx *v, struct replay *p, struct error *err)
{
	struct blk_info info = {.size = MAX(blk_size(p->file), p->file_size), .block_size = 512};
	int r = blk_wrap(&v->file, &replayed_format, p, &info,
			 BLK_READONLY | BLK_FILE | BLK_NO_POOL, err);

	if (r < 0)
		replay_free(p);
	return r;
}

/* ---- doing it in the file ---- */

static int apply(const struct replay *p)
{
	int r = 0;

	if (blk_size(p->file) < p->file_size)
		r = blk_resize(p->file, p->file_size);
	for (unsigned i = 0; i < p->n && !r; i++) {
		const struct change *c = &p->change[i];

		r = c->data ? blk_write(p->file, c->data, c->len, c->off)
			    : blk_write_zeroes(p->file, c->off, c->len, true);
	}
	return r < 0 ? r : blk_flush(p->file);
}

static int replay_in_file(struct blk *b, struct vhdx *v, struct replay *p, struct error *err)
{
	int r = apply(p);

	replay_free(p);
	if (!r)
		r = vhdx_log_end(v);
	return r < 0 ? err_errno(err, -r, "'%s': its log cannot be replayed", blk_path(b)) : 0;
}

static int replay_sequence(struct blk *b, struct vhdx *v, const struct sequence *s,
			   struct error *err)
{
	struct replay *p = calloc(1, sizeof(*p));
	int r = p ? 0 : -ENOMEM;

	if (p)
		p->file = b->file;
	if (!r && s->flushed > blk_size(b->file)) {
		replay_free(p);
		return err_set(err, EINVAL,
			       "'%s' is shorter than when its log was written (%" PRIu64
			       " bytes): its end is lost",
			       blk_path(b), s->flushed);
	}
	if (!r)
		r = s->last > INT64_MAX / 2 ? -EINVAL : take_sequence(v, s, p);
	if (r < 0) {
		if (p)
			replay_free(p);
		return err_errno(err, -r, "'%s': its log cannot be replayed", blk_path(b));
	}
	log_info(&log_vhdx, "%s: replaying %u changes of its log%s", blk_path(b), p->n,
		 b->flags & BLK_READONLY ? ", in memory" : "");
	return b->flags & BLK_READONLY ? replay_in_memory(v, p, err) : replay_in_file(b, v, p, err);
}

int vhdx_replay(struct blk *b, struct vhdx *v, struct error *err)
{
	struct sequence s;

	v->file = b->file;
	if (id_is_zero(v->head + HEAD_LOG) || !find_sequence(v, &s))
		return 0;
	v->was_dirty = true;
	return replay_sequence(b, v, &s, err);
}

void vhdx_replay_end(struct blk *b, struct vhdx *v)
{
	if (v->file != b->file)
		blk_close(v->file);
	v->file = b->file;
}

/* ---- writing ---- */

int vhdx_log_start(struct vhdx *v)
{
	int r = id_random(v->head + HEAD_LOG);

	v->log_head = 0;
	v->log_sequence = 1;
	return r < 0 ? r : vhdx_write_head(v);
}

int vhdx_log_end(struct vhdx *v)
{
	int r = blk_flush(v->file);

	memset(v->head + HEAD_LOG, 0, ID_LEN);
	return r < 0 ? r : vhdx_write_head(v);
}

static int ring_write(const struct vhdx *v, uint64_t at, const uint8_t *buf, uint64_t len)
{
	uint64_t first = MIN(len, v->log.len - at);
	int r = blk_write(v->file, buf, first, v->log.off + at);

	return r < 0 || first == len ? r : blk_write(v->file, buf + first, len - first, v->log.off);
}

static void put_page(const struct vhdx *v, uint8_t *d, uint8_t *s, const struct tables_copy *c)
{
	memcpy(d, "desc", 4);
	memcpy(d + DESC_TRAILING, c->data + DATA_LOW, 4);
	memcpy(d + DESC_LEADING, c->data, DATA_BYTES);
	le64_store(d + DESC_OFFSET, c->off);
	le64_store(d + DESC_SEQUENCE, v->log_sequence);
	memcpy(s, "data", 4);
	le32_store(s + DATA_HIGH, (uint32_t)(v->log_sequence >> 32));
	memcpy(s + DATA_BYTES, c->data + DATA_BYTES, DATA_LEN);
	le32_store(s + DATA_LOW, (uint32_t)v->log_sequence);
}

static int write_entry(struct vhdx *v, const struct tables_copy *const *page, unsigned n)
{
	uint64_t sectors = descriptor_sectors(n) + n, len = sectors * LOG_SECTOR;
	uint8_t *e = calloc(sectors, LOG_SECTOR);
	int r;

	if (!e)
		return -ENOMEM;
	memcpy(e, "loge", 4);
	le32_store(e + ENTRY_LENGTH, (uint32_t)len);
	le32_store(e + ENTRY_TAIL, (uint32_t)v->log_head);
	le64_store(e + ENTRY_SEQUENCE, v->log_sequence);
	le32_store(e + ENTRY_COUNT, n);
	memcpy(e + ENTRY_LOG, v->head + HEAD_LOG, ID_LEN);
	le64_store(e + ENTRY_FLUSHED, blk_size(v->file));
	le64_store(e + ENTRY_LAST, blk_size(v->file));
	for (unsigned i = 0; i < n; i++)
		put_page(v, e + ENTRY_HEADER + i * DESC_LEN,
			 e + (descriptor_sectors(n) + i) * LOG_SECTOR, page[i]);
	vhdx_seal(e, len);
	r = ring_write(v, v->log_head, e, len);
	free(e);
	if (!r)
		r = blk_flush(v->file);
	v->log_head = (v->log_head + len) % v->log.len;
	v->log_sequence++;
	return r;
}

/* As one entry, so all of them or none; then to their places. */
static int write_group(struct vhdx *v, const struct tables_copy *const *page, unsigned n)
{
	int r = write_entry(v, page, n);

	for (unsigned i = 0; i < n && !r; i++)
		r = blk_write(v->file, page[i]->data, page[i]->len, page[i]->off);
	return r;
}

static bool in_table(const struct vhdx *v, const struct tables_copy *c)
{
	return c->off >= v->bat.off && c->off - v->bat.off < v->bat.len;
}

/* Bitmaps before the table: bits of blocks that the table does not say are partial mean nothing. */
static void in_order(const struct vhdx *v, const struct tables_batch *batch,
		     const struct tables_copy **page)
{
	unsigned n = 0;

	for (int table = 0; table < 2; table++)
		for (unsigned i = 0; i < batch->n; i++)
			if (in_table(v, &batch->copy[i]) == table)
				page[n++] = &batch->copy[i];
}

int vhdx_log_commit(struct grid *g, const struct tables_batch *batch)
{
	struct vhdx *v = g->priv;
	unsigned most = (unsigned)(v->log.len / LOG_SECTOR / 2), step;
	const struct tables_copy **page = calloc(batch->n, sizeof(*page));
	int r = page ? 0 : -ENOMEM;

	most -= most / 64 + 1; /* for the descriptors */
	if (page)
		in_order(v, batch, page);
	for (unsigned i = 0; i < batch->n && !r; i += step) {
		step = MIN(batch->n - i, most);
		if (i) /* what the group before put in its places */
			r = blk_flush(v->file);
		if (!r)
			r = write_group(v, page + i, step);
	}
	free(page);
	return r;
}
