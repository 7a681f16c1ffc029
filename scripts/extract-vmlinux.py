#!/usr/bin/env python3
"""Take the ELF kernel out of a Linux bzImage: extract-vmlinux.py BZIMAGE ELF

The boot protocol (Documentation/arch/x86/boot.rst: payload_offset, payload_length) says where the
compressed payload stands; its first bytes say how it is compressed.
"""
import lzma
import struct
import subprocess
import sys
import zlib

image = open(sys.argv[1], 'rb').read()
if image[0x202:0x206] != b'HdrS':
    sys.exit(f'{sys.argv[1]}: is no Linux bzImage (no HdrS signature)')
setup_sectors = image[0x1f1] or 4
offset, length = struct.unpack_from('<II', image, 0x248)
start = (setup_sectors + 1) * 512 + offset
payload = image[start:start + length]
if payload.startswith(b'\xfd7zXZ\0'):
    elf = lzma.LZMADecompressor().decompress(payload)
elif payload.startswith(b'\x28\xb5\x2f\xfd'):
    elf = subprocess.run(['zstd', '-dc'], input=payload, capture_output=True).stdout
elif payload.startswith(b'\x1f\x8b'):
    elf = zlib.decompressobj(31).decompress(payload)
elif payload.startswith(b'\x7fELF'):
    elf = payload
else:
    sys.exit(f'{sys.argv[1]}: the payload is compressed in a way not known here')
if not elf.startswith(b'\x7fELF'):
    sys.exit(f'{sys.argv[1]}: the payload did not unpack to an ELF file')
open(sys.argv[2], 'wb').write(elf)
