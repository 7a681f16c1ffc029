/* The root complex: how configuration accesses, PIRQs and start-up resources reach devices.
 *
 *	CF8/CFC, ECAM ──> pci_cfg_read/write of 00:slot.fn
 *	INTx pins ──swizzle──> PIRQ A..H ──> the machine's eight lines (I/O APIC)
 *	                             └──route registers──> its ISA lines (8259) */
#include "bus/pci_internal.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "state/state.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static struct log_component log_pci = LOG_COMPONENT("pci");

enum {
	CF8_ENABLE = 1u << 31,
	CF9_WRITABLE = 0x0e, /* full reset, reset CPU, system reset */
	CF9_RESET_CPU = 1 << 2,
	BRIDGE_PCIEXBAR = 0x60,
	BRIDGE_PIRQ_AD = 0x60,
	BRIDGE_PIRQ_EH = 0x68,
	PIRQ_NOT_ROUTED = 0x80,
	ISA_ROUTABLE = 0xdef8, /* 3..7, 9..12, 14, 15 */
};

/* ---- interrupts ---- */

/* ICH9 as q35 boards wire it: slots 0..24 rotate over PIRQ E..H, the chipset's own use A..D. */
unsigned pci_pirq_of(unsigned slot, unsigned pin)
{
	if (slot < 25)
		return (slot + pin - 1) % 4 + 4;
	return (pin - 1) % 4;
}

static void isa_update(struct pci_host *h)
{
	uint16_t up = 0, changed;

	for (unsigned p = 0; p < PCI_NR_PIRQ; p++)
		if (h->pirq_users[p] && !(h->pirq_route[p] & PIRQ_NOT_ROUTED))
			up |= 1u << (h->pirq_route[p] & 15);
	up &= ISA_ROUTABLE;
	changed = up ^ h->isa_driven;
	h->isa_driven = up;
	for (unsigned n = 0; n < 16; n++)
		if (changed & 1u << n)
			irq_set(&h->cfg.isa[n], up & 1u << n);
}

void pci_pirq_change(struct pci_host *h, unsigned pirq, bool level)
{
	pthread_mutex_lock(&h->pirq_lock);
	h->pirq_users[pirq] += level ? 1 : -1;
	if (h->pirq_users[pirq] == level) { /* first one up, last one down */
		irq_set(&h->cfg.pirq[pirq], level);
		isa_update(h);
	}
	pthread_mutex_unlock(&h->pirq_lock);
}

static void isa_bridge_routes(struct pci_dev *d)
{
	struct pci_host *h = d->host;

	pthread_mutex_lock(&h->pirq_lock);
	memcpy(h->pirq_route, d->cfg + BRIDGE_PIRQ_AD, 4);
	memcpy(h->pirq_route + 4, d->cfg + BRIDGE_PIRQ_EH, 4);
	isa_update(h);
	pthread_mutex_unlock(&h->pirq_lock);
}

static void isa_bridge_written(struct pci_dev *d, unsigned off, unsigned len)
{
	isa_bridge_routes(d);
}

static void isa_bridge_reset(struct pci_dev *d)
{
	memset(d->cfg + BRIDGE_PIRQ_AD, PIRQ_NOT_ROUTED, 4);
	memset(d->cfg + BRIDGE_PIRQ_EH, PIRQ_NOT_ROUTED, 4);
	isa_bridge_routes(d);
}

static const struct pci_dev_ops isa_bridge_ops = {
	.config_written = isa_bridge_written,
	.reset = isa_bridge_reset,
};

/* ---- the ways into configuration space ---- */

static uint32_t host_read(struct pci_host *h, unsigned bus, unsigned devfn, unsigned off,
			  unsigned size)
{
	uint32_t v = ~0u; /* what a master abort reads */

	pthread_mutex_lock(&h->cfg_lock);
	if (bus == 0 && h->dev[devfn])
		v = pci_cfg_read_locked(h->dev[devfn], off, MIN(size, PCI_CFG_SIZE - off));
	pthread_mutex_unlock(&h->cfg_lock);
	return v;
}

