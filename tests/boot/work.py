#!/usr/bin/env python3
"""Debian working for a living under hv: work.py HV ASSETS CASE [--seconds N] [hv run options...]

Prints TAP.  The guest is what scripts/boot-workload.sh made: a Debian with compiler, stress-ng and
BusyBox's source, in which init.sh runs the script that it finds on the second disk.

    build    make -j2 of BusyBox and its own tests come out as they did on this machine
    stress   stress-ng of many classes at once with --verify finds no fault, the kernel complains of
             nothing, and hv's own memory, threads and open files stay within bounds
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

hv, assets, case, *options = sys.argv[1:]
assets = pathlib.Path(assets)
results = []


def ok(what, good, detail=''):
    results.append(good)
    print(f'{"ok" if good else "not ok"} {len(results)} - {what}', flush=True)
    if not good and detail:
        print('\n'.join('# ' + line for line in detail.splitlines()[-60:]))


def skip(why):
    print(f'1..1\nok 1 - {case} # SKIP {why}')
    sys.exit(0)


class Watch(threading.Thread):
    """How much a process has, every second: .rows of (KiB of its own memory, threads, files)."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.rows, self.end = pid, [], threading.Event()

    def run(self):
        while not self.end.wait(1):
            try:
                status = pathlib.Path(f'/proc/{self.pid}/status').read_text()
                files = len(os.listdir(f'/proc/{self.pid}/fd'))
            except OSError:
                break
            row = [int(re.search(rf'^{name}:\s*(\d+)', status, re.M)[1]) for name in ('RssAnon', 'Threads')]
            self.rows.append((*row, files))


class Guest:
    """One run: .log is the serial console, .status hv's exit status, .rows what Watch saw."""

    def __init__(self, script, timeout_s):
        for name in ('vmlinux', 'initrd.gz', 'workload.img'):
            if not (assets / name).exists():
                skip(f'there is no {name} (scripts/boot-workload.sh says why)')
        with tempfile.TemporaryDirectory() as d:
            job, log = pathlib.Path(d, 'job'), pathlib.Path(d, 'serial')
            job.write_bytes(script.encode() + b'\n' * (-len(script.encode()) % 512))
            p = subprocess.Popen(
                [hv, 'run', '--memory', '2G', '--kernel', assets / 'vmlinux', '--initrd', assets / 'initrd.gz',
                 '--append', 'console=ttyS0 panic=-1 cryptomgr.notests test=job '
                 'rcupdate.rcu_cpu_stall_timeout=300 watchdog_thresh=60', '--serial', f'file={log}',
                 '--disk', f'{assets}/workload.img,format=raw,overlay=on', '--disk', f'{job},format=raw,readonly=on',
                 '--timeout', str(timeout_s), '--stats', '--no-reboot', *options],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                errors='replace')
            watch = Watch(p.pid)
            watch.start()
            self.said = p.communicate()[1]
            watch.end.set()
            self.log = log.read_text(errors='replace') if log.exists() else ''
        self.status, self.rows = p.returncode, watch.rows
        for line in self.said.splitlines():
            print('#', line)

    def check_end(self):
        ok('the guest ran its script to the end and left', 'JOB-DONE' in self.log and self.status == 0,
           f'status {self.status}\n{self.said}\n{self.log}')
        bad = re.findall(r'^.*(?:BUG:|WARNING:|rcu: INFO:.*stall|soft lockup|hung_task|segfault|general protection).*$',
                         self.log, re.M)
        ok('the kernel complains of nothing', not bad, '\n'.join(bad))


def outcome(text):
    """What workload-build.sh said: the program, failed tests in order; how many passed."""
    lines = text.replace('\r', '').splitlines()
    passed = [int(line.split()[1]) for line in lines if line.startswith('PASSED ')]
    return sorted(line for line in lines if re.match(r'(OBJECTS|SHA256|FAIL:)', line)), sum(passed)


def case_build():
    g = Guest('/srv/build /srv/out 2\n', 5400)
    g.check_end()
    (want, least), (got, passed) = outcome((assets / 'workload.native').read_text()), outcome(g.log)
    for line in g.log.splitlines():
        if line.startswith('# make'):
            print(line)
    ok('the same program came out, and the same of its tests fail as on this machine', want == got,
       'want ' + '\nwant '.join(want) + '\ngot ' + '\ngot '.join(got))
    # Some look for what only a whole machine has, and are left out elsewhere.
    ok('no fewer tests pass', passed >= least > 0, f'{passed}, and {least} on this machine')


# One of each, all at once.
STRESSORS = ('cpu vm fork mmap futex pipe signal memcpy atomic cache context clone exec icache vecmath longjmp switch '
             'fault madvise mprotect matrix qsort str hash sem timer crypt stack vecwide shm fp').split()
STRESS = '''mkdir -p /tmp/s; chmod 777 /tmp/s; cd /tmp/s
setpriv --reuid 65534 --regid 65534 --clear-groups stress-ng --verify --timeout {seconds}s --temp-path /tmp/s \\
  --vm-bytes 128M --mmap-bytes 64M {stressors}
echo "STRESS $?"
'''


def case_stress(seconds):
    g = Guest(STRESS.format(seconds=seconds, stressors=' '.join(f'--{s} 1' for s in STRESSORS)), seconds * 4 + 600)
    g.check_end()
    said = '\n'.join(line for line in g.log.splitlines() if line.startswith('stress-ng: '))
    ok('no stressor found a fault', 'STRESS 0' in g.log and not re.search(r'stress-ng: (fail|error)', g.log), said)
    # Decoded and translated code have caches of a fixed size; what the process has else is little.
    most = max(r[0] for r in g.rows) // 1024
    print(f'# at most {most} MiB besides the guest\'s memory')
    ok('the caches stay within their sizes', most < 768, f'{most} MiB')
    third = len(g.rows) // 3
    for n, what in ((1, 'threads'), (2, 'open files')):
        early, late = max(r[n] for r in g.rows[third:2 * third]), max(r[n] for r in g.rows[2 * third:])
        ok(f'there are no more {what} than before', late <= early + 8, f'{early} and then {late}')


seconds = 60
if '--seconds' in options:
    at = options.index('--seconds')
    seconds = int(options[at + 1])
    del options[at:at + 2]
{'build': case_build, 'stress': lambda: case_stress(seconds)}[case]()
print(f'1..{len(results)}')
sys.exit(0 if all(results) else 1)
