#!/usr/bin/env python3
"""mkvmfs-fault: damage a volume in one of the ways a rescue must survive.

    fault.py FAULT MANIFEST [KEY=VALUE]...   prints as JSON what was damaged

F1  LVM header                        extent=N|all
F2  LVM header, volume and PE tables  extent=N|all
F3  superblock
F4  heartbeats
F5  first 20 MiB of the partition     size=BYTES extent=N|all
F6  root's file descriptor
F7  root directory's data             part=all|header|map|dirent (the last three: VMFS6)
F8  header of .fdc.sf
F9  descriptor of .fdc.sf
F10 FDC cluster headers               cluster=N|all
F11 headers of resource files         which=.fbb.sf,.sbc.sf,.pbc.sf,.pb2.sf
F12 a sub-directory's data            path=/vm part=all|header|map|dirent
F16 truncated image                   at=BYTES|mid (mid: in the middle of the largest file) extent=N
F17 unreadable sectors: changes nothing, "bad_sectors" lists [extent, first, count] of 512 bytes
                                      count=N seed=N
F18 entries of a pointer block        path=FILE how=flip|cycle|range|duplicate seed=N count=N
F20 an extent is missing              extent=N (1): its file is renamed to NAME.missing
F21 hostile values                    how=length|pbself|loop|entries|mdalign0|mdalign|rpc0 path=FILE

F13 (deleted files), F14 (a deleted VM), F15 (overwritten after a delete) and F19 (a quick format
over an old volume) are written by mkvmfs: delete, file ... reuse and a second format; scenario()
returns such scripts.  "ranges" of the answer: [extent, offset in its file, length].
"""
import json
import os
import pathlib
import random
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lab  # noqa: E402

ALL = [f'F{i}' for i in range(1, 22)]
BY_SCRIPT = ('F13', 'F14', 'F15', 'F19')


class Damage:
    """Writes into the images and remembers where."""

    def __init__(self, vol):
        self.vol = vol
        self.ranges = []

    def file_of(self, extent):
        return self.vol.directory / self.vol.manifest['extents'][extent]['file']

    def write(self, extent, dev, data):
        e = self.vol.manifest['extents'][extent]
        at = e['partition_offset'] + dev
        with open(self.file_of(extent), 'r+b') as f:
            f.seek(at)
            f.write(data)
        self.ranges.append([extent, at, len(data)])

    def zero(self, place, length):
        while length > 0:
            n = min(length, 1 << 20)
            self.write(place['extent'], place['dev'], bytes(n))
            place = dict(place, dev=place['dev'] + n)
            length -= n

    def zero_vol(self, vol, length):
        self.zero(self.place(vol), length)

    def place(self, vol):
        for i, e in enumerate(self.vol.manifest['extents']):
            if e['volume_offset'] <= vol < e['volume_offset'] + e['length']:
                return {'vol': vol, 'extent': i, 'dev': lab.LVM_DATA + vol - e['volume_offset']}
        raise ValueError(f'{vol:#x} is beyond the volume')

    def put(self, place, off, data):
        self.write(place['extent'], place['dev'] + off, data)


def six(d):
    return d.vol.version == 6


def sector(d):
    return 4096 if six(d) else 512


def chosen(d, extent):
    if extent in (None, 'all'):
        return range(len(d.vol.manifest['extents']))
    return [int(extent)]


def lvm_header(d, extent=None):
    for i in chosen(d, extent):
        d.zero({'extent': i, 'dev': 0x100000}, sector(d))


def lvm_tables(d, extent=None):
    for i in chosen(d, extent):
        d.zero({'extent': i, 'dev': 0x100000}, 0x200000)


def superblock(d):
    d.zero_vol(0x200000, sector(d))


def heartbeats(d):
    d.zero_vol(0x300000, (4 if six(d) else 1) << 20)


def first_part(d, size=20 << 20, extent=None):
    for i in chosen(d, extent):
        d.zero({'extent': i, 'dev': 0}, int(size))


def root_fd(d):
    d.zero(d.vol.file('/')['fd_at'], d.vol.manifest['fd_size'])


def directory(d, path, part='all'):
    rec = d.vol.file(path)
    a, b = {'all': (0, rec['size']), 'header': (0, 0x10000), 'map': (0x10000, 0x11000),
            'dirent': (0x11000, rec['size'])}[part]
    if part != 'all' and not six(d):
        raise ValueError(f'part={part} is of VMFS6')
    for off, length, _, extent, dev in rec['extents']:
        lo, hi = max(a, off), min(b, off + length)
        if lo < hi:
            d.zero({'extent': extent, 'dev': dev + lo - off}, hi - lo)


def root_data(d, part='all'):
    directory(d, '/', part)


def resource_header(d, name):
    # On VMFS6 the header of .fbb.sf is two: the child's follows at 0x1000.
    d.zero(d.vol.resource(name)['header'], 0x2000 if six(d) else 512)


def fdc_header(d):
    resource_header(d, '.fdc.sf')


