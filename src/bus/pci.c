/* A PCI device's configuration space and its BARs. */
#include "bus/pci_internal.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "state/state.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static struct log_component log_pci = LOG_COMPONENT("pci");

static const uint64_t nowhere = UINT64_MAX;

/* ---- building a device ---- */

void pci_dev_init(struct pci_dev *d, const char *name, const struct pci_id *id,
		  const struct pci_dev_ops *ops)
{
	*d = (struct pci_dev){.name = name, .ops = ops, .cap_end = PCI_CFG_HEADER_SIZE};
	pthread_mutex_init(&d->irq_lock, NULL);
	for (unsigned i = 0; i < PCI_NR_BARS; i++)
		d->bar[i].dev = d;

	le16_store(d->cfg + PCI_VENDOR_ID, id->vendor);
	le16_store(d->cfg + PCI_DEVICE_ID, id->device);
	le32_store(d->cfg + PCI_REVISION, id->class_code << 8 | id->revision);
	le16_store(d->cfg + PCI_SUBSYS_VENDOR, id->subsys_vendor);
	le16_store(d->cfg + PCI_SUBSYS_ID, id->subsys);
	d->cfg[PCI_INTERRUPT_PIN] = id->intx_pin;

	pci_cfg_set_writable(d, PCI_COMMAND, 2,
			     PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR |
				     (id->intx_pin ? PCI_COMMAND_INTX_DISABLE : 0));
	le16_store(d->w1c + PCI_STATUS, PCI_STATUS_ERRORS);
	pci_cfg_set_writable(d, PCI_CACHE_LINE, 1, 0xff);
	pci_cfg_set_writable(d, PCI_LATENCY, 1, 0xff);
	pci_cfg_set_writable(d, PCI_INTERRUPT_LINE, 1, 0xff);
}

void pci_dev_fini(struct pci_dev *d)
{
	assert(!d->host);
	free(d->msix.table);
	free(d->msix.pending);
	pthread_mutex_destroy(&d->irq_lock);
}

void pci_cfg_set_writable(struct pci_dev *d, unsigned off, unsigned len, uint32_t mask)
{
	assert(len <= 4 && off + len <= PCI_CFG_SIZE);
	for (unsigned i = 0; i < len; i++)
		d->wmask[off + i] |= mask >> (8 * i);
}

static uint64_t bar_read(void *opaque, uint64_t off, unsigned size)
{
	struct pci_bar *b = opaque;

	if (pci_msix_claims(b->dev, (unsigned)(b - b->dev->bar), off))
		return pci_msix_read(b->dev, off, size);
	return b->ops ? b->ops->read(b->opaque, off, size) : 0;
}

static void bar_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct pci_bar *b = opaque;

	if (pci_msix_claims(b->dev, (unsigned)(b - b->dev->bar), off))
		pci_msix_write(b->dev, off, value, size);
	else if (b->ops)
		b->ops->write(b->opaque, off, value, size);
}

static unsigned bar_doorbells(void *opaque, struct io_doorbell *out, unsigned max)
{
	struct pci_bar *b = opaque;

	return b->ops && b->ops->doorbells ? b->ops->doorbells(b->opaque, out, max) : 0;
}

void pci_dev_add_bar(struct pci_dev *d, unsigned n, enum pci_bar_kind kind, uint64_t size,
		     const struct io_ops *ops, void *opaque)
{
	struct pci_bar *b = &d->bar[n];
	unsigned reg = PCI_BAR0 + 4 * n;

	assert(!d->host && n + (kind == PCI_BAR_MEM64) < PCI_NR_BARS && b->kind == PCI_BAR_NONE);
	assert(size >= 4 && (size & (size - 1)) == 0);
	b->kind = kind;
	b->size = size;
	b->ops = ops;
	b->opaque = opaque;
	b->bus_ops = (struct io_ops){bar_read, bar_write, ops ? ops->max_size : 0, bar_doorbells};

	/* Read-only low bits are what makes sizing work (PCI 3.0 6.2.5.1). */
	pci_cfg_set_writable(d, reg, 4, (uint32_t) ~(size - 1));
	if (kind == PCI_BAR_IO) {
		le32_store(d->cfg + reg, PCI_BAR_IS_IO);
		pci_cfg_set_writable(d, PCI_COMMAND, 2, PCI_COMMAND_IO);
		return;
	}
	assert(size >= 16);
	pci_cfg_set_writable(d, PCI_COMMAND, 2, PCI_COMMAND_MEM);
	if (kind == PCI_BAR_MEM64) {
		le32_store(d->cfg + reg, PCI_BAR_IS_64 | PCI_BAR_IS_PREFETCH);
		pci_cfg_set_writable(d, reg + 4, 4, (uint32_t)(~(size - 1) >> 32));
	}
}

