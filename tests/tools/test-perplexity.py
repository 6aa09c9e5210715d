#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lm perplexity of packed models, whole and in INT8, against tests/reference/perplexity.py.

The expected figures are what that numpy program prints for the committed model and ids (8 windows
of 512, or 1 where sanitizers make it slow; the INT8 copy made by tests/reference/quantize-int8.py),
in float32.

usage: test-perplexity.py LM DCMEM SOURCE_ROOT
"""
import os
import pathlib
import subprocess
import sys
import tempfile

WINDOWS = 1 if os.environ.get('DCMEM_TEST_BUILD', 'plain') in ('asan', 'tsan') else 8
EXPECTED = {8: {'tiny-llama': 95.0253, 'tiny-llama-int8': 95.0583},
            1: {'tiny-llama': 136.1131, 'tiny-llama-int8': 136.0988}}[WINDOWS]
TOLERANCE = 1e-4


def run(*command, **kwargs):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
    if result.returncode != 0:
        sys.exit(f'{" ".join(map(str, command))}: exit {result.returncode}\n{result.stderr}')
    return result.stdout


def check(what, lm, ids, expected, *options, env=None):
    out = run(lm, 'perplexity', '--ids', ids, '--windows', WINDOWS, '--length', 512, *options,
              env={**os.environ, **(env or {})})
    key, value = out.splitlines()[-1].split()
    print(f'{what}: {key} {value}, expected {expected}')
    if key != 'perplexity' or abs(float(value) / expected - 1) > TOLERANCE:
        sys.exit(f'{what}: outside {TOLERANCE:.0e}')


def main():
    lm, dcmem, root = sys.argv[1:4]
    root = pathlib.Path(root)
    ids = root / 'tests/data/valid-books-4097.u16'
    model = root / 'examples/models/tiny-llama'
    with tempfile.TemporaryDirectory() as scratch:
        int8 = pathlib.Path(scratch, 'tiny-llama-int8')
        run(sys.executable, root / 'tests/reference/quantize-int8.py', model, int8)
        for name, source in (('tiny-llama', model), ('tiny-llama-int8', int8)):
            packed = pathlib.Path(scratch, name + '.dcmem')
            run(dcmem, 'pack', source, '-o', packed)
            check(name, lm, ids, EXPECTED[name], '--model', packed)
        check('mmap', lm, ids, EXPECTED['tiny-llama'], '--source', 'mmap', '--model', model)
        check('held', lm, ids, EXPECTED['tiny-llama'], '--hold', '--model',
              pathlib.Path(scratch, 'tiny-llama.dcmem'))
        wrong = subprocess.run([lm, 'perplexity', '--model', scratch + '/none.dcmem', '--ids', ids],
                               capture_output=True, text=True)
        if wrong.returncode != 1 or len(wrong.stderr.splitlines()) != 1:
            sys.exit(f'a missing model: exit {wrong.returncode}, {wrong.stderr!r}')


if __name__ == '__main__':
    main()
