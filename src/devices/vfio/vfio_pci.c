/* devices/vfio/vfio_pci.c - see vfio_pci.h. */
#include "devices/vfio/vfio_pci.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/evloop.h"
#include "base/log.h"
#include "bus/pci.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
	MAX_VECTORS = 256, /* offered to the guest; what a device has beyond is left out */
	MAX_CAPS = 48,     /* a chain cannot be longer in 192 bytes */
	MAX_ACCESS = 8,
};

static struct log_component log_vfio = LOG_COMPONENT("vfio");

struct vector {
	struct vfio_pci *dev;
	int fd;
	struct ev_fd ev;
};

struct vfio_pci {
	struct pci_dev pci;
	const char *name;
	struct evloop *loop;
	struct vfio_backend *backend;
	bool attached;

	unsigned nr_msi, nr_msix;
	unsigned msi_cap, msix_cap;
	uint8_t ours[PCI_CFG_SIZE]; /* 1: pci.c answers; 0: the device does */
	struct bar {
		struct vfio_pci *dev;
		unsigned index;
		uint64_t size;
	} bar[VFIO_NR_BARS];

	struct vector *vector; /* the larger of nr_msi, nr_msix, 1 */
	unsigned nr_vectors;
	struct vector leave[2]; /* the device broke down; the host wants it */

	/* Guards what follows; taken inside the host's cfg lock, holds none but the irq lock. */
	pthread_mutex_t lock;
	enum vfio_irq mode; /* which kind is on */
	unsigned nr_on;     /* 0: none */
	bool intx_high;
};

/* --- interrupts ----------------------------------------------------------------------------------
 */

static void drain(int fd)
{
	uint64_t n;

	if (read(fd, &n, sizeof(n)) < 0)
		return; /* somebody else took it */
}

static void on_vector(void *opaque, unsigned events)
{
	struct vector *v = opaque;
	struct vfio_pci *d = v->dev;
	unsigned n = (unsigned)(v - d->vector);
	enum vfio_irq mode;
	bool on;

	drain(v->fd);
	pthread_mutex_lock(&d->lock);
	mode = d->mode;
	on = n < d->nr_on;
	if (on && mode == VFIO_IRQ_INTX)
		d->intx_high = true;
	pthread_mutex_unlock(&d->lock);
	if (!on)
		return;
	if (mode == VFIO_IRQ_MSIX)
		pci_msix_notify(&d->pci, n);
	else if (mode == VFIO_IRQ_MSI)
		pci_msi_notify(&d->pci, n);
	else
		pci_intx_set(&d->pci, true);
}

/* The kernel has masked the wire when it told us.  The guest's driver looks at its device before it
 * ends the interrupt: then the wire is let go, and comes again when the device still pulls it. */
static void intx_looked_at(struct vfio_pci *d)
{
	bool was;

	pthread_mutex_lock(&d->lock);
	was = d->intx_high;
	d->intx_high = false;
	pthread_mutex_unlock(&d->lock);
	if (!was)
		return;
	pci_intx_set(&d->pci, false);
	d->backend->ops->irq_unmask(d->backend, VFIO_IRQ_INTX);
}

static void irq_switch(struct vfio_pci *d, enum vfio_irq mode, unsigned n)
{
	int fds[MAX_VECTORS], r = 0;
	enum vfio_irq old;
	unsigned old_n;

	pthread_mutex_lock(&d->lock);
	old = d->mode;
	old_n = d->nr_on;
	d->mode = mode;
	d->nr_on = n;
	d->intx_high = false;
	pthread_mutex_unlock(&d->lock);
	if (old == mode && old_n == n)
		return;
	if (old_n)
		d->backend->ops->irq_set(d->backend, old, NULL, 0);
	pci_intx_set(&d->pci, false);
	for (unsigned i = 0; i < n; i++)
		fds[i] = d->vector[i].fd;
	if (n)
		r = d->backend->ops->irq_set(d->backend, mode, fds, n);
	if (r < 0)
		log_error(&log_vfio, "%s: its interrupts cannot be had: %s", d->name, strerror(-r));
}

