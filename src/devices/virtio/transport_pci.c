/* virtio over PCI.
 *
 *	BAR 4   0x0000 common configuration   0x1000 ISR   0x2000 device configuration
 *	        0x3000 notification: queue n at 4n
 *	BAR 1   MSI-X table, pending bits at 0x800
 *	BAR 0   legacy registers (transitional devices)
 *
 * virtio 1.2 4.1. */
#include "devices/virtio/transport_pci.h"

#include "base/bytes.h"
#include "base/error.h"
#include "state/state.h"

#include <errno.h>

// clang-format off
enum {
	VENDOR_VIRTIO = 0x1af4, NO_VECTOR = 0xffff,
	BAR_LEGACY = 0, BAR_MSIX = 1, BAR_MODERN = 4,
	MODERN_PAGE = 0x1000, MODERN_SIZE = 0x4000, MSIX_BAR_SIZE = 0x1000, MSIX_PBA = 0x800,
	NOTIFY_MULTIPLIER = 4,

	CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_WINDOW = 5,
	CAP_SIZE = 16, CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_DATA = 16,

	ISR_QUEUE = 1, ISR_CONFIG = 2,
};
enum { /* struct virtio_pci_common_cfg, 4.1.4.3 */
	COMMON_DEVICE_FEATURE_SEL = 0x00, COMMON_DEVICE_FEATURE  = 0x04,
	COMMON_DRIVER_FEATURE_SEL = 0x08, COMMON_DRIVER_FEATURE  = 0x0c,
	COMMON_CONFIG_VECTOR      = 0x10, COMMON_NUM_QUEUES      = 0x12,
	COMMON_STATUS             = 0x14, COMMON_CONFIG_GEN      = 0x15,
	COMMON_QUEUE_SEL          = 0x16, COMMON_QUEUE_SIZE      = 0x18,
	COMMON_QUEUE_VECTOR       = 0x1a, COMMON_QUEUE_ENABLE    = 0x1c,
	COMMON_QUEUE_NOTIFY_OFF   = 0x1e, COMMON_QUEUE_DESC      = 0x20,
	COMMON_QUEUE_DRIVER       = 0x28, COMMON_QUEUE_DEVICE    = 0x30,
	COMMON_SIZE               = 0x38,
};
enum { /* legacy registers, 4.1.4.10 */
	LEGACY_DEVICE_FEATURES = 0,  LEGACY_DRIVER_FEATURES = 4,  LEGACY_QUEUE_PFN   = 8,
	LEGACY_QUEUE_SIZE      = 12, LEGACY_QUEUE_SEL       = 14, LEGACY_NOTIFY      = 16,
	LEGACY_STATUS          = 18, LEGACY_ISR             = 19, LEGACY_HEADER      = 20,
	LEGACY_CONFIG_VECTOR   = 20, LEGACY_QUEUE_VECTOR    = 22, LEGACY_HEADER_MSIX = 24,
};
// clang-format on

/* ---- interrupts: v->lock held ---- */

static void interrupt(struct virtio_pci *p, uint16_t vector, uint8_t isr)
{
	if (pci_msix_enabled(&p->pci)) {
		if (vector != NO_VECTOR)
			pci_msix_notify(&p->pci, vector);
		return;
	}
	p->isr |= isr;
	pci_intx_set(&p->pci, true);
}

static void queue_interrupt(void *opaque, unsigned queue)
{
	struct virtio_pci *p = opaque;

	interrupt(p, p->queue_vector[queue], ISR_QUEUE);
}

static void config_interrupt(void *opaque)
{
	struct virtio_pci *p = opaque;

	interrupt(p, p->config_vector, ISR_CONFIG);
}

/* 4.1.4.5: reading it acknowledges. */
static uint8_t isr_read(struct virtio_pci *p)
{
	uint8_t isr = p->isr;

	p->isr = 0;
	pci_intx_set(&p->pci, false);
	return isr;
}

