#!/usr/bin/env python3
"""hv disk beside qemu-img, in turn, on the same files: disk.py HV [MIB] [ROUNDS]

Prints a table of ratios: wall time, CPU time, output size.  More than 1.00 means that hv is
faster; a size of at most 1.00 means that ours is no larger.  The files are in memory (/dev/shm) when
they fit there, so that a disk that others keep busy does not set the pace; else in $BENCH_DIR.

Both programs run at real-time priority where that is permitted: then each has all the cores for its
run, whatever else the machine does, and wall time can be compared.
"""
import os
import pathlib
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

hv = sys.argv[1]
mib = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
if not shutil.which('qemu-img'):
    print('qemu-img is not installed: nothing to compare with')
    sys.exit(0)
rng = random.Random(7)


def words(n):
    """Text of made-up words: short matches, the hardest that still compresses."""
    stock = [bytes(rng.choice(b'abcdefghijklmnopqrstuvwxyz') for _ in range(rng.randint(2, 9))) for _ in range(8192)]
    return b' '.join(rng.choices(stock, k=n // 6))[:n].ljust(n, b'.')


def programs(n):
    """What disks of systems hold: programs and libraries of this host."""
    out = bytearray()
    for d in ('/usr/bin', '/usr/lib/x86_64-linux-gnu', '/usr/share/doc'):
        for f in sorted(pathlib.Path(d).rglob('*')):
            if f.is_file() and not f.is_symlink() and len(out) < n:
                out += f.read_bytes()[:4 << 20]
    return bytes(out[:n]).ljust(n, b'.')


def make_source(path, content):
    """Every second MiB data, the others zeroes that are written."""
    data = {'random': lambda: rng.randbytes(64 << 20), 'text': lambda: words(64 << 20),
            'programs': lambda: programs(256 << 20)}[content]()
    with open(path, 'wb') as f:
        for i in range(mib // 2):
            at = (i << 20) % len(data)
            f.write(data[at:at + (1 << 20)])
            f.write(bytes(1 << 20))


def go_first(yes):
    """What this starts from now on runs before all other programs, or no longer; False: not permitted."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO if yes else os.SCHED_OTHER, os.sched_param(10 if yes else 0))
    except PermissionError:
        return False
    return True


def run(command, target):
    if target and target.exists():
        target.unlink()
    go_first(True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    go_first(False)
    if r.returncode:
        raise RuntimeError(f'{" ".join(map(str, command))}: {r.stderr.strip()}')
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turn(name, ours, theirs, target):
    """Medians of the ratios round by round: what else the machine does hits both."""
    wall, cpu, size, seconds = [], [], [], []
    try:
        for i in range(rounds):
            pair = {}
            for command in (theirs, ours) if i % 2 else (ours, theirs):
                pair[command[0]] = (*run(command, target), target.stat().st_size if target else 1)
            (t, tc, ts), (o, oc, made) = pair[theirs[0]], pair[ours[0]]
            wall.append(t / o)
            cpu.append(tc / max(oc, 0.001))
            size.append(made / ts)
            seconds.append(o)
    except RuntimeError as e:
        print(f'| {name} | {e} | | | |')
        return
    print(f'| {name} | {statistics.median(seconds):.2f} s | **{statistics.median(wall):.2f}** | '
          f'{statistics.median(cpu):.2f} | {statistics.median(size) if target else 1:.3f} |', flush=True)


def convert(name, src, src_format, out_format, options=(), extra=()):
    target = work / 'target'
    same = [*options, '-f', src_format, '-O', out_format]
    in_turn(name, [hv, 'disk', 'convert', '-q', *same, src, target],
            ['qemu-img', 'convert', *extra, *same, src, target], target)


def where():
    if 'BENCH_DIR' in os.environ:
        return os.environ['BENCH_DIR']
    room = shutil.disk_usage('/dev/shm').free if os.path.isdir('/dev/shm') else 0
    return '/dev/shm' if room > 6 * mib << 20 else None


with tempfile.TemporaryDirectory(dir=where()) as d:
    work = pathlib.Path(d)
    first = go_first(True) and go_first(False)
    print(f'{mib} MiB, every second MiB zeroes; qemu-img and hv in turn, medians of {rounds}, '
          f'at {"real-time" if first else "usual"} priority\n')
    print('| job | hv takes | speed, times qemu-img | CPU time, times less | size, of qemu-img\'s |\n|---|---|---|---|---|')
    for content in ('random', 'text', 'programs'):
        raw = work / content
        make_source(raw, content)
        stream = work / f'{content}.vmdk'
        subprocess.run(['qemu-img', 'convert', '-O', 'vmdk', '-o', 'subformat=streamOptimized', raw, stream], check=True)
        convert(f'raw → streamOptimized, {content}', raw, 'raw', 'vmdk', ['-o', 'subformat=streamOptimized'])
        convert(f'streamOptimized → qcow2, {content}', stream, 'vmdk', 'qcow2')
        convert(f'raw → qcow2 -c zlib, {content}', raw, 'raw', 'qcow2', ['-c'])
        convert(f'the same, qemu-img -m 16 -W, {content}', raw, 'raw', 'qcow2', ['-c'], ['-m', '16', '-W'])
        convert(f'raw → qcow2 -c zstd, {content}', raw, 'raw', 'qcow2', ['-c', '-o', 'compression_type=zstd'])
        if content != 'random':
            continue
        images = {'raw': raw}
        for out in ('qcow2', 'vdi', 'vpc', 'vhdx', 'vmdk', 'raw'):
            convert(f'raw → {out}', raw, 'raw', out)
            if out != 'raw':
                images[out] = work / f'x.{out}'
                subprocess.run(['qemu-img', 'convert', '-O', out, raw, images[out]], check=True)
                convert(f'{out} → raw', images[out], out, 'raw')
        images['copy'] = work / 'copy'  # of one file with itself nothing would be read
        shutil.copyfile(raw, images['copy'])
        for a, b in (('raw', 'copy'), ('raw', 'qcow2'), ('qcow2', 'vdi'), ('vmdk', 'vhdx')):
            pair = ['-f', a, '-F', b.replace('copy', 'raw'), images[a], images[b]]
            in_turn(f'compare {a}, {b}', [hv, 'disk', 'compare', '-q', *pair], ['qemu-img', 'compare', '-q', *pair], None)
        for image in images.values():
            if image != raw:
                image.unlink()
