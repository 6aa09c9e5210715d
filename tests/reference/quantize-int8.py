#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Copies a Hugging Face directory with its matrices as INT8, one scale a row.

usage: quantize-int8.py SOURCE DESTINATION

Names follow compressed-tensors: NAME.weight int8 and NAME.weight_scale F32 [rows, 1]. Embeddings
and vectors stay as they are. Rounds to nearest, symmetric, scale = max|row| / 127.
"""
import json
import pathlib
import shutil
import struct
import sys

import numpy as np


def main():
    source, destination = (pathlib.Path(a) for a in sys.argv[1:3])
    destination.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix == '.json':
            shutil.copyfile(path, destination / path.name)
    for path in sorted(source.glob('model*.safetensors')):
        data = path.read_bytes()
        size = struct.unpack('<Q', data[:8])[0]
        header, body, place = {}, [], 0

        def put(name, kind, shape, raw):
            nonlocal place
            header[name] = {'dtype': kind, 'shape': shape, 'data_offsets': [place, place + len(raw)]}
            body.append(raw)
            place += len(raw)

        for name, entry in json.loads(data[8:8 + size]).items():
            if name == '__metadata__':
                continue
            start, end = entry['data_offsets']
            raw = data[8 + size + start:8 + size + end]
            if '_proj.' not in name and '.fc' not in name or not name.endswith('.weight'):
                put(name, entry['dtype'], entry['shape'], raw)
                continue
            if entry['dtype'] == 'BF16':
                rows = (np.frombuffer(raw, '<u2').astype('<u4') << 16).view('<f4')
            else:
                rows = np.frombuffer(raw, {'F16': '<f2', 'F32': '<f4'}[entry['dtype']])
            rows = rows.astype(np.float32).reshape(entry['shape'])
            scale = np.abs(rows).max(1, keepdims=True) / np.float32(127)
            scale[scale == 0] = 1
            put(name, 'I8', entry['shape'], np.rint(rows / scale).astype(np.int8).tobytes())
            put(name + '_scale', 'F32', list(scale.shape), scale.astype('<f4').tobytes())
        text = json.dumps(header).encode()
        text += b' ' * (-len(text) % 8)
        (destination / path.name).write_bytes(struct.pack('<Q', len(text)) + text + b''.join(body))


if __name__ == '__main__':
    main()