static uint16_t valid_vector(const struct virtio_pci *p, uint16_t vector)
{
	return vector < p->nr_vectors ? vector : NO_VECTOR;
}

/* What a reset by the driver leaves (the transport's part of it). */
static void transport_reset(struct virtio_pci *p)
{
	p->device_feature_sel = p->driver_feature_sel = 0;
	p->queue_sel = 0;
	p->config_vector = NO_VECTOR;
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		p->queue_vector[i] = NO_VECTOR;
	isr_read(p);
}

static void set_status(struct virtio_pci *p, uint8_t status)
{
	virtio_set_status(p->v, status);
	if (status == 0 && !p->v->resetting)
		transport_reset(p);
}

/* The selected queue, NULL when the device has no such one (it then reads as zero). */
static struct vq *selected(struct virtio_pci *p)
{
	return p->queue_sel < p->v->cfg.nr_queues ? &p->v->vq[p->queue_sel] : NULL;
}

/* ---- modern common configuration ---- */

static uint32_t half(uint64_t v, uint32_t sel)
{
	return sel < 2 ? v >> (32 * sel) : 0;
}

static void common_render(struct virtio_pci *p, uint8_t *c)
{
	struct virtio_dev *v = p->v;
	struct vq *q = selected(p);

	le32_store(c + COMMON_DEVICE_FEATURE_SEL, p->device_feature_sel);
	le32_store(c + COMMON_DEVICE_FEATURE, half(v->offered, p->device_feature_sel));
	le32_store(c + COMMON_DRIVER_FEATURE_SEL, p->driver_feature_sel);
	le32_store(c + COMMON_DRIVER_FEATURE, half(v->features, p->driver_feature_sel));
	le16_store(c + COMMON_CONFIG_VECTOR, p->config_vector);
	le16_store(c + COMMON_NUM_QUEUES, v->cfg.nr_queues);
	c[COMMON_STATUS] = v->status;
	c[COMMON_CONFIG_GEN] = v->config_gen;
	le16_store(c + COMMON_QUEUE_SEL, p->queue_sel);
	if (!q)
		return;
	le16_store(c + COMMON_QUEUE_SIZE, q->size);
	le16_store(c + COMMON_QUEUE_VECTOR, p->queue_vector[p->queue_sel]);
	le16_store(c + COMMON_QUEUE_ENABLE, q->ready);
	le16_store(c + COMMON_QUEUE_NOTIFY_OFF, p->queue_sel);
	le64_store(c + COMMON_QUEUE_DESC, q->desc);
	le64_store(c + COMMON_QUEUE_DRIVER, q->driver);
	le64_store(c + COMMON_QUEUE_DEVICE, q->device);
}

static void put_half(uint64_t *v, unsigned which, uint32_t half_value)
{
	*v &= ~(0xffffffffull << (32 * which));
	*v |= (uint64_t)half_value << (32 * which);
}

static void common_write32(struct virtio_pci *p, unsigned off, uint32_t value)
{
	struct vq *q = selected(p);
	uint64_t features = p->v->features;
	unsigned hi = (off / 4) & 1;

	switch (off & ~4u) {
	case COMMON_DEVICE_FEATURE_SEL:
		if (!hi)
			p->device_feature_sel = value;
		return;
	case COMMON_DRIVER_FEATURE_SEL:
		if (!hi) {
			p->driver_feature_sel = value;
		} else if (p->driver_feature_sel < 2) {
			put_half(&features, p->driver_feature_sel, value);
			virtio_set_features(p->v, features);
		}
		return;
	}
	if (!q || q->ready)
		return; /* 4.1.4.3.2: addresses are set before the queue is enabled */
	switch (off & ~4u) {
	case COMMON_QUEUE_DESC:
		return put_half(&q->desc, hi, value);
	case COMMON_QUEUE_DRIVER:
		return put_half(&q->driver, hi, value);
	case COMMON_QUEUE_DEVICE:
		return put_half(&q->device, hi, value);
	}
}

