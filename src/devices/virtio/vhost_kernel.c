/* vhost-net: the host's kernel serves the rings, between guest memory and a tap.
 *
 * The kernel works in the address space of who opened it, so memory is named by our own addresses.
 * Offloads are the tap's: what the driver took is set there.  linux/vhost.h, linux/if_tun.h. */
#include "devices/virtio/vhost.h"
#include "devices/virtio/vhost_net.h"

#include "base/error.h"
#include "mem/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/vhost.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

// clang-format off
enum {
	MAX_REGIONS = 16,
	F_CSUM = 0, F_GUEST_CSUM = 1, F_GUEST_TSO4 = 7, F_GUEST_TSO6 = 8, F_GUEST_ECN = 9,
	F_HOST_TSO4 = 11, F_HOST_TSO6 = 12, F_HOST_ECN = 13, F_MRG_RXBUF = 15,
	HEADER_LEGACY = 10, HEADER = 12,
};
// clang-format on

#define TAP_FEATURES                                                                               \
	(BIT(F_CSUM) | BIT(F_GUEST_CSUM) | BIT(F_GUEST_TSO4) | BIT(F_GUEST_TSO6) |                 \
	 BIT(F_GUEST_ECN) | BIT(F_HOST_TSO4) | BIT(F_HOST_TSO6) | BIT(F_HOST_ECN))

struct vhost_kernel {
	struct vhost_backend be;
	int fd, tap;
};

static struct vhost_kernel *kernel_of(struct vhost_backend *b)
{
	return container_of(b, struct vhost_kernel, be);
}

static int call(const struct vhost_kernel *k, unsigned long request, const void *arg,
		const char *name, struct error *err)
{
	if (ioctl(k->fd, request, arg) < 0)
		return err_errno(err, errno, "vhost-net: %s", name);
	return 0;
}

#define CALL(k, request, arg, err) call(k, request, arg, #request, err)

/* What the tap may hand over unfinished, and the size of the header (virtio 1.2 5.1.6). */
static int set_tap(const struct vhost_kernel *k, uint64_t features, struct error *err)
{
	bool modern = features & (BIT(VIRTIO_F_VERSION_1) | BIT(F_MRG_RXBUF));
	int header = modern ? HEADER : HEADER_LEGACY;
	unsigned long offload = 0;

	if (features & BIT(F_GUEST_CSUM))
		offload |= TUN_F_CSUM;
	if (features & BIT(F_GUEST_TSO4))
		offload |= TUN_F_TSO4;
	if (features & BIT(F_GUEST_TSO6))
		offload |= TUN_F_TSO6;
	if (features & BIT(F_GUEST_ECN))
		offload |= TUN_F_TSO_ECN;
	if (!(offload & TUN_F_CSUM)) /* 5.1.3.1: the others depend on it */
		offload = 0;
	if (ioctl(k->tap, TUNSETVNETHDRSZ, &header) < 0 ||
	    ioctl(k->tap, TUNSETOFFLOAD, offload) < 0)
		return err_errno(err, errno, "cannot set the tap's offloads");
	return 0;
}

static int kernel_set_features(struct vhost_backend *b, uint64_t features, struct error *err)
{
	struct vhost_kernel *k = kernel_of(b);
	uint64_t theirs = features & ~TAP_FEATURES;
	int r = set_tap(k, features, err);

	return r < 0 ? r : CALL(k, VHOST_SET_FEATURES, &theirs, err);
}

static int kernel_set_mem(struct vhost_backend *b, struct mem *mem, struct error *err)
{
	union {
		struct vhost_memory mem;
		uint8_t raw[sizeof(struct vhost_memory) +
			    MAX_REGIONS * sizeof(struct vhost_memory_region)];
	} table = {.raw = {0}};
	const struct mem_range *range;
	unsigned n = mem_ram_ranges(mem, &range);

	if (n > MAX_REGIONS)
		return err_set(err, E2BIG, "guest memory is in more than %d pieces", MAX_REGIONS);
	table.mem.nregions = n;
	for (unsigned i = 0; i < n; i++)
		table.mem.regions[i] =
			(struct vhost_memory_region){.guest_phys_addr = range[i].gpa,
						     .memory_size = range[i].size,
						     .userspace_addr = (uintptr_t)range[i].hva};
	return CALL(kernel_of(b), VHOST_SET_MEM_TABLE, &table, err);
}

static int set_backend(const struct vhost_kernel *k, unsigned index, int tap, struct error *err)
{
	struct vhost_vring_file file = {.index = index, .fd = tap};

	return CALL(k, VHOST_NET_SET_BACKEND, &file, err);
}

