/* vfio.c - a passed-through device, against one that exists in memory only. */
#include "base/bytes.h"
#include "base/error.h"
#include "base/evloop.h"
#include "bus/pci.h"
#include "devices/vfio/vfio_pci.h"
#include "mem/mem.h"
#include "test.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

enum {
	BAR0_SIZE = 16 * KiB, /* memory, 64 bits; MSI-X table at 0x2000 */
	BAR2_SIZE = 256,      /* ports */
	NR_MSIX = 5,
	CAP_PM = 0x40,
	CAP_MSI = 0x50,
	CAP_VENDOR = 0x70,
	CAP_MSIX = 0x80,
	CAP_HIDDEN = 0xa0, /* vital product data: not for guests */
	BAR0_AT = 0xd0000000,
	BAR2_AT = 0x6000,
	RAM = 4 * MiB,
};

/* --- the device that is not there ----------------------------------------------------------------
 */

static struct fake {
	struct vfio_backend backend;
	uint8_t cfg[256], bar0[BAR0_SIZE], bar2[BAR2_SIZE];
	int fds[3][8];
	int leave[2];
	unsigned nr_on[3], unmasked, resets, closed;
	bool no_reset, dma_fails, bridge;
	uint64_t mapped;
} fake;

static uint8_t *fake_bytes(unsigned index, uint64_t *size)
{
	*size = index == 0 ? BAR0_SIZE : index == 2 ? BAR2_SIZE : index == VFIO_CONFIG ? 256 : 0;
	return index == 0 ? fake.bar0 : index == 2 ? fake.bar2 : fake.cfg;
}

static int fake_region(struct vfio_backend *v, unsigned index, struct vfio_region *r)
{
	*r = (struct vfio_region){.readable = true, .writable = true};
	fake_bytes(index, &r->size);
	return 0;
}

static int fake_read(struct vfio_backend *v, unsigned index, uint64_t off, void *buf, unsigned len)
{
	uint64_t size;
	const uint8_t *p = fake_bytes(index, &size);

	if (!range_inside(off, len, size))
		return -EIO;
	memcpy(buf, p + off, len);
	return 0;
}

static int fake_write(struct vfio_backend *v, unsigned index, uint64_t off, const void *buf,
		      unsigned len)
{
	uint64_t size;
	uint8_t *p = fake_bytes(index, &size);

	if (!range_inside(off, len, size))
		return -EIO;
	memcpy(p + off, buf, len);
	return 0;
}

static int fake_irq_count(struct vfio_backend *v, enum vfio_irq kind)
{
	static const int count[] = {1, 1, NR_MSIX, 1, 1};

	return count[kind];
}

static int fake_irq_set(struct vfio_backend *v, enum vfio_irq kind, const int *fds, unsigned n)
{
	if (kind >= VFIO_IRQ_ERR) {
		fake.leave[kind - VFIO_IRQ_ERR] = n ? fds[0] : -1;
		return 0;
	}
	fake.nr_on[kind] = n;
	memcpy(fake.fds[kind], fds, n * sizeof(int));
	return 0;
}

static int fake_irq_unmask(struct vfio_backend *v, enum vfio_irq kind)
{
	fake.unmasked++;
	return 0;
}

static int fake_reset(struct vfio_backend *v)
{
	fake.resets++;
	return fake.no_reset ? -ENOTSUP : 0;
}

static int fake_dma_map(struct vfio_backend *v, gpa_t gpa, void *hva, uint64_t size,
			struct error *err)
{
	if (fake.dma_fails)
		return err_set(err, ENOMEM, "no memory may be locked");
	fake.mapped += size;
	return 0;
}

static void fake_close(struct vfio_backend *v)
{
	fake.closed++;
}

static const struct vfio_backend_ops fake_ops = {
	.region = fake_region,
	.region_read = fake_read,
	.region_write = fake_write,
	.irq_count = fake_irq_count,
	.irq_set = fake_irq_set,
	.irq_unmask = fake_irq_unmask,
	.reset = fake_reset,
	.dma_map = fake_dma_map,
	.close = fake_close,
};

