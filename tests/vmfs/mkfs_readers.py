#!/usr/bin/env python3
"""What the writer of test volumes makes, read by others' programs: mkfs_readers.py MKVMFS [--long].

debugvmfs (vmfs-tools: VMFS3 and VMFS5) and debugvmfs6 (vmfs6-tools: VMFS6), and dissect.vmfs where
Python has it.  Known limits of theirs are left out of the tables with a reason.  Prints TAP.
"""
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / 'mkfs'))
import fault  # noqa: E402
import lab  # noqa: E402

mkvmfs = os.path.abspath(sys.argv[1])
long = '--long' in sys.argv
os.environ['PATH'] += ':/usr/sbin:/sbin'  # where Debian keeps the readers
try:
    from dissect.vmfs.vmfs import VMFS as Dissect
except ImportError:
    Dissect = None

TREE = r'''mkdir /vm
mkdir /vm/deep
mkdir /vm/deep/er
file /vm/empty
file /vm/hello text="hello world\n"
file /vm/resident pattern=1 size=1000
file /vm/sub pattern=2 size=8000
file /vm/one-block pattern=3 size=70000
file /vm/direct pattern=4 size=5242885
file /vm/single pattern=5 size=40M layout=single
file /vm/scattered pattern=6 size=12M scatter
file /vm/deep/er/sparse size=450M piece=0:100:1 piece=299M:2M:2 piece=449M:1M:3
symlink /vm/link hello
fill /vm/deep count=700 prefix=x size=10
'''
SIX = r'''collide /vm/deep/er prefix=c count=60
file /vm/large size=514M piece=1M:70000:7l piece=513M:1M:8
'''

# name, version, format options, sizes, script
# fmt: off
SHAPES = [
    ('VMFS3', 3, '', ['1G'], TREE),
    ('VMFS3, file blocks of 8 MiB', 3, 'block=8M', ['1536M'], TREE),
    ('VMFS5', 5, '', ['1G'], TREE),
    ('VMFS5, not dense', 5, 'sparse-clusters', ['1G'], TREE),
    ('VMFS5, was VMFS3', 5, 'upgraded', ['1G'], TREE),
    ('VMFS5, file blocks of 2 MiB', 5, 'block=2M', ['1G'], TREE),
    ('VMFS5, a live host', 5, 'live', ['1G'], TREE),
    ('VMFS5, three extents', 5, '', ['256M', '512M', '256M'], TREE),
    ('VMFS5, partition in an MBR', 5, 'disk=mbr', ['1G'], TREE),
    ('VMFS5, after deletes', 5, '', ['1G'],
     TREE + 'delete /vm/direct grade=2\ndelete /vm/deep/er grade=3\nfile /vm/new pattern=9 size=9M reuse\n'),
    ('VMFS5, formatted twice', 5, '', ['1G'], TREE + 'format file=v0.img size=1G seed=2\n' + TREE),
    ('VMFS6', 6, '', ['2G'], TREE),
    ('VMFS6, hash collisions and large file blocks', 6, '', ['2560M'], TREE + SIX),
    ('VMFS6, not dense', 6, 'sparse-clusters', ['2G'], TREE),
    ('VMFS6, VMFS-L', 6, 'local', ['2G'], TREE),
    ('VMFS6, two extents', 6, '', ['512M', '1G'], TREE),
    ('VMFS6, after deletes', 6, '', ['2G'],
     TREE + 'delete /vm/direct grade=2\ndelete /vm/deep/er grade=3\nfile /vm/new pattern=9 size=9M reuse\n'),
]
# fmt: on

QUICK = ('VMFS5, three', 'VMFS6, hash')


class Skip(Exception):
    pass


def debugvmfs(vol, *args):
    tool = shutil.which('debugvmfs6' if vol.version == 6 else 'debugvmfs')
    if not tool:
        raise Skip('no vmfs-tools or vmfs6-tools here')
    r = subprocess.run([tool, *vol.images, *args], capture_output=True, timeout=300)
    assert r.returncode == 0, f'{args}: status {r.returncode}: {r.stderr[-300:]}'
    out = r.stdout
    while out.startswith(b'VMFS version: 6\n'):  # vmfs6-tools says it once per extent
        out = out[16:]
    return out


def hidden(vol, f):
    """Files that these readers are known to read wrongly, or not."""
    if vol.version == 6:
        if f['large_blocks']:
            return 'vmfs6-tools knows no large file blocks'
        if f['path'] == '/vm/deep/er/sparse' and f['zla'] == 1:
            return 'vmfs6-tools ends an address array at its first hole'
    return None


def expected_entries(vol, path):
    base = path.rstrip('/') + '/'
    return {'.', '..'} | {f['path'][len(base):] for f in vol.manifest['files']
                          if f['path'].startswith(base) and '/' not in f['path'][len(base):] and
                          not f['deleted'] and f['path'] != '/'}