/* What the guest has switched on.  MSI-X wins over MSI, as on hardware only one is legal. */
static void irq_follow(struct vfio_pci *d)
{
	const uint8_t *cfg = d->pci.cfg;

	if (d->msix_cap && le16_load(cfg + d->msix_cap + PCI_MSIX_CONTROL) & PCI_MSIX_ENABLE) {
		irq_switch(d, VFIO_IRQ_MSIX, d->nr_msix);
	} else if (d->msi_cap && le16_load(cfg + d->msi_cap + PCI_MSI_CONTROL) & PCI_MSI_ENABLE) {
		unsigned wanted = le16_load(cfg + d->msi_cap + PCI_MSI_CONTROL) >> 4 & 7;

		irq_switch(d, VFIO_IRQ_MSI, MIN(1u << wanted, d->nr_msi));
	} else if (cfg[PCI_INTERRUPT_PIN]) {
		irq_switch(d, VFIO_IRQ_INTX, 1);
	} else {
		irq_switch(d, VFIO_IRQ_INTX, 0);
	}
}

/* --- BARs ----------------------------------------------------------------------------------------
 */

static uint64_t bar_read(void *opaque, uint64_t off, unsigned size)
{
	struct bar *b = opaque;
	struct vfio_backend *v = b->dev->backend;
	uint8_t raw[MAX_ACCESS] = {0};

	if (!range_inside(off, size, b->size) ||
	    v->ops->region_read(v, b->index, off, raw, size) < 0)
		return ~0ull;
	intx_looked_at(b->dev);
	return le64_load(raw);
}

static void bar_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct bar *b = opaque;
	struct vfio_backend *v = b->dev->backend;
	uint8_t raw[MAX_ACCESS];

	le64_store(raw, value);
	if (range_inside(off, size, b->size))
		v->ops->region_write(v, b->index, off, raw, size);
	intx_looked_at(b->dev);
}

static const struct io_ops bar_ops = {.read = bar_read, .write = bar_write};

static int add_bars(struct vfio_pci *d, const uint8_t *hw, struct error *err)
{
	for (unsigned i = 0; i < VFIO_NR_BARS; i++) {
		uint32_t reg = le32_load(hw + PCI_BAR0 + 4 * i);
		enum pci_bar_kind kind = reg & PCI_BAR_IS_IO          ? PCI_BAR_IO
					 : (reg & 6) == PCI_BAR_IS_64 ? PCI_BAR_MEM64
								      : PCI_BAR_MEM32;
		struct vfio_region r;

		d->bar[i] = (struct bar){.dev = d, .index = i};
		if (d->backend->ops->region(d->backend, i, &r) < 0 || !r.size)
			continue;
		if (r.size & (r.size - 1) || r.size < 4 || (kind != PCI_BAR_IO && r.size < 16) ||
		    (kind == PCI_BAR_MEM64 && i == VFIO_NR_BARS - 1))
			return err_set(err, EINVAL, "%s: BAR %u has a size no BAR can have",
				       d->name, i);
		d->bar[i].size = r.size;
		pci_dev_add_bar(&d->pci, i, kind, r.size, &bar_ops, &d->bar[i]);
		if (kind == PCI_BAR_MEM64)
			i++;
	}
	return 0;
}

/* --- configuration space -------------------------------------------------------------------------
 */

static void claim(struct vfio_pci *d, unsigned off, unsigned len)
{
	memset(d->ours + off, 1, MIN(len, PCI_CFG_SIZE - off));
}

/* Where the device has a capability ours takes its place. */
static void place_next_cap(struct vfio_pci *d, unsigned off)
{
	d->pci.cap_end = off;
}