def fdc_fd(d):
    d.zero(d.vol.file('/.fdc.sf')['fd_at'], d.vol.manifest['fd_size'])


def fdc_clusters(d, cluster=0):
    r = d.vol.resource('.fdc.sf')
    for i, place in enumerate(r['cluster_headers']):
        if cluster == 'all' or int(cluster) == i:
            d.zero(place, r['cluster_header_size'])


def other_headers(d, which='.fbb.sf,.sbc.sf,.pbc.sf,.pb2.sf'):
    have = {r['name'] for r in d.vol.manifest['resources']}
    for name in which.split(','):
        if name in have:
            resource_header(d, name)


def sub_directory(d, path=None, part='all'):
    if path is None:
        path = next(f['path'] for f in d.vol.files('dir', deleted=False) if f['path'] != '/')
    directory(d, path, part)


def truncated(d, at='mid', extent=0):
    e = d.vol.manifest['extents'][int(extent)]
    if at == 'mid':
        f = max(d.vol.files(deleted=False), key=lambda f: sum(x[1] for x in f['extents']))
        last = [x for x in f['extents'] if x[3] == int(extent)][-1]
        at = e['partition_offset'] + last[4] + last[1] // 2 // 512 * 512
    path = d.file_of(int(extent))
    size = path.stat().st_size
    os.truncate(path, int(at))
    d.ranges.append([int(extent), int(at), size - int(at)])


