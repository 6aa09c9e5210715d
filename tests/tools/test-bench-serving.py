# SPDX-License-Identifier: Apache-2.0
"""`dcmem bench load`, `memory` and `serve` on little: the JSON has what it promises and agrees with the table, nothing is
left behind, also after Ctrl-C, and nonsense is refused."""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile

import synthetic

TOOL, DAEMON = sys.argv[1:3]
STATS = {"median", "min", "q1", "q3", "max", "samples"}


def bench(work, what, *args):
    path = os.path.join(work, what + ".json")
    result = synthetic.run(TOOL, "bench", what, "--quick", "--dcmemd", DAEMON, "--dir", work,
                           "--json", path, *args)
    assert result.returncode == 0 and result.stderr == b"", result
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    assert document["format"] == "dcmem-bench-" + what and document["version"] == 1
    assert document["complete"] is True and document["quick"] is True
    assert document["machine"]["n_cpus"] >= 1
    os.remove(path)
    assert os.listdir(work) == [], os.listdir(work)
    return document, result.stdout.decode()


def check_stats(stats):
    assert set(stats) == STATS and stats["samples"] >= 1
    assert 0 < stats["min"] <= stats["q1"] <= stats["median"] <= stats["q3"] <= stats["max"]


def load(work):
    document, text = bench(work, "load")
    assert [a["n_tensors"] for a in document["attach"]] == [11, 100011]
    for attach in document["attach"]:
        check_stats(attach["ms"])
        assert attach["ms"]["median"] < 1000
        assert f"attach, {attach['n_tensors']} tensors" in text
    rows = {row["what"]: row["gb_s"] for row in document["load"]}
    assert list(rows) == ["cat-cold", "load-cold", "cat-shm-warm", "load-warm"]
    for stats in rows.values():
        check_stats(stats)
        assert f"{stats['median']:.2f} GB/s" in text, (stats, text)
    for ratio, one, other in (("cold_to_cat", "load-cold", "cat-cold"),
                              ("warm_to_cat_shm", "load-warm", "cat-shm-warm")):
        # the median of the ratios of runs that followed each other
        assert (rows[one]["min"] / rows[other]["max"] * 0.9999 <= document[ratio] <=
                rows[one]["max"] / rows[other]["min"] * 1.0001)
    assert document["file_bytes"] > 1 << 20
    assert ("NOT COLD" in text) == (document["cached_after_drop_bytes"] > 0)
    assert not [n for n in os.listdir("/dev/shm") if n == f"dcmem-bench-{os.getpid()}"]


def memory(work):
    document, text = bench(work, "memory", "--processes", "2")
    model, cores = document["model_bytes"], document["machine"]["n_cpus"]
    assert document["container_bytes"] < model < document["container_bytes"] * 2.2
    assert document["budget_bytes"] <= model
    rows = {(row["way"], row["processes"]): row for row in document["rows"]}
    assert len(rows) == len(document["rows"])
    names = ["dcmem-compressed", "dcmem-raw", "mmap-warm", "tmpfs-huge", "private-dcmem", "private-zstd"]
    assert set(rows) == {(name, n) for name in names for n in (1, 2)}
    for (way, n), row in rows.items():
        check_stats(row["unique_gb_s"])
        assert abs(row["total_gb_s"] / (n * row["unique_gb_s"]["median"]) - 1) < 1e-4
        assert 0 < row["private_bytes"] <= row["pss_bytes"]
        served = way.startswith("dcmem")
        assert served == ("decodes_per_sweep" in row)
        # Memory holds what the way cannot do without.
        cached = 0 if served else row["file_cached_bytes"]
        assert row["memory_bytes"] == row["private_bytes"] + row["shmem_bytes"] + cached
        least = {"dcmem-raw": model, "mmap-warm": model, "tmpfs-huge": model}
        least = least.get(way, document["container_bytes"] * 0.9)
        assert row["memory_bytes"] >= least, row
        assert (row["shmem_bytes"] > 0) == served
        if served:
            # The kernel's count against the daemon's own. (Its heap differs with the allocator.)
            assert abs(row["shmem_bytes"] / row["daemon_says_bytes"] - 1) < 0.05, row
            assert row["daemon_bytes"] > row["shmem_bytes"]
    assert rows["mmap-warm", 1]["pss_bytes"] >= model  # mapped, hence counted by the kernel
    for n in (1, 2):
        row = rows["dcmem-compressed", n]
        assert rows["dcmem-raw", n]["decodes_per_sweep"] == 0
        assert 0.3 < row["decodes_per_sweep"] < 2.5, row
        assert row["shmem_bytes"] <= document["budget_bytes"] * 1.02, row
        d, r = document["decode_gb_s_core"], document["read_gb_s_core"]
        bound = min(cores / (1 / d + n / r), document["read_gb_s_ceiling"] / n)
        assert abs(row["bound_gb_s"] / bound - 1) < 1e-3, (row, bound)
        assert abs(row["of_bound"] / (row["unique_gb_s"]["median"] / bound) - 1) < 1e-3
        assert f"{row['unique_gb_s']['median']:.2f}" in text
    # A container that is named, and one whose bytes are damaged.
    path = os.path.join(work, "named.dcmem")
    assert synthetic.run(TOOL, "generate", "tiny", "-o", path).returncode == 0
    result = synthetic.run(TOOL, "bench", "memory", path, "--quick", "--dcmemd", DAEMON, "--dir",
                           work, "--budget", "1000%", "--processes", "1")
    assert result.returncode == 0, result
    with open(path, "r+b") as file:
        file.seek(200000)
        byte = file.read(1)
        file.seek(200000)
        file.write(bytes([byte[0] ^ 1]))
    result = synthetic.run(TOOL, "bench", "memory", path, "--quick", "--dcmemd", DAEMON, "--dir",
                           work)
    assert result.returncode == 3 and b"damaged" in result.stderr, result
    # A budget that holds nothing: a sentence, and nothing left.
    result = synthetic.run(TOOL, "bench", "memory", "--quick", "--dcmemd", DAEMON, "--dir", work,
                           "--budget", "10%")
    assert result.returncode == 1 and b"budget" in result.stderr, result
    assert os.listdir(work) == ["named.dcmem"]


