#!/usr/bin/env python3
"""The fault matrix: matrix.py HV MKVMFS [--long] [--only F5,F18] [--keep DIR]

Each cell is a volume that mkvmfs wrote, damaged in one way (mkfs/fault.py), and read by `hv recover`.
Its manifest says what every byte of every file was. In every cell:

  sound     a byte marked exact is the byte that was there, and but for damaged pointers (F18), where
            an address may lead astray, so is one marked inferred
  complete  a byte whose descriptor, pointers and place are undamaged is marked exact or inferred
  marked    what is on a missing extent, behind a cut or in a bad sector is marked so
  named     files keep the names that CELLS says
  bounded   it ends, with a status of its own, in less memory than MEMORY

Prints TAP.
"""
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'vmfs' / 'mkfs'))
import fault  # noqa: E402
import lab  # noqa: E402

args = [a for a in sys.argv[1:] if not a.startswith('--')]
hv, mkvmfs = os.path.abspath(args[0]), os.path.abspath(args[1])
long = '--long' in sys.argv
only = next((a.split('=', 1)[1].split(',') for a in sys.argv if a.startswith('--only=')), None)
MEMORY = 600 << 20
TIMEOUT = 300

# Names of the files of a damaged volume: PATH, all of them; TAIL, the last part at least; ANY.
PATH, TAIL, ANY = 'path', 'tail', 'any'
BOTH, V5, V6 = (5, 6), (5,), (6,)

# fault, parameters, versions, names. 'grade' and the like go to fault.scenario.
CELLS = [
    ('none', {}, BOTH, PATH),
    ('F1', {}, BOTH, PATH),
    ('F2', {}, BOTH, PATH),
    ('F3', {}, BOTH, PATH),
    ('F4', {}, BOTH, PATH),
    ('F5', {}, BOTH, PATH),
    ('F6', {}, BOTH, TAIL),
    ('F7', {}, BOTH, TAIL),
    ('F7', {'part': 'header'}, V6, PATH),
    ('F7', {'part': 'map'}, V6, PATH),
    ('F7', {'part': 'dirent'}, V6, TAIL),
    ('F8', {}, BOTH, PATH),
    ('F9', {}, BOTH, PATH),
    ('F10', {}, BOTH, PATH),
    ('F10', {'cluster': 'all'}, BOTH, PATH),
    ('F11', {}, BOTH, PATH),
    ('F11', {'which': '.fbb.sf'}, BOTH, PATH),
    ('F11', {'which': '.sbc.sf'}, BOTH, PATH),
    ('F11', {'which': '.pbc.sf,.pb2.sf'}, BOTH, PATH),
    ('F12', {'path': '/vm'}, BOTH, ANY),
    ('F12', {'path': '/vm', 'part': 'header'}, V6, PATH),
    ('F12', {'path': '/vm', 'part': 'map'}, V6, PATH),
    ('F13', {'grade': 1}, BOTH, TAIL),
    ('F13', {'grade': 2}, BOTH, TAIL),
    ('F13', {'grade': 3}, BOTH, ANY),
    ('F13', {'grade': 1, 'unmap': True}, BOTH, TAIL),
    ('F14', {'grade': 1}, BOTH, TAIL),
    ('F14', {'grade': 2}, BOTH, TAIL),
    ('F14', {'grade': 3}, BOTH, ANY),
    ('F15', {'grade': 1}, BOTH, TAIL),
    ('F15', {'grade': 2}, BOTH, ANY),
    ('F15', {'grade': 1, 'reuse': 'reuse'}, BOTH, ANY),
    ('F16', {'at': 'mid'}, BOTH, PATH),
    ('F16', {'at': '27262976'}, V5, ANY),
    ('F17', {'count': '64', 'seed': '1'}, BOTH, PATH),
    ('F18', {'how': 'flip'}, BOTH, PATH),
    ('F18', {'how': 'cycle'}, BOTH, PATH),
    ('F18', {'how': 'range'}, BOTH, PATH),
    ('F18', {'how': 'duplicate'}, BOTH, PATH),
    ('F19', {}, BOTH, PATH),
    ('F20', {}, BOTH, PATH),
] + [('F21', {'how': how}, BOTH, ANY if how in ('loop', 'entries') else PATH) for how in fault.HOSTILE]

LAYOUTS = {'one': ('768M',), 'two': ('512M', '512M')}
BY_SCRIPT = {'grade', 'unmap', 'reuse'}

count = failed = 0


def result(problems, name):
    global count, failed
    count += 1
    failed += bool(problems)
    print(f'{"not " if problems else ""}ok {count} - {name}', flush=True)
    for p in problems[:12]:
        print(f'#   {p}')
    if len(problems) > 12:
        print(f'#   and {len(problems) - 12} more')


# --- what must come back ----------------------------------------------------------------------------

def overlap(a, a_len, b, b_len):
    lo, hi = max(a, b), min(a + a_len, b + b_len)
    return (lo, hi - lo) if lo < hi else None


