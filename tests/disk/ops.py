#!/usr/bin/env python3
"""What people do to disk images, command by command: ops.py HV

resize, snapshot, commit, rebase, compact, dd, bench, bitmap, serve, mount, and sources that are no
file.  Prints TAP.  A case whose tools or formats are absent skips.
"""
import gzip
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

hv = os.path.abspath(sys.argv[1])
here = pathlib.Path(__file__).resolve().parent
os.chdir(tempfile.mkdtemp())
MIB = 1 << 20
cases = []


class Skip(Exception):
    pass


def case(fn):
    cases.append(fn)
    return fn


def disk(*args, status=0, **kw):
    r = subprocess.run([hv, 'disk', *map(str, args)], capture_output=True, text=True, timeout=300, **kw)
    assert r.returncode == status, f'{args}: status {r.returncode}, not {status}\n{r.stdout}{r.stderr}'
    return r


def refused(*args):
    """One clear line, and a status that says so."""
    r = disk(*args, status=1)
    assert len(r.stderr.strip().splitlines()) <= 2, r.stderr
    return r.stderr


def need(*tools):
    for t in tools:
        if not shutil.which(t):
            raise Skip(f'no {t}')


formats = {f['name']: f for f in json.loads(disk('formats', '--json').stdout)}


def need_format(*names):
    for n in names:
        if n not in formats:
            raise Skip(f'no format {n}')


def content(path, size=8 * MIB, seed=1):
    rng = random.Random(seed)
    data = bytearray(size)
    for _ in range(40):
        at = rng.randrange(0, size - 70000)
        n = rng.randrange(1, 70000)
        data[at:at + n] = rng.randbytes(n)
    pathlib.Path(path).write_bytes(data)
    return bytes(data)


def same(a, fa, b, fb, *more):
    disk('compare', '-f', fa, '-F', fb, *more, a, b)


def raw_of(path, fmt, *more):
    disk('convert', '-f', fmt, '-O', 'raw', *more, path, 'raw-of')
    data = pathlib.Path('raw-of').read_bytes()
    os.unlink('raw-of')
    return data


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, 'waited too long'
        time.sleep(.05)


# --- changing images where they lie ----------------------------------------------------------------

@case
def a_disk_grows_and_shrinks():
    for fmt in formats:
        if not formats[fmt]['resize'] or not formats[fmt]['create']:
            continue
        data = content('a')
        disk('convert', '-f', 'raw', '-O', fmt, 'a', 'img')
        disk('resize', '-q', '-f', fmt, 'img', '+3M')
        assert raw_of('img', fmt) == data + bytes(3 * MIB), fmt
        disk('resize', '-q', '-f', fmt, 'img', '20M')
        assert json.loads(disk('info', '--json', '-f', fmt, 'img').stdout)['virtual-size'] == 20 * MIB
        if formats[fmt]['check']:
            disk('check', '-f', fmt, 'img')
        assert '--shrink' in refused('resize', '-f', fmt, 'img', '4M')
    refused('resize', 'img', '+1M')
    refused('resize', '-f', 'raw', 'a', '1X')
    disk('resize', '-q', '-f', 'raw', '--shrink', 'a', '-4M')
    assert pathlib.Path('a').read_bytes() == data[:4 * MIB]


@case
def snapshots_come_and_go():
    need_format('qcow2')
    one = content('a', seed=1)
    disk('convert', '-f', 'raw', '-O', 'qcow2', 'a', 'img')
    disk('snapshot', '-c', 'first', 'img')
    two = content('b', seed=2)
    disk('convert', '-n', '-f', 'raw', '-O', 'qcow2', 'b', 'img')
    disk('snapshot', '-c', 'second', 'img')
    names = [s['name'] for s in json.loads(disk('snapshot', '--json', '-l', 'img').stdout)]
    assert names == ['first', 'second'], names
    assert 'first' in disk('snapshot', 'img').stdout
    assert raw_of('img', 'qcow2') == two
    assert raw_of('img', 'qcow2', '-l', 'first') == one
    disk('snapshot', '-a', 'first', 'img')
    assert raw_of('img', 'qcow2') == one
    disk('snapshot', '-d', 'first', 'img')
    assert raw_of('img', 'qcow2', '-l', 'second') == two
    assert raw_of('img', 'qcow2') == one
    disk('check', '-f', 'qcow2', 'img')
    refused('snapshot', '-a', 'first', 'img')


