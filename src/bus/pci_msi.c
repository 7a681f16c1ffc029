/* How a PCI device interrupts: INTx, MSI (PCI 3.0 6.8.1) and MSI-X (6.8.2). */
#include "bus/pci_internal.h"

#include "base/bytes.h"
#include "base/error.h"
#include "state/state.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

void pci_dev_add_msi(struct pci_dev *d, unsigned nr_vectors)
{
	uint8_t body[PCI_MSI_SIZE - 2] = {0}, wmask[PCI_MSI_SIZE - 2] = {0};
	unsigned log2 = 31 - __builtin_clz(nr_vectors);

	assert(nr_vectors && nr_vectors <= 32 && nr_vectors == 1u << log2);
	le16_store(body, PCI_MSI_64 | PCI_MSI_MASKABLE | log2 << 1);
	le16_store(wmask, PCI_MSI_ENABLE | 7 << 4);
	le32_store(wmask + PCI_MSI_ADDR - 2, ~3u);
	le32_store(wmask + PCI_MSI_ADDR + 2, ~0u);
	le16_store(wmask + PCI_MSI_DATA - 2, 0xffff);
	le32_store(wmask + PCI_MSI_MASK - 2, (uint32_t)(BIT(nr_vectors) - 1));
	d->msi_cap = pci_dev_add_cap(d, PCI_CAP_MSI, body, wmask, PCI_MSI_SIZE);
}

static uint32_t msix_table_size(const struct pci_msix *x)
{
	return x->nr * PCI_MSIX_ENTRY_SIZE;
}

static uint32_t msix_pba_size(const struct pci_msix *x)
{
	return (x->nr + 63) / 64 * 8;
}

int pci_dev_add_msix(struct pci_dev *d, unsigned nr_vectors, unsigned bar, uint32_t table_off,
		     uint32_t pba_off)
{
	struct pci_msix *x = &d->msix;
	uint8_t body[PCI_MSIX_SIZE - 2] = {0}, wmask[PCI_MSIX_SIZE - 2] = {0};

	assert(nr_vectors && nr_vectors <= 2048 && bar < PCI_NR_BARS);
	assert(table_off % 8 == 0 && pba_off % 8 == 0 && !x->nr);
	*x = (struct pci_msix){.bar = bar, .table_off = table_off, .pba_off = pba_off};
	x->table = calloc(nr_vectors, PCI_MSIX_ENTRY_SIZE);
	x->pending = calloc((nr_vectors + 63) / 64, sizeof(uint64_t));
	if (!x->table || !x->pending)
		return -ENOMEM;
	x->nr = nr_vectors;
	assert(range_inside(table_off, msix_table_size(x), d->bar[bar].size));
	assert(range_inside(pba_off, msix_pba_size(x), d->bar[bar].size));

	le16_store(body, nr_vectors - 1);
	le32_store(body + 2, table_off | bar);
	le32_store(body + 6, pba_off | bar);
	le16_store(wmask, PCI_MSIX_ENABLE | PCI_MSIX_MASK_ALL);
	x->cap = pci_dev_add_cap(d, PCI_CAP_MSIX, body, wmask, PCI_MSIX_SIZE);
	pci_msi_reset(d);
	return 0;
}

/* Vectors come out of reset masked (PCI 3.0 6.8.2.9). */
void pci_msi_reset(struct pci_dev *d)
{
	struct pci_msix *x = &d->msix;

	if (d->msi_cap)
		le32_store(d->cfg + d->msi_cap + PCI_MSI_PENDING, 0);
	for (unsigned i = 0; i < x->nr; i++) {
		uint8_t *entry = x->table + i * PCI_MSIX_ENTRY_SIZE;

		memset(entry, 0, PCI_MSIX_ENTRY_SIZE);
		entry[PCI_MSIX_ENTRY_CTRL] = 1;
	}
	if (x->nr)
		memset(x->pending, 0, msix_pba_size(x));
}

/* ---- with irq_lock held ---- */

static uint16_t command_of(const struct pci_dev *d)
{
	return le16_load(d->cfg + PCI_COMMAND);
}

static bool msi_on(const struct pci_dev *d)
{
	return d->msi_cap && (d->cfg[d->msi_cap + PCI_MSI_CONTROL] & PCI_MSI_ENABLE);
}

static uint16_t msix_control(const struct pci_dev *d)
{
	return d->msix.nr ? le16_load(d->cfg + d->msix.cap + PCI_MSIX_CONTROL) : 0;
}

static void msi_update(struct pci_dev *d)
{
	uint8_t *cap = d->cfg + d->msi_cap;
	uint32_t pending = le32_load(cap + PCI_MSI_PENDING);
	uint32_t ready = pending & ~le32_load(cap + PCI_MSI_MASK);
	/* With several vectors the low bits of the data are the vector (6.8.1.6). */
	unsigned log2 = MIN((cap[PCI_MSI_CONTROL] >> 4) & 7, (cap[PCI_MSI_CONTROL] >> 1) & 7);
	uint32_t data = le16_load(cap + PCI_MSI_DATA) & ~((1u << log2) - 1);

	le32_store(cap + PCI_MSI_PENDING, pending & ~ready);
	for (; ready; ready &= ready - 1)
		msi_send(&d->host->cfg.msi, le64_load(cap + PCI_MSI_ADDR),
			 data | (__builtin_ctz(ready) & ((1u << log2) - 1)));
}

