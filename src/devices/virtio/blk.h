/* devices/virtio/blk.h - virtio block device on a disk of the block layer.
 *
 * One queue; requests run asynchronously in the block layer's threads.  Offers FLUSH, DISCARD and
 * WRITE_ZEROES where the disk can, GET_ID with the given serial.  A driver that does not take FLUSH
 * gets write-through.  Host I/O errors reach the guest as VIRTIO_BLK_S_IOERR.
 *
 * create does not take blk: destroy the device first (it waits for its requests), then close it.
 * Spec: virtio 1.2 5.2. */
#pragma once

#include "devices/virtio/transport_pci.h"

struct blk;
struct virtio_blk;

struct virtio_blk_config {
	const char *name; /* borrowed; "disk0" */
	struct pci_host *host;
	int slot_fn;
	bool transitional;
	struct mem *mem;
	struct blk *blk;
	const char *serial; /* at most 20 bytes are shown; NULL = none */
};

int virtio_blk_create(struct virtio_blk **out, const struct virtio_blk_config *cfg,
		      struct error *err);
void virtio_blk_destroy(struct virtio_blk *b);
void virtio_blk_state(struct state *s, void *virtio_blk);
struct virtio_dev *virtio_blk_dev(struct virtio_blk *d); /* to pause it */
