#!/usr/bin/env python3
"""Boot Debian's kernel on devices that others serve: vhost.py HV ASSETS CASE [hv run options...]

Prints TAP.  Cases: disk (vhost-user, served by qemu-storage-daemon; engine kvm), vhost-net (a tap and
the host's kernel; engine kvm, root), tap (a tap and hv itself; any engine, root).  Interfaces are made
in a network namespace of the test's own.  What is not there or not permitted is a skip.
"""
import contextlib
import ctypes
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
import time

hv, assets, case, *options = sys.argv[1:]
assets = pathlib.Path(assets)
TIMEOUT = 600
HOST = '10.0.2.2' # where the guest looks for it
CLONE_NEWNET = 0x40000000
results = []


def ok(what, good, detail=''):
    results.append(good)
    print(f'{"ok" if good else "not ok"} {len(results)} - {what}', flush=True)
    if not good and detail:
        print('\n'.join('# ' + line for line in detail.splitlines()[-40:]))


def skip(why):
    print(f'1..1\nok 1 - {case} # SKIP {why}')
    sys.exit(0)


def need(*tools, kvm):
    for tool in tools:
        if not shutil.which(tool):
            skip(f'there is no {tool}')
    for name in 'vmlinux', 'initrd.gz':
        if not (assets / name).exists():
            skip(f'there is no {name} (scripts/boot-assets.sh says why)')
    if kvm and not os.access('/dev/kvm', os.R_OK | os.W_OK):
        skip('no /dev/kvm')


def boot(directory, append, *extra):
    """The serial log, and how hv ended."""
    log = directory / 'serial'
    r = subprocess.run(
        [hv, 'run', '--kernel', assets / 'vmlinux', '--initrd', assets / 'initrd.gz',
         '--append', f'console=ttyS0 panic=-1 cryptomgr.notests {append}', '--serial', f'file={log}',
         '--no-reboot', '--timeout', str(TIMEOUT), *extra, *options],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
    said = log.read_text(errors='replace') if log.exists() else ''
    ok('hv ended with status 0', r.returncode == 0, r.stderr)
    return said + r.stderr


def word(said, name):
    return next((line.split()[1] for line in said.splitlines() if line.startswith(name + ' ')), '')


# --- a disk --------------------------------------------------------------------------------------

@contextlib.contextmanager
def served(image, sock):
    daemon = subprocess.Popen(
        ['qemu-storage-daemon', '--blockdev', f'driver=file,node-name=disk,filename={image}',
         '--export', f'type=vhost-user-blk,id=e,node-name=disk,writable=on,num-queues=2,'
         f'addr.type=unix,addr.path={sock}'])
    try:
        until = time.monotonic() + 60
        while not sock.exists() and daemon.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        if not sock.exists():
            skip('qemu-storage-daemon has no vhost-user-blk')
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def case_disk(directory):
    need('qemu-storage-daemon', 'mke2fs', 'e2fsck', kvm=True)
    image, sock = directory / 'disk', directory / 'socket'
    with open(image, 'wb') as f:
        f.truncate(64 << 20)
    subprocess.run(['mke2fs', '-qF', '-t', 'ext4', image], check=True)
    with served(image, sock):
        said = boot(directory, 'test=disk fs=ext4', '--disk', f'vhost-user={sock}')
    ok('what was written is read back', 'DISK-SAME' in said, said)
    ok('the file system was unmounted', 'DISK-DONE' in said, said)
    r = subprocess.run(['e2fsck', '-fn', image], capture_output=True, text=True)
    ok('the file system is sound', r.returncode == 0, r.stdout)


# --- a network card ------------------------------------------------------------------------------

def load_modules():
    """In the machine of scripts/nested-kvm.sh they are not loaded yet."""
    listed = pathlib.Path('/modules/on-demand')
    for name in listed.read_text().split() if listed.exists() else ():
        if name in ('tun', 'tap', 'vhost_iotlb', 'vhost', 'vhost_net'):
            subprocess.run(['insmod', f'/modules/{name}.ko'], stderr=subprocess.DEVNULL)


def make_tap():
    """tap0 with the host's address, in a namespace of ours."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNET):
        skip('a network namespace is not permitted')
    for command in ('link set lo up', 'tuntap add dev tap0 mode tap', f'addr add {HOST}/24 dev tap0',
                    'link set tap0 up'):
        if subprocess.run(['ip', *command.split()]).returncode:
            skip(f'ip {command} does not work here')


class Down(http.server.BaseHTTPRequestHandler):
    data = b''

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, *args):
        pass


def case_net(directory, vhost):
    need('ip', kvm=vhost == 'on')
    load_modules()
    if not os.access('/dev/net/tun', os.R_OK | os.W_OK):
        skip('no /dev/net/tun')
    if vhost == 'on' and not os.access('/dev/vhost-net', os.R_OK | os.W_OK):
        skip('no /dev/vhost-net')
    make_tap()
    Down.data = os.urandom(4 << 20)
    server = http.server.ThreadingHTTPServer((HOST, 0), Down)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    up = socket.create_server((HOST, 0))
    got = hashlib.sha256()

    def take():
        conn, _ = up.accept()
        while block := conn.recv(1 << 18):
            got.update(block)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    said = boot(directory, f'test=net port={server.server_port} upport={up.getsockname()[1]}',
                '--net', f'tap=tap0,vhost={vhost}')
    taker.join(10)
    sent = hashlib.sha256(Down.data).hexdigest()
    ok('what the host sent arrived unchanged', word(said, 'NET-DOWN') == sent, said)
    ok('what the guest sent arrived unchanged', got.hexdigest() == sent and word(said, 'NET-UP') == sent, said)


CASES = {'disk': case_disk, 'vhost-net': lambda d: case_net(d, 'on'), 'tap': lambda d: case_net(d, 'off')}

with tempfile.TemporaryDirectory() as d:
    CASES[case](pathlib.Path(d))
print(f'1..{len(results)}')
sys.exit(0 if all(results) else 1)
