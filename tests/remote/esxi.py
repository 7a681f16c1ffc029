"""What the tests of remote sources share: an SSH server with a made-up /vmfs tree on a high port of
the loopback, that has nothing but BusyBox, and a proxy before it that loses connections.
"""
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

APPLETS = 'sh ash dd ls stat cat wc tr blockdev awk sleep true test'.split()


class Skip(Exception):
    pass


def need(program):
    path = shutil.which(program, path=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')
    if not path:
        raise Skip(f'there is no {program} here')
    return path


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def answers(port, banner=b''):
    try:
        with socket.create_connection(('127.0.0.1', port), timeout=5) as s:
            return s.recv(len(banner)) == banner if banner else True
    except OSError:
        return False


class Proxy:
    """Passes connections on.  drop_after: bytes from the server after which the next connections,
    `times` of them, are cut; allow: so many connections, later ones are shut at once."""

    def __init__(self, target):
        self.target, self.drop_after, self.times, self.allow = target, 0, 0, 1 << 30
        self.connections = 0
        self.server = socket.create_server(('127.0.0.1', 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.server.accept()
                if self.connections >= self.allow:
                    client.close()
                    continue
                server = socket.create_connection(('127.0.0.1', self.target))
            except OSError:
                return
            self.connections += 1
            cut = 0
            if self.times > 0:
                self.times -= 1
                cut = self.drop_after
            for a, b, n in ((client, server, 0), (server, client, cut)):
                threading.Thread(target=self.copy, args=(a, b, n), daemon=True).start()

    def copy(self, a, b, cut):
        left = cut
        try:
            while data := a.recv(65536):
                if cut:
                    data = data[:left]
                    left -= len(data)
                b.sendall(data)
                if cut and not left:
                    break
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.server.close()


class Host:
    """sshd, run by whoever runs the tests, with keys of its own."""

    def __init__(self, name=''):
        self.sshd, keygen, self.ssh = need('sshd'), need('ssh-keygen'), need('ssh')
        need('busybox')
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix='hv-esxi-'))
        self.bin, self.vmfs = self.dir / 'bin', self.dir / 'vmfs'
        self.disks = self.vmfs / 'devices/disks'
        self.bin.mkdir()
        self.disks.mkdir(parents=True)
        self.restore()
        for key in 'host', 'host2', 'user':
            subprocess.run([keygen, '-q', '-t', 'ed25519', '-N', '', '-f', self.dir / key],
                           check=True)
        self.process = None
        self.start()

    def start(self, host_key='host'):
        """A command runs with BusyBox's shell and programs alone, below the made-up root."""
        self.port = free_port()
        force = self.dir / 'force'
        force.write_text(f'''#!{self.bin}/sh
export PATH={self.bin}
exec sh -c "$SSH_ORIGINAL_COMMAND"
''')
        force.chmod(0o755)
        (self.dir / 'authorized').write_bytes((self.dir / 'user.pub').read_bytes())
        (self.dir / 'sshd_config').write_text(f'''
ListenAddress 127.0.0.1
Port {self.port}
HostKey {self.dir}/{host_key}
AuthorizedKeysFile {self.dir}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
ForceCommand {force}
MaxStartups 100
''')
        if os.getuid() == 0:
            os.makedirs('/run/sshd', mode=0o755, exist_ok=True)
        self.log = open(self.dir / 'log', 'ab')
        self.process = subprocess.Popen([self.sshd, '-D', '-e', '-f', self.dir / 'sshd_config'],
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 30
        while not answers(self.port, b'SSH-2.0'):
            if self.process.poll() is not None or time.monotonic() > deadline:
                words = (self.dir / 'log').read_text()[-300:]
                self.close()
                raise Skip('sshd does not run here: ' + words.replace('\n', ' '))
            time.sleep(0.05)
        self.know(self.port)

    def know(self, *ports, key='host'):
        words = (self.dir / f'{key}.pub').read_text().split()[:2]
        (self.dir / 'known').write_text(''.join(
            f'[127.0.0.1]:{p} {" ".join(words)}\n' for p in ports))

    def command(self):
        """For TRIVISOR_SSH."""
        return (f'{self.ssh} -F none -oIdentitiesOnly=yes -oIdentityAgent=none -i {self.dir}/user '
                f'-oUserKnownHostsFile={self.dir}/known -oGlobalKnownHostsFile=none '
                f'-oStrictHostKeyChecking=yes')

    def url(self, path, port=None):
        return f'ssh://127.0.0.1:{port or self.port}{path}'

    def tool(self, name, text):
        """Another program instead of BusyBox's.  Debian's BusyBox shell runs its own programs
        whatever PATH says, so another shell stands in for it meanwhile."""
        for link in name, 'sh':
            (self.bin / link).unlink(missing_ok=True)
        (self.bin / 'sh').symlink_to('/bin/sh')
        (self.bin / name).write_text('#!/bin/sh\n' + text)
        (self.bin / name).chmod(0o755)

    def restore(self):
        """BusyBox alone again."""
        for p in self.bin.iterdir():
            p.unlink()
        for a in APPLETS:
            (self.bin / a).symlink_to(need('busybox'))

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
            self.process = None

    def close(self):
        self.stop()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)
