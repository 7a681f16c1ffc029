/* The split virtqueue.
 *
 *	descriptor table   16 bytes each: address, length, flags, next
 *	driver area        flags, idx, ring[size] of heads, used_event
 *	device area        flags, idx, ring[size] of {head, length}, avail_event
 *
 * virtio 1.2 2.7. */
#include "devices/virtio/queue.h"

#include "base/bytes.h"
#include "mem/mem.h"
#include "state/state.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4, DESC_SIZE = 16 };
enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };

struct desc {
	gpa_t gpa;
	uint32_t len;
	uint16_t flags, next;
};

int vq_init(struct vq *q, struct mem *mem, unsigned index, uint16_t size_max)
{
	assert(size_max && (size_max & (size_max - 1)) == 0);
	*q = (struct vq){.mem = mem, .index = index, .size_max = size_max, .size = size_max};
	q->seg = calloc(size_max, sizeof(*q->seg));
	return q->seg ? 0 : -ENOMEM;
}

void vq_fini(struct vq *q)
{
	free(q->seg);
	q->seg = NULL;
}

void vq_reset(struct vq *q)
{
	*q = (struct vq){.mem = q->mem,
			 .index = q->index,
			 .size_max = q->size_max,
			 .seg = q->seg,
			 .size = q->size_max,
			 .gen = q->gen + 1};
}

void vq_set_legacy_address(struct vq *q, gpa_t gpa)
{
	q->desc = gpa;
	q->driver = gpa + (uint64_t)q->size * DESC_SIZE;
	q->device = ALIGN_UP(q->driver + 6 + 2ull * q->size, PAGE_SIZE);
}

static int fail(struct vq *q, int r, const char *what)
{
	q->error = what;
	return r;
}

/* ---- taking ---- */

static gpa_t avail_entry(const struct vq *q, uint16_t i)
{
	return q->driver + 4 + 2ull * (i & (q->size - 1));
}

static gpa_t used_entry(const struct vq *q, uint16_t i)
{
	return q->device + 4 + 8ull * (i & (q->size - 1));
}

static int desc_fetch(struct vq *q, gpa_t table, unsigned i, struct desc *d)
{
	uint8_t raw[DESC_SIZE];

	if (table + (uint64_t)i * DESC_SIZE < table)
		return fail(q, -EFAULT, "descriptor table wraps around");
	if (mem_read(q->mem, table + (uint64_t)i * DESC_SIZE, raw, sizeof(raw)))
		return fail(q, -EFAULT, "descriptor table is not in RAM");
	d->gpa = le64_load(raw);
	d->len = le32_load(raw + 8);
	d->flags = le16_load(raw + 12);
	d->next = le16_load(raw + 14);
	return 0;
}

static int chain_add(struct vq *q, struct vq_chain *c, const struct desc *d)
{
	unsigned n = c->nr_out + c->nr_in;

	if (d->len == 0)
		return 0;
	if (n == q->size_max)
		return fail(q, -EINVAL, "chain is longer than the queue");
	if (d->gpa + d->len < d->gpa)
		return fail(q, -EINVAL, "buffer wraps around the address space");
	q->seg[n] = (struct vq_seg){d->gpa, d->len};
	if (d->flags & DESC_WRITE) {
		c->nr_in++;
		c->in_len += d->len;
	} else if (c->nr_in) { /* 2.7.4.2: readable ones come first */
		return fail(q, -EINVAL, "readable descriptor after a writable one");
	} else {
		c->nr_out++;
		c->out_len += d->len;
	}
	if (c->in_len > UINT32_MAX || c->out_len > UINT32_MAX) /* 2.7.5.2 */
		return fail(q, -EINVAL, "chain holds more than 4 GiB");
	return 0;
}

/* 2.7.5.3: the last direct descriptor may name a table that holds the rest, one level deep. */
static int enter_indirect(struct vq *q, const struct desc *d, bool inside)
{
	if (!q->indirect || inside)
		return fail(q, -EINVAL, "indirect descriptor where none may be");
	if (d->flags & (DESC_NEXT))
		return fail(q, -EINVAL, "indirect descriptor with a next one");
	if (d->len == 0 || d->len % DESC_SIZE || d->len / DESC_SIZE > q->size_max)
		return fail(q, -EINVAL, "indirect table of a bad size");
	return 0;
}

