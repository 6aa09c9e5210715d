# SPDX-License-Identifier: Apache-2.0
"""Safetensors files made by hand from the format's specification: no library, no dcmem."""
import json
import os
import random
import struct
import subprocess

SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
         "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}


def head_of(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def write(path, tensors, metadata=None, padding=0):
    """tensors: (name, dtype, shape, bytes), in the order of the data."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, ensure_ascii=False) + " " * padding
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(head_of(text))
        for tensor in tensors:
            file.write(tensor[3])


def weights(rng, n_bytes):
    """Bytes that look like weights: few distinct high bytes, random low bytes."""
    return bytes(x for _ in range((n_bytes + 1) // 2)
                 for x in (rng.getrandbits(8), 60 + min(int(rng.expovariate(0.7)), 9)))[:n_bytes]


def rng():
    return random.Random(20240229)


def run(tool, *args, **options):
    return subprocess.run([tool, *map(str, args)], capture_output=True, timeout=300, check=False,
                          **options)


def files_of(directory):
    found = {}
    for base, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(base, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, directory)] = file.read()
    return found
