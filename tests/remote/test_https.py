#!/usr/bin/env python3
"""Files of a datastore over HTTPS, as ESXi shows them: test_https.py HV-DISK REMOTE-TOOL HV-RECOVER

Prints TAP.  folder_server.py stands for the host.
"""
import atexit
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

here = pathlib.Path(__file__).resolve().parent
hv_disk, tool, hv_recover = (os.path.abspath(p) for p in sys.argv[1:4])
work = tempfile.mkdtemp(prefix='hv-https-')
atexit.register(shutil.rmtree, work, ignore_errors=True)
os.chdir(work)
MIB = 1 << 20
tests = []


class Skip(Exception):
    pass


def test(fn):
    tests.append(fn)
    return fn


def content(size, seed=1):
    return random.Random(seed).randbytes(size)


def certificate(name, *hosts):
    """A certificate nobody signed, as a fresh ESXi has; and the pin of its key."""
    if not shutil.which('openssl'):
        raise Skip('there is no openssl here')
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
                    '-days', '3650', '-subj', '/CN=' + hosts[0], '-addext',
                    'subjectAltName=' + ','.join(hosts), '-keyout', f'{name}.key', '-out', f'{name}.pem'],
                   check=True, capture_output=True)
    der = subprocess.run(['openssl', 'x509', '-in', f'{name}.pem', '-pubkey', '-noout'], check=True,
                         capture_output=True).stdout
    der = subprocess.run(['openssl', 'pkey', '-pubin', '-outform', 'der'], input=der, check=True,
                         capture_output=True).stdout
    import base64
    import hashlib
    hash = hashlib.sha256(der)
    return 'sha256//' + base64.b64encode(hash.digest()).decode(), hash.hexdigest()


class Web:
    def __init__(self, *options, tls='good'):
        self.options = list(options) + ([f'tls={tls}.pem,{tls}.key'] if tls else [])
        self.scheme = 'https' if tls else 'http'

    def __enter__(self):
        self.p = subprocess.Popen([sys.executable, here / 'folder_server.py', 'stores', *self.options],
                                  stdout=subprocess.PIPE, text=True)
        self.port = self.p.stdout.readline().strip()
        return self

    def __exit__(self, *exc):
        self.p.terminate()
        self.p.wait()
        self.p.stdout.close()

    def url(self, path='', user='', store='datastore1'):
        at = user + '@' if user else ''
        query = f'?dcPath=ha-datacenter&dsName={store}' if store else ''
        return f'{self.scheme}://{at}127.0.0.1:{self.port}/folder{path}{query}'