unsigned pci_dev_add_cap(struct pci_dev *d, uint8_t id, const void *body, const void *wmask,
			 size_t len)
{
	unsigned off = d->cap_end;

	assert(!d->host && len >= 2 && off + len <= PCI_CFG_LEGACY_SIZE);
	d->cfg[off] = id;
	memcpy(d->cfg + off + 2, body, len - 2);
	if (wmask)
		memcpy(d->wmask + off + 2, wmask, len - 2);
	d->cfg[d->cap_last ? d->cap_last + 1 : PCI_CAP_PTR] = off;
	d->cfg[PCI_STATUS] |= PCI_STATUS_CAPS;
	d->cap_last = off;
	d->cap_end = ALIGN_UP(off + len, 4);
	return off;
}

/* PCI power management 1.2: version 3, D0 and D3hot, contexts survive (No_Soft_Reset). */
void pci_dev_add_pm(struct pci_dev *d)
{
	static const uint8_t body[6] = {0x03, 0x00, 0x08, 0x00};
	static const uint8_t wmask[6] = {0x00, 0x00, 0x03, 0x00};

	pci_dev_add_cap(d, PCI_CAP_PM, body, wmask, 8);
}

/* PCIe 4.0 7.5.3: version 2, type 9.  Such an endpoint has no link, so those registers are zero. */
void pci_dev_add_pcie(struct pci_dev *d)
{
	uint8_t body[58] = {0}, wmask[58] = {0};

	le16_store(body, 2 | 9 << 4);
	le32_store(body + 2, BIT(15)); /* role-based error reporting */
	le16_store(wmask + 6, 0x7fff); /* device control, all but function level reset */
	pci_dev_add_cap(d, PCI_CAP_EXPRESS, body, wmask, 60);
}

/* ---- BARs on the bus ---- */

/* Where the guest wants this BAR now.  Address 0 and ranges past the end decode nothing. */
static uint64_t bar_wanted(const struct pci_dev *d, unsigned n)
{
	const struct pci_bar *b = &d->bar[n];
	uint16_t command = le16_load(d->cfg + PCI_COMMAND);
	uint64_t at = le32_load(d->cfg + PCI_BAR0 + 4 * n), end = 4 * GiB;
	bool on = command & PCI_COMMAND_MEM;

	if (b->kind == PCI_BAR_NONE)
		return nowhere;
	if (b->kind == PCI_BAR_IO) {
		on = command & PCI_COMMAND_IO;
		end = 64 * KiB;
	}
	if (b->kind == PCI_BAR_MEM64) {
		at = le64_load(d->cfg + PCI_BAR0 + 4 * n);
		end = BIT(52);
	}
	at &= ~(b->size - 1);
	if (!on || !at || !range_inside(at, b->size, end))
		return nowhere;
	return at;
}

void pci_bar_unmap(struct pci_host *h, struct pci_bar *b)
{
	if (b->region)
		bus_remove(h->cfg.bus, b->region);
	b->region = NULL;
}

static void bar_map(struct pci_host *h, struct pci_bar *b, uint64_t at)
{
	int r;

	if (b->kind == PCI_BAR_IO)
		r = bus_add_pio(h->cfg.bus, at, b->size, &b->bus_ops, b, b->dev->name, &b->region,
				NULL);
	else
		r = bus_add_mmio(h->cfg.bus, at, b->size, &b->bus_ops, b, b->dev->name, &b->region,
				 NULL);
	if (r < 0)
		b->region = NULL;
	if (r < 0 && !b->refused)
		log_guest(&log_pci, "%s: BAR %u at %#llx is not free, left unmapped", b->dev->name,
			  (unsigned)(b - b->dev->bar), (unsigned long long)at);
	b->refused = r < 0;
	b->mapped_at = at;
}

