/* machine/irqchip/ioapic.c - the I/O APIC. */
#include "machine/irqchip/ioapic.h"

#include "base/error.h"
#include "bus/bus.h"
#include "engine/engine.h"
#include "machine/memmap.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

/* A redirection table entry:
 *
 *   63..56       55..49             48..17  16    15     14    13   12   11    10..8  7..0
 *   destination  destination 14..8  0       mask  level  rirr  low  0    logi  mode   vector
 *
 * Bits 55:49 extend the destination the way KVM's interface defines it. */
#define RTE_LOGICAL  BIT(11)
#define RTE_PENDING  BIT(12)
#define RTE_RIRR     BIT(14)
#define RTE_LEVEL    BIT(15)
#define RTE_MASKED   BIT(16)
#define RTE_READONLY (RTE_RIRR | RTE_PENDING)
#define RTE_WRITABLE 0xFFFE00000001BFFFull /* with RTE_PENDING taken out on writing */

#define IOAPIC_VERSION (0x20u | (NR_GSIS - 1) << 16)
enum { REG_SELECT = 0x00, REG_WINDOW = 0x10, REG_EOI = 0x40 };
enum { INDEX_ID = 0, INDEX_VERSION = 1, INDEX_ARBITRATION = 2, INDEX_RTE = 0x10 };

struct ioapic {
	struct bus *bus;
	struct io_region *region;
	struct msi_sink msi;
	void (*changed)(void *opaque, unsigned pin, bool level, uint64_t addr, uint32_t data);
	void *changed_opaque;

	pthread_mutex_t lock; /* guards everything below */
	uint8_t select, id;
	uint32_t level; /* bit n: pin n is high */
	uint32_t edge;  /* bit n: an edge arrived while the entry was masked */
	uint64_t rte[NR_GSIS];
};

static uint64_t ioapic_address(uint64_t rte)
{
	uint64_t addr = 0xFEE00000 | (rte >> 56) << 12 | (rte >> 49 & 0x7F) << 5;

	return rte & RTE_LOGICAL ? addr | 1 << 2 : addr;
}

static uint32_t ioapic_data(uint64_t rte)
{
	return rte & (RTE_LEVEL | 0x7FF);
}

static void ioapic_send(struct ioapic *io, uint64_t rte)
{
	msi_send(&io->msi, ioapic_address(rte), ioapic_data(rte));
}

/* The message of a masked entry stays known: an interrupt of it may still be in service. */
static void ioapic_tell(struct ioapic *io, unsigned n)
{
	uint64_t rte = io->rte[n];

	if (io->changed)
		io->changed(io->changed_opaque, n, rte & RTE_LEVEL, ioapic_address(rte),
			    ioapic_data(rte));
}

static void ioapic_tell_all(struct ioapic *io)
{
	for (unsigned n = 0; n < NR_GSIS; n++)
		ioapic_tell(io, n);
}

/* Deliver pin n when its entry allows it. */
static void ioapic_service(struct ioapic *io, unsigned n)
{
	uint64_t rte = io->rte[n];

	if (rte & RTE_MASKED)
		return;
	if (rte & RTE_LEVEL) {
		if (!(io->level >> n & 1) || (rte & RTE_RIRR))
			return;
		io->rte[n] |= RTE_RIRR;
	} else {
		if (!(io->edge >> n & 1))
			return;
	}
	io->edge &= ~(1u << n);
	ioapic_send(io, rte);
}

void ioapic_set(struct ioapic *io, unsigned pin, bool level)
{
	uint32_t bit = 1u << pin;

	pthread_mutex_lock(&io->lock);
	if (!level) {
		io->level &= ~bit;
		/* An edge is kept for a masked pin, but only as long as its line stays high: a
		 * source that has fallen again has nothing left to say. */
		io->edge &= ~bit;
	} else if (!(io->level & bit)) {
		io->level |= bit;
		io->edge |= bit;
		ioapic_service(io, pin);
	}
	pthread_mutex_unlock(&io->lock);
}

void ioapic_eoi(struct ioapic *io, uint8_t vector)
{
	pthread_mutex_lock(&io->lock);
	for (unsigned n = 0; n < NR_GSIS; n++)
		if ((io->rte[n] & RTE_RIRR) && (uint8_t)io->rte[n] == vector) {
			io->rte[n] &= ~RTE_RIRR;
			ioapic_service(io, n);
		}
	pthread_mutex_unlock(&io->lock);
}

static void ioapic_write_rte(struct ioapic *io, unsigned n, uint64_t value)
{
	io->rte[n] = (value & RTE_WRITABLE & ~RTE_READONLY) | (io->rte[n] & RTE_READONLY);
	/* Software without the EOI register ends a level interrupt by a turn through edge mode. */
	if (!(io->rte[n] & RTE_LEVEL))
		io->rte[n] &= ~RTE_RIRR;
	ioapic_tell(io, n);
	ioapic_service(io, n);
}

static uint32_t ioapic_window_read(struct ioapic *io)
{
	unsigned n = (io->select - INDEX_RTE) / 2u;

	switch (io->select) {
	case INDEX_ID:
	case INDEX_ARBITRATION:
		return (uint32_t)io->id << 24;
	case INDEX_VERSION:
		return IOAPIC_VERSION;
	}
	if (io->select < INDEX_RTE || n >= NR_GSIS)
		return 0;
	return io->rte[n] >> (io->select & 1) * 32;
}

