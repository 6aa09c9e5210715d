#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Containers of each codec of our own, read by a program made from docs/container.md and
docs/codecs.md alone.

usage: test-format.py DCMEM
"""
import os
import pathlib
import struct
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from reference import pack, pair  # noqa: E402
from tools import synthetic  # noqa: E402

ELEMENT = {5: 1, 6: 2, 7: 4, 8: 1, 9: 2, 10: 4}
CODECS = {'pair': (pair, (5, 6, 7)), 'pack': (pack, (8, 9, 10))}
DTYPES = {2: 1, 3: 1, 8: 2, 10: 4}


def bell(rng, n, spread):
    return bytes(int(rng.gauss(0, spread)) & 0xff for _ in range(n))


def sources(rng):
    """Name: dtype, bytes. Narrow and wide bells, tails that escape, exponents in wider elements."""
    tails = bytearray(bell(rng, 9000, 2))
    for i in range(0, 9000, 50):
        tails[i] = rng.randrange(256)
    spiked = bytearray(bell(rng, 9000, 20))
    for i in range(0, 9000, 2):
        spiked[i + rng.randrange(2)] = 0
    half = b''.join(bytes([rng.randrange(256), 0x3c + int(rng.gauss(0, 1))]) for _ in range(3000))
    single = b''.join(rng.randbytes(3) + bytes([0x3d + int(rng.gauss(0, 1))]) for _ in range(1500))
    return {'narrow': ('I8', bell(rng, 8192, 1.5)), 'middle': ('I8', bell(rng, 8300, 9)),
            'wide': ('I8', bell(rng, 8192, 30)), 'tails': ('I8', bytes(tails)),
            'spiked': ('I8', bytes(spiked)),
            'half': ('BF16', half), 'single': ('F32', single)}


def tables(data):
    index, = struct.unpack_from('<Q', data, 40)
    entries = [struct.unpack_from('<QQ', data, index + 64 + 16 * i) for i in range(16)]
    return [(index + offset, count) for offset, count in entries]


def check(tool, codec, wanted):
    """Every tensor decodes to what it was, and has pages of the codec."""
    module, ids = CODECS[codec]
    seen = set()
    with tempfile.TemporaryDirectory() as work:
        synthetic.write(work + '/m.safetensors',
                        [(name, dtype, [len(data) // {'I8': 1, 'BF16': 2, 'F32': 4}[dtype]], data)
                         for name, (dtype, data) in wanted.items()])
        out = work + '/m.dcmem'
        done = synthetic.run(tool, 'pack', work + '/m.safetensors', '-o', out, '--codec', codec)
        assert done.returncode == 0, done.stderr
        data = pathlib.Path(out).read_bytes()
    table = tables(data)
    for i in range(table[1][1]):
        at = table[1][0] + 136 * i
        name_at, name_bytes, dtype = struct.unpack_from('<QIH', data, at)
        name = data[table[0][0] + name_at:][:name_bytes].decode()
        n_bytes, page_bytes, _, first_form = struct.unpack_from('<QIIQ', data, at + 80)
        form = table[3][0] + 64 * first_form
        _, n_pages, record, _, _, segment = struct.unpack_from('<QQQQQI', data, form)
        base, = struct.unpack_from('<Q', data, table[7][0] + 16 * segment)
        decoded = b''
        for page in range(n_pages):
            offset, stored, id_ = struct.unpack_from('<QIB', data, table[4][0] + 32 * (record + page))
            size = min(page_bytes, n_bytes - page * page_bytes)
            body = data[base + offset:base + offset + stored]
            if id_:
                assert id_ in ids and ELEMENT[id_] == DTYPES[dtype], (name, id_)
                seen.add(name)
                body = module.decode(body, size, ELEMENT[id_])
            decoded += body
        assert decoded == wanted[name][1], name
        print(f'{codec}, {name}: {n_bytes} bytes, as they were')
    assert seen == set(wanted), set(wanted) - seen


def main():
    wanted = sources(synthetic.rng())
    for codec in CODECS:
        check(sys.argv[1], codec, wanted)


if __name__ == '__main__':
    main()
