# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile input: a non-zero exit, exactly one line on stderr, and no output left."""
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile

import synthetic

TOOL = sys.argv[1]
QUICK = os.environ.get("DCMEM_TEST_QUICK")


def refuse(what, codes, *args):
    result = synthetic.run(TOOL, *args)
    assert result.returncode in codes, (what, args, result.returncode, result.stderr)
    assert result.stderr.count(b"\n") == 1 and result.stderr.endswith(b"\n"), (what, result.stderr)
    assert result.stdout == b"", (what, result.stdout)
    return result.stderr.decode()


def refuse_source(work, what, codes, data):
    path = os.path.join(work, "bad.safetensors")
    with open(path, "wb") as file:
        file.write(data)
    text = refuse(what, codes, "pack", path, "-o", os.path.join(work, "out.dcmem"))
    assert "bad.safetensors" in text, (what, text)
    assert os.listdir(work) == ["bad.safetensors"], (what, os.listdir(work))


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bad_headers():
    good = entry("U8", [8], 0, 8)
    yield "overlap", {"a": good, "b": entry("U8", [8], 4, 12)}, 12
    yield "same bytes twice", {"a": good, "b": good}, 8
    yield "hole", {"a": good, "b": entry("U8", [8], 9, 17)}, 17
    yield "hole at the start", {"a": entry("U8", [8], 1, 9)}, 9
    yield "bytes that no tensor has", {"a": good}, 9
    yield "beyond the end", {"a": good}, 7
    yield "wrong length", {"a": entry("U16", [8], 0, 8)}, 8
    yield "begin after end", {"a": entry("U8", [0], 8, 0)}, 8
    yield "negative", {"a": entry("U8", [-8], 0, 8)}, 8
    yield "negative offset", {"a": entry("U8", [8], -8, 0)}, 8
    yield "overflow", {"a": entry("U8", [1 << 32, 1 << 32, 8], 0, 8)}, 8
    yield "overflow behind 0", {"a": entry("U8", [0, 1 << 62, 1 << 62], 0, 0)}, 0
    yield "too many dimensions", {"a": entry("U8", [1] * 8 + [8], 0, 8)}, 8
    yield "unknown dtype", {"a": entry("F4", [8], 0, 8)}, 8
    yield "real numbers", {"a": entry("U8", [8.0], 0, 8)}, 8
    yield "text numbers", {"a": entry("U8", ["8"], 0, 8)}, 8
    yield "more offsets", {"a": {**good, "data_offsets": [0, 8, 8]}}, 8
    yield "more members", {"a": {**good, "x": 1}}, 8
    yield "fewer members", {"a": {"dtype": "U8", "shape": [8]}}, 8
    yield "no object", {"a": [1]}, 8
    yield "a list", [good], 8
    yield "empty name", {"": good}, 8
    yield "long name", {"n" * 65536: good}, 8
    yield "metadata is no text", {"__metadata__": {"a": 1}, "a": good}, 8


def bad_texts():
    one = '{"a": {"dtype": "U8", "shape": [%s], "data_offsets": [0, 8]}%s}'
    yield "NaN", one % ("NaN", "")
    yield "beyond 64 bits", one % ("99999999999999999999", "")
    yield "a key twice", one % ("8", ', "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}')
    yield "NUL in a name", (one % ("8", "")).replace('"a"', '"a\\u0000b"')
    yield "not UTF-8", (one % ("8", "")).encode().replace(b'"a"', b'"\xff\xfe"')
    yield "not JSON", "x" * 50
    yield "cut JSON", (one % ("8", ""))[:-1]
    yield "something after it", (one % ("8", "")) + "x"
    yield "deep nesting", "[" * 1000000
    yield "nothing", ""


def bad_sources():
    with tempfile.TemporaryDirectory(prefix="dcmem-") as work:
        for what, header, n in bad_headers():
            data = synthetic.head_of(json.dumps(header)) + bytes(n)
            refuse_source(work, what, (1, 3), data)
        for what, text in bad_texts():
            refuse_source(work, what, (3,), synthetic.head_of(text) + bytes(8))
        for length in (100_000_001, 1 << 40, (1 << 64) - 1, 1 << 63, 9):
            refuse_source(work, f"length {length}", (3,), struct.pack("<Q", length) + b"{}      ")
        good = synthetic.head_of(json.dumps({"a": entry("F32", [2, 2], 0, 16)})) + bytes(16)
        for n in (0, 1, 7, 8, 9, 40, len(good) - 17, len(good) - 16, len(good) - 1):
            refuse_source(work, f"cut at {n}", (3,), good[:n])


