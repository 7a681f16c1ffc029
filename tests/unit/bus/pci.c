/* The PCI host and devices on it, driven through the bus as a guest does. */
#include "bus/pci.h"
#include "base/bytes.h"
#include "base/error.h"
#include "state/stream.h"
#include "test.h"

enum { ECAM = 0xb0000000, SLOT = 3 };

/* ---- a board with one device ---- */

struct board {
	struct bus *bus;
	struct pci_host *host;
	struct pci_dev dev;
	uint32_t mem_reg, io_reg; /* what the device's BARs hold */
	uint64_t last_off;
	unsigned nr_msi, nr_resets;
	uint64_t msi_addr;
	uint32_t msi_data[8];
	bool pirq[8], isa[16];
};

static void set_pirq(void *opaque, unsigned n, bool level)
{
	((struct board *)opaque)->pirq[n] = level;
}

static void set_isa(void *opaque, unsigned n, bool level)
{
	((struct board *)opaque)->isa[n] = level;
}

static void take_msi(void *opaque, uint64_t addr, uint32_t data)
{
	struct board *b = opaque;

	b->msi_addr = addr;
	b->msi_data[b->nr_msi++ % 8] = data;
}

static void take_reset(void *opaque)
{
	((struct board *)opaque)->nr_resets++;
}

static uint64_t mem_bar_read(void *opaque, uint64_t off, unsigned size)
{
	((struct board *)opaque)->last_off = off;
	return ((struct board *)opaque)->mem_reg;
}

static void mem_bar_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	((struct board *)opaque)->last_off = off;
	((struct board *)opaque)->mem_reg = value;
}

static uint64_t io_bar_read(void *opaque, uint64_t off, unsigned size)
{
	return ((struct board *)opaque)->io_reg;
}

static void io_bar_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	((struct board *)opaque)->io_reg = value;
}

static const struct io_ops mem_bar_ops = {mem_bar_read, mem_bar_write, 4};
static const struct io_ops io_bar_ops = {io_bar_read, io_bar_write, 4};
static const struct pci_id test_id = {
	.vendor = 0x1af4, .device = 0x10ff, .class_code = 0x020000, .revision = 7, .intx_pin = 1};

static void board_init(struct board *b)
{
	struct pci_host_config cfg = {.ecam_gpa = ECAM, .ecam_buses = 256};

	memset(b, 0, sizeof(*b));
	CHECK_EQ(0, bus_create(&b->bus, NULL));
	cfg.bus = b->bus;
	cfg.reset = take_reset;
	cfg.reset_opaque = b;
	cfg.msi = (struct msi_sink){take_msi, b};
	for (unsigned i = 0; i < 8; i++)
		cfg.pirq[i] = (struct irq_line){set_pirq, b, i};
	for (unsigned i = 0; i < 16; i++)
		cfg.isa[i] = (struct irq_line){set_isa, b, i};
	CHECK_EQ(0, pci_host_create(&b->host, &cfg, NULL));

	pci_dev_init(&b->dev, "test", &test_id, NULL);
	pci_dev_add_bar(&b->dev, 0, PCI_BAR_IO, 32, &io_bar_ops, b);
	pci_dev_add_bar(&b->dev, 1, PCI_BAR_MEM32, 4096, &mem_bar_ops, b);
	pci_dev_add_bar(&b->dev, 4, PCI_BAR_MEM64, 16 * KiB, &mem_bar_ops, b);
	pci_dev_add_pm(&b->dev);
	pci_dev_add_pcie(&b->dev);
	pci_dev_add_msi(&b->dev, 4);
	CHECK_EQ(0, pci_dev_add_msix(&b->dev, 3, 1, 0x800, 0xc00));
	CHECK_EQ(0, pci_dev_attach(&b->dev, b->host, PCI_DEVFN(SLOT, 0), NULL));
}

static void board_fini(struct board *b)
{
	pci_dev_detach(&b->dev);
	pci_dev_fini(&b->dev);
	pci_host_destroy(b->host);
	bus_destroy(b->bus);
}

static gpa_t ecam(unsigned devfn, unsigned reg)
{
	return ECAM + (devfn << 12) + reg;
}

static uint32_t rd(struct board *b, unsigned reg, unsigned size)
{
	return bus_mmio_read(b->bus, ecam(PCI_DEVFN(SLOT, 0), reg), size);
}

