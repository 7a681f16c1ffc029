#!/usr/bin/env python3
"""Disk images that lie: hostile.py HV

Headers, tables and names as an attacker writes them, for every format and command.  Each gets one
clear line and a status; nothing crashes, hangs, or takes memory that the image asks for.  Prints TAP.
"""
import os
import pathlib
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

hv = os.path.abspath(sys.argv[1])
work = pathlib.Path(tempfile.mkdtemp()).resolve()
os.chdir(work)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LIMIT = 2 * GIB  # of address space: threads' stacks and heaps are most of what is used
cases = []


class Skip(Exception):
    pass


def case(fn):
    cases.append(fn)
    return fn


def bound():
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


# A program built with sanitizers takes more than that to start.
if subprocess.run([hv, 'disk', 'formats'], capture_output=True, preexec_fn=bound).returncode:
    def bound():
        pass


def run(*args):
    r = subprocess.run([hv, 'disk', *map(str, args)], capture_output=True, text=True, errors='replace',
                       preexec_fn=bound, timeout=120)
    assert r.returncode in (0, 1, 2, 3, 63), f'{args}: status {r.returncode}\n{r.stderr[-2000:]}'
    assert 'anitizer' not in r.stderr and 'runtime error' not in r.stderr, r.stderr[-3000:]
    assert len(r.stderr) < 20000, f'{args}: {len(r.stderr)} bytes of messages'
    return r


def disk(*args):
    r = run(*args)
    assert r.returncode == 0, f'{args}: {r.stderr}'
    return r


def look(path, fmt):
    """Everything that reads an image; the result of map."""
    run('info', '-f', fmt, path)
    run('check', '-f', fmt, path)
    if fmt == 'qcow2':
        run('snapshot', '-l', path)
    r = run('map', '-f', fmt, '--max-length', 64 * MIB, path)
    if r.returncode == 0 and is_small(path, fmt):
        run('convert', '-f', fmt, path, 'copy')
    return r


def is_small(path, fmt):
    out = run('info', '-f', fmt, path).stdout
    return any('virtual size' in line and int(line.split('(')[1].split()[0]) <= GIB for line in out.splitlines())


def refused(path, fmt, *words):
    r = look(path, fmt)
    assert r.returncode == 1, f'{path} is opened'
    lines = [line for line in r.stderr.strip().splitlines() if not line.startswith('warn: ')]
    assert len(lines) == 1 and (path in lines[0] or "'flat'" in lines[0]), r.stderr
    for w in words:
        assert w in r.stderr, f'{w!r} is not in {r.stderr!r}'


def patched(good, *patches):
    data = bytearray(good)
    for at, piece in patches:
        at %= len(data)
        data[at:at + len(piece)] = piece
    return bytes(data)


def be(n, width=4):
    return n.to_bytes(width, 'big')


def le(n, width=4):
    return n.to_bytes(width, 'little')


def table(fmt, good, rows, fix=lambda data: data):
    for what, patches, *words in rows:
        name = f'{fmt}-bad'
        pathlib.Path(name).write_bytes(fix(patched(good, *patches)))
        try:
            refused(name, fmt, *words)
        except AssertionError as e:
            raise AssertionError(f'{fmt}, {what}: {e}') from None


def survives(fmt, good, rows, fix=lambda data: data):
    for what, patches in rows:
        name = f'{fmt}-odd'
        pathlib.Path(name).write_bytes(fix(patched(good, *patches)))
        try:
            look(name, fmt)
        except AssertionError as e:
            raise AssertionError(f'{fmt}, {what}: {e}') from None


def source():
    if not os.path.exists('src'):
        rng = random.Random(5)
        with open('src', 'wb') as f:
            f.truncate(24 * MIB)
            for at in (0, 5 * MIB, 17 * MIB):
                f.seek(at)
                f.write(rng.randbytes(300 * KIB) + bytes(100) * 3000)
    return 'src'


def image(fmt, *opts):
    disk('convert', '-f', 'raw', '-O', fmt, *opts, source(), 'good')
    data = pathlib.Path('good').read_bytes()
    os.unlink('good')
    return data


def foreign(fmt):
    """One that only qemu-img makes."""
    if not shutil.which('qemu-img'):
        raise Skip('no qemu-img')
    r = subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', fmt, source(), 'good'], capture_output=True)
    if r.returncode:
        raise Skip(f'qemu-img makes no {fmt}')
    return pathlib.Path('good').read_bytes()


