#!/bin/sh
# The root file system as an ext4 image, without mounts or loop devices: mke2fs copies a tree.
set -e
tree=$2.tree
mkdir "$tree"
tar -C "$1" --one-file-system --exclude='./dev/*' --exclude='./tmp/*' -cf - . | tar -C "$tree" -xpf -
truncate -s 2G "$2"
mke2fs -q -F -t ext4 -L root -d "$tree" "$2"
rm -rf "$tree"
chmod 644 "$2"
