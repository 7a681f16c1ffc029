#!/usr/bin/env python3
"""Damaged datastores of other hosts: remote.py HV-RECOVER MKVMFS.  Prints TAP.

A VMFS volume behind an sshd on the loopback that has nothing but BusyBox, and behind an HTTPS server
that knows ranges: scan, ls, cat, cp; with a map, killed in the middle and begun again.
"""
import atexit
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

remote = pathlib.Path(__file__).resolve().parent.parent / 'remote'
sys.path[:0] = [str(remote), str(remote.parent / 'vmfs' / 'mkfs')]
import fault  # noqa: E402
import lab  # noqa: E402
from esxi import Host, Skip, need  # noqa: E402

hv_recover, mkvmfs = (os.path.abspath(p) for p in sys.argv[1:3])
top = pathlib.Path(tempfile.mkdtemp(prefix='hv-recover-remote-'))
atexit.register(shutil.rmtree, top, ignore_errors=True)
os.chdir(top)
PATIENCE = 900  # seconds; only a hang takes so long
AHEAD = 12 << 20  # what SSH reads ahead of what it was asked for, and a request more
tests = []
host = vol = None
no_host = ''


def test(fn):
    tests.append(fn)
    return fn


def environment():
    env = {k: v for k, v in os.environ.items() if k.lower() not in ('https_proxy', 'http_proxy', 'all_proxy')}
    env.update(HOME=str(top), XDG_STATE_HOME=str(top / 'state'), TZ='UTC')
    if host:
        env['TRIVISOR_SSH'] = host.command()
    return env


def command(cmd, *args):
    return [hv_recover, cmd, '-q', '--no-findings', *map(str, args)]


def run(cmd, *args, status=0, text=True):
    r = subprocess.run(command(cmd, *args), stdin=subprocess.DEVNULL, capture_output=True, text=text, timeout=PATIENCE,
                       env=environment())
    assert r.returncode == status, (cmd, r.returncode, r.stderr)
    return r.stdout


def sha(data):
    return hashlib.sha256(data).hexdigest()


def read_all(source, *options):
    """The volume as people look at it: all must be as its manifest says."""
    flat = vol.content(vol.file('/vm/vm-flat.vmdk'))
    seen = json.loads(run('scan', '--json', *options, source))
    assert [v['version'] for v in seen['volumes']] == [vol.version], seen
    names = set(run('ls', '-1', *options, f'{source}:/vm').split())
    assert names >= {'vm.vmx', 'vm.vmdk', 'vm-flat.vmdk', 'vm.nvram', 'vmware.log'}, names
    assert run('cat', *options, f'{source}:/iso/small') == 'small\n'
    run('cp', '--overwrite', *options, f'{source}:/vm/vm-flat.vmdk', 'flat')
    assert sha(pathlib.Path('flat').read_bytes()) == sha(flat)


# Each read of that host is written down as "first last"; slow until there is a file `fast`.
LOGGING_DD = '''
for a; do case $a in bs=*) bs=${a#bs=};; skip=*) skip=${a#skip=};; count=*) count=${a#count=};; esac; done
echo $((bs*skip)) $((bs*skip+bs*count)) >>CTL/reads
[ -e CTL/fast ] || BUSYBOX sleep 0.3
exec BUSYBOX dd "$@"
'''


