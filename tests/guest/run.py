#!/usr/bin/env python3
"""Run a bare-metal test guest and pass its TAP on: run.py HV IMAGE [hv run options...]

The guest prints TAP on the debug port and ends by the exit port, 0 when all is fine; hv turns that
into status 1.  Anything else (a crash, a hang, a short list) becomes a failed case.
"""
import re
import subprocess
import sys

hv, image, *options = sys.argv[1:]
r = subprocess.run([hv, 'run', '--kernel', image, '--memory', '256M', '--serial', 'null', '--debugcon',
                    '--exit-port', '0xf4', '--timeout', '100', *options],
                   stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
sys.stdout.write(r.stdout)
for line in r.stderr.splitlines():
    print('#', line)
planned = re.search(r'^1\.\.(\d+)', r.stdout, re.M)
reported = len(re.findall(r'^(?:not )?ok ', r.stdout, re.M))
if not planned:
    print('1..1')
if not planned or reported != int(planned[1]) or r.returncode not in (1, 3 if '\nnot ok' in r.stdout else 1):
    print(f'not ok {reported + 1} - the guest ended early: hv status {r.returncode}, {reported} reported')
