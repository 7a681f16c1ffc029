/* vhost-user devices against a back end of our own, sound and hostile. */
#include "devices/virtio/vhost.h"

#include "base/evloop.h"
#include "devices/virtio/vhost_blk.h"
#include "devices/virtio/vhost_net.h"

#include "driver.h"
#include "fake_vhost.h"

#include <errno.h>

enum { SLOT = 4, HDR = 0x100000, BUF = 0x110000, ST = 0x120000, VERSION_1 = 32 };
/* SHORT_MS where running out of time early comes to the same. */
enum { NEEDS_RESET = 64, LONG_MS = 60000, SHORT_MS = 300, MUTE_MS = 4000 };

struct box {
	struct fake_vhost fake;
	struct rig rig;
	struct evloop *loop;
	pthread_t loop_thread;
	struct vhost_blk *blk;
	struct drv d;
	struct drv_queue q;
};

static void *loop_main(void *arg)
{
	evloop_run(arg);
	return NULL;
}

static int box_open(struct box *b, unsigned timeout_ms, struct error *err)
{
	struct vhost_blk_config cfg = {.name = "disk0",
				       .host = b->rig.host,
				       .slot_fn = PCI_DEVFN(SLOT, 0),
				       .mem = b->rig.mem,
				       .loop = b->loop,
				       .max_queues = 4};
	int r = vhost_user_open(&cfg.backend, b->fake.path, timeout_ms, err);

	return r < 0 ? r : vhost_blk_create(&b->blk, &cfg, err);
}

static void box_board(struct box *b)
{
	b->blk = NULL;
	rig_init(&b->rig);
	CHECK_EQ(0, evloop_create(&b->loop, NULL));
	CHECK_EQ(0, pthread_create(&b->loop_thread, NULL, loop_main, b->loop));
}

static void box_up(struct box *b, uint64_t features)
{
	CHECK_EQ(11, drv_negotiate(&b->d, features | BIT(VERSION_1)));
	drv_msix_on(&b->d, 2);
	drv_queue_on(&b->q, &b->d, 0, 16, 1);
	drv_set_status(&b->d, 15);
}

static void box_init(struct box *b, unsigned timeout_ms)
{
	fake_init(&b->fake);
	fake_start(&b->fake);
	box_board(b);
	CHECK_EQ(0, box_open(b, timeout_ms, NULL));
	rig_assign(&b->rig);
	drv_probe(&b->d, &b->rig, SLOT);
}

static void box_end(struct box *b)
{
	evloop_stop(b->loop);
	pthread_join(b->loop_thread, NULL);
	vhost_blk_destroy(b->blk);
	evloop_destroy(b->loop);
	rig_fini(&b->rig);
}

static void box_fini(struct box *b)
{
	box_end(b);
	fake_stop(&b->fake);
	fake_fini(&b->fake);
}

static void prepare(struct box *b, uint32_t type, uint64_t sector)
{
	uint8_t raw[16] = {0}, poison = 0xee;

	le32_store(raw, type);
	le64_store(raw + 8, sector);
	mem_write(b->rig.mem, HDR, raw, 16);
	mem_write(b->rig.mem, ST, &poison, 1);
}

static uint8_t status(struct box *b)
{
	uint8_t v = 0;

	mem_read(b->rig.mem, ST, &v, 1);
	return v;
}

/* Waits as long as it takes: the back end is a thread on a machine that may be busy. */
static bool wait_used(struct drv_queue *q, uint32_t *len)
{
	uint32_t head;

	for (int i = 0; i < 40; i++)
		if (drv_used(q, &head, len))
			return true;
	return false;
}

static uint8_t request(struct box *b, uint32_t type, uint64_t sector, uint32_t *written)
{
	struct drv_seg s[] = {{HDR, 16, false}, {BUF, 512, type == 0}, {ST, 1, true}};
	uint32_t len = 0;

	prepare(b, type, sector);
	drv_add(&b->q, s, 3);
	drv_kick(&b->q);
	CHECK(wait_used(&b->q, &len));
	if (written)
		*written = len;
	return status(b);
}

static void check_io(struct box *b, uint64_t sector, const char *text)
{
	char got[32] = {0};
	uint32_t written;

	mem_write(b->rig.mem, BUF, text, strlen(text));
	CHECK_EQ(0, request(b, 1, sector, &written));
	CHECK_EQ(1, written);
	CHECK(!memcmp(b->fake.disk + sector * 512, text, strlen(text)));
	mem_zero(b->rig.mem, BUF, 512);
	CHECK_EQ(0, request(b, 0, sector, &written));
	CHECK_EQ(513, written);
	mem_read(b->rig.mem, BUF, got, strlen(text));
	CHECK(!memcmp(got, text, strlen(text)));
}