def is_printed(value, within, text):
    """The JSON has other digits than the table: halves may round either way."""
    return any(abs(float(number) - value) <= within for number in re.findall(r"\d+(?:\.\d+)?", text))


def serve(work):
    document, text = bench(work, "serve")
    rows = {(row["place"], row["way"]): row for row in document["rows"]}
    assert set(rows) == {(place, way) for place in ("busy", "asleep", "unpinned")
                         for way in ("dcmem", "dcmem-kept", "bare-ring", "seqpacket")}
    for (place, way), row in rows.items():
        check_stats(row["p50_us"])
        assert row["p50_us"]["min"] <= row["p99_us"] and row["p90_us"] <= row["p99_us"]
        assert row["to_bare_ring"] > 0 and row["to_seqpacket"] > 0
        if way == "bare-ring":
            assert row["to_bare_ring"] == 1
        assert is_printed(row["p50_us"]["median"], 0.01, text), (row, text)
    loads = {(load["clients"], load["batch"]): load for load in document["loads"]}
    assert set(loads) == {(n, batch) for n in (1, 4) for batch in (1, 8, 64)}
    for load in loads.values():
        check_stats(load["requests_per_s"])
        rate = load["requests_per_s"]["median"]
        assert is_printed(rate, 1 + 1e-5 * rate, text), (load, text)


def refusals(work):
    for args, code in ((("load", "--none"), 2), (("load", "a", "b"), 2),
                       (("load", "--budget", "60%"), 2), (("memory", "--budget", "60"), 2),
                       (("memory", "--budget", "0%"), 2), (("memory", "--processes", "0"), 2),
                       (("memory", "--processes", "65"), 2), (("serving",), 2),
                       (("load", "--dcmemd", "/nonexistent"), 1),
                       (("load", "--dcmemd", "/bin/false"), 1),
                       (("load", "--dir", os.path.join(work, "none")), 1),
                       (("load", "--json", os.path.join(work, "none", "x")), 1),
                       (("load", os.path.join(work, "none.dcmem"), "--dcmemd", DAEMON), 1)):
        if "--dir" not in args:
            args = (*args, "--dir", work)
        result = synthetic.run(TOOL, "bench", *args, env={**os.environ, "TMPDIR": work})
        assert result.returncode == code and result.stderr.startswith(b"dcmem bench: "), result
        assert os.listdir(work) == [], (args, os.listdir(work))


def interrupted(work):
    path = os.path.join(work, "interrupted.json")
    tool = subprocess.Popen([TOOL, "bench", "load", "--dcmemd", DAEMON, "--dir", work, "--json",
                             path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not os.path.exists(path):
        assert tool.poll() is None
    tool.send_signal(signal.SIGINT)
    _, error = tool.communicate(timeout=60)
    assert tool.returncode == 1 and b"stopped" in error, (tool.returncode, error)
    with open(path, encoding="utf-8") as file:
        assert json.load(file)["complete"] is False
    assert os.listdir(work) == ["interrupted.json"], os.listdir(work)


def main():
    for step in (load, memory, serve, refusals, interrupted):
        with tempfile.TemporaryDirectory() as work:
            step(work)
        print(step.__name__, "ok", flush=True)


if __name__ == "__main__":
    main()
