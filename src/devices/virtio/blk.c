/* virtio block.
 *
 * A request is a chain: 16 bytes of header (type, reserved, sector), data, one status byte.  The
 * life of one: popped on the worker, its data lent to the block layer (virtio_hold), finished on a
 * thread of the block layer, status and used entry written under the lock, released.
 *
 * virtio 1.2 5.2.6. */
#include "devices/virtio/blk.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "block/blk.h"
#include "state/state.h"

#include <errno.h>
#include <stdlib.h>

static struct log_component log_vblk = LOG_COMPONENT("virtio-blk");

// clang-format off
enum {
	QUEUE_SIZE = 256, SECTOR = 512, ID_BYTES = 20, HEADER_SIZE = 16, CONFIG_SIZE = 60,

	F_SEG_MAX = 2, F_RO = 5, F_BLK_SIZE = 6, F_FLUSH = 9, F_DISCARD = 13, F_WRITE_ZEROES = 14,

	T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13,
	S_OK = 0, S_IOERR = 1, S_UNSUPP = 2,

	CONFIG_CAPACITY = 0,     CONFIG_SEG_MAX = 12,        CONFIG_BLK_SIZE = 20,
	CONFIG_WRITEBACK = 32,   CONFIG_NUM_QUEUES = 34,
	CONFIG_MAX_DISCARD = 36, CONFIG_MAX_DISCARD_SEG = 40, CONFIG_DISCARD_ALIGN = 44,
	CONFIG_MAX_ZEROES = 48,  CONFIG_MAX_ZEROES_SEG = 52,  CONFIG_ZEROES_UNMAP = 56,

	RANGE_SIZE = 16, RANGE_UNMAP = 1, MAX_RANGE_SECTORS = 1 << 22, /* 2 GiB a request */
};
// clang-format on

struct virtio_blk {
	struct virtio_dev v;
	struct virtio_pci pci;
	struct blk *blk;
	uint8_t config[CONFIG_SIZE];
	char serial[ID_BYTES];
};

struct request {
	struct virtio_blk *b;
	struct blk_req io;
	struct vq_chain chain; /* .seg points to our own copy */
	uint32_t type;
	bool then_flush; /* write-through: a write is done when it is flushed */
	struct iovec *iov;
	struct vq_seg seg[];
};

/* ---- finishing: v.lock held ---- */

/* The status is the last writable byte, wherever the driver put it. */
static void complete(struct virtio_blk *b, const struct vq_chain *c, uint8_t status,
		     uint32_t data_written)
{
	struct vq *q = &b->v.vq[0];

	if (!vq_is_current(q, c))
		return;
	if (vq_chain_write(q, c, c->in_len - 1, &status, 1) < 0)
		return virtio_needs_reset(&b->v, "status byte is not in RAM");
	virtio_push(&b->v, q, c, data_written + 1);
}

static void finish(struct request *r, int result)
{
	struct virtio_blk *b = r->b;
	uint32_t written = r->type == T_IN ? r->chain.in_len - 1 : 0;

	pthread_mutex_lock(&b->v.lock);
	if (r->type == T_IN) /* even a failed or stale read may have changed the buffers */
		vq_chain_wrote(&b->v.vq[0], &r->chain, written);
	if (result < 0)
		log_guest(&log_vblk, "%s: request type %u at byte %llu: %s", b->v.cfg.name, r->type,
			  (unsigned long long)r->io.off, strerror(-result));
	complete(b, &r->chain, result < 0 ? S_IOERR : S_OK, result < 0 ? 0 : written);
	virtio_release(&b->v);
	pthread_mutex_unlock(&b->v.lock);
	free(r);
}

static void io_done(struct blk_req *io, int result)
{
	struct request *r = container_of(io, struct request, io);

	if (result < 0 || !r->then_flush)
		return finish(r, result);
	r->then_flush = false;
	r->io.op = BLK_OP_FLUSH;
	blk_submit(r->b->blk, &r->io);
}

/* ---- starting: worker, v.lock held ---- */

/* The chain's segments live in the queue only until the next pop, so the request copies them. */
static struct request *request_new(struct virtio_blk *b, const struct vq_chain *c, uint32_t type)
{
	unsigned nr = c->nr_out + c->nr_in, nr_iov = 2 * nr;
	size_t segs = nr * sizeof(struct vq_seg);
	struct request *r = calloc(1, sizeof(*r) + segs + nr_iov * sizeof(struct iovec));

