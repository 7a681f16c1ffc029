"""Volumes for Python's tests: make one with mkvmfs, copy it, or describe one that ESXi made.

    import lab
    vol = lab.make(mkvmfs, directory, script)      # script: see mkvmfs --help; files relative to it
    copy = vol.copy('damaged')                     # sparse copies of the images
    f = copy.file('/vm/disk-flat.vmdk')            # its record in the manifest
    lab.real(path)                                 # a Volume of a bare image, from its own metadata

A Volume has .manifest (the JSON that mkvmfs wrote) and .images (paths of the extents).
"""
import copy
import json
import os
import pathlib
import struct
import subprocess

LVM_DATA = 0x1100000
SYSTEM = {'.fbb.sf': 0x400004, '.fdc.sf': 0x800004, '.pbc.sf': 0xC00004, '.sbc.sf': 0x1000004,
          '.vh.sf': 0x1400004, '.pb2.sf': 0x1800004, '.sdd.sf': 0x1C00004, '.jbc.sf': 0x2000004}


class Volume:
    def __init__(self, directory, manifest):
        self.directory = pathlib.Path(directory)
        self.manifest = manifest

    @property
    def images(self):
        return [str(self.directory / e['file']) for e in self.manifest['extents']]

    @property
    def version(self):
        return self.manifest['version']

    def file(self, path, deleted=None, older=False):
        m = self.manifest['older'] if older else self.manifest
        for f in m['files']:
            if f['path'] == path and deleted in (None, f['deleted']):
                return f
        raise KeyError(path)

    def files(self, *types, deleted=None):
        types = types or ('file',)
        return [f for f in self.manifest['files']
                if f['type'] in types and deleted in (None, f['deleted'])]

    def resource(self, name):
        return next(r for r in self.manifest['resources'] if r['name'] == name)

    def copy(self, name):
        to = self.directory.parent / name
        to.mkdir()
        for e in self.manifest['extents']:
            subprocess.run(['cp', '--sparse=always', '--reflink=auto', self.directory / e['file'],
                            to / e['file']], check=True)
        return Volume(to, copy.deepcopy(self.manifest))

    def read(self, place, length):
        """Bytes at a place of the manifest: {'extent', 'dev'}."""
        e = self.manifest['extents'][place['extent']]
        with open(self.directory / e['file'], 'rb') as f:
            f.seek(e['partition_offset'] + place['dev'])
            return f.read(length)

    def content(self, record):
        """A file's bytes from its extents, without any file system: what recovery must find."""
        out = bytearray(record['size'])
        for off, length, _, extent, dev in record['extents']:
            out[off:off + length] = self.read({'extent': extent, 'dev': dev}, length)
        for p in record.get('pieces', []):
            if p['tbz']:
                out[p['off']:p['off'] + p['len']] = bytes(p['len'])
        return bytes(out)


def make(mkvmfs, directory, script):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'script').write_text(script)
    subprocess.run([os.path.abspath(mkvmfs), 'script', '-m', 'manifest.json'], cwd=directory, check=True,
                   timeout=600)
    return Volume(directory, json.loads((directory / 'manifest.json').read_text()))


def bench_script(version, files=500000, size='20G', name='bench.img'):
    """A volume with files descriptors, as many directory entries and some pointer blocks: with half a
    million files there are a million metadata records.  Sparse: VMFS5 takes 1 GiB, VMFS6 4 GiB.
    """
    dirs = 16
    lines = [f'format version={version} size={size} file={name}']
    for i in range(dirs):
        lines += [f'mkdir /d{i}', f'fill /d{i} count={files // dirs} prefix=file-{i}-']
    pieces = ' '.join(f'piece={i << 20}:4096:{i + 1}' for i in range(0, 2000, 17))
    return '\n'.join(lines) + f'\nmkdir /vm\nfile /vm/vm-flat.vmdk size=4G {pieces}\n'


def place(vol):
    return {'vol': vol, 'extent': 0, 'dev': LVM_DATA + vol}


