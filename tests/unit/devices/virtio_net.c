/* virtio network against a recording peer. */
#include "devices/virtio/net.h"

#include "driver.h"
#include "fake_net.h"

enum { SLOT = 4, HDR = 0x100000, BUF = 0x110000, VERSION_1 = 32 };
enum { F_MAC = 5, F_MRG_RXBUF = 15, F_STATUS = 16 };

struct box {
	struct rig rig;
	struct virtio_net *nic;
	struct drv d;
	struct drv_queue rx, tx;
};

static void box_init(struct box *b, bool transitional)
{
	struct virtio_net_config cfg = {.name = "net0", .slot_fn = PCI_DEVFN(SLOT, 0)};

	rig_init(&b->rig);
	cfg.host = b->rig.host;
	cfg.mem = b->rig.mem;
	cfg.net = fake_net_init();
	cfg.transitional = transitional;
	memcpy(cfg.mac, "\x52\x54\x00\x12\x34\x56", 6);
	CHECK_EQ(0, virtio_net_create(&b->nic, &cfg, NULL));
	rig_assign(&b->rig);
	drv_probe(&b->d, &b->rig, SLOT);
}

static void box_up(struct box *b, uint64_t extra)
{
	CHECK_EQ(11, drv_negotiate(&b->d, BIT(VERSION_1) | BIT(F_MAC) | extra));
	drv_msix_on(&b->d, 3);
	drv_queue_on(&b->rx, &b->d, 0, 16, 1);
	drv_queue_on(&b->tx, &b->d, 1, 16, 2);
	drv_set_status(&b->d, 15);
	CHECK(fake_net_wait(&fake_net.nr_ready, 1)); /* traffic may begin */
}

static void box_fini(struct box *b)
{
	virtio_net_destroy(b->nic);
	rig_fini(&b->rig);
}

static bool arrive(const void *frame, size_t len)
{
	return fake_net.net.receive(fake_net.net.opaque, frame, len);
}

/* Receive buffer i of size len at BUF + i * 4096. */
static void rx_buffer(struct box *b, unsigned i, uint32_t len)
{
	struct drv_seg s = {BUF + i * 4096, len, true};

	drv_add(&b->rx, &s, 1);
}

TEST(the_configuration_has_mac_and_link)
{
	struct box b;

	box_init(&b, false);
	CHECK_EQ(0x12005452, drv_rd(&b.d, b.d.config, 4));
	CHECK_EQ(0x5634, drv_rd(&b.d, b.d.config + 4, 2));
	CHECK_EQ(1, drv_rd(&b.d, b.d.config + 6, 2));
	CHECK(drv_offered(&b.d) & BIT(F_MRG_RXBUF));
	box_fini(&b);
}

TEST(a_frame_goes_out_without_its_header)
{
	struct box b;
	struct drv_seg s[] = {{HDR, 12, false}, {BUF, 60, false}};

	box_init(&b, false);
	box_up(&b, 0);
	mem_write(b.rig.mem, BUF, "frame", 5);
	drv_do(&b.tx, s, 2);
	CHECK_EQ(1, fake_net_count(&fake_net.nr_sent));
	CHECK_EQ(60, fake_net.last_len);
	CHECK(!memcmp(fake_net.last, "frame", 5));
	CHECK(rig_wait_msi(&b.rig, 2, 1));
	box_fini(&b);
}

TEST(header_and_frame_may_share_one_buffer)
{
	struct box b;
	struct drv_seg s = {BUF, 12 + 60, false};

	box_init(&b, false);
	box_up(&b, 0);
	mem_write(b.rig.mem, BUF + 12, "frame", 5);
	drv_do(&b.tx, &s, 1);
	CHECK(!memcmp(fake_net.last, "frame", 5));
	box_fini(&b);
}

TEST(runts_and_giants_are_completed_but_not_sent)
{
	struct box b;
	struct drv_seg runt = {BUF, 12 + 13, false}, shorter = {BUF, 5, false};
	struct drv_seg giant = {0x200000, 12 + 65537, false};

	box_init(&b, false);
	box_up(&b, 0);
	drv_do(&b.tx, &runt, 1);
	drv_do(&b.tx, &shorter, 1);
	drv_do(&b.tx, &giant, 1);
	CHECK_EQ(0, fake_net_count(&fake_net.nr_sent));
	CHECK_EQ(15, drv_status(&b.d));
	box_fini(&b);
}

TEST(a_frame_arrives_with_a_header_that_says_one_buffer)
{
	struct box b;
	uint8_t got[76];
	uint32_t head, len;

	box_init(&b, false);
	box_up(&b, 0);
	rx_buffer(&b, 0, 1526);
	CHECK(arrive("0123456789abcdefghij", 20));
	CHECK(drv_used(&b.rx, &head, &len));
	CHECK_EQ(32, len);
	mem_read(b.rig.mem, BUF, got, 32);
	CHECK_EQ(1, le16_load(got + 10));
	CHECK(!memcmp(got + 12, "0123456789abcdefghij", 20));
	CHECK(rig_wait_msi(&b.rig, 1, 1));
	box_fini(&b);
}