static bool wait_lost(struct box *b)
{
	for (int i = 0; i < 40 && !drv_wait_status(&b->d, NEEDS_RESET); i++)
		;
	return drv_status(&b->d) & NEEDS_RESET;
}

TEST(a_disk_is_what_its_back_end_says)
{
	static struct box b;
	uint64_t offered;

	box_init(&b, LONG_MS);
	CHECK_EQ(0x10421af4, drv_cfg(&b.d, 0, 4));
	CHECK_EQ(FAKE_SECTORS, drv_rd(&b.d, b.d.config, 8));
	CHECK_EQ(2, drv_rd(&b.d, b.d.config + 34, 2));
	CHECK_EQ(2, drv_rd(&b.d, b.d.common + 0x12, 2));
	offered = drv_offered(&b.d);
	CHECK_EQ(b.fake.features & ~BIT(30), offered);
	CHECK(!(offered & BIT(29))); /* event indices: the back end has none */
	CHECK_EQ(FAKE_SECTORS * 512, vhost_blk_size(b.blk));
	CHECK_EQ(0, b.fake.count[5]); /* no memory before there is a driver */
	box_fini(&b);
}

TEST(what_was_written_is_read_back)
{
	static struct box b;

	box_init(&b, LONG_MS);
	box_up(&b, BIT(28) | BIT(9));
	check_io(&b, 10, "trivisor");
	check_io(&b, 127, "the last sector");
	CHECK_EQ(1, request(&b, 0, 128, NULL)); /* the back end's own answer */
	CHECK_EQ(BIT(VERSION_1) | BIT(30) | BIT(28) | BIT(9), b.fake.got_features);
	for (int i = 0; i < 40 && !rig_wait_msi(&b.rig, 1, 1); i++)
		;
	CHECK(b.rig.msi_count[1] >= 1);
	box_fini(&b);
}

TEST(a_back_end_without_acknowledgements_works)
{
	static struct box b;

	fake_init(&b.fake);
	b.fake.protocol = BIT(9);
	b.fake.features &= ~BIT(12);
	fake_start(&b.fake);
	box_board(&b);
	CHECK_EQ(0, box_open(&b, LONG_MS, NULL));
	rig_assign(&b.rig);
	drv_probe(&b.d, &b.rig, SLOT);
	CHECK_EQ(1, drv_rd(&b.d, b.d.common + 0x12, 2));
	box_up(&b, 0);
	check_io(&b, 3, "no acknowledgement");
	box_fini(&b);
}

TEST(a_pause_stops_the_rings_where_they_are)
{
	static struct box b;

	box_init(&b, LONG_MS);
	box_up(&b, 0);
	check_io(&b, 1, "before");
	virtio_pause(vhost_blk_dev(b.blk));
	CHECK_EQ(1, b.fake.count[11]);
	virtio_pause(vhost_blk_dev(b.blk)); /* nothing is left to stop */
	CHECK_EQ(1, b.fake.count[11]);
	CHECK_EQ(2, vhost_blk_dev(b.blk)->vq[0].last_avail);
	CHECK_EQ(2, vhost_blk_dev(b.blk)->vq[0].used);
	virtio_resume(vhost_blk_dev(b.blk));
	check_io(&b, 2, "after");
	CHECK_EQ(2, b.fake.got_base[0]);
	box_fini(&b);
}

TEST(a_request_made_while_paused_is_served_afterwards)
{
	static struct box b;
	struct drv_seg s[] = {{HDR, 16, false}, {BUF, 512, true}, {ST, 1, true}};
	uint32_t len;

	box_init(&b, LONG_MS);
	box_up(&b, 0);
	check_io(&b, 1, "x");
	virtio_pause(vhost_blk_dev(b.blk));
	prepare(&b, 0, 1);
	drv_add(&b.q, s, 3);
	drv_kick(&b.q);
	usleep(20000);
	CHECK_EQ(0xee, status(&b));
	virtio_resume(vhost_blk_dev(b.blk));
	CHECK(wait_used(&b.q, &len));
	CHECK_EQ(0, status(&b));
	box_fini(&b);
}

TEST(a_reset_starts_the_rings_anew)
{
	static struct box b;

	box_init(&b, LONG_MS);
	box_up(&b, 0);
	check_io(&b, 1, "one");
	drv_set_status(&b.d, 0);
	CHECK_EQ(0, drv_status(&b.d));
	CHECK_EQ(1, b.fake.count[11]);
	box_up(&b, BIT(9));
	check_io(&b, 2, "two");
	CHECK_EQ(0, b.fake.got_base[0]);
	CHECK_EQ(2, b.fake.count[2]);
	box_fini(&b);
}

