#!/usr/bin/env python3
"""The guest workload set, natively, under hv and under QEMU's TCG.

  workload.py HV ASSETS [ROUNDS] [--only NAME,...] [--engine soft,...] [--hv-only] [--json FILE]
  workload.py HV ASSETS --check

One static program (bench/guest) runs natively and as the only process of a Linux guest with one virtual
CPU: the same kernel and initramfs under hv and under qemu-system-x86_64 -accel tcg with -cpu max and
-cpu qemu64.  They take turns, ROUNDS times (3); of each row the least time of all repetitions and rounds
is kept, TCG's is the better of its two, and checksums must be the same everywhere.  Everything runs on
one CPU of the host; as root in real time (a guest from its first row on), where a virtual CPU gives way
to the other threads of its process.  The guest's clock is what times the rows, so it is compared with the host's.

--check does each row's work twice, natively and under hv, and prints TAP: are the results the same?
"""
import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description='the guest workload set, natively, under hv and under TCG')
parser.add_argument('hv')
parser.add_argument('assets', type=pathlib.Path)
parser.add_argument('rounds', type=int, nargs='?', default=3)
parser.add_argument('--only', default='', help='rows, with commas between them')
parser.add_argument('--engine', default='soft', help="of hv run")
parser.add_argument('--hv-only', action='store_true', help='leave TCG out')
parser.add_argument('--json', help='write all numbers to this file')
parser.add_argument('--check', action='store_true', help='compare results only, as a test')
args = parser.parse_args()
root = args.assets / 'workload' / 'root'
initrd = args.assets / 'workload' / 'initrd.gz'
TIMEOUT = 1800
CPU = max(os.sched_getaffinity(0))


class Run:
    """What one run of the program said: .rows[name] = (checksum, ns), .clock = guest time / host time."""

    def __init__(self):
        self.rows, self.text, self.begin, self.end = {}, '', None, None

    def line(self, line, now):
        self.text += line
        words = line.split()
        if words[:2] == ['CLOCK', 'begin']:
            self.begin = int(words[2]), now
        elif words[:2] == ['CLOCK', 'end']:
            self.end = int(words[2]), now
        elif words[:1] == ['ROW'] and len(words) == 5:
            self.rows[words[1]] = words[2], float(words[3])
        elif words[:1] == ['DIFFERS']:
            fail(f'{words[1]} does not come out the same twice', self.text)

    @property
    def clock(self):
        return (self.end[0] - self.begin[0]) / (self.end[1] - self.begin[1])


def fail(why, text=''):
    if args.check:
        print(f'not ok 1 - {why}\n1..1')
    print('\n'.join('# ' + line for line in text.splitlines()[-20:]), file=sys.stderr)
    sys.exit(why)


def workload_arguments():
    words = ['--quick'] if args.check else []
    return words + (['--only', args.only] if args.only else [])


def in_real_time(pid):
    """All threads of a guest's process, its virtual CPU last: else timers would wait for that."""
    if os.geteuid() or args.check:
        return
    for task in pathlib.Path(f'/proc/{pid}/task').iterdir():
        is_vcpu = (task / 'comm').read_text().startswith(('vcpu ', 'CPU '))
        os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(10 if is_vcpu else 11))


def on_one_cpu(native):
    def prepare():
        if args.check:
            return
        os.sched_setaffinity(0, {CPU})
        if os.geteuid() == 0:
            policy, priority = (os.SCHED_FIFO, 10) if native else (os.SCHED_OTHER, 0)
            os.sched_setscheduler(0, policy, os.sched_param(priority))
            os.setpriority(os.PRIO_PROCESS, 0, -20)
    return prepare


def run(command, native=False):
    seen = Run()
    deadline = time.monotonic() + TIMEOUT
    with tempfile.TemporaryFile('w+') as errors, subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, errors='replace',
            preexec_fn=on_one_cpu(native)) as p:
        for line in p.stdout:
            seen.line(line, time.monotonic_ns())
            if seen.begin and not seen.rows and not native:
                in_real_time(p.pid)
            if time.monotonic() > deadline:
                p.kill()
        p.wait()
        errors.seek(0)
        if not seen.end:
            fail(f'{command[0]} did not run the workload to its end', seen.text + errors.read())
    return seen


def append():
    # In the kernel's words a comma separates arguments: init.sh turns them round.
    words = ','.join(w.replace(',', '/') for w in workload_arguments())
    return f'console=ttyS0 panic=-1 quiet cryptomgr.notests workload={words}'


