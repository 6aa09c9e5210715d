#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What else there is to quantize linear layers with: the rows that dcmem's own are compared with.

usage: quantize-peers.py MODEL_DIR --stats STATS.safetensors [--method NAME]... [-o OUTPUT_DIR]
                         [--ids IDS.u16] [--windows N] [--length N] [--json FILE]

STATS is what `lm calibrate --covariance` wrote. With -o each method becomes the Hugging Face
directory OUTPUT_DIR/NAME, dequantized, linear layers in F32, all else as it was. With --ids each is
measured by quality.py. Bits a linear weight are printed for all: nominal ones, or the order-0
entropy of the codes of each tensor, in both cases with the scales of weights; scales of inputs are
not counted, since they fold into the layers before.

  rtnBgG       round to nearest, B bits, groups of G with a scale and a minimum in F16
  q4_0         blocks of 32, 4 bits, a scale in F16
  gptqBgG      GPTQ (arXiv 2210.17323), damping 0.01, in order; -order: by falling mean square, with
               the groups' scales fixed before. Inputs of the original model, not of the quantized one
  awqBgG       AWQ (arXiv 2306.00978): 20 exponents of the root mean square of inputs, 20 clips of
               each group, both by the error of the layer's output. q, k, v and gate, up share one
  int8-tensor, int8-channel   symmetric, a scale in F32, entropy-coded
  uniform-K    one step, K times the tensor's rms, entropy-coded; -sA: inputs scaled by max|X|^A
  paper-aA     arXiv 2502.15443: weights scaled by max|X|^A, INT8 per tensor, entropy-coded;
  paper-aA-pP-before, -after  and P % of each row zeroed, those with the least |w| max|X|, chosen
               before quantization, or among codes after it; -channels: whole input channels, by max|X|