static void wr(struct board *b, unsigned reg, uint32_t value, unsigned size)
{
	bus_mmio_write(b->bus, ecam(PCI_DEVFN(SLOT, 0), reg), value, size);
}

static unsigned find_cap(struct board *b, uint8_t id)
{
	unsigned at = rd(b, PCI_CAP_PTR, 1);

	while (at && rd(b, at, 1) != id)
		at = rd(b, at + 1, 1);
	return at;
}

/* ---- configuration space ---- */

TEST(both_mechanisms_show_the_host_bridge)
{
	struct board b;

	board_init(&b);
	CHECK_EQ(0x29c08086, bus_mmio_read(b.bus, ecam(0, 0), 4));
	bus_pio_write(b.bus, 0xcf8, 0x80000000, 4);
	CHECK_EQ(0x29c08086, bus_pio_read(b.bus, 0xcfc, 4));
	CHECK_EQ(0x29c0, bus_pio_read(b.bus, 0xcfe, 2));
	CHECK_EQ(0x80000000, bus_pio_read(b.bus, 0xcf8, 4));
	CHECK_EQ(0x0600, bus_mmio_read(b.bus, ecam(0, PCI_CLASS), 2));
	CHECK_EQ(0x29188086, bus_mmio_read(b.bus, ecam(PCI_DEVFN(31, 0), 0), 4));
	CHECK_EQ(0x0601, bus_mmio_read(b.bus, ecam(PCI_DEVFN(31, 0), PCI_CLASS), 2));
	CHECK_EQ(ECAM | 1, bus_mmio_read(b.bus, ecam(0, 0x60), 4));
	board_fini(&b);
}

TEST(what_is_not_there_reads_all_ones)
{
	struct board b;

	board_init(&b);
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, ecam(PCI_DEVFN(9, 0), 0), 4));
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, ecam(PCI_DEVFN(SLOT, 1), 0), 4));
	CHECK_EQ(0xffff, bus_mmio_read(b.bus, ECAM + (1 << 20), 2)); /* bus 1 */
	bus_pio_write(b.bus, 0xcf8, 0x00000000, 4);                  /* enable bit clear */
	CHECK_EQ(0xffffffff, bus_pio_read(b.bus, 0xcfc, 4));
	bus_mmio_write(b.bus, ecam(PCI_DEVFN(9, 0), 4), 7, 2);
	CHECK_EQ(0xffff, bus_mmio_read(b.bus, ecam(PCI_DEVFN(9, 0), 4), 2));
	board_fini(&b);
}

TEST(an_access_across_the_end_of_a_function_does_not_reach_the_next)
{
	struct board b;

	board_init(&b);
	CHECK_EQ(0, bus_mmio_read(b.bus, ecam(PCI_DEVFN(SLOT, 0), 0xffe), 4) & 0xffff);
	wr(&b, 0xffe, 0xffffffff, 4);
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, ecam(PCI_DEVFN(SLOT, 1), 0), 4));
	board_fini(&b);
}

TEST(identity_is_read_only)
{
	struct board b;

	board_init(&b);
	wr(&b, PCI_VENDOR_ID, 0, 4);
	wr(&b, PCI_REVISION, 0, 4);
	wr(&b, PCI_INTERRUPT_PIN, 3, 1);
	CHECK_EQ(0x10ff1af4, rd(&b, 0, 4));
	CHECK_EQ(0x02000007, rd(&b, PCI_REVISION, 4));
	CHECK_EQ(1, rd(&b, PCI_INTERRUPT_PIN, 1));
	board_fini(&b);
}

TEST(every_capability_is_found_by_walking_the_list)
{
	struct board b;

	board_init(&b);
	CHECK(rd(&b, PCI_STATUS, 2) & PCI_STATUS_CAPS);
	CHECK(find_cap(&b, PCI_CAP_PM));
	CHECK(find_cap(&b, PCI_CAP_MSI));
	CHECK_EQ(0x92, rd(&b, find_cap(&b, PCI_CAP_EXPRESS) + 2, 2));
	CHECK_EQ(2, rd(&b, find_cap(&b, PCI_CAP_MSIX) + PCI_MSIX_CONTROL, 2));
	CHECK_EQ(0x801, rd(&b, find_cap(&b, PCI_CAP_MSIX) + 4, 4));
	CHECK_EQ(0, rd(&b, 0x100, 4)); /* no extended ones */
	board_fini(&b);
}