static void ioapic_window_write(struct ioapic *io, uint32_t value)
{
	unsigned n = (io->select - INDEX_RTE) / 2u, shift = (io->select & 1) * 32;

	if (io->select == INDEX_ID) {
		io->id = value >> 24 & 0xF;
		return;
	}
	if (io->select < INDEX_RTE || n >= NR_GSIS)
		return;
	ioapic_write_rte(io, n,
			 (io->rte[n] & ~(0xFFFFFFFFull << shift)) | (uint64_t)value << shift);
}

static uint64_t ioapic_read(void *opaque, uint64_t off, unsigned size)
{
	struct ioapic *io = opaque;
	uint64_t v = 0;

	pthread_mutex_lock(&io->lock);
	if ((off & ~3ull) == REG_SELECT)
		v = io->select;
	else if ((off & ~3ull) == REG_WINDOW)
		v = ioapic_window_read(io);
	pthread_mutex_unlock(&io->lock);
	return v >> (off & 3) * 8;
}

static void ioapic_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct ioapic *io = opaque;

	if (off == REG_EOI) {
		ioapic_eoi(io, value);
		return;
	}
	pthread_mutex_lock(&io->lock);
	if (off == REG_SELECT)
		io->select = value;
	else if (off == REG_WINDOW && size == 4)
		ioapic_window_write(io, value);
	pthread_mutex_unlock(&io->lock);
}

static const struct io_ops ioapic_ops = {
	.read = ioapic_read,
	.write = ioapic_write,
	.max_size = 4,
};

void ioapic_reset(struct ioapic *io)
{
	pthread_mutex_lock(&io->lock);
	io->select = io->id = 0;
	io->edge = 0;
	for (unsigned n = 0; n < NR_GSIS; n++)
		io->rte[n] = RTE_MASKED;
	ioapic_tell_all(io);
	pthread_mutex_unlock(&io->lock);
}

int ioapic_create(struct ioapic **out, struct bus *bus, struct msi_sink msi, struct error *err)
{
	struct ioapic *io = calloc(1, sizeof(*io));
	int r;

	if (!io)
		return err_set(err, ENOMEM, "no memory for the I/O APIC");
	io->bus = bus;
	io->msi = msi;
	pthread_mutex_init(&io->lock, NULL);
	ioapic_reset(io);
	r = bus_add_mmio(bus, MEMMAP_IOAPIC, MEMMAP_IOAPIC_SIZE, &ioapic_ops, io, "ioapic",
			 &io->region, err);
	if (r < 0) {
		ioapic_destroy(io);
		return r;
	}
	*out = io;
	return 0;
}

void ioapic_destroy(struct ioapic *io)
{
	if (!io)
		return;
	if (io->region)
		bus_remove(io->bus, io->region);
	pthread_mutex_destroy(&io->lock);
	free(io);
}

void ioapic_state(struct state *s, struct ioapic *io)
{
	pthread_mutex_lock(&io->lock);
	state_enter(s, "ioapic", 1);
	state_u8(s, "select", &io->select);
	state_u8(s, "id", &io->id);
	state_u32(s, "level", &io->level);
	state_u32(s, "edge", &io->edge);
	for (unsigned n = 0; n < NR_GSIS; n++) {
		state_u64(s, "rte", &io->rte[n]);
		if (state_loading(s))
			io->rte[n] &= RTE_WRITABLE | RTE_RIRR;
	}
	state_leave(s);
	if (state_loading(s))
		ioapic_tell_all(io);
	pthread_mutex_unlock(&io->lock);
}

/* ---- an engine with chips of its own ---- */

void ioapic_set_watch(struct ioapic *io,
		      void (*changed)(void *opaque, unsigned pin, bool level, uint64_t addr,
				      uint32_t data),
		      void *opaque)
{
	pthread_mutex_lock(&io->lock);
	io->changed = changed;
	io->changed_opaque = opaque;
	ioapic_tell_all(io);
	pthread_mutex_unlock(&io->lock);
}

/* An edge that was delivered must not look like one that is waiting. */
void ioapic_export(struct ioapic *io, struct engine_ioapic *e)
{
	pthread_mutex_lock(&io->lock);
	*e = (struct engine_ioapic){.select = io->select, .id = io->id};
	for (unsigned n = 0; n < NR_GSIS; n++) {
		e->rte[n] = io->rte[n];
		e->level |= (io->rte[n] & RTE_LEVEL ? io->level : io->edge) & 1u << n;
	}
	pthread_mutex_unlock(&io->lock);
}

void ioapic_import(struct ioapic *io, const struct engine_ioapic *e, uint32_t levels)
{
	pthread_mutex_lock(&io->lock);
	io->select = e->select;
	io->id = e->id & 0xF;
	io->level = levels;
	io->edge = 0;
	for (unsigned n = 0; n < NR_GSIS; n++)
		io->rte[n] = e->rte[n] & (RTE_WRITABLE | RTE_RIRR);
	pthread_mutex_unlock(&io->lock);
}
