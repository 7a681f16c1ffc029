/* virtio network.
 *
 * Every frame has a header before it: 12 bytes, or 10 with a legacy driver that did not take
 * MRG_RXBUF.  With MRG_RXBUF a frame may fill several chains and the first one's header counts
 * them.
 *
 * The peer is always called with our lock dropped: it may be calling us at the same moment.
 *
 * virtio 1.2 5.1.6. */
#include "devices/virtio/net.h"

#include "base/bytes.h"
#include "base/error.h"
#include "net/net.h"
#include "state/state.h"

#include <errno.h>
#include <stdlib.h>

// clang-format off
enum {
	QUEUE_RX = 0, QUEUE_TX = 1, QUEUE_SIZE = 256,
	F_MAC = 5, F_MRG_RXBUF = 15, F_STATUS = 16,
	CONFIG_MAC = 0, CONFIG_STATUS = 6, CONFIG_SIZE = 8, STATUS_LINK_UP = 1,
	HEADER_LEGACY = 10, HEADER_NUM_BUFFERS = 10, HEADER_MAX = 12,
	FRAME_MIN = 14, FRAME_MAX = 65536, MERGE_MAX = 64,
};
// clang-format on

struct virtio_net {
	struct virtio_dev v;
	struct virtio_pci pci;
	struct net *net;
	/* Guarded by v.lock. */
	uint8_t config[CONFIG_SIZE];
	bool rx_refused; /* the peer waits for rx_ready */
	/* The worker's alone. */
	uint8_t frame[FRAME_MAX];
};

static unsigned header_size(const struct virtio_dev *v)
{
	if (virtio_has(v, VIRTIO_F_VERSION_1) || virtio_has(v, F_MRG_RXBUF))
		return HEADER_MAX;
	return HEADER_LEGACY;
}

static bool link_up(const struct virtio_net *n)
{
	return le16_load(n->config + CONFIG_STATUS) & STATUS_LINK_UP;
}

/* ---- transmit: worker ---- */

/* Copied out of the guest before anybody parses it.  Lock dropped around the peer. */
static void transmit(struct virtio_net *n, struct vq *q, const struct vq_chain *c)
{
	unsigned header = header_size(&n->v);
	uint64_t len = c->out_len - header;
	bool sound = c->out_len >= header + FRAME_MIN && len <= FRAME_MAX && link_up(n);

	if (sound && vq_chain_read(q, c, header, n->frame, len) < 0)
		return virtio_needs_reset(&n->v, "frame is not in RAM");
	if (sound) {
		virtio_hold(&n->v);
		pthread_mutex_unlock(&n->v.lock);
		net_send(n->net, n->frame, len);
		pthread_mutex_lock(&n->v.lock);
		virtio_push(&n->v, q, c, 0);
		virtio_release(&n->v);
	} else {
		virtio_push(&n->v, q, c, 0); /* what a wire does with a bad frame */
	}
}

/* ---- receive: the peer's thread ---- */

/* What placing a frame came to. */
enum placed { PLACED, NO_ROOM, TOO_BIG };

/* A rearmed queue tells us of the next buffer, so NO_ROOM is final until then. */
static bool pop_or_rearm(struct virtio_net *n, struct vq *q, struct vq_chain *c)
{
	return virtio_pop(&n->v, q, c) || (virtio_more(&n->v, q) && virtio_pop(&n->v, q, c));
}

static int place_part(struct vq *q, const struct vq_chain *c, uint64_t at, const void *header,
		      unsigned header_len, const uint8_t *frame, uint64_t len)
{
	int r = header_len ? vq_chain_write(q, c, 0, header, header_len) : 0;

	return r < 0 ? r : vq_chain_write(q, c, at, frame, len);
}

