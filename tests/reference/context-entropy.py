#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What contexts save beyond order 0 on the matrices of BF16 models: docs/codecs.md has the result.

usage: context-entropy.py MODEL_DIRECTORY...     (numpy; model.safetensors in each)

Bits a weight of an adaptive code (Krichevsky and Trofimov's estimate, whole tensors), so that a
context pays for what it has to learn.
"""
import json
import math
import struct
import sys

import numpy as np

log_gamma = np.vectorize(math.lgamma)


def matrices(path):
    with open(path, 'rb') as file:
        data = file.read()
    size, = struct.unpack_from('<Q', data)
    for name, tensor in json.loads(data[8:8 + size]).items():
        if name == '__metadata__' or tensor['dtype'] != 'BF16' or len(tensor['shape']) != 2:
            continue
        begin, end = tensor['data_offsets']
        yield np.frombuffer(data[8 + size + begin:8 + size + end], '<u2').reshape(tensor['shape'])


def code_bits(symbols, contexts, n_contexts):
    counts = np.zeros((n_contexts, 256))
    np.add.at(counts, (contexts.ravel(), symbols.ravel()), 1)
    n_used = (counts.sum(0) > 0).sum()
    starts = log_gamma(counts.sum(1) + n_used / 2) - math.lgamma(n_used / 2)
    return (starts.sum() - (log_gamma(counts[counts > 0] + .5) - math.lgamma(.5)).sum()) / math.log(2)


def buckets(values, n):
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, n + 1)[1:-1]), values)


def before(values, axis, n=4):
    """The sum of the n values before each, zero outside."""
    total = np.zeros(values.shape)
    for i in range(1, n + 1):
        if axis:
            total[:, i:] += values[:, :-i]
        else:
            total[i:] += values[:-i]
    return total


def contexts_of(symbols, size):
    rows = np.broadcast_to(buckets(size.mean(1), 12)[:, None], size.shape)
    columns = np.broadcast_to(buckets(size.mean(0), 12)[None], size.shape)
    left, above = np.zeros_like(symbols), np.zeros_like(symbols)
    left[:, 1:], above[1:] = symbols[:, :-1], symbols[:-1]
    return {'order 0': (np.zeros_like(symbols), 1), 'row': (rows, 12), 'column': (columns, 12),
            'row x column': (rows * 12 + columns, 144),
            'product': (buckets(np.outer(size.mean(1), size.mean(0)), 48), 48),
            'size of 4 left': (buckets(before(size, 1), 12), 12),
            'size of 4 above': (buckets(before(size, 0), 12), 12),
            'value left': (left, 256), 'value above': (above, 256)}


def main():
    for model in sys.argv[1:]:
        total = {}
        for bits in matrices(model + '/model.safetensors'):
            weights = (bits.astype(np.uint32) << 16).view(np.float32)
            steps = {'INT8, tensor': np.abs(weights).max() / 127,
                     'INT8, row': np.abs(weights).max(1, keepdims=True) / 127,
                     'step rms / 3': weights.std() / 3}
            kinds = {name: np.clip(np.rint(weights / (step + 1e-30)), -127, 127).astype(np.int32)
                     for name, step in steps.items()}
            kinds['BF16 exponent'] = (bits >> 7 & 255).astype(np.int32)
            for kind, values in kinds.items():
                size = values if kind.startswith('BF16') else np.abs(values)
                for name, (contexts, n) in contexts_of(values & 255, size).items():
                    cell = total.setdefault(kind, {}).setdefault(name, [0, 0])
                    cell[0] += code_bits(values & 255, contexts, n)
                    cell[1] += values.size
        print(model)
        for kind, row in total.items():
            print(f'  {kind:14}', '  '.join(f'{name} {b / n:.3f}' for name, (b, n) in row.items()))


if __name__ == '__main__':
    main()
