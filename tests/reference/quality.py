#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How much models differ from an original, in float32 with numpy; perplexity.py's forward pass.

usage: quality.py ORIGINAL_DIR OTHER_DIR... IDS.u16 [--windows N] [--length N] [--json FILE]

Windows as in perplexity.py. Of each other model: perplexity over the original's, paired by window,
with its standard error; top-1 accuracy of the next token; top-1 agreement with the original; mean
KL(original || other) in nats a token.
"""
import argparse
import json
import pathlib

import numpy as np

import perplexity


def log_softmax_parts(logits):
    """z = logits - max, in place; exp(z); log(sum(exp(z)))."""
    logits -= logits.max(-1, keepdims=True)
    e = np.exp(logits)
    return logits, e, np.log(e.sum(-1, dtype=np.float64))


def compare(original, others, ids, windows, length):
    """others: name -> Model. Returns the original's figures and name -> figures."""
    if len(ids) < windows * length + 1:
        raise SystemExit(f'{len(ids)} ids; the windows need {windows * length + 1}')
    base, right = [], []
    rows = {name: [] for name in others}  # of a window: nll, accuracy, agreement, KL
    for i in range(windows):
        window = ids[i * length:(i + 1) * length + 1]
        tokens, following = window[:-1], window[1:]
        at = np.arange(length)
        z, p, norm = log_softmax_parts(original.logits(tokens))
        p /= np.exp(norm).astype(np.float32)[:, None]
        first = z.argmax(-1)
        base.append((norm - z[at, following]).mean())
        right.append((first == following).mean())
        for name, model in others.items():
            y, _, other_norm = log_softmax_parts(model.logits(tokens))
            best, nll = y.argmax(-1), other_norm - y[at, following]
            kl = np.einsum('ij,ij->i', p, np.subtract(z, y, out=y)) - norm + other_norm
            rows[name].append((nll.mean(), (best == following).mean(), (best == first).mean(),
                               kl.mean()))
    base = np.array(base)
    figures = {}
    for name, values in rows.items():
        nll, accuracy, agreement, kl = np.array(values, np.float64).T
        ratio = np.exp((nll - base).mean())
        spread = (nll - base).std(ddof=1) / np.sqrt(windows) if windows > 1 else 0.0
        figures[name] = {'perplexity': np.exp(nll.mean()), 'ratio': ratio,
                         'standard_error': ratio * spread, 'accuracy': accuracy.mean(),
                         'agreement': agreement.mean(), 'kl': kl.mean()}
    return {'perplexity': np.exp(base.mean()), 'accuracy': np.mean(right)}, figures


def main():
    parser = argparse.ArgumentParser(description='How much models differ from an original.')
    parser.add_argument('original')
    parser.add_argument('others', nargs='+')
    parser.add_argument('ids')
    parser.add_argument('--windows', type=int, default=120)
    parser.add_argument('--length', type=int, default=512)
    parser.add_argument('--json')
    options = parser.parse_args()
    ids = np.fromfile(options.ids, '<u2').astype(np.int64)
    base, figures = compare(perplexity.Model(options.original),
                            {name: perplexity.Model(name) for name in options.others}, ids,
                            options.windows, options.length)
    print(f'original: perplexity {base["perplexity"]:.4f}, accuracy {base["accuracy"]:.4f}')
    for name, f in figures.items():
        print(f'{name}: perplexity {f["perplexity"]:.4f}, ratio {f["ratio"]:.5f} +- '
              f'{f["standard_error"]:.5f}, accuracy {f["accuracy"]:.4f}, agreement '
              f'{f["agreement"]:.4f}, KL {f["kl"]:.5f}')
    if options.json:
        text = json.dumps({'ids': options.ids, 'windows': options.windows,
                           'length': options.length, 'original': base, 'others': figures},
                          indent=2, default=float)
        pathlib.Path(options.json).write_text(text + '\n')


if __name__ == '__main__':
    main()