/* ---- BARs ---- */

TEST(writing_ones_to_a_bar_shows_its_size_and_kind)
{
	struct board b;

	board_init(&b);
	wr(&b, 0x10, 0xffffffff, 4);
	wr(&b, 0x14, 0xffffffff, 4);
	wr(&b, 0x18, 0xffffffff, 4);
	wr(&b, 0x20, 0xffffffff, 4);
	wr(&b, 0x24, 0xffffffff, 4);
	CHECK_EQ(0xffffffe1, rd(&b, 0x10, 4));
	CHECK_EQ(0xfffff000, rd(&b, 0x14, 4));
	CHECK_EQ(0, rd(&b, 0x18, 4)); /* not implemented */
	CHECK_EQ(0xffffc00c, rd(&b, 0x20, 4));
	CHECK_EQ(0xffffffff, rd(&b, 0x24, 4));
	board_fini(&b);
}

TEST(a_bar_answers_only_while_its_decoding_is_on)
{
	struct board b;

	board_init(&b);
	b.mem_reg = 0x1234;
	wr(&b, 0x14, 0xe0000000, 4);
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, 0xe0000010, 4));
	wr(&b, PCI_COMMAND, PCI_COMMAND_MEM, 2);
	CHECK_EQ(0x1234, bus_mmio_read(b.bus, 0xe0000010, 4));
	CHECK_EQ(0x10, b.last_off);
	wr(&b, PCI_COMMAND, 0, 2);
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, 0xe0000010, 4));
	board_fini(&b);
}

TEST(a_bar_moves_while_the_guest_runs)
{
	struct board b;

	board_init(&b);
	wr(&b, PCI_COMMAND, PCI_COMMAND_MEM | PCI_COMMAND_IO, 2);
	wr(&b, 0x20, 0x00000000, 4);
	wr(&b, 0x24, 0x00000010, 4); /* 64 GiB */
	wr(&b, 0x10, 0xc000, 4);
	bus_mmio_write(b.bus, 0x1000003000, 0x55, 4);
	CHECK_EQ(0x55, b.mem_reg);
	CHECK_EQ(0x3000, b.last_off);
	bus_pio_write(b.bus, 0xc01f, 0x66, 1);
	CHECK_EQ(0x66, b.io_reg);

	wr(&b, 0x24, 0x00000011, 4);
	wr(&b, 0x10, 0xd000, 4);
	bus_mmio_write(b.bus, 0x1000003000, 0x77, 4);
	bus_pio_write(b.bus, 0xc000, 0x77, 1);
	CHECK_EQ(0x55, b.mem_reg);
	CHECK_EQ(0x66, b.io_reg);
	bus_mmio_write(b.bus, 0x1100003000, 0x88, 4);
	bus_pio_write(b.bus, 0xd000, 0x99, 1);
	CHECK_EQ(0x88, b.mem_reg);
	CHECK_EQ(0x99, b.io_reg);
	board_fini(&b);
}

TEST(impossible_addresses_are_not_decoded)
{
	struct board b;

	board_init(&b);
	wr(&b, PCI_COMMAND, PCI_COMMAND_MEM | PCI_COMMAND_IO, 2);
	wr(&b, 0x10, 0xfffffff0, 4);
	wr(&b, 0x20, 0xffffffff, 4);
	wr(&b, 0x24, 0xffffffff, 4);
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, 0xffffffffffffc000, 4));
	CHECK_EQ(0xff, bus_pio_read(b.bus, 0xfff0, 1));
	wr(&b, 0x20, 0, 4);
	wr(&b, 0x24, 0, 4);
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, 0, 4));
	board_fini(&b);
}

TEST(a_bar_over_another_waits_until_that_has_moved)
{
	struct board b;

	board_init(&b);
	b.mem_reg = 5;
	wr(&b, PCI_COMMAND, PCI_COMMAND_MEM, 2);
	wr(&b, 0x14, 0xe0000000, 4);
	wr(&b, 0x20, 0xe0000000, 4); /* the 16 KiB one, over the 4 KiB one */
	CHECK_EQ(5, bus_mmio_read(b.bus, 0xe0000000, 4));
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, 0xe0002000, 4));
	wr(&b, 0x14, 0xe1000000, 4);
	CHECK_EQ(5, bus_mmio_read(b.bus, 0xe0002000, 4));
	CHECK_EQ(5, bus_mmio_read(b.bus, 0xe1000000, 4));
	board_fini(&b);
}

