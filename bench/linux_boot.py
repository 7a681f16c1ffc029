#!/usr/bin/env python3
"""Linux from the first instruction to init, then power-off: linux_boot.py HV ASSETS [ROUNDS]

Runs hv and, when it is installed, qemu-system-x86_64 with TCG in turn on the same kernel and
initramfs, and prints the median of each and the ratio round by round.  One virtual CPU.
"""
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

hv, assets = sys.argv[1], pathlib.Path(sys.argv[2])
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
append = 'console=ttyS0 panic=-1 quiet test=none'


def run(command, log):
    start = time.monotonic()
    r = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    took = time.monotonic() - start
    if 'INIT-OK' not in pathlib.Path(log).read_text(errors='replace'):
        sys.exit(f'{command[0]} did not reach init\n{r.stderr}')
    return took, r.stderr


def run_hv():
    with tempfile.NamedTemporaryFile() as log:
        took, said = run([hv, 'run', '--engine', 'soft', '--kernel', assets / 'vmlinux', '--initrd',
                          assets / 'initrd.gz', '--append', append, '--serial', f'file={log.name}',
                          '--no-reboot', '--stats'], log.name)
        return took, float(re.search(r'(\d+) million/s', said)[1])


def run_tcg(cpu):
    with tempfile.NamedTemporaryFile() as log:
        return run(['qemu-system-x86_64', '-M', 'q35', '-accel', 'tcg', '-cpu', cpu, '-m', '512', '-nodefaults',
                    '-display', 'none', '-no-reboot', '-net', 'none', '-kernel', assets / 'vmlinux', '-initrd',
                    assets / 'initrd.gz', '-append', append, '-serial', f'file:{log.name}'], log.name)[0]


if not (assets / 'initrd.gz').exists():
    sys.exit('no boot assets: scripts/boot-assets.sh says why')
qemu = shutil.which('qemu-system-x86_64')
ours, speed, theirs = [], [], {'max': [], 'qemu64': []}
for _ in range(rounds):
    took, mips = run_hv()
    ours.append(took)
    speed.append(mips)
    for cpu in theirs if qemu else ():
        theirs[cpu].append(run_tcg(cpu))
print(f'linux boot, hv soft: {statistics.median(ours):.2f} s, {statistics.median(speed):.0f} million instructions/s '
      f'({rounds} rounds, {min(ours):.2f} to {max(ours):.2f} s)')
for cpu, times in theirs.items():
    if times:
        ratio = statistics.median(t / o for t, o in zip(times, ours))
        print(f'linux boot, qemu tcg -cpu {cpu}: {statistics.median(times):.2f} s; hv is {ratio:.2f} times as fast')
