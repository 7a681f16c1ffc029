/* driver.h - a small virtio driver for tests: a board with bus, RAM and PCI host, and the steps a
 * guest driver takes through them.  Everything goes through the bus and guest memory, nothing
 * reaches into the device.  One thread. */
#pragma once

#include "base/bytes.h"
#include "base/error.h"
#include "bus/pci.h"
#include "mem/mem.h"
#include "state/stream.h"
#include "test.h"

#include <stdatomic.h>

enum { ECAM_BASE = 0xb0000000, RAM_SIZE = 4 << 20, RING_BASE = 0x10000, RING_STRIDE = 0x4000 };
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { MSIX_TABLE_BAR = 1, MODERN_BAR = 4 };

struct rig {
	struct bus *bus;
	struct mem *mem;
	struct pci_host *host;
	atomic_uint nr_msi;
	atomic_uint msi_count[64]; /* by data */
	atomic_bool pirq[8];
};

static void rig_msi(void *opaque, uint64_t addr, uint32_t data)
{
	struct rig *r = opaque;

	atomic_fetch_add(&r->msi_count[data % 64], 1);
	atomic_fetch_add(&r->nr_msi, 1);
}

static void rig_pirq(void *opaque, unsigned n, bool level)
{
	atomic_store(&((struct rig *)opaque)->pirq[n], level);
}

static inline void rig_init(struct rig *r)
{
	struct pci_host_config cfg = {.ecam_gpa = ECAM_BASE, .ecam_buses = 64};

	memset(r, 0, sizeof(*r));
	CHECK_EQ(0, bus_create(&r->bus, NULL));
	CHECK_EQ(0, mem_create(&r->mem, NULL));
	CHECK_EQ(0, mem_add_ram(r->mem, 0, RAM_SIZE, NULL));
	cfg.bus = r->bus;
	cfg.msi = (struct msi_sink){rig_msi, r};
	for (unsigned i = 0; i < 8; i++)
		cfg.pirq[i] = (struct irq_line){rig_pirq, r, i};
	CHECK_EQ(0, pci_host_create(&r->host, &cfg, NULL));
}

/* After the devices have been created. */
static inline void rig_assign(struct rig *r)
{
	struct pci_window mmio = {0xc0000000, 0x10000000}, none = {0}, io = {0xc000, 0x1000};

	CHECK_EQ(0, pci_assign_resources(r->host, mmio, none, io, NULL));
}

static inline void rig_fini(struct rig *r)
{
	pci_host_destroy(r->host);
	mem_destroy(r->mem);
	bus_destroy(r->bus);
}

/* ---- one device ---- */

struct drv {
	struct rig *rig;
	unsigned slot;
	gpa_t common, isr, config, notify, msix;
	uint32_t notify_mult, window; /* window: offset of the PCI_CFG capability */
	uint16_t io;                  /* legacy BAR, 0 = none */
};

static inline uint32_t drv_cfg(struct drv *d, unsigned reg, unsigned size)
{
	return bus_mmio_read(d->rig->bus, ECAM_BASE + (d->slot << 15) + reg, size);
}

static inline void drv_cfg_write(struct drv *d, unsigned reg, uint32_t v, unsigned size)
{
	bus_mmio_write(d->rig->bus, ECAM_BASE + (d->slot << 15) + reg, v, size);
}

static inline gpa_t drv_bar(struct drv *d, unsigned n)
{
	uint32_t lo = drv_cfg(d, 0x10 + 4 * n, 4);

	if (lo & 1)
		return lo & ~3u;
	if ((lo & 6) == 4)
		return (lo & ~15u) | (uint64_t)drv_cfg(d, 0x14 + 4 * n, 4) << 32;
	return lo & ~15u;
}

static inline void drv_found_cap(struct drv *d, unsigned at)
{
	gpa_t where = drv_bar(d, drv_cfg(d, at + 4, 1)) + drv_cfg(d, at + 8, 4);

	switch (drv_cfg(d, at + 3, 1)) {
	case 1:
		d->common = where;
		break;
	case 2:
		d->notify = where;
		d->notify_mult = drv_cfg(d, at + 16, 4);
		break;
	case 3:
		d->isr = where;
		break;
	case 4:
		d->config = where;
		break;
	case 5:
		d->window = at;
		break;
	}
}

