#!/usr/bin/env python3
"""Make the seeds of fuzz_qcow2: small images of every kind, by qemu-img and qemu-io.

    make_qcow2_seeds.py FOLDER
"""
import os
import subprocess
import sys


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def io(image, *commands):
    run('qemu-io', '-f', 'qcow2', *[word for c in commands for word in ('-c', c)], image)


def image(name, options, *commands, size='256k'):
    path = os.path.join(sys.argv[1], name)
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, size)
    if commands:
        io(path, *commands)
    return path


small = 'cluster_size=512'
image('plain', small, 'write -P 1 0 1k', 'write -P 2 100k 3k', 'write -z 130k 1k')
image('version_2', small + ',compat=0.10', 'write -P 1 0 1k', 'write -P 2 100k 3k')
image('wide_counts', small + ',refcount_bits=64', 'write -P 1 0 2k')
image('narrow_counts', small + ',refcount_bits=1', 'write -P 1 0 2k')
image('lazy', small + ',lazy_refcounts=on', 'write -P 1 0 2k')
image('subclusters', 'cluster_size=16k,extended_l2=on', 'write -P 1 4k 1k', 'write -z 9k 1k', size='64k')
image('zlib', small, 'write -c -P 1 0 512', 'write -c -P 2 512 512')
image('zstd', 'cluster_size=4k,compression_type=zstd', 'write -c -P 1 0 4k', 'write -c -P 2 4k 4k')
image('preallocated', small + ',preallocation=metadata', size='8k')
path = image('snapshots', small, 'write -P 1 0 2k')
run('qemu-img', 'snapshot', '-c', 'a', path)
io(path, 'write -P 3 1k 2k')
run('qemu-img', 'snapshot', '-c', 'b', path)
path = image('bitmaps', small)
run('qemu-img', 'bitmap', '--add', '-g', '512', path, 'fine')
run('qemu-img', 'bitmap', '--add', '-g', '4k', path, 'coarse')
io(path, 'write -P 1 0 2k')
for name in os.listdir(sys.argv[1]):  # the zeroes at the end say nothing
    path = os.path.join(sys.argv[1], name)
    data = open(path, 'rb').read().rstrip(b'\0')
    open(path, 'wb').write(data + bytes(-len(data) % 512))
