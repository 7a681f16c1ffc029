#!/usr/bin/env python3
"""Run `meson test`, then close with one line: 'N passed, N failed, N skipped'.

Cases are counted from each program's TAP.  A program that crashed, hung or ended early adds a
failure even when every case it did report was fine, so the line cannot turn green by accident.
"""
import json
import pathlib
import re
import subprocess
import sys

build, *args = sys.argv[1:]
log = pathlib.Path(build) / 'meson-logs' / 'testlog.json'
log.unlink(missing_ok=True)
rc = subprocess.call(['meson', 'test', '-C', build, '--print-errorlogs', *args])

passed = failed = skipped = 0
for line in log.read_text().splitlines() if log.exists() else []:
    prog = json.loads(line)
    cases = re.findall(r'^(not )?ok\b[^#\n]*(# SKIP)?', prog.get('stdout', ''), re.M)
    bad = sum(1 for nope, skip in cases if nope and not skip)
    skipped += sum(1 for _, skip in cases if skip)
    passed += sum(1 for nope, skip in cases if not nope and not skip)
    failed += bad
    if prog['result'] in ('ERROR', 'FAIL', 'TIMEOUT', 'INTERRUPT') and not bad:
        failed += 1
    elif not cases:
        passed += prog['result'] == 'OK'
        skipped += prog['result'] == 'SKIP'
if not passed and not failed:
    print('no tests ran')
print(f'{passed} passed, {failed} failed, {skipped} skipped')
sys.exit(1 if failed or rc or not passed else 0)
