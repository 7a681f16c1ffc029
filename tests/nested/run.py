#!/usr/bin/env python3
"""Run tests on a hardware-like KVM inside QEMU: run.py BUILD CASE...

A case is a line of the table below: commands that print TAP, run one after the other in one machine
of scripts/nested-kvm.sh.  What they print is passed on as one list.  When the machine cannot be had
(no QEMU, no kernel) the list is one skip.
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

import known

here = pathlib.Path(__file__).resolve().parent
top = here.parents[1]
build = pathlib.Path(sys.argv[1]).resolve()
hv, assets = build / 'src/programs/hv', build / 'assets'
TIMEOUT = 1500


def boot(case, cpus=1, *options):
    return ['python3', top / 'tests/boot/run.py', hv, assets, case, '--engine', 'kvm', '--cpus', cpus, *options]


def guest(image, cpus=1):
    return ['python3', top / 'tests/guest/run.py', hv, build / f'tests/guest/{image}.elf', '--engine', 'kvm',
            '--cpus', cpus]


def guests(*images):
    return [guest(*i.split(':')) for i in images]


def resume(case, engines, cpus=1, saves=2):
    # What both engines can be, so that a guest may go from one to the other: QEMU's CPU has no VME.
    return ['python3', top / 'tests/boot/resume.py', hv, assets, case, '--engines', engines, '--cpus', cpus,
            '--saves', saves, '--cpu', 'base,-vme']


def programs(*patterns):
    """Test programs of the build that the patterns name."""
    found = [p for pattern in patterns for p in sorted((build / 'tests/unit').glob(pattern))]
    return [[p] for p in found if p.is_file() and os.access(p, os.X_OK)]


def place():
    """What needs a cgroup tree, huge pages and root's rights, none of which every host has."""
    return programs('host/test-*', 'mem/test-hold') + [
        ['python3', top / 'tests/cli/test_placement.py', hv, 'kvm'], ['python3', top / 'tests/cli/test_doctor.py', hv]]


PREPARE_PLACE = 'mount -t cgroup2 cgroup /sys/fs/cgroup; echo 64 >/proc/sys/vm/nr_hugepages'


# case: (options of nested-kvm.sh, commands, what the shell does before them)
CASES = {
    'boot': ([], lambda: [boot('boot', 1), boot('boot', 2)]),
    'io': ([], lambda: [boot('devices', 1), boot('ext4', 2), boot('net', 2)]),
    'restart': ([], lambda: [boot('restart', 2), boot('panic', 1)]),
    'load': ([], lambda: [boot('load', 2), boot('clock', 2), boot('messages', 2)]),
    'bzimage': ([], lambda: [boot('bzimage', 1), boot('bzimage', 2)]),
    'restart-all': ([], lambda: [boot('restart-all', 2)]),
    'options': ([], lambda: [boot('options', 2)]),
    'others': ([], lambda: [boot('gnumach', 1), boot('memtest86+x64.bin', 2)]),
    'shadow-paging': (['--npt', '0'], lambda: [boot('boot', 1)]),
    'micro': ([], lambda: [boot('boot', 2, '--profile', 'micro'), boot('ext4', 1, '--profile', 'micro')]),
    'unit': ([], lambda: programs('kvm/test-*')),
    'place': ([], place, PREPARE_PLACE),
    'resume': ([], lambda: [resume('sums', 'soft,kvm', 1, 1), resume('sums', 'kvm,soft', 2, 1),
                            resume('journal', 'soft,kvm', 2, 1), resume('journal', 'kvm,soft', 1, 1)]),
    # The others are in known.NOT_RUN.
    'guests': ([], lambda: guests('boot:1', 'boot:4', 'paging:1', 'canonical:1', 'debug:1', 'smc:1', 'smc:4', 'apic:1',
                                  'apic:4', 'modes:1', 'task:1', 'v86:1')),
}


class Tap:
    """Renumbers the lists of several programs into one."""

    def __init__(self):
        self.n = 0

    def result(self, good, what):
        self.n += 1
        print(f'{"ok" if good else "not ok"} {self.n} - {what}', flush=True)

    def begin(self, name):
        self.name, self.planned, self.seen = name, None, 0
        print(f'# {name}', flush=True)

    def line(self, line):
        if m := re.match(r'1\.\.(\d+)', line):
            self.planned = int(m[1])
        elif m := re.match(r'(not )?ok\b\s*\d*\s*-?\s*(.*)', line):
            self.seen += 1
            why = m[1] and known.reason(self.name, m[2])
            self.result(not m[1] or why, f'{self.name}: {m[2]}' + (f' # SKIP {why}' if why else ''))
        else:
            print(line if line.startswith('#') else f'# {line}', flush=True)

    def end(self, status):
        if self.planned is None or self.seen != self.planned:
            self.result(False, f'{self.name} ended early: status {status}, {self.seen} of {self.planned} reported')


def script(before, commands):
    lines = [f'python3 {here}/hold.py &', before]
    for c in commands:
        lines += [f'echo "NESTED-BEGIN"; {shlex.join(map(str, c))} </dev/null', 'echo "NESTED-END $?"']
    return '\n'.join(lines) + '\n'


def name_of(command):
    words = [str(w) for w in command]
    words = [w for w in words if w not in ('python3', str(hv), str(assets), '--engine', 'kvm')]
    return ' '.join(os.path.relpath(w, top) if w.startswith('/') else w for w in words)


def run(tap, options, commands, before):
    """False, with the reason, when there is no such machine here."""
    with tempfile.TemporaryDirectory() as d:
        (pathlib.Path(d) / 'all').write_text(script(before, commands))
        p = subprocess.Popen(
            [top / 'scripts/nested-kvm.sh', '--timeout', str(TIMEOUT), '--share', d, *options, build, '--',
             '/bin/sh', f'{d}/all'],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='replace')
        todo, inside = list(commands), False
        for line in p.stdout:
            line = line.rstrip()
            if line == 'NESTED-BEGIN':
                tap.begin(name_of(todo.pop(0)))
                inside = True
            elif line.startswith('NESTED-END '):
                tap.end(line.split()[1])
                inside = False
            elif inside:
                tap.line(line)
        said = p.stderr.read()
        if p.wait() == 77:
            return said.strip().splitlines()[-1]
    if inside or todo:
        for line in said.splitlines():
            print('#', line)
        if inside:
            tap.end(f'none (the machine ended with {p.returncode})')
        for c in todo:
            tap.result(False, f'{name_of(c)} was not reached')
    return None


def main():
    tap = Tap()
    for case in sys.argv[2:]:
        options, commands, *before = CASES[case]
        commands = commands()
        why = run(tap, options, commands, ''.join(before)) if commands else f'{case}: nothing of it is built'
        if why:
            print(f'1..1\nok 1 - {sys.argv[2:]} # SKIP {why}')
            return
    print(f'1..{tap.n}')


main()
