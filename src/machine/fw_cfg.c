/* machine/fw_cfg.c - the firmware configuration device.
 *
 *   selector   a 16-bit write names an item and starts at its first byte
 *   data       each read gives the next byte; zeros behind the end
 *   DMA        a write to the low half of the address names a request in memory
 *
 *     0 control  4 length  8 address       all big-endian; control becomes 0, or 1 on failure
 */
#include "machine/fw_cfg.h"

#include "base/bytes.h"
#include "base/error.h"
#include "bus/bus.h"
#include "machine/memmap.h"
#include "mem/mem.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

// clang-format off
enum { OFF_SELECTOR = 0, OFF_DATA = 1, OFF_DMA = 4, OFF_DMA_LOW = 8 };
enum { ID_PORTS = 1 << 0, ID_DMA = 1 << 1 };
enum { DMA_ERROR = 1 << 0, DMA_READ = 1 << 1, DMA_SKIP = 1 << 2, DMA_SELECT = 1 << 3,
       DMA_WRITE = 1 << 4, DMA_REQUEST_SIZE = 16 };
enum { DIR_HEADER = 4, DIR_ENTRY = 64, NR_KEYS = FW_CFG_FILE_FIRST + FW_CFG_MAX_FILES };
// clang-format on

/* Bit 14 once asked for write access, bit 15 is for items of one architecture: x86 has none
 * here. */
#define SELECTOR_WRITE BIT(14)

struct fw_cfg_item {
	uint8_t *data;
	uint32_t len;
};

struct fw_cfg {
	struct bus *bus;
	struct mem *mem;
	struct io_region *ports;
	struct fw_cfg_item item[NR_KEYS];
	unsigned nr_files;

	pthread_mutex_t lock; /* guards everything below */
	uint16_t selector;
	uint32_t offset;
	uint64_t dma_address;
};

/* ---- items ---- */

static int item_set(struct fw_cfg_item *item, const void *data, uint32_t len, struct error *err)
{
	uint8_t *copy = malloc(len ? len : 1);

	if (!copy)
		return err_errno(err, ENOMEM, "firmware configuration");
	memcpy(copy, data, len);
	free(item->data);
	*item = (struct fw_cfg_item){copy, len};
	return 0;
}

int fw_cfg_add(struct fw_cfg *f, enum fw_cfg_key key, const void *data, uint32_t len,
	       struct error *err)
{
	return item_set(&f->item[key], data, len, err);
}

int fw_cfg_add_u16(struct fw_cfg *f, enum fw_cfg_key key, uint16_t v, struct error *err)
{
	uint8_t p[2];

	le16_store(p, v);
	return fw_cfg_add(f, key, p, sizeof(p), err);
}

int fw_cfg_add_u64(struct fw_cfg *f, enum fw_cfg_key key, uint64_t v, struct error *err)
{
	uint8_t p[8];

	le64_store(p, v);
	return fw_cfg_add(f, key, p, sizeof(p), err);
}

static const char *file_name(const struct fw_cfg *f, unsigned i)
{
	return (const char *)f->item[FW_CFG_FILE_DIR].data + DIR_HEADER + i * DIR_ENTRY + 8;
}

int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, uint32_t len,
		    struct error *err)
{
	uint8_t dir[DIR_HEADER + FW_CFG_MAX_FILES * DIR_ENTRY] = {0}, *entry;
	struct fw_cfg_item *old = &f->item[FW_CFG_FILE_DIR];
	unsigned n = f->nr_files;
	int r;

	if (strlen(name) > FW_CFG_MAX_NAME)
		return err_set(err, ENAMETOOLONG, "firmware file '%s': the name is too long", name);
	if (n == FW_CFG_MAX_FILES)
		return err_set(err, ENOSPC, "firmware file '%s': there are %u already", name, n);
	for (unsigned i = 0; i < n; i++)
		if (!strcmp(file_name(f, i), name))
			return err_set(err, EEXIST, "firmware file '%s' exists", name);
	memcpy(dir, old->data, old->len);
	entry = dir + DIR_HEADER + n * DIR_ENTRY;
	be32_store(dir, n + 1);
	be32_store(entry, len);
	be16_store(entry + 4, FW_CFG_FILE_FIRST + n);
	strcpy((char *)entry + 8, name);
	r = item_set(&f->item[FW_CFG_FILE_FIRST + n], data, len, err);
	if (r == 0)
		r = item_set(old, dir, DIR_HEADER + (n + 1) * DIR_ENTRY, err);
	if (r == 0)
		f->nr_files++;
	return r;
}

/* ---- reading ---- */

static void cfg_select(struct fw_cfg *f, uint16_t selector)
{
	f->selector = selector & ~SELECTOR_WRITE;
	f->offset = 0;
}

static const struct fw_cfg_item *cfg_item(const struct fw_cfg *f)
{
	static const struct fw_cfg_item none = {0};

	return f->selector < NR_KEYS ? &f->item[f->selector] : &none;
}

/* How many of the next len bytes lie inside the item; *p: the first of them. */
static uint32_t cfg_inside(const struct fw_cfg *f, uint32_t len, const uint8_t **p)
{
	const struct fw_cfg_item *item = cfg_item(f);
	uint32_t off = MIN(f->offset, item->len);

	*p = item->data + off;
	return MIN(len, item->len - off);
}

