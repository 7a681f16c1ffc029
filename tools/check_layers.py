#!/usr/bin/env python3
"""Fail if a source file includes a header from a folder its own folder may not use.

The rules are the table in docs/layers.txt; ARCHITECTURE.md explains them.
"""
import pathlib
import re
import sys

root, table = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
rules = {}
for line in table.read_text().splitlines():
    words = line.split('#')[0].split()
    if words:
        rules[words[0]] = set(words)


def folder(path):
    """The longest rule that is a prefix: engine/soft before engine."""
    return max((f for f in rules if path.startswith(f + '/')), key=len, default=None)


bad = seen = 0
for src in sorted(root.rglob('*.[ch]')):
    mine = folder(str(src.relative_to(root)))
    if not mine:
        print(f'{src}: its folder is not in {table}')
        bad += 1
    for n, line in enumerate(src.read_text().splitlines(), 1):
        m = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        theirs = m and folder(m[1])
        if theirs:
            seen += 1
            if mine and theirs not in rules[mine]:
                bad += 1
                print(f'{src}:{n}: {mine} may not use {theirs} (see {table})')
print(f'layers: {seen} includes checked, {bad} against the table')
sys.exit(bad != 0 or seen == 0)
