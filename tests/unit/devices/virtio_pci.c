/* The virtio life cycle and its PCI transport, by way of the entropy device. */
#include "devices/virtio/rng.h"

#include "driver.h"

#include <pthread.h>

enum { DATA = 0x100000, SLOT = 4, VERSION_1 = 32, EVENT_IDX = 29, INDIRECT_DESC = 28 };

struct box {
	struct rig rig;
	struct virtio_rng *rng;
	struct drv d;
	struct drv_queue q;
};

static void box_init(struct box *b, bool transitional)
{
	struct virtio_rng_config cfg = {.name = "rng", .slot_fn = PCI_DEVFN(SLOT, 0)};

	rig_init(&b->rig);
	cfg.host = b->rig.host;
	cfg.mem = b->rig.mem;
	cfg.transitional = transitional;
	CHECK_EQ(0, virtio_rng_create(&b->rng, &cfg, NULL));
	rig_assign(&b->rig);
	drv_probe(&b->d, &b->rig, SLOT);
}

static void box_fini(struct box *b)
{
	virtio_rng_destroy(b->rng);
	rig_fini(&b->rig);
}

/* A driver at DRIVER_OK with MSI-X vector 1 on the queue. */
static void box_up(struct box *b, uint64_t extra)
{
	CHECK_EQ(11, drv_negotiate(&b->d, BIT(VERSION_1) | extra));
	drv_msix_on(&b->d, 2);
	drv_wr(&b->d, b->d.common + 0x10, 0, 2);
	drv_queue_on(&b->q, &b->d, 0, 16, 1);
	drv_set_status(&b->d, 15);
}

static const struct drv_seg want_64 = {DATA, 64, true};

static bool is_filled(struct box *b, gpa_t at, unsigned len)
{
	uint8_t buf[64], any = 0;

	CHECK_EQ(0, mem_read(b->rig.mem, at, buf, len));
	for (unsigned i = 0; i < len; i++)
		any |= buf[i];
	return any;
}

TEST(the_two_identities_are_those_of_the_specification)
{
	struct box b;

	box_init(&b, false);
	CHECK_EQ(0x10441af4, drv_cfg(&b.d, 0, 4));
	CHECK_EQ(1, drv_cfg(&b.d, PCI_REVISION, 1));
	CHECK_EQ(0, b.d.io);
	box_fini(&b);
	box_init(&b, true);
	CHECK_EQ(0x10051af4, drv_cfg(&b.d, 0, 4));
	CHECK_EQ(0, drv_cfg(&b.d, PCI_REVISION, 1));
	CHECK_EQ(4, drv_cfg(&b.d, PCI_SUBSYS_ID, 2));
	CHECK(b.d.io);
	box_fini(&b);
}

TEST(a_modern_driver_gets_its_entropy_and_an_interrupt)
{
	struct box b;

	box_init(&b, false);
	box_up(&b, 0);
	CHECK_EQ(64, drv_do(&b.q, &want_64, 1));
	CHECK(is_filled(&b, DATA, 64));
	CHECK(rig_wait_msi(&b.rig, 1, 1));
	box_fini(&b);
}

TEST(event_indices_work_through_the_whole_device)
{
	struct box b;

	box_init(&b, false);
	box_up(&b, BIT(EVENT_IDX) | BIT(INDIRECT_DESC));
	for (int i = 0; i < 40; i++) { /* round the ring more than twice */
		drv_put16(&b.q, b.q.avail + 4 + 2 * 16, b.q.seen);
		CHECK_EQ(64, drv_do(&b.q, &want_64, 1));
	}
	CHECK(rig_wait_msi(&b.rig, 1, 40));
	box_fini(&b);
}

TEST(one_buffer_is_filled_with_4_kib_at_most)
{
	struct box b;
	struct drv_seg big = {DATA, 1 << 20, true};

	box_init(&b, false);
	box_up(&b, 0);
	CHECK_EQ(4096, drv_do(&b.q, &big, 1));
	box_fini(&b);
}

TEST(features_must_be_offered_and_modern)
{
	struct box b;

	box_init(&b, false);
	CHECK_EQ(BIT(VERSION_1) | BIT(EVENT_IDX) | BIT(INDIRECT_DESC) | BIT(27), drv_offered(&b.d));
	CHECK_EQ(3, drv_negotiate(&b.d, BIT(VERSION_1) | BIT(0)));
	CHECK_EQ(3, drv_negotiate(&b.d, 0));
	CHECK_EQ(11, drv_negotiate(&b.d, BIT(VERSION_1)));
	box_fini(&b);
}