/* virtio 1.2 5.1.6.3.2: num_buffers is 1 unless MRG_RXBUF. */
static enum placed place_single(struct virtio_net *n, struct vq *q, const uint8_t *frame,
				size_t len)
{
	uint8_t header[HEADER_MAX] = {[HEADER_NUM_BUFFERS] = 1};
	unsigned size = header_size(&n->v);
	struct vq_chain c;

	if (!pop_or_rearm(n, q, &c))
		return NO_ROOM;
	if (c.in_len < size + len) {
		vq_unpop(q, 1);
		return TOO_BIG;
	}
	if (place_part(q, &c, size, header, size, frame, len) < 0)
		virtio_needs_reset(&n->v, "receive buffer is not in RAM");
	else
		virtio_push(&n->v, q, &c, size + len);
	return PLACED;
}

/* The count is known last but belongs into the first chain, whose segments are gone by then: so
 * first find out how many chains it takes, then go over them again and copy. */
static unsigned count_chains(struct virtio_net *n, struct vq *q, uint64_t total,
			     enum placed *result)
{
	uint64_t room = 0;
	unsigned nr = 0;
	struct vq_chain c;

	*result = PLACED;
	while (room < total && nr < MERGE_MAX && pop_or_rearm(n, q, &c)) {
		room += c.in_len;
		nr++;
		if (nr == 1 && c.in_len < HEADER_MAX)
			virtio_needs_reset(&n->v, "receive buffer smaller than the header");
	}
	if (room < total)
		*result = nr == MERGE_MAX || nr == q->size ? TOO_BIG : NO_ROOM;
	vq_unpop(q, nr);
	return nr;
}

static enum placed place_merged(struct virtio_net *n, struct vq *q, const uint8_t *frame,
				size_t len)
{
	uint8_t header[HEADER_MAX] = {0};
	unsigned header_len = HEADER_MAX;
	enum placed result;
	unsigned nr = count_chains(n, q, len + HEADER_MAX, &result);
	struct vq_chain c;

	if (result != PLACED)
		return result;
	le16_store(header + HEADER_NUM_BUFFERS, nr);
	for (unsigned i = 0; i < nr && virtio_pop(&n->v, q, &c); i++) {
		uint64_t part = MIN(len, c.in_len - MIN(c.in_len, header_len));

		/* The driver may have rewritten the chain between our two looks; then this one is
		 * too small, and all we owe is that nothing of ours is harmed. */
		if (c.in_len < header_len ||
		    place_part(q, &c, header_len, header, header_len, frame, part) < 0 ||
		    vq_put(q, &c, header_len + part) < 0) {
			virtio_needs_reset(&n->v, "receive buffer is not in RAM");
			break;
		}
		frame += part;
		len -= part;
		header_len = 0;
	}
	virtio_publish(&n->v, q);
	return PLACED;
}

/* A card whose cable is out, or that no driver runs, drops what comes. */
static bool receive_locked(struct virtio_net *n, const uint8_t *frame, size_t len)
{
	struct vq *q = &n->v.vq[QUEUE_RX];
	enum placed placed;

	if (n->v.paused && link_up(n)) {
		n->rx_refused = true; /* virtio_resume wakes the worker, which tells the peer */
		return false;
	}
	if (!virtio_running(&n->v, QUEUE_RX) || !link_up(n) || len > FRAME_MAX)
		return true;
	virtio_begin(&n->v, q);
	placed = virtio_has(&n->v, F_MRG_RXBUF) ? place_merged(n, q, frame, len)
						: place_single(n, q, frame, len);
	if (placed != NO_ROOM || !virtio_running(&n->v, QUEUE_RX))
		return true;
	n->rx_refused = true;
	return false;
}

static bool receive(void *opaque, const void *frame, size_t len)
{
	struct virtio_net *n = opaque;
	bool taken;

	pthread_mutex_lock(&n->v.lock);
	taken = receive_locked(n, frame, len);
	pthread_mutex_unlock(&n->v.lock);
	return taken;
}

/* ---- worker ---- */

