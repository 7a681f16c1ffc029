#!/usr/bin/env python3
"""hv doctor on this host, whatever it is, and on made-up ones: test_doctor.py HV

Prints TAP.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

hv = os.path.abspath(sys.argv[1])
results = []


def ok(what, good, detail=''):
    results.append(good)
    print(f'{"ok" if good else "not ok"} {len(results)} - {what}', flush=True)
    if not good:
        print('\n'.join('# ' + line for line in str(detail).splitlines()))


def doctor(*args):
    return subprocess.run([hv, 'doctor', *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)


def findings(r):
    return {f['id']: f for f in json.loads(r.stdout)['findings']}


def host(files):
    d = tempfile.TemporaryDirectory()
    for path, text in files.items():
        p = pathlib.Path(d.name + path)
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(text)
    return d


# This host.
text, js = doctor(), doctor('--json')
said = json.loads(js.stdout)
by_id = findings(js)
ok('there is text for a person', 'KVM\n' in text.stdout and 'hv run --engine auto takes the' in text.stdout, text)
ok('nothing is said on standard error', not text.stderr and not js.stderr, text.stderr + js.stderr)
ok('the status says whether something is bad',
   js.returncode == (1 if said['verdict'] == 'bad' else 0) and text.returncode in (0, 1), js)
ok('the worst verdict is the whole one',
   said['verdict'] == max((f['verdict'] for f in said['findings']), key=['ok', 'info', 'warn', 'bad'].index), js.stdout)
ok('a finding has all its members', all(set(f) == {'verdict', 'section', 'id', 'state', 'advice'} and f['state']
                                        for f in said['findings']), js.stdout)
ok('no id comes twice', len(by_id) == len(said['findings']), js.stdout)
ok('what is bad comes with advice',
   all(f['advice'] for f in said['findings'] if f['verdict'] in ('bad', 'warn')), js.stdout)
ok('the device is there or it is not',
   (by_id['device']['state'] == 'there is no /dev/kvm') == (not os.path.exists('/dev/kvm')), by_id['device'])
ok('auto takes kvm only at hardware speed',
   said['engine'] == 'soft' or by_id['speed']['verdict'] == 'ok', js.stdout)
if os.environ.get('NESTED_KVM'):
    ok('and does so where KVM is like hardware', said['engine'] == 'kvm', js.stdout)
ok('plain text has no colours', '\033' not in text.stdout)

# Others, by their files.
good = {
    '/proc/sys/kernel/osrelease': '6.1.0-1-amd64\n',
    '/proc/cpuinfo': 'processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx sse\n',
    '/sys/module/kvm_intel/parameters/nested': 'Y\n',
    '/sys/module/kvm_intel/parameters/ept': 'Y\n',
    '/dev/kvm': '',
}
with host(good) as d:
    r = doctor('--json', '--root', d)
    f = findings(r)
    ok('a good host by its files', r.returncode == 0 and f['cpu']['verdict'] == f['module']['verdict'] ==
       f['device']['verdict'] == f['nested']['verdict'] == 'ok', r.stdout)
    ok('nothing that needs a running system is said',
       'speed' not in f and 'open-files' not in f and 'engine' not in json.loads(r.stdout), r.stdout)
off = {k: v for k, v in good.items() if '/sys/module' not in k and k != '/dev/kvm'} | {
    '/lib/modules/6.1.0-1-amd64/modules.dep': 'kernel/arch/x86/kvm/kvm-intel.ko: \n',
    '/etc/modprobe.d/no-kvm.conf': 'blacklist kvm_intel\n',
}
with host(off) as d:
    r = doctor('--root', d)
    ok('a blacklisted module', r.returncode == 1 and 'kvm_intel is blacklisted' in r.stdout
       and 'there is no /dev/kvm' in r.stdout and '-> take kvm_intel off the blacklist' in r.stdout, r.stdout)
with host({'/proc/sys/kernel/osrelease': 'a "quoted\\name"\t\n', '/proc/cpuinfo': ''}) as d:
    r = doctor('--json', '--root', d)
    ok('odd text stays JSON', findings(r)['kernel']['state'] == 'Linux a "quoted\\name"\t', r.stdout)

# Usage.
for args, word in ((['--what'], 'not understood'), (['me'], "'me' is not an option"),
                   (['--root', '/nonexistent'], 'not a directory')):
    r = doctor(*args)
    ok(f'hv doctor {" ".join(args)} is wrong usage', r.returncode == 2 and word in r.stderr and not r.stdout, r)
r = doctor('--help')
ok('there is help', r.returncode == 0 and '--json' in r.stdout and 'Exit status' in r.stdout)
print(f'1..{len(results)}')
