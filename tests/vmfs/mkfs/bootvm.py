#!/usr/bin/env python3
"""A small Linux disk that boots to a login prompt, and a VM directory around it on a VMFS volume.

    bootvm.py ASSETS DIRECTORY [NAME]     writes DIRECTORY/NAME.raw, prints lines for mkvmfs

ASSETS is what scripts/boot-assets.sh made (vmlinuz, initrd.gz).  The disk has an MBR with one ext4
partition: /boot with kernel, initrd and grub.cfg, and BusyBox as init with a getty on ttyS0.  For
tests: make_disk() raises Missing with the reason when a tool or an asset is not here.
"""
import gzip
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

START, MIB = 1 << 20, 1 << 20
PROMPT = 'vmguest login:'

INIT = r'''#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t devtmpfs dev /dev
while read -r m; do $B insmod /modules/$m.ko; done </modules/order
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/vda1 ] && break; $B sleep 1; done
$B mount -t ext4 -o rw /dev/vda1 /mnt && exec $B switch_root /mnt /sbin/init
echo ROOT-MISSING
$B poweroff -f
'''

ETC = {
    'inittab': '::sysinit:/etc/rc\nttyS0::respawn:/bin/getty -L ttyS0 115200 vt100\n',
    'rc': '#!/bin/sh\n/bin/busybox mount -t proc proc /proc\n/bin/busybox mount -t devtmpfs dev /dev\n'
          '/bin/busybox hostname vmguest\necho GUEST-UP\n',
    'passwd': 'root::0:0:root:/root:/bin/sh\n',
    'group': 'root:x:0:\n',
    'hostname': 'vmguest\n',
    'issue': 'A guest of a rescued datastore\n',
    'fstab': '/dev/vda1 / ext4 defaults 0 1\n',
}

GRUB = '''set timeout=0
menuentry 'Linux' {
    insmod ext2
    linux /boot/vmlinuz-test root=/dev/vda1 ro console=ttyS0 panic=-1 cryptomgr.notests
    initrd /boot/initrd.img-test
}
'''


class Missing(Exception):
    """What cannot be had here."""


def run(*args, **more):
    subprocess.run([str(a) for a in args], check=True, stdout=subprocess.DEVNULL, **more)