def bad_sectors(d, count=64, seed=1):
    rng = random.Random(int(seed))
    out = []
    for _ in range(int(count)):
        e = rng.randrange(len(d.vol.manifest['extents']))
        n = rng.choice((1, 1, 1, 8, 128))
        out.append([e, rng.randrange(d.file_of(e).stat().st_size // 512 - n), n])
    return {'bad_sectors': sorted(out)}


def with_pointers(d, path):
    for f in d.vol.files(deleted=None):
        if f.get('pointer_blocks') and path in (None, f['path']):
            return f
    raise ValueError('no file with pointer blocks')


def pointer_entries(d, path=None, how='flip', seed=1, count=4):
    rng = random.Random(int(seed))
    f = with_pointers(d, path)
    pb, fmt = f['pointer_blocks'][0], '<Q' if six(d) else '<I'
    width = struct.calcsize(fmt)
    used = [i for i in range(65536 // 8 if six(d) else 1024) if any(d.vol.read(pb, 65536 if six(d) else 4096)[
        i * width:(i + 1) * width])]
    raw = d.vol.read(pb, 65536 if six(d) else 4096)
    entries = []
    for i in rng.sample(used, min(int(count), len(used))):
        v, = struct.unpack_from(fmt, raw, i * width)
        v = {'flip': v ^ 1 << rng.randrange(8 * width), 'cycle': own_address(d, pb),
             'range': v | (0x7FFFFF00 << 15 if six(d) else 0xFFFFFC0 << 4),
             'duplicate': struct.unpack_from(fmt, raw, rng.choice([u for u in used if u != i] or [i]) * width)[0]}[how]
        d.put(pb, i * width, struct.pack(fmt, v))
        entries.append(i)
    return {'path': f['path'], 'entries': sorted(entries)}


def own_address(d, pb):
    """An address of a pointer block's kind that names cluster 0, resource 0: a pointer to pointers."""
    return 2 if six(d) else 3


def missing(d, extent=1):
    path = d.file_of(int(extent))
    path.rename(path.with_name(path.name + '.missing'))
    return {'missing': [int(extent)]}


def meta_of(d, f):
    return dict(f['fd_at'], dev=f['fd_at']['dev'] + (4096 if six(d) else 512))


def hostile_length(d, path):
    f = d.vol.file(path) if path else d.vol.files(deleted=False)[0]
    d.put(meta_of(d, f), 0x14, struct.pack('<Q', 0x7FFFFFFFFFFFFFFF))


def hostile_pbself(d, path):
    """The descriptor's first pointer block is pointed at from within itself, as double indirect."""
    f = with_pointers(d, path)
    fmt, at = ('<Q', 0x1600 - 4096) if six(d) else ('<I', 0x400 - 512)
    width = struct.calcsize(fmt)
    meta = meta_of(d, f)
    addr = d.vol.read(dict(meta, dev=meta['dev'] + at), width)
    d.put(meta, 0x44, struct.pack('<I', 0x10D0))
    d.put(f['pointer_blocks'][0], 0, addr * 64)


def hostile_loop(d, path):
    """A sub-directory's entry in its parent becomes the parent: its first child is itself."""
    f = d.vol.file(path) if path else next(x for x in d.vol.files('dir', deleted=False) if x['path'] != '/')
    first = f['extents'][0]
    off, size = (0x11000 + 64, 0x120) if six(d) else (2 * 140, 140)
    for o, length, _, extent, dev in f['extents']:
        if o <= off < o + length:
            first = (o, length, None, extent, dev)
    d.put({'extent': first[3], 'dev': first[4] + off - first[0]}, 0, struct.pack('<II', 2, f['fd']))


def hostile_entries(d, path):
    f = d.vol.file(path) if path else d.vol.file('/')
    e = f['extents'][0]
    if six(d):
        d.put({'extent': e[3], 'dev': e[4]}, 4, struct.pack('<II', 0xFFFFFFFF, 0xFFFFFFFF))
    else:
        d.put(meta_of(d, f), 0x14, struct.pack('<Q', 140 << 32))


def hostile(d, how='length', path=None):
    super_ = d.place(0x200000)
    if how == 'mdalign0':
        d.put(super_, 0x134, struct.pack('<I', 0))
    elif how == 'mdalign':
        d.put(super_, 0x134, struct.pack('<I', 0x80000000))
    elif how == 'rpc0':
        for r in d.vol.manifest['resources']:
            d.put(r['header'], 0, struct.pack('<I', 0))
    else:
        {'length': hostile_length, 'pbself': hostile_pbself, 'loop': hostile_loop,
         'entries': hostile_entries}[how](d, path)


FAULTS = {'F1': lvm_header, 'F2': lvm_tables, 'F3': superblock, 'F4': heartbeats, 'F5': first_part, 'F6': root_fd,
          'F7': root_data, 'F8': fdc_header, 'F9': fdc_fd, 'F10': fdc_clusters, 'F11': other_headers,
          'F12': sub_directory, 'F16': truncated, 'F17': bad_sectors, 'F18': pointer_entries, 'F20': missing,
          'F21': hostile}
HOSTILE = ('length', 'pbself', 'loop', 'entries', 'mdalign0', 'mdalign', 'rpc0')


def apply(fault, vol, **params):
    """Damage a lab.Volume in place; returns {'fault', 'ranges', ...}."""
    d = Damage(vol)
    more = FAULTS[fault](d, **params) or {}
    return {'fault': fault, 'params': params, 'ranges': d.ranges, **more}


def head(version, extents, name, seed=1):
    sizes = ' '.join(f'file={name}{i}.img size={size}' for i, size in enumerate(extents))
    return f'format version={version} seed={seed} {sizes}\n'


VM = r'''mkdir /vm
file /vm/vm.vmx text=".encoding = \"UTF-8\"\nconfig.version = \"8\"\nvirtualHW.version = \"19\"\nscsi0.present = \"TRUE\"\nscsi0:0.fileName = \"vm.vmdk\"\n"
file /vm/vm.vmdk text="# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n# Extent description\nRW {sectors} VMFS \"vm-flat.vmdk\"\n\nddb.adapterType = \"lsilogic\"\nddb.virtualHWVersion = \"19\"\n"
file /vm/vm-flat.vmdk pattern=77 size={size} layout=single
file /vm/vm.nvram piece=0:8684:78
file /vm/vmware.log text="2021-08-11T07:35:49.000Z| vmx| Log for VMware ESX\nvm.vmdk\n"
'''


def base(size=24 << 20):
    """The tree that the scenarios and the fault matrix share."""
    return (VM.format(size=size, sectors=size // 512) +
            'mkdir /iso\nfile /iso/small text="small\\n"\nfile /iso/sub pattern=5 size=8000\n'
            'file /iso/direct pattern=6 size=3M\nsymlink /iso/link small\n')


def scenario(fault, version, extents=('768M',), grade=1, unmap=False, name='v', reuse='reuse-blocks'):
    """The script of a volume for F13, F14, F15, F19; of an undamaged one with base() otherwise.

    F15's new file takes blocks of the deleted one; with reuse='reuse' also its descriptor.
    """
    script = head(version, extents, name) + base()
    u = ' unmap' if unmap else ''
    if fault == 'F13':
        return script + f'delete /iso/direct grade={grade}{u}\ndelete /vm/vm-flat.vmdk grade={grade}{u}\n'
    if fault == 'F14':
        return script + f'delete /vm grade={grade}{u}\n'
    if fault == 'F15':
        return script + f'delete /vm/vm-flat.vmdk grade={grade}{u}\nfile /iso/new pattern=99 size=5M {reuse}\n'
    if fault == 'F19':
        return script + head(version, extents, name, seed=2) + 'mkdir /new\nfile /new/file pattern=9 size=2M\n'
    return script


def main():
    if len(sys.argv) < 3 or sys.argv[1] in ('-h', '--help'):
        print(__doc__)
        return 0 if len(sys.argv) > 1 and sys.argv[1] in ('-h', '--help') else 2
    manifest = pathlib.Path(sys.argv[2])
    vol = lab.Volume(manifest.parent, json.loads(manifest.read_text()))
    if sys.argv[1] not in FAULTS:
        print(f'fault.py: {sys.argv[1]} is not applied to a finished volume; see --help', file=sys.stderr)
        return 2
    print(json.dumps(apply(sys.argv[1], vol, **dict(a.split('=', 1) for a in sys.argv[3:]))))
    return 0


if __name__ == '__main__':
    sys.exit(main())
