/* A guest that writes anything to PCI configuration space and to the registers of virtio devices,
 * with rings of any content in memory.
 *
 * Input: 256 bytes that fill guest memory over and over, then operations of 8 bytes:
 * what, size, address (2 bytes), value (4 bytes). */
#include "base/bytes.h"
#include "bus/pci.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/console.h"
#include "devices/virtio/net.h"
#include "devices/virtio/rng.h"
#include "fake_blk.h"
#include "fake_chr.h"
#include "fake_net.h"
#include "mem/mem.h"

#include <assert.h>
#include <stdlib.h>

enum { ECAM = 0xb0000000, MMIO = 0xc0000000, RAM = 64 << 10, SEED = 256, OP = 8, MAX_OPS = 256 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct bus *bus;
static struct mem *mem;
static struct pci_host *host;

static const struct pci_window mmio = {MMIO, 1 << 20}, none, io = {0xc000, 0x1000};

static void setup_devices(void)
{
	struct virtio_blk *blk;
	struct virtio_net *nic;
	struct virtio_console *con;
	struct virtio_rng *rng;
	struct virtio_blk_config bc = {
		"blk", host, PCI_DEVFN(1, 0), true, mem, (struct blk *)&fake_blk, "serial"};
	struct virtio_net_config nc = {"net",           host, PCI_DEVFN(2, 0), true, mem,
				       fake_net_init(), {2}};
	struct virtio_console_config cc = {"con", host, PCI_DEVFN(3, 0), false, mem, FAKE_CHR};
	struct virtio_rng_config rc = {"rng", host, PCI_DEVFN(4, 0), true, mem};

	if (virtio_blk_create(&blk, &bc, NULL) < 0 || virtio_net_create(&nic, &nc, NULL) < 0 ||
	    virtio_console_create(&con, &cc, NULL) < 0 || virtio_rng_create(&rng, &rc, NULL) < 0)
		abort();
}

static void setup(void)
{
	struct pci_host_config cfg = {.ecam_gpa = ECAM, .ecam_buses = 64};

	if (bus_create(&bus, NULL) < 0 || mem_create(&mem, NULL) < 0 ||
	    mem_add_ram(mem, 0, RAM, NULL) < 0)
		abort();
	cfg.bus = bus;
	if (pci_host_create(&host, &cfg, NULL) < 0)
		abort();
	setup_devices();
}

/* What random writes find only by luck: a driver that brings its queues up properly, with rings
 * at places of the input's choosing. */
static void bring_up(unsigned slot, const uint8_t *op)
{
	uint64_t bar = bus_mmio_read(bus, ECAM + (slot << 15) + 0x20, 4) & ~15u;

	bus_mmio_write(bus, ECAM + (slot << 15) + 4, 7, 2);
	bus_mmio_write(bus, bar + 0x14, 0, 1);
	bus_mmio_write(bus, bar + 0x14, 3, 1);
	for (unsigned half = 0; half < 2; half++) {
		bus_mmio_write(bus, bar, half, 4);
		bus_mmio_write(bus, bar + 8, half, 4);
		bus_mmio_write(bus, bar + 0xc, bus_mmio_read(bus, bar + 4, 4), 4);
	}
	bus_mmio_write(bus, bar + 0x14, 11, 1);
	for (unsigned q = 0; q < 2; q++) {
		bus_mmio_write(bus, bar + 0x16, q, 2);
		bus_mmio_write(bus, bar + 0x18, 1 << (op[4] & 7), 2);
		bus_mmio_write(bus, bar + 0x20, op[5] * 16, 4);
		bus_mmio_write(bus, bar + 0x28, op[6] * 2, 4);
		bus_mmio_write(bus, bar + 0x30, 0x8000 + op[7] * 4, 4);
		bus_mmio_write(bus, bar + 0x1c, 1, 2);
	}
	bus_mmio_write(bus, bar + 0x14, 15, 1);
}

static void step(const uint8_t *op)
{
	static const uint8_t sizes[] = {1, 2, 4, 8};
	unsigned size = sizes[op[1] & 3], at = le16_load(op + 2), size32 = MIN(size, 4u);
	uint32_t value = le32_load(op + 4);

	switch (op[0] % 11) {
	case 0:
		bus_mmio_write(bus, ECAM + (at & 0xffff), value, size);
		break;
	case 1:
		bus_mmio_read(bus, ECAM + (at & 0xffff), size);
		break;
	case 2 ... 4: /* the devices' BARs, where start-up resources put them */
		bus_mmio_write(bus, MMIO + (at | (op[1] & 0x10) << 12), value, size);
		break;
	case 5:
		bus_mmio_read(bus, MMIO + (at | (op[1] & 0x10) << 12), size);
		break;
	case 6:
		bus_pio_write(bus, io.base + at % io.size, value, size32);
		break;
	case 7:
		bus_pio_read(bus, op[1] & 0x10 ? 0xcf8 + at % 8 : io.base + at % io.size, size32);
		break;
	case 8:
		bus_pio_write(bus, 0xcf8 + at % 8, value, size32);
		break;
	case 9:
		return bring_up(1 + at % 4, op);
	default:
		fake_net.net.receive(fake_net.net.opaque, op, OP);
		mem_write(mem, at, op + 4, 4);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	if (len < SEED)
		return 0;
	if (!bus)
		setup();
	pci_host_reset(host);
	if (pci_assign_resources(host, mmio, none, io, NULL) < 0)
		abort();
	for (unsigned at = 0; at < RAM; at += SEED)
		mem_write(mem, at, data, SEED);
	fake_chr_set_room(1024);
	fake_chr.len = 0;
	for (size_t i = SEED; i + OP <= len && i < SEED + OP * MAX_OPS; i += OP)
		step(data + i);
	return 0;
}