TEST(a_ring_outside_memory_is_the_guests_fault)
{
	static struct box b;

	box_init(&b, LONG_MS);
	CHECK_EQ(11, drv_negotiate(&b.d, BIT(VERSION_1)));
	drv_queue_on(&b.q, &b.d, 0, 16, 1);
	drv_set_status(&b.d, 0);
	CHECK_EQ(11, drv_negotiate(&b.d, BIT(VERSION_1)));
	drv_wr(&b.d, b.d.common + 0x16, 0, 2);
	drv_wr(&b.d, b.d.common + 0x20, RAM_SIZE - 16, 8);
	drv_wr(&b.d, b.d.common + 0x1c, 1, 2);
	drv_set_status(&b.d, 15);
	CHECK(wait_lost(&b));
	CHECK(vhost_blk_is_whole(b.blk));
	box_up(&b, 0);
	check_io(&b, 1, "after a good start");
	box_fini(&b);
}

TEST(a_back_end_that_goes_away_stops_the_device_until_it_is_back)
{
	static struct box b;

	box_init(&b, LONG_MS);
	box_up(&b, 0);
	check_io(&b, 1, "here");
	fake_stop(&b.fake);
	CHECK(wait_lost(&b));
	CHECK(!vhost_blk_is_whole(b.blk));

	box_up(&b, 0); /* nobody is there: I/O errors, not silence */
	CHECK_EQ(1, request(&b, 0, 1, NULL));
	CHECK_EQ(1, request(&b, 1, 2, NULL));

	fake_start(&b.fake);
	box_up(&b, 0);
	check_io(&b, 2, "back");
	CHECK(vhost_blk_is_whole(b.blk));
	box_fini(&b);
}

TEST(another_disk_is_not_taken_for_the_lost_one)
{
	static struct box b;

	box_init(&b, LONG_MS);
	box_up(&b, 0);
	fake_stop(&b.fake);
	CHECK(wait_lost(&b));
	b.fake.capacity--;
	fake_start(&b.fake);
	box_up(&b, 0);
	CHECK_EQ(1, request(&b, 0, 1, NULL));
	CHECK(!vhost_blk_is_whole(b.blk));
	box_fini(&b);
}

/* ---- hostile back ends ---- */

static void check_refused(int fault_request, enum fault fault, int expected, const char *word)
{
	static struct box b;
	struct error err = {""};
	int r;

	fake_init(&b.fake);
	b.fake.fault_request = fault_request;
	b.fake.fault = fault;
	fake_start(&b.fake);
	box_board(&b);
	r = box_open(&b, fault == FAULT_MUTE ? SHORT_MS : LONG_MS, &err);
	printf("# %s\n", err.msg);
	CHECK_EQ(-expected, r);
	CHECK(strstr(err.msg, word));
	box_fini(&b);
}

TEST(a_back_end_that_errs_when_it_is_greeted_is_refused)
{
	check_refused(1, FAULT_CLOSE, ECONNRESET, "closed");
	check_refused(1, FAULT_REQUEST, EPROTO, "protocol");
	check_refused(1, FAULT_VERSION, EPROTO, "protocol");
	check_refused(15, FAULT_LONG, EPROTO, "protocol");
	check_refused(15, FAULT_SHORT, ECONNRESET, "closed");
	check_refused(17, FAULT_MUTE, ETIMEDOUT, "answer");
	check_refused(24, FAULT_VALUE, EPROTO, "GET_CONFIG");
	check_refused(24, FAULT_CLOSE, ECONNRESET, "closed");
}

TEST(a_disk_that_cannot_be_is_refused)
{
	static struct box b;
	struct error err = {""};

	fake_init(&b.fake);
	b.fake.capacity = UINT64_MAX;
	fake_start(&b.fake);
	box_board(&b);
	CHECK_EQ(-EPROTO, box_open(&b, LONG_MS, &err));
	CHECK(strstr(err.msg, "impossible size"));
	box_fini(&b);
}

TEST(a_legacy_back_end_is_refused)
{
	static struct box b;
	struct error err = {""};

	fake_init(&b.fake);
	b.fake.features &= ~BIT(VERSION_1);
	fake_start(&b.fake);
	box_board(&b);
	CHECK_EQ(-ENOTSUP, box_open(&b, LONG_MS, &err));
	CHECK(strstr(err.msg, "legacy"));
	box_fini(&b);
}