static inline void drv_probe(struct drv *d, struct rig *r, unsigned slot)
{
	*d = (struct drv){.rig = r, .slot = slot};
	CHECK_EQ(0x1af4, drv_cfg(d, 0, 2));
	for (unsigned at = drv_cfg(d, 0x34, 1); at; at = drv_cfg(d, at + 1, 1)) {
		if (drv_cfg(d, at, 1) == PCI_CAP_VENDOR)
			drv_found_cap(d, at);
		if (drv_cfg(d, at, 1) == PCI_CAP_MSIX)
			d->msix = at;
	}
	CHECK(d->common && d->notify && d->isr && d->msix);
	if (drv_cfg(d, 0x10, 4) & 1)
		d->io = drv_bar(d, 0);
	drv_cfg_write(d, PCI_COMMAND, PCI_COMMAND_MEM | PCI_COMMAND_IO | PCI_COMMAND_MASTER, 2);
}

static inline uint64_t drv_rd(struct drv *d, gpa_t at, unsigned size)
{
	return bus_mmio_read(d->rig->bus, at, size);
}

static inline void drv_wr(struct drv *d, gpa_t at, uint64_t v, unsigned size)
{
	bus_mmio_write(d->rig->bus, at, v, size);
}

static inline uint8_t drv_status(struct drv *d)
{
	return drv_rd(d, d->common + 0x14, 1);
}

static inline void drv_set_status(struct drv *d, uint8_t v)
{
	drv_wr(d, d->common + 0x14, v, 1);
}

static inline uint64_t drv_offered(struct drv *d)
{
	uint64_t v;

	drv_wr(d, d->common, 0, 4);
	v = drv_rd(d, d->common + 4, 4);
	drv_wr(d, d->common, 1, 4);
	return v | drv_rd(d, d->common + 4, 4) << 32;
}

/* Reset, acknowledge, features.  Returns the status read back after FEATURES_OK. */
static inline uint8_t drv_negotiate(struct drv *d, uint64_t features)
{
	drv_set_status(d, 0);
	CHECK_EQ(0, drv_status(d));
	drv_set_status(d, 1);
	drv_set_status(d, 3);
	drv_wr(d, d->common + 8, 0, 4);
	drv_wr(d, d->common + 0xc, (uint32_t)features, 4);
	drv_wr(d, d->common + 8, 1, 4);
	drv_wr(d, d->common + 0xc, features >> 32, 4);
	drv_set_status(d, 11);
	return drv_status(d);
}

/* MSI-X vector n sends data n. */
static inline void drv_msix_on(struct drv *d, unsigned nr)
{
	gpa_t table = drv_bar(d, MSIX_TABLE_BAR);

	drv_cfg_write(d, d->msix + 2, PCI_MSIX_ENABLE, 2);
	for (unsigned i = 0; i < nr; i++) {
		drv_wr(d, table + 16 * i, 0xfee00000, 8);
		drv_wr(d, table + 16 * i + 8, i, 8);
	}
}

/* ---- one queue ---- */

struct drv_queue {
	struct drv *d;
	unsigned index;
	uint16_t size;
	gpa_t desc, avail, used;
	uint16_t next_desc, avail_idx, seen;
	bool event_idx;
};

static inline void drv_put16(struct drv_queue *q, gpa_t at, uint16_t v)
{
	CHECK_EQ(0, mem_store16(q->d->rig->mem, at, v));
}

static inline uint16_t drv_get16(struct drv_queue *q, gpa_t at)
{
	uint16_t v = 0;

	CHECK_EQ(0, mem_load16(q->d->rig->mem, at, &v));
	return v;
}

static inline void drv_queue_place(struct drv_queue *q, struct drv *d, unsigned index,
				   uint16_t size)
{
	*q = (struct drv_queue){.d = d, .index = index, .size = size};
	q->desc = RING_BASE + index * RING_STRIDE;
	q->avail = q->desc + 16 * size;
	q->used = ALIGN_UP(q->avail + 6 + 2 * size, PAGE_SIZE);
	mem_zero(d->rig->mem, q->desc, RING_STRIDE);
}