static void queue_set_size(struct vq *q, uint16_t size)
{
	if (!q->ready && size && size <= q->size_max && !(size & (size - 1)))
		q->size = size;
}

static void common_write16(struct virtio_pci *p, unsigned off, uint16_t value)
{
	struct vq *q = selected(p);

	switch (off) {
	case COMMON_CONFIG_VECTOR:
		p->config_vector = valid_vector(p, value);
		return;
	case COMMON_QUEUE_SEL:
		p->queue_sel = value;
		return;
	}
	if (!q)
		return;
	switch (off) {
	case COMMON_QUEUE_SIZE:
		return queue_set_size(q, value);
	case COMMON_QUEUE_VECTOR:
		p->queue_vector[p->queue_sel] = valid_vector(p, value);
		return;
	case COMMON_QUEUE_ENABLE:
		if (value == 1) /* only a reset disables it */
			q->ready = true;
		return;
	}
}

/* 4.1.3.1: a driver uses each field's own width, and 32-bit halves for 64-bit fields. */
static void common_write(struct virtio_pci *p, unsigned off, uint64_t value, unsigned size)
{
	if (off % size)
		return;
	if (size == 1 && off == COMMON_STATUS)
		set_status(p, value);
	else if (size == 2)
		common_write16(p, off, value);
	else if (size >= 4)
		common_write32(p, off, value);
	if (size == 8)
		common_write32(p, off + 4, value >> 32);
}

/* ---- modern BAR ---- */

static uint64_t common_read(struct virtio_pci *p, unsigned off, unsigned size)
{
	uint8_t c[COMMON_SIZE] = {0}, raw[8] = {0};

	common_render(p, c);
	if (off < COMMON_SIZE)
		memcpy(raw, c + off, MIN(size, COMMON_SIZE - off));
	return le64_load(raw);
}

static uint64_t modern_read(void *opaque, uint64_t off, unsigned size)
{
	struct virtio_pci *p = opaque;
	uint8_t raw[8] = {0};
	uint64_t value = 0;

	pthread_mutex_lock(&p->v->lock);
	switch (off / MODERN_PAGE) {
	case 0:
		value = common_read(p, off, size);
		break;
	case 1:
		value = off == MODERN_PAGE ? isr_read(p) : 0;
		break;
	case 2:
		virtio_config_read(p->v, off % MODERN_PAGE, raw, size);
		value = le64_load(raw);
		break;
	}
	pthread_mutex_unlock(&p->v->lock);
	return value;
}

static void modern_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct virtio_pci *p = opaque;
	uint8_t raw[8];

	if (off / MODERN_PAGE == 3) /* needs no lock: the offset alone says which queue */
		return virtio_kick(p->v, off % MODERN_PAGE / NOTIFY_MULTIPLIER);
	pthread_mutex_lock(&p->v->lock);
	if (off / MODERN_PAGE == 0 && !p->v->resetting) {
		common_write(p, off, value, size);
	} else if (off / MODERN_PAGE == 2 && !p->v->resetting) {
		le64_store(raw, value);
		virtio_config_write(p->v, off % MODERN_PAGE, raw, size);
	}
	pthread_mutex_unlock(&p->v->lock);
}

/* A driver writes the queue's number, 16 bits (4.1.5.2); what it writes says nothing more than
 * where. */
static unsigned modern_doorbells(void *opaque, struct io_doorbell *out, unsigned max)
{
	struct virtio_pci *p = opaque;
	const int *bells = p->v->cfg.queue_bells;
	unsigned n = MIN(p->v->cfg.nr_queues, max);

	for (unsigned i = 0; i < n; i++)
		out[i] = (struct io_doorbell){.off = 3 * MODERN_PAGE + i * NOTIFY_MULTIPLIER,
					      .size = 2,
					      .fd = bells ? bells[i] : p->v->bell};
	return n;
}

