#!/usr/bin/env python3
"""What a VM costs before its guest does anything: start_cost.py HV ASSETS [RUNS]

Time from exec to the guest's first instruction (it writes a byte to port 0xE9, which arrives on a
pipe), and the memory the process then holds beyond the guest's RAM, with 128 MiB of it; hv's micro
profile beside QEMU's microvm machine, on each engine this host has, first with a guest of a few
bytes, then with Debian's stock kernel up to its first character on the serial port (hardware-like
engines only: a KVM that emulates ring 0 does not get there).

Runs alternate, so that a busy host disturbs all alike; the median and the best are shown, and the CPU
time of the process until then.
Memory is Rss and Pss of all mappings but the guest's RAM, from /proc/PID/smaps.
"""
import os
import pathlib
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

hv, assets = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2])
RUNS = int(sys.argv[3]) if len(sys.argv) > 3 else 25
LOAD = 0x100000
MEMORY = 128


def tiny_kernel(path):
    """An ELF with the PVH entry note whose first instructions write '!' to port 0xE9 and halt."""
    code = b'\xb0!\xe6\xe9\xfa\xf4\xeb\xfc'
    note = struct.pack('<III', 4, 4, 18) + b'Xen\0' + struct.pack('<I', LOAD + 64)
    seg = note.ljust(64, b'\0') + code
    elf = b'\x7fELF\x01\x01\x01'.ljust(16, b'\0')
    elf += struct.pack('<HHIIIIIHHHHHH', 2, 3, 1, LOAD + 64, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    elf += struct.pack('<IIIIIIII', 1, 0x1000, LOAD, LOAD, len(seg), len(seg), 7, 0x1000)
    elf += struct.pack('<IIIIIIII', 4, 0x1000, LOAD, LOAD, len(note), len(note), 4, 4)
    path.write_bytes(elf.ljust(0x1000, b'\0') + seg)


LINUX = 'console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1'


def hv_command(engine, kernel):
    end = ['--debugcon', '--serial', 'null'] if kernel.name == 'tiny' else ['--serial', 'stdio', '--append', LINUX]
    return [hv, 'run', '--profile', 'micro', '--engine', engine, '--memory', f'{MEMORY}M', '--kernel', kernel, *end]


def qemu_command(engine, kernel):
    cpu = 'host,-arch-capabilities' if engine == 'kvm' else 'max'
    end = ['-chardev', 'stdio,id=c', '-device', 'isa-debugcon,iobase=0xe9,chardev=c'] if kernel.name == 'tiny' else \
        ['-serial', 'stdio', '-append', LINUX]
    return ['qemu-system-x86_64', '-M', 'microvm', '-accel', engine, '-cpu', cpu, '-m', str(MEMORY), '-nodefaults',
            '-no-user-config', '-display', 'none', '-kernel', kernel, *end]


def is_guest_ram(header, size_kib):
    """hv's RAM has a name; QEMU's is the anonymous mapping of its size."""
    return 'memfd:guest-ram' in header or (size_kib == MEMORY * 1024 and header.rstrip().endswith(' 0'))


def memory(pid):
    rss = pss = 0
    header, size = '', 0
    for line in open(f'/proc/{pid}/smaps'):
        name, _, value = line.partition(':')
        if re.match(r'[0-9a-f]+-[0-9a-f]+ ', line):
            header = line
        elif name == 'Size':
            size = int(value.split()[0])
        elif name in ('Rss', 'Pss') and not is_guest_ram(header, size):
            if name == 'Rss':
                rss += int(value.split()[0])
            else:
                pss += int(value.split()[0])
    return rss, pss


def cpu_ms(pid):
    """CPU time of all its threads, which a busy host does not stretch."""
    return sum(int((t / 'schedstat').read_text().split()[0]) for t in pathlib.Path(f'/proc/{pid}/task').iterdir()) / 1e6


def one_run(command):
    """Milliseconds to the first byte, of CPU, and KiB; None when the process ended without one."""
    start = time.perf_counter()
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = os.read(p.stdout.fileno(), 1)
    ms = (time.perf_counter() - start) * 1e3
    result = (ms, cpu_ms(p.pid), *memory(p.pid)) if first else None
    p.kill()
    said = p.communicate()[1].decode(errors='replace')
    return result, said


def show(name, runs):
    ms, cpu, rss, pss = zip(*runs)
    print(f'{name:28} {statistics.median(ms):7.1f} {min(ms):7.1f} {statistics.median(cpu):7.1f}'
          f' {statistics.median(rss) / 1024:9.1f} {statistics.median(pss) / 1024:9.1f}', flush=True)


def compare(title, makers, kernel):
    print(f'\n{title}\n{"":28} {"ms":>7} {"best":>7} {"CPU ms":>7} {"Rss MiB":>9} {"Pss MiB":>9}')
    runs, why = {name: [] for name, _, _ in makers}, {}
    for _ in range(RUNS):
        for name, maker, engine in makers:
            if name in why:
                continue
            result, said = one_run(maker(engine, kernel))
            if result:
                runs[name].append(result)
            else:
                why[name] = said.strip().splitlines()[-1] if said.strip() else 'no output'
    for name, _, _ in makers:
        if runs[name]:
            show(name, runs[name])
        else:
            print(f'{name:28} no: {why[name]}')


def main():
    makers = [('hv micro, soft', hv_command, 'soft')]
    qemu = shutil.which('qemu-system-x86_64')
    if qemu:
        makers.append(('QEMU microvm, tcg', qemu_command, 'tcg'))
    if os.access('/dev/kvm', os.R_OK | os.W_OK):
        makers.append(('hv micro, kvm', hv_command, 'kvm'))
        if qemu:
            makers.append(('QEMU microvm, kvm', qemu_command, 'kvm'))
    with tempfile.TemporaryDirectory() as d:
        tiny = pathlib.Path(d) / 'tiny'
        tiny_kernel(tiny)
        compare('exec to the first instruction of a guest of a few bytes', makers, tiny)
    for kernel in (assets / 'vmlinuz', assets / 'vmlinux'):
        if kernel.exists():
            compare(f"exec to the first word of Debian's {kernel.name}", [m for m in makers if m[2] != 'kvm'], kernel)


main()
