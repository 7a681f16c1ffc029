/* vhost-user-net and vhost-net.  virtio 1.2 5.1. */
#include "devices/virtio/vhost_net.h"

#include "base/bytes.h"
#include "base/error.h"
#include "devices/virtio/vhost.h"
#include "state/state.h"

#include <errno.h>
#include <stdlib.h>

// clang-format off
enum {
	QUEUE_SIZE = 256, NR_QUEUES = 2, CONFIG_MAC = 0, CONFIG_STATUS = 6, CONFIG_SIZE = 8,
	STATUS_LINK_UP = 1,
	F_CSUM = 0, F_GUEST_CSUM = 1, F_MAC = 5, F_GUEST_TSO4 = 7, F_GUEST_TSO6 = 8,
	F_GUEST_ECN = 9, F_GUEST_UFO = 10, F_HOST_TSO4 = 11, F_HOST_TSO6 = 12, F_HOST_ECN = 13,
	F_HOST_UFO = 14, F_MRG_RXBUF = 15, F_STATUS = 16,
};
// clang-format on

/* What is between the driver and the back end alone. */
#define OFFLOADS                                                                                   \
	(BIT(F_CSUM) | BIT(F_GUEST_CSUM) | BIT(F_GUEST_TSO4) | BIT(F_GUEST_TSO6) |                 \
	 BIT(F_GUEST_ECN) | BIT(F_GUEST_UFO) | BIT(F_HOST_TSO4) | BIT(F_HOST_TSO6) |               \
	 BIT(F_HOST_ECN) | BIT(F_HOST_UFO) | BIT(F_MRG_RXBUF))

struct vhost_net {
	struct vhost h;
	struct virtio_pci pci;
	uint8_t config[CONFIG_SIZE];
};

static const struct vhost_front front = {.finishes = false};

static int init(struct vhost_net *n, const struct vhost_net_config *cfg, struct error *err)
{
	struct virtio_config vc = {.name = cfg->name,
				   .id = VIRTIO_ID_NET,
				   .mem = cfg->mem,
				   .features = OFFLOADS,
				   .nr_queues = NR_QUEUES,
				   .queue_size = QUEUE_SIZE,
				   .config = n->config,
				   .config_len = CONFIG_SIZE};
	struct virtio_pci_config pc = {cfg->host, cfg->slot_fn, 0x020000, cfg->transitional};
	int r;

	memcpy(n->config + CONFIG_MAC, cfg->mac, sizeof(cfg->mac));
	le16_store(n->config + CONFIG_STATUS, STATUS_LINK_UP);
	r = vhost_init(&n->h, &vc, &front, cfg->backend, cfg->loop, err);
	if (r < 0)
		return r;
	/* Address and link are ours to tell, whatever the back end knows of them. */
	n->h.v.offered |= BIT(F_MAC) | BIT(F_STATUS);
	r = virtio_pci_init(&n->pci, &n->h.v, &pc, err);
	if (r < 0) {
		virtio_stop(&n->h.v);
		vhost_fini(&n->h);
	}
	return r;
}

int vhost_net_create(struct vhost_net **out, const struct vhost_net_config *cfg, struct error *err)
{
	struct vhost_net *n = calloc(1, sizeof(*n));
	int r;

	if (!n || cfg->backend->max_queues < NR_QUEUES) {
		cfg->backend->ops->close(cfg->backend);
		r = n ? err_set(err, EPROTO, "%s: its back end has no pair of queues", cfg->name)
		      : err_errno(err, ENOMEM, "%s", cfg->name);
	} else {
		r = init(n, cfg, err);
	}
	if (r < 0)
		free(n);
	else
		*out = n;
	return r;
}

void vhost_net_destroy(struct vhost_net *n)
{
	if (!n)
		return;
	virtio_pci_fini(&n->pci);
	vhost_fini(&n->h);
	free(n);
}

void vhost_net_state(struct state *s, void *vhost_net)
{
	struct vhost_net *n = vhost_net;

	state_enter(s, "virtio-net", 1); /* a card is a card to the guest */
	virtio_pci_state(s, &n->pci);
	pthread_mutex_lock(&n->h.v.lock);
	state_bytes(s, "config", n->config, sizeof(n->config));
	pthread_mutex_unlock(&n->h.v.lock);
	state_leave(s);
}

struct virtio_dev *vhost_net_dev(struct vhost_net *n)
{
	return &n->h.v;
}

bool vhost_net_is_whole(struct vhost_net *n)
{
	return vhost_is_whole(&n->h);
}
