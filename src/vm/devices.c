/* vm/devices.c - see devices.h. */
#include "vm/devices.h"

#include "base/error.h"
#include "block/blk.h"
#include "block/filter.h"
#include "console/chardev.h"
#include "devices/debug/debugcon.h"
#include "devices/debug/exitport.h"
#include "devices/debug/testdev.h"
#include "devices/ps2/i8042.h"
#include "devices/serial/uart16550.h"
#include "devices/vfio/vfio_pci.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/console.h"
#include "devices/virtio/net.h"
#include "devices/virtio/rng.h"
#include "devices/virtio/vhost.h"
#include "devices/virtio/vhost_blk.h"
#include "devices/virtio/vhost_net.h"
#include "machine/machine.h"
#include "machine/memmap.h"
#include "net/net.h"
#include "net/tap.h"
#include "state/state.h"
#include "vm/vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
	const char *name;
	uint16_t port;
	uint8_t irq;
} com_ports[VM_MAX_SERIALS] = {
	{"com1", PORT_COM1, 4},
	{"com2", PORT_COM2, 3},
	{"com3", PORT_COM3, 4},
	{"com4", PORT_COM4, 3},
};

static const char *const disk_names[VM_MAX_DISKS] = {
	"disk0", "disk1", "disk2",  "disk3",  "disk4",  "disk5",  "disk6",  "disk7",
	"disk8", "disk9", "disk10", "disk11", "disk12", "disk13", "disk14", "disk15",
};
static const char *const net_names[VM_MAX_NETS] = {"net0", "net1", "net2", "net3"};

static int add_serial(struct vm *vm, unsigned i, struct error *err)
{
	struct vm_devices *d = &vm->devices;
	int r = chr_open(&d->chr[i], vm->cfg.serial[i], vm->loop, err);
	struct uart_config cfg = {
		.name = com_ports[i].name,
		.bus = machine_bus(vm->machine),
		.port = com_ports[i].port,
		.irq = machine_isa_irq(vm->machine, com_ports[i].irq),
		.loop = vm->loop,
		.chr = d->chr[i],
	};

	if (r == 0)
		r = uart_create(&d->uart[i], &cfg, err);
	return r < 0 ? err_wrap(err, r, "%s", com_ports[i].name) : 0;
}

static int read_secret(void *opaque, const char *path, char *buf, size_t cap)
{
	const struct vm_disk *disk = opaque;
	FILE *f = fopen(disk->secret_file, "re");
	size_t n;

	if (!f)
		return -errno;
	n = fread(buf, 1, cap, f);
	fclose(f);
	if (n == cap)
		return -EFBIG;
	while (n && (buf[n - 1] == '\n' || buf[n - 1] == '\r'))
		n--;
	return (int)n;
}

static bool is_limited(const struct blk_limits *l)
{
	return l->bytes.per_s || l->bytes_read.per_s || l->bytes_written.per_s ||
	       l->requests.per_s || l->reads.per_s || l->writes.per_s;
}

/* The layers of one disk, from below; only the topmost takes requests, and so has threads. */
static int open_disk(struct blk **out, const char **format, const struct vm_disk *disk,
		     struct error *err)
{
	struct blk_open_opts opts = {
		.allow_ref = disk->allow_ref,
		.nr_allow_ref = disk->nr_allow_ref,
		.secret = disk->secret_file ? read_secret : NULL,
		.opaque = (void *)(uintptr_t)disk,
		.snapshot = disk->snapshot,
	};
	bool limited = is_limited(&disk->limits);
	unsigned below = disk->overlay || limited ? BLK_NO_POOL : 0;
	struct blk *b = NULL, *top = NULL;
	int r;

	if (disk->readonly || disk->overlay)
		below |= BLK_READONLY;
	r = blk_open_with(&b, disk->path, disk->format, below, &opts, err);
	if (r < 0)
		return r;
	*format = blk_info(b)->format;
	if (disk->overlay) {
		r = blk_overlay(&top, b, limited ? BLK_NO_POOL : 0, err);
		b = top;
	}
	if (r == 0 && limited) {
		r = blk_throttle(&top, b, &disk->limits, 0, err);
		b = top;
	}
	*out = r < 0 ? NULL : b;
	return r;
}

