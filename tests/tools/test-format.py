#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Containers of each codec of our own, read by a program made from docs/container.md and
docs/codecs.md alone.

usage: test-format.py DCMEM
"""
import json
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


HINT = struct.Struct('<QQIIBBB5s')


def names_of(table, data):
    for i in range(table[1][1]):
        at, n = struct.unpack_from('<QI', data, table[1][0] + 136 * i)
        yield data[table[0][0] + at:][:n].decode()


def stored_as(table, data, i):
    """The pages' codecs and bytes of tensor i."""
    at = table[1][0] + 136 * i
    n_bytes, _, n_forms, first_form = struct.unpack_from('<QIIQ', data, at + 80)
    if not n_forms:
        return n_bytes, []
    _, n_pages, record = struct.unpack_from('<QQQ', data, table[3][0] + 64 * first_form)
    pages = [struct.unpack_from('<QIB', data, table[4][0] + 32 * (record + page))
             for page in range(n_pages)]
    return n_bytes, [(codec, stored) for _, stored, codec in pages]


def check_hints(tool, wanted):
    """Hints as docs/container.md has them, beside the same pages; `ls` says the same."""
    wide = {name: (dtype, data * (60 if name == 'wide' else 1))
            for name, (dtype, data) in wanted.items()}
    wide['same'] = wide['middle']
    wide['none'] = ('F32', b'')
    with tempfile.TemporaryDirectory() as work:
        synthetic.write(work + '/m.safetensors',
                        [(name, dtype, [len(data) // {'I8': 1, 'BF16': 2, 'F32': 4}[dtype]], data)
                         for name, (dtype, data) in wide.items()])
        packs = {}
        for out, options in {'plain': (), 'again': (), 'hints': ('--hints',)}.items():
            done = synthetic.run(tool, 'pack', work + '/m.safetensors', '-o', work + f'/{out}.dcmem',
                                 *options)
            assert done.returncode == 0, done.stderr
            packs[out] = pathlib.Path(work, out + '.dcmem').read_bytes()
        listed = json.loads(synthetic.run(tool, 'ls', '--json', work + '/hints.dcmem').stdout)
        lines = synthetic.run(tool, 'ls', '--hints', work + '/hints.dcmem').stdout.decode()
        plain = synthetic.run(tool, 'ls', '--hints', work + '/plain.dcmem')
        assert plain.returncode == 1 and b'--hints' in plain.stderr, plain
        done = synthetic.run(tool, 'verify', work + '/hints.dcmem', '--against', work + '/m.safetensors')
        assert done.returncode == 0, done.stderr
    assert packs['plain'] == packs['again']
    data, index = packs['hints'], struct.unpack_from('<Q', packs['plain'], 40)[0]
    assert data[4096:index] == packs['plain'][4096:index], 'hints change nothing but the index'
    assert struct.unpack_from('<Q', data, 24) == (1,)
    assert struct.unpack_from('<Q', packs['plain'], 24) == (0,)
    assert struct.unpack_from('<QQ', packs['plain'], index + 64 + 16 * 9) == (0, 0)
    table = tables(data)
    found = {}
    for i in range(table[9][1]):
        tensor, stored, decode, encode, codec, effort, path, rest = HINT.unpack_from(
            data, table[9][0] + 32 * i)
        assert effort in (1, 2) and path in (0, 1, 2) and rest == bytes(5) and decode and encode
        found.setdefault(tensor, []).append((decode, stored, codec, effort))
    assert list(found) == sorted(found)
    for i, name in enumerate(names_of(table, data)):
        n_bytes, pages = stored_as(table, data, i)
        ways = found.get(i, [])
        assert bool(ways) == (name not in ('same', 'none')), name
        assert len(ways) <= 16 and ways == sorted(ways), name
        assert all(a[1] > b[1] for a, b in zip(ways, ways[1:])), (name, ways)
        assert all(way[1] <= n_bytes and (way[2] or way[1] == n_bytes) for way in ways), name
        # Few enough pages for all of them to be samples: no estimate, but what was stored.
        for _, stored, codec, effort in ways:
            if effort == 1 and {page[0] for page in pages} == {codec}:
                assert stored == sum(page[1] for page in pages), (name, codec)
        assert [(way['stored_bytes'], way['decode_ps_per_byte']) for way in
                listed['tensors'][i]['hints']] == [(way[1], way[0]) for way in ways], name
        assert not ways or name in lines
    # Half zeros, tails, wide bells: something is smaller than raw for each.
    assert all(ways[-1][2] for ways in found.values())
    print(f'{table[9][1]} hints of {len(found)} tensors')


def check_spike(tool, rng):
    """Half zeros in one large page: what the packer chooses for that, and what it decodes to."""
    data = bytes(int(rng.gauss(0, 12)) & 0xff if rng.random() < 0.5 else 3 for _ in range(200000))
    with tempfile.TemporaryDirectory() as work:
        synthetic.write(work + '/m.safetensors', [('pruned', 'I8', [len(data)], data)])
        done = synthetic.run(tool, 'pack', work + '/m.safetensors', '-o', work + '/m.dcmem')
        assert done.returncode == 0, done.stderr
        packed = pathlib.Path(work, 'm.dcmem').read_bytes()
    table = tables(packed)
    base, = struct.unpack_from('<Q', packed, table[7][0])
    assert table[4][1] == 1
    offset, stored, codec = struct.unpack_from('<QIB', packed, table[4][0])
    assert codec == 11, codec
    body = packed[base + offset:base + offset + stored]
    assert body[0] == 3
    assert pair.decode_spike(body, len(data)) == data
    print(f'pair8-spike: {len(data)} bytes in {stored}, as they were')


def main():
    wanted = sources(synthetic.rng())
    for codec in CODECS:
        check(sys.argv[1], codec, wanted)
    check_hints(sys.argv[1], wanted)
    check_spike(sys.argv[1], synthetic.rng())


if __name__ == '__main__':
    main()
