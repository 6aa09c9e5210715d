# SPDX-License-Identifier: Apache-2.0
"""The pack codecs, decoded as docs/codecs.md says and in no other way: slow, for tests."""
import struct


def fields(row, width):
    """64 fields from 8 * width bytes: parts of 4, 2 and 1 bits."""
    values, shift = [0] * 64, 0
    for bits in (4, 2, 1):
        if not width & bits:
            continue
        for i in range(64):
            values[i] |= (row[i % (8 * bits)] >> (i // (8 * bits) * bits) & ((1 << bits) - 1)) << shift
        row = row[8 * bits:]
        shift += bits
    return values


def decode(data, size, element):
    width, base, n_escapes = struct.unpack_from('<BBI', data)
    assert 1 <= width <= 7
    n = size // element // 64 * 64
    low = data[6:6 + n * (element - 1)]
    at = 6 + len(low)
    escapes = data[at + n // 8 * width:][:n_escapes]
    assert len(escapes) == n_escapes
    escaped, high = iter(escapes), []
    for row in range(n // 64):
        for field in fields(data[at + 8 * width * row:at + 8 * width * (row + 1)], width):
            high.append(next(escaped) if field == (1 << width) - 1 else (base + field) & 0xff)
    assert next(escaped, None) is None
    out = bytearray()
    for i in range(n):
        value = high[i]
        for plane in range(element - 1):
            value = value << 8 | low[plane * n + i]
        if element > 1:
            value = value >> 1 | (value & 1) << (8 * element - 1)
        out += value.to_bytes(element, 'little')
    tail = data[at + n // 8 * width + n_escapes:]
    assert len(tail) == size - n * element
    return bytes(out + tail)
