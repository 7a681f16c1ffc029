#!/usr/bin/env python3
"""The command as a person and a script meet it: test_cli.py HV

Prints TAP.  Guests are a few bytes of machine code behind a multiboot 1 header.
"""
import json
import os
import pathlib
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

hv = os.path.abspath(sys.argv[1])
os.chdir(tempfile.mkdtemp())
tests = []

# Loaded and entered at 1 MiB, in 32-bit protected mode.
LOAD = 0x100000
HALT = b'\xfa\xf4\xeb\xfc'                                  # cli; hlt; jmp back
EXIT_5 = b'\xb0\x05\xe6\xf4' + HALT                         # mov al,5; out 0xf4,al
SAY_HI = b''.join(b'\xb0' + bytes([c]) + b'\xe6\xe9' for c in b'hi\n') + EXIT_5
SERIAL_HI = b''.join(b'\x66\xba\xf8\x03\xb0' + bytes([c]) + b'\xee' for c in b'hi\n') + EXIT_5
RESET = b'\xb0\xfe\xe6\x64' + HALT                          # pulse the reset line
# An IDT where there is nothing, then INT3: no handler for it, nor for the double fault.
TRIPLE = b'\x0f\x01\x1d' + struct.pack('<I', LOAD + 0x20 + 8) + b'\xcc' + struct.pack('<HI', 0x7ff, LOAD + 0x200)
# The same with an empty IDT.
EMPTY_IDT = b'\x0f\x01\x1d' + struct.pack('<I', LOAD + 0x100) + b'\xcc'
ECHO = (b'\x66\xba\xfd\x03\xec\xa8\x01\x74\xfb'             # wait for a byte on COM1
        b'\x66\xba\xf8\x03\xec\xee\x3c\x71\x75\xed'         # echo it, until it is a q
        + EXIT_5)


def image(code, name='kernel'):
    """A flat multiboot image (address fields valid) with code at its entry."""
    head = 12 + 20
    flags = 1 << 16
    header = struct.pack('<III', 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xffffffff)
    header += struct.pack('<IIIII', LOAD, LOAD, 0, 0, LOAD + head)
    body = (header + code).ljust(0x100, b'\x90') + bytes(6)
    pathlib.Path(name).write_bytes(body.ljust(8192, b'\0'))
    return name


