#!/bin/sh
# What an administrator would set on a fresh Debian: name, network, passwordless root on the
# console, and the service that runs DEMO_EXEC's command.
set -e
root=$1 files=$2
echo trivisor >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 trivisor\n' >"$root/etc/hosts"
printf 'LABEL=root / ext4 defaults 0 1\n' >"$root/etc/fstab"
chroot "$root" passwd -d root >/dev/null
mkdir -p "$root/etc/systemd/network"
printf '[Match]\nName=en*\n\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/80-dhcp.network"
rm -f "$root/etc/resolv.conf"
echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
install -m 755 "$files/demo-exec" "$root/usr/local/sbin/demo-exec"
install -m 644 "$files/demo-exec.service" "$root/etc/systemd/system/demo-exec.service"
chroot "$root" systemctl enable systemd-networkd demo-exec >/dev/null 2>&1
printf '\nWelcome to Debian inside Trivisor.  Ctrl-A x leaves.\n\n' >"$root/etc/motd"
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
