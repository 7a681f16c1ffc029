#!/bin/sh
# Install the Debian packages a step needs; say nothing when all are there.
#   scripts/install-deps.sh build|check|bench|demo|fuzz ...
# Asks for sudo only when something is missing and we are not root.
set -eu

build="gcc libc6-dev meson ninja-build pkg-config python3 libslirp-dev libglib2.0-dev \
 libdeflate-dev libbz2-dev libsqlite3-dev libzstd-dev libjansson-dev libssl-dev libnbd-dev libcurl4-openssl-dev libarchive-dev libxml2-dev libfuse3-dev nbdkit-plugin-dev libseccomp-dev libtsk-dev libfsxfs-dev libbfio-dev"
# the oracles and peers of the tests; a test skips when its one is absent
check="clang-14 clang-format-14 libclang-rt-14-dev libzydis-dev busybox-static cpio xz-utils kmod e2fsprogs \
 libvhdi-utils libvmdk-utils libqcow-utils xfsprogs acpica-tools qemu-utils qemu-system-x86 procps nbdkit libnbd-bin fuse3 openssh-client openssh-server gddrescue openssl vmfs-tools vmfs6-tools"
demo="mmdebstrap uidmap e2fsprogs xz-utils zstd python3"
# the guest workload, and who it is compared with
bench="gcc libc6-dev libsqlite3-dev zlib1g-dev busybox-static cpio qemu-system-x86"
fuzz="clang-14 libclang-rt-14-dev libzydis-dev"

wanted=
for step in "$@"; do
	case $step in
	build) wanted="$wanted $build" ;;
	check) wanted="$wanted $build $check" ;;
	bench) wanted="$wanted $bench" ;;
	demo) wanted="$wanted $build $demo" ;;
	fuzz) wanted="$wanted $build $fuzz" ;;
	*) echo "install-deps: unknown step '$step' (build, check, bench, demo, fuzz)" >&2; exit 2 ;;
	esac
done

missing=
for p in $wanted; do
	case " $missing " in *" $p "*) continue ;; esac
	dpkg-query -W -f '${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "These packages are missing; install them as root, then try again:" >&2
		echo "  apt-get install$missing" >&2
		exit 1
	fi
	sudo=sudo
fi
echo "Installing from Debian:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { $sudo apt-get update && $sudo env DEBIAN_FRONTEND=noninteractive \
	apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -n 15 "$log" >&2
	echo "Could not install:$missing" >&2
	exit 1
fi