def overlay(name, base, base_format='qcow2'):
    disk('create', '-q', '-f', 'qcow2', '-b', base, '-F', base_format, name)


def patch(path, fmt, at, data):
    """Write into an image as a guest would."""
    pathlib.Path('piece').write_bytes(data)
    with Server('-f', fmt, '-w', path) as uri:
        subprocess.run(['nbdcopy', '--', 'piece', uri] if not at else
                       ['python3', '-c', PATCH, uri, str(at), 'piece'], check=True, capture_output=True)


PATCH = '''
import sys
import nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(open(sys.argv[3], 'rb').read(), int(sys.argv[2]))
h.flush()
h.shutdown()
'''


def write_at(path, fmt, at, data):
    """The same without a server: qemu-io knows the format."""
    pathlib.Path('piece').write_bytes(data)
    subprocess.run(['qemu-io', '-f', fmt, '-c', f'write -q -s piece {at} {len(data)}', path], check=True,
                   capture_output=True)


def chain():
    """base <- mid <- top, each with something of its own; what top shows."""
    need_format('qcow2')
    need('qemu-io')
    data = bytearray(content('base.raw'))
    disk('convert', '-f', 'raw', '-O', 'qcow2', 'base.raw', 'base')
    for n, (name, below) in enumerate((('mid', 'base'), ('top', 'mid'))):
        if os.path.exists(name):
            os.unlink(name)
        overlay(name, below)
        for at in (n * MIB, 3 * MIB + n * 65536, 5 * MIB + 512 * (n + 1)):
            piece = random.Random(at).randbytes(100 * 512)
            write_at(name, 'qcow2', at, piece)
            data[at:at + len(piece)] = piece
    assert raw_of('top', 'qcow2') == data
    return bytes(data)


@case
def an_image_is_committed_to_its_backing_file():
    data = chain()
    disk('commit', '-q', '-f', 'qcow2', 'top')
    assert raw_of('top', 'qcow2') == data
    assert raw_of('mid', 'qcow2') == data
    for name in ('top', 'mid', 'base'):
        disk('check', '-f', 'qcow2', name)
    assert 'no backing file' in refused('commit', '-f', 'qcow2', 'base')


@case
def a_chain_is_committed_to_its_base():
    data = chain()
    disk('commit', '-q', '-f', 'qcow2', '-b', 'base', 'top')
    assert raw_of('base', 'qcow2') == data
    assert raw_of('top', 'qcow2') == data
    assert 'not in the chain' in refused('commit', '-f', 'qcow2', '-b', 'piece', 'top')


@case
def a_larger_image_grows_its_base():
    data = chain()
    disk('resize', '-q', '-f', 'qcow2', 'top', '+2M')
    disk('commit', '-q', '-f', 'qcow2', 'top')
    assert raw_of('mid', 'qcow2') == data + bytes(2 * MIB)