def run_native():
    work = tempfile.mkdtemp(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None)
    try:
        return run([root / 'bench/workload', '--root', root, '--work', work, *workload_arguments()], native=True)
    finally:
        shutil.rmtree(work)


def run_hv():
    return run([args.hv, 'run', '--engine', args.engine, '--memory', '1G', '--kernel', args.assets / 'vmlinux',
                '--initrd', initrd, '--append', append(), '--serial', 'stdio', '--no-reboot'])


def run_tcg(cpu):
    return run(['qemu-system-x86_64', '-M', 'q35', '-accel', 'tcg', '-cpu', cpu, '-m', '1024', '-nodefaults',
                '-display', 'none', '-no-reboot', '-net', 'none', '-name', 'bench,debug-threads=on', '-kernel',
                args.assets / 'vmlinux', '-initrd', initrd, '-append', append(), '-serial', 'stdio'])


def check():
    native, guest = run_native(), run_hv()
    for n, name in enumerate(native.rows, 1):
        good = guest.rows.get(name, ('nothing',))[0] == native.rows[name][0]
        print(f'{"ok" if good else "not ok"} {n} - {name}: the same result natively and under hv')
    print(f'1..{len(native.rows)}')
    sys.exit(0 if {n: r[0] for n, r in native.rows.items()} == {n: r[0] for n, r in guest.rows.items()} else 1)


def measure(who):
    """who: name -> function.  Returns name -> row -> least ns, and name -> clock ratios."""
    least, clocks, sums = {name: {} for name in who}, {name: [] for name in who}, {}
    for number in range(args.rounds):
        for name, one in who.items():
            print(f'round {number + 1} of {args.rounds}: {name}', file=sys.stderr, flush=True)
            seen = one()
            clocks[name].append(seen.clock)
            for row, (checksum, ns) in seen.rows.items():
                if sums.setdefault(row, checksum) != checksum:
                    fail(f'{row}: {name} gets {checksum}, others {sums[row]}')
                least[name][row] = min(ns, least[name].get(row, ns))
    return least, clocks


def geomean(values):
    values = list(values)
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else float('nan')


def seconds(ns):
    return f'{ns:.2f} ns' if ns < 1e3 else f'{ns / 1e3:.2f} us' if ns < 1e6 else f'{ns / 1e6:.2f} ms'


def report(least, clocks):
    tcgs = [name for name in least if name.startswith('tcg')]
    ours, theirs = {}, {}
    print('| row | native | hv / native | TCG / native | TCG / hv | better TCG |\n|---|---|---|---|---|---|')
    for row, native in least['native'].items():
        ours[row] = least['hv'][row] / native
        line = f'| {row} | {seconds(native)} | {ours[row]:.2f} | '
        if tcgs:
            best = min(tcgs, key=lambda name: least[name][row])
            theirs[row] = least[best][row] / native
            line += f'{theirs[row]:.2f} | {theirs[row] / ours[row]:.2f} | {best[4:]} |'
        print(line)
    print(f'\ngeometric mean over {len(ours)} rows: hv / native {geomean(ours.values()):.2f}', end='')
    if tcgs:
        print(f', TCG / native {geomean(theirs.values()):.2f}, '
              f'TCG / hv {geomean(theirs[r] / ours[r] for r in ours):.2f}')
        slower = [r for r in ours if ours[r] > 1.1 * theirs[r]]
        print('slower than the better TCG by more than a tenth:', ', '.join(slower) or 'none', end='')
    print('\nmore than three times native:', ', '.join(r for r in ours if ours[r] > 3) or 'none')
    for name, ratios in clocks.items():
        print(f'guest time / host time, {name}: ' + ', '.join(f'{r:.4f}' for r in ratios))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({'ns': least, 'clocks': clocks}, indent=1))


if not (initrd.exists() and (args.assets / 'vmlinux').exists()):
    if args.check:
        print('1..1\nok 1 - workload # SKIP there is no kernel or initramfs (scripts/bench-assets.sh says why)')
    else:
        print('no kernel or no initramfs: scripts/bench-assets.sh says why')
    sys.exit(0)
if args.check:
    check()
if os.geteuid() == 0: # it notes when lines arrive
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(12))
runners = {'native': run_native, 'hv': run_hv}
if shutil.which('qemu-system-x86_64') and not args.hv_only:
    runners['tcg max'] = lambda: run_tcg('max')
    runners['tcg qemu64'] = lambda: run_tcg('qemu64')
report(*measure(runners))
