#!/usr/bin/env python3
"""A full scan by hv recover beside a plain read of the same file: recover_scan.py HV MKVMFS [ROUNDS]

The volume has 20 GiB and a million metadata records (half a million descriptors, as many directory
entries), VMFS6 and VMFS5.  Each round reads the file from start to end by read(2) of 1 MiB, as dd
would, and only where it has data; then scans it without and with a file of findings, in turn.  Prints
medians of the wall time, of the ratio read : scan of a round (1.00: as fast as the read), and the
scan's peak of resident memory.  "warm": the data are in the page cache; "cold": they were dropped
from it before each run.

The file takes 5 GiB in $BENCH_DIR (/var/tmp).  What is measured runs at real-time priority where
that is permitted.
"""
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'tests' / 'vmfs' / 'mkfs'))
import lab  # noqa: E402

hv, mkvmfs = (os.path.abspath(a) for a in sys.argv[1:3])
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
CHUNK = 1 << 20
KINDS = ('read', 'read data', 'scan', 'scan, kept')


def go_first(yes):
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO if yes else os.SCHED_OTHER, os.sched_param(10 if yes else 0))
    except PermissionError:
        pass


def data_runs(fd, size):
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def read_runs(path, only_data):
    buf = bytearray(CHUNK)
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    runs = list(data_runs(fd, size)) if only_data else [(0, size)]
    for start, end in runs:
        os.lseek(fd, start, os.SEEK_SET)
        while start < end:
            n = os.readv(fd, [memoryview(buf)[:min(CHUNK, end - start)]])
            if n <= 0:
                raise RuntimeError(f'read ends at {start}')
            start += n
    os.close(fd)


def drop(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def scan(path, findings):
    """Its peak of resident memory, with that of the processes it started."""
    options = ['--findings', findings] if findings else ['--no-findings']
    p = subprocess.Popen([hv, 'recover', 'scan', '-q', '--full', '--again', *options, path],
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    words = p.stderr.read()
    _, status, usage = os.wait4(p.pid, 0)
    if status:
        raise RuntimeError(f'hv recover scan: status {status}: {words}')
    return usage.ru_maxrss << 10


def measure(kind, path, findings):
    """(seconds, peak)"""
    start, peak = time.monotonic(), 0
    if kind.startswith('read'):
        read_runs(path, kind != 'read')
    else:
        peak = scan(path, findings if kind == 'scan, kept' else None)
    return time.monotonic() - start, peak


def bench(path, findings, cold):
    """{kind: [(seconds, peak), ...]}"""
    out = {k: [] for k in KINDS}
    for i in range(rounds):
        turn = KINDS[i % len(KINDS):] + KINDS[:i % len(KINDS)]
        for kind in turn:
            if cold:
                drop(path)
            go_first(True)
            try:
                out[kind].append(measure(kind, path, findings))
            finally:
                go_first(False)
    return out


def report(version, state, results):
    reads = {k: [t for t, _ in results[k]] for k in KINDS}
    for kind in KINDS[2:]:
        whole = statistics.median(a / b for a, b in zip(reads['read'], reads[kind]))
        data = statistics.median(a / b for a, b in zip(reads['read data'], reads[kind]))
        peak = max(p for _, p in results[kind])
        print(f'VMFS{version}  {state:<5} {kind:<11} read {statistics.median(reads["read"]):6.2f} s  '
              f'its data {statistics.median(reads["read data"]):6.2f} s  scan {statistics.median(reads[kind]):6.2f} s  '
              f'ratio {whole:5.2f}  of its data {data:5.2f}  peak {peak >> 20} MiB', flush=True)


def main():
    for version in (6, 5):
        with tempfile.TemporaryDirectory(dir=os.environ.get('BENCH_DIR', '/var/tmp'), prefix='recover-bench-') as d:
            vol = lab.make(mkvmfs, pathlib.Path(d) / 'volume', lab.bench_script(version))
            path, findings = vol.images[0], os.path.join(d, 'findings')
            read_runs(path, True)
            report(version, 'warm', bench(path, findings, False))
            report(version, 'cold', bench(path, findings, True))


if __name__ == '__main__':
    main()