def run(*args, timeout=60, **kw):
    return subprocess.run([hv, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, **kw)


def boot(code, *args, **kw):
    if '--serial' not in args:
        args = ('--serial', 'null', *args)
    return run('run', '--kernel', image(code), '--memory', '16M', *args, **kw)


def test(fn):
    tests.append(fn)
    return fn


def same(want, got):
    assert want == got, f'want {want!r}, got {got!r}'


def says(words, text):
    assert words in text, f'{words!r} is not in {text!r}'


def one_line(text):
    assert text.count('\n') <= 2, f'more than a line and a hint: {text!r}'


@test
def without_a_command_the_help_is_shown_and_the_status_is_2():
    r = run()
    same(2, r.returncode)
    says('run', r.stderr)


@test
def help_and_version_go_to_standard_output():
    for args in (['help'], ['--help'], ['version'], ['run', '--help'], ['cpu', '--help']):
        r = run(*args)
        same((0, ''), (r.returncode, r.stderr))
        assert r.stdout


@test
def wrong_usage_is_one_line_and_status_2():
    for args in (['nonsense'], ['run'], ['run', '--kernel', 'x', '--cpus', '0'], ['run', '--kernel', 'x', '--memory', '1Q'],
                 ['run', '--kernel', 'x', '--net', 'cable'], ['run', '--kernel', 'x', '--engine', 'steam'],
                 ['run', '--kernel', 'x', '--disk', 'd,bus=ide'],
                 ['run', '--kernel', 'x', '--disk', 'd,overlay=on,readonly=on'], ['run', '--kernel', 'x', '--disk', 'd,overlay=1'],
                 ['run', '--kernel', 'x', '--disk', 'd,throttle.bps=much'], ['run', '--kernel', 'x', '--disk', 'd,throttle.speed=1'],
                 ['run', '--kernel', 'x', 'surplus'],
                 ['run', '--kernel', 'x', '--exit-port', '70000'], ['run', '--kernel', 'x', '--log', 'loud'], ['cpu', 'eat']):
        r = run(*args)
        same(2, r.returncode)
        assert r.stderr.startswith('hv'), r.stderr
        one_line(r.stderr)


@test
def what_the_host_lacks_is_said_with_status_1():
    image(HALT)
    pathlib.Path('text').write_text('no kernel at all\n')
    for args in (['--kernel', 'missing'], ['--kernel', 'text'], ['--kernel', '.'], ['--kernel', 'kernel', '--disk', 'missing,format=raw'],
                 ['--kernel', 'kernel', '--disk', 'text,format=paper'], ['--kernel', 'kernel', '--cpu', 'max,+warp'],
                 ['--kernel', 'kernel', '--net', 'user,forward=tcp:1'], ['--kernel', 'kernel', '--serial', 'morse']):
        r = run('run', *args, '--timeout', '20')
        same(1, r.returncode)
        one_line(r.stderr)


@test
def the_engine_line_says_which_and_why():
    says('engine: soft (', boot(EXIT_5, '--exit-port', '0xf4').stderr)


@test
def the_exit_port_gives_the_status():
    same(11, boot(EXIT_5, '--exit-port', '0xf4').returncode)


@test
def the_debug_console_is_standard_output():
    same('hi\n', boot(SAY_HI, '--exit-port', '0xf4', '--debugcon').stdout)


@test
def com1_goes_to_standard_output_by_default():
    r = run('run', '--kernel', image(SERIAL_HI), '--memory', '16M', '--exit-port', '0xf4')
    same('hi\n', r.stdout)


@test
def com1_goes_to_a_file():
    boot(SERIAL_HI, '--exit-port', '0xf4', '--serial', 'file=log')
    same('hi\n', pathlib.Path('log').read_text())


@test
def com1_talks_over_a_socket():
    p = subprocess.Popen([hv, 'run', '--kernel', image(ECHO), '--memory', '16M', '--exit-port', '0xf4', '--serial',
                          'unix=sock'], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    for _ in range(200):
        try:
            s.connect('sock')
            break
        except OSError:
            time.sleep(.05)
    s.sendall(b'abcq')
    got = b''
    while len(got) < 4:
        got += s.recv(10)
    same(b'abcq', got)
    same(11, p.wait(30))


@test
def a_triple_fault_is_status_3_with_registers():
    r = boot(TRIPLE)
    same(3, r.returncode)
    says('triple fault', r.stderr)
    says('rip', r.stderr.lower())


@test
def a_timeout_is_status_124():
    r = boot(HALT, '--timeout', '1')
    same(124, r.returncode)


@test
def a_reset_with_no_reboot_is_status_0():
    same(0, boot(RESET, '--no-reboot', '--timeout', '30').returncode)


@test
def a_triple_fault_with_an_empty_idt_is_status_3_too():
    same(3, boot(EMPTY_IDT, '--no-reboot', '--timeout', '30').returncode)


@test
def a_reset_without_it_boots_again():
    same(124, boot(RESET, '--timeout', '2').returncode)


@test
def sigterm_ends_the_run_in_order():
    p = subprocess.Popen([hv, 'run', '--kernel', image(HALT), '--memory', '16M', '--serial', 'null'],
                         stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    p.stderr.readline()
    p.send_signal(signal.SIGTERM)
    same(128 + signal.SIGTERM, p.wait(20))


class Skip(Exception):
    pass


@test
def ctrl_a_x_leaves_and_restores_the_terminal():
    try:
        pid, fd = pty.fork()
    except OSError as e:
        raise Skip('no pseudo-terminals here') from e
    if pid == 0:
        os.execv(hv, ['hv', 'run', '--kernel', image(ECHO), '--memory', '16M'])
    seen = b''
    end = time.time() + 30
    while b'engine:' not in seen and time.time() < end:
        if select.select([fd], [], [], 1)[0]:
            seen += os.read(fd, 1000)
    time.sleep(.3)
    os.write(fd, b'z')
    while b'z' not in seen and time.time() < end:
        if select.select([fd], [], [], 1)[0]:
            seen += os.read(fd, 1000)
    says('z', seen.decode())
    os.write(fd, b'\x01x')
    while time.time() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            same(0, os.waitstatus_to_exitcode(status))
            return
        try:
            if select.select([fd], [], [], .2)[0]:
                os.read(fd, 1000)
        except OSError:
            pass
    os.kill(pid, signal.SIGKILL)
    raise AssertionError('Ctrl-A x did not end it')


@test
def a_disk_in_use_is_refused():
    pathlib.Path('disk').write_bytes(bytes(1 << 20))
    p = subprocess.Popen([hv, 'run', '--kernel', image(HALT), '--memory', '16M', '--serial', 'null', '--disk', 'disk,format=raw'],
                         stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    p.stderr.readline()
    r = run('run', '--kernel', 'kernel', '--disk', 'disk,format=raw', '--timeout', '5')
    p.terminate()
    p.wait(20)
    same(1, r.returncode)
    says('disk', r.stderr)


@test
def many_share_a_disk_with_overlays():
    """Two at a time; a third that wants to write is refused meanwhile."""
    pathlib.Path('disk').write_bytes(bytes(1 << 20))
    disk = ['--disk', 'disk,format=raw,overlay=on,throttle.bps=1M,throttling.iops-read=100,throttling.iops-read-max=7']
    p = subprocess.Popen([hv, 'run', '--kernel', image(HALT), '--memory', '16M', '--serial', 'null', *disk],
                         stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    p.stderr.readline()
    second = boot(EXIT_5, '--exit-port', '0xf4', *disk)
    writer = run('run', '--kernel', 'kernel', '--disk', 'disk,format=raw', '--timeout', '5')
    p.terminate()
    p.wait(20)
    same(11, second.returncode)
    same(1, writer.returncode)
    says('disk', writer.stderr)


@test
def cpu_list_names_models_and_features():
    r = run('cpu', 'list')
    same(0, r.returncode)
    says('base', r.stdout)
    says('sse4_2', r.stdout)


@test
def cpu_list_speaks_json():
    models = json.loads(run('cpu', 'list', '--json').stdout)['models']
    same(['base', 'max'], sorted(m['name'] for m in models))
    assert 'sse2' in models[0]['features']


@test
def stats_count_instructions():
    for engine in 'soft', 'soft,tier=interp', 'soft,count':
        said = boot(EXIT_5, '--exit-port', '0xf4', '--stats', '--engine', engine).stderr
        says('blocks decoded', said)
        assert ('million/s' in said) == (engine != 'soft'), said


print(f'1..{len(tests)}')
for number, fn in enumerate(tests, 1):
    try:
        fn()
        print(f'ok {number} - {fn.__name__}')
    except Skip as e:
        print(f'ok {number} - {fn.__name__} # SKIP {e}')
    except Exception as e:
        print(f'# {type(e).__name__}: {e}')
        print(f'not ok {number} - {fn.__name__}')
    sys.stdout.flush()