static void msix_update(struct pci_dev *d)
{
	struct pci_msix *x = &d->msix;

	for (unsigned w = 0; w < (x->nr + 63) / 64; w++) {
		for (uint64_t left = x->pending[w]; left; left &= left - 1) {
			unsigned bit = __builtin_ctzll(left);
			uint8_t *entry = x->table + (w * 64 + bit) * PCI_MSIX_ENTRY_SIZE;

			if (entry[PCI_MSIX_ENTRY_CTRL] & 1)
				continue;
			x->pending[w] &= ~BIT(bit);
			msi_send(&d->host->cfg.msi, le64_load(entry), le32_load(entry + 8));
		}
	}
}

/* Messages are memory writes, so they also wait for bus mastering to be allowed. */
void pci_irq_update(struct pci_dev *d)
{
	uint16_t command = command_of(d), control = msix_control(d);
	bool master = command & PCI_COMMAND_MASTER,
	     messages = msi_on(d) || control & PCI_MSIX_ENABLE;
	bool drive;

	if (!d->host)
		return;
	if (msi_on(d) && master)
		msi_update(d);
	if ((control & PCI_MSIX_ENABLE) && !(control & PCI_MSIX_MASK_ALL) && master)
		msix_update(d);

	drive = d->intx_level && !messages && !(command & PCI_COMMAND_INTX_DISABLE) &&
		d->cfg[PCI_INTERRUPT_PIN];
	if (drive == d->intx_driven)
		return;
	d->intx_driven = drive;
	pci_pirq_change(d->host, pci_pirq_of(d->devfn >> 3, d->cfg[PCI_INTERRUPT_PIN]), drive);
}

/* ---- what devices call ---- */

void pci_intx_set(struct pci_dev *d, bool level)
{
	pthread_mutex_lock(&d->irq_lock);
	d->intx_level = level;
	pci_irq_update(d);
	pthread_mutex_unlock(&d->irq_lock);
}

bool pci_msi_enabled(struct pci_dev *d)
{
	bool on;

	pthread_mutex_lock(&d->irq_lock);
	on = msi_on(d);
	pthread_mutex_unlock(&d->irq_lock);
	return on;
}

bool pci_msix_enabled(struct pci_dev *d)
{
	bool on;

	pthread_mutex_lock(&d->irq_lock);
	on = msix_control(d) & PCI_MSIX_ENABLE;
	pthread_mutex_unlock(&d->irq_lock);
	return on;
}

void pci_msi_notify(struct pci_dev *d, unsigned vector)
{
	pthread_mutex_lock(&d->irq_lock);
	if (msi_on(d)) {
		uint8_t *cap = d->cfg + d->msi_cap;
		unsigned log2 =
			MIN((cap[PCI_MSI_CONTROL] >> 4) & 7, (cap[PCI_MSI_CONTROL] >> 1) & 7);
		uint32_t bit = 1u << (vector & ((1u << log2) - 1));

		le32_store(cap + PCI_MSI_PENDING, le32_load(cap + PCI_MSI_PENDING) | bit);
	} else {
		d->intx_level = true;
	}
	pci_irq_update(d);
	pthread_mutex_unlock(&d->irq_lock);
}

void pci_msix_notify(struct pci_dev *d, unsigned vector)
{
	pthread_mutex_lock(&d->irq_lock);
	if (!(msix_control(d) & PCI_MSIX_ENABLE))
		d->intx_level = true;
	else if (vector < d->msix.nr)
		d->msix.pending[vector / 64] |= BIT(vector % 64);
	pci_irq_update(d);
	pthread_mutex_unlock(&d->irq_lock);
}

/* ---- the MSI-X table and pending bits in a BAR ---- */

bool pci_msix_claims(const struct pci_dev *d, unsigned bar, uint64_t off)
{
	const struct pci_msix *x = &d->msix;

	return x->nr && bar == x->bar &&
	       (off - x->table_off < msix_table_size(x) || off - x->pba_off < msix_pba_size(x));
}

uint64_t pci_msix_read(struct pci_dev *d, uint64_t off, unsigned size)
{
	struct pci_msix *x = &d->msix;
	uint8_t raw[8] = {0};
	const uint8_t *from = x->table;
	uint64_t at = off - x->table_off, end = msix_table_size(x);

	if (at >= end) {
		from = (const uint8_t *)x->pending; /* little-endian, as the host is */
		at = off - x->pba_off;
		end = msix_pba_size(x);
	}
	pthread_mutex_lock(&d->irq_lock);
	memcpy(raw, from + at, MIN(size, end - at));
	pthread_mutex_unlock(&d->irq_lock);
	return le64_load(raw);
}

void pci_msix_write(struct pci_dev *d, uint64_t off, uint64_t value, unsigned size)
{
	static const uint8_t writable[PCI_MSIX_ENTRY_SIZE] = {
		0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
	};
	struct pci_msix *x = &d->msix;
	uint64_t at = off - x->table_off;

	if (at >= msix_table_size(x))
		return; /* the pending bits are read-only */
	pthread_mutex_lock(&d->irq_lock);
	for (; size && at < msix_table_size(x); size--, at++, value >>= 8)
		x->table[at] = value & writable[at % PCI_MSIX_ENTRY_SIZE];
	pci_irq_update(d);
	pthread_mutex_unlock(&d->irq_lock);
}

void pci_msix_state(struct state *s, struct pci_dev *d)
{
	struct pci_msix *x = &d->msix;

	if (!x->nr)
		return;
	state_bytes(s, "msix_table", x->table, msix_table_size(x));
	state_bytes(s, "msix_pending", x->pending, msix_pba_size(x));
	if (!state_loading(s))
		return;
	for (unsigned i = 0; i < x->nr; i++)
		x->table[i * PCI_MSIX_ENTRY_SIZE] &= ~3;
	if (x->nr % 64)
		x->pending[x->nr / 64] &= BIT(x->nr % 64) - 1;
}