static void fake_cap(unsigned at, uint8_t id, uint8_t next)
{
	fake.cfg[at] = id;
	fake.cfg[at + 1] = next;
}

static void fake_init(void)
{
	fake.backend.ops = &fake_ops;
	le32_store(fake.cfg + PCI_VENDOR_ID, 0x10d38086);
	le32_store(fake.cfg + PCI_REVISION, 0x02000003);
	le32_store(fake.cfg + PCI_SUBSYS_VENDOR, 0xa01f8086);
	le32_store(fake.cfg + PCI_BAR0, PCI_BAR_IS_64);
	le32_store(fake.cfg + PCI_BAR0 + 8, PCI_BAR_IS_IO);
	le16_store(fake.cfg + PCI_STATUS, PCI_STATUS_CAPS);
	fake.cfg[PCI_INTERRUPT_PIN] = 1;
	fake.cfg[PCI_CAP_PTR] = CAP_PM;
	fake_cap(CAP_PM, PCI_CAP_PM, CAP_MSI);
	fake_cap(CAP_MSI, PCI_CAP_MSI, CAP_HIDDEN);
	fake_cap(CAP_HIDDEN, 0x03, CAP_VENDOR);
	fake_cap(CAP_VENDOR, PCI_CAP_VENDOR, CAP_MSIX);
	fake.cfg[CAP_VENDOR + 2] = 12;
	fake.cfg[CAP_VENDOR + 8] = 0x77;
	fake_cap(CAP_MSIX, PCI_CAP_MSIX, 0);
	le16_store(fake.cfg + CAP_MSIX + 2, NR_MSIX - 1);
	le32_store(fake.cfg + CAP_MSIX + 4, 0x2000);
	le32_store(fake.cfg + CAP_MSIX + 8, 0x3000);
}

/* --- the guest's side ----------------------------------------------------------------------------
 */

static struct {
	struct bus *bus;
	struct pci_host *host;
	struct mem *mem;
	struct evloop *loop;
	pthread_t thread;
	struct vfio_pci *dev;
	_Atomic unsigned messages, last_data;
	_Atomic bool wire;
} pc;

static void on_msi(void *opaque, uint64_t addr, uint32_t data)
{
	pc.last_data = data;
	pc.messages++;
}

static void on_wire(void *opaque, unsigned n, bool level)
{
	pc.wire = level;
}

static void *loop_main(void *arg)
{
	evloop_run(pc.loop);
	return NULL;
}

static int try_create(struct error *err)
{
	struct vfio_pci_config cfg = {.name = "passed0",
				      .host = pc.host,
				      .slot_fn = PCI_DEVFN(4, 0),
				      .mem = pc.mem,
				      .loop = pc.loop,
				      .backend = &fake.backend};

	return vfio_pci_create(&pc.dev, &cfg, err);
}

static void pc_create(void)
{
	struct pci_host_config host = {.msi = {on_msi, NULL}};

	CHECK_EQ(0, bus_create(&pc.bus, NULL));
	CHECK_EQ(0, mem_create(&pc.mem, NULL));
	CHECK_EQ(0, mem_add_ram(pc.mem, 0, RAM, NULL));
	CHECK_EQ(0, evloop_create(&pc.loop, NULL));
	host.bus = pc.bus;
	for (unsigned i = 0; i < PCI_NR_PIRQ; i++)
		host.pirq[i] = (struct irq_line){on_wire, NULL, i};
	CHECK_EQ(0, pci_host_create(&pc.host, &host, NULL));
	CHECK_EQ(0, pthread_create(&pc.thread, NULL, loop_main, NULL));
	fake_init();
}

static void pc_destroy(void)
{
	evloop_stop(pc.loop);
	pthread_join(pc.thread, NULL);
	if (pc.dev)
		vfio_pci_destroy(pc.dev);
	pci_host_destroy(pc.host);
	evloop_destroy(pc.loop);
	mem_destroy(pc.mem);
	bus_destroy(pc.bus);
	CHECK_EQ(1, fake.closed);
}

