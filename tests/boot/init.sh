#!/bin/busybox sh
# init of the boot tests' initramfs: does what test=NAME on the kernel command line says, prints
# words a test looks for, powers off.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
$B --install -s /bin
PATH=/bin
export PATH
echo "INIT-OK cpus=$(nproc) kernel=$(uname -r) up=$(cut -d' ' -f1 /proc/uptime)"

load_modules() {
	while read -r m; do insmod "/modules/$m.ko"; done </modules/order
}

word() { # the value of NAME=value on the kernel command line
	sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline
}

network_up() {
	ip link set lo up
	ip link set eth0 up
	ip addr add 10.0.2.15/24 dev eth0
	ip route add default via 10.0.2.2
}

run_disk() { # write a file system the host made, so that the host can check it
	load_modules
	mount -t "$(word fs)" /dev/vda /mnt || { echo "DISK-FAIL mount"; return; }
	mkdir -p /mnt/a/b/c
	dd if=/dev/urandom of=/mnt/a/random bs=64k count=256 2>/dev/null
	for i in $(seq 1 200); do echo "file $i" >/mnt/a/b/c/f$i; done
	rm /mnt/a/b/c/f1*
	cp /mnt/a/random /mnt/a/b/copy
	sync
	echo 3 >/proc/sys/vm/drop_caches
	cmp /mnt/a/random /mnt/a/b/copy && echo "DISK-SAME"
	echo "DISK-SUM $(sha256sum </mnt/a/random | cut -d' ' -f1)"
	umount /mnt && echo "DISK-DONE"
}

run_net() { # fetch, look, send back the same; the host compares the sums
	load_modules
	network_up
	mount -t tmpfs -o size=80% tmp /tmp
	wget -qO /tmp/data "http://10.0.2.2:$(word port)/"
	echo "NET-DOWN $(sha256sum </tmp/data | cut -d' ' -f1)"
	nc 10.0.2.2 "$(word upport)" </tmp/data
	echo "NET-UP $(sha256sum </tmp/data | cut -d' ' -f1)"
	echo "NET-DONE"
}

run_load() { # all CPUs busy for a while, each checking its own sums
	n=$(nproc)
	for c in $(seq 1 "$n"); do
		(
			for i in 1 2 3 4 5; do
				dd if=/dev/zero bs=64k count=64 2>/dev/null | sha256sum >/tmp/sum.$c.$i
			done
		) &
	done
	wait
	echo "LOAD-SUMS $(cat /tmp/sum.* | sort -u | wc -l) of $(ls /tmp/sum.* | wc -l)"
}

# From here: guests that are saved and resumed in the middle (resume.py).

run_sums() { # each CPU its own chain of sums, where each step needs the one before
	n=$(nproc)
	for c in $(seq 1 "$n"); do
		(
			echo "start $c" >/tmp/chain.$c
			for i in $(seq 1 "$(word steps)"); do
				{ dd if=/dev/zero bs=64k count=8 2>/dev/null; cat /tmp/chain.$c; } |
					sha256sum >/tmp/next.$c
				mv /tmp/next.$c /tmp/chain.$c
				echo "STEP $c $i"
			done
			echo "CHAIN $c $(cut -d' ' -f1 /tmp/chain.$c)"
		) &
	done
	wait
	echo "SUMS-DONE"
}

run_journal() { # files written through to the disk one by one, some appended to, some removed
	load_modules
	mount -t ext4 /dev/vda /mnt || { echo "JOURNAL-FAIL mount"; return; }
	for i in $(seq 1 "$(word steps)"); do
		yes "line of file $i" | head -c 200000 | dd of=/mnt/f$i bs=16k conv=fsync 2>/dev/null ||
			echo "JOURNAL-FAIL write $i"
		echo "entry $i" >>/mnt/log
		[ $((i % 3)) = 0 ] && rm /mnt/f$((i - 1))
		sync
		echo "STEP 1 $i"
	done
	echo 3 >/proc/sys/vm/drop_caches
	echo "JOURNAL-SUM $(cat /mnt/f* /mnt/log | sha256sum | cut -d' ' -f1)"
	dmesg -r | grep -E '^<[0-4]>.*(EXT4|I/O error|vda)' && echo "JOURNAL-FAIL messages"
	umount /mnt && echo "JOURNAL-DONE"
}

