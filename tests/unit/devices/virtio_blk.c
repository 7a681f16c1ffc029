/* virtio block against a disk in memory whose requests the test can hold back. */
#include "devices/virtio/blk.h"

#include "driver.h"
#include "fake_blk.h"

enum { SLOT = 4, HDR = 0x100000, BUF = 0x110000, ST = 0x120000, VERSION_1 = 32 };
enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { F_RO = 5, F_FLUSH = 9, F_DISCARD = 13, F_WRITE_ZEROES = 14 };
#define ALL_FEATURES (BIT(VERSION_1) | BIT(F_FLUSH) | BIT(F_DISCARD) | BIT(F_WRITE_ZEROES))

struct box {
	struct rig rig;
	struct virtio_blk *blk;
	struct drv d;
	struct drv_queue q;
};

static void box_init(struct box *b)
{
	struct virtio_blk_config cfg = {.name = "disk0", .slot_fn = PCI_DEVFN(SLOT, 0)};

	rig_init(&b->rig);
	cfg.host = b->rig.host;
	cfg.mem = b->rig.mem;
	cfg.blk = (struct blk *)&fake_blk;
	cfg.serial = "SERIAL-0123456789-TOO-LONG";
	CHECK_EQ(0, virtio_blk_create(&b->blk, &cfg, NULL));
	rig_assign(&b->rig);
	drv_probe(&b->d, &b->rig, SLOT);
}

static void box_up(struct box *b, uint64_t features)
{
	CHECK_EQ(11, drv_negotiate(&b->d, features));
	drv_msix_on(&b->d, 2);
	drv_queue_on(&b->q, &b->d, 0, 64, 1);
	drv_set_status(&b->d, 15);
}

static void box_fini(struct box *b)
{
	virtio_blk_destroy(b->blk);
	rig_fini(&b->rig);
}

static void header(struct box *b, uint32_t type, uint64_t sector)
{
	uint8_t raw[16] = {0}, poison = 0xee;

	le32_store(raw, type);
	le64_store(raw + 8, sector);
	mem_write(b->rig.mem, HDR, raw, 16);
	mem_write(b->rig.mem, ST, &poison, 1);
}

static uint8_t status(struct box *b)
{
	uint8_t v;

	mem_read(b->rig.mem, ST, &v, 1);
	return v;
}

/* One request with one data segment (len 0: none); returns the status byte. */
static uint8_t request(struct box *b, uint32_t type, uint64_t sector, uint32_t len,
		       uint32_t *written)
{
	bool in = type == T_IN || type == T_GET_ID;
	struct drv_seg s[3] = {{HDR, 16, false}, {BUF, len, in}, {ST, 1, true}};
	uint32_t n;

	header(b, type, sector);
	if (len == 0)
		s[1] = s[2];
	n = drv_do(&b->q, s, len ? 3 : 2);
	if (written)
		*written = n;
	return status(b);
}

TEST(the_configuration_describes_the_disk)
{
	struct box b;

	box_init(&b);
	CHECK_EQ(0x10421af4, drv_cfg(&b.d, 0, 4));
	CHECK_EQ(FAKE_BLK_SIZE / 512, drv_rd(&b.d, b.d.config, 8));
	CHECK_EQ(254, drv_rd(&b.d, b.d.config + 12, 4));
	CHECK_EQ(512, drv_rd(&b.d, b.d.config + 20, 4));
	CHECK_EQ(1, drv_rd(&b.d, b.d.config + 40, 4));
	CHECK(drv_offered(&b.d) & BIT(F_FLUSH));
	CHECK(!(drv_offered(&b.d) & BIT(F_RO)));
	box_fini(&b);
}