static int add_msix(struct vfio_pci *d, const uint8_t *hw, unsigned off, struct error *err)
{
	unsigned has = (le16_load(hw + off + PCI_MSIX_CONTROL) & 0x7ff) + 1u;
	uint32_t table = le32_load(hw + off + 4), pba = le32_load(hw + off + 8);
	int n = d->backend->ops->irq_count(d->backend, VFIO_IRQ_MSIX);

	has = MIN(has, MAX_VECTORS);
	if (n < (int)has || (table & 7) != (pba & 7) || (table & 7) >= VFIO_NR_BARS)
		return err_set(err, ENOTSUP, "%s: its MSI-X table lies where we cannot follow",
			       d->name);
	d->msix_cap = off;
	d->nr_msix = has;
	place_next_cap(d, off);
	claim(d, off, PCI_MSIX_SIZE);
	return pci_dev_add_msix(&d->pci, has, table & 7, table & ~7u, pba & ~7u);
}

/* Does another capability of the device begin where ours would lie? */
static bool has_neighbour(const uint8_t *hw, unsigned off, unsigned len)
{
	unsigned at = hw[PCI_CAP_PTR] & ~3u;

	for (unsigned i = 0; at >= PCI_CFG_HEADER_SIZE && i < MAX_CAPS; i++, at = hw[at + 1] & ~3u)
		if (at > off && at < off + len)
			return true;
	return false;
}

/* Ours has 64-bit addresses and masks, so it may be longer than the device's own. */
static void add_msi(struct vfio_pci *d, const uint8_t *hw, unsigned off)
{
	int n = d->backend->ops->irq_count(d->backend, VFIO_IRQ_MSI);

	if (n <= 0 || off + PCI_MSI_SIZE > PCI_CFG_LEGACY_SIZE ||
	    has_neighbour(hw, off, PCI_MSI_SIZE)) {
		log_info(&log_vfio, "%s: the guest gets no MSI of it", d->name);
		return;
	}
	d->msi_cap = off;
	d->nr_msi = 1;
	place_next_cap(d, off);
	claim(d, off, PCI_MSI_SIZE);
	pci_dev_add_msi(&d->pci, 1);
}

/* A capability that passes through: its bytes are the device's, its place in the chain ours. */
static void add_plain(struct vfio_pci *d, const uint8_t *hw, unsigned off, unsigned len)
{
	place_next_cap(d, off);
	pci_dev_add_cap(&d->pci, hw[off], hw + off + 2, NULL, len);
	claim(d, off, 2);
}

static unsigned plain_len(const uint8_t *hw, unsigned off)
{
	switch (hw[off]) {
	case PCI_CAP_PM:
		return 8;
	case PCI_CAP_VENDOR:
		return MAX(hw[off + 2], 3);
	case PCI_CAP_EXPRESS:
		return 60;
	default:
		return 0; /* not for guests, or not known: left out of the chain */
	}
}

static int add_caps(struct vfio_pci *d, const uint8_t *hw, struct error *err)
{
	unsigned off = hw[PCI_CAP_PTR] & ~3u;
	int r = 0;

	if (!(le16_load(hw + PCI_STATUS) & PCI_STATUS_CAPS))
		return 0;
	for (unsigned i = 0; off >= PCI_CFG_HEADER_SIZE && i < MAX_CAPS && r == 0; i++) {
		unsigned len = plain_len(hw, off);

		if (d->ours[off]) /* a chain that bites its tail */
			break;
		if (hw[off] == PCI_CAP_MSIX && off + PCI_MSIX_SIZE <= PCI_CFG_LEGACY_SIZE)
			r = add_msix(d, hw, off, err);
		else if (hw[off] == PCI_CAP_MSI)
			add_msi(d, hw, off);
		else if (len && off + len <= PCI_CFG_LEGACY_SIZE)
			add_plain(d, hw, off, len);
		off = hw[off + 1] & ~3u;
	}
	d->pci.cap_end = PCI_CFG_LEGACY_SIZE;
	return r;
}

static void config_read(struct pci_dev *p, unsigned off, unsigned len)
{
	struct vfio_pci *d = container_of(p, struct vfio_pci, pci);
	uint8_t raw[4];

	if (d->backend->ops->region_read(d->backend, VFIO_CONFIG, off, raw, len) < 0)
		return;
	for (unsigned i = 0; i < len; i++)
		if (!d->ours[off + i])
			p->cfg[off + i] = raw[i];
}