def put(path, data, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    path.chmod(mode)


def make_initrd(assets, work, out):
    """The boot tests' initramfs with another init: its modules, then the root on /dev/vda1."""
    root = work / 'initrd'
    root.mkdir()
    cpio = gzip.decompress((assets / 'initrd.gz').read_bytes())
    run('cpio', '-idm', '--quiet', '--no-absolute-filenames', cwd=root, input=cpio)
    put(root / 'init', INIT, 0o755)
    names = subprocess.run(['find', '.'], cwd=root, check=True, capture_output=True).stdout
    packed = subprocess.run(['cpio', '-o', '-H', 'newc', '--quiet'], cwd=root, check=True, input=names,
                            capture_output=True).stdout
    put(out, gzip.compress(packed, 1))


def make_root(assets, work):
    root = work / 'root'
    busybox = shutil.which('busybox')
    put(root / 'boot/vmlinuz-test', (assets / 'vmlinuz').read_bytes())
    put(root / 'boot/grub/grub.cfg', GRUB)
    make_initrd(assets, work, root / 'boot/initrd.img-test')
    put(root / 'bin/busybox', pathlib.Path(busybox).read_bytes(), 0o755)
    (root / 'sbin').mkdir()
    for link in ('bin/sh', 'bin/getty', 'bin/login', 'sbin/init'):
        (root / link).symlink_to('/bin/busybox')
    for name, text in ETC.items():
        put(root / 'etc' / name, text, 0o755 if name == 'rc' else 0o644)
    for name in ('dev', 'proc', 'sys', 'tmp', 'root', 'mnt'):
        (root / name).mkdir()
    return root


def mbr(size):
    sector = bytearray(512)
    struct.pack_into('<BBBBBBBBII', sector, 446, 0x80, 0, 2, 0, 0x83, 0, 0, 0, START // 512, (size - START) // 512)
    sector[510:] = b'\x55\xaa'
    return bytes(sector)


def make_disk(assets, out, size=96 * MIB):
    """Write a raw disk image of size bytes to out."""
    assets, out = pathlib.Path(assets), pathlib.Path(out)
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    for tool in ('mke2fs', 'cpio', 'busybox'):
        if not shutil.which(tool):
            raise Missing(f'there is no {tool} here')
    for name in ('vmlinuz', 'initrd.gz'):
        if not (assets / name).exists():
            raise Missing(f'there is no {name} (scripts/boot-assets.sh says why)')
    with tempfile.TemporaryDirectory() as d:
        root = make_root(assets, pathlib.Path(d))
        with open(out, 'wb') as f:
            f.write(mbr(size))
            f.truncate(size)
        run('mke2fs', '-q', '-F', '-t', 'ext4', '-E', f'offset={START},root_owner=0:0', '-d', root, out,
            f'{(size - START) // 1024}k')
    return out


def quote(text):
    return '"' + text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n') + '"'


def descriptor(name, size):
    sectors = size // 512
    return f'''# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=7a3cd4e5
parentCID=ffffffff
createType="vmfs"

# Extent description
RW {sectors} VMFS "{name}-flat.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "{sectors // 16065}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "0123456789abcdef01234567{0x7a3cd4e5:08x}"
ddb.uuid = "60 00 C2 9a 01 02 03 04-05 06 07 08 09 0a 0b 0c"
ddb.virtualHWVersion = "19"
'''


def vmx(name):
    return f'''.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
displayName = "{name}"
guestOS = "debian11-64"
memSize = "512"
numvcpus = "1"
nvram = "{name}.nvram"
scsi0.virtualDev = "pvscsi"
scsi0.present = "TRUE"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:0.fileName = "{name}.vmdk"
scsi0:0.present = "TRUE"
uuid.bios = "56 4d 12 34 56 78 9a bc-de f0 12 34 56 78 9a bc"
'''


def log(name):
    head = '2021-08-11T07:35:49.123Z| vmx| I005: '
    return (f'{head}Log for VMware ESX pid=2099999 version=7.0.2 build=build-17867351\n'
            f'{head}DICT             displayName = "{name}"\n{head}DICT                  memSize = "512"\n'
            f'{head}DICT         scsi0:0.fileName = "{name}.vmdk"\n'
            f"{head}DISK: OPEN scsi0:0 '{name}.vmdk' persistent R[]\n")


def vm_script(name, disk, thin=True, directory=None):
    """Lines for mkvmfs: a directory /NAME with what ESXi keeps of a VM."""
    d = directory or f'/{name}'
    size = os.path.getsize(disk)
    return '\n'.join([
        f'mkdir {d}',
        f'file {d}/{name}.vmx text={quote(vmx(name))} mode=0755',
        f'file {d}/{name}.vmdk text={quote(descriptor(name, size))} mode=0600',
        f'file {d}/{name}-flat.vmdk host={quote(os.path.abspath(disk))} mode=0600 layout=single' +
        (' thin' if thin else ''),
        f'file {d}/{name}.nvram text={quote("MRVN" + "VMware NVRAM " * 20)} size=8684 mode=0600',
        f'file {d}/vmware.log text={quote(log(name))}',
        f'file {d}/{name}.vmsd',
        '']) + '\n'


def main():
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    name = sys.argv[3] if len(sys.argv) > 3 else 'guest'
    disk = pathlib.Path(sys.argv[2]) / f'{name}.raw'
    try:
        make_disk(sys.argv[1], disk)
    except Missing as e:
        print(f'bootvm.py: {e}', file=sys.stderr)
        return 1
    print(vm_script(name, disk), end='')
    return 0


if __name__ == '__main__':
    sys.exit(main())
