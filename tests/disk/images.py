#!/usr/bin/env python3
"""hv disk create, info, convert, compare, check, map, measure as people use them: images.py HV

Output and statuses beside qemu-img's, names inside images, interrupted work.  Prints TAP.
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
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
has_qemu = shutil.which('qemu-img') is not None
cases = []


class Skip(Exception):
    pass


def case(fn):
    cases.append(fn)
    return fn


def disk(*args, status=0):
    r = subprocess.run([hv, 'disk', *map(str, args)], capture_output=True, text=True, timeout=300)
    assert r.returncode == status, f'{args}: status {r.returncode}, not {status}\n{r.stdout}{r.stderr}'
    return r


def qemu(*args, status=0):
    if not has_qemu:
        raise Skip('no qemu-img')
    r = subprocess.run(['qemu-img', *map(str, args)], capture_output=True, text=True, timeout=300)
    assert r.returncode == status, f'qemu-img {args}: {r.returncode}\n{r.stdout}{r.stderr}'
    return r


def refused(*args, words=(), status=1):
    """One clear line on standard error, with these words in it."""
    r = disk(*args, status=status)
    lines = r.stderr.strip().splitlines()
    assert len(lines) == 1 or lines[-1].startswith('Try '), r.stderr
    for w in words:
        assert w in r.stderr, f'{w!r} is not in {r.stderr!r}'


def need(*formats):
    have = {f['name'] for f in json.loads(disk('formats', '--json').stdout)}
    for f in formats:
        if f not in have:
            raise Skip(f'no format {f}')


def source(name='src.raw', mib=12, seed=1):
    rng = random.Random(seed)
    with open(name, 'wb') as f:
        f.truncate(mib * MIB)
        for off in range(0, mib * MIB, 3 * MIB):
            f.seek(off)
            f.write(rng.randbytes(MIB))
    return name


@case
def every_command_explains_itself():
    for command in ('check', 'compare', 'convert', 'create', 'info', 'map', 'measure', 'repair'):
        out = disk(command, '--help').stdout
        assert out.startswith(f'Usage: hv disk {command}'), out
        assert '--allow-ref' in out and '--json' in out


@case
def wrong_usage_is_said_in_one_line():
    refused('frobnicate', words=["there is no command 'frobnicate'"])
    refused('info', words=['name one image'])
    refused('info', 'gone.raw', words=["cannot open 'gone.raw'", 'No such file'])
    refused('create', '-f', 'raw', 'x.raw', words=['the size is missing'])
    refused('create', '-f', 'raw', 'x.raw', '12q', words=["'12q' is not a size"])
    refused('create', '-f', 'qcow9', 'x.raw', '1M', words=["'qcow9' is not known"])
    refused('create', '-f', 'raw', '-o', 'colour=red', 'x.raw', '1M', words=["no option 'colour'"])
    refused('convert', 'a', words=['name a source and a target'])
    refused('convert', '-S', '5000', 'a', 'b', words=['power of two'])
    refused('compare', 'a', 'b', status=2, words=["cannot open 'a'"])
    refused('check', '-r', 'some', 'a', words=['neither leaks nor all'])
    assert not os.path.exists('x.raw')


@case
def formats_are_guessed_for_reading_and_said():
    need('qcow2')
    disk('create', '-f', 'qcow2', 'g.qcow2', '1M')
    assert "'g.qcow2' is taken as qcow2" in disk('info', 'g.qcow2').stderr
    assert disk('info', '-q', 'g.qcow2').stderr == ''
    assert disk('info', '-f', 'qcow2', 'g.qcow2').stderr == ''
    refused('check', '-r', 'all', 'g.qcow2', words=['the format of a writable disk must be given'])
    refused('repair', 'g.qcow2', words=['the format of a writable disk must be given'])
    disk('repair', '-f', 'qcow2', 'g.qcow2')


@case
def info_is_what_people_know():
    need('qcow2')
    disk('create', '-q', '-f', 'qcow2', 'i-base.qcow2', '1G')
    disk('create', '-q', '-f', 'qcow2', '-b', 'i-base.qcow2', '-F', 'qcow2', 'i-top.qcow2')
    ours, theirs = disk('info', '-q', 'i-top.qcow2').stdout, qemu('info', 'i-top.qcow2').stdout
    for line in theirs.splitlines():
        if not line.startswith('disk size'):
            assert line in ours.splitlines(), f'{line!r} is not in\n{ours}'
    ours = json.loads(disk('info', '--json', 'i-top.qcow2').stdout)
    theirs = json.loads(qemu('info', '--output=json', 'i-top.qcow2').stdout)
    for key in ('virtual-size', 'filename', 'cluster-size', 'format', 'backing-filename', 'backing-filename-format',
                'dirty-flag'):
        assert ours[key] == theirs[key], f'{key}: {ours[key]} and {theirs[key]}'
    assert theirs['format-specific']['data'].items() <= ours['format-specific']['data'].items(), ours
    chain = json.loads(disk('info', '--output=json', '--backing-chain', 'i-top.qcow2').stdout)
    assert [c['format'] for c in chain] == ['qcow2', 'qcow2']


@case
def map_is_what_people_know():
    need('qcow2')
    source('m.raw')
    disk('convert', '-f', 'raw', '-O', 'qcow2', 'm.raw', 'm-base.qcow2')
    disk('create', '-q', '-f', 'qcow2', '-b', 'm-base.qcow2', '-F', 'qcow2', 'm.qcow2', '20M')
    for image in ('m.raw', 'm-base.qcow2', 'm.qcow2'):
        fmt = image.rsplit('.')[-1]
        ours = json.loads(disk('map', '-f', fmt, '--json', image).stdout)
        theirs = json.loads(qemu('map', '-f', fmt, '--output=json', image).stdout)

        def data(runs):
            return [(r['start'], r['length'], r['depth']) for r in runs if r['data']]
        assert data(ours) == data(theirs), f'{data(ours)}\n{data(theirs)}'
        assert sum(r['length'] for r in ours) == sum(r['length'] for r in theirs)
    part = json.loads(disk('map', '-f', 'raw', '--json', '--start-offset', '1M', '--max-length', '4M', 'm.raw').stdout)
    assert part[0]['start'] == MIB and sum(r['length'] for r in part) == 4 * MIB


@case
def measure_is_enough():
    need('qcow2')
    source('me.raw')
    m = json.loads(disk('measure', '-f', 'raw', '-O', 'qcow2', '--json', 'me.raw').stdout)
    disk('convert', '-f', 'raw', '-O', 'qcow2', 'me.raw', 'me.qcow2')
    assert os.path.getsize('me.qcow2') <= m['required'] <= m['fully-allocated']
    assert 'required size: ' in disk('measure', '-O', 'raw', '--size', '1G').stdout


@case
def compare_has_the_statuses_of_qemu_img():
    source('c1.raw')
    shutil.copy('c1.raw', 'c2.raw')
    assert disk('compare', '-f', 'raw', '-F', 'raw', 'c1.raw', 'c2.raw').stdout == 'Images are identical.\n'
    with open('c2.raw', 'r+b') as f:
        f.seek(3 * MIB + 77)
        f.write(b'not what it was')
    out = disk('compare', '-f', 'raw', '-F', 'raw', 'c1.raw', 'c2.raw', status=1).stdout
    assert out == f'Content mismatch at offset {3 * MIB + 77}!\n', out
    out = json.loads(disk('compare', '-c', '--json', 'c1.raw', 'c2.raw', status=1).stdout)
    assert out['first'] == 3 * MIB + 77 and 10 <= out['different-bytes'] <= 15
    os.truncate('c1.raw', 20 * MIB)
    disk('compare', '-q', 'c1.raw', 'c1.raw')
    shutil.copy('c1.raw', 'c3.raw')
    os.truncate('c3.raw', 12 * MIB)
    assert 'size mismatch' in disk('compare', '-f', 'raw', '-F', 'raw', 'c1.raw', 'c3.raw').stdout
    disk('compare', '-s', '-f', 'raw', '-F', 'raw', 'c1.raw', 'c3.raw', status=1)


@case
def check_has_the_statuses_of_qemu_img():
    need('qcow2')
    disk('check', '-f', 'raw', source('k.raw'), status=63)
    disk('convert', '-f', 'raw', '-O', 'qcow2', 'k.raw', 'k.qcow2')
    assert 'No errors were found' in disk('check', '-f', 'qcow2', 'k.qcow2').stdout
    assert json.loads(disk('check', '--json', 'k.qcow2').stdout)['check-errors'] == 0
    with open('k.qcow2', 'r+b') as f:  # a cluster that is counted and not used: a leak
        f.seek(48)
        f.seek(int.from_bytes(f.read(8), 'big'))
        f.seek(int.from_bytes(f.read(8), 'big') + 2 * 400)
        f.write(b'\0\1')
    disk('check', '-f', 'qcow2', 'k.qcow2', status=3)
    disk('check', '-q', '-f', 'qcow2', '-r', 'leaks', 'k.qcow2')
    disk('check', '-f', 'qcow2', 'k.qcow2')


@case
def names_inside_images_are_not_followed_out():
    need('qcow2')
    for d in ('in', 'out'):
        os.makedirs(d, exist_ok=True)
    disk('create', '-q', '-f', 'qcow2', 'out/base.qcow2', '1M')
    disk('create', '-q', '-f', 'qcow2', '-b', '../out/base.qcow2', '-F', 'qcow2', 'in/top.qcow2')
    refused('map', '-f', 'qcow2', 'in/top.qcow2', words=['in/top.qcow2', '../out/base.qcow2', '--allow-ref'])
    refused('convert', '-f', 'qcow2', 'in/top.qcow2', 'x.raw', words=['--allow-ref'])
    assert not os.path.exists('x.raw')
    disk('convert', '-f', 'qcow2', '--allow-ref', 'out', 'in/top.qcow2', 'x.raw')
    disk('info', '-f', 'qcow2', 'in/top.qcow2')  # which looks at this one alone
    disk('create', '-q', '-f', 'qcow2', '-u', '-b', '/etc/passwd', '-F', 'raw', 'in/evil.qcow2', '1M')
    refused('convert', '-f', 'qcow2', 'in/evil.qcow2', 'x.raw', words=['/etc/passwd', '--allow-ref'])


@case
def what_is_in_use_stays():
    source('u.raw')
    import fcntl
    import struct
    with open('u.raw', 'r+b') as f:
        fcntl.fcntl(f, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK
        refused('create', '-f', 'raw', 'u.raw', '1M', words=['in use by another process'])
        refused('convert', '-f', 'raw', 'u.raw', 'v.raw', words=['being written by another process'])
        disk('convert', '-U', '-f', 'raw', 'u.raw', 'v.raw')
    assert os.path.getsize('u.raw') == 12 * MIB
    refused('convert', '-f', 'raw', 'u.raw', 'u.raw', words=['in use'])
    assert os.path.getsize('u.raw') == 12 * MIB


@case
def backing_files_are_kept_on_request():
    need('qcow2')
    disk('convert', '-f', 'raw', '-O', 'qcow2', source('b.raw'), 'b-base.qcow2')
    disk('create', '-q', '-f', 'qcow2', '-b', 'b-base.qcow2', '-F', 'qcow2', 'b-top.qcow2')
    disk('convert', '-f', 'qcow2', '-O', 'qcow2', '-B', 'b-base.qcow2', '-F', 'qcow2', 'b-top.qcow2', 'b-copy.qcow2')
    assert os.path.getsize('b-copy.qcow2') < MIB
    disk('compare', '-q', '-f', 'qcow2', '-F', 'raw', 'b-copy.qcow2', 'b.raw')
    refused('create', '-f', 'qcow2', '-b', 'b-base.qcow2', 'n.qcow2', words=['-F'])
    refused('create', '-f', 'qcow2', '-b', 'gone.qcow2', '-F', 'qcow2', 'n.qcow2', '1M', words=['gone.qcow2'])
    assert not os.path.exists('n.qcow2')


@case
def sources_are_put_one_behind_the_other():
    a, b = source('s1.raw', 3, 1), source('s2.raw', 2, 2)
    disk('convert', '-f', 'raw', a, b, 's12.raw')
    assert pathlib.Path('s12.raw').read_bytes() == pathlib.Path(a).read_bytes() + pathlib.Path(b).read_bytes()


@case
def the_kernel_copies_when_asked():
    source('kc.raw')
    disk('convert', '-C', '-f', 'raw', 'kc.raw', 'kc2.raw')
    assert pathlib.Path('kc.raw').read_bytes() == pathlib.Path('kc2.raw').read_bytes()


@case
def an_existing_target_is_written_over():
    need('qcow2')
    source('n1.raw', 6, 1)
    disk('convert', '-f', 'raw', '-O', 'qcow2', source('n2.raw', 9, 2), 'n.qcow2')
    disk('convert', '-n', '-f', 'raw', '-O', 'qcow2', 'n1.raw', 'n.qcow2')
    disk('compare', '-q', '-f', 'raw', '-F', 'qcow2', 'n1.raw', 'n.qcow2')  # zeroes behind its end too
    refused('convert', '-n', '-c', '-f', 'raw', '-O', 'qcow2', 'n1.raw', 'n.qcow2', words=['not empty'])
    refused('convert', '-n', '-f', 'qcow2', '-O', 'raw', 'n.qcow2', 'n1.raw', words=['has only', 'are needed'])


@case
def all_space_is_taken_on_request():
    source('sp.raw')
    disk('convert', '-S', '0', '-f', 'raw', 'sp.raw', 'sp2.raw')
    assert os.stat('sp2.raw').st_blocks * 512 >= 12 * MIB
    disk('convert', '-f', 'raw', 'sp2.raw', 'sp3.raw')
    assert os.stat('sp3.raw').st_blocks * 512 < 6 * MIB


@case
def an_internal_snapshot_is_copied():
    need('qcow2')
    disk('convert', '-f', 'raw', '-O', 'qcow2', source('sn.raw'), 'sn.qcow2')
    qemu('snapshot', '-c', 'before', 'sn.qcow2')
    disk('convert', '-n', '-f', 'raw', '-O', 'qcow2', source('sn2.raw', 12, 9), 'sn.qcow2')
    disk('convert', '-f', 'qcow2', '-l', 'snapshot.name=before', 'sn.qcow2', 'sn3.raw')
    disk('compare', '-q', '-f', 'raw', '-F', 'raw', 'sn.raw', 'sn3.raw')
    refused('convert', '-f', 'qcow2', '-l', 'after', 'sn.qcow2', 'sn3.raw', words=['after'])
    refused('convert', '-f', 'raw', '-l', 'x', 'sn.raw', 'sn3.raw', words=['no internal snapshots'])


@case
def manifests_vouch_for_content():
    source('h.raw')
    disk('convert', '-f', 'raw', '--manifest', 'h.txt', 'h.raw', 'h2.raw')
    disk('compare', '-f', 'raw', '--manifest', 'h.txt', 'h2.raw')
    with open('h2.raw', 'r+b') as f:
        f.seek(9 * MIB)
        f.write(b'!')
    out = disk('compare', '-f', 'raw', '--manifest', 'h.txt', 'h2.raw', status=1).stdout
    assert f'offset {8 * MIB}!' in out, out


def start(*args):
    return subprocess.Popen([hv, 'disk', *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(test, what):
    for _ in range(1200):
        if test():
            return
        time.sleep(0.05)
    raise AssertionError(f'waited for {what} in vain')


@case
def an_interrupted_convert_leaves_nothing():
    source('int.raw', 48)
    p = start('convert', '-f', 'raw', '-r', '1M', 'int.raw', 'int2.raw')
    wait_for(lambda: os.path.exists('int2.raw') and os.stat('int2.raw').st_blocks > 1000, 'the target')
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 1 and 'cancelled' in err, (p.returncode, err)
    assert not os.path.exists('int2.raw')


@case
def a_killed_convert_goes_on_where_it_was():
    need('qcow2')
    source('res.raw', 96)
    words = ['convert', '--resume', '-m', '1', '-f', 'raw', '-O', 'qcow2', 'res.raw', 'res.qcow2']
    p = start(*words, '-r', '1500k')
    wait_for(lambda: os.path.exists('res.qcow2.hv-convert'), 'the journal')
    p.kill()
    p.communicate()
    done = int(pathlib.Path('res.qcow2.hv-convert').read_text().split()[-2])
    assert 0 < done < 96 * MIB, done
    disk(*words)
    assert not os.path.exists('res.qcow2.hv-convert')
    disk('compare', '-q', '-f', 'qcow2', '-F', 'raw', 'res.qcow2', 'res.raw')
    disk('check', '-q', '-f', 'qcow2', 'res.qcow2')


@case
def a_target_that_finds_no_room_is_taken_away():
    import resource
    source('big.raw', 12)
    limit = (3 * MIB, 3 * MIB)
    for fmt in [f['name'] for f in json.loads(disk('formats', '--json').stdout) if f['create']]:
        r = subprocess.run([hv, 'disk', 'convert', '-f', 'raw', '-O', fmt, 'big.raw', 'no-room'], capture_output=True,
                           text=True, timeout=300,
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
        assert r.returncode == 1 and 'File too large' in r.stderr, f'{fmt}: {r.returncode}\n{r.stderr}'
        assert not os.path.exists('no-room'), fmt


@case
def progress_is_drawn_and_ends_at_100():
    out = disk('convert', '-p', '-f', 'raw', source('p.raw'), 'p2.raw').stderr
    assert '100.00%' in out.splitlines()[-1], out


@case
def output_as_json_is_json():
    source('j.raw')
    assert json.loads(disk('convert', '--json', '-f', 'raw', 'j.raw', 'j2.raw').stdout)['virtual-size'] == 12 * MIB
    assert json.loads(disk('create', '--json', '-f', 'raw', 'j3 "x"\\.raw', '1M').stdout)['filename'] == 'j3 "x"\\.raw'
    assert json.loads(disk('map', '--json', '-f', 'raw', 'j3 "x"\\.raw').stdout)
    assert json.loads(disk('measure', '--json', '--size', '1G').stdout)['required'] == GIB


if sys.argv[2:]:  # images.py HV WORD...: only the cases with one of these in their names
    cases = [fn for fn in cases if any(w in fn.__name__ for w in sys.argv[2:])]
try:
    print(f'1..{len(cases)}')
    failed = 0
    for i, fn in enumerate(cases, 1):
        name = fn.__name__
        try:
            fn()
            print(f'ok {i} - {name}')
        except Skip as why:
            print(f'ok {i} - {name} # SKIP {why}')
        except (AssertionError, subprocess.TimeoutExpired) as e:
            failed += 1
            print('\n'.join('# ' + line for line in str(e).splitlines()))
            print(f'not ok {i} - {name}')
finally:
    os.chdir('/')
    shutil.rmtree(work)
sys.exit(failed != 0)
