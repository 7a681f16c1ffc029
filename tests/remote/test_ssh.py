#!/usr/bin/env python3
"""Disks of another host over SSH, as ESXi would give them: test_ssh.py HV-DISK REMOTE-TOOL

Prints TAP.  The other host is an sshd on the loopback whose shell has BusyBox's programs alone.
"""
import atexit
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

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from esxi import Host, Proxy, Skip, need  # noqa: E402

hv_disk, tool = (os.path.abspath(p) for p in sys.argv[1:3])
here = tempfile.mkdtemp(prefix='hv-remote-')
atexit.register(shutil.rmtree, here, ignore_errors=True)
os.chdir(here)
MIB = 1 << 20
tests = []
host = None


def test(fn):
    tests.append(fn)
    return fn


def content(size, seed=1):
    return random.Random(seed).randbytes(size)


def run(*args, timeout=240, ssh=None, **env):
    env = dict(os.environ, TRIVISOR_SSH=ssh or host.command(), **env)
    return subprocess.run([hv_disk, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout, env=env)


def fetch(url, out='out', status=0):
    r = run('convert', '-f', 'raw', '-O', 'raw', url, out)
    assert r.returncode == status, (r.returncode, r.stderr)
    return r


def refused(url, *words, ssh=None):
    r = run('info', '-f', 'raw', url, ssh=ssh)
    assert r.returncode == 1, (r.returncode, r.stdout)
    for w in words:
        assert w in r.stderr, r.stderr
    assert len(r.stderr.strip().splitlines()) == 1, r.stderr
    return r


def size_of(url):
    r = run('info', '--json', '-f', 'raw', url)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)['virtual-size']


@test
def a_partition_of_the_other_host_is_read_whole():
    data = content(21 * MIB + 512)
    disk = host.disks / 'naa.600508b1001c:1'
    disk.write_bytes(data)
    fetch(host.url(disk))
    assert pathlib.Path('out').read_bytes() == data


@test
def odd_sizes_and_odd_names():
    for size in 1, 511, 513, 256 * 1024, 256 * 1024 + 1, MIB + 700:
        data = content(size, size)
        name = host.vmfs / "it's $(a) \"name\" `b`; rm -rf x !* \\ %.img"
        name.write_bytes(data)
        url = host.url(str(name).replace('%', '%25').replace(' ', '%20'))
        fetch(url)
        assert pathlib.Path('out').read_bytes()[:size] == data, size
        assert size_of(url) == (size + 511) // 512 * 512


@test
def an_image_is_found_out_and_small_reads_find_their_place():
    data = content(9 * MIB, 2)
    pathlib.Path('a').write_bytes(data)
    r = run('convert', '-f', 'raw', '-O', 'vmdk', 'a', 'a.vmdk')
    assert r.returncode == 0, r.stderr
    (host.vmfs / 'a.vmdk').write_bytes(pathlib.Path('a.vmdk').read_bytes())
    r = run('compare', '-f', 'vmdk', '-F', 'raw', host.url(host.vmfs / 'a.vmdk'), 'a')
    assert r.returncode == 0, (r.stdout, r.stderr)


@test
def nothing_is_written_there():
    disk = host.vmfs / 'ro.img'
    disk.write_bytes(content(MIB))
    r = run('resize', '-f', 'raw', host.url(disk), '2M')
    assert r.returncode == 1 and 'only read' in r.stderr, r.stderr
    assert disk.read_bytes() == content(MIB)


@test
def what_is_not_there_or_no_file_gets_a_line():
    refused(host.url(host.disks / 'naa.gone'), 'there is no', 'naa.gone', '127.0.0.1')
    refused(host.url(host.disks), 'is a directory')
    (host.vmfs / 'empty').write_bytes(b'')
    refused(host.url(host.vmfs / 'empty'), 'is empty')


@test
def a_file_that_may_not_be_read_gets_a_line():
    if os.getuid() == 0:
        raise Skip('root may read everything')
    secret = host.vmfs / 'secret'
    secret.write_bytes(b'x' * 4096)
    secret.chmod(0)
    refused(host.url(secret), 'may not read')


@test
def names_that_could_be_taken_for_something_else_are_refused():
    mark = pathlib.Path('mark').absolute()
    for name in ('ssh://-oProxyCommand=touch%20mark/x', f'ssh://a`touch {mark}`/x', 'ssh://-lroot@host/x',
                 f'ssh://u;touch@h/x', 'ssh://h:22x/x', 'ssh://h:0/x', 'ssh://h:-1/x', 'ssh://h', 'ssh:///x', 'ssh://h/',
                 'ssh://[::1/x', 'ssh://u:pw@h/x', 'ssh://$(touch mark)/x', 'ssh://h/a%0ab', 'ssh://h/a\nb', 'ssh:h/x'):
        r = run('info', '-f', 'raw', name)
        assert r.returncode == 1, name
        assert len(r.stderr.strip().splitlines()) <= 2, (name, r.stderr)
    assert not mark.exists()