static uint32_t cfg_io(unsigned off, unsigned size, bool write, uint32_t value)
{
	bus_pio_write(pc.bus, 0xcf8, 0x80000000 | PCI_DEVFN(4, 0) << 8 | (off & ~3u), 4);
	if (!write)
		return bus_pio_read(pc.bus, 0xcfc + (off & 3), size);
	bus_pio_write(pc.bus, 0xcfc + (off & 3), value, size);
	return 0;
}

static uint32_t cfg_read(unsigned off, unsigned size)
{
	return cfg_io(off, size, false, 0);
}

static void cfg_write(unsigned off, unsigned size, uint32_t value)
{
	cfg_io(off, size, true, value);
}

static void enable(void)
{
	cfg_write(PCI_BAR0, 4, BAR0_AT);
	cfg_write(PCI_BAR0 + 4, 4, 0);
	cfg_write(PCI_BAR0 + 8, 4, BAR2_AT);
	cfg_write(PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEM | PCI_COMMAND_MASTER);
}

static void start(void)
{
	struct error err = {""};

	pc_create();
	if (try_create(&err) < 0)
		printf("# %s\n", err.msg);
	CHECK(pc.dev);
	enable();
}

static void signal_device(int fd)
{
	CHECK_EQ(0, eventfd_write(fd, 1));
}

#define WAIT_FOR(cond)                                                                             \
	do {                                                                                       \
		for (int i_ = 0; i_ < 2000 && !(cond); i_++)                                       \
			usleep(5000);                                                              \
		CHECK(cond);                                                                       \
	} while (0)

/* --- the tests -----------------------------------------------------------------------------------
 */

TEST(the_guest_sees_the_device_as_it_is)
{
	start();
	CHECK_EQ(0x10d38086, cfg_read(PCI_VENDOR_ID, 4));
	CHECK_EQ(0x02000003, cfg_read(PCI_REVISION, 4));
	CHECK_EQ(0xa01f8086, cfg_read(PCI_SUBSYS_VENDOR, 4));
	cfg_write(PCI_BAR0, 4, ~0u);
	CHECK_EQ((uint32_t) ~(BAR0_SIZE - 1) | PCI_BAR_IS_64, cfg_read(PCI_BAR0, 4) & ~8u);
	CHECK_EQ(RAM, fake.mapped);
	CHECK_EQ(1, fake.resets);
	pc_destroy();
}

TEST(bars_reach_the_device_wherever_the_guest_puts_them)
{
	start();
	bus_mmio_write(pc.bus, BAR0_AT + 0x104, 0x11223344, 4);
	CHECK_EQ(0x11223344, le32_load(fake.bar0 + 0x104));
	le64_store(fake.bar0 + 0x200, 0x0102030405060708);
	CHECK_EQ(0x0102030405060708, bus_mmio_read(pc.bus, BAR0_AT + 0x200, 8));
	bus_pio_write(pc.bus, BAR2_AT + 4, 0xabcd, 2);
	CHECK_EQ(0xabcd, le16_load(fake.bar2 + 4));
	cfg_write(PCI_BAR0, 4, BAR0_AT + 0x100000);
	CHECK_EQ(0x11223344, bus_mmio_read(pc.bus, BAR0_AT + 0x100104, 4));
	CHECK_EQ(0, le32_load(fake.cfg + PCI_BAR0) & ~15u); /* the device was not told */
	pc_destroy();
}

TEST(capabilities_lie_where_the_device_has_them)
{
	unsigned seen = 0;

	start();
	for (unsigned at = cfg_read(PCI_CAP_PTR, 1); at; at = cfg_read(at + 1, 1)) {
		CHECK(at == CAP_PM || at == CAP_MSI || at == CAP_VENDOR || at == CAP_MSIX);
		CHECK_EQ(fake.cfg[at], cfg_read(at, 1));
		seen++;
	}
	CHECK_EQ(4, seen); /* and not the hidden one */
	CHECK_EQ(0x77, cfg_read(CAP_VENDOR + 8, 1));
	cfg_write(CAP_VENDOR + 8, 1, 0x55);
	CHECK_EQ(0x55, fake.cfg[CAP_VENDOR + 8]);
	fake.cfg[CAP_VENDOR + 9] = 0x99; /* the device changes something */
	CHECK_EQ(0x99, cfg_read(CAP_VENDOR + 9, 1));
	CHECK_EQ(PCI_COMMAND_IO | PCI_COMMAND_MEM | PCI_COMMAND_MASTER,
		 le16_load(fake.cfg + PCI_COMMAND));
	pc_destroy();
}

