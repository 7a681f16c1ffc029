#!/usr/bin/env python3
"""Mapped read of a disk over NBD, hv disk serve beside qemu-nbd, in turn: serve.py HV [MIB] [ROUNDS]

nbdcopy asks where the data are, reads those over up to four connections and throws them away.  Prints
medians over the rounds of wall time and of the server's own CPU time, and of the ratios; more than
1.00 means that hv is faster.  The files are in memory (/dev/shm) when they fit there.
"""
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

hv = sys.argv[1]
mib = int(sys.argv[2]) if len(sys.argv) > 2 else 512
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 7
for tool in ('nbdkit', 'nbdcopy', 'qemu-nbd'):
    if not shutil.which(tool):
        print(f'{tool} is not installed: nothing to compare')
        sys.exit(0)
IMAGES = [('raw', 'raw', []), ('qcow2', 'qcow2', []), ('qcow2 -c', 'qcow2', ['-c']), ('vdi', 'vdi', []), ('vhdx', 'vhdx', []),
          ('vmdk', 'vmdk', []), ('streamOptimized', 'vmdk', ['-o', 'subformat=streamOptimized'])]


def make_source(path):
    """Every second MiB data, half of it compressible, the others holes."""
    rng = random.Random(3)
    with open(path, 'wb') as f:
        for _ in range(mib // 2):
            f.write(rng.randbytes(1 << 19) + b'compressible  ' * (1 << 15))
            f.seek((f.tell() | (1 << 20) - 1) + 1 + (1 << 20))
        f.truncate(mib << 20)


def cpu_seconds(pid):
    """Of all its threads, to the nanosecond: the process's CPU clock (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)


def read_once(command, sock):
    server = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not os.path.exists(sock):
            if server.poll() is not None:
                raise RuntimeError(f'{command}: status {server.returncode}')
            time.sleep(.01)
        start, cpu = time.monotonic(), cpu_seconds(server.pid)
        subprocess.run(['nbdcopy', f'nbd+unix:///?socket={sock}', 'null:'], check=True)
        return time.monotonic() - start, cpu_seconds(server.pid) - cpu
    finally:
        server.terminate()
        server.wait()
        pathlib.Path(sock).unlink(missing_ok=True)


with tempfile.TemporaryDirectory(dir='/dev/shm' if shutil.disk_usage('/dev/shm').free > mib << 22 else None) as d:
    sock, image = f'{d}/s', f'{d}/image'
    make_source(f'{d}/source')
    print(f'{mib} MiB, {rounds} rounds; seconds hv, qemu-nbd; ratio')
    print(f'{"":16} {"wall":>24}   {"CPU of the server":>24}')
    for name, fmt, options in IMAGES:
        subprocess.run([hv, 'disk', 'convert', '-q', '-f', 'raw', '-O', fmt, *options, f'{d}/source', image], check=True)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(read_once([hv, 'disk', 'serve', '-q', '-f', fmt, '--socket', sock, image], sock))
            theirs.append(read_once(['qemu-nbd', '-r', '-t', '-e', '8', '-f', fmt, '-k', sock, image], sock))
        line = f'{name:16}'
        for i in (0, 1):
            a, b = (statistics.median(x[i] for x in side) for side in (ours, theirs))
            ratio = statistics.median(t[i] / max(o[i], 1e-6) for o, t in zip(ours, theirs))
            line += f'  {a:8.2f} {b:8.2f} {ratio:6.2f}'
        print(line, flush=True)
        os.unlink(image)