	if (!r)
		return NULL;
	r->b = b;
	r->type = type;
	memcpy(r->seg, c->seg, segs);
	r->chain = *c;
	r->chain.seg = r->seg;
	r->iov = (struct iovec *)(r->seg + nr);
	r->io.iov = r->iov;
	r->io.done = io_done;
	return r;
}

static void submit(struct virtio_blk *b, struct request *r)
{
	virtio_hold(&b->v);
	blk_submit(b->blk, &r->io);
}

static uint8_t start_transfer(struct virtio_blk *b, const struct vq_chain *c, uint32_t type,
			      uint64_t sector)
{
	bool in = type == T_IN;
	uint64_t len = in ? c->in_len - 1 : c->out_len - HEADER_SIZE;
	uint64_t size = blk_info(b->blk)->size;
	struct request *r;
	int n;

	if (len == 0 || len % SECTOR || sector > size / SECTOR ||
	    !range_inside(sector * SECTOR, len, size))
		return S_IOERR;
	if (!in && blk_info(b->blk)->readonly)
		return S_IOERR;
	r = request_new(b, c, type);
	if (!r)
		return S_IOERR;
	n = vq_chain_borrow(&b->v.vq[0], c, in, in ? 0 : HEADER_SIZE, len, r->iov,
			    2 * (c->nr_out + c->nr_in));
	if (n < 0) {
		free(r);
		return S_IOERR;
	}
	r->io.op = in ? BLK_OP_READ : BLK_OP_WRITE;
	r->io.nr_iov = n;
	r->io.off = sector * SECTOR;
	r->io.len = len;
	r->then_flush = !in && !virtio_has(&b->v, F_FLUSH);
	submit(b, r);
	return S_OK;
}

static uint8_t start_flush(struct virtio_blk *b, const struct vq_chain *c)
{
	struct request *r = request_new(b, c, T_FLUSH);

	if (!r)
		return S_IOERR;
	r->io.op = BLK_OP_FLUSH;
	submit(b, r);
	return S_OK;
}

/* One range a request is what we announce (max_discard_seg, max_write_zeroes_seg = 1). */
static uint8_t start_range(struct virtio_blk *b, const struct vq_chain *c, uint32_t type)
{
	const struct blk_info *info = blk_info(b->blk);
	uint8_t raw[RANGE_SIZE];
	uint64_t sector;
	uint32_t nr, flags;
	struct request *r;

	if (!virtio_has(&b->v, type == T_DISCARD ? F_DISCARD : F_WRITE_ZEROES))
		return S_UNSUPP;
	if (c->out_len != HEADER_SIZE + RANGE_SIZE || info->readonly ||
	    vq_chain_read(&b->v.vq[0], c, HEADER_SIZE, raw, sizeof(raw)) < 0)
		return S_IOERR;
	sector = le64_load(raw);
	nr = le32_load(raw + 8);
	flags = le32_load(raw + 12);
	if (flags & ~(type == T_WRITE_ZEROES ? RANGE_UNMAP : 0)) /* 5.2.6.2 */
		return S_UNSUPP;
	if (nr > MAX_RANGE_SECTORS || sector > info->size / SECTOR ||
	    !range_inside(sector * SECTOR, (uint64_t)nr * SECTOR, info->size))
		return S_IOERR;
	r = request_new(b, c, type);
	if (!r)
		return S_IOERR;
	r->io.op = type == T_DISCARD ? BLK_OP_DISCARD : BLK_OP_ZERO;
	r->io.off = sector * SECTOR;
	r->io.len = (uint64_t)nr * SECTOR;
	r->io.may_unmap = flags & RANGE_UNMAP;
	r->then_flush = !virtio_has(&b->v, F_FLUSH);
	submit(b, r);
	return S_OK;
}

static void serve_get_id(struct virtio_blk *b, const struct vq_chain *c)
{
	uint32_t len = MIN(c->in_len - 1, ID_BYTES);

	if (vq_chain_write(&b->v.vq[0], c, 0, b->serial, len) < 0)
		return virtio_needs_reset(&b->v, "buffer is not in RAM");
	complete(b, c, S_OK, len);
}

