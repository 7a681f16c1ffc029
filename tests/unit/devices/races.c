/* Two CPUs of a guest that is up to no good: one moves BARs, resets and reconfigures while another
 * uses the same device, and the host side works on.  Nothing is promised about what they see; it
 * must end, and leave a device that works.  Worth most under a thread or address sanitizer. */
#include "devices/virtio/blk.h"
#include "devices/virtio/net.h"
#include "driver.h"
#include "fake_blk.h"
#include "fake_net.h"

#include <pthread.h>

enum { MOVES = 2000, BAR_AT = 0xc8000000, BAR_STEP = 0x10000, NR_PLACES = 4 };

struct scene {
	struct rig r;
	struct virtio_blk *blk;
	struct virtio_net *nic;
	struct drv disk, card;
	atomic_bool over;
};

static void scene_init(struct scene *s)
{
	struct virtio_blk_config bc = {"disk", NULL, PCI_DEVFN(1, 0), true, NULL, NULL, "serial"};
	struct virtio_net_config nc = {"card", NULL, PCI_DEVFN(2, 0), true, NULL, NULL, {2}};

	memset(s, 0, sizeof(*s));
	rig_init(&s->r);
	bc.host = nc.host = s->r.host;
	bc.mem = nc.mem = s->r.mem;
	bc.blk = (struct blk *)&fake_blk;
	nc.net = fake_net_init();
	CHECK_EQ(0, virtio_blk_create(&s->blk, &bc, NULL));
	CHECK_EQ(0, virtio_net_create(&s->nic, &nc, NULL));
	rig_assign(&s->r);
	drv_probe(&s->disk, &s->r, 1);
	drv_probe(&s->card, &s->r, 2);
}

static void scene_fini(struct scene *s)
{
	virtio_net_destroy(s->nic);
	virtio_blk_destroy(s->blk);
	rig_fini(&s->r);
}

/* Wherever the BAR may be just now: a ring that means little, a notification, registers. */
static void *use_device(void *opaque)
{
	struct scene *s = opaque;

	for (unsigned i = 0; !atomic_load(&s->over); i++) {
		gpa_t at = BAR_AT + i % NR_PLACES * BAR_STEP;

		drv_wr(&s->disk, at + 0x16, 0, 2);
		drv_wr(&s->disk, at + 0x20, RING_BASE, 8);
		drv_wr(&s->disk, at + 0x28, RING_BASE + 0x1000, 8);
		drv_wr(&s->disk, at + 0x30, RING_BASE + 0x2000, 8);
		drv_wr(&s->disk, at + 0x1c, 1, 2);
		drv_wr(&s->disk, at + 0x14, 15, 1);
		drv_wr(&s->disk, at + 0x3000, 0, 2);
		drv_rd(&s->disk, at + 0x1000, 1);
		drv_rd(&s->disk, at + 0x2000, 8);
		bus_pio_write(s->r.bus, s->disk.io + 18, i % 16, 1);
		bus_pio_read(s->r.bus, s->disk.io + 19, 1);
	}
	return NULL;
}

static void *send_frames(void *opaque)
{
	static const uint8_t frame[64];
	struct scene *s = opaque;

	while (!atomic_load(&s->over)) {
		fake_net.net.receive(fake_net.net.opaque, frame, sizeof(frame));
		usleep(10);
	}
	return NULL;
}

static void move_bar(struct drv *d, gpa_t to)
{
	drv_cfg_write(d, 0x20, (uint32_t)to, 4);
	drv_cfg_write(d, 0x24, to >> 32, 4);
}

static void be_done(struct scene *s, pthread_t *t, unsigned nr)
{
	atomic_store(&s->over, true);
	while (nr--)
		pthread_join(t[nr], NULL);
}

TEST(a_bar_moves_and_closes_under_another_cpu_that_uses_it)
{
	struct scene s;
	pthread_t t[2];

	scene_init(&s);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, use_device, &s);
	for (unsigned i = 0; i < MOVES; i++) {
		move_bar(&s.disk, BAR_AT + i % NR_PLACES * BAR_STEP);
		if (i % 8 == 7) /* over the other device, and off */
			move_bar(&s.disk, drv_bar(&s.card, MODERN_BAR));
		drv_cfg_write(&s.disk, PCI_COMMAND, i % 16 ? 7 : 0, 2);
	}
	be_done(&s, t, 2);
	drv_cfg_write(&s.disk, PCI_COMMAND, 7, 2);
	move_bar(&s.disk, BAR_AT);
	drv_probe(&s.disk, &s.r, 1);
	drv_set_status(&s.disk, 0);
	CHECK_EQ(0, drv_status(&s.disk));
	scene_fini(&s);
}

/* The window in configuration space reaches the registers with the configuration lock held. */
TEST(the_window_resets_the_device_under_another_cpu_that_uses_it)
{
	struct scene s;
	pthread_t t[2];

	scene_init(&s);
	move_bar(&s.disk, BAR_AT);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, use_device, &s);
	for (unsigned i = 0; i < MOVES; i++) {
		drv_cfg_write(&s.disk, s.disk.window + 4, MODERN_BAR, 1);
		drv_cfg_write(&s.disk, s.disk.window + 8, 0x14, 4);
		drv_cfg_write(&s.disk, s.disk.window + 12, 1, 4);
		drv_cfg_write(&s.disk, s.disk.window + 16, 0, 1);
		drv_cfg(&s.disk, s.disk.window + 16, 1);
	}
	be_done(&s, t, 2);
	scene_fini(&s);
}

TEST(frames_arrive_while_the_card_is_reset_and_moved)
{
	struct drv_queue rx;
	struct scene s;
	pthread_t t[1];

	scene_init(&s);
	pthread_create(&t[0], NULL, send_frames, &s);
	for (unsigned i = 0; i < MOVES / 4; i++) {
		CHECK_EQ(11, drv_negotiate(&s.card, BIT(32) | (i & 1 ? BIT(15) : 0)));
		drv_queue_on(&rx, &s.card, 0, 8, 0xffff);
		for (unsigned k = 0; k < 4; k++)
			drv_add(&rx, &(struct drv_seg){0x80000 + k * 0x800, 0x800, true}, 1);
		drv_set_status(&s.card, 15);
		drv_kick(&rx);
		if (i % 4 == 0)
			usleep(300);
		drv_cfg_write(&s.card, PCI_COMMAND, 0, 2);
		drv_cfg_write(&s.card, PCI_COMMAND, 7, 2);
	}
	be_done(&s, t, 1);
	scene_fini(&s);
}

/* MSI-X entries change between "pending" and "sent", INTx is switched on and off. */
TEST(interrupt_routes_change_while_interrupts_are_raised)
{
	struct scene s;
	pthread_t t[2];
	gpa_t table;

	scene_init(&s);
	move_bar(&s.disk, BAR_AT);
	table = drv_bar(&s.disk, MSIX_TABLE_BAR);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, use_device, &s);
	for (unsigned i = 0; i < MOVES; i++) {
		drv_cfg_write(&s.disk, s.disk.msix + 2, i % 3 ? PCI_MSIX_ENABLE : 0, 2);
		drv_wr(&s.disk, table, 0xfee00000 + (i << 12), 8);
		drv_wr(&s.disk, table + 8, i % 64, 4);
		drv_wr(&s.disk, table + 12, i & 1, 4);
		drv_cfg_write(&s.disk, PCI_COMMAND, i % 5 ? 7 : 0x407, 2);
		drv_rd(&s.disk, table + 0x800, 8);
	}
	be_done(&s, t, 2);
	scene_fini(&s);
}
