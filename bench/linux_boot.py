#!/usr/bin/env python3
"""Linux from the first instruction to init, then power-off: linux_boot.py HV ASSETS [ROUNDS]

Runs hv with each tier of the soft engine and, when it is installed, qemu-system-x86_64 with TCG in
turn on the same kernel and initramfs, and prints the median of each and the ratio round by round, of
elapsed time and of user CPU time (which other load disturbs less).  One virtual CPU.
"""
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

hv, assets = sys.argv[1], pathlib.Path(sys.argv[2])
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
append = 'console=ttyS0 panic=-1 quiet test=none'


def user_time():
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def run(command, log):
    start, user = time.monotonic(), user_time()
    r = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    took = time.monotonic() - start
    if 'INIT-OK' not in pathlib.Path(log).read_text(errors='replace'):
        sys.exit(f'{command[0]} did not reach init\n{r.stderr}')
    return took, user_time() - user


def run_hv(tier):
    with tempfile.NamedTemporaryFile() as log:
        return run([hv, 'run', '--engine', f'soft,tier={tier}', '--kernel', assets / 'vmlinux', '--initrd',
                    assets / 'initrd.gz', '--append', append, '--serial', f'file={log.name}', '--no-reboot'], log.name)


def run_tcg(cpu):
    with tempfile.NamedTemporaryFile() as log:
        return run(['qemu-system-x86_64', '-M', 'q35', '-accel', 'tcg', '-cpu', cpu, '-m', '512', '-nodefaults',
                    '-display', 'none', '-no-reboot', '-net', 'none', '-kernel', assets / 'vmlinux', '-initrd',
                    assets / 'initrd.gz', '-append', append, '-serial', f'file:{log.name}'], log.name)


if not (assets / 'initrd.gz').exists():
    sys.exit('no boot assets: scripts/boot-assets.sh says why')
qemu = shutil.which('qemu-system-x86_64')
runs = {'hv translate': lambda: run_hv('translate'), 'hv interp': lambda: run_hv('interp')}
if qemu:
    runs['tcg -cpu max'] = lambda: run_tcg('max')
    runs['tcg -cpu qemu64'] = lambda: run_tcg('qemu64')
seen = {name: [] for name in runs}
for _ in range(rounds):
    for name, one in runs.items():
        seen[name].append(one())
ours = seen['hv translate']
for name, times in seen.items():
    print(f'linux boot, {name}: {statistics.median(t for t, _ in times):.2f} s, '
          f'user {statistics.median(u for _, u in times):.2f} s; as a multiple of hv translate '
          f'{statistics.median(t / o for (t, _), (o, _) in zip(times, ours)):.2f}, '
          f'user {statistics.median(u / o for (_, u), (_, o) in zip(times, ours)):.2f}')