"""
import argparse
import json
import pathlib
import re
import shutil
import struct

import numpy as np

import perplexity
import quality


def entropy(codes):
    """Bits of all of them."""
    codes = codes.astype(np.int64).ravel()
    counts = np.bincount(codes - codes.min())
    counts = counts[counts > 0]
    return -(counts * np.log2(counts / codes.size)).sum()


def half(x):
    return x.astype(np.float16).astype(np.float32)


def group_range(w, bits, clip=1.0):
    """Scale and minimum of groups in the last axis, as stored in F16."""
    low, high = w.min(-1, keepdims=True) * clip, w.max(-1, keepdims=True) * clip
    scale = half((high - low) / (2 ** bits - 1))
    return np.where(scale == 0, np.float32(1), scale), half(low)


def group_round(w, scale, low, bits):
    return np.clip(np.rint((w - low) / scale), 0, 2 ** bits - 1) * scale + low


def group_bits(w, bits, size):
    n_groups = -(-w.shape[1] // size)
    return w.size * bits + w.shape[0] * n_groups * 32


def rtn(w, bits, size):
    out = np.empty_like(w)
    for at in range(0, w.shape[1], size):
        group = w[:, at:at + size]
        out[:, at:at + size] = group_round(group, *group_range(group, bits), bits)
    return out


def q4_0(w):
    blocks = w.reshape(-1, 32)
    most = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = most / -8
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.clip(np.floor(blocks * inverse + 8.5), 0, 15)
    return ((codes - 8) * half(scale)).reshape(w.shape)


def gptq(w, covariance, bits, size, ordered):
    n = w.shape[1]
    h = covariance.astype(np.float64)
    dead = np.diag(h) <= 0
    h[dead, dead] = 1
    order = np.argsort(-np.diag(h), kind='stable') if ordered else np.arange(n)
    h = h[order][:, order]
    h += 0.01 * np.diag(h).mean() * np.eye(n)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)
    rest, out = w[:, order].copy(), np.empty_like(w)
    fixed = [group_range(w[:, at:at + size], bits) for at in range(0, n, size)]
    for start in range(0, n, 128):
        end = min(start + 128, n)
        errors = np.empty((w.shape[0], end - start), np.float32)
        for i in range(start, end):
            if ordered:
                scale, low = fixed[order[i] // size]
            elif i % size == 0:
                # columns of this group that lie beyond the block have not had its errors yet
                assert size <= 128 and 128 % size == 0
                scale, low = group_range(rest[:, i:min(i + size, n)], bits)
            column = group_round(rest[:, i:i + 1], scale, low, bits)[:, 0]
            out[:, order[i]] = column
            error = (rest[:, i] - column) / upper[i, i]
            rest[:, i + 1:end] -= np.outer(error, upper[i, i + 1:end])
            errors[:, i - start] = error
        rest[:, end:] -= errors @ upper[start:end, end:]
    return out


def output_error(difference, covariance):
    return np.einsum('ij,ij->', difference @ covariance, difference)


def awq_scale(ws, covariance, bits, size):
    """The input scale that serves all of `ws` best."""
    rms = np.sqrt(np.maximum(np.diag(covariance), 1e-12)).astype(np.float32)
    best = None
    for step in range(20):
        s = rms ** np.float32(step / 20)
        s /= np.sqrt(s.max() * s.min())
        error = sum(output_error(rtn(w * s, bits, size) / s - w, covariance) for w in ws)
        if best is None or error < best[0]:
            best = error, s
    return best[1]


def awq(w, s, covariance, bits, size):
    out = np.empty_like(w)
    for at in range(0, w.shape[1], size):
        part = slice(at, at + size)
        group, c = w[:, part] * s[part], covariance[part, part]
        least = np.full((w.shape[0], 1), np.inf)
        chosen = np.empty_like(group)
        for step in range(20):
            scale, low = group_range(group, bits, np.float32(1 - step / 40))
            candidate = group_round(group, scale, low, bits)
            difference = (candidate - group) / s[part]
            error = np.einsum('ij,ij->i', difference @ c, difference)[:, None]
            chosen = np.where(error < least, candidate, chosen)
            least = np.minimum(error, least)
        out[:, part] = chosen / s[part]
    return out


def int8(w, per_row):
    scale = np.abs(w).max(1 if per_row else None, keepdims=True) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.rint(w / scale), scale


def input_scale(most, alpha):
    """max|X|^alpha; what was never seen counts as the least that was. Its mean is of no account."""
    most = np.where(most > 0, most, most[most > 0].min() if (most > 0).any() else 1)
    return (most ** np.float32(alpha)).astype(np.float32)


def mask_least(score, share):
    """True for that share of each row."""
    n = int(score.shape[1] * share)
    mask = np.zeros(score.shape, bool)
    if n:
        np.put_along_axis(mask, np.argpartition(score, n - 1, 1)[:, :n], True, 1)
    return mask


def paper(w, most, alpha, share, when):
    """codes and what they stand for"""
    s = input_scale(most, alpha)
    if when == 'before':
        w = np.where(mask_least(np.abs(w) * most, share), 0, w)
    elif when == 'channels':
        w = np.where(mask_least(most[None, :], share), 0, w)
    codes, scale = int8(w * s, False)
    if when == 'after':
        codes = np.where(mask_least(np.abs(codes) * (most / s), share), 0, codes)
    return codes, (codes * scale / s).astype(np.float32)


DEFAULTS = ['rtn4g32', 'rtn4g128', 'rtn3g32', 'q4_0', 'gptq4g128', 'gptq4g128-order', 'awq4g128',
            'int8-channel', 'int8-tensor', 'uniform-0.2', 'uniform-0.3', 'uniform-0.5',
            'uniform-0.3-s0.5', 'paper-a0.5', 'paper-a1.0', 'paper-a1.5', 'paper-a1.0-p30-before',
            'paper-a1.0-p30-after', 'paper-a1.0-p30-channels', 'paper-a1.0-p50-before',
            'paper-a1.0-p50-after']


class Peers:
    def __init__(self, model, stats):
        self.model, self.stats = model, stats
        self.names = [n[:-len('.weight')] for n in model.tensors
                      if n.endswith('.weight') and re.search(r'(_proj|\.fc[12])\.weight$', n)]
        self.cache = {}

    def siblings(self, name):
        for group in (('q_proj', 'k_proj', 'v_proj'), ('gate_proj', 'up_proj')):
            if name.rsplit('.', 1)[1] in group:
                return [name.rsplit('.', 1)[0] + '.' + g for g in group]
        return [name]

    def quantize(self, method, name):
        """dequantized weights, bits of all, codes or None"""
        w, most = self.model.tensors[name + '.weight'], self.stats[name]
        if method == 'q4_0':
            return q4_0(w), w.size * 4.5, None
        if method.startswith('int8-'):
            codes, scale = int8(w, method == 'int8-channel')
            return codes * scale, entropy(codes) + scale.size * 32, codes
        found = re.fullmatch(r'(rtn|gptq|awq)(\d)g(\d+)(-order)?', method)
        if found:
            bits, size = int(found[2]), int(found[3])
            n_bits = group_bits(w, bits, size)
            if found[1] == 'rtn':
                return rtn(w, bits, size), n_bits, None
            covariance = self.stats[name + '.covariance']
            if found[1] == 'gptq':
                return gptq(w, covariance, bits, size, bool(found[4])), n_bits, None
            group = self.siblings(name)
            key = method, group[0]
            if key not in self.cache:
                self.cache[key] = awq_scale([self.model.tensors[n + '.weight'] for n in group],
                                            covariance, bits, size)
            return awq(w, self.cache[key], covariance, bits, size), n_bits, None
        found = re.fullmatch(r'uniform-([\d.]+)(?:-s([\d.]+))?', method)
        if found:
            s = input_scale(most, float(found[2] or 0))
            scaled = w * s
            step = np.float32(float(found[1]) * np.sqrt((scaled ** 2).mean()))
            codes = np.rint(scaled / step)
            return codes * step / s, entropy(codes) + 32, codes
        found = re.fullmatch(r'paper-a([\d.]+)(?:-p(\d+)-(before|after|channels))?', method)
        if found:
            codes, out = paper(w, most, float(found[1]), int(found[2] or 0) / 100, found[3])
            return out, entropy(codes) + 32, codes
        raise SystemExit(f'no method is called {method}')

    def run(self, method):
        """name -> dequantized weights, bits a weight, share of codes of -1, 0, 1 or None"""
        tensors, bits, n, near, coded = {}, 0.0, 0, 0, False
        for name in self.names:
            out, n_bits, codes = self.quantize(method, name)
            tensors[name + '.weight'] = np.ascontiguousarray(out, np.float32)
            bits += n_bits
            n += out.size
            if codes is not None:
                coded = True
                near += int((np.abs(codes) <= 1).sum())
        return tensors, bits / n, near / n if coded else None


def write_directory(source, destination, replaced):
    destination.mkdir(parents=True, exist_ok=True)
    for path in source.glob('*.json'):
        shutil.copyfile(path, destination / path.name)
    for path in sorted(source.glob('model*.safetensors')):
        data = path.read_bytes()
        size = struct.unpack('<Q', data[:8])[0]
        header, body, place = {}, [], 0
        for name, entry in json.loads(data[8:8 + size]).items():
            if name == '__metadata__':
                header[name] = entry
                continue
            start, end = entry['data_offsets']
            raw, kind = data[8 + size + start:8 + size + end], entry['dtype']
            if name in replaced:
                raw, kind = replaced[name].astype('<f4').tobytes(), 'F32'
            header[name] = {'dtype': kind, 'shape': entry['shape'],
                            'data_offsets': [place, place + len(raw)]}
            body.append(raw)
            place += len(raw)
        text = json.dumps(header).encode()
        text += b' ' * (-len(text) % 8)
        (destination / path.name).write_bytes(struct.pack('<Q', len(text)) + text + b''.join(body))


def main():
    parser = argparse.ArgumentParser(description='Quantizes linear layers as others do.')
    parser.add_argument('model')
    parser.add_argument('--stats', required=True)
    parser.add_argument('--method', action='append')
    parser.add_argument('-o', '--output')
    parser.add_argument('--ids', action='append', default=[])
    parser.add_argument('--windows', type=int, default=120)
    parser.add_argument('--length', type=int, default=512)
    parser.add_argument('--json')
    options = parser.parse_args()
    model = perplexity.Model(options.model)
    peers = Peers(model, perplexity.read_safetensors(options.stats))
    rows, others = {}, {}
    for method in options.method or DEFAULTS:
        tensors, bits, near = peers.run(method)
        rows[method] = {'bits': bits, 'near_zero': near}
        print(f'{method}: {bits:.3f} bits a weight' +
              (f', {near:.3f} of the codes are -1, 0 or 1' if near is not None else ''), flush=True)
        if options.output:
            write_directory(pathlib.Path(options.model), pathlib.Path(options.output, method),
                            tensors)
        if options.ids:
            others[method] = perplexity.Model(options.model)
            others[method].tensors = {**model.tensors, **tensors}
    peers.cache.clear()
    for path in options.ids:
        ids = np.fromfile(path, '<u2').astype(np.int64)
        base, figures = quality.compare(model, others, ids, options.windows, options.length)
        key = pathlib.Path(path).stem
        print(f'{key}: original perplexity {base["perplexity"]:.4f}, accuracy '
              f'{base["accuracy"]:.4f}')
        for method, f in figures.items():
            rows[method][key] = f
            print(f'{method}: {rows[method]["bits"]:.3f} bits, x {f["ratio"]:.5f} +- '
                  f'{f["standard_error"]:.5f}, accuracy {f["accuracy"]:.4f}, agreement '
                  f'{f["agreement"]:.4f}, KL {f["kl"]:.5f}', flush=True)
    if options.json:
        text = json.dumps({'model': options.model, 'windows': options.windows,
                           'length': options.length, 'methods': rows}, indent=2, default=float)
        pathlib.Path(options.json).write_text(text + '\n')


if __name__ == '__main__':
    main()