TEST(what_was_written_is_read_back)
{
	struct box b;
	char buf[8];
	uint32_t written;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	mem_write(b.rig.mem, BUF + 508, "trivisor", 8);
	CHECK_EQ(0, request(&b, T_OUT, 10, 1024, &written));
	CHECK_EQ(1, written);
	CHECK(!memcmp(fake_blk.data + 10 * 512 + 508, "trivisor", 8));
	mem_zero(b.rig.mem, BUF, 4096);
	CHECK_EQ(0, request(&b, T_IN, 10, 1024, &written));
	CHECK_EQ(1025, written);
	mem_read(b.rig.mem, BUF + 508, buf, 8);
	CHECK(!memcmp(buf, "trivisor", 8));
	CHECK(rig_wait_msi(&b.rig, 1, 2));
	box_fini(&b);
}

TEST(any_framing_of_header_data_and_status_works)
{
	struct box b;
	struct drv_seg s[] = {{HDR, 4, false},
			      {HDR + 4, 12, false},
			      {BUF, 1, true},
			      {BUF + 0x100, 510, true},
			      {BUF + 0x800, 2, true}};
	uint8_t v[2];

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	fake_blk.data[0] = 1;
	fake_blk.data[1] = 2;
	fake_blk.data[511] = 3;
	header(&b, T_IN, 0);
	CHECK_EQ(513, drv_do(&b.q, s, 5));
	mem_read(b.rig.mem, BUF, v, 1);
	CHECK_EQ(1, v[0]);
	mem_read(b.rig.mem, BUF + 0x100, v, 1);
	CHECK_EQ(2, v[0]);
	mem_read(b.rig.mem, BUF + 0x800, v, 2);
	CHECK_EQ(3, v[0]); /* last data byte, then the status */
	CHECK_EQ(0, v[1]);
	box_fini(&b);
}

TEST(requests_outside_the_disk_are_io_errors)
{
	struct box b;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	CHECK_EQ(1, request(&b, T_IN, FAKE_BLK_SIZE / 512, 512, NULL));
	CHECK_EQ(1, request(&b, T_OUT, FAKE_BLK_SIZE / 512 - 1, 1024, NULL));
	CHECK_EQ(1, request(&b, T_IN, UINT64_MAX, 512, NULL));
	CHECK_EQ(1, request(&b, T_IN, 1ull << 55, 512, NULL)); /* times 512 wraps to 0 */
	CHECK_EQ(1, request(&b, T_IN, 0, 100, NULL));
	CHECK_EQ(1, request(&b, T_IN, 0, 0, NULL));
	CHECK_EQ(0, fake_blk.nr_log);
	box_fini(&b);
}

TEST(an_unknown_request_is_unsupported)
{
	struct box b;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	CHECK_EQ(2, request(&b, 99, 0, 512, NULL));
	box_fini(&b);
}

TEST(host_errors_reach_the_guest)
{
	struct box b;
	uint32_t written;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	fake_blk.fail = -EIO;
	CHECK_EQ(1, request(&b, T_IN, 0, 512, &written));
	CHECK_EQ(1, written);
	CHECK_EQ(1, request(&b, T_FLUSH, 0, 0, NULL));
	box_fini(&b);
}

TEST(flush_reaches_the_disk)
{
	struct box b;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	CHECK_EQ(0, request(&b, T_FLUSH, 0, 0, NULL));
	CHECK_EQ(1, fake_blk.nr_log);
	CHECK_EQ(BLK_OP_FLUSH, fake_blk.log[0]);
	box_fini(&b);
}

TEST(a_driver_without_flush_gets_write_through)
{
	struct box b;

	box_init(&b);
	box_up(&b, BIT(VERSION_1));
	CHECK_EQ(0, request(&b, T_OUT, 0, 512, NULL));
	CHECK_EQ(2, fake_blk.nr_log);
	CHECK_EQ(BLK_OP_WRITE, fake_blk.log[0]);
	CHECK_EQ(BLK_OP_FLUSH, fake_blk.log[1]);
	box_fini(&b);
}