TEST(features_are_frozen_by_features_ok)
{
	struct box b;

	box_init(&b, false);
	CHECK_EQ(11, drv_negotiate(&b.d, BIT(VERSION_1)));
	drv_wr(&b.d, b.d.common + 8, 0, 4);
	drv_wr(&b.d, b.d.common + 0xc, 0xffffffff, 4);
	CHECK_EQ(0, drv_rd(&b.d, b.d.common + 0xc, 4));
	box_fini(&b);
}

TEST(a_notification_before_driver_ok_is_answered_at_driver_ok)
{
	struct box b;
	uint32_t head, len;

	box_init(&b, false);
	CHECK_EQ(11, drv_negotiate(&b.d, BIT(VERSION_1)));
	drv_queue_on(&b.q, &b.d, 0, 16, 0xffff);
	drv_add(&b.q, &want_64, 1);
	drv_kick(&b.q);
	usleep(20000);
	CHECK(!drv_used_ready(&b.q));
	drv_set_status(&b.d, 15);
	CHECK(drv_used(&b.q, &head, &len));
	box_fini(&b);
}

TEST(queue_registers_refuse_what_the_device_does_not_have)
{
	struct box b;
	gpa_t c;

	box_init(&b, false);
	c = b.d.common;
	CHECK_EQ(1, drv_rd(&b.d, c + 0x12, 2));
	CHECK_EQ(64, drv_rd(&b.d, c + 0x18, 2));
	drv_wr(&b.d, c + 0x18, 48, 2); /* not a power of two */
	CHECK_EQ(64, drv_rd(&b.d, c + 0x18, 2));
	drv_wr(&b.d, c + 0x18, 128, 2);
	CHECK_EQ(64, drv_rd(&b.d, c + 0x18, 2));
	drv_wr(&b.d, c + 0x18, 0, 2);
	CHECK_EQ(64, drv_rd(&b.d, c + 0x18, 2));
	drv_wr(&b.d, c + 0x1a, 2, 2); /* vectors 0 and 1 exist */
	CHECK_EQ(0xffff, drv_rd(&b.d, c + 0x1a, 2));
	drv_wr(&b.d, c + 0x16, 1, 2); /* no such queue */
	CHECK_EQ(0, drv_rd(&b.d, c + 0x18, 2));
	drv_wr(&b.d, c + 0x20, ~0ull, 8);
	drv_wr(&b.d, c + 0x1c, 1, 2);
	CHECK_EQ(0, drv_rd(&b.d, c + 0x1c, 2));
	box_fini(&b);
}

TEST(an_enabled_queue_keeps_its_size_and_addresses)
{
	struct box b;

	box_init(&b, false);
	box_up(&b, 0);
	drv_wr(&b.d, b.d.common + 0x18, 64, 2);
	CHECK_EQ(16, drv_rd(&b.d, b.d.common + 0x18, 2));
	drv_wr(&b.d, b.d.common + 0x20, 0xdead0000, 4);
	CHECK_EQ(b.q.desc, drv_rd(&b.d, b.d.common + 0x20, 8));
	drv_wr(&b.d, b.d.common + 0x1c, 0, 2);
	CHECK_EQ(1, drv_rd(&b.d, b.d.common + 0x1c, 2));
	box_fini(&b);
}

TEST(intx_and_the_isr_work_without_msix)
{
	struct box b;
	unsigned pirq = pci_pirq_of(SLOT, 1);

	box_init(&b, false);
	CHECK_EQ(11, drv_negotiate(&b.d, BIT(VERSION_1)));
	drv_queue_on(&b.q, &b.d, 0, 16, 0xffff);
	drv_set_status(&b.d, 15);
	drv_do(&b.q, &want_64, 1);
	for (int i = 0; i < 2500 && !b.rig.pirq[pirq]; i++)
		usleep(200);
	CHECK(b.rig.pirq[pirq]);
	CHECK_EQ(1, drv_rd(&b.d, b.d.isr, 1));
	CHECK(!b.rig.pirq[pirq]);
	CHECK_EQ(0, drv_rd(&b.d, b.d.isr, 1));
	box_fini(&b);
}