def reads():
    """What was asked of that host since the last time, as (first, last)."""
    path = host.dir / 'reads'
    out = [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []
    path.write_text('')
    return out


def sure(path):
    """Areas that need not be asked for again: read-ahead from a gap beside one goes so far into it."""
    return [(a + AHEAD, b - AHEAD) for a, b in finished(path) if b - a > 3 * AHEAD]


def finished(path):
    """Areas of a map that are marked read: (first, last)."""
    try:
        lines = [line.split() for line in pathlib.Path(path).read_text().splitlines() if not line.startswith('#')]
    except OSError:
        return []
    return [(int(a, 0), int(a, 0) + int(n, 0)) for a, n, state in (x for x in lines[1:] if len(x) == 3) if state == '+']


def overlaps(a, b):
    return [(x, y) for x in a for y in b if x[0] < y[1] and y[0] < x[1]]


def on_host():
    if not host:
        raise Skip(no_host)
    disk = host.disks / 'naa.600508b1001c:3'
    if not disk.exists():
        subprocess.run(['cp', '--sparse=always', vol.images[0], disk], check=True)
    return disk


@test
def a_volume_of_the_other_host_is_read_over_ssh():
    disk = on_host()
    read_all(host.url(disk))


@test
def a_killed_scan_with_a_map_fetches_nothing_twice():
    disk = on_host()
    url = host.url(disk)
    host.tool('dd', LOGGING_DD.replace('BUSYBOX', need('busybox')).replace('CTL', str(host.dir)))
    try:
        p = subprocess.Popen(command('scan', '--full', '--threads', '1', '--map', 'map', url), stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment())
        last = time.monotonic() + PATIENCE
        while not sure('map') and p.poll() is None and time.monotonic() < last:
            time.sleep(0.1)
        early = p.poll()
        p.send_signal(signal.SIGKILL)
        words = p.communicate()[1]
        assert early is None and sure('map'), (early, words)
        was = settled('map')
        (host.dir / 'fast').touch()
        reads()
        run('scan', '--full', '--map', 'map', url)
        again = reads()
        assert again and not overlaps(again, was), overlaps(again, was)[:5]
        assert finished('map') == [(0, os.path.getsize(vol.images[0]))], pathlib.Path('map').read_text()
        read_all(url, '--map', 'map')
        assert not reads()
    finally:
        host.restore()


def settled(path):
    """The areas once nobody writes the map any more: what kept it ends with its parent."""
    was = None
    while was != (was := sure(path)) or busy():
        time.sleep(0.5)
    reads()
    return was


def busy():
    for p in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        try:
            words = p.read_bytes()
        except OSError:
            continue
        if hv_recover.encode() in words and b'scan' in words and str(host.port).encode() in words:
            return True
    return False


@test
def what_was_fetched_is_the_disk():
    assert sha((top / 'map.data').read_bytes()) == sha(pathlib.Path(vol.images[0]).read_bytes())


@test
def the_disk_there_is_as_it_was():
    assert sha(on_host().read_bytes()) == sha(pathlib.Path(vol.images[0]).read_bytes())


class Web:
    def __init__(self, *options):
        if not shutil.which('openssl'):
            raise Skip('there is no openssl here')
        subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
                        '-days', '3650', '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout',
                        'web.key', '-out', 'web.pem'], check=True, capture_output=True)
        store = pathlib.Path('stores/datastore1')
        store.mkdir(parents=True, exist_ok=True)
        (store / 'lun.img').unlink(missing_ok=True)
        (store / 'lun.img').symlink_to(vol.images[0])
        self.options = [*options, 'tls=web.pem,web.key']

    def __enter__(self):
        self.p = subprocess.Popen([sys.executable, remote / 'folder_server.py', 'stores', *self.options],
                                  stdout=subprocess.PIPE, text=True)
        self.port = self.p.stdout.readline().strip()
        return f'https://127.0.0.1:{self.port}/folder/lun.img?dcPath=ha-datacenter&dsName=datastore1'

    def __exit__(self, *exc):
        self.p.terminate()
        self.p.wait()
        self.p.stdout.close()


@test
def a_volume_is_read_over_https():
    with Web() as url:
        read_all(url, '--cacert', 'web.pem')


@test
def answers_that_end_early_are_asked_for_again():
    with Web(f'drop={3 << 20}') as url:
        read_all(url, '--cacert', 'web.pem')


@test
def a_server_nobody_vouches_for_is_refused():
    with Web() as url:
        r = subprocess.run(command('scan', url), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=PATIENCE, env=environment())
        assert r.returncode == 1 and 'not trusted' in r.stderr and 'as CA file' in r.stderr and len(r.stderr.strip().splitlines()) == 1, r.stderr


@test
def nothing_is_left_running():
    last = time.monotonic() + 120
    while host and busy() and time.monotonic() < last:
        time.sleep(0.2)
    assert not host or not busy()


def main():
    global host, vol, no_host
    print(f'1..{len(tests)}', flush=True)
    bad = 0
    vol = lab.make(mkvmfs, top / 'v', fault.head(6, ('512M',), 'v') + fault.base())
    try:
        host = Host()
    except Skip as e:
        no_host = str(e)
    for number, fn in enumerate(tests, 1):
        try:
            fn()
            print(f'ok {number} - {fn.__name__}', flush=True)
        except Skip as e:
            print(f'ok {number} - {fn.__name__} # SKIP {e}', flush=True)
        except Exception as e:  # a test's own report
            bad += 1
            print(f'# {type(e).__name__}: {str(e)[:1500]}'.replace('\n', ' '))
            print(f'not ok {number} - {fn.__name__}', flush=True)
    if host:
        host.close()
    return bad != 0


sys.exit(main())