def at(vol, extent, dev):
    return vol.manifest['extents'][extent]['partition_offset'] + dev


def hit(vol, place, length, ranges):
    return any(e == place['extent'] and overlap(at(vol, e, place['dev']), length, off, n) for e, off, n in ranges)


class Gone:
    """The bytes of a file that are not there any more, as file offsets."""

    def __init__(self, vol, f, ranges):
        self.ranges = []
        for off, length, _, extent, dev in f['extents']:
            for e, start, n in ranges:
                o = e == extent and overlap(at(vol, extent, dev), length, start, n)
                if o:
                    self.ranges.append((off + o[0] - at(vol, extent, dev), o[1]))

    def has(self, off, length):
        return any(overlap(off, length, o, n) for o, n in self.ranges)


def difference(got, want, off):
    for i in range(len(want)):
        if got[i:i + 1] != want[i:i + 1]:
            return off + i
    return None


def check_file(f, want, entry, data, gone, whole, where, astray):
    """f: its record; want: its bytes; entry: what recovery says of it; data: what it gives."""
    out = []
    for r in entry['ranges']:
        off, n, sure = r['offset'], r['length'], r['trust'] in ('exact', 'inferred')
        believed = r['trust'] == 'exact' or (sure and not astray)
        if believed and data[off:off + n] != want[off:off + n]:
            out.append(f'{where}: {r["trust"]} but wrong at {difference(data[off:off + n], want[off:off + n], off)} '
                       f'of {off}+{n} ({r["kind"]})')
        if sure or not whole:
            continue
        # Not sure: some of it must be gone, sector by sector.
        for s in range(off, off + n, 512):
            if not gone.has(s // 4096 * 4096, 4096) and any(want[s:min(s + 512, off + n)]):
                out.append(f'{where}: {r["trust"]} at {s} for no reason ({r.get("why")})')
                break
    covered = sum(r['length'] for r in entry['ranges'])
    if covered != entry['size']:
        out.append(f'{where}: ranges cover {covered} of {entry["size"]} bytes')
    return out


def check_gone(entry, gone, where):
    return [f'{where}: exact at {off}, which cannot be read' for off, n in gone.ranges for r in entry['ranges']
            if r['trust'] in ('exact', 'inferred') and r['kind'] != 'hole' and overlap(off, n, r['offset'],
                                                                                     r['length'])][:1]


# --- a cell ----------------------------------------------------------------------------------------------

def run(cmd, cwd):
    def limit():
        os.setsid()
    p = subprocess.run(cmd, cwd=cwd, capture_output=True, timeout=TIMEOUT, preexec_fn=limit,
                       env=dict(os.environ, XDG_STATE_HOME=str(cwd / 'state'), TZ='UTC'))
    return p.returncode, p.stdout, p.stderr.decode(errors='replace')


def write_map(vol, bad, cwd):
    """ddrescue's map of each image: what of this copy is real."""
    for i, e in enumerate(vol.manifest['extents']):
        size = (vol.directory / e['file']).stat().st_size
        lines, pos = ['# Mapfile.', '0x0 + 1'], 0
        for first, n in sorted((a * 512, b * 512) for x, a, b in bad if x == i):
            if first < pos:
                n, first = n - (pos - first), pos
            if n <= 0:
                continue
            if first > pos:
                lines.append(f'{pos:#x} {first - pos:#x} +')
            lines.append(f'{first:#x} {n:#x} -')
            pos = first + n
        lines.append(f'{pos:#x} {size - pos:#x} +')
        (cwd / ('map' + (f'.{i + 1}' if i else ''))).write_text('\n'.join(lines) + '\n')


def sources(vol):
    return [i for i in vol.images if os.path.exists(i)]


def recover(vol, cwd, options):
    """(what `report` says, the files `cp` gave, problems)"""
    rc, _, err = run([hv, 'recover', 'report', '-q', '--overwrite', *options, *sources(vol), 'report'], cwd)
    if rc not in (0, 4):
        return None, None, [f'report: status {rc}: {err.strip()}']
    names = sources(vol)
    rc, _, err = run([hv, 'recover', 'cp', '-q', '-r', *options, *names[:-1], names[-1] + ':/', 'out'], cwd)
    # What has a length that cannot be is told and left out.
    problems = [] if rc in (0, 4) or (rc == 1 and all('its length is wrong' in x or 'not all of it' in x
                                                      for x in err.splitlines())) else [f'cp: status {rc}: {err.strip()[-400:]}']
    return json.loads((cwd / 'report.json').read_text()), cwd / 'out', problems


def named(entry, f, names):
    if names == ANY or (names == TAIL and entry['path'].endswith('/' + f['path'].rsplit('/', 1)[1])):
        return []
    if names == PATH and entry['path'] in (f['path'], '/deleted' + f['path']):
        return []
    return [f'{f["path"]} is called {entry["path"]}']


def candidates(report, f):
    return [e for e in report['files'] if e['size'] == f['size'] and e['state'] != 'carved' and
            (e.get('descriptor') == f['fd'] or e['path'].endswith('/' + f['path'].rsplit('/', 1)[1]))]


def check_record(vol, f, want, report, out, ranges, names, lost_is_known, needed, astray):
    """problems of one file of the manifest"""
    where = f['path']
    fd_gone = hit(vol, f['fd_at'], vol.manifest['fd_size'], ranges)
    pb_gone = any(hit(vol, p, 65536 if vol.version == 6 else 4096, ranges) for p in f['pointer_blocks'])
    gone = Gone(vol, f, ranges)
    found = candidates(report, f)
    if not found:
        return [] if fd_gone or not needed else [f'{where} was not found']
    problems = []
    for e in found:
        path = out / e['path'].lstrip('/')
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        if data is None:
            problems.append(f'{where}: {e["path"]} was not copied')
            continue
        problems += check_file(f, want, e, data, gone, needed and not fd_gone and not pb_gone, where, astray)
        if lost_is_known:
            problems += check_gone(e, gone, where)
    if needed and not fd_gone:
        problems += min((named(e, f, names) for e in found), key=len)
    return problems


def damage(name, vol, params, cwd):
    if name in fault.FAULTS:
        return fault.apply(name, vol, **params)
    return {'ranges': []}


def lost_ranges(vol, info):
    """What cannot be read at all: [extent, offset, length]."""
    out = [[e, a * 512, n * 512] for e, a, n in info.get('bad_sectors', [])]
    out += [[e, 0, 1 << 50] for e in info.get('missing', [])]
    return out


def cell(name, params, version, layout, names, cwd):
    made = {k: v for k, v in params.items() if k in BY_SCRIPT}
    vol = lab.make(mkvmfs, cwd / 'v', fault.scenario(name, version, LAYOUTS[layout], **made))
    records = [f for f in vol.manifest['files'] if f['type'] == 'file' and f['size']]
    want = {}
    for f in records:
        # Deleted files' blocks may be another's by now: the pattern says what they held.
        want[f['fd'], f['path']] = content(vol, f)
    info = damage(name, vol, {k: v for k, v in params.items() if k not in BY_SCRIPT}, cwd)
    unreadable = lost_ranges(vol, info)
    options = []
    if name == 'F17':
        write_map(vol, info['bad_sectors'], cwd)
        options = ['--map', 'map']
    report, out, problems = recover(vol, cwd, options)
    if report is None:
        return problems
    ranges = info['ranges'] + unreadable
    known = name in ('F16', 'F17', 'F20')
    for f in records:
        needed = not f['deleted'] or can_return(f, params, name)
        if name == 'F12' and f['path'].startswith('/vm/') and version == 5:
            needed = True  # by descriptor: the names are gone
        problems += check_record(vol, f, want[f['fd'], f['path']], report, out, ranges, names, known, needed,
                                 name == 'F18')
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    if peak > MEMORY:
        problems.append(f'{peak >> 20} MiB of memory')
    return problems


def can_return(f, params, name):
    """Is a deleted file recoverable in principle, whole?"""
    if name == 'F15' or params.get('unmap'):
        return False
    resident = f['zla'] == 0x10D1
    return params.get('grade') == 1 or (params.get('grade') == 2 and bool(f['pointer_blocks'] or resident))


def content(vol, f):
    """What the file held when it was written."""
    if not f['deleted']:
        return vol.content(f)
    out = bytearray(f['size'])
    for p in f.get('pieces', []):
        if 'seed' in p:
            r = subprocess.run([mkvmfs, 'pattern', str(p['seed']), str(p['off']), str(p['len'])],
                               capture_output=True, check=True)
            data = r.stdout
        else:
            data = vol.content(f)[p['off']:p['off'] + p['len']]
        out[p['off']:p['off'] + p['len']] = data
    return bytes(out)


def main():
    top = pathlib.Path(tempfile.mkdtemp(prefix='recover-matrix-'))
    try:
        for name, params, versions, names in CELLS:
            if only and name not in only:
                continue
            for version in versions:
                for layout in LAYOUTS:
                    if (name == 'F20') != (layout == 'two') and name == 'F20':
                        continue
                    if not long and layout == 'two' and name not in ('none', 'F2', 'F5', 'F20'):
                        continue
                    title = ' '.join([name, f'VMFS{version}', layout] + [f'{k}={v}' for k, v in params.items()])
                    cwd = top / 'cell'
                    cwd.mkdir()
                    try:
                        problems = cell(name, params, version, layout, names, cwd)
                    except subprocess.TimeoutExpired as e:
                        problems = [f'does not end: {e.cmd}']
                    result(problems, title)
                    shutil.rmtree(cwd)
        print(f'1..{count}')
    finally:
        shutil.rmtree(top, ignore_errors=True)
    return failed != 0


sys.exit(main())