/* Two passes over all devices, because a guest may swap two BARs, and one that was refused its
 * place gets it as soon as the other has moved away. */
void pci_host_remap(struct pci_host *h)
{
	for (int pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < PCI_NR_DEVFN * PCI_NR_BARS; i++) {
			struct pci_dev *d = h->dev[i / PCI_NR_BARS];
			unsigned n = i % PCI_NR_BARS;
			uint64_t want = d ? bar_wanted(d, n) : nowhere;

			if (!d)
				continue;
			if (pass == 0 && d->bar[n].region && d->bar[n].mapped_at != want)
				pci_bar_unmap(h, &d->bar[n]);
			if (pass == 1 && !d->bar[n].region && want != nowhere)
				bar_map(h, &d->bar[n], want);
		}
	}
}

/* ---- configuration space ---- */

static bool overlaps(unsigned off, unsigned len, unsigned reg, unsigned reg_len)
{
	return off < reg + reg_len && reg < off + len;
}

static void cfg_store(struct pci_dev *d, unsigned off, uint32_t value, unsigned len)
{
	for (unsigned i = off; i < off + len; i++, value >>= 8) {
		uint8_t v = value;

		d->cfg[i] = (d->cfg[i] & ~d->wmask[i]) | (v & d->wmask[i]);
		d->cfg[i] &= ~(v & d->w1c[i]);
	}
}

static void dev_lock(struct pci_dev *d)
{
	if (d->host)
		pthread_mutex_lock(&d->host->cfg_lock);
}

static void dev_unlock(struct pci_dev *d)
{
	if (d->host)
		pthread_mutex_unlock(&d->host->cfg_lock);
}

uint32_t pci_cfg_read_locked(struct pci_dev *d, unsigned off, unsigned len)
{
	uint8_t raw[4] = {0};

	assert(len <= 4 && off + len <= PCI_CFG_SIZE);
	if (d->ops && d->ops->config_read)
		d->ops->config_read(d, off, len);
	pthread_mutex_lock(&d->irq_lock);
	d->cfg[PCI_STATUS] &= ~PCI_STATUS_INTX;
	d->cfg[PCI_STATUS] |= d->intx_level ? PCI_STATUS_INTX : 0;
	memcpy(raw, d->cfg + off, len);
	pthread_mutex_unlock(&d->irq_lock);
	return le32_load(raw);
}

void pci_cfg_write_locked(struct pci_dev *d, unsigned off, uint32_t value, unsigned len)
{
	assert(len <= 4 && off + len <= PCI_CFG_SIZE);
	pthread_mutex_lock(&d->irq_lock);
	cfg_store(d, off, value, len);
	pci_irq_update(d);
	pthread_mutex_unlock(&d->irq_lock);

	if (d->host &&
	    (overlaps(off, len, PCI_COMMAND, 2) || overlaps(off, len, PCI_BAR0, 4 * PCI_NR_BARS)))
		pci_host_remap(d->host);
	if (d->ops && d->ops->config_written)
		d->ops->config_written(d, off, len);
}

uint32_t pci_cfg_read(struct pci_dev *d, unsigned off, unsigned len)
{
	uint32_t v;

	dev_lock(d);
	v = pci_cfg_read_locked(d, off, len);
	dev_unlock(d);
	return v;
}

void pci_cfg_write(struct pci_dev *d, unsigned off, uint32_t value, unsigned len)
{
	dev_lock(d);
	pci_cfg_write_locked(d, off, value, len);
	dev_unlock(d);
}

void pci_dev_reset(struct pci_dev *d)
{
	pthread_mutex_lock(&d->irq_lock);
	for (unsigned i = 0; i < PCI_CFG_SIZE; i++)
		d->cfg[i] &= ~(d->wmask[i] | d->w1c[i]);
	d->intx_level = false;
	pci_msi_reset(d);
	pci_irq_update(d);
	pthread_mutex_unlock(&d->irq_lock);
	pci_host_remap(d->host);
	if (d->ops && d->ops->reset)
		d->ops->reset(d);
}

