#!/bin/bash
# A Debian with compiler, stress-ng and BusyBox's source, for guests that work for a living.
#   scripts/boot-workload.sh DIR
# DIR gets workload.img, an ext4 file system, and workload.native: what came of building BusyBox and
# of its own tests in that same system on this machine, for the guest's outcome to be compared with.
# Everything is from Debian's packages; 700 MB of disk, a few minutes.  It is kept in
# ${XDG_CACHE_HOME:-~/.cache}/trivisor.  What cannot be had is left out: its tests skip.
set -euo pipefail
out=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/trivisor
packages=gcc,libc6-dev,make,bzip2,stress-ng,procps
key=$({ cat "$0" "$here/scripts/workload-build.sh"; echo "$packages"; } | sha256sum | cut -c1-12)
kept=$cache/workload-$key
work=

give_up() {
	echo "boot workload: $1; tests with a compiler in the guest will skip" >&2
	exit 0
}

# The machine's apt sources, or Debian's own mirror, as lines for binary or for source packages.
apt_sources() { # deb|deb-src
	local f
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
		if grep -qs bookworm "$f"; then
			sed -E "s/^Types:.*/Types: $1/; s/^deb(-src)? /$1 /" "$f"
			return
		fi
	done
	echo "$1 http://deb.debian.org/debian bookworm main"
}

# Source packages need an index of their own: the machine's is left alone.
fetch_source() {
	local apt=$work/apt
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts" "$work/source"
	apt_sources deb-src >"$apt/parts/$1"
	set -- -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o Dir::Etc::SourceList=/dev/null \
		-o "Dir::Etc::SourceParts=$apt/parts"
	apt-get "$@" update >"$work/log" 2>&1 || return 1
	(cd "$work/source" && apt-get "$@" source --download-only busybox >>"$work/log" 2>&1)
}

# What the build is to come out as, from the same file system on this machine.
build_image() {
	local parts name=debian.list
	! apt_sources deb | grep -q '^Types:' || name=debian.sources
	fetch_source "$name" || give_up "could not fetch the source package of busybox"
	parts=$work/sources-$name
	apt_sources deb >"$parts"
	chmod -R a+rX "$work"
	mmdebstrap --mode=auto --variant=minbase --format=null --include="$packages" \
		--aptopt='Apt::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook="mkdir -p \"\$1\"/srv && tar -C \"\$1\"/srv -xf $work/source/busybox_*.orig.tar.*" \
		--customize-hook="mv \"\$1\"/srv/busybox-* \"\$1\"/srv/busybox" \
		--customize-hook="install -m 755 $here/scripts/workload-build.sh \"\$1\"/srv/build" \
		--customize-hook="chroot \"\$1\" /srv/build /tmp/native >$work/native" \
		--customize-hook="rm -rf \"\$1\"/tmp/native \"\$1\"/var/cache/apt/* \"\$1\"/var/lib/apt/lists/*" \
		--customize-hook="sh $here/scripts/demo/make-disk.sh \"\$1\" $work/disk.img" \
		bookworm - "$parts" >"$work/log" 2>&1 </dev/null ||
		{ tail -n 5 "$work/log" >&2; give_up "mmdebstrap failed"; }
	mkdir -p "$kept.new"
	cp --sparse=always "$work/disk.img" "$kept.new/workload.img"
	cp "$work/native" "$kept.new/workload.native"
	mv "$kept.new" "$kept"
}

if [ ! -e "$kept" ]; then
	command -v mmdebstrap >/dev/null || give_up "mmdebstrap is not installed"
	mkdir -p "$cache"
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivisor-workload.XXXXXX")
	trap 'rm -rf "$work" "$kept.new"' EXIT
	chmod 777 "$work" # an unprivileged mmdebstrap writes here under another uid
	echo "boot workload: building a Debian with a compiler, and BusyBox in it" >&2
	build_image
fi
ln -sfn "$kept/workload.img" "$out/workload.img"
ln -sfn "$kept/workload.native" "$out/workload.native"
