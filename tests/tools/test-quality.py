#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The reference programs that judge quantization, against what is known without them.

A model equals itself; two programs agree on a perplexity; INT8 is read with its scale in every shape
and type; q4_0 against its definition, element by element; GPTQ with an identity for covariance is
rounding to nearest, and with a true one has less error at the output.

usage: test-quality.py SOURCE_ROOT
"""
import importlib
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(ROOT / 'tests/reference'))
import perplexity  # noqa: E402
import quality  # noqa: E402

peers = importlib.import_module('quantize-peers')


def check_scales(scratch):
    codes = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    for kind, raw in (('F32', np.array([0.5], '<f4').tobytes()),
                      ('F16', np.array([0.5], '<f2').tobytes()), ('BF16', b'\x00\x3f')):
        for shape in ([], [1], [3, 1], [3]):
            data = raw * (3 if 3 in shape else 1)
            header = json.dumps({
                'a.weight': {'dtype': 'I8', 'shape': [3, 4], 'data_offsets': [0, 12]},
                'a.weight_scale': {'dtype': kind, 'shape': shape,
                                   'data_offsets': [12, 12 + len(data)]}}).encode()
            pathlib.Path(scratch, 'model.safetensors').write_bytes(
                struct.pack('<Q', len(header)) + header + codes.tobytes() + data)
            found = perplexity.read_model(scratch)['a.weight']
            assert np.array_equal(found, codes * 0.5), (kind, shape, found)


def check_comparison(scratch, model, ids):
    int8 = pathlib.Path(scratch, 'int8')
    subprocess.run([sys.executable, ROOT / 'tests/reference/quantize-int8.py', model, int8],
                   check=True)
    original = perplexity.Model(model)
    base, found = quality.compare(original, {'same': original, 'int8': perplexity.Model(int8)},
                                  np.fromfile(ids, '<u2').astype(np.int64), 2, 512)
    same = found['same']
    assert same['ratio'] == 1 and same['standard_error'] == 0 and same['agreement'] == 1, same
    assert abs(same['kl']) < 1e-6 and same['accuracy'] == base['accuracy'], same
    assert 0.9 < found['int8']['agreement'] < 1 and 0 < found['int8']['kl'] < 0.01, found
    for name, figures in ((model, base), (int8, found['int8'])):
        out = subprocess.run([sys.executable, ROOT / 'tests/reference/perplexity.py', name, ids,
                              '2', '512'], check=True, capture_output=True, text=True).stdout
        assert abs(float(out.split()[-1]) / figures['perplexity'] - 1) < 1e-5, (out, figures)


def check_peers():
    random = np.random.default_rng(1)
    w = random.normal(size=(8, 256)).astype(np.float32)
    out = peers.q4_0(w)
    for row in range(8):
        block = w[row, :32]
        most = max(block, key=abs)
        for x, y in zip(block, out[row, :32]):
            code = min(15, int(np.float32(x * (np.float32(-8) / most)) + np.float32(8.5)))
            assert abs(y - (code - 8) * np.float32(np.float16(most / -8))) < 1e-6, (x, y)
    rtn = peers.rtn(w, 4, 128)
    assert len(np.unique(rtn[0, :128])) <= 16
    assert np.allclose(peers.gptq(w, np.eye(256, dtype=np.float32), 4, 128, False), rtn, atol=1e-6)
    x = random.normal(size=(4096, 256)) @ random.normal(size=(256, 256)) / 16 + 0.5
    covariance = (x.T @ x / len(x)).astype(np.float32)
    worst = peers.output_error(rtn - w, covariance)
    scale = peers.awq_scale([w], covariance, 4, 128)
    for name, other in (('gptq', peers.gptq(w, covariance, 4, 128, False)),
                        ('ordered', peers.gptq(w, covariance, 4, 128, True)),
                        ('awq', peers.awq(w, scale, covariance, 4, 128))):
        error = peers.output_error(other - w, covariance)
        print(f'{name}: {error / worst:.3f} of the error of rounding to nearest')
        assert error < 0.95 * worst, name
    codes = np.repeat([0, 1, 2, 3], [128, 64, 32, 32])
    assert peers.entropy(codes) == 256 * 1.75
    most = np.linspace(1, 2, 256, dtype=np.float32)
    codes, out = peers.paper(w, most, 1.0, 0.5, 'before')
    assert (codes == 0).sum() >= 8 * 128 and np.abs(codes).max() == 127
    kept = out != 0
    assert np.abs(out - w)[kept].max() <= np.abs(w * most).max() / 127 / 2 * 1.01


def main():
    model, ids = ROOT / 'examples/models/tiny-llama', ROOT / 'tests/data/valid-books-4097.u16'
    with tempfile.TemporaryDirectory() as scratch:
        check_scales(scratch)
        check_comparison(scratch, model, ids)
    check_peers()


if __name__ == '__main__':
    main()