/* ---- on and off the bus ---- */

static int free_slot(const struct pci_host *h)
{
	for (int slot = 1; slot < 31; slot++) /* 31 holds the chipset's functions */
		if (!h->dev[PCI_DEVFN(slot, 0)])
			return PCI_DEVFN(slot, 0);
	return -1;
}

/* PCI 3.0 6.2.1: software looks for functions 1..7 only if function 0 says so. */
static void update_multifunction(struct pci_host *h, unsigned slot)
{
	struct pci_dev *first = h->dev[PCI_DEVFN(slot, 0)];
	bool many = false;

	for (unsigned fn = 1; fn < 8; fn++)
		many |= h->dev[PCI_DEVFN(slot, fn)] != NULL;
	if (first && many)
		first->cfg[PCI_HEADER_TYPE] |= PCI_HEADER_MULTIFUNCTION;
	else if (first)
		first->cfg[PCI_HEADER_TYPE] &= ~PCI_HEADER_MULTIFUNCTION;
}

int pci_dev_attach(struct pci_dev *d, struct pci_host *h, int slot_fn, struct error *err)
{
	int r = 0;

	assert(!d->host);
	pthread_mutex_lock(&h->cfg_lock);
	if (slot_fn == PCI_ANY_SLOT)
		slot_fn = free_slot(h);
	if (slot_fn < 0) {
		r = err_set(err, ENOSPC, "%s: every slot of PCI bus 0 is taken", d->name);
	} else if (slot_fn >= PCI_NR_DEVFN || h->dev[slot_fn]) {
		r = err_set(err, EEXIST, "%s: PCI slot %d.%d is taken or does not exist", d->name,
			    slot_fn >> 3, slot_fn & 7);
	} else {
		d->host = h;
		d->devfn = slot_fn;
		h->dev[slot_fn] = d;
		update_multifunction(h, slot_fn >> 3);
	}
	pthread_mutex_unlock(&h->cfg_lock);
	return r;
}

void pci_dev_detach(struct pci_dev *d)
{
	struct pci_host *h = d->host;

	if (!h)
		return;
	pthread_mutex_lock(&h->cfg_lock);
	h->dev[d->devfn] = NULL;
	update_multifunction(h, d->devfn >> 3);
	for (unsigned i = 0; i < PCI_NR_BARS; i++)
		pci_bar_unmap(h, &d->bar[i]);
	pci_host_remap(h); /* somebody may have waited for our addresses */
	pthread_mutex_unlock(&h->cfg_lock);
	pci_intx_set(d, false);
	d->host = NULL;
}

/* ---- state ---- */

/* Only bits that a guest may write are taken from a stream; the others must be what this device
 * was built with, or the stream belongs to another device. */
static bool cfg_load(struct pci_dev *d, const uint8_t *in)
{
	bool same = true;

	for (unsigned i = 0; i < PCI_CFG_SIZE; i++) {
		uint8_t soft = d->wmask[i] | d->w1c[i] | (i == PCI_STATUS ? PCI_STATUS_INTX : 0);

		if (d->msi_cap && i - (d->msi_cap + PCI_MSI_PENDING) < 4)
			soft = 0xff;
		same &= ((in[i] ^ d->cfg[i]) & ~soft) == 0;
		d->cfg[i] = (d->cfg[i] & ~soft) | (in[i] & soft);
	}
	return same;
}

void pci_dev_state(struct state *s, struct pci_dev *d)
{
	uint8_t cfg[PCI_CFG_SIZE];

	state_enter(s, "pci", 1);
	dev_lock(d);
	pthread_mutex_lock(&d->irq_lock);
	memcpy(cfg, d->cfg, sizeof(cfg));
	state_bytes(s, "config", cfg, sizeof(cfg));
	state_bool(s, "intx", &d->intx_level);
	pci_msix_state(s, d);
	if (state_loading(s)) {
		state_check(s, cfg_load(d, cfg), "a PCI device of another kind");
		pci_irq_update(d);
	}
	pthread_mutex_unlock(&d->irq_lock);
	if (state_loading(s) && d->host)
		pci_host_remap(d->host);
	dev_unlock(d);
	state_leave(s);
}