TEST(get_id_gives_twenty_bytes_of_the_serial)
{
	struct box b;
	char id[21] = {0};
	uint32_t written;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	CHECK_EQ(0, request(&b, T_GET_ID, 0, 20, &written));
	CHECK_EQ(21, written);
	mem_read(b.rig.mem, BUF, id, 20);
	CHECK_STR("SERIAL-0123456789-TO", id);
	box_fini(&b);
}

static void range(struct box *b, uint64_t sector, uint32_t nr, uint32_t flags)
{
	uint8_t raw[16];

	le64_store(raw, sector);
	le32_store(raw + 8, nr);
	le32_store(raw + 12, flags);
	mem_write(b->rig.mem, BUF, raw, 16);
}

TEST(discard_and_write_zeroes_name_a_range)
{
	struct box b;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	memset(fake_blk.data, 0x55, 8192);
	range(&b, 2, 3, 0);
	CHECK_EQ(0, request(&b, T_DISCARD, 0, 16, NULL));
	CHECK_EQ(0x55, fake_blk.data[2 * 512 - 1]);
	CHECK_EQ(0, fake_blk.data[2 * 512]);
	CHECK_EQ(0, fake_blk.data[5 * 512 - 1]);
	CHECK_EQ(0x55, fake_blk.data[5 * 512]);
	range(&b, 8, 1, 1);
	CHECK_EQ(0, request(&b, T_WRITE_ZEROES, 0, 16, NULL));
	CHECK_EQ(0, fake_blk.data[8 * 512]);
	box_fini(&b);
}

TEST(bad_ranges_are_refused)
{
	struct box b;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	range(&b, FAKE_BLK_SIZE / 512, 1, 0);
	CHECK_EQ(1, request(&b, T_DISCARD, 0, 16, NULL));
	range(&b, 0, 0xffffffff, 0);
	CHECK_EQ(1, request(&b, T_WRITE_ZEROES, 0, 16, NULL));
	range(&b, 0, 1, 1); /* unmap is not a discard flag */
	CHECK_EQ(2, request(&b, T_DISCARD, 0, 16, NULL));
	range(&b, 0, 1, 0);
	CHECK_EQ(1, request(&b, T_DISCARD, 0, 32, NULL)); /* one range at most */
	CHECK_EQ(0, fake_blk.nr_log);
	box_fini(&b);
}

TEST(a_read_only_disk_refuses_writes)
{
	struct box b;

	fake_blk.info.readonly = true;
	box_init(&b);
	CHECK(drv_offered(&b.d) & BIT(F_RO));
	box_up(&b, BIT(VERSION_1) | BIT(F_RO));
	CHECK_EQ(1, request(&b, T_OUT, 0, 512, NULL));
	CHECK_EQ(0, request(&b, T_IN, 0, 512, NULL));
	CHECK_EQ(2, request(&b, T_DISCARD, 0, 16, NULL));
	box_fini(&b);
}

TEST(a_request_without_status_or_header_stops_the_device)
{
	struct box b;
	struct drv_seg only_out = {HDR, 16, false}, only_in = {BUF, 512, true};

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	drv_add(&b.q, &only_out, 1);
	drv_kick(&b.q);
	CHECK(drv_wait_status(&b.d, 64));
	box_up(&b, ALL_FEATURES);
	drv_add(&b.q, &only_in, 1);
	drv_kick(&b.q);
	CHECK(drv_wait_status(&b.d, 64));
	box_fini(&b);
}

TEST(data_outside_ram_is_an_io_error)
{
	struct box b;
	struct drv_seg s[] = {{HDR, 16, false}, {0xc0000000, 512, true}, {ST, 1, true}};

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	header(&b, T_IN, 0);
	drv_do(&b.q, s, 3);
	CHECK_EQ(1, status(&b));
	box_fini(&b);
}