static void config_written(struct pci_dev *p, unsigned off, unsigned len)
{
	struct vfio_pci *d = container_of(p, struct vfio_pci, pci);

	for (unsigned i = off; i < off + len; i++)
		if (!d->ours[i])
			d->backend->ops->region_write(d->backend, VFIO_CONFIG, i, &p->cfg[i], 1);
	/* The device must know that it may use the bus. */
	if (off < PCI_COMMAND + 2 && off + len > PCI_COMMAND)
		d->backend->ops->region_write(d->backend, VFIO_CONFIG, PCI_COMMAND,
					      &p->cfg[PCI_COMMAND], 2);
	irq_follow(d);
}

static void bus_reset(struct pci_dev *p)
{
	struct vfio_pci *d = container_of(p, struct vfio_pci, pci);
	int r;

	irq_switch(d, VFIO_IRQ_INTX, 0);
	r = d->backend->ops->reset(d->backend);
	if (r < 0 && r != -ENOTSUP)
		log_warn(&log_vfio, "%s: cannot be reset: %s", d->name, strerror(-r));
	irq_follow(d);
}

static const struct pci_dev_ops pci_ops = {
	.config_read = config_read, .config_written = config_written, .reset = bus_reset};

/* Extended configuration space is left out: what is there (SR-IOV, ATS, ...) is the host's. */
static void claim_header(struct vfio_pci *d)
{
	claim(d, 0, PCI_CFG_HEADER_SIZE);
	claim(d, PCI_CFG_LEGACY_SIZE, PCI_CFG_SIZE - PCI_CFG_LEGACY_SIZE);
	for (unsigned i = PCI_CFG_HEADER_SIZE; i < PCI_CFG_LEGACY_SIZE; i++)
		if (!d->ours[i])
			pci_cfg_set_writable(&d->pci, i, 1, 0xff);
}

static int build_config(struct vfio_pci *d, struct error *err)
{
	uint8_t hw[PCI_CFG_LEGACY_SIZE];
	struct pci_id id = {0};
	int r = d->backend->ops->region_read(d->backend, VFIO_CONFIG, 0, hw, sizeof(hw));

	if (r == 0)
		id = (struct pci_id){.vendor = le16_load(hw + PCI_VENDOR_ID),
				     .device = le16_load(hw + PCI_DEVICE_ID),
				     .subsys_vendor = le16_load(hw + PCI_SUBSYS_VENDOR),
				     .subsys = le16_load(hw + PCI_SUBSYS_ID),
				     .class_code = le32_load(hw + PCI_REVISION) >> 8,
				     .revision = hw[PCI_REVISION],
				     .intx_pin = hw[PCI_INTERRUPT_PIN] ? 1 : 0};
	pci_dev_init(&d->pci, d->name, &id, &pci_ops);
	if (r < 0)
		return err_errno(err, -r, "%s: cannot read its configuration space", d->name);
	if ((hw[PCI_HEADER_TYPE] & 0x7f) != 0)
		return err_set(err, EINVAL, "%s is a bridge: those are not passed through",
			       d->name);
	memcpy(d->pci.cfg + PCI_CFG_HEADER_SIZE, hw + PCI_CFG_HEADER_SIZE,
	       sizeof(hw) - PCI_CFG_HEADER_SIZE);
	r = add_bars(d, hw, err);
	if (r == 0)
		r = add_caps(d, hw, err);
	claim_header(d);
	return r;
}

/* --- leaving -------------------------------------------------------------------------------------
 */

void vfio_pci_unplug(struct vfio_pci *d)
{
	if (!d->attached)
		return;
	d->attached = false;
	pci_dev_detach(&d->pci);
	irq_switch(d, VFIO_IRQ_INTX, 0);
}

bool vfio_pci_present(const struct vfio_pci *d)
{
	return d->attached;
}