def check_listing(vol, path):
    names = set(debugvmfs(vol, 'ls', path).decode().splitlines())
    names -= {''}  # VMFS3/5: a deleted record has lost its descriptor, not always its name
    gone = {f['path'].rsplit('/', 1)[1] for f in vol.files('file', 'dir', 'symlink', deleted=True)}
    want = expected_entries(vol, path)
    assert names - gone == want - gone, f'{path}: {sorted(names ^ want)[:6]}'


def check_file(vol, f):
    got = debugvmfs(vol, 'cat', f['path'])
    assert len(got) == f['size'], f"{f['path']}: {len(got)} bytes, not {f['size']}"
    assert hashlib.sha256(got).hexdigest() == f['sha256'], f"{f['path']}: other bytes"


def listed(vol):
    """All files of interest, and a few of the many."""
    some = [f for f in vol.files(deleted=False) if '/x' not in f['path'] and '/c' not in f['path']]
    many = [f for f in vol.files(deleted=False) if '/x' in f['path'] or '/c' in f['path']]
    return some + many[::97]


def read_back(vol):
    for d in vol.files('dir', deleted=False):
        check_listing(vol, d['path'])
    for f in listed(vol):
        if not hidden(vol, f):
            check_file(vol, f)


def extents_hold(vol):
    """The manifest is right by itself: what it says where is there."""
    for f in vol.files('file', 'symlink', deleted=False):
        if f['size'] < 64 << 20:
            assert hashlib.sha256(vol.content(f)).hexdigest() == f['sha256'], f['path']


def dissect(vol):
    if not Dissect:
        raise Skip('no dissect.vmfs here')
    fs = Dissect([open(p, 'rb') for p in vol.images])
    for f in listed(vol):
        h = hashlib.sha256()
        with fs.get(f['path']).open() as fh:
            for chunk in iter(lambda: fh.read(1 << 20), b''):
                h.update(chunk)
        assert h.hexdigest() == f['sha256'], f['path']


def deleted_intact(vol):
    """Nothing but what the grade says is gone: contents of deleted files are where they were."""
    for f in vol.files(deleted=True):
        if f['damage'] or f['size'] > 64 << 20:
            continue
        if f['zla'] == 0x10D1 and f['grade'] == 3:
            continue
        assert hashlib.sha256(vol.content(f)).hexdigest() == f['sha256'], f['path']


def grades(vol, grade):
    for f in vol.files(deleted=True):
        fd = vol.read(f['fd_at'], vol.manifest['fd_size'])
        if grade == 3:
            assert not any(fd), f['path']
            continue
        meta = fd[4096:] if vol.version == 6 else fd[512:]
        assert int.from_bytes(meta[0x14:0x1C], 'little') == f['size'], f['path']
        array = fd[0x1600:] if vol.version == 6 else fd[0x400:]
        if f['zla'] != 0x10D1:
            assert any(array) == (grade == 1), f['path']
        for pb in f['pointer_blocks']:
            assert any(vol.read(pb, 4096)), f"{f['path']}: pointer block"


def hash_vectors(_):
    out = subprocess.run([mkvmfs, 'hash', 'file1', 'file2', 'file5', 'symlink', 'directory'], check=True,
                         capture_output=True, text=True).stdout.split()
    assert (out[2], out[6], out[10], out[14], out[19]) == ('4348', '14444', '8954', '6767', '15490'), out
    assert int(out[1], 16) & 0xFFFFFFFF == 0xD2B970EB, out[1]


count = bad = 0


def test(name, fn, *args):
    global count, bad
    count += 1
    try:
        fn(*args)
        print(f'ok {count} - {name}', flush=True)
    except Skip as e:
        print(f'ok {count} - {name} # SKIP {e}', flush=True)
    except (AssertionError, subprocess.SubprocessError, KeyError) as e:
        bad += 1
        print(f'not ok {count} - {name}\n# {e}', flush=True)


def main():
    work = pathlib.Path(tempfile.mkdtemp())
    test('hash of names: vectors of real volumes', hash_vectors, None)
    try:
        for i, (name, version, options, sizes, script) in enumerate(SHAPES):
            if not long and not name.startswith(QUICK):
                continue
            files = ' '.join(f'file=v{j}.img size={s}' for j, s in enumerate(sizes))
            vol = lab.make(mkvmfs, work / str(i), f'format version={version} {options} {files}\n' + script)
            test(f'{name}: the manifest holds', extents_hold, vol)
            test(f'{name}: independent reader', read_back, vol)
            test(f'{name}: dissect.vmfs', dissect, vol)
            if 'delete' in script:
                test(f'{name}: what is deleted is there', deleted_intact, vol)
            shutil.rmtree(work / str(i))
        for version in (3, 5, 6):
            for grade in (1, 2, 3):
                at = work / f'g{version}{grade}'
                vol = lab.make(mkvmfs, at, fault.scenario('F14', version, grade=grade))
                test(f'VMFS{version}: a deleted directory of grade {grade}', grades, vol, grade)
                shutil.rmtree(at)
    finally:
        shutil.rmtree(work)
    print(f'1..{count}')
    sys.exit(bad > 0)


main()
