#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program of the README prints the numbers that numpy reads from the source.

usage: hello.py HELLO DCMEM MODEL_DIR
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy


def first_row(path, name, n):
    """The first n numbers of a BF16 or F32 tensor, by the safetensors format."""
    with open(path, "rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(n_header))[name]
        file.seek(8 + n_header + entry["data_offsets"][0])
        if entry["dtype"] == "BF16":
            words = numpy.frombuffer(file.read(2 * n), "<u2").astype("<u4") << 16
            return words.view("<f4")
        return numpy.frombuffer(file.read(4 * n), {"F32": "<f4"}[entry["dtype"]])


def main():
    hello, tool, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        container = os.path.join(directory, "model.dcmem")
        subprocess.run([tool, "pack", model, "-o", container], check=True,
                       stdin=subprocess.DEVNULL)
        for name in ("model.embed_tokens.weight", "model.norm.weight"):
            out = subprocess.run([hello, container, name], check=True, capture_output=True,
                                 text=True).stdout.splitlines()
            expected = first_row(os.path.join(model, "model.safetensors"), name, 8)
            got = numpy.array(out[1:], dtype="<f4")
            print(out[0], got, expected)
            if not numpy.array_equal(got, expected):
                return 1
        wrong = subprocess.run([hello, container, "no.such.tensor"], check=False,
                               capture_output=True, text=True)
        print(wrong.stderr, end="")
        return 0 if wrong.returncode == 1 and wrong.stderr.count("\n") == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