static int chain_walk(struct vq *q, struct vq_chain *c)
{
	gpa_t table = q->desc;
	unsigned i = c->head, n = q->size, hops = 0;
	bool inside = false;
	struct desc d;
	int r;

	for (;;) {
		if (i >= n)
			return fail(q, -EINVAL, "descriptor index past the table");
		if (hops++ == n)
			return fail(q, -EINVAL, "descriptor loop");
		r = desc_fetch(q, table, i, &d);
		if (r < 0)
			return r;
		if (d.flags & DESC_INDIRECT) {
			r = enter_indirect(q, &d, inside);
			if (r < 0)
				return r;
			inside = true;
			table = d.gpa;
			n = d.len / DESC_SIZE;
			i = hops = 0;
			continue;
		}
		r = chain_add(q, c, &d);
		if (r < 0 || !(d.flags & DESC_NEXT))
			return r;
		i = d.next;
	}
}

int vq_pop(struct vq *q, struct vq_chain *c)
{
	uint16_t idx, head;
	int r;

	if (!q->ready)
		return 0;
	if (mem_load16(q->mem, q->driver + 2, &idx))
		return fail(q, -EFAULT, "driver area is not in RAM");
	if (idx == q->last_avail)
		return 0;
	if ((uint16_t)(idx - q->last_avail) > q->size)
		return fail(q, -EINVAL, "more buffers offered than the queue holds");
	if (mem_load16(q->mem, avail_entry(q, q->last_avail), &head))
		return fail(q, -EFAULT, "driver area is not in RAM");

	*c = (struct vq_chain){.head = head, .gen = q->gen, .seg = q->seg};
	r = chain_walk(q, c);
	if (r < 0)
		return r;
	q->last_avail++;
	return 1;
}

void vq_unpop(struct vq *q, uint16_t n)
{
	q->last_avail -= n;
}

bool vq_is_current(const struct vq *q, const struct vq_chain *c)
{
	return q->ready && q->gen == c->gen;
}

/* ---- giving back ---- */

int vq_put(struct vq *q, const struct vq_chain *c, uint32_t written)
{
	uint8_t raw[8];

	if (!vq_is_current(q, c))
		return 0;
	le32_store(raw, c->head);
	le32_store(raw + 4, written);
	if (mem_write(q->mem, used_entry(q, q->used), raw, sizeof(raw)))
		return fail(q, -EFAULT, "device area is not in RAM");
	q->used++;
	return 0;
}

/* 2.7.7: the index is stored before the driver's wish is read, or both sides could sleep. */
int vq_publish(struct vq *q, bool *interrupt)
{
	uint16_t old = q->used_shown, v;
	gpa_t wish = q->event_idx ? avail_entry(q, 0) + 2ull * q->size : q->driver;

	*interrupt = false;
	if (!q->ready || old == q->used)
		return 0;
	if (mem_store16(q->mem, q->device + 2, q->used))
		return fail(q, -EFAULT, "device area is not in RAM");
	q->used_shown = q->used;
	atomic_thread_fence(memory_order_seq_cst);
	if (mem_load16(q->mem, wish, &v))
		return fail(q, -EFAULT, "driver area is not in RAM");
	if (q->event_idx)
		*interrupt = (uint16_t)(q->used - v - 1) < (uint16_t)(q->used - old);
	else
		*interrupt = !(v & AVAIL_NO_INTERRUPT);
	return 0;
}

/* 2.7.10.  Without event indices we never ask for silence, so there is nothing to undo. */
int vq_rearm(struct vq *q)
{
	uint16_t idx;

	if (!q->ready)
		return 0;
	if (q->event_idx && mem_store16(q->mem, used_entry(q, 0) + 8ull * q->size, q->last_avail))
		return fail(q, -EFAULT, "device area is not in RAM");
	atomic_thread_fence(memory_order_seq_cst);
	if (mem_load16(q->mem, q->driver + 2, &idx))
		return fail(q, -EFAULT, "driver area is not in RAM");
	return idx != q->last_avail;
}

