#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lm calibrate of a packed model against what numpy's forward pass sees before each linear layer.

The expected statistics are sums in float64 over the same windows, observed in
tests/reference/perplexity.py. Bad ids, lengths and destinations leave no file.

usage: test-calibrate.py LM DCMEM SOURCE_ROOT
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(sys.argv[3], 'tests/reference')))
import perplexity  # noqa: E402

LENGTH = 100  # not a multiple of a batch
WINDOWS = 3


def run(*command, ok=True):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if (result.returncode == 0) != ok:
        sys.exit(f'{" ".join(map(str, command))}: exit {result.returncode}\n{result.stderr}')
    return result


def expected_of(directory, ids):
    """name -> [tokens, inputs], all windows: evenly spread, at whole multiples of a window."""
    model, seen = perplexity.Model(directory), {}
    available = len(ids) // LENGTH
    for i in range(WINDOWS):
        start = i * available // WINDOWS * LENGTH
        model.logits(ids[start:start + LENGTH],
                     lambda name, h: seen.setdefault(name, []).append(h.astype(np.float64)))
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def close(what, found, expected, tolerance):
    error = np.abs(found - expected).max() / np.abs(expected).max()
    if found.shape != expected.shape or not error < tolerance:
        sys.exit(f'{what}: {found.shape}, expected {expected.shape}; off by {error}')


def check(path, inputs, covariance):
    found = perplexity.read_safetensors(path)
    raw = pathlib.Path(path).read_bytes()
    header = json.loads(raw[8:8 + struct.unpack('<Q', raw[:8])[0]])
    if header['__metadata__'] != {'windows': str(WINDOWS), 'length': str(LENGTH)}:
        sys.exit(f'metadata: {header["__metadata__"]}')
    kinds = ['', '.mean_square'] + ['.covariance'] * covariance
    if set(found) != {name + kind for name in inputs for kind in kinds}:
        sys.exit(f'names: {sorted(set(found))}')
    for name, x in inputs.items():
        close(name, found[name], np.abs(x).max(0), 1e-4)
        close(name, found[name + '.mean_square'], (x * x).mean(0), 1e-4)
        if covariance:
            close(name, found[name + '.covariance'], x.T @ x / len(x), 1e-4)
    return found


def main():
    lm, dcmem, root = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    ids_path = root / 'tests/data/valid-books-4097.u16'
    model = root / 'examples/models/tiny-llama'
    ids = np.fromfile(ids_path, '<u2').astype(np.int64)
    inputs = expected_of(model, ids)
    assert len(inputs) == 6 * 7 + 1, sorted(inputs)
    with tempfile.TemporaryDirectory() as scratch:
        packed, out = pathlib.Path(scratch, 'm.dcmem'), pathlib.Path(scratch, 'stats.safetensors')
        run(dcmem, 'pack', model, '-o', packed)
        common = [lm, 'calibrate', '--length', LENGTH, '--windows', WINDOWS]
        run(*common, '--model', packed, '--ids', ids_path, '-o', out, '--covariance')
        found = check(out, inputs, True)
        kernels = [k for k in ('portable', 'avx2', 'avx512') if os.environ.get('LM_KERNEL') is None]
        for kernel in kernels:
            os.environ['LM_KERNEL'] = kernel
            probe = subprocess.run([str(c) for c in common] +
                                   ['--model', packed, '--ids', ids_path, '-o', out,
                                    '--covariance'], capture_output=True, text=True)
            if probe.returncode == 0:
                check(out, inputs, True)
            elif kernel == 'portable':
                sys.exit(probe.stderr)
        os.environ.pop('LM_KERNEL', None)
        run(*common, '--model', packed, '--ids', ids_path, '-o', out)
        check(out, inputs, False)

        # The same quantity as recorded elsewhere on other text: the same names, the same scale.
        recorded = perplexity.read_safetensors(model / 'act_absmax.safetensors')
        assert set(recorded) == set(inputs)
        for name, values in recorded.items():
            ratio = np.median(found[name] / values)
            if not 0.2 < ratio < 2:
                sys.exit(f'{name}: {ratio} of the recorded maxima')

        out.unlink()
        wrong = pathlib.Path(scratch, 'wrong.u16')
        wrong.write_bytes(b'\xff' * 2000)
        for what, options in {
                'no output': ['--ids', ids_path],
                'no ids': ['-o', out],
                'few ids': ['--ids', ids_path, '-o', out, '--windows', 100],
                'bad ids': ['--ids', wrong, '-o', out],
                'no room': ['--ids', ids_path, '-o', scratch + '/none/stats'],
                'long': ['--ids', ids_path, '-o', out, '--length', 1025, '--windows', 1],
                'no window': ['--ids', ids_path, '-o', out, '--windows', 0]}.items():
            result = run(*common, '--model', packed, *options, ok=False)
            if result.returncode != 1 or len(result.stderr.splitlines()) != 1:
                sys.exit(f'{what}: exit {result.returncode}, {result.stderr!r}')
        left = sorted(p.name for p in pathlib.Path(scratch).iterdir())
        if left != ['m.dcmem', 'wrong.u16']:
            sys.exit(f'left behind: {left}')
    print(f'{len(inputs)} layers, {WINDOWS} windows of {LENGTH}')


if __name__ == '__main__':
    main()