static const struct io_ops modern_ops = {modern_read, modern_write, 8, modern_doorbells};

/* ---- the window in configuration space, 4.1.4.9 ---- */

/* Whether an access to [off, off+len) touches the window's data, and what it names. */
static bool window_target(struct virtio_pci *p, unsigned off, unsigned len, uint32_t *at,
			  unsigned *size)
{
	const uint8_t *cap = p->pci.cfg + p->window_cap;
	unsigned data = p->window_cap + CAP_DATA;

	if (off >= data + 4 || off + len <= data || cap[CAP_BAR] != BAR_MODERN)
		return false;
	*at = le32_load(cap + CAP_OFFSET);
	*size = le32_load(cap + CAP_LENGTH);
	return (*size == 1 || *size == 2 || *size == 4) && *at % *size == 0 &&
	       range_inside(*at, *size, MODERN_SIZE);
}

static void config_read(struct pci_dev *d, unsigned off, unsigned len)
{
	struct virtio_pci *p = container_of(d, struct virtio_pci, pci);
	uint32_t at;
	unsigned size;

	if (window_target(p, off, len, &at, &size))
		le32_store(d->cfg + p->window_cap + CAP_DATA, modern_read(p, at, size));
}

static void config_written(struct pci_dev *d, unsigned off, unsigned len)
{
	struct virtio_pci *p = container_of(d, struct virtio_pci, pci);
	uint32_t at, value = le32_load(d->cfg + p->window_cap + CAP_DATA);
	unsigned size;

	if (!window_target(p, off, len, &at, &size))
		return;
	modern_write(p, at, size == 4 ? value : value & ((1u << 8 * size) - 1), size);
}

/* ---- legacy I/O BAR ---- */

static unsigned legacy_header(struct virtio_pci *p)
{
	return pci_msix_enabled(&p->pci) ? LEGACY_HEADER_MSIX : LEGACY_HEADER;
}

static uint32_t legacy_reg_read(struct virtio_pci *p, unsigned off)
{
	struct vq *q = selected(p);

	switch (off) {
	case LEGACY_DEVICE_FEATURES:
		return p->v->offered;
	case LEGACY_DRIVER_FEATURES:
		return p->v->features;
	case LEGACY_QUEUE_PFN:
		return q && q->ready ? q->desc / PAGE_SIZE : 0;
	case LEGACY_QUEUE_SIZE:
		return q ? q->size_max : 0;
	case LEGACY_QUEUE_SEL:
		return p->queue_sel;
	case LEGACY_STATUS:
		return p->v->status;
	case LEGACY_ISR:
		return isr_read(p);
	case LEGACY_CONFIG_VECTOR:
		return p->config_vector;
	case LEGACY_QUEUE_VECTOR:
		return q ? p->queue_vector[p->queue_sel] : NO_VECTOR;
	}
	return 0;
}

static void legacy_set_pfn(struct virtio_pci *p, uint32_t pfn)
{
	struct vq *q = selected(p);

	if (!q)
		return;
	if (pfn == 0) {
		q->ready = false;
		q->gen++; /* what is in flight belongs to the old ring */
		q->last_avail = q->used = q->used_shown = 0;
		return;
	}
	vq_set_legacy_address(q, (gpa_t)pfn * PAGE_SIZE);
	q->ready = true;
}

static void legacy_reg_write(struct virtio_pci *p, unsigned off, uint32_t value)
{
	switch (off) {
	case LEGACY_DRIVER_FEATURES: /* a legacy driver cannot know bits above 31 */
		return virtio_set_features(p->v, value & p->v->offered);
	case LEGACY_QUEUE_PFN:
		return legacy_set_pfn(p, value);
	case LEGACY_QUEUE_SEL:
		p->queue_sel = value;
		return;
	case LEGACY_NOTIFY:
		return virtio_kick(p->v, value & 0xffff);
	case LEGACY_STATUS:
		return set_status(p, value);
	case LEGACY_CONFIG_VECTOR:
		p->config_vector = valid_vector(p, value);
		return;
	case LEGACY_QUEUE_VECTOR:
		if (selected(p))
			p->queue_vector[p->queue_sel] = valid_vector(p, value);
		return;
	}
}

