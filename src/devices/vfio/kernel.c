/* devices/vfio/kernel.c - a device of this host, through Linux's VFIO (<linux/vfio.h>, kernel
 * documentation driver-api/vfio.rst): container, group, device; type 1 IOMMU. */
#include "base/error.h"
#include "devices/vfio/backend.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { MAX_VECTORS = 2048, NR_REGIONS = VFIO_CONFIG + 1 };

struct kernel {
	struct vfio_backend backend;
	int container, group, device;
	char address[16];
	struct {
		uint64_t size, offset;
		uint32_t flags;
	} region[NR_REGIONS];
};

static struct kernel *kernel_of(struct vfio_backend *v)
{
	return container_of(v, struct kernel, backend);
}

static int kernel_region(struct vfio_backend *v, unsigned index, struct vfio_region *r)
{
	const struct kernel *k = kernel_of(v);

	*r = (struct vfio_region){.size = k->region[index].size,
				  .readable = k->region[index].flags & VFIO_REGION_INFO_FLAG_READ,
				  .writable = k->region[index].flags & VFIO_REGION_INFO_FLAG_WRITE};
	return 0;
}

static int done(ssize_t n, unsigned len)
{
	return n < 0 ? -errno : (size_t)n == len ? 0 : -EIO;
}

static int kernel_read(struct vfio_backend *v, unsigned index, uint64_t off, void *buf,
		       unsigned len)
{
	const struct kernel *k = kernel_of(v);

	return done(pread(k->device, buf, len, (off_t)(k->region[index].offset + off)), len);
}

static int kernel_write(struct vfio_backend *v, unsigned index, uint64_t off, const void *buf,
			unsigned len)
{
	const struct kernel *k = kernel_of(v);

	return done(pwrite(k->device, buf, len, (off_t)(k->region[index].offset + off)), len);
}

static int kernel_irq_count(struct vfio_backend *v, enum vfio_irq kind)
{
	struct vfio_irq_info info = {.argsz = sizeof(info), .index = kind};

	if (ioctl(kernel_of(v)->device, VFIO_DEVICE_GET_IRQ_INFO, &info) < 0)
		return 0;
	return (int)MIN(info.count, MAX_VECTORS);
}

static int kernel_irq_set(struct vfio_backend *v, enum vfio_irq kind, const int *fds, unsigned n)
{
	struct vfio_irq_set *set = calloc(1, sizeof(*set) + n * sizeof(int));
	int r;

	if (!set)
		return -ENOMEM;
	set->argsz = (uint32_t)(sizeof(*set) + n * sizeof(int));
	set->flags = VFIO_IRQ_SET_ACTION_TRIGGER |
		     (n ? VFIO_IRQ_SET_DATA_EVENTFD : VFIO_IRQ_SET_DATA_NONE);
	set->index = kind;
	set->count = n;
	memcpy(set->data, fds, n * sizeof(int));
	r = ioctl(kernel_of(v)->device, VFIO_DEVICE_SET_IRQS, set) < 0 ? -errno : 0;
	free(set);
	return r;
}

static int kernel_irq_unmask(struct vfio_backend *v, enum vfio_irq kind)
{
	struct vfio_irq_set set = {.argsz = sizeof(set),
				   .flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE,
				   .index = kind,
				   .count = 1};

	return ioctl(kernel_of(v)->device, VFIO_DEVICE_SET_IRQS, &set) < 0 ? -errno : 0;
}

static int kernel_reset(struct vfio_backend *v)
{
	if (ioctl(kernel_of(v)->device, VFIO_DEVICE_RESET) == 0)
		return 0;
	return errno == EINVAL || errno == ENOTTY ? -ENOTSUP : -errno;
}