static void host_write(struct pci_host *h, unsigned bus, unsigned devfn, unsigned off,
		       uint32_t value, unsigned size)
{
	pthread_mutex_lock(&h->cfg_lock);
	if (bus == 0 && h->dev[devfn])
		pci_cfg_write_locked(h->dev[devfn], off, value, MIN(size, PCI_CFG_SIZE - off));
	pthread_mutex_unlock(&h->cfg_lock);
}

/* PCIe 4.0 7.2.2: bus, device, function and register are the address. */
static uint64_t ecam_read(void *opaque, uint64_t off, unsigned size)
{
	return host_read(opaque, off >> 20, (off >> 12) & 0xff, off & 0xfff, size);
}

static void ecam_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	host_write(opaque, off >> 20, (off >> 12) & 0xff, off & 0xfff, value, size);
}

/* CF8 answers only whole dwords (PCI 3.0 3.2.2.3.2); byte 1 of it is the reset control register. */
static uint64_t cf8_read(void *opaque, uint64_t off, unsigned size)
{
	struct pci_host *h = opaque;
	uint32_t v = ~0u;

	pthread_mutex_lock(&h->cfg_lock);
	if (off == 0 && size == 4)
		v = h->cf8;
	else if (off == 1 && size == 1)
		v = h->cf9;
	pthread_mutex_unlock(&h->cfg_lock);
	return v;
}

/* The reset happens when bit 2 goes from 0 to 1 (ICH9 datasheet, RST_CNT). */
static void cf9_write(struct pci_host *h, uint8_t value)
{
	bool fire;

	pthread_mutex_lock(&h->cfg_lock);
	fire = (value & CF9_RESET_CPU) && !(h->cf9 & CF9_RESET_CPU);
	h->cf9 = value & CF9_WRITABLE;
	pthread_mutex_unlock(&h->cfg_lock);
	if (fire && h->cfg.reset)
		h->cfg.reset(h->cfg.reset_opaque);
}

static void cf8_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct pci_host *h = opaque;

	if (off == 1 && size == 1) {
		cf9_write(h, value);
	} else if (off == 0 && size == 4) {
		pthread_mutex_lock(&h->cfg_lock);
		h->cf8 = value & ~3u;
		pthread_mutex_unlock(&h->cfg_lock);
	}
}

static uint32_t cf8_latch(struct pci_host *h)
{
	uint32_t v;

	pthread_mutex_lock(&h->cfg_lock);
	v = h->cf8;
	pthread_mutex_unlock(&h->cfg_lock);
	return v;
}

static uint64_t cfc_read(void *opaque, uint64_t off, unsigned size)
{
	uint32_t at = cf8_latch(opaque);

	if (!(at & CF8_ENABLE))
		return ~0u;
	return host_read(opaque, (at >> 16) & 0xff, (at >> 8) & 0xff, (at & 0xfc) + off, size);
}

static void cfc_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	uint32_t at = cf8_latch(opaque);

	if (at & CF8_ENABLE)
		host_write(opaque, (at >> 16) & 0xff, (at >> 8) & 0xff, (at & 0xfc) + off, value,
			   size);
}

static const struct io_ops cf8_ops = {cf8_read, cf8_write, 4};
static const struct io_ops cfc_ops = {cfc_read, cfc_write, 4};
static const struct io_ops ecam_ops = {ecam_read, ecam_write, 4};

/* ---- making one ---- */

/* PCIEXBAR shows the ECAM window as firmware would have left it, locked. */
static void host_bridge_init(struct pci_host *h)
{
	static const struct pci_id id = {
		.vendor = 0x8086, .device = 0x29c0, .class_code = 0x060000};
	unsigned length = h->cfg.ecam_buses == 256 ? 0 : h->cfg.ecam_buses == 128 ? 1 : 2;

	pci_dev_init(&h->host_bridge, "host-bridge", &id, NULL);
	if (h->cfg.ecam_gpa)
		le64_store(h->host_bridge.cfg + BRIDGE_PCIEXBAR, h->cfg.ecam_gpa | length << 1 | 1);
}

