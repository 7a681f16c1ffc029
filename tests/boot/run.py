#!/usr/bin/env python3
"""Boot Debian's kernel under hv and check what it says: run.py HV ASSETS CASE [hv run options...]

Prints TAP.  ASSETS is what scripts/boot-assets.sh made; without it every case skips.  A case boots
the stock kernel with the test initramfs (init.sh does what test=CASE says) and looks at the serial
log, at hv's exit status and, for disk and net, at what the host got.
"""
import hashlib
import http.server
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

hv, assets, case, *options = sys.argv[1:]
assets = pathlib.Path(assets)
TIMEOUT = 600
results = []


def ok(what, good, detail=''):
    results.append(good)
    print(f'{"ok" if good else "not ok"} {len(results)} - {what}')
    if not good and detail:
        print('\n'.join('# ' + line for line in detail.splitlines()[-40:]))


def skip(why):
    print(f'1..1\nok 1 - {case} # SKIP {why}')
    sys.exit(0)


class Guest:
    """One run of hv: .log is the serial console, .status the exit status."""

    def __init__(self, append, kernel='vmlinux', extra=()):
        with tempfile.TemporaryDirectory() as d:
            log = pathlib.Path(d) / 'serial'
            r = subprocess.run(
                [hv, 'run', '--kernel', assets / kernel, '--initrd', assets / 'initrd.gz',
                 '--append', f'console=ttyS0 panic=-1 {append}', '--serial', f'file={log}',
                 '--timeout', str(TIMEOUT), '--no-reboot', '--stats', *extra, *options],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
            self.log = log.read_text(errors='replace') if log.exists() else ''
        self.status = r.returncode
        self.said = r.stderr
        for line in r.stderr.splitlines():
            print('#', line)

    def has(self, words):
        return words in self.log

    def word(self, name):
        """The word after NAME in the log."""
        for line in self.log.splitlines():
            if line.startswith(name + ' '):
                return line.split()[1]
        return ''


def expect_end(g, words, status=0):
    ok(f'the log has {words!r}', g.has(words), g.log)
    ok(f'hv ends with status {status}', g.status == status, f'status {g.status}\n{g.said}')


def cpus():
    return options[options.index('--cpus') + 1] if '--cpus' in options else '1'


def case_boot(kernel='vmlinux'):
    expect_end(Guest('test=none', kernel), f'INIT-OK cpus={cpus()} ')


def case_bzimage():
    case_boot('vmlinuz')


def case_clock():
    g = Guest('test=clock')
    # Linux prefers the TSC itself where CPUID says that it is invariant.
    expect_end(g, 'CLOCKSOURCE ')
    ok('the clock is kvm-clock or the TSC', g.word('CLOCKSOURCE') in ('kvm-clock', 'tsc'), g.log)
    ok('the TSC rate comes from kvm-clock, nothing is calibrated', g.has('kvm-clock: using sched offset'), g.log)
    ok('nothing is said of an unstable clock', not g.has('nstable'), g.log)


def case_load():
    g = Guest('test=load')
    n = 5 * int(cpus())
    expect_end(g, f'LOAD-SUMS 1 of {n}')


def case_reboot():
    expect_end(Guest('test=reboot'), 'INIT-OK')


def case_panic():
    g = Guest('test=crash')
    expect_end(g, 'sysrq triggered crash')


def make_fs(kind, path):
    tool = shutil.which(f'mkfs.{kind}')
    if not tool:
        skip(f'mkfs.{kind} is not installed')
    with open(path, "wb") as f:
        f.truncate(400 << 20)
    subprocess.run([tool, '-q', path], check=True, capture_output=True)


def fsck(kind, path):
    cmd = ['e2fsck', '-fn', path] if kind == 'ext4' else ['xfs_repair', '-n', '-f', path]
    r = subprocess.run(cmd, capture_output=True, text=True)
    return r.returncode == 0, r.stdout + r.stderr


def case_disk(kind):
    with tempfile.TemporaryDirectory() as d:
        disk = f'{d}/disk.img'
        make_fs(kind, disk)
        g = Guest(f'test=disk fs={kind}', extra=['--disk', f'{disk},format=raw'])
        expect_end(g, 'DISK-DONE')
        ok('the guest read back what it wrote', g.has('DISK-SAME'), g.log)
        clean, said = fsck(kind, disk)
        ok(f'the {kind} file system is clean on the host', clean, said)
        if kind == 'ext4' and shutil.which('debugfs'):
            out = subprocess.run(['debugfs', '-R', 'cat /a/b/copy', disk], capture_output=True).stdout
            ok('the file has the sum the guest saw', hashlib.sha256(out).hexdigest() == g.word('DISK-SUM'))


class Down(http.server.BaseHTTPRequestHandler):
    data = b''

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, *args):
        pass


def case_net(mib):
    """mib MiB to the guest by HTTP and as many back over a plain connection."""
    Down.data = os.urandom(1 << 20) * mib
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Down)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    up = socket.create_server(('127.0.0.1', 0))
    got = {'sum': hashlib.sha256(), 'bytes': 0}

    def take():
        conn, _ = up.accept()
        while block := conn.recv(1 << 18):
            got['sum'].update(block)
            got['bytes'] += len(block)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    g = Guest(f'test=net port={server.server_port} upport={up.getsockname()[1]} mib={mib}',
              extra=['--net', 'user', '--memory', '1G'])
    taker.join(10)
    expect_end(g, 'NET-DONE')
    ok(f'{mib} MiB arrived in the guest unchanged',
       g.word('NET-DOWN') == hashlib.sha256(Down.data).hexdigest(), g.log)
    ok(f'{mib} MiB arrived on the host unchanged',
       got['bytes'] == mib << 20 and g.word('NET-UP') == got['sum'].hexdigest(),
       f'{got["bytes"]} bytes')


cases = {
    'boot': case_boot, 'bzimage': case_bzimage, 'clock': case_clock, 'load': case_load,
    'reboot': case_reboot, 'panic': case_panic,
    'ext4': lambda: case_disk('ext4'), 'xfs': lambda: case_disk('xfs'),
    'net': lambda: case_net(16), 'net200': lambda: case_net(200),
}
if not (assets / 'initrd.gz').exists():
    skip('no boot assets (scripts/boot-assets.sh says why)')
cases[case]()
print(f'1..{len(results)}')
