/* vhost-user-blk.  virtio 1.2 5.2. */
#include "devices/virtio/vhost_blk.h"

#include "base/bytes.h"
#include "base/error.h"
#include "devices/virtio/vhost.h"
#include "state/state.h"

#include <errno.h>
#include <stdlib.h>

// clang-format off
enum {
	QUEUE_SIZE = 256, CONFIG_SIZE = 60, SECTOR = 512,
	F_SIZE_MAX = 1, F_SEG_MAX = 2, F_GEOMETRY = 4, F_RO = 5, F_BLK_SIZE = 6, F_FLUSH = 9,
	F_TOPOLOGY = 10, F_MQ = 12, F_DISCARD = 13, F_WRITE_ZEROES = 14,
	CONFIG_CAPACITY = 0, CONFIG_BLK_SIZE = 20, CONFIG_NUM_QUEUES = 34,
	S_IOERR = 1,
};
// clang-format on

struct vhost_blk {
	struct vhost h;
	struct virtio_pci pci;
	uint8_t config[CONFIG_SIZE]; /* as the driver reads it */
	uint8_t told[CONFIG_SIZE];   /* as the back end gave it */
};

/* Each request ends in a status byte, the last one the device may write (5.2.6). */
static void fail_requests(struct vhost *h, unsigned queue)
{
	struct virtio_dev *v = &h->v;
	struct vq *q = &v->vq[queue];
	uint8_t status = S_IOERR;
	struct vq_chain c;

	do {
		while (virtio_pop(v, q, &c)) {
			if (!c.in_len || vq_chain_write(q, &c, c.in_len - 1, &status, 1) < 0)
				return virtio_needs_reset(v, "request without a status byte");
			virtio_push(v, q, &c, 1);
		}
	} while (virtio_more(v, q));
}

static const struct vhost_front front = {.dead = fail_requests, .finishes = true};

/* The back end is not our friend: what we compute with is checked; the rest is for the guest. */
static int check_config(const struct vhost_blk *b, const struct vhost_backend *be,
			struct error *err)
{
	uint32_t block = le32_load(b->told + CONFIG_BLK_SIZE);

	if (le64_load(b->told + CONFIG_CAPACITY) > INT64_MAX / SECTOR)
		return err_set(err, EPROTO, "its back end claims an impossible size");
	if ((be->features & BIT(F_BLK_SIZE)) &&
	    (block < SECTOR || block > 64 * KiB || (block & (block - 1))))
		return err_set(err, EPROTO, "its back end claims blocks of %u bytes", block);
	return 0;
}

static unsigned choose_queues(const struct vhost_blk *b, const struct vhost_backend *be,
			      unsigned max)
{
	unsigned theirs = 1;

	if (be->features & BIT(F_MQ))
		theirs = le16_load(b->told + CONFIG_NUM_QUEUES);
	return MIN(MIN(MAX(theirs, 1u), MAX(max, 1u)), MIN(be->max_queues, VIRTIO_MAX_QUEUES - 1u));
}

static int init(struct vhost_blk *b, const struct vhost_blk_config *cfg, struct error *err)
{
	struct virtio_config vc = {.name = cfg->name,
				   .id = VIRTIO_ID_BLOCK,
				   .mem = cfg->mem,
				   .queue_size = QUEUE_SIZE,
				   .config = b->config,
				   .config_len = CONFIG_SIZE};
	struct virtio_pci_config pc = {cfg->host, cfg->slot_fn, 0x010000, cfg->transitional};
	int r;

	vc.nr_queues = choose_queues(b, cfg->backend, cfg->max_queues);
	vc.features = BIT(F_SIZE_MAX) | BIT(F_SEG_MAX) | BIT(F_GEOMETRY) | BIT(F_RO) |
		      BIT(F_BLK_SIZE) | BIT(F_FLUSH) | BIT(F_TOPOLOGY) | BIT(F_DISCARD) |
		      BIT(F_WRITE_ZEROES) | (vc.nr_queues > 1 ? BIT(F_MQ) : 0);
	memcpy(b->config, b->told, CONFIG_SIZE);
	le16_store(b->config + CONFIG_NUM_QUEUES, vc.nr_queues);
	r = vhost_init(&b->h, &vc, &front, cfg->backend, cfg->loop, err);
	if (r < 0)
		return r;
	b->h.config = b->told;
	b->h.config_len = CONFIG_SIZE;
	r = virtio_pci_init(&b->pci, &b->h.v, &pc, err);
	if (r < 0) {
		virtio_stop(&b->h.v);
		vhost_fini(&b->h);
	}
	return r;
}

int vhost_blk_create(struct vhost_blk **out, const struct vhost_blk_config *cfg, struct error *err)
{
	struct vhost_blk *b = calloc(1, sizeof(*b));
	int r = b ? 0 : err_errno(err, ENOMEM, "%s", cfg->name);

	if (r == 0)
		r = vhost_read_config(cfg->backend, b->told, CONFIG_SIZE, err);
	if (r == 0)
		r = check_config(b, cfg->backend, err);
	if (r < 0) {
		cfg->backend->ops->close(cfg->backend);
		goto free;
	}
	r = init(b, cfg, err);
	if (r < 0)
		goto free;
	*out = b;
	return 0;

free:
	free(b);
	return r;
}

void vhost_blk_destroy(struct vhost_blk *b)
{
	if (!b)
		return;
	virtio_pci_fini(&b->pci);
	vhost_fini(&b->h);
	free(b);
}

void vhost_blk_state(struct state *s, void *vhost_blk)
{
	struct vhost_blk *b = vhost_blk;

	state_enter(s, "vhost-blk", 1);
	virtio_pci_state(s, &b->pci);
	state_leave(s);
}

struct virtio_dev *vhost_blk_dev(struct vhost_blk *b)
{
	return &b->h.v;
}

uint64_t vhost_blk_size(const struct vhost_blk *b)
{
	return le64_load(b->told + CONFIG_CAPACITY) * SECTOR;
}

bool vhost_blk_is_whole(struct vhost_blk *b)
{
	return vhost_is_whole(&b->h);
}
