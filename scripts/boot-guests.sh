#!/bin/bash
# Fetch what others wrote for the boot tests to run, from Debian's packages; nothing is installed.
#   scripts/boot-guests.sh DIR [long]
# DIR gets gnumach, memtest86+x64.bin, memtest86+ia32.bin and xen; with "long" also a 32-bit Linux
# with its initramfs and Debian's installer (together 190 MB to download).  Downloads are kept in
# ${XDG_CACHE_HOME:-~/.cache}/trivisor.  What cannot be had is left out: its tests skip.
set -euo pipefail
out=$(cd "$1" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/trivisor/guests
mkdir -p "$cache"

say() { echo "boot guests: $*" >&2; }

# Packages of i386 need an index of their own: the machine's is left alone.
apt_i386() { # COMMAND ARGUMENT...
	local dir=$cache/apt-i386 cmd=$1
	shift
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	"$cmd" -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Architectures::=i386 \
		-o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache" "$@"
}

index_i386() {
	[ -e "$cache/apt-i386/updated" ] && return
	apt_i386 apt-get update >/dev/null 2>&1 || true # the download will tell
	touch "$cache/apt-i386/updated"
}

# package[:i386]: unpacks it into $cache/PACKAGE; false when it cannot be had.
fetch() {
	local pkg=$1 dir=$cache/${1%%:*} tmp
	[ -e "$dir/complete" ] && return
	tmp=$(mktemp -d "$cache/fetch.XXXXXX")
	say "fetching $pkg"
	if [ "$pkg" = "${pkg%:i386}" ]; then
		(cd "$tmp" && apt-get download "$pkg" >/dev/null 2>&1) || true
	else
		index_i386
		(cd "$tmp" && apt_i386 apt-get download "$pkg" >/dev/null 2>&1) || true
	fi
	if ! compgen -G "$tmp/*.deb" >/dev/null; then
		rm -rf "$tmp"
		say "could not download $pkg; its tests will skip"
		return 1
	fi
	rm -rf "$dir"
	dpkg -x "$tmp"/*.deb "$dir"
	rm -rf "$tmp"
	touch "$dir/complete"
}

unpack() { # FILE.gz NAME
	[ -e "$out/$2" ] || gunzip -c "$1" >"$out/$2"
}

linux_i386() { # the kernel, and BusyBox as its whole system
	local pkg root
	index_i386
	pkg=$(apt_i386 apt-cache depends linux-image-686:i386 2>/dev/null |
		sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)/\1/p' | head -1)
	[ -n "$pkg" ] || { say "apt knows no linux-image-686:i386; its tests will skip"; return; }
	fetch "${pkg%:i386}:i386" && fetch busybox-static:i386 || return 0
	cp "$cache/${pkg%%:*}"/boot/vmlinuz-* "$out/vmlinuz-i386"
	root=$(mktemp -d)
	mkdir -p "$root"/{bin,dev,proc,sys,tmp}
	cp "$cache/busybox-static/bin/busybox" "$root/bin/"
	cp "$(dirname "$0")/../tests/boot/init.sh" "$root/init"
	chmod +x "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/initrd-i386.gz"
	rm -rf "$root"
}

if fetch gnumach-image-1.8-486:i386; then
	unpack "$cache/gnumach-image-1.8-486/boot/gnumach-1.8-486.gz" gnumach
fi
if fetch memtest86+; then
	cp "$cache"/memtest86+/boot/memtest86+*.bin "$out/"
fi
if fetch xen-hypervisor-4.17-amd64; then
	unpack "$cache/xen-hypervisor-4.17-amd64/boot/xen-4.17-amd64.gz" xen
fi
[ "${2:-}" = long ] || exit 0
linux_i386
if fetch debian-installer-12-netboot-amd64; then
	find "$cache/debian-installer-12-netboot-amd64" -path '*/text/*' -name initrd.gz \
		-exec cp {} "$out/installer.gz" \;
fi
