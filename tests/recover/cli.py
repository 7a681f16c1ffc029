#!/usr/bin/env python3
"""hv recover as people use it: cli.py HV MKVMFS.  Prints TAP.

Sources stay as they are: by their hashes, and by the flags of every descriptor that a process of ours
has open on them.
"""
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'vmfs' / 'mkfs'))
import fault  # noqa: E402
import lab  # noqa: E402

hv, mkvmfs = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
top = pathlib.Path(tempfile.mkdtemp(prefix='recover-cli-'))
os.environ.update(XDG_STATE_HOME=str(top / 'state'), TZ='UTC')
count = failed = 0


def check(ok, name, detail=''):
    global count, failed
    count += 1
    failed += not ok
    print(f'{"" if ok else "not "}ok {count} - {name}', flush=True)
    if not ok and detail:
        print('\n'.join('#   ' + line for line in str(detail)[-2000:].splitlines()))


def skip(name, why):
    global count
    count += 1
    print(f'ok {count} - {name} # SKIP {why}', flush=True)


def run(*args, cwd=top, text=True):
    return subprocess.run([hv, 'recover', *map(str, args)], cwd=cwd, capture_output=True, text=text, timeout=240,
                          stdin=subprocess.DEVNULL)


def sha(path):
    h = hashlib.sha256()
    with open(path, 'rb') as f:
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.hexdigest()


def volume(name, script):
    return lab.make(mkvmfs, top / name, script)


def guest_disk(path):
    """A disk with a partition table and an ext4 file system, or None."""
    tree = top / 'guest'
    (tree / 'etc').mkdir(parents=True)
    (tree / 'etc' / 'hostname').write_text('rescued\n')
    (tree / 'readme.txt').write_text('hello from the guest\n')
    fs = top / 'guest.ext4'
    mke2fs = shutil.which('mke2fs', path=os.environ['PATH'] + ':/sbin:/usr/sbin')
    if not mke2fs:
        return None
    subprocess.run([mke2fs, '-q', '-t', 'ext4', '-L', 'guestroot', '-d', tree, fs, '12M'], check=True,
                   capture_output=True)
    mbr = bytearray(1 << 20)
    sectors = fs.stat().st_size // 512
    mbr[446:462] = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, 'little') + sectors.to_bytes(4, 'little')
    mbr[510:512] = b'\x55\xaa'
    path.write_bytes(bytes(mbr) + fs.read_bytes())
    return path


def script(version, disk=None):
    text = fault.head(version, ('768M',), 'v') + fault.base()
    if disk:
        size = disk.stat().st_size
        text += (r'file /vm/guest.vmdk text="# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n'
                 rf'createType=\"vmfs\"\nRW {size // 512} VMFS \"guest-flat.vmdk\"\n"' +
                 f'\nfile /vm/guest-flat.vmdk host={disk}\n')
    return text


def same_disk(image, raw):
    out = top / 'as.raw'
    r = subprocess.run([hv, 'disk', 'convert', '-q', '-O', 'raw', str(image), str(out)], capture_output=True,
                       text=True, timeout=240)
    ok = r.returncode == 0 and out.read_bytes() == raw
    out.unlink(missing_ok=True)
    return ok


def descriptors_of(pids, sources):
    """(how many descriptors on the sources, those that could write)"""
    wanted = {os.stat(s).st_ino for s in sources}
    seen, writable = 0, []
    for pid in pids:
        for fd in pathlib.Path(f'/proc/{pid}/fd').iterdir():
            try:
                if os.stat(fd).st_ino not in wanted:
                    continue
                flags = int(re.search(r'^flags:\s*(\d+)', pathlib.Path(f'/proc/{pid}/fdinfo/{fd.name}').read_text(),
                                      re.M)[1], 8)
            except OSError:
                continue
            seen += 1
            if flags & os.O_ACCMODE != os.O_RDONLY:
                writable.append((pid, fd.name, oct(flags)))
    return seen, writable


def family(pid):
    out = [pid]
    for task in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            if int(task.read_text().rsplit(')', 1)[1].split()[1]) == pid:
                out += family(int(task.parent.name))
        except OSError:
            pass
    return out