static void isa_bridge_init(struct pci_host *h)
{
	static const struct pci_id id = {
		.vendor = 0x8086, .device = 0x2918, .class_code = 0x060100};
	struct pci_dev *d = &h->isa_bridge;

	pci_dev_init(d, "isa-bridge", &id, &isa_bridge_ops);
	pci_cfg_set_writable(d, BRIDGE_PIRQ_AD, 4, 0x8f8f8f8f);
	pci_cfg_set_writable(d, BRIDGE_PIRQ_EH, 4, 0x8f8f8f8f);
}

static int host_add_regions(struct pci_host *h, struct error *err)
{
	struct bus *b = h->cfg.bus;
	int r;

	r = bus_add_pio(b, 0xcf8, 4, &cf8_ops, h, "pci-address", &h->cf8_region, err);
	if (r < 0)
		return r;
	r = bus_add_pio(b, 0xcfc, 4, &cfc_ops, h, "pci-data", &h->cfc_region, err);
	if (r < 0 || !h->cfg.ecam_gpa)
		return r;
	return bus_add_mmio(b, h->cfg.ecam_gpa, h->cfg.ecam_buses * MiB, &ecam_ops, h, "pci-ecam",
			    &h->ecam_region, err);
}

int pci_host_create(struct pci_host **out, const struct pci_host_config *cfg, struct error *err)
{
	struct pci_host *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return err_set(err, ENOMEM, "no memory for the PCI host");
	assert(!cfg->ecam_gpa || cfg->ecam_buses == 64 || cfg->ecam_buses == 128 ||
	       cfg->ecam_buses == 256);
	h->cfg = *cfg;
	pthread_mutex_init(&h->cfg_lock, NULL);
	pthread_mutex_init(&h->pirq_lock, NULL);
	host_bridge_init(h);
	isa_bridge_init(h);

	r = pci_dev_attach(&h->host_bridge, h, PCI_DEVFN(0, 0), err);
	assert(r == 0);
	r = pci_dev_attach(&h->isa_bridge, h, PCI_DEVFN(31, 0), err);
	assert(r == 0);
	isa_bridge_reset(&h->isa_bridge);

	r = host_add_regions(h, err);
	if (r < 0) {
		pci_host_destroy(h);
		return err_wrap(err, r, "PCI host");
	}
	*out = h;
	return 0;
}

static void host_remove_regions(struct pci_host *h)
{
	if (h->cf8_region)
		bus_remove(h->cfg.bus, h->cf8_region);
	if (h->cfc_region)
		bus_remove(h->cfg.bus, h->cfc_region);
	if (h->ecam_region)
		bus_remove(h->cfg.bus, h->ecam_region);
}

void pci_host_destroy(struct pci_host *h)
{
	if (!h)
		return;
	host_remove_regions(h);
	pci_dev_detach(&h->isa_bridge);
	pci_dev_detach(&h->host_bridge);
	for (unsigned i = 0; i < PCI_NR_DEVFN; i++)
		assert(!h->dev[i]);
	pci_dev_fini(&h->isa_bridge);
	pci_dev_fini(&h->host_bridge);
	pthread_mutex_destroy(&h->cfg_lock);
	pthread_mutex_destroy(&h->pirq_lock);
	free(h);
}

void pci_host_reset(struct pci_host *h)
{
	pthread_mutex_lock(&h->cfg_lock);
	h->cf8 = 0;
	h->cf9 = 0;
	for (unsigned i = 0; i < PCI_NR_DEVFN; i++)
		if (h->dev[i])
			pci_dev_reset(h->dev[i]);
	pthread_mutex_unlock(&h->cfg_lock);
}

void pci_host_state(struct state *s, void *host)
{
	struct pci_host *h = host;

	state_enter(s, "pci-host", 1);
	state_u32(s, "cf8", &h->cf8);
	state_u8(s, "cf9", &h->cf9);
	if (state_loading(s)) {
		h->cf8 &= ~3u;
		h->cf9 &= CF9_WRITABLE;
	}
	pci_dev_state(s, &h->host_bridge);
	pci_dev_state(s, &h->isa_bridge);
	if (state_loading(s))
		isa_bridge_routes(&h->isa_bridge);
	state_leave(s);
}

/* ---- what a firmware does ---- */

enum { LOW_BAR_MAX = 64 << 20 };