static void request_start(struct virtio_blk *b, const struct vq_chain *c)
{
	uint8_t raw[HEADER_SIZE], status;
	uint32_t type;

	if (c->in_len == 0)
		return virtio_needs_reset(&b->v, "request without a status byte");
	if (c->out_len < HEADER_SIZE || vq_chain_read(&b->v.vq[0], c, 0, raw, sizeof(raw)) < 0)
		return virtio_needs_reset(&b->v, "request without a header");
	type = le32_load(raw);
	switch (type) {
	case T_IN:
	case T_OUT:
		status = start_transfer(b, c, type, le64_load(raw + 8));
		break;
	case T_FLUSH:
		status = start_flush(b, c);
		break;
	case T_DISCARD:
	case T_WRITE_ZEROES:
		status = start_range(b, c, type);
		break;
	case T_GET_ID:
		return serve_get_id(b, c);
	default:
		status = S_UNSUPP;
	}
	if (status != S_OK)
		complete(b, c, status, 0);
}

static void queue_run(struct virtio_dev *v, unsigned queue)
{
	struct virtio_blk *b = container_of(v, struct virtio_blk, v);
	struct vq *q = &v->vq[queue];
	struct vq_chain c;

	do {
		while (virtio_pop(v, q, &c)) {
			/* A driver owns q->size descriptors at most, so more is one that hands
			 * out the same ones again to make us pile up requests. */
			if (v->held >= q->size)
				return virtio_needs_reset(v, "more requests than descriptors");
			request_start(b, &c);
		}
	} while (virtio_more(v, q));
}

static const struct virtio_ops ops = {.queue_run = queue_run};

/* ---- making one ---- */

static uint64_t fill_config(struct virtio_blk *b)
{
	const struct blk_info *info = blk_info(b->blk);
	uint64_t features = BIT(F_SEG_MAX) | BIT(F_BLK_SIZE) | BIT(F_FLUSH);
	uint8_t *c = b->config;

	le64_store(c + CONFIG_CAPACITY, info->size / SECTOR);
	le32_store(c + CONFIG_SEG_MAX, QUEUE_SIZE - 2); /* header and status take two */
	le32_store(c + CONFIG_BLK_SIZE, info->block_size);
	le16_store(c + CONFIG_NUM_QUEUES, 1);
	if (info->readonly)
		return features | BIT(F_RO);
	if (info->can_discard) {
		features |= BIT(F_DISCARD);
		le32_store(c + CONFIG_MAX_DISCARD, MAX_RANGE_SECTORS);
		le32_store(c + CONFIG_MAX_DISCARD_SEG, 1);
		le32_store(c + CONFIG_DISCARD_ALIGN, info->block_size / SECTOR);
	}
	if (info->can_zero) {
		features |= BIT(F_WRITE_ZEROES);
		le32_store(c + CONFIG_MAX_ZEROES, MAX_RANGE_SECTORS);
		le32_store(c + CONFIG_MAX_ZEROES_SEG, 1);
		c[CONFIG_ZEROES_UNMAP] = 1;
	}
	return features;
}

int virtio_blk_create(struct virtio_blk **out, const struct virtio_blk_config *cfg,
		      struct error *err)
{
	struct virtio_blk *b = calloc(1, sizeof(*b));
	struct virtio_config vc = {.name = cfg->name, .id = VIRTIO_ID_BLOCK, .mem = cfg->mem};
	struct virtio_pci_config pc = {cfg->host, cfg->slot_fn, 0x010000, cfg->transitional};
	int r;

	if (!b)
		return err_set(err, ENOMEM, "%s: out of memory", cfg->name);
	b->blk = cfg->blk;
	if (cfg->serial)
		memcpy(b->serial, cfg->serial, strnlen(cfg->serial, ID_BYTES));
	vc.features = fill_config(b);
	vc.nr_queues = 1;
	vc.queue_size = QUEUE_SIZE;
	vc.config = b->config;
	vc.config_len = CONFIG_SIZE;
	r = virtio_init(&b->v, &vc, &ops, err);
	if (r < 0)
		goto free;
	r = virtio_pci_init(&b->pci, &b->v, &pc, err);
	if (r < 0)
		goto stop;
	*out = b;
	return 0;

stop:
	virtio_stop(&b->v);
	virtio_fini(&b->v);
free:
	free(b);
	return r;
}

void virtio_blk_destroy(struct virtio_blk *b)
{
	if (!b)
		return;
	virtio_pci_fini(&b->pci);
	virtio_fini(&b->v);
	free(b);
}

struct virtio_dev *virtio_blk_dev(struct virtio_blk *d)
{
	return &d->v;
}

void virtio_blk_state(struct state *s, void *virtio_blk)
{
	struct virtio_blk *b = virtio_blk;

	state_enter(s, "virtio-blk", 1);
	virtio_pci_state(s, &b->pci);
	state_leave(s);
}