TEST(a_frame_is_spread_over_merged_buffers)
{
	struct box b;
	uint8_t frame[100], got[64];
	uint32_t head, len;

	for (unsigned i = 0; i < sizeof(frame); i++)
		frame[i] = i;
	box_init(&b, false);
	box_up(&b, BIT(F_MRG_RXBUF));
	rx_buffer(&b, 0, 40);
	rx_buffer(&b, 1, 64);
	rx_buffer(&b, 2, 64);
	CHECK(arrive(frame, 100));
	CHECK(drv_used(&b.rx, &head, &len));
	CHECK_EQ(40, len);
	CHECK(drv_used(&b.rx, &head, &len));
	CHECK_EQ(64, len);
	CHECK(drv_used(&b.rx, &head, &len));
	CHECK_EQ(8, len);
	mem_read(b.rig.mem, BUF, got, 40);
	CHECK_EQ(3, le16_load(got + 10));
	CHECK_EQ(27, got[39]);
	mem_read(b.rig.mem, BUF + 4096, got, 64);
	CHECK_EQ(28, got[0]);
	mem_read(b.rig.mem, BUF + 8192, got, 8);
	CHECK_EQ(99, got[7]);
	box_fini(&b);
}

TEST(without_buffers_the_peer_is_asked_to_wait)
{
	struct box b;
	uint8_t frame[100] = {0};
	uint32_t head, len;

	box_init(&b, false);
	box_up(&b, BIT(F_MRG_RXBUF));
	CHECK(!arrive(frame, 100));
	rx_buffer(&b, 0, 64);
	CHECK(!arrive(frame, 100)); /* 52 bytes short */
	CHECK(!drv_used_ready(&b.rx));
	rx_buffer(&b, 1, 64);
	drv_kick(&b.rx);
	CHECK(fake_net_wait(&fake_net.nr_ready, 2));
	CHECK(arrive(frame, 100));
	CHECK(drv_used(&b.rx, &head, &len));
	CHECK(drv_used(&b.rx, &head, &len));
	box_fini(&b);
}

TEST(a_frame_no_ring_can_hold_is_dropped)
{
	struct box b;
	static uint8_t frame[65536];

	box_init(&b, false);
	box_up(&b, BIT(F_MRG_RXBUF));
	for (unsigned i = 0; i < 16; i++)
		rx_buffer(&b, i, 64);
	CHECK(arrive(frame, sizeof(frame)));
	CHECK(!drv_used_ready(&b.rx));
	CHECK(arrive(frame, 60)); /* the next one still gets through */
	CHECK(drv_used_ready(&b.rx));
	box_fini(&b);
}

TEST(without_a_driver_frames_are_dropped_not_held)
{
	struct box b;

	box_init(&b, false);
	CHECK(arrive("0123456789abcdef", 16));
	box_up(&b, 0);
	drv_set_status(&b.d, 0);
	CHECK(arrive("0123456789abcdef", 16));
	box_fini(&b);
}

TEST(a_peer_told_to_wait_is_released_by_a_reset)
{
	struct box b;

	box_init(&b, false);
	box_up(&b, 0);
	CHECK(!arrive("0123456789abcdef", 16));
	drv_set_status(&b.d, 0);
	CHECK(fake_net_wait(&fake_net.nr_ready, 2));
	box_fini(&b);
}

TEST(a_receive_buffer_smaller_than_the_header_stops_the_device)
{
	struct box b;

	box_init(&b, false);
	box_up(&b, BIT(F_MRG_RXBUF));
	rx_buffer(&b, 0, 4);
	rx_buffer(&b, 1, 2000);
	CHECK(arrive("0123456789abcdef", 16));
	CHECK(drv_status(&b.d) & 64);
	box_fini(&b);
}

TEST(pulling_the_cable_is_a_configuration_change)
{
	struct box b;
	struct drv_seg s = {BUF, 12 + 60, false};
	uint8_t gen;

	box_init(&b, false);
	box_up(&b, BIT(F_STATUS));
	drv_wr(&b.d, b.d.common + 0x10, 0, 2);
	gen = drv_rd(&b.d, b.d.common + 0x15, 1);
	virtio_net_set_link(b.nic, false);
	CHECK_EQ(0, drv_rd(&b.d, b.d.config + 6, 2));
	CHECK(drv_rd(&b.d, b.d.common + 0x15, 1) != gen);
	CHECK(rig_wait_msi(&b.rig, 0, 1));
	drv_do(&b.tx, &s, 1);
	CHECK_EQ(0, fake_net_count(&fake_net.nr_sent));
	box_fini(&b);
}

TEST(a_legacy_driver_has_a_ten_byte_header)
{
	struct box b;
	struct drv_seg s = {BUF, 10 + 60, false};
	uint32_t head, len;
	struct bus *bus;

	box_init(&b, true);
	bus = b.rig.bus;
	CHECK_EQ(0x10001af4, drv_cfg(&b.d, 0, 4));
	bus_pio_write(bus, b.d.io + 18, 3, 1);
	bus_pio_write(bus, b.d.io + 4, 1 << F_MAC, 4);
	CHECK_EQ(0x52, bus_pio_read(bus, b.d.io + 20, 1)); /* the MAC, without MSI-X */
	bus_pio_write(bus, b.d.io + 14, 1, 2);
	drv_queue_place(&b.tx, &b.d, 1, 256);
	bus_pio_write(bus, b.d.io + 8, b.tx.desc / 4096, 4);
	bus_pio_write(bus, b.d.io + 18, 7, 1);
	mem_write(b.rig.mem, BUF + 10, "frame", 5);
	drv_add(&b.tx, &s, 1);
	bus_pio_write(bus, b.d.io + 16, 1, 2);
	CHECK(drv_used(&b.tx, &head, &len));
	CHECK_EQ(60, fake_net.last_len);
	CHECK(!memcmp(fake_net.last, "frame", 5));
	box_fini(&b);
}