def refused_places():
    with tempfile.TemporaryDirectory(prefix="dcmem-") as work:
        source, out = work + "/m", work + "/out.dcmem"
        synthetic.write(source + "/model.safetensors", [("a", "U8", [8], bytes(8))])
        refuse("inside the source", (1,), "pack", source, "-o", source + "/x.dcmem")
        refuse("onto a directory", (1,), "pack", source, "-o", work)
        refuse("onto the source", (1,), "pack", source + "/model.safetensors", "-o",
               source + "/model.safetensors")
        refuse("no such directory", (1,), "pack", source, "-o", work + "/none/x.dcmem")
        refuse("no such source", (1,), "pack", work + "/none", "-o", out)
        refuse("no output", (2,), "pack", source)
        refuse("unknown option", (2,), "pack", source, "-o", out, "--fast")
        refuse("bad jobs", (2,), "pack", source, "-o", out, "--jobs", "0")
        os.mkfifo(source + "/fifo")
        refuse("a FIFO", (1,), "pack", source, "-o", out)
        os.remove(source + "/fifo")
        os.symlink("loop", source + "/loop")
        refuse("a link to itself", (1,), "pack", source, "-o", out)
        os.remove(source + "/loop")
        os.symlink(".", source + "/loop")
        refuse("a link to a directory", (1,), "pack", source, "-o", out)
        os.remove(source + "/loop")
        with open(source + "/model.safetensors.index.json", "w", encoding="utf-8") as file:
            file.write('{"weight_map": {"a": "missing.safetensors"}}')
        refuse("a shard that is missing", (3,), "pack", source, "-o", out)
        assert sorted(os.listdir(work)) == ["m"], os.listdir(work)


def bad_containers():
    with tempfile.TemporaryDirectory(prefix="dcmem-") as work:
        source, out, bad = work + "/m", work + "/out.dcmem", work + "/bad.dcmem"
        rng = synthetic.rng()
        synthetic.write(source + "/model.safetensors",
                        [("w", "BF16", [600, 500], synthetic.weights(rng, 600000)),
                         ("r", "U8", [5000], rng.randbytes(5000))])
        with open(source + "/config.json", "wb") as file:
            file.write(b'{"a": 1}')
        assert synthetic.run(TOOL, "pack", source, "-o", out).returncode == 0
        with open(out, "rb") as file:
            good = file.read()
        index, index_bytes = struct.unpack_from("<QQ", good, 40)
        tables = [struct.unpack_from("<QQ", good, index + 64 + 16 * i) for i in range(16)]
        segment, = struct.unpack_from("<Q", good, index + tables[7][0])
        blob, = struct.unpack_from("<Q", good, index + tables[6][0] + 16)
        forms = index + tables[3][0]
        raw_at, = struct.unpack_from("<Q", good, forms + 64 + 24)
        edges = [0, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 4088, segment, segment + 300,
                 segment + raw_at, segment + raw_at + 4999, blob, index, index + 8, index + 16,
                 index + 24, index + 32, index + 48, index + index_bytes - 1, len(good) - 1]
        edges += [index + offset for offset, count in tables if count]
        for at in edges[::5] if QUICK else edges:
            for data, what in ((good[:at], "cut"),
                               (good[:at] + bytes([good[at] ^ 1]) + good[at + 1:], "flipped")):
                with open(bad, "wb") as file:
                    file.write(data)
                refuse(f"{what} at {at}", (1, 3), "verify", bad)
                refuse(f"{what} at {at}", (1, 3), "unpack", bad, "-o", work + "/back")
                assert not os.path.exists(work + "/back"), (what, at)
        gaps = [index - 1, segment + raw_at + 5000]
        for at in gaps:
            assert good[at] == 0, at
            with open(bad, "wb") as file:
                file.write(good[:at] + b"\x01" + good[at + 1:])
            refuse(f"padding at {at}", (3,), "verify", bad)
        with open(source + "/config.json", "wb") as file:
            file.write(b'{"a": 2}')
        refuse("another source", (3,), "verify", out, "--against", source)
        os.mkdir(work + "/full")
        with open(work + "/full/x", "wb"):
            pass
        refuse("a directory that is not empty", (1,), "unpack", out, "-o", work + "/full")
        assert os.listdir(work + "/full") == ["x"]


def stopped():
    """A signal leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="dcmem-") as work:
        head = synthetic.head_of(json.dumps({"w": entry("F32", [1 << 20, 512], 0, 1 << 31)}))
        with open(work + "/big.safetensors", "wb") as file:
            file.write(head)
            file.truncate(len(head) + (1 << 31))
        process = subprocess.Popen([TOOL, "pack", work + "/big.safetensors", "-o",
                                    work + "/out.dcmem"], stderr=subprocess.PIPE)
        while not any(".tmp-" in n for n in os.listdir(work)) and process.poll() is None:
            pass
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=60)
        assert process.returncode == 1 and text.count(b"\n") == 1, (process.returncode, text)
        assert os.listdir(work) == ["big.safetensors"], os.listdir(work)


bad_sources()
refused_places()
bad_containers()
stopped()
