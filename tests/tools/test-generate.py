# SPDX-License-Identifier: Apache-2.0
"""`dcmem generate`: numpy reads back what it wrote. Names and shapes are those of Llama, weights have
the entropy that was asked for and rows of different scales, the same seed gives the same bytes (also
with other threads, also inside a container), and nonsense is refused."""
import hashlib
import json
import os
import struct
import sys
import tempfile

import numpy as np

import synthetic

TOOL = sys.argv[1]
DTYPES = {"I8": np.int8, "F32": np.dtype("<f4"), "BF16": np.dtype("<u2")}


def generate(*args, code=0):
    done = synthetic.run(TOOL, "generate", *args)
    assert done.returncode == code, (args, done)
    assert done.stderr == b"" if code == 0 else done.stderr.startswith(b"dcmem generate: "), done
    return done


def read(directory):
    """{name: array}, shards as the index names them; every byte belongs to one tensor."""
    found, index = {}, os.path.join(directory, "model.safetensors.index.json")
    placed = None
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            placed = json.load(file)["weight_map"]
    for name in sorted(n for n in os.listdir(directory) if n.endswith(".safetensors")):
        with open(os.path.join(directory, name), "rb") as file:
            raw = file.read()
        n = struct.unpack("<Q", raw[:8])[0]
        header, at = json.loads(raw[8:8 + n]), 0
        del header["__metadata__"]
        for tensor, what in header.items():
            begin, end = what["data_offsets"]
            assert begin == at and tensor not in found, (name, tensor)
            assert placed is None or placed[tensor] == name, (tensor, name)
            found[tensor] = np.frombuffer(raw[8 + n + begin:8 + n + end],
                                          DTYPES[what["dtype"]]).reshape(what["shape"])
            at = end
        assert 8 + n + at == len(raw), name
    assert placed is None or set(placed) == set(found)
    return found


def entropy(values):
    count = np.bincount(values.astype(np.int64).ravel() + 128).astype(float)
    p = count[count > 0] / count.sum()
    return -(p * np.log2(p)).sum()


def bf16(array):
    return (array.astype(np.uint32) << 16).view(np.float32)


def bits(work):
    for asked in (1, 2, 3.64, 5, 6.5, 7.5):
        path = os.path.join(work, f"bits{asked}")
        generate("tiny", "--bits", asked, "-o", path)
        tensors = read(path)
        codes = np.concatenate([t.ravel() for t in tensors.values() if t.dtype == np.int8])
        got = entropy(codes)
        assert abs(got / asked - 1) < 0.02, (asked, got)
        assert codes.min() >= -127 and abs(codes.mean()) < 0.02 * codes.std() + 0.01
        for name, tensor in tensors.items():
            if tensor.dtype == np.int8:
                assert name.endswith(".weight")
                scale = tensors[name + "_scale"]
                assert scale.shape == (len(tensor), 1) and scale.dtype == np.float32
                assert (scale > 0).all() and np.isfinite(scale).all()
                assert len(np.unique(tensor, axis=0)) == len(tensor), name
    # Without --bits: 6.5. Rows differ by about 17 %; tails are heavier than a Gaussian's.
    path = os.path.join(work, "plain")
    generate("tiny", "-o", path)
    tensors = read(path)
    weight = tensors["model.embed_tokens.weight"].astype(float)
    assert abs(entropy(weight) / 6.5 - 1) < 0.02
    spread = np.log(weight.std(axis=1)).std()
    assert 0.12 < spread < 0.25, spread
    kurtosis = (weight ** 4).mean() / (weight ** 2).mean() ** 2
    assert 3.5 < kurtosis < 6, kurtosis


def floating(work):
    path = os.path.join(work, "floating")
    generate("tiny", "--dtype", "bf16", "-o", path)
    tensors = read(path)
    assert {t.dtype for t in tensors.values()} == {np.dtype("<u2")}
    weight = bf16(tensors["model.layers.0.mlp.up_proj.weight"])
    assert np.isfinite(weight).all() and 0.015 < weight.std() < 0.022, weight.std()
    assert abs(weight.mean()) < 3e-4
    # Student's t with 8 degrees of freedom: 5 % lie beyond 2.306 (any table), rows at their scale.
    relative = weight / weight.std(axis=1, keepdims=True) * np.sqrt(8 / 6)
    assert 0.045 < (abs(relative) > 2.306).mean() < 0.055
    norm = bf16(tensors["model.norm.weight"])
    assert norm.shape == (192,) and 0.9 < norm.mean() < 1.1