TEST(nobody_listening_is_said)
{
	static struct box b;
	struct error err = {""};

	fake_init(&b.fake);
	box_board(&b);
	CHECK_EQ(-ENOENT, box_open(&b, LONG_MS, &err));
	CHECK(strstr(err.msg, "start it first"));
	box_end(&b);
	fake_fini(&b.fake);
}

/* It errs once the driver is up: the device stops, the VM goes on, the driver can reset it. */
static void check_stops(int fault_request, enum fault fault)
{
	static struct box b;

	box_init(&b, fault == FAULT_MUTE ? MUTE_MS : LONG_MS);
	b.fake.fault = fault;
	b.fake.fault_request = fault_request;
	box_up(&b, 0);
	CHECK(wait_lost(&b));
	drv_set_status(&b.d, 0);
	CHECK_EQ(0, drv_status(&b.d));
	b.fake.fault_request = 0;
	box_fini(&b);
}

TEST(a_back_end_that_errs_when_rings_start_is_lost)
{
	check_stops(2, FAULT_REFUSE);
	check_stops(5, FAULT_CLOSE);
	check_stops(8, FAULT_LONG);
	check_stops(9, FAULT_REQUEST);
	check_stops(12, FAULT_MUTE);
	check_stops(18, FAULT_SHORT);
}

static void check_stop_fails(enum fault fault)
{
	static struct box b;

	box_init(&b, fault == FAULT_MUTE ? MUTE_MS : LONG_MS);
	box_up(&b, 0);
	for (int i = 0; i < 5000 && !b.fake.count[18]; i++)
		usleep(1000);
	b.fake.fault = fault;
	b.fake.fault_request = 11;
	drv_set_status(&b.d, 0);
	CHECK_EQ(0, drv_status(&b.d)); /* a reset always ends */
	CHECK(!vhost_blk_is_whole(b.blk));
	b.fake.fault_request = 0;
	box_fini(&b);
}

TEST(a_back_end_that_does_not_stop_is_lost)
{
	check_stop_fails(FAULT_VALUE);
	check_stop_fails(FAULT_CLOSE);
	check_stop_fails(FAULT_MUTE);
}

/* ---- network ---- */

TEST(a_network_card_offers_what_its_back_end_has)
{
	static struct box b;
	struct vhost_net_config cfg = {
		.name = "net0", .slot_fn = PCI_DEVFN(SLOT, 0), .mac = {2, 0, 0, 0, 0, 7}};
	struct vhost_net *n;
	struct drv_queue tx;

	fake_init(&b.fake);
	b.fake.features = BIT(32) | BIT(30) | BIT(29) | BIT(15) | BIT(11) | BIT(0) | BIT(26);
	b.fake.protocol = BIT(0) | BIT(3);
	fake_start(&b.fake);
	box_board(&b);
	cfg.host = b.rig.host;
	cfg.mem = b.rig.mem;
	cfg.loop = b.loop;
	CHECK_EQ(0, vhost_user_open(&cfg.backend, b.fake.path, LONG_MS, NULL));
	CHECK_EQ(0, vhost_net_create(&n, &cfg, NULL));
	rig_assign(&b.rig);
	drv_probe(&b.d, &b.rig, SLOT);
	CHECK_EQ(0x10411af4, drv_cfg(&b.d, 0, 4));
	CHECK_EQ(BIT(32) | BIT(29) | BIT(15) | BIT(11) | BIT(0) | BIT(5) | BIT(16),
		 drv_offered(&b.d));
	CHECK_EQ(7, drv_rd(&b.d, b.d.config + 5, 1));
	CHECK_EQ(11, drv_negotiate(&b.d, BIT(32) | BIT(15) | BIT(5)));
	drv_queue_on(&b.q, &b.d, 0, 16, 0xffff);
	drv_queue_on(&tx, &b.d, 1, 16, 0xffff);
	drv_set_status(&b.d, 15);
	for (int i = 0; i < 20000 && b.fake.count[18] < 2; i++)
		usleep(1000);
	CHECK_EQ(2, b.fake.count[18]);
	/* The address is ours: the back end never offered that feature. */
	CHECK_EQ(BIT(32) | BIT(30) | BIT(15), b.fake.got_features);
	CHECK(vhost_net_is_whole(n));

	fake_stop(&b.fake);
	CHECK(wait_lost(&b));
	CHECK(!vhost_net_is_whole(n));
	evloop_stop(b.loop);
	pthread_join(b.loop_thread, NULL);
	vhost_net_destroy(n);
	evloop_destroy(b.loop);
	rig_fini(&b.rig);
	fake_fini(&b.fake);
}
