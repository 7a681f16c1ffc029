#!/usr/bin/env python3
"""Boot what others wrote under hv and check what it says: run.py HV ASSETS CASE [hv run options...]

Prints TAP.  ASSETS is what scripts/boot-assets.sh made; a case whose files are not there skips.
Linux cases boot Debian's stock kernel with the test initramfs (init.sh does what test=NAME says) and
look at the serial log, at hv's exit status and, for disk and net, at what the host got.  Others
(GNU Mach, Xen, memtest86+, ...) run until they have said what they should.
"""
import hashlib
import http.server
import os
import pathlib
import re
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
results = []


def ok(what, good, detail=''):
    results.append(good)
    print(f'{"ok" if good else "not ok"} {len(results)} - {what}', flush=True)
    if not good and detail:
        print('\n'.join('# ' + line for line in detail.splitlines()[-40:]))


def skip(why):
    print(f'1..1\nok 1 - {case} # SKIP {why}')
    sys.exit(0)


def need(*names):
    for name in names:
        if not (assets / name).exists():
            skip(f'there is no {name} (scripts/boot-assets.sh says why)')


class Guest:
    """One run of Linux: .log is the serial console, .status the exit status."""

    def __init__(self, append, kernel='vmlinux', initrd='initrd.gz', extra=(), no_reboot=True,
                 crypto_tests=False, timeout=TIMEOUT):
        need(kernel, initrd)
        if not crypto_tests: # they take seconds and no two runs need them
            append += ' cryptomgr.notests'
        with tempfile.TemporaryDirectory() as d:
            log = pathlib.Path(d) / 'serial'
            r = subprocess.run(
                [hv, 'run', '--kernel', assets / kernel, '--initrd', assets / initrd,
                 '--append', f'console=ttyS0 panic=-1 {append}', '--serial', f'file={log}',
                 '--timeout', str(timeout), '--stats', *(['--no-reboot'] if no_reboot else []),
                 *extra, *options],
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


# --- Linux ---------------------------------------------------------------------------------------

def case_boot(kernel='vmlinux'):
    g = Guest('test=none', kernel, crypto_tests=kernel != 'vmlinux')
    expect_end(g, f'INIT-OK cpus={cpus()} ')
    if '--engine' in options and options[options.index('--engine') + 1].startswith('soft'):
        ok('--stats tells where the CPU time went', ' s of CPU time: ' in g.said, g.said)


def case_lockstep():
    """Each block interpreted and translated; hv aborts at the first difference."""
    g = Guest('quiet test=none', timeout=3000)
    expect_end(g, f'INIT-OK cpus={cpus()} ')
    m = re.search(r'(\d+) instructions compared', g.said)
    ok('100 million instructions came out the same', m and int(m[1]) >= 100_000_000, g.said)


def case_clock():
    g = Guest('test=clock')
    expect_end(g, 'CLOCKSOURCE ')
    # With a TSC that never stops Linux changes from kvm-clock to that after a second.
    ok('the clock source is a fast one', g.word('CLOCKSOURCE') in ('kvm-clock', 'tsc'), g.log)
    ok('nothing is said of an unstable clock', not g.has('nstable'), g.log)


def case_load():
    n = 5 * int(cpus())
    expect_end(Guest('test=load', extra=['--memory', '1G']), f'LOAD-SUMS 1 of {n}')


def case_reboot():
    expect_end(Guest('test=reboot'), 'INIT-OK')


def case_panic():
    expect_end(Guest('test=crash'), 'sysrq triggered crash')


# What a kernel may say at level "warning" or worse: of hardware that is not there, and of a host
# that has taken the CPU away for a while.
KNOWN_MESSAGES = ('PS/2 appears to have AUX port disabled', 'hrtimer: interrupt took',
                  'perf: interrupt took too long')


def case_messages():
    g = Guest('test=messages')
    expect_end(g, 'MESSAGES-DONE')
    bad = [line for line in g.log.splitlines()
           if line.startswith('MESSAGE ') and not any(k in line for k in KNOWN_MESSAGES)]
    ok('the kernel warns of nothing', not bad, '\n'.join(bad))
    ok('no word of a firmware bug', not re.search(r'Firmware (Bug|Warn)', g.log), g.log)


def case_memory():
    for size, kib in (('128M', 70_000), ('3G', 2_900_000), ('8G', 8_000_000)):
        g = Guest('test=memory', extra=['--memory', size])
        ok(f'all of {size} is found', int(g.word('MEMORY') or 0) > kib and g.status == 0, g.log)


def case_devices():
    with tempfile.TemporaryDirectory() as d:
        d = pathlib.Path(d)
        (d / 'a').write_bytes(bytes(10 << 20))
        (d / 'b').write_bytes(b'second disk'.ljust(20 << 20, b'\0'))
        extra = ['--disk', f'{d}/a', '--disk', f'{d}/b,readonly=on', '--console', f'file={d}/hvc']
        for n in (1, 2, 3):
            extra += ['--serial', f'file={d}/com{n}']
        g = Guest('test=devices', extra=extra)
        expect_end(g, 'DEVICES-DONE')
        ok('both disks have their size and their lock', g.has('DISK vda 20480 ro=0') and g.has('DISK vdb 40960 ro=1'),
           g.log)
        ok('a disk is what its file is', g.has(hashlib.sha256(b'second disk'.ljust(512, b'\0')).hexdigest()), g.log)
        ok('random bytes come', g.has('RNG virtio_rng.0 64'), g.log)
        ok('there is a keyboard', g.has('AT Translated Set 2 keyboard'), g.log)
        for n in (1, 2, 3):
            ok(f'serial port {n + 1} speaks', f'PORT {n} says hello' in (d / f'com{n}').read_text(), g.log)
        ok('the virtio console speaks', 'CONSOLE says hello' in (d / 'hvc').read_text(), g.log)


def case_restart(ways):
    for how in ways:
        with tempfile.NamedTemporaryFile() as disk:
            disk.truncate(1 << 20)
            g = Guest(f'test=restart {how}', extra=['--disk', disk.name], no_reboot=False)
        ok(f'the machine comes back after {how}',
           g.has('RESTART-FIRST') and g.has('RESTART-CAME-BACK') and g.status == 0, g.log)


# Not reboot=t: a triple fault ends the run with a status of its own.
RESTART_WAYS = ('reboot=k', 'reboot=a', 'reboot=p', 'reboot=b')

# Kernel command lines that take other ways through the CPU or the board.  The first are for every
# day.
OPTIONS = (
    'noapic', 'nolapic', 'acpi=off test=reboot', 'nox2apic', 'no-kvmclock tsc=unstable', 'pci=nomsi', 'noxsave',
    'nosmap nosmep nopti',
    # from here: long
    'nosmp', 'nopti', 'pti=on', 'nokaslr', 'mitigations=off', 'mitigations=auto,nosmt', 'nosmap', 'nopcid',
    'noxsaveopt', 'noxsaves', 'clearcpuid=avx,avx2', 'clearcpuid=smap,smep', 'hpet=disable', 'tsc=unstable',
    'idle=poll', 'idle=halt', 'no-kvmclock', 'nohz=off highres=off', 'noapictimer', 'lapic=notscdeadline', 'notsc',
    'pci=noacpi', 'pci=nommconf', 'nopvspin', 'nohlt', 'apic=debug show_lapic=all', 'nopat', 'nogbpages',
    'vsyscall=emulate', 'nokaslr mitigations=off nopv', 'acpi=noirq', 'acpi=strict', 'clocksource=acpi_pm',
    'clocksource=hpet', 'clocksource=tsc', 'clocksource=jiffies no-kvmclock', 'init_on_free=1', 'noexec=off',
    'preempt=full', 'preempt=none', 'threadirqs', 'debug_pagealloc=on', 'irqpoll', 'nohpet nolapic_timer',
)
TROUBLE = re.compile(r'BUG:|WARNING:|Call Trace|soft lockup|nobody cared|rcu.*stall')


def case_options(rows):
    for row in rows:
        g = Guest(row if 'test=' in row else f'{row} test=none')
        trouble = TROUBLE.search(g.log)
        ok(f'Linux starts with {row}', g.has('INIT-OK') and g.status == 0 and not trouble, g.log)


def case_five_levels():
    """The bzImage's own start-up code is what turns 5-level paging on."""
    g = Guest('test=none', 'vmlinuz', extra=['--cpu', 'base,+la57'])
    expect_end(g, 'INIT-OK')
    ok('addresses have 57 bits', g.has('max_arch_pfn = 0x10000000000'), g.log)


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


def hv_disk(*args):
    r = subprocess.run([hv, 'disk', *args], capture_output=True, text=True)
    if r.returncode:
        sys.exit(f'hv disk {args}: {r.stderr}')


def case_chain():
    """The same on a qcow2 image over a compressed one in another directory, which stays as it was."""
    with tempfile.TemporaryDirectory() as d:
        raw, base, top = f'{d}/disk.img', f'{d}/bases/base.qcow2', f'{d}/vm/top.qcow2'
        for name in ('bases', 'vm'):
            os.makedirs(f'{d}/{name}')
        make_fs('ext4', raw)
        hv_disk('convert', '-f', 'raw', '-O', 'qcow2', '-c', raw, base)
        was = hashlib.sha256(open(base, 'rb').read()).digest()
        hv_disk('create', '-q', '-f', 'qcow2', '-b', '../bases/base.qcow2', '-F', 'qcow2', top)
        g = Guest('test=disk fs=ext4', extra=['--disk', f'{top},format=qcow2,allow-ref={d}/bases'])
        expect_end(g, 'DISK-DONE')
        ok('the guest read back what it wrote', g.has('DISK-SAME'), g.log)
        ok('the backing file is as it was', hashlib.sha256(open(base, 'rb').read()).digest() == was)
        hv_disk('check', '-q', '-f', 'qcow2', top)
        hv_disk('convert', '--allow-ref', f'{d}/bases', '-f', 'qcow2', top, raw)
        clean, said = fsck('ext4', raw)
        ok('the file system is clean on the host', clean, said)
        g = Guest('test=disk fs=ext4', extra=['--disk', f'{top},format=qcow2'])
        ok('without allow-ref the chain is refused', g.status == 1 and '--allow-ref' in g.said, g.said)


def case_overlay():
    """A file system is made busy in an overlay, under limits; the image below stays as it was."""
    with tempfile.TemporaryDirectory() as d:
        raw, image = f'{d}/disk.img', f'{d}/disk.qcow2'
        make_fs('ext4', raw)
        hv_disk('convert', '-f', 'raw', '-O', 'qcow2', raw, image)
        was = hashlib.sha256(open(image, 'rb').read()).digest()
        g = Guest('test=disk fs=ext4', extra=['--disk', f'{image},format=qcow2,overlay=on,throttle.bps=200M,'
                                              'throttle.iops-write=20000,throttling.iops-read=20000'])
        expect_end(g, 'DISK-DONE')
        ok('the guest read back what it wrote', g.has('DISK-SAME'), g.log)
        ok('the image is as it was', hashlib.sha256(open(image, 'rb').read()).digest() == was)


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


# --- others --------------------------------------------------------------------------------------

# image: (append, modules or initrd, memory, words it has to say, what it must not say)
OTHERS = {
    # Multiboot, i386.  Without a Hurd it probes the board and stops.
    'gnumach': ('console=com0', None, '128M', ['GNU Mach 1.8', 'Using configuration type 1', 'RTC time is',
                                               'No bootstrap code loaded'], None),
    'memtest86+x64.bin': ('console=ttyS0,115200', None, '16M', ['Memtest86+ v6', '#6  [Moving inversions, 64 bit pattern]',
                                                                'Errors: 0'], r'Errors: [1-9]'),
    'memtest86+ia32.bin': ('console=ttyS0,115200', None, '16M', ['Memtest86+ v6', '#6  [Moving inversions, 64 bit pattern]',
                                                                 'Errors: 0'], r'Errors: [1-9]'),
    # A hypervisor with Linux as its paravirtual first domain: 64-bit kernels in ring 3.
    'xen': ('console=com1 com1=115200,8n1', 'vmlinux console=hvc0 cryptomgr.notests test=none,initrd.gz', '1G',
            ['Xen version 4.17', 'Multiboot-e820 RAM map', 'INIT-OK', 'Entering ACPI S5 state'], None),
    'vmlinuz-i386': ('console=ttyS0 panic=-1 cryptomgr.notests test=load', 'initrd-i386.gz', '256M',
                     ['INIT-OK', 'LOAD-SUMS 1 of', 'reboot: Power down'], None),
    'installer': ('console=ttyS0', 'installer.gz', '1G', ['Choose the language'], None),
}


def modules(spec):
    """The files of a list of modules are assets."""
    return ','.join(str(assets / m) for m in spec.split(','))


def case_other(name):
    append, mods, memory, words, never = OTHERS[name]
    kernel = 'vmlinux' if name == 'installer' else name
    need(kernel, *(m.split()[0] for m in mods.split(',') if mods) if mods else ())
    with tempfile.TemporaryDirectory() as d:
        log = pathlib.Path(d) / 'serial'
        cmd = [hv, 'run', '--kernel', assets / kernel, '--append', append, '--memory', memory, '--no-reboot',
               '--serial', f'file={log}', '--timeout', str(TIMEOUT), *options]
        if mods:
            cmd += ['--initrd', modules(mods)]
        p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        text = ''
        while p.poll() is None and not all(w in text for w in words):
            time.sleep(.3)
            text = log.read_text(errors='replace') if log.exists() else ''
        p.terminate()
        said = p.communicate()[1]
        text = log.read_text(errors='replace') if log.exists() else ''
    for w in words:
        ok(f'{name} says {w!r}', w in text, text + said)
    if never:
        ok(f'{name} does not say {never}', not re.search(never, text), text)


cases = {
    'boot': case_boot, 'bzimage': lambda: case_boot('vmlinuz'), 'clock': case_clock, 'load': case_load,
    'reboot': case_reboot, 'panic': case_panic, 'messages': case_messages, 'memory': case_memory, 'lockstep': case_lockstep,
    'devices': case_devices, 'five-levels': case_five_levels,
    'restart': lambda: case_restart(RESTART_WAYS[:1]), 'restart-all': lambda: case_restart(RESTART_WAYS),
    'options': lambda: case_options(OPTIONS[:8]), 'options-all': lambda: case_options(OPTIONS[8:]),
    'ext4-chain': case_chain, 'ext4-overlay': case_overlay, 'ext4': lambda: case_disk('ext4'), 'xfs': lambda: case_disk('xfs'),
    'net': lambda: case_net(16), 'net200': lambda: case_net(200),
}
if case in OTHERS:
    case_other(case)
else:
    cases[case]()
print(f'1..{len(results)}')
