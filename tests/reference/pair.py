# SPDX-License-Identifier: Apache-2.0
"""The pair codecs, decoded as docs/codecs.md says and in no other way: slow, for tests."""


class Bits:
    """Fields from the lowest bit of the first byte on."""

    def __init__(self, data):
        self.value = int.from_bytes(data, 'little')
        self.size = 8 * len(data)
        self.at = 0

    def take(self, n):
        assert self.at + n <= self.size
        field = self.value >> self.at & ((1 << n) - 1)
        self.at += n
        return field


def read_lengths(bits, classes):
    weights = [bits.take(5) for _ in classes]
    lengths = []
    for row, first in enumerate(classes):
        for column, second in enumerate(classes):
            expected = max((weights[row] + weights[column] + 1) // 2, 1)
            if expected > 14:
                continue
            expected = min(expected, 13)
            if bits.take(1) == 0:
                length = expected
            elif bits.take(1) == 0:
                length = expected + 1
            elif bits.take(1) == 0:
                length = expected - 1
            elif bits.take(1) == 0:
                length = 0
            else:
                length = bits.take(4)
            if length:
                lengths.append((length, len(lengths), (first, second)))
    mark = bits.take(4)
    if mark:
        lengths.append((mark, len(lengths), None))
    assert sum(2 ** (13 - length) for length, _, _ in lengths) == 2 ** 13
    return lengths


def canonical(lengths):
    """{(length, codeword): pair or None}"""
    code, last, book = 0, 0, {}
    for length, _, pair in sorted(lengths, key=lambda entry: entry[:2]):
        code <<= length - last
        book[length, code] = pair
        code, last = code + 1, length
    return book


def read_lane(data, n_pairs, book):
    bits, pairs = Bits(data), []
    for _ in range(n_pairs):
        length, code = 0, 0
        while (length, code) not in book or length == 0:
            code = code << 1 | bits.take(1)
            length += 1
        pairs.append(book[length, code])
    assert (bits.at + 7) // 8 == len(data)
    return pairs


def offset(row_bytes, k, i):
    value, shift, at = 0, 0, 0
    for bits in (4, 2, 1):
        if k & bits:
            count = 8 * bits
            value |= (row_bytes[at + i % count] >> (i // count * bits) & ((1 << bits) - 1)) << shift
            at, shift = at + count, shift + bits
    return value


def decode(page, size, element):
    n = size // element // 256 * 256
    k, is_spiked, shift = page[0] & 127, page[0] >> 7, page[1]
    n_rare, n_escapes = (int.from_bytes(page[at:at + 4], 'little') for at in (2, 6))
    at, spike, n_spikes = 10, None, 0
    if is_spiked:
        spike_symbol, n_spikes, at = page[10], int.from_bytes(page[11:15], 'little'), 15
    blocks = [b for b in range(256 >> k) if page[at + b // 8] >> b % 8 & 1]
    at += 32 >> k
    if is_spiked:
        spike = len(blocks)
    classes = list(range(len(blocks) + is_spiked)) + ([30] if n_escapes else [])
    bits = Bits(page[at:at + 2048])
    book = canonical(read_lengths(bits, classes))
    at += (bits.at + 7) // 8
    common = page[at:at + 15] if n_escapes else b''
    at += len(common)
    sizes = [int.from_bytes(page[at + 2 * i:at + 2 * i + 2], 'little') for i in range(32)]
    at += 64
    lanes = []
    for lane in sizes:
        lanes.append(read_lane(page[at:at + lane], n // 64, book))
        at += lane
    low, at = page[at:at + n * (element - 1)], at + n * (element - 1)
    n_offsets = ((n - n_spikes) * k + 7) // 8
    offsets, at = page[at:at + n_offsets], at + n_offsets
    in_order = Bits(offsets)
    rare, at = Bits(page[at:at + (10 * n_rare + 7) // 8]), at + (10 * n_rare + 7) // 8
    digits, at = Bits(page[at:at + (n_escapes + 1) // 2]), at + (n_escapes + 1) // 2
    out = bytearray()
    for row in range(n // 64):
        for lane in range(32):
            pair = lanes[lane][row] or (rare.take(5), rare.take(5))
            for j, symbol_class in enumerate(pair):
                if is_spiked and symbol_class != spike:
                    raw = in_order.take(k)
                if symbol_class == 30:
                    digit = digits.take(4)
                    symbol = common[digit] if digit < 15 else digits.take(4) | digits.take(4) << 4
                elif symbol_class == spike:
                    symbol = spike_symbol
                else:
                    if k and not is_spiked:
                        raw = offset(offsets[8 * k * row:8 * k * (row + 1)], k, 2 * lane + j)
                    elif k == 0:
                        raw = 0
                    symbol = (blocks[symbol_class] << k) + shift + raw & 0xff
                i = 64 * row + 2 * lane + j
                value = symbol
                for plane in range(element - 1):
                    value = value << 8 | low[plane * n + i]
                width = 8 * element
                if element > 1:
                    value = value >> 1 | (value & 1) << width - 1
                out += value.to_bytes(element, 'little')
    assert rare.at == 10 * n_rare and digits.at == 4 * n_escapes
    assert not is_spiked or in_order.at == (n - n_spikes) * k
    out += page[at:]
    assert len(out) == size
    return bytes(out)


def decode_spike(page, size):
    """pair8-spike: the page is of values among which the spike's gap was closed."""
    spike, out = page[0], bytearray()
    for value in decode(page[1:], size, 1):
        d = (value - spike + 128) % 256 - 128
        d = 0 if d == -128 else d - 1 if d <= 0 else d
        out.append((spike + d) % 256)
    return bytes(out)