TEST(a_wire_is_let_go_when_the_driver_looks)
{
	start();
	CHECK_EQ(1, fake.nr_on[VFIO_IRQ_INTX]);
	signal_device(fake.fds[VFIO_IRQ_INTX][0]);
	WAIT_FOR(pc.wire);
	CHECK_EQ(0, fake.unmasked);
	bus_mmio_read(pc.bus, BAR0_AT, 4);
	CHECK(!pc.wire);
	CHECK_EQ(1, fake.unmasked);
	bus_mmio_read(pc.bus, BAR0_AT, 4);
	CHECK_EQ(1, fake.unmasked);
	pc_destroy();
}

static void msix_vector(unsigned n, uint32_t data, bool masked)
{
	gpa_t at = BAR0_AT + 0x2000 + n * PCI_MSIX_ENTRY_SIZE;

	bus_mmio_write(pc.bus, at, 0xfee00000, 4);
	bus_mmio_write(pc.bus, at + 4, 0, 4);
	bus_mmio_write(pc.bus, at + 8, data, 4);
	bus_mmio_write(pc.bus, at + 12, masked, 4);
}

TEST(msix_goes_through_the_guests_table)
{
	start();
	msix_vector(3, 0x43, false);
	msix_vector(4, 0x44, true);
	CHECK_EQ(0, le32_load(fake.bar0 + 0x2000 + 3 * PCI_MSIX_ENTRY_SIZE + 8));
	cfg_write(CAP_MSIX + 2, 2, PCI_MSIX_ENABLE);
	CHECK_EQ(NR_MSIX, fake.nr_on[VFIO_IRQ_MSIX]);
	CHECK_EQ(0, fake.nr_on[VFIO_IRQ_INTX]);
	signal_device(fake.fds[VFIO_IRQ_MSIX][3]);
	WAIT_FOR(pc.messages == 1);
	CHECK_EQ(0x43, pc.last_data);
	signal_device(fake.fds[VFIO_IRQ_MSIX][4]);
	WAIT_FOR(bus_mmio_read(pc.bus, BAR0_AT + 0x3000, 8) & 1 << 4); /* pending */
	CHECK_EQ(1, pc.messages);
	msix_vector(4, 0x44, false);
	WAIT_FOR(pc.messages == 2);
	CHECK_EQ(0x44, pc.last_data);
	cfg_write(CAP_MSIX + 2, 2, 0);
	CHECK_EQ(0, fake.nr_on[VFIO_IRQ_MSIX]);
	CHECK_EQ(1, fake.nr_on[VFIO_IRQ_INTX]);
	pc_destroy();
}

TEST(msi_is_switched_on_by_the_guest)
{
	start();
	cfg_write(CAP_MSI + PCI_MSI_ADDR, 4, 0xfee00000);
	cfg_write(CAP_MSI + PCI_MSI_DATA, 2, 0x51);
	cfg_write(CAP_MSI + PCI_MSI_CONTROL, 2, PCI_MSI_ENABLE);
	CHECK_EQ(1, fake.nr_on[VFIO_IRQ_MSI]);
	signal_device(fake.fds[VFIO_IRQ_MSI][0]);
	WAIT_FOR(pc.messages == 1);
	CHECK_EQ(0x51, pc.last_data);
	pc_destroy();
}

TEST(a_bus_reset_resets_the_device)
{
	start();
	cfg_write(CAP_MSIX + 2, 2, PCI_MSIX_ENABLE);
	pci_host_reset(pc.host);
	CHECK_EQ(2, fake.resets);
	CHECK_EQ(0, fake.nr_on[VFIO_IRQ_MSIX]);
	CHECK_EQ(0, cfg_read(PCI_COMMAND, 2));
	pc_destroy();
}

