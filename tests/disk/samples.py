#!/usr/bin/env python3
"""Images that other programs made: samples.py HV, with $TRIVISOR_SAMPLES the directory they are in.

Each opens with the content it has, or is refused for the right reason.  Prints TAP.
"""
import bz2
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

hv = os.path.abspath(sys.argv[1])
samples = os.environ.get('TRIVISOR_SAMPLES')
if not samples or not pathlib.Path(samples).is_dir():
    print('1..0 # SKIP TRIVISOR_SAMPLES names no directory')
    sys.exit(0)
work = pathlib.Path(tempfile.mkdtemp())

# name, format, bytes; None for bytes: refused, with this in the message
# fmt: off
TABLE = [
    ('qemu-iotests/afl5.img', 'vpc', None, 'damaged'),
    ('qemu-iotests/afl9.vmdk', 'vmdk', None, 'too large'),
    ('qemu-iotests/iotest-version3.vmdk', 'vmdk', 16 << 30, ''),
    ('qemu-iotests/iotest-dirtylog-10G-4M.vhdx', 'vhdx', 10 << 30, ''),
    ('qemu-iotests/iotest-dynamic-1G.vhdx', 'vhdx', 1 << 30, ''),
    ('qemu-iotests/test-disk2vhd.vhdx', 'vhdx', 256 << 20, ''),
    ('qemu-iotests/d2v-zerofilled.vhd', 'vpc', 263454720, ''),
    ('qemu-iotests/hyperv2012r2-dynamic.vhd', 'vpc', 136365211648, ''),
    ('qemu-iotests/virtualpc-dynamic.vhd', 'vpc', 136363130880, ''),
    ('qemu-iotests/parallels-v1', 'parallels', 2 << 20, ''),
    ('qemu-iotests/parallels-v2', 'parallels', 2 << 20, ''),
    ('qemu-iotests/parallels-with-bitmap', 'parallels', 64 << 30, ''),
    ('qemu-iotests/empty.bochs', 'bochs', 1032192, ''),
    ('qemu-iotests/simple-pattern.cloop', 'cloop', 1 << 20, ''),
    ('qemu-iotests/simple-dmg.dmg', 'dmg', 1799168, ''),
    ('qemu-iotests/grub_mbr.raw', 'raw', 512, ''),
    ('dfvfs/ext2.vmdk', 'vmdk', 4 << 20, ''),
    ('dfvfs/ext2.qcow2', 'qcow2', 4 << 20, ''),
    ('dfvfs/ext2.vhd', 'vpc', 4212736, ''),
    ('dfvfs/windows_volume.qcow2', 'qcow2', 35913728, ''),
    ('dfvfs/fat-differential.vhd', 'vpc', None, 'fat-parent.vhd'),
    ('dfvfs/image.vhd', 'vpc', None, 'checksum'),
    ('dfvfs/image-differential.vhd', 'vpc', None, 'checksum'),
]
# fmt: on


class Skip(Exception):
    pass


def disk(*args, status=0):
    r = subprocess.run([hv, 'disk', *map(str, args)], capture_output=True, text=True, timeout=300)
    assert r.returncode == status, f'{args}: status {r.returncode}, not {status}\n{r.stdout}{r.stderr}'
    return r


def place(name):
    """A copy, alone in its directory and read-only: nothing may be written to it."""
    path = pathlib.Path(samples, name)
    to = work / path.name / path.name
    to.parent.mkdir(exist_ok=True)
    if path.exists():
        data = path.read_bytes()
    elif path.with_name(path.name + '.bz2').exists():
        data = bz2.decompress(path.with_name(path.name + '.bz2').read_bytes())
    else:
        raise Skip(f'no {name}')
    to.write_bytes(data)
    to.chmod(0o444)
    return to, hashlib.sha256(data).digest()


def refused(path, fmt, why):
    for args in (('map', '-f', fmt, path), ('convert', '-f', fmt, path, work / 'out')):
        r = disk(*args, status=1)
        assert len(r.stderr.strip().splitlines()) == 1 and why in r.stderr, r.stderr
    assert not (work / 'out').exists(), 'a half-made target is left'


def same_as_qemu(path, fmt):
    """qemu-img reads the copy we make as it reads the sample itself, where it can."""
    if not shutil.which('qemu-img'):
        return
    disk('convert', '-f', fmt, '-O', 'qcow2', path, work / 'copy')
    r = subprocess.run(['qemu-img', 'compare', '-f', fmt, '-F', 'qcow2', path, work / 'copy'], capture_output=True,
                       text=True, timeout=300)
    said = r.stdout + r.stderr
    assert r.returncode == 0 or (r.returncode > 1 and ('replay' in said or 'nknown driver' in said)), said


def opens(path, fmt, size):
    info = json.loads(disk('info', '--json', path).stdout)
    assert info['format'] == fmt and info['virtual-size'] == size, info
    runs = json.loads(disk('map', '--json', '-f', fmt, path).stdout)
    assert sum(r['length'] for r in runs) == size, runs[-1]
    disk('compare', '-q', '-f', fmt, '-F', fmt, path, path)
    same_as_qemu(path, fmt)


def sample(name, fmt, size, why):
    path, before = place(name)
    if size is None:
        refused(path, fmt, why)
    else:
        opens(path, fmt, size)
    assert hashlib.sha256(path.read_bytes()).digest() == before, 'it was written to'


def ext2_three_times():
    """One file system in three formats."""
    sums = set()
    for name, fmt in (('ext2.vmdk', 'vmdk'), ('ext2.qcow2', 'qcow2'), ('ext2.vhd', 'vpc')):
        path, _ = place('dfvfs/' + name)
        disk('convert', '-f', fmt, path, work / 'ext2.raw')
        sums.add(hashlib.sha256((work / 'ext2.raw').read_bytes()[:4 << 20]).digest())
    assert len(sums) == 1


cases = [(row[0], lambda row=row: sample(*row)) for row in TABLE] + [('ext2 three times', ext2_three_times)]
failed = 0
try:
    print(f'1..{len(cases)}')
    for i, (name, fn) in enumerate(cases, 1):
        try:
            fn()
            print(f'ok {i} - {name}', flush=True)
        except Skip as why:
            print(f'ok {i} - {name} # SKIP {why}', flush=True)
        except (AssertionError, subprocess.TimeoutExpired) as e:
            failed += 1
            print('\n'.join('# ' + line for line in str(e).splitlines()))
            print(f'not ok {i} - {name}', flush=True)
finally:
    shutil.rmtree(work)
sys.exit(failed != 0)
