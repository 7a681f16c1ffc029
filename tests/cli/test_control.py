#!/usr/bin/env python3
"""The control socket and saved VMs as a person and a script meet them: test_control.py HV SOURCE

Prints TAP.  Guests are a few bytes of machine code behind a multiboot 1 header.
"""
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

hv = os.path.abspath(sys.argv[1])
source = pathlib.Path(sys.argv[2]).resolve()
os.chdir(tempfile.mkdtemp())
tests = []
running = []

LOAD = 0x100000
HALT = b'\xfa\xf4\xeb\xfc'                                  # cli; hlt; jmp back
# Counts in memory, and between two counts looks for a byte on COM1: q ends with the count's lowest
# byte, so that a guest that lost its memory or its registers is found out.  s says so on COM1.
COUNT = (b'\xbe' + struct.pack('<I', LOAD + 0x1000) +       # mov esi, counter
         b'\xbb\x2a\x00\x00\x00'                            # mov ebx, 42
         b'\x0f\x6e\xc3'                                    # movd mm0, ebx
         b'\xff\x06'                                        # again: inc dword [esi]
         b'\x66\xba\xfd\x03\xec\xa8\x01\x74\xf5'            # mov dx,3fd; in al,dx; test al,1; jz again
         b'\x66\xba\xf8\x03\xec\x3c\x71\x75\xec'            # mov dx,3f8; in al,dx; cmp al,'q'; jne again
         b'\x83\x3e\x00\x74\x06'                            # cmp dword [esi],0; je bad
         b'\x0f\x7e\xc0\xe6\xf4\xf4'                        # movd eax,mm0; out 0xf4,al; hlt
         b'\xb0\x7f\xe6\xf4' + HALT)                        # bad: mov al,127; out 0xf4,al
STATUS = 42 << 1 | 1


def image(code, name):
    head = 12 + 20
    flags = 1 << 16
    header = struct.pack('<III', 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xffffffff)
    header += struct.pack('<IIIII', LOAD, LOAD, 0, 0, LOAD + head)
    body = (header + code).ljust(0x100, b'\x90')
    pathlib.Path(name).write_bytes(body.ljust(8192, b'\0'))
    return name


image(HALT, 'halt')
image(COUNT, 'count')


def listens(path):
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(path) == 0