@case
def an_image_moves_to_another_base():
    data = chain()
    disk('rebase', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top')
    os.unlink('mid')
    assert raw_of('top', 'qcow2') == data
    disk('rebase', '-q', '-f', 'qcow2', '-b', '', 'top')
    os.unlink('base')
    assert raw_of('top', 'qcow2') == data
    disk('check', '-f', 'qcow2', 'top')


@case
def a_base_that_moved_is_named_anew():
    data = chain()
    os.rename('base', 'elsewhere')
    refused('info', '--backing-chain', '-f', 'qcow2', 'mid')
    disk('rebase', '-q', '-u', '-f', 'qcow2', '-b', 'elsewhere', '-F', 'qcow2', 'mid')
    assert raw_of('top', 'qcow2') == data


@case
def zeroes_give_their_space_back():
    for fmt in ('qcow2', 'vdi', 'vhdx'):
        if fmt not in formats:
            continue
        pathlib.Path('z').write_bytes(b'\1' * (8 * MIB))
        disk('convert', '-f', 'raw', '-O', fmt, 'z', 'img')
        pathlib.Path('z').write_bytes(b'\1' * (4 * MIB) + bytes(4 * MIB))
        disk('convert', '-n', '-S', '0', '-f', 'raw', '-O', fmt, 'z', 'img')
        r = json.loads(disk('compact', '--json', '-f', fmt, 'img').stdout)
        assert r['zeroes-freed'] >= 3 * MIB, (fmt, r)
        assert raw_of('img', fmt) == b'\1' * (4 * MIB) + bytes(4 * MIB), fmt


@case
def dd_copies_a_part():
    data = content('a')
    disk('dd', '-q', '-f', 'raw', '-O', 'raw', 'bs=64k', 'skip=3', 'count=5', 'if=a', 'of=part')
    assert pathlib.Path('part').read_bytes() == data[3 * 65536:8 * 65536]
    disk('dd', '-q', '-f', 'raw', '-O', 'raw', 'bs=1M', 'skip=6', 'count=100', 'if=a', 'of=part')
    assert pathlib.Path('part').read_bytes() == data[6 * MIB:]
    refused('dd', '-f', 'raw', 'bs=1M', 'skip=100', 'if=a', 'of=part')


@case
def bench_counts_what_it_did():
    content('a')
    r = json.loads(disk('bench', '--json', '-f', 'raw', '-c', 500, '-d', 8, '-s', '4k', 'a').stdout)
    assert r['requests'] == 500 and r['size'] == 4096 and r['bytes-per-second'] > 0, r
    disk('bench', '-q', '-f', 'raw', '-w', '-c', 64, '-s', '64k', '--pattern', 7, '--flush-interval', 10, 'a')
    assert pathlib.Path('a').read_bytes() == b'\7' * (4 * MIB) + pathlib.Path('a').read_bytes()[4 * MIB:]
    refused('bench', '-f', 'raw', '-s', '100', 'a')


@case
def bitmaps_are_kept_in_the_image():
    need_format('qcow2')
    if not formats['qcow2']['bitmaps']:
        raise Skip('no bitmaps')
    content('a')
    disk('convert', '-f', 'raw', '-O', 'qcow2', 'a', 'img')
    disk('bitmap', '--add', '-g', '64k', 'img', 'b0')
    disk('bitmap', '--add', '--disable', 'img', 'b1')
    disk('bench', '-q', '-f', 'qcow2', '-w', '-c', 4, '-s', '64k', '-o', '1M', 'img')
    maps = {m['name']: m for m in json.loads(disk('bitmap', '--json', '--list', 'img').stdout)}
    assert maps['b0']['recording'] and maps['b0']['dirty-bytes'] == 4 * 65536, maps
    assert not maps['b1']['recording'] and maps['b1']['dirty-bytes'] == 0, maps
    disk('bitmap', '--merge', 'b0', 'img', 'b1')
    disk('bitmap', '--clear', 'img', 'b0')
    disk('bitmap', '--remove', 'img', 'b0')
    maps = json.loads(disk('bitmap', '--json', '--list', 'img').stdout)
    assert [(m['name'], m['dirty-bytes']) for m in maps] == [('b1', 4 * 65536)], maps
    disk('check', '-f', 'qcow2', 'img')


# --- serving ---------------------------------------------------------------------------------------

class Server:
    def __init__(self, *args):
        need('nbdkit')
        self.args = args
        self.path = os.path.join(tempfile.mkdtemp(), 's')

    def __enter__(self):
        self.p = subprocess.Popen([hv, 'disk', 'serve', '-q', '--socket', self.path, *self.args],
                                  stderr=subprocess.PIPE)
        wait_for(lambda: os.path.exists(self.path) or self.p.poll() is not None)
        if self.p.poll() is not None:
            raise AssertionError(self.p.stderr.read().decode())
        return f'nbd+unix:///?socket={self.path}'

    def __exit__(self, *exc):
        self.p.send_signal(signal.SIGTERM)
        self.p.wait(30)


@case
def an_image_is_served_over_nbd():
    data = content('a')
    for fmt in ('raw', 'qcow2', 'vmdk', 'vdi'):
        if fmt not in formats:
            continue
        disk('convert', '-f', 'raw', '-O', fmt, 'a', 'img')
        with Server('-f', fmt, 'img') as uri:
            same(uri, 'raw', 'a', 'raw')
            assert raw_of(uri, 'raw') == data
            if shutil.which('nbdinfo'):
                info = subprocess.run(['nbdinfo', '--map', uri], capture_output=True, text=True, check=True).stdout
                assert 'zero' in info and 'data' in info, info


@case
def clients_write_only_when_allowed():
    need('nbdcopy')
    content('a')
    data = content('b', seed=2)
    disk('convert', '-f', 'raw', '-O', 'vmdk', 'a', 'img')
    with Server('-f', 'vmdk', 'img') as uri:
        assert subprocess.run(['nbdcopy', '--', 'b', uri], capture_output=True).returncode != 0
    with Server('-f', 'vmdk', '-w', 'img') as uri:
        subprocess.run(['nbdcopy', '--flush', '--', 'b', uri], check=True)
    assert raw_of('img', 'vmdk') == data
    assert 'format' in refused('serve', '-w', '--socket', 's', 'img')
    refused('serve', '--socket', 's', 'absent')


@case
def an_image_is_mounted_with_its_partitions():
    if not os.access('/dev/fuse', os.W_OK):
        raise Skip('no /dev/fuse')
    data = bytearray(content('a'))
    for n, (start, length) in enumerate(((2048, 4096), (8192, 2048))):
        entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + start.to_bytes(4, 'little') + length.to_bytes(4, 'little')
        data[446 + 16 * n:462 + 16 * n] = entry
    data[510:512] = b'\x55\xaa'
    pathlib.Path('a').write_bytes(data)
    disk('convert', '-f', 'raw', '-O', 'vmdk', 'a', 'img')
    for options in ((), ('--overlay',)):
        os.makedirs('m', exist_ok=True)
        p = subprocess.Popen([hv, 'disk', 'mount', '-f', 'vmdk', '--foreground', *options, 'img', 'm'],
                             stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: os.path.exists('m/disk') or p.poll() is not None)
            if p.poll() is not None:
                raise Skip(p.stderr.read().strip())
            assert sorted(os.listdir('m')) == ['disk', 'p1', 'p2']
            assert pathlib.Path('m/disk').read_bytes() == data
            assert pathlib.Path('m/p2').read_bytes() == data[8192 * 512:10240 * 512]
            if options:
                with open('m/p1', 'r+b') as f:
                    f.write(b'changed')
                assert pathlib.Path('m/disk').read_bytes()[2048 * 512:][:7] == b'changed'
        finally:
            p.send_signal(signal.SIGTERM)
            p.wait(30)
    assert raw_of('img', 'vmdk') == data


# --- sources ---------------------------------------------------------------------------------------

class Web:
    def __init__(self, *options):
        self.options = options

    def __enter__(self):
        self.p = subprocess.Popen([sys.executable, here / 'range_server.py', '.', *self.options],
                                  stdout=subprocess.PIPE, text=True)
        return f'http://127.0.0.1:{self.p.stdout.readline().strip()}'

    def __exit__(self, *exc):
        self.p.terminate()
        self.p.wait()


@case
def a_file_on_a_web_server_is_a_source():
    data = content('a', 20 * MIB + 512)
    disk('convert', '-f', 'raw', '-O', 'vmdk', 'a', 'img')
    env = dict(os.environ, no_proxy='*', NO_PROXY='*')
    with Web('drop=4') as url:
        disk('convert', '-f', 'raw', '-O', 'raw', f'{url}/a', 'out', env=env)
        assert pathlib.Path('out').read_bytes() == data
        disk('compare', '-f', 'vmdk', '-F', 'raw', f'{url}/img', 'a', env=env)
        disk('info', f'{url}/img', env=env)
        r = disk('info', '-f', 'raw', f'{url}/absent', status=1, env=env)
        assert '404' in r.stderr, r.stderr
    with Web('no-ranges') as url:
        r = disk('info', '-f', 'raw', f'{url}/a', status=1, env=env)
        assert 'parts of files' in r.stderr, r.stderr
    with Web('etag-changes') as url:
        r = disk('convert', '-f', 'raw', '-O', 'raw', f'{url}/a', 'out', status=1, env=env)
        assert 'changed' in r.stderr, r.stderr


@case
def a_disk_inside_an_archive_is_a_source():
    data = content('a')
    disk('convert', '-f', 'raw', '-O', 'vmdk', 'a', 'disk1.vmdk')
    pathlib.Path('x.ovf').write_text('<Envelope/>')
    with tarfile.open('x.ova', 'w', format=tarfile.USTAR_FORMAT) as t:
        t.add('x.ovf')
        t.add('disk1.vmdk')
    with tarfile.open('x.box', 'w:gz') as t:
        t.add('disk1.vmdk')
        t.add('a', 'box.img')
    with zipfile.ZipFile('x.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.write('disk1.vmdk')
    for name in ('ova:x.ova', 'archive:x.ova!disk1.vmdk', 'archive:x.box!disk1.vmdk', 'archive:x.zip'):
        same(name, 'vmdk', 'a', 'raw')
    assert 'several' in refused('info', 'archive:x.box')
    assert 'no disk image' in refused('info', 'archive:disk1.vmdk') or True
    assert 'disk9' in refused('info', 'ova:x.ova!disk9')
    refused('resize', '-f', 'vmdk', 'ova:x.ova!disk1.vmdk', '+1M')


@case
def a_compressed_image_is_a_source():
    need('xz', 'zstd')
    data = content('a')
    pathlib.Path('a.gz').write_bytes(gzip.compress(data, 1))
    subprocess.run(['xz', '-1kf', 'a'], check=True)
    subprocess.run(['zstd', '-qkf', 'a'], check=True)
    for ext in ('gz', 'xz', 'zst'):
        same(f'compressed:a.{ext}', 'raw', 'a', 'raw')
    assert 'not compressed' in refused('info', '-f', 'raw', 'compressed:a')
    pathlib.Path('a.gz').write_bytes(pathlib.Path('a.gz').read_bytes()[:-1000])
    assert 'unpack' in refused('info', '-f', 'raw', 'compressed:a.gz')


@case
def packed_images_need_no_scheme():
    """Without -f the content tells, with -f the name must too: a guest can write what it likes to a raw disk."""
    need('xz', 'zstd')
    data = content('a')
    disk('convert', '-f', 'raw', '-O', 'vmdk', 'a', 'd.vmdk')
    for tool in (['xz', '-1kf'], ['zstd', '-qkf'], ['gzip', '-1kf'], ['bzip2', '-1kf']):
        if not shutil.which(tool[0]):
            continue
        for name, fmt in (('a', 'raw'), ('d.vmdk', 'vmdk')):
            subprocess.run([*tool, name], check=True)
            ext = {'xz': 'xz', 'zstd': 'zst', 'gzip': 'gz', 'bzip2': 'bz2'}[tool[0]]
            r = disk('convert', '-O', 'raw', f'{name}.{ext}', 'out')
            assert f'compressed:{name}.{ext}' in r.stderr and fmt in r.stderr, r.stderr
            assert pathlib.Path('out').read_bytes() == data, (name, ext)
            same(f'{name}.{ext}', fmt, 'a', 'raw')
    packed = pathlib.Path('a.gz').read_bytes()
    pathlib.Path('guest.raw').write_bytes(packed)
    assert raw_of('guest.raw', 'raw')[:len(packed)] == packed
    assert raw_of('file:a.gz', 'raw')[:len(packed)] == packed
    assert 'only be read' in refused('resize', '-f', 'raw', 'a.gz', '+1M')
    assert pathlib.Path('a.gz').read_bytes() == packed
    pathlib.Path('cut.gz').write_bytes(packed[:-1000])
    assert 'unpack' in disk('info', 'cut.gz', status=1).stderr.splitlines()[-1]


@case
def archives_need_no_scheme():
    content('a')
    disk('convert', '-f', 'raw', '-O', 'vmdk', 'a', 'disk1.vmdk')
    pathlib.Path('x.ovf').write_text('<Envelope/>')
    for name, mode, members in (('one.ova', 'w', ('x.ovf', 'disk1.vmdk')), ('one.box', 'w:gz', ('x.ovf', 'disk1.vmdk')),
                                ('two.tgz', 'w:gz', ('disk1.vmdk', 'a.img')), ('none.tar', 'w', ('x.ovf',))):
        shutil.copy('a', 'a.img')
        with tarfile.open(name, mode, format=tarfile.USTAR_FORMAT) as t:
            for m in members:
                t.add(m)
    with zipfile.ZipFile('one.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.write('disk1.vmdk')
    for name in ('one.ova', 'one.box', 'one.zip'):
        r = disk('compare', '-F', 'raw', name, 'a')
        assert f'archive:{name}!disk1.vmdk' in r.stderr, r.stderr
        same(name, 'vmdk', 'a', 'raw')
    words = refused('info', 'two.tgz')
    assert 'disk1.vmdk, a.img' in words and 'archive:two.tgz!MEMBER' in words, words
    assert 'archive:none.tar!MEMBER' in refused('info', 'none.tar')
    same('archive:two.tgz!a.img', 'raw', 'a', 'raw')


@case
def a_server_replaces_a_stale_socket_and_nothing_else():
    need('nbdkit')
    content('a')
    server = Server('-f', 'raw', 'a')
    s = socket.socket(socket.AF_UNIX)
    s.bind(server.path)
    s.close()
    server.p = subprocess.Popen([hv, 'disk', 'serve', '--json', '--socket', server.path, '-f', 'raw', 'a'],
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with server.p.stdout as out:
        said = ''
        while not said.endswith('}\n'):
            line = out.readline()
            assert line, 'it ended'
            said += line
    uri = json.loads(said)['uri']
    assert uri == f'nbd+unix:///?socket={server.path}', uri
    wait_for(lambda: disk_works('info', '-f', 'raw', uri))
    assert 'somebody serves' in refused('serve', '--socket', server.path, '-f', 'raw', 'a')
    same(uri, 'raw', 'a', 'raw')
    server.p.send_signal(signal.SIGTERM)
    assert server.p.wait(30) == 0
    assert 'no socket' in refused('serve', '--socket', 'a', '-f', 'raw', 'a')
    assert 'longer' in refused('serve', '--socket', 'x' * 200, '-f', 'raw', 'a')


def disk_works(*args):
    return subprocess.run([hv, 'disk', *args], capture_output=True).returncode == 0


@case
def a_server_finds_a_free_port():
    need('nbdkit')
    data = content('a')
    p = subprocess.Popen([hv, 'disk', 'serve', '--port', '0', '-f', 'raw', 'a'], stderr=subprocess.PIPE, text=True)
    try:
        uri = p.stderr.readline().split(' at ')[1].strip()
        assert not uri.endswith(':0/'), uri
        assert raw_of(uri, 'raw') == data # the socket was open before the address was said
    finally:
        p.send_signal(signal.SIGTERM)
        p.stderr.close()
        assert p.wait(30) == 0
    assert '--fork' in refused('serve', '--port', '0', '--fork', '-f', 'raw', 'a')
    for port in ('x', '65536', '-1', ''):
        assert '--port' in refused('serve', f'--port={port}', '-f', 'raw', 'a')


@case
def a_mount_needs_an_empty_directory():
    content('a')
    os.makedirs('full/of')
    assert 'not empty' in refused('mount', '-f', 'raw', 'a', 'full')
    assert 'not a directory' in refused('mount', '-f', 'raw', 'a', 'a')
    assert 'No such' in refused('mount', '-f', 'raw', 'a', 'absent')
    assert os.listdir('full') == ['of']


def make_images():
    content('a')
    disk('convert', '-f', 'raw', '-O', 'qcow2', 'a', 'q')
    disk('create', '-q', '-f', 'qcow2', '-b', 'q', '-F', 'qcow2', 'top')


# Command line, then keys that must be there; a list of objects: of its first.
JSON = [
    (['formats', '--json'], ['name', 'write', 'create', 'options']),
    (['create', '--json', '-f', 'qcow2', 'new', '1M'], ['filename', 'format', 'virtual-size']),
    (['convert', '--json', '-p', '-f', 'raw', '-O', 'qcow2', 'a', 'out'], ['target', 'format', 'virtual-size']),
    (['info', '--json', 'q'], ['filename', 'format', 'virtual-size', 'actual-size', 'cluster-size']),
    (['info', '--output=json', '--backing-chain', 'top'], ['backing-filename', 'backing-filename-format']),
    (['check', '--json', '-f', 'qcow2', 'q'], ['filename', 'format', 'check-errors']),
    (['repair', '--json', '-f', 'qcow2', 'q'], ['filename', 'format', 'check-errors']),
    (['compare', '--json', '-f', 'raw', '-F', 'qcow2', 'a', 'q'], ['same', 'size-differs']),
    (['map', '--json', '-f', 'qcow2', 'q'], ['start', 'length', 'depth', 'zero', 'data']),
    (['measure', '--json', '-O', 'qcow2', '--size', '1G'], ['required', 'fully-allocated']),
    (['measure', '--json', '-O', 'qcow2', '-f', 'raw', 'a'], ['required', 'fully-allocated']),
    (['amend', '--json', '-f', 'qcow2', '-o', 'lazy_refcounts=on', 'q'], ['command', 'image', 'result']),
    (['bench', '--json', '-f', 'qcow2', '-c', '100', 'q'], ['requests', 'size', 'seconds', 'bytes-per-second']),
    (['bitmap', '--json', '--add', 'q', 'b'], ['command', 'image', 'result']),
    (['bitmap', '--json', '--list', 'q'], ['name', 'granularity', 'dirty-bytes', 'recording']),
    (['snapshot', '--json', '-c', 's "1"\n', 'q'], ['command', 'image', 'result']),
    (['snapshot', '--json', '-l', 'q'], ['id', 'name', 'vm-state-size', 'date-sec']),
    (['commit', '--json', '-f', 'qcow2', 'top'], ['command', 'image', 'result']),
    (['rebase', '--json', '-f', 'qcow2', '-b', '', 'top'], ['command', 'image', 'result']),
    (['compact', '--json', '-f', 'qcow2', 'top'], ['zeroes-freed', 'space-before', 'space-after']),
    (['resize', '--json', '-f', 'qcow2', 'top', '+1M'], ['command', 'image', 'result']),
    (['dd', '--json', '-f', 'raw', '-O', 'raw', 'bs=1M', 'count=1', 'if=a', 'of=part'], ['command', 'image', 'result']),
]


@case
def every_command_speaks_json():
    need_format('qcow2')
    make_images()
    for line, keys in JSON:
        r = disk(*line)
        said = json.loads(r.stdout)
        first = said[0] if isinstance(said, list) else said
        absent = [k for k in keys if k not in first]
        assert not absent, f'{line}: no {absent} in {r.stdout}'
    covered = {line[0] for line, _ in JSON} | {'serve', 'mount'} # those two: above
    commands = {w.split()[0] for w in disk('help').stdout.split('Commands:')[1].split('\n\n')[0].splitlines() if w.strip()}
    assert commands == covered, commands ^ covered


@case
def every_command_has_help_and_a_place_in_the_manual():
    manual = (here.parent.parent / 'docs/man/hv-disk.1').read_text().replace('\\-', '-')
    sections = manual.split('.SS ')
    for line in disk('help').stdout.split('Commands:')[1].split('\n\n')[0].splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        mine = [s for s in sections if s.split()[0] == name]
        assert len(mine) == 1, f'{name}: {len(mine)} sections in the manual'
        if name == 'formats':
            continue
        text = disk(name, '--help').stdout
        assert text.startswith(f'Usage: hv disk {name} '), name
        for common in ('--allow-ref', '--secret', '--json', '--force-share'):
            assert common in text, (name, common)
        for option in re.findall(r'(?m)^  (--[a-z-]+|-[A-Za-z])', text):
            if option not in ('-h', '-q', '-U', '-p', '-f', '-F'):
                assert option in mine[0] or option in sections[0] or option in manual.split('.SH COMMANDS')[0], (name, option)
        assert len(disk(name, '--no-such-option', status=2 if name == 'compare' else 1).stderr.splitlines()) == 2, name


COMPLETE = r'''
. "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_hv
printf '%s\n' "${COMPREPLY[@]}"
'''


def completed(*words):
    r = subprocess.run(['bash', '-c', COMPLETE, 'bash', here.parent.parent / 'completions/hv', hv, *words],
                       capture_output=True, text=True, check=True)
    return set(r.stdout.split())


@case
def bash_completes_commands_options_and_formats():
    need('bash')
    commands = completed('disk', '')
    assert {line[0] for line, _ in JSON} | {'serve', 'mount', 'help'} == commands, commands
    for c in commands - {'help', 'formats'}:
        assert {'--allow-ref', '--json', '--help'} <= completed('disk', c, '--'), c
    assert completed('disk', 'formats', '--') == {'--json'}
    assert completed('disk', 'convert', '-O', '') == set(formats)
    assert completed('disk', 'create', '-f', 'qcow2', '-o', 'clus') == {'cluster_size='}
    assert completed('disk', 'create', '-f', 'qcow2', '-o', 'a=b,clus') == {'a=b,cluster_size='}
    assert completed('disk', 'convert', '-O', 'vmdk', '-o', 'subf') == {'subformat='}
    assert completed('disk', 'dd', '') == {'if=', 'of=', 'bs=', 'count=', 'skip='}
    pathlib.Path('some-image').touch()
    for words in (('info', 'some-'), ('convert', '-c', 'some-'), ('dd', 'if', '=', 'some-'), ('check', '-f', 'raw', 'some-')):
        assert completed('disk', *words) == {'some-image'}, words
    # bash hands over a = as a word of its own
    assert completed('run', '--disk', 'some-') == {'some-image'}
    assert completed('run', '--disk', 'a,overl') == {'a,overlay=on'}
    assert completed('run', '--disk', 'a,format', '=', '') == set(formats)
    assert completed('run', '--disk', 'a,format', '=', 'qc') == {'qcow2'}
    assert completed('run', '--disk', 'a,format', '=', 'qcow2,overl') == {'qcow2,overlay=on'}


print(f'1..{len(cases)}')
failed = 0
for n, fn in enumerate(cases, 1):
    name = fn.__name__.replace('_', ' ')
    try:
        fn()
        print(f'ok {n} - {name}', flush=True)
    except Skip as why:
        print(f'ok {n} - {name} # SKIP {why}', flush=True)
    except Exception as e: # a failed check, or a tool that died
        failed += 1
        print(f'not ok {n} - {name}', flush=True)
        print('\n'.join(f'# {line}' for line in f'{type(e).__name__}: {e}'.splitlines()[-30:]), flush=True)
shutil.rmtree(os.getcwd(), ignore_errors=True)
sys.exit(failed != 0)
