# SPDX-License-Identifier: Apache-2.0
"""Packs, verifies, unpacks and compares bytes: every dtype, odd shapes and names, shards,
duplicates, nested files, many tensors, and one tensor beyond 32 bits."""
import json
import os
import shutil
import sys
import tempfile

import synthetic

TOOL = sys.argv[1]
MODEL = sys.argv[2]


def call(*args):
    result = synthetic.run(TOOL, *args)
    assert result.returncode == 0, (args, result.returncode, result.stderr)
    assert result.stderr == b"", result.stderr
    return result.stdout


def roundtrip(work, source, *options):
    out, again, back = (os.path.join(work, n) for n in ("a.dcmem", "b.dcmem", "back"))
    report = json.loads(call("pack", source, "-o", out, "--json", "--jobs", 2, *options))
    call("pack", source, "-o", again, "--quiet", "--jobs", 1, *options)
    with open(out, "rb") as a, open(again, "rb") as b:
        assert a.read() == b.read(), "the count of threads changed the container"
    assert json.loads(call("verify", out, "--against", source, "--json"))["ok"] is True
    call("unpack", out, "-o", back, "--quiet")
    expected = synthetic.files_of(source) if os.path.isdir(source) else {
        os.path.basename(source): open(source, "rb").read()}
    assert synthetic.files_of(back) == expected, "unpack gave other files"
    assert not [n for n in os.listdir(work) if ".tmp-" in n]
    listing = json.loads(call("ls", out, "--json"))
    assert call("ls", out)
    assert listing["totals"] == report["totals"]
    shutil.rmtree(back)
    return listing


def every_dtype(work):
    rng, source, tensors = synthetic.rng(), os.path.join(work, "dtypes"), []
    for dtype, size in synthetic.SIZES.items():
        for shape in ([], [0], [3, 0, 5], [1], [7, 3], [2, 3, 5, 1, 1, 2, 1, 2], [65, 4099]):
            n = size
            for dim in shape:
                n *= dim
            data = bytes(b & 1 for b in rng.randbytes(n)) if dtype == "BOOL" else rng.randbytes(n)
            tensors.append((f"{dtype}.{shape}", dtype, shape, data))
    tensors.append(("a row longer than a page", "F32", [2, 100003], rng.randbytes(800024)))
    synthetic.write(source + "/model.safetensors", tensors, {"format": "pt"}, padding=5)
    listing = roundtrip(work, source)
    got = {t["name"]: (t["dtype"], t["shape"], t["n_bytes"]) for t in listing["tensors"]}
    assert got == {n: (d, s, len(b)) for n, d, s, b in tensors}
    for codec in ("raw", "zstd", "pair", "pack"):
        listing = roundtrip(work, source + "/model.safetensors", "--codec", codec)
        assert {t["codec"].rstrip("12368") for t in listing["tensors"]} <= {"raw", codec, "shared"}
    stored = {}
    for effort in ("fast", "normal", "dense"):
        listing = roundtrip(work, source + "/model.safetensors", "--effort", effort)
        stored[effort] = sum(t["stored_bytes"] for t in listing["tensors"])
    assert stored["dense"] <= stored["normal"] <= stored["fast"], stored


def shards_and_files(work):
    rng, source = synthetic.rng(), os.path.join(work, "shards")
    same, weight_map = synthetic.weights(rng, 300000), {}
    for i in range(3):
        name = f"model-{i + 1:05}-of-00003.safetensors"
        tensors = [(f"model.layers.{i}.weight", "BF16", [150, 1000], same),
                   (f"mod\u00e8le.\u5c64.{i}.\U0001f9ed \"quoted\\\t", "F32", [25, 100],
                    rng.randbytes(10000)), (f"zero.{i}", "BF16", [64, 64], bytes(8192))]
        weight_map.update({t[0]: name for t in tensors})
        synthetic.write(f"{source}/{name}", tensors)
    synthetic.write(source + "/extra/other.safetensors",
                    [("model.layers.0.weight", "I8", [16, 8], rng.randbytes(128)),
                     ("model.layers.0.weight_scale", "F32", [16, 1], rng.randbytes(64)),
                     ("q.weight", "I8", [16, 8], rng.randbytes(128)),
                     ("q.weight_scale", "F16", [16, 2], rng.randbytes(64)),
                     ("q.weight_zero_point", "I8", [16, 2], rng.randbytes(32)),
                     ("q.input_scale", "F32", [1], rng.randbytes(4))])
    for name, data in (("config.json", b"{}"), ("empty", b""), ("deep/er/\u00fc.bin", same),
                       ("model.safetensors.index.json",
                        json.dumps({"metadata": {}, "weight_map": weight_map}).encode())):
        os.makedirs(os.path.dirname(f"{source}/{name}"), exist_ok=True)
        with open(f"{source}/{name}", "wb") as file:
            file.write(data)
    listing = roundtrip(work, source)
    tensors = {t["name"]: t for t in listing["tensors"]}
    assert [tensors[f"model.layers.{i}.weight"]["shared"] for i in range(3)] == [False, True, True]
    assert listing["totals"]["n_shared"] == 4
    assert tensors["model.layers.0.weight"]["codec"] == "zstd-planes16"
    assert tensors["model.layers.0.weight"]["stored_bytes"] < 0.8 * 300000
    assert tensors["extra/other.safetensors:model.layers.0.weight"]["dtype"] == "I8"
    companions = [(listing["tensors"][c["tensor"]]["name"], c["relation"], c["axis"],
                   c["group_size"]) for c in tensors["q.weight"]["companions"]]
    assert companions == [("q.weight_scale", 1, 0, 4), ("q.weight_zero_point", 2, 0, 4)]


def many_tensors(work, n):
    source = os.path.join(work, "many.safetensors")
    synthetic.write(source, [(f"t.{i}.w", "U16", [2], i.to_bytes(4, "little")) for i in range(n)])
    assert len(roundtrip(work, source)["tensors"]) == n


def beyond_32_bits(work):
    n, path = (4 << 30) + (6 << 10), os.path.join(work, "big.safetensors")
    head = synthetic.head_of(json.dumps({"w": {"dtype": "F32", "shape": [n // 1024, 256],
                                               "data_offsets": [0, n]}}))
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + n)
        file.seek(len(head) + n - 4)
        file.write(b"last")
    out = os.path.join(work, "big.dcmem")
    call("pack", path, "-o", out, "--quiet")
    assert os.path.getsize(out) < n // 100
    call("verify", out, "--against", path)


def main():
    quick = os.environ.get("DCMEM_TEST_QUICK")
    with tempfile.TemporaryDirectory(prefix="dcmem-") as work:
        every_dtype(work)
        shards_and_files(work)
        roundtrip(work, MODEL)
        many_tensors(work, 2000 if quick else 100000)
        if quick or shutil.disk_usage(work).free < 6 << 30:
            print("skipped: one tensor of 4 GiB (DCMEM_TEST_QUICK, or under 6 GiB of disk)")
        else:
            beyond_32_bits(work)


main()
