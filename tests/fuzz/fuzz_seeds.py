#!/usr/bin/env python3
"""Pack an image file as the image fuzz targets take it: fuzz_seeds.py FLAGS IMAGE SEED [BYTES]

FLAGS: 1 put good checksums in, 2 also write to it, 4 recover.  See fuzz_image.h.  Only sectors that
are not zero are kept, at most BYTES (60000) of them.
"""
import struct
import sys

flags, image, seed = int(sys.argv[1]), sys.argv[2], sys.argv[3]
most = int(sys.argv[4]) if len(sys.argv) > 4 else 60000
out = bytearray()
with open(image, "rb") as f:
    at = 0
    while chunk := f.read(512):
        data = chunk.rstrip(b"\0")
        if data and len(out) < most:
            out += struct.pack("<IH", at, len(data)) + data
        at += 1
with open(seed, "wb") as f:
    f.write(struct.pack("<BI", flags, at) + out)
