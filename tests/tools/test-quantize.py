#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""dcmem pack --quantize, export, and what they refuse; perplexities by tests/reference/perplexity.py.

usage: test-quantize.py DCMEM LM SOURCE_ROOT
"""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

import numpy as np

SLOW = os.environ.get('DCMEM_TEST_BUILD', 'plain') in ('asan', 'tsan')
WINDOWS = '4' if SLOW else '18'


def run(*command, code=0):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode != code:
        sys.exit(f'{" ".join(map(str, command))}: exit {result.returncode}, not {code}\n'
                 f'{result.stdout[-2000:]}{result.stderr[-2000:]}')
    return result.stdout if code == 0 else result.stderr


def refuse(what, *command, says, code=1):
    text = run(*command, code=code)
    for part in says:
        if part not in text:
            sys.exit(f'{what}: {text!r} does not say {part!r}')


def read(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8:8 + size]), data[8 + size:]


def write(path, head, body):
    text = json.dumps(head).encode()
    pathlib.Path(path).write_bytes(struct.pack('<Q', len(text)) + text + body)


def array(path, name):
    head, body = read(path)
    entry = head[name]
    start, end = entry['data_offsets']
    raw = body[start:end]
    if entry['dtype'] == 'BF16':
        values = (np.frombuffer(raw, '<u2').astype('<u4') << 16).view('<f4')
    else:
        values = np.frombuffer(raw, {'I8': 'i1', 'F32': '<f4'}[entry['dtype']])
    return values.reshape(entry['shape'])


def last_value(text):
    return float(text.splitlines()[-1].split()[1])


class Case:
    def __init__(self, dcmem, lm, root, scratch):
        self.dcmem, self.lm, self.root = dcmem, lm, pathlib.Path(root)
        self.scratch = pathlib.Path(scratch)
        self.model = self.root / 'examples/models/tiny-llama'
        self.ids = self.root / 'tests/data/valid-books-4097.u16'

    def pack(self, source, name, *options):
        """The report, as JSON."""
        out = self.scratch / name
        return json.loads(run(self.dcmem, 'pack', source, '-o', out, '--quantize', '--json',
                              *options))['quantization']

    def perplexity(self, directory):
        return last_value(run(sys.executable, self.root / 'tests/reference/perplexity.py', directory,
                              self.ids, 1, 512))

    def lm_perplexity(self, model, *options):
        return last_value(run(self.lm, 'perplexity', '--model', model, '--ids', self.ids,
                              '--windows', 1, '--length', 512, *options))


def check_chain(case):
    """Packed, exported in each form, read by lm and by numpy: one and the same model."""
    report = case.pack(case.model, 'text.dcmem', '--bits', '3.64', '--embeddings', 'lossless',
                       '--calibration-ids', case.ids, '--calibration-windows', WINDOWS)
    # The ids are few here: 7 windows of text, none of them another domain.
    assert 3.6 < report['bits_per_linear_weight'] <= 3.641, report
    assert report['held_back']['windows'] >= 1
    assert report['calibration'] == 'text'
    packed = case.scratch / 'text.dcmem'
    for dtype in ('int8', 'f32', 'bf16'):
        run(case.dcmem, 'export', packed, '-o', case.scratch / dtype, '--dtype', dtype)
    name = 'model.layers.3.mlp.down_proj.weight'
    codes = array(case.scratch / 'int8/model.safetensors', name)
    scales = array(case.scratch / 'int8/model.safetensors', name + '_scale')
    exact = array(case.scratch / 'f32/model.safetensors', name)
    assert codes.dtype == np.int8 and scales.shape == (codes.shape[0], 1)
    assert np.array_equal(exact, codes.astype(np.float32) * scales)
    near = array(case.scratch / 'bf16/model.safetensors', name)
    assert np.all(np.abs(near - exact) <= np.abs(exact) / 256)
    source = array(case.model / 'model.safetensors', name)
    assert np.sqrt(((exact - source) ** 2).mean()) < 0.25 * np.sqrt((source ** 2).mean())
    for untouched in ('model.embed_tokens.weight', 'model.norm.weight'):
        assert np.array_equal(array(case.scratch / 'bf16/model.safetensors', untouched),
                              array(case.model / 'model.safetensors', untouched))
    head, _ = read(case.scratch / 'bf16/model.safetensors')
    assert not [n for n in head if n.endswith('_scale')]
    config = json.loads((case.scratch / 'int8/config.json').read_text())
    assert config['quantization_config']['quant_method'] == 'compressed-tensors'
    assert 'quantization_config' not in json.loads((case.scratch / 'bf16/config.json').read_text())
    expected = case.perplexity(case.scratch / 'f32')
    assert abs(case.perplexity(case.scratch / 'int8') / expected - 1) < 1e-5
    assert abs(case.lm_perplexity(packed) / expected - 1) < 1e-4
    assert abs(case.perplexity(case.scratch / 'bf16') / expected - 1) < 5e-3
    original = case.perplexity(case.model)
    print(f'perplexity {expected:.4f}, original {original:.4f}')
    assert original * 0.97 < expected < original * 1.05
    told = json.loads(run(case.dcmem, 'verify', packed, '--against', case.model, '--json'))
    away = np.sqrt(((exact - source) ** 2).sum() / (source.astype(np.float64) ** 2).sum())
    assert told['n_quantized'] == 42 and told['n_alike'] == 57, told
    assert 0.05 < told['relative_error'] <= told['worst_relative_error'] and \
        away <= told['worst_relative_error'] * 1.0001, (told, away)
    near = case.scratch / 'near'
    shutil.copytree(case.model, near)
    head, body = read(near / 'model.safetensors')
    damaged = bytearray(body)
    damaged[head['model.norm.weight']['data_offsets'][0]] ^= 1
    write(near / 'model.safetensors', head, bytes(damaged))
    refuse('a norm that differs', case.dcmem, 'verify', packed, '--against', near, code=3,
           says=['model.norm.weight', 'differs'])
    refuse('unpack', case.dcmem, 'unpack', packed, '-o', case.scratch / 'no', says=['export'])
    listed = json.loads(run(case.dcmem, 'ls', packed, '--json'))
    lossy = {t['name']: t['quantized'] for t in listed['tensors']}
    assert lossy[name] and lossy[name + '_scale'] and not lossy['model.norm.weight']


def check_ways(case):
    """Data-free, with statistics, with embeddings; the same input gives the same bytes."""
    one = case.pack(case.model, 'a.dcmem')
    case.pack(case.model, 'b.dcmem')
    assert (case.scratch / 'a.dcmem').read_bytes() == (case.scratch / 'b.dcmem').read_bytes()
    assert one['calibration'] == 'none' and one['bits_per_linear_weight'] <= 8 / 2.2 + 0.001
    stats = case.scratch / 'stats.safetensors'
    names = [t['name'][:-len('.weight')] for t in one['tensors'] if not t['embedding']]
    head, body = {}, b''
    for name in names:
        n = [t['columns'] for t in one['tensors'] if t['name'] == name + '.weight'][0]
        values = (np.arange(n) % 7 + 1).astype('<f4').tobytes()
        head[name] = {'dtype': 'F32', 'shape': [n], 'data_offsets': [len(body), len(body) + len(values)]}
        body += values
    write(stats, head, body)
    report = case.pack(case.model, 'c.dcmem', '--calibration-stats', stats, '--ratio', '2.6')
    assert report['calibration'] == 'statistics' and report['bits_per_linear_weight'] <= 8 / 2.6 + 1e-3
    head[names[0]]['shape'] = [1]
    head[names[0]]['data_offsets'] = [0, 4]
    short = {names[0]: head[names[0]]}
    write(stats, short, body[:4])
    refuse('misshapen statistics', case.dcmem, 'pack', case.model, '-o', case.scratch / 'x',
           '--quantize', '--calibration-stats', stats, says=[names[0], 'calibrate'])
    page = case.scratch / 'page.html'
    finer = case.pack(case.model, 'd.dcmem', '--report', page, '--embeddings', 'int8', '--bits', '5')
    tree = xml.etree.ElementTree.parse(page)  # the page is well-formed, and loads nothing
    assert len(tree.findall('.//svg')) >= 2 and 'mlp.down_proj' in page.read_text()
    assert not [e for e in tree.iter() if 'src' in e.attrib or 'href' in e.attrib]
    embedding = [t for t in finer['tensors'] if t['embedding']]
    assert len(embedding) == 1 and 6 < embedding[0]['bits_per_weight'] < 7.9
    assert not list(case.scratch.glob('*.quantizing-*'))


def check_refusals(case):
    pack = [case.dcmem, 'pack', case.model, '-o', case.scratch / 'x', '--quantize']
    refuse('two targets', *pack, '--bits', '3', '--ratio', '2', '--max-loss', '0.1', says=['one target'],
           code=2)
    refuse('loss without text', *pack, '--max-loss', '0.1', says=['--calibration-ids'], code=2)
    refuse('options alone', *pack[:-1], '--bits', '3', says=['--quantize'], code=2)
    ids = case.scratch / 'ids.u16'
    ids.write_bytes(b'\xff\xff' * 4000)
    refuse('ids of another tokenizer', *pack, '--calibration-ids', ids, says=['65535', '12288'])
    ids.write_bytes(b'\x00\x00' * 40)
    refuse('a short text', *pack, '--calibration-ids', ids, says=['40 ids'])
    refuse('no text', *pack, '--calibration-ids', case.scratch / 'none', says=['none'])
    broken = case.scratch / 'broken'
    shutil.copytree(case.model, broken, ignore=shutil.ignore_patterns('tokenizer.json'))
    head, body = read(broken / 'model.safetensors')
    name = 'model.layers.2.mlp.up_proj.weight'
    start = head[name]['data_offsets'][0]
    for bad in (0x7f80, 0x7fc0):  # infinity, NaN
        damaged = bytearray(body)
        damaged[start + 20:start + 22] = struct.pack('<H', bad)
        write(broken / 'model.safetensors', head, bytes(damaged))
        refuse('a weight that is no number', case.dcmem, 'pack', broken, '-o', case.scratch / 'x',
               '--quantize', says=[name, 'row 0, column 10'])
    assert not (case.scratch / 'x').exists() and not list(case.scratch.glob('*.quantizing-*'))


def check_odd_models(case):
    """Rows and columns of zeros; an architecture that is not known; shards."""
    odd = case.scratch / 'odd'
    odd.mkdir()
    zeros = np.random.default_rng(5).normal(0, 0.02, (64, 48)).astype('<f4')
    zeros[7] = 0
    zeros[:, 11] = 0
    other = np.zeros((32, 32), '<f4')
    bodies = [zeros.tobytes(), other.tobytes()]
    names = ['block.0.linear.weight', 'block.1.linear.weight']
    files = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    for file, name, body, shape in zip(files, names, bodies, ([64, 48], [32, 32])):
        write(odd / file, {name: {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, len(body)]}}, body)
    (odd / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': dict(zip(names, files))}))
    (odd / 'config.json').write_text(json.dumps({'architectures': ['SomethingElse']}))
    refuse('fewer bits than scales and tables take', case.dcmem, 'pack', odd, '-o', case.scratch / 'x',
           '--quantize', '--bits', '1', says=['cannot be reached'])
    report = case.pack(odd, 'odd.dcmem', '--bits', '6', '--calibration-ids', case.ids)
    assert 'SomethingElse' in report['note'] and report['calibration'] == 'none'
    run(case.dcmem, 'export', case.scratch / 'odd.dcmem', '-o', case.scratch / 'odd-out', '--dtype', 'f32')
    back = array(case.scratch / 'odd-out' / files[0], names[0])
    assert np.all(back[7] == 0) and np.all(back[:, 11] == 0) and np.abs(back - zeros).max() < 0.01
    assert not array(case.scratch / 'odd-out' / files[1], names[1]).any()
    index = json.loads((case.scratch / 'odd-out/model.safetensors.index.json').read_text())
    assert index['weight_map'] == dict(zip(names, files))
    run(case.dcmem, 'export', case.scratch / 'odd.dcmem', '-o', case.scratch / 'odd-8', '--dtype', 'int8')
    index = json.loads((case.scratch / 'odd-8/model.safetensors.index.json').read_text())
    assert index['weight_map'][names[1] + '_scale'] == files[1]


def main():
    with tempfile.TemporaryDirectory() as scratch:
        case = Case(*sys.argv[1:4], scratch)
        check_chain(case)
        check_ways(case)
        check_refusals(case)
        check_odd_models(case)


if __name__ == '__main__':
    main()