@test
def a_password_is_never_asked_for():
    refused(host.url('/x'), 'does not let us in', 'ssh-copy-id',
            ssh=host.command().replace(f'{host.dir}/user', f'{host.dir}/host2'))


@test
def a_host_key_that_changed_or_is_unknown_gets_a_line():
    disk = host.vmfs / 'ro.img'
    disk.write_bytes(content(MIB))
    host.know(host.port, key='host2')
    refused(host.url(disk), 'host key', 'ssh-keygen -R')
    (host.dir / 'known').write_text('')
    refused(host.url(disk), 'not known', 'by hand')
    host.know(host.port)
    fetch(host.url(disk))


@test
def a_host_that_is_not_there_gets_a_line():
    refused('ssh://127.0.0.1:1/x', 'SSH service')
    r = run('info', '-f', 'raw', host.url('/x'), ssh='no-such-program-here')
    assert r.returncode == 1 and 'openssh-client' in r.stderr, r.stderr


@test
def a_login_that_talks_does_no_harm():
    disk = host.disks / 'talk'
    disk.write_bytes(content(MIB, 3))
    force = host.dir / 'force'
    was = force.read_text()
    force.write_text(was.replace('exec sh', 'echo Welcome; echo "size 5"; echo to ESXi >&2\nexec sh'))
    try:
        fetch(host.url(disk))
        assert pathlib.Path('out').read_bytes() == content(MIB, 3)
        force.write_text(was.replace('exec sh', 'echo This account has no shell; exit 1\nexec sh'))
        refused(host.url(disk), 'status 1')
    finally:
        force.write_text(was)


@test
def the_size_is_found_by_whatever_that_host_has():
    size = 3 * MIB + 512 * 5
    disk = host.disks / 'naa.5000:2'
    disk.write_bytes(content(size, 4))
    none = 'exit 1\n'
    try:
        host.tool('stat', none)
        assert size_of(host.url(disk)) == size
        # ls as for a device: "major, minor" in place of a size
        host.tool('ls', 'case $1 in -lnL) echo "brw------- 1 0 0 8, 1 Jan 1 x";; *) :;; esac\n')
        # ESXi's: a line with the kind of table, one with the geometry, one for each partition
        host.tool('partedUtil', f'''[ "$2" = "{host.disks}/naa.5000" ] || exit 1
echo gpt; echo 1 255 63 99999; echo 1 64 8191 C12A7328F81F11D2BA4B00A0C93EC93B systemPartition 128
echo 2 8192 {8192 + size // 512 - 1} AA31E02A400F11DB9590000C2911D1B8 vmfs 0
''')
        assert size_of(host.url(disk)) == size
        (host.disks / 'naa.5000').write_bytes(b'x')
        assert size_of(host.url(host.disks / 'naa.5000')) == 99999 * 512
        host.tool('partedUtil', none)
        assert size_of(host.url(disk)) == size  # found by reading
        odd = host.vmfs / 'odd'
        odd.write_bytes(content(100001, 5))
        fetch(host.url(odd))
        assert pathlib.Path('out').read_bytes()[:100001] == content(100001, 5)
    finally:
        host.restore()


@test
def a_connection_that_drops_is_made_anew():
    data = content(24 * MIB, 6)
    disk = host.disks / 'drop'
    disk.write_bytes(data)
    proxy = Proxy(host.port)
    host.know(host.port, proxy.port)
    try:
        proxy.drop_after, proxy.times = 5 * MIB, 3
        fetch(host.url(disk, proxy.port))
        assert pathlib.Path('out').read_bytes() == data
        assert proxy.connections == 4, proxy.connections
    finally:
        host.know(host.port)
        proxy.close()


@test
def a_host_that_goes_away_for_good_is_an_error_and_not_for_ever():
    disk = host.disks / 'drop'
    disk.write_bytes(content(24 * MIB, 6))
    proxy = Proxy(host.port)
    host.know(host.port, proxy.port)
    try:
        proxy.drop_after, proxy.times, proxy.allow = 3 * MIB, 1, 1
        r = run('convert', '-f', 'raw', '-O', 'raw', host.url(disk, proxy.port), 'out')
        assert r.returncode == 1, r.returncode
        assert '127.0.0.1' in r.stderr and 'lost' in r.stderr, r.stderr
    finally:
        host.know(host.port)
        proxy.close()


