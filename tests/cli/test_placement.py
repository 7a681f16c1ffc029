#!/usr/bin/env python3
"""Where a VM lives on the host: test_placement.py HV [ENGINE]

Prints TAP.  Looks in /proc at the threads and the memory of a VM whose guest only halts.  What this
host does not have or allow is skipped, when hv says so in a sentence.
"""
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time

hv = os.path.abspath(sys.argv[1])
engine = sys.argv[2] if len(sys.argv) > 2 else 'soft'
directory = tempfile.TemporaryDirectory()
os.chdir(directory.name)
results = []
cpus = sorted(os.sched_getaffinity(0))


def ok(what, good, detail=''):
    results.append(good)
    print(f'{"ok" if good else "not ok"} {len(results)} - {what}', flush=True)
    if not good:
        print('\n'.join('# ' + line for line in str(detail).splitlines()))


def skip(what, why):
    results.append(True)
    print(f'ok {len(results)} - {what} # SKIP {why}', flush=True)


def halting_kernel():
    load = 0x100000
    header = struct.pack('<IIIIIIII', 0x1BADB002, 1 << 16, -(0x1BADB002 + (1 << 16)) & 0xffffffff, load, load, 0, 0,
                         load + 32)
    pathlib.Path('kernel').write_bytes((header + b'\xfa\xf4\xeb\xfc').ljust(8192, b'\0'))