static int kernel_dma_map(struct vfio_backend *v, gpa_t gpa, void *hva, uint64_t size,
			  struct error *err)
{
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map),
					       .flags = VFIO_DMA_MAP_FLAG_READ |
							VFIO_DMA_MAP_FLAG_WRITE,
					       .vaddr = (uintptr_t)hva,
					       .iova = gpa,
					       .size = size};

	if (ioctl(kernel_of(v)->container, VFIO_IOMMU_MAP_DMA, &map) == 0)
		return 0;
	return err_errno(err, errno, "%s: guest memory cannot be given to the device%s",
			 kernel_of(v)->address,
			 errno == ENOMEM ? " (it has to be locked: raise `ulimit -l`)" : "");
}

static void kernel_close(struct vfio_backend *v)
{
	struct kernel *k = kernel_of(v);

	if (k->device >= 0)
		close(k->device);
	if (k->group >= 0)
		close(k->group);
	if (k->container >= 0)
		close(k->container);
	free(k);
}

static const struct vfio_backend_ops kernel_ops = {
	.region = kernel_region,
	.region_read = kernel_read,
	.region_write = kernel_write,
	.irq_count = kernel_irq_count,
	.irq_set = kernel_irq_set,
	.irq_unmask = kernel_irq_unmask,
	.reset = kernel_reset,
	.dma_map = kernel_dma_map,
	.close = kernel_close,
};

/* --- opening ------------------------------------------------------------------------------------
 */

static int open_container(struct kernel *k, struct error *err)
{
	k->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (k->container < 0)
		return err_errno(err, errno, "%s: cannot open /dev/vfio/vfio (modprobe vfio-pci)",
				 k->address);
	if (ioctl(k->container, VFIO_GET_API_VERSION) != VFIO_API_VERSION ||
	    ioctl(k->container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) != 1)
		return err_set(err, ENOTSUP, "%s: this kernel's VFIO has no type 1 IOMMU",
			       k->address);
	return 0;
}

static int open_group(struct kernel *k, unsigned group, struct error *err)
{
	struct vfio_group_status status = {.argsz = sizeof(status)};
	char path[48];

	snprintf(path, sizeof(path), "/dev/vfio/%u", group);
	k->group = open(path, O_RDWR | O_CLOEXEC);
	if (k->group < 0)
		return err_errno(err, errno, "%s: cannot open %s%s", k->address, path,
				 errno == EACCES  ? " (who may is set by its owner and mode)"
				 : errno == EBUSY ? " (another VM has it)"
						  : "");
	if (ioctl(k->group, VFIO_GROUP_GET_STATUS, &status) < 0 ||
	    !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		return err_set(err, EBUSY, "%s: IOMMU group %u is not wholly bound to vfio-pci",
			       k->address, group);
	if (ioctl(k->group, VFIO_GROUP_SET_CONTAINER, &k->container) < 0 ||
	    ioctl(k->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
		return err_errno(err, errno, "%s: cannot set up its IOMMU group", k->address);
	return 0;
}

static int open_device(struct kernel *k, struct error *err)
{
	k->device = ioctl(k->group, VFIO_GROUP_GET_DEVICE_FD, k->address);
	if (k->device < 0)
		return err_errno(err, errno, "%s: cannot open the device", k->address);
	for (unsigned i = 0; i < NR_REGIONS; i++) {
		struct vfio_region_info info = {.argsz = sizeof(info), .index = i};

		if (ioctl(k->device, VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
			continue; /* there is none */
		k->region[i].size = info.size;
		k->region[i].offset = info.offset;
		k->region[i].flags = info.flags;
	}
	return 0;
}

int vfio_kernel_open(struct vfio_backend **out, const char *address, struct error *err)
{
	struct kernel *k;
	unsigned group;
	int r = vfio_group_check("/sys", address, &group, err);

	if (r < 0)
		return r;
	k = calloc(1, sizeof(*k));
	if (!k)
		return err_errno(err, ENOMEM, "%s", address);
	k->backend.ops = &kernel_ops;
	k->container = k->group = k->device = -1;
	snprintf(k->address, sizeof(k->address), "%s", address);
	r = open_container(k, err);
	if (r == 0)
		r = open_group(k, group, err);
	if (r == 0)
		r = open_device(k, err);
	if (r < 0)
		kernel_close(&k->backend);
	else
		*out = &k->backend;
	return r;
}
