#!/usr/bin/env python3
"""Run a bare-metal test guest and pass its TAP on: run.py HV IMAGE [hv run options...]

The guest prints TAP on the debug port and ends by the exit port, 0 when all is fine; hv turns that
into status 1.  Anything else (a crash, a hang, a short list) becomes a failed case.

Under kvm a guest finds what differences.txt lists: such a test may fail, or the image is not run.
"""
import os
import pathlib
import re
import subprocess
import sys

hv, image, *options = sys.argv[1:]


def engine():
    return options[options.index('--engine') + 1].split(',')[0] if '--engine' in options else ''


def places():
    """Which rows of the table hold here."""
    if engine() != 'kvm' or os.environ.get('NESTED_KVM'): # tests/nested has a table of its own
        return set()
    here = {'kvm'}
    if not any(pathlib.Path('/sys/module', m).exists() for m in ('kvm_intel', 'kvm_amd')):
        here.add('emulated')
    return here


def differences():
    """{test or *: reason} of this image here."""
    here, rows = places(), {}
    for line in (pathlib.Path(__file__).parent / 'differences.txt').read_text().splitlines():
        if line and not line.startswith('#'):
            name, test, where, reason = line.split(maxsplit=3)
            if name == pathlib.Path(image).stem and where in here:
                rows[test] = reason
    return rows


def skip(why):
    print(f'1..1\nok 1 - {pathlib.Path(image).stem} # SKIP {why}')
    sys.exit(0)


known = differences()
if '*' in known:
    skip(known['*'])
if engine() == 'kvm' and not os.access('/dev/kvm', os.R_OK | os.W_OK):
    skip('there is no /dev/kvm, or no permission to use it')
r = subprocess.run([hv, 'run', '--kernel', image, '--memory', '256M', '--serial', 'null', '--debugcon',
                    '--exit-port', '0xf4', '--timeout', '100', *options],
                   stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
for line in r.stdout.splitlines():
    m = re.match(r'not ok \d+ - (\S+)$', line)
    print(f'{line} # TODO {known[m[1]]}' if m and m[1] in known else line)
for line in r.stderr.splitlines():
    print('#', line)
planned = re.search(r'^1\.\.(\d+)', r.stdout, re.M)
reported = len(re.findall(r'^(?:not )?ok ', r.stdout, re.M))
if not planned:
    print('1..1')
if not planned or reported != int(planned[1]) or r.returncode not in (1, 3 if '\nnot ok' in r.stdout else 1):
    print(f'not ok {reported + 1} - the guest ended early: hv status {r.returncode}, {reported} reported')
