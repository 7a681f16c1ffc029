#!/usr/bin/env python3
"""The faults do what they say, and the writer refuses what is wrong: mkfs_faults.py MKVMFS.

Each fault of mkfs/fault.py changes its ranges and nothing else; scripts with mistakes end with one
line and status 1.  Prints TAP.
"""
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
MORE = {'F7': [{}, {'part': 'header'}, {'part': 'map'}, {'part': 'dirent'}], 'F10': [{}, {'cluster': 'all'}],
        'F18': [{'how': h} for h in ('flip', 'cycle', 'range', 'duplicate')],
        'F21': [{'how': h} for h in fault.HOSTILE]}
FORMAT = 'format file=v.img size=256M version=5\n'
# fmt: off
WRONG = [
    ('', "no 'format' line"),
    ('mkdir /a\n', "'format' comes first"),
    ('frobnicate\n', 'not a command'),
    ('format file=v.img version=4\n', '3, 5 or 6'),
    ('format file=v.img version=6 block=2M\n', '1 MiB only'),
    (FORMAT + 'file /a/b\n', 'does not exist'),
    (FORMAT + 'file /a pattern=1 size=10X\n', 'not a number'),
    (FORMAT + 'file /a colour=red\n', 'not known here'),
    (FORMAT + 'file /a text="never closed\n', 'quote'),
    (FORMAT + 'file /a pattern=1 size=2000 layout=resident\n', 'cannot have this layout'),
    (FORMAT + 'file /a pattern=1 size=300M\n', 'full'),
    (FORMAT + 'file /a host=/nonexistent/file\n', 'No such file'),
    (FORMAT + 'delete /a\n', 'not found'),
    (FORMAT + 'delete /.fbb.sf\n', 'stay'),
    (FORMAT + 'mkdir /a\ndelete /a grade=4\n', 'grade is 1, 2 or 3'),
]
# fmt: on
count = bad = 0


def test(name, fn, *args):
    global count, bad
    count += 1
    try:
        fn(*args)
        print(f'ok {count} - {name}', flush=True)
    except (AssertionError, subprocess.SubprocessError, KeyError, ValueError) as e:
        bad += 1
        print(f'not ok {count} - {name}\n# {e}', flush=True)


def data_segments(f):
    """[(from, to)...] that are not holes."""
    out, at, end = [], 0, os.fstat(f.fileno()).st_size
    while at < end:
        try:
            a = os.lseek(f.fileno(), at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(f.fileno(), a, os.SEEK_HOLE)
        out.append((a, at))
    return out


def differences(old, new):
    """Offsets of the 512-byte sectors in which two files differ; a shorter new one ends the look."""
    out = set()
    with open(old, 'rb') as f, open(new, 'rb') as g:
        size = os.fstat(g.fileno()).st_size
        for a, b in data_segments(f) + data_segments(g):
            for at in range(a, min(b, size), 1 << 16):
                n = min(1 << 16, b - at, size - at)
                x, y = os.pread(f.fileno(), n, at), os.pread(g.fileno(), n, at)
                if x != y:
                    out |= {at + i for i in range(0, n, 512) if x[i:i + 512] != y[i:i + 512]}
    return out


def check_fault(vol, work, name, params):
    copy = vol.copy(work)
    try:
        said = fault.apply(name, copy, **params)
        if name == 'F17':
            assert said['bad_sectors'] and not said['ranges'], said
        if name == 'F20':
            assert not os.path.exists(copy.images[1]) and os.path.exists(copy.images[0])
            return
        for i, (old, new) in enumerate(zip(vol.images, copy.images)):
            mine = [(at, at + n) for e, at, n in said['ranges'] if e == i]
            seen = differences(old, new)
            assert all(any(a - 511 <= s < b for a, b in mine) for s in seen), f'damage beyond {mine}'
            if name == 'F16' and i == 0:
                assert os.path.getsize(new) == mine[0][0] < os.path.getsize(old)
            elif name not in ('F16', 'F17') and mine and i == 0:
                assert seen, 'nothing is damaged'
    finally:
        shutil.rmtree(copy.directory)


def refused(work, script, words):
    r = subprocess.run([mkvmfs, '-'], input=script, cwd=work, capture_output=True, text=True, timeout=120)
    assert r.returncode == 1 and words in r.stderr and r.stderr.count('\n') == 1, f'{r.returncode}: {r.stderr!r}'


def main():
    with tempfile.TemporaryDirectory() as d:
        work = pathlib.Path(d)
        for script, words in WRONG:
            test(f'refused: {words}', refused, work, script, words)
        for version in (5, 6):
            script = fault.head(version, ['512M', '256M'], 'v') + fault.base(2 << 20)
            vol = lab.make(mkvmfs, work / f'{version}', script)
            for name in fault.FAULTS:
                for params in MORE.get(name, [{}]):
                    if version == 5 and params.get('part'):
                        continue
                    if version == 5 and params.get('how') in ('mdalign0', 'mdalign'):
                        continue
                    what = ' '.join([name, *map(str, params.values())])
                    test(f'VMFS{version} {what}', check_fault, vol, 'copy', name, params)
    print(f'1..{count}')
    return bad > 0


sys.exit(main())