centiseconds() { # since the start; a number with a zero before it would be an octal one
	cut -d' ' -f1 /proc/uptime | tr -d . | sed 's/^0*//'
}

run_ticks() { # timers and clocks: sleeps last what they should by the guest's own time
	for i in $(seq 1 "$(word steps)"); do
		a=$(centiseconds)
		sleep 0.3
		b=$(centiseconds)
		echo "TICK $i $((b - a))"
		echo "STEP 1 $i"
	done
	echo "CLOCKSOURCE $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
	dmesg | grep -iE 'unstable|stall|lockup|hung' && echo "TICKS-FAIL messages"
	echo "TICKS-DONE"
}

run_fetch() { # a download that the host may cut off, and once more until it is whole
	load_modules
	network_up
	mount -t tmpfs -o size=80% tmp /tmp
	for i in 1 2 3 4 5 6; do
		echo "FETCH-BEGIN $i"
		if timeout 15 wget -q -O /tmp/data "http://10.0.2.2:$(word port)/"; then
			echo "FETCH-SUM $(sha256sum </tmp/data | cut -d' ' -f1)"
			break
		fi
		echo "FETCH-CUT $i"
	done
	echo "FETCH-DONE"
}

run_devices() { # say what the guest sees of each device, and use each
	load_modules
	for d in /sys/block/vd*; do
		echo "DISK $(basename "$d") $(cat "$d/size") ro=$(cat "$d/ro")"
		dd if="/dev/$(basename "$d")" bs=512 count=1 2>/dev/null | sha256sum
	done
	echo "RNG $(cat /sys/class/misc/hw_random/rng_current) $(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c)"
	for n in 1 2 3; do echo "PORT $n says hello" >/dev/ttyS$n; done
	echo "CONSOLE says hello" >/dev/hvc0
	grep -h Name= /proc/bus/input/devices
	sleep 1 # for the last port to empty
	echo "DEVICES-DONE"
}

run_restart() { # twice through the machine: /dev/vda remembers that this is the second time
	load_modules
	if [ "$(dd if=/dev/vda bs=8 count=1 2>/dev/null)" = restart! ]; then
		echo "RESTART-CAME-BACK"
		return
	fi
	echo "RESTART-FIRST"
	printf 'restart!' | dd of=/dev/vda conv=fsync 2>/dev/null
	reboot -f
}

run_messages() { # the kernel's own list of what is not in order
	dmesg -r | grep -E '^<[0-4]>' | sed 's/^/MESSAGE /'
	echo "MESSAGES-DONE"
}

run_memory() {
	sed -n 's/^MemTotal: */MEMORY /p' /proc/meminfo
	grep 'System RAM' /proc/iomem
}

run_job() { # a script from the second disk, inside the file system of the first
	load_modules
	mount -t ext4 /dev/vda /mnt || { echo "JOB-FAIL mount"; return; }
	mount -t proc proc /mnt/proc
	mount -t sysfs sys /mnt/sys
	mount --bind /dev /mnt/dev
	mkdir -p /mnt/dev/shm /mnt/dev/pts
	mount -t tmpfs shm /mnt/dev/shm
	mount -t devpts pts /mnt/dev/pts
	chroot /mnt /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C sh -c '. /dev/vdb' 2>&1
	echo "JOB-STATUS $?"
	dmesg -r | grep -E '^<[0-3]>|BUG:|rcu: INFO|soft lockup|hung_task' | sed 's/^/MESSAGE /'
	echo "JOB-DONE"
}

case $(word test) in
disk) run_disk ;;
net) run_net ;;
load) run_load ;;
clock)
	echo "CLOCKSOURCE $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
	;;
devices) run_devices ;;
restart) run_restart ;;
messages) run_messages ;;
sums) run_sums ;;
journal) run_journal ;;
ticks) run_ticks ;;
fetch) run_fetch ;;
job) run_job ;;
memory) run_memory ;;
shell) setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1' ;;
reboot) reboot -f ;;
crash) echo c >/proc/sysrq-trigger ;;
esac
poweroff -f
