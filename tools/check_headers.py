#!/usr/bin/env python3
"""Fail if a header is not guarded, does not say what it is, or is not self-contained.

Self-contained: a file holding nothing but the #include compiles.
"""
import pathlib
import subprocess
import sys
import tempfile

root = pathlib.Path(sys.argv[1])
# Generated headers stand in the build tree; the headers that include them cannot compile alone.
generated = ('.gen.h', 'insn_rows.h')
bad = 0
headers = sorted(root.rglob('*.h'))
alone = []
for h in headers:
    text = h.read_text()
    name = str(h.relative_to(root))
    if '#pragma once' not in text:
        print(f'{h}: no #pragma once')
        bad += 1
    if not text.startswith('/* ' + name) and not text.startswith('/* ' + h.name):
        print(f'{h}: does not open with "/* {name} - what it is"')
        bad += 1
    if not any(g in text for g in generated):
        alone.append(name)
with tempfile.TemporaryDirectory() as d:
    for name in alone:
        src = pathlib.Path(d) / 'one.c'
        src.write_text(f'#include "{name}"\n')
        r = subprocess.run(['gcc', '-std=gnu17', '-D_GNU_SOURCE', '-fsyntax-only', '-I', root, src],
                           capture_output=True, text=True)
        if r.returncode:
            print(f'{name}: is not self-contained\n{r.stderr}')
            bad += 1
print(f'headers: {len(headers)} checked, {bad} at fault')
sys.exit(bad != 0 or not headers)