/* ---- a chain's bytes ---- */

/* Calls fn for each piece of [off, off+len) of one of the two runs. */
struct piece {
	gpa_t gpa;
	uint64_t len, done; /* done: bytes of the range before this piece */
};
typedef int piece_fn(struct vq *q, const struct piece *p, void *arg);

static int for_each_piece(struct vq *q, const struct vq_chain *c, bool writable, uint64_t off,
			  uint64_t len, piece_fn *fn, void *arg)
{
	const struct vq_seg *s = writable ? c->seg + c->nr_out : c->seg;
	struct piece p = {0};

	if (!range_inside(off, len, writable ? c->in_len : c->out_len))
		return -EINVAL;
	for (; p.done < len; s++) {
		int r;

		if (off >= s->len) {
			off -= s->len;
			continue;
		}
		p.gpa = s->gpa + off;
		p.len = MIN(s->len - off, len - p.done);
		off = 0;
		r = fn(q, &p, arg);
		if (r < 0)
			return r;
		p.done += p.len;
	}
	return 0;
}

static int piece_read(struct vq *q, const struct piece *p, void *arg)
{
	return mem_read(q->mem, p->gpa, (uint8_t *)arg + p->done, p->len);
}

static int piece_write(struct vq *q, const struct piece *p, void *arg)
{
	return mem_write(q->mem, p->gpa, *(const uint8_t **)arg + p->done, p->len);
}

static int piece_wrote(struct vq *q, const struct piece *p, void *arg)
{
	mem_wrote(q->mem, p->gpa, p->len);
	return 0;
}

struct borrow {
	struct iovec *iov;
	unsigned nr, max;
};

/* A piece that spans two RAM ranges takes two iovecs. */
static int piece_borrow(struct vq *q, const struct piece *p, void *arg)
{
	struct borrow *b = arg;
	uint64_t left = p->len, n;
	gpa_t gpa = p->gpa;
	uint8_t *hva;

	for (; left; left -= n, gpa += n) {
		n = mem_borrow(q->mem, gpa, left, &hva);
		if (n == 0 || b->nr == b->max)
			return -EFAULT;
		b->iov[b->nr++] = (struct iovec){hva, n};
	}
	return 0;
}

int vq_chain_read(struct vq *q, const struct vq_chain *c, uint64_t off, void *buf, uint64_t len)
{
	return for_each_piece(q, c, false, off, len, piece_read, buf);
}

int vq_chain_write(struct vq *q, const struct vq_chain *c, uint64_t off, const void *buf,
		   uint64_t len)
{
	return for_each_piece(q, c, true, off, len, piece_write, &buf);
}

int vq_chain_borrow(struct vq *q, const struct vq_chain *c, bool writable, uint64_t off,
		    uint64_t len, struct iovec *iov, unsigned max)
{
	struct borrow b = {.iov = iov, .max = max};
	int r = for_each_piece(q, c, writable, off, len, piece_borrow, &b);

	return r < 0 ? r : (int)b.nr;
}

void vq_chain_wrote(struct vq *q, const struct vq_chain *c, uint64_t len)
{
	for_each_piece(q, c, true, 0, MIN(len, c->in_len), piece_wrote, NULL);
}

/* ---- state ---- */

void vq_state(struct state *s, struct vq *q)
{
	state_enter(s, "queue", 1);
	state_u16(s, "size", &q->size);
	state_bool(s, "ready", &q->ready);
	state_u64(s, "desc", &q->desc);
	state_u64(s, "driver", &q->driver);
	state_u64(s, "device", &q->device);
	state_u16(s, "last_avail", &q->last_avail);
	state_u16(s, "used", &q->used);
	state_check(s, q->size && q->size <= q->size_max && !(q->size & (q->size - 1)),
		    "a virtqueue size the device does not have");
	if (!state_loading(s))
		return state_leave(s);
	q->used_shown = q->used;
	q->gen++;
	q->error = NULL;
	state_leave(s);
}