def run(program, *args, timeout=240):
    env = {k: v for k, v in os.environ.items() if k.lower() not in ('https_proxy', 'http_proxy', 'all_proxy')}
    env['HOME'] = work
    return subprocess.run([program, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout, env=env)


def info(url, *options):
    return run(hv_disk, 'info', '-f', 'raw', *options, url)


def refused(url, *words, options=('--cacert', 'good.pem')):
    r = info(url, *options)
    assert r.returncode == 1, (r.returncode, r.stdout)
    for w in words:
        assert w in r.stderr, r.stderr
    assert len(r.stderr.strip().splitlines()) == 1, r.stderr


def fetch(url, *options):
    r = run(hv_disk, 'convert', '-f', 'raw', '-O', 'raw', *(options or ('--cacert', 'good.pem')), url, 'out')
    assert r.returncode == 0, r.stderr
    return pathlib.Path('out').read_bytes()


def listing(url, *options):
    r = run(tool, 'list', url, *(options or ('cacert=good.pem',)))
    assert r.returncode == 0, r.stderr
    lines = [x.split('\t') for x in r.stdout.splitlines()]
    return lines[:-1], int(lines[-1][1])


FLAT = '/vm%20one/vm%20one-flat.vmdk'


@test
def a_flat_disk_of_a_datastore_is_read():
    with Web() as w:
        assert fetch(w.url(FLAT)) == content(20 * MIB)


@test
def the_folders_show_a_tree():
    with Web() as w:
        top, out = listing(w.url(store=''))
        assert [x[:2] for x in top] == [['folder', 'archive & co'], ['folder', 'datastore1']], top
        names, out = listing(top[1][4])
        assert [x[:3] for x in names] == [['folder', 'sub', '-1'], ['folder', 'vm one', '-1']], names
        files, out = listing(names[1][4])
        assert out == 0
        found = {x[1]: x for x in files}
        assert set(found) == {'vm one-flat.vmdk', 'vm one.vmdk', 'a<b>&"c".vmx', 'größe.log'}, files
        flat = found['vm one-flat.vmdk']
        assert flat[0] == 'file' and int(flat[2]) == 20 * MIB and int(flat[3]) == 1354131300, flat
        assert fetch(flat[4]) == content(20 * MIB)
        assert fetch(found['a<b>&"c".vmx'][4])[:8] == b'.encodin'
        assert fetch(found['größe.log'][4])[:3] == b'log'


@test
def a_login_by_basic_authentication():
    with Web('user=root:p:ä&<1 ') as w:
        pathlib.Path('pw').write_text('p:ä&<1 \nnot this\n')
        pathlib.Path('wrong').write_text('guess\n')
        trust = ('--cacert', 'good.pem')
        assert fetch(w.url(FLAT, 'root'), *trust, '--password-file', 'pw') == content(20 * MIB)
        refused(w.url(FLAT), 'who you are')
        refused(w.url(FLAT, 'root'), 'root', 'password', options=(*trust, '--password-file', 'wrong'))
        refused(w.url(FLAT, 'root'), 'absent', options=(*trust, '--password-file', 'absent'))
        refused(w.url(FLAT, 'root:secret'), 'no passwords in names')
        assert 'secret' not in info(w.url(FLAT, 'root:secret')).stderr
        assert listing(w.url('/', 'root'), 'cacert=good.pem', 'password-file=pw')[0]


@test
def a_password_only_travels_encrypted():
    for host in '10.0.0.1', 'esx.example':
        r = info(f'http://root@{host}/folder/x', '--password-file', 'pw')
        assert r.returncode == 1 and 'without encryption' in r.stderr, r.stderr


@test
def a_session_is_begun_and_begun_again_when_it_ends():
    pathlib.Path('pw').write_text('p&<1\n')
    with Web('user=root:p&<1', 'session', 'expire=9') as w:
        got = fetch(w.url(FLAT, 'root'), '--cacert', 'good.pem', '--password-file', 'pw')
        assert got == content(20 * MIB)
        pathlib.Path('wrong').write_text('guess\n')
        refused(w.url(FLAT, 'root'), 'password', options=('--cacert', 'good.pem', '--password-file', 'wrong'))


@test
def a_server_nobody_vouches_for_is_refused_until_its_key_is_given():
    pin, in_hex = pins['good']
    with Web() as w:
        refused(w.url(FLAT), 'not trusted', pin, options=())
        for p in pin, in_hex, in_hex.upper(), ':'.join(re.findall('..', in_hex)):
            assert fetch(w.url(FLAT), '--pin', p) == content(20 * MIB)
        for p in 'x', pin + 'x', in_hex[1:], 'sha256//', 'sha1//abc':
            refused(w.url(FLAT), 'is no pin', options=('--pin', p))
        refused(w.url(FLAT), pin, 'another server', options=('--pin', pins['other'][0]))
        refused(w.url(FLAT), 'trusted', options=('--cacert', 'other.pem'))
        refused(w.url(FLAT), pin, options=('--cacert', 'good.pem', '--pin', pins['other'][0]))
    with Web(tls='other') as w:  # a certificate for another name
        refused(w.url(FLAT), 'not trusted', options=('--cacert', 'other.pem'))
        assert fetch(w.url(FLAT), '--pin', pins['other'][0]) == content(20 * MIB)


@test
def what_is_not_there_is_forbidden_or_a_folder_gets_a_line():
    with Web() as w:
        refused(w.url('/vm%20one/gone.vmdk'), 'there is no')
        refused(w.url('/vm%20one/'), 'is a folder')
        r = run(tool, 'list', w.url(FLAT), 'cacert=good.pem')
        assert r.returncode == 1 and 'not the list' in r.stderr, r.stderr
    for status, word in (403, 'does not let'), (400, 'status 400'):
        with Web(f'status={status}') as w:
            refused(w.url(FLAT), word)
    with Web('status=503') as w:
        r = run(tool, 'list', w.url('/'), 'cacert=good.pem', 'attempts=2')
        assert r.returncode == 1 and '503' in r.stderr, r.stderr
    r = info('https://127.0.0.1:1/folder/x?dsName=a')
    assert r.returncode == 1 and len(r.stderr.splitlines()) == 1, r.stderr


@test
def bodies_that_end_early_are_gone_on_with():
    with Web(f'drop={700001}') as w:
        assert fetch(w.url(FLAT)) == content(20 * MIB)


@test
def a_server_without_ranges_gives_small_files_whole():
    with Web('no-ranges') as w:
        assert fetch(w.url('/vm%20one/vm%20one.vmdk'))[:4] == b'# Di'
        refused(w.url(FLAT), 'parts of files')


@test
def hostile_listings_are_bounded():
    row = '<tr><td><a href="{}">{}</a></td><td>28-Nov-2012 19:35</td><td>5</td></tr>\n'
    q = '?dcPath=ha%2ddatacenter&amp;dsName=d'
    bad = ['/folder/%2e%2e' + q, '/folder/a%2fb' + q, '/folder/x%00y' + q, '/folder/%0a' + q, '/folder/%1b[2J' + q,
           '/folder/%ff%fe' + q, 'https://evil.example/folder/f' + q, '//evil.example/folder/f', 'file:///etc/passwd',
           '/etc/passwd', 'javascript:alert(1)', '/folderx/f', '/folder/' + 'n' * 300 + q, '/folder/' + 'q' * 5000,
           'http://127.0.0.1/folder/f' + q, '/folder/../sdk', 'ssh://h/folder/x']
    page = '<table>' + ''.join(row.format(h, 'n') for h in bad) + row.format('/folder/good%2dname' + q, 'x') + '</table>'
    pathlib.Path('page').write_text(page)
    with Web('page=page') as w:
        got, out = listing(w.url('/'))
    assert [x[1] for x in got] == ['good-name'], got
    assert out == len(bad), out
    base = 'https://h/folder/?dsName=d'
    cases = {
        'deep': '<b>' * 1000000,
        'rows': '<tr>' * 1000000,
        'ends': '<b>' * 100 + '</i>' * 1000000,
        'comment': '<!--' * 1000000,
        'quote': '<a href="' + 'x' * 7000000,
        'attributes': '<tr><td><a ' + ' '.join(f'a{i}=1' for i in range(400000)) + '>',
        'entities': '&amp;' * 1500000,
        'many': '<table>' + ''.join(f'<tr><td><a href="/folder/f{i}?dsName=d">f</a></td></tr>' for i in range(70000)),
        'empty': '',
        'binary': ''.join(map(chr, range(256))) * 10000,
    }
    for name, text in cases.items():
        pathlib.Path('page').write_bytes(text.encode('latin-1'))
        start = time.monotonic()
        r = run(tool, 'parse', 'page', base)
        assert r.returncode in (0, 1), (name, r.returncode, r.stderr[-500:])
        if name == 'many':
            assert r.stdout.splitlines()[-1] == f'left out\t{70000 - 65536}', r.stdout[-200:]
        print(f'# {name}: {time.monotonic() - start:.1f} s, {len(r.stdout.splitlines())} lines', flush=True)
    with open('page', 'wb') as f:
        f.truncate(9 * MIB)
    with Web('page=page') as w:
        r = run(tool, 'list', w.url('/'), 'cacert=good.pem')
        assert r.returncode == 1 and 'larger' in r.stderr, r.stderr


@test
def recover_shows_the_folders_as_a_tree():
    pathlib.Path('pw').write_text('p:1\n')
    trust = ('--cacert', 'good.pem', '--password-file', 'pw')
    with Web('user=root:p:1') as w:
        r = run(hv_recover, 'tree', *trust, w.url('/', 'root'))
        assert r.returncode == 0, r.stderr
        assert '── vm one/' in r.stdout and '── vm one-flat.vmdk  20 MiB' in r.stdout, r.stdout
        assert '2 directories, 4 files' in r.stdout, r.stdout
        r = run(hv_recover, 'ls', '-1', *trust, w.url('', 'root', store=''))
        assert r.stdout.splitlines() == ['archive & co/', 'datastore1/'], (r.stdout, r.stderr)
        r = run(hv_recover, 'ls', '--json', *trust, w.url('/vm%20one/', 'root'))
        flat = [x for x in json.loads(r.stdout) if x['name'] == 'vm one-flat.vmdk'][0]
        assert flat['length'] == 20 * MIB and flat['mtime'] == 1354131300, flat
        assert fetch(flat['url'], *trust) == content(20 * MIB)
        r = run(hv_recover, 'ls', '--cacert', 'good.pem', w.url('/'))
        assert r.returncode == 1 and 'who you are' in r.stderr, r.stderr
    pathlib.Path('page').write_text('<table><tr><td><a href="/folder/\x1b[2Jx%1b?dsName=d">\x1b[2J</a></td></tr>'
                                    '<tr><td><a href="/folder/%c2%9bK?dsName=d">y</a></td></tr></table>')
    with Web('page=page') as w:
        r = run(hv_recover, 'ls', '--cacert', 'good.pem', w.url('/'))
        assert r.returncode == 0 and '\x1b' not in r.stdout + r.stderr and '\x9b' not in r.stdout, r.stdout


@test
def a_killed_fetch_resumes_without_fetching_again():
    """And a place the server cannot read is found, down to its sector."""
    data, bad = content(20 * MIB), 9 * MIB + 3 * 512 + 100
    with Web(f'bad={bad}') as w:
        args = [tool, 'fetch', w.url(FLAT), 'map', 'cache', 'cacert=good.pem', 'attempts=1']
        p = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline().startswith('at ')
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        r = run(*args)
        assert r.returncode == 0, r.stderr
        sector = bad // 512 * 512
        assert f'finished {20 * MIB - 512} bad 512 ' in r.stdout, r.stdout
        want = data[:sector] + bytes(512) + data[sector + 512:]
        assert pathlib.Path('cache').read_bytes() == want
        r = run(*args)
        assert r.returncode == 0 and 'read 0' in r.stdout, r.stdout
        map = pathlib.Path('map').read_text()
        assert f'0x{sector:08X}  0x00000200  -' in map, map


@test
def a_server_that_goes_away_marks_nothing_as_bad():
    pathlib.Path('map').unlink(missing_ok=True)
    pathlib.Path('cache').unlink(missing_ok=True)
    with Web() as w:
        args = [tool, 'fetch', w.url(FLAT), 'map', 'cache', 'cacert=good.pem', 'attempts=2']
        p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        p.stdout.readline()
        w.p.kill()
        out, err = p.communicate(timeout=200)
    assert 'bad 0 ' in out, out
    assert p.returncode == 1 or f'finished {20 * MIB}' in out, (out, err)


def prepare():
    vm = pathlib.Path('stores/datastore1/vm one')
    vm.mkdir(parents=True)
    pathlib.Path('stores/datastore1/sub').mkdir()
    pathlib.Path('stores/archive & co').mkdir()
    (vm / 'vm one-flat.vmdk').write_bytes(content(20 * MIB))
    (vm / 'vm one.vmdk').write_text('# Disk DescriptorFile\nversion=1\n')
    (vm / 'a<b>&"c".vmx').write_text('.encoding = "UTF-8"\n')
    (vm / 'größe.log').write_text('log\n')
    os.utime(vm / 'vm one-flat.vmdk', (1354131300, 1354131300))
    return {'good': certificate('good', 'IP:127.0.0.1'), 'other': certificate('other', 'DNS:another.example')}


print(f'1..{len(tests)}', flush=True)
why = None
try:
    pins = prepare()
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