static uint64_t window_take(struct pci_window *w, uint64_t size)
{
	uint64_t at = ALIGN_UP(w->base, size), skip = at - w->base;

	if (at < w->base || !range_inside(skip, size, w->size))
		return 0;
	w->base = at + size;
	w->size -= skip + size;
	return at;
}

static uint64_t bar_place(const struct pci_bar *b, struct pci_window *mmio32,
			  struct pci_window *mmio64, struct pci_window *io)
{
	uint64_t at = 0;

	if (b->kind == PCI_BAR_IO)
		return window_take(io, b->size);
	if (b->kind == PCI_BAR_MEM32 || b->size <= LOW_BAR_MAX)
		at = window_take(mmio32, b->size);
	if (!at && b->kind == PCI_BAR_MEM64)
		at = window_take(mmio64, b->size);
	return at;
}

static void bar_program(struct pci_bar *b, uint64_t at)
{
	struct pci_dev *d = b->dev;
	uint8_t *reg = d->cfg + PCI_BAR0 + 4 * (b - d->bar);

	pthread_mutex_lock(&d->irq_lock);
	le32_store(reg, (uint32_t)at | (le32_load(reg) & (b->kind == PCI_BAR_IO ? 3 : 15)));
	if (b->kind == PCI_BAR_MEM64)
		le32_store(reg + 4, at >> 32);
	d->cfg[PCI_COMMAND] |= b->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEM;
	pthread_mutex_unlock(&d->irq_lock);
}

/* The largest BAR below `limit`, or the next one of size `limit` after `prev`: so that natural
 * alignment costs no holes. */
static struct pci_bar *next_bar(struct pci_host *h, uint64_t limit, unsigned *prev)
{
	struct pci_bar *best = NULL;
	unsigned best_i = 0;

	for (unsigned i = 0; i < PCI_NR_DEVFN * PCI_NR_BARS; i++) {
		struct pci_dev *d = h->dev[i / PCI_NR_BARS];
		struct pci_bar *b = d ? &d->bar[i % PCI_NR_BARS] : NULL;

		if (!b || b->kind == PCI_BAR_NONE || b->size > limit)
			continue;
		if (b->size == limit && i < *prev)
			continue;
		if (!best || b->size > best->size) {
			best = b;
			best_i = i + 1;
		}
	}
	*prev = best_i;
	return best;
}

/* 10 and 11 are what PC firmware gives PCI when there is no I/O APIC driver. */
static void assign_irqs(struct pci_host *h)
{
	static const uint8_t route[PCI_NR_PIRQ] = {10, 10, 11, 11, 10, 10, 11, 11};

	memcpy(h->isa_bridge.cfg + BRIDGE_PIRQ_AD, route, 4);
	memcpy(h->isa_bridge.cfg + BRIDGE_PIRQ_EH, route + 4, 4);
	isa_bridge_routes(&h->isa_bridge);
	for (unsigned i = 0; i < PCI_NR_DEVFN; i++) {
		struct pci_dev *d = h->dev[i];

		if (d && d->cfg[PCI_INTERRUPT_PIN])
			d->cfg[PCI_INTERRUPT_LINE] =
				route[pci_pirq_of(i >> 3, d->cfg[PCI_INTERRUPT_PIN])];
	}
}

int pci_assign_resources(struct pci_host *h, struct pci_window mmio32, struct pci_window mmio64,
			 struct pci_window io, struct error *err)
{
	struct pci_bar *b;
	unsigned prev = 0;
	uint64_t limit = UINT64_MAX;
	int r = 0;

	pthread_mutex_lock(&h->cfg_lock);
	for (; (b = next_bar(h, limit, &prev)); limit = b->size) {
		uint64_t at = bar_place(b, &mmio32, &mmio64, &io);

		if (!at) {
			r = err_set(err, ENOSPC, "no address space left for BAR %u of %s",
				    (unsigned)(b - b->dev->bar), b->dev->name);
			break;
		}
		log_debug(&log_pci, "%s: BAR %u at %#llx", b->dev->name,
			  (unsigned)(b - b->dev->bar), (unsigned long long)at);
		bar_program(b, at);
	}
	assign_irqs(h);
	pci_host_remap(h);
	pthread_mutex_unlock(&h->cfg_lock);
	return r;
}
