#!/usr/bin/env python3
"""Fail if the soft engine's code between guest instructions could call libc's string functions.

They use vector registers, in which guest state is live (src/engine/soft/vec.h).  Objects that may
refer to them do so only outside of engine_cpu_run or after vec_release; each says why below.

  check_engine_symbols.py LIBRARY...      static libraries, with their objects in LIBRARY.p
"""
import pathlib
import re
import subprocess
import sys

banned = re.compile(r'^(mem(cpy|set|move|cmp|chr|rchr|mem)|str\w+|bcmp|bzero|v?s?n?printf|v?f?printf)(_chk)?$')
allowed = {
    'soft.c': 'creation, state in and out: no guest code runs',
    'vec.c': 'creation',
    'xlat_lockstep.c': 'the report before it aborts, after vec_release',
    'vec_xsave.c': 'vec_get and vec_set, after vec_release',
}
seen = bad = 0
for library in sys.argv[1:]:
    for obj in sorted(pathlib.Path(library + '.p').glob('*.o')):
        name = obj.name.removesuffix('.o')
        seen += 1
        for line in subprocess.run(['nm', '-u', obj], capture_output=True, text=True, check=True).stdout.splitlines():
            symbol = line.split()[-1].split('@')[0]
            if banned.match(symbol) and name not in allowed:
                print(f'{name} may call {symbol} while guest vector state is in the registers')
                bad += 1
print(f'engine symbols: {seen} objects checked, {bad} references to libc that must not be')
sys.exit(bad != 0 or seen == 0)
