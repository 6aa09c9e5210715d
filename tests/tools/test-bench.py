# SPDX-License-Identifier: Apache-2.0
"""`dcmem bench codec` on a little of everything: the JSON has what it promises, and says that this
was not the whole protocol."""
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile

import synthetic

TOOL, MODEL = sys.argv[1:3]
KINDS = {"dram", "scratch", "cores"}
STATS = {"median", "min", "q1", "q3", "max", "samples"}
# Everything: every codec of the table, every path, every kind; small in each.
SMALL = ("--quick", "--quiet", "--mib", 1)


def bench(work, *args):
    path = os.path.join(work, "bench.json")
    result = synthetic.run(TOOL, "bench", "codec", *args, "--json", path)
    assert result.returncode == 0, (result.returncode, result.stderr)
    assert result.stderr == b"", result.stderr
    with open(path, encoding="utf-8") as file:
        return json.load(file), result.stdout.decode()


def check_row(row, data, rounds):
    copy = row["codec"].startswith("memcpy")
    assert row["dtype"] == data["dtype"] and row["order0_bits"] == data["order0_bits"]
    assert row["kind"] in KINDS and row["path"] in ("-", "portable", "avx2", "avx512"), row
    assert row["threads"] >= 1 and (row["kind"] == "cores" or row["threads"] == 1)
    assert row["decoded_bytes"] == rounds * data["repeats"] * data["n_bytes"]
    decode = row["decode_gb_s"]
    assert set(decode) == STATS and decode["samples"] == rounds
    assert 0 < decode["min"] <= decode["q1"] <= decode["median"] <= decode["q3"] <= decode["max"]
    assert row["to_zstd1"] > 0 and row["to_memcpy"] > 0
    assert (row["kind"] == "cores") != ("on_cpu" in row)
    assert copy == ("ratio" not in row) == ("encode_gb_s" not in row), row
    if not copy:
        assert set(row["encode_gb_s"]) == STATS
        assert abs(row["ratio"] - data["n_bytes"] / row["stored_bytes"]) < 1e-4 * row["ratio"]
        assert abs(row["share"] - row["ratio"] / data["bound"]) < 1e-4 * row["share"]
        assert row["stored_bytes"] >= 32 * data["n_pages"] and row["raw_pages"] <= data["n_pages"]
    for peer, member in (("zstd-1", "to_zstd1"), ("memcpy", "to_memcpy")):
        assert row["codec"] != peer or row[member] == 1, row


def check(document, n_data):
    assert document["format"] == "dcmem-bench-codec" and document["version"] == 1
    assert document["complete"] is True
    assert document["quick"] is True and document["rule_kept"] is False
    assert document["clock"] in ("wall", "cpu")
    assert document["page_bytes"] == 262144 and document["page_record_bytes"] == 32
    machine = document["machine"]
    assert {"cpu", "kernel", "huge_pages", "caches", "compiler", "pinned_cpu"} <= set(machine)
    assert machine["best_path"] in ("portable", "avx2", "avx512")
    data = {d["name"]: d for d in document["data"]}
    assert len(data) == len(document["data"]) == n_data, list(data)
    for d in data.values():
        assert d["bytes_a_run"] == d["repeats"] * d["n_bytes"] >= 1 << 20
        assert 0 <= d["huge_page_share"] <= 1 and isinstance(d["beyond_caches"], bool)
    seen = set()
    for row in document["rows"]:
        check_row(row, data[row["data"]], document["rounds"])
        seen.add((row["data"], row["codec"], row["path"], row["kind"]))
    assert len(seen) == len(document["rows"]), "a row twice"
    worst = {}
    for row in document["rows"]:
        key = (row["codec"], row["path"], row["kind"], row["dtype"])
        worst[key] = min(worst.get(key, 1e9), row["decode_gb_s"]["median"])
    assert worst == {(w["codec"], w["path"], w["kind"], w["dtype"]): w["decode_gb_s"]
                     for w in document["worst"]}
    return seen


def everything(work):
    document, text = bench(work, *SMALL, "--data", "gauss 4", "--data", "BF16", MODEL)
    seen = check(document, 2)
    codecs = {s[1] for s in seen}
    assert {"memcpy", "zstd-1", "zstd-3", "zstd-19", "raw", "zstd"} <= codecs, codecs
    assert {s[3] for s in seen} == KINDS
    assert ("gauss 4 bits", "zstd-planes16", "-", "dram") not in seen
    assert any(s[0].endswith("BF16") and s[1] == "zstd-planes16" for s in seen)
    paths = ["portable", "avx2", "avx512"]
    paths = set(paths[:paths.index(document["machine"]["best_path"]) + 1])
    for codec in {s[1] for s in seen if s[2] != "-"}:
        assert {s[2] for s in seen if s[1] == codec} == paths, codec
    for row in document["rows"]:
        if row["data"] == "gauss 4 bits" and row["codec"] == "zstd-1":
            assert 3.9 < row["order0_bits"] < 4.1 and 1.8 < row["ratio"] < 2.05, row
    for word in ("QUICK", "Not the whole protocol", "INSIDE CACHES", "The worst of each codec"):
        assert word in text, text


