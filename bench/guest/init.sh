#!/bin/busybox sh
# init of the benchmark's initramfs: run the workload with the arguments that the kernel command line
# has after workload= (a comma for each blank, a slash for each comma), and power off.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
args=$(/bin/busybox sed -n 's/.*\bworkload=\([^ ]*\).*/\1/p' /proc/cmdline | /bin/busybox tr ',/' ' ,')
/bench/workload --work /tmp $args
echo "WORKLOAD-STATUS $?"
/bin/busybox poweroff -f
