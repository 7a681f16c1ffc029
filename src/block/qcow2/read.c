/* block/qcow2/read.c - reading, and telling where things are. */
#include "block/iov.h"
#include "block/qcow2/qcow2.h"

#include <stdlib.h>

enum { READ_IOVS = 64, BOUNCE = 1 << 20, MAP_RUNS = 4096 };

static void iov_fill(struct iov_walk *walk, const uint8_t *from, uint64_t len)
{
	while (len && walk->n) {
		size_t step = MIN(walk->iov->iov_len - walk->skip, len);

		memcpy((uint8_t *)walk->iov->iov_base + walk->skip, from, step);
		iov_advance(walk, step);
		from += step;
		len -= step;
	}
}

/* Sectors are what is encrypted: read whole ones. */
static int read_encrypted(struct qcow2 *q, struct iov_walk *walk, uint64_t guest, uint64_t host,
			  uint64_t *len)
{
	uint64_t lead = guest & (Q_SECTOR - 1), size;
	uint8_t *buf;
	int r;

	*len = MIN(*len, BOUNCE - Q_SECTOR);
	size = ALIGN_UP(lead + *len, Q_SECTOR);
	buf = malloc(size);
	if (!buf)
		return -ENOMEM;
	r = q_file_read(q->data, buf, size, host - lead);
	if (!r)
		r = q_decrypt(q, buf, size, guest - lead, host - lead);
	if (!r)
		iov_fill(walk, buf + lead, *len);
	free(buf);
	return r;
}

static int read_packed(struct qcow2 *q, struct iov_walk *walk, uint64_t guest,
		       const struct q_run *run)
{
	uint8_t *buf = malloc(q->cluster);
	int r = buf ? q_unpack(q, run, buf) : -ENOMEM;

	if (!r)
		iov_fill(walk, buf + (guest & (q->cluster - 1)), run->len);
	free(buf);
	return r;
}

static int read_backing(struct qcow2 *q, struct iov_walk *walk, uint64_t guest, uint64_t *len)
{
	struct iovec part[READ_IOVS];
	uint64_t size = q->b->info.size;
	unsigned n;
	int r;

	if (!q->b->backing || guest >= size) { /* behind the disk is the VM state */
		iov_zero(walk, *len);
		return 0;
	}
	*len = MIN(*len, size - guest);
	n = iov_peek(walk, part, READ_IOVS, len);
	r = blk_backing_readv(q->b, part, n, *len, guest);
	iov_advance(walk, *len);
	return r;
}

static int read_data(struct qcow2 *q, struct iov_walk *walk, uint64_t host, uint64_t *len)
{
	struct iovec part[READ_IOVS];
	unsigned n = iov_peek(walk, part, READ_IOVS, len);
	int r = q_file_readv(q->data, part, n, *len, host);

	iov_advance(walk, *len);
	return r;
}

static int read_run(struct qcow2 *q, struct iov_walk *walk, uint64_t guest, struct q_run *run)
{
	switch (run->kind) {
	case Q_UNALLOC:
	case Q_UNALLOC_AT:
		return read_backing(q, walk, guest, &run->len);
	case Q_ZERO_PLAIN:
	case Q_ZERO_AT:
		iov_zero(walk, run->len);
		return 0;
	case Q_PACKED:
		return read_packed(q, walk, guest, run);
	case Q_NORMAL:
		break;
	}
	if (q->h.crypt)
		return read_encrypted(q, walk, guest, run->host, &run->len);
	return read_data(q, walk, run->host, &run->len);
}

int q_read_at(struct qcow2 *q, const struct iovec *iov, unsigned n, uint64_t len, uint64_t guest)
{
	struct iov_walk walk = {iov, n, 0};
	struct q_run run;
	int r = 0;

	while (len && !r) {
		pthread_mutex_lock(&q->lock);
		r = q_map(q, guest, len, &run);
		pthread_mutex_unlock(&q->lock);
		if (!r)
			r = read_run(q, &walk, guest, &run);
		if (!r) {
			guest += run.len;
			len -= run.len;
		}
	}
	return r;
}

int q_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	struct qcow2 *q = q_of(b);
	unsigned epoch;
	int r;

	pthread_rwlock_rdlock(&q->io);
	epoch = q_enter(q);
	r = q_read_at(q, iov, n, len, off);
	q_leave(q, epoch);
	pthread_rwlock_unlock(&q->io);
	return r;
}

/* ---- where ---- */

static bool is_unallocated(enum q_kind kind)
{
	return kind == Q_UNALLOC || kind == Q_UNALLOC_AT;
}

static bool is_zero(enum q_kind kind)
{
	return kind == Q_ZERO_PLAIN || kind == Q_ZERO_AT;
}

static bool same_answer(const struct q_run *a, const struct q_run *b)
{
	if (a->kind == Q_NORMAL || b->kind == Q_NORMAL)
		return a->kind == b->kind && a->host + a->len == b->host;
	if (is_unallocated(a->kind))
		return is_unallocated(b->kind);
	return is_zero(a->kind) ? is_zero(b->kind) : a->kind == b->kind;
}

static int map_joined(struct qcow2 *q, uint64_t guest, uint64_t len, struct q_run *run)
{
	struct q_run next;
	int r;

	pthread_mutex_lock(&q->lock);
	r = q_map(q, guest, len, run);
	for (unsigned i = 0; !r && i < MAP_RUNS && run->len < len; i++) {
		if (q_map(q, guest + run->len, len - run->len, &next) < 0 ||
		    !same_answer(run, &next))
			break;
		run->len += next.len;
	}
	pthread_mutex_unlock(&q->lock);
	return r;
}

int q_blk_map(struct blk *b, uint64_t off, struct blk_map *m)
{
	struct qcow2 *q = q_of(b);
	struct q_run run;
	int r;

	pthread_rwlock_rdlock(&q->io);
	r = map_joined(q, off, m->len, &run);
	pthread_rwlock_unlock(&q->io);
	if (r < 0)
		return r;
	*m = (struct blk_map){.len = run.len};
	if (is_unallocated(run.kind))
		return blk_backing_map(b, off, m);
	m->what = is_zero(run.kind) ? BLK_EXT_ZERO : BLK_EXT_DATA;
	m->compressed = run.kind == Q_PACKED;
	if (run.kind == Q_NORMAL && !q->h.crypt) {
		m->host = q->data;
		m->host_off = run.host;
	}
	return 0;
}
