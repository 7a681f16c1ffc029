/* vm/devices.h - the devices of one VM: made from the configuration, in one place.
 *
 * Called by vm.c on the VM's own thread. */
#pragma once

#include "base/types.h"
#include "machine/machine.h"
#include "vm/vm.h"

struct blk;
struct chardev;
struct error;
struct net;
struct state;

struct vm_devices {
	struct chardev *chr[VM_MAX_SERIALS], *console_chr, *debug_chr;
	struct uart *uart[VM_MAX_SERIALS];
	struct i8042 *i8042;
	struct debugcon *debugcon;
	struct exitport *exitport;
	struct testdev *testdev;
	struct blk *blk[VM_MAX_DISKS];
	const char *disk_format[VM_MAX_DISKS]; /* below overlays and limits; static */
	struct virtio_blk *vblk[VM_MAX_DISKS];
	struct vhost_blk *vhost_blk[VM_MAX_DISKS]; /* instead of blk and vblk */
	struct net *net[VM_MAX_NETS];
	struct virtio_net *vnet[VM_MAX_NETS];
	struct vhost_net *vhost_net[VM_MAX_NETS]; /* instead of net and vnet */
	struct virtio_console *vconsole;
	struct virtio_rng *vrng;
	struct vfio_pci *vfio[VM_MAX_VFIO];
};

int vm_devices_create(struct vm *vm, struct error *err);
void vm_devices_legacy(const struct vm *vm, struct machine_legacy *legacy);
void vm_devices_reset(struct vm *vm); /* those that are not on PCI */
void vm_devices_destroy(struct vm *vm);

void vm_devices_pause(struct vm *vm); /* waits for I/O under way */
void vm_devices_resume(struct vm *vm);
/* 0: their state can be saved; otherwise says whose is lost. */
int vm_devices_whole(struct vm *vm, struct error *err);
void vm_devices_state(struct state *s, struct vm *vm); /* while paused */
