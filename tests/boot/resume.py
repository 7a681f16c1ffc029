#!/usr/bin/env python3
"""Save Linux in the middle of something and resume it: resume.py HV ASSETS CASE [OPTION]... [hv run option...]

  --engines A,B,...  the engine of each run in turn, the last one for all that follow (soft)
  --saves N          how often it is saved and resumed (2)
  --cpus N           CPUs of the guest (1)
  --keep DIR         end after the last save and leave the VM in DIR (sums, journal) ...
  --from DIR         ... for a run on another host, which resumes it there and sees it to its end

Prints TAP.  ASSETS is what scripts/boot-assets.sh made.  Each guest is saved as soon as it has said
so much more, in a new process each time, and must come to the end it comes to undisturbed.
"""
import argparse
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

parser = argparse.ArgumentParser(allow_abbrev=False) # --cpu is for hv run
parser.add_argument('hv')
parser.add_argument('assets', type=pathlib.Path)
parser.add_argument('case')
parser.add_argument('--engines', default='soft')
parser.add_argument('--saves', type=int, default=2)
parser.add_argument('--cpus', type=int, default=1)
parser.add_argument('--keep', type=pathlib.Path)
parser.add_argument('--from', type=pathlib.Path, dest='start')
args, options = parser.parse_known_args()
hv, assets, case = os.path.abspath(args.hv), args.assets.resolve(), args.case
TIMEOUT = 600
results = []


def listens(path):
    """A socket's name is there a moment before anybody listens behind it."""
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(str(path)) == 0


def ok(what, good, detail=''):
    results.append((what, good, detail))


def skip(why):
    print(f'1..1\nok 1 - resume {case} # SKIP {why}')
    sys.exit(0)


if args.start and not args.start.exists():
    skip(f'nothing was left in {args.start}')


def need(*names):
    for name in names:
        if not (assets / name).exists():
            skip(f'there is no {name} (scripts/boot-assets.sh says why)')


class TooLate(Exception):
    """The guest was done before it could be saved: the host let us wait."""


class Run:
    """One process of hv run."""

    def __init__(self, guest, number):
        engines = args.engines.split(',')
        self.guest, self.dir = guest, guest.dir
        self.log = self.dir / f'serial{number}'
        self.socket = self.dir / f'control{number}'
        self.errors = self.dir / f'errors{number}'
        cmd = [hv, 'run', '--engine', engines[min(number, len(engines) - 1)], '--control', f'unix={self.socket}',
               '--serial', f'file={self.log}', '--timeout', str(TIMEOUT), *guest.ends]
        if number == 0:
            cmd += ['--kernel', assets / 'vmlinux', '--initrd', assets / 'initrd.gz', '--no-reboot',
                    '--cpus', str(args.cpus), '--append',
                    f'console=ttyS0 panic=-1 cryptomgr.notests {guest.append}', *guest.board, *options]
        else:
            cmd += ['--resume', guest.saved, '--no-reboot']
        with open(self.errors, 'w') as e:
            self.process = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=e)

    def text(self):
        return self.log.read_text(errors='replace') if self.log.exists() else ''

    def said(self):
        return self.errors.read_text(errors='replace')

    def wait_for(self, pattern):
        """Until the log has it.  False: the run ended before."""
        while not re.search(pattern, self.text()):
            if self.process.poll() is not None:
                return bool(re.search(pattern, self.text()))
            time.sleep(.02)
        return True

    def control(self, *words):
        return subprocess.run([hv, 'control', self.socket, *words, '--json'], capture_output=True, text=True)

    def save(self, path):
        """Into a file, and end."""
        r = self.control('save', f'file={path}', 'then=quit')
        status = self.process.wait(TIMEOUT)
        return r.returncode == 0 and status == 0, r.stdout + r.stderr + self.said()


class Guest:
    """Linux doing `append`, saved args.saves times."""

    def __init__(self, append, ends=(), board=()):
        need('vmlinux', 'initrd.gz')
        self.append, self.ends, self.board = append, list(ends), list(board)
        # What a disk's file can do is part of the VM: both hosts have a tmpfs there.
        self.dir = pathlib.Path(tempfile.mkdtemp(dir='/dev/shm' if args.keep or args.start else None))
        self.saved = self.dir / 'saved'
        self.log = ''
        self.runs = []
        if args.start:
            self.unpack()

    def keep(self):
        """Leave what another host needs."""
        args.keep.mkdir(exist_ok=True)
        for f in self.dir.glob('disk*'):
            shutil.copy(f, args.keep)
        shutil.copy(self.saved, args.keep)
        (args.keep / 'log').write_text(self.log)
        (args.keep / 'more').write_text(str(more))

    def unpack(self):
        for f in args.start.iterdir():
            shutil.copy(f, self.dir)
        self.log = (self.dir / 'log').read_text()

    def step(self, number):
        run = Run(self, number)
        self.runs.append(run)
        return run

    def finish(self, run):
        self.status = run.process.wait(TIMEOUT)
        self.log += run.text()
        for line in run.said().splitlines():
            print('#', line)

    def go(self, marks):
        """Through all its saves, each when the log of the run so far has the next mark."""
        if args.start:
            self.finish(self.step(1))
            return self
        run = self.step(0)
        for number, mark in enumerate(marks):
            there = run.wait_for(mark)
            good, said = run.save(self.saved) if there else (False, run.said())
            self.check_in_time(run, good)
            ok(f'saved for the {number + 1}. time, after {mark!r}', good, run.text()[-2000:] + said)
            self.log += run.text()
            if not good:
                run.process.kill()
                finish()
            if args.keep and number + 1 == len(marks):
                self.keep()
                self.close()
                finish()
            run = self.step(number + 1)
        self.finish(run)
        return self

    def check_in_time(self, run, good):
        if not good and run.process.poll() == 0 and '-DONE' in run.text():
            self.close()
            raise TooLate

    def close(self):
        for run in self.runs:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def finish():
    if not results:
        ok('saved before it was done', False)
    for n, (what, good, detail) in enumerate(results):
        print(f'{"ok" if good else "not ok"} {n + 1} - {what}')
        if not good:
            print('\n'.join('# ' + line for line in detail.splitlines()[-40:]))
    print(f'1..{len(results)}', flush=True)
    sys.exit(0)


