/* virtio console.
 *
 * Input waits in a small buffer until the guest offers room, so what is typed before the driver is
 * up is not lost.  Output stops in the middle of a chain when the host end is full; the chain goes
 * back to the ring and tx_done says how much of it is gone.
 *
 * The chardev is always called with our lock dropped: it may be calling us at the same moment.
 *
 * virtio 1.2 5.3. */
#include "devices/virtio/console.h"

#include "base/error.h"
#include "console/chardev.h"
#include "state/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { QUEUE_RX = 0, QUEUE_TX = 1, QUEUE_SIZE = 64, PENDING_MAX = 1024, TX_PIECE = 4096 };

struct virtio_console {
	struct virtio_dev v;
	struct virtio_pci pci;
	struct chardev *chr;
	/* Guarded by v.lock. */
	uint8_t pending[PENDING_MAX]; /* typed, not yet taken by the guest */
	uint32_t nr_pending;
	bool room_made; /* the chardev may send again */
	uint64_t tx_done;
};

/* ---- input ---- */

static void rx_flush(struct virtio_console *con)
{
	struct vq *q = &con->v.vq[QUEUE_RX];
	struct vq_chain c;

	while (con->nr_pending && virtio_pop(&con->v, q, &c)) {
		uint32_t n = MIN(con->nr_pending, c.in_len);

		if (vq_chain_write(q, &c, 0, con->pending, n) < 0)
			return virtio_needs_reset(&con->v, "buffer is not in RAM");
		virtio_push(&con->v, q, &c, n);
		con->nr_pending -= n;
		memmove(con->pending, con->pending + n, con->nr_pending);
		con->room_made = true;
	}
}

static size_t can_receive(void *opaque)
{
	struct virtio_console *con = opaque;
	size_t room;

	pthread_mutex_lock(&con->v.lock);
	room = PENDING_MAX - con->nr_pending;
	pthread_mutex_unlock(&con->v.lock);
	return room;
}

static void receive(void *opaque, const uint8_t *buf, size_t len)
{
	struct virtio_console *con = opaque;

	pthread_mutex_lock(&con->v.lock);
	len = MIN(len, PENDING_MAX - con->nr_pending);
	memcpy(con->pending + con->nr_pending, buf, len);
	con->nr_pending += len;
	pthread_mutex_unlock(&con->v.lock);
	virtio_kick(&con->v, QUEUE_RX);
}

/* ---- output: worker ---- */

/* False: the host end is full, the chain is back in the ring. */
static bool tx_chain(struct virtio_console *con, struct vq *q, struct vq_chain *c)
{
	uint8_t buf[TX_PIECE];

	while (con->tx_done < c->out_len) {
		size_t n = MIN(sizeof(buf), c->out_len - con->tx_done), sent;

		if (vq_chain_read(q, c, con->tx_done, buf, n) < 0) {
			virtio_needs_reset(&con->v, "buffer is not in RAM");
			return false;
		}
		virtio_hold(&con->v);
		pthread_mutex_unlock(&con->v.lock);
		sent = chr_write(con->chr, buf, n);
		pthread_mutex_lock(&con->v.lock);
		con->tx_done += sent;
		if (sent < n && vq_is_current(q, c))
			vq_unpop(q, 1);
		virtio_release(&con->v);
		if (sent < n || !vq_is_current(q, c))
			return false;
	}
	con->tx_done = 0;
	virtio_push(&con->v, q, c, 0);
	return true;
}

static void writable(void *opaque)
{
	struct virtio_console *con = opaque;

	virtio_kick(&con->v, QUEUE_TX);
}

static void queue_run(struct virtio_dev *v, unsigned queue)
{
	struct virtio_console *con = container_of(v, struct virtio_console, v);
	struct vq *q = &v->vq[queue];
	struct vq_chain c;

	if (queue == QUEUE_RX) {
		do {
			rx_flush(con);
		} while (virtio_more(v, q) && con->nr_pending);
		return;
	}
	do {
		while (virtio_pop(v, q, &c))
			if (!tx_chain(con, q, &c))
				return; /* writable() comes back here */
	} while (virtio_more(v, q));
}

static void idle(struct virtio_dev *v)
{
	struct virtio_console *con = container_of(v, struct virtio_console, v);
	bool tell;

	pthread_mutex_lock(&v->lock);
	tell = con->room_made;
	con->room_made = false;
	pthread_mutex_unlock(&v->lock);
	if (tell)
		chr_accept_input(con->chr);
}

static void reset(struct virtio_dev *v)
{
	container_of(v, struct virtio_console, v)->tx_done = 0;
}

static const struct virtio_ops ops = {.queue_run = queue_run, .idle = idle, .reset = reset};

/* ---- making one ---- */

int virtio_console_create(struct virtio_console **out, const struct virtio_console_config *cfg,
			  struct error *err)
{
	struct virtio_console *con = calloc(1, sizeof(*con));
	struct virtio_config vc = {.name = cfg->name, .id = VIRTIO_ID_CONSOLE, .mem = cfg->mem};
	struct virtio_pci_config pc = {cfg->host, cfg->slot_fn, 0x078000, cfg->transitional};
	int r;

	if (!con)
		return err_set(err, ENOMEM, "%s: out of memory", cfg->name);
	con->chr = cfg->chr;
	vc.nr_queues = 2;
	vc.queue_size = QUEUE_SIZE;
	r = virtio_init(&con->v, &vc, &ops, err);
	if (r < 0)
		goto free;
	r = virtio_pci_init(&con->pci, &con->v, &pc, err);
	if (r < 0)
		goto stop;
	chr_set_handlers(con->chr, &(struct chr_handlers){can_receive, receive, writable, con});
	*out = con;
	return 0;

stop:
	virtio_stop(&con->v);
	virtio_fini(&con->v);
free:
	free(con);
	return r;
}

void virtio_console_destroy(struct virtio_console *con)
{
	if (!con)
		return;
	chr_set_handlers(con->chr, NULL);
	virtio_pci_fini(&con->pci);
	virtio_fini(&con->v);
	free(con);
}

struct virtio_dev *virtio_console_dev(struct virtio_console *d)
{
	return &d->v;
}

void virtio_console_state(struct state *s, void *virtio_console)
{
	struct virtio_console *con = virtio_console;

	state_enter(s, "virtio-console", 1);
	virtio_pci_state(s, &con->pci);
	pthread_mutex_lock(&con->v.lock);
	state_bytes(s, "pending", con->pending, sizeof(con->pending));
	state_u32(s, "nr_pending", &con->nr_pending);
	state_u64(s, "tx_done", &con->tx_done);
	state_check(s, con->nr_pending <= PENDING_MAX, "console input longer than its buffer");
	if (s->failed)
		con->nr_pending = 0;
	pthread_mutex_unlock(&con->v.lock);
	state_leave(s);
}
