#!/bin/bash
# Fetch what the boot tests run: Debian's stock kernel and a BusyBox initramfs with its modules.
#   scripts/boot-assets.sh DIR [long]
# DIR gets vmlinuz, vmlinux (the ELF inside it), initrd.gz and what boot-guests.sh fetches.
# Downloads are kept in ${XDG_CACHE_HOME:-~/.cache}/trivisor.  Without a network or busybox the
# tests skip: this script then says why and still succeeds.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/trivisor
mkdir -p "$out" "$cache"
out=$(cd "$out" && pwd)

give_up() {
	echo "boot assets: $1; tests that boot Linux will skip" >&2
	exit 0
}

kernel_package() {
	apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)/\1/p' | head -1
}

fetch_kernel() {
	local pkg tmp
	pkg=$(kernel_package)
	[ -n "$pkg" ] || give_up "apt knows no linux-image-amd64 (run apt-get update)"
	kernel=$cache/$pkg
	[ -e "$kernel/complete" ] && return
	echo "boot assets: fetching $pkg"
	tmp=$(mktemp -d "$cache/kernel.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	(cd "$tmp" && apt-get download "$pkg" >/dev/null 2>&1) || give_up "could not download $pkg"
	dpkg -x "$tmp"/linux-image-*.deb "$tmp/root"
	mkdir -p "$kernel"
	cp "$tmp"/root/boot/vmlinuz-* "$kernel/vmlinuz"
	"$here/scripts/extract-vmlinux.py" "$kernel/vmlinuz" "$kernel/vmlinux"
	rm -rf "$kernel/modules"
	mv "$tmp"/root/lib/modules/* "$kernel/modules"
	touch "$kernel/complete"
	rm -rf "$tmp"
	trap - EXIT
}

# In the order they are loaded.
modules="
drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev
drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci
drivers/block/virtio_blk net/core/failover drivers/net/net_failover drivers/net/virtio_net
drivers/char/virtio_console drivers/char/hw_random/rng-core drivers/char/hw_random/virtio-rng
lib/crc16 fs/mbcache crypto/crc32c_generic lib/libcrc32c fs/jbd2/jbd2 fs/ext4/ext4 fs/xfs/xfs
"

# A module's signature takes the guest's CPU engine half a second to verify, and this kernel does
# not insist on one.
add_module() {
	python3 - "$1" "$2" <<-'EOF'
		import sys
		data = open(sys.argv[1], 'rb').read()
		magic = b'~Module signature appended~\n'
		if data.endswith(magic):
		    end = len(data) - len(magic)
		    data = data[:end - 12 - int.from_bytes(data[end - 4:end], 'big')]
		open(sys.argv[2], 'wb').write(data)
	EOF
}

make_initrd() {
	local root m file
	[ "$out/initrd.gz" -nt "$here/tests/boot/init.sh" ] && [ "$out/initrd.gz" -nt "$0" ] && return
	command -v busybox >/dev/null || give_up "busybox-static is not installed"
	root=$(mktemp -d)
	trap 'rm -rf "$root"' EXIT
	mkdir -p "$root"/{bin,dev,proc,sys,tmp,mnt,modules}
	cp "$(command -v busybox)" "$root/bin/busybox"
	cp "$here/tests/boot/init.sh" "$root/init"
	chmod +x "$root/init"
	for m in $modules; do
		file=$kernel/modules/kernel/$m.ko
		[ -e "$file" ] || continue
		add_module "$file" "$root/modules/$(basename "$m").ko"
		basename "$m" >>"$root/modules/order"
	done
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/initrd.gz.new"
	mv "$out/initrd.gz.new" "$out/initrd.gz"
	rm -rf "$root"
	trap - EXIT
}

fetch_kernel
ln -sfn "$kernel/vmlinuz" "$out/vmlinuz"
ln -sfn "$kernel/vmlinux" "$out/vmlinux"
make_initrd
"$here/scripts/boot-guests.sh" "$out" "${2:-}"
