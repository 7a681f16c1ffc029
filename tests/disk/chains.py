#!/usr/bin/env python3
"""Chains of images of every format: chains.py HV

commit, rebase and a parent that went astray.  Each layer holds only what was written into it.
Prints TAP.
"""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

hv = os.path.abspath(sys.argv[1])
work = pathlib.Path(tempfile.mkdtemp())
os.chdir(work)
MIB = 1 << 20
SIZE = 16 * MIB + 3 * 512
FORMATS = ('qcow2', 'vmdk', 'vdi', 'vpc', 'vhdx')


class Skip(Exception):
    pass


def disk(*args, status=0):
    r = subprocess.run([hv, 'disk', *map(str, args)], capture_output=True, text=True, timeout=300)
    assert r.returncode == status, f'{args}: status {r.returncode}, not {status}\n{r.stdout}{r.stderr}'
    return r


def refused(*args, words=(), status=1):
    r = disk(*args, status=status)
    lines = r.stderr.strip().splitlines()
    assert len(lines) == 1, r.stderr
    for w in words:
        assert w in r.stderr, f'{w!r} is not in {r.stderr!r}'


def write(path, fmt, pieces):
    """Write into an image as a guest would."""
    sock = os.path.join(tempfile.mkdtemp(dir=work), 's')
    p = subprocess.Popen([hv, 'disk', 'serve', '-q', '-w', '-f', fmt, '--socket', sock, path],
                         stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not os.path.exists(sock):
        if p.poll() is not None:
            raise AssertionError(p.stderr.read().decode())
        assert time.monotonic() < end, 'no server'
        time.sleep(.05)
    commands = []
    for n, (at, data) in enumerate(pieces):
        pathlib.Path(f'piece{n}').write_bytes(data)
        commands += ['-c', f'write -q -s piece{n} {at} {len(data)}']
    r = subprocess.run(['qemu-io', '-f', 'raw', *commands, '-c', 'flush', f'nbd+unix:///?socket={sock}'],
                       capture_output=True, text=True, timeout=120)
    p.send_signal(signal.SIGTERM)
    p.wait(60)
    p.stderr.close()
    assert r.returncode == 0 and 'rror' not in r.stdout + r.stderr, r.stdout + r.stderr


def layer(data, seed):
    """Some writes: whole sectors, pieces of blocks, and zeroes over what was there."""
    rng = random.Random(seed)
    pieces = [(at * 512, rng.randbytes(512 * n)) for at, n in
              ((rng.randrange(0, SIZE // 512 - 200), rng.randrange(1, 200)) for _ in range(5))]
    pieces.append((seed * 3 * MIB, bytes(65536)))
    for at, piece in pieces:
        data[at:at + len(piece)] = piece
    return pieces


def chain(fmt):
    """base <- mid <- top as files, and r0, r1, r2: what each shows."""
    if not shutil.which('qemu-io') or not shutil.which('nbdkit'):
        raise Skip('no qemu-io or nbdkit')
    for f in pathlib.Path('.').iterdir():
        shutil.rmtree(f) if f.is_dir() else f.unlink()
    data = bytearray(SIZE)
    for n in range(4):
        data[n * 4 * MIB:n * 4 * MIB + MIB] = random.Random(n).randbytes(MIB)
    pathlib.Path('r0').write_bytes(data)
    disk('convert', '-f', 'raw', '-O', fmt, 'r0', 'base')
    for n, (name, below) in enumerate((('mid', 'base'), ('top', 'mid')), 1):
        disk('create', '-q', '-f', fmt, '-b', below, '-F', fmt, name)
        write(name, fmt, layer(data, n))
        pathlib.Path(f'r{n}').write_bytes(data)
    same(fmt, top='r2', mid='r1', base='r0')


def same(fmt, **images):
    for image, raw in images.items():
        disk('compare', '-f', fmt, '-F', 'raw', '-q', image, raw)
        disk('check', '-q', '-f', fmt, image)


def commit_to_the_next(fmt):
    chain(fmt)
    before = os.path.getsize('top')
    disk('commit', '-q', '-f', fmt, 'top')
    same(fmt, top='r2', mid='r2', base='r0')
    assert os.path.getsize('top') <= before
    data = bytearray(pathlib.Path('r2').read_bytes())
    write('top', fmt, layer(data, 4))  # it goes on
    pathlib.Path('r4').write_bytes(data)
    same(fmt, top='r4', mid='r2')


def commit_to_the_base(fmt):
    chain(fmt)
    disk('commit', '-q', '-f', fmt, '-b', 'base', 'top')
    same(fmt, base='r2')


def commit_again_and_again(fmt):
    chain(fmt)
    data = bytearray(pathlib.Path('r2').read_bytes())
    for seed in range(1, 5):
        write('top', fmt, layer(data, seed))
        disk('commit', '-q', '-f', fmt, 'top')
    pathlib.Path('r4').write_bytes(data)
    same(fmt, top='r4', mid='r4', base='r0')


def rebase_to_the_base(fmt):
    chain(fmt)
    disk('rebase', '-q', '-f', fmt, '-F', fmt, '-b', 'base', 'top')
    os.unlink('mid')
    same(fmt, top='r2', base='r0')


def rebase_to_nothing(fmt):
    chain(fmt)
    if fmt in ('vpc', 'vhdx'):
        refused('rebase', '-f', fmt, '-b', '', 'top', words=['convert it'])
        same(fmt, top='r2')
        return
    disk('rebase', '-q', '-f', fmt, '-b', '', 'top')
    os.unlink('mid')
    os.unlink('base')
    same(fmt, top='r2')


def a_parent_that_moved(fmt):
    chain(fmt)
    os.mkdir('away')
    os.rename('mid', 'away/mid')
    os.rename('base', 'away/base')
    refused('compare', '-f', fmt, '-F', 'raw', 'top', 'r2', status=2, words=['top'])
    disk('rebase', '-q', '-u', '--allow-ref', 'away', '-f', fmt, '-F', fmt, '-b', 'away/mid', 'top')
    disk('compare', '-q', '--allow-ref', 'away', '-f', fmt, '-F', 'raw', 'top', 'r2')


def a_parent_that_changed(fmt):
    """Formats that can tell refuse; whoever knows better says so."""
    chain(fmt)
    if fmt in ('qcow2', 'vpc'):
        raise Skip(f'{fmt} cannot tell')
    data = bytearray(pathlib.Path('r0').read_bytes())
    write('base', fmt, layer(data, 3))
    refused('map', '-f', fmt, 'mid', words=['changed'])
    refused('map', '-f', fmt, 'top', words=['changed'])
    disk('rebase', '-q', '-u', '-f', fmt, '-F', fmt, '-b', 'base', 'mid')
    disk('map', '-f', fmt, 'mid')


def no_parent_at_all(fmt):
    chain(fmt)
    os.unlink('base')
    refused('map', '-f', fmt, 'top', words=['mid'])
    refused('commit', '-f', fmt, 'top', words=['mid'])
    disk('info', '-f', fmt, 'mid')


cases = [(fn, fmt) for fn in (commit_to_the_next, commit_to_the_base, commit_again_and_again, rebase_to_the_base,
                              rebase_to_nothing, a_parent_that_moved, a_parent_that_changed, no_parent_at_all)
         for fmt in FORMATS]
failed = 0
try:
    have = {f['name'] for f in json.loads(disk('formats', '--json').stdout)}
    print(f'1..{len(cases)}')
    for i, (fn, fmt) in enumerate(cases, 1):
        name = f'{fmt}: {fn.__name__.replace("_", " ")}'
        try:
            if fmt not in have:
                raise Skip(f'no format {fmt}')
            fn(fmt)
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