/* vector 0xffff: none. */
static inline void drv_queue_on(struct drv_queue *q, struct drv *d, unsigned index, uint16_t size,
				uint16_t vector)
{
	gpa_t c = d->common;

	drv_queue_place(q, d, index, size);
	drv_wr(d, c + 0x16, index, 2);
	drv_wr(d, c + 0x18, size, 2);
	CHECK_EQ(size, drv_rd(d, c + 0x18, 2));
	drv_wr(d, c + 0x1a, vector, 2);
	CHECK_EQ(vector, drv_rd(d, c + 0x1a, 2));
	drv_wr(d, c + 0x20, q->desc, 8);
	drv_wr(d, c + 0x28, (uint32_t)q->avail, 4);
	drv_wr(d, c + 0x2c, q->avail >> 32, 4);
	drv_wr(d, c + 0x30, q->used, 8);
	drv_wr(d, c + 0x1c, 1, 2);
	CHECK_EQ(1, drv_rd(d, c + 0x1c, 2));
}

static inline void drv_desc(struct drv_queue *q, gpa_t table, unsigned i, gpa_t gpa, uint32_t len,
			    uint16_t flags, uint16_t next)
{
	uint8_t raw[16];

	le64_store(raw, gpa);
	le32_store(raw + 8, len);
	le16_store(raw + 12, flags);
	le16_store(raw + 14, next);
	CHECK_EQ(0, mem_write(q->d->rig->mem, table + 16ull * i, raw, sizeof(raw)));
}

/* Put a head on the driver ring without telling the device. */
static inline void drv_offer(struct drv_queue *q, uint16_t head)
{
	drv_put16(q, q->avail + 4 + 2 * (q->avail_idx % q->size), head);
	q->avail_idx++;
	drv_put16(q, q->avail + 2, q->avail_idx);
}

struct drv_seg {
	gpa_t gpa;
	uint32_t len;
	bool write;
};

/* A chain of direct descriptors; returns its head. */
static inline uint16_t drv_add(struct drv_queue *q, const struct drv_seg *s, unsigned n)
{
	uint16_t head = q->next_desc;

	for (unsigned i = 0; i < n; i++) {
		uint16_t at = (head + i) % q->size;

		drv_desc(q, q->desc, at, s[i].gpa, s[i].len,
			 (s[i].write ? DESC_WRITE : 0) | (i + 1 < n ? DESC_NEXT : 0),
			 (at + 1) % q->size);
	}
	q->next_desc = (head + n) % q->size;
	drv_offer(q, head);
	return head;
}

static inline void drv_kick(struct drv_queue *q)
{
	drv_wr(q->d, q->d->notify + q->d->notify_mult * q->index, q->index, 2);
}

static inline bool drv_used_ready(struct drv_queue *q)
{
	return drv_get16(q, q->used + 2) != q->seen;
}

/* Waits for the next used entry; false after half a second without one. */
static inline bool drv_used(struct drv_queue *q, uint32_t *head, uint32_t *len)
{
	uint8_t raw[8];

	for (int i = 0; i < 2500 && !drv_used_ready(q); i++)
		usleep(200);
	if (!drv_used_ready(q))
		return false;
	CHECK_EQ(0, mem_read(q->d->rig->mem, q->used + 4 + 8 * (q->seen % q->size), raw, 8));
	q->seen++;
	*head = le32_load(raw);
	*len = le32_load(raw + 4);
	return true;
}

/* Add, kick, wait: the written length. */
static inline uint32_t drv_do(struct drv_queue *q, const struct drv_seg *s, unsigned n)
{
	uint16_t head = drv_add(q, s, n);
	uint32_t got = ~0u, len = 0;

	drv_kick(q);
	CHECK(drv_used(q, &got, &len));
	CHECK_EQ(head, got);
	return len;
}

static inline bool drv_wait_status(struct drv *d, uint8_t bit)
{
	for (int i = 0; i < 2500 && !(drv_status(d) & bit); i++)
		usleep(200);
	return drv_status(d) & bit;
}

static inline bool rig_wait_msi(struct rig *r, unsigned data, unsigned count)
{
	for (int i = 0; i < 2500 && atomic_load(&r->msi_count[data]) < count; i++)
		usleep(200);
	return atomic_load(&r->msi_count[data]) >= count;
}