static uint64_t legacy_read(void *opaque, uint64_t off, unsigned size)
{
	struct virtio_pci *p = opaque;
	unsigned header = legacy_header(p);
	uint8_t raw[8] = {0};
	uint64_t value;

	pthread_mutex_lock(&p->v->lock);
	if (off < header) {
		value = legacy_reg_read(p, off);
	} else {
		virtio_config_read(p->v, off - header, raw, size);
		value = le64_load(raw);
	}
	pthread_mutex_unlock(&p->v->lock);
	return value;
}

static void legacy_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct virtio_pci *p = opaque;
	unsigned header = legacy_header(p);
	uint8_t raw[8];

	le64_store(raw, value);
	pthread_mutex_lock(&p->v->lock);
	if (!p->v->resetting) {
		if (off < header)
			legacy_reg_write(p, off, value);
		else
			virtio_config_write(p->v, off - header, raw, size);
	}
	pthread_mutex_unlock(&p->v->lock);
}

static const struct io_ops legacy_ops = {legacy_read, legacy_write, 4};

/* ---- making one ---- */

static void pci_reset(struct pci_dev *d)
{
	struct virtio_pci *p = container_of(d, struct virtio_pci, pci);

	pthread_mutex_lock(&p->v->lock);
	virtio_reset(p->v);
	transport_reset(p);
	pthread_mutex_unlock(&p->v->lock);
}

static const struct pci_dev_ops pci_ops = {
	.config_read = config_read,
	.config_written = config_written,
	.reset = pci_reset,
};

/* struct virtio_pci_cap, 4.1.4; `extra` bytes follow it. */
static unsigned add_cap(struct virtio_pci *p, uint8_t type, uint32_t off, uint32_t length,
			uint32_t extra_value, unsigned extra)
{
	uint8_t cap[CAP_SIZE + 4] = {0}, wmask[CAP_SIZE + 4] = {0};

	cap[2] = CAP_SIZE + extra;
	cap[3] = type;
	le32_store(cap + CAP_OFFSET, off);
	le32_store(cap + CAP_LENGTH, length);
	le32_store(cap + CAP_SIZE, extra_value);
	if (type == CAP_WINDOW) {
		wmask[CAP_BAR] = 0xff;
		memset(wmask + CAP_OFFSET, 0xff, CAP_SIZE + 4 - CAP_OFFSET);
	} else {
		cap[CAP_BAR] = BAR_MODERN;
	}
	return pci_dev_add_cap(&p->pci, PCI_CAP_VENDOR, cap + 2, wmask + 2, CAP_SIZE + extra);
}

static void add_caps(struct virtio_pci *p)
{
	unsigned notify = p->v->cfg.nr_queues * NOTIFY_MULTIPLIER;

	add_cap(p, CAP_COMMON, 0, COMMON_SIZE, 0, 0);
	add_cap(p, CAP_ISR, MODERN_PAGE, 1, 0, 0);
	if (p->v->cfg.config_len)
		add_cap(p, CAP_DEVICE, 2 * MODERN_PAGE, p->v->cfg.config_len, 0, 0);
	add_cap(p, CAP_NOTIFY, 3 * MODERN_PAGE, notify, NOTIFY_MULTIPLIER, 4);
	p->window_cap = add_cap(p, CAP_WINDOW, 0, 0, 0, 4);
}