TEST(a_broken_ring_asks_for_a_reset_and_a_reset_helps)
{
	struct box b;

	box_init(&b, false);
	box_up(&b, 0);
	drv_offer(&b.q, 999);
	drv_kick(&b.q);
	CHECK(drv_wait_status(&b.d, 64));
	CHECK_EQ(15 | 64, drv_status(&b.d));
	CHECK(rig_wait_msi(&b.rig, 0, 1)); /* a configuration change */
	drv_set_status(&b.d, 15);
	CHECK_EQ(15 | 64, drv_status(&b.d)); /* only a reset clears it */
	box_up(&b, 0);
	CHECK_EQ(64, drv_do(&b.q, &want_64, 1));
	box_fini(&b);
}

TEST(a_buffer_in_mmio_asks_for_a_reset)
{
	struct box b;
	struct drv_seg bad = {0xc0000000, 64, true}; /* our own BAR */

	box_init(&b, false);
	box_up(&b, 0);
	drv_add(&b.q, &bad, 1);
	drv_kick(&b.q);
	CHECK(drv_wait_status(&b.d, 64));
	box_fini(&b);
}

TEST(a_reset_forgets_queues_vectors_and_features)
{
	struct box b;
	gpa_t c;

	box_init(&b, false);
	box_up(&b, 0);
	c = b.d.common;
	drv_set_status(&b.d, 0);
	CHECK_EQ(0, drv_rd(&b.d, c + 0x1c, 2));
	CHECK_EQ(0, drv_rd(&b.d, c + 0x20, 8));
	CHECK_EQ(64, drv_rd(&b.d, c + 0x18, 2));
	CHECK_EQ(0xffff, drv_rd(&b.d, c + 0x1a, 2));
	CHECK_EQ(0xffff, drv_rd(&b.d, c + 0x10, 2));
	CHECK_EQ(0, drv_rd(&b.d, c + 0x0c, 4));
	box_fini(&b);
}

TEST(the_window_in_configuration_space_reaches_the_registers)
{
	struct box b;
	unsigned w;

	box_init(&b, false);
	w = b.d.window;
	CHECK(w);
	drv_cfg_write(&b.d, w + 4, MODERN_BAR, 1);
	drv_cfg_write(&b.d, w + 8, 0x12, 4); /* num_queues */
	drv_cfg_write(&b.d, w + 12, 2, 4);
	CHECK_EQ(1, drv_cfg(&b.d, w + 16, 4));
	drv_cfg_write(&b.d, w + 8, 0x14, 4); /* device_status */
	drv_cfg_write(&b.d, w + 12, 1, 4);
	drv_cfg_write(&b.d, w + 16, 3, 1);
	CHECK_EQ(3, drv_status(&b.d));
	drv_cfg_write(&b.d, w + 8, 0xfffffffc, 4); /* outside: nothing happens */
	drv_cfg_write(&b.d, w + 12, 4, 4);
	drv_cfg_write(&b.d, w + 16, 0, 4);
	CHECK_EQ(0, drv_cfg(&b.d, w + 16, 4));
	CHECK_EQ(3, drv_status(&b.d));
	box_fini(&b);
}

TEST(accesses_of_odd_sizes_and_places_do_no_harm)
{
	struct box b;

	box_init(&b, true);
	for (unsigned off = 0; off < 0x4000; off += 3) {
		drv_rd(&b.d, drv_bar(&b.d, MODERN_BAR) + off, 4);
		drv_wr(&b.d, drv_bar(&b.d, MODERN_BAR) + off, 0x5a5a5a5a5a5a5a5a, 8);
	}
	for (unsigned off = 0; off < 40; off++) {
		bus_pio_read(b.rig.bus, b.d.io + off, 4);
		bus_pio_write(b.rig.bus, b.d.io + off, 0xffffffff, 4);
	}
	drv_set_status(&b.d, 0);
	CHECK_EQ(0, drv_status(&b.d));
	box_fini(&b);
}

static void out(struct box *b, unsigned reg, uint32_t v, unsigned size)
{
	bus_pio_write(b->rig.bus, b->d.io + reg, v, size);
}

static uint32_t in(struct box *b, unsigned reg, unsigned size)
{
	return bus_pio_read(b->rig.bus, b->d.io + reg, size);
}

