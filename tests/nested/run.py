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
import typing

import known

here = pathlib.Path(__file__).resolve().parent
top = here.parents[1]
build = pathlib.Path(sys.argv[1]).resolve()
hv, assets = build / 'src/programs/hv', build / 'assets'
# Of one machine.  What is run every day takes a minute; one that hangs is given up soon.
TIMEOUT = 400 if set(sys.argv[2:]) <= {'boot', 'io', 'restart'} else 1200
SHARE = '@SHARE@' # in a command: the directory both hosts can write to


def boot(case, cpus=1, *options):
    return ['python3', top / 'tests/boot/run.py', hv, assets, case, '--engine', 'kvm', '--cpus', cpus, *options]


def served(case, cpus):
    return ['python3', top / 'tests/boot/vhost.py', hv, assets, case, '--engine', 'kvm', '--cpus', cpus]


def guest(image, cpus=1):
    return ['python3', top / 'tests/guest/run.py', hv, build / f'tests/guest/{image}.elf', '--engine', 'kvm',
            '--cpus', cpus]


def guests(*images):
    return [guest(*i.split(':')) for i in images]


def resume(case, engines, cpus, *options):
    # base: what both engines can be, so that a guest may go from one to the other.
    return ['python3', top / 'tests/boot/resume.py', hv, assets, case, '--engines', engines, '--cpus', cpus,
            '--saves', '1', *options]


MIDDLE = [(case, cpus) for case in ('sums', 'journal') for cpus in (1, 2)]
BASE = '--cpu', 'base'


def resume_here():
    """Guests of the soft engine, saved on this host ..."""
    return [resume(case, 'soft', cpus, *BASE, '--keep', f'{SHARE}/soft-{case}{cpus}') for case, cpus in MIDDLE]


def resume_there():
    """... go on under kvm there; others are saved there ..."""
    return [resume(case, 'kvm', cpus, '--from', f'{SHARE}/soft-{case}{cpus}') for case, cpus in MIDDLE] + [
        resume(case, 'kvm', cpus, *BASE, '--keep', f'{SHARE}/kvm-{case}{cpus}') for case, cpus in MIDDLE]


def resume_after():
    """... and go on here."""
    return [resume(case, 'soft', cpus, '--from', f'{SHARE}/kvm-{case}{cpus}') for case, cpus in MIDDLE]


def resume_all_there():
    """Both engines there: slow, but CPUs of another maker than QEMU's are no matter."""
    return [resume(case, engines, cpus, *BASE) for case, cpus in MIDDLE for engines in ('soft,kvm', 'kvm,soft')]


def host_is_amd():
    return 'AuthenticAMD' in pathlib.Path('/proc/cpuinfo').read_text()


def programs(*patterns):
    """Test programs of the build that the patterns name."""
    found = [p for pattern in patterns for p in sorted((build / 'tests/unit').glob(pattern))]
    return [[p] for p in found if p.is_file() and os.access(p, os.X_OK)]


def place():
    """What needs a cgroup tree, huge pages and root's rights, none of which every host has."""
    return programs('host/test-*', 'mem/test-hold') + [
        ['python3', top / 'tests/cli/test_placement.py', hv, 'kvm'], ['python3', top / 'tests/cli/test_doctor.py', hv]]


PREPARE_PLACE = 'mount -t cgroup2 cgroup /sys/fs/cgroup; echo 64 >/proc/sys/vm/nr_hugepages'


class Case(typing.NamedTuple):
    commands: typing.Callable # there
    options: tuple = () # of nested-kvm.sh
    prepare: str = '' # what the shell does before them
    before: typing.Callable = list # here, first
    after: typing.Callable = list # here, last