/* 4.1.2.1; transitional network, block, console and entropy devices have IDs of their own. */
static struct pci_id identity(const struct virtio_dev *v, const struct virtio_pci_config *cfg)
{
	static const uint16_t old[] = {
		[VIRTIO_ID_NET] = 0x1000,
		[VIRTIO_ID_BLOCK] = 0x1001,
		[VIRTIO_ID_CONSOLE] = 0x1003,
		[VIRTIO_ID_RNG] = 0x1005,
	};
	bool transitional = cfg->transitional && v->cfg.id < ARRAY_SIZE(old);

	return (struct pci_id){
		.vendor = VENDOR_VIRTIO,
		.device = transitional ? old[v->cfg.id] : 0x1040 + v->cfg.id,
		.subsys_vendor = VENDOR_VIRTIO,
		.subsys = transitional ? v->cfg.id : 0x1100,
		.class_code = cfg->class_code,
		.revision = transitional ? 0 : 1,
		.intx_pin = 1,
	};
}

static uint64_t legacy_bar_size(const struct virtio_dev *v)
{
	uint64_t size = 32;

	while (size < LEGACY_HEADER_MSIX + v->cfg.config_len)
		size *= 2;
	return size;
}

int virtio_pci_init(struct virtio_pci *p, struct virtio_dev *v, const struct virtio_pci_config *cfg,
		    struct error *err)
{
	struct pci_id id = identity(v, cfg);
	int r;

	*p = (struct virtio_pci){.v = v, .nr_vectors = v->cfg.nr_queues + 1};
	pci_dev_init(&p->pci, v->cfg.name, &id, &pci_ops);
	transport_reset(p);
	if (cfg->transitional)
		pci_dev_add_bar(&p->pci, BAR_LEGACY, PCI_BAR_IO, legacy_bar_size(v), &legacy_ops,
				p);
	pci_dev_add_bar(&p->pci, BAR_MSIX, PCI_BAR_MEM32, MSIX_BAR_SIZE, NULL, NULL);
	pci_dev_add_bar(&p->pci, BAR_MODERN, PCI_BAR_MEM64, MODERN_SIZE, &modern_ops, p);
	add_caps(p);
	r = pci_dev_add_msix(&p->pci, p->nr_vectors, BAR_MSIX, 0, MSIX_PBA);
	if (r < 0) {
		err_errno(err, -r, "%s", v->cfg.name);
		goto fini;
	}
	v->transport = (struct virtio_transport){queue_interrupt, config_interrupt, p};
	r = pci_dev_attach(&p->pci, cfg->host, cfg->slot_fn, err);
	if (r < 0)
		goto fini;
	return 0;

fini:
	v->transport = (struct virtio_transport){0};
	pci_dev_fini(&p->pci);
	return r;
}

/* First nobody can ask any more, then what was asked ends, then there is nobody to interrupt. */
void virtio_pci_fini(struct virtio_pci *p)
{
	virtio_stop(p->v);
	pci_dev_detach(&p->pci);
	pci_dev_fini(&p->pci);
}

void virtio_pci_state(struct state *s, struct virtio_pci *p)
{
	struct virtio_dev *v = p->v;

	state_enter(s, "virtio-pci", 1);
	pci_dev_state(s, &p->pci);
	pthread_mutex_lock(&v->lock);
	state_u32(s, "device_feature_sel", &p->device_feature_sel);
	state_u32(s, "driver_feature_sel", &p->driver_feature_sel);
	state_u16(s, "queue_sel", &p->queue_sel);
	state_u16(s, "config_vector", &p->config_vector);
	for (unsigned i = 0; i < v->cfg.nr_queues; i++)
		state_u16(s, "queue_vector", &p->queue_vector[i]);
	state_u8(s, "isr", &p->isr);
	if (state_loading(s)) {
		p->config_vector = valid_vector(p, p->config_vector);
		for (unsigned i = 0; i < v->cfg.nr_queues; i++)
			p->queue_vector[i] = valid_vector(p, p->queue_vector[i]);
	}
	pthread_mutex_unlock(&v->lock);
	virtio_state(s, v);
	state_leave(s);
}