def synthetic_sets(work):
    document, _ = bench(work, *SMALL, "--kind", "dram", "--codec", "raw", "--cpu-time")
    check(document, 18)
    assert document["clock"] == "cpu"
    assert {r["codec"] for r in document["rows"]} <= {"raw", "zstd-1", "memcpy", "memcpy-nt"}
    bits = {d["name"]: d["order0_bits"] for d in document["data"]}
    for shape in ("gauss", "laplace", "student4"):
        for target in range(3, 8):
            assert abs(bits[f"{shape} {target} bits"] - target) < 0.03, bits


def models(work):
    """Linear weights, quantized here as well; the same from the container; embeddings are none."""
    rng = random.Random(7)
    rows, cols = 96, 80
    weights = [[rng.gauss(0, 1 + r % 5) for _ in range(cols)] for r in range(rows)]
    flat = [v for row in weights for v in row]
    source = os.path.join(work, "model")
    synthetic.write(source + "/model.safetensors", [
        ("a.weight", "F32", [rows, cols], struct.pack(f"<{rows * cols}f", *flat)),
        ("embed_tokens.weight", "F32", [64, 64], bytes(4 * 64 * 64)),
        ("norm.weight", "BF16", [64], bytes(128))])
    packed = os.path.join(work, "model.dcmem")
    assert synthetic.run(TOOL, "pack", source, "-o", packed, "--quiet").returncode == 0
    small = (*SMALL, "--kind", "dram", "--codec", "raw", "--data", ": ", "--data", "INT8")
    first, _ = bench(work, *small, source)
    second, _ = bench(work, *small, packed)

    def sets(document):
        return {d["name"].split(": ")[1]: d for d in document["data"] if "model" in d["name"]}

    got = sets(first)
    assert set(got) == {"BF16", "F32", "INT8 per tensor", "INT8 per channel"}, got
    assert got["F32"]["n_bytes"] == 4 * (rows * cols + 64 * 64) and got["F32"]["n_pages"] == 2
    assert got["INT8 per tensor"]["n_bytes"] == rows * cols

    def entropy(scales):
        count = {}
        for row, scale in zip(weights, scales):
            for value in row:
                code = round(value / scale * 127)
                count[code] = count.get(code, 0) + 1
        total = rows * cols
        from math import log2
        return -sum(n / total * log2(n / total) for n in count.values())

    most = [max(map(abs, row)) for row in weights]
    assert abs(got["INT8 per tensor"]["order0_bits"] - entropy([max(most)] * rows)) < 0.005
    assert abs(got["INT8 per channel"]["order0_bits"] - entropy(most)) < 0.005
    for name, data in sets(second).items():
        assert {**data, "name": 0, "huge_page_share": 0} == \
            {**got[name], "name": 0, "huge_page_share": 0}, name


def refusals(work):
    for args, code in ((("bench",), 2), (("bench", "page"), 2),
                       (("bench", "codec", "--codec", "none"), 2),
                       (("bench", "codec", "--kind", "none"), 2),
                       (("bench", "codec", "--mib", "0"), 2),
                       (("bench", "codec", *SMALL, "--data", "no such data"), 1),
                       (("bench", "codec", *SMALL, "--data", "none", "/nonexistent"), 1)):
        result = synthetic.run(TOOL, *args)
        assert result.returncode == code and result.stderr.startswith(b"dcmem bench: "), result
    path = os.path.join(work, "no", "directory")
    result = synthetic.run(TOOL, "bench", "codec", *SMALL, "--json", path)
    assert result.returncode == 1 and b"no/directory" in result.stderr, result


def interrupted(work):
    """Ctrl-C leaves a document that says so, with what was measured until then."""
    path = os.path.join(work, "interrupted.json")
    tool = subprocess.Popen([TOOL, "bench", "codec", "--quick", "--quiet", "--codec", "raw",
                             "--kind", "dram", "--json", path],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in tool.stdout:
        if line.startswith(b"[1] "):
            break
    tool.send_signal(signal.SIGINT)
    _, error = tool.communicate(timeout=60)
    assert tool.returncode == 1 and error == b"dcmem bench: stopped\n", (tool.returncode, error)
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    assert document["complete"] is False and document["rule_kept"] is False
    assert document["rows"] and len(document["data"]) < 18


def main():
    with tempfile.TemporaryDirectory() as work:
        for step in (everything, synthetic_sets, models, interrupted, refusals):
            step(work)
            print(step.__name__, "ok", flush=True)


if __name__ == "__main__":
    main()
