#!/usr/bin/env python3
"""Ends and resets of a VM at the worst moments: lifecycle.py HV [rounds]

The guests are a few bytes of machine code in a multiboot ELF file.  Whatever they do, and whatever
the operator does meanwhile, hv must end in time with the status it promises.  Prints TAP.
"""
import os
import pty
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time

hv = sys.argv[1]
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 6
IN_TIME = 20  # seconds; a sanitizer build on a busy machine is slow
BASE = 0x100000
random.seed(1)
results = 0


def report(name, problem):
    global results
    results += 1
    print(f'{"not ok" if problem else "ok"} {results} - {name}', flush=True)
    if problem:
        print(f'# {problem}', flush=True)


def image(code, path):
    """ELF32 with one segment at BASE: a multiboot 1 header, then the code."""
    header = struct.pack('<III', 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    body = header + code
    entry = BASE + len(header)
    elf = b'\x7fELF\x01\x01\x01' + bytes(9)
    elf += struct.pack('<HHIIIIIHHHHHH', 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    elf += struct.pack('<IIIIIIII', 1, 96, BASE, BASE, len(body), len(body), 7, 4)
    elf = elf.ljust(96, b'\0') + body
    with open(path, 'wb') as f:
        f.write(elf)


def out(port, value, wide=False):
    """mov edx, port; mov eax, value; out dx, al/ax"""
    return b'\xba' + struct.pack('<I', port) + b'\xb8' + struct.pack('<I', value) + (b'\x66\xef' if wide else b'\xee')


RESET = out(0xCF9, 2) + out(0xCF9, 6)
POWER_OFF = out(0x604, 5 << 10 | 1 << 13, wide=True)
FOREVER = b'\xeb\xfe'
PRINT = out(0x3F8, ord('x')) + b'\xeb' + struct.pack('b', -2 - len(out(0x3F8, 0)))
TRIPLE = b'\x0f\x01\x1d' + struct.pack('<I', 0xFFFF0000) + b'\xcc'


def wake_others(real_mode_code):
    """Copy code to 0x8000 and send INIT, SIPI 8, SIPI 8 to all other CPUs."""
    code = b''
    for i, byte in enumerate(real_mode_code):
        code += b'\xc6\x05' + struct.pack('<IB', 0x8000 + i, byte)
    for icr in (0xC4500, 0xC4608, 0xC4608):
        code += b'\xc7\x05' + struct.pack('<II', 0xFEE00300, icr)
    return b'\xc7\x05' + struct.pack('<II', 0xFEE000F0, 0x1FF) + code


# mov dx, 0xcf9; mov al, 2; out dx, al; mov al, 6; out dx, al; jmp $
RESET16 = b'\xba\xf9\x0c\xb0\x02\xee\xb0\x06\xee\xeb\xfe'
# The other CPUs INIT everybody but themselves, over and over: a32 mov dword [0xfee00300], 0xc4500
INIT16 = b'\x67\x66\xc7\x05' + struct.pack('<II', 0xFEE00300, 0xC4500) + b'\xeb' + struct.pack('b', -14)


class Run:
    def __init__(self, code, *options, **popen):
        self.dir = tempfile.TemporaryDirectory()
        path = os.path.join(self.dir.name, 'guest')
        image(code, path)
        popen.setdefault('stdin', subprocess.DEVNULL)
        popen.setdefault('stdout', subprocess.DEVNULL)
        self.p = subprocess.Popen([hv, 'run', '--kernel', path, '--memory', '16M', *options],
                                  stderr=subprocess.PIPE, **popen)
        self.began = time.monotonic()

    def end(self, *wanted):
        """None, or what is wrong."""
        try:
            err = self.p.communicate(timeout=IN_TIME)[1].decode(errors='replace')
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
            return f'still there after {IN_TIME} s'
        self.dir.cleanup()
        if self.p.returncode not in wanted:
            return f'status {self.p.returncode}, not {wanted}: {err[-2000:]}'
        return None


def no_terminals():
    try:
        for fd in pty.openpty():
            os.close(fd)
        return False
    except OSError:
        return True


def repeat(name, once):
    if once is ctrl_a_x and no_terminals():
        report(name + ' # SKIP no pseudo-terminals here', None)
        return
    for _ in range(rounds):
        problem = once()
        if problem:
            break
    report(name, problem)


def pause(most=0.3):
    time.sleep(random.random() * most)


NULL = ('--serial', 'null')


def reset_storm_timeout():
    return Run(RESET + FOREVER, *NULL, '--timeout', '1', '--cpus', '2').end(124)


def reset_storm_sigterm():
    r = Run(RESET + FOREVER, *NULL, '--cpus', '2')
    pause()
    time.sleep(0.2)
    r.p.send_signal(signal.SIGTERM)
    return r.end(128 + signal.SIGTERM)


def reset_from_all_cpus():
    code = wake_others(RESET16) + RESET + FOREVER
    return Run(code, *NULL, '--timeout', '1', '--cpus', '4').end(124)


def power_off_against_reset():
    code = wake_others(RESET16) + b'\xf3\x90' * random.randrange(60) + POWER_OFF + FOREVER
    return Run(code, *NULL, '--timeout', '15', '--cpus', '4').end(0)


def no_reboot_from_all_cpus():
    code = wake_others(RESET16) + RESET + FOREVER
    return Run(code, *NULL, '--timeout', '15', '--cpus', '4', '--no-reboot').end(0)


def init_storm():
    # The BSP is sent to the reset vector sooner or later; there is no firmware, so it dies there.
    code = wake_others(INIT16) + FOREVER
    return Run(code, *NULL, '--timeout', '1', '--cpus', '4').end(124, 3)


def triple_faults():
    code = wake_others(RESET16) + TRIPLE
    return Run(code, *NULL, '--timeout', '1', '--cpus', '4').end(3, 124)


def sigterm_at_once():
    r = Run(RESET + FOREVER, *NULL)
    pause(0.03)
    r.p.send_signal(signal.SIGTERM)
    return r.end(128 + signal.SIGTERM, -signal.SIGTERM)


def two_signals():
    r = Run(FOREVER, *NULL)
    time.sleep(0.3)
    r.p.send_signal(signal.SIGINT)
    r.p.send_signal(signal.SIGTERM)
    return r.end(130, 143, -signal.SIGTERM)


def reader_that_goes():
    r = Run(PRINT, '--timeout', '1', stdout=subprocess.PIPE)
    r.p.stdout.read(10)
    r.p.stdout.close()
    r.p.stdout = None
    return r.end(124)


def reader_that_never_reads():
    reading, writing = os.pipe()
    r = Run(PRINT, stdout=writing)
    os.close(writing)
    time.sleep(0.3)
    r.p.send_signal(signal.SIGTERM)
    problem = r.end(128 + signal.SIGTERM)
    os.close(reading)
    return problem


def fifo_reader_that_goes():
    with tempfile.TemporaryDirectory() as d:
        fifo = os.path.join(d, 'fifo')
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        r = Run(PRINT, '--serial', f'file={fifo}', '--timeout', '1')
        time.sleep(0.3)
        os.close(reading)
        return r.end(124)


def ctrl_a_x():
    master, slave = pty.openpty()
    r = Run(random.choice([RESET + FOREVER, PRINT, FOREVER]), '--cpus', '2', stdin=slave, stdout=slave,
            start_new_session=True, preexec_fn=lambda: own_terminal())
    os.close(slave)
    end = time.monotonic() + 0.2 + random.random() * 0.3
    drain(master, end)
    os.write(master, b'\x01x')
    drain(master, time.monotonic() + 5, r.p)
    problem = r.end(0)
    os.close(master)
    return problem


def own_terminal():
    import fcntl
    import termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def drain(fd, end, until=None):
    while time.monotonic() < end and not (until and until.poll() is not None):
        if select.select([fd], [], [], 0.05)[0]:
            try:
                os.read(fd, 65536)
            except OSError:
                return


TESTS = [
    ('a guest that resets for ever ends by --timeout', reset_storm_timeout),
    ('a guest that resets for ever ends by SIGTERM', reset_storm_sigterm),
    ('all CPUs reset at once', reset_from_all_cpus),
    ('one CPU powers off while the others reset', power_off_against_reset),
    ('--no-reboot ends at the first of many resets', no_reboot_from_all_cpus),
    ('CPUs that INIT one another for ever', init_storm),
    ('a triple fault while others reset', triple_faults),
    ('SIGTERM before or while the guest starts', sigterm_at_once),
    ('a second signal while the first one works', two_signals),
    ('a reader of the console that goes away', reader_that_goes),
    ('a reader of the console that never reads', reader_that_never_reads),
    ('a reader of a FIFO that goes away', fifo_reader_that_goes),
    ('Ctrl-A x at any moment', ctrl_a_x),
]

print(f'1..{len(TESTS)}', flush=True)
for name, once in TESTS:
    repeat(name, once)