TEST(a_legacy_driver_uses_the_io_registers)
{
	struct box b;
	uint32_t head, len;
	struct drv_queue *q = &b.q;

	box_init(&b, true);
	out(&b, 18, 0, 1);
	out(&b, 18, 3, 1);
	CHECK_EQ(1u << 29 | 1u << 28 | 1u << 27, in(&b, 0, 4));
	out(&b, 4, 0, 4);
	out(&b, 14, 0, 2);
	CHECK_EQ(64, in(&b, 12, 2));
	drv_queue_place(q, &b.d, 0, 64);
	out(&b, 8, q->desc / 4096, 4);
	CHECK_EQ(q->desc / 4096, in(&b, 8, 4));
	out(&b, 18, 7, 1);
	drv_add(q, &want_64, 1);
	out(&b, 16, 0, 2);
	CHECK(drv_used(q, &head, &len));
	CHECK_EQ(64, len);
	for (int i = 0; i < 2500 && !b.rig.pirq[pci_pirq_of(SLOT, 1)]; i++)
		usleep(200);
	CHECK_EQ(1, in(&b, 19, 1));
	CHECK(!b.rig.pirq[pci_pirq_of(SLOT, 1)]);
	out(&b, 18, 0, 1);
	CHECK_EQ(0, in(&b, 8, 4));
	box_fini(&b);
}

TEST(legacy_msix_vectors_appear_when_msix_is_on)
{
	struct box b;

	box_init(&b, true);
	drv_msix_on(&b.d, 2);
	out(&b, 20, 1, 2);
	CHECK_EQ(1, in(&b, 20, 2));
	out(&b, 22, 0, 2);
	CHECK_EQ(0, in(&b, 22, 2));
	out(&b, 22, 77, 2);
	CHECK_EQ(0xffff, in(&b, 22, 2));
	box_fini(&b);
}

static void save(struct box *b, uint8_t **buf, size_t *len)
{
	struct state_writer w;

	state_writer_init(&w, NULL);
	virtio_rng_state(&w.state, b->rng);
	CHECK_EQ(0, state_writer_finish(&w, buf, len));
}

static int load(struct box *b, const uint8_t *buf, size_t len, struct error *err)
{
	struct state_reader r;

	state_reader_init(&r, buf, len, err);
	virtio_rng_state(&r.state, b->rng);
	return state_reader_finish(&r);
}

TEST(a_saved_device_goes_on_in_another_process)
{
	struct box a, b;
	uint8_t *buf, rings[RING_STRIDE];
	size_t len;

	box_init(&a, false);
	box_up(&a, BIT(EVENT_IDX));
	for (int i = 0; i < 5; i++)
		CHECK_EQ(64, drv_do(&a.q, &want_64, 1));
	save(&a, &buf, &len);
	mem_read(a.rig.mem, RING_BASE, rings, sizeof(rings));

	box_init(&b, false);
	mem_write(b.rig.mem, RING_BASE, rings, sizeof(rings));
	CHECK_EQ(0, load(&b, buf, len, NULL));
	b.q = a.q;
	b.q.d = &b.d;
	CHECK_EQ(15, drv_status(&b.d));
	CHECK_EQ(64, drv_do(&b.q, &want_64, 1));
	free(buf);
	box_fini(&a);
	box_fini(&b);
}

TEST(a_buffer_offered_before_the_snapshot_is_served_after_it)
{
	struct box a, b;
	uint8_t *buf, rings[RING_STRIDE];
	uint32_t head, n;
	size_t len;

	box_init(&a, false);
	box_up(&a, 0);
	drv_add(&a.q, &want_64, 1); /* the notification never arrives */
	save(&a, &buf, &len);
	mem_read(a.rig.mem, RING_BASE, rings, sizeof(rings));
	box_init(&b, false);
	mem_write(b.rig.mem, RING_BASE, rings, sizeof(rings));
	CHECK_EQ(0, load(&b, buf, len, NULL));
	b.q = a.q;
	b.q.d = &b.d;
	CHECK(drv_used(&b.q, &head, &n));
	free(buf);
	box_fini(&a);
	box_fini(&b);
}

static void *kick_forever(void *opaque)
{
	struct box *b = opaque;

	for (int i = 0; i < 20000; i++)
		drv_wr(&b->d, b->d.notify, 0, 2);
	return NULL;
}

TEST(resets_while_another_cpu_notifies_do_not_race)
{
	struct box b;
	pthread_t t;

	box_init(&b, false);
	box_up(&b, 0);
	pthread_create(&t, NULL, kick_forever, &b);
	for (int i = 0; i < 200; i++) {
		drv_add(&b.q, &want_64, 1);
		box_up(&b, 0);
	}
	pthread_join(t, NULL);
	CHECK_EQ(64, drv_do(&b.q, &want_64, 1));
	box_fini(&b);
}
