#!/bin/bash
# Make the initramfs of the nested-KVM harness: scripts/nested-assets.sh DIR
# DIR gets nested.gz: BusyBox, the modules a Debian kernel needs to have /dev/kvm and to see the
# host's files, and tests/nested/init.sh.  The kernel comes from boot-assets.sh.  When something is
# missing the tests skip: this script then says why and still succeeds.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)

give_up() {
	echo "nested assets: $1; tests of the kvm engine under QEMU will skip" >&2
	exit 0
}

# In the order they are loaded.
modules="
drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev
drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci fs/netfs/netfs fs/fscache/fscache
net/9p/9pnet net/9p/9pnet_virtio fs/9p/9p fs/overlayfs/overlay
virt/lib/irqbypass drivers/crypto/ccp/ccp arch/x86/kvm/kvm arch/x86/kvm/kvm-amd
"
# Only when somebody asks.
on_demand="
drivers/net/tun drivers/net/tap drivers/vhost/vhost_iotlb drivers/vhost/vhost drivers/vhost/vhost_net
drivers/vfio/vfio_virqfd drivers/vfio/vfio drivers/vfio/vfio_iommu_type1
drivers/vfio/pci/vfio-pci-core drivers/vfio/pci/vfio-pci
"

[ -e "$out/vmlinux" ] || give_up "there is no kernel"
command -v busybox >/dev/null || give_up "busybox-static is not installed"
up_to_date() {
	local f
	for f in "$out/vmlinux" "$here/tests/nested/init.sh" "$0"; do
		[ "$out/nested.gz" -nt "$f" ] || return 1
	done
}
up_to_date && exit 0

kernel=$(dirname "$(readlink -f "$out/vmlinux")")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,dev,proc,sys,modules,lower,upper,root}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$here/tests/nested/init.sh" "$root/init"
chmod +x "$root/init"
for m in $modules $on_demand; do
	[ -e "$kernel/modules/kernel/$m.ko" ] || give_up "the kernel has no module $m"
	cp "$kernel/modules/kernel/$m.ko" "$root/modules/"
done
basename -a $modules >"$root/modules/order"
basename -a $on_demand >"$root/modules/on-demand"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/nested.gz.$$"
mv "$out/nested.gz.$$" "$out/nested.gz"