static void queue_run(struct virtio_dev *v, unsigned queue)
{
	struct virtio_net *n = container_of(v, struct virtio_net, v);
	struct vq *q = &v->vq[queue];
	struct vq_chain c;

	if (queue == QUEUE_RX)
		return; /* new buffers: idle() tells the peer */
	do {
		while (virtio_pop(v, q, &c))
			transmit(n, q, &c);
	} while (virtio_more(v, q));
}

static void idle(struct virtio_dev *v)
{
	struct virtio_net *n = container_of(v, struct virtio_net, v);
	bool tell;

	pthread_mutex_lock(&v->lock);
	tell = n->rx_refused;
	n->rx_refused = false;
	pthread_mutex_unlock(&v->lock);
	if (tell)
		net_rx_ready(n->net);
}

/* Opens the traffic: a peer holds frames back until it hears from us. */
static void driver_ok(struct virtio_dev *v)
{
	container_of(v, struct virtio_net, v)->rx_refused = true;
}

/* What the peer keeps for us would otherwise wait for buffers that never come. */
static void reset(struct virtio_dev *v)
{
	virtio_kick(v, QUEUE_RX);
}

static const struct virtio_ops ops = {
	.queue_run = queue_run, .idle = idle, .driver_ok = driver_ok, .reset = reset};

/* ---- making one ---- */

void virtio_net_set_link(struct virtio_net *n, bool up)
{
	pthread_mutex_lock(&n->v.lock);
	le16_store(n->config + CONFIG_STATUS, up ? STATUS_LINK_UP : 0);
	virtio_config_changed(&n->v);
	pthread_mutex_unlock(&n->v.lock);
}

int virtio_net_create(struct virtio_net **out, const struct virtio_net_config *cfg,
		      struct error *err)
{
	struct virtio_net *n = calloc(1, sizeof(*n));
	struct virtio_config vc = {.name = cfg->name, .id = VIRTIO_ID_NET, .mem = cfg->mem};
	struct virtio_pci_config pc = {cfg->host, cfg->slot_fn, 0x020000, cfg->transitional};
	int r;

	if (!n)
		return err_set(err, ENOMEM, "%s: out of memory", cfg->name);
	n->net = cfg->net;
	memcpy(n->config + CONFIG_MAC, cfg->mac, sizeof(cfg->mac));
	le16_store(n->config + CONFIG_STATUS, STATUS_LINK_UP);
	vc.features = BIT(F_MAC) | BIT(F_MRG_RXBUF) | BIT(F_STATUS);
	vc.nr_queues = 2;
	vc.queue_size = QUEUE_SIZE;
	vc.config = n->config;
	vc.config_len = CONFIG_SIZE;
	r = virtio_init(&n->v, &vc, &ops, err);
	if (r < 0)
		goto free;
	r = virtio_pci_init(&n->pci, &n->v, &pc, err);
	if (r < 0)
		goto stop;
	n->net->opaque = n;
	n->net->receive = receive;
	*out = n;
	return 0;

stop:
	virtio_stop(&n->v);
	virtio_fini(&n->v);
free:
	free(n);
	return r;
}

void virtio_net_destroy(struct virtio_net *n)
{
	if (!n)
		return;
	net_detach(n->net); /* no frame comes from here on */
	virtio_pci_fini(&n->pci);
	virtio_fini(&n->v);
	free(n);
}

struct virtio_dev *virtio_net_dev(struct virtio_net *d)
{
	return &d->v;
}

void virtio_net_state(struct state *s, void *virtio_net)
{
	struct virtio_net *n = virtio_net;

	state_enter(s, "virtio-net", 1);
	virtio_pci_state(s, &n->pci);
	pthread_mutex_lock(&n->v.lock);
	state_bytes(s, "config", n->config, sizeof(n->config));
	if (state_loading(s))
		n->rx_refused = true; /* as driver_ok: opens the traffic */
	pthread_mutex_unlock(&n->v.lock);
	state_leave(s);
}