TEST(a_bar_over_the_ecam_window_leaves_the_window_alone)
{
	struct board b;

	board_init(&b);
	wr(&b, PCI_COMMAND, PCI_COMMAND_MEM, 2);
	wr(&b, 0x14, ECAM, 4);
	CHECK_EQ(0x29c08086, bus_mmio_read(b.bus, ecam(0, 0), 4));
	board_fini(&b);
}

TEST(resources_are_given_out_without_overlap_and_decoding_is_on)
{
	struct board b;
	struct pci_window low = {0xc0000100, 0x10000000}, high = {64 * GiB, 64 * GiB};
	struct pci_window io = {0xc000, 0x1000};

	board_init(&b);
	CHECK_EQ(0, pci_assign_resources(b.host, low, high, io, NULL));
	CHECK_EQ(0xc000400c, rd(&b, 0x20, 4)); /* the first multiple of 16 KiB */
	CHECK_EQ(0, rd(&b, 0x24, 4));
	CHECK_EQ(0xc0008000, rd(&b, 0x14, 4));
	CHECK_EQ(0xc001, rd(&b, 0x10, 4));
	CHECK_EQ(PCI_COMMAND_IO | PCI_COMMAND_MEM, rd(&b, PCI_COMMAND, 2));
	CHECK_EQ(11, rd(&b, PCI_INTERRUPT_LINE, 1)); /* slot 3 INTA: PIRQ H */
	bus_mmio_write(b.bus, 0xc0004000, 1, 4);
	CHECK_EQ(1, b.mem_reg);
	board_fini(&b);
}

TEST(resources_that_do_not_fit_are_refused_with_a_sentence)
{
	struct board b;
	struct error err = {0};
	struct pci_window none = {0}, low = {0xc0000000, 0x5000}, io = {0xc000, 0x1000};

	board_init(&b);
	CHECK(pci_assign_resources(b.host, low, none, none, &err) < 0);
	CHECK(strstr(err.msg, "BAR 0 of test"));
	CHECK_EQ(0, pci_assign_resources(b.host, low, none, io, &err));
	low.size = 0x4fff;
	CHECK(pci_assign_resources(b.host, low, none, io, &err) < 0);
	CHECK(strstr(err.msg, "BAR 1 of test"));
	board_fini(&b);
}

/* ---- INTx ---- */

TEST(intx_reaches_the_pirq_of_slot_and_pin)
{
	struct board b;

	board_init(&b);
	pci_intx_set(&b.dev, true);
	CHECK(b.pirq[7]); /* (3 + 0) mod 4 + 4 = H */
	CHECK(rd(&b, PCI_STATUS, 2) & PCI_STATUS_INTX);
	wr(&b, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, 2);
	CHECK(!b.pirq[7]);
	CHECK(rd(&b, PCI_STATUS, 2) & PCI_STATUS_INTX);
	wr(&b, PCI_COMMAND, 0, 2);
	CHECK(b.pirq[7]);
	pci_intx_set(&b.dev, false);
	CHECK(!b.pirq[7]);
	CHECK_EQ(0, pci_pirq_of(31, 1));
	CHECK_EQ(3, pci_pirq_of(31, 4));
	CHECK_EQ(4, pci_pirq_of(0, 1));
	board_fini(&b);
}

TEST(a_shared_pirq_falls_when_the_last_device_lets_go)
{
	struct board b;
	struct pci_dev other;

	board_init(&b);
	pci_dev_init(&other, "other", &test_id, NULL);
	CHECK_EQ(0, pci_dev_attach(&other, b.host, PCI_DEVFN(7, 0), NULL)); /* also H */
	pci_intx_set(&b.dev, true);
	pci_intx_set(&other, true);
	pci_intx_set(&b.dev, false);
	CHECK(b.pirq[7]);
	pci_dev_detach(&other); /* an unplugged device pulls nothing */
	CHECK(!b.pirq[7]);
	pci_dev_fini(&other);
	board_fini(&b);
}

