#!/usr/bin/env python3
"""Every writable format to every other: matrix.py HV [--long]

The formats and their subformats come from `hv disk formats --json`.  Each image we make is compared
with its source by us, by qemu-img and by another reader where there is one, and checked; each image
qemu-img makes is read back by us.  The short run takes every variant from raw, to raw and to the
next variant; the long one every pair, more contents, and disks beyond 2 TiB.  Prints TAP.
"""
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

hv = os.path.abspath(sys.argv[1])
is_long = '--long' in sys.argv
rng = random.Random(11)
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
count = failures = 0
shown = []


def run(*command):
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=900)
    return r.returncode, (r.stdout + r.stderr).strip()


def result(ok, name, why=''):
    global count, failures
    count += 1
    if not ok:
        failures += 1
        print('\n'.join('# ' + line for line in why.splitlines()[:8]))
    print(f'{"ok" if ok else "not ok"} {count} - {name}', flush=True)


# ---- what to make ----

class Variant:
    """A way to make an image: a format and its options; extra: words for convert; cap: largest size."""

    def __init__(self, name, fmt, options='', extra=(), cap=8 * TIB, qemu=True, qemu_options=None):
        self.name, self.format, self.extra, self.cap, self.qemu = name, fmt, list(extra), cap, qemu
        self.options = ['-o', options] if options else []
        q = options if qemu_options is None else qemu_options
        self.qemu_options = ['-o', q] if q else []


# What is worth a row besides the subformats.  (format, options, words for convert)
MORE = [
    ('qcow2', 'compat=0.10', []), ('qcow2', 'cluster_size=2M', []), ('qcow2', 'extended_l2=on', []),
    ('qcow2', '', ['-c']), ('qcow2', 'compression_type=zstd', ['-c']), ('qcow2', 'preallocation=metadata', []),
    ('qcow2', 'refcount_bits=1', []), ('qcow2', 'lazy_refcounts=on', []), ('raw', 'preallocation=falloc', []),
    ('vdi', 'static=on', []),
]
LONG_MORE = [('qcow2', 'cluster_size=512', []), ('qcow2', 'refcount_bits=64', []),
             ('qcow2', 'cluster_size=4k', ['-c']), ('qcow2', 'preallocation=full', [])]
CAPS = {'vpc': 2040 * GIB, 'vmfsSparse': 2 * TIB - 512}
FULL = ('fixed', 'static=on', 'Flat', 'preallocation=f', 'vmfs')  # as large on the host as the disk, or nearly


def variants():
    code, out = run(hv, 'disk', 'formats', '--json')
    out = [] if code else json.loads(out)
    made = [f for f in out if f['create'] and f['write']]
    found = []
    for f in made:
        subs = next((o['value'].split('|') for o in f['options'] if o['key'] == 'subformat'), None)
        for sub in subs or ['']:
            fixed = f['name'] == 'vpc' and 'force_size' in [o['key'] for o in f['options']]
            words = [f'subformat={sub}'] if sub else []
            if fixed:
                words.append('force_size=on')  # else the size is rounded to a geometry
            found.append(Variant(f['name'] + (f' {sub}' if sub else ''), f['name'], ','.join(words),
                                 cap=CAPS.get(sub, CAPS.get(f['name'], 8 * TIB)),
                                 qemu=sub not in ('vmfs', 'vmfsThin', 'vmfsSparse', 'seSparse')))
    for fmt, options, extra in MORE + (LONG_MORE if is_long else []):
        keys = [o['key'] for f in made if f['name'] == fmt for o in f['options']]
        if any(f['name'] == fmt for f in made) and all(o.split('=')[0] in keys for o in options.split(',') if o):
            cap = 1 * GIB if 'cluster_size=512' in options or any(w in options for w in FULL) else 8 * TIB
            found.append(Variant(' '.join([fmt, options, *extra]).strip(), fmt, options, extra, cap))
    return found


# ---- contents ----

def fill(path, size, pieces):
    with open(path, 'wb') as f:
        f.truncate(size)
        for off, data in pieces:
            f.seek(off)
            f.write(data[:max(0, size - off)])


def contents(work):
    """(name, path, size)"""
    text = b' '.join(rng.choices([b'alpha', b'beta', b'gamma', b'delta', b'zero'], k=400000))
    mixed = [(0, rng.randbytes(300 * KIB)), (700 * KIB, text[:600 * KIB]), (3 * MIB - 100, rng.randbytes(200)),
             (5 * MIB, bytes(100 * KIB)), (9 * MIB - 512, rng.randbytes(512 + 7 * 512)), (10 * MIB, text)]
    table = [
        ('mixed', 12 * MIB + 512, mixed),
        ('one sector', 512, [(0, b'x' * 512)]),
        ('edges', 4 * MIB + 3 * 512, [(64 * KIB * i - 512, rng.randbytes(1024)) for i in range(1, 64, 5)] +
         [(4 * MIB + 2 * 512, b'end' * 100)]),
    ]
    if is_long:
        table += [
            ('empty', 3 * MIB, []),
            ('random', 40 * MIB, [(0, rng.randbytes(40 * MIB))]),
            ('text', 20 * MIB, [(0, text * 12)]),
            ('zeroes and data', 16 * MIB, [(i * 128 * KIB, rng.randbytes(64 * KIB)) for i in range(128)]),
            ('sparse 3 GiB', 3 * GIB + 4096, [(i * 300 * MIB, rng.randbytes(4096)) for i in range(11)]),
            ('beyond 2 TiB', 2 * TIB + 5 * MIB, [(0, b'first' * 200), (TIB - 700, rng.randbytes(2000)),
                                                 (2 * TIB + 5 * MIB - 512, b'l' * 512)]),
        ]
    for name, size, pieces in table:
        path = work / (name.replace(' ', '-') + '.raw')
        fill(path, size, pieces)
        yield name, path, size