def hv_run(*args):
    """hv run in the background, its control socket ready."""
    if os.path.exists('c'):
        os.unlink('c')
    p = subprocess.Popen([hv, 'run', '--control', 'unix=c', '--timeout', '120', *args], stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    running.append(p)
    # The name is there a moment before anybody listens behind it.
    while not listens('c') and p.poll() is None:
        time.sleep(.01)
    if p.poll() is not None:
        raise AssertionError(p.stderr.read())
    return p


def start(*args, kernel='halt'):
    serial = () if '--serial' in args else ('--serial', 'null')
    return hv_run('--kernel', kernel, '--memory', '16M', '--engine', 'soft', *serial, *args)


def control(*args, path='c'):
    return subprocess.run([hv, 'control', path, *args], capture_output=True, text=True, timeout=120)


def ask(*args):
    r = control(*args, '--json')
    same((0, ''), (r.returncode, r.stderr))
    return json.loads(r.stdout)


def end(p):
    status = p.wait(120)
    p.stderr.close()
    return status


def type_to(path, text):
    s = socket.socket(socket.AF_UNIX)
    for _ in range(500):
        try:
            s.connect(path)
            break
        except OSError:
            time.sleep(.02)
    s.send(text)
    return s


class Client:
    """A client of the protocol by hand."""

    def __init__(self, path='c'):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(60)
        self.s.connect(path)
        self.f = self.s.makefile('r')
        self.greeting = json.loads(self.f.readline())
        self.do('qmp_capabilities')

    def read(self):
        line = self.f.readline()
        return json.loads(line) if line else None

    def do(self, command, **args):
        self.s.send(json.dumps({'execute': command, 'arguments': args, 'id': command}).encode())
        events = []
        while 'event' in (m := self.read()):
            events.append(m)
        self.events = events
        return m


def test(fn):
    tests.append(fn)
    return fn


def same(want, got):
    assert want == got, f'want {want!r}, got {got!r}'


def says(words, text):
    assert words in text, f'{words!r} is not in {text!r}'


def refused(words, *args):
    """hv run with these says so in one line, with status 1."""
    r = subprocess.run([hv, 'run', '--engine', 'soft', '--serial', 'null', '--timeout', '60', *args], stdin=subprocess.DEVNULL,
                       capture_output=True, text=True, timeout=120)
    says(words, r.stderr)
    same(1, r.returncode)
    assert r.stderr.count('\n') <= 2, r.stderr


def saved(name, *args, kernel='halt'):
    p = start(*args, kernel=kernel)
    control('save', f'file={name}', 'then=quit')
    same(0, end(p))
    return name


@test
def the_protocol_page_is_true():
    page = (source / 'docs/control-protocol.md').read_text()
    r = subprocess.run([hv, 'control', '--protocol'], capture_output=True, text=True)
    same(page.split('<!-- from here: hv control --protocol -->\n')[1], r.stdout)


@test
def every_command_and_event_is_on_the_manual_page_or_the_protocol_page():
    p = start()
    commands = [c['name'] for c in ask('query-commands')]
    same(0, control('quit').returncode)
    same(0, end(p))
    page = (source / 'docs/control-protocol.md').read_text()
    for c in commands:
        says(f'### {c}\n', page)


@test
def wrong_usage_is_status_2():
    for args in ([], ['c'], ['--nonsense'], ['c', 'stop', 'now', '--bad']):
        r = subprocess.run([hv, 'control', *args], capture_output=True, text=True)
        same(2, r.returncode)
        says('hv control', r.stderr)
    r = subprocess.run([hv, 'run', '--kernel', 'halt', '--control', 'tcp=1'], capture_output=True, text=True)
    same(2, r.returncode)
    same(0, subprocess.run([hv, 'control', '--help'], capture_output=True).returncode)


@test
def nobody_there_is_status_1():
    s = socket.socket(socket.AF_UNIX)
    s.bind('stale')
    s.close()
    for path, words in (('missing', 'cannot connect'), ('stale', 'nobody answers'), ('x' * 200, 'too long')):
        r = control('stop', path=path)
        same(1, r.returncode)
        says(words, r.stderr)


@test
def stop_and_cont_change_the_status():
    p = start()
    same({'running': True, 'singlestep': False, 'status': 'running'}, ask('query-status'))
    same('', control('stop').stdout)
    same('paused', ask('query-status')['status'])
    control('stop')
    same(0, control('cont').returncode)
    says('status: running', control('query-status').stdout)
    control('quit')
    same(0, end(p))


@test
def a_vm_may_start_paused():
    p = start('--paused')
    same('paused', ask('query-status')['status'])
    control('cont')
    same('running', ask('query-status')['status'])
    control('quit')
    end(p)


@test
def cpus_have_threads():
    p = start('--cpus', '2')
    threads = [c['thread-id'] for c in ask('query-cpus-fast')]
    same(2, len(set(threads)))
    for t in threads:
        assert os.path.exists(f'/proc/{p.pid}/task/{t}')
    control('quit')
    end(p)


@test
def quit_ends_with_status_0_and_the_last_event():
    p = start()
    c = Client()
    c.s.send(b'{"execute":"quit"}')
    messages = []
    while m := c.read():
        messages.append(m)
    same({}, messages[0].get('return'))
    same('SHUTDOWN', messages[-1]['event'])
    same({'guest': False, 'reason': 'host-qmp-quit'}, messages[-1]['data'])
    same(0, end(p))
    assert not os.path.exists('c')


@test
def a_signal_removes_the_socket_too():
    p = start()
    c = Client()
    p.send_signal(signal.SIGTERM)
    same('host-signal', c.read()['data']['reason'])
    same(128 + signal.SIGTERM, end(p))
    assert not os.path.exists('c')


@test
def a_killed_vm_leaves_a_socket_that_the_next_one_replaces():
    p = start()
    p.kill()
    end(p)
    assert os.path.exists('c')
    p = subprocess.Popen([hv, 'run', '--engine', 'soft', '--kernel', 'halt', '--memory', '16M', '--serial', 'null',
                          '--control', 'unix=c', '--timeout', '120'], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    running.append(p)
    says('engine', p.stderr.readline())
    r = subprocess.run([hv, 'run', '--engine', 'soft', '--kernel', 'halt', '--serial', 'null', '--control', 'unix=c'],
                       stdin=subprocess.DEVNULL, capture_output=True, text=True)
    same(1, r.returncode)
    says('in use', r.stderr)
    same('running', ask('query-status')['status'])
    control('quit')
    end(p)


@test
def reset_comes_with_an_event_and_leaves_a_pause():
    p = start()
    c = Client()
    same({}, c.do('stop')['return'])
    c.do('system_reset')
    while (m := c.read())['event'] != 'RESET':
        pass
    same({'guest': False, 'reason': 'host-qmp-system-reset'}, m['data'])
    same('paused', c.do('query-status')['return']['status'])
    c.do('cont')
    same('running', c.do('query-status')['return']['status'])
    same({}, c.do('system_powerdown')['return'])
    same('POWERDOWN', c.events[0]['event'])
    control('quit')
    end(p)


@test
def follow_shows_events_until_the_end():
    p = start()
    f = subprocess.Popen([hv, 'control', 'c', 'stop', '--follow'], stdout=subprocess.PIPE, text=True)
    same('STOP\n', f.stdout.readline())
    control('cont')
    same('RESUME\n', f.stdout.readline())
    control('quit')
    says('SHUTDOWN guest=false reason=host-qmp-quit', f.stdout.read())
    same(0, f.wait(60))
    end(p)


@test
def what_the_vm_refuses_is_status_1_with_its_words():
    p = start()
    for args, words in ((['dance'], 'dance has not been found'), (['save'], "'file' is missing"),
                        (['save', 'file=x', 'then=run'], 'does not accept'), (['stop', 'x=1'], "'x' is unexpected"),
                        (['save', 'file=/nonexistent/x'], 'cannot save'), (['save', 'file=halt'], 'not a saved VM')):
        r = control(*args)
        same(1, r.returncode)
        says(words, r.stderr)
    same('running', ask('query-status')['status']) # a failed save goes on as before
    same(8192, os.path.getsize('halt'))
    control('quit')
    end(p)


@test
def a_guest_goes_on_where_it_was():
    p = start('--serial', 'unix=com', '--exit-port', '0xf4', kernel='count')
    control('save', 'file=counting', 'then=quit')
    same(0, end(p))
    for turn in (1, 2):
        p = hv_run('--resume', 'counting', '--engine', 'soft', '--serial', 'unix=com')
        if turn == 1:
            r = control('save', 'file=counting', 'then=quit')
            same(0, r.returncode)
            same(0, end(p))
    s = type_to('com', b'q')
    same(STATUS, end(p))
    s.close()


@test
def a_saved_vm_may_stay_or_go_on():
    p = start('--serial', 'unix=com', '--exit-port', '0xf4', kernel='count')
    r = ask('save', 'file=kept')
    same((os.path.abspath('kept'), os.path.getsize('kept')), (r['file'], r['bytes']))
    same('paused', ask('query-status')['status'])
    ask('save', 'file=kept', 'then=cont')
    same('running', ask('query-status')['status'])
    s = type_to('com', b'q')
    same(STATUS, end(p))
    s.close()
    p = hv_run('--resume', 'kept', '--serial', 'unix=com', '--paused', '--engine', 'soft')
    same('paused', ask('query-status')['status'])
    s = type_to('com', b'q')
    control('cont')
    same(STATUS, end(p))
    s.close()


@test
def what_is_no_saved_vm_is_refused_in_a_line():
    name = saved('small')
    data = pathlib.Path(name).read_bytes()
    pathlib.Path('text').write_text('some text\n')
    pathlib.Path('cut').write_bytes(data[:len(data) // 2])
    pathlib.Path('newer').write_bytes(data[:8] + struct.pack('<I', 9) + data[12:])
    broken = bytearray(data)
    broken[len(data) * 2 // 3] ^= 1
    pathlib.Path('broken').write_bytes(broken)
    refused('cannot open', '--resume', 'missing')
    refused('not a file', '--resume', '.')
    refused('not a saved VM', '--resume', 'text')
    refused('cut short', '--resume', 'cut')
    refused('format 9', '--resume', 'newer')
    refused('damaged', '--resume', 'broken')


@test
def options_that_contradict_the_saved_vm_are_named():
    name = saved('two', '--cpus', '2')
    refused('2 CPUs, not 1', '--resume', name, '--cpus', '1')
    refused('16 MiB of memory, not 64', '--resume', name, '--memory', '64M')
    refused('leave --cpu out', '--resume', name, '--cpu', 'base')
    refused('0 disks, and 1 are named', '--resume', name, '--disk', 'halt,format=raw')
    refused('0 network cards', '--resume', name, '--net', 'user')
    refused('exit port', '--resume', name, '--exit-port', '0xf4')
    refused('test device', '--resume', name, '--testdev')


@test
def disks_are_found_beside_the_file_or_where_they_are_named():
    for d in ('vm', 'other'):
        os.mkdir(d)
    pathlib.Path('vm/disk').write_bytes(bytes(1 << 20))
    pathlib.Path('larger').write_bytes(bytes(2 << 20))
    saved('vm/saved', '--disk', 'vm/disk,format=raw')
    p = hv_run('--resume', 'vm/saved', '--engine', 'soft')
    control('quit')
    same(0, end(p))
    os.rename('vm/disk', 'other/disk')
    refused("cannot open 'vm/disk'", '--resume', 'vm/saved')
    refused('2097152 bytes', '--resume', 'vm/saved', '--disk', 'larger,format=raw')
    refused('read-only', '--resume', 'vm/saved', '--disk', 'other/disk,format=raw,readonly=on')
    p = hv_run('--resume', 'vm/saved', '--engine', 'soft', '--disk', 'other/disk,format=raw')
    control('quit')
    same(0, end(p))


@test
def a_limited_disk_is_saved_and_a_throw_away_one_is_not():
    pathlib.Path('limited').write_bytes(bytes(1 << 20))
    saved('slow', '--disk', 'limited,format=raw,throttle.bps=1M')
    p = hv_run('--resume', 'slow', '--engine', 'soft') # found beside it, as raw
    control('quit')
    same(0, end(p))
    p = start('--disk', 'limited,format=raw,overlay=on')
    r = control('save', 'file=gone')
    assert r.returncode and not os.path.exists('gone'), r
    says('overlay', r.stderr)
    control('quit')
    same(0, end(p))
    p = hv_run('--resume', 'slow', '--engine', 'soft', '--disk', 'limited,format=raw,overlay=on')
    control('quit')
    same(0, end(p))


@test
def a_resumed_guest_restarts_only_with_a_kernel():
    saved('again')
    p = hv_run('--resume', 'again', '--engine', 'soft')
    control('system_reset')
    says('resumed without --kernel', p.stderr.read())
    same(0, end(p))
    p = hv_run('--resume', 'again', '--engine', 'soft', '--kernel', 'halt')
    c = Client()
    c.do('system_reset')
    while c.read()['event'] != 'RESET':
        pass
    control('quit')
    same(0, end(p))


@test
def a_save_that_is_cut_off_leaves_nothing():
    os.mkdir('dir')
    p = start()
    c = Client()
    c.s.send(b'{"execute":"save","arguments":{"file":"%s/dir/x"}}' % os.getcwd().encode())
    p.terminate()
    end(p)
    assert [f for f in os.listdir('dir') if f != 'x'] == [], os.listdir('dir')


@test
def slow_and_noisy_clients_do_not_stop_others():
    p = start()
    noisy = socket.socket(socket.AF_UNIX)
    noisy.connect('c')
    noisy.setblocking(False)
    try:
        for _ in range(2000):
            noisy.send(b'{"execute":"query-commands"}' * 100)
    except OSError:
        pass
    same('running', ask('query-status')['status'])
    control('quit')
    same(0, end(p))
    noisy.close()


def main():
    print(f'1..{len(tests)}')
    for number, fn in enumerate(tests, 1):
        try:
            fn()
            print(f'ok {number} - {fn.__name__}')
        except Exception as e:
            print(f'# {type(e).__name__}: {e}')
            print(f'not ok {number} - {fn.__name__}')
        for p in running:
            if p.poll() is None:
                p.kill()
                p.wait()
        running.clear()
        sys.stdout.flush()


main()