def steps(nr, apart=2, first=2):
    """Marks for saves after some more steps each; a log is of one run only."""
    return [rf'STEP \d+ {first + i * apart}\b' for i in range(nr)]


def expect_end(g, words):
    ok(f'the log has {words!r}', words in g.log, g.log[-3000:])
    ok('the guest powers off', g.status == 0, f'status {g.status}')
    ok('the kernel has nothing to complain of',
       not re.search(r'BUG:|\] WARNING:|Call Trace|soft lockup|nobody cared|rcu.*stall|I/O error', g.log), g.log[-3000:])


def case_sums(more):
    """CPU state, memory, interrupts between CPUs: chains of sums on all CPUs."""
    total = (6 + 3 * args.saves) * more
    g = Guest(f'test=sums steps={total}').go(steps(args.saves, 3))
    expect_end(g, 'SUMS-DONE')
    for c in range(1, args.cpus + 1):
        chain = f'start {c}\n'
        for _ in range(total):
            chain = hashlib.sha256(bytes(8 << 16) + chain.encode()).hexdigest() + '  -\n'
        ok(f'the sums of CPU {c} are right', f'CHAIN {c} {chain.split()[0]}' in g.log, g.log[-2000:])
    g.close()


def journal_content(total):
    """What run_journal leaves, in the shell's order of names."""
    names = [i for i in range(1, total + 1) if not (i % 3 == 2 and i + 1 <= total)]
    data = b''
    for i in sorted(names, key=lambda i: f'f{i}'):
        line = f'line of file {i}\n'.encode()
        data += (line * (200000 // len(line) + 1))[:200000]
    return data + b''.join(b'entry %d\n' % i for i in range(1, total + 1))


def case_journal(more):
    """Disk: files synced one by one."""
    total = (6 + 6 * args.saves) * more
    tool = shutil.which('mkfs.ext4')
    if not tool:
        skip('mkfs.ext4 is not installed')
    g = Guest(f'test=journal steps={total}')
    disk = g.dir / 'disk.img'
    if not args.start:
        with open(disk, 'wb') as f:
            f.truncate(64 << 20)
        subprocess.run([tool, '-q', disk], check=True, capture_output=True)
    g.ends += ['--disk', f'{disk},format=raw']
    g.go(steps(args.saves, 6))
    expect_end(g, 'JOURNAL-DONE')
    ok('nothing failed in the guest', 'JOURNAL-FAIL' not in g.log, g.log[-3000:])
    want = hashlib.sha256(journal_content(total)).hexdigest()
    ok('the files are what an undisturbed run writes', f'JOURNAL-SUM {want}' in g.log, g.log[-2000:])
    r = subprocess.run(['e2fsck', '-fn', disk], capture_output=True, text=True)
    ok('the file system is clean on the host', r.returncode == 0, r.stdout + r.stderr)
    g.close()


def case_ticks(more):
    """Clocks: between save and resume no time passes for the guest, and none is made up for."""
    total = (4 + 4 * args.saves) * more
    g = Guest(f'test=ticks steps={total}').go(steps(args.saves, 4))
    expect_end(g, 'TICKS-DONE')
    ok('no word of clocks that jump or CPUs that hang', 'TICKS-FAIL' not in g.log, g.log[-3000:])
    ticks = [int(t) for t in re.findall(r'TICK \d+ (-?\d+)', g.log)]
    ok(f'all {total} sleeps ended', len(ticks) == total, str(ticks))
    # In hundredths of a second: never shorter than asked for.
    ok('none was short', all(t >= 29 for t in ticks), str(ticks))
    g.close()


class Slow(http.server.BaseHTTPRequestHandler):
    """The first answer stops half-way until it is let go, later ones come at once."""
    data, begun, let_go, lock = b'', 0, threading.Event(), threading.Lock()

    def do_GET(self):
        with self.lock:
            Slow.begun += 1
            first = self.begun == 1
        try:
            self.send_response(200)
            self.send_header('Content-Length', str(len(self.data)))
            self.end_headers()
            half = len(self.data) // 2
            self.wfile.write(self.data[:half])
            self.wfile.flush()
            if first:
                Slow.let_go.wait(TIMEOUT)
            self.wfile.write(self.data[half:])
        except OSError:
            pass # the guest's side was cut off

    def log_message(self, *_):
        pass


def case_fetch(more):
    """Network: connections through NAT do not outlive the process, and the guest hears of it."""
    Slow.data = os.urandom(4 << 20)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    g = Guest(f'test=fetch port={server.server_port}', ends=['--net', 'user'])
    run = g.step(0)
    while Slow.begun == 0 and run.process.poll() is None:
        time.sleep(.02)
    time.sleep(.5) # so that some of it is on its way; any moment will do
    good, said = run.save(g.saved)
    ok('saved in the middle of a download', good, run.text()[-2000:] + said)
    g.log += run.text()
    Slow.let_go.set()
    if not good:
        finish()
    g.finish(g.step(1))
    expect_end(g, 'FETCH-DONE')
    want = hashlib.sha256(Slow.data).hexdigest()
    ok('in the end all of it arrives unchanged', f'FETCH-SUM {want}' in g.log, g.log[-2000:])
    g.close()


def case_stay(more):
    """save, then cont in the same process; and the file still is what it was."""
    total = 10 * more
    g = Guest(f'test=sums steps={total}')
    run = g.step(0)
    run.wait_for(steps(1)[0])
    r = run.control('save', f'file={g.saved}')
    if r.returncode:
        run.process.wait(TIMEOUT)
        g.check_in_time(run, False)
    ok('saved', r.returncode == 0, r.stdout + r.stderr)
    status = json.loads(run.control('query-status').stdout or '{}')
    ok('the VM is paused then', status.get('status') == 'paused', str(status))
    ok('and goes on', run.control('cont').returncode == 0)
    g.finish(run)
    expect_end(g, 'SUMS-DONE')
    first = set(re.findall(r'CHAIN \d+ \w+', g.log))
    g.log = ''
    g.finish(g.step(1))
    ok('the saved VM comes to the same end', set(re.findall(r'CHAIN \d+ \w+', g.log)) == first and first, g.log[-2000:])
    g.close()


def records(path):
    """The records of a saved VM (docs/save-file.md): (kind, gpa, payload)."""
    data, at, out = path.read_bytes(), 32, []
    while at < len(data):
        kind, _, gpa, _, size = struct.unpack_from('<4sIQII', data, at)
        out.append((kind, gpa, data[at + 32:at + 32 + size]))
        at += 32 + size
    return out


def fields(stream):
    """The fields of a state stream (state/stream.h) by their paths, in order."""
    at, path, out = 24, [], []
    while stream[at] != 0xff:
        kind = stream[at]
        if kind == 2:
            path.pop()
            at += 1
            continue
        n = stream[at + 1]
        name = stream[at + 2:at + 2 + n].decode()
        value, = struct.unpack_from('<I', stream, at + 2 + n)
        at += 2 + n + 4
        if kind == 1:
            path.append(name)
        else:
            out.append(('/'.join(path + [name]), stream[at:at + value]))
            at += value
    return out


def case_identity(more):
    """What was saved, loaded and saved again is the same in every field and byte of memory."""
    g = Guest(f'test=sums steps={10 * more}')
    disk = g.dir / 'disk.img'
    disk.write_bytes(bytes(1 << 20))
    g.ends += ['--disk', f'{disk},format=raw', '--net', 'user', '--console', 'null']
    run = g.step(0)
    run.wait_for(steps(1)[0])
    good, said = run.save(g.saved)
    g.check_in_time(run, good)
    ok('saved', good, said)
    again = g.dir / 'again'
    g.ends.append('--paused')
    run = g.step(1)
    while not listens(run.socket) and run.process.poll() is None:
        time.sleep(.02)
    good, said = run.save(again)
    ok('resumed, and saved before it ran', good, said)
    one, two = records(g.saved), records(again)
    same = [r for r in one if r[0] == b'RAM '] == [r for r in two if r[0] == b'RAM ']
    ok('memory is the same', same)
    a, b = (fields(next(r[2] for r in f if r[0] == b'STAT')) for f in (one, two))
    ok(f'the same {len(a)} fields', [n for n, _ in a] == [n for n, _ in b])
    odd = [f'{n}: {x.hex()} {y.hex()}' for (n, x), (_, y) in zip(a, b) if x != y]
    ok('all have the same value', not odd, '\n'.join(odd))
    g.close()


cases = {'identity': case_identity, 'sums': case_sums, 'journal': case_journal, 'ticks': case_ticks, 'fetch': case_fetch, 'stay': case_stay}
for more in [int((args.start / 'more').read_text())] if args.start else (1, 3, 9):
    try:
        cases[case](more)
        break
    except TooLate:
        results.clear()
        print(f'# too late to save it; again with more to do', flush=True)
finish()