class Vm:
    """A running one; .said is what a VM that did not start had to say."""

    def __init__(self, *args):
        self.p = subprocess.Popen([hv, 'run', '--engine', engine, '--kernel', 'kernel', '--serial', 'null', *args],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.first = self.p.stderr.readline()
        self.runs = self.first.startswith('engine: ')
        self.said = '' if self.runs else self.first + self.rest()

    def rest(self):
        said = self.p.stderr.read()
        self.p.wait()
        return said

    def __enter__(self):
        return self

    def __exit__(self, *args):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            self.said += self.rest()

    def vcpus(self, n):
        """Thread ids of the CPUs, once there are all."""
        while self.p.poll() is None:
            found = {}
            for t in pathlib.Path(f'/proc/{self.p.pid}/task').iterdir():
                try:
                    name = (t / 'comm').read_text().strip()
                except OSError:
                    continue # it has ended
                if m := re.match(r'vcpu (\d+)$', name):
                    found[int(m[1])] = int(t.name)
            if len(found) == n:
                return [found[i] for i in range(n)]
            time.sleep(.01)
        return []

    def comes_true(self, condition):
        """A condition that holds a moment after the thread begins."""
        for _ in range(3000):
            try:
                if condition():
                    return True
            except OSError:
                pass # the thread has ended
            if self.p.poll() is not None:
                return False
            time.sleep(.01)
        return False

    def ram(self):
        """The lines of /proc/PID/smaps for guest memory, as a dict."""
        text = pathlib.Path(f'/proc/{self.p.pid}/smaps').read_text()
        for entry in re.split(r'(?m)^(?=[0-9a-f]+-[0-9a-f]+ )', text):
            head, _, rest = entry.partition('\n')
            if 'guest-ram' in head:
                return {k: v.strip() for k, _, v in (line.partition(':') for line in rest.splitlines())}
        return {}

    def file(self, name):
        return pathlib.Path(f'/proc/{self.p.pid}/{name}').read_text()


def kib(ram, name):
    return int(ram[name].split()[0])


halting_kernel()

# CPUs and scheduling.
with Vm('--cpus', '2', '--cpu-pin', f'{cpus[-1]},{cpus[0]}' if len(cpus) > 1 else f'all={cpus[0]}') as vm:
    tids = vm.vcpus(2)
    want = [{cpus[0]}, {cpus[-1]}]
    ok('each virtual CPU on its own CPU', tids and vm.comes_true(
        lambda: [os.sched_getaffinity(t) for t in tids] == want), vm.said)
with Vm('--cpus', '3', '--cpu-pin', f'0-1={cpus[-1]}') as vm:
    tids = vm.vcpus(3)
    ok('some of them on a list, the rest anywhere', tids and vm.comes_true(
        lambda: [os.sched_getaffinity(t) for t in tids] == [{cpus[-1]}, {cpus[-1]}, set(cpus)]), vm.said)
with Vm('--sched', 'batch') as vm:
    tids = vm.vcpus(1)
    ok('scheduling policy batch', tids and vm.comes_true(lambda: os.sched_getscheduler(tids[0]) == os.SCHED_BATCH),
       vm.said)
    ok('the other threads keep theirs', os.sched_getscheduler(vm.p.pid) == os.SCHED_OTHER)
with Vm('--sched', 'fifo:7') as vm:
    tids = vm.vcpus(1)
    if tids and vm.comes_true(lambda: os.sched_getscheduler(tids[0]) == os.SCHED_FIFO):
        ok('scheduling policy fifo', os.sched_getparam(tids[0]).sched_priority == 7)
    else:
        said = vm.said + vm.rest()
        ok('scheduling policy fifo, or why not', vm.p.returncode == 1 and 'is not permitted' in said, said)

# Memory.
with Vm('--memory', '64M') as vm:
    ok('memory is had when it is touched', vm.runs and kib(vm.ram(), 'Rss') < 32 << 10, vm.said)
with Vm('--memory', '64M,prealloc=on') as vm:
    ok('memory is had before the start', vm.runs and kib(vm.ram(), 'Rss') >= (64 << 10) - 128, vm.said)
with Vm('--memory', '16M,lock=on') as vm:
    if vm.runs:
        ok('memory is locked', 'lo' in vm.ram()['VmFlags'].split())
    else:
        ok('memory is locked, or why not', 'memlock' in vm.said, vm.said)
with Vm('--memory', '16M,numa=0') as vm:
    if vm.runs:
        ok('memory is bound to a node', any('guest-ram' in line and 'bind:0' in line
                                            for line in vm.file('numa_maps').splitlines()), vm.file('numa_maps'))
    elif 'knows no NUMA' in vm.said:
        skip('memory is bound to a node', 'a kernel without NUMA')
    else:
        ok('memory is bound to a node', False, vm.said)
with Vm('--memory', '16M,hugepages=2M,prealloc=on') as vm:
    if vm.runs:
        ok('memory of huge pages', kib(vm.ram(), 'KernelPageSize') == 2048, vm.ram())
    else:
        ok('memory of huge pages, or why not', 'huge pages' in vm.said, vm.said)

# A share of the host's CPUs.
with Vm('--cpu-weight', '20', '--cpu-max', '75%') as vm:
    if vm.runs:
        path = next(line[3:] for line in vm.file('cgroup').splitlines() if line.startswith('0::'))
        mount = next(w[1] for w in (line.split() for line in vm.file('mounts').splitlines()) if w[2] == 'cgroup2')
        group = pathlib.Path(mount + path)
        ok('the process is in a cgroup of its own', group.name == f'hv-{vm.p.pid}', path)
        ok('with its weight and limit', (group / 'cpu.weight').read_text() == '20\n' and
           (group / 'cpu.max').read_text() == '75000 100000\n')
    else:
        group = None
        ok('a share of the CPUs, or why not', 'cgroup' in vm.said and vm.p.returncode == 1, vm.said)
if group:
    ok('which is gone afterwards', not group.exists())

# Wrong usage: one sentence, status 2, nothing started.
absent = max(cpus) + 1
for args, words in (
        (['--cpu-pin', str(absent)], f'may not run on CPU {absent}'),
        (['--cpu-pin', 'x'], 'not a list of CPUs'),
        (['--cpu-pin', f'5={cpus[0]}'], 'no virtual CPU 5'),
        (['--cpu-pin', f'64={cpus[0]}'], 'no virtual CPU 64'),
        (['--cpu-pin', str(cpus[0]), '--cpus', '2'], 'names 1 CPUs for 2'),
        (['--sched', 'fifo'], 'fifo:1 to 99'),
        (['--sched', 'rr:100'], 'rr:1 to 99'),
        (['--cpu-weight', '0'], '1 to 10000'),
        (['--cpu-max', '0'], 'percentage'),
        (['--cpu-max', 'much'], 'percentage'),
        (['--memory', '64M,hugepages=3M'], 'off, on, 2M or 1G'),
        (['--memory', '64M,prealloc=1'], 'on or off'),
        (['--memory', '64M,prealloc'], 'needs a value'),
        (['--memory', '64M,numa=x'], 'list of nodes'),
        (['--memory', '64M,numa=64'], '0 to 63'),
        (['--memory', '64M,numa-policy=bind'], 'needs numa='),
        (['--memory', '64M,numa=0,numa-policy=near'], 'bind, prefer or interleave'),
        (['--memory', '64M,colour=red'], "'colour' is not known"),
        (['--profile', 'huge'], 'pc or micro')):
    with Vm('--memory', '64M', *args) as vm:
        ok(f'hv run {" ".join(args)}', not vm.runs and vm.p.returncode == 2 and words in vm.first
           and len(vm.said.splitlines()) == 2, vm.said)
print(f'1..{len(results)}')