TEST(the_isa_bridge_routes_pirqs_to_the_8259)
{
	struct board b;
	gpa_t route_h = ecam(PCI_DEVFN(31, 0), 0x6b);

	board_init(&b);
	CHECK_EQ(0x80, bus_mmio_read(b.bus, route_h, 1));
	pci_intx_set(&b.dev, true);
	CHECK(!b.isa[10]);
	bus_mmio_write(b.bus, route_h, 10, 1);
	CHECK(b.isa[10]);
	bus_mmio_write(b.bus, route_h, 5, 1);
	CHECK(!b.isa[10]);
	CHECK(b.isa[5]);
	bus_mmio_write(b.bus, route_h, 8, 1); /* the RTC's line cannot be chosen */
	CHECK(!b.isa[5]);
	CHECK(!b.isa[8]);
	board_fini(&b);
}

/* ---- messages ---- */

static void msi_program(struct board *b, unsigned cap, uint16_t control)
{
	wr(b, cap + PCI_MSI_ADDR, 0xfee01003, 4);
	wr(b, cap + PCI_MSI_DATA, 0x4041, 2);
	wr(b, cap + PCI_MSI_CONTROL, control, 2);
}

TEST(msi_is_sent_with_the_vector_in_the_low_bits)
{
	struct board b;
	unsigned cap;

	board_init(&b);
	cap = find_cap(&b, PCI_CAP_MSI);
	wr(&b, PCI_COMMAND, PCI_COMMAND_MASTER, 2);
	msi_program(&b, cap, PCI_MSI_ENABLE | 2 << 4); /* four vectors */
	pci_msi_notify(&b.dev, 2);
	CHECK_EQ(1, b.nr_msi);
	CHECK_EQ(0xfee01000, b.msi_addr); /* low bits do not stick */
	CHECK_EQ(0x4042, b.msi_data[0]);
	CHECK(!b.pirq[7]);
	msi_program(&b, cap, PCI_MSI_ENABLE);
	pci_msi_notify(&b.dev, 3); /* one vector given: all share it */
	CHECK_EQ(0x4041, b.msi_data[1]);
	board_fini(&b);
}

TEST(a_masked_msi_is_pending_until_unmasked)
{
	struct board b;
	unsigned cap;

	board_init(&b);
	cap = find_cap(&b, PCI_CAP_MSI);
	wr(&b, PCI_COMMAND, PCI_COMMAND_MASTER, 2);
	msi_program(&b, cap, PCI_MSI_ENABLE | 2 << 4);
	wr(&b, cap + PCI_MSI_MASK, 2, 4);
	pci_msi_notify(&b.dev, 1);
	pci_msi_notify(&b.dev, 1);
	CHECK_EQ(0, b.nr_msi);
	CHECK_EQ(2, rd(&b, cap + PCI_MSI_PENDING, 4));
	wr(&b, cap + PCI_MSI_MASK, 0, 4);
	CHECK_EQ(1, b.nr_msi);
	CHECK_EQ(0, rd(&b, cap + PCI_MSI_PENDING, 4));
	board_fini(&b);
}

static void msix_entry(struct board *b, unsigned n, uint64_t addr, uint32_t data, uint32_t ctrl)
{
	gpa_t at = 0xe0000800 + 16 * n;

	bus_mmio_write(b->bus, at, addr, 8);
	bus_mmio_write(b->bus, at + 8, data, 4);
	bus_mmio_write(b->bus, at + 12, ctrl, 4);
}

static unsigned msix_on(struct board *b)
{
	unsigned cap = find_cap(b, PCI_CAP_MSIX);

	wr(b, 0x14, 0xe0000000, 4);
	wr(b, PCI_COMMAND, PCI_COMMAND_MASTER | PCI_COMMAND_MEM, 2);
	wr(b, cap + PCI_MSIX_CONTROL, PCI_MSIX_ENABLE, 2);
	return cap;
}