def test_reading(version, vol):
    src, v = vol.images[0], f'VMFS{version}'
    r = run('scan', src)
    check(r.returncode == 0 and f'VMFS{version}' in r.stdout and 'VM "' in r.stdout, f'{v}: scan', r.stdout + r.stderr)
    r = run('scan', '--json', src)
    check(r.returncode == 0 and json.loads(r.stdout)['volumes'][0]['version'] == version, f'{v}: scan --json', r.stderr)
    r = run('ls', '-1', f'{src}:/vm')
    check(set(r.stdout.split()) >= {'vm.vmx', 'vm.vmdk', 'vm-flat.vmdk', 'vm.nvram', 'vmware.log'}, f'{v}: ls',
          r.stdout + r.stderr)
    r = run('tree', '--json', src)
    paths = {e['path'] for e in json.loads(r.stdout)}
    check({'/vm/vm.vmx', '/iso/link', '/iso/direct'} <= paths, f'{v}: tree --json', paths)
    r = run('ls', '--json', f'{src}:/iso/small')
    entry = json.loads(r.stdout)[0]
    check(entry['size'] == 6 and entry['trust'] == 'exact' and entry['state'] == 'live', f'{v}: ls of a file', entry)
    r = run('cat', f'{src}:/iso/small')
    check((r.returncode, r.stdout) == (0, 'small\n'), f'{v}: cat', r.stderr)
    r = run('info', '--json', f'{src}:/iso/direct')
    info = json.loads(r.stdout)
    check(sum(x['length'] for x in info['ranges']) == 3 << 20 and all(x['trust'] == 'exact' for x in info['ranges']),
          f'{v}: info of a file has its ranges', info)
    r = run('info', src)
    check(r.returncode == 0 and 'uuid:' in r.stdout, f'{v}: info of the volume', r.stderr)
    r = run('check', src)
    check(r.returncode == 0 and '0 damaged' in r.stdout, f'{v}: check finds nothing', r.stdout)
    r = run('preview', f'{src}:/vm/vm.vmx')
    check('config.version' in r.stdout, f'{v}: preview of a VMX', r.stdout + r.stderr)


def test_copying(version, vol):
    src, v = vol.images[0], f'VMFS{version}'
    flat = vol.content(vol.file('/vm/vm-flat.vmdk'))
    r = run('cp', f'{src}:/vm/vm-flat.vmdk', 'flat.raw')
    check(r.returncode == 0 and (top / 'flat.raw').read_bytes() == flat, f'{v}: cp of a file', r.stderr)
    r = run('cp', f'{src}:/vm/vm-flat.vmdk', 'flat.raw')
    check(r.returncode == 1 and '--overwrite' in r.stderr, f'{v}: cp does not overwrite by itself', r.stderr)
    for name, options in (('disk.qcow2', []), ('disk.vdi', []), ('disk.img', ['-O', 'vmdk', '-o',
                                                                          'subformat=streamOptimized'])):
        r = run('cp', *options, f'{src}:/vm/vm.vmdk', name)
        check(r.returncode == 0 and same_disk(top / name, flat), f'{v}: cp of a disk to {name} {" ".join(options)}',
              r.stderr)
    r = run('cp', '--resume', '--overwrite', '--manifest', 'sums', '-O', 'qcow2', f'{src}:/vm/vm.vmdk', 'r.qcow2')
    check(r.returncode == 0 and same_disk(top / 'r.qcow2', flat) and 'content' in (top / 'sums').read_text(),
          f'{v}: cp of a disk with --resume and --manifest', r.stderr)
    r = run('cp', '-r', '--manifest', 'files.sha256', f'{src}:/', 'all')
    ok = subprocess.run(['sha256sum', '-c', '--quiet', '../files.sha256'], cwd=top / 'all', capture_output=True)
    check(r.returncode == 0 and ok.returncode == 0 and os.readlink(top / 'all/iso/link') == 'small',
          f'{v}: cp -r with sums', r.stderr + ok.stdout.decode())
    mtime = (top / 'all/iso/direct').stat().st_mtime
    (top / 'all/iso/direct').unlink()
    r = run('cp', '-r', '--resume', f'{src}:/', 'all')
    check(r.returncode == 0 and sha(top / 'all/iso/direct') == hashlib.sha256(
        vol.content(vol.file('/iso/direct'))).hexdigest() and (top / 'all/iso/direct').stat().st_mtime == mtime,
        f'{v}: cp -r --resume copies what is missing', r.stderr)
    r = run('cp', f'{src}:/vm', 'x')
    check(r.returncode == 1 and '-r' in r.stderr, f'{v}: cp of a directory asks for -r', r.stderr)
    for left in ('flat.raw', 'disk.qcow2', 'disk.vdi', 'disk.img', 'r.qcow2', 'r.qcow2.journal', 'sums'):
        (top / left).unlink(missing_ok=True)
    shutil.rmtree(top / 'all')


