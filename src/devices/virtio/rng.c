/* virtio entropy.  virtio 1.2 5.4. */
#include "devices/virtio/rng.h"

#include "base/error.h"
#include "state/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { QUEUE_SIZE = 64, MAX_FILL = 4096 };

struct virtio_rng {
	struct virtio_dev v;
	struct virtio_pci pci;
};

/* 256 bytes is what getrandom gives in one piece without being interrupted. */
static uint32_t fill(uint8_t *buf, uint32_t len)
{
	uint32_t got = 0;

	while (got < len) {
		ssize_t n = getrandom(buf + got, MIN(len - got, 256u), 0);

		if (n < 0)
			break;
		got += n;
	}
	return got;
}

static void serve(struct virtio_dev *v, struct vq *q, const struct vq_chain *c)
{
	uint8_t buf[MAX_FILL];
	uint32_t len = fill(buf, MIN(c->in_len, sizeof(buf)));

	if (vq_chain_write(q, c, 0, buf, len) < 0)
		virtio_needs_reset(v, "buffer is not in RAM");
	else
		virtio_push(v, q, c, len);
	explicit_bzero(buf, len);
}

static void queue_run(struct virtio_dev *v, unsigned queue)
{
	struct vq *q = &v->vq[queue];
	struct vq_chain c;

	do {
		while (virtio_pop(v, q, &c))
			serve(v, q, &c);
	} while (virtio_more(v, q));
}

static const struct virtio_ops ops = {.queue_run = queue_run};

int virtio_rng_create(struct virtio_rng **out, const struct virtio_rng_config *cfg,
		      struct error *err)
{
	struct virtio_rng *g = calloc(1, sizeof(*g));
	struct virtio_config vc = {.name = cfg->name, .id = VIRTIO_ID_RNG, .mem = cfg->mem};
	struct virtio_pci_config pc = {cfg->host, cfg->slot_fn, 0x00ff00, cfg->transitional};
	int r;

	if (!g)
		return err_set(err, ENOMEM, "%s: out of memory", cfg->name);
	vc.nr_queues = 1;
	vc.queue_size = QUEUE_SIZE;
	r = virtio_init(&g->v, &vc, &ops, err);
	if (r < 0)
		goto free;
	r = virtio_pci_init(&g->pci, &g->v, &pc, err);
	if (r < 0)
		goto stop;
	*out = g;
	return 0;

stop:
	virtio_stop(&g->v);
	virtio_fini(&g->v);
free:
	free(g);
	return r;
}

void virtio_rng_destroy(struct virtio_rng *g)
{
	if (!g)
		return;
	virtio_pci_fini(&g->pci);
	virtio_fini(&g->v);
	free(g);
}

struct virtio_dev *virtio_rng_dev(struct virtio_rng *d)
{
	return &d->v;
}

void virtio_rng_state(struct state *s, void *virtio_rng)
{
	struct virtio_rng *g = virtio_rng;

	state_enter(s, "virtio-rng", 1);
	virtio_pci_state(s, &g->pci);
	state_leave(s);
}