/* A back end writes to guest memory by itself.  An engine that keeps decoded code of guest pages
 * would not learn of it and run what is there no more. */
static bool takes_vhost(const struct vm *vm)
{
	return vm->engine->caps() & ENGINE_CAP_HW;
}

static int check_vhost(const struct vm *vm, const char *what, struct error *err)
{
	if (takes_vhost(vm))
		return 0;
	return err_set(err, ENOTSUP,
		       "%s needs engine kvm: engine %s must see each write to guest memory, and "
		       "another process's it does not",
		       what, vm->engine->name);
}

static int add_served_disk(struct vm *vm, unsigned i, struct error *err)
{
	struct vhost_blk_config cfg = {
		.name = disk_names[i],
		.host = machine_pci(vm->machine),
		.slot_fn = PCI_ANY_SLOT,
		.mem = vm->mem,
		.loop = vm->loop,
		.max_queues = vm->cfg.cpus,
	};
	int r = check_vhost(vm, "a vhost-user disk", err);

	if (r == 0)
		r = vhost_user_open(&cfg.backend, vm->cfg.disk[i].path, VHOST_TIMEOUT_MS, err);
	if (r == 0)
		r = vhost_blk_create(&vm->devices.vhost_blk[i], &cfg, err);
	return r < 0 ? err_wrap(err, r, "%s", disk_names[i]) : 0;
}

static int add_disk(struct vm *vm, unsigned i, struct error *err)
{
	struct vm_devices *d = &vm->devices;
	int r = open_disk(&d->blk[i], &d->disk_format[i], &vm->cfg.disk[i], err);
	struct virtio_blk_config cfg = {
		.name = disk_names[i],
		.host = machine_pci(vm->machine),
		.slot_fn = PCI_ANY_SLOT,
		.mem = vm->mem,
		.blk = d->blk[i],
		.serial = disk_names[i],
	};

	if (r == 0)
		r = virtio_blk_create(&d->vblk[i], &cfg, err);
	return r < 0 ? err_wrap(err, r, "%s", disk_names[i]) : 0;
}