@case
def qcow2_headers():
    good = image('qcow2')
    table('qcow2', good, [
        ('version 1', [(4, be(1))]),
        ('version 4', [(4, be(4))]),
        ('clusters of 256 bytes', [(20, be(8))], 'cluster'),
        ('clusters of 4 MiB', [(20, be(22))], 'cluster'),
        ('clusters of 2^64', [(20, be(64))], 'cluster'),
        ('clusters of 2^32-1', [(20, be(0xffffffff))], 'cluster'),
        ('a header of no length', [(100, be(0))]),
        ('a header of 2 GiB', [(100, be(0x7fffffff))]),
        ('a name behind the header', [(8, be(1 << 60, 8)), (16, be(20))]),
        ('a name of 64 KiB', [(8, be(1024, 8)), (16, be(65535))]),
        ('a name of 4 GiB', [(8, be(1024, 8)), (16, be(0xffffffff))]),
        ('refcounts of 128 bits', [(96, be(7))]),
        ('refcounts of 2^255 bits', [(96, be(255))]),
        ('a refcount table of 128 TiB', [(56, be(0x7fffffff))]),
        ('a refcount table off the grid', [(48, be(0x10001, 8))]),
        ('a refcount table at the end', [(48, be(0x7fffffffffff0000, 8))]),
        ('65537 snapshots', [(60, be(65537)), (64, be(0x50000, 8))]),
        ('2^32-1 snapshots', [(60, be(0xffffffff)), (64, be(0x50000, 8))]),
        ('snapshots off the grid', [(60, be(1)), (64, be(0x50001, 8))]),
        ('an L1 table of 16 GiB', [(36, be(0x7fffffff))]),
        ('an L1 table of 32 GiB', [(36, be(0xffffffff))]),
        ('no L1 table', [(36, be(0))]),
        ('an L1 table off the grid', [(40, be(0x30001, 8))]),
        ('an L1 table at the end', [(40, be(0x7fffffffffff0000, 8))]),
        ('a disk of 2^63 bytes', [(24, be(1 << 63, 8))]),
        ('a disk of 2^63-512 bytes', [(24, be((1 << 63) - 512, 8))]),
        ('encryption 3', [(32, be(3))]),
        ('an unknown feature', [(72, be(1 << 63, 8))]),
        ('a data file without a name', [(72, be(4, 8))]),
    ])
    survives('qcow2', good, [
        ('the corrupt bit', [(72, be(2, 8))]),
        ('the dirty bit', [(72, be(1, 8))]),
        ('an extension of 4 GiB', [(104, be(0x6803f857) + be(0xffffffff))]),
        ('bitmaps of 4 GiB', [(104, be(0x23852875) + be(24) + be(65535) + be(0) + be(1 << 62, 8) + be(1 << 40, 8)),
                              (88, be(1, 8))]),
    ])


def qcow2_tables(good):
    l1 = int.from_bytes(good[40:48], 'big')
    l2 = int.from_bytes(good[l1:l1 + 8], 'big') & ((1 << 56) - 512)
    rt = int.from_bytes(good[48:56], 'big')
    rb = int.from_bytes(good[rt:rt + 8], 'big')
    return l1, l2, rt, rb


@case
def qcow2_tables_that_point_anywhere():
    good = image('qcow2')
    l1, l2, rt, rb = qcow2_tables(good)
    copied = 1 << 63
    rows = []
    for what, at in (('the header', 0), ('the L1 table', l1), ('an L2 table', l2), ('the refcount table', rt),
                     ('a refcount block', rb), ('the end', len(good)), ('far away', (1 << 56) - 65536),
                     ('off the grid', l2 + 512), ('everything', (1 << 63) - 1)):
        rows.append((f'an L2 table in {what}', [(l1, be(at | copied if at < 1 << 62 else at, 8))]))
        rows.append((f'a cluster in {what}', [(l2, be(at | copied if at < 1 << 62 else at, 8))]))
        rows.append((f'a compressed cluster in {what}', [(l2, be(1 << 62 | at & (1 << 62) - 1, 8))]))
        rows.append((f'a refcount block in {what}', [(rt, be(at & (1 << 63) - 1, 8))]))
    rows.append(('no refcounts', [(rt, bytes(65536))]))
    rows.append(('all refcounts 65535', [(rb, b'\xff' * 65536)]))
    survives('qcow2', good, rows)
    for what, patches in rows:  # and who writes to them, or mends them
        pathlib.Path('w').write_bytes(patched(good, *patches))
        run('convert', '-n', '-f', 'raw', '-O', 'qcow2', source(), 'w')
        pathlib.Path('w').write_bytes(patched(good, *patches))
        run('check', '-r', 'all', '-f', 'qcow2', 'w')
        r = run('check', '-f', 'qcow2', 'w')
        assert r.returncode in (0, 3), f'{what}: not mended\n{r.stdout}{r.stderr}'


