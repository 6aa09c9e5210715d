#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes unicode-ranges.h: the code points of the classes L, N and White_Space, as ranges."""
import unicodedata

SPACES = [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F,
          0x205F, 0x3000]


def ranges(wanted):
    found, start = [], None
    for code in range(0x110001):
        inside = code < 0x110000 and wanted(code)
        if inside and start is None:
            start = code
        elif not inside and start is not None:
            found.append((start, code - 1))
            start = None
    return found


def table(name, wanted):
    print(f'static const struct unicode_range {name}[] = {{')
    line = '\t'
    for low, high in ranges(wanted):
        item = f'{{{low:#x}, {high:#x}}},'
        if len(line) + len(item) + 1 > 92:
            print(line.rstrip())
            line = '\t'
        line += item + ' '
    print(line.rstrip() + '\n};\n')


print('/* SPDX-License-Identifier: Apache-2.0 */')
print(f'/* Made by unicode-ranges.py from Unicode {unicodedata.unidata_version}. */')
print('#ifndef LM_UNICODE_RANGES_H\n#define LM_UNICODE_RANGES_H\n\n#include <stdint.h>\n')
print('struct unicode_range {\n\tuint32_t low, high; /* both inside */\n};\n')
table('unicode_letters', lambda c: unicodedata.category(chr(c))[0] == 'L')
table('unicode_numbers', lambda c: unicodedata.category(chr(c))[0] == 'N')
table('unicode_spaces', lambda c: c in SPACES)
print('#endif')