CASES = {
    'boot': Case(lambda: [boot('boot', 1), boot('boot', 2)]),
    'io': Case(lambda: [boot('ext4', 1), boot('net', 1)]),
    'restart': Case(lambda: [boot('restart', 1)]),
    'devices': Case(lambda: [boot('devices', 1)]),
    'panic': Case(lambda: [boot('panic', 1)]),
    'load': Case(lambda: [boot('load', 2), boot('clock', 2), boot('messages', 2)]),
    'bzimage': Case(lambda: [boot('bzimage', 1), boot('bzimage', 2)]),
    'restart-all': Case(lambda: [boot('restart-all', 2)]),
    'options': Case(lambda: [boot('options', 2)]),
    'others': Case(lambda: [boot('gnumach', 1), boot('memtest86+x64.bin', 2)]),
    'shadow-paging': Case(lambda: [boot('boot', 1)], ('--npt', '0')),
    'micro': Case(lambda: [boot('boot', 2, '--profile', 'micro'), boot('ext4', 1, '--profile', 'micro')]),
    'unit': Case(lambda: programs('kvm/test-*')),
    'vhost': Case(lambda: [served('disk', 1)]),
    'place': Case(place, prepare=PREPARE_PLACE),
    'resume': Case(resume_there, before=resume_here, after=resume_after) if host_is_amd() else Case(resume_all_there),
    # The others are in known.NOT_RUN.
    'guests': Case(lambda: guests('boot:1', 'boot:4', 'paging:1', 'canonical:1', 'debug:1', 'smc:1', 'smc:4', 'apic:1',
                                  'apic:4', 'modes:1', 'v86:1')),
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


# On a busy host a second CPU that is started there now and then dies of a triple fault, of which
# kvm-amd keeps no trace.  That alone is tried a second time, and told.
RUN = '''run() {
	"$@" >/tmp/nested-said 2>&1 </dev/null
	status=$?
	if grep -q 'cpu [1-9]: triple fault' /tmp/nested-said; then
		sed 's/^/# the first time: /' /tmp/nested-said
		"$@" >/tmp/nested-said 2>&1 </dev/null
		status=$?
	fi
	cat /tmp/nested-said
	return $status
}'''


def script(before, commands):
    lines = [f'python3 {here}/hold.py &', before, RUN]
    for c in commands:
        lines += [f'echo "NESTED-BEGIN"; run {shlex.join(map(str, c))}', 'echo "NESTED-END $?"']
    return '\n'.join(lines) + '\n'


def name_of(command):
    words = [str(w) for w in command]
    words = [w for w in words if w not in ('python3', str(hv), str(assets))]
    return ' '.join(os.path.relpath(w, top) if w.startswith('/') else w for w in words)


def words(command, share):
    return [str(w).replace(SHARE, share) for w in command]


def run_here(tap, commands):
    for c in commands:
        tap.begin(name_of(c))
        p = subprocess.Popen(c, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors='replace')
        for line in p.stdout:
            tap.line(line.rstrip())
        tap.end(p.wait())


def machine(tap, case, todo, d, last):
    """Run what there is to do in one machine, as far as it goes: (its status, what it said).

    A command is taken off the list when it has ended; one that the last machine ended in, too.
    """
    inside = False
    (pathlib.Path(d) / 'all').write_text(script(case.prepare, todo))
    p = subprocess.Popen(
        [top / 'scripts/nested-kvm.sh', '--timeout', str(TIMEOUT), '--share', d, *case.options, build, '--',
         '/bin/sh', f'{d}/all'],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='replace')
    for line in p.stdout:
        line = line.rstrip()
        if line == 'NESTED-BEGIN':
            tap.begin(name_of(todo[0]))
            inside = True
        elif line.startswith('NESTED-END '):
            tap.end(line.split()[1])
            todo.pop(0)
            inside = False
        elif inside:
            tap.line(line)
    said = p.stderr.read()
    status = p.wait()
    if inside and last:
        tap.end(f'none (the machine ended with {status})')
        todo.pop(0)
    return status, said


def run_there(tap, case, commands, d):
    """The reason, when there is no such machine here.

    The kernel there sometimes hangs or dies of what QEMU's translator does on a busy host.  What such
    a machine did not come to the end of has a second one.
    """
    todo = list(commands)
    for last in (False, True):
        status, said = machine(tap, case, todo, d, last)
        if status == 77:
            return said.strip().splitlines()[-1]
        if not todo:
            break
        for line in said.splitlines():
            print('#', line)
        print(f'# the machine ended with {status}', flush=True)
    for c in todo:
        tap.result(False, f'{name_of(c)} was not reached')
    return None


def run(tap, case):
    """The reason, when there is no such machine here."""
    with tempfile.TemporaryDirectory() as d:
        first, commands, last = ([words(c, d) for c in f()] for f in (case.before, case.commands, case.after))
        if not commands:
            return 'nothing of it is built'
        run_here(tap, first)
        why = run_there(tap, case, commands, d)
        if not why:
            run_here(tap, last)
        return why


def main():
    tap = Tap()
    for name in sys.argv[2:]:
        why = run(tap, CASES[name])
        if why and not tap.n:
            print(f'1..1\nok 1 - {name} # SKIP {why}')
            return
        if why:
            tap.result(True, f'{name} # SKIP {why}')
    print(f'1..{tap.n}')


main()