TEST(requests_run_at_the_same_time_and_complete_in_any_order)
{
	struct box b;
	uint32_t head, len, seen = 0;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	header(&b, T_IN, 0);
	fake_blk.hold = true;
	for (unsigned i = 0; i < 16; i++) {
		struct drv_seg s[] = {
			{HDR, 16, false}, {BUF + 512 * i, 512, true}, {ST + i, 1, true}};

		drv_add(&b.q, s, 3);
	}
	drv_kick(&b.q);
	usleep(10000);
	CHECK(!drv_used_ready(&b.q));
	fake_blk_release();
	for (unsigned i = 0; i < 16; i++) {
		CHECK(drv_used(&b.q, &head, &len));
		seen |= 1u << head / 3;
	}
	CHECK_EQ(0xffff, seen);
	box_fini(&b);
}

static void *release_later(void *opaque)
{
	usleep(50000);
	fake_blk_release();
	return NULL;
}

TEST(a_reset_waits_for_requests_and_drops_their_completions)
{
	struct box b;
	struct drv_seg s[] = {{HDR, 16, false}, {BUF, 512, true}, {ST, 1, true}};
	pthread_t t;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	header(&b, T_IN, 0);
	fake_blk.hold = true;
	drv_add(&b.q, s, 3);
	drv_kick(&b.q);
	usleep(20000);
	pthread_create(&t, NULL, release_later, NULL);
	drv_set_status(&b.d, 0);
	CHECK_EQ(1, fake_blk.nr_done); /* nobody writes to our memory any more */
	CHECK_EQ(0, drv_status(&b.d));
	CHECK(!drv_used_ready(&b.q));
	CHECK_EQ(0xee, status(&b));
	pthread_join(t, NULL);
	box_up(&b, ALL_FEATURES);
	CHECK_EQ(0, request(&b, T_IN, 0, 512, NULL));
	box_fini(&b);
}

TEST(destroying_the_device_waits_for_requests)
{
	struct box b;
	struct drv_seg s[] = {{HDR, 16, false}, {BUF, 512, true}, {ST, 1, true}};
	pthread_t t;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	header(&b, T_IN, 0);
	fake_blk.hold = true;
	drv_add(&b.q, s, 3);
	drv_kick(&b.q);
	usleep(20000);
	pthread_create(&t, NULL, release_later, NULL);
	virtio_blk_destroy(b.blk);
	CHECK_EQ(1, fake_blk.nr_done);
	pthread_join(t, NULL);
	rig_fini(&b.rig);
}

TEST(offering_the_same_descriptors_again_and_again_stays_bounded)
{
	struct box b;
	struct drv_seg s[] = {{HDR, 16, false}, {BUF, 512, true}, {ST, 1, true}};
	uint16_t head;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	header(&b, T_IN, 0);
	fake_blk.hold = true;
	head = drv_add(&b.q, s, 3);
	for (unsigned i = 0; i < 8 && !(drv_status(&b.d) & 64); i++) {
		for (unsigned n = 0; n < 32; n++)
			drv_offer(&b.q, head);
		drv_kick(&b.q);
		usleep(20000);
	}
	CHECK(drv_wait_status(&b.d, 64));
	fake_blk_release();
	box_fini(&b);
}

TEST(saving_waits_for_requests_in_flight)
{
	struct box b;
	struct drv_seg s[] = {{HDR, 16, false}, {BUF, 512, true}, {ST, 1, true}};
	struct state_writer w;
	uint8_t *buf;
	size_t len;
	pthread_t t;

	box_init(&b);
	box_up(&b, ALL_FEATURES);
	header(&b, T_IN, 0);
	fake_blk.hold = true;
	drv_add(&b.q, s, 3);
	drv_kick(&b.q);
	usleep(20000);
	pthread_create(&t, NULL, release_later, NULL);
	state_writer_init(&w, NULL);
	virtio_blk_state(&w.state, b.blk);
	CHECK_EQ(0, state_writer_finish(&w, &buf, &len));
	CHECK(drv_used_ready(&b.q));
	CHECK_EQ(0, status(&b));
	free(buf);
	pthread_join(t, NULL);
	box_fini(&b);
}
