#!/bin/sh
# Build BusyBox in DIR and run its own tests; say what came of both in lines that two machines of
# the same packages can compare.  Runs inside the file system that boot-workload.sh makes.
#   workload-build.sh DIR [JOBS]
dir=$1 jobs=${2:-2}
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin SHELL=/bin/sh
# Both or the build's date would be in the program.
export KCONFIG_NOTIMESTAMP=1 SOURCE_DATE_EPOCH=1672531200
rm -rf "$dir"
cp -r /srv/busybox "$dir" || exit 1
cd "$dir" || exit 1
make defconfig >log 2>&1 || { tail log; exit 1; }
# What the packages at hand cannot build, and what would look at the clock.
sed -i 's/^CONFIG_TC=y/# CONFIG_TC is not set/; s/^CONFIG_PAM=y/# CONFIG_PAM is not set/' .config
make oldconfig </dev/null >>log 2>&1
start=$(date +%s)
make "-j$jobs" 2>&1 | tee -a log | awk 'NR % 100 == 0 { print "# " NR " steps"; fflush() }' >&2
[ -x busybox ] || { tail -n 20 log; exit 1; }
echo "# make -j$jobs: $(($(date +%s) - start)) s" >&2
echo "OBJECTS $(find . -name '*.o' | wc -l)"
echo "SHA256 $(sha256sum busybox_unstripped | cut -d' ' -f1)"
cd testsuite || exit 1
rm -rf wget hostname ping mount.tests # they ask the network or the host
./runtest >tests 2>&1
echo "PASSED $(grep -c '^PASS:' tests)"
grep '^FAIL:' tests | sort
