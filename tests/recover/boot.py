#!/usr/bin/env python3
"""VMs that were deleted boot from the damaged datastore: boot.py HV MKVMFS ASSETS.  Prints TAP.

A VM directory around a Linux disk is deleted in the three grades.  With grades 1 and 2 `hv recover
boot` must reach the guest's login prompt; with grade 3 only pieces are left, and carve lists them.
The sources are as they were in the end.
"""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'vmfs' / 'mkfs'))
import bootvm  # noqa: E402
import fault  # noqa: E402
import lab  # noqa: E402

hv, mkvmfs, assets = (os.path.abspath(a) for a in sys.argv[1:4])
top = pathlib.Path(tempfile.mkdtemp(prefix='recover-boot-'))
os.environ.update(XDG_STATE_HOME=str(top / 'state'), TZ='UTC')
PATIENCE = 1500  # seconds; only a hang takes so long
count = failed = 0


def check(ok, name, detail=''):
    global count, failed
    count += 1
    failed += not ok
    print(f'{"" if ok else "not "}ok {count} - {name}', flush=True)
    if not ok:
        print('\n'.join('#   ' + line for line in str(detail)[-2000:].splitlines()), flush=True)


def skip(name, why):
    global count
    count += 1
    print(f'ok {count} - {name} # SKIP {why}', flush=True)


def run(*args):
    return subprocess.run([hv, 'recover', *map(str, args)], cwd=top, capture_output=True, text=True, timeout=PATIENCE,
                          stdin=subprocess.DEVNULL)


def sha(path):
    h = hashlib.sha256()
    with open(path, 'rb') as f:
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.hexdigest()


def no_fuse():
    """Why there can be no mounts here, or None."""
    if not os.access('/dev/fuse', os.R_OK | os.W_OK) or not shutil.which('fusermount3'):
        return 'no FUSE'
    return None


def not_permitted(words):
    return any(w in words for w in ('ermission', 'not permitted', 'fusermount'))


def text_of(path):
    try:
        return path.read_text(errors='replace')
    except OSError:
        return ''


def start(src, serial, words):
    return subprocess.Popen([hv, 'recover', 'boot', src, 'guest', '--', '--engine', 'soft', '--no-reboot', '--timeout',
                             str(PATIENCE), '--serial', f'file={serial}'], cwd=top, stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=words)


def end(p):
    """As a person's `kill` would: the VM ends, then the mount.  Its status."""
    if p.poll() is None:
        p.terminate()
    try:
        return p.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        p.kill()
        p.wait()
        return 'none: it had to be killed'


def mounts():
    return sum('fuse.hv-recover' in line and str(top) in line for line in text_of(pathlib.Path('/proc/mounts')).splitlines())


def test_boot(vol, title):
    """Reads the guest's serial port until its prompt, or until the command ends."""
    serial, words = top / 'serial', top / 'words'
    serial.unlink(missing_ok=True)
    with open(words, 'w') as f:
        p = start(vol.images[0], serial, f)
    last = time.monotonic() + PATIENCE
    while bootvm.PROMPT not in text_of(serial) and p.poll() is None and time.monotonic() < last:
        time.sleep(0.3)
    seen, early = text_of(serial), p.poll() is not None
    status, said = end(p), words.read_text()
    if early and not seen and not_permitted(said):
        skip(title, 'FUSE is not permitted')
        return
    check('GUEST-UP' in seen and bootvm.PROMPT in seen, f'{title}: its login prompt', seen[-1500:] + said)
    check(not early and status == 128 + signal.SIGTERM, f'{title}: ends in order when it is told to', f'status {status}\n{said}')
    check(mounts() == 0, f'{title}: nothing stays mounted')


def test_copy(vol, disk, title):
    """The same disk by one command, byte for byte."""
    out = top / 'back.raw'
    r = run('cp', '-O', 'raw', '--overwrite', f'{vol.images[0]}:/deleted/guest/guest.vmdk', out)
    check(r.returncode == 0 and sha(out) == sha(disk), f'{title}: cp gives the disk that was there', r.stderr)
    out.unlink(missing_ok=True)


def test_pieces(vol, disk, title):
    """No descriptor, no pointer block, no name: what content tells of is listed, and none of it as exact."""
    src, first = vol.images[0], vol.file('/guest/guest-flat.vmdk')['extents'][0]
    r = run('scan', '--full', '--json', src)
    check(r.returncode in (0, 4) and json.loads(r.stdout)['volumes'], f'{title}: scan --full', r.stderr)
    r = run('carve', '--json', src)
    pieces = json.loads(r.stdout) if r.returncode in (0, 4) else []
    disks = [p for p in pieces if p['content'] == 'flat' and p['ranges'][0]['source-offset'] == first[4]]
    check(len(disks) == 1 and disks[0]['size'] == first[1], f'{title}: carve finds the disk', r.stdout + r.stderr)
    check(any(p['content'] == 'nvram' for p in pieces), f'{title}: and the NVRAM', r.stdout)
    check(pieces and all(p['state'] == 'carved' and p['bytes']['exact'] == 0 and p['note'] and
                         all(x['why'] for x in p['ranges']) for p in pieces),
          f'{title}: nothing of it is called exact, and all has its reason', r.stdout)
    r = run('carve', src)
    check('inferred' in r.stdout, f'{title}: people read that, too', r.stdout)
    if disks:
        out = top / 'back.raw'
        r = run('cp', '--as-file', f'{src}:{disks[0]["path"]}', out)
        check(r.returncode in (0, 4) and sha(out) == sha(disk), f'{title}: a disk in one piece comes back whole', r.stderr)
        out.unlink(missing_ok=True)


def make(version, grade, disk):
    """With grade 3 the disk is not thin: it lies in one piece."""
    script = (fault.head(version, ('768M',), 'v') + fault.base() + bootvm.vm_script('guest', disk, thin=grade < 3) +
              f'delete /guest grade={grade}\n')
    return lab.make(mkvmfs, top / f'v{version}g{grade}', script)


def test_all(disk):
    for version in (5, 6):
        for grade in (1, 2, 3):
            title = f'VMFS{version}, deleted in grade {grade}'
            vol = make(version, grade, disk)
            hashes = {i: sha(i) for i in vol.images}
            if grade == 3:
                test_pieces(vol, disk, title)
            else:
                test_copy(vol, disk, title)
                if no_fuse():
                    skip(f'{title}: its login prompt', no_fuse())
                else:
                    test_boot(vol, title)
            check(all(sha(i) == h for i, h in hashes.items()), f'{title}: the sources are as they were')
            shutil.rmtree(vol.directory)


def main():
    try:
        try:
            disk = bootvm.make_disk(assets, top / 'guest.raw')
        except bootvm.Missing as e:
            print(f'1..0 # SKIP {e}')
            return 0
        test_all(disk)
        print(f'1..{count}')
    finally:
        shutil.rmtree(top, ignore_errors=True)
    return failed != 0


sys.exit(main())