BAD_DD = '''
for a; do case $a in bs=*) bs=${a#bs=};; skip=*) skip=${a#skip=};; count=*) count=${a#count=};; esac; done
first=$((bs*skip)); last=$((bs*skip+bs*count))
for place in $(BUSYBOX cat CTL/bad); do
	if [ $first -le $place ] && [ $place -lt $last ]; then
		echo x >>CTL/tries
		n=$(((place-first)/bs))
		[ $n = 0 ] || BUSYBOX dd "$@" count=$n 2>/dev/null
		echo "dd: /vmfs/devices/disks/x: Input/output error" >&2
		exit 1
	fi
done
exec BUSYBOX dd "$@"
'''


def bad_sectors(*places):
    (host.dir / 'bad').write_text(' '.join(map(str, places)))
    (host.dir / 'tries').write_text('')
    host.tool('dd', BAD_DD.replace('BUSYBOX', need('busybox')).replace('CTL', str(host.dir)))


@test
def a_bad_sector_there_is_an_error_here_and_all_others_are_read():
    size, bad = 4 * MIB, 2 * MIB + 300 * 512
    data = content(size, 7)
    disk = host.disks / 'bad'
    disk.write_bytes(data)
    bad_sectors(bad)
    try:
        r = run('convert', '-f', 'raw', '-O', 'raw', host.url(disk), 'out')
        assert r.returncode == 1 and 'nput/output' in r.stderr, r.stderr
        for first, count in (bad // 512 - 4, 4), (bad // 512 + 1, 4):
            r = run('dd', '-f', 'raw', '-O', 'raw', 'bs=512', f'skip={first}', f'count={count}', f'if={host.url(disk)}',
                    'of=out')
            assert r.returncode == 0, r.stderr
            assert pathlib.Path('out').read_bytes() == data[first * 512:(first + count) * 512]
    finally:
        host.restore()


@test
def a_killed_rescue_resumes_and_finds_the_bad_sectors():
    size, places = 6 * MIB + 1024, (3 * MIB + 700, 6 * MIB + 513)
    data = bytearray(content(size, 9))
    disk = host.disks / 'rescue'
    disk.write_bytes(data)
    bad_sectors(*places)
    try:
        env = dict(os.environ, TRIVISOR_SSH=host.command())
        args = [tool, 'fetch', host.url(disk), 'map', 'cache']
        p = subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env=env)
        assert p.stdout.readline().startswith('at ')
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        r = subprocess.run(args, capture_output=True, text=True, env=env, timeout=240)
        assert r.returncode == 0, r.stderr
        assert f'finished {size - 2 * 512} bad 1024 ' in r.stdout, r.stdout
        for place in places:
            at = place // 512 * 512
            data[at:at + 512] = bytes(512)
        assert pathlib.Path('cache').read_bytes() == data
        (host.dir / 'tries').write_text('')
        r = subprocess.run(args, capture_output=True, text=True, env=env, timeout=240)
        assert r.returncode == 0 and 'read 0' in r.stdout, (r.stdout, r.stderr)
        assert (host.dir / 'tries').read_text() == ''
    finally:
        host.restore()


@test
def a_file_that_shrinks_is_an_error():
    disk = host.disks / 'shrinks'
    disk.write_bytes(content(8 * MIB, 8))
    host.tool('dd', f'BB={need("busybox")}; [ -e {host.dir}/cut ] && : >{disk}; exec $BB dd "$@"\n')
    (host.dir / 'cut').touch()
    try:
        r = run('convert', '-f', 'raw', '-O', 'raw', host.url(disk), 'out')
        assert r.returncode == 1, r.stderr
    finally:
        (host.dir / 'cut').unlink()
        host.restore()


@test
def nothing_is_left_running():
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = [p for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')
                if str(host.dir) in read(p) and 'BatchMode' in read(p)]
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(left)


def read(path):
    try:
        return path.read_bytes().decode(errors='replace')
    except OSError:
        return ''


print(f'1..{len(tests)}', flush=True)
why = None
try:
    host = Host()
    if not run('formats').returncode == 0:
        raise Skip('hv-disk does not run')
except Skip as e:
    why = e
for number, fn in enumerate(tests, 1):
    try:
        if why:
            raise why
        fn()
        print(f'ok {number} - {fn.__name__}')
    except Skip as e:
        print(f'ok {number} - {fn.__name__} # SKIP {e}')
    except Exception as e:
        print(f'# {type(e).__name__}: {str(e)[:1500]}'.replace('\n', ' '))
        print(f'not ok {number} - {fn.__name__}')
    sys.stdout.flush()
if host:
    host.close()