static void cfg_advance(struct fw_cfg *f, uint32_t len)
{
	f->offset += MIN(len, UINT32_MAX - f->offset);
}

static uint8_t cfg_next_byte(struct fw_cfg *f)
{
	const uint8_t *p;
	uint8_t v = cfg_inside(f, 1, &p) ? *p : 0;

	cfg_advance(f, 1);
	return v;
}

/* ---- DMA ---- */

static int dma_read(struct fw_cfg *f, gpa_t to, uint32_t len)
{
	const uint8_t *p;
	uint32_t n = cfg_inside(f, len, &p);

	if (n && mem_write(f->mem, to, p, n) < 0)
		return -EFAULT;
	if (len > n && mem_zero(f->mem, to + n, len - n) < 0)
		return -EFAULT;
	cfg_advance(f, len);
	return 0;
}

static int dma_execute(struct fw_cfg *f, uint32_t control, uint32_t len, gpa_t address)
{
	if (control & DMA_SELECT)
		cfg_select(f, control >> 16);
	if (control & DMA_READ)
		return dma_read(f, address, len);
	if (control & DMA_WRITE)
		return -EACCES;
	if (control & DMA_SKIP)
		cfg_advance(f, len);
	return 0;
}

/* The address is the guest's word only: where there is no RAM nobody can be told. */
static void dma_start(struct fw_cfg *f)
{
	uint8_t req[DMA_REQUEST_SIZE], done[4];
	int r;

	if (mem_read(f->mem, f->dma_address, req, sizeof(req)) == 0) {
		r = dma_execute(f, be32_load(req), be32_load(req + 4), be64_load(req + 8));
		be32_store(done, r < 0 ? DMA_ERROR : 0);
		mem_write(f->mem, f->dma_address, done, sizeof(done));
	}
	f->dma_address = 0;
}

/* ---- ports ---- */

static uint64_t cfg_port_read(void *opaque, uint64_t off, unsigned size)
{
	static const uint8_t dma_signature[9] = "QEMU CFG";
	struct fw_cfg *f = opaque;
	uint64_t v = 0;

	if (off == OFF_DATA && size == 1) {
		pthread_mutex_lock(&f->lock);
		v = cfg_next_byte(f);
		pthread_mutex_unlock(&f->lock);
	} else if (off >= OFF_DMA) {
		memcpy(&v, dma_signature + (off - OFF_DMA), MIN(size, OFF_DMA + 8 - off));
	}
	return v;
}

static void cfg_port_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct fw_cfg *f = opaque;

	pthread_mutex_lock(&f->lock);
	if (off == OFF_SELECTOR && size == 2) {
		cfg_select(f, value);
	} else if (off == OFF_DMA && size == 4) {
		f->dma_address = (uint64_t)__builtin_bswap32(value) << 32;
	} else if (off == OFF_DMA_LOW && size == 4) {
		f->dma_address |= __builtin_bswap32(value);
		dma_start(f);
	}
	pthread_mutex_unlock(&f->lock);
}

static const struct io_ops cfg_ops = {
	.read = cfg_port_read,
	.write = cfg_port_write,
	.max_size = 4,
};

/* ---- life ---- */

void fw_cfg_reset(struct fw_cfg *f)
{
	pthread_mutex_lock(&f->lock);
	f->selector = 0;
	f->offset = 0;
	f->dma_address = 0;
	pthread_mutex_unlock(&f->lock);
}

static int cfg_add_first_items(struct fw_cfg *f, struct error *err)
{
	static const uint8_t empty_dir[DIR_HEADER];
	uint8_t id[4];
	int r;

	le32_store(id, ID_PORTS | ID_DMA);
	r = fw_cfg_add(f, FW_CFG_SIGNATURE, "QEMU", 4, err);
	if (r == 0)
		r = fw_cfg_add(f, FW_CFG_ID, id, sizeof(id), err);
	if (r == 0)
		r = fw_cfg_add(f, FW_CFG_FILE_DIR, empty_dir, sizeof(empty_dir), err);
	return r;
}

int fw_cfg_create(struct fw_cfg **out, struct bus *bus, struct mem *mem, struct error *err)
{
	struct fw_cfg *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return err_errno(err, ENOMEM, "firmware configuration");
	f->bus = bus;
	f->mem = mem;
	pthread_mutex_init(&f->lock, NULL);
	r = cfg_add_first_items(f, err);
	if (r == 0)
		r = bus_add_pio(bus, PORT_FW_CFG, PORT_FW_CFG_SIZE, &cfg_ops, f, "fw_cfg",
				&f->ports, err);
	if (r < 0) {
		fw_cfg_destroy(f);
		return r;
	}
	*out = f;
	return 0;
}

void fw_cfg_destroy(struct fw_cfg *f)
{
	if (!f)
		return;
	if (f->ports)
		bus_remove(f->bus, f->ports);
	for (unsigned i = 0; i < NR_KEYS; i++)
		free(f->item[i].data);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

void fw_cfg_state(struct state *s, struct fw_cfg *f)
{
	state_enter(s, "fw-cfg", 1);
	state_u16(s, "selector", &f->selector);
	state_u32(s, "offset", &f->offset);
	state_u64(s, "dma_address", &f->dma_address);
	state_leave(s);
}
