/* virtio console on a chardev whose other end the test holds. */
#include "devices/virtio/console.h"

#include "driver.h"
#include "fake_chr.h"

enum { SLOT = 4, BUF = 0x110000, VERSION_1 = 32 };

struct box {
	struct rig rig;
	struct virtio_console *con;
	struct drv d;
	struct drv_queue rx, tx;
};

static void box_init(struct box *b)
{
	struct virtio_console_config cfg = {.name = "hvc0", .slot_fn = PCI_DEVFN(SLOT, 0)};

	rig_init(&b->rig);
	cfg.host = b->rig.host;
	cfg.mem = b->rig.mem;
	cfg.chr = FAKE_CHR;
	CHECK_EQ(0, virtio_console_create(&b->con, &cfg, NULL));
	rig_assign(&b->rig);
	drv_probe(&b->d, &b->rig, SLOT);
}

static void box_up(struct box *b)
{
	CHECK_EQ(11, drv_negotiate(&b->d, BIT(VERSION_1)));
	drv_msix_on(&b->d, 3);
	drv_queue_on(&b->rx, &b->d, 0, 16, 1);
	drv_queue_on(&b->tx, &b->d, 1, 16, 2);
	drv_set_status(&b->d, 15);
}

static void box_fini(struct box *b)
{
	virtio_console_destroy(b->con);
	rig_fini(&b->rig);
}

TEST(output_reaches_the_host)
{
	struct box b;
	struct drv_seg s[] = {{BUF, 6, false}, {BUF + 0x100, 6, false}};

	box_init(&b);
	box_up(&b);
	mem_write(b.rig.mem, BUF, "hello ", 6);
	mem_write(b.rig.mem, BUF + 0x100, "world\n", 6);
	drv_do(&b.tx, s, 2);
	CHECK_EQ(12, fake_chr_len());
	CHECK(!memcmp(fake_chr.out, "hello world\n", 12));
	box_fini(&b);
}

TEST(a_large_buffer_goes_out_whole)
{
	struct box b;
	struct drv_seg s = {BUF, 20000, false};

	box_init(&b);
	box_up(&b);
	mem_write(b.rig.mem, BUF + 19996, "tail", 4);
	drv_do(&b.tx, &s, 1);
	CHECK_EQ(20000, fake_chr_len());
	CHECK(!memcmp(fake_chr.out + 19996, "tail", 4));
	box_fini(&b);
}

TEST(a_full_host_end_pauses_output_and_loses_nothing)
{
	struct box b;
	struct drv_seg s = {BUF, 10, false};
	uint32_t head, len;

	box_init(&b);
	box_up(&b);
	mem_write(b.rig.mem, BUF, "0123456789", 10);
	fake_chr_set_room(4);
	drv_add(&b.tx, &s, 1);
	drv_kick(&b.tx);
	CHECK(fake_chr_wait(4));
	usleep(10000);
	CHECK(!drv_used_ready(&b.tx));
	fake_chr_set_room(100);
	fake_chr.h.writable(fake_chr.h.opaque);
	CHECK(drv_used(&b.tx, &head, &len));
	CHECK_EQ(10, fake_chr_len());
	CHECK(!memcmp(fake_chr.out, "0123456789", 10));
	box_fini(&b);
}

TEST(a_reset_in_the_middle_of_a_buffer_starts_afresh)
{
	struct box b;
	struct drv_seg s = {BUF, 10, false};

	box_init(&b);
	box_up(&b);
	mem_write(b.rig.mem, BUF, "0123456789", 10);
	fake_chr_set_room(4);
	drv_add(&b.tx, &s, 1);
	drv_kick(&b.tx);
	CHECK(fake_chr_wait(4));
	drv_set_status(&b.d, 0);
	fake_chr_set_room(100);
	box_up(&b);
	drv_do(&b.tx, &s, 1);
	CHECK_EQ(14, fake_chr_len());
	CHECK(!memcmp(fake_chr.out, "01230123456789", 14));
	box_fini(&b);
}

TEST(typed_bytes_fill_the_guests_buffers)
{
	struct box b;
	struct drv_seg s = {BUF, 3, true};
	uint32_t head, len;
	char got[4] = {0};

	box_init(&b);
	box_up(&b);
	drv_add(&b.rx, &s, 1);
	s.gpa += 0x100;
	drv_add(&b.rx, &s, 1);
	drv_kick(&b.rx);
	CHECK_EQ(5, fake_chr_type("hello"));
	CHECK(drv_used(&b.rx, &head, &len));
	CHECK_EQ(3, len);
	CHECK(drv_used(&b.rx, &head, &len));
	CHECK_EQ(2, len);
	mem_read(b.rig.mem, BUF, got, 3);
	CHECK_STR("hel", got);
	box_fini(&b);
}

TEST(what_is_typed_before_the_driver_is_up_waits_for_it)
{
	struct box b;
	struct drv_seg s = {BUF, 64, true};
	uint32_t head, len;
	char got[6] = {0};

	box_init(&b);
	fake_chr_type("early");
	box_up(&b);
	drv_add(&b.rx, &s, 1);
	drv_kick(&b.rx);
	CHECK(drv_used(&b.rx, &head, &len));
	mem_read(b.rig.mem, BUF, got, 5);
	CHECK_STR("early", got);
	box_fini(&b);
}

TEST(a_full_input_buffer_says_so_and_asks_again_later)
{
	struct box b;
	struct drv_seg s = {BUF, 2000, true};
	char flood[1500];
	uint32_t head, len;

	memset(flood, 'x', sizeof(flood));
	flood[1499] = 0;
	box_init(&b);
	box_up(&b);
	CHECK_EQ(1024, fake_chr_type(flood));
	CHECK_EQ(0, fake_chr_type("y"));
	drv_add(&b.rx, &s, 1);
	drv_kick(&b.rx);
	CHECK(drv_used(&b.rx, &head, &len));
	CHECK_EQ(1024, len);
	for (int i = 0; i < 2500 && !fake_chr_accepts(); i++)
		usleep(200);
	CHECK(fake_chr_accepts());
	CHECK_EQ(1, fake_chr_type("y"));
	box_fini(&b);
}
