#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes convert-reference.h: what numpy and the formats' definitions give for conversions.

F16 comes from numpy. BF16 rounding and FP8 are computed here with exact fractions from the
definitions (round to nearest, ties to even; OCP 8-bit Floating Point 1.0), by search instead of by
bit arithmetic, so that the two do not share a mistake.
"""
import struct
from fractions import Fraction

import numpy as np


def bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def f8(byte, exponent_bits, mantissa_bits, bias, has_inf):
    sign = -1.0 if byte & 0x80 else 1.0
    e = byte >> mantissa_bits & ((1 << exponent_bits) - 1)
    m = byte & ((1 << mantissa_bits) - 1)
    if has_inf and e == (1 << exponent_bits) - 1:
        return float("nan") if m else sign * float("inf")
    if not has_inf and byte & 0x7F == 0x7F:
        return float("nan")
    if e == 0:
        return sign * m * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + m / 2.0 ** mantissa_bits) * 2.0 ** (e - bias)


def bf16(value):
    """The nearest of the two bfloat16 around a float32, by exact distance."""
    u = bits(value)
    if value != value:
        return None
    low = u >> 16
    if u & 0x7FFFFFFF == 0x7F800000 or u & 0xFFFF == 0:
        return low

    def exact(h):
        if h & 0x7FFF == 0x7F80:
            return Fraction(2) ** 128 * (-1 if h & 0x8000 else 1)
        return Fraction(struct.unpack("<f", struct.pack("<I", h << 16))[0])

    x = Fraction(value)
    down, up = abs(x - exact(low)), abs(exact(low + 1) - x)
    return low if down < up or (down == up and low % 2 == 0) else low + 1


def array(name, kind, values):
    print(f"static const {kind} {name}[] = {{")
    for i in range(0, len(values), 8):
        print("\t" + " ".join(f"0x{v:x}," for v in values[i:i + 8]))
    print("};")


rng = np.random.default_rng(7)
special = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF, 1, 0x007FFFFF, 0x00800000,
           bits(65504.0), bits(65519.996), bits(65520.0), bits(65536.0), bits(2.0 ** -14),
           bits(2.0 ** -24), bits(2.0 ** -25), bits(1.5 * 2.0 ** -25), bits(3 * 2.0 ** -25),
           bits(2.0 ** -14 - 2.0 ** -25), 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF,
           bits(1 + 2.0 ** -11), bits(1 + 3 * 2.0 ** -11), 0x38800000, 0x387FFFFF]
random = [int(x) for x in rng.integers(0, 2 ** 32, 120)]
near = [int(x) for x in rng.integers(bits(2.0 ** -26), bits(70000.0), 200)]
floats = [x for x in special + random + near if not np.isnan(np.uint32(x).view(np.float32))]
as_f32 = np.array(floats, dtype=np.uint32).view(np.float32)
with np.errstate(over="ignore"):
    as_f16 = as_f32.astype(np.float16).view(np.uint16)
halves = [x for x in range(0, 65536, 37)] + [1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0xFC00]
halves = [x for x in halves if not np.isnan(np.uint16(x).view(np.float16))]
print("/* SPDX-License-Identifier: Apache-2.0 */")
print("/* Made by gen-convert.py: do not edit. */")
array("reference_f32", "uint32_t", floats)
array("reference_f32_as_f16", "uint16_t", [int(x) for x in as_f16])
array("reference_f32_as_bf16", "uint16_t", [bf16(float(x)) for x in as_f32])
array("reference_f16", "uint16_t", halves)
array("reference_f16_as_f32", "uint32_t",
      [int(x) for x in np.array(halves, np.uint16).view(np.float16).astype(np.float32).view(np.uint32)])
e4m3 = [f8(b, 4, 3, 7, False) for b in range(256)]
e5m2 = [f8(b, 5, 2, 15, True) for b in range(256)]
# NaNs are written as 0xffffffff: the test asks for a NaN there.
array("reference_e4m3_as_f32", "uint32_t", [0xFFFFFFFF if x != x else bits(x) for x in e4m3])
array("reference_e5m2_as_f32", "uint32_t", [0xFFFFFFFF if x != x else bits(x) for x in e5m2])