TEST(msix_vectors_start_masked_and_fire_when_unmasked)
{
	struct board b;

	board_init(&b);
	msix_on(&b);
	CHECK_EQ(1, bus_mmio_read(b.bus, 0xe000080c, 4));
	pci_msix_notify(&b.dev, 1);
	CHECK_EQ(2, bus_mmio_read(b.bus, 0xe0000c00, 8));
	msix_entry(&b, 1, 0xfee02000, 0x61, 0);
	CHECK_EQ(1, b.nr_msi);
	CHECK_EQ(0x61, b.msi_data[0]);
	CHECK_EQ(0, bus_mmio_read(b.bus, 0xe0000c00, 8));
	CHECK_EQ(0, b.mem_reg); /* none of it reached the device's own registers */
	board_fini(&b);
}

TEST(the_msix_function_mask_holds_everything_back)
{
	struct board b;
	unsigned cap;

	board_init(&b);
	cap = msix_on(&b);
	msix_entry(&b, 0, 0xfee00000, 0x30, 0);
	msix_entry(&b, 2, 0xfee00000, 0x32, 0);
	wr(&b, cap + PCI_MSIX_CONTROL, PCI_MSIX_ENABLE | PCI_MSIX_MASK_ALL, 2);
	pci_msix_notify(&b.dev, 0);
	pci_msix_notify(&b.dev, 2);
	CHECK_EQ(0, b.nr_msi);
	wr(&b, cap + PCI_MSIX_CONTROL, PCI_MSIX_ENABLE, 2);
	CHECK_EQ(2, b.nr_msi);
	CHECK_EQ(0x30, b.msi_data[0]);
	CHECK_EQ(0x32, b.msi_data[1]);
	board_fini(&b);
}

TEST(messages_wait_for_bus_mastering)
{
	struct board b;

	board_init(&b);
	msix_on(&b);
	msix_entry(&b, 0, 0xfee00000, 0x30, 0);
	wr(&b, PCI_COMMAND, PCI_COMMAND_MEM, 2);
	pci_msix_notify(&b.dev, 0);
	CHECK_EQ(0, b.nr_msi);
	wr(&b, PCI_COMMAND, PCI_COMMAND_MEM | PCI_COMMAND_MASTER, 2);
	CHECK_EQ(1, b.nr_msi);
	board_fini(&b);
}

TEST(a_vector_that_does_not_exist_is_dropped)
{
	struct board b;

	board_init(&b);
	msix_on(&b);
	pci_msix_notify(&b.dev, 3);
	pci_msix_notify(&b.dev, 0xffff);
	CHECK_EQ(0, bus_mmio_read(b.bus, 0xe0000c00, 8));
	CHECK_EQ(0, b.nr_msi);
	board_fini(&b);
}

TEST(without_messages_a_notification_raises_intx)
{
	struct board b;

	board_init(&b);
	pci_msix_notify(&b.dev, 1);
	CHECK(b.pirq[7]);
	pci_intx_set(&b.dev, false);
	CHECK(!b.pirq[7]);
	board_fini(&b);
}

TEST(the_pending_bits_and_reserved_msix_bits_are_read_only)
{
	struct board b;

	board_init(&b);
	msix_on(&b);
	bus_mmio_write(b.bus, 0xe0000c00, ~0ull, 8);
	CHECK_EQ(0, bus_mmio_read(b.bus, 0xe0000c00, 8));
	msix_entry(&b, 0, 0xfee00003, 1, 0xffffffff);
	CHECK_EQ(0xfee00000, bus_mmio_read(b.bus, 0xe0000800, 4));
	CHECK_EQ(1, bus_mmio_read(b.bus, 0xe000080c, 4));
	board_fini(&b);
}

/* ---- slots, reset, state ---- */

TEST(a_second_function_makes_the_first_multifunction)
{
	struct board b;
	struct pci_dev second;

	board_init(&b);
	CHECK_EQ(0, rd(&b, PCI_HEADER_TYPE, 1));
	pci_dev_init(&second, "second", &test_id, NULL);
	CHECK_EQ(0, pci_dev_attach(&second, b.host, PCI_DEVFN(SLOT, 1), NULL));
	CHECK_EQ(0x80, rd(&b, PCI_HEADER_TYPE, 1));
	pci_dev_detach(&second);
	CHECK_EQ(0, rd(&b, PCI_HEADER_TYPE, 1));
	pci_dev_fini(&second);
	board_fini(&b);
}