TEST(the_host_can_have_its_device_back)
{
	start();
	signal_device(fake.leave[1]);
	WAIT_FOR(cfg_read(PCI_VENDOR_ID, 4) == ~0u);
	CHECK_EQ(~0u, (uint32_t)bus_mmio_read(pc.bus, BAR0_AT, 4));
	evloop_sync(pc.loop);
	CHECK(!vfio_pci_present(pc.dev));
	CHECK_EQ(0, fake.nr_on[VFIO_IRQ_INTX]);
	pc_destroy();
}

TEST(what_cannot_be_given_is_refused)
{
	struct error err;

	pc_create();
	fake.dma_fails = true;
	CHECK_EQ(-ENOMEM, try_create(&err));
	CHECK(strstr(err.msg, "locked"));
	CHECK_EQ(1, fake.closed);
	fake.closed = 0;
	fake.dma_fails = false;
	fake.cfg[PCI_HEADER_TYPE] = 1;
	CHECK_EQ(-EINVAL, try_create(&err));
	CHECK(strstr(err.msg, "bridge"));
	pc.dev = NULL;
	pc_destroy();
}

/* --- groups, on a tree that looks like /sys
 * -------------------------------------------------------
 */

static char sysfs[64];

static void tree(const char *fmt, ...)
{
	char cmd[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	CHECK_EQ(0, system(cmd));
}

static void add_device(const char *address, const char *class, const char *driver, int group)
{
	tree("mkdir -p %s/bus/pci/devices/%s && echo %s > %s/bus/pci/devices/%s/class", sysfs,
	     address, class, sysfs, address);
	if (driver)
		tree("ln -s ../../drivers/%s %s/bus/pci/devices/%s/driver", driver, sysfs, address);
	if (group < 0)
		return;
	tree("mkdir -p %s/kernel/iommu_groups/%d/devices", sysfs, group);
	tree("ln -s ../../../../kernel/iommu_groups/%d %s/bus/pci/devices/%s/iommu_group", group,
	     sysfs, address);
	tree("touch %s/kernel/iommu_groups/%d/devices/%s", sysfs, group, address);
}

TEST(a_group_is_passed_through_whole)
{
	struct error err;
	unsigned group = 0;

	snprintf(sysfs, sizeof(sysfs), "/tmp/vfio.XXXXXX");
	CHECK(mkdtemp(sysfs));
	add_device("0000:01:00.0", "0x020000", "vfio-pci", 7);
	add_device("0000:00:01.0", "0x060400", "somebridge", 7);
	add_device("0000:01:00.1", "0x020000", NULL, 7);
	add_device("0000:02:00.0", "0x010802", "vfio-pci", 8);
	add_device("0000:02:00.1", "0x010802", "nvme", 8);
	add_device("0000:03:00.0", "0x010802", "nvme", 9);
	add_device("0000:04:00.0", "0x010802", "vfio-pci", -1);
	CHECK_EQ(0, vfio_group_check(sysfs, "0000:01:00.0", &group, &err));
	CHECK_EQ(7, group);
	CHECK_EQ(-EBUSY, vfio_group_check(sysfs, "0000:02:00.0", &group, &err));
	CHECK(strstr(err.msg, "0000:02:00.1") && strstr(err.msg, "nvme"));
	CHECK_EQ(-EBUSY, vfio_group_check(sysfs, "0000:03:00.0", &group, &err));
	CHECK(strstr(err.msg, "driverctl"));
	CHECK_EQ(-ENODEV, vfio_group_check(sysfs, "0000:04:00.0", &group, &err));
	CHECK(strstr(err.msg, "IOMMU is off"));
	CHECK_EQ(-ENODEV, vfio_group_check(sysfs, "0000:05:00.0", &group, &err));
	CHECK_EQ(-EINVAL, vfio_group_check(sysfs, "../../etc", &group, &err));
	CHECK_EQ(-EINVAL, vfio_group_check(sysfs, "01:00.0", &group, &err));
	tree("rm -r %s", sysfs);
}