static void on_leave(void *opaque, unsigned events)
{
	struct vector *v = opaque;

	drain(v->fd);
	log_warn(&log_vfio, "%s %s; it is taken out of the guest", v->dev->name,
		 v == &v->dev->leave[0] ? "has broken down" : "is wanted by the host");
	vfio_pci_unplug(v->dev);
}

/* --- making one ----------------------------------------------------------------------------------
 */

static int add_vector(struct vfio_pci *d, struct vector *v,
		      void (*ready)(void *opaque, unsigned events), struct error *err)
{
	int r;

	v->dev = d;
	v->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->fd < 0)
		return err_errno(err, errno, "%s: eventfd", d->name);
	r = ev_fd_add(d->loop, &v->ev, v->fd, EV_READ, ready, v);
	if (r < 0) {
		close(v->fd);
		v->fd = -1;
		return err_errno(err, -r, "%s: eventfd", d->name);
	}
	return 0;
}

static int add_vectors(struct vfio_pci *d, struct error *err)
{
	static const enum vfio_irq kinds[2] = {VFIO_IRQ_ERR, VFIO_IRQ_REQ};
	unsigned n = MAX(MAX(d->nr_msi, d->nr_msix), 1);
	int r = 0;

	d->vector = calloc(n, sizeof(*d->vector));
	if (!d->vector)
		return err_errno(err, ENOMEM, "%s", d->name);
	for (; d->nr_vectors < n && r == 0; d->nr_vectors += r == 0)
		r = add_vector(d, &d->vector[d->nr_vectors], on_vector, err);
	for (unsigned i = 0; i < 2 && r == 0; i++) {
		r = add_vector(d, &d->leave[i], on_leave, err);
		if (r == 0 && d->backend->ops->irq_count(d->backend, kinds[i]) > 0)
			d->backend->ops->irq_set(d->backend, kinds[i], &d->leave[i].fd, 1);
	}
	return r;
}

static int map_memory(struct vfio_pci *d, struct mem *mem, struct error *err)
{
	const struct mem_range *range;
	unsigned n = mem_ram_ranges(mem, &range);
	int r = 0;

	for (unsigned i = 0; i < n && r == 0; i++)
		r = d->backend->ops->dma_map(d->backend, range[i].gpa, range[i].hva, range[i].size,
					     err);
	return r;
}

static void drop_vector(struct vector *v)
{
	if (v->fd < 0)
		return;
	ev_fd_del(&v->ev);
	close(v->fd);
}

void vfio_pci_destroy(struct vfio_pci *d)
{
	vfio_pci_unplug(d);
	for (unsigned i = 0; i < d->nr_vectors; i++)
		drop_vector(&d->vector[i]);
	drop_vector(&d->leave[0]);
	drop_vector(&d->leave[1]);
	d->backend->ops->close(d->backend);
	pci_dev_fini(&d->pci);
	pthread_mutex_destroy(&d->lock);
	free(d->vector);
	free(d);
}

int vfio_pci_create(struct vfio_pci **out, const struct vfio_pci_config *cfg, struct error *err)
{
	struct vfio_pci *d = calloc(1, sizeof(*d));
	int r;

	if (!d) {
		cfg->backend->ops->close(cfg->backend);
		return err_errno(err, ENOMEM, "%s", cfg->name);
	}
	d->name = cfg->name;
	d->loop = cfg->loop;
	d->backend = cfg->backend;
	d->leave[0].fd = d->leave[1].fd = -1;
	pthread_mutex_init(&d->lock, NULL);
	d->backend->ops->reset(d->backend); /* of whoever had it before; not all devices can */
	r = build_config(d, err);
	if (r == 0)
		r = add_vectors(d, err);
	if (r == 0)
		r = map_memory(d, cfg->mem, err);
	if (r == 0)
		r = pci_dev_attach(&d->pci, cfg->host, cfg->slot_fn, err);
	if (r < 0) {
		vfio_pci_destroy(d);
		return r;
	}
	d->attached = true;
	irq_follow(d);
	*out = d;
	return 0;
}
