#!/usr/bin/env python3
"""What a second virtual CPU is worth: smp_scale.py HV ASSETS [--rounds N] [hv run options...]

The guest of scripts/boot-workload.sh does the same work on one and on two CPUs: two processes at a
time that compute SHA-256 sums, or compile.  Prints how much faster it is with two, by the clock, and
by the CPU time that hv used, which says what the clock would on a host with two CPUs to itself: if
nothing is lost to locks and waiting, both cost the same CPU time.
"""
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

hv, assets, *options = sys.argv[1:]
assets = pathlib.Path(assets)
rounds = 3
if '--rounds' in options:
    at = options.index('--rounds')
    rounds = int(options[at + 1])
    del options[at:at + 2]

SCRIPT = r'''
mkdir /dev/shm/w; cd /dev/shm/w
dd if=/dev/urandom of=big bs=1M count=32 2>/dev/null
awk 'BEGIN { for (i = 0; i < 100; i++)
	printf "int f%d(int *a, int n) { int s = %d; for (int i = 0; i < n; i++) { s ^= a[i] * (s >> %d); if (s %% %d == 3) a[i] += s; } return s; }\n",
		i, i * 77, i % 13 + 1, i % 31 + 5 }' >c.c
sha() { for i in 1 2 3; do sha256sum big; done >/dev/null; }
compile() { for i in 1 2; do gcc -O2 -c -o c.$1.o c.c; done; }
sha 1; compile 1 # so that the files are in memory
for r in $(seq ROUNDS); do
	for what in sha compile; do
		echo "BEGIN $what"; sleep 0.5
		$what 1 & $what 2 & wait
		echo "END $what"; sleep 0.5
	done
done
'''


def cpu_s(pid):
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def measure(cpus):
    """{what: [(seconds, CPU seconds)]}"""
    seen, begun, done = {}, None, 0
    with tempfile.TemporaryDirectory() as d:
        job, log = pathlib.Path(d, 'job'), pathlib.Path(d, 'serial')
        script = SCRIPT.replace('ROUNDS', str(rounds)).encode()
        job.write_bytes(script + b'\n' * (-len(script) % 512))
        log.touch()
        p = subprocess.Popen(
            [hv, 'run', '--memory', '1G', '--cpus', str(cpus), '--kernel', assets / 'vmlinux', '--initrd',
             assets / 'initrd.gz', '--append', 'console=ttyS0 panic=-1 cryptomgr.notests test=job', '--serial',
             f'file={log}', '--disk', f'{assets}/workload.img,format=raw,overlay=on', '--disk',
             f'{job},format=raw,readonly=on', '--timeout', '1000', '--no-reboot', *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while p.poll() is None:
            lines = log.read_text(errors='replace').replace('\r', '').split('\n')[:-1]
            for line in lines[done:]:
                words = line.split()
                if words[:1] == ['BEGIN'] and len(words) == 2:
                    begun = time.monotonic(), cpu_s(p.pid)
                elif words[:1] == ['END'] and begun:
                    took = time.monotonic() - begun[0] - 0.5, cpu_s(p.pid) - begun[1]
                    seen.setdefault(words[1], []).append(took)
                    begun = None
            done = len(lines)
            time.sleep(0.02)
    if not seen or any(len(times) != rounds for times in seen.values()):
        sys.exit(f'the guest with {cpus} CPUs did not do its work (hv status {p.returncode})')
    return seen


if not (assets / 'workload.img').exists():
    sys.exit('no guest with a compiler: scripts/boot-workload.sh says why')
one, two = measure(1), measure(2)
print(f'{"two processes":14} {"1 CPU":>16} {"2 CPUs":>16} {"clock":>7} {"by CPU time":>12}')
for what in one:
    (t1, c1), (t2, c2) = ([statistics.median(column) for column in zip(*seen[what])] for seen in (one, two))
    print(f'{what:14} {t1:7.2f} s {c1:5.2f} s {t2:7.2f} s {c2:5.2f} s {t1 / t2:6.2f}x {2 * c1 / c2:11.2f}x')
