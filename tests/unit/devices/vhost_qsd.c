/* vhost-user-blk against a back end that others wrote, qemu-storage-daemon; skipped without it. */
#include "devices/virtio/vhost.h"

#include "base/evloop.h"
#include "devices/virtio/vhost_blk.h"

#include "driver.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>

enum { SLOT = 4, HDR = 0x100000, BUF = 0x110000, ST = 0x120000, VERSION_1 = 32 };
enum { NEEDS_RESET = 64, DISK_SIZE = 1 << 20, MANY = 64 };

struct box {
	char dir[32], image[64], socket[64];
	pid_t daemon;
	struct rig rig;
	struct evloop *loop;
	pthread_t thread;
	struct vhost_blk *blk;
	struct drv d;
	struct drv_queue q;
};

static const char *find_daemon(void)
{
	static const char *const places[] = {"/usr/bin/qemu-storage-daemon",
					     "/usr/local/bin/qemu-storage-daemon"};

	for (unsigned i = 0; i < ARRAY_SIZE(places); i++)
		if (access(places[i], X_OK) == 0)
			return places[i];
	SKIP("there is no qemu-storage-daemon (package qemu-system-common)");
}

static void daemon_start(struct box *b)
{
	const char *program = find_daemon();
	char blockdev[160], export[200];

	snprintf(blockdev, sizeof(blockdev), "driver=file,node-name=disk,filename=%s", b->image);
	snprintf(export, sizeof(export),
		 "type=vhost-user-blk,id=e,node-name=disk,writable=on,num-queues=2,"
		 "addr.type=unix,addr.path=%s",
		 b->socket);
	fflush(NULL);
	b->daemon = fork();
	CHECK(b->daemon >= 0);
	if (b->daemon == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nothing behind */
		execl(program, program, "--blockdev", blockdev, "--export", export, (char *)NULL);
		_exit(127);
	}
	for (int i = 0; i < 3000 && access(b->socket, F_OK); i++)
		usleep(10000);
	if (access(b->socket, F_OK)) {
		kill(b->daemon, SIGKILL);
		SKIP("qemu-storage-daemon does not offer vhost-user-blk here");
	}
}

static void daemon_stop(struct box *b)
{
	CHECK_EQ(0, kill(b->daemon, SIGKILL));
	CHECK_EQ(b->daemon, waitpid(b->daemon, NULL, 0));
	unlink(b->socket);
}

static void *loop_main(void *arg)
{
	evloop_run(arg);
	return NULL;
}

/* It makes its socket before it listens. */
static void connect_disk(struct box *b)
{
	struct vhost_blk_config cfg = {.name = "disk0",
				       .host = b->rig.host,
				       .slot_fn = PCI_DEVFN(SLOT, 0),
				       .mem = b->rig.mem,
				       .loop = b->loop,
				       .max_queues = 4};
	struct error err = {""};
	int r = -ECONNREFUSED;

	for (int i = 0; i < 1000 && r == -ECONNREFUSED; i++) {
		r = vhost_user_open(&cfg.backend, b->socket, 60000, &err);
		if (r == -ECONNREFUSED)
			usleep(10000);
	}
	printf("# %s\n", err.msg);
	CHECK_EQ(0, r);
	CHECK_EQ(0, vhost_blk_create(&b->blk, &cfg, &err));
}

static void box_init(struct box *b)
{
	int fd;

	memset(b, 0, sizeof(*b));
	find_daemon();
	strcpy(b->dir, "/tmp/vhost-qsd-XXXXXX");
	CHECK(mkdtemp(b->dir));
	snprintf(b->image, sizeof(b->image), "%s/disk", b->dir);
	snprintf(b->socket, sizeof(b->socket), "%s/socket", b->dir);
	fd = open(b->image, O_CREAT | O_RDWR, 0600);
	CHECK_EQ(0, ftruncate(fd, DISK_SIZE));
	close(fd);
	daemon_start(b);
	rig_init(&b->rig);
	CHECK_EQ(0, evloop_create(&b->loop, NULL));
	CHECK_EQ(0, pthread_create(&b->thread, NULL, loop_main, b->loop));
	connect_disk(b);
	rig_assign(&b->rig);
	drv_probe(&b->d, &b->rig, SLOT);
}

static void box_up(struct box *b)
{
	CHECK_EQ(11, drv_negotiate(&b->d, drv_offered(&b->d)));
	drv_msix_on(&b->d, 3);
	drv_queue_on(&b->q, &b->d, 0, 256, 1);
	b->q.event_idx = true;
	drv_set_status(&b->d, 15);
}

static void box_fini(struct box *b)
{
	evloop_stop(b->loop);
	pthread_join(b->thread, NULL);
	vhost_blk_destroy(b->blk);
	evloop_destroy(b->loop);
	rig_fini(&b->rig);
	daemon_stop(b);
	unlink(b->image);
	rmdir(b->dir);
}

/* With event indices the driver says after which entry it wants to be told. */
static void want_interrupt(struct box *b)
{
	drv_put16(&b->q, b->q.avail + 4 + 2 * b->q.size, b->q.seen);
}

