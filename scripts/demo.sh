#!/bin/bash
# Boot a real, unmodified Debian 12 on Trivisor's own CPU engine.
#
#   make demo                      log in at the prompt: root, no password; Ctrl-A x leaves
#   make demo DEMO_EXEC='uname -a' run a command in the guest, print what it prints, power off
#
# The guest is built once from Debian's packages by mmdebstrap and kept in
# ${XDG_CACHE_HOME:-~/.cache}/trivisor; each run works on a copy.  A small HTTP server on this
# machine can be reached from the guest as http://10.0.2.2:PORT/ (DEMO_PORT, 8731; the word PORT in
# DEMO_EXEC's URLs stands for it).  DEMO_CPUS, DEMO_MEMORY and DEMO_RUN_ARGS adjust the VM.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
hv=$here/${BUILD:-build}/hv
cache=${XDG_CACHE_HOME:-$HOME/.cache}/trivisor
port=${DEMO_PORT:-8731}
packages=systemd-sysv,udev,dbus,kmod,iproute2,netbase,login,passwd,wget,curl,procps,less
packages=$packages,linux-image-amd64,initramfs-tools,zstd
key=$({ cat "$here"/scripts/demo/* && echo "$packages"; } | sha256sum | cut -c1-12)
image=$cache/demo-$key
say() { printf '\033[1mdemo:\033[0m %s\n' "$*" >&2; }
work=

cleanup() {
	[ -z "${server_pid:-}" ] || kill "$server_pid" 2>/dev/null || true
	[ -z "${watch_pid:-}" ] || kill "$watch_pid" 2>/dev/null || true
	[ -z "$work" ] || rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The last line that says something, without colours and carriage returns.
last_words() {
	tail -n 5 "$1" 2>/dev/null | tr '\r' '\n' | sed 's/\x1b\[[0-9;]*[A-Za-z]//g' |
		grep '[[:alnum:]]' | tail -n 1 | cut -c1-70 || true
}

# Show that a long step is alive: its last log line on a terminal, a line every 15 s otherwise.
watch_log() {
	local log=$1 what=$2 start=$SECONDS last=0 line
	while sleep 1; do
		line=$(last_words "$log")
		if [ -t 2 ]; then
			printf '\r\033[K%s %d s: %s' "$what" $((SECONDS - start)) "$line" >&2
		elif [ $((SECONDS - last)) -ge 15 ]; then
			last=$SECONDS
			printf '%s %d s: %s\n' "$what" $((SECONDS - start)) "$line" >&2
		fi
	done
}

start_watch() {
	watch_log "$@" &
	watch_pid=$!
}

end_watch() {
	kill "$watch_pid" 2>/dev/null || true
	wait "$watch_pid" 2>/dev/null || true
	watch_pid=
	if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

# The apt sources of this machine when it is Debian, else Debian's own mirror.
apt_sources() {
	local f
	if grep -q '^ID=debian' /etc/os-release && grep -q '^VERSION_CODENAME=bookworm' /etc/os-release; then
		for f in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
			if [ -s "$f" ]; then echo "$f"; return; fi
		done
	fi
	echo "deb http://deb.debian.org/debian bookworm main"
}

build_image() {
	local log
	mkdir -p "$cache"
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivisor-demo.XXXXXX")
	chmod 777 "$work" # an unprivileged mmdebstrap writes here under another uid
	log=$work/mmdebstrap.log
	say "building the guest from Debian's packages (once; about a minute and 900 MB of disk)"
	cp -r "$here/scripts/demo" "$work/files"
	start_watch "$log" "  mmdebstrap"
	if ! mmdebstrap --mode=auto --variant=minbase --format=null \
		--include="$packages" --aptopt='Apt::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--essential-hook="sh $work/files/initramfs.sh \"\$1\"" \
		--customize-hook="sh $work/files/customize.sh \"\$1\" $work/files" \
		--customize-hook="copy-out /boot $work" \
		--customize-hook="sh $work/files/make-disk.sh \"\$1\" $work/disk.img" \
		bookworm - "$(apt_sources)" >"$log" 2>&1 </dev/null; then
		end_watch
		tail -n 20 "$log" >&2
		say "mmdebstrap failed.  As an ordinary user it needs the package uidmap and a line for you in /etc/subuid."
		exit 1
	fi
	end_watch
	rm -rf "$image.new" && mkdir "$image.new"
	cp --sparse=always "$work/disk.img" "$image.new/disk.img"
	cp "$work"/boot/initrd.img-* "$image.new/initrd.img"
	cp "$work"/boot/vmlinuz-* "$image.new/vmlinuz"
	# Unpacking the kernel here spares the guest half a minute of decompression.
	"$here/scripts/extract-vmlinux.py" "$image.new/vmlinuz" "$image.new/vmlinux"
	mv "$image.new" "$image"
	rm -rf "$work"
	work=
}

start_server() {
	"$here/scripts/demo-server.py" "$port" >"$work/server.log" 2>&1 &
	server_pid=$!
	sleep 0.3
	if ! kill -0 "$server_pid" 2>/dev/null; then
		server_pid=
		say "port $port is taken: $(tail -n 1 "$work/server.log"); set DEMO_PORT to another"
		exit 1
	fi
}

run_guest() { # [hv options...]: the VM both ways of running share
	"$hv" run --cpus "${DEMO_CPUS:-2}" --memory "${DEMO_MEMORY:-1G}" \
		--kernel "$image/vmlinux" --initrd "$image/initrd.img" \
		--append "console=ttyS0 root=LABEL=root rw ${DEMO_APPEND:-quiet systemd.show_status=1} $append" \
		--disk "$work/disk.img,format=raw" --net user "$@" ${DEMO_RUN_ARGS:-}
}

run_command() { # DEMO_EXEC: the command travels on a second disk, its output comes by COM2
	local status=0
	printf '%s\n' "${DEMO_EXEC//:PORT/:$port}" >"$work/exec.img"
	truncate -s %512 "$work/exec.img"
	DEMO_APPEND=${DEMO_APPEND:-systemd.show_status=1} # the log shows that the guest is alive
	append="demo.exec systemd.mask=serial-getty@ttyS0.service"
	: >"$work/boot.log"
	: >"$work/status"
	say "booting Debian to run the command"
	start_watch "$work/boot.log" "  guest"
	run_guest --disk "$work/exec.img,format=raw,readonly=on" --serial "file=$work/boot.log" \
		--serial "file=$work/output" --serial "file=$work/status" </dev/null || status=$?
	end_watch
	[ ! -e "$work/output" ] || cat "$work/output"
	if [ "$status" -ne 0 ] || ! [ -s "$work/status" ]; then
		tail -n 20 "$work/boot.log" >&2
		say "the guest did not run the command to its end (hv status $status)"
		exit 1
	fi
	exit "$(tr -cd 0-9 <"$work/status")"
}

run_login() {
	append=
	say "Debian boots now, on $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1) but through our own CPU engine."
	say "Log in as root, no password.  poweroff ends it; Ctrl-A x leaves at once."
	say "Try: wget -qO- http://10.0.2.2:$port/"
	run_guest --serial stdio
}

[ -e "$image/vmlinux" ] || build_image
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivisor-demo.XXXXXX")
cp --sparse=always --reflink=auto "$image/disk.img" "$work/disk.img"
start_server
if [ -n "${DEMO_EXEC:-}" ]; then run_command; else run_login; fi