def test_preview(version, vol):
    r = run('preview', f'{vol.images[0]}:/vm/guest.vmdk')
    check(r.returncode == 0 and 'ext4' in r.stdout and 'guestroot' in r.stdout and 'readme.txt' in r.stdout,
          f'VMFS{version}: preview of a disk', r.stdout + r.stderr)
    r = run('preview', '--json', '--in', '/etc', f'{vol.images[0]}:/vm/guest.vmdk')
    files = json.loads(r.stdout)[0]['partitions'][0]['files']
    check([f['name'] for f in files] == ['hostname'], f'VMFS{version}: preview --json --in', r.stdout)


def test_report(version, vol):
    r = run('report', vol.images[0], 'page')
    html, data = (top / 'page.html').read_text(), json.loads((top / 'page.json').read_text())
    check(r.returncode == 0 and '<h2>Files' in html and 'vm-flat.vmdk' in html and
          any(f['path'] == '/vm/vm.vmx' for f in data['files']), f'VMFS{version}: report', r.stderr)
    r = run('report', vol.images[0], 'page')
    check(r.returncode == 1 and '--overwrite' in r.stderr, f'VMFS{version}: report does not overwrite by itself', r.stderr)
    for left in ('page.html', 'page.json'):
        (top / left).unlink()


def mount(src, where):
    p = subprocess.Popen([hv, 'recover', 'mount', '-q', src, where], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if os.path.ismount(where) and os.listdir(where) or p.poll() is not None:
            break
        time.sleep(0.05)
    return p


def test_mount(version, vol):
    where = top / 'mnt'
    where.mkdir(exist_ok=True)
    if not os.access('/dev/fuse', os.W_OK) or not shutil.which('fusermount3'):
        skip(f'VMFS{version}: mount', 'no FUSE')
        return
    p = mount(vol.images[0], str(where))
    if p.poll() is not None:
        error = p.stderr.read()
        if 'ermission' in error or 'not permitted' in error:
            skip(f'VMFS{version}: mount', 'FUSE is not permitted')
        else:
            check(False, f'VMFS{version}: mount', error)
        return
    try:
        flat = vol.content(vol.file('/vm/vm-flat.vmdk'))
        check((where / 'vm/vm-flat.vmdk').read_bytes() == flat and (where / 'iso/link').readlink() ==
              pathlib.Path('small'), f'VMFS{version}: a mounted tree')
        disks = list((where / '.disks').glob('*/disk0.raw'))
        check(any(d.read_bytes() == flat for d in disks), f'VMFS{version}: .disks has what the guest saw', disks)
        try:
            (where / 'new').write_text('x')
            wrote = True
        except OSError:
            wrote = False
        check(not wrote, f'VMFS{version}: the mount is read-only')
        seen, writable = descriptors_of(family(p.pid), vol.images)
        check(seen > 0 and not writable, f'VMFS{version}: no descriptor on a source can write', (seen, writable))
    finally:
        subprocess.run(['fusermount3', '-u', str(where)], capture_output=True)
        p.wait(timeout=60)
    check(p.returncode == 0, f'VMFS{version}: unmounting ends it', p.stderr.read())


def can_mount():
    """Does this place let anybody mount by FUSE?  Asked of the other program that does."""
    where = top / 'fuse'
    where.mkdir(exist_ok=True)
    (top / 'sector.raw').write_bytes(bytes(512))
    r = subprocess.run([hv, 'disk', 'mount', '-q', '-f', 'raw', str(top / 'sector.raw'), str(where)],
                       capture_output=True, timeout=60)
    if r.returncode == 0:
        subprocess.run(['fusermount3', '-u', str(where)], capture_output=True)
    return r.returncode == 0


def test_deleted(version):
    vol = volume(f'deleted{version}', fault.scenario('F14', version, grade=1))
    src, v = vol.images[0], f'VMFS{version}'
    r = run('cp', f'{src}:/deleted/vm/vm.vmdk', 'back.qcow2')
    want = vol.content(vol.file('/vm/vm-flat.vmdk', deleted=True))
    check(r.returncode == 0 and same_disk(top / 'back.qcow2', want), f'{v}: a deleted disk by one command', r.stderr)
    (top / 'back.qcow2').unlink(missing_ok=True)
    r = run('boot', '--dry-run', '--kernel', '/vmlinuz', src, '/deleted/vm', '--', '--net', 'user')
    if 'cannot mount' in r.stderr and not can_mount():
        skip(f'{v}: boot --dry-run', 'FUSE is not permitted')
    else:
        check(r.returncode == 0 and '--kernel /vmlinuz' in r.stdout and 'disk0.raw,overlay=on' in r.stdout and
              r.stdout.rstrip().endswith('--net user'), f'{v}: boot --dry-run', r.stdout + r.stderr)
    return vol


def test_findings():
    vol = volume('findings', fault.scenario('F1', 5))
    fault.apply('F5', vol)
    db = top / 'f.db'
    r = run('scan', '--findings', db, vol.images[0])
    check(r.returncode == 0 and db.exists() and 'rebuilt' in r.stdout, 'findings are kept where one says', r.stderr)
    r = run('cat', '--findings', db, f'{vol.images[0]}:/iso/small')
    check(r.stdout == 'small\n', 'and used', r.stderr)
    db.write_bytes(b'no database at all' * 100)
    r = run('ls', '--findings', db, vol.images[0])
    check(r.returncode == 1 and str(db) in r.stderr and len(r.stderr.splitlines()) == 1,
          'a file that holds no findings is refused in one line', r.stderr)
    r = run('ls', '-1', '--no-findings', vol.images[0])
    check(r.returncode == 0 and 'vm/' in r.stdout, '--no-findings', r.stderr)
    return vol


def test_images():
    vol = volume('images', fault.scenario('none', 6))
    packed = top / 'datastore.qcow2'
    subprocess.run([hv, 'disk', 'convert', '-q', '-O', 'qcow2', vol.images[0], str(packed)], check=True, timeout=240)
    r = run('cat', '-q', f'{packed}:/iso/small')
    check((r.returncode, r.stdout) == (0, 'small\n'), 'a datastore in a qcow2 image', r.stderr)
    r = run('cat', '-q', '-f', 'raw', f'{packed}:/iso/small')
    check(r.returncode == 1 and len(r.stderr.splitlines()) == 1, 'which as raw bytes is none', r.stderr)


def test_words():
    for args, words in ((('scan', '/nowhere'), 'cannot open'), (('scan', top), 'directory'),
                        (('ls',), 'which source'), (('cat', '/etc/passwd'), 'SOURCE:/PATH'),
                        (('frobnicate',), 'no command'), (('cp', 'a:/b'), 'where to'),
                        (('scan', '--volume', 'x', 'y'), 'no number')):
        r = run(*args)
        check(r.returncode in (1, 2) and words in r.stderr, f'hv recover {" ".join(map(str, args))}: says why', r.stderr)
    for name in ('scan', 'ls', 'tree', 'info', 'cat', 'cp', 'preview', 'mount', 'boot', 'check', 'carve', 'report'):
        r = run(name, '--help')
        check(r.returncode == 0 and f'hv recover {name}' in r.stdout, f'{name} --help')


def main():
    try:
        disk = guest_disk(top / 'guest.raw')
        volumes = []
        for version in (5, 6):
            vol = volume(f'v{version}', script(version, disk))
            hashes = {i: sha(i) for i in vol.images}
            test_reading(version, vol)
            test_copying(version, vol)
            if disk:
                test_preview(version, vol)
            test_report(version, vol)
            test_mount(version, vol)
            volumes.append((vol, hashes))
            test_deleted(version)
        test_findings()
        test_images()
        test_words()
        check(all(sha(i) == h for _, hashes in volumes for i, h in hashes.items()), 'the sources are as they were')
        print(f'1..{count}')
    finally:
        shutil.rmtree(top, ignore_errors=True)
    return failed != 0


sys.exit(main())
