#!/bin/bash
# Make what bench/workload.py runs: a static program, and an initramfs with it, BusyBox and Python.
#   scripts/bench-assets.sh DIR
# DIR, where boot-assets.sh has put the kernel, gets workload/ (root/, the tree that is run natively,
# and initrd.gz, the same packed).  Python is Debian's, with its C library, from the package archive;
# downloads are kept in ${XDG_CACHE_HOME:-~/.cache}/trivisor.  What cannot be made is said, and this
# still succeeds: without the program the benchmark and its test skip, without Python that row is
# left out.
set -euo pipefail
out=$1/workload
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/trivisor
mkdir -p "$out" "$cache"
out=$(cd "$out" && pwd)
root=$out/root

give_up() {
	echo "bench assets: $1; the guest workload will be skipped" >&2
	exit 0
}

newer() { # is $1 older than any of the others?
	local target=$1
	shift
	[ ! -e "$target" ] || [ -n "$(find "$@" -newer "$target" -print -quit)" ]
}

make_program() {
	newer "$root/bench/workload" "$here"/bench/guest/*.[ch] "$0" || return 0
	echo 'int main(void) { return 0; }' | ${CC:-cc} -static -x c - -o "$out/probe" -lsqlite3 -lz -lm 2>/dev/null ||
		give_up "static libsqlite3 or zlib is missing (libsqlite3-dev, zlib1g-dev)"
	rm -f "$out/probe"
	# SQLite could load extensions; the linker warns of that, and nothing here does.
	${CC:-cc} -O2 -static -std=gnu17 -Wall -Wextra -Wno-unused-parameter -o "$root/bench/workload" \
		"$here"/bench/guest/*.c -lsqlite3 -lz -lm 2>"$out/cc.log" || {
		cat "$out/cc.log" >&2
		exit 1
	}
}

python_packages="python3.11-minimal libpython3.11-minimal libc6 zlib1g libexpat1"

fetch_python() {
	local tmp
	[ -e "$cache/python/complete" ] && return
	echo "bench assets: fetching $python_packages"
	tmp=$(mktemp -d "$cache/python.XXXXXX")
	# shellcheck disable=SC2086
	if ! (cd "$tmp" && apt-get download $python_packages >/dev/null 2>&1); then
		rm -rf "$tmp"
		echo "bench assets: could not download Python; that row is left out" >&2
		return 1
	fi
	for deb in "$tmp"/*.deb; do dpkg -x "$deb" "$tmp/all"; done
	mkdir -p "$tmp/python/lib"
	cp -L "$tmp"/all/lib/x86_64-linux-gnu/{libc,libm,libz,libexpat}.so.[0-9] "$tmp/python/lib"
	cp -L "$tmp/all/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" "$tmp/python/ld.so"
	mkdir -p "$tmp/python/usr/bin" "$tmp/python/usr/lib"
	cp "$tmp/all/usr/bin/python3.11" "$tmp/python/usr/bin"
	cp -r "$tmp/all/usr/lib/python3.11" "$tmp/python/usr/lib"
	rm -rf "$cache/python"
	mv "$tmp/python" "$cache/python"
	touch "$cache/python/complete"
	rm -rf "$tmp"
}

make_root() {
	mkdir -p "$root"/{bin,dev,proc,tmp,bench}
	cp "$(command -v busybox)" "$root/bin/busybox"
	cp "$here/bench/guest/init.sh" "$root/init"
	chmod +x "$root/init"
	cp "$here"/bench/guest/script.{sh,py} "$root/bench"
	if fetch_python; then
		rm -rf "$root/python"
		cp -r "$cache/python" "$root/python"
	fi
}

command -v busybox >/dev/null || give_up "busybox-static is not installed"
newer "$out/initrd.gz" "$here"/bench/guest/* "$0" || exit 0
make_root
make_program
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/initrd.gz.new"
mv "$out/initrd.gz.new" "$out/initrd.gz"