def shapes(work):
    """Llama 3.2 1 B, one layer of 16: names and shapes as its published index has them."""
    path = os.path.join(work, "one.dcmem")
    generate("llama-1b", "--layers", 1, "--bits", 3.64, "-o", path)
    listed = json.loads(synthetic.run(TOOL, "ls", path, "--json").stdout)
    got = {t["name"]: t["shape"] for t in listed["tensors"]}
    layer, hidden, inner, kv = "model.layers.0.", 2048, 8192, 512
    expected = {"model.embed_tokens.weight": [128256, hidden], "model.norm.weight": [hidden],
                layer + "input_layernorm.weight": [hidden],
                layer + "post_attention_layernorm.weight": [hidden],
                layer + "self_attn.q_proj.weight": [hidden, hidden],
                layer + "self_attn.k_proj.weight": [kv, hidden],
                layer + "self_attn.v_proj.weight": [kv, hidden],
                layer + "self_attn.o_proj.weight": [hidden, hidden],
                layer + "mlp.gate_proj.weight": [inner, hidden],
                layer + "mlp.up_proj.weight": [inner, hidden],
                layer + "mlp.down_proj.weight": [hidden, inner]}
    assert {n: s for n, s in got.items() if not n.endswith("_scale")} == expected, got
    raw = sum(t["n_bytes"] for t in listed["tensors"] if t["dtype"] == "I8")
    stored = sum(t["stored_bytes"] for t in listed["tensors"] if t["dtype"] == "I8")
    assert 2.1 < raw / stored < 2.2, raw / stored
    os.remove(path)


def same_bytes(work):
    one, two, other = (os.path.join(work, n) for n in ("one", "two", "other"))
    small = ("tiny", "--layers", 2, "--tensors", 40, "--shards", 3, "--seed", 9)
    generate(*small, "--jobs", 1, "-o", one)
    os.mkdir(two)  # an empty directory is fine
    generate(*small, "--jobs", 3, "-o", two)
    generate(*small[:-1], 10, "-o", other)
    first, second, third = (synthetic.files_of(p) for p in (one, two, other))
    assert first == second
    assert len(first) == 5 and all(first[n] != third[n] for n in first if "-of-" in n)
    with open(os.path.join(one, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    assert config["num_hidden_layers"] == 2 and config["model_type"] == "llama"
    tensors = read(one)
    assert sum(n.startswith("model.small.") for n in tensors) == 40
    # What this machine makes is what every other makes: recorded on x86-64.
    digest = hashlib.sha256(b"".join(first[n] for n in sorted(first))).hexdigest()
    assert digest == RECORDED, digest
    path = os.path.join(work, "floating-again")
    generate("tiny", "--dtype", "bf16", "--layers", 1, "-o", path)
    with open(os.path.join(path, "model.safetensors"), "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    assert digest == RECORDED_BF16, digest
    # Straight into a container: the same files come out.
    packed, restored = os.path.join(work, "direct.dcmem"), os.path.join(work, "restored")
    generate(*small, "-o", packed)
    done = synthetic.run(TOOL, "verify", packed, "--against", one)
    assert done.returncode == 0, done
    assert synthetic.run(TOOL, "unpack", packed, "-o", restored, "--quiet").returncode == 0
    assert synthetic.files_of(restored) == first
    again = os.path.join(work, "packed.dcmem")
    assert synthetic.run(TOOL, "pack", one, "-o", again, "--quiet").returncode == 0
    companions = [[t.get("companions") for t in json.loads(
        synthetic.run(TOOL, "ls", p, "--json").stdout)["tensors"]] for p in (packed, again)]
    assert companions[0] == companions[1]


def refusals(work):
    out = os.path.join(work, "refused")
    for args in (("tiny",), ("-o", out), ("tiny", "tiny", "-o", out), ("llama-3b", "-o", out),
                 ("tiny", "--bits", "0.5", "-o", out), ("tiny", "--bits", "8", "-o", out),
                 ("tiny", "--bits", "nan", "-o", out), ("tiny", "--bits", "4x", "-o", out),
                 ("tiny", "--bits", "4", "--dtype", "bf16", "-o", out),
                 ("tiny", "--dtype", "fp8", "-o", out), ("tiny", "--layers", "0", "-o", out),
                 ("tiny", "--layers", "-1", "-o", out), ("tiny", "--shards", "0", "-o", out),
                 ("tiny", "--tensors", "9999999", "-o", out), ("tiny", "--seed", "x", "-o", out),
                 ("tiny", "--seed", "18446744073709551616", "-o", out), ("tiny", "--none")):
        generate(*args, code=2)
    full = os.path.join(work, "full")
    os.mkdir(full)
    with open(os.path.join(full, "file"), "w", encoding="utf-8") as file:
        file.write("mine")
    for path in (full, os.path.join(work, "no", "such", "place"),
                 os.path.join(work, "no", "such.dcmem"), os.path.join(full, "file")):
        before = synthetic.files_of(work)
        generate("tiny", "--layers", 1, "-o", path, code=1)
        assert synthetic.files_of(work) == before, path
    generate("tiny", "--shards", "900", "-o", out, code=1)
    assert not os.path.exists(out)


RECORDED = "32e93556ac9233f4f4ed42b9f39b8a3cc0b7f857e05427f894f206065bc1ba16"
RECORDED_BF16 = "5f4b849baaae45b679aff397fabe7780cae16b6064a9782d260a80b78e974448"


def main():
    for step in (bits, floating, shapes, same_bytes, refusals):
        with tempfile.TemporaryDirectory() as work:
            step(work)
        print(step.__name__, "ok", flush=True)


if __name__ == "__main__":
    main()