TEST(a_taken_slot_is_refused_and_any_slot_finds_a_free_one)
{
	struct board b;
	struct error err = {0};
	struct pci_dev d;

	board_init(&b);
	pci_dev_init(&d, "late", &test_id, NULL);
	CHECK(pci_dev_attach(&d, b.host, PCI_DEVFN(SLOT, 0), &err) < 0);
	CHECK(strstr(err.msg, "3.0"));
	CHECK_EQ(0, pci_dev_attach(&d, b.host, PCI_ANY_SLOT, &err));
	CHECK_EQ(PCI_DEVFN(1, 0), d.devfn);
	pci_dev_detach(&d);
	pci_dev_fini(&d);
	board_fini(&b);
}

TEST(reset_unmaps_bars_and_drops_interrupts)
{
	struct board b;

	board_init(&b);
	msix_on(&b);
	pci_msix_notify(&b.dev, 0);
	pci_intx_set(&b.dev, true);
	pci_host_reset(b.host);
	CHECK_EQ(0, rd(&b, PCI_COMMAND, 2));
	CHECK_EQ(0, rd(&b, 0x14, 4));
	CHECK_EQ(0xffffffff, bus_mmio_read(b.bus, 0xe0000000, 4));
	CHECK(!b.pirq[7]);
	msix_on(&b);
	CHECK_EQ(0, bus_mmio_read(b.bus, 0xe0000c00, 8));
	board_fini(&b);
}

TEST(port_cf9_resets_on_the_rising_edge_of_bit_2)
{
	struct board b;

	board_init(&b);
	bus_pio_write(b.bus, 0xcf9, 0x02, 1);
	CHECK_EQ(0, b.nr_resets);
	bus_pio_write(b.bus, 0xcf9, 0x06, 1);
	bus_pio_write(b.bus, 0xcf9, 0x06, 1);
	CHECK_EQ(1, b.nr_resets);
	CHECK_EQ(0x06, bus_pio_read(b.bus, 0xcf9, 1));
	board_fini(&b);
}

static void save(struct board *b, uint8_t **buf, size_t *len)
{
	struct state_writer w;

	state_writer_init(&w, NULL);
	pci_host_state(&w.state, b->host);
	pci_dev_state(&w.state, &b->dev);
	CHECK_EQ(0, state_writer_finish(&w, buf, len));
}

static int load(struct board *b, const uint8_t *buf, size_t len, struct error *err)
{
	struct state_reader r;

	state_reader_init(&r, buf, len, err);
	pci_host_state(&r.state, b->host);
	pci_dev_state(&r.state, &b->dev);
	return state_reader_finish(&r);
}

TEST(saved_state_brings_back_bars_routes_and_pending_messages)
{
	struct board a, b;
	uint8_t *buf;
	size_t len;

	board_init(&a);
	msix_on(&a);
	pci_msix_notify(&a.dev, 2);
	bus_mmio_write(a.bus, ecam(PCI_DEVFN(31, 0), 0x6b), 10, 1);
	bus_pio_write(a.bus, 0xcf8, 0x80001800, 4);
	save(&a, &buf, &len);
	board_fini(&a);

	board_init(&b);
	CHECK_EQ(0, load(&b, buf, len, NULL));
	free(buf);
	CHECK_EQ(0x10ff1af4, bus_pio_read(b.bus, 0xcfc, 4));
	CHECK_EQ(4, bus_mmio_read(b.bus, 0xe0000c00, 8)); /* BAR 1 is back */
	msix_entry(&b, 2, 0xfee00000, 0x77, 0);
	CHECK_EQ(0x77, b.msi_data[0]);
	pci_intx_set(&b.dev, true); /* MSI-X is on, so not on the wire */
	CHECK(!b.isa[10]);
	wr(&b, find_cap(&b, PCI_CAP_MSIX) + PCI_MSIX_CONTROL, 0, 2);
	CHECK(b.isa[10]);
	board_fini(&b);
}

TEST(state_of_another_device_is_refused)
{
	struct board a, b;
	struct error err = {0};
	uint8_t *buf;
	size_t len;

	board_init(&a);
	a.dev.cfg[PCI_DEVICE_ID] = 0x42;
	save(&a, &buf, &len);
	board_fini(&a);
	board_init(&b);
	CHECK(load(&b, buf, len, &err) < 0);
	CHECK(strstr(err.msg, "another kind"));
	CHECK_EQ(0x10ff1af4, rd(&b, 0, 4));
	free(buf);
	board_fini(&b);
}