static void wait_used(struct box *b)
{
	uint32_t head, len;
	bool done = false;

	for (int i = 0; i < 60 && !done; i++)
		done = drv_used(&b->q, &head, &len);
	CHECK(done);
}

static void place(struct box *b, unsigned n, uint32_t type, uint64_t sector)
{
	struct drv_seg s[] = {
		{HDR + 16 * n, 16, false}, {BUF + 512 * n, 512, type == 0}, {ST + n, 1, true}};
	uint8_t raw[16] = {0}, poison = 0xee;

	le32_store(raw, type);
	le64_store(raw + 8, sector);
	mem_write(b->rig.mem, HDR + 16 * n, raw, 16);
	mem_write(b->rig.mem, ST + n, &poison, 1);
	drv_add(&b->q, s, 3);
}

static uint8_t request(struct box *b, uint32_t type, uint64_t sector)
{
	uint8_t status = 0;

	want_interrupt(b);
	place(b, 0, type, sector);
	drv_kick(&b->q);
	wait_used(b);
	mem_read(b->rig.mem, ST, &status, 1);
	return status;
}

static void check_io(struct box *b, uint64_t sector, const char *text)
{
	char got[64] = {0}, in_file[64] = {0};
	int fd;

	mem_write(b->rig.mem, BUF, text, strlen(text));
	CHECK_EQ(0, request(b, 1, sector));
	mem_zero(b->rig.mem, BUF, 512);
	CHECK_EQ(0, request(b, 0, sector));
	mem_read(b->rig.mem, BUF, got, strlen(text));
	CHECK(!memcmp(got, text, strlen(text)));
	fd = open(b->image, O_RDONLY);
	CHECK_EQ((ssize_t)strlen(text), pread(fd, in_file, strlen(text), (off_t)sector * 512));
	CHECK(!memcmp(in_file, text, strlen(text)));
	close(fd);
}

static bool wait_lost(struct box *b)
{
	for (int i = 0; i < 40 && !drv_wait_status(&b->d, NEEDS_RESET); i++)
		;
	return drv_status(&b->d) & NEEDS_RESET;
}

TEST(handshake_and_io)
{
	static struct box b;

	box_init(&b);
	CHECK_EQ(DISK_SIZE, vhost_blk_size(b.blk));
	CHECK_EQ(DISK_SIZE / 512, drv_rd(&b.d, b.d.config, 8));
	CHECK_EQ(2, drv_rd(&b.d, b.d.common + 0x12, 2));
	CHECK(drv_offered(&b.d) & BIT(9)); /* FLUSH */
	box_up(&b);
	check_io(&b, 0, "first");
	check_io(&b, DISK_SIZE / 512 - 1, "last");
	CHECK_EQ(1, request(&b, 0, DISK_SIZE / 512));
	for (int i = 0; i < 40 && !rig_wait_msi(&b.rig, 1, 1); i++)
		;
	CHECK(b.rig.msi_count[1] >= 1);
	box_fini(&b);
}

TEST(reset_and_pause)
{
	static struct box b;

	box_init(&b);
	box_up(&b);
	check_io(&b, 1, "one");
	virtio_pause(vhost_blk_dev(b.blk));
	CHECK_EQ(2, vhost_blk_dev(b.blk)->vq[0].last_avail);
	CHECK_EQ(2, vhost_blk_dev(b.blk)->vq[0].used);
	virtio_resume(vhost_blk_dev(b.blk));
	check_io(&b, 2, "two");
	box_up(&b); /* begins with a reset */
	check_io(&b, 3, "three");
	CHECK(vhost_blk_is_whole(b.blk));
	box_fini(&b);
}

/* When a pause returns, every request that was made has been completed. */
TEST(a_pause_leaves_nothing_under_way)
{
	static struct box b;
	uint8_t status[MANY];

	box_init(&b);
	box_up(&b);
	check_io(&b, 0, "x");
	for (unsigned n = 0; n < MANY; n++)
		place(&b, n, 1, 2 * n);
	drv_kick(&b.q);
	usleep(1000);
	virtio_pause(vhost_blk_dev(b.blk));
	virtio_resume(vhost_blk_dev(b.blk));
	for (unsigned n = 0; n < MANY; n++)
		wait_used(&b);
	CHECK_EQ(0, mem_read(b.rig.mem, ST, status, MANY));
	for (unsigned n = 0; n < MANY; n++)
		CHECK_EQ(0, status[n]);
	box_fini(&b);
}

TEST(killed_and_started_again)
{
	static struct box b;

	box_init(&b);
	box_up(&b);
	check_io(&b, 1, "before");
	daemon_stop(&b);
	CHECK(wait_lost(&b));
	box_up(&b);
	CHECK_EQ(1, request(&b, 0, 1)); /* an I/O error */
	daemon_start(&b);
	for (int i = 0; i < 1000 && !vhost_blk_is_whole(b.blk); i++) {
		box_up(&b); /* it makes its socket before it listens */
		request(&b, 0, 1);
	}
	check_io(&b, 2, "after");
	box_fini(&b);
}