@case
def qcow2_snapshots_that_lie():
    pathlib.Path('sn').write_bytes(image('qcow2'))
    disk('snapshot', '-c', 'one', 'sn')
    good = pathlib.Path('sn').read_bytes()
    at = int.from_bytes(good[64:72], 'big')
    rows = [
        ('an L1 table of 32 GiB', [(at + 8, be(0xffffffff))]),
        ('an L1 table off the grid', [(at, be(0x1001, 8))]),
        ('an L1 table at the end', [(at, be(1 << 62, 8))]),
        ('an id of 64 KiB', [(at + 12, b'\xff\xff')]),
        ('a name of 64 KiB', [(at + 14, b'\xff\xff')]),
        ('extra data of 4 GiB', [(at + 36, be(0xffffffff))]),
        ('extra data of 1025 bytes', [(at + 36, be(1025))]),
        ('a disk of 2^64 bytes', [(at + 48, be((1 << 64) - 1, 8))]),
        ('two in one place', [(60, be(2))]),
        ('a table at the end of the file', [(64, be(len(good) // 65536 * 65536, 8))]),
    ]
    survives('qcow2', good, rows)
    for what, patches in rows:
        for op in (['-a', 'one'], ['-d', 'one'], ['-c', 'two']):
            pathlib.Path('w').write_bytes(patched(good, *patches))
            run('snapshot', *op, 'w')
        pathlib.Path('w').write_bytes(patched(good, *patches))
        run('convert', '-f', 'qcow2', '-l', 'one', 'w', 'copy')
        run('check', '-r', 'all', '-f', 'qcow2', 'w')


@case
def vmdk_headers():
    good = image('vmdk')
    gd = int.from_bytes(good[56:64], 'little') * 512
    gt = int.from_bytes(good[gd:gd + 4], 'little') * 512
    table('vmdk', good, [
        ('version 9', [(4, le(9))]),
        ('grains of nothing', [(20, le(0, 8))]),
        ('grains of 3 sectors', [(20, le(3, 8))]),
        ('grains of 2 GiB', [(20, le(0x400000, 8))]),
        ('grains of 2^63 sectors', [(20, le(1 << 63, 8))]),
        ('tables of no entries', [(44, le(0))]),
        ('tables of 1024 entries', [(44, le(1024))]),
        ('tables of 2^32-1 entries', [(44, le(0xffffffff))]),
        ('a disk of 2^60 sectors', [(12, le(1 << 60, 8))]),
        ('a disk of 2^64-1 sectors', [(12, le((1 << 64) - 1, 8))]),
        ('a directory at the end', [(56, le(1 << 40, 8)), (48, le(1 << 40, 8))]),
        ('a descriptor of 2^40 sectors', [(36, le(1 << 40, 8))]),
        ('a descriptor at the end', [(28, le(1 << 50, 8))]),
    ])
    survives('vmdk', good, [
        ('a table in the header', [(gd, le(0))]),
        ('a table at the end', [(gd, le(0xffffffff))]),
        ('a grain in the header', [(gt, le(1))]),
        ('a grain at the end', [(gt, le(0xffffffff))]),
        ('a grain in its table', [(gt, le(gt // 512))]),
        ('compression 9', [(77, le(9, 2))]),
    ])


@case
def vmdk_streams_that_lie():
    good = image('vmdk', '-o', 'subformat=streamOptimized')
    first = int.from_bytes(good[64:72], 'little') * 512
    survives('vmdk', good, [
        ('a grain of 4 GiB', [(first + 8, le(0xffffffff))]),
        ('a grain of nothing', [(first + 8, le(0))]),
        ('a grain of other data', [(first + 12, b'garbage!')]),
        ('a grain of more than a grain', [(first + 8, le(4096)), (first + 12, zlib.compress(bytes(4 * MIB)))]),
        ('a sector of 2^63', [(first, le(1 << 63, 8))]),
        ('no footer', [(-1024, bytes(512))]),
        ('a footer of 2^40 sectors', [(-1024 + 56, le(1 << 40, 8))]),
    ])


def descriptor(*lines, head='version=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"'):
    return ('# Disk DescriptorFile\n' + head + '\n' + '\n'.join(lines) + '\n').encode()


@case
def vmdk_descriptors():
    pathlib.Path('flat').write_bytes(bytes(MIB))
    rows = [
        ('no extents', descriptor()),
        ('a size of 10^20', descriptor('RW 99999999999999999999 FLAT "flat" 0')),
        ('a size below nothing', descriptor('RW -1 FLAT "flat" 0')),
        ('more than the file', descriptor('RW 4096 FLAT "flat" 0')),
        ('an offset of 2^60', descriptor('RW 2048 FLAT "flat" 1152921504606846976')),
        ('no name', descriptor('RW 2048 FLAT')),
        ('an empty name', descriptor('RW 2048 FLAT "" 0')),
        ('another kind', descriptor('RW 2048 MAGIC "flat" 0')),
        ('itself', descriptor('RW 2048 SPARSE "vmdk-text"')),
        ('flat itself', descriptor('RW 1 FLAT "vmdk-text" 0')),
        ('a file that is not there', descriptor('RW 2048 FLAT "gone" 0')),
        ('sizes that wrap', descriptor(*['RW 9007199254740992 ZERO'] * 4000)),
        ('a million extents', descriptor(*['RW 1 FLAT "flat" 0'] * 1000000)),
        ('a line of 40 MiB', descriptor('x' * 40 * MIB)),
    ]
    for what, text in rows:
        pathlib.Path('vmdk-text').write_bytes(text)
        try:
            refused('vmdk-text', 'vmdk')
        except AssertionError as e:
            raise AssertionError(f'{what}: {e}') from None


@case
def vdi_headers():
    good = image('vdi')
    table('vdi', good, [
        ('another signature', [(0x40, le(1))], 'VDI'),
        ('version 2', [(0x44, le(0x00020000))], 'version'),
        ('no type', [(0x4c, le(0))]),
        ('type 9', [(0x4c, le(9))]),
        ('sectors of 4096', [(0x168, le(4096))]),
        ('blocks of 2 MiB', [(0x178, le(2 * MIB))]),
        ('blocks of nothing', [(0x178, le(0))]),
        ('more bytes than blocks', [(0x170, le(1 << 40, 8))]),
        ('2^64 - 1 bytes', [(0x170, le((1 << 64) - 1, 8))]),
        ('2^32 - 1 blocks', [(0x180, le(0xffffffff))]),
        ('a map off the grid', [(0x154, le(0x201))]),
        ('data off the grid', [(0x158, le(0x201))]),
        ('data in the map', [(0x158, le(0x200))]),
        ('a map at the end', [(0x154, le(0xfffffe00))]),
        ('extra bytes of 4 GiB', [(0x17c, le(0xfffffe00))]),
        ('a parent that is not there', [(0x4c, le(4)), (0x1a8, b'x' * 16)], '--allow-ref'),
    ])
    at = int.from_bytes(good[0x154:0x158], 'little')
    survives('vdi', good, [
        ('a block behind all', [(at, le(23))]),
        ('block 2^31', [(at, le(1 << 31))]),
        ('two in one place', [(at, le(1) * 2)]),
    ])


def vhd_sealed(data):
    """With its checksums right: of the footer, its copy, and the header."""
    data = bytearray(data)
    for at, length, place in ((0, 512, 64), (len(data) - 512, 512, 64), (512, 1024, 36)):
        if data[at:at + 8] in (b'conectix', b'cxsparse'):
            data[at + place:at + place + 4] = bytes(4)
            data[at + place:at + place + 4] = be(~sum(data[at:at + length]) & 0xffffffff)
    return bytes(data)


@case
def vhd_headers():
    good = image('vpc')

    def both(at, piece):
        return [(at, piece), (-512 + at, piece)]
    table('vpc', good, [
        ('type 9', both(60, be(9))),
        ('version 2', both(12, be(0x20000))),
        ('a header at the end', both(16, be(1 << 62, 8))),
        ('a disk of 2^63 bytes', both(48, be(1 << 63, 8)) + both(28, b'win ')),
        ('2^30+1 entries', [(512 + 28, be((1 << 30) + 1))]),
        ('2^32-1 entries', [(512 + 28, be(0xffffffff))]),
        ('too few entries', [(512 + 28, be(1))]),
        ('blocks of nothing', [(512 + 32, be(0))]),
        ('blocks of 513 bytes', [(512 + 32, be(513))]),
        ('blocks of 256 bytes', [(512 + 32, be(256))]),
        ('blocks of 2 GiB', [(512 + 32, be(0x80000000))]),
        ('a table at the end', [(512 + 16, be(1 << 62, 8))]),
        ('a header that is none', [(512, b'cxsparsf')]),
        ('a parent that is not there', both(60, be(4)), '--allow-ref'),
    ], vhd_sealed)
    table('vpc', good, [('a wrong checksum', both(64, be(1)), 'checksum')])
    at = int.from_bytes(good[512 + 16:512 + 24], 'big')
    survives('vpc', good, [
        ('a block in the footer', [(at, be(0))]),
        ('a block at the end', [(at, be(0xfffffffe))]),
        ('a block in the table', [(at, be(at // 512))]),
    ], vhd_sealed)


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def vhdx_sealed(data):
    data = bytearray(data)
    for at, length in ((64 * KIB, 4096), (128 * KIB, 4096), (192 * KIB, 64 * KIB), (256 * KIB, 64 * KIB)):
        data[at + 4:at + 8] = bytes(4)
        data[at + 4:at + 8] = le(crc32c(data[at:at + length]))
    return bytes(data)


@case
def vhdx_headers():
    good = image('vhdx')

    def heads(at, piece):
        return [(64 * KIB + at, piece), (128 * KIB + at, piece)]

    def regions(at, piece):
        return [(192 * KIB + at, piece), (256 * KIB + at, piece)]
    table('vhdx', good, [
        ('version 2', heads(66, le(2, 2))),
        ('a log of 4 GiB', heads(68, le(0xfff00000)) + heads(48, b'x' * 16)),
        ('a log off the grid', heads(72, le(12345, 8)) + heads(48, b'x' * 16)),
        ('a log at the end', heads(72, le(1 << 60, 8)) + heads(48, b'x' * 16)),
        ('65535 regions', regions(8, le(0xffff))),
        ('no regions', regions(8, le(0))),
        ('a region at the end', regions(16 + 16, le(1 << 60, 8))),
        ('a region in the header', regions(16 + 16, le(0, 8))),
        ('a region off the grid', regions(16 + 16, le(3 * MIB + 5, 8))),
        ('two regions in one place', regions(16 + 16, good[192 * KIB + 64:192 * KIB + 72])),
        ('a region that is not known', regions(16, b'y' * 16)),
    ], vhdx_sealed)
    entry = good[192 * KIB + 16:192 * KIB + 80]
    meta = bytes.fromhex('06a27c8b904792 4bb8fe575f050f886e'.replace(' ', ''))
    first = entry[:16] == meta
    at = int.from_bytes(entry[16:24] if first else entry[48:56], 'little')
    bat = int.from_bytes(entry[48:56] if first else entry[16:24], 'little')
    params = at + int.from_bytes(good[at + 32 + 16:at + 32 + 20], 'little')
    table('vhdx', good, [
        ('65535 items', [(at + 10, le(0xffff, 2))]),
        ('no items', [(at + 10, le(0, 2))]),
        ('an item at the end', [(at + 32 + 16, le(0xfffffff0))]),
        ('an item of 4 GiB', [(at + 32 + 20, le(0xffffffff))]),
        ('an item in the table', [(at + 32 + 16, le(32))]),
        ('blocks of nothing', [(params, le(0))]),
        ('blocks of 3 MiB', [(params, le(3 * MIB))]),
        ('blocks of 512 MiB', [(params, le(512 * MIB))]),
        ('a parent without a name', [(params + 4, le(2))]),
        ('a disk of 65 TiB', [(params + 8, le(65 << 40, 8))]),
        ('a disk of 64 TiB, with a table for less', [(params + 8, le(64 << 40, 8))]),
        ('a disk of half a sector', [(params + 8, le(24 * MIB + 256, 8))]),
    ])
    survives('vhdx', good, [
        ('a block in the header', [(bat, le(6, 8))]),
        ('a block at the end', [(bat, le(1 << 62 | 6, 8))]),
        ('a block in the table', [(bat, le(bat | 6, 8))]),
        ('a partial block without a parent', [(bat, le(7 | len(good) // MIB - 1 << 20, 8))]),
        ('a state that is none', [(bat, le(4, 8))]),
        ('two in one place', [(bat, good[bat + 8:bat + 16])]),
    ])


@case
def vhdx_logs():
    good = image('vhdx')
    log = int.from_bytes(good[64 * KIB + 72:64 * KIB + 80], 'little')
    guid = b'l' * 16
    head = [(64 * KIB + 48, guid), (128 * KIB + 48, guid)]

    def entry(count=1, length=8192, off=3 * MIB, sign=b'desc', tail=0, flushed=len(good), last=len(good)):
        e = bytearray(length if length <= 8192 else 8192)
        e[:64] = b'loge' + bytes(4) + le(length) + le(tail) + le(1, 8) + le(count) + bytes(4) + guid + \
            le(flushed, 8) + le(last, 8)
        e[64:96] = sign + le(0) + le(0, 8) + le(off, 8) + le(1, 8)
        e[4096:8192] = (b'data' + le(0) + bytes(4084) + le(1))[:max(0, len(e) - 4096)]
        e[4:8] = le(crc32c(e))
        return [*head, (log, bytes(e))]
    survives('vhdx', good, [
        ('a log of nothing', head),
        ('a page off the grid', entry(off=12345)),
        ('a page at the end', entry(off=1 << 62)),
        ('a page in the log', entry(off=log)),
        ('zeroes of 2^62 bytes', entry(sign=b'zero', off=1 << 62)),
        ('2^32-1 descriptors', entry(count=0xffffffff)),
        ('an entry of 4 GiB', entry(length=0xfffff000)),
        ('an entry of no length', entry(length=0)),
        ('a tail at the end', entry(tail=0xfffff000)),
        ('a file of 2^62 bytes', entry(last=1 << 62, flushed=1 << 62)),
    ], vhdx_sealed)


@case
def qed_headers():
    good = foreign('qed')
    table('qed', good, [
        ('clusters of 3 bytes', [(4, le(3))]),
        ('clusters of 2 GiB', [(4, le(1 << 31))]),
        ('tables of nothing', [(8, le(0))]),
        ('tables of 17 clusters', [(8, le(17))]),
        ('a feature that is not known', [(16, le(1 << 40, 8))]),
        ('an L1 table at the end', [(40, le(1 << 60, 8))]),
        ('an L1 table off the grid', [(40, le(65536 + 512, 8))]),
        ('a disk of 2^63 bytes', [(48, le(1 << 63, 8))]),
        ('a name at the end', [(16, le(1, 8)), (56, le(0xfffffff0)), (60, le(10))]),
        ('a name of 4 GiB', [(16, le(1, 8)), (56, le(64)), (60, le(0xffffffff))]),
    ])
    l1 = int.from_bytes(good[40:48], 'little')
    survives('qed', good, [('a header of 4 Gi clusters', [(12, le(0xffffffff))])])
    survives('qed', good, [(f'a table at {at:#x}', [(l1, le(at, 8))]) for at in
                           (1, 512, l1, 1 << 62, (1 << 64) - 1, len(good))])


@case
def parallels_headers():
    good = foreign('parallels')
    table('parallels', good, [
        ('version 9', [(16, le(9))]),
        ('clusters of nothing', [(28, le(0))]),
        ('clusters of 2 TiB', [(28, le(0xffffffff))]),
        ('2^32-1 clusters', [(32, le(0xffffffff))]),
        ('2^29 clusters', [(32, le(1 << 29))]),
        ('a disk of 2^63 sectors', [(36, le(1 << 63, 8))]),
    ])
    survives('parallels', good, [(f'a cluster at {at:#x}', [(64, le(at))]) for at in (0, 1, 1 << 31, 0xffffffff)])


def cloop(block=65536, count=2, offsets=None):
    parts = [zlib.compress(bytes([n]) * 65536) for n in (1, 2)]
    at = 136 + 8 * 3
    if offsets is None:
        offsets = [at, at + len(parts[0]), at + len(parts[0]) + len(parts[1])]
    head = b'#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n'
    return head.ljust(128, b'\0') + be(block) + be(count) + b''.join(be(o, 8) for o in offsets) + b''.join(parts)


@case
def cloop_headers():
    pathlib.Path('cl').write_bytes(cloop())
    disk('convert', '-f', 'cloop', 'cl', 'cl.raw')
    assert pathlib.Path('cl.raw').read_bytes() == b'\1' * 65536 + b'\2' * 65536
    far = 1 << 63
    rows = [
        ('blocks of nothing', cloop(block=0)),
        ('blocks of 513 bytes', cloop(block=513)),
        ('blocks of 512 MiB', cloop(block=512 * MIB)),
        ('2^32-1 blocks', cloop(count=0xffffffff)),
        ('2^29 blocks', cloop(count=1 << 29)),
        ('offsets that go back', cloop(offsets=[500, 200, 700])),
        ('offsets at the end', cloop(offsets=[160, far, far + 10])),
        ('a block of 2 GiB', cloop(offsets=[160, 1 << 31, (1 << 31) + 10])),
    ]
    for what, data in rows:
        pathlib.Path('cloop-bad').write_bytes(data)
        r = look('cloop-bad', 'cloop')
        if r.returncode == 0:
            r = run('convert', '-f', 'cloop', 'cloop-bad', 'copy')
        assert r.returncode == 1 and len(r.stderr.strip().splitlines()) == 1, f'{what}: {r.stderr}'


@case
def any_byte_may_be_wrong():
    """Nothing in particular: bytes changed at random where tables are, and files cut short."""
    for fmt in ('qcow2', 'vmdk', 'vdi', 'vpc', 'vhdx'):
        good = image(fmt)
        rng = random.Random(fmt)
        for seed in range(12):
            data = bytearray(good)
            for _ in range(rng.randrange(1, 12)):
                at = rng.choice((rng.randrange(0, 512), rng.randrange(0, 4096), rng.randrange(0, min(len(data), MIB)),
                                 len(data) - 1 - rng.randrange(0, 512)))
                data[at] = rng.choice((0, 1, 0x7f, 0x80, 0xff, rng.randrange(256)))
            if seed % 4 == 3:
                del data[rng.randrange(0, len(data)):]
            pathlib.Path('x').write_bytes(data)
            for args in (('check', '-f', fmt, 'x'), ('map', '-f', fmt, '--max-length', '64M', 'x'),
                         ('check', '-r', 'all', '-f', fmt, 'x')):
                try:
                    run(*args)
                except AssertionError as e:
                    raise AssertionError(f'{fmt}, seed {seed}: {e}') from None


# --- names ---------------------------------------------------------------------------------------

def names():
    """What must not be followed, and what it is called from in/image."""
    for d in ('in', 'out'):
        shutil.rmtree(d, ignore_errors=True)
        os.mkdir(d)
    disk('create', '-q', '-f', 'qcow2', 'out/base', '1M')
    pathlib.Path('out/raw').write_bytes(bytes(MIB))
    os.symlink('../out/base', 'in/link')
    os.symlink('../out', 'in/dirlink')
    os.mkfifo('in/fifo')
    return ['/etc/passwd', '../out/base', str(work / 'out/base'), 'link', 'dirlink/base', 'fifo', 'image',
            '/dev/zero', '/proc/self/environ', '/proc/self/fd/0', 'json:{"driver":"raw"}', 'nbd://localhost/x',
            'nbd:localhost:10809', 'http://localhost/', 'file:///etc/passwd', 'file:/etc/passwd', 'in/..', '.', '', '/',
            'gone']


@case
def backing_names_are_not_followed():
    for name in names():
        if not name:
            continue
        for fmt in ('raw', 'qcow2'):
            disk('create', '-q', '-u', '-f', 'qcow2', '-b', name, '-F', fmt, 'in/image', '1M')
            refused('in/image', 'qcow2', 'in/image')
    disk('create', '-q', '-u', '-f', 'qcow2', '-b', '../out/base', '-F', 'qcow2', 'in/image', '1M')
    disk('map', '--allow-ref', 'out', '-f', 'qcow2', 'in/image')
    disk('create', '-q', '-u', '-f', 'qcow2', '-b', str(work / 'out/base'), '-F', 'qcow2', 'in/image', '1M')
    disk('map', '--allow-ref', 'out', '-f', 'qcow2', 'in/image')
    for name in ('fifo', 'json:{"driver":"raw"}', 'nbd://localhost/x', '/dev/zero', '/proc/self/environ', 'link'):
        disk('create', '-q', '-u', '-f', 'qcow2', '-b', name, '-F', 'raw', 'in/image', '1M')
        r = run('map', '--allow-ref', 'in', '--allow-ref', 'out', '-f', 'qcow2', 'in/image')
        assert r.returncode == 1, name


@case
def data_files_are_not_followed():
    disk('create', '-q', '-f', 'qcow2', '-o', 'data_file=0123456789abcdefghijklmnopqrstuvwxyz', 'df', '1M')
    good = pathlib.Path('df').read_bytes()
    at = good.index(b'0123456789abcdefghijklmnopqrstuvwxyz')
    assert int.from_bytes(good[at - 4:at], 'big') == 36
    for name in names():
        raw = name.encode()
        if len(raw) > 36:
            continue
        pathlib.Path('in/image').write_bytes(patched(good, (at - 4, be(len(raw)) + raw.ljust(36, b'\0'))))
        refused('in/image', 'qcow2', 'in/image')


@case
def extents_are_not_followed():
    for name in names():
        for kind in ('FLAT', 'SPARSE'):
            pathlib.Path('in/image').write_bytes(descriptor(f'RW 1 {kind} "{name}" 0'))
            refused('in/image', 'vmdk', 'in/image')
    pathlib.Path('in/image').write_bytes(descriptor('RW 2048 FLAT "../out/raw" 0'))
    refused('in/image', 'vmdk', '--allow-ref')
    disk('map', '--allow-ref', 'out', '-f', 'vmdk', 'in/image')
    parent = 'version=1\nCID=fffffffe\nparentCID=12345678\ncreateType="monolithicFlat"\nparentFileNameHint="{}"'
    for name in names():
        pathlib.Path('in/flat').write_bytes(bytes(MIB))
        pathlib.Path('in/image').write_bytes(descriptor('RW 2048 FLAT "flat" 0', head=parent.format(name)))
        refused('in/image', 'vmdk')


@case
def parent_locators_are_not_followed():
    names()
    for fmt in ('vpc', 'vhdx', 'vdi'):
        for f in ('in/child', 'out/parent'):
            pathlib.Path(f).unlink(missing_ok=True)
        disk('create', '-q', '-f', fmt, 'out/parent', '1M')
        disk('create', '-q', '-f', fmt, '-b', '../out/parent', '-F', fmt, 'in/child')
        refused('in/child', fmt, '--allow-ref')
        disk('map', '--allow-ref', 'out', '-f', fmt, 'in/child')
        os.symlink('../out/parent', 'in/parent')
        refused('in/child', fmt)
        os.unlink('in/parent')
        os.mkfifo('in/parent')
        refused('in/child', fmt)
        os.unlink('in/parent')


@case
def chains_in_circles_end():
    for fmt in ('qcow2', 'vmdk'):
        disk('create', '-q', '-f', fmt, 'c-a', '1M')
        disk('create', '-q', '-f', fmt, '-b', 'c-a', '-F', fmt, 'c-b')
        disk('create', '-q', '-f', fmt, '-b', 'c-b', '-F', fmt, 'c-c')
        os.rename('c-c', 'c-a')
        refused('c-a', fmt)
        refused('c-b', fmt)
        os.unlink('c-a')
        os.unlink('c-b')


if sys.argv[2:]:  # hostile.py HV WORD...: only the cases with one of these in their names
    cases = [fn for fn in cases if any(w in fn.__name__ for w in sys.argv[2:])]
failed = 0
try:
    print(f'1..{len(cases)}')
    for i, fn in enumerate(cases, 1):
        name = fn.__name__.replace('_', ' ')
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
    os.chdir('/')
    shutil.rmtree(work)
sys.exit(failed != 0)