static int kernel_ring_start(struct vhost_backend *b, const struct vhost_ring *ring,
			     struct error *err)
{
	struct vhost_kernel *k = kernel_of(b);
	struct vhost_vring_state num = {ring->index, ring->size}, base = {ring->index, ring->base};
	struct vhost_vring_file kick = {ring->index, ring->kick_fd};
	struct vhost_vring_file call_fd = {ring->index, ring->call_fd};
	struct vhost_vring_addr addr = {.index = ring->index,
					.desc_user_addr = (uintptr_t)ring->desc,
					.avail_user_addr = (uintptr_t)ring->driver,
					.used_user_addr = (uintptr_t)ring->device};
	int r = CALL(k, VHOST_SET_VRING_NUM, &num, err);

	if (r == 0)
		r = CALL(k, VHOST_SET_VRING_BASE, &base, err);
	if (r == 0)
		r = CALL(k, VHOST_SET_VRING_ADDR, &addr, err);
	if (r == 0)
		r = CALL(k, VHOST_SET_VRING_KICK, &kick, err);
	if (r == 0)
		r = CALL(k, VHOST_SET_VRING_CALL, &call_fd, err);
	return r == 0 ? set_backend(k, ring->index, k->tap, err) : r;
}

/* Without its tap the kernel's thread has let go of the ring when the call returns. */
static int kernel_ring_stop(struct vhost_backend *b, unsigned index, uint16_t *base,
			    struct error *err)
{
	struct vhost_kernel *k = kernel_of(b);
	struct vhost_vring_state state = {.index = index};
	int r = set_backend(k, index, -1, err);

	if (r == 0)
		r = CALL(k, VHOST_GET_VRING_BASE, &state, err);
	*base = (uint16_t)state.num;
	return r;
}

static int kernel_get_config(struct vhost_backend *b, void *buf, unsigned len, struct error *err)
{
	return err_set(err, ENOTSUP, "vhost-net has no configuration space");
}

/* Closing it is what stops it whatever state it is in. */
static void kernel_hang_up(struct vhost_backend *b)
{
	struct vhost_kernel *k = kernel_of(b);

	if (k->fd >= 0)
		close(k->fd);
	k->fd = -1;
}

static void kernel_close(struct vhost_backend *b)
{
	kernel_hang_up(b);
	close(kernel_of(b)->tap);
	free(kernel_of(b));
}

static int connect_kernel(struct vhost_kernel *k, struct error *err)
{
	uint64_t features = 0;
	int r;

	k->fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
	if (k->fd < 0 && (errno == ENOENT || errno == ENODEV))
		return err_set(err, errno,
			       "this host has no /dev/vhost-net: load its module (modprobe "
			       "vhost_net), or say vhost=off");
	if (k->fd < 0)
		return err_errno(err, errno, "cannot open /dev/vhost-net (vhost=off does without)");
	r = CALL(k, VHOST_SET_OWNER, NULL, err);
	if (r == 0)
		r = CALL(k, VHOST_GET_FEATURES, &features, err);
	if (r == 0 && !(features & BIT(VIRTIO_F_VERSION_1)))
		r = err_set(err, ENOTSUP, "this host's vhost-net knows only legacy virtio");
	k->be.features = features | TAP_FEATURES;
	return r;
}

static int kernel_reconnect(struct vhost_backend *b, struct error *err)
{
	kernel_hang_up(b);
	return connect_kernel(kernel_of(b), err);
}

static const struct vhost_backend_ops kernel_ops = {
	.set_features = kernel_set_features,
	.set_mem = kernel_set_mem,
	.ring_start = kernel_ring_start,
	.ring_stop = kernel_ring_stop,
	.get_config = kernel_get_config,
	.reconnect = kernel_reconnect,
	.hang_up = kernel_hang_up,
	.close = kernel_close,
};

bool vhost_kernel_there(void)
{
	int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

int vhost_kernel_open(struct vhost_backend **out, int tap_fd, struct error *err)
{
	struct vhost_kernel *k = calloc(1, sizeof(*k));
	int r;

	if (!k) {
		close(tap_fd);
		return err_errno(err, ENOMEM, "vhost-net");
	}
	*k = (struct vhost_kernel){.be = {.ops = &kernel_ops, .max_queues = 2, .hangup_fd = -1},
				   .fd = -1,
				   .tap = tap_fd};
	r = connect_kernel(k, err);
	if (r < 0) {
		kernel_close(&k->be);
		return r;
	}
	*out = &k->be;
	return 0;
}
