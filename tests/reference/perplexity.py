#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a Hugging Face directory in float32 with numpy: the reference for examples/lm.

usage: perplexity.py DIRECTORY IDS.u16 [WINDOWS [LENGTH]]

Llama and OPT (LayerNorm before); weights BF16, F16, F32, or I8 with NAME_scale (compressed-tensors).
Window i feeds ids [i * LENGTH, (i + 1) * LENGTH) and predicts the id after each. The last line is
"perplexity X".
"""
import json
import pathlib
import struct
import sys

import numpy as np


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack('<Q', data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == '__metadata__':
            continue
        start, end = entry['data_offsets']
        raw = data[8 + size + start:8 + size + end]
        kind = entry['dtype']
        if kind == 'BF16':
            array = (np.frombuffer(raw, '<u2').astype('<u4') << 16).view('<f4')
        else:
            array = np.frombuffer(raw, {'F16': '<f2', 'F32': '<f4', 'I8': 'i1'}[kind])
        tensors[name] = array.astype(np.float32).reshape(entry['shape'])
    return tensors


def read_model(directory):
    tensors = {}
    for path in sorted(pathlib.Path(directory).glob('model*.safetensors')):
        tensors.update(read_safetensors(path))
    for name in [n for n in tensors if n.endswith('.weight_scale')]:
        weight = name[:-len('_scale')]
        tensors[weight] = tensors[weight] * tensors[name].reshape(-1, 1)  # [rows, 1], [1] or []
    return tensors


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * weight


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + np.float32(1e-5)) * weight + bias


def rope(x, theta):
    """x: [positions, heads, head_dim]"""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[0])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = (f(angles).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v):
    """[positions, heads, head_dim] each, causal; returns [positions, heads * head_dim]."""
    n = q.shape[0]
    scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) / np.float32(np.sqrt(q.shape[-1]))
    scores += np.triu(np.full((n, n), -np.inf, np.float32), 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    return (scores @ v.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(n, -1)


def linear_of(t, observe):
    """linear(name, h): h through the layer `name`, after observe(name, h) where there is one."""
    def linear(name, h):
        if observe:
            observe(name, h)
        out = h @ t[name + '.weight'].T
        return out + t[name + '.bias'] if name + '.bias' in t else out
    return linear


def llama(config, t, ids, observe=None):
    heads, kv_heads = config['num_attention_heads'], config.get('num_key_value_heads')
    kv_heads = kv_heads or heads
    width = config.get('head_dim') or config['hidden_size'] // heads
    theta = (config.get('rope_parameters') or config).get('rope_theta', 10000.0)
    eps, n = config['rms_norm_eps'], len(ids)
    linear = linear_of(t, observe)
    x = t['model.embed_tokens.weight'][ids]
    for i in range(config['num_hidden_layers']):
        p = f'model.layers.{i}.'
        h = rms_norm(x, t[p + 'input_layernorm.weight'], eps)
        q = rope(linear(p + 'self_attn.q_proj', h).reshape(n, heads, width), theta)
        k = rope(linear(p + 'self_attn.k_proj', h).reshape(n, kv_heads, width), theta)
        v = linear(p + 'self_attn.v_proj', h).reshape(n, kv_heads, width)
        k, v = (np.repeat(a, heads // kv_heads, 1) for a in (k, v))
        x = x + linear(p + 'self_attn.o_proj', attend(q, k, v))
        h = rms_norm(x, t[p + 'post_attention_layernorm.weight'], eps)
        gate = linear(p + 'mlp.gate_proj', h)
        up = linear(p + 'mlp.up_proj', h)
        x = x + linear(p + 'mlp.down_proj', gate / (1 + np.exp(-gate)) * up)
    return rms_norm(x, t['model.norm.weight'], eps)


def opt(config, t, ids, observe=None):
    assert config.get('do_layer_norm_before', True)
    heads, n = config['num_attention_heads'], len(ids)
    linear = linear_of(t, observe)
    p = 'model.decoder.'
    x = t[p + 'embed_tokens.weight'][ids] + t[p + 'embed_positions.weight'][2:2 + n]

    def norm(name, h):
        return layer_norm(h, t[name + '.weight'], t[name + '.bias'])

    for i in range(config['num_hidden_layers']):
        p = f'model.decoder.layers.{i}.'
        h = norm(p + 'self_attn_layer_norm', x)
        q, k, v = (linear(f'{p}self_attn.{c}_proj', h).reshape(n, heads, -1) for c in 'qkv')
        x = x + linear(p + 'self_attn.out_proj', attend(q, k, v))
        h = np.maximum(linear(p + 'fc1', norm(p + 'final_layer_norm', x)), 0)
        x = x + linear(p + 'fc2', h)
    return norm('model.decoder.final_layer_norm', x)


class Model:
    """A directory, read; hidden() and logits() of ids, observe(name, input) before each layer."""

    def __init__(self, directory):
        self.config = json.loads(pathlib.Path(directory, 'config.json').read_text())
        self.tensors = read_model(directory)
        self.is_llama = self.config['architectures'] == ['LlamaForCausalLM']
        embedding = self.tensors['model.embed_tokens.weight' if self.is_llama else
                                 'model.decoder.embed_tokens.weight']
        self.output = self.tensors.get('lm_head.weight', embedding)

    def hidden(self, ids, observe=None):
        return (llama if self.is_llama else opt)(self.config, self.tensors, ids, observe)

    def logits(self, ids, observe=None):
        hidden = self.hidden(ids, observe)
        if observe:
            observe('lm_head', hidden)
        return hidden @ self.output.T


def main():
    directory, ids_path = sys.argv[1:3]
    windows, length = (int(a) for a in (sys.argv[3:] + ['40', '512'][len(sys.argv) - 3:])[:2])
    model = Model(directory)
    ids = np.fromfile(ids_path, '<u2').astype(np.int64)
    losses = []
    for i in range(windows):
        window = ids[i * length:(i + 1) * length + 1]
        logits = model.logits(window[:-1]).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-logs[np.arange(length), window[1:]].mean())
    print(f'nll {np.mean(losses):.6f}')
    print(f'perplexity {np.exp(np.mean(losses)):.4f}')


if __name__ == '__main__':
    main()