# ---- judges ----

def qemu_compare(image, fmt, raw):
    code, out = run('qemu-img', 'compare', '-f', fmt, '-F', 'raw', image, raw)
    return '' if code == 0 else f'qemu-img compare: {code} {out}'


def qemu_check(image, fmt):
    code, out = run('qemu-img', 'check', '-f', fmt, image)
    return '' if code in (0, 63) else f'qemu-img check: {code} {out}'


# format: the tool that tells, the one that shows the content as a file, and that file
READERS = {'vmdk': ('vmdkinfo', 'vmdkmount', 'vmdk1'), 'vpc': ('vhdiinfo', 'vhdimount', 'vhdi1'),
           'vhdx': ('vhdiinfo', 'vhdimount', 'vhdi1'), 'qcow2': ('qcowinfo', 'qcowmount', 'qcow1')}
# What those tools do not know: zstd, extended L2 entries, seSparse and COWD, snapshots of ESXi.
UNKNOWN = ('zstd', 'extended_l2', 'seSparse', 'vmfs')
# What they tell of and do not show: flat extents in a file of their own, qcow2's zero flag.
NOT_SHOWN = ('monolithicFlat', 'preallocation')


def same_bytes(a, b, size):
    with open(a, 'rb') as f, open(b, 'rb') as g:
        while size > 0:
            n = min(size, MIB)
            if f.read(n) != g.read(n):
                return False
            size -= n
    return True


def shown_content(tool, name, image, raw, work):
    where = work / 'mounted'
    where.mkdir()
    try:
        code, out = run(tool, image, where)
        if code:
            return f'{tool}: {code} {out}'
        return '' if same_bytes(raw, where / name, raw.stat().st_size) else f'{tool} shows another content'
    finally:
        shown.append(image.name)
        run(*unmount, where)
        where.rmdir()


def other_reader(image, v, raw, content):
    info, mount, name = READERS.get(v.format, (None, None, None))
    if not info or not shutil.which(info) or any(w in v.name for w in UNKNOWN):
        return ''
    code, out = run(info, image)
    if code:
        return f'{info}: {code} {out}'
    if content and has_fuse and shutil.which(mount) and raw.stat().st_size <= 64 * MIB and \
            not any(w in v.name for w in NOT_SHOWN):
        return shown_content(mount, name, image, raw, image.parent)
    return ''


def judge(image, v, raw, content=False):
    code, out = run(hv, 'disk', 'compare', '-f', v.format, '-F', 'raw', image, raw)
    if code:
        return f'hv disk compare: {code} {out}'
    code, out = run(hv, 'disk', 'check', '-f', v.format, image)
    if code not in (0, 63):
        return f'hv disk check: {code} {out}'
    if v.qemu and has_qemu:
        return qemu_compare(image, v.format, raw) or qemu_check(image, v.format) or \
            other_reader(image, v, raw, content)
    return ''


def remove(work):
    for f in work.iterdir():
        f.unlink()


# ---- the matrix ----

def ours(src, fmt, v, raw, work, content=False):
    """Convert with hv and judge; returns (image, what is wrong)."""
    image = work / f'to.{v.format}'
    code, out = run(hv, 'disk', 'convert', '-q', '-f', fmt, '-O', v.format, *v.options, *v.extra, src, image)
    return image, f'hv disk convert: {code} {out}' if code else judge(image, v, raw, content)


def theirs(v, raw, work):
    """Convert with qemu-img and read back; None: it cannot make that."""
    image = work / f'theirs.{v.format}'
    words = ['-f', 'raw', '-O', v.format, *v.qemu_options, *v.extra]
    code, out = run('qemu-img', 'convert', *words, raw, image)
    if code:
        return None
    code, out = run(hv, 'disk', 'compare', '-f', v.format, '-F', 'raw', image, raw)
    return f'hv disk compare: {code} {out}' if code else ''


def fits(v, size):
    return size <= v.cap and (size <= 64 * MIB or not any(w in v.name for w in FULL))


def one_content(all_variants, name, raw, size, top):
    fit = [v for v in all_variants if fits(v, size)]
    for i, v in enumerate(fit):
        first, second, third = (top / d for d in ('a', 'b', 'c'))
        for d in (first, second, third):
            d.mkdir(exist_ok=True)
        image, wrong = ours(raw, 'raw', v, raw, first, is_long or name == 'mixed')
        result(not wrong, f'{name}: raw to {v.name}', wrong)
        targets = fit if is_long else [fit[(i + 1) % len(fit)], fit[(i + 5) % len(fit)]]
        for t in targets if not wrong else []:
            _, bad = ours(image, v.format, t, raw, second)
            result(not bad, f'{name}: {v.name} to {t.name}', bad)
            remove(second)
        if v.qemu and has_qemu:
            bad = theirs(v, raw, third)
            if bad is not None:
                result(not bad, f'{name}: {v.name} by qemu-img is read', bad)
            remove(third)
        remove(first)


has_qemu = shutil.which('qemu-img') is not None
helper = shutil.which('fusermount') or shutil.which('fusermount3')
unmount = [helper, '-u', '-z'] if helper else ['umount', '-l']
has_fuse = os.access('/dev/fuse', os.R_OK | os.W_OK) and (helper or os.geteuid() == 0)
with tempfile.TemporaryDirectory() as d:
    top = pathlib.Path(d)
    table = variants()
    result(bool(table), 'there are formats to write')
    for name, raw, size in contents(top):
        one_content(table, name, raw, size, top)
        raw.unlink()
print(f"# {len(shown)} images were also read by other programs")
print(f"1..{count}")
sys.exit(failures != 0)
