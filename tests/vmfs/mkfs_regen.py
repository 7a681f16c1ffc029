#!/usr/bin/env python3
"""The metadata of the volumes that ESXi made, made again from its fields: mkfs_regen.py MKVMFS.

The samples are data/vmfs/*.gz below $TRIVISOR_SHARED, or below a directory "shared" beside the
source tree.  Prints TAP.
"""
import gzip
import os
import pathlib
import subprocess
import sys
import tempfile

mkvmfs = os.path.abspath(sys.argv[1])
beside = pathlib.Path(__file__).resolve().parents[3] / 'shared'
samples = pathlib.Path(os.environ.get('TRIVISOR_SHARED', beside)) / 'data' / 'vmfs'


def unpack(src, to):
    """Sparse: the volumes are almost all zeros."""
    with gzip.open(src) as f, open(to, 'wb') as out:
        for chunk in iter(lambda: f.read(1 << 20), b''):
            if chunk.strip(b'\0'):
                out.write(chunk)
            else:
                out.seek(len(chunk), os.SEEK_CUR)
        out.truncate()


def main():
    names = ['vmfs5-esxi', 'vmfs6-esxi']
    if not all((samples / f'{n}.bin.gz').exists() for n in names):
        print('1..0 # SKIP no volumes made by ESXi ($TRIVISOR_SHARED)')
        return 0
    count = bad = 0
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            image = os.path.join(work, name)
            unpack(samples / f'{name}.bin.gz', image)
            r = subprocess.run([mkvmfs, 'regenerate', image], capture_output=True, text=True, timeout=600)
            lines = [line.split(' - ', 1) for line in r.stdout.splitlines() if 'ok ' in line[:7]]
            print('\n'.join(line for line in r.stdout.splitlines() if line.startswith('#')))
            for result, what in lines or [['not ok', f'{name}: {r.stderr.strip()}']]:
                count += 1
                bad += result.startswith('not')
                print(f"{'not ok' if result.startswith('not') else 'ok'} {count} - {what}")
            bad += r.returncode != 0 and not bad
            os.unlink(image)
    print(f'1..{count}')
    return bad > 0


sys.exit(main())
