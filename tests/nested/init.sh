#!/bin/busybox sh
# init of the nested-KVM harness (scripts/nested-kvm.sh): a machine with a true /dev/kvm whose files
# are the host's, read-only below a layer of its own, and one directory shared for reading and
# writing.  Runs SHARE/command, leaves its status in SHARE/status and ends.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev

word() { # the value of nested.NAME=value on the kernel command line
	$B sed -n "s/.*\bnested\.$1=\([^ ]*\).*/\1/p" /proc/cmdline
}

die() {
	echo "NESTED-FAIL $1"
	$B poweroff -f
}

for m in $($B cat /modules/order); do
	args=
	[ "$m" = kvm-amd ] && args="npt=$(word npt)"
	$B insmod "/modules/$m.ko" $args || die "module $m"
done

share=$(word share)
p9=trans=virtio,version=9p2000.L,msize=262144
$B mount -t 9p -o "ro,cache=loose,$p9" host /lower || die "the host's files"
$B mount -t tmpfs -o size=75% upper /upper || die tmpfs
$B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root ||
	die overlay
cd /root || die root
$B mkdir -p proc sys dev run modules tmp "/root$share"
for d in proc sys dev; do $B mount --move "/$d" "/root/$d"; done
$B mount -t tmpfs run run
$B mkdir -p dev/shm dev/pts
$B mount -t tmpfs shm dev/shm
$B mount -t devpts pts dev/pts
$B mount --bind /modules modules
$B mount -t 9p -o "cache=none,$p9" share "/root$share" || die "the shared directory"
$B ifconfig lo 127.0.0.1 up
[ -e dev/kvm ] || die "no /dev/kvm"

$B stty -F dev/ttyS1 raw -echo
$B env -i HOME=/root TERM=dumb LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	PYTHONDONTWRITEBYTECODE=1 NESTED_KVM=1 \
	$B chroot /root /bin/sh "$share/command" <dev/ttyS1 >dev/ttyS1 2>&1
echo $? >"/root$share/status"
$B sync
$B poweroff -f
