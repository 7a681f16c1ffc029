#!/bin/bash
# Run a command where there is a hardware-like /dev/kvm: in a Debian kernel with kvm-amd, inside QEMU
# whose TCG has AMD's SVM with nested paging.
#   scripts/nested-kvm.sh [OPTION]... BUILD -- COMMAND [ARGUMENT]...
# The command sees the host's files as they are (what it writes is thrown away), runs as root in the
# current directory, and its output appears here; its exit status is ours.  BUILD/assets holds the
# kernel and the initramfs (made when they are missing).
#   --cpus N       CPUs of that machine (2)
#   --memory MIB   its memory (2048); what the command writes is kept there too
#   --timeout S    give up after S seconds (600)
#   --share DIR    a directory the command may write to
#   --cpu MODEL    its CPU (EPYC, less what TCG does not have)
#   --npt 0        kvm-amd with shadow paging in place of nested paging
#   --qemu ARGS    more arguments for QEMU, split at blanks
# In it `insmod /modules/NAME.ko` loads what is not loaded: /modules/on-demand lists the names.
# Exit status 77: something is not installed (said on standard error); 125: the machine did not
# come to the command's end.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cpus=2 memory=2048 timeout=600 share= npt=1 more=
cpu=EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec
while [ $# -gt 0 ]; do
	case $1 in
	--cpus) cpus=$2; shift 2 ;;
	--memory) memory=$2; shift 2 ;;
	--timeout) timeout=$2; shift 2 ;;
	--share) share=$2; shift 2 ;;
	--cpu) cpu=$2; shift 2 ;;
	--npt) npt=$2; shift 2 ;;
	--qemu) more=$2; shift 2 ;;
	-h | --help) sed -n '2,/^set/s/^# \?//p' "$0"; exit 0 ;;
	*) break ;;
	esac
done
build=${1:?usage: nested-kvm.sh [OPTION]... BUILD -- COMMAND [ARGUMENT]...}
shift
[ "${1:-}" = -- ] && shift
[ $# -gt 0 ] || { echo "nested-kvm: no command" >&2; exit 2; }

skip() {
	echo "nested-kvm: $1" >&2
	exit 77
}

assets=$build/assets
command -v qemu-system-x86_64 >/dev/null || skip "qemu-system-x86 is not installed"
[ -e "$assets/vmlinux" ] || "$here/scripts/boot-assets.sh" "$assets"
"$here/scripts/nested-assets.sh" "$assets"
[ -e "$assets/nested.gz" ] || skip "there is no $assets/nested.gz"

own=
if [ -z "$share" ]; then
	own=$(mktemp -d)
	trap 'rm -rf "$own"' EXIT
	share=$own
fi
share=$(cd "$share" && pwd)
case $share in *[[:space:],=]*) echo "nested-kvm: --share '$share': no blanks, commas or '='" >&2; exit 2 ;; esac
rm -f "$share/status"
{ printf 'cd %q\n' "$PWD"; printf '%q ' "$@"; echo; } >"$share/command"

set +e
timeout --foreground -k 5 "$timeout" \
	qemu-system-x86_64 -accel tcg,thread=multi -cpu "$cpu" -smp "$cpus" -m "$memory" \
	-nodefaults -display none -no-reboot -kernel "$assets/vmlinux" -initrd "$assets/nested.gz" \
	-append "console=ttyS0 mitigations=off quiet panic=-1 tsc=reliable nokaslr cryptomgr.notests nested.share=$share nested.npt=$npt" \
	-serial "file:$share/console" -chardev stdio,id=out,signal=off -serial chardev:out \
	-virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
	-virtfs "local,path=$share,mount_tag=share,security_model=none,multidevs=remap" \
	$more
ended=$?
set -e
[ -s "$share/status" ] && exit "$(cat "$share/status")"
echo "nested-kvm: the machine ended (status $ended) before its command; its console:" >&2
tail -n 40 "$share/console" >&2 || true
exit 125