/* Locally administered; each card behind its own NAT, so the number is enough. */
static void choose_mac(const struct vm_net *net, unsigned i, uint8_t mac[6])
{
	static const uint8_t base[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

	memcpy(mac, net->has_mac ? net->mac : base, 6);
	if (!net->has_mac)
		mac[5] += i;
}

/* backend is taken. */
static int add_vhost_net(struct vm *vm, unsigned i, struct vhost_backend *backend,
			 struct error *err)
{
	struct vhost_net_config cfg = {
		.name = net_names[i],
		.host = machine_pci(vm->machine),
		.slot_fn = PCI_ANY_SLOT,
		.mem = vm->mem,
		.loop = vm->loop,
		.backend = backend,
	};

	choose_mac(&vm->cfg.net[i], i, cfg.mac);
	return vhost_net_create(&vm->devices.vhost_net[i], &cfg, err);
}

static int add_served_net(struct vm *vm, unsigned i, struct error *err)
{
	struct vhost_backend *backend;
	int r = check_vhost(vm, "a vhost-user network card", err);

	if (r == 0)
		r = vhost_user_open(&backend, vm->cfg.net[i].target, VHOST_TIMEOUT_MS, err);
	return r < 0 ? r : add_vhost_net(vm, i, backend, err);
}

/* net is the host end, and is the VM's from now on. */
static int add_own_net(struct vm *vm, unsigned i, struct net *net, struct error *err)
{
	struct virtio_net_config cfg = {
		.name = net_names[i],
		.host = machine_pci(vm->machine),
		.slot_fn = PCI_ANY_SLOT,
		.mem = vm->mem,
		.net = net,
	};

	vm->devices.net[i] = net;
	choose_mac(&vm->cfg.net[i], i, cfg.mac);
	return virtio_net_create(&vm->devices.vnet[i], &cfg, err);
}

static int add_user_net(struct vm *vm, unsigned i, struct error *err)
{
	struct net *net;
	int r = net_user_create(&net, vm->cfg.net[i].target, vm->loop, err);

	return r < 0 ? r : add_own_net(vm, i, net, err);
}

/* By the kernel, where it can and may; a tap for that hands over frames with headers. */
static int add_kernel_net(struct vm *vm, unsigned i, struct error *err)
{
	struct vhost_backend *backend;
	int fd, r = check_vhost(vm, "vhost=on", err);

	if (r == 0)
		r = tap_open(&fd, vm->cfg.net[i].target, true, err);
	if (r == 0)
		r = vhost_kernel_open(&backend, fd, err);
	return r < 0 ? r : add_vhost_net(vm, i, backend, err);
}

static int add_tap_net(struct vm *vm, unsigned i, struct error *err)
{
	const struct vm_net *cfg = &vm->cfg.net[i];
	struct net *net;
	int fd, r;

	if (cfg->vhost == VM_VHOST_ON ||
	    (cfg->vhost == VM_VHOST_AUTO && takes_vhost(vm) && vhost_kernel_there()))
		return add_kernel_net(vm, i, err);
	r = tap_open(&fd, cfg->target, false, err);
	if (r == 0)
		r = net_tap_create(&net, fd, err);
	return r < 0 ? r : add_own_net(vm, i, net, err);
}

static int add_net(struct vm *vm, unsigned i, struct error *err)
{
	static int (*const add[])(struct vm *, unsigned, struct error *) = {
		[VM_NET_USER] = add_user_net,
		[VM_NET_TAP] = add_tap_net,
		[VM_NET_VHOST_USER] = add_served_net,
	};
	int r = add[vm->cfg.net[i].kind](vm, i, err);

	return r < 0 ? err_wrap(err, r, "%s", net_names[i]) : 0;
}

static int add_console(struct vm *vm, struct error *err)
{
	struct vm_devices *d = &vm->devices;
	int r = chr_open(&d->console_chr, vm->cfg.console, vm->loop, err);
	struct virtio_console_config cfg = {
		.name = "console0",
		.host = machine_pci(vm->machine),
		.slot_fn = PCI_ANY_SLOT,
		.mem = vm->mem,
		.chr = d->console_chr,
	};

	if (r == 0)
		r = virtio_console_create(&d->vconsole, &cfg, err);
	return r < 0 ? err_wrap(err, r, "console0") : 0;
}

static int add_rng(struct vm *vm, struct error *err)
{
	struct virtio_rng_config cfg = {
		.name = "rng0",
		.host = machine_pci(vm->machine),
		.slot_fn = PCI_ANY_SLOT,
		.mem = vm->mem,
	};

	return virtio_rng_create(&vm->devices.vrng, &cfg, err);
}

static int add_vfio(struct vm *vm, unsigned i, struct error *err)
{
	struct vfio_pci_config cfg = {.name = vm->cfg.vfio[i],
				      .host = machine_pci(vm->machine),
				      .slot_fn = PCI_ANY_SLOT,
				      .mem = vm->mem,
				      .loop = vm->loop};
	int r = vfio_kernel_open(&cfg.backend, vm->cfg.vfio[i], err);

	return r < 0 ? r : vfio_pci_create(&vm->devices.vfio[i], &cfg, err);
}

static int add_debugcon(struct vm *vm, struct error *err)
{
	struct vm_devices *d = &vm->devices;
	int r = chr_open(&d->debug_chr, "stdout", vm->loop, err);
	struct debugcon_config cfg = {
		.bus = machine_bus(vm->machine), .port = 0xe9, .chr = d->debug_chr};

	if (r == 0)
		r = debugcon_create(&d->debugcon, &cfg, err);
	return r < 0 ? err_wrap(err, r, "debug console") : 0;
}

static void on_exit_port(void *opaque, int status)
{
	vm_stop_with(opaque, VM_END_EXIT_PORT, status & 0xff);
}

static int add_exitport(struct vm *vm, struct error *err)
{
	struct exitport_config cfg = {.bus = machine_bus(vm->machine),
				      .port = vm->cfg.exit_port,
				      .exit = on_exit_port,
				      .opaque = vm};
	int r = exitport_create(&vm->devices.exitport, &cfg, err);

	return r < 0 ? err_wrap(err, r, "exit port %#x", vm->cfg.exit_port) : 0;
}

static int add_testdev(struct vm *vm, struct error *err)
{
	struct testdev_config cfg = {.bus = machine_bus(vm->machine)};

	for (unsigned n = 0; n < TESTDEV_NR_LINES; n++)
		cfg.line[n] = n < NR_ISA_IRQS ? machine_isa_irq(vm->machine, n)
					      : machine_gsi(vm->machine, n);
	return testdev_create(&vm->devices.testdev, &cfg, err);
}

static void on_keyboard_reset(void *opaque)
{
	vm_request_reset(opaque);
}

static int add_i8042(struct vm *vm, struct error *err)
{
	struct i8042_config cfg = {.bus = machine_bus(vm->machine),
				   .irq = machine_isa_irq(vm->machine, 1),
				   .reset = on_keyboard_reset,
				   .opaque = vm};

	return i8042_create(&vm->devices.i8042, &cfg, err);
}

int vm_devices_create(struct vm *vm, struct error *err)
{
	int r = vm->cfg.micro ? 0 : add_i8042(vm, err);

	for (unsigned i = 0; r == 0 && i < vm->cfg.nr_serials; i++)
		r = add_serial(vm, i, err);
	if (r == 0 && vm->cfg.debugcon)
		r = add_debugcon(vm, err);
	if (r == 0 && vm->cfg.exit_port >= 0)
		r = add_exitport(vm, err);
	if (r == 0 && vm->cfg.testdev)
		r = add_testdev(vm, err);
	/* PCI slots are taken in this order: /dev/vda is the first disk whatever else there is. */
	for (unsigned i = 0; r == 0 && i < vm->cfg.nr_disks; i++)
		r = vm->cfg.disk[i].vhost_user ? add_served_disk(vm, i, err) : add_disk(vm, i, err);
	for (unsigned i = 0; r == 0 && i < vm->cfg.nr_nets; i++)
		r = add_net(vm, i, err);
	if (r == 0 && vm->cfg.console)
		r = add_console(vm, err);
	if (r == 0 && !vm->cfg.micro)
		r = add_rng(vm, err);
	for (unsigned i = 0; r == 0 && i < vm->cfg.nr_vfio; i++)
		r = add_vfio(vm, i, err);
	return r;
}

void vm_devices_legacy(const struct vm *vm, struct machine_legacy *legacy)
{
	*legacy = (struct machine_legacy){.ps2 = !vm->cfg.micro};
	for (unsigned i = 0; i < vm->cfg.nr_serials; i++)
		legacy->com[i] = true;
}

void vm_devices_reset(struct vm *vm)
{
	for (unsigned i = 0; i < vm->cfg.nr_serials; i++)
		uart_reset(vm->devices.uart[i]);
	if (vm->devices.i8042)
		i8042_reset(vm->devices.i8042);
	if (vm->devices.testdev)
		testdev_reset(vm->devices.testdev);
}

/* Devices first, then what they stand on: a device's destroy waits for its I/O. */
void vm_devices_destroy(struct vm *vm)
{
	struct vm_devices *d = &vm->devices;

#define DESTROY(fn, p)                                                                             \
	do {                                                                                       \
		if (p)                                                                             \
			fn(p);                                                                     \
	} while (0)
	for (unsigned i = 0; i < VM_MAX_VFIO; i++)
		DESTROY(vfio_pci_destroy, d->vfio[i]);
	DESTROY(virtio_rng_destroy, d->vrng);
	DESTROY(virtio_console_destroy, d->vconsole);
	DESTROY(chr_close, d->console_chr);
	for (unsigned i = 0; i < VM_MAX_NETS; i++) {
		DESTROY(vhost_net_destroy, d->vhost_net[i]);
		DESTROY(virtio_net_destroy, d->vnet[i]);
		DESTROY(d->net[i]->ops->destroy, d->net[i]);
	}
	for (unsigned i = 0; i < VM_MAX_DISKS; i++) {
		DESTROY(vhost_blk_destroy, d->vhost_blk[i]);
		DESTROY(virtio_blk_destroy, d->vblk[i]);
		DESTROY(blk_close, d->blk[i]);
	}
	DESTROY(testdev_destroy, d->testdev);
	DESTROY(exitport_destroy, d->exitport);
	DESTROY(debugcon_destroy, d->debugcon);
	DESTROY(chr_close, d->debug_chr);
	for (unsigned i = 0; i < VM_MAX_SERIALS; i++) {
		DESTROY(uart_destroy, d->uart[i]);
		DESTROY(chr_close, d->chr[i]);
	}
	DESTROY(i8042_destroy, d->i8042);
#undef DESTROY
}

/* --- standing still, saving --------------------------------------------------------------------
 */

/* Those on virtio, in the order they were made. */
static unsigned list_virtio(struct vm *vm, struct virtio_dev *list[VM_MAX_DISKS + VM_MAX_NETS + 2])
{
	struct vm_devices *d = &vm->devices;
	unsigned n = 0;

	for (unsigned i = 0; i < VM_MAX_DISKS; i++) {
		if (d->vblk[i])
			list[n++] = virtio_blk_dev(d->vblk[i]);
		else if (d->vhost_blk[i])
			list[n++] = vhost_blk_dev(d->vhost_blk[i]);
	}
	for (unsigned i = 0; i < VM_MAX_NETS; i++) {
		if (d->vnet[i])
			list[n++] = virtio_net_dev(d->vnet[i]);
		else if (d->vhost_net[i])
			list[n++] = vhost_net_dev(d->vhost_net[i]);
	}
	if (d->vconsole)
		list[n++] = virtio_console_dev(d->vconsole);
	if (d->vrng)
		list[n++] = virtio_rng_dev(d->vrng);
	return n;
}

void vm_devices_pause(struct vm *vm)
{
	struct virtio_dev *list[VM_MAX_DISKS + VM_MAX_NETS + 2];
	unsigned n = list_virtio(vm, list);

	for (unsigned i = 0; i < n; i++)
		virtio_pause(list[i]);
}

void vm_devices_resume(struct vm *vm)
{
	struct virtio_dev *list[VM_MAX_DISKS + VM_MAX_NETS + 2];
	unsigned n = list_virtio(vm, list);

	for (unsigned i = 0; i < n; i++)
		virtio_resume(list[i]);
}

int vm_devices_whole(struct vm *vm, struct error *err)
{
	static const char lost[] = "%s has lost its back end, and what that had begun with it: "
				   "such a VM cannot be saved before the guest resets the device";
	struct vm_devices *d = &vm->devices;

	for (unsigned i = 0; i < vm->cfg.nr_disks; i++)
		if (d->vhost_blk[i] && !vhost_blk_is_whole(d->vhost_blk[i]))
			return err_set(err, EIO, lost, disk_names[i]);
	for (unsigned i = 0; i < vm->cfg.nr_nets; i++)
		if (d->vhost_net[i] && !vhost_net_is_whole(d->vhost_net[i]))
			return err_set(err, EIO, lost, net_names[i]);
	return 0;
}

static void disk_state(struct state *s, struct vm_devices *d, unsigned i)
{
	if (d->vhost_blk[i])
		vhost_blk_state(s, d->vhost_blk[i]);
	else
		virtio_blk_state(s, d->vblk[i]);
}

static void net_state(struct state *s, struct vm_devices *d, unsigned i)
{
	if (d->vhost_net[i])
		vhost_net_state(s, d->vhost_net[i]);
	else
		virtio_net_state(s, d->vnet[i]);
}

void vm_devices_state(struct state *s, struct vm *vm)
{
	struct vm_devices *d = &vm->devices;

	state_enter(s, "devices", 1);
	if (d->i8042)
		i8042_state(s, d->i8042);
	for (unsigned i = 0; i < vm->cfg.nr_serials; i++)
		uart_state(s, d->uart[i]);
	if (d->testdev)
		testdev_state(s, d->testdev);
	for (unsigned i = 0; i < vm->cfg.nr_disks; i++)
		disk_state(s, d, i);
	for (unsigned i = 0; i < vm->cfg.nr_nets; i++)
		net_state(s, d, i);
	if (d->vconsole)
		virtio_console_state(s, d->vconsole);
	if (d->vrng)
		virtio_rng_state(s, d->vrng);
	state_leave(s);
}