class Real:
    """Just enough of a reader to say where an undamaged bare volume has its metadata."""

    def __init__(self, path):
        self.f = open(path, 'rb')
        sb = self.read(0x200000, 0x1000)
        self.major, = struct.unpack_from('<I', sb, 4)
        self.six = self.major >= 24
        self.block, = struct.unpack_from('<Q', sb, 0xA1)
        self.md, = struct.unpack_from('<I', sb, 0x134) if self.six else (512,)
        self.cpg, = struct.unpack_from('<I', sb, 0xD5)
        self.dense = bool(struct.unpack_from('<I', sb, 0x19)[0] & 4)
        self.fd_size = 2 * self.md if self.six else 2048
        base = ((self.md << 10) + 0x3FFFFF) & ~0xFFFFF if self.six else self.block * (
            (self.block + 0x3FFFFF) // self.block)
        self.fd0 = base + 0x10000 + self.cpg * (2 * self.md)

    def read(self, vol, length):
        self.f.seek(LVM_DATA + vol)
        return self.f.read(length)

    def fd_vol(self, addr):
        """Good for the descriptors of the first cluster, where all system files are."""
        assert addr >> 6 & 0xFFFF == 0
        return self.fd0 + (addr >> 22) * self.fd_size

    def fd(self, addr):
        vol = self.fd_vol(addr)
        raw = self.read(vol, self.fd_size)
        meta = raw[self.md:] if self.six else raw[0x200:]
        f = {'fd': addr, 'fd_at': place(vol), 'type': struct.unpack_from('<I', meta, 12)[0],
             'size': struct.unpack_from('<Q', meta, 0x14)[0], 'zla': struct.unpack_from('<I', meta, 0x44)[0]}
        f['addresses'] = (struct.unpack_from('<320Q', raw, 0x1600) if self.six else
                          struct.unpack_from('<256I', raw, 0x400))
        return f

    def block_vol(self, a):
        if self.six:
            return ((a >> 15 & 0x7FFFFFFF) * 512 + (a >> 51)) * self.block
        return (a >> 6) * self.block

    def extents(self, f):
        return [[i * self.block, min(self.block, f['size'] - i * self.block), self.block_vol(a), 0,
                 LVM_DATA + self.block_vol(a)]
                for i, a in enumerate(f['addresses']) if a and a & 7 == 1 and i * self.block < f['size']]

    def resource(self, name):
        f = self.fd(SYSTEM[name])
        first = self.block_vol(f['addresses'][0])
        if f['zla'] == 5:  # mapped through .pb2.sf, whose first resource is at 0x20000
            pb2 = self.block_vol(self.fd(SYSTEM['.pb2.sf'])['addresses'][0])
            first = self.block_vol(struct.unpack('<Q', self.read(pb2 + 0x20000, 8))[0])
        rpc, cpg, off, _, _, num = struct.unpack('<6I', self.read(first, 24))
        hdr = 2 * self.md
        step = off + cpg * hdr if self.six and name == '.fbb.sf' else off
        clusters = min((num + rpc - 1) // rpc if rpc else 0, cpg)
        return {'name': name, 'fd': f['fd'], 'header': place(first), 'resources': num, 'per_cluster': rpc,
                'cluster_header_size': hdr,
                'cluster_headers': [place(first + step + c * hdr) for c in range(clusters)]}


def real(path):
    r = Real(path)
    version = 6 if r.six else 5 if r.major == 14 else 3
    names = [n for n in SYSTEM if (n != '.jbc.sf' or r.six) and (version > 3 or n not in ('.pb2.sf', '.sdd.sf'))]
    files = []
    for path_, addr in [('/', 4)] + [('/' + n, SYSTEM[n]) for n in names]:
        f = r.fd(addr)
        files.append({'path': path_, 'type': 'dir' if addr == 4 else 'system', 'deleted': False, 'fd': addr,
                      'fd_at': f['fd_at'], 'size': f['size'], 'extents': r.extents(f)})
    size = os.path.getsize(path)
    return Volume(os.path.dirname(os.path.abspath(path)), {
        'version': version, 'block_size': r.block, 'fd_size': r.fd_size, 'md_alignment': r.md if r.six else 0,
        'dense': r.dense, 'extents': [{'file': os.path.basename(path), 'partition_offset': 0,
                                       'partition_size': size, 'volume_offset': 0, 'length': size - LVM_DATA}],
        'files': files,
        'resources': [r.resource(n) for n in names if n not in ('.vh.sf', '.sdd.sf')]})
